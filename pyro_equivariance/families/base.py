"""What an exponential family offers: three coordinate systems, and how an action moves each."""

from abc import ABC, abstractmethod
from contextlib import suppress

import pyro.distributions as dist
import torch
from pyro.distributions import Distribution
from pyro.distributions.transforms import biject_to
from torch import Tensor

from ..errors import ClosednessError, SymmetryError
from ..groups import Group
from ..representations import Representation

COORDINATES = ("natural", "mean", "standard")
COMMUTES = 1e-4
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
      natural parameters ``is_exponential = False`` and ``no_natural``, the way out, instead;
    - ``needs_double = True`` where its mean parameters lose too much in float32 to be solved for the others;
    - :meth:`moments`, unless mean and variance tell how far moved copies lie apart;
    - register it with :func:`register`.
    """

    name: str
    advice: str
    is_exponential = True
    no_natural = ""
    needs_double = False

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

    def statistics_of(self, q: Distribution, theta: Tensor) -> tuple[Tensor, ...]:
        """``T(θ)``, where its shape is not told by ``θ``."""
        return self.sufficient_statistics(theta)

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

    def weighted_mean(self, q: Distribution, rep: Representation, kind: str, measure: Tensor) -> Distribution:
        """The member whose coordinates are a weighted mean over the orbit, with weights ``(len(group),)``."""
        moved = self.coordinates(self.push_forward(q, rep, all_elements(q, rep)), kind)
        return self.from_coordinates(kind, tuple(torch.tensordot(measure.to(c), c, 1) for c in moved))

    def kl(self, q: Distribution, p: Distribution) -> Tensor:
        """``KL(q ‖ p)`` summed over the batch, for ``p`` of this family: ``⟨η_q − η_p, m_q⟩ − A(η_q) + A(η_p)``."""
        if not self.is_exponential:
            raise ClosednessError(
                f"Expected distributions whose divergence has a closed form; that of a {self.name} has none. Estimate "
                f"it from draws: (q.log_prob(x) - p.log_prob(x)).mean() over x ~ q."
            )
        first, second, means = *(self.coordinates(d, "natural") for d in (q, p)), self.coordinates(q, "mean")
        pairing = sum(((a - b) * m).sum() for a, b, m in zip(first, second, means, strict=True))
        return pairing + (self.log_normalizer(second) - self.log_normalizer(first)).sum()

    def moments(self, q: Distribution, rep: Representation) -> tuple[Tensor, Tensor]:
        """Mean and variance of what the action moves linearly, by which the spread of an orbit is told."""
        return q.mean, q.variance

    def acted_shape(self, q: Distribution, rep: Representation) -> torch.Size:
        """The shape, batch and event together, on whose last axes the action is."""
        return q.batch_shape + q.event_shape

    def need_standard(self, kind: str) -> None:
        """Raise for other coordinates than ``standard``, of a family that has no others."""
        if kind != "standard":
            raise ClosednessError(
                f"Expected a family with natural and mean parameters; a {self.name} has none. {self.no_natural}"
            )


class TransformedFamily(Family):
    """The law of ``t(u)`` for ``u`` of another family, with the coordinates of that one.

    ``T(θ) = T(t⁻¹(θ))`` and ``log h(θ) = log h(u) − log |t'(u)|``. The transforms act entry by entry. An action passes
    through them if it permutes entries that they treat alike, or is said to act on unconstrained values and ``t`` is
    what Pyro takes those to the support with.

    :param TorchDistribution q: the transformed distribution whose family this is.
    """

    def __init__(self, q):
        self.base, self._core, self.event_dims = unwrap(q.base_dist)
        self.transforms, self._shape = q.transforms, q.batch_shape + q.event_shape
        self._event_axes = len(q.event_shape)
        self._base_shape = q.base_dist.batch_shape + q.base_dist.event_shape
        names = " and ".join(type(entrywise(t)).__name__ for t in self.transforms)
        self.name, self.is_exponential = f"{self.base.name} under {names}", self.base.is_exponential
        self.no_natural, self.needs_double = self.base.no_natural, self.base.needs_double
        self.advice = (
            "It takes a family under transforms entry by entry, all alike, and permutations, or an action on "
            f"unconstrained values: rep.on_unconstrained(). {self.base.advice}"
        )

    @property
    def _is_one_to_one(self) -> bool:
        return all(transform.bijective for transform in self.transforms)

    def coordinates(self, q, kind: str) -> tuple[Tensor, ...]:
        return self.base.coordinates(unwrap(q.base_dist)[1], kind)

    def from_coordinates(self, kind: str, coordinates: tuple[Tensor, ...]) -> Distribution:
        return self._transformed(self.base.from_coordinates(kind, coordinates))

    def actions(self, rep: Representation, kind: str) -> tuple[Representation, ...]:
        return self.base.actions(rep, kind)

    def is_closed(self, rep: Representation) -> bool:
        return self._is_one_to_one and self._lets_through(rep) and self.base.is_closed(rep)

    def log_normalizer(self, natural: tuple[Tensor, ...]) -> Tensor:
        return sum_last(self.base.log_normalizer(natural), self.event_dims)

    def sufficient_statistics(self, theta: Tensor) -> tuple[Tensor, ...]:
        return self.base.sufficient_statistics(self._chain.inv(theta))

    def statistics_of(self, q, theta: Tensor) -> tuple[Tensor, ...]:
        return self.base.statistics_of(unwrap(q.base_dist)[1], self._chain.inv(theta))

    def log_base_measure(self, theta: Tensor) -> Tensor:
        chain = self._chain
        u = chain.inv(theta)
        base, volume = self.base.log_base_measure(u), chain.log_abs_det_jacobian(u, theta)
        base = sum_last(base, self.event_dims) if base.ndim else base
        return base - sum_last(volume, self._event_axes - chain.codomain.event_dim)

    def push_forward(self, q, rep: Representation, g: Tensor | int) -> Distribution:
        return self._transformed(self.base.push_forward(unwrap(q.base_dist)[1], rep, g))

    def orbit_mean(self, q, rep: Representation, kind: str) -> Distribution:
        return self._transformed(self.base.orbit_mean(unwrap(q.base_dist)[1], rep, kind))

    def kl(self, q, p) -> Tensor:
        if not self._is_one_to_one:
            raise ClosednessError(
                f"Expected transforms that are one to one, for a divergence; got {self.name}. Estimate it from draws."
            )
        if list(map(entrywise, q.transforms)) != list(map(entrywise, p.transforms)):
            raise ClosednessError(f"Expected two distributions under the same transforms; got {q} and {p}.")
        return divergence(unwrap(q.base_dist)[:2], unwrap(p.base_dist)[:2])

    def moments(self, q, rep: Representation) -> tuple[Tensor, Tensor]:
        return self.base.moments(unwrap(q.base_dist)[1], rep)

    def acted_shape(self, q, rep: Representation) -> torch.Size:
        base = q.base_dist.batch_shape + q.base_dist.event_shape
        return base if rep.space == "unconstrained" else q.batch_shape + q.event_shape

    def _transformed(self, core: Distribution) -> Distribution:
        return dist.TransformedDistribution(rewrap(core, self.event_dims), self.transforms)

    @property
    def _chain(self):
        return torch.distributions.ComposeTransform([entrywise(t) for t in self.transforms])

    def _lets_through(self, rep: Representation) -> bool:
        """Whether the action on values is the same action on what they are transformed from."""
        chain = self._chain
        if all(map(_is_identity, chain.parts)):
            return True
        if not chain.bijective:
            return False
        if rep.space == "unconstrained" and self._is_unconstraining(chain):
            return True
        return rep.is_permutation and chain.domain.event_dim == 0 and self._commutes(chain, rep)

    def _is_unconstraining(self, chain) -> bool:
        """Whether it is the transform from unconstrained values that Pyro has for the support."""
        u = self._probe(self._base_shape)
        try:
            expected = biject_to(chain.codomain)(u)
        except NotImplementedError:
            return False
        found = chain(u)
        return found.shape == expected.shape and torch.allclose(found, expected, rtol=COMMUTES, atol=COMMUTES)

    def _commutes(self, chain, rep: Representation) -> bool:
        u = biject_to(chain.domain)(self._probe(self._shape))
        value = chain(u)
        moved = [(chain(rep.act(g, u)), rep.act(g, value)) for g in probes(rep.group)]
        return all(torch.allclose(a, b, rtol=COMMUTES, atol=COMMUTES) for a, b in moved)

    def _probe(self, shape: torch.Size) -> Tensor:
        like = self.base.coordinates(self._core, "standard")[0]
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(like)


class Carried(Representation):
    """The permutation behind an action that permutes entries and rescales them by positive numbers.

    ``x ↦ ρ(g)(d x) / d`` with the scales ``d = exp(mean_g log ρ(g) 1)``, which the action leaves as they are: measured
    in units of ``d``, entries are only permuted.

    :param Representation base: the action, for which :func:`is_positive` holds.
    """

    is_permutation = is_monomial = is_orthogonal = True

    def __init__(self, base: Representation):
        self.group, self.base, self.event_shape = base.group, base, base.event_shape
        self.units = base.orbit(torch.ones(base.event_shape, dtype=torch.float64)).log().mean(0).exp()

    def _act(self, g, x, dim=-1):
        units = self.units.to(x) if x.is_floating_point() else self.units.to(x.device)
        units = units.reshape(*self.event_shape, *[1] * (-1 - dim))
        return self.base._act(g, x * units, dim) / units

    def _modulus(self, power):
        return self

    def _key(self):
        return (self.base,)

    def __repr__(self):
        return f"permutation behind {self.base}"


def is_positive(rep: Representation) -> bool:
    """Whether the action permutes entries and rescales them by positive numbers."""
    if rep.is_permutation or not (rep.is_linear and rep.is_monomial):
        return rep.is_permutation
    ones = torch.ones(rep.event_shape)
    return all(bool((rep.act(g, ones) > 0).all()) for g in probes(rep.group))


def carried(rep: Representation) -> Representation:
    """The permutation behind an action for which :func:`is_positive` holds."""
    return rep if rep.is_permutation else Carried(rep)


def is_signed_permutation(rep: Representation) -> bool:
    """Whether the action permutes entries and changes their signs."""
    return rep.is_linear and rep.is_monomial and rep.is_orthogonal


def moves_whole_rows(rep: Representation) -> bool:
    """Whether the action permutes entries so that those of one row, along the last axis, stay together."""
    if not rep.is_permutation or not rep.event_shape:
        return rep.is_permutation
    *outer, last = rep.event_shape
    rows = torch.arange(torch.Size(outer).numel(), dtype=torch.float64).reshape(*outer, 1).expand(*outer, last)
    moved = [rep.act(g, rows).round() for g in probes(rep.group)]
    return all(bool((m == m[..., :1]).all()) for m in moved)


def probes(group: Group):
    """Elements on which a law is tried: generators, or of a continuous group a few at random."""
    return group.generators if group.is_finite else group.sample((4,))


def all_elements(q: Distribution, rep: Representation) -> Tensor:
    """All elements along a new first axis of the batch of ``q``.

    :raises SymmetryError: for a group whose elements are not numbered.
    """
    if not rep.group.is_indexed:
        raise SymmetryError(f"Expected a group whose elements are numbered, for a measure; got {rep.group}.")
    axes = len(q.batch_shape + q.event_shape) - len(rep.event_shape)
    return rep.group.elements.reshape(-1, *[1] * axes)


def register(distribution: type, family: Family) -> None:
    """Make ``family`` the one of the given class of distributions."""
    _FAMILIES[distribution] = family


def family_of_class(kind: type) -> Family | None:
    """The registered family of a class of distributions, or of the nearest class that it derives from."""
    return next((_FAMILIES[k] for k in kind.__mro__ if k in _FAMILIES), None)


def unwrap(q: Distribution) -> tuple[Family, Distribution, int]:
    """The family of ``q``, its core distribution, and how many batch axes ``to_event`` had reinterpreted.

    :raises ClosednessError: if the family is not known.
    """
    core, event_dims = q, 0
    while isinstance(core, torch.distributions.Independent):
        event_dims += core.reinterpreted_batch_ndims
        core = core.base_dist
    family = family_of_class(type(core))
    if family is None and isinstance(core, torch.distributions.TransformedDistribution):
        with suppress(ClosednessError):
            family = TransformedFamily(core)
    if family is None:
        raise ClosednessError(unknown(type(core)))
    return family, core, event_dims


def unknown(kind: type) -> str:
    """What to say of a class of distributions without a family."""
    known = ", ".join(sorted(c.__name__ for c in _FAMILIES))
    return f"Expected one of the families {known} (or to_event of one, or one under transforms); got {kind.__name__}."


def rewrap(q: Distribution, event_dims: int) -> Distribution:
    """``q`` with its last ``event_dims`` batch axes made event axes again."""
    return q.to_event(event_dims) if event_dims else q


def sum_last(x: Tensor, axes: int) -> Tensor:
    """The sum over the last so many axes."""
    return x.sum(tuple(range(-axes, 0))) if axes else x


def entrywise(transform):
    """The transform of each entry, where several were made one event."""
    while isinstance(transform, torch.distributions.transforms.IndependentTransform):
        transform = transform.base_transform
    return transform


def _is_identity(transform) -> bool:
    transform = entrywise(transform)
    return isinstance(transform, torch.distributions.ComposeTransform) and all(map(_is_identity, transform.parts))


def divergence(q: tuple[Family, Distribution], p: tuple[Family, Distribution]) -> Tensor:
    """``KL(q ‖ p)`` of two core distributions with their families, summed: torch's formula, or the families'.

    :raises ClosednessError: if there is no closed form.
    """
    (family, first), (other, second) = q, p
    if isinstance(family, TransformedFamily) and isinstance(other, TransformedFamily):
        return family.kl(first, second)
    try:
        return torch.distributions.kl_divergence(first, second).sum()
    except NotImplementedError:
        if family is other:
            return family.kl(first, second)
    raise ClosednessError(
        f"Expected two distributions whose divergence has a closed form; got a {family.name} and a {other.name}."
    )


def check_closed(family: Family, q: Distribution, rep: Representation) -> None:
    """Raise unless the action keeps ``q``, without its ``to_event``, in its family and fits its shape."""
    rep._need_exact("push-forwards and averages")
    shape = family.acted_shape(q, rep)
    k = len(rep.event_shape)
    if shape[len(shape) - k :] != rep.event_shape or len(shape) < k:
        raise SymmetryError(
            f"Expected a distribution on the shape {tuple(rep.event_shape)} of {rep}; got shape {tuple(shape)}."
        )
    if not family.is_closed(rep):
        raise ClosednessError(f"Expected an action that keeps a {family.name}; {rep} does not. {family.advice}")
