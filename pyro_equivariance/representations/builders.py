"""Representations by name, checked once when they are made."""

import math

import torch
from torch import Tensor

from ..errors import SymmetryError
from ..groups import (
    CyclicGroup,
    DihedralGroup,
    Group,
    OctahedralGroup,
    SignedPermutationGroup,
    SignGroup,
    SpecialOrthogonal,
    Subgroup,
    YoungSubgroup,
)
from ..groups.matrices import matrix_group
from .actions import (
    Angle,
    BlockPermutation,
    Labels,
    MatrixRepresentation,
    NaturalPermutation,
    SignedPermutation,
    Trivial,
    is_large,
    natural,
)
from .base import Representation
from .continuous import Points, rotation


def trivial(group: Group, shape) -> Representation:
    """The representation that moves nothing, on tensors of the given shape.

    >>> import pyro_equivariance as pe
    >>> pe.trivial(pe.CyclicGroup(4), 10).event_shape
    torch.Size([10])
    """
    return Trivial(group, shape)


def permutation(group: Group, permutations=None, block: int | None = None) -> Representation:
    """``(ρ(g) x)[σ_g(i)] = x[i]`` along one axis.

    :param permutations: shape ``(len(group), n)``, row ``g`` is ``σ_g``; left out, the group's own (for a
        :class:`~pyro_equivariance.SymmetricGroup` or :class:`~pyro_equivariance.PermutationGroup`), of a large group
        without a table.
    :param block: for a :class:`~pyro_equivariance.YoungSubgroup`, which of its blocks is permuted; ``None``: all.
    :raises SymmetryError: if a row is no permutation, the rows do not compose as the group does, or there is no such
        block.

    >>> import torch, pyro_equivariance as pe
    >>> swap = pe.permutation(pe.SymmetricGroup(2))
    >>> swap.act(1, torch.tensor([5.0, 7.0])).tolist()
    [7.0, 5.0]
    >>> units = pe.permutation(pe.YoungSubgroup((2, 3)), block=1)
    >>> units.act([1, 0, 3, 4, 2], torch.tensor([5.0, 7.0, 9.0])).tolist()
    [9.0, 5.0, 7.0]
    """
    if isinstance(group, YoungSubgroup) and permutations is None:
        return BlockPermutation(group, block)
    if block is not None:
        raise SymmetryError(f"Expected block= for a YoungSubgroup and its own permutations only; got {group}.")
    return signed_permutation(group, permutations, None)


def signed_permutation(group: Group, permutations=None, signs=None) -> Representation:
    """``(ρ(g) x)[σ_g(i)] = s_g(i) x[i]`` along one axis.

    :param permutations: shape ``(len(group), n)``, row ``g`` is ``σ_g``; left out, see :func:`permutation`.
    :param signs: shape ``(len(group), n)``, entries ±1; left out, all +1.
    :raises SymmetryError: if a row is no permutation, a sign not ±1, or the rows do not compose.

    >>> import torch, pyro_equivariance as pe
    >>> flip = pe.signed_permutation(pe.SignGroup(), [[0, 1], [0, 1]], [[1, 1], [-1, -1]])
    >>> flip.act(1, torch.tensor([5.0, 7.0])).tolist()
    [-5.0, -7.0]
    """
    if permutations is None and signs is None and is_large(group):
        return NaturalPermutation(group)
    permutations = _permutation_table(group, permutations)
    if signs is not None:
        signs = _integers(group, signs, "signs")
        if signs.shape != permutations.shape or not bool((signs.abs() == 1).all()):
            raise SymmetryError(f"Expected signs ±1 of shape {tuple(permutations.shape)}; got {signs.tolist()}.")
    rep = SignedPermutation(group, permutations, signs)
    return _checked(rep)


def regular(group: Group, copies: int = 1) -> Representation:
    """The group permuting itself, in ``copies`` blocked copies: index ``g · copies + c``, ``h`` moves ``g`` to ``hg``.

    :param int copies: channels per element.

    >>> import torch, pyro_equivariance as pe
    >>> pe.regular(pe.CyclicGroup(3), 2).act(1, torch.arange(6)).tolist()
    [4, 5, 0, 1, 2, 3]
    """
    blocks = group.table[:, :, None] * copies + torch.arange(copies)
    return SignedPermutation(group, blocks.reshape(len(group), -1), label="regular")


