"""The handlers change what they promise and nothing else: a guide's laws, a model's data and their weights."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import Predictive, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal, init_to_value
from scipy import stats as scipy_stats
from torch import nn
from torch.distributions import kl_divergence

import pyro_equivariance as pe

RULES = ("geometric", "arithmetic", "projection")
SIGMAS = 4.5  # of a computed standard error: one failure in 150,000
BATCH = 3

# symmetrize


def turns():
    """A point of the plane and a kernel, turned by 90° together."""
    group = pe.CyclicGroup(4)
    plane = pe.signed_permutation(group, [[0, 1], [1, 0]] * 2, [[1, 1], [1, -1], [-1, -1], [-1, 1]])
    return pe.Symmetry(group, {"plane": plane, "kernel": pe.image(group, (3, 3))})


def moments(symmetry):
    """A mean and a scale for each site, without any symmetry."""
    shapes = {site: rep.event_shape for site, rep in symmetry.sites.items()}
    return {site: (torch.randn(shape), 0.3 + torch.rand(shape)) for site, shape in shapes.items()}


def normals(parameters):
    return {site: dist.Normal(loc, scale).to_event(loc.ndim) for site, (loc, scale) in parameters.items()}


def sampler(laws):
    """A hand-written guide that samples each site from its law."""

    def guide(*args):
        return {site: pyro.sample(site, law) for site, law in laws.items()}

    return guide


def averaged(loc, scale, rep, rule):
    """The three averages of a Normal from the definitions, through the dense matrices of the action."""
    matrices = rep.matrix(rep.group.elements)
    locs, variances = matrices @ loc.flatten(), matrices**2 @ scale.flatten() ** 2
    if rule == "geometric":
        variance = 1 / (1 / variances).mean(0)
        mean = variance * (locs / variances).mean(0)
    elif rule == "arithmetic":
        mean = locs.mean(0)
        variance = (variances + locs**2).mean(0) - mean**2
    else:
        mean, variance = locs.mean(0), variances.sqrt().mean(0) ** 2
    return mean.reshape(loc.shape), variance.sqrt().reshape(loc.shape)


def wrapper(guide, symmetry, rule):
    return pe.handlers.symmetrize(guide, symmetry, rule=rule)


def decorator(guide, symmetry, rule):
    @pe.handlers.symmetrize(symmetry=symmetry, rule=rule)
    def decorated(*args):
        return guide(*args)

    return decorated


def context(guide, symmetry, rule):
    def inside(*args):
        with pe.handlers.symmetrize(symmetry=symmetry, rule=rule):
            return guide(*args)

    return inside


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("form", [wrapper, decorator, context])
def test_every_form_draws_each_site_from_its_average(form, rule):
    symmetry = turns()
    parameters = moments(symmetry)
    guide = form(sampler(normals(parameters)), symmetry, rule)
    expected = {site: averaged(*pair, symmetry[site], rule) for site, pair in parameters.items()}

    pyro.set_rng_seed(5)
    trace = poutine.trace(guide).get_trace()
    pyro.set_rng_seed(5)
    draws = sampler(normals(expected))()
    for site, law in normals(expected).items():
        node = trace.nodes[site]
        torch.testing.assert_close(node["fn"].mean, law.mean)
        torch.testing.assert_close(node["fn"].variance, law.variance)
        torch.testing.assert_close(node["value"], draws[site])
        torch.testing.assert_close(node["fn"].log_prob(node["value"]), law.log_prob(draws[site]))


def test_context_around_a_trace():
    symmetry = turns()
    parameters = moments(symmetry)
    with pe.handlers.symmetrize(symmetry=symmetry, rule="arithmetic"):
        trace = poutine.trace(sampler(normals(parameters))).get_trace()
    loc, scale = averaged(*parameters["kernel"], symmetry["kernel"], "arithmetic")
    torch.testing.assert_close(trace.nodes["kernel"]["fn"].mean, loc)
    torch.testing.assert_close(trace.nodes["kernel"]["fn"].stddev, scale)


def test_each_batch_of_a_plate_is_averaged_alone():
    symmetry = turns()
    locs, scales = torch.randn(3, 2), 0.3 + torch.rand(3, 2)

    @pe.handlers.symmetrize(symmetry=symmetry)
    def guide():
        with pyro.plate("rows", 3):
            pyro.sample("plane", dist.Normal(locs, scales).to_event(1))

    law = poutine.trace(guide).get_trace().nodes["plane"]["fn"]
    assert (law.batch_shape, law.event_shape) == ((3,), (2,))
    for row in range(3):
        loc, scale = averaged(locs[row], scales[row], symmetry["plane"], "geometric")
        torch.testing.assert_close(law.mean[row], loc)
        torch.testing.assert_close(law.stddev[row], scale)


def test_a_group_that_permutes_a_plate():
    group = pe.SymmetricGroup(3)
    symmetry = pe.Symmetry(group, {"z": pe.permutation(group)})

    @pe.handlers.symmetrize(symmetry=symmetry, rule="arithmetic")
    def guide():
        with pyro.plate("rows", 3):
            pyro.sample("z", dist.Normal(torch.tensor([0.0, 3.0, 6.0]), 1.0))

    law = poutine.trace(guide).get_trace().nodes["z"]["fn"]
    assert law.batch_shape == (3,)
    torch.testing.assert_close(law.mean, torch.full((3,), 3.0))
    torch.testing.assert_close(law.variance, torch.full((3,), 7.0))  # 1 within and 6 between the three


def test_observed_sites_and_subsampling_are_left_alone():
    group = pe.SignGroup()
    symmetry = pe.Symmetry(group, {"z": pe.matrix(group, [[[1.0]], [[-1.0]]])})

    @pe.handlers.symmetrize(symmetry=symmetry)
    def guide():
        with pyro.plate("data", 10, subsample_size=4):
            pyro.sample("seen", dist.Normal(2.0, 1.0), obs=torch.zeros(4))
        pyro.sample("z", dist.Normal(torch.tensor([2.0]), 1.0).to_event(1))

    trace = poutine.trace(guide).get_trace()
    assert len(trace.nodes["data"]["value"]) == 4
    torch.testing.assert_close(trace.nodes["seen"]["fn"].mean, torch.full((4,), 2.0))
    torch.testing.assert_close(trace.nodes["z"]["fn"].mean, torch.zeros(1))


@pytest.mark.parametrize("rule", RULES)
def test_autonormal_is_reached_through_its_auxiliary_sites(rule):
    group = pe.SymmetricGroup(3)
    rep = pe.permutation(group)
    symmetry = pe.Symmetry(group, {"z": rep, "rate": rep})

    def model():
        pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("rate", dist.Gamma(torch.ones(3), 1.0).to_event(1))

    guide = AutoNormal(model)
    guide()
    for parameter in guide.parameters():
        parameter.data.normal_()
    before = poutine.trace(guide).get_trace()
    trace = poutine.trace(pe.handlers.symmetrize(guide, symmetry, rule=rule)).get_trace()
    for site, bijection in {"z": torch.nn.Identity(), "rate": torch.exp}.items():
        plain, law = before.nodes[f"{site}_unconstrained"]["fn"], trace.nodes[f"{site}_unconstrained"]["fn"]
        loc, scale = averaged(plain.mean, plain.stddev, rep, rule)
        torch.testing.assert_close(law.mean, loc)
        torch.testing.assert_close(law.stddev, scale)
        torch.testing.assert_close(trace.nodes[site]["value"], bijection(trace.nodes[f"{site}_unconstrained"]["value"]))


def test_a_guide_of_deltas_is_an_error_that_names_the_way_out():
    group = pe.SymmetricGroup(2)
    symmetry = pe.Symmetry(group, {"z": pe.permutation(group)})

    def model():
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    handler = pe.handlers.symmetrize(symmetry=symmetry)
    handler(AutoNormal(model))()  # its Delta at "z" is allowed, but only in that run
    with pytest.raises(pe.SymmetryError, match=r"site 'z' .* Delta.*pe\.AutoSymmetricNormal"):
        handler(AutoDelta(model))()


def test_a_site_without_a_representation_is_an_error():
    symmetry = turns()
    guide = sampler(normals(moments(symmetry)) | {"other": dist.Normal(0.0, 1.0)})
    with pytest.raises(pe.SymmetryError, match="representation for site 'other'"):
        pe.handlers.symmetrize(guide, symmetry)()


def test_an_action_that_leaves_the_family_is_an_error():
    group = pe.CyclicGroup(8)
    angles = torch.arange(8) * (math.pi / 4)
    matrices = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], -1).reshape(8, 2, 2)
    symmetry = pe.Symmetry(group, {"plane": pe.matrix(group, matrices)})
    guide = sampler({"plane": dist.Normal(torch.zeros(2), 1.0).to_event(1)})
    with pytest.raises(pe.ClosednessError, match="mixes entries"):
        pe.handlers.symmetrize(guide, symmetry)()


@pytest.mark.parametrize("rule", RULES)
def test_mean_field_elbo_has_the_analytic_kl_of_the_average(rule):
    symmetry = turns()
    parameters = {
        site: (loc.requires_grad_(), scale.requires_grad_()) for site, (loc, scale) in moments(symmetry).items()
    }
    leaves = [leaf for pair in parameters.values() for leaf in pair]
    priors = {site: dist.Normal(torch.zeros_like(loc), 1.5) for site, (loc, _) in parameters.items()}
    model = sampler({site: prior.to_event(prior.loc.ndim) for site, prior in priors.items()})
    guide = pe.handlers.symmetrize(sampler(normals(parameters)), symmetry, rule=rule)

    expected = sum(
        kl_divergence(dist.Normal(*averaged(*parameters[site], symmetry[site], rule)), prior).sum()
        for site, prior in priors.items()
    )
    losses = [TraceMeanField_ELBO().differentiable_loss(model, guide) for _ in range(3)]
    assert len({loss.item() for loss in losses}) == 1
    torch.testing.assert_close(losses[0], expected)
    gradients = torch.autograd.grad(losses[0], leaves)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({}, pe.SymmetryError, r"symmetry= to be a pe\.Symmetry"),
        ({"symmetry": "C4"}, pe.SymmetryError, "'C4'"),
        ({"rule": "harmonic"}, pe.OptionError, "'geometric', 'arithmetic', 'projection'; got 'harmonic'"),
    ],
)
def test_symmetrize_checks_its_options(options, kind, match):
    symmetry = {"symmetry": turns()} if "rule" in options else {}
    with pytest.raises(kind, match=match):
        pe.handlers.symmetrize(sampler({}), **symmetry, **options)


# augment

GROUPS = {"C4": lambda: pe.CyclicGroup(4), "D4": lambda: pe.DihedralGroup(4)}


def turned(x, g):
    """Element ``g`` of C4 or D4 on images, by torch alone."""
    moved = torch.rot90(x, g % 4, (-2, -1))
    return moved if g < 4 else moved.flip(-1)


def small_net(outputs=3):
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, outputs))


def random_weights(net):
    return {name: torch.randn_like(p) for name, p in net.named_parameters()}


def log_likelihood(model, weights, *args, **kwargs):
    """The log density of the observation ``y`` at fixed weights, as an ELBO counts it."""
    trace = poutine.trace(pyro.condition(model, weights)).get_trace(*args, **kwargs)
    trace.compute_log_prob()
    return trace.nodes["y"]["log_prob_sum"]


def class_scores(net, weights, x, y):
    """``log p(y_n | x_n, θ)`` for each example, by torch alone."""
    logits = torch.func.functional_call(net, weights, (x,))
    return logits.log_softmax(-1).gather(-1, y[:, None])[:, 0]


def explicit_mean(net, weights, x, y, group):
    """``(1/|G|) Σ_g log p(y_n | g x_n, θ)``, summed over the examples."""
    return sum(class_scores(net, weights, turned(x, g), y).sum() for g in range(len(group))) / len(group)


def images(outputs=3):
    return torch.randn(BATCH, 1, 4, 4), torch.arange(BATCH) % outputs


# No size: as many data as in the batch. 12 and 24 are |G| times the batch, the size that the moved copies have too.
SIZES = (None, BATCH, 50, 4 * BATCH, 8 * BATCH)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("group", GROUPS)
def test_full_orbit_is_the_explicit_mean_or_sum(group, size):
    group, net, (x, y) = GROUPS[group](), small_net(), images()
    symmetry = pe.network_symmetry(net, group, (1, 4, 4), hidden="trivial")
    model, weights = pe.BayesianNetwork(net, size=size), random_weights(net)
    expected = explicit_mean(net, weights, x, y, group) * (size or BATCH) / BATCH

    mean = log_likelihood(pe.handlers.augment(model, symmetry), weights, x, y)
    total = log_likelihood(pe.handlers.augment(model, symmetry, likelihood="sum"), weights, x, y)
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(total, len(group) * mean)
    assert (mean - log_likelihood(model, weights, x, y)).abs() > 1e-2 * mean.abs()


def test_latent_sites_keep_their_density():
    net, (x, y) = small_net(), images()
    symmetry = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 4, 4), hidden="trivial")
    model = pe.BayesianNetwork(net, prior=2.0, size=50)
    for options in itertools.product(pe.handlers.ORBITS, ("mean", "sum")):
        trace = poutine.trace(pe.handlers.augment(model, symmetry, *options)).get_trace(x, y)
        trace.compute_log_prob()
        for name in symmetry.sites:
            node = trace.nodes[name]
            expected = dist.Normal(0.0, 2.0).log_prob(node["value"]).sum()
            torch.testing.assert_close(node["log_prob_sum"], expected)


@pytest.mark.parametrize("size", [None, 7, 8])
def test_random_orbit_is_unbiased_exactly(size, monkeypatch):
    """Over all 16 ways to turn two images, the mean of the estimate is the full orbit's value."""
    net, x, y = small_net(), torch.randn(2, 1, 4, 4), torch.tensor([2, 0])
    symmetry = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 4, 4), hidden="trivial")
    model, weights = pe.BayesianNetwork(net, size=size), random_weights(net)
    augmented = pe.handlers.augment(model, symmetry, orbit="random")
    summed = pe.handlers.augment(model, symmetry, orbit="random", likelihood="sum")
    scale = (size or 2) / 2
    values = []
    for elements in itertools.product(range(4), repeat=2):
        monkeypatch.setattr(pe.CyclicGroup, "sample", lambda self, shape, g=elements: torch.tensor(g).expand(shape))
        values.append(log_likelihood(augmented, weights, x, y))
        turns = torch.stack([turned(image, g) for image, g in zip(x, elements, strict=True)])
        torch.testing.assert_close(values[-1], scale * class_scores(net, weights, turns, y).sum())
        torch.testing.assert_close(log_likelihood(summed, weights, x, y), 4 * values[-1])
    expected = scale * explicit_mean(net, weights, x, y, symmetry.group)
    torch.testing.assert_close(torch.stack(values).mean(), expected)


