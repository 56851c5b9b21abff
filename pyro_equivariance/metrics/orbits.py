"""How mean predictives agree along an orbit; references in the package's docstring."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..errors import DataError, check_option
from .base import check_action, check_probs, move, safe_log


def orbit_same_prediction(probs: Tensor, *, action=None, definition: str = "anchor") -> Tensor:
    r"""Orbit same prediction: how far the predicted class stays the same along the orbit.

    ``"anchor"`` is the fraction of group elements, the identity included, with

    .. math:: \arg\max F(gx) = \arg\max \rho_Y(g) F(x),

    averaged over the images. ``"count"`` is :math:`|G|` times that, the number out of :math:`|G|` that is
    published for ensembles [5]. ``"majority"`` does not single out the identity: each element votes for
    :math:`\arg\max \rho_Y(g)^{-1} F(gx)`, and the largest share of the votes is averaged over the images.

    The fractions are at least :math:`1/|G|`, and 1 for a network that always predicts one class: report the
    accuracy beside them. Equal probabilities count for the first class.

    :param Tensor probs: ``(|G|, N, K)``, the mean predictive at :math:`g x_n`, element 0 the identity.
    :param action: permutes the classes, ``event_shape == (K,)``; ``None`` for invariant classes.
    :param str definition: ``"anchor"``, ``"majority"`` or ``"count"``.
    :returns: a scalar in float64.

    >>> probs = torch.tensor([[[0.9, 0.1]], [[0.2, 0.8]], [[0.3, 0.7]], [[0.4, 0.6]]])
    >>> [orbit_same_prediction(probs, definition=d).item() for d in ("anchor", "majority", "count")]
    [0.25, 0.75, 1.0]
    """
    check_option("definition", definition, ("anchor", "majority", "count"))
    anchor = _anchor(probs, action)
    if definition == "majority":
        votes = one_hot(_moved_back(probs, action).argmax(-1), probs.shape[-1])
        return votes.double().mean(0).amax(-1).mean()
    same = (probs.argmax(-1) == anchor.argmax(-1)).double().mean()
    return same * len(probs) if definition == "count" else same


def symmetric_kl(probs: Tensor, *, action=None, convention: str = "others") -> Tensor:
    r"""Symmetric Kullback-Leibler divergence along the orbit, in nats: with :math:`p_0 = \rho_Y(g) F(x)` and
    :math:`p_g = F(gx)`,

    .. math:: KL(p_0 \| p_g) + KL(p_g \| p_0) = \sum_k (p_{0k} - p_{gk}) (\log p_{0k} - \log p_{gk}).

    ``"others"`` averages it over the images and the *non-identity* elements. Two published conventions are
    smaller by a constant factor: ``"orbit"`` averages over all of G, the zero at g = e included, a factor of
    :math:`1 - 1/|G|`; ``"per_class"`` divides ``"others"`` by the number of classes, as a mean over all the
    terms of the sum does. Probabilities below the dtype's smallest normal number count as that number, so the
    result is finite.

    :param Tensor probs: ``(|G|, N, K)``, the mean predictive at :math:`g x_n`, element 0 the identity.
    :param action: permutes the classes, ``event_shape == (K,)``; ``None`` for invariant classes.
    :param str convention: ``"others"``, ``"orbit"`` or ``"per_class"``.
    :returns: a scalar in float64; zero for the trivial group.

    >>> symmetric_kl(torch.tensor([[[0.5, 0.5]], [[0.5, 0.5]]])).item()
    0.0
    """
    check_option("convention", convention, ("others", "orbit", "per_class"))
    anchor = _anchor(probs, action)[1:]
    moved = probs[1:].double()
    if len(moved) == 0:
        return moved.new_zeros(())
    log_ratio = safe_log(anchor) - safe_log(probs[1:])
    mean = ((anchor.double() - moved) * log_ratio).sum(-1).mean()
    return mean * {"others": 1, "orbit": 1 - 1 / len(probs), "per_class": 1 / probs.shape[-1]}[convention]


def _anchor(probs: Tensor, action) -> Tensor:
    """``rho_Y(g) F(x)``, the prediction that F(gx) is held against: ``(|G|, N, K)``."""
    check_probs(probs, "probs")
    if probs.ndim != 3:
        raise DataError(f"Expected probs of shape (|G|, N, K), element 0 the identity; got {tuple(probs.shape)}.")
    check_action(action, len(probs), probs.shape[-1:])
    if action is None:
        return probs[:1].expand_as(probs)
    anchor = move(probs[:1], action, len(probs)).squeeze(0)
    check_probs(anchor, "the moved probs (an action that permutes the classes)")
    return anchor


def _moved_back(probs: Tensor, action) -> Tensor:
    """``rho_Y(g)^-1 F(gx)``, each prediction in the classes of the unmoved image: ``(|G|, N, K)``."""
    if action is None:
        return probs
    numbers = torch.arange(probs.shape[-1], device=probs.device, dtype=torch.float64).expand(1, 1, -1)
    source = move(numbers, action, len(probs)).squeeze(0).round().long()  # class k of F(gx) was source[g, 0, k]
    return torch.zeros_like(probs).scatter(-1, source.expand_as(probs), probs)
