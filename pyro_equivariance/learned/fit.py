"""A network and the generators of its symmetry trained together, and a verdict on held-out data: does it hold?"""

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import DataError, OptionError
from ..groups.base import positive_int
from ..representations import Representation
from .lie import TERMS, LieAugmenter, default_loss

ERRORS = 2.0  # standard errors on either side of a difference, about 95 %
FIRST_SHARE, TRIAL_SHARE = 0.1, 0.5  # of the widths: when they begin to grow, and when starts are compared
FALLING = 0.4  # the last part of the steps, over which the learning rates fall to 0
ROWS = 256  # inputs that are averaged at a time


@dataclass(frozen=True)
class Verdict:
    """Whether a learned symmetry holds, from held-out data and two networks: with the learned augmentation and without.

    The symmetry *holds* if the mean held-out loss of the first, averaged over the learned measure, is not above that of
    the second by more than two standard errors of the paired difference; it *helps* if it is below by as much.

    :param float difference: the mean over held-out data of the loss with, less that without.
    :param float se: its standard error over the data; networks and measure are given.
    :param float deviation: ``E‖f(gx) − ρ_Y(g) f(x)‖² / (2 E‖f − E f‖²)`` of the network trained *without* (of a
        classifier's probabilities): about 0 if it follows the learned measure by itself, 1 as for unrelated inputs.

    >>> print(Verdict(difference=-0.08, se=0.02, deviation=0.01))
    helps: held-out loss with the learned augmentation less without -0.08 (-0.12 to -0.04), deviation 0.01
    """

    difference: float
    se: float
    deviation: float

    @property
    def interval(self) -> tuple[float, float]:
        """The difference, two standard errors less and more."""
        return self.difference - ERRORS * self.se, self.difference + ERRORS * self.se

    @property
    def holds(self) -> bool:
        """Whether the learned augmentation does not make held-out predictions worse, within the error."""
        return self.interval[0] <= 0

    @property
    def helps(self) -> bool:
        """Whether it makes them better, beyond the error."""
        return self.interval[1] < 0

    @property
    def word(self) -> str:
        """``"helps"``, ``"holds"`` (no worse, no better) or ``"does not hold"``."""
        return "helps" if self.helps else "holds" if self.holds else "does not hold"

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.word}: held-out loss with the learned augmentation less without {self.difference:.3g} "
            f"({low:.3g} to {high:.3g}), deviation {self.deviation:.2g}"
        )


@dataclass(frozen=True, eq=False)
class LearnedAugmentation:
    """What :func:`learn_augmentation` returns.

    :param Module network: trained under the learned augmentation; at test time ``augmenter.average(network, x)``.
    :param LieAugmenter augmenter: what was learned.
    :param Module plain: the same network trained as long without augmentation; ``None`` without validation data.
    :param dict history: of each step the five terms, not weighted, by name (NaN where a step has none), and ``share``,
        the part of the widths that was drawn from.
    :param Verdict verdict: on the validation data; ``None`` without.
    :param dict settings: the numbers of the training.
    :param float seconds: of all of it, wall-clock.
    """

    network: nn.Module
    augmenter: LieAugmenter
    plain: nn.Module | None
    history: dict[str, list[float]]
    verdict: Verdict | None
    settings: dict
    seconds: float

    def __repr__(self) -> str:
        steps = len(self.history["task"])
        return f"LearnedAugmentation({self.augmenter!r}, steps={steps}, verdict={self.verdict})"


