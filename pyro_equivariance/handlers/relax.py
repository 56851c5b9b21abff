"""A network's model whose weights are an equivariant part plus an asymmetric one, and the ELBO says how large it is."""

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Mapping
from numbers import Real

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide.initialization import init_to_feasible
from pyro.infer.reparam.reparam import Reparam
from pyro.poutine.messenger import unwrap
from torch import Tensor, nn

from ..errors import OptionError, SymmetryError, check_option
from ..networks.bayesian import BayesianNetwork, NetworkModel, not_a_parameter
from ..representations import trivial
from ..symmetry import Symmetry
from .base import BASE, add_log_density
from .expand import ExpansionReparam, expanded_symmetry, site_expansions, widen

FREE = "_free"
ARRANGEMENT = "free"  # the one whose expansions are all that P leaves; less would be out of reach of both parts
POSITIVE = torch.distributions.transform_to(constraints.softplus_positive)
_NUMBERS = itertools.count(1)


class RelaxedReparam(Reparam):
    """Adds to the tied expansion of a site the asymmetric part ``s (1 − P) ε``, with ``ε`` the site ``<site>_free``.

    :param ExpansionReparam tied: draws ``<site>_base`` and expands it.
    :param RelaxedNetwork network: knows the scale ``s``, the projection ``P`` and the prior of ``ε``.
    """

    def __init__(self, tied: ExpansionReparam, network: "RelaxedNetwork"):
        self.tied, self.network = tied, network

    def apply(self, msg):
        name, shape = msg["name"], msg["fn"].event_shape
        equivariant = self.tied.apply(msg)["value"]
        std = self.network.stds[name].to(equivariant)
        free = pyro.sample(name + FREE, dist.Normal(torch.zeros_like(std), std).expand(shape).to_event(len(shape)))
        value = equivariant + self.network.asymmetric(name, free)
        fn = dist.Delta(value, event_dim=len(shape)).mask(False)
        return {"fn": fn, "value": value, "is_observed": True}


