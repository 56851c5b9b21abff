"""The rotations of space, a continuous group: elements are matrices, and finite subgroups approximate it."""

import math

import torch
from torch import Tensor

from ..errors import SymmetryError
from .base import Group, Subgroup
from .matrices import MatrixGroup
from .rotations import CyclicGroup, OctahedralGroup

SEARCH_POINTS, SEARCH_STARTS, SEARCH_STEPS = 4096, 16, 80


class SpecialOrthogonal(MatrixGroup):
    """The rotations of ``R^n``, each a matrix of determinant 1; ``n = 2`` turns the plane counter-clockwise.

    Elements travel as floating tensors ``(..., n, n)``: :meth:`compose` and :meth:`inverse` broadcast over the leading
    axes. There is no list of them: what needs one takes a finite group, such as a :meth:`subgroup`, whose distance
    from the whole is its :meth:`covering_radius`.

    :param int n: the dimension, at least 2.

    >>> from pyro_equivariance.groups.continuous import SpecialOrthogonal
    >>> SO2 = SpecialOrthogonal(2)
    >>> SO2.compose(SO2.rotation(0.5), SO2.rotation(-0.5)).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    is_uniform = True

    def __init__(self, n: int):
        super().__init__(n)
        if self.n < 2:
            raise SymmetryError(f"Expected SpecialOrthogonal(n) with n at least 2; got {n}.")

    @property
    def way_out(self) -> str:
        """A finite group to take instead, or elements at random."""
        kind = {2: "8", 3: '"octahedral"'}.get(self.n, "4")
        return f"a finite subgroup of it, such as {self}.subgroup({kind}), or elements at random, {self}.sample(shape)"

    def rotation(self, angle: Tensor | float, plane: tuple[int, int] = (0, 1)) -> Tensor:
        """The rotations by ``angle`` radians in the plane of two axes, from the first towards the second.

        :param Tensor angle: any shape.
        :returns: shape ``(*angle.shape, n, n)``, float64.
        """
        angle = torch.as_tensor(angle, dtype=torch.float64)[..., None, None]
        unit = self.identity
        first, second = unit[list(plane)]
        turning = second[:, None] * first - first[:, None] * second
        return unit + angle.sin() * turning + (1 - angle.cos()) * turning @ turning

    def _inverse(self, a: Tensor) -> Tensor:
        return a.mT

    def sample(self, shape=()) -> Tensor:
        """Independent uniform (Haar) elements ``(*shape, n, n)``, float64.

        [1] Mezzadri (2007) "How to generate random matrices from the classical compact groups"
        https://arxiv.org/abs/math-ph/0609050

        >>> from pyro_equivariance.groups.continuous import SpecialOrthogonal
        >>> SpecialOrthogonal(3).sample((5, 2)).shape
        torch.Size([5, 2, 3, 3])
        """
        return self._haar(tuple(shape))

    def _haar(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """The orthogonal factor of a Gaussian matrix, its signs made unique; one column turned over where det = -1."""
        gaussian = torch.randn(*shape, self.n, self.n, dtype=torch.float64, generator=generator)
        q, r = torch.linalg.qr(gaussian)
        q = q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
        turned_over = torch.linalg.det(q).sign()[..., None]
        return torch.cat([q[..., :1] * turned_over[..., None], q[..., 1:]], -1)

    def _check_elements(self, g: Tensor) -> None:
        off = float((g.mT @ g - self.identity.to(g)).abs().max())
        if not off <= torch.finfo(g.dtype).eps ** 0.5:  # NaN is off as well
            raise SymmetryError(f"Expected elements of {self}: orthogonal matrices; g^T g is off 1 by {off:.1e}.")
        if bool((torch.linalg.det(g) < 0).any()):
            raise SymmetryError(f"Expected elements of {self}: determinant 1; got a reflection, determinant -1.")

    def subgroup(self, kind: int | str) -> Group:
        """A finite subgroup: the ``kind`` rotations in the plane of the first two axes, or for ``n = 3`` the cube's.

        :param kind: the number of rotations, or ``"octahedral"``.
        :returns: a finite group, whose matrices :meth:`embed` gives.

        >>> from pyro_equivariance.groups.continuous import SpecialOrthogonal
        >>> SpecialOrthogonal(2).subgroup(8), SpecialOrthogonal(3).subgroup("octahedral")
        (CyclicGroup(8), OctahedralGroup())
        """
        if kind == "octahedral" and self.n == 3:
            return OctahedralGroup()
        if isinstance(kind, str):
            raise SymmetryError(
                f"Expected a number of rotations, or 'octahedral' for SpecialOrthogonal(3); got {kind!r} for {self}."
            )
        return CyclicGroup(kind)

    def embed(self, subgroup: Group, g: Tensor | int) -> Tensor:
        """The matrices ``(*g.shape, n, n)`` of elements of a finite subgroup, float64.

        :param Group subgroup: cyclic (turning the first two axes), octahedral for ``n = 3``, or a subgroup of these.
        :raises SymmetryError: for another group.

        >>> from pyro_equivariance.groups.continuous import SpecialOrthogonal
        >>> SO2 = SpecialOrthogonal(2)
        >>> SO2.embed(SO2.subgroup(4), 1).round().tolist()
        [[0.0, -1.0], [1.0, 0.0]]
        """
        g = subgroup.as_elements(g)
        if isinstance(subgroup, Subgroup):
            return self.embed(subgroup.parent, subgroup.inclusion[g])
        if isinstance(subgroup, CyclicGroup):
            return self.rotation(g.double() * (2 * math.pi / subgroup.n))
        if isinstance(subgroup, OctahedralGroup) and not subgroup.reflections and self.n == 3:
            return subgroup.matrices[g]
        raise SymmetryError(f"Expected a finite subgroup of {self}, such as CyclicGroup(8); got {subgroup}.")

    def covering_radius(self, subgroup: Group | Tensor) -> float:
        """``κ = max_R min_b ‖R − b‖``: how far a rotation can be from the nearest of a finite set (operator norm).

        It is ``2 sin(θ/2)`` for the largest angle ``θ`` that is left: ``2 sin(π/2m)`` for ``CyclicGroup(m)`` in the
        plane. Otherwise it is searched for, from seeded random starts, to about 1e-6. For the octahedral group ``θ`` is
        62.80°, the largest disorientation of two cubes [1].

        :param subgroup: a finite group that :meth:`embed` takes, or rotation matrices ``(m, n, n)``.
        :raises SymmetryError: for ``n > 3``, or matrices that are no rotations.

        [1] Mackenzie (1958) "Second paper on statistics associated with the random disorientation of cubes",
        Biometrika 45, 229-240.

        >>> from pyro_equivariance.groups.continuous import SpecialOrthogonal
        >>> SO3 = SpecialOrthogonal(3)
        >>> round(SO3.covering_radius(SO3.subgroup("octahedral")), 4)
        1.042
        """
        if self.n > 3:
            raise SymmetryError(f"Expected the covering radius in two or three dimensions; got {self}.")
        if isinstance(subgroup, CyclicGroup) and self.n == 2:
            return 2 * math.sin(math.pi / (2 * subgroup.n))
        points = subgroup if isinstance(subgroup, Tensor) else self.embed(subgroup, subgroup.elements)
        return _largest_distance(self, self.as_elements(points).double())


def _largest_distance(group: SpecialOrthogonal, points: Tensor) -> float:
    """The best of many rotations, each then replaced by the best of its neighbours, ever closer ones.

    In two and three dimensions ``‖R − b‖ = 2 sin(θ/2) = √(n − tr(bᵀR))`` for the angle ``θ`` of ``bᵀR``.
    """
    generator = torch.Generator().manual_seed(0)

    def nearness(rotations):
        return torch.einsum("...ij,bij->...b", rotations, points).amax(-1)

    starts = group._haar((SEARCH_POINTS,), generator)
    best = starts[nearness(starts).argsort()[:SEARCH_STARTS]]
    for step in range(SEARCH_STEPS):
        noise = torch.randn(SEARCH_STARTS, 64, group.n, group.n, dtype=torch.float64, generator=generator)
        moves = torch.linalg.matrix_exp(0.3 * 0.8**step * (noise - noise.mT))
        moved = torch.cat([best[:, None], best[:, None] @ moves], 1)
        best = moved[torch.arange(SEARCH_STARTS), nearness(moved).argmin(1)]
    return float((group.n - nearness(best).min()).clamp_min(0).sqrt())
