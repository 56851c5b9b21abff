"""What the pictures share: the only importer of matplotlib, the style and the colours, axes through zero, files."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path

import numpy as np
import torch

from ..errors import DataError

try:  # the sibling modules take from here what this one does not use itself
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase  # noqa: F401
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch, Rectangle
    from matplotlib.ticker import MaxNLocator, NullLocator  # noqa: F401
except ImportError as error:
    error.add_note('Install it with: pip install "pyro-equivariance[plots]"')
    raise

# The colours of Okabe and Ito (2008), which colour-blind readers tell apart, less the yellow, too pale for thin lines.
BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK = CYCLE = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000"
)  # fmt: skip
GREY = "0.6"
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "D", "s", "^", "v", "P", "X")
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 2.2,
    "figure.constrained_layout.use": True,
}
DPI = 150
PER_ROW = 8  # pictures side by side
DECADES = 6  # below the largest defect, where rounding errors begin
STEEP = 30  # ratio of the largest to the smallest loss from which on the axis is logarithmic


def styled(draw: Callable) -> Callable:
    """Draw with this module's style on matplotlib's defaults; the user's settings are back afterwards."""

    @wraps(draw)
    def styled(*args, **kwargs):
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)
            return draw(*args, **kwargs)

    return styled


def save(figure: Figure | Axes, path: str | os.PathLike) -> None:
    """Write a PNG at 150 dots per inch, whole or not at all.

    :param figure: a figure, or axes of it.
    :param path: the file, in a folder that exists.
    :raises DataError: for something that is neither.
    """
    figure = figure.get_figure() if isinstance(figure, Axes) else figure
    if not callable(getattr(figure, "savefig", None)):
        raise wrong_kind("a figure or axes", figure)
    write_whole(path, lambda part: figure.savefig(part, format="png", dpi=DPI))


