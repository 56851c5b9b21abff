"""The equivariance defect, estimated from posterior draws; references in the package's docstring."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import check_option
from .base import Estimate, check_count, check_draws, move


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
    check_count("chunk_size", chunk_size)
    check_draws(outputs, action)
    gram = gram_matrix(outputs.detach(), action, chunk_size)
    value, left_out = u_statistic(gram) if estimator == "unbiased" else v_statistic(gram)
    return Estimate(value.item(), _jackknife(left_out))


def defect_by_element(outputs: Tensor, *, action=None, chunk_size: int = 256) -> list[Estimate]:
    r"""The unbiased :func:`equivariance_defect` of each group element,

    .. math:: \Delta_g = \frac{1}{N} \sum_x \| F(gx) - \rho_Y(g) F(x) \|^2,

    each with the delete-one jackknife error over draws. Their mean is the defect of the whole group. They share
    their draws, so their errors are not independent. That of the identity is zero.

    :param Tensor outputs: ``(T, |G|, N, *event)``, :math:`f(g x_n; \theta_t)`, element 0 the identity.
    :param action: moves the outputs, ``event_shape`` equal to ``event``; ``None`` for invariant outputs.
    :param int chunk_size: images per step; memory is about ``2 T |G| chunk_size`` events, and ``T² |G|`` numbers.
    :returns: an :class:`Estimate` for each element.
    :raises DataError: for fewer than two draws, NaN or inf, or a wrong number of axes.
    :raises SymmetryError: if the action is of another group size or event shape.

    >>> defect_by_element(torch.tensor([0.0, 2.0]).expand(3, 5, 2).mT[..., None])
    [Estimate(value=0.0, se=0.0), Estimate(value=4.0, se=0.0)]
    """
    check_count("chunk_size", chunk_size)
    check_draws(outputs, action)
    draws, order, images = outputs.shape[:3]
    grams = outputs.new_zeros((order, draws, draws), dtype=torch.float64)
    for difference in _differences(outputs.detach(), action, chunk_size):
        of_element = difference.transpose(0, 1).flatten(2)
        grams += of_element @ of_element.mT
    estimates = [u_statistic(gram / images) for gram in grams]
    return [Estimate(value.item(), _jackknife(left_out)) for value, left_out in estimates]


def gram_matrix(outputs: Tensor, action, chunk_size: int) -> Tensor:
    """``K[s, t] = mean over (x, g) of <d_s, d_t>``, shape ``(T, T)``, summed over chunks of images."""
    draws, order, images = outputs.shape[:3]
    gram = outputs.new_zeros((draws, draws), dtype=torch.float64)
    for difference in _differences(outputs, action, chunk_size):
        difference = difference.reshape(draws, -1)
        gram += difference @ difference.mT
    return gram / (order * images)


def _differences(outputs: Tensor, action, chunk_size: int) -> Iterator[Tensor]:
    """``d_t = f(gx) - rho_Y(g) f(x)`` in double precision, ``(T, |G|, n, *event)`` for each chunk of n images."""
    for chunk in outputs.split(chunk_size, dim=2):
        chunk = chunk.double()
        yield chunk - move(chunk[:, 0], action, outputs.shape[1])


def u_statistic(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the off-diagonal entries; and the same with each draw left out, ``(T,)``, 0/0 at ``T = 2``."""
    draws = len(gram)
    rows = gram.sum(1) - gram.diagonal()
    left_out = (rows.sum() - 2 * rows) / ((draws - 1) * (draws - 2))
    return rows.sum() / (draws * (draws - 1)), left_out


def v_statistic(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of all entries; and the same with each draw left out, shape ``(T,)``."""
    draws = len(gram)
    left_out = (gram.sum() - 2 * gram.sum(1) + gram.diagonal()) / (draws - 1) ** 2
    return gram.mean(), left_out


def _jackknife(left_out: Tensor) -> float:
    """Standard error ``sqrt((T - 1) / T * sum_t (S_-t - mean)^2)`` from the leave-one-out values ``S_-t``."""
    draws = len(left_out)
    return math.sqrt((draws - 1) * left_out.var(correction=0).item())
