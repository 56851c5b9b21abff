"""The log density of a guide at given values: closed forms, its own trace, quadrature, and what has none."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import autoguide
from torch import Tensor

import pyro_equivariance as pe
from pyro_equivariance.errors import SymmetryError
from pyro_equivariance.guides import GuideDensity, guide_log_density


def every_kind_of_site():
    """Real, positive, in an interval, on a simplex, a Cholesky factor; in a plate and outside; one name with a dot."""
    pyro.sample("real", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("a.positive", dist.Gamma(2.0, 1.0))
    with pyro.plate("plate", 4):
        pyro.sample("interval", dist.Beta(2.0, 3.0))
        pyro.sample("simplex", dist.Dirichlet(torch.ones(3)))
    pyro.sample("factor", dist.LKJCholesky(3, 1.0))


def exchangeable():
    with pyro.plate("plate", 4):
        pyro.sample("interval", dist.Beta(2.0, 3.0))
        pyro.sample("real", dist.Normal(0.0, 1.0))
    pyro.sample("simplex", dist.Dirichlet(torch.ones(4)))


def permuted_plate():
    with pyro.plate("plate", 4):
        pyro.sample("interval", dist.Beta(2.0, 3.0))
        pyro.sample("real", dist.Normal(0.0, 1.0))


def permutations():
    group = pe.SymmetricGroup(4)
    return pe.Symmetry(group, {name: pe.permutation(group) for name in ("interval", "real", "simplex")})


def chain():
    """By hand: a plate, a scale, a site whose law depends on the one before, one of classes."""
    loc = pyro.param("loc", torch.tensor([0.5, -1.0, 2.0]))
    with pyro.plate("plate", 3), poutine.scale(scale=2.5):
        a = pyro.sample("a", dist.Normal(loc, 0.7))
    b = pyro.sample("b", dist.LogNormal(a.sum(), 0.3))
    pyro.sample("c", dist.Categorical(logits=torch.stack([b, a[0], -b])))


def in_parts():
    guide = autoguide.AutoGuideList(every_kind_of_site)
    guide.append(autoguide.AutoDiagonalNormal(poutine.block(every_kind_of_site, expose=["interval", "simplex"])))
    guide.append(autoguide.AutoNormal(poutine.block(every_kind_of_site, expose=["a.positive"])))
    guide.append(pe.AutoMeanFieldNormal(poutine.block(every_kind_of_site, expose=["real"])))
    law = dist.LKJCholesky(3, 2.0)
    guide.append(lambda: {"factor": pyro.sample("factor", law)})
    return guide


def fitted_laplace():
    guide = autoguide.AutoLaplaceApproximation(every_kind_of_site)
    guide()
    return guide.laplace_approximation()


def network():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    return pe.BayesianNetwork(net), pe.network_symmetry(net, pe.CyclicGroup(4), (1, 3, 3))


def invariant_simplex():
    group = permutations().group
    return pe.Symmetry(group, dict(permutations().sites) | {"simplex": pe.trivial(group, (4,))})


OF_PYRO = (
    "AutoNormal", "AutoDiagonalNormal", "AutoMultivariateNormal", "AutoLowRankMultivariateNormal", "AutoIAFNormal",
    "AutoNormalMessenger",
)  # fmt: skip

GUIDES = {
    **{name: lambda name=name: getattr(autoguide, name)(every_kind_of_site) for name in OF_PYRO},
    "AutoLaplaceApproximation, fitted": fitted_laplace,
    "AutoGuideList": in_parts,
    "by hand": lambda: chain,
    "under a scale": lambda: poutine.scale(autoguide.AutoNormal(every_kind_of_site), 0.5),
    "AutoMeanFieldNormal": lambda: pe.AutoMeanFieldNormal(every_kind_of_site),
    "AutoSymmetricNormal": lambda: pe.AutoSymmetricNormal(exchangeable, invariant_simplex()),
    "AutoSymmetric": lambda: pe.AutoSymmetric(
        exchangeable, permutations(), families={"interval": "beta", "simplex": "dirichlet"}
    ),
    "AutoSymmetricMultivariateNormal": lambda: pe.AutoSymmetricMultivariateNormal(exchangeable, permutations()),
    "AutoSymmetricLowRankMultivariateNormal": lambda: pe.AutoSymmetricLowRankMultivariateNormal(
        permuted_plate, permutations()
    ),
    **{
        f"AutoOrbitMixture, {base}": lambda base=base: pe.AutoOrbitMixture(exchangeable, permutations(), base=base)
        for base in ("diagonal", "full", "low_rank")
    },
    "SymmetrizedGuide": lambda: pe.SymmetrizedGuide(autoguide.AutoNormal(permuted_plate), permutations()),
    "SymmetrizedGuide of a messenger": lambda: pe.SymmetrizedGuide(
        autoguide.AutoNormalMessenger(permuted_plate), permutations()
    ),
    "symmetrize": lambda: pe.handlers.symmetrize(autoguide.AutoNormal(permuted_plate), permutations()),
    "antithetic": lambda: pe.handlers.antithetic(pe.AutoMeanFieldNormal(permuted_plate), permutations()),
}


def latents(trace) -> dict[str, Tensor]:
    return {n: site["value"] for n, site in trace.nodes.items() if n != "plate" and is_latent(site)}


def is_latent(site) -> bool:
    return site["type"] == "sample" and not site["is_observed"] and not site["infer"].get("is_auxiliary")


def randomised(guide, *args, by=0.1):
    """The guide with parameters moved at random, from 0 and 1 and from one another."""
    guide(*args)
    with pyro.poutine.trace(param_only=True) as capture:
        guide(*args)
    with torch.no_grad():
        for site in capture.trace.nodes.values():
            leaf = site["value"].unconstrained() if hasattr(site["value"], "unconstrained") else site["value"]
            leaf.add_(by * torch.randn_like(leaf))
    return guide


def log_density_of_trace(trace) -> float:
    trace.compute_log_prob()
    sites = [site for site in trace.nodes.values() if site["type"] == "sample" and not site["is_observed"]]
    return float(sum(site["log_prob_sum"] for site in sites).detach())


# The guide's own trace


@pytest.mark.parametrize("kind", GUIDES)
def test_at_the_guides_own_draws(kind):
    """The trace of a draw, which knows the auxiliary values, has the same density as its latent values alone."""
    guide = randomised(GUIDES[kind]())
    log_q = GuideDensity(guide)
    seen = set()
    for _ in range(4):
        trace = poutine.trace(guide).get_trace()
        expected = log_density_of_trace(trace)
        assert float(log_q(latents(trace))) == pytest.approx(expected, rel=1e-9, abs=1e-7)
        seen.add(expected)
    assert len(seen) == 4


@pytest.mark.parametrize("kind", ["AutoMeanFieldNormal", "AutoSymmetricNormal", "AutoOrbitMixture", "AutoNormal"])
def test_of_a_networks_weights(kind):
    model, symmetry = network()
    data = torch.randn(5, 1, 3, 3), torch.arange(5) % 2
    guide = randomised({
        "AutoMeanFieldNormal": lambda: pe.AutoMeanFieldNormal(model),
        "AutoSymmetricNormal": lambda: pe.AutoSymmetricNormal(model, symmetry),
        "AutoOrbitMixture": lambda: pe.AutoOrbitMixture(model, symmetry),
        "AutoNormal": lambda: autoguide.AutoNormal(model),
    }[kind](), *data)  # fmt: skip
    trace = poutine.trace(guide).get_trace(*data)
    expected = log_density_of_trace(trace)
    values = latents(trace)
    assert float(guide_log_density(guide, values, *data)) == pytest.approx(expected, rel=1e-12)
    moved = guide_log_density(guide, symmetry.act(1, values), *data)
    assert (float(moved) == pytest.approx(expected, rel=1e-9)) == kind.startswith(("AutoSymmetric", "AutoOrbit"))


# Closed forms


def one_site(prior):
    def model():
        pyro.sample("z", prior)

    return model


LOC, SCALE = torch.tensor([[0.3, -0.2], [0.5, 1.5]], dtype=torch.float64)


def set_parameters(guide, loc=LOC, scale=SCALE):
    """``loc`` and ``scale`` of a guide with a Normal by site."""
    guide()
    guide.locs.z, guide.scales.z = loc, scale
    return guide


@pytest.mark.parametrize("build", [autoguide.AutoNormal, pe.AutoMeanFieldNormal], ids=lambda build: build.__name__)
@pytest.mark.parametrize(
    "prior, inverse, slope, value",
    [
        (dist.Normal(LOC, 2.0), lambda x: x, torch.ones_like, [0.7, -3.0]),
        (dist.Gamma(SCALE, 1.0), torch.log, lambda x: x, [0.7, 3.0]),
        (dist.Beta(SCALE, 1.0), torch.logit, lambda x: x * (1 - x), [0.7, 0.01]),
    ],
    ids=["real", "positive", "interval"],
)
def test_mean_field_in_closed_form(build, prior, inverse, slope, value):
    """A Normal at ``u`` over the slope of ``x(u)``."""
    guide, x = set_parameters(build(one_site(prior.to_event(1)))), torch.tensor(value)
    normal = torch.exp(-0.5 * ((inverse(x) - LOC) / SCALE) ** 2) / (SCALE * math.sqrt(2 * math.pi))
    expected = (normal / slope(x)).log().sum()
    assert float(guide_log_density(guide, {"z": x})) == pytest.approx(float(expected), rel=1e-12)


def test_correlated_in_closed_form():
    guide = autoguide.AutoMultivariateNormal(one_site(dist.LogNormal(LOC, 1.0).to_event(1)))
    guide()
    unit = torch.tensor([[1.0, 0.0], [0.8, 1.0]])
    guide.loc, guide.scale, guide.scale_tril = torch.nn.Parameter(LOC), SCALE, unit
    tril = SCALE[:, None] * unit
    value = torch.tensor([0.7, 3.0])
    normal = torch.distributions.MultivariateNormal(LOC, tril @ tril.mT)
    expected = normal.log_prob(value.log()) - value.log().sum()
    assert float(guide_log_density(guide, {"z": value})) == pytest.approx(float(expected), rel=1e-12)


def test_symmetric_and_correlated_in_closed_form():
    """Each site's conditional is evaluated at the values of the sites before."""
    guide = randomised(pe.AutoSymmetricMultivariateNormal(permuted_plate, permutations()), by=0.5)
    values = {"interval": torch.tensor([0.1, 0.2, 0.3, 0.9]), "real": torch.tensor([0.5, -1.0, 0.0, 2.0])}
    x = values["interval"]
    vector = torch.cat([x.logit(), values["real"]])
    expected = guide.get_posterior().log_prob(vector) - (x.log() + (1 - x).log()).sum()
    assert float(guide_log_density(guide, values)) == pytest.approx(float(expected.detach()), rel=1e-12)


