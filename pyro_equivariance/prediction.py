"""Posterior predictive draws, over inputs and over their orbits."""

import inspect
from collections.abc import Callable

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from .errors import OptionError, SymmetryError, check_option
from .handlers import ExpandedNetwork
from .modes import mode
from .symmetry import Symmetry

RETURNS = ("mean", "output")


@torch.no_grad()
def predict(model: Callable, guide: Callable, x: Tensor, draws: int = 100, symmetry: Symmetry | None = None) -> Tensor:
    """The mean of the observation's law under each draw: ``E[y | x_n, θ_t]``, for classes their probabilities.

    With a symmetry each draw predicts with the mean over the orbit, ``(1/|G|) Σ_g ρ_Y(g)⁻¹ E[y | ρ_X(g) x_n, θ_t]``,
    which is equivariant whatever the posterior; it is the prediction that belongs to the likelihood ``"predictive"`` of
    :func:`~pyro_equivariance.handlers.augment`.

    :param model: a Pyro model ``model(x)`` with one observation site.
    :param guide: its guide, initialised.
    :param Tensor x: inputs ``(N, ...)``.
    :param int draws: T.
    :param Symmetry symmetry: with ``inputs``, and ``outputs`` where they move.
    :returns: ``(T, N, *event)``; the posterior predictive is its mean over the first axis.

    >>> import torch, pyro_equivariance as pe
    >>> model = pe.BayesianNetwork(torch.nn.Linear(4, 3))
    >>> guide = pe.AutoMeanFieldNormal(model)
    >>> guide.initialize(torch.zeros(1, 4), torch.zeros(1).long())
    >>> pe.predict(model, guide, torch.zeros(5, 4), draws=7).shape
    torch.Size([7, 5, 3])
    """
    if symmetry is not None:
        return _orbit_mean(orbit_predict(model, guide, symmetry, x, draws), symmetry)
    with evaluating(model):
        return torch.stack([outputs(model, draw, x) for draw in posterior_draws(guide, draws, x)])


def _orbit_mean(predictions: Tensor, symmetry: Symmetry) -> Tensor:
    """The mean over the second axis, each copy moved back."""
    if symmetry.outputs is None:
        return predictions.mean(1)
    back = symmetry.group.inverse(symmetry.group.elements)[:, None]
    return symmetry.act_outputs(back, predictions).mean(1)


def posterior_mean(
    model: Callable, guide: Callable, draws: int = 50, seed: int = 0, returns: str = "mean"
) -> Callable[[Tensor], Tensor]:
    """``F(x) = (1/T) Σ_t f(x; θ_t)`` with ``θ_1, …, θ_T`` of the guide, the same at every call: a smooth function of x.

    The draws are those of the seed, made anew at each call by the CPU's generator, whose state stays as it is.
    Gradients go to x and not to the guide; what the model has besides its latents, such as a ``pyro.param``, keeps its
    own. For :func:`~pyro_equivariance.discover_generators` and other questions about derivatives; predictions and
    their spread are :func:`~pyro_equivariance.predict`'s.

    :param model: a Pyro model ``model(x)`` with one observation site.
    :param guide: its guide, initialised.
    :param int draws: T.
    :param int seed: of the draws.
    :param str returns: ``"mean"``: f is the mean of the observation's law, of classes their probabilities;
        ``"output"``: what the model returns, for a :class:`~pyro_equivariance.BayesianNetwork` the network's output, of
        classes the logits.
    :returns: a function from ``(N, ...)`` to ``(N, *event)``.
    :raises OptionError: for fewer than one draw, a seed that is no whole number, another ``returns``, or ``"output"``
        of a model that returns none.

    >>> import torch, pyro_equivariance as pe
    >>> model = pe.BayesianNetwork(torch.nn.Linear(4, 1), likelihood="normal")
    >>> guide = pe.AutoMeanFieldNormal(model)
    >>> guide.initialize(torch.zeros(1, 4), torch.zeros(1, 1))
    >>> mean = pe.posterior_mean(model, guide, draws=7)
    >>> x = torch.randn(5, 4, requires_grad=True)
    >>> torch.equal(mean(x), mean(x)), torch.autograd.grad(mean(x).sum(), x)[0].shape
    (True, torch.Size([5, 4]))
    """
    check_option("returns", returns, RETURNS)
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise OptionError(f"Expected draws as a whole number, at least 1; got {draws!r}.")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise OptionError(f"Expected seed as a whole number; got {seed!r}.")

    def mean(x: Tensor) -> Tensor:
        with evaluating(model), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would change those of other devices as well
            with torch.no_grad():
                thetas = list(posterior_draws(guide, draws, x))
            return sum(_of_draw(model, theta, x, returns) for theta in thetas) / draws

    return mean


