"""The training loop: what one step computes, to the last digit, and what it keeps, forgets and refuses."""

import copy
import functools
import inspect
import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.distributions import kl_divergence

import pyro_equivariance as pe
from pyro_equivariance.data import synthetic
from pyro_equivariance.errors import OptionError
from pyro_equivariance.experiments import METHODS, Config
from pyro_equivariance.experiments.base import make_problem
from pyro_equivariance.training import negative_log_predictive

COUNT = 8
SGD = functools.partial(torch.optim.SGD, lr=0.05)
STILL = functools.partial(torch.optim.SGD, lr=0.0)


def fit(*args, **options):
    return pe.fit(*args, **{"progress": False, **options})


def data(count=COUNT, classes=3):
    return torch.randn(count, 4), torch.arange(count) % classes


def linear(**options):
    """Logistic regression from 4 numbers to 3 classes."""
    return pe.BayesianNetwork(nn.Linear(4, 3), **options)


def images(count=COUNT):
    return torch.randn(count, 1, 4, 4), torch.arange(count) % 3


def conv_net(width=4):
    return nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(),
                         nn.Linear(4 * width, 3))  # fmt: skip


def symmetric(net, hidden="regular"):
    return pe.network_symmetry(net, pe.CyclicGroup(4), (1, 4, 4), hidden=hidden)


def snapshot(guide):
    return [p.detach().clone() for p in guide.parameters()]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# Reproducibility


def one_run(seed, noise, **options):
    """A run that uses all that is random: minibatches, turns, draws, validation."""
    net = conv_net()
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(0.1)
    x, y = torch.linspace(-1, 1, 16 * COUNT).reshape(COUNT, 1, 4, 4), torch.arange(COUNT) % 3
    held_out = (x[:3].flip(0), y[:3])
    torch.randn(noise)
    model = pe.BayesianNetwork(net, size=COUNT)
    guide = pe.AutoMeanFieldNormal(model)
    augmented = pe.handlers.augment(model, symmetric(net), orbit="random")
    result = fit(
        augmented, guide, (x, y), epochs=4, batch_size=3, kl_warmup=1, validation=held_out, seed=seed, **options
    )
    return snapshot(guide), result.history


@pytest.mark.parametrize("options", [{}, {"optimizer": pyro.optim.Adam({"lr": 0.02})}], ids=["torch", "pyro"])
def test_one_seed_one_result(options):
    first, again, other = one_run(3, 1, **options), one_run(3, 7, **options), one_run(4, 1, **options)
    assert equal(first[0], again[0])
    assert str(first[1]) == str(again[1])  # nan is nan as text
    assert not equal(first[0], other[0])
    assert first[1]["loss"] != other[1]["loss"]


def test_the_progress_bar_changes_nothing(capsys):
    assert equal(one_run(3, 1, progress=True)[0], one_run(3, 1)[0])
    assert "epoch" in capsys.readouterr().err


# Minibatches


class Watcher:
    """A model that remembers which rows it was given."""

    def __init__(self, model, x):
        self.model, self.x, self.batches = model, x, []

    def __call__(self, x, y=None):
        self.batches.append([int((self.x == row).all(-1).nonzero()) for row in x])
        return self.model(x, y)


def watched(batch_size, epochs=6):
    x, y = data()
    model = linear(size=COUNT)
    watcher = Watcher(model, x)
    result = fit(watcher, pe.AutoMeanFieldNormal(model), (x, y), epochs=epochs, batch_size=batch_size)
    first, *batches = watcher.batches  # the first call makes the parameters
    assert first == list(range(batch_size or COUNT))
    return batches, result


def test_minibatches_are_drawn_without_replacement():
    batches, _ = watched(batch_size=3)
    assert len(batches) == 6 * 2  # of eight rows, two are left over
    epochs = [sum(batches[i : i + 2], []) for i in range(0, 12, 2)]
    for rows in epochs:
        assert len(set(rows)) == 6
    assert len({tuple(rows) for rows in epochs}) == 6
    assert {row for rows in epochs for row in rows} == set(range(COUNT))


@pytest.mark.parametrize("batch_size", [None, COUNT, 100])
def test_all_data_at_once(batch_size):
    x, y = data()
    model = linear()
    watcher = Watcher(model, x)
    fit(watcher, pe.AutoMeanFieldNormal(model), (x, y), epochs=3, batch_size=batch_size)
    assert watcher.batches == [list(range(COUNT))] * 4


# The loss, to the last digit


def laws(guide):
    return {name: guide.get_posterior(name).base_dist for name in ("weight", "bias")}


