"""The methods that ``compare`` compares: each trains a posterior on a problem and hands it back."""

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import handlers
from ..ensembles import fit_ensemble
from ..errors import WideOrbitWarning
from ..expansion import expand
from ..guides import AutoMeanFieldNormal, AutoOrbitMixture, AutoSymmetricNormal
from ..networks import equivarify, network_symmetry
from ..symmetry import Symmetry
from ..training import FitResult, SymmetrizeAt, TrackDefect, Training, fit
from .base import Problem

MEMBERS, SHORTER = 10, 4  # of an ensemble, each of which trains for so many times fewer epochs
TRACKED, TRACKED_DRAWS = 50, 10  # images and draws of the defect in the course of training


@dataclass(frozen=True)
class Fitted:
    """A trained posterior: the model and guide to predict with, and what training left behind.

    ``symmetries`` are actions on the guide's sites with which the model is compatible. ``kernels`` holds the first
    layer's mean kernels ``(K, h, w)`` before and after a one-shot symmetrization.
    """

    model: Callable
    guide: Callable
    history: dict[str, list[float]]
    seconds: float
    exact: bool
    symmetries: tuple[Symmetry, ...]
    kernels: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Method:
    """A line of the table: its name, what it is in words, and how it trains."""

    name: str
    words: str
    train: Callable[[Problem, int, bool], Fitted]


@dataclass
class _KernelWatch:
    """Callback: keeps the first layer's mean kernels from before and after the one-shot symmetrization."""

    shot: SymmetrizeAt
    kernels: list[Tensor] = field(default_factory=list)

    def __call__(self, training: Training) -> None:
        if training.epoch == self.shot.epoch:
            order = len(self.shot.symmetry.group)
            self.kernels.append(first_kernels(training.guide, order))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", WideOrbitWarning)  # what comes of it is what the comparison measures
                self.shot(training)
            self.kernels.append(first_kernels(training.guide, order))


@torch.no_grad()
def first_kernels(guide, order: int, count: int = 8) -> Tensor:
    """Mean kernels of the first layer, ``(count, h, w)``: of one channel in all ``order`` blocks, then of the next."""
    loc = next(iter(guide.median().values())).cpu()[:, 0]
    return loc.unflatten(0, (order, -1)).transpose(0, 1).flatten(0, 1)[:count]


def baseline(problem: Problem, seed: int, progress: bool, augmented: bool = True) -> Fitted:
    """A mean-field Normal, trained with or without random augmentation."""
    net = problem.network(problem.config.width)
    model = problem.model(net)
    guide = AutoMeanFieldNormal(model, **problem.start)
    symmetries = problem.symmetry(net, "regular"), problem.symmetry(net, "trivial")
    moved = _augmented(problem, model, symmetries[0]) if augmented else model
    result = _fit(problem, moved, guide, problem.config.epochs, seed, progress, augmented)
    return Fitted(model, guide, result.history, result.seconds, exact=False, symmetries=symmetries)