def _of_draw(model: Callable, theta, x: Tensor, returns: str) -> Tensor:
    if returns == "mean":
        return outputs(model, theta, x)
    output = poutine.replay(model, theta)(x)
    if not isinstance(output, Tensor):
        raise OptionError(
            f'Expected a model that returns a tensor, for returns="output"; got {type(output).__name__}. Pass "mean".'
        )
    return output


@torch.no_grad()
def lifted_check(model: Callable, guide: Callable, symmetry: Symmetry, x: Tensor, draws: int = 3) -> float:
    """The largest ``|f(ρ_X(g) x; ρ(g) θ_t) − ρ_Y(g) f(x; θ_t)|`` over the orbit, for ``θ_t`` of the guide.

    It tests that the model is compatible with the symmetry, on this posterior and these inputs, without any Monte Carlo
    error: 0 up to rounding, whatever the posterior.

    :param Symmetry symmetry: has a representation for every latent site, and ``inputs``.
    :returns: relative to the largest ``|f|``.

    >>> import torch, pyro_equivariance as pe
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 2)).double()
    >>> sym = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 3, 3))
    >>> guide = pe.AutoMeanFieldNormal(model := pe.BayesianNetwork(net))
    >>> x = torch.randn(5, 1, 3, 3, dtype=torch.float64)
    >>> guide.initialize(x, torch.zeros(5).long())
    >>> pe.lifted_check(model, guide, sym, x) < 1e-12
    True
    """
    worst = 0.0
    with evaluating(model):
        for draw in posterior_draws(guide, draws, x):
            values, still = _moving(model, draw, symmetry)
            upright = _at(model, values | still, x)
            for g in range(1, len(symmetry.group)):
                moved = _at(model, symmetry.act(g, values) | still, symmetry.act_inputs(g, x))
                gap = float((moved - symmetry.act_outputs(g, upright)).abs().max() / upright.abs().max())
                worst = gap if not gap <= worst else worst  # NaN stays
    return worst


def _moving(model: Callable, draw, symmetry: Symmetry) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A draw's latents that the symmetry moves, and those of a tied expansion, which are equivariant as they are."""
    latents = {
        n: s["value"] for n, s in draw.nodes.items() if s["type"] == "sample" and not s["infer"].get("is_auxiliary")
    }
    moving = {name: value for name, value in latents.items() if name in symmetry.sites}
    still = {name: value for name, value in latents.items() if name not in symmetry.sites}
    if still and not isinstance(inspect.unwrap(model), ExpandedNetwork):
        symmetry[next(iter(still))]  # raises, naming the site and what to add
    return moving, still


def _at(model: Callable, values: dict[str, Tensor], x: Tensor) -> Tensor:
    """What the model returns for an input with its latents set: a network's output."""
    return poutine.condition(inspect.unwrap(model), values)(x)


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


def evaluating(model: Callable):
    """A context with the model's modules in evaluation mode, so that a Dropout does not act."""
    return mode(inspect.unwrap(model), training=False)


def posterior_draws(guide: Callable, draws: int, *args):
    """Traces of ``guide(*args)``, one at a time."""
    if draws < 1:
        raise SymmetryError(f"Expected at least one posterior draw; got draws={draws}.")
    for _ in range(draws):
        yield poutine.trace(guide).get_trace(*args)


def observation_sites(trace, draw):
    """``(name, site)`` of the model's sites that are neither the guide's latents nor deterministic nor factors."""
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or name in draw.nodes or type(site["fn"]).__name__ in ("_Subsample", "Unit"):
            continue
        if not is_point_mass(site["fn"]):
            yield name, site


def log_likelihood(site: dict) -> Tensor:
    """The log density of each datum at an observation site: 0 where it is masked, and not scaled for subsampling."""
    return scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])


def is_point_mass(fn) -> bool:
    """Whether a distribution is a Delta, masked or not, as that of a deterministic or reparametrised site."""
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
