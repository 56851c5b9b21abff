"""The main job: train each method on one data set, and say which one to use here."""

import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

import pyro
import torch

from .. import diagnostics, plots
from ..data import ImageData
from ..errors import check_option
from ..prediction import orbit_predict
from .base import Config, Problem, check_writable, load_data, make_problem, torch_threads, write_json
from .evaluation import DEFINITIONS, evaluate, inputs_symmetry
from .methods import METHODS, Fitted

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

    Files: ``results.json``, ``posterior.nc``, ``checkpoints/<method>-seed<seed>.pt`` and the pictures ``accuracy.png``,
    ``defect.png``, ``kernels.png``, ``orbit-<method>.png``, ``training.png``. ``results.json`` is rewritten after each
    run, so that an interrupted comparison keeps what it has.

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
        run.finish(problems[config.seeds[0]])
    return run.results


def chosen_methods(config: Config) -> list[str]:
    """The names of the methods, ``all`` spelled out; each one known."""
    for name in config.methods:
        check_option("--methods", name, (*METHODS, "all"))
    return list(METHODS) if "all" in config.methods else list(dict.fromkeys(config.methods))


class _Run:
    """Collects the runs of one comparison and writes them."""

    def __init__(self, config: Config, out: Path, data: ImageData):
        self.out = out
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
            "recommendation": None,
        }
        self._idatas: dict[str, list] = {}
        self._first: dict[str, Fitted] = {}

    def add(self, name: str, seed: int, problem: Problem, progress: bool) -> None:
        """Train and evaluate one method with one seed; print its row and write what is known so far."""
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        fitted = METHODS[name].train(problem, seed, progress)
        row = evaluate(problem, fitted, name, seed)
        _print_row(name, row)
        self.results["runs"].append(row)
        self.results["histories"].append({"method": name, "seed": seed, **fitted.history})
        self._first.setdefault(name, fitted)
        self._idatas.setdefault(name, []).append(_to_arviz(problem, fitted))
        _save_checkpoint(self.out / "checkpoints" / f"{name}-seed{seed}.pt", fitted)
        write_json(self.out / "results.json", self.results)

    def finish(self, problem: Problem) -> None:
        """The files that need all runs, the summary over seeds and the recommendation."""
        runs = self.results["runs"]
        self.results["recommendation"] = recommend(runs)
        write_json(self.out / "results.json", self.results)
        diagnostics.save(diagnostics.stack(self._idatas), self.out / "posterior.nc")
        _draw(self.out, self.results, self._first, problem)
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


def _to_arviz(problem: Problem, fitted: Fitted):
    x, y = problem.splits.test
    data = (x[:ARVIZ_IMAGES], y[:ARVIZ_IMAGES])
    draws = min(problem.config.draws, ARVIZ_DRAWS)
    return diagnostics.to_arviz(fitted.model, fitted.guide, data, symmetry=inputs_symmetry(problem), draws=draws)


def _draw(out: Path, results: dict, first: dict[str, Fitted], problem: Problem) -> None:
    runs = results["runs"]
    plots.save(plots.accuracy(runs).figure, out / "accuracy.png")
    plots.save(plots.defect(runs).figure, out / "defect.png")
    histories: dict[str, list] = {}
    for history in results["histories"]:
        histories.setdefault(history["method"], []).append(history)
    plots.save(plots.training(histories), out / "training.png")
    shot = next((f.kernels for name in ("projection", *first) if (f := first.get(name)) and f.kernels), None)
    if shot:
        plots.save(plots.kernels(*shot), out / "kernels.png")
    for name, fitted in first.items():
        plots.save(_draw_orbit(fitted, problem), out / f"orbit-{name}.png")


def _draw_orbit(fitted: Fitted, problem: Problem):
    symmetry = inputs_symmetry(problem)
    x, y = problem.splits.test
    probs = orbit_predict(fitted.model, fitted.guide, symmetry, x[:1], problem.config.draws)[:, :, 0]
    return plots.orbit(symmetry.inputs.orbit(x[0]).cpu(), probs.cpu(), problem.group.names, label=int(y[0]))


def _print_head(config: Config, data: ImageData) -> None:
    print(
        f"{data.name}: {config.train_size:,} training images, group {config.group}, KL weight {config.kl_weight:g}, "
        f"likelihood {config.likelihood}, {config.epochs} epochs, seeds {', '.join(map(str, config.seeds))}\n"
    )
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
