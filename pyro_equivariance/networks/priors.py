"""Priors of a network's parameters: what each site is drawn from before any data."""

import fnmatch
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..errors import OptionError
from .layers import NORMALIZATIONS

Prior = Callable[[str, Tensor], dist.Distribution]
_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class FanIn:
    """The prior ``N(0, gain² / fan_in)`` for weights, ``N(0, bias²)`` for biases.

    Activations then keep their size from layer to layer, whatever the width; it is invariant under every action
    on channels and space. The gains of a normalisation are ``N(1, bias²)``.

    :param float gain: ``√2`` keeps the size through ReLU layers.
    :param float bias: standard deviation of the biases.

    >>> import torch
    >>> FanIn(gain=2.0)("conv.weight", torch.zeros(8, 4, 3, 3)).base_dist.scale[0, 0, 0, 0] == 2 / 36**0.5
    tensor(True)
    """

    gain: float = math.sqrt(2)
    bias: float = 0.1

    def __call__(self, name: str, parameter: Tensor) -> dist.Distribution:
        std = self.gain / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else self.bias
        return normal(std, parameter)

    def of_gains(self, name: str, parameter: Tensor) -> dist.Distribution:
        """The prior of a normalisation's gains."""
        return normal(self.bias, parameter, loc=1.0)


@dataclass(frozen=True)
class Scalar:
    """The prior ``N(0, scale²)`` for every parameter; ``N(1, scale²)`` for the gains of a normalisation."""

    scale: float = 1.0

    def __call__(self, name: str, parameter: Tensor) -> dist.Distribution:
        return normal(self.scale, parameter)

    def of_gains(self, name: str, parameter: Tensor) -> dist.Distribution:
        """The prior of a normalisation's gains."""
        return normal(self.scale, parameter, loc=1.0)


class LearnedScale:
    """Empirical Bayes: ``N(0, s²)`` with one scale ``s`` for each site, which the ELBO learns with the guide.

    At its optimum ``s²`` is the mean of ``μ² + σ²`` over the site's entries; it is the same for all of them, so the
    prior stays invariant under signed permutations of entries. The scales are parameters of the model
    (``pyro.param``), so SVI and :func:`~pyro_equivariance.fit` train them.

    :param start: the prior that each scale starts from: a number, ``"fan_in"`` or a callable
        ``(name, parameter) -> distribution``.

    Source: MacKay (1992) "Bayesian interpolation" (the evidence framework); here with the ELBO for the evidence.

    >>> import torch, pyro_equivariance as pe
    >>> prior = pe.LearnedScale(0.5)
    >>> _ = pe.BayesianNetwork(torch.nn.Linear(4, 3), prior=prior)(torch.zeros(2, 4))
    >>> {site: round(scale, 4) for site, scale in prior.scales().items()}
    {'weight': 0.5, 'bias': 0.5}
    """

    def __init__(self, start="fan_in"):
        self.start = as_prior(start)
        self._prefix = f"prior_scale_{next(_NUMBERS)}."  # parameters share one store, by name

    def __call__(self, name: str, parameter: Tensor) -> dist.Distribution:
        return self._law(self.start(name, parameter), name, parameter)

    def of_gains(self, name: str, parameter: Tensor) -> dist.Distribution:
        """The prior of a normalisation's gains."""
        return self._law(gain_prior(self.start)(name, parameter), name, parameter)

    def _law(self, start: dist.Distribution, name: str, parameter: Tensor) -> dist.Distribution:
        first = start.variance.mean().sqrt().detach()
        scale = pyro.param(self._prefix + name, first, constraint=constraints.softplus_positive)
        return dist.Normal(start.mean, scale).to_event(parameter.ndim)

    def __repr__(self) -> str:
        return f"LearnedScale(start={self.start!r})"

    def scales(self) -> dict[str, float]:
        """The scale of each site as it is now."""
        store = pyro.get_param_store()
        own = [name for name in store if name.startswith(self._prefix)]
        return {name.removeprefix(self._prefix): float(store[name].detach()) for name in own}

    def set(self, site: str, value: float) -> None:
        """Put one scale at a value."""
        scale = torch.tensor(value)
        pyro.param(self._prefix + site, scale, constraint=constraints.softplus_positive)
        pyro.get_param_store()[self._prefix + site] = scale

    def renewed(self) -> "LearnedScale":
        """The same rule with scales of its own, for another network."""
        return LearnedScale(self.start)


