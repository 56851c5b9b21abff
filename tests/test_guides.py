"""The guides: what they draw, where they start, what they learn, and what stays invariant whatever they learn."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.transforms import biject_to
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import init_to_value
from torch import nn
from torch.distributions import kl_divergence

import pyro_equivariance as pe

RULES = ("geometric", "arithmetic", "projection")
GROUPS = {"C4": lambda: pe.CyclicGroup(4), "D4": lambda: pe.DihedralGroup(4)}
SIGMAS = 4.5  # of a computed standard error: one failure in 150,000


def rgb_net(width=8):
    """Two hidden layers on RGB images and a fully connected head."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.Tanh(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * width, 3),
    )  # fmt: skip


def rgb_data(count=2):
    return torch.randn(count, 3, 4, 4), torch.arange(count) % 3


def two_sites():
    pyro.sample("a", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
    pyro.sample("b.c", dist.Normal(torch.ones(4), 0.5).to_event(1))


def pair_symmetry():
    """Swaps the rows of ``a`` and the halves of ``b.c``."""
    group = pe.SymmetricGroup(2)
    rows = pe.permutation(group) * pe.trivial(group, 3)
    return pe.Symmetry(group, {"a": rows, "b.c": pe.permutation(group, [[0, 1, 2, 3], [2, 3, 0, 1]])})


GUIDES = {
    "mean field": lambda model, **options: pe.AutoMeanFieldNormal(model, **options),
    "symmetric": lambda model, **options: pe.AutoSymmetricNormal(model, pair_symmetry(), **options),
}
both = pytest.mark.parametrize("build", GUIDES.values(), ids=GUIDES)


def randomise(guide):
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.normal_()


def started(guide, *args):
    """The guide, initialised and with random parameters."""
    guide.initialize(*args)
    randomise(guide)
    return guide


def core(law):
    """The Normal behind a law."""
    while hasattr(law, "base_dist"):
        law = law.base_dist
    return law


# What is drawn


@both
def test_draws_have_the_sites_of_the_model(build):
    guide = build(two_sites)
    trace = poutine.trace(guide).get_trace()
    assert list(trace.stochastic_nodes) == ["a", "b.c"]
    draws = trace.nodes["_RETURN"]["value"]
    assert {site: draw.shape for site, draw in draws.items()} == {"a": (2, 3), "b.c": (4,)}
    for site, draw in draws.items():
        assert draw is trace.nodes[site]["value"]
        assert trace.nodes[site]["fn"].has_rsample
        assert not trace.nodes[site]["infer"].get("is_auxiliary")


@both
def test_sites_are_drawn_from_their_posterior(build):
    guide = started(build(two_sites))
    trace = poutine.trace(guide).get_trace()
    for site in ("a", "b.c"):
        law = guide.get_posterior(site)
        torch.testing.assert_close(trace.nodes[site]["fn"].mean, law.mean)
        torch.testing.assert_close(trace.nodes[site]["fn"].stddev, law.stddev)
    draws = torch.stack([guide()["a"] for _ in range(400)])
    law, se = guide.get_posterior("a"), draws.std(0) / 400**0.5
    assert ((draws.mean(0) - law.mean).abs() < SIGMAS * se).all()


@both
def test_without_data_the_loss_is_the_kl_and_has_no_spread(build):
    """Since sites are sampled directly, TraceMeanField_ELBO has their KL in closed form."""
    guide = started(build(two_sites))
    priors = {"a": dist.Normal(torch.zeros(2, 3), 1.0), "b.c": dist.Normal(torch.ones(4), 0.5)}
    expected = sum(float(kl_divergence(core(guide.get_posterior(s)), p).sum().detach()) for s, p in priors.items())
    losses = {float(TraceMeanField_ELBO().differentiable_loss(two_sites, guide).detach()) for _ in range(5)}
    assert len(losses) == 1
    assert losses.pop() == pytest.approx(expected, rel=1e-12)
    sampled = torch.tensor([Trace_ELBO().loss(two_sites, guide) for _ in range(400)])
    assert sampled.std() > 0.1
    assert (sampled.mean() - expected).abs() < SIGMAS * sampled.std() / 400**0.5


CONSTRAINED = {
    "positive": lambda: dist.Gamma(torch.tensor([2.0, 3.0]), 1.5).to_event(1),
    "interval": lambda: dist.Beta(torch.tensor([2.0, 3.0]), 1.5).to_event(1),
    "simplex": lambda: dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])),
    "correlation": lambda: dist.LKJCholesky(3, 1.0),
    "scalar": lambda: dist.HalfNormal(2.0),
}


