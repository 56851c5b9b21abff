"""The groups of ``to_arviz`` against closed forms of a conjugate model and against the network itself."""

import functools
import os
import subprocess
import sys

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch import nn

import pyro_equivariance as pe
from pyro_equivariance import diagnostics

SIGMAS = 4.5  # of a computed standard error: one failure in 150,000
PRIOR_VARIANCE = 4.0
DRAWS = 1500


class Conjugate:
    """``μ ~ N(0, 4)``, ``y_n ~ N(μ, 1)`` with the exact posterior ``N(loc, variance)`` as the guide."""

    def __init__(self, count):
        self.y = torch.linspace(-1.0, 2.5, count, dtype=torch.float64)
        self.loc, self.variance = self.posterior(self.y)

    @staticmethod
    def posterior(y):
        precision = 1 / PRIOR_VARIANCE + len(y)
        return float(y.sum()) / precision, 1 / precision

    def model(self, y):
        mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=torch.float64), PRIOR_VARIANCE**0.5))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def guide(self, y):
        pyro.sample("mu", dist.Normal(torch.tensor(self.loc, dtype=torch.float64), self.variance**0.5))

    def leave_one_out(self):
        """The exact ``log p(y_n | y_-n)``."""
        rows = []
        for n in range(len(self.y)):
            loc, variance = self.posterior(torch.cat([self.y[:n], self.y[n + 1 :]]))
            rows.append(float(dist.Normal(loc, (1 + variance) ** 0.5).log_prob(self.y[n])))
        return np.array(rows)


@functools.cache
def conjugate():
    case = Conjugate(12)
    pyro.set_rng_seed(1)
    return case, pe.to_arviz(case.model, case.guide, case.y, draws=DRAWS)


def assert_within(estimates, truth, standard_errors):
    gap = np.abs(np.asarray(estimates) - np.asarray(truth)) / np.asarray(standard_errors)
    assert gap.max() < SIGMAS


def log_mean_exp(x):
    """Over the first axis, and its standard error by the delta method."""
    ratios = np.exp(x - x.max(0))
    error = ratios.std(0, ddof=1) / ratios.mean(0) / len(x) ** 0.5
    return x.max(0) + np.log(ratios.mean(0)), error


def network(**options):
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(128, 3))
    return pe.BayesianNetwork(net, **options)


def images(count=6):
    return torch.randn(count, 1, 4, 4), torch.arange(count) % 3


def network_case(init_scale=0.3):
    model, data = network(size=1000), images()
    symmetry = pe.network_symmetry(model.net, pe.DihedralGroup(4), (1, 4, 4))
    guide = pe.AutoMeanFieldNormal(model, init_scale=init_scale)
    guide.initialize(*data)
    return model, guide, data, symmetry


def dims(idata):
    return {group: {name: array.dims for name, array in idata[group].items()} for group in idata.groups()}


# Closed forms


def test_posterior_moments():
    case, idata = conjugate()
    mu = idata.posterior["mu"].values[0]
    assert_within(mu.mean(), case.loc, (case.variance / DRAWS) ** 0.5)
    assert_within(mu.var(ddof=1), case.variance, case.variance * (2 / (DRAWS - 1)) ** 0.5)


def test_log_likelihood_belongs_to_the_draws_of_the_posterior_group():
    case, idata = conjugate()
    mu = idata.posterior["mu"].values[0, :, None]
    expected = -0.5 * np.log(2 * np.pi) - 0.5 * (case.y.numpy() - mu) ** 2
    np.testing.assert_allclose(idata.log_likelihood["y"].values[0], expected, rtol=1e-12)
    np.testing.assert_allclose(idata.posterior["mean_log_likelihood"].values[0], expected.mean(1), rtol=1e-12)


def test_mean_of_the_log_likelihood():
    case, idata = conjugate()
    square = (case.y.numpy() - case.loc) ** 2
    truth = -0.5 * np.log(2 * np.pi) - 0.5 * (square + case.variance)
    error = ((case.variance**2 / 2 + square * case.variance) / DRAWS) ** 0.5
    assert_within(idata.log_likelihood["y"].mean(("chain", "draw")), truth, error)


