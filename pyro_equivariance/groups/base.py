"""What every group offers, and the groups made of groups: direct products and subgroups."""

from abc import ABC, abstractmethod
from functools import cached_property
from numbers import Real

import torch
from torch import Tensor

from ..errors import SymmetryError

MAX_TABLE_ORDER = 2048
MAX_CHAIN_ORDER = 64
MAX_ORDER = torch.iinfo(torch.int64).max


class Group(ABC):
    """A finite group, its elements numbered ``0 .. len(G) - 1`` with the identity at 0.

    Elements travel as integer tensors of any shape: :meth:`compose` and :meth:`inverse` broadcast over them.
    Groups are immutable values: equal when built alike, hashable, readable when printed.

    To implement one:

    - set ``order`` (the number of elements) and ``generators`` (indices that generate the group);
    - :meth:`_compose` and :meth:`_inverse` on index tensors;
    - :meth:`_name` of one index, and :meth:`_key`, what tells two groups of the class apart.
    """

    is_finite = True
    is_indexed = True  # whether elements are the numbers 0 .. order - 1
    is_uniform = True  # whether `sample` draws from the invariant law, so that means over it are invariant
    element_dims = 0  # axes of one element: none for an index, one for a permutation, two for a matrix

    order: int
    generators: tuple[int, ...]

    @abstractmethod
    def _compose(self, a: Tensor, b: Tensor) -> Tensor: ...

    @abstractmethod
    def _inverse(self, a: Tensor) -> Tensor: ...

    @abstractmethod
    def _name(self, element: int) -> str: ...

    @abstractmethod
    def _key(self) -> tuple: ...

    def __len__(self) -> int:
        return self.order

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash((type(self).__name__, self._key()))

    def __mul__(self, other: "Group") -> "Group":
        return ProductGroup(self, other)

    @property
    def elements(self) -> Tensor:
        """All elements, shape ``(order,)``, the identity first."""
        return torch.arange(self.order)

    @property
    def identity(self) -> Tensor:
        """The number of the element that moves nothing, 0."""
        return torch.tensor(0)

    @property
    def names(self) -> tuple[str, ...]:
        """A readable name of each element, the identity's being ``"e"``."""
        return tuple(map(self.name, range(self.order)))

    def name(self, element: int) -> str:
        """The name of one element."""
        return "e" if element == 0 else self._name(element)

    def compose(self, a: Tensor | int, b: Tensor | int) -> Tensor:
        """The product ``ab`` (first ``b``, then ``a``, when the elements act).

        :param Tensor a: indices of any shape.
        :param Tensor b: indices that broadcast against ``a``.
        :returns: indices, of the broadcast shape.
        :raises SymmetryError: if an index is no element of the group.

        >>> from pyro_equivariance import DihedralGroup
        >>> D4 = DihedralGroup(4)
        >>> D4.names[int(D4.compose(4, 1))]
        's·r90'
        """
        return self._compose(*torch.broadcast_tensors(self.as_elements(a), self.as_elements(b)))

    def inverse(self, a: Tensor | int) -> Tensor:
        """The inverse of each element, of the same shape."""
        return self._inverse(self.as_elements(a))

    def sample(self, shape=()) -> Tensor:
        """Independent uniform (Haar) elements, of the given shape."""
        return torch.randint(self.order, tuple(shape))

    @property
    def table(self) -> Tensor:
        """The Cayley table ``(order, order)``: ``table[a, b]`` is ``ab``."""
        if self.order > MAX_TABLE_ORDER:
            raise SymmetryError(
                f"Expected at most {MAX_TABLE_ORDER} elements for a Cayley table; {self} has {self.order}. "
                f"Use compose(a, b), which needs no table."
            )
        return self.compose(self.elements[:, None], self.elements)

    @cached_property
    def transversals(self) -> tuple[tuple[int, ...], ...]:
        """Short lists ``T_1, …, T_k`` such that each element is one product ``t_k ⋯ t_1``, exactly once.

        They are coset representatives along a chain of subgroups, so a sum over the group,
        ``Σ_g ρ(g) = (Σ_{t ∈ T_k} ρ(t)) ⋯ (Σ_{t ∈ T_1} ρ(t))``, takes ``Σ_i (|T_i| - 1)`` actions instead of
        ``|G| - 1``: 3 instead of 7 for the symmetries of the square, 15 instead of 719 for six things permuted.

        >>> from pyro_equivariance import CyclicGroup
        >>> CyclicGroup(4).transversals
        ((0, 2), (0, 1))
        """
        steps, generators, reached = [], [], torch.zeros(1, dtype=torch.long)
        while len(reached) < self.order:
            generators.append(self._next_generator(generators, reached))
            subgroup = self._generated(generators)
            steps.append(self._coset_representatives(subgroup, reached))
            reached = subgroup
        return tuple(steps)

    def _next_generator(self, generators: list[int], reached: Tensor) -> int:
        """The element whose addition enlarges the subgroup least (for large groups: a stored generator)."""
        candidates = self.generators if self.order > MAX_CHAIN_ORDER else range(1, self.order)
        outside = sorted(set(candidates) - set(reached.tolist()))
        return min(outside, key=lambda c: len(self._generated([*generators, c])))

    def _coset_representatives(self, subgroup: Tensor, inner: Tensor) -> tuple[int, ...]:
        cosets = self._compose(*torch.broadcast_tensors(subgroup[:, None], inner)).amin(1)
        return tuple(cosets.unique().tolist())

    def _generated(self, generators) -> Tensor:
        """The elements of the subgroup that ``generators`` generate, in increasing order."""
        inside = torch.zeros(self.order, dtype=torch.bool)
        inside[0] = True
        frontier, steps = torch.zeros(1, dtype=torch.long), torch.tensor([0, *generators])[:, None]
        while len(frontier):
            products = self._compose(*torch.broadcast_tensors(steps, frontier)).unique()
            frontier = products[~inside[products]]
            inside[frontier] = True
        return inside.nonzero()[:, 0]

    def subgroup(self, generators) -> "Group":
        """The smallest subgroup that contains ``generators``, given as indices or as names.

        >>> from pyro_equivariance import DihedralGroup
        >>> DihedralGroup(4).subgroup(["r180", "s"]).names
        ('e', 'r180', 's', 's·r180')
        """
        return Subgroup(self, tuple(self.index(g) for g in generators))

    def index(self, element: int | str | Tensor) -> int:
        """The index of one element given by name or index."""
        if not isinstance(element, str):
            return int(self.as_elements(element))
        if element not in self.names:
            raise SymmetryError(f"Expected the name of an element of {self}; got {element!r}. Names: {self.names}.")
        return self.names.index(element)

    def as_elements(self, g: Tensor | int) -> Tensor:
        """``g`` as an index tensor, checked to lie in the group."""
        g = torch.as_tensor(g)
        if g.is_floating_point() or g.dtype == torch.bool:
            raise SymmetryError(f"Expected elements of {self} as integer indices; got dtype {g.dtype}.")
        if g.numel() and not torch.compiler.is_compiling() and (g.min() < 0 or g.max() >= self.order):
            raise SymmetryError(
                f"Expected elements of {self} between 0 and {self.order - 1}; got {int(g.min())} to {int(g.max())}."
            )
        return g


