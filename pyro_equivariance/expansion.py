"""From one guide to another: one-shot symmetrization, and expansion to a larger network."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.transforms import transform_to
from pyro.infer.autoguide.initialization import init_to_feasible
from torch import Tensor

from . import handlers
from .errors import OptionError, SymmetryError, check_option
from .guides import AutoExpandedNormal, AutoMeanFieldNormal
from .networks.bayesian import BayesianNetwork
from .symmetrize import RULES, average_site, warn_if_wide
from .symmetry import Symmetry

TIES = (None, "parameters", "samples")


def symmetrize_(guide, symmetry: Symmetry, rule: str = "geometric", optimizer=None, args: tuple = ()) -> None:
    """Replace the parameters of a mean-field Normal guide by those of its orbit average, once and in place.

    Works for any guide whose latent sites draw from Normals with parameters for mean and scale: the guides here,
    :class:`~pyro.infer.autoguide.AutoNormal`, hand-written ones. Every site is covered before any is changed.

    :param guide: a guide that was initialised (called once).
    :param Symmetry symmetry: a representation for every latent site.
    :param str rule: ``"geometric"``, ``"arithmetic"`` or ``"projection"``.
    :param optimizer: a Pyro or torch optimizer whose state (momenta) is then cleared.
    :param tuple args: what a hand-written guide must be called with, such as the model's arguments.
    :raises SymmetryError: if a site has no representation, or no parameters of its own to change.

    >>> import torch, pyro, pyro_equivariance as pe
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 2))
    >>> sym = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 3, 3))
    >>> guide = pe.AutoMeanFieldNormal(pe.BayesianNetwork(net))
    >>> guide.initialize(torch.zeros(1, 1, 3, 3), torch.zeros(1).long())
    >>> pe.symmetrize_(guide, sym, rule="arithmetic")
    >>> loc = guide.get_posterior("1.weight").base_dist.loc
    >>> torch.allclose(loc, sym["1.weight"].act(1, loc))
    True
    """
    check_option("rule", rule, RULES)
    sites = mean_field_parameters(guide, *args)
    averaged = {}
    with torch.no_grad():
        laws = {n: dist.Normal(_value(loc), _value(scale)).to_event(dim) for n, (loc, scale, dim) in sites.items()}
        for name, q in laws.items():
            averaged[name] = _core(average_site(name, q, symmetry, rule))
        warn_if_wide({name: (q, symmetry[name]) for name, q in laws.items()})
        for name, (loc, scale, _) in sites.items():
            _assign(loc, averaged[name].loc)
            _assign(scale, averaged[name].scale)
    clear_state(optimizer)


def mean_field_parameters(guide, *args) -> dict[str, tuple[dict, dict, int]]:
    """For each latent site of a mean-field Normal guide: the messages of its mean and scale, and its event axes."""
    trace = poutine.trace(guide).get_trace(*args)
    params = {node["value"].data_ptr(): node for node in trace.nodes.values() if node["type"] == "param"}
    found = {}
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or node["is_observed"] or isinstance(node["fn"], handlers._Subsample):
            continue
        site = name.removesuffix(handlers.AUXILIARY) if node["infer"].get("is_auxiliary") else name
        if isinstance(node["fn"], dist.Delta) and name in found:
            continue
        core = _core(node["fn"])
        if not isinstance(core, torch.distributions.Normal):
            raise SymmetryError(
                f"Expected a Normal at site {site!r} of the guide; got {type(core).__name__}. Use "
                f"pe.AutoMeanFieldNormal or pyro's AutoNormal, whose sites are Normals."
            )
        owners = [params.get(t.data_ptr()) for t in (core.loc, core.scale)]
        if None in owners or any(o["value"].shape != core.loc.shape for o in owners):
            raise SymmetryError(
                f"Expected the mean and scale of site {site!r} to be parameters of the guide of shape "
                f"{tuple(core.loc.shape)}; they are computed from others, so there is nothing to change in place."
            )
        found[site] = (*owners, len(node["fn"].event_shape))
    return found


def expand(
    model: BayesianNetwork,
    guide,
    symmetry: Symmetry,
    arrangement: str = "free",
    tie: str | None = "samples",
):
    """A small Bayesian network and its guide, grown to ``len(group)`` times the hidden channels.

    The blocks of the large weights are moved copies of the small ones, see
    :class:`~pyro_equivariance.networks.expanded.SiteExpansion`. What is trained from there on:

    - ``tie=None``: all expanded parameters; the prior rule is applied to the large network;
    - ``tie="parameters"``: the small means and scales, the large entries drawn independently: the law stays exactly
      invariant, single draws are not equivariant;
    - ``tie="samples"``: sites ``<site>_base`` with the small network's prior and KL, the large weights deterministic:
      every draw is an equivariant network.

    :param BayesianNetwork model: the small network's model.
    :param guide: its mean-field Normal guide, trained or new.
    :param Symmetry symmetry: the small network's, ``hidden="trivial"``.
    :param str arrangement: ``"free"``, ``"gcnn"``, ``"row_rolled"`` (abelian groups, pooling before the last layer),
        ``"diagonal"`` (the small network's orbit mean, with ``tie="samples"`` only) or ``"row_constant"`` (a negative
        control).
    :param tie: ``None``, ``"parameters"`` or ``"samples"``.
    :returns: ``(big_model, big_guide, big_symmetry)``; the guide is initialised.
    :raises OptionError: for an unknown arrangement or tie, or a model that is no :class:`BayesianNetwork`.

    Source: Dong, Flinth, Gerken (2026), arXiv:2606.26273.

    >>> import torch, pyro_equivariance as pe
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.ReLU(),
    ...     torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(2, 3))
    >>> sym = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 4, 4), hidden="trivial")
    >>> model = pe.BayesianNetwork(net)
    >>> big_model, big_guide, big_sym = pe.expand(model, pe.AutoMeanFieldNormal(model), sym)
    >>> sorted(big_guide())[:2]
    ['0.bias_base', '0.weight_base']
    """
    check_option("tie", tie, TIES)
    if arrangement == "diagonal" and tie != "samples":
        raise OptionError(
            f"Expected tie='samples' with arrangement='diagonal', whose zeros no Normal can draw; got tie={tie!r}."
        )
    if not isinstance(model, BayesianNetwork):
        raise OptionError(f"Expected the pe.BayesianNetwork of the small network; got {type(model).__name__}.")
    big = handlers.widen(model, symmetry)
    expansions = handlers.site_expansions(model, big, symmetry, arrangement)
    x, y = _example(model, symmetry)
    small = _moments(guide, (x, y))
    locs = {name: e.start(small[name][0]) for name, e in expansions.items()}
    scales = {name: e.start_scale(small[name][1]) for name, e in expansions.items()}
    if tie == "samples":
        big_model = handlers.expand(model, symmetry, arrangement)
        big_guide = _mean_field(big_model, _suffixed(locs), _suffixed(scales))
    elif tie == "parameters":
        big_model, big_guide = big, AutoExpandedNormal(big, expansions, locs, scales)
    else:
        large = {name: e.expand(locs[name]) for name, e in expansions.items()}
        large_scales = {name: e.expand_scale(scales[name]) for name, e in expansions.items()}
        big_model, big_guide = big, _mean_field(big, large, large_scales)
    big_guide.initialize(x, y)
    return big_model, big_guide, handlers.expanded_symmetry(big, symmetry, arrangement)


def clear_state(optimizer) -> None:
    """Forget an optimizer's momenta and second moments; ``None`` has none."""
    if isinstance(optimizer, pyro.optim.PyroOptim):
        optimizer.optim_objs.clear()
    elif optimizer is not None:
        optimizer.state.clear()


