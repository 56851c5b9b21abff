"""Ensembles: trained together or one by one, their mean's equivariance, supports, and the ensemble as a guide."""

import copy
import functools
import itertools
import pickle

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from torch import nn

import pyro_equivariance as pe
from pyro_equivariance import diagnostics, metrics
from pyro_equivariance.ensembles import Ensemble, ensemble_sweep, fit_ensemble
from pyro_equivariance.ensembles import fit as fitting
from pyro_equivariance.ensembles.base import ensemble_mean
from pyro_equivariance.ensembles.batches import Batches
from pyro_equivariance.ensembles.starts import generators, start_weights
from pyro_equivariance.experiments import ensembles as study
from pyro_equivariance.networks.supports import (
    SUPPORTS,
    VARIANTS,
    SupportedConv2d,
    check_support,
    core_of,
    is_invariant_support,
    masks_of,
    support,
    with_support,
)

C4 = pe.CyclicGroup(4)
SIDE = 6
TURNS = pe.Symmetry(C4, {}, inputs=pe.image(C4, (1, SIDE, SIDE)))


def convolutional(channels=4):
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1), nn.Tanh(), nn.LayerNorm((SIDE, SIDE), elementwise_affine=False),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(channels * 9, 3),
    )  # fmt: skip


def dense():
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 8), nn.Tanh(), nn.Linear(8, 3))


def data(count=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, SIDE, SIDE, generator=generator), torch.randint(3, (count,), generator=generator)


def fitted(net=None, **options):
    options = {"members": 5, "augmentation": TURNS, "epochs": 3, "batch_size": 4, "progress": False} | options
    return fit_ensemble(net or convolutional(), options.pop("data", data()), **options)


def same(a, b, tolerance=1e-10):
    return all(torch.allclose(a.members[n], b.members[n], rtol=0, atol=tolerance) for n in a.members)


def orbit_outputs(ensemble, x, symmetry=TURNS):
    return pe.orbit_predict(ensemble.model, ensemble.in_turn(), symmetry, x, len(ensemble))


# Training


