"""Generators, matrix groups, laws on them, and lists of elements: against closed forms and torch's own maps."""

import copy
import math
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro.infer import Trace_ELBO
from torch import nn

import pyro_equivariance as pe
from pyro_equivariance.measures import ElementList, LearnedMeasure, box_sample

SE = 4.5  # standard errors that a Monte Carlo estimate may be off


def turn(angle):
    return pe.SpecialOrthogonal(2).rotation(angle)


def tilts(width=0.5):
    return pe.LieBox(pe.Generators.so(2), width)


class Widths(LearnedMeasure):
    """A rotation whose width is learned, under a Normal prior on its logarithm."""

    names = ("rotate",)

    def __init__(self, width):
        super().__init__(pe.GeneralLinear(2))
        self.log_width = nn.Parameter(torch.tensor([math.log(width)]))

    def basis(self):
        return pe.Generators.so(2).basis

    def spread(self):
        return self.log_width.exp()

    def log_prior(self):
        return -self.log_width.square().sum()


class TestGenerators:
    NAMED = {
        "so(2)": lambda: pe.Generators.so(2),
        "so(3)": lambda: pe.Generators.so(3),
        "so(4)": lambda: pe.Generators.so(4),
        "boost": lambda: pe.Generators.lorentz(),
        "scale": lambda: pe.Generators.scale(3),
        "translations": lambda: pe.Generators.translations(3),
        "affine": lambda: pe.Generators.affine_plane(),
    }

    @pytest.mark.parametrize("name", NAMED)
    def test_named_ones_are_algebras(self, name):
        generators = self.NAMED[name]()
        assert generators.closure() == 0 and generators.angle(generators) < 1e-6
        assert generators == self.NAMED[name]() and hash(generators) == hash(self.NAMED[name]())

    @pytest.mark.parametrize("name", NAMED)
    def test_field_is_the_derivative_of_the_flow(self, name):
        generators = self.NAMED[name]()
        points, step = torch.randn(7, generators.n), 1e-6
        for i, velocity in enumerate(generators.field(points)):
            w = torch.zeros(len(generators))
            w[i] = step
            group = pe.Affine(generators.n) if generators.affine else pe.GeneralLinear(generators.n)
            forth, back = (pe.vector(group).act(generators.exp(s * w), points) for s in (1, -1))
            assert torch.allclose((forth - back) / (2 * step), velocity, atol=1e-8)

    def test_what_they_keep(self):
        w, p = torch.tensor([0.7]), torch.tensor([2.0, 0.5])
        t, x = pe.Generators.lorentz().exp(w) @ p
        assert torch.allclose(t**2 - x**2, p[0] ** 2 - p[1] ** 2)
        assert torch.allclose(pe.Generators.so(2).exp(w), turn(0.7))
        assert torch.allclose(pe.Generators.scale(2).exp(w), torch.eye(2) * math.exp(0.7))
        shift = pe.Generators.translations(2).exp(torch.tensor([3.0, -4.0]))
        assert shift.tolist() == [[1, 0, 3], [0, 1, -4], [0, 0, 1]]

    def test_angles_see_the_span_only(self):
        mix = torch.randn(3, 3)
        mixed = pe.Generators(torch.einsum("ij,jab->iab", mix, pe.Generators.so(3).basis))
        assert mixed.angle(pe.Generators.so(3)) < 1e-5
        assert mixed.closure() < 1e-10

    @pytest.mark.parametrize("off", [1e-7, 0.01, 0.3, 1.0])
    def test_angle_in_degrees(self, off):
        """A rotation with a part ``off`` of scaling: the two are orthogonal and of one length."""
        leaning = pe.Generators(pe.Generators.so(2).basis + off * pe.Generators.scale(2).basis)
        expected = math.degrees(math.atan(off))
        assert math.isclose(leaning.angle(pe.Generators.so(2)), expected, rel_tol=1e-6)
        assert math.isclose(pe.Generators.so(2).angle(leaning), expected, rel_tol=1e-6)

    def test_spans_of_different_dimension(self):
        all_of_it, one = pe.Generators.so(3), pe.Generators(pe.Generators.so(3).basis[1:2])
        assert all_of_it.angles(one).shape == (1,) and float(all_of_it.angles(one)) < 1e-6
        assert all_of_it.angle(one) == 90.0
        assert pe.Generators.affine_plane().angles(pe.Generators.so(2)).tolist() == pytest.approx([0], abs=1e-6)

    def test_angles_ascend(self):
        """Directions shared, leaning by ``atan 0.1`` and ``atan 3``, and orthogonal, in another basis of the span."""
        e = torch.eye(9).reshape(9, 3, 3)
        leaning = torch.stack([e[0], e[1] + 0.1 * e[4], e[2] + 3 * e[5], e[6]])
        mixed = pe.Generators(torch.einsum("ij,jab->iab", torch.randn(4, 4), leaning))
        expected = [0, math.degrees(math.atan(0.1)), math.degrees(math.atan(3)), 90]
        known = pe.Generators(e[[0, 1, 2, 3]])
        for angles in (known.angles(mixed), mixed.angles(known)):
            assert torch.allclose(angles, torch.tensor(expected), atol=1e-5)
        assert math.isclose(known.angle(mixed), 90)
        assert pe.Generators(e[:2]).angles(mixed).tolist() == pytest.approx(expected[:2], abs=1e-5)

    @pytest.mark.parametrize(("far", "known"), [(1, 0.3333), (10, 0.0098), (100, 0.0001)])
    def test_what_they_depend_on(self, far, known):
        """A rotation about ``(−far, 0)`` or ``(0, −far)`` looks the more like a shift, the further its centre."""
        plane = pe.Generators.affine_plane().basis
        pair = pe.Generators(torch.stack([plane[0], plane[2] + far * plane[1]]), affine=True)
        assert math.isclose(pair.closure(), 1 / (2 + far**2), rel_tol=1e-9)
        assert round(pair.closure(), 4) == known
        about = pe.Generators((plane[2] - far * plane[0])[None], affine=True)
        assert torch.allclose(about.field([0.0, -far]), torch.zeros(2))
        shift = pe.Generators.affine_plane().only("translate x")
        assert math.isclose(about.angle(shift), math.degrees(math.atan(math.sqrt(2) / far)), rel_tol=1e-9)

    def test_units(self):
        longer = pe.Generators([[[0.0, -10.0], [0.1, 0.0]]])
        assert abs(longer.angle(pe.Generators.so(2)) - 44) < 0.5

    def test_closure_of_two_rotations(self):
        """``[Q1, Q2] = Q3 / √2`` for so(3) with length one, whose bound is ``√2``."""
        two = pe.Generators(pe.Generators.so(3).basis[:2])
        assert math.isclose(two.closure(), 0.5)
        assert math.isclose(pe.Generators(torch.stack([two.basis.sum(0), two.basis[0]])).closure(), 0.5)

    def test_closure_of_one_pair_reaches_one(self):
        """``[stretch, shear]`` is twice the rotation, outside their span."""
        assert math.isclose(pe.Generators.affine_plane().only(["stretch", "shear"]).closure(), 1)

    def test_is_a_value(self):
        generators = pe.Generators.so(2)
        before = hash(generators)
        generators.basis.zero_()
        generators.basis[0, 0, 0] = 1.0
        assert generators == pe.Generators.so(2) and hash(generators) == before
        with pytest.raises(AttributeError):
            generators.basis = torch.zeros(1, 2, 2)

    def test_integers_and_lists(self):
        """Integers are points and coefficients too: velocities are not cut to them."""
        half = pe.Generators([[[0.5, -0.5], [0.5, 0.5]]])
        expected = half.field(torch.tensor([[1.0, 2.0]]))
        for points in (torch.tensor([[1, 2]]), [[1, 2]], np.array([[1, 2]])):
            assert torch.equal(half.field(points), expected)
        assert torch.equal(half.exp(torch.tensor([1])), half.exp(torch.tensor([1.0])))
        assert torch.equal(half.exp([1]), half.exp([1.0])) and half.field([[1, 2]]).dtype == torch.float64

    def test_dependent_ones_are_looked_at_and_not_compared(self):
        turn = pe.Generators.so(2).basis
        twice = pe.Generators.as_learned(torch.cat([turn, 2 * turn]), ["a", "b"])
        assert str(twice).endswith("b\n   0.00  -2.00\n   2.00   0.00") and repr(twice) == "Generators(a, b; n=2)"
        assert twice.field([1.0, 0.0]).tolist() == [[0, 1], [0, 2]]
        assert torch.allclose(twice.exp([1.0, 1.0]), pe.Generators.so(2).exp([3.0]))
        assert torch.allclose(twice.normalised().basis, turn.expand(2, 2, 2)) and twice.homogeneous().affine
        assert twice.only("b").angle(pe.Generators.so(2)) < 1e-6
        assert pe.Generators.as_learned(turn, ["rotate 1-2"]) == pe.Generators.so(2)
        one = pe.Generators.so(2)
        calls = (twice.closure, lambda: twice.angle(one), lambda: one.angle(twice), lambda: one.angles(twice),
                 lambda: pe.Generators.affine_plane().angle(twice))  # fmt: skip
        for call in calls:
            with pytest.raises(pe.SymmetryError, match=r"a, b have become dependent\. Learn fewer"):
                call()

    def test_normalised(self):
        generators = pe.Generators(torch.randn(2, 3, 3)).normalised()
        assert torch.allclose(generators.basis.flatten(1).norm(dim=1), torch.tensor(3.0).sqrt())
        assert torch.allclose(pe.Generators(5 * pe.Generators.so(2).basis).normalised().basis.abs().max(),
                              torch.tensor(1.0))  # fmt: skip

    def test_print_of_entries_in_other_units(self):
        turned = pe.Generators([[[1e-12, -0.0025], [1.0, 0.0]]])  # a rotation, x in units 20 times as large as y
        assert str(turned).split() == ["A1", "0.00", "-0.003", "1.00", "0.00"]

    def test_print(self):
        assert str(pe.Generators([[[-1e-9, 1.0], [10.0, 0]]], ["odd"])) == "odd\n   0.00   1.00\n  10.00   0.00"

    BAD = {
        "one matrix": (r"matrices \(C, m, m\); got shape \(2, 2\)", lambda: pe.Generators(torch.eye(2))),
        "no square": (r"got shape \(1, 2, 3\)", lambda: pe.Generators(torch.ones(1, 2, 3))),
        "affine of one row": (r"m at least 2; got shape \(1, 1, 1\)",
                              lambda: pe.Generators(torch.ones(1, 1, 1), affine=True)),
        "infinite": ("finite entries", lambda: pe.Generators([[[0.0, math.inf], [0.0, 0.0]]])),
        "last row": ("last row of zeros", lambda: pe.Generators(torch.ones(1, 3, 3), affine=True)),
        "dependent": ("linearly independent generators; the 2", lambda: pe.Generators(torch.ones(2, 2, 2))),
        "zero": ("linearly independent", lambda: pe.Generators(torch.zeros(1, 2, 2))),
        "too many": ("the 5 given span fewer", lambda: pe.Generators(torch.randn(5, 2, 2))),
        "names": ("1 different names", lambda: pe.Generators(torch.ones(1, 2, 2), ["a", "b"])),
        "twice a name": ("2 different names.*'a', 'a'", lambda: pe.Generators(torch.randn(2, 2, 2), ["a", "a"])),
        "unknown": ("names among .*shear; got 'twist'", lambda: pe.Generators.affine_plane().only(["twist"])),
        "other points": (r"move points of R\^2; got Generators\(rotate 1-2, .*n=3\)",
                         lambda: pe.Generators.so(2).angles(pe.Generators.so(3))),
        "points": (r"points \(\.\.\., 2\).*\(3,\)", lambda: pe.Generators.so(2).field(torch.ones(3))),
        "coefficients": (r"coefficients \(\.\.\., 1\)", lambda: pe.Generators.so(2).exp(torch.ones(3))),
        "no matrices": (r"matrices \(C, m, m\), a tensor or nested lists; got NoneType", lambda: pe.Generators(None)),
        "a word": (r"nested lists; got str", lambda: pe.Generators("abc")),
        "ragged": (r"nested lists; got list", lambda: pe.Generators([[[1.0, 2.0], [3.0]]])),
        "complex": ("of real numbers; got torch.complex", lambda: pe.Generators([[[0, 1j], [1j, 0]]])),
        "complex points": (r"points \(\.\.\., 2\) of real", lambda: pe.Generators.so(2).field([1j, 0])),
        "no points": (r"points .* got NoneType", lambda: pe.Generators.so(2).field(None)),
        "one number": (r"coefficients \(\.\.\., 1\).*got \(\)", lambda: pe.Generators.so(2).exp(1.0)),
        "no coefficients": (r"coefficients .* got str", lambda: pe.Generators.so(2).exp("w")),
        "rotations of a line": ("dimension of at least 2 for rotations; got 1", lambda: pe.Generators.so(1)),
        "below nothing": ("at least 2 for rotations; got -1", lambda: pe.Generators.so(-1)),
        "part of a plane": ("at least 2 for rotations; got 2.5", lambda: pe.Generators.so(2.5)),
        "scaling nothing": ("at least 1 for a scaling; got 0", lambda: pe.Generators.scale(0)),
        "shifting nothing": ("at least 1 for translations; got -2", lambda: pe.Generators.translations(-2)),
        "angle to a tensor": (r"move points of R\^2; got 3", lambda: pe.Generators.so(2).angle(3)),
        "angle of other points": (r"R\^1; got Generators\(.*n=3",
                                  lambda: pe.Generators.scale(1).angle(pe.Generators.so(3))),
        "one name of two": (r"2 different names.*\('ab',\)", lambda: pe.Generators(torch.randn(2, 2, 2), "ab")),
        "numbers for names": ("names of generators; got 5", lambda: pe.Generators(torch.ones(1, 2, 2), 5)),
        "unknown word": ("got 'twist'", lambda: pe.Generators.affine_plane().only("twist")),
    }  # fmt: skip

    @pytest.mark.parametrize("name", BAD)
    def test_bad_input(self, name):
        match, call = self.BAD[name]
        with pytest.raises(pe.SymmetryError, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)