def test_posterior_predictive_moments():
    case, idata = conjugate()
    y, variance = idata.posterior_predictive["y"].values[0], 1 + case.variance
    assert_within(y.mean(0), case.loc, (variance / DRAWS) ** 0.5)
    assert_within(y.var(0, ddof=1), variance, variance * (2 / (DRAWS - 1)) ** 0.5)
    residuals = y - idata.posterior["mu"].values[0, :, None]
    assert_within(residuals.var(), 1.0, (2 / residuals.size) ** 0.5)


def test_log_predictive_density():
    case, idata = conjugate()
    truth = dist.Normal(case.loc, (1 + case.variance) ** 0.5).log_prob(case.y)
    estimate, error = log_mean_exp(idata.log_likelihood["y"].values[0])
    assert_within(estimate, truth, error)


def test_arviz_loo_is_exact_leave_one_out():
    case, idata = conjugate()
    loo = az.loo(idata, pointwise=True)
    _, error = log_mean_exp(-idata.log_likelihood["y"].values[0])
    assert_within(loo.loo_i, case.leave_one_out(), error)
    assert loo.pareto_k.max() < 0.7


def test_arviz_waic_and_summary():
    case, idata = conjugate()
    waic = az.waic(idata)
    log_density, error = log_mean_exp(idata.log_likelihood["y"].values[0])
    assert waic.elpd_waic + waic.p_waic == pytest.approx(log_density.sum(), rel=1e-6)
    assert waic.elpd_waic == pytest.approx(case.leave_one_out().sum(), abs=0.05 + SIGMAS * error.sum())
    summary = az.summary(idata, round_to="none")
    assert summary.index.tolist() == ["mu", "mean_log_likelihood"]
    assert_within(summary.loc["mu", "mean"], case.loc, (case.variance / DRAWS) ** 0.5)


def test_data_that_are_all_observed_leave_no_constants():
    case, idata = conjugate()
    assert dims(idata) == {
        "posterior": {"mu": ("chain", "draw"), "mean_log_likelihood": ("chain", "draw")},
        "sample_stats": {"lp": ("chain", "draw"), "log_q": ("chain", "draw")},
        "posterior_predictive": {"y": ("chain", "draw", "data")},
        "log_likelihood": {"y": ("chain", "draw", "data")},
        "observed_data": {"y": ("data",)},
        "prior": {"mu": ("chain", "draw")},
        "prior_predictive": {"y": ("chain", "draw", "data")},
    }
    assert np.array_equal(idata.observed_data["y"].values, case.y.numpy())


# Networks and their orbits


def test_network_groups():
    model, guide, (x, y), symmetry = network_case()
    idata = pe.to_arviz(model, guide, (x, y), symmetry=symmetry, draws=9)
    sample = ("chain", "draw")
    assert dims(idata) == {
        "posterior": {"mean_log_likelihood": sample},
        "sample_stats": {"lp": sample, "log_q": sample, "log_q_orbit": (*sample, "element")},
        "prior_predictive": {"y": (*sample, "observation"), "probs": (*sample, "observation", "class")},
        "posterior_predictive": {"y": (*sample, "observation"), "probs": (*sample, "observation", "class")},
        "log_likelihood": {"y": (*sample, "observation")},
        "observed_data": {"y": ("observation",)},
        "constant_data": {"x": ("observation", "x_dim_1", "x_dim_2", "x_dim_3")},
        "orbit_predictive": {"probs": (*sample, "element", "observation", "class")},
    }
    assert idata.orbit_predictive["element"].values.tolist() == list(symmetry.group.names)
    assert np.array_equal(idata.constant_data["x"].values, x.numpy())


