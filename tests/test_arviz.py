"""ArviZ data of conjugate models against closed forms, of many kinds of models, guides and draws, and their files."""

import functools
import gc
import os
import tracemalloc
from dataclasses import dataclass

import arviz as az
import arviz_stats
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer import autoguide as pyro_guides
from pyro.infer.autoguide.initialization import init_to_value
from scipy import special, stats
from torch import nn

import pyro_equivariance as pe
from pyro_equivariance import diagnostics
from pyro_equivariance.diagnostics import base

matplotlib.use("Agg")

SIGMAS = 4.5  # of a computed standard error: one failure in 150,000
DRAWS = 400
SERIES = {"0.2x": base.Legacy, "1.x": base.Modern}


@pytest.fixture(params=SERIES)
def series(request, monkeypatch):
    """Both series of ArviZ, one after the other."""
    monkeypatch.setattr(base, "ARVIZ", SERIES[request.param]())
    return request.param


def groups(idata):
    return diagnostics.groups_of(idata)


def dims(idata, group):
    return {name: array.dims for name, array in groups(idata)[group].items()}


def assert_within(estimates, truth, standard_errors):
    gap = np.abs(np.asarray(estimates) - np.asarray(truth)) / np.asarray(standard_errors)
    assert gap.max() < SIGMAS


def log_mean_exp_error(x):
    """Of ``log mean exp x`` over the first axis, by the delta method."""
    ratios = np.exp(x - x.max(0))
    return ratios.std(0, ddof=1) / ratios.mean(0) / len(x) ** 0.5


# Conjugate models, with the exact posterior as a guide


@dataclass
class Conjugate:
    """Exact answers; a law of the sum of all data tells more than those of one datum, as it has their correlation."""

    model: object
    guide: object
    y: torch.Tensor
    log_evidence: float
    prior: object  # of the latent site
    posterior: object
    prior_sum: object  # of the sum of the data, under the prior predictive
    posterior_sum: object  # of the sum of replicated data
    log_likelihood: tuple  # the posterior mean and variance of log p(y_n | θ)
    leave_one_out: np.ndarray


def normal_normal():
    """``θ ~ N(m, v)``, ``y_n ~ N(θ, w)``."""
    m, v, w = 1.0, 4.0, 0.25
    y = torch.tensor([0.3, 1.4, 0.9, 2.2, -0.1, 1.1, 0.6])
    n, ones = len(y), torch.ones(len(y), dtype=y.dtype)

    def posterior(y):
        precision = 1 / v + len(y) / w
        return (m / v + float(y.sum()) / w) / precision, 1 / precision

    def model(y):
        theta = pyro.sample("theta", dist.Normal(m, v**0.5))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(theta, w**0.5), obs=y)

    loc, variance = posterior(y)
    square = (y.numpy() - loc) ** 2
    kept = [posterior(torch.cat([y[:i], y[i + 1 :]])) for i in range(n)]
    return Conjugate(
        model=model,
        guide=lambda y: pyro.sample("theta", dist.Normal(loc, variance**0.5)),
        y=y,
        log_evidence=float(dist.MultivariateNormal(m * ones, w * torch.eye(n) + v).log_prob(y)),
        prior=stats.norm(m, v**0.5),
        posterior=stats.norm(loc, variance**0.5),
        prior_sum=stats.norm(n * m, (n * w + n**2 * v) ** 0.5),
        posterior_sum=stats.norm(n * loc, (n * w + n**2 * variance) ** 0.5),
        log_likelihood=(
            -0.5 * np.log(2 * np.pi * w) - 0.5 * (square + variance) / w,
            (variance**2 / 2 + square * variance) / w**2,
        ),
        leave_one_out=np.array(
            [stats.norm(a, (b + w) ** 0.5).logpdf(y_n) for (a, b), y_n in zip(kept, y.numpy(), strict=True)]
        ),
    )


def beta_bernoulli():
    """``θ ~ Beta(a, b)``, ``y_n ~ Bernoulli(θ)``."""
    a, b = 2.0, 3.0
    y = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0])
    n, ones = len(y), int(y.sum())
    c, d = a + ones, b + n - ones

    def model(y):
        theta = pyro.sample("theta", dist.Beta(a, b))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Bernoulli(theta), obs=y)

    own = np.where(y.numpy() == 1, c, d)
    return Conjugate(
        model=model,
        guide=lambda y: pyro.sample("theta", dist.Beta(c, d)),
        y=y,
        log_evidence=special.betaln(c, d) - special.betaln(a, b),
        prior=stats.beta(a, b),
        posterior=stats.beta(c, d),
        prior_sum=stats.betabinom(n, a, b),
        posterior_sum=stats.betabinom(n, c, d),
        log_likelihood=(
            special.digamma(own) - special.digamma(c + d),
            special.polygamma(1, own) - special.polygamma(1, c + d),
        ),
        leave_one_out=np.log((own - 1) / (c + d - 1)),
    )


CONJUGATE = {"Normal-Normal": normal_normal, "Beta-Bernoulli": beta_bernoulli}


@functools.cache
def exact(name, kind):
    """A model and two chains of its exact posterior, in one series of ArviZ."""
    case = CONJUGATE[name]()
    pyro.set_rng_seed(5)
    return case, pe.to_arviz(case.model, case.guide, case.y, draws=DRAWS, runs=[case.guide], prior_draws=2 * DRAWS)


@pytest.fixture(params=CONJUGATE)
def conjugate(request, series):
    return exact(request.param, series)


def assert_moments(draws, law):
    """Mean and variance of independent draws are those of a law, by its own moments."""
    _, variance, _, excess = (float(moment) for moment in law.stats("mvsk"))
    count = draws.size
    assert_within(draws.mean(), law.mean(), (variance / count) ** 0.5)
    assert_within(draws.var(ddof=1), variance, variance * ((excess + 2) / count) ** 0.5)


def test_of_the_exact_posterior_every_draw_has_the_log_evidence(conjugate):
    case, idata = conjugate
    gap = groups(idata)["sample_stats"]["lp"] - groups(idata)["sample_stats"]["log_q"] - case.log_evidence
    assert gap.shape == (2, DRAWS)
    assert np.abs(gap).max() < 1e-10


def test_posterior_and_prior_are_draws_of_their_laws(conjugate):
    case, idata = conjugate
    assert_moments(groups(idata)["posterior"]["theta"].values, case.posterior)
    prior = groups(idata)["prior"]["theta"]
    assert prior.shape == (1, 2 * DRAWS)
    assert_moments(prior.values, case.prior)


def test_predictive_sums_have_the_laws_of_all_data_together(conjugate):
    case, idata = conjugate
    assert_moments(groups(idata)["prior_predictive"]["y"].sum("data").values, case.prior_sum)
    assert_moments(groups(idata)["posterior_predictive"]["y"].sum("data").values, case.posterior_sum)


@pytest.mark.parametrize("prefix", ["prior", "posterior"])
def test_predictions_belong_to_the_draws_beside_them(conjugate, prefix):
    _, idata = conjugate
    theta, y = groups(idata)[prefix]["theta"].values, groups(idata)[f"{prefix}_predictive"]["y"].values
    slope = ((theta - theta.mean()) * (y.mean(-1) - theta)).sum() / ((theta - theta.mean()) ** 2).sum()
    spread = (y.mean(-1) - theta).std() / ((theta - theta.mean()) ** 2).sum() ** 0.5
    assert_within(slope, 0.0, spread)  # E[mean of y | θ] = θ in both models
    assert_within((y.mean(-1) - theta).mean(), 0.0, (y.mean(-1) - theta).std() / theta.size**0.5)


def test_log_likelihood_has_its_posterior_mean_and_variance(conjugate):
    case, idata = conjugate
    rows = groups(idata)["log_likelihood"]["y"].values.reshape(2 * DRAWS, -1)
    mean, variance = case.log_likelihood
    assert_within(rows.mean(0), mean, (variance / len(rows)) ** 0.5)
    assert_within(
        groups(idata)["posterior"]["mean_log_likelihood"].mean(), mean.mean(), rows.mean(1).std() / len(rows) ** 0.5
    )
    fourth = ((rows - rows.mean(0)) ** 4).mean(0)
    assert_within(rows.var(0, ddof=1), variance, ((fourth - variance**2) / len(rows)) ** 0.5)


def test_leave_one_out_is_exact(conjugate, series):
    case, idata = conjugate
    found = az.loo(idata, pointwise=True).loo_i if series == "0.2x" else arviz_stats.loo(idata, pointwise=True).elpd_i
    rows = groups(idata)["log_likelihood"]["y"].values.reshape(2 * DRAWS, -1)
    assert_within(found, case.leave_one_out, log_mean_exp_error(-rows))


def test_summary_has_the_posterior_moments(conjugate, series):
    case, idata = conjugate
    if series == "0.2x":
        row = az.summary(idata, round_to="none").loc["theta"]
    else:
        assert isinstance(idata, xr.DataTree)
        row = arviz_stats.summary(idata, round_to="none").loc["theta"]
    assert_within(row["mean"], case.posterior.mean(), case.posterior.std() / (2 * DRAWS) ** 0.5)
    assert float(row["r_hat"]) < 1.02


