"""The picture of the study ``breaking``: a function of what it returns."""

from collections.abc import Mapping

from ..plots.base import BLACK, BLUE, RED, Figure, Line2D, styled

__all__ = ["breaking"]

EXPECTED = {"no": (BLUE, "o", "the images are symmetric under the group"), "yes": (RED, "D", "they are not")}


@styled
def breaking(result: Mapping) -> Figure:
    """The score of every group with its interval, one panel for each way that the images were turned, by seed."""
    rows = result["rows"]
    poses, groups, seeds = (list(dict.fromkeys(r[column] for r in rows)) for column in ("pose", "group", "seed"))
    figure = Figure(figsize=(9, 3.2))
    for ax, pose in zip(figure.subplots(1, len(poses), sharey=True), poses, strict=True):
        for row in (r for r in rows if r["pose"] == pose):
            color, marker, _ = EXPECTED[row["expected"]]
            shift = 0.6 * ((seeds.index(row["seed"]) + 0.5) / len(seeds) - 0.5)
            ends = [[row["accuracy"] - row["low"]], [row["high"] - row["accuracy"]]]
            ax.errorbar(groups.index(row["group"]) + shift, row["accuracy"], ends, color=color, fmt=marker, ms=3.5,
                        lw=1)  # fmt: skip
        ax.axhline(0.5, color=BLACK, lw=0.8, ls="--")
        ax.set(title=pose if pose == "upright" else f"turned by {pose}", xlabel="group", xlim=(-0.5, len(groups) - 0.5))
        ax.set_xticks(range(len(groups)), groups)
    figure.axes[0].set(ylabel="held-out accuracy", ylim=(None, 1.02))
    marks = [Line2D([], [], color=c, marker=m, ls="", ms=3.5, label=words) for c, m, words in EXPECTED.values()]
    marks.append(Line2D([], [], color=BLACK, lw=0.8, ls="--", label="0.5: no difference"))
    figure.legend(handles=marks, loc="outside lower center", ncols=3)
    return figure
