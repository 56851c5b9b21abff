"""What the diagnostics say where the truth is known, and what they cost; as a program, time and memory of a call."""

import json
import math
import os
import resource
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoNormal

import pyro_equivariance as pe
from pyro_equivariance.diagnostics import groups_of

from .cases import one_thread
from .report import Column, Report, aim, gate

SEEDS = (0, 1, 2)
DRAWS = 4_000
Z_BOUND = 4.5  # of a standard error: one failure in 150,000
SECONDS, GIGABYTES = 20.0, 1.0
IMAGES, COST_DRAWS = 500, 200
EFFECTS = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
ERRORS = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])


def run() -> Report:
    """Conjugate models, eight schools, a bimodal target, calibration by simulation, cost."""
    report = Report("diagnostics", "ArviZ groups, k̂, coverage and simulation-based calibration against the truth")
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with one_thread(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _conjugate(report)
            _schools(report)
            _bimodal(report)
            _calibration(report)
    finally:
        torch.set_default_dtype(dtype)
    _cost(report)
    return report


class NormalNormal:
    """``μ ~ N(0, 4)``, ``y_n ~ N(μ, 1)``, with the exact posterior as the guide."""

    name = "Normal–Normal"
    y = torch.linspace(-1.0, 2.5, 12, dtype=torch.float64)
    variance = 1 / (1 / 4 + 12)
    loc = float(y.sum()) * variance
    prior, posterior = (0.0, 4.0), (loc, variance)
    predictive = (loc, variance + 1)

    @staticmethod
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    @classmethod
    def guide(cls, y):
        pyro.sample("mu", dist.Normal(torch.tensor(cls.loc), cls.variance**0.5))

    @classmethod
    def evidence(cls) -> float:
        covariance = torch.eye(12) + 4.0
        return float(dist.MultivariateNormal(torch.zeros(12), covariance).log_prob(cls.y))


class BetaBernoulli:
    """``p ~ Beta(2, 2)``, ``y_n ~ Bernoulli(p)``, with the exact posterior as the guide."""

    name = "Beta–Bernoulli"
    y = torch.tensor([1.0, 1, 0, 1, 1, 0, 1, 1, 1, 0], dtype=torch.float64)
    a, b = 2 + 7, 2 + 3
    prior, posterior = (0.5, 1 / 20), (9 / 14, 9 * 5 / 14**2 / 15)
    predictive = (9 / 14, 9 / 14 * 5 / 14)

    @staticmethod
    def model(y):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Bernoulli(p), obs=y)

    @classmethod
    def guide(cls, y):
        pyro.sample("p", dist.Beta(float(cls.a), float(cls.b)))

    @classmethod
    def evidence(cls) -> float:
        log_beta = lambda a, b: math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)  # noqa: E731
        return log_beta(cls.a, cls.b) - log_beta(2, 2)


def _conjugate(report: Report) -> None:
    table = report.table(
        "Conjugate models with the exact posterior as the guide",
        f"{DRAWS:,} draws, float64. evidence: the largest |lp − log_q − log p(y)| over the draws, which is 0 for an "
        "exact posterior whatever the draw; z: the largest distance from the exact mean and variance in standard "
        "errors, over the groups posterior, prior, posterior_predictive and prior_predictive (each datum of the last "
        f"two); loo: the same for the leave-one-out density of each datum. Both are bounded by {Z_BOUND}.",
        Column("case", "case", width=15),
        Column("seed", "seed", "d", 4),
        Column("evidence", "evidence", ".0e"),
        Column("z", "z", ".2f", 6),
        Column("loo", "loo", ".2f", 6),
        Column("verdict", "verdict", width=7),
    )
    for case in (NormalNormal, BetaBernoulli):
        for seed in SEEDS:
            groups = groups_of(pe.to_arviz(case.model, case.guide, case.y, draws=DRAWS, seed=seed))
            stats = groups["sample_stats"]
            evidence = float(abs(stats["lp"] - stats["log_q"] - case.evidence()).max())
            z = max(_distances(case, groups))
            loo = _leave_one_out(case, groups)
            table.add(case=case.name, seed=seed, evidence=evidence, z=z, loo=loo,
                      verdict=gate(evidence < 1e-9 and z < Z_BOUND and loo < Z_BOUND))  # fmt: skip


