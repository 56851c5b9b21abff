"""Pictures of comparisons, orbits and kernels: functions of numbers that return axes or a figure.

They use matplotlib without pyplot: no display is needed and nothing global changes. :func:`save` writes a PNG; a
notebook shows a figure that ends a cell once ``matplotlib.pyplot`` has been imported in it.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path

import numpy as np
import torch

from . import metrics
from .errors import DataError

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator, NullLocator
except ImportError as error:
    error.add_note('Install it with: pip install "pyro-equivariance[plots]"')
    raise

# The colours of Okabe and Ito (2008), which colour-blind readers tell apart, less the yellow, too pale for thin lines.
BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK = CYCLE = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000"
)  # fmt: skip
GREY = "0.6"
DASHES = ("-", "--", ":", "-.")
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 2.2,
    "figure.constrained_layout.use": True,
}
PER_ROW = 8  # pictures side by side
EPSILONS = tuple(10.0 ** (e / 10) for e in range(-20, 1))
DECADES = 6  # below the largest defect, where rounding errors begin
STEEP = 30  # ratio of the largest to the smallest loss from which on the axis is logarithmic


def styled(draw: Callable) -> Callable:
    """Draw with this module's style on matplotlib's defaults; the user's settings are back afterwards."""

    @wraps(draw)
    def styled(*args, **kwargs):
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)
            return draw(*args, **kwargs)

    return styled


@styled
def accuracy(runs: Sequence[Mapping], ax: Axes | None = None) -> Axes:
    """The accuracy of each method on upright and on moved test inputs: mean over seeds, and each seed.

    :param runs: the ``runs`` of ``results.json``, with ``method``, ``accuracy`` and ``accuracy_orbit``; a number$
        that is ``None`` is left out.
    :param Axes ax: where to draw; ``None`` for a new figure.
    :raises DataError: for no runs.

    >>> ax = accuracy([{"method": "baseline", "accuracy": 0.97, "accuracy_orbit": 0.6}])
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['baseline']
    """
    methods = _by_method(runs)
    ax = ax or _method_axes(methods)
    _points(ax, methods, "accuracy", -0.17, "upright", BLUE, "o")
    _points(ax, methods, "accuracy_orbit", 0.17, "all moved copies", RED, "D")
    if len(runs) > len(methods):
        ax.plot([], [], "|", color=BLACK, ms=11, mew=1.5, label="mean over seeds")
    _label_methods(ax, methods)
    ax.set_xlabel("accuracy (fraction of test inputs)")
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.margins(x=0.08)
    _legend_above(ax)
    return ax


@styled
def defect(runs: Sequence[Mapping], ax: Axes | None = None) -> Axes:
    """The unbiased equivariance defect of each run, ± its jackknife standard error over draws.

    The estimate scatters around zero for an invariant posterior, so the axis goes through zero: it is linear in the
    shaded band and logarithmic, with either sign, outside.

    :param runs: the ``runs`` of ``results.json``, with ``method``, ``defect`` and ``defect_se``; without an error
        (``None`` or NaN) a point has no bar.
    :param Axes ax: where to draw; ``None`` for a new figure.
    :raises DataError: for no runs.

    >>> ax = defect([{"method": "always", "defect": -1e-9, "defect_se": 2e-9}])
    >>> [label.get_text() for label in ax.get_xticklabels()]
    ['0', '$10^{-8}$']
    """
    methods = _by_method(runs)
    ax = ax or _method_axes(methods)
    values = [(_number(run["defect"]), np.nan_to_num(_number(run.get("defect_se")))) for run in runs]
    values = [(value, error) for value, error in values if math.isfinite(value)]
    linear = _linear_width(values)
    ax.axvspan(-linear, linear, color="0.93", lw=0, label="linear scale")
    ax.axvline(0, color=BLACK, lw=0.8)
    for row, group in enumerate(methods.values()):
        for run, y in zip(group, row + _spread(len(group)), strict=True):
            error = _number(run.get("defect_se"))
            bar = None if math.isnan(error) else error
            ax.errorbar(_number(run["defect"]), y, xerr=bar, fmt="o", color=BLUE, ms=4, lw=1.2, capsize=2.5)
    ax.errorbar([], [], xerr=[], fmt="o", color=BLUE, ms=4, lw=1.2, capsize=2.5, label="a run, ±1 standard error")
    _label_methods(ax, methods)
    _scale_through_zero(ax, values, linear)
    ax.set_xlabel("equivariance defect (squared difference of predictives)")
    _legend_above(ax)
    return ax