@pytest.mark.parametrize("kind", CONSTRAINED)
def test_constrained_sites_draw_the_image_of_a_normal(kind):
    prior = CONSTRAINED[kind]()

    def model():
        pyro.sample("z", prior)

    guide = started(pe.AutoMeanFieldNormal(model))
    law, draw = guide.get_posterior("z"), guide()["z"]
    assert (law.batch_shape, law.event_shape) == (prior.batch_shape, prior.event_shape)
    assert prior.support.check(draw).all()
    bijection = biject_to(prior.support)
    normal, real = core(law), bijection.inv(draw)
    expected = normal.log_prob(real).sum() - bijection.log_abs_det_jacobian(real, draw).sum()
    torch.testing.assert_close(law.log_prob(draw), expected)


def train(model, guide, steps, lr, *args):
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": lr, "lrd": 0.02 ** (1 / steps)}),
              TraceMeanField_ELBO(num_particles=64, vectorize_particles=True))  # fmt: skip
    for _ in range(steps):
        svi.step(*args)


@pytest.mark.parametrize("events", [0, 1])
def test_lognormal_sites_train_to_the_exact_law(events):
    """The guide's family holds the truth, so the loss is least there alone (Deltas would miss the Jacobian)."""
    locs, scales = torch.tensor([0.2, -0.5]), torch.tensor([0.6, 0.3])

    def model():
        pyro.sample("s", dist.LogNormal(locs, scales).to_event(1) if events else dist.LogNormal(locs[0], scales[0]))

    guide = pe.AutoMeanFieldNormal(model, init_scale=0.2)
    train(model, guide, 400, 0.05)
    normal = core(guide.get_posterior("s"))
    entries = slice(None) if events else 0
    torch.testing.assert_close(normal.loc.detach(), locs[entries], atol=0.02, rtol=0)
    torch.testing.assert_close(normal.scale.detach(), scales[entries], atol=0.02, rtol=0)


def test_gamma_site_trains_to_its_mean():
    """``Gamma(a, b)`` has mean a / b; the best LogNormal shares it: where its derivatives are 0, ``E[s] = a/b``
    (in μ) and ``1/σ² = b E[s]`` (in σ)."""

    def model():
        pyro.sample("s", dist.Gamma(3.0, 2.0))

    guide = pe.AutoMeanFieldNormal(model)
    train(model, guide, 500, 0.05)
    normal = core(guide.get_posterior("s"))
    mean, scale = (normal.loc + normal.scale**2 / 2).exp().detach(), normal.scale.detach()
    assert float(mean) == pytest.approx(1.5, abs=0.05)
    assert float(scale) == pytest.approx(3.0**-0.5, abs=0.02)


# Plates


def plated(subsample_size=None):
    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("columns", 2, dim=-2), pyro.plate("rows", 6, subsample_size=subsample_size, dim=-1):
            pyro.sample("z", dist.Normal(loc * torch.ones(3), 1.0).to_event(1))

    return model


def test_plates():
    model = plated()
    guide = started(pe.AutoMeanFieldNormal(model))
    trace = poutine.trace(guide).get_trace()
    node = trace.nodes["z"]
    assert node["value"].shape == (2, 6, 3)
    assert (node["fn"].batch_shape, node["fn"].event_shape) == ((2, 6), (3,))
    assert {frame.name for frame in node["cond_indep_stack"]} == {"columns", "rows"}
    assert guide.median()["z"].shape == (2, 6, 3)
    poutine.trace(poutine.replay(model, trace)).get_trace()


def test_subsampled_plate_has_parameters_for_all_its_rows():
    model = plated(subsample_size=3)
    guide = started(pe.AutoMeanFieldNormal(model))
    law = guide.get_posterior("z")
    assert (law.batch_shape, law.event_shape) == ((2, 6), (3,))
    trace = poutine.trace(guide).get_trace()
    rows = trace.nodes["rows"]["value"]
    assert trace.nodes["z"]["value"].shape == (2, 3, 3)
    torch.testing.assert_close(trace.nodes["z"]["fn"].mean, law.mean[:, rows])
    assert TraceMeanField_ELBO().loss(model, guide) > 0


