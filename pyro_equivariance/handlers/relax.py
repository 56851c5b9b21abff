"""A network's model whose weights are an equivariant part plus an asymmetric one, and the ELBO says how large it is."""

import itertools
from collections.abc import Callable, Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide.initialization import init_to_feasible
from pyro.infer.reparam.reparam import Reparam
from torch import Tensor

from ..errors import OptionError, check_option
from ..networks.bayesian import BayesianNetwork, NetworkModel, not_a_parameter
from ..representations import trivial
from ..symmetry import Symmetry
from .base import BASE
from .expand import ExpansionReparam, expanded_symmetry, site_expansions, widen

FREE = "_free"
ARRANGEMENTS = ("free", "gcnn", "row_rolled", "diagonal")
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
    """

    def __init__(self, model: BayesianNetwork, symmetry: Symmetry, arrangement: str, start: float):
        super().__init__()
        self.small, self.big = model, widen(model, symmetry)
        self.expansions = site_expansions(model, self.big, symmetry, arrangement)
        self.large = expanded_symmetry(self.big, symmetry, arrangement)
        self.stds = _prior_stds(self.big)
        self.layers = tuple(dict.fromkeys(map(layer_of, self.expansions)))
        self.start = start
        self.multipliers: dict[str, tuple[float, float]] = {}
        self._prefix = f"relaxed_{next(_NUMBERS)}.scale."  # parameters share one store, by name
        config = {name: RelaxedReparam(self._tied(name), self) for name in self.expansions}
        self._relaxed = poutine.reparam(self.big.with_prior(1.0), config=config)  # its priors are never used

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
        if self.multipliers:
            self._constrained()
        return self._relaxed(x, y)

    def scale(self, layer: str) -> Tensor:
        """``s`` of one layer, a parameter of the model."""
        first = next(iter(self.big.net.parameters())).new_tensor(self.start)
        return pyro.param(self._prefix + layer, first, constraint=constraints.softplus_positive)

    def scales(self) -> dict[str, float]:
        """``s`` of each layer as it is now: 0 is an equivariant layer, 1 an asymmetric part as wide as its prior."""
        return {layer: float(self.scale(layer).detach()) for layer in self.layers}

    def set(self, layer: str, value: float) -> None:
        """Put one scale at a value; at 0 it stays there."""
        check_option("layer", layer, self.layers)
        if not 0 <= value < float("inf"):
            raise OptionError(f"Expected a scale that is finite and at least 0; got {value}.")
        scale = torch.as_tensor(value).to(self.scale(layer).detach())
        pyro.get_param_store()[self._prefix + layer] = scale

    def asymmetric(self, name: str, free: Tensor) -> Tensor:
        """``s (1 − P) ε``: the free draw of a site less its mean over the group, times the scale of its layer."""
        return self.scale(layer_of(name)) * (free - self.large[name].mean(free))

    @torch.no_grad()
    def shares(self, guide: Callable, draws: int = 100) -> dict[str, float]:
        """The asymmetric share of each layer's weights, ``E‖W_asym‖² / (E‖W_eq‖² + E‖W_asym‖²)``, under a guide.

        The two parts are orthogonal, so the denominator is ``E‖W‖²``. The expectations are means over draws.

        :param guide: a guide of this model, initialised.
        :param int draws: at least 1.
        """
        if draws < 1:
            raise OptionError(f"Expected at least one posterior draw; got draws={draws}.")
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

    def _tied(self, name: str) -> ExpansionReparam:
        small = self.small.net.get_parameter(name)
        return ExpansionReparam(self.expansions[name], lambda: self.small.prior_of(name, small))

    def _constrained(self) -> None:
        """Adds ``−Σ λ (s − u)`` to the log joint density.

        It is the density of a constant: no latent, so no KL weight scales it; marked as deterministic, so augmentation
        does not; a point mass, so predictions leave it out.
        """
        loss = sum(multiplier * (self.scale(layer) - slack) for layer, (multiplier, slack) in self.multipliers.items())
        zero = torch.zeros_like(loss)
        fn = dist.Delta(zero, log_density=-loss)
        pyro.sample("constraint", fn, obs=zero, infer={"_deterministic": True})


def relax(model: BayesianNetwork, symmetry: Symmetry, arrangement: str = "free", start: float = 0.3) -> RelaxedNetwork:
    """The expanded network with an asymmetric part whose scale the ELBO learns, one number for each layer.

    Each weight and bias of the network with ``|G|`` times the hidden channels is

    ``W = W_eq + s_l (1 − P) ε``, ``ε ~ N(0, v)``,

    with ``W_eq`` the expansion of ``<site>_base`` (:func:`expand`), ``ε`` the site ``<site>_free`` of the large shape,
    ``v`` the variance of the large site's prior, and ``P`` the mean over the group, which leaves to ``W_eq`` what is
    equivariant. ``s_l`` is a parameter (``pyro.param``) that the weight and the bias of a layer share: relative to a
    prior without a symmetry, it is how much asymmetry the data want there. Its maximum of the ELBO is empirical Bayes;
    at 0 the model is the tied expansion. An asymmetry in one layer may serve for all: read the largest, and train at
    KL weight 1, below which noise passes for asymmetry.

    The draw is scaled, not the prior. Both have the same maximum of the ELBO, but under ``W_asym ~ N(0, s² v)`` a scale
    that the data do not want can only follow the guide's widths: with a likelihood of curvature ``h`` each round takes
    ``1/s²`` to ``1/s² + h``. Here a guide at the prior costs nothing at any ``s``, and the likelihood moves ``s``.

    :param BayesianNetwork model: the small network's model.
    :param Symmetry symmetry: the small network's, with trivial hidden features.
    :param str arrangement: ``"free"``, ``"gcnn"``, ``"row_rolled"`` or ``"diagonal"``.
    :param float start: where each scale starts, above 0.
    :raises OptionError: for another arrangement, a start that is not positive, a prior without a variance.

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
    check_option("arrangement", arrangement, ARRANGEMENTS)
    if not isinstance(model, BayesianNetwork):
        raise OptionError(f"Expected the pe.BayesianNetwork of the small network; got {type(model).__name__}.")
    if not (isinstance(start, (int, float)) and 0 < start < float("inf")):
        raise OptionError(
            f"Expected start to be a positive number, from which a scale can grow or fall; got {start!r}."
        )
    return RelaxedNetwork(model, symmetry, arrangement, float(start))


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
