"""A report on one page: the panels that ArviZ data allow, and the table of what they say."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from torch import Tensor

from .. import metrics
from .base import (
    BLUE,
    GREY,
    PER_ROW,
    RED,
    Axes,
    Figure,
    FigureBase,
    Line2D,
    dodges,
    label_columns,
    legend_columns,
    line_styles,
    marks,
    panels,
    remove_all,
    shortened,
    show_image,
    written,
)
from .calibration import Scores, draw_reliability, draw_scores, reliability_bins, scores_by_element
from .comparisons import draw_defects, draw_method_intervals, draw_run_ranks
from .orbits import INTERVALS_PER_ROW, draw_intervals, draw_orbit, draw_orbit_beside
from .summary import ROUNDING, Evidence, Method, comparison, head_lines, moved_images, scalars
from .traces import NAMED_RUNS, draw_losses, traces

WIDTH = 8.27  # inches, of A4
BINS = 15
TABLE_SIZE = 6.3  # points
TABLE_COLUMNS = 150
LINE_HEIGHT = 1.42  # of a line of that table, in its size
RELIABILITY_PER_ROW = 5
PARAMETERS = 8


@dataclass(frozen=True)
class Panel:
    """A part of the page: what it shows, its height in inches, whether half the width is enough, and how to draw it."""

    title: str
    height: float
    half: bool
    draw: Callable[[FigureBase], object]


def draw_page(evidence: Evidence) -> Figure:
    """All panels below one another, halves in pairs."""
    rows: list[list[Panel]] = []
    for panel in [_head(evidence), *pictures(evidence), *_text_panels(evidence)]:
        if panel.half and rows and len(rows[-1]) == 1 and rows[-1][0].half:
            rows[-1].append(panel)
        else:
            rows.append([panel])
    heights = [max(panel.height for panel in row) for row in rows]
    figure = Figure(figsize=(WIDTH, sum(heights)))
    figure.get_layout_engine().set(w_pad=0.08)
    parts = np.atleast_1d(figure.subfigures(len(rows), 1, height_ratios=heights))
    for part, row in zip(parts, rows, strict=True):
        places = np.atleast_1d(part.subfigures(1, len(row))) if len(row) > 1 else [part]
        for place, panel in zip(places, row, strict=True):
            draw_panel(panel, place)
    return figure


def draw_panel(panel: Panel, place: FigureBase) -> None:
    """A panel with its title, in a part of a figure."""
    if panel.title:
        place.suptitle(panel.title, x=0.012, ha="left", fontsize=9, weight="bold")
    panel.draw(place)


def pictures(evidence: Evidence) -> list[Panel]:
    """The panels that the data allow."""
    several, first = evidence.several, evidence.first
    found = [_legend(evidence)] if several else []
    finite = any(method.finite for method in evidence.methods.values())
    if first.orbit is not None and finite:
        found.append(_orbit_panel(evidence))
    halves = {
        "defect": Panel("Defect of each group element", _defect_height(evidence), True,
                        lambda place: _draw_defects(place, evidence)),
        "losses": Panel("Training", 1.9, True, lambda place: _draw_losses(place, evidence)),
        "reliability": Panel("Reliability" + _pooled(first), 2.6, True, lambda place: _draw_pair(place, first)),
        "likelihood": Panel("Mean log likelihood of the draws", _likelihood_height(evidence), True,
                            lambda place: _draw_likelihood(place, evidence)),
    }  # fmt: skip
    have = {"defect": first.moves and finite, "reliability": first.calibrated and finite,
            "losses": first.array("variational", "loss") is not None,
            "likelihood": first.array("posterior", "mean_log_likelihood") is not None}  # fmt: skip
    before = ("defect", "losses") if several else ("defect", "reliability")
    found += [halves[name] for name in before if have[name]]
    found += [_parameter_panel(evidence)] if first.parameters else []
    if first.scored and finite:
        title = "Calibration under rotation: scores on each moved copy of the data"
        found.append(Panel(title, 1.8, False, lambda place: _draw_scores(place, evidence)))
    if several and have["reliability"]:
        rows = panels(len(evidence.methods), RELIABILITY_PER_ROW)[1]
        title = "Reliability" + _pooled(first)
        found.append(Panel(title, 0.5 + 1.5 * rows, False, lambda place: _draw_reliabilities(place, evidence)))
    return found + [halves[name] for name in ("losses", "likelihood") if name not in before and have[name]]


def _parameter_panel(evidence: Evidence) -> Panel:
    """Some scalars of the posterior, by run, or by method with its runs pooled."""
    total = sum(int(np.prod(array.shape[2:])) for array in evidence.first.parameters.values())
    shown = {name: scalars(method.parameters, PARAMETERS) for name, method in evidence.methods.items()}
    series = {
        name: {method: own[name].ravel() for method, own in shown.items()} if evidence.several
        else {f"run {i}": run for i, run in enumerate(draws)}
        for name, draws in next(iter(shown.values())).items()
    }  # fmt: skip
    count = len(next(iter(series.values())))
    each = count > 1 and not evidence.several
    title = "Parameters: median, 50 % and 90 % of " + ("each run's draws" if each else "the draws")
    title += f", {PARAMETERS} of {total:,}" if total > PARAMETERS else ""
    height = 0.3 + panels(len(series), INTERVALS_PER_ROW)[1] * (0.5 + 0.08 * max(count, 3))

    def draw(place: FigureBase) -> None:
        draw_intervals(place, series, marks(count))
        if each and count <= NAMED_RUNS:
            place.legend(*place.axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=count)

    return Panel(title, height, False, draw)


def _pooled(method: Method) -> str:
    return f", {method.chains} runs pooled" if method.chains > 1 else ""


def _head(evidence: Evidence) -> Panel:
    title, line = head_lines(evidence)
    lines = textwrap.wrap(line, 125)

    def draw(place: FigureBase) -> None:
        place.text(0.012, 0.95, title, size=12, weight="bold", va="top")
        place.text(0.012, 0.45 if len(lines) < 2 else 0.55, "\n".join(lines), size=8, color="0.25", va="top")

    return Panel("", 0.5 + 0.12 * max(len(lines) - 1, 0), False, draw)


# Panels


def _legend(evidence: Evidence) -> Panel:
    """Which colour, dash and marker is which method, in all panels."""
    count = len(evidence.methods)
    handles = [
        Line2D([], [], color=color, ls=dash, lw=1, marker=mark["fmt"], mfc=mark["mfc"], ms=4, label=shortened(name, 24))
        for name, (color, dash), mark in zip(evidence.methods, line_styles(count), marks(count), strict=True)
    ]
    columns = legend_columns([shortened(name, 24) for name in evidence.methods], WIDTH, 5)
    rows = -(-count // columns)

    def draw(place: FigureBase) -> None:
        place.legend(handles=handles, loc="center", ncols=columns, fontsize=8)

    return Panel("", 0.12 + 0.19 * rows, False, draw)


def _orbit_panel(evidence: Evidence) -> Panel:
    first, label = evidence.first, evidence.first.label(evidence.observation)
    shown = f"Predictive over the orbit of input {evidence.observation}"
    shown += f", class {label}" if label is not None and first.has_classes else ""
    elements = first.elements
    if len(elements) > PER_ROW:
        shown += f", {PER_ROW} of {len(elements)} elements"
    height = 2.35 if _copies(evidence) is not None else 1.8
    shown += ": mean, 90 % of draws" if evidence.several or not first.has_classes else ""
    return Panel(shown + _pooled(first), height, False, lambda place: _draw_orbit(place, evidence))


def _copies(evidence: Evidence) -> np.ndarray | None:
    x = evidence.first.image(evidence.observation)
    if x is None:
        return None
    moved = moved_images(x, evidence.first.elements, evidence.attrs, evidence.symmetry)
    return None if moved is None else moved[:PER_ROW]


def _draw_orbit(place: FigureBase, evidence: Evidence) -> None:
    first, n = evidence.first, evidence.observation
    names = [shortened(name, 10) for name in first.elements[:PER_ROW]]
    draws = {name: _pooled_draws(method, n) for name, method in evidence.methods.items()}
    copies = _copies(evidence)
    if evidence.several or not first.has_classes:
        _draw_values(place, copies, draws, names, first.label(n) if first.has_classes else None, first.has_classes)
        return
    (only,) = draws.values()
    if copies is not None:
        draw_orbit(place, copies, only, names, first.label(n), legend="lower right")
    else:
        draw_orbit_beside(place, first.image(n), only, names, first.label(n))


def _pooled_draws(method: Method, n: int) -> np.ndarray:
    """The draws of all runs for one input, ``(T, |G|, event)``, at most ``PER_ROW`` elements."""
    values = method.orbit.isel({method.orbit.dims[3]: n}).values
    return values.reshape(-1, *values.shape[2:3], max(1, int(np.prod(values.shape[3:]))))[:, :PER_ROW]


def _draw_values(
    place: FigureBase, copies: np.ndarray | None, draws: Mapping[str, np.ndarray], names: list[str], label: int | None,
    classes: bool,
) -> None:  # fmt: skip
    """One number for each element and method: the label's probability, or the first output; mean and 90 % of draws."""
    if classes and label is None:
        label = int(next(iter(draws.values()))[:, 0].mean(0).argmax())
    copies = () if copies is None else copies
    grid = place.add_gridspec(1 + bool(len(copies)), len(names), height_ratios=[1, 1.4] if len(copies) else [1])
    for g, copy in enumerate(copies):
        show_image(place.add_subplot(grid[0, g]), copy)
    ax = place.add_subplot(grid[-1, :])
    ax.set_axisbelow(True)
    ax.grid(axis="y", color="0.9", lw=0.6)
    styles, shifts = marks(len(draws)), dodges(len(draws), width=0.7)
    for values, style, shift in zip(draws.values(), styles, shifts, strict=True):
        mean, ends = values[..., label or 0].mean(0), np.quantile(values[..., label or 0], (0.05, 0.95), axis=0)
        bars = np.stack([mean - ends[0], ends[1] - mean]).clip(0)
        ax.errorbar(np.arange(len(names)) + shift, mean, bars, lw=0.9, **style | {"fmt": style["fmt"], "ls": "none"})
    ax.set_ylabel(f"probability\nof class {label}" if classes else "output")
    if classes:
        ax.set_ylim(-0.03, 1.03)
    label_columns(ax, names)


