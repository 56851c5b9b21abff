"""Coordinates, push-forwards and closedness against closed forms and numerical oracles."""

import math

import pyro.distributions as dist
import pytest
import torch
from catalogue import (
    FAMILIES,
    PARAMETERS,
    REPRESENTATIONS,
    rotations,
    rules_of,
    scaled_swap,
    signed_turns,
)
from pyro.distributions import transforms
from torch.testing import assert_close

import pyro_equivariance as pe
from pyro_equivariance import families
from pyro_equivariance.errors import ClosednessError, SymmetryError
from pyro_equivariance.families import COORDINATES, orbit_mean
from pyro_equivariance.families.base import Family, all_elements, divergence, register, rewrap, unwrap
from pyro_equivariance.representations import Factor

EXACT = {"atol": 1e-12, "rtol": 1e-12}
SOLVED = {"atol": 1e-10, "rtol": 1e-10}  # where an equation was solved
NORMALS = [name for name in FAMILIES if name.startswith(("Normal", "MultivariateNormal"))]
EXPONENTIAL = [name for name in FAMILIES if len(rules_of(name)) > 1]


@pytest.fixture(params=FAMILIES)
def name(request):
    return request.param


@pytest.fixture
def pair(name):
    return FAMILIES[name]()


@pytest.fixture(params=EXPONENTIAL)
def exponential(request):
    return FAMILIES[request.param]()


def moments(q, rep):
    """Mean ``(*batch, n)`` and covariance ``(*batch, n, n)`` of the flattened event."""
    core = unwrap(q)[1]
    if isinstance(core, dist.MultivariateNormal):
        return core.loc, core.covariance_matrix
    batch = core.loc.shape[: core.loc.ndim - len(rep.event_shape)]
    flat = (*batch, rep.event_shape.numel())
    return core.loc.reshape(flat), torch.diag_embed(core.scale.reshape(flat) ** 2)


def coordinates(q, kind="standard"):
    family, core, _ = unwrap(q)
    return family.coordinates(core, kind)


def assert_same_law(p, q, rep, **tolerance):
    assert (p.batch_shape, p.event_shape, type(p)) == (q.batch_shape, q.event_shape, type(q))
    for first, second in zip(coordinates(p), coordinates(q), strict=True):
        assert_close(first, second, **tolerance)


def total(log_prob, axes=1):
    """Summed over all but the first axes."""
    return log_prob.flatten(axes).sum(-1) if log_prob.ndim > axes else log_prob


def assert_density(q):
    theta = q.sample((6,))
    statistics, eta = families.sufficient_statistics(q, theta), pe.natural(q)
    assert [t.shape[1:] for t in statistics] == [e.shape for e in eta]
    pairing = sum(total(t * e) for t, e in zip(statistics, eta, strict=True))
    base = total(families.family_of(q).log_base_measure(theta))
    normalizer = families.log_normalizer(q)
    assert normalizer.shape == q.batch_shape
    assert_close(total(q.log_prob(theta)), base + pairing - normalizer.sum(), **SOLVED)


