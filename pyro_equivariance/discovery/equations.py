"""The equations ``(∂f/∂x) A x = A_Y f(x)`` of many inputs, as a triangle of bounded size, and their solution."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DataError

CHUNK = 512  # inputs whose derivatives are held at a time
NULL = 1e-6  # of the widest: a direction in which the inputs, or outputs, extend less is none of theirs


@dataclass(frozen=True)
class Coordinates:
    """``x = mean + root z``, where z, or ``(z, 1)``, has second moment 1; and the matrices of one entry there."""

    mean: Tensor
    root: Tensor
    inverse: Tensor
    matrices: Tensor
    affine: bool

    def standard(self, x: Tensor) -> Tensor:
        """z, ``(..., r)``; if affine ``(z, 1)``."""
        z = (_exact(x) - self.mean) @ self.inverse.mT
        return torch.cat([z, torch.ones_like(z[..., :1])], -1) if self.affine else z


def coordinates_of(x: Tensor, affine: bool) -> Coordinates:
    points = _exact(x).flatten(0, -2)
    first = points[0]
    mean = first + (points - first).mean(0) if affine else torch.zeros_like(first)  # exact where all are equal
    root, sizes = _root(points - mean), _sizes(points - mean)
    if not root.shape[1]:
        raise DataError(
            "Expected inputs that differ, and are not all 0; got equal ones, which do not tell how f changes."
        )
    inverse = torch.linalg.pinv(root / sizes[:, None]) / sizes
    there, back = (_homogeneous(root, mean), _homogeneous(inverse, -inverse @ mean)) if affine else (root, inverse)
    matrices = torch.einsum("ik,lj->klij", there[:, : root.shape[1]], back).flatten(0, 1)
    return Coordinates(mean, root, inverse, matrices, affine)


def _exact(values: Tensor) -> Tensor:
    return values.detach().to("cpu", torch.float64)


def _homogeneous(linear: Tensor, shift: Tensor) -> Tensor:
    last = torch.eye(linear.shape[1] + 1, dtype=linear.dtype)[-1:]
    return torch.cat([torch.cat([linear, shift[:, None]], 1), last])


def _sizes(rows: Tensor) -> Tensor:
    """The root mean square of each column, 1 where it is 0."""
    sizes = rows.square().mean(0).sqrt()
    return sizes.where(sizes > 0, 1.0)


def _root(rows: Tensor) -> Tensor:
    """``L`` ``(n, r)`` with ``L Lᵀ`` the second moment of rows ``(N, n)``, of which there are r directions."""
    sizes = _sizes(rows)
    scaled = rows / sizes
    values, vectors = torch.linalg.eigh(scaled.mT @ scaled / len(rows))
    kept = values > NULL**2 * values[-1].clamp_min(torch.finfo(rows.dtype).tiny)
    return sizes[:, None] * vectors[:, kept] * values[kept].sqrt()


@torch.no_grad()
def values_of(f: Callable, x: Tensor) -> tuple[Tensor, torch.Size]:
    """The outputs flattened, ``(N, p)`` in float64, and the shape of one."""
    values = torch.cat([_checked(f(part), part) for part in x.split(CHUNK)])
    return _exact(values).reshape(len(values), -1), values.shape[1:]


def _checked(y: Tensor, x: Tensor) -> Tensor:
    if not isinstance(y, Tensor) or y.ndim == 0 or len(y) != len(x):
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise DataError(f"Expected f to give one output for each of {len(x)} inputs, (N, *out); got {got}.")
    if not y.isfinite().all():
        raise DataError("Expected f to be finite; got NaN or inf.")
    return y


def whitening(values: Tensor) -> Tensor:
    """``W`` ``(p, q)`` such that ``u = Wᵀ f`` has second moment 1, for outputs ``(N, p)`` in q directions."""
    return torch.linalg.pinv(_root(values)).mT if bool(values.any()) else values[0].new_zeros(values.shape[1], 0)


@dataclass(frozen=True)
class Factor:
    """The triangle of some inputs' equations, and sums of squares over them: of ``(∂f/∂x) A x`` for all A, of f."""

    triangle: Tensor
    moved: float
    power: float


def factor(
    f: Callable, x: Tensor, coordinates: Coordinates, response: Tensor | None = None, features: Tensor | None = None
) -> Factor:
    """QR of all equations, chunk by chunk.

    :param Tensor response: ``A_Y`` of each of the matrices, ``(K, p, p)``, where it is known.
    :param Tensor features: ``W`` of :func:`whitening`, where it is sought: the first ``p q`` columns are its own.
    """
    triangle, moved, power = None, 0.0, 0.0
    for part in x.split(CHUNK):
        values, slopes = _derivatives(f, part)
        z = coordinates.standard(part.reshape(len(part), -1, part.shape[-1]))
        rows = torch.einsum("sopk,spl->sokl", slopes @ coordinates.root, z).flatten(2)
        moved += float(rows.square().sum())
        power += float(values.square().sum())
        if response is not None:
            rows = rows - torch.einsum("kop,sp->sok", response, values)
        if features is not None:
            own = torch.einsum("op,sq->sopq", torch.eye(values.shape[1]).to(values), values @ features)
            rows = torch.cat([own.flatten(2), rows], -1)
        rows = rows.flatten(0, 1)
        triangle = torch.linalg.qr(rows if triangle is None else torch.cat([triangle, rows]), mode="r")[1]
    return Factor(triangle, moved, power)


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
    """Singular values, ascending, and their vectors ``(K, K)`` in the rows; ``known`` is what ``A_Y`` takes of each."""

    values: Tensor
    vectors: Tensor
    known: Tensor

    def responses(self, features: Tensor) -> Tensor:
        """``A_Y`` ``(K, p, p)`` of each vector."""
        size, kept = features.shape
        return (self.vectors @ self.known.mT).reshape(len(self.vectors), size, kept) @ features.mT


def solve(parts: list[Factor], hidden: int, floor: float) -> Solution:
    """The equations of some parts; the first ``hidden`` columns, those of ``A_Y``, are projected out."""
    triangle = torch.linalg.qr(torch.cat([p.triangle for p in parts]), mode="r")[1]
    _, values, vectors = torch.linalg.svd(triangle[hidden:, hidden:])
    moved, power = sum(p.moved for p in parts), sum(p.power for p in parts)
    size = math.sqrt((moved if moved > floor**2 * power else power or 1.0) / len(vectors))  # power: of a constant f
    known = torch.linalg.lstsq(triangle[:hidden, :hidden], triangle[:hidden, hidden:]).solution
    return Solution(values.flip(0) / size, vectors.flip(0), known)
