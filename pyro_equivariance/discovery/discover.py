"""The continuous symmetries of a function that is already there, from its derivatives."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import DataError, OptionError, check_option
from .base import DiscoveredGenerators, cut
from .equations import coordinates_of, factor, solve, values_of, whitening

OUTPUTS = ("invariant", "same", "linear")
PARTS = 10  # of the data, for the jackknife
LARGEST_OUTPUT = 64
FLOOR = 100  # units of rounding; singular values below count as equal


def discover_generators(
    f: Callable[[Tensor], Tensor],
    x: Tensor,
    outputs: str | Callable[[Tensor], Tensor] = "invariant",
    affine: bool = False,
    tolerance: float = 0.2,
) -> DiscoveredGenerators:
    """The matrices under whose flow a differentiable function is invariant, or equivariant, from its derivatives.

    ``f(exp(tA) x) = exp(tA_Y) f(x)`` for all t and x if and only if ``(∂f/∂x) A x = A_Y f(x)`` for all x. This is
    linear in ``A``: each output at each input is one equation, and the right singular vectors of the smallest singular
    values are the matrices that solve all of them best.

    *Units.* Inputs are written ``x = L z`` with ``z zᵀ`` of mean 1; ``Ã = L⁻¹ A L`` moves z, and ``‖Ã‖_F = 1``. A
    singular value is the root mean square of ``(∂f/∂x) A x − A_Y f(x)``, divided by that of ``(∂f/∂x) A x`` over all
    ``Ã``. So 1 is what a matrix at random has, and nothing changes when x is measured in other units, or mixed by an
    invertible matrix, or f is multiplied by a number. Several outputs count by their sizes.

    *Dimension.* Of the k with ``σ_k ≤ tolerance`` the one with the largest ratio ``σ_{k+1} / σ_k``, if that is at least
    3; otherwise 0. ``σ_{K+1}`` counts as 1, so that all K can be the answer, as for a constant f.

    :param f: maps ``(N, *event)`` to ``(N, *out)``, differentiably and each input by itself: a module in evaluation
        mode, a function, a :func:`posterior mean <pyro_equivariance.posterior_mean>`. Of a classifier the logits or log
        probabilities: probabilities are flat where they are near 0 and 1.
    :param Tensor x: vectors ``(N, n)``, or clouds ``(N, P, n)`` of points that ``A`` moves alike.
    :param outputs: ``"invariant"``: ``A_Y = 0``; ``"same"``: outputs ``(..., n)`` are vectors, moved as points are, but
        not shifted; ``"linear"``: ``A_Y`` is any matrix ``(p, p)`` of the flattened output, found with each ``A`` by
        least squares, so that ``A = 0`` is no solution; or a callable, linear, from ``A`` to ``A_Y``.
    :param bool affine: seek ``x ↦ A x + b`` in homogeneous coordinates, translations included.
    :param float tolerance: the largest singular value of a symmetry.
    :raises DataError: for inputs of another shape, too few of them, or values or derivatives that are missing or not
        finite.
    :raises OptionError: for another ``outputs`` or ``tolerance``.

    >>> import torch, pyro_equivariance as pe
    >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> found = pe.discover_generators(lambda x: x.square().sum(-1).sin(), x)
    >>> found.dimension, found.gap > 1e6, round(found.generators.angle(pe.Generators.so(2)), 6)
    (1, True, 0.0)
    >>> (found.generators.basis.round(decimals=6) + 0.0).tolist()
    [[[0.0, -1.0], [1.0, 0.0]]]
    """
    _check(x, outputs, tolerance)
    x = x.detach()
    coordinates = coordinates_of(x, affine)
    values, shape = values_of(f, x)
    response = _response(outputs, coordinates.matrices, shape, affine)
    features = _features(values) if outputs == "linear" else None
    parts = [factor(f, x[b::PARTS], coordinates, response, features) for b in range(PARTS)]
    columns = parts[0].triangle.shape[1]
    if values.numel() < 2 * columns:
        raise DataError(
            f"Expected at least {2 * columns} equations, one for each output of each input; got {values.numel()}. Pass "
            f"more inputs."
        )
    floor = FLOOR * torch.finfo(x.dtype).eps
    hidden = columns - len(coordinates.matrices)
    full = solve(parts, hidden, floor)
    others = [solve(parts[:b] + parts[b + 1 :], hidden, floor) for b in range(PARTS)]
    return DiscoveredGenerators(
        dimension=cut(full.values, tolerance, floor),
        singular_values=full.values,
        directions=torch.einsum("ck,kij->cij", full.vectors, coordinates.matrices),
        responses=None if features is None else full.responses(features),
        rank=coordinates.root.shape[1],
        affine=affine,
        replicates=torch.stack([o.values for o in others]),
        overlaps=torch.stack([o.vectors @ full.vectors.mT for o in others]),
        floor=floor,
    )


def _check(x, outputs, tolerance: float) -> None:
    if not callable(outputs):
        check_option("outputs", outputs, OUTPUTS)
    if not 0 < tolerance < 1:
        raise OptionError(f"Expected tolerance between 0 and 1, what a random matrix has; got {tolerance}.")
    if not isinstance(x, Tensor) or x.ndim not in (2, 3) or not x.is_floating_point() or len(x) < 2 * PARTS:
        got = f"{x.dtype}, {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise DataError(f"Expected at least {2 * PARTS} inputs, floats (N, n) or clouds (N, P, n); got {got}.")
    if not x.isfinite().all():
        raise DataError("Expected finite inputs; got NaN or inf.")


def _features(values: Tensor) -> Tensor:
    if values.shape[1] > LARGEST_OUTPUT:
        raise OptionError(
            f'Expected at most {LARGEST_OUTPUT} outputs for outputs="linear"; got {values.shape[1]}. Give A_Y as a '
            f"callable."
        )
    return whitening(values)


def _response(outputs, matrices: Tensor, shape: torch.Size, affine: bool) -> Tensor | None:
    """``A_Y`` of each of the matrices, ``(K, p, p)``, where it is known and not 0."""
    if outputs in ("invariant", "linear"):
        return None
    n, size = matrices.shape[-1] - affine, math.prod(shape)
    if not callable(outputs):
        if not shape or shape[-1] != n:
            raise DataError(f'Expected outputs (..., {n}), vectors like the inputs, for "same"; got {tuple(shape)}.')
        return torch.stack([torch.block_diag(*[a[:n, :n]] * (size // n)) for a in matrices])
    found = torch.stack([torch.as_tensor(outputs(a)).to(matrices) for a in matrices])
    if found.shape[1:] != (size, size):
        raise DataError(f"Expected outputs(A) as a matrix {(size, size)}; got {tuple(found.shape[1:])}.")
    return found
