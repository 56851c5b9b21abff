"""Regular grids whose places the group moves: images, sequences and volumes, of any size."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import SymmetryError
from ..groups import CyclicGroup, DihedralGroup, Group, LatticeGroup, OctahedralGroup, Subgroup
from .actions import SignedPermutation, Trivial, natural
from .base import Pullback, Representation, Reshaped, as_shape
from .continuous import interpolated_image


class Grid(Reshaped):
    """The places of a grid, permuted, laid out in the grid's axes.

    ``kind`` is the name of the action: it can be asked for on a grid of another size (:func:`resized`) and on a
    convolution's kernel (:func:`kernel_of`), where only what is left of it around one place acts.
    """

    def __init__(self, group: Group, shape, kind: str):
        self.kind = kind
        super().__init__(SignedPermutation(group, PLACES[kind](group, *shape)), shape, label=kind)


def image(group: Group, shape, interpolation: str | None = None) -> Representation:
    """Rotations (counter-clockwise) and left-right mirrors of the last two axes.

    Rotations by 90° permute the pixels and are exact. Those by other angles interpolate between pixels, which has to be
    asked for: the result is marked ``is_approximate``, and averages of distributions refuse it.

    :param Group group: cyclic of order 1, 2 or 4, dihedral of 1, 2 or 4 rotations, or a subgroup of these;
        ``s·r^k`` turns first, then mirrors. With ``interpolation`` any cyclic or dihedral group, or
        :class:`~pyro_equivariance.SpecialOrthogonal` of the plane.
    :param shape: ``(..., height, width)``; axes before the last two are not moved. Rotations by 90° need
        ``height == width``.
    :param interpolation: ``"bilinear"`` or ``"bicubic"``; ``None`` for exact rotations only.
    :raises SymmetryError: for another group or an image that is not square.

    >>> import pyro_equivariance as pe
    >>> pe.image(pe.DihedralGroup(4), (3, 28, 28)).event_shape
    torch.Size([3, 28, 28])
    """
    shape = as_shape(shape)
    if interpolation is not None:
        return interpolated_image(group, shape, interpolation)
    if isinstance(group, Subgroup):
        return _restricted(image, group, shape, 2)
    if not isinstance(group, (CyclicGroup, DihedralGroup)) or group.n not in (1, 2, 4):
        raise SymmetryError(
            f"Expected a group of 90° rotations and mirrors for images, such as CyclicGroup(4) or DihedralGroup(4); "
            f"got {group}. For other angles pe.image(group, shape, interpolation='bilinear') is approximate: for "
            f"augmentation and metrics, not for weights."
        )
    if len(shape) < 2 or (group.n == 4 and shape[-1] != shape[-2]):
        raise SymmetryError(
            f"Expected images that are square, (..., n, n), for the rotations of {group}; got {tuple(shape)}. "
            f"Pad or crop them, or use a group without 90° turns (CyclicGroup(2), DihedralGroup(2))."
        )
    return _with_channels(group, shape, 2, "image")


def sequence(group: Group, shape) -> Representation:
    """Periodic shifts of the last axis, and its reversal.

    A cyclic group of order ``n`` shifts by ``k · length / n`` places; a dihedral group of ``n`` shifts also reverses,
    first shifting, then reversing. ``DihedralGroup(1)`` only reverses.

    :param Group group: cyclic or dihedral of ``n`` that divides the length, or a subgroup of these.
    :param shape: ``(..., length)``; axes before the last are not moved.
    :raises SymmetryError: for another group, or a length that ``n`` does not divide.

    >>> import torch, pyro_equivariance as pe
    >>> pe.sequence(pe.DihedralGroup(2), 4).act(torch.arange(4), torch.arange(4)).tolist()
    [[0, 1, 2, 3], [2, 3, 0, 1], [3, 2, 1, 0], [1, 0, 3, 2]]
    """
    shape = as_shape(shape)
    if isinstance(group, Subgroup):
        return _restricted(sequence, group, shape, 1)
    if not isinstance(group, (CyclicGroup, DihedralGroup)):
        raise SymmetryError(
            f"Expected a cyclic group (periodic shifts) or a dihedral one (and reversal; DihedralGroup(1): only that) "
            f"for sequences; got {group}."
        )
    if len(shape) < 1 or shape[-1] % group.n:
        raise SymmetryError(
            f"Expected sequences (..., length) with a length that the {group.n} shifts of {group} divide; got "
            f"{tuple(shape)}. Pad them, or use DihedralGroup(1) for reversal alone."
        )
    return _with_channels(group, shape, 1, "sequence")


def volume(group: Group, shape) -> Representation:
    """Rotations (and, where the group has them, reflections) of the cube, acting on the last three axes.

    The place with coordinates ``p`` along the three axes, from the centre, moves to ``M_g p``.

    :param OctahedralGroup group: or a subgroup of it.
    :param shape: ``(..., n, n, n)``; axes before the last three are not moved.
    :raises SymmetryError: for another group or a volume that is not a cube.

    >>> import pyro_equivariance as pe
    >>> pe.volume(pe.OctahedralGroup(), (1, 8, 8, 8)).event_shape
    torch.Size([1, 8, 8, 8])
    """
    shape = as_shape(shape)
    if isinstance(group, Subgroup):
        return _restricted(volume, group, shape, 3)
    if not isinstance(group, OctahedralGroup):
        raise SymmetryError(f"Expected OctahedralGroup() or a subgroup of it for volumes; got {group}.")
    if len(shape) < 3 or len(set(shape[-3:])) > 1:
        raise SymmetryError(f"Expected volumes that are cubes, (..., n, n, n), for {group}; got {tuple(shape)}.")
    return _with_channels(group, shape, 3, "volume")


def lattice(point: Group | None, shape) -> Representation:
    """The translations of a lattice with periodic edges, after a point group about site 0, moving a field on it.

    The group is made here, ``lattice(point, shape).group``: see :class:`~pyro_equivariance.LatticeGroup` for which
    point groups there are. It is all of the periodic lattice that a field theory or a texture is symmetric under.

    :param Group point: ``None`` for translations alone.
    :param shape: one, two or three axis lengths; the event's shape.
    :raises SymmetryError: for another point group or shape.

    >>> import torch, pyro_equivariance as pe
    >>> field = pe.lattice(pe.DihedralGroup(4), (8, 8))
    >>> symmetry = pe.Symmetry(field.group, {"field": field})
    >>> field, len(symmetry.group), field.mean(torch.arange(64.0).reshape(8, 8))[2, 5].item()
    (lattice(8, 8), 512, 31.5)
    """
    group = LatticeGroup(point, shape)
    return Reshaped(natural(group), group.shape, label="lattice")


def is_grid(rep: Representation) -> bool:
    """Whether neighbouring places stay neighbours: an image, sequence or volume, or axes that do not move."""
    return isinstance(rep, (Grid, Trivial)) or (isinstance(rep, Pullback) and is_grid(rep.base))


def resized(rep: Representation, shape) -> Representation:
    """The same action on a grid of another size.

    :raises SymmetryError: for an action that is not on a grid.
    """
    shape = as_shape(shape)
    if shape == rep.event_shape:
        return rep
    if shape.numel() == 1:
        return Trivial(rep.group, shape)
    if isinstance(rep, Pullback):
        return resized(rep.base, shape).pullback(rep.group, rep.homomorphism)
    if isinstance(rep, Trivial):
        return Trivial(rep.group, shape)
    if not isinstance(rep, Grid):
        raise SymmetryError(f"Expected an image, sequence or volume to resize to {tuple(shape)}; got {rep}.")
    return GRIDS[rep.kind](rep.group, shape)


def kernel_of(rep: Representation, size) -> Representation:
    """The action on a convolution's kernel: that of the grid around one place (shifts leave it as it is).

    :raises SymmetryError: for a kernel over several places of an action that is not on a grid.
    """
    size = as_shape(size)
    if size.numel() == 1 or isinstance(rep, Trivial):
        return Trivial(rep.group, size)
    if isinstance(rep, Pullback):
        return kernel_of(rep.base, size).pullback(rep.group, rep.homomorphism)
    if not isinstance(rep, Grid):
        raise SymmetryError(f"Expected an image, sequence or volume under a kernel of {tuple(size)}; got {rep}.")
    if rep.kind == "sequence":
        return Grid(rep.group, size, "reversal")
    return GRIDS[rep.kind](rep.group, size)


def grid(group: Group, shape) -> Representation:
    """The sequence, image or volume of the given shape, by its number of axes (without channels)."""
    builders = {1: sequence, 2: image, 3: volume}
    if len(shape) not in builders:
        raise SymmetryError(f"Expected a grid of one, two or three axes; got shape {tuple(shape)}.")
    return builders[len(shape)](group, shape)


def _with_channels(group: Group, shape: torch.Size, axes: int, kind: str) -> Representation:
    rep = Grid(group, shape[-axes:], kind)
    return Trivial(group, shape[:-axes]) * rep if len(shape) > axes else rep


def _restricted(builder, group: Subgroup, shape: torch.Size, axes: int) -> Representation:
    rep = builder(group.parent, shape[-axes:]).pullback(group, group.inclusion)
    return Trivial(group, shape[:-axes]) * rep if len(shape) > axes else rep


def _pixels(group: Group, height: int, width: int) -> Tensor:
    """Where each pixel goes, for every element: shape ``(order, height · width)``."""
    pixels = torch.arange(height * width).reshape(height, width)
    sources = []
    for g in range(len(group)):
        flip, turn = divmod(g, group.n)
        moved = pixels.rot90(turn * (4 // group.n) if group.n > 1 else 0, (0, 1))
        sources.append((moved.flip(1) if flip else moved).reshape(-1))
    return torch.stack(sources).argsort(-1)


def _shifted(group: Group, length: int) -> Tensor:
    flip, turn = group.elements[:, None] // group.n, group.elements[:, None] % group.n
    places = (torch.arange(length) + turn * (length // group.n)) % length
    return torch.where(flip == 1, length - 1 - places, places)


def _reversed(group: Group, length: int) -> Tensor:
    places = torch.arange(length)
    return torch.where(group.elements[:, None] // group.n == 1, length - 1 - places, places)


def _voxels(group: OctahedralGroup, *shape: int) -> Tensor:
    axis = torch.arange(shape[0]) * 2 - (shape[0] - 1)  # twice the coordinates, to stay with integers
    places = torch.cartesian_prod(axis, axis, axis)
    moved = (places @ group.matrices.long().mT + shape[0] - 1) // 2
    return (moved * torch.tensor([shape[0] ** 2, shape[0], 1])).sum(-1)


PLACES: dict[str, Callable[..., Tensor]] = {
    "image": _pixels,
    "sequence": _shifted,
    "reversal": _reversed,
    "volume": _voxels,
}
GRIDS: dict[str, Callable[..., Representation]] = {"image": image, "sequence": sequence, "volume": volume}
