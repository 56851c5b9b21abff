"""Likelihoods: from a network's output ``(..., N, *event)`` to the law of the observation ``(N, ...)``."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from ..errors import OptionError, check_option

_NUMBERS = itertools.count(1)


def categorical(output: Tensor, event_dim: int) -> dist.Distribution:
    """Class labels given logits ``(..., N, K, *places)``: integers ``(N, *places)``."""
    if event_dim < 1:
        raise OptionError(
            f"Expected logits (N, K) for likelihood='categorical'; the network's output is {tuple(output.shape)}. Its "
            f"last layer needs one output per class."
        )
    law = dist.Categorical(logits=output.movedim(-event_dim, -1))
    return law.to_event(event_dim - 1) if event_dim > 1 else law


def bernoulli(output: Tensor, event_dim: int) -> dist.Distribution:
    """Zeros and ones ``(N, *event)`` given logits."""
    return dist.Bernoulli(logits=output).to_event(event_dim)


def poisson(output: Tensor, event_dim: int) -> dist.Distribution:
    """Counts ``(N, *event)`` given log rates."""
    return dist.Poisson(output.exp()).to_event(event_dim)


@dataclass(frozen=True)
class NormalLikelihood:
    """``y ~ N(f(x; θ), scale²)`` for every entry of the output, ``(N, *event)``.

    One scale for all entries keeps the law equivariant wherever the outputs move orthogonally.

    :param float scale: the standard deviation of the noise.
    :param bool learned: whether it is a ``pyro.param`` that starts at ``scale`` and is trained with the guide; then
        :meth:`fitted` is its value.
    :param name: of that parameter; left out, one of its own.

    >>> import torch, pyro_equivariance as pe
    >>> model = pe.BayesianNetwork(torch.nn.Linear(4, 2), likelihood=pe.NormalLikelihood(0.1))
    >>> model(torch.zeros(3, 4), torch.zeros(3, 2)).shape
    torch.Size([3, 2])
    """

    scale: float = 1.0
    learned: bool = False
    name: str | None = None

    def __post_init__(self):
        if not self.scale > 0:
            raise OptionError(f"Expected the noise's scale to be positive; got {self.scale}.")
        if self.learned and self.name is None:  # parameters share one store, by name
            object.__setattr__(self, "name", f"noise_scale_{next(_NUMBERS)}")

    def fitted(self) -> float:
        """The scale as it is now."""
        store = pyro.get_param_store()
        return float(store[self.name].detach()) if self.learned and self.name in store else self.scale

    def set(self, value: float) -> None:
        """Put the learned scale at a value."""
        scale = torch.tensor(value)
        pyro.param(self.name, scale, constraint=constraints.softplus_positive)
        pyro.get_param_store()[self.name] = scale

    def __call__(self, output: Tensor, event_dim: int) -> dist.Distribution:
        scale = self.scale
        if self.learned:
            scale = pyro.param(self.name, output.new_tensor(scale), constraint=constraints.softplus_positive)
        return dist.Normal(output, scale).to_event(event_dim)


LIKELIHOODS: dict[str, Callable[[Tensor, int], dist.Distribution]] = {
    "categorical": categorical,
    "bernoulli": bernoulli,
    "normal": NormalLikelihood(),
    "poisson": poisson,
}


def as_likelihood(likelihood) -> Callable[[Tensor, int], dist.Distribution]:
    """A function of the output and the number of its event axes, from a name or a callable of the output alone."""
    if isinstance(likelihood, (NormalLikelihood, OfOutput)):
        return likelihood
    if callable(likelihood):
        return likelihood if likelihood in LIKELIHOODS.values() else OfOutput(likelihood)
    check_option("likelihood", likelihood, LIKELIHOODS)
    return LIKELIHOODS[likelihood]


@dataclass(frozen=True)
class OfOutput:
    """A user's likelihood, which knows by itself how many axes of the output belong to one datum."""

    likelihood: Callable[[Tensor], dist.Distribution]

    def __call__(self, output: Tensor, event_dim: int) -> dist.Distribution:
        law = self.likelihood(output)
        if not isinstance(law, TorchDistributionMixin):
            raise OptionError(
                f"Expected the likelihood to return a distribution of pyro.distributions; got {type(law).__module__}."
                f"{type(law).__name__}."
            )
        return law
