"""The relaxed expansion: its two parts, what the ELBO makes of their scale, the constrained schedule, its study."""

import copy
import functools
import math
import pickle

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.autoguide.initialization import init_to_feasible
from torch import nn

import pyro_equivariance as pe
from pyro_equivariance.data import synthetic
from pyro_equivariance.errors import DataError, OptionError, SymmetryError
from pyro_equivariance.experiments import relaxed as study
from pyro_equivariance.experiments import relaxed_figures
from pyro_equivariance.handlers.relax import relax
from pyro_equivariance.training.relaxation import ConstrainRelaxation

EXACT = 1e-12
C4 = pe.CyclicGroup(4)
STD = 0.5  # of the prior of the linear model's weight


def small(classes=3, prior="fan_in", likelihood="categorical", size=None):
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2), nn.Tanh(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, classes))
    symmetry = pe.network_symmetry(net, C4, (1, 4, 4), hidden="trivial")
    return pe.BayesianNetwork(net, prior, likelihood, size), symmetry


def make(start=0.3, **options):
    model, symmetry = small(**options)
    return relax(model, symmetry, start), symmetry


def images(count=6):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 1, 4, 4, generator=generator), torch.arange(count) % 3


def guided(model, data, **options):
    guide = pe.AutoMeanFieldNormal(model, **options)
    guide.initialize(*data)
    return guide


def is_latent(name):
    return name.endswith(("_base", "_free"))


def latents(model, x):
    trace = pyro.poutine.trace(model).get_trace(x)
    values = {name: site["value"] for name, site in trace.nodes.items() if site["type"] == "sample"}
    return values, trace.nodes["_RETURN"]["value"]


def test_a_site_is_the_expansion_plus_what_its_mean_over_the_group_leaves():
    model, symmetry = make(start=0.7)
    large = pe.handlers.expanded_symmetry(model.big, symmetry, "free")
    values, _ = latents(model, images()[0])
    for name, expansion in model.expansions.items():
        free = values[f"{name}_free"]
        assert free.shape == model.big.net.get_parameter(name).shape
        mean = torch.stack([large[name].act(g, free) for g in range(4)]).mean(0)
        expected = expansion.expand(values[f"{name}_base"]) + 0.7 * (free - mean)
        assert (values[name] - expected).abs().max() < EXACT


def test_the_two_parts_together_reach_every_weight():
    model, _ = make()
    for name, expansion in model.expansions.items():
        base, large = expansion.base_shape, model.large[name].event_shape
        expanded = torch.stack([expansion.expand(e.reshape(base)).flatten() for e in torch.eye(base.numel())])
        kept = torch.stack([model.large[name].mean(e.reshape(large)).flatten() for e in torch.eye(large.numel())])
        assert torch.linalg.matrix_rank(expanded) == torch.linalg.matrix_rank(kept) == round(float(kept.trace()))
        assert (expanded @ kept - expanded).abs().max() < EXACT


def test_the_parts_are_orthogonal_and_the_free_prior_is_the_wide_networks():
    model, _ = make()
    trace = pyro.poutine.trace(model).get_trace(images()[0])
    for name, expansion in model.expansions.items():
        equivariant = expansion.expand(trace.nodes[f"{name}_base"]["value"])
        asymmetric = model.asymmetric(name, trace.nodes[f"{name}_free"]["value"])
        assert abs(float((equivariant * asymmetric).sum().detach())) < EXACT
        prior = model.big.prior_of(name, model.big.net.get_parameter(name))
        assert torch.equal(trace.nodes[f"{name}_free"]["fn"].stddev, prior.stddev)
        assert torch.equal(trace.nodes[f"{name}_free"]["fn"].mean, torch.zeros_like(prior.mean))