PLOTS = ["trace", "posterior", "forest", "ppc", "rank", "pair", "autocorr", "dist_comparison", "density", "ess", "bpv"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.parametrize("name", CONJUGATE)
def test_arviz_plots_it_without_further_arguments(name, plot):
    _, idata = exact(name, "0.2x")
    getattr(az, f"plot_{plot}")(idata.isel(draw=slice(50)))
    assert plt.gcf().axes
    plt.close("all")


# Eight schools through three kinds of inference

SCHOOLS = ["Choate", "Deerfield", "Phillips Andover", "Phillips Exeter", "Hotchkiss", "Lawrenceville", "St. Paul's",
           "Mt. Hermon"]  # fmt: skip
EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=torch.float64)
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=torch.float64)


def schools(y, errors):
    mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=y.dtype), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(5.0, dtype=y.dtype)))
    with pyro.plate("schools", len(y)):
        eta = pyro.sample("eta", dist.Normal(torch.zeros((), dtype=y.dtype), 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, errors), obs=y)


@functools.cache
def three_ways():
    torch.set_default_dtype(torch.float64)
    data, options = (EFFECTS, ERRORS), {"draws": 40, "coords": {"schools": SCHOOLS}, "seed": 2}
    ours = pe.fit(schools, pe.AutoMeanFieldNormal(schools), data, epochs=60, seed=7, progress=False)
    theirs = pyro_guides.AutoNormal(schools)
    svi = pyro.infer.SVI(schools, theirs, pyro.optim.Adam({"lr": 0.05}), pyro.infer.Trace_ELBO())
    losses = [svi.step(*data) for _ in range(60)]
    nuts = MCMC(NUTS(schools, max_tree_depth=3), num_samples=40, warmup_steps=30, disable_progbar=True)
    nuts.run(*data)
    return nuts, {
        "ours": pe.to_arviz(schools, ours, data, **options),
        "AutoNormal": pe.to_arviz(schools, theirs, data, history=losses, **options),
        "NUTS": pe.to_arviz(schools, nuts, data, **options),
    }


@pytest.mark.parametrize("way", ["ours", "AutoNormal", "NUTS"])
def test_eight_schools(way):
    idata = three_ways()[1][way]
    posterior = idata.posterior
    assert posterior["theta"].dims == posterior["eta"].dims == ("chain", "draw", "schools")
    assert posterior["mu"].dims == ("chain", "draw")
    assert posterior["schools"].values.tolist() == idata.log_likelihood["schools"].values.tolist() == SCHOOLS
    np.testing.assert_allclose(posterior["theta"], posterior["mu"] + posterior["tau"] * posterior["eta"], rtol=1e-12)
    assert dims(idata, "constant_data") == {"x": ("schools",)}
    np.testing.assert_array_equal(idata.constant_data["x"], ERRORS)
    np.testing.assert_array_equal(idata.observed_data["y"], EFFECTS)
    likelihood = stats.norm(posterior["theta"], ERRORS).logpdf(EFFECTS)
    np.testing.assert_allclose(idata.log_likelihood["y"], likelihood, rtol=1e-12)
    hyper = stats.norm(0, 5).logpdf(posterior["mu"]) + stats.halfcauchy(scale=5).logpdf(posterior["tau"])
    lp = hyper + stats.norm.logpdf(posterior["eta"]).sum(-1) + likelihood.sum(-1)
    np.testing.assert_allclose(idata.sample_stats["lp"], lp, rtol=1e-12)
    prior = idata.prior
    np.testing.assert_allclose(prior["theta"], prior["mu"] + prior["tau"] * prior["eta"], rtol=1e-12)
    gap = (idata.prior_predictive["y"] - prior["theta"]) / ERRORS.numpy()
    assert dims(idata, "prior_predictive") == {"y": ("chain", "draw", "schools")}
    assert_moments(gap.values, stats.norm())
    assert idata.attrs["seed"] == 2
    assert ("log_q" in idata.sample_stats, "variational" in idata.groups()) == ((way != "NUTS"),) * 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_three_ways_of_eight_schools_in_one_plot():
    found = three_ways()[1]
    axes = az.plot_forest(list(found.values()), model_names=list(found), combined=True)
    assert {text.get_text() for text in axes[0].get_legend().get_texts()} == set(found)
    labels = [label.get_text() for label in axes[0].get_yticklabels()]
    assert all(sum(f"[{school}]" in label for label in labels) == 2 for school in SCHOOLS)  # of theta and of eta
    plt.close("all")


def test_history_and_settings_of_a_fit():
    found = three_ways()[1]
    steps = found["ours"].variational
    assert {"loss", "gradient_norm", "learning_rate", "kl_weight", "validation"} <= set(steps)
    assert steps["loss"].dims == ("chain", "step") and steps["step"].values.tolist() == list(range(1, 61))
    attrs = found["ours"].attrs
    assert (attrs["guide"], attrs["fit_seed"], attrs["fit_epochs"]) == ("AutoMeanFieldNormal", 7, 60)
    assert attrs["fit_loss"] == "TraceMeanField_ELBO"
    assert found["ours"].posterior.attrs == attrs
    assert found["AutoNormal"].variational["loss"].shape == (1, 60)


def test_steps_of_the_optimizer_count_and_not_epochs():
    net = pe.BayesianNetwork(nn.Linear(2, 2), size=6)
    data = torch.randn(6, 2), torch.arange(6) % 2
    fitted = pe.fit(net, pe.AutoMeanFieldNormal(net), data, epochs=3, batch_size=2, progress=False)
    assert pe.to_arviz(net, fitted, data, draws=2).variational["step"].values.tolist() == [3, 6, 9]


def test_the_draws_of_a_chain_of_nuts_are_kept_in_order():
    nuts, found = three_ways()
    np.testing.assert_array_equal(found["NUTS"].posterior["eta"].values[0], nuts.get_samples()["eta"].numpy())
    diverging = np.flatnonzero(found["NUTS"].sample_stats["diverging"].values[0])
    assert diverging.tolist() == nuts.diagnostics()["divergences"]["chain 0"]
    assert found["NUTS"].attrs["guide"] == "NUTS"


# MCMC and draws given as they are


def located(y):
    loc = pyro.sample("loc", dist.Normal(torch.zeros((), dtype=torch.float64), 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y)


Y = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)


def two_chains():
    """An MCMC object after a run of two chains, with draws that tell where they come from."""
    mcmc = MCMC(NUTS(located), num_samples=6, warmup_steps=1)
    mcmc.num_chains, mcmc._samples = 2, {"loc": torch.arange(12.0).reshape(2, 6) / 10}
    mcmc._diagnostics = [{"divergences": [0, 3]}, {"divergences": [2, 4]}]
    return mcmc


@pytest.mark.parametrize("thin, diverging", [
    (1, [[1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 1, 0]]),
    (2, [[1, 0, 0], [0, 1, 1]]),
    (4, [[1, 0], [0, 1]]),
])  # fmt: skip
def test_two_chains_of_mcmc(thin, diverging):
    idata = pe.to_arviz(located, two_chains(), Y, thin=thin)
    draws = np.arange(12.0).reshape(2, 6)[:, ::thin] / 10
    np.testing.assert_array_equal(idata.posterior["loc"], draws)
    assert idata.sample_stats["diverging"].dtype == bool
    np.testing.assert_array_equal(idata.sample_stats["diverging"], np.array(diverging, dtype=bool))
    expected = stats.norm(0, 2).logpdf(draws) + stats.norm(draws[..., None], 1).logpdf(Y).sum(-1)
    np.testing.assert_allclose(idata.sample_stats["lp"], expected, rtol=1e-12)
    assert set(idata.sample_stats) == {"lp", "diverging"}
    assert idata.prior["loc"].shape == (1, draws.shape[1])


def test_two_runs_of_mcmc_are_side_by_side():
    idata = pe.to_arviz(located, None, Y, runs=[two_chains(), two_chains()])
    assert idata.posterior["loc"].shape == (4, 6)
    assert idata.posterior["chain"].values.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(idata.posterior["loc"].values[:2], idata.posterior["loc"].values[2:])


@pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray, list])
def test_given_draws(kind):
    idata = pe.to_arviz(located, {"loc": kind([0.1, 0.2, 0.3, 0.4, 0.5])}, Y, thin=2, prior_draws=0)
    np.testing.assert_allclose(idata.posterior["loc"], [[0.1, 0.3, 0.5]])
    assert set(idata.groups()) == {
        "posterior",
        "sample_stats",
        "log_likelihood",
        "posterior_predictive",
        "observed_data",
    }


BAD_DRAWS = {
    "none": ({}, pe.DataError, "got no sites"),
    "empty": ({"loc": torch.zeros(0)}, pe.DataError, "got loc 0"),
    "scalar": ({"loc": torch.tensor(1.0)}, pe.DataError, "got loc 0"),
    "unequal": ({"loc": torch.zeros(3), "other": torch.zeros(2)}, pe.DataError, "got loc 3, other 2"),
    "another site": ({"other": torch.zeros(3)}, pe.SymmetryError, "'loc'"),
    "before its run": (MCMC(NUTS(located), num_samples=1), pe.OptionError, "mcmc.run"),
    "a number": (3, pe.OptionError, "got int"),
    "nothing": (None, pe.OptionError, "got none"),
}