def test_single_precision_likelihoods_are_summed_in_double():
    model, guide, (x, y), _ = network_case()
    idata = pe.to_arviz(model.float(), guide.float(), (x.float(), y), draws=2, sites=["3.bias"])
    assert idata.posterior["3.bias"].dtype == idata.posterior_predictive["probs"].dtype == np.float32
    assert idata.log_likelihood["y"].dtype == idata.posterior["mean_log_likelihood"].dtype == np.float64


@pytest.mark.filterwarnings("ignore:Estimated shape parameter", "ignore:For one or more samples the posterior variance")
def test_arviz_reads_a_networks_groups():
    model, guide, data, symmetry = network_case(init_scale=0.05)
    idata = pe.to_arviz(model, guide, data, symmetry=symmetry, draws=100, sites=["3.bias"])
    assert az.summary(idata).index.tolist() == ["3.bias[0]", "3.bias[1]", "3.bias[2]", "mean_log_likelihood"]
    assert az.loo(idata).n_data_points == az.waic(idata).n_data_points == len(data[1])


def test_log_likelihood_is_of_the_labels_and_not_scaled_to_the_training_size():
    model, guide, (x, y), _ = network_case()
    idata = pe.to_arviz(model, guide, (x, y), draws=5)
    probs = torch.tensor(idata.posterior_predictive["probs"].values)
    expected = probs.gather(-1, y.expand(1, 5, len(y))[..., None])[..., 0].log()
    np.testing.assert_allclose(idata.log_likelihood["y"].values, expected.numpy(), rtol=1e-10)


def test_predictive_labels_are_draws_of_the_probabilities():
    model, guide, data, _ = network_case()
    idata = pe.to_arviz(model, guide, data, draws=800)
    probs, y = (idata.posterior_predictive[name].values[0] for name in ("probs", "y"))
    frequency = np.stack([(y == k) for k in range(3)], -1)
    error = ((probs * (1 - probs)).sum(0)) ** 0.5 / len(y)
    assert_within(frequency.mean(0), probs.mean(0), error)


def test_orbit_is_the_network_with_the_same_weights_at_moved_inputs():
    model, guide, (x, y), symmetry = network_case()
    idata = pe.to_arviz(model, guide, (x, y), symmetry=symmetry, draws=4, sites="all")
    weights = {n: torch.tensor(idata.posterior[n].values[0]) for n, _ in model.net.named_parameters()}
    for t in range(4):
        for g in range(len(symmetry.group)):
            moved = symmetry.act_inputs(g, x)
            logits = torch.func.functional_call(model.net, {n: w[t] for n, w in weights.items()}, (moved,))
            actual = idata.orbit_predictive["probs"].values[0, t, g]
            np.testing.assert_allclose(actual, logits.softmax(-1).numpy(), rtol=1e-10)
    np.testing.assert_array_equal(
        idata.orbit_predictive["probs"].sel(element="e", drop=True).values, idata.posterior_predictive["probs"].values
    )


def test_orbit_agrees_with_orbit_predict():
    model, guide, (x, y), symmetry = network_case(init_scale=1e-12)
    idata = pe.to_arviz(model, guide, (x, y), symmetry=symmetry, draws=2)
    expected = pe.orbit_predict(model, guide, symmetry, x, draws=2)
    np.testing.assert_allclose(idata.orbit_predictive["probs"].values[0], expected.numpy(), rtol=1e-9)


def test_orbit_of_a_regression_holds_means():
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
    symmetry = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 3, 3))
    model = pe.BayesianNetwork(net, likelihood=lambda loc: dist.Normal(loc, 1.0).to_event(1))
    guide = pe.AutoMeanFieldNormal(model, init_scale=1e-12)
    x, y = torch.randn(5, 1, 3, 3), torch.randn(5, 2)
    idata = pe.to_arviz(model, guide, (x, y), symmetry=symmetry, draws=3)
    assert idata.orbit_predictive["mean"].dims == ("chain", "draw", "element", "observation", "y_dim_1")
    expected = pe.orbit_predict(model, guide, symmetry, x, draws=3)
    np.testing.assert_allclose(idata.orbit_predictive["mean"].values[0], expected.numpy(), rtol=1e-9)
    assert idata.log_likelihood["y"].dims == ("chain", "draw", "observation")


