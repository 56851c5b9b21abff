"""A regression whose output is a vector that turns with the input: which methods turn with it, and how exactly?"""

import functools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor

import pyro_equivariance as pe
from pyro_equivariance.experiments import convolutional_network

from .cases import one_thread
from .report import Column, Report, Table, aim, gate

SEEDS, CHOICE_SEED = (0, 1, 2), 3
TRAIN, VALIDATION, TEST = 200, 200, 500
SHAPE, WIDTH, NOISE = (1, 8, 8), 8, 0.05
EPOCHS, BATCH, RATES = 400, 100, (0.003, 0.01, 0.03)
KL_WEIGHT, GAIN, BIAS, START, NOISE_START = 0.25, math.sqrt(2), 0.1, 0.1, 0.1
DRAWS = 100
NEAR, EXACT = 3.0, 1e-10
GROUP = pe.CyclicGroup(4)
TURN = pe.vector(GROUP)
ORBIT = pe.Symmetry(GROUP, {}, inputs=pe.image(GROUP, SHAPE), outputs=TURN)


def run() -> Report:
    """The learning rates, then the methods."""
    report = Report("vector", "the velocity at the centre of a few vortices, from an image of their vorticity")
    with one_thread():
        rates = _choose(report)
        _compare(report, rates)
    return report


@dataclass(frozen=True)
class Problem:
    """The data of one seed; the targets of the test part have no noise."""

    seed: int
    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def problem(seed: int) -> Problem:
    """Three samples of the law, with seeds of their own."""
    vortices = functools.partial(pe.data.vortices, size=SHAPE[-1])
    return Problem(
        seed,
        vortices(TRAIN, noise=NOISE, seed=10 * seed),
        vortices(VALIDATION, noise=NOISE, seed=10 * seed + 1),
        vortices(TEST, noise=0.0, seed=10 * seed + 2),
    )


@dataclass(frozen=True)
class Fitted:
    """A trained posterior: what to predict with, the noise it found, and the seconds it took."""

    model: Callable
    guide: Callable
    noise: float
    seconds: float


# Methods: each makes the model to predict with, the model to train and the guide.


def plain() -> tuple:
    """A mean-field Normal."""
    model = network_model(WIDTH)
    return model, model, pe.AutoMeanFieldNormal(model, **start())


def augmented() -> tuple:
    """The same, trained on turned copies, one at random for each example and step."""
    model = network_model(WIDTH)
    moved = pe.handlers.augment(model, symmetry_of(model, "regular"), orbit="random")
    return model, moved, pe.AutoMeanFieldNormal(model, **start())


def always() -> tuple:
    """A guide that is averaged at every evaluation."""
    model = network_model(WIDTH)
    return model, model, pe.AutoSymmetricNormal(model, symmetry_of(model, "regular"), **start())


def expansion_tied() -> tuple:
    """An expanded network with the small one's weights as sites."""
    small = network_model(WIDTH // len(GROUP))
    model = pe.handlers.expand(small, symmetry_of(small, "trivial"), arrangement="free")
    return model, model, pe.AutoMeanFieldNormal(model, **start())


METHODS = {
    "baseline-noaug": plain,
    "baseline": augmented,
    "always": always,
    "expansion-tied": expansion_tied,
}


def network_model(width: int) -> pe.BayesianNetwork:
    """The Pyro model of a convolutional network with two outputs; its noise is learned."""
    likelihood = pe.NormalLikelihood(NOISE_START, learned=True)
    return pe.BayesianNetwork(convolutional_network(SHAPE, 2, width), prior_scales(), likelihood, size=TRAIN)


def prior_scales() -> dict[str, float]:
    """He's rule for the wide network; a site of the small one, whose copies fill the wide one, has the same."""
    with torch.random.fork_rng():
        wide = convolutional_network(SHAPE, 2, WIDTH)
    return {n: GAIN / math.sqrt(p[0].numel()) if p.ndim > 1 else BIAS for n, p in wide.named_parameters()}


def symmetry_of(model: pe.BayesianNetwork, hidden: str) -> pe.Symmetry:
    """How the network's weights move so that its output turns with its input."""
    return pe.network_symmetry(model.net, GROUP, SHAPE, hidden=hidden, outputs=TURN)


def start() -> dict:
    """How every guide starts."""
    return {"init_scale": pe.FractionOfPrior(START)}


def train(method: str, p: Problem, rate: float) -> Fitted:
    """One posterior, everything random drawn from the problem's seed."""
    pyro.clear_param_store()
    pyro.set_rng_seed(p.seed)
    model, moved, guide = METHODS[method]()
    result = pe.fit(
        moved,
        guide,
        p.train,
        epochs=EPOCHS,
        batch_size=BATCH,
        optimizer=functools.partial(torch.optim.Adam, lr=rate),
        scheduler=functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=EPOCHS),
        kl_weight=KL_WEIGHT,
        seed=p.seed,
        progress=False,
    )
    network = model.big if isinstance(model, pe.handlers.ExpandedNetwork) else model
    return Fitted(model, guide, network.likelihood.fitted(), result.seconds)


def rmse(found: Tensor, expected: Tensor) -> float:
    """Root of the mean over inputs, turns and both components of the squared difference."""
    return math.sqrt((found.double() - expected.double()).square().mean())