def test_at_scale_zero_it_is_the_tied_expansion():
    model, symmetry = make()
    tied = pe.handlers.expand(model.small, symmetry)
    x, _ = images()
    assert not model.is_equivariant
    for layer in model.layers:
        model.set(layer, 0.0)
    values, output = latents(model, x)
    bases = {name: value for name, value in values.items() if name.endswith("_base")}
    latent = {name: value for name, value in values.items() if is_latent(name)}
    assert (output - pyro.poutine.condition(tied, bases)(x)).abs().max() < EXACT
    assert model.is_equivariant
    moved = [pyro.poutine.condition(model, latent)(symmetry.act_inputs(g, x)) for g in range(4)]
    assert max(float((m - output).detach().abs().max()) for m in moved) < EXACT


def test_it_is_compatible_with_its_symmetry_and_its_prior_is_invariant():
    model, symmetry = make(start=1.0)
    data = images()
    guide = guided(model, data, init_scale=0.3)
    assert pe.lifted_check(model, guide, model.symmetry, data[0]) < EXACT
    found = pe.check_assumptions(model, guide, model.symmetry, data=data)
    assert found["a"].holds and found["c"].holds and found["d"].holds
    assert not guide.always_invariant
    predictions = pe.orbit_predict(model, guide, symmetry, data[0], draws=3)
    assert (predictions - predictions[:, :1]).abs().max() > 1e-3  # a draw itself is not equivariant


def test_weight_and_bias_share_a_scale_and_two_models_do_not():
    model, symmetry = make()
    other = relax(model.small, symmetry)
    assert model.layers == ("1", "3", "5")
    model.set("3", 0.9)
    assert model.scales() == pytest.approx({"1": 0.3, "3": 0.9, "5": 0.3})
    assert other.scales() == pytest.approx({"1": 0.3, "3": 0.3, "5": 0.3})
    ones = torch.ones(model.big.net.get_parameter("3.bias").shape).cumsum(0)
    kept = ones - model.large["3.bias"].mean(ones)
    assert torch.allclose(model.asymmetric("3.bias", ones), 0.9 * kept)


def test_scales_are_the_modules_own_whatever_becomes_of_the_store():
    model, symmetry = make()
    data = images()
    guide = guided(model, data)
    for layer, value in {"1": 0.0, "3": 0.9, "5": 2.0}.items():
        model.set(layer, value)
    expected = pytest.approx({"1": 0.0, "3": 0.9, "5": 2.0})
    pyro.clear_param_store()
    model(*data)
    with pyro.get_param_store().scope():
        model(*data)
    assert model.scales() == expected
    other = relax(model.small, symmetry)
    other.load_state_dict(model.state_dict())
    assert other.scales() == expected
    pyro.get_param_store()[model.param_name] = torch.zeros(3)  # as one that was read from a file
    result = pe.fit(model, guide, data, 2, progress=False)
    assert model.scales()["1"] == 0 and model.scales()["3"] != pytest.approx(0.9) and len(result.history["loss"]) == 2


def test_frozen_scales_are_not_trained():
    model, _ = make()
    model.requires_grad_(False)
    pe.fit(model, guided(model, images()), images(), 2, progress=False)
    assert model.scales() == pytest.approx(dict.fromkeys(model.layers, 0.3))
    assert model.param_name not in pyro.get_param_store()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
                         ids=["deepcopy", "pickle"])  # fmt: skip
@pytest.mark.parametrize("trained_before", [False, True])
def test_a_copy_learns_by_itself(copied, trained_before):
    model, _ = make()
    data = images()
    model.set("3", 0.0)
    if trained_before:
        pe.fit(model, guided(model, data), data, 2, progress=False)
    found = model.scales()
    other = copied(model)
    assert other.scales() == found and other.param_name != model.param_name
    pe.fit(other, guided(other, data), data, 2, progress=False)
    assert model.scales() == found and other.scales()["3"] == 0
    assert other.scales()["1"] != found["1"] and other.scales()["5"] != found["5"]
    ones = torch.ones(model.large["5.weight"].event_shape).cumsum(1)
    free = ones - other.large["5.weight"].mean(ones)
    trace = pyro.poutine.trace(pyro.poutine.condition(other, {"5.weight_free": ones})).get_trace(data[0])
    base = other.expansions["5.weight"].expand(trace.nodes["5.weight_base"]["value"])
    assert torch.allclose(trace.nodes["5.weight"]["value"] - base, other.scales()["5"] * free)


