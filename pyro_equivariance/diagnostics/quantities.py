"""The numbers of a diagnosis, each from arrays of one run's draws: means, Pareto k̂, orbits, slopes, leave-one-out.

References:

[1] Yao, Vehtari, Simpson, Gelman (2018) "Yes, but did it work? Evaluating variational inference" arXiv:1802.02538

[2] Vehtari, Simpson, Gelman, Yao, Gabry (2024) "Pareto smoothed importance sampling" JMLR 25(72) arXiv:1507.02646

[3] Magnusson, Andersen, Jonasson, Vehtari (2019) "Bayesian leave-one-out cross-validation for large data"
arXiv:1904.10679

[4] MacKinnon, White (1985) "Some heteroskedasticity-consistent covariance matrix estimators with improved finite sample
properties"
"""

import math
from collections.abc import Callable

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm, rankdata
from scipy.stats import t as student

from ..metrics import Estimate
from . import base

LEAST_DRAWS = 25  # for the 5 of them that a tail needs
ROUNDING = 1e-6  # a range of log ratios, in nats
FLAT = 0.05  # nats: where REACHED log ratios or more are as near to the largest, they are bounded, for these draws
REACHED = 20
APART = 0.01  # of the range of a tail: log ratios that are nearer than that count as one
DISTINCT = 4  # values of a tail to which a Pareto distribution is fitted
CLEAR = 4.0  # standard errors at which a cubic or quartic term is taken for real
LEAST_VALUES = 10  # of a functional
BLOCKS = 20
TREND_BLOCKS = 10
LEAST_LOSSES = 8
UNKNOWN = Estimate(math.nan, math.nan)


def mean_with_error(values: np.ndarray) -> Estimate:
    """The mean of independent values and its standard error, ``sd / √n``; NaN from a value that is not finite.

    >>> mean_with_error(np.array([1.0, 3.0]))
    Estimate(value=2.0, se=1.0)
    """
    values = np.asarray(values, dtype=float)
    if not len(values) or not np.isfinite(values).all():
        return UNKNOWN
    se = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(float(values.mean()), float(se))


def jackknife(statistic: Callable[[np.ndarray], float], count: int, blocks: int = BLOCKS) -> float:
    """Standard error of a statistic of ``count`` items, by leaving out every ``blocks``-th of them in turn.

    :param statistic: takes the numbers of the items that are kept.

    >>> round(jackknife(lambda kept: kept.mean(), 20), 3)  # sd / √20
    1.323
    """
    blocks = min(blocks, count)
    if blocks < 2:
        return math.nan
    items = np.arange(count)
    values = np.array([statistic(items[items % blocks != b]) for b in range(blocks)])
    return float(math.sqrt((blocks - 1) * values.var()))


def pareto_k(log_ratios: np.ndarray) -> Estimate:
    """The shape k̂ of the generalized Pareto distribution fitted to the largest of T importance ratios [1, 2].

    0 for bounded ratios: where the 20 largest differ by less than 5 %. NaN where :func:`why_no_k` has a reason. The
    standard error is the jackknife over 20 blocks of draws.

    :param log_ratios: ``(T,)``, in nats; a constant added to all changes nothing.
    """
    log_ratios = np.asarray(log_ratios, dtype=float)
    if why_no_k(log_ratios):
        return UNKNOWN
    return Estimate(_shape(log_ratios), jackknife(lambda kept: _shape(log_ratios[kept]), len(log_ratios)))


def why_no_k(log_ratios: np.ndarray, functional: np.ndarray | None = None) -> str:
    """Why ratios, or those of a functional, have no k̂; empty where they have one.

    >>> why_no_k(np.zeros(24)), why_no_k(np.arange(30.0)), why_no_k(np.arange(30.0), np.ones(30))
    ('less than 25 draws', '', 'it does not vary')
    """
    if len(log_ratios) < LEAST_DRAWS:
        return f"less than {LEAST_DRAWS} draws"
    if not np.isfinite(log_ratios).all() or (functional is not None and not np.isfinite(functional).all()):
        return "not finite"
    if functional is None:
        bounded, few = _tails(log_ratios[None])
        return "too few distinct ratios" if few[0] and not bounded[0] else ""
    values = len(np.unique(functional))
    return ("it does not vary" if values == 1 else f"it has {values} values only") if values < LEAST_VALUES else ""


