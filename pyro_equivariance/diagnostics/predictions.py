"""Equivariance and quality of the predictions: rows with verdicts, from the groups of predictions."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.nn.functional import one_hot

from .. import metrics
from ..metrics import Estimate
from ..metrics.base import move
from . import quantities
from .definitions import DENSITY, EQUIVARIANCE, PREDICTION, moved
from .evidence import NO_DENSITY, ROUNDING, ZERO, Evidence, Table, of_worst, worst

CLEAR = 2.0
SMALL_KL = 0.01
UNRELIABLE = 0.7
SURE, NEAR, UNCORRECTED = range(3)  # how doubtful leave-one-out is
SEED = 0  # of the halves of the data


def equivariance(evidence: Evidence, table: Table) -> None:
    """Defect, and for classes orbit same prediction and symmetric KL, each run on its own."""
    group = evidence.groups.get("orbit_predictive", xr.Dataset())
    name = "probs" if "probs" in group else "mean" if "mean" in group else None
    if name is None:
        table.leave_out("defect, osp, symmetric_kl", _why_no_orbit(evidence))
        return
    action = _action(evidence)
    runs = [_orbit_draws(group[name].isel(chain=run)) for run in range(evidence.chains)]
    defect = [_where_finite(run, lambda r: metrics.equivariance_defect(r, action=action), least=2) for run in runs]
    few = "not finite" if evidence.draws > 1 else "one draw"
    scale = max(run[:, 0].square().sum().item() / (len(run) * run.shape[2]) for run in runs)
    table.add("equivariance", "defect", defect, _defect_verdict(defect, scale), EQUIVARIANCE["defect"], few)
    if name == "mean":
        table.leave_out("osp, symmetric_kl", "the observation is no class")
        return
    osp = [_where_finite(run, lambda r: _same_prediction(r.mean(0, dtype=torch.double), action)) for run in runs]
    table.add("equivariance", "osp", osp, _osp_verdict(osp, runs, bool(_label_sites(evidence))), EQUIVARIANCE["osp"])
    kl = [_where_finite(run, lambda r: _symmetric_kl(r, action), least=2) for run in runs]
    verdict = f"{'small' if worst(kl).value <= SMALL_KL else 'moved copies are predicted otherwise'} (up to {SMALL_KL})"
    verdict = ZERO if abs(worst(kl).value) <= ROUNDING else verdict
    table.add("equivariance", "symmetric_kl", kl, of_worst(verdict, kl), EQUIVARIANCE["symmetric_kl"], few)


def prediction(evidence: Evidence, table: Table) -> None:
    """Accuracy, calibration and conformal sets of classes, the predictive density of the data and of left-out data."""
    sites = _label_sites(evidence)
    if not sites:
        table.leave_out("accuracy, nll, ece, brier, set_size", "no class probabilities with observed labels")
    for prefix, site in sites.items():
        runs = [_of_run(evidence, prefix, site, run) for run in range(evidence.chains)]
        _class_rows(f"{site}: " if prefix else "", runs, evidence, table)
    group = evidence.groups.get("log_likelihood", xr.Dataset())
    if not group.data_vars:
        lost = "log_predictive_density" if evidence.are_held_out else "log_predictive_density, elpd_loo"
        table.leave_out(lost, "no group log_likelihood")
    for name in group:
        _density_rows(f"{name}: " if len(group.data_vars) > 1 else "", str(name), evidence, table)


def _why_no_orbit(evidence: Evidence) -> str:
    if evidence.symmetry is None and "symmetry" not in evidence.attrs:
        return "no symmetry given"
    moves = "inputs" in evidence.attrs or (evidence.symmetry is not None and evidence.symmetry.inputs is not None)
    return "no group orbit_predictive" if moves else "the symmetry does not move the inputs"


@dataclass(frozen=True)
class _Classes:
    """Mean predictives ``(|G| or 1, N, K)`` of one run, upright first, and the labels of all copies."""

    probs: Tensor
    labels: Tensor

    @property
    def upright(self) -> tuple[Tensor, Tensor]:
        return self.probs[:1], self.labels[:1]

    @property
    def has_orbit(self) -> bool:
        return len(self.probs) > 1

    @cached_property
    def is_finite(self) -> bool:
        return bool(self.probs.isfinite().all())


def _label_sites(evidence: Evidence) -> dict[str, str]:
    """The sites with class probabilities and labels, by the prefix of the former (``""`` for the only site)."""
    observed = evidence.groups.get("observed_data", xr.Dataset())
    names = [*evidence.groups.get("posterior_predictive", ()), *evidence.groups.get("orbit_predictive", ())]
    prefixes = dict.fromkeys(n.removesuffix("probs") for n in map(str, names) if n == "probs" or n.endswith("_probs"))
    sites = {prefix: prefix.removesuffix("_") or next(map(str, observed), "") for prefix in prefixes}
    return {p: site for p, site in sites.items() if site in observed and observed[site].dtype.kind in "iu"}


def _of_run(evidence: Evidence, prefix: str, site: str, run: int) -> _Classes:
    labels = evidence.groups["observed_data"][site]
    labels = labels.isel(chain=run) if "chain" in labels.dims else labels
    y = torch.from_numpy(labels.values.reshape(-1)).long()
    orbit = evidence.groups.get("orbit_predictive", xr.Dataset())
    keep = evidence.counted(site)[run] if site in evidence.groups.get("log_likelihood", ()) else np.full(y.shape, True)
    if prefix or "probs" not in orbit:
        array = evidence.groups["posterior_predictive"][f"{prefix}probs"].isel(chain=run)
        probs = torch.from_numpy(array.transpose("draw", ...).values).mean(0, dtype=torch.double)
        return _Classes(probs.reshape(1, -1, probs.shape[-1])[:, keep], y[None, keep])
    probs = _orbit_draws(orbit["probs"].isel(chain=run)).mean(0, dtype=torch.double)[:, keep]
    return _Classes(probs, _moved_labels(y[keep], _action(evidence), len(probs), probs.shape[-1]))


def _action(evidence: Evidence):
    """How the outputs move; ``None`` where they do not."""
    return None if evidence.symmetry is None else evidence.symmetry.outputs


def _moved_labels(labels: Tensor, action, order: int, classes: int) -> Tensor:
    """The label of each moved copy, ``(|G|, N)``."""
    if action is None:
        return labels.expand(order, -1)
    return move(one_hot(labels, classes).double()[None], action, order)[0].argmax(-1)


def _orbit_draws(array: xr.DataArray) -> Tensor:
    """One run's ``(T, |G|, N, *event)``, of a model without a batch with ``N = 1``."""
    draws = torch.from_numpy(np.ascontiguousarray(array.transpose("draw", "element", ...).values))
    return draws.unsqueeze(2) if draws.ndim == (3 if array.name == "probs" else 2) else draws


