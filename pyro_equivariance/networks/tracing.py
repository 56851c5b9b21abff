"""The symmetry of a network, read off its layers in the order in which they run."""

import copy
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import fx, nn

from ..errors import LayerError, SymmetryError
from ..groups import Group
from ..representations import Representation, grid, trivial
from ..symmetry import Symmetry
from .base import Feature, Reader, UnlikeActions, check_hidden, factors_of
from .layers import LAYERS, stand_in, widened
from .operations import Operations, Parameter, same_action

BY_HAND = "pass features={{{name!r}: representation of its output}} and sites={{parameter: representation}} by hand"
ALONE = "layer"


def network_symmetry(
    net: nn.Module,
    group: Group,
    input_shape,
    hidden: str | Representation = "regular",
    outputs: Representation | None = None,
    sites: Mapping[str, Representation] | None = None,
    features: Mapping[str, Representation] | None = None,
    inputs: Representation | None = None,
) -> Symmetry:
    """The action on a network's parameters that makes ``f(ρ_X(g) x; ρ(g) θ) = ρ_Y(g) f(x; θ)``.

    A layer's weight moves as ``W ↦ ρ_out(g) W ρ_in(g)⁻¹`` (a kernel also turns in space), its bias with
    ``ρ_out``. Known are convolutions in one to three dimensions, Linear, Embedding, MultiheadAttention, the
    normalisations without running statistics, the poolings, Flatten, Dropout, the usual activations and
    :class:`~pyro_equivariance.Residual`; and sums, means, concatenations, transpositions and
    ``scaled_dot_product_attention`` in any module that :mod:`torch.fx` can trace. Parameters that a module adds by
    itself, such as a table of positions, move as what they are added to.

    :param Module net: the network.
    :param Group group: acts on images by :func:`~pyro_equivariance.image`, on sequences by
        :func:`~pyro_equivariance.sequence`, on volumes by :func:`~pyro_equivariance.volume`; otherwise see ``inputs``.
    :param tuple input_shape: of one input: ``(C, L)``, ``(C, H, W)`` or ``(C, D, H, W)``, or that of ``inputs``.
    :param hidden: how hidden channels move, in blocks: channel index ``g · C + c``.

        - ``"regular"``: ``len(group)`` blocks that the group permutes as itself;
        - ``"trivial"``: they stay;
        - ``"quotient(s)"``: the cosets of the subgroup that the named elements generate are permuted;
        - ``"regular + trivial"`` and other sums: each summand with equally many copies;
        - a representation on one axis, likewise copied;
        - ``"rolled"``: regular in the first layer, its shift raised by one per layer (``g`` acts as ``g^l`` in layer
          ``l``), for abelian groups: what the arrangement ``row_rolled`` of an expansion gives.
    :param Representation outputs: how the network's output moves; ``None`` for invariant.
    :param dict sites: representations by hand, for parameters of a layer that is not known.
    :param dict features: likewise for the outputs of such layers, by module name.
    :param Representation inputs: how one input moves, where it is no grid or the group acts in another way: points
        ``pe.permutation(S_n) * pe.trivial(S_n, 3)``, a vector ``pe.vector(group)``, tokens ``pe.sequence(group, L)``.
    :raises LayerError: for a layer it cannot read, channels that ``len(group)`` does not divide, or outputs that move
        otherwise than ``outputs`` says.

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
    check_hidden(group, hidden)
    inputs = _inputs(group, input_shape, inputs)
    walk = _walk(net, inputs, hidden, outputs, sites or {}, features or {})
    check_outputs(walk.end, outputs)
    _check_used(sites or {}, walk.used, "sites")
    _check_used(features or {}, walk.used, "features")
    own = own_sites(net, walk.sites)
    return Symmetry(group, own, inputs=inputs, outputs=outputs, features=walk.features)


def widen_network(
    net: nn.Module,
    group: Group,
    input_shape,
    outputs: Representation | None = None,
    inputs: Representation | None = None,
) -> nn.Module:
    """The same network with ``len(group)`` times the hidden channels and fresh parameters.

    :raises LayerError: if there is no hidden layer to widen, or a layer that cannot be.
    """
    inputs = _inputs(group, input_shape, inputs)
    walk = _walk(net, inputs, "trivial", outputs, {}, {})
    if not walk.reader.last or set(walk.layers) <= walk.reader.last:
        raise LayerError("Expected a network with a hidden layer to expand; got one layer with parameters or none.")
    if bare := [site for site in walk.sites if not any(site.startswith(f"{layer}.") for layer in walk.layers)]:
        raise LayerError(f"Expected parameters of layers that can be expanded; {bare[0]!r} stands by itself.")
    order, big = len(group), copy.deepcopy(net)
    for name, before_is_hidden in walk.layers.items():
        factor = order if before_is_hidden else 1
        small, wide = (
            big.get_submodule(name),
            widened(net.get_submodule(name), factor, 1 if name in walk.reader.last else order),
        )
        for alias in [n for n, module in big.named_modules(remove_duplicate=False) if module is small]:
            parent, _, leaf = alias.rpartition(".")
            setattr(big.get_submodule(parent), leaf, wide)
    _check_runs(big, inputs)
    if {name for name, _ in big.named_parameters()} != {name for name, _ in net.named_parameters()}:
        raise LayerError("Expected layers with parameters of their own, to be expanded; some are tied. Untie them.")
    return big


@torch.no_grad()
def _check_runs(big: nn.Module, inputs: Representation) -> None:
    like = next(big.parameters())
    try:
        copy.deepcopy(big).eval()(like.new_zeros(1, *inputs.event_shape))
    except RuntimeError as error:
        raise LayerError(
            f"Expected a network whose layers fit once their channels are repeated: {str(error).splitlines()[0]}. "
            f"A shortcut from the input needs a convolution or linear layer of its own."
        ) from error


def _inputs(group: Group, input_shape, inputs: Representation | None) -> Representation:
    """How one input moves: as given, or by the grid of its shape."""
    shape = torch.Size((input_shape,) if isinstance(input_shape, int) else input_shape)
    if inputs is not None and inputs.is_approximate:
        raise SymmetryError(
            f"Expected inputs that move exactly, to read a network's symmetry; {inputs} interpolates. Use a group of "
            f"90° turns, or pe.Symmetry(group, {{}}, inputs=...) for augmentation and metrics alone."
        )
    if inputs is not None and (inputs.event_shape != shape or inputs.group != group):
        raise SymmetryError(f"Expected inputs= of {group} on the input_shape {tuple(shape)}; got {inputs!r} of "
                            f"{inputs.group} on {tuple(inputs.event_shape)}.")  # fmt: skip
    if inputs is not None:
        return inputs
    if len(shape) < 2:
        raise SymmetryError(
            f"Expected inputs= for inputs of shape {tuple(shape)}: how the group moves them, such as pe.vector(group)."
        )
    return trivial(group, shape[:1]) * grid(group, shape[1:])


class _Walk(fx.Interpreter):
    """Runs a traced network on :class:`Feature` values instead of tensors, and collects what it meets."""

    def __init__(self, module: fx.GraphModule, reader: Reader, given_sites, given_features):
        super().__init__(module)
        self.extra_traceback = False  # fx would append its graph to our one-line messages
        self.reader, self._given_sites, self._given_features = reader, given_sites, given_features
        self.sites: dict[str, Representation] = {}
        self.features: dict[str, Representation] = {}
        self.layers: dict[str, bool] = {}
        self.used: set[str] = set()  # names given by hand that were met
        self.end = None
        self._operations = Operations(lambda parameter, rep: self._add_site(parameter.name, rep))

    def call_module(self, target, args, kwargs):
        layer, given = self.fetch_attr(target), [*args, *kwargs.values()]
        feature = given[0] if given else None
        if target in self._given_features:
            moved, own = self._by_hand(target, layer)
        else:
            self._check_arguments(target, layer, given)
            moved, own = self._rule(target, layer).read(target, layer, feature, self.reader)
        for parameter, rep in own.items():
            self._add_site(f"{target}.{parameter}", rep)
        if own:
            self.layers[target] = feature.hidden
        self.features[target] = moved.representation
        return (moved, None) if isinstance(layer, nn.MultiheadAttention) else moved

    def get_attr(self, target, args, kwargs):
        value = self.fetch_attr(target)
        if not isinstance(value, nn.Parameter):
            raise LayerError(f"Expected parameters only; the network uses the buffer {target!r}, which nothing moves.")
        if target in self._given_sites:
            self.sites[target] = self._given_sites[target]
            self.used.add(target)
        return Parameter(target, value.shape)

    def call_function(self, target, args, kwargs):
        return self._call(target, args, kwargs)

    def call_method(self, target, args, kwargs):
        return self._call(target, args, kwargs)

    def _call(self, target, args, kwargs):
        if target in self._operations.table:
            try:
                return self._operations.table[target](*args, **kwargs)
            except (TypeError, AttributeError, IndexError) as error:
                raise self._unknown(target) from error
        layer = stand_in(target, args[1:], {k: v for k, v in kwargs.items() if k != "inplace"})
        if layer is None or not isinstance(args[0], Feature):
            raise self._unknown(target)
        return LAYERS[type(layer)].read(_name(target), layer, args[0], self.reader)[0]

    def _unknown(self, target) -> LayerError:
        return LayerError(
            f"Expected a layer that can be read; got the function {_name(target)!r}. Use a torch.nn module for it."
        )

    def _rule(self, name: str, layer: nn.Module):
        if type(layer) not in LAYERS:
            raise LayerError(
                f"Expected a layer whose symmetry is known; {name!r} is a {type(layer).__name__}. "
                f"To use it, {BY_HAND.format(name=name)}."
            )
        return LAYERS[type(layer)]

    def _check_arguments(self, name: str, layer: nn.Module, given) -> None:
        if not given or not isinstance(given[0], Feature):
            raise LayerError(f"Expected one tensor of features before {name!r}; got another argument.")
        if len({id(value) for value in given if isinstance(value, Feature)}) > 1:
            raise LayerError(f"Expected self-attention, of one tensor with itself, in {name!r}; got several tensors.")

    def _by_hand(self, name: str, layer: nn.Module) -> tuple[Feature, dict[str, Representation]]:
        own = {p: f"{name}.{p}" for p, _ in layer.named_parameters()}
        missing = [site for site in own.values() if site not in self._given_sites]
        if missing:
            raise SymmetryError(f"Expected sites={{{missing[0]!r}: representation}}, since {name!r} is read by hand.")
        self.used |= {name, *own.values()}
        moved = Feature(factors_of(self._given_features[name]), depth=1)
        return moved, {p: self._given_sites[site] for p, site in own.items()}

    def _add_site(self, site: str, rep: Representation) -> None:
        known = self.sites.setdefault(site, rep)
        if known.event_shape != rep.event_shape or not same_action(known, rep):
            raise UnlikeActions(
                f"Expected one action on the shared parameter {site!r}; it is used where it would need two.", known, rep
            )


def _walk(net, inputs: Representation, hidden, outputs, sites, features) -> _Walk:
    return walk_through(
        net, Feature(factors_of(inputs)), partial(Reader, inputs.group, hidden, outputs), sites, features
    )


def walk_through(net: nn.Module, start: Feature, make_reader: Callable[[frozenset], Reader], sites, features) -> _Walk:
    """The network run on a feature; ``make_reader`` takes the names of its last layers."""
    alone = type(net) in LAYERS
    traced = _trace(_alone(net) if alone else net, features)
    walk = _Walk(traced, make_reader(_last_layers(traced, features)), sites, features)
    with torch.no_grad(), _in_one_line():
        walk.end = walk.run(start)
    if alone:
        walk.sites = {name.removeprefix(f"{ALONE}."): rep for name, rep in walk.sites.items()}
        walk.features = {}
    return walk


@contextmanager
def _in_one_line():
    """What torch raises for layers that do not fit, as a :class:`LayerError` of one line."""
    try:
        yield
    except (RuntimeError, NotImplementedError, AssertionError, IndexError, AttributeError) as error:
        said = " ".join(str(error).split("\n")[0].split())
        raise LayerError(
            f"Expected a network whose layers can be read on this input; torch says: {said or type(error).__name__}. "
            f"Build pe.Symmetry(group, sites, inputs=...) by hand if it runs."
        ) from error


def _alone(net: nn.Module) -> nn.Module:
    """A single layer as a network of one."""
    wrapped = nn.Sequential()
    wrapped.add_module(ALONE, net)
    return wrapped


def _last_layers(traced: fx.GraphModule, given) -> frozenset[str]:
    """The layers whose channels reach the output without another layer that mixes them."""
    (end,) = (node for node in traced.graph.nodes if node.op == "output")
    last, seen, waiting = set(), set(), [end]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "call_module" and _mixes(traced.get_submodule(node.target), node.target in given):
            last.add(node.target)
        else:
            waiting += node.all_input_nodes
    return frozenset(last)


def _mixes(layer: nn.Module, by_hand: bool) -> bool:
    if by_hand or type(layer) not in LAYERS:
        return next(layer.parameters(), None) is not None
    return LAYERS[type(layer)].mixes


def check_outputs(end, outputs: Representation | None) -> None:
    """Raise unless the network's output moves as ``outputs`` says."""
    if not isinstance(end, Feature):
        raise LayerError(f"Expected a network that returns one tensor; got {type(end).__name__}.")
    moved = end.representation
    wanted = outputs if outputs is not None else trivial(moved.group, moved.event_shape)
    if moved.event_shape != wanted.event_shape:
        raise LayerError(
            f"Expected outputs= on the shape {tuple(moved.event_shape)} of the network's output; got "
            f"{tuple(wanted.event_shape)}."
        )
    if not same_action(moved, wanted):
        said = "invariant (outputs=None)" if outputs is None else f"moved by {outputs}"
        raise LayerError(
            f"Expected an output that is {said}; the network's moves by {moved}. Pass that as outputs=, or pool over "
            f"the axes that move."
        )