def test_by_hand_in_closed_form():
    """Scale and plate count as in the guide; the second and third laws depend on the values that were given."""
    values = {"a": torch.tensor([0.1, 0.2, 0.3]), "b": torch.tensor(1.7), "c": torch.tensor(2)}
    first = dist.Normal(torch.tensor([0.5, -1.0, 2.0]), 0.7).log_prob(values["a"]).sum()
    second = dist.LogNormal(0.6, 0.3).log_prob(values["b"])
    third = torch.tensor([1.7, 0.1, -1.7]).log_softmax(0)[2]
    assert float(guide_log_density(chain, values)) == pytest.approx(float(2.5 * first + second + third), rel=1e-12)


def test_of_shares_in_closed_form():
    guide = pe.AutoSymmetric(exchangeable, permutations(), families={"interval": "beta", "simplex": "dirichlet"})
    trace = poutine.trace(randomised(guide)).get_trace()
    values = latents(trace) | {"simplex": torch.tensor([0.1, 0.2, 0.3, 0.4])}
    moved = values | {"simplex": torch.tensor([0.25, 0.25, 0.25, 0.25])}
    law = torch.distributions.Dirichlet(guide.get_posterior("simplex").concentration.detach())
    expected = law.log_prob(values["simplex"]) - law.log_prob(moved["simplex"])
    assert float(guide_log_density(guide, values) - guide_log_density(guide, moved)) == pytest.approx(float(expected))


