"""What one step of variational inference costs, method against method, and how fast predictions over orbits are."""

import time
from collections.abc import Callable

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyro_equivariance as pe
from pyro_equivariance.experiments import convolutional_network

from .report import Column, Report, quartiles

SEED = 0
SHAPE, CLASSES, WIDTH, BATCH, SIZE = (1, 8, 8), 10, 32, 100, 1000
ROUNDS, STEPS = 36, 2
TEST_IMAGES, DRAWS, PREDICTIONS = 200, 50, 5
GROUP = pe.CyclicGroup(4)
BASELINE = "mean-field"


def run() -> Report:
    """Steps of all methods in turns, then predictions."""
    report = Report("step", "cost of one step on the digits network, and of predictions over orbits")
    pyro.clear_param_store()
    pyro.set_rng_seed(SEED)
    with pyro.validation_enabled(False):
        _steps(report)
        _predictions(report)
    return report


def model_of(width: int) -> pe.BayesianNetwork:
    """The digits network's model."""
    return pe.BayesianNetwork(network(width), prior=pe.FanIn(3.0, 0.1), size=SIZE)


def network(width: int) -> nn.Module:
    """The network that ``compare`` trains on the digits."""
    return convolutional_network(SHAPE, CLASSES, width)


def symmetry_of(model: pe.BayesianNetwork, hidden: str) -> pe.Symmetry:
    """The action on the weights of a model's network."""
    return pe.network_symmetry(model.net, GROUP, SHAPE, hidden=hidden)


def tied(arrangement: str) -> Callable:
    """The expanded model of a quarter of the width, as wide as the others once expanded."""
    small = model_of(WIDTH // len(GROUP))
    return pe.handlers.expand(small, symmetry_of(small, "trivial"), arrangement)


def methods() -> dict[str, tuple[Callable, Callable, object]]:
    """Model, guide and ELBO by name; the first is what the others are compared with."""
    model = model_of(WIDTH)
    symmetry = symmetry_of(model, "regular")
    random, full = (pe.handlers.augment(model, symmetry, orbit=orbit) for orbit in ("random", "full"))
    free, gcnn = tied("free"), tied("gcnn")
    analytic = TraceMeanField_ELBO()
    return {
        BASELINE: (model, pe.AutoMeanFieldNormal(model), analytic),
        "mean-field, random augmentation": (random, pe.AutoMeanFieldNormal(model), analytic),
        "mean-field, full augmentation": (full, pe.AutoMeanFieldNormal(model), analytic),
        "pyro's AutoNormal, Trace_ELBO": (model, AutoNormal(model), Trace_ELBO()),
        **{
            f"always-on, {rule}": (model, pe.AutoSymmetricNormal(model, symmetry, rule), analytic)
            for rule in ("geometric", "arithmetic", "projection")
        },
        "orbit mixture, Trace_ELBO": (model, pe.AutoOrbitMixture(model, symmetry), Trace_ELBO()),
        "tied expansion, free": (free, pe.AutoMeanFieldNormal(free), analytic),
        "tied expansion, gcnn": (gcnn, pe.AutoMeanFieldNormal(gcnn), analytic),
    }


def _steps(report: Report) -> None:
    x, y = torch.randn(BATCH, *SHAPE), torch.randint(CLASSES, (BATCH,))
    steppers = {
        name: SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss) for name, (model, guide, loss) in methods().items()
    }
    times = in_turns({name: lambda svi=svi: svi.step(x, y) for name, svi in steppers.items()}, ROUNDS, STEPS)
    table = report.table(
        "One SVI step",
        f"ratio: time of a step over that of {BASELINE} (AutoMeanFieldNormal, not augmented) in the same round, median "
        f"and quartiles of {ROUNDS} rounds of {STEPS} steps each, the methods in turns. Group C4, batch {BATCH} of "
        f"8 × 8, {WIDTH} and {2 * WIDTH} channels (the expansions' grown from {WIDTH // 4} and {WIDTH // 2}), "
        f"TraceMeanField_ELBO if not said otherwise, Adam, validation off, float32, seed {SEED}. The always-on and "
        f"tied ones need no augmentation: their ELBO is the fully augmented one.",
        Column("method", "method", width=32),
        Column("ratio", "ratio", ".2f", 6),
        Column("ratio_lower", "25%", ".2f", 6),
        Column("ratio_upper", "75%", ".2f", 6),
        Column("milliseconds", "ms per step", ".2f", 11),
    )
    for name, own in times.items():
        lower, ratio, upper = quartiles([t / base for t, base in zip(own, times[BASELINE], strict=True)])
        milliseconds = 1e3 * quartiles(own)[1]
        table.add(method=name, ratio=ratio, ratio_lower=lower, ratio_upper=upper, milliseconds=milliseconds)


def in_turns(functions: dict[str, Callable], rounds: int, calls: int) -> dict[str, list[float]]:
    """Seconds per call of each function in each round, one after the other; who begins changes from round to round."""
    times = {name: [] for name in functions}
    names = list(functions)
    for name in names:
        functions[name]()
    for r in range(rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            times[name].append(seconds_per_call(functions[name], calls))
    return times


def seconds_per_call(function: Callable, calls: int) -> float:
    """Mean time of a call."""
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def _predictions(report: Report) -> None:
    table = report.table(
        "Predictions over orbits (pe.orbit_predict)",
        f"images/s: {TEST_IMAGES} test images over the seconds that {DRAWS} draws of all their {len(GROUP)} moved "
        f"copies take, median and quartiles of {PREDICTIONS} in turns; passes/s: the same in single forward "
        f"passes, {DRAWS} × {len(GROUP)} of them per test image. The same networks, seed {SEED}.",
        Column("method", "method", width=32),
        Column("images", "images/s", ".0f"),
        Column("images_lower", "25%", ".0f", 6),
        Column("images_upper", "75%", ".0f", 6),
        Column("passes", "passes/s", ",.0f", 10),
    )
    x, y = torch.randn(TEST_IMAGES, *SHAPE), torch.randint(CLASSES, (TEST_IMAGES,))
    symmetry = pe.Symmetry(GROUP, {}, inputs=pe.image(GROUP, SHAPE))
    available = methods()
    chosen = {name: available[name] for name in (BASELINE, "always-on, geometric", "tied expansion, free")}
    for _, guide, _ in chosen.values():
        guide.initialize(x[:1], y[:1])
    predictions = {
        name: lambda model=model, guide=guide: pe.orbit_predict(model, guide, symmetry, x, DRAWS)
        for name, (model, guide, _) in chosen.items()
    }
    for name, seconds in in_turns(predictions, PREDICTIONS, 1).items():
        lower, images, upper = quartiles([TEST_IMAGES / t for t in seconds])
        passes = images * DRAWS * len(GROUP)
        table.add(method=name, images=images, images_lower=lower, images_upper=upper, passes=passes)
