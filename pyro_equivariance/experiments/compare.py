"""The main job: train each method on one data set, and say which one to use here."""

import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyro
import torch
import xarray as xr
from torch import Tensor

from .. import diagnostics
from ..data import ImageData
from ..errors import check_option
from .base import Config, Problem, check_writable, load_data, make_problem, torch_threads, write_json
from .evaluation import DEFINITIONS, evaluate, test_draws
from .methods import METHODS, Fitted
from .pictures import POSTERIOR, RESULTS, draw_all, rebuild

COLUMNS = (
    # field, heading, width, format
    ("accuracy", "accuracy", 9, ".4f"),
    ("accuracy_orbit", "on orbit", 9, ".4f"),
    ("nll", "NLL", 7, ".4f"),
    ("ece", "ECE", 7, ".4f"),
    ("defect", "defect", 9, ".1e"),
    ("osp", "OSP", 7, ".4f"),
    ("symmetric_kl", "sym. KL", 8, ".1e"),
    ("train_seconds", "seconds", 8, ".1f"),
    ("parameters", "parameters", 11, ",d"),
)
ARVIZ_IMAGES, ARVIZ_DRAWS = 50, 100


def compare(config: Config, progress: bool = True) -> dict:
    """Train every method with every seed, print a table, and write all results below ``config.out``.

    Files: ``results.json``, ``posterior.nc`` (see :func:`~pyro_equivariance.to_arviz`; the group ``test_predictive``
    holds the mean probabilities of all test images at all moved copies), ``checkpoints/<method>-seed<seed>.pt``, a
    report, ``report.html`` and ``report.png``, and the pictures ``accuracy.png``, ``defect.png``,
    ``defect-elements.png``, ``defect-training.png``, ``kernels.png``, ``orbit-<method>.png``,
    ``reliability-<method>.png``, ``rotation.png`` and ``training.png``. ``results.json`` is rewritten after each run,
    so that an interrupted comparison keeps what it has.

    :param Config config: what to compare, on which data.
    :param bool progress: whether to show a progress bar while a method trains.
    :returns: the content of ``results.json``.
    :raises SymmetryError: for options or data that cannot be used, before anything is trained.
    """
    methods = chosen_methods(config)
    data = load_data(config)
    problems = {seed: make_problem(config, data, seed) for seed in config.seeds}
    out = check_writable(config.out)
    run = _Run(config, out, data)
    _print_head(config, data)
    with torch_threads(config.threads):
        for seed, problem in problems.items():
            for name in methods:
                run.add(name, seed, problem, progress)
        run.finish()
    return run.results


def report(folder: str) -> dict:
    """Print a comparison's table again and rebuild its pictures and report, without training.

    :param str folder: what :func:`compare` wrote to.
    :returns: the content of ``results.json``.
    :raises DataError: for a file that is missing, cut short, or of something else.
    """
    results = rebuild(folder)
    _print_columns()
    for row in results["runs"]:
        _print_row(row["method"], row)
    if len({run["seed"] for run in results["runs"]}) > 1:
        _print_summary(results["runs"])
    print(f"\n{results['recommendation']}\nRebuilt in {Path(folder)}{os.sep}")
    return results


def chosen_methods(config: Config) -> list[str]:
    """The names of the methods, ``all`` spelled out; each one known."""
    for name in config.methods:
        check_option("--methods", name, (*METHODS, "all"))
    return list(METHODS) if "all" in config.methods else list(dict.fromkeys(config.methods))


class _Run:
    """Collects the runs of one comparison and writes them."""

    def __init__(self, config: Config, out: Path, data: ImageData):
        self.config, self.out = config, out
        self.results = {
            "config": config.as_dict(),
            "versions": {
                "torch": torch.__version__,
                "pyro": pyro.__version__,
                "python": platform.python_version(),
            },
            "data": {"name": data.name, "shape": list(data.images.shape[1:]), "classes": data.classes},
            "definitions": DEFINITIONS,
            "runs": [],
            "histories": [],
            "kernels": None,
            "recommendation": None,
        }
        self._idatas: dict[str, list] = {}

    def add(self, name: str, seed: int, problem: Problem, progress: bool) -> None:
        """Train and evaluate one method with one seed; print its row and write what is known so far."""
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        fitted = METHODS[name].train(problem, seed, progress)
        draws = test_draws(problem, fitted)
        row = evaluate(problem, fitted, draws, name, seed)
        _print_row(name, row)
        self.results["runs"].append(row)
        self.results["histories"].append({"method": name, "seed": seed, **fitted.history})
        if fitted.kernels and (self.results["kernels"] is None or (name, seed) == ("projection", self.config.seeds[0])):
            self.results["kernels"] = [kernels.tolist() for kernels in fitted.kernels]
        self._idatas.setdefault(name, []).append(_to_arviz(problem, fitted, draws))
        _save_checkpoint(self.out / "checkpoints" / f"{name}-seed{seed}.pt", fitted)
        write_json(self.out / RESULTS, self.results)

    def finish(self) -> None:
        """The files that need all runs, the summary over seeds and the recommendation."""
        runs = self.results["runs"]
        self.results["recommendation"] = recommend(runs)
        idata = diagnostics.stack(self._idatas)
        diagnostics.save(idata, self.out / POSTERIOR)
        write_json(self.out / RESULTS, self.results)
        draw_all(self.out, self.results, idata)
        if len({run["seed"] for run in runs}) > 1:
            _print_summary(runs)
        print(f"\n{self.results['recommendation']}\nWritten to {self.out}{os.sep}")