def by_hand_steps(guide, prior, batch, weights, seed, analytic):
    """The same run written out: losses and final parameters."""
    x, y = batch
    losses = []
    pyro.set_rng_seed(seed)
    guide(x, y)  # the evaluation that makes the parameters
    for beta in weights:
        q = laws(guide)
        draws = {name: law.loc + law.scale * torch.randn_like(law.loc) for name, law in q.items()}
        scores = torch.nn.functional.linear(x, draws["weight"], draws["bias"]).log_softmax(-1)
        fit_term = scores[torch.arange(len(x)), y].sum()
        if analytic:
            complexity = sum(kl_divergence(law, prior).sum() for law in q.values())
        else:
            ratios = {name: law.log_prob(draws[name]) - prior.log_prob(draws[name]) for name, law in q.items()}
            complexity = sum(ratio.sum() for ratio in ratios.values())
        loss = (beta * complexity - fit_term) / len(x)
        gradients = torch.autograd.grad(loss, list(guide.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(guide.parameters(), gradients, strict=True):
                parameter.sub_(0.05 * gradient)
        losses.append(loss.item())
    return losses, snapshot(guide)


@pytest.mark.parametrize("elbo", [TraceMeanField_ELBO, Trace_ELBO])
@pytest.mark.parametrize(("kl_weight", "kl_warmup", "weights"), [
    (1.0, 0, [1.0, 1.0, 1.0, 1.0]),
    (0.25, 0, [0.25, 0.25, 0.25, 0.25]),
    (0.6, 2, [0.2, 0.4, 0.6, 0.6]),
])  # fmt: skip
def test_steps_against_steps_by_hand(kl_weight, kl_warmup, weights, elbo):
    batch, model = data(), linear(prior=2.0)
    ours, theirs = pe.AutoMeanFieldNormal(model), pe.AutoMeanFieldNormal(model)
    theirs.initialize(*batch)
    result = fit(model, ours, batch, epochs=4, optimizer=SGD, kl_weight=kl_weight, kl_warmup=kl_warmup, loss=elbo(),
                 seed=5)  # fmt: skip
    losses, parameters = by_hand_steps(theirs, dist.Normal(0.0, 2.0), batch, weights, 5, elbo is TraceMeanField_ELBO)
    assert result.history["kl_weight"] == pytest.approx(weights, rel=1e-15)
    assert result.history["loss"] == pytest.approx(losses, rel=1e-12)
    for a, b in zip(ours.parameters(), parameters, strict=True):
        torch.testing.assert_close(a.detach(), b, rtol=1e-11, atol=1e-12)


def local_latents(x, y=None):
    """A model without a network whose rows have latents of their own."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.5, 2.0))
        pyro.sample("y", dist.Normal(loc + z * x.sum((-3, -2, -1)), 1.0), obs=y.double())


def network_case(wrap):
    net = conv_net()
    model = pe.BayesianNetwork(net, prior=0.7)
    return wrap(model, net), pe.AutoMeanFieldNormal(model)


def expanded_case():
    net = conv_net()
    model = pe.handlers.expand(pe.BayesianNetwork(net, prior=0.7), symmetric(net, "trivial"))
    return model, pe.AutoMeanFieldNormal(model)


TEMPERED = {
    "network": lambda: network_case(lambda model, net: model),
    "full orbit": lambda: network_case(lambda model, net: pe.handlers.augment(model, symmetric(net))),
    "random orbit": lambda: network_case(
        lambda model, net: pe.handlers.augment(model, symmetric(net), orbit="random", likelihood="sum")
    ),
    "expanded": expanded_case,
    "local latents": lambda: (local_latents, pe.AutoMeanFieldNormal(local_latents)),
}  # fmt: skip


@pytest.mark.parametrize("kind", TEMPERED)
def test_the_weight_is_that_of_the_kl_alone(kind):
    """At fixed draws the loss is ``a + β KL / N``."""
    batch = images()
    losses = []
    for weight in (0.25, 0.5, 1.0):
        pyro.set_rng_seed(0)
        model, guide = TEMPERED[kind]()
        result = fit(model, guide, batch, epochs=1, optimizer=STILL, kl_weight=weight)
        losses.append(result.history["loss"][0])
    trace = pyro.poutine.trace(pyro.poutine.replay(model, pyro.poutine.trace(guide).get_trace(*batch))).get_trace(
        *batch
    )
    kl = sum(
        float(kl_divergence(core(guide.get_posterior(site)), core(trace.nodes[site]["fn"])).sum().detach())
        for site in guide.prototype_trace.stochastic_nodes
    )
    assert losses[1] - losses[0] == pytest.approx(0.25 * kl / COUNT, rel=1e-9)
    assert losses[2] - losses[1] == pytest.approx(0.5 * kl / COUNT, rel=1e-9)


def core(law):
    while isinstance(law, torch.distributions.Independent):
        law = law.base_dist
    return law


def test_minibatch_losses_are_means_per_datum():
    """Without a spread in the guide, the loss is the mean score plus the KL's share."""
    x, y = data()
    model = linear(size=COUNT)
    guide = pe.AutoMeanFieldNormal(model, init_scale=1e-9)
    result = fit(model, guide, (x, y), epochs=1, batch_size=2, optimizer=STILL)
    kl = sum(float(kl_divergence(law, dist.Normal(0.0, 1.0)).sum().detach()) for law in laws(guide).values())
    scores = model.net(x).log_softmax(-1)[torch.arange(COUNT), y]
    assert result.history["loss"][0] == pytest.approx(float(kl / COUNT - scores.mean()), rel=1e-7)


# Validation


def negative_log_score(guide_draws, net, x, y):
    scores = torch.stack([torch.func.functional_call(net, draw, (x,)).log_softmax(-1) for draw in guide_draws])
    return -scores[:, torch.arange(len(x)), y].exp().mean(0).log().mean()


def test_validation_score():
    net, (x, y) = conv_net(), images()
    model = pe.BayesianNetwork(net)
    guide = pe.AutoMeanFieldNormal(model, init_scale=0.5)
    guide.initialize(x, y)
    draws = []

    def recorder(*args):
        draws.append(guide())
        return draws[-1]

    score = negative_log_predictive(model, recorder, (x, y), 6)
    assert score == pytest.approx(float(negative_log_score(draws, net, x, y).detach()), rel=1e-12)
    augmented = pe.handlers.augment(model, symmetric(net))
    draws.clear()
    score = negative_log_predictive(augmented, recorder, (x, y), 6)
    moved = [negative_log_score(draws, net, x.rot90(g, (-2, -1)), y).detach() for g in range(4)]
    assert score == pytest.approx(float(sum(moved) / 4), rel=1e-12)


def spoil_at(epoch):
    """A callback that makes the guide sure of nonsense at the start of an epoch."""

    def callback(training):
        if training.epoch == epoch:
            locs, scales = training.parameters[::2], training.parameters[1::2]
            for loc, scale in zip(locs, scales, strict=True):
                loc.detach().normal_(std=30.0)
                scale.detach().fill_(-5.0)

    return callback


class Diary:
    """A callback that keeps the parameters at the start of each epoch, which are those at the end of the last."""

    def __init__(self):
        self.states = []

    def __call__(self, training):
        self.training = training
        self.states.append(self.now())

    def now(self):
        return [p.detach().clone() for p in self.training.parameters]


def hand_written(model):
    def guide(*args):
        for name, p in model.net.named_parameters():
            loc = pyro.param(f"{name} loc", torch.zeros_like(p))
            scale = pyro.param(f"{name} scale", torch.full_like(p, 0.1), constraint=dist.constraints.positive)
            pyro.sample(name, dist.Normal(loc, scale).to_event(p.ndim))

    return guide


GUIDES = {"pe": pe.AutoMeanFieldNormal, "pyro": AutoNormal, "by hand": hand_written}


@pytest.mark.parametrize("optimizer", [None, lambda: pyro.optim.Adam({"lr": 0.05})], ids=["torch", "pyro"])
@pytest.mark.parametrize("kind", GUIDES)
def test_the_best_state_is_kept(kind, optimizer):
    batch, model, diary = data(), linear(), Diary()
    result = fit(model, GUIDES[kind](model), batch, epochs=8, optimizer=optimizer and optimizer(), validation=batch,
                 callbacks=[diary, spoil_at(6)])  # fmt: skip
    scores = result.history["validation"]
    assert len(diary.training.parameters) == 4
    assert scores[-1] > 3 * min(scores)
    assert result.best_epoch == scores.index(min(scores)) <= 5
    assert equal(diary.now(), diary.states[result.best_epoch + 1])
    assert not equal(diary.now(), diary.states[0])


def test_without_validation_the_last_state_stays():
    batch, model, diary = data(), linear(), Diary()
    result = fit(model, pe.AutoMeanFieldNormal(model), batch, epochs=3, optimizer=STILL,
                 callbacks=[spoil_at(2), diary])  # fmt: skip
    assert result.best_epoch == 2
    assert equal(diary.now(), diary.states[2])
    assert not equal(diary.states[2], diary.states[1])
    assert all(math.isnan(score) for score in result.history["validation"])


@pytest.mark.parametrize(("options", "validated"), [
    ({}, [0, 1, 2, 3, 4, 5, 6]),
    ({"validate_every": 3}, [2, 5, 6]),
    ({"validate_every": 10}, [6]),
    ({"kl_warmup": 2}, [2, 3, 4, 5, 6]),
    ({"kl_warmup": 3, "validate_every": 2}, [3, 5, 6]),
])  # fmt: skip
def test_when_validation_happens(options, validated):
    batch, model = data(), linear()
    result = fit(model, pe.AutoMeanFieldNormal(model), batch, epochs=7, validation=batch, **options)
    scores = result.history["validation"]
    assert [epoch for epoch, score in enumerate(scores) if not math.isnan(score)] == validated
    assert result.best_epoch in validated
    assert len(result.history["loss"]) == len(result.history["kl_weight"]) == 7


def test_an_augmented_model_is_validated_on_moved_copies():
    """A posterior that is sure, right on upright images and wrong on turned ones, scores badly."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False))
    corner = torch.zeros(4, 4)
    corner[0, 0] = 1.0
    with torch.no_grad():
        net[1].weight.copy_(torch.stack([corner, -corner]).reshape(2, 16) * 5)
    x = torch.stack([corner, -corner])[:, None]
    y = torch.tensor([0, 1])
    model = pe.BayesianNetwork(net)
    symmetry = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 4, 4))
    scores = []
    for trained in (model, pe.handlers.augment(model, symmetry)):
        guide = pe.AutoMeanFieldNormal(model, init_scale=1e-9)
        result = fit(trained, guide, (x, y), epochs=1, optimizer=STILL, validation=(x, y))
        scores.append(result.history["validation"][0])
    assert scores[0] == pytest.approx(math.log(1 + math.exp(-10)), rel=1e-4)
    assert scores[1] == pytest.approx((scores[0] + 3 * math.log(2)) / 4, rel=1e-4)


# Callbacks


def test_callbacks_see_the_start_of_each_epoch():
    batch, model = data(), linear()
    guide, seen = pe.AutoMeanFieldNormal(model), []

    def first(training):
        seen.append(("first", training.epoch, len(training.parameters)))
        assert training.model is model
        assert training.guide is guide
        assert isinstance(training.optimizer, torch.optim.SGD)

    fit(model, guide, batch, epochs=3, optimizer=SGD, callbacks=[first, lambda t: seen.append(("second", t.epoch, 4))])
    assert seen == [(name, epoch, 4) for epoch in range(3) for name in ("first", "second")]


def invariance_gap(guide, symmetry):
    gaps = []
    for site, rep in symmetry.sites.items():
        law = guide.get_posterior(site).base_dist
        gaps += [(rep.orbit(value) - value).abs().max() for value in (law.loc.detach(), law.scale.detach())]
    return float(max(gaps))


def momenta(optimizer):
    return len(optimizer.optim_objs if isinstance(optimizer, pyro.optim.PyroOptim) else optimizer.state)


@pytest.mark.parametrize("rule", ["geometric", "arithmetic", "projection"])
@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize("optimizer", [None, lambda: pyro.optim.Adam({"lr": 0.05})], ids=["torch", "pyro"])
def test_symmetrize_at(optimizer, epoch, rule):
    net, batch = conv_net(), images()
    model, symmetry = pe.BayesianNetwork(net), symmetric(net)
    guide = pe.AutoMeanFieldNormal(model)
    before, after = [], []

    def expectation(training):
        expected = copy.deepcopy(training.guide)
        pe.symmetrize_(expected, symmetry, rule)
        before.append((momenta(training.optimizer), snapshot(training.guide), snapshot(expected)))

    def outcome(training):
        after.append((momenta(training.optimizer), snapshot(training.guide)))

    fit(model, guide, batch, epochs=4, optimizer=optimizer and optimizer(),
        callbacks=[expectation, pe.SymmetrizeAt(epoch, symmetry, rule), outcome])  # fmt: skip
    for e, ((had, old, averaged), (has, new)) in enumerate(zip(before, after, strict=True)):
        assert had == len(old) * (e > 0)
        assert has == (0 if e == epoch else had)
        assert not equal(old, averaged)
        assert equal(new, averaged if e == epoch else old)
    assert invariance_gap(guide, symmetry) > 1e-4  # it acted once: training on has moved it away again


def test_symmetrize_at_forgets_the_earlier_best():
    net, batch = conv_net(), images()
    model, symmetry = pe.BayesianNetwork(net), symmetric(net)
    guide = pe.AutoMeanFieldNormal(model)
    result = fit(model, guide, batch, epochs=6, validation=batch,
                 callbacks=[pe.SymmetrizeAt(3, symmetry), spoil_at(3)])  # fmt: skip
    scores = result.history["validation"]
    assert min(scores[3:]) > 2 * min(scores[:3])
    assert result.best_epoch == scores.index(min(scores[3:])) >= 3
    plain = fit(model, pe.AutoMeanFieldNormal(model), batch, epochs=6, validation=batch, callbacks=[spoil_at(3)])
    assert plain.best_epoch < 3


def test_symmetrize_at_is_a_value():
    symmetry = symmetric(conv_net())
    assert pe.SymmetrizeAt(1, symmetry) == pe.SymmetrizeAt(1, symmetry, "geometric")
    assert pe.SymmetrizeAt(1, symmetry) != pe.SymmetrizeAt(2, symmetry)


@pytest.mark.filterwarnings("ignore::pyro_equivariance.errors.WideOrbitWarning")
def test_symmetrize_at_an_accuracy():
    """At the first epoch whose start finds the training data right often enough, and never again."""
    net, batch = conv_net(), images()
    model, symmetry = pe.BayesianNetwork(net), symmetric(net)
    guide = pe.AutoMeanFieldNormal(model, init_scale=1e-3)
    seen, gaps = [], []
    trigger = pe.SymmetrizeAt(None, symmetry, accuracy=0.8)
    callbacks = [lambda t: seen.append(t.accuracy()), trigger, lambda t: gaps.append(invariance_gap(t.guide, symmetry))]
    fit(model, guide, batch, epochs=40, callbacks=callbacks)
    fired = [epoch for epoch, gap in enumerate(gaps) if gap < 1e-12]
    reached = [epoch for epoch, accuracy in enumerate(seen) if accuracy >= 0.8]
    assert seen[0] < 0.8 and len(fired) == 1 and fired[0] == reached[0] > 0


def test_accuracy_is_that_of_the_predictive_on_upright_data():
    net, (x, y) = conv_net(), images()
    model = pe.BayesianNetwork(net)
    guide = pe.AutoMeanFieldNormal(model, init_scale=1e-9)
    found = []
    fit(pe.handlers.augment(model, symmetric(net)), guide, (x, y), epochs=1,
        callbacks=[lambda t: found.append(t.accuracy())])  # fmt: skip
    assert found == [float((net(x).argmax(-1) == y).double().mean())]


def test_accuracy_needs_labels():
    model = pe.BayesianNetwork(nn.Linear(4, 2), likelihood="normal")
    trigger = pe.SymmetrizeAt(None, pe.Symmetry(pe.CyclicGroup(2), {}), accuracy=0.5)
    with pytest.raises(OptionError, match="class labels, integers, for a training accuracy"):
        fit(model, pe.AutoMeanFieldNormal(model), (torch.randn(4, 4), torch.randn(4, 2)), epochs=2, callbacks=[trigger])


def test_whichever_comes_first():
    net, batch = conv_net(), images()
    symmetry, when = symmetric(net), []

    class Watched(pe.SymmetrizeAt):
        def act(self, training):
            when.append(training.epoch)

    for epoch, accuracy in ((2, 1.0), (5, 0.0), (3, None)):
        model = pe.BayesianNetwork(net)
        trigger = Watched(epoch, symmetry, accuracy=accuracy)
        fit(model, pe.AutoMeanFieldNormal(model), batch, epochs=6, callbacks=[trigger])
    assert when == [2, 0, 3]


def test_a_trigger_that_does_not_fire_says_so():
    net, batch = conv_net(), images()
    model = pe.BayesianNetwork(net)
    trigger = pe.SymmetrizeAt(None, symmetric(net), accuracy=1.0)
    with pytest.warns(UserWarning, match=r"SymmetrizeAt did not fire: the training accuracy stayed below 1\.0"):
        fit(model, pe.AutoMeanFieldNormal(model), batch, epochs=1, callbacks=[trigger])


@pytest.mark.parametrize(("epoch", "accuracy", "match"), [
    (3, None, r"name an epoch from 0 to 2, or an accuracy; got epoch=3"),
    (-1, None, r"got epoch=-1"),
    (None, None, r"got epoch=None"),
    (None, 80, r"accuracy between 0 and 1; got 80"),
])  # fmt: skip
def test_triggers_that_cannot_fire(epoch, accuracy, match):
    net = conv_net()
    model = pe.BayesianNetwork(net)
    trigger = pe.SymmetrizeAt(epoch, symmetric(net), accuracy=accuracy)
    with pytest.raises(OptionError, match=match):
        fit(model, pe.AutoMeanFieldNormal(model), images(), epochs=3, callbacks=[trigger])


@pytest.mark.parametrize("around", [None, pe.handlers.augment], ids=["plain", "augmented"])
@pytest.mark.parametrize("tie", [None, "parameters", "samples"])
@pytest.mark.parametrize("build", [pe.AutoMeanFieldNormal, AutoNormal], ids=["ours", "pyro's"])
def test_expand_at(build, tie, around):
    """Training goes on with the large network from where the small guide stood."""
    net, batch = conv_net(4), images()
    symmetry = symmetric(net, "trivial")
    model = pe.BayesianNetwork(net)
    guide = build(model)
    stood, began = [], []
    result = fit(
        around(model, symmetry) if around else model, guide, batch, epochs=5, validation=batch,
        callbacks=[
            lambda t: stood.append(copy.deepcopy(t.guide) if t.epoch == 2 else None),
            pe.ExpandAt(2, symmetry, "gcnn", tie, around=around),
            lambda t: began.append((snapshot(t.guide), momenta(t.optimizer))),
        ],
    )  # fmt: skip
    _, expected, _ = pe.expand(model, stood[2], symmetry, "gcnn", tie)
    assert equal(began[2][0], snapshot(expected)) and began[2][1] == 0
    assert began[4][1] > 0 and not equal(began[4][0], began[2][0])
    assert result.guide is not guide and result.best_epoch >= 2
    probs = pe.predict(inspect.unwrap(result.model), result.guide, batch[0], draws=3)
    assert probs.shape == (3, len(batch[0]), 3)


def test_expand_at_asks_how_to_augment():
    net, batch = conv_net(4), images()
    symmetry = symmetric(net, "trivial")
    model = pe.BayesianNetwork(net)
    with pytest.raises(OptionError, match=r"around= to say how the large model is augmented"):
        fit(pe.handlers.augment(model, symmetry), pe.AutoMeanFieldNormal(model), batch, epochs=2,
            callbacks=[pe.ExpandAt(1, symmetry)])  # fmt: skip


# Optimizers


def trained(optimizer, **options):
    pyro.set_rng_seed(0)
    batch, model = data(), linear()
    guide = pe.AutoMeanFieldNormal(model)
    guide.initialize(*batch)
    start = snapshot(guide)
    fit(model, guide, batch, optimizer=optimizer, **options)
    return start, snapshot(guide)


def test_adam_with_rate_a_hundredth_is_the_default():
    start, end = trained(None, epochs=1)
    for a, b in zip(start, end, strict=True):
        torch.testing.assert_close((b - a).abs(), torch.full_like(a, 0.01), rtol=1e-4, atol=0)


def test_pyro_and_torch_optimizers_agree():
    results = [
        trained(optimizer, epochs=5)[1]
        for optimizer in (None, functools.partial(torch.optim.Adam, lr=0.01), pyro.optim.Adam({"lr": 0.01}))
    ]
    assert equal(results[0], results[1])
    assert equal(results[0], results[2])


@pytest.mark.parametrize("optimizer", ["adam", 0.1, torch.optim.Adam([torch.zeros(1, requires_grad=True)])])
def test_what_is_no_optimizer(optimizer):
    batch, model = data(), linear()
    with pytest.raises(pe.OptionError, match="optimizer to be a Pyro optimizer or a callable on parameters"):
        fit(model, pe.AutoMeanFieldNormal(model), batch, optimizer=optimizer)


def test_the_scheduler_steps_once_an_epoch():
    batch, model = data(), linear(size=COUNT)
    rates = []
    fit(model, pe.AutoMeanFieldNormal(model), batch, epochs=4, batch_size=2, optimizer=SGD,
        scheduler=functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5),
        callbacks=[lambda training: rates.append(training.optimizer.param_groups[0]["lr"])])  # fmt: skip
    assert rates == pytest.approx([0.05, 0.025, 0.0125, 0.00625])


# Models without a network, and what they learn


def normal_normal(y, size=None):
    """``z ~ N(1, 2²)``, ``y_n ~ N(z, 1.5²)`` in three dimensions."""
    z = pyro.sample("z", dist.Normal(torch.ones(3), 2.0).to_event(1))
    with pyro.plate("data", size or len(y), subsample=torch.arange(len(y))):
        pyro.sample("y", dist.Normal(z, 1.5).to_event(1), obs=y)


@pytest.mark.parametrize("batch_size", [None, 10])
def test_conjugate_posterior(batch_size):
    y = 4 + torch.randn(20, 3)
    precision = 1 / 2**2 + 20 / 1.5**2
    mean = (1 / 2**2 + y.sum(0) / 1.5**2) / precision
    guide = pe.AutoMeanFieldNormal(model := functools.partial(normal_normal, size=20))
    epochs = 400
    result = fit(model, guide, y, epochs=epochs, batch_size=batch_size,
                 optimizer=functools.partial(torch.optim.Adam, lr=0.1),
                 scheduler=functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
                 loss=TraceMeanField_ELBO(num_particles=20, vectorize_particles=True))  # fmt: skip
    law = guide.get_posterior("z").base_dist
    assert result.guide is guide
    torch.testing.assert_close(law.loc.detach(), mean, rtol=0, atol=0.1 * precision**-0.5)
    torch.testing.assert_close(law.scale.detach(), torch.full((3,), precision**-0.5), rtol=0.05, atol=0)


@pytest.mark.parametrize("form", [lambda y: y, lambda y: (y,), lambda y: [y]], ids=["tensor", "tuple", "list"])
def test_data_of_one_tensor(form):
    y = torch.randn(6, 3)
    guide = pe.AutoMeanFieldNormal(normal_normal)
    result = fit(normal_normal, guide, form(y), epochs=2, validation=form(y))
    reference = pe.AutoMeanFieldNormal(normal_normal)
    expected = fit(normal_normal, reference, y, epochs=2, validation=y)
    assert result.history == expected.history
    assert result.seconds > 0


def test_parameters_of_the_model_are_trained_too():
    def model(y):
        shift = pyro.param("shift", torch.tensor(0.0))
        z = pyro.sample("z", dist.Normal(0.0, 0.1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(shift + z, 1.0), obs=y)

    fit(model, pe.AutoMeanFieldNormal(model), torch.full((50,), 3.0), epochs=200, optimizer=functools.partial(
        torch.optim.Adam, lr=0.05))  # fmt: skip
    assert float(pyro.param("shift").detach()) == pytest.approx(3.0, abs=0.2)


# What it refuses

NAN, INF = float("nan"), float("inf")


def bad(**changes):
    """A good call with some things changed."""
    return {"data": data(), "size": None, **changes}


def with_entry(value):
    x, y = data()
    x[2, 1] = value
    return x, y


def with_label(value):
    x, y = data()
    y[5] = value
    return x, y


BAD = {
    "lengths": (lambda: bad(data=(torch.zeros(4, 4), torch.zeros(3).long())), pe.DataError, r"lengths \[4, 3\]"),
    "no tensors": (lambda: bad(data=()), pe.DataError, r"one length in data; got lengths \[\]"),
    "empty": (lambda: bad(data=(torch.zeros(0, 4), torch.zeros(0).long())), pe.DataError, "one datum in data"),
    "nan": (lambda: bad(data=with_entry(NAN)), pe.DataError, "finite values in data.*drop these rows"),
    "inf": (lambda: bad(data=with_entry(-INF)), pe.DataError, "finite values in data"),
    "empty validation": (
        lambda: bad(validation=(torch.zeros(0, 4), torch.zeros(0).long())), pe.DataError, "one datum in validation"
    ),
    "nan in validation": (lambda: bad(validation=with_entry(NAN)), pe.DataError, "finite values in validation"),
    "validation lengths": (
        lambda: bad(validation=(torch.zeros(4, 4), torch.zeros(3).long())), pe.DataError, "length in validation"
    ),
    "label too high": (lambda: bad(data=with_label(3)), pe.DataError, "labels between 0 and 2.*0 to 3.*widen"),
    "label too low": (lambda: bad(data=with_label(-1)), pe.DataError, "labels between 0 and 2.*-1 to 2"),
    "no size": (lambda: bad(batch_size=2), pe.OptionError, r"BayesianNetwork\(..., size=8\).*size=None"),
    "wrong size": (lambda: bad(batch_size=2, size=7), pe.OptionError, "size=8.*size=7"),
    "epochs": (lambda: bad(epochs=0), pe.OptionError, "epochs ≥ 1.*got 0, 1.0 and 0"),
    "kl_weight": (lambda: bad(kl_weight=0), pe.OptionError, "kl_weight > 0.*got 20, 0 and 0"),
    "negative kl_weight": (lambda: bad(kl_weight=-0.1), pe.OptionError, "kl_weight > 0"),
    "kl_warmup": (lambda: bad(kl_warmup=-1), pe.OptionError, "kl_warmup ≥ 0.*got 20, 1.0 and -1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    build, kind, match = BAD[case]
    call = build()
    model = linear(size=call.pop("size"))
    with pytest.raises(kind, match=match):
        fit(model, pe.AutoMeanFieldNormal(model), call.pop("data"), **call)
    assert not pyro.get_param_store()


WRAPPED = {
    "augmented": lambda model, symmetry: pe.handlers.augment(model, symmetry),
    "expanded": lambda model, symmetry: pe.handlers.expand(model, symmetry),
    "augmented and expanded": lambda model, symmetry: pe.handlers.augment(
        pe.handlers.expand(model, symmetry), symmetry
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRAPPED)
def test_the_network_inside_is_checked(kind):
    net, (x, y) = conv_net(2), images()
    model = WRAPPED[kind](pe.BayesianNetwork(net), symmetric(net, "trivial"))
    guide = pe.AutoMeanFieldNormal(model)
    with pytest.raises(pe.OptionError, match="size=8"):
        fit(model, guide, (x, y), batch_size=2)
    with pytest.raises(pe.DataError, match="labels between 0 and 2"):
        fit(model, guide, (x, y + 1))
    fit(model, guide, (x, y), epochs=1)


def test_real_observations_are_no_labels():
    model = pe.BayesianNetwork(nn.Linear(4, 1), likelihood=lambda f: dist.Normal(f[:, 0], 1.0))
    result = fit(model, pe.AutoMeanFieldNormal(model), (torch.randn(6, 4), torch.randn(6) - 5), epochs=1)
    assert math.isfinite(result.history["loss"][0])


@pytest.mark.parametrize(
    "change, options, match",
    [
        ({"validation": lambda x, y: (x, y + 5)}, {}, "labels between 0 and 2"),
        ({"data": lambda x, y: (x, y + 0.5)}, {}, "labels as integers"),
        ({"data": lambda x, y: (x, y[:, None])}, {}, "labels as integers"),
        ({"data": lambda x, y: (x.numpy(), y)}, {}, "torch tensors"),
        ({}, {"batch_size": -3}, "batch_size"),
        ({}, {"batch_size": 0}, "batch_size"),
        ({}, {"validate_every": 0}, "validate_every"),
    ],
)
def test_more_bad_input_is_named(change, options, match):
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    model = pe.BayesianNetwork(torch.nn.Linear(4, 3), size=6)
    data = change.get("data", lambda x, y: (x, y))(x, y)
    validation = change.get("validation", lambda x, y: (x, y))(x, y)
    with pytest.raises(pe.SymmetryError, match=match):
        pe.fit(model, pe.AutoMeanFieldNormal(model), data, epochs=1, validation=validation, progress=False, **options)


def test_divergence_is_one_line():
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    model = pe.BayesianNetwork(torch.nn.Linear(4, 3), size=6)
    with pytest.raises(pe.SymmetryError, match="finite loss.*learning rate"):
        pe.fit(model, pe.AutoMeanFieldNormal(model), (x, y), epochs=50, progress=False,
               optimizer=lambda p: torch.optim.SGD(p, lr=1e200))  # fmt: skip


# The gradient averaged over the group


def turned_data(count=12):
    return torch.randn(count, 3, 3), torch.randn(count)


def bent_model(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(9), 1.0).to_event(1))
    pyro.sample("y", dist.Normal((x.flatten(1) @ w).tanh(), 0.5).to_event(1), obs=y)


PIXELS = pe.Symmetry(
    pe.CyclicGroup(4),
    {"w": pe.image(pe.CyclicGroup(4), (3, 3)).reshape(9)},
    inputs=pe.image(pe.CyclicGroup(4), (3, 3)),
)
ORBIT_OF = torch.tensor([0, 1, 0, 1, 2, 1, 0, 1, 0])  # corners, edges, the middle
NOISY = pe.handlers.augment(bent_model, PIXELS, orbit="random")


def free_guide(*args):
    loc = pyro.param("loc", torch.tensor([0.1, -0.2, 0.3])[ORBIT_OF])
    scale = pyro.param("scale", torch.tensor([0.2, 0.3, 0.4])[ORBIT_OF], constraint=dist.constraints.positive)
    return pyro.sample("w", dist.Normal(loc, scale).to_event(1))


def tied_guide(*args):
    loc = pyro.param("tied loc", torch.tensor([0.1, -0.2, 0.3]))
    scale = pyro.param("tied scale", torch.tensor([0.2, 0.3, 0.4]), constraint=dist.constraints.positive)
    return pyro.sample("w", dist.Normal(loc[ORBIT_OF], scale[ORBIT_OF]).to_event(1))


def averaged_run(guide, average=PIXELS, **options):
    """Training with all noise there is: random turns, draws, minibatches. Returns means and scales by entry."""
    pyro.clear_param_store()
    torch.manual_seed(1)

    def same_noise(training):  # looking at the guide's sites takes draws as well
        if training.epoch == 0:
            pyro.set_rng_seed(5 + options["seed"])

    options = {"epochs": 25, "batch_size": 6, "seed": 3, "callbacks": [same_noise], **options}
    result = fit(NOISY, guide, turned_data(), average_gradient=average, **options)
    prefix = "tied " if guide is tied_guide else ""
    loc, scale = (pyro.param(prefix + name).detach() for name in ("loc", "scale"))
    return (loc[ORBIT_OF], scale[ORBIT_OF], result) if prefix else (loc, scale, result)


@pytest.mark.parametrize("optimizer", [None, functools.partial(torch.optim.Adam, lr=0.03, amsgrad=True),
                                       functools.partial(torch.optim.AdamW, lr=0.02)])  # fmt: skip
def test_averaging_is_tying_under_adam(optimizer):
    """50 steps; the gradient of a tied parameter is the sum over its orbit, a factor that Adam divides out.

    But for Adam's ``eps``, so it is as good as none here.
    """
    rate = functools.partial(optimizer or functools.partial(torch.optim.Adam, lr=0.01), eps=1e-30)
    free, tied = averaged_run(free_guide, optimizer=rate), averaged_run(tied_guide, average=None, optimizer=rate)
    for ours, theirs in zip(free[:2], tied[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    assert free[2].history["loss"] == pytest.approx(tied[2].history["loss"], rel=1e-9)
    assert float((free[0] - torch.tensor([0.1, -0.2, 0.3])[ORBIT_OF]).abs().max()) > 0.1


def test_under_sgd_the_step_is_that_over_the_size_of_the_orbit():
    plain = functools.partial(torch.optim.SGD, lr=0.01)

    def scaled(parameters):
        def divide(*_):
            for parameter in parameters:
                parameter.grad.div_(torch.tensor([4.0, 4.0, 1.0]))

        optimizer = torch.optim.SGD(parameters, lr=0.01)
        optimizer.register_step_pre_hook(divide)
        return optimizer

    free = averaged_run(free_guide, optimizer=plain)
    tied, unscaled = (averaged_run(tied_guide, average=None, optimizer=o) for o in (scaled, plain))
    for ours, theirs, others in zip(free[:2], tied[:2], unscaled[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
        assert float((ours - others).abs().max()) > 1e-2


def spread(values):
    return max(float((values[ORBIT_OF == k] - values[ORBIT_OF == k].mean()).abs().max()) for k in range(3))


OPTIMIZERS = {
    "pyro": lambda: {"optimizer": pyro.optim.Adam({"lr": 0.02})},
    "pyro SGD": lambda: {"optimizer": pyro.optim.SGD({"lr": 0.01, "momentum": 0.9})},
    "scheduler": lambda: {"optimizer": functools.partial(torch.optim.Adam, lr=0.05),
                          "scheduler": functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9)},
    "weight decay": lambda: {"optimizer": functools.partial(torch.optim.AdamW, lr=0.05, weight_decay=0.3)},
    "warm-up": lambda: {"kl_warmup": 5, "loss": Trace_ELBO(num_particles=2)},
}  # fmt: skip


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_gradient_average_with_other_options(kind):
    """Also from a start that is not invariant, which the first step makes so."""

    def lopsided(*args):
        loc = pyro.param("loc", torch.linspace(-1, 1, 9))
        scale = pyro.param("scale", torch.linspace(0.1, 0.5, 9), constraint=dist.constraints.positive)
        return pyro.sample("w", dist.Normal(loc, scale).to_event(1))

    options = OPTIMIZERS[kind]()
    loc, scale, _ = averaged_run(lopsided, **options)
    assert spread(loc) < 1e-12 and spread(scale) < 1e-12
    assert float((loc - loc.mean()).abs().max()) > 1e-2
    loc, scale, _ = averaged_run(lopsided, average=None, **options)
    assert spread(loc) > 1e-2 and spread(scale) > 1e-3


def test_a_scheduler_acts_under_the_gradient_average():
    still = {"optimizer": functools.partial(torch.optim.SGD, lr=0.01),
             "scheduler": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda epoch: float(epoch == 0))}  # fmt: skip
    one, many = (averaged_run(free_guide, epochs=epochs, **still) for epochs in (1, 5))
    assert torch.equal(one[0], many[0]) and torch.equal(one[1], many[1])


def test_two_runs_with_a_gradient_average_agree():
    first, again, other = (averaged_run(free_guide, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert first[2].history["loss"] == again[2].history["loss"]
    assert not torch.equal(first[0], other[0])


def averaged_network(hidden="regular"):
    net = conv_net()
    model = pe.BayesianNetwork(net)
    return model, symmetric(net, hidden)


def is_invariant(guide, symmetry):
    return float(pe.certificate(guide, symmetry).kl.max()) < 1e-10


def test_symmetrize_at_under_the_gradient_average():
    """The first step has made it invariant already; the callback then changes nothing but the optimizer's state."""
    model, symmetry = averaged_network()
    guide = pe.AutoMeanFieldNormal(model)
    callback = pe.SymmetrizeAt(2, symmetry)
    result = fit(model, guide, images(), epochs=4, callbacks=[callback], average_gradient=symmetry)
    assert result.guide is guide and is_invariant(guide, symmetry)


@pytest.mark.parametrize("tie", [None, "samples"])
def test_expand_at_under_the_gradient_average(tie):
    """The large network's sites are not those of the symmetry that was given, so that it cannot be averaged."""
    model, symmetry = averaged_network("trivial")
    guide = pe.AutoMeanFieldNormal(model)
    with pytest.raises(pe.SymmetryError):
        fit(model, guide, images(), epochs=4, callbacks=[pe.ExpandAt(2, symmetry, tie=tie)], average_gradient=symmetry)


@pytest.mark.parametrize("kind", ["AutoSymmetricNormal", "AutoOrbitMixture", "SymmetrizedGuide"])
def test_nothing_to_average_of_guides_that_are_always_invariant(kind):
    model, symmetry = averaged_network()
    guide = {
        "AutoSymmetricNormal": lambda: pe.AutoSymmetricNormal(model, symmetry),
        "AutoOrbitMixture": lambda: pe.AutoOrbitMixture(model, symmetry),
        "SymmetrizedGuide": lambda: pe.SymmetrizedGuide(AutoNormal(model), symmetry),
    }[kind]()
    with pytest.raises(pe.SymmetryError, match=f"{kind} is invariant for every value"):
        fit(model, guide, images(), average_gradient=symmetry, loss=Trace_ELBO())


def test_parameters_that_cannot_be_averaged():
    eighths = pe.CyclicGroup(8)

    def plane(x):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def computed(x):
        pyro.sample("z", dist.Normal(2 * pyro.param("half", torch.zeros(2)), 1.0).to_event(1))

    swap = pe.SymmetricGroup(2)
    with pytest.raises(pe.SymmetryError, match="site 'z' to be moved by signed permutations"):
        fit(plane, pe.AutoMeanFieldNormal(plane), torch.zeros(3), epochs=1,
            average_gradient=pe.Symmetry(eighths, {"z": pe.vector(eighths)}))  # fmt: skip
    with pytest.raises(pe.SymmetryError, match="site 'z' to be parameters of the guide"):
        fit(plane, computed, torch.zeros(3), epochs=1, average_gradient=pe.Symmetry(swap, {"z": pe.permutation(swap)}))
    with pytest.raises(pe.SymmetryError, match="representation for site 'z'"):
        fit(plane, pe.AutoMeanFieldNormal(plane), torch.zeros(3), epochs=1, average_gradient=pe.Symmetry(swap, {}))


# What the history remembers


class Recording(torch.optim.SGD):
    """Remembers the size of the gradient of every step."""

    norms: list[float] = []

    def step(self, closure=None):
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        self.norms.append(float(torch.cat(gradients).norm()))
        return super().step(closure)


@pytest.mark.parametrize("averaged", [False, True])
def test_the_gradient_norm_is_that_of_the_steps(averaged, monkeypatch):
    """Two steps an epoch, of the gradient that the optimizer sees."""
    monkeypatch.setattr(Recording, "norms", norms := [])
    net = conv_net()
    model, symmetry = pe.BayesianNetwork(net, size=COUNT), symmetric(net)
    result = fit(model, pe.AutoMeanFieldNormal(model), images(), epochs=3, batch_size=4, kl_warmup=1,
                 optimizer=functools.partial(Recording, lr=0.1),
                 average_gradient=symmetry if averaged else None)  # fmt: skip
    assert len(norms) == 6
    expected = [math.sqrt((a**2 + b**2) / 2) for a, b in zip(norms[::2], norms[1::2], strict=True)]
    assert result.history["gradient_norm"] == pytest.approx(expected, rel=1e-12)


def test_the_gradient_norm_is_the_length_of_a_step():
    """Under plain gradient descent, in all parameters together; with Pyro's optimizers, which clip after it, too."""
    for optimizer in (SGD, pyro.optim.SGD({"lr": 0.05})):
        pyro.set_rng_seed(0)
        batch, model = data(), linear()
        guide, states = pe.AutoMeanFieldNormal(model), []
        result = fit(model, guide, batch, epochs=3, optimizer=optimizer,
                     callbacks=[lambda t, states=states: states.append(snapshot(t.guide))])  # fmt: skip
        states.append(snapshot(guide))
        moves = [
            float(torch.cat([(b - a).flatten() for a, b in zip(*pair, strict=True)]).norm())
            for pair in zip(states, states[1:], strict=False)
        ]
        assert result.history["gradient_norm"] == pytest.approx([move / 0.05 for move in moves], rel=1e-9)
    clipped = fit(model, pe.AutoMeanFieldNormal(model), batch, epochs=1,
                  optimizer=pyro.optim.SGD({"lr": 0.05}, {"clip_norm": 1e-6}))  # fmt: skip
    assert clipped.history["gradient_norm"][0] > 1e-3


class Mute:
    """An optimizer that shows nothing of itself."""

    def __init__(self, parameters):
        self.parameters = parameters

    def step(self):
        pass

    zero_grad = step


HALVING = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.5)
RATES = {
    "torch": ({"optimizer": SGD}, [0.05] * 4),
    "the default": ({}, [0.01] * 4),
    "a scheduler": ({"optimizer": SGD, "scheduler": HALVING}, [0.05, 0.05, 0.025, 0.025]),
    "a rate in a tensor": ({"optimizer": functools.partial(torch.optim.Adam, lr=torch.tensor(0.25))}, [0.25] * 4),
    "pyro": ({"optimizer": lambda: pyro.optim.ClippedAdam({"lr": 0.02})}, [0.02] * 4),
    "pyro, decaying": (
        {"optimizer": lambda: pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.5})}, [0.02, 0.01, 0.005, 0.0025]
    ),
    "pyro, by parameter": ({"optimizer": lambda: pyro.optim.Adam(lambda name: {"lr": 0.02})}, [math.nan] + [0.02] * 3),
    "pyro, the optimizer's own": ({"optimizer": lambda: pyro.optim.Adam({})}, [math.nan] + [1e-3] * 3),
    "pyro, with a scheduler": (
        {"optimizer": lambda: pyro.optim.StepLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.02},
                                                "step_size": 1})}, [0.02] * 4,
    ),
    "one that does not tell": ({"optimizer": Mute}, [math.nan] * 4),
}  # fmt: skip