def test_random_orbit_is_unbiased_by_monte_carlo():
    net, (x, y) = small_net(), images()
    symmetry = pe.network_symmetry(net, pe.DihedralGroup(4), (1, 4, 4), hidden="trivial")
    model, weights = pe.BayesianNetwork(net, size=20), random_weights(net)
    augmented = pe.handlers.augment(model, symmetry, orbit="random")
    values = torch.stack([log_likelihood(augmented, weights, x, y) for _ in range(400)])
    expected = explicit_mean(net, weights, x, y, symmetry.group) * 20 / BATCH
    se = values.std() / len(values) ** 0.5
    assert se > 1e-3
    assert (values.mean() - expected).abs() < SIGMAS * se


def test_labels_move_with_outputs_that_are_permuted():
    group = pe.CyclicGroup(4)
    net, (x, y) = small_net(4), images(4)
    symmetry = pe.network_symmetry(net, group, (1, 4, 4), hidden="trivial", outputs=pe.regular(group))
    weights = random_weights(net)
    expected = sum(class_scores(net, weights, turned(x, g), (y + g) % 4).sum() for g in range(4)) / 4
    value = log_likelihood(pe.handlers.augment(pe.BayesianNetwork(net), symmetry), weights, x, y)
    torch.testing.assert_close(value, expected)
    assert (value - explicit_mean(net, weights, x, y, group)).abs() > 1e-2


