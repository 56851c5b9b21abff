"""Coordinates, push-forwards and closedness against closed forms and numerical oracles."""

import math

import pyro.distributions as dist
import pytest
import torch
from catalogue import FAMILIES, REPRESENTATIONS, multivariate_normal, normal, rotations, scaled_swap, signed_turns
from torch.testing import assert_close

import pyro_equivariance as pe
from pyro_equivariance.errors import ClosednessError, SymmetryError
from pyro_equivariance.families import COORDINATES, orbit_mean
from pyro_equivariance.families.base import Family, register, rewrap, unwrap

EXACT = {"atol": 1e-12, "rtol": 1e-12}
SOLVED = {"atol": 1e-10, "rtol": 1e-10}  # where a matrix was inverted


@pytest.fixture(params=FAMILIES)
def name(request):
    return request.param


@pytest.fixture
def pair(name):
    return FAMILIES[name]()


def moments(q, rep):
    """Mean ``(*batch, n)`` and covariance ``(*batch, n, n)`` of the flattened event."""
    core = unwrap(q)[1]
    if isinstance(core, dist.MultivariateNormal):
        return core.loc, core.covariance_matrix
    batch = core.loc.shape[: core.loc.ndim - len(rep.event_shape)]
    flat = (*batch, rep.event_shape.numel())
    return core.loc.reshape(flat), torch.diag_embed(core.scale.reshape(flat) ** 2)


def assert_same_law(p, q, rep, **tolerance):
    assert (p.batch_shape, p.event_shape, type(p)) == (q.batch_shape, q.event_shape, type(q))
    for first, second in zip(moments(p, rep), moments(q, rep), strict=True):
        assert_close(first, second, **tolerance)


class TestCoordinates:
    @pytest.mark.parametrize("kind", COORDINATES)
    def test_round_trip(self, pair, kind):
        q, rep = pair
        family, core, event_dims = unwrap(q)
        again = rewrap(family.from_coordinates(kind, family.coordinates(core, kind)), event_dims)
        assert_same_law(again, q, rep, **(EXACT if isinstance(core, dist.Normal) else SOLVED))

    def test_natural_to_mean_to_natural(self, pair):
        q, rep = pair
        family = unwrap(q)[0]
        there = family.from_coordinates("mean", family.coordinates(unwrap(q)[1], "mean"))
        for first, second in zip(family.coordinates(there, "natural"), pe.natural(q), strict=True):
            assert_close(first, second, **SOLVED)

    def test_normal_mean_is_the_gradient_of_the_log_normaliser(self):
        q, _ = normal(pe.permutation(pe.SymmetricGroup(4)), batch=(3,))
        eta = tuple(t.detach().requires_grad_() for t in pe.natural(q))
        for first, second in zip(eta, q._natural_params, strict=True):
            assert_close(first, second, **EXACT)
        gradient = torch.autograd.grad(q._log_normalizer(*eta).sum(), eta)
        for first, second in zip(gradient, pe.mean(q), strict=True):
            assert_close(first, second, **EXACT)

    def test_multivariate_normal_mean_is_the_gradient_of_the_log_normaliser(self):
        """A(η) = −¼ η₁ᵀ η₂⁻¹ η₁ − ½ log det(−2 η₂)."""
        q, _ = multivariate_normal(pe.permutation(pe.SymmetricGroup(3)))
        first, second = (t.detach().requires_grad_() for t in pe.natural(q))
        normaliser = -first @ second.inverse() @ first / 4 - torch.logdet(-2 * second) / 2
        for found, expected in zip(torch.autograd.grad(normaliser, (first, second)), pe.mean(q), strict=True):
            assert_close(found, expected, **SOLVED)

    @pytest.mark.parametrize("name", ["Normal, batch and event", "MultivariateNormal, batch"])
    def test_density_is_that_of_an_exponential_family(self, name):
        """log q(θ) − ⟨η, T(θ)⟩ does not depend on θ."""
        q, rep = FAMILIES[name]()
        theta = q.sample((6,))
        if name.startswith("Normal"):
            statistics = (theta, theta**2)
        else:
            statistics = (theta, theta[..., :, None] * theta[..., None, :])
        pairing = sum((t * e).flatten(1).sum(-1) for t, e in zip(statistics, pe.natural(q), strict=True))
        rest = q.log_prob(theta).flatten(1).sum(-1) - pairing
        assert_close(rest, rest[:1].expand(6), **SOLVED)

    def test_by_hand(self):
        q = dist.Normal(torch.tensor([2.0, -1.0]), torch.tensor([0.5, 2.0])).to_event(1)
        assert [t.tolist() for t in pe.natural(q)] == [[8.0, -0.25], [-2.0, -0.125]]
        assert [t.tolist() for t in pe.mean(q)] == [[2.0, -1.0], [4.25, 5.0]]


