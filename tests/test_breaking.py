"""Whether data are symmetric: the score where the best accuracy is known, its interval, and what it refuses."""

import math
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch
from torch import nn

import pyro_equivariance as pe
from pyro_equivariance.breaking import (
    SymmetryBreaking,
    SymmetryBreakingTable,
    symmetry_breaking_score,
    wilson_interval,
)
from pyro_equivariance.breaking.base import fair_coin_tail
from pyro_equivariance.breaking.classifier import _batches, _scales, _train
from pyro_equivariance.breaking.containment import containments
from pyro_equivariance.breaking.score import _features, _lots, _others, _within_disc
from pyro_equivariance.data import ImageData
from pyro_equivariance.experiments import breaking

SIGMAS = 4.5  # of a computed standard error: one failure in 150,000
C2, C4, D4, SIGN = pe.CyclicGroup(2), pe.CyclicGroup(4), pe.DihedralGroup(4), pe.SignGroup()
SO2 = pe.SpecialOrthogonal(2)


class NearestMean:
    """Calls a datum what the nearer of the two classes' means is."""

    def fit(self, x, y):
        self.means = torch.stack([torch.as_tensor(x[y == k]).mean(0) for k in (0, 1)])

    def predict(self, x):
        return torch.cdist(torch.as_tensor(x), self.means).argmin(1).numpy()


class Nearest:
    """Calls a datum what its nearest neighbour is: it learns every lot by heart."""

    def fit(self, x, y):
        self.x, self.y = torch.as_tensor(x), torch.as_tensor(y)

    def predict(self, x):
        return self.y[torch.cdist(torch.as_tensor(x), self.x).argmin(1)].numpy()


class Coin:
    """Calls all data moved, and keeps what it was shown."""

    seen: list = []

    def fit(self, x, y):
        Coin.seen.append((x, y))

    def predict(self, x):
        Coin.seen.append(x)
        return torch.ones(len(x)).numpy()


class Short(NearestMean):
    """Leaves the last datum out."""

    def predict(self, x):
        return super().predict(x)[:-1]


def scored(accuracy, count, level=0.95, **shares):
    """A score with shares of copies called moved, of 100 copies each."""
    ends = wilson_interval(round(accuracy * count), count, level)
    return SymmetryBreaking(C4, accuracy, *ends, level, count, shares, dict.fromkeys(shares, 100), has_traces=False)


def shifted(count, *mean):
    return torch.randn(count, len(mean)) + torch.tensor(mean)


def by_hand(right, count, level):
    """The ends of the interval as the roots of ``(p̂ − p)² = z² p (1 − p) / n``."""
    z, p = NormalDist().inv_cdf((1 + level) / 2), right / count
    a, b, c = 1 + z**2 / count, -2 * p - z**2 / count, p**2
    root = math.sqrt(b**2 - 4 * a * c)
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


@pytest.mark.parametrize(("right", "count", "level"), [(0, 9, 0.95), (9, 9, 0.9), (60, 100, 0.99), (1, 2000, 0.95)])
def test_the_interval_holds_what_a_score_test_does_not_reject(right, count, level):
    assert wilson_interval(right, count, level) == pytest.approx(by_hand(right, count, level), abs=1e-12)


def test_an_interval_of_nothing_is_refused():
    for right, count in ((0, 0), (3, 2), (-1, 5)):
        with pytest.raises(pe.OptionError, match="between 0 and count"):
            wilson_interval(right, count, 0.95)


def test_the_tail_of_fair_coins_is_exact():
    for count in (1, 8, 31):
        for right in range(count + 1):
            exact = sum(math.comb(count, k) for k in range(right, count + 1)) / 2**count
            assert fair_coin_tail(right, count) == pytest.approx(exact, rel=1e-12)
    beyond = (50_400 - 0.5 - 50_000) / (100_000 / 4) ** 0.5  # the Normal, with the correction for whole numbers
    assert fair_coin_tail(50_400, 100_000) == pytest.approx(NormalDist().cdf(-beyond), rel=1e-3)