@pytest.mark.parametrize("kind", RATES)
def test_the_learning_rate_at_the_start_of_each_epoch(kind):
    options, expected = RATES[kind]
    if kind.startswith("pyro"):
        options = options | {"optimizer": options["optimizer"]()}
    batch, model = data(), linear()
    result = fit(model, pe.AutoMeanFieldNormal(model), batch, epochs=4, **options)
    assert result.history["learning_rate"] == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_the_learning_rate_of_a_used_optimizer_is_that_of_these_parameters():
    """A Pyro optimizer keeps those of an earlier run, here run down."""
    batch, model = data(), linear()
    optimizer = pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.5})
    for _ in range(2):
        result = fit(model, pe.AutoMeanFieldNormal(model), batch, epochs=2, optimizer=optimizer)
        assert result.history["learning_rate"] == pytest.approx([0.02, 0.01], rel=1e-12)


@pytest.mark.parametrize(("batch_size", "steps"), [(None, [1, 2, 3]), (3, [2, 4, 6]), (2, [4, 8, 12])])
def test_steps_are_counted(batch_size, steps):
    """Eight rows in batches; what is left over is no step."""
    model, seen = linear(size=COUNT), []
    result = fit(model, pe.AutoMeanFieldNormal(model), data(), epochs=3, batch_size=batch_size,
                 callbacks=[lambda t: seen.append(t.steps)])  # fmt: skip
    assert result.history["steps"] == steps
    assert all(type(n) is int for n in result.history["steps"])
    assert seen == [0, *steps[:2]]


