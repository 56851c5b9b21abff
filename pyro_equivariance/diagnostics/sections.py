"""Fit, coverage of the orbit and convergence between runs: rows with verdicts, from the groups of draws."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import xarray as xr

from ..errors import OptionError, SymmetryError
from ..metrics import Estimate
from ..model_symmetries import canonicalize
from . import base, quantities
from .definitions import CONVERGENCE, COVERAGE, FIT
from .evidence import ROUNDING, ZERO, Evidence, Table, of_worst, worst

GOOD_K = 0.5
UNTOLD = 0.5  # an error of k̂ with which it says nothing
CLEAR = 3.0
LEVEL = 0.0027  # of a flat loss that is taken for a trend: 3 standard errors of a long history
HELD_OUT = "the data were held out: q is not an approximation of their posterior"
ALONE = "; of mean_log_likelihood alone; sites='all' shows the weights"
SCALARS = 4
RHAT, ESS = 1.01, 100
EXACT = 1e-5  # of log p, so that single precision passes
WHOLE = 0.02  # of a copy


def fit(evidence: Evidence, table: Table) -> None:
    """ELBO, its trend, and k̂ of the joint and of marginal weights."""
    ratios = None if evidence.are_held_out else evidence.log_ratios
    if evidence.are_held_out:
        table.leave_out("elbo, k_hat, k_hat[·], elpd_loo", HELD_OUT)
    elif ratios is None:
        table.leave_out("elbo, k_hat, k_hat[·]", evidence.why_no_log_q or "sample_stats has no lp")
    else:
        elbo = [quantities.mean_with_error(run) for run in ratios]
        table.add("fit", "elbo", elbo, _elbo_verdict(elbo, *_count(evidence)), FIT["elbo"])
    _trend(evidence, table)
    _divergences(evidence, table)
    if ratios is not None:
        k = [quantities.pareto_k(run) for run in ratios]
        reason = _why_no_k(ratios)
        table.add("fit", "k_hat", k, k_verdict(k, evidence.draws), FIT["k_hat"], reason)
        for name, values in _functionals(evidence).items():
            k = [quantities.marginal_pareto_k(run, h) for run, h in zip(ratios, values, strict=True)]
            reason = _why_no_k(ratios, values)
            table.add("fit", f"k_hat[{name}]", k, k_verdict(k, evidence.draws), FIT["k_hat[·]"], reason)


def k_verdict(estimates: Sequence[Estimate], draws: int) -> str:
    """In words, of the worst run."""
    k, limit = worst(estimates), quantities.k_limit(draws)
    good = min(GOOD_K, limit)
    if k.value <= good:
        verdict = f"good (up to {good:.2g})"
    elif k.value <= limit:
        verdict = f"usable (up to {limit:.2g})"
    else:
        verdict = f"poor (above {limit:.2g})"
    if math.isnan(k.se) or (k.se > UNTOLD and abs(k.value - limit) < 2 * k.se):
        verdict = "cannot be told: the error is too large"
    elif abs(k.value - limit) < 2 * k.se:
        verdict += ", but within 2 errors of the limit: take more draws"
    return of_worst(verdict, estimates)


def coverage(evidence: Evidence, table: Table) -> None:
    """How much of the orbit q covers, and whether the model has the symmetry at all."""
    log_p, log_q = evidence.array("sample_stats", "lp_orbit"), evidence.array("sample_stats", "log_q_orbit")
    if log_q is None:
        table.leave_out("coverage, mixture_gain, log_density_gap", evidence.why_no_orbit_of_latents)
    else:
        order = log_q.shape[-1]
        gain = [quantities.orbit_divergence(run) for run in log_q]
        share = [Estimate(min(1.0, math.exp(-kl.value)), math.exp(-kl.value) * kl.se) for kl in gain]
        gap = [quantities.density_gap(run) for run in log_q]
        table.add("coverage", "coverage", share, _coverage_verdict(share, order), COVERAGE["coverage"])
        zero = f"{ZERO}; " if abs(worst(gain, abs).value) <= ROUNDING else ""
        limit = f"{zero}nats, at most log {order} = {math.log(order):.3g}"
        table.add("coverage", "mixture_gain", gain, limit, COVERAGE["mixture_gain"])
        reason = "the group has one element" if order == 1 else "not finite"
        table.add("coverage", "log_density_gap", gap, _gap_verdict(gap), COVERAGE["log_density_gap"], reason)
    if log_p is None:
        table.leave_out("model_symmetry", _why_no_lp_orbit(evidence))
    else:
        change = np.abs(log_p - log_p[..., :1])
        largest = [Estimate(float(run.max()), math.nan) for run in change]
        verdict = _symmetry_verdict(change, log_p, _elements(evidence))
        table.add("coverage", "model_symmetry", largest, verdict, COVERAGE["model_symmetry"])


def convergence(evidence: Evidence, table: Table) -> None:
    """R̂ and effective sample size over the runs: of the posterior as it is, up to the symmetry, and of invariants."""
    if evidence.chains < 2:
        table.leave_out("max_rhat, min_ess", "one run")
        return
    posterior = _drawn(evidence.groups["posterior"])
    alone = ALONE if list(posterior) == ["mean_log_likelihood"] else ""
    found = {"": posterior, "_invariant": _invariants(evidence, posterior)}
    if evidence.symmetry is None:
        table.leave_out("max_rhat_canonical", "no symmetry given")
    else:
        try:
            found["_canonical"] = canonicalize(posterior, evidence.symmetry)
        except SymmetryError as error:
            table.leave_out("max_rhat_canonical", str(error).split(". ")[0].rstrip("."))
    if not posterior.data_vars:
        table.leave_out("max_rhat, min_ess", "the posterior has no variables that vary")
    rhat = {suffix: _extreme(base.ARVIZ.rhat(d), max) for suffix, d in found.items() if d.data_vars}
    aligned = rhat.get("_canonical", rhat.get("_invariant"))
    for suffix, (value, name) in rhat.items():
        ess, smallest = _extreme(base.ARVIZ.ess(found[suffix]), min)
        verdict = _rhat_verdict(value, name, None if suffix else aligned) + ("" if suffix else alone)
        few = f"not finite, or too few draws, {evidence.draws}"
        table.add("convergence", f"max_rhat{suffix}", _joint(value), verdict, CONVERGENCE[f"max_rhat{suffix}"], few)
        verdict = f"{_enough(ess, evidence)}; smallest for {smallest}" + ("" if suffix else alone)
        table.add("convergence", f"min_ess{suffix}", _joint(ess), verdict, CONVERGENCE[f"min_ess{suffix}"], few)


def _why_no_k(ratios: np.ndarray, functional: np.ndarray | None = None) -> str:
    """The reasons of all runs."""
    each = zip(ratios, [None] * len(ratios) if functional is None else functional, strict=True)
    return ", ".join(dict.fromkeys(filter(None, (quantities.why_no_k(*pair) for pair in each)))) or "not finite"


def _why_no_lp_orbit(evidence: Evidence) -> str:
    if evidence.array("sample_stats", "log_q_orbit") is None:
        return evidence.why_no_orbit_of_latents
    if "inputs" in evidence.attrs or (evidence.symmetry is not None and evidence.symmetry.inputs is not None):
        return "the inputs move: the posterior has the symmetry only together with its data (see pe.lifted_check)"
    return "sample_stats has no lp_orbit"


def _enough(ess: float, evidence: Evidence) -> str:
    least = evidence.chains * min(ESS, evidence.draws / 2)
    return f"{'enough' if ess >= least else 'few'} (from {least:g} on)"


def _elbo_verdict(elbo: Sequence[Estimate], count: float, unit: str) -> str:
    best = worst(elbo)
    parts = [f"{best.value / count:.4g} nats per {unit}" if count else "nats"]
    if len(elbo) > 1:
        parts[0] = f"best run {parts[0]}"
        values = np.array([e.value for e in elbo])
        errors = np.array([e.se for e in elbo])
        apart = np.abs(values - best.value) > CLEAR * np.hypot(errors, best.se)
        parts.append(f"{int(apart.sum())} of {len(elbo)} runs clearly below it" if apart.any() else "runs alike")
    return ", ".join(parts)


def _count(evidence: Evidence) -> tuple[float, str]:
    """How many observations the log likelihood stands for, each with its scale, masked ones not; and their name."""
    names = [str(name) for name in evidence.groups.get("log_likelihood", ())]
    total = sum(evidence.scale(name) * evidence.counted(name).sum(1).mean() for name in names)
    return total, "datum" if len(names) == 1 else "observation"


def _trend(evidence: Evidence, table: Table) -> None:
    group = evidence.groups.get("variational", xr.Dataset())
    if "loss" not in group:
        table.leave_out("loss_trend", "no group variational with a loss")
        return
    loss = group["loss"].reindex(chain=evidence.groups["posterior"]["chain"]).transpose("chain", "step").values
    slopes = [quantities.trend(group["step"].values, run) for run in loss]
    limits = [quantities.trend_limit(run, LEVEL) for run in loss]
    few = f"less than {quantities.LEAST_LOSSES} finite losses"
    table.add("fit", "loss_trend", slopes, _trend_verdict(slopes, limits), FIT["loss_trend"], few)


def _divergences(evidence: Evidence, table: Table) -> None:
    """Of MCMC."""
    diverging = evidence.array("sample_stats", "diverging")
    if diverging is not None:
        counts = diverging.sum(1)
        verdict = f"{counts.sum():.0f} in all: the sampler misses a part of the posterior" if counts.any() else "none"
        table.add("fit", "divergences", [Estimate(float(n), math.nan) for n in counts], verdict, FIT["divergences"])


def _trend_verdict(slopes: Sequence[Estimate], limits: Sequence[float]) -> str:
    falling = sum(slope.value < -limit * slope.se for slope, limit in zip(slopes, limits, strict=True))
    rising = sum(slope.value > limit * slope.se for slope, limit in zip(slopes, limits, strict=True))
    several = len(slopes) > 1
    parts = [
        f"{word} in {number} of {len(slopes)} runs" if several else word
        for word, number in (("still falling", falling), ("rising", rising))
        if number
    ]
    return (", ".join(parts) or "flat") + "; nats per datum and 100 steps"


def _functionals(evidence: Evidence) -> dict[str, np.ndarray]:
    """The named functionals, ``(chain, draw)`` each."""
    posterior, chosen = evidence.groups["posterior"], evidence.functionals
    if isinstance(chosen, Mapping):
        found = {name: function(posterior) for name, function in chosen.items()}
    elif chosen is None:
        scalars = [n for n, a in posterior.items() if set(a.dims) == {"chain", "draw"} and n != "mean_log_likelihood"]
        names = ["mean_log_likelihood"] * ("mean_log_likelihood" in posterior) + scalars[:SCALARS]
        found = {name: posterior[name] for name in names}
    else:
        if unknown := [name for name in chosen if name not in posterior]:
            known = ", ".join(map(repr, posterior.data_vars))
            raise OptionError(f"Expected functionals to be variables of the posterior, {known}; got {unknown[0]!r}.")
        found = {name: posterior[name] for name in chosen}
    for name, array in found.items():
        if set(getattr(array, "dims", ())) != {"chain", "draw"}:
            raise OptionError(
                f"Expected the functional {name!r} to be a number for each draw, (chain, draw); got "
                f"{getattr(array, 'dims', type(array).__name__)}. Use functionals={{name: lambda posterior: ...}}."
            )
    return {name: array.transpose("chain", "draw").values.astype(float) for name, array in found.items()}


def _coverage_verdict(share: Sequence[Estimate], order: int) -> str:
    least = worst(share, key=lambda value: -value)
    copies = least.value * order
    where = "" if len(share) == 1 else " in the worst run"
    whole = round(copies)
    if whole and abs(copies - whole) <= max(WHOLE, min(2 * least.se * order, 5 * WHOLE)):
        part = "all" if whole == order else str(Fraction(whole, order))
        return f"q covers {part} of the orbit{where}: {whole} of {order} copies"
    return f"q covers {least.value:.2g} of the orbit{where}: as much as {copies:.1f} of {order} copies"


def _gap_verdict(gap: Sequence[Estimate]) -> str:
    largest = worst(gap)
    if math.isinf(largest.value):
        verdict = "q has no density at moved draws, which k̂ cannot see"
    elif largest.value <= max(2 * largest.se, EXACT):
        zero = f"{ZERO}: " if abs(worst(gap, abs).value) <= ROUNDING else ""
        verdict = f"{zero}q is as dense at moved draws as at its own"
    else:
        verdict = "nats that q is less dense at moved draws, which k̂ cannot see"
    return of_worst(verdict, gap)


def _symmetry_verdict(change: np.ndarray, log_p: np.ndarray, elements: Sequence[str]) -> str:
    if not np.isfinite(change).all():
        return "not finite at some moved draws: the symmetry leaves the model's support"
    if change.max() <= EXACT * max(1.0, float(np.abs(log_p).max())):
        return "the posterior has the symmetry"
    element = elements[int(change.max((0, 1)).argmax())]
    return of_worst(f"the posterior lacks the symmetry, most at {element!r}: no reason to cover the orbit", change)


def _elements(evidence: Evidence) -> list[str]:
    array = evidence.groups["sample_stats"]["lp_orbit"]
    return [str(name) for name in array["element"].values]


def _drawn(posterior: xr.Dataset) -> xr.Dataset:
    """The variables that are numbers and vary."""
    names = [
        name
        for name, array in posterior.items()
        if {"chain", "draw"} <= set(array.dims) and array.dtype.kind in "fiu" and np.ptp(array.values) > 0
    ]
    return posterior[names].astype(float)


def _invariants(evidence: Evidence, posterior: xr.Dataset) -> xr.Dataset:
    found = {name: posterior[name] for name in ["mean_log_likelihood"] if name in posterior}
    log_p = evidence.array("sample_stats", "lp")
    if log_p is not None and np.ptp(log_p) > 0:
        found["lp"] = xr.DataArray(log_p, dims=("chain", "draw"))
    return xr.Dataset(found)


def _extreme(statistics: xr.Dataset, choose) -> tuple[float, str]:
    """The largest or smallest entry, and its name, such as ``w[2, 0]``; entries that never vary have none."""
    found = []
    for name, array in statistics.items():
        values = array.values.reshape(-1)
        if not np.isnan(values).all():
            place = int(np.nanargmax(values) if choose is max else np.nanargmin(values))
            index = ", ".join(map(str, np.unravel_index(place, array.shape)))
            found.append((float(values[place]), f"{name}[{index}]" if index else str(name)))
    return choose(found, key=lambda pair: pair[0], default=(math.nan, "none"))


def _rhat_verdict(value: float, name: str, aligned: tuple[float, str] | None) -> str:
    if value <= RHAT:
        return f"the runs agree (up to {RHAT})"
    if aligned is not None and aligned[0] <= RHAT:
        return f"the runs differ, most in {name}, but agree up to the symmetry or in invariants"
    return f"the runs differ, most in {name}"


def _joint(value: float) -> list[Estimate]:
    """A quantity of all runs together."""
    return [Estimate(value, math.nan)]
