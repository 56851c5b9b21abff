"""The defect against the number of posterior draws; references in the package's docstring."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import DataError, OptionError
from .base import Estimate, check_count, check_draws
from .defect import gram_matrix, u_statistic, v_statistic

SIZES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Slope(Estimate):
    """A fitted slope, its standard error, and how many sizes the fit had to leave out; NaN from fewer than two.

    >>> float(Slope(-1.0, se=0.02, left_out=0))
    -1.0
    """

    left_out: int


@dataclass(frozen=True, eq=False)
class Reevaluations:
    """One estimator of the defect, evaluated again and again from fresh draws.

    :param Tensor values: ``(S, K)``, for each of S numbers of draws K values.
    """

    values: Tensor

    @property
    def mean(self) -> Tensor:
        """Over re-evaluations, ``(S,)``."""
        return self.values.mean(1)

    @property
    def spread(self) -> Tensor:
        """The standard deviation of one value over re-evaluations, ``(S,)``."""
        return self.values.std(1)

    @property
    def se(self) -> Tensor:
        """The standard error of the mean, ``spread / √K``, ``(S,)``."""
        return self.spread / math.sqrt(self.values.shape[1])

    @property
    def spread_se(self) -> Tensor:
        """The standard error of the spread, ``spread`` times the delete-one jackknife error of its logarithm, ``(S,)``.

        The logarithm's, since it is fitted; the values need not be Normal, and are not where the defect is zero.
        """
        repeats = self.values.shape[1]
        distances = (self.values - self.mean.unsqueeze(1)).square() * repeats / (repeats - 1)
        others = (distances.sum(1, keepdim=True) * (repeats - 1) / repeats - distances) / (repeats - 2)  # variances
        return self.spread * ((repeats - 1) * (others.log() / 2).var(1, correction=0)).sqrt()


@dataclass(frozen=True, eq=False)
class DefectSweep:
    r"""The defect against the number T of draws, with fitted slopes; see :func:`defect_sweep`. It prints as a table.

    The slopes are least squares fits over :math:`\log T`, weighted by the inverse squares of the points' standard
    errors; their own errors follow from those (not from the residuals). A logarithm needs a positive value with a
    positive error: other sizes are left out and counted.

    :param tuple sizes: the S numbers of draws.
    :param Reevaluations biased: values ``(S, K)`` of the biased estimator, draws independent for each element.
    :param Reevaluations unbiased: values ``(S, K)`` of the unbiased estimator, draws common to the orbit; NaN at T = 1.
    :param Estimate reference: the defect above which the biased estimate's excess is counted.
    """

    sizes: tuple[int, ...]
    biased: Reevaluations
    unbiased: Reevaluations
    reference: Estimate

    @property
    def excess(self) -> Tensor:
        """The mean of the biased estimate less the reference, ``(S,)``."""
        return self.biased.mean - self.reference.value

    @cached_property
    def excess_slope(self) -> Slope:
        """Of log ``excess`` over log T: −1. The reference's error, common to all sizes, is part of its own."""
        return _log_slope(self.sizes, self.excess, self.biased.se, self.reference.se)

    @cached_property
    def spread_slope(self) -> Slope:
        """Of the unbiased estimate's log ``spread`` over log T: −1/2 where the defect dominates, −1 where it is 0."""
        first = self._first_unbiased
        return _log_slope(self.sizes[first:], self.unbiased.spread[first:], self.unbiased.spread_se[first:])

    @cached_property
    def drift(self) -> Slope:
        """Of the unbiased estimate's mean, not its logarithm, over log T: 0."""
        first = self._first_unbiased
        return _slope(self.sizes[first:], self.unbiased.mean[first:], self.unbiased.se[first:])

    @property
    def _first_unbiased(self) -> int:
        """The first index where the unbiased estimate exists."""
        return int(self.sizes[0] == 1)

    def rows(self) -> list[dict[str, float]]:
        """The table, a dict for each number of draws."""
        columns = {"excess": self.excess}
        for name, series in {"biased": self.biased, "unbiased": self.unbiased}.items():
            columns |= {name: series.mean, f"{name}_se": series.se, f"{name}_spread": series.spread}
        return [
            {"draws": draws} | {name: column[i].item() for name, column in columns.items()}
            for i, draws in enumerate(self.sizes)
        ]

    def __str__(self) -> str:
        lines = [f"{'T':>5}  {'biased':>10} ± {'se':<8} {'spread':>8}  {'unbiased':>10} ± {'se':<8} {'spread':>8}"]
        lines += [
            "{draws:5d}  {biased:10.3e} ± {biased_se:<8.1e} {biased_spread:8.1e}  "
            "{unbiased:10.3e} ± {unbiased_se:<8.1e} {unbiased_spread:8.1e}".format(**row)
            for row in self.rows()
        ]
        lines += [
            f"K = {self.biased.values.shape[1]} re-evaluations; excess: biased mean - {_written(self.reference)}",
            f"d log excess / d log T = {_written(self.excess_slope)}, theory -1",
            f"d log spread / d log T = {_written(self.spread_slope)}, unbiased; theory -1/2, or -1 for an invariant q",
            f"d mean / d log T = {_written(self.drift)}, unbiased; theory 0",
        ]
        return "\n".join(lines)


