"""Each metric against its definition written out as loops, and against what it must average to."""

import itertools
import math
from dataclasses import dataclass
from functools import cache, partial

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from pyro_equivariance import CyclicGroup, metrics, regular
from pyro_equivariance.errors import DataError, OptionError, SymmetryError
from pyro_equivariance.metrics import DefectSweep, Estimate, PredictionSets, Reevaluations

SIGMAS = 4.5  # of a computed standard error: one failure in 150,000


@dataclass(frozen=True)
class Shift:
    """The smallest action: element g of C_n rolls the n classes by g."""

    n: int

    @property
    def group(self):
        return range(self.n)

    @property
    def event_shape(self):
        return torch.Size([self.n])

    def act(self, g, y):
        y = y.expand(*torch.broadcast_shapes(g.shape, y.shape[:-1]), self.n)
        index = (torch.arange(self.n) - g.unsqueeze(-1)) % self.n
        return y.gather(-1, index.expand_as(y))


ACTIONS = {"invariant": None, "shift": Shift(4), "regular": regular(CyclicGroup(4))}
ESTIMATORS = ("unbiased", "biased")


def exact(values):
    return torch.tensor(values, dtype=torch.float64)


def random_draws(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_probs(*shape, seed=0):
    return random_draws(*shape, seed=seed).softmax(-1)


def moved(y, g, action):
    return y if action is None else y.roll(int(g), -1)


def naive_defect(outputs, action, estimator):
    """The definitions, one pair of draws at a time."""
    draws, order, images = outputs.shape[:3]
    total = 0.0
    for n in range(images):
        for g in range(order):
            d = [outputs[t, g, n] - moved(outputs[t, 0, n], g, action) for t in range(draws)]
            if estimator == "biased":
                total += sum(d).div(draws).square().sum().item()
            else:
                pairs = [(d[s] * d[t]).sum().item() for s in range(draws) for t in range(draws) if s != t]
                total += sum(pairs) / (draws * (draws - 1))
    return total / (order * images)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS.keys())
class TestDefect:
    def test_equals_the_double_loop(self, action, estimator):
        outputs = random_draws(5, 4, 3, 4)
        result = metrics.equivariance_defect(outputs, action=action, estimator=estimator)
        assert result.value == pytest.approx(naive_defect(outputs, action, estimator), abs=1e-13)

    def test_error_is_the_brute_force_jackknife(self, action, estimator):
        outputs = random_draws(6, 4, 2, 4)
        keep = [[s for s in range(6) if s != t] for t in range(6)]
        values = exact([naive_defect(outputs[k], action, estimator) for k in keep])
        expected = ((values - values.mean()).square().sum() * 5 / 6).sqrt().item()
        result = metrics.equivariance_defect(outputs, action=action, estimator=estimator)
        assert result.se == pytest.approx(expected, rel=1e-10)

    def test_vanishes_on_equivariant_draws(self, action, estimator):
        base = random_draws(3, 1, 5, 4)
        outputs = torch.cat([moved(base, g, action) for g in range(4)], dim=1)
        result = metrics.equivariance_defect(outputs, action=action, estimator=estimator)
        assert result == Estimate(0.0, 0.0)

    @pytest.mark.parametrize("chunk_size", [1, 2, 7, 1000])
    def test_ignores_the_chunks(self, action, estimator, chunk_size):
        options = {"action": action, "estimator": estimator}
        outputs = random_draws(4, 4, 7, 4)
        whole = metrics.equivariance_defect(outputs, chunk_size=7, **options)
        parts = metrics.equivariance_defect(outputs, chunk_size=chunk_size, **options)
        assert (parts.value, parts.se) == pytest.approx((whole.value, whole.se), rel=1e-12)

    def test_accumulates_in_float64(self, action, estimator):
        outputs = random_draws(4, 4, 3, 4).float()
        options = {"action": action, "estimator": estimator}
        narrow = metrics.equivariance_defect(outputs, **options)
        assert narrow == metrics.equivariance_defect(outputs.double(), **options)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_defect_of_a_constant_counts_the_identity(estimator):
    outputs = torch.zeros(3, 2, 1, 1, dtype=torch.float64)
    outputs[:, 1] = 2.0
    assert metrics.equivariance_defect(outputs, estimator=estimator) == Estimate(2.0, 0.0)


def test_defect_takes_scalar_and_image_outputs():
    outputs = random_draws(4, 3, 5)
    scalar = metrics.equivariance_defect(outputs)
    assert metrics.equivariance_defect(outputs[..., None, None]) == scalar
    assert scalar.value == pytest.approx(naive_defect(outputs, None, "unbiased"), abs=1e-13)


def test_two_draws_give_a_value_without_an_error():
    outputs = random_draws(2, 4, 3, 4)
    result = metrics.equivariance_defect(outputs)
    assert result.value == pytest.approx(naive_defect(outputs, None, "unbiased"), abs=1e-13)
    assert math.isnan(result.se)


def simulate(mean, draws, repeats, estimator="unbiased", seed=1):
    """Values and errors over repeats of ``f = mean + noise`` with independent standard Normal noise."""
    noise = random_draws(repeats, draws, *mean.shape, seed=seed)
    results = [metrics.equivariance_defect(mean + e, estimator=estimator) for e in noise]
    return exact([(r.value, r.se) for r in results]).unbind(1)


def assert_mean(values, expected):
    error = (values.std() / math.sqrt(len(values))).item()
    assert abs(values.mean().item() - expected) < SIGMAS * error