def moves(n, affine):
    """Elements of the whole group, near the identity, ``(6, m, m)``."""
    g = torch.eye(n + affine) + 0.3 * torch.randn(6, n + affine, n + affine)
    if affine:
        g[:, -1] = torch.eye(n + 1)[-1]
    return g


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("affine", [False, True])
class TestMatrixGroups:
    def group(self, n, affine):
        return pe.Affine(n) if affine else pe.GeneralLinear(n)

    def test_homomorphism(self, n, affine):
        G, (g, h) = self.group(n, affine), (moves(n, affine), moves(n, affine))
        cloud = pe.trivial(G, (4,)) * pe.vector(G)
        for rep in (pe.vector(G), cloud, pe.vector(G) + pe.vector(G)):
            x = torch.randn(6, *rep.event_shape)
            assert torch.allclose(rep.act(g, rep.act(h, x)), rep.act(G.compose(g, h), x))
            assert torch.allclose(rep.act(G.inverse(g), rep.act(g, x)), x)
            assert torch.allclose(rep.act(G.identity, x), x)

    def test_dual_keeps_products(self, n, affine):
        G, g = self.group(n, affine), moves(n, affine)
        if affine:
            with pytest.raises(pe.SymmetryError, match="linear representation for a dual; points"):
                _ = pe.vector(G).dual
            return
        x, y = torch.randn(2, 6, n)
        moved = pe.vector(G).dual.act(g, y) * pe.vector(G).act(g, x)
        assert torch.allclose(moved.sum(-1), (x * y).sum(-1))
        assert pe.vector(G).dual.dual == pe.vector(G) != pe.vector(G).dual

    def test_log_det(self, n, affine):
        G, g = self.group(n, affine), moves(n, affine)
        if affine:
            with pytest.raises(pe.SymmetryError, match="linear representation for a matrix"):
                pe.vector(G).log_det(g)
            return
        expected = torch.linalg.slogdet(g).logabsdet
        assert torch.allclose(pe.vector(G).log_det(g), expected)
        assert torch.allclose((pe.trivial(G, (4,)) * pe.vector(G)).log_det(g), 4 * expected)
        assert torch.allclose(pe.vector(G).dual.log_det(g), -expected)