@pytest.mark.parametrize("name", BAD_DRAWS)
def test_bad_draws(name):
    source, error, match = BAD_DRAWS[name]
    with pytest.raises(error, match=match):
        pe.to_arviz(located, source, Y)


# Kinds of models


def standard(shape=()):
    return dist.Normal(torch.zeros(shape, dtype=torch.float64), 1.0)


def arviz_of(model, *data, **options):
    return pe.to_arviz(model, pe.AutoMeanFieldNormal(model), data, **{"draws": 3, **options})


def test_nested_plates_and_event_dims():
    def model(y):
        with pyro.plate("rows", 2, dim=-2):
            a = pyro.sample("a", standard())
            with pyro.plate("columns", 3, dim=-1):
                b = pyro.sample("b", standard((4,)).to_event(1))
                pyro.deterministic("total", a + b.sum(-1))
                pyro.deterministic("a_again", a)
                pyro.sample("y", dist.Normal(a[..., None] + b, 1.0).to_event(1), obs=y)

    idata = arviz_of(model, torch.zeros(2, 3, 4))
    sample = ("chain", "draw")
    assert dims(idata, "posterior") == dims(idata, "prior") | {"mean_log_likelihood": sample}
    assert dims(idata, "prior") == {
        "a": (*sample, "rows", "a_dim_1"),
        "b": (*sample, "rows", "columns", "b_dim_2"),
        "total": (*sample, "rows", "columns"),
        "a_again": (*sample, "a_again_dim_0", "a_again_dim_1"),
    }
    assert dims(idata, "posterior_predictive") == {"y": (*sample, "rows", "columns", "y_dim_2")}
    assert dims(idata, "log_likelihood") == {"y": (*sample, "rows", "columns")}
    values = idata.posterior
    loc = values["a"].values[..., None] + values["b"].values
    np.testing.assert_allclose(idata.log_likelihood["y"], stats.norm(loc, 1).logpdf(0).sum(-1), rtol=1e-12)


def test_sequential_plates_are_sites_one_by_one():
    def model(y):
        for i in pyro.plate("times", 3):
            z = pyro.sample(f"z_{i}", standard())
            pyro.sample(f"y_{i}", dist.Normal(z, 1.0), obs=y[i])

    def guide(y):
        for i in pyro.plate("times", 3):
            pyro.sample(f"z_{i}", standard())

    idata = pe.to_arviz(model, guide, torch.zeros(3), draws=3)
    assert set(dims(idata, "log_likelihood").values()) == {("chain", "draw")}
    assert list(idata.log_likelihood) == ["y_0", "y_1", "y_2"]
    assert [name for name in idata.posterior if name.startswith("z")] == ["z_0", "z_1", "z_2"]


@pytest.mark.parametrize("plate", ["draw", "chain", "element"])
def test_a_plate_with_a_name_that_arviz_has(plate):
    def model(y):
        with pyro.plate(plate, len(y)):
            z = pyro.sample("z", standard())
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    idata = arviz_of(model, torch.zeros(4))
    assert idata.posterior["z"].dims == idata.log_likelihood["y"].dims == ("chain", "draw", f"{plate}_plate")


def test_a_site_with_the_name_of_the_observation_axis():
    def model(y):
        pyro.sample("observation", dist.Normal(pyro.sample("loc", standard()), 1.0).expand([4]), obs=y)

    idata = arviz_of(model, torch.zeros(4))
    assert idata.log_likelihood["observation"].dims == ("chain", "draw", "observation_observation")


def test_several_observations_outside_of_plates():
    def model(y, z):
        loc = pyro.sample("loc", standard())
        pyro.sample("y", dist.Normal(loc, 1.0).expand([len(y)]), obs=y)
        pyro.sample("z", dist.Normal(loc, 1.0).expand([len(z), 2]), obs=z)

    idata = arviz_of(model, torch.zeros(4), torch.zeros(3, 2))
    assert dims(idata, "observed_data") == {"y": ("y_observation",), "z": ("z_observation", "z_dim_1")}
    idata = arviz_of(model, torch.zeros(4), torch.zeros(4, 2))
    assert dims(idata, "observed_data") == {"y": ("observation",), "z": ("observation", "z_dim_1")}


def test_a_mask_a_scale_and_a_factor_count_in_lp_and_the_mask_in_the_likelihood():
    mask = torch.tensor([True, False, True])

    def model(y):
        loc = pyro.sample("loc", standard())
        pyro.factor("penalty", -3.0 * loc)
        with pyro.plate("data", 3), poutine.scale(scale=2.0), poutine.mask(mask=mask):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    idata = arviz_of(model, Y, draws=5)
    loc = idata.posterior["loc"].values[..., None]
    terms = stats.norm(loc, 1).logpdf(Y) * mask.numpy()
    np.testing.assert_allclose(idata.log_likelihood["y"], terms, rtol=1e-12)
    expected = stats.norm.logpdf(loc[..., 0]) - 3 * loc[..., 0] + 2 * terms.sum(-1)
    np.testing.assert_allclose(idata.sample_stats["lp"], expected, rtol=1e-12)
    assert list(idata.prior) == ["loc"]


def test_models_take_whatever_they_take():
    def model(y, count, option):
        assert option is None
        with pyro.plate("data", count):
            pyro.sample("y", dist.Normal(pyro.sample("loc", standard()), 1.0), obs=y)

    idata = arviz_of(model, torch.zeros(3), 3, None)
    assert idata.log_likelihood["y"].shape == (1, 3, 3)
    assert "constant_data" not in idata.groups()


def test_a_model_that_holds_its_data():
    def model():
        located(Y)

    idata = arviz_of(model)
    np.testing.assert_array_equal(idata.observed_data["y"], Y)
    assert "constant_data" not in idata.groups()


def test_observations_of_integers_are_integers():
    def model(counts, coins, gaps):
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0), 1.0))
        with pyro.plate("data", 3):
            pyro.sample("counts", dist.Poisson(rate), obs=counts)
            pyro.sample("coins", dist.Bernoulli(logits=rate), obs=coins)
            with poutine.mask(mask=~gaps.isnan()):
                pyro.sample("gaps", dist.Poisson(rate, validate_args=False), obs=gaps)

    counts, coins, gaps = torch.tensor([2.0, 0.0, 5.0]), torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1.0, np.nan, 2.0])
    idata = arviz_of(model, counts, coins, gaps)
    kinds = {n: array.dtype.kind for n, array in idata.observed_data.items()}
    assert kinds == {"counts": "i", "coins": "i", "gaps": "f"}  # NaN is no integer
    assert {array.dtype.kind for array in idata.posterior_predictive.values()} == {"i"}
    assert {array.dtype.kind for array in idata.prior_predictive.values()} == {"i"}
    np.testing.assert_array_equal(idata.observed_data["gaps"], gaps)
    np.testing.assert_array_equal(idata.observed_data["counts"], counts)


def test_deterministic_sites_stay_what_they_are_where_several_observations_are_drawn():
    def model(y, z):
        with pyro.plate("data", 3):
            loc = pyro.deterministic("loc", 10.0 * pyro.sample("raw", standard()))
            y = pyro.sample("y", dist.Normal(loc, 0.01), obs=y)
            twice = pyro.deterministic("twice", 2.0 * y)
            pyro.sample("z", dist.Normal(twice, 0.01), obs=z)

    idata = arviz_of(model, torch.zeros(3), torch.zeros(3))
    for latent, predictive in (("posterior", "posterior_predictive"), ("prior", "prior_predictive")):
        drawn = groups(idata)[predictive]
        assert drawn["y"].dims == drawn["z"].dims == ("chain", "draw", "data")
        assert np.abs(drawn["y"] - groups(idata)[latent]["loc"]).max() < 0.1
        assert np.abs(drawn["z"] - 2 * drawn["y"]).max() < 0.1


def test_constant_data_have_the_axis_of_the_observation_where_they_are_as_long():
    def model(x, y, weights, table, number):
        loc = pyro.sample("loc", standard((2,)).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(x @ loc, 1.0), obs=y)

    data = torch.randn(4, 2), torch.zeros(4), torch.ones(4), torch.zeros(3, 5), torch.tensor(2.0)
    idata = arviz_of(model, *data)
    assert dims(idata, "constant_data") == {
        "x": ("data", "x_dim_1"),
        "x_1": ("data",),
        "x_2": ("x_2_dim_0", "x_2_dim_1"),
        "x_3": (),
    }


