"""Groups of permutations: the whole symmetric group, and those given by a list."""

import math
import sys
from functools import cached_property

import torch
from torch import Tensor

from ..errors import SymmetryError
from .base import Group, positive_int


def rank(permutations: Tensor) -> Tensor:
    """The position of each permutation in lexicographic order (its Lehmer code).

    :param Tensor permutations: shape ``(..., n)``, each row a permutation of ``0 .. n-1``.
    :returns: indices of shape ``(...)``.
    """
    n = permutations.shape[-1]
    smaller_later = (permutations[..., :, None] > permutations[..., None, :]).triu(1).sum(-1)
    weights = torch.tensor([math.factorial(n - 1 - i) for i in range(n)])
    return (smaller_later * weights).sum(-1)


def unrank(index: Tensor, n: int) -> Tensor:
    """The inverse of :func:`rank`: permutations of shape ``(..., n)``."""
    remaining = torch.arange(n).expand(*index.shape, n)
    chosen = []
    for i in range(n):
        digit = (index // math.factorial(n - 1 - i) % (n - i))[..., None]
        chosen.append(remaining.gather(-1, digit))
        keep = torch.arange(n - i) != digit
        remaining = remaining[keep].reshape(*index.shape, n - i - 1)
    return torch.cat(chosen, -1)


class SymmetricGroup(Group):
    """All permutations of ``n`` things, in lexicographic order; composed without a table.

    The permutation ``p`` sends thing ``i`` to place ``p[i]``, and ``pq`` is first ``q``, then ``p``.

    :param int n: the number of things, at most 20 (21! does not fit an index).

    >>> from pyro_equivariance import SymmetricGroup
    >>> S3 = SymmetricGroup(3)
    >>> len(S3), S3.permutations(S3.elements)[1].tolist(), S3.names[1]
    (6, [0, 2, 1], '(1 2)')
    """

    def __init__(self, n: int):
        self.n = positive_int(n, "the number of things n of SymmetricGroup")
        if self.n > 20:
            raise SymmetryError(f"Expected SymmetricGroup(n) with n at most 20 (n! must fit an index); got {n}.")
        self.order = math.factorial(self.n)
        swaps = torch.arange(self.n).repeat(max(self.n - 1, 0), 1)
        for i in range(self.n - 1):
            swaps[i, [i, i + 1]] = swaps[i, [i + 1, i]]
        self.generators = tuple(rank(swaps).tolist())

    @cached_property
    def transversals(self) -> tuple[tuple[int, ...], ...]:
        """Along ``S_1 < S_2 < …``: the identity and the swaps of thing ``k`` with those before it, for each ``k``.

        >>> from pyro_equivariance import SymmetricGroup
        >>> [len(t) for t in SymmetricGroup(20).transversals][-1]
        20
        """
        return tuple((0, *rank(_swaps(self.n, k)).tolist()) for k in range(1, self.n))

    def permutations(self, g: Tensor) -> Tensor:
        """The permutation of each element, shape ``(..., n)``."""
        return unrank(self.as_elements(g), self.n)

    def _compose(self, a: Tensor, b: Tensor) -> Tensor:
        return rank(unrank(a, self.n).gather(-1, unrank(b, self.n)))

    def _inverse(self, a: Tensor) -> Tensor:
        return rank(unrank(a, self.n).argsort(-1))

    def _name(self, element: int) -> str:
        return cycles(unrank(torch.tensor(element), self.n).tolist())

    def _key(self) -> tuple:
        return (self.n,)

    def __repr__(self) -> str:
        return f"SymmetricGroup({self.n})"


class SignedPermutationGroup(Group):
    """All permutations of ``n`` things with signs, the hyperoctahedral group of order ``2^n n!``; without a table.

    The element ``(p, s)`` gives thing ``i`` the sign ``s[i]`` and sends it to place ``p[i]``:
    ``(ρ(g) x)[p[i]] = s[i] x[i]``. Its index is ``rank(p) · 2^n + Σ_i 2^i [s[i] = -1]``, with the lexicographic rank of
    :class:`SymmetricGroup`. In names the signs come last, for they act first: ``(0 1)·-2`` turns thing 2 over, then
    swaps 0 and 1.

    :param int n: the number of things, at most 16 (the order must fit an index).
    :raises SymmetryError: for another number.

    >>> from pyro_equivariance import SignedPermutationGroup
    >>> G = SignedPermutationGroup(2)
    >>> len(G), G.names, G.permutations(6).tolist(), G.signs(6).tolist()
    (8, ('e', '-0', '-1', '-0·-1', '(0 1)', '(0 1)·-0', '(0 1)·-1', '(0 1)·-0·-1'), [1, 0], [1, -1])
    """

    def __init__(self, n: int):
        self.n = positive_int(n, "the number of things n of SignedPermutationGroup")
        if self.n > 16:
            raise SymmetryError(
                f"Expected SignedPermutationGroup(n) with n at most 16 (2^n n! must fit an index); got {n}."
            )
        self.order = 2**self.n * math.factorial(self.n)
        self.generators = tuple(g * 2**self.n for g in SymmetricGroup(self.n).generators) + (1,)

    @cached_property
    def transversals(self) -> tuple[tuple[int, ...], ...]:
        """The sign of each thing, then those of the permutations."""
        permutations = SymmetricGroup(self.n).transversals
        return tuple((0, 2**i) for i in range(self.n)) + tuple(tuple(g * 2**self.n for g in t) for t in permutations)

    def permutations(self, g: Tensor) -> Tensor:
        """The permutation of each element, shape ``(..., n)``."""
        return unrank(self.as_elements(g) // 2**self.n, self.n)

    def signs(self, g: Tensor) -> Tensor:
        """The signs ``±1`` of each element, shape ``(..., n)``: entry ``i`` is that of thing ``i``."""
        return 1 - 2 * (self.as_elements(g)[..., None] // 2 ** torch.arange(self.n) % 2)

    def join(self, permutations: Tensor, signs: Tensor) -> Tensor:
        """The element that gives thing ``i`` the sign ``signs[..., i]`` and sends it to ``permutations[..., i]``."""
        bits = ((signs < 0) * 2 ** torch.arange(self.n)).sum(-1)
        return rank(permutations) * 2**self.n + bits

    def _compose(self, a: Tensor, b: Tensor) -> Tensor:
        inner = self.permutations(b)
        signs = self.signs(b) * self.signs(a).gather(-1, inner)
        return self.join(self.permutations(a).gather(-1, inner), signs)

    def _inverse(self, a: Tensor) -> Tensor:
        back = self.permutations(a).argsort(-1)
        return self.join(back, self.signs(a).gather(-1, back))

    def _name(self, element: int) -> str:
        moved = cycles(self.permutations(element).tolist())
        flipped = [f"-{i}" for i, sign in enumerate(self.signs(element).tolist()) if sign < 0]
        return "·".join([moved] * (moved != "e") + flipped)

    def _key(self) -> tuple:
        return (self.n,)

    def __repr__(self) -> str:
        return f"SignedPermutationGroup({self.n})"


class PermutationGroup(Group):
    """A group of permutations of ``0 .. n-1``, from its elements or from generators.

    If ``permutations`` is closed under composition and starts with the identity, it is the group, in the
    order given. Otherwise its members are generators, and the elements follow in breadth-first order.

    :param permutations: sequence of permutations, each a sequence of length ``n``.
    :raises SymmetryError: if a row is not a permutation.

    >>> from pyro_equivariance import PermutationGroup
    >>> len(PermutationGroup([(1, 2, 3, 0)]))
    4
    """

    def __init__(self, permutations):
        given = [_checked_row(row) for row in torch.as_tensor(permutations).tolist()]
        if not given:
            raise SymmetryError("Expected at least one permutation; got an empty list.")
        self.n = len(given[0])
        identity = tuple(range(self.n))
        elements = closure(given, identity, lambda p, q: tuple(p[i] for i in q))
        complete = given[0] == identity and len(set(given)) == len(given) == len(elements)
        self._elements = tuple(given if complete else elements)
        self._position = {p: i for i, p in enumerate(self._elements)}
        self.order = len(self._elements)
        self.generators = tuple(dict.fromkeys(self._position[p] for p in given if p != identity))
        self._permutations = torch.tensor(self._elements)

    def permutations(self, g: Tensor) -> Tensor:
        """The permutation of each element, shape ``(..., n)``."""
        return self._permutations[self.as_elements(g)]

    def _lookup(self, permutations: Tensor) -> Tensor:
        rows = permutations.reshape(-1, self.n).tolist()
        return torch.tensor([self._position[tuple(p)] for p in rows]).reshape(permutations.shape[:-1])

    def _compose(self, a: Tensor, b: Tensor) -> Tensor:
        return self._lookup(self._permutations[a].gather(-1, self._permutations[b]))

    def _inverse(self, a: Tensor) -> Tensor:
        return self._lookup(self._permutations[a].argsort(-1))

    def _name(self, element: int) -> str:
        return cycles(self._elements[element])

    def _key(self) -> tuple:
        return self._elements

    def __repr__(self) -> str:
        return f"PermutationGroup(order {self.order}, on {self.n})"


class YoungSubgroup:
    """All permutations of ``N`` things that keep consecutive blocks of the given sizes: ``S_{n_1} × … × S_{n_k}``.

    It may be far too large to number, so elements are the permutations themselves: integer tensors ``(..., N)``, over
    whose leading axes :meth:`compose` and :meth:`inverse` broadcast. ``p`` sends thing ``i`` to place ``p[i]``, and
    ``pq`` is first ``q``, then ``p``. There is no list of them: what needs one takes elements at random
    (:meth:`sample`), or a product of :class:`SymmetricGroup`. Immutable values: equal when the sizes are, hashable.

    :param sizes: ``n_1, …, n_k``, positive integers.
    :raises SymmetryError: for other sizes, or none.

    >>> from pyro_equivariance import YoungSubgroup
    >>> G = YoungSubgroup((2, 3))
    >>> G.order, G.compose([1, 0, 2, 3, 4], [0, 1, 3, 4, 2]).tolist()
    (12, [1, 0, 3, 4, 2])
    """

    is_finite, is_indexed, is_uniform = True, False, True
    element_dims = 1

    def __init__(self, sizes):
        sizes = sizes if isinstance(sizes, (tuple, list)) else (sizes,)
        self.sizes = tuple(positive_int(n, "the sizes of YoungSubgroup") for n in sizes)
        if not sizes:
            raise SymmetryError("Expected at least one size for YoungSubgroup; got none.")
        self.n = sum(self.sizes)
        self._blocks = torch.arange(len(sizes)).repeat_interleave(torch.tensor(self.sizes))

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.sizes == other.sizes

    def __hash__(self) -> int:
        return hash(("YoungSubgroup", self.sizes))

    def __repr__(self) -> str:
        return f"YoungSubgroup({self.sizes})"

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        if self.order > sys.maxsize:
            raise SymmetryError(f"Expected a group whose order fits len(); that of {self} does not. Use its .order.")
        return self.order

    def __mul__(self, other):
        raise SymmetryError(
            f"Expected groups whose elements are numbered, for a product; got {self}. Use one YoungSubgroup of the "
            f"sizes of both."
        )

    @property
    def order(self) -> int:
        """The number of elements, ``n_1! ⋯ n_k!``, an exact integer."""
        return math.prod(math.factorial(n) for n in self.sizes)

    @property
    def elements(self) -> Tensor:
        """There is no list, nor are there ``names`` or a ``table``.

        :raises SymmetryError: always.
        """
        raise SymmetryError(
            f"Expected a group that lists its elements; those of {self} are not numbered. Use elements at random, "
            f"group.sample(shape), or for few things a product of pe.SymmetricGroup(n)."
        )

    names = table = elements

    @property
    def identity(self) -> Tensor:
        """The permutation that moves nothing, shape ``(N,)``."""
        return torch.arange(self.n)

    def slice_of(self, block: int) -> slice:
        """Which of the ``N`` things are those of a block.

        :raises SymmetryError: if there is no such block.

        >>> from pyro_equivariance import YoungSubgroup
        >>> YoungSubgroup((2, 3)).slice_of(1)
        slice(2, 5, None)
        """
        if isinstance(block, bool) or not isinstance(block, int) or not 0 <= block < len(self.sizes):
            raise SymmetryError(f"Expected a block of {self} between 0 and {len(self.sizes) - 1}; got {block!r}.")
        start = sum(self.sizes[:block])
        return slice(start, start + self.sizes[block])

    @property
    def generators(self) -> tuple[Tensor, ...]:
        """The swaps of neighbours inside the blocks, ``N - k`` elements."""
        return tuple(self._swap(i, i + 1) for i in range(self.n - 1) if self._blocks[i] == self._blocks[i + 1])

    @cached_property
    def transversals(self) -> tuple[tuple[Tensor, ...], ...]:
        """Short lists of elements such that each element is one product, as for the other groups.

        The ``m``-th of a block swaps its thing ``m`` with each of those before it.

        >>> from pyro_equivariance import YoungSubgroup
        >>> [len(t) for t in YoungSubgroup((2, 3)).transversals]
        [2, 2, 3]
        """
        blocks = [self.slice_of(block) for block in range(len(self.sizes))]
        return tuple(
            (self.identity, *(self._swap(i, m) for i in range(block.start, m)))
            for block in blocks
            for m in range(block.start + 1, block.stop)
        )

    def _swap(self, i: int, j: int) -> Tensor:
        swapped = self.identity
        swapped[[i, j]] = swapped[[j, i]]
        return swapped

    def permutations(self, g: Tensor) -> Tensor:
        """The permutation of each element, which is the element itself: shape ``(..., N)``."""
        return self.as_elements(g)

    def compose(self, a: Tensor, b: Tensor) -> Tensor:
        """The product ``ab`` (first ``b``, then ``a``), of the broadcast shape.

        :raises SymmetryError: if a row is no element of the group.
        """
        a, b = torch.broadcast_tensors(self.as_elements(a), self.as_elements(b))
        return a.gather(-1, b)

    def inverse(self, a: Tensor) -> Tensor:
        """The inverse of each element, of the same shape."""
        return self.as_elements(a).argsort(-1)

    def sample(self, shape=()) -> Tensor:
        """Independent uniform elements ``(*shape, N)``.

        >>> from pyro_equivariance import YoungSubgroup
        >>> YoungSubgroup((16, 16)).sample((5, 2)).shape
        torch.Size([5, 2, 32])
        """
        orders = torch.rand(*shape, self.n, dtype=torch.float64) + self._blocks
        return orders.argsort(-1)

    def as_elements(self, g: Tensor) -> Tensor:
        """``g`` as an integer tensor, checked to consist of permutations that keep the blocks.

        :raises SymmetryError: for another dtype or length, or a row that is no element of the group.
        """
        g = torch.as_tensor(g)
        if g.is_floating_point() or g.is_complex() or g.dtype == torch.bool:
            raise SymmetryError(f"Expected elements of {self} as integer permutations; got dtype {g.dtype}.")
        if g.shape[-1:] != (self.n,):
            raise SymmetryError(f"Expected elements of {self} as permutations (..., {self.n}); got shape "
                                f"{tuple(g.shape)}.")  # fmt: skip
        if g.numel() and not torch.compiler.is_compiling():
            self._check_permutations(g)
        return g.long()

    def _check_permutations(self, g: Tensor) -> None:
        rows, things = g.reshape(-1, self.n), torch.arange(self.n, device=g.device)
        wrong = (rows.sort(-1).values != things).any(-1)
        if bool(wrong.any()):
            raise SymmetryError(
                f"Expected elements of {self}: permutations of 0 .. {self.n - 1}; got {rows[wrong][0].tolist()}."
            )
        blocks = self._blocks.to(g.device)
        wrong = (blocks[rows] != blocks).any(-1)
        if bool(wrong.any()):
            raise SymmetryError(
                f"Expected elements of {self}: permutations that keep its blocks; got {rows[wrong][0].tolist()}."
            )


def closure(generators, identity, compose) -> list:
    """All products of ``generators`` in breadth-first order from the identity (hashable elements)."""
    found, frontier = {identity: None}, [identity]
    while frontier:
        fresh = []
        for element in frontier:
            for generator in generators:
                product = compose(generator, element)
                if product not in found:
                    found[product] = None
                    fresh.append(product)
        frontier = fresh
    return list(found)


def _swaps(n: int, k: int) -> Tensor:
    """The permutations of ``n`` things that swap ``k`` with one before it, ``(k, n)``."""
    swaps = torch.arange(n).repeat(k, 1)
    swaps[:, k] = torch.arange(k)
    swaps[torch.arange(k), torch.arange(k)] = k
    return swaps


def cycles(permutation) -> str:
    """Cycle notation, fixed points left out: ``(0 2 1)`` sends 0 to 2, 2 to 1 and 1 to 0."""
    left, text = set(range(len(permutation))), ""
    while left:
        cycle = [min(left)]
        while permutation[cycle[-1]] != cycle[0]:
            cycle.append(permutation[cycle[-1]])
        left -= set(cycle)
        text += f"({' '.join(map(str, cycle))})" if len(cycle) > 1 else ""
    return text or "e"


def _checked_row(row) -> tuple[int, ...]:
    row = tuple(row) if isinstance(row, (list, tuple)) else (row,)
    if not all(type(i) is int for i in row) or sorted(row) != list(range(len(row))):
        raise SymmetryError(f"Expected a permutation of 0 .. {len(row) - 1}; got {row}.")
    return row