@pytest.mark.parametrize("number", [0.5, np.float32(0.5), torch.tensor(0.5), np.float64(0.5)])
def test_numbers_of_any_kind(number):
    model, _ = make(start=number)
    assert model.scales() == pytest.approx(dict.fromkeys(model.layers, 0.5))
    model.set("1", 4 * number)
    assert model.scales()["1"] == pytest.approx(2.0)
    schedule = ConstrainRelaxation(number)
    assert schedule == ConstrainRelaxation(0.5) and type(schedule.ascend(0.0, 1.0)) is float


def test_guides_start_at_a_network_without_an_asymmetric_part():
    model, _ = make()
    found = guided(model, images()).median()
    for name, expansion in model.expansions.items():
        first, large = model.small.net.get_parameter(name), model.big.net.get_parameter(name)
        assert torch.equal(found[f"{name}_base"], expansion.fresh(first, large))
        assert (found[f"{name}_free"] == 0).all()


def test_shares_of_a_sharp_posterior_are_those_of_its_means():
    model, _ = make(start=0.4)
    locs = {}

    def start(site):
        if not is_latent(site["name"]):
            return init_to_feasible(site)
        locs[site["name"]] = torch.randn(site["fn"].event_shape)
        return locs[site["name"]]

    guide = guided(model, images(), init_loc_fn=start, init_scale=1e-9)
    shares = model.shares(guide, draws=2)
    for layer in model.layers:
        parts = torch.zeros(2)
        for name in (f"{layer}.weight", f"{layer}.bias"):
            free = locs[f"{name}_free"]
            asymmetric = 0.4 * (free - torch.stack([model.large[name].act(g, free) for g in range(4)]).mean(0))
            equivariant = model.expansions[name].expand(locs[f"{name}_base"])
            parts += torch.stack([equivariant.square().sum(), asymmetric.square().sum()])
        assert shares[layer] == pytest.approx(float(parts[1] / parts.sum()), rel=1e-6)


# A linear network that a sign must not change: its equivariant part is 0, its asymmetric one s (ε₁ − ε₂) x, and the
# ELBO of the best mean-field guide is known for every s.


def linear():
    """The first layer is fixed at 1, so at [1, −1] when expanded; the second has two free weights."""
    net, signs = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)), pe.SignGroup()
    symmetry = pe.network_symmetry(net, signs, (1,), hidden="trivial", inputs=pe.vector(signs))
    prior = {"0.weight": pyro.distributions.Normal(1.0, 1e-7), "1.weight": STD}
    model = relax(pe.BayesianNetwork(net, prior, "normal"), symmetry)
    model.set("0", 0.0)
    return model


def line(slope, count=20):
    """Data whose ``Σ x y / Σ x²`` is the slope, exactly."""
    x, noise = torch.randn(2, count, 1)
    noise = noise - x * (x * noise).sum() / x.square().sum()
    return x, slope * x + noise


def best_elbo(s, x, y):
    """Of ``y ~ N(s (ε₁ − ε₂) x, 1)``, ``ε ~ N(0, v)``, over mean-field Normals of ``ε``."""
    size, share = x.square().sum(), (x * y).sum() ** 2 / x.square().sum()
    a = (s * STD) ** 2 * size
    return -0.5 * (len(x) * math.log(2 * math.pi) + y.square().sum() - share * 2 * a / (1 + 2 * a)) - math.log1p(a)


def best_scale(x, y, rho=0.0):
    """Where ``∂ELBO/∂s = ρ s``, by bisection of both sides over ``s``; 0 if there is no such s."""
    size, share = float(x.square().sum()), float((x * y).sum() ** 2 / x.square().sum())
    low, high = 0.0, 100.0

    def excess(s):
        a = (s * STD) ** 2 * size
        return 2 * STD**2 * size * (share / (1 + 2 * a) ** 2 - 1 / (1 + a)) - rho

    if excess(low) <= 0:
        return 0.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return low


