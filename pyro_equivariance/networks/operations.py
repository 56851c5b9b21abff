"""What functions and tensor methods in a network's ``forward`` do to the way features move."""

import operator
from dataclasses import dataclass
from functools import reduce
from operator import mul

import torch
import torch.nn.functional as F

from ..errors import LayerError
from ..representations import Representation, trivial
from .base import Feature, UnlikeActions

BATCH = object()
"""Stands for the size of the batch in shapes."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of the network that its ``forward`` uses by itself, such as a table of positions."""

    name: str
    shape: torch.Size


@dataclass(frozen=True)
class Shape:
    """The shape of a feature, its batch first."""

    sizes: tuple


class Operations:
    """A table of functions and methods; each takes the arguments as the network passed them.

    ``move`` is called with a :class:`Parameter` and the representation that it must have.
    """

    def __init__(self, move):
        self._move = move
        self.table = {
            **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_", operator.sub, torch.sub), self.add),
            **dict.fromkeys((operator.mul, torch.mul, "mul"), self.multiply),
            **dict.fromkeys((operator.truediv, torch.div, "div"), self.divide),
            **dict.fromkeys((operator.neg, torch.neg), lambda x: x),
            **dict.fromkeys((torch.mean, torch.sum, "mean", "sum"), self.total),
            **dict.fromkeys((torch.amax, torch.amin, "amax", "amin"), self.extremum),
            **dict.fromkeys((torch.cat, torch.concat), self.cat),
            **dict.fromkeys((torch.transpose, "transpose", torch.swapaxes, "swapaxes"), self.transpose),
            **dict.fromkeys((torch.permute, "permute"), self.permute),
            **dict.fromkeys(("view", "reshape", torch.reshape), self.reshape),
            **dict.fromkeys(("contiguous", "clone", "float", "double"), lambda x, **_: x),
            F.scaled_dot_product_attention: self.attention,
            "size": lambda x, dim=None: Shape((BATCH, *x.shape)) if dim is None else (BATCH, *x.shape)[dim],
            getattr: self.attribute,
            operator.getitem: self.item,
        }

    def add(self, a, b, alpha=1):
        if not _features(a, b):
            return a + b
        if isinstance(a, Feature) and isinstance(b, Feature):
            return _same(a, b, "a sum")
        feature, other = (a, b) if isinstance(a, Feature) else (b, a)
        if isinstance(other, Parameter):
            self._move(other, _aligned(feature, other))
        else:
            _permuted(feature, "adding a number")
        return feature

    def multiply(self, a, b):
        if not _features(a, b):
            return a * b
        if isinstance(a, Feature) and isinstance(b, Feature):
            return _permuted(_same(a, b, "a product"), "a product")
        feature, other = (a, b) if isinstance(a, Feature) else (b, a)
        if isinstance(other, Parameter):
            self._move(other, _aligned(_permuted(feature, "a product with a parameter"), other))
        return feature

    def divide(self, a, b):
        if not isinstance(b, (int, float)):
            raise LayerError("Expected features divided by a number; got another tensor. Use a torch.nn module for it.")
        return a

    def total(self, x, dim=None, keepdim=False):
        for factor in _reduced(x, dim):
            if not factor.is_permutation:
                raise LayerError(f"Expected a mean or sum over an axis that is permuted; got {factor}.")
        return _without(x, dim, keepdim)

    def extremum(self, x, dim=(), keepdim=False):
        return _without(_permuted(x, "a maximum"), dim or None, keepdim)

    def cat(self, tensors, dim=0):
        first, *others = tensors
        at = first.factor_of(dim)
        factors = list(first.factors)
        for other in others:
            if at is None or _drop(other, at) != _drop(first, at):
                said = (f"Expected features that agree but for the axis {dim} in a concatenation; they move by "
                        f"{first.representation} and {other.representation}.")  # fmt: skip
                if at is None or len(first.factors) != len(other.factors):
                    raise LayerError(said)
                raise UnlikeActions(said, *(_without_factor(x, at) for x in (first, other)))
            factors[at] = factors[at] + other.factors[at]
        return Feature(tuple(factors), max(tensor.depth for tensor in tensors))

    def transpose(self, x, dim0, dim1):
        order = list(range(len(x.shape) + 1))
        order[dim0], order[dim1] = order[dim1], order[dim0]
        return self.permute(x, order)

    def permute(self, x, *dims):
        order = [d % (len(x.shape) + 1) for d in (dims[0] if isinstance(dims[0], (list, tuple)) else dims)]
        axes, start = [], 1
        for factor in x.factors:
            axes.append(tuple(range(start, start + len(factor.event_shape))))
            start += len(factor.event_shape)
        wanted, factors = order[1:], []
        while wanted:
            found = next((i for i, a in enumerate(axes) if tuple(wanted[: len(a)]) == a), None)
            if found is None or order[0] != 0:
                raise LayerError(f"Expected axes that move together to stay together under permute{tuple(order)}.")
            factors.append(x.factors[found])
            wanted = wanted[len(axes[found]) :]
        return x.with_factors(factors)

    def reshape(self, x, *shape):
        sizes = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (list, tuple)) else shape
        if sizes and sizes[0] is BATCH and sizes[1:] in ((-1,), (x.shape.numel(),)):
            return x.flattened()
        if sizes and sizes[0] is BATCH and torch.Size(sizes[1:]) == x.shape:
            return x
        raise LayerError("Expected a view or reshape to (batch, -1); use flatten, transpose or permute for others.")

    def attention(self, query, key, value, **options):
        """Over tokens ``(places, channels)``: scores are inner products, so equal orthogonal actions cancel in them."""
        if options.get("attn_mask") is not None or options.get("is_causal"):
            raise LayerError("Expected attention without a mask: the action moves the places and not the mask.")
        _same(query, key, "queries and keys")
        if len(query.factors) != 2 or query.factors[0] != value.factors[0] or not query.factors[0].is_permutation:
            raise LayerError(f"Expected tokens (places, channels) in an attention; got {tuple(query.shape)}.")
        if not query.factors[1].is_orthogonal:
            raise LayerError(f"Expected channels that keep their length in an attention; got {query.factors[1]}.")
        return value

    def attribute(self, x, name):
        if name != "shape":
            raise LayerError(f"Expected a network that does not look at the attribute {name!r} of its features.")
        return Shape((BATCH, *x.shape))

    def item(self, x, index):
        if isinstance(x, Shape):
            return x.sizes[index]
        if isinstance(x, tuple) and isinstance(index, int):
            return x[index]
        raise LayerError("Expected features that are not indexed: the action moves the entries. Use a mean or maximum.")