@pytest.mark.parametrize("level", [0.95, 1 - 0.05 / 3, 0.8])
def test_fair_coins_are_called_broken_as_rarely_as_promised_whatever_their_number(level):
    for count in (8, 24, 32, 95, 96, 160):
        found = [right for right in range(count + 1) if scored(right / count, count, level).is_broken]
        assert found == list(range(min(found, default=count + 1), count + 1))
        rate = sum(math.comb(count, right) for right in found) / 2**count
        missed = math.comb(count, count - len(found)) / 2**count  # of the next number of right answers
        assert rate <= (1 - level) / 2 < rate + missed


def test_the_accuracy_is_the_best_possible_where_that_is_known():
    mu, count = 0.6, 4000
    best = NormalDist().cdf(mu)  # of N(μ, 1) against N(−μ, 1)
    x = shifted(count, mu)
    exact = symmetry_breaking_score(x, SIGN, classifier=NearestMean)
    error = math.sqrt(best * (1 - best) / exact.count)
    assert exact.count == 3200 and abs(exact.accuracy - best) < SIGMAS * error and exact.is_broken
    network = symmetry_breaking_score(x, SIGN)
    assert 0.5 < network.low and network.accuracy < best + SIGMAS * error
    assert float(network) == network.accuracy and network.by_element.keys() == {"e", "-1"}


def test_a_pose_is_found_and_no_other_is_better_than_the_ceiling():
    score = symmetry_breaking_score(shifted(200, 9.0, 0.0), C4)
    assert score.accuracy > 0.98 and score.high <= 1.0
    assert score.broken_by == ("r90", "r180", "r270") and "all 3" in score.verdict


def test_symmetric_data_are_a_fair_coin_even_to_a_classifier_that_learns_by_heart():
    repeats, z, above = 300, [], 0
    for seed in range(repeats):
        x = torch.randn(120, 2, generator=torch.Generator().manual_seed(seed))
        score = symmetry_breaking_score(x, C4, classifier=Nearest, seed=seed)
        z.append((score.accuracy - 0.5) * 2 * score.count**0.5)
        above += score.is_broken
    z = torch.tensor(z)
    assert abs(float(z.mean())) < SIGMAS / repeats**0.5
    assert abs(float(z.var()) - 1) < SIGMAS * (2 / repeats) ** 0.5  # 1.6 were the folds cross-validated
    rate = sum(math.comb(96, right) for right in range(59, 97)) / 2**96  # 0.0157: 58 would be 0.026, more than 0.025
    assert above < rate * repeats + SIGMAS * (rate * (1 - rate) * repeats) ** 0.5


def test_few_networks_call_symmetric_data_broken():
    found = [symmetry_breaking_score(shifted(80, 0.0, 0.0), C4, seed=seed).is_broken for seed in range(12)]
    assert sum(found) <= 3  # more with probability 2e-4 at a rate of 0.025


def test_the_detectable_accuracy_is_found_in_four_of_five_samples():
    score = symmetry_breaking_score(shifted(1000, 0.0), SIGN, classifier=NearestMean)
    law = torch.distributions.Binomial(score.count, torch.tensor(score.detectable))
    counts = torch.arange(score.count + 1.0)
    found = torch.tensor([replace(score, accuracy=float(k) / score.count).is_broken for k in counts])
    assert abs(float((law.log_prob(counts).exp() * found).sum()) - 0.8) < 0.02