class TestCoordinates:
    @pytest.mark.parametrize("kind", COORDINATES)
    def test_round_trip(self, name, kind):
        q, rep = FAMILIES[name]()
        if kind != "standard" and name not in EXPONENTIAL:
            return
        family, core, event_dims = unwrap(q)
        again = rewrap(family.from_coordinates(kind, family.coordinates(core, kind)), event_dims)
        assert_same_law(again, q, rep, **(EXACT if isinstance(core, dist.Normal) else SOLVED))

    def test_natural_to_mean_to_natural(self, exponential):
        q, rep = exponential
        family = unwrap(q)[0]
        there = family.from_coordinates("mean", family.coordinates(unwrap(q)[1], "mean"))
        for first, second in zip(family.coordinates(there, "natural"), pe.natural(q), strict=True):
            assert_close(first, second, **SOLVED)

    @pytest.mark.parametrize("kind", PARAMETERS)
    def test_from_natural_and_from_mean(self, kind):
        q = kind(*PARAMETERS[kind]((2, 3)))
        if not families.family_of(kind).is_exponential:
            return
        for p in (families.from_natural(kind, pe.natural(q)), families.from_mean(kind, pe.mean(q))):
            assert_same_law(p, q, None, **SOLVED)
        assert families.family_of(kind) is families.family_of(q) is families.family_of(q.expand((4, *q.batch_shape)))

    def test_mean_is_the_gradient_of_the_log_normaliser(self, exponential):
        q, _ = exponential
        eta = tuple(t.detach().requires_grad_() for t in pe.natural(q))
        gradient = torch.autograd.grad(unwrap(q)[0].log_normalizer(eta).sum(), eta)
        for found, expected in zip(gradient, pe.mean(q), strict=True):
            assert_close(found, expected, **SOLVED)

    def test_density_is_that_of_the_exponential_family(self, exponential):
        """``log q(θ) = log h(θ) + ⟨η, T(θ)⟩ − A(η)``."""
        assert_density(exponential[0])

    def test_natural_parameters_are_those_of_torch(self):
        for kind in (
            dist.Normal,
            dist.Gamma,
            dist.Beta,
            dist.Dirichlet,
            dist.Poisson,
            dist.Bernoulli,
            dist.Exponential,
        ):
            q = kind(*PARAMETERS[kind]((2, 3)))
            for first, second in zip(pe.natural(q), q._natural_params, strict=True):
                assert_close(first, second, **EXACT)

    def test_by_hand(self):
        q = dist.Normal(torch.tensor([2.0, -1.0]), torch.tensor([0.5, 2.0])).to_event(1)
        assert [t.tolist() for t in pe.natural(q)] == [[8.0, -0.25], [-2.0, -0.125]]
        assert [t.tolist() for t in pe.mean(q)] == [[2.0, -1.0], [4.25, 5.0]]

    def test_moments_by_hand(self):
        """``ψ(1) = −γ`` and ``ψ(n + 1) = ψ(n) + 1/n``."""
        gamma, one = 0.5772156649015329, torch.tensor(1.0)
        means = {
            dist.Gamma(3 * one, 2 * one): (1.5 - gamma - math.log(2), 1.5),
            dist.InverseGamma(3 * one, 2 * one): (math.log(2) - 1.5 + gamma, 1.5),
            dist.Exponential(4 * one): (0.25,),
            dist.LogNormal(3 * one, 2 * one): (3.0, 13.0),
            dist.Beta(one, 2 * one): (-1.5, -0.5),
            dist.Bernoulli(0.3 * one): (0.3,),
            dist.Poisson(2 * one): (2.0,),
            dist.Dirichlet(torch.tensor([1.0, 1.0, 2.0])): ([-11 / 6, -11 / 6, -5 / 6],),
            dist.Categorical(torch.tensor([0.2, 0.8])): ([0.2, 0.8],),
        }
        for q, expected in means.items():
            for found, value in zip(pe.mean(q), expected, strict=True):
                assert_close(found, torch.tensor(value), **EXACT)


SHAPES = torch.logspace(-2, 4, 121, dtype=torch.float64)


