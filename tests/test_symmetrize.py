"""The three averages: invariant, idempotent, as their formulas say, and where their divergences are least."""

import pyro.distributions as dist
import pytest
import torch
from catalogue import FAMILIES, multivariate_normal, normal, rotations, scaled_swap, signed_turns
from test_families import EXACT, SOLVED, assert_same_law, moments
from torch.testing import assert_close

import pyro_equivariance as pe
from pyro_equivariance.errors import ClosednessError, OptionError, SymmetryError
from pyro_equivariance.families.base import unwrap

RULES = ("geometric", "arithmetic", "projection")
NORMALS = [name for name in FAMILIES if name.startswith("Normal")]
FULL = [name for name in FAMILIES if name.startswith("Multi")]


@pytest.fixture(params=FAMILIES)
def name(request):
    return request.param


@pytest.fixture(params=RULES)
def rule(request):
    return request.param


@pytest.fixture
def pair(name):
    return FAMILIES[name]()


def tolerance(q):
    return EXACT if isinstance(unwrap(q)[1], dist.Normal) else SOLVED


def orbit(q, rep):
    return [pe.push_forward(q, rep, g) for g in range(len(rep.group))]


class TestLaws:
    def test_invariant(self, pair, rule):
        q, rep = pair
        average = pe.average(q, rep, rule)
        for moved in orbit(average, rep):
            assert_same_law(moved, average, rep, **tolerance(q))

    def test_of_the_same_kind(self, pair, rule):
        q, rep = pair
        average = pe.average(q, rep, rule)
        assert type(average) is type(q) and type(unwrap(average)[1]) is type(unwrap(q)[1])
        assert (average.batch_shape, average.event_shape) == (q.batch_shape, q.event_shape)

    def test_idempotent(self, pair, rule):
        q, rep = pair
        average = pe.average(q, rep, rule)
        assert_same_law(pe.average(average, rep, rule), average, rep, **tolerance(q))

    @pytest.mark.parametrize("other", RULES)
    def test_leaves_an_invariant_law(self, pair, rule, other):
        q, rep = pair
        invariant = pe.average(q, rep, other)
        assert_same_law(pe.average(invariant, rep, rule), invariant, rep, **tolerance(q))

    def test_the_same_for_the_whole_orbit(self, pair, rule):
        q, rep = pair
        average = pe.average(q, rep, rule)
        for moved in orbit(q, rep)[:4]:
            assert_same_law(pe.average(moved, rep, rule), average, rep, **tolerance(q))

    def test_batches_are_averaged_one_by_one(self, rule):
        q, rep = FAMILIES["Normal, batch"]()
        average = pe.average(q, rep, rule)
        for i, j in [(0, 0), (1, 4)]:
            one = pe.average(dist.Normal(q.loc[i, j], q.scale[i, j]), rep, rule)
            assert_close((average.loc[i, j], average.scale[i, j]), (one.loc, one.scale), **EXACT)

    def test_differentiable(self, rule):
        rep = scaled_swap()

        def parameters(loc, scale):
            average = pe.average(dist.Normal(loc, scale), rep, rule)
            return average.loc, average.scale

        loc, scale = torch.randn(3, 2).requires_grad_(), (0.5 + torch.rand(3, 2)).requires_grad_()
        assert torch.autograd.gradcheck(parameters, (loc, scale))


class TestFormulas:
    @pytest.mark.parametrize("name", NORMALS)
    def test_normal(self, name, rule):
        q, rep = FAMILIES[name]()
        moved = [unwrap(p)[1] for p in orbit(q, rep)]
        loc, scale = torch.stack([p.loc for p in moved]), torch.stack([p.scale for p in moved])
        if rule == "geometric":
            variance = 1 / (1 / scale**2).mean(0)
            expected = variance * (loc / scale**2).mean(0), variance.sqrt()
        elif rule == "arithmetic":
            expected = loc.mean(0), ((scale**2 + loc**2).mean(0) - loc.mean(0) ** 2).sqrt()
        else:
            expected = loc.mean(0), scale.mean(0)
        average = unwrap(pe.average(q, rep, rule))[1]
        assert_close((average.loc, average.scale), expected, **EXACT)

    @pytest.mark.parametrize("name", FULL)
    def test_multivariate_normal(self, name, rule):
        q, rep = FAMILIES[name]()
        loc, covariance = (torch.stack(part) for part in zip(*(moments(p, rep) for p in orbit(q, rep)), strict=True))
        if rule == "geometric":
            expected_covariance = covariance.inverse().mean(0).inverse()
            weighted = (covariance.inverse() @ loc[..., None]).mean(0)
            expected = (expected_covariance @ weighted)[..., 0], expected_covariance
        else:
            spread = loc - loc.mean(0)
            between = (spread[..., :, None] * spread[..., None, :]).mean(0) if rule == "arithmetic" else 0.0
            expected = loc.mean(0), covariance.mean(0) + between
        assert_close(moments(pe.average(q, rep, rule), rep), expected, **SOLVED)

    def test_two_swapped_entries(self):
        """σ = (1, 3) and μ = (0, 4) by hand: variances 1.8, 9 and 4."""
        q = dist.Normal(torch.tensor([0.0, 4.0]), torch.tensor([1.0, 3.0]))
        swap = pe.permutation(pe.SymmetricGroup(2))
        found = {rule: pe.average(q, swap, rule) for rule in RULES}
        variances = {rule: p.variance.tolist() for rule, p in found.items()}
        locs = {rule: p.loc.tolist() for rule, p in found.items()}
        assert variances == {"geometric": pytest.approx([1.8] * 2), "arithmetic": pytest.approx([9.0] * 2),
                             "projection": pytest.approx([4.0] * 2)}  # fmt: skip
        assert locs == {"geometric": pytest.approx([0.4] * 2), "arithmetic": [2.0] * 2, "projection": [2.0] * 2}

    @pytest.mark.filterwarnings("ignore::pyro_equivariance.errors.WideOrbitWarning")
    def test_signs_keep_scales_and_centre_means(self, rule):
        flip = pe.signed_permutation(pe.SignGroup(), [[0, 1]] * 2, [[1, 1], [-1, 1]])
        average = pe.average(dist.Normal(torch.tensor([3.0, 4.0]), torch.tensor([0.5, 2.0])), flip, rule)
        assert_close(average.loc, torch.tensor([0.0, 4.0]))
        spread = 3.0 if rule == "arithmetic" else 0.0
        assert_close(average.scale, torch.tensor([(0.25 + spread**2) ** 0.5, 2.0]))

    def test_default_is_geometric(self):
        q, rep = normal(signed_turns())
        assert_same_law(pe.average(q, rep), pe.average(q, rep, "geometric"), rep, **EXACT)


