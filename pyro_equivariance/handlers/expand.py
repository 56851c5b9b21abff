"""A network's model that samples a small network's weights and runs their expansion."""

import copy
import functools
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide.initialization import init_to_feasible
from pyro.infer.reparam.reparam import Reparam

from ..errors import LayerError, SymmetryError
from ..networks.bayesian import BayesianNetwork, NetworkModel, not_a_parameter
from ..networks.expanded import SiteExpansion
from ..networks.tracing import network_symmetry, widen_network
from ..symmetry import Symmetry
from .base import BASE


class ExpansionReparam(Reparam):
    """Draws ``<site>_base`` from the small network's prior and makes the site its deterministic expansion.

    :param SiteExpansion expansion: the map from the base to the site.
    :param prior: a callable that returns the small site's prior.
    """

    def __init__(self, expansion: SiteExpansion, prior: Callable[[], dist.Distribution]):
        self.expansion, self.prior = expansion, prior

    def apply(self, msg):
        prior = self.prior()
        extra = self.expansion.base_shape[: len(self.expansion.base_shape) - len(prior.event_shape)]
        base = pyro.sample(msg["name"] + BASE, prior.expand(extra).to_event(len(extra)) if extra else prior)
        value = self.expansion.expand(base)
        fn = dist.Delta(value, event_dim=msg["fn"].event_dim).mask(False)
        return {"fn": fn, "value": value, "is_observed": True}


class ExpandedNetwork(NetworkModel):
    """The model that :func:`expand` returns: ``model(x, y=None)``, its sites ``<site>_base``.

    ``big`` is the expanded network's model without the tie, ``expansions`` the map of each site.
    """

    def __init__(self, model: BayesianNetwork, symmetry: Symmetry, arrangement: str):
        super().__init__()
        self.big = widen(model, symmetry)
        self.expansions = site_expansions(model, self.big, symmetry, arrangement)
        self._small = dict(model.net.named_parameters())
        config = {
            n: ExpansionReparam(e, functools.partial(model.prior_of, n, self._small[n]))
            for n, e in self.expansions.items()
        }
        self._tied = pyro.poutine.reparam(self.big.with_prior(1.0), config=config)  # its priors are never used

    @property
    def is_equivariant(self) -> bool:
        """Whether every draw is an equivariant network, which the arrangement decides."""
        return all(expansion.is_equivariant for expansion in self.expansions.values())

    def forward(self, x, y=None):
        return self._tied(x, y)

    def init_loc_fn(self, site: dict) -> torch.Tensor:
        """The small network's own values; the kernels ``V_k`` of a free layer start independent of one another."""
        name = site["name"].removesuffix(BASE)
        if name not in self.expansions:
            raise not_a_parameter(name)
        if name == site["name"]:
            return init_to_feasible(site)  # a deterministic site, which is asked for before it gets its value
        large = self.big.net.get_parameter(name)
        return self.expansions[name].fresh(self._small[name], large).detach().clone()


def expand(model: BayesianNetwork, symmetry: Symmetry, arrangement: str = "free") -> "ExpandedNetwork":
    """The expanded network as a Pyro model that samples the small network's weights.

    A network with ``|G|`` times the hidden channels is run; for each of its sites ``<site>``, ``<site>_base`` is
    sampled from the small network's prior and the site is its expansion, deterministic
    (:class:`~pyro_equivariance.networks.expanded.SiteExpansion`). Every draw is an equivariant network, but for
    ``row_constant``.

    :param BayesianNetwork model: the small network's model.
    :param Symmetry symmetry: the small network's, with trivial hidden features.
    :param str arrangement: ``"free"``, ``"gcnn"``, ``"row_rolled"``, ``"diagonal"`` or ``"row_constant"``.

    >>> import torch, pyro, pyro_equivariance as pe
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.ReLU(),
    ...     torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(2, 3))
    >>> sym = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 4, 4), hidden="trivial")
    >>> big = pe.handlers.expand(pe.BayesianNetwork(net), sym)
    >>> trace = pyro.poutine.trace(big).get_trace(torch.zeros(1, 1, 4, 4))
    >>> trace.nodes["0.weight"]["value"].shape
    torch.Size([8, 1, 3, 3])
    """
    return ExpandedNetwork(model, symmetry, arrangement)


