"""What the library knows of a layer: how its output and its parameters move, and how it widens."""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import reduce
from itertools import product
from operator import mul

import torch
from torch import Tensor, nn

from ..errors import LayerError, OptionError
from ..groups import Group
from ..representations import Product, Pullback, Representation, Trivial, quotient, regular, trivial

QUOTIENT = re.compile(r"quotient\((.+)\)")


@dataclass(frozen=True)
class Feature:
    """How one tensor inside a network moves: a representation for each axis after the batch.

    ``factors`` lie in the order of the axes: channels and then space for a convolution, places and then channels for
    tokens and points. Axes that move together (height and width) are one factor. ``depth`` counts the layers before
    it that mix channels into new ones.
    """

    factors: tuple[Representation, ...]
    depth: int = 0

    @property
    def hidden(self) -> bool:
        """Whether its channels are a layer's, so that an expansion repeats them."""
        return self.depth > 0

    @property
    def representation(self) -> Representation:
        return reduce(mul, self.factors)

    @property
    def shape(self) -> torch.Size:
        return torch.Size([size for factor in self.factors for size in factor.event_shape])

    def after_layer(self, factors) -> "Feature":
        """The output of a layer that makes channels of its own."""
        return Feature(tuple(factors), self.depth + 1)

    def with_factors(self, factors) -> "Feature":
        return replace(self, factors=tuple(factors))

    def factor_of(self, axis: int) -> int | None:
        """Which factor is the one axis ``axis`` (0 is the batch), or ``None`` if a factor has more axes than that."""
        axis = axis % (len(self.shape) + 1) - 1
        for i, factor in enumerate(self.factors):
            if axis == 0:
                return i if len(factor.event_shape) == 1 else None
            axis -= len(factor.event_shape)
        return None

    def flattened(self, start: int = 1, end: int = -1) -> "Feature | None":
        """The axes from ``start`` to ``end`` as one, the first slowest; ``None`` if they cut a factor in two."""
        axes = len(self.shape) + 1
        start, end = start % axes, end % axes + 1
        bounds = [1]
        for factor in self.factors:
            bounds.append(bounds[-1] + len(factor.event_shape))
        if start not in bounds or end not in bounds or start >= end:
            return None
        first, last = bounds.index(start), bounds.index(end)
        if last - first == 1 and end - start == 1:
            return self
        merged = reduce(mul, self.factors[first:last])
        merged = merged.reshape((merged.event_shape.numel(),))
        return self.with_factors((*self.factors[:first], merged, *self.factors[last:]))


class UnlikeActions(LayerError):
    """Two tensors of one shape that would have to move alike do not: ``first`` and ``second``."""

    def __init__(self, message: str, first: Representation, second: Representation):
        super().__init__(message)
        self.first, self.second = first, second


def factors_of(rep: Representation) -> tuple[Representation, ...]:
    """The factors of a product, axis by axis; axes that do not move are factors of their own."""
    if isinstance(rep, Product):
        return factors_of(rep.left) + factors_of(rep.right)
    if isinstance(rep, Trivial):
        return tuple(trivial(rep.group, size) for size in rep.event_shape)
    if isinstance(rep, Pullback) and isinstance(rep.base, (Product, Trivial)):
        return tuple(factor.pullback(rep.group, rep.homomorphism) for factor in factors_of(rep.base))
    return (rep,)


@dataclass(frozen=True)
class Reader:
    """What a layer's rule needs to know besides the layer: the group, the kind of hidden channels, the last layers."""

    group: Group
    hidden: str | Representation
    outputs: Representation | None
    last: frozenset[str]

    def output_channels(self, name: str, count: int, feature: Feature, axis: int = 0) -> Representation:
        """The representation of ``count`` channels that the layer ``name`` makes.

        ``axis`` tells whether they are the first (0) or the last (-1) axis of its output.
        """
        if name in self.last:
            return self._of_outputs(name, count, axis)
        return self.hidden_channels(name, count, feature)

    def hidden_channels(self, name: str, count: int, feature: Feature) -> Representation:
        """The representation of ``count`` hidden channels that follow ``feature``."""
        return hidden_channels(self.group, self.hidden, name, count, feature.depth + 1)

    def inner_channels(self, name: str, count: int, feature: Feature) -> Representation:
        """The representation of ``count`` channels that the layer ``name`` keeps to itself."""
        return self.hidden_channels(name, count, feature)

    def _of_outputs(self, name: str, count: int, axis: int) -> Representation:
        if self.outputs is None:
            return trivial(self.group, count)
        fitting = [factor for factor in factors_of(self.outputs) if factor.event_shape == (count,)]
        if not fitting:
            raise LayerError(
                f"Expected outputs= on shape ({count},) of layer {name!r}; got {tuple(self.outputs.event_shape)}."
            )
        return fitting[axis]