@pytest.mark.parametrize("sites, kept", [
    (None, []),
    ("0.bias", ["0.bias"]),
    (["3.bias", "0.bias"], ["3.bias", "0.bias"]),
    ("all", ["0.weight", "0.bias", "3.weight", "3.bias"]),
])  # fmt: skip
@pytest.mark.parametrize("augmented", [False, True])
def test_sites_of_a_network(sites, kept, augmented):
    model, guide, data, symmetry = network_case()
    if augmented:
        model = pe.handlers.augment(model, symmetry)
    idata = pe.to_arviz(model, guide, data, draws=3, sites=sites)
    assert list(idata.posterior.data_vars) == [*kept, "mean_log_likelihood"]


@pytest.mark.parametrize("orbit", ["full", "random"])
def test_an_augmented_model_counts_each_datum_once_as_it_is(orbit):
    model, guide, data, symmetry = network_case(init_scale=1e-12)
    plain = pe.to_arviz(model, guide, data, symmetry=symmetry, draws=2)
    augmented = pe.to_arviz(pe.handlers.augment(model, symmetry, orbit), guide, data, symmetry=symmetry, draws=2)
    assert dims(augmented) == dims(plain)
    for group, name in [("log_likelihood", "y"), ("orbit_predictive", "probs"), ("constant_data", "x")]:
        np.testing.assert_allclose(augmented[group][name].values, plain[group][name].values, rtol=1e-9)


@pytest.mark.parametrize("augmented", [False, True])
def test_a_condition_on_the_model_is_kept(augmented):
    model, guide, (x, y), symmetry = network_case()
    model = pyro.poutine.condition(model, {"y": y})
    model = pe.handlers.augment(model, symmetry) if augmented else model
    idata = pe.to_arviz(model, guide, x, draws=3)
    assert np.array_equal(idata.observed_data["y"].values, y.numpy())
    assert list(idata.posterior.data_vars) == ["mean_log_likelihood"]


# Other models


def two_sites(x, y, z):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.factor("factor", w.sum())
    with pyro.plate("ys", len(y)):
        y = pyro.sample("y", dist.Categorical(logits=x * w), obs=y)
    with pyro.plate("zs", len(z)), pyro.poutine.mask(mask=torch.tensor([True, False, True])):
        pyro.sample("z", dist.Normal(100.0 * y.sum(), 1.0).expand([2]).to_event(1), obs=z)


def test_several_observation_sites():
    guide = pe.AutoMeanFieldNormal(two_sites)
    data = torch.randn(4, 2), torch.tensor([0, 1, 1, 0]), torch.randn(3, 2)
    idata = pe.to_arviz(two_sites, guide, data, draws=40)
    sample = ("chain", "draw")
    assert dims(idata)["posterior_predictive"] == {
        "y": (*sample, "ys"),
        "y_probs": (*sample, "ys", "y_class"),
        "z": (*sample, "zs", "z_dim_1"),
    }
    assert idata.posterior["w"].shape == (1, 40, 2)
    assert np.all(idata.log_likelihood["z"].values[..., 1] == 0)
    total = idata.log_likelihood["y"].sum("ys") + idata.log_likelihood["z"].sum("zs")
    np.testing.assert_allclose(idata.posterior["mean_log_likelihood"].values, total.values / 6)
    drawn = idata.posterior_predictive
    gap = drawn["z"] - 100.0 * drawn["y"].sum("ys")
    assert np.abs(gap).max() < 8  # each replicate of z stands on the replicate of y, not on the data


@pytest.mark.parametrize("kind", [
    pyro.infer.autoguide.AutoNormal,
    pyro.infer.autoguide.AutoMultivariateNormal,
    pyro.infer.autoguide.AutoDelta,
])  # fmt: skip
def test_pyros_guides_show_their_sites_and_not_their_auxiliaries(kind):
    case = Conjugate(5)
    idata = pe.to_arviz(case.model, kind(case.model), case.y, draws=3)
    assert list(idata.posterior.data_vars) == ["mu", "mean_log_likelihood"]