def one_shot(problem: Problem, seed: int, progress: bool, rule: str, hidden: str) -> Fitted:
    """The augmented baseline, its posterior averaged once, half way, and trained on."""
    net = problem.network(problem.config.width)
    model = problem.model(net)
    guide = AutoMeanFieldNormal(model, **problem.start)
    symmetry = problem.symmetry(net, hidden)
    watch = _KernelWatch(SymmetrizeAt(problem.config.epochs // 2, symmetry, rule))
    moved = _augmented(problem, model, symmetry)
    result = _fit(problem, moved, guide, problem.config.epochs, seed, progress, callbacks=[watch])
    kernels = tuple(watch.kernels)
    return Fitted(model, guide, result.history, result.seconds, exact=False, symmetries=(symmetry,), kernels=kernels)


def always(problem: Problem, seed: int, progress: bool) -> Fitted:
    """A guide that is averaged at every evaluation, trained on upright images."""
    net = problem.network(problem.config.width)
    model = problem.model(net)
    symmetry = problem.symmetry(net, "regular")
    guide = AutoSymmetricNormal(model, symmetry, rule="geometric", **problem.start)
    result = _fit(problem, model, guide, problem.config.epochs, seed, progress, augmented=False)
    return Fitted(model, guide, result.history, result.seconds, exact=True, symmetries=(symmetry,))


def mixture(problem: Problem, seed: int, progress: bool) -> Fitted:
    """The orbit mixture of a mean-field Normal, trained on upright images."""
    net = problem.network(problem.config.width)
    model = problem.model(net)
    symmetry = problem.symmetry(net, "regular")
    guide = AutoOrbitMixture(model, symmetry, **problem.start)
    result = _fit(problem, model, guide, problem.config.epochs, seed, progress, augmented=False)
    return Fitted(model, guide, result.history, result.seconds, exact=True, symmetries=(symmetry,))


def expansion(problem: Problem, seed: int, progress: bool) -> Fitted:
    """A small network trained for half the epochs, expanded, and trained on with all its parameters free."""
    half = problem.config.epochs // 2
    net = problem.network(problem.config.width // len(problem.group))
    small, symmetry = problem.model(net), problem.symmetry(net, "trivial")
    guide = AutoMeanFieldNormal(small, **problem.start)
    first = _fit(problem, _augmented(problem, small, symmetry), guide, half, seed, progress)
    model, guide, large = expand(small, guide, symmetry, arrangement="gcnn", tie=None)
    moved = _augmented(problem, model, large)
    second = _fit(problem, moved, guide, problem.config.epochs - half, seed, progress)
    history = {key: first.history[key] + second.history[key] for key in first.history}
    history["steps"] = first.history["steps"] + [first.history["steps"][-1] + n for n in second.history["steps"]]
    return Fitted(model, guide, history, first.seconds + second.seconds, exact=False, symmetries=(large,))


def expansion_tied(problem: Problem, seed: int, progress: bool) -> Fitted:
    """An expanded network whose sites are the small ones: every draw is equivariant; trained on upright images."""
    net = problem.network(problem.config.width // len(problem.group))
    model = handlers.expand(problem.model(net), problem.symmetry(net, "trivial"), arrangement="free")
    guide = AutoMeanFieldNormal(model, **problem.start)
    result = _fit(problem, model, guide, problem.config.epochs, seed, progress, augmented=False)
    large = network_symmetry(model.big.net, problem.group, problem.input_shape)
    return Fitted(model, guide, result.history, result.seconds, exact=True, symmetries=(large,))


def equivarified(problem: Problem, seed: int, progress: bool) -> Fitted:
    """The lift of a small network: every draw is invariant; trained on upright images."""
    lifted = equivarify(problem.network(problem.config.width // len(problem.group)), problem.inputs)
    model = problem.model(lifted)
    guide = AutoMeanFieldNormal(model, **problem.start)
    result = _fit(problem, model, guide, problem.config.epochs, seed, progress, augmented=False)
    return Fitted(model, guide, result.history, result.seconds, exact=True, symmetries=(lifted.symmetry,))


def ensemble(problem: Problem, seed: int, progress: bool) -> Fitted:
    """Networks trained by maximum likelihood with random augmentation, each for a quarter of the epochs."""
    config = problem.config
    epochs = max(2, config.epochs // SHORTER)
    batch_size = min(config.batch_size, len(problem.splits.train[1]))
    result = fit_ensemble(
        problem.network(config.width),
        problem.splits.train,
        members=MEMBERS,
        augmentation=problem.inputs,
        orbit="random",
        learning_rate=config.learning_rate,
        epochs=epochs,
        batch_size=batch_size,
        validation=problem.splits.validation,
        validate_every=max(1, epochs // 10),
        seed=seed,
        progress=progress,
    )
    history = {name: values.double().mean(0).tolist() for name, values in result.history.items()}
    history["steps"] = [(epoch + 1) * (len(problem.splits.train[1]) // batch_size) for epoch in range(epochs)]
    return Fitted(result.model, result, history, result.seconds, exact=False, symmetries=())


def _augmented(problem: Problem, model: Callable, symmetry: Symmetry) -> Callable:
    return handlers.augment(model, symmetry, orbit="random", likelihood=problem.config.likelihood)


def _fit(problem: Problem, model, guide, epochs: int, seed: int, progress: bool, augmented: bool = True,
         callbacks=()) -> FitResult:  # fmt: skip
    config = problem.config
    # Where the orbit is not run through, the convention "sum" is "mean" with the KL weighted by 1/|G|.
    counted = len(problem.group) if config.likelihood == "sum" and not augmented else 1
    every = max(1, epochs // 10)
    track = TrackDefect(problem.splits.validation[0][:TRACKED], problem.inputs, every, TRACKED_DRAWS)
    return fit(
        model,
        guide,
        problem.splits.train,
        epochs=epochs,
        batch_size=config.batch_size,
        optimizer=functools.partial(torch.optim.Adam, lr=config.learning_rate),
        scheduler=functools.partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda epoch: _rate(epoch, epochs)),
        kl_weight=config.kl_weight / counted,
        kl_warmup=min(config.kl_warmup, epochs - 1),
        validation=problem.splits.validation,
        validate_every=every,
        callbacks=[*callbacks, track],
        seed=seed,
        progress=progress,
    )


def _rate(epoch: int, epochs: int) -> float:
    """Constant for the first half, then down to 0 along a cosine: a one-shot method gets its full rate back."""
    late = max(0.0, 2 * epoch / epochs - 1)
    return (1 + math.cos(math.pi * late)) / 2


METHODS = {
    m.name: m
    for m in (
        Method("baseline", "mean-field Normal, random augmentation", baseline),
        Method("baseline-noaug", "mean-field Normal, no augmentation", functools.partial(baseline, augmented=False)),
        Method(
            "geometric",
            "one-shot geometric average, hidden channels trivial",
            functools.partial(one_shot, rule="geometric", hidden="trivial"),
        ),
        Method(
            "arithmetic",
            "one-shot arithmetic average, hidden channels trivial",
            functools.partial(one_shot, rule="arithmetic", hidden="trivial"),
        ),
        Method(
            "projection",
            "one-shot projection, hidden channels regular",
            functools.partial(one_shot, rule="projection", hidden="regular"),
        ),
        Method("always", "AutoSymmetricNormal, hidden channels regular", always),
        Method("mixture", "AutoOrbitMixture of a mean-field Normal, hidden channels regular", mixture),
        Method("expansion", "small network, expanded half way (gcnn), then free", expansion),
        Method("expansion-tied", "expanded network with tied samples (free), from the start", expansion_tied),
        Method("ensemble", "ten networks with random augmentation, trained by maximum likelihood", ensemble),
        Method("equivarified", "small network lifted to all moved inputs, from the start", equivarified),
    )
}
