"""Whether a model's log density keeps its value when the latents move, and which site breaks it."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor

from ..errors import SymmetryError
from ..guides.base import own_randomness
from ..spaces import Space, space_of
from ..symmetry import Symmetry, needed
from .base import ModelDensity, Terms

DRAWS, ELEMENTS, GENERATORS = 3, 8, 32
ROUNDING, LAST_DIGITS = 30.0, 64.0
DOUBTFUL, DOUBLE = 1e-2, 1e-12
SMALL_PART = 1e-3
JACOBIAN = " (Jacobian)"


def check_symmetry(model: Callable, symmetry: Symmetry, *args, **kwargs) -> float:
    """Confirm ``log p(ρ(g) θ, data) = log p(θ, data)`` for random ``θ`` and ``g``.

    ``θ`` are three draws from the prior, ``g`` the generators of the group and eight elements at random. Densities are
    those of the coordinates in which the action is linear: for a site with ``rep.on_unconstrained()`` the Jacobian of
    its transform counts. Where the symmetry has ``inputs`` and ``outputs``, the first argument moves as the inputs, the
    second as the outputs. A discrete latent site moves by its representation (:func:`~pyro_equivariance.labels`), and
    is summed out if the symmetry has none for it.

    What counts as a change of a term is more than 30 times what rounding makes of such terms, which is seen by changing
    ``θ`` in its last digits: models in single precision are judged more coarsely than those in double precision.

    :param model: a Pyro model.
    :param Symmetry symmetry: a representation for every continuous latent site.
    :param args: the model's arguments, observations included; ``kwargs`` likewise.
    :returns: the largest change seen, in nats: rounding.
    :raises SymmetryError: naming the site or observation whose log density changes most, the element, and by how much;
        also for a site without a representation, or one that cannot act there.

    >>> import torch, pyro, pyro.distributions as dist, pyro_equivariance as pe
    >>> def model():
    ...     with pyro.plate("units", 3):
    ...         pyro.sample("z", dist.Normal(torch.tensor([0.0, 0.0, 0.5]), 1.0))
    >>> S3 = pe.SymmetricGroup(3)
    >>> try:
    ...     pe.check_symmetry(model, pe.Symmetry(S3, {"z": pe.permutation(S3)}))
    ... except pe.SymmetryError as error:
    ...     print(str(error).split("; ")[1].split(", which")[0])
    '(0 2)' changes it by 1.6 nats, most of it the prior of 'z' (+1.6)
    """
    change = largest_change(ModelDensity(model, args, kwargs), needed(symmetry))
    if change.message:
        raise SymmetryError(change.message)
    return change.size


@dataclass(frozen=True)
class Change:
    """How much a log density changed, in nats; where that is more than rounding, a line that says so, and the site."""

    size: float
    message: str = ""
    site: str = ""


@dataclass(frozen=True)
class Noise:
    """How much rounding may change a log density: a term of a site, absolutely and relative to it; and the total."""

    terms: dict[str, tuple[float, float]]
    total: float


def largest_change(density: ModelDensity, symmetry: Symmetry, stop: bool = False) -> Change:
    """The largest change of the log density; with ``stop`` the first that is more than rounding."""
    moved = MovedDensity(density, symmetry)
    worst = Change(0.0)
    for values in density.draws(DRAWS):
        before, noise = moved.terms(values), moved.noise(values)
        for g in some_elements(symmetry.group):
            after = moved.terms(values, g)
            found = {name: change_of_site(name, before, after, noise) for name in before.sites}
            broken = {name: change for name, (change, allowed) in found.items() if not abs(change) <= allowed}
            if moved.sums_out:
                change, limit = after.total - before.total, noise.total
            else:
                change, limit = sum(broken.values()), sum(found[name][1] for name in broken)
            if not abs(change) <= limit:  # NaN is a change as well
                if not (worst.message and abs(change) <= worst.size):
                    worst = Change(abs(change), *_told(density, symmetry, g, change, broken, before))
            elif not worst.message:
                worst = Change(max(worst.size, abs(sum(change for change, _ in found.values()))))
            if stop and worst.message:
                return worst
    return worst


def change_of_site(name: str, before: Terms, after: Terms, noise: Noise) -> tuple[float, float]:
    """The change of a site's log density, and how much rounding may make of it.

    Terms that are equal but for rounding are equal; the others, which may have been permuted, are added.

    :raises SymmetryError: if the site is not there any more.
    """
    if name not in after.sites:
        raise SymmetryError(
            f"Expected a model with the same sites at all values of its latents; {name!r} comes and goes."
        )
    first, second, (absolute, relative) = before.sites[name], after.sites[name], noise.terms[name]
    if first.shape != second.shape or not first.numel():
        return float(second.sum() - first.sum()), absolute + relative * float(first.abs().sum())
    change, allowed = second - first, absolute + relative * torch.maximum(first.abs(), first.abs().mean())
    broken = ~(change.abs() <= allowed)
    return float(change[broken].sum()), float(allowed[broken].sum())


class MovedDensity:
    """The log density where latents and data were moved."""

    def __init__(self, density: ModelDensity, symmetry: Symmetry):
        self.density, self.symmetry = density, symmetry
        self.spaces: dict[str, Space | None] = {}
        for name, site in density.latents.items():
            if not site["fn"].support.is_discrete:
                self.spaces[name] = space_of(symmetry, name, site)
            elif name in symmetry.sites:
                self.spaces[name] = None
        self.sums_out = len(self.spaces) < len(density.latents)

    def terms(self, values: Mapping[str, Tensor], g: Tensor | int | None = None) -> Terms:
        """At ``ρ(g) θ``; without ``g`` at ``θ``."""
        moved, jacobians = self.values(values, g)
        terms = self.density.terms(moved, None if g is None else self._moved_data(g))
        extra = {f"{name}{JACOBIAN}": term for name, term in jacobians.items()}
        precision = {f"{name}{JACOBIAN}": terms.precision[name] for name in jacobians}
        total = terms.total + sum(float(term.sum()) for term in extra.values())
        return Terms(terms.sites | extra, terms.precision | precision, total)

    def values(
        self, values: Mapping[str, Tensor], g: Tensor | int | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``ρ(g) θ``, and of sites that move on unconstrained values the log Jacobian of their transform."""
        moved, jacobians = {}, {}
        for name, space in self.spaces.items():
            rep, value = self.symmetry[name], values[name]
            if rep.space == "constrained":
                moved[name] = value if g is None else rep.act(g, value)
                continue
            u = space.transform.inv(value)
            u = u if g is None else rep.act(g, u)
            moved[name] = space.transform(u)
            jacobians[name] = space.transform.log_abs_det_jacobian(u, moved[name]).double()
        return moved, jacobians

    def noise(self, values: Mapping[str, Tensor]) -> Noise:
        """How much rounding changes at these latents, seen by changing them in their last digits."""
        before = self.terms(values)
        with own_randomness(0), pyro.validation_enabled(False):
            after = self.terms({name: _last_digits(value) for name, value in values.items()})
        terms, total = {}, ROUNDING * abs(after.total - before.total)
        for name, term in before.sites.items():
            alike = name in after.sites and after.sites[name].shape == term.shape and term.numel() > 0
            spread = float((after.sites[name] - term).square().mean().sqrt()) if alike else 0.0
            terms[name] = ROUNDING * spread, LAST_DIGITS * before.precision[name]
            total += LAST_DIGITS * before.precision[name] * float(term.abs().sum())
        return Noise(terms, total)

    def _moved_data(self, g) -> tuple:
        inputs, args = self.symmetry.inputs, list(self.density.args)
        if inputs is not None and args:
            args[0] = self.symmetry.act_inputs(g, args[0])
        if self.symmetry.outputs is not None and len(args) > 1 and args[1] is not None:
            args[1] = self.symmetry.act_outputs(g, args[1])
        return tuple(args)