def learn_augmentation(
    net: nn.Module,
    augmenter: LieAugmenter,
    data: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    inputs: Representation | None = None,
    outputs: Representation | None = None,
    steps: int = 1500,
    batch_size: int = 128,
    draws: int = 4,
    learning_rate: float = 3e-3,
    basis_rate: float = 0.05,
    warm_up: float = 0.1,
    grown: float = 0.4,
    starts: int = 64,
    seed: int = 0,
) -> LearnedAugmentation:
    """Train ``net`` and the basis of ``augmenter`` together, in place, by Adam on the five terms.

    Three things make the basis found from any start. The network learns alone for the first ``warm_up`` of the steps.
    Then of ``starts`` random bases the one with the lowest loss for this network, at half the widths, is taken (unless
    the augmenter came with generators). From there the widths grow from a tenth to all at ``grown``: at small ones the
    equivariance term is quadratic in each generator, lowest on the directions in which the network is equivariant
    already, and the network is not yet bent to a wrong basis. Over the last 40 % of the steps the rates fall to 0.
    Where ``augmenter.requires_grad_(False)`` the basis stays as it is: augmentation by known generators, trained alike.

    :param Module net: from ``(B, *event)`` to ``(B, ...)``, logits for classes.
    :param data: inputs ``(N, *event)`` and observations ``(N, ...)``; regression is best standardised, since the
        weights of the terms take the task's loss to be of order 1.
    :param validation: like ``data``; for the verdict, which also trains a copy of the network without augmentation.
    :param loss: one number for each datum, see :meth:`LieAugmenter.losses`; likewise ``inputs`` and ``outputs``.
    :param int draws: of the group for each input and step.
    :param float learning_rate: of the network.
    :param float basis_rate: of the basis.
    :raises DataError: for no data, or inputs and observations of different number.
    :raises OptionError: for shares of the steps out of order, or a loss that is not finite.

    >>> import torch, pyro_equivariance as pe
    >>> x = torch.randn(64, 2)
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    >>> data = (x, x.square().sum(1, keepdim=True))
    >>> result = pe.learn_augmentation(net, pe.LieAugmenter(2), data, steps=5)
    >>> len(result.history["equivariance"]), result.verdict
    (5, None)
    """
    if not 0 < warm_up < grown <= 1:
        raise OptionError(f"Expected 0 < warm_up < grown <= 1, shares of the steps; got {warm_up} and {grown}.")
    for part in (data, validation or data):
        if len(part[0]) != len(part[1]) or not len(part[0]):
            raise DataError(f"Expected as many observations as inputs, at least one; got {[len(t) for t in part]}.")
    settings = {
        "steps": positive_int(steps, "steps"), "batch_size": min(batch_size, len(data[0])), "draws": draws,
        "learning_rate": learning_rate, "basis_rate": basis_rate, "warm_up": warm_up, "grown": grown,
        "starts": starts if augmenter.random_start else 0, "seed": seed,
    }  # fmt: skip
    options = {"loss": loss, "inputs": inputs, "outputs": outputs}
    plain = copy.deepcopy(net) if validation else None
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        history = _train(net, augmenter, data, settings, options)
        verdict = None
        if validation:
            _train(plain, None, data, settings, options)
            verdict = judge(net, plain, augmenter, validation, **options)
    return LearnedAugmentation(net, augmenter, plain, history, verdict, settings, time.perf_counter() - start)


@torch.no_grad()
def judge(
    network: nn.Module,
    plain: nn.Module,
    augmenter: LieAugmenter,
    data: tuple[Tensor, Tensor],
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    inputs: Representation | None = None,
    outputs: Representation | None = None,
    draws: int = 32,
) -> Verdict:
    """The :class:`Verdict` on held-out ``data`` of a network trained with the learned augmentation and of one without.

    :param int draws: of the group for each input, over which the first is averaged.
    """
    (x, y), one = data, loss or default_loss(data[1])
    with_it = one(averaged(network, augmenter, x, not y.is_floating_point(), draws, inputs, outputs), y)
    differences = (with_it - one(plain(x), y)).double()
    se = float(differences.std() / math.sqrt(len(differences)))
    f = _values(plain, not y.is_floating_point())
    apart = float(augmenter.losses(f, x, f(x), _far, inputs, outputs, draws)["equivariance"])
    variation = float((f(x) - f(x).mean(0)).square().flatten(1).sum(1).mean())
    deviation = apart / (2 * variation) if variation else math.nan
    return Verdict(float(differences.mean()), se, deviation)


