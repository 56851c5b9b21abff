"""The permutations of a network's hidden units, read off its layers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from torch import nn

from ..errors import LayerError, OptionError
from ..groups import YoungSubgroup
from ..representations import BlockPermutation, DirectSum, Representation, Reshaped, Trivial, permutation, trivial
from ..symmetry import Symmetry
from .base import Feature, Reader, UnlikeActions, factors_of
from .tracing import check_outputs, own_sites, walk_through


def hidden_permutations(net: nn.Module, input_shape=None) -> Symmetry:
    """The symmetry of a network under permutations of its hidden units: ``f(x; ρ(g) θ) = f(x; θ)``.

    The units (channels) of each hidden layer are permuted by a block of their own, in its rows of weights, its bias,
    and the columns of what follows; inputs and outputs do not move. The group is the
    :class:`~pyro_equivariance.YoungSubgroup` of the widths. Known are the layers of
    :func:`~pyro_equivariance.network_symmetry`, and these share or fix units:

    - layers whose channels are added or multiplied (residual connections) share a block;
    - channels that meet the input, or the last layer's, in a sum do not move, nor do those that a GroupNorm of several
      groups tells apart; concatenated ones keep their blocks;
    - of an attention the inner units stay, head by head, and its output's channels move.

    The group is large: ``log |G| = Σ_l log n_l!`` is 61.3 for two layers of 16 units. It is never summed over: an
    :class:`~pyro_equivariance.AutoOrbitMixture` uses the bound from ``samples`` of its elements, and gains at most
    ``log samples`` of the information ``I(g; θ) ≤ log |G|``. The sign flips of units with an odd activation, such as
    tanh, are no part of it. An average over the group, unlike a mixture, makes all units of a block alike.

    Source: Hecht-Nielsen (1990) "On the algebraic structure of feedforward network weight spaces".

    :param Module net: the network.
    :param input_shape: of one input; it may be left out where the first layer is Linear.
    :raises LayerError: for a layer it cannot read, or a network without hidden units that can be permuted.
    :raises OptionError: without an ``input_shape`` where it is needed.

    >>> import torch, pyro_equivariance as pe
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    >>> sym = pe.hidden_permutations(net)
    >>> sym.group, sym.sites["2.weight"]
    (YoungSubgroup((16,)), trivial(3,) * permutation(16, block=0))
    >>> sym.check(net) < 1e-12
    True
    """
    if not isinstance(net, nn.Module):
        raise OptionError(f"Expected a torch network; got {net!r}.")
    shape = _first_width(net) if input_shape is None else input_shape
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    widths = _hidden_widths(net, shape)
    together: dict[str, str | None] = {layer: layer for layer in widths}
    while True:
        group, units = _units(together, widths)
        try:
            return _symmetry(net, shape, group, units)
        except UnlikeActions as error:
            before, together = together, _joined(together, error)
            if together == before:
                raise


@dataclass(frozen=True)
class WidthReader(Reader):
    """Notes in ``hidden`` how many channels each hidden layer makes, none of which move."""

    def hidden_channels(self, name, count, feature):
        self.hidden[name] = count
        return trivial(self.group, count)

    def inner_channels(self, name, count, feature):
        return trivial(self.group, count)


@dataclass(frozen=True)
class UnitReader(WidthReader):
    """Takes the representation of each hidden layer's channels from ``hidden``."""

    def hidden_channels(self, name, count, feature):
        return self.hidden[name]


def _first_width(net: nn.Module) -> int:
    """What the first layer takes, if it is Linear."""
    first = next((module for module in net.modules() if not list(module.children())), None)
    if not isinstance(first, nn.Linear):
        raise OptionError(
            f"Expected input_shape=, the shape of one input, for a network whose first layer is no Linear; got "
            f"{type(first).__name__} first."
        )
    return first.in_features


def _feature(group: YoungSubgroup, shape) -> Feature:
    """The input, which does not move: its channels, and its places as one factor where they have several axes."""
    if len(shape) < 3:
        return Feature(tuple(trivial(group, size) for size in shape))
    return Feature((trivial(group, shape[:1]), trivial(group, shape[1:])))


def _hidden_widths(net: nn.Module, shape) -> dict[str, int]:
    widths: dict[str, int] = {}
    group = YoungSubgroup((1,))
    walk_through(net, _feature(group, shape), partial(WidthReader, group, widths, None), {}, {})
    return widths


def _blocks(together: Mapping[str, str | None]) -> list[str]:
    """The layer that stands for each block, in their order."""
    return list(dict.fromkeys(layer for layer in together.values() if layer is not None))


def _units(together, widths: Mapping[str, int]) -> tuple[YoungSubgroup, dict[str, Representation]]:
    """The group of all blocks, and how the channels of each layer move."""
    blocks = _blocks(together)
    if not blocks:
        raise LayerError(
            "Expected a network with hidden units that can be permuted; got none: it has no hidden layer, or all of "
            "its channels are added to, or tied to, those of the input or the output. Put another layer between."
        )
    group = YoungSubgroup([widths[layer] for layer in blocks])
    return group, {
        layer: trivial(group, widths[layer]) if block is None else permutation(group, block=blocks.index(block))
        for layer, block in together.items()
    }


def _symmetry(net: nn.Module, shape, group: YoungSubgroup, units: Mapping[str, Representation]) -> Symmetry:
    walk = walk_through(net, _feature(group, shape), partial(UnitReader, group, units, None), {}, {})
    check_outputs(walk.end, None)
    return Symmetry(group, own_sites(net, walk.sites), inputs=trivial(group, shape), features=walk.features)


def _joined(together: Mapping[str, str | None], error: UnlikeActions) -> dict[str, str | None]:
    """The blocks once those that have to move alike are one; ``None`` stands for channels that do not move."""
    blocks, joined = _blocks(together), dict(together)
    for pair in _alike(error.first, error.second):
        ends = {None if block is None else joined[blocks[block]] for block in pair}
        one = None if None in ends else min(ends, key=blocks.index)
        joined = {layer: one if block in ends else block for layer, block in joined.items()}
    return joined


def _alike(a: Representation, b: Representation) -> list[tuple[int | None, int | None]]:
    """Pairs of blocks that must be one for the two to be equal; with ``None``, a block that must not move."""
    if a == b:
        return []
    for parts in ((factors_of(a), factors_of(b)), (_summands(a), _summands(b)), (_base(a), _base(b))):
        shapes = [[part.event_shape for part in side] for side in parts]
        if shapes[0] == shapes[1] and parts != ((a,), (b,)):
            return [pair for pieces in zip(*parts, strict=True) for pair in _alike(*pieces)]
    if a.event_shape == b.event_shape and all(isinstance(rep, (BlockPermutation, Trivial)) for rep in (a, b)):
        return [(_block(a), _block(b))]
    return [(block, None) for block in (*_blocks_in(a), *_blocks_in(b))]


def _summands(rep: Representation) -> tuple[Representation, ...]:
    return (*_summands(rep.left), *_summands(rep.right)) if isinstance(rep, DirectSum) else (rep,)


def _base(rep: Representation) -> tuple[Representation, ...]:
    return (rep.base,) if isinstance(rep, Reshaped) else (rep,)


def _block(rep: Representation) -> int | None:
    return rep.block if isinstance(rep, BlockPermutation) else None


def _blocks_in(rep: Representation) -> Iterator[int]:
    if isinstance(rep, BlockPermutation):
        yield rep.block
    for part in ("left", "right", "base"):
        if hasattr(rep, part):
            yield from _blocks_in(getattr(rep, part))