@pytest.mark.parametrize("local", [False, True])
def test_a_subsampled_plate_shows_one_part_of_the_data(local):
    y = torch.arange(7.0)

    def model(y):
        loc = pyro.sample("loc", standard())
        with pyro.plate("data", len(y), subsample_size=3) as rows:
            loc = pyro.sample("z", dist.Normal(loc, 1.0)) if local else loc
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y[rows])

    flip = pe.Symmetry(pe.SignGroup(), {"loc": sign()})
    idata = arviz_of(model, y, draws=6, symmetry=flip)
    seen, values = idata.observed_data["y"].values, idata.posterior
    centre = values["z"].values if local else values["loc"].values[..., None]
    likelihood = stats.norm(centre, 1).logpdf(seen)
    np.testing.assert_allclose(idata.log_likelihood["y"], likelihood, rtol=1e-12)
    local_prior = stats.norm(values["loc"].values[..., None], 1).logpdf(centre).sum(-1) if local else 0.0
    lp = stats.norm.logpdf(values["loc"]) + 7 / 3 * (local_prior + likelihood.sum(-1))
    np.testing.assert_allclose(idata.sample_stats["lp"], lp, rtol=1e-12)
    for name in ("lp", "log_q"):
        along = idata.sample_stats[f"{name}_orbit"].sel(element="e", drop=True)
        np.testing.assert_allclose(along, idata.sample_stats[name], rtol=1e-10)
    moved = stats.norm(-values["loc"].values[..., None], 1)
    at = moved.logpdf(centre).sum(-1) + likelihood.sum(-1) if local else moved.logpdf(seen).sum(-1)
    expected = stats.norm.logpdf(values["loc"]) + 7 / 3 * at
    np.testing.assert_allclose(idata.sample_stats["lp_orbit"].values[..., 1], expected, rtol=1e-10)


def test_an_improper_prior_leaves_out_its_groups_and_says_so():
    def model(y):
        loc = pyro.sample("loc", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    guide = pyro_guides.AutoNormal(model, init_loc_fn=init_to_value(values={"loc": torch.tensor(0.0)}))
    with pytest.warns(UserWarning, match="prior_draws=0"):
        idata = pe.to_arviz(model, guide, Y, draws=3)
    assert not {"prior", "prior_predictive"} & set(idata.groups())
    likelihood = stats.norm(idata.posterior["loc"].values[..., None], 1).logpdf(Y).sum(-1)
    np.testing.assert_allclose(idata.sample_stats["lp"], likelihood, rtol=1e-12)
    pe.to_arviz(model, guide, Y, draws=3, prior_draws=0)  # without a warning


# Guides


def rated(y):
    rate = pyro.sample("rate", dist.Gamma(torch.tensor(3.0, dtype=torch.float64), 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Exponential(rate), obs=y)


@pytest.mark.parametrize("kind", [
    pe.AutoMeanFieldNormal, pyro_guides.AutoNormal, pyro_guides.AutoDiagonalNormal, pyro_guides.AutoNormalMessenger,
])  # fmt: skip
def test_log_densities_are_in_the_space_of_the_site(kind):
    guide = kind(rated, init_loc_fn=init_to_value(values={"rate": torch.tensor(2.0)}), init_scale=0.3)
    idata = pe.to_arviz(rated, guide, Y.abs(), draws=8)
    rate = idata.posterior["rate"].values
    np.testing.assert_allclose(idata.sample_stats["log_q"], stats.lognorm(0.3, scale=2.0).logpdf(rate), rtol=1e-9)
    lp = stats.gamma(3, scale=1 / 2).logpdf(rate) + (np.log(rate) * 3 - rate * float(Y.abs().sum()))
    np.testing.assert_allclose(idata.sample_stats["lp"], lp, rtol=1e-9)


def test_a_point_mass_has_no_log_q():
    idata = pe.to_arviz(located, pyro_guides.AutoDelta(located), Y, draws=2, symmetry=mirror("loc"))
    assert list(idata.sample_stats) == ["lp"]


def at_value(kind, value, **options):
    """A guide of the model ``located`` with its parameters made, at a value, and narrow."""
    start = init_to_value(values={"loc": torch.tensor(value, dtype=torch.float64)})
    guide = kind(located, init_loc_fn=start, init_scale=0.01, **options)
    guide(Y)
    return guide


def symmetrized(model, **options):
    still = pe.Symmetry(pe.SignGroup(), {"loc": pe.trivial(pe.SignGroup(), ())})
    return pe.SymmetrizedGuide(pyro_guides.AutoNormal(model, **options), still)


@pytest.mark.parametrize("last", [5.0, -5.0])
@pytest.mark.parametrize("kind", [
    pyro_guides.AutoNormal,
    pyro_guides.AutoMultivariateNormal,
    symmetrized,
    lambda model, **options: under_a_handler(pyro_guides.AutoNormal(model, **options)),
    lambda model, **options: kept_apart(under_a_handler(pyro_guides.AutoNormal(model, **options))),
])  # fmt: skip
def test_guides_that_share_a_name_keep_their_own_parameters(kind, last):
    first = at_value(kind, -last)
    pyro.clear_param_store()
    second = at_value(kind, last)
    before = {name: value.clone() for name, value in pyro.get_param_store().items()}
    idata = pe.to_arviz(located, first, Y, runs=[second], draws=4)
    np.testing.assert_allclose(idata.posterior["loc"].mean("draw"), [-last, last], atol=0.1)
    after = dict(pyro.get_param_store().items())
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    swapped = pe.to_arviz(located, second, Y, runs=[first], draws=4)
    np.testing.assert_allclose(swapped.posterior["loc"].mean("draw"), [last, -last], atol=0.1)


def test_a_new_guide_takes_the_parameters_that_the_store_has(tmp_path):
    at_value(pyro_guides.AutoNormal, 5.0)
    pyro.get_param_store().save(tmp_path / "store")
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "store")
    idata = pe.to_arviz(located, pyro_guides.AutoNormal(located), Y, draws=4)
    np.testing.assert_allclose(idata.posterior["loc"].mean(), 5.0, atol=0.1)


def test_fits_of_different_lengths_and_a_guide_without_history():
    fits = [pe.fit(located, pe.AutoMeanFieldNormal(located), Y, epochs=n, progress=False) for n in (2, 4)]
    idata = pe.to_arviz(located, pe.AutoMeanFieldNormal(located), Y, runs=fits, draws=3)
    assert idata.posterior.sizes["chain"] == 3
    loss = idata.variational["loss"]
    assert loss["chain"].values.tolist() == [1, 2] and loss["step"].values.tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(loss.values, [fits[0].history["loss"] + [np.nan] * 2, fits[1].history["loss"]])
    assert idata.attrs["guide"] == "AutoMeanFieldNormal"
    epochs = pe.to_arviz(located, None, Y, runs=fits, draws=3).attrs["fit_epochs"]
    assert epochs == "2, 4"


@pytest.mark.parametrize("runs, match", [
    ([{"loc": torch.zeros(3)}, {"loc": torch.zeros(4)}], r"loc \(3,\).*loc \(4,\)"),
    ([{"loc": torch.zeros(3)}, pe.AutoMeanFieldNormal(located)], r"group 'sample_stats'|group 'posterior'"),
    ([{"loc": torch.zeros(3)}, {"loc": torch.zeros(3), "more": torch.zeros(3)}], "more"),
])  # fmt: skip
def test_runs_of_different_kinds_or_lengths(runs, match):
    with pytest.raises(pe.OptionError, match=match):
        pe.to_arviz(located, None, Y, runs=runs, draws=3)


@pytest.mark.parametrize("history, match", [
    ({"loss": [1.0, 2.0], "gradient_norm": [1.0]}, "loss 2, gradient_norm 1"),
    ({"loss": [1.0, 2.0], "steps": [1]}, "loss 2, steps 1"),
    ({"steps": [1, 2]}, "the loss among them"),
])  # fmt: skip
def test_bad_history(history, match):
    with pytest.raises(pe.DataError, match=match):
        pe.to_arviz(located, pe.AutoMeanFieldNormal(located), Y, draws=2, history=history)


# Symmetries of latent sites


def sign():
    """A scalar that changes its sign."""
    group = pe.SignGroup()
    return pe.signed_permutation(group, [[0]] * 2, [[1], [-1]]).reshape(())


def mirror(site):
    return pe.Symmetry(pe.SignGroup(), {site: sign()})


def product_of_two(y):
    z = pyro.sample("z", standard((2,)).to_event(1))
    other = pyro.sample("other", standard())
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z[0] * z[1] + other, 1.0), obs=y)


def components(y):
    with pyro.plate("components", 3):
        z = pyro.sample("z", standard())
    pyro.sample("other", standard())
    weights = dist.Categorical(torch.ones(3, dtype=y.dtype))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(z, 1.0)), obs=y)


def ring(y):
    z = pyro.sample("z", standard((2,)).to_event(1))
    pyro.sample("other", standard())
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z.norm(), 1.0), obs=y)


def tilted(y):
    z = pyro.sample("z", standard((2,)).to_event(1))
    pyro.sample("other", standard())
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z[0], 1.0), obs=y)


def quarter_turns():
    return pe.Symmetry(pe.CyclicGroup(4), {"z": pe.vector(pe.CyclicGroup(4))})


def both_signs():
    group = pe.SignGroup()
    return pe.Symmetry(group, {"z": pe.signed_permutation(group, [[0, 1]] * 2, [[1, 1], [-1, -1]])})


def relabelling():
    return pe.Symmetry(pe.SymmetricGroup(3), {"z": pe.permutation(pe.SymmetricGroup(3))})


LATENT = {
    "sign flip": (product_of_two, both_signs, True),
    "exchangeable plate": (components, relabelling, True),
    "cyclic": (ring, quarter_turns, True),
    "no symmetry of the model": (tilted, quarter_turns, False),
}


