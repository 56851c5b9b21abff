"""What an average over the symmetries of the square costs on a large kernel. As a program: the memory of one case."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_equivariance as pe

from .report import Column, Report, aim, quartiles

SEED, REPEATS = 0, 7
CHANNELS, KERNEL = 512, 3
SECONDS, MEGABYTES, PRECISION = 1.0, 200.0, 1e-5
CASES = ("mean", "geometric", "arithmetic", "projection")
STATUS = Path("/proc/self/status")


def run() -> Report:
    """Time, extra memory and correctness of the mean and of each rule, against the sum over all elements."""
    report = Report("average", f"orbit averages of a {CHANNELS} × {CHANNELS} × {KERNEL} × {KERNEL} kernel under D4")
    table = report.table(
        "Averages over the 8 elements, along a chain of subgroups",
        f"mean: rep.mean(x); the rules: pe.average(Normal, rep, rule); float32, rep = regular · regular · image, "
        f"random kernels (seed {SEED}). seconds: median and quartiles of {REPEATS} (aim < {SECONDS:g}); extra: peak "
        f"memory above what is held before the call, in a process of its own, in 10⁶ bytes (aim < {MEGABYTES:g}); "
        f"naive/chain: time of the sum over the elements one by one over that of the package, in pairs, median and "
        f"quartiles; error: largest difference between the two, relative to the largest entry (aim < {PRECISION:.0e}).",
        Column("case", "case", width=10),
        Column("seconds", "seconds", ".3f", 8),
        Column("seconds_lower", "25%", ".3f", 6),
        Column("seconds_upper", "75%", ".3f", 6),
        Column("megabytes", "extra MB", ".0f"),
        Column("ratio", "naive/chain", ".2f", 11),
        Column("ratio_lower", "25%", ".2f", 6),
        Column("ratio_upper", "75%", ".2f", 6),
        Column("error", "error", ".0e", 7),
        Column("verdict", "aims", width=6),
    )
    rep, x = kernel(CHANNELS)
    for case in CASES:
        row = {**compare(case, rep, x), "megabytes": extra_memory(case)}
        small = row["megabytes"] is None or row["megabytes"] < MEGABYTES
        met = row["seconds"] < SECONDS and small and row["error"] < PRECISION
        table.add(case=case, **row, verdict=aim(met))
    return report


def kernel(channels: int) -> tuple[pe.Representation, Tensor]:
    """The action on a hidden kernel, and the parameters of a random Normal: means and scales ``(2, *shape)``."""
    group = pe.DihedralGroup(4)
    rep = pe.regular(group, channels // 8) * pe.regular(group, channels // 8).dual * pe.image(group, (KERNEL, KERNEL))
    generator = torch.Generator().manual_seed(SEED)
    loc, scale = torch.randn(2, *rep.event_shape, generator=generator)
    return rep, torch.stack([loc, 0.1 + scale.abs()])


def chain(case: str, rep: pe.Representation, x: Tensor) -> tuple[Tensor, ...]:
    """The package's average: of the means alone, or of the Normal."""
    if case == "mean":
        return (rep.mean(x[0]),)
    q = pe.average(dist.Normal(x[0], x[1]), rep, rule=case)
    return q.loc, q.scale


def naive(case: str, rep: pe.Representation, x: Tensor) -> tuple[Tensor, ...]:
    """The textbook formula, summed over the elements one by one."""
    if case == "mean":
        return (element_mean(rep, x[0]),)
    loc, scale = x
    if case == "geometric":
        variance = 1 / element_mean(rep, scale**-2)
        return variance * element_mean(rep, loc / scale**2), variance.sqrt()
    mean = element_mean(rep, loc)
    if case == "arithmetic":
        return mean, (element_mean(rep, scale**2 + loc**2) - mean**2).sqrt()
    return mean, element_mean(rep, scale)


def element_mean(rep: pe.Representation, x: Tensor) -> Tensor:
    """``(1/|G|) Σ_g ρ(g) x``, the sum taken as written."""
    total = torch.zeros_like(x)
    for g in range(len(rep.group)):
        total += rep.act(g, x)
    return total / len(rep.group)


def compare(case: str, rep: pe.Representation, x: Tensor) -> dict[str, float]:
    """Times and their ratio, and how far the two results are apart."""
    results = zip(chain(case, rep, x), naive(case, rep, x), strict=True)
    error = max(float((a - b).abs().max() / b.abs().max()) for a, b in results)
    times = [(seconds(chain, case, rep, x), seconds(naive, case, rep, x)) for _ in range(REPEATS)]
    lower, middle, upper = quartiles([fast for fast, _ in times])
    ratio_lower, ratio, ratio_upper = quartiles([slow / fast for fast, slow in times])
    return {
        "seconds": middle, "seconds_lower": lower, "seconds_upper": upper,
        "ratio": ratio, "ratio_lower": ratio_lower, "ratio_upper": ratio_upper,
        "error": error,
    }  # fmt: skip


def seconds(function: Callable, *args) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def extra_memory(case: str) -> float | None:
    """Peak memory of one average above what is held before it, in megabytes; ``None`` where it cannot be read."""
    command = [sys.executable, "-m", __name__, case]
    # Tensors then go back to the system when they are freed, so that what is held is what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def _measure(case: str) -> float | None:
    # Not ru_maxrss: a child starts with its parent's, which would hide all below that.
    if not STATUS.exists():
        return None
    chain(case, *kernel(8))
    rep, x = kernel(CHANNELS)
    held = _status("VmRSS")
    chain(case, rep, x)
    return (_status("VmHWM") - held) / 1e6


def _status(name: str) -> int:
    """A line of the process's status, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1])))
