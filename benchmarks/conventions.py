"""How moved copies count in the likelihood, on a regression whose posterior is known."""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

import pyro_equivariance as pe

from .cases import one_thread
from .report import Column, Report, Table, gate

SEEDS = (0, 1, 2)
TRUTH, NOISE, COUNT = (1.2, -0.7), 0.5, 8
POINTS, REACH, BOUND = 101, 4.0, 1e-8
SWAP = pe.SymmetricGroup(2)
WEIGHTS = {"mean": 1 / len(SWAP), "sum": 1.0}  # of each moved copy, where the posterior has a closed form
CONVENTIONS = (*WEIGHTS, "predictive")


def run() -> Report:
    """The posterior under each convention, from the augmented model, against the truth."""
    report = Report("conventions", "what the conventions mean, sum and predictive make of a linear regression, float64")
    table = _table(report)
    with one_thread(), pyro.validation_enabled(False):
        for seed in SEEDS:
            _rows(table, seed)
    return report


def _table(report: Report) -> Table:
    return report.table(
        "Posterior of θ, of a model under pe.handlers.augment",
        f"y = θ·x + N(0, {NOISE}²), two inputs from N(0, 1), {COUNT} examples with θ = {TRUTH}, prior N(0, 1); the "
        f"group swaps the inputs, so θ is swapped as well. deviation: largest difference in the entries of mean and "
        f"covariance between the posterior of the augmented model, from its log joint on a grid of {POINTS} × "
        f"{POINTS} points in [−{REACH:g}, {REACH:g}]², and the truth (bound {BOUND:.0e}). truth: for mean the closed "
        f"form with every moved copy counting 1/|G| = 1/{len(SWAP)}, for sum that with every copy counting 1, for "
        f"predictive the same grid with Σ_n log (1/|G|) Σ_g p(y_n | g x_n, θ) written out by hand. θ₁, θ₂: posterior "
        f"mean; sd: posterior standard deviation of each, equal for both since the posterior is invariant; along, "
        f"across: those of (θ₁ + θ₂)/√2, which the swap keeps, and (θ₁ − θ₂)/√2, which it turns round: under "
        f"predictive θ and its swap are two modes, and across is about half their distance.",
        Column("seed", "seed", "d", 4),
        Column("convention", "convention", width=10),
        Column("deviation", "deviation", ".1e"),
        Column("mean_1", "θ₁", ".4f", 7),
        Column("mean_2", "θ₂", ".4f", 7),
        Column("sd", "sd", ".4f", 7),
        Column("along", "along", ".4f", 7),
        Column("across", "across", ".4f", 7),
        Column("verdict", "", width=4),
    )


def _rows(table: Table, seed: int) -> None:
    model, symmetry = regression()
    x, y = data(seed)
    thetas = grid()
    for convention in CONVENTIONS:
        augmented = pe.handlers.augment(model, symmetry, likelihood=convention)
        found = moments(thetas, log_joint(augmented, thetas, x, y))
        expected = truth(convention, thetas, x, y)
        deviation = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
        table.add(
            seed=seed, convention=convention, deviation=deviation, **summary(*found), verdict=gate(deviation <= BOUND)
        )


def regression() -> tuple[pe.BayesianNetwork, pe.Symmetry]:
    """The model with one weight per input, and the swap."""
    net = nn.Linear(2, 1, bias=False).double()
    model = pe.BayesianNetwork(net, prior=1.0, likelihood=pe.NormalLikelihood(NOISE))
    return model, pe.network_symmetry(net, SWAP, (2,), hidden="trivial", inputs=pe.permutation(SWAP))


def data(seed: int) -> tuple[Tensor, Tensor]:
    """Inputs ``(N, 2)`` and observations ``(N, 1)``."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(COUNT, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(COUNT, 1, generator=generator, dtype=torch.float64)
    return x, x @ torch.tensor(TRUTH, dtype=torch.float64)[:, None] + NOISE * noise


def grid() -> Tensor:
    """Values of θ, ``(T, 2)``."""
    axis = torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis)


def log_joint(model, thetas: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """``log p(θ, y)`` as Pyro scores the model, for all θ at once: ``(T,)``."""
    conditioned = poutine.condition(model, {"weight": thetas[:, None, None, :]})
    trace = poutine.trace(conditioned).get_trace(x, y)
    trace.compute_log_prob()
    prior, likelihood = (trace.nodes[name] for name in ("weight", "y"))
    return prior["log_prob"][:, 0] + likelihood["log_prob"].sum(-1)


def truth(convention: str, thetas: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance that the convention stands for."""
    if convention in WEIGHTS:
        return conjugate(torch.cat([x, x.flip(-1)]), torch.cat([y, y]), WEIGHTS[convention])
    return moments(thetas, invariant_log_joint(thetas, x, y))


def conjugate(x: Tensor, y: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """The Normal posterior of rows that count ``weight`` times each."""
    precision = torch.eye(2, dtype=x.dtype) + weight * x.T @ x / NOISE**2
    covariance = precision.inverse()
    return covariance @ (weight * x.T @ y[:, 0] / NOISE**2), covariance


def invariant_log_joint(thetas: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The prior and ``Σ_n log (1/2) (p(y_n | x_n, θ) + p(y_n | swapped x_n, θ))``."""
    each = [dist.Normal(thetas @ copies.T, NOISE).log_prob(y[:, 0]) for copies in (x, x.flip(-1))]
    likelihood = torch.logaddexp(*each) - math.log(2)
    return likelihood.sum(-1) + dist.Normal(0.0, 1.0).log_prob(thetas).sum(-1)


def moments(thetas: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a density known up to a factor on an even grid."""
    weights = log_density.softmax(0)
    mean = weights @ thetas
    centred = thetas - mean
    return mean, (weights[:, None] * centred).T @ centred


def summary(mean: Tensor, covariance: Tensor) -> dict[str, float]:
    """What a reader sees of a posterior."""
    along, across = (torch.tensor([1.0, sign], dtype=covariance.dtype) / math.sqrt(2) for sign in (1.0, -1.0))
    return {
        "mean_1": float(mean[0]),
        "mean_2": float(mean[1]),
        "sd": math.sqrt(covariance[0, 0]),
        "along": math.sqrt(along @ covariance @ along),
        "across": math.sqrt(across @ covariance @ across),
    }
