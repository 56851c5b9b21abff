"""What the studies of the theory share: their configuration, small networks on small images, draws, fitted slopes."""

import functools
import math
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace

import pyro
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from ..data import ImageData, check_square, load
from ..errors import DataError, OptionError, WideOrbitWarning
from ..expansion import symmetrize_
from ..groups import CyclicGroup
from ..guides import AutoMeanFieldNormal
from ..handlers import antithetic, augment
from ..metrics import Estimate, equivariance_defect
from ..networks import BayesianNetwork, network_symmetry
from ..symmetry import Symmetry
from ..training import FitResult, fit

SIDE = 14  # images are averaged over 2 × 2 pixels until they are at most as wide


def option(default, words: str):
    """A field of a configuration, with what the command line says about it."""
    return field(default=default, metadata={"help": words})


@dataclass(frozen=True)
class StudyConfig:
    """All that a study depends on; it is written with the results. Numbers are positive."""

    data: str = option("digits", "digits, mnist or fashion-mnist (downloaded), a folder with IDX files, or a .npz")
    seeds: tuple[int, ...] = option((0, 1, 2), "numbers separated by commas; each draws its own data, start and noise")
    threads: int = option(1, "torch threads")
    out: str = option("results", "folder for the .json, .csv and .png of the study")

    def __post_init__(self):
        if not self.seeds or any(not 0 <= seed < 2**32 for seed in self.seeds):
            raise OptionError(f"Expected --seeds between 0 and 2**32 - 1, at least one; got {self.seeds}.")
        for name in (f.name for f in fields(self) if f.type in (int, float, "int", "float")):
            least = 0 if name == "width" else 1e-12
            if not least <= getattr(self, name) < 2**31:
                raise OptionError(f"Expected --{name.replace('_', '-')} to be positive; got {getattr(self, name)}.")
        if getattr(self, "width", 0) % 4:
            raise OptionError(f"Expected --width to be a multiple of 4, the order of the group; got {self.width}.")
        if self.threads > 1024:
            raise OptionError(f"Expected --threads at most 1024; got {self.threads}.")

    def small(self) -> dict:
        """What a smoke run changes."""
        return {}

    def smoke(self) -> "StudyConfig":
        """The same study made as small as it can be, to see that all of it runs; its numbers mean nothing."""
        return replace(self, seeds=self.seeds[:1], **self.small())

    def as_dict(self) -> dict:
        """For JSON: tuples as lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def load_images(config: StudyConfig) -> ImageData:
    """The images of the configuration, square, averaged over 2 × 2 pixels until they are at most ``SIDE`` wide."""
    data = load(config.data)
    check_square(data, "C4")
    images = data.images
    while images.shape[-1] > SIDE and images.shape[-1] % 2 == 0:
        images = avg_pool2d(images, 2)
    return ImageData(data.name, images, data.labels, data.classes)


def shuffled(data: ImageData, seed: int, least: int) -> tuple[Tensor, Tensor]:
    """All images in float64 and their labels, in the order of the seed.

    :raises DataError: for fewer than ``least`` images.
    """
    if len(data) < least:
        raise DataError(f"Expected at least {least:,} images for this study; {data.name!r} has {len(data):,}.")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return data.images[order].double(), data.labels[order]


def small_network(input_shape, classes: int, width: int) -> nn.Module:
    """One hidden layer of ``width`` tanh units in float64, or none: a linear classifier.

    >>> small_network((1, 8, 8), classes=10, width=0)
    Sequential(
      (0): Flatten(start_dim=1, end_dim=-1)
      (1): Linear(in_features=64, out_features=10, bias=True)
    )
    """
    pixels = math.prod(input_shape)
    hidden = [nn.Linear(pixels, width), nn.Tanh()] if width else []
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width or pixels, classes)).double()


@dataclass(frozen=True)
class Setup:
    """A small network, its model and its symmetry under rotations by 90°."""

    net: nn.Module
    model: BayesianNetwork
    symmetry: Symmetry

    def guide(self, example, init_scale=0.1, invariant: bool = True) -> AutoMeanFieldNormal:
        """A mean-field Normal around the network's values, averaged over the group if it is to be invariant."""
        guide = AutoMeanFieldNormal(self.model, init_scale=init_scale)
        guide.initialize(*example)
        if invariant:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", WideOrbitWarning)  # a start, not yet a posterior
                symmetrize_(guide, self.symmetry)
        return guide


