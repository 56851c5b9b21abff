"""The picture of the study ``affine``: a function of what it returns."""

import math
from collections.abc import Mapping

import numpy as np

from ..plots.base import CYCLE, MARKERS, Axes, Figure, Line2D, styled

__all__ = ["affine"]

WIDTHS = ("rotate", "translate_x", "translate_y", "scale", "stretch", "shear")
SPREAD = 0.7  # of the forms beside one another, in units of the generators' places


@styled
def affine(result: Mapping) -> Figure:
    """The learned width of each generator, a panel for each task, a colour for each form and a mark for each seed."""
    tasks, forms = (list(dict.fromkeys(r[key] for r in result["rows"])) for key in ("task", "form"))
    figure = Figure(figsize=(10, 6.4))
    axes = figure.subplots(-(-len(tasks) // 2), 2, sharey=True, squeeze=False)
    for ax, task in zip(axes.flat, tasks, strict=True):
        for i, form in enumerate(forms):
            rows = [r for r in result["rows"] if (r["task"], r["form"]) == (task, form)]
            shift = SPREAD * ((i + 0.5) / len(forms) - 0.5)
            for place, name in enumerate(WIDTHS):
                values = [r[name] for r in rows]
                ax.plot([place + shift] * len(rows), values, MARKERS[i], mfc="none", ms=4, color=CYCLE[i])
        _rules(ax, result["config"]["start"], next(r["pixel"] for r in result["rows"] if r["task"] == task))
        ax.set(title=task, yscale="log")
        ax.set_xticks(np.arange(len(WIDTHS)), [name.replace("_", "\n") for name in WIDTHS])
    figure.supylabel("width (radians, half widths, log factors)", fontsize=9)
    marks = [Line2D([], [], ls="", marker=MARKERS[i], mfc="none", ms=4, color=CYCLE[i], label=form)
             for i, form in enumerate(forms)]  # fmt: skip
    marks += [Line2D([], [], color="0.3", lw=0.9, label="found from here on: π/2, one pixel"),
              Line2D([], [], color="0.6", lw=0.9, ls="--", label="start")]  # fmt: skip
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks))
    return figure


def _rules(ax: Axes, start: float, pixel: float) -> None:
    """The start of all widths, and where a rotation and a translation count as found."""
    ax.axhline(start, color="0.6", lw=0.9, ls="--")
    for first, last, level in ((-0.4, 0.4, math.pi / 2), (0.6, 2.4, pixel)):
        ax.plot([first, last], [level, level], color="0.3", lw=0.9)
