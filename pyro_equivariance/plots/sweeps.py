"""The defect against the number of posterior draws, and how many of them are enough."""

from collections.abc import Sequence

import numpy as np

from .. import metrics
from ..errors import DataError
from .base import (
    BLACK,
    BLUE,
    CYCLE,
    PER_ROW,
    RED,
    Axes,
    Figure,
    NullLocator,
    as_array,
    legend_below,
    linear_width,
    scale_through_zero,
    styled,
    wrong_kind,
)

EPSILONS = tuple(10.0 ** (e / 10) for e in range(-20, 1))


@styled
def defect_sweep(sweep: metrics.DefectSweep) -> Figure:
    """The defect against the number T of draws, on the left its mean ± standard error, on the right its spread.

    On the left a thin line is the reference plus c/T, through the first biased mean, on the right the slopes −1/2 and
    −1, through the first unbiased spread. The defect's axis is logarithmic where no bar reaches zero; otherwise it
    goes through zero and is linear in the shaded band.

    :param DefectSweep sweep: of :func:`~pyro_equivariance.metrics.defect_sweep`.
    :raises DataError: for something else.

    >>> import torch
    >>> sweep = metrics.defect_sweep(lambda draws, independent: torch.randn(draws, 4, 5, 3), sizes=(2, 4), repeats=5)
    >>> [ax.get_title() for ax in defect_sweep(sweep).axes]
    ['mean ± standard error', 'spread over re-evaluations']
    """
    if not isinstance(sweep, metrics.DefectSweep):
        raise wrong_kind("the result of metrics.defect_sweep", sweep)
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
    legend_below(figure, (left, right))
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
    epsilons, deltas = _numbers(epsilons), _numbers(deltas)
    if not len(epsilons) or not len(deltas):
        raise DataError(f"Expected at least one epsilon and one delta; got {len(epsilons)} and {len(deltas)}.")
    ax = ax or Figure(figsize=(5.5, 3.6)).subplots()
    estimators = {"unbiased": "-"} if order is None else {"unbiased": "-", "biased": "--"}
    for i, delta in enumerate(deltas):
        for estimator, dash in estimators.items():
            draws = [metrics.sample_size(epsilon, delta, order, estimator) for epsilon in epsilons]
            label = f"{estimator}, δ = {delta:g}"
            ax.loglog(epsilons, draws, dash, color=CYCLE[i % len(CYCLE)], lw=1.2, label=label)
    ax.set(xlabel="deviation ε of the defect (squared difference of probabilities)", ylabel="posterior draws T")
    ax.grid(color="0.9", lw=0.6)
    ax.legend(loc="lower left")
    return ax


def _numbers(values: Sequence[float]) -> list[float]:
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise wrong_kind("a list of numbers", values) from error


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
        mean, se = as_array(series.mean), as_array(series.se)
        ax.errorbar(sizes * shift, mean, se, fmt=marker, color=color, ms=4, lw=1.2, capsize=2.5, label=name)
        ends += [pair for pair in zip(mean, se, strict=True) if np.isfinite(pair).all()]
    fine = np.geomspace(sizes[0], sizes[-1], 100)
    excess = float(sweep.excess[0]) * sizes[0] / fine
    ax.plot(fine, sweep.reference.value + excess, color=BLACK, lw=0.7, label="reference + c/T")
    if min(mean - se for mean, se in ends) > 0:
        ax.set_yscale("log")
    else:
        linear = linear_width(ends)
        ax.axhspan(-linear, linear, color="0.93", lw=0, label="linear scale")
        ax.axhline(0, color=BLACK, lw=0.8)
        scale_through_zero(ax, ends, linear, "y")
    ax.set(title="mean ± standard error", ylabel="defect (squared difference)")


def _sweep_spreads(ax: Axes, sweep: metrics.DefectSweep) -> None:
    sizes = np.array(sweep.sizes)
    for name, series, color, marker in _estimators(sweep):
        ax.errorbar(sizes, as_array(series.spread), as_array(series.spread_se), fmt=marker, color=color, ms=4, lw=1.2,
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