def test_create_plates():
    model = plated(subsample_size=3)
    rows = torch.tensor([5, 0, 2])
    guide = pe.AutoMeanFieldNormal(model, create_plates=lambda: pyro.plate("rows", 6, subsample=rows, dim=-1))
    guide.initialize()
    assert torch.equal(poutine.trace(guide).get_trace().nodes["rows"]["value"], rows)


def test_a_group_that_permutes_the_event_of_a_plate():
    group = pe.SymmetricGroup(3)
    symmetry = pe.Symmetry(group, {"loc": pe.trivial(group, ()), "z": pe.permutation(group)})
    guide = started(pe.AutoSymmetricNormal(plated(subsample_size=3), symmetry))
    law = core(guide.get_posterior("z"))
    assert law.loc.shape == (2, 6, 3)
    torch.testing.assert_close(law.loc, law.loc[..., :1].expand_as(law.loc))
    assert law.loc[..., 0].std() > 0.1


def test_a_group_that_permutes_a_plate():
    group = pe.SymmetricGroup(4)

    def model():
        with pyro.plate("components", 4):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    guide = started(pe.AutoSymmetricNormal(model, pe.Symmetry(group, {"z": pe.permutation(group)})))
    law = guide.get_posterior("z")
    assert law.batch_shape == (4,)
    torch.testing.assert_close(law.mean, law.mean[:1].expand(4))


# Summaries


@both
def test_median_and_quantiles(build):
    guide = started(build(two_sites))
    levels = [0.05, 0.5, 0.9]
    quantiles, median = guide.quantiles(levels), guide.median()
    for site in ("a", "b.c"):
        normal = core(guide.get_posterior(site))
        assert quantiles[site].shape == (3, *normal.loc.shape)
        for value, level in zip(quantiles[site], levels, strict=True):
            torch.testing.assert_close(normal.cdf(value), torch.full_like(value, level))
        torch.testing.assert_close(median[site], normal.loc.detach())
        assert not median[site].requires_grad


def test_quantiles_of_a_constrained_site():
    def model():
        pyro.sample("s", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))

    guide = started(pe.AutoMeanFieldNormal(model))
    normal = core(guide.get_posterior("s"))
    expected = torch.stack([normal.icdf(torch.tensor(level)).exp() for level in (0.1, 0.7)])
    torch.testing.assert_close(guide.quantiles(torch.tensor([0.1, 0.7]))["s"], expected.detach())


# Where they start


def test_starts_at_the_network_with_the_given_scale():
    net = rgb_net()
    guide = pe.AutoMeanFieldNormal(pe.BayesianNetwork(net), init_scale=0.02)
    guide.initialize(*rgb_data())
    for name, parameter in net.named_parameters():
        law = core(guide.get_posterior(name))
        torch.testing.assert_close(law.loc, parameter.detach())
        torch.testing.assert_close(law.scale, torch.full_like(law.scale, 0.02))


def test_init_loc_fn():
    values = {"a": torch.randn(2, 3), "b.c": torch.randn(4)}
    guide = pe.AutoMeanFieldNormal(two_sites, init_loc_fn=init_to_value(values=values))
    guide.initialize()
    for site, value in values.items():
        torch.testing.assert_close(core(guide.get_posterior(site)).loc, value)
    randomise(guide)
    assert (values["a"] - core(guide.get_posterior("a")).loc).abs().max() > 0.1  # they are not the given tensors


def test_init_loc_fn_of_a_constrained_site_is_given_in_its_own_space():
    def model():
        pyro.sample("s", dist.Gamma(2.0, 1.0))

    guide = pe.AutoMeanFieldNormal(model, init_loc_fn=init_to_value(values={"s": torch.tensor(2.5)}))
    guide.initialize()
    assert float(guide.median()["s"]) == pytest.approx(2.5)


def test_init_scale_by_site():
    guide = pe.AutoMeanFieldNormal(two_sites, init_scale=lambda site: torch.tensor(0.1 * len(site["name"])))
    guide.initialize()
    torch.testing.assert_close(core(guide.get_posterior("a")).scale, torch.full((2, 3), 0.1))
    torch.testing.assert_close(core(guide.get_posterior("b.c")).scale, torch.full((4,), 0.3))