def _distances(case, groups):
    """Means and variances of each group, in standard errors from the truth."""
    latent = next(iter(groups["prior"]))
    prior_predictive = (case.prior[0], case.prior[1] + 1) if case is NormalNormal else (0.5, 0.25)
    truths = [("posterior", latent, case.posterior), ("prior", latent, case.prior),
              ("posterior_predictive", "y", case.predictive), ("prior_predictive", "y", prior_predictive)]  # fmt: skip
    for group, name, (mean, variance) in truths:
        values = groups[group][name].values[0].reshape(DRAWS, -1)
        squares = (values - mean) ** 2
        yield from abs(values.mean(0) - mean) / (variance / DRAWS) ** 0.5
        spread = squares.std(0)
        yield from abs(squares.mean(0) - variance)[spread > 0] / (spread[spread > 0] / DRAWS**0.5)


def _leave_one_out(case, groups) -> float:
    """The largest distance of 1 / E[1 / p(y_n | θ)] from the exact ``p(y_n | y_-n)``, in standard errors of its log."""
    inverse = np.exp(-groups["log_likelihood"]["y"].values[0])
    estimate = -np.log(inverse.mean(0))
    error = inverse.std(0) / inverse.mean(0) / DRAWS**0.5
    return float((abs(estimate - _left_out(case)) / error).max())


def _left_out(case) -> np.ndarray:
    y = case.y.numpy()
    if case is BetaBernoulli:
        a, b = 2 + y.sum() - y, 2 + (1 - y).sum() - (1 - y)
        return np.log(np.where(y == 1, a, b) / (a + b))
    variance = 1 / (1 / 4 + len(y) - 1)
    loc = (y.sum() - y) * variance
    return -0.5 * np.log(2 * np.pi * (1 + variance)) - 0.5 * (y - loc) ** 2 / (1 + variance)