def matrix(group: Group, matrices) -> Representation:
    """``ρ(g) x = M_g x`` along one axis.

    :param matrices: shape ``(len(group), n, n)``.
    :raises SymmetryError: if the matrices do not compose as the group does.

    >>> import torch, pyro_equivariance as pe
    >>> pe.matrix(pe.SignGroup(), [[[1.0]], [[-1.0]]]).act(1, torch.tensor([2.0])).tolist()
    [-2.0]
    """
    matrices = _table(group, matrices, "matrices").to(torch.float64)
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2]:
        raise SymmetryError(f"Expected matrices of shape ({len(group)}, n, n); got {tuple(matrices.shape)}.")
    return _checked(MatrixRepresentation(group, matrices))


def angle(group: Group, shifts, reflections=None) -> Representation:
    """``ρ(g) x = r_g x + a_g`` on an angle in radians, wrapped to ``[-π, π)``; the event is a scalar.

    :param shifts: ``a_g``, shape ``(len(group),)``, radians.
    :param reflections: ``r_g = ±1``, shape ``(len(group),)``; left out, all +1.
    :raises SymmetryError: if the maps do not compose as the group does.

    >>> import math, torch, pyro_equivariance as pe
    >>> turn = pe.angle(pe.CyclicGroup(4), [0, math.pi / 2, math.pi, 3 * math.pi / 2])
    >>> round(float(turn.act(2, torch.tensor(1.0))), 4)
    -2.1416
    """
    shifts = _table(group, shifts, "shifts").to(torch.float64)
    reflections = torch.ones(len(group)) if reflections is None else _table(group, reflections, "reflections")
    return _checked(Angle(group, shifts, reflections), torch.tensor([0.3, 1.9, -2.5]), wrap=2 * math.pi)


def labels(group: Group, permutations=None) -> Representation:
    """``ρ(g) z = σ_g(z)`` on labels ``z`` in ``0 .. n-1``, such as the component a datum belongs to; event ``()``.

    Labels are integers of any dtype, or floats that are whole numbers, as draws of a Bernoulli are; they keep their
    dtype. Where the components' parameters move by :func:`permutation`, their labels move by this.

    :param permutations: shape ``(len(group), n)``, row ``g`` is ``σ_g``; left out, see :func:`permutation`.
    :raises SymmetryError: if a row is no permutation or the rows do not compose; when it acts, for other labels.

    >>> import torch, pyro_equivariance as pe
    >>> pe.labels(pe.SymmetricGroup(3)).act(1, torch.tensor([0, 1, 2, 2]))
    tensor([0, 2, 1, 1])
    """
    if permutations is None and (not group.is_indexed or is_large(group)):
        return Labels(group)
    rep = Labels(group, _permutation_table(group, permutations))
    return _checked(rep, torch.arange(rep.classes))


def quotient(group: Group, generators, copies: int = 1) -> Representation:
    """The cosets ``gH`` of a subgroup permuted, in ``copies`` blocked copies: ``h`` moves ``gH`` to ``hgH``.

    With all of the group as ``H`` this is trivial, with the identity alone it is :func:`regular`.

    :param generators: of the subgroup ``H``, as indices or as names.
    :param int copies: channels per coset.

    >>> import pyro_equivariance as pe
    >>> pe.quotient(pe.DihedralGroup(4), ["s"])  # four channels that turn like those of CyclicGroup(4)
    quotient(4)
    """
    inner = group._generated([group.index(g) for g in generators])
    cosets = group.compose(group.elements[:, None], inner).amin(1)  # each coset by its smallest element
    firsts = cosets.unique()
    moved = torch.searchsorted(firsts, cosets[group.compose(group.elements[:, None], firsts)])
    blocks = moved[:, :, None] * copies + torch.arange(copies)
    return SignedPermutation(group, blocks.reshape(len(group), -1), label="quotient")


