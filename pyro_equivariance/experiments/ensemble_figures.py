"""The picture of the study ``ensembles``: a function of what it returns."""

from collections.abc import Mapping

import numpy as np

from ..plots.base import BLUE, GREEN, ORANGE, RED, Axes, Figure, Line2D, NullLocator, styled

__all__ = ["ensembles"]

STYLES = {
    "symmetric": (BLUE, "o"),
    "asymmetric, symmetric start": (GREEN, "s"),
    "asymmetric": (RED, "D"),
    "symmetric, offset start": (ORANGE, "^"),
}


@styled
def ensembles(result: Mapping) -> Figure:
    """Defect and symmetric KL of each ensemble's mean against its size, and the relative defect against the epoch."""
    figure = Figure(figsize=(10, 3.8))
    axes = figure.subplots(1, 3)
    last = max(r["epoch"] for r in result["rows"])
    for name, (color, marker) in STYLES.items():
        rows = [r for r in result["rows"] if r["ensemble"] == name]
        for seed in result["config"]["seeds"]:
            ours = [r for r in rows if r["seed"] == seed]
            by_size = [r for r in ours if r["epoch"] == last]
            for ax, quantity in zip(axes, ("defect", "symmetric_kl"), strict=False):
                _against_size(ax, by_size, quantity, color, marker)
            if (level := by_size[-1]["unbiased"]) > by_size[-1]["unbiased_se"]:
                axes[0].axhline(level, color=color, lw=0.9, ls="--")
            axes[2].plot([r["epoch"] for r in ours if r["relative"] == r["relative"]],
                         [r["relative"] for r in ours if r["relative"] == r["relative"]], color=color, marker=marker,
                         ms=4, lw=1)  # fmt: skip
    sizes = sorted({r["members"] for r in result["rows"] if r["epoch"] == last})
    for ax, label in zip(
        axes, ("plug-in defect (squared probability difference)", "symmetric KL (nats)"), strict=False
    ):
        ax.set(xscale="log", yscale="log", xlabel="members M", ylabel=label)
        ax.set_xticks(sizes[::2], [str(s) for s in sizes[::2]])
        ax.xaxis.set_minor_locator(NullLocator())
    axes[2].set_yscale("symlog", linthresh=1e-3)
    axes[2].axhline(0, color="0.4", lw=0.8)
    axes[2].set(xlabel="epoch", ylabel="unbiased defect / variation of F")
    marks = [Line2D([], [], color=c, marker=m, ms=4, lw=1, label=name) for name, (c, m) in STYLES.items()]
    marks.append(Line2D([], [], color="0.3", lw=0.9, ls="--", label="unbiased, where it is above its error"))
    figure.legend(handles=marks, loc="outside lower center", ncols=5)
    return figure


def _against_size(ax: Axes, rows: list[Mapping], quantity: str, color: str, marker: str) -> None:
    values = np.array([r[quantity] for r in rows])
    ends = np.array([[r[f"{quantity}_low"], r[f"{quantity}_high"]] for r in rows]).T
    away = np.abs(ends - values)
    away[0] = np.minimum(away[0], 0.9 * values)  # the lower end of a wide interval is not positive
    ax.errorbar([r["members"] for r in rows], values, away, color=color, fmt=marker, ls="-", ms=4, lw=0.9, capsize=2)
