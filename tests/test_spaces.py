"""Simplex coordinates against autograd, and where a representation may act on which site."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.transforms import biject_to
from pyro.infer.autoguide import AutoNormal
from torch.testing import assert_close

import pyro_equivariance as pe
from pyro_equivariance.spaces import (
    IsometricLogRatio,
    LogRatios,
    check_transforms,
    contrasts,
    site_space,
    unconstraining,
)

EXACT = {"atol": 1e-12, "rtol": 1e-12}
CATEGORIES = [2, 3, 5]
BATCHES = [(), (4,), (2, 1, 3)]


class TestContrasts:
    @pytest.mark.parametrize("categories", [2, 3, 5, 12])
    def test_orthonormal_and_of_sum_zero(self, categories):
        basis = contrasts(categories)
        assert basis.shape == (categories, categories - 1) and basis.dtype == torch.float64
        assert_close(basis.mT @ basis, torch.eye(categories - 1), **EXACT)
        assert_close(basis.sum(0), torch.zeros(categories - 1), **EXACT)

    def test_by_hand(self):
        expected = [[1 / 2**0.5, 1 / 6**0.5], [-1 / 2**0.5, 1 / 6**0.5], [0.0, -2 / 6**0.5]]
        assert_close(contrasts(3), torch.tensor(expected), **EXACT)


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("categories", CATEGORIES)
class TestIsometricLogRatio:
    def test_round_trips(self, categories, batch):
        transform, y = IsometricLogRatio(), 2 * torch.randn(*batch, categories - 1)
        x = transform(y)
        assert x.shape == (*batch, categories) == transform.forward_shape(y.shape)
        assert transform.inverse_shape(x.shape) == y.shape
        assert constraints.simplex.check(x).all()
        assert_close(transform.inv(x), y, atol=1e-10, rtol=1e-10)
        given = torch.rand(*batch, categories) + 0.01
        given = given / given.sum(-1, keepdim=True)
        assert_close(transform(transform.inv(given)), given, atol=1e-12, rtol=1e-10)

    def test_jacobian(self, categories, batch):
        """That of the first K - 1 shares, by autograd."""
        transform, y = IsometricLogRatio(), torch.randn(*batch, categories - 1)
        found = transform.log_abs_det_jacobian(y, transform(y))
        assert found.shape == batch
        rows = y.reshape(-1, categories - 1)
        jacobians = [torch.autograd.functional.jacobian(lambda t: transform(t)[:-1], row) for row in rows]
        expected = torch.linalg.slogdet(torch.stack(jacobians)).logabsdet.reshape(batch)
        assert_close(found, expected, atol=1e-10, rtol=1e-10)
        assert_close(found, 0.5 * math.log(categories) + transform(y).log().sum(-1), atol=1e-10, rtol=1e-10)

    def test_permuting_categories_rotates(self, categories, batch):
        transform, y = IsometricLogRatio(), torch.randn(*batch, categories - 1)
        order = torch.randperm(categories)
        basis = contrasts(categories)
        turn = basis.mT @ torch.eye(categories)[order] @ basis
        assert_close(turn.mT @ turn, torch.eye(categories - 1), **EXACT)
        assert_close(transform(y @ turn.mT), transform(y)[..., order], atol=1e-12, rtol=1e-10)


class TestTransform:
    def test_centre_and_far_ends(self):
        transform = IsometricLogRatio()
        assert transform(torch.zeros(2)).tolist() == pytest.approx([1 / 3] * 3)
        far = transform(torch.tensor([2000.0, -2000.0]))
        assert torch.isfinite(transform.inv(far)).all()
        assert torch.isfinite(transform.log_abs_det_jacobian(torch.tensor([400.0, -400.0]), far))

    def test_precision_is_kept(self):
        y = torch.randn(4, 2, dtype=torch.float32)
        x = IsometricLogRatio()(y)
        parts = x, IsometricLogRatio().inv(x), IsometricLogRatio().log_abs_det_jacobian(y, x)
        assert {t.dtype for t in parts} == {torch.float32}
        assert_close(parts[1], y, atol=1e-5, rtol=1e-4)

    def test_is_a_value(self):
        assert IsometricLogRatio() == IsometricLogRatio() != biject_to(constraints.simplex)
        assert hash(IsometricLogRatio()) == hash(IsometricLogRatio())
        assert IsometricLogRatio().with_cache() == IsometricLogRatio()

    def test_in_a_distribution(self):
        q = dist.TransformedDistribution(dist.Normal(torch.zeros(5, 2), 1.0).to_event(1), [IsometricLogRatio()])
        assert (q.batch_shape, q.event_shape) == ((5,), (3,))
        x = q.rsample()
        y = IsometricLogRatio().inv(x)
        expected = dist.Normal(0.0, 1.0).log_prob(y).sum(-1) - x.log().sum(-1) - 0.5 * math.log(3)
        assert_close(q.log_prob(x), expected, atol=1e-10, rtol=1e-10)


# Sites


S3 = pe.SymmetricGroup(3)
PERMUTED = pe.permutation(S3)
FLIPPED = pe.signed_permutation(pe.SignGroup(), [[0, 1, 2]] * 2, [[1, 1, 1], [-1, -1, -1]])
TURNED = pe.vector(pe.CyclicGroup(8))
UNEQUAL = torch.tensor([1.0, 1.0, 2.0])
independent, interval = constraints.independent, constraints.interval


def moves_alike(space, rep, support, shape):
    """``transform(ρ'(g) u) = ρ(g) transform(u)`` for every element, ``ρ'`` that of the space."""
    u = torch.randn(space.transform.inverse_shape(torch.Size(shape)))
    value = space.transform(u)
    assert support.check(value).all() and value.shape == shape
    for g in range(len(rep.group)):
        assert_close(space.transform(space.rep.act(g, u)), rep.act(g, value), atol=1e-8, rtol=1e-8)


PASS = {
    "real": (constraints.real, PERMUTED, (3,)),
    "real, signs": (constraints.real, FLIPPED, (3,)),
    "real vector, turned": (constraints.real_vector, TURNED, (2,)),
    "real event, turned": (independent(constraints.real, 1), TURNED, (2,)),
    "real, plates": (constraints.real, FLIPPED, (5, 3)),
    "positive": (constraints.positive, PERMUTED, (3,)),
    "positive event": (independent(constraints.positive, 1), PERMUTED, (3,)),
    "positive, plates": (independent(constraints.positive, 2), pe.trivial(S3, 2) * PERMUTED, (4, 2, 3)),
    "nonnegative": (constraints.nonnegative, PERMUTED, (3,)),
    "more than": (constraints.greater_than(torch.full((3,), 2.0)), PERMUTED, (3,)),
    "unit interval": (constraints.unit_interval, PERMUTED, (3,)),
    "interval": (interval(-1.0, 2.0), PERMUTED, (3,)),
    "interval, equal bounds": (interval(torch.zeros(3), torch.full((3,), 2.0)), PERMUTED, (3,)),
    "intervals, unequal where nothing moves": (
        interval(torch.zeros(3), UNEQUAL),
        pe.permutation(pe.CyclicGroup(2), [[0, 1, 2], [1, 0, 2]]),
        (3,),
    ),
    "simplex": (constraints.simplex, PERMUTED, (3,)),
    "simplex, two categories": (constraints.simplex, pe.permutation(pe.SymmetricGroup(2)), (2,)),
    "simplex, plates": (constraints.simplex, PERMUTED, (4, 3)),
    "simplex, leading axis": (independent(constraints.simplex, 1), pe.trivial(S3, 2) * PERMUTED, (2, 3)),
    "simplex, a leading axis that is permuted too": (
        independent(constraints.simplex, 1), PERMUTED * PERMUTED, (3, 3),
    ),
    "simplex, a leading axis with signs of none": (
        constraints.simplex, pe.trivial(S3, (2, 2)) * PERMUTED, (2, 2, 3),
    ),
    "simplex, a subgroup": (
        constraints.simplex,
        PERMUTED.pullback(S3.subgroup(["(0 1)"]), S3.subgroup(["(0 1)"]).inclusion),
        (3,),
    ),
    "simplex, a subgroup and an axis": (
        constraints.simplex,
        (PERMUTED * PERMUTED).pullback(S3.subgroup(["(0 1)"]), S3.subgroup(["(0 1)"]).inclusion),
        (3, 3),
    ),
    "simplex, regular": (constraints.simplex, pe.regular(pe.CyclicGroup(4)), (4,)),
    "simplex, matrices that permute": (
        constraints.simplex,
        pe.matrix(pe.SignGroup(), [[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]]),
        (2,),
    ),
}  # fmt: skip


class TestSiteSpace:
    @pytest.mark.parametrize("name", PASS)
    def test_the_action_passes_through(self, name):
        support, rep, shape = PASS[name]
        space = site_space("z", support, rep, torch.Size(shape))
        assert isinstance(space.transform, IsometricLogRatio) == name.startswith("simplex")
        assert name.startswith("simplex") or space.rep is rep
        moves_alike(space, rep, support, shape)

    REFUSED = {
        "positive, signs": (constraints.positive, FLIPPED, (3,)),
        "positive, turned": (constraints.positive, TURNED, (2,)),
        "unit interval, signs": (constraints.unit_interval, FLIPPED, (3,)),
        "interval, unequal bounds": (interval(torch.zeros(3), UNEQUAL), PERMUTED, (3,)),
        "interval, unequal lower bounds": (interval(-UNEQUAL, torch.full((3,), 3.0)), PERMUTED, (3,)),
        "ordered": (constraints.ordered_vector, PERMUTED, (3,)),
        "correlations": (constraints.corr_cholesky, PERMUTED * PERMUTED, (3, 3)),
    }

    @pytest.mark.parametrize("name", REFUSED)
    def test_refused(self, name):
        support, rep, shape = self.REFUSED[name]
        with pytest.raises(pe.SymmetryError, match="site 'z' to be real, a simplex, or moved by perm") as error:
            site_space("z", support, rep, torch.Size(shape))
        assert "'z': rep.on_unconstrained()" in str(error.value)

    @pytest.mark.parametrize("support, rep", [
        (constraints.sphere, TURNED), (constraints.lower_cholesky, PERMUTED * PERMUTED),
    ], ids=["sphere", "lower Cholesky"])  # fmt: skip
    def test_without_a_bijection(self, support, rep):
        with pytest.raises(pe.SymmetryError, match="'z'.*has none"):
            site_space("z", support, rep, rep.event_shape)

    @pytest.mark.parametrize("rep", [
        FLIPPED,
        PERMUTED * FLIPPED.pullback(S3, torch.tensor([0, 1, 1, 0, 0, 1])),
        TURNED,
        (PERMUTED * PERMUTED).reshape((3, 3)),
    ], ids=["signs", "signs on the last axis", "turned", "axes that are not told apart"])  # fmt: skip
    def test_simplices_are_moved_by_permutations_of_categories_only(self, rep):
        with pytest.raises(pe.SymmetryError, match="categories of the simplex site 'z' to be permuted, along the last"):
            site_space("z", constraints.simplex, rep, rep.event_shape)

    @pytest.mark.parametrize("support, rep", [
        (constraints.positive, FLIPPED), (constraints.simplex, pe.vector(pe.CyclicGroup(8))),
        (constraints.unit_interval, FLIPPED), (constraints.positive, TURNED),
    ])  # fmt: skip
    def test_on_unconstrained_values_everything_passes(self, support, rep):
        rep = rep.on_unconstrained()
        space = site_space("z", support, rep, torch.Size((3,)))
        assert space.rep is rep and space.transform == unconstraining(support)


RATIOS = {
    "S2": pe.permutation(pe.SymmetricGroup(2)),
    "S3": PERMUTED,
    "S4": pe.permutation(pe.SymmetricGroup(4)),
    "C5": pe.regular(pe.CyclicGroup(5)),
    "a swap": pe.permutation(pe.SignGroup(), [[0, 1, 2], [1, 0, 2]]),
    "none": pe.trivial(S3, 3),
}


@pytest.mark.parametrize("name", RATIOS)
class TestLogRatios:
    def test_is_the_permutation_between_the_contrasts(self, name):
        categories = RATIOS[name]
        n, g = categories.event_shape[0], categories.group.elements
        basis = contrasts(n)
        permutations = torch.stack([categories.act(k, torch.eye(n)).mT for k in range(len(g))])
        expected = basis.mT @ permutations @ basis
        assert_close(LogRatios(categories).matrix(g), expected, **EXACT)
        assert_close(expected.mT @ expected, torch.eye(n - 1).expand_as(expected), **EXACT)

    def test_is_a_homomorphism(self, name):
        rep, group = LogRatios(RATIOS[name]), RATIOS[name].group
        y = torch.randn(4, *rep.event_shape)
        assert_close(rep.act(0, y), y, **EXACT)
        for g in range(len(group)):
            for h in range(len(group)):
                product = int(group.compose(torch.tensor(g), torch.tensor(h)))
                assert_close(rep.act(g, rep.act(h, y)), rep.act(product, y), **EXACT)

    def test_a_batch_of_elements_on_any_axis(self, name):
        rep, group = LogRatios(RATIOS[name]), RATIOS[name].group
        both = rep * pe.trivial(group, 2)
        g, y = group.sample((5,)), torch.randn(5, *both.event_shape)
        expected = torch.stack([rep.matrix(int(k)) @ row for k, row in zip(g, y, strict=True)])
        assert_close(both.act(g, y), expected, **EXACT)

    def test_properties(self, name):
        """Two categories have one ratio, which changes its sign; of three the swaps are no signed permutations."""
        rep = LogRatios(RATIOS[name])
        assert rep.is_orthogonal and not rep.is_approximate
        assert rep.is_monomial == (name in ("S2", "none")) and rep.is_permutation == (name == "none")
        assert rep == LogRatios(RATIOS[name]) and hash(rep) == hash(LogRatios(RATIOS[name]))
        if rep.is_monomial:
            assert_close(rep.modulus().act(0, torch.ones(rep.event_shape)), torch.ones(rep.event_shape))
        else:
            with pytest.raises(pe.SymmetryError):
                rep.modulus()


WHOLE_EVENTS = {
    "Cholesky factors": (constraints.corr_cholesky, PERMUTED * pe.trivial(S3, (2, 2)), (3, 2, 2)),
    "Cholesky factors, axis by axis": (
        constraints.corr_cholesky, PERMUTED * pe.trivial(S3, 3) * pe.trivial(S3, 3), (3, 3, 3),
    ),
    "Cholesky factors, plates": (constraints.corr_cholesky, PERMUTED * pe.trivial(S3, (3, 3)), (4, 3, 3, 3)),
    "Cholesky factors as one event": (
        independent(constraints.corr_cholesky, 1), PERMUTED * pe.trivial(S3, (2, 2)), (3, 2, 2),
    ),
    "Cholesky factors that stay": (constraints.corr_cholesky, pe.trivial(S3, (3, 3)), (3, 3)),
    "Cholesky factors on two axes": (
        constraints.corr_cholesky, PERMUTED * PERMUTED * pe.trivial(S3, (2, 2)), (3, 3, 2, 2),
    ),
    "ordered": (constraints.ordered_vector, PERMUTED * pe.trivial(S3, 4), (3, 4)),
}  # fmt: skip


class TestWholeEvents:
    """Events that a bijection mixes may still take each other's place."""

    @pytest.mark.parametrize("name", WHOLE_EVENTS)
    def test_the_action_passes_through(self, name):
        support, rep, shape = WHOLE_EVENTS[name]
        moves_alike(site_space("z", support, rep, torch.Size(shape)), rep, support, shape)

    @pytest.mark.parametrize("support, rep", [
        (constraints.corr_cholesky, PERMUTED * PERMUTED),
        (constraints.corr_cholesky, PERMUTED * PERMUTED * pe.trivial(S3, 3)),
        (constraints.corr_cholesky, PERMUTED * pe.trivial(S3, 3) * PERMUTED),
        (constraints.corr_cholesky, FLIPPED * pe.trivial(pe.SignGroup(), (2, 2))),
        (constraints.corr_cholesky, TURNED * pe.trivial(pe.CyclicGroup(8), (2, 2))),
        (constraints.simplex, FLIPPED * pe.trivial(pe.SignGroup(), 3)),
        (constraints.simplex, TURNED * pe.trivial(pe.CyclicGroup(8), 3)),
    ], ids=[
        "events", "rows", "columns", "signs of Cholesky factors", "mixed Cholesky factors", "signs of simplices",
        "mixed simplices",
    ])  # fmt: skip
    def test_refused(self, support, rep):
        with pytest.raises(pe.SymmetryError, match="'z'"):
            site_space("z", support, rep, rep.event_shape)


class TestCheckTransforms:
    def transforms_of(self, support):
        return [biject_to(support)]

    @pytest.mark.parametrize("name", [n for n in PASS if "simplex" not in n])
    def test_entry_by_entry(self, name):
        support, rep, shape = PASS[name]
        check_transforms("z", self.transforms_of(support), rep, torch.Size(shape))

    @pytest.mark.parametrize("support, rep, shape", [
        (constraints.simplex, pe.permutation(pe.SymmetricGroup(4)), (3,)),  # stick-breaking
        (constraints.positive, FLIPPED, (3,)),
        (interval(torch.zeros(3), UNEQUAL), PERMUTED, (3,)),
        (constraints.corr_cholesky, PERMUTED, (3,)),
    ], ids=["stick-breaking", "signs", "unequal", "Cholesky"])  # fmt: skip
    def test_refused(self, support, rep, shape):
        with pytest.raises(pe.SymmetryError, match="site 'z' to be transformed entry by entry, all alike, and moved"):
            check_transforms("z", self.transforms_of(support), rep, torch.Size(shape))
        check_transforms("z", self.transforms_of(support), rep.on_unconstrained(), torch.Size(shape))

    def test_chains(self):
        affine = torch.distributions.AffineTransform(0.0, 2.0)
        check_transforms("z", [affine, biject_to(constraints.positive)], PERMUTED, torch.Size((3,)))
        uneven = torch.distributions.AffineTransform(0.0, UNEQUAL)
        with pytest.raises(pe.SymmetryError, match="entry by entry"):
            check_transforms("z", [biject_to(constraints.positive), uneven], PERMUTED, torch.Size((3,)))

    def test_stick_breaking_of_an_auto_normal(self):
        """A permutation of categories does not pass through it; AutoNormal's density would not be invariant."""

        def model():
            pyro.sample("p", dist.Dirichlet(torch.ones(3)))

        symmetry = pe.Symmetry(S3, {"p": PERMUTED})
        guide = AutoNormal(model)
        guide()
        for wrapped in (pe.SymmetrizedGuide(guide, symmetry), pe.handlers.symmetrize(guide, symmetry)):
            with pytest.raises(pe.SymmetryError):
                wrapped()
        with pytest.raises(pe.SymmetryError):
            pe.symmetrize_(guide, symmetry)


# Guides on a simplex


def shares():
    pyro.sample("p", dist.Dirichlet(torch.ones(3)))


def triangle(n=160):
    """Points of the simplex with three categories, and the area, in the first two shares, that each stands for."""
    i, j = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    up = torch.stack([i, j], -1)[i + j < n] + 1 / 3
    down = torch.stack([i, j], -1)[i + j < n - 1] + 2 / 3
    places = torch.cat([up, down]) / n
    return torch.cat([places, 1 - places.sum(-1, keepdim=True)], -1), 0.5 / n**2


SIMPLEX_GUIDES = {
    "mixture": lambda symmetry: pe.AutoOrbitMixture(shares, symmetry),
    "mixture, full": lambda symmetry: pe.AutoOrbitMixture(shares, symmetry, base="full"),
    "geometric": lambda symmetry: pe.AutoSymmetricMultivariateNormal(shares, symmetry),
    "arithmetic": lambda symmetry: pe.AutoSymmetricMultivariateNormal(shares, symmetry, rule="arithmetic"),
}


@pytest.mark.parametrize("group", ["all", "a swap"])
@pytest.mark.parametrize("name", SIMPLEX_GUIDES)
class TestGuidesOnASimplex:
    def guide(self, name, group):
        part = S3.subgroup(["(0 1)"])
        rep = PERMUTED if group == "all" else PERMUTED.pullback(part, part.inclusion)
        guide = SIMPLEX_GUIDES[name](pe.Symmetry(rep.group, {"p": rep}))
        guide.initialize()
        with torch.no_grad():
            for parameter in guide.parameters():
                parameter.copy_(torch.randn(parameter.shape) * 0.6)
            guide.loc.copy_(torch.tensor([0.8, -0.5]))
            guide.scale = torch.tensor([0.4, 0.6])
        return guide, rep

    def log_density(self, guide, x):
        transform = IsometricLogRatio()
        y = transform.inv(x)
        return guide.get_posterior().log_prob(y).detach() - transform.log_abs_det_jacobian(y, x)

    def test_integrates_to_one(self, name, group):
        guide, _ = self.guide(name, group)
        points, area = triangle()
        assert float(points.new_ones(len(points)).sum() * area) == pytest.approx(0.5)
        assert float(self.log_density(guide, points).exp().sum() * area) == pytest.approx(1.0, abs=2e-4)

    def test_invariant_under_permutations_of_categories(self, name, group):
        guide, rep = self.guide(name, group)
        points = dist.Dirichlet(torch.ones(3)).sample((20,))
        density = self.log_density(guide, points)
        for g in range(len(rep.group)):
            assert_close(self.log_density(guide, rep.act(g, points)), density, atol=1e-9, rtol=1e-9)
        if group == "a swap":
            assert (self.log_density(guide, points.roll(1, -1)) - density).abs().max() > 0.1

    def test_a_draw_has_this_density(self, name, group):
        guide, _ = self.guide(name, group)
        for _ in range(3):
            trace = poutine.trace(guide).get_trace()
            value = trace.nodes["p"]["value"]
            assert constraints.simplex.check(value)
            assert_close(trace.log_prob_sum().detach(), self.log_density(guide, value.detach()), atol=1e-9, rtol=1e-9)
