"""The symmetry of a network, read off its layers in the order in which they run."""

import copy
from collections.abc import Mapping

import torch
from torch import fx, nn

from ..errors import LayerError, SymmetryError, check_option
from ..groups import Group
from ..representations import Product, Representation, image, trivial
from ..symmetry import Symmetry
from .base import HIDDEN, Feature, Reader
from .layers import LAYERS, stand_in, widened

BY_HAND = "pass features={{{name!r}: representation of its output}} and sites={{parameter: representation}} by hand"


def network_symmetry(
    net: nn.Module,
    group: Group,
    input_shape,
    hidden: str = "regular",
    outputs: Representation | None = None,
    sites: Mapping[str, Representation] | None = None,
    features: Mapping[str, Representation] | None = None,
) -> Symmetry:
    """The action on a network's parameters that makes ``f(ρ_X(g) x; ρ(g) θ) = ρ_Y(g) f(x; θ)``.

    A layer's weight moves as ``W ↦ ρ_out(g) W ρ_in(g)⁻¹`` (a kernel also turns in space), its bias with
    ``ρ_out``. Known layers are Conv2d (stride 1), Linear, the poolings, Flatten, Dropout and the pointwise
    activations, in a Sequential or in any module that :mod:`torch.fx` can trace.

    :param Module net: the network.
    :param Group group: acts on images by :func:`~pyro_equivariance.image`.
    :param tuple input_shape: of one input, ``(C, H, W)``.
    :param str hidden: ``"regular"``: hidden channels come in ``len(group)`` blocks that the group permutes,
        channel index ``g · C + c``; ``"trivial"``: they stay.
    :param Representation outputs: how the network's output moves; ``None`` for invariant.
    :param dict sites: representations by hand, for parameters of a layer that is not known.
    :param dict features: likewise for the outputs of such layers, by module name.
    :raises LayerError: for a layer it cannot read, or channels that ``len(group)`` does not divide.

    >>> import torch, pyro_equivariance as pe
    >>> net = torch.nn.Sequential(
    ...     torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
    ...     torch.nn.Flatten(), torch.nn.Linear(8, 10))
    >>> sym = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 8, 8))
    >>> sym.sites["0.weight"]
    regular(8) * trivial(1,) * image(3, 3)
    >>> sym.check(net) < 1e-12
    True
    """
    check_option("hidden", hidden, HIDDEN)
    walk = _walk(net, group, input_shape, hidden, outputs, sites or {}, features or {})
    inputs = image(group, input_shape)
    return Symmetry(group, walk.sites, inputs=inputs, outputs=outputs, features=walk.features)


def widen_network(net: nn.Module, group: Group, input_shape, outputs: Representation | None = None) -> nn.Module:
    """The same network with ``len(group)`` times the hidden channels and fresh parameters.

    :raises LayerError: if there is no hidden layer to widen.
    """
    walk = _walk(net, group, input_shape, "trivial", outputs, {}, {})
    if len(walk.layers) < 2:
        raise LayerError("Expected a network with a hidden layer to expand; got one layer with parameters or none.")
    big = copy.deepcopy(net)
    for name, before_is_hidden in walk.layers.items():
        inputs = len(group) if before_is_hidden else 1
        outputs_factor = 1 if name == walk.reader.last else len(group)
        small, wide = big.get_submodule(name), widened(net.get_submodule(name), inputs, outputs_factor)
        for alias in [n for n, module in big.named_modules(remove_duplicate=False) if module is small]:
            parent, _, leaf = alias.rpartition(".")
            setattr(big.get_submodule(parent), leaf, wide)
    return big