def test_real_outputs_move():
    group = pe.CyclicGroup(4)
    net, x, y = small_net(4), torch.randn(BATCH, 1, 4, 4), torch.randn(BATCH, 4)
    symmetry = pe.network_symmetry(net, group, (1, 4, 4), hidden="trivial", outputs=pe.regular(group))
    model = pe.BayesianNetwork(net, likelihood=lambda f: dist.Normal(f, 0.5).to_event(1), size=20)
    weights = random_weights(net)
    moved = [torch.func.functional_call(net, weights, (turned(x, g),)) for g in range(4)]
    scores = [dist.Normal(f, 0.5).log_prob(y.roll(g, -1)).sum() for g, f in enumerate(moved)]
    value = log_likelihood(pe.handlers.augment(model, symmetry), weights, x, y)
    torch.testing.assert_close(value, sum(scores) / 4 * 20 / BATCH)


def test_observations_by_position_by_keyword_or_not_at_all():
    net, (x, y) = small_net(), images()
    symmetry = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 4, 4), hidden="trivial")
    model, weights = pe.BayesianNetwork(net), random_weights(net)
    augmented = pe.handlers.augment(model, symmetry)
    torch.testing.assert_close(
        log_likelihood(augmented, weights, x, y=y), log_likelihood(augmented, weights, x, y), rtol=0, atol=0
    )
    fixed = pyro.condition(augmented, weights)
    expected = torch.cat([torch.func.functional_call(net, weights, (turned(x, g),)) for g in range(4)])
    for args, kwargs in [((x,), {}), ((x, None), {}), ((x,), {"y": None})]:
        trace = poutine.trace(fixed).get_trace(*args, **kwargs)
        assert not trace.nodes["y"]["is_observed"]
        assert trace.nodes["y"]["value"].shape == (4 * BATCH,)
        torch.testing.assert_close(trace.nodes["_RETURN"]["value"], expected)
    samples = Predictive(fixed, num_samples=5, return_sites=("y",))(x)
    assert samples["y"].shape == (5, 4 * BATCH)