def _last_digits(value: Tensor) -> Tensor:
    """The value changed by one part in its precision."""
    if not value.is_floating_point():
        return value
    return value * (1 + torch.finfo(value.dtype).eps * torch.randn_like(value))


def some_elements(group) -> list:
    """Generators, where they are few, and elements at random."""
    generators = list(group.generators) if group.is_finite else []
    with own_randomness(0):
        return [*(generators if len(generators) <= GENERATORS else []), *group.sample((ELEMENTS,))]


def _told(density: ModelDensity, symmetry: Symmetry, g, change: float, broken, before: Terms) -> tuple[str, str]:
    """A line on what changed, and the name of the site that did most."""
    group = symmetry.group
    element = repr(group.name(int(g))) if group.is_indexed else "an element"
    said = (
        f"Expected the model's log density to keep its value under {group}; {element} changes it by {abs(change):.2g}"
    )
    changes = Counter()
    for term, part in broken.items():  # a prior and the Jacobian of its transform may make up for one another
        changes[term.removesuffix(JACOBIAN)] += part
    name = max(changes, key=lambda n: abs(changes[n]) if changes[n] == changes[n] else math.inf, default="")
    if not name or abs(changes[name]) < SMALL_PART * abs(change):
        through = " and ".join(repr(name) for name in density.latents if name not in symmetry.sites)
        return (
            f"{said} nats, through {through}, summed out: its values are not moved as their probabilities and what "
            f"they choose are. Move these alike.",
            "",
        )
    if name in density.latents:
        why = f"the prior of {name!r} ({changes[name]:+.2g}), which tells apart what is moved"
    else:
        kind = "factor" if name in density.factors else "observation"
        why = f"the {kind} {name!r} ({changes[name]:+.2g}), which uses what is moved in another way"
    line = (
        f"{said} nats, most of it {why}. Give what is exchanged the same priors and the same use, or leave it out of "
        f"the symmetry."
    )
    size = float(before.sites[name].abs().sum())
    if before.precision[name] > DOUBLE and abs(change) < DOUBTFUL * size:
        line += " It is small for single precision: see whether it stays in double precision."
    return line, name
