"""The study ``relaxed``: what the scales of a relaxed expansion say of data that keep a symmetry, or break it.

Three sets of the same images, of digits, that differ in what a turn does: nothing, as every image is turned at random;
all images are upright; or all are turned but a turned 6 is a 9.
"""

import functools
import statistics
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor, nn

from .. import metrics
from ..data import ImageData
from ..errors import DataError, OptionError
from ..groups import CyclicGroup
from ..guides import AutoMeanFieldNormal, FractionOfPrior
from ..handlers.expand import expand, widen
from ..handlers.relax import RelaxedNetwork, relax
from ..networks import BayesianNetwork, network_symmetry
from ..prediction import predict
from ..representations import image
from ..training import FitResult, fit
from ..training.relaxation import ConstrainRelaxation
from .study import StudyConfig, option, over_seeds, row_printer, shuffled

WORDS = "how much symmetry images want, by the scales that a relaxed expansion learns"
TURNED, UPRIGHT, POSE = SETS = ("turned", "upright", "pose")
NETWORKS = ("tied", "relaxed", "free")
SIX, NINE = 6, 9
LAYERS = (1, 2, 3)
DEFINITIONS = {
    "set": "turned: every image by a random multiple of 90 degrees, labels unchanged; upright: none; pose: those of 6 "
    "and 9 by 0 or 180 degrees, turned ones labelled 9 and 6, all others as in turned",
    "seed": "of the split, the turns, the start and the training",
    "network": "tied: the expansion, equivariant; relaxed: with an asymmetric part; free: as wide, without a tie",
    "accuracy": "fraction of the test images, of the same set, whose most probable class is right; mean of draws",
    "nll": "mean over test images of -log (mean over draws of the label's probability), nats",
    "loss": "-ELBO / N at KL weight 1, mean over the last tenth of the epochs, nats",
    **{f"scale_{i}": f"s of layer {i}, counted from the input: relative to the fan-in prior" for i in LAYERS},
    "largest": "the largest of the scales",
    **{f"share_{i}": f"asymmetric share of E|W|^2 of layer {i} under the posterior" for i in LAYERS},
}
SEPARATION = {
    "quantity": "a column of the rows",
    "sets": "the first is the one whose values should be smaller",
    "auc": "share of pairs of seeds, one of each set, in which the first set's value is smaller",
    "gap": "the second set's smallest value / the first's largest; above 1 all seeds agree",
}


@dataclass(frozen=True)
class RelaxedConfig(StudyConfig):
    """What :func:`run` depends on."""

    seeds: tuple[int, ...] = option((0, 1, 2, 3, 4), "numbers separated by commas; each draws its own split and turns")
    train_size: int = option(1200, "training images")
    images: int = option(500, "test images")
    units: int = option(8, "of each of the two hidden layers, before they are expanded by C4")
    epochs: int = option(400, "steps, each on all training images")
    learning_rate: float = option(0.02, "of Adam; from half of the epochs on it falls to 0 along a line")
    start: float = option(0.3, "of every scale")
    draws: int = option(50, "posterior draws of an evaluation")
    rhos: tuple[int, ...] = option((10, 100, 1000), "prices of the slack of the constrained form, upright, first seed")

    def __post_init__(self):
        super().__post_init__()
        if not self.rhos or min(self.rhos) < 1:
            raise OptionError(f"Expected --rhos to be positive, at least one; got {self.rhos}.")

    def small(self) -> dict:
        return {"train_size": 40, "images": 20, "units": 2, "epochs": 3, "draws": 2, "rhos": self.rhos[:1]}


