"""Laplace and Student's t: families of a location and a scale, without natural parameters."""

import pyro.distributions as dist
import torch
from torch import Tensor

from ..representations import Representation
from .base import Family, carried, register


class LocationScaleFamily(Family):
    """Independent entries ``μ + σ ε`` with ``ε`` symmetric around 0; standard coordinates only.

    It is closed under actions that permute and rescale entries: ``μ`` moves by ``ρ(g)``, ``σ`` by ``|ρ(g)|``. Its
    average is ``projection``, the mean of the constructor's parameters.
    """

    is_exponential = False
    no_natural = "Use rule='projection' for its average, or a Normal for the other rules."
    advice = (
        "It keeps under permutations, signs and rescalings of the entries: use a group that acts by signed "
        "permutations, or a full-covariance MultivariateNormal."
    )

    def is_closed(self, rep: Representation) -> bool:
        return rep.is_monomial


class LaplaceFamily(LocationScaleFamily):
    """Independent ``Laplace(μ, σ)``; the location is a parameter, so it has no natural ones."""

    name = "Laplace"

    def coordinates(self, q, kind: str) -> tuple[Tensor, ...]:
        self.need_standard(kind)
        return q.loc, q.scale

    def from_coordinates(self, kind: str, coordinates: tuple[Tensor, ...]) -> dist.Laplace:
        self.need_standard(kind)
        return dist.Laplace(*coordinates)

    def actions(self, rep: Representation, kind: str) -> tuple[Representation, ...]:
        self.need_standard(kind)
        return rep, rep.modulus()


class StudentTFamily(LocationScaleFamily):
    """Independent Student's ``t(ν, μ, σ)``; degrees of freedom ``ν`` are permuted, never rescaled."""

    name = "Student-t"

    def coordinates(self, q, kind: str) -> tuple[Tensor, ...]:
        self.need_standard(kind)
        return q.df, q.loc, q.scale

    def from_coordinates(self, kind: str, coordinates: tuple[Tensor, ...]) -> dist.StudentT:
        self.need_standard(kind)
        return dist.StudentT(*coordinates)

    def actions(self, rep: Representation, kind: str) -> tuple[Representation, ...]:
        self.need_standard(kind)
        return carried(rep.modulus()), rep, rep.modulus()


register(torch.distributions.Laplace, LaplaceFamily())
register(torch.distributions.StudentT, StudentTFamily())