@both
def test_fraction_of_prior(build):
    guide = build(two_sites, init_scale=pe.FractionOfPrior(0.2))
    guide.initialize()
    torch.testing.assert_close(core(guide.get_posterior("a")).scale, torch.full((2, 3), 0.2))
    torch.testing.assert_close(core(guide.get_posterior("b.c")).scale, torch.full((4,), 0.1))


@pytest.mark.parametrize("scale", [0, 0.0, -0.1, math.nan, "small", None])
@both
def test_bad_init_scale(build, scale):
    with pytest.raises(pe.OptionError, match="init_scale to be positive, or a callable from a site"):
        build(two_sites, init_scale=scale)


# Parameters of one's own


@both
def test_two_guides_of_a_class_share_no_parameters(build):
    first, second = started(build(two_sites)), started(build(two_sites))
    first(), second()
    assert not torch.equal(first.median()["a"], second.median()["a"])
    names = {name for guide in (first, second) for name in poutine.trace(guide, param_only=True).get_trace().nodes}
    assert len(names) == 8
    train(two_sites, first, 3, 0.1)
    before = second.median()["a"]
    train(two_sites, first, 3, 0.1)
    assert torch.equal(before, second.median()["a"])


@both
def test_a_copy_has_parameters_of_its_own(build):
    guide = started(build(two_sites))
    guide()
    double = copy.deepcopy(guide)
    median = guide.median()["a"]
    for law in (double.get_posterior("a"), poutine.trace(double).get_trace().nodes["a"]["fn"]):
        torch.testing.assert_close(law.mean, median, rtol=0, atol=0)
    randomise(double)
    double(), guide()
    assert not torch.equal(double.median()["a"], median)
    torch.testing.assert_close(guide.median()["a"], median, rtol=0, atol=0)
    torch.testing.assert_close(poutine.trace(double).get_trace().nodes["a"]["fn"].mean, double.median()["a"])


@both
def test_state_dict_round_trip(build):
    guide, other = started(build(two_sites)), started(build(two_sites))
    guide(), other()
    other.load_state_dict(guide.state_dict())
    for site in ("a", "b.c"):
        for law in (other.get_posterior(site), poutine.trace(other).get_trace().nodes[site]["fn"]):
            torch.testing.assert_close(law.mean, guide.get_posterior(site).mean, rtol=0, atol=0)
            torch.testing.assert_close(law.stddev, guide.get_posterior(site).stddev, rtol=0, atol=0)


@both
def test_initialize_once(build):
    guide = build(two_sites)
    guide.initialize()
    first = list(guide.parameters())
    guide.initialize()
    guide()
    assert all(a is b for a, b in zip(first, guide.parameters(), strict=True))


@both
def test_gradients_reach_every_parameter(build):
    guide = started(build(two_sites))
    draws = guide()
    (draws["a"].pow(2).sum() + draws["b.c"].pow(2).sum()).backward()
    for name, parameter in guide.named_parameters():
        assert (parameter.grad.abs() > 0).all(), name


