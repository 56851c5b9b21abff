"""Training: losses and defects over epochs or optimizer steps."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from ..errors import DataError
from ..training import FitResult
from .base import (
    BLACK,
    Axes,
    Figure,
    MaxNLocator,
    as_number,
    legend_above,
    line_styles,
    linear_width,
    scale_through_zero,
    scale_to,
    styled,
    wrong_kind,
)

METHOD = "method_name"
NAMED_RUNS = 7  # of one method; more runs share a colour
RUNS = "the group variational of ArviZ data, (chain, step), a FitResult or its history, or several of these"

Run = FitResult | Mapping[str, Sequence[float]]
Runs = xr.Dataset | Run | Sequence[Run] | Mapping[str, Run | Sequence[Run]]


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
    if not isinstance(histories, Mapping) or not all(
        isinstance(run, Mapping) for several in histories.values() for run in several
    ):
        raise wrong_kind("a dict of lists of histories by method", histories)
    if not any(histories.values()):
        raise DataError("Expected at least one training history; got none.")
    figure = Figure(figsize=(7.2, 3.0))
    figure.get_layout_engine().set(wspace=0.06)
    axes = figure.subplots(1, 2)
    for ax, key, title in zip(axes, ("loss", "validation"), ("training loss", "validation NLL"), strict=True):
        for (color, dash), (method, several) in zip(line_styles(len(histories)), histories.items(), strict=True):
            for i, history in enumerate(several):
                _draw_line(ax, history[key], color=color, ls=dash, label=None if i else method)
        ax.set(title=title, xlabel="epoch", ylabel="nats per datum")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        scale_to(ax, [as_number(v) for several in histories.values() for history in several for v in history[key]])
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center")
    return figure


@styled
def elbo(runs: Runs, ax: Axes | None = None) -> Axes:
    """The loss −ELBO/N of several runs over optimizer steps or epochs, in nats per datum.

    A colour and a dash for each method, or for each run of one. The axis is logarithmic where all losses are positive
    and span more than a factor of 30. Elsewhere a start that is far above the rest is cut off: the axis then shows the
    last three quarters of the steps in full.

    :param runs: the group ``variational`` of ArviZ data, ``(chain, step)``, also with ``method_name``; or a
        :class:`~pyro_equivariance.FitResult` or its ``history``, a list of them, or a dict of either by method.
    :param Axes ax: where to draw; ``None`` for a new figure.
    :raises DataError: for no run, or one without a loss.

    >>> ax = elbo({"symmetric": {"loss": [2.0, 1.0]}, "baseline": {"loss": [2.5, 1.5]}})
    >>> ax.get_xlabel(), [line.get_ydata().tolist() for line in ax.get_lines()]
    ('epoch', [[2.0, 1.0], [2.5, 1.5]])
    """
    return draw_losses(ax, traces(runs, "loss"))


@styled
def defect_training(runs: Runs, ax: Axes | None = None) -> Axes:
    """The defect ± its standard error over epochs or optimizer steps, where it was evaluated.

    The axis goes through zero, as that of :func:`defect` does: linear in the shaded band, logarithmic outside.

    :param runs: as for :func:`elbo`, with ``defect`` and ``defect_se``, NaN where they were not evaluated; without
        ``defect_se`` a point has no bar.
    :param Axes ax: where to draw; ``None`` for a new figure.
    :raises DataError: for no run, one without a defect, or none in which it was ever evaluated.

    >>> nan = float("nan")
    >>> ax = defect_training({"defect": [0.1, nan, 0.001], "defect_se": [0.01, nan, 0.001]})
    >>> ax.containers[0].lines[0].get_xdata().tolist()
    [1.0, 3.0]
    """
    series = traces(runs, "defect", "defect_se")
    known = [(v, e) for s in series for v, e in zip(s.values, np.nan_to_num(s.errors), strict=True)]
    if not known:
        raise DataError("Expected a defect that was evaluated at least once; got NaN only.")
    ax = ax or Figure(figsize=(5.5, 3.4)).subplots()
    linear = linear_width(known)
    ax.axhspan(-linear, linear, color="0.93", lw=0, label="linear scale")
    ax.axhline(0, color=BLACK, lw=0.8)
    for s, (color, dash) in zip(series, _colors(series), strict=True):
        bars = None if np.isnan(s.errors).all() else np.nan_to_num(s.errors)
        ax.errorbar(s.at, s.values, bars, color=color, ls=dash, fmt="o", ms=3, lw=1, capsize=2, label=s.label)
    scale_through_zero(ax, known, linear, "y")
    ax.set(xlabel=series[0].unit, ylabel="equivariance defect\n(squared difference)")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    legend_above(ax)
    return ax


@dataclass(frozen=True, eq=False)
class Trace:
    """What one run recorded: ``values`` and ``errors`` at the finite ones of its steps or epochs, ``at``."""

    method: str
    label: str | None
    unit: str
    at: np.ndarray
    values: np.ndarray
    errors: np.ndarray


def traces(runs: Runs, name: str, error: str = "") -> list[Trace]:
    """The runs' records of one quantity. A method's first run carries its name; runs of one method have numbers."""
    unit, by_method = _recorded(runs)
    found = []
    for method, several in by_method.items():
        for i, (steps, record) in enumerate(several):
            if name not in record:
                raise DataError(f"Expected {name!r} in the record of each run; got {', '.join(record) or 'nothing'}.")
            values = np.array([as_number(v) for v in record[name]])
            errors = (
                np.array([as_number(v) for v in record[error]]) if error in record else np.full(len(values), np.nan)
            )
            known = np.isfinite(values)
            label = None if i else method
            if len(by_method) == 1 and 1 < len(several) <= NAMED_RUNS:
                label = f"{method}, run {i}" if method else f"run {i}"
            found.append(Trace(method, label, unit, steps[known], values[known], errors[known]))
    if not found:
        raise DataError("Expected at least one run; got none.")
    return found


def draw_losses(ax: Axes | None, series: Sequence[Trace], legend: bool = True) -> Axes:
    """The lines of :func:`elbo`, one for each series."""
    ax = ax or Figure(figsize=(5.5, 3.2)).subplots()
    for s, (color, dash) in zip(series, _colors(series), strict=True):
        marker = "." if len(s.at) < 3 else None
        ax.plot(s.at, s.values, color=color, ls=dash, lw=0.9, marker=marker, ms=4, label=s.label)
    ax.set(xlabel=series[0].unit, ylabel="loss −ELBO/N\n(nats per datum)")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    values = np.concatenate([s.values for s in series])
    scale_to(ax, values)
    if len(values) and values.min() <= 0:
        _cut_start(ax, series)
    if legend and any(s.label for s in series):
        legend_above(ax)
    return ax


def _cut_start(ax: Axes, series: Sequence[Trace]) -> None:
    """Show the last three quarters in full, where the whole is more than ten times as high."""
    late = np.concatenate([s.values[len(s.values) // 4 :] for s in series])
    whole, low, high = np.concatenate([s.values for s in series]), late.min(), late.max()
    if np.ptp(whole) > 10 * (high - low) > 0:
        margin = 0.1 * (high - low)
        ax.set_ylim(low - margin, high + margin)


def _colors(series: Sequence[Trace]) -> list[tuple[str, str]]:
    """A style for each method, or for each run where there is one method of few."""
    methods = list(dict.fromkeys(s.method for s in series))
    if len(methods) == 1 and len(series) <= NAMED_RUNS:
        return line_styles(len(series))
    styles = dict(zip(methods, line_styles(len(methods)), strict=True))
    return [styles[s.method] for s in series]


def _recorded(runs: Runs) -> tuple[str, dict[str, list[tuple[np.ndarray, Mapping]]]]:
    """The unit of the horizontal axis, and for each method its runs: steps, and what was recorded at them."""
    if isinstance(runs, xr.Dataset):
        if not {"chain", "step"} <= set(runs.dims):
            raise wrong_kind(RUNS, runs)
        return "optimizer step", _of_dataset(runs)
    if isinstance(runs, FitResult) or not isinstance(runs, Mapping) or "loss" in runs or "defect" in runs:
        runs = {"": runs}
    histories = {method: _as_histories(several) for method, several in runs.items()}
    return "epoch", {
        method: [(np.arange(1.0, 1 + max(map(len, h.values()), default=0)), h) for h in several]
        for method, several in histories.items()
    }


def _as_histories(runs: Run | Sequence[Run]) -> list[Mapping]:
    several = [runs] if isinstance(runs, FitResult | Mapping) or not isinstance(runs, Iterable) else list(runs)
    known = (isinstance(run, FitResult | Mapping) and not isinstance(run, xr.Dataset | xr.DataTree) for run in several)
    if not all(known):
        raise wrong_kind(RUNS, runs)
    return [run.history if isinstance(run, FitResult) else run for run in several]


def _of_dataset(runs: xr.Dataset) -> dict[str, list[tuple[np.ndarray, Mapping]]]:
    by_method = {str(m): runs.sel({METHOD: m}) for m in runs[METHOD].values} if METHOD in runs.dims else {"": runs}
    return {
        method: [
            (dataset["step"].values.astype(float), {name: row.values for name, row in run.items() if row.ndim == 1})
            for run in (dataset.isel(chain=c) for c in range(dataset.sizes["chain"]))
        ]
        for method, dataset in by_method.items()
    }


def _draw_line(ax: Axes, values: Sequence[float], **options) -> None:
    values = np.array([as_number(v) for v in values])
    epochs = np.flatnonzero(np.isfinite(values))
    ax.plot(epochs + 1, values[epochs], lw=0.9, marker="." if len(epochs) < 3 else None, ms=4, **options)
