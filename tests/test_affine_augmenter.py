"""Learned affine widths: the law against closed forms, both forms of learning, and the study's images and rules."""

import copy
import functools
import math
import pickle
from dataclasses import replace

import pyro
import pytest
import torch
import torch.nn.functional as F
from pyro.infer import TraceMeanField_ELBO
from torch import nn

import pyro_equivariance as pe
from pyro_equivariance.experiments import affine
from pyro_equivariance.experiments.affine_figures import affine as picture
from pyro_equivariance.learned.affine import LIMITS, UNITS, AffineAugmenter

SE = 4.5  # standard errors that a Monte Carlo estimate may be off
TURNS = ["rotate"]


def close_in_law(values, truth):
    """Whether the mean of independent values is the truth, within standard errors."""
    return abs(float(values.mean()) - truth) <= SE * float(values.std()) / math.sqrt(len(values))


class TestLaw:
    def test_generators_and_names_are_those_of_the_plane(self):
        plane, augmenter = pe.Generators.affine_plane(), AffineAugmenter()
        assert augmenter.generators == plane and tuple(UNITS) == plane.names == augmenter.names
        assert augmenter.widths == pytest.approx(dict.fromkeys(plane.names, 0.2), abs=1e-12)

    @pytest.mark.parametrize("width", [1e-6, 0.01, 0.5, 2.0])
    def test_the_start_is_what_was_given(self, width):
        assert torch.allclose(AffineAugmenter(width).spread(), torch.full((6,), width), rtol=1e-9)

    def test_some_generators_with_widths_by_name(self):
        augmenter = AffineAugmenter({"scale": 0.4}, generators=["scale", "rotate"])
        assert augmenter.widths == pytest.approx({"scale": 0.4, "rotate": 0.2})
        assert augmenter.generators == pe.Generators.affine_plane().only(["scale", "rotate"])

    def test_angles_are_uniform_between_the_widths(self):
        g = AffineAugmenter(1.2, generators=TURNS).sample((4000,))
        angles = torch.atan2(g[:, 1, 0], g[:, 0, 0]).detach()
        steps = torch.arange(1, 4001) / 4000
        distance = float((angles.sort().values / 2.4 + 0.5 - steps).abs().max())
        assert distance < 2.5 / math.sqrt(4000)  # Kolmogorov: 7e-6
        assert float(angles.abs().max()) <= 1.2

    def test_a_draw_is_differentiable_in_its_width(self):
        augmenter = AffineAugmenter(0.7, generators=["translate y"])
        shift = augmenter.sample(())[1, 2]
        (slope,) = torch.autograd.grad(shift, augmenter.raw)
        inner = torch.sigmoid(augmenter.raw)  # of softplus
        assert torch.allclose(slope, shift / 0.7 * inner)

    @pytest.mark.parametrize(("name", "limit"), [("rotate", math.pi), ("scale", 2.0)])
    def test_a_width_stays_at_its_limit_and_keeps_its_gradient(self, name, limit):
        augmenter = AffineAugmenter(1.0, generators=[name])
        with torch.no_grad():
            augmenter.raw.fill_(9.0)
        width = augmenter.spread()
        assert width.item() == pytest.approx(limit, abs=1e-12)
        (slope,) = torch.autograd.grad(width.sum(), augmenter.raw)
        assert float(slope) == pytest.approx(-math.expm1(-limit))  # of softplus, where it is the limit

    def test_however_long_a_width_was_pushed_against_its_limit_it_comes_back(self):
        augmenter = AffineAugmenter(1.0, generators=TURNS)
        optimizer = torch.optim.Adam(augmenter.parameters(), lr=0.03)
        for sign, steps in ((-1.0, 1000), (1.0, 29)):
            for _ in range(steps):
                optimizer.zero_grad()
                (sign * 0.01 * augmenter.bonus()).backward()
                optimizer.step()
            assert (augmenter.widths["rotate"] == pytest.approx(math.pi, rel=1e-9)) == (sign < 0)
        assert augmenter.widths["rotate"] < math.pi - 0.3  # Σ_{t=7}^{29} 0.03 (1 − 2 · 0.9^t) = 0.43 in u

    def test_reading_a_width_twice_leaves_its_graph_whole(self):
        augmenter = AffineAugmenter(1.0, generators=TURNS)
        with torch.no_grad():
            augmenter.raw.fill_(9.0)
        (augmenter.spread() * augmenter.spread()).sum().backward()
        assert float(augmenter.raw.grad) == pytest.approx(-2 * math.pi * math.expm1(-math.pi))

    @pytest.mark.parametrize("raw", [-99.0, 99.0])
    def test_widths_at_an_end_in_single_precision_can_be_given_back(self, raw):
        found = AffineAugmenter().float()
        with torch.no_grad():
            found.raw.fill_(raw)
        assert AffineAugmenter(found.widths).widths == pytest.approx(found.widths, rel=1e-5)

    @pytest.mark.parametrize("width", [math.pi, 1e-6])
    def test_an_end_rounded_to_single_precision_is_the_end(self, width):
        rounded = torch.tensor(width, dtype=torch.float32)
        assert (rounded.item() > width) == (width > 1)  # outside of the range, both
        assert AffineAugmenter(rounded, generators=TURNS).widths["rotate"] == pytest.approx(width, rel=1e-12)

    def test_one_width_for_each_generator(self):
        given = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
        for widths in (given, tuple(given), torch.tensor(given)):
            assert list(AffineAugmenter(widths).widths.values()) == pytest.approx(given)

    def test_one_name_is_one_generator(self):
        assert AffineAugmenter(generators="rotate").generators == AffineAugmenter(generators=TURNS).generators

    def test_fixed_widths_are_not_learned(self):
        assert not any(p.requires_grad for p in AffineAugmenter(learned=False).parameters())
        assert all(p.requires_grad for p in AffineAugmenter().parameters())

    def test_the_state_holds_the_widths(self):
        found, other = AffineAugmenter(1.3), AffineAugmenter(0.1)
        other.load_state_dict(found.state_dict())
        assert other.widths == found.widths and set(found.state_dict()) == {"raw", "_extra_state"}

    @pytest.mark.parametrize("names", [["scale", "rotate"], ["rotate", "shear"]])
    def test_the_state_of_other_generators_is_refused(self, names):
        state = AffineAugmenter(0.5, generators=["rotate", "scale"]).state_dict()
        with pytest.raises(pe.DataError, match=f"of {', '.join(names)}; got rotate, scale"):
            AffineAugmenter(generators=names).load_state_dict(state)

    @pytest.mark.parametrize("learned", [True, False])
    def test_copies_keep_widths_and_generators(self, learned):
        augmenter = AffineAugmenter({"scale": 0.4}, generators=["scale", "rotate"], learned=learned)
        for other in (copy.deepcopy(augmenter), pickle.loads(pickle.dumps(augmenter))):
            assert (other.widths, other.generators) == (augmenter.widths, augmenter.generators)
            with torch.no_grad():
                other.raw.zero_()
            assert augmenter.widths["scale"] == pytest.approx(0.4)

    def test_a_list_of_it_goes_where_a_group_goes(self):
        augmenter = AffineAugmenter()
        symmetry = pe.Symmetry(augmenter, {}, inputs=pe.image(augmenter, (1, 8, 8), interpolation="bilinear"))
        assert symmetry.listed(4).inputs.orbit(torch.ones(3, 1, 8, 8)).shape == (5, 3, 1, 8, 8)

    def test_the_words(self):
        augmenter = AffineAugmenter(0.5, generators=["scale", "rotate"])
        assert repr(augmenter) == "AffineAugmenter(scale ± 0.5, rotate ± 0.5)"
        assert str(augmenter) == "scale ± 0.5 (log factor)\nrotate ± 0.5 (radians)"

    BAD = {
        "unknown generator": (lambda: AffineAugmenter(generators=["twist"]), "got 'twist'"),
        "unknown width": (
            lambda: AffineAugmenter({"twist": 1.0}),
            "Expected widths of.*got one of 'twist'",
        ),
        "width of one left out": (lambda: AffineAugmenter({"scale": 1.0}, generators=TURNS), "got one of 'scale'"),
        "zero": (lambda: AffineAugmenter(0.0), "'translate x' between 1e-06 and 2 half widths.*got 0.0"),
        "wide": (lambda: AffineAugmenter({"rotate": 3.2}), "'rotate' between 1e-06 and 3.142 radians.*got 3.2"),
        "not a number": (lambda: AffineAugmenter(math.nan), "got nan"),
        "a word": (lambda: AffineAugmenter("wide"), "widths as numbers; got 'wide'"),
        "too few": (lambda: AffineAugmenter([0.3] * 5), "one for each of.*got shape \\(5,\\)"),
        "no generators": (lambda: AffineAugmenter(generators=[]), "each once; got \\(\\)"),
        "twice": (lambda: AffineAugmenter(generators=["scale", "scale"]), "each once; got"),
        "no name": (lambda: AffineAugmenter(generators=3), "names of generators; got"),
    }

    @pytest.mark.parametrize("case", BAD)
    def test_bad_options(self, case):
        make, words = self.BAD[case]
        with pytest.raises(pe.SymmetryError, match=words):
            make()