@pytest.mark.parametrize("scale", [0.0, 1.0])
@pytest.mark.parametrize("draws", [2, 8])
def test_default_defect_is_unbiased(scale, draws):
    mean = scale * random_draws(4, 3, 2, seed=3)
    truth = (mean - mean[:1]).square().sum(-1).mean().item()
    values, _ = simulate(mean, draws, 600)
    assert_mean(values, truth)


@pytest.mark.parametrize(("order", "factor"), [(2, 1.0), (4, 1.5), (8, 1.75)])
def test_biased_defect_has_its_documented_excess(order, factor):
    classes, draws = 3, 5
    values, _ = simulate(torch.zeros(order, 2, classes).double(), draws, 400, estimator="biased")
    assert factor == 2 * (1 - 1 / order)
    assert_mean(values, factor * classes / draws)


@pytest.mark.parametrize(("scale", "ratio"), [(1.0, 1.0), (0.0, 2.0)], ids=["defect", "no defect"])
def test_jackknife_matches_the_spread_over_repeats(scale, ratio):
    """The squared error over the variance: 1, and 2 where the U-statistic is degenerate (Efron, Stein)."""
    values, errors = simulate(scale * random_draws(4, 1, 2, seed=3), 30, 800)
    relative = math.sqrt(2 / 800) * 1.5  # of a sample variance, with room for its heavier tails
    found = errors.square().mean().item() / values.var().item()
    assert abs(found / ratio - 1) < SIGMAS * relative


# The defect against the number of draws


class Toy:
    """Outputs linear in Normal latents, ``f(gx) = mean[g] + maps[g] @ theta``: all moments are known."""

    def __init__(self, kind, action, order=4, images=2, classes=4, latents=8):
        self.action, self.order = action, order
        self.generator = torch.Generator().manual_seed(7)
        if kind == "invariant":
            mean, maps = random_draws(images, classes, seed=3), random_draws(images, classes, latents, seed=4)
            self.mean = torch.stack([self.moved(mean, g) for g in range(order)])
            self.maps = torch.stack([self.moved(maps.mT, g).mT.roll(2 * g, -1) for g in range(order)])
        else:
            self.mean = 3 * random_draws(order, images, classes, seed=3)
            self.maps = 0.3 * random_draws(order, images, classes, latents, seed=4)

    def moved(self, y, g):
        return moved(y, g, self.action)

    def draw(self, draws, independent):
        shape = (draws, self.order if independent else 1, 1, self.maps.shape[-1], 1)
        theta = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return self.mean + (self.maps @ theta).squeeze(-1)

    def difference(self, independent):
        """The mean of d and the map to it of all latents, those of each element apart: ``(X,)`` and ``(X, L)``."""
        root = math.sqrt(self.mean[..., 0].numel())
        mean = torch.stack([self.mean[g] - self.moved(self.mean[0], g) for g in range(self.order)])
        one = torch.stack([self.moved(self.maps[0].mT, g).mT for g in range(self.order)])
        if not independent:
            return mean.flatten() / root, (self.maps - one).flatten(0, -2) / root
        maps = self.maps.new_zeros(*self.maps.shape[:-1], self.order, self.maps.shape[-1])
        for g in range(self.order):
            maps[g, ..., g, :] += self.maps[g]
            maps[g, ..., 0, :] -= one[g]
        return mean.flatten() / root, maps.flatten(-2).flatten(0, -2) / root

    def defect(self):
        return self.difference(False)[0].square().sum().item()

    def excess(self, draws):
        return self.difference(True)[1].square().sum().item() / draws

    def spread(self, draws, independent):
        """Of a squared norm of a Normal mean, with or without the products of a draw with itself."""
        mean, maps = self.difference(independent)
        linear, square = (maps.mT @ mean).square().sum(), (maps.mT @ maps).square().sum()
        pairs = draws**2 if independent else draws * (draws - 1)
        return math.sqrt(4 * linear / draws + 2 * square / pairs)


TOYS = [(kind, action) for kind in ("invariant", "defect") for action in ("invariant", "shift")]


@cache
def swept(kind, action):
    toy = Toy(kind, ACTIONS[action])
    return toy, metrics.defect_sweep(toy.draw, repeats=500, action=toy.action)


@pytest.mark.parametrize(("kind", "action"), TOYS)
class TestSweep:
    def test_unbiased_mean_is_the_defect(self, kind, action):
        toy, sweep = swept(kind, action)
        distance = (sweep.unbiased.mean[1:] - toy.defect()) / sweep.unbiased.se[1:]
        assert distance.abs().max() < 3
        assert sweep.unbiased.values[0].isnan().all()
        assert sweep.reference == Estimate(sweep.unbiased.mean[-1].item(), sweep.unbiased.se[-1].item())

    def test_biased_mean_has_the_excess_of_the_formula(self, kind, action):
        toy, sweep = swept(kind, action)
        expected = toy.defect() + exact([toy.excess(draws) for draws in sweep.sizes])
        assert ((sweep.biased.mean - expected) / sweep.biased.se).abs().max() < 3
        assert torch.equal(sweep.excess, sweep.biased.mean - sweep.reference.value)

    def test_spreads_are_those_of_the_formula(self, kind, action):
        toy, sweep = swept(kind, action)
        for series, independent in ((sweep.biased, True), (sweep.unbiased, False)):
            for i, draws in enumerate(sweep.sizes):
                if independent or draws > 1:
                    expected = toy.spread(draws, independent)
                    assert abs(series.spread[i] - expected) < 3.5 * series.spread_se[i]
                    assert 0.02 < series.spread_se[i] / series.spread[i] < 0.1  # 1 / sqrt(1000) and heavier tails

    def test_slopes(self, kind, action):
        _, sweep = swept(kind, action)
        target, room = (-1, 0.15) if kind == "invariant" else (-0.5, 0.1)
        assert abs(float(sweep.excess_slope) + 1) < 0.1
        assert abs(float(sweep.spread_slope) - target) < room
        assert abs(float(sweep.drift)) < 3 * sweep.drift.se
        assert [s.left_out for s in (sweep.spread_slope, sweep.drift)] == [0, 0]


