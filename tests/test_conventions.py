"""How moved copies count, on linear regression, whose posterior is known: ``mean``, ``sum`` and ``predictive``."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import nn

import pyro_equivariance as pe
from pyro_equivariance.distributions import OrbitPredictive

NOISE, COUNT = 0.5, 8
SWAP = pe.SymmetricGroup(2)


def regression(size=None):
    """``y = θ·x + noise`` with the two inputs swapped, so that θ is swapped as well."""
    net = nn.Linear(2, 1, bias=False)
    model = pe.BayesianNetwork(net, prior=1.0, likelihood=pe.NormalLikelihood(NOISE), size=size)
    symmetry = pe.network_symmetry(net, SWAP, (2,), hidden="trivial", inputs=pe.permutation(SWAP))
    return model, symmetry


def data():
    x = torch.randn(COUNT, 2)
    return x, x @ torch.tensor([[1.2], [-0.7]]) + NOISE * torch.randn(COUNT, 1)


def gaussian(x, y, weight):
    """The conjugate posterior of rows that count ``weight`` times each: mean and covariance."""
    precision = torch.eye(2) + weight * x.T @ x / NOISE**2
    covariance = precision.inverse()
    return covariance @ (weight * x.T @ y[:, 0] / NOISE**2), covariance


def grid(points=161, reach=4.0):
    axis = torch.linspace(-reach, reach, points)
    return torch.cartesian_prod(axis, axis)


def log_joint(model, thetas, x, y):
    """Of the model as Pyro has it, for many θ at once."""
    conditioned = poutine.condition(model, {"weight": thetas[:, None, None, :]})
    trace = poutine.trace(conditioned).get_trace(x, y)
    trace.compute_log_prob()
    sites = [trace.nodes[name] for name in ("weight", "y")]
    return sites[0]["log_prob"][:, 0] * sites[0]["scale"] + sites[1]["log_prob"].sum(-1)


def moments(thetas, log_density):
    weights = (log_density - log_density.logsumexp(0)).exp()
    mean = weights @ thetas
    return mean, (weights[:, None] * (thetas - mean)).T @ (thetas - mean)


def by_hand(thetas, x, y):
    """``log (1/|G|) Σ_g p(y | ρ(g) x, θ)`` summed over the data, and the prior."""
    copies = torch.stack([x, x.flip(-1)])
    means = torch.einsum("gnd,td->tgn", copies, thetas)
    each = dist.Normal(means, NOISE).log_prob(y[:, 0]).logsumexp(1) - math.log(2)
    return each.sum(-1) + dist.Normal(0.0, 1.0).log_prob(thetas).sum(-1)


@pytest.mark.parametrize("likelihood", ["mean", "sum"])
def test_the_posterior_is_that_of_rows_counted_so(likelihood):
    (model, symmetry), (x, y), thetas = regression(), data(), grid()
    copies = torch.cat([x, x.flip(-1)]), torch.cat([y, y])
    expected = gaussian(*copies, weight=0.5 if likelihood == "mean" else 1.0)
    found = moments(thetas, log_joint(pe.handlers.augment(model, symmetry, likelihood=likelihood), thetas, x, y))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)
    other = gaussian(*copies, weight=1.0 if likelihood == "mean" else 0.5)
    assert (found[1] - other[1]).abs().max() > 1e-3


@pytest.mark.parametrize("size", [None, COUNT, 5 * COUNT])
def test_predictive_is_the_invariant_likelihood(size):
    (model, symmetry), (x, y), thetas = regression(size), data(), grid(41)
    augmented = pe.handlers.augment(model, symmetry, likelihood="predictive")
    prior = dist.Normal(0.0, 1.0).log_prob(thetas).sum(-1)
    expected = (by_hand(thetas, x, y) - prior) * (size or COUNT) / COUNT + prior
    torch.testing.assert_close(log_joint(augmented, thetas, x, y), expected)
    assert (log_joint(pe.handlers.augment(model, symmetry), thetas, x, y) - expected).abs().max() > 1


def test_every_draw_predicts_invariantly_under_predictive():
    """The likelihood of a datum is that of its moved copy, whatever the weights."""
    (model, symmetry), (x, y), thetas = regression(), data(), grid(5)
    augmented = pe.handlers.augment(model, symmetry, likelihood="predictive")
    torch.testing.assert_close(log_joint(augmented, thetas, x, y), log_joint(augmented, thetas, x.flip(-1), y))


@pytest.mark.parametrize("likelihood", ["mean", "sum"])
def test_variational_inference_finds_it(likelihood):
    """A full-covariance guide holds the exact posterior, so only the optimisation's noise is left."""
    (model, symmetry), (x, y) = regression(), data()
    mean, covariance = gaussian(torch.cat([x, x.flip(-1)]), torch.cat([y, y]), 0.5 if likelihood == "mean" else 1.0)
    guide = AutoMultivariateNormal(model)
    loss = Trace_ELBO(num_particles=64, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(pe.handlers.augment(model, symmetry, likelihood=likelihood), guide,
              pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.985}), loss)  # fmt: skip
    for _ in range(300):
        svi.step(x, y)
    found = guide.get_posterior()
    torch.testing.assert_close(found.mean.detach(), mean, rtol=0, atol=0.05 * float(covariance.diagonal().max().sqrt()))
    torch.testing.assert_close(found.covariance_matrix.detach(), covariance, rtol=0,
                               atol=0.1 * float(covariance.abs().max()))  # fmt: skip


def test_predictive_needs_the_full_orbit():
    model, symmetry = regression()
    with pytest.raises(pe.OptionError, match=r"orbit='full' with likelihood='predictive': .* biased"):
        pe.handlers.augment(model, symmetry, orbit="random", likelihood="predictive")


def test_predictive_needs_one_observation_per_datum():
    symmetry = pe.Symmetry(SWAP, {}, inputs=pe.permutation(SWAP))

    def two_sites(x, y):
        for name in ("a", "b"):
            with pyro.plate(f"{name} data", len(x)):
                pyro.sample(name, dist.Normal(x.sum(-1), 1.0), obs=y)

    def another_plate(x, y):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("columns", 3, dim=-1):
            pyro.sample("y", dist.Normal(x.sum(-1, keepdim=True), 1.0), obs=y.expand(len(x), 3))

    x = torch.randn(4, 2)
    with pytest.raises(pe.SymmetryError, match=r"one observation site .* 8 moved copies.*got 'a', 'b'"):
        pe.handlers.augment(two_sites, symmetry, likelihood="predictive")(x, x.sum(-1))
    with pytest.raises(pe.SymmetryError, match=r"batch shape \(8, 3\)\. Use to_event"):
        pe.handlers.augment(another_plate, symmetry, likelihood="predictive")(x, x.sum(-1, keepdim=True))


def test_the_distribution():
    base = dist.Normal(torch.randn(2, 6, 3), 1.0).to_event(1)
    q, value = OrbitPredictive(base, order=3), torch.randn(2, 6, 3)
    assert q.batch_shape == (2, 6) and q.event_shape == (3,)
    copies = base.log_prob(value).exp().reshape(2, 3, 2).mean(1).log()
    torch.testing.assert_close(q.log_prob(value), torch.cat([copies] * 3, -1))
    assert q.sample((5,)).shape == (5, 2, 6, 3) and q.has_rsample
    torch.testing.assert_close(q.expand((4, 2, 6)).log_prob(value)[2], q.log_prob(value))