class TestAverage:
    def test_turns_shorten_a_vector(self):
        """``E[g x] = x sin γ / γ``."""
        x = torch.tensor([[3.0, -1.0]]).expand(4000, 2)
        found = AffineAugmenter(1.0, generators=TURNS).average(lambda p: p, x, draws=2).detach()
        for i in (0, 1):
            assert close_in_law(found[:, i], float(x[0, i]) * math.sin(1.0))

    def test_shifts_add_their_variance(self):
        """``E[(x + w)²] = x² + γ² / 3``."""
        x = torch.tensor([[0.5, -1.0]]).expand(4000, 2)
        found = AffineAugmenter(0.9, generators=["translate x"]).average(lambda p: p.square(), x, draws=2).detach()
        assert close_in_law(found[:, 0], 0.25 + 0.27)
        assert torch.allclose(found[:, 1], torch.ones(()))

    def test_each_input_keeps_its_place(self):
        x = torch.arange(10.0).reshape(5, 2)
        assert torch.allclose(AffineAugmenter(1e-6).average(lambda p: p, x, draws=3), x, atol=1e-4)

    def test_it_is_the_mean_of_all_draws_of_an_input(self):
        counted = AffineAugmenter().average(lambda moved: torch.arange(float(len(moved))), torch.zeros(5, 2), draws=3)
        assert counted.tolist() == [5.0, 6.0, 7.0, 8.0, 9.0]  # draws of an input are 5 apart

    def test_outputs_are_moved_back(self):
        augmenter, x = AffineAugmenter(0.5), torch.arange(10.0).reshape(5, 2)
        found = augmenter.average(lambda p: p, x, draws=3, outputs=pe.vector(augmenter))
        assert torch.allclose(found, x, rtol=1e-9)

    def test_images_of_one_symmetric_spot_stay(self):
        """A spot in the centre, smooth on the scale of pixels, is turned into itself."""
        places = (2 * torch.arange(24) + 1 - 24) / 24
        spot = torch.exp(-(places[:, None].square() + places.square()) / 0.18)[None, None]
        found = AffineAugmenter(math.pi, generators=TURNS).average(lambda moved: moved, spot, draws=8)
        assert (found - spot).abs().max().item() < 0.02  # bilinear interpolation of this spot errs by h² |f''| / 4