def with_a_discrete_site():
    pyro.sample("a", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
    pyro.sample("b.c", dist.Normal(torch.ones(4), 0.5).to_event(1))
    pyro.sample("k", dist.Categorical(torch.ones(3)))


@both
def test_discrete_sites_are_an_error(build):
    with pytest.raises(pe.SymmetryError, match="'k' is discrete"):
        build(with_a_discrete_site)()


@both
def test_a_network_without_its_observations_is_an_error(build):
    with pytest.raises(pe.SymmetryError, match=r"'y' is discrete.*guide\.initialize\(x, y\)"):
        build(pe.BayesianNetwork(rgb_net()))(rgb_data()[0])


# Invariance


@torch.no_grad()
def largest_gap(guide, symmetry):
    """How far location and scale of any site are from being fixed by any element."""
    worst = 0.0
    for site, rep in symmetry.sites.items():
        law = core(guide.get_posterior(site))
        for g in range(1, len(symmetry.group)):
            worst = max(worst, float((rep.act(g, law.loc) - law.loc).abs().max()))
            worst = max(worst, float((rep.modulus().act(g, law.scale) - law.scale).abs().max()))
    return worst


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("hidden", ["regular", "trivial"])
@pytest.mark.parametrize("group", GROUPS)
def test_symmetric_guide_is_invariant_for_every_value_of_its_parameters(group, hidden, rule):
    net = rgb_net()
    symmetry = pe.network_symmetry(net, GROUPS[group](), (3, 4, 4), hidden=hidden)
    model = pe.BayesianNetwork(net)
    guide = pe.AutoSymmetricNormal(model, symmetry, rule=rule)
    free = pe.AutoMeanFieldNormal(model)
    assert guide.always_invariant
    assert not free.always_invariant
    started(guide, *rgb_data())
    started(free, *rgb_data())
    assert set(symmetry.sites) == {name for name, _ in net.named_parameters()}
    assert largest_gap(guide, symmetry) < 1e-12
    assert largest_gap(free, symmetry) > 0.1
    free.load_state_dict(guide.state_dict())
    for site, rep in symmetry.sites.items():
        law, expected = core(guide.get_posterior(site)), pe.average(core(free.get_posterior(site)), rep, rule)
        torch.testing.assert_close(law.loc, expected.loc)
        torch.testing.assert_close(law.scale, expected.scale)
        assert law.loc.abs().max() > 1e-3


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("group", GROUPS)
def test_signs_in_the_action(group, rule):
    """A vector field's two components: turned by 90°, they change places and sign."""
    group = GROUPS[group]()
    turn, mirror = torch.tensor([[0.0, -1.0], [1.0, 0.0]]), torch.tensor([[-1.0, 0.0], [0.0, 1.0]])
    matrices = torch.stack([torch.linalg.matrix_power(mirror, g // 4) @ torch.linalg.matrix_power(turn, g % 4)
                            for g in range(len(group))])  # fmt: skip
    symmetry = pe.Symmetry(group, {"v": pe.matrix(group, matrices) * pe.image(group, (3, 3))})

    def model():
        pyro.sample("v", dist.Normal(torch.zeros(2, 3, 3), 1.0).to_event(3))

    guide = started(pe.AutoSymmetricNormal(model, symmetry, rule=rule))
    assert largest_gap(guide, symmetry) < 1e-12
    if group == pe.CyclicGroup(4):
        assert core(guide.get_posterior("v")).loc.abs().max() > 1e-2  # D4 leaves radial fields, which also exist


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("group", GROUPS)
def test_start_is_invariant_and_keeps_the_size_of_the_network(group, rule):
    net = rgb_net()
    symmetry = pe.network_symmetry(net, GROUPS[group](), (3, 4, 4))
    guide = pe.AutoSymmetricNormal(pe.BayesianNetwork(net), symmetry, rule=rule, init_scale=0.03)
    guide.initialize(*rgb_data())
    for name, parameter in net.named_parameters():
        law, mean = core(guide.get_posterior(name)), symmetry[name].orbit(parameter.detach()).mean(0)
        torch.testing.assert_close(law.loc.norm(), parameter.norm())
        torch.testing.assert_close(law.loc / law.loc.norm(), mean / mean.norm())
        torch.testing.assert_close(law.scale, torch.full_like(law.scale, 0.03))
        torch.testing.assert_close(guide.locs.get_parameter(f"{name}_unconstrained").detach(), law.loc.detach())
    assert largest_gap(guide, symmetry) < 1e-12


def test_a_start_without_an_invariant_part_is_zero():
    group = pe.SignGroup()
    symmetry = pe.Symmetry(group, {"z": pe.matrix(group, [[[1.0]], [[-1.0]]])})

    def model():
        pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    guide = pe.AutoSymmetricNormal(model, symmetry, init_loc_fn=init_to_value(values={"z": torch.ones(1)}))
    guide.initialize()
    assert guide.median()["z"].tolist() == [0.0]


def positive_model():
    pyro.sample("rate", dist.Gamma(torch.full((3,), 2.0), 1.0).to_event(1))


@pytest.mark.parametrize("rule", RULES)
def test_permutations_of_a_positive_site(rule):
    """They commute with the exponential, so the law in the site's own space is invariant as well."""
    group = pe.SymmetricGroup(3)
    symmetry = pe.Symmetry(group, {"rate": pe.permutation(group)})
    guide = started(pe.AutoSymmetricNormal(positive_model, symmetry, rule=rule))
    free = started(pe.AutoMeanFieldNormal(positive_model))
    points = torch.rand(5, 3) * 3 + 0.1
    for g in range(1, 6):
        moved = symmetry["rate"].act(g, points)
        torch.testing.assert_close(guide.get_posterior("rate").log_prob(moved),
                                   guide.get_posterior("rate").log_prob(points), rtol=1e-12, atol=1e-12)  # fmt: skip
        gap = free.get_posterior("rate").log_prob(moved) - free.get_posterior("rate").log_prob(points)
        assert gap.abs().max() > 0.1


UNFIT = {
    "a sign flip of positive entries": (
        positive_model,
        lambda: pe.signed_permutation(pe.SignGroup(), [[0, 1, 2]] * 2, [[1, 1, 1], [-1, -1, -1]]),
    ),
    "a sign flip of a simplex": (
        lambda: pyro.sample("rate", dist.Dirichlet(torch.ones(2))),
        lambda: pe.signed_permutation(pe.SignGroup(), [[0, 1]] * 2, [[1, 1], [-1, -1]]),
    ),
    "a permutation of unequal intervals": (
        lambda: pyro.sample("rate", dist.Uniform(torch.zeros(3), torch.tensor([1.0, 1.0, 2.0])).to_event(1)),
        lambda: pe.permutation(pe.SymmetricGroup(3)),
    ),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_constrained_sites_that_the_action_does_not_keep(kind):
    model, rep = UNFIT[kind][0], UNFIT[kind][1]()
    guide = pe.AutoSymmetricNormal(model, pe.Symmetry(rep.group, {"rate": rep}))
    with pytest.raises(pe.SymmetryError, match="site 'rate' to be real, a simplex|the simplex site 'rate'"):
        guide()


def test_sites_must_fit_the_symmetry():
    symmetry = pair_symmetry()

    def more():
        two_sites()
        pyro.sample("other", dist.Normal(0.0, 1.0))

    def longer():
        pyro.sample("a", dist.Normal(torch.zeros(4, 3), 1.0).to_event(2))

    def rotated():
        pyro.sample("plane", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    with pytest.raises(pe.SymmetryError, match="representation for site 'other'"):
        pe.AutoSymmetricNormal(more, symmetry)()
    with pytest.raises(pe.SymmetryError, match=r"its shape \(4, 3\); got .* on \(2, 3\)"):
        pe.AutoSymmetricNormal(longer, symmetry)()
    third = torch.tensor(2 * math.pi / 3)
    turn = torch.stack([third.cos(), -third.sin(), third.sin(), third.cos()]).reshape(2, 2)
    group = pe.CyclicGroup(3)
    rep = pe.matrix(group, torch.stack([torch.eye(2), turn, turn @ turn]))
    with pytest.raises(pe.ClosednessError, match="site 'plane' to be moved by signed perm.*AutoSymmetricMulti"):
        pe.AutoSymmetricNormal(rotated, pe.Symmetry(group, {"plane": rep}))()
    with pytest.raises(pe.OptionError, match="rule"):
        pe.AutoSymmetricNormal(two_sites, symmetry, rule="median")


@pytest.mark.parametrize("rule", RULES)
def test_training_keeps_it_invariant(rule):
    net, (x, y) = rgb_net(4), rgb_data(6)
    symmetry = pe.network_symmetry(net, pe.CyclicGroup(4), (3, 4, 4))
    model = pe.BayesianNetwork(net)
    guide = pe.AutoSymmetricNormal(model, symmetry, rule=rule)
    guide.initialize(x, y)
    before = guide.median()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), TraceMeanField_ELBO())
    for _ in range(5):
        svi.step(x, y)
    assert largest_gap(guide, symmetry) < 1e-12
    assert all((guide.median()[site] - before[site]).abs().max() > 1e-2 for site in before)


@pytest.mark.parametrize("arrangement", ["free", "gcnn", "row_constant"])
def test_a_mean_field_guide_knows_that_an_expanded_network_is_equivariant(arrangement):
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3, padding=1),
        torch.nn.Conv2d(2, 2, 3, padding=1),
        torch.nn.Flatten(),
        torch.nn.Linear(32, 2),
    )
    symmetry = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 4, 4), hidden="trivial")
    guide = pe.AutoMeanFieldNormal(pe.handlers.expand(pe.BayesianNetwork(net), symmetry, arrangement))
    assert guide.always_invariant == (arrangement != "row_constant")
    assert not pe.AutoMeanFieldNormal(pe.BayesianNetwork(net)).always_invariant