def test_excess_of_an_invariant_posterior_is_that_of_the_variance():
    for kind, action in TOYS[:2]:
        toy, sweep = swept(kind, action)
        variance = toy.maps[0].square().sum((-1, -2)).mean().item()
        expected = exact([1.5 * variance / draws for draws in sweep.sizes])
        assert ((sweep.excess - expected) / sweep.biased.se.hypot(sweep.unbiased.se[-1:])).abs().max() < 3
        assert toy.defect() == pytest.approx(0, abs=1e-25)


@pytest.mark.parametrize("action", [None, Shift(4)], ids=["invariant", "shift"])
def test_a_sweep_gives_each_estimator_its_draws(action):
    asked, given = [], []

    def draw(draws, independent):
        asked.append((draws, independent))
        given.append(random_draws(draws, 4, 3, 4, seed=len(given)).requires_grad_())
        return given[-1]

    sweep = metrics.defect_sweep(draw, sizes=[1, 2, 5], repeats=3, action=action, chunk_size=2)
    assert asked == [(t, True) for t in (1, 2, 5) for _ in range(3)] + [(t, False) for t in (2, 5) for _ in range(3)]
    pairs = [("biased", given[3:9], sweep.biased), ("unbiased", given[9:], sweep.unbiased)]
    for estimator, outputs, series in pairs:
        expected = [metrics.equivariance_defect(o, action=action, estimator=estimator).value for o in outputs]
        assert series.values[1:].flatten().tolist() == pytest.approx(expected, abs=1e-14)
        assert not series.values.requires_grad and series.values.shape == (3, 3)
    one = [(o[0] - torch.stack([moved(o[0, 0], g, action) for g in range(4)])) for o in given[:3]]
    assert sweep.biased.values[0].tolist() == pytest.approx([d.square().sum().item() / 12 for d in one])


def made_up(biased, unbiased, sizes, reference):
    return DefectSweep(sizes, Reevaluations(biased), Reevaluations(unbiased), reference)


def test_slopes_of_exact_laws():
    sizes = (2, 4, 10, 60)
    t, pattern = exact(sizes).unsqueeze(1), exact([-1.0, 0.0, 1.0])
    sweep = made_up(0.7 + (5 + pattern) / t, 0.7 + 0.1 * t.log() + pattern / t**0.5, sizes, Estimate(0.7, 0.0))
    slopes = [sweep.excess_slope, sweep.spread_slope, sweep.drift]
    assert [float(s) for s in slopes] == pytest.approx([-1.0, -0.5, 0.1], abs=1e-12)
    x = t.log() - t.log().mean()  # the relative errors of all sizes are the same: equal weights
    assert sweep.excess_slope.se == pytest.approx((0.2 / math.sqrt(3) / x.square().sum().sqrt()).item())
    assert (sweep.biased.spread * math.sqrt(3)).tolist() == pytest.approx([3**0.5 / size for size in sizes])
    assert sweep.biased.se.tolist() == pytest.approx([3**-0.5 / size for size in sizes])


def test_error_of_the_spread_is_the_brute_force_jackknife():
    values = random_draws(2, 7).exp()
    keep = [[j for j in range(7) if j != k] for k in range(7)]
    logs = torch.stack([values[:, k].std(1).log() for k in keep], 1)
    expected = values.std(1) * ((logs - logs.mean(1, keepdim=True)).square().sum(1) * 6 / 7).sqrt()
    torch.testing.assert_close(Reevaluations(values).spread_se, expected)


@pytest.mark.parametrize("kind", ["excess_slope", "spread_slope", "drift"])
def test_errors_of_the_slopes_match_their_spread(kind):
    """Over sweeps of known laws; the reference's error, common to all sizes, is the largest part of the excess's."""
    sizes, sweeps = (2, 4, 8, 16), 400
    t, found = exact(sizes).unsqueeze(1), []
    noise = random_draws(2, sweeps, 4, 60)
    offsets = 0.02 * random_draws(sweeps, seed=5)
    for one, two, offset in zip(*noise, offsets.tolist(), strict=True):
        sweep = made_up((1 + one / 10) / t, 3 + two / t**0.5, sizes, Estimate(offset, 0.02))
        found.append(getattr(sweep, kind))
    values, errors = exact([float(s) for s in found]), exact([s.se for s in found])
    relative = values.std().item() / errors.square().mean().sqrt().item()
    assert 0.8 < relative < 1.2  # 1 +- 1 / sqrt(800), and the weights' own noise
    assert abs(values.mean() - {"excess_slope": -1, "spread_slope": -0.5, "drift": 0}[kind]) < 0.03


def test_what_has_no_logarithm_is_left_out_and_counted():
    sizes, t, pattern = (1, 2, 4, 8), exact((1, 2, 4, 8)).unsqueeze(1), exact([-1.0, 0.0, 1.0])
    biased, unbiased = 1 + (5 + pattern) / t, 1 + pattern / t
    biased[2], unbiased[0], unbiased[3] = 1.0 - pattern, torch.nan, 1.0  # no excess, no estimate, no spread
    sweep = made_up(biased, unbiased, sizes, Estimate(1.0, 0.0))
    assert (float(sweep.excess_slope), sweep.excess_slope.left_out) == (pytest.approx(-1.0), 1)
    assert (float(sweep.spread_slope), sweep.spread_slope.left_out) == (pytest.approx(-1.0), 1)
    assert (float(sweep.drift), sweep.drift.left_out) == (pytest.approx(0.0), 1)
    assert "(1 sizes left out)" in str(sweep)
    high = made_up(biased, unbiased, sizes, Estimate(9.0, 0.0)).excess_slope
    assert math.isnan(float(high)) and math.isnan(high.se) and high.left_out == 4