def test_the_elements_that_break_the_symmetry_are_named_and_the_largest_group_found():
    x = shifted(1000, 0.0, 0.0) * torch.tensor([3.0, 0.5])  # symmetric under half turns and both mirrors
    mirrors = pe.DihedralGroup(2)
    table = symmetry_breaking_score(x, [C2, C4, D4, mirrors])
    assert [score.is_broken for score in table] == [False, True, True, False]
    assert table[1].broken_by == ("r90", "r270")
    assert table[2].broken_by == ("r90", "r270", "s·r90", "s·r270")
    still, half, quarter = (table[1].by_element[name] for name in ("e", "r180", "r90"))
    assert abs(half - still) < 0.1 < 0.5 < quarter - still
    assert table.contains == ((0,), (0, 1), (0, 1, 2, 3), (0, 3)) and table.may_contain == ((), (), (), ())
    assert table.largest.group == mirrors and [s.group for s in table.symmetric] == [C2, mirrors]
    assert table[0].level == pytest.approx(1 - 0.05 / 4) and table.level == 0.95
    assert str(table).splitlines()[-2].endswith(str(mirrors)) and len(str(table).splitlines()) == 7


def test_a_group_is_not_symmetric_if_one_inside_it_is_broken():
    table = symmetry_breaking_score(shifted(100, 0.0, 0.0), [C2, C4], classifier=NearestMean)
    broken = replace(table[0], accuracy=0.9, low=0.8, high=0.95)
    table = replace(table, scores=(broken, table[1]))
    assert not table[1].is_broken and table.symmetric == () and table.largest is None
    assert "none of these" in str(table)


def verdicts(reps, broken, x):
    """A table where the groups at these places are broken."""
    scores = tuple(replace(scored(0.9 if i in broken else 0.5, 800), group=rep.group) for i, rep in enumerate(reps))
    return SymmetryBreakingTable(scores, *containments(reps, x.double()), 0.95)


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8)], ids=["vectors", "images"])
def test_rotations_by_some_angles_are_among_those_by_any(shape):
    x = torch.randn(5, *shape)
    is_image = len(shape) > 1
    make, SO2s = (pe.image, pe.image(SO2, shape, "bilinear")) if is_image else (pe.vector, pe.vector(SO2))
    half = D4.subgroup(["r180"])
    reps = [*((make(g, shape) if is_image else make(g)) for g in (C2, C4, D4, half)), SO2s]
    table = verdicts(reps, {1}, x)
    assert table.contains[-1] == (0, 1, 3, 4) and table.may_contain == ((),) * 5
    assert [s.group for s in table.symmetric] == [C2, half] and table.largest.group == C2
    assert verdicts(reps, {2}, x).largest.group == SO2  # mirrors are broken, and not in it


def test_no_group_is_the_largest_that_may_contain_a_broken_one():
    law, C100 = pe.LieBox(pe.Generators.so(2), 3.0), pe.CyclicGroup(100)
    x = torch.randn(5, 2)
    for other in (pe.vector(law), pe.vector(C100)):
        table = verdicts([pe.vector(C4), other, pe.vector(C2)], {0}, x)
        assert 0 in table.may_contain[1] and table.largest.group == C2
        assert f"{other.group}: not compared with CyclicGroup(4), which is broken" in str(table)
        calm = verdicts([pe.vector(C4), other, pe.vector(C2)], set(), x)
        assert calm.largest.group == other.group and "not compared" not in str(calm)
    assert verdicts([pe.vector(C4), pe.vector(law)], {1}, x).largest.group == C4  # no such law is inside it


def test_elements_are_named_at_the_level_of_all_together():
    shares = {"e": 0.4, "r90": 0.55, "r180": 0.6, "r270": 0.4}  # by 2.12 and 2.83 standard errors; 2.39 for three
    assert scored(0.6, 1000, **shares).broken_by == ("r180",)
    assert scored(0.6, 1000, **{name: shares[name] for name in ("e", "r90")}).broken_by == ("r90",)
    assert scored(0.6, 1000, r90=0.9).broken_by == ()  # none that were left alone to compare with


def test_lots_are_independent_coins_but_in_the_first_fold():
    counts = []
    for _ in range(300):
        fold, moved = _lots(120, 5)
        assert int(moved[fold == 0].sum()) == 12
        counts.append([int(moved[fold == k].sum()) for k in range(1, 5)])
    counts = torch.tensor(counts, dtype=torch.float64)
    assert abs(float(counts.mean()) - 12) < SIGMAS * (6 / 1200) ** 0.5
    totals = counts.sum(1)  # of 96 coins: variance 24, and about 0 were half of each fold moved
    assert abs(float(totals.var()) - 24) < SIGMAS * 24 * (2 / 300) ** 0.5