def test_other_arguments_pass_through():
    seen = {}

    @pe.handlers.augment(symmetry=pe.Symmetry(pe.CyclicGroup(4), {}, inputs=pe.image(pe.CyclicGroup(4), (4, 4))))
    def model(x, y=None, *rest, **options):
        """What it is."""
        seen.update(x=x, y=y, rest=rest, options=options)
        return len(x)

    y = torch.tensor([1, 2])
    assert model(torch.randn(2, 4, 4), y, "third", beta=0.5) == 8
    assert (seen["rest"], seen["options"]) == (("third",), {"beta": 0.5})
    assert seen["y"].tolist() == [1, 2] * 4
    assert (model.__name__, model.__doc__) == ("model", "What it is.")


def linear_model(plate):
    """A hand-written regression on 3 × 3 images whose plate ``plate(x)`` makes."""

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(9), 1.0).to_event(1))
        with plate(x):
            pyro.sample("y", dist.Normal(x.flatten(1) @ w, 0.7), obs=y)

    return model


def without_plate(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(9), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(x.flatten(1) @ w, 0.7).to_event(1), obs=y)


LINEAR_MODELS = {
    "the batch's own length": (lambda: linear_model(lambda x: pyro.plate("data", len(x))), 1),
    "subsample_size": (lambda: linear_model(lambda x: pyro.plate("data", 60, subsample_size=len(x))), 60 / BATCH),
    "subsample": (
        lambda: linear_model(lambda x: pyro.plate("data", 60, subsample=torch.arange(len(x)))), 60 / BATCH
    ),
    "fewer data than copies": (
        lambda: linear_model(lambda x: pyro.plate("data", 5, subsample=torch.arange(len(x)))), 5 / BATCH
    ),
    "no plate": (lambda: without_plate, 1),
}  # fmt: skip


def linear_symmetry(group):
    return pe.Symmetry(group, {"w": pe.image(group, (3, 3)).reshape(9)}, inputs=pe.image(group, (3, 3)))


@pytest.mark.parametrize("likelihood", ["mean", "sum"])
@pytest.mark.parametrize("kind", LINEAR_MODELS)
def test_hand_written_models(kind, likelihood):
    build, scale = LINEAR_MODELS[kind]
    group, x, y, w = pe.DihedralGroup(4), torch.randn(BATCH, 3, 3), torch.randn(BATCH), torch.randn(9)
    expected = sum(dist.Normal(turned(x, g).flatten(1) @ w, 0.7).log_prob(y).sum() for g in range(8)) * scale
    augmented = pe.handlers.augment(build(), linear_symmetry(group), likelihood=likelihood)
    torch.testing.assert_close(
        log_likelihood(augmented, {"w": w}, x, y), expected if likelihood == "sum" else expected / 8
    )