def test_log_det_of_finite_and_orthogonal_ones():
    swap = pe.matrix(pe.SymmetricGroup(2), [[[1.0, 0], [0, 1]], [[0, 4.0], [0.25, 0]]])
    assert swap.log_det(torch.tensor([0, 1, 1])).tolist() == [0, 0, 0]
    assert pe.vector(pe.SpecialOrthogonal(3)).log_det(pe.SpecialOrthogonal(3).sample((2, 5))).shape == (2, 5)


class TestImages:
    """Against torch's own affine grids, whose y axis points down."""

    def moved(self, g, x):
        down = torch.diag(torch.tensor([1.0, -1.0, 1.0]))
        back = down @ torch.linalg.inv(g) @ down
        return F.grid_sample(x, F.affine_grid(back[:, :2], x.shape, align_corners=False), align_corners=False)

    def test_affine(self):
        x, g = torch.randn(6, 2, 7, 7), moves(2, True)
        rep = pe.image(pe.Affine(2), (2, 7, 7), interpolation="bilinear")
        assert torch.allclose(rep.act(g, x), self.moved(g, x))

    def test_linear(self):
        x, g = torch.randn(6, 2, 8, 8), moves(2, False)
        rep = pe.image(pe.GeneralLinear(2), (2, 8, 8), interpolation="bilinear")
        assert torch.allclose(rep.act(g, x), self.moved(F.pad(g, (0, 1, 0, 1)) + torch.diag(torch.eye(3)[2]), x))

    def test_a_pixel_to_the_right_and_up(self):
        rep, x = pe.image(pe.Affine(2), (8, 8), interpolation="bilinear"), torch.randn(8, 8)
        shift = pe.Generators.translations(2).exp(torch.tensor([2 / 8, 2 / 8]))
        assert torch.allclose(rep.act(shift, x)[:-1, 1:], x[1:, :-1])

    def test_rotations_are_those_of_the_plane(self):
        x, g = torch.randn(3, 8, 8), turn(torch.tensor([0.3, 1.0, math.pi / 2]))
        whole, large = (pe.image(G, (8, 8), interpolation="bilinear") for G in (pe.SpecialOrthogonal(2), tilts()))
        assert torch.allclose(whole.act(g, x), large.act(g, x))
        assert torch.allclose(large.act(g[2], x), x.rot90(1, (1, 2)), atol=1e-10)

    def test_other_dimension(self):
        with pytest.raises(pe.SymmetryError, match=r"Affine\(2\), for images; got LieBox"):
            pe.image(pe.LieBox(pe.Generators.so(3), 1.0), (8, 8), interpolation="bilinear")


