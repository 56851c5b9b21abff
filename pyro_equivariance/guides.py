"""Drop-in guides: mean-field Normals that sample each site directly, free or invariant."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from operator import attrgetter

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.transforms import biject_to
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.initialization import InitMessenger, init_to_feasible
from pyro.infer.autoguide.utils import deep_setattr, helpful_support_errors
from pyro.nn import PyroModule, PyroParam
from pyro.ops.tensor_utils import periodic_repeat
from torch import Tensor

from .errors import OptionError, SymmetryError, check_option
from .handlers import ExpandedNetwork
from .networks.bayesian import NetworkModel
from .networks.expanded import SiteExpansion
from .symmetrize import RULES, average_site
from .symmetry import Symmetry

_NAMED: Counter[str] = Counter()


class AutoDirectNormal(AutoGuide):
    """Base of the guides that draw each site from a Normal of its own, without auxiliary sites.

    Since the site itself has a density, :class:`~pyro.infer.TraceMeanField_ELBO` has the analytic KL. A
    constrained site draws from the image of a Normal under ``biject_to(support)``.

    To implement one: :meth:`_start`, the parameters a site begins with, and :meth:`_normal`, the distribution that
    its parameters describe; set ``always_invariant``.

    :param model: a Pyro model.
    :param init_loc_fn: as in Pyro's autoguides; ``None`` starts a :class:`~pyro_equivariance.BayesianNetwork` at its
        network's values and any other model at :func:`~pyro.infer.autoguide.init_to_feasible`.
    :param init_scale: the initial standard deviation (in unconstrained space), or a callable from the prototype's site
        to a tensor of them, such as :class:`FractionOfPrior`.
    :param create_plates: as in Pyro's autoguides.
    """

    always_invariant = False

    def __init__(self, model, init_loc_fn: Callable | None = None, init_scale=0.1, create_plates=None):
        if not callable(init_scale) and not (isinstance(init_scale, (int, float)) and init_scale > 0):
            raise OptionError(f"Expected init_scale to be positive, or a callable from a site; got {init_scale!r}.")
        if init_loc_fn is None:
            init_loc_fn = model.init_loc_fn if isinstance(model, NetworkModel) else init_to_feasible
        super().__init__(InitMessenger(_continuous(init_loc_fn))(model), create_plates=create_plates)
        self._pyro_name = _own_name(type(self).__name__)
        self._init_scale = init_scale
        self._event_dims: dict[str, int] = {}

    def __setstate__(self, state):
        """A copy gets a name, and so parameters, of its own."""
        super().__setstate__(state)
        old, new = self._pyro_name, _own_name(type(self).__name__)
        for module in self.modules():
            module._pyro_name = new + module._pyro_name.removeprefix(old)

    @abstractmethod
    def _start(self, name: str, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def _normal(self, name: str, loc: Tensor, scale: Tensor) -> dist.Normal: ...

    def initialize(self, *args, **kwargs) -> None:
        """Make the parameters, with the model's arguments; otherwise the first call does."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)

    def _setup_prototype(self, *args, **kwargs):
        super()._setup_prototype(*args, **kwargs)
        self.locs, self.scales = PyroModule(), PyroModule()
        for name, site in self.prototype_trace.iter_stochastic_nodes():
            with helpful_support_errors(site):
                loc = biject_to(site["fn"].support).inv(site["value"].detach()).detach().clone()
            self._event_dims[name] = event_dim = site["fn"].event_dim + loc.ndim - site["value"].ndim
            loc, scale = self._start(name, loc, self._first_scale(site, loc))
            for frame in site["cond_indep_stack"]:
                if frame.full_size not in (None, frame.size):  # a subsampled plate: parameters for all of it
                    dim = frame.dim - event_dim
                    loc, scale = (periodic_repeat(t, frame.full_size, dim).contiguous() for t in (loc, scale))
            deep_setattr(self.locs, name, PyroParam(loc, constraints.real, event_dim))
            deep_setattr(self.scales, name, PyroParam(scale, constraints.softplus_positive, event_dim))

    def _first_scale(self, site: dict, loc: Tensor) -> Tensor:
        if callable(self._init_scale):
            return self._init_scale(site).detach().expand_as(loc).clone()
        return torch.full_like(loc, self._init_scale)

    def get_posterior(self, name: str) -> dist.Distribution:
        """The distribution that the guide draws the site from, in the site's own (constrained) space."""
        site = self.prototype_trace.nodes[name]
        normal = self._normal(name, attrgetter(name)(self.locs), attrgetter(name)(self.scales))
        normal = normal.to_event(self._event_dims[name])
        if _is_real(site["fn"].support):
            return normal
        return dist.TransformedDistribution(normal, biject_to(site["fn"].support))

    def forward(self, *args, **kwargs) -> dict[str, Tensor]:
        """Draw every latent site: a dict by site name."""
        self.initialize(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        draws = {}
        for name, site in self.prototype_trace.iter_stochastic_nodes():
            with ExitStack() as stack:
                for frame in site["cond_indep_stack"]:
                    stack.enter_context(plates[frame.name])
                draws[name] = pyro.sample(name, self.get_posterior(name))
        return draws

    @torch.no_grad()
    def median(self, *args, **kwargs) -> dict[str, Tensor]:
        """The median of every site."""
        return {name: q[0] for name, q in self.quantiles([0.5]).items()}

    @torch.no_grad()
    def quantiles(self, quantiles, *args, **kwargs) -> dict[str, Tensor]:
        """The given quantiles of every site, along a new first axis."""
        results = {}
        for name, site in self.prototype_trace.iter_stochastic_nodes():
            normal = self._normal(name, attrgetter(name)(self.locs), attrgetter(name)(self.scales))
            levels = torch.as_tensor(quantiles).to(normal.loc).reshape(-1, *[1] * normal.loc.ndim)
            results[name] = biject_to(site["fn"].support)(normal.icdf(levels))
        return results


@dataclass(frozen=True)
class FractionOfPrior:
    """For ``init_scale``: each site starts with this fraction of its prior's standard deviation.

    >>> import torch, pyro_equivariance as pe
    >>> model = pe.BayesianNetwork(torch.nn.Linear(4, 3), prior=2.0)
    >>> guide = pe.AutoMeanFieldNormal(model, init_scale=pe.FractionOfPrior(0.1))
    >>> guide.initialize(torch.zeros(1, 4), torch.zeros(1).long())
    >>> round(float(guide.get_posterior("bias").base_dist.scale[0].detach()), 4)
    0.2
    """

    fraction: float

    def __call__(self, site: dict) -> Tensor:
        return self.fraction * site["fn"].stddev


class AutoMeanFieldNormal(AutoDirectNormal):
    """Independent Normals: ``θ_i ~ N(μ_i, σ_i²)`` for every entry of every site.

    Like :class:`~pyro.infer.autoguide.AutoNormal`, but each site is sampled directly, so that the KL to a Normal
    prior is analytic under :class:`~pyro.infer.TraceMeanField_ELBO`. It is ``always_invariant`` on the model of
    :func:`~pyro_equivariance.handlers.expand`, all of whose draws are equivariant networks.

    >>> import torch, pyro_equivariance as pe
    >>> guide = pe.AutoMeanFieldNormal(pe.BayesianNetwork(torch.nn.Linear(4, 3)))
    >>> guide(torch.zeros(2, 4), torch.zeros(2).long())["weight"].shape
    torch.Size([3, 4])
    """

    def __init__(self, model, init_loc_fn=None, init_scale=0.1, create_plates=None):
        super().__init__(model, init_loc_fn, init_scale, create_plates)
        self.always_invariant = isinstance(model, ExpandedNetwork) and model.is_equivariant

    def _start(self, name, loc, scale):
        return loc, scale

    def _normal(self, name, loc, scale):
        return dist.Normal(loc, scale)


class AutoSymmetricNormal(AutoDirectNormal):
    """A mean-field Normal averaged over the group at every evaluation: invariant for every value of its parameters.

    Its parameters are those of :class:`AutoMeanFieldNormal`; the site draws from their
    :func:`~pyro_equivariance.average`. Where the model is compatible with the symmetry, its unaugmented ELBO
    equals the fully augmented one, in value and gradient (:attr:`always_invariant`), so it trains on upright data.

    :param model: a Pyro model.
    :param Symmetry symmetry: a representation for every latent site.
    :param str rule: ``"geometric"``, ``"arithmetic"`` or ``"projection"``.
    :param init_loc_fn: as in Pyro's autoguides; its values are projected onto the invariant ones and brought back to
        their size.
    :param init_scale: the initial standard deviation, or a callable from a site.
    :raises SymmetryError: for a site without a representation, or one of the wrong shape.
    :raises ClosednessError: if the action does not keep a mean-field Normal.

    >>> import torch, pyro_equivariance as pe
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 2))
    >>> sym = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 3, 3))
    >>> guide = pe.AutoSymmetricNormal(pe.BayesianNetwork(net), sym)
    >>> guide.initialize(torch.zeros(1, 1, 3, 3), torch.zeros(1).long())
    >>> loc = guide.get_posterior("1.weight").base_dist.loc
    >>> torch.allclose(loc, sym["1.weight"].act(1, loc))
    True
    """

    always_invariant = True

    def __init__(self, model, symmetry: Symmetry, rule: str = "geometric", init_loc_fn=None, init_scale=0.1,
                 create_plates=None):  # fmt: skip
        super().__init__(model, init_loc_fn, init_scale, create_plates)
        check_option("rule", rule, RULES)
        self.symmetry, self.rule = symmetry, rule

    def _start(self, name, loc, scale):
        self._check_site(name)
        invariant = self.symmetry[name].mean(loc)
        size = invariant.norm()
        return invariant * (loc.norm() / size if size > 0 else 1.0), scale

    def _normal(self, name, loc, scale):
        q = dist.Normal(loc, scale).to_event(self._event_dims[name])
        averaged = average_site(name, q, self.symmetry, self.rule)
        return averaged.base_dist if self._event_dims[name] else averaged

    def _check_site(self, name: str) -> None:
        support = self.prototype_trace.nodes[name]["fn"].support
        if not (_is_real(support) or (self.symmetry[name].is_permutation and _is_elementwise(support))):
            raise SymmetryError(
                f"Expected site {name!r} to be real, or moved by permutations of independently constrained entries; "
                f"its support is {support} and its action {self.symmetry[name]}. Reparametrize it as a real site."
            )


class AutoExpandedNormal(AutoDirectNormal):
    """A mean-field Normal on an expanded network whose means and scales are expansions of small ones.

    The entries are drawn independently, so single draws are not equivariant, but the law is invariant for every
    value of the parameters (unless an arrangement is not equivariant).

    :param model: the expanded network's model.
    :param dict expansions: a :class:`~pyro_equivariance.networks.expanded.SiteExpansion` for each site.
    :param dict locs: the initial base means by site.
    :param dict scales: the initial base standard deviations by site.
    """

    def __init__(self, model, expansions: Mapping[str, SiteExpansion], locs, scales):
        super().__init__(model)
        self._expansions, self._base_locs, self._base_scales = dict(expansions), dict(locs), dict(scales)
        self.always_invariant = all(e.is_equivariant for e in self._expansions.values())

    def _start(self, name, loc, scale):
        return self._base_locs[name].clone(), self._base_scales[name].clone()

    def _normal(self, name, loc, scale):
        expansion = self._expansions[name]
        return dist.Normal(expansion.expand(loc), expansion.expand_scale(scale))


def _own_name(kind: str) -> str:
    """The class's name, numbered from the second guide of a class on.

    Pyro keeps parameters in one store by name, so two guides of one name would share theirs.
    """
    _NAMED[kind] += 1
    return kind if _NAMED[kind] == 1 else f"{kind}_{_NAMED[kind]}"


def _continuous(init_loc_fn: Callable) -> Callable:
    """``init_loc_fn`` once the site was seen to be continuous, before anything else fails on one that is not."""

    def start(site: dict) -> Tensor:
        if site["fn"].support.is_discrete:
            raise SymmetryError(
                f"Expected continuous latent sites; {site['name']!r} is discrete. If it is the observation, pass it "
                f"when the guide is first called (guide.initialize(x, y)); otherwise enumerate it out, poutine.block."
            )
        return init_loc_fn(site)

    return start


def _is_real(support) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real


def _is_elementwise(support) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support.event_dim == 0
