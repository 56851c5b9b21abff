"""Averages of a distribution over its orbit: pure functions of distributions."""

import warnings
from collections.abc import Mapping

import pyro.distributions as dist
import torch
from pyro.distributions import Distribution

from .errors import SymmetryError, WideOrbitWarning, check_option
from .families import orbit_mean
from .representations import Representation
from .spaces import check_transforms
from .symmetry import Symmetry

WIDE = 3.0
RULES = {"geometric": "natural", "arithmetic": "mean", "projection": "standard"}


def average(q, rep: Representation | Symmetry, rule: str = "geometric"):
    """The invariant member of the family of ``q`` nearest to its orbit ``{ρ(g)_# q}``.

    - ``geometric``: mean natural parameters, ``argmin_p mean_g KL(p ‖ ρ(g)_# q)``; for a Normal
      ``1/σ̄² = mean 1/σ_g²``, ``μ̄ = σ̄² mean(μ_g/σ_g²)``;
    - ``arithmetic``: mean of the mean parameters, ``argmin_p mean_g KL(ρ(g)_# q ‖ p)``; for a Normal
      ``μ̄ = mean μ_g``, ``σ̄² = mean(σ_g² + μ_g²) − μ̄²``;
    - ``projection``: mean of the constructor's parameters, for a Normal of ``(μ, σ)``.

    All three are invariant, idempotent, the identity on an invariant ``q``, and differentiable;
    ``σ_geometric ≤ σ_projection ≤ σ_arithmetic``. Where the means of the moved copies lie further apart than their
    scales reach, all three are poor stand-ins for the copies; this warns (see :func:`orbit_spread`), and
    :class:`~pyro_equivariance.OrbitMixture` is what to use.

    :param q: a distribution of shape ``(..., *rep.event_shape)``, or a dict of them with a :class:`Symmetry`.
    :param rep: the representation that moves ``q``, or the symmetry of the dict's sites.
    :param str rule: ``"geometric"``, ``"arithmetic"`` or ``"projection"``.
    :returns: a distribution of the same family and shape (or a dict of them).
    :raises ClosednessError: if the action does not keep the family.

    Source: the rules of Dong, Flinth, Gerken (2026), arXiv:2606.26273.

    >>> import torch, pyro.distributions as dist, pyro_equivariance as pe
    >>> swap = pe.permutation(pe.SymmetricGroup(2))
    >>> q = dist.Normal(torch.tensor([0.0, 4.0]), torch.tensor([1.0, 1.0])).to_event(1)
    >>> pe.average(q, swap, rule="arithmetic").base_dist.loc.tolist()
    [2.0, 2.0]
    """
    check_option("rule", rule, RULES)
    if isinstance(q, Mapping):
        if not isinstance(rep, Symmetry):
            raise SymmetryError(f"Expected a pe.Symmetry for a dict of distributions; got {rep!r}.")
        averaged = {site: average_site(site, part, rep, rule) for site, part in q.items()}
        warn_if_wide({site: (part, rep[site]) for site, part in q.items()})
        return averaged
    if not isinstance(rep, Representation):
        raise SymmetryError(f"Expected a representation for one distribution; got {rep!r}. Symmetries take a dict.")
    averaged = _average(q, rep, rule)
    warn_if_wide({"": (q, rep)})
    return averaged


@torch.no_grad()
def orbit_spread(q: Distribution, rep: Representation) -> float:
    """How far the means of the moved copies lie apart, in units of their scales.

    The root mean square, over the entries that move, of ``Var_g[ρ(g) μ]_i / mean_g Var_{ρ(g)_# q}[θ_i]``; 0 for an
    invariant mean. From about 3 on the copies hardly overlap.

    >>> import torch, pyro.distributions as dist, pyro_equivariance as pe
    >>> orbit_spread(dist.Normal(torch.tensor([2.0]), 0.5).to_event(1), pe.vector(pe.SignGroup()))
    4.0
    """
    q = _unconstrained(q)
    if rep.is_monomial:
        between = rep.modulus(2).mean(q.mean.square()) - rep.mean(q.mean).square()
        variance = rep.modulus(2).mean(q.variance)
    else:
        between = rep.orbit(q.mean).var(0, correction=0)
        variance = q.variance.mean().expand_as(q.variance)
    if not bool((variance > 0).all()):
        return 0.0  # points, which have no scale to compare with
    probe = torch.randn(rep.event_shape, generator=torch.Generator().manual_seed(0)).to(between)
    moving = (rep.mean(probe) - probe).abs() > 1e-5
    if not bool(moving.any()):
        return 0.0
    return float((between.clamp_min(0) / variance)[..., moving].mean().sqrt())


def warn_if_wide(sites: Mapping[str, tuple[Distribution, Representation]], stacklevel: int = 3) -> bool:
    """Warn, with the numbers, if the copies of a site's distribution lie far apart; of several sites the widest.

    :returns: whether it warned.
    """
    spreads = {site: orbit_spread(q, rep) for site, (q, rep) in sites.items()}
    worst = max(spreads, key=spreads.get, default=None)
    if worst is None or spreads[worst] <= WIDE:
        return False
    where = f" of site {worst!r}" if worst else ""
    warnings.warn(
        f"The means of the moved copies{where} lie {spreads[worst]:.1f} standard deviations apart (rms over its "
        f"entries; above {WIDE:g} they hardly overlap), so their average may lie where none of them has mass. Use "
        f"pe.OrbitMixture, or pe.AutoOrbitMixture(model, symmetry), which keeps all of them.",
        WideOrbitWarning,
        stacklevel=stacklevel,
    )
    return True


def _unconstrained(q: Distribution) -> Distribution:
    """The Normal behind a transformed distribution."""
    while isinstance(q, (torch.distributions.Independent, torch.distributions.TransformedDistribution)):
        q = q.base_dist
    return q


def average_site(site: str, q: Distribution, symmetry: Symmetry, rule: str) -> Distribution:
    """The average of one site of a model; its representation must act on the whole event."""
    rep = symmetry[site]
    if len(rep.event_shape) < len(q.event_shape):
        raise SymmetryError(
            f"Expected the representation of site {site!r} to act on its whole event {tuple(q.event_shape)}; got "
            f"{rep} on {tuple(rep.event_shape)}. Multiply it by pe.trivial(group, shape) for axes that do not move."
        )
    event_dims, core = 0, q
    while isinstance(core, torch.distributions.Independent):
        event_dims, core = event_dims + core.reinterpreted_batch_ndims, core.base_dist
    if event_dims and isinstance(core, torch.distributions.TransformedDistribution):
        return average_transformed(site, core, rep, rule).to_event(event_dims)
    if isinstance(q, torch.distributions.TransformedDistribution):
        return average_transformed(site, q, rep, rule)
    return _average(q, rep, rule)


def average_transformed(site: str, q, rep: Representation, rule: str) -> Distribution:
    """The image of the average, where the action passes through the transforms."""
    check_transforms(site, q.transforms, rep, q.batch_shape + q.event_shape)
    return dist.TransformedDistribution(_average(q.base_dist, rep, rule), q.transforms)


def _average(q: Distribution, rep: Representation, rule: str) -> Distribution:
    return orbit_mean(q, rep, RULES[rule])