def defect_sweep(
    draw: Callable[[int, bool], Tensor],
    sizes: Sequence[int] = SIZES,
    repeats: int = 20,
    *,
    action=None,
    reference: float | Estimate | None = None,
    chunk_size: int = 256,
) -> DefectSweep:
    r"""The equivariance defect as a function of the number T of draws, each value computed K times from fresh draws.

    Of the two estimators of :func:`equivariance_defect`, the unbiased one is given draws that the orbit shares, the
    biased one draws that are independent for each element. Expected are, whatever the posterior,

    .. math:: E \hat\Delta_\text{unbiased} = \Delta, \qquad
              E \hat\Delta_\text{biased} = \Delta + \text{mean}_{x, g \in G} 1[g \ne e]\,
              \text{tr}(\text{Var} f(gx) + \text{Var} f(x)) / T

    for an orthogonal action: an excess proportional to 1/T, which is :math:`2 (1 - 1/|G|)\, \text{tr Var}(f) / T`
    for an invariant posterior. The variance of the unbiased estimate is

    .. math:: \frac{4 (T - 2)\, \zeta_1 + 2\, \zeta_2}{T (T - 1)}, \qquad
              \zeta_1 = \text{Var}\, E[K_{st} | \theta_s], \quad \zeta_2 = \text{Var}\, K_{st}

    [2]: its spread falls as :math:`T^{-1/2}` where the defect dominates, and as :math:`1 / \sqrt{T (T - 1)}`
    where :math:`\zeta_1 = 0`, as for an invariant posterior.

    A sweep draws ``repeats * sum(sizes) * (|G| + 1)`` times from the posterior.

    :param draw: ``draw(T, independent)`` returns outputs ``(T, |G|, N, *event)`` of T fresh draws, common to the
        orbit or independent for each element: ``functools.partial(pe.orbit_predict, model, guide, symmetry, x)``.
    :param sizes: increasing numbers of draws, the last at least 2. From T = 1 there is a biased value only.
    :param int repeats: K, at least 3.
    :param action: moves the outputs, as for :func:`equivariance_defect`; ``symmetry.outputs`` of a symmetry.
    :param reference: the true defect, or an estimate with its error; ``None`` for the unbiased mean at the last size.
    :param int chunk_size: images per step.
    :returns: the :class:`DefectSweep`.
    :raises OptionError: for sizes, repeats or a reference that cannot be used.
    :raises DataError: for outputs of another number of draws, or as :func:`equivariance_defect` does.
    :raises SymmetryError: if the action is of another group size or event shape.

    Outputs of one law at every pose:

    >>> _ = torch.manual_seed(0)
    >>> sweep = defect_sweep(lambda draws, independent: torch.randn(draws, 4, 5, 3), sizes=(2, 4, 8, 16))
    >>> -1.1 < float(sweep.excess_slope) < -0.9
    True
    """
    sizes = _checked_sizes(sizes)
    check_count("chunk_size", chunk_size)
    if not isinstance(repeats, int) or repeats < 3:
        raise OptionError(f"Expected repeats, of which a spread and its error are taken, at least 3; got {repeats!r}.")
    reference = _as_estimate(reference)
    biased, unbiased = (
        Reevaluations(torch.stack([_values(draw, draws, independent, repeats, action, chunk_size) for draws in sizes]))
        for independent in (True, False)
    )
    return DefectSweep(sizes, biased, unbiased, reference or Estimate(unbiased.mean[-1].item(), unbiased.se[-1].item()))


