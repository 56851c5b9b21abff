"""The table of ``diagnose``: closed forms, quadrature and exact leave-one-out first, then the metrics it repeats."""

import functools
import math

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro import poutine
from scipy.integrate import quad
from scipy.stats import multivariate_normal, norm

import pyro_equivariance as pe
from pyro_equivariance import metrics
from pyro_equivariance.diagnostics import base, quantities
from pyro_equivariance.diagnostics.definitions import CONVERGENCE, COVERAGE, DENSITY, EQUIVARIANCE, FIT, PREDICTION
from pyro_equivariance.diagnostics.diagnose import TITLES, WIDTH, Diagnosis, diagnose
from pyro_equivariance.diagnostics.evidence import Row
from pyro_equivariance.diagnostics.sections import LEVEL, k_verdict
from pyro_equivariance.errors import DataError, OptionError

SIGMAS = 4.5  # of a computed standard error: one failure in 150,000
DRAW = ("chain", "draw")
DIM, SIGMA = 6, 0.4


def within(row, truth):
    assert abs(row.value - truth) < SIGMAS * row.se


def arviz_data(**groups):
    return base.ARVIZ.container({name: xr.Dataset(arrays) for name, arrays in groups.items()}, {})


# The bimodal target ½N(+m 1, σ²I) + ½N(−m 1, σ²I), and what covers it


def log_mode(theta, mean):
    return norm(mean, SIGMA).logpdf(theta).sum(-1)


def log_target(theta, mean):
    return np.logaddexp(log_mode(theta, mean), log_mode(theta, -mean)) - math.log(2)


def bimodal(mean=2.0, mixture=False, draws=1000, signs=(1,), seed=0):
    """Draws of one mode, the one at ``sign · mean`` in each chain, or of the orbit mixture, with all log densities."""
    rng = np.random.default_rng(seed)
    theta = mean + SIGMA * rng.normal(size=(len(signs), draws, DIM))
    theta *= np.array(signs)[:, None, None]
    if mixture:
        theta *= rng.choice([-1, 1], size=(len(signs), draws, 1))

    def log_q(x):
        own = np.stack([log_mode(run, sign * mean) for run, sign in zip(x, signs, strict=True)])
        return log_target(x, mean) if mixture else own

    log_p = log_target(theta, mean)
    return arviz_data(
        posterior={"z": ((*DRAW, "z_dim_0"), theta)},
        sample_stats={
            "lp": (DRAW, log_p),
            "log_q": (DRAW, log_q(theta)),
            "lp_orbit": ((*DRAW, "element"), np.stack([log_p, log_target(-theta, mean)], -1)),
            "log_q_orbit": ((*DRAW, "element"), np.stack([log_q(theta), log_q(-theta)], -1)),
            "element": ["e", "-1"],
        },
    )


def flip():
    group = pe.SignGroup()
    return pe.Symmetry(group, {"z": pe.matrix(group, torch.stack([torch.eye(DIM), -torch.eye(DIM)]))})


def test_k_hat_misses_the_mode_that_the_coverage_line_shows():
    found = diagnose(bimodal())
    assert found["k_hat"].value < 0.3 and found["k_hat"].verdict.startswith("good")
    assert found["coverage"].value == pytest.approx(0.5, abs=1e-12)
    assert found["coverage"].verdict == "q covers 1/2 of the orbit: 1 of 2 copies"
    assert found["elbo"].value == pytest.approx(-math.log(2), abs=1e-12)
    assert found["mixture_gain"].value == pytest.approx(math.log(2), abs=1e-12)
    within(found["log_density_gap"], 2 * DIM * 2.0**2 / SIGMA**2)
    assert found["model_symmetry"].verdict == "the posterior has the symmetry"


def test_the_orbit_mixture_covers_all():
    found = diagnose(bimodal(mixture=True))
    assert found["coverage"].value == pytest.approx(1.0, abs=1e-12)
    assert found["coverage"].verdict == "q covers all of the orbit: 2 of 2 copies"
    assert found["log_density_gap"].verdict == "0 up to rounding: q is as dense at moved draws as at its own"
    assert found["mixture_gain"].verdict.startswith("0 up to rounding; nats, at most log 2")
    assert found["elbo"].value == pytest.approx(0.0, abs=1e-12)
    assert found["k_hat"].value == 0.0


@pytest.mark.parametrize("mean", [0.05, 0.15, 0.3])
def test_coverage_of_modes_that_overlap_by_quadrature(mean):
    """``KL(q ‖ q^G) = log 2 − E log(1 + exp(−2 m s / σ²))``, ``s = Σ_i θ_i ~ N(dm, dσ²)``."""
    law = norm(DIM * mean, math.sqrt(DIM) * SIGMA)
    loss, _ = quad(lambda s: law.pdf(s) * np.logaddexp(0, -2 * mean * s / SIGMA**2), *law.interval(1 - 1e-14))
    found = diagnose(bimodal(mean, draws=4000))
    within(found["mixture_gain"], math.log(2) - loss)
    within(found["coverage"], math.exp(loss) / 2)
    assert "as much as" in found["coverage"].verdict
    gain = diagnose(bimodal(mean, mixture=True, draws=4000))["elbo"].value - found["elbo"].value
    assert abs(gain - found["mixture_gain"].value) < SIGMAS * found["elbo"].se


def test_the_verdict_is_that_of_the_run_that_covers_least():
    one, all_of_it = base.groups_of(bimodal()), base.groups_of(bimodal(mixture=True))
    groups = {name: xr.concat([all_of_it[name], one[name]], "chain") for name in one}
    row = diagnose(base.ARVIZ.container(groups, {}))["coverage"]
    assert row.values == pytest.approx((1.0, 0.5)) and row.value == pytest.approx(0.75)
    assert row.spread == pytest.approx(0.5 / math.sqrt(2))
    assert row.verdict == "q covers 1/2 of the orbit in the worst run: 1 of 2 copies"


def test_one_run_at_0_does_not_make_all_of_them_0():
    log_q = np.zeros((2, 30, 2))
    log_q[1, :, 1] = 0.01
    found = diagnose(arviz_data(posterior=noise(2), sample_stats={"log_q_orbit": ((*DRAW, "element"), log_q)}))
    for name in ("mixture_gain", "log_density_gap"):
        assert found[name].values[0] == 0 > found[name].values[1] and "rounding" not in found[name].verdict


def test_coverage_of_a_density_that_leaves_the_support():
    log_q = np.zeros((1, 30, 4))
    log_q[..., 1:] = -np.inf
    found = diagnose(arviz_data(posterior=noise(), sample_stats={"log_q_orbit": ((*DRAW, "element"), log_q)}))
    assert found["coverage"].value == pytest.approx(0.25)
    assert found["log_density_gap"].value == math.inf and "no density" in found["log_density_gap"].verdict
    assert found.missing["model_symmetry"].startswith("sample_stats has no lp_orbit")


def test_a_model_without_the_symmetry_names_the_worst_element():
    log_p = np.random.default_rng(0).normal(size=(1, 30, 1)) + np.array([0.0, 0.1, 3.0])
    stats = {"lp_orbit": ((*DRAW, "element"), log_p), "element": ["e", "r120", "r240"]}
    row = diagnose(arviz_data(posterior=noise(), sample_stats=stats))["model_symmetry"]
    assert row.value == pytest.approx(3.0)
    assert "lacks the symmetry, most at 'r240'" in row.verdict
    log_p[0, 3, 1] = np.nan
    stats["lp_orbit"] = ((*DRAW, "element"), log_p)
    found = diagnose(arviz_data(posterior=noise(), sample_stats=stats))
    assert "model_symmetry" not in found and "not finite" in found.missing["model_symmetry"]


def noise(chains=1, draws=30):
    return {"a": (DRAW, np.random.default_rng(1).normal(size=(chains, draws)))}


