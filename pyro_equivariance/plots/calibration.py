"""Calibration: confidence against accuracy, on moved copies of the data, and ranks in simulations."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import metrics
from ..errors import DataError, OptionError
from .base import (
    BLACK,
    BLUE,
    GREY,
    RED,
    SKY,
    Axes,
    Figure,
    FigureBase,
    MaxNLocator,
    as_tensor,
    as_tensors,
    checked_names,
    dodges,
    label_columns,
    legend_columns,
    marks,
    panels,
    remove_all,
    shortened,
    styled,
    wrong_kind,
)

Z95 = 1.959963984540054  # the 97.5 % quantile of the standard Normal
RANK_BINS = 20
PER_BIN = 10  # simulations in a bin, at least, where the draws allow it


@styled
def reliability(probs: Tensor | Mapping[str, Tensor], labels: Tensor, bins: int = 15, ax: Axes | None = None) -> Axes:
    """Accuracy against confidence, the top probability, in equal-width bins, and the distribution of confidences.

    The bins and the expected calibration error (ECE) are those of
    :func:`~pyro_equivariance.metrics.calibration_error`: the ECE is the mean distance of the points from the dashed
    line, weighted by the bins' shares of predictions, which the strip on top shows. A bar is a 95 % Wilson interval [1]
    for the bin's accuracy. Predictions for moved copies of one image are not independent: the interval's number
    of predictions is the effective one [2], the number divided by the variance inflation due to such clusters.

    [1] Wilson (1927) "Probable inference, the law of succession, and statistical inference"

    [2] Korn, Graubard (1998) "Confidence intervals for proportions with small expected number of positive counts
    estimated from survey data"

    :param Tensor probs: mean predictives ``(..., N, K)``, leading axes being moved copies or runs; or a dict of them
        by name, such as ``{"upright": probs[0], "moved": probs[1:]}``, drawn side by side.
    :param Tensor labels: integers ``(N,)``, or ``(..., N)`` where the labels move too.
    :param int bins: their number.
    :param Axes ax: where to draw; ``None`` for a new figure.
    :raises DataError: for no series, or probabilities and labels that do not fit each other.

    >>> import torch
    >>> ax = reliability(torch.tensor([[0.8, 0.2], [0.8, 0.2]]), torch.tensor([0, 1]))
    >>> ax.get_legend().get_texts()[1].get_text()
    'ECE 0.300'
    """
    series, labels = as_tensors(probs), as_tensor(labels)
    if not series:
        raise DataError("Expected at least one set of probabilities; got none.")
    return draw_reliability(ax, {name: (values, labels) for name, values in series.items()}, bins)


def draw_reliability(ax: Axes | None, series: Mapping[str, tuple[Tensor, Tensor]], bins: int, strip=True) -> Axes:
    """Each series with labels of its own, ``name: (probs, labels)``."""
    ax = ax or Figure(figsize=(3.6, 4.0)).subplots()
    ax.plot([0, 1], [0, 1], "--", color=GREY, lw=0.9, label="calibrated")
    above = ax.inset_axes([0, 1.02, 1, 0.14], sharex=ax) if strip else None
    styles = [{"color": BLUE, "fmt": "o"}, {"color": RED, "fmt": "D"}] if len(series) == 2 else marks(len(series))
    shifts = dodges(len(series), width=0.3) / bins
    for (name, (probs, labels)), style, shift in zip(series.items(), styles, shifts, strict=True):
        error = metrics.calibration_error(probs, labels, bins).item()
        b = reliability_bins(probs, labels, bins)
        bars = np.stack([b.accuracy - b.low, b.high - b.accuracy]).clip(0)
        ax.errorbar(b.confidence + shift, b.accuracy, bars, lw=0.9, capsize=1.5, **{"ms": 3.5} | style,
                    label=f"{shortened(name, 24)}, ECE {error:.3f}" if name else f"ECE {error:.3f}")  # fmt: skip
        if strip:
            above.stairs(b.share, np.linspace(0, 1, bins + 1), color=style["color"], lw=1)
    low = 0.5 if max(p.shape[-1] for p, _ in series.values()) == 2 else 0.0
    ax.set(xlim=(low - 0.02, 1.02), ylim=(-0.02, 1.02), xlabel="confidence", ylabel="accuracy")
    if strip:
        above.set_axis_off()
        above.set_ylim(bottom=0)
    ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.16 if strip else 1.0), borderaxespad=0.2, fontsize=8)
    return ax


@dataclass(frozen=True, eq=False)
class Bins:
    """Of the bins with predictions: mean confidence, accuracy and its 95 % interval; ``share`` of all bins."""

    confidence: np.ndarray
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray
    share: np.ndarray


def reliability_bins(probs: Tensor, labels: Tensor, bins: int) -> Bins:
    """The bins of :func:`~pyro_equivariance.metrics.calibration_error`, images being clusters of predictions.

    >>> reliability_bins(torch.tensor([[0.8, 0.2], [0.8, 0.2]]), torch.tensor([0, 1]), 5).accuracy.tolist()
    [0.5]
    """
    confidence, prediction = (t.reshape(-1, probs.shape[-2]) for t in probs.double().max(-1))
    correct = (prediction == labels.expand(probs.shape[:-1]).reshape(prediction.shape)).double()
    bin_of = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    member = torch.nn.functional.one_hot(bin_of, bins).double()  # (copies, images, bins)
    counts = member.sum((0, 1))
    known = counts > 0
    mean = (member * confidence[..., None]).sum((0, 1))[known] / counts[known]
    accuracy = (member * correct[..., None]).sum((0, 1))[known] / counts[known]
    per_image, right = member.sum(0)[:, known], (member * correct[..., None]).sum(0)[:, known]
    number = _effective_number(per_image.numpy(), right.numpy(), accuracy.numpy())
    low, high = wilson(accuracy.numpy(), number)
    return Bins(mean.numpy(), accuracy.numpy(), low, high, (counts / counts.sum()).numpy())


def _effective_number(members: np.ndarray, right: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """The number of independent predictions with the variance of each bin's accuracy, a ratio of sums over images.

    At most the number of predictions; where the accuracy has no variance, being 0 or 1, the number of images.

    :param members: ``(N, bins)``, predictions of each image in each bin; ``right`` the correct ones among them.
    """
    total, images = members.sum(0), (members > 0).sum(0)
    clustered = ((right - accuracy * members) ** 2).sum(0) / total**2
    with np.errstate(divide="ignore", invalid="ignore"):
        number = accuracy * (1 - accuracy) / clustered
    return np.where(clustered > 0, np.clip(number, 1, total), images)


def wilson(fraction: np.ndarray, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 95 % Wilson interval for a fraction of ``number`` independent trials.

    >>> [round(float(end), 4) for end in wilson(np.array(0.0), np.array(10.0))]
    [0.0, 0.2775]
    """
    scale = 1 + Z95**2 / number
    centre = (fraction + Z95**2 / (2 * number)) / scale
    half = Z95 / scale * np.sqrt(fraction * (1 - fraction) / number + Z95**2 / (4 * number**2))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