def _features(*values) -> bool:
    """Whether one of them is a feature; sizes are numbers."""
    return any(isinstance(value, (Feature, Parameter)) for value in values)


def _same(a: Feature, b: Feature, what: str) -> Feature:
    if a.shape != b.shape or not same_action(a.representation, b.representation):
        raise UnlikeActions(
            f"Expected features that move alike in {what}; they move by {a.representation} and {b.representation}.",
            a.representation,
            b.representation,
        )
    return a if a.depth >= b.depth else b


def same_action(a: Representation, b: Representation) -> bool:
    """Whether two representations on one shape do the same, however they were built."""
    if a == b:
        return True
    x = torch.arange(1.0, a.event_shape.numel() + 1).reshape(a.event_shape)
    return all(torch.allclose(a.act(g, x), b.act(g, x)) for g in a.group.generators)


def _permuted(x: Feature, what: str) -> Feature:
    if not x.representation.is_permutation:
        raise LayerError(f"Expected features that are permuted for {what}; got {x.representation}.")
    return x


def _aligned(feature: Feature, parameter: Parameter) -> Representation:
    """How a parameter moves that is added to a feature: as its axes do, where it has them."""
    shape, result = list(parameter.shape), None
    for factor in reversed(feature.factors):
        sizes = tuple(shape[max(len(shape) - len(factor.event_shape), 0) :])
        shape = shape[: len(shape) - len(sizes)]
        if not sizes:
            break
        if sizes != tuple(factor.event_shape) and set(sizes) != {1}:
            shape = [0]
            break
        repeated = sizes != tuple(factor.event_shape)
        if repeated and not factor.is_permutation:
            raise LayerError(
                f"Expected the parameter {parameter.name!r} to have all entries of an axis that is not permuted; it "
                f"has one for {factor}."
            )
        part = trivial(factor.group, sizes) if repeated else factor
        result = part if result is None else part * result
    if result is None or shape not in ([], [1]):
        raise LayerError(
            f"Expected the parameter {parameter.name!r} to have the shape {tuple(feature.shape)} of the features that "
            f"it meets, or 1 along some of its axes; got {tuple(parameter.shape)}."
        )
    return trivial(feature.factors[0].group, 1) * result if shape else result


def _chosen(x: Feature, dim) -> list[int]:
    """The factors that a reduction over ``dim`` removes."""
    dims = range(1, len(x.shape) + 1) if dim is None else [dim] if isinstance(dim, int) else dim
    axes = {d % (len(x.shape) + 1) for d in dims}
    chosen, start = [], 1
    for i, factor in enumerate(x.factors):
        own = set(range(start, start + len(factor.event_shape)))
        start += len(own)
        if own <= axes:
            chosen.append(i)
            axes -= own
    if axes or dim is None:
        raise LayerError(f"Expected a mean, sum or maximum over whole axes of the features, not the batch; got {dim}.")
    return chosen


def _reduced(x: Feature, dim) -> list[Representation]:
    return [x.factors[i] for i in _chosen(x, dim)]


def _without(x: Feature, dim, keepdim: bool) -> Feature:
    chosen = _chosen(x, dim)
    ones = {i: trivial(f.group, (1,) * len(f.event_shape)) for i, f in enumerate(x.factors)}
    kept = [ones[i] if i in chosen else f for i, f in enumerate(x.factors) if keepdim or i not in chosen]
    if not kept:
        raise LayerError("Expected a mean, sum or maximum that leaves an axis besides the batch; keep the channels.")
    return x.with_factors(kept)


def _without_factor(x: Feature, at: int) -> Representation:
    return reduce(mul, _drop(x, at), trivial(x.factors[0].group, ()))


def _drop(x: Feature, at: int) -> tuple[Representation, ...]:
    return (*x.factors[:at], *x.factors[at + 1 :])