# Gaussian p and q


def gaussian(p_loc, p_scale, q_loc, q_scale, draws=4000, chains=1):
    """One latent ``h``, and the log densities of its Normal laws; log evidence −7."""
    h = q_loc + q_scale * np.random.default_rng(2).normal(size=(chains, draws))
    log_p, log_q = norm(p_loc, p_scale).logpdf(h) - 7.0, norm(q_loc, q_scale).logpdf(h)
    return arviz_data(posterior={"h": (DRAW, h)}, sample_stats={"lp": (DRAW, log_p), "log_q": (DRAW, log_q)})


def test_elbo_of_normals():
    row = diagnose(gaussian(0.5, 1.0, 0.0, 0.8))["elbo"]
    divergence = math.log(1 / 0.8) + (0.8**2 + 0.5**2) / 2 - 0.5
    within(row, -7 - divergence)
    h = 0.8 * np.random.default_rng(3).normal(size=200_000)
    spread = np.std(norm(0.5, 1).logpdf(h) - norm(0, 0.8).logpdf(h))
    assert row.se == pytest.approx(spread / math.sqrt(4000), rel=0.05)


def test_elbo_verdict_names_worse_runs():
    idata = gaussian(0.0, 1.0, 0.0, 0.9, chains=3)
    idata["sample_stats"]["lp"][1] -= 2.0
    row = diagnose(idata)["elbo"]
    assert "1 of 3 runs clearly below it" in row.verdict
    assert row.spread == pytest.approx(np.std(row.values, ddof=1))
    assert "runs alike" in diagnose(gaussian(0.0, 1.0, 0.0, 0.9, chains=3))["elbo"].verdict


# k̂


def independent(dim, scale, draws, rng):
    """Joint log ratios of ``p = N(0, 1)^d`` to ``q = N(0, s²)^d``, the first coordinate, and its own log ratio."""
    z = scale * rng.normal(size=(draws, dim))
    each = (1 / scale**2 - 1) * z**2 / 2
    return each.sum(1), z[:, 0], each[:, 0]


def correlated(dim, correlation, draws, rng):
    """The same for the best independent Normal of an equicorrelated one, and ``k`` of the exact marginal ratio."""
    covariance = correlation + (1 - correlation) * np.eye(dim)
    scale = np.diag(np.linalg.inv(covariance)) ** -0.5
    z = scale * rng.normal(size=(draws, dim))
    log_p = multivariate_normal(np.zeros(dim), covariance).logpdf(z)
    return log_p - norm(0, scale).logpdf(z).sum(1), z[:, 0], 1 - scale[0] ** 2


def test_pareto_k_is_arvizs():
    x = np.random.default_rng(0).normal(size=900) * 1.5
    assert quantities.pareto_k(x + 3).value == pytest.approx(float(az.psislw(x)[1]), abs=1e-10)


def test_pareto_k_standard_error_is_the_spread_of_fresh_draws():
    rng = np.random.default_rng(0)
    found = [quantities.pareto_k(rng.normal(size=500)) for _ in range(40)]
    ratio = np.mean([k.se for k in found]) / np.std([k.value for k in found])
    assert 0.75 < ratio < 1.6


def test_pareto_k_where_there_is_none():
    x = np.random.default_rng(0).normal(size=200)
    assert quantities.pareto_k(np.full(200, 3.0)) == metrics.Estimate(0.0, 0.0)
    assert math.isnan(quantities.pareto_k(x[:24]).value) and not math.isnan(quantities.pareto_k(x[:25]).value)
    assert math.isnan(quantities.pareto_k(np.append(x, np.nan)).value)
    assert quantities.pareto_k(np.repeat([0.0, 1.0], 100)) == metrics.Estimate(0.0, 0.0)
    assert math.isnan(quantities.pareto_k(np.repeat([0.0, 1.0], [190, 10])).value)
    assert quantities.why_no_k(np.repeat([0.0, 1.0], [190, 10])) == "too few distinct ratios"


@pytest.mark.parametrize("dim, draws", [(1, 500), (6, 500), (50, 2000)])
def test_marginal_ratio_of_an_independent_coordinate(dim, draws):
    """``p(h) / q(h) = exp(c h²)`` with ``k = 1 − s²``, whatever the other coordinates."""
    rng = np.random.default_rng(0)
    found = [quantities.marginal_pareto_k(*independent(dim, 0.8, draws, rng)[:2]) for _ in range(16)]
    values, errors = np.array([k.value for k in found]), np.array([k.se for k in found])
    assert abs(values.mean() - 0.36) < 0.03 + SIGMAS * values.std(ddof=1) / math.sqrt(16)
    assert 0.5 < np.median(errors) / values.std(ddof=1) < 2
    assert values.std(ddof=1) < 0.12


def test_marginal_log_ratios_of_one_dimension_are_the_ratios():
    log_ratios, h, own = independent(1, 0.8, 1000, np.random.default_rng(0))
    fitted = quantities.marginal_log_ratios(log_ratios, h)
    assert np.corrcoef(fitted, own)[0, 1] > 0.97


def test_in_200_dimensions_the_joint_k_fails_and_the_marginal_one_does_not():
    log_ratios, h, _ = independent(200, 0.9, 4000, np.random.default_rng(0))
    joint, marginal = quantities.pareto_k(log_ratios), quantities.marginal_pareto_k(log_ratios, h)
    assert joint.value - 2 * joint.se > 0.4 and joint.value > 0.7
    assert marginal.se < 0.12 and abs(marginal.value - 0.19) < 3 * marginal.se
    far, h, _ = independent(200, 0.8, 4000, np.random.default_rng(0))
    assert quantities.pareto_k(far).value > 1.0
    marginal = quantities.marginal_pareto_k(far, h)
    assert abs(marginal.value - 0.36) < 3 * marginal.se < 1.0


def test_marginal_k_sees_a_shift_and_a_skewed_or_heavy_tailed_law():
    rng = np.random.default_rng(0)
    z, others = rng.normal(size=2000), 0.3 * rng.normal(size=2000)
    shift = 1.5 * z + others
    expected = quantities.pareto_k(1.5 * z)
    assert abs(quantities.marginal_pareto_k(shift, z).value - expected.value) < 3 * expected.se
    student = z**2 / 2 - 3 * np.log1p(z**2 / 5)
    assert quantities.marginal_pareto_k(student, z).value > 0.5
    assert quantities.marginal_pareto_k(z**3 / 4 + others, z).value > 0.7


@pytest.mark.parametrize("dim, correlation, low, high", [(2, 0.8, 0.7, 1.1), (6, 0.5, 0.2, 0.7)])
def test_marginal_k_of_the_best_independent_normal_is_too_small_as_documented(dim, correlation, low, high):
    """A known limit of the second order: right in 2 dimensions, a fraction of ``k`` in more."""
    rng = np.random.default_rng(0)
    cases = [correlated(dim, correlation, 2000, rng) for _ in range(10)]
    values = [quantities.marginal_pareto_k(log_ratios, h).value for log_ratios, h, _ in cases]
    assert low < np.mean(values) / cases[0][2] < high


def test_marginal_k_does_not_depend_on_the_units_of_the_functional():
    log_ratios, h, _ = independent(6, 0.8, 500, np.random.default_rng(0))
    assert quantities.marginal_pareto_k(log_ratios, np.exp(3 * h)) == quantities.marginal_pareto_k(log_ratios, h)
    assert math.isnan(quantities.marginal_pareto_k(log_ratios, np.sign(h)).value)


@pytest.mark.parametrize("draws, limit", [(100, 0.5), (1000, 2 / 3), (10_000, 0.7)])
def test_k_limit(draws, limit):
    assert quantities.k_limit(draws) == pytest.approx(limit)


