"""The Wishart law of positive definite matrices, which every congruence keeps."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.kl import register_kl

from ..representations import Representation, Trivial
from .base import Family, probes, register

NEWTON_STEPS = 12
TOLERANCE = 1e-6


class WishartFamily(Family):
    """The Wishart law ``W(d, V)`` of positive definite ``n × n`` matrices, ``T(Σ) = (Σ, log det Σ)``.

    ``η = (−V⁻¹/2, (d − n − 1)/2)``, ``m = (d V, ψ_n(d/2) + n log 2 + log det V)``, standard ``(V, d)``; shapes
    ``(..., n, n)`` and ``(...)``. It is closed under congruences ``Σ ↦ ρ Σ ρᵀ``, as ``r * r`` acts for a linear ``r``
    on one axis: they move ``V`` and leave ``d``. As ``|det ρ| = 1`` for every representation of a finite or compact
    group, ``log det Σ`` and the volume stay as they are.

    ``dist.Wishart.sample`` of torch 2.13 warns of singular draws for every draw that is *not* singular; ignore it.
    """

    name = "Wishart law"
    advice = "Use a congruence, r * r for a linear representation r on one axis."

    def coordinates(self, q, kind: str) -> tuple[Tensor, ...]:
        n, scale, df = q.event_shape[-1], q.covariance_matrix, q.df
        if kind == "natural":
            return -q.precision_matrix / 2, (df - n - 1) / 2
        if kind == "standard":
            return scale, df
        return df[..., None, None] * scale, _mvdigamma(df / 2, n) + n * math.log(2) + torch.logdet(scale)

    def from_coordinates(self, kind: str, coordinates: tuple[Tensor, ...]) -> dist.Wishart:
        first, second = coordinates
        first, n = (first + first.mT) / 2, first.shape[-1]
        if kind == "natural":
            return dist.Wishart(2 * second + n + 1, precision_matrix=-2 * first)
        if kind == "mean":
            second = DegreesOfFreedom.apply(torch.logdet(first) - second, n)
            first = first / second[..., None, None]
        return dist.Wishart(second, covariance_matrix=first)

    def actions(self, rep: Representation, kind: str) -> tuple[Representation, ...]:
        return rep.dual if kind == "natural" else rep, Trivial(rep.group, ())

    def is_closed(self, rep: Representation) -> bool:
        shape = rep.event_shape
        if len(shape) != 2 or shape[0] != shape[1] or not rep.is_linear:
            return False
        generator = torch.Generator().manual_seed(0)
        roots = torch.randn(8, *shape, generator=generator, dtype=torch.float64)
        matrices = roots @ roots.mT + torch.eye(shape[0], dtype=torch.float64)
        return all(_is_congruent(rep.act(g, matrices), matrices) for g in probes(rep.group))

    def log_normalizer(self, natural: tuple[Tensor, Tensor]) -> Tensor:
        first, second = natural
        n = first.shape[-1]
        half = second + (n + 1) / 2
        return half * (n * math.log(2) - torch.logdet(-(first + first.mT))) + torch.mvlgamma(half, n)

    def sufficient_statistics(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return theta, torch.logdet(theta)


def _is_congruent(moved: Tensor, matrices: Tensor) -> bool:
    """Whether random positive definite matrices stay so, with their determinants.

    The linear maps of symmetric matrices that keep determinants are ``Σ ↦ ±ρ Σ ρᵀ`` with ``|det ρ| = 1`` (Frobenius,
    1897; Eaton, 1969, for symmetric matrices).
    """
    if (moved - moved.mT).abs().max() > TOLERANCE * moved.abs().max() or torch.linalg.eigvalsh(moved).min() <= 0:
        return False
    return bool((torch.logdet(moved) - torch.logdet(matrices)).abs().max() < TOLERANCE)


class DegreesOfFreedom(torch.autograd.Function):
    """``d`` from ``c = n log(d/2) − ψ_n(d/2) > 0``, the gap between ``log det E[Σ]`` and ``E[log det Σ]``.

    By Newton's method for ``log c`` as a function of ``log(d − n + 1)``, which is almost linear; differentiated as an
    implicit function.
    """

    @staticmethod
    def forward(ctx, gap: Tensor, n: int) -> Tensor:
        excess = (n * (n + 1) / 2 / gap).log()
        for _ in range(NEWTON_STEPS):
            df = n - 1 + excess.exp()
            found = _gap(df, n)
            excess = excess - (found / gap).log() * found / (_gap_slope(df, n) * excess.exp())
        df = n - 1 + excess.exp()
        ctx.save_for_backward(df)
        ctx.n = n
        return df

    @staticmethod
    def backward(ctx, gradient):
        return gradient / _gap_slope(ctx.saved_tensors[0], ctx.n), None


def _gap(df: Tensor, n: int) -> Tensor:
    return n * (df / 2).log() - _mvdigamma(df / 2, n)


def _gap_slope(df: Tensor, n: int) -> Tensor:
    return n / df - sum(torch.polygamma(1, (df - i) / 2) for i in range(n)) / 2


def _mvdigamma(x: Tensor, n: int) -> Tensor:
    """``ψ_n``, the derivative of the logarithm of the multivariate gamma function."""
    return sum(torch.digamma(x - i / 2) for i in range(n))


@register_kl(torch.distributions.Wishart, torch.distributions.Wishart)
def _kl_wishart(q, p) -> Tensor:
    """``d_q (tr V_p⁻¹V_q − n)/2 − d_p log det(V_p⁻¹V_q)/2 + log Γ_n(d_p/2)/Γ_n(d_q/2) + (d_q − d_p) ψ_n(d_q/2)/2``."""
    n = q.event_shape[-1]
    quotient = torch.linalg.solve(p.covariance_matrix, q.covariance_matrix)
    trace = quotient.diagonal(dim1=-2, dim2=-1).sum(-1)
    gammas = torch.mvlgamma(p.df / 2, n) - torch.mvlgamma(q.df / 2, n)
    shape = gammas + (q.df - p.df) / 2 * _mvdigamma(q.df / 2, n)
    return shape + q.df / 2 * (trace - n) - p.df / 2 * torch.logdet(quotient)


register(torch.distributions.Wishart, WishartFamily())
