"""Groups of permutations: the whole symmetric group, and those given by a list."""

import math

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
