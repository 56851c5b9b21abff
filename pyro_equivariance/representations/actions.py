"""The elementary actions: on one axis, or on an angle."""

import math
from functools import cached_property

import torch
from torch import Tensor

from ..errors import SymmetryError
from ..groups import Group, YoungSubgroup
from .base import Representation, _is_transformed, as_shape, as_values

ENTRY_TOLERANCE = 1e-6
MAX_TABLE = 2**20


class Trivial(Representation):
    """Every element leaves the tensor as it is."""

    is_permutation = is_monomial = is_orthogonal = True

    def __init__(self, group: Group, shape):
        self.group, self.event_shape = group, as_shape(shape)

    def _act(self, g, x, dim=-1):
        return x

    def _modulus(self, power):
        return self

    def _key(self):
        return tuple(self.event_shape)

    def __repr__(self):
        return f"trivial{tuple(self.event_shape)}"


class SignedPermutation(Representation):
    """``(ρ(g) x)[σ_g(i)] = s_g(i) x[i]`` along one axis; without signs a permutation."""

    is_monomial = is_orthogonal = True

    def __init__(self, group: Group, permutations: Tensor, signs: Tensor | None = None, label: str = "permutation"):
        self.group, self._label = group, label
        self._permutations, self._signs = permutations, signs
        self.event_shape = torch.Size(permutations.shape[1:])
        self._sources = permutations.argsort(-1)
        self._moved_signs = None if signs is None else signs.gather(-1, self._sources)

    @property
    def is_permutation(self):
        return self._signs is None or bool((self._signs > 0).all())

    def _act(self, g, x, dim=-1):
        moved = _take(x, self._sources, g, dim)
        return moved if self._signs is None else moved * _row(self._moved_signs, g, dim, x.device).to(x.dtype)

    def _modulus(self, power):
        return self if self._signs is None else SignedPermutation(self.group, self._permutations)

    def _key(self):
        return (as_values(self._permutations), None if self._signs is None else as_values(self._signs))

    def __repr__(self):
        return f"{'signed ' * (not self.is_permutation)}{self._label}({self.event_shape[0]})"


class BlockPermutation(Representation):
    """``(ρ(g) x)[g(i)] = x[i]`` for the things of a :class:`~pyro_equivariance.YoungSubgroup`, or of one block of them.

    It reads the permutation off the element, so it needs no table of the group.
    """

    is_permutation = is_monomial = is_orthogonal = True

    def __init__(self, group: YoungSubgroup, block: int | None = None):
        self.group, self.block = group, block
        self._part = slice(0, group.n) if block is None else group.slice_of(block)
        self.event_shape = torch.Size((self._part.stop - self._part.start,))

    def _act(self, g, x, dim=-1):
        sources = (g[..., self._part] - self._part.start).argsort(-1).to(x.device)
        if sources.ndim == 1:
            return x.index_select(dim, sources)
        return x.gather(dim, _between(sources, dim, 1).expand(x.shape))

    def _modulus(self, power):
        return self

    def _key(self):
        return (self._part.start, self._part.stop)

    def __repr__(self):
        return f"permutation({self.event_shape[0]}{'' if self.block is None else f', block={self.block}'})"


class NaturalPermutation(Representation):
    """A group's own permutations, and signs, as :class:`SignedPermutation` acts, without a table of them.

    Those of the elements asked for are computed each time, so the group may be as large as ``SymmetricGroup(20)``.

    :param Group group: one with ``permutations``, such as :class:`~pyro_equivariance.SymmetricGroup`.
    :param bool signed: whether its ``signs`` act too.
    """

    is_monomial = is_orthogonal = True

    def __init__(self, group: Group, signed: bool = False):
        self.group, self.signed = group, bool(signed)
        self.event_shape = torch.Size((group.n,))

    @property
    def is_permutation(self):
        return not self.signed

    def _act(self, g, x, dim=-1):
        g = torch.as_tensor(g).cpu()
        sources = self.group.permutations(g).argsort(-1)
        moved = _read(x, sources.to(x.device), dim)
        if not self.signed:
            return moved
        return moved * _between(self.group.signs(g).gather(-1, sources), dim, 1).to(x)

    def _modulus(self, power):
        return NaturalPermutation(self.group)

    def _key(self):
        return (self.signed,)

    def __repr__(self):
        return f"{'signed ' * self.signed}permutation({self.event_shape[0]})"


def is_large(group: Group) -> bool:
    """Whether the table of a group's own permutations would be too long."""
    return hasattr(group, "permutations") and len(group) * group.n > MAX_TABLE


def natural(group: Group, signed: bool = False) -> Representation:
    """A group's own permutations, and signs: from a table, where that is not too long."""
    if is_large(group):
        return NaturalPermutation(group, signed)
    g = group.elements
    return SignedPermutation(group, group.permutations(g), group.signs(g) if signed else None)