@pytest.fixture
def paired_noise(monkeypatch):
    """Four particles at ``μ ± σ``, all signs of two entries: their mean of a quadratic is exact, so is the ELBO."""
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).reshape(4, 1, 1, 2)

    def noise(shape, dtype, device):
        return (
            signs.expand(4, 1, 1, 2)[..., : shape[-2:].numel()].reshape(shape) if len(shape) == 4 else torch.ones(shape)
        )

    monkeypatch.setattr("torch.distributions.normal._standard_normal", noise)


EXPECTATION = functools.partial(TraceMeanField_ELBO, num_particles=4, vectorize_particles=True, max_plate_nesting=1)


@pytest.mark.parametrize("s", [1e-3, 0.3, 2.0])
def test_the_elbo_of_the_best_guide_is_known(paired_noise, s):
    model, (x, y) = linear(), line(0.7)
    model.set("1", s)
    size, precision = x.square().sum(), STD**-2 + s**2 * x.square().sum()
    mean = s * (x * y).sum() / (STD**-2 + 2 * s**2 * size)
    locs = {"0.weight_base": torch.ones(1, 1), "1.weight_free": torch.stack([mean, -mean]).reshape(1, 2)}
    scales = {"0.weight_base": torch.tensor(1e-7), "1.weight_free": precision**-0.5}

    def start(site):
        name = site["name"]
        return locs.get(name, torch.zeros(site["fn"].event_shape)) if is_latent(name) else init_to_feasible(site)

    guide = guided(
        model, (x, y), init_loc_fn=start, init_scale=lambda site: scales.get(site["name"], site["fn"].stddev)
    )
    loss = EXPECTATION().loss(model, guide, x, y)
    assert loss == pytest.approx(-float(best_elbo(s, x, y)), abs=1e-5)  # the first layer's width is 1e-7


def trained(model, data, epochs, callbacks=(), rate=0.1):
    def start(site):
        if not is_latent(site["name"]):
            return init_to_feasible(site)
        if site["name"].startswith("0."):
            return site["fn"].mean
        shape = site["fn"].event_shape
        return torch.linspace(0, 0.1, shape.numel()).reshape(shape)

    def optimizer(parameters):
        fixed = {id(p) for name, p in guide.named_parameters() if ".0." in name}
        return torch.optim.Adam([p for p in parameters if id(p) not in fixed], lr=rate)

    def rates(epoch):
        return min(1.0, 2 - 2 * epoch / epochs)

    guide = guided(model, data, init_loc_fn=start, init_scale=pe.FractionOfPrior(1.0))
    scheduler = functools.partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=rates)
    return pe.fit(model, guide, data, epochs, optimizer=optimizer, scheduler=scheduler, callbacks=callbacks,
                  loss=EXPECTATION(), progress=False)  # fmt: skip


def test_the_elbo_learns_the_scale_that_it_is_largest_at(paired_noise):
    x, y = data = line(1.5)
    model, best = linear(), best_scale(x, y)
    share, size = float((x * y).sum() ** 2 / x.square().sum()), float(x.square().sum())
    assert best == pytest.approx(math.sqrt((share - 4 + math.sqrt(share**2 + 8 * share)) / 8 / size) / STD)
    result = trained(model, data, 250)
    assert model.scales()["1"] == pytest.approx(best, rel=2e-3)
    assert result.history["loss"][-1] * len(x) == pytest.approx(-float(best_elbo(best, x, y)), abs=1e-2)


def test_the_scale_falls_to_zero_where_data_want_the_symmetry(paired_noise):
    x, y = data = line(0.0)
    assert best_scale(x, y) == 0
    model = linear()
    result = trained(model, data, 200)
    assert best_elbo(0.0, x, y) - best_elbo(model.scales()["1"], x, y) < 1e-2  # nats
    assert result.history["loss"][-1] * len(x) == pytest.approx(-float(best_elbo(0.0, x, y)), abs=1e-2)