def make_setup(
    x: Tensor, y: Tensor, classes: int, width: int, seed: int, prior="fan_in", size=None, **options
) -> Setup:
    """A network with random values of the seed, and its model with so many data."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    net = small_network(x.shape[1:], classes, width)
    symmetry = network_symmetry(net, CyclicGroup(4), x.shape[1:])
    return Setup(net, BayesianNetwork(net, prior, size=size or len(x), **options), symmetry)


def fit_in_orbits(
    setup: Setup, guide, data, steps: int, batch_size: int, rate: float, seed: int, **options
) -> FitResult:
    """Adam on full orbits with orbit-antithetic draws, its rate falling to 0 along a line."""
    batch_size = min(batch_size, len(data[0]))
    epochs = max(1, steps // max(1, len(data[0]) // batch_size))
    return fit(
        augment(setup.model, setup.symmetry),
        antithetic(guide, setup.symmetry),
        data,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=functools.partial(torch.optim.Adam, lr=rate),
        scheduler=functools.partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 1 - epoch / epochs),
        loss=TraceMeanField_ELBO(num_particles=len(setup.symmetry.group)),
        seed=seed,
        progress=False,
        **options,
    )


@torch.no_grad()
def draw_weights(setup: Setup, guide, count: int, orbits: bool = False) -> dict[str, Tensor]:
    """``count`` fresh draws of all weights, ``(count, *shape)``; or as many orbits, ``(|G| * count, *shape)``.

    An orbit holds ``μ + σ ρ(g) ε`` for every g, as those of :func:`~pyro_equivariance.handlers.antithetic`.
    """
    found = {}
    for name, _ in setup.net.named_parameters():
        q = guide.get_posterior(name).base_dist
        noise = torch.randn((count, *q.loc.shape), dtype=q.loc.dtype)
        moved = setup.symmetry[name].orbit(noise).flatten(0, 1) if orbits else noise
        found[name] = q.loc + q.scale * moved
    return found


@torch.no_grad()
def probabilities(setup: Setup, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Class probabilities under each draw of the weights, ``(T, N, K)``."""
    run = torch.func.vmap(lambda w: torch.func.functional_call(setup.net, w, (x,)))
    return run(weights).softmax(-1)


@torch.no_grad()
def orbit_draws(setup: Setup, guide, x: Tensor, count: int, independent: bool = False) -> Tensor:
    """As :func:`~pyro_equivariance.orbit_predict`, all draws at once: ``(T, |G|, N, K)``."""
    copies = setup.symmetry.inputs.orbit(x)
    if independent:
        return torch.stack([probabilities(setup, draw_weights(setup, guide, count), c) for c in copies], 1)
    moved = probabilities(setup, draw_weights(setup, guide, count), copies.flatten(0, 1))
    return moved.unflatten(1, copies.shape[:2])


@torch.no_grad()
def orbit_defect(setup: Setup, guide, x: Tensor, count: int) -> tuple[Estimate, Tensor]:
    """The unbiased defect from ``count`` orbits of draws, and the mean probabilities over them, ``(|G|, N, K)``.

    The mean over an orbit of draws is one unbiased draw of the predictive, and exactly equivariant if q is invariant.
    """
    copies = setup.symmetry.inputs.orbit(x)
    moved = probabilities(setup, draw_weights(setup, guide, count, orbits=True), copies.flatten(0, 1))
    means = moved.unflatten(1, copies.shape[:2]).unflatten(0, (len(copies), count)).mean(0)
    return equivariance_defect(means), means.mean(0)


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of the least squares line through ``log y`` over ``log x``; NaN unless there are two points, all positive.

    >>> round(slope([1, 10, 100], [5, 0.5, 0.05]), 6)
    -1.0
    """
    if len(set(xs)) < 2 or min(*xs, *ys) <= 0:
        return math.nan
    return statistics.linear_regression([math.log(x) for x in xs], [math.log(y) for y in ys]).slope


def over_seeds(values: Sequence[float]) -> dict[str, float]:
    """The mean over seeds, the standard deviation and the standard error of the mean; NaN from one seed.

    >>> over_seeds([1.0, 3.0])["se"]
    1.0
    """
    values = [v for v in values if math.isfinite(v)]
    spread = statistics.stdev(values) if len(values) > 1 else math.nan
    mean = statistics.fmean(values) if values else math.nan
    return {"mean": mean, "sd": spread, "se": spread / math.sqrt(max(len(values), 1)), "seeds": len(values)}


def row_printer(columns: Sequence[tuple[str, int, str]]) -> Callable[[dict], None]:
    """Prints the heading now, and each row that it is given later."""
    print(
        " ".join(f"{name:>{abs(width)}}" if width > 0 else f"{name:<{-width}}" for name, width, _ in columns),
        flush=True,
    )

    def show(row: dict) -> None:
        print(" ".join(_cell(row[name], width, form) for name, width, form in columns), flush=True)

    return show


def _cell(value, width: int, form: str) -> str:
    text = "" if value is None else format(value, form)
    return f"{text:>{width}}" if width > 0 else f"{text:<{-width}}"