def test_one_handler_serves_two_models():
    """Whose plates have one name, but different sizes."""
    group, x, y, w = pe.CyclicGroup(4), torch.randn(BATCH, 3, 3), torch.randn(BATCH), torch.randn(9)
    handler = pe.handlers.augment(symmetry=linear_symmetry(group))
    expected = sum(dist.Normal(turned(x, g).flatten(1) @ w, 0.7).log_prob(y).sum() for g in range(4)) / 4
    for kind in ("subsample", "the batch's own length"):
        build, scale = LINEAR_MODELS[kind]
        torch.testing.assert_close(log_likelihood(handler(build()), {"w": w}, x, y), expected * scale)


def test_a_plate_that_subsamples_inside_the_model_is_an_error():
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(9), 1.0).to_event(1))
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            pyro.sample("y", dist.Normal(x[rows].flatten(1) @ w, 1.0), obs=y[rows])

    augmented = pe.handlers.augment(model, linear_symmetry(pe.CyclicGroup(4)))
    with pytest.raises(pe.SymmetryError, match=r"plate 'data' to span the 12 moved copies.*size 2.*subsample="):
        augmented(torch.randn(3, 3, 3), torch.randn(3))


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({"orbit": "half"}, pe.OptionError, "orbit to be one of 'full', 'random'; got 'half'"),
        ({"likelihood": "max"}, pe.OptionError, "likelihood to be one of .*'mean', 'sum'.*; got 'max'"),
        ({"symmetry": None}, pe.SymmetryError, r"symmetry= to be a pe\.Symmetry"),
    ],
)
def test_augment_checks_its_options(options, kind, match):
    with pytest.raises(kind, match=match):
        pe.handlers.augment(without_plate, **{"symmetry": linear_symmetry(pe.CyclicGroup(4)), **options})


def test_augment_needs_inputs_that_move():
    group = pe.CyclicGroup(4)
    augmented = pe.handlers.augment(without_plate, pe.Symmetry(group, {"w": pe.trivial(group, 9)}))
    with pytest.raises(pe.SymmetryError, match="inputs="):
        augmented(torch.randn(2, 3, 3), torch.randn(2))


def test_augment_is_no_context_manager():
    handler = pe.handlers.augment(symmetry=linear_symmetry(pe.CyclicGroup(4)))
    handler(without_plate)(torch.randn(2, 3, 3), torch.randn(2))
    with pytest.raises(pe.SymmetryError, match="wrap or decorate a model"), handler:
        pass


# The evidence lower bound under augmentation


def wide_net():
    """Its hidden channels come in blocks of four."""
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))


def loss_at(model, laws, draws, x, y):
    """−ELBO with an analytic KL and the given draws in place of random ones."""
    guide = sampler(laws)
    fixed = poutine.trace(guide).get_trace()
    for site, draw in draws.items():
        fixed.nodes[site]["value"] = draw
    return TraceMeanField_ELBO().loss(model, poutine.replay(guide, fixed), x, y)


@pytest.mark.parametrize("hidden", ["regular", "trivial"])
def test_elbo_keeps_its_value_when_the_guide_is_moved(hidden):
    """``L(ρ(g)_# q) = L(q)``, exactly, since moved draws come from moved noise."""
    net, (x, y) = wide_net(), images()
    symmetry = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 4, 4), hidden=hidden)
    model = pe.BayesianNetwork(net, prior="fan_in", size=50)
    augmented = pe.handlers.augment(model, symmetry)
    laws = normals({site: (loc / 2, scale) for site, (loc, scale) in moments(symmetry).items()})
    draws = {site: law.rsample() for site, law in laws.items()}
    value, plain = loss_at(augmented, laws, draws, x, y), loss_at(model, laws, draws, x, y)
    assert abs(value - plain) > 1e-2 * abs(value)
    for g in range(1, 4):
        moved = {site: pe.push_forward(law, symmetry[site], g) for site, law in laws.items()}
        moved_draws = symmetry.act(g, draws)
        assert loss_at(augmented, moved, moved_draws, x, y) == pytest.approx(value, rel=1e-12)
        assert abs(loss_at(model, moved, moved_draws, x, y) - plain) > 1e-3 * abs(plain)


def gradients_at(model, guide, noise, x, y):
    """``log p(y | x, μ + σ ε)`` and its gradient in the guide's parameters."""
    laws = {site: guide.get_posterior(site).base_dist for site in noise}
    weights = {site: law.loc + law.scale * noise[site] for site, law in laws.items()}
    value = log_likelihood(model, weights, x, y)
    return value, torch.autograd.grad(value, list(guide.parameters()))


def orbit_of_noise(model, guide, symmetry, noise, x, y):
    """The mean of value and gradient over moved copies of the noise, whose law is that of the noise."""
    terms = [gradients_at(model, guide, symmetry.act(g, noise), x, y) for g in range(len(symmetry.group))]
    return sum(t[0] for t in terms) / len(terms), [sum(c) / len(c) for c in zip(*(t[1] for t in terms), strict=True)]