class TestOptimality:
    """The geometric average minimises ``mean_g KL(p ‖ ρ(g)_# q)`` over all ``p``, the arithmetic one the reverse."""

    DIVERGENCES = {"geometric": lambda p, moved: pe.kl(p, moved), "arithmetic": lambda p, moved: pe.kl(moved, p)}

    def objective(self, rule, p, moved):
        return sum(self.DIVERGENCES[rule](p, m) for m in moved) / len(moved)

    def gradients(self, at, rule, moved):
        core = unwrap(at)[1]
        if isinstance(core, dist.Normal):
            parameters = [core.loc.detach().requires_grad_(), core.scale.detach().requires_grad_()]
            p = dist.Normal(*parameters)
        else:
            parameters = [core.loc.detach().requires_grad_(), core.scale_tril.detach().requires_grad_()]
            p = dist.MultivariateNormal(parameters[0], scale_tril=parameters[1].tril())
        value = self.objective(rule, p, moved)
        return value, torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])

    @pytest.mark.parametrize("rule", DIVERGENCES)
    def test_gradient_vanishes_there_and_only_there(self, pair, rule):
        q, rep = pair
        moved = orbit(q, rep)
        least, gradient = self.gradients(pe.average(q, rep, rule), rule, moved)
        assert gradient.abs().max() < 1e-9
        for other in [q, *(pe.average(q, rep, r) for r in RULES if r != rule)]:
            value, gradient = self.gradients(other, rule, moved)
            assert value > least + 1e-4 and gradient.abs().max() > 1e-3


class TestOrder:
    @pytest.mark.parametrize("name", NORMALS)
    def test_of_scales(self, name):
        q, rep = FAMILIES[name]()
        geometric, projection, arithmetic = (
            unwrap(pe.average(q, rep, rule))[1].scale for rule in ("geometric", "projection", "arithmetic")
        )
        assert (geometric < projection + 1e-12).all() and (projection < arithmetic + 1e-12).all()
        assert (geometric < projection).any() and (projection < arithmetic).any()

    @pytest.mark.parametrize("name", FULL)
    def test_of_covariances(self, name):
        q, rep = FAMILIES[name]()
        geometric, projection, arithmetic = (
            moments(pe.average(q, rep, rule), rep)[1] for rule in ("geometric", "projection", "arithmetic")
        )
        for gap in (projection - geometric, arithmetic - projection):
            assert torch.linalg.eigvalsh(gap).min() > -1e-10 and gap.abs().max() > 1e-3


class TestSites:
    def symmetry(self):
        C4 = pe.CyclicGroup(4)
        return pe.Symmetry(C4, {"kernel": pe.image(C4, (3, 3)), "bias": signed_turns(), "unused": pe.regular(C4)})

    def laws(self):
        sym = self.symmetry()
        return {"bias": normal(sym["bias"], event_dims=1)[0], "kernel": normal(sym["kernel"], event_dims=2)[0]}

    def test_each_by_its_own(self, rule):
        sym, laws = self.symmetry(), self.laws()
        found = pe.average(laws, sym, rule=rule)
        assert list(found) == ["bias", "kernel"]
        for site, q in laws.items():
            assert_same_law(found[site], pe.average(q, sym[site], rule), sym[site], **EXACT)

    def test_missing(self):
        with pytest.raises(SymmetryError, match="representation for site 'scale'"):
            pe.average({"scale": dist.Normal(0.0, 1.0)}, self.symmetry())


class TestBadInput:
    @pytest.mark.parametrize("rule", ["harmonic", "", None, "Geometric"])
    def test_unknown_rule(self, rule):
        with pytest.raises(OptionError, match="rule to be one of 'geometric', 'arithmetic', 'projection'; got "):
            pe.average(dist.Normal(torch.zeros(2), 1.0), signed_turns(), rule=rule)

    def test_shape(self, rule):
        with pytest.raises(SymmetryError, match=r"on the shape \(2,\) .*; got shape \(3,\)"):
            pe.average(dist.Normal(torch.zeros(3), 1.0), signed_turns(), rule)

    def test_not_closed(self, rule):
        turn = pe.matrix(pe.CyclicGroup(8), rotations(8))
        with pytest.raises(ClosednessError, match="mean-field Normal"):
            pe.average(dist.Normal(torch.zeros(2), 1.0), turn, rule)
        pe.average(multivariate_normal(turn)[0], turn, rule)

    def test_family(self, rule):
        with pytest.raises(ClosednessError, match="got Gamma"):
            pe.average(dist.Gamma(torch.ones(2), 1.0), signed_turns(), rule)