def _where_finite(run: Tensor, estimate: Callable[[Tensor], Estimate], least: int = 1) -> Estimate:
    """No value of a run with NaN or with too few draws."""
    return estimate(run) if len(run) >= least and bool(run.isfinite().all()) else quantities.UNKNOWN


def _defect_verdict(defect: Sequence[Estimate], scale: float) -> str:
    largest = worst(defect)
    if abs(worst(defect, abs).value) <= ROUNDING * scale:
        verdict = ZERO
    elif not largest.value > CLEAR * largest.se:
        verdict = "cannot be told from 0"
    else:
        verdict = f"not equivariant: {largest.value / largest.se:.2g} errors above 0"
    return of_worst(verdict, defect)


def _same_prediction(probs: Tensor, action) -> Estimate:
    return _over_data(lambda kept: float(metrics.orbit_same_prediction(probs[:, kept], action=action)), probs.shape[1])


def _osp_verdict(osp: Sequence[Estimate], runs: Sequence[Tensor], has_accuracy: bool) -> str:
    least = worst(osp, key=lambda value: -value)
    constant = [run for run in runs if len(run.mean(0, dtype=torch.double).argmax(-1).unique()) == 1]
    if constant:
        return of_worst("says nothing: one class is always predicted", runs)
    verdict = of_worst(f"the same class at {least.value:.1%} of the poses", runs)
    return verdict if has_accuracy else f"{verdict}; says little, as there are no labels for an accuracy"


def _symmetric_kl(draws: Tensor, action) -> Estimate:
    total = draws.sum(0, dtype=torch.double)

    def of(kept: np.ndarray) -> float:
        left_out = np.setdiff1d(np.arange(len(draws)), kept)
        mean = (total - draws[left_out].sum(0, dtype=torch.double)) / len(kept)
        return float(metrics.symmetric_kl(mean.clamp_min(0), action=action))

    value = float(metrics.symmetric_kl(total / len(draws), action=action))
    return Estimate(value, quantities.jackknife(of, len(draws)))


def _class_rows(label: str, runs: Sequence[_Classes], evidence: Evidence, table: Table) -> None:
    for name, (metric, judge) in SCORES.items():
        upright = [_scored(metric, run, *run.upright) for run in runs]
        verdict = of_worst(judge(upright, runs), runs)
        table.add("prediction", f"{label}{name}", upright, verdict, PREDICTION[name])
        if runs[0].has_orbit:
            orbit = [_scored(metric, run, run.probs, run.labels) for run in runs]
            verdict = of_worst(_against_upright(name, metric, runs), runs)
            table.add("prediction", f"{label}{name}_orbit", orbit, verdict, moved(name))
    for suffix in ["", "_orbit"] if runs[0].has_orbit else [""]:
        _conformal_rows(label, suffix, runs, evidence, table)