class ProductGroup(Group):
    """The direct product ``G × H``; element ``(g, h)`` has the index ``g · len(H) + h``.

    :param Group left: G.
    :param Group right: H.

    >>> from pyro_equivariance import CyclicGroup, SignGroup
    >>> P = CyclicGroup(2) * SignGroup()
    >>> P.names
    ('e', '(e, -1)', '(r180, e)', '(r180, -1)')
    """

    def __init__(self, left: Group, right: Group):
        if not (left.is_indexed and right.is_indexed):
            raise SymmetryError(f"Expected groups whose elements are numbered, for a product; got {left} and {right}.")
        self.left, self.right = left, right
        self.order = len(left) * len(right)
        if self.order > MAX_ORDER:
            raise SymmetryError(f"Expected a product whose order fits an index; got {left} and {right}: {self.order}.")
        self.generators = tuple(g * len(right) for g in left.generators) + tuple(right.generators)

    @cached_property
    def transversals(self) -> tuple[tuple[int, ...], ...]:
        """Those of the second factor, then those of the first."""
        return self.right.transversals + tuple(tuple(g * len(self.right) for g in t) for t in self.left.transversals)

    def split(self, g: Tensor | int) -> tuple[Tensor, Tensor]:
        """The two components of each element."""
        g = self.as_elements(g)
        return g // len(self.right), g % len(self.right)

    def _compose(self, a: Tensor, b: Tensor) -> Tensor:
        (a1, a2), (b1, b2) = self.split(a), self.split(b)
        return self.left.compose(a1, b1) * len(self.right) + self.right.compose(a2, b2)

    def _inverse(self, a: Tensor) -> Tensor:
        left, right = self.split(a)
        return self.left.inverse(left) * len(self.right) + self.right.inverse(right)

    def _name(self, element: int) -> str:
        left, right = divmod(element, len(self.right))
        return f"({self.left.name(left)}, {self.right.name(right)})"

    def _key(self) -> tuple:
        return (self.left, self.right)

    def __repr__(self) -> str:
        return f"{self.left} * {self.right}"


class Subgroup(Group):
    """The subgroup of ``parent`` generated by some of its elements, in the parent's order.

    ``inclusion`` is the index tensor that takes each element to the parent's.

    :param Group parent: the group it lies in.
    :param tuple generators: indices of the parent.
    """

    def __init__(self, parent: Group, generators: tuple[int, ...]):
        self.parent = parent
        self.inclusion = parent._generated(generators)
        self.order = len(self.inclusion)
        self.parent_generators = tuple(g for g in generators if g != 0)
        self.generators = tuple(self._restrict(torch.tensor([g for g in generators if g != 0])).tolist())

    def _restrict(self, parent_elements: Tensor) -> Tensor:
        return torch.searchsorted(self.inclusion, parent_elements.long().contiguous())

    def _compose(self, a: Tensor, b: Tensor) -> Tensor:
        return self._restrict(self.parent.compose(self.inclusion[a], self.inclusion[b]))

    def _inverse(self, a: Tensor) -> Tensor:
        return self._restrict(self.parent.inverse(self.inclusion[a]))

    def _name(self, element: int) -> str:
        return self.parent.name(int(self.inclusion[element]))

    def _key(self) -> tuple:
        return (self.parent, tuple(self.inclusion.tolist()))

    def __repr__(self) -> str:
        return f"{self.parent}.subgroup({[self.names[g] for g in self.generators]})"


def positive_int(value, what: str) -> int:
    """``value`` as a positive int, or a :class:`SymmetryError` that says what it is."""
    if not isinstance(value, Real) or isinstance(value, bool) or value < 1 or value % 1:
        raise SymmetryError(f"Expected {what} to be a positive integer; got {value!r}.")
    return int(value)