@dataclass(frozen=True, eq=False)
class Scores:
    """Accuracy, NLL in nats and ECE on each moved copy of the data, ``(|G|,)`` each, with errors over images."""

    accuracy: np.ndarray
    nll: np.ndarray
    ece: np.ndarray
    accuracy_se: np.ndarray
    nll_se: np.ndarray
    ece_se: np.ndarray


TITLES = {"accuracy": "accuracy", "nll": "NLL (nats)", "ece": "ECE"}


@styled
def calibration_under_rotation(
    probs: Tensor | Mapping[str, Tensor], labels: Tensor, names: Sequence[str], bins: int = 15
) -> Figure:
    """Accuracy, negative log likelihood and expected calibration error on each moved copy of the data.

    An equivariant predictive has equal scores on all of them; otherwise their distance from the identity's, which a
    dashed line marks for a single method, is what rotation costs. A bar is one standard error over images: of a mean,
    and for the ECE the delete-one jackknife. All copies show the same images, so differences between elements are
    known better than the bars say.

    :param Tensor probs: mean predictives ``(|G|, N, K)``, element 0 the identity; or a dict of them by method.
    :param Tensor labels: integers ``(N,)``, or ``(|G|, N)`` where the labels move too.
    :param names: a name for each group element.
    :param int bins: of the ECE.
    :raises DataError: for no methods, wrong names, or probabilities and labels that do not fit each other.

    >>> import torch
    >>> figure = calibration_under_rotation(torch.rand(4, 9, 3).softmax(-1), torch.zeros(9).long(), "abcd")
    >>> [ax.get_ylabel() for ax in figure.axes]
    ['accuracy', 'NLL (nats)', 'ECE']
    """
    labels = as_tensor(labels)
    scores = {method: scores_by_element(values, labels, bins) for method, values in as_tensors(probs).items()}
    figure = Figure(figsize=(7.2, 2.6))
    draw_scores(figure, scores, names)
    return figure


