"""Averages of a distribution over its orbit: pure functions of distributions."""

from collections.abc import Mapping

from pyro.distributions import Distribution

from .errors import SymmetryError, check_option
from .families import orbit_mean
from .representations import Representation
from .symmetry import Symmetry

RULES = {"geometric": "natural", "arithmetic": "mean", "projection": "standard"}


def average(q, rep: Representation | Symmetry, rule: str = "geometric"):
    """The invariant member of the family of ``q`` nearest to its orbit ``{ρ(g)_# q}``.

    - ``geometric``: mean natural parameters, ``argmin_p mean_g KL(p ‖ ρ(g)_# q)``; for a Normal
      ``1/σ̄² = mean 1/σ_g²``, ``μ̄ = σ̄² mean(μ_g/σ_g²)``;
    - ``arithmetic``: mean of the mean parameters, ``argmin_p mean_g KL(ρ(g)_# q ‖ p)``; for a Normal
      ``μ̄ = mean μ_g``, ``σ̄² = mean(σ_g² + μ_g²) − μ̄²``;
    - ``projection``: mean of the constructor's parameters, for a Normal of ``(μ, σ)``.

    All three are invariant, idempotent, the identity on an invariant ``q``, and differentiable;
    ``σ_geometric ≤ σ_projection ≤ σ_arithmetic``.

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
        return {site: average_site(site, part, rep, rule) for site, part in q.items()}
    return _average(q, rep, rule)


def average_site(site: str, q: Distribution, symmetry: Symmetry, rule: str) -> Distribution:
    """The average of one site of a model; its representation must act on the whole event."""
    rep = symmetry[site]
    if len(rep.event_shape) < len(q.event_shape):
        raise SymmetryError(
            f"Expected the representation of site {site!r} to act on its whole event {tuple(q.event_shape)}; got "
            f"{rep} on {tuple(rep.event_shape)}. Multiply it by pe.trivial(group, shape) for axes that do not move."
        )
    return _average(q, rep, rule)


def _average(q: Distribution, rep: Representation, rule: str) -> Distribution:
    return orbit_mean(q, rep, RULES[rule])
