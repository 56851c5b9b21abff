"""Laws of directions and of positive definite matrices: every formula against quadrature or another formula."""

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import special, stats
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

import pyro_equivariance as pe
from pyro_equivariance.errors import ClosednessError, SymmetryError
from pyro_equivariance.families import COORDINATES, orbit_mean
from pyro_equivariance.families import directional as d
from pyro_equivariance.families.base import rewrap, unwrap
from pyro_equivariance.families.wishart import DegreesOfFreedom, _gap
from pyro_equivariance.representations import Composed, Factor

EXACT = {"atol": 1e-12, "rtol": 1e-12}
SOLVED = {"atol": 1e-10, "rtol": 1e-10}
BESSEL = {"atol": 1e-6, "rtol": 1e-6}  # what dist.VonMises computes them to
CONCENTRATIONS = [1e-3, 0.1, 1.0, 7.0, 60.0, 1e3, 1e4]


def unit(*shape):
    x = torch.randn(*shape)
    return x / x.norm(dim=-1, keepdim=True)


def turns(group):
    """The group of a regular polygon on the angle of a point, as it moves the point itself."""
    n, g = group.n, group.elements
    shifts = (g % n) * (2 * math.pi / n)
    mirrored = g >= n
    return pe.angle(group, torch.where(mirrored, math.pi - shifts, shifts), torch.where(mirrored, -1.0, 1.0))


def half_turn():
    return pe.angle(pe.SymmetricGroup(2), [0.0, math.pi])


def shear_swap():
    return pe.matrix(pe.SignGroup(), [[[1.0, 0.0], [0.0, 1.0]], [[1.0, 2.0], [0.0, -1.0]]])


def scaled_swap():
    return pe.matrix(pe.SignGroup(), [[[1.0, 0.0], [0.0, 1.0]], [[0.0, 2.0], [0.5, 0.0]]])


def eighth_turns():
    return pe.vector(pe.CyclicGroup(8))


def antipodes(n):
    return pe.matrix(pe.SignGroup(), torch.stack([torch.eye(n), -torch.eye(n)]))


def both_factors():
    """A product of groups: one shifts the angles, the other permutes them."""
    group = pe.ProductGroup(pe.CyclicGroup(3), pe.SymmetricGroup(2))
    shift = Factor(group, turns(group.left) * pe.trivial(group.left, 2), 0)
    return Composed(shift, Factor(group, pe.permutation(group.right), 1))


ANGLES = {
    "turns": lambda: turns(pe.CyclicGroup(4)),
    "turns and mirrors": lambda: turns(pe.DihedralGroup(5)),
    "half turn and swap": lambda: half_turn() * pe.permutation(pe.SymmetricGroup(2)),
    "swap and half turn": lambda: pe.permutation(pe.SymmetricGroup(2)) * half_turn(),
    "sum": lambda: half_turn().reshape(1) + pe.permutation(pe.SymmetricGroup(2)),
    "pullback": lambda: half_turn().pullback(pe.CyclicGroup(4), torch.tensor([0, 1, 0, 1])),
    "factors": both_factors,
    "permutation": lambda: pe.permutation(pe.SymmetricGroup(3)),
    "signs": lambda: pe.vector(pe.SignGroup()),
    "signed turns": lambda: pe.vector(pe.CyclicGroup(4)),
    "trivial": lambda: pe.trivial(pe.CyclicGroup(4), (2, 3)),
    "nothing moves": lambda: turns(pe.CyclicGroup(1)),
}
NOT_ON_ANGLES = {
    "eighth turns": eighth_turns,
    "scales": scaled_swap,
    "half turn and shear": lambda: pe.angle(pe.SignGroup(), [0.0, math.pi]) * shear_swap(),
    "sum with a shear": lambda: pe.angle(pe.SignGroup(), [0.0, math.pi]).reshape(1) + shear_swap(),
}
ORTHOGONAL = {
    "plane": lambda: pe.vector(pe.DihedralGroup(5)),
    "eighth turns": eighth_turns,
    "space": lambda: pe.vector(pe.OctahedralGroup()),
    "permutation": lambda: pe.permutation(pe.SymmetricGroup(3)),
    "antipodes": lambda: antipodes(3),
    "image as a vector": lambda: pe.image(pe.CyclicGroup(4), (2, 2)).reshape(4),
}
NOT_ORTHOGONAL = {
    "scales": scaled_swap,
    "shear": shear_swap,
    "angles": lambda: half_turn().reshape(1) + half_turn().reshape(1),
    "two axes": lambda: pe.image(pe.CyclicGroup(4), (2, 2)),
}


def square(make):
    return lambda: make() * make()


