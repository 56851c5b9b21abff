"""How a group element moves one tensor.

A representation acts on the last axes of a tensor, its *event*; axes before them are batch. Products act axis
by axis (a kernel is out-channels × in-channels × height × width), so moving a tensor needs memory of the
tensor's own size and tables no longer than an axis.
"""

import math
from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from .errors import SymmetryError
from .groups import CyclicGroup, DihedralGroup, Group, Subgroup

ENTRY_TOLERANCE = 1e-6


class Representation(ABC):
    """An action ``ρ(g)`` of ``group`` on tensors of shape ``(..., *event_shape)``.

    Representations are immutable values; ``rep1 + rep2`` is the direct sum (along the first event axis) and
    ``rep1 * rep2`` the product over axes (the event of the first, then that of the second).

    To implement one:

    - set ``group`` and ``event_shape``;
    - :meth:`_act` for one element (an ``int``) or an index tensor that broadcasts over the batch, on the event
      axes that end at ``dim``;
    - :meth:`_modulus`, the entrywise ``|ρ|^p``, and ``dual`` where the action is not orthogonal;
    - the properties ``is_permutation``, ``is_monomial``, ``is_orthogonal`` and :meth:`_key`.
    """

    group: Group
    event_shape: torch.Size

    @abstractmethod
    def _act(self, g: int | Tensor, x: Tensor, dim: int = -1) -> Tensor: ...

    @abstractmethod
    def _modulus(self, power: int) -> "Representation": ...

    @abstractmethod
    def _key(self) -> tuple: ...

    @property
    @abstractmethod
    def is_permutation(self) -> bool:
        """Whether every ``ρ(g)`` permutes the entries."""

    @property
    @abstractmethod
    def is_monomial(self) -> bool:
        """Whether every ``ρ(g)`` permutes and rescales the entries (signed permutations do)."""

    @property
    @abstractmethod
    def is_orthogonal(self) -> bool:
        """Whether every ``ρ(g)`` keeps lengths."""

    @property
    def is_linear(self) -> bool:
        """Whether every ``ρ(g)`` is linear (all but :func:`angle` are)."""
        return True

    @property
    def dual(self) -> "Representation":
        """The dual ``g ↦ ρ(g⁻¹)ᵀ``; an orthogonal representation is its own."""
        return self

    def modulus(self, power: int = 1) -> "Representation":
        """The entrywise ``|ρ(g)|^power``, how scales (1) and variances (2) of independent entries move.

        :raises SymmetryError: if the representation mixes entries, for then it is no representation.
        """
        if not self.is_monomial:
            raise SymmetryError(f"Expected a representation that permutes and rescales entries; got {self}.")
        return self._modulus(power)

    def act(self, g: Tensor | int, x: Tensor) -> Tensor:
        """``ρ(g) x``.

        :param Tensor g: elements of the group, of any shape that broadcasts against the batch of ``x``.
        :param Tensor x: shape ``(..., *event_shape)``.
        :returns: shape ``(*broadcast(g, batch), *event_shape)``.
        :raises SymmetryError: if ``x`` does not end in ``event_shape`` or ``g`` is not in the group.

        >>> import torch, pyro_equivariance as pe
        >>> turn = pe.image(pe.CyclicGroup(4), (2, 2))
        >>> turn.act(1, torch.tensor([[1, 2], [3, 4]])).tolist()
        [[2, 4], [1, 3]]
        """
        g = self.group.as_elements(g)
        self.check_shape(x)
        if g.ndim == 0:
            return self._act(int(g), x)
        batch = torch.broadcast_shapes(g.shape, x.shape[: x.ndim - len(self.event_shape)])
        return self._act(g.expand(batch), x.expand(*batch, *self.event_shape))

    def orbit(self, x: Tensor) -> Tensor:
        """All moved copies of ``x`` along a new first axis: shape ``(len(group), ..., *event_shape)``."""
        self.check_shape(x)
        return torch.stack([self._act(g, x) for g in range(len(self.group))])

    def mean(self, x: Tensor) -> Tensor:
        """The orbit mean ``(1/|G|) Σ_g ρ(g) x``, of the shape of ``x``.

        It is the projection onto the invariant tensors, taken along a chain of subgroups
        (:attr:`~pyro_equivariance.groups.Group.transversals`), and holds a few copies of ``x`` at a time.
        """
        self.check_shape(x)
        self._need_linear("a mean over the orbit")
        for coset in self.group.transversals:
            total = x
            for g in coset[1:]:
                total = total + self._act(g, x)
            x = total / len(coset)
        return x

    def matrix(self, g: Tensor | int) -> Tensor:
        """The dense matrix of ``ρ(g)`` on the flattened event, shape ``(*g.shape, n, n)``; for small events."""
        self._need_linear("a matrix")
        g = self.group.as_elements(g)
        n = self.event_shape.numel()
        basis = torch.eye(n, dtype=torch.get_default_dtype()).reshape(n, *self.event_shape)
        return self.act(g[..., None], basis).reshape(*g.shape, n, n).mT

    def reshape(self, shape) -> "Representation":
        """The same action on the event laid out in another shape."""
        return Reshaped(self, shape)

    def pullback(self, group: Group, homomorphism: Tensor) -> "Representation":
        """The representation ``g ↦ ρ(φ(g))`` of ``group``, with ``φ`` an index tensor ``(len(group),)``."""
        return Pullback(group, self, homomorphism)

    def check_shape(self, x: Tensor) -> None:
        """Raise unless ``x`` ends in ``event_shape``."""
        k = len(self.event_shape)
        if x.shape[x.ndim - k :] != self.event_shape or x.ndim < k:
            raise SymmetryError(
                f"Expected a tensor that ends in the shape {tuple(self.event_shape)} of {self}; "
                f"got shape {tuple(x.shape)}."
            )

    def _need_linear(self, what: str) -> None:
        if not self.is_linear:
            raise SymmetryError(f"Expected a linear representation for {what}; {self} shifts angles.")

    def __mul__(self, other: "Representation") -> "Representation":
        return Product(self, other)

    def __add__(self, other: "Representation") -> "Representation":
        return DirectSum(self, other)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and (self.group, self._key()) == (other.group, other._key())

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.group, self._key()))