def _defect_height(evidence: Evidence) -> float:
    if not evidence.first.moves:
        return 0.0
    count = min(len(evidence.first.elements), 12)
    return min(max(2.1, 0.8 + count * max(0.2, 0.045 * len(evidence.methods))), 2.9)


def _draw_defects(place: FigureBase, evidence: Evidence) -> None:
    estimates = {name: method.defects for name, method in evidence.methods.items()}
    draw_defects(place.subplots(), estimates, evidence.first.elements, legend=not evidence.several)


def _draw_losses(place: FigureBase, evidence: Evidence) -> None:
    series = [
        trace if not name else type(trace)(name, None, trace.unit, trace.at, trace.values, trace.errors)
        for name, method in evidence.methods.items()
        for trace in traces(method.groups["variational"], "loss")
    ]
    draw_losses(place.subplots(), series, legend=not evidence.several)


def _series(method: Method) -> dict[str, tuple[Tensor, Tensor]]:
    series = {"upright": (method.upright, method.labels)}
    if method.scored:
        series["all moved copies"] = (method.orbit_mean, method.orbit_labels)
    return series


def _draw_pair(place: FigureBase, method: Method) -> None:
    draw_reliability(place.subplots(), _series(method), BINS)


def _draw_reliabilities(place: FigureBase, evidence: Evidence) -> None:
    """Small axes, one for each method, with the errors of both series in the title."""
    columns, rows = panels(len(evidence.methods), RELIABILITY_PER_ROW)
    grid = place.subplots(rows, max(columns, 3), squeeze=False, sharex=True, sharey=True)
    for ax, (name, method) in zip(grid.flat, evidence.methods.items(), strict=False):
        errors = draw_small_reliability(ax, _series(method)) if method.finite else []
        second = "ECE " + ", ".join(f"{e:.3f}" for e in errors) if method.finite else "not finite"
        ax.set_title(f"{shortened(name, 20)}\n{second}", fontsize=8)
    remove_all(grid.flat[len(evidence.methods) :])
    place.supxlabel("confidence", fontsize=9)
    place.supylabel("accuracy", fontsize=9)
    finite = [ax for ax, method in zip(grid.flat, evidence.methods.values(), strict=False) if method.finite]
    place.legend(*finite[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)


def draw_small_reliability(ax: Axes, series: Mapping[str, tuple]) -> list[float]:
    """Reliability of each method in small axes of its own."""
    low = 0.5 if next(iter(series.values()))[0].shape[-1] == 2 else 0.0
    ax.plot([0, 1], [0, 1], "--", color=GREY, lw=0.8, label="calibrated")
    for (name, (probs, labels)), color, marker in zip(series.items(), (BLUE, RED), "oD", strict=False):
        b = reliability_bins(probs, labels, BINS)
        bars = np.stack([b.accuracy - b.low, b.high - b.accuracy]).clip(0)
        ax.errorbar(b.confidence, b.accuracy, bars, fmt=marker, color=color, ms=2.2, lw=0.7, label=name)
    ax.set(xlim=(low - 0.02, 1.02), ylim=(-0.02, 1.02), xticks=[low, (low + 1) / 2, 1])
    return [metrics.calibration_error(probs, labels, BINS).item() for probs, labels in series.values()]


def _draw_scores(place: FigureBase, evidence: Evidence) -> None:
    scores = {name: run_mean_scores(method) for name, method in evidence.methods.items()}
    draw_scores(place, scores, evidence.first.elements, legend=False)


def run_mean_scores(method: Method) -> Scores:
    """The means over runs of their scores, and the root mean squares of their errors: what is typical of one run."""
    if not method.finite:
        return Scores(*[np.full(len(method.elements), np.nan)] * len(fields(Scores)))
    runs = [scores_by_element(*run, BINS) for run in zip(method.orbit_mean, method.orbit_labels, strict=True)]
    every = {f.name: np.stack([getattr(run, f.name) for run in runs]) for f in fields(Scores)}
    return Scores(**{n: np.sqrt((v**2).mean(0)) if n.endswith("_se") else v.mean(0) for n, v in every.items()})


def _likelihood_height(evidence: Evidence) -> float:
    return max(1.9, 0.1 + 0.24 * len(evidence.methods))


def _draw_likelihood(place: FigureBase, evidence: Evidence) -> None:
    values = {n: m.array("posterior", "mean_log_likelihood").values for n, m in evidence.methods.items()}
    ax = place.subplots()
    if evidence.several:
        draw_method_intervals(ax, values)
        return
    (runs,) = values.values()
    if len(runs) > 1:
        draw_run_ranks(ax, runs)
    else:
        ax.plot(runs[0], color=BLUE, lw=0.7)
        ax.set(xlabel="draw", ylabel="log likelihood\n(nats per datum)")


# Tables


def _text_panels(evidence: Evidence) -> list[Panel]:
    lines: list[str] = []
    title = ""
    if evidence.several:
        title = "Methods"
        note = "upright: accuracy on upright data; accuracy, NLL (nats per datum) and ECE: over all moved copies"
        head, rows = comparison(evidence.methods)
        lines = _aligned(head[:-1], [row[:-1] for row in rows])  # the last column is a panel
        lines += ["", *textwrap.wrap(note, 72)]
    elif evidence.diagnoses and (rows := diagnosis_rows(next(iter(evidence.diagnoses.values())))):
        title, lines = "Diagnosis", _diagnosis_lines(rows)
    lines += textwrap.wrap(evidence.missing, 72 if evidence.several else TABLE_COLUMNS)
    if not lines:
        return []

    height = 0.3 + len(lines) * TABLE_SIZE * LINE_HEIGHT / 72 + 0.08

    def draw(place: FigureBase) -> None:
        top = 1 - (0.3 if title else 0.05) / height
        place.text(0.012, top, "\n".join(lines), size=TABLE_SIZE, family="monospace", va="top")

    return [Panel(title, height, evidence.several, draw)]


def diagnosis_rows(diagnosis) -> list[tuple[str, str, str, str, str]]:
    """Section, name, value with its error, spread over runs, and verdict, as texts."""
    return [(str(row.section), str(row.name), _number(row), _spread(row.spread), str(row.verdict))
            for row in getattr(diagnosis, "rows", diagnosis)]  # fmt: skip


def _number(row) -> str:
    """The value with its error; zero where it is one up to rounding, as a verdict says for the unit of the outputs."""
    small = row.name == "symmetric_kl" and row.value is not None and abs(row.value) < ROUNDING
    return "0" if small or str(row.verdict).startswith("0 up to rounding") else written(row.value, row.se)


def _spread(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.2g}"


def _diagnosis_lines(rows: Sequence[tuple[str, ...]]) -> list[str]:
    name, value, spread = (max([len(head), *(min(len(r[i]), 44) for r in rows)])
                           for i, head in ((1, ""), (2, "value ± se"), (3, "spread")))  # fmt: skip
    rest = max(TABLE_COLUMNS - name - value - spread - 6, 20)
    lines = [f"{'':<{name}}  {'value ± se':<{value}}  {'spread':<{spread}}  verdict"]
    section = None
    for own, *cells, verdict in rows:
        if own != section:
            lines.append(own.upper() if own else "")
            section = own
        first, *others = textwrap.wrap(verdict, rest) or [""]
        lines.append(f"{shortened(cells[0], 44):<{name}}  {cells[1]:<{value}}  {cells[2]:<{spread}}  {first}".rstrip())
        lines += [" " * (name + value + spread + 6) + more for more in others]
    return lines


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[shortened(row[0], 20), *row[1:]] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
