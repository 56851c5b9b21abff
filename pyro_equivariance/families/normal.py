"""The mean-field Normal: independent Normals, one for each entry."""

import pyro.distributions as dist
import torch
from torch import Tensor

from ..representations import Representation
from .base import Family, register


class NormalFamily(Family):
    """Independent Normals ``N(μ_i, σ_i²)`` with ``T(θ) = (θ, θ²)``.

    ``η = (μ/σ², −1/(2σ²))``, ``m = (μ, σ² + μ²)``, standard ``(μ, σ)``; all of the shape of the distribution. It is
    closed under actions that permute and rescale entries (signed permutations among them).
    """

    name = "mean-field Normal"
    advice = (
        "It mixes entries: use a full-covariance MultivariateNormal, or a group that acts by signed permutations "
        "(on the axes: CyclicGroup(4) rather than CyclicGroup(8))."
    )

    def coordinates(self, q, kind: str) -> tuple[Tensor, ...]:
        loc, scale = q.loc, q.scale
        if kind == "natural":
            precision = scale**-2
            return loc * precision, -precision / 2
        return (loc, scale**2 + loc**2) if kind == "mean" else (loc, scale)

    def from_coordinates(self, kind: str, coordinates: tuple[Tensor, ...]) -> dist.Normal:
        first, second = coordinates
        if kind == "natural":
            variance = -0.5 / second
            return dist.Normal(first * variance, variance.sqrt())
        return dist.Normal(first, (second - first**2).sqrt() if kind == "mean" else second)

    def actions(self, rep: Representation, kind: str) -> tuple[Representation, ...]:
        if kind == "natural":
            return rep.dual, rep.dual.modulus(2)
        return rep, rep.modulus(2 if kind == "mean" else 1)

    def is_closed(self, rep: Representation) -> bool:
        return rep.is_monomial


register(torch.distributions.Normal, NormalFamily())
