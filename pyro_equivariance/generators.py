"""Generators of continuous symmetries: a basis of matrices, how two of them compare, and the flows they make."""

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import combinations

import torch
from torch import Tensor

from .errors import SymmetryError

DEPENDENT = 1e-6
DIGITS = 2


class Generators:
    r"""Matrices ``A_1, …, A_C`` whose exponentials ``g = exp(Σ_i w_i A_i)`` move the points of ``R^n``.

    A point ``p`` starts to move at the velocity ``A p``. With ``affine`` the matrices are homogeneous, of size
    ``n + 1`` with a last row of zeros, ``A = (L b; 0 0)``, and the velocity is ``L p + b``: translations are generators
    too. What the matrices *span* is what counts: two bases of one span make the same group, so they are compared by
    :meth:`angles`, which do not see order, sign, length or mixing. Immutable values, float64.

    :param basis: shape ``(C, m, m)``, linearly independent, with ``m = n``, or ``n + 1`` if ``affine``.
    :param names: a word for each; left out, ``A1``, ``A2``, ….
    :param bool affine: whether the matrices are homogeneous.
    :raises SymmetryError: for another shape, entries that are not finite, dependent matrices, or a last row that is not
        zero.

    Source of the principal angles: Björck, Golub (1973) "Numerical methods for computing angles between linear
    subspaces", Mathematics of Computation 27.

    >>> import pyro_equivariance as pe
    >>> found = pe.Generators([[[0.01, -2.0], [2.0, 0.0]]])
    >>> round(found.angle(pe.Generators.so(2)), 3)  # degrees
    0.203
    >>> pe.Generators.so(3).closure()
    0.0
    >>> print(pe.Generators.so(2))
    rotate 1-2
       0.00  -1.00
       1.00   0.00
    """

    def __init__(self, basis, names: Sequence[str] | None = None, affine: bool = False):
        basis = torch.as_tensor(basis).detach().to("cpu", torch.float64).clone()
        if basis.ndim != 3 or basis.shape[-1] != basis.shape[-2] or 0 in basis.shape or basis.shape[-1] <= affine:
            raise SymmetryError(
                f"Expected generators as matrices (C, m, m){', m at least 2' if affine else ''}; got shape "
                f"{tuple(basis.shape)}."
            )
        if not bool(basis.isfinite().all()):
            raise SymmetryError("Expected generators with finite entries; got NaN or inf.")
        if affine and bool(basis[:, -1].any()):
            raise SymmetryError("Expected affine generators, homogeneous with a last row of zeros; got another one.")
        self.basis, self.affine = basis, bool(affine)
        self.names = tuple(f"A{i + 1}" for i in range(len(basis))) if names is None else tuple(names)
        if len(self.names) != len(basis) or len(set(self.names)) != len(basis):
            raise SymmetryError(f"Expected {len(basis)} different names, one for each generator; got {self.names}.")
        if len(basis) > self._entries or float(self._singular_values[-1]) < DEPENDENT:
            raise SymmetryError(
                f"Expected linearly independent generators; the {len(basis)} given span fewer dimensions. Leave out "
                f"those that the others make."
            )

    @property
    def n(self) -> int:
        """The dimension of the points that are moved."""
        return self.basis.shape[-1] - self.affine

    def __len__(self) -> int:
        return len(self.basis)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Generators) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple:
        return (self.affine, self.names, tuple(self.basis.shape), tuple(self.basis.flatten().tolist()))

    def __repr__(self) -> str:
        return f"Generators({', '.join(self.names)}; n={self.n}{', affine' if self.affine else ''})"

    def __str__(self) -> str:
        """Each name, and its matrix below."""
        return "\n".join(f"{name}\n{_table(matrix)}" for name, matrix in zip(self.names, self.basis, strict=True))

    def __add__(self, other: "Generators") -> "Generators":
        """Both, one after the other; points of one dimension, affine if one is."""
        if not isinstance(other, Generators):
            return NotImplemented
        self._need_alike(other)
        pair = (self, other) if self.affine == other.affine else (self.homogeneous(), other.homogeneous())
        return Generators(torch.cat([g.basis for g in pair]), self.names + other.names, pair[0].affine)

    def only(self, names: Iterable[str]) -> "Generators":
        """Those of the given names, in that order.

        >>> import pyro_equivariance as pe
        >>> pe.Generators.affine_plane().only(["rotate", "scale"])
        Generators(rotate, scale; n=2, affine)
        """
        names = tuple(names)
        if unknown := [name for name in names if name not in self.names]:
            raise SymmetryError(f"Expected names among {', '.join(self.names)}; got {unknown[0]!r}.")
        return Generators(self.basis[[self.names.index(name) for name in names]], names, self.affine)

    def homogeneous(self) -> "Generators":
        """The same moves as affine generators."""
        if self.affine:
            return self
        return Generators(torch.nn.functional.pad(self.basis, (0, 1, 0, 1)), self.names, affine=True)

    def normalised(self) -> "Generators":
        """Each divided by ``‖A‖_F / √n``: a rotation of the plane then turns by one radian per unit of ``w``."""
        return Generators(normalised(self.basis, self.n), self.names, self.affine)

    @cached_property
    def _orthonormal(self) -> Tensor:
        """An orthonormal basis of the span, ``(C, entries)``."""
        return torch.linalg.qr(self._directions.mT)[0].mT

    @property
    def _directions(self) -> Tensor:
        """Each as a vector of length one, ``(C, entries)``."""
        flat = self.basis.flatten(1)
        return flat / flat.norm(dim=1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)

    @property
    def _singular_values(self) -> Tensor:
        return torch.linalg.svdvals(self._directions)

    @property
    def _entries(self) -> int:
        return self.n * self.basis.shape[-1]

    def angles(self, other: "Generators") -> Tensor:
        """The principal angles between the two spans, in degrees, ascending: shape ``(min(C, C'),)``.

        They are 0 for the directions the spans share and 90 for those that one has and the other does not. Matrices
        count by their entries (Frobenius), translations in the units of the points.

        :raises SymmetryError: for generators that move points of another dimension.
        """
        self._need_alike(other)
        pair = (self, other) if self.affine == other.affine else (self.homogeneous(), other.homogeneous())
        small, large = sorted((g._orthonormal for g in pair), key=len)
        cosines = torch.linalg.svdvals(small @ large.mT)
        sines = torch.linalg.svdvals(small - small @ large.mT @ large).flip(0)
        return torch.rad2deg(torch.atan2(sines, cosines))

    def angle(self, other: "Generators") -> float:
        """The largest of the :meth:`angles`, in degrees; 90 for spans of different dimension."""
        return 90.0 if len(self) != len(other) else float(self.angles(other)[-1])

    def closure(self) -> float:
        r"""How far the span is from a Lie algebra: the part of the brackets that it does not hold.

        For an orthonormal basis ``Q`` the root of ``Σ_{i<j} ‖(1 − P) [Q_i, Q_j]‖²``, ``P`` the projection onto the
        span, over its largest possible value, ``√2`` for each pair [1]: 0 for a span that is closed under brackets
        (one generator always is), at most 1. It does not depend on the basis.

        [1] Böttcher, Wenzel (2005) "How big can the commutator of two matrices be and how big is it typically?",
        Linear Algebra and its Applications 403.
        """
        pairs = list(combinations(self._orthonormal.reshape(self.basis.shape), 2))
        if not pairs:
            return 0.0
        brackets = torch.stack([(a @ b - b @ a).flatten() for a, b in pairs])
        outside = brackets - brackets @ self._orthonormal.mT @ self._orthonormal
        size = float(outside.norm() / math.sqrt(2 * len(pairs)))
        return size if size > 1e-12 else 0.0

    def field(self, points: Tensor) -> Tensor:
        """The velocities ``A p`` of points ``(..., n)`` under each generator: shape ``(C, ..., n)``.

        >>> import torch, pyro_equivariance as pe
        >>> pe.Generators.so(2).field(torch.tensor([2.0, 0.0], dtype=torch.float64)).tolist()
        [[0.0, 2.0]]
        """
        if points.ndim == 0 or points.shape[-1] != self.n:
            raise SymmetryError(f"Expected points (..., {self.n}) for {self!r}; got shape {tuple(points.shape)}.")
        basis = self.basis.to(points)
        moved = torch.einsum("cij,...j->c...i", basis[:, : self.n, : self.n], points)
        if not self.affine:
            return moved
        return moved + basis[:, :-1, -1].reshape(len(self), *[1] * (points.ndim - 1), self.n)

    def exp(self, w: Tensor) -> Tensor:
        """The elements ``exp(Σ_i w_i A_i)``, shape ``(..., m, m)``, for coefficients ``(..., C)``."""
        w = torch.as_tensor(w)
        return exponential(w, self.basis.to(w))

    def _need_alike(self, other: "Generators") -> None:
        if self.n != other.n:
            raise SymmetryError(f"Expected generators that move points of R^{self.n}; got {other!r}.")

    @classmethod
    def so(cls, n: int) -> "Generators":
        """The rotations of ``R^n``: for each pair of axes the turn from the first towards the second."""
        planes = list(combinations(range(n), 2))
        basis = torch.zeros(len(planes), n, n, dtype=torch.float64)
        for matrix, (i, j) in zip(basis, planes, strict=True):
            matrix[j, i], matrix[i, j] = 1.0, -1.0
        return cls(basis, [f"rotate {i + 1}-{j + 1}" for i, j in planes])

    @classmethod
    def scale(cls, n: int) -> "Generators":
        """All coordinates growing alike."""
        return cls(torch.eye(n, dtype=torch.float64)[None], ["scale"])

    @classmethod
    def lorentz(cls) -> "Generators":
        """The boost of ``(t, x)``, which keeps ``t² − x²``."""
        return cls([[[0.0, 1.0], [1.0, 0.0]]], ["boost"])

    @classmethod
    def translations(cls, n: int) -> "Generators":
        """The shifts of ``R^n`` along its axes, affine."""
        basis = torch.zeros(n, n + 1, n + 1, dtype=torch.float64)
        basis[:, :-1, -1] = torch.eye(n, dtype=torch.float64)
        return cls(basis, [f"translate {'xyz'[i] if n < 4 else i + 1}" for i in range(n)], affine=True)

    @classmethod
    def affine_plane(cls) -> "Generators":
        """All six of the plane, affine: ``translate x, translate y, rotate, scale, stretch, shear``.

        ``stretch`` lengthens x and shortens y, ``shear`` does so along the diagonals; ``y`` points up.
        """
        linear = [[[0, -1], [1, 0]], [[1, 0], [0, 1]], [[1, 0], [0, -1]], [[0, 1], [1, 0]]]
        rest = cls(torch.tensor(linear, dtype=torch.float64), ["rotate", "scale", "stretch", "shear"])
        return cls.translations(2) + rest


def normalised(basis: Tensor, n: int) -> Tensor:
    """Matrices ``(C, m, m)`` each divided by ``‖A‖_F / √n``."""
    return basis * (math.sqrt(n) / basis.flatten(1).norm(dim=1))[:, None, None]


def exponential(w: Tensor, basis: Tensor) -> Tensor:
    """``exp(Σ_i w_i A_i)``, shape ``(..., m, m)``, for coefficients ``(..., C)`` and matrices ``(C, m, m)``."""
    if w.shape[-1] != len(basis):
        raise SymmetryError(f"Expected coefficients (..., {len(basis)}), one for each generator; got {tuple(w.shape)}.")
    return torch.linalg.matrix_exp(torch.einsum("...c,cij->...ij", w, basis))


def _table(matrix: Tensor) -> str:
    rows = [[f"{value + 0.0:.{DIGITS}f}" for value in row] for row in matrix.round(decimals=DIGITS).tolist()]
    width = max(len(cell) for row in rows for cell in row)
    return "\n".join("  " + "  ".join(cell.rjust(width) for cell in row) for row in rows)