class TestLieBox:
    def test_mean_of_a_rotation(self):
        """``E[g] = (sin γ / γ) 1``, and every angle is within the width."""
        g = tilts(1.3).sample((20_000,))
        angles = torch.atan2(g[:, 1, 0], g[:, 0, 0])
        assert angles.abs().max() <= 1.3
        error = g.std(0) / len(g) ** 0.5
        off = g.mean(0) - math.sin(1.3) / 1.3 * torch.eye(2)
        assert bool((off.abs() <= SE * error + 1e-12).all())

    def test_shapes_and_width_zero(self):
        law = pe.LieBox(pe.Generators.affine_plane(), [0.2, 0, 0, 0, 0, 0])
        g = law.sample((4, 3))
        assert g.shape == (4, 3, 3, 3) and g.dtype == torch.float64
        assert torch.equal(g[..., :2, :2], torch.eye(2).expand(4, 3, 2, 2)) and bool((g[..., 0, 2] != 0).all())
        assert bool((g[..., 1, 2] == 0).all())

    def test_is_a_value(self):
        assert tilts(1.0) == tilts(1.0) != tilts(2.0) and hash(tilts()) == hash(tilts()) and tilts()
        assert repr(tilts(0.25)) == "LieBox(rotate 1-2 ± 0.25)"

    def test_draws_are_differentiable(self):
        basis, widths = torch.randn(2, 2, 2, requires_grad=True), torch.tensor([0.3, 0.6], requires_grad=True)

        def draw(basis, widths):
            torch.manual_seed(1)
            return box_sample(basis, widths, (3,))

        assert torch.autograd.gradcheck(draw, (basis, widths))

    BAD = {
        "negative": (r"widths between 0 and 20; got -1.0", lambda: tilts(-1)),
        "not a number": ("widths between", lambda: tilts(math.nan)),
        "enormous": ("widths between", lambda: tilts(30.0)),
        "two of one": (r"each of the 1 generators; got shape \(2,\)", lambda: tilts([1.0, 2.0])),
        "length": (r"LieBox\(rotate 1-2 ± 0.5\) is a law.*symmetry\.listed\(16\)", lambda: len(tilts())),
        "elements": ("has no list of elements", lambda: tilts().elements),
        "whole group": (r"measure to draw from: GeneralLinear\(2\).*LieBox", lambda: pe.GeneralLinear(2).sample()),
        "singular": ("invertible, finite matrices", lambda: pe.GeneralLinear(2).inverse(torch.ones(2, 2))),
        "no homogeneous one": (
            "last row 0, …, 0, 1",
            lambda: pe.Affine(1).as_elements(torch.tensor([[1.0, 2], [3, 4]])),
        ),
        "size": (r"matrices \(\.\.\., 3, 3\); got shape \(2, 2\)", lambda: pe.Affine(2).as_elements(torch.eye(2))),
    }

    @pytest.mark.parametrize("name", BAD)
    def test_bad_input(self, name):
        match, call = self.BAD[name]
        with pytest.raises(pe.SymmetryError, match=match):
            call()


