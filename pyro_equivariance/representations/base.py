"""What every representation offers, and the representations made of others."""

import copy
from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from ..errors import SymmetryError
from ..groups import Group, ProductGroup

MAX_ORBIT_TABLE = 2**20
COMMUTE_TOLERANCE = 1e-6


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
    space = "constrained"

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
        """Whether every ``ρ(g)`` is linear (:func:`angle`, :func:`labels` and affine maps of points are not)."""
        return True

    @property
    def is_approximate(self) -> bool:
        """Whether ``ρ(g) ρ(h) = ρ(gh)`` holds only nearly, as for images moved by interpolation."""
        return False

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
        shape = g.shape[: g.ndim - self.group.element_dims]
        batch = torch.broadcast_shapes(shape, x.shape[: x.ndim - len(self.event_shape)])
        # Not expanded: where one element moves many tensors, they share its tables.
        g = g.reshape((1,) * (len(batch) - len(shape)) + g.shape)
        return self._act(g, x.expand((*batch, *self.event_shape)))

    def orbit(self, x: Tensor) -> Tensor:
        """All moved copies of ``x`` along a new first axis: shape ``(len(group), ..., *event_shape)``."""
        self.check_shape(x)
        if self._copies is not None and not _is_transformed():
            flat = x.reshape(*x.shape[: x.ndim - len(self.event_shape)], self.event_shape.numel())
            copies = OrbitCopies.apply(flat, *(t.to(x.device) for t in self._copies))
            return copies.movedim(-2, 0).reshape(len(self.group), *x.shape)
        return torch.stack([self._act(g, x) for g in self.group.elements.tolist()])

    def mean(self, x: Tensor) -> Tensor:
        """The orbit mean ``(1/|G|) Σ_g ρ(g) x``, of the shape of ``x``.

        It is the projection onto the invariant tensors, taken along a chain of subgroups
        (:attr:`~pyro_equivariance.groups.Group.transversals`), and holds a few copies of ``x`` at a time; where entries
        are permuted, and not too many, it is the mean over the orbit of each. Over a list of elements it only smooths.
        """
        self.check_shape(x)
        self._need_linear("a mean over the orbit")
        self._need_exact("a mean over the orbit")
        if self.group.is_indexed and not self.group.is_uniform:
            return self.orbit(x).mean(0)
        if self._orbits is not None and not _is_transformed():
            if len(self._orbits[0]) == 1:
                return x
            flat = x.reshape(*x.shape[: x.ndim - len(self.event_shape)], self.event_shape.numel())
            return OrbitMean.apply(flat, *(t.to(x.device) for t in self._orbits)).reshape(x.shape)
        if self.is_permutation and self.group.is_finite and not self.group.is_indexed:
            return self._mean_over_connected(x)
        for coset in self.group.transversals:
            total = x
            for g in coset[1:]:
                total = total + self._act(g, x)
            x = total / len(coset)
        return x

    def _mean_over_connected(self, x: Tensor) -> Tensor:
        """Each entry replaced by the mean over its orbit, which no list of the group is needed for."""
        orbit_of = self._connected.to(x.device)
        flat = x.reshape(*x.shape[: x.ndim - len(self.event_shape)], self.event_shape.numel())
        sums = flat.new_zeros(*flat.shape[:-1], int(orbit_of.max()) + 1).index_add(-1, orbit_of, flat)
        return (sums / orbit_of.bincount()).index_select(-1, orbit_of).reshape(x.shape)

    @cached_property
    def _connected(self) -> Tensor:
        """The orbit of every entry of a permutation, those that the generators connect: shape ``(entries,)``."""
        orbits, before = torch.arange(self.event_shape.numel()).reshape(self.event_shape), None
        while before is None or not torch.equal(orbits, before):
            before = orbits
            for g in self.group.generators:
                orbits = torch.minimum(orbits, self._act(g, orbits))
        return orbits.flatten().unique(return_inverse=True)[1]

    @cached_property
    def _copies(self) -> tuple[Tensor, Tensor] | None:
        """Which entry each place of each moved copy is read from, ``(order, entries)``, and the inverse table.

        ``None`` for other actions than permutations, and for too many entries.
        """
        count = self.event_shape.numel()
        if not self.is_permutation or not self.group.is_indexed or count * len(self.group) > MAX_ORBIT_TABLE:
            return None
        entries = torch.arange(count).reshape(self.event_shape)
        table = torch.stack([self._act(g, entries).flatten().round().long() for g in range(len(self.group))])
        return table, table.argsort(-1)

    @cached_property
    def _orbits(self) -> tuple[Tensor, Tensor] | None:
        """The members of every orbit, ``(size, orbits)``, and the orbit of every entry.

        Those of smaller orbits are repeated. ``None`` if there are too many entries, or a size does not divide the
        largest.
        """
        if self._copies is None:
            return None
        first = self._copies[0].amin(0)
        _, orbit_of, sizes = first.unique(return_inverse=True, return_counts=True)
        if not len(sizes) or bool((sizes.max() % sizes).any()):
            return None
        starts = sizes.cumsum(0) - sizes
        within = torch.arange(int(sizes.max()))[:, None] % sizes
        return first.argsort(stable=True)[starts + within], orbit_of

    def matrix(self, g: Tensor | int) -> Tensor:
        """The dense matrix of ``ρ(g)`` on the flattened event, shape ``(*g.shape, n, n)``; for small events."""
        self._need_linear("a matrix")
        g = self.group.as_elements(g)
        n = self.event_shape.numel()
        basis = torch.eye(n, dtype=torch.get_default_dtype()).reshape(n, *self.event_shape)
        axes = g.ndim - self.group.element_dims
        return self.act(g.unsqueeze(axes), basis).reshape(*g.shape[:axes], n, n).mT

    def log_det(self, g: Tensor | int) -> Tensor:
        """``log |det ρ(g)|``, by how much ``ρ(g)`` stretches volumes: shape ``g.shape``; 0 for an exact finite group.

        >>> import torch, pyro_equivariance as pe
        >>> pe.vector(pe.GeneralLinear(2)).log_det(torch.eye(2) * 2).exp().item()
        4.0
        """
        g = self.group.as_elements(g)
        if self.is_orthogonal or (self.group.is_finite and self.group.is_uniform):
            return torch.zeros(g.shape[: g.ndim - self.group.element_dims], device=g.device)
        matrices = self.matrix(g)
        return torch.linalg.slogdet(matrices.to(g.dtype) if g.is_floating_point() else matrices).logabsdet

    def reshape(self, shape) -> "Representation":
        """The same action on the event laid out in another shape."""
        return Reshaped(self, shape)

    def on_unconstrained(self) -> "Representation":
        """The same action, said to be on the unconstrained values of a constrained site (the default is its own).

        >>> import pyro_equivariance as pe
        >>> pe.vector(pe.SignGroup()).on_unconstrained().space  # of a positive site: x goes to 1/x
        'unconstrained'
        """
        other = copy.copy(self)
        other.space = "unconstrained"
        return other

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
            raise SymmetryError(f"Expected a linear representation for {what}; {self} shifts angles, labels or points.")

    def _need_exact(self, what: str) -> None:
        if self.is_approximate:
            raise SymmetryError(
                f"Expected an exact representation for {what}; {self} of {self.group} interpolates. Use pe.image with "
                f"a group of 90° turns, such as CyclicGroup(4), or average a network's outputs instead."
            )

    def __mul__(self, other: "Representation") -> "Representation":
        return Product(self, other)

    def __add__(self, other: "Representation") -> "Representation":
        return DirectSum(self, other)

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other) or self.space != other.space:
            return False
        return (self.group, self._key()) == (other.group, other._key())

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.group, self._key()))


