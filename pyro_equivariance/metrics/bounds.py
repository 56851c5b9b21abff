"""How many draws the defect needs, whatever the posterior; references in the package's docstring."""

import math

from ..errors import OptionError, check_option
from .base import check_count

ROUNDING = 1e-12  # of T, so that the sample size of a deviation is the T that it was computed from


def deviation(draws: int, delta: float, order: int | None = None, estimator: str = "unbiased") -> float:
    r"""The :math:`\varepsilon` with :math:`P(|\Delta_T - E \Delta_T| \le \varepsilon) \ge 1 - \delta`, for outputs
    that are class probabilities and an action that permutes the classes, whatever the posterior, network and inputs.

    ``"unbiased"``, draws common to the orbit:

    .. math:: \varepsilon = \sqrt{8 \log(2/\delta) / \lfloor T/2 \rfloor},

    that is :math:`\sqrt{16 \log(2/\delta) / T}` for even T. It is Hoeffding's inequality for U-statistics [10]:
    :math:`d_t` is a difference of two probability vectors, so :math:`|\langle d_s, d_t \rangle| \le 2`, and the
    statistic is an average over orderings of the mean of :math:`\lfloor T/2 \rfloor` independent terms of range 4.
    (Bounded differences, :math:`8/T` for each draw, give only :math:`\sqrt{32 \log(2/\delta) / T}`.)

    ``"biased"``, draws independent for each element:

    .. math:: \varepsilon = \sqrt{8 (1 + 1/|G|) \log(2/\delta) / T}.

    It is McDiarmid's inequality [9]: another draw of :math:`f(gx)` moves :math:`\Delta_T` by at most
    :math:`4 / (T |G|)`, and another draw of the reference :math:`f(x)`, which every g shares, by :math:`4 / T`. It
    allows for a reference that is drawn apart from :math:`f(ex)`; where they are one, as in
    :func:`equivariance_defect`, it holds with room to spare, and so would :math:`1 - 1/|G|` for
    :math:`1 + 1/|G|`. Mind that :math:`E \Delta_T` is not the defect but the defect and its excess, see
    :func:`equivariance_defect`.

    :param int draws: T; at least 2 for ``"unbiased"``.
    :param float delta: the probability of a larger deviation, in (0, 1).
    :param int order: :math:`|G|`, for ``"biased"``; the other bound is the same for all groups.
    :param str estimator: ``"unbiased"`` or ``"biased"``.
    :raises OptionError: for an argument outside its range, or ``"biased"`` without an order.

    >>> round(deviation(1000, 0.05), 3)
    0.243
    """
    step, constant = _checked(delta, order, estimator)
    check_count("draws", draws)
    if draws < step:
        raise OptionError(f"Expected at least 2 draws for the unbiased estimator; got {draws}.")
    return math.sqrt(constant / (draws - draws % step))


def sample_size(epsilon: float, delta: float, order: int | None = None, estimator: str = "unbiased") -> int:
    r"""The smallest number T of draws for which :func:`deviation` is at most :math:`\varepsilon`, so that
    :math:`|\Delta_T - E \Delta_T| \le \varepsilon` with probability at least :math:`1 - \delta`:

    .. math:: T = 2 \lceil 8 \log(2/\delta) / \varepsilon^2 \rceil \quad \text{(unbiased)}, \qquad
              T = \lceil 8 (1 + 1/|G|) \log(2/\delta) / \varepsilon^2 \rceil \quad \text{(biased)}.

    It holds for every posterior, and so asks for many more draws than most need: for one posterior, the standard
    error of :func:`equivariance_defect` tells more.

    :param float epsilon: the deviation allowed; the defect of class probabilities is at most 2.
    :param float delta: the probability of a larger deviation, in (0, 1).
    :param int order: :math:`|G|`, for ``"biased"``; the other bound is the same for all groups.
    :param str estimator: ``"unbiased"`` or ``"biased"``.
    :raises OptionError: for an argument outside its range, or ``"biased"`` without an order.

    >>> sample_size(0.1, 0.05), sample_size(0.1, 0.05, order=4, estimator="biased")
    (5904, 3689)
    """
    step, constant = _checked(delta, order, estimator)
    if not _is_number(epsilon) or not 1e-100 < epsilon < math.inf:
        raise OptionError(f"Expected epsilon, the deviation allowed, positive and finite; got {epsilon!r}.")
    return step * max(1, math.ceil(constant / epsilon**2 / step * (1 - ROUNDING)))


def _checked(delta: float, order: int | None, estimator: str) -> tuple[int, float]:
    """``(m, c)`` where the deviation is ``sqrt(c / T)`` at the multiples T of m."""
    check_option("estimator", estimator, ("unbiased", "biased"))
    if not _is_number(delta) or not 0 < delta < 1:
        raise OptionError(f"Expected delta, the allowed probability of a larger deviation, in (0, 1); got {delta!r}.")
    if order is not None:
        check_count("order", order)
    elif estimator == "biased":
        raise OptionError("Expected the order |G| for the biased estimator; got None. Use order=len(group).")
    log = math.log(2 / delta)
    return (2, 16 * log) if estimator == "unbiased" else (1, 8 * (1 + 1 / order) * log)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
