"""A guide whose sites draw from exponential families of their own, averaged over the group."""

from collections.abc import Callable, Mapping
from functools import partial
from operator import attrgetter

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide.utils import deep_setattr
from pyro.nn import PyroModule, PyroParam
from pyro.ops.tensor_utils import periodic_repeat
from torch import Tensor

from ..errors import ClosednessError, OptionError, check_option
from ..families import family_of, is_closed, orbit_mean
from ..representations import Representation
from ..spaces import Space, check_plates, check_shape, space_of
from ..symmetrize import RULES
from ..symmetry import Symmetry, needed
from .base import MANY, AutoDirect, is_real

SMALLEST = 1e-3


def _gamma(value: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    return scale**-2, scale**-2 / value


def _inverse_gamma(value: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    return scale**-2 + 2, (scale**-2 + 1) * value


def _beta(value: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    total = (1 / (scale.square() * value * (1 - value)) - 1).clamp_min(1.0)
    return value * total, (1 - value) * total


def _dirichlet(value: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    return (value * value.shape[-1] / scale.square(),)


# Each family's class, its parameters, and those whose mean (of a LogNormal the median) is a value and whose relative
# standard deviation, of shares that of their logarithms, is a scale.
FAMILIES: dict[str, tuple[type, tuple[str, ...], Callable]] = {
    "normal": (dist.Normal, ("loc", "scale"), lambda value, scale: (value, scale)),
    "lognormal": (dist.LogNormal, ("loc", "scale"), lambda value, scale: (value.log(), scale)),
    "gamma": (dist.Gamma, ("concentration", "rate"), _gamma),
    "inverse_gamma": (dist.InverseGamma, ("concentration", "rate"), _inverse_gamma),
    "exponential": (dist.Exponential, ("rate",), lambda value, scale: (1 / value,)),
    "beta": (dist.Beta, ("concentration1", "concentration0"), _beta),
    "dirichlet": (dist.Dirichlet, ("concentration",), _dirichlet),
    "laplace": (dist.Laplace, ("loc", "scale"), lambda value, scale: (value, scale / 2**0.5)),
}


class AutoSymmetric(AutoDirect):
    """A mean-field posterior with a family for each site, averaged over the group at every evaluation.

    A site that ``families`` names draws from a Gamma, Beta, Dirichlet … on its own values, whose natural parameters
    (``rule="geometric"``), mean parameters (``"arithmetic"``) or constructor's parameters (``"projection"``) are
    averaged; gradients are reparameterised. All other sites draw from a Normal in unconstrained coordinates, as in
    :class:`AutoSymmetricNormal`. It is invariant for every value of its parameters (``always_invariant``). A conjugate
    model has its exact posterior among these.

    :param model: a Pyro model.
    :param Symmetry symmetry: a representation for every latent site.
    :param dict families: by site ``"gamma"``, ``"inverse_gamma"``, ``"exponential"``, ``"lognormal"``, ``"beta"``,
        ``"dirichlet"``, ``"normal"`` or ``"laplace"`` (the last has no natural parameters: with ``"projection"`` only).
    :param str rule: ``"geometric"``, ``"arithmetic"`` or ``"projection"``.
    :param init_loc_fn: as in Pyro's autoguides: where the sites' means start, once they were averaged.
    :param init_scale: the initial standard deviation, relative to the value for positive sites, or a callable from a
        site.
    :param create_plates: as in Pyro's autoguides.
    :raises OptionError: for a family or a site that does not exist, or a family on another support.
    :raises SymmetryError: for a site without a representation, or one of the wrong shape.
    :raises ClosednessError: if an action does not keep a site's family.

    >>> import torch, pyro, pyro.distributions as dist, pyro_equivariance as pe
    >>> def model(counts):
    ...     with pyro.plate("towns", 3):
    ...         rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    ...     pyro.sample("counts", dist.Poisson(rate.sum()), obs=counts)
    >>> symmetry = pe.exchangeable(model, "towns", torch.tensor(4.0))
    >>> guide = pe.AutoSymmetric(model, symmetry, families={"rate": "gamma"})
    >>> guide(torch.tensor(4.0))["rate"].shape, guide.get_posterior("rate")
    (torch.Size([3]), Gamma(concentration: torch.Size([3]), rate: torch.Size([3])))
    """

    always_invariant = True

    def __init__(self, model, symmetry: Symmetry, families: Mapping[str, str] | None = None, rule: str = "geometric",
                 init_loc_fn=None, init_scale=0.1, create_plates=None):  # fmt: skip
        super().__init__(model, init_loc_fn, init_scale, create_plates)
        check_option("rule", rule, RULES)
        if not isinstance(families or {}, Mapping):
            raise OptionError(f"Expected families= to be a dict of families by site; got {families!r}.")
        self.symmetry, self.families, self.rule = needed(symmetry), dict(families or {}), rule
        for site, family in self.families.items():
            check_option(f"families[{site!r}]", family, FAMILIES)
        self._spaces: dict[str, Space] = {}

    def _setup_prototype(self, *args, **kwargs):
        super()._setup_prototype(*args, **kwargs)
        sites = dict(self._latents())
        if unknown := [name for name in self.families if name not in sites]:
            raise OptionError(
                f"Expected families= to name latent sites, {', '.join(map(repr, sites))}; got {unknown[0]!r}."
            )
        self.standard = PyroModule()
        for name, site in sites.items():
            kind, parameters, start = FAMILIES[self._family(name)]
            value = self._unconstrained(name, site) if name not in self.families else self._constrained(name, site)
            event_dim, scale = self._event_dims[name], self._first_scale(site, value)
            law = kind(*(first.expand_as(value) for first in start(value, scale)))
            self._check_closed(name, law)
            # From a start that is not invariant, an average may lie far from where its parameters are.
            projected = orbit_mean(law, self._action(name), "standard")
            for parameter, first in zip(parameters, family_of(law).coordinates(projected, "standard"), strict=True):
                first = _whole(first.contiguous(), site, event_dim)
                param = PyroParam(first, _constraint(parameter), event_dim)
                deep_setattr(self.standard, f"{parameter}.{name}", param)

    def _action(self, name: str) -> Representation:
        """The action on the coordinates of a site's family."""
        return self._spaces[name].rep if name in self._spaces else self.symmetry[name]

    def _family(self, name: str) -> str:
        return self.families.get(name, "normal")

    def _constrained(self, name: str, site: dict) -> Tensor:
        """The prototype's value, where the site's family is one on the site's own values."""
        kind = FAMILIES[self._family(name)][0]
        value, event_dim = site["value"].detach(), site["fn"].event_dim
        region = _region(kind.support)
        if _region(site["fn"].support) != region:
            raise OptionError(
                f"Expected a family on the support {site['fn'].support} of site {name!r}; got "
                f"{self._family(name)!r}, one of {region}. Leave it out for a Normal on unconstrained values."
            )
        check_shape(name, self.symmetry[name], value.shape, event_dim)
        check_plates(name, self.symmetry[name], event_dim, site["cond_indep_stack"])
        self._event_dims[name] = event_dim
        if region == "real numbers":
            return value
        return value.clamp(SMALLEST, None if region == "positive numbers" else 1 - SMALLEST)

    def _transform(self, name, site):
        self._spaces[name] = space_of(self.symmetry, name, site)
        return self._spaces[name].transform

    def _check_closed(self, name: str, law: dist.Distribution) -> None:
        rep = self._action(name)
        if not is_closed(law, rep):
            simplex = name not in self.families and _region(self.prototype_trace.nodes[name]["fn"].support)
            advice = f"Add families={{{name!r}: 'dirichlet'}}." if simplex == "a simplex" else family_of(law).advice
            raise ClosednessError(
                f"Expected site {name!r} to be moved by an action that keeps a {family_of(law).name}; got {rep}. "
                f"{advice}"
            )
        if self.rule != "projection" and not family_of(law).is_exponential:
            raise ClosednessError(
                f"Expected rule='projection' for site {name!r}, since a {family_of(law).name} has no natural "
                f"parameters; got rule={self.rule!r}."
            )

    def _free(self, name: str) -> dist.Distribution:
        """The law of a site before it is averaged, in the coordinates of its family."""
        kind, parameters, _ = FAMILIES[self._family(name)]
        return kind(*(attrgetter(f"{parameter}.{name}")(self.standard) for parameter in parameters))

    def get_posterior(self, name: str) -> dist.Distribution:
        """The averaged distribution that the guide draws the site from, in the site's own space."""
        self._need_prototype()
        if name in self.families:
            averaged = orbit_mean(self._free(name), self.symmetry[name], RULES[self.rule])
            return averaged.to_event(self._event_dims[name] - len(averaged.event_shape))
        averaged = orbit_mean(self._free(name), self._spaces[name].rep, RULES[self.rule])
        normal = averaged.to_event(self._event_dims[name])
        if is_real(self.prototype_trace.nodes[name]["fn"].support):
            return normal
        return dist.TransformedDistribution(normal, self._transforms[name])

    def forward(self, *args, **kwargs) -> dict[str, Tensor]:
        """Draw every latent site: a dict by site name."""
        self.initialize(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        return {n: self._draw(n, site, partial(self.get_posterior, n), plates) for n, site in self._latents()}

    @torch.no_grad()
    def quantiles(self, quantiles, *args, **kwargs) -> dict[str, Tensor]:
        """The given quantiles of every entry by itself, from 10,000 draws, along a new first axis."""
        found = {}
        for name, _ in self._latents():
            draws = self.get_posterior(name).sample((MANY,))
            found[name] = draws.quantile(torch.as_tensor(quantiles).to(draws).reshape(-1), 0)
        return found


def _region(support) -> str | None:
    """Which numbers a support holds, whether or not its ends belong to it."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support in (constraints.real, constraints.real_vector, constraints.simplex):
        return "a simplex" if support is constraints.simplex else "real numbers"
    low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    if low is not None and _all_are(low, 0):
        return "positive numbers" if high is None else "numbers from 0 to 1" if _all_are(high, 1) else None
    return None


def _all_are(bound: float | Tensor, number: float) -> bool:
    return bool((torch.as_tensor(bound) == number).all())


def _constraint(parameter: str):
    if parameter == "scale":
        return constraints.softplus_positive
    # Concentrations and rates range over orders of magnitude: their logarithm is what is trained.
    return constraints.real if parameter == "loc" else constraints.positive


def _whole(value: Tensor, site: dict, event_dim: int) -> Tensor:
    """Repeated for all of a plate of which the prototype saw a part."""
    for frame in site["cond_indep_stack"]:
        if frame.full_size not in (None, frame.size):
            value = periodic_repeat(value, frame.full_size, frame.dim - event_dim).contiguous()
    return value
