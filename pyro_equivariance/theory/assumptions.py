"""Which conditions of exactly equivariant training hold, each of them measured, and what follows."""

import functools
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from ..errors import ClosednessError, OptionError, SymmetryError, check_option
from ..families import is_closed, kl, push_forward
from ..families.base import unwrap
from ..guides.base import own_randomness
from ..guides.parameters import example_of, parameter_actions, site_laws
from ..model_symmetries.base import ModelDensity
from ..model_symmetries.check import JACOBIAN, MovedDensity, change_of_site, some_elements
from ..networks.bayesian import BayesianNetwork
from ..prediction import lifted_check
from ..symmetry import Symmetry, needed
from .certificate import MAX_ELEMENTS, certificate, divergences, is_by_construction, is_tied

DRAWS = ("independent", "antithetic", "exact")
ORBITS = ("full", "random", "none")
OUTCOMES = ("exactly equivariant", "in law only", "not")
ROUNDING, INVARIANT = 1e-8, 1e-10
STEPS, NOISE = 3, 1e-13
WIDTH = 55


@dataclass(frozen=True)
class Condition:
    """One condition: whether it holds, the number it was judged by (``None`` where nothing is measured), and where."""

    letter: str
    name: str
    holds: bool
    measured: float | None
    unit: str
    where: str
    advice: str = ""


@dataclass(frozen=True)
class Assumptions:
    """What :func:`check_assumptions` returns: it prints as a table, and :meth:`as_dict` is for JSON."""

    conditions: tuple[Condition, ...]
    outcome: str
    reason: str

    def __getitem__(self, letter: str) -> Condition:
        return next(c for c in self.conditions if c.letter == letter)

    def as_dict(self) -> dict:
        """Plain numbers and text."""
        return {
            "outcome": self.outcome,
            "reason": self.reason,
            "conditions": [asdict(condition) for condition in self.conditions],
        }

    def __str__(self) -> str:
        lines = [f"{'':<4}{'condition':<32} {'holds':<6} {'measured':>10}  where"]
        for c in self.conditions:
            number = "" if c.measured is None else f"{c.measured:.1e}"
            where = textwrap.shorten(c.where, WIDTH, placeholder=" …")
            unit = f" ({c.unit})" if c.unit and c.measured is not None else ""
            lines.append(
                f"({c.letter}) {c.name:<32} {'yes' if c.holds else 'no':<6} {number:>10}  {where}{unit}".rstrip()
            )
        return "\n".join([*lines, f"Training: {self.outcome}. {self.reason}"])


def check_assumptions(
    model: Callable,
    guide: Callable,
    symmetry: Symmetry,
    optimizer: Callable | None = None,
    augmentation: str | None = None,
    data: tuple = (),
    draws: str | None = None,
    average_gradient: bool = False,
) -> Assumptions:
    """Will the posterior stay equivariant while it is trained? Each condition is measured, none assumed.

    - (a) the network, or the likelihood, is compatible: ``f(ρ_X(g) x; ρ(g) θ) = ρ_Y(g) f(x; θ)`` on random weights;
    - (b) the augmentation is full (at random it is so in law only);
    - (c) the guide's family is closed under the action, site by site;
    - (d) the prior is invariant: ``KL(ρ(g)_# π ‖ π)`` of each site, given the sites before it;
    - (e) the guide is invariant now: ``KL(q ‖ ρ(g)_# q)``;
    - (f) the optimizer commutes with the action: how far it leads from the invariant parameters in three steps on
      gradients that are invariant but for rounding, relative to the length of steps. Adam and its like do not where
      invariance pins a parameter to 0, such as the bias of an output that changes its sign: they blow rounding up;
    - (g) gradients are free of noise: those of independent draws are equivariant in law only, of whole orbits exactly.

    The outcome is ``"exactly equivariant"``: this run stays invariant (or its guide cannot be otherwise); ``"in law
    only"``: the distribution over runs is symmetric, one run drifts; or ``"not"``: something pulls away from it. A
    guide that is invariant for every value of its parameters needs (a) alone.

    :param model: a Pyro model; one under :func:`~pyro_equivariance.handlers.augment` tells its augmentation itself.
    :param guide: its guide, initialised, or one that ``data`` can initialise.
    :param Symmetry symmetry: a representation for every latent site, and ``inputs`` where these move.
    :param optimizer: as for :func:`~pyro_equivariance.fit`; by default Adam with rate 0.01.
    :param str augmentation: ``"full"``, ``"random"`` or ``"none"``; left out, that of the model.
    :param tuple data: the model's arguments; a :class:`~pyro_equivariance.BayesianNetwork` needs none.
    :param str draws: how the ELBO is estimated: ``"independent"`` draws, ``"antithetic"`` ones
        (:func:`~pyro_equivariance.handlers.antithetic`, which is noticed by itself), or ``"exact"``, in closed form.
    :param bool average_gradient: whether :func:`~pyro_equivariance.fit` averages the gradient over this group.
    :raises SymmetryError: for a guide whose law has no closed form.

    Source: Dong, Flinth, Gerken (2026) arXiv:2606.26273; Nordenfors, Flinth (2024) arXiv:2410.01452.

    >>> import torch, pyro_equivariance as pe
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 2))
    >>> symmetry = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 3, 3))
    >>> model = pe.BayesianNetwork(net)
    >>> guide = pe.AutoSymmetricNormal(model, symmetry)
    >>> pe.check_assumptions(model, guide, symmetry).outcome
    'exactly equivariant'
    """
    check = _Check(model, guide, needed(symmetry), data)
    if augmentation is not None:
        check_option("augmentation", augmentation, ORBITS)
    if optimizer is not None and not callable(optimizer):
        raise OptionError(
            f"Expected optimizer to be a Pyro optimizer or a callable on parameters, such as "
            f"functools.partial(torch.optim.Adam, lr=0.01); got {optimizer!r}."
        )
    if draws is None:
        draws = check.draws
    check_option("draws", draws, DRAWS)
    with own_randomness(0):
        conditions = (
            check.compatible(),
            check.augmented(augmentation),
            check.closed(),
            check.prior(),
            check.invariant(),
            check.optimizer(optimizer),
            _noise(draws),
        )
    return Assumptions(conditions, *_conclusion(conditions, check.always, average_gradient))


