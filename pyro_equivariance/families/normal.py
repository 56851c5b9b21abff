"""The mean-field Normal: independent Normals, one for each entry."""

import math

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
        return to_coordinates(q.loc, q.scale, kind)

    def from_coordinates(self, kind: str, coordinates: tuple[Tensor, ...]) -> dist.Normal:
        return dist.Normal(*to_loc_scale(*coordinates, kind))

    def actions(self, rep: Representation, kind: str) -> tuple[Representation, ...]:
        if kind == "natural":
            return rep.dual, rep.dual.modulus(2)
        return rep, rep.modulus(2 if kind == "mean" else 1)

    def is_closed(self, rep: Representation) -> bool:
        return rep.is_monomial

    def log_normalizer(self, natural: tuple[Tensor, Tensor]) -> Tensor:
        first, second = natural
        return -first.square() / (4 * second) + 0.5 * (-math.pi / second).log()

    def sufficient_statistics(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return theta, theta.square()

    def orbit_mean(self, q, rep: Representation, kind: str) -> dist.Normal:
        return dist.Normal(*average_loc_scale(q.loc, q.scale, rep, kind))


def to_coordinates(loc: Tensor, scale: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The coordinates of independent Normals."""
    if kind == "natural":
        precision = scale.square().reciprocal()
        return loc * precision, -precision / 2
    return (loc, scale.square() + loc.square()) if kind == "mean" else (loc, scale)


def to_loc_scale(first: Tensor, second: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The inverse of :func:`to_coordinates`."""
    if kind == "natural":
        variance = -0.5 / second
        return first * variance, variance.sqrt()
    return first, (second - first.square()).sqrt() if kind == "mean" else second


def average_loc_scale(loc: Tensor, scale: Tensor, rep: Representation, kind: str) -> tuple[Tensor, Tensor]:
    """Location and scale of independent Normals whose coordinates are the mean over the orbit."""
    loc, scale = torch.broadcast_tensors(loc, scale)
    if kind == "natural" and rep.is_permutation:  # the same with precisions for −1/(2σ²), in fewer steps
        precision = scale.square().reciprocal()
        weighted, precision = rep.mean(torch.stack((loc * precision, precision))).unbind()
        return weighted / precision, precision.rsqrt()
    if kind == "mean":  # σ² and the spread of the means, since E[θ²] − μ² would lose a σ that is small beside μ
        mean = rep.mean(loc)
        squared = rep if rep.is_permutation else rep.modulus(2)
        return mean, squared.mean(scale.square() + (loc - mean).square()).sqrt()
    first, second = to_coordinates(loc, scale, kind)
    if rep.is_permutation:
        first, second = rep.mean(torch.stack((first, second))).unbind()  # they move alike: one pass
    else:
        power = {"natural": 2, "standard": 1}[kind]
        moved = rep.dual if kind == "natural" else rep
        first, second = moved.mean(first), moved.modulus(power).mean(second)
    return to_loc_scale(first, second, kind)


register(torch.distributions.Normal, NormalFamily())