@styled
def defect_sweep(sweep: metrics.DefectSweep) -> Figure:
    """The defect against the number T of draws, on the left its mean ± standard error, on the right its spread.

    On the left a thin line is the reference plus c/T, through the first biased mean, on the right the slopes −1/2 and
    −1, through the first unbiased spread. The defect's axis is logarithmic where no bar reaches zero; otherwise it
    goes through zero and is linear in the shaded band.

    :param DefectSweep sweep: of :func:`~pyro_equivariance.metrics.defect_sweep`.

    >>> import torch
    >>> sweep = metrics.defect_sweep(lambda draws, independent: torch.randn(draws, 4, 5, 3), sizes=(2, 4), repeats=5)
    >>> [ax.get_title() for ax in defect_sweep(sweep).axes]
    ['mean ± standard error', 'spread over re-evaluations']
    """
    figure = Figure(figsize=(7.2, 3.2))
    left, right = figure.subplots(1, 2)
    _sweep_means(left, sweep)
    _sweep_spreads(right, sweep)
    margin = max((sweep.sizes[-1] / sweep.sizes[0]) ** 0.05, 1.02)
    for ax in (left, right):
        ax.set_xscale("log", base=2)
        ax.set_xlim(sweep.sizes[0] / margin, sweep.sizes[-1] * margin)
        ax.set_xticks(_apart(sweep.sizes))
        ax.xaxis.set_major_formatter("{x:.0f}")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("posterior draws T")
    _legend_below(figure, (left, right))
    return figure