@pytest.mark.parametrize("rule", RULES)
def test_upright_data_are_enough_for_a_guide_that_is_always_invariant(rule):
    net, (x, y) = wide_net(), images()
    symmetry = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 4, 4))
    model = pe.BayesianNetwork(net, size=50)
    guide = pe.AutoSymmetricNormal(model, symmetry, rule=rule)
    guide.initialize(x, y)
    for parameter in guide.parameters():
        parameter.data.normal_()
    noise = {site: torch.randn(rep.event_shape) for site, rep in symmetry.sites.items()}
    value, gradient = orbit_of_noise(model, guide, symmetry, noise, x, y)
    full, full_gradient = gradients_at(pe.handlers.augment(model, symmetry), guide, noise, x, y)
    torch.testing.assert_close(value, full, rtol=1e-11, atol=0)
    assert max(g.abs().max() for g in gradient) > 0.1
    for ours, theirs in zip(gradient, full_gradient, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_upright_data_are_not_enough_for_a_guide_that_is_invariant_only_now():
    """The value agrees, the gradient does not."""
    net, (x, y) = wide_net(), images()
    symmetry = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 4, 4))
    model = pe.BayesianNetwork(net, size=50)
    guide = pe.AutoMeanFieldNormal(model)
    guide.initialize(x, y)
    pe.symmetrize_(guide, symmetry)
    noise = {site: torch.randn(rep.event_shape) for site, rep in symmetry.sites.items()}
    value, gradient = orbit_of_noise(model, guide, symmetry, noise, x, y)
    augmented = pe.handlers.augment(model, symmetry)
    full, full_gradient = orbit_of_noise(augmented, guide, symmetry, noise, x, y)
    assert not guide.always_invariant
    torch.testing.assert_close(value, full, rtol=1e-11, atol=0)
    gaps = [(a - b).norm() / b.norm() for a, b in zip(gradient, full_gradient, strict=True)]
    assert max(gaps) > 1e-2


# Observations that are integers, and expansions


@pytest.mark.parametrize("kind", [torch.int64, torch.float64])
@pytest.mark.parametrize("batch", [1, 4, 5])
def test_counts_move_as_numbers(kind, batch):
    """Also where there are as many data as outputs, so that their shape would fit class labels."""
    group, seen = pe.CyclicGroup(4), []
    symmetry = pe.Symmetry(group, {}, inputs=pe.image(group, (1, 4, 4)), outputs=pe.regular(group))
    x, y = torch.randn(batch, 1, 4, 4), torch.randint(9, (batch, 4)).to(kind)
    pe.handlers.augment(lambda x, y: seen.append(y), symmetry)(x, y)
    assert torch.equal(seen[0].reshape(4, batch, 4), torch.stack([y.roll(g, -1) for g in range(4)]))


def test_labels_out_of_range_do_not_move():
    group = pe.CyclicGroup(4)
    symmetry = pe.Symmetry(group, {}, outputs=pe.regular(group))
    with pytest.raises(pe.SymmetryError, match=r"labels between 0 and 3 .*; got -1 to 2"):
        symmetry.act_outputs(1, torch.tensor([-1, 2]))


def test_predictive_of_a_tied_expansion():
    net, (x, y) = small_net(), images()
    symmetry = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 4, 4), hidden="trivial")
    model = pe.handlers.expand(pe.BayesianNetwork(net), symmetry)
    guide = pe.AutoMeanFieldNormal(model)
    guide.initialize(x, y)
    draw = poutine.trace(guide).get_trace()
    found = []
    for likelihood in ("mean", "predictive"):  # every draw is equivariant, so that they agree
        fixed = poutine.replay(pe.handlers.augment(model, symmetry, likelihood=likelihood), draw)
        trace = poutine.trace(fixed).get_trace(x, y)
        trace.compute_log_prob()
        found.append(trace.nodes["y"]["log_prob_sum"])
    torch.testing.assert_close(*found)


def test_a_continuous_group_has_no_sum():
    group = pe.SpecialOrthogonal(2)
    symmetry = pe.Symmetry(group, {}, inputs=pe.vector(group))
    for options in ({"orbit": "full"}, {"orbit": "random", "likelihood": "sum"}):
        with pytest.raises(pe.SymmetryError, match="Expected a finite group"):
            pe.handlers.augment(lambda x: x, symmetry, **options)
    x = torch.randn(5, 2)
    moved = pe.handlers.augment(lambda x: x, symmetry, orbit="random")(x)
    torch.testing.assert_close(moved.norm(dim=-1), x.norm(dim=-1))


# antithetic


def plane_and_kernel_model(*args):
    for site, shape in (("plane", (2,)), ("kernel", (3, 3))):
        pyro.sample(site, dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape)))


def parameters_by_hand(*args):
    """Its sites' means and scales are parameters that start anywhere."""
    for site, (loc, scale) in START.items():
        loc = pyro.param(f"{site} loc", loc.clone())
        scale = pyro.param(f"{site} scale", scale.clone(), constraint=constraints.positive)
        pyro.sample(site, dist.Normal(loc, scale).to_event(loc.ndim))


START = {
    "plane": (torch.tensor([0.3, -0.5], dtype=torch.float64), torch.tensor([0.6, 1.4], dtype=torch.float64)),
    "kernel": (torch.linspace(-1, 1, 9, dtype=torch.float64).reshape(3, 3),
               torch.linspace(0.5, 1.5, 9, dtype=torch.float64).reshape(3, 3)),
}  # fmt: skip
NORMAL_GUIDES = {
    "by hand": lambda: parameters_by_hand,
    "AutoNormal": lambda: AutoNormal(plane_and_kernel_model),
    "AutoMeanFieldNormal": lambda: pe.AutoMeanFieldNormal(plane_and_kernel_model),
}


