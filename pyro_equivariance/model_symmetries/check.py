"""Whether a model's log density keeps its value when the latents move, and which site breaks it."""

import math
from collections.abc import Callable, Mapping

import pyro
import torch
from torch import Tensor

from ..errors import SymmetryError
from ..spaces import Space, space_of
from ..symmetry import Symmetry, needed
from .base import ModelDensity, Terms, own_randomness

DRAWS, ELEMENTS, GENERATORS = 3, 8, 32
ROUNDING, LAST_DIGITS = 30.0, 64.0
TOTAL = ""


def check_symmetry(model: Callable, symmetry: Symmetry, *args, **kwargs) -> float:
    """Confirm ``log p(ρ(g) θ, data) = log p(θ, data)`` for random ``θ`` and ``g``.

    ``θ`` are three draws from the prior, ``g`` the generators of the group and eight elements at random. Densities are
    those of the coordinates in which the action is linear: for a site with ``rep.on_unconstrained()`` the Jacobian of
    its transform counts. Where the symmetry has ``inputs`` and ``outputs``, the first argument moves as the inputs, the
    second as the outputs. A discrete latent site moves by its representation (:func:`~pyro_equivariance.labels`), and
    is summed out if the symmetry has none for it.

    What counts as a change is more than 30 times what rounding makes of it, which is seen by changing ``θ`` in its last
    digits: models in single precision are judged more coarsely than those in double precision.

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
    change, message = largest_change(ModelDensity(model, args, kwargs), needed(symmetry))
    if message:
        raise SymmetryError(message)
    return change


def largest_change(density: ModelDensity, symmetry: Symmetry) -> tuple[float, str]:
    """The largest change of the log density, in nats, and where it is more than rounding a line that says so."""
    moved = MovedDensity(density, symmetry)
    worst, said = 0.0, ""
    for values in density.draws(DRAWS):
        before, allowed = moved.terms(values), moved.rounding(values)
        for g in some_elements(symmetry.group):
            after = moved.terms(values, g)
            changes = {name: after.sites[name] - before.sites[name] for name in before.sites}
            broken = {name: change for name, change in changes.items() if not abs(change) <= allowed[name]}
            if moved.sums_out:
                change, limit = after.total - before.total, allowed[TOTAL]
            else:  # terms that are equal but for rounding are equal
                change, limit = sum(broken.values()), sum(allowed[name] for name in broken)
            if not abs(change) <= limit and not (said and abs(change) <= worst):  # NaN is a change as well
                worst, said = abs(change), _message(density, symmetry, g, change, broken)
            elif not said:
                worst = max(worst, abs(after.total - before.total))
    return worst, said


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
        sites = {name: term + jacobians.get(name, 0.0) for name, term in terms.sites.items()}
        return Terms(sites, terms.rounding, terms.total + sum(jacobians.values()))

    def values(
        self, values: Mapping[str, Tensor], g: Tensor | int | None
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
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
            jacobians[name] = float(space.transform.log_abs_det_jacobian(u, moved[name]).double().sum())
        return moved, jacobians

    def rounding(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """How large a change of each site's term may be by rounding, and under ``""`` that of their sum."""
        before = self.terms(values)
        noise = dict.fromkeys(before.sites, 0.0)
        with own_randomness(0), pyro.validation_enabled(False):
            after = self.terms({name: _last_digits(value) for name, value in values.items()})
        for name in noise:
            noise[name] = ROUNDING * abs(after.sites[name] - before.sites[name]) + LAST_DIGITS * before.rounding[name]
        return noise | {TOTAL: sum(noise.values())}

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


def _message(density: ModelDensity, symmetry: Symmetry, g, change: float, broken: Mapping[str, float]) -> str:
    group = symmetry.group
    element = repr(group.name(int(g))) if group.is_indexed else "an element"
    size = f"{element} changes it by {abs(change):.2g} nats"
    summed_out = [name for name in density.latents if name not in symmetry.sites]
    if not broken:
        through = " and ".join(map(repr, summed_out))
        return (
            f"Expected the model's log density to keep its value under {group}; {size}, through {through}, summed out: "
            f"its values are not moved as their probabilities and what they choose are. Move these alike."
        )
    name = max(broken, key=lambda n: abs(broken[n]) if broken[n] == broken[n] else math.inf)
    if name in density.latents:
        why = f"most of it the prior of {name!r} ({broken[name]:+.2g}), which tells apart what is moved"
    else:
        kind = "factor" if name in density.factors else "observation"
        why = f"most of it the {kind} {name!r} ({broken[name]:+.2g}), which uses what is moved in another way"
    return (
        f"Expected the model's log density to keep its value under {group}; {size}, {why}. Give what is exchanged "
        f"the same priors and the same use, or leave it out of the symmetry."
    )