def spread_out(site):
    """Start values that no symmetry keeps."""
    shape = site["fn"].shape()
    return torch.linspace(0.3, 1.5, max(1, shape.numel()), dtype=torch.float64).reshape(shape)


@pytest.mark.parametrize("name", LATENT)
@pytest.mark.parametrize("kind", [pe.AutoMeanFieldNormal, pyro_guides.AutoNormal])
def test_log_densities_along_orbits_of_latents(name, kind):
    model, make, is_invariant = LATENT[name]
    symmetry, guide = make(), kind(model, init_loc_fn=spread_out, init_scale=0.4)
    idata = pe.to_arviz(model, guide, Y, symmetry=symmetry, draws=4)
    found, values = idata.sample_stats, {n: torch.tensor(idata.posterior[n].values[0]) for n in ("z", "other")}
    assert found["log_q_orbit"].dims == found["lp_orbit"].dims == ("chain", "draw", "element")
    assert found["element"].values.tolist() == list(symmetry.group.names)
    median = guide.median(Y)
    for t in range(4):
        for g in range(len(symmetry.group)):
            moved = {"z": symmetry["z"].act(g, values["z"][t]), "other": values["other"][t]}
            log_q = sum(float(dist.Normal(median[n], 0.4).log_prob(v).sum()) for n, v in moved.items())
            assert found["log_q_orbit"].values[0, t, g] == pytest.approx(log_q, rel=1e-9)
            lp = poutine.trace(poutine.condition(model, moved)).get_trace(Y).log_prob_sum()
            assert found["lp_orbit"].values[0, t, g] == pytest.approx(float(lp), rel=1e-9)
    for own in ("lp", "log_q"):
        np.testing.assert_allclose(found[f"{own}_orbit"].sel(element="e", drop=True), found[own], rtol=1e-9)
    assert np.allclose(found["lp_orbit"], found["lp"].values[..., None], rtol=1e-9) == is_invariant
    assert not np.allclose(found["log_q_orbit"], found["log_q"].values[..., None], rtol=1e-2)


def test_an_action_on_unconstrained_values_counts_its_volume():
    def model(y):
        rate = pyro.sample("rate", dist.LogNormal(torch.zeros((), dtype=y.dtype), 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(rate.log() ** 2, 1.0), obs=y)

    symmetry = pe.Symmetry(pe.SignGroup(), {"rate": sign().on_unconstrained()})
    assert pe.check_symmetry(model, symmetry, Y) < 1e-9
    start = init_to_value(values={"rate": torch.tensor(2.0)})
    guide = pe.AutoMeanFieldNormal(model, init_loc_fn=start, init_scale=0.5)
    idata = pe.to_arviz(model, guide, Y, symmetry=symmetry, draws=5)
    found, u = idata.sample_stats, np.log(idata.posterior["rate"].values)
    np.testing.assert_allclose(found["lp_orbit"].values[..., 1], found["lp"], rtol=1e-10)
    # The density of log(rate), moved, and the Jacobian of rate = exp(u) at the draw itself.
    expected = stats.norm(np.log(2.0), 0.5).logpdf(-u) - u
    np.testing.assert_allclose(found["log_q_orbit"].values[..., 1], expected, rtol=1e-9)


@pytest.mark.parametrize("make", [quarter_turns, both_signs])
def test_the_element_that_an_orbit_mixture_drew_leads_back_to_its_component(make):
    def model(y):
        z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=y.dtype), 5.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(z.norm(), 1.0), obs=y)

    symmetry, centre = make(), torch.tensor([6.0, 1.0], dtype=torch.float64)
    guide = pe.AutoOrbitMixture(model, symmetry, init_loc_fn=init_to_value(values={"z": centre}), init_scale=0.2)
    idata = pe.to_arviz(model, guide, Y, symmetry=symmetry, draws=100, prior_draws=0)
    group, g = symmetry.group, idata.sample_stats["group_element"]
    assert g.dims == ("chain", "draw") and np.issubdtype(g.dtype, np.integer)
    elements = torch.tensor(g.values[0])
    back = symmetry["z"].act(group.inverse(elements), torch.tensor(idata.posterior["z"].values[0]))
    assert (((back - centre) / 0.2).abs() < 6).all()
    assert_within(back.mean(0), centre, 0.2 / 100**0.5)
    counts = np.bincount(elements, minlength=len(group))
    assert stats.chisquare(counts).pvalue > 1e-5
    log_q = idata.sample_stats["log_q"].values[..., None]
    np.testing.assert_allclose(
        idata.sample_stats["log_q_orbit"], np.broadcast_to(log_q, (1, 100, len(group))), rtol=1e-9
    )


def test_a_network_has_log_q_along_the_orbit_only():
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
    symmetry, model = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 3, 3)), pe.BayesianNetwork(net)
    data = torch.randn(4, 1, 3, 3), torch.arange(4) % 2
    for guide, is_invariant in (
        (pe.AutoSymmetricNormal(model, symmetry), True),
        (pe.AutoMeanFieldNormal(model), False),
    ):
        found = pe.to_arviz(model, guide, data, symmetry=symmetry, draws=3).sample_stats
        assert set(found) == {"lp", "log_q", "log_q_orbit"}
        same = np.isclose(found["log_q_orbit"], found["log_q"].values[..., None], rtol=1e-9)
        assert same[..., 0].all() and same.all() == is_invariant


def no_inverse(model):
    return pyro_guides.AutoNormalizingFlow(model, dist.transforms.planar)


@pytest.mark.parametrize("make", [no_inverse, lambda model: pe.AutoOrbitMixture(model, quarter_turns(), max_exact=1)])
def test_guides_without_a_density_at_other_values_have_none_along_the_orbit(make):
    def model(y):
        z = pyro.sample("z", standard((2,)).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(z.norm(), 1.0), obs=y)

    found = pe.to_arviz(model, make(model), Y, symmetry=quarter_turns(), draws=2).sample_stats
    assert {"lp", "log_q"} <= set(found) and not {"lp_orbit", "log_q_orbit"} & set(found)


@pytest.mark.parametrize("size, is_shown", [(4, True), (5, False)])
def test_large_groups_are_left_out(size, is_shown):
    def model(y):
        with pyro.plate("things", size):
            z = pyro.sample("z", standard())
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=y)

    symmetry = pe.exchangeable(model, "things", Y)
    found = arviz_of(model, Y, symmetry=symmetry, draws=1).sample_stats
    assert ("lp_orbit" in found, "log_q_orbit" in found) == (is_shown, is_shown)


# Options


def wide(y):
    z = pyro.sample("z", standard((500,)).to_event(1))
    bias = pyro.sample("bias", standard())
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z.mean() + bias, 1.0), obs=y)


def size_of(idata):
    return sum(array.nbytes for group in groups(idata).values() for array in group.values())


def test_single_precision_is_half_as_large(series):
    full = arviz_of(wide, Y, draws=20, seed=1)
    half = arviz_of(wide, Y, draws=20, seed=1, dtype="float32")
    assert size_of(full) == 2 * size_of(half)
    for name, group in groups(half).items():
        for variable, array in group.items():
            assert array.dtype == np.float32
            np.testing.assert_allclose(array, groups(full)[name][variable], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sites", [None, "all"])
@pytest.mark.parametrize("dtype, width", [("float64", 8), ("float32", 4)])
def test_the_size_is_as_the_docstring_says(sites, dtype, width):
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 10))
    model, symmetry = pe.BayesianNetwork(net), pe.network_symmetry(net, pe.CyclicGroup(4), (1, 4, 4))
    data = torch.randn(20, 1, 4, 4), torch.arange(20) % 10
    idata = pe.to_arviz(
        model, pe.AutoMeanFieldNormal(model), data, symmetry=symmetry, draws=10, sites=sites, dtype=dtype
    )
    order, n, k, t, shown = 4, 20, 10, 10, 170 if sites else 0
    inputs = idata.constant_data["x"].nbytes
    assert size_of(idata) - inputs == pytest.approx(
        width * t * (order * n * k + 2 * n * k + 3 * n + 2 * shown), rel=0.1
    )


def test_no_more_than_twice_the_result_is_held():
    def model(y):
        pyro.sample("z", standard((20_000,)).to_event(1))
        located(y)

    draws = {"z": np.zeros((40, 20_000)), "loc": np.zeros(40)}
    tracemalloc.start()
    idata = pe.to_arviz(model, draws, Y)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size_of(idata) > 1.2e7
    assert peak < 2.3 * size_of(idata)


@pytest.mark.parametrize("sites, kept", [
    ("bias", ["bias"]), (["bias", "z"], ["bias", "z"]), ([], []), ("all", ["z", "bias"]), (None, ["z", "bias"]),
])  # fmt: skip
def test_sites_of_a_model_and_of_its_prior(sites, kept):
    idata = arviz_of(wide, Y, sites=sites)
    assert list(idata.posterior) == [*kept, "mean_log_likelihood"]
    assert list(groups(idata).get("prior", [])) == kept
    assert "log_q" in idata.sample_stats