@torch.no_grad()
def averaged(
    network: nn.Module,
    augmenter: LieAugmenter,
    x: Tensor,
    classes: bool,
    draws: int = 32,
    inputs: Representation | None = None,
    outputs: Representation | None = None,
) -> Tensor:
    """The network's outputs averaged over the measure; of a classifier the logarithms of averaged probabilities."""
    f = _values(network, classes)
    means = torch.cat([augmenter.average(f, rows, draws, inputs, outputs) for rows in x.split(ROWS)])
    return means.clamp_min(torch.finfo(means.dtype).tiny).log() if classes else means


def _values(network: nn.Module, classes: bool) -> Callable[[Tensor], Tensor]:
    return (lambda x: network(x).softmax(-1)) if classes else network


def _far(outputs: Tensor, goals: Tensor) -> Tensor:
    return (outputs - goals).flatten(1).square().sum(1)


def _train(
    net: nn.Module, augmenter: LieAugmenter | None, data: tuple[Tensor, Tensor], settings: Mapping, options: Mapping
) -> dict[str, list[float]]:
    """All steps, without an augmenter on data as they are; returns the history."""
    torch.manual_seed(settings["seed"])
    steps, history = settings["steps"], {name: [] for name in (*TERMS, "share")}
    groups = [{"params": list(net.parameters()), "lr": settings["learning_rate"]}]
    if augmenter is not None:
        groups.append({"params": list(augmenter.parameters()), "lr": settings["basis_rate"]})
    optimizer = torch.optim.Adam(groups)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (1 - step / steps) / FALLING))
    for step in range(steps):
        batch = _minibatch(data, settings["batch_size"])
        share = 0.0 if augmenter is None else _share(step / steps, settings["warm_up"], settings["grown"])
        if share and not history["share"][-1]:
            _search(net, augmenter, batch, settings["starts"], options)
        terms = _terms(net, augmenter, batch, share, settings["draws"], options)
        total = augmenter.weighted(terms) if share else terms["task"]
        if not bool(total.isfinite()):
            raise OptionError(f"Expected a finite loss; it is {total.item()} in step {step}. Lower a rate or a width.")
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        rates.step()
        for name, values in history.items():
            values.append(share if name == "share" else float(terms[name].detach()) if name in terms else math.nan)
    return history


def _minibatch(data: tuple[Tensor, Tensor], size: int) -> tuple[Tensor, Tensor]:
    if size == len(data[0]):
        return data
    rows = torch.randint(len(data[0]), (size,), device=data[0].device)
    return data[0][rows], data[1][rows]


def _share(done: float, warm_up: float, grown: float) -> float:
    """The part of the widths that is drawn from when this part of the steps is done."""
    return 0.0 if done < warm_up else min(1.0, max(FIRST_SHARE, (done - warm_up) / (grown - warm_up)))


def _terms(
    net: nn.Module, augmenter: LieAugmenter | None, batch: tuple[Tensor, Tensor], share: float, draws: int,
    options: Mapping,
) -> dict[str, Tensor]:  # fmt: skip
    """All five under augmentation; of data as they are the task alone."""
    x, y = batch
    if share:
        return augmenter.losses(net, x, y, draws=draws, share=share, **options)
    return {"task": (options["loss"] or default_loss(y))(net(x), y).mean()}


@torch.no_grad()
def _search(
    net: nn.Module, augmenter: LieAugmenter, batch: tuple[Tensor, Tensor], starts: int, options: Mapping
) -> None:
    """Give the augmenter the random basis, orthogonal, whose loss for this network is the lowest."""
    matrices = augmenter.matrices
    if not (starts and matrices.requires_grad):
        return
    found = torch.linalg.qr(torch.randn(starts, *matrices.shape).flatten(2).mT)[0].mT.reshape(starts, *matrices.shape)
    values = []
    for start in found.to(matrices):
        matrices.copy_(start)
        values.append(float(augmenter.loss(net, *batch, draws=1, share=TRIAL_SHARE, **options)))
    matrices.copy_(found[torch.tensor(values).nan_to_num(math.inf).argmin()])
