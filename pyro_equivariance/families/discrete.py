"""Families of counts and labels: Poisson, Bernoulli, Categorical and OneHotCategorical."""

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SymmetryError
from ..representations import (
    Composed,
    Factor,
    Labels,
    Product,
    Pullback,
    Representation,
    Reshaped,
    Trivial,
    permutation,
    signed_permutation,
)
from .base import Family, is_signed_permutation, moves_whole_rows, register


class PoissonFamily(Family):
    """Independent ``Poisson(λ)`` with ``T(x) = x``; shapes are that of the distribution.

    ``η = log λ``, ``m = λ``, standard ``λ``, ``A = e^η``, ``h = 1/x!``. It is closed under permutations.
    """

    name = "Poisson"
    advice = "It keeps under permutations of the entries."

    def coordinates(self, q, kind: str) -> tuple[Tensor]:
        return (q.rate.log() if kind == "natural" else q.rate,)

    def from_coordinates(self, kind: str, coordinates: tuple[Tensor]) -> dist.Poisson:
        (c,) = coordinates
        return dist.Poisson(c.exp() if kind == "natural" else c)

    def actions(self, rep: Representation, kind: str) -> tuple[Representation]:
        return (rep,)

    def is_closed(self, rep: Representation) -> bool:
        return rep.is_permutation

    def log_normalizer(self, natural: tuple[Tensor]) -> Tensor:
        return natural[0].exp()

    def sufficient_statistics(self, theta: Tensor) -> tuple[Tensor]:
        return (theta,)

    def log_base_measure(self, theta: Tensor) -> Tensor:
        return -torch.lgamma(theta + 1)


class BernoulliFamily(Family):
    """Independent ``Bernoulli(p)`` with ``T(x) = x``; shapes are that of the distribution.

    ``η = log p/(1 − p)``, ``m = p``, standard ``p``, ``A = log(1 + e^η)``, ``h = 1``. It is closed under permutations,
    under signed permutations of the logits, where a sign stands for ``x ↦ 1 − x``, and under ``pe.labels`` of two.
    """

    name = "Bernoulli"
    advice = (
        "It keeps under permutations of the entries, and under x -> 1 - x: signed permutations said to act on "
        "unconstrained values, rep.on_unconstrained(), or pe.labels of two classes."
    )

    def coordinates(self, q, kind: str) -> tuple[Tensor]:
        return (q.logits if kind == "natural" else q.probs,)

    def from_coordinates(self, kind: str, coordinates: tuple[Tensor]) -> dist.Bernoulli:
        (c,) = coordinates
        return dist.Bernoulli(logits=c) if kind == "natural" else dist.Bernoulli(c)

    def actions(self, rep: Representation, kind: str) -> tuple[Representation]:
        """That of the logits, and of ``p − ½``."""
        return (rep if rep.is_linear else Product(*on_values(rep, _sign_of_labels)),)

    def is_closed(self, rep: Representation) -> bool:
        if not rep.is_linear:
            return on_values(rep, _sign_of_labels) is not None
        return rep.is_permutation or (rep.space == "unconstrained" and is_signed_permutation(rep))

    def push_forward(self, q, rep: Representation, g: Tensor | int) -> dist.Bernoulli:
        return dist.Bernoulli(logits=self.actions(rep, "natural")[0].act(g, q.logits))

    def orbit_mean(self, q, rep: Representation, kind: str) -> dist.Bernoulli:
        (action,) = self.actions(rep, kind)
        if kind == "natural":
            return dist.Bernoulli(logits=action.mean(q.logits))
        return dist.Bernoulli(0.5 + action.mean(q.probs - 0.5))

    def log_normalizer(self, natural: tuple[Tensor]) -> Tensor:
        return F.softplus(natural[0])

    def sufficient_statistics(self, theta: Tensor) -> tuple[Tensor]:
        return (theta,)

    def moments(self, q, rep: Representation) -> tuple[Tensor, Tensor]:
        """Of ``x − ½``, whose sign the action changes."""
        return q.mean - 0.5, q.variance


class OneHotCategoricalFamily(Family):
    """Independent one-hot draws of ``K`` categories, on the last axis, with ``T(x) = x``.

    ``η = log p``, any that differ by a constant being the same law, ``m = p``, standard ``p``, ``A = log Σ e^η``,
    ``h = 1``; shape ``(..., K)``. It is closed under permutations that move whole rows, and the categories in each.

    :param type kind: the class of distributions, with or without straight-through gradients.
    """

    name = "OneHotCategorical"
    advice = "It keeps under permutations of its last axis, the categories (and of axes before it)."

    def __init__(self, kind: type):
        self.kind = kind

    def coordinates(self, q, kind: str) -> tuple[Tensor]:
        return (q.logits if kind == "natural" else q.probs,)

    def from_coordinates(self, kind: str, coordinates: tuple[Tensor]):
        (c,) = coordinates
        return self.kind(logits=c) if kind == "natural" else self.kind(c)

    def actions(self, rep: Representation, kind: str) -> tuple[Representation]:
        return (rep,)

    def is_closed(self, rep: Representation) -> bool:
        return rep.space == "constrained" and moves_whole_rows(rep)

    def push_forward(self, q, rep: Representation, g: Tensor | int):
        return self.kind(logits=rep.act(g, q.logits))

    def log_normalizer(self, natural: tuple[Tensor]) -> Tensor:
        return natural[0].logsumexp(-1)

    def sufficient_statistics(self, theta: Tensor) -> tuple[Tensor]:
        return (theta,)


