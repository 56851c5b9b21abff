"""Posterior predictive draws: each against the network itself, and what their defects average to."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyro_equivariance as pe
from pyro_equivariance.prediction import log_predictive

GROUPS = {"C4": lambda *args: pe.CyclicGroup(4), "D4": lambda: pe.DihedralGroup(4)}
COUNT, DRAWS = 3, 5


def turned(x, g):
    """Element ``g`` of C4 or D4 on images, by torch alone."""
    moved = torch.rot90(x, g % 4, (-2, -1))
    return moved if g < 4 else moved.flip(-1)


def small_net(outputs=3):
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, outputs))


def images():
    return torch.randn(COUNT, 1, 4, 4)


def by_hand(net):
    """A guide of wide Normals, without any symmetry."""
    locs = {name: torch.randn_like(p) for name, p in net.named_parameters()}

    def guide(*args):
        return {name: pyro.sample(name, dist.Normal(loc, 0.5).to_event(loc.ndim)) for name, loc in locs.items()}

    return guide


def mean_field(net):
    guide = pe.AutoMeanFieldNormal(pe.BayesianNetwork(net), init_scale=0.5)
    guide.initialize(images(), torch.zeros(COUNT).long())
    return guide


def auto_normal(net):
    guide = AutoNormal(pe.BayesianNetwork(net), init_scale=0.5)
    guide(images(), torch.zeros(COUNT).long())
    return guide


GUIDES = {"by hand": by_hand, "pe": mean_field, "pyro": auto_normal}
each_guide = pytest.mark.parametrize("kind", GUIDES)


class Recorder:
    """A guide that remembers its draws."""

    def __init__(self, guide):
        self.guide, self.draws = guide, []

    def __call__(self, *args):
        self.draws.append(self.guide(*args))
        return self.draws[-1]

    def outputs(self, net, x):
        """The network's outputs for each draw, by torch alone: ``(T, N, classes)``."""
        with torch.no_grad():
            return torch.stack([torch.func.functional_call(net, draw, (x,)) for draw in self.draws])


@each_guide
def test_predict_is_the_network_at_each_draw(kind):
    net, x = small_net(), images()
    recorder = Recorder(GUIDES[kind](net))
    probs = pe.predict(pe.BayesianNetwork(net), recorder, x, draws=DRAWS)
    assert len(recorder.draws) == DRAWS
    assert probs.shape == (DRAWS, COUNT, 3)
    assert not probs.requires_grad
    torch.testing.assert_close(probs, recorder.outputs(net, x).softmax(-1), rtol=0, atol=1e-14)
    assert probs.std(0).min() > 1e-3


