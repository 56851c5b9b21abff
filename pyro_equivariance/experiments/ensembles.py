"""The study ``ensembles``: equivariance of ensembles against their size, and whether invariance is an attractor.

A smaller version of the experiment of Nordenfors, Flinth (2024) arXiv:2410.01452 on MNIST: two convolutions without
biases with kernels on a support, layers normalised over space, a linear layer, and a random turn for each image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import metrics
from ..data import ImageData
from ..ensembles import Ensemble, EnsembleSweep, ensemble_sweep, fit_ensemble
from ..ensembles.base import MEANS, ensemble_mean
from ..ensembles.starts import generators, start_weights
from ..errors import OptionError, check_option
from ..groups import CyclicGroup
from ..networks import network_symmetry
from ..networks.supports import VARIANTS, cores_of, with_support
from ..prediction import orbit_predict
from ..representations import image
from ..symmetry import Symmetry
from .study import StudyConfig, option, row_printer, shuffled

WORDS = "the equivariance of ensembles against their size and their epoch"
OFFSET = "symmetric, offset start"
SETTINGS = {**VARIANTS, OFFSET: {**VARIANTS["symmetric"], "init": "offset"}}
DEFINITIONS = {
    "ensemble": "symmetric: kernels on a cross, which turns keep; asymmetric: on a cross with a corner for its centre; "
    "symmetric start: kernels start at 0 off the part that turns keep; offset start: around weights that all members "
    "share, a law that is not invariant",
    "seed": "of the images, the starts, the orders and the turns",
    "epoch": "passes over the training images, 0 before the first",
    "members": "M, of the ensemble or, below the largest, of its sub-ensembles",
    "defect": "plug-in: mean over x, g of |F(gx) - F(x)|^2, g = e included, F the mean of M members (see config mean), "
    "mean over random sub-ensembles; its expectation is Delta + Var / M",
    "defect_low": "lower end of its bootstrap interval over members, level 0.95",
    "defect_high": "upper end",
    "symmetric_kl": "KL(F(x)|F(gx)) + KL(F(gx)|F(x)) in nats, mean over x and g other than e",
    "symmetric_kl_low": "lower end of its interval",
    "symmetric_kl_high": "upper end",
    "osp": "mean number of g out of 4, g = e included, with argmax F(gx) = argmax F(x)",
    "osp_low": "lower end of its interval",
    "osp_high": "upper end",
    "unbiased": "unbiased estimate of Delta, the defect of infinitely many members, from all; mean of probabilities",
    "unbiased_se": "its jackknife standard error over members",
    "relative": "unbiased / mean over x, g of |F(gx) - mean of F|^2: the share of the prediction's variation",
    "accuracy": "fraction of all moved copies whose most probable class is right, of the mean of all members",
}
ORDERED = tuple(VARIANTS)
IN_ORBITS = ORDERED[:2]  # the start of the third cannot be moved: its kernels would leave their support
EXACT = {
    "ensemble": "as in definitions, but members start in whole orbits, rho(g) theta for every g, and see each image in "
    "all poses, in a common order: only the support, and rounding, can break the symmetry of their mean",
    "orbits": "of 4 members each",
    "defect": "plug-in, of the mean of all members",
    "unbiased": "unbiased estimate of Delta from the means over orbits, which are independent draws",
    "unbiased_se": "its jackknife standard error over orbits",
}


@dataclass(frozen=True)
class EnsemblesConfig(StudyConfig):
    """What :func:`run` depends on."""

    seeds: tuple[int, ...] = option((0,), "numbers separated by commas; each draws its own data, starts and noise")
    train_size: int = option(1000, "training images")
    images: int = option(300, "test images whose orbits are measured")
    members: int = option(384, "M, networks of each ensemble")
    channels: int = option(4, "of each convolution")
    epochs: int = option(16, "passes over the training images")
    batch_size: int = option(16, "images in a minibatch")
    learning_rate: float = option(0.01, "of Adam")
    mean: str = option("probabilities", "over members: of probabilities or of logits")
    orbits: int = option(16, "orbits of members, in the part with exact starts")
    repeats: int = option(100, "bootstrap samples of the members")

    def __post_init__(self):
        super().__post_init__()
        check_option("--mean", self.mean, MEANS)
        if self.members < 4 or self.repeats < 2 or self.orbits < 3:
            raise OptionError(
                f"Expected --members at least 4, --repeats 2 and --orbits 3; got {self.members}, {self.repeats} and "
                f"{self.orbits}."
            )

    def small(self) -> dict:
        return {"train_size": 40, "images": 10, "members": 4, "channels": 2, "epochs": 2, "batch_size": 20,
                "orbits": 3, "repeats": 3}  # fmt: skip

    @property
    def measured(self) -> tuple[int, ...]:
        """The epochs whose ensembles are measured: 0 and some that are about equally far apart on a log scale."""
        return tuple(sorted({0, 1, *(round(self.epochs * share) for share in (0.2, 0.4, 1.0))}))


def run(config: EnsemblesConfig, data: ImageData) -> dict:
    """Train every ensemble with each seed and measure it: at the last epoch by size, before that the whole."""
    rows, fits, orders, exact = [], [], [], []
    show = row_printer((("ensemble", -28, ""), ("seed", 4, "d"), ("epoch", 5, "d"), ("members", 7, "d"),
                        ("defect", 10, ".2e"), ("unbiased", 10, ".2e"), ("unbiased_se", 11, ".1e"),
                        ("symmetric_kl", 12, ".2e"), ("osp", 6, ".3f"), ("accuracy", 8, ".3f")))  # fmt: skip
    for seed in config.seeds:
        train, test, symmetry = _split(config, data, seed)
        sweeps = {}
        for name in SETTINGS:
            found = train_one(config, name, train, data.classes, symmetry, seed)
            for epoch, ensemble in found.snapshots.items():
                sweep, ours = _measure(config, ensemble, test, symmetry, name, seed, epoch)
                rows += ours
                for row in ours:
                    show(row)
            sweeps[name] = sweep
            fits.append(_slopes(sweep, name, seed))
        orders.append({"seed": seed} | order_of(sweeps))
        exact += [in_orbits(config, name, train, test[0], data.classes, seed) for name in IN_ORBITS]
    print()
    for fit in fits:
        print("{ensemble}, seed {seed}: slopes over log M: defect {defect_slope:.2f} ± {defect_slope_se:.2f}, "
              "symmetric KL {symmetric_kl_slope:.2f} ± {symmetric_kl_slope_se:.2f}".format(**fit))  # fmt: skip
    for row in exact:
        print("{ensemble}, seed {seed}, {orbits} orbits of members: unbiased defect {unbiased:.2e} ± {unbiased_se:.1e}"
              .format(**row))  # fmt: skip
    return {"rows": rows, "fits": fits, "order": orders, "order_definition": ORDER, "in_orbits": exact,
            "in_orbits_definitions": EXACT}  # fmt: skip


ORDER = (
    "share of bootstrap samples, of each ensemble by itself, in which the first's plug-in value at the largest M is "
    "more equivariant than the second's is (defect and symmetric KL smaller, OSP larger); for unbiased the difference "
    "in standard errors"
)


def order_of(sweeps: dict[str, EnsembleSweep]) -> dict[str, dict[str, float]]:
    """How surely each variant is more equivariant than the next, by each quantity at the largest M."""
    found = {}
    for first, second in zip(ORDERED[:-1], ORDERED[1:], strict=True):
        a, b = sweeps[first], sweeps[second]
        shares = {q: _share(a, b, q) for q in ("defect", "symmetric_kl", "osp")}
        if a.unbiased is not None:
            error = (a.unbiased.se**2 + b.unbiased.se**2) ** 0.5
            shares["unbiased"] = (b.unbiased.value - a.unbiased.value) / error
        found[f"{first} < {second}"] = shares
    return found


def _share(a: EnsembleSweep, b: EnsembleSweep, quantity: str) -> float:
    first, second = a.samples(quantity)[:, -1], b.samples(quantity)[:, -1]
    below = first[:, None] > second if quantity == "osp" else first[:, None] < second
    return float(below.double().mean())


def train_one(config: EnsemblesConfig, name: str, train, classes: int, symmetry: Symmetry, seed: int) -> Ensemble:
    """The ensemble of this name."""
    net = network(train[0].shape[1:], classes, config.channels)
    return fit_ensemble(
        net, train, config.members, symmetry, orbit="random", optimizer="adam", learning_rate=config.learning_rate,
        epochs=config.epochs, batch_size=config.batch_size, seed=seed, snapshots=config.measured, progress=False,
        **SETTINGS[name],
    )  # fmt: skip


def in_orbits(config: EnsemblesConfig, name: str, train, x: Tensor, classes: int, seed: int) -> dict:
    """The defect of an ensemble whose members start in whole orbits, as ``EXACT`` says."""
    plain, options = network(train[0].shape[1:], classes, config.channels), SETTINGS[name]
    symmetry = network_symmetry(plain, CyclicGroup(4), train[0].shape[1:], hidden="trivial")
    net = with_support(plain, options["support"])
    cores = cores_of(net, symmetry.inputs) if options["core_start"] else {}
    starts = [start_weights(net, "he", cores, generators(seed, i)[0]) for i in range(config.orbits)]
    init = {site: torch.cat([symmetry[site].orbit(start[site]) for start in starts]) for site in starts[0]}
    ensemble = fit_ensemble(
        net, train, 4 * config.orbits, symmetry, order="shared", learning_rate=config.learning_rate,
        epochs=config.epochs, batch_size=config.batch_size, init=init, seed=seed, progress=False,
    )  # fmt: skip
    outputs = orbit_predict(ensemble.model, ensemble.in_turn(), symmetry, x, len(ensemble)).double()
    means = outputs.unflatten(0, (config.orbits, 4)).mean(1)
    defect, whole = metrics.equivariance_defect(means), outputs.mean(0)
    return {"ensemble": name, "seed": seed, "orbits": config.orbits, "unbiased": defect.value,
            "unbiased_se": defect.se, "defect": float((whole - whole[:1]).square().sum(-1).mean())}  # fmt: skip


def network(input_shape, classes: int, channels: int) -> nn.Module:
    """Two convolutions without biases, each normalised over space, and a linear layer, in float32.

    >>> network((1, 14, 14), classes=10, channels=4)[-1]
    Linear(in_features=196, out_features=10, bias=False)
    """
    inputs, height, width = input_shape
    space = (height // 2, width // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, channels, 3, padding=1, bias=False), nn.AvgPool2d(2), nn.Tanh(),
        nn.LayerNorm(space, elementwise_affine=False),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.Tanh(),
        nn.LayerNorm(space, elementwise_affine=False),
        nn.Flatten(), nn.Linear(channels * space[0] * space[1], classes, bias=False),
    ).float()  # fmt: skip


def _split(config: EnsemblesConfig, data: ImageData, seed: int):
    """Training and test images in float32, standardised by the training pixels, and how turns move them."""
    x, y = shuffled(data, seed, config.train_size + config.images)
    count = config.train_size
    x = ((x - x[:count].mean()) / x[:count].std()).float()
    symmetry = Symmetry(CyclicGroup(4), {}, inputs=image(CyclicGroup(4), x.shape[1:]))
    return (x[:count], y[:count]), (x[-config.images :], y[-config.images :]), symmetry


def _measure(config: EnsemblesConfig, ensemble: Ensemble, test, symmetry: Symmetry, name: str, seed: int, epoch: int):
    """The sweep over sizes, and its rows; before the last epoch only that of all members."""
    outputs = orbit_predict(ensemble.model, ensemble.in_turn(), symmetry, test[0], len(ensemble))
    values = outputs if config.mean == "probabilities" else _log_probs(ensemble, test[0], symmetry)
    powers = [2**i for i in range(len(ensemble).bit_length() - 1)]
    last = epoch == config.epochs
    sizes = sorted({*powers, len(ensemble)}) if last else [len(ensemble)]
    sweep = ensemble_sweep(values, sizes, config.repeats, config.mean, seed=seed)
    rows = [{"ensemble": name, "seed": seed, "epoch": epoch} | row | _of_all(None) for row in sweep.rows()]
    accuracy = float(metrics.accuracy(ensemble_mean(values, config.mean), test[1]))
    rows[-1] |= _of_all(outputs) | {"accuracy": accuracy}
    return sweep, rows


def _log_probs(ensemble: Ensemble, x: Tensor, symmetry: Symmetry) -> Tensor:
    """Of every member at every moved copy, ``(M, |G|, N, K)``."""
    moved = symmetry.inputs.orbit(x).flatten(0, 1)
    return ensemble.log_probs(moved).unflatten(1, (len(symmetry.group), len(x)))


def _of_all(outputs: Tensor | None) -> dict[str, float]:
    """What is measured of all members only, NaN for sub-ensembles."""
    if outputs is None:
        return dict.fromkeys(("unbiased", "unbiased_se", "relative", "accuracy"), float("nan"))
    defect, probs = metrics.equivariance_defect(outputs), outputs.double().mean(0)
    variation = float((probs - probs.mean((0, 1))).square().sum(-1).mean())
    return {"unbiased": defect.value, "unbiased_se": defect.se, "relative": defect.value / variation}


def _slopes(sweep: EnsembleSweep, name: str, seed: int) -> dict:
    found: dict = {"ensemble": name, "seed": seed}
    for quantity in ("defect", "symmetric_kl"):
        slope = sweep.slope(quantity)
        found |= {f"{quantity}_slope": slope.value, f"{quantity}_slope_se": slope.se}
    return found
