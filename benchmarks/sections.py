"""The sections, in the order in which they run."""

import argparse
import os
import platform
import time

import pyro
import torch

from . import (
    average,
    conventions,
    defect,
    diagnostics,
    factors,
    guides,
    import_time,
    invariance,
    lattice,
    layers,
    mixtures,
    step,
    vector,
)

SECTIONS = {
    "invariance": invariance.run,
    "layers": layers.run,
    "conventions": conventions.run,
    "defect": defect.run,
    "vector": vector.run,
    "guides": guides.run,
    "average": average.run,
    "mixtures": mixtures.run,
    "factors": factors.run,
    "lattice": lattice.run,
    "step": step.run,
    "diagnostics": diagnostics.run,
    "import_time": import_time.run,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the named sections; 1 if a line of any of them failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Benchmarks of the package.")
    parser.add_argument("section", nargs="*", help=f"of {', '.join(SECTIONS)}; default: all")
    chosen = parser.parse_args(arguments).section or list(SECTIONS)
    if unknown := [name for name in chosen if name not in SECTIONS]:
        parser.error(f"expected sections of {', '.join(SECTIONS)}; got {', '.join(unknown)}")
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, pyro {pyro.__version__}; "
        f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    )
    return max([_run(name) for name in dict.fromkeys(chosen)])


def _run(name: str) -> int:
    start = time.perf_counter()
    report = SECTIONS[name]()
    path = report.write(seconds := time.perf_counter() - start)
    print(f"\n{name}: {seconds:.0f} s, written to {path}")
    return int(report.failed)
