"""Generators of continuous symmetries as the velocities they give to points."""

import math

import numpy as np
import torch

from ..errors import DataError
from ..generators import Generators
from .base import BLUE, GREY, Figure, as_array, panels, remove_all, styled, wrong_kind

ARROWS = 9  # along each axis
SPACING = 2.16  # of the longest arrow: 0.24 on that grid, whose points are 0.25 apart
PALEST = 0.15  # opacity of the arrows furthest away


@styled
def generators(found, points=None, image=None) -> Figure:
    """Generators as vector fields: from each point an arrow along its velocity ``A p``, one panel for each.

    In the plane the arrows stand on a grid over ``[-1, 1]²`` or start at the given points; for an image that is its
    frame, ``y`` pointing up. In three dimensions they start on the unit sphere, drawn in perspective, those at the back
    pale; in more, or on a line, the matrices are shown instead, red positive and blue negative. Arrows are scaled in
    each panel, the longest about as long as points are apart: what counts is their direction, and where they are long.

    :param found: a :class:`~pyro_equivariance.Generators`, or what has ``generators``: a learned measure, a
        :class:`~pyro_equivariance.LieBox`, what :func:`~pyro_equivariance.discover_generators` found. Of measures the
        panels' titles have the widths.
    :param points: where the arrows start, ``(N, n)``; left out, a grid or the sphere.
    :param image: a square image ``(H, H)`` or ``(1, H, H)`` to draw the plane's arrows on.
    :raises DataError: for something else, no points or some that are not finite, or points or images that do not fit.

    >>> import pyro_equivariance as pe
    >>> [ax.get_title() for ax in generators(pe.LieBox(pe.Generators.affine_plane(), 0.3)).axes][:2]
    ['translate x ± 0.3', 'translate y ± 0.3']
    """
    basis = getattr(found, "generators", found)
    if not isinstance(basis, Generators):
        raise wrong_kind("generators, or a measure that has some", found)
    titles, places, pixels = _titles(basis, found), _places(basis.n, points), _pixels(basis.n, image)
    columns, rows = panels(len(basis), max(3, math.ceil(math.sqrt(1.5 * len(basis)))))
    figure = Figure(figsize=(2.3 * columns + 0.4, 2.5 * rows))
    kind = {"projection": "3d"} if basis.n == 3 else {}
    axes = figure.subplots(rows, columns, squeeze=False, subplot_kw=kind).flatten()
    for ax, title, matrix, velocities in zip(axes, titles, basis.basis, basis.field(places), strict=False):
        ax.set_title(title)
        if basis.n in (2, 3):
            _arrows(ax, places.numpy(), velocities.numpy(), pixels)
        else:
            _matrix(ax, matrix)
    remove_all(axes[len(basis) :])
    return figure


def _titles(basis: Generators, found) -> list[str]:
    widths = getattr(found, "widths", None)
    if widths is None:
        return list(basis.names)
    widths = widths.values() if isinstance(widths, dict) else widths.tolist()
    return [f"{name} ± {width:.3g}" for name, width in zip(basis.names, widths, strict=True)]


def _places(n: int, points) -> torch.Tensor:
    if points is not None:
        points = torch.as_tensor(as_array(points))
        if points.ndim != 2 or points.shape[1] != n:
            raise DataError(f"Expected points (N, {n}) for these generators; got shape {tuple(points.shape)}.")
        if not len(points) or not bool(points.isfinite().all()):
            raise DataError(f"Expected at least one point, all of them finite; got shape {tuple(points.shape)}.")
        return points
    if n == 2:
        axis = torch.linspace(-1, 1, ARROWS, dtype=torch.float64)
        return torch.cartesian_prod(axis, axis)
    return _sphere() if n == 3 else torch.zeros(1, n, dtype=torch.float64)


def _sphere(count: int = ARROWS**2) -> torch.Tensor:
    """Points spread evenly over the unit sphere, along a spiral that turns by the golden angle."""
    i = torch.arange(count, dtype=torch.float64)
    z = 1 - (2 * i + 1) / count
    angle, radius = i * math.pi * (3 - math.sqrt(5)), (1 - z**2).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), z], -1)