def started(kind):
    """The guide with the parameters of ``START``."""
    guide = NORMAL_GUIDES[kind]()
    poutine.block(guide)()
    if kind != "by hand":
        for site, (loc, scale) in START.items():
            values = {"locs": loc, "scales": torch.distributions.transform_to(constraints.softplus_positive).inv(scale)}
            for part, value in values.items():
                leaf = dict(getattr(guide, part).named_parameters())
                (name,) = [n for n in leaf if n.split("_")[0] == site]
                leaf[name].data.copy_(value)
    return guide


def draws_of(guide, count):
    traces = [poutine.trace(guide).get_trace() for _ in range(count)]
    return {site: torch.stack([trace.nodes[site]["value"].detach() for trace in traces]) for site in START}


@pytest.mark.parametrize("kind", NORMAL_GUIDES)
def test_each_antithetic_draw_has_the_law_of_the_guide(kind):
    """Its noise is standard normal; successive ones are moved copies of one noise, also where q is not invariant."""
    symmetry, guide = turns(), started(kind)
    draws = draws_of(pe.handlers.antithetic(guide, symmetry), 1200)
    for site, (loc, scale) in START.items():
        noise = ((draws[site] - loc) / scale).reshape(300, 4, *loc.shape)
        for g in range(4):
            torch.testing.assert_close(noise[:, g], symmetry[site].act(g, noise[:, 0]))
            flat = noise[:, g].flatten(1)
            assert float(flat.mean(0).abs().max()) < SIGMAS / 300**0.5
            assert float((flat.square().mean(0) - 1).abs().max()) < SIGMAS * (2 / 300) ** 0.5
            assert scipy_stats.kstest(flat.flatten().numpy(), "norm").pvalue > 1e-6
        assert float((noise[0, 0] - noise[1, 0]).abs().max()) > 1e-3  # another orbit


@pytest.mark.parametrize("kind", NORMAL_GUIDES)
def test_draws_of_an_invariant_guide_are_one_orbit(kind):
    symmetry, guide = turns(), started(kind)
    pe.symmetrize_(guide, symmetry)
    draws = draws_of(pe.handlers.antithetic(guide, symmetry), 8)
    for site in START:
        for first in (0, 4):
            orbit = symmetry[site].orbit(draws[site][first])
            torch.testing.assert_close(draws[site][first : first + 4], orbit)
        assert float((draws[site][0] - draws[site][4]).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", [AutoNormal, pe.AutoMeanFieldNormal])
def test_antithetic_draws_of_positive_sites(kind):
    def model():
        with pyro.plate("units", 3):
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            pyro.sample("loc", dist.Normal(0.0, scale))

    group = pe.SymmetricGroup(3)
    symmetry = pe.Symmetry(group, {"scale": pe.permutation(group), "loc": pe.permutation(group)})
    guide = kind(model, init_loc_fn=init_to_value(values={"scale": torch.full((3,), 2.0), "loc": torch.ones(3)}))
    poutine.block(guide)()
    orbits = pe.handlers.antithetic(guide, symmetry)
    traces = [poutine.trace(orbits).get_trace() for _ in range(6)]
    for site in ("scale", "loc"):
        draws = torch.stack([trace.nodes[site]["value"].detach() for trace in traces])
        torch.testing.assert_close(draws, symmetry[site].orbit(draws[0]))
        assert float((draws[0] - draws[0, 0]).abs().max()) > 1e-3
        if site == "scale":
            assert bool((draws > 0).all())


def test_antithetic_draws_begin_anew():
    symmetry = turns()
    guide = pe.handlers.antithetic(started("by hand"), symmetry)
    first = draws_of(guide, 2)["plane"]
    guide.restart()
    again = draws_of(guide, 4)["plane"]
    loc, scale = START["plane"]
    noise = (again - loc) / scale
    torch.testing.assert_close(noise, symmetry["plane"].orbit(noise[0]))
    assert float((again[0] - first[0]).abs().max()) > 1e-3


def observed_model(*args):
    plane_and_kernel = {site: pyro.sample(site, dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape)))
                        for site, shape in (("plane", (2,)), ("kernel", (3, 3)))}  # fmt: skip
    total = plane_and_kernel["plane"].square().sum(-1) + plane_and_kernel["kernel"].sum((-2, -1))
    pyro.sample("y", dist.Normal(total, 1.0), obs=torch.tensor(0.5).expand(total.shape))


@pytest.mark.parametrize("kind", NORMAL_GUIDES)
def test_the_elbo_of_antithetic_particles(kind):
    """Vectorized or in a loop, its mean is that of independent ones."""
    symmetry, guide = turns(), started(kind)
    orbits, losses = pe.handlers.antithetic(guide, symmetry), {}
    for name, fn, particles, together in (("independent", guide, 400, True), ("looped", orbits, 4, False),
                                          ("vectorized", orbits, 400, True)):  # fmt: skip
        options = {"vectorize_particles": True, "max_plate_nesting": 0} if together else {}
        elbo = TraceMeanField_ELBO(num_particles=particles, **options)
        losses[name] = torch.tensor([elbo.loss(observed_model, fn) for _ in range(10 if together else 200)])
    for name in ("looped", "vectorized"):
        error = math.sqrt(sum(float(losses[n].var()) / len(losses[n]) for n in (name, "independent")))
        assert abs(float(losses[name].mean() - losses["independent"].mean())) < SIGMAS * error