def test_draws_of_the_prior():
    assert arviz_of(located, Y, draws=3, prior_draws=8).prior["loc"].shape == (1, 8)
    assert not {"prior", "prior_predictive"} & set(arviz_of(located, Y, prior_draws=0).groups())


def test_a_seed_gives_the_same_draws_and_leaves_other_randomness_alone():
    guide = at_value(pe.AutoMeanFieldNormal, 0.0)
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    first = pe.to_arviz(located, guide, Y, draws=3, seed=11, symmetry=mirror("loc"))
    assert torch.equal(torch.rand(3), expected)
    second = pe.to_arviz(located, guide, Y, draws=3, seed=11)
    other = pe.to_arviz(located, guide, Y, draws=3, seed=12)
    for group in ("posterior", "posterior_predictive", "prior", "prior_predictive"):
        assert second[group].equals(first[group])
        assert not other[group].equals(first[group])
    assert (first.attrs["seed"], other.attrs["seed"]) == (11, 12)


def test_the_density_along_the_orbit_takes_no_random_numbers():
    guide = at_value(pe.AutoMeanFieldNormal, 0.0)
    both = []
    for symmetry in (None, mirror("loc")):
        pyro.set_rng_seed(6)
        both.append(pe.to_arviz(located, guide, Y, draws=3, symmetry=symmetry))
    assert both[0].posterior.equals(both[1].posterior) and both[0].prior.equals(both[1].prior)


@pytest.mark.parametrize("options, match", [
    ({"thin": 0}, "thin to be at least 1"),
    ({"prior_draws": -1}, "prior_draws to be at least 0"),
    ({"dtype": "int64"}, "'float32'"),
    ({"dtype": "half a float"}, "'float32'"),
    ({"coords": {"data": ["a", "b"]}}, "3 labels for the axis 'data'.*got 2"),
    ({"sites": "nowhere"}, "'loc'; got 'nowhere'"),
])  # fmt: skip
def test_bad_options(options, match):
    with pytest.raises(pe.OptionError, match=match):
        arviz_of(located, Y, **options)


# Files


def orbits(draws=4):
    """Data with labels, all groups of log densities, and a history."""
    fitted = pe.fit(ring, pe.AutoMeanFieldNormal(ring), Y, epochs=2, progress=False)
    return pe.to_arviz(ring, fitted, Y, symmetry=quarter_turns(), draws=draws, seed=3, coords={"data": ["a", "b", "c"]})


def assert_same(actual, expected):
    actual, expected = groups(actual), groups(expected)
    assert set(actual) == set(expected)
    for name in expected:
        xr.testing.assert_identical(actual[name], expected[name])


@pytest.mark.parametrize("reader", SERIES)
def test_files_of_either_series_are_read_by_both(series, reader, monkeypatch, tmp_path):
    idata = orbits()
    diagnostics.save(idata, tmp_path / "posterior.nc")
    monkeypatch.setattr(base, "ARVIZ", SERIES[reader]())
    read = pe.from_netcdf(tmp_path / "posterior.nc", groups=["posterior", "variational", "observed_data"])
    assert isinstance(read, az.InferenceData if reader == "0.2x" else xr.DataTree)
    assert_same(read, idata)
    assert dict(read.attrs) == dict(idata.attrs)


def open_files():
    return {
        os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")
    }


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are listed on Linux only")
def test_what_was_read_is_in_memory_and_the_file_closed(series, tmp_path):
    path, idata = tmp_path / "posterior.nc", orbits()
    diagnostics.save(idata, path)
    with xr.set_options(warn_for_unclosed_files=True):  # those that garbage collection closes
        read = pe.from_netcdf(path)
        gc.collect()
    assert str(path) not in open_files()
    diagnostics.save(read, path)
    again = pe.from_netcdf(str(path))
    path.write_text("overwritten")
    path.unlink()
    assert_same(again, idata)


def test_saving_over_a_file_keeps_it_if_it_fails(series, tmp_path, monkeypatch):
    path, idata = tmp_path / "posterior.nc", orbits()
    diagnostics.save(idata, path)
    whole = path.read_bytes()

    def fails(self, data, part):
        part.write_bytes(whole[:100])
        raise OSError("disk full")

    monkeypatch.setattr(type(base.ARVIZ), "write", fails)
    with pytest.raises(OSError, match="disk full"):
        diagnostics.save(orbits(draws=5), path)
    assert path.read_bytes() == whole and os.listdir(tmp_path) == ["posterior.nc"]


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.7, 0.99, -1])
def test_a_cut_file(series, tmp_path, kept):
    path = tmp_path / "posterior.nc"
    diagnostics.save(orbits(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if kept < 0 else int(kept * len(whole))])
    with pytest.raises(pe.DataError, match="whole netCDF file.*cut short"):
        pe.from_netcdf(path)
    if os.path.isdir("/proc/self/fd"):
        assert str(path) not in open_files()


def test_files_that_are_none(series, tmp_path):
    text = tmp_path / "text.nc"
    text.write_text("no netCDF " * 100)
    with pytest.raises(pe.DataError, match="whole netCDF file"):
        pe.from_netcdf(text)
    with pytest.raises(pe.DataError, match="there is none at"):
        pe.from_netcdf(tmp_path / "missing.nc")


def test_a_foreign_file(series, tmp_path):
    path = tmp_path / "foreign.nc"
    foreign = az.from_dict(posterior={"a": np.arange(30.0).reshape(2, 5, 3)}, observed_data={"y": np.zeros(4)})
    foreign.to_netcdf(str(path))
    read = groups(pe.from_netcdf(path, groups=("posterior", "observed_data")))
    np.testing.assert_array_equal(read["posterior"]["a"], foreign.posterior["a"])


def written(path, **named):
    for group, dataset in named.items():
        dataset.to_netcdf(path, group=group, mode="a" if path.exists() else "w", engine="h5netcdf")


def draws_of(*shape, names=("chain", "draw", "x")):
    return xr.Dataset({"a": (names[: len(shape)], np.zeros(shape))})


INCOMPLETE = {
    "no posterior": ({"prior": draws_of(1, 5)}, ("posterior",), "groups 'posterior' .*holds 'prior'"),
    "empty posterior": ({"posterior": xr.Dataset(), "prior": draws_of(1, 5)}, ("posterior",), "groups 'posterior'"),
    "missing groups": (
        {"posterior": draws_of(1, 5)}, ("posterior", "log_likelihood", "sample_stats"),
        "groups 'log_likelihood', 'sample_stats' .*holds 'posterior'"),
    "no chain": (
        {"posterior": draws_of(5, 2, names=("draw", "x"))}, ("posterior",), r"posterior\.a .*lacks chain, it has"),
    "no chain and draw": (
        {"posterior": draws_of(2, names=("x",))}, ("posterior",), r"posterior\.a .*lacks chain and draw"),
    "statistics without draws": (
        {"posterior": draws_of(1, 5), "sample_stats": draws_of(1, names=("chain",))}, ("posterior",),
        r"sample_stats\.a .*lacks draw"),
    "fewer draws in one": (
        {"posterior": draws_of(1, 5), "log_likelihood": draws_of(1, 4, 3)}, ("posterior",),
        r"posterior \(1, 5\), log_likelihood \(1, 4\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", INCOMPLETE)
def test_foreign_files_that_lack_something(series, tmp_path, name):
    found, needed, match = INCOMPLETE[name]
    path = tmp_path / "foreign.nc"
    written(path, **found)
    with pytest.raises(pe.DataError, match=match) as raised:
        pe.from_netcdf(path, groups=needed)
    assert str(path) in str(raised.value)


def test_a_file_without_groups(series, tmp_path):
    path = tmp_path / "foreign.nc"
    draws_of(1, 5).to_netcdf(path, engine="h5netcdf")
    with pytest.raises(pe.DataError, match="holds no groups"):
        pe.from_netcdf(path)


def test_a_reparametrised_site_is_in_the_posterior_and_the_prior():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        with pyro.plate("groups", 3):
            theta = pyro.sample("theta", dist.Normal(mu, 0.5))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    decentred = pyro.poutine.reparam(model, {"theta": pyro.infer.reparam.LocScaleReparam(0.0)})
    idata = pe.to_arviz(decentred, pe.AutoMeanFieldNormal(decentred), torch.zeros(3), draws=4)
    for group in (idata.posterior, idata.prior):
        assert group["theta"].dims == ("chain", "draw", "groups")
        mu = group["mu"].values[..., None]
        np.testing.assert_allclose(group["theta"].values, mu + 0.5 * group["theta_decentered"].values, rtol=1e-12)


def test_coords_of_no_axis_are_refused():
    y = torch.zeros(3)
    with pytest.raises(pe.OptionError, match="Expected coords of axes.*got 'dta'"):
        pe.to_arviz(located, pe.AutoMeanFieldNormal(located), y, draws=2, coords={"dta": range(3)})


# Scales, masks and data of others than the fit


def scale_of(model, *data, **options):
    return arviz_of(model, *data, **options).log_likelihood["y"].attrs["scale"]


@pytest.mark.parametrize("handler, scale", [
    (poutine.scale(scale=2.5), 2.5),
    (poutine.scale(scale=torch.tensor([1.0, 2.0, 6.0])), 3.0),
    (poutine.mask(mask=torch.tensor([True, False, True])), 1.0),
])  # fmt: skip
def test_the_scale_of_a_site_is_noted_at_its_log_likelihood(handler, scale):
    def model(y):
        loc = pyro.sample("loc", standard())
        with pyro.plate("data", len(y)), handler:
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    assert scale_of(model, Y) == scale
    assert isinstance(scale_of(model, Y), float)


def test_the_scale_of_a_part_of_the_data():
    def model(y):
        loc = pyro.sample("loc", standard())
        with pyro.plate("data", len(y), subsample_size=2) as rows:
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y[rows])

    assert scale_of(model, Y) == 1.5
    net = pe.BayesianNetwork(nn.Linear(2, 2), size=10)
    assert scale_of(net, torch.zeros(4, 2), torch.zeros(4).long()) == 2.5


