"""Generators learned with a network: the law, the five terms, averages, the training, the verdict, the study."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import pyro_equivariance as pe
from pyro_equivariance.errors import DataError, OptionError, SymmetryError
from pyro_equivariance.experiments import augmenters as study
from pyro_equivariance.learned.lie import TERMS, WEIGHTS, inputs_of
from pyro_equivariance.learned.verdict import Verdict, averaged, judge, random_like

SO2, SO3 = pe.Generators.so(2), pe.Generators.so(3)
EXACT = {"atol": 1e-12, "rtol": 0}


def network(inputs=2, outputs=1, hidden=32):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
        nn.Linear(hidden, outputs),
    )  # fmt: skip


def radii(x):
    return x.norm(dim=1, keepdim=True)


def losses(augmenter, *arguments, **options):
    """The terms as numbers."""
    return {name: term.detach() for name, term in augmenter.losses(*arguments, **options).items()}


class TestLaw:
    def test_the_basis_counts_by_its_directions(self):
        augmenter = pe.LieAugmenter(3, 4, seed=1)
        lengths = augmenter.basis().flatten(1).norm(dim=1)
        assert_close(lengths, torch.full((4,), math.sqrt(3.0)), **EXACT)
        before = augmenter.basis()
        with torch.no_grad():
            augmenter.matrices *= 7.0
        assert_close(augmenter.basis(), before, **EXACT)

    def test_elements_are_exponentials_in_the_box(self):
        augmenter = pe.LieAugmenter(2, SO2, width=0.5)
        g = augmenter.sample((1000,)).detach()
        angles = torch.atan2(g[:, 1, 0], g[:, 0, 0])
        assert_close(g, pe.Generators.so(2).exp(angles[:, None]), **EXACT)
        assert 0.49 < float(angles.abs().max()) <= 0.5
        assert abs(float(angles.mean())) < 5 * 0.5 / math.sqrt(3 * 1000)

    def test_affine_matrices_are_homogeneous_and_translate(self):
        augmenter = pe.LieAugmenter(2, pe.Generators.translations(2).only(["translate x"]), width=1.0)
        assert augmenter.generators.affine and augmenter.matrices.shape == (1, 2, 3)
        moved = pe.vector(augmenter).act(augmenter.sample((50,)).detach(), torch.tensor([1.0, 2.0]))
        assert_close(moved[:, 1], torch.full((50,), 2.0), **EXACT)
        assert float(moved[:, 0].std()) > 0.1
        assert pe.LieAugmenter(2, affine=True).generators.angle(augmenter.generators) > 1.0

    def test_samples_are_differentiable_in_the_basis(self):
        augmenter = pe.LieAugmenter(2)
        augmenter.sample((3,)).square().sum().backward()
        assert float(augmenter.matrices.grad.abs().max()) > 0

    def test_a_seed_makes_the_start(self):
        first, again, other = (pe.LieAugmenter(2, seed=s).basis() for s in (0, 0, 1))
        assert torch.equal(first, again) and not torch.allclose(first, other)

    def test_it_prints_its_matrices(self):
        assert str(pe.LieAugmenter(2, SO2, width=0.5)) == "A1 ± 0.5\n   0.00  -1.00\n   1.00   0.00"

    @pytest.mark.parametrize(("value", "shown"), [(1.0, "0.71"), (math.nan, "nan")])
    def test_it_prints_what_a_search_has_spoilt(self, value, shown):
        augmenter = pe.LieAugmenter(2, 2)
        with torch.no_grad():
            augmenter.matrices.fill_(value)
        assert str(augmenter).count(shown) == 8 and str(augmenter).count("± 1\n") == 2

    def test_linear_generators_are_written_homogeneously_where_translations_are_learned(self):
        augmenter = pe.LieAugmenter(2, SO2, affine=True)
        assert augmenter.matrices.shape == (1, 2, 3) and augmenter.generators.angle(SO2) < 1e-9


class TestTerms:
    def test_they_vanish_at_an_exact_symmetry_and_add_up_by_weight(self):
        augmenter, x = pe.LieAugmenter(2, SO2), torch.randn(20, 2)
        terms = losses(augmenter, radii, x, radii(x), draws=3)
        assert tuple(terms) == TERMS
        assert float(terms["task"]) < 1e-24 and float(terms["equivariance"]) < 1e-24
        torch.manual_seed(3)
        total = augmenter.loss(radii, x, radii(x) + 1).detach()
        torch.manual_seed(3)
        terms = losses(augmenter, radii, x, radii(x) + 1)
        assert_close(total, sum(WEIGHTS[name] * terms[name] for name in TERMS))
        assert_close(terms["task"], torch.tensor(1.0))

    def test_equivariance_of_a_linear_function_under_scaling(self):
        """f(x) = x and g = e^w: E(e^w - 1)² ‖x‖², w uniform on (−1, 1), is (sinh 2 / 2 − 2 sinh 1 + 1) ‖x‖²."""
        augmenter, x = pe.LieAugmenter(2, pe.Generators.scale(2)), torch.tensor([[3.0, 4.0]])
        draws = 20_000
        found = float(losses(augmenter, lambda x: x, x, x, draws=draws)["equivariance"]) / 25
        mean = math.sinh(2) / 2 - 2 * math.sinh(1) + 1
        fourth = math.sinh(4) / 4 - 4 * math.sinh(3) / 3 + 3 * math.sinh(2) - 4 * math.sinh(1) + 1
        assert abs(found - mean) < 5 * math.sqrt((fourth - mean**2) / draws)

    def test_outputs_that_move_are_compared_where_they_have_moved(self):
        augmenter, x = pe.LieAugmenter(3, SO3), torch.randn(10, 3)
        terms = losses(augmenter, lambda x: 2 * x, x, 2 * x, outputs=pe.vector(augmenter))
        assert float(terms["task"]) < 1e-24 and float(terms["equivariance"]) < 1e-24
        assert float(losses(augmenter, lambda x: 2 * x, x, 2 * x)["task"]) > 0.1

    def test_augmentation_is_one_where_nothing_moves_and_sees_a_scaling(self):
        x = torch.randn(10, 2)

        def likeness(generators, width):
            return float(losses(pe.LieAugmenter(2, generators, width), radii, x, radii(x), draws=2000)["augmentation"])

        assert abs(likeness(SO2, 1e-4) - 1) < 1e-6
        error = 5 * 0.5 / math.sqrt(2000 * 10)  # the likeness lies in [0, 1], so its deviation is at most 1/2
        assert abs(likeness(SO2, 1.0) - math.sin(1.0)) < error
        assert abs(likeness(pe.Generators.scale(2), 1.0) - 2 * math.atan(math.tanh(0.5))) < error  # E 1/cosh w

    def test_orthogonality_and_sparsity_of_a_known_basis(self):
        x = torch.randn(4, 2)
        two = pe.Generators([[[1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
        terms = losses(pe.LieAugmenter(2, two), radii, x, radii(x))
        assert_close(terms["orthogonality"], torch.tensor(1 / math.sqrt(2)))
        assert_close(terms["sparsity"], torch.tensor(math.sqrt(2) + 2))
        augmenter = pe.LieAugmenter(2, two, weights={"orthogonality": 10.0, "sparsity": 1.0})
        assert_close(augmenter.regularizer(), torch.tensor(10 / math.sqrt(2) + math.sqrt(2) + 2))
        assert_close(augmenter.log_prior(), -augmenter.regularizer())
        orthogonal = losses(pe.LieAugmenter(3, SO3), radii, torch.randn(4, 3), torch.ones(4, 1))
        assert float(orthogonal["orthogonality"]) < 1e-12

    def test_outputs_may_be_one_number_for_each_input(self):
        augmenter, x = pe.LieAugmenter(2, pe.Generators.scale(2)), torch.randn(9, 2)
        torch.manual_seed(0)
        flat = losses(augmenter, lambda x: x[:, 0], x, x[:, 1])
        torch.manual_seed(0)
        assert flat == losses(augmenter, lambda x: x[:, :1], x, x[:, 1:])

    def test_a_loss_of_ones_own_may_have_counts_or_binary_observations(self):
        augmenter, x = pe.LieAugmenter(2, SO2), torch.randn(9, 2)
        counts, flags = torch.arange(9), torch.arange(9) % 2 == 0

        def poisson(rates, y):
            return nn.functional.poisson_nll_loss(rates, y, reduction="none")

        def binary(logits, y):
            return nn.functional.binary_cross_entropy_with_logits(logits, y.to(logits), reduction="none")

        zeros = torch.zeros(9)
        terms = losses(augmenter, lambda x: 0 * x[:, 0], x, counts, loss=poisson)
        assert_close(terms["task"], poisson(zeros, counts).mean())
        for y in (flags, flags.long()):
            assert_close(losses(augmenter, lambda x: 0 * x[:, 0], x, y, loss=binary)["task"], torch.tensor(math.log(2)))

    def test_share_draws_from_part_of_the_widths(self):
        augmenter, x = pe.LieAugmenter(2, SO2, width=math.pi), torch.randn(200, 2)
        terms = losses(augmenter, radii, x, radii(x), draws=50, share=0.1)
        assert float(terms["augmentation"]) > math.cos(0.1 * math.pi)

    def test_classes_have_a_cross_entropy(self):
        augmenter, x, y = pe.LieAugmenter(2), torch.randn(6, 2), torch.arange(6) % 3
        terms = losses(augmenter, lambda x: torch.zeros(len(x), 3), x, y)
        assert_close(terms["task"], torch.tensor(math.log(3.0)))


@pytest.mark.parametrize(
    ("n", "shape", "expected"),
    [(2, (2,), pe.vector), (3, (5, 3), None), (2, (1, 6, 6), None), (2, (4, 2), None)],
    ids=["vectors", "point cloud in space", "images", "point cloud in the plane"],
)
def test_inputs_are_read_off_their_shape(n, shape, expected):
    augmenter = pe.LieAugmenter(n, pe.Generators.so(n))
    rep, x = inputs_of(augmenter, torch.zeros(7, *shape)), torch.randn(7, *shape)
    assert tuple(rep.event_shape) == shape
    g = augmenter.sample((7,))
    if shape[-1] == n:
        assert_close(rep.act(g, x), (g.reshape(7, *[1] * (len(shape) - 1), n, n) @ x[..., None])[..., 0])
    else:
        known = pe.image(pe.LieBox(SO2, 1.0), shape, interpolation="bilinear")
        assert_close(rep.act(g.detach(), x), known.act(g.detach(), x))


class TestAverage:
    def test_representations_may_be_of_another_law_on_the_group(self):
        augmenter, x = pe.LieAugmenter(3, SO3), torch.randn(6, 3)
        other = pe.vector(pe.LieAugmenter(3))
        assert_close(augmenter.average(lambda x: 2 * x, x, inputs=other, outputs=other), 2 * x)
        with pytest.raises(SymmetryError, match="representation"):
            augmenter.average(radii, x, inputs=pe.vector(pe.LieAugmenter(2)))

    def test_an_equivariant_function_is_its_own_average(self):
        augmenter, x = pe.LieAugmenter(3, SO3), torch.randn(6, 3)
        assert_close(augmenter.average(radii, x), radii(x))
        assert_close(augmenter.average(lambda x: 2 * x, x, outputs=pe.vector(augmenter)), 2 * x)

    def test_of_a_coordinate_over_all_turns(self):
        """cos² of a uniform angle has mean 1/2 and variance 1/8."""
        augmenter, x = pe.LieAugmenter(2, SO2, width=math.pi), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        found = augmenter.average(lambda x: x[:, 0].square(), x, draws=10_000)
        assert ((found - 0.5).abs() < 5 * math.sqrt(1 / 8 / 10_000)).all()

    def test_of_a_classifier_it_is_that_of_probabilities(self):
        augmenter, x, net = pe.LieAugmenter(2, SO2), torch.randn(5, 2), nn.Linear(2, 3)
        torch.manual_seed(1)
        found = averaged(net, augmenter, x, classes=True)
        torch.manual_seed(1)
        assert_close(found.exp(), augmenter.average(lambda x: net(x).softmax(-1), x))
        assert_close(found.exp().sum(-1), torch.ones(5))


def half(x):
    return radii(x) / 2


def same(f, g=None):
    """A network and augmenter for the learned arm and the control, turned in the plane."""
    augmenter = pe.LieAugmenter(2, SO2)
    return (f, augmenter), (f if g is None else g, augmenter)


class TestVerdict:
    @pytest.mark.parametrize(
        ("difference", "control", "word"),
        [(-0.3, -0.3, "helps"), (-0.1, -0.3, "holds"), (0.1, -0.3, "holds"), (0.3, -0.3, "does not hold"),
         (-0.3, -0.1, "undecided"), (0.1, 0.3, "undecided"), (0.3, 0.3, "does not hold")],
    )  # fmt: skip
    def test_words(self, difference, control, word):
        verdict = Verdict(difference, 0.1, control, 0.1, 0.0)
        assert verdict.word == word and str(verdict).startswith(f"{word}: ")
        assert verdict.holds == (word in ("helps", "holds")) and verdict.helps == (word == "helps")
        assert verdict.interval == pytest.approx((difference - 0.2, difference + 0.2))
        assert verdict.control_interval == pytest.approx((control - 0.2, control + 0.2))

    def test_of_known_functions(self):
        """Against y = 2|x| an f = 2|x| + c that is never moved away loses c² for sure."""
        x = torch.randn(600, 2)  # more than are moved at a time
        data = x, 2 * radii(x)

        def off(by):
            return lambda x: 2 * radii(x) + by

        verdict = judge(*same(off(0), off(2)), off(1), data)
        assert verdict.difference == pytest.approx(-1.0) and verdict.control == pytest.approx(-4.0)
        assert max(verdict.se, verdict.control_se, verdict.deviation) < 1e-9 and verdict.helps
        assert judge(*same(off(0), off(0)), off(1), data).word == "undecided"
        worse = judge(*same(off(1), off(2)), off(0), data)
        assert worse.difference == pytest.approx(1.0) and worse.word == "does not hold"
        assert judge(*same(off(1), off(2)), off(1), data).word == "holds"

    def test_the_standard_error_is_that_of_paired_differences(self):
        x = torch.randn(256, 2)
        found, control = (judge(*same(radii, f), g, (x, 1 + radii(x))) for f, g in ((radii, half), (half, radii)))
        differences = 1 - (1 + radii(x) / 2).square()
        assert found.difference == pytest.approx(control.control) == pytest.approx(float(differences.mean()))
        assert found.se == pytest.approx(control.control_se) == pytest.approx(float(differences.std()) / 16)

    def test_deviation_of_a_classifier_is_that_of_probabilities(self):
        """Probabilities s = sigmoid(±2) of two classes by the sign of a coordinate: as above 1, whatever the logits."""
        x, augmenter = torch.randn(4000, 2), pe.LieAugmenter(2, SO2, width=math.pi)

        def logits(x):
            return torch.cat([x[:, :1].sign(), -x[:, :1].sign()], 1) + 50 * radii(x)

        arm = (logits, augmenter)
        found = judge(arm, arm, logits, (x, (x[:, 0] < 0).long())).deviation
        assert abs(found - 1) < 5 / math.sqrt(4000)

    def test_it_leaves_the_random_numbers_alone(self):
        x, state = torch.randn(20, 2), torch.get_rng_state()
        arms = same(lambda x: x[:, :1], lambda x: x[:, 1:])
        first, again = (judge(*arms, radii, (x, radii(x))) for _ in range(2))
        assert first == again and torch.equal(state, torch.get_rng_state())

    def test_the_control_has_as_many_generators_at_right_angles(self):
        for augmenter in (pe.LieAugmenter(2, width=0.5), pe.LieAugmenter(3, 3), pe.LieAugmenter(2, 3, affine=True)):
            control = random_like(augmenter)
            assert_close(control.generators.angles(augmenter.generators), torch.full((len(augmenter.names),), 90.0))
            assert control.widths == augmenter.widths and control.weights == augmenter.weights
            assert not control.matrices.requires_grad and augmenter.matrices.requires_grad
        crowded = random_like(pe.LieAugmenter(2, 3))
        assert_close(crowded.basis().flatten(1) @ crowded.basis().flatten(1).mT, 2 * torch.eye(3))
        assert random_like(augmenter, 1).generators != control.generators == random_like(augmenter).generators

    def test_deviation_is_one_for_unrelated_inputs(self):
        """f = the sign of the angle's coordinate, under all turns: P(differ) = 1/2, E|f' − f|² = 2 = 2 Var f."""
        x = torch.randn(4000, 2)
        augmenter = pe.LieAugmenter(2, SO2, width=math.pi)

        def sign(x):
            return x[:, :1].sign()

        found = judge((sign, augmenter), (sign, augmenter), sign, (x, sign(x))).deviation
        assert abs(found - 1) < 5 / math.sqrt(4000)  # a draw of |f' − f|²/2 is 0 or 2: deviation 1


def plane(count, symmetric, seed=0):
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    y = (3 * radii(x)).sin() if symmetric else (2 * x[:, :1]).sin() + x[:, :1] * (1.5 * x[:, 1:] + 0.5).cos()
    return x, (y - y.mean()) / y.std()


class Radii(nn.Module):
    """Invariant, and with nothing to learn."""

    def forward(self, x):
        return radii(x)


class TestTraining:
    def test_plain_is_a_copy_that_was_trained_alone_at_the_same_rates(self):
        torch.manual_seed(0)
        data, net = plane(30, True), network()
        alone = copy.deepcopy(net)
        result = pe.learn_augmentation(net, pe.LieAugmenter(2), data, plane(10, True), steps=10, starts=2)
        optimizer = torch.optim.Adam(alone.parameters())
        for rate in [3e-3] * 7 + [3e-3 * part / 4 for part in (3, 2, 1)]:  # falls over the last four of ten
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            (alone(data[0]) - data[1]).square().sum(1).mean().backward()
            optimizer.step()
        assert result.network is net and result.plain is not net
        for found, expected in zip(result.plain.parameters(), alone.parameters(), strict=True):
            assert_close(found, expected)
        trained, other = (torch.cat([p.flatten() for p in n.parameters()]) for n in (net, result.control[0]))
        assert not torch.allclose(trained, other) and all(p.grad is None for p in net.parameters())
        assert result.control[1].generators == random_like(result.augmenter).generators
        assert result.augmenter.matrices.grad is None

    def test_the_control_is_a_copy_that_was_trained_under_its_generators(self):
        data, net = plane(30, True), network()
        start = copy.deepcopy(net)
        result = pe.learn_augmentation(net, pe.LieAugmenter(2), data, plane(10, True), steps=10, starts=2)
        pe.learn_augmentation(start, random_like(result.augmenter), data, steps=10, starts=2)
        for found, expected in zip(result.control[0].parameters(), start.parameters(), strict=True):
            assert_close(found, expected)

    @pytest.mark.parametrize("training", [True, False])
    def test_networks_train_in_their_mode_and_are_judged_in_the_other(self, training):
        class Watched(nn.BatchNorm1d):
            def forward(self, x):
                calls.append((self.training, len(x)))
                return super().forward(x)

        calls, data = [], plane(20, True)
        net = nn.Sequential(nn.Linear(2, 8), Watched(8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 1)).train(training)
        steps = {"steps": 10, "starts": 3, "draws": 2}
        result = pe.learn_augmentation(net, pe.LieAugmenter(2), data, plane(7, True), **steps)
        assert sorted(size for is_training, size in calls if is_training) == [20] * 12 + [60] * 18
        assert int(net[1].num_batches_tracked) == int(result.plain[1].num_batches_tracked) == 10
        assert [m.training for m in net.modules()] == [training] * 6
        arms = (net, result.augmenter), result.control
        verdict = judge(*arms, result.plain.train(), plane(7, True))
        assert verdict == judge(*arms, result.plain.eval(), plane(7, True)) and int(net[1].num_batches_tracked) == 10

    def test_integers_are_classes_only_without_a_loss_of_ones_own(self):
        x = torch.randn(30, 2)

        def poisson(rates, y):
            return nn.functional.poisson_nll_loss(rates, y, reduction="none")

        net = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
        data = x, torch.arange(30) % 4
        verdict = pe.learn_augmentation(net, pe.LieAugmenter(2), data, data, loss=poisson, steps=4).verdict
        assert math.isfinite(verdict.difference)
        arm = (lambda x: radii(x)[:, 0], pe.LieAugmenter(2, SO2))
        found = judge(arm, arm, lambda x: 0 * x[:, 0], data, loss=poisson).difference
        assert found == pytest.approx(float((poisson(arm[0](x), data[1]) - 1).mean()))

    def test_the_warm_up_has_the_task_alone_and_then_widths_grow(self):
        result = pe.learn_augmentation(network(), pe.LieAugmenter(2), plane(40, True), steps=20, starts=3)
        history = result.history
        assert set(history) == {*TERMS, "share"} and all(len(values) == 20 for values in history.values())
        assert all(map(math.isnan, history["equivariance"][:2])) and not any(map(math.isnan, history["task"]))
        assert history["share"][:2] == [0.0, 0.0] and history["share"][8:] == [1.0] * 12
        assert sorted(history["share"]) == history["share"] and result.verdict is None and result.plain is None

    def test_one_seed_gives_one_run_and_leaves_the_generator_as_it_was(self):
        state, found = torch.get_rng_state(), []
        for run in range(2):
            torch.manual_seed(0)
            net, augmenter = network(), pe.LieAugmenter(2)
            torch.manual_seed(run)
            pe.learn_augmentation(net, augmenter, plane(40, True), steps=15)
            found.append((augmenter.basis(), *net.parameters()))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        torch.set_rng_state(state)
        pe.learn_augmentation(network(), pe.LieAugmenter(2, seed=1), plane(40, True), steps=3)
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        network()
        assert torch.equal(after, torch.get_rng_state())

    def test_fixed_generators_stay(self):
        augmenter = pe.LieAugmenter(2, SO2).requires_grad_(False)
        net = network()
        before = net[1].weight.clone()
        pe.learn_augmentation(net, augmenter, plane(40, True), steps=12)
        assert augmenter.generators.angle(SO2) < 1e-9 and not torch.equal(net[1].weight, before)

    def test_the_search_finds_the_best_start_for_an_exact_network(self):
        """Of 200 random directions of R^4 the best is nearer than 25° almost surely (each is with probability 0.05)."""
        augmenter, x = pe.LieAugmenter(2, seed=5), torch.randn(100, 2)
        net = nn.Module()
        net.forward = lambda x: radii(x) + 0 * net.still
        net.register_parameter("still", nn.Parameter(torch.zeros(())))
        pe.learn_augmentation(net, augmenter, (x, radii(x)), steps=2, warm_up=0.5, grown=1.0, starts=200, basis_rate=0)
        assert augmenter.generators.angle(SO2) < 25

    def test_starts_are_compared_at_half_the_widths_under_the_same_draws_beside_the_basis_as_it_is(self):
        class Watched(pe.LieAugmenter):
            def losses(self, *arguments, **options):
                seen.append((options["share"], self.basis().detach(), torch.get_rng_state()))
                return super().losses(*arguments, **options)

        seen, net = [], nn.Linear(2, 1).requires_grad_(False)
        augmenter = Watched(2)
        before = augmenter.basis().detach()
        pe.learn_augmentation(net, augmenter, plane(20, True), steps=2, warm_up=0.5, grown=1.0, starts=3, basis_rate=0)
        shares, bases, states = zip(*seen, strict=True)
        assert shares == (0.5, 0.5, 0.5, 0.5, 0.1) and all(torch.equal(states[0], state) for state in states[1:4])
        assert_close(bases[0], before)
        assert any(torch.equal(augmenter.basis(), basis) for basis in bases[:4])

    def test_a_basis_that_was_learned_before_is_kept(self):
        x = torch.randn(50, 2)
        augmenter = pe.LieAugmenter(2, seed=3)
        augmenter.load_state_dict(pe.LieAugmenter(2, SO2).state_dict())
        pe.learn_augmentation(Radii(), augmenter, (x, radii(x)), steps=4, basis_rate=0)
        assert augmenter.generators.angle(SO2) < 1e-9

    def test_a_frozen_network_stays_and_the_basis_is_learned(self):
        torch.manual_seed(0)
        x, augmenter = torch.randn(100, 2), pe.LieAugmenter(2)
        result = pe.learn_augmentation(Radii(), augmenter, (x, radii(x)), (x, radii(x)), steps=150)
        assert augmenter.generators.angle(SO2) < 5 and result.verdict.control_interval[1] < 0
        assert result.verdict.difference == pytest.approx(0.0, abs=1e-6)
        net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).requires_grad_(False)
        before = copy.deepcopy(net.state_dict())
        pe.learn_augmentation(net, augmenter, plane(20, True), plane(20, True), steps=10)
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

    def test_rotation_of_the_plane_is_found(self):
        torch.manual_seed(0)
        augmenter = pe.LieAugmenter(2, seed=0)
        data, held_out = plane(200, True), plane(200, True, seed=1)
        result = pe.learn_augmentation(network(), augmenter, data, held_out, steps=700, batch_size=100)
        assert augmenter.generators.angle(SO2) < 5 and result.verdict.holds

    def test_a_function_without_symmetry_is_told(self):
        torch.manual_seed(0)
        data, held_out = plane(200, False), plane(400, False, seed=1)
        result = pe.learn_augmentation(network(), pe.LieAugmenter(2), data, held_out, steps=700, batch_size=100)
        assert not result.verdict.holds and "does not hold" in repr(result)

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(3))
    def test_noise_is_no_symmetry(self, seed):
        """With few data under much noise random moves help too, and are told from a symmetry."""
        torch.manual_seed(seed)
        (x, y), (far, there) = plane(100, False), plane(500, False, seed=1)
        data, held_out = (x, (y + 1.5 * torch.randn(100, 1)) / 1.8), (far, (there + 1.5 * torch.randn(500, 1)) / 1.8)
        verdict = pe.learn_augmentation(network(hidden=64), pe.LieAugmenter(2, seed=seed), data, held_out).verdict
        assert not verdict.holds

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(3))
    def test_translations_are_found(self, seed):
        """What leaves the second coordinate alone: shifts, scalings and shears along the first."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(400, 2, generator=generator)
        augmenter = pe.LieAugmenter(2, 3, affine=True, seed=seed)
        torch.manual_seed(seed)
        pe.learn_augmentation(network(hidden=64), augmenter, (x, (2 * x[:, 1:]).sin()), seed=seed)
        known = torch.zeros(3, 3, 3)
        known[torch.arange(3), 0, torch.arange(3)] = 1.0
        assert augmenter.generators.angle(pe.Generators(known, affine=True)) < 5

    @pytest.mark.slow
    def test_rotations_of_space_are_found_on_point_clouds(self):
        x = torch.randn(800, 2, 3)
        y = (x[:, 0] * x[:, 1]).sum(-1).tanh() + x[:, 0].norm(dim=1) - x[:, 1].norm(dim=1)
        augmenter = pe.LieAugmenter(3, 3)
        pe.learn_augmentation(network(6), augmenter, (x, (y / y.std())[:, None]))
        assert augmenter.generators.angle(SO3) < 5 and augmenter.generators.closure() < 0.05