def _check_used(given, used: set[str], what: str) -> None:
    """Raise for a name given by hand that fits nothing."""
    if unused := [name for name in given if name not in used]:
        raise SymmetryError(
            f"Expected {what}= to name layers that are read by hand or parameters of theirs; {unused[0]!r} is none. "
            f"A layer is read by hand if features= names it."
        )


def own_sites(net: nn.Module, sites: dict[str, Representation]) -> dict[str, Representation]:
    """The sites by the names that ``net.named_parameters()`` has, tied parameters once.

    :raises LayerError: for a parameter that is computed from others, or tied ones that would need two actions.
    """
    known = dict(net.named_parameters(remove_duplicate=False))
    if computed := [site for site in sites if site not in known]:
        raise LayerError(
            f"Expected {computed[0]!r} to be a parameter of the network; it is computed from others, as in pruned or "
            f"parametrized layers. Make it a plain one (torch.nn.utils.prune.remove, remove_parametrizations)."
        )
    own, first = {}, {id(parameter): name for name, parameter in reversed(known.items())}
    for site, rep in sites.items():
        name = first[id(known[site])]
        if not same_action(own.setdefault(name, rep), rep):
            raise UnlikeActions(
                f"Expected one action on the tied parameters {name!r} and {site!r}; they are used where they would "
                f"need two. Untie them.",
                own[name],
                rep,
            )
    return own


def _name(target) -> str:
    return target if isinstance(target, str) else target.__name__


def _trace(net: nn.Module, given) -> fx.GraphModule:
    tracer = _Tracer(given)
    try:
        with _in_one_line():
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
            or isinstance(m, tuple(LAYERS))  # a subclass may do something else, which the rule then says
            or super().is_leaf_module(m, module_qualified_name)
        )