def scores_by_element(probs: Tensor, labels: Tensor, bins: int = 15) -> Scores:
    """The scores of each moved copy; see :func:`calibration_under_rotation`."""
    if probs.ndim != 3:
        raise DataError(f"Expected mean predictives (|G|, N, K); got {tuple(probs.shape)}.")
    rows = []
    for element, own in zip(probs, labels.expand(probs.shape[:2]), strict=True):
        n = len(own)
        right, nll = metrics.accuracy(element, own).item(), metrics.negative_log_likelihood(element, own).item()
        tiny = torch.finfo(element.dtype).tiny
        each = element[torch.arange(n), own.long()].clamp_min(tiny).double().log()
        errors = math.sqrt(right * (1 - right) / n), each.std(correction=0).item() / math.sqrt(n)
        error = metrics.calibration_error(element, own, bins).item()
        rows.append((right, nll, error, *errors, _ece_error(element, own, bins)))
    return Scores(*map(np.array, zip(*rows, strict=True)))


def _ece_error(probs: Tensor, labels: Tensor, bins: int) -> float:
    """The delete-one jackknife standard error over images of the expected calibration error of ``(N, K)``."""
    confidence, prediction = probs.double().max(-1)
    gap = (prediction == labels).double() - confidence
    bin_of = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    sums = gap.new_zeros(bins).index_add(0, bin_of, gap)
    own = sums[bin_of]
    n = len(gap)
    if n < 2:
        return math.nan
    left_out = (sums.abs().sum() - own.abs() + (own - gap).abs()) / (n - 1)
    return math.sqrt((n - 1) * left_out.var(correction=0).item())


def draw_scores(figure: FigureBase, scores: Mapping[str, Scores], names: Sequence[str], legend: bool = True) -> None:
    """The three axes of :func:`calibration_under_rotation`, in a figure or a part of one."""
    if not scores:
        raise DataError("Expected at least one method; got none.")
    names = checked_names(names, len(next(iter(scores.values())).nll), "group element")
    axes = figure.subplots(1, 3)
    columns = np.arange(len(names))
    for ax, (key, title) in zip(axes, TITLES.items(), strict=True):
        styles, shifts = marks(len(scores)), dodges(len(scores), width=0.5)
        for (method, s), style, shift in zip(scores.items(), styles, shifts, strict=True):
            ax.errorbar(columns + shift, getattr(s, key), getattr(s, f"{key}_se"), lw=0.8, capsize=1.5, **style,
                        label=method)  # fmt: skip
        if len(scores) == 1:
            ax.axhline(getattr(next(iter(scores.values())), key)[0], color=GREY, lw=0.8, ls="--", zorder=0)
        ax.set_ylabel(title)
        ax.yaxis.set_major_locator(MaxNLocator(5))
        if key == "accuracy":
            low, high = ax.get_ylim()
            ax.set_ylim(low, min(high, 1 + 0.1 * (1 - low)))
        label_columns(ax, names)
    if legend and any(scores):
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, [shortened(name, 30) for name in labels], loc="outside upper left",
                      ncols=legend_columns(labels, 7.2, 5))  # fmt: skip