class RelaxedNetwork(NetworkModel):
    """The model that :func:`relax` returns: ``model(x, y=None)``, its sites ``<site>_base`` and ``<site>_free``.

    ``big`` is the wide network's model without a tie; ``symmetry`` moves the free sites as the wide network's weights
    and leaves the bases, so the model is compatible with it and its prior invariant; ``multipliers`` has ``(λ, u)`` of
    each layer that ``ConstrainRelaxation`` holds, and is empty otherwise.

    The scales are a parameter of this module, ``unconstrained_scales`` ``(layers,)``, so ``state_dict()`` has them and
    Pyro's store, which only trains them, may be cleared. Copies, and what was pickled, learn by themselves.
    """

    def __init__(self, model: BayesianNetwork, symmetry: Symmetry, start: float):
        super().__init__()
        self.small, self.big = model, widen(model, symmetry)
        self.expansions = site_expansions(model, self.big, symmetry, ARRANGEMENT)
        self.large = expanded_symmetry(self.big, symmetry, ARRANGEMENT)
        self.stds = _prior_stds(self.big)
        self.layers = tuple(dict.fromkeys(map(layer_of, self.expansions)))
        self.multipliers: dict[str, tuple[float, float]] = {}
        self.param_name = self._new_name()
        first = next(self.big.net.parameters()).new_full((len(self.layers),), start)
        self.unconstrained_scales = nn.Parameter(POSITIVE.inv(first))
        # Its priors are never used; in a tuple, for its network is registered with ``big`` already.
        self._untied = (self.big.with_prior(1.0),)

    def __getstate__(self):
        self.unconstrained_scales.__dict__.pop("unconstrained", None)  # the store's weak reference, which none can keep
        return self.__dict__.copy()

    def __setstate__(self, state):
        super().__setstate__(state)
        self.param_name = self._new_name()

    def _new_name(self) -> str:
        """Parameters share one store, by name."""
        return f"{type(self).__name__}_{next(_NUMBERS)}.unconstrained_scales"

    @property
    def symmetry(self) -> Symmetry:
        """How the group moves the latent sites, the weights made of them, inputs and outputs."""
        sites = {name + part: self.large[name] for name in self.expansions for part in ("", FREE)}
        sites |= {name + BASE: trivial(self.large.group, e.base_shape) for name, e in self.expansions.items()}
        return Symmetry(self.large.group, sites, self.large.inputs, self.large.outputs)

    @property
    def is_equivariant(self) -> bool:
        """Whether every draw is an equivariant network now: whether all scales are 0."""
        return not any(self.scales().values())

    def forward(self, x, y=None):
        self._register()
        if self.multipliers:
            self._constrained()
        with poutine.reparam(config={name: RelaxedReparam(self._tied(name), self) for name in self.expansions}):
            return self._untied[0](x, y)

    def _register(self) -> None:
        """The scales become a parameter of the Pyro model, unless they were frozen."""
        own, name, store = self.unconstrained_scales, self.param_name, pyro.get_param_store()
        if not own.requires_grad:
            return
        if name in store and store[name].unconstrained() is not own:
            del store[name]  # of a store read from a file, which would be trained instead
        pyro.param(name, own)

    def scale(self, layer: str) -> Tensor:
        """``s`` of one layer, differentiable."""
        check_option("layer", layer, self.layers)
        return POSITIVE(self.unconstrained_scales[self.layers.index(layer)])

    def scales(self) -> dict[str, float]:
        """``s`` of each layer as it is now: 0 is an equivariant layer, 1 an asymmetric part as wide as its prior."""
        return {layer: float(self.scale(layer).detach()) for layer in self.layers}

    def set(self, layer: str, value: float) -> None:
        """Put one scale at a value; at 0 it stays there."""
        check_option("layer", layer, self.layers)
        scale = as_number(value)
        if not 0 <= scale < math.inf:
            raise OptionError(f"Expected a scale that is finite and at least 0; got {value!r}.")
        with torch.no_grad():
            entry = self.unconstrained_scales[self.layers.index(layer)]
            entry.copy_(POSITIVE.inv(torch.full_like(entry, scale)))

    def asymmetric(self, name: str, free: Tensor) -> Tensor:
        """``s (1 − P) ε``: the free draw of a site less its mean over the group, times the scale of its layer."""
        return self.scale(layer_of(name)) * (free - self.large[name].mean(free))

    @torch.no_grad()
    def shares(self, guide: Callable, draws: int = 100) -> dict[str, float]:
        """The asymmetric share of each layer's weights, ``E‖W_asym‖² / (E‖W_eq‖² + E‖W_asym‖²)``, under a guide.

        The two parts are orthogonal, so the denominator is ``E‖W‖²``. The expectations are means over draws.

        :param guide: a guide of this model, augmented or not, initialised.
        :param int draws: at least 1.
        :raises SymmetryError: for a guide of another model, or one that has no parameters yet.
        """
        if draws < 1:
            raise OptionError(f"Expected at least one posterior draw; got draws={draws}.")
        self._check_guide(guide)
        sums = {layer: torch.zeros(2) for layer in self.layers}
        for _ in range(draws):
            values = poutine.block(guide)()
            for name, expansion in self.expansions.items():
                parts = expansion.expand(values[name + BASE]), self.asymmetric(name, values[name + FREE])
                sums[layer_of(name)] += torch.stack([part.square().sum() for part in parts]).to(torch.zeros(2))
        return {
            layer: float(asymmetric / (equivariant + asymmetric)) for layer, (equivariant, asymmetric) in sums.items()
        }

    def init_loc_fn(self, site: dict) -> Tensor:
        """Bases as in :func:`~pyro_equivariance.handlers.expand`; free parts at 0."""
        name = site["name"].removesuffix(BASE).removesuffix(FREE)
        if name not in self.expansions:
            raise not_a_parameter(name)
        if name == site["name"]:
            return init_to_feasible(site)  # a deterministic site, which is asked for before it gets its value
        large = self.big.net.get_parameter(name).detach()
        if site["name"].endswith(FREE):
            return torch.zeros_like(large)
        return self.expansions[name].fresh(self.small.net.get_parameter(name), large).detach().clone()

    def learned(self) -> dict[str, float]:
        """What the model learns by itself: as the small network's model, and the scale of each layer."""
        return self.small.learned() | {f"relaxed.{layer}": scale for layer, scale in self.scales().items()}

    def load_learned(self, values: Mapping[str, float]) -> None:
        """Put these values back."""
        own = {f"relaxed.{layer}": layer for layer in self.layers}
        self.small.load_learned({name: value for name, value in values.items() if name not in own})
        for name, layer in own.items():
            self.set(layer, values[name])

    def _check_guide(self, guide: Callable) -> None:
        while hasattr(guide, "guide"):
            guide = guide.guide  # what antithetic and SymmetrizedGuide wrap
        if getattr(guide, "prototype_trace", self) is None:
            raise SymmetryError(
                "Expected a guide with parameters, for the shares under it; call guide.initialize(x, y) or train it."
            )
        models = getattr(guide, "_model", None)  # None for functions, and for guides that were pickled
        if models is not None and _unwrapped(models[0]) is not self:
            raise SymmetryError(
                "Expected a guide of this model, for the shares under it; its model is another. Make one for this "
                "model, or bring it here: pe.save(path, guide, args), pe.load(path, model)."
            )

    def _tied(self, name: str) -> ExpansionReparam:
        prior = functools.partial(self.small.prior_of, name, self.small.net.get_parameter(name))
        return ExpansionReparam(self.expansions[name], prior)

    def _constrained(self) -> None:
        """Adds ``−Σ λ (s − u)`` to the log joint density."""
        loss = sum(multiplier * (self.scale(layer) - slack) for layer, (multiplier, slack) in self.multipliers.items())
        add_log_density("constraint", -loss)