def write_whole(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path`` that then takes its place; a failure leaves what was there."""
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def wrong_kind(expected: str, value: object) -> DataError:
    """The error for an argument that is of no use for a picture.

    >>> wrong_kind("a tensor", "net.nc")
    DataError('Expected a tensor; got str.')
    """
    kind = type(value).__name__
    known = kind in ("InferenceData", "DataTree", "Dataset", "DataArray")
    way_out = " Draw ArviZ data with pe.plots.report, or pass a variable's .values." if known else ""
    return DataError(f"Expected {expected}; got {kind}.{way_out}")


def as_tensor(values) -> torch.Tensor:
    """Numbers of any kind; data of another kind are an error."""
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, LookupError) as error:
        raise wrong_kind("a tensor or an array of numbers", values) from error


def as_tensors(values) -> dict[str, torch.Tensor]:
    """Tensors by name, a single one by the empty name."""
    return {name: as_tensor(own) for name, own in (values.items() if isinstance(values, Mapping) else [("", values)])}


def as_array(values) -> np.ndarray:
    """Numbers of any kind in double precision."""
    return as_tensor(values).detach().cpu().double().numpy()


def as_number(value: float | None) -> float:
    """NaN for what is not there."""
    return float("nan") if value is None else float(value)


def checked_names(names: Sequence[str] | None, count: int, what: str) -> list[str]:
    """A name for each of ``count`` things, by default empty.

    :raises DataError: for another number of names.
    """
    names = [""] * count if names is None else list(names)
    if len(names) != count:
        raise DataError(f"Expected a name for each {what}, {count}; got {len(names)}.")
    return names


def written(value: float | None, error: float | None = None) -> str:
    """A number, rounded to the place of the only digit of its error, where there is one.

    >>> written(0.12345, 0.0067), written(-2153.4, 4.2), written(29.4, 18.0), written(2.0, float("nan")), written(None)
    ('0.123 ± 0.007', '-2153 ± 4', '30 ± 20', '2', '')
    """
    if value is None or not np.isfinite(value):
        return "" if value is None else str(value)
    if error is None or not np.isfinite(error):
        return f"{value:.4g}"
    if error == 0 or error < abs(value) / 1e6:
        return f"{value:.6g} ± {error:.1g}" if value or error else "0"
    place = int(f"{error:.0e}".split("e")[1])
    value, error = (round(number, -place) for number in (value, error))
    if 1e-4 <= max(abs(value), error) < 1e6:
        return f"{value + 0.0:.{max(-place, 0)}f} ± {error:.{max(-place, 0)}f}"
    return f"{_scientific(value, place)} ± {_scientific(error, place)}"


def _scientific(value: float, place: int) -> str:
    """With digits down to a power of ten."""
    return f"{value:.{max(math.floor(math.log10(abs(value))) - place, 0)}e}" if value else "0"


def legend_above(ax: Axes) -> None:
    """A legend over the axes, bands last, in as many columns as have room."""
    pairs = sorted(zip(*ax.get_legend_handles_labels(), strict=True), key=lambda pair: isinstance(pair[0], Rectangle))
    handles, names = zip(*((handle, shortened(name, 40)) for handle, name in pairs), strict=True)
    # Before the layout, axes have about this share of their place, which they share with the labels on the left.
    place = ax.get_window_extent().width / ax.get_figure(root=True).dpi / 0.775
    beside = max((len(label.get_text()) for label in ax.get_yticklabels()), default=0)
    width = place - 0.4 - 5 / 72 * max(beside, 6)
    columns = legend_columns(names, width, 3)
    ax.legend(handles, names, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2)


def legend_columns(names: Sequence[str], width: float, most: int) -> int:
    """How many columns of a legend, filled one after another, fit in a width in inches; at least one."""
    for columns in range(min(most, len(names)), 1, -1):
        rows = -(-len(names) // columns)
        longest = [max(map(len, names[i : i + rows])) for i in range(0, len(names), rows)]
        if sum(4.5 * length + 40 for length in longest) - 16 <= 72 * width:
            return columns
    return 1


def legend_below(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all axes, each name once, points first."""
    known = {name: mark for ax in axes for mark, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    names = sorted(known, key=lambda name: isinstance(known[name], (Line2D, Patch)))
    figure.legend([known[name] for name in names], names, loc="outside lower center", ncols=len(names))


def linear_width(values: Sequence[tuple[float, float]]) -> float:
    """The power of ten up to which the axis is linear.

    It covers two standard errors of the narrowest estimate that cannot be told from zero; without such an estimate, it
    is below the smallest. What is ``DECADES`` decades below the largest is zero up to rounding, and does not count.
    """
    sizes = [(abs(value), 2 * error) for value, error in values]
    if not any(map(max, sizes)):
        return 1.0
    noise = [math.ceil(math.log10(width)) for size, width in sizes if size <= width and width > 0]
    signal = [math.floor(math.log10(size)) for size, width in sizes if size > width]
    lowest = max(noise + signal) - DECADES
    return 10.0 ** min([p for p in noise if p > lowest] or [p for p in signal if p > lowest])


def scale_through_zero(ax: Axes, values: Sequence[tuple[float, float]], linear: float, which: str = "x") -> None:
    """A symmetric logarithmic axis with a tick at zero and at a few powers of ten on either side."""
    ends = [1.6 * (value + sign * error) for value, error in values for sign in (-1, 1)]
    low, high = min(*ends, -0.3 * linear, 0.0), max(*ends, 1.2 * linear, 0.0)
    if 2 * linear < high < 10 * linear:
        high = 11 * linear
    ticks = [*(-t for t in reversed(powers(linear, -low))), 0.0, *powers(linear, high)]
    minor = [sign * k * 10.0**p for p in range(*decades(linear / 10, max(high, -low))) for k in range(1, 10)
             for sign in (-1, 1)]  # fmt: skip
    set_scale, set_limits, set_ticks = (getattr(ax, f"set_{which}{what}") for what in ("scale", "lim", "ticks"))
    set_scale("symlog", linthresh=linear)
    set_limits(low, high)
    set_ticks(ticks, [power_label(t) for t in ticks])
    set_ticks([t for t in minor if low <= t <= high], minor=True)


def decades(smallest: float, largest: float) -> tuple[int, int]:
    """The first exponent of ten from ``smallest``, a power of ten, to ``largest``, and the one after the last."""
    return round(math.log10(smallest)), math.floor(math.log10(largest)) + 1


def powers(smallest: float, largest: float) -> list[float]:
    """At most four powers of ten, evenly apart, from ``smallest`` on."""
    first, end = decades(smallest, largest)
    return [10.0**p for p in range(first, end, max((end - 1 - first) // 4, 0) + 1)]


def power_label(tick: float) -> str:
    """A power of ten of either sign as mathematics, or 0."""
    if tick == 0:
        return "0"
    return rf"${'-' if tick < 0 else ''}10^{{{round(math.log10(abs(tick)))}}}$"


def panels(count: int, per_row: int = PER_ROW) -> tuple[int, int]:
    """Columns, and rows of panels, for ``count`` pictures, filled evenly."""
    rows = -(-count // per_row)
    return -(-count // rows), rows


def remove_all(axes) -> None:
    """Take axes off their figure."""
    for ax in axes:
        ax.remove()


def show_picture(ax: Axes, picture: np.ndarray, **options):
    """Pixels ``(h, w)`` or ``(h, w, 3)`` without ticks or frame; options are those of ``imshow``."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax.imshow(picture, interpolation="nearest", **options)


def show_image(ax: Axes, image: np.ndarray) -> None:
    """An input ``(C, h, w)``: in colour with three channels, else the first in grey."""
    if len(image) == 3:
        show_picture(ax, image.transpose(1, 2, 0).clip(0, 1))
    else:
        show_picture(ax, image[0], cmap="gray")


def shortened(name: str, length: int) -> str:
    """The name, its middle left out where it is longer than ``length``.

    >>> shortened("a long name of a site", 9)
    'a lo…site'
    """
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[: length - 1 - half]}…{name[len(name) - half :]}"


def dodges(count: int, width: float = 0.6) -> np.ndarray:
    """Distances from a row, or a column, for each of the series that share it.

    >>> dodges(2, width=0.5).tolist()
    [-0.125, 0.125]
    """
    return (np.arange(count) - (count - 1) / 2) * min(0.3, width / max(count, 1))


def marks(count: int) -> list[dict]:
    """A colour and a marker for each of several series of points; hollow once the colours are used up."""
    return [
        {"color": CYCLE[i % len(CYCLE)], "fmt": MARKERS[i % len(MARKERS)], "ms": 3.5,
         "mfc": "white" if i >= len(CYCLE) else CYCLE[i]}
        for i in range(count)
    ]  # fmt: skip


def label_rows(ax: Axes, names: Sequence[str]) -> None:
    """A tick for each name along the vertical axis, the first on top; some, evenly apart, where there is no room."""
    room = 0.8 * ax.get_window_extent().height / ax.get_figure(root=True).dpi * 72 / len(names)
    every = max(1, math.ceil(10.5 / room))
    ax.set_yticks(range(0, len(names), every), names[::every])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.set_axisbelow(True)
    ax.grid(axis="x", color="0.9", lw=0.6)


def label_columns(ax: Axes, names: Sequence[str]) -> None:
    """A tick for each name along the horizontal axis; upright where they do not fit beside one another."""
    ax.set_xlim(-0.5, len(names) - 0.5)
    size = 8
    room = 0.8 * ax.get_window_extent().width / ax.get_figure(root=True).dpi * 72 / len(names)
    crowded = max(map(len, names)) * 0.65 * size > room
    every = max(1, math.ceil(1.25 * size / room))
    labels = [shortened(name, 16) for name in names]
    ax.set_xticks(range(0, len(names), every), labels[::every], rotation=90 if crowded else 0, fontsize=size)


def line_styles(count: int) -> list[tuple[str, str]]:
    """A colour and a dash for each of ``count`` lines."""
    return [(CYCLE[i % len(CYCLE)], DASHES[i // len(CYCLE) % len(DASHES)]) for i in range(count)]


def scale_to(ax: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis for steep positive values, and a note where there are none."""
    known = [v for v in values if math.isfinite(v)]
    if not known:
        ax.set(xticks=[], yticks=[])
        ax.text(0.5, 0.5, "not evaluated", transform=ax.transAxes, ha="center")
    elif min(known) > 0 and max(known) > STEEP * min(known):
        ax.set_yscale("log")