class TestLists:
    def symmetry(self, law=None):
        law = law or tilts(2.0)
        return pe.Symmetry(law, {"z": pe.vector(law)}, inputs=pe.vector(law), outputs=pe.vector(law))

    def test_first_the_identity_then_what_was_drawn(self):
        torch.manual_seed(3)
        listed = self.symmetry().listed(4)
        torch.manual_seed(3)
        drawn = tilts(2.0).sample((4,))
        x = torch.randn(5, 2)
        assert listed.group.names == ("e", "g1", "g2", "g3", "g4") and len(listed.group) == 5
        expected = torch.cat([x[None], (drawn[:, None] @ x[..., None])[..., 0]])
        assert torch.allclose(listed.inputs.orbit(x), expected)
        assert torch.allclose(listed["z"].mean(x), expected.mean(0))
        assert len(self.symmetry().listed(4, identity=False).group) == 4

    def test_inverses(self):
        listed = self.symmetry(pe.LieBox(pe.Generators(torch.randn(2, 2, 2)), 0.4)).listed(4)
        g, x = listed.group.elements, torch.randn(5, 2)
        back = listed.group.inverse(g)
        assert torch.allclose(listed.inputs.act(back, listed.inputs.act(g, x)), x)
        assert torch.equal(listed.group.inverse(back), g)

    def test_of_a_finite_and_of_a_compact_group(self):
        D4 = pe.DihedralGroup(4)
        listed = pe.Symmetry(D4, {"k": pe.image(D4, (3, 3))}).listed(6)
        x = torch.randn(3, 3)
        expected = torch.stack([pe.image(D4, (3, 3)).act(g, x) for g in listed.group.drawn])
        assert torch.equal(listed["k"].orbit(x), expected)
        SO3 = pe.SpecialOrthogonal(3)
        assert pe.Symmetry(SO3, {"v": pe.vector(SO3)}).listed(2)["v"].is_orthogonal

    @pytest.mark.parametrize("rule", ["geometric", "arithmetic"])
    def test_average_is_the_mean_of_the_copies(self, rule):
        """Of the natural or the mean parameters of the copies moved one by one."""
        q = dist.MultivariateNormal(torch.tensor([1.0, 0.2]), torch.tensor([[0.5, 0.1], [0.1, 0.3]]))
        rep = self.symmetry(tilts(0.4)).listed(5)["z"]
        coordinates = pe.natural if rule == "geometric" else pe.mean
        copies = [coordinates(pe.push_forward(q, rep, g)) for g in range(6)]
        for found, parts in zip(coordinates(pe.average(q, rep, rule)), zip(*copies, strict=True), strict=True):
            assert torch.allclose(found, torch.stack(parts).mean(0))

    def test_predictions_and_the_defect(self):
        """The mean over the list of ``ρ_Y(g)⁻¹ f(ρ_X(g) x)``, for a linear network with known weights."""
        net = nn.Linear(2, 2)
        model = pe.BayesianNetwork(net, likelihood="normal")
        guide = pe.AutoMeanFieldNormal(model, init_scale=1e-12)
        x = torch.randn(7, 2)
        guide.initialize(x, x)
        listed = self.symmetry().listed(5)
        with torch.no_grad():
            copies = torch.stack([g.T @ net(x @ g.T).T for g in listed.group.drawn]).mT
        found = pe.predict(model, guide, x, draws=1, symmetry=listed)[0]
        assert torch.allclose(found, copies.mean(0), atol=1e-8)
        outputs = pe.orbit_predict(model, guide, listed, x, draws=3)
        defect = pe.metrics.equivariance_defect(outputs, action=listed.outputs)
        assert math.isclose(defect.value, float((copies - copies[0]).square().sum(-1).mean()), rel_tol=1e-6)

    def test_of_what_is_learned_takes_no_gradient(self):
        listed = self.symmetry(Widths(0.5)).listed(3)
        assert not listed.inputs.act(1, torch.ones(2)).requires_grad

    BAD = {
        "a list of a list": ("group or a measure, to draw from; got ElementList", lambda s: s.listed(3)),
        "no group": ("products of elements; ElementList", lambda s: s.group.compose(0, 1)),
        "table": (r"Use LieBox\(rotate", lambda s: s.group.table),
        "generators": ("is a list of some", lambda s: s.group.generators),
        "number": ("numbers of the 4 elements", lambda s: s.inputs.act(8, torch.ones(2))),
        "none": ("listed elements to be a positive integer; got 0", lambda s: pe.Symmetry(tilts(), {}).listed(0)),
        "one element": (r"list of elements of LieBox.*shape \(2, 2\)", lambda s: ElementList(tilts(), torch.eye(2))),
        "mixture": ("group or a measure, for an orbit mixture",
                    lambda s: pe.OrbitMixture(dist.Normal(torch.zeros(2), 1.0), s["z"])),
    }  # fmt: skip

    @pytest.mark.parametrize("name", BAD)
    def test_bad_input(self, name):
        match, call = self.BAD[name]
        with pytest.raises(pe.SymmetryError, match=match):
            call(self.symmetry().listed(3))