def test_steps_go_on_with_the_large_network():
    net, batch = conv_net(4), images()
    symmetry = symmetric(net, "trivial")
    model = pe.BayesianNetwork(net, size=COUNT)
    result = fit(model, pe.AutoMeanFieldNormal(model), batch, epochs=3, batch_size=4,
                 callbacks=[pe.ExpandAt(1, symmetry)])  # fmt: skip
    assert result.history["steps"] == [2, 4, 6]
    assert all(len(column) == 3 for column in result.history.values())


def test_steps_go_on_in_the_second_half_of_the_expansion():
    torch.set_default_dtype(torch.float32)
    config = Config(train_size=40, validation_size=12, test_size=12, epochs=3, batch_size=20, width=8)
    fitted = METHODS["expansion"].train(make_problem(config, synthetic(80, size=8, classes=4), 0), 0, False)
    assert fitted.history["steps"] == [2, 4, 6]
    assert all(len(column) == 3 for column in fitted.history.values())


SETTINGS = {
    "the defaults": (
        {}, {"seed": 0, "loss": "TraceMeanField_ELBO", "particles": 1, "optimizer": "Adam", "kl_weight": 1.0,
             "batch_size": COUNT, "epochs": 1, "average_gradient": False},
    ),
    "others": (
        {"seed": 7, "loss": lambda: Trace_ELBO(num_particles=3), "optimizer": SGD, "kl_weight": 0.5, "batch_size": 3,
         "epochs": 2, "average_gradient": True},
        {"seed": 7, "loss": "Trace_ELBO", "particles": 3, "optimizer": "SGD", "kl_weight": 0.5, "batch_size": 3,
         "epochs": 2, "average_gradient": True},
    ),
    "pyro's optimizer": ({"optimizer": lambda: pyro.optim.ClippedAdam({"lr": 0.1})}, {"optimizer": "ClippedAdam"}),
    "pyro's scheduler": (
        {"optimizer": lambda: pyro.optim.StepLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1},
                                                "step_size": 1})}, {"optimizer": "SGD"},
    ),
    "pyro's, around a function": (
        {"optimizer": lambda: pyro.optim.PyroOptim(functools.partial(torch.optim.SGD, lr=0.1), {})},
        {"optimizer": "partial"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SETTINGS)
def test_the_settings_are_plain_values(kind):
    options, expected = SETTINGS[kind]
    net = conv_net()
    model, symmetry = pe.BayesianNetwork(net, size=COUNT), symmetric(net)
    built = {key: options[key]() for key in ("loss", "optimizer") if key in options and options[key] is not SGD}
    averaged = {"average_gradient": symmetry} if options.get("average_gradient") else {}
    result = fit(model, pe.AutoMeanFieldNormal(model), images(), **{"epochs": 1, **options, **built, **averaged})
    assert expected.items() <= result.settings.items()
    assert set(result.settings) == set(SETTINGS["the defaults"][1])
    assert json.loads(json.dumps(result.settings)) == result.settings


# The defect in the course of training


def regression():
    """``y = W x + b`` with two outputs, and inputs whose entries are permuted cyclically."""
    group = pe.CyclicGroup(4)
    model = pe.BayesianNetwork(nn.Linear(4, 2), likelihood="normal", size=COUNT)
    return model, pe.Symmetry(group, {}, inputs=pe.regular(group)), (torch.randn(COUNT, 4), torch.randn(COUNT, 2))


def exact_defect(guide, x):
    """``mean_{x, g} ‖W̄ (g x − x)‖²``, the predictive's mean being linear."""
    weight = guide.get_posterior("weight").mean.detach()
    moved = torch.stack([x.roll(shift, -1) for shift in range(4)])
    return float(((moved - x) @ weight.mT).square().sum(-1).mean())


def test_the_tracked_defect_is_the_exact_one():
    """At the start of every second epoch, within the error that it states; at the end by measure."""
    model, symmetry, batch = regression()
    guide = pe.AutoMeanFieldNormal(model, init_scale=0.3)
    track, exact = pe.TrackDefect(batch[0], symmetry, every=2, draws=400), []
    result = fit(model, guide, batch, epochs=5, optimizer=SGD,
                 callbacks=[lambda t: exact.append(exact_defect(t.guide, batch[0])), track])  # fmt: skip
    found, se = result.history["defect"], result.history["defect_se"]
    assert [math.isnan(value) for value in found] == [math.isnan(value) for value in se] == [False, True] * 2 + [False]
    assert exact[0] != exact[4]
    for epoch in (0, 2, 4):
        assert abs(found[epoch] - exact[epoch]) < 4.5 * se[epoch] < 0.5 * exact[epoch]
    last = track.measure(result.model, result.guide)
    assert abs(last.value - exact_defect(guide, batch[0])) < 4.5 * last.se


def test_there_is_no_defect_without_the_callback():
    model, _, batch = regression()
    assert not {"defect", "defect_se"} & set(fit(model, pe.AutoMeanFieldNormal(model), batch, epochs=1).history)


def test_outputs_that_move():
    """A map that turns as its input does has no defect, though its outputs are not invariant."""
    group = pe.CyclicGroup(4)
    vector = pe.regular(group)
    model = pe.BayesianNetwork(nn.Linear(4, 4, bias=False), likelihood="normal")
    guide = pe.AutoMeanFieldNormal(model, init_scale=1e-9)
    x = torch.randn(3, 4)
    guide.initialize(x, x)
    guide.locs.weight = torch.eye(4) + 0.5 * torch.eye(4).roll(1, 0)
    assert pe.TrackDefect(x, pe.Symmetry(group, {}, vector, vector)).measure(model, guide).value < 1e-12
    assert pe.TrackDefect(x, pe.Symmetry(group, {}, vector)).measure(model, guide).value > 0.1


def test_tracking_changes_nothing_else():
    """Minibatches, turns, draws and validation are random all the same, to the last bit."""
    track = pe.TrackDefect(images(3)[0], symmetric(conv_net()), draws=5)
    watched, plain = one_run(3, 1, callbacks=[track]), one_run(3, 1)
    assert equal(watched[0], plain[0])
    assert all(map(math.isfinite, watched[1].pop("defect") + watched[1].pop("defect_se")))
    assert str(watched[1]) == str(plain[1])


def test_the_random_numbers_of_the_tracking():
    """Its draws are fixed by the seed, and new in every epoch and for every seed."""
    found = []
    for seed in (0, 1, 0):
        pyro.set_rng_seed(0)
        model, symmetry, batch = regression()
        guide = pe.AutoMeanFieldNormal(model, init_loc_fn=pyro.infer.autoguide.init_to_value(values=weights()))
        track = pe.TrackDefect(batch[0], symmetry)
        result = fit(model, guide, batch, epochs=3, optimizer=STILL, seed=seed, callbacks=[track])
        found.append(result.history["defect"])
    assert found[0] == found[2]
    assert len(set(found[0] + found[1])) == 6
    state = torch.get_rng_state()
    first = track.measure(model, guide)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert track.measure(model, guide) == first != track.measure(model, guide, seed=1)


def weights():
    return {"weight": torch.linspace(-1, 1, 8).reshape(2, 4), "bias": torch.zeros(2)}


def test_an_augmented_model_is_measured_as_it_is_within():
    net, batch = conv_net(), images()
    model, symmetry = pe.BayesianNetwork(net), symmetric(net)
    guide = pe.AutoMeanFieldNormal(model)
    track = pe.TrackDefect(batch[0], symmetry, draws=5)
    result = fit(pe.handlers.augment(model, symmetry), guide, batch, epochs=2, callbacks=[track])
    assert track.measure(result.model, guide, 3) == track.measure(model, guide, 3)
    assert len(result.history["defect"]) == 2


def test_tracking_goes_on_with_the_large_network():
    """Its draws, with tied samples, are equivariant."""
    net, batch = conv_net(4), images()
    symmetry = symmetric(net, "trivial")
    model = pe.BayesianNetwork(net)
    callbacks = [pe.ExpandAt(1, symmetry, "gcnn", "samples"), pe.TrackDefect(batch[0], symmetry)]
    result = fit(model, pe.AutoMeanFieldNormal(model), batch, epochs=3, callbacks=callbacks)
    before, *after = result.history["defect"]
    assert before > 1e-6
    assert max(map(abs, after)) < 1e-12


@pytest.mark.parametrize(("options", "error", "match"), [
    ({"every": 0}, OptionError, "every ≥ 1 and draws ≥ 2; got every=0 and draws=50"),
    ({"draws": 1}, OptionError, "got every=1 and draws=1"),
    ({"symmetry": pe.Symmetry(pe.CyclicGroup(2), {})}, pe.SymmetryError, "symmetry that moves inputs"),
])  # fmt: skip
def test_what_cannot_be_tracked(options, error, match):
    _, symmetry, (x, _) = regression()
    with pytest.raises(error, match=match):
        pe.TrackDefect(x, **{"symmetry": symmetry, **options})


def test_one_defect_is_tracked():
    model, symmetry, batch = regression()
    track = pe.TrackDefect(batch[0], symmetry)
    with pytest.raises(OptionError, match="Expected one TrackDefect"):
        fit(model, pe.AutoMeanFieldNormal(model), batch, callbacks=[track, track])
