"""Exponential families: their coordinates, and what an action does to them."""

import torch
from pyro.distributions import Distribution
from torch import Tensor

from ..errors import ClosednessError
from ..representations import Representation
from . import directional, discrete, location_scale, low_rank, multivariate_normal, normal, positive, simplex, wishart  # noqa: F401  (they register themselves)
from .base import (
    COORDINATES,
    Family,
    check_closed,
    divergence,
    family_of_class,
    register,
    rewrap,
    sum_last,
    unknown,
    unwrap,
)

__all__ = [
    "COORDINATES",
    "Family",
    "family_of",
    "from_mean",
    "from_natural",
    "is_closed",
    "kl",
    "log_normalizer",
    "mean",
    "natural",
    "orbit_mean",
    "push_forward",
    "register",
    "spread_moments",
    "sufficient_statistics",
]


def family_of(distribution_or_class: Distribution | type) -> Family:
    """The family of a distribution (or of what it is ``to_event`` of), or of a class of distributions.

    :raises ClosednessError: if it has none.

    >>> import torch, pyro.distributions as dist
    >>> family_of(dist.Gamma).name, family_of(dist.LogNormal(torch.zeros(2), 1.0).to_event(1)).name
    ('Gamma', 'LogNormal')
    """
    if not isinstance(distribution_or_class, type):
        return unwrap(distribution_or_class)[0]
    family = family_of_class(distribution_or_class)
    if family is None:
        raise ClosednessError(unknown(distribution_or_class))
    return family


def natural(q: Distribution) -> tuple[Tensor, ...]:
    """The natural parameters η of ``q``, a tuple of tensors (see the family for their shapes).

    >>> import torch, pyro.distributions as dist, pyro_equivariance as pe
    >>> [t.tolist() for t in pe.natural(dist.Normal(torch.tensor([2.0]), torch.tensor([1.0])))]
    [[2.0], [-0.5]]
    """
    family, core, _ = unwrap(q)
    return family.coordinates(core, "natural")


def mean(q: Distribution) -> tuple[Tensor, ...]:
    """The mean parameters ``m = ∇A(η) = E[T(θ)]`` of ``q``.

    >>> import torch, pyro.distributions as dist, pyro_equivariance as pe
    >>> [t.tolist() for t in pe.mean(dist.Normal(torch.tensor([2.0]), torch.tensor([1.0])))]
    [[2.0], [5.0]]
    """
    family, core, _ = unwrap(q)
    return family.coordinates(core, "mean")


def from_natural(kind: type, natural: tuple[Tensor, ...]) -> Distribution:
    """The distribution of a class with the given natural parameters, the inverse of :func:`natural`.

    :param type kind: a class of distributions, such as ``dist.Gamma``.
    :param natural: a tuple of tensors, see the family for their shapes.
    :raises ClosednessError: if the class has no family, or its family no natural parameters.

    >>> import torch, pyro.distributions as dist
    >>> from_natural(dist.Gamma, (torch.tensor(1.0), torch.tensor(-3.0)))
    Gamma(concentration: 2.0, rate: 3.0)
    """
    return family_of(kind).from_coordinates("natural", tuple(natural))


def from_mean(kind: type, mean: tuple[Tensor, ...]) -> Distribution:
    """The distribution of a class with the given mean parameters, the inverse of :func:`mean`.

    In closed form, or by Newton's method (Gamma, inverse Gamma, Beta, Dirichlet); differentiable once either way.

    :param type kind: a class of distributions, such as ``dist.Gamma``.
    :param mean: a tuple of tensors, see the family for their shapes.
    :raises ClosednessError: if the class has no family, or its family no mean parameters.

    >>> import torch, pyro.distributions as dist, pyro_equivariance as pe
    >>> from_mean(dist.Gamma, pe.mean(dist.Gamma(torch.tensor(2.0), torch.tensor(4.0))))
    Gamma(concentration: 2.0, rate: 4.0)
    """
    return family_of(kind).from_coordinates("mean", tuple(mean))


def log_normalizer(q: Distribution) -> Tensor:
    """``A(η)`` of ``q``, of the shape of its batch.

    >>> import torch, pyro.distributions as dist
    >>> log_normalizer(dist.Poisson(torch.tensor([2.0, 3.0])).to_event(1))
    tensor(5.)
    """
    family, core, event_dims = unwrap(q)
    return sum_last(family.log_normalizer(family.coordinates(core, "natural")), event_dims)


def sufficient_statistics(q: Distribution, theta: Tensor) -> tuple[Tensor, ...]:
    """``T(θ)`` of the family of ``q``, a tensor for each natural parameter.

    :param Tensor theta: values of ``q``, with any axes before them.

    >>> import torch, pyro.distributions as dist
    >>> [t.tolist() for t in sufficient_statistics(dist.Normal(0.0, 1.0), torch.tensor(3.0))]
    [3.0, 9.0]
    """
    family, core, _ = unwrap(q)
    return family.statistics_of(core, theta)


