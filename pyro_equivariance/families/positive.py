"""Families of positive numbers, which permutations and positive rescalings of the entries keep."""

import math

import pyro.distributions as dist
import torch
from pyro.distributions import Distribution
from torch import Tensor

from ..representations import Representation
from .base import Family, carried, family_of_class, is_positive, register

NEWTON_STEPS = 6


class PositiveFamily(Family):
    """Independent positive entries, whose law under ``x ↦ c x`` (``c > 0``) is :meth:`rescaled`.

    An action that permutes and rescales entries only permutes them in the right units, and so all coordinates.
    """

    count = 2
    advice = (
        "It keeps under permutations and positive rescalings of the entries. For signs or rotations, model the "
        "logarithm: a Normal under transforms.ExpTransform(), moved by rep.on_unconstrained()."
    )

    def rescaled(self, q, c: Tensor) -> Distribution:
        """The law of ``c θ``, for positive ``c`` that broadcast."""
        raise NotImplementedError

    def actions(self, rep: Representation, kind: str) -> tuple[Representation, ...]:
        return (rep,) * self.count

    def is_closed(self, rep: Representation) -> bool:
        return rep.is_permutation or (rep.space == "constrained" and is_positive(rep))

    def push_forward(self, q, rep: Representation, g: Tensor | int) -> Distribution:
        return self._in_units(q, rep, lambda p, permuted: super(PositiveFamily, self).push_forward(p, permuted, g))

    def orbit_mean(self, q, rep: Representation, kind: str) -> Distribution:
        return self._in_units(q, rep, lambda p, permuted: super(PositiveFamily, self).orbit_mean(p, permuted, kind))

    def _in_units(self, q, rep: Representation, then) -> Distribution:
        permuted = carried(rep)
        if permuted is rep:
            return then(q, rep)
        units = permuted.units.to(self.coordinates(q, "standard")[0])
        return self.rescaled(then(self.rescaled(q, 1 / units), permuted), units)


