"""Distributions made of the copies of another one over an orbit."""

import math
from collections.abc import Mapping
from functools import reduce
from operator import add

import pyro.distributions as dist
import torch
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions.kl import register_kl

from .errors import OptionError, SymmetryError
from .groups import Group
from .measures import Measure
from .representations import Representation
from .symmetry import Symmetry

MAX_EXACT = 256
SAMPLES = 32


class OrbitMixture(dist.TorchDistribution):
    """The mixture of a distribution and its moved copies: ``q^G(θ) = (1/|G|) Σ_g q(ρ(g)⁻¹ θ)``, invariant and exact.

    A draw is ``ρ(g) θ`` with ``θ ~ q`` and ``g`` uniform. Its log density is a logsumexp over the group of the joint
    log densities. For an invariant likelihood and prior ``ELBO(q^G) = ELBO(q) + I(g; θ)`` with
    ``0 ≤ I = KL(q ‖ q^G) ≤ log |G|``: it is never worse than ``q``.

    A group of more than ``max_exact`` elements, or without a list of them (:class:`~pyro_equivariance.YoungSubgroup`,
    :class:`~pyro_equivariance.SpecialOrthogonal`), is too large to sum. Then ``log_prob`` of a draw, and of the last
    one only, is ``log (1/K) (q(ρ(g)⁻¹ θ) + Σ_{k=2..K} q(ρ(g_k)⁻¹ θ))`` with the ``g`` it was drawn with and ``K - 1``
    others drawn at random: on average above the truth, so that the ELBO stays a lower bound, the tighter the larger
    ``K``. With a :class:`~pyro_equivariance.measures.Measure` for the group it is the mixture over that law, and is not
    invariant; where ``ρ(g)`` stretches volumes, each copy's density is divided by ``|det ρ(g)|``.

    :param q: a distribution whose last axes are ``rep.event_shape``; with a :class:`Symmetry` one on vectors, the sites
        one after the other, or a dict of Normals by site.
    :param rep: a linear representation on the event, or a symmetry that moves all sites together.
    :param int max_exact: the largest group to be summed over.
    :param int samples: K.
    :raises SymmetryError: for an action that is not linear and exact, or of another shape.

    >>> import torch, pyro.distributions as dist, pyro_equivariance as pe
    >>> flip = pe.vector(pe.SignGroup())
    >>> q = pe.OrbitMixture(dist.Normal(torch.tensor([2.0]), 0.4).to_event(1), flip)
    >>> round(float(q.log_prob(torch.tensor([-2.0])).exp()), 4)  # half of the density of a Normal at its mean
    0.4987
    """

    arg_constraints = {}
    has_rsample = True

    def __init__(self, q, rep: Representation | Symmetry, max_exact: int = MAX_EXACT, samples: int = SAMPLES):
        if max_exact < 1 or samples < 2:
            raise OptionError(f"Expected max_exact ≥ 1 and samples ≥ 2; got {max_exact} and {samples}.")
        if isinstance(rep, Symmetry):
            rep, q = _joint(rep, q)
        if rep.group.is_indexed and not rep.group.is_uniform:
            raise SymmetryError(f"Expected a group or a measure, for an orbit mixture; got {rep.group}. Use its law.")
        rep._need_linear("an orbit mixture")
        rep._need_exact("an orbit mixture")
        shape = q.batch_shape + q.event_shape
        axes = len(rep.event_shape)
        if shape[len(shape) - axes :] != rep.event_shape or len(q.event_shape) > axes:
            raise SymmetryError(
                f"Expected a distribution whose last axes are the shape {tuple(rep.event_shape)} of {rep}; got shape "
                f"{tuple(shape)}."
            )
        self.q = q.to_event(axes - len(q.event_shape)) if axes > len(q.event_shape) else q
        self.rep, self.samples = rep, samples
        self.is_exact = can_be_summed(rep.group, max_exact)
        self._drawn: tuple[Tensor, Tensor] | None = None
        super().__init__(self.q.batch_shape, self.q.event_shape, validate_args=False)

    @property
    def support(self):
        return self.q.support

    def expand(self, batch_shape, _instance=None) -> "OrbitMixture":
        limit = len(self.rep.group) if self.is_exact else 1
        return OrbitMixture(self.q.expand(batch_shape), self.rep, limit, self.samples)

    def rsample(self, sample_shape=()) -> Tensor:
        theta = self.q.rsample(torch.Size(sample_shape))
        g = self.rep.group.sample(theta.shape[: theta.ndim - len(self.event_shape)]).to(theta.device)
        self._drawn = self.rep.act(g, theta), g
        return self._drawn[0]

    def sample(self, sample_shape=()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """``log q^G(θ)`` for ``θ`` of shape ``(..., *event_shape)``; of a large group see the class."""
        if self.is_exact:  # the copies moved back are the copies, in another order
            return torch.logsumexp(self._log_q(self.rep.orbit(value)), 0) - math.log(len(self.rep.group))
        g = self._some_elements(value)
        moved_back = self.rep.act(self.rep.group.inverse(g), value)
        return torch.logsumexp(self._log_q(moved_back) - self.rep.log_det(g).to(value), 0) - math.log(len(g))

    def log_densities(self, value: Tensor) -> Tensor:
        """``log q(ρ(g)⁻¹ θ)`` for every ``g``, along a new first axis.

        :raises SymmetryError: for a group without a list of its elements.
        """
        group = self.rep.group
        return self._log_q(self.rep.orbit(value))[group.inverse(group.elements).to(value.device)]

    def drawn_element(self, value: Tensor) -> Tensor | None:
        """The element ``g`` that a value was drawn with, of the last draw; ``None`` for any other value."""
        return self._drawn[1] if self._drawn is not None and self._drawn[0] is value else None

    @property
    def mean(self) -> Tensor:
        """``ρ̄ E_q[θ]``, the orbit mean of the mean."""
        if isinstance(self.rep.group, Measure):
            raise NotImplementedError(f"the mean of a mixture over {self.rep.group}; take that of draws")
        return self.rep.mean(self.q.mean)

    @property
    def variance(self) -> Tensor:
        """Of each entry: the orbit mean of the second moments, less the squared mean."""
        if not self.rep.is_monomial:
            raise NotImplementedError(f"the variance of an orbit mixture under {self.rep}, which mixes entries")
        second = self.rep.modulus(2).mean(self.q.variance + self.q.mean**2)
        return second - self.mean**2

    def _some_elements(self, value: Tensor) -> Tensor:
        if self._drawn is None or self._drawn[0] is not value:
            raise self._only_the_last_draw()
        g = self._drawn[1]
        batch = g.shape[: g.ndim - self.rep.group.element_dims]
        return torch.cat([g[None], self.rep.group.sample((self.samples - 1, *batch)).to(value.device)])

    def _only_the_last_draw(self) -> SymmetryError:
        group = self.rep.group
        count = f"{len(group)} elements" if group.is_indexed else "no list of its elements"
        way_out = "a larger max_exact" if group.is_indexed else "a finite group with a list, which has a density,"
        return SymmetryError(
            f"Expected the last draw of this mixture: {group} has {count}, and the bound needs the one that a value "
            f"was drawn with. Use {way_out} for any other value."
        )

    def _log_q(self, copies: Tensor) -> Tensor:
        """``log q`` of moved copies; for Normals what does not depend on them is computed once."""
        core = self.q.base_dist if isinstance(self.q, torch.distributions.Independent) else None
        if type(self.q) is dist.LowRankMultivariateNormal and not self.q.batch_shape:
            return _low_rank_log_prob(self.q, copies)
        if not isinstance(core, torch.distributions.Normal):
            return self.q.log_prob(copies)
        axes = tuple(range(-len(self.event_shape), 0))
        squares = ((copies - core.loc) / core.scale).square().sum(axes)
        return -0.5 * squares - core.scale.log().sum(axes) - 0.5 * self.event_shape.numel() * math.log(2 * math.pi)


def can_be_summed(group: Group, max_exact: int) -> bool:
    """Whether a group has a list of at most ``max_exact`` elements."""
    return group.is_indexed and len(group) <= max_exact


def _low_rank_log_prob(q: dist.LowRankMultivariateNormal, values: Tensor) -> Tensor:
    """``log q`` of many vectors by one product with the factor: Woodbury's identity for ``W Wᵀ + D``."""
    difference = values - q.loc
    scaled = difference / q.cov_diag
    capacitance = q._capacitance_tril
    reduced = torch.linalg.solve_triangular(capacitance, (scaled @ q.cov_factor).mT, upper=False)
    squares = (difference * scaled).sum(-1) - reduced.square().sum(-2)
    log_det = 2 * capacitance.diagonal(dim1=-2, dim2=-1).log().sum(-1) + q.cov_diag.log().sum(-1)
    return -0.5 * (squares + log_det + q.event_shape[0] * math.log(2 * math.pi))


def joint_representation(symmetry: Symmetry, sites=None) -> Representation:
    """The action on all sites as one vector, in the order given: the direct sum of the sites' actions, flattened."""
    names = list(symmetry.sites) if sites is None else sites
    if not names:
        raise SymmetryError(f"Expected a symmetry that moves sites, for a joint action; {symmetry} has none.")
    flat = [symmetry[name].reshape((symmetry[name].event_shape.numel(),)) for name in names]
    return reduce(add, flat)


def _joint(symmetry: Symmetry, q) -> tuple[Representation, dist.Distribution]:
    if not isinstance(q, Mapping):
        return joint_representation(symmetry), q
    parts = [_normal(name, q[name]) for name in q]
    loc, scale = (torch.cat([t.reshape(-1) for t in column]) for column in zip(*parts, strict=True))
    return joint_representation(symmetry, list(q)), dist.Normal(loc, scale).to_event(1)


def _normal(name: str, q: dist.Distribution) -> tuple[Tensor, Tensor]:
    while isinstance(q, torch.distributions.Independent):
        q = q.base_dist
    if not isinstance(q, torch.distributions.Normal):
        raise SymmetryError(
            f"Expected a Normal for site {name!r} of an orbit mixture by sites; got {type(q).__name__}. Give one "
            f"distribution on the vector of all sites."
        )
    return q.loc, q.scale


class OrbitPredictive(dist.TorchDistribution):
    """Observations of moved copies, each weighed by what all copies of its datum say together.

    For ``order`` copies of ``B`` data along the last batch axis, copy ``g`` of datum ``b`` at ``g · B + b``, every
    copy has the log density ``log (1/|G|) Σ_g p(ρ_Y(g) y_b | ρ_X(g) x_b, θ)``, so that their mean over ``g`` is the
    invariant log likelihood. A draw is one of ``base``.

    :param Distribution base: the law of the moved observations, batch shape ``(..., order · B)``.
    :param int order: the number of copies.

    >>> import torch, pyro.distributions as dist
    >>> q = OrbitPredictive(dist.Bernoulli(torch.tensor([0.2, 0.4])), order=2)  # one datum, two copies
    >>> [round(p, 4) for p in q.log_prob(torch.ones(2)).exp().tolist()]
    [0.3, 0.3]
    """

    arg_constraints = {}

    def __init__(self, base: dist.Distribution, order: int):
        self.base, self.order = base, order
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def support(self):
        return self.base.support

    @property
    def has_rsample(self) -> bool:
        return self.base.has_rsample

    def rsample(self, sample_shape=()) -> Tensor:
        return self.base.rsample(torch.Size(sample_shape))

    def sample(self, sample_shape=()) -> Tensor:
        return self.base.sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        copies = self.base.log_prob(value).unflatten(-1, (self.order, -1))
        together = copies.logsumexp(-2, keepdim=True) - math.log(self.order)
        return together.expand_as(copies).flatten(-2)

    def expand(self, batch_shape, _instance=None) -> "OrbitPredictive":
        return OrbitPredictive(self.base.expand(batch_shape), self.order)


class Arranged(dist.TorchDistribution):
    """A distribution on vectors laid out as a tensor with batch and event axes, all of whose entries may depend.

    The log density of the whole is spread evenly over the batch axes, so that its sum over them is right; a guide can
    then draw a site inside the plates of the model though the site's entries are not independent.

    :param base: a distribution on vectors, batch shape ``lead``.
    :param batch_shape: of the tensor, after ``lead``.
    :param event_shape: of the tensor.

    >>> import torch, pyro.distributions as dist
    >>> q = Arranged(dist.MultivariateNormal(torch.zeros(6), torch.eye(6)), (3,), (2,))
    >>> q.log_prob(q.sample()).shape, q.event_shape
    (torch.Size([3]), torch.Size([2]))
    """

    arg_constraints = {}
    has_rsample = True

    def __init__(self, base: dist.Distribution, batch_shape, event_shape):
        self.base, self.inner = base, torch.Size(batch_shape)
        super().__init__(base.batch_shape + self.inner, torch.Size(event_shape), validate_args=False)

    @property
    def support(self):
        return dist.constraints.independent(dist.constraints.real, len(self.event_shape))

    def expand(self, batch_shape, _instance=None) -> "Arranged":
        batch_shape = torch.Size(batch_shape)
        lead = batch_shape[: len(batch_shape) - len(self.inner)]
        if batch_shape[len(lead) :] != self.inner:
            raise ValueError(f"Expected to keep the batch axes {tuple(self.inner)}; got {tuple(batch_shape)}.")
        return Arranged(self.base.expand(lead), self.inner, self.event_shape)

    def rsample(self, sample_shape=()) -> Tensor:
        return self._laid_out(self.base.rsample(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        axes = len(self.inner) + len(self.event_shape)
        return self._spread(self.base.log_prob(value.reshape(value.shape[: value.ndim - axes] + (-1,))))

    def entropy(self) -> Tensor:
        return self._spread(self.base.entropy())

    @property
    def mean(self) -> Tensor:
        return self._laid_out(self.base.mean)

    @property
    def variance(self) -> Tensor:
        return self._laid_out(self.base.variance)

    def _laid_out(self, flat: Tensor) -> Tensor:
        return flat.reshape(flat.shape[:-1] + self.inner + self.event_shape)

    def _spread(self, total: Tensor) -> Tensor:
        shape = total.shape + (1,) * len(self.inner)
        return total.reshape(shape).expand(total.shape + self.inner) / self.inner.numel()


@register_kl(Arranged, torch.distributions.Normal)
@register_kl(Arranged, torch.distributions.Independent)
def _kl_to_independent_normals(q: Arranged, p) -> Tensor:
    """``-H(q) + E_q[-log p]``, in closed form."""
    core = p.base_dist if isinstance(p, torch.distributions.Independent) else p
    if not isinstance(core, torch.distributions.Normal):
        raise NotImplementedError
    variance = core.scale.square()
    cross = 0.5 * (math.log(2 * math.pi) + variance.log() + (q.variance + (q.mean - core.loc).square()) / variance)
    return sum_rightmost(cross, len(q.event_shape)) - q.entropy()


class Placed(dist.Delta):
    """A value that another site's draw decides, with the log density that this adds.

    Unlike a plain Delta it keeps that log density under :class:`~pyro.infer.TraceMeanField_ELBO`.
    """


@register_kl(Placed, dist.Distribution)
@register_kl(Placed, torch.distributions.Distribution)
def _kl_of_placed(q: Placed, p) -> Tensor:
    return q.log_density - p.log_prob(q.v)
