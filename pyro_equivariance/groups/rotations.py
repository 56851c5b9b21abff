"""Cyclic, dihedral and sign groups: elements computed from their index, no tables."""

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
