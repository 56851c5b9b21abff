"""How equivariant, how accurate and how calibrated a posterior predictive is: tensors in, tensors out.

Orbit tensors carry the group on one axis, element 0 being the identity: draws of the outputs are
``(T, |G|, N, *event)`` and mean predictives ``(|G|, N, K)``. Every number has several published definitions;
each docstring states the one that is computed.

An ``action`` moves outputs: any object with ``group``, ``event_shape`` and ``act(g, y)``, such as a
representation of the group on the outputs. ``None`` stands for invariant outputs.

References:

[1] Dong, Flinth, Gerken (2026) arXiv:2606.26273

[2] Hoeffding (1948) "A class of statistics with asymptotically normal distribution"

[3] Efron, Stein (1981) "The jackknife estimate of variance"

[4] Naeini, Cooper, Hauskrecht (2015) "Obtaining well calibrated probabilities using Bayesian binning"

[5] Gerken, Kessel (2024) arXiv:2403.03103

[6] Brier (1950) "Verification of forecasts expressed in terms of probability"

[7] Vovk, Gammerman, Shafer (2005) "Algorithmic learning in a random world"

[8] Sadinle, Lei, Wasserman (2019) "Least ambiguous set-valued classifiers with bounded error levels"
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .errors import DataError, OptionError, SymmetryError, check_option

SUM_TOLERANCE = 1e-3  # catches logits and log-probabilities, lets half precision pass


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error; ``float(estimate)`` is the number.

    >>> float(Estimate(0.25, se=0.01))
    0.25
    """

    value: float
    se: float

    def __float__(self) -> float:
        return self.value


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


def equivariance_defect(
    outputs: Tensor, *, action=None, estimator: str = "unbiased", chunk_size: int = 256
) -> Estimate:
    r"""The equivariance defect of the posterior predictive :math:`F(x) = E_q[f(x;\theta)]`,

    .. math:: \Delta = \frac{1}{N |G|} \sum_{x, g} \| F(gx) - \rho_Y(g) F(x) \|^2,

    with g = e included, estimated from the draws' :math:`d_t = f(gx;\theta_t) - \rho_Y(g) f(x;\theta_t)`
    through the Gram matrix :math:`K_{st} = \text{mean}_{x, g} \langle d_s, d_t \rangle`.

    ``"unbiased"`` is the U-statistic :math:`\sum_{s \ne t} K_{st} / (T(T-1))`. Use the same draws across the
    orbit. It scatters around zero for an invariant posterior, so it may be negative.

    ``"biased"`` is the plug-in :math:`\sum_{s, t} K_{st} / T^2`, the squared norm of the mean difference.
    Published figures use it with draws that are independent for each group element. It is then too high by
    :math:`2 (1 - 1/|G|)\, \text{tr Var}(f) / T` for an exactly invariant posterior: 1.5 tr Var / T at
    :math:`|G| = 4`. How the draws are shared is up to the caller, who fills ``outputs``.

    The standard error is the delete-one jackknife over *draws*, which all images share; the images are taken
    as given. Where the defect is zero it is too large by a factor of about :math:`\sqrt 2`; its square is not
    too small on average [3]. From two draws the unbiased estimate has none: NaN.

    :param Tensor outputs: ``(T, |G|, N, *event)``, :math:`f(g x_n; \theta_t)`, element 0 the identity.
    :param action: moves the outputs, ``event_shape`` equal to ``event``; ``None`` for invariant outputs.
    :param str estimator: ``"unbiased"`` or ``"biased"``.
    :param int chunk_size: images per step; memory is about ``2 T |G| chunk_size`` events in float64.
    :returns: the :class:`Estimate`, accumulated in float64.
    :raises DataError: for fewer than two draws, NaN or inf, or a wrong number of axes.
    :raises SymmetryError: if the action is of another group size or event shape.

    A predictor that ignores the pose has no defect:

    >>> draws = torch.rand(8, 1, 5, 3).expand(8, 4, 5, 3)
    >>> equivariance_defect(draws)
    Estimate(value=0.0, se=0.0)
    """
    check_option("estimator", estimator, ("unbiased", "biased"))
    _check_count("chunk_size", chunk_size)
    _check_draws(outputs, action)
    gram = _gram(outputs.detach(), action, chunk_size)
    value, left_out = _u_statistic(gram) if estimator == "unbiased" else _v_statistic(gram)
    return Estimate(value.item(), _jackknife(left_out))


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
    log_ratio = _safe_log(anchor) - _safe_log(probs[1:])
    mean = ((anchor.double() - moved) * log_ratio).sum(-1).mean()
    return mean * {"others": 1, "orbit": 1 - 1 / len(probs), "per_class": 1 / probs.shape[-1]}[convention]