def test_the_orbit_mixture_is_the_mean_over_the_group():
    guide = randomised(pe.AutoOrbitMixture(permuted_plate, permutations()), by=0.7)
    values = {"interval": torch.tensor([0.1, 0.2, 0.3, 0.9]), "real": torch.tensor([0.5, -1.0, 0.0, 2.0])}
    group, base, x = permutations().group, guide.get_base(), values["interval"]
    both = torch.stack([x.logit(), values["real"]])
    copies = torch.stack([pe.permutation(group).act(g, both).flatten() for g in group.elements])
    mean = base.log_prob(copies).logsumexp(0) - math.log(len(group)) - (x.log() + (1 - x).log()).sum()
    log_q = GuideDensity(guide)
    assert float(log_q(values)) == pytest.approx(float(mean.detach()), rel=1e-12)
    assert float(log_q(permutations().act(7, values))) == pytest.approx(float(mean.detach()), rel=1e-12)


# It is a density


SUPPORTS = {
    "positive": (dist.Gamma(2.0, 1.0), lambda t: (t / (1 - t), (1 - t) ** -2)),
    "interval": (dist.Uniform(0.0, 1.0), lambda t: (t, torch.ones_like(t))),
    "simplex": (dist.Dirichlet(torch.ones(2)), lambda t: (torch.stack([t, 1 - t], -1), torch.ones_like(t))),
}
ONE_SITE = {
    "AutoNormal": autoguide.AutoNormal,
    "AutoDiagonalNormal": autoguide.AutoDiagonalNormal,
    "AutoMeanFieldNormal": pe.AutoMeanFieldNormal,
    "AutoOrbitMixture": lambda model: pe.AutoOrbitMixture(model, trivial_on(model)),
    "AutoSymmetricMultivariateNormal": lambda model: pe.AutoSymmetricMultivariateNormal(model, trivial_on(model)),
}


