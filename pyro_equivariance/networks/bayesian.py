"""A torch network as a Pyro model: a sample site for each parameter."""

import copy
from abc import ABC, abstractmethod

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..errors import DataError, OptionError, SymmetryError
from .likelihoods import as_likelihood
from .priors import as_prior, gain_prior, gains_of, renewed


def _channels_last(x: Tensor) -> Tensor:
    """The same images with the channel index fastest in memory.

    The strides are spelled out because those of one channel fit both layouts, and torch then takes the slow one.
    """
    _, c, h, w = x.shape
    return x.contiguous(memory_format=torch.channels_last).as_strided(x.shape, (c * h * w, 1, w * c, c))


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
    network's output, ``(N, ...)`` (in ``Predictive``: the site ``"_RETURN"``). Under vectorised particles and
    ``Predictive(parallel=True)`` weights have leading axes, and so has the output: ``(*particles, N, ...)``.

    :param Module net: the network; it is copied, and its values are the start of the library's guides.
    :param prior: a scale for ``N(0, scale²)``; ``"fan_in"`` (see :class:`FanIn`); ``"learned"`` (see
        :class:`LearnedScale`); a distribution for every entry; a dict of these by site, whose keys may hold ``*``; or
        a callable ``(name, parameter) -> distribution`` whose event is the parameter's shape.
    :param likelihood: a name, or a callable from the network's output to a distribution.

        - ``"categorical"``: the output is logits ``(N, K)``, ``y`` integer labels ``(N,)``; for maps of labels
          ``(N, *places)`` the logits are ``(N, K, *places)``;
        - ``"bernoulli"``: logits and zeros or ones, both ``(N, ...)``;
        - ``"poisson"``: log rates and counts, both ``(N, ...)``;
        - ``"normal"``: means and numbers, both ``(N, ...)``, with unit noise; :class:`NormalLikelihood` sets its scale
          or learns it.
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
        self._gains = gains_of(net)
        self.prior = as_prior(prior)
        self.likelihood = as_likelihood(likelihood)
        if size is not None and size < 1:
            raise OptionError(f"Expected size to be the number of data, at least 1, or None; got {size}.")
        self.size = size
        self.channels_last = channels_last
        with pyro.get_param_store().scope():  # raises now rather than inside a trace, and learns nothing yet
            for name, parameter in self.net.named_parameters():
                self.prior_of(name, parameter)

    def prior_of(self, name: str, parameter: Tensor) -> dist.Distribution:
        """The prior of one site, whose value has the parameter's shape."""
        law = (gain_prior(self.prior) if name in self._gains else self.prior)(name, parameter)
        if not isinstance(law, TorchDistributionMixin) or law.event_shape != parameter.shape:
            found = f"event shape {tuple(law.event_shape)}" if hasattr(law, "event_shape") else type(law).__name__
            raise OptionError(
                f"Expected the prior of site {name!r} to be a distribution of pyro.distributions with event shape "
                f"{tuple(parameter.shape)}; got {found}. Use .expand(parameter.shape).to_event()."
            )
        return law

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        weights = {name: pyro.sample(name, self.prior_of(name, p)) for name, p in self.net.named_parameters()}
        output, event_dim = self._run(weights, self._laid_out(x))
        law = self.likelihood(output, event_dim)
        _check_shape(law, y)
        rows = torch.arange(len(x)) if self.size else None
        data = pyro.plate("data", self.size or len(x), subsample=rows, device=x.device)
        with data:
            if data.dim != -1:
                _check_particles(output.shape[: output.ndim - event_dim - 1])
            pyro.sample("y", law, obs=y)
        return output

    def _run(self, weights: dict[str, Tensor], x: Tensor) -> tuple[Tensor, int]:
        """The network's output and its number of axes per datum; once for each of the weights' leading axes."""
        dims = {name: p.ndim for name, p in self.net.named_parameters()}
        lead = torch.broadcast_shapes(*(_lead(w, dims[name]) for name, w in weights.items()))
        if not lead:
            output = torch.func.functional_call(self.net, weights, (x,))
            return output, output.ndim - 1
        if lead[-1] != 1:
            _check_particles(lead)
        rows = {name: _particles(w, lead, dims[name]) for name, w in weights.items()}
        output = _each(self.net, rows, x)
        return output.reshape(lead[:-1] + output.shape[1:]), output.ndim - 2

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
        """Raise a :class:`DataError` unless ``y`` has the likelihood's shape, and labels are its classes."""
        if y is None:
            return
        with torch.no_grad():
            output = self.net(x[:2])  # a normalisation over the batch needs two
            law = self.likelihood(output, output.ndim - 1)
        expected = x.shape[:1] + law.event_shape
        law = law.base_dist if isinstance(law, dist.Independent) else law
        if not isinstance(law, dist.Categorical):
            _check_observed(y, expected)
            _check_support(y, law)
            return
        classes = law.probs.shape[-1]
        if y.is_floating_point() or y.shape != expected:
            raise DataError(
                f"Expected labels as integers of shape {tuple(expected)}; got {y.dtype} of shape {tuple(y.shape)}."
            )
        if int(y.min()) < 0 or int(y.max()) >= classes:
            raise DataError(
                f"Expected labels between 0 and {classes - 1}, the network's outputs; got {int(y.min())} to "
                f"{int(y.max())}. Number the classes from 0, or widen the last layer."
            )

    def init_loc_fn(self, site: dict) -> Tensor:
        """The network's own value of a site: where the library's guides start."""
        parameters = dict(self.net.named_parameters())
        if site["name"] not in parameters:
            raise not_a_parameter(site["name"])
        return parameters[site["name"]].detach().clone()

    def learned(self) -> dict[str, float]:
        """What the model learns by itself, by name: the noise of its likelihood and the scales of its priors."""
        noise = {"noise": self.likelihood.fitted()} if getattr(self.likelihood, "learned", False) else {}
        scales = getattr(self.prior, "scales", dict)()
        return noise | {f"scale.{site}": scale for site, scale in scales.items()}

    def load_learned(self, values: dict[str, float]) -> None:
        """Put these values back."""
        for name, value in values.items():
            if name == "noise":
                self.likelihood.set(value)
            else:
                self.prior.set(name.removeprefix("scale."), value)

    def with_net(self, net: nn.Module) -> "BayesianNetwork":
        """The same model (prior rule, likelihood, size) of another network."""
        return BayesianNetwork(net, renewed(self.prior), self.likelihood, self.size, self.channels_last)

    def with_prior(self, prior) -> "BayesianNetwork":
        """The same model, of the same network, with another prior."""
        other = copy.copy(self)
        other.prior = as_prior(prior)
        return other