def run(config: RelaxedConfig, data: ImageData) -> dict:
    """Train the three networks on the three sets with each seed, and the constrained form at each price."""
    if data.classes <= NINE:
        raise DataError(f"Expected ten classes, of which the set 'pose' turns 6 and 9; got {data.classes}.")
    rows = []
    show = row_printer((("set", -8, ""), ("seed", 4, "d"), ("network", -8, ""), ("accuracy", 8, ".3f"),
                        ("nll", 6, ".3f"), ("loss", 6, ".3f"), *((f"scale_{i}", 7, ".3f") for i in LAYERS),
                        *((f"share_{i}", 7, ".4f") for i in LAYERS)))  # fmt: skip
    for seed in config.seeds:
        for name in SETS:
            train, test = split(config, data, name, seed)
            for network in NETWORKS:
                found = one(config, network, train, test, data.classes, seed)
                rows.append({"set": name, "seed": seed, "network": network} | found)
                show(rows[-1])
    schedules = [schedule(config, data, rho) for rho in config.rhos]
    separations = [separation(rows, quantity, other) for quantity in (*scale_names(), "largest") for other in SETS[1:]]
    print()
    for row in separations:
        print("{quantity}: {first} below {second} with AUC {auc:.2f}, gap {gap:.2f}".format(**row))
    for row in schedules:
        print("rho {rho}: scales {scales}, multipliers {multipliers}, accuracy {accuracy:.3f}".format(**row))
    return {"rows": rows, "summary": summary(rows), "separation": separations, "separation_definitions": SEPARATION,
            "schedules": schedules}  # fmt: skip


def scale_names() -> list[str]:
    """The columns of the scales."""
    return [f"scale_{i}" for i in LAYERS]


def split(config: RelaxedConfig, data: ImageData, name: str, seed: int):
    """Training and test images of a set, standardised by the training pixels, and their labels."""
    x, y = shuffled(data, seed, config.train_size + config.images)
    x = (x - x[: config.train_size].mean()) / x[: config.train_size].std()
    x, y = posed(x, y, name, torch.Generator().manual_seed(seed))
    count = config.train_size
    return (x[:count], y[:count]), (x[count : count + config.images], y[count : count + config.images])