@pytest.mark.parametrize("orbit", ["full", "random"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd", functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)])
@pytest.mark.parametrize("batch_size", [4, None])
def test_together_and_one_by_one_agree(orbit, optimizer, batch_size):
    runs = [fitted(orbit=orbit, optimizer=optimizer, batch_size=batch_size, stacked=s, init="he", validation=data(6, 1),
                   snapshots=(0, 2)) for s in (True, False, 2, None)]  # fmt: skip
    for run in runs[1:]:
        assert same(runs[0], run) and same(runs[0].snapshots[2], run.snapshots[2])
        for name in ("loss", "validation"):
            torch.testing.assert_close(runs[0].history[name], run.history[name], rtol=0, atol=1e-10)
    assert not same(runs[0], runs[0].snapshots[0], 1e-3)


@pytest.mark.slow
def test_processes_agree_with_one():
    assert same(fitted(stacked=2), fitted(stacked=2, processes=2), 1e-12)


def test_what_goes_to_another_process_can(monkeypatch):
    expected = fitted(stacked=2)
    monkeypatch.setattr(fitting, "_called", lambda calls, count: [pickle.loads(pickle.dumps(c))() for c in calls])
    assert same(expected, fitted(stacked=2, processes=2), 0.0)


@pytest.mark.parametrize("order", ["own", "shared"])
@pytest.mark.parametrize("orbit", ["full", "random", None])
def test_by_hand(orbit, order):
    """A plain loop over members, epochs and minibatches, its random numbers drawn in the same order."""
    (x, y), net = data(), convolutional()
    found = fitted(net, orbit=orbit or "full", order=order, augmentation=TURNS if orbit else None, optimizer="sgd",
                   learning_rate=0.1, seed=7)  # fmt: skip
    orders = Batches((x, y), 4, None, "full", "shared", 7)
    for member in range(5):
        start, noise = generators(7, member)
        own = copy.deepcopy(net)
        with torch.no_grad():
            for name, value in start_weights(net, "he", {}, start).items():
                own.get_parameter(name).copy_(value)
        optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
        for epoch in (1, 2, 3):
            shared = orders._orders([], epoch)[0]
            rows = shared if order == "shared" else torch.randperm(10, generator=noise)
            for chosen in (rows[:4], rows[4:8]):
                bx, by = x[chosen], y[chosen]
                if orbit == "full":
                    bx, by = torch.cat([torch.rot90(bx, k, (-2, -1)) for k in range(4)]), by.repeat(4)
                elif orbit == "random":
                    turns = torch.randint(4, (4,), generator=noise)
                    bx = torch.stack([torch.rot90(image, int(k), (-2, -1)) for image, k in zip(bx, turns, strict=True)])
                optimizer.zero_grad()
                nn.functional.cross_entropy(own(bx), by).backward()
                optimizer.step()
        for name, value in own.named_parameters():
            torch.testing.assert_close(found.members[name][member], value.detach(), rtol=0, atol=1e-12)


def test_a_member_does_not_depend_on_the_others():
    assert same(fitted(members=3), fitted(members=5).subset([0, 1, 2]))


def test_seeds():
    again, other = fitted(seed=3), fitted(seed=4)
    assert same(fitted(seed=3), again, 0.0) and not same(again, other, 1e-3)
    firsts = again.members["0.weight"]
    assert len({float(w.sum()) for w in firsts}) == 5


def test_torchs_own_random_numbers_go_on():
    torch.manual_seed(1)
    expected = torch.rand(())
    net = convolutional()
    torch.manual_seed(1)
    fitted(net)
    assert torch.rand(()) == expected


def test_a_prior_pulls_by_its_weight():
    """Linear regression: the mode is ridge regression's."""
    x, y = torch.randn(12, 3), torch.randn(12, 1)
    net = nn.Linear(3, 1, bias=False)
    found = fit_ensemble(net, (x, y), members=2, epochs=400, optimizer="sgd", learning_rate=0.4, likelihood="normal",
                         prior=0.5, progress=False)  # fmt: skip
    expected = torch.linalg.solve(x.T @ x + torch.eye(3) / 0.25, x.T @ y).T
    for weight in found.members["weight"]:
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-8)


def test_each_member_keeps_its_best_state():
    found = fitted(dense(), members=6, epochs=40, batch_size=None, learning_rate=0.1, validation=data(8, 1))
    scores = found.history["validation"]
    assert scores.argmin(1).max() < 39
    copies, labels = TURNS.inputs.orbit(data(8, 1)[0]).flatten(0, 1), data(8, 1)[1].repeat(4)
    losses = -found.predict(copies)[:, torch.arange(32), labels].log().mean(1)
    torch.testing.assert_close(losses, scores.amin(1), rtol=0, atol=1e-10)


def test_validation_every_few_epochs_chooses_among_those():
    options = dict(members=4, epochs=7, batch_size=None, learning_rate=0.1, validation=data(8, 1))
    each, some = fitted(dense(), **options), fitted(dense(), validate_every=3, **options)
    shown = torch.tensor([2, 5, 6])
    scores = some.history["validation"]
    assert torch.equal(scores.isnan(), ~torch.isin(torch.arange(7), shown).expand(4, -1))
    torch.testing.assert_close(scores[:, shown], each.history["validation"][:, shown])
    every = fitted(dense(), snapshots=(3, 6, 7), **{**options, "validation": None})
    best = shown[scores[:, shown].argmin(1)] + 1
    for i, epoch in enumerate(best.tolist()):
        for name, weights in some.members.items():
            torch.testing.assert_close(weights[i], every.snapshots[epoch].members[name][i])


def test_outputs_move_with_the_inputs():
    """A swap of two inputs and of two classes: exchanging both leaves the trained ensemble's law as it is."""
    swap = pe.SymmetricGroup(2)
    symmetry = pe.Symmetry(swap, {}, inputs=pe.permutation(swap), outputs=pe.permutation(swap))
    x, y = torch.randn(8, 2), torch.randint(2, (8,))
    start = torch.randn(1, 2, 2)
    init = {"weight": torch.cat([start, start.flip(1, 2)])}
    found = fit_ensemble(nn.Linear(2, 2, bias=False), (x, y), members=2, augmentation=symmetry, init=init, epochs=30,
                         progress=False)  # fmt: skip
    torch.testing.assert_close(found.members["weight"][0], found.members["weight"][1].flip(0, 1), rtol=0, atol=1e-12)
    assert not torch.allclose(found.members["weight"], init["weight"], atol=0.1)


def test_a_continuous_group_at_random():
    group = pe.SpecialOrthogonal(2)
    symmetry = pe.Symmetry(group, {}, inputs=pe.vector(group))
    options = {"members": 3, "augmentation": symmetry, "orbit": "random", "epochs": 2, "progress": False}
    points = torch.randn(6, 2), torch.randint(3, (6,))
    runs = [fit_ensemble(nn.Linear(2, 3), points, stacked=s, **options) for s in (True, False)]
    assert same(*runs)
    started = []
    watched = {"optimizer": lambda parameters: started.append(1) or torch.optim.SGD(parameters, lr=0.1)}
    with pytest.raises(pe.OptionError, match=r"no validation= with .* Leave it out, or augment by a finite subgroup"):
        fit_ensemble(nn.Linear(2, 3), points, validation=points, **watched, **options)
    with pytest.raises(pe.OptionError, match=r"orbit='random' with .*; got 'full'"):
        fit_ensemble(nn.Linear(2, 3), points, **watched, **options | {"orbit": "full"})
    assert not started


class Branching(nn.Module):
    """Its branch depends on values, which ``vmap`` cannot follow."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        out = self.layer(x.flatten(1)[:, :4])
        return out if out.sum() > 0 else 2 * out


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent, self.last = nn.GRU(SIDE, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.recurrent(x[:, 0])[0][:, -1])


@pytest.mark.parametrize("kind", [Branching, Recurrent])
def test_what_cannot_be_trained_together_is_trained_one_by_one(kind):
    net = kind()
    options = {"members": 3, "orbit": "random", "validation": data(4, 1), "snapshots": (0,)}
    chosen, single = fitted(net, **options), fitted(net, stacked=False, **options)
    assert same(chosen, single, 0.0) and not same(chosen, chosen.snapshots[0], 1e-3)
    for stacked in (True, 2):
        words = rf"vmap can run for stacked={stacked}; .* Use stacked=False"
        with pytest.raises(pe.OptionError, match=words) as caught:
            fitted(net, stacked=stacked, **options)
        assert "\n" not in str(caught.value)
    assert len(fitted(net, members=1, stacked=True)) == 1


def test_one_order_for_all_lets_more_be_trained_together():
    """A branch on the data alone stops ``vmap`` only where members have their own minibatches."""

    class OnData(Branching):
        def forward(self, x):
            return self.layer(x.flatten(1)[:, :4]) * (2 if x.sum() > 0 else 1)

    assert same(fitted(OnData(), stacked=True, batch_size=None), fitted(OnData(), stacked=False, batch_size=None))
    with pytest.raises(pe.OptionError, match="stacked=False"):
        fitted(OnData(), stacked=True)


@pytest.mark.parametrize("is_validated", [False, True])
def test_networks_are_trained_in_training_mode_and_keep_their_own(is_validated):
    torch.manual_seed(0)
    validation = data(4, 1) if is_validated else None
    net = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    options = {"stacked": True, "validation": validation, "members": 3}
    awake, asleep = fitted(copy.deepcopy(net).train(), **options), fitted(copy.deepcopy(net).eval(), **options)
    assert same(awake, asleep, 0.0)
    net[2].eval()
    mixed = fitted(net, **options).model.net
    assert awake.model.net.training and not asleep.model.net.training
    assert not asleep.model.net[2].training and mixed[1].training and not mixed[2].training
    net[2].p = 0.0
    assert not same(awake, fitted(net, **options), 1e-3)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x.flatten(1)[:, :4]).tanh())


def test_tied_weights_are_one():
    found = fitted(Tied(), members=3)
    assert set(found.members) == {"a.weight", "a.bias", "b.bias"} and len(found) == 3
    assert same(found, fitted(Tied(), members=3, stacked=False))
    x = data(4, 2)[0]
    for i, probs in enumerate(found.predict(x)):
        weight, first, second = (found.members[name][i] for name in ("a.weight", "a.bias", "b.bias"))
        hidden = (x.flatten(1)[:, :4] @ weight.T + first).tanh()
        torch.testing.assert_close(probs, (hidden @ weight.T + second).softmax(-1), rtol=0, atol=1e-12)
    assert found.stack.b.weight is found.stack.a.weight
    blank = Ensemble(found.model, {n: torch.zeros_like(w) for n, w in found.members.items()})
    blank.load_state_dict(found.state_dict())
    assert same(found, blank, 0.0) and same(found, copy.deepcopy(found).subset(range(3)), 0.0)


def test_numpys_numbers():
    two = np.int64(2)
    found = fitted(members=two, epochs=two, batch_size=two + two, seed=two + 1, stacked=two, snapshots=(two // two,))
    assert same(found, fitted(members=2, epochs=2, seed=3)) and list(found.snapshots) == [1]
    sweep = ensemble_sweep(law(9), sizes=np.array([1, 3, 9]), repeats=two, orders=two, seed=two)
    assert sweep.sizes == (1, 3, 9) and sweep.bootstrap.shape[0] == 2


# The mean is equivariant


def orbit_start(net, symmetry, seed=0):
    """Members that come in orbits: ``ρ(g) θ_0`` for every g."""
    weights = start_weights(net, "he", {}, torch.Generator().manual_seed(seed))
    return {name: symmetry[name].orbit(value) for name, value in weights.items()}


@pytest.mark.parametrize("hidden", ["trivial", "regular"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("kind", ["full", "cross"])
def test_members_in_orbits_have_an_exactly_equivariant_mean_at_all_times(hidden, optimizer, kind):
    net = with_support(convolutional(), kind)
    symmetry = pe.network_symmetry(net, C4, (1, SIDE, SIDE), hidden)
    found = fitted(net, members=4, init=orbit_start(net, symmetry), optimizer=optimizer, batch_size=None, epochs=30,
                   snapshots=(0, 3))  # fmt: skip
    x = torch.randn(7, 1, SIDE, SIDE)
    for ensemble in (found, *found.snapshots.values()):
        for g in range(4):
            moved = symmetry.act(g, {n: w[0] for n, w in ensemble.members.items()})
            assert all(torch.allclose(moved[n], w[g], rtol=0, atol=1e-10) for n, w in ensemble.members.items())
        outputs = orbit_outputs(ensemble, x)
        for mean in ("probabilities", "logits"):
            means = ensemble_mean(outputs, mean)
            assert (means - means[:1]).abs().max() < 1e-10
        assert (outputs - outputs[:, :1]).abs().max() > 1e-2
    assert not same(found, found.snapshots[0], 0.01)


@pytest.mark.parametrize("broken", ["support", "augmentation", "start"])
def test_and_not_without_one_of_the_conditions(broken):
    plain, net = convolutional(), convolutional()
    symmetry = pe.network_symmetry(plain, C4, (1, SIDE, SIDE), "trivial")
    init, options = orbit_start(plain, symmetry), {}
    if broken == "support":
        net = with_support(net, "corner")
        core = core_of(support("corner", 3), pe.image(C4, (3, 3)))
        init["0.weight"] = init["0.weight"] * core  # the start is still invariant
    elif broken == "augmentation":
        options = {"augmentation": None}
    else:
        init["0.weight"][0] += 0.1
    found = fitted(net, members=4, init=init, batch_size=None, epochs=30, snapshots=(0,), **options)
    x = torch.randn(7, 1, SIDE, SIDE)
    means = ensemble_mean(orbit_outputs(found, x))
    assert (means - means[:1]).abs().max() > 1e-3
    first = ensemble_mean(orbit_outputs(found.snapshots[0], x))
    assert ((first - first[:1]).abs().max() < 1e-10) == (broken != "start")


@pytest.mark.parametrize(("init", "moves"), [("he", False), ("normal", False), ("offset", True)])
def test_laws_of_the_start(init, moves):
    """The mean kernel over many members, against its standard error; the variance is the law's."""
    count = 2000
    start = fit_ensemble(convolutional(1), data(), members=count, init=init, epochs=1, snapshots=(0,), progress=False,
                         batch_size=None).snapshots[0]  # fmt: skip
    kernel, scale = start.members["0.weight"][:, 0, 0], {"he": 2 / 9, "normal": 1, "offset": 1 / 9}[init] ** 0.5
    z = kernel.mean(0) / (scale / count**0.5)
    assert (float(z.abs().max()) > 10) == moves
    torch.testing.assert_close(kernel.std(0), torch.full((3, 3), scale), rtol=5 / (2 * count) ** 0.5, atol=0)
    assert start.members["0.bias"].abs().max() == 0


def test_gains_start_at_one_and_a_callable_is_used():
    net = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    pair = torch.randn(5, 2), torch.randint(2, (5,))
    first = fit_ensemble(net, pair, members=2, epochs=1, snapshots=(0,), progress=False).snapshots[0]
    assert torch.equal(first.members["1.weight"], torch.ones(2, 4)) and first.members["1.bias"].abs().max() == 0
    laid = fit_ensemble(net, pair, members=2, epochs=1, snapshots=(0,), progress=False,
                        init=lambda name, shape, generator: torch.full(shape, 6.0)).snapshots[0]  # fmt: skip
    assert torch.equal(laid.members["0.bias"], torch.full((2, 4), 6.0))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.temperature = nn.Parameter(torch.tensor([0.1, 0.2, 0.3])), nn.Parameter(torch.tensor(1.5))
        self.output_bias = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.temperature * self.scale * x + self.output_bias


@pytest.mark.parametrize("init", ["he", "normal", "offset"])
def test_only_biases_start_at_zero(init):
    net = nn.Sequential(
        nn.LayerNorm((SIDE, SIDE)), nn.Flatten(), nn.Linear(SIDE**2, 8), nn.RMSNorm(8), nn.PReLU(8), nn.Linear(8, 3),
        Scaled(),
    )  # fmt: skip
    found = fitted(net, init=init, snapshots=(0,))
    start = {name: w[0] for name, w in found.snapshots[0].members.items()}
    own = dict(net.named_parameters())
    zero, one = ("0.bias", "2.bias", "5.bias", "6.output_bias"), ("0.weight", "3.weight")
    for name in own:
        if name in zero + one:
            assert torch.equal(start[name], torch.full_like(own[name], float(name in one)))
        elif own[name].ndim < 2:
            assert torch.equal(start[name], own[name])
        else:
            assert not torch.allclose(start[name], own[name], atol=0.01)
        assert not torch.equal(found.members[name][0], start[name]), f"{name} does not train"


def test_rms_norms_gains_are_around_one_and_its_symmetry_is_not_read():
    net = nn.Sequential(nn.Flatten(), nn.RMSNorm(SIDE**2), nn.Linear(SIDE**2, 3))
    model = pe.BayesianNetwork(net, prior=pe.FanIn())
    assert torch.equal(model.prior_of("1.weight", net[1].weight).mean, torch.ones(SIDE**2))
    with pytest.raises(pe.LayerError, match="RMSNorm"):
        pe.network_symmetry(net, C4, (1, SIDE, SIDE))


# Supports


def test_named_supports():
    shown = {name: support(name, 3).int().flatten().tolist() for name in SUPPORTS}
    assert shown == {
        "full": [1] * 9, "cross": [0, 1, 0, 1, 1, 1, 0, 1, 0], "corner": [1, 1, 0, 1, 0, 1, 0, 1, 0],
        "row": [0, 0, 0, 1, 1, 1, 0, 0, 0],
    }  # fmt: skip
    assert support("cross", (3, 5)).sum() == 7 and support("corner", 5).sum() == support("cross", 5).sum()


@pytest.mark.parametrize(("name", "element"), [("corner", "r90"), ("row", "r90")])
def test_a_support_that_is_not_kept_is_named_with_the_element(name, element):
    turn = pe.image(C4, (3, 3))
    with pytest.raises(pe.LayerError, match=rf"support of 'conv1' .* CyclicGroup\(4\); '{element}' takes"):
        check_support(support(name, 3), turn, "conv1")
    assert is_invariant_support(support("row", 3), pe.image(pe.CyclicGroup(2), (3, 3)))
    net = with_support(convolutional(), name)
    with pytest.raises(pe.LayerError, match="support of '0'"):
        pe.network_symmetry(net, C4, (1, SIDE, SIDE), "trivial")
    plain = pe.network_symmetry(convolutional(), C4, (1, SIDE, SIDE), "trivial")
    with pytest.raises(pe.LayerError, match="move with the symmetry"):
        plain.check(net)  # the numbers say the same


def test_a_reflection_breaks_what_turns_keep():
    pinwheel = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.bool)
    pinwheel = pinwheel | pinwheel.rot90() | pinwheel.rot90(2) | pinwheel.rot90(3)
    lone = torch.zeros(4, 4, dtype=torch.bool)
    lone[0, 1] = True
    lone = lone | lone.rot90() | lone.rot90(2) | lone.rot90(3)
    assert is_invariant_support(lone, pe.image(C4, (4, 4)))
    assert not is_invariant_support(lone, pe.image(pe.DihedralGroup(4), (4, 4)))
    with pytest.raises(pe.LayerError, match="'s'"):
        check_support(lone, pe.image(pe.DihedralGroup(4), (4, 4)))


