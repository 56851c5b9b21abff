"""A bound on the equivariance defect for all inputs, from the posterior alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SymmetryError
from ..families import is_closed, kl, push_forward
from ..families.base import unwrap
from ..guides import AutoOrbitMixture
from ..guides.parameters import site_laws
from ..symmetry import Symmetry, needed

MAX_ELEMENTS = 4096
EQUAL = 1e-12
SHOWN = 5


@dataclass(frozen=True)
class Certificate:
    """What :func:`certificate` returns; all tensors have the group on their first axis, in float64.

    ``kl`` and ``kl_reverse`` are ``KL(q ‖ ρ(g)_# q)`` and ``KL(ρ(g)_# q ‖ q)`` in nats, ``total_variation`` the bound
    on ``TV(q, ρ(g)_# q)`` (or its value, where ``is_exact``), ``sites`` for each site or joint block of sites the
    smaller of the two divergences.
    """

    elements: tuple[str, ...]
    kl: Tensor
    kl_reverse: Tensor
    total_variation: Tensor
    is_exact: Tensor
    sites: dict[str, Tensor]

    @property
    def l1(self) -> Tensor:
        """Bounds on ``‖F(gx) − ρ_Y(g) F(x)‖₁`` for every input, ``2 TV``: 2 says nothing."""
        return 2 * self.total_variation

    @property
    def defect(self) -> float:
        """A bound on the defect, ``mean_g 2 TV²``; 2 or nearly says nothing."""
        return float((2 * self.total_variation.square()).mean())

    @property
    def worst(self) -> str:
        """The element with the largest bound."""
        return self.elements[int(self.total_variation.argmax())]

    def __float__(self) -> float:
        return self.defect

    def __str__(self) -> str:
        worst = int(self.total_variation.argmax())
        if not self.defect:
            return "defect 0: the posterior is invariant"
        lines = [
            f"defect at most {self.defect:.3g}; at {self.worst!r}, the worst element, class probabilities differ by at "
            f"most {float(self.l1[worst]):.3g} in sum",
            f"{'site':<24} {'KL at ' + self.worst:>14} {'share':>7}",
        ]
        total = sum(float(part[worst]) for part in self.sites.values())
        ranked = sorted(self.sites.items(), key=lambda item: -float(item[1][worst]))
        for name, part in ranked[:SHOWN]:
            share = float(part[worst]) / total if total > 0 else 0.0
            lines.append(f"{name:<24} {float(part[worst]):>14.3g} {share:>7.1%}")
        if len(ranked) > SHOWN:
            lines.append(f"and {len(ranked) - SHOWN} more sites")
        return "\n".join(lines)


@torch.no_grad()
def certificate(guide, symmetry: Symmetry, *args) -> Certificate:
    """A bound on how far from equivariant the posterior predictive can be, at any input, from the guide alone.

    For a compatible model whose outputs are class probabilities, permuted by ``ρ_Y`` (or left alone), and every ``x``:

    ``‖F(gx) − ρ_Y(g) F(x)‖₁ ≤ 2 TV(q, ρ(g)_# q)``, so that the defect is at most ``mean_g 2 TV²``

    (of vectors whose entries sum to 0, ``‖d‖₂² ≤ ‖d‖₁² / 2``). The total variation is bounded by
    ``min(√(KL / 2), √(1 − e^(−KL)))`` [1, 2] with the smaller of the two divergences between ``q`` and its
    push-forward, in closed form; of Normals with equal covariances it is exact, ``erf(√KL / 2)``. A guide that is
    invariant by construction has the bound 0. What the bound does not see is the model: it holds for all of them, and
    is far from tight for posteriors over many weights.

    :param guide: an initialised guide that draws from Normals or other families with closed forms, site by site or
        jointly.
    :param Symmetry symmetry: a representation for every latent site; a group of at most 4,096 elements.
    :param args: what the guide must be called with, if it needs arguments.
    :raises SymmetryError: for an action that does not keep the guide's family, or a group without such a list.

    [1] Pinsker's inequality. [2] Bretagnolle, Huber (1979) "Estimation des densités: risque minimax"

    >>> import torch, pyro, pyro.distributions as dist, pyro_equivariance as pe
    >>> swap = pe.Symmetry(pe.SymmetricGroup(2), {"z": pe.permutation(pe.SymmetricGroup(2))})
    >>> def guide():
    ...     pyro.sample("z", dist.Normal(torch.tensor([0.0, 0.2]), 1.0).to_event(1))
    >>> bound = pe.certificate(guide, swap)
    >>> round(bound.defect, 4), round(float(bound.kl[1]), 4)
    (0.0126, 0.04)
    """
    if not callable(guide):
        raise SymmetryError(f"Expected a guide, a callable; got {guide!r}.")
    group = needed(symmetry).group
    if not group.is_indexed or len(group) > MAX_ELEMENTS:
        raise SymmetryError(
            f"Expected a group of at most {MAX_ELEMENTS} elements, each of which has its bound; got {group}. Use a "
            f"subgroup of it."
        )
    if is_by_construction(guide, symmetry):
        return _summed(group.names, {_name_of(guide): torch.zeros(3, len(group), dtype=torch.float64)})
    return divergences(guide, symmetry, range(len(group)), *args)


def divergences(guide, symmetry: Symmetry, elements, *args) -> Certificate:
    """The same for some of the elements only."""
    laws = site_laws(guide, symmetry, *args)
    names = tuple(map(symmetry.group.name, map(int, elements)))
    return _summed(names, {", ".join(n): _of_law(n, *law, elements) for n, law in laws.items()})


def is_by_construction(guide, symmetry: Symmetry) -> bool:
    """Whether a guide without a closed form is known to be invariant: a mixture over this very symmetry, or tied.

    :raises SymmetryError: for a mixture over another symmetry.
    """
    if not isinstance(guide, AutoOrbitMixture):
        return is_tied(guide, symmetry)
    if guide.symmetry != symmetry:
        raise SymmetryError(
            f"Expected the symmetry that the mixture is over, {guide.symmetry}; under {symmetry} its divergence has no "
            f"closed form. Make the guide with that symmetry."
        )
    return True


def is_tied(guide, symmetry: Symmetry) -> bool:
    """Whether the guide's sites are the small ones of an expansion, all of whose draws are equivariant."""
    if not getattr(guide, "always_invariant", False) or getattr(guide, "prototype_trace", None) is None:
        return False
    return not any(name in symmetry.sites for name, _ in guide.prototype_trace.iter_stochastic_nodes())


def _name_of(guide) -> str:
    return f"{type(guide).__name__} (invariant by construction)"


def _of_law(names: tuple[str, ...], q, rep, elements) -> Tensor:
    """Both divergences and whether covariances are equal, for each element: ``(3, elements)``."""
    if not is_closed(q, rep):
        raise SymmetryError(
            f"Expected an action that keeps the law of {', '.join(map(repr, names))}, a {type(q).__name__}; {rep} does "
            f"not, so that its divergence has no closed form."
        )
    q = _double(q)
    rows = []
    for g in elements:
        moved = push_forward(q, rep, g)
        rows.append((float(kl(q, moved)), float(kl(moved, q)), float(_same_spread(q, moved))))
    return torch.tensor(rows, dtype=torch.float64).T.clamp_min(0.0)


def _double(q):
    """The same distribution in double precision."""
    family, q, _ = unwrap(q)
    return family.from_coordinates("standard", tuple(c.detach().double() for c in family.coordinates(q, "standard")))


def _same_spread(q, p) -> bool:
    """Whether two Normals have the same covariance."""
    if not isinstance(q, (torch.distributions.Normal, torch.distributions.MultivariateNormal)):
        return False
    a, b = (d.scale if hasattr(d, "scale") else d.covariance_matrix for d in (q, p))
    return bool(((a - b).abs() <= EQUAL * torch.maximum(a.abs(), b.abs())).all())


def _summed(elements: tuple[str, ...], sites: dict[str, Tensor]) -> Certificate:
    """Sites are independent: divergences add."""
    total = sum(sites.values())
    forward, backward = total[0], total[1]
    exact = total[2] >= len(sites)
    smaller = torch.minimum(forward, backward)
    bound = torch.minimum((smaller / 2).sqrt(), (-torch.expm1(-smaller)).sqrt())
    variation = torch.where(exact, torch.erf(forward.sqrt() / 2), bound)
    return Certificate(
        elements, forward, backward, variation, exact, {n: torch.minimum(t[0], t[1]) for n, t in sites.items()}
    )
