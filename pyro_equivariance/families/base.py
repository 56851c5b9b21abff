"""What an exponential family offers: three coordinate systems, and how an action moves each."""

from abc import ABC, abstractmethod

import torch
from pyro.distributions import Distribution
from torch import Tensor

from ..errors import ClosednessError, SymmetryError
from ..representations import Representation

COORDINATES = ("natural", "mean", "standard")
_FAMILIES: dict[type, "Family"] = {}


class Family(ABC):
    """An exponential family ``q_η(θ) = h(θ) exp(⟨η, T(θ)⟩ − A(η))`` seen through three coordinate systems.

    The coordinates are ``natural`` (η), ``mean`` (``m = ∇A(η) = E[T]``) and ``standard`` (the constructor's
    parameters); each is a tuple of tensors that a closed action moves *linearly*, so a push-forward moves them and an
    average over the orbit is their orbit mean.

    To implement one:

    - :meth:`coordinates` and :meth:`from_coordinates` for each of the three kinds;
    - :meth:`actions`, the representation by which each coordinate moves (or, where it moves several together,
      :meth:`push_forward` and :meth:`orbit_mean`);
    - :meth:`is_closed` and ``advice``, the way out when an action does not keep the family;
    - :meth:`log_normalizer`, :meth:`sufficient_statistics` and, unless it is 0, :meth:`log_base_measure`; without
      natural parameters ``is_exponential = False`` instead;
    - register it with :func:`register`.
    """

    name: str
    advice: str
    is_exponential = True

    @abstractmethod
    def coordinates(self, q: Distribution, kind: str) -> tuple[Tensor, ...]: ...

    @abstractmethod
    def from_coordinates(self, kind: str, coordinates: tuple[Tensor, ...]) -> Distribution: ...

    @abstractmethod
    def actions(self, rep: Representation, kind: str) -> tuple[Representation, ...]: ...

    @abstractmethod
    def is_closed(self, rep: Representation) -> bool: ...

    def log_normalizer(self, natural: tuple[Tensor, ...]) -> Tensor:
        """``A(η)`` of each member of the batch: of the shape of the batch."""
        raise NotImplementedError

    def sufficient_statistics(self, theta: Tensor) -> tuple[Tensor, ...]:
        """``T(θ)``, a tensor for each natural parameter and of its shape."""
        raise NotImplementedError

    def log_base_measure(self, theta: Tensor) -> Tensor:
        """``log h(θ)``, of the shape of the batch."""
        return torch.zeros(())

    def push_forward(self, q: Distribution, rep: Representation, g: Tensor | int) -> Distribution:
        """The law of ``ρ(g) θ``."""
        moved = zip(self.actions(rep, "standard"), self.coordinates(q, "standard"), strict=True)
        return self.from_coordinates("standard", tuple(action.act(g, c) for action, c in moved))

    def orbit_mean(self, q: Distribution, rep: Representation, kind: str) -> Distribution:
        """The member whose coordinates of the given kind are the mean over the orbit of ``q``."""
        moved = zip(self.actions(rep, kind), self.coordinates(q, kind), strict=True)
        return self.from_coordinates(kind, tuple(action.mean(c) for action, c in moved))


def register(distribution: type, family: Family) -> None:
    """Make ``family`` the one of the given class of distributions."""
    _FAMILIES[distribution] = family


def unwrap(q: Distribution) -> tuple[Family, Distribution, int]:
    """The family of ``q``, its core distribution, and how many batch axes ``to_event`` had reinterpreted.

    :raises ClosednessError: if the family is not known.
    """
    core, event_dims = q, 0
    while isinstance(core, torch.distributions.Independent):
        event_dims += core.reinterpreted_batch_ndims
        core = core.base_dist
    for kind in type(core).__mro__:
        if kind in _FAMILIES:
            return _FAMILIES[kind], core, event_dims
    known = ", ".join(sorted(c.__name__ for c in _FAMILIES))
    raise ClosednessError(f"Expected one of the families {known} (or to_event of one); got {type(core).__name__}.")


def rewrap(q: Distribution, event_dims: int) -> Distribution:
    """``q`` with its last ``event_dims`` batch axes made event axes again."""
    return q.to_event(event_dims) if event_dims else q


def check_closed(family: Family, q: Distribution, rep: Representation) -> None:
    """Raise unless the action keeps ``q`` in its family and fits its shape."""
    rep._need_exact("push-forwards and averages")
    shape = q.batch_shape + q.event_shape
    k = len(rep.event_shape)
    if shape[len(shape) - k :] != rep.event_shape or len(shape) < k:
        raise SymmetryError(
            f"Expected a distribution on the shape {tuple(rep.event_shape)} of {rep}; got shape {tuple(shape)}."
        )
    if not family.is_closed(rep):
        raise ClosednessError(f"Expected an action that keeps a {family.name}; {rep} does not. {family.advice}")