class TestInAModel:
    def model(self, augmenter, net):
        symmetry = pe.Symmetry(augmenter, {}, inputs=pe.vector(augmenter))
        model = pe.BayesianNetwork(net, "fan_in", size=len(plane(200, True)[0]), likelihood=pe.NormalLikelihood(0.2))
        return model, symmetry

    def test_the_basis_is_learned_inside_the_elbo(self):
        torch.manual_seed(0)
        augmenter = pe.LieAugmenter(2, seed=3)
        model, symmetry = self.model(augmenter, network())
        before = augmenter.generators.angle(SO2)
        guide = pe.AutoMeanFieldNormal(model, init_scale=0.01)
        pe.fit(pe.handlers.augment(model, symmetry, orbit=2), guide, plane(200, True), epochs=300, progress=False)
        assert before > 30 and augmenter.generators.angle(SO2) < 10

    def test_it_averages_predictions_like_a_list_of_elements(self):
        augmenter = pe.LieAugmenter(2, SO2)
        symmetry = pe.Symmetry(augmenter, {}, inputs=pe.vector(augmenter)).listed(6)
        assert symmetry.inputs.orbit(torch.randn(5, 2)).shape == (7, 5, 2)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: pe.LieAugmenter(0), SymmetryError, "dimension n"),
        (lambda: pe.LieAugmenter(2, 5), SymmetryError, "at most 4 generators"),
        (lambda: pe.LieAugmenter(2, 0), SymmetryError, "number of generators"),
        (lambda: pe.LieAugmenter(3, SO2), SymmetryError, "R\\^3"),
        (lambda: pe.LieAugmenter(2, width=0.0), SymmetryError, "width"),
        (lambda: pe.LieAugmenter(2, width=math.nan), SymmetryError, "width"),
        (lambda: pe.LieAugmenter(2, weights={"tasks": 1.0}), OptionError, "'tasks'"),
        (lambda: pe.LieAugmenter(2, weights={"task": -1.0}), OptionError, "not negative"),
        (lambda: pe.LieAugmenter(2).loss(radii, torch.ones(3, 2), torch.ones(2, 1)), DataError, "3, 2.* and .2, 1"),
        (lambda: pe.LieAugmenter(2).loss(radii, torch.ones(3, 2), torch.ones(3)), DataError, "shape of y"),
        (lambda: pe.LieAugmenter(2).loss(radii, torch.ones(3, 5), torch.ones(3, 1)), DataError, "inputs="),
        (lambda: pe.LieAugmenter(3).loss(radii, torch.ones(3, 4, 4), torch.ones(3, 1)), DataError, "inputs="),
        (lambda: pe.LieAugmenter(3).average(radii, torch.ones(3, 8, 8, 3)), DataError, "inputs="),
        (lambda: pe.LieAugmenter(2).average(radii, [[1.0, 2.0]]), DataError, "tensor; got list"),
        (lambda: pe.LieAugmenter(2).average(radii, torch.ones(3, 2), draws=0), SymmetryError, "draws"),
        (lambda: pe.LieAugmenter(2).loss(radii, torch.ones(3, 2), torch.ones(3, 1), draws=0), SymmetryError, "draws"),
        (lambda: pe.LieAugmenter(2).loss(radii, torch.ones(3, 2), torch.ones(3, 1), share=2), OptionError, "share"),
        (lambda: pe.LieAugmenter(2).loss(radii, torch.ones(3, 2), [1, 0, 1]), DataError, "Tensor and list"),
        (lambda: pe.LieAugmenter(2).loss(radii, torch.ones(3, 2), torch.ones(3, 1) > 0), DataError, "torch.bool"),
        (lambda: pe.LieAugmenter(2).loss(nn.Linear(2, 2), torch.ones(3, 2), torch.arange(3)), DataError, "0 to 2"),
        (
            lambda: pe.LieAugmenter(2).loss(radii, torch.ones(3, 2), torch.ones(3, 1), loss=nn.functional.mse_loss),
            DataError,
            'reduction="none"',
        ),
        (lambda: pe.LieAugmenter(2, width="1"), SymmetryError, "width"),
        (lambda: pe.LieAugmenter(2, torch.eye(2)[None]), SymmetryError, "pe.Generators.matrices"),
        (lambda: pe.LieAugmenter(2, weights=[1.0]), OptionError, "dict; got list"),
        (lambda: pe.LieAugmenter(2, weights={"task": "1"}), OptionError, "'1'"),
    ],
)
def test_refusals(make, error, match):
    with pytest.raises(error, match=match):
        make()