class TestSolvedFromTheMean:
    """Shapes from 1e-2 to 1e4, and the derivatives that training needs."""

    @pytest.mark.parametrize("kind", [dist.Gamma, dist.InverseGamma])
    def test_shapes(self, kind):
        q = kind(SHAPES, SHAPES.flip(0).clamp(0.1, 10.0))
        for found, expected in zip(pe.natural(families.from_mean(kind, pe.mean(q))), pe.natural(q), strict=True):
            assert_close(found, expected, **SOLVED)

    @pytest.mark.parametrize("categories", [2, 3, 20])
    def test_concentrations(self, categories):
        """To 1e-10, or to what rounding the mean parameters (to 2 ulps of the digammas) leaves of the concentrations.

        The smallest of ``E[log x]`` say almost nothing of the largest ``α``.
        """
        alike = SHAPES[:, None] * (1 + 0.3 * torch.rand(len(SHAPES), categories))
        mixed = 10 ** (6 * torch.rand(400, categories) - 2)
        for a in (alike, mixed):
            digamma = a.digamma().abs() + a.sum(-1, keepdim=True).digamma().abs()
            information = torch.diag_embed(torch.polygamma(1, a)) - torch.polygamma(1, a.sum(-1))[:, None, None]
            condition = (information.inverse().abs() @ digamma[..., None])[..., 0] / a
            found = families.from_mean(dist.Dirichlet, pe.mean(dist.Dirichlet(a))).concentration
            error, rounding = ((found - a) / a).abs(), 2 * torch.finfo(a.dtype).eps * condition
            assert (error <= 1e-10 + rounding).all() and (error < 1e-10).double().mean() > 0.95
            assert_close(pe.mean(dist.Dirichlet(found)), pe.mean(dist.Dirichlet(a)), **EXACT)

    def test_betas_are_dirichlets_of_two(self):
        first, second = SHAPES[:, None].expand(-1, len(SHAPES)), SHAPES.expand(len(SHAPES), -1)
        found = families.from_mean(dist.Beta, pe.mean(dist.Beta(first, second)))
        assert_close(pe.mean(found), pe.mean(dist.Beta(first, second)), **EXACT)
        close = (first / second).log10().abs() < 2
        assert_close(found.concentration1[close], first[close], atol=0, rtol=1e-9)

    @pytest.mark.parametrize("kind", [dist.Gamma, dist.InverseGamma, dist.Beta, dist.Dirichlet])
    @pytest.mark.filterwarnings("ignore::pyro_equivariance.errors.WideOrbitWarning")
    def test_averages_in_single_precision(self, kind):
        """Mean parameters of large shapes tell nothing in float32; the average is none the worse."""
        parameters = tuple(1e6 * p for p in PARAMETERS[kind]((3, 3)))
        rep = pe.permutation(pe.SymmetricGroup(3))
        expected = pe.average(kind(*parameters), rep, "arithmetic")
        found = pe.average(kind(*(p.float() for p in parameters)), rep, "arithmetic")
        for single, double in zip(coordinates(found), coordinates(expected), strict=True):
            assert single.dtype == torch.float32
            assert_close(single.double(), double, rtol=1e-4, atol=0)

    @pytest.mark.parametrize("kind", [dist.Gamma, dist.InverseGamma, dist.Beta, dist.Dirichlet])
    def test_derivative(self, kind):
        means = tuple(m.detach().requires_grad_() for m in pe.mean(kind(*PARAMETERS[kind]((2, 3)))))
        assert torch.autograd.gradcheck(lambda *m: pe.natural(families.from_mean(kind, m)), means)

    def test_derivative_is_the_inverse_fisher_information(self):
        for shape in (0.02, 3.0, 5e3):
            eta = tuple(t.detach().requires_grad_() for t in pe.natural(dist.Gamma(torch.tensor(shape), 2.0)))
            there = torch.autograd.functional.jacobian(lambda *e: pe.mean(families.from_natural(dist.Gamma, e)), eta)
            means = tuple(m.detach() for m in pe.mean(families.from_natural(dist.Gamma, eta)))
            back = torch.autograd.functional.jacobian(lambda *m: pe.natural(families.from_mean(dist.Gamma, m)), means)
            product = torch.tensor(back) @ torch.tensor(there)
            assert_close(product, torch.eye(2), rtol=0, atol=1e-6)