def test_a_reference_may_be_given():
    toy = Toy("defect", None)
    sweep = partial(metrics.defect_sweep, toy.draw, sizes=(2, 4), repeats=3)
    assert sweep(reference=2).reference == Estimate(2.0, 0.0)
    assert sweep(reference=Estimate(2.0, 0.5)).reference == Estimate(2.0, 0.5)
    assert sweep(reference=0.0).reference == Estimate(0.0, 0.0)


def test_a_sweep_prints_as_a_table_of_its_rows():
    _, sweep = swept("defect", "shift")
    rows, lines = sweep.rows(), str(sweep).splitlines()
    assert [row["draws"] for row in rows] == [1, 2, 4, 8, 16, 32, 64]
    assert [int(line.split()[0]) for line in lines[1:8]] == [1, 2, 4, 8, 16, 32, 64]
    for i, (row, line) in enumerate(zip(rows, lines[1:], strict=False)):
        assert row["biased"] == sweep.biased.mean[i] and row["excess"] == sweep.excess[i]
        shown = [row[f"{e}{part}"] for e in ("biased", "unbiased") for part in ("", "_se", "_spread")]
        numbers = [float(word) for word in line.split()[1:] if word != "±"]
        assert numbers == pytest.approx(shown, rel=0.06, nan_ok=True)
    assert lines[8].startswith("K = 500 ") and f"{sweep.excess_slope.value:.3g} ±" in lines[9]


# How many draws are enough


def one_hot_outputs(bits):
    """``(T, |G|, 1, 2)`` from bits ``(T, |G|)``: sure of the one class or the other."""
    return torch.nn.functional.one_hot(bits, 2).unsqueeze(2).double()


def test_bounded_differences_of_the_biased_estimate():
    """Over all outputs that are sure, the corners of a function that is convex in each: T = 3 draws of 2 poses."""
    shape, change = (3, 2), torch.zeros(3, 2).double()
    for bits in itertools.product((0, 1), repeat=6):
        bits = torch.tensor(bits).reshape(shape)
        value = metrics.equivariance_defect(one_hot_outputs(bits), estimator="biased").value
        for t, g in itertools.product(range(3), range(2)):
            other = bits.clone()
            other[t, g] = 1 - other[t, g]
            moved = metrics.equivariance_defect(one_hot_outputs(other), estimator="biased").value
            change[t, g] = max(change[t, g], abs(moved - value))
    assert (change[:, 1] <= 4 / (3 * 2)).all() and (change[:, 0] <= 4 / 3).all()
    bound = metrics.deviation(3, 0.1, order=2, estimator="biased")
    assert math.sqrt(change.square().sum().item() * math.log(20) / 2) <= bound
    assert bound == pytest.approx(math.sqrt(3 * ((4 / 3) ** 2 + 2 * (4 / 6) ** 2) * math.log(20) / 2))


def test_deviation_by_hand():
    assert metrics.deviation(100, 0.05) == pytest.approx(math.sqrt(16 * math.log(40) / 100))
    assert metrics.deviation(101, 0.05) == metrics.deviation(100, 0.05)  # 50 independent pairs
    assert metrics.deviation(102, 0.05) < metrics.deviation(100, 0.05)
    biased = metrics.deviation(101, 0.05, order=8, estimator="biased")
    assert biased == pytest.approx(math.sqrt(9 * math.log(40) / 101))


@pytest.mark.parametrize("delta", [0.5, 0.05, 1e-9])
@pytest.mark.parametrize(("estimator", "order", "step"), [("unbiased", None, 2), ("biased", 1, 1), ("biased", 4, 1)])
def test_sample_size_is_the_inverse_of_deviation(estimator, order, step, delta):
    options = {"delta": delta, "order": order, "estimator": estimator}
    for draws in range(step, 400, step):
        assert metrics.sample_size(metrics.deviation(draws, **options), **options) == draws
    for epsilon in (0.013, 0.1, 0.7, 2, 40.0):
        draws = metrics.sample_size(epsilon, **options)
        assert isinstance(draws, int) and metrics.deviation(draws, **options) <= epsilon
        assert draws == step or metrics.deviation(draws - 1, **options) > epsilon


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("delta", [0.5, 0.9])
def test_deviations_are_rarer_than_promised(estimator, delta):
    """Draws that are sure, half of them at odds over the pose; E is the known mean, the excess included."""
    repeats, order = 2000, 2
    draws = metrics.sample_size(0.8, delta, order, estimator)
    generator = torch.Generator().manual_seed(3)
    bits = torch.randint(2, (repeats, draws, order), generator=generator)
    values = exact([metrics.equivariance_defect(one_hot_outputs(b), estimator=estimator).value for b in bits])
    truth = 0.5 / draws if estimator == "biased" else 0.0  # mean over g of 2 Var(difference of two bits) / T
    assert_mean(values, truth)
    far = (values - truth).abs()
    assert (far > 0.8).double().mean() < delta
    assert (far > 0.05).any()


# Predictions along the orbit


def test_same_prediction_by_hand():
    first = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.6, 0.4]])  # 3 of 4 as the identity's
    second = torch.tensor([[0.2, 0.8], [0.8, 0.2], [0.9, 0.1], [0.7, 0.3]])  # only the identity itself
    assert metrics.orbit_same_prediction(torch.stack([first, second], 1)).item() == 0.5


