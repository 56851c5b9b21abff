"""Exponential families: their coordinates, and what an action does to them."""

import torch
from pyro.distributions import Distribution
from torch import Tensor

from ..representations import Representation
from . import low_rank, multivariate_normal, normal  # noqa: F401  (they register themselves)
from .base import COORDINATES, Family, check_closed, register, rewrap, unwrap

__all__ = ["COORDINATES", "Family", "is_closed", "kl", "mean", "natural", "orbit_mean", "push_forward", "register"]


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


def is_closed(q: Distribution, rep: Representation) -> bool:
    """Whether every push-forward ``ρ(g)_# q`` stays in the family of ``q``."""
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
    check_closed(family, q, rep)
    return rewrap(family.push_forward(core, rep, g), event_dims)


def orbit_mean(q: Distribution, rep: Representation, kind: str) -> Distribution:
    """The member of the family whose coordinates of the given kind are the mean over the orbit of ``q``."""
    family, core, event_dims = unwrap(q)
    check_closed(family, q, rep)
    return rewrap(family.orbit_mean(core, rep, kind), event_dims)


def kl(q: Distribution, p: Distribution) -> Tensor:
    """``KL(q ‖ p)`` in nats, in closed form, summed over all axes: a scalar.

    >>> import torch, pyro.distributions as dist, pyro_equivariance as pe
    >>> float(pe.kl(dist.Normal(torch.zeros(2), torch.ones(2)), dist.Normal(torch.ones(2), torch.ones(2))))
    1.0
    """
    return torch.distributions.kl_divergence(unwrap(q)[1], unwrap(p)[1]).sum()