@pytest.mark.parametrize("group", GROUPS)
@each_guide
def test_the_orbit_shares_its_draws(kind, group):
    net, x, group = small_net(), images(), GROUPS[group]()
    symmetry = pe.network_symmetry(net, group, (1, 4, 4), hidden="trivial")
    recorder = Recorder(GUIDES[kind](net))
    probs = pe.orbit_predict(pe.BayesianNetwork(net), recorder, symmetry, x, draws=DRAWS)
    assert len(recorder.draws) == DRAWS
    assert probs.shape == (DRAWS, len(group), COUNT, 3)
    for g in range(len(group)):
        expected = recorder.outputs(net, turned(x, g)).softmax(-1)
        torch.testing.assert_close(probs[:, g], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("group", GROUPS)
def test_independent_draws_for_each_element(group):
    net, x, group = small_net(), images(), GROUPS[group]()
    symmetry = pe.network_symmetry(net, group, (1, 4, 4), hidden="trivial")
    recorder = Recorder(by_hand(net))
    probs = pe.orbit_predict(pe.BayesianNetwork(net), recorder, symmetry, x, draws=DRAWS, independent=True)
    assert len(recorder.draws) == DRAWS * len(group)
    assert probs.shape == (DRAWS, len(group), COUNT, 3)
    for g in range(len(group)):
        expected = recorder.outputs(net, turned(x, g)).softmax(-1)[g * DRAWS : (g + 1) * DRAWS]
        torch.testing.assert_close(probs[:, g], expected, rtol=0, atol=1e-14)


def test_a_draw_of_tied_samples_predicts_alike_over_the_orbit():
    """The expanded weights are deterministic sites, which are no observations."""
    net, x, group = small_net(), images(), pe.DihedralGroup(4)
    symmetry = pe.network_symmetry(net, group, (1, 4, 4), hidden="trivial")
    small = pe.BayesianNetwork(net)
    model, guide, large = pe.expand(small, mean_field(net), symmetry, tie="samples")
    probs = pe.orbit_predict(model, guide, large, x, draws=DRAWS)
    assert probs.shape == (DRAWS, 8, COUNT, 3)
    assert (probs - probs[:, :1]).abs().max() < 1e-12
    assert probs.std(0).min() > 1e-3


@pytest.mark.parametrize("events", [0, 1])
def test_real_observations_are_predicted_by_their_mean(events):
    net, x, y = small_net(2), images(), torch.randn(COUNT, 2)
    model = pe.BayesianNetwork(net, likelihood=lambda f: dist.Normal(f if events else f[:, 0], 0.3).to_event(events))
    recorder = Recorder(by_hand(net))
    means = pe.predict(model, recorder, x, draws=DRAWS)
    scores = log_predictive(model, recorder, (x, y if events else y[:, 0]), draws=DRAWS)
    outputs = recorder.outputs(net, x)
    expected = dist.Normal(outputs, 0.3).log_prob(y)
    torch.testing.assert_close(means, outputs[:DRAWS] if events else outputs[:DRAWS, :, 0])
    torch.testing.assert_close(scores, (expected.sum(-1) if events else expected[..., 0])[DRAWS:])


@pytest.mark.parametrize("size", [None, 100])
@each_guide
def test_log_predictive_is_the_score_of_each_datum(kind, size):
    """Whatever number of data the minibatch stands for."""
    net, x, y = small_net(), images(), torch.tensor([2, 0, 1])
    recorder = Recorder(GUIDES[kind](net))
    scores = log_predictive(pe.BayesianNetwork(net, size=size), recorder, (x, y), draws=DRAWS)
    expected = recorder.outputs(net, x).log_softmax(-1)[:, torch.arange(COUNT), y]
    assert scores.shape == (DRAWS, COUNT)
    assert not scores.requires_grad
    torch.testing.assert_close(scores, expected)


def test_log_predictive_of_an_augmented_model_has_all_moved_copies():
    net, x, y, group = small_net(), images(), torch.tensor([2, 0, 1]), pe.CyclicGroup(4)
    model = pe.handlers.augment(pe.BayesianNetwork(net), pe.network_symmetry(net, group, (1, 4, 4), hidden="trivial"))
    recorder = Recorder(by_hand(net))
    scores = log_predictive(model, recorder, (x, y), draws=DRAWS)
    expected = [recorder.outputs(net, turned(x, g)).log_softmax(-1)[:, torch.arange(COUNT), y] for g in range(4)]
    torch.testing.assert_close(scores, torch.cat(expected, 1))


def two_observations(x, y=None, z=None):
    """A hand-written model whose plate subsamples."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    shift = pyro.deterministic("shift", slope + 1)
    with pyro.plate("data", 50, subsample=torch.arange(len(x))):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
        pyro.sample("z", dist.Normal(shift * x, 2.0), obs=z)


def slope_guide(*args):
    return {"slope": pyro.sample("slope", dist.Normal(0.5, 0.1))}


def test_log_predictive_adds_up_the_observations_of_a_datum():
    x, y, z = torch.randn(3, COUNT)
    recorder = Recorder(slope_guide)
    scores = log_predictive(two_observations, recorder, (x, y, z), draws=DRAWS)
    slopes = torch.stack([draw["slope"] for draw in recorder.draws])[:, None]
    expected = dist.Normal(slopes * x, 1.0).log_prob(y) + dist.Normal((slopes + 1) * x, 2.0).log_prob(z)
    torch.testing.assert_close(scores, expected)


def test_predict_needs_one_observation_site():
    with pytest.raises(pe.SymmetryError, match=r"one observation site; got \['y', 'z'\]"):
        pe.predict(two_observations, slope_guide, torch.randn(2))


@pytest.mark.parametrize("draws", [0, -1])
def test_at_least_one_draw(draws):
    net = small_net()
    symmetry = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 4, 4), hidden="trivial")
    model, guide, x = pe.BayesianNetwork(net), by_hand(net), images()
    with pytest.raises(pe.SymmetryError, match=f"draws={draws}"):
        pe.predict(model, guide, x, draws=draws)
    with pytest.raises(pe.SymmetryError, match=f"draws={draws}"):
        pe.orbit_predict(model, guide, symmetry, x, draws=draws)
    with pytest.raises(pe.SymmetryError, match=f"draws={draws}"):
        log_predictive(model, guide, (x, torch.zeros(COUNT).long()), draws=draws)


# What the defects of an exactly invariant posterior average to


def logistic(invariant):
    """Logistic regression on 3 × 3 images: model, symmetry and a fixed guide, invariant under C4 or not."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 3, bias=False))
    model, group = pe.BayesianNetwork(net), pe.CyclicGroup(4)
    symmetry = pe.network_symmetry(net, group, (1, 3, 3))
    free = pe.AutoMeanFieldNormal(model)
    free.initialize(torch.zeros(1, 1, 3, 3), torch.zeros(1).long())
    with torch.no_grad():
        for parameter in free.parameters():
            parameter.normal_()
    if invariant:
        pe.symmetrize_(free, symmetry)
    base = free.get_posterior("1.weight").base_dist
    law = dist.Normal(base.loc.detach(), base.scale.detach()).to_event(2)
    return model, symmetry, lambda *args: pyro.sample("1.weight", law)


def re_evaluations(guide_is_invariant, independent, draws, repeats):
    """``(repeats, draws, |G|, N, classes)``, all drawn in one go, and their defects."""
    model, symmetry, guide = logistic(guide_is_invariant)
    x = torch.randn(2, 1, 3, 3)
    outputs = pe.orbit_predict(model, guide, symmetry, x, draws * repeats, independent).unflatten(0, (repeats, draws))
    estimator = "biased" if independent else "unbiased"
    defects = [float(pe.metrics.equivariance_defect(part, estimator=estimator)) for part in outputs]
    return outputs, torch.tensor(defects)


def score(values, expected=0.0):
    """The mean's distance from what is expected, in its standard errors."""
    return float((values.mean() - expected) / (values.std() / len(values) ** 0.5))


def check_defects(draws, repeats):
    """Unbiased at zero; with independent draws, too high by ``2 (1 - 1/|G|) tr Var(f) / T``."""
    _, unbiased = re_evaluations(True, False, draws, repeats)
    assert abs(score(unbiased)) < 3
    assert unbiased.min() < 0 < unbiased.max()
    outputs, biased = re_evaluations(True, True, draws, repeats)
    assert score(biased) > 5
    variance = outputs.flatten(0, 1).var(0).sum(-1).mean()
    assert abs(score(biased, 1.5 * variance / draws)) < 4


def test_defect_of_an_invariant_guide():
    check_defects(draws=8, repeats=200)


def test_defect_of_a_guide_that_is_not_invariant():
    _, unbiased = re_evaluations(False, False, draws=8, repeats=50)
    assert score(unbiased) > 5


@pytest.mark.slow
@pytest.mark.parametrize("draws", [8, 16, 32, 50])
def test_defect_of_an_invariant_guide_at_any_number_of_draws(draws):
    check_defects(draws, repeats=200)


def test_dropout_does_not_act_in_predictions():
    """Predictions are made in evaluation mode, and the model's modes come back."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 6), torch.nn.Dropout(0.5), torch.nn.Linear(6, 3))
    group = pe.CyclicGroup(4)
    symmetry = pe.network_symmetry(net, group, (1, 4, 4), hidden="trivial")
    model = pe.BayesianNetwork(net)
    model, guide, _ = pe.expand(model, pe.AutoMeanFieldNormal(model), symmetry)
    draws = pe.orbit_predict(model, guide, symmetry, torch.randn(5, 1, 4, 4), draws=3)
    assert (draws - draws[:, :1]).abs().max() < 1e-10
    assert model.training and all(module.training for module in model.modules())


# Over the orbit


@pytest.mark.parametrize("group", GROUPS)
@each_guide
def test_the_mean_over_the_orbit_is_invariant_in_every_draw(kind, group):
    net, x = small_net(), images()
    guide, symmetry = GUIDES[kind](net), pe.network_symmetry(net, GROUPS[group](), (1, 4, 4), hidden="trivial")
    model = pe.BayesianNetwork(net)
    found = []
    for g in range(len(symmetry.group)):
        pyro.set_rng_seed(1)
        found.append(pe.predict(model, guide, turned(x, g), draws=DRAWS, symmetry=symmetry))
        torch.testing.assert_close(found[-1], found[0], rtol=0, atol=1e-12)
    pyro.set_rng_seed(1)
    copies = pe.orbit_predict(model, guide, symmetry, x, draws=DRAWS)
    torch.testing.assert_close(found[0], copies.mean(1))
    assert (copies[:, 1] - found[0]).abs().max() > 1e-3


def test_the_mean_over_the_orbit_of_outputs_that_move():
    group = pe.CyclicGroup(4)
    net, x = small_net(outputs=2), images()
    symmetry = pe.Symmetry(group, {}, inputs=pe.image(group, (1, 4, 4)), outputs=pe.vector(group))
    model = pe.BayesianNetwork(net, likelihood="normal")
    guide = by_hand(net)
    pyro.set_rng_seed(1)
    upright = pe.predict(model, guide, x, draws=DRAWS, symmetry=symmetry)
    for g in range(4):
        pyro.set_rng_seed(1)
        moved = pe.predict(model, guide, turned(x, g), draws=DRAWS, symmetry=symmetry)
        torch.testing.assert_close(moved, symmetry.outputs.act(g, upright), rtol=0, atol=1e-12)
    assert upright.abs().max() > 1e-3


@each_guide
def test_lifted_check(kind):
    """Zero for the action of the network, of the size of the outputs for another one."""
    net, x = small_net(), images()
    model, guide = pe.BayesianNetwork(net), GUIDES[kind](net)
    right = pe.network_symmetry(net, pe.DihedralGroup(4), (1, 4, 4), hidden="trivial")
    assert pe.lifted_check(model, guide, right, x) < 1e-12
    still = pe.Symmetry(right.group, right.sites | {"0.weight": pe.trivial(right.group, (2, 1, 3, 3))}, right.inputs)
    assert pe.lifted_check(model, guide, still, x) > 1e-2


def test_lifted_check_of_outputs_that_move():
    group = pe.CyclicGroup(4)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
    symmetry = pe.network_symmetry(net, group, (2,), inputs=pe.vector(group), outputs=pe.vector(group))
    model = pe.BayesianNetwork(net, likelihood="normal")
    assert pe.lifted_check(model, by_hand(net), symmetry, torch.randn(5, 2)) < 1e-12
    invariant = pe.Symmetry(group, symmetry.sites, inputs=symmetry.inputs)
    assert pe.lifted_check(model, by_hand(net), invariant, torch.randn(5, 2)) > 0.1


@pytest.mark.parametrize("arrangement", ["free", "gcnn", "diagonal"])
def test_lifted_check_of_a_tied_expansion(arrangement):
    """Its sites are those of the small network, and every draw is equivariant as it is."""
    net, x = small_net(), images()
    small = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 4, 4), hidden="trivial")
    model = pe.BayesianNetwork(net)
    big_model, guide, symmetry = pe.expand(model, mean_field(net), small, arrangement)
    assert pe.lifted_check(big_model, guide, symmetry, x) < 1e-12


def test_lifted_check_needs_every_site():
    net, x = small_net(), images()
    symmetry = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 4, 4), hidden="trivial")
    part = pe.Symmetry(symmetry.group, {"0.weight": symmetry["0.weight"]}, symmetry.inputs)
    with pytest.raises(pe.SymmetryError, match="representation for site '0.bias'"):
        pe.lifted_check(pe.BayesianNetwork(net), by_hand(net), part, x)