class Trivial(Representation):
    """Every element leaves the tensor as it is."""

    is_permutation = is_monomial = is_orthogonal = True

    def __init__(self, group: Group, shape):
        self.group, self.event_shape = group, _shape(shape)

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
        return (_values(self._permutations), None if self._signs is None else _values(self._signs))

    def __repr__(self):
        return f"{'signed ' * (not self.is_permutation)}{self._label}({self.event_shape[0]})"


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
        return _values(self._matrices)

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
        return (_values(self._shifts), _values(self._reflections))

    def __repr__(self):
        return "angle()"


class Product(Representation):
    """``ρ1(g) ⊗ ρ2(g)``: the first acts on the first event axes, the second on the others."""

    def __init__(self, left: Representation, right: Representation):
        _check_same_group(left, right)
        self.group, self.left, self.right = left.group, left, right
        self.event_shape = left.event_shape + right.event_shape

    is_permutation = property(lambda self: self.left.is_permutation and self.right.is_permutation)
    is_monomial = property(lambda self: self.left.is_monomial and self.right.is_monomial)
    is_orthogonal = property(lambda self: self.left.is_orthogonal and self.right.is_orthogonal)
    is_linear = property(lambda self: self.left.is_linear and self.right.is_linear)
    dual = property(lambda self: Product(self.left.dual, self.right.dual))

    def _act(self, g, x, dim=-1):
        lead = g if isinstance(g, int) else g.reshape(*g.shape, *[1] * len(self.left.event_shape))
        x = self.right._act(lead, x, dim)
        return self.left._act(g, x, dim - len(self.right.event_shape))

    def _modulus(self, power):
        return Product(self.left._modulus(power), self.right._modulus(power))

    def _key(self):
        return (self.left, self.right)

    def __repr__(self):
        return f"{self.left} * {self.right}"


