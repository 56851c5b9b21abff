"""The picture of the study ``relaxed``: a function of what it returns."""

from collections.abc import Mapping

from ..plots.base import BLACK, BLUE, CYCLE, GREEN, RED, Figure, Line2D, MaxNLocator, styled

__all__ = ["relaxed"]

SETS = {
    "turned": (BLUE, "o", "turned at random"),
    "upright": (RED, "D", "upright"),
    "pose": (GREEN, "s", "a turned 6 is a 9"),
}
LAYERS = (1, 2, 3)


@styled
def relaxed(result: Mapping) -> Figure:
    """The scales by layer and set, one mark for each seed; the last layer's scale and multiplier while constrained."""
    figure = Figure(figsize=(10, 3.6))
    left, middle, right = figure.subplots(1, 3)
    rows = [r for r in result["rows"] if r["network"] == "relaxed"]
    for place, (name, (color, marker, words)) in enumerate(SETS.items()):
        ours = [r for r in rows if r["set"] == name]
        for layer in LAYERS:
            left.plot([layer + 0.22 * (place - 1)] * len(ours), [r[f"scale_{layer}"] for r in ours], marker,
                      color=color, ms=4, mfc="none", label=words if layer == 1 else None)  # fmt: skip
    left.set(yscale="log", xlabel="layer, from the input", ylabel="learned scale s", xlim=(0.5, 3.5))
    left.set_xticks(LAYERS)
    left.legend(loc="upper left")
    for color, row in zip(CYCLE, result["schedules"], strict=False):
        for ax, quantity in ((middle, "scale_3"), (right, "multiplier_3")):
            ax.plot(row["curves"][quantity], color=color, lw=1.2, label=f"ρ = {row['rho']}")
    alone = [r for r in rows if r["set"] == "upright" and r["seed"] == result["config"]["seeds"][0]]
    middle.axhline(alone[0]["scale_3"], color=BLACK, lw=0.9, ls="--")
    middle.set(xlabel="epoch", ylabel="scale of the last layer, upright", ylim=(0, None))
    right.set(xlabel="epoch", ylabel="its multiplier λ (nats)", yscale="symlog")
    for ax in (middle, right):
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    middle.legend(handles=[*middle.get_lines()[:-1], Line2D([], [], color=BLACK, lw=0.9, ls="--",
                           label="without a constraint, at the end")])  # fmt: skip
    return figure