@pytest.mark.parametrize(
    "k, se, draws, verdict",
    [
        (0.3, 0.01, 10_000, "good (up to 0.5)"),
        (0.6, 0.01, 10_000, "usable (up to 0.7)"),
        (0.9, 0.01, 10_000, "poor (above 0.7)"),
        (0.45, 0.01, 50, "poor (above 0.41)"),
        (0.65, 0.1, 10_000, "usable (up to 0.7), but within 2 errors of the limit: take more draws"),
        (0.65, 0.6, 10_000, "cannot be told: the error is too large"),
        (5.0, 0.6, 10_000, "poor (above 0.7)"),
        (0.3, math.nan, 10_000, "cannot be told: the error is too large"),
    ],
)
def test_k_verdicts(k, se, draws, verdict):
    assert k_verdict([metrics.Estimate(k, se)], draws) == verdict
    better = metrics.Estimate(k - 1, se)
    assert k_verdict([better, metrics.Estimate(k, se), quantities.UNKNOWN], draws) == f"worst run: {verdict}"


def test_k_of_a_wide_and_of_a_narrow_normal():
    """In one dimension the marginal ratio is the joint one: it cannot be worse. ``k = 1 − s²``, 0.0975 and 0.9375."""
    wide, narrow = diagnose(gaussian(0.0, 1.0, 0.0, 0.95)), diagnose(gaussian(0.0, 1.0, 0.0, 0.25))
    assert wide["k_hat"].verdict.startswith("good") and wide["k_hat[h]"].verdict.startswith("good")
    assert 0.5 < narrow["k_hat[h]"].value <= narrow["k_hat"].value < 0.9375 + 3 * narrow["k_hat"].se
    assert "within 2 errors of the limit" in narrow["k_hat[h]"].verdict


def test_marginal_k_of_a_bounded_joint_ratio_is_0():
    """``p = N(0, ½²)`` under ``q = N(0, 1)``: log w falls from its maximum on both sides."""
    z = np.random.default_rng(0).normal(size=1000)
    assert quantities.marginal_pareto_k(-1.5 * z**2, z).value == 0.0
    joint = np.log(np.random.default_rng(1).beta(1, 3, size=1000))  # k = −1/3
    assert quantities.pareto_k(joint).value < 0 == quantities.marginal_pareto_k(joint, z).value


