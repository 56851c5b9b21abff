"""How accurate and how calibrated mean predictives are; references in the package's docstring."""

import math
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor
from torch.nn.functional import one_hot

from ..errors import DataError, OptionError
from .base import check_count, check_predictive, safe_log


@dataclass(frozen=True)
class PredictionSets:
    """Sets of classes instead of one class per image; see :func:`conformal_set_size`.

    :param float size: mean number of classes in a set.
    :param float coverage: fraction of the sets that hold the label.
    :param float threshold: the largest score :math:`1 - p_k` of a class in a set; infinite for full sets.
    """

    size: float
    coverage: float
    threshold: float


def accuracy(probs: Tensor, labels: Tensor) -> Tensor:
    """Fraction of images whose most probable class is the label, over all leading axes.

    :param Tensor probs: ``(..., N, K)``; with a leading orbit axis the result is over all moved copies.
    :param Tensor labels: integers ``(N,)``, or ``(..., N)`` where the labels move too.
    :returns: a scalar in float64.

    >>> import torch
    >>> accuracy(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 1])).item()
    0.5
    """
    check_predictive(probs, labels)
    return (probs.argmax(-1) == labels).double().mean()


def negative_log_likelihood(probs: Tensor, labels: Tensor) -> Tensor:
    r"""Mean negative log probability of the labels, :math:`-\text{mean} \log p(y_n)`, in nats per image.

    :param Tensor probs: ``(..., N, K)``; with a leading orbit axis the result is over all moved copies.
    :param Tensor labels: integers ``(N,)``, or ``(..., N)`` where the labels move too.
    :returns: a scalar in float64; finite, see :func:`symmetric_kl`.

    >>> import torch
    >>> round(negative_log_likelihood(torch.tensor([[0.5, 0.5]]), torch.tensor([1])).item(), 4)
    0.6931
    """
    check_predictive(probs, labels)
    return -safe_log(_of_labels(probs, labels)).mean()


def brier_score(probs: Tensor, labels: Tensor) -> Tensor:
    r"""Brier score [6] over all classes, :math:`\text{mean}_n \sum_k (p_{nk} - 1[y_n = k])^2`, from 0 to 2.

    :param Tensor probs: ``(..., N, K)``; with a leading orbit axis the result is over all moved copies.
    :param Tensor labels: integers ``(N,)``, or ``(..., N)`` where the labels move too.
    :returns: a scalar in float64.

    >>> import torch
    >>> brier_score(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([1, 0])).item()
    0.25
    """
    check_predictive(probs, labels)
    return (probs.double() - one_hot(labels.long(), probs.shape[-1])).square().sum(-1).mean()


def calibration_error(probs: Tensor, labels: Tensor, bins: int = 15) -> Tensor:
    r"""Expected calibration error of the top probability, in equal-width bins :math:`((b-1)/B, b/B]` [4]:

    .. math:: ECE = \sum_b \frac{n_b}{n} | \text{accuracy}_b - \text{confidence}_b |.

    Images and moved copies share one set of bins.

    :param Tensor probs: ``(..., N, K)``; with a leading orbit axis the result is over all moved copies.
    :param Tensor labels: integers ``(N,)``, or ``(..., N)`` where the labels move too.
    :param int bins: the number :math:`B` of bins.
    :returns: a scalar in float64.

    >>> import torch
    >>> round(calibration_error(torch.tensor([[0.8, 0.2], [0.8, 0.2]]), torch.tensor([0, 1])).item(), 4)
    0.3
    """
    check_predictive(probs, labels)
    check_count("bins", bins)
    confidence, prediction = probs.max(-1)
    gap = (prediction == labels).double() - confidence.double()
    bin_of = ((confidence.double() * bins).ceil().long() - 1).clamp(0, bins - 1)
    sums = gap.new_zeros(bins).index_add(0, bin_of.flatten(), gap.flatten())
    return sums.abs().sum() / gap.numel()


def conformal_set_size(
    calibration_probs: Tensor, calibration_labels: Tensor, probs: Tensor, labels: Tensor, alpha: float = 0.1
) -> PredictionSets:
    r"""Size and coverage of split conformal prediction sets [7], with the score :math:`1 - p_y` [8]:

    .. math:: C(x) = \{ k : 1 - p_k(x) \le \tau \},

    where :math:`\tau` is the :math:`\lceil (n + 1)(1 - \alpha) \rceil`-th smallest score of the n calibration
    images, and infinite if that exceeds n: every set is full.

    If the calibration images and a test image are exchangeable, its set holds its label with probability at
    least :math:`1 - \alpha`, on average over the draw of all of them. That is a marginal guarantee, neither per
    class nor given the calibration images. It carries over to moved copies as far as those are distributed as
    the images are, or the predictions are invariant. A set may be empty.

    :param Tensor calibration_probs: ``(n, K)``, of images that neither training nor testing has seen.
    :param Tensor calibration_labels: integers ``(n,)``.
    :param Tensor probs: ``(..., N, K)``; with a leading orbit axis the result is over all moved copies.
    :param Tensor labels: integers ``(N,)``, or ``(..., N)`` where the labels move too.
    :param float alpha: the allowed fraction of sets without the label, in (0, 1), exact as a decimal number.
    :returns: the :class:`PredictionSets`.
    :raises DataError: if the two sets of probabilities do not fit each other or their labels.
    :raises OptionError: for an ``alpha`` outside (0, 1).

    >>> import torch
    >>> conformal_set_size(torch.tensor([[0.75, 0.25]]), torch.tensor([1]), torch.eye(2), torch.arange(2), alpha=0.5)
    PredictionSets(size=1.0, coverage=1.0, threshold=0.75)
    """
    check_predictive(calibration_probs, calibration_labels, "calibration_")
    check_predictive(probs, labels)
    if calibration_probs.ndim != 2 or calibration_probs.shape[-1] != probs.shape[-1]:
        raise DataError(
            f"Expected calibration_probs of shape (n, {probs.shape[-1]}), one row per exchangeable image; "
            f"got {tuple(calibration_probs.shape)}."
        )
    if not isinstance(alpha, float) or not 0 < alpha < 1:
        raise OptionError(f"Expected alpha, the allowed fraction of errors, in (0, 1); got {alpha!r}.")
    threshold = _conformal_threshold(_label_scores(calibration_probs, calibration_labels), alpha)
    size = (1 - probs.double() <= threshold).sum(-1).double().mean()
    coverage = (_label_scores(probs, labels) <= threshold).double().mean()
    return PredictionSets(size.item(), coverage.item(), threshold)


def _of_labels(probs: Tensor, labels: Tensor) -> Tensor:
    """The probabilities of the labels, ``(..., N)``."""
    return probs.gather(-1, labels.long().expand(probs.shape[:-1]).unsqueeze(-1)).squeeze(-1)


def _label_scores(probs: Tensor, labels: Tensor) -> Tensor:
    return 1 - _of_labels(probs, labels).double()


def _conformal_threshold(scores: Tensor, alpha: float) -> float:
    """The ``ceil((n + 1)(1 - alpha))``-th smallest score; the decimals of alpha are exact, 1 - 0.7 = 0.3."""
    rank = math.ceil((len(scores) + 1) * (1 - Fraction(str(alpha))))
    return scores.sort().values[rank - 1].item() if rank <= len(scores) else math.inf