def schools(effects, errors):
    """Eight schools, not centred (Rubin 1981)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(effects)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("effects", dist.Normal(theta, errors), obs=effects)


def _schools(report: Report) -> None:
    table = report.table(
        "Eight schools by two guides and NUTS, through one function",
        "posterior mean (standard deviation over draws) of μ, τ and the first school's θ; elpd: PSIS leave-one-out, "
        "nats, and its worst k̂. Guides: 3,000 steps of Adam, rate 0.02 falling to 0, seed 0, 4,000 draws; NUTS: 500 "
        "warm-up, 1,000 draws in one chain. Means are to be compared with NUTS's Monte Carlo error of 0.1 to 0.2: what "
        "is left is the mean-field family's.",
        Column("method", "method", width=20),
        Column("mu", "mu", width=13),
        Column("tau", "tau", width=13),
        Column("theta", "theta[0]", width=13),
        Column("elpd", "elpd", ".2f", 7),
        Column("k", "k̂", ".2f", 5),
    )
    data = (EFFECTS.double(), ERRORS.double())
    for method, source in _school_sources(data):
        idata = pe.to_arviz(schools, source, data, draws=DRAWS, seed=0, prior_draws=0)
        posterior = groups_of(idata)["posterior"]
        shown = {"mu": posterior["mu"], "tau": posterior["tau"], "theta": posterior["theta"][..., 0]}
        cells = {name: f"{float(v.mean()):.2f} ({float(v.std()):.2f})" for name, v in shown.items()}
        elpd, k = _psis_loo(groups_of(idata)["log_likelihood"]["effects"].values.reshape(-1, 8))
        table.add(method=method, **cells, elpd=elpd, k=k)


def _psis_loo(log_likelihood: np.ndarray) -> tuple[float, float]:
    from pyro_equivariance.diagnostics.base import ARVIZ

    weights, k = ARVIZ.smoothed(-log_likelihood.T)
    return float(np.log(np.exp(weights + log_likelihood.T).sum(-1)).sum()), float(k.max())


def _school_sources(data):
    for name, make in (("AutoMeanFieldNormal", pe.AutoMeanFieldNormal), ("AutoNormal", AutoNormal)):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        yield name, _descended(schools, make(schools), data, 3_000)
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(schools), num_samples=1_000, warmup_steps=500, disable_progbar=True)
    mcmc.run(*data)
    yield "NUTS", mcmc


FLIP = pe.Symmetry(
    pe.SignGroup(), {"z": pe.signed_permutation(pe.SignGroup(), [list(range(6))] * 2, [[1] * 6, [-1] * 6])}
)


def two_modes():
    """``½ N(+2·1, 0.4² I) + ½ N(−2·1, 0.4² I)`` in six dimensions, normalised: the log evidence is 0."""
    loc = torch.full((6,), 2.0)
    component = dist.Normal(torch.stack([loc, -loc]), 0.4).to_event(1)
    z = pyro.sample("z", dist.Normal(torch.zeros(6), 1.0).to_event(1).mask(False))
    pyro.factor("target", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), component).log_prob(z))
    pyro.sample("y", dist.Normal(0.0, 1.0).mask(False), obs=torch.tensor(0.0))


def _bimodal(report: Report) -> None:
    table = report.table(
        "A posterior with two modes: what k̂ sees, and what coverage sees",
        "½ N(+2·1, 0.4² I) + ½ N(−2·1, 0.4² I) in 6 dimensions, whose log evidence is 0; guides: a mean-field Normal, "
        f"and the orbit mixture of one under z → −z, 2,000 steps of Adam, rate 0.02 falling to 0; {DRAWS:,} draws. "
        "k̂: of the joint weights; below 0.7 it finds no fault. coverage: exp(−KL(q‖q^G)) ± standard error. ELBO: "
        "nats; −log 2 = −0.693 for one exact mode. verdict: k̂ < 0.7 and coverage within 0.01 of 1/2 or 1.",
        Column("guide", "guide", width=20),
        Column("seed", "seed", "d", 4),
        Column("k", "k̂", ".2f", 6),
        Column("coverage", "coverage", ".4f"),
        Column("se", "se", ".4f", 7),
        Column("elbo", "ELBO", ".3f", 8),
        Column("verdict", "verdict", width=7),
    )
    for name, make, truth in (("AutoMeanFieldNormal", pe.AutoMeanFieldNormal, 0.5),
                              ("AutoOrbitMixture", partial(pe.AutoOrbitMixture, symmetry=FLIP), 1.0)):  # fmt: skip
        for seed in SEEDS:
            pyro.clear_param_store()
            pyro.set_rng_seed(seed)
            result = _descended(two_modes, make(two_modes), (), 2_000, seed)
            found = pe.diagnose(result, two_modes, (), FLIP, draws=DRAWS, seed=seed)
            k, coverage = found["k_hat"].value, found["coverage"]
            table.add(guide=name, seed=seed, k=k, coverage=coverage.value, se=coverage.se, elbo=found["elbo"].value,
                      verdict=gate(k < 0.7 and abs(coverage.value - truth) < 0.01))  # fmt: skip


def _descended(model, guide, data, steps: int, seed: int = 0, particles: int = 4):
    """A guide after so many steps of Adam with 4 particles, its rate falling from 0.02 to 0 along a line."""
    optimizer = pyro.optim.LambdaLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.02},
                                     "lr_lambda": lambda step: 1 - step / steps})  # fmt: skip
    pyro.set_rng_seed(seed)
    svi = pyro.infer.SVI(model, guide, optimizer, pyro.infer.Trace_ELBO(num_particles=particles))
    for _ in range(steps):
        svi.step(*data)
        optimizer.step()
    return guide


STUDIES, SIMULATIONS, RANKS = 200, 200, 99


def normal_mean(y):
    """``μ ~ N(0, 1)``, ``y_n ~ N(μ, 1)``."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def posterior_mean(model, shift: float = 0.0, scale: float = 1.0):
    """The exact posterior of :func:`normal_mean`, or one off by so many standard deviations, or of another width."""
    y = model.observations["y"]
    variance = 1 / (1 + len(y))

    def guide(*args):
        pyro.sample("mu", dist.Normal(y.sum() * variance + shift * variance**0.5, scale * variance**0.5))

    return guide


