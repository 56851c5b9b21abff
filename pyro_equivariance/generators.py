"""Generators of continuous symmetries: a basis of matrices, how two of them compare, and the flows they make."""

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import combinations
from numbers import Integral

import torch
from torch import Tensor

from .errors import SymmetryError

DEPENDENT = 1e-6
DIGITS = 2
ROUNDING = 1e-6  # of the largest entry


class Generators:
    r"""Matrices ``A_1, …, A_C`` whose exponentials ``g = exp(Σ_i w_i A_i)`` move the points of ``R^n``.

    A point ``p`` starts to move at the velocity ``A p``. With ``affine`` the matrices are homogeneous, of size
    ``n + 1`` with a last row of zeros, ``A = (L b; 0 0)``, and the velocity is ``L p + b``: translations are generators
    too. What the matrices *span* is what counts: two bases of one span make the same group, so they are compared by
    :meth:`angles`, which do not see order, sign, length or mixing. Immutable values, float64.

    :param basis: shape ``(C, m, m)``, real, linearly independent, with ``m = n``, or ``n + 1`` if ``affine``. The
        attribute of this name is a copy.
    :param names: a word for each; left out, ``A1``, ``A2``, ….
    :param bool affine: whether the matrices are homogeneous.
    :raises SymmetryError: for another shape, entries that are not real or not finite, dependent matrices, or a last row
        that is not zero.

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
        self._set(basis, names, affine)
        if not self._is_independent:
            raise SymmetryError(
                f"Expected linearly independent generators; the {len(self)} given span fewer dimensions. Leave out "
                f"those that the others make."
            )

    @classmethod
    def as_learned(cls, basis, names: Sequence[str] | None = None, affine: bool = False) -> "Generators":
        """The same for matrices that a search may have left dependent, to be looked at all the same.

        They print, plot and move points; only :meth:`angles`, :meth:`angle` and :meth:`closure`, which need the span,
        refuse dependent ones.

        :raises SymmetryError: as the class does, but for dependent matrices.

        >>> import torch, pyro_equivariance as pe
        >>> pe.Generators.as_learned(torch.ones(2, 2, 2))
        Generators(A1, A2; n=2)
        """
        learned = cls.__new__(cls)
        learned._set(basis, names, affine)
        return learned

    def _set(self, basis, names: Sequence[str] | None, affine: bool) -> None:
        basis = _real(basis, "generators as matrices (C, m, m)").detach().to("cpu", torch.float64).clone()
        if basis.ndim != 3 or basis.shape[-1] != basis.shape[-2] or 0 in basis.shape or basis.shape[-1] <= affine:
            raise SymmetryError(
                f"Expected generators as matrices (C, m, m){', m at least 2' if affine else ''}; got shape "
                f"{tuple(basis.shape)}."
            )
        if not bool(basis.isfinite().all()):
            raise SymmetryError("Expected generators with finite entries; got NaN or inf.")
        if affine and bool(basis[:, -1].any()):
            raise SymmetryError("Expected affine generators, homogeneous with a last row of zeros; got another one.")
        self._basis, self.affine = basis, bool(affine)
        self.names = tuple(f"A{i + 1}" for i in range(len(basis))) if names is None else _words(names)
        if len(self.names) != len(basis) or len(set(self.names)) != len(basis):
            raise SymmetryError(f"Expected {len(basis)} different names, one for each generator; got {self.names}.")

    @property
    def basis(self) -> Tensor:
        """The matrices ``(C, m, m)``, a copy."""
        return self._basis.clone()

    @property
    def n(self) -> int:
        """The dimension of the points that are moved."""
        return self._basis.shape[-1] - self.affine

    def __len__(self) -> int:
        return len(self._basis)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Generators) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple:
        return (self.affine, self.names, tuple(self._basis.shape), tuple(self._basis.flatten().tolist()))

    def __repr__(self) -> str:
        return f"Generators({', '.join(self.names)}; n={self.n}{', affine' if self.affine else ''})"

    def __str__(self) -> str:
        """Each name, and its matrix below."""
        return "\n".join(f"{name}\n{_table(matrix)}" for name, matrix in zip(self.names, self._basis, strict=True))

    def __add__(self, other: "Generators") -> "Generators":
        """Both, one after the other; points of one dimension, affine if one is."""
        if not isinstance(other, Generators):
            return NotImplemented
        pair = self._alike(other)
        return Generators(torch.cat([g._basis for g in pair]), self.names + other.names, pair[0].affine)

    def only(self, names: str | Iterable[str]) -> "Generators":
        """Those of the given names, in that order, or the one of a single name.

        >>> import pyro_equivariance as pe
        >>> pe.Generators.affine_plane().only(["rotate", "scale"])
        Generators(rotate, scale; n=2, affine)
        """
        names = _words(names)
        if unknown := [name for name in names if name not in self.names]:
            raise SymmetryError(f"Expected names among {', '.join(self.names)}; got {unknown[0]!r}.")
        return self.as_learned(self._basis[[self.names.index(name) for name in names]], names, self.affine)

    def homogeneous(self) -> "Generators":
        """The same moves as affine generators."""
        if self.affine:
            return self
        return self.as_learned(torch.nn.functional.pad(self._basis, (0, 1, 0, 1)), self.names, affine=True)

    def normalised(self) -> "Generators":
        """Each divided by ``‖A‖_F / √n``: a rotation of the plane then turns by one radian per unit of ``w``."""
        return self.as_learned(normalised(self._basis, self.n), self.names, self.affine)

    @cached_property
    def _orthonormal(self) -> Tensor:
        """An orthonormal basis of the span, ``(C, entries)``."""
        if not self._is_independent:
            raise SymmetryError(
                f"Expected linearly independent generators, to compare their span; {', '.join(self.names)} have become "
                f"dependent. Learn fewer, or choose with only(names)."
            )
        return torch.linalg.qr(self._directions.mT)[0].mT

    @property
    def _directions(self) -> Tensor:
        """Each as a vector of length one, ``(C, entries)``."""
        flat = self._basis.flatten(1)
        return flat / flat.norm(dim=1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)

    @cached_property
    def _is_independent(self) -> bool:
        few = len(self) <= self.n * self._basis.shape[-1]
        return few and float(torch.linalg.svdvals(self._directions)[-1]) >= DEPENDENT

    def angles(self, other: "Generators") -> Tensor:
        """The principal angles between the two spans, in degrees, ascending: shape ``(min(C, C'),)``.

        They are 0 for the directions the spans share and 90 for those that one has and the other does not. Matrices
        count by their entries (Frobenius), translations in the units of the points.

        So angles depend on the *origin and the units of the points*: a rotation about ``(0, −20)`` is 4.0° from
        ``translate x``, and that of a plane whose x axis has units ten times as small is 44° from ``so(2)``. Centre
        and standardise the points before generators are sought or compared.

        :raises SymmetryError: for generators that move points of another dimension, or have become dependent.
        """
        small, large = sorted((g._orthonormal for g in self._alike(other)), key=len)
        cosines = torch.linalg.svdvals(small @ large.mT)
        sines = torch.linalg.svdvals(small - small @ large.mT @ large).flip(0)
        return torch.rad2deg(torch.atan2(sines, cosines))

    def angle(self, other: "Generators") -> float:
        """The largest of the :meth:`angles`, in degrees; 90 for spans of different dimension."""
        angles = self.angles(other)
        return 90.0 if len(self) != len(other) else float(angles[-1])

    def closure(self) -> float:
        r"""How far the span is from a Lie algebra: the part of the brackets that it does not hold.

        For an orthonormal basis ``Q`` the root of ``Σ_{i<j} ‖(1 − P) [Q_i, Q_j]‖²``, ``P`` the projection onto the
        span, over ``√2`` for each pair, the largest norm that one bracket can have [1]: 0 for a span that is closed
        under brackets (one generator always is), never above 1. One pair can reach 1; of more it is a bound only,
        so that values of spans of different dimension are not on one scale. It does not depend on the basis, but as
        :meth:`angles` on the *origin and the units of the points*: ``translate x`` with ``rotate + s translate y`` is
        at 0.333 for ``s = 1``, at 0.0098 for ``s = 10`` and at 0.0001 for ``s = 100``, the further away the centre,
        the nearer to 0. Centre and standardise the points first.

        :raises SymmetryError: for generators that have become dependent.

        [1] Böttcher, Wenzel (2005) "How big can the commutator of two matrices be and how big is it typically?",
        Linear Algebra and its Applications 403.
        """
        pairs = list(combinations(self._orthonormal.reshape(self._basis.shape), 2))
        if not pairs:
            return 0.0
        brackets = torch.stack([(a @ b - b @ a).flatten() for a, b in pairs])
        outside = brackets - brackets @ self._orthonormal.mT @ self._orthonormal
        size = float(outside.norm() / math.sqrt(2 * len(pairs)))
        return size if size > 1e-12 else 0.0

    def field(self, points: Tensor) -> Tensor:
        """The velocities ``A p`` of points ``(..., n)`` under each generator: shape ``(C, ..., n)``.

        :raises SymmetryError: for points of another dimension, or complex ones.

        >>> import torch, pyro_equivariance as pe
        >>> pe.Generators.so(2).field(torch.tensor([2.0, 0.0], dtype=torch.float64)).tolist()
        [[0.0, 2.0]]
        """
        points = _real(points, f"points (..., {self.n})")
        if points.ndim == 0 or points.shape[-1] != self.n:
            raise SymmetryError(f"Expected points (..., {self.n}) for {self!r}; got shape {tuple(points.shape)}.")
        basis = self._basis.to(points)
        moved = torch.einsum("cij,...j->c...i", basis[:, : self.n, : self.n], points)
        if not self.affine:
            return moved
        return moved + basis[:, :-1, -1].reshape(len(self), *[1] * (points.ndim - 1), self.n)

    def exp(self, w: Tensor) -> Tensor:
        """The elements ``exp(Σ_i w_i A_i)``, shape ``(..., m, m)``, for coefficients ``(..., C)``."""
        w = _real(w, f"coefficients (..., {len(self)})")
        return exponential(w, self._basis.to(w))

    def _alike(self, other: "Generators") -> tuple["Generators", "Generators"]:
        """The two, both homogeneous if one is."""
        if not isinstance(other, Generators) or self.n != other.n:
            raise SymmetryError(f"Expected generators that move points of R^{self.n}; got {other!r}.")
        return (self, other) if self.affine == other.affine else (self.homogeneous(), other.homogeneous())

    @classmethod
    def so(cls, n: int) -> "Generators":
        """The rotations of ``R^n``: for each pair of axes the turn from the first towards the second."""
        _need_dimension(n, 2, "rotations")
        planes = list(combinations(range(n), 2))
        basis = torch.zeros(len(planes), n, n, dtype=torch.float64)
        for matrix, (i, j) in zip(basis, planes, strict=True):
            matrix[j, i], matrix[i, j] = 1.0, -1.0
        return cls(basis, [f"rotate {i + 1}-{j + 1}" for i, j in planes])

    @classmethod
    def scale(cls, n: int) -> "Generators":
        """All coordinates growing alike."""
        _need_dimension(n, 1, "a scaling")
        return cls(torch.eye(n, dtype=torch.float64)[None], ["scale"])

    @classmethod
    def lorentz(cls) -> "Generators":
        """The boost of ``(t, x)``, which keeps ``t² − x²``."""
        return cls([[[0.0, 1.0], [1.0, 0.0]]], ["boost"])

    @classmethod
    def translations(cls, n: int) -> "Generators":
        """The shifts of ``R^n`` along its axes, affine."""
        _need_dimension(n, 1, "translations")
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
    if w.ndim == 0 or w.shape[-1] != len(basis):
        raise SymmetryError(f"Expected coefficients (..., {len(basis)}), one for each generator; got {tuple(w.shape)}.")
    return torch.linalg.matrix_exp(torch.einsum("...c,cij->...ij", w, basis))


def _real(values, what: str) -> Tensor:
    """A tensor of real numbers, integers in the default floating type."""
    try:
        values = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise SymmetryError(f"Expected {what}, a tensor or nested lists; got {type(values).__name__}.") from None
    if values.is_complex():
        raise SymmetryError(f"Expected {what} of real numbers; got {values.dtype}.")
    return values if values.is_floating_point() else values.to(torch.get_default_dtype())


def _words(names: str | Iterable[str]) -> tuple[str, ...]:
    """Names as a tuple; a string is one name."""
    words = tuple(names) if isinstance(names, Iterable) and not isinstance(names, str) else (names,)
    if not all(isinstance(word, str) for word in words):
        raise SymmetryError(f"Expected names of generators; got {names!r}.")
    return words


def _need_dimension(n: int, least: int, what: str) -> None:
    if not isinstance(n, Integral) or isinstance(n, bool) or n < least:
        raise SymmetryError(f"Expected a dimension of at least {least} for {what}; got {n!r}.")


def _table(matrix: Tensor) -> str:
    """Two decimals, or one digit of what is smaller but more than rounding: with other units it counts as much."""
    least = ROUNDING * float(matrix.nan_to_num(0, 0, 0).abs().max())
    rows = [[_cell(0.0 if abs(value) <= least else value) for value in row] for row in matrix.tolist()]
    width = max(len(cell) for row in rows for cell in row)
    return "\n".join("  " + "  ".join(cell.rjust(width) for cell in row) for row in rows)


def _cell(value: float) -> str:
    shown = f"{value:.{DIGITS}f}"
    return shown if value == 0 or float(shown) else f"{value:.1g}"
