"""What the library knows of a layer: how its output and its parameters move, and how it widens."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..errors import LayerError, check_option
from ..groups import Group
from ..representations import Representation, image, regular, trivial

HIDDEN = ("regular", "trivial")


@dataclass(frozen=True)
class Feature:
    """How one tensor inside a network moves: its channels by a representation, its space as an image.

    ``hidden`` tells whether a layer with parameters lies before it (an expansion repeats its channels).
    """

    channels: Representation
    space: tuple[int, ...] = ()
    hidden: bool = False

    @property
    def representation(self) -> Representation:
        return self.channels * image(self.channels.group, self.space) if self.space else self.channels

    @property
    def shape(self) -> torch.Size:
        return self.channels.event_shape + torch.Size(self.space)

    def resized(self, space) -> "Feature":
        """The same channels over another space."""
        return replace(self, space=tuple(space))

    def flattened(self) -> "Feature":
        """Channels and space as one axis, the channel index slowest."""
        if not self.space:
            return self
        return replace(self, channels=self.representation.reshape((self.shape.numel(),)), space=())


@dataclass(frozen=True)
class Reader:
    """What a layer's rule needs to know besides the layer: the group, the kind of hidden channels, the last layer."""

    group: Group
    hidden: str
    outputs: Representation | None
    last: str

    def output_channels(self, name: str, count: int) -> Representation:
        """The representation of ``count`` output channels of the layer ``name``."""
        if name == self.last:
            rep = self.outputs or trivial(self.group, count)
            if rep.event_shape != (count,):
                raise LayerError(
                    f"Expected outputs= on shape ({count},) of layer {name!r}; got {tuple(rep.event_shape)}."
                )
            return rep
        check_option("hidden", self.hidden, HIDDEN)
        if self.hidden == "trivial":
            return trivial(self.group, count)
        if count % len(self.group):
            raise LayerError(
                f"Expected the {count} channels of layer {name!r} to be a multiple of {len(self.group)}, the order of "
                f"{self.group}, for regular features; use a multiple, or hidden='trivial'."
            )
        return regular(self.group, count // len(self.group))


class LayerRule(ABC):
    """How one kind of layer takes part in a symmetry.

    To implement one: :meth:`read`, which returns how the output moves and a representation for each parameter
    (or raises :class:`LayerError`), and :meth:`widen` if the layer has parameters; then add a line to the
    catalogue in :mod:`pyro_equivariance.networks.layers`.
    """

    @abstractmethod
    def read(
        self, name: str, layer: nn.Module, feature: Feature, reader: Reader
    ) -> tuple[Feature, dict[str, Representation]]: ...

    def widen(self, layer: nn.Module, inputs: int, outputs: int) -> nn.Module:
        """A fresh layer with ``inputs`` and ``outputs`` times the channels."""
        return layer


@torch.no_grad()
def resample(large: nn.Module, small: nn.Module) -> nn.Module:
    """``large`` with parameters drawn from the entries of the small layer's, at the scale of its own fan-in.

    So it keeps the kind of start that the small layer was given.
    """
    for wide, narrow in zip(large.parameters(), small.parameters(), strict=True):
        entries = narrow.flatten()[torch.randint(narrow.numel(), wide.shape, device=narrow.device)]
        shrink = narrow[0].numel() / wide[0].numel() if wide.ndim > 1 else 1.0
        wide.copy_(entries * shrink**0.5)
    return large


def probe(feature: Feature, like: Tensor | None = None) -> Tensor:
    """A zero tensor of a batch of one with the feature's shape."""
    return torch.zeros(1, *feature.shape) if like is None else like.new_zeros(1, *feature.shape)