def _scored(metric: Callable[[Tensor, Tensor], Tensor], run: _Classes, probs: Tensor, labels: Tensor) -> Estimate:
    """A metric of one run; the copies of one datum are left out together."""
    if not run.is_finite:
        return quantities.UNKNOWN
    return _over_data(lambda kept: float(metric(probs[:, kept], labels[:, kept])), probs.shape[1])


def _over_data(statistic: Callable[[np.ndarray], float], count: int) -> Estimate:
    return Estimate(statistic(np.arange(count)), quantities.jackknife(statistic, count))


def _judge_accuracy(estimates: Sequence[Estimate], runs: Sequence[_Classes]) -> str:
    least = worst(estimates, key=lambda value: -value)
    labels = runs[0].labels[0]
    share = float(labels.bincount().max()) / len(labels)
    better = least.value - share > CLEAR * least.se
    return f"{'better' if better else 'no better'} than the commonest class alone, {share:.3g}"


def _judge_nll(estimates: Sequence[Estimate], runs: Sequence[_Classes]) -> str:
    return _against_frequencies(worst(estimates), 0.0 - math.fsum(p * math.log(p) for p in _frequencies(runs)))


def _judge_brier(estimates: Sequence[Estimate], runs: Sequence[_Classes]) -> str:
    return _against_frequencies(worst(estimates), 1 - math.fsum(p * p for p in _frequencies(runs)))


def _against_frequencies(largest: Estimate, reference: float) -> str:
    better = reference - largest.value > CLEAR * largest.se
    return f"{'better' if better else 'no better'} than the frequencies of the classes, {reference:.3g}"


def _frequencies(runs: Sequence[_Classes]) -> Iterator[float]:
    labels = runs[0].labels[0]
    return (count / len(labels) for count in labels.bincount().tolist() if count)


def _judge_calibration(estimates: Sequence[Estimate], runs: Sequence[_Classes]) -> str:
    gaps = [_confidence_gap(*run.upright) for run in runs if run.is_finite]
    gap = worst(gaps, key=abs)
    if not abs(gap.value) > CLEAR * gap.se:
        return "confidence is like accuracy"
    return f"{'over' if gap.value > 0 else 'under'}confident by {abs(gap.value):.2g}"


def _confidence_gap(probs: Tensor, labels: Tensor) -> Estimate:
    confidence, predicted = probs.max(-1)
    return quantities.mean_with_error((confidence - (predicted == labels).double()).mean(0).numpy())


SCORES = {
    "accuracy": (metrics.accuracy, _judge_accuracy),
    "nll": (metrics.negative_log_likelihood, _judge_nll),
    "ece": (metrics.calibration_error, _judge_calibration),
    "brier": (metrics.brier_score, _judge_brier),
}


def _against_upright(name: str, metric: Callable, runs: Sequence[_Classes]) -> str:
    """Whether the moved copies are predicted worse than the upright ones, in the run where they are most."""
    sign = -1 if name == "accuracy" else 1

    def loss(run: _Classes) -> Estimate:
        def of(kept: np.ndarray) -> float:
            probs, labels = run.probs[:, kept], run.labels[:, kept]
            return sign * float(metric(probs, labels) - metric(probs[:1], labels[:1]))

        return _over_data(of, run.probs.shape[1])

    most = worst([loss(run) for run in runs if run.is_finite])
    if not most.value > max(CLEAR * most.se, ROUNDING):
        return "no worse than upright"
    return f"worse than upright by {most.value:.2g} ± {most.se:.1g}"