@pytest.mark.parametrize("draws, modes", [(500, 2.0), (1000, 3.0), (1000, 5.0), (4000, 3.0)])
def test_k_of_a_guide_that_covers_two_modes_unevenly(draws, modes):
    """0.9 and 0.1 for ½ and ½: the ratio is bounded by 5, and nearly two-valued."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        z = rng.normal(size=draws) + modes * np.where(rng.random(draws) < 0.9, 1, -1)
        right, left = norm(modes, 1).logpdf(z), norm(-modes, 1).logpdf(z)
        log_p, log_q = (np.logaddexp(right + math.log(a), left + math.log(1 - a)) for a in (0.5, 0.9))
        assert quantities.pareto_k(log_p - log_q).value == 0.0


def test_what_k_cannot_be_told_of_is_named():
    idata = gaussian(0.0, 1.0, 0.0, 0.9, draws=200)
    two_valued = np.repeat([[0.0, 1.0]], [190, 10], axis=1)
    idata["sample_stats"]["lp"] = idata["sample_stats"]["log_q"] + xr.DataArray(two_valued, dims=DRAW)
    assert diagnose(idata).missing["k_hat"] == "too few distinct ratios"
    few = diagnose(gaussian(0.0, 1.0, 0.0, 0.9, draws=20))
    assert few.missing["k_hat"] == few.missing["k_hat[h]"] == "less than 25 draws"
    constant = {"c": lambda posterior: 0 * posterior["h"], "sign": lambda posterior: np.sign(posterior["h"])}
    found = diagnose(gaussian(0.0, 1.0, 0.0, 0.9, draws=200), functionals=constant)
    assert found.missing["k_hat[c]"] == "it does not vary"
    assert found.missing["k_hat[sign]"] == "it has 2 values only"


def test_functionals_by_name_and_by_function():
    idata = gaussian(0.0, 1.0, 0.0, 0.8, draws=500, chains=2)
    by_function = diagnose(idata, functionals={"square": lambda posterior: posterior["h"] ** 2})
    assert "k_hat[square]" in by_function and "k_hat[h]" not in by_function
    assert diagnose(idata, functionals=["h"])["k_hat[h]"].values == diagnose(idata)["k_hat[h]"].values
    with pytest.raises(OptionError, match="got 'missing'"):
        diagnose(idata, functionals=["missing"])
    with pytest.raises(OptionError, match="a number for each draw"):
        diagnose(idata, functionals={"mean": lambda posterior: posterior["h"].mean("draw")})


# The loss's trend


def traces(slope, noise=0.02, steps=400, chains=1, seed=0):
    step = 10 * np.arange(1, steps + 1)
    loss = 5.0 + slope * step / 100 + noise * np.random.default_rng(seed).normal(size=(chains, steps))
    return {"loss": (("chain", "step"), loss), "step": step}


def test_trend_of_a_line_in_noise():
    found = [quantities.trend(t["step"], t["loss"][1][0]) for t in (traces(-0.03, seed=s) for s in range(200))]
    values = np.array([f.value for f in found])
    assert abs(values.mean() + 0.03) < SIGMAS * values.std(ddof=1) / math.sqrt(200)
    x = np.arange(100) * 10
    exact = 100 * 0.02 / math.sqrt(np.square(x - x.mean()).sum())
    assert np.sqrt(np.mean([f.se**2 for f in found])) == pytest.approx(exact, rel=0.15)
    assert values.std(ddof=1) == pytest.approx(exact, rel=0.2)


def test_trend_looks_at_the_last_quarter():
    step, loss = np.arange(400), np.maximum(5.0 - 0.01 * np.arange(400), 2.0)  # flat from 300 on
    assert quantities.trend(step, loss).value == 0.0
    assert quantities.trend(step[:300], loss[:300]).value == pytest.approx(-1.0)


@pytest.mark.parametrize("slope, word", [(-0.03, "still falling"), (0.0, "flat"), (0.03, "rising")])
def test_trend_verdicts(slope, word):
    row = diagnose(arviz_data(posterior=noise(), variational=traces(slope)))["loss_trend"]
    assert row.verdict == f"{word}; nats per datum and 100 steps"


@pytest.mark.parametrize("steps", [8, 16, 24, 40, 400])
def test_false_alarms_of_the_trend_in_noise(steps):
    """At most 0.27 % of flat noisy histories, however short: of 2000 at most 15 but once in 3000."""
    rng, step = np.random.default_rng(0), np.arange(steps)
    alarms = 0
    for loss in rng.normal(size=(2000, steps)):
        slope = quantities.trend(step, loss)
        alarms += abs(slope.value) > quantities.trend_limit(loss, LEVEL) * slope.se
    assert alarms <= 15
    assert quantities.trend_limit(np.full(steps, np.nan), LEVEL) > 3


def test_a_short_flat_history_is_called_flat():
    loss = np.array([[3.0, 2.0, 1.5, 1.2, 1.1, 1.02, 0.98, 0.92]])  # slope of the last 4 at 5.8 of its errors
    row = diagnose(arviz_data(posterior=noise(), variational={"loss": (("chain", "step"), loss), "step": np.arange(8)}))
    assert row["loss_trend"].value < -3 * row["loss_trend"].se and row["loss_trend"].verdict.startswith("flat")
    short = arviz_data(posterior=noise(), variational={"loss": (("chain", "step"), loss[:, :7]), "step": np.arange(7)})
    assert diagnose(short).missing["loss_trend"] == "less than 8 finite losses"


def test_trend_passes_over_what_is_not_finite_and_runs_without_a_trace():
    trace = traces(-0.03, chains=2)
    trace["loss"][1][0, 350:380] = np.nan
    trace["loss"][1][1, 1:] = np.nan
    found = diagnose(
        arviz_data(posterior=noise(chains=3) | {"chain": [0, 1, 2]}, variational=trace | {"chain": [0, 2]})
    )
    assert found["loss_trend"].value == pytest.approx(-0.03, abs=0.005)
    assert "no value in 2 of 3 runs" in found["loss_trend"].verdict
    assert np.isnan(found.dataset["value"].sel(quantity="loss_trend")).values.tolist() == [False, True, True]


# Convergence between runs


def test_runs_in_opposite_modes_agree_after_canonicalization():
    found = diagnose(bimodal(signs=(1, -1)), symmetry=flip())
    assert found["max_rhat"].value > 1.5 and found["max_rhat"].verdict.endswith(
        "agree up to the symmetry or in invariants"
    )
    assert found["max_rhat"].verdict.startswith("the runs differ, most in z[")
    assert found["max_rhat_canonical"].value < 1.01 and found["max_rhat_canonical"].verdict.startswith("the runs agree")
    assert found["max_rhat_invariant"].value < 1.01
    assert found["min_ess"].value < 10 < 1000 < found["min_ess_canonical"].value
    idata = bimodal(signs=(1, -1))
    assert found["max_rhat"].value == pytest.approx(float(az.rhat(idata["posterior"])["z"].max()))
    canonical = pe.canonicalize(idata, flip())["posterior"]
    assert found["max_rhat_canonical"].value == pytest.approx(float(az.rhat(canonical)["z"].max()))


def test_runs_in_unlike_modes_disagree():
    idata = bimodal(signs=(1, 1))
    idata["posterior"]["z"][1, :, 2] += 3.0
    found = diagnose(idata, symmetry=flip())
    assert found["max_rhat_canonical"].verdict == "the runs differ, most in z[2]"
    assert found["max_rhat"].verdict == "the runs differ, most in z[2]"


def test_convergence_needs_runs_and_sites_that_move():
    assert diagnose(bimodal())["coverage"] and diagnose(bimodal()).missing["max_rhat, min_ess"] == "one run"
    other = pe.Symmetry(pe.SignGroup(), {"w": pe.vector(pe.SignGroup())})
    found = diagnose(bimodal(signs=(1, 1)), symmetry=other)
    assert "max_rhat_canonical" not in found and "'w'" in found.missing["max_rhat_canonical"]
    assert "max_rhat" in found


def test_networks_without_weights_are_said_to_rest_on_one_number():
    value = np.random.default_rng(0).normal(size=(2, 100))
    found = diagnose(arviz_data(posterior={"mean_log_likelihood": (DRAW, value)}))
    for name in ("max_rhat", "min_ess"):
        assert found[name].verdict.endswith("; of mean_log_likelihood alone; sites='all' shows the weights")
        assert "alone" not in found[f"{name}_invariant"].verdict
    more = diagnose(arviz_data(posterior={"mean_log_likelihood": (DRAW, value), "w": (DRAW, value)}))
    assert "alone" not in more["max_rhat"].verdict


@pytest.mark.parametrize("draws, least", [(100, 100), (400, 200)])
def test_independent_draws_are_enough(draws, least):
    found = diagnose(arviz_data(posterior=noise(chains=2, draws=draws)))["min_ess"]
    assert found.verdict == f"enough (from {least} on); smallest for a"
    ladder = {"a": (DRAW, np.cumsum(np.random.default_rng(0).normal(size=(2, draws)), axis=1))}
    assert diagnose(arviz_data(posterior=ladder))["min_ess"].verdict.startswith("few (")


REASONS = {
    "no symmetry": ({}, {}, None, "no symmetry given"),
    "latents stay": ({}, {}, lambda: pe.Symmetry(pe.SignGroup(), {}), "the symmetry does not move the latent sites"),
    "large group": ({}, {}, lambda: moving(pe.CyclicGroup(65)), "the group has 65 elements, more than 64"),
    "MCMC": ({"guide": "NUTS"}, {}, flip, "draws of MCMC have no log q"),
    "HMC of others": ({}, {"diverging": (DRAW, np.zeros((1, 30)))}, flip, "draws of MCMC have no log q"),
    "given": ({"guide": "samples"}, {}, flip, "draws given as they are have no log q"),
    "points": ({"guide": "AutoDelta"}, {}, flip, "the guide has no density (point masses, or an implicit law)"),
}


def moving(group):
    return pe.Symmetry(group, {"z": pe.regular(group)})


@pytest.mark.parametrize("case", REASONS)
def test_why_there_are_no_densities_along_the_orbit(case):
    attrs, stats, symmetry, reason = REASONS[case]
    groups = {"posterior": xr.Dataset(noise(), attrs=attrs), "sample_stats": xr.Dataset(stats)}
    found = diagnose(base.ARVIZ.container(groups, {}), symmetry=symmetry and symmetry())
    assert found.missing["coverage, mixture_gain, log_density_gap"] == found.missing["model_symmetry"] == reason
    expected = "no symmetry given" if symmetry is None else "the symmetry does not move the inputs"
    assert found.missing["defect, osp, symmetric_kl"] == expected


def test_why_a_network_has_no_model_symmetry():
    groups = base.groups_of(bimodal())
    del groups["sample_stats"]["lp_orbit"]
    groups["posterior"].attrs["inputs"] = "quarter_turns"
    assert "the inputs move" in diagnose(base.ARVIZ.container(groups, {})).missing["model_symmetry"]


# Classes over an orbit


@functools.cache
def classes(chains=2, draws=60, count=90, order=4, number=5, seed=0):
    """Probabilities that differ by draw and by pose, and labels drawn from their mean."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(count, number))
    labels = np.array([rng.choice(number, p=p) for p in np.exp(logits) / np.exp(logits).sum(1, keepdims=True)])
    pose, draw = rng.normal(size=(order, count, number)), rng.normal(size=(chains, draws, order, count, number))
    pose[0] = 0
    return softmax(logits + 2.5 * pose + 0.5 * draw), labels


def softmax(logits):
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def class_data(probs, labels, **groups):
    dims = ("observation", "class")
    log_likelihood = np.log(np.take_along_axis(probs[:, :, 0], labels[None, None, :, None], -1)[..., 0])
    return arviz_data(
        posterior={"mean_log_likelihood": (DRAW, log_likelihood.mean(-1))},
        posterior_predictive={"probs": ((*DRAW, *dims), probs[:, :, 0])},
        orbit_predictive={"probs": ((*DRAW, "element", *dims), probs)},
        observed_data={"y": ("observation", labels)},
        log_likelihood={"y": ((*DRAW, "observation"), log_likelihood)},
        **groups,
    )


def test_class_quantities_are_the_metrics():
    probs, labels = classes()
    found, y = diagnose(class_data(probs, labels)), torch.from_numpy(labels)
    for chain, draws in enumerate(torch.from_numpy(probs)):
        mean = draws.mean(0)
        expected = {
            "accuracy": metrics.accuracy(mean[0], y),
            "accuracy_orbit": metrics.accuracy(mean, y),
            "nll": metrics.negative_log_likelihood(mean[0], y),
            "nll_orbit": metrics.negative_log_likelihood(mean, y),
            "ece": metrics.calibration_error(mean[0], y),
            "ece_orbit": metrics.calibration_error(mean, y),
            "brier": metrics.brier_score(mean[0], y),
            "brier_orbit": metrics.brier_score(mean, y),
            "osp": metrics.orbit_same_prediction(mean),
            "symmetric_kl": metrics.symmetric_kl(mean),
            "defect": metrics.equivariance_defect(draws).value,
        }
        for name, value in expected.items():
            assert found[name].values[chain] == pytest.approx(float(value), rel=1e-10), name
        assert found["defect"].errors[chain] == metrics.equivariance_defect(draws).se
        hit = (mean[0].argmax(-1) == y).double()
        assert found["accuracy"].errors[chain] == pytest.approx(float(hit.std() / math.sqrt(len(y))), rel=0.5)
    assert found["defect"].verdict.startswith("worst run: not equivariant")
    assert found["accuracy_orbit"].verdict.startswith("worst run: worse than upright by")
    assert found["nll_orbit"].verdict.startswith("worst run: worse than upright by")


