"""Inputs, kernels and parameters with their moved copies."""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from ..errors import DataError
from ..symmetry import Symmetry
from .base import (
    BLACK,
    GREY,
    PER_ROW,
    RED,
    SKY,
    STYLE,
    Axes,
    Figure,
    FigureBase,
    Line2D,
    MaxNLocator,
    Patch,
    as_array,
    as_tensors,
    checked_names,
    marks,
    panels,
    remove_all,
    shortened,
    show_image,
    show_picture,
    styled,
    wrong_kind,
)

SHOWN_ELEMENTS = 14  # as many copies have a colour and a marker of their own
SHOWN_DRAWS = 300
INTERVALS_PER_ROW = 4


@styled
def kernels(before, after, names: Sequence[str] | None = None, labels: Sequence[str] = ("before", "after")) -> Figure:
    """The same kernels before and after symmetrization, one above the other, on one colour scale around zero.

    :param Tensor before: ``(K, h, w)``.
    :param Tensor after: of the same shape.
    :param names: a title for each kernel.
    :param labels: what the two rows are called.
    :raises DataError: for shapes that differ, or a wrong number of names.

    >>> import torch
    >>> figure = kernels(torch.randn(3, 5, 5), torch.zeros(3, 5, 5))
    >>> len(figure.axes)  # two for each kernel, and the colour bar
    7
    """
    before, after = as_array(before), as_array(after)
    if before.shape != after.shape or before.ndim != 3 or not before.size:
        raise DataError(f"Expected kernels (K, h, w), as many before as after; got {before.shape} and {after.shape}.")
    names = checked_names(names, len(before), "kernel")
    largest = max(abs(before).max(), abs(after).max()) or 1.0
    columns, rows = panels(len(before))
    figure = Figure(figsize=(0.9 * columns + 1.5, 2.05 * rows + 0.1), layout="compressed")
    grid = figure.subplots(2 * rows, columns, squeeze=False)
    for k in range(columns * rows):
        pair = grid[2 * (k // columns) : 2 * (k // columns) + 2, k % columns]
        if k >= len(before):
            remove_all(pair)
            continue
        for ax, kernel, label in zip(pair, (before[k], after[k]), labels, strict=True):
            picture = show_picture(ax, kernel, cmap="RdBu_r", vmin=-largest, vmax=largest)
            if k % columns == 0:
                ax.set_ylabel(label)
        pair[0].set_title(names[k])
    figure.colorbar(picture, ax=list(figure.axes), label="weight", shrink=0.8, aspect=25)
    return figure


@styled
def orbit(images, probs, names: Sequence[str], label: int | None = None) -> Figure:
    """An input's predictive over its orbit: each moved image, and below it the class probabilities.

    A bar is the mean over posterior draws, its line the central 90 % of the draws.

    :param Tensor images: ``(|G|, C, h, w)``, one channel or RGB in [0, 1].
    :param Tensor probs: ``(T, |G|, K)``, draws of the class probabilities.
    :param names: a name for each group element.
    :param int label: the true class, which gets a colour of its own.
    :raises DataError: for numbers of elements that differ.

    >>> import torch
    >>> figure = orbit(torch.rand(4, 1, 8, 8), torch.rand(50, 4, 3).softmax(-1), ["e", "r90", "r180", "r270"], label=2)
    >>> figure.axes[4].get_ylabel()
    'probability'
    """
    images, probs = as_array(images), as_array(probs)
    if images.ndim != 4 or probs.ndim != 3 or probs.shape[1] != len(images):
        raise DataError(
            f"Expected images (|G|, C, h, w) and probabilities (T, |G|, K); got {images.shape} and {probs.shape}."
        )
    columns, rows = panels(len(images))
    figure = Figure(figsize=(1.15 * columns + 1.0, 2.6 * rows + 0.4))
    draw_orbit(figure, images, probs, checked_names(names, len(images), "group element"), label)
    return figure


@styled
def kernels_orbit(copies, names: Sequence[str], labels: Sequence[str] | None = None) -> Figure:
    """Kernels and their moved copies, a row for each kernel and a column for each group element.

    All are on one colour scale around zero. The kernels of an equivariant predictive need not be invariant: those of
    hidden layers may be permuted among one another, and a row then shows where each goes.

    :param Tensor copies: ``(|G|, K, h, w)``, the kernels moved by each element, element 0 the identity: what
        ``representation.orbit(kernels)`` gives.
    :param names: a name for each group element.
    :param labels: a name for each kernel.
    :raises DataError: for another number of axes, or a wrong number of names.

    >>> import torch, pyro_equivariance as pe
    >>> group = pe.CyclicGroup(4)
    >>> figure = kernels_orbit(pe.image(group, (3, 3)).orbit(torch.randn(2, 3, 3)), group.names)
    >>> [ax.get_title() for ax in figure.axes[:4]]
    ['e', 'r90', 'r180', 'r270']
    """
    copies = as_array(copies)
    if copies.ndim != 4 or not copies.size:
        raise DataError(f"Expected moved kernels (|G|, K, h, w); got {copies.shape}.")
    names = checked_names(names, len(copies), "group element")
    labels = checked_names(labels, copies.shape[1], "kernel")
    largest = abs(copies).max() or 1.0
    figure = Figure(figsize=(0.9 * len(names) + 1.5, 0.95 * len(labels) + 0.3), layout="compressed")
    grid = figure.subplots(len(labels), len(names), squeeze=False)
    for k, row in enumerate(grid):
        for g, ax in enumerate(row):
            picture = show_picture(ax, copies[g, k], cmap="RdBu_r", vmin=-largest, vmax=largest)
            if k == 0:
                ax.set_title(shortened(names[g], 10))
        row[0].set_ylabel(labels[k], rotation=0, ha="right", va="center")
    figure.colorbar(picture, ax=list(figure.axes), label="weight", shrink=0.9, aspect=20)
    return figure


@styled
def parameters(
    samples: Mapping[str, Tensor],
    symmetry: Symmetry,
    entries: tuple[str, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Two scalars of the posterior draws θ, and of their moved copies ρ(g)θ, a colour and a marker for each g.

    A posterior that the symmetry keeps has clouds that lie on one another; one that is stuck in a mode has as many
    apart as it leaves modes out. At most 300 draws of each are drawn, evenly spread over them.

    :param dict samples: draws ``(T, *event_shape)`` of the symmetry's sites, at least those of the entries.
    :param Symmetry symmetry: how the sites move; of a group whose elements are numbered.
    :param entries: two scalars, ``"loc"``, ``"w[0]"`` or ``"w[1, 2]"``; by default the first two that there are.
    :param Axes ax: where to draw; ``None`` for a new figure.
    :raises DataError: for an entry that the samples do not have, or a group without a list of its elements.

    >>> import torch, pyro_equivariance as pe
    >>> swap = pe.Symmetry(pe.SymmetricGroup(2), {"locs": pe.permutation(pe.SymmetricGroup(2))})
    >>> ax = parameters({"locs": torch.tensor([[1.0, 3.0], [1.2, 2.9]])}, swap)
    >>> [points.get_offsets().tolist() for points in ax.collections][1]
    [[3.0, 1.0], [2.9000000953674316, 1.2000000476837158]]
    """
    for given, kind, what in ((samples, Mapping, "a dict of draws by site"), (symmetry, Symmetry, "a Symmetry")):
        if not isinstance(given, kind):
            raise wrong_kind(what, given)
    samples = as_tensors(samples)
    if not symmetry.group.is_indexed:
        raise DataError(f"Expected a group whose elements can be listed; got {symmetry.group}.")
    entries = _two_entries(samples) if entries is None else entries
    sites, indices = zip(*(_entry(samples, entry) for entry in entries), strict=True)
    every = math.ceil(len(samples[sites[0]]) / SHOWN_DRAWS)
    values = {site: samples[site].detach()[::every] for site in sites}
    ax = ax or Figure(figsize=(4.8, 3.6)).subplots()
    names = symmetry.group.names
    styles = marks(len(names)) if len(names) <= SHOWN_ELEMENTS else marks(1) + [_others()] * (len(names) - 1)
    for g in reversed(range(len(names))) if len(names) > SHOWN_ELEMENTS else range(len(names)):
        moved = symmetry.act(g, values)
        x, y = (as_array(moved[site][:, *index]) for site, index in zip(sites, indices, strict=True))
        label = shortened(names[g], 14) if len(names) <= SHOWN_ELEMENTS or g == 0 else "others" if g == 1 else None
        style = styles[g]
        ax.scatter(x, y, 9, marker=style["fmt"], edgecolors=style["color"], facecolors=style["mfc"], linewidths=0.6,
                   alpha=0.6, label=label)  # fmt: skip
    ax.set(xlabel=entries[0], ylabel=entries[1])
    ax.legend(title="moved by", loc="center left", bbox_to_anchor=(1.0, 0.5), title_fontsize=8)
    return ax


def draw_intervals(figure: FigureBase, scalars: Mapping[str, Mapping[str, np.ndarray]], styles: Sequence[dict]) -> None:
    """Small axes, one for each scalar; in each a row for each series of draws: median, central 50 % and 90 %."""
    columns, rows = panels(len(scalars), INTERVALS_PER_ROW)
    grid = figure.subplots(rows, max(columns, 2), squeeze=False)
    for ax, (name, series) in zip(grid.flat, scalars.items(), strict=False):
        for row, (label, draws) in enumerate(series.items()):
            known, style = draws[np.isfinite(draws)], styles[row]
            ends = np.quantile(known, (0.05, 0.25, 0.5, 0.75, 0.95)) if len(known) else np.full(5, np.nan)
            ax.plot(ends[[0, 4]], [row, row], color=style["color"], lw=0.8)
            ax.plot(ends[[1, 3]], [row, row], color=style["color"], lw=2.4, solid_capstyle="butt")
            ax.plot(ends[2], row, style["fmt"], color=style["color"], mfc=style["mfc"], ms=3.5, label=label)
        ax.set(yticks=[], ylim=(len(series) - 0.2, -0.6))
        ax.spines["left"].set_visible(False)
        ax.set_title(shortened(name, 24), fontsize=8)
        ax.tick_params(axis="x", labelsize=7)
        ax.xaxis.set_major_locator(MaxNLocator(3))
        ax.xaxis.get_offset_text().set_fontsize(7)
    remove_all(grid.flat[len(scalars) :])


def draw_orbit(
    figure: FigureBase,
    images: np.ndarray,
    probs: np.ndarray,
    names: Sequence[str],
    label: int | None,
    legend: str = "upper left",
) -> None:
    """The pictures and bars of :func:`orbit` with their legend, in a figure or a part of one."""
    columns, rows = panels(len(images))
    grid = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[1, 1.2] * rows)
    for g in range(columns * rows):
        top, below = grid[2 * (g // columns) : 2 * (g // columns) + 2, g % columns]
        if g >= len(images):
            remove_all((top, below))
            continue
        show_image(top, images[g])
        top.set_title(names[g])
        _bars(below, probs[:, g], label, first=g % columns == 0)
    figure.supxlabel("class", fontsize=STYLE["font.size"])
    _orbit_legend(figure, label, 3 if columns > 2 else 1, legend)


def draw_orbit_beside(
    figure: FigureBase, image: np.ndarray | None, probs: np.ndarray, names: Sequence[str], label: int | None
) -> None:
    """The bars of :func:`orbit` for at most ``PER_ROW`` elements, and one unmoved image, if there is one, beside."""
    shown = ([] if image is None else [image]) + list(names[:PER_ROW])
    for i, ax in enumerate(figure.subplots(1, len(shown), squeeze=False)[0]):
        g = i - (image is not None)
        if g < 0:
            show_image(ax, image)
            ax.set_title("input")
            continue
        _bars(ax, probs[:, g], label, first=g == 0)
        ax.set_title(shortened(names[g], 10))
    figure.supxlabel("class", fontsize=STYLE["font.size"])
    _orbit_legend(figure, label, 3, "lower right")


def _orbit_legend(figure: FigureBase, label: int | None, columns: int, place: str) -> None:
    handles = [Patch(color=SKY, label="mean"), Line2D([], [], color=BLACK, lw=1, label="90 % of draws")]
    handles += [Patch(color=RED, label="true class")] if label is not None else []
    figure.legend(handles=handles, loc=f"outside {place}", ncols=columns)


def _others() -> dict:
    """The look of the copies that are too many for colours of their own."""
    return {"color": GREY, "fmt": ".", "mfc": GREY}


def _two_entries(samples: Mapping[str, Tensor]) -> tuple[str, str]:
    """The first two scalars by name."""
    found = []
    for site, value in samples.items():
        shape = value.shape[1:]
        for index in np.ndindex(*shape) if shape else [()]:
            found.append(f"{site}[{', '.join(map(str, index))}]" if index else site)
            if len(found) == 2:
                return tuple(found)
    raise DataError(f"Expected samples of at least two scalars; got {found or 'none'}.")


def _entry(samples: Mapping[str, Tensor], entry: str) -> tuple[str, tuple[int, ...]]:
    """The site and the index that an entry such as ``"w[1, 2]"`` names."""
    name, inside = re.fullmatch(r"(.*?)(?:\[([\d, ]*)\])?", entry, re.DOTALL).groups()
    index = tuple(int(i) for i in (inside or "").split(",") if i.strip())
    shape = samples[name].shape[1:] if name in samples else None
    if shape is None or len(index) != len(shape) or any(i >= n for i, n in zip(index, shape, strict=True)):
        known = ", ".join(f"{site} {tuple(value.shape[1:])}" for site, value in samples.items())
        raise DataError(f"Expected an entry of {known}, written as 'site[0, 1]'; got {entry!r}.")
    return name, index


def _bars(ax: Axes, probs: np.ndarray, label: int | None, first: bool) -> None:
    """The mean of ``probs`` ``(T, K)`` and the central 90 % of its draws."""
    classes, mean = np.arange(probs.shape[1]), probs.mean(0)
    ends = np.quantile(probs, (0.05, 0.95), axis=0)
    ax.bar(classes, mean, color=[RED if k == label else SKY for k in classes])
    ax.vlines(classes, *ends, color=BLACK, lw=min(1.0, 20 / len(classes)))
    ax.set(ylim=(0, 1), yticks=[0, 0.5, 1])
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if first:
        ax.set_ylabel("probability")
    else:
        ax.set_yticklabels([])