@styled
def ranks(vsbc, quantities: Sequence[str] | None = None, alpha: float = 0.05) -> Figure:
    """Histograms of the true values' ranks among the guide's draws, one for each quantity.

    For a calibrated guide all ranks are equally likely. The band then holds the bars of all histograms shown together
    with a probability of at least ``1 - alpha``: its ends are binomial quantiles at ``alpha / (2 B Q)`` on either side,
    for B bins and Q histograms (Bonferroni). A slope means bias, a ∪ a guide that is too narrow, a ∩ one that is too
    wide [1].

    [1] Talts, Betancourt, Simpson, Vehtari, Gelman (2018) arXiv:1804.06788

    :param vsbc: the result of ``pe.vsbc``: ``ranks`` ``(simulations, quantities)`` in 0..L, ``quantities``, their
        names, and ``draws``, L. The bins hold equally many of the L + 1 ranks, so their number divides it.
    :param quantities: the names to show; all by default.
    :param float alpha: in (0, 1).
    :raises OptionError: for a quantity that there is not, or an alpha outside (0, 1).
    :raises DataError: for something that is no such result.

    >>> from types import SimpleNamespace
    >>> result = SimpleNamespace(ranks=np.arange(100)[:, None] % 20, quantities=["mu"], draws=19)
    >>> figure = ranks(result)
    >>> len(figure.axes[0].patches), figure.axes[0].get_title()
    (10, 'mu')
    """
    if not 0 < alpha < 1:
        raise OptionError(f"Expected alpha, the probability of a false alarm, in (0, 1); got {alpha!r}.")
    if not all(hasattr(vsbc, name) for name in ("ranks", "quantities", "draws")):
        raise wrong_kind("the result of pe.vsbc", vsbc)
    known = list(vsbc.quantities)
    shown = known if quantities is None else list(quantities)
    if missing := [name for name in shown if name not in known] or not shown:
        raise OptionError(f"Expected quantities among {', '.join(known) or 'none'}; got {missing or 'none'}.")
    values = np.asarray(vsbc.ranks)
    bins = rank_bins(vsbc.draws, len(values))
    band = rank_band(len(values), bins, alpha / len(shown))
    columns, rows = panels(len(shown), 4)
    figure = Figure(figsize=(max(1.75 * columns + 0.6, 3.6), 1.6 * rows + 0.7))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for i, ax in enumerate(grid.flat):
        if i >= len(shown):
            remove_all([ax])
            continue
        _draw_ranks(ax, values[:, known.index(shown[i])], vsbc.draws, bins, band)
        ax.set_title(shortened(shown[i], 22))
    figure.supxlabel(f"rank of the true value among {vsbc.draws} draws", fontsize=9)
    figure.supylabel("simulations", fontsize=9)
    handles, names = grid[0, 0].get_legend_handles_labels()
    names = [name.format(level=f"{100 * (1 - alpha):g} %") for name in names]
    figure.legend(handles, names, loc="outside upper left", ncols=3 if columns > 2 else 1)
    return figure


def rank_bins(draws: int, simulations: int) -> int:
    """The number of bins: the largest divisor of ``draws + 1`` that leaves ``PER_BIN`` simulations a bin.

    At most ``RANK_BINS``; the smallest divisor above 1 where none is small enough.

    >>> rank_bins(99, 200), rank_bins(99, 60), rank_bins(100, 200)
    (20, 5, 101)
    """
    divisors = [b for b in range(2, draws + 2) if (draws + 1) % b == 0]
    small = [b for b in divisors if b <= min(RANK_BINS, simulations / PER_BIN)]
    return small[-1] if small else divisors[0]


def rank_band(simulations: int, bins: int, alpha: float) -> tuple[int, int]:
    """Counts between which all bins of one uniform histogram lie with probability at least ``1 - alpha``.

    >>> rank_band(200, 20, 0.05)
    (2, 20)
    """
    from scipy.stats import binom  # takes a third of a second to import

    tail = alpha / (2 * bins)
    return int(binom.ppf(tail, simulations, 1 / bins)), int(binom.isf(tail, simulations, 1 / bins))


def _draw_ranks(ax: Axes, ranks: np.ndarray, draws: int, bins: int, band: tuple[int, int]) -> None:
    edges = np.linspace(-0.5, draws + 0.5, bins + 1)
    counts, _ = np.histogram(ranks, edges)
    ax.bar(edges[:-1], counts, np.diff(edges), align="edge", color=SKY, edgecolor="white", lw=0.4, zorder=2)
    ends = [edges[0], edges[-1]]
    ax.fill_between(ends, *band, color="0.88", lw=0, zorder=1, label="{level} band, all bars together")
    ax.hlines(band, *ends, color=BLACK, lw=0.7, ls="--", zorder=3)
    ax.plot(ends, [len(ranks) / bins] * 2, color=BLACK, lw=0.8, zorder=3, label="uniform")
    ax.set(xlim=ends, ylim=(0, 1.08 * max(band[1], counts.max(), ax.get_ylim()[1] / 1.08)))
    ax.set_xticks([0, draws])
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