@pytest.mark.parametrize("build", [pe.AutoSymmetricMultivariateNormal, pe.AutoSymmetricLowRankMultivariateNormal])
def test_sites_that_are_correlated_under_particles(build):
    """The sites' densities together are that of the vector, one particle by one."""
    group = pe.SymmetricGroup(3)

    def model():
        pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("three", 3):
            pyro.sample("b", dist.Gamma(2.0, 1.0))
            pyro.sample("c", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("d", dist.Normal(0.0, 1.0))

    perm = pe.permutation(group)
    still = pe.trivial(group, ())
    symmetry = pe.Symmetry(group, {"a": still, "b": perm, "c": perm * pe.trivial(group, 2), "d": still})
    guide = build(model, symmetry, rule="projection")
    guide.initialize()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    with pyro.plate("particles", 7, dim=-3):
        trace = poutine.trace(guide).get_trace()
    trace.compute_log_prob()
    sites = [trace.nodes[name] for name in "abcd"]
    total = sum(site["log_prob"].reshape(7, -1).sum(1) for site in sites)
    values = [site["value"].reshape(7, -1) for site in sites]
    vectors = torch.cat([values[0], values[1].log(), *values[2:]], 1)
    expected = guide.get_posterior().log_prob(vectors) - values[1].log().sum(1)
    torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-9)