def trivial_on(model):
    shape = poutine.trace(model).get_trace().nodes["z"]["value"].shape
    return pe.Symmetry(pe.SignGroup(), {"z": pe.trivial(pe.SignGroup(), tuple(shape))})


@pytest.mark.parametrize("kind", ONE_SITE)
@pytest.mark.parametrize("support", SUPPORTS)
def test_it_integrates_to_one(support, kind):
    """By the midpoint rule over the support, on which the density vanishes at both ends."""
    prior, at = SUPPORTS[support]
    guide = randomised(ONE_SITE[kind](one_site(prior)), by=0.3)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.5)  # wide enough for the grid
    log_q = GuideDensity(guide)
    count = 400
    values, weights = at((torch.arange(count) + 0.5) / count)
    densities = torch.stack([log_q({"z": value}) for value in values]).exp()
    assert float((densities * weights).mean()) == pytest.approx(1.0, abs=2e-4)


# What is taken into account


def test_parameters_are_those_of_the_call():
    guide = set_parameters(pe.AutoMeanFieldNormal(one_site(dist.Normal(LOC, 2.0).to_event(1))))
    log_q = GuideDensity(guide)
    before = float(log_q({"z": LOC}))
    guide.scales.z = 2 * SCALE
    assert float(log_q({"z": LOC})) == pytest.approx(before - 2 * math.log(2), rel=1e-12)


