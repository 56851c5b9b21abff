"""Cyclic, dihedral and sign groups, and the group of the cube."""

from functools import lru_cache
from itertools import permutations, product

import torch
from torch import Tensor

from .base import Group, positive_int


def _angle(k: int, n: int) -> str:
    return f"r{360 * k / n:g}"


class CyclicGroup(Group):
    """The rotations of a regular n-gon, ``r^k`` for ``k = 0 .. n-1``; element ``k`` turns by ``360 k / n`` degrees.

    :param int n: the number of rotations.

    >>> from pyro_equivariance import CyclicGroup
    >>> CyclicGroup(4).names
    ('e', 'r90', 'r180', 'r270')
    """

    def __init__(self, n: int):
        self.order = self.n = positive_int(n, "the order n of CyclicGroup")
        self.generators = (1,) if self.n > 1 else ()

    def _compose(self, a: Tensor, b: Tensor) -> Tensor:
        return (a + b) % self.n

    def _inverse(self, a: Tensor) -> Tensor:
        return -a % self.n

    def _name(self, element: int) -> str:
        return _angle(element, self.n)

    def _key(self) -> tuple:
        return (self.n,)

    def __repr__(self) -> str:
        return f"CyclicGroup({self.n})"


class DihedralGroup(Group):
    """The ``2n`` rotations and reflections of a regular n-gon.

    Element ``k < n`` is the rotation ``r^k``, element ``n + k`` is ``s r^k``: first turn, then reflect, so
    ``r s = s r^{-1}`` and ``(s^a r^j)(s^b r^k) = s^{a+b} r^{(-1)^b j + k}``.

    :param int n: the number of rotations.

    >>> from pyro_equivariance import DihedralGroup
    >>> DihedralGroup(4).names[4:]
    ('s', 's·r90', 's·r180', 's·r270')
    """

    def __init__(self, n: int):
        self.n = positive_int(n, "the number of rotations n of DihedralGroup")
        self.order = 2 * self.n
        self.generators = (1, self.n) if self.n > 1 else (1,)

    def _compose(self, a: Tensor, b: Tensor) -> Tensor:
        flip_a, flip_b = a // self.n, b // self.n
        turn = (1 - 2 * flip_b) * (a % self.n) + b % self.n
        return (flip_a ^ flip_b) * self.n + turn % self.n

    def _inverse(self, a: Tensor) -> Tensor:
        flip = a // self.n
        return flip * self.n + (2 * flip - 1) * (a % self.n) % self.n

    def _name(self, element: int) -> str:
        flip, turn = divmod(element, self.n)
        return "·".join(["s"] * flip + [_angle(turn, self.n)] * (turn > 0))

    def _key(self) -> tuple:
        return (self.n,)

    def __repr__(self) -> str:
        return f"DihedralGroup({self.n})"


class SignGroup(Group):
    """The two signs ``{+1, -1}``; element 1 flips.

    >>> from pyro_equivariance import SignGroup
    >>> SignGroup().names
    ('e', '-1')
    """

    order = 2
    generators = (1,)

    def _compose(self, a: Tensor, b: Tensor) -> Tensor:
        return a ^ b

    def _inverse(self, a: Tensor) -> Tensor:
        return a

    def _name(self, element: int) -> str:
        return "-1"

    def _key(self) -> tuple:
        return ()

    def __repr__(self) -> str:
        return "SignGroup()"


class OctahedralGroup(Group):
    """The 24 rotations of the cube, or with ``reflections=True`` all of its 48 symmetries.

    An element is a signed permutation of the three axes; ``matrices`` holds them all, ``(order, 3, 3)`` in float64.
    Names give the angle in degrees and the axis it turns about; a leading ``-`` is an inversion on top.

    :param bool reflections: whether reflections belong to it.

    >>> from pyro_equivariance import OctahedralGroup
    >>> len(OctahedralGroup()), len(OctahedralGroup(reflections=True)), OctahedralGroup().names[1]
    (24, 48, 'r90[1, 0, 0]')
    """

    def __init__(self, reflections: bool = False):
        self.reflections = bool(reflections)
        self.matrices, self._products, self.generators = _cube(self.reflections)
        self.order = len(self.matrices)

    def _compose(self, a: Tensor, b: Tensor) -> Tensor:
        return self._products[a, b]

    def _inverse(self, a: Tensor) -> Tensor:
        return (self._products == 0).long().argmax(1)[a]

    def _name(self, element: int) -> str:
        matrix = self.matrices[element]
        inverted = bool(torch.linalg.det(matrix) < 0)
        return "-" * inverted + _turn(-matrix if inverted else matrix)

    def _key(self) -> tuple:
        return (self.reflections,)

    def __reduce__(self):
        return OctahedralGroup, (self.reflections,)

    def __repr__(self) -> str:
        return "OctahedralGroup(reflections=True)" if self.reflections else "OctahedralGroup()"


@lru_cache(maxsize=2)
def _cube(reflections: bool) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Matrices with the identity first and a quarter turn next, their table of products, and generators."""
    signed = [
        torch.diag(torch.tensor(signs, dtype=torch.float64))[list(axes)]
        for axes in permutations(range(3))
        for signs in product((1.0, -1.0), repeat=3)
    ]
    proper = [m for m in signed if torch.linalg.det(m) > 0]
    proper.sort(key=lambda m: (_angle_of(m), [-v for v in _axis_of(m)]))
    matrices = torch.stack(proper + [-m for m in proper] if reflections else proper)
    products = matrices[:, None] @ matrices
    table = (products[:, :, None] == matrices).all(-1).all(-1).long().argmax(-1)
    generators = (1, 2, len(proper)) if reflections else (1, 2)
    return matrices, table, generators


def _angle_of(rotation: Tensor) -> int:
    """In degrees, one of 0, 90, 120, 180."""
    return {3: 0, 1: 90, 0: 120, -1: 180}[int(rotation.trace())]


def _axis_of(rotation: Tensor) -> list[int]:
    """The smallest integer vector along the axis, by the right-hand rule (for half turns, its first entry positive)."""
    r = rotation.long()
    twice = [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]]
    if not any(twice):
        column = (r + torch.eye(3, dtype=torch.long)).T[int((r.diagonal() >= 0).long().argmax())]
        twice = list(column * column[column != 0][0].sign())
    return [int(v.sign()) for v in twice]


def _turn(rotation: Tensor) -> str:
    angle = _angle_of(rotation)
    return "i" if angle == 0 else f"r{angle}{_axis_of(rotation)}"