def test_joint_latents_are_named_with_the_guide_to_use():
    def model():
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    flip = pe.signed_permutation(pe.SignGroup(), [[0, 1]] * 2, [[1, 1], [-1, 1]])
    symmetry = pe.Symmetry(pe.SignGroup(), {"z": flip})
    for build in (pyro.infer.autoguide.AutoMultivariateNormal, pyro.infer.autoguide.AutoDiagonalNormal):
        with pytest.raises(pe.SymmetryError, match=r"drawn one by one; .* Use pe.AutoSymmetricMultivariateNormal"):
            pe.SymmetrizedGuide(build(model), symmetry)()


def test_the_median_is_no_parameter():
    def model():
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    flip = pe.signed_permutation(pe.SignGroup(), [[0, 1]] * 2, [[1, 1], [-1, 1]])
    symmetry = pe.Symmetry(pe.SignGroup(), {"z": flip})
    guide = pe.AutoOrbitMixture(model, symmetry)
    guide.initialize()
    before = guide.median()["z"]
    kept = before.clone()
    with torch.no_grad():
        guide.loc.add_(1.0)
    assert torch.equal(before, kept) and not before.requires_grad


SWAP = pe.permutation(pe.SymmetricGroup(2))
PASSED_OVER = {
    "stick-breaking that happens to fit": (lambda: dist.Dirichlet(torch.ones(4)), pe.permutation(pe.SymmetricGroup(3))),
    "a simplex": (lambda: dist.Dirichlet(torch.ones(2)), SWAP),
    "unequal intervals": (lambda: dist.Uniform(torch.zeros(2), torch.tensor([1.0, 10.0])).to_event(1), SWAP),
}


@pytest.mark.parametrize("wrap", [pe.SymmetrizedGuide, pe.handlers.symmetrize], ids=["module", "handler"])
@pytest.mark.parametrize("case", PASSED_OVER)
def test_autonormal_is_held_to_the_same_spaces(case, wrap):
    law, rep = PASSED_OVER[case]
    guide = pyro.infer.autoguide.AutoNormal(lambda: pyro.sample("z", law()))
    with pytest.raises(pe.SymmetryError):
        wrap(guide, pe.Symmetry(rep.group, {"z": rep}))()


def test_a_subsampled_plate_is_never_permuted():
    rep = pe.permutation(pe.SymmetricGroup(3))

    def guide():
        with pyro.plate("rows", 6, subsample_size=3) as rows:
            pyro.sample("z", dist.Normal(torch.arange(6.0)[rows], 1.0))

    with pytest.raises(pe.SymmetryError, match="leave the plate 'rows' alone, which is subsampled"):
        pe.handlers.symmetrize(guide, pe.Symmetry(rep.group, {"z": rep}))()