def linear_model():
    return pe.BayesianNetwork(nn.Linear(2, 1), likelihood="normal")


INVARIANT = {
    "guide": lambda s, m: pe.AutoSymmetricMultivariateNormal(m, s),
    "tied guide": lambda s, m: pe.AutoSymmetricNormal(m, s),
    "handler": lambda s, m: pe.handlers.symmetrize(pe.AutoMeanFieldNormal(m), s),
    "antithetic": lambda s, m: pe.handlers.antithetic(pe.AutoMeanFieldNormal(m), s),
    "one shot": lambda s, m: pe.symmetrize_(pe.AutoMeanFieldNormal(m), s),
    "lift": lambda s, m: pe.equivarify(nn.Linear(2, 1), s),
    "gradient": lambda s, m: pe.fit(m, pe.AutoMeanFieldNormal(m), torch.ones(2, 2), average_gradient=s),
    "certificate": lambda s, m: pe.certificate(pe.AutoMeanFieldNormal(m), s),
    "check": lambda s, m: pe.check_symmetry(m, s, torch.ones(2, 2)),
    "assumptions": lambda s, m: pe.check_assumptions(m, pe.AutoMeanFieldNormal(m), s, data=torch.ones(2, 2)),
    "canonical": lambda s, m: pe.canonicalize({"weight": torch.ones(3, 2)}, s),
}


@pytest.mark.parametrize("law", ["measure", "list"])
@pytest.mark.parametrize("name", INVARIANT)
def test_what_promises_invariance_refuses_them(name, law):
    symmetry = pe.Symmetry(tilts(), {"weight": pe.vector(tilts())}, inputs=pe.vector(tilts()))
    symmetry = symmetry if law == "measure" else symmetry.listed(3)
    with pytest.raises(pe.SymmetryError, match="uniform law, for what is to be invariant; got .*only smooth"):
        INVARIANT[name](symmetry, linear_model())


class TestOrbitMixture:
    """``θ = e^w z`` with ``z ~ N(1, 0.1²)`` and ``w`` uniform: the density is an integral over ``w``."""

    LAW = pe.LieBox(pe.Generators.scale(1), 0.8)

    def log_density(self, theta):
        w = torch.linspace(-0.8, 0.8, 2001)
        z = theta * torch.exp(-w)
        density = dist.Normal(1.0, 0.1).log_prob(z).exp() * torch.exp(-w)
        return (torch.trapezoid(density, w, dim=-1) / 1.6).log()

    def test_density(self):
        samples = 20_000
        q = pe.OrbitMixture(dist.Normal(torch.ones(1), 0.1).to_event(1), pe.vector(self.LAW), samples=samples)
        theta = q.rsample((40,))
        exact = self.log_density(theta)
        terms = q._log_q(pe.vector(self.LAW).act(self.LAW.inverse(q._some_elements(theta)), theta))
        error = terms.exp().std(0) / terms.exp().mean(0) / samples**0.5  # of the logarithm of the mean
        assert bool(((q.log_prob(theta) - exact).abs() <= SE * error + 0.01).all())

    def test_elbo_is_a_lower_bound(self):
        """On average the estimate of ``log q`` is above it, and falls towards it with more elements."""
        gaps = []
        for samples in (2, 16, 128):
            q = pe.OrbitMixture(dist.Normal(torch.ones(1), 0.1).to_event(1), pe.vector(self.LAW), samples=samples)
            theta = q.rsample((1000,))
            gap = q.log_prob(theta) - self.log_density(theta)
            gaps.append(float(gap.mean()))
            assert gap.mean() > -SE * gap.std() / 1000**0.5
        assert gaps[0] > gaps[1] > gaps[2]

    def test_gradient_reaches_a_learned_width(self):
        law = Widths(0.5)
        q = pe.OrbitMixture(dist.MultivariateNormal(torch.ones(2), torch.eye(2)), pe.vector(law))
        q.rsample((8,)).square()[:, 0].mean().backward()
        assert law.log_width.grad.abs() > 0

    @pytest.mark.parametrize("law, invariant", [(pe.SpecialOrthogonal(2), True), (tilts(), False)])
    def test_guide(self, law, invariant):
        def model():
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z.norm(), 0.1), obs=torch.tensor(1.0))

        guide = pe.AutoOrbitMixture(model, pe.Symmetry(law, {"z": pe.vector(law)}))
        assert guide.always_invariant is invariant
        assert math.isfinite(Trace_ELBO().loss(model, guide))