CONGRUENCES = {
    "turns": square(lambda: pe.vector(pe.CyclicGroup(4))),
    "mirrors": square(lambda: pe.vector(pe.DihedralGroup(3))),
    "permutations": square(lambda: pe.permutation(pe.SymmetricGroup(3))),
    "scales": square(scaled_swap),
    "shear": square(shear_swap),
    "trivial": lambda: pe.trivial(pe.SignGroup(), (2, 2)),
    "half turn of a square": lambda: pe.image(pe.CyclicGroup(2), (3, 3)),
}
NOT_CONGRUENCES = {
    "image": lambda: pe.image(pe.CyclicGroup(4), (2, 2)),
    "rows only": lambda: scaled_swap() * pe.trivial(pe.SignGroup(), 2),
    "negated": lambda: antipodes(2) * pe.trivial(pe.SignGroup(), 2),
    "not square": lambda: pe.permutation(pe.SymmetricGroup(2)) * pe.permutation(pe.SymmetricGroup(2), [[0], [0]]),
    "one axis": eighth_turns,
    "grid": lambda: pe.permutation(pe.SymmetricGroup(4)).reshape((2, 2)),
}


def von_mises(rep, batch=()):
    shape = (*batch, *rep.event_shape)
    return dist.VonMises(4 * torch.rand(shape) - 2, 0.2 + 3 * torch.rand(shape)).to_event(len(rep.event_shape))


def fisher(rep, batch=()):
    return pe.VonMisesFisher(unit(*batch, *rep.event_shape), 0.2 + 3 * torch.rand(batch))


def wishart(rep, batch=()):
    n = rep.event_shape[0]
    root = torch.randn(*batch, n, n)
    return dist.Wishart(n + 1 + torch.rand(batch), root @ root.mT + torch.eye(n))


CASES = {
    f"{name}, {case}{', batch' if batch else ''}": (make, rep, batch)
    for name, make, reps in [("von Mises", von_mises, ANGLES), ("Fisher", fisher, ORTHOGONAL),
                             ("Wishart", wishart, CONGRUENCES)]
    for case, rep in reps.items() if case not in ("space", "trivial", "signs", "swap and half turn", "sum")
    for batch in [(3,) if case in ("turns", "half turn and swap", "plane", "mirrors") else ()]
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request):
    """Two laws of one family, and what moves them."""
    make, rep, batch = CASES[request.param]
    rep = rep()
    return make(rep, batch), make(rep, batch), rep