def widen(model: BayesianNetwork, symmetry: Symmetry) -> BayesianNetwork:
    """The model of the network with ``|G|`` times the hidden channels, the prior rule applied to its own fan-in."""
    inputs, outputs = symmetry.inputs, symmetry.outputs
    small = network_symmetry(model.net, symmetry.group, inputs.event_shape, "trivial", outputs, inputs=inputs)
    for name, rep in small.sites.items():
        if symmetry[name] != rep:
            raise SymmetryError(
                f"Expected the small network's symmetry with hidden='trivial'; site {name!r} moves by {symmetry[name]}."
            )
    return model.with_net(widen_network(model.net, symmetry.group, inputs.event_shape, outputs, inputs))


def expanded_symmetry(big: BayesianNetwork, symmetry: Symmetry, arrangement: str) -> Symmetry:
    """The large network's symmetry: regular hidden channels, for ``row_rolled`` with a shift that grows by layer."""
    inputs, outputs = symmetry.inputs, symmetry.outputs
    hidden = "rolled" if arrangement == "row_rolled" else "regular"
    return network_symmetry(big.net, symmetry.group, inputs.event_shape, hidden, outputs, inputs=inputs)


def site_expansions(
    model: BayesianNetwork, big: BayesianNetwork, symmetry: Symmetry, arrangement: str
) -> dict[str, SiteExpansion]:
    """For each site, which of its axes the big network repeats, read off the two shapes.

    :raises LayerError: for a site whose moved copies do not fit the large network's symmetry.
    """
    large = dict(big.net.named_parameters())
    expansions = {
        name: SiteExpansion(
            symmetry[name],
            inputs=parameter.ndim > 1 and large[name].shape[1] != parameter.shape[1],
            outputs=large[name].shape[0] != parameter.shape[0],
            arrangement=arrangement,
        )
        for name, parameter in model.net.named_parameters()
    }
    if all(e.is_equivariant for e in expansions.values()):
        _check_expansions(expansions, expanded_symmetry(big, symmetry, arrangement), arrangement)
    if arrangement == "diagonal":
        _check_diagonal(model, big, symmetry, expansions)
    return expansions


@torch.no_grad()
def _check_diagonal(model: BayesianNetwork, big: BayesianNetwork, symmetry: Symmetry, expansions) -> None:
    """The large network must be the mean of the small one over the orbit, at its own weights and random inputs."""
    small = dict(model.net.named_parameters())
    like = next(iter(small.values()))
    x = torch.randn(2, *symmetry.inputs.event_shape, generator=torch.Generator().manual_seed(0)).to(like)
    nets = copy.deepcopy(model.net).eval(), copy.deepcopy(big.net).eval()
    copies = torch.stack([nets[0](moved) for moved in symmetry.inputs.orbit(x)])
    if symmetry.outputs is not None:
        group = symmetry.group
        copies = symmetry.act_outputs(group.inverse(group.elements)[:, None], copies)
    found = torch.func.functional_call(nets[1], {n: e.expand(small[n]) for n, e in expansions.items()}, (x,))
    if (found - copies.mean(0)).abs().max() > 1e-3 * copies.abs().max():
        raise LayerError(
            "Expected layers that keep channels apart or mix them linearly, for arrangement='diagonal'; a LayerNorm, a "
            "softmax over channels or an attention mixes the copies. Use GroupNorm, or arrangement='free'."
        )


@torch.no_grad()
def _check_expansions(expansions: dict[str, SiteExpansion], large: Symmetry, arrangement: str) -> None:
    """Each expanded tensor must be fixed by the large symmetry, whatever the base."""
    for name, expansion in expansions.items():
        base = torch.arange(1.0, expansion.base_shape.numel() + 1).cos().reshape(expansion.base_shape)
        expanded = expansion.expand(base)
        moved = [large[name].act(g, expanded) for g in large.group.generators]
        if any((m - expanded).abs().max() > 1e-4 for m in moved):
            raise LayerError(
                f"Expected a site that arrangement={arrangement!r} makes equivariant; {name!r} is not: its channels "
                f"are not whole blocks (after a concatenation or a Flatten of tokens), or row_rolled ends in a layer "
                f"that sees places. Pool before it, or use hidden='regular' with pe.AutoSymmetricNormal."
            )