@pytest.mark.parametrize("rho", [1.0, 30.0])
def test_the_schedule_ends_where_the_multiplier_is_the_price_of_the_slack(paired_noise, rho):
    x, y = data = line(1.5)
    model, best = linear(), best_scale(x, y, rho)
    result = trained(model, data, 400, [ConstrainRelaxation(rho, rate=rho / 20)])
    multiplier, slack = model.multipliers["1"]
    assert 0 < best < best_scale(x, y)
    assert model.scales()["1"] == pytest.approx(best, rel=3e-3)
    assert multiplier == pytest.approx(rho * best, rel=3e-3) and slack == multiplier / rho
    assert len(result.history["scale.1"]) == len(result.history["multiplier.1"]) == 400
    assert result.history["multiplier.1"][0] == 0 and result.history["scale.1"][0] == pytest.approx(0.3)


def test_a_dear_slack_leaves_no_asymmetry():
    x, y = line(1.5)
    found = [best_scale(x, y, rho) for rho in (0.0, 1.0, 10.0)]
    assert found == sorted(found, reverse=True)
    assert best_scale(x, y, 1e4) == 0  # the price is above what the data pay at s = 0


def test_the_loss_less_the_constraint_is_that_of_the_model_alone(paired_noise):
    data = line(1.5)
    alone = trained(linear(), data, 4, rate=0.0)
    held = trained(linear(), data, 4, [ConstrainRelaxation(10.0)], rate=0.0)
    history = {name: torch.tensor(held.history[name]) for name in ("loss", "constraint", "multiplier.1")}
    assert torch.allclose(history["loss"] - history["constraint"], torch.tensor(alone.history["loss"]), atol=1e-12)
    multiplier = history["multiplier.1"]
    assert torch.allclose(history["constraint"], multiplier * (0.3 - multiplier / 10) / len(data[0]))
    assert (multiplier[1:] > 0).all()


def test_a_step_of_the_multiplier():
    schedule = ConstrainRelaxation(rho=10.0, rate=2.0)
    assert schedule.ascend(5.0, 0.5) == 5.0
    assert schedule.ascend(0.0, 0.3) == pytest.approx(0.6)
    assert schedule.ascend(1.0, 0.0) == pytest.approx(0.8)
    assert ConstrainRelaxation(rho=10.0, rate=100.0).ascend(1.0, 0.0) == 0.0
    assert ConstrainRelaxation(rho=10.0) == ConstrainRelaxation(rho=10.0)


@pytest.mark.parametrize("likelihood", ["mean", "sum", "predictive", None])
def test_the_constraint_is_in_the_loss_once_however_the_model_is_augmented_or_tempered(likelihood):
    data = images()
    model, symmetry = make(size=len(data[0]))
    augmented = pe.handlers.augment(model, symmetry, likelihood=likelihood) if likelihood else model
    guide = guided(model, data)

    def loss(weight):
        pyro.set_rng_seed(3)
        with pe.training.TemperMessenger(weight):
            return TraceMeanField_ELBO().loss(augmented, guide, *data)

    for weight in (1.0, 0.1):
        model.multipliers = {}
        without = loss(weight)
        model.multipliers = {"1": (2.0, 0.1), "5": (3.0, 0.5)}
        assert loss(weight) - without == pytest.approx(2.0 * (0.3 - 0.1) + 3.0 * (0.3 - 0.5), abs=1e-9)


def test_the_constraint_is_no_observation():
    data = images()
    model, symmetry = make()
    guide = guided(model, data)

    def predictions():
        pyro.set_rng_seed(3)
        return pe.predict(model, guide, data[0], draws=2)

    without = predictions()
    model.multipliers = {"1": (2.0, 0.1)}
    assert torch.equal(predictions(), without)
    assert pe.predict(model, guide, data[0], draws=2, symmetry=symmetry).shape == (2, 6, 3)


