"""The Dirichlet, which permutations of its categories keep, and the Beta, which ``x ↦ 1 − x`` keeps."""

import pyro.distributions as dist
import torch
from torch import Tensor

from ..representations import Product, Representation, Trivial
from .base import Family, is_signed_permutation, moves_whole_rows, register

NEWTON_STEPS = 16
INVERSE_STEPS = 5


class DirichletFamily(Family):
    """``Dirichlet(α)`` on the last axis, with ``T(x) = log x``.

    ``η = α``, ``m_k = ψ(α_k) − ψ(Σα)``, standard ``α``; ``A = Σ log Γ(α_k) − log Γ(Σα)``, ``h = Π 1/x_k``; shape
    ``(..., K)``. It is closed under permutations that move whole simplices, and the categories within each.
    """

    name = "Dirichlet"
    needs_double = True
    advice = (
        "It keeps under permutations of its last axis, the categories (and of axes before it). For other actions use "
        "pe.AutoSymmetricMultivariateNormal or pe.AutoOrbitMixture, which move isometric log ratios."
    )

    def coordinates(self, q, kind: str) -> tuple[Tensor]:
        return (mean_logs(q.concentration) if kind == "mean" else q.concentration,)

    def from_coordinates(self, kind: str, coordinates: tuple[Tensor]) -> dist.Dirichlet:
        (c,) = coordinates
        return dist.Dirichlet(solve_concentration(c) if kind == "mean" else c)

    def actions(self, rep: Representation, kind: str) -> tuple[Representation]:
        return (rep,)

    def is_closed(self, rep: Representation) -> bool:
        return rep.space == "constrained" and moves_whole_rows(rep)

    def log_normalizer(self, natural: tuple[Tensor]) -> Tensor:
        (a,) = natural
        return torch.lgamma(a).sum(-1) - torch.lgamma(a.sum(-1))

    def sufficient_statistics(self, theta: Tensor) -> tuple[Tensor]:
        return (theta.log(),)

    def log_base_measure(self, theta: Tensor) -> Tensor:
        return -theta.log().sum(-1)


