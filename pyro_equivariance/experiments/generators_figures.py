"""The picture of the study ``generators``: a function of what it returns."""

from collections.abc import Mapping

import numpy as np

from ..plots.base import CYCLE, GREY, Figure, Line2D, MaxNLocator, styled

__all__ = ["generators"]

WIDTH = 0.6  # of the noises beside one another, in units of k


@styled
def generators(result: Mapping) -> Figure:
    """Singular values, a panel for each task and a colour for each noise; a mark for each seed."""
    tasks = list(dict.fromkeys(s["task"] for s in result["spectra"]))
    noises = sorted({s["noise"] for s in result["spectra"]})
    dimensions = {r["task"]: r["true"] for r in result["rows"]}
    figure = Figure(figsize=(2.2 * len(tasks), 3.2))
    axes = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for ax, task in zip(axes, tasks, strict=True):
        for i, noise in enumerate(noises):
            own = np.array([s["values"] for s in result["spectra"] if (s["task"], s["noise"]) == (task, noise)])
            places = np.arange(1, own.shape[1] + 1) + WIDTH * ((i + 0.5) / len(noises) - 0.5)
            ax.plot(places, own.T, ls="", marker="o", ms=2.5, color=CYCLE[i % len(CYCLE)])
        ax.axvline(dimensions[task] + 0.5, color="0.3", lw=0.9)
        ax.axhline(result["config"]["tolerance"], color=GREY, lw=0.9, ls="--")
        ax.set(title=task, xlabel="k", yscale="log")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("singular value")
    marks = [Line2D([], [], ls="", marker="o", ms=4, color=CYCLE[i % len(CYCLE)], label=f"noise {noise} %")
             for i, noise in enumerate(noises)]  # fmt: skip
    marks.append(Line2D([], [], color="0.3", lw=0.9, label="the function's dimension"))
    marks.append(Line2D([], [], color=GREY, lw=0.9, ls="--", label="tolerance"))
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks))
    return figure
