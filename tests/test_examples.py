"""Three of Pyro's own example models, their guide swapped and nothing else."""

from functools import cache

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal

import pyro_equivariance as pe

STEPS = 200
EXACT = 1e-9
TIMES = 4.0  # how far from Pyro's guide, in distances of that from itself with another seed


def schools(sigma, y=None):
    """Eight schools, not centred."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(sigma)):
        theta = pyro.deterministic("theta", mu + tau * pyro.sample("eta", dist.Normal(0.0, 1.0)))
        return pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def logistic(x, y=None):
    """Logistic regression."""
    coefs = pyro.sample("coefs", dist.Normal(torch.zeros(x.shape[-1]), 1.0).to_event(1))
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Bernoulli(logits=(x @ coefs[..., None])[..., 0] + intercept), obs=y)


def groups(index, y=None):
    """A mean for each of six groups, whose spread is learned."""
    mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    spread = pyro.sample("spread", dist.LogNormal(0.0, 1.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("groups", 6):
        effect = pyro.sample("effect", dist.Normal(mean, spread))
    with pyro.plate("data", len(index)):
        return pyro.sample("y", dist.Normal(effect[..., index], noise), obs=y)


def data(model):
    """The model's inputs and observations."""
    if model is schools:
        scales = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
        return scales, torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    if model is logistic:
        x = torch.randn(100, 3)
        return x, dist.Bernoulli(logits=x @ torch.tensor([1.0, -1.0, 0.5]) + 0.3).sample()
    index = torch.arange(60) % 6
    return index, 1.0 + torch.randn(6)[index] + 0.5 * torch.randn(60)


def symmetry(model):
    """One that moves nothing: a representation for each site, scalars in a plate included."""
    group = pe.SignGroup()
    shapes = {
        schools: {"mu": (), "tau": (), "eta": ()},
        logistic: {"coefs": (3,), "intercept": ()},
        groups: {"mean": (), "spread": (), "noise": (), "effect": ()},
    }[model]
    return pe.Symmetry(group, {site: pe.trivial(group, shape) for site, shape in shapes.items()})


GUIDES = {
    "AutoNormal": AutoNormal,
    "AutoDiagonalNormal": AutoDiagonalNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
    "AutoMeanFieldNormal": pe.AutoMeanFieldNormal,
    "AutoSymmetricNormal": lambda model: pe.AutoSymmetricNormal(model, symmetry(model)),
    "AutoSymmetricMultivariateNormal": lambda model: pe.AutoSymmetricMultivariateNormal(model, symmetry(model)),
    "AutoOrbitMixture": lambda model: pe.AutoOrbitMixture(model, symmetry(model)),
}
# Pyro's guide of the same family, there being nothing to average.
PYROS = {
    "AutoMeanFieldNormal": "AutoNormal",
    "AutoSymmetricNormal": "AutoNormal",
    "AutoSymmetricMultivariateNormal": "AutoMultivariateNormal",
    "AutoOrbitMixture": "AutoDiagonalNormal",
}


@cache
def run(model, kind, seed=0):
    """The losses of training, and the trained guide."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    args = data(model)
    guide = GUIDES[kind](model)
    pyro.set_rng_seed(seed)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.05 ** (1 / STEPS)}), Trace_ELBO())
    return torch.tensor([svi.step(*args) for _ in range(STEPS)]), guide


def distance(guide, other):
    """Of the medians of all sites, in units of the second guide's standard deviations, rms over the entries."""
    low, middle, high = (other.quantiles([level]) for level in (0.16, 0.5, 0.84))
    ours = guide.median()
    far = [(ours[name] - middle[name][0]) / (high[name] - low[name])[0] * 2 for name in ours]
    return float(torch.cat([t.detach().flatten() for t in far]).square().mean().sqrt())


@pytest.mark.parametrize("kind", PYROS)
@pytest.mark.parametrize("model", [schools, logistic, groups], ids=lambda model: model.__name__)
class TestSwapped:
    def test_the_loss_falls(self, model, kind):
        losses, _ = run(model, kind)
        assert losses[-50:].mean() < losses[:10].mean()

    @pytest.mark.parametrize("parallel", [False, True])
    def test_predicts(self, model, kind, parallel):
        def shapes(guide):
            drawn = Predictive(model, guide=guide, num_samples=5, parallel=parallel)(data(model)[0])
            return {name: value.shape for name, value in drawn.items()}

        assert shapes(run(model, kind)[1]) == shapes(run(model, PYROS[kind])[1])

    def test_agrees_with_pyros(self, model, kind):
        """With the same seed the draws are the same, step for step; a mixture also draws which copy it is."""
        pyros, tolerance = run(model, PYROS[kind])[1], EXACT
        if kind == "AutoOrbitMixture":
            tolerance = TIMES * distance(run(model, PYROS[kind], seed=1)[1], pyros)
        assert distance(run(model, kind)[1], pyros) < tolerance