def test_fit_trains_the_scales_of_an_augmented_model_and_each_constrained_fit_begins_anew():
    data = images(8)
    model, symmetry = make(size=8)
    guide = guided(model, data)
    schedule, augmented = ConstrainRelaxation(5.0), pe.handlers.augment(model, symmetry)
    result = pe.fit(augmented, guide, data, 3, batch_size=4, callbacks=[schedule], validation=data, progress=False)
    assert all(scale != 0.3 for scale in model.scales().values())
    assert result.history["multiplier.1"][0] == 0 < result.history["multiplier.1"][2]
    again = pe.fit(augmented, guide, data, 2, callbacks=[schedule], progress=False)
    assert again.history["multiplier.1"][0] == 0


def test_a_saved_guide_comes_back_with_its_scales(tmp_path):
    data = images()
    model, symmetry = make()
    guide = guided(model, data)
    model.set("5", 1.7)
    pe.save(tmp_path / "guide.pt", guide, data)
    other = relax(model.small, symmetry)
    restored = pe.load(tmp_path / "guide.pt", other)
    assert other.scales() == pytest.approx(model.scales())
    pyro.set_rng_seed(3)
    before = pe.predict(model, guide, data[0], draws=2)
    pyro.set_rng_seed(3)
    assert torch.equal(pe.predict(other, restored, data[0], draws=2), before)


def test_learned_scales_of_the_prior_and_noise_are_kept_besides():
    model, _ = make(prior="learned", likelihood=pe.NormalLikelihood(learned=True))
    data = images()[0], torch.randn(6, 3)
    guided(model, data)
    found = model.learned()
    assert {name.partition(".")[0] for name in found} == {"noise", "relaxed", "scale"}
    model.set("1", 2.5)
    model.load_learned(found)
    assert model.learned() == pytest.approx(found)


def test_shares_under_the_guides_that_fit_takes():
    model, _ = make()
    data = images()
    guide = guided(pe.handlers.augment(model, model.symmetry), data)
    invariant = pe.SymmetrizedGuide(guided(model, data), model.symmetry)
    for found in (guide, invariant, pickle.loads(pickle.dumps(guide)), lambda: guide()):
        assert list(model.shares(found, draws=2)) == list(model.layers)


def unready():
    model, _ = make()
    model.shares(pe.AutoMeanFieldNormal(model))


def foreign():
    model, symmetry = make()
    model.shares(guided(relax(model.small, symmetry), images()))


