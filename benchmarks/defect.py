"""Are the defect's estimators right where the truth is known: an exactly invariant posterior?"""

import math
import statistics

import pyro
import torch

import pyro_equivariance as pe

from .cases import GROUPS, example, grey_pooled, one_thread, random_start, scramble
from .report import Column, Report, Table, aim

SEED = 0
SIZES, EVALUATIONS, VARIANCE_DRAWS = (8, 16, 32, 50), 50, 2000
IMAGES, WIDTH, FRACTION = 16, 8, 0.4
NEAR, FAR = 3.0, 5.0


def run() -> Report:
    """Both estimators over re-evaluations, and a control that is not invariant."""
    report = Report("defect", "bias and spread of the estimators of the equivariance defect")
    with pyro.validation_enabled(False), one_thread():
        _run(report)
    return report


def _run(report: Report) -> None:
    pyro.clear_param_store()
    pyro.set_rng_seed(SEED)
    net = grey_pooled(WIDTH)
    model, x = pe.BayesianNetwork(net, prior="fan_in"), torch.randn(IMAGES, 1, 8, 8)
    symmetry = pe.network_symmetry(net, GROUPS["C4"], (1, 8, 8))
    invariant = pe.AutoSymmetricNormal(model, symmetry, **random_start(FRACTION))
    plain = pe.AutoMeanFieldNormal(model, **random_start(FRACTION))
    for guide in (invariant, plain):
        guide.initialize(*example(x))
        scramble(guide)
    variance = predictive_variance(model, invariant, x)
    table, predicted = _unbiased_table(report), {t: 2 * (1 - 1 / len(symmetry.group)) * variance / t for t in SIZES}
    for draws in SIZES:
        estimates = reevaluate(model, invariant, symmetry, x, draws, "unbiased")
        _add_unbiased(table, "invariant", draws, estimates)
    control = reevaluate(model, plain, symmetry, x, SIZES[-1], "unbiased")
    _add_unbiased(table, "not (control)", SIZES[-1], control)
    table = _biased_table(report, variance)
    for draws in SIZES:
        _add_biased(table, draws, reevaluate(model, invariant, symmetry, x, draws, "biased"), predicted[draws])


def reevaluate(model, guide, symmetry: pe.Symmetry, x, draws: int, estimator: str) -> list[pe.metrics.Estimate]:
    """The defect measured again and again from fresh draws; the biased one's are fresh for each element as well."""
    return [
        pe.metrics.equivariance_defect(
            pe.orbit_predict(model, guide, symmetry, x, draws, independent=estimator == "biased"), estimator=estimator
        )
        for _ in range(EVALUATIONS)
    ]


def predictive_variance(model, guide, x) -> float:
    """``tr Var``: the variance of the class probabilities over draws, summed over classes, mean over images."""
    return float(pe.predict(model, guide, x, VARIANCE_DRAWS).double().var(0).sum(-1).mean())


def _unbiased_table(report: Report) -> Table:
    return report.table(
        "Unbiased estimator, draws common to the orbit",
        f"mean: of the defect, mean over x and g of |F(gx) − F(x)|² with F the mean class probabilities of T draws, "
        f"over {EVALUATIONS} re-evaluations with fresh draws, ± the standard error (SE) of that mean. The truth is 0 "
        f"for the invariant posterior (AutoSymmetricNormal, C4, random parameters; aim: within {NEAR:g} SE) and "
        f"positive for the control, the like without the average (aim: above {FAR:g} SE). spread: standard deviation "
        f"over re-evaluations; jackknife: mean of the standard errors that each reports, expected to be √2 times the "
        f"spread where the truth is 0, for the statistic is then degenerate, and equal to it elsewhere. {IMAGES} "
        f"random images, seed {SEED}.",
        Column("posterior", "posterior", width=13),
        Column("draws", "T", "d", 3),
        Column("mean", "mean", "+.2e"),
        Column("se", "± SE", ".1e", 8),
        Column("distance", "mean/SE", "+.1f", 7),
        Column("spread", "spread", ".1e", 8),
        Column("jackknife", "jackknife", ".1e"),
        Column("ratio", "jackknife/spread", ".2f", 16),
        Column("verdict", "aim", width=6),
    )


def _add_unbiased(table: Table, posterior: str, draws: int, estimates: list[pe.metrics.Estimate]) -> None:
    row = _summary(estimates)
    jackknife = statistics.fmean(e.se for e in estimates)
    met = abs(row["distance"]) <= NEAR if posterior == "invariant" else row["distance"] > FAR
    table.add(
        posterior=posterior, draws=draws, **row, jackknife=jackknife, ratio=jackknife / row["spread"], verdict=aim(met)
    )


def _biased_table(report: Report, variance: float) -> Table:
    return report.table(
        "Biased estimator, independent draws for each g, same invariant posterior",
        f"mean and SE as above; predicted: 2 (1 − 1/|G|) tr Var / T with tr Var = {variance:.4f}, the variance of the "
        f"class probabilities over {VARIANCE_DRAWS:,} draws; aim: mean more than {FAR:g} SE above 0; off/SE: "
        f"(mean − predicted) / SE.",
        Column("draws", "T", "d", 3),
        Column("mean", "mean", ".3e"),
        Column("se", "± SE", ".1e", 8),
        Column("distance", "mean/SE", "+.1f", 7),
        Column("predicted", "predicted", ".3e"),
        Column("from_predicted", "off/SE", "+.1f", 6),
        Column("verdict", "aim", width=6),
    )


def _add_biased(table: Table, draws: int, estimates: list[pe.metrics.Estimate], predicted: float) -> None:
    row = _summary(estimates)
    off = (row["mean"] - predicted) / row["se"]
    table.add(draws=draws, **row, predicted=predicted, from_predicted=off, verdict=aim(row["distance"] > FAR))


def _summary(estimates: list[pe.metrics.Estimate]) -> dict[str, float]:
    values = [e.value for e in estimates]
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    se = spread / math.sqrt(len(values))
    return {"mean": mean, "se": se, "distance": mean / se, "spread": spread}