class _Walk(fx.Interpreter):
    """Runs a traced network on :class:`Feature` values instead of tensors, and collects what it meets."""

    def __init__(self, module: fx.GraphModule, reader: Reader, given_sites, given_features):
        super().__init__(module)
        self.extra_traceback = False  # fx would append its graph to our one-line messages
        self.reader, self._given_sites, self._given_features = reader, given_sites, given_features
        self.sites: dict[str, Representation] = {}
        self.features: dict[str, Representation] = {}
        self.layers: dict[str, bool] = {}

    def call_module(self, target, args, kwargs):
        layer, feature = self.fetch_attr(target), args[0]
        if target in self._given_features:
            moved, own = self._by_hand(target, layer)
        else:
            moved, own = self._rule(target, layer).read(target, layer, feature, self.reader)
        for parameter, rep in own.items():
            self._add_site(f"{target}.{parameter}", rep)
        if own:
            self.layers[target] = feature.hidden
        self.features[target] = moved.representation
        return moved

    def call_function(self, target, args, kwargs):
        return self._call(target, args, kwargs)

    def call_method(self, target, args, kwargs):
        return self._call(target, args, kwargs)

    def _call(self, target, args, kwargs):
        name = target if isinstance(target, str) else target.__name__
        layer = stand_in(target, args[1:], {k: v for k, v in kwargs.items() if k != "inplace"})
        if layer is None or not isinstance(args[0], Feature):
            raise LayerError(
                f"Expected a layer that can be read; got the function {name!r}. Use a torch.nn module for it."
            )
        return LAYERS[type(layer)].read(name, layer, args[0], self.reader)[0]

    def _rule(self, name: str, layer: nn.Module):
        if type(layer) not in LAYERS:
            raise LayerError(
                f"Expected a layer whose symmetry is known; {name!r} is a {type(layer).__name__}. "
                f"To use it, {BY_HAND.format(name=name)}."
            )
        return LAYERS[type(layer)]

    def _by_hand(self, name: str, layer: nn.Module) -> tuple[Feature, dict[str, Representation]]:
        own = {p: f"{name}.{p}" for p, _ in layer.named_parameters()}
        missing = [site for site in own.values() if site not in self._given_sites]
        if missing:
            raise SymmetryError(f"Expected sites={{{missing[0]!r}: representation}}, since {name!r} is read by hand.")
        return _as_feature(self._given_features[name]), {p: self._given_sites[site] for p, site in own.items()}

    def _add_site(self, site: str, rep: Representation) -> None:
        if self.sites.setdefault(site, rep) != rep:
            raise LayerError(
                f"Expected one action on the shared parameter {site!r}; it is used where it would need two."
            )


def _as_feature(rep: Representation) -> Feature:
    """A feature from a representation given by hand: images if it is a product of channels and an image."""
    if isinstance(rep, Product) and len(rep.left.event_shape) == 1 and len(rep.right.event_shape) == 2:
        return Feature(rep.left, tuple(rep.right.event_shape), hidden=True)
    return Feature(rep, hidden=True)


def _walk(net, group, input_shape, hidden, outputs, sites, features) -> _Walk:
    shape = torch.Size(input_shape)
    traced = _trace(net, features)
    last = [n.target for n in traced.graph.nodes if n.op == "call_module" and _has_parameters(net, n.target)]
    reader = Reader(group, hidden, outputs, last[-1] if last else "")
    walk = _Walk(traced, reader, sites, features)
    channels = trivial(group, shape[:1])
    image(group, shape)
    with torch.no_grad():
        walk.run(Feature(channels, tuple(shape[1:])))
    return walk


def _trace(net: nn.Module, given) -> fx.GraphModule:
    tracer = _Tracer(given)
    try:
        return fx.GraphModule(net, tracer.trace(net))
    except (fx.proxy.TraceError, TypeError) as error:
        raise LayerError(
            f"Expected a network whose forward has no control flow on its inputs; torch.fx says: {error}. "
            f"Build pe.Symmetry(group, sites, inputs=...) by hand."
        ) from error


class _Tracer(fx.Tracer):
    def __init__(self, given):
        super().__init__()
        self._given = given

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            module_qualified_name in self._given
            or type(m) in LAYERS
            or super().is_leaf_module(m, module_qualified_name)
        )


def _has_parameters(net: nn.Module, name: str) -> bool:
    return next(net.get_submodule(name).parameters(), None) is not None