def _is_transformed() -> bool:
    """Whether torch traces or transforms the code, which a function with a derivative of its own does not bear."""
    return torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()


class OrbitCopies(torch.autograd.Function):
    """All moved copies of vectors ``(..., n)`` under permutations: ``(..., order, n)``, read from a table."""

    @staticmethod
    def forward(ctx, x: Tensor, sources: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(sources, places)
        return x.index_select(-1, sources.flatten()).unflatten(-1, sources.shape)

    @staticmethod
    def backward(ctx, gradient):
        sources, places = ctx.saved_tensors
        return OrbitSum.apply(gradient, sources, places), None, None


class OrbitSum(torch.autograd.Function):
    """The transpose of :class:`OrbitCopies`: every copy moved back, and their sum."""

    @staticmethod
    def forward(ctx, copies: Tensor, sources: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(sources, places)
        rows = torch.arange(len(sources), device=places.device)[:, None] * sources.shape[1]
        flat = copies.flatten(-2).index_select(-1, (places + rows).flatten())
        return flat.unflatten(-1, places.shape).sum(-2)

    @staticmethod
    def backward(ctx, gradient):
        return OrbitCopies.apply(gradient, *ctx.saved_tensors), None, None


class OrbitMean(torch.autograd.Function):
    """Each entry replaced by the mean over its orbit: an orthogonal projection, so its own derivative's transpose."""

    @staticmethod
    def forward(ctx, x: Tensor, members: Tensor, orbit_of: Tensor) -> Tensor:
        ctx.save_for_backward(members, orbit_of)
        means = x.index_select(-1, members.flatten()).unflatten(-1, members.shape).mean(-2)
        return means.index_select(-1, orbit_of)

    @staticmethod
    def backward(ctx, gradient):
        return OrbitMean.apply(gradient, *ctx.saved_tensors), None, None


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
    is_approximate = property(lambda self: self.left.is_approximate or self.right.is_approximate)
    dual = property(lambda self: Product(self.left.dual, self.right.dual))

    def _act(self, g, x, dim=-1):
        lead = g if isinstance(g, int) else _with_axes(g, self.group, len(self.left.event_shape))
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
    is_approximate = property(lambda self: self.left.is_approximate or self.right.is_approximate)
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
        self.group, self.base, self.event_shape = base.group, base, as_shape(shape)
        self._label = label
        if self.event_shape.numel() != base.event_shape.numel():
            raise SymmetryError(
                f"Expected a shape of {base.event_shape.numel()} entries for {base}; got {tuple(self.event_shape)}."
            )

    is_permutation = property(lambda self: self.base.is_permutation)
    is_monomial = property(lambda self: self.base.is_monomial)
    is_orthogonal = property(lambda self: self.base.is_orthogonal)
    is_linear = property(lambda self: self.base.is_linear)
    is_approximate = property(lambda self: self.base.is_approximate)
    dual = property(lambda self: Reshaped(self.base.dual, self.event_shape))

    def _act(self, g, x, dim=-1):
        end = x.ndim + dim + 1
        start = end - len(self.event_shape)
        inner = x.reshape((*x.shape[:start], *self.base.event_shape, *x.shape[end:]))
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
        self.group, self.base, self.homomorphism = group, base, homomorphism
        self.event_shape = base.event_shape
        images = base.group.as_elements(homomorphism)
        for s in group.generators:
            if not torch.equal(images[group.compose(s, group.elements)], base.group.compose(images[s], images)):
                raise SymmetryError(f"Expected a homomorphism from {group} to {base.group}; products differ.")

    is_permutation = property(lambda self: self.base.is_permutation)
    is_monomial = property(lambda self: self.base.is_monomial)
    is_orthogonal = property(lambda self: self.base.is_orthogonal)
    is_linear = property(lambda self: self.base.is_linear)
    is_approximate = property(lambda self: self.base.is_approximate)
    dual = property(lambda self: Pullback(self.group, self.base.dual, self.homomorphism))

    def _act(self, g, x, dim=-1):
        moved = int(self.homomorphism[g]) if isinstance(g, int) else self.homomorphism.to(g.device)[g]
        return self.base._act(moved, x, dim)

    def _modulus(self, power):
        return Pullback(self.group, self.base._modulus(power), self.homomorphism)

    def _key(self):
        return (self.base, as_values(self.homomorphism))

    def __repr__(self):
        return f"{self.base} under {self.group}"


class Factor(Pullback):
    """One factor of a product of groups acts: ``(g, h) ↦ ρ(g)`` for ``side`` 0, ``ρ(h)`` for 1; without a table.

    :param ProductGroup group: the product.
    :param Representation base: the representation of that factor.
    :param int side: 0 or 1.
    :raises SymmetryError: if ``base`` is of another group.
    """

    def __init__(self, group: ProductGroup, base: Representation, side: int):
        self.group, self.base, self.side = group, base, side
        self.event_shape = base.event_shape
        if base.group != (group.left, group.right)[side]:
            raise SymmetryError(f"Expected a representation of factor {side} of {group}; got one of {base.group}.")

    dual = property(lambda self: Factor(self.group, self.base.dual, self.side))

    @cached_property
    def homomorphism(self) -> Tensor:
        """The component of every element, for what needs a table."""
        return self.group.split(self.group.elements)[self.side]

    def _act(self, g, x, dim=-1):
        moved = self.group.split(g)[self.side]
        return self.base._act(int(moved) if isinstance(g, int) else moved, x, dim)

    def _modulus(self, power):
        return Factor(self.group, self.base._modulus(power), self.side)

    def _key(self):
        return (self.base, self.side)


class Composed(Representation):
    """``ρ1(g) ρ2(g)``: two actions on one event that commute, the second first.

    :param Representation left: ``ρ1``.
    :param Representation right: ``ρ2``, of the same group and on the same event.
    :raises SymmetryError: if ``ρ1(s) ρ2(t) = ρ2(t) ρ1(s)`` fails on a random tensor for some generators ``s, t``.

    >>> import torch, pyro_equivariance as pe
    >>> from pyro_equivariance.representations import Composed
    >>> G = pe.SignGroup()
    >>> swap, flip = pe.permutation(G, [[0, 1], [1, 0]]), pe.signed_permutation(G, [[0, 1]] * 2, [[1, 1], [-1, -1]])
    >>> Composed(swap, flip).act(1, torch.tensor([5.0, 7.0])).tolist()
    [-7.0, -5.0]
    """

    def __init__(self, left: Representation, right: Representation):
        _check_same_group(left, right)
        self.group, self.left, self.right = left.group, left, right
        self.event_shape = left.event_shape
        if left.event_shape != right.event_shape:
            raise SymmetryError(
                f"Expected two actions on tensors of one shape; got {tuple(left.event_shape)} of {left} and "
                f"{tuple(right.event_shape)} of {right}."
            )
        _check_commute(left, right)

    is_permutation = property(lambda self: self.left.is_permutation and self.right.is_permutation)
    is_monomial = property(lambda self: self.left.is_monomial and self.right.is_monomial)
    is_orthogonal = property(lambda self: self.left.is_orthogonal and self.right.is_orthogonal)
    is_linear = property(lambda self: self.left.is_linear and self.right.is_linear)
    is_approximate = property(lambda self: self.left.is_approximate or self.right.is_approximate)

    @cached_property
    def dual(self) -> Representation:
        """The dual of each."""
        return self if self.is_orthogonal else Composed(self.left.dual, self.right.dual)

    def _act(self, g, x, dim=-1):
        return self.left._act(g, self.right._act(g, x, dim), dim)

    def _modulus(self, power):
        return Composed(self.left._modulus(power), self.right._modulus(power))

    def _key(self):
        return (self.left, self.right)

    def __repr__(self):
        return f"{self.left} @ {self.right}"


def _check_commute(left: Representation, right: Representation) -> None:
    """Raise unless both orders agree on random tensors, for all pairs of generators."""
    probe, generators = _probe(left, right), torch.tensor(left.group.generators, dtype=torch.long)
    for s in left.group.generators:
        first = left.act(s, right.act(generators[:, None], probe))
        second = right.act(generators[:, None], left.act(s, probe))
        if first.numel() and not (first - second).abs().max() <= COMMUTE_TOLERANCE * first.abs().max():
            raise SymmetryError(
                f"Expected two actions that commute; {left} and {right} do not. Their order matters, so that the two "
                f"groups have no product here: give one group that holds both."
            )


def _probe(left: Representation, right: Representation) -> Tensor:
    """Random tensors that both can move, along a first axis: numbers, or labels, of which each place has all."""
    generator = torch.Generator().manual_seed(0)
    counts = [n for n in (_classes_of(left), _classes_of(right)) if n]
    if not counts:
        return torch.randn((1, *left.event_shape), generator=generator, dtype=torch.float64)
    first = torch.randint(min(counts), tuple(left.event_shape), generator=generator)
    return (first + torch.arange(min(counts)).reshape(-1, *[1] * len(left.event_shape))) % min(counts)


def _classes_of(rep: Representation) -> int | None:
    """How many labels it moves, it or a part of it; ``None`` if it moves numbers."""
    parts = [vars(rep)[name] for name in ("left", "right", "base") if name in vars(rep)]
    return getattr(rep, "classes", None) or next(filter(None, map(_classes_of, parts)), None)


def _check_same_group(left: Representation, right: Representation) -> None:
    if left.group != right.group:
        raise SymmetryError(f"Expected representations of one group; got {left.group} and {right.group}.")


def _with_axes(g: Tensor, group: Group, count: int) -> Tensor:
    """``g`` with so many axes of size 1 after its batch, before the axes of the elements themselves."""
    axes = g.ndim - group.element_dims
    return g.reshape(g.shape[:axes] + (1,) * count + g.shape[axes:])


def as_shape(shape) -> torch.Size:
    """A shape from an int or a sequence of them."""
    return torch.Size((shape,) if isinstance(shape, int) else shape)


def as_values(table: Tensor) -> tuple:
    """A table as plain numbers, to compare and to hash."""
    return (tuple(table.shape), tuple(table.flatten().tolist()))
