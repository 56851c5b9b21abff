"""Averages of a distribution over its orbit: pure functions of distributions."""

import warnings
from collections.abc import Mapping

import torch
from pyro.distributions import Distribution
from torch import Tensor

from .errors import SymmetryError, WideOrbitWarning, check_option
from .families import orbit_mean, spread_moments
from .groups import Group
from .representations import Representation
from .symmetry import Symmetry

WIDE = 3.0
SUMS_TO_ONE = 1e-5
RULES = {"geometric": "natural", "arithmetic": "mean", "projection": "standard"}


def average(q, rep: Representation | Symmetry, rule: str = "geometric", measure=None):
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
    :param measure: probabilities of the elements, shape ``(len(group),)``, instead of equal ones: the weighted mean of
        the coordinates over the orbit. The result is then a *smoothing* of ``q``, not invariant, and none of the laws
        above holds of it. So it is over a list of elements of a continuous law, ``symmetry.listed(64)``.
    :returns: a distribution of the same family and shape (or a dict of them).
    :raises ClosednessError: if the action does not keep the family, or the family has no coordinates of that kind.
    :raises SymmetryError: for a measure of another length, negative, or that does not sum to one.

    Source: the rules of Dong, Flinth, Gerken (2026), arXiv:2606.26273.

    >>> import torch, pyro.distributions as dist, pyro_equivariance as pe
    >>> swap = pe.permutation(pe.SymmetricGroup(2))
    >>> q = dist.Normal(torch.tensor([0.0, 4.0]), torch.tensor([1.0, 1.0])).to_event(1)
    >>> pe.average(q, swap, rule="arithmetic").base_dist.loc.tolist()
    [2.0, 2.0]
    >>> pe.average(q, swap, measure=[0.75, 0.25]).base_dist.loc.tolist()  # smoothed: swapping would change it
    [1.0, 3.0]
    """
    check_option("rule", rule, RULES)
    if isinstance(q, Mapping):
        if not isinstance(rep, Symmetry):
            raise SymmetryError(f"Expected a pe.Symmetry for a dict of distributions; got {rep!r}.")
        measure = _probabilities(measure, rep.group)
        averaged = {site: average_site(site, part, rep, rule, measure) for site, part in q.items()}
        warn_if_wide({site: (part, rep[site]) for site, part in q.items()})
        return averaged
    if not isinstance(rep, Representation):
        raise SymmetryError(f"Expected a representation for one distribution; got {rep!r}. Symmetries take a dict.")
    averaged = orbit_mean(q, rep, RULES[rule], _probabilities(measure, rep.group))
    warn_if_wide({"": (q, rep)})
    return averaged


def _probabilities(measure, group: Group) -> Tensor | None:
    """A measure as float64 weights that sum to one exactly."""
    if measure is None:
        return None
    if not group.is_indexed:
        raise SymmetryError(f"Expected a group whose elements are numbered, for a measure; got {group}.")
    weights = torch.as_tensor(measure).to(torch.float64)
    total = float(weights.sum())
    if weights.shape != (len(group),):
        raise SymmetryError(f"Expected a measure of {len(group)} probabilities, one for each element of {group}; "
                            f"got shape {tuple(weights.shape)}.")  # fmt: skip
    if not bool((weights >= 0).all()) or not abs(total - 1) <= SUMS_TO_ONE:
        raise SymmetryError(f"Expected a measure of probabilities, not negative and of sum 1; got a least one of "
                            f"{float(weights.min()):g} and a sum of {total:g}. Divide it by its sum.")  # fmt: skip
    return weights / weights.sum()


@torch.no_grad()
def orbit_spread(q: Distribution, rep: Representation) -> float:
    """How far the means of the moved copies lie apart, in units of their scales.

    The root mean square, over the entries that move, of ``Var_g[ρ(g) μ]_i / mean_g Var_{ρ(g)_# q}[θ_i]``; 0 for an
    invariant mean. From about 3 on the copies hardly overlap.

    >>> import torch, pyro.distributions as dist, pyro_equivariance as pe
    >>> orbit_spread(dist.Normal(torch.tensor([2.0]), 0.5).to_event(1), pe.vector(pe.SignGroup()))
    4.0
    """
    found = spread_moments(q, rep)
    if found is None:
        return 0.0  # a family without a mean and a variance that the action moves linearly
    mean, second = found
    if rep.is_monomial:
        between = rep.modulus(2).mean(mean.square()) - rep.mean(mean).square()
        variance = rep.modulus(2).mean(second)
    else:
        between = rep.orbit(mean).var(0, correction=0)
        variance = second.mean().expand_as(second)
    if not bool((variance > 0).all() and variance.isfinite().all() and between.isfinite().all()):
        return 0.0  # points, which have no scale to compare with, or tails too heavy for one
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


def average_site(
    site: str, q: Distribution, symmetry: Symmetry, rule: str, measure: Tensor | None = None
) -> Distribution:
    """The average of one site of a model; its representation must act on the whole event."""
    rep = symmetry[site]
    if len(rep.event_shape) < len(q.event_shape):
        raise SymmetryError(
            f"Expected the representation of site {site!r} to act on its whole event {tuple(q.event_shape)}; got "
            f"{rep} on {tuple(rep.event_shape)}. Multiply it by pe.trivial(group, shape) for axes that do not move."
        )
    return orbit_mean(q, rep, RULES[rule], measure)