class DirectSum(Representation):
    """``ρ1(g) ⊕ ρ2(g)``: the two events stacked along their first axis, each moved by its own."""

    def __init__(self, left: Representation, right: Representation):
        _check_same_group(left, right)
        if left.event_shape[1:] != right.event_shape[1:] or not left.event_shape:
            raise SymmetryError(
                f"Expected events that agree but for the first axis; got {tuple(left.event_shape)} and "
                f"{tuple(right.event_shape)}."
            )
        self.group, self.left, self.right = left.group, left, right
        self.event_shape = torch.Size((left.event_shape[0] + right.event_shape[0], *left.event_shape[1:]))

    is_permutation = property(lambda self: self.left.is_permutation and self.right.is_permutation)
    is_monomial = property(lambda self: self.left.is_monomial and self.right.is_monomial)
    is_orthogonal = property(lambda self: self.left.is_orthogonal and self.right.is_orthogonal)
    is_linear = property(lambda self: self.left.is_linear and self.right.is_linear)
    dual = property(lambda self: DirectSum(self.left.dual, self.right.dual))

    def _act(self, g, x, dim=-1):
        axis = dim - len(self.event_shape) + 1
        sizes = [self.left.event_shape[0], self.right.event_shape[0]]
        first, second = x.split(sizes, axis)
        return torch.cat([self.left._act(g, first, dim), self.right._act(g, second, dim)], axis)

    def _modulus(self, power):
        return DirectSum(self.left._modulus(power), self.right._modulus(power))

    def _key(self):
        return (self.left, self.right)

    def __repr__(self):
        return f"({self.left} + {self.right})"


class Reshaped(Representation):
    """The action of ``base`` on its event laid out in another shape (as a flatten layer does)."""

    def __init__(self, base: Representation, shape, label: str = ""):
        self.group, self.base, self.event_shape = base.group, base, _shape(shape)
        self._label = label
        if self.event_shape.numel() != base.event_shape.numel():
            raise SymmetryError(
                f"Expected a shape of {base.event_shape.numel()} entries for {base}; got {tuple(self.event_shape)}."
            )

    is_permutation = property(lambda self: self.base.is_permutation)
    is_monomial = property(lambda self: self.base.is_monomial)
    is_orthogonal = property(lambda self: self.base.is_orthogonal)
    is_linear = property(lambda self: self.base.is_linear)
    dual = property(lambda self: Reshaped(self.base.dual, self.event_shape))

    def _act(self, g, x, dim=-1):
        end = x.ndim + dim + 1
        start = end - len(self.event_shape)
        inner = x.reshape(*x.shape[:start], *self.base.event_shape, *x.shape[end:])
        return self.base._act(g, inner, dim).reshape(x.shape)

    def _modulus(self, power):
        return Reshaped(self.base._modulus(power), self.event_shape)

    def _key(self):
        return (self.base, tuple(self.event_shape))

    def __repr__(self):
        return f"{self._label or f'({self.base}).reshape'}{tuple(self.event_shape)}"


class Pullback(Representation):
    """``g ↦ ρ(φ(g))`` along a homomorphism ``φ``: restriction to a subgroup, or one factor of a product."""

    def __init__(self, group: Group, base: Representation, homomorphism: Tensor):
        self.group, self.base, self._map = group, base, homomorphism
        self.event_shape = base.event_shape
        images = base.group.as_elements(homomorphism)
        for s in group.generators:
            if not torch.equal(images[group.compose(s, group.elements)], base.group.compose(images[s], images)):
                raise SymmetryError(f"Expected a homomorphism from {group} to {base.group}; products differ.")

    is_permutation = property(lambda self: self.base.is_permutation)
    is_monomial = property(lambda self: self.base.is_monomial)
    is_orthogonal = property(lambda self: self.base.is_orthogonal)
    is_linear = property(lambda self: self.base.is_linear)
    dual = property(lambda self: Pullback(self.group, self.base.dual, self._map))

    def _act(self, g, x, dim=-1):
        moved = int(self._map[g]) if isinstance(g, int) else self._map.to(g.device)[g]
        return self.base._act(moved, x, dim)

    def _modulus(self, power):
        return Pullback(self.group, self.base._modulus(power), self._map)

    def _key(self):
        return (self.base, _values(self._map))

    def __repr__(self):
        return f"{self.base} under {self.group}"


