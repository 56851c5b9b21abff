"""The Normal with a covariance of low rank and a diagonal, which signed permutations keep."""

import pyro.distributions as dist
import torch
from torch import Tensor

from ..errors import ClosednessError
from ..representations import Representation
from .base import Family, register


class LowRankMultivariateNormalFamily(Family):
    """``N(μ, W Wᵀ + D)`` on vectors, ``D`` diagonal; no exponential family, so without natural parameters.

    Standard coordinates ``(μ, W, D)``; shapes ``(..., n)``, ``(..., n, r)`` and ``(..., n)``. Averages have the mean
    covariance, whose factor ``[ρ(g) W]_g / √|G|`` has ``|G| r`` columns; for ``arithmetic`` the spread of the means
    adds ``|G|`` more.
    """

    name = "low-rank Normal"
    is_exponential = False
    advice = (
        "Other linear actions spoil its diagonal: use a full-covariance MultivariateNormal, or signed permutations."
    )

    def coordinates(self, q, kind: str) -> tuple[Tensor, ...]:
        self._need_standard(kind)
        return q.loc, q.cov_factor, q.cov_diag

    def from_coordinates(self, kind: str, coordinates: tuple[Tensor, ...]) -> dist.LowRankMultivariateNormal:
        self._need_standard(kind)
        return dist.LowRankMultivariateNormal(*coordinates)

    def actions(self, rep: Representation, kind: str) -> tuple[Representation, ...]:
        self._need_standard(kind)
        return rep, _Columns(rep), rep.modulus(2)

    def is_closed(self, rep: Representation) -> bool:
        return len(rep.event_shape) == 1 and rep.is_monomial

    def orbit_mean(self, q, rep: Representation, kind: str) -> dist.LowRankMultivariateNormal:
        if kind == "natural":
            self._need_standard(kind)
        loc, factor = rep.mean(q.loc), _side_by_side(rep.orbit(q.cov_factor.mT).mT)
        if kind == "mean":
            spread = (rep.orbit(q.loc) - loc)[..., None]
            factor = torch.cat([factor, _side_by_side(spread)], -1)
        return dist.LowRankMultivariateNormal(loc, factor, rep.modulus(2).mean(q.cov_diag))

    def _need_standard(self, kind: str) -> None:
        if kind != "standard":
            raise ClosednessError(
                f"Expected a family with natural and mean parameters; a {self.name} has none. Use rule='projection' or "
                f"'arithmetic' for its average, or a full-covariance MultivariateNormal."
            )


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