class _Check:
    """The measurements, each a :class:`Condition`."""

    def __init__(self, model, guide, symmetry: Symmetry, data):
        self.model, self.inner, self.symmetry = model, inspect.unwrap(model), symmetry
        if not callable(guide):
            raise SymmetryError(f"Expected a guide, a callable; got {guide!r}.")
        in_orbits = hasattr(guide, "restart")
        self.plain = guide.guide if in_orbits else guide
        self.draws = "antithetic" if in_orbits and guide.symmetry.sites == symmetry.sites else "independent"
        self.network = getattr(self.inner, "big", self.inner)  # of a tied expansion the large one
        data = (data,) if isinstance(data, Tensor) else tuple(data)
        if not data and isinstance(self.network, BayesianNetwork) and symmetry.inputs is not None:
            data = example_of(self.network, symmetry, random=True)
        self.data, self.always = data, bool(getattr(self.plain, "always_invariant", False))
        with poutine.block(), own_randomness(0):
            if getattr(self.plain, "prototype_trace", True) is None:
                self.plain(*data)
            self.tied = is_tied(self.plain, symmetry)

    @functools.cached_property
    def _moved(self) -> MovedDensity:
        return MovedDensity(ModelDensity(self.inner, self.data, {}), self.symmetry)

    @functools.cached_property
    def _elements(self) -> list:
        return some_elements(self.symmetry.group)

    def compatible(self) -> Condition:
        name = "the likelihood is compatible"
        if self.tied:
            like = next(self.network.net.parameters())
            x = torch.randn(4, *self.symmetry.inputs.event_shape, dtype=like.dtype, device=like.device)
            worst = lifted_check(self.inner, self.plain, self.symmetry, x)
            holds = worst <= torch.finfo(like.dtype).eps ** 0.5
            return Condition("a", name, holds, worst, "relative", "every draw", "another arrangement")
        worst, unit, where = 0.0, "nats", "all observations"
        if isinstance(self.network, BayesianNetwork):
            try:
                worst, unit, where = self.symmetry.check(self.network.net), "relative", "network"
            except SymmetryError as error:
                return Condition("a", name, False, None, "", _first_sentence(error), "another size, or another layer")
        broken = {site: part for site, part in self._broken.items() if site not in self._moved.density.latents}
        if broken:
            site = max(broken, key=lambda site: broken[site])
            advice = "the symmetry that the likelihood has"
            return Condition("a", name, False, broken[site], "nats", repr(site), advice)
        return Condition("a", name, True, worst, unit, where)

    @functools.cached_property
    def _broken(self) -> dict[str, float]:
        """The sites whose log density, scaled and masked as the model does, is moved by more than rounding; how much.

        What is summed out counts as an observation of its own.
        """
        broken: dict[str, float] = {}
        for values in self._moved.density.draws(2):
            before, noise = self._moved.terms(values), self._moved.noise(values)
            for g in self._elements:
                after = self._moved.terms(values, g)
                sites: dict[str, list[float]] = {}
                for term in before.sites:
                    change, allowed = change_of_site(term, before, after, noise)
                    both = sites.setdefault(term.removesuffix(JACOBIAN), [0.0, 0.0])
                    both[0], both[1] = both[0] + change, both[1] + allowed
                if self._moved.sums_out:
                    sites = {"what is summed out": [after.total - before.total, noise.total]}
                for site, (change, allowed) in sites.items():
                    if not abs(change) <= allowed:
                        broken[site] = max(broken.get(site, 0.0), abs(change))
        return broken

    @property
    def sees_data(self) -> bool:
        """Whether inputs move, so that the data have to be moved as well."""
        return self.symmetry.inputs is not None

    def augmented(self, augmentation: str | None) -> Condition:
        name = "the augmentation is full"
        if not self.sees_data:
            return Condition("b", name, True, None, "", "no inputs move, none is needed")
        messenger = getattr(self.model, "augmentation", None)
        where = augmentation or (messenger.orbit if messenger else "none")
        if augmentation is None and messenger and not _moves_alike(messenger.symmetry, self.symmetry):
            where = f"by another symmetry, of {messenger.symmetry.group}"
        return Condition("b", name, where == "full", None, "", where, "pe.handlers.augment(model, symmetry)")

    def closed(self) -> Condition:
        name = "the family is closed"
        if self.always:
            return Condition("c", name, True, None, "", "not needed: the guide is averaged")
        try:
            laws = site_laws(self.plain, self.symmetry, *self.data)
        except ClosednessError as error:
            return Condition("c", name, False, None, "", _first_sentence(error), "a guide with a density")
        spoilt = [", ".join(names) for names, law in laws.items() if not is_closed(*law)]
        where = repr(spoilt[0]) if spoilt else "all sites"
        return Condition("c", name, not spoilt, None, "", where, "pe.AutoOrbitMixture, or a full covariance")

    def prior(self) -> Condition:
        name = "the prior is invariant"
        if self.tied:
            return Condition("d", name, True, None, "", "not needed: every draw is equivariant")
        worst, where = 0.0, "all sites"
        for site, value in self._prior_divergences().items():
            if value > worst:
                worst, where = value, repr(site)
        broken = {site: part for site, part in self._broken.items() if site in self._moved.density.latents}
        if broken and worst <= INVARIANT:  # discrete, scaled or masked, or without a closed form
            site = max(broken, key=lambda site: broken[site])
            worst, where = broken[site], repr(site)
        holds = worst <= INVARIANT and not broken
        return Condition("d", name, holds, worst, "nats", where, "the same law for all that is exchanged")

    def _prior_divergences(self) -> dict[str, float]:
        """``max_g KL(ρ(g)_# π(· | parents) ‖ π(· | ρ(g) parents))`` of each continuous site."""
        density, found = self._moved.density, {}
        (values,) = density.draws(1)
        values = {name: values[name] for name in self._moved.spaces}
        before = self._traced(values)
        for g in self._elements:
            after = self._traced(self._moved.values(values, g)[0])
            for name in [n for n, space in self._moved.spaces.items() if space is not None]:
                gap = _divergence(before[name], after[name], self.symmetry[name], g)
                found[name] = gap if not gap <= found.get(name, 0.0) else found.get(name, 0.0)
        return found

    def _traced(self, values) -> dict[str, torch.distributions.Distribution]:
        trace = self._moved.density.run(poutine.condition(self.inner, values))
        return {name: trace.nodes[name]["fn"] for name in values}

    def invariant(self) -> Condition:
        name = "the guide is invariant now"
        try:
            bound = self._bound()
        except SymmetryError as error:
            return Condition("e", name, False, None, "", _first_sentence(error), "a guide with a closed form")
        worst = float(bound.kl.max())
        site = max(bound.sites, key=lambda name: float(bound.sites[name].max()))
        where = repr(site) if worst > INVARIANT else "all sites"
        return Condition("e", name, worst <= INVARIANT, worst, "nats", where, "pe.symmetrize_(guide, symmetry)")

    def _bound(self):
        """Divergences under all elements, or of a large group under generators and some at random."""
        group = self.symmetry.group
        if is_by_construction(self.plain, self.symmetry) or (group.is_indexed and len(group) <= MAX_ELEMENTS):
            return certificate(self.plain, self.symmetry, *self.data)
        return divergences(self.plain, self.symmetry, self._elements, *self.data)

    def optimizer(self, optimizer) -> Condition:
        name = "the optimizer commutes"
        if self.always:
            return Condition("f", name, True, None, "", "not needed")
        try:
            actions = parameter_actions(self.plain, self.symmetry, *self.data)
        except SymmetryError as error:
            return Condition("f", name, False, None, "", _first_sentence(error), "pe.AutoMeanFieldNormal")
        worst = _drift(optimizer, actions)
        kind = "Adam" if optimizer is None else _name(optimizer)
        return Condition(
            "f", name, worst <= ROUNDING, worst, "relative", kind, "SGD, or fit(average_gradient=symmetry)"
        )