def moved_values(q, rep, g, theta):
    """Values that the action moves in its own space, and the logarithm of the volume that this makes of each draw."""
    discrete = q.support.is_discrete
    if rep.space == "constrained":
        moved = rep.act(g, theta)
        copies = theta[0].numel() // max(1, rep.event_shape.numel())
        volume = copies * torch.linalg.slogdet(rep.matrix(g)).logabsdet if rep.is_linear and not discrete else 0.0
        return moved, volume
    if discrete:
        return (rep.act(g, 2 * theta - 1) / 2 + 0.5).round(decimals=9), 0.0  # the signs of the logits
    to_support = transforms.biject_to(q.support)
    u = to_support.inv(theta)
    moved = to_support(rep.act(g, u))
    jacobians = [total(to_support.log_abs_det_jacobian(v, x)) for v, x in [(u, theta), (rep.act(g, u), moved)]]
    volume = torch.linalg.slogdet(rep.matrix(g)).logabsdet * (u[0].numel() // rep.event_shape.numel())
    return moved, volume + jacobians[1] - jacobians[0]


class TestPushForward:
    @pytest.mark.parametrize("name", NORMALS)
    def test_moves_mean_and_covariance(self, name):
        q, rep = FAMILIES[name]()
        loc, covariance = moments(q, rep)
        for g in range(min(len(rep.group), 8)):
            M = rep.matrix(g)
            moved_loc, moved_covariance = moments(pe.push_forward(q, rep, g), rep)
            assert_close(moved_loc, (M @ loc[..., None])[..., 0], **EXACT)
            assert_close(moved_covariance, M @ covariance @ M.mT, **EXACT)

    def test_density_of_moved_samples(self, pair):
        q, rep = pair
        theta = q.sample((4,))
        for g in {len(rep.group) - 1, len(rep.group) // 2, 1 % len(rep.group)}:
            moved = pe.push_forward(q, rep, g)
            assert (moved.batch_shape, moved.event_shape, type(moved)) == (q.batch_shape, q.event_shape, type(q))
            values, volume = moved_values(q, rep, g, theta)
            assert_close(total(moved.log_prob(values)) + volume, total(q.log_prob(theta)), **SOLVED)

    def test_elements_broadcast(self, pair):
        q, rep = pair
        _, core, _ = unwrap(q)
        everywhere = pe.push_forward(core, rep, all_elements(core, rep))
        for g in range(min(len(rep.group), 8)):
            for found, expected in zip(coordinates(everywhere), coordinates(pe.push_forward(q, rep, g)), strict=True):
                assert_close(found[g], expected, **EXACT)

    def test_composes(self, pair):
        q, rep = pair
        g, h = 1 % len(rep.group), len(rep.group) - 1
        twice = pe.push_forward(pe.push_forward(q, rep, h), rep, g)
        assert_same_law(twice, pe.push_forward(q, rep, int(rep.group.compose(g, h))), rep, **SOLVED)
        assert_same_law(pe.push_forward(q, rep, 0), q, rep, **SOLVED)

    def test_keeps_the_divergence(self, name, pair):
        (q, rep), (p, _) = pair, FAMILIES[name]()
        if name.startswith("StudentT"):
            with pytest.raises(ClosednessError, match="of a Student-t has none. Estimate it from draws"):
                pe.kl(q, p)
            return
        before = pe.kl(q, p)
        assert before > 1e-3
        for g in range(min(len(rep.group), 8)):
            assert_close(pe.kl(pe.push_forward(q, rep, g), pe.push_forward(p, rep, g)), before, **SOLVED)

    def test_gradients_flow(self):
        loc, scale = torch.randn(2).requires_grad_(), torch.rand(2).requires_grad_()
        moved = pe.push_forward(dist.Normal(loc, scale), scaled_swap(), 1)
        gradients = torch.autograd.grad(moved.loc.sum() + moved.scale.sum(), (loc, scale))
        assert [g.tolist() for g in gradients] == [[0.5, 2.0], [0.5, 2.0]]

    def test_by_hand(self):
        one = torch.ones(2)
        flip = pe.signed_permutation(pe.SignGroup(), [[0, 1]] * 2, [[1, 1], [-1, 1]]).on_unconstrained()
        mirrored = pe.push_forward(dist.Beta(torch.tensor([2.0, 3.0]), one), flip, 1)
        assert (mirrored.concentration1.tolist(), mirrored.concentration0.tolist()) == ([1.0, 3.0], [2.0, 1.0])
        assert_close(pe.push_forward(dist.Bernoulli(0.2 * one), flip, 1).probs, torch.tensor([0.8, 0.2]))
        scaled = pe.push_forward(dist.Gamma(torch.tensor([2.0, 3.0]), one), scaled_swap(), 1)
        assert_close((scaled.concentration, scaled.rate), (torch.tensor([3.0, 2.0]), torch.tensor([0.5, 2.0])))
        relabelled = pe.push_forward(
            dist.Categorical(torch.tensor([0.2, 0.5, 0.3])), pe.labels(pe.SymmetricGroup(3)), 1
        )
        assert_close(relabelled.probs, torch.tensor([0.2, 0.3, 0.5]))
        moved = pe.push_forward(dist.StudentT(torch.tensor([3.0, 5.0]), one, one), scaled_swap(), 1)
        assert_close((moved.df, moved.loc), (torch.tensor([5.0, 3.0]), torch.tensor([2.0, 0.5])))

    @pytest.mark.parametrize("q", [
        dist.Normal(torch.zeros(3), 1.0), dist.Normal(torch.zeros(2, 3), 1.0).to_event(2), dist.Normal(0.0, 1.0),
        dist.MultivariateNormal(torch.zeros(3), torch.eye(3)), dist.Gamma(torch.ones(3), 1.0),
    ], ids=repr)  # fmt: skip
    def test_wrong_shape(self, q):
        for call in (lambda: pe.push_forward(q, signed_turns(), 1), lambda: pe.average(q, signed_turns())):
            with pytest.raises(SymmetryError, match=r"distribution on the shape \(2,\) of signed permutation\(2\)"):
                call()

    def test_wrong_number_of_labels(self):
        q = dist.Categorical(torch.ones(4))
        for call in (lambda rep: pe.push_forward(q, rep, 1), lambda rep: pe.average(q, rep)):
            with pytest.raises(SymmetryError, match=r"labels of 4 categories; got labels\(3\) of 3"):
                call(pe.labels(pe.SymmetricGroup(3)))


class TestDivergence:
    def test_by_hand(self):
        """Σ log σ_p/σ_q + (σ_q² + (μ_q − μ_p)²) / 2σ_p² − ½."""
        (q, _), (p, _) = FAMILIES["Normal, batch and event"](), FAMILIES["Normal, batch and event"]()
        (m, s), (n, t) = (coordinates(d) for d in (q, p))
        expected = ((t / s).log() + (s**2 + (m - n) ** 2) / (2 * t**2) - 0.5).sum()
        assert_close(pe.kl(q, p), expected, **EXACT)
        assert pe.kl(q, p).shape == () and pe.kl(q, q) == 0

    @pytest.mark.parametrize("name", EXPONENTIAL)
    def test_is_that_of_the_exponential_family(self, name):
        (q, _), (p, _) = FAMILIES[name](), FAMILIES[name]()
        family, core, _ = unwrap(q)
        expected = Family.kl(family, core, unwrap(p)[1])
        assert_close(pe.kl(q, p), expected, **SOLVED)
        assert pe.kl(q, p).shape == () and abs(pe.kl(q, q)) < 1e-12

    @pytest.mark.parametrize("name", [name for name in FAMILIES if not name.startswith("StudentT")])
    def test_is_the_mean_log_ratio(self, name):
        (q, _), (p, _) = FAMILIES[name](), FAMILIES[name]()
        draws = q.sample((4000,))
        ratios = total(q.log_prob(draws)) - total(p.log_prob(draws))
        error = float(ratios.std() / len(ratios) ** 0.5)
        assert error > 0 and abs(float(ratios.mean() - pe.kl(q, p))) < 4.5 * error

    def test_of_other_families_where_torch_has_it(self):
        assert pe.kl(dist.Laplace(0.0, 1.0), dist.Normal(0.0, 1.0)) > 0
        with pytest.raises(ClosednessError, match="closed form; got a Poisson and a Beta"):
            pe.kl(dist.Poisson(1.0), dist.Beta(1.0, 1.0))
        exponential, logistic = transforms.ExpTransform(), transforms.SigmoidTransform()
        with pytest.raises(ClosednessError, match="under the same transforms"):
            normal = dist.Normal(torch.zeros(2), 1.0)
            pe.kl(*(dist.TransformedDistribution(normal, [t]) for t in (exponential, logistic)))

    def test_of_a_family_that_torch_does_not_know(self):
        class Copy(dist.Poisson):
            pass

        q, p = Copy(torch.tensor(2.0)), Copy(torch.tensor(3.0))
        assert_close(families.family_of(q).kl(q, p), pe.kl(q, p), **EXACT)
        assert_close(divergence(unwrap(q)[:2], unwrap(p)[:2]), pe.kl(q, p), **EXACT)


def in_support(theta, support):
    return bool(torch.as_tensor(support.check(theta)).all())


def is_in_span(q, rep):
    """Whether ``T(ρ(g)⁻¹ θ)`` and the change of ``log h`` are affine functions of ``T(θ)``, by least squares.

    θ are random points of the support, which the action must keep.
    """
    family, n = families.family_of(q), rep.event_shape.numel()
    count = 6 * n + n * n + 20
    theta = q.sample((2 * count,))
    features = torch.cat([torch.ones(len(theta), 1), flat(families.sufficient_statistics(q, theta))], 1)
    for g in rep.group.generators:
        try:
            moved, volume = moved_values(q, rep, int(rep.group.inverse(g)), theta)
        except SymmetryError:
            return False  # labels of what are no labels
        if not in_support(moved, q.support):
            return False
        base = total(family.log_base_measure(moved)) - total(family.log_base_measure(theta)) + volume
        base = torch.as_tensor(base).expand(len(theta))[:, None]
        targets = torch.cat([flat(families.sufficient_statistics(q, moved)), base], 1)
        residual = targets - features @ torch.linalg.lstsq(features, targets, driver="gelsd").solution
        if residual.abs().max() > 1e-8 * targets.abs().max().clamp_min(1.0):
            return False
    return True


def flat(statistics):
    return torch.cat([t.to(torch.float64).reshape(len(t), -1) for t in statistics], 1)


SMALL = [n for n, make in REPRESENTATIONS.items() if make().event_shape.numel() <= 12]
NONLINEAR = {
    "angle": lambda: pe.angle(pe.CyclicGroup(2), [0.0, math.pi]),
    "angles": lambda: pe.angle(pe.CyclicGroup(2), [0.0, math.pi]) * pe.trivial(pe.CyclicGroup(2), 3),
    "angle as a vector": lambda: pe.angle(pe.CyclicGroup(2), [0.0, math.pi]).reshape(1),
    "labels of three": lambda: pe.labels(pe.SymmetricGroup(3)),
    "labels of two": lambda: pe.labels(pe.SignGroup(), [[0, 1], [1, 0]]),
    "labels of two, in order": lambda: pe.labels(pe.SignGroup(), [[0, 1], [0, 1]]),
    "several labels": lambda: pe.labels(pe.SymmetricGroup(3)) * pe.trivial(pe.SymmetricGroup(3), 2),
    "labels that are permuted": lambda: pe.permutation(pe.SymmetricGroup(3)) * pe.labels(pe.SymmetricGroup(3)),
    "labels as a vector": lambda: pe.labels(pe.SymmetricGroup(3)).reshape(1),
    "labels of a factor": lambda: Factor(pe.SymmetricGroup(3) * pe.SignGroup(), pe.labels(pe.SymmetricGroup(3)), 0),
    "labels of a subgroup": lambda: pe.labels(pe.SymmetricGroup(3)).pullback(
        pe.SymmetricGroup(3).subgroup([1]), pe.SymmetricGroup(3).subgroup([1]).inclusion
    ),
}
ACTIONS = {name: REPRESENTATIONS[name] for name in SMALL} | NONLINEAR
ANGLES = {name: make for name, make in NONLINEAR.items() if name.startswith("angle")}
ON_ROWS = (dist.Dirichlet, dist.OneHotCategorical)
CONTINUOUS = (dist.Normal, dist.Gamma, dist.InverseGamma, dist.Exponential, dist.LogNormal, dist.Beta)


def some_law(kind, rep):
    """Of the shape of the action; labels of as many values as the action moves, or of three."""
    if kind is not dist.Categorical:
        return kind(*PARAMETERS[kind](tuple(rep.event_shape)))
    return kind(*PARAMETERS[kind]((*rep.event_shape, 2 if rep in TWO else 3)))


TWO = [NONLINEAR[name]() for name in ("labels of two", "labels of two, in order")]


class TestClosedness:
    @pytest.mark.parametrize("kind", [kind for kind in PARAMETERS if families.family_of(kind).is_exponential])
    def test_against_the_oracle(self, kind):
        for name, make in ACTIONS.items():
            rep = make()
            if kind in (*ON_ROWS, dist.OneHotCategoricalStraightThrough) and (
                not rep.event_shape or rep.event_shape[-1] == 1
            ):
                continue
            q = some_law(kind, rep)
            assert pe.is_closed(q, rep) == is_in_span(q, rep), name

    @pytest.mark.parametrize("kind", [*CONTINUOUS, dist.Bernoulli])
    def test_on_unconstrained_values_against_the_oracle(self, kind):
        for name in SMALL:
            rep = REPRESENTATIONS[name]().on_unconstrained()
            q = some_law(kind, rep)
            assert pe.is_closed(q, rep) == is_in_span(q, rep), name

    @pytest.mark.parametrize("name", ACTIONS)
    def test_multivariate_normal_against_the_oracle(self, name):
        rep = ACTIONS[name]()
        n = rep.event_shape.numel()
        q = dist.MultivariateNormal(torch.zeros(n), torch.eye(n))
        expected = len(rep.event_shape) == 1 and is_in_span(q, rep)
        assert pe.is_closed(q, rep) == expected

    @pytest.mark.parametrize("kind", [dist.Laplace, dist.StudentT])
    def test_locations_and_scales_need_entries_that_do_not_mix(self, kind):
        for make in ACTIONS.values():
            rep = make()
            mixing = not rep.is_linear or bool(((rep.matrix(rep.group.elements).abs() > 1e-9).sum(-1) > 1).any())
            assert pe.is_closed(some_law(kind, rep), rep) == (not mixing)

    def test_the_oracle_tells_apart(self):
        turn = pe.matrix(pe.CyclicGroup(8), rotations(8))
        mean_field, full = dist.Normal(torch.zeros(2), 1.0), dist.MultivariateNormal(torch.zeros(2), torch.eye(2))
        assert not is_in_span(mean_field, turn) and is_in_span(full, turn)
        assert is_in_span(mean_field, signed_turns()) and is_in_span(mean_field, scaled_swap())
        gamma = dist.Gamma(torch.ones(2), 1.0)
        assert is_in_span(gamma, scaled_swap()) and not is_in_span(gamma, scaled_swap().on_unconstrained())
        assert not is_in_span(gamma, signed_turns())

    def test_every_family_knows_its_own_law(self, pair):
        q, rep = pair
        assert pe.is_closed(q, rep) is True

    @pytest.mark.parametrize("call", [
        lambda q, rep: pe.push_forward(q, rep, 1), pe.average, lambda q, rep: orbit_mean(q, rep, "natural"),
    ], ids=["push_forward", "average", "orbit_mean"])  # fmt: skip
    def test_turns_by_45_degrees(self, call):
        turn = pe.matrix(pe.CyclicGroup(8), rotations(8))
        message = r"keeps a mean-field Normal; matrix\(2\) does not\. It mixes entries: use a full-covariance"
        with pytest.raises(ClosednessError, match=message):
            call(dist.Normal(torch.zeros(2), 1.0).to_event(1), turn)
        call(dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), turn)

    @pytest.mark.parametrize("kind", [kind for kind in PARAMETERS if kind is not dist.Categorical])
    def test_refusals_say_what_to_do(self, kind):
        turn = pe.matrix(pe.CyclicGroup(8), rotations(8))
        q, family = kind(*PARAMETERS[kind]((2,))), families.family_of(kind)
        with pytest.raises(ClosednessError, match=f"keeps a {family.name}; matrix.2. does not") as error:
            pe.push_forward(q, turn, 1)
        assert family.advice in str(error.value)

    def test_full_normals_need_one_axis(self):
        q, rep = dist.MultivariateNormal(torch.zeros(2, 2), torch.eye(2)), pe.trivial(pe.SignGroup(), (2, 2))
        with pytest.raises(ClosednessError, match=r"full-covariance Normal; .*reshape\(\(n,\)\)"):
            pe.push_forward(q, rep, 1)


PERMUTED = pe.permutation(pe.SymmetricGroup(2))
FLIPPED = pe.signed_permutation(pe.SignGroup(), [[0, 1]] * 2, [[1, 1], [-1, -1]])
UNEVEN = transforms.AffineTransform(0.0, torch.tensor([1.0, 2.0]))
THROUGH = {
    "permuted": (transforms.ExpTransform(), PERMUTED, True),
    "no transform": (transforms.ComposeTransform([]), FLIPPED, True),
    "treated unlike": (UNEVEN, PERMUTED, False),
    "signs of positive values": (transforms.ExpTransform(), FLIPPED, False),
    "signs of logarithms": (transforms.ExpTransform(), FLIPPED.on_unconstrained(), True),
    "signs of another's unconstrained values": (transforms.SoftplusTransform(), FLIPPED.on_unconstrained(), False),
    "permuted unconstrained values": (transforms.SoftplusTransform(), PERMUTED.on_unconstrained(), True),
    "mixed unconstrained values": (
        transforms.ExpTransform(), pe.matrix(pe.CyclicGroup(8), rotations(8)).on_unconstrained(), False,
    ),
    "not one-to-one": (transforms.AbsTransform(), PERMUTED, False),
    "sticks": (transforms.StickBreakingTransform(), FLIPPED.on_unconstrained(), True),
    "sticks, on shares": (transforms.StickBreakingTransform(), pe.permutation(pe.SymmetricGroup(3)), False),
}  # fmt: skip


class TestTransformed:
    @pytest.mark.parametrize("name", THROUGH)
    def test_actions_that_pass_through(self, name):
        transform, rep, passes = THROUGH[name]
        q = dist.TransformedDistribution(dist.Normal(torch.tensor([0.0, 0.3]), 1.0), [transform])
        assert pe.is_closed(q, rep) == passes
        if passes:
            moved = pe.push_forward(q, rep, 1)
            inner = pe.push_forward(q.base_dist, rep, 1)
            assert_close(unwrap(moved.base_dist)[1].loc, unwrap(inner)[1].loc)
            assert_density(q)
            return
        with pytest.raises(ClosednessError, match="under transforms entry by entry, all alike, and permutations"):
            pe.push_forward(q, rep, 1)

    def test_a_divergence_needs_transforms_that_are_one_to_one(self):
        """|N(1, 1)| and |N(−1, 1)| are one law, though the Normals differ."""
        folded = [dist.TransformedDistribution(dist.Normal(loc, 1.0), transforms.AbsTransform()) for loc in (1.0, -1.0)]
        with pytest.raises(ClosednessError, match="one to one"):
            pe.kl(*folded)

    def test_half_normals_are_refused(self):
        with pytest.raises(ClosednessError, match="mean-field Normal under AbsTransform"):
            pe.average(dist.HalfNormal(torch.ones(2)), PERMUTED)


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
        dist.Cauchy(torch.ones(2), 1.0), dist.Delta(torch.zeros(2)).to_event(1), dist.HalfCauchy(torch.ones(2)),
    ], ids=repr)  # fmt: skip
    def test_are_named(self, call, q):
        name = type(getattr(q, "base_dist", q) if isinstance(q, dist.Independent) else q).__name__
        with pytest.raises(
            ClosednessError, match=rf"families Bernoulli, Beta, .*, Wishart \(or to_event.*; got {name}"
        ):
            call(q)
        with pytest.raises(ClosednessError, match=rf"; got {type(q).__name__}"):
            families.family_of(type(q))

    @pytest.mark.parametrize("kind", [dist.Laplace, dist.StudentT])
    def test_without_natural_parameters(self, kind):
        q, rep = kind(*PARAMETERS[kind]((2,))), pe.permutation(pe.SymmetricGroup(2))
        message = f"natural and mean parameters; a {families.family_of(kind).name} has none. Use rule='projection'"
        for call in (lambda: pe.natural(q), lambda: pe.mean(q), lambda: pe.average(q, rep),
                     lambda: pe.average(q, rep, "arithmetic"), lambda: families.log_normalizer(q),
                     lambda: families.from_natural(kind, (q.loc,)), lambda: families.from_mean(kind, (q.loc,)),
                     lambda: pe.average(q, rep, measure=[0.5, 0.5])):  # fmt: skip
            with pytest.raises(ClosednessError, match=message):
                call()

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