def test_no_datum_is_moved_by_the_identity_however_large_the_group():
    few = torch.stack([_others(4, 2) for _ in range(200)])
    assert few.unique().tolist() == [1, 2, 3]
    assert sorted(_others(4, 7).bincount().tolist()) == [0, 2, 2, 3]


def test_each_datum_is_used_once_in_folds_alike_moved_by_all_elements_alike():
    x = torch.arange(203.0)[:, None] * torch.tensor([1.0, 0.0]) + torch.tensor([1.0, 0.0])
    fold, moved = _lots(len(x), 5)
    for k in range(5):
        assert abs(int((fold == k).sum()) - 40.6) < 1
    symmetry = pe.Symmetry(C4, {}, inputs=pe.vector(C4))
    features, elements = _features(x, None, symmetry, moved, matched=False)
    assert torch.equal(elements > 0, moved)
    assert torch.equal(features, symmetry.inputs.act(elements, x))
    assert (elements.bincount()[1:] - int(moved.sum()) / 3).abs().max() < 1


def test_a_classifier_is_shown_earlier_folds_only():
    Coin.seen = []
    score = symmetry_breaking_score(torch.rand(100, 2), C4, classifier=Coin, folds=4)
    seen = torch.cat([torch.as_tensor(x) for x in Coin.seen[1::2]])
    assert len(seen.unique(dim=0)) == 75
    sizes = [(len(train[0]), len(test)) for train, test in zip(Coin.seen[::2], Coin.seen[1::2], strict=True)]
    assert sizes == [(25, 25), (50, 25), (75, 25)] and score.count == 75
    assert abs(score.accuracy - 0.5) < SIGMAS * 0.5 / 75**0.5 and set(Coin.seen[0][1].tolist()) == {0, 1}
    assert abs(Coin.seen[0][0].mean()) < 1e-10 and Coin.seen[0][0].std() == pytest.approx(1, abs=0.05)


def test_large_groups_and_those_without_a_list_take_part():
    S20 = pe.SymmetricGroup(20)
    ordered = torch.randn(200, 20).sort(-1).values
    score = symmetry_breaking_score(ordered, pe.permutation(S20))
    assert score.accuracy > 0.98 and score.by_element == {} and score.broken_by == ()
    table = symmetry_breaking_score(shifted(300, 0.0, 0.0), [C4, SO2])
    assert table.contains == ((0,), (0, 1)) and table.largest.group == SO2
    assert symmetry_breaking_score(shifted(300, 2.0, 0.0), SO2).is_broken


def test_a_law_is_taken_as_a_group():
    law = pe.LieBox(pe.Generators.so(2), 3.0)
    assert symmetry_breaking_score(shifted(200, 4.0, 0.0), pe.vector(law)).is_broken
    assert not symmetry_breaking_score(shifted(300, 0.0, 0.0), pe.vector(law)).is_broken
    listed = pe.Symmetry(law, {}, inputs=pe.vector(law)).listed(3)
    assert set(symmetry_breaking_score(shifted(200, 4.0, 0.0), listed).by_element) == {"e", "g1", "g2", "g3"}


def test_a_group_without_a_list_moves_images_between_their_pixels():
    x = torch.rand(200, 10, 10) * torch.linspace(0, 1, 10)  # bright on the right
    for group in (SO2, pe.LieBox(pe.Generators.so(2), 3.0)):
        score = symmetry_breaking_score(x, group)
        assert score.is_broken and score.has_traces and score.compared == 0.32
        assert score == symmetry_breaking_score(x, pe.image(group, (10, 10), interpolation="bilinear"))


