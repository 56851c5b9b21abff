"""The equations ``(∂f/∂x) A x = A_Y f(x)`` of many inputs, as a triangle of bounded size, and their solution."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DataError

CHUNK = 512  # inputs whose derivatives are held at a time
NULL = 1e-6  # of the widest, all columns of one size: directions that extend less are none of inputs or outputs


@dataclass(frozen=True)
class Coordinates:
    """``x = mean + root z``, where z, or ``(z, 1)``, has second moment 1; and the matrices of one entry there."""

    mean: Tensor
    root: Tensor
    inverse: Tensor
    matrices: Tensor
    extent: float
    affine: bool

    def standard(self, x: Tensor) -> Tensor:
        """z, ``(..., r)``; if affine ``(z, 1)``."""
        z = (_exact(x) - self.mean) @ self.inverse.mT
        return torch.cat([z, torch.ones_like(z[..., :1])], -1) if self.affine else z


def coordinates_of(x: Tensor, affine: bool) -> Coordinates:
    """The coordinates in which the points of inputs ``(N, ..., n)`` have second moment 1.

    :raises DataError: for points that are all equal, or all 0.
    """
    points = _exact(x).flatten(0, -2)
    first = points[0]
    mean = first + (points - first).mean(0) if affine else torch.zeros_like(first)  # exact where all are equal
    (root, extent), sizes = _root(points - mean), _sizes(points - mean)
    if not root.shape[1]:
        raise DataError(
            "Expected inputs that differ, and are not all 0; got equal ones, which do not tell how f changes."
        )
    inverse = torch.linalg.pinv(root / sizes[:, None]) / sizes
    there, back = (_homogeneous(root, mean), _homogeneous(inverse, -inverse @ mean)) if affine else (root, inverse)
    matrices = torch.einsum("ik,lj->klij", there[:, : root.shape[1]], back).flatten(0, 1)
    return Coordinates(mean, root, inverse, matrices, extent, affine)


def _exact(values: Tensor) -> Tensor:
    return values.detach().to("cpu", torch.float64)


def _homogeneous(linear: Tensor, shift: Tensor) -> Tensor:
    last = torch.eye(linear.shape[1] + 1, dtype=linear.dtype)[-1:]
    return torch.cat([torch.cat([linear, shift[:, None]], 1), last])


def _sizes(rows: Tensor) -> Tensor:
    """The root mean square of each column, 1 where it is 0."""
    sizes = rows.square().mean(0).sqrt()
    return sizes.where(sizes > 0, 1.0)


def _root(rows: Tensor) -> tuple[Tensor, float]:
    """``L`` ``(n, r)`` with ``L Lᵀ`` the second moment of rows ``(N, n)``, of which there are r directions.

    And the extent of the narrowest of those, of the widest's, columns of one size.
    """
    sizes = _sizes(rows)
    scaled = rows / sizes
    values, vectors = torch.linalg.eigh(scaled.mT @ scaled / len(rows))
    kept = values > NULL**2 * values[-1].clamp_min(torch.finfo(rows.dtype).tiny)
    extent = float((values[kept][0] / values[-1]).sqrt()) if kept.any() else 0.0
    return sizes[:, None] * vectors[:, kept] * values[kept].sqrt(), extent


@torch.no_grad()
def values_of(f: Callable, x: Tensor) -> tuple[Tensor, torch.Size, float]:
    """The outputs flattened, ``(N, p)`` in float64, the shape of one, and the unit of rounding of their type."""
    values = torch.cat([_checked(f(part), part) for part in x.split(CHUNK)])
    return _exact(values).reshape(len(values), -1), values.shape[1:], torch.finfo(values.dtype).eps


def _checked(y: Tensor, x: Tensor) -> Tensor:
    if not isinstance(y, Tensor) or y.ndim == 0 or len(y) != len(x):
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise DataError(f"Expected f to give one output for each of {len(x)} inputs, (N, *out); got {got}.")
    if not y.is_floating_point():
        raise DataError(f"Expected f to give floats, differentiable; got {y.dtype}.")
    if not y.isfinite().all():
        raise DataError("Expected f to be finite; got NaN or inf.")
    return y


def whitening(values: Tensor) -> Tensor:
    """``W`` ``(p, q)`` such that ``u = Wᵀ f`` has second moment 1, for outputs ``(N, p)`` in q directions."""
    return torch.linalg.pinv(_root(values)[0]).mT if bool(values.any()) else values[0].new_zeros(values.shape[1], 0)


@dataclass(frozen=True)
class Factor:
    """Some inputs' equations, rotated until they are few.

    The unknown ``A_Y`` of each output meets the same ``u``, so that one triangle ``(q, q)`` of u serves all outputs;
    ``known`` ``(q, p, K)`` are the sides beside it, and ``rest`` ``(K, K)`` are the equations that u has no part in.
    ``moved`` ``(K, K)`` are sums of products of ``(∂f/∂x) A x``, ``power`` of the squares of f, and ``moments`` of
    ``z zᵀ``, or of ``(z, 1) (z, 1)ᵀ``, over ``count`` points.
    """

    triangle: Tensor
    known: Tensor
    rest: Tensor
    moved: Tensor
    power: float
    moments: Tensor
    count: int


def factor(
    f: Callable, x: Tensor, coordinates: Coordinates, response: Tensor | None = None, features: Tensor | None = None
) -> Factor:
    """QR of all equations, chunk by chunk.

    :param Tensor response: ``A_Y`` of each of the matrices, ``(K, p, p)``, where it is known.
    :param Tensor features: ``W`` of :func:`whitening`, where it is sought.
    """
    parts = []
    for part in x.split(CHUNK):
        values, slopes = _derivatives(f, part)
        z = coordinates.standard(part.reshape(len(part), -1, part.shape[-1]))
        rows = torch.einsum("sopk,spl->sokl", slopes @ coordinates.root, z).flatten(2)
        moved, power = torch.einsum("sok,sol->kl", rows, rows), float(values.square().sum())
        moments, count = torch.einsum("spi,spj->ij", z, z), len(z) * z.shape[1]
        if response is not None:
            rows = rows - torch.einsum("kop,sp->sok", response, values)
        u = values[:, :0] if features is None else values @ features
        new = Factor(u, rows, rows.new_zeros(0, rows.shape[-1]), moved, power, moments, count)
        parts = [joined([*parts, new])]
    return parts[0]


def joined(parts: list[Factor]) -> Factor:
    """The equations of all parts as one factor."""
    u, sides, rest = (torch.cat([getattr(p, name) for p in parts]) for name in ("triangle", "known", "rest"))
    basis, triangle = torch.linalg.qr(u)
    known = torch.einsum("sr,sok->rok", basis, sides)
    left = (sides - torch.einsum("sr,rok->sok", basis, known)).flatten(0, 1)
    rest = torch.linalg.qr(torch.cat([rest, left]), mode="r")[1]
    sums = (sum(getattr(p, name) for p in parts) for name in ("moved", "power", "moments", "count"))
    return Factor(triangle, known, rest, *sums)


@torch.enable_grad()
def _derivatives(f: Callable, x: Tensor) -> tuple[Tensor, Tensor]:
    """``f(x)`` ``(N, p)`` and ``∂f/∂x`` ``(N, p, P, n)``, in float64."""
    x = x.clone().requires_grad_()
    y = _checked(f(x), x).reshape(len(x), -1)
    if not y.requires_grad:
        raise DataError(
            "Expected f to be differentiable; got outputs without gradient. Remove torch.no_grad or detach."
        )
    slopes = [torch.autograd.grad(column.sum(), x, retain_graph=True, materialize_grads=True)[0] for column in y.mT]
    found = _exact(torch.stack(slopes, 1)).reshape(*y.shape, -1, x.shape[-1])
    if not found.isfinite().all():
        raise DataError("Expected finite derivatives of f; got NaN or inf. Leave out the inputs where f has none.")
    return _exact(y), found


@dataclass(frozen=True)
class Solution:
    """Singular values, ascending; the coefficients of their matrices, in rows ``(K, K)``; their share of ``A_Y``."""

    values: Tensor
    vectors: Tensor
    known: Tensor

    def responses(self, features: Tensor) -> Tensor:
        """``A_Y`` ``(K, p, p)`` of each vector."""
        return torch.einsum("ck,rok->cor", self.vectors, self.known) @ features.mT


def _own(moments: Tensor, affine: bool) -> Tensor:
    """From the matrices in which points of these moments are white to those of the :class:`Coordinates`: ``(K, K)``."""
    r = len(moments) - affine
    mean = moments[:r, r:]
    values, vectors = torch.linalg.eigh(moments[:r, :r] - mean @ mean.mT)
    values = values.clamp_min(NULL**2 * values[-1].clamp_min(torch.finfo(values.dtype).tiny))
    there, back = (vectors * values.sqrt() ** sign @ vectors.mT for sign in (1, -1))
    if affine:
        there, back = _homogeneous(there, mean[:, 0]), _homogeneous(back, -back @ mean[:, 0])
    return torch.einsum("ik,lj->ijkl", there[:r, :r], back).reshape(r * len(back), -1)


def solve(parts: list[Factor], affine: bool, floor: float) -> Solution:
    """The equations of some parts, ``A_Y`` projected out, in the coordinates in which their own points are white."""
    whole = joined(parts)
    own = _own(whole.moments / whole.count, affine)
    _, values, vectors = torch.linalg.svd(whole.rest @ own)
    vectors = vectors @ own.mT
    moved, power = float(((whole.moved @ own) * own).sum()), whole.power
    size = math.sqrt((moved if moved > floor**2 * power else power or 1.0) / len(vectors))  # power: of a constant f
    known = torch.linalg.lstsq(whole.triangle, whole.known.flatten(1)).solution.reshape(whole.known.shape)
    return Solution(values.flip(0) / size, vectors.flip(0), known)