def test_a_guide_that_depends_on_data():
    def guide(x):
        pyro.sample("z", dist.Normal(x.mean(), 2.0))

    expected = dist.Normal(1.5, 2.0).log_prob(torch.tensor(0.2))
    assert float(guide_log_density(guide, {"z": torch.tensor(0.2)}, torch.tensor([1.0, 2.0]))) == pytest.approx(
        float(expected), rel=1e-12
    )


@pytest.mark.parametrize("build", [autoguide.AutoNormal, pe.AutoMeanFieldNormal], ids=lambda build: build.__name__)
def test_a_subsampled_plate(build):
    """The density of these rows, scaled to all of them."""

    def model():
        with pyro.plate("rows", 6, subsample_size=2):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    guide = build(model)
    guide()
    loc, scale = torch.arange(6.0), torch.arange(1.0, 7.0)
    guide.locs.z, guide.scales.z = loc, scale
    values, rows = torch.tensor([0.5, -0.5]), torch.tensor([4, 1])
    expected = 3 * dist.Normal(loc[rows], scale[rows]).log_prob(values).sum()
    assert float(guide_log_density(guide, {"z": values, "rows": rows})) == pytest.approx(float(expected), rel=1e-12)
    with pytest.raises(
        SymmetryError, match="indices of every subsampled plate of the guide, 'rows', 'z'; .*'rows'.* missing"
    ):
        guide_log_density(guide, {"z": values})


def test_a_factor_counts():
    def guide():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("weight", -(z**2), has_rsample=True)

    expected = float(dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.4))) - 0.16
    assert float(guide_log_density(guide, {"z": torch.tensor(0.4)})) == pytest.approx(expected, rel=1e-12)


def test_what_the_model_of_a_messenger_observes_does_not_count():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 0.1), obs=torch.tensor(3.0))

    guide = autoguide.AutoNormalMessenger(model, init_scale=0.5)
    guide()
    expected = dist.Normal(guide.locs.z.detach(), 0.5).log_prob(torch.tensor(0.4))
    assert float(guide_log_density(guide, {"z": torch.tensor(0.4)})) == pytest.approx(float(expected), rel=1e-12)


def test_outside_of_its_mass():
    def guide():
        pyro.sample("a", dist.Uniform(0.0, 1.0))
        pyro.sample("b", dist.Gamma(2.0, 1.0))

    inside, outside = torch.tensor(0.5), torch.tensor(-0.5)
    assert float(guide_log_density(guide, {"a": inside, "b": inside})) == pytest.approx(math.log(0.5) - 0.5, rel=1e-12)
    assert float(guide_log_density(guide, {"a": outside, "b": inside})) == -math.inf
    assert float(guide_log_density(guide, {"a": inside, "b": outside})) == -math.inf


def test_numbers_of_another_precision():
    """Arrays as ArviZ stores them."""
    torch.set_default_dtype(torch.float32)
    guide = pe.AutoSymmetricMultivariateNormal(permuted_plate, permutations())
    guide()
    values = {"interval": torch.tensor([0.1, 0.2, 0.3, 0.9]), "real": torch.tensor([0.5, -1.0, 0.0, 2.0])}
    arrays = {name: value.double().numpy() for name, value in values.items()}
    log_q = guide_log_density(guide, arrays)
    assert log_q.dtype == torch.float32
    assert float(log_q) == float(guide_log_density(guide, values))


def test_it_leaves_no_trace():
    """Neither in the random numbers, nor in the orbit of an antithetic guide, nor in handlers around the call."""
    guide = pe.handlers.antithetic(pe.AutoMeanFieldNormal(permuted_plate), permutations())
    guide()
    guide.restart()
    pyro.set_rng_seed(1)
    expected, next_number = [guide(), guide()], torch.rand(())
    pyro.set_rng_seed(1)
    guide.restart()
    first = guide()
    with poutine.trace() as around:
        value = guide_log_density(guide, {name: v.detach() for name, v in first.items()})
    second = guide()
    assert torch.equal(torch.rand(()), next_number)
    for before, after in zip(expected, (first, second), strict=True):
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert not around.trace.nodes
    assert not value.requires_grad