@pytest.mark.parametrize("kind", ["cross", "full"])
def test_a_network_on_an_invariant_support_is_read_checked_and_expanded(kind):
    net = with_support(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
                                     nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)), kind)  # fmt: skip
    for hidden in ("regular", "trivial"):
        assert pe.network_symmetry(net, C4, (1, SIDE, SIDE), hidden).check(net) < 1e-12
    symmetry = pe.network_symmetry(net, C4, (1, SIDE, SIDE), "trivial")
    guide = pe.AutoMeanFieldNormal(model := pe.BayesianNetwork(net))
    guide.initialize(*data(2))
    big_model, _, big_symmetry = pe.expand(model, guide, symmetry, arrangement="gcnn", tie=None)
    assert big_symmetry.check(big_model.net) < 1e-12
    assert torch.equal(masks_of(big_model.net)["2.weight"], support(kind, 3))


@pytest.mark.parametrize("optimizer", ["adam", "sgd", functools.partial(torch.optim.AdamW, weight_decay=0.1)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_off_a_support_stay_zero(optimizer, variant):
    found = fitted(optimizer=optimizer, epochs=5, snapshots=(0,), **VARIANTS[variant])
    kept, kernels = support(VARIANTS[variant]["support"], 3), found.members["0.weight"]
    assert kernels[..., ~kept].abs().max() == 0 and kernels[..., kept].abs().min() > 0
    off_core = kept & ~core_of(kept, pe.image(C4, (3, 3)))
    start = found.snapshots[0].members["0.weight"]
    assert off_core.any() == (variant != "symmetric")
    if off_core.any():
        assert (start[..., off_core].abs().max() == 0) == (variant == "asymmetric, symmetric start")


def test_variants_have_equally_many_weights_and_scales():
    kept = [masks_of(with_support(convolutional(), o["support"]))["0.weight"].sum() for o in VARIANTS.values()]
    assert kept == [5, 5, 5]
    spread = [fitted(members=300, epochs=1, support=s, snapshots=(0,), batch_size=None).snapshots[0].members["0.weight"]
              for s in ("cross", "corner")]  # fmt: skip
    for weights, name in zip(spread, ("cross", "corner"), strict=True):
        spread = weights[..., support(name, 3)].std()
        torch.testing.assert_close(spread, torch.tensor((2 / 5) ** 0.5), rtol=0.05, atol=0)


def test_supports_of_single_layers_and_by_hand():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3, bias=False))
    assert [type(m) for m in with_support(net, "cross")] == [SupportedConv2d, nn.Conv2d, SupportedConv2d]
    mask = torch.eye(3, dtype=torch.bool)
    named = with_support(net, {"2": mask})
    assert masks_of(named).keys() == {"2.weight"} and torch.equal(named[2].kept, mask)
    x = torch.randn(2, 2, 5, 5)
    expected = nn.functional.conv2d(x, net[2].weight * mask)
    assert torch.equal(named[2](x), expected) and type(net[2]) is nn.Conv2d
    alone = with_support(nn.Conv2d(1, 1, 3), "row")
    assert masks_of(alone).keys() == {"weight"}