HAND_WRITTEN = {
    "LogNormal": lambda loc: dist.LogNormal(loc, 0.5),
    "LogNormal, event": lambda loc: dist.LogNormal(loc, 0.5).to_event(1),
    "event inside": lambda loc: dist.TransformedDistribution(
        dist.Normal(loc, 0.5).to_event(1), dist.transforms.ExpTransform()
    ),
}


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_hand_written_positive_sites(name):
    build = HAND_WRITTEN[name]

    def guide():
        with pyro.plate("rows", 2):
            return pyro.sample("z", build(torch.tensor([0.0, 1.0]))) if name == "LogNormal" else None

    def whole():
        return pyro.sample("z", build(torch.tensor([0.0, 1.0])))

    guide = guide if name == "LogNormal" else whole
    symmetry = pe.Symmetry(SWAP.group, {"z": SWAP})
    law = poutine.trace(pe.handlers.symmetrize(guide, symmetry)).get_trace().nodes["z"]["fn"]
    value = torch.tensor([0.7, 2.0])
    torch.testing.assert_close(law.log_prob(value).sum(), dist.LogNormal(0.5, 0.5).log_prob(value).sum())


@pytest.mark.parametrize("law", [
    dist.Cauchy(torch.zeros(2), 1.0).to_event(1), dist.StudentT(3.0, torch.zeros(2)).to_event(1),
], ids=["Cauchy", "StudentT"])  # fmt: skip
def test_other_families_are_named_with_their_site(law):
    symmetry = pe.Symmetry(SWAP.group, {"z": SWAP})
    with pytest.raises(pe.ClosednessError, match="site 'z' to draw from a law .*pe.AutoOrbitMixture bear more"):
        pe.handlers.symmetrize(lambda: pyro.sample("z", law), symmetry)()


@pytest.mark.parametrize("build", [pe.AutoSymmetricMultivariateNormal, pe.AutoOrbitMixture])
@pytest.mark.parametrize("categories", [2, 3])
def test_quantiles_of_a_simplex_are_those_of_its_draws(build, categories):
    rep = pe.permutation(pe.SymmetricGroup(categories))
    model = lambda: pyro.sample("w", dist.Dirichlet(torch.ones(categories)))  # noqa: E731
    guide = build(model, pe.Symmetry(rep.group, {"w": rep}))
    guide.initialize()
    with torch.no_grad():
        guide.loc.add_(1.0), guide.scale.fill_(0.4)
    found = guide.quantiles([0.1, 0.9])["w"]
    draws = guide._split(guide.get_posterior().sample((10_000,)))["w"]
    torch.testing.assert_close(found, draws.quantile(torch.tensor([0.1, 0.9]), 0), rtol=0, atol=0.03)
    assert (found[1:] >= found[:-1]).all() and (found[:, :1] - found).abs().max() < 0.03


@pytest.mark.parametrize("build", [pe.AutoSymmetricNormal, pe.AutoSymmetricMultivariateNormal, pe.AutoOrbitMixture])
def test_one_quantile(build):
    model = lambda: pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))  # noqa: E731
    guide = build(model, pe.Symmetry(SWAP.group, {"z": SWAP}))
    guide.initialize()
    assert guide.quantiles(0.5)["z"].shape == (1, 2)


def test_only_networks_are_brought_back_to_their_size():
    start = pyro.infer.autoguide.init_to_value(values={"z": torch.tensor([-3.0, 3.2])})
    guide = pe.AutoSymmetricNormal(lambda: pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1)),
                                   pe.Symmetry(SWAP.group, {"z": SWAP}), init_loc_fn=start)  # fmt: skip
    guide.initialize()
    torch.testing.assert_close(guide.median()["z"], torch.full((2,), 0.1))


@pytest.mark.parametrize("symmetry", [None, {"z": SWAP}, SWAP])
@pytest.mark.parametrize("build", [pe.AutoSymmetricNormal, pe.AutoSymmetricMultivariateNormal, pe.AutoOrbitMixture,
                                   pe.SymmetrizedGuide])  # fmt: skip
def test_what_is_no_symmetry(build, symmetry):
    with pytest.raises(pe.SymmetryError, match="symmetry= to be a pe.Symmetry"):
        build(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), symmetry)