def test_standard_errors_over_the_data():
    """The spread of fresh data of the same law."""
    rows = []
    for seed in range(30):
        probs, labels = classes(chains=1, draws=2, count=150, seed=seed)
        rows.append(diagnose(class_data(probs, labels)))
    for name in ("accuracy_orbit", "nll_orbit", "brier_orbit", "osp", "log_predictive_density"):
        ratio = np.mean([r[name].se for r in rows]) / np.std([r[name].value for r in rows], ddof=1)
        assert 0.65 < ratio < 1.5, name


def test_symmetric_kl_error_is_the_spread_of_fresh_draws():
    rng, shape = np.random.default_rng(0), (1, 100, 4, 10, 3)
    pose = rng.normal(size=(4, 10, 3))
    labels = np.arange(10) % 3
    rows = [diagnose(class_data(softmax(pose + rng.normal(size=shape)), labels))["symmetric_kl"] for _ in range(40)]
    ratio = np.mean([row.se for row in rows]) / np.std([row.value for row in rows], ddof=1)
    assert 0.7 < ratio < 1.4


def test_conformal_sets_are_the_metrics_on_seeded_halves():
    probs, labels = classes()
    found = diagnose(class_data(probs, labels), alpha=0.2)
    mean, y = torch.from_numpy(probs[0]).mean(0), torch.from_numpy(labels)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    half, test = order[: len(y) // 2], order[len(y) // 2 :]
    upright = metrics.conformal_set_size(mean[0, half], y[half], mean[0, test], y[test], 0.2)
    posed = mean[torch.arange(len(half)) % 4, half]
    orbit = metrics.conformal_set_size(posed, y[half], mean[:, test], y[test], 0.2)
    assert (found["set_size"].values[0], found["set_coverage"].values[0]) == (upright.size, upright.coverage)
    assert (found["set_size_orbit"].values[0], found["set_coverage_orbit"].values[0]) == (orbit.size, orbit.coverage)
    assert found["set_size"].verdict == "of 5 classes at level 0.8"
    assert found["set_coverage"].verdict == "worst run: as promised, 0.8"


def test_classes_that_move():
    """An action that permutes the classes: a predictor that follows it has no defect, and keeps its accuracy."""
    group = pe.CyclicGroup(4)
    outputs = pe.regular(group)
    symmetry = pe.Symmetry(group, {}, outputs=outputs)
    probs, labels = classes(order=1, number=4)
    upright = torch.from_numpy(probs)[:, :, 0]
    moved = torch.stack([outputs.act(g, upright) for g in range(4)], 2).numpy()
    found = diagnose(class_data(moved, labels), symmetry=symmetry)
    assert found["defect"].value == pytest.approx(0, abs=1e-14)
    assert found["osp"].value == 1.0 and found["symmetric_kl"].value == pytest.approx(0, abs=1e-12)
    for name in ("accuracy", "nll", "ece", "brier"):
        assert found[f"{name}_orbit"].values == pytest.approx(found[name].values, abs=1e-12)
        assert found[f"{name}_orbit"].verdict == "worst run: no worse than upright"
    assert diagnose(class_data(moved, labels))["defect"].value > 0.01


def test_verdicts_on_an_invariant_posterior():
    probs, labels = classes(order=1)
    found = diagnose(class_data(np.repeat(probs, 4, 2), labels))
    assert found["defect"].verdict == "worst run: 0 up to rounding"
    assert found["symmetric_kl"].verdict == "worst run: 0 up to rounding"
    nearly = softmax(
        np.log(np.repeat(probs, 4, 2)) + 0.01 * np.random.default_rng(0).normal(size=(4, *probs.shape[3:]))
    )
    assert diagnose(class_data(nearly, labels))["symmetric_kl"].verdict == "worst run: small (up to 0.01)"
    rounded = np.repeat(probs, 4, 2)
    rounded[:, :, 1:] *= 1 + 1e-9
    found = diagnose(class_data(rounded, labels))
    assert 0 < found["defect"].value < 1e-12 and found["defect"].se > 0
    line = next(line for line in str(found).splitlines() if line.startswith("  defect "))
    assert line.split()[1:5] == ["0", "±", "0", "0"] and "<td>0</td>" * 3 in found._repr_html_()
    rng = np.random.default_rng(5)
    noisy = softmax(rng.normal(size=(1, 200, 4, 30, 3)))
    assert diagnose(class_data(noisy, labels[:30] % 3))["defect"].verdict == "cannot be told from 0"


def test_osp_of_a_constant_predictor_says_nothing():
    probs, labels = classes()
    constant = softmax(np.log(probs) + 30 * (np.arange(5) == 2))
    found = diagnose(class_data(constant, labels))
    assert found["osp"].value == 1.0
    assert found["osp"].verdict == "worst run: says nothing: one class is always predicted"
    assert found["accuracy"].verdict.startswith("worst run: no better")
    assert found["ece"].verdict.startswith("worst run: overconfident")
    idata = class_data(probs, labels)
    unlabelled = {n: g for n, g in base.groups_of(idata).items() if n != "observed_data"}
    assert "no labels for an accuracy" in diagnose(base.ARVIZ.container(unlabelled, {}))["osp"].verdict


def test_runs_on_data_of_their_own():
    probs, labels = classes()
    groups = base.groups_of(class_data(probs, labels))
    both = np.stack([labels, (labels + 1) % 5])
    groups["observed_data"] = xr.Dataset({"y": (("chain", "observation"), both)})
    found = diagnose(base.ARVIZ.container(groups, {}))
    for chain in range(2):
        mean = torch.from_numpy(probs[chain]).mean(0)
        expected = float(metrics.accuracy(mean[0], torch.from_numpy(both[chain])))
        assert found["accuracy"].values[chain] == expected


def test_several_observation_sites():
    probs, labels = classes()
    upright = {f"{site}_probs": ((*DRAW, f"{site}_o", f"{site}_class"), probs[:, :, 0]) for site in ("u", "v")}
    observed = {"v": ("v_o", (labels + 1) % 5), "u": ("u_o", labels)}
    found = diagnose(arviz_data(posterior=noise(2, 60), posterior_predictive=upright, observed_data=observed))
    reference = diagnose(class_data(probs, labels))
    assert found["u: accuracy"].values == reference["accuracy"].values
    assert found["v: accuracy"].value < 0.5 * found["u: accuracy"].value


@pytest.mark.parametrize("event", [(), (2,)])
def test_means_that_are_no_classes(event):
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(2, 50, 4, 7, *event))
    dims = (*DRAW, "element", "plate", *(f"y_dim_{i}" for i in range(len(event))))
    found = diagnose(arviz_data(posterior=noise(2, 50), orbit_predictive={"mean": (dims, mean)}))
    assert found["defect"].values[1] == pytest.approx(metrics.equivariance_defect(torch.from_numpy(mean[1])).value)
    assert found.missing["osp, symmetric_kl"] == "the observation is no class"
    bare = diagnose(
        arviz_data(posterior=noise(2, 50), orbit_predictive={"mean": (dims[:3], mean[(..., 0, *([0] * len(event)))])})
    )
    assert "defect" in bare


# Predictive density and leave-one-out, on a conjugate model