def recommend(runs: Sequence[dict]) -> str:
    """One sentence or two: the method with the lowest validation NLL over moved copies, and how equivariant it is."""
    by_method = _grouped(runs)
    score = {name: _mean(group, "validation_nll") for name, group in by_method.items()}
    best = min(score, key=score.get)
    group = by_method[best]
    text = (
        f"Use {best}: of {len(by_method)} methods it has the lowest validation NLL over moved copies, {score[best]:.3f}"
    )
    others = sorted((s, n) for n, s in score.items() if n != best)
    if others:
        text += f" (next: {others[0][1]}, {others[0][0]:.3f})"
    text += f"; on the test images {_mean(group, 'nll'):.3f}, accuracy over the orbit "
    return text + f"{_mean(group, 'accuracy_orbit'):.3f}. {_equivariance(group)}"


def _equivariance(group: Sequence[dict]) -> str:
    if all(run["exact"] for run in group):
        return "Its posterior is exactly equivariant by construction."
    defect, error = _mean(group, "defect"), _mean(group, "defect_se")
    if abs(defect) <= 2 * error:
        return f"Its measured defect, {defect:.1e} ± {error:.1e}, cannot be told from 0, but nothing keeps it there."
    return f"Its posterior is not equivariant: defect {defect:.1e} ± {error:.1e}."


def _save_checkpoint(path: Path, fitted: Fitted) -> None:
    part = path.with_suffix(".part")
    torch.save(fitted.guide.state_dict(), part)
    os.replace(part, path)


def _to_arviz(problem: Problem, fitted: Fitted, draws: Tensor):
    """A run's ArviZ data on the first test images, and the mean probabilities of all of them."""
    x, y = problem.splits.test
    data = (x[:ARVIZ_IMAGES], y[:ARVIZ_IMAGES])
    count = min(problem.config.draws, ARVIZ_DRAWS)
    idata = diagnostics.to_arviz(
        fitted.model, fitted.guide, data, symmetry=problem.inputs, draws=count, history=fitted.history, prior_draws=0,
        held_out=True,
    )  # fmt: skip
    means = xr.Dataset(
        {"probs": (("chain", "element", "test_image", "class"), draws.mean(0)[None].cpu().numpy()),
         "label": ("test_image", y.cpu().numpy())},
        {"chain": [0], "element": list(problem.group.names), "test_image": np.arange(len(y))},
    )  # fmt: skip
    return diagnostics.with_groups(idata, {"test_predictive": means})


def _print_head(config: Config, data: ImageData) -> None:
    print(
        f"{data.name}: {config.train_size:,} training images, group {config.group}, KL weight {config.kl_weight:g}, "
        f"likelihood {config.likelihood}, {config.epochs} epochs, seeds {', '.join(map(str, config.seeds))}\n"
    )
    _print_columns()


def _print_columns() -> None:
    print(
        f"{'method':<15} {'seed':>4}" + "".join(f" {heading:>{width}}" for _, heading, width, _ in COLUMNS), flush=True
    )


def _print_row(name: str, row: dict) -> None:
    cells = "".join(f" {row[field]:>{width}{form}}" for field, _, width, form in COLUMNS)
    print(f"{name:<15} {row['seed']:>4}{cells}", flush=True)


def _print_summary(runs: Sequence[dict]) -> None:
    fields = ("accuracy", "accuracy_orbit", "nll", "ece", "train_seconds")
    headings = {field: heading for field, heading, _, _ in COLUMNS}
    print("\nmean ± standard deviation over seeds")
    print(f"{'method':<15}" + "".join(f" {headings[field]:>17}" for field in fields))
    for name, group in _grouped(runs).items():
        cells = (f"{_mean(group, f):.4f} ± {statistics.stdev(r[f] for r in group):.4f}" for f in fields)
        print(f"{name:<15}" + "".join(f" {cell:>17}" for cell in cells))


def _grouped(runs: Sequence[dict]) -> dict[str, list[dict]]:
    groups: dict[str, list[dict]] = {}
    for run in runs:
        groups.setdefault(run["method"], []).append(run)
    return groups


def _mean(group: Sequence[dict], field: str) -> float:
    return statistics.fmean(run[field] for run in group)