def hidden_channels(
    group: Group, hidden: str | Representation, name: str, count: int, depth: int = 1
) -> Representation:
    """How ``count`` hidden channels of the layer ``name`` move; see :func:`network_symmetry` for ``hidden``."""
    if hidden == "trivial":
        return trivial(group, count)
    if hidden == "rolled":
        powers = group.elements
        for _ in range(depth - 1):
            powers = group.compose(powers, group.elements)
        return hidden_channels(group, "regular", name, count).pullback(group, powers)
    terms = _terms(group, hidden)
    unit = sum(term.event_shape[0] for term in terms)
    if count % unit:
        kind = "regular" if hidden == "regular" else str(hidden)
        order = f", the order of {group}," if unit == len(group) else ""
        raise LayerError(
            f"Expected the {count} channels of layer {name!r} to be a multiple of {unit}{order} for {kind} features; "
            f"use a multiple, or hidden='trivial'."
        )
    first, *others = (_copied(term, count // unit) for term in terms)
    return sum(others, first)


def check_hidden(group: Group, hidden) -> None:
    """Raise unless ``hidden`` names a representation of the group, or is one on one axis."""
    if isinstance(hidden, str) and hidden in ("trivial", "rolled"):
        if hidden == "rolled" and not is_abelian(group):
            raise OptionError(f"Expected an abelian group for hidden='rolled'; {group} is not.")
        return
    _terms(group, hidden)


def is_abelian(group: Group) -> bool:
    """Whether its generators commute."""
    pairs = product(group.generators, repeat=2)
    return all(torch.equal(group.compose(a, b), group.compose(b, a)) for a, b in pairs)


def _terms(group: Group, hidden) -> list[Representation]:
    """One copy of each summand."""
    if isinstance(hidden, Representation):
        if len(hidden.event_shape) != 1 or hidden.group != group:
            raise OptionError(f"Expected hidden= to be a representation of {group} on one axis; got {hidden!r}.")
        return [hidden]
    return [_named(group, word.strip(), hidden) for word in str(hidden).split("+")]


def _named(group: Group, word: str, hidden) -> Representation:
    if word == "regular":
        return regular(group)
    if word == "trivial":
        return trivial(group, 1)
    if match := QUOTIENT.fullmatch(word):
        return quotient(group, [name.strip() for name in match[1].split(",")])
    raise OptionError(
        f"Expected hidden to be 'regular', 'trivial', 'rolled', 'quotient(names of generators)', a sum of such names "
        f"with '+', or a representation; got {hidden!r}."
    )


def _copied(rep: Representation, copies: int) -> Representation:
    """Blocked copies: index ``i · copies + c``."""
    if rep == regular(rep.group):
        return regular(rep.group, copies)
    n = rep.event_shape[0]
    return rep if copies == 1 else (rep * trivial(rep.group, copies)).reshape((n * copies,))


class LayerRule(ABC):
    """How one kind of layer takes part in a symmetry.

    To implement one: :meth:`read`, which returns how the output moves and a representation for each parameter
    (or raises :class:`LayerError`), and :meth:`widen` if the layer has parameters; set ``mixes`` if it makes output
    channels of its own; then add a line to the catalogue in :mod:`pyro_equivariance.networks.layers`.
    """

    mixes = False

    @abstractmethod
    def read(
        self, name: str, layer: nn.Module, feature: Feature, reader: Reader
    ) -> tuple[Feature, dict[str, Representation]]: ...

    def widen(self, layer: nn.Module, inputs: int, outputs: int) -> nn.Module:
        """A fresh layer with ``inputs`` and ``outputs`` times the channels."""
        if next(layer.parameters(), None) is not None:
            raise LayerError(
                f"Expected layers that can be expanded (convolutions, Linear, normalisations); {layer} cannot. Use "
                f"hidden='regular' with pe.AutoSymmetricNormal instead of an expansion."
            )
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


def probe(feature: Feature) -> Tensor:
    """A zero tensor of a batch of one with the feature's shape."""
    return torch.zeros(1, *feature.shape)