def test_scales_come_through_chains_stacks_and_files(series, tmp_path):
    net = pe.BayesianNetwork(nn.Linear(2, 2), size=10)
    data, guide = (torch.zeros(4, 2), torch.zeros(4).long()), pe.AutoMeanFieldNormal(net)
    one = pe.to_arviz(net, guide, data, draws=2)
    two = pe.to_arviz(net, guide, data, draws=2, runs=[pe.AutoMeanFieldNormal(net)])
    diagnostics.save(one, tmp_path / "one.nc")
    for idata in (two, diagnostics.stack({"a": [one, one], "b": [one, one]}), pe.from_netcdf(tmp_path / "one.nc")):
        assert groups(idata)["log_likelihood"]["y"].attrs == {"scale": 2.5}


MASK = torch.tensor([True, False, True])


def masked_by_handler(loc, y):
    with pyro.plate("data", 3), poutine.mask(mask=MASK):
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y)


def masked_by_itself(loc, y):
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(loc, 1.0).expand([3]).mask(MASK), obs=y)


def masked_in_an_event(loc, y):
    with pyro.plate("data", 3):
        law = dist.Normal(loc, 1.0).expand([3, 2]).mask(torch.stack([MASK, torch.zeros(3, dtype=torch.bool)], -1))
        pyro.sample("y", law.to_event(1), obs=torch.stack([y, y], -1))


@pytest.mark.parametrize("masked", [masked_by_handler, masked_by_itself, masked_in_an_event])
def test_a_mask_is_recorded_and_the_mean_is_over_what_counts(masked, series, tmp_path):
    idata = arviz_of(lambda y: masked(pyro.sample("loc", standard()), y), Y, draws=4)
    diagnostics.save(idata, tmp_path / "masked.nc")
    for found in (idata, pe.from_netcdf(tmp_path / "masked.nc")):
        mask = groups(found)["constant_data"]["y_mask"]
        assert mask.dims == ("data",) and mask.dtype == bool
        np.testing.assert_array_equal(mask, MASK)
    loc = groups(idata)["posterior"]["loc"].values
    expected = stats.norm(loc[..., None], 1).logpdf(Y[MASK]).mean(-1)
    np.testing.assert_allclose(groups(idata)["posterior"]["mean_log_likelihood"], expected, rtol=1e-12)
    assert (groups(idata)["log_likelihood"]["y"].values[..., 1] == 0).all()


@pytest.mark.parametrize("mask", [True, torch.ones(3, dtype=torch.bool)])
def test_without_hidden_data_there_is_no_mask(mask):
    def model(y):
        loc = pyro.sample("loc", standard())
        with pyro.plate("data", 3), poutine.mask(mask=mask):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    assert "constant_data" not in arviz_of(model, Y).groups()


def test_one_mask_for_all_data():
    def model(y):
        loc = pyro.sample("loc", standard())
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)
            with poutine.mask(mask=False):
                pyro.sample("z", dist.Normal(loc, 1.0), obs=2 * y)

    idata = arviz_of(model, Y)
    assert idata.constant_data["z_mask"].values.tolist() == [False] * 3 and "y_mask" not in idata.constant_data
    expected = idata.log_likelihood["y"].mean("data")
    np.testing.assert_allclose(idata.posterior["mean_log_likelihood"], expected, rtol=1e-12)


def test_data_of_others_than_the_fit_are_recorded_as_such(series):
    found = arviz_of(located, Y, held_out=True)
    assert found.attrs["held_out"] == 1
    assert all(group.attrs["held_out"] == 1 for group in groups(found).values())
    assert "held_out" not in arviz_of(located, Y).attrs


# Runs that are independent, and others


def kept_apart(guide):
    return pe.SymmetrizedGuide(guide, pe.Symmetry(pe.SignGroup(), {"loc": pe.trivial(pe.SignGroup(), ())}))


def under_a_handler(guide):
    return poutine.scale(guide, scale=1.0)


SHARING = {
    "AutoNormal": pyro_guides.AutoNormal,
    "AutoMultivariateNormal": pyro_guides.AutoMultivariateNormal,
    "SymmetrizedGuide": lambda model: kept_apart(pyro_guides.AutoNormal(model)),
    "handler": lambda model: under_a_handler(pyro_guides.AutoNormal(model)),
    "handler inside": lambda model: kept_apart(under_a_handler(pyro_guides.AutoNormal(model))),
}


@pytest.mark.parametrize("name", SHARING)
def test_fits_in_a_row_that_share_their_parameters_are_no_independent_runs(name):
    def fitted(clear):
        if clear:
            pyro.clear_param_store()
        return pe.fit(located, SHARING[name](located), Y, epochs=1, progress=False)

    shared = [fitted(clear=False) for _ in range(2)]
    with pytest.raises(pe.OptionError, match=r"runs 0 and 1 share their parameters.*clear_param_store\(\)"):
        pe.to_arviz(located, None, Y, runs=shared, draws=2)
    apart = [fitted(clear=True) for _ in range(3)]
    assert pe.to_arviz(located, None, Y, runs=apart, draws=2).posterior.sizes["chain"] == 3
    with pytest.raises(pe.OptionError, match="runs 0 and 2 share"):
        pe.to_arviz(located, None, Y, runs=[apart[0], apart[1], apart[0].guide], draws=2)


def test_shared_parameters_are_found_before_anything_is_drawn():
    def never(y):
        raise AssertionError("called")

    shared = [pe.fit(located, pyro_guides.AutoNormal(located), Y, epochs=1, progress=False) for _ in range(2)]
    with pytest.raises(pe.OptionError, match="runs 0 and 1 share"):
        pe.to_arviz(never, None, Y, runs=shared)


def test_guides_with_parameters_of_their_own_are_independent():
    with pyro.settings.context(module_local_params=True):
        fits = [pe.fit(located, pyro_guides.AutoNormal(located), Y, epochs=1, progress=False) for _ in range(2)]
        assert pe.to_arviz(located, None, Y, runs=fits, draws=2).posterior.sizes["chain"] == 2


def with_a_parameter(y):
    pyro.sample("loc", dist.Normal(pyro.param("centre", torch.tensor(0.0)), 1.0))


def with_a_positive_parameter(y):
    scale = pyro.param("width", torch.tensor(1.0), constraint=dist.constraints.positive)
    pyro.sample("loc", dist.Normal(0.0, scale))


@pytest.mark.parametrize("guide", [with_a_parameter, with_a_positive_parameter, pyro_guides.AutoNormal(located)])
def test_parameters_that_are_made_in_the_first_call_are_seen(guide):
    with pytest.raises(pe.OptionError, match="runs 0 and 1 share their parameters"):
        pe.to_arviz(located, guide, Y, runs=[guide], draws=2)


def test_the_same_draws_twice():
    draws = {"loc": torch.zeros(3)}
    with pytest.raises(pe.OptionError, match="runs 0 and 1 are the same"):
        pe.to_arviz(located, draws, Y, runs=[draws])


# Data by name, and what is no data


def by_name(y, *, errors, count):
    loc = pyro.sample("loc", standard())
    with pyro.plate("data", count):
        pyro.sample("y", dist.Normal(loc, errors), obs=y)


@pytest.mark.parametrize("make", [pe.AutoMeanFieldNormal, pyro_guides.AutoNormal])
def test_keyword_arguments(make):
    data = {"y": Y, "errors": torch.tensor([1.0, 2.0, 3.0]), "count": 3}
    idata = pe.to_arviz(by_name, make(by_name), data, symmetry=mirror("loc"), draws=3)
    assert dims(idata, "constant_data") == {"errors": ("data",)}
    likelihood = stats.norm(idata.posterior["loc"].values[..., None], data["errors"]).logpdf(Y)
    np.testing.assert_allclose(idata.log_likelihood["y"], likelihood, rtol=1e-12)
    assert {"log_q_orbit", "lp_orbit"} <= set(idata.sample_stats) and "prior" in idata.groups()


def test_a_keyword_with_the_name_of_a_plate():
    def model(data, y):
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(data * pyro.sample("loc", standard()), 1.0), obs=y)

    idata = pe.to_arviz(model, pe.AutoMeanFieldNormal(model), {"data": 2 * Y, "y": Y}, draws=2)
    np.testing.assert_array_equal(idata.constant_data["data_values"], 2 * Y)