def is_closed(q: Distribution, rep: Representation) -> bool:
    """Whether every push-forward ``ρ(g)_# q`` stays in the family of ``q``.

    It does if ``T(ρ(g)⁻¹ θ)`` and ``log h(ρ(g)⁻¹ θ) − log h(θ)`` are affine functions of ``T(θ)``, and the support
    stays.

    >>> import torch, pyro.distributions as dist, pyro_equivariance as pe
    >>> turn = pe.vector(pe.CyclicGroup(8))
    >>> pe.is_closed(dist.Normal(torch.zeros(2), 1.0), turn)
    False
    >>> pe.is_closed(dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), turn)
    True
    >>> flip = pe.vector(pe.SignGroup()).on_unconstrained()  # of the logit: x goes to 1 - x
    >>> pe.is_closed(dist.Beta(torch.ones(1), 1.0), flip), pe.is_closed(dist.Gamma(torch.ones(1), 1.0), flip)
    (True, False)
    """
    return not rep.is_approximate and unwrap(q)[0].is_closed(rep)


def push_forward(q: Distribution, rep: Representation, g: Tensor | int) -> Distribution:
    """The law ``ρ(g)_# q`` of ``ρ(g) θ`` for ``θ ~ q``, exact and in the same family.

    :param Distribution q: of shape (batch and event together) ``(..., *rep.event_shape)``.
    :param Tensor g: elements that broadcast over the leading axes.
    :raises ClosednessError: if the action does not keep the family.

    >>> import torch, pyro.distributions as dist, pyro_equivariance as pe
    >>> swap = pe.permutation(pe.SymmetricGroup(2))
    >>> q = dist.Normal(torch.tensor([0.0, 3.0]), torch.tensor([1.0, 2.0])).to_event(1)
    >>> pe.push_forward(q, swap, 1).base_dist.scale.tolist()
    [2.0, 1.0]
    """
    family, core, event_dims = unwrap(q)
    check_closed(family, core, rep)
    return rewrap(family.push_forward(core, rep, g), event_dims)


def orbit_mean(q: Distribution, rep: Representation, kind: str, measure: Tensor | None = None) -> Distribution:
    """The member of the family whose coordinates of the given kind are the mean over the orbit of ``q``.

    :param Tensor measure: weights ``(len(group),)`` of the elements; left out, equal ones.
    """
    family, core, event_dims = unwrap(q)
    check_closed(family, core, rep)
    if measure is None and rep.group.is_indexed and not rep.group.is_uniform:
        measure = torch.full((len(rep.group),), 1 / len(rep.group), dtype=torch.float64)
    dtype = family.coordinates(core, "standard")[0].dtype if kind == "mean" and family.needs_double else None
    core = _cast(family, core, torch.float64) if dtype else core
    averaged = family.orbit_mean(core, rep, kind) if measure is None else family.weighted_mean(core, rep, kind, measure)
    return rewrap(_cast(family, averaged, dtype) if dtype else averaged, event_dims)


def _cast(family: Family, core: Distribution, dtype: torch.dtype) -> Distribution:
    return family.from_coordinates("standard", tuple(c.to(dtype) for c in family.coordinates(core, "standard")))


def spread_moments(q: Distribution, rep: Representation) -> tuple[Tensor, Tensor] | None:
    """Mean and variance of what the action moves linearly, or ``None`` for a family that has none.

    A distribution of no known family is taken for one on what the action moves.
    """
    while isinstance(q, torch.distributions.Independent):
        q = q.base_dist
    try:
        family, core, _ = unwrap(q)
    except ClosednessError:
        family, core = None, q
    try:
        found = (core.mean, core.variance) if family is None else family.moments(core, rep)
    except NotImplementedError:
        return None
    axes = len(rep.event_shape)
    fits = all(t.ndim >= axes and t.shape[t.ndim - axes :] == rep.event_shape for t in found)
    return found if fits and rep.is_linear else None


def kl(q: Distribution, p: Distribution) -> Tensor:
    """``KL(q ‖ p)`` in nats, in closed form, summed over all axes: a scalar.

    :raises ClosednessError: if there is no closed form (Student's t, or families that torch does not compare).

    >>> import torch, pyro.distributions as dist, pyro_equivariance as pe
    >>> float(pe.kl(dist.Normal(torch.zeros(2), torch.ones(2)), dist.Normal(torch.ones(2), torch.ones(2))))
    1.0
    """
    return divergence(unwrap(q)[:2], unwrap(p)[:2])