class TestAugment:
    def data(self):
        return torch.randn(6, 2), torch.randn(6, 1)

    def losses(self, symmetry, guide, model, repeats=1, **options):
        augmented = pe.handlers.augment(model, symmetry, **options)
        x, y = self.data_
        values = []
        for seed in range(repeats):
            torch.manual_seed(seed)
            values.append(Trace_ELBO().loss(augmented, guide, x, y))
        return torch.tensor(values)

    def setup_method(self):
        torch.manual_seed(0)
        self.data_ = self.data()

    def fixed(self, size=None):
        """A model at fixed weights: its loss is the negative log likelihood, but for a constant."""
        model = pe.BayesianNetwork(nn.Linear(2, 1), likelihood="normal", size=size)
        weights = {"weight": torch.tensor([[0.7, -1.2]]), "bias": torch.tensor([0.3])}

        def guide(x, y=None):
            for name, value in weights.items():
                pyro.sample(name, dist.Delta(value).to_event(value.ndim))

        return model, guide

    @pytest.mark.parametrize("size", [None, 60])
    @pytest.mark.parametrize("likelihood", ["mean", "predictive"])
    def test_weights_of_a_law_that_does_not_move(self, size, likelihood):
        """Every copy is the datum itself, so whatever the number of draws the loss is the plain one."""
        (model, guide), still = self.fixed(size), tilts(0.0)
        plain = Trace_ELBO().loss(model, guide, *self.data_)
        symmetry = pe.Symmetry(still, {}, inputs=pe.vector(still))
        for orbit in (1, 5):
            assert math.isclose(self.losses(symmetry, guide, model, orbit=orbit, likelihood=likelihood), plain)
        assert math.isclose(self.losses(symmetry, guide, model, orbit="random"), plain)

    def test_draws_of_a_finite_group_estimate_the_full_orbit(self):
        (model, guide), C4 = self.fixed(), pe.CyclicGroup(4)
        symmetry = pe.Symmetry(C4, {}, inputs=pe.vector(C4))
        full = {how: self.losses(symmetry, guide, model, likelihood=how) for how in ("mean", "sum", "predictive")}
        for how in ("mean", "sum"):
            drawn = self.losses(symmetry, guide, model, 400, orbit=3, likelihood=how)
            assert abs(drawn.mean() - full[how]) <= SE * drawn.std() / 20
        bounds = [self.losses(symmetry, guide, model, 200, orbit=k, likelihood="predictive") for k in (2, 8, 64)]
        means = [float(b.mean()) for b in bounds]
        assert means[0] > means[1] > means[2] > full["predictive"] - SE * bounds[2].std() / 200**0.5
        assert abs(means[2] - full["predictive"]) < 0.1 * abs(means[0] - full["predictive"])

    @pytest.mark.parametrize("size", [None, 60])
    def test_draws_inside_and_outside_the_logarithm(self, size):
        """Against the densities of the copies one by one, the mean over draws taken inside the logarithm or outside."""
        (model, guide), law, (x, y) = self.fixed(size), tilts(1.0), self.data_
        symmetry = pe.Symmetry(law, {}, inputs=pe.vector(law))
        found = {how: self.losses(symmetry, guide, model, orbit=5, likelihood=how) for how in ("mean", "predictive")}
        torch.manual_seed(0)  # as the losses were
        moved = (law.sample((5, 6)) @ x[..., None])[..., 0]
        means = (moved * torch.tensor([0.7, -1.2])).sum(-1, keepdim=True) + 0.3
        each = dist.Normal(means, 1.0).log_prob(y)[..., 0]
        expected = {"mean": each.mean(0), "predictive": each.logsumexp(0) - math.log(5)}
        prior = Trace_ELBO().loss(model, guide, x, y) + (size or 6) / 6 * float(dist.Normal(
            (x * torch.tensor([0.7, -1.2])).sum(-1, keepdim=True) + 0.3, 1.0).log_prob(y).sum())  # fmt: skip
        for how, values in expected.items():
            assert math.isclose(float(found[how]), prior - (size or 6) / 6 * float(values.sum()), rel_tol=1e-9)

    def test_a_list_is_a_full_orbit(self):
        (model, guide), law = self.fixed(), tilts(1.0)
        listed = pe.Symmetry(law, {}, inputs=pe.vector(law)).listed(3)
        x, y = self.data_
        each = [Trace_ELBO().loss(model, guide, x @ g.T, y) for g in listed.group.drawn]
        assert math.isclose(self.losses(listed, guide, model), sum(each) / 4)

    def test_a_learned_measure_is_part_of_the_model(self):
        """Its prior counts once, for one datum as for many draws, and SVI moves its parameters."""
        (model, guide), law = self.fixed(), Widths(0.5)
        symmetry = pe.Symmetry(law, {}, inputs=pe.vector(law))
        still = pe.Symmetry(law.fixed(), {}, inputs=pe.vector(law.fixed()))
        with_prior, without = (self.losses(s, guide, model, orbit=4) for s in (symmetry, still))
        assert math.isclose(float(with_prior - without), math.log(0.5) ** 2, rel_tol=1e-9)
        before = law.widths["rotate"]
        fitted = pe.AutoMeanFieldNormal(model)
        pe.fit(pe.handlers.augment(model, symmetry, orbit=4), fitted, self.data_, epochs=3, progress=False,
               validation=self.data_)  # fmt: skip
        assert law.widths["rotate"] != before and law.fixed().widths.item() == law.widths["rotate"]

    def test_two_learned_measures_do_not_share(self):
        assert Widths(0.5).param_name != Widths(0.5).param_name and Widths(0.5) != Widths(0.5)

    @pytest.mark.parametrize("way", [copy.deepcopy, lambda law: pickle.loads(pickle.dumps(law))])
    def test_copies_of_a_trained_measure_learn_by_themselves(self, way):
        (model, _), law = self.fixed(), Widths(0.5)
        guide = pe.AutoMeanFieldNormal(model)

        def learn(law):
            augmented = pe.handlers.augment(model, pe.Symmetry(law, {}, inputs=pe.vector(law)), orbit=2)
            pe.fit(augmented, guide, self.data_, epochs=2, progress=False)

        learn(law)
        again, width = way(law), law.widths["rotate"]
        assert again.widths == law.widths and again.param_name != law.param_name
        learn(again)
        assert again.widths["rotate"] != width == law.widths["rotate"]

    def test_what_it_learned_is_saved_with_a_guide_of_the_augmented_model(self, tmp_path):
        model, law, other = linear_model(), Widths(0.5), Widths(0.7)
        augmented, anew = (
            pe.handlers.augment(model, pe.Symmetry(law, {}, inputs=pe.vector(law)), orbit=2) for law in (law, other)
        )
        guide = pe.AutoMeanFieldNormal(augmented, init_loc_fn=model.init_loc_fn)
        pe.fit(augmented, guide, self.data_, epochs=2, progress=False)
        pe.save(tmp_path / "guide.pt", guide, self.data_)
        pe.load(tmp_path / "guide.pt", anew)
        assert other.widths == law.widths != {"rotate": 0.5}
        with pytest.raises(pe.DataError, match="learned measure of the same kind, .*got None"):
            pe.load(tmp_path / "guide.pt", model)

    def test_the_prior_counts_once_within_another_augmentation(self):
        (model, guide), law, C4 = self.fixed(), Widths(0.5), pe.CyclicGroup(4)
        turns = pe.Symmetry(C4, {}, inputs=pe.vector(C4))
        for how in ("mean", "sum"):
            losses = []
            for inner in (law, law.fixed()):
                symmetry = pe.Symmetry(inner, {}, inputs=pe.vector(inner))
                losses.append(self.losses(turns, guide, pe.handlers.augment(model, symmetry, orbit=2), likelihood=how))
            assert math.isclose(float(losses[0] - losses[1]), math.log(0.5) ** 2, rel_tol=1e-9)

    def test_a_measure_that_learns_nothing_is_no_part_of_the_model(self):
        (model, guide), law = self.fixed(), Widths(0.5).requires_grad_(False)
        self.losses(pe.Symmetry(law, {}, inputs=pe.vector(law)), guide, model, orbit=2)
        assert not [name for name in pyro.get_param_store() if "Widths" in name]

    def test_no_data(self):
        model, law = linear_model(), tilts()
        augmented = pe.handlers.augment(model, pe.Symmetry(law, {}, inputs=pe.vector(law)), orbit=2)
        with pytest.raises(pe.DataError, match="at least one datum to augment"):
            augmented(torch.zeros(0, 2))

    BAD = {
        "no draws": ("orbit, if it is a number of draws, to be a positive integer; got 0", {"orbit": 0}),
        "a word": ("orbit", {"orbit": "some"}),
        "one draw inside": ("number of draws such as orbit=8", {"orbit": "random", "likelihood": "predictive"}),
        "all of a law": ("a number of draws, such as orbit=8.*LieBox.*got 'full'", {"orbit": "full"}),
        "a sum over a law": ("likelihood='mean' or 'predictive'.*got 4 and 'sum'", {"orbit": 4, "likelihood": "sum"}),
    }

    @pytest.mark.parametrize("name", BAD)
    def test_bad_input(self, name):
        match, options = self.BAD[name]
        symmetry = pe.Symmetry(tilts(), {}, inputs=pe.vector(tilts()))
        with pytest.raises((pe.SymmetryError, pe.OptionError), match=match):
            pe.handlers.augment(linear_model(), symmetry, **options)