def _conformal_rows(label: str, suffix: str, runs: Sequence[_Classes], evidence: Evidence, table: Table) -> None:
    size, share = zip(*(_conformal(run, suffix, evidence) for run in runs), strict=True)
    classes, count = runs[0].probs.shape[-1], runs[0].probs.shape[1]
    define = moved if suffix else PREDICTION.__getitem__
    verdict = f"of {classes} classes at level {1 - evidence.alpha:g}"
    few = "not finite" if count > 1 else "one datum"
    table.add("prediction", f"{label}set_size{suffix}", size, verdict, define("set_size"), few)
    apart = worst(share, key=lambda value: abs(value - 1 + evidence.alpha))
    calibration = math.sqrt(evidence.alpha * (1 - evidence.alpha) / max(count // 2, 1))
    gap = apart.value - 1 + evidence.alpha
    right = not abs(gap) > CLEAR * math.hypot(calibration, apart.se)
    verdict = f"{'as' if right else 'more than' if gap > 0 else 'less than'} promised, {1 - evidence.alpha:g}"
    table.add("prediction", f"{label}set_coverage{suffix}", share, of_worst(verdict, runs), define("set_coverage"), few)


def _conformal(run: _Classes, suffix: str, evidence: Evidence) -> tuple[Estimate, Estimate]:
    """Size and coverage of prediction sets on one half of the data, calibrated on the other."""
    probs, labels = (run.probs, run.labels) if suffix else run.upright
    count = probs.shape[1]
    if not run.is_finite or count < 2:
        return quantities.UNKNOWN, quantities.UNKNOWN
    order = torch.randperm(count, generator=torch.Generator().manual_seed(SEED))
    calibration, test = order[: count // 2], order[count // 2 :]
    pose = torch.arange(len(calibration)) % len(probs)
    held_out = probs[pose, calibration], labels[pose, calibration]
    sets = metrics.conformal_set_size(*held_out, probs[:, test], labels[:, test], evidence.alpha)
    inside = 1 - probs[:, test] <= sets.threshold
    hit = inside.gather(-1, labels[:, test].unsqueeze(-1)).squeeze(-1)
    size_se, hit_se = (quantities.mean_with_error(x.double().mean(0).numpy()).se for x in (inside.sum(-1), hit))
    return Estimate(sets.size, size_se), Estimate(sets.coverage, hit_se)


def _density_rows(label: str, name: str, evidence: Evidence, table: Table) -> None:
    runs = evidence.log_likelihood(name)
    counts = " to ".join(map(str, sorted({min(run.shape[1] for run in runs), max(run.shape[1] for run in runs)})))
    density = [quantities.mean_with_error(quantities.log_predictive_density(run)) for run in runs]
    verdict, empty = f"nats per datum, of {counts} data", "not finite" if counts != "0" else "all data are masked"
    define = DENSITY["log_predictive_density"]
    table.add("prediction", f"{label}log_predictive_density", density, verdict, define, empty)
    if evidence.are_held_out:
        return
    if evidence.draws < quantities.LEAST_DRAWS:
        empty = f"less than {quantities.LEAST_DRAWS} draws"
    trusts = _trusts(evidence)
    loo = [
        quantities.leave_one_out(run, trust.correction, evidence.scale(name))
        for run, trust in zip(runs, trusts, strict=True)
    ]
    estimates = [Estimate(r.elpd, r.se) for r in loo]
    table.add("prediction", f"{label}elpd_loo", estimates, _loo_verdict(loo, trusts), DENSITY["elpd_loo"], empty)


@dataclass(frozen=True)
class _Trust:
    """The log ratios that correct one run for draws of q, how doubtful that leaves it, and a note."""

    correction: np.ndarray | None
    doubt: int
    note: str


def _trusts(evidence: Evidence) -> list[_Trust]:
    """For each run, the ratios where there are and their k̂ allows."""
    if evidence.log_ratios is not None:
        limit = quantities.k_limit(evidence.draws)
        return [_trust(run, quantities.pareto_k(run), limit) for run in evidence.log_ratios]
    lost = evidence.why_no_log_q or "sample_stats has no lp"
    if evidence.why_no_log_q in ("", NO_DENSITY):
        return [_Trust(None, UNCORRECTED, f"of q's draws, not of the posterior ({lost})")] * evidence.chains
    return [_Trust(None, SURE, "draws taken as the posterior's")] * evidence.chains


def _trust(log_ratios: np.ndarray, k: Estimate, limit: float) -> _Trust:
    if not k.value <= limit:
        shown = "unknown" if math.isnan(k.value) else f"{k.value:.2g}"
        return _Trust(None, UNCORRECTED, f"of q's draws, not of the posterior (k̂ {shown})")
    if not k.value + CLEAR * k.se <= limit:
        near = f"k̂ {k.value:.2g} ± {k.se:.1g}, not clearly below {limit:.2g}"
        return _Trust(log_ratios, NEAR, f"may be off: {near}; corrected for q")
    return _Trust(log_ratios, SURE, "corrected for q")


def _loo_verdict(loo: Sequence, trusts: Sequence[_Trust]) -> str:
    """Of the most doubtful run, of several the one with the most unreliable data."""
    high = [int((~(run.pareto_k <= UNRELIABLE)).sum()) for run in loo]
    known = [i for i, run in enumerate(loo) if math.isfinite(run.elpd)] or [0]
    run = max(known, key=lambda i: (trusts[i].doubt, high[i]))
    parts = [trusts[run].note]
    if high[run]:
        parts.insert(0, f"unreliable: k̂ > {UNRELIABLE} for {high[run]} of {len(loo[run].pareto_k)} data")
    elif trusts[run].doubt == SURE:
        parts.insert(0, "reliable")
    return of_worst("; ".join(parts), loo)