def as_prior(prior) -> Prior:
    """A prior from what a user may give: a scale, ``"fan_in"``, a distribution, a dict by site, or a callable.

    :raises OptionError: for anything else.
    """
    if isinstance(prior, str) and prior == "fan_in":
        return FanIn()
    if isinstance(prior, str) and prior == "learned":
        return LearnedScale()
    if isinstance(prior, (int, float)) and not isinstance(prior, bool) and prior > 0:
        return Scalar(float(prior))
    if isinstance(prior, torch.distributions.Distribution):
        return OneLaw(prior)
    if isinstance(prior, Mapping):
        return BySite({pattern: as_prior(rule) for pattern, rule in prior.items()})
    if callable(prior):
        return prior
    raise OptionError(
        f"Expected prior to be a positive scale, 'fan_in', 'learned', a distribution, a dict of these by site, or a "
        f"callable (name, parameter); got {prior!r}."
    )


@dataclass(frozen=True)
class BySite:
    """The prior of the first pattern (with ``*`` and ``?``) that matches a site's name, in the order given."""

    rules: Mapping[str, Prior]

    def __call__(self, name: str, parameter: Tensor) -> dist.Distribution:
        return self._rule(name)(name, parameter)

    def of_gains(self, name: str, parameter: Tensor) -> dist.Distribution:
        """The prior of a normalisation's gains."""
        return gain_prior(self._rule(name))(name, parameter)

    def renewed(self) -> "BySite":
        """The same rules, their learned scales new ones."""
        return BySite({pattern: renewed(rule) for pattern, rule in self.rules.items()})

    def _rule(self, name: str) -> Prior:
        for pattern, rule in self.rules.items():
            if fnmatch.fnmatchcase(name, pattern):
                return rule
        known = ", ".join(map(repr, self.rules))
        raise OptionError(f"Expected a prior for site {name!r}; the patterns are {known}. Add '*' for the rest.")


@dataclass(frozen=True)
class OneLaw:
    """One distribution for every entry of a parameter, or for all of it if it has the parameter's shape."""

    law: dist.Distribution

    def __call__(self, name: str, parameter: Tensor) -> dist.Distribution:
        shape = self.law.batch_shape + self.law.event_shape
        if shape == parameter.shape:
            return _to_event(self.law, len(self.law.batch_shape))
        if shape != torch.Size():
            raise OptionError(
                f"Expected the prior of site {name!r} to be scalar or of its shape {tuple(parameter.shape)}; got "
                f"{tuple(shape)}."
            )
        return _to_event(self.law.expand(parameter.shape), parameter.ndim)


def gain_prior(prior: Prior) -> Prior:
    """The prior of a normalisation's gains: around 1 where the prior knows that, otherwise like any other site."""
    return getattr(prior, "of_gains", prior)


def renewed(prior: Prior) -> Prior:
    """The same prior for another network: scales that it learns are new ones."""
    return prior.renewed() if isinstance(prior, (LearnedScale, BySite)) else prior


def gains_of(net: nn.Module) -> frozenset[str]:
    """The names of the parameters that multiply normalised channels."""
    layers = net.named_modules(remove_duplicate=False)
    return frozenset(f"{name}.weight" if name else "weight" for name, m in layers if isinstance(m, NORMALIZATIONS))


def normal(std: float, parameter: Tensor, loc: float = 0.0) -> dist.Distribution:
    """``N(loc, std²)`` for every entry of a parameter."""
    law = dist.Normal(parameter.new_tensor(loc), parameter.new_tensor(std))
    return law.expand(parameter.shape).to_event(parameter.ndim)


def _to_event(law, ndim: int) -> dist.Distribution:
    """The same law with its last ``ndim`` axes as one event; a distribution of torch's own becomes one of Pyro's."""
    return law.to_event(ndim) if isinstance(law, TorchDistributionMixin) else dist.Independent(law, ndim)