class TestPushForward:
    def test_moves_mean_and_covariance(self, pair):
        q, rep = pair
        loc, covariance = moments(q, rep)
        for g in range(min(len(rep.group), 8)):
            M = rep.matrix(g)
            moved_loc, moved_covariance = moments(pe.push_forward(q, rep, g), rep)
            assert_close(moved_loc, (M @ loc[..., None])[..., 0], **EXACT)
            assert_close(moved_covariance, M @ covariance @ M.mT, **EXACT)

    def test_density_of_moved_samples(self, pair):
        q, rep = pair
        theta, g = q.sample((4,)), len(rep.group) - 1
        moved = pe.push_forward(q, rep, g)
        assert (moved.batch_shape, moved.event_shape) == (q.batch_shape, q.event_shape)
        entries = theta[0].numel() // rep.event_shape.numel()
        volume = torch.linalg.slogdet(rep.matrix(g)).logabsdet * entries
        densities = [p.log_prob(t).reshape(4, -1).sum(-1) for p, t in [(q, theta), (moved, rep.act(g, theta))]]
        assert_close(densities[1] + volume, densities[0], **SOLVED)

    def test_elements_broadcast(self):
        q, rep = normal(signed_turns(), batch=(3,), event_dims=1)
        moved = pe.push_forward(q, rep, torch.arange(4)[:, None])
        assert moved.batch_shape == (4, 3) and moved.event_shape == (2,)
        for g in range(4):
            one = pe.push_forward(q, rep, g)
            assert torch.equal(moved.base_dist.loc[g], one.base_dist.loc)
            assert torch.equal(moved.base_dist.scale[g], one.base_dist.scale)
        full, turn = multivariate_normal(pe.matrix(pe.CyclicGroup(8), rotations(8)), batch=(3,))
        moved = pe.push_forward(full, turn, torch.arange(8)[:, None])
        assert_close(moved.covariance_matrix[5], pe.push_forward(full, turn, 5).covariance_matrix, **EXACT)

    def test_keeps_the_divergence(self, name, pair):
        (q, rep), (p, _) = pair, FAMILIES[name]()
        before = pe.kl(q, p)
        assert before > 1e-3
        for g in range(min(len(rep.group), 8)):
            assert_close(pe.kl(pe.push_forward(q, rep, g), pe.push_forward(p, rep, g)), before, **SOLVED)

    def test_gradients_flow(self):
        loc, scale = torch.randn(2).requires_grad_(), torch.rand(2).requires_grad_()
        moved = pe.push_forward(dist.Normal(loc, scale), scaled_swap(), 1)
        gradients = torch.autograd.grad(moved.loc.sum() + moved.scale.sum(), (loc, scale))
        assert [g.tolist() for g in gradients] == [[0.5, 2.0], [0.5, 2.0]]

    @pytest.mark.parametrize("q", [
        dist.Normal(torch.zeros(3), 1.0), dist.Normal(torch.zeros(2, 3), 1.0).to_event(2), dist.Normal(0.0, 1.0),
        dist.MultivariateNormal(torch.zeros(3), torch.eye(3)),
    ], ids=repr)  # fmt: skip
    def test_wrong_shape(self, q):
        for call in (lambda: pe.push_forward(q, signed_turns(), 1), lambda: pe.average(q, signed_turns())):
            with pytest.raises(SymmetryError, match=r"distribution on the shape \(2,\) of signed permutation\(2\)"):
                call()


def test_kl_by_hand():
    """Σ log σ_p/σ_q + (σ_q² + (μ_q − μ_p)²) / 2σ_p² − ½."""
    (q, _), (p, _) = FAMILIES["Normal, batch and event"](), FAMILIES["Normal, batch and event"]()
    (m, s), (n, t) = (unwrap(d)[0].coordinates(unwrap(d)[1], "standard") for d in (q, p))
    expected = ((t / s).log() + (s**2 + (m - n) ** 2) / (2 * t**2) - 0.5).sum()
    assert_close(pe.kl(q, p), expected, **EXACT)
    assert pe.kl(q, p).shape == () and pe.kl(q, q) == 0


