"""What the parameters of a guide are: its Normals' means and scales, and how the group moves them."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.transforms import transform_to
from pyro.infer.autoguide import AutoContinuous
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from ..errors import SymmetryError
from ..handlers import AUXILIARY
from ..networks.bayesian import BayesianNetwork
from ..representations import Representation
from ..spaces import IsometricLogRatio, check_transforms, space_of
from ..symmetry import Symmetry, random_inputs
from .base import joint_action, own_randomness
from .joint import AutoJoint

# A distribution and the action on the coordinates that it is a distribution of.
Law = tuple[torch.distributions.Distribution, Representation]


def mean_field_parameters(guide, *args) -> dict[str, tuple[dict, dict, int]]:
    """For each latent site of a mean-field Normal guide: the messages of its mean and scale, and its event axes."""
    trace = poutine.trace(guide).get_trace(*args)
    params = {node["value"].data_ptr(): node for node in trace.nodes.values() if node["type"] == "param"}
    found = {}
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or node["is_observed"] or isinstance(node["fn"], _Subsample):
            continue
        site = name.removesuffix(AUXILIARY) if node["infer"].get("is_auxiliary") else name
        if isinstance(node["fn"], dist.Delta) and name in found:
            continue
        core = core_normal(node["fn"])
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


def parameter_actions(guide, symmetry: Symmetry, *args) -> list[tuple[Tensor, Representation]]:
    """The unconstrained leaves of a mean-field Normal guide, and the linear action of the group on each.

    Means move as their site does, scales (whose constraint acts entry by entry) as its modulus.

    :param guide: an initialised guide whose means and scales are parameters of their own.
    :param Symmetry symmetry: by signed permutations.
    :raises SymmetryError: for a guide whose parameters the group does not move linearly.
    """
    if getattr(guide, "always_invariant", False):
        raise SymmetryError(
            f"Expected a guide with parameters that the group moves; {type(guide).__name__} is invariant for every "
            f"value of its parameters, so that there is nothing to average."
        )
    actions = []
    for name, (loc, scale, event_dim) in mean_field_parameters(guide, *args).items():
        rep = _coordinates(guide, symmetry, name, [])
        if not (rep.is_monomial and rep.is_orthogonal) or len(rep.event_shape) < event_dim:
            raise SymmetryError(
                f"Expected site {name!r} to be moved by signed permutations, which move means and scales linearly; "
                f"got {rep}. Use pe.AutoSymmetricMultivariateNormal or pe.AutoOrbitMixture."
            )
        actions += [(_leaf(name, loc, constraints.real), rep), (_leaf(name, scale, None), rep.modulus())]
    return actions


def site_laws(guide, symmetry: Symmetry, *args) -> dict[tuple[str, ...], Law]:
    """The guide's laws, of one site each or of all together, in coordinates that the group moves linearly.

    :raises SymmetryError: for a guide whose coordinates it does not move so.
    """
    if getattr(guide, "prototype_trace", True) is None and not args:
        raise SymmetryError(
            f"Expected {type(guide).__name__} to be initialised. Call it once with the model's arguments, or pass them."
        )
    with own_randomness(0):
        if isinstance(guide, (AutoJoint, AutoContinuous)):
            return _joint_law(guide, symmetry, *args)
        trace = poutine.trace(guide).get_trace(*args)
        again = poutine.trace(guide).get_trace(*args).nodes
    laws: dict[tuple[str, ...], Law] = {}
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or node["is_observed"] or isinstance(node["fn"], _Subsample):
            continue
        site = name.removesuffix(AUXILIARY) if node["infer"].get("is_auxiliary") else name
        if isinstance(node["fn"], dist.Delta) and (site,) in laws:
            continue
        fn, transforms = node["fn"], []
        while isinstance(fn, (torch.distributions.Independent, torch.distributions.TransformedDistribution)):
            transforms = [*getattr(fn, "transforms", ()), *transforms]
            fn = fn.base_dist
        on_values = name == site and not transforms and symmetry[site].space == "constrained"
        _check_fixed(site, fn, core_normal(again[name]["fn"]) if name in again else None)
        laws[site,] = fn, symmetry[site] if on_values else _coordinates(guide, symmetry, site, transforms)
    return laws


def _joint_law(guide: AutoJoint | AutoContinuous, symmetry: Symmetry, *args) -> dict[tuple[str, ...], Law]:
    if guide.prototype_trace is None:
        guide(*args)
    nodes = dict(guide.prototype_trace.iter_stochastic_nodes())
    spaces = {name: space_of(symmetry, name, node) for name, node in nodes.items()}
    own = guide._shapes if isinstance(guide, AutoJoint) else guide._unconstrained_shapes
    for name, space in spaces.items():
        if not isinstance(guide, AutoJoint) or guide._transforms[name] != space.transform:
            _check_kept(name, space.transform, space.rep)
    rep = joint_action(symmetry.group, spaces, {name: own[name] for name in nodes})
    return {tuple(nodes): (guide.get_posterior(), rep)}


def _coordinates(guide, symmetry: Symmetry, site: str, transforms) -> Representation:
    """The action on what a guide's Normal of a site is a law of."""
    prototype = getattr(guide, "prototype_trace", None)
    if prototype is None or site not in prototype.nodes:
        rep = symmetry[site]
        check_transforms(site, transforms, rep, rep.event_shape)
        return rep
    space = space_of(symmetry, site, prototype.nodes[site])
    _check_kept(site, space.transform, space.rep)
    return space.rep