def some_elements(rep):
    n = len(rep.group)
    return sorted({n // 3, n // 2, n - 1})


def draw(q, count=4):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Singular sample detected")  # torch warns of those that are not
        return q.sample((count,))


def natural(q):
    """η of the whole batch as one vector, which tells laws of one family apart."""
    return torch.cat([t.flatten() for t in pe.natural(q)])


def pairing(eta, statistics, batch):
    """``⟨η, T⟩`` for each member of the batch."""
    return sum((e * t).flatten(t.ndim - e.ndim + batch).sum(-1) if e.ndim > batch else e * t
               for e, t in zip(eta, statistics, strict=True))  # fmt: skip


def exact_log_prob(q, theta):
    """Of the core distribution; for von Mises with Bessel functions exact to rounding."""
    if not isinstance(q, dist.VonMises):
        return q.log_prob(theta)
    kappa = q.concentration
    return kappa * ((theta - q.loc).cos() - 1) - (2 * math.pi * torch.special.i0e(kappa)).log()


class TestCoordinates:
    @pytest.mark.parametrize("kind", COORDINATES)
    def test_round_trip(self, case, kind):
        q = case[0]
        family, core, event_dims = unwrap(q)
        again = rewrap(family.from_coordinates(kind, family.coordinates(core, kind)), event_dims)
        assert (again.batch_shape, again.event_shape, type(again)) == (q.batch_shape, q.event_shape, type(q))
        assert_close(natural(again), natural(q), **SOLVED)
        for first, second in zip(
            family.coordinates(unwrap(again)[1], kind), family.coordinates(core, kind), strict=True
        ):
            assert_close(first, second, **SOLVED)

    def test_mean_is_the_gradient_of_the_log_normaliser(self, case):
        family, core, _ = unwrap(case[0])
        eta = tuple(t.detach().requires_grad_() for t in family.coordinates(core, "natural"))
        value = family.log_normalizer(eta)
        assert value.shape == core.batch_shape
        for found, expected in zip(
            torch.autograd.grad(value.sum(), eta), family.coordinates(core, "mean"), strict=True
        ):
            assert_close(found, expected, **SOLVED)

    def test_density_is_that_of_an_exponential_family(self, case):
        family, core, _ = unwrap(case[0])
        theta, eta = draw(core), family.coordinates(core, "natural")
        inner = pairing(eta, family.sufficient_statistics(theta), len(core.batch_shape))
        found = family.log_base_measure(theta) + inner - family.log_normalizer(eta)
        assert_close(found, exact_log_prob(core, theta), **SOLVED)
        assert_close(found, core.log_prob(theta), **BESSEL)

    def test_gradients_of_every_conversion(self, case):
        """To the mean parameters and back is the identity, so its derivative is too."""
        family, core, _ = unwrap(case[0])
        eta = tuple(t.detach().requires_grad_() for t in family.coordinates(core, "natural"))
        means = family.coordinates(family.from_coordinates("natural", eta), "mean")
        again = family.coordinates(family.from_coordinates("mean", means), "natural")
        weights = [torch.randn_like(t) for t in eta]
        weights = [w + w.mT if isinstance(core, dist.Wishart) and w.ndim > core.df.ndim else w for w in weights]
        gradient = torch.autograd.grad(sum((w * t).sum() for w, t in zip(weights, again, strict=True)), eta)
        for found, expected in zip(gradient, weights, strict=True):
            assert_close(found, expected, atol=1e-8, rtol=1e-8)


class TestPushForward:
    def test_density_of_moved_draws(self, case):
        q, _, rep = case
        theta = draw(q)
        for g in some_elements(rep):
            moved = pe.push_forward(q, rep, g)
            assert (moved.batch_shape, moved.event_shape) == (q.batch_shape, q.event_shape)
            there = exact_log_prob(unwrap(moved)[1], rep.act(g, theta)).reshape(4, -1)
            here = exact_log_prob(unwrap(q)[1], theta).reshape(4, -1)
            batch = q.batch_shape.numel()
            assert_close(there.reshape(4, batch, -1).sum(-1), here.reshape(4, batch, -1).sum(-1), **SOLVED)

    def test_homomorphism(self, case):
        q, _, rep = case
        for g in some_elements(rep):
            for h in some_elements(rep):
                twice = pe.push_forward(pe.push_forward(q, rep, h), rep, g)
                once = pe.push_forward(q, rep, int(rep.group.compose(torch.tensor(g), torch.tensor(h))))
                assert_close(natural(twice), natural(once), **SOLVED)

    def test_elements_broadcast(self, case):
        q, _, rep = case
        axes = len(q.batch_shape + q.event_shape) - len(rep.event_shape)
        moved = pe.push_forward(q, rep, rep.group.elements.reshape(-1, *[1] * axes))
        assert moved.batch_shape == (len(rep.group), *q.batch_shape)
        for g in some_elements(rep):
            for all_of_them, one in zip(pe.natural(moved), pe.natural(pe.push_forward(q, rep, g)), strict=True):
                assert_close(all_of_them[g], one, **SOLVED)

    def test_continuous_groups(self):
        rep = pe.vector(pe.SpecialOrthogonal(3))
        q, g = fisher(rep), rep.group.sample(())
        assert_close(pe.push_forward(q, rep, g).mean, g @ q.mean, **SOLVED)


def divergence(family, eta, other):
    """``KL(η ‖ η')`` from the log normaliser alone."""
    eta = tuple(t if t.requires_grad else t.detach().requires_grad_() for t in eta)
    value = family.log_normalizer(eta).sum()
    means = torch.autograd.grad(value, eta, create_graph=True)
    inner = sum(((a - b) * m).sum() for a, b, m in zip(eta, other, means, strict=True))
    return inner - value + family.log_normalizer(other).sum()


class TestDivergence:
    def test_is_that_of_the_exponential_family(self, case):
        q, p, rep = case
        family = unwrap(q)[0]
        expected = divergence(family, pe.natural(q), pe.natural(p))
        assert_close(pe.kl(q, p), expected.detach(), **SOLVED)
        assert pe.kl(q, q).abs() < 1e-12 and (pe.kl(q, p) > 1e-3)
        for g in some_elements(rep):
            assert_close(pe.kl(pe.push_forward(q, rep, g), pe.push_forward(p, rep, g)), pe.kl(q, p), **SOLVED)

    def test_by_quadrature(self):
        q, p = (dist.VonMises(torch.tensor(m), torch.tensor(k)) for m, k in [(0.3, 2.0), (-1.0, 5.0)])
        theta = torch.linspace(-math.pi, math.pi, 2001)[:-1]
        log_q, log_p = exact_log_prob(q, theta), exact_log_prob(p, theta)
        assert_close(pe.kl(q, p), (log_q.exp() * (log_q - log_p)).mean() * 2 * math.pi, **SOLVED)

    @pytest.mark.parametrize("name", ["von Mises, pullback", "Fisher, permutation", "Wishart, scales"])
    def test_gradients_reach_both(self, name):
        make, rep, _ = CASES[name]
        q, p = make(rep()), make(rep())
        family = unwrap(q)[0]
        eta = [tuple(t.detach().requires_grad_() for t in pe.natural(x)) for x in (q, p)]
        laws = [family.from_coordinates("natural", e) for e in eta]
        found = torch.autograd.grad(pe.kl(*laws), eta[0] + eta[1])
        expected = torch.autograd.grad(divergence(family, *eta), eta[0] + eta[1])
        for first, second in zip(found, expected, strict=True):
            assert_close(first, second, atol=1e-8, rtol=1e-8)


class TestAverages:
    @pytest.mark.parametrize("kind", COORDINATES)
    def test_laws(self, case, kind):
        q, _, rep = case
        average = orbit_mean(q, rep, kind)
        assert (average.batch_shape, average.event_shape, type(average)) == (q.batch_shape, q.event_shape, type(q))
        for g in some_elements(rep):
            assert_close(natural(pe.push_forward(average, rep, g)), natural(average), **SOLVED)
            assert_close(natural(orbit_mean(pe.push_forward(q, rep, g), rep, kind)), natural(average), **SOLVED)
        for other in COORDINATES:  # the identity on what is invariant
            assert_close(natural(orbit_mean(average, rep, other)), natural(average), **SOLVED)

    @pytest.mark.parametrize("kind", ["natural", "mean"])
    def test_is_stationary(self, case, kind):
        """``geometric`` for ``mean_g KL(p ‖ ρ(g)_# q)``, ``arithmetic`` for ``mean_g KL(ρ(g)_# q ‖ p)``."""
        q, other, rep = case
        family, copies = unwrap(q)[0], [pe.natural(pe.push_forward(q, rep, g)) for g in range(len(rep.group))]

        def slope(law):
            eta = tuple(t.detach().requires_grad_() for t in pe.natural(law))
            pairs = [(eta, c) if kind == "natural" else (c, eta) for c in copies]
            total = sum(divergence(family, *pair) for pair in pairs) / len(pairs)
            return torch.cat([t.flatten() for t in torch.autograd.grad(total, eta)]).abs().max()

        assert slope(orbit_mean(q, rep, kind)) < 1e-10
        assert slope(other) > 1e-2

    @pytest.mark.parametrize("kind", COORDINATES)
    def test_is_uniform_where_directions_cancel(self, kind):
        q = orbit_mean(fisher(antipodes(3), (2,)), antipodes(3), kind)
        assert q.concentration.max() < 1e-12
        assert_close(q.log_prob(unit(5, 2, 3)), torch.full((5, 2), -math.log(4 * math.pi)), **EXACT)
        assert q.sample((4,)).shape == (4, 2, 3)
        rep = pe.angle(pe.SignGroup(), [0.0, math.pi])
        q = orbit_mean(von_mises(rep, (2,)), rep, kind)
        assert q.concentration.max() < 1e-12 and q.concentration.min() > 0
        assert_close(q.log_prob(torch.randn(5, 2)), torch.full((5, 2), -math.log(2 * math.pi)), **BESSEL)
        assert q.sample((4,)).shape == (4, 2)

    @pytest.mark.parametrize("kind", COORDINATES)
    def test_gradients_are_finite_where_directions_cancel(self, kind):
        direction, kappa = unit(3).requires_grad_(), torch.tensor(2.0, requires_grad=True)
        q = orbit_mean(pe.VonMisesFisher(direction, kappa), antipodes(3), kind)
        for gradient in torch.autograd.grad(q.log_prob(unit(3)) + q.mean.sum(), (direction, kappa)):
            assert gradient.isfinite().all()

    @pytest.mark.parametrize("name", ["von Mises, turns, batch", "Fisher, plane, batch", "Wishart, mirrors, batch"])
    @pytest.mark.parametrize(
        "rule, kind", [("geometric", "natural"), ("arithmetic", "mean"), ("projection", "standard")]
    )
    def test_by_the_name_of_the_rule(self, name, rule, kind):
        make, rep, batch = CASES[name]
        q, rep = make(rep(), batch), rep()
        assert_close(natural(pe.average(q, rep, rule)), natural(orbit_mean(q, rep, kind)), **EXACT)
        even = torch.full((len(rep.group),), 1 / len(rep.group))
        assert_close(natural(pe.average(q, rep, rule, measure=even)), natural(orbit_mean(q, rep, kind)), **SOLVED)
        only = torch.eye(len(rep.group))[1]
        assert_close(natural(pe.average(q, rep, rule, measure=only)), natural(pe.push_forward(q, rep, 1)), **SOLVED)

    def test_the_uniform_law_of_an_angle(self):
        """With the smallest positive concentration, for ``dist.VonMises`` allows no 0 and hangs at it."""
        natural = (torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True))
        q = unwrap(dist.VonMises(0.0, 1.0))[0].from_coordinates("natural", natural)
        assert 0 < q.concentration.max() < 1e-300 and q.sample((4,)).shape == (4, 2)
        for gradient in torch.autograd.grad(q.log_prob(torch.ones(2)).sum(), natural):
            assert gradient.isfinite().all()

    def test_warns_where_directions_cancel(self):
        with pytest.warns(pe.WideOrbitWarning):
            pe.average(pe.VonMisesFisher(unit(3), 100.0), antipodes(3))

    def test_projection_by_hand(self):
        """The direction of the mean unit vector, and the mean concentration times its length."""
        rep = half_turn() * pe.permutation(pe.SymmetricGroup(2))
        q = orbit_mean(dist.VonMises(torch.tensor([0.0, math.pi / 2]), torch.tensor([1.0, 3.0])).to_event(1), rep,
                       "standard").base_dist  # fmt: skip
        assert_close(q.loc, torch.tensor([-math.pi / 4, 3 * math.pi / 4]), **EXACT)
        assert_close(q.concentration, torch.full((2,), 2 * math.sqrt(0.5)), **EXACT)
        f = orbit_mean(
            pe.VonMisesFisher(torch.tensor([0.6, 0.8]), 2.0), pe.permutation(pe.SymmetricGroup(2)), "standard"
        )
        assert_close(f.mean_direction, torch.full((2,), math.sqrt(0.5)), **EXACT)
        assert_close(f.concentration, torch.tensor(2 * 0.7 * math.sqrt(2)), **EXACT)
        w = dist.Wishart(torch.tensor(5.0), torch.diag(torch.tensor([1.0, 4.0])))
        w = orbit_mean(w, square(lambda: pe.permutation(pe.SymmetricGroup(2)))(), "standard")
        assert_close(w.covariance_matrix, 2.5 * torch.eye(2), **EXACT)
        assert_close(w.df, torch.tensor(5.0), **EXACT)


def is_in_span(statistics, theta, rep):
    """Whether ``T(ρ(g)⁻¹ θ)`` is an affine function of ``T(θ)``, by least squares on random points."""
    features = torch.cat([torch.ones(len(theta), 1), statistics(theta)], 1)
    for g in rep.group.generators:
        moved = statistics(rep.act(int(rep.group.inverse(g)), theta))
        if not moved.isfinite().all():
            return False
        residual = moved - features @ torch.linalg.lstsq(features, moved, driver="gelsd").solution
        if not residual.abs().max() < 1e-8:
            return False
    return True


def circular(theta):
    theta = theta.reshape(len(theta), -1)
    return torch.cat([theta.cos(), theta.sin()], 1)


def on_the_sphere(theta):
    """T, and no number off the sphere."""
    theta = theta.flatten(1)
    return torch.where((theta.norm(dim=1, keepdim=True) - 1).abs() < 1e-8, theta, torch.nan)


def of_matrices(theta):
    """T, and no number for matrices that are not symmetric or not positive definite."""
    inside = (theta - theta.mT).abs().amax((1, 2)) < 1e-8
    inside = inside & (torch.linalg.eigvalsh(theta).amin(-1) > 0)
    return torch.where(
        inside[:, None], torch.cat([theta.flatten(1), torch.linalg.slogdet(theta)[1][:, None]], 1), torch.nan
    )


class TestClosedness:
    @pytest.mark.parametrize("name", list(ANGLES) + list(NOT_ON_ANGLES))
    def test_von_mises_against_the_oracle(self, name):
        rep = (ANGLES | NOT_ON_ANGLES)[name]()
        closed = is_in_span(circular, 6 * torch.rand(80, *rep.event_shape) - 3, rep)
        assert pe.is_closed(von_mises(rep), rep) == closed == (name in ANGLES)

    @pytest.mark.parametrize("name", list(ORTHOGONAL) + list(NOT_ORTHOGONAL))
    def test_von_mises_fisher_against_the_oracle(self, name):
        rep = (ORTHOGONAL | NOT_ORTHOGONAL)[name]()
        n = rep.event_shape.numel()
        closed = is_in_span(on_the_sphere, unit(80, n).reshape(80, *rep.event_shape), rep) and len(rep.event_shape) == 1
        assert pe.is_closed(pe.VonMisesFisher(unit(n), 1.0), rep) == closed == (name in ORTHOGONAL)

    @pytest.mark.parametrize("name", list(CONGRUENCES) + list(NOT_CONGRUENCES))
    def test_wishart_against_the_oracle(self, name):
        rep = (CONGRUENCES | NOT_CONGRUENCES)[name]()
        shape = rep.event_shape
        closed = False
        if len(shape) == 2 and shape[0] == shape[1]:
            root = torch.randn(80, *shape)
            closed = is_in_span(of_matrices, root @ root.mT + torch.eye(shape[0]), rep)
        q = dist.Wishart(torch.tensor(4.0), torch.eye(3))
        assert pe.is_closed(q, rep) == closed == (name in CONGRUENCES)

    @pytest.mark.parametrize("q, rep, message", [
        (dist.VonMises(torch.zeros(2), torch.ones(2)), eighth_turns(), "keeps a von Mises law; .*such as pe.angle"),
        (pe.VonMisesFisher(torch.tensor([1.0, 0.0]), 1.0), scaled_swap(), "keeps a von Mises–Fisher.*orthogonal"),
        (dist.Wishart(torch.tensor(4.0), torch.eye(2)), pe.image(pe.CyclicGroup(4), (2, 2)), r"a Wishart.*r \* r"),
    ], ids=["von Mises", "Fisher", "Wishart"])  # fmt: skip
    def test_others_are_refused(self, q, rep, message):
        with pytest.raises(ClosednessError, match=message):
            pe.push_forward(q, rep, 1)

    def test_congruences_under_continuous_groups(self):
        rotation = pe.vector(pe.SpecialOrthogonal(3))
        q = dist.Wishart(torch.tensor(4.0), torch.eye(3))
        assert pe.is_closed(q, rotation * rotation)
        assert not pe.is_closed(q, rotation * pe.trivial(rotation.group, 3))


class TestBessel:
    @pytest.mark.parametrize("dim", [2, 3, 4, 9, 40, 90, 400])
    def test_against_scipy(self, dim):
        kappa = torch.tensor(CONCENTRATIONS)
        order = dim / 2 - 1
        scaled = torch.from_numpy(special.ive(order, kappa.numpy()))
        known = scaled > 1e-290  # scipy's underflow for large orders
        assert known.any()
        expected = scaled.log() + kappa - order * kappa.log() + dim / 2 * math.log(2 * math.pi)
        assert_close(d.log_normalizer(kappa**2, dim)[known], expected[known], **SOLVED)
        ratio = torch.from_numpy(special.ive(order + 1, kappa.numpy())) / scaled / kappa
        assert_close(d.bessel_ratio(kappa**2, dim)[known], ratio[known], atol=0, rtol=1e-11)

    def test_on_the_circle(self):
        kappa = torch.tensor(CONCENTRATIONS)
        i0, i1 = torch.special.i0e(kappa), torch.special.i1e(kappa)
        assert_close(d.log_normalizer(kappa**2, 2), (2 * math.pi * i0).log() + kappa, **EXACT)
        assert_close(d.bessel_ratio(kappa**2, 2), i1 / i0 / kappa, atol=0, rtol=1e-12)

    @pytest.mark.parametrize("dim", [2, 3, 10, 500])
    def test_at_zero(self, dim):
        surface = math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)
        assert_close(d.log_normalizer(torch.tensor(0.0), dim), torch.tensor(surface), **SOLVED)
        assert_close(d.bessel_ratio(torch.tensor(0.0), dim), torch.tensor(1 / dim), **EXACT)
        assert d.InverseResultant.apply(torch.tensor(0.0), dim) == 0

    @pytest.mark.parametrize("dim", [2, 3, 10, 100])
    def test_inverse(self, dim):
        kappa = torch.tensor(CONCENTRATIONS)
        resultant = kappa * d.bessel_ratio(kappa**2, dim)
        found = d.InverseResultant.apply(resultant**2, dim).sqrt()
        assert_close(found, kappa, atol=0, rtol=1e-10)
        assert_close(found * d.bessel_ratio(found**2, dim), resultant, **EXACT)

    @pytest.mark.parametrize("dim", [2, 5])
    def test_derivatives(self, dim):
        t = torch.tensor([0.0, 0.4, 9.0, 400.0], requires_grad=True)
        inner = torch.tensor([0.4, 9.0, 400.0], requires_grad=True)
        u = torch.tensor([0.01, 0.3, 0.9], requires_grad=True)
        for f, x, y in [(d.log_normalizer, t, inner), (d.bessel_ratio, t, inner), (d.InverseResultant.apply, u, u)]:
            gradient = torch.autograd.grad(f(y, dim).sum(), y)[0]
            step = 1e-5 * y.detach()
            assert_close(gradient, (f(y + step, dim) - f(y - step, dim)).detach() / (2 * step), rtol=1e-6, atol=1e-9)
            assert gradgradcheck(lambda v, f=f: f(v, dim), (y,))
            assert torch.autograd.grad(f(x, dim).sum(), x)[0].isfinite().all()

    def test_under_vmap(self):
        t = torch.rand(4) * 9
        slopes = torch.func.vmap(torch.func.grad(lambda x: d.log_normalizer(x, 3)))(t)
        assert_close(slopes, d.bessel_ratio(t, 3) / 2, **EXACT)

    @pytest.mark.parametrize("n", [1, 2, 5])
    def test_degrees_of_freedom(self, n):
        df = n - 1 + torch.tensor([1e-3, 0.1, 1.0, 30.0, 1e4])
        assert_close(DegreesOfFreedom.apply(_gap(df, n), n), df, atol=0, rtol=1e-9)
        gap = _gap(df[1:4], n).requires_grad_()
        assert gradcheck(lambda x: DegreesOfFreedom.apply(x, n), (gap,))