def test_labels_move_by_the_same_element_as_images_that_go_there_and_back():
    x, y = torch.rand(60, 1, 8, 8).double(), torch.randn(60, 2).double()
    rep = pe.image(SO2, (1, 8, 8), interpolation="bilinear")
    symmetry = pe.Symmetry(SO2, {}, inputs=rep, outputs=pe.vector(SO2))
    _, moved = _lots(60, 5)
    torch.manual_seed(7)
    h = SO2.sample((int(moved.sum()),))
    torch.manual_seed(7)
    features, _ = _features(x, y, symmetry, moved, matched=True)
    torch.testing.assert_close(features[~moved, -2:], y[~moved])
    torch.testing.assert_close(features[moved, -2:], torch.einsum("nij,njk,nk->ni", h, h, y[moved]))
    twice = _within_disc(rep.act(h, rep.act(h, x[moved]))).flatten(1)
    torch.testing.assert_close(features[moved, :-2], twice)


def test_labels_are_one_hot_whatever_their_numbers():
    x = shifted(400, 0.0)
    y = torch.where(x[:, 0] > 0, 10**9, -7)
    assert symmetry_breaking_score((x, y), SIGN, labels=True).accuracy > 0.95
    with pytest.raises(pe.OptionError, match="at most 1,000 classes.*as floats"):
        symmetry_breaking_score((torch.randn(1100, 1), torch.arange(1100)), SIGN, labels=True)


def test_columns_in_different_units_are_seen_alike():
    x = shifted(200, 0.0, 3.0)  # the second breaks the symmetry
    plain = symmetry_breaking_score(x, C2)
    units = symmetry_breaking_score(x * torch.tensor([1e4, 1e-4]), C2)
    assert plain.is_broken and units.accuracy == pytest.approx(plain.accuracy, abs=0.01)
    columns = torch.stack([torch.full((9,), 0.1), 1e-17 * torch.randn(9), 1e-6 * torch.randn(9), torch.randn(9)], 1)
    std = columns.std(0)
    torch.testing.assert_close(_scales(columns), torch.tensor([1.0, 1.0, float(std[2]), float(std[3])]))


def test_labels_show_what_images_alone_do_not():
    x = shifted(400, 0.0)
    y = (x[:, 0] > 0).long()
    assert not symmetry_breaking_score((x, y), SIGN).is_broken
    assert symmetry_breaking_score((x, y), SIGN, labels=True).accuracy > 0.95
    swapping = pe.Symmetry(SIGN, {}, inputs=pe.vector(SIGN), outputs=pe.permutation(SIGN, [[0, 1], [1, 0]]))
    assert not symmetry_breaking_score((x, y), swapping, labels=True).is_broken
    targets = 3 * x + 0.1 * torch.randn_like(x)
    moving = pe.Symmetry(SIGN, {}, inputs=pe.vector(SIGN), outputs=pe.vector(SIGN))
    assert not symmetry_breaking_score((x, targets), moving, labels=True).is_broken
    assert symmetry_breaking_score((x, targets), SIGN, labels=True).is_broken


def test_interpolation_alone_tells_moved_images_unless_both_go_there_and_back():
    x, _ = pe.data.vortices(2000, size=14)  # whose law is invariant under all rotations
    turning = pe.image(SO2, (1, 14, 14), interpolation="bilinear")
    plain = symmetry_breaking_score(x, turning, there_and_back=False)
    assert plain.is_broken and plain.has_traces and "unless by its interpolation" in str(plain)
    both = symmetry_breaking_score(x, turning)
    assert not both.is_broken and both.has_traces and plain.compared is None
    assert "; 41% of the pixels compared" in str(both) and "interpolation" not in str(both)
    assert "unless by what is left of its interpolation" in str(replace(both, accuracy=0.6))
    upright = pe.data.synthetic(300, size=14).images
    assert symmetry_breaking_score(upright, turning).accuracy > 0.9


@pytest.mark.slow
def test_what_interpolation_leaves_is_found_in_white_noise_and_said():
    def pooled():
        return nn.Sequential(nn.Unflatten(1, (1, 10, 10)), nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                             nn.Flatten(), nn.Linear(8, 1))  # fmt: skip

    for seed in (1, 2):
        noise = torch.randn(4000, 1, 10, 10, generator=torch.Generator().manual_seed(seed))
        score = symmetry_breaking_score(noise, SO2, classifier=pooled)
        assert score.is_broken and "unless by what is left of its interpolation" in score.verdict


