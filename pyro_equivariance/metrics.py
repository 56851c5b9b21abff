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
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

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


def orbit_same_prediction(probs: Tensor, *, action=None) -> Tensor:
    r"""Orbit same prediction, anchor definition: the fraction of group elements, the identity included, with

    .. math:: \arg\max F(gx) = \arg\max \rho_Y(g) F(x),

    averaged over the images. Multiply by :math:`|G|` for the published count. It is at least :math:`1/|G|`,
    and 1 for a network that always predicts one class: report the accuracy beside it.

    :param Tensor probs: ``(|G|, N, K)``, the mean predictive at :math:`g x_n`, element 0 the identity.
    :param action: permutes the classes, ``event_shape == (K,)``; ``None`` for invariant classes.
    :returns: a scalar in float64.

    >>> orbit_same_prediction(torch.tensor([[[0.9, 0.1]], [[0.2, 0.8]]])).item()
    0.5
    """
    anchor = _anchor(probs, action)
    return (probs.argmax(-1) == anchor.argmax(-1)).double().mean()


def symmetric_kl(probs: Tensor, *, action=None) -> Tensor:
    r"""Symmetric Kullback-Leibler divergence along the orbit, in nats: with :math:`p_0 = \rho_Y(g) F(x)` and
    :math:`p_g = F(gx)`,

    .. math:: KL(p_0 \| p_g) + KL(p_g \| p_0) = \sum_k (p_{0k} - p_{gk}) (\log p_{0k} - \log p_{gk}),

    averaged over the images and the *non-identity* elements; not divided by the number of classes.
    Probabilities below the dtype's smallest normal number count as that number, so the result is finite.

    :param Tensor probs: ``(|G|, N, K)``, the mean predictive at :math:`g x_n`, element 0 the identity.
    :param action: permutes the classes, ``event_shape == (K,)``; ``None`` for invariant classes.
    :returns: a scalar in float64; zero for the trivial group.

    >>> symmetric_kl(torch.tensor([[[0.5, 0.5]], [[0.5, 0.5]]])).item()
    0.0
    """
    anchor = _anchor(probs, action)[1:]
    moved = probs[1:].double()
    if len(moved) == 0:
        return moved.new_zeros(())
    log_ratio = _safe_log(anchor) - _safe_log(probs[1:])
    return ((anchor.double() - moved) * log_ratio).sum(-1).mean()


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
    index = labels.long().expand(probs.shape[:-1]).unsqueeze(-1)
    return -_safe_log(probs.gather(-1, index)).mean()


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


def _check_predictive(probs: Tensor, labels: Tensor) -> None:
    _check_probs(probs, "probs")
    if labels.ndim == 0 or probs.shape[:-1][-labels.ndim :] != labels.shape:
        raise DataError(
            f"Expected one label per image, ({probs.shape[-2]},) for probs (..., N, K) of shape "
            f"{tuple(probs.shape)}; got {tuple(labels.shape)}."
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(f"Expected integer labels; got {labels.dtype}. Consider labels.long().")
    low, high = labels.min().item(), labels.max().item()
    if low < 0 or high >= probs.shape[-1]:
        raise DataError(f"Expected labels in 0..{probs.shape[-1] - 1}, one per class; got {low}..{high}.")


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