def accuracy(probs: Tensor, labels: Tensor) -> Tensor:
    """Fraction of images whose most probable class is the label, over all leading axes.

    :param Tensor probs: ``(..., N, K)``; with a leading orbit axis the result is over all moved copies.
    :param Tensor labels: integers ``(N,)``, or ``(..., N)`` where the labels move too.
    :returns: a scalar in float64.

    >>> accuracy(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 1])).item()
    0.5
    """
    _check_predictive(probs, labels)
    return (probs.argmax(-1) == labels).double().mean()


def negative_log_likelihood(probs: Tensor, labels: Tensor) -> Tensor:
    r"""Mean negative log probability of the labels, :math:`-\text{mean} \log p(y_n)`, in nats per image.

    :param Tensor probs: ``(..., N, K)``; with a leading orbit axis the result is over all moved copies.
    :param Tensor labels: integers ``(N,)``, or ``(..., N)`` where the labels move too.
    :returns: a scalar in float64; finite, see :func:`symmetric_kl`.

    >>> round(negative_log_likelihood(torch.tensor([[0.5, 0.5]]), torch.tensor([1])).item(), 4)
    0.6931
    """
    _check_predictive(probs, labels)
    return -_safe_log(_of_labels(probs, labels)).mean()


def brier_score(probs: Tensor, labels: Tensor) -> Tensor:
    r"""Brier score [6] over all classes, :math:`\text{mean}_n \sum_k (p_{nk} - 1[y_n = k])^2`, from 0 to 2.

    :param Tensor probs: ``(..., N, K)``; with a leading orbit axis the result is over all moved copies.
    :param Tensor labels: integers ``(N,)``, or ``(..., N)`` where the labels move too.
    :returns: a scalar in float64.

    >>> brier_score(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([1, 0])).item()
    0.25
    """
    _check_predictive(probs, labels)
    return (probs.double() - one_hot(labels.long(), probs.shape[-1])).square().sum(-1).mean()


def calibration_error(probs: Tensor, labels: Tensor, bins: int = 15) -> Tensor:
    r"""Expected calibration error of the top probability, in equal-width bins :math:`((b-1)/B, b/B]` [4]:

    .. math:: ECE = \sum_b \frac{n_b}{n} | \text{accuracy}_b - \text{confidence}_b |.

    Images and moved copies share one set of bins.

    :param Tensor probs: ``(..., N, K)``; with a leading orbit axis the result is over all moved copies.
    :param Tensor labels: integers ``(N,)``, or ``(..., N)`` where the labels move too.
    :param int bins: the number :math:`B` of bins.
    :returns: a scalar in float64.

    >>> round(calibration_error(torch.tensor([[0.8, 0.2], [0.8, 0.2]]), torch.tensor([0, 1])).item(), 4)
    0.3
    """
    _check_predictive(probs, labels)
    _check_count("bins", bins)
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

    >>> conformal_set_size(torch.tensor([[0.75, 0.25]]), torch.tensor([1]), torch.eye(2), torch.arange(2), alpha=0.5)
    PredictionSets(size=1.0, coverage=1.0, threshold=0.75)
    """
    _check_predictive(calibration_probs, calibration_labels, "calibration_")
    _check_predictive(probs, labels)
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


def _gram(outputs: Tensor, action, chunk_size: int) -> Tensor:
    """``K[s, t] = mean over (x, g) of <d_s, d_t>``, shape ``(T, T)``, summed over chunks of images."""
    draws, order, images = outputs.shape[:3]
    gram = outputs.new_zeros((draws, draws), dtype=torch.float64)
    for chunk in outputs.split(chunk_size, dim=2):
        chunk = chunk.double()
        difference = (chunk - _move(chunk[:, 0], action, order)).reshape(draws, -1)
        gram += difference @ difference.mT
    return gram / (order * images)


def _move(y: Tensor, action, order: int) -> Tensor:
    """``rho_Y(g) y`` for all g: ``(T, N, *event)`` to ``(T, |G|, N, *event)``, or ``(T, 1, N, *event)``."""
    if action is None:
        return y.unsqueeze(1)
    g = torch.arange(order, device=y.device).unsqueeze(-1)
    return action.act(g, y.unsqueeze(1))


def _u_statistic(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the off-diagonal entries; and the same with each draw left out, ``(T,)``, 0/0 at ``T = 2``."""
    draws = len(gram)
    rows = gram.sum(1) - gram.diagonal()
    left_out = (rows.sum() - 2 * rows) / ((draws - 1) * (draws - 2))
    return rows.sum() / (draws * (draws - 1)), left_out