def is_in_span(statistics, rep):
    """Whether ``T(ρ(g)⁻¹ θ)`` is an affine function of ``T(θ)``, by least squares on random points."""
    n = rep.event_shape.numel()
    theta = torch.randn(6 * n + n * n + 20, *rep.event_shape)
    rows = len(theta)
    features = torch.cat([torch.ones(rows, 1), statistics(theta.reshape(rows, n))], 1)
    for g in rep.group.generators:
        moved = statistics(rep.act(int(rep.group.inverse(g)), theta).reshape(rows, n))
        residual = moved - features @ torch.linalg.lstsq(features, moved, driver="gelsd").solution
        if residual.abs().max() > 1e-8:
            return False
    return True


def coordinatewise(theta):
    return torch.cat([theta, theta**2], 1)


def with_products(theta):
    return torch.cat([theta, (theta[:, :, None] * theta[:, None]).flatten(1)], 1)


SMALL = [n for n, make in REPRESENTATIONS.items() if make().event_shape.numel() <= 12]
ANGLES = {
    "angle": lambda: pe.angle(pe.CyclicGroup(2), [0.0, math.pi]),
    "angles": lambda: pe.angle(pe.CyclicGroup(2), [0.0, math.pi]) * pe.trivial(pe.CyclicGroup(2), 3),
    "angle as a vector": lambda: pe.angle(pe.CyclicGroup(2), [0.0, math.pi]).reshape(1),
}


class TestClosedness:
    @pytest.mark.parametrize("name", SMALL + list(ANGLES))
    def test_normal_against_the_oracle(self, name):
        rep = (REPRESENTATIONS | ANGLES)[name]()
        q = dist.Normal(torch.zeros(rep.event_shape), 1.0)
        assert pe.is_closed(q, rep) == is_in_span(coordinatewise, rep)

    @pytest.mark.parametrize("name", SMALL + list(ANGLES))
    def test_multivariate_normal_against_the_oracle(self, name):
        rep = (REPRESENTATIONS | ANGLES)[name]()
        n = rep.event_shape.numel()
        q = dist.MultivariateNormal(torch.zeros(n), torch.eye(n))
        assert pe.is_closed(q, rep) == (len(rep.event_shape) == 1 and is_in_span(with_products, rep))

    def test_the_oracle_tells_apart(self):
        turn = pe.matrix(pe.CyclicGroup(8), rotations(8))
        assert not is_in_span(coordinatewise, turn) and is_in_span(with_products, turn)
        assert is_in_span(coordinatewise, signed_turns()) and is_in_span(coordinatewise, scaled_swap())

    @pytest.mark.parametrize("call", [
        lambda q, rep: pe.push_forward(q, rep, 1), pe.average, lambda q, rep: orbit_mean(q, rep, "natural"),
    ], ids=["push_forward", "average", "orbit_mean"])  # fmt: skip
    def test_turns_by_45_degrees(self, call):
        turn = pe.matrix(pe.CyclicGroup(8), rotations(8))
        message = r"keeps a mean-field Normal; matrix\(2\) does not\. It mixes entries: use a full-covariance"
        with pytest.raises(ClosednessError, match=message):
            call(dist.Normal(torch.zeros(2), 1.0).to_event(1), turn)
        call(dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), turn)

    def test_full_normals_need_one_axis(self):
        q, rep = dist.MultivariateNormal(torch.zeros(2, 2), torch.eye(2)), pe.trivial(pe.SignGroup(), (2, 2))
        with pytest.raises(ClosednessError, match=r"full-covariance Normal; .*reshape\(\(n,\)\)"):
            pe.push_forward(q, rep, 1)


LOW_RANK = {
    "permutation of S4": (lambda: pe.permutation(pe.SymmetricGroup(4)), (), 2),
    "regular, copies": (lambda: pe.regular(pe.SymmetricGroup(3), 2), (), 1),
    "signed permutation": (signed_turns, (), 1),
    "signs, batch": (REPRESENTATIONS["signs"], (3,), 2),
    "scales": (scaled_swap, (2, 5), 1),
    "pullback, batch": (REPRESENTATIONS["pullback to a factor"], (2,), 3),
    "monomial matrix": (lambda: pe.matrix(pe.CyclicGroup(4), rotations(4)), (), 2),
    "reshape": (lambda: pe.image(pe.CyclicGroup(2), (2, 3)).reshape(6), (2,), 2),
    "sum": (lambda: signed_turns() + pe.regular(pe.CyclicGroup(4)), (), 2),
    "order 1": (lambda: pe.regular(pe.CyclicGroup(1), 3), (), 2),
}