def trivial(group: Group, shape) -> Representation:
    """The representation that moves nothing, on tensors of the given shape.

    >>> import pyro_equivariance as pe
    >>> pe.trivial(pe.CyclicGroup(4), 10).event_shape
    torch.Size([10])
    """
    return Trivial(group, shape)


def permutation(group: Group, permutations=None) -> Representation:
    """``(ρ(g) x)[σ_g(i)] = x[i]`` along one axis.

    :param permutations: shape ``(len(group), n)``, row ``g`` is ``σ_g``; left out, the group's own (for a
        :class:`~pyro_equivariance.SymmetricGroup` or :class:`~pyro_equivariance.PermutationGroup`).
    :raises SymmetryError: if a row is no permutation or the rows do not compose as the group does.

    >>> import torch, pyro_equivariance as pe
    >>> swap = pe.permutation(pe.SymmetricGroup(2))
    >>> swap.act(1, torch.tensor([5.0, 7.0])).tolist()
    [7.0, 5.0]
    """
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


def image(group: Group, shape) -> Representation:
    """Rotations by 90° (counter-clockwise) and left-right mirrors of the last two axes.

    :param Group group: cyclic of order 1, 2 or 4, dihedral of 1, 2 or 4 rotations, or a subgroup of these;
        ``s·r^k`` turns first, then mirrors.
    :param shape: ``(..., height, width)``; axes before the last two are not moved. Rotations by 90° need
        ``height == width``.
    :raises SymmetryError: for another group or an image that is not square.

    >>> import pyro_equivariance as pe
    >>> pe.image(pe.DihedralGroup(4), (3, 28, 28)).event_shape
    torch.Size([3, 28, 28])
    """
    shape = _shape(shape)
    if isinstance(group, Subgroup):
        return image(group.parent, shape).pullback(group, group.inclusion)
    if not isinstance(group, (CyclicGroup, DihedralGroup)) or group.n not in (1, 2, 4):
        raise SymmetryError(
            f"Expected a group of 90° rotations and mirrors for images, such as CyclicGroup(4) or DihedralGroup(4); "
            f"got {group}."
        )
    if len(shape) < 2 or (group.n == 4 and shape[-1] != shape[-2]):
        raise SymmetryError(
            f"Expected images that are square, (..., n, n), for the rotations of {group}; got {tuple(shape)}. "
            f"Pad or crop them, or use a group without 90° turns (CyclicGroup(2), DihedralGroup(2))."
        )
    pixels = SignedPermutation(group, _pixel_permutations(group, *shape[-2:]))
    rep = Reshaped(pixels, shape[-2:], label="image")
    return trivial(group, shape[:-2]) * rep if len(shape) > 2 else rep


def _pixel_permutations(group: Group, height: int, width: int) -> Tensor:
    pixels = torch.arange(height * width).reshape(height, width)
    sources = []
    for g in range(len(group)):
        flip, turn = divmod(g, group.n)
        moved = pixels.rot90(turn * (4 // group.n) if group.n > 1 else 0, (0, 1))
        sources.append((moved.flip(1) if flip else moved).reshape(-1))
    return torch.stack(sources).argsort(-1)


def _take(x: Tensor, table: Tensor, g: int | Tensor, dim: int) -> Tensor:
    """``x`` with its axis ``dim`` read in the order ``table[g]``."""
    if isinstance(g, int):
        return x.index_select(dim, table[g].to(x.device))
    index = _between(table.to(x.device)[g.to(x.device)], dim, 1)
    shape = list(x.shape)
    return x.gather(dim, index.expand(*shape))


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


def _check_same_group(left: Representation, right: Representation) -> None:
    if left.group != right.group:
        raise SymmetryError(f"Expected representations of one group; got {left.group} and {right.group}.")


def _shape(shape) -> torch.Size:
    return torch.Size((shape,) if isinstance(shape, int) else shape)


def _values(table: Tensor) -> tuple:
    return (tuple(table.shape), tuple(table.flatten().tolist()))