def test_a_shared_convolution_stays_one_on_its_support():
    shared = nn.Conv2d(2, 2, 3, padding=1)
    net = nn.Sequential(shared, nn.Tanh(), shared, nn.Sequential(nn.Tanh(), shared))
    x = torch.randn(2, 2, 5, 5)
    expected = x
    for _ in range(3):
        convolved = nn.functional.conv2d(expected, shared.weight * support("corner", 3), shared.bias, padding=1)
        expected = convolved.tanh()
    for kept in ("corner", {"0": "corner"}, {"3.1": "corner"}, {"2": "corner", "0": "corner"}):
        found = with_support(net, kept)
        assert found[0] is found[2] is found[3][1] and type(found[2]) is SupportedConv2d
        torch.testing.assert_close(found(x), convolved)
        assert masks_of(found).keys() == {"0.weight"} and len(list(found.parameters())) == 2
    with pytest.raises(pe.OptionError, match=r"one support for the convolution '2', which has another name too"):
        with_support(net, {"0": "corner", "2": "row"})
    assert type(net[0]) is nn.Conv2d and shared.weight.count_nonzero() == 36


def test_convolutions_that_share_a_weight_go_on_sharing_it():
    net = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1))
    net[1].weight = net[0].weight
    found = with_support(net, "row")
    assert found[0].weight is found[1].weight and found[0].bias is not found[1].bias
    assert found[0].weight[..., ~support("row", 3)].abs().max() == 0 and net[0].weight.count_nonzero() == 36