def _pixels(n: int, image) -> np.ndarray | None:
    if image is None:
        return None
    pixels = as_array(image)
    if n != 2:
        raise DataError(f"Expected no image for generators of R^{n}; an image has those of the plane.")
    if pixels.ndim == 3 and len(pixels) == 1:
        pixels = pixels[0]
    if pixels.ndim != 2 or pixels.shape[0] != pixels.shape[1] or not pixels.size:
        raise DataError(f"Expected one image (H, H) or (1, H, H), to draw arrows on; got shape {pixels.shape}.")
    return pixels


def _middle_and_reach(places: np.ndarray) -> tuple[np.ndarray, float]:
    """The middle of points and how far they reach from it along an axis, never 0."""
    low, high = places.min(0), places.max(0)
    reach, size = float((high - low).max()) / 2, float(abs(places).max()) or 1.0
    return (low + high) / 2, reach if reach > 1e-9 * size else size


def _arrows(ax, places: np.ndarray, velocities: np.ndarray, image: np.ndarray | None) -> None:
    longest = math.sqrt((velocities**2).sum(1).max()) or 1.0
    length = _middle_and_reach(places)[1] * min(max(SPACING / math.sqrt(len(places)), 0.1), 0.5)
    corners = places if image is None else np.concatenate([places, -np.ones((1, 2)), np.ones((1, 2))])
    middle, reach = _middle_and_reach(corners)
    if places.shape[1] == 3:
        _arrows_in_space(ax, places, 1.5 * length / longest * velocities)
    else:
        _arrows_in_the_plane(ax, places, length / longest * velocities, image)
    margin = 1.04 * reach + length
    limits = np.stack([middle - margin, middle + margin], 1)
    ax.set(**dict(zip(("xlim", "ylim", "zlim"), limits.tolist(), strict=False)))
    ax.locator_params(nbins=3)


def _arrows_in_space(ax, places: np.ndarray, arrows: np.ndarray) -> None:
    """The paler the further from the viewer."""
    up, turned = math.radians(ax.elev), math.radians(ax.azim)
    towards = [math.cos(up) * math.cos(turned), math.cos(up) * math.sin(turned), math.sin(up)]
    depth, moving = places @ towards, arrows.any(1)
    shades = PALEST + (1 - PALEST) * (depth - depth.min()) / (np.ptp(depth) or 1.0)
    if moving.any():  # three lines an arrow: all shafts, then both halves of the heads
        ax.quiver(*places[moving].T, *arrows[moving].T, color=BLUE, alpha=np.tile(shades[moving], 3), linewidth=0.8,
                  arrow_length_ratio=0.4)  # fmt: skip
    ax.set_box_aspect((1, 1, 1))
    ax.tick_params(labelbottom=False, labelleft=False, labelright=False, labeltop=False)
    for axis in "xyz":
        getattr(ax, f"set_{axis}label")(axis, labelpad=-14)


def _arrows_in_the_plane(ax, places: np.ndarray, arrows: np.ndarray, image: np.ndarray | None) -> None:
    if image is None:
        ax.plot([0], [0], marker="+", color=GREY, ms=5)
    else:
        ax.imshow(image, cmap="Greys", extent=(-1, 1, -1, 1), alpha=0.5)
    ax.quiver(*places.T, *arrows.T, color=BLUE, angles="xy", scale_units="xy", scale=1, width=0.009)
    ax.set_aspect("equal")
    ax.set_xlabel("x", labelpad=3)
    ax.set_ylabel("y", labelpad=1)


def _matrix(ax, matrix) -> None:
    reach = float(matrix.abs().max()) or 1.0
    ax.imshow(as_array(matrix), cmap="RdBu_r", vmin=-reach, vmax=reach)
    ax.set(xticks=[], yticks=[], xlabel=f"{len(matrix)} × {len(matrix)}")
    ax.spines[:].set_visible(True)
