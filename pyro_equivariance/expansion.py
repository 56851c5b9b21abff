"""From one guide to another: one-shot symmetrization, and expansion to a larger network."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import init_to_feasible
from torch import Tensor

from . import handlers
from .errors import OptionError, check_option
from .guides import AutoExpandedNormal, AutoMeanFieldNormal
from .guides.parameters import assign, core_normal, example_of, mean_field_parameters, value_of
from .networks.bayesian import BayesianNetwork
from .symmetrize import RULES, average_site, warn_if_wide
from .symmetry import Symmetry, needed

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
    symmetry = needed(symmetry)
    sites = mean_field_parameters(guide, *args)
    averaged = {}
    with torch.no_grad():
        laws = {n: dist.Normal(value_of(loc), value_of(scale)).to_event(dim) for n, (loc, scale, dim) in sites.items()}
        for name, q in laws.items():
            averaged[name] = core_normal(average_site(name, q, symmetry, rule))
        warn_if_wide({name: (q, symmetry[name]) for name, q in laws.items()})
        for name, (loc, scale, _) in sites.items():
            assign(loc, averaged[name].loc)
            assign(scale, averaged[name].scale)
    clear_state(optimizer)


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
    x, y = example_of(model, symmetry)
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
        return {name: (value_of(loc), value_of(scale)) for name, (loc, scale, _) in found.items()}


def _suffixed(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name + handlers.BASE: value for name, value in values.items()}
