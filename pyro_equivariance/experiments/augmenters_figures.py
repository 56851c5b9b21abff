"""The picture of the study ``augmenters``: a function of what it returns."""

from collections.abc import Mapping

import numpy as np

from ..plots.base import BLACK, BLUE, GREEN, GREY, RED, Axes, Figure, NullLocator, styled

__all__ = ["augmenters"]

AIM = 5.0  # degrees
COLORS = {"helps": BLUE, "holds": GREEN, "undecided": GREY, "does not hold": RED}
PER_AXIS = 9  # arrows


@styled
def augmenters(result: Mapping) -> Figure:
    """Above the learned generators of the plane as vector fields; below angles, test errors and verdicts.

    Signs are arbitrary and shown alike; clouds have no field, their points being in space.
    """
    figure = Figure(figsize=(10, 6.2))
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.1))
    tasks = [s["task"] for s in result["summary"]]
    fields = [task for task in tasks if len(result["generators"][task][0][0]) == 2]
    for ax, task in zip(above.subplots(1, len(fields), squeeze=False)[0], fields, strict=True):
        _field(ax, np.array(result["generators"][task])[:, 0])
        ax.set_title(task)
    words = "learned generators, one arrow for each seed, signs arbitrary; those of the clouds, in space, have no field"
    above.supxlabel(words, fontsize="small")
    angles, errors, verdicts = below.subplots(1, 3)
    for place, task in enumerate(tasks):
        rows = [r for r in result["rows"] if r["task"] == task]
        at = place + np.linspace(-0.2, 0.2, len(rows)) * (len(rows) > 1)
        angles.plot(at, [r["angle"] for r in rows], "o", ms=4, color=BLUE)
        for name, color, marker in (("learned", BLUE, "o"), ("true", GREEN, "s")):
            ratios = [r[name] / r["plain"] for r in rows]
            errors.plot(at, ratios, marker, ms=4, color=color, label=None if place else name, mfc="none")
        for x, row in zip(at, rows, strict=True):
            _interval(verdicts, x, row)
    _finish(angles, tasks, "largest angle to the true span (degrees)", AIM)
    _finish(errors, tasks, "test error / without augmentation", 1.0)
    _finish(verdicts, tasks, "held-out loss minus that without", 0.0)
    errors.set_yscale("log")
    ticks = (0.25, 0.5, 1, 2, 4, 8)
    errors.set_yticks(ticks, [f"{t:g}" for t in ticks])
    errors.yaxis.set_minor_locator(NullLocator())
    errors.legend(loc="upper left")
    verdicts.set_yscale("symlog", linthresh=0.1)
    for word, color in COLORS.items():
        verdicts.plot([], [], "o", ms=4, color=color, label=word)
    verdicts.legend(loc="lower left")
    return figure


def _field(ax: Axes, matrices: np.ndarray) -> None:
    """The velocities of each seed's generator, signs alike, ``(seeds, 2, 2)``."""
    line = np.linspace(-1, 1, PER_AXIS)
    points = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    for matrix in matrices * np.sign(np.einsum("sij,ij->s", matrices, matrices[0]))[:, None, None]:
        u, v = (points @ matrix.T).T
        ax.quiver(*points.T, u, v, color=BLUE, alpha=max(0.25, 1 / len(matrices)), scale=18, width=0.007)
    ax.set(xticks=(), yticks=(), aspect="equal", xlim=(-1.35, 1.35), ylim=(-1.35, 1.35))
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)


def _interval(ax: Axes, x: float, row: Mapping) -> None:
    """A difference with two standard errors on either side, in the colour of its verdict."""
    ax.errorbar(x, row["difference"], 2 * row["difference_se"], fmt="o", ms=3, lw=0.9, color=COLORS[row["verdict"]])


def _finish(ax: Axes, tasks: list[str], label: str, line: float) -> None:
    ax.axhline(line, color=GREY if line else BLACK, lw=0.8, ls="--" if line else "-")
    ax.set(ylabel=label)
    ax.set_xticks(range(len(tasks)), tasks, rotation=30)