def _mean_field(model, locs, scales) -> AutoMeanFieldNormal:
    def init_loc_fn(site):
        # A reparametrized site is asked for as well; it takes its value from its base.
        return locs[site["name"]].clone() if site["name"] in locs else init_to_feasible(site)

    return AutoMeanFieldNormal(model, init_loc_fn=init_loc_fn, init_scale=lambda site: scales[site["name"]])


def _moments(guide, arguments) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and scale of each site of the small guide, which is initialised if it was not."""
    with torch.no_grad():
        poutine.block(guide)(*arguments)
        found = mean_field_parameters(guide, *arguments)
        return {name: (_value(loc), _value(scale)) for name, (loc, scale, _) in found.items()}


def _example(model: BayesianNetwork, symmetry: Symmetry) -> tuple[Tensor, Tensor]:
    """One blank input and an observation drawn for it, to run a guide with."""
    like = next(model.net.parameters())
    x = like.new_zeros(1, *symmetry.inputs.event_shape)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return x, poutine.block(poutine.trace(model).get_trace)(x).nodes["y"]["value"]


def _suffixed(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name + handlers.BASE: value for name, value in values.items()}


def _core(fn):
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return _core(fn.base_dist) if isinstance(fn, torch.distributions.TransformedDistribution) else fn


def _value(param: dict) -> Tensor:
    return param["value"].detach().clone()


def _assign(param: dict, value: Tensor) -> None:
    """Write a constrained value into the leaf that a ``param`` message came from."""
    leaf = param["value"].unconstrained() if hasattr(param["value"], "unconstrained") else param["value"]
    # A PyroModule asks for its parameters without their constraint, which the store then knows.
    known = pyro.get_param_store()._constraints
    constraint = known.get(param["name"], param["kwargs"].get("constraint", torch.distributions.constraints.real))
    leaf.copy_(transform_to(constraint).inv(value))