class MatrixRepresentation(Representation):
    """``ρ(g) x = M_g x`` along one axis, with a matrix for each element."""

    def __init__(self, group: Group, matrices: Tensor):
        self.group, self._matrices = group, matrices
        self.event_shape = torch.Size(matrices.shape[-1:])

    @cached_property
    def _support(self) -> Tensor:
        return self._matrices.abs() > ENTRY_TOLERANCE

    @property
    def is_permutation(self):
        return self.is_monomial and bool(((self._matrices - 1).abs()[self._support] < ENTRY_TOLERANCE).all())

    @property
    def is_monomial(self):
        return bool((self._support.sum(-1) == 1).all() and (self._support.sum(-2) == 1).all())

    @property
    def is_orthogonal(self):
        products = self._matrices.mT @ self._matrices
        return bool((products - torch.eye(products.shape[-1])).abs().max() < ENTRY_TOLERANCE)

    @property
    def dual(self):
        inverses = self._matrices[self.group.inverse(self.group.elements)]
        return self if self.is_orthogonal else MatrixRepresentation(self.group, inverses.mT)

    def _act(self, g, x, dim=-1):
        x = _as_floating(x)
        matrices = self._matrices.to(x)[g if isinstance(g, int) else g.to(x.device)]
        return torch.matmul(_between(matrices, dim, 2), x.movedim(dim, -1)[..., None])[..., 0].movedim(-1, dim)

    def _modulus(self, power):
        cleaned = torch.where(self._support, self._matrices, torch.zeros(()))
        return MatrixRepresentation(self.group, cleaned.abs() ** power)

    def _key(self):
        return as_values(self._matrices)

    def __repr__(self):
        return f"matrix({self.event_shape[0]})"


class Angle(Representation):
    """``ρ(g) x = r_g x + a_g`` on angles in radians, wrapped to ``[-π, π)``; not linear, so without a matrix."""

    is_permutation = is_monomial = is_orthogonal = is_linear = False

    def __init__(self, group: Group, shifts: Tensor, reflections: Tensor):
        self.group, self._shifts, self._reflections = group, shifts, reflections
        self.event_shape = torch.Size(())

    def _act(self, g, x, dim=-1):
        x = _as_floating(x)
        moved = _row(self._reflections, g, dim, x.device).to(x) * x + _row(self._shifts, g, dim, x.device).to(x)
        return torch.remainder(moved + math.pi, 2 * math.pi) - math.pi

    def _modulus(self, power):
        raise SymmetryError("Expected a linear representation; an angle has no modulus.")

    def _key(self):
        return (as_values(self._shifts), as_values(self._reflections))

    def __repr__(self):
        return "angle()"


class Labels(Representation):
    """``ρ(g) z = σ_g(z)`` on whole numbers ``0 .. n-1`` of any dtype; not linear, so without a matrix.

    :param Group group: the group.
    :param Tensor permutations: shape ``(len(group), n)``; left out, the group's own, without a table.
    """

    is_permutation = is_monomial = is_orthogonal = is_linear = False

    def __init__(self, group: Group, permutations: Tensor | None = None):
        self.group, self._permutations = group, permutations
        self.classes = group.n if permutations is None else permutations.shape[-1]
        self.event_shape = torch.Size(())

    def _act(self, g, x, dim=-1):
        self._check_labels(x)
        g = torch.as_tensor(g).cpu()
        rows = self.group.permutations(g) if self._permutations is None else self._permutations[g]
        images = rows.reshape(*rows.shape[:-1], *[1] * (-1 - dim), self.classes).to(x.device)
        return images.expand(*x.shape, -1).gather(-1, x.long()[..., None])[..., 0].to(x.dtype)

    def _check_labels(self, x: Tensor) -> None:
        if torch.compiler.is_compiling() or _is_transformed() or not x.numel():
            return
        if not bool(((x >= 0) & (x < self.classes) & (x == x.long())).all()):
            raise SymmetryError(
                f"Expected whole numbers between 0 and {self.classes - 1} as labels; got values between "
                f"{x.min().item()} and {x.max().item()}."
            )

    def _modulus(self, power):
        raise SymmetryError("Expected a linear representation; labels have no modulus.")

    def _key(self):
        return (self.classes, None if self._permutations is None else as_values(self._permutations))

    def __repr__(self):
        return f"labels({self.classes})"


def _take(x: Tensor, table: Tensor, g: int | Tensor, dim: int) -> Tensor:
    """``x`` with its axis ``dim`` read in the order ``table[g]``."""
    if isinstance(g, int):
        return _read(x, table[g].to(x.device), dim)
    return _read(x, table.to(x.device)[g.to(x.device)], dim)


def _read(x: Tensor, rows: Tensor, dim: int) -> Tensor:
    """``x`` with its axis ``dim`` read in the order of one row ``(n,)``, or of those of a batch ``(*g, n)``."""
    if rows.ndim == 1:
        return x.index_select(dim, rows)
    shape = list(x.shape)
    return x.gather(dim, _between(rows, dim, 1).expand(*shape))


def _as_floating(x: Tensor) -> Tensor:
    return x if x.is_floating_point() or x.is_complex() else x.to(torch.get_default_dtype())


def _row(table: Tensor, g: int | Tensor, dim: int, device) -> Tensor:
    row = table.to(device)[g if isinstance(g, int) else g.to(device)]
    return row.reshape((*row.shape, *[1] * (-1 - dim)))


def _between(rows: Tensor, dim: int, event_dims: int) -> Tensor:
    """Rows ``(*g, n)`` with singleton axes after them for the axes of the tensor that follow ``dim``."""
    after = [1] * (-1 - dim)
    if event_dims == 1:
        return rows.reshape(*rows.shape, *after)
    return rows.reshape(*rows.shape[:-2], *after, *rows.shape[-2:])