def _choose(report: Report) -> dict[str, float]:
    """The learning rate of each method."""
    table = report.table(
        "Learning rates",
        f"Validation RMSE: posterior mean of {DRAWS} draws against {VALIDATION} noisy targets, upright, of data of "
        f"their own (seed {CHOICE_SEED}, used for nothing else); each method takes the lowest. A perfect prediction "
        f"scores the noise, {NOISE:g}.",
        Column("method", "method", width=14),
        *(Column(f"rate_{rate:g}", f"{rate:g}", ".4f", 7) for rate in RATES),
        Column("chosen", "chosen", "g", 7),
    )
    p, chosen = problem(CHOICE_SEED), {}
    for method in METHODS:
        scores = {rate: _validation_error(train(method, p, rate), p) for rate in RATES}
        chosen[method] = min(scores, key=scores.get)
        table.add(method=method, chosen=chosen[method], **{f"rate_{rate:g}": s for rate, s in scores.items()})
    return chosen


def _validation_error(fitted: Fitted, p: Problem) -> float:
    x, y = p.validation
    return rmse(pe.predict(fitted.model, fitted.guide, x, DRAWS).mean(0), y)


def _compare(report: Report, rates: dict[str, float]) -> None:
    problems = [problem(seed) for seed in SEEDS]
    table = _table(report)
    _add_zero(table, problems)
    for method in METHODS:
        rows = [evaluate(train(method, p, rates[method]), p) for p in problems]
        _add(table, method, rates[method], rows)


def _table(report: Report) -> Table:
    return report.table(
        "Methods",
        f"upright: RMSE of the posterior mean ({DRAWS} draws) over {TEST} test images and both components, targets "
        f"without noise; moved: the same over all four turns of each, targets turned by ρ_Y. defect: unbiased "
        f"estimate of Δ = mean over x and g of |F(gx) − ρ_Y(g)F(x)|², g = e included, F the exact posterior mean, "
        f"draws common to the orbit; SE: its jackknife error, root mean square over seeds; relative: the defect over "
        f"the mean of |u|² over the test targets; noise: the learned standard deviation (the truth is {NOISE:g}); "
        f"seconds: of training. Mean ± sd over seeds {', '.join(map(str, SEEDS))}, each with its own data ({TRAIN} to "
        f"train) and initial weights. All methods: two convolutions, {WIDTH} and {2 * WIDTH} channels "
        f"(expansion-tied: grown from {WIDTH // 4} and {WIDTH // 2}), group C4, hidden regular, prior N(0, 2/fan-in) "
        f"of the wide network for every entry of a weight, KL weight {KL_WEIGHT:g} (that of compare), {EPOCHS} epochs "
        f"in batches of {BATCH}, Adam with a cosine down to 0 from the rate above, the last state kept. zero: "
        f"predicts 0. The law of the data is invariant, so upright and moved have the same expectation for every "
        f"predictor: it is the defect that shows who turns with the input. Verdict: always within {NEAR:g} "
        f"SE/√{len(SEEDS)} of 0 (an aim: it depends on chance); expansion-tied at most {EXACT:.0e} in size (a gate).",
        Column("method", "method", width=14),
        Column("rate", "rate", "g", 5),
        Column("upright", "upright", ".4f", 7),
        Column("upright_sd", "± sd", ".4f", 6),
        Column("moved", "moved", ".4f", 7),
        Column("moved_sd", "± sd", ".4f", 6),
        Column("defect", "defect", ".1e", 8),
        Column("defect_sd", "± sd", ".1e", 7),
        Column("defect_se", "SE", ".1e", 7),
        Column("relative", "relative", ".1e", 8),
        Column("noise", "noise", ".3f", 5),
        Column("seconds", "seconds", ".1f", 7),
        Column("seconds_sd", "± sd", ".1f", 4),
        Column("verdict", "", width=6),
    )


def evaluate(fitted: Fitted, p: Problem) -> dict[str, float]:
    """The numbers of one trained posterior on its test part."""
    x, y = p.test
    outputs = pe.orbit_predict(fitted.model, fitted.guide, ORBIT, x, DRAWS)
    mean, defect = outputs.mean(0), pe.metrics.equivariance_defect(outputs, action=TURN)
    return {
        "upright": rmse(mean[0], y),
        "moved": rmse(mean, TURN.orbit(y)),
        "defect": defect.value,
        "defect_se": defect.se,
        "relative": defect.value / float(y.double().square().sum(-1).mean()),
        "noise": fitted.noise,
        "seconds": fitted.seconds,
    }


def _add(table: Table, method: str, rate: float, rows: list[dict[str, float]]) -> None:
    values = {key: [row[key] for row in rows] for key in rows[0]}
    shown = {key: statistics.fmean(numbers) for key, numbers in values.items()}
    shown["defect_se"] = math.sqrt(statistics.fmean(se**2 for se in values["defect_se"]))
    spread = {f"{key}_sd": statistics.stdev(values[key]) for key in ("upright", "moved", "defect", "seconds")}
    table.add(method=method, rate=rate, **shown, **spread, verdict=_verdict(method, shown), by_seed=rows)


def _verdict(method: str, row: dict[str, float]) -> str:
    if method == "expansion-tied":
        return gate(abs(row["defect"]) <= EXACT)
    if method == "always":
        return aim(abs(row["defect"]) <= NEAR * row["defect_se"] / math.sqrt(len(SEEDS)))
    return ""


def _add_zero(table: Table, problems: list[Problem]) -> None:
    """The prediction 0, which is equivariant and knows nothing."""
    errors = [rmse(torch.zeros_like(p.test[1]), p.test[1]) for p in problems]
    mean, spread = statistics.fmean(errors), statistics.stdev(errors)
    table.add(
        method="zero",
        upright=mean,
        upright_sd=spread,
        moved=mean,
        moved_sd=spread,
        defect=0.0,
        relative=0.0,
        verdict="",
    )