def naive_same_prediction(probs, action, definition):
    order, images = probs.shape[:2]
    total = 0.0
    for n in range(images):
        back = [moved(probs[g, n], -g, action).argmax().item() for g in range(order)]
        if definition == "majority":
            total += max(back.count(k) for k in back) / order
        else:
            same = sum(moved(probs[0, n], g, action).argmax() == probs[g, n].argmax() for g in range(order))
            total += same.item() / (1 if definition == "count" else order)
    return total / images


@pytest.mark.parametrize("definition", ["anchor", "majority", "count"])
@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS.keys())
def test_same_prediction_equals_the_loop(action, definition):
    probs = random_probs(4, 60, 4, seed=2)
    found = metrics.orbit_same_prediction(probs, action=action, definition=definition).item()
    assert found == pytest.approx(naive_same_prediction(probs, action, definition), abs=1e-13)
    assert found < (4 if definition == "count" else 1)


def test_majority_does_not_single_out_the_identity():
    probs = exact([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]]).unsqueeze(1)
    found = {d: metrics.orbit_same_prediction(probs, definition=d).item() for d in ("anchor", "majority", "count")}
    assert found == {"anchor": 0.25, "majority": 0.75, "count": 1.0}


@pytest.mark.parametrize("kind", [torch.float16, torch.float32])
@pytest.mark.parametrize("action", [Shift(4), regular(CyclicGroup(4))], ids=["shift", "regular"])
def test_majority_of_equivariant_ties_is_one(action, kind):
    base = torch.tensor([[0.375, 0.375, 0.25, 0.0], [0.25, 0.25, 0.25, 0.25]], dtype=kind)
    probs = torch.stack([base.roll(g, -1) for g in range(4)])
    assert metrics.orbit_same_prediction(probs, action=action, definition="majority").item() == 1


def test_symmetric_kl_by_hand():
    even, sure = exact([[0.5, 0.5]]), exact([[0.9, 0.1]])
    one = metrics.symmetric_kl(torch.stack([even, sure]))
    half = metrics.symmetric_kl(torch.stack([even, sure, even]))
    assert one.item() == pytest.approx(0.4 * math.log(9), abs=1e-15)
    assert half.item() == pytest.approx(0.2 * math.log(9), abs=1e-15)


def test_symmetric_kl_equals_torch():
    probs = random_probs(4, 6, 5)
    p0, pg = Categorical(probs[:1]), Categorical(probs[1:])
    expected = (kl_divergence(p0, pg) + kl_divergence(pg, p0)).mean()
    torch.testing.assert_close(metrics.symmetric_kl(probs), expected)


@pytest.mark.parametrize("action", [None, Shift(5)], ids=["invariant", "shift"])
def test_symmetric_kl_conventions_are_means_over_more_terms(action):
    probs = random_probs(5, 6, 5)
    p0 = torch.stack([moved(probs[0], g, action) for g in range(5)])
    terms = (p0 - probs) * (p0.log() - probs.log())
    found = {c: metrics.symmetric_kl(probs, action=action, convention=c) for c in ("others", "orbit", "per_class")}
    expected = {"others": terms[1:].sum(-1).mean(), "orbit": terms.sum(-1).mean(), "per_class": terms[1:].mean()}
    torch.testing.assert_close(found, expected)
    assert metrics.symmetric_kl(probs, action=action) == found["others"]


def test_symmetric_kl_is_finite_at_zero_probabilities():
    sure = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]], dtype=torch.float32)
    expected = -2 * math.log(torch.finfo(torch.float32).tiny)
    assert metrics.symmetric_kl(sure).item() == pytest.approx(expected, rel=1e-6)


def test_trivial_group_agrees_with_itself():
    probs = random_probs(1, 6, 5)
    for convention in ("others", "orbit", "per_class"):
        assert metrics.symmetric_kl(probs, convention=convention).item() == 0
    for definition in ("anchor", "majority", "count"):
        assert metrics.orbit_same_prediction(probs, definition=definition).item() == 1


@pytest.mark.parametrize("action", [Shift(4), regular(CyclicGroup(4))], ids=["shift", "regular"])
def test_an_action_moves_the_anchor(action):
    base = random_probs(6, 4)
    probs = torch.stack([base.roll(g, -1) for g in range(4)])
    assert metrics.orbit_same_prediction(probs, action=action).item() == 1
    assert metrics.symmetric_kl(probs, action=action).item() == 0
    assert metrics.orbit_same_prediction(probs).item() == 0.25
    assert metrics.symmetric_kl(probs).item() > 0.1


def test_accuracy_and_likelihood_by_hand():
    probs = exact([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.5, 0.4, 0.1]])
    labels = torch.tensor([0, 2, 1])
    assert metrics.accuracy(probs, labels).item() == pytest.approx(2 / 3)
    nll = metrics.negative_log_likelihood(probs, labels).item()
    assert nll == pytest.approx(-(math.log(0.7) + 2 * math.log(0.4)) / 3, abs=1e-15)


def test_likelihood_of_the_impossible_is_finite():
    nll = metrics.negative_log_likelihood(torch.tensor([[1.0, 0.0]], dtype=torch.float32), torch.tensor([1]))
    assert nll.item() == pytest.approx(-math.log(torch.finfo(torch.float32).tiny), rel=1e-6)


def test_calibration_error_by_hand():
    top = exact([0.4, 0.6, 0.7, 0.9])
    probs = torch.stack([top, *((1 - top) / 3 for _ in range(3))], -1)
    labels = torch.tensor([0, 1, 1, 0])
    # bins (0, 1/2] and (1/2, 1]: |1 - 0.4| / 4 + |1/3 - 2.2/3| * 3 / 4
    assert metrics.calibration_error(probs, labels, bins=2).item() == pytest.approx(0.45, abs=1e-15)
    assert metrics.calibration_error(probs, labels, bins=1).item() == pytest.approx(0.15, abs=1e-15)