def posed(x: Tensor, y: Tensor, name: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The images of a set, and their labels: turned as ``DEFINITIONS`` says."""
    if name == UPRIGHT:
        return x, y
    turns = torch.randint(4, (len(x),), generator=generator)
    if name == POSE:
        moves = (y == SIX) | (y == NINE)
        turns = torch.where(moves, 2 * (turns % 2), turns)
        y = torch.where(moves & (turns == 2), SIX + NINE - y, y)
    return image(CyclicGroup(4), x.shape[1:]).act(turns, x), y


def network_of(shape, classes: int, units: int) -> nn.Module:
    """Two hidden layers of tanh units in float64.

    >>> len(network_of((1, 8, 8), classes=10, units=8))
    6
    """
    pixels = torch.Size(shape).numel()
    return nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, units), nn.Tanh(), nn.Linear(units, units), nn.Tanh(), nn.Linear(units, classes)
    ).double()


def model_of(config: RelaxedConfig, network: str, train, classes: int, seed: int):
    """The Bayesian network of this name, with the seed's start."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    shape = train[0].shape[1:]
    net = network_of(shape, classes, config.units)
    symmetry = network_symmetry(net, CyclicGroup(4), shape, hidden="trivial")
    small = BayesianNetwork(net, "fan_in", size=len(train[0]))
    relaxed = functools.partial(relax, start=config.start)
    return {"tied": expand, "relaxed": relaxed, "free": widen}[network](small, symmetry)


def trained(config: RelaxedConfig, model, train, seed: int, callbacks=()) -> FitResult:
    """Adam on all images at once, at KL weight 1."""
    epochs = config.epochs
    return fit(
        model,
        AutoMeanFieldNormal(model, init_scale=FractionOfPrior(0.2)),
        train,
        epochs=epochs,
        optimizer=functools.partial(torch.optim.Adam, lr=config.learning_rate),
        scheduler=functools.partial(
            torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda epoch: min(1.0, 2 * (1 - epoch / epochs))
        ),
        callbacks=callbacks,
        seed=seed,
        progress=False,
    )


def one(config: RelaxedConfig, network: str, train, test, classes: int, seed: int) -> dict[str, float]:
    """One network trained on one set: its row."""
    model = model_of(config, network, train, classes, seed)
    result = trained(config, model, train, seed)
    last = max(1, config.epochs // 10)
    return {
        **evaluated(config, model, result.guide, test),
        "loss": statistics.fmean(result.history["loss"][-last:]),
        **scales_and_shares(config, model, result.guide),
    }


def evaluated(config: RelaxedConfig, model, guide, test) -> dict[str, float]:
    """Accuracy and negative log predictive density on the test images."""
    probs = predict(model, guide, test[0], config.draws).mean(0)
    accuracy, nll = metrics.accuracy(probs, test[1]), -probs.gather(1, test[1][:, None]).log().mean()
    return {"accuracy": float(accuracy), "nll": float(nll)}


def scales_and_shares(config: RelaxedConfig, model, guide) -> dict[str, float]:
    """The columns of a relaxed network; NaN for others."""
    nan = dict.fromkeys(map(str, LAYERS), float("nan"))
    relaxed = isinstance(model, RelaxedNetwork)
    scales = model.scales() if relaxed else nan
    shares = model.shares(guide, config.draws) if relaxed else nan
    return {
        **dict(zip(scale_names(), scales.values(), strict=True)),
        "largest": max(scales.values()),
        **{f"share_{i}": share for i, share in zip(LAYERS, shares.values(), strict=True)},
    }


def schedule(config: RelaxedConfig, data: ImageData, rho: int) -> dict:
    """The constrained form on upright images with the first seed: its curves and where they end."""
    seed = config.seeds[0]
    train, test = split(config, data, UPRIGHT, seed)
    model = model_of(config, "relaxed", train, data.classes, seed)
    result = trained(config, model, train, seed, [ConstrainRelaxation(float(rho))])
    curves = {k: v for k, v in result.history.items() if k.startswith(("scale.", "multiplier."))}
    return {
        "rho": rho,
        "scales": [round(s, 4) for s in model.scales().values()],
        "multipliers": [round(multiplier, 4) for multiplier, _ in model.multipliers.values()],
        **evaluated(config, model, result.guide, test),
        "curves": {f"{k.split('.')[0]}_{i}": v for i, k, v in _numbered(curves)},
    }


def _numbered(curves: dict[str, list[float]]):
    """The curves with their layer's number instead of its name."""
    layers = list(dict.fromkeys(name.partition(".")[2] for name in curves))
    for name, values in curves.items():
        yield 1 + layers.index(name.partition(".")[2]), name, values


def separation(rows: list[dict], quantity: str, other: str) -> dict:
    """How surely a quantity is smaller on turned images than on another set, over seeds.

    >>> rows = [{"set": s, "network": "relaxed", "a": a} for s, a in (("turned", 1.0), ("turned", 2.0), ("pose", 4.0))]
    >>> separation(rows, "a", "pose")["gap"]
    2.0
    """
    ours = [r for r in rows if r["network"] == "relaxed"]
    first, second = ([r[quantity] for r in ours if r["set"] == name] for name in (TURNED, other))
    below = [float(a < b) for a in first for b in second]
    return {"quantity": quantity, "first": TURNED, "second": other, "auc": statistics.fmean(below),
            "gap": min(second) / max(first)}  # fmt: skip


def summary(rows: list[dict]) -> list[dict]:
    """Mean and spread over seeds, of each network on each set."""
    found = []
    for name in SETS:
        for network in NETWORKS:
            ours = [r for r in rows if r["set"] == name and r["network"] == network]
            columns = [c for c in DEFINITIONS if c not in ("set", "seed", "network")]
            found.append({"set": name, "network": network} | {c: over_seeds([r[c] for r in ours]) for c in columns})
    return found