def _check_fixed(site: str, fn, other) -> None:
    """Raise if a site's law changed from one draw to the next, so that it is no law of its own."""
    names = [name for name in fn.arg_constraints if name in vars(fn) or hasattr(fn, name)]
    same = type(fn) is type(other) and all(torch.equal(getattr(fn, name), getattr(other, name)) for name in names)
    if not same:
        raise SymmetryError(
            f"Expected sites that are drawn independently, with parameters of their own; those of {site!r} depend on "
            f"other draws, so that its divergence has no closed form. Use pe.AutoSymmetricMultivariateNormal, which "
            f"has one, for correlated sites."
        )


def _check_kept(site: str, transform, rep: Representation) -> None:
    if isinstance(transform, IsometricLogRatio) and not rep.is_permutation:
        raise SymmetryError(
            f"Expected coordinates of site {site!r} that the group moves linearly; this guide's break the simplex "
            f"stick by stick, in an order. Use pe.AutoSymmetricMultivariateNormal or pe.AutoOrbitMixture."
        )


def example_of(model: BayesianNetwork, symmetry: Symmetry, random: bool = False) -> tuple[Tensor, Tensor]:
    """One blank input, or two random ones, and observations drawn for them, to run a guide with."""
    like = next(model.net.parameters())
    x = like.new_zeros(1, *symmetry.inputs.event_shape)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        if random:
            x = random_inputs(model.net, symmetry.inputs.event_shape, torch.Generator().manual_seed(0))
            x = x.to(like) if x.is_floating_point() else x.to(like.device)
        return x, poutine.block(poutine.trace(model).get_trace)(x).nodes["y"]["value"]


def _leaf(site: str, param: dict, constraint) -> Tensor:
    """The unconstrained tensor behind a parameter; its transform has to act entry by entry."""
    value = param["value"]
    leaf = value.unconstrained() if hasattr(value, "unconstrained") else value
    if leaf.shape != value.shape or (constraint is constraints.real and not torch.equal(leaf, value)):
        raise SymmetryError(
            f"Expected the mean of site {site!r} to be a real parameter and its scale one constrained entry by entry, "
            f"so that the group moves them linearly; got {param['name']!r} under another constraint."
        )
    return leaf


def core_normal(fn):
    """The distribution behind events and transforms."""
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return core_normal(fn.base_dist) if isinstance(fn, torch.distributions.TransformedDistribution) else fn


def value_of(param: dict) -> Tensor:
    """The value of a ``param`` message, detached."""
    return param["value"].detach().clone()


def assign(param: dict, value: Tensor) -> None:
    """Write a constrained value into the leaf that a ``param`` message came from."""
    leaf = param["value"].unconstrained() if hasattr(param["value"], "unconstrained") else param["value"]
    # A PyroModule asks for its parameters without their constraint, which the store then knows.
    known = pyro.get_param_store()._constraints
    constraint = known.get(param["name"], param["kwargs"].get("constraint", torch.distributions.constraints.real))
    leaf.copy_(transform_to(constraint).inv(value))