def not_a_parameter(site: str) -> SymmetryError:
    """The error for a latent site that is no weight, which is the observation when it was left out."""
    return SymmetryError(
        f"Expected the observations when a guide is first called: without them {site!r} would be a latent site, and it "
        f"is no parameter of the network. Call guide.initialize(x, y)."
    )


def _check_shape(law: dist.Distribution, y: Tensor | None) -> None:
    if y is not None:
        _check_observed(y, law.batch_shape[-1:] + law.event_shape)


def _check_observed(y: Tensor, expected: torch.Size) -> None:
    if y.shape != expected:
        raise DataError(
            f"Expected observations of shape {tuple(expected)} for this output and likelihood; got {tuple(y.shape)}."
        )


def _check_support(y: Tensor, law: dist.Distribution) -> None:
    if isinstance(law, dist.Bernoulli) and not y.is_floating_point():
        raise DataError(f"Expected observations of a {type(law).__name__} as floats; got {y.dtype}. Use y.float().")
    inside = law.support.check(y)
    if not bool(inside.all()):
        raise DataError(
            f"Expected observations in the support of a {type(law).__name__}, {law.support}; got "
            f"{float(y[~inside].flatten()[0]):g}."
        )


def _check_particles(lead: torch.Size) -> None:
    if lead:
        raise SymmetryError(
            f"Expected weights without an axis for the data plate; they have leading axes {tuple(lead)}. Give "
            f"particles an axis to the left of it (max_plate_nesting=1)."
        )


def _lead(weight: Tensor, ndim: int) -> torch.Size:
    """The axes before a parameter's own; the last, for the plate, is left out by ``Predictive(parallel=True)``."""
    lead = weight.shape[: weight.ndim - ndim]
    return lead + (1,) if len(lead) == 1 and lead[0] != 1 else lead


def _particles(weight: Tensor, lead: torch.Size, ndim: int) -> Tensor:
    """One row of weights for each particle."""
    event = weight.shape[weight.ndim - ndim :]
    return weight.reshape(_lead(weight, ndim) + event).expand(lead + event).flatten(0, len(lead) - 1)


def _each(net: nn.Module, rows: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network under each row of weights: a loop on a CPU, where it is quicker than ``vmap``."""
    if x.device.type == "cpu":
        count = len(next(iter(rows.values())))
        return torch.stack(
            [torch.func.functional_call(net, {n: w[i] for n, w in rows.items()}, (x,)) for i in range(count)]
        )
    run = torch.func.vmap(lambda weights: torch.func.functional_call(net, weights, (x,)), randomness="different")
    return run(rows)