def relax(model: BayesianNetwork, symmetry: Symmetry, start: float = 0.3) -> RelaxedNetwork:
    """The expanded network with an asymmetric part whose scale the ELBO learns, one number for each layer.

    Each weight and bias of the network with ``|G|`` times the hidden channels is

    ``W = W_eq + s_l (1 − P) ε``, ``ε ~ N(0, v)``,

    with ``W_eq`` the free expansion of ``<site>_base`` (:func:`expand`), ``ε`` the site ``<site>_free`` of the large
    shape, ``v`` the variance of the large site's prior, and ``P`` the mean over the group, which leaves to ``W_eq``
    what is equivariant; other arrangements of an expansion make less than that, and neither part would reach the rest.
    ``v`` is constant: with ``prior="learned"`` it stays where that prior starts.

    ``s_l`` is a parameter that the weight and the bias of a layer share: relative to a prior without a symmetry, it is
    how much the ELBO gains from weights of that layer that are not tied. Its maximum of the ELBO is empirical Bayes; at
    0 the model is the tied expansion. The gain may be an asymmetry of the data, or capacity that the small network
    lacks. To tell them apart, double its units until the scales stop changing, and compare with the same network on the
    data moved at random by the group, whose scales are what capacity and training alone make of them. An asymmetry in
    one layer may serve for all: read the largest, and train at KL weight 1, below which noise passes for asymmetry.

    The draw is scaled, not the prior. Both have the same maximum of the ELBO, but under ``W_asym ~ N(0, s² v)`` a scale
    that the data do not want can only follow the guide's widths: with a likelihood of curvature ``h`` each round takes
    ``1/s²`` to ``1/s² + h``. Here a guide at the prior costs nothing at any ``s``, and the likelihood moves ``s``.

    :param BayesianNetwork model: the small network's model.
    :param Symmetry symmetry: the small network's, with trivial hidden features.
    :param float start: where each scale starts, above 0. Training that is short for it ends near it.
    :raises OptionError: for a start that is not a positive number, a prior without a variance.

    Source: Finzi, Benton, Wilson (2021) "Residual pathway priors for soft equivariance constraints", arXiv:2112.01388,
    for the sum of two parts with priors of their own.

    >>> import torch, pyro_equivariance as pe
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2), torch.nn.Tanh(), torch.nn.Linear(2, 3))
    >>> symmetry = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 4, 4), hidden="trivial")
    >>> model = pe.handlers.relax(pe.BayesianNetwork(net), symmetry)
    >>> model(torch.zeros(5, 1, 4, 4)).shape
    torch.Size([5, 3])
    >>> {layer: round(scale, 4) for layer, scale in model.scales().items()}
    {'1': 0.3, '3': 0.3}
    """
    if not isinstance(model, BayesianNetwork):
        raise OptionError(f"Expected the pe.BayesianNetwork of the small network; got {type(model).__name__}.")
    if not 0 < as_number(start) < math.inf:
        raise OptionError(
            f"Expected start to be a positive number, from which a scale can grow or fall; got {start!r}."
        )
    return RelaxedNetwork(model, symmetry, as_number(start))


def as_number(value) -> float:
    """A real number of Python or NumPy, or a tensor without axes, as a float; NaN for anything else.

    >>> as_number(2), as_number(True), as_number("2")
    (2.0, nan, nan)
    """
    if isinstance(value, Tensor) and value.ndim == 0:
        value = value.item()
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan


def layer_of(site: str) -> str:
    """The module that a parameter belongs to; empty for the network itself.

    >>> layer_of("0.conv.weight")
    '0.conv'
    """
    return site.rpartition(".")[0]


def _prior_stds(big: BayesianNetwork) -> dict[str, Tensor]:
    """The standard deviation of each large site's prior, entry by entry; of learned scales where they start."""
    with pyro.get_param_store().scope(), torch.no_grad():
        stds = {name: big.prior_of(name, p).variance.sqrt() for name, p in big.net.named_parameters()}
    for name, std in stds.items():
        if not bool(std.isfinite().all()):
            raise OptionError(f"Expected priors with a finite variance; that of site {name!r} has none. Use a Normal.")
    return stds


def _unwrapped(model: Callable) -> Callable:
    """The model that handlers were wrapped round."""
    while (inner := inspect.unwrap(unwrap(model))) is not model:
        model = inner
    return model
