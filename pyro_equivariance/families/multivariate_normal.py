"""The Normal with a full covariance, which every linear action keeps."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor

from ..representations import Representation
from .base import Family, register


class MultivariateNormalFamily(Family):
    """``N(μ, Σ)`` on vectors, ``T(θ) = (θ, θθᵀ)``.

    ``η = (Σ⁻¹μ, −Σ⁻¹/2)``, ``m = (μ, Σ + μμᵀ)``, standard ``(μ, Σ)``; shapes ``(..., n)`` and ``(..., n, n)``.
    """

    name = "full-covariance Normal"
    advice = "Use a linear action on one axis; rep.reshape((n,)) lays an event out as a vector."

    def coordinates(self, q, kind: str) -> tuple[Tensor, ...]:
        loc = q.loc
        if kind == "natural":
            return (q.precision_matrix @ loc[..., None])[..., 0], -q.precision_matrix / 2
        outer = loc[..., :, None] * loc[..., None, :]
        return loc, q.covariance_matrix + outer if kind == "mean" else q.covariance_matrix

    def from_coordinates(self, kind: str, coordinates: tuple[Tensor, ...]) -> dist.MultivariateNormal:
        first, second = coordinates
        if kind == "natural":
            precision = -(second + second.mT)
            loc = torch.linalg.solve(precision, first[..., None])[..., 0]
            return dist.MultivariateNormal(loc, precision_matrix=precision)
        covariance = second - first[..., :, None] * first[..., None, :] if kind == "mean" else second
        return dist.MultivariateNormal(first, covariance_matrix=(covariance + covariance.mT) / 2)

    def orbit_mean(self, q, rep: Representation, kind: str) -> dist.MultivariateNormal:
        if kind != "mean":
            return super().orbit_mean(q, rep, kind)
        loc = rep.mean(q.loc)  # Σ and the spread of the means, since E[θθᵀ] − μμᵀ would lose a Σ that is small beside μ
        away = q.loc - loc
        covariance = (rep * rep).mean(q.covariance_matrix + away[..., :, None] * away[..., None, :])
        return dist.MultivariateNormal(loc, covariance_matrix=(covariance + covariance.mT) / 2)

    def actions(self, rep: Representation, kind: str) -> tuple[Representation, ...]:
        moved = rep.dual if kind == "natural" else rep
        return moved, moved * moved

    def log_normalizer(self, natural: tuple[Tensor, Tensor]) -> Tensor:
        first, second = natural
        precision = -(second + second.mT)
        squares = (first * torch.linalg.solve(precision, first[..., None])[..., 0]).sum(-1)
        return 0.5 * (squares - torch.logdet(precision) + first.shape[-1] * math.log(2 * math.pi))

    def sufficient_statistics(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return theta, theta[..., :, None] * theta[..., None, :]

    def is_closed(self, rep: Representation) -> bool:
        return len(rep.event_shape) == 1 and rep.is_linear


register(torch.distributions.MultivariateNormal, MultivariateNormalFamily())