class TestVonMisesFisher:
    def test_density_on_the_circle_is_von_mises(self):
        loc, theta = torch.tensor(0.7), 6 * torch.rand(9) - 3
        for kappa in CONCENTRATIONS:
            q = pe.VonMisesFisher(torch.stack([loc.cos(), loc.sin()]), kappa)
            expected = exact_log_prob(dist.VonMises(loc, torch.tensor(kappa)), theta)
            assert_close(q.log_prob(torch.stack([theta.cos(), theta.sin()], -1)), expected, **SOLVED)

    @pytest.mark.parametrize("dim", [2, 3, 6])
    @pytest.mark.parametrize("kappa", [0.0, 0.5, 20.0, 300.0])
    def test_density_integrates_to_one(self, dim, kappa):
        """Over the angle to a fixed axis and, on the sphere of space, over the turn around it."""
        q = pe.VonMisesFisher(unit(dim), kappa)
        nodes, weights = special.roots_legendre(400)
        angle = torch.from_numpy(nodes + 1) * math.pi / 2
        weights = torch.from_numpy(weights) * math.pi / 2
        if dim == 3:
            turn = torch.arange(400) * (2 * math.pi / 400)
            rings = angle.sin()[:, None, None] * torch.stack([turn.cos(), turn.sin()], -1)
            points = torch.cat([rings, angle.cos()[:, None, None].expand(-1, 400, 1)], -1)
            total = (weights * angle.sin()) @ q.log_prob(points).exp().mean(1) * 2 * math.pi
        else:  # around the mean direction itself, where only the angle to it matters
            across = unit(dim)
            across = across - (across @ q.mean_direction) * q.mean_direction
            points = angle.cos()[:, None] * q.mean_direction + angle.sin()[:, None] * across / across.norm()
            rim = 2 * math.pi ** ((dim - 1) / 2) / math.gamma((dim - 1) / 2)
            total = (weights * angle.sin() ** (dim - 2)) @ q.log_prob(points).exp() * rim
        assert_close(total, torch.tensor(1.0), **SOLVED)

    @pytest.mark.parametrize("dim, kappa", [(2, 0.0), (2, 3.0), (3, 1.0), (3, 1e4), (5, 10.0), (40, 15.0)])
    def test_moments_of_draws(self, dim, kappa):
        q, n = pe.VonMisesFisher(unit(dim), kappa), 20_000
        draws = q.sample((n,))
        assert_close(draws.norm(dim=-1), torch.ones(n), **EXACT)
        assert ((draws.mean(0) - q.mean).abs() < 5 * (q.variance / n).sqrt()).all()
        squares = (draws - q.mean) ** 2
        assert ((squares.mean(0) - q.variance).abs() < 5 * squares.std(0) / n**0.5).all()
        surprise = -q.log_prob(draws)
        assert (surprise.mean() - q.entropy()).abs() <= 5 * surprise.std() / n**0.5 + 1e-12

    @pytest.mark.parametrize("dim, kappa", [(2, 0.0), (2, 2.0), (2, 1e4), (3, 1e-3), (3, 8.0), (6, 4.0), (30, 1e3)])
    def test_law_of_the_angle(self, dim, kappa):
        """Kolmogorov and Smirnov's test against the distribution function by quadrature."""
        direction = unit(dim)
        draws = pe.VonMisesFisher(direction, kappa).sample((4000,))
        angle = 2 * ((draws - direction).norm(dim=-1) / 2).asin()
        grid, density = angle_density(dim, kappa)
        cdf = torch.cat([torch.zeros(1), torch.cumulative_trapezoid(density, grid)])
        assert stats.kstest(angle.numpy(), lambda a: np.interp(a, grid, cdf / cdf[-1])).pvalue > 1e-4

    @pytest.mark.parametrize("dim", [2, 3, 4, 12, 60])
    @pytest.mark.parametrize("kappa", [0.0, 1e-3, 0.8, 25.0, 1e4])
    def test_derivative_of_the_angle(self, dim, kappa):
        """``−(∂F/∂κ) / f``, both by sums over a fine grid."""
        kappas = torch.full((5,), kappa)
        angles = d.draw_angles(kappas, dim)
        found = d.angle_derivative(kappas, angles, dim)
        resultant = kappa * float(d.bessel_ratio(torch.tensor(kappa) ** 2, dim))
        for angle, derivative in zip(angles, found, strict=True):
            grid, density = angle_density(dim, kappa, float(angle))
            expected = -torch.trapezoid((grid.cos() - resultant) * density, grid) / density[-1]
            assert_close(derivative, expected, rtol=2e-5, atol=1e-9 / (1 + kappa) ** 1.5)

    def test_derivative_of_the_angle_far_in_the_tail(self):
        """Seven standard deviations below the mode, where the integral from above cancels."""
        angle, kappa, dim = torch.tensor(0.35), torch.tensor(25.0), 60
        resultant = kappa * d.bessel_ratio(kappa**2, dim)
        grid, density = angle_density(dim, 25.0, 0.35)
        expected = -torch.trapezoid((grid.cos() - resultant) * density, grid) / density[-1]
        assert_close(d.angle_derivative(kappa, angle, dim), expected, rtol=1e-5, atol=0)

    def test_derivative_of_the_angle_in_space(self):
        """For ``p = 3``: ``F(w) = (e^{κw} − e^{−κ}) / (e^κ − e^{−κ})``, ``w = cos φ``."""
        kappa = torch.tensor([0.3, 2.0, 9.0], requires_grad=True)
        angle = torch.tensor([1.2, 0.4, 0.9])
        w = angle.cos()
        cdf = (torch.exp(kappa * w) - torch.exp(-kappa)) / (torch.exp(kappa) - torch.exp(-kappa))
        slope = torch.autograd.grad(cdf.sum(), kappa)[0]
        density = kappa * torch.exp(kappa * w) / (2 * torch.sinh(kappa))
        expected = (slope / density / angle.sin()).detach()  # dφ = −dw / sin φ
        assert_close(d.angle_derivative(kappa.detach(), angle, 3), expected, **SOLVED)

    @pytest.mark.parametrize("dim, kappa", [(2, 1.5), (2, 40.0), (3, 2.0), (3, 1e3), (5, 0.1), (12, 20.0)])
    def test_pathwise_gradients(self, dim, kappa):
        """Of ``E[a·θ + (b·θ)²]``, against differences of its exact value; one gradient for each draw."""
        n, a, b, free = 20_000, torch.randn(dim), torch.randn(dim), torch.randn(dim)

        def exact(v, k):
            direction, ratio = v / v.norm(), d.bessel_ratio(k**2, dim)
            return k * ratio * a @ direction + ratio * b @ b + (1 - dim * ratio) * (b @ direction) ** 2

        def difference(move, step):
            high, low = exact(*move(step)), exact(*move(-step))
            return (high - low) / (2 * step)

        v, k = free.expand(n, dim).clone().requires_grad_(), torch.full((n,), kappa).requires_grad_()
        draws = pe.VonMisesFisher(v / v.norm(dim=-1, keepdim=True), k).rsample()
        slopes = torch.autograd.grad((draws @ a + (draws @ b) ** 2).sum(), (v, k))
        found = torch.cat([slopes[0], slopes[1][:, None]], 1)
        base, eye = torch.tensor(kappa), torch.eye(dim)
        expected = [difference(lambda h, e=e: (free + h * e, base), 1e-5) for e in eye]
        expected.append(difference(lambda h: (free, base + h), 1e-4 * kappa))
        error = found.mean(0) - torch.stack(expected)
        assert (error.abs() < 5 * found.std(0) / n**0.5 + 1e-7).all()
        assert (found.std(0) > 0).all()

    def test_gradients_of_the_log_density(self):
        v, x = (torch.randn(2, 4, requires_grad=True) for _ in range(2))
        kappa = torch.rand(2, requires_grad=True)

        def log_prob(v, kappa, x):
            q = pe.VonMisesFisher(v / v.norm(dim=-1, keepdim=True), 5 * kappa)
            return q.log_prob(x / x.norm(dim=-1, keepdim=True))

        assert gradcheck(log_prob, (v, kappa, x))

    def test_the_pole_is_carried_over(self):
        """By an orthogonal map, wherever the direction lies."""
        eye = torch.eye(4)
        for direction in [*eye, *-eye, *unit(5, 4)]:
            images = d._from_pole(eye, direction)
            assert_close(images @ images.mT, eye, **EXACT)
            assert_close(images[0], direction, **EXACT)

    def test_shapes(self):
        q = pe.VonMisesFisher(unit(5, 1, 3), torch.rand(2))
        assert (q.batch_shape, q.event_shape, q.dim) == ((5, 2), (3,), 3)
        wide = q.expand((4, 5, 2))
        assert isinstance(wide, pe.VonMisesFisher) and wide.batch_shape == (4, 5, 2)
        value = wide.rsample((7,))
        assert value.shape == (7, 4, 5, 2, 3) and wide.log_prob(value).shape == (7, 4, 5, 2)
        assert_close(wide.log_prob(value)[:, 1], q.log_prob(value[:, 1]))
        for name in ("mean", "variance"):
            assert getattr(q, name).shape == (5, 2, 3)
        assert q.entropy().shape == (5, 2) and q.to_event(2).log_prob(q.sample()).shape == ()

    def test_float32(self):
        direction = unit(3).float().requires_grad_()
        kappa = torch.tensor([1e-3, 1.0, 1e4]).float().requires_grad_()
        q = pe.VonMisesFisher(direction, kappa)
        draws = q.rsample((50,))
        assert draws.dtype == q.log_prob(draws).dtype == q.mean.dtype == q.entropy().dtype == torch.float32
        exact = pe.VonMisesFisher(direction.detach().double(), kappa.detach().double(), validate_args=False)
        value = draws.detach().double()
        close = -exact.concentration * (value - exact.mean_direction).square().sum(-1) / 2
        scaled = d.log_normalizer(exact.concentration**2, 3) - exact.concentration
        assert_close(q.log_prob(draws.detach()).double(), close - scaled, rtol=1e-4, atol=1e-4)
        for gradient in torch.autograd.grad(draws.sum() + q.log_prob(draws).sum(), (direction, kappa)):
            assert gradient.isfinite().all() and gradient.dtype == torch.float32
        average = orbit_mean(q, pe.vector(pe.OctahedralGroup()), "mean")
        assert average.mean_direction.dtype == torch.float32 and average.concentration.max() < 1e-3

    def test_in_a_model(self):
        def model():
            return pyro.sample("direction", pe.VonMisesFisher(torch.tensor([0.0, 1.0]), 4.0))

        trace = pyro.poutine.trace(model).get_trace()
        assert trace.log_prob_sum().isfinite() and abs(trace.nodes["direction"]["value"].norm() - 1) < 1e-12

    def test_bad_parameters(self):
        with pytest.raises(SymmetryError, match=r"mean direction \(\.\.\., p\) with p at least 2; got shape \(1,\)"):
            pe.VonMisesFisher(torch.ones(1), 1.0)
        with pytest.raises(ValueError, match="mean_direction"):
            pe.VonMisesFisher(torch.ones(2), 1.0)
        with pytest.raises(ValueError, match="concentration"):
            pe.VonMisesFisher(unit(2), -1.0)
        with pytest.raises(ValueError, match="support"):
            pe.VonMisesFisher(unit(2), 1.0).log_prob(torch.ones(2))


def angle_density(dim, kappa, end=math.pi):
    """A grid on ``[0, end]``, where the angle's law has mass, and its density there up to a factor."""
    reach = min(math.pi, 30 / math.sqrt(0.4 * kappa + dim - 2 + 1e-9))
    grid = torch.linspace(0, min(end, reach), 100_001)
    log_density = kappa * (grid.cos() - 1)
    if dim > 2:
        log_density = log_density + (dim - 2) * grid.sin().log()
    return grid, (log_density - log_density.max()).exp()