def low_rank(rep, batch=(), rank=2):
    n = rep.event_shape[0]
    diagonal = 0.3 + torch.rand(*batch, n)
    return dist.LowRankMultivariateNormal(torch.randn(*batch, n), torch.randn(*batch, n, rank), diagonal)


def dense(q):
    return dist.MultivariateNormal(q.loc, q.covariance_matrix)


@pytest.mark.parametrize("case", LOW_RANK)
class TestLowRank:
    """Against full-covariance Normals: it has no natural parameters, and its averages have more columns."""

    def pair(self, case):
        make, batch, rank = LOW_RANK[case]
        rep = make()
        return low_rank(rep, batch, rank), rep

    def assert_same(self, found, expected):
        assert isinstance(found, dist.LowRankMultivariateNormal)
        assert (found.batch_shape, found.event_shape) == (expected.batch_shape, expected.event_shape)
        assert_close(found.loc, expected.loc, **SOLVED)
        assert_close(found.covariance_matrix, expected.covariance_matrix, **SOLVED)
        assert (found.cov_diag > 0).all()

    def test_standard_coordinates(self, case):
        q, _ = self.pair(case)
        family, core, event_dims = unwrap(q)
        assert core is q and event_dims == 0
        self.assert_same(family.from_coordinates("standard", family.coordinates(q, "standard")), q)

    def test_push_forward(self, case):
        q, rep = self.pair(case)
        for g in range(len(rep.group)):
            moved = pe.push_forward(q, rep, g)
            self.assert_same(moved, pe.push_forward(dense(q), rep, g))
            assert moved.cov_factor.shape == q.cov_factor.shape
            theta = q.sample((3,))
            assert_close(moved.log_prob(rep.act(g, theta)), q.log_prob(theta), **SOLVED)

    def test_elements_broadcast(self, case):
        q, rep = self.pair(case)
        elements = rep.group.elements.reshape(-1, *[1] * len(q.batch_shape))
        moved = pe.push_forward(q, rep, elements)
        assert moved.batch_shape == (len(rep.group), *q.batch_shape)
        for g in range(len(rep.group)):
            assert_close(moved.covariance_matrix[g], pe.push_forward(q, rep, g).covariance_matrix, **EXACT)

    @pytest.mark.parametrize("rule", ["projection", "arithmetic"])
    def test_averages(self, case, rule):
        """The mean covariance, exactly, from ``|G|`` times the columns; ``arithmetic`` adds ``|G|`` for the means."""
        q, rep = self.pair(case)
        average = pe.average(q, rep, rule)
        self.assert_same(average, pe.average(dense(q), rep, rule))
        columns = len(rep.group) * (q.cov_factor.shape[-1] + (rule == "arithmetic"))
        assert average.cov_factor.shape == (*q.loc.shape, columns)

    @pytest.mark.parametrize("rule", ["projection", "arithmetic"])
    def test_averages_are_invariant_and_idempotent(self, case, rule):
        q, rep = self.pair(case)
        average = pe.average(q, rep, rule)
        theta = torch.randn(3, *q.batch_shape, *q.event_shape)
        for g in range(len(rep.group)):
            self.assert_same(pe.push_forward(average, rep, g), average)
            assert_close(average.log_prob(rep.act(g, theta)), average.log_prob(theta), atol=1e-8, rtol=1e-8)
        for again in ("projection", "arithmetic"):
            self.assert_same(pe.average(average, rep, again), average)
        if len(rep.group) > 1:
            assert (average.covariance_matrix - q.covariance_matrix).abs().max() > 1e-3

    def test_has_no_natural_parameters(self, case):
        q, rep = self.pair(case)
        message = "natural and mean parameters; a low-rank Normal has none. Use rule='projection' or 'arithmetic' for"
        for call in (lambda: pe.average(q, rep), lambda: pe.average(q, rep, "geometric"),
                     lambda: pe.natural(q), lambda: pe.mean(q)):  # fmt: skip
            with pytest.raises(ClosednessError, match=message):
                call()

    def test_divergence(self, case):
        (q, rep), (p, _) = self.pair(case), self.pair(case)
        assert_close(pe.kl(q, p), pe.kl(dense(q), dense(p)), **SOLVED)
        for g in range(min(len(rep.group), 4)):
            assert_close(pe.kl(pe.push_forward(q, rep, g), pe.push_forward(p, rep, g)), pe.kl(q, p), **SOLVED)

    @pytest.mark.parametrize("rule", ["projection", "arithmetic"])
    def test_gradients_reach_every_coordinate(self, case, rule):
        q, rep = self.pair(case)
        parameters = [t.detach().requires_grad_() for t in (q.loc, q.cov_factor, q.cov_diag)]
        average = pe.average(dist.LowRankMultivariateNormal(*parameters), rep, rule)
        value = average.log_prob(torch.randn(q.loc.shape)).sum()
        assert all((g.abs() > 0).any() for g in torch.autograd.grad(value, parameters[1:]))


