"""Runs of methods beside one another, and group elements beside one another."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from .. import metrics
from ..errors import DataError
from .base import (
    BLACK,
    BLUE,
    RED,
    Axes,
    Figure,
    MaxNLocator,
    as_number,
    as_tensors,
    checked_names,
    dodges,
    label_rows,
    legend_above,
    line_styles,
    linear_width,
    marks,
    scale_through_zero,
    shortened,
    styled,
    wrong_kind,
)


@styled
def accuracy(runs: Sequence[Mapping], ax: Axes | None = None, *, test_size: int = 0) -> Axes:
    """The accuracy of each method on upright and on moved test inputs: mean over seeds, and each seed.

    With a number N of test inputs each point has a bar, ± its binomial standard error √(a (1 − a) / N). That of the
    moved copies takes those of one input as right or wrong together, so it is at most too long.

    :param runs: the ``runs`` of ``results.json``, with ``method``, ``accuracy`` and ``accuracy_orbit``; a number
        that is ``None`` is left out.
    :param Axes ax: where to draw; ``None`` for a new figure.
    :param int test_size: N; 0 for a number that is not known, and no bars.
    :raises DataError: for no runs.

    >>> ax = accuracy([{"method": "baseline", "accuracy": 0.97, "accuracy_orbit": 0.6}])
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['baseline']
    """
    methods = _by_method(runs)
    ax = ax or _method_axes(methods)
    _points(ax, methods, "accuracy", -0.17, "upright", BLUE, "o", test_size)
    _points(ax, methods, "accuracy_orbit", 0.17, "all moved copies", RED, "D", test_size)
    if len(runs) > len(methods):
        ax.plot([], [], "|", color=BLACK, ms=11, mew=1.5, label="mean over seeds")
    label_rows(ax, list(methods))
    ax.set_xlabel("accuracy (fraction of test inputs)" + (", ±1 standard error" if test_size else ""))
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.margins(x=0.08)
    legend_above(ax)
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
    values = [(as_number(run["defect"]), np.nan_to_num(as_number(run.get("defect_se")))) for run in runs]
    values = [(value, error) for value, error in values if math.isfinite(value)]
    linear = linear_width(values)
    ax.axvspan(-linear, linear, color="0.93", lw=0, label="linear scale")
    ax.axvline(0, color=BLACK, lw=0.8)
    for row, group in enumerate(methods.values()):
        for run, y in zip(group, row + _spread(len(group)), strict=True):
            error = as_number(run.get("defect_se"))
            bar = None if math.isnan(error) else error
            ax.errorbar(as_number(run["defect"]), y, xerr=bar, fmt="o", color=BLUE, ms=4, lw=1.2, capsize=2.5)
    ax.errorbar([], [], xerr=[], fmt="o", color=BLUE, ms=4, lw=1.2, capsize=2.5, label="a run, ±1 standard error")
    label_rows(ax, list(methods))
    scale_through_zero(ax, values, linear)
    ax.set_xlabel("equivariance defect (squared difference of predictives)")
    legend_above(ax)
    return ax


@styled
def defect_by_element(
    outputs: Tensor | Mapping[str, Tensor], names: Sequence[str], ax: Axes | None = None, *, action=None
) -> Axes:
    """The unbiased defect of each group element ± its jackknife standard error; see :func:`metrics.defect_by_element
    <pyro_equivariance.metrics.defect_by_element>`.

    Zero, and an axis through it, as in :func:`defect`. The identity, whose defect is zero by definition, has no row.

    :param outputs: draws ``(T, |G|, N, *event)`` of the outputs, element 0 the identity; or those of each method.
    :param names: a name for each group element.
    :param Axes ax: where to draw; ``None`` for a new figure.
    :param action: moves the outputs; ``None`` for invariant outputs.
    :raises DataError: for no methods, a wrong number of names, or outputs that the metric does not take.

    >>> import torch
    >>> ax = defect_by_element(torch.randn(20, 4, 5, 3), ["e", "r90", "r180", "r270"])
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['r90', 'r180', 'r270']
    """
    estimates = {m: metrics.defect_by_element(draws, action=action) for m, draws in as_tensors(outputs).items()}
    return draw_defects(ax, estimates, names)


def draw_defects(
    ax: Axes | None, estimates: Mapping[str, Sequence[metrics.Estimate]], names: Sequence[str], legend: bool = True
) -> Axes:
    """Defects of elements as rows, the identity left out of several, the methods in one row beneath each other."""
    if not estimates:
        raise DataError("Expected at least one method; got none.")
    order = len(next(iter(estimates.values())))
    shown = slice(order > 1, None)
    names = checked_names(names, order, "group element")[shown]
    ax = ax or Figure(figsize=(5.5, 1.3 + max(0.38, 0.06 * len(estimates)) * len(names))).subplots()
    values = [(e.value, float(np.nan_to_num(e.se))) for several in estimates.values() for e in several[shown]]
    values = [(value, error) for value, error in values if math.isfinite(value)]
    linear = linear_width(values)
    ax.axvspan(-linear, linear, color="0.93", lw=0, label="linear scale")
    ax.axvline(0, color=BLACK, lw=0.8)
    mark = "an element, ±1 standard error"
    shifts = dodges(len(estimates), width=0.7)
    for (method, several), shift, style in zip(estimates.items(), shifts, marks(len(estimates)), strict=True):
        for row, estimate in enumerate(several[shown]):
            bar = None if math.isnan(estimate.se) else estimate.se
            ax.errorbar(estimate.value, row + shift, xerr=bar, lw=1.2, capsize=2, **style,
                        label=None if row else method or mark)  # fmt: skip
    label_rows(ax, [shortened(name, 24) for name in names])
    scale_through_zero(ax, values or [(0.0, 0.0)], linear)
    ax.set_xlabel("equivariance defect (squared difference)")
    if legend:
        legend_above(ax)
    return ax


def draw_method_intervals(ax: Axes, values: Mapping[str, np.ndarray]) -> None:
    """A row for each method: the median and the central 90 % of the draws of each run."""
    for row, (runs, style) in enumerate(zip(values.values(), marks(len(values)), strict=True)):
        for run, shift in zip(runs, dodges(len(runs)), strict=True):
            low, middle, high = np.quantile(run, (0.05, 0.5, 0.95))
            ax.plot([low, high], [row + shift] * 2, color=style["color"], lw=1.2)
            ax.plot(middle, row + shift, style["fmt"], color=style["color"], mfc=style["mfc"], ms=3)
    label_rows(ax, [shortened(name, 24) for name in values])
    ax.set_xlabel("nats per datum: median, 90 % of each run's draws")
    ax.xaxis.set_major_locator(MaxNLocator(5))


def draw_run_ranks(ax: Axes, runs: np.ndarray) -> None:
    """The ranks of each run's draws among those of all: flat where the runs agree."""
    ranks = runs.ravel().argsort().argsort().reshape(runs.shape)
    bins = int(np.clip(runs.shape[1] // 10, 2, 20))
    for i, (run, (color, dash)) in enumerate(zip(ranks, line_styles(len(ranks)), strict=True)):
        counts, edges = np.histogram(run, bins, (-0.5, runs.size - 0.5))
        ax.stairs(counts, edges, color=color, ls=dash, lw=1, label=f"run {i}" if len(ranks) < 8 else None)
    ax.axhline(runs.shape[1] / bins, color=BLACK, lw=0.7, label="equal runs")
    ax.set(xlabel="rank among the draws of all runs", ylabel="draws", ylim=(0, None))
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    legend_above(ax)


def _by_method(runs: Sequence[Mapping]) -> dict[str, list[Mapping]]:
    """The runs of each method, in the order in which the methods first appear."""
    if not isinstance(runs, Sequence) or not all(isinstance(run, Mapping) and "method" in run for run in runs):
        raise wrong_kind("runs, a list of dicts with 'method' as in results.json", runs)
    methods: dict[str, list[Mapping]] = {}
    for run in runs:
        methods.setdefault(run["method"], []).append(run)
    if not methods:
        raise DataError("Expected at least one run; got none.")
    return methods


def _method_axes(methods: Mapping) -> Axes:
    """Axes of a new figure with a row for each method."""
    return Figure(figsize=(5.5, 1.3 + 0.38 * len(methods))).subplots()


def _points(
    ax: Axes, methods: Mapping, field: str, shift: float, label: str, color: str, marker: str, test_size: int
) -> None:  # fmt: skip
    """A point for each run with its binomial error, and a bar at the mean over the runs of a method."""
    for row, group in enumerate(methods.values()):
        values = np.array([as_number(run.get(field)) for run in group])
        known = values[np.isfinite(values)]
        at = np.full(len(known), row + shift)
        ax.plot(known, at, marker, color=color, alpha=0.6, ms=4.5, mew=0, label=None if row else label)
        if test_size:
            error = np.sqrt(known * (1 - known) / test_size)
            ax.hlines(at, known - error, known + error, color=color, alpha=0.6, lw=0.9)
        if len(known) > 1:
            ax.plot(known.mean(), at[0], "|", color=color, ms=11, mew=1.5)


def _spread(count: int) -> np.ndarray:
    """Small distances from a row for each of its points."""
    return (np.arange(count) - (count - 1) / 2) * min(0.2, 0.6 / count)