@pytest.mark.parametrize("size", [6, 8, 9, 14])
def test_there_and_back_reads_nothing_from_outside_the_frame(size):
    x = torch.rand(60, 1, 1, 1).expand(-1, 1, size, size)  # grey all over: every rotation of the plane leaves it alone
    _, moved = _lots(len(x), 5)
    turning = pe.Symmetry(SO2, {}, inputs=pe.image(SO2, (1, size, size), interpolation="bilinear"))
    features, _ = _features(x, None, turning, moved, matched=True)
    seen = features[0] > 0
    assert 0.1 < seen.double().mean() < 0.5
    torch.testing.assert_close(features, x.flatten(1) * seen, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("data", "group"),
    [
        (pe.data.synthetic(80), C4),
        (pe.data.synthetic(80).images[:, 0], C4),
        (pe.data.synthetic(80).images, pe.image(C4, (1, 8, 8))),
        ((pe.data.synthetic(80).images, None), pe.Symmetry(C4, {}, inputs=pe.image(C4, (1, 8, 8)))),
    ],
    ids=["ImageData", "without channels", "representation", "symmetry"],
)
def test_data_and_groups_of_every_kind_give_one_score(data, group):
    score = symmetry_breaking_score(data, group, seed=3)
    again = symmetry_breaking_score(pe.data.synthetic(80), C4, seed=3)
    assert score == again and score.group == C4 and score.is_broken and hash(score) == hash(again)