def test_calibration_bins_are_closed_above():
    probs = exact([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]])
    labels = torch.tensor([0, 1, 0])
    # 0.5 lies in (0, 1/2]; 0.75 and 1 in (1/2, 1], where the gaps are -0.75 and 0
    assert metrics.calibration_error(probs, labels, bins=2).item() == pytest.approx(1.25 / 3)


def naive_calibration(probs, labels, bins):
    total = 0.0
    confidence, prediction = probs.max(-1)
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            correct = (prediction == labels)[inside].double().mean()
            total += (correct - confidence[inside].mean()).abs().item() * inside.double().mean().item()
    return total


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_calibration_error_equals_the_loop(bins):
    probs = random_probs(200, 4)
    labels = torch.randint(4, (200,), generator=torch.Generator().manual_seed(2))
    found = metrics.calibration_error(probs, labels, bins).item()
    assert found == pytest.approx(naive_calibration(probs, labels, bins), abs=1e-13)


def test_brier_score_by_hand():
    probs, labels = exact([[0.7, 0.2, 0.1], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 2, 0])
    # 0.3² + 0.2² + 0.1², nothing, and the worst: 1 + 1
    assert metrics.brier_score(probs, labels).item() == pytest.approx((0.14 + 0 + 2) / 3, abs=1e-15)
    assert metrics.brier_score(exact([[1.0]]), torch.tensor([0])).item() == 0


def test_brier_score_equals_the_loop():
    probs, labels = random_probs(3, 20, 4), torch.arange(20) % 4
    terms = [(probs[g, n, k] - int(labels[n] == k)) ** 2 for g in range(3) for n in range(20) for k in range(4)]
    assert metrics.brier_score(probs, labels).item() == pytest.approx(sum(terms).item() / 60, abs=1e-13)


def naive_sets(calibration_probs, calibration_labels, probs, labels, rank):
    """Split conformal prediction with the scores of this rank, one class of one image at a time."""
    scores = sorted(1 - p[y].item() for p, y in zip(calibration_probs, calibration_labels, strict=True))
    threshold = scores[rank - 1] if rank <= len(scores) else math.inf
    sets = [[k for k, p in enumerate(row.tolist()) if 1 - p <= threshold] for row in probs]
    covered = [y in chosen for y, chosen in zip(labels.tolist(), sets, strict=True)]
    return sum(map(len, sets)) / len(sets), sum(covered) / len(sets), threshold


@pytest.mark.parametrize(
    ("images", "alpha", "rank"),
    [(9, 0.1, 9), (10, 0.1, 10), (19, 0.1, 18), (9, 0.7, 3), (99, 0.29, 71), (8, 0.1, 9), (1, 0.5, 1), (50, 1e-5, 51)],
)
def test_conformal_sets_equal_the_loop(images, alpha, rank):
    calibration = random_probs(images, 4, seed=1), torch.arange(images) % 4
    test = random_probs(40, 4, seed=2), torch.arange(40) % 4
    found = metrics.conformal_set_size(*calibration, *test, alpha=alpha)
    size, coverage, threshold = naive_sets(*calibration, *test, rank)
    assert found == PredictionSets(pytest.approx(size), pytest.approx(coverage), pytest.approx(threshold))


def test_conformal_sets_are_full_without_enough_calibration():
    found = metrics.conformal_set_size(random_probs(8, 3), torch.arange(8) % 3, PROBS, LABELS, alpha=0.1)
    assert found == PredictionSets(size=3.0, coverage=1.0, threshold=math.inf)


def test_conformal_sets_of_one_class_hold_it():
    one, zero = torch.ones(9, 1, dtype=torch.float64), torch.zeros(9, dtype=torch.int64)
    assert metrics.conformal_set_size(one, zero, one, zero) == PredictionSets(1.0, 1.0, 0.0)


def test_conformal_ties_are_inside():
    even, sure = exact([[0.5, 0.5]]).expand(9, 2), exact([[1.0, 0.0], [0.5, 0.5], [0.25, 0.75]])
    found = metrics.conformal_set_size(even, torch.zeros(9).long(), sure, torch.tensor([1, 1, 0]))
    assert found == PredictionSets(pytest.approx(4 / 3), pytest.approx(1 / 3), 0.5)


def test_conformal_sets_may_be_empty():
    sure, even = exact([[1.0, 0.0]]).expand(9, 2), exact([[0.5, 0.5]])
    found = metrics.conformal_set_size(sure, torch.zeros(9).long(), even, torch.tensor([0]))
    assert found == PredictionSets(size=0.0, coverage=0.0, threshold=0.0)


