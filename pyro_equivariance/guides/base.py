"""What the guides share: a name and parameters of their own, where they start, and the spaces of their sites."""

import copy
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from operator import attrgetter

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.initialization import InitMessenger, init_to_feasible
from pyro.infer.autoguide.utils import deep_setattr, helpful_support_errors
from pyro.nn import PyroModule, PyroParam
from pyro.ops.tensor_utils import periodic_repeat
from torch import Tensor
from torch.distributions import Transform

from ..distributions import joint_representation
from ..errors import OptionError, SymmetryError
from ..groups import Group
from ..networks.bayesian import NetworkModel
from ..representations import Representation, trivial
from ..spaces import Space, entrywise, unconstraining
from ..symmetry import Symmetry

MANY = 10_000
_NAMED: Counter[str] = Counter()


class AutoDirect(AutoGuide):
    """Base of all guides here.

    Each is named on its own, so that two of one class do not share parameters in Pyro's store; a copy gets a name,
    and so parameters, of its own.

    :param model: a Pyro model.
    :param init_loc_fn: as in Pyro's autoguides; ``None`` starts a :class:`~pyro_equivariance.BayesianNetwork` at its
        network's values and any other model where Pyro's guide of that kind does.
    :param init_scale: the initial standard deviation (in unconstrained space), or a callable from the prototype's site
        to a tensor of them, such as :class:`FractionOfPrior`.
    :param create_plates: as in Pyro's autoguides.
    """

    always_invariant = False
    _usual_start = staticmethod(init_to_feasible)

    def __init__(self, model, init_loc_fn: Callable | None = None, init_scale=0.1, create_plates=None):
        if not callable(init_scale) and not (isinstance(init_scale, (int, float)) and init_scale > 0):
            raise OptionError(f"Expected init_scale to be positive, or a callable from a site; got {init_scale!r}.")
        if init_loc_fn is None:
            init_loc_fn = _within_support(model.init_loc_fn) if isinstance(model, NetworkModel) else self._usual_start
        super().__init__(InitMessenger(_continuous(init_loc_fn))(model), create_plates=create_plates)
        self._pyro_name = _own_name(type(self).__name__)
        self._init_scale = init_scale
        self._event_dims: dict[str, int] = {}
        self._transforms: dict[str, Transform] = {}

    def __getstate__(self):
        """As Pyro's, without the model, which need not pickle; but this guide keeps its own."""
        model, master = self._model, self.master
        try:
            return dict(super().__getstate__())
        finally:
            self._model, self.master = model, master

    def __deepcopy__(self, memo):
        """A guide for the same model."""
        memo[id(self)] = double = type(self).__new__(type(self))
        double.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        double._model = self._model
        return double

    def __setstate__(self, state):
        """A copy gets a name, and so parameters, of its own."""
        super().__setstate__(state)
        old, new = self._pyro_name, _own_name(type(self).__name__)
        for module in self.modules():
            module._pyro_name = new + module._pyro_name.removeprefix(old)

    def initialize(self, *args, **kwargs) -> None:
        """Make the parameters, with the model's arguments; otherwise the first call does."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)

    def _setup_prototype(self, *args, **kwargs):
        if self._model is None:
            raise SymmetryError(
                "Expected a guide with its model, which pickling leaves out. Call guide.initialize(*args) before the "
                "guide is pickled."
            )
        super()._setup_prototype(*args, **kwargs)
        self._check_latents()

    def _check_latents(self) -> None:
        if not list(self.prototype_trace.iter_stochastic_nodes()):
            raise SymmetryError(
                f"Expected a model with latent sites for {type(self).__name__}; got none: all of them are observed."
            )

    def _latents(self):
        """``(name, site)`` of the prototype's latent sites."""
        self._need_prototype()
        return self.prototype_trace.iter_stochastic_nodes()

    def _need_prototype(self) -> None:
        if self.prototype_trace is None:
            raise SymmetryError(
                f"Expected {type(self).__name__} to be initialized, so that it has parameters. Call "
                f"guide.initialize(*args) with the model's arguments first."
            )

    def _unconstrained(self, name: str, site: dict) -> Tensor:
        """The prototype's value in unconstrained coordinates; notes the site's transform and number of event axes."""
        with helpful_support_errors(site):
            transform = self._transform(name, site)
            loc = transform.inv(site["value"].detach()).detach().clone()
        self._transforms[name] = transform
        self._event_dims[name] = site["fn"].event_dim + loc.ndim - site["value"].ndim
        return loc

    def _transform(self, name: str, site: dict) -> Transform:
        return unconstraining(site["fn"].support)

    def _first_scale(self, site: dict, loc: Tensor) -> Tensor:
        if callable(self._init_scale):
            return self._init_scale(site).detach().expand_as(loc).clone()
        return torch.full_like(loc, self._init_scale)

    def _draw(self, name: str, site: dict, law: Callable[[], dist.Distribution], plates) -> Tensor:
        """Draw a site in its plates; ``law`` is called inside them, where parameters are subsampled."""
        with ExitStack() as stack:
            for frame in site["cond_indep_stack"]:
                stack.enter_context(plates[frame.name])
            return pyro.sample(name, law())

    @torch.no_grad()
    def median(self, *args, **kwargs) -> dict[str, Tensor]:
        """The median of every site."""
        return {name: q[0] for name, q in self.quantiles([0.5]).items()}