def _v_statistic(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of all entries; and the same with each draw left out, shape ``(T,)``."""
    draws = len(gram)
    left_out = (gram.sum() - 2 * gram.sum(1) + gram.diagonal()) / (draws - 1) ** 2
    return gram.mean(), left_out


def _jackknife(left_out: Tensor) -> float:
    """Standard error ``sqrt((T - 1) / T * sum_t (S_-t - mean)^2)`` from the leave-one-out values ``S_-t``."""
    draws = len(left_out)
    return math.sqrt((draws - 1) * left_out.var(correction=0).item())


def _anchor(probs: Tensor, action) -> Tensor:
    """``rho_Y(g) F(x)``, the prediction that F(gx) is held against: ``(|G|, N, K)``."""
    _check_probs(probs, "probs")
    if probs.ndim != 3:
        raise DataError(f"Expected probs of shape (|G|, N, K), element 0 the identity; got {tuple(probs.shape)}.")
    _check_action(action, len(probs), probs.shape[-1:])
    if action is None:
        return probs[:1].expand_as(probs)
    anchor = _move(probs[:1], action, len(probs)).squeeze(0)
    _check_probs(anchor, "the moved probs (an action that permutes the classes)")
    return anchor


def _moved_back(probs: Tensor, action) -> Tensor:
    """``rho_Y(g)^-1 F(gx)``, each prediction in the classes of the unmoved image: ``(|G|, N, K)``."""
    if action is None:
        return probs
    numbers = torch.arange(probs.shape[-1], device=probs.device, dtype=torch.float64).expand(1, 1, -1)
    source = _move(numbers, action, len(probs)).squeeze(0).round().long()  # class k of F(gx) was source[g, 0, k]
    return torch.zeros_like(probs).scatter(-1, source.expand_as(probs), probs)


def _of_labels(probs: Tensor, labels: Tensor) -> Tensor:
    """The probabilities of the labels, ``(..., N)``."""
    return probs.gather(-1, labels.long().expand(probs.shape[:-1]).unsqueeze(-1)).squeeze(-1)


def _label_scores(probs: Tensor, labels: Tensor) -> Tensor:
    return 1 - _of_labels(probs, labels).double()


def _conformal_threshold(scores: Tensor, alpha: float) -> float:
    """The ``ceil((n + 1)(1 - alpha))``-th smallest score; the decimals of alpha are exact, 1 - 0.7 = 0.3."""
    rank = math.ceil((len(scores) + 1) * (1 - Fraction(str(alpha))))
    return scores.sort().values[rank - 1].item() if rank <= len(scores) else math.inf


def _safe_log(probs: Tensor) -> Tensor:
    return probs.clamp_min(torch.finfo(probs.dtype).tiny).double().log()


def _check_draws(outputs: Tensor, action) -> None:
    if outputs.ndim < 3 or outputs[0].numel() == 0:
        raise DataError(f"Expected outputs of shape (T, |G|, N, *event), not empty; got {tuple(outputs.shape)}.")
    if len(outputs) < 2:
        raise DataError("Expected at least 2 posterior draws, to tell the defect from their spread; got 1.")
    if not torch.isfinite(outputs).all():
        raise DataError("Expected finite outputs; got NaN or inf. Consider a smaller learning rate.")
    _check_action(action, outputs.shape[1], outputs.shape[3:])


def _check_action(action, order: int, event_shape: torch.Size) -> None:
    if action is None:
        return
    if len(action.group) != order:
        raise SymmetryError(
            f"Expected the action's group to have the orbit axis's {order} elements; got {len(action.group)}."
        )
    if tuple(action.event_shape) != tuple(event_shape):
        raise SymmetryError(
            f"Expected an action on events of shape {tuple(event_shape)}; got {tuple(action.event_shape)}."
        )


def _check_predictive(probs: Tensor, labels: Tensor, prefix: str = "") -> None:
    _check_probs(probs, f"{prefix}probs")
    if labels.ndim == 0 or probs.shape[:-1][-labels.ndim :] != labels.shape:
        raise DataError(
            f"Expected one label per image, ({probs.shape[-2]},) for {prefix}probs (..., N, K) of shape "
            f"{tuple(probs.shape)}; got {tuple(labels.shape)}."
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(f"Expected integer {prefix}labels; got {labels.dtype}. Consider {prefix}labels.long().")
    low, high = labels.min().item(), labels.max().item()
    if low < 0 or high >= probs.shape[-1]:
        raise DataError(f"Expected {prefix}labels in 0..{probs.shape[-1] - 1}, one per class; got {low}..{high}.")


def _check_probs(probs: Tensor, name: str) -> None:
    if probs.ndim < 2 or probs.numel() == 0 or not probs.is_floating_point():
        raise DataError(f"Expected {name} as floats (..., N, K), not empty; got {probs.dtype}, {tuple(probs.shape)}.")
    if not torch.isfinite(probs).all():
        raise DataError(f"Expected finite {name}; got NaN or inf. Consider a smaller learning rate.")
    error = (probs.double().sum(-1) - 1).abs().max().item()
    if probs.min() < 0 or error > SUM_TOLERANCE:
        raise DataError(
            f"Expected {name} to be non-negative and to sum to one over the last axis; smallest entry "
            f"{probs.min().item():.3g}, sum off by {error:.3g}. Consider a softmax over the logits."
        )


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise OptionError(f"Expected {name} to be a positive integer; got {value!r}.")
