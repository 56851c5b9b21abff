"""A verdict on a learned symmetry, from held-out data and networks trained with it, without, and under a control."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import DataError
from ..modes import mode
from ..representations import Representation
from .lie import LieAugmenter, check_pair, each_loss, symmetry_of

ERRORS = 2.0  # standard errors on either side of a difference, about 95 %
ROWS = 256  # inputs that are moved and averaged at a time
MEANINGS = {
    "helps": "better than without, and than under random moves",
    "holds": "no worse than without, and better than under random moves",
    "undecided": "no better than under random moves, so that nothing speaks for these",
    "does not hold": "worse than without",
}

Arm = tuple[nn.Module, LieAugmenter]  # a network and the augmenter that it was trained under


@dataclass(frozen=True)
class Verdict:
    """Whether a learned symmetry holds, from held-out data and three networks that differ in their augmentation.

    One was trained under the learned augmentation, one under none, and one, the control, under random generators that
    were kept: as many, of the same widths, at right angles to the learned ones. With few or noisy data *any*
    augmentation regularises, so that only what the control does not reach speaks for the generators. The first and the
    third are averaged over their measures. With differences of mean held-out losses, and two standard errors of each,

    - ``"does not hold"``: the learned augmentation does worse than none;
    - ``"undecided"``: it does not, but is not better than the control: random moves would do as well;
    - ``"helps"``: it does better than both;
    - ``"holds"``: it does better than the control, and no worse than none.

    :param float difference: the mean over held-out data of the loss with the learned augmentation, less that without.
    :param float se: its standard error over the data; networks and measures are given.
    :param float control: that of the loss with the learned augmentation, less that of the control.
    :param float control_se: its standard error.
    :param float deviation: ``E‖f(gx) − ρ_Y(g) f(x)‖² / (2 E‖f − E f‖²)`` of the network trained *without* (of a
        classifier's probabilities): about 0 if it follows the learned measure by itself, 1 as for unrelated inputs.

    >>> print(Verdict(difference=-0.08, se=0.02, control=-0.3, control_se=0.04, deviation=0.01))
    helps: better than without, and than under random moves
    held-out loss minus that without: -0.08 (-0.12 to -0.04)
    minus that under random moves: -0.3 (-0.38 to -0.22); deviation 0.01
    """

    difference: float
    se: float
    control: float
    control_se: float
    deviation: float

    @property
    def interval(self) -> tuple[float, float]:
        """The difference to no augmentation, two standard errors less and more."""
        return _interval(self.difference, self.se)

    @property
    def control_interval(self) -> tuple[float, float]:
        """The difference to the control, two standard errors less and more."""
        return _interval(self.control, self.control_se)

    @property
    def word(self) -> str:
        """``"helps"``, ``"holds"``, ``"undecided"`` or ``"does not hold"``."""
        if self.interval[0] > 0:
            return "does not hold"
        if not self.control_interval[1] < 0:
            return "undecided"
        return "helps" if self.interval[1] < 0 else "holds"

    @property
    def holds(self) -> bool:
        """Whether held-out predictions are no worse than without, and better than under random moves."""
        return self.word in ("helps", "holds")

    @property
    def helps(self) -> bool:
        """Whether they are better than both."""
        return self.word == "helps"

    def __str__(self) -> str:
        differences = _shown(self.difference, self.interval), _shown(self.control, self.control_interval)
        return (
            f"{self.word}: {MEANINGS[self.word]}\nheld-out loss minus that without: {differences[0]}\n"
            f"minus that under random moves: {differences[1]}; deviation {self.deviation:.2g}"
        )


def _interval(mean: float, se: float) -> tuple[float, float]:
    return mean - ERRORS * se, mean + ERRORS * se


def _shown(mean: float, interval: tuple[float, float]) -> str:
    return "{:.3g} ({:.3g} to {:.3g})".format(mean, *interval)


@torch.no_grad()
def random_like(augmenter: LieAugmenter, seed: int = 0) -> LieAugmenter:
    """The augmenter with random generators instead, fixed: as many, of the same widths and terms.

    They are orthonormal and at right angles to the augmenter's own (Frobenius), or merely random where those leave no
    room for as many.

    >>> import pyro_equivariance as pe
    >>> round(random_like(pe.LieAugmenter(2)).generators.angle(pe.LieAugmenter(2).generators), 3)
    90.0
    """
    other = copy.deepcopy(augmenter).requires_grad_(False)
    own = augmenter.matrices.detach().flatten(1)
    count, entries = own.shape
    room = (
        torch.linalg.qr(own.mT, mode="complete")[0][:, count:] if 2 * count <= entries else torch.eye(entries).to(own)
    )
    found = room @ torch.randn(room.shape[1], count, generator=torch.Generator().manual_seed(seed)).to(own)
    other.matrices.copy_(torch.linalg.qr(found)[0].mT.reshape(other.matrices.shape))
    return other


@torch.no_grad()
def judge(
    learned: Arm,
    control: Arm,
    plain: nn.Module,
    data: tuple[Tensor, Tensor],
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    inputs: Representation | None = None,
    outputs: Representation | None = None,
    draws: int = 32,
) -> Verdict:
    """The :class:`Verdict` on held-out ``data`` of networks trained with the learned augmentation, the control's, none.

    Networks are in evaluation mode meanwhile, and the state of the random numbers is as before.

    :param learned: the network and its augmenter; likewise ``control``.
    :param int draws: of the group for each input, over which the first two are averaged.
    :raises DataError: for fewer than two data, or losses that are not finite.
    """
    (x, y), (_, augmenter) = data, learned
    check_pair(x, y)
    classes = loss is None and not y.is_floating_point()
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []), mode(plain, training=False):
        means = [averaged(*arm, x, classes, draws, inputs, outputs) for arm in (learned, control)]
        raw = torch.cat([plain(rows) for rows in x.split(ROWS)])
        f, values = _values(plain, classes), raw.softmax(-1) if classes else raw
        deviation = _deviation(f, values, augmenter, x, draws, inputs, outputs)
    with_learned, with_control, without = (each_loss(loss, found, y).double() for found in (*means, raw))
    pairs = (_paired(with_learned - without), _paired(with_learned - with_control))
    return Verdict(*pairs[0], *pairs[1], deviation)


def _paired(differences: Tensor) -> tuple[float, float]:
    """The mean and its standard error."""
    if len(differences) < 2 or not bool(differences.isfinite().all()):
        raise DataError(
            f"Expected at least two validation data with finite losses; got {len(differences)}, "
            f"{int((~differences.isfinite()).sum())} of them not finite. Look at their values, or lower the widths."
        )
    return float(differences.mean()), float(differences.std() / math.sqrt(len(differences)))


def _deviation(
    f: Callable[[Tensor], Tensor], values: Tensor, augmenter: LieAugmenter, x: Tensor, draws: int,
    inputs: Representation | None, outputs: Representation | None,
) -> float:  # fmt: skip
    """``E‖f(gx) − ρ_Y(g) f(x)‖² / (2 E‖f − E f‖²)``, ``values`` being ``f(x)``; NaN of a constant."""
    symmetry, apart = symmetry_of(augmenter, x, inputs, outputs), 0.0
    for rows, here in zip(x.split(ROWS), values.split(ROWS), strict=True):
        g = augmenter.sample((draws, len(rows)))
        there = f(symmetry.act_inputs(g, rows).flatten(0, 1)).unflatten(0, (draws, len(rows)))
        apart += float((there - symmetry.act_outputs(g, here)).square().sum()) / (draws * len(x))
    variation = float((values - values.mean(0)).square().sum()) / len(x)
    return apart / (2 * variation) if variation else math.nan


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
    """The network's outputs averaged over the measure; of a classifier the logarithms of averaged probabilities.

    The network is in evaluation mode meanwhile.
    """
    f = _values(network, classes)
    with mode(network, training=False):
        means = torch.cat([augmenter.average(f, rows, draws, inputs, outputs) for rows in x.split(ROWS)])
    return means.clamp_min(torch.finfo(means.dtype).tiny).log() if classes else means


def _values(network: nn.Module, classes: bool) -> Callable[[Tensor], Tensor]:
    return (lambda x: network(x).softmax(-1)) if classes else network