class Conjugate:
    """``μ ~ N(0, 4)``, ``y_n ~ N(μ, 1)``, the likelihood to the power of ``scale``."""

    y = np.linspace(-1.0, 2.5, 12)

    def __init__(self, scale=1.0):
        self.scale = scale

    def posterior(self, y):
        precision = 0.25 + self.scale * len(y)
        return self.scale * y.sum() / precision, precision**-0.5

    def leave_one_out(self):
        rest = [self.posterior(np.delete(self.y, n)) for n in range(len(self.y))]
        return np.array([norm(m, math.hypot(1, s)).logpdf(y) for y, (m, s) in zip(self.y, rest, strict=True)])

    def data(self, loc=0.0, width=1.0, draws=4000, with_q=True, seed=0):
        """Draws of the posterior, or of one that is shifted by ``loc`` and ``width`` times as wide."""
        mean, scale = self.posterior(self.y)
        mu = mean + loc * scale + width * scale * np.random.default_rng(seed).normal(size=(1, draws))
        log_likelihood = norm(mu[..., None], 1).logpdf(self.y)
        stats = {"lp": (DRAW, norm(0, 2).logpdf(mu) + self.scale * log_likelihood.sum(-1))}
        if with_q:
            stats["log_q"] = (DRAW, norm(mean + loc * scale, width * scale).logpdf(mu))
        return arviz_data(
            posterior={"mu": (DRAW, mu)},
            sample_stats=stats,
            log_likelihood={"y": ((*DRAW, "plate"), log_likelihood, {"scale": self.scale})},
            observed_data={"y": ("plate", self.y)},
        )


@pytest.mark.parametrize("with_q", [True, False])
@pytest.mark.parametrize("scale", [0.5, 1.0, 10.0])
def test_leave_one_out_of_a_scaled_likelihood(scale, with_q):
    """Without datum n, ``p(y_n | θ)^s`` is missing from the posterior; the truth is in closed form."""
    case = Conjugate(scale)
    row = diagnose(case.data(with_q=with_q))["elpd_loo"]
    assert row.value == pytest.approx(case.leave_one_out().sum(), abs=0.05)
    assert row.verdict.startswith("reliable")
    assert abs(Conjugate(1.0).leave_one_out().sum() - case.leave_one_out().sum()) > 0.1 or scale == 1.0


@pytest.mark.parametrize("scale", [0.5, 10.0])
def test_numbers_per_datum_count_a_datum_by_its_scale(scale):
    found = diagnose(Conjugate(scale).data())
    assert found["elbo"].verdict == f"{found['elbo'].value / (12 * scale):.4g} nats per datum"
    groups = base.groups_of(Conjugate(scale).data())
    groups["log_likelihood"]["v"] = groups["log_likelihood"]["y"].rename(plate="other").assign_attrs(scale=1.0)
    verdict = diagnose(base.ARVIZ.container(groups, {}))["elbo"].verdict
    assert verdict == f"{found['elbo'].value / (12 * scale + 12):.4g} nats per observation"


def masked(case, chains=1):
    """The same data and four more that are masked, among them."""
    groups = base.groups_of(case.data())
    kept = np.array([True] * 5 + [False] * 4 + [True] * 7)
    log_likelihood = np.zeros((1, 4000, 16))
    log_likelihood[..., kept] = groups["log_likelihood"]["y"].values
    groups["log_likelihood"] = xr.Dataset({"y": ((*DRAW, "plate"), log_likelihood, {"scale": case.scale})})
    groups["observed_data"] = xr.Dataset({"y": ("plate", np.zeros(16))})
    groups["constant_data"] = xr.Dataset({"y_mask": ("plate", kept)})
    return groups


def test_masked_data_do_not_count():
    case = Conjugate(2.0)
    found, whole = diagnose(base.ARVIZ.container(masked(case), {})), diagnose(case.data())
    for name in ("log_predictive_density", "elpd_loo", "elbo"):
        assert found[name].value == pytest.approx(whole[name].value, abs=1e-9), name
        assert found[name].se == pytest.approx(whole[name].se, abs=1e-9), name
        assert found[name].verdict == whole[name].verdict
    groups = masked(case)
    groups["constant_data"]["y_mask"][:] = False
    none = diagnose(base.ARVIZ.container(groups, {}))
    assert none.missing["elpd_loo"] == none.missing["log_predictive_density"] == "all data are masked"


def test_masked_labels_do_not_count():
    probs, labels = classes(chains=1)
    kept = np.arange(90) % 3 > 0
    groups = base.groups_of(class_data(probs, np.where(kept, labels, 0)))
    groups["constant_data"] = xr.Dataset({"y_mask": ("observation", kept)})
    found, part = diagnose(base.ARVIZ.container(groups, {})), diagnose(class_data(probs[:, :, :, kept], labels[kept]))
    for name in ("accuracy", "nll_orbit", "brier", "ece", "set_size", "set_coverage_orbit"):
        assert found[name].values == pytest.approx(part[name].values, abs=1e-12), name
    del groups["orbit_predictive"]
    assert diagnose(base.ARVIZ.container(groups, {}))["nll"].values == pytest.approx(part["nll"].values, abs=1e-12)


def test_leave_one_out_is_not_called_reliable_where_it_is_off():
    """Of narrow guides, ``k = 1 − s²``: all that are called reliable are near the truth."""
    case, errors, told = Conjugate(), [], []
    truth = case.leave_one_out().sum()
    for seed in range(8):
        for width in (0.3, 0.6):
            row = diagnose(case.data(width=width, seed=seed), functionals=[])["elpd_loo"]
            told.append(row.verdict.startswith("reliable"))
            errors.append(abs(row.value - truth))
    assert max(errors) > 0.8 and not any(told[i] for i in np.flatnonzero(np.array(errors) > 0.5))
    verdict = diagnose(case.data(width=0.7), functionals=[])["elpd_loo"].verdict
    assert "may be off: k̂ " in verdict and verdict.endswith("; corrected for q")


def test_draws_of_point_masses_are_not_the_posteriors():
    data = base.groups_of(Conjugate().data(with_q=False))
    data["posterior"].attrs["guide"] = "AutoDelta"
    found = diagnose(base.ARVIZ.container(data, {}))
    reason = "the guide has no density (point masses, or an implicit law)"
    assert found["elpd_loo"].verdict == f"of q's draws, not of the posterior ({reason})"
    assert found.missing["elbo, k_hat, k_hat[·]"] == reason


def test_held_out_data_are_not_held_against_their_posterior():
    groups = base.groups_of(Conjugate().data())
    groups["posterior"].attrs["held_out"] = 1
    groups["variational"] = xr.Dataset(*[{"loss": traces(0.0)["loss"]}], {"step": traces(0.0)["step"]})
    found = diagnose(base.ARVIZ.container(groups, {}))
    reason = "the data were held out: q is not an approximation of their posterior"
    assert found.missing["elbo, k_hat, k_hat[·], elpd_loo"] == reason
    assert {row.name for row in found} == {"loss_trend", "log_predictive_density"}
    whole = diagnose(Conjugate().data())
    assert found["log_predictive_density"].values == whole["log_predictive_density"].values


def test_the_exact_posterior_of_a_conjugate_model():
    case = Conjugate()
    found = diagnose(case.data())
    evidence = multivariate_normal(np.zeros(12), np.eye(12) + 4).logpdf(case.y)
    assert found["elbo"].value == pytest.approx(evidence, abs=1e-9)
    assert found["k_hat"].value == 0.0
    assert found["elbo"].verdict == f"{evidence / 12:.4g} nats per datum"
    mean, scale = case.posterior(case.y)
    exact = norm(mean, math.hypot(1, scale)).logpdf(case.y)
    assert found["log_predictive_density"].value == pytest.approx(exact.mean(), abs=0.01)
    assert found["log_predictive_density"].se == pytest.approx(exact.std(ddof=1) / math.sqrt(12), rel=0.05)
    loo = case.leave_one_out()
    assert found["elpd_loo"].value == pytest.approx(loo.sum(), abs=0.05)
    assert found["elpd_loo"].se == pytest.approx(math.sqrt(12) * loo.std(), rel=0.05)
    assert found["elpd_loo"].verdict == "reliable; corrected for q"
    assert {"osp", "accuracy", "set_size"}.isdisjoint(row.name for row in found)