def spoilt(count, value):
    x, y = (t.double() for t in plane(count, True))
    return x.index_fill(0, torch.tensor([1]), value), y


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"warm_up": 0.5, "grown": 0.4}, OptionError, "warm_up < grown"),
        ({"steps": 0}, SymmetryError, "steps"),
        ({"draws": 0}, SymmetryError, "draws"),
        ({"batch_size": -3}, SymmetryError, "batch_size"),
        ({"starts": -1}, OptionError, "starts"),
        ({"starts": 1.5}, OptionError, "starts as a whole number"),
        ({"learning_rate": -1.0}, OptionError, "learning_rate"),
        ({"basis_rate": "1"}, OptionError, "basis_rate"),
        ({"learning_rate": 1e200}, OptionError, "finite loss"),
        ({"validation": (torch.ones(3, 2), torch.ones(2, 1))}, DataError, "one observation for each input"),
        ({"validation": tuple(t[:1] for t in spoilt(5, 0.0))}, DataError, "at least two"),
        ({"validation": spoilt(5, 1e200)}, DataError, "finite losses"),
        ({"data": spoilt(5, math.nan)}, DataError, "finite inputs"),
        ({"validation": spoilt(5, math.inf)}, DataError, "finite inputs"),
        ({"data": (torch.ones(5, 2), torch.full((5, 1), math.nan))}, DataError, "finite observations"),
        ({"data": torch.ones(3, 2)}, DataError, "pair of tensors"),
        ({"data": ([[1.0, 2.0]], [[1.0]])}, DataError, "list and list"),
        ({"data": (torch.ones(3, 2, dtype=torch.float32), torch.ones(3, 1))}, DataError, "float64; got torch.float32"),
        ({"net": radii}, OptionError, "torch module; got function"),
        ({"augmenter": pe.AffineAugmenter()}, OptionError, "AffineAugmenter. It has .loss"),
        ({"augmenter": pe.LieBox(SO2, 1.0)}, OptionError, "got LieBox.$"),
    ],
)
def test_training_refusals(options, error, match):
    options = {"net": network(), "augmenter": pe.LieAugmenter(2), "data": plane(20, True), "steps": 4, **options}
    with pytest.raises(error, match=match):
        pe.learn_augmentation(**options)


def test_every_task_of_the_study_has_the_symmetry_that_it_is_said_to_have():
    for name, task in study.TASKS.items():
        if task.target is None:
            continue
        x = torch.randn(40, 3, 3) if task.n == 3 else torch.randn(40, 2)
        known = task.known or pe.Generators.so(2)
        law = pe.LieBox(known, 1.0)
        rep = pe.vector(law) if x.ndim == 2 else pe.trivial(law, x.shape[1:2]) * pe.vector(law)
        gap = (task.target(rep.act(law.sample((40,)), x)) - task.target(x)).abs().max()
        assert (float(gap) < 1e-9) == (task.known is not None), name