def marginal_pareto_k(log_ratios: np.ndarray, functional: np.ndarray) -> Estimate:
    """k̂ of the marginal ratio ``p(h) / q(h)`` of :func:`marginal_log_ratios`, at least 0.

    0 stands for every bounded ratio: which one, the draws seldom tell. The standard error is the jackknife over 20
    blocks of draws, of the whole estimate. Where it is large, the draws are too few: it is about
    ``Var(log w) / √T`` in many dimensions. Since a mean over the rest given h has lighter tails than what it is the
    mean of, the k̂ of the joint ratios is an upper bound, and stands where the estimate is above it.

    :param log_ratios: ``(T,)``, the joint ``log p(θ_t, y) − log q(θ_t)``.
    :param functional: ``(T,)``, ``h(θ_t)``; NaN results from less than 10 different values.
    """
    log_ratios, functional = np.asarray(log_ratios, dtype=float), np.asarray(functional, dtype=float)
    if why_no_k(log_ratios, functional):
        return UNKNOWN

    def shape(kept: np.ndarray) -> float:
        return float(np.maximum(0.0, _shape(marginal_log_ratios(log_ratios[kept], functional[kept]))))

    joint = pareto_k(log_ratios)
    limit, value = max(0.0, joint.value), shape(np.arange(len(log_ratios)))
    return Estimate(limit, joint.se) if value > limit else Estimate(value, jackknife(shape, len(log_ratios)))


def marginal_log_ratios(log_ratios: np.ndarray, functional: np.ndarray) -> np.ndarray:
    r"""``log p(h) / q(h)`` at each draw, up to a constant, from the joint ratios ``w = p(θ, y) / q(θ)``.

    The marginal ratio is :math:`E_q[w \mid h]`. Its logarithm is taken to second order in the cumulants,

    .. math:: \log E_q[w \mid h] \approx E_q[\log w \mid h] + \tfrac12 \text{Var}_q[\log w \mid h],

    the mean and the variance by least squares in the normal scores of h (so that it does not matter in which units h is
    measured): the variance is quadratic; the mean too, or cubic or quartic where that term is 4 standard errors [4]
    from 0, and would be in pure noise. This is exact, up to a constant, where the higher cumulants do not depend on h:
    where ``log w`` given h is Normal, or h is independent of the rest under p and q. It is too small where ``log w``
    given h is the more skewed to the right the further out h is. For the best independent q of a Normal p with equal
    correlations, k̂ came out as 0.57 for 0.64 in 2 dimensions (correlation 0.8), and as 0.17 for 0.42 in 6 (0.5).

    :returns: ``(T,)``.
    """
    ranks = rankdata(functional)
    scores = norm.ppf((ranks - 0.5) / len(ranks))
    for degree in (4, 3):
        mean, clear = _least_squares(log_ratios, scores, degree)
        if clear:
            break
    else:
        mean, _ = _least_squares(log_ratios, scores, 2)
    variance, _ = _least_squares((log_ratios - mean) ** 2, scores, 2)
    return mean + variance / 2


def k_limit(draws: int) -> float:
    """Up to which k̂ importance weights of T draws are reliable, ``min(1 − 1 / log₁₀ T, 0.7)`` [2].

    >>> round(k_limit(100), 6), k_limit(10_000)
    (0.5, 0.7)
    """
    return min(1 - 1 / math.log10(draws), 0.7) if draws > 1 else -math.inf


def trend(step: np.ndarray, loss: np.ndarray) -> Estimate:
    """The loss's slope over the last quarter of its values, per 100 steps, by least squares on the means of 10 blocks.

    The blocks take up the noise's correlation in time; the error is that of their residuals. NaN from less than 8
    finite values, of which the last 4 make a quarter.

    :param step: ``(E,)``, the number of optimizer steps done.
    :param loss: ``(E,)``; values that are not finite are passed over.

    >>> trend(np.arange(80), 5 - 0.01 * np.arange(80)).value
    -1.0
    """
    known = np.isfinite(loss)
    if known.sum() < LEAST_LOSSES:
        return UNKNOWN
    last = _last(known.sum())
    chunks = np.array_split(np.arange(last), min(TREND_BLOCKS, last))
    x, y = (
        np.array([values[known][-last:][chunk].mean() for chunk in chunks])
        for values in (np.asarray(step, float), np.asarray(loss, float))
    )
    x, y = x - x.mean(), y - y.mean()
    slope = float(x @ y / (x @ x))
    variance = np.square(y - slope * x).sum() / (len(x) - 2) / (x @ x)
    return Estimate(round(100 * slope, 12), 100 * math.sqrt(variance))


def trend_limit(loss: np.ndarray, level: float) -> float:
    """How many standard errors :func:`trend` of a flat noisy loss stays within with probability ``1 − level``.

    Student's t quantile for the number of blocks less 2 degrees of freedom.

    >>> round(trend_limit(np.zeros(8), 0.05), 3), round(trend_limit(np.zeros(400), 0.05), 3)
    (4.303, 2.306)
    """
    freedom = min(TREND_BLOCKS, _last(np.isfinite(loss).sum())) - 2
    return float(student.isf(level / 2, freedom))


def _last(count: int) -> int:
    """How many values are the last quarter."""
    return max(4, math.ceil(count / 4))


def orbit_divergence(log_q_orbit: np.ndarray) -> Estimate:
    r"""``KL(q ‖ q^G) = E_q[log q(θ) − log (1/|G|) Σ_g q(ρ(g)θ)]``, in nats, from 0 to ``log |G|``.

    By Monte Carlo over the draws; near 0 it may come out below 0.

    :param log_q_orbit: ``(T, |G|)``, ``log q(ρ(g)θ_t)``, the identity first; ``−inf`` where q has no density.

    >>> orbit_divergence(np.array([[0.0, -np.inf], [0.0, -np.inf]])).value == math.log(2)
    True
    """
    return mean_with_error(log_q_orbit[:, 0] - logsumexp(log_q_orbit, axis=1) + math.log(log_q_orbit.shape[1]))