def _moves_alike(first: Symmetry, second: Symmetry) -> bool:
    """Whether two symmetries move inputs and outputs in the same way."""
    return (first.group, first.inputs, first.outputs) == (second.group, second.inputs, second.outputs)


def _noise(draws: str) -> Condition:
    advice = "pe.handlers.antithetic, or fit(average_gradient=symmetry)"
    return Condition("g", "gradients are free of noise", draws != "independent", None, "", f"{draws} draws", advice)


def _conclusion(conditions, always: bool, average_gradient: bool) -> tuple[str, str]:
    by = {c.letter: c for c in conditions}
    if not by["a"].holds:
        return "not", _because(by["a"])
    if always and by["e"].holds:
        return "exactly equivariant", "The guide is invariant for every value of its parameters."
    if always:  # under another symmetry than its own
        return "not", _because(by["e"])
    # Averaged parameters are invariant wherever a step has led, if only the group moves them linearly.
    required = "c" + "f" * (by["f"].measured is None) if average_gradient else "cdef"
    broken = [by[letter] for letter in required if not by[letter].holds]
    if broken:
        return "not", _because(broken[0])
    if average_gradient:
        return "exactly equivariant", "The gradient and the parameters are averaged over the group at each step."
    if by["b"].where not in ("full", "random") and not by["b"].holds:
        return "not", _because(by["b"])
    noisy = [by[letter] for letter in "bg" if not by[letter].holds]
    if noisy:
        return "in law only", _because(noisy[0])
    return "exactly equivariant", "All conditions hold."


