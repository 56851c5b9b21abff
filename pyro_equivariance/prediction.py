"""Posterior predictive draws, over inputs and over their orbits."""

import inspect
from collections.abc import Callable
from contextlib import contextmanager

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from .errors import SymmetryError
from .symmetry import Symmetry


@torch.no_grad()
def predict(model: Callable, guide: Callable, x: Tensor, draws: int = 100) -> Tensor:
    """The mean of the observation's law under each draw: ``E[y | x_n, θ_t]``, for classes their probabilities.

    :param model: a Pyro model ``model(x)`` with one observation site.
    :param guide: its guide, initialised.
    :param Tensor x: inputs ``(N, ...)``.
    :param int draws: T.
    :returns: ``(T, N, *event)``; the posterior predictive is its mean over the first axis.

    >>> import torch, pyro_equivariance as pe
    >>> model = pe.BayesianNetwork(torch.nn.Linear(4, 3))
    >>> guide = pe.AutoMeanFieldNormal(model)
    >>> guide.initialize(torch.zeros(1, 4), torch.zeros(1).long())
    >>> pe.predict(model, guide, torch.zeros(5, 4), draws=7).shape
    torch.Size([7, 5, 3])
    """
    with evaluating(model):
        return torch.stack([outputs(model, draw, x) for draw in posterior_draws(guide, draws, x)])


@torch.no_grad()
def orbit_predict(
    model: Callable, guide: Callable, symmetry: Symmetry, x: Tensor, draws: int = 100, independent: bool = False
) -> Tensor:
    """The same over the orbit of each input: ``E[y | ρ_X(g) x_n, θ_t]``.

    :param bool independent: draw afresh for each ``g``, as the biased defect needs; otherwise all moved copies share
        their draws.
    :returns: ``(T, |G|, N, *event)``, the identity first.

    >>> import torch, pyro_equivariance as pe
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 2))
    >>> sym = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 3, 3))
    >>> guide = pe.AutoSymmetricNormal(model := pe.BayesianNetwork(net), sym)
    >>> guide.initialize(torch.zeros(1, 1, 3, 3), torch.zeros(1).long())
    >>> pe.orbit_predict(model, guide, sym, torch.zeros(5, 1, 3, 3), draws=7).shape
    torch.Size([7, 4, 5, 2])
    """
    if independent:
        copies = [predict(model, guide, symmetry.act_inputs(g, x), draws) for g in range(len(symmetry.group))]
        return torch.stack(copies, 1)
    order, moved = len(symmetry.group), symmetry.inputs.orbit(x).flatten(0, 1)
    return predict(model, guide, moved, draws).unflatten(1, (order, len(x)))


@torch.no_grad()
def log_predictive(model: Callable, guide: Callable, data: tuple[Tensor, ...], draws: int = 20) -> Tensor:
    """The log likelihood of each datum under each draw, ``log p(y_n | x_n, θ_t)``, shape ``(T, N)``, in nats.

    Its ``logsumexp`` over draws, less ``log T``, is the log posterior predictive density.

    :param tuple data: the model's arguments, observations included.
    """
    rows = []
    with evaluating(model):
        for draw in posterior_draws(guide, draws, *data):
            trace = poutine.trace(poutine.replay(model, draw)).get_trace(*data)
            rows.append(sum(log_likelihood(site) for _, site in observation_sites(trace, draw)))
    return torch.stack(rows)


@contextmanager
def evaluating(model: Callable):
    """The model's modules in evaluation mode, so that a Dropout does not act; their modes come back afterwards."""
    network = inspect.unwrap(model)
    training = [m for m in network.modules() if m.training] if isinstance(network, torch.nn.Module) else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def posterior_draws(guide: Callable, draws: int, *args):
    """Traces of ``guide(*args)``, one at a time."""
    if draws < 1:
        raise SymmetryError(f"Expected at least one posterior draw; got draws={draws}.")
    for _ in range(draws):
        yield poutine.trace(guide).get_trace(*args)


def observation_sites(trace, draw):
    """``(name, site)`` of the model's sites that are neither the guide's latents nor deterministic."""
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or name in draw.nodes or type(site["fn"]).__name__ == "_Subsample":
            continue
        if not _is_deterministic(site["fn"]):
            yield name, site


def log_likelihood(site: dict) -> Tensor:
    """The log density of each datum at an observation site: 0 where it is masked, and not scaled for subsampling."""
    return scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])


def _is_deterministic(fn) -> bool:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return type(fn).__name__ == "Delta"


def outputs(model: Callable, draw, x: Tensor) -> Tensor:
    """The mean of the observation's law at ``x`` under one draw, ``(N, *event)``."""
    trace = poutine.trace(poutine.replay(model, draw)).get_trace(x)
    sites = list(observation_sites(trace, draw))
    if len(sites) != 1:
        raise SymmetryError(
            f"Expected a model with one observation site; got {[name for name, _ in sites]}. Use pyro's Predictive."
        )
    return _mean(sites[0][1]["fn"])


def _mean(fn) -> Tensor:
    """The mean; of classes their probabilities, on the axis where a network has the logits: ``(N, K, *places)``."""
    law, places = fn, len(fn.event_shape)
    while isinstance(law, torch.distributions.Independent):
        law = law.base_dist
    return law.probs.movedim(-1, -1 - places) if isinstance(law, torch.distributions.Categorical) else fn.mean