@styled
def sample_size(
    epsilons: Sequence[float] = EPSILONS,
    deltas: Sequence[float] = (0.1, 0.05, 0.01),
    order: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The number T of draws that keeps the defect within ε of its expectation, for a few probabilities δ of failure.

    See :func:`~pyro_equivariance.metrics.sample_size`; with an ``order`` the biased estimator's T is dashed.

    :param epsilons: the deviations allowed, on the horizontal axis.
    :param deltas: a line for each.
    :param int order: ``|G|``.
    :param Axes ax: where to draw; ``None`` for a new figure.
    :raises DataError: for no epsilons or deltas.

    >>> ax = sample_size(order=4)
    >>> [line.get_label() for line in ax.get_lines()][:2]
    ['unbiased, δ = 0.1', 'biased, δ = 0.1']
    """
    if not len(epsilons) or not len(deltas):
        raise DataError(f"Expected at least one epsilon and one delta; got {len(epsilons)} and {len(deltas)}.")
    ax = ax or Figure(figsize=(5.5, 3.6)).subplots()
    estimators = {"unbiased": "-"} if order is None else {"unbiased": "-", "biased": "--"}
    for i, delta in enumerate(deltas):
        for estimator, dash in estimators.items():
            draws = [metrics.sample_size(float(epsilon), delta, order, estimator) for epsilon in epsilons]
            label = f"{estimator}, δ = {delta:g}"
            ax.loglog(epsilons, draws, dash, color=CYCLE[i % len(CYCLE)], lw=1.2, label=label)
    ax.set(xlabel="deviation ε of the defect (squared difference of probabilities)", ylabel="posterior draws T")
    ax.grid(color="0.9", lw=0.6)
    ax.legend(loc="lower left")
    return ax


@styled
def kernels(before, after, names: Sequence[str] | None = None, labels: Sequence[str] = ("before", "after")) -> Figure:
    """The same kernels before and after symmetrization, one above the other, on one colour scale around zero.

    :param Tensor before: ``(K, h, w)``.
    :param Tensor after: of the same shape.
    :param names: a title for each kernel.
    :param labels: what the two rows are called.
    :raises DataError: for shapes that differ, or a wrong number of names.

    >>> import torch
    >>> figure = kernels(torch.randn(3, 5, 5), torch.zeros(3, 5, 5))
    >>> len(figure.axes)  # two for each kernel, and the colour bar
    7
    """
    before, after = _array(before), _array(after)
    if before.shape != after.shape or before.ndim != 3 or not before.size:
        raise DataError(f"Expected kernels (K, h, w), as many before as after; got {before.shape} and {after.shape}.")
    names = _names(names, len(before), "kernel")
    largest = max(abs(before).max(), abs(after).max()) or 1.0
    columns, panels = _panels(len(before))
    figure = Figure(figsize=(0.9 * columns + 1.5, 2.05 * panels + 0.1), layout="compressed")
    grid = figure.subplots(2 * panels, columns, squeeze=False)
    for k in range(columns * panels):
        pair = grid[2 * (k // columns) : 2 * (k // columns) + 2, k % columns]
        if k >= len(before):
            _remove(pair)
            continue
        for ax, kernel, label in zip(pair, (before[k], after[k]), labels, strict=True):
            picture = _show(ax, kernel, cmap="RdBu_r", vmin=-largest, vmax=largest)
            if k % columns == 0:
                ax.set_ylabel(label)
        pair[0].set_title(names[k])
    figure.colorbar(picture, ax=list(figure.axes), label="weight", shrink=0.8, aspect=25)
    return figure


@styled
def orbit(images, probs, names: Sequence[str], label: int | None = None) -> Figure:
    """An input's predictive over its orbit: each moved image, and below it the class probabilities.

    A bar is the mean over posterior draws, its line the central 90 % of the draws.

    :param Tensor images: ``(|G|, C, h, w)``, one channel or RGB in [0, 1].
    :param Tensor probs: ``(T, |G|, K)``, draws of the class probabilities.
    :param names: a name for each group element.
    :param int label: the true class, which gets a colour of its own.
    :raises DataError: for numbers of elements that differ.

    >>> import torch
    >>> figure = orbit(torch.rand(4, 1, 8, 8), torch.rand(50, 4, 3).softmax(-1), ["e", "r90", "r180", "r270"], label=2)
    >>> figure.axes[4].get_ylabel()
    'probability'
    """
    images, probs = _array(images), _array(probs)
    if images.ndim != 4 or probs.ndim != 3 or probs.shape[1] != len(images):
        raise DataError(
            f"Expected images (|G|, C, h, w) and probabilities (T, |G|, K); got {images.shape} and {probs.shape}."
        )
    names = _names(names, len(images), "group element")
    columns, panels = _panels(len(images))
    figure = Figure(figsize=(1.15 * columns + 1.0, 2.6 * panels + 0.4))
    grid = figure.subplots(2 * panels, columns, squeeze=False, height_ratios=[1, 1.2] * panels)
    for g in range(columns * panels):
        top, below = grid[2 * (g // columns) : 2 * (g // columns) + 2, g % columns]
        if g >= len(images):
            _remove((top, below))
            continue
        _show_image(top, images[g])
        top.set_title(names[g])
        _bars(below, probs[:, g], label, first=g % columns == 0)
    figure.supxlabel("class", fontsize=STYLE["font.size"])
    marks = [Patch(color=SKY, label="mean"), Line2D([], [], color=BLACK, lw=1, label="90 % of draws")]
    marks += [Patch(color=RED, label="true class")] if label is not None else []
    figure.legend(handles=marks, loc="outside upper left", ncols=3 if columns > 2 else 1)
    return figure


@styled
def training(histories: Mapping[str, Sequence[Mapping]]) -> Figure:
    """The training loss and the validation score of each method by epoch, a thin line for each seed.

    Epochs without a validation are left out. An axis is logarithmic where its numbers are positive and span more than
    a factor of 30.

    :param histories: for each method a list of ``history`` dicts of :class:`~pyro_equivariance.FitResult`.
    :raises DataError: for no histories.

    >>> figure = training({"baseline": [{"loss": [2.0, 1.0], "kl_weight": [0.5, 1.0], "validation": [1.2, 0.9]}]})
    >>> [ax.get_title() for ax in figure.axes]
    ['training loss', 'validation NLL']
    """
    if not any(histories.values()):
        raise DataError("Expected at least one training history; got none.")
    figure = Figure(figsize=(7.2, 3.0))
    figure.get_layout_engine().set(wspace=0.06)
    axes = figure.subplots(1, 2)
    for ax, key, title in zip(axes, ("loss", "validation"), ("training loss", "validation NLL"), strict=True):
        for (color, dash), (method, several) in zip(_line_styles(len(histories)), histories.items(), strict=True):
            for i, history in enumerate(several):
                _line(ax, history[key], color=color, ls=dash, label=None if i else method)
        ax.set(title=title, xlabel="epoch", ylabel="nats per datum")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        _scale_to(ax, [_number(v) for several in histories.values() for history in several for v in history[key]])
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center")
    return figure


def save(figure: Figure | Axes, path: str | os.PathLike) -> None:
    """Write a PNG at 150 dots per inch, whole or not at all.

    :param figure: a figure, or axes of it.
    :param path: the file, in a folder that exists.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    figure = figure.get_figure() if isinstance(figure, Axes) else figure
    try:
        figure.savefig(part, format="png", dpi=150)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _array(values) -> np.ndarray:
    return torch.as_tensor(values).detach().cpu().double().numpy()


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _names(names: Sequence[str] | None, count: int, what: str) -> list[str]:
    names = [""] * count if names is None else list(names)
    if len(names) != count:
        raise DataError(f"Expected a name for each {what}, {count}; got {len(names)}.")
    return names


def _by_method(runs: Sequence[Mapping]) -> dict[str, list[Mapping]]:
    """The runs of each method, in the order in which the methods first appear."""
    methods: dict[str, list[Mapping]] = {}
    for run in runs:
        methods.setdefault(run["method"], []).append(run)
    if not methods:
        raise DataError("Expected at least one run; got none.")
    return methods


def _method_axes(methods: Mapping) -> Axes:
    """Axes of a new figure with a row for each method."""
    return Figure(figsize=(5.5, 1.3 + 0.38 * len(methods))).subplots()


def _label_methods(ax: Axes, methods: Mapping) -> None:
    ax.set_yticks(range(len(methods)), list(methods))
    ax.set_ylim(len(methods) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.set_axisbelow(True)
    ax.grid(axis="x", color="0.9", lw=0.6)


def _legend_above(ax: Axes) -> None:
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)


def _legend_below(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all axes, each name once, points first."""
    known = {name: mark for ax in axes for mark, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    names = sorted(known, key=lambda name: isinstance(known[name], (Line2D, Patch)))
    figure.legend([known[name] for name in names], names, loc="outside lower center", ncols=len(names))


def _apart(sizes: Sequence[int]) -> list[int]:
    """The sizes that can be written below a logarithmic axis, at most ``PER_ROW`` and the first."""
    step, kept = (sizes[-1] / sizes[0]) ** (1 / PER_ROW), [sizes[0]]
    for size in sizes[1:]:
        kept += [size] if size >= step * kept[-1] else []
    return kept


def _sweep_means(ax: Axes, sweep: metrics.DefectSweep) -> None:
    sizes = np.array(sweep.sizes)
    apart, ends = (sizes[-1] / sizes[0]) ** 0.01, []
    for (name, series, color, marker), shift in zip(_estimators(sweep), (1 / apart, apart), strict=True):
        mean, se = _array(series.mean), _array(series.se)
        ax.errorbar(sizes * shift, mean, se, fmt=marker, color=color, ms=4, lw=1.2, capsize=2.5, label=name)
        ends += [pair for pair in zip(mean, se, strict=True) if np.isfinite(pair).all()]
    fine = np.geomspace(sizes[0], sizes[-1], 100)
    excess = float(sweep.excess[0]) * sizes[0] / fine
    ax.plot(fine, sweep.reference.value + excess, color=BLACK, lw=0.7, label="reference + c/T")
    if min(mean - se for mean, se in ends) > 0:
        ax.set_yscale("log")
    else:
        linear = _linear_width(ends)
        ax.axhspan(-linear, linear, color="0.93", lw=0, label="linear scale")
        ax.axhline(0, color=BLACK, lw=0.8)
        _scale_through_zero(ax, ends, linear, "y")
    ax.set(title="mean ± standard error", ylabel="defect (squared difference)")


def _sweep_spreads(ax: Axes, sweep: metrics.DefectSweep) -> None:
    sizes = np.array(sweep.sizes)
    for name, series, color, marker in _estimators(sweep):
        ax.errorbar(sizes, _array(series.spread), _array(series.spread_se), fmt=marker, color=color, ms=4, lw=1.2,
                    capsize=2.5, label=name)  # fmt: skip
    first = int(sizes[0] == 1)
    for slope, dash in ((-0.5, ":"), (-1.0, "--")):
        line = float(sweep.unbiased.spread[first]) * (sizes[first:] / sizes[first]) ** slope
        ax.plot(sizes[first:], line, dash, color=BLACK, lw=0.7, label=f"slope {'−1/2' if slope > -1 else '−1'}")
    if (sweep.biased.spread > 0).any():
        ax.set_yscale("log")
    ax.set(title="spread over re-evaluations", ylabel="standard deviation of the estimate")


def _estimators(sweep: metrics.DefectSweep):
    return ("biased", sweep.biased, RED, "D"), ("unbiased", sweep.unbiased, BLUE, "o")


def _points(ax: Axes, methods: Mapping, field: str, shift: float, label: str, color: str, marker: str) -> None:
    """A point for each run, and a bar at the mean over the runs of a method."""
    for row, group in enumerate(methods.values()):
        values = np.array([_number(run.get(field)) for run in group])
        known = values[np.isfinite(values)]
        at = np.full(len(known), row + shift)
        ax.plot(known, at, marker, color=color, alpha=0.6, ms=4.5, mew=0, label=None if row else label)
        if len(known) > 1:
            ax.plot(known.mean(), at[0], "|", color=color, ms=11, mew=1.5)


def _spread(count: int) -> np.ndarray:
    """Small distances from a row for each of its points."""
    return (np.arange(count) - (count - 1) / 2) * min(0.2, 0.6 / count)


def _linear_width(values: Sequence[tuple[float, float]]) -> float:
    """The power of ten up to which the axis is linear.

    It covers two standard errors of the narrowest estimate that cannot be told from zero; without such an estimate, it
    is below the smallest. What is ``DECADES`` decades below the largest is zero up to rounding, and does not count.
    """
    sizes = [(abs(value), 2 * error) for value, error in values]
    if not any(map(max, sizes)):
        return 1.0
    noise = [math.ceil(math.log10(width)) for size, width in sizes if size <= width and width > 0]
    signal = [math.floor(math.log10(size)) for size, width in sizes if size > width]
    lowest = max(noise + signal) - DECADES
    return 10.0 ** min([p for p in noise if p > lowest] or [p for p in signal if p > lowest])


def _scale_through_zero(ax: Axes, values: Sequence[tuple[float, float]], linear: float, which: str = "x") -> None:
    """A symmetric logarithmic axis with a tick at zero and at a few powers of ten on either side."""
    ends = [1.6 * (value + sign * error) for value, error in values for sign in (-1, 1)]
    low, high = min(*ends, -0.3 * linear, 0.0), max(*ends, 1.2 * linear, 0.0)
    ticks = [*(-t for t in reversed(_powers(linear, -low))), 0.0, *_powers(linear, high)]
    minor = [sign * k * 10.0**p for p in range(*_decades(linear / 10, max(high, -low))) for k in range(1, 10)
             for sign in (-1, 1)]  # fmt: skip
    set_scale, set_limits, set_ticks = (getattr(ax, f"set_{which}{what}") for what in ("scale", "lim", "ticks"))
    set_scale("symlog", linthresh=linear)
    set_limits(low, high)
    set_ticks(ticks, [_power_label(t) for t in ticks])
    set_ticks([t for t in minor if low <= t <= high], minor=True)


def _decades(smallest: float, largest: float) -> tuple[int, int]:
    """The first exponent of ten from ``smallest``, a power of ten, to ``largest``, and the one after the last."""
    return round(math.log10(smallest)), math.floor(math.log10(largest)) + 1


def _powers(smallest: float, largest: float) -> list[float]:
    """At most four powers of ten, evenly apart, from ``smallest`` on."""
    first, end = _decades(smallest, largest)
    return [10.0**p for p in range(first, end, max((end - 1 - first) // 4, 0) + 1)]


def _power_label(tick: float) -> str:
    if tick == 0:
        return "0"
    return rf"${'-' if tick < 0 else ''}10^{{{round(math.log10(abs(tick)))}}}$"


def _panels(count: int) -> tuple[int, int]:
    """Columns, and rows of panels, for ``count`` pictures, filled evenly."""
    panels = -(-count // PER_ROW)
    return -(-count // panels), panels


def _remove(axes) -> None:
    for ax in axes:
        ax.remove()


def _show(ax: Axes, picture: np.ndarray, **options):
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax.imshow(picture, interpolation="nearest", **options)


def _show_image(ax: Axes, image: np.ndarray) -> None:
    if len(image) == 3:
        _show(ax, image.transpose(1, 2, 0).clip(0, 1))
    else:
        _show(ax, image[0], cmap="gray")


def _bars(ax: Axes, probs: np.ndarray, label: int | None, first: bool) -> None:
    """The mean of ``probs`` ``(T, K)`` and the central 90 % of its draws."""
    classes, mean = np.arange(probs.shape[1]), probs.mean(0)
    ends = np.quantile(probs, (0.05, 0.95), axis=0)
    ax.bar(classes, mean, color=[RED if k == label else SKY for k in classes])
    ax.vlines(classes, *ends, color=BLACK, lw=min(1.0, 20 / len(classes)))
    ax.set(ylim=(0, 1), yticks=[0, 0.5, 1])
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if first:
        ax.set_ylabel("probability")
    else:
        ax.set_yticklabels([])


def _line_styles(count: int) -> list[tuple[str, str]]:
    return [(CYCLE[i % len(CYCLE)], DASHES[i // len(CYCLE) % len(DASHES)]) for i in range(count)]


def _line(ax: Axes, values: Sequence[float], **options) -> None:
    values = np.array([_number(v) for v in values])
    epochs = np.flatnonzero(np.isfinite(values))
    ax.plot(epochs + 1, values[epochs], lw=0.9, marker="." if len(epochs) < 3 else None, ms=4, **options)


def _scale_to(ax: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis for steep positive values, and a note where there are none."""
    known = [v for v in values if math.isfinite(v)]
    if not known:
        ax.set(xticks=[], yticks=[])
        ax.text(0.5, 0.5, "not evaluated", transform=ax.transAxes, ha="center")
    elif min(known) > 0 and max(known) > STEEP * min(known):
        ax.set_yscale("log")
