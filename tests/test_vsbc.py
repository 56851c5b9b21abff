"""Ranks of exact, shifted, narrow and wide guides against their laws, and the rates of false alarms of their tests."""

import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal

import pyro_equivariance as pe
from pyro_equivariance.diagnostics import calibration
from pyro_equivariance.diagnostics.calibration import ConditionedModel
from pyro_equivariance.diagnostics.ranks import VSBC, holm, symmetry_test, uniformity_test
from pyro_equivariance.errors import DataError, OptionError, SymmetryError

SIGMAS = 4.5  # of a computed standard error: one failure in 150,000
SIZE = 5
DATA = torch.zeros(SIZE)

vsbc = partial(calibration.vsbc, progress=False)


def normal_normal(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def exact(model, shift=0.0, ratio=1.0):
    """The posterior, moved and widened by so many of its standard deviations."""
    y, scale = model.observations["y"], (SIZE + 1) ** -0.5
    return lambda *_: pyro.sample("mu", dist.Normal(scale**2 * y.sum() + shift * scale, ratio * scale))


def one_datum(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def uniform_ranks(simulations, draws, quantities=1, seed=0):
    return np.random.default_rng(seed).integers(0, draws + 1, (simulations, quantities))


def result(ranks, draws, **options):
    names = tuple(f"q{i}" for i in range(ranks.shape[1]))
    return VSBC(ranks, names, draws, np.full(len(ranks), np.nan), **options)


# Exact laws of ranks


@pytest.mark.parametrize("shift, ratio", [(0.0, 1.0), (0.5, 1.0), (-0.4, 0.7)])
def test_ranks_follow_their_law(shift, ratio):
    """With ``p = Φ((Z − shift) / ratio)`` a rank is Binomial(draws, p)."""
    draws = 19
    ranks = vsbc(normal_normal, partial(exact, shift=shift, ratio=ratio), DATA, simulations=300, draws=draws).ranks
    z = torch.linspace(-9, 9, 4001)
    p = torch.distributions.Normal(shift, ratio).cdf(z)
    law = torch.distributions.Binomial(draws, p[:, None]).log_prob(torch.arange(draws + 1.0)).exp()
    density = torch.distributions.Normal(0.0, 1.0).log_prob(z).exp() * (z[1] - z[0])
    expected = (density[:, None] * law).sum(0).numpy()
    assert expected.sum() == pytest.approx(1.0)
    counts = np.bincount(ranks[:, 0], minlength=draws + 1)
    errors = np.sqrt(300 * expected * (1 - expected))
    assert np.all(np.abs(counts - 300 * expected) < SIGMAS * errors + 1)


def test_exact_posterior_passes():
    study = vsbc(normal_normal, exact, DATA, draws=49)
    assert study.passes and study.verdicts == ("calibrated",)
    assert study.ranks.shape == (200, 1) and np.isnan(study.losses).all()
    assert abs(study.bias[0]) < SIGMAS / math.sqrt(12 * 200)
    assert abs(study.width[0] - 1) < SIGMAS * study.width_se[0]


@pytest.mark.parametrize("shift, verdict", [(0.5, "too high"), (-0.5, "too low")])
def test_shifted_guide_is_flagged_by_symmetry(shift, verdict):
    study = vsbc(normal_normal, partial(exact, shift=shift), DATA, draws=49)
    assert study.symmetry[0] < 1e-5 and study.verdicts == (verdict,) and not study.passes
    chance = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(-shift / 2**0.5)).item()
    assert abs(study.bias[0] - (chance - 0.5) * 49 / 50) < SIGMAS / math.sqrt(12 * 200)


@pytest.mark.parametrize("ratio, verdict", [(0.5, "too narrow"), (2.0, "too wide")])
def test_wrong_scale_is_flagged_by_uniformity_alone(ratio, verdict):
    study = vsbc(normal_normal, partial(exact, ratio=ratio), DATA, draws=49)
    assert study.uniformity[0] < 1e-10 and study.symmetry[0] > 0.05
    assert study.flags[:, 0].tolist() == [False, True] and study.verdicts == (verdict,)
    spread = math.asin(1 / (1 + ratio**2)) / (2 * math.pi)  # Var Φ(Z / ratio)
    width = (49**2 * spread + 49 * (0.25 - spread)) / ((50**2 - 1) / 12)
    assert abs(study.width[0] - width) < SIGMAS * study.width_se[0]


def test_beta_bernoulli():
    def model(y):
        p = pyro.sample("p", dist.Beta(2.0, 3.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Bernoulli(p), obs=y)

    def posterior(conditioned, count=SIZE):
        ones = conditioned.observations["y"].sum()
        return lambda _: pyro.sample("p", dist.Beta(2 + ones, 3 + count - ones))

    assert vsbc(model, posterior, DATA, simulations=120, draws=29).passes
    assert not vsbc(model, partial(posterior, count=4 * SIZE), DATA, simulations=120, draws=29).passes


def test_prior_as_a_guide_is_seen_by_a_functional_of_the_data_only():
    def log_likelihood(sites):
        return dist.Normal(sites["mu"], 1.0).log_prob(sites["y"]).sum()

    def prior(_):
        return lambda _: pyro.sample("mu", dist.Normal(0.0, 1.0))

    run = partial(vsbc, normal_normal, functionals={"fit": log_likelihood}, simulations=100, draws=19)
    assert run(exact, DATA).passes
    assert run(prior, DATA).verdicts == ("calibrated", "too low")


def test_mean_field_of_a_correlated_posterior_is_narrow():
    noise = 0.5

    def model(y):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("y", dist.Normal(theta.sum(-1), noise), obs=y)

    def guide(conditioned, full=False):
        precision = torch.eye(2) + 1 / noise**2
        mean = torch.linalg.solve(precision, torch.ones(2)) * conditioned.observations["y"] / noise**2
        law = dist.MultivariateNormal(mean, precision_matrix=precision)
        fields = dist.Normal(mean, precision.diagonal() ** -0.5).to_event(1)
        return lambda _: pyro.sample("theta", law if full else fields)

    y = torch.tensor(0.0)
    study = vsbc(model, guide, y, simulations=120, draws=29, functionals={"sum": lambda s: s["theta"].sum()})
    assert study.quantities == ("theta[0]", "theta[1]", "sum")
    assert study.verdicts[:2] == ("too narrow", "too narrow") and not study.flags[0].any()
    assert vsbc(model, partial(guide, full=True), y, simulations=120, draws=29).passes


# Training


def test_trained_guide_passes_and_reaches_the_evidence():
    """At the posterior one draw's log p − log q is the log evidence, without any noise."""
    seen = []

    def make(conditioned):
        seen.append(conditioned.observations["y"])
        return AutoNormal(conditioned)

    study = vsbc(one_datum, make, torch.tensor(0.0), simulations=25, draws=19, steps=120, learning_rate=0.1)
    assert study.passes
    evidence = dist.Normal(0.0, 2**0.5).log_prob(torch.stack(seen)).numpy()
    assert np.abs(study.losses + evidence).mean() < 0.1  # 1.3 before training


def test_learning_rate_falls_to_zero(monkeypatch):
    rates = []

    class Adam(torch.optim.Adam):
        def step(self):
            rates.append(self.param_groups[0]["lr"])
            super().step()

    monkeypatch.setattr(torch.optim, "Adam", Adam)
    vsbc(one_datum, AutoNormal, torch.tensor(0.0), simulations=20, draws=1, steps=8, learning_rate=0.5)
    assert rates[:8] == pytest.approx([0.5, 0.5, 0.5, 0.5, 0.5, 0.375, 0.25, 0.125])


def test_symmetric_guide_of_a_network():
    model = pe.BayesianNetwork(torch.nn.Linear(2, 1), likelihood="normal")
    swap = pe.SymmetricGroup(2)
    weight, bias = pe.trivial(swap, (1,)) * pe.permutation(swap), pe.trivial(swap, (1,))
    make = partial(pe.AutoSymmetricNormal, symmetry=pe.Symmetry(swap, {"weight": weight, "bias": bias}))
    modes = []
    noted = {"mode": lambda _: modes.append(model.training) or 0.0}
    data = torch.randn(3, 2), torch.zeros(3, 1)
    study = vsbc(model, make, *data, simulations=20, draws=3, steps=2, functionals=noted)
    assert study.quantities == ("weight[0, 0]", "weight[0, 1]", "bias[0]") and not any(modes)
    assert model.training and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_model_keeps_its_parameters(processes):
    """Learned before, they are those that data are simulated with, and no guide's; training leaves them alone."""

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        noise = pyro.param("noise", torch.tensor(1.0), constraint=dist.constraints.positive)
        pyro.sample("y", dist.Normal(mu, noise), obs=y)

    def make(_):
        def guide(y):
            pyro.param("noise", torch.tensor(1.0))
            pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

        return guide

    pyro.param("noise", torch.tensor(1e6), constraint=dist.constraints.positive)
    pyro.param("loc", torch.tensor(1e3))
    limits = {
        "y": lambda sites: 0.0 if sites["y"].abs() > 100 else math.nan,
        "near": lambda sites: 0.0 if sites["mu"].abs() < 100 else math.nan,
    }
    study = vsbc(
        model, make, torch.tensor(0.0), simulations=20, draws=3, steps=2, functionals=limits, processes=processes
    )
    assert study.quantities == ("mu",)  # the others never vary
    store = pyro.get_param_store()
    assert float(store["noise"].detach()) == pytest.approx(1e6) and float(store["loc"].detach()) == 1e3
    assert store._params["noise"].grad is None and sorted(store) == ["loc", "noise"]


# What symmetry leaves identified


def absolute(y):
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
    pyro.sample("y", dist.Normal(z.abs(), 0.5).to_event(1), obs=y)


def positive_mode(conditioned):
    """The posterior given that z is positive: a truncated Normal."""
    loc, scale = conditioned.observations["y"] / 1.25, 0.2**0.5
    below = dist.Normal(loc, scale).cdf(torch.tensor(0.0))

    def guide(_):
        u = pyro.sample("u", dist.Uniform(0.0, 1.0), infer={"is_auxiliary": True})
        z = loc + scale * torch.special.ndtri(below + u * (1 - below))
        pyro.sample("z", dist.Delta(z, event_dim=1))

    return guide


def test_one_mode_of_two_is_judged_up_to_the_symmetry():
    flip = pe.Symmetry(pe.SignGroup(), {"z": pe.vector(pe.SignGroup())})
    run = partial(vsbc, absolute, positive_mode, torch.zeros(1), simulations=100, draws=29)
    assert run().verdicts[0].startswith("too high")
    assert run(symmetry=flip).passes
    assert run(symmetry=flip).quantities == ("z[0]",)


def test_functionals_see_the_representatives():
    group = pe.SymmetricGroup(2)
    seen = []

    def model(y):
        pair = pyro.sample("pair", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("y", dist.Normal(pair.sum(), 1.0), obs=y)

    def guide(_):
        return lambda _: pyro.sample("pair", dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    vsbc(
        model,
        guide,
        torch.tensor(0.0),
        simulations=20,
        draws=3,
        symmetry=pe.Symmetry(group, {"pair": pe.permutation(group)}),
        functionals={"first": lambda sites: seen.append(sites["pair"]) or sites["pair"][0]},
    )
    assert len(seen) == 20 * 4 and all(pair[0] <= pair[1] for pair in seen)


def test_a_draw_moves_as_a_whole():
    group = pe.SymmetricGroup(2)
    rows = torch.tensor([[[2.0, 1.0], [5.0, 9.0]], [[0.0, 1.0], [7.0, 3.0]]])
    symmetry = pe.Symmetry(group, {"w": pe.permutation(group)})  # of the last axis: the first row decides for both
    moved = calibration._canonical({"w": rows}, symmetry)
    assert torch.equal(moved["w"], torch.stack([rows[0].flip(-1), rows[1]]))


# Simulation and ranks


def several(y):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("groups", 2):
        theta = pyro.sample("theta", dist.Normal(0.0, scale))
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
    which = pyro.sample("which", dist.Categorical(logits=torch.zeros(2)))
    corr = pyro.sample("corr", dist.LKJCholesky(2, 1.0))
    total = pyro.deterministic("total", theta[which] + w.sum() + corr[1, 0])
    pyro.sample("y", dist.Normal(total, 1.0), obs=y)


def prior_of_several(conditioned):
    assert list(conditioned.observations) == ["y"]  # not the deterministic site
    return poutine.block(lambda y: several(None), hide=["y", "total"])


def test_names_of_quantities():
    study = vsbc(
        several, prior_of_several, torch.tensor(0.0), simulations=20, draws=3, functionals={"k": lambda s: s["which"]}
    )
    assert study.quantities == (
        "scale", "theta[0]", "theta[1]", "w[0, 0]", "w[0, 1]", "corr[1, 0]", "corr[1, 1]", "k",
    )  # fmt: skip
    assert study.ranks.shape == (20, 8) and study.ranks.min() == 0 and study.ranks.max() == 3
    some = vsbc(several, prior_of_several, torch.tensor(0.0), simulations=20, draws=3, sites=["w"])
    assert some.quantities == ("w[0, 0]", "w[0, 1]")


def test_a_guide_may_leave_out_discrete_sites():
    hidden = poutine.block(lambda y: several(None), hide=["y", "total", "which"])
    study = vsbc(several, lambda _: hidden, torch.tensor(0.0), simulations=20, draws=3, sites=["scale"])
    assert study.quantities == ("scale",)


def test_ties_are_broken_at_random():
    values = torch.tensor([1.0, 0.0, 1.0, 1.0, 2.0])[:, None].expand(5, 3000)
    ranks, varies = calibration._ranks(values)
    counts = np.bincount(ranks, minlength=5)
    assert counts[[0, 4]].tolist() == [0, 0] and varies.all()
    assert np.all(np.abs(counts[1:4] - 1000) < SIGMAS * math.sqrt(3000 * 2 / 9))
    assert not calibration._ranks(torch.ones(5, 2))[1].any()


def test_observations_are_simulated_and_override():
    made = []

    def make(conditioned):
        made.append(conditioned)
        return exact(conditioned)

    vsbc(normal_normal, make, DATA, simulations=20, draws=1)
    trace = poutine.trace(made[0]).get_trace(DATA)
    assert trace.nodes["y"]["is_observed"] and torch.equal(trace.nodes["y"]["value"], made[0].observations["y"])
    assert list(made[0].observations) == ["y"] and made[0].model is normal_normal
    assert len({float(m.observations["y"][0]) for m in made}) == 20


def test_simulated_data_are_draws_of_the_joint():
    """The sum of the observations given mu has mean 5 mu and variance 5."""
    pairs = []
    vsbc(
        normal_normal,
        exact,
        DATA,
        simulations=200,
        draws=1,
        functionals={"pair": lambda s: pairs.append((float(s["mu"]), float(s["y"].sum()))) or 0.0},
    )
    mu, total = np.array(pairs[::2]).T  # the truth comes first
    residual = (total - SIZE * mu) / math.sqrt(SIZE)
    assert abs(residual.mean()) < SIGMAS / math.sqrt(200) and abs(residual.var() - 1) < SIGMAS * math.sqrt(2 / 200)
    assert abs(mu.var() - 1) < SIGMAS * math.sqrt(2 / 200)


# Seeds and processes


def test_seed_fixes_the_study_and_leaves_no_trace():
    pyro.param("mine", torch.tensor(3.0))
    run = partial(vsbc, one_datum, AutoNormal, torch.tensor(0.0), simulations=20, draws=9, steps=2)
    state = torch.get_rng_state()
    first = run(seed=1)
    assert torch.equal(torch.get_rng_state(), state) and list(pyro.get_param_store()) == ["mine"]
    torch.rand(1)
    again, other = run(seed=1), run(seed=2)
    assert np.array_equal(first.ranks, again.ranks) and np.array_equal(first.losses, again.losses)
    assert not np.array_equal(first.ranks, other.ranks) and first.seed == 1
    longer = run(seed=1, simulations=25)
    assert np.array_equal(longer.ranks[:20], first.ranks)


@pytest.mark.slow  # workers import everything
def test_processes_do_not_matter():
    run = partial(vsbc, one_datum, AutoNormal, torch.tensor(0.0), simulations=20, draws=9, steps=3)
    one, two = run(processes=1), run(processes=2)
    assert np.array_equal(one.ranks, two.ranks) and np.array_equal(one.losses, two.losses)
    with pytest.raises(
        DataError, match=r"Simulation \d+, of seed \d+: Expected a finite loss and gradient; got the loss nan"
    ):
        run(loss=Undefined(), processes=2)


# Tests of ranks


def test_kuiper_by_its_definition():
    ranks = uniform_ranks(37, 9)[:, 0]
    above = below = 0.0
    for k in range(10):
        gap = np.mean(ranks <= k) - (k + 1) / 10
        above, below = max(above, gap), max(below, -gap)
    lam = (above + below) * (37**0.5 + 0.155 + 0.24 / 37**0.5)
    p = sum(2 * (4 * j**2 * lam**2 - 1) * math.exp(-2 * j**2 * lam**2) for j in range(1, 50))
    assert uniformity_test(ranks, 9) == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize("test", [symmetry_test, uniformity_test])
def test_reflected_ranks_have_the_same_p(test):
    ranks = uniform_ranks(60, 9, seed=3)[:, 0] ** 2 // 9
    assert test(ranks, 9) == pytest.approx(test(9 - ranks, 9), rel=1e-9) and 0 < test(ranks, 9) < 0.05


def test_middle_and_extreme_ranks():
    assert symmetry_test(np.full(20, 5), 10) == 1.0
    assert uniformity_test(np.full(1000, 5), 10) < 1e-100
    assert symmetry_test(np.repeat([0, 9], 50), 9) == pytest.approx(1.0)
    assert uniformity_test(np.repeat([0, 9], 50), 9) < 1e-20


def test_wilcoxon_against_all_signs():
    """The exact law given the distances from the middle: every sign is equally likely."""
    ranks = np.array([0, 1, 2, 2, 3, 4, 5, 8, 9, 9, 7, 1])
    signed = 2 * ranks - 9
    order = np.array([(np.abs(signed) < a).sum() + ((np.abs(signed) == a).sum() + 1) / 2 for a in np.abs(signed)])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 12)).reshape(12, -1)
    sums = order @ signs
    p = np.mean(np.abs(sums) >= abs(order @ np.sign(signed)) - 1e-9)
    assert symmetry_test(ranks, 9) == pytest.approx(p, abs=0.03)


@pytest.mark.parametrize("simulations, draws", [(20, 99), (100, 99), (100, 19)])
def test_sizes_under_uniform_ranks(simulations, draws):
    repetitions, alpha = 1000, 0.05
    columns = uniform_ranks(simulations, draws, repetitions, seed=7).T
    se = math.sqrt(alpha * (1 - alpha) / repetitions)
    symmetry = np.mean([symmetry_test(ranks, draws) < alpha for ranks in columns])
    uniformity = np.mean([uniformity_test(ranks, draws) < alpha for ranks in columns])
    assert abs(symmetry - alpha) < SIGMAS * se
    assert alpha / 20 < uniformity < alpha + SIGMAS * se


@pytest.mark.parametrize("alpha", [0.05, 0.5])
def test_false_alarm_rate_of_a_study(alpha):
    """Of 400 studies of 100 simulations and three quantities each, ranks exactly uniform."""
    studies = [result(uniform_ranks(100, 99, 3, seed), 99, alpha=alpha) for seed in range(400)]
    rate = np.mean([not study.passes for study in studies])
    assert alpha / 4 < rate < alpha + SIGMAS * math.sqrt(alpha * (1 - alpha) / 400)


def test_holm_steps_down():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p, alpha = rng.random((2, 4)) ** 3, rng.random()
        rejected = np.zeros(8, dtype=bool)
        for step, i in enumerate(np.argsort(p, axis=None)):
            if p.ravel()[i] > alpha / (8 - step):
                break
            rejected[i] = True
        assert np.array_equal((holm(p) <= alpha).ravel(), rejected)


# The record


def test_verdicts_and_table():
    u = (np.arange(100) + 0.5) / 100

    def ranks(levels):
        return np.clip((levels * 100).astype(int), 0, 99)

    columns = {
        "even": u,
        "low": u**0.4,
        "high": u**2.5,
        "narrow": 0.5 + 0.5 * np.sign(u - 0.5) * np.abs(2 * u - 1) ** 0.3,
        "wide": 0.5 + 0.5 * np.sign(u - 0.5) * np.abs(2 * u - 1) ** 3,
        "low and narrow": np.where(u < 0.2, 0.0, 0.999) + 0 * u,
        "lumps": np.select([u < 0.26, u < 0.5, u < 0.74], [0.101, 0.491, 0.501], 0.891),
    }
    study = VSBC(np.stack([ranks(c) for c in columns.values()], 1), tuple(columns), 99, np.full(100, np.nan), seed=4)
    expected = ("calibrated", "too low", "too high", "too narrow", "too wide", "too low and too narrow", "misshapen")
    assert study.verdicts == expected == tuple(study.table.verdict.values)
    assert study.table.quantity.values.tolist() == list(columns)
    assert study.table.attrs == {"simulations": 100, "draws": 99, "alpha": 0.05, "seed": 4}
    lines = str(study).splitlines()
    assert lines[0].startswith("100 simulations, 99 draws each; 14 tests, level 0.05 together")
    assert len(lines) == 2 + 7 and lines[-1].startswith("even") and lines[-1].endswith("calibrated")
    assert all(
        any(line.startswith(n) and line.endswith(v) for line in lines) for n, v in zip(columns, expected, strict=True)
    )


def test_long_tables_are_cut():
    ranks = uniform_ranks(50, 9, 30)
    ranks[:, 25] = 9
    lines = str(result(ranks, 9)).splitlines()
    assert len(lines) == 2 + 20 + 1 and lines[2].startswith("q25") and lines[-1] == "and 10 more, 0 of them flagged"


def test_width_of_even_ranks_is_one():
    study = result(np.tile(np.arange(4), 500)[:, None], 3)
    assert study.width[0] == pytest.approx(2000 / 1999) and study.bias[0] == pytest.approx(0.0)


# Errors


class Undefined(Trace_ELBO):
    def differentiable_loss(self, model, guide, *args):
        return super().differentiable_loss(model, guide, *args) * math.nan


class Steep(Trace_ELBO):
    """Finite, with a gradient that is not."""

    def differentiable_loss(self, model, guide, *args):
        return (guide(*args)["mu"] * 0.0).sqrt()


def unobserved(y):
    pyro.sample("mu", dist.Normal(0.0, 1.0))


def with_factor(y):
    one_datum(y)
    pyro.factor("extra", torch.tensor(-1.0))


def scaled(y):
    with poutine.scale(scale=0.5):
        one_datum(y)


def other_site(_):
    return lambda _: pyro.sample("nu", dist.Normal(0.0, 1.0))


def other_shape(_):
    return lambda _: pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def half(conditioned):
    return lambda _: pyro.sample("mu", dist.Normal(conditioned.observations["y"] / 2, 0.5**0.5))


BAD = {
    "simulations": (dict(simulations=19), OptionError, "at least 20 simulations.* got 19"),
    "draws": (dict(draws=0), OptionError, "draws to be a positive integer; got 0"),
    "steps": (dict(steps=0), OptionError, "steps to be a positive integer"),
    "processes": (dict(processes=0), OptionError, "processes to be a positive integer"),
    "alpha": (dict(alpha=1.0), OptionError, "alpha between 0 and 1; got 1.0"),
    "learning rate": (dict(learning_rate=0.0), OptionError, "learning_rate to be positive; got 0.0"),
    "seed": (dict(seed=-1), OptionError, "seed to be an integer, 0 or more; got -1"),
    "model": (dict(model=3), OptionError, "model to be callable; got 3"),
    "builder": (dict(make_guide=3), OptionError, "make_guide to be callable; got 3"),
    "functional": (dict(functionals={"f": 3}), OptionError, "f to be callable; got 3"),
    "no guide": (dict(make_guide=lambda m: 3), SymmetryError, "return a guide, a callable; got 3"),
    "vector": (dict(functionals={"f": lambda s: torch.ones(2)}), OptionError, r"'f' to return a number; .* \(2,\)"),
    "taken": (dict(functionals={"mu": lambda s: 0.0}), OptionError, "names of their own; 'mu'"),
    "nan": (dict(functionals={"f": lambda s: math.nan}), DataError, r"Simulation 0, of seed \d+: .* 'f' .* NaN"),
    "loss": (dict(make_guide=AutoNormal, loss=Undefined()), DataError, r"Simulation 0, of seed \d+: .* loss nan"),
    "gradient": (dict(make_guide=AutoNormal, loss=Steep()), DataError, r"of seed \d+: .* gradient; got the loss 0.0"),
    "unobserved": (dict(model=unobserved), SymmetryError, "observes a site"),
    "factor": (dict(model=with_factor), SymmetryError, "'extra' is a pyro.factor"),
    "scaled": (dict(model=scaled), SymmetryError, "'mu' is scaled"),
    "other site": (dict(make_guide=other_site), SymmetryError, "draw 'mu' .* got no such site"),
    "other shape": (dict(make_guide=other_shape), SymmetryError, r"draw 'mu' .* shape \(\); got \(2,\)"),
    "sites": (dict(sites=["nu"]), OptionError, "continuous latent sites, 'mu'; got 'nu'"),
    "nothing": (dict(sites=[]), SymmetryError, "to be ranked; got none"),
    "constant": (dict(sites=[], functionals={"f": lambda s: 0.0}), SymmetryError, "'f' never do"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    options, error, match = BAD[name]
    options = {"model": one_datum, "make_guide": half, "simulations": 20, "draws": 2, "steps": 2} | options
    model, make_guide = options.pop("model"), options.pop("make_guide")
    with pytest.raises(error, match=match) as caught:
        vsbc(model, make_guide, torch.tensor(0.0), **options)
    assert "\n" not in str(caught.value)


def test_other_errors_name_the_simulation():
    def broken(_):
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck") as caught:
        vsbc(one_datum, broken, torch.tensor(0.0))
    assert any("In simulation 0, of seed" in note for note in caught.value.__notes__)


def test_changing_quantities():
    def growing(y):
        size = 1 + int(pyro.sample("size", dist.Poisson(2.0)))
        pyro.sample("mu", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    def guide(conditioned):
        return lambda y: pyro.sample("mu", dist.Normal(0.0, 1.0).expand([conditioned.size]).to_event(1))

    def make(conditioned):
        size = len(poutine.trace(growing).get_trace(torch.tensor(0.0)).nodes["mu"]["value"])
        return lambda y: pyro.sample("mu", dist.Normal(0.0, 1.0).expand([size]).to_event(1))

    with pytest.raises(SymmetryError, match="guide to draw 'mu'"):
        vsbc(growing, make, torch.tensor(0.0), simulations=20, draws=1)
    names = [("a",), ("a", "b")]
    rows = [calibration._Ranked(n, np.zeros(len(n), int), np.ones(len(n), bool), 0.0) for n in names]
    with pytest.raises(SymmetryError, match="the first has 1, number 1 2"):
        calibration._gathered(rows, 9, 0.05, 0)


def test_conditioned_model_passes_its_arguments():
    given = ConditionedModel(lambda a, b=1: pyro.sample("y", dist.Normal(0.0, 1.0)) * a * b, {"y": torch.tensor(2.0)})
    assert given(3.0, b=2.0) == 12.0


def test_a_training_that_does_not_reach_its_end_is_named():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 100.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    options = dict(simulations=20, draws=9, seed=1)
    short = vsbc(model, AutoNormal, torch.tensor(0.0), steps=200, learning_rate=0.02, **options)
    assert short.falling.sum() >= 18 and f"still falling half way in {short.falling.sum()} of 20" in str(short)
    enough = vsbc(model, AutoNormal, torch.tensor(0.0), steps=400, learning_rate=2.0, **options)
    assert enough.falling.sum() <= 2


def test_noise_is_no_fall():
    rng = np.random.default_rng(0)
    assert sum(calibration._is_falling(rng.normal(size=500).tolist()) for _ in range(400)) <= 2
    assert all(calibration._is_falling((rng.normal(size=500) - np.linspace(0, 25, 500)).tolist()) for _ in range(20))
    assert not calibration._is_falling([]) and not calibration._is_falling([3.0, 2.0, 1.0])