class CategoricalFamily(Family):
    """Independent labels ``0 .. K − 1`` with ``T(z)`` the one-hot vector of ``z``.

    ``η = log p``, any that differ by a constant being the same law, ``m = p``, standard ``p``, ``A = log Σ e^η``,
    ``h = 1``; shape ``(..., K)`` for a distribution of shape ``(...)``. It is closed under ``pe.labels`` of ``K``
    classes, which permutes the axis of the logits, under permutations of the axes before it, and under both.
    """

    name = "Categorical"
    advice = "It keeps under pe.labels(group), which permutes the values, and under permutations of the entries."

    def coordinates(self, q, kind: str) -> tuple[Tensor]:
        return (q.logits if kind == "natural" else q.probs,)

    def from_coordinates(self, kind: str, coordinates: tuple[Tensor]) -> dist.Categorical:
        (c,) = coordinates
        return dist.Categorical(logits=c) if kind == "natural" else dist.Categorical(c)

    def actions(self, rep: Representation, kind: str) -> tuple[Representation]:
        """That of the logits; where only entries are permuted, for one category, since the action knows no number."""
        entries, values = on_values(rep, _permutation_of_labels)
        return (entries * (values or Trivial(rep.group, 1)),)

    def is_closed(self, rep: Representation) -> bool:
        return on_values(rep, _permutation_of_labels) is not None

    def push_forward(self, q, rep: Representation, g: Tensor | int) -> dist.Categorical:
        return dist.Categorical(logits=self._on_logits(q, rep).act(g, q.logits))

    def orbit_mean(self, q, rep: Representation, kind: str) -> dist.Categorical:
        (c,) = self.coordinates(q, kind)
        return self.from_coordinates(kind, (self._on_logits(q, rep).mean(c),))

    def _on_logits(self, q, rep: Representation) -> Representation:
        entries, values = on_values(rep, _permutation_of_labels)
        categories = q.logits.shape[-1]
        values = values or Trivial(rep.group, categories)
        if values.event_shape[0] != categories:
            raise SymmetryError(f"Expected labels of {categories} categories; got {rep} of {values.event_shape[0]}.")
        return entries * values

    def log_normalizer(self, natural: tuple[Tensor]) -> Tensor:
        return natural[0].logsumexp(-1)

    def statistics_of(self, q, theta: Tensor) -> tuple[Tensor]:
        return (F.one_hot(theta.long(), q.logits.shape[-1]).to(q.logits),)

    def moments(self, q, rep: Representation) -> tuple[Tensor, Tensor]:
        raise NotImplementedError  # labels have neither


def on_values(rep: Representation, of_labels) -> tuple[Representation, Representation | None] | None:
    """An action on labels as what permutes the entries and what permutes the values, alike in all entries.

    :param of_labels: the linear representation, on one axis or on numbers, of labels that are permuted, or ``None``.
    :returns: linear representations; ``None`` for the second where values stay, and for both for any other action.
    """
    if isinstance(rep, Labels):
        values = of_labels(rep)
        return None if values is None else (Trivial(rep.group, ()), values)
    if rep.is_permutation:
        return rep, None
    if isinstance(rep, Product | Composed):
        parts = on_values(rep.left, of_labels), on_values(rep.right, of_labels)
        if None in parts or (parts[0][1] and parts[1][1]):
            return None
        return type(rep)(parts[0][0], parts[1][0]), parts[0][1] or parts[1][1]
    if not isinstance(rep, Reshaped | Pullback) or (parts := on_values(rep.base, of_labels)) is None:
        return None
    wrap = _wrapping(rep)
    entries = parts[0].reshape(rep.event_shape) if isinstance(rep, Reshaped) else wrap(parts[0])
    return entries, parts[1] and wrap(parts[1])


def _wrapping(rep: Representation):
    """What makes a representation of its base's group one of its own."""
    if isinstance(rep, Factor):
        return lambda part: Factor(rep.group, part, rep.side)
    if isinstance(rep, Pullback):
        return lambda part: part.pullback(rep.group, rep.homomorphism)
    return lambda part: part


def _permutation_of_labels(rep: Labels) -> Representation:
    return permutation(rep.group, rep._permutations)


def _sign_of_labels(rep: Labels) -> Representation | None:
    """Of two labels: the sign of the logit."""
    if rep.classes != 2:
        return None
    first = _permutation_of_labels(rep).act(rep.group.elements, torch.tensor([1, 0]))[:, :1]
    return signed_permutation(rep.group, torch.zeros_like(first), 2 * first - 1).reshape(())


register(torch.distributions.Poisson, PoissonFamily())
register(torch.distributions.Bernoulli, BernoulliFamily())
register(torch.distributions.Categorical, CategoricalFamily())
register(torch.distributions.OneHotCategorical, OneHotCategoricalFamily(dist.OneHotCategorical))
register(
    torch.distributions.OneHotCategoricalStraightThrough,
    OneHotCategoricalFamily(dist.OneHotCategoricalStraightThrough),
)
