"""Which groups of a list lie inside which, as far as that can be seen from what they do to some data."""

import math

import torch
from torch import Tensor

from ..groups import CyclicGroup, DihedralGroup, SpecialOrthogonal, Subgroup
from ..representations import Representation

MAX_LISTED = 64  # elements of a group that is compared with others one by one
EQUAL = 1e-5

Places = tuple[tuple[int, ...], ...]


def containments(reps: list[Representation], x: Tensor) -> tuple[Places, Places]:
    """For each group the places of those whose moves are among its own, itself one of them; and of those that may be.

    :param Tensor x: a few data, ``(n, *event)``.

    >>> import torch, pyro_equivariance as pe
    >>> groups = [pe.CyclicGroup(4), pe.DihedralGroup(4), pe.SpecialOrthogonal(2), pe.LieBox(pe.Generators.so(2), 1.0)]
    >>> containments([pe.vector(g) for g in groups], torch.randn(3, 2, dtype=torch.float64))
    (((0,), (0, 1), (0, 2), (3,)), ((), (), (3,), (0, 1, 2)))
    """
    places = range(len(reps))
    inside = [[i == j or _is_inside(reps[j], reps[i], x) for j in places] for i in places]
    known, unknown = ([tuple(j for j in places if row[j] is fact) for row in inside] for fact in (True, None))
    return tuple(known), tuple(unknown)


def _is_inside(inner: Representation, outer: Representation, x: Tensor) -> bool | None:
    """Whether the moves of one group are among those of another; ``None`` if that is not known."""
    few = inner.group.is_indexed and len(inner.group) <= MAX_LISTED
    if not outer.group.is_indexed:
        return True if inner == outer else _is_rotation(inner, outer, x) if few else None
    if few and len(outer.group) <= MAX_LISTED:
        return _are_among(inner.orbit(x), outer.orbit(x))
    return None if inner.group.is_indexed and len(inner.group) <= len(outer.group) else False


def _is_rotation(inner: Representation, outer: Representation, x: Tensor) -> bool | None:
    """For the rotations of the plane: whether a cyclic or dihedral group moves data by them alone."""
    group, numbers = inner.group, inner.group.elements
    while isinstance(group, Subgroup):
        group, numbers = group.parent, group.inclusion[numbers]
    if outer.group != SpecialOrthogonal(2) or not isinstance(group, (CyclicGroup, DihedralGroup)):
        return None
    turning = numbers < group.n  # the others mirror
    turns = outer.group.rotation(numbers[turning] * (2 * math.pi / group.n))
    moves = outer.act(turns[:, None], x)
    is_alike = torch.allclose(inner.orbit(x)[turning], moves, rtol=0, atol=EQUAL * float(moves.abs().max()))
    return bool(turning.all()) if is_alike else None


def _are_among(inner: Tensor, outer: Tensor) -> bool:
    gaps = torch.cdist(inner.flatten(1), outer.flatten(1), p=math.inf).amin(1)
    return bool((gaps <= EQUAL * outer.abs().max()).all())