@pytest.mark.parametrize(("images", "alpha"), [(20, 0.1), (9, 0.3)])
def test_conformal_coverage_is_guaranteed(images, alpha):
    """Of continuous scores the mean coverage is rank / (n + 1), whatever the predictions are worth."""
    logits = random_draws(600, images + 30, 3, seed=5)
    probs = (2 * logits).softmax(-1)  # overconfident
    pick = torch.rand(600, images + 30, 1, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    labels = (logits.softmax(-1).cumsum(-1) < pick).sum(-1).clamp_max(2)
    runs = [
        metrics.conformal_set_size(p[:images], y[:images], p[images:], y[images:], alpha)
        for p, y in zip(probs, labels, strict=True)
    ]
    expected = math.ceil(round((images + 1) * (1 - alpha), 9)) / (images + 1)
    assert expected >= 1 - alpha
    assert_mean(exact([run.coverage for run in runs]), expected)


def test_conformal_sets_pool_leading_orbit_axes():
    calibration = random_probs(30, 3, seed=1), torch.arange(30) % 3
    pooled = metrics.conformal_set_size(*calibration, PROBS.reshape(-1, 3), LABELS.repeat(4))
    assert metrics.conformal_set_size(*calibration, PROBS, LABELS) == pooled
    assert metrics.conformal_set_size(*calibration, PROBS, LABELS.expand(4, 6)) == pooled


@pytest.mark.parametrize("name", ["accuracy", "negative_log_likelihood", "brier_score", "calibration_error"])
def test_leading_orbit_axes_are_pooled(name):
    metric = getattr(metrics, name)
    probs, labels = random_probs(2, 4, 9, 3), torch.arange(9) % 3
    flat = metric(probs.reshape(-1, 3), labels.repeat(8))
    torch.testing.assert_close(metric(probs, labels), flat)
    torch.testing.assert_close(metric(probs, labels.expand(4, 9)), flat)
    torch.testing.assert_close(metric(probs, labels.to(torch.uint8)), flat)


def test_labels_may_move():
    probs = random_probs(4, 9, 3)
    assert metrics.accuracy(probs, probs.argmax(-1)).item() == 1


DRAWS, PROBS, LABELS = random_draws(3, 4, 2, 5), random_probs(4, 6, 3), torch.arange(6) % 3
NAN = torch.full((3, 4, 2, 5), torch.nan)
SWEEP = partial(metrics.defect_sweep, sizes=(2, 3), repeats=3)


def DRAW(draws, independent):
    return DRAWS[:draws]


BAD = {
    "draws ndim": (DataError, r"shape \(T, \|G\|, N", lambda: metrics.equivariance_defect(DRAWS[0, 0])),
    "no images": (DataError, "not empty", lambda: metrics.equivariance_defect(DRAWS[:, :, :0])),
    "one draw": (DataError, "at least 2", lambda: metrics.equivariance_defect(DRAWS[:1])),
    "NaN draws": (DataError, "finite outputs", lambda: metrics.equivariance_defect(NAN)),
    "estimator": (OptionError, "'biased'", lambda: metrics.equivariance_defect(DRAWS, estimator="mean")),
    "chunk": (OptionError, "chunk_size", lambda: metrics.equivariance_defect(DRAWS, chunk_size=0)),
    "group size": (
        SymmetryError,
        "4 elements; got 5",
        lambda: metrics.equivariance_defect(DRAWS, action=Shift(5)),
    ),
    "event shape": (
        SymmetryError,
        r"\(5,\); got \(4,\)",
        lambda: metrics.equivariance_defect(DRAWS, action=Shift(4)),
    ),
    "classes moved": (SymmetryError, r"\(3,\)", lambda: metrics.symmetric_kl(PROBS, action=Shift(4))),
    "orbit ndim": (DataError, r"\(\|G\|, N, K\)", lambda: metrics.orbit_same_prediction(PROBS[0])),
    "logits": (DataError, "softmax", lambda: metrics.symmetric_kl(DRAWS[0])),
    "negative": (
        DataError,
        "non-negative",
        lambda: metrics.accuracy(torch.tensor([[1.5, -0.5]]), LABELS[:1]),
    ),
    "not a sum of one": (DataError, "sum to one", lambda: metrics.accuracy(0.9 * PROBS, LABELS)),
    "NaN probs": (DataError, "finite probs", lambda: metrics.accuracy(PROBS * torch.nan, LABELS)),
    "probs ndim": (DataError, r"\(\.\.\., N, K\)", lambda: metrics.accuracy(PROBS[0, 0], LABELS[:1])),
    "integer probs": (DataError, "floats", lambda: metrics.accuracy(PROBS.long(), LABELS)),
    "labels length": (DataError, r"\(6,\).*got \(5,\)", lambda: metrics.accuracy(PROBS, LABELS[:5])),
    "labels ndim": (DataError, "one label per image", lambda: metrics.accuracy(PROBS, LABELS[0])),
    "labels high": (DataError, r"0\.\.2.*got 0\.\.3", lambda: metrics.accuracy(PROBS, torch.arange(6) % 4)),
    "labels low": (DataError, r"0\.\.2.*got -1", lambda: metrics.negative_log_likelihood(PROBS, LABELS - 1)),
    "float labels": (DataError, "integer labels", lambda: metrics.calibration_error(PROBS, LABELS / 1)),
    "definition": (OptionError, "'majority'", lambda: metrics.orbit_same_prediction(PROBS, definition="mean")),
    "convention": (OptionError, "'per_class'", lambda: metrics.symmetric_kl(PROBS, convention="mean")),
    "brier labels": (DataError, "integer labels", lambda: metrics.brier_score(PROBS, LABELS / 1)),
    "calibration probs": (
        DataError,
        "calibration_probs.*sum to one",
        lambda: metrics.conformal_set_size(0.9 * PROBS[0], LABELS, PROBS, LABELS),
    ),
    "calibration labels": (
        DataError,
        r"calibration_labels in 0\.\.2",
        lambda: metrics.conformal_set_size(PROBS[0], LABELS + 1, PROBS, LABELS),
    ),
    "calibration orbit": (
        DataError,
        r"\(n, 3\).*got \(4, 6, 3\)",
        lambda: metrics.conformal_set_size(PROBS, LABELS, PROBS, LABELS),
    ),
    "calibration classes": (
        DataError,
        r"\(n, 3\).*got \(6, 4\)",
        lambda: metrics.conformal_set_size(random_probs(6, 4), LABELS, PROBS, LABELS),
    ),
    "bins": (OptionError, "bins", lambda: metrics.calibration_error(PROBS, LABELS, bins=0)),
    **{
        f"sizes {sizes}": (OptionError, match, lambda sizes=sizes: metrics.defect_sweep(DRAW, sizes))
        for sizes, match in {(): "increasing", (1,): "at least 2", (4, 2): "increasing", (2, 2): "increasing",
                             (0, 2): "every size", (2.0,): "every size"}.items()
    },
    "repeats": (OptionError, "at least 3; got 2", lambda: metrics.defect_sweep(DRAW, repeats=2)),
    "sweep chunk": (OptionError, "chunk_size", lambda: metrics.defect_sweep(DRAW, chunk_size=0)),
    "reference": (OptionError, "finite reference", lambda: metrics.defect_sweep(DRAW, reference=math.nan)),
    "reference error": (OptionError, "finite error", lambda: metrics.defect_sweep(DRAW, reference=Estimate(1.0, -1.0))),
    "other draws": (DataError, r"draw\(2, True\) to return 2 draws; got 3", lambda: SWEEP(lambda t, i: DRAWS)),
    "NaN in a sweep": (DataError, "finite outputs", lambda: SWEEP(lambda t, i: NAN[:t])),
    "draw ndim": (DataError, r"\(T, \|G\|, N", lambda: SWEEP(lambda t, i: DRAWS[:t, 0, 0])),
    "sweep action": (SymmetryError, "4 elements; got 5", lambda: SWEEP(DRAW, action=Shift(5))),
    **{
        f"epsilon {epsilon}": (OptionError, "epsilon", lambda epsilon=epsilon: metrics.sample_size(epsilon, 0.1))
        for epsilon in (0, -0.1, math.nan, math.inf, 1e-200, "0.1", True)
    },
    **{
        f"delta {delta}": (OptionError, r"delta.*in \(0, 1\); got", lambda delta=delta: metrics.sample_size(0.1, delta))
        for delta in (0.0, 1.0, 1, -0.1, math.nan, "0.1")
    },
    "no order": (OptionError, r"order=len\(group\)", lambda: metrics.sample_size(0.1, 0.1, estimator="biased")),
    "order": (OptionError, "order", lambda: metrics.sample_size(0.1, 0.1, 0)),
    "bound's estimator": (OptionError, "'biased'", lambda: metrics.deviation(10, 0.1, estimator="mean")),
    "no draws": (OptionError, "draws", lambda: metrics.deviation(0, 0.1, 4, "biased")),
    "one draw, unbiased": (OptionError, "at least 2 draws", lambda: metrics.deviation(1, 0.1)),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "match", "call"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_named_in_one_line(kind, match, call):
    with pytest.raises(kind, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan, 1, "0.1"])
def test_alpha_outside_its_range_is_refused(alpha):
    with pytest.raises(OptionError, match=r"alpha.*in \(0, 1\); got"):
        metrics.conformal_set_size(PROBS[0], LABELS, PROBS, LABELS, alpha=alpha)


def test_an_action_that_flips_signs_is_refused():
    class Negate(Shift):
        def act(self, g, y):
            return y * (1 - 2 * (g % 2)).unsqueeze(-1)

    with pytest.raises(DataError, match="permutes the classes"):
        metrics.symmetric_kl(random_probs(2, 3, 2), action=Negate(2))


# Defect by element


@pytest.mark.parametrize("chunk_size", [2, 256])
def test_the_defect_of_an_element_is_that_of_the_identity_and_it_alone(chunk_size):
    """Of two copies, the defect is half that of the second, and its error as well."""
    group = CyclicGroup(3)
    outputs = random_draws(6, 3, 5, 3)
    by_element = metrics.defect_by_element(outputs, action=regular(group), chunk_size=chunk_size)
    assert by_element[0] == Estimate(0.0, 0.0)
    for g in (1, 2):
        back = torch.stack([outputs[:, 0], outputs[:, g].roll(-g, -1)], 1)
        pair = metrics.equivariance_defect(back)
        assert by_element[g].value == pytest.approx(2 * pair.value, rel=1e-12)
        assert by_element[g].se == pytest.approx(2 * pair.se, rel=1e-12)


@pytest.mark.parametrize("action", [None, regular(CyclicGroup(4))])
def test_the_mean_over_elements_is_the_defect(action):
    outputs = random_draws(7, 4, 5, 4)
    by_element = metrics.defect_by_element(outputs, action=action)
    mean = sum(e.value for e in by_element) / 4
    assert mean == pytest.approx(metrics.equivariance_defect(outputs, action=action).value, rel=1e-12)


def test_the_defect_of_an_element_is_unbiased():
    """f(gx) - f(x) has mean g in each of two entries, so its defect is 2 g²."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.arange(3.0)[:, None, None]
    runs = [
        [e.value for e in metrics.defect_by_element(torch.randn(5, 3, 2, 2, generator=generator) + steps)]
        for _ in range(400)
    ]
    for g, values in enumerate(exact(runs).T):
        assert abs(values.mean() - 2 * g**2) <= 4 * values.std() / math.sqrt(400)


def test_two_draws_give_elements_without_an_error():
    first, second = metrics.defect_by_element(random_draws(2, 2, 3, 1))
    assert math.isfinite(second.value) and math.isnan(second.se) and math.isnan(first.se)


@pytest.mark.parametrize(
    ("kind", "options"), [(DataError, {}), (OptionError, {"chunk_size": 0}), (SymmetryError, {"action": Shift(5)})]
)
def test_defect_by_element_checks_its_input(kind, options):
    outputs = random_draws(1 if kind is DataError else 3, 4, 3, 5)
    with pytest.raises(kind):
        metrics.defect_by_element(outputs, **options)