class TestLowRankClosedness:
    @pytest.mark.parametrize("name", SMALL + list(ANGLES))
    def test_signed_permutations_and_scalings_of_one_axis(self, name):
        """For those it keeps, ``ρ D ρᵀ`` is diagonal for every diagonal ``D``; the others spoil some."""
        rep = (REPRESENTATIONS | ANGLES)[name]()
        n = rep.event_shape.numel()
        q = dist.LowRankMultivariateNormal(torch.zeros(n), torch.zeros(n, 1), torch.ones(n))
        kept = False
        if len(rep.event_shape) == 1 and rep.is_linear:
            moved = rep.matrix(rep.group.elements) @ torch.diag(torch.arange(1.0, n + 1))
            moved = moved @ rep.matrix(rep.group.elements).mT
            kept = bool((moved - torch.diag_embed(moved.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-8)
        assert pe.is_closed(q, rep) == kept

    @pytest.mark.parametrize("call", [
        lambda q, rep: pe.push_forward(q, rep, 1), lambda q, rep: pe.average(q, rep, "projection"),
        lambda q, rep: pe.average(q, rep, "arithmetic"),
    ])  # fmt: skip
    def test_turns_by_45_degrees(self, call):
        turn = pe.matrix(pe.CyclicGroup(8), rotations(8))
        message = r"keeps a low-rank Normal; matrix\(2\) does not\. Other linear actions spoil its diagonal: use a full"
        with pytest.raises(ClosednessError, match=message):
            call(low_rank(turn), turn)


class TestUnknownFamilies:
    @pytest.mark.parametrize("call", [pe.natural, pe.mean, lambda q: pe.is_closed(q, pe.trivial(pe.SignGroup(), 2)),
                                      lambda q: pe.kl(q, q)])  # fmt: skip
    @pytest.mark.parametrize("q", [
        dist.Gamma(torch.ones(2), 1.0), dist.LogNormal(torch.zeros(2), 1.0).to_event(1), dist.Delta(torch.zeros(2)),
    ], ids=repr)  # fmt: skip
    def test_are_named(self, call, q):
        name = type(getattr(q, "base_dist", q) if isinstance(q, dist.Independent) else q).__name__
        known = "LowRankMultivariateNormal, MultivariateNormal, Normal"
        with pytest.raises(ClosednessError, match=rf"families {known} \(or to_event.*; got {name}"):
            call(q)

    def test_can_be_registered(self, monkeypatch):
        class Point(Family):
            name, advice = "point", ""

            def coordinates(self, q, kind):
                return (q.v,)

            def from_coordinates(self, kind, coordinates):
                return dist.Delta(*coordinates)

            def actions(self, rep, kind):
                return (rep,)

            def is_closed(self, rep):
                return True

        monkeypatch.setattr("pyro_equivariance.families.base._FAMILIES", {})
        register(dist.Delta, Point())
        rep = pe.permutation(pe.SymmetricGroup(2))
        q = dist.Delta(torch.tensor([1.0, 3.0])).to_event(1)
        assert pe.push_forward(q, rep, 1).base_dist.v.tolist() == [3.0, 1.0]
        assert pe.average(q, rep).base_dist.v.tolist() == [2.0, 2.0]


def test_unwrap_counts_every_event_axis():
    q = dist.Normal(torch.zeros(2, 3, 4), 1.0)
    nested = dist.Independent(dist.Independent(q, 1), 2)
    assert [unwrap(d)[2] for d in (q, q.to_event(2), q.to_event(1).to_event(1), nested)] == [0, 2, 2, 3]
    assert all(unwrap(d)[1] is q for d in (q, q.to_event(2), nested))
    assert rewrap(q, 0) is q and rewrap(q, 2).event_shape == (3, 4)