# The ensemble as a guide


@pytest.fixture(scope="module")
def ensemble():
    torch.set_default_dtype(torch.float64)
    return fitted(members=6)


def test_in_turn_is_every_member_once(ensemble):
    x = data(4, 2)[0]
    each = torch.stack([
        torch.func.functional_call(ensemble.model.net, {n: w[m] for n, w in ensemble.members.items()}, (x,)).softmax(-1)
        for m in range(6)
    ])  # fmt: skip
    torch.testing.assert_close(ensemble.predict(x), each, rtol=0, atol=1e-12)
    turn = ensemble.in_turn()
    torch.testing.assert_close(pe.predict(ensemble.model, turn, x, 9), each[[0, 1, 2, 3, 4, 5, 0, 1, 2]])
    torch.testing.assert_close(ensemble.mean(x), each.mean(0))
    logits = each.log().mean(0).softmax(-1)
    torch.testing.assert_close(ensemble.mean(x, "logits"), logits)
    assert not torch.allclose(ensemble.mean(x), logits, atol=1e-4)


def test_a_draw_is_one_member_for_all_sites_and_uniform(ensemble):
    counts = torch.zeros(6)
    for _ in range(600):
        trace = poutine.trace(ensemble).get_trace()
        index = int(trace.nodes["_member"]["value"])
        counts[index] += 1
        for name, values in ensemble.members.items():
            assert torch.equal(trace.nodes[name]["value"], values[index])
    assert ((counts - 100).square() / 100).sum() < 30.9  # the 1e-5 quantile of chi² with 5 degrees of freedom
    assert trace.nodes["_member"]["infer"]["is_auxiliary"]


def test_it_is_taken_like_any_guide(ensemble):
    x, y = data(7, 3)
    outputs = orbit_outputs(ensemble, x)
    assert outputs.shape == (6, 4, 7, 3) and pe.orbit_predict(ensemble.model, ensemble, TURNS, x, 9).shape[0] == 9
    assert metrics.equivariance_defect(outputs).value != 0
    idata = diagnostics.to_arviz(ensemble.model, ensemble.in_turn(), (x, y), symmetry=TURNS, draws=6, sites="all")
    assert set(idata.posterior.data_vars) == {*ensemble.members, "mean_log_likelihood"}
    torch.testing.assert_close(torch.tensor(idata.orbit_predictive["probs"].values[0]), outputs)
    log_likelihood = outputs[:, 0, torch.arange(7), y].log()
    torch.testing.assert_close(torch.tensor(idata.log_likelihood["y"].values[0]), log_likelihood)
    symmetry = pe.network_symmetry(ensemble.model.net, C4, (1, SIDE, SIDE), "trivial")
    assert pe.lifted_check(ensemble.model, ensemble, symmetry, x) < 1e-12


def test_subsets_copies_and_states(ensemble):
    part = ensemble.subset([4, -6])
    assert len(part) == 2 and torch.equal(part.history["loss"], ensemble.history["loss"][[4, 0]])
    earlier = fitted(members=3, snapshots=(0, 1))
    assert torch.equal(earlier.subset([2]).snapshots[1].members["0.bias"], earlier.snapshots[1].members["0.bias"][2:])
    x = data(3, 5)[0]
    torch.testing.assert_close(part.predict(x), ensemble.predict(x)[[4, 0]])
    for double in (pickle.loads(pickle.dumps(ensemble)), copy.deepcopy(ensemble)):
        assert torch.equal(double.predict(x), ensemble.predict(x))
    blank = Ensemble(ensemble.model, {n: torch.zeros_like(w) for n, w in ensemble.members.items()})
    blank.load_state_dict(ensemble.state_dict())
    assert torch.equal(blank.predict(x), ensemble.predict(x))
    single = copy.deepcopy(ensemble).float()
    assert single.predict(x.float()).dtype == torch.float32 and repr(part) == "Ensemble(2 members of Sequential)"


def test_masks_and_indices(ensemble):
    mask = [False, True, False, False, True, True]
    for given in (mask, torch.tensor(mask), np.array(mask), np.array([1, 4, 5]), (1, -2, 5)):
        assert same(ensemble.subset(given), ensemble.subset([1, 4, 5]), 0.0)


def test_another_dtype_takes_snapshots_along_and_leaves_other_ensembles_alone():
    whole = fitted(members=3, snapshots=(0, 1))
    part, model, x = whole.subset([0]), whole.model, data(2, 1)[0]
    before = part.predict(x)
    single = copy.deepcopy(whole).float()
    assert whole.float() is whole and whole.model is not model
    for converted in (single, whole, *single.snapshots.values(), *whole.snapshots.values()):
        assert converted.predict(x.float()).dtype == torch.float32
        assert {w.dtype for w in converted.members.values()} == {torch.float32}
    assert torch.equal(part.predict(x), before) and before.dtype == torch.float64
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert whole.double().snapshots[1].predict(x).dtype == torch.float64


def sharp(*logits, dtype=torch.float32):
    """An ensemble whose members have these logits for the input 1."""
    net = nn.Linear(1, len(logits[0]), bias=False, dtype=dtype)
    return Ensemble(pe.BayesianNetwork(net), {"weight": torch.tensor(logits, dtype=dtype)[..., None]})


