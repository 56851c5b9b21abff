"""A lift layer by layer: the layers of a Sequential, and how one of them takes the fibre of the one before."""

import copy
from collections.abc import Callable, Iterator
from functools import reduce
from operator import mul

import torch
from torch import Tensor, nn

from ..errors import LayerError, OptionError
from ..groups import Group
from ..representations import InterpolatedImage, Representation, image, is_grid, resized, trivial
from ..representations import Trivial as TrivialRepresentation
from .base import factors_of
from .layers import LAYERS as RULES
from .layers import widened


def _runs_in_turn(net: nn.Module) -> bool:
    """Whether a module is a Sequential that does no more than run its layers in turn."""
    hooks = net._forward_pre_hooks, net._forward_hooks, net._backward_pre_hooks, net._backward_hooks
    return type(net).forward is nn.Sequential.forward and "forward" not in vars(net) and not any(hooks)


def need_layers_in_turn(net: nn.Module | Callable) -> None:
    """Raise unless a network is a Sequential that does no more than run its layers in turn."""
    if not isinstance(net, nn.Module) or not _runs_in_turn(net):
        raise OptionError(
            f"Expected an nn.Sequential without a forward or hooks of its own, whose layers are lifted one by one; got "
            f"{type(net).__name__}. Use layers='global'."
        )


def layer_places(net: nn.Sequential) -> Iterator[tuple[nn.Sequential, str, nn.Module]]:
    """The layers of a Sequential and of those inside it, in order, each with the one that holds it and its name."""
    for name, layer in net._modules.items():  # one that stands twice runs twice
        yield from layer_places(layer) if _runs_in_turn(layer) else [(net, name, layer)]


def _channels_taken(layer: nn.Module) -> int | None:
    """How many channels a convolution or a linear layer takes; ``None`` for all else."""
    return getattr(layer, "in_channels", getattr(layer, "in_features", None))


def channel_axis(layer: nn.Module) -> int:
    """The axis of a feature that a layer mixes: the last for a Linear, the first for a convolution."""
    return -1 if hasattr(layer, "in_features") else 0


def takes_fibre(i: int, layer: nn.Module, shape: torch.Size, order: int) -> bool:
    """Whether a layer wants the channels of the whole fibre, rather than those at one element."""
    wanted = _channels_taken(layer)
    channels = shape[channel_axis(layer)] if shape else 1
    if wanted in (None, channels):
        return False
    if wanted != order * channels:
        raise LayerError(
            f"Expected layer {i} to take {channels} channels (at each element) or {order * channels} (the whole "
            f"fibre); {layer} takes {wanted}. See pe.networks.with_fibre_inputs."
        )
    return True


def combined_fibres(copies: Tensor, action: Representation | None, group: Group, axis: int) -> Tensor:
    """``g⁻¹ · s`` for every ``g`` as channels in blocks, ``ρ(k) s(gk)`` at block ``k``: ``(|G|·N, … |G|·C …)``."""
    fibres = copies.unflatten(0, (len(group), -1))[group.table.to(copies.device)]
    if action is not None:
        fibres = action.act(group.elements[:, None], fibres)
    place = (3 if axis == 0 else fibres.ndim - 1) - 1
    return fibres.movedim(1, place).flatten(place, place + 1).flatten(0, 1)


def is_bare(layer: nn.Module) -> bool:
    """Whether a layer has no parameters."""
    return next(layer.parameters(), None) is None


def action_after(before: Representation, layer: nn.Module, shape: torch.Size) -> Representation:
    """How the group moves the places of a layer's output; its channels stay. ``before`` is that of its input."""
    group = before.group
    if isinstance(layer, nn.Flatten):
        return before.reshape(shape)
    if shape == before.event_shape and is_bare(layer):
        return before
    if isinstance(before, InterpolatedImage):
        return image(group, shape, before.mode) if len(shape) == len(before.event_shape) else trivial(group, shape)
    *others, last = factors_of(before)
    if is_grid(last) and not isinstance(last, TrivialRepresentation) and len(shape) == 1 + len(last.event_shape):
        return trivial(group, shape[0]) * resized(last, shape[1:])
    if others and len(last.event_shape) == 1 and shape[:-1] == before.event_shape[:-1]:
        return reduce(mul, others) * trivial(group, shape[-1])
    return trivial(group, shape)


def with_fibre_inputs(net: nn.Sequential, group: Group) -> nn.Sequential:
    """A Sequential whose convolutions and linear layers after the first take a whole fibre: ``|G|`` times the channels.

    Their weights are drawn from the entries of the given ones, at the scale of the larger fan-in; all else is a copy.
    A layer that stands twice still does.

    :raises OptionError: for another module, or a Sequential with a forward or hooks of its own.
    :raises LayerError: for a layer that has channels but cannot be widened, such as a convolution in groups; where
        parameters of the layers are tied, or the first layer stands again later.

    >>> import torch, pyro_equivariance as pe
    >>> from pyro_equivariance.networks import with_fibre_inputs
    >>> C4 = pe.CyclicGroup(4)
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 3))
    >>> wide = with_fibre_inputs(net, C4)
    >>> wide[2].weight.shape
    torch.Size([2, 32, 3, 3])
    >>> turning = pe.Symmetry(C4, {}, inputs=pe.image(C4, (1, 6, 6)))
    >>> pe.equivarify(wide, turning, readout="fibre", layers="each")(torch.zeros(5, 1, 6, 6)).shape
    torch.Size([5, 4, 2, 4, 4])
    """
    need_layers_in_turn(net)
    big = copy.deepcopy(net)
    first, *later = [place for place in layer_places(big) if _channels_taken(place[2]) is not None] or [
        (None, "", None)
    ]
    wide = {layer: _with_fibre_input(layer, group) for layer in dict.fromkeys(layer for _, _, layer in later)}
    for parent, name, layer in later:
        setattr(parent, name, wide[layer])
    if first[2] in wide or {n for n, _ in big.named_parameters()} != {n for n, _ in net.named_parameters()}:
        raise LayerError(
            "Expected layers with parameters of their own, to take a whole fibre; some are tied. Untie them."
        )
    return big


def _with_fibre_input(layer: nn.Module, group: Group) -> nn.Module:
    """The same layer with ``|G|`` times the input channels."""
    if type(layer) not in RULES or getattr(layer, "groups", 1) != 1:
        raise LayerError(f"Expected convolutions with groups 1 and linear layers, to take a whole fibre; got {layer}.")
    return widened(layer, len(group), 1)
