"""The study ``generators``: the symmetries of fitted networks, read off their derivatives, over the noise of labels."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor, nn

from ..data import ImageData
from ..discovery import DiscoveredGenerators, discover_generators
from ..errors import OptionError
from ..generators import Generators
from ..guides import AutoMeanFieldNormal
from ..networks import BayesianNetwork, NormalLikelihood
from ..prediction import posterior_mean
from ..training import fit
from .study import StudyConfig, option, over_seeds, row_printer

WORDS = "generators found in fitted networks, over the noise of the labels"
DEFINITIONS = {
    "task": "so(2), so(3): cos 2|x|, x uniform in the disc or ball of radius 2; field: z^2 exp(-|z|^2 / 4), z = x1 + i "
    "x2 in the disc, turned twice as fast as x, the map of the outputs found too; none: sin(x1 + x2^2 / 2) + x2 / 2; "
    "posterior: the mean of a mean-field posterior on so(2), after --epochs steps from the fitted network",
    "noise": "standard deviation of the training labels' noise, percent of the function's over the training inputs",
    "seed": "of inputs, noise, start and draws",
    "error": "root mean square of the fit less the function, on other inputs, in standard deviations of the function",
    "dimension": "generators found, by the rule of pe.discover_generators with tolerance --tolerance",
    "true": "generators that the function has",
    "gap": "sigma_{k+1} / sigma_k at k = true; empty for the task none",
    "gap_se": "its jackknife standard error over the inputs of the derivatives, for the fit as it is",
    "angle": "largest principal angle between the first k = true directions and the function's algebra, degrees",
    "angle_se": "the jackknife's error of the span, degrees",
    "outputs": "|A_Y - 2 J| / |2 J|, of the found generator, J the rotation, for the task field; otherwise empty",
    "smallest": "sigma_1; 1 is what a random matrix has, and less for the task field",
}
SUMMARIZED = ("error", "dimension", "gap", "angle", "smallest")
RADIUS = 2.0
NOISE_FLOOR = 0.02  # of the Bayesian network's likelihood, in standard deviations of the function


@dataclass(frozen=True)
class Task:
    """A function of vectors ``(N, n)``, the algebra that it has, and what is asked of its outputs."""

    function: Callable[[Tensor], Tensor]
    n: int
    algebra: Generators | None
    outputs: str = "invariant"
    bayesian: bool = False


def radial(x: Tensor) -> Tensor:
    """``cos 2|x|``, ``(N, 1)``."""
    return (2 * x.norm(dim=-1, keepdim=True)).cos()


def doubled(x: Tensor) -> Tensor:
    """``z² exp(−|z|²/4)`` of complex numbers as vectors of the plane, ``(N, 2)``."""
    a, b = x.unbind(-1)
    return torch.stack([a * a - b * b, 2 * a * b], -1) * (-x.square().sum(-1, keepdim=True) / 4).exp()


def crooked(x: Tensor) -> Tensor:
    """A function of the plane that no linear flow keeps, ``(N, 1)``."""
    a, b = x.split(1, -1)
    return (a + b.square() / 2).sin() + b / 2


TASKS = {
    "so(2)": Task(radial, 2, Generators.so(2)),
    "so(3)": Task(radial, 3, Generators.so(3)),
    "field": Task(doubled, 2, Generators.so(2), outputs="linear"),
    "none": Task(crooked, 2, None),
    "posterior": Task(radial, 2, Generators.so(2), bayesian=True),
}


@dataclass(frozen=True)
class GeneratorsConfig(StudyConfig):
    """What :func:`run` depends on."""

    seeds: tuple[int, ...] = option((0, 1, 2, 3, 4), "numbers separated by commas; each draws its own inputs and start")
    noises: tuple[int, ...] = option((0, 5, 10, 20), "of the labels, percent of the standard deviation of the function")
    train_size: int = option(1000, "training inputs")
    inputs: int = option(1000, "other inputs, at which derivatives are taken")
    width: int = option(32, "tanh units of each of two hidden layers, a multiple of 4")
    steps: int = option(400, "iterations of L-BFGS, after 100 steps of Adam")
    decay: float = option(1e-7, "weight of the squared norm of the parameters")
    epochs: int = option(300, "steps of Adam for the Bayesian network, which starts at the fitted one")
    draws: int = option(30, "posterior draws of its mean")
    tolerance: float = option(0.2, "largest singular value of a symmetry")

    def __post_init__(self):
        super().__post_init__()
        if not self.noises or any(noise < 0 for noise in self.noises):
            raise OptionError(f"Expected --noises as numbers that are not negative; got {self.noises}.")
        if not self.width:
            raise OptionError("Expected --width to be positive; got 0.")

    def small(self) -> dict:
        sizes = {"train_size": 20, "inputs": 20, "width": 4}
        return {"noises": self.noises[:1], "steps": 2, "epochs": 2, "draws": 2} | sizes


def run(config: GeneratorsConfig, data: ImageData) -> dict:
    """Fit a network to every task, noise and seed, and look for its symmetries; the images are not used."""
    rows, spectra = [], []
    show = row_printer((("task", -10, ""), ("noise", 5, "d"), ("seed", 4, "d"), ("error", 7, ".4f"),
                        ("dimension", 9, "d"), ("true", 4, "d"), ("gap", 7, ".1f"), ("gap_se", 6, ".1f"),
                        ("angle", 6, ".2f"), ("angle_se", 8, ".2f"), ("outputs", 7, ".3f"),
                        ("smallest", 8, ".3f")))  # fmt: skip
    for name, task in TASKS.items():
        for noise in config.noises:
            for seed in config.seeds:
                row, found = _one(config, task, noise, seed)
                rows.append({"task": name, "noise": noise, "seed": seed, **row})
                spectra.append({"task": name, "noise": noise, "seed": seed, "values": found.singular_values.tolist()})
                show(rows[-1])
    summary = [_summary(rows, name, noise) for name in TASKS for noise in config.noises]
    print("\nmean ± standard deviation over seeds, and the number of seeds whose dimension is right")
    for s in summary:
        found = f"smallest {_pair(s['smallest'], 3)}"
        if TASKS[s["task"]].algebra:
            found = f"gap {_pair(s['gap'], 1)}, angle {_pair(s['angle'], 2)} degrees"
        print(f"{s['task']:<10} noise {s['noise']:>2} %: {found}, right {s['right']} of {s['seeds']}")
    return {"rows": rows, "spectra": spectra, "summary": summary}


def _one(config: GeneratorsConfig, task: Task, noise: float, seed: int) -> tuple[dict, DiscoveredGenerators]:
    draws = torch.Generator().manual_seed(seed)
    x, test = (in_ball(count, task.n, draws) for count in (config.train_size, config.inputs))
    clean = task.function(x)
    size = float(clean.std())
    y = clean + noise / 100 * size * torch.randn(clean.shape, generator=draws, dtype=clean.dtype)
    net = fitted_network(config, x, y, seed)
    f = fitted_mean(config, net, (x, y), size * max(noise / 100, NOISE_FLOOR), seed) if task.bayesian else net
    found = discover_generators(f, test, outputs=task.outputs, tolerance=config.tolerance)
    with torch.no_grad():
        error = float((f(test) - task.function(test)).square().mean().sqrt()) / size
    return {"error": error, "dimension": found.dimension, **_against(found, task)}, found


def _against(found: DiscoveredGenerators, task: Task) -> dict:
    """How the directions compare with the algebra that the function has."""
    right = found.at(len(task.algebra) if task.algebra else 0)
    row = {"true": right.dimension, "gap": None, "gap_se": None, "angle": None, "angle_se": None, "outputs": None}
    if task.algebra:
        row |= {"gap": right.gap, "gap_se": right.gap_se, "angle_se": right.angle_se}
        row["angle"] = right.generators.angle(task.algebra)
    if right.outputs is not None:
        twice = 2 * task.algebra.basis
        row["outputs"] = float((right.outputs - twice).norm() / twice.norm())
    return row | {"smallest": float(found.singular_values[0])}


def in_ball(count: int, n: int, generator: torch.Generator) -> Tensor:
    """Points uniform in the ball of radius 2 of ``R^n``, ``(count, n)``, in float64."""
    away = torch.nn.functional.normalize(torch.randn(count, n, generator=generator, dtype=torch.float64), dim=-1)
    return RADIUS * away * torch.rand(count, 1, generator=generator, dtype=torch.float64) ** (1 / n)


def fitted_network(config: GeneratorsConfig, x: Tensor, y: Tensor, seed: int) -> nn.Module:
    """Two hidden layers fitted to ``y``, by least squares with a little weight decay."""
    pyro.set_rng_seed(seed)
    width = config.width
    layers = [nn.Linear(x.shape[1], width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, y.shape[1])]
    net = nn.Sequential(*layers).double()
    start = torch.optim.Adam(net.parameters(), lr=0.01)
    end = torch.optim.LBFGS(net.parameters(), max_iter=config.steps, history_size=20, line_search_fn="strong_wolfe",
                            tolerance_grad=1e-9, tolerance_change=1e-12)  # fmt: skip

    def loss(optimizer) -> Tensor:
        optimizer.zero_grad()
        found = (net(x) - y).square().mean() + config.decay * sum(p.square().sum() for p in net.parameters())
        found.backward()
        return found

    for _ in range(min(100, 10 * config.steps)):
        start.step(lambda: loss(start))
    end.step(lambda: loss(end))
    return net.requires_grad_(False)


def fitted_mean(config: GeneratorsConfig, net: nn.Module, data, noise: float, seed: int) -> Callable[[Tensor], Tensor]:
    """The posterior mean of a Bayesian network whose mean-field guide starts at the network."""
    pyro.clear_param_store()
    model = BayesianNetwork(net, prior=1.0, likelihood=NormalLikelihood(noise), size=len(data[0]))
    guide = AutoMeanFieldNormal(model, init_scale=0.003)
    guide.initialize(*(t[:1] for t in data))
    rate = functools.partial(torch.optim.Adam, lr=0.002)
    fit(model, guide, data, epochs=config.epochs, optimizer=rate, seed=seed, progress=False)
    return posterior_mean(model, guide, draws=config.draws, seed=seed)


def _summary(rows: list[dict], task: str, noise: float) -> dict:
    own = [r for r in rows if (r["task"], r["noise"]) == (task, noise)]
    right = sum(r["dimension"] == r["true"] for r in own)
    return {"task": task, "noise": noise, "seeds": len(own), "right": right} | {
        name: over_seeds([r[name] for r in own if r[name] is not None]) for name in SUMMARIZED
    }


def _pair(over: dict[str, float], digits: int) -> str:
    return f"{over['mean']:.{digits}f} ± {over['sd']:.{digits}f}"