def test_the_mean_of_logits_is_that_of_the_networks_own():
    """Logits 300 and −290: probabilities in float32 are 0 and 1, and the mean of the logits is 5."""
    ensemble, x = sharp([300.0, 0.0], [-290.0, 0.0]), torch.ones(1, 1, dtype=torch.float32)
    expected = torch.tensor([[5.0, 0.0]]).softmax(-1)
    torch.testing.assert_close(ensemble.mean(x, "logits"), expected, rtol=0, atol=1e-12)
    logs = ensemble.log_probs(x)
    torch.testing.assert_close(logs, torch.tensor([[[0.0, -300.0]], [[-290.0, 0.0]]]), rtol=0, atol=1e-12)
    torch.testing.assert_close(ensemble_mean(logs, "logits"), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(ensemble.mean(x), torch.tensor([[0.5, 0.5]]))
    subnormal = sharp([95.0, 0.0], [0.0, 0.0]).predict(x)
    assert 0 < subnormal.min() < 1e-38
    for outputs in (ensemble.predict(x), subnormal):
        with pytest.raises(pe.DataError, match=r"smallest is .* Give .* such as ensemble\.log_probs\(x\)"):
            ensemble_mean(outputs, "logits")
        with pytest.raises(pe.DataError, match="Give log-probabilities"):
            ensemble_sweep(outputs[:, None].expand(-1, 4, -1, -1), repeats=2, mean="logits")
    with pytest.raises(pe.OptionError, match="mean to be one of"):
        ensemble.mean(x, "median")


def test_the_mean_of_logits_of_maps_and_of_no_classes():
    maps = nn.Conv2d(1, 3, 1)
    members = {n: torch.randn(4, *p.shape) for n, p in maps.named_parameters()}
    ensemble, x = Ensemble(pe.BayesianNetwork(maps), members), torch.randn(2, 1, 5, 5)
    each = [{n: w[i] for n, w in members.items()} for i in range(4)]
    logits = torch.stack([torch.func.functional_call(maps, weights, (x,)) for weights in each])
    torch.testing.assert_close(ensemble.mean(x, "logits"), logits.mean(0).softmax(1))
    torch.testing.assert_close(ensemble.log_probs(x), logits.log_softmax(2))
    numbers = Ensemble(pe.BayesianNetwork(maps, likelihood="normal"), members)
    with pytest.raises(pe.OptionError, match=r"likelihood of classes .* got Normal"):
        numbers.mean(x, "logits")


def test_which_defect_is_which(ensemble):
    """By enumeration: pairs with replacement target this ensemble's own defect, pairs of two members the law's."""
    outputs = orbit_outputs(ensemble, data(3, 5)[0])
    own = (outputs.mean(0) - outputs.mean(0)[:1]).square().sum(-1).mean().item()
    assert metrics.equivariance_defect(outputs, estimator="biased").value == pytest.approx(own)
    pairs = [metrics.equivariance_defect(outputs[list(p)]).value for p in itertools.product(range(6), repeat=2)]
    assert sum(pairs) / 36 == pytest.approx(own)
    distinct = [metrics.equivariance_defect(outputs[list(p)]).value for p in itertools.permutations(range(6), 2)]
    assert sum(distinct) / 30 == pytest.approx(metrics.equivariance_defect(outputs).value) != pytest.approx(own)


def test_it_goes_through_pyros_predictive(ensemble):
    x = data(4, 2)[0]
    found = pyro.infer.Predictive(ensemble.model, guide=ensemble, num_samples=8)(x)
    assert found["y"].shape == (8, 4)


# The sweep


def law(members, level=0.0, seed=0):
    """Outputs of members whose mean differs between poses by ``level``."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(members, 4, 30, 3, generator=generator)
    logits[:, 1:, :, 0] += level
    return logits.softmax(-1)


def test_the_curve_is_the_plug_in_of_sub_ensembles():
    outputs = law(8)
    sweep = ensemble_sweep(outputs, sizes=(1, 8), repeats=3, orders=200)
    whole = outputs.mean(0)
    torch.testing.assert_close(sweep.value("defect")[1], (whole - whole[:1]).square().sum(-1).mean())
    assert sweep.value("defect")[1].item() == pytest.approx(
        metrics.equivariance_defect(outputs, estimator="biased").value
    )
    torch.testing.assert_close(sweep.value("symmetric_kl")[1], metrics.symmetric_kl(whole))
    torch.testing.assert_close(sweep.value("osp")[1], metrics.orbit_same_prediction(whole, definition="count"))
    singles = [(o - o[:1]).square().sum(-1).mean() for o in outputs]
    error = torch.stack(singles).std() / 200**0.5
    assert abs(sweep.value("defect")[0] - torch.stack(singles).mean()) < 5 * error
    assert sweep.unbiased == metrics.equivariance_defect(outputs)
    logits = ensemble_sweep(outputs, sizes=(8,), repeats=3, mean="logits")
    pooled = outputs.log().mean(0).softmax(-1)
    torch.testing.assert_close(logits.value("symmetric_kl")[0], metrics.symmetric_kl(pooled))
    assert logits.unbiased is None


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
def test_slopes_of_an_invariant_and_another_law(mean):
    for quantity in ("defect", "symmetric_kl"):
        flat = ensemble_sweep(law(128), repeats=20, mean=mean).slope(quantity)
        assert abs(flat.value + 1) < max(4 * flat.se, 0.05) and flat.se < 0.1
        level = ensemble_sweep(law(128, 1.0), repeats=20, mean=mean).slope(quantity)
        assert level.value > -0.5


def test_intervals_hold_the_expected_plug_in():
    """Over fresh ensembles, intervals of level 0.8 hold the mean of the plug-in defect in about 0.8 of the cases."""
    runs = [ensemble_sweep(law(40, 0.5, seed), sizes=(40,), repeats=60, orders=1) for seed in range(60)]
    truth = torch.stack([run.value("defect")[0] for run in runs]).mean()
    inside = sum(bool(low <= truth <= high) for low, high in (run.interval("defect", 0.8)[:, 0] for run in runs))
    assert 36 <= inside <= 59  # 48 expected; 4 standard errors are 12


def test_log_probabilities_are_probabilities_to_the_mean_of_logits():
    outputs = law(8, 0.5)
    given, logs = (ensemble_sweep(o, repeats=3, mean="logits") for o in (outputs, outputs.log()))
    torch.testing.assert_close(given.values, logs.values)
    steep = 500 * torch.randn(4, 2, 3, 2)
    sweep = ensemble_sweep(steep.log_softmax(-1), sizes=(4,), repeats=2, mean="logits")
    whole = steep.mean(0).softmax(-1)
    torch.testing.assert_close(sweep.value("defect")[0], (whole - whole[:1]).square().sum(-1).mean())


@pytest.mark.parametrize("level", [0.0, 3.0])
def test_the_bound_holds(level):
    """Δ of a law of infinitely many members: 0 without a level, and otherwise from very many."""
    means = law(20000, level, 99).mean(0)
    truth = (means - means[:1]).square().sum(-1).mean() if level else 0.0
    sizes = (1, 2, 5, 32, 500)
    sweep = ensemble_sweep(law(500, level), sizes=sizes, repeats=2)
    bound = sweep.bound(0.05)
    assert bool(((sweep.value("defect") - truth).abs() <= bound).all())
    assert bound[0] == 2 and bool((bound.diff()[1:] < 0).all()) and bool((sweep.bound(0.01) >= bound).all())
    assert bound[-1].item() == pytest.approx(499 / 500 * metrics.deviation(500, 0.05) + 2 / 500)
    large = ensemble_sweep(law(500), sizes=(100, 400), repeats=2).bound()
    assert large[0] / large[1] == pytest.approx(2, rel=0.02)


def test_the_bound_holds_at_worst():
    """Half of the members say class 0 at every pose, the others another at each turned one: the plug-in spreads widely.

    The share of deviations beyond the bound stays below δ, and that beyond a tenth of it is not 0.
    """
    one_hot, generator = torch.eye(2), torch.Generator().manual_seed(0)
    kinds = one_hot[torch.tensor([[0, 0], [0, 1]])][:, :, None]  # (2, |G|, N, K)
    truth, gaps, size = 0.5**2, [], 20
    for _ in range(200):
        outputs = kinds[torch.randint(2, (size,), generator=generator)]
        sweep = ensemble_sweep(outputs, sizes=(size,), repeats=1, orders=1)
        gaps.append(abs(sweep.value("defect")[0].item() - truth))
    bound = sweep.bound(0.5)[0].item()
    shares = [sum(gap > part * bound for gap in gaps) / 200 for part in (1, 0.1)]
    assert shares[0] <= 0.5 < 1 and shares[1] > 0


def test_actions_move_the_anchor():
    swap = pe.SymmetricGroup(2)
    upright = torch.rand(6, 1, 5, 2).softmax(-1)
    outputs = torch.cat([upright, upright.flip(-1)], 1)
    sweep = ensemble_sweep(outputs, sizes=(1, 6), repeats=3, action=pe.permutation(swap))
    assert sweep.value("defect").abs().max() < 1e-15 and sweep.value("osp").min() == 2
    assert ensemble_sweep(outputs, sizes=(6,), repeats=3).value("defect").min() > 0


def test_it_prints_its_rows():
    sweep = ensemble_sweep(law(9), repeats=5)
    assert sweep.sizes == (1, 2, 4, 8) and [row["members"] for row in sweep.rows()] == [1, 2, 4, 8]
    assert "slopes over log M" in str(sweep) and "unbiased defect" in str(sweep)
    assert "unbiased" not in str(ensemble_sweep(law(9), repeats=5, mean="logits"))


# The study


@pytest.fixture(scope="module")
def small():
    config = study.EnsemblesConfig(epochs=3, train_size=40, images=20, batch_size=10, channels=2, orbits=3)
    return config, study._split(config, pe.data.load("digits"), 0)


def test_only_the_support_breaks_the_symmetry_of_members_in_orbits(small):
    config, (train, test, _) = small
    kept, lost = (study.in_orbits(config, name, train, test[0], 10, 0) for name in study.IN_ORBITS)
    assert kept["defect"] < 1e-11 and abs(kept["unbiased"]) < 1e-11  # squares of rounding errors in float32
    assert lost["defect"] > 1e-6


def test_turns_move_the_images_of_the_study(small):
    _, (train, _, symmetry) = small
    assert torch.equal(symmetry.act_inputs(1, train[0]), torch.rot90(train[0], 1, (-2, -1)))
    assert train[0].dtype == torch.float32 and abs(float(train[0].mean())) < 1e-5


def test_the_order_of_variants():
    levels = dict(zip(study.ORDERED, (0.0, 1.0, 2.0), strict=True))
    sweeps = {name: ensemble_sweep(law(60, level), sizes=(60,), repeats=20) for name, level in levels.items()}
    for shares in study.order_of(sweeps).values():
        assert shares["defect"] > 0.99 and shares["symmetric_kl"] > 0.99 and shares["unbiased"] > 4
    backwards = study.order_of(dict(zip(study.ORDERED, reversed(list(sweeps.values())), strict=True)))
    assert all(shares["defect"] < 0.01 for shares in backwards.values())


def test_epochs_that_are_measured():
    assert study.EnsemblesConfig(epochs=10).measured == (0, 1, 2, 4, 10)
    assert study.EnsemblesConfig(epochs=1).measured == (0, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"mean": "median"}, "--mean"), ({"members": 3}, "--members"), ({"orbits": 2}, "--orbits 3"),
     ({"train_size": 0}, "--train-size")],
)  # fmt: skip
def test_mistakes_in_the_studys_options(options, words):
    with pytest.raises(pe.OptionError, match=words):
        study.EnsemblesConfig(**options)


# Errors

X, Y = torch.zeros(4, 1, SIDE, SIDE, dtype=torch.float64), torch.zeros(4).long()
MISTAKES = [
    ({"members": 0}, pe.OptionError, r"members to be a positive integer; got 0"),
    ({"epochs": 2.5}, pe.OptionError, r"epochs to be a positive integer; got 2\.5"),
    ({"batch_size": 0}, pe.OptionError, r"batch_size"),
    ({"learning_rate": -1.0}, pe.OptionError, r"learning_rate to be positive; got -1\.0"),
    ({"orbit": "half"}, pe.OptionError, r"orbit to be one of 'full', 'random'; got 'half'"),
    ({"order": "same"}, pe.OptionError, r"order to be one of 'own', 'shared'"),
    ({"optimizer": "lion"}, pe.OptionError, r"optimizer to be one of 'adam', 'sgd'; got 'lion'"),
    ({"init": "zero"}, pe.OptionError, r"init to be one of 'he', 'normal', 'offset'; got 'zero'"),
    ({"init": lambda n, s, g: torch.zeros(2)}, pe.OptionError, r"init to return a tensor of shape \(4, 1, 3, 3\)"),
    ({"init": {"0.weight": torch.zeros(5, 3)}}, pe.DataError, r"init\['0.weight'\] of shape \(5, 4, 1, 3, 3\)"),
    ({"stacked": 0.5}, pe.OptionError, r"stacked to be True, False, None or a number of members; got 0\.5"),
    ({"support": "ring"}, pe.OptionError, r"support to be one of 'full', 'cross', 'corner', 'row'; got 'ring'"),
    ({"support": {"7": "row"}}, pe.OptionError, r"convolutions of the network, '0'; got '7'"),
    ({"support": torch.ones(3, 3)}, pe.OptionError, r"booleans of shape \(3, 3\)"),
    ({"core_start": True, "augmentation": None}, pe.OptionError, r"augmentation= for core_start=True"),
    ({"core_start": True}, pe.OptionError, r"on a support for core_start=True; the network has none"),
    ({"core_start": True, "support": "corner", "init": {}}, pe.OptionError, r"a law as init for core_start=True"),
    ({"snapshots": (4,)}, pe.OptionError, r"snapshots of epochs from 0 to 3; got 4"),
    ({"snapshots": 3}, pe.OptionError, r"snapshots to be a sequence of epochs; got 3\. Use \(3,\)"),
    ({"snapshots": (-1,)}, pe.OptionError, r"snapshots to be an integer of at least 0; got -1"),
    ({"snapshots": (0.5,)}, pe.OptionError, r"snapshots to be an integer of at least 0; got 0\.5"),
    ({"seed": -1}, pe.OptionError, r"seed to be an integer of at least 0; got -1"),
    ({"members": True}, pe.OptionError, r"members to be a positive integer; got True"),
    ({"optimizer": lambda parameters: None}, pe.OptionError, r"a torch\.optim\.Optimizer; got NoneType"),
    ({"optimizer": torch.optim.LBFGS}, pe.OptionError, r"without a closure; got LBFGS"),
    ({"prior": "learned"}, pe.OptionError, r"not learned"),
    ({"likelihood": pe.NormalLikelihood(learned=True)}, pe.OptionError, r"not learned"),
    ({"data": X}, pe.DataError, r"data to be \(x, y\)"),
    ({"data": (X, Y[:3])}, pe.DataError, r"two tensors of one length"),
    ({"data": (X, Y + 3)}, pe.DataError, r"labels between 0 and 2"),
    ({"data": (X * torch.nan, Y)}, pe.DataError, r"finite values in data"),
    ({"validation": (X, Y - 1)}, pe.DataError, r"labels between 0 and 2"),
    ({"augmentation": C4}, pe.SymmetryError, r"to be a pe.Symmetry"),
    ({"init": lambda n, s, g: torch.full(s, torch.nan)}, pe.OptionError, r"5 of 5 members have none in epoch"),
]


@pytest.mark.parametrize(("options", "error", "words"), MISTAKES, ids=[words for *_, words in MISTAKES])
def test_mistakes_are_named(options, error, words):
    with pytest.raises(error, match=words) as caught:
        fitted(**options)
    assert "\n" not in str(caught.value)


def test_other_mistakes_are_named(ensemble):
    with pytest.raises(pe.OptionError, match=r"running statistics, which members would share; '1' has them"):
        fitted(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, 3)))
    with pytest.raises(pe.OptionError, match=r"a Conv2d for support=; it has none"):
        fitted(dense(), support="row")
    with pytest.raises(pe.OptionError, match=r"odd sides for the support 'cross'; got 4 × 4"):
        support("cross", 4)
    for sides in ((1, 3), (3, 1), 1):
        with pytest.raises(pe.OptionError, match=r"sides of at least 3 for the support 'corner'; got \d × \d"):
            support("corner", sides)
    with pytest.raises(pe.OptionError, match=r"model to be a pe\.BayesianNetwork; got Linear"):
        Ensemble(nn.Linear(1, 2), {})
    with pytest.raises(pe.OptionError, match=r"a mask of the 6 members; got one of shape \(3,\)"):
        ensemble.subset([True, False, True])
    with pytest.raises(pe.OptionError, match=r"as integers, or a mask; got torch\.float64"):
        ensemble.subset([1.0, 2.5])
    with pytest.raises(pe.DataError, match=r"shape \(M, \|G\|, N, K\), not empty; got \(8, 4, 30\)"):
        ensemble_sweep(law(8)[..., 0])
    with pytest.raises(pe.OptionError, match="mean of probabilities for a bound"):
        ensemble_sweep(law(8), repeats=2, mean="logits").bound()
    with pytest.raises(pe.OptionError, match=r"every size to be a positive integer; got .*2\.0"):
        ensemble_sweep(law(8), sizes=np.array([2.0]))
    with pytest.raises(pe.SymmetryError, match=r"booleans of shape \(5, 5\)"):
        is_invariant_support(support("cross", 3), pe.image(C4, (5, 5)))
    with pytest.raises(pe.OptionError, match=r"indices of members, from 0 to 5; got \[6\]"):
        ensemble.subset([6])
    with pytest.raises(pe.OptionError, match="from 0 to 5"):
        ensemble.subset([])
    with pytest.raises(pe.DataError, match=r"Expected members of '0\.weight'"):
        Ensemble(ensemble.model, {})
    wrong = {name: w[:, ..., None] for name, w in ensemble.members.items()}
    with pytest.raises(pe.DataError, match=r"members of '0\.weight' of shape \(M, 4, 1, 3, 3\)"):
        Ensemble(ensemble.model, wrong)
    unequal = dict(ensemble.members) | {"0.bias": torch.zeros(2, 4)}
    with pytest.raises(pe.DataError, match=r"same number of members .* got \[2, 6\]"):
        Ensemble(ensemble.model, unequal)
    with pytest.raises(pe.DataError, match=r"class probabilities .* for mean='logits'"):
        ensemble_mean(torch.randn(3, 4), "logits")
    with pytest.raises(pe.OptionError, match=r"increasing sizes up to the 9 members; got \(2, 10\)"):
        ensemble_sweep(law(9), sizes=(2, 10))
    with pytest.raises(pe.OptionError, match="repeats"):
        ensemble_sweep(law(9), repeats=0)
    with pytest.raises(pe.OptionError, match="quantity to be one of"):
        ensemble_sweep(law(9), repeats=2).value("ece")


def test_the_rule_of_what_is_trained_together():
    conv, flat = convolutional(), dense()
    assert fitting._together(flat, None, 50, 10**6) == 50
    assert fitting._together(conv, None, 50, 128) == 8 and fitting._together(conv, None, 50, 5000) == 1
    assert [fitting._together(conv, s, 50, 1) for s in (True, False, 7, 99)] == [50, 1, 7, 50]