def test_the_seed_is_the_scores_alone():
    x, state = torch.rand(60, 2), torch.get_rng_state()
    first = symmetry_breaking_score(x, C4, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert symmetry_breaking_score(x, C4, seed=1) == first != symmetry_breaking_score(x, C4, seed=2)


def test_a_network_of_the_users_own_is_trained():
    made = []

    def make():
        made.append(nn.Sequential(nn.Linear(2, 1)))
        return made[-1]

    assert symmetry_breaking_score(shifted(400, 2.0, 0.0), C2, classifier=make).accuracy > 0.9
    assert len(made) == 4
    # a linear map does not see second moments: no breaking found, though there is
    assert not symmetry_breaking_score(shifted(800, 0.0, 0.0) * torch.tensor([3.0, 0.5]), C4, classifier=make).is_broken


def test_the_state_that_was_best_on_data_left_out_is_kept():
    class Spoiled(nn.Module):
        """Right about all after the first epoch, wrong after that."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))
            self.register_buffer("steps", torch.zeros(()))

        def forward(self, x):
            self.steps += self.training
            return x * (3.0 if self.steps < 2 else -3.0) + 0 * self.weight

    y = torch.arange(48.0) % 2
    x = 2 * y[:, None] - 1
    assert torch.equal(_train(Spoiled(), x, y)(x), y > 0)


def test_no_batch_has_a_single_datum():
    for count in (1, 2, 64, 65, 66, 129, 130):
        batches = _batches(torch.randperm(count))
        assert torch.cat(batches).sort().values.tolist() == list(range(count))
        assert count == 1 or min(map(len, batches)) > 1
    normalised = lambda: nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))  # noqa: E731
    x = shifted(390, 3.0, 0.0)  # folds of 78: training parts of 65, 130, 195 and 260 data
    assert symmetry_breaking_score(x, C2, classifier=normalised).is_broken


@pytest.mark.parametrize("seed", [3, 2**40])
def test_whole_numbers_of_every_kind_are_taken(seed):
    x = shifted(60, 1.0, 0.0)
    as_array = torch.tensor(5).numpy()[()]
    assert symmetry_breaking_score(x, C2, folds=as_array, seed=seed) == symmetry_breaking_score(x, C2, seed=seed)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"data": torch.rand(30, 2)}, "N at least 40"),
        ({"data": "digits"}, "got str"),
        ({"data": torch.full((50, 2), math.nan)}, "finite data"),
        ({"data": torch.rand(50, 2, 2, 2, 2)}, "Give a representation"),
        ({"data": torch.rand(50, 3)}, r"vectors \(N, 2\), or images .* for CyclicGroup\(4\); got \(50, 3\)"),
        ({"labels": True}, "one for each of the 50 data; got NoneType"),
        ({"labels": torch.zeros(50)}, "True or False"),
        ({"folds": 1}, "at least 2"),
        ({"level": 95.0}, "between 0 and 1"),
        ({"group": []}, "empty list"),
        ({"group": "C4"}, "Expected a group"),
        ({"group": pe.CyclicGroup(1)}, "other than e"),
        ({"group": pe.Symmetry(C4, {})}, "inputs="),
        ({"group": pe.trivial(C4, 2), "there_and_back": True}, "there_and_back"),
        ({"classifier": dict}, "fit and predict"),
        ({"classifier": nn.Linear(2, 1)}, "Linear, not a function.*lambda"),
        ({"classifier": NearestMean()}, "NearestMean, not a function"),
        ({"classifier": 3}, "int, not a function"),
        ({"classifier": lambda: nn.Linear(2, 2)}, r"one logit for each.*, 2\)"),
        ({"classifier": Short}, "one of 0 and 1 for each of 10 data"),
        ({"data": (torch.rand(50, 2), torch.rand(20, 2))}, "one for each of the 50"),
        ({"data": (torch.rand(50, 2), [0] * 50)}, "got list as labels"),
        ({"data": (torch.rand(50, 2), None), "labels": True}, "got NoneType as labels"),
        ({"data": (torch.rand(50, 2),)}, "got 1 things"),
        ({"data": [torch.rand(50, 2)] * 3}, "got 3 things"),
        ({"data": torch.rand(50, 2) * 1j}, "view_as_real"),
        ({"folds": True}, "folds to be an integer"),
        ({"folds": 5.0}, "folds to be an integer"),
        ({"seed": None}, "seed to be an integer"),
        ({"seed": 1.5}, "seed to be an integer"),
        ({"data": torch.rand(50, 1, 5, 5), "group": SO2}, "at least 6 pixels a side"),
    ],
)
def test_what_cannot_be_scored_is_refused(change, expected):
    arguments = {"data": torch.rand(50, 2), "group": C4} | change
    with pytest.raises(pe.SymmetryError, match=expected):
        symmetry_breaking_score(**arguments)


def test_the_study_turns_images_by_all_elements_alike_and_reads_its_table():
    corner = torch.zeros(4000, 1, 4, 4)
    corner[:, :, 0, 1] = 1.0  # no element but e leaves it where it is
    for name, group in breaking.GROUPS.items():
        places = breaking.turned(corner, group, seed=1).flatten(1).argmax(1).bincount()
        places = places[places > 0] / 4000
        share = 1 / len(group)
        assert len(places) == len(group), name
        assert (places - share).abs().max() < SIGMAS * math.sqrt(share * (1 - share) / 4000)
    assert torch.equal(breaking.turned(corner, None, seed=1), corner)


def test_the_study_counts_what_it_finds(capsys):
    images = breaking.turned(pe.data.synthetic(300).images, C4, seed=7)
    data = ImageData("turned", images, torch.zeros(300).long(), 1)
    result = breaking.run(breaking.BreakingConfig(seeds=(0,), images=300), data)
    assert [p["largest"] for p in result["picks"]][0] != "none"  # said to be upright, but turned
    assert len(result["rows"]) == 12 and all(set(row) == set(breaking.DEFINITIONS) for row in result["rows"])
    assert result["agreements"] == sum(r["broken"] == r["expected"] for r in result["rows"])
    assert result["named"] == sum(p["agrees"] == "yes" for p in result["picks"]) < 4
    assert result["symmetric"] == 6 and "of 12 scores agree" in capsys.readouterr().out