def _calibration(report: Report) -> None:
    table = report.table(
        "Variational simulation-based calibration of a conjugate model",
        f"μ ~ N(0, 1), five y_n ~ N(μ, 1); {SIMULATIONS} simulations, {RANKS} draws each; p of the symmetry test "
        "(bias) and of the uniformity test (width), flagged at level 0.05 for both together (Holm); width: variance "
        "of the ranks over that of uniform ones. Guides: the exact posterior; the same shifted by half a standard "
        "deviation; with its scale halved; AutoNormal, trained.",
        Column("guide", "guide", width=14),
        Column("seed", "seed", "d", 4),
        Column("symmetry", "symmetry p", ".1e", 10),
        Column("uniformity", "uniformity p", ".1e", 12),
        Column("width", "width", ".2f", 6),
        Column("words", "says", width=22),
        Column("verdict", "verdict", width=7),
    )
    guides = {
        "exact": (posterior_mean, "calibrated"),
        "shifted": (partial(posterior_mean, shift=0.5), "too high"),
        "halved scale": (partial(posterior_mean, scale=0.5), "too narrow"),
        "AutoNormal": (AutoNormal, "calibrated"),
    }
    for name, (make, expected) in guides.items():
        for seed in SEEDS:
            found = pe.vsbc(normal_mean, make, torch.zeros(5), simulations=SIMULATIONS, draws=RANKS, steps=500,
                            seed=seed, processes=os.cpu_count() or 1, progress=False)  # fmt: skip
            p, u, words = float(found.symmetry[0]), float(found.uniformity[0]), found.verdicts[0]
            right = words.startswith(expected) if name != "halved scale" else words == expected and p > 0.025
            table.add(guide=name, seed=seed, symmetry=p, uniformity=u, width=float(found.width[0]), words=words,
                      verdict=aim(right))  # fmt: skip
    _false_alarms(report)


def _false_alarms(report: Report) -> None:
    simulations, draws, level = 50, 19, 0.05
    table = report.table(
        "How often an exact posterior is flagged",
        f"Studies of {simulations} simulations with {draws} draws each, seeds 0 to {STUDIES - 1}; rate: the fraction "
        f"that any test flags at level {level}, which bounds it; se: its binomial standard error at the bound.",
        Column("studies", "studies", "d"),
        Column("rate", "rate", ".3f", 6),
        Column("se", "se", ".3f", 6),
        Column("verdict", "verdict", width=7),
    )
    flagged = sum(
        not pe.vsbc(normal_mean, posterior_mean, torch.zeros(5), simulations=simulations, draws=draws, seed=seed,
                    progress=False).passes
        for seed in range(STUDIES)
    )  # fmt: skip
    error = (level * (1 - level) / STUDIES) ** 0.5
    table.add(studies=STUDIES, rate=flagged / STUDIES, se=error, verdict=gate(flagged / STUDIES < level + 3 * error))


def _cost(report: Report) -> None:
    table = report.table(
        "What ArviZ data of a network cost",
        f"to_arviz of the digits' network (compare's, width 32), {COST_DRAWS} draws, {IMAGES} images and their four "
        f"turned copies, every group, float32, a process of its own for each: seconds of the call (aim < {SECONDS:g}); "
        f"GB: peak memory of the whole process (aim < {GIGABYTES:g}); MB: size of the result.",
        Column("threads", "threads", "d", 7),
        Column("seconds", "seconds", ".1f", 8),
        Column("gigabytes", "GB", ".2f", 6),
        Column("megabytes", "MB", ".0f", 6),
        Column("verdict", "aims", width=6),
    )
    for threads in (1, 2):
        root = Path(__file__).parent.parent
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.diagnostics", str(threads)]
        row = json.loads(subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout)
        met = row["seconds"] < SECONDS and row["gigabytes"] < GIGABYTES
        table.add(threads=threads, **row, verdict=aim(met))


def _cost_of_one(threads: int) -> dict:
    torch.set_num_threads(threads)
    images = pe.data.load("digits")
    x, y = images.images[:IMAGES], images.labels[:IMAGES]
    net = pe.experiments.convolutional_network(x.shape[1:], images.classes, 32)
    symmetry = pe.network_symmetry(net, pe.CyclicGroup(4), x.shape[1:])
    model = pe.BayesianNetwork(net, size=1000)
    guide = pe.AutoSymmetricNormal(model, symmetry)
    guide.initialize(x, y)
    pe.diagnostics  # noqa: B018 - ArviZ is imported before the clock starts
    start = time.perf_counter()
    idata = pe.to_arviz(model, guide, (x, y), symmetry=symmetry, draws=COST_DRAWS)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "megabytes": sum(group.nbytes for group in groups_of(idata).values()) / 1e6,
    }


if __name__ == "__main__":
    print(json.dumps(_cost_of_one(int(sys.argv[1]))))