class GammaFamily(PositiveFamily):
    """Independent ``Gamma(a, b)`` of shape ``a`` and rate ``b``, with ``T(x) = (log x, x)``.

    ``η = (a − 1, −b)``, ``m = (ψ(a) − log b, a/b)``, standard ``(a, b)``, ``A = log Γ(a) − a log b``, ``h = 1``; all of
    the shape of the distribution. ``c x`` has the rate ``b/c``. From the mean parameters ``a`` solves
    ``log a − ψ(a) = log m₂ − m₁``.

    Source: Minka (2002) "Estimating a Gamma distribution", for the Newton steps.
    """

    name = "Gamma"
    needs_double = True

    def coordinates(self, q, kind: str) -> tuple[Tensor, ...]:
        a, b = q.concentration, q.rate
        if kind == "natural":
            return a - 1, -b
        return (a.digamma() - b.log(), a / b) if kind == "mean" else (a, b)

    def from_coordinates(self, kind: str, coordinates: tuple[Tensor, ...]) -> dist.Gamma:
        return dist.Gamma(*shape_and_rate(kind, *coordinates))

    def log_normalizer(self, natural: tuple[Tensor, Tensor]) -> Tensor:
        a, b = natural[0] + 1, -natural[1]
        return torch.lgamma(a) - a * b.log()

    def sufficient_statistics(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return theta.log(), theta

    def rescaled(self, q, c: Tensor) -> dist.Gamma:
        return dist.Gamma(q.concentration, q.rate / c)


class InverseGammaFamily(PositiveFamily):
    """Independent inverse Gammas: ``1/x`` is ``Gamma(a, b)``; ``T(x) = (log x, 1/x)``.

    ``η = (−a − 1, −b)``, ``m = (log b − ψ(a), a/b)``, standard ``(a, b)``, ``A = log Γ(a) − a log b``, ``h = 1``; all
    of the shape of the distribution. ``c x`` has ``b c``.
    """

    name = "inverse Gamma"
    needs_double = True

    def coordinates(self, q, kind: str) -> tuple[Tensor, ...]:
        a, b = q.concentration, q.rate
        if kind == "natural":
            return -a - 1, -b
        return (b.log() - a.digamma(), a / b) if kind == "mean" else (a, b)

    def from_coordinates(self, kind: str, coordinates: tuple[Tensor, ...]) -> dist.InverseGamma:
        first, second = coordinates
        if kind == "natural":
            return dist.InverseGamma(-first - 1, -second)
        return dist.InverseGamma(*shape_and_rate(kind, -first if kind == "mean" else first, second))

    def log_normalizer(self, natural: tuple[Tensor, Tensor]) -> Tensor:
        a, b = -natural[0] - 1, -natural[1]
        return torch.lgamma(a) - a * b.log()

    def sufficient_statistics(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return theta.log(), 1 / theta

    def rescaled(self, q, c: Tensor) -> dist.InverseGamma:
        return dist.InverseGamma(q.concentration, q.rate * c)

    def moments(self, q, rep: Representation) -> tuple[Tensor, Tensor]:
        """Of ``log x``, which always has a variance, unless the action rescales ``x``."""
        if not rep.is_permutation:
            return q.mean, q.variance
        a, b = q.concentration, q.rate
        return b.log() - a.digamma(), torch.polygamma(1, a)


class ExponentialDistributionFamily(PositiveFamily):
    """Independent ``Exponential(b)`` of rate ``b``: ``T(x) = x``, ``η = −b``, ``m = 1/b``, ``A = −log b``, ``h = 1``.

    All of the shape of the distribution; ``c x`` has the rate ``b/c``.
    """

    name = "Exponential"
    count = 1

    def coordinates(self, q, kind: str) -> tuple[Tensor]:
        return ({"natural": -q.rate, "mean": 1 / q.rate, "standard": q.rate}[kind],)

    def from_coordinates(self, kind: str, coordinates: tuple[Tensor]) -> dist.Exponential:
        (c,) = coordinates
        return dist.Exponential({"natural": -c, "mean": 1 / c, "standard": c}[kind])

    def log_normalizer(self, natural: tuple[Tensor]) -> Tensor:
        return -(-natural[0]).log()

    def sufficient_statistics(self, theta: Tensor) -> tuple[Tensor]:
        return (theta,)

    def rescaled(self, q, c: Tensor) -> dist.Exponential:
        return dist.Exponential(q.rate / c)


class LogNormalFamily(PositiveFamily):
    """Independent ``LogNormal(μ, σ)``: the coordinates of the Normal of ``log x``, ``T(x) = (log x, log² x)``.

    ``η = (μ/σ², −1/(2σ²))``, ``m = (μ, σ² + μ²)``, standard ``(μ, σ)``, ``h = 1/x``; all of the shape of the
    distribution. ``c x`` has ``μ + log c``; an action on unconstrained values moves ``log x``, which is a Normal.
    """

    name = "LogNormal"
    advice = (
        "It keeps under permutations and positive rescalings of the entries, and under signed permutations of the "
        "logarithms: rep.on_unconstrained(). For rotations of these use a MultivariateNormal under "
        "transforms.ExpTransform()."
    )

    @property
    def _normal(self) -> Family:
        return family_of_class(torch.distributions.Normal)

    def coordinates(self, q, kind: str) -> tuple[Tensor, ...]:
        return self._normal.coordinates(q.base_dist, kind)

    def from_coordinates(self, kind: str, coordinates: tuple[Tensor, ...]) -> dist.LogNormal:
        return as_log_normal(self._normal.from_coordinates(kind, coordinates))

    def is_closed(self, rep: Representation) -> bool:
        return self._normal.is_closed(rep) if rep.space == "unconstrained" else super().is_closed(rep)

    def log_normalizer(self, natural: tuple[Tensor, Tensor]) -> Tensor:
        first, second = natural
        return -first.square() / (4 * second) + 0.5 * (-math.pi / second).log()

    def sufficient_statistics(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return theta.log(), theta.log().square()

    def log_base_measure(self, theta: Tensor) -> Tensor:
        return -theta.log()

    def rescaled(self, q, c: Tensor) -> dist.LogNormal:
        return dist.LogNormal(q.loc + c.log(), q.scale)

    def push_forward(self, q, rep: Representation, g: Tensor | int) -> dist.LogNormal:
        if rep.space == "unconstrained":
            return as_log_normal(self._normal.push_forward(q.base_dist, rep, g))
        return super().push_forward(q, rep, g)

    def orbit_mean(self, q, rep: Representation, kind: str) -> dist.LogNormal:
        if rep.space == "unconstrained" or rep.is_permutation:
            return as_log_normal(self._normal.orbit_mean(q.base_dist, rep, kind))
        return super().orbit_mean(q, rep, kind)

    def moments(self, q, rep: Representation) -> tuple[Tensor, Tensor]:
        """Of ``log x``, unless the action rescales ``x``."""
        linear_in_logs = rep.space == "unconstrained" or rep.is_permutation
        return (q.loc, q.scale.square()) if linear_in_logs else (q.mean, q.variance)


def as_log_normal(q: dist.Normal) -> dist.LogNormal:
    """The law of ``exp(x)``."""
    return dist.LogNormal(q.loc, q.scale)


def shape_and_rate(kind: str, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """``(a, b)`` of Gammas with the given coordinates."""
    if kind == "natural":
        return first + 1, -second
    if kind == "standard":
        return first, second
    shape = solve_shape(second.log() - first)
    return shape, shape / second


def solve_shape(gap: Tensor) -> Tensor:
    """The ``a`` with ``log a − ψ(a) = gap > 0``, differentiable in ``gap`` (once).

    The last Newton step, from a detached start, has the derivative that the implicit function theorem gives.
    """
    with torch.no_grad():
        a = (3 - gap + ((gap - 3).square() + 24 * gap).sqrt()) / (12 * gap)
        for _ in range(NEWTON_STEPS):
            slope = a.square() * (1 / a - torch.polygamma(1, a))
            a = 1 / (1 / a + (a.log() - a.digamma() - gap) / slope)
        slope, value = 1 / a - torch.polygamma(1, a), a.log() - a.digamma()
    return a - (value - gap) / slope


register(torch.distributions.Gamma, GammaFamily())
register(getattr(torch.distributions, "InverseGamma", dist.InverseGamma), InverseGammaFamily())
register(torch.distributions.Exponential, ExponentialDistributionFamily())
register(torch.distributions.LogNormal, LogNormalFamily())