def test_scalar_and_vector_observations_without_a_plate():
    def model(y):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=y)

    idata = pe.to_arviz(model, pe.AutoMeanFieldNormal(model), torch.zeros(3), draws=4)
    assert idata.log_likelihood["y"].dims == ("chain", "draw")
    assert idata.posterior_predictive["y"].dims == ("chain", "draw", "y_dim_0")


def test_a_seed_fixes_the_draws():
    case = Conjugate(5)
    both = []
    for _ in range(2):
        pyro.set_rng_seed(3)
        both.append(pe.to_arviz(case.model, case.guide, case.y, draws=3))
    assert all(both[0][group].equals(both[1][group]) for group in both[0].groups())


def test_attributes():
    model, guide, data, symmetry = network_case()
    attrs = pe.to_arviz(model, guide, data, symmetry=symmetry, draws=1).attrs
    assert attrs["inference_library_version"] == pyro.__version__
    assert attrs["torch_version"] == torch.__version__
    assert attrs["pyro_equivariance_version"] == pe.__version__
    assert (attrs["guide"], attrs["symmetry"]) == ("AutoMeanFieldNormal", repr(symmetry))


def mixture(y):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(torch.ones(2)))
        pyro.sample("y", dist.Normal(loc[z], 1.0), obs=y)


def unobserved():
    pyro.sample("loc", dist.Normal(0.0, 1.0))