class TestBonus:
    X, Y = torch.tensor([[3.0, 4.0], [0.0, 2.0]], dtype=torch.float64), torch.tensor([[24.0], [4.0]])

    def test_of_an_invariant_function_only_the_bonus_depends_on_the_widths(self):
        augmenter = AffineAugmenter(0.8, generators=TURNS)
        f = lambda x: x.square().sum(1, keepdim=True)  # noqa: E731
        loss = augmenter.loss(f, self.X, self.Y, bonus=0.25)
        assert loss.item() == pytest.approx((1.0 + 0.0) / 2 - 0.25 * 0.8)
        (slope,) = torch.autograd.grad(loss, augmenter.raw)
        assert torch.allclose(slope, -0.25 * torch.sigmoid(augmenter.raw))

    def test_of_a_coordinate_it_is_the_closed_form(self):
        """``E[(x_1 cos w − x_2 sin w)²]``, the mean of the mixed term being 0."""
        augmenter, x, width = AffineAugmenter(0.8, generators=TURNS), self.X[:1], 0.8
        values = torch.stack([augmenter.loss(lambda p: p[:, :1], x, torch.zeros(1, 1), draws=4, bonus=0.0).detach()
                              for _ in range(1000)])  # fmt: skip
        even = math.sin(2 * width) / (4 * width)
        assert close_in_law(values, 9 * (0.5 + even) + 16 * (0.5 - even))

    def test_the_bonus_is_the_norm_of_the_widths(self):
        assert AffineAugmenter(0.3).bonus().item() == pytest.approx(0.3 * math.sqrt(6))

    def test_labels_are_classes(self):
        augmenter, logits = AffineAugmenter(1.0), torch.tensor([[0.0, 2.0], [1.0, -1.0]])
        y = torch.tensor([1, 0])
        found = augmenter.loss(lambda x: logits.repeat(len(x) // 2, 1), self.X, y, draws=3, bonus=0.0)
        assert torch.allclose(found, F.cross_entropy(logits, y))

    def test_what_cannot_be_used(self):
        augmenter = AffineAugmenter()
        with pytest.raises(pe.DataError, match="one observation for each input.*2 and 1"):
            augmenter.loss(lambda x: x, self.X, self.Y[:1])
        with pytest.raises(pe.DataError, match="square images"):
            augmenter.loss(lambda x: x, torch.zeros(2, 1, 4, 6), self.Y)
        for bonus in (math.nan, math.inf, -0.1, "all"):
            with pytest.raises(pe.OptionError, match="bonus to be a number, not negative; got"):
                augmenter.loss(lambda x: x, self.X, self.Y, bonus=bonus)
        with pytest.raises(pe.SymmetryError, match="draws to be a positive integer"):
            augmenter.average(lambda x: x, self.X, draws=0)


class TestInsideTheElbo:
    """Two logits, linear in the points of a circle, their weights as in the prior: what a mean over turns is worth."""

    SCALE, N = 3.0, 16

    def make(self, width, likelihood, draws=8, learned=True):
        pyro.clear_param_store()
        turns = torch.arange(self.N) * 2 * math.pi / self.N
        data = torch.stack([turns.cos(), turns.sin()], 1), torch.zeros(self.N, dtype=torch.int64)
        augmenter = AffineAugmenter(width, generators=TURNS, learned=learned)
        symmetry = pe.Symmetry(augmenter, {}, inputs=pe.vector(augmenter))
        model = pe.BayesianNetwork(nn.Linear(2, 2, bias=False), prior=self.SCALE)
        guide = pe.AutoMeanFieldNormal(model, init_loc_fn=lambda site: torch.zeros(2, 2), init_scale=self.SCALE)
        return augmenter, pe.handlers.augment(model, symmetry, orbit=draws, likelihood=likelihood), guide, data

    def elbos(self, *arguments, **options):
        _, model, guide, data = self.make(*arguments, **options)
        elbo = TraceMeanField_ELBO()
        return torch.tensor([-elbo.loss(model, guide, *data) / self.N for _ in range(100)])

    def unmoved(self):
        """``E log σ(z)``, ``z`` the difference of two logits of a point: Normal of variance ``2 SCALE²``."""
        z = torch.linspace(-9, 9, 20001)
        weights = (-z.square() / 2).exp()
        return float((F.logsigmoid(z * self.SCALE * math.sqrt(2)) * weights).sum() / weights.sum())

    def test_the_mean_outside_the_logarithm_does_not_depend_on_the_width(self):
        for width in (1e-6, math.pi):
            assert close_in_law(self.elbos(width, "mean"), self.unmoved())

    def test_the_mean_inside_is_better_for_all_turns_and_log_half_in_the_limit(self):
        """Over the whole circle the logits' signs cancel: the mean probability is 1/2 for every weight."""
        assert close_in_law(self.elbos(1e-6, "predictive"), self.unmoved())
        few, many = (self.elbos(math.pi, "predictive", draws=k) for k in (2, 100))
        assert self.unmoved() + 0.2 < float(few.mean()) < float(many.mean()) - 0.2
        error = SE * float(many.std()) / 10
        below = 1 / 100  # twice Var(p) / (2 K (1/2)²) at the largest variance of a probability, 1/4
        assert math.log(0.5) - below - error < float(many.mean()) < math.log(0.5) + error

    @pytest.mark.parametrize("learned", [True, False])
    def test_fit_learns_the_width_with_the_guide(self, learned):
        augmenter, model, guide, data = self.make(0.5, "predictive", learned=learned)
        pe.fit(model, guide, data, epochs=20, optimizer=functools.partial(torch.optim.Adam, lr=0.05), progress=False)
        assert augmenter.widths["rotate"] > 0.6 if learned else augmenter.widths["rotate"] == pytest.approx(0.5)

    def test_a_saved_width_comes_back_with_its_guide(self, tmp_path):
        augmenter, model, _, data = self.make(0.5, "predictive")
        guide = pe.AutoMeanFieldNormal(model)
        pe.fit(model, guide, data, epochs=2, progress=False)
        pe.save(tmp_path / "guide.pt", guide, data)
        other, model, _, _ = self.make(0.2, "predictive")
        pe.load(tmp_path / "guide.pt", model)
        assert other.widths == augmenter.widths != {"rotate": pytest.approx(0.5)}


class TestStudy:
    CONFIG = affine.AffineConfig(seeds=(0,))

    def test_blobs_lie_where_their_class_says(self):
        for task in affine.BLOBS:
            x, y = affine.blobs(task, 200, 48, torch.Generator().manual_seed(0))
            places = (2 * torch.arange(48) + 1 - 48) / 48
            peaks = x.flatten(1).argmax(1)
            right, up = places[peaks % 48], -places[peaks // 48]
            pixel = 1.5 / 48  # half a pixel's diagonal, from the centre
            if task == "distance":
                assert bool(((right.hypot(up) - torch.tensor(affine.RADII)[y]).abs() < pixel).all())
                assert float(torch.atan2(up, right).std()) == pytest.approx(math.pi / math.sqrt(3), rel=0.1)
            else:
                across = right * (0.3 + math.pi / 2 * y).sin() - up * (0.3 + math.pi / 2 * y).cos()
                assert float(across.abs().max()) < pixel

    def test_turning_keeps_the_classes_of_distance_alone(self):
        turned = pe.image(pe.CyclicGroup(4), (1, 12, 12))
        for task, kept in (("distance", True), ("direction", False)):
            x, y = affine.blobs(task, 100, 12, torch.Generator().manual_seed(0))
            means = torch.stack([x[y == c].mean(0).flatten() for c in (0, 1)])
            nearest = torch.cdist(turned.act(1, x).flatten(1), means).argmin(1)
            assert bool((nearest == y).all()) == kept

    @pytest.mark.parametrize("turned", [True, False])
    def test_digits_are_those_of_the_first_classes(self, turned):
        data = pe.data.load("digits")
        (x, y), (_, others) = affine.digits(replace(self.CONFIG, digits=20, images=30), data, turned, 0)
        assert x.shape == (20, 1, 12, 12) and len(others) == 30 and set(y.tolist()) == {0, 1, 2, 3}
        upright = data.images[data.labels < 4].double().flatten(1)
        apart = torch.cdist(x[:, :, 2:-2, 2:-2].flatten(1), upright).amin(1)
        assert bool((apart > 0.1).all()) if turned else float(apart.max()) == 0

    def test_digits_that_are_too_few_are_refused(self):
        with pytest.raises(pe.DataError, match="more than --digits images of classes 0 to 3, 800; got 7"):
            affine.digits(replace(self.CONFIG, digits=800), pe.data.load("digits"), False, 0)

    def test_a_small_run_has_what_it_defines_and_draws(self, capsys):
        config = self.CONFIG.smoke()
        found = affine.run(config, pe.data.load("digits"))
        forms = {
            task: [s["form"] for s in found["summary"] if s["task"] == task] for task in affine.BLOBS + affine.DIGITS
        }
        assert all(forms[task] == list(affine.FORMS) for task in affine.BLOBS)
        assert all(forms[task] == ["loss, no bonus", "loss, bonus"] for task in affine.DIGITS)
        assert len(found["rows"]) == len(found["summary"])
        assert all(set(row) == set(affine.DEFINITIONS) for row in found["rows"])
        assert all(row["rotation"] == "no" and math.isfinite(row["objective"]) for row in found["rows"])
        figure = picture({**found, "config": config.as_dict()})
        assert [ax.get_title() for ax in figure.axes] == list(forms)
        assert "found 0 and" in capsys.readouterr().out

    FOUND = {
        ("distance", "ELBO, predictive"): "yes",
        ("distance", "ELBO, mean"): "no",
        ("distance", "loss, no bonus"): "no",
        ("distance", "loss, bonus"): "yes",
        ("turned", "loss, no bonus"): "no",
        ("turned", "loss, bonus"): "yes",
        ("upright", "loss, bonus"): "no",
    }

    @pytest.mark.slow
    @pytest.mark.parametrize("setting", FOUND)
    def test_rotation_is_found_with_an_occam_factor_only(self, setting):
        row = affine._one(self.CONFIG, pe.data.load("digits"), *setting, 0)
        assert (row["rotation"], row["translation"]) == (self.FOUND[setting], "no")
        assert row["accuracy"] > 0.9 and row["rotate"] <= LIMITS["rotate"] + 1e-9