class AutoDirectNormal(AutoDirect):
    """Base of the guides that draw each site from a Normal of its own, without auxiliary sites.

    Since the site itself has a density, :class:`~pyro.infer.TraceMeanField_ELBO` has the analytic KL. A
    constrained site draws from the image of a Normal under ``biject_to(support)``.

    To implement one: :meth:`_start`, the parameters a site begins with, and :meth:`_normal`, the distribution that
    its parameters describe; set ``always_invariant``.
    """

    @abstractmethod
    def _start(self, name: str, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def _normal(self, name: str, loc: Tensor, scale: Tensor) -> dist.Normal: ...

    def _setup_prototype(self, *args, **kwargs):
        super()._setup_prototype(*args, **kwargs)
        self.locs, self.scales = PyroModule(), PyroModule()
        for name, site in self._latents():
            loc = self._unconstrained(name, site)
            event_dim = self._event_dims[name]
            loc, scale = self._start(name, loc, self._first_scale(site, loc))
            for frame in site["cond_indep_stack"]:
                if frame.full_size not in (None, frame.size):  # a subsampled plate: parameters for all of it
                    dim = frame.dim - event_dim
                    loc, scale = (periodic_repeat(t, frame.full_size, dim).contiguous() for t in (loc, scale))
            deep_setattr(self.locs, name, PyroParam(loc, constraints.real, event_dim))
            deep_setattr(self.scales, name, PyroParam(scale, constraints.softplus_positive, event_dim))

    def _site_normal(self, name: str) -> dist.Normal:
        """The Normal of a site in unconstrained coordinates."""
        return self._normal(name, attrgetter(name)(self.locs), attrgetter(name)(self.scales))

    def get_posterior(self, name: str) -> dist.Distribution:
        """The distribution that the guide draws the site from, in the site's own (constrained) space."""
        self._need_prototype()
        return self._in_its_space(name, self._site_normal(name))

    def _in_its_space(self, name: str, normal: dist.Normal) -> dist.Distribution:
        normal = normal.to_event(self._event_dims[name])
        if is_real(self.prototype_trace.nodes[name]["fn"].support):
            return normal
        return dist.TransformedDistribution(normal, self._transforms[name])

    def _laws(self) -> dict[str, Callable[[], dist.Distribution]]:
        """For each site, what makes its distribution once its plates are entered."""
        return {name: partial(self.get_posterior, name) for name, _ in self._latents()}

    def forward(self, *args, **kwargs) -> dict[str, Tensor]:
        """Draw every latent site: a dict by site name."""
        self.initialize(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        laws = self._laws()
        return {name: self._draw(name, site, laws[name], plates) for name, site in self._latents()}

    @torch.no_grad()
    def quantiles(self, quantiles, *args, **kwargs) -> dict[str, Tensor]:
        """The given quantiles of every entry, along a new first axis; of a simplex those of 10,000 draws."""
        results = {}
        for name, _ in self._latents():
            normal = self._site_normal(name)
            levels = torch.as_tensor(quantiles).to(normal.loc).reshape(-1)
            if entrywise(self._transforms[name]).domain.event_dim > 0:
                results[name] = self.get_posterior(name).sample((MANY,)).quantile(levels, 0)
            else:
                results[name] = self._transforms[name](normal.icdf(levels.reshape(-1, *[1] * normal.loc.ndim)))
        return results


def joint_action(group: Group, spaces: Mapping[str, Space], shapes: Mapping[str, torch.Size]) -> Representation:
    """The action on all sites as one vector; axes that a site's representation leaves out do not move."""
    sites = {}
    for name, space in spaces.items():
        outer = shapes[name][: len(shapes[name]) - len(space.rep.event_shape)]
        sites[name] = trivial(group, outer) * space.rep if outer else space.rep
    return joint_representation(Symmetry(group, sites))


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


def _within_support(init_loc_fn: Callable) -> Callable:
    """A network's own value, where the prior allows it."""

    def start(site: dict) -> Tensor:
        value = init_loc_fn(site)
        return value if bool(site["fn"].support.check(value).all()) else init_to_feasible(site)

    return start


def is_subsampled(site: dict) -> bool:
    """Whether a site lies in a plate of which the model sees a part."""
    return any(frame.full_size not in (None, frame.size) for frame in site["cond_indep_stack"])


def is_real(support) -> bool:
    """Whether a constraint is none."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support in (constraints.real, constraints.real_vector)


@contextmanager
def own_randomness(seed: int):
    """Random numbers of a seed of their own; afterwards those before go on."""
    state = pyro.util.get_rng_state()
    pyro.set_rng_seed(seed)
    try:
        yield
    finally:
        pyro.util.set_rng_state(state)