def _because(condition: Condition) -> str:
    advice = f" Use {condition.advice}." if condition.advice else ""
    how = {"b": f": augmentation {condition.where}", "f": f": {condition.where}", "g": f": {condition.where}"}
    return f"({condition.letter}) fails{how.get(condition.letter, f' at {condition.where}')}.{advice}"


def _divergence(before, after, rep, g) -> float:
    """``KL(ρ(g)_# before ‖ after)``; of Normals that the action mixes as of one with all correlations; else NaN."""
    try:
        if not is_closed(before, rep) and len(rep.event_shape) == 1:
            before, after = _with_correlations(before), _with_correlations(after)
        return max(float(kl(push_forward(before, rep, g), after)), 0.0)
    except (SymmetryError, NotImplementedError):
        return float("nan")


def _with_correlations(q):
    """Independent Normals as one Normal on their last axis."""
    _, core, _ = unwrap(q)
    if not isinstance(core, torch.distributions.Normal):
        return q
    return dist.MultivariateNormal(core.loc.double(), scale_tril=torch.diag_embed(core.scale.double()))


def _drift(optimizer, actions) -> float:
    """How far three steps on invariant gradients lead from invariant parameters, relative to steps on any others."""
    worst, generator = 0.0, torch.Generator().manual_seed(0)
    for rep in dict.fromkeys(rep for _, rep in actions):
        start, *gradients = torch.randn((1 + STEPS, *rep.event_shape), generator=generator, dtype=torch.float64)
        # Where invariance pins a parameter to 0, rounding is all of its gradient, which some rules blow up.
        noise = NOISE * torch.randn((STEPS, *rep.event_shape), generator=generator, dtype=torch.float64)
        moved = _stepped(optimizer, rep.mean(start), [rep.mean(g) + n for g, n in zip(gradients, noise, strict=True)])
        length = float((_stepped(optimizer, start, gradients) - start).norm())
        if length > 0:
            worst = max(worst, float((moved - rep.mean(moved)).norm()) / length)
    return worst


def _stepped(optimizer, start: Tensor, gradients) -> Tensor:
    """Where an optimizer goes by these gradients."""
    leaf = start.clone().requires_grad_()
    step = _stepper(optimizer, leaf)
    for gradient in gradients:
        leaf.grad = gradient.clone()
        step()
    return leaf.detach()


def _stepper(optimizer, leaf: Tensor) -> Callable[[], None]:
    if isinstance(optimizer, pyro.optim.PyroOptim):
        options = optimizer.pt_optim_args
        return optimizer.pt_optim_constructor([leaf], **(options("parameter") if callable(options) else options)).step
    return (torch.optim.Adam([leaf], lr=0.01) if optimizer is None else optimizer([leaf])).step


def _name(optimizer) -> str:
    inner = getattr(optimizer, "func", getattr(optimizer, "pt_optim_constructor", optimizer))
    return getattr(inner, "__name__", type(inner).__name__)


def _first_sentence(error: Exception) -> str:
    return str(error).split(". ")[0].split("; ")[0].removeprefix("Expected ").rstrip(".")
