"""The Normal with a covariance of low rank and a diagonal, which signed permutations keep."""

import pyro.distributions as dist
import torch
from torch import Tensor

from ..representations import Representation
from .base import Family, all_elements, register


class LowRankMultivariateNormalFamily(Family):
    """``N(μ, W Wᵀ + D)`` on vectors, ``D`` diagonal; no exponential family, so without natural parameters.

    Standard coordinates ``(μ, W, D)``; shapes ``(..., n)``, ``(..., n, r)`` and ``(..., n)``. Averages have the mean
    covariance, whose factor ``[ρ(g) W]_g / √|G|`` has ``|G| r`` columns; for ``arithmetic`` the spread of the means
    adds ``|G|`` more.
    """

    name = "low-rank Normal"
    is_exponential = False
    no_natural = "Use rule='projection' or 'arithmetic' for its average, or a full-covariance MultivariateNormal."
    advice = (
        "Other linear actions spoil its diagonal: use a full-covariance MultivariateNormal, or signed permutations."
    )

    def coordinates(self, q, kind: str) -> tuple[Tensor, ...]:
        self.need_standard(kind)
        return q.loc, q.cov_factor, q.cov_diag

    def from_coordinates(self, kind: str, coordinates: tuple[Tensor, ...]) -> dist.LowRankMultivariateNormal:
        self.need_standard(kind)
        return dist.LowRankMultivariateNormal(*coordinates)

    def actions(self, rep: Representation, kind: str) -> tuple[Representation, ...]:
        self.need_standard(kind)
        return rep, _Columns(rep), rep.modulus(2)

    def is_closed(self, rep: Representation) -> bool:
        return len(rep.event_shape) == 1 and rep.is_monomial

    def orbit_mean(self, q, rep: Representation, kind: str) -> dist.LowRankMultivariateNormal:
        if kind == "natural":
            self.need_standard(kind)
        loc, factor = rep.mean(q.loc), _side_by_side(rep.orbit(q.cov_factor.mT).mT)
        if kind == "mean":
            spread = (rep.orbit(q.loc) - loc)[..., None]
            factor = torch.cat([factor, _side_by_side(spread)], -1)
        return dist.LowRankMultivariateNormal(loc, factor, rep.modulus(2).mean(q.cov_diag))

    def weighted_mean(self, q, rep: Representation, kind: str, measure: Tensor) -> dist.LowRankMultivariateNormal:
        if kind == "natural":
            self.need_standard(kind)
        moved = self.push_forward(q, rep, all_elements(q, rep))
        loc, diagonal = (torch.tensordot(measure.to(c), c, 1) for c in (moved.loc, moved.cov_diag))
        root = (measure * len(measure)).sqrt().to(loc).reshape(-1, *[1] * moved.loc.ndim)
        factor = _side_by_side(root * moved.cov_factor)
        if kind == "mean":
            factor = torch.cat([factor, _side_by_side(root * (moved.loc - loc)[..., None])], -1)
        return dist.LowRankMultivariateNormal(loc, factor, diagonal)


class _Columns:
    """``ρ(g)`` on each column of a matrix ``(..., n, r)``."""

    def __init__(self, rep: Representation):
        self.rep = rep

    def act(self, g, factor: Tensor) -> Tensor:
        g = torch.as_tensor(g)
        return self.rep.act(g[..., None] if g.ndim else g, factor.mT).mT


def _side_by_side(blocks: Tensor) -> Tensor:
    """``[B_1, …, B_k] / √k`` from blocks ``(k, ..., n, r)``."""
    return torch.cat(blocks.unbind(0), -1) / len(blocks) ** 0.5


register(torch.distributions.LowRankMultivariateNormal, LowRankMultivariateNormalFamily())