def test_keyword_arguments_of_a_network_and_its_orbit():
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
    symmetry, model = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 3, 3)), pe.BayesianNetwork(net)
    guide, x, y = pe.AutoMeanFieldNormal(model), torch.randn(4, 1, 3, 3), torch.arange(4) % 2
    both = [pe.to_arviz(model, guide, data, symmetry=symmetry, draws=3, seed=1) for data in ({"x": x, "y": y}, (x, y))]
    named, ordered = both
    assert_same(named, ordered)
    assert named.orbit_predictive.probs.shape == (1, 3, 4, 4, 2)


def test_the_orbit_of_a_model_that_takes_keywords_alone():
    symmetry = pe.network_symmetry(nn.Sequential(nn.Flatten(), nn.Linear(9, 2)), pe.CyclicGroup(4), (1, 3, 3))

    def model(*, x, y=None):
        weights = pyro.sample("weights", standard((9,)).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x.flatten(1) @ weights, 1.0), obs=y)

    x, symmetry = torch.randn(4, 1, 3, 3), pe.Symmetry(symmetry.group, {}, inputs=symmetry.inputs)
    idata = pe.to_arviz(model, pe.AutoMeanFieldNormal(model), {"x": x, "y": torch.zeros(4)}, symmetry=symmetry, draws=2)
    expected = symmetry.inputs.orbit(x).flatten(2) @ torch.tensor(idata.posterior["weights"].values[0]).mT
    np.testing.assert_allclose(idata.orbit_predictive["mean"].values[0], expected.movedim(-1, 0), rtol=1e-9, atol=1e-12)


def test_an_array_is_one_argument():
    idata = pe.to_arviz(located, at_value(pe.AutoMeanFieldNormal, 0.0), Y.numpy(), draws=2)
    np.testing.assert_array_equal(idata.observed_data["y"], Y)


@pytest.mark.parametrize("data", [None, 3.0, "text"])
def test_what_is_no_data(data):
    with pytest.raises(pe.DataError, match=rf"Expected data .*got {type(data).__name__}\. Pass data=\(\)"):
        pe.to_arviz(located, at_value(pe.AutoMeanFieldNormal, 0.0), data)


@pytest.mark.parametrize("options, match", [
    ({"draws": 5.0}, "draws to be a whole number; got 5.0"),
    ({"thin": 1.5}, "thin to be a whole number"),
    ({"prior_draws": 2.0}, "prior_draws to be a whole number"),
    ({"runs": located}, "runs to be a list; got function"),
    ({"runs": {"loc": torch.zeros(3)}}, "runs to be a list; got dict"),
])  # fmt: skip
def test_options_of_a_wrong_kind(options, match):
    with pytest.raises(pe.OptionError, match=match):
        arviz_of(located, Y, **options)


def test_a_symmetry_of_inputs_needs_them_first():
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
    symmetry = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 3, 3))

    def model(count):
        located(Y)

    with pytest.raises(pe.DataError, match="Expected the inputs first in data"):
        arviz_of(model, 3, symmetry=pe.Symmetry(symmetry.group, {}, inputs=symmetry.inputs))


# Draws that do not fit the model


def two_levels(y):
    mu = pyro.sample("mu", standard())
    with pyro.plate("schools", 3):
        theta = pyro.sample("theta", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


@pytest.mark.parametrize("shapes, match", [
    ({"mu": (2, 6), "theta": (2, 6, 3)}, r"'mu' of shape \(\) each.*got \(6,\)\. .*MCMC object, or one dict per chain"),
    ({"mu": (6,), "theta": (6, 2)}, r"'theta' of shape \(3,\) each.*got \(2,\)"),
    ({"mu": (6,)}, "there are none of 'theta', only of 'mu'"),
])  # fmt: skip
def test_draws_that_do_not_fit_the_model(shapes, match):
    with pytest.raises(pe.DataError, match=match) as raised:
        pe.to_arviz(two_levels, {name: torch.zeros(shape) for name, shape in shapes.items()}, Y)
    assert "\n" not in str(raised.value)


def test_one_dict_for_each_chain():
    chains = torch.arange(12.0).reshape(2, 6)
    found = pe.to_arviz(located, None, Y, runs=[{"loc": chain} for chain in chains]).posterior["loc"]
    np.testing.assert_array_equal(found, chains)


def test_draws_outside_of_a_support():
    def model(y):
        pyro.sample("rate", dist.Gamma(torch.tensor(3.0), 2.0))
        located(y)

    with pytest.raises(pe.DataError, match="density at site 'rate'"):
        pe.to_arviz(model, {"rate": torch.tensor([-1.0]), "loc": torch.zeros(1)}, Y)


@pytest.mark.parametrize("guide", [
    lambda y: pyro.sample("loc", standard()), pe.AutoMeanFieldNormal(located), pyro_guides.AutoNormal(located),
])  # fmt: skip
def test_model_and_guide_swapped(guide):
    with pytest.raises(pe.SymmetryError, match="model first .*observes 'y'.*Swap the two"):
        pe.to_arviz(guide, located, Y, draws=2)


# Log densities in double precision


def test_log_densities_of_a_model_in_single_precision_are_summed_in_double():
    size = 300_000
    values = torch.linspace(-2, 2, size, dtype=torch.float32)

    def model(y):
        zero = torch.zeros(size, dtype=torch.float32)
        z = pyro.sample("z", dist.Normal(zero, 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(z[:3], 1.0), obs=y)

    def guide(y):
        pyro.sample("z", dist.Normal(values, 0.1).to_event(1))

    y = torch.zeros(3, dtype=torch.float32)
    found = pe.to_arviz(model, guide, y, draws=2, sites="all", prior_draws=0)
    z = found.posterior["z"].values
    assert z.dtype == np.float32
    assert found.sample_stats["lp"].dtype == found.sample_stats["log_q"].dtype == np.float64
    for t, z_t in enumerate(torch.tensor(z[0])):  # float32 has steps of 0.03 at the size of lp
        terms = [dist.Normal(torch.zeros(1, dtype=torch.float32), 1.0).log_prob(part) for part in (z_t, z_t[:3])]
        lp = sum(float(term.double().sum()) for term in terms)
        np.testing.assert_allclose(found.sample_stats["lp"][0, t], lp, rtol=1e-12)
        log_q = float(dist.Normal(values, 0.1).log_prob(z_t).double().sum())
        np.testing.assert_allclose(found.sample_stats["log_q"][0, t], log_q, rtol=1e-12)


# What is no file, and no ArviZ data


@pytest.mark.parametrize("call", [
    lambda folder: diagnostics.save({"posterior": 1}, folder / "a.nc"),
    lambda folder: diagnostics.stack({"a": [{"posterior": 1}]}),
], ids=["save", "stack"])  # fmt: skip
def test_what_is_no_arviz_data(series, tmp_path, call):
    with pytest.raises(pe.DataError, match="Expected ArviZ data; got dict"):
        call(tmp_path)
    assert not os.listdir(tmp_path)


def test_stacks_of_a_wrong_kind(series):
    idata = arviz_of(located, Y)
    with pytest.raises(pe.DataError, match="dict of lists of runs; got list"):
        diagnostics.stack([idata, idata])
    with pytest.raises(pe.DataError, match="list of runs of 'a'; got"):
        diagnostics.stack({"a": idata})


@pytest.mark.parametrize("path", [None, 3])
def test_paths_that_are_none(series, path):
    match = f"path of a netCDF file; got {type(path).__name__}"
    with pytest.raises(pe.DataError, match=match):
        pe.from_netcdf(path)
    with pytest.raises(pe.DataError, match=match):
        diagnostics.save(arviz_of(located, Y), path)


def test_folders(series, tmp_path):
    idata = arviz_of(located, Y)
    with pytest.raises(pe.DataError, match="there is none at .*missing'. Make it first"):
        diagnostics.save(idata, tmp_path / "missing" / "a.nc")
    for call in (pe.from_netcdf, functools.partial(diagnostics.save, idata)):
        with pytest.raises(pe.DataError, match="is a folder. Name a file in it"):
            call(tmp_path)


@pytest.mark.parametrize("content, match", [
    (b"", "it is empty"),
    (b"chain,draw,theta", r"begins with b'chain,dr'\. Name a file"),
    (b"CDF\x01" + bytes(40), "netCDF 3, which has no groups"),
])  # fmt: skip
def test_files_of_other_kinds(series, tmp_path, content, match):
    path = tmp_path / "posterior.nc"
    path.write_bytes(content)
    with pytest.raises(pe.DataError, match=match):
        pe.from_netcdf(path)


@pytest.mark.parametrize("options", [{"engine": "scipy"}, {"engine": "h5netcdf"}])
def test_the_way_out_of_a_file_without_groups_works(series, tmp_path, options):
    flat, grouped = tmp_path / "flat.nc", tmp_path / "grouped.nc"
    draws_of(1, 5).to_netcdf(flat, **options)
    with pytest.raises(pe.DataError, match=r"no groups\. .*xr\.load_dataset\(path\).*group='posterior'"):
        pe.from_netcdf(flat)
    xr.load_dataset(flat).to_netcdf(grouped, group="posterior")
    assert groups(pe.from_netcdf(grouped))["posterior"]["a"].shape == (1, 5)
