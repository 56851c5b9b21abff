"""The symmetries of a periodic lattice: its translations, after the turns and mirrors of a point group."""

import math
from functools import cached_property

import torch
from torch import Tensor

from ..errors import SymmetryError
from .base import Group, Subgroup, positive_int
from .rotations import CyclicGroup, DihedralGroup, OctahedralGroup


class LatticeGroup(Group):
    """The translations of a lattice with periodic edges, after a point group about site 0; composed without a table.

    The element ``(t, g)`` sends the site ``p`` to ``(A_g p + t) mod shape``, so ``(t, g)(t', g') = (t + A_g t', gg')``.
    Its index is ``index(t) · len(point) + g`` with the translations in row-major order. ``A_g`` is a signed permutation
    of the axes: in two dimensions the rotation counter-clockwise or the left-right mirror of
    :func:`~pyro_equivariance.image`, in three dimensions the matrix of :func:`~pyro_equivariance.volume`, in one
    dimension the reversal.

    :param Group point: ``None`` for translations alone; ``DihedralGroup(1)`` (the reversal) for one axis; for two axes
        cyclic of order 1, 2 or 4, or dihedral of as many rotations; for three axes octahedral. Or a subgroup of these.
    :param shape: one, two or three axis lengths; elements that exchange axes need these to be of equal length.
    :raises SymmetryError: for another point group or shape.

    >>> from pyro_equivariance import DihedralGroup, LatticeGroup
    >>> G = LatticeGroup(DihedralGroup(4), (8, 8))
    >>> len(G), G.names[1], G.names[8 * 8 + 1]
    (512, 'r90', 't(1, 0)·r90')
    """

    def __init__(self, point: Group | None, shape):
        if not isinstance(shape, (int, tuple, list)):
            raise SymmetryError(f"Expected the shape of a lattice, one to three axis lengths; got {shape!r}.")
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        self.shape = tuple(positive_int(n, "each axis of LatticeGroup") for n in sizes)
        if len(self.shape) not in (1, 2, 3):
            raise SymmetryError(f"Expected a lattice of one, two or three axes; got shape {self.shape}.")
        self.point = CyclicGroup(1) if point is None else point
        self.matrices = _motions(self.point, len(self.shape))
        self._check_shape()
        self.n = math.prod(self.shape)
        self.order = self.n * len(self.point)
        strides = [math.prod(self.shape[i + 1 :]) for i in range(len(self.shape))]
        self._sizes, self._strides = torch.tensor(self.shape), torch.tensor(strides)
        steps = [stride * len(self.point) for stride, size in zip(strides, self.shape, strict=True) if size > 1]
        self.generators = (*steps, *self.point.generators)

    def _check_shape(self) -> None:
        sizes = torch.tensor(self.shape)
        if not bool((self.matrices.abs() @ sizes == sizes).all()):
            raise SymmetryError(
                f"Expected axes of equal length, where {self.point} exchanges them; got {self.shape}. Use a point "
                f"group that keeps the axes, such as CyclicGroup(2) or DihedralGroup(2) in the plane."
            )

    @cached_property
    def transversals(self) -> tuple[tuple[int, ...], ...]:
        """Those of the point group, then those of the translations along each axis."""
        steps = [
            tuple(k * int(stride) * len(self.point) for k in t)
            for size, stride in zip(self.shape, self._strides, strict=True)
            for t in CyclicGroup(size).transversals
        ]
        return self.point.transversals + tuple(steps)

    def split(self, g: Tensor | int) -> tuple[Tensor, Tensor]:
        """The translation of each element, shape ``(..., axes)``, and its element of the point group ``(...)``."""
        g = self.as_elements(g)
        return (g // len(self.point))[..., None] // self._strides % self._sizes, g % len(self.point)

    def permutations(self, g: Tensor) -> Tensor:
        """Where each element sends the sites, these in row-major order: shape ``(..., n)``."""
        translation, turn = self.split(g)
        sites = torch.arange(self.n)[:, None] // self._strides % self._sizes
        places = sites @ self.matrices[turn].mT + translation[..., None, :]
        return (places % self._sizes * self._strides).sum(-1)

    def _join(self, translation: Tensor, turn: Tensor) -> Tensor:
        return (translation % self._sizes * self._strides).sum(-1) * len(self.point) + turn

    def _turned(self, turn: Tensor, translation: Tensor) -> Tensor:
        return (self.matrices[turn] * translation[..., None, :]).sum(-1)

    def _compose(self, a: Tensor, b: Tensor) -> Tensor:
        (outer, g), (inner, h) = self.split(a), self.split(b)
        return self._join(outer + self._turned(g, inner), self.point.compose(g, h))

    def _inverse(self, a: Tensor) -> Tensor:
        translation, turn = self.split(a)
        back = self.point.inverse(turn)
        return self._join(-self._turned(back, translation), back)

    def _name(self, element: int) -> str:
        translation, turn = self.split(element)
        parts = [f"t({', '.join(map(str, translation.tolist()))})"] * bool(translation.any())
        return "·".join(parts + [self.point.name(int(turn))] * bool(turn))

    def _key(self) -> tuple:
        return (self.point, self.shape)

    def __repr__(self) -> str:
        return f"LatticeGroup({self.point}, {self.shape})"


def _motions(point: Group, axes: int) -> Tensor:
    """``A_g`` for every element, ``(order, axes, axes)`` integers, on the indices along the axes."""
    if isinstance(point, Subgroup):
        return _motions(point.parent, axes)[point.inclusion]
    if isinstance(point, CyclicGroup) and point.n == 1:
        return torch.eye(axes, dtype=torch.long)[None]
    if axes == 1 and isinstance(point, DihedralGroup) and point.n == 1:
        return torch.tensor([[[1]], [[-1]]])
    if axes == 2 and isinstance(point, (CyclicGroup, DihedralGroup)) and point.n in (1, 2, 4):
        return _plane_motions(point)
    if axes == 3 and isinstance(point, OctahedralGroup):
        return point.matrices.long()
    allowed = {
        1: "DihedralGroup(1) (the reversal)",
        2: "CyclicGroup(n) or DihedralGroup(n) with n = 1, 2 or 4",
        3: "OctahedralGroup()",
    }
    raise SymmetryError(
        f"Expected as point group of a lattice with {axes} axes None, {allowed[axes]} or a subgroup; got {point}."
    )


def _plane_motions(point: CyclicGroup | DihedralGroup) -> Tensor:
    """Of rows and columns: the picture turned counter-clockwise, then mirrored left and right."""
    turn, mirror = torch.tensor([[0, -1], [1, 0]]), torch.tensor([[1, 0], [0, -1]])
    turns = torch.stack([torch.linalg.matrix_power(turn.double(), 4 // point.n * k).long() for k in range(point.n)])
    return turns if isinstance(point, CyclicGroup) else torch.cat([turns, mirror @ turns])