def vector(group: Group) -> Representation:
    """How the group moves a vector: the rotations and reflections that define it, along one axis.

    ``CyclicGroup(n)`` turns ``(x, y)`` counter-clockwise, ``DihedralGroup(n)`` also mirrors ``x``, as :func:`image`
    does (``y`` points up); ``OctahedralGroup`` moves the three coordinates of :func:`volume`; ``SignGroup`` flips a
    number; ``SignedPermutationGroup(n)`` permutes ``n`` coordinates and their signs. Where the entries are 0 and ±1 it
    is a signed permutation, which keeps mean-field families.
    ``SpecialOrthogonal(n)`` rotates vectors of ``n`` coordinates. ``GeneralLinear(n)``, ``Affine(n)`` and measures on
    them move points of ``n`` coordinates, ``pe.trivial(G, (P,)) * pe.vector(G)`` clouds of ``P``.

    :raises SymmetryError: for a group that has no vectors of its own.

    >>> import torch, pyro_equivariance as pe
    >>> pe.vector(pe.CyclicGroup(4)).act(1, torch.tensor([1.0, 2.0])).tolist()
    [-2.0, 1.0]
    """
    if isinstance(group, SpecialOrthogonal):
        return rotation(group)
    if matrix_group(group):
        return Points(group)
    if isinstance(group, SignedPermutationGroup):
        return natural(group, signed=True)
    if isinstance(group, Subgroup):
        return vector(group.parent).pullback(group, group.inclusion)
    matrices = _defining_matrices(group)
    if not torch.equal(matrices, matrices.round()):
        return matrix(group, matrices)
    targets = matrices.abs().argmax(-2)
    signs = matrices.gather(-2, targets[:, None, :])[:, 0]
    return signed_permutation(group, targets, signs)


def _defining_matrices(group: Group) -> Tensor:
    """Shape ``(order, d, d)``, entries that are integers up to rounding being exact."""
    if isinstance(group, OctahedralGroup):
        return group.matrices
    if isinstance(group, SignGroup):
        return torch.tensor([[[1.0]], [[-1.0]]], dtype=torch.float64)
    if not isinstance(group, (CyclicGroup, DihedralGroup)):
        raise SymmetryError(
            f"Expected a cyclic, dihedral, octahedral or sign group for vectors; got {group}. Use pe.matrix."
        )
    angles = (group.elements % group.n).double() * (2 * math.pi / group.n)
    turns = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], -1).reshape(-1, 2, 2)
    turns[group.elements >= group.n, 0] *= -1.0
    return torch.where((turns - turns.round()).abs() < 1e-6, turns.round(), turns)


def _permutation_table(group: Group, permutations) -> Tensor:
    if permutations is None:
        if not hasattr(group, "permutations"):
            raise SymmetryError(f"Expected permutations of shape ({len(group)}, n): {group} has none of its own.")
        return group.permutations(group.elements)
    table = _integers(group, permutations, "permutations")
    if table.ndim != 2 or not torch.equal(table.sort(-1).values, torch.arange(table.shape[-1]).expand_as(table)):
        raise SymmetryError(f"Expected each row to be a permutation of 0 .. n-1; got {table.tolist()}.")
    return table


def _table(group: Group, values, what: str) -> Tensor:
    values = torch.as_tensor(values)
    if values.ndim == 0 or len(values) != len(group):
        raise SymmetryError(f"Expected one row of {what} for each of the {len(group)} elements of {group}; "
                            f"got shape {tuple(values.shape)}.")  # fmt: skip
    return values


def _integers(group: Group, values, what: str) -> Tensor:
    values = _table(group, values, what)
    if not torch.equal(values, values.round()):
        raise SymmetryError(f"Expected integers as {what}; got {values.tolist()}.")
    return values.long()


def _checked(rep: Representation, probe: Tensor | None = None, wrap: float | None = None) -> Representation:
    """``rep`` itself, once ``ρ(e) = 1`` and, for generators ``s``, ``ρ(s) ρ(g) = ρ(sg)`` were seen."""
    group = rep.group
    x = torch.randn(rep.event_shape, generator=torch.Generator().manual_seed(0)) if probe is None else probe
    orbit = rep._act(group.elements[:, None] if x.ndim > len(rep.event_shape) else group.elements,
                     x.expand(len(group), *x.shape))  # fmt: skip
    gaps = {s: rep._act(s, orbit) - orbit[group.compose(s, group.elements)] for s in group.generators}
    for s, gap in ({0: orbit[0] - x} | gaps).items():
        if wrap is not None:
            gap = torch.remainder(gap + wrap / 2, wrap) - wrap / 2
        if not gap.abs().max() <= 1e-4 * x.abs().max():
            raise SymmetryError(
                f"Expected rows that compose as {group} does, ρ(e) = 1 and ρ(s)ρ(g) = ρ(sg); they do not for "
                f"s = {group.names[s]!r}."
            )
    return rep