class BetaFamily(Family):
    """Independent ``Beta(a, b)`` with ``T(x) = (log x, log(1 − x))``, the first shares of Dirichlets of two.

    ``η = (a, b)``, ``m = (ψ(a) − ψ(a + b), ψ(b) − ψ(a + b))``, standard ``(a, b)``, ``A = log B(a, b)``,
    ``h = 1/(x (1 − x))``; all of the shape of the distribution. It is closed under permutations, and under signed
    permutations of the logits ``log x/(1 − x)``, where a sign swaps ``a`` and ``b``.
    """

    name = "Beta"
    needs_double = True
    advice = (
        "It keeps under permutations of the entries, and under x -> 1 - x: signed permutations said to act on "
        "unconstrained values, rep.on_unconstrained()."
    )

    def coordinates(self, q, kind: str) -> tuple[Tensor, Tensor]:
        a, b = q.concentration1, q.concentration0
        return tuple(mean_logs(torch.stack((a, b), -1)).unbind(-1)) if kind == "mean" else (a, b)

    def from_coordinates(self, kind: str, coordinates: tuple[Tensor, Tensor]) -> dist.Beta:
        if kind == "mean":
            coordinates = solve_concentration(torch.stack(torch.broadcast_tensors(*coordinates), -1)).unbind(-1)
        return dist.Beta(*coordinates)

    def actions(self, rep: Representation, kind: str) -> tuple[Representation]:
        """That of the pair of coordinates, stacked before the event."""
        return (Pairs(rep),)

    def is_closed(self, rep: Representation) -> bool:
        return rep.is_permutation or (rep.space == "unconstrained" and is_signed_permutation(rep))

    def push_forward(self, q, rep: Representation, g: Tensor | int) -> dist.Beta:
        return self._of_pairs("standard", q, rep, lambda pairs, x: pairs.act(g, x))

    def orbit_mean(self, q, rep: Representation, kind: str) -> dist.Beta:
        return self._of_pairs(kind, q, rep, lambda pairs, x: pairs.mean(x))

    def _of_pairs(self, kind: str, q, rep: Representation, move) -> dist.Beta:
        axis = -1 - len(rep.event_shape)
        stacked = torch.stack(self.coordinates(q, kind), axis)
        return self.from_coordinates(kind, move(Pairs(rep), stacked).unbind(axis))

    def log_normalizer(self, natural: tuple[Tensor, Tensor]) -> Tensor:
        a, b = natural
        return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)

    def sufficient_statistics(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return theta.log(), torch.log1p(-theta)

    def log_base_measure(self, theta: Tensor) -> Tensor:
        return -theta.log() - torch.log1p(-theta)

    def moments(self, q, rep: Representation) -> tuple[Tensor, Tensor]:
        """Of ``x − ½``, whose sign the action changes."""
        return q.mean - 0.5, q.variance


class Pairs(Representation):
    """Pairs ``(2, *event_shape)`` permuted as a signed permutation permutes entries; a sign swaps the two of a pair."""

    is_permutation = is_monomial = is_orthogonal = True

    def __init__(self, rep: Representation):
        self.group, self.rep = rep.group, rep
        two = Trivial(rep.group, 2)
        self._plain, self._signed = Product(two, rep.modulus()), Product(two, rep)
        self.event_shape = self._plain.event_shape

    def _act(self, g, x, dim=-1):
        moved = self._plain._act(g, x, dim)
        if self.rep.is_permutation:
            return moved
        signs = self._signed._act(g, torch.ones_like(x), dim)
        return torch.where(signs < 0, moved.flip(dim - len(self.rep.event_shape)), moved)

    def _modulus(self, power):
        return self

    def _key(self):
        return (self.rep,)

    def __repr__(self):
        return f"pairs moved by {self.rep}"


def mean_logs(concentration: Tensor) -> Tensor:
    """``E[log x_k] = ψ(α_k) − ψ(Σα)``."""
    return concentration.digamma() - concentration.sum(-1, keepdim=True).digamma()


def solve_concentration(logs: Tensor) -> Tensor:
    """The ``α`` with ``ψ(α_k) − ψ(Σα) = logs``, shape ``(..., K)``; differentiable in ``logs`` (once).

    Newton's steps, kept positive, from ``Σα = (K − 1) / (2 (1 − Σ exp logs))``, which is right for large ``α``. The
    last one, from a detached start, has the derivative that the implicit function theorem gives.

    Source: Minka (2000) "Estimating a Dirichlet distribution".
    """
    with torch.no_grad():
        total = (logs.shape[-1] - 1) / (-2 * torch.expm1(logs.logsumexp(-1, keepdim=True)))
        a = inverse_digamma(total.digamma() + logs)
        for _ in range(NEWTON_STEPS):
            a = a + _newton_step(a, logs).clamp_min(-0.9 * a)
    return a + _newton_step(a, logs)


def _newton_step(a: Tensor, logs: Tensor) -> Tensor:
    """``F⁻¹ (logs − m(a))`` with ``F = diag ψ'(a) − ψ'(Σa) 1 1ᵀ``, the Fisher information."""
    with torch.no_grad():
        inverse = 1 / torch.polygamma(1, a)
        shared = torch.polygamma(1, a.sum(-1, keepdim=True))
        shared = shared / (1 - shared * inverse.sum(-1, keepdim=True))
        found = mean_logs(a)
    step = inverse * (logs - found)
    return step + inverse * shared * step.sum(-1, keepdim=True)


def inverse_digamma(y: Tensor) -> Tensor:
    """The positive ``a`` with ``ψ(a) = y``, to rounding. Source: Minka (2000), appendix C."""
    a = torch.where(y >= -2.22, y.exp() + 0.5, -1 / (y + 0.5772156649015329))
    for _ in range(INVERSE_STEPS):
        a = a - (a.digamma() - y) / torch.polygamma(1, a)
    return a


register(torch.distributions.Dirichlet, DirichletFamily())
register(torch.distributions.Beta, BetaFamily())