BAD = {
    "no observation": (lambda: network_case()[:2] + (images()[0],), {}, pe.SymmetryError, "'y'.*pass it in data"),
    "discrete latent": (
        lambda: (mixture, pe.AutoMeanFieldNormal(pyro.poutine.block(mixture, hide=["z"])), torch.zeros(3)),
        {}, pe.SymmetryError, "'z'.*MixtureSameFamily"),
    "nothing observed": (
        lambda: (unobserved, pe.AutoMeanFieldNormal(unobserved), ()), {}, pe.SymmetryError, "has none"),
    "unknown site": (lambda: network_case()[:3], {"sites": ["5.bias"]}, pe.OptionError, "got '5.bias'"),
    "no draws": (lambda: network_case()[:3], {"draws": 0}, pe.SymmetryError, "at least one posterior draw"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    make, options, error, match = BAD[name]
    with pytest.raises(error, match=match):
        pe.to_arviz(*make(), **options)


# Many runs


def run(case, draws=40, y=None):
    return pe.to_arviz(case.model, case.guide, case.y if y is None else y, draws=draws)


def test_stack_and_select():
    case = Conjugate(5)
    runs = {"baseline": [run(case), run(case)], "always": [run(case), run(case)]}
    stacked = diagnostics.stack(runs)
    assert stacked.posterior["mu"].dims == ("method_name", "chain", "draw")
    assert stacked.posterior["method_name"].values.tolist() == ["baseline", "always"]
    assert stacked.posterior["chain"].values.tolist() == [0, 1]
    assert stacked.observed_data["y"].dims == ("data",)
    for method, several in runs.items():
        own = stacked.sel(method_name=method)
        assert own.log_likelihood["y"].dims == ("chain", "draw", "data")
        for chain, single in enumerate(several):
            for group in ("posterior", "log_likelihood", "posterior_predictive"):
                selected = own[group].isel(chain=[chain]).drop_vars("method_name").assign_coords(chain=[0])
                xr.testing.assert_equal(selected, single[group])
    assert stacked.attrs["guide"] == "guide"


def test_arviz_on_a_stacked_method():
    case = Conjugate(5)
    own = diagnostics.stack({"a": [run(case, 400), run(case, 400)]}).sel(method_name="a")
    loo, summary = az.loo(own, pointwise=True), az.summary(own, round_to="none")
    both = own.log_likelihood["y"].values.reshape(800, 5)
    assert_within(loo.loo_i, case.leave_one_out(), log_mean_exp(-both)[1])
    assert summary.loc["mu", "r_hat"] < 1.05
    assert (loo.n_samples, loo.n_data_points) == (800, 5)


def test_stack_keeps_data_that_differ_between_runs():
    case = Conjugate(5)
    stacked = diagnostics.stack({"a": [run(case), run(case, y=case.y + 1)]})
    assert stacked.observed_data["y"].dims == ("method_name", "chain", "data")
    np.testing.assert_array_equal(stacked.observed_data["y"].values[0], [case.y.numpy(), case.y.numpy() + 1])


@pytest.mark.parametrize("runs, match", [
    (lambda c: {}, "same number of runs"),
    (lambda c: {"a": []}, "at least one"),
    (lambda c: {"a": [run(c)], "b": [run(c), run(c)]}, "'a': 1, 'b': 2"),
    (lambda c: {"a": [run(c)], "b": [run(c, draws=39)]}, r"posterior\.mu.*'draw': 40.*'draw': 39.*'b'"),
    (lambda c: {"a": [run(c), run(Conjugate(6))]}, r"log_likelihood\.y|posterior_predictive\.y"),
])  # fmt: skip
def test_runs_that_do_not_stack(runs, match):
    with pytest.raises(pe.DataError, match=match):
        diagnostics.stack(runs(Conjugate(5)))


# Files


def assert_same(actual, expected):
    assert set(actual.groups()) == set(expected.groups())
    assert actual.attrs == expected.attrs
    for group in expected.groups():
        xr.testing.assert_identical(actual[group].load(), expected[group])
        actual[group].close()


@pytest.mark.parametrize("stacked", [False, True])
def test_netcdf_round_trip(tmp_path, stacked):
    model, guide, data, symmetry = network_case()
    idata = pe.to_arviz(model, guide, data, symmetry=symmetry, draws=4, sites="all")
    idata = diagnostics.stack({"a": [idata], "b": [idata]}) if stacked else idata
    diagnostics.save(idata, tmp_path / "posterior.nc")
    diagnostics.save(idata, str(tmp_path / "posterior.nc"))
    assert os.listdir(tmp_path) == ["posterior.nc"]
    assert_same(az.from_netcdf(tmp_path / "posterior.nc"), idata)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path):
    class Failing(az.InferenceData):
        def to_netcdf(self, path):
            with open(path, "w") as file:
                file.write("half")
            raise OSError("disk full")

    path = tmp_path / "posterior.nc"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"):
        diagnostics.save(Failing(), path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["posterior.nc"]


def test_the_same_groups_as_a_tree_where_arviz_has_no_inference_data(tmp_path, monkeypatch):
    model, guide, data, symmetry = network_case(init_scale=1e-12)
    expected = pe.to_arviz(model, guide, data, symmetry=symmetry, draws=3)
    monkeypatch.setattr(diagnostics.base, "ARVIZ", diagnostics.base.Modern())
    tree = pe.to_arviz(model, guide, data, symmetry=symmetry, draws=3)
    version = {"arviz_version": tree.attrs["arviz_version"]}
    assert isinstance(tree, xr.DataTree) and tree.attrs == {**expected.attrs, **version}
    assert set(tree.children) == set(expected.groups())
    stacked = diagnostics.stack({"a": [tree], "b": [tree]})
    diagnostics.save(stacked, tmp_path / "posterior.nc")
    with xr.open_datatree(tmp_path / "posterior.nc", engine="h5netcdf") as read:
        own = read.sel(method_name="b").load()
    for group in tree.children:
        xr.testing.assert_equal(
            own[group].to_dataset().drop_vars("method_name", errors="ignore"), tree[group].to_dataset()
        )


def test_arvizs_announcement_is_not_shown(tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-W", "error::FutureWarning", "-c", "import pyro_equivariance.diagnostics"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "refactor" not in done.stderr