# What has no density


def through_an_auxiliary(transform):
    def guide():
        noise = pyro.sample("noise", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(transform(noise)))

    return guide


class Cubed(autoguide.AutoNormal):
    """Places its site by a transform that is not that of the support."""

    def forward(self):
        u = pyro.sample("z_unconstrained", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(u**3))


def cubed():
    guide = Cubed(one_site(dist.Normal(0.0, 1.0)))
    guide._setup_prototype()
    return guide


def fickle():
    """Draws another site each second run."""
    calls = []

    def guide():
        calls.append(None)
        pyro.sample("z" if len(calls) % 2 else "w", dist.Normal(0.0, 1.0))

    return guide


def planar():
    model = one_site(dist.Normal(torch.zeros(2), 1.0).to_event(1))
    return autoguide.AutoNormalizingFlow(model, lambda n: dist.transforms.planar(n))


NORMAL = one_site(dist.Normal(0.0, 1.0))
POSITIVE = one_site(dist.Gamma(2.0, 1.0))
HALF = {"z": torch.tensor(0.5)}
BAD = {
    "point mass": (lambda: autoguide.AutoDelta(NORMAL), HALF, "point mass on site 'z'"),
    "point mass by hand": (lambda: lambda: pyro.sample("z", dist.Delta(torch.tensor(0.5))), HALF, "point mass on site"),
    "Laplace, not yet fitted": (
        lambda: autoguide.AutoLaplaceApproximation(NORMAL), HALF, r"point mass until it is fitted.*\(\*args\)"
    ),
    "structured": (lambda: autoguide.AutoStructured(NORMAL), HALF, "auxiliary site 'z_aux' cannot be recovered"),
    "an auxiliary site by hand": (lambda: through_an_auxiliary(torch.exp), HALF, "'noise' cannot be recovered"),
    "another transform": (cubed, HALF, "site 'z' to follow from its auxiliary site by the transform of its support"),
    "a flow without inverse": (planar, {"z": torch.zeros(2)}, "with a density at any value"),
    "another site each run": (fickle, HALF, "same sites in every run; 'w'"),
    "a large group": (
        lambda: pe.AutoOrbitMixture(permuted_plate, permutations(), max_exact=23),
        {"interval": torch.full((4,), 0.5), "real": torch.zeros(4)}, "Expected the last draw of this mixture",
    ),
    "a site that is missing": (lambda: pe.AutoMeanFieldNormal(NORMAL), {}, r"guide, 'z'; \['z'\] missing"),
    "a site that is unknown": (
        lambda: pe.AutoMeanFieldNormal(NORMAL), HALF | {"w": torch.tensor(0.0)}, r"guide, 'z'; \['w'\] unknown"
    ),
    "many values at once": (
        lambda: pe.AutoMeanFieldNormal(NORMAL), {"z": torch.zeros(7)},
        r"shape \(\) at site 'z', one draw; got shape \(7,\)",
    ),
    "NaN": (lambda: pe.AutoMeanFieldNormal(NORMAL), {"z": torch.tensor(math.nan)}, "at site 'z', one draw; got NaN"),
    "outside of the support": (
        lambda: autoguide.AutoNormal(POSITIVE), {"z": torch.tensor(-0.5)}, "values of site 'z' in its support"
    ),
    "at the edge of the support": (
        lambda: autoguide.AutoNormal(POSITIVE), {"z": torch.tensor(0.0)}, "NaN, as at the edge of a support"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_has_no_density(case):
    build, values, match = BAD[case]
    with pytest.raises(SymmetryError, match=match) as error:
        guide_log_density(build(), values)
    assert "\n" not in str(error.value)