def test_vectorized_antithetic_particles_are_orbits():
    symmetry, guide = turns(), started("by hand")
    orbits = pe.handlers.antithetic(guide, symmetry)

    def particles():
        with pyro.plate("num_particles_vectorized", 8, dim=-1):
            return orbits()

    trace = poutine.trace(particles).get_trace()
    for site, (loc, scale) in START.items():
        noise = (trace.nodes[site]["value"].detach() - loc) / scale
        assert noise.shape == (8, *loc.shape)
        moved = symmetry[site].orbit(noise[:2]).reshape(8, -1)
        torch.testing.assert_close(noise.reshape(8, -1), moved)
    with pytest.raises(pe.SymmetryError, match="multiple of 4.*got 6"):
        TraceMeanField_ELBO(num_particles=6, vectorize_particles=True, max_plate_nesting=0).loss(observed_model, orbits)


@pytest.mark.parametrize("particles", [4, 8])
def test_the_antithetic_gradient_moves_with_the_parameters(particles):
    """Exactly, for the same noise, also where the guide is not invariant."""
    symmetry = turns()

    def gradient_at(g):
        pyro.clear_param_store()
        poutine.block(parameters_by_hand)()
        leaves = {}
        for site, rep in symmetry.sites.items():
            for part, action in (("loc", rep), ("scale", rep.modulus())):
                leaf = leaves[f"{site} {part}"] = pyro.param(f"{site} {part}").unconstrained()
                leaf.data.copy_(action.act(g, leaf.data))
        pyro.set_rng_seed(3)
        guide = pe.handlers.antithetic(parameters_by_hand, symmetry)
        TraceMeanField_ELBO(num_particles=particles).differentiable_loss(observed_model, guide).backward()
        return {name: leaf.grad for name, leaf in leaves.items()}

    here = gradient_at(0)
    for g in range(1, 4):
        there = gradient_at(g)
        for name, gradient in here.items():
            rep = symmetry[name.split()[0]]
            action = rep if name.endswith("loc") else rep.modulus()
            torch.testing.assert_close(there[name], action.act(g, gradient), rtol=1e-11, atol=1e-12)
    assert max(float((here[name] - here[name].mean()).abs().max()) for name in here) > 0.1


def test_what_cannot_be_drawn_in_orbits():
    symmetry, eighths, rotations = turns(), pe.CyclicGroup(8), pe.SpecialOrthogonal(2)

    def other_law():
        pyro.sample("plane", dist.Laplace(torch.zeros(2), 1.0).to_event(1))

    def plane_only():
        pyro.sample("plane", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def simplex():
        pyro.sample("shares", dist.Dirichlet(torch.ones(3)))

    def subsampled():
        with pyro.plate("rows", 6, subsample_size=3):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    group = pe.SymmetricGroup(3)
    with pytest.raises(pe.SymmetryError, match="site 'plane' .* independent Normals.*got Laplace"):
        pe.handlers.antithetic(other_law, symmetry)()
    with pytest.raises(pe.SymmetryError, match="site 'plane' to be moved by signed permutations"):
        pe.handlers.antithetic(plane_only, pe.Symmetry(eighths, {"plane": pe.vector(eighths)}))()
    with pytest.raises(pe.SymmetryError, match="finite"):
        pe.handlers.antithetic(plane_only, pe.Symmetry(rotations, {"plane": pe.vector(rotations)}))
    with pytest.raises(pe.SymmetryError, match="'plane'"):
        pe.handlers.antithetic(plane_only, pe.Symmetry(group, {}))()
    for kind in (AutoNormal, pe.AutoMeanFieldNormal):
        with pytest.raises(pe.SymmetryError, match="'shares'"):
            pe.handlers.antithetic(kind(simplex), pe.Symmetry(group, {"shares": pe.permutation(group)}))()
    with pytest.raises(pe.SymmetryError, match="leave the plate 'rows' alone"):
        pe.handlers.antithetic(subsampled, pe.Symmetry(group, {"z": pe.permutation(group)}))()
    with pytest.raises(pe.SymmetryError, match=r"pe\.Symmetry"):
        pe.handlers.antithetic(plane_only, None)


def test_antithetic_draws_leave_subsampled_plates_that_stay():
    """Each row has the noise of the orbit, moved on the axis to the right of the plate."""
    group = pe.SymmetricGroup(2)

    def rows():
        with pyro.plate("rows", 6, subsample_size=4):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    orbits = pe.handlers.antithetic(rows, pe.Symmetry(group, {"z": pe.permutation(group)}))
    first, second = (poutine.trace(orbits).get_trace().nodes["z"]["value"] for _ in range(2))
    assert first.shape == (4, 2)
    assert torch.equal(second, first.flip(-1))
    assert len(first[:, 0].unique()) == 4  # each row its own


def test_antithetic_draws_in_a_whole_plate_that_moves():
    """One number for each unit, all drawn by a scalar law in a plate."""
    group = pe.SymmetricGroup(3)

    def units():
        with pyro.plate("units", 3):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    symmetry = pe.Symmetry(group, {"z": pe.permutation(group)})
    orbits = pe.handlers.antithetic(units, symmetry)
    draws = torch.stack([poutine.trace(orbits).get_trace().nodes["z"]["value"] for _ in range(6)])
    torch.testing.assert_close(draws, symmetry["z"].orbit(draws[0]))
    assert len(draws[0].unique()) == 3