def heavy():
    model, symmetry = small(prior=pyro.distributions.Cauchy(0.0, 1.0))
    return relax(model, symmetry)


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (lambda: make(start=0.0), OptionError, "start"),
        (lambda: make(start="gcnn"), OptionError, "start"),
        (lambda: make(start=True), OptionError, "start"),
        (lambda: make(start=torch.ones(1)), OptionError, "start"),
        (lambda: relax(*make()), OptionError, "BayesianNetwork"),
        (lambda: relax(small()[0], pe.network_symmetry(small()[0].net, C4, (1, 4, 4), hidden=pe.trivial(C4, (1,)))),
         SymmetryError, "."),
        (heavy, OptionError, "finite variance"),
        (lambda: make()[0].set("9", 1.0), OptionError, "layer"),
        (lambda: make()[0].set("1", -1.0), OptionError, "at least 0"),
        (lambda: make()[0].set("1", "a"), OptionError, "at least 0; got 'a'"),
        (lambda: make()[0].scale("9"), OptionError, "layer"),
        (lambda: make()[0].shares(None, 0), OptionError, "draw"),
        (unready, SymmetryError, "initialize"),
        (foreign, SymmetryError, "guide of this model"),
        (lambda: guided(make()[0], images()[:1]), SymmetryError, "observation"),
        (lambda: ConstrainRelaxation(0.0), OptionError, "rho"),
        (lambda: ConstrainRelaxation(1.0, -1.0), OptionError, "rate"),
        (lambda: ConstrainRelaxation("a"), OptionError, "rho.*'a'"),
        (lambda: ConstrainRelaxation(True), OptionError, "rho"),
        (lambda: ConstrainRelaxation(1.0, "a"), OptionError, "rate.*'a'"),
        (lambda: pe.fit(small()[0], pe.AutoMeanFieldNormal(small()[0]), images(), 1,
                        callbacks=[ConstrainRelaxation(1.0)], progress=False), OptionError, "relax"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused(wrong, error, words):
    with pytest.raises(error, match=words):
        wrong()


def test_the_sets_differ_in_their_turns_and_labels_only():
    x, y = torch.randn(200, 1, 4, 4), torch.arange(200) % 10
    found = {name: study.posed(x, y, name, torch.Generator().manual_seed(0)) for name in study.SETS}
    assert torch.equal(found["upright"][0], x) and torch.equal(found["upright"][1], y)
    turns = {}
    for name in ("turned", "pose"):
        same = torch.stack([(torch.rot90(x, k, (-2, -1)) == found[name][0]).flatten(1).all(1) for k in range(4)])
        assert (same.sum(0) == 1).all()
        turns[name] = same.double().argmax(0)
        assert set(turns[name].tolist()) == {0, 1, 2, 3}
    assert torch.equal(found["turned"][1], y)
    moves = (y == 6) | (y == 9)
    assert set(turns["pose"][moves].tolist()) == {0, 2}
    swapped = found["pose"][1] != y
    assert torch.equal(swapped, moves & (turns["pose"] == 2))
    assert (found["pose"][1][swapped] == 15 - y[swapped]).all()


def test_separation_of_seeds():
    rows = [{"set": name, "network": "relaxed", "scale_1": value} for name, value in
            (("turned", 1.0), ("turned", 3.0), ("pose", 2.0), ("pose", 4.0))]  # fmt: skip
    rows.append({"set": "pose", "network": "tied", "scale_1": -1.0})
    found = study.separation(rows, "scale_1", "pose")
    assert found["auc"] == 0.75 and found["gap"] == pytest.approx(2 / 3)


def test_the_columns_of_a_row_are_in_the_order_of_the_layers():
    config = study.RelaxedConfig(start=0.5, units=2, draws=2)
    data = torch.randn(6, 1, 4, 4), torch.arange(6) % 3
    model = study.model_of(config, "relaxed", data, 3, seed=0)
    assert model.scales() == pytest.approx(dict.fromkeys(model.layers, 0.5))
    for layer, value in zip(model.layers, (0.7, 0.9, 0.0), strict=True):
        model.set(layer, value)
    found = study.scales_and_shares(config, model, guided(model, data, init_scale=0.1))
    expected = {"scale_1": 0.7, "scale_2": 0.9, "scale_3": 0.0, "largest": 0.9, "share_3": 0.0}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["share_1"] > 0 < found["share_2"]
    assert all(map(math.isnan, study.scales_and_shares(config, model.big, None).values()))


def test_a_smoke_run_of_the_study_and_its_picture():
    config = study.RelaxedConfig().smoke()
    result = study.run(config, synthetic(60, classes=10))
    assert [(r["set"], r["network"]) for r in result["rows"]] == [(s, n) for s in study.SETS for n in study.NETWORKS]
    assert all(set(row) == set(study.DEFINITIONS) for row in result["rows"])
    tied = [r for r in result["rows"] if r["network"] == "tied"]
    assert tied[0]["accuracy"] == tied[1]["accuracy"] and tied[0]["loss"] == pytest.approx(tied[1]["loss"])
    assert [s["rho"] for s in result["schedules"]] == list(config.rhos)
    figure = relaxed_figures.relaxed(result | {"config": config.as_dict()})
    assert len(figure.axes) == 3
    with pytest.raises(DataError, match="ten classes"):
        study.run(config, synthetic(60, classes=4))
    with pytest.raises(OptionError, match="rhos"):
        study.RelaxedConfig(rhos=())
