"""A torch network as a Pyro model: a sample site for each parameter."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..errors import DataError, OptionError, check_option


@dataclass(frozen=True)
class FanIn:
    """The prior ``N(0, gain² / fan_in)`` for weights, ``N(0, bias²)`` for biases.

    Activations then keep their size from layer to layer, whatever the width; it is invariant under every action
    on channels and space.

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
        return _normal(std, parameter)


@dataclass(frozen=True)
class Scalar:
    """The prior ``N(0, scale²)`` for every parameter."""

    scale: float = 1.0

    def __call__(self, name: str, parameter: Tensor) -> dist.Distribution:
        return _normal(self.scale, parameter)


def _normal(std: float, parameter: Tensor) -> dist.Distribution:
    loc, scale = parameter.new_zeros(()), parameter.new_tensor(std)
    return dist.Normal(loc, scale).expand(parameter.shape).to_event(parameter.ndim)


def _prior(prior) -> Callable[[str, Tensor], dist.Distribution]:
    if prior == "fan_in":
        return FanIn()
    if isinstance(prior, (int, float)) and not isinstance(prior, bool) and prior > 0:
        return Scalar(float(prior))
    if callable(prior):
        return prior
    raise OptionError(
        f"Expected prior to be a positive scale, 'fan_in' or a callable (name, parameter); got {prior!r}."
    )


def _channels_last(x: Tensor) -> Tensor:
    """The same images with the channel index fastest in memory.

    The strides are spelled out because those of one channel fit both layouts, and torch then takes the slow one.
    """
    _, c, h, w = x.shape
    return x.contiguous(memory_format=torch.channels_last).as_strided(x.shape, (c * h * w, 1, w * c, c))


def categorical(logits: Tensor) -> dist.Categorical:
    """The likelihood of class labels given logits ``(..., K)``."""
    return dist.Categorical(logits=logits)


LIKELIHOODS = {"categorical": categorical}


class NetworkModel(nn.Module, ABC):
    """A Pyro model of a network's weights that knows where a guide should start.

    To implement one: :meth:`init_loc_fn`, with the meaning of the autoguides' argument of that name.
    """

    @abstractmethod
    def init_loc_fn(self, site: dict) -> Tensor: ...


class BayesianNetwork(NetworkModel):
    """A Pyro model ``model(x, y=None)`` with one sample site per parameter of ``net``, named as there.

    ``θ ~ prior``, ``y_n ~ likelihood(f(x_n; θ))`` in a plate ``"data"``; the network is called functionally with
    the sampled weights. The log likelihood of a minibatch is scaled by ``size / len(x)``. It returns the
    network's output, ``(N, ...)`` (in ``Predictive``: the site ``"_RETURN"``).

    :param Module net: the network; it is copied, and its values are the start of the library's guides.
    :param prior: a scale for ``N(0, scale²)``, ``"fan_in"`` (see :class:`FanIn`), or a callable
        ``(name, parameter) -> distribution`` whose event is the parameter's shape.
    :param likelihood: ``"categorical"`` (the output is logits, ``y`` integer labels ``(N,)``), or a callable from
        the network's output to a distribution.
    :param int size: the number of data ``N`` that a minibatch stands for; ``None``: its own length.
    :param bool channels_last: whether images are laid out with the channels last, which convolutions on a CPU run 1.1
        (training) to 4 times (prediction) as fast; ``None``: in float32 on a CPU, if the network takes them so
        (a ``view`` inside it may not).
    :raises OptionError: for an unknown prior or likelihood.

    >>> import torch, pyro_equivariance as pe
    >>> model = pe.BayesianNetwork(torch.nn.Linear(4, 3), prior=1.0, size=100)
    >>> model(torch.zeros(5, 4), torch.zeros(5).long()).shape
    torch.Size([5, 3])
    """

    def __init__(self, net: nn.Module, prior=1.0, likelihood="categorical", size: int | None = None,
                 channels_last: bool | None = None):  # fmt: skip
        super().__init__()
        self.net = copy.deepcopy(net).requires_grad_(False)
        self.prior = _prior(prior)
        if not callable(likelihood):
            check_option("likelihood", likelihood, LIKELIHOODS)
        self.likelihood = likelihood if callable(likelihood) else LIKELIHOODS[likelihood]
        if size is not None and size < 1:
            raise OptionError(f"Expected size to be the number of data, at least 1, or None; got {size}.")
        self.size = size
        self.channels_last = channels_last

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        weights = {name: pyro.sample(name, self.prior(name, p)) for name, p in self.net.named_parameters()}
        output = torch.func.functional_call(self.net, weights, (self._laid_out(x),))
        rows = torch.arange(len(x)) if self.size else None
        with pyro.plate("data", self.size or len(x), subsample=rows, device=x.device):
            pyro.sample("y", self.likelihood(output), obs=y)
        return output

    def _laid_out(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            return x
        if self.channels_last is None:
            fast = x.dtype == torch.float32 and x.device.type == "cpu"
            self.channels_last = fast and self._takes(_channels_last(x[:1]))
        return _channels_last(x) if self.channels_last else x

    @torch.no_grad()
    def _takes(self, x: Tensor) -> bool:
        try:
            copy.deepcopy(self.net).eval()(x)
        except RuntimeError:
            return False
        return True

    def check_data(self, x: Tensor, y: Tensor | None = None) -> None:
        """Raise a :class:`DataError` unless the labels ``y`` of a categorical likelihood are its classes."""
        if y is None:
            return
        with torch.no_grad():
            law = self.likelihood(self.net(x[:1]))
        if not isinstance(law, dist.Categorical):
            return
        classes = law.probs.shape[-1]
        if y.is_floating_point() or y.shape != x.shape[:1]:
            raise DataError(
                f"Expected labels as integers of shape ({len(x)},); got {y.dtype} of shape {tuple(y.shape)}."
            )
        if int(y.min()) < 0 or int(y.max()) >= classes:
            raise DataError(
                f"Expected labels between 0 and {classes - 1}, the network's outputs; got {int(y.min())} to "
                f"{int(y.max())}. Number the classes from 0, or widen the last layer."
            )

    def init_loc_fn(self, site: dict) -> Tensor:
        """The network's own value of a site: where the library's guides start."""
        return self.net.get_parameter(site["name"]).detach().clone()

    def with_net(self, net: nn.Module) -> "BayesianNetwork":
        """The same model (prior rule, likelihood, size) of another network."""
        return BayesianNetwork(net, self.prior, self.likelihood, self.size, self.channels_last)
