"""Generators of continuous symmetries as the velocities they give to points."""

import math

import torch

from ..errors import DataError
from ..generators import Generators
from .base import BLUE, GREY, Figure, as_array, styled, wrong_kind

ARROWS = 9  # along each axis


@styled
def generators(found, points=None, image=None) -> Figure:
    """Generators as vector fields: from each point an arrow along its velocity ``A p``, one panel for each.

    In the plane the arrows stand on a grid over ``[-1, 1]²`` or start at the given points; for an image that is its
    frame, ``y`` pointing up. In three dimensions they start on the unit sphere, drawn in perspective; in more, or on a
    line, the matrices are shown instead, red positive and blue negative. Arrows are scaled in each panel: what counts
    is their direction, and where they are long.

    :param found: a :class:`~pyro_equivariance.Generators`, or what has ``generators``: a learned measure, a
        :class:`~pyro_equivariance.LieBox`, what :func:`~pyro_equivariance.discover_generators` found. Of measures the
        panels' titles have the widths.
    :param points: where the arrows start, ``(N, n)``; left out, a grid or the sphere.
    :param image: an image ``(H, W)`` or ``(1, H, W)`` to draw the plane's arrows on.
    :raises DataError: for something else, or points or images that do not fit.

    >>> import pyro_equivariance as pe
    >>> [ax.get_title() for ax in generators(pe.LieBox(pe.Generators.affine_plane(), 0.3)).axes][:2]
    ['translate x ± 0.3', 'translate y ± 0.3']
    """
    basis = getattr(found, "generators", found)
    if not isinstance(basis, Generators):
        raise wrong_kind("generators, or a measure that has some", found)
    titles = _titles(basis, found)
    columns = min(len(basis), 4 if len(basis) in (4, 7, 8) else 3)
    rows = -(-len(basis) // columns)
    figure = Figure(figsize=(2.3 * columns + 0.4, 2.5 * rows))
    places = _places(basis.n, points)
    kind = {"projection": "3d"} if basis.n == 3 else {}
    panels = figure.subplots(rows, columns, squeeze=False, subplot_kw=kind).flatten()
    for ax, title, matrix, velocities in zip(panels, titles, basis.basis, basis.field(places), strict=False):
        ax.set_title(title)
        if basis.n in (2, 3):
            _arrows(ax, as_array(places), as_array(velocities), image)
        else:
            _matrix(ax, matrix)
    for ax in panels[len(basis) :]:
        ax.remove()
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


def _arrows(ax, places, velocities, image) -> None:
    size = max(float((velocities**2).sum(-1).max()) ** 0.5, 1e-12)
    reach = max(1.0, float(abs(places).max()))
    if places.shape[1] == 3:
        ax.quiver(*places.T, *velocities.T / size * 0.4, color=BLUE, linewidth=0.8, arrow_length_ratio=0.4)
        ax.tick_params(labelbottom=False, labelleft=False, labelright=False, labeltop=False)
        ax.set_zlabel("z", labelpad=-14)
    else:
        _under(ax, image)
        ax.quiver(*places.T, *velocities.T / size * 0.24 * reach, color=BLUE, angles="xy", scale_units="xy", scale=1,
                  width=0.009)  # fmt: skip
        ax.set(xlim=(-1.28 * reach, 1.28 * reach), ylim=(-1.28 * reach, 1.28 * reach), aspect="equal")
    ax.locator_params(nbins=3)
    ax.set_xlabel("x", labelpad=-14 if places.shape[1] == 3 else 3)
    ax.set_ylabel("y", labelpad=-14 if places.shape[1] == 3 else -4)


def _under(ax, image) -> None:
    if image is None:
        ax.plot([0], [0], marker="+", color=GREY, ms=5)
        return
    pixels = as_array(image).squeeze()
    if pixels.ndim != 2:
        raise DataError(f"Expected one image (H, W) or (1, H, W), to draw arrows on; got shape {pixels.shape}.")
    ax.imshow(pixels, cmap="Greys", extent=(-1, 1, -1, 1), alpha=0.5)


def _matrix(ax, matrix) -> None:
    reach = float(matrix.abs().max())
    ax.imshow(as_array(matrix), cmap="RdBu_r", vmin=-reach, vmax=reach)
    ax.set(xticks=[], yticks=[], xlabel=f"{len(matrix)} × {len(matrix)}")
    ax.spines[:].set_visible(True)