def test_leave_one_out_is_corrected_for_a_guide_that_is_off():
    case = Conjugate()
    truth = case.leave_one_out().sum()
    idata = case.data(loc=0.7, width=1.2)
    corrected = diagnose(idata)["elpd_loo"].value
    plain = quantities.leave_one_out(base.groups_of(idata)["log_likelihood"]["y"].values[0]).elpd
    assert abs(corrected - truth) < 0.05 < 0.2 < abs(plain - truth)


def test_leave_one_out_is_not_corrected_where_k_hat_does_not_allow_it():
    case = Conjugate()
    idata = case.data(loc=2.0, width=0.3)
    row = diagnose(idata)["elpd_loo"]
    plain = quantities.leave_one_out(base.groups_of(idata)["log_likelihood"]["y"].values[0])
    assert row.verdict.startswith("of q's draws, not of the posterior (k̂ ") and "reliable" not in row.verdict
    assert row.value == pytest.approx(plain.elpd, abs=1e-9)
    assert "draws taken as the posterior's" in diagnose(case.data(with_q=False))["elpd_loo"].verdict


@pytest.mark.parametrize("corrected", [False, True])
def test_leave_one_out_is_arvizs(monkeypatch, corrected):
    idata = Conjugate().data(loc=0.3, width=1.1, draws=900)
    groups = base.groups_of(idata)
    log_likelihood = groups["log_likelihood"]["y"].values[0]
    log_p, log_q = groups["sample_stats"]["lp"], groups["sample_stats"]["log_q"]
    stats = pytest.importorskip("arviz_stats")
    modern = base.Modern()
    tree = modern.container(groups, {})
    if corrected:
        theirs = [(modern, stats.loo_approximate_posterior(tree, log_p, log_q, pointwise=True))]
    else:
        theirs = [(base.Legacy(), az.loo(idata, pointwise=True)), (modern, stats.loo(tree, pointwise=True))]
    for adapter, loo in theirs:
        monkeypatch.setattr(base, "ARVIZ", adapter)
        ours = quantities.leave_one_out(log_likelihood, (log_p - log_q).values[0] if corrected else None)
        elpd, p = (loo.elpd, loo.p) if hasattr(loo, "elpd") else (loo.elpd_loo, loo.p_loo)
        assert (ours.elpd, ours.se, ours.p) == pytest.approx((elpd, loo.se, p), rel=1e-6)
        np.testing.assert_allclose(ours.pareto_k, loo.pareto_k, atol=1e-6)


def test_leave_one_out_of_data_that_say_nothing():
    flat = quantities.leave_one_out(np.full((100, 3), -1.5))
    assert flat.elpd == pytest.approx(-4.5) and flat.pareto_k.tolist() == [0, 0, 0]
    assert math.isnan(quantities.leave_one_out(np.zeros((10, 3))).elpd)


def test_unreliable_data_are_counted():
    case = Conjugate()
    groups = base.groups_of(case.data(with_q=False))
    heavy = groups["log_likelihood"]["y"].copy()
    heavy[..., :2] = -2 * np.random.default_rng(0).standard_exponential(heavy[..., :2].shape)
    groups["log_likelihood"]["y"] = heavy
    assert "unreliable: k̂ > 0.7 for 2 of 12 data" in diagnose(base.ARVIZ.container(groups, {}))["elpd_loo"].verdict


# Several runs, NaN, missing groups, printing, errors


def full():
    probs, labels = classes()
    rng = np.random.default_rng(0)
    h = 0.8 * rng.normal(size=(2, 60, 2))
    log_q, log_p = norm(0, 0.8).logpdf(h).sum(-1), norm.logpdf(h).sum(-1)
    orbit = log_q[..., None] - np.array([0.0, 30.0, 30.0, 30.0])
    idata = class_data(
        probs,
        labels,
        sample_stats={
            "lp": (DRAW, log_p),
            "log_q": (DRAW, log_q),
            "lp_orbit": ((*DRAW, "element"), np.repeat(log_p[..., None], 4, -1)),
            "log_q_orbit": ((*DRAW, "element"), orbit),
            "element": ["e", "r90", "r180", "r270"],
        },
        variational=traces(-0.01, chains=2),
    )
    groups = base.groups_of(idata)
    groups["posterior"]["a_site_with_quite_a_long_name_of_its_own"] = (DRAW, h[..., 0])
    return groups


def test_every_quantity_has_a_definition_and_a_verdict():
    found = diagnose(base.ARVIZ.container(full(), {}))
    assert {row.section for row in found} == set(TITLES)
    assert all(row.verdict and row.definition and "\n" not in row.definition for row in found)
    names = {row.name.split("[")[0].removesuffix("_orbit") for row in found}
    defined = {**FIT, **COVERAGE, **CONVERGENCE, **EQUIVARIANCE, **PREDICTION, **DENSITY}
    absent = {"max_rhat_canonical", "min_ess_canonical", "divergences"}
    assert names | absent == {name.split("[")[0] for name in defined}
    assert list(found.missing) == ["max_rhat_canonical"]


def test_means_errors_and_spread_over_runs():
    found = diagnose(base.ARVIZ.container(full(), {}))
    row = found["nll"]
    assert row.value == pytest.approx(np.mean(row.values)) and row.spread == pytest.approx(np.std(row.values, ddof=1))
    assert row.se == pytest.approx(math.sqrt(np.mean(np.square(row.errors))))
    alone = diagnose(
        base.ARVIZ.container({n: g.isel(chain=[1]) if "chain" in g.dims else g for n, g in full().items()}, {})
    )
    assert alone["nll"].values == row.values[1:] and math.isnan(alone["nll"].spread)
    data = found.dataset
    assert data["value"].dims == data["se"].dims == ("quantity", "chain")
    assert data["value"].sel(quantity="nll").values.tolist() == list(row.values)
    assert data["value"].sel(quantity="max_rhat").values.tolist() == [found["max_rhat"].value] * 2
    assert str(data["verdict"].sel(quantity="nll").values) == row.verdict
    assert str(data["definition"].sel(quantity="nll").values) == row.definition


def test_the_table_fits_the_page():
    found = diagnose(base.ARVIZ.container(full(), {}))
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert all(title in lines for title in TITLES.values())
    assert lines[-1] == "left out: max_rhat_canonical: no symmetry given"
    value = next(line for line in lines if line.startswith("  nll ")).split()
    assert float(value[1]) == pytest.approx(found["nll"].value, abs=found["nll"].se / 10)
    assert float(value[3]) == pytest.approx(found["nll"].se, rel=0.05)
    page = found._repr_html_()
    assert page.count("<tr>") == len(found) + len(TITLES) + 1
    assert "<script" not in page and "k_hat[a_site_with_quite_a_long_name_of_its_own]" in page


@pytest.mark.parametrize(
    "value, error, text",
    [
        (-123456.7, 0.5, "-123456.70"),
        (-123456.7, 0.0, "-1.235e+05"),
        (1.23456, math.nan, "1.235"),
        (1.23456, 0.1, "1.23"),
        (0.00123, 0.4, "0.00"),
        (-0.00123, 0.4, "0.00"),
        (1234567.0, 4321.0, "1234600"),
        (1.23456e12, 1e8, "1.23456e+12"),
        (1.2345e-9, 1e-11, "1.235e-09"),
        (math.inf, math.nan, "inf"),
    ],
)
def test_a_value_is_printed_to_the_place_of_its_error(value, error, text):
    row = Row("fit", "elbo", (value,), (error,), "fine", "")
    diagnosis = Diagnosis((row,), {}, (0,), 100)
    assert str(diagnosis).splitlines()[-1].split()[1] == text
    assert f"<td>{text}</td>" in diagnosis._repr_html_()