def density_gap(log_q_orbit: np.ndarray) -> Estimate:
    """``mean_{g ≠ e} E_q[log q(θ) − log q(ρ(g)θ)]``, the mean divergence of q from its moved copies, in nats."""
    gap = log_q_orbit[:, :1] - log_q_orbit[:, 1:]
    if np.isnan(gap).any() or not gap.shape[1]:
        return UNKNOWN
    return Estimate(math.inf, math.nan) if np.isinf(gap).any() else mean_with_error(gap.mean(1))


def log_predictive_density(log_likelihood: np.ndarray) -> np.ndarray:
    """``log (1/T) Σ_t p(y_n | θ_t)`` of each datum, from log likelihoods ``(T, N)``."""
    return logsumexp(log_likelihood, axis=0) - math.log(len(log_likelihood))


def leave_one_out(
    log_likelihood: np.ndarray, correction: np.ndarray | None = None, scale: float = 1.0
) -> base.LeaveOneOut:
    """Pareto smoothed leave-one-out: the sum over the data of ``log p(y_n | y_−n)``, in nats [2].

    The ratios are ``p(y_n | θ_t)^−s`` with the scale s of the likelihood, as under ``poutine.scale``; with a correction
    for draws that come from q and not from the posterior, times ``p(θ_t, y) / q(θ_t)`` [3].

    :param log_likelihood: ``(T, N)``, not scaled.
    :param correction: ``(T,)``, ``log p(θ_t, y) − log q(θ_t)``, scaled as the model is.
    :param scale: by which the model multiplies the log likelihood of a datum.
    """
    ratios = -scale * log_likelihood.T
    ratios = ratios if correction is None else correction + ratios
    if len(log_likelihood) < LEAST_DRAWS or not len(ratios) or not np.isfinite(ratios).all():
        return base.LeaveOneOut(math.nan, math.nan, math.nan, np.full(len(ratios), math.nan))
    ratios = ratios - ratios.max(1, keepdims=True)
    bounded, few = _tails(ratios)
    fitted = ~few & (np.ptp(ratios, axis=1) > ROUNDING)  # other tails are left as they are
    log_weights, k = ratios - logsumexp(ratios, axis=1, keepdims=True), np.where(few, math.nan, 0.0)
    if fitted.any():
        log_weights[fitted], k[fitted] = base.ARVIZ.smoothed(ratios[fitted])
    k[bounded] = np.fmin(k[bounded], 0.0)
    pointwise = logsumexp(log_weights + log_likelihood.T, axis=1)
    se = math.sqrt(len(pointwise) * pointwise.var())
    p = log_predictive_density(log_likelihood).sum() - pointwise.sum()
    return base.LeaveOneOut(float(pointwise.sum()), se, float(p), k)


def _shape(log_ratios: np.ndarray) -> float:
    log_ratios = log_ratios[None] - log_ratios.max()
    bounded, few = _tails(log_ratios)
    if bounded[0] or few[0]:
        return 0.0 if bounded[0] else math.nan
    return float(base.ARVIZ.smoothed(log_ratios)[1][0])


def _tails(log_ratios: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows ``(..., T)`` are bounded, and which have too few values for a Pareto distribution.

    The latter have less than 5 above the threshold of the tail, or few of which the largest came up repeatedly.
    """
    draws = log_ratios.shape[-1]
    tail = np.sort(log_ratios)[..., -math.ceil(min(draws / 5, 3 * math.sqrt(draws))) - 1 :]
    bounded = tail[..., -1] - tail[..., -min(REACHED, tail.shape[-1] - 1)] < FLAT
    apart = np.diff(tail) > APART * (tail[..., -1:] - tail[..., :1])
    repeated = (apart.sum(-1) + 1 < DISTINCT) & ~apart[..., -1]
    return bounded, repeated | ((tail > tail[..., :1]).sum(-1) < 5)


def _least_squares(y: np.ndarray, x: np.ndarray, degree: int) -> tuple[np.ndarray, bool]:
    """The fitted polynomial, and whether its highest term is clearly not 0.

    It is if it is far from 0 by its jackknifed standard error, and explains more of the variance of y than it would in
    pure noise: the ranks of a sample make up higher terms that are clear, but tiny.
    """
    design = np.vander(x, degree + 1, increasing=True)
    solve = np.linalg.pinv(design)
    coefficients = solve @ y
    residuals = y - design @ coefficients
    leverage = (design * solve.T).sum(1)
    error = np.sqrt(np.square(solve[-1] * residuals / np.maximum(1 - leverage, 1e-12)).sum())
    noise = y.std() * np.sqrt(np.square(solve[-1]).sum())
    return y - residuals, bool(abs(coefficients[-1]) > CLEAR * max(error, noise))