@torch.no_grad()
def _values(draw: Callable, draws: int, independent: bool, repeats: int, action, chunk_size: int) -> Tensor:
    """``(K,)``: the biased estimate of independent draws, or the unbiased one of common draws, NaN from one draw."""
    if draws == 1 and not independent:
        return torch.full((repeats,), math.nan, dtype=torch.float64)
    statistic = v_statistic if independent else u_statistic
    grams = (gram_matrix(_outputs(draw, draws, independent, action), action, chunk_size) for _ in range(repeats))
    return torch.stack([statistic(gram)[0].cpu() for gram in grams])


def _outputs(draw: Callable, draws: int, independent: bool, action) -> Tensor:
    outputs = draw(draws, independent)
    check_draws(outputs, action, least=1)
    if len(outputs) != draws:
        raise DataError(f"Expected draw({draws}, {independent}) to return {draws} draws; got {len(outputs)}.")
    return outputs


def _log_slope(sizes: Sequence[int], values: Tensor, errors: Tensor, shared: float = 0.0) -> Slope:
    """Of the logarithms, whose errors are relative to the values; one that is not positive has none."""
    return _slope(sizes, values.log(), errors / values, shared / values)


def _slope(sizes: Sequence[int], y: Tensor, own: Tensor, shared: Tensor | None = None) -> Slope:
    r"""Weighted least squares over log T of the y that are finite and have an error: :math:`b = \sum_i a_i y_i` and
    :math:`\text{Var}\, b = \sum_i (a_i s_i)^2 + (\sum_i a_i r_i)^2` for the errors s of each and r common to all.
    """
    known = y.isfinite() & (own > 0)
    left_out = len(sizes) - int(known.sum())
    if known.sum() < 2:
        return Slope(math.nan, math.nan, left_out)
    x = torch.tensor(sizes, dtype=torch.float64).log()[known]
    y, own, shared = y[known], own[known], torch.zeros_like(own[known]) if shared is None else shared[known]
    weights = 1 / (own.square() + shared.square())
    x = x - (weights * x).sum() / weights.sum()
    a = weights * x / (weights * x.square()).sum()
    variance = (a * own).square().sum() + (a * shared).sum().square()
    return Slope((a * y).sum().item(), variance.sqrt().item(), left_out)


def _as_estimate(reference: float | Estimate | None) -> Estimate | None:
    if reference is None:
        return None
    estimate = reference if isinstance(reference, Estimate) else Estimate(float(reference), 0.0)
    if not math.isfinite(estimate.value) or not 0 <= estimate.se < math.inf:
        raise OptionError(f"Expected a finite reference, a defect, with a finite error; got {reference!r}.")
    return estimate


def _checked_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(sizes)
    for size in sizes:
        check_count("every size", size)
    if sizes != tuple(sorted(set(sizes))) or max(sizes, default=0) < 2:
        raise OptionError(f"Expected increasing numbers of draws, the last at least 2; got {sizes}.")
    return sizes


def _written(estimate: Estimate) -> str:
    left_out = getattr(estimate, "left_out", 0)
    return f"{estimate.value:.3g} ± {estimate.se:.1g}" + (f" ({left_out} sizes left out)" if left_out else "")