def test_html_is_escaped():
    row = diagnose(gaussian(0, 1, 0, 0.9, draws=100), functionals={"<b>": lambda posterior: posterior["h"]})
    assert "&lt;b&gt;" in row._repr_html_() and "<b>" not in row._repr_html_()


@pytest.mark.parametrize("group", ["sample_stats", "posterior_predictive", "orbit_predictive", "observed_data",
                                   "log_likelihood", "variational"])  # fmt: skip
def test_any_group_may_be_missing(group):
    groups = full()
    del groups[group]
    found = diagnose(base.ARVIZ.container(groups, {}))
    lost = {row.name for row in diagnose(base.ARVIZ.container(full(), {}))} - {row.name for row in found}
    expected = {
        "sample_stats": {"elbo", "k_hat", "coverage", "mixture_gain", "log_density_gap", "model_symmetry"},
        "posterior_predictive": set(),
        "orbit_predictive": {"defect", "osp", "symmetric_kl", "accuracy_orbit", "set_size_orbit"},
        "observed_data": {"accuracy", "nll", "ece", "brier", "set_size", "set_coverage"},
        "log_likelihood": {"log_predictive_density", "elpd_loo"},
        "variational": {"loss_trend"},
    }[group]
    assert expected <= lost
    named = " ".join(found.missing)
    assert all(name.removesuffix("_orbit") in named for name in lost & {"elbo", "defect", "accuracy", "loss_trend"})


def test_a_run_with_nan_has_no_values_and_does_not_hide_the_others():
    groups = full()
    for group, name in [("orbit_predictive", "probs"), ("sample_stats", "lp"), ("log_likelihood", "y")]:
        groups[group][name][1, 3] = np.nan
    found, whole = diagnose(base.ARVIZ.container(groups, {})), diagnose(base.ARVIZ.container(full(), {}))
    for name in ("elbo", "k_hat", "defect", "osp", "symmetric_kl", "accuracy", "nll", "ece", "brier", "set_size",
                 "log_predictive_density"):  # fmt: skip
        assert found[name].value == pytest.approx(whole[name].values[0]), name
        assert math.isnan(found[name].values[1]) and "no value in 1 of 2 runs" in found[name].verdict
    assert max(map(len, str(found).splitlines())) <= WIDTH


def test_all_runs_with_nan():
    groups = full()
    for group, name in [("orbit_predictive", "probs"), ("sample_stats", "lp"), ("log_likelihood", "y"),
                        ("sample_stats", "log_q_orbit"), ("posterior", "mean_log_likelihood")]:  # fmt: skip
        groups[group][name][:] = np.nan
    found = diagnose(base.ARVIZ.container(groups, {}))
    assert "not finite" in found.missing["elbo"] and "not finite" in found.missing["accuracy"]
    assert "not finite" in found.missing["elpd_loo"]


def test_both_series_of_arviz_give_the_same_numbers(monkeypatch):
    pytest.importorskip("arviz_stats")
    data = bimodal(mean=0.4, draws=400, signs=(1, 1))
    groups, case = base.groups_of(data), base.groups_of(Conjugate().data(loc=0.3, draws=400))
    found = []
    for adapter in (base.Legacy(), base.Modern()):
        monkeypatch.setattr(base, "ARVIZ", adapter)
        found.append([diagnose(adapter.container(g, {}), symmetry=s) for g, s in ((groups, flip()), (case, None))])
    for legacy, modern in zip(*found, strict=True):
        xr.testing.assert_allclose(legacy.dataset["value"], modern.dataset["value"], rtol=1e-6)
        names = [row.name for row in legacy if not row.name.startswith("k_hat")]  # 380 draws: tails of 59 and of 58
        xr.testing.assert_allclose(*(d.dataset["se"].sel(quantity=names) for d in (legacy, modern)), rtol=1e-6)


def test_what_does_not_fit_is_an_error():
    idata = gaussian(0, 1, 0, 0.9, draws=100)
    methods = {n: g.expand_dims(method_name=["a", "b"]) for n, g in base.groups_of(idata).items()}
    stacked = base.ARVIZ.container(methods, {})
    with pytest.raises(DataError, match=r"several|of one method; got 'a', 'b'. Select one"):
        diagnose(stacked)
    assert isinstance(diagnose(stacked.sel(method_name="a")), Diagnosis)
    with pytest.raises(DataError, match="a group posterior with chain and draw"):
        diagnose(arviz_data(observed_data={"y": ("n", np.zeros(3))}))
    with pytest.raises(OptionError, match="Expected model="):
        diagnose(lambda: None)
    with pytest.raises(OptionError, match="got draw_more"):
        diagnose(idata, draw_more=True)
    with pytest.raises(OptionError, match="alpha"):
        diagnose(idata, alpha=1.5)
    with pytest.raises(OptionError, match="Expected a quantity, 'elbo'"):
        diagnose(idata)["missing"]


def test_a_guide_and_several():
    """The same as of its ArviZ data; a shifted guide's ELBO is the closed form's."""
    y = torch.from_numpy(Conjugate.y)

    def model(y):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 2.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    mean, scale = Conjugate().posterior(Conjugate.y)

    def guide(y, shift=0.5):
        pyro.sample("mu", dist.Normal(torch.tensor(mean + shift * scale), scale))

    evidence = multivariate_normal(np.zeros(12), np.eye(12) + 4).logpdf(Conjugate.y)
    found = diagnose(guide, model, y, draws=2000, seed=1)
    within(found["elbo"], evidence - 0.5**2 / 2)
    assert "k_hat[mu]" in found and found.draws == 2000
    several = diagnose([guide, functools.partial(guide, shift=0.0)], model, y, draws=200, seed=1)
    assert several["elbo"].values[1] == pytest.approx(evidence) and len(several.chains) == 2


def test_a_model_with_a_scale_and_a_mask():
    """Half of 24 data are masked, the others count three times: all numbers in closed form."""
    case, kept = Conjugate(3.0), torch.arange(24) % 2 == 0
    y = torch.zeros(24).masked_scatter(kept, torch.from_numpy(Conjugate.y))

    def model(y):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 2.0))
        with pyro.plate("data", 24), poutine.scale(scale=3.0), poutine.mask(mask=kept):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    mean, scale = case.posterior(Conjugate.y)

    def guide(y):
        pyro.sample("mu", dist.Normal(torch.tensor(mean), scale))

    found = diagnose(guide, model, y, draws=1000, seed=0)
    within(found["elpd_loo"], case.leave_one_out().sum())
    assert found["elpd_loo"].value == pytest.approx(case.leave_one_out().sum(), abs=0.1)
    assert found["log_predictive_density"].verdict == "nats per datum, of 12 data"
    assert found["elbo"].verdict == f"{found['elbo'].value / 36:.4g} nats per datum"
    held_out = diagnose(guide, model, y, draws=50, seed=0, held_out=True)
    assert "elbo" not in held_out and "elpd_loo" not in held_out and "log_predictive_density" in held_out


def test_divergences_are_counted_by_run():
    groups = full()
    shape = groups["sample_stats"]["lp"].shape
    diverging = np.zeros(shape, dtype=bool)
    diverging[0, [3, 5]] = True
    groups["sample_stats"] = groups["sample_stats"].assign(diverging=(("chain", "draw"), diverging))
    row = diagnose(base.ARVIZ.container(groups, {}))["divergences"]
    assert row.values == (2.0, *[0.0] * (shape[0] - 1)) and row.verdict.startswith("2 in all")
    groups["sample_stats"]["diverging"] = (("chain", "draw"), np.zeros(shape, dtype=bool))
    assert diagnose(base.ARVIZ.container(groups, {}))["divergences"].verdict == "none"
