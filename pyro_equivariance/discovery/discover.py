"""The continuous symmetries of a function that is already there, from its derivatives."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import DataError, OptionError, check_option
from ..modes import mode
from .base import DiscoveredGenerators, cut
from .equations import coordinates_of, factor, solve, values_of, whitening

OUTPUTS = ("invariant", "same", "linear")
PARTS = 10  # of the data, for the jackknife
WIDEST = 2  # outputs, of the numbers of an input, whose A_Y is sought
DTYPES = (torch.float32, torch.float64)
LINEAR = 1e-4  # of the largest entry: rounding of a callable in single precision is less
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
    ``Ã``. Nothing changes when x is measured in other units, or mixed by an invertible matrix, or f is multiplied by a
    number. Several outputs count by their sizes. For ``"invariant"`` 1 is what a matrix at random has. For ``"linear"``
    it has less, since the outputs explain a part of any motion, and many smooth ones nearly all of it: so they are
    limited to twice the numbers of an input.

    *Dimension.* The largest k with ``σ_k ≤ tolerance`` and ``σ_{k+1} / σ_k ≥ 3``, with all inputs and without any
    tenth of them; 0 if there is none. ``σ_{K+1}`` counts as 1, so that all K can be the answer, as for a constant f.
    Whether a dimension counts does not depend on how exact the others are. The tenths are drawn with a seed of their
    own, so that the answer is the same at every call.

    :param f: maps ``(N, *event)`` to ``(N, *out)``, differentiably and each input by itself: a module, taken
        in evaluation mode, a function, a :func:`posterior mean <pyro_equivariance.posterior_mean>`. Of a classifier the
        logits or log probabilities: probabilities are flat where they are near 0 and 1.
    :param Tensor x: vectors ``(N, n)``, or clouds ``(N, P, n)`` of points that ``A`` moves alike, in single or double
        precision.
    :param outputs: ``"invariant"``: ``A_Y = 0``; ``"same"``: outputs ``(..., n)`` are vectors, moved as points are, but
        not shifted; ``"linear"``: ``A_Y`` is any matrix ``(p, p)`` of the flattened output, found with each ``A`` by
        least squares, so that ``A = 0`` is no solution; or a callable, linear, from ``A`` to ``A_Y``.
    :param bool affine: seek ``x ↦ A x + b`` in homogeneous coordinates, translations included.
    :param float tolerance: the largest singular value of a symmetry.
    :raises DataError: for inputs of another shape, too few of them, or values or derivatives that are missing or not
        finite.
    :raises OptionError: for another ``outputs`` or ``tolerance``, a callable that is not linear, or too many outputs
        for ``"linear"``.

    >>> import torch, pyro_equivariance as pe
    >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> found = pe.discover_generators(lambda x: x.square().sum(-1).sin(), x)
    >>> found.dimension, found.gap > 1e6, round(found.generators.angle(pe.Generators.so(2)), 6)
    (1, True, 0.0)
    >>> (found.generators.basis.round(decimals=6) + 0.0).tolist()
    [[[0.0, -1.0], [1.0, 0.0]]]
    """
    _check(x, outputs, tolerance)
    with mode(f, training=False):
        return _discovered(f, x.detach(), outputs, affine, tolerance)


def _discovered(f, x: Tensor, outputs, affine: bool, tolerance: float) -> DiscoveredGenerators:
    coordinates = coordinates_of(x, affine)
    values, shape, eps = values_of(f, x)
    response = _response(outputs, coordinates.matrices, shape, affine)
    features = _features(values, x[0].numel()) if outputs == "linear" else None
    unknown = len(coordinates.matrices) + (0 if features is None else features.numel())
    if values.numel() < 2 * unknown:
        raise DataError(
            f"Expected at least {2 * unknown} equations, one for each output of each input; got {values.numel()}. Pass "
            f"more inputs."
        )
    floor = FLOOR * max(torch.finfo(x.dtype).eps, eps)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).to(x.device)
    parts = [factor(f, x[order[b::PARTS]], coordinates, response, features) for b in range(PARTS)]
    full = solve(parts, affine, floor)
    others = [solve(parts[:b] + parts[b + 1 :], affine, floor) for b in range(PARTS)]
    replicates = torch.stack([o.values for o in others])
    shown = cut(full.values[None], tolerance, floor)
    dimension = cut(torch.cat([full.values[None], replicates]), tolerance, floor)
    moves = torch.stack([full.vectors, *(o.vectors for o in others)])
    directions = torch.einsum("bck,kij->bcij", moves, coordinates.matrices)
    return DiscoveredGenerators(
        dimension=dimension,
        singular_values=full.values,
        directions=directions[0],
        responses=None if features is None else full.responses(features),
        rank=coordinates.root.shape[1],
        extent=coordinates.extent,
        affine=affine,
        replicates=replicates,
        replicate_directions=directions[1:],
        withdrawn=shown if shown > dimension else 0,
        floor=floor,
    )


def _check(x, outputs, tolerance: float) -> None:
    if not callable(outputs):
        check_option("outputs", outputs, OUTPUTS)
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 < tolerance < 1:
        raise OptionError(f"Expected tolerance as a number between 0 and 1; got {tolerance!r}.")
    fits = isinstance(x, Tensor) and x.ndim in (2, 3) and x.dtype in DTYPES and x.numel() > 0
    if not fits or len(x) < 2 * PARTS:
        got = f"{x.dtype}, {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise DataError(
            f"Expected at least {2 * PARTS} inputs, (N, n) or clouds (N, P, n), in float32 or float64; got {got}."
        )
    if not x.isfinite().all():
        raise DataError("Expected finite inputs; got NaN or inf.")


def _features(values: Tensor, size: int) -> Tensor:
    """The :func:`~.equations.whitening` of outputs that are few enough, for inputs of ``size`` numbers."""
    features = whitening(values)
    if features.shape[1] > WIDEST * size:
        raise OptionError(
            f'Expected at most {WIDEST * size} independent outputs for outputs="linear", twice the numbers of an '
            f"input; got {features.shape[1]}, of which nearly any motion is a linear map. Give A_Y as a callable."
        )
    return features


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
    mixes = torch.randn(2, len(matrices), generator=torch.Generator().manual_seed(0), dtype=matrices.dtype)
    sums, right = (torch.einsum("ck,kij->cij", mixes, m) for m in (matrices, found))
    away = (torch.stack([torch.as_tensor(outputs(a)).to(matrices) for a in sums]) - right).abs().max()
    if not away <= LINEAR * found.abs().max():
        raise OptionError(f"Expected outputs to be linear in A; got a map that is off by {float(away):.2g} on a sum.")
    return found
