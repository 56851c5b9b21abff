"""The three averages: invariant, idempotent, as their formulas say, where their divergences are least, and when they
warn."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import FAMILIES, multivariate_normal, normal, rotations, rules_of, scaled_swap, signed_turns
from pyro.distributions.transforms import biject_to
from pyro.infer import autoguide
from pyro.infer.autoguide import init_to_value
from test_families import EXACT, SOLVED, assert_same_law, coordinates, moments
from torch.testing import assert_close

import pyro_equivariance as pe
from pyro_equivariance.errors import ClosednessError, OptionError, SymmetryError, WideOrbitWarning
from pyro_equivariance.families.base import unwrap
from pyro_equivariance.symmetrize import WIDE, orbit_spread

RULES = ("geometric", "arithmetic", "projection")
NORMALS = [name for name in FAMILIES if name.startswith("Normal")]
FULL = [name for name in FAMILIES if name.startswith("Multi")]


CATEGORICAL = (torch.distributions.Categorical, torch.distributions.OneHotCategorical)
CASES = [(name, rule) for name in FAMILIES for rule in rules_of(name)]


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


@pytest.mark.filterwarnings("ignore::pyro_equivariance.errors.WideOrbitWarning")
@pytest.mark.parametrize("name, rule", CASES)
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

    def test_leaves_an_invariant_law(self, name, pair, rule):
        q, rep = pair
        for other in rules_of(name):
            invariant = pe.average(q, rep, other)
            assert_same_law(pe.average(invariant, rep, rule), invariant, rep, **tolerance(q))

    def test_the_same_for_the_whole_orbit(self, pair, rule):
        q, rep = pair
        average = pe.average(q, rep, rule)
        for moved in orbit(q, rep)[:4]:
            assert_same_law(pe.average(moved, rep, rule), average, rep, **tolerance(q))

    def test_is_the_mean_of_the_coordinates(self, pair, rule):
        q, rep = pair
        kind = {"geometric": "natural", "arithmetic": "mean", "projection": "standard"}[rule]
        expected = [torch.stack(part).mean(0) for part in zip(*(coordinates(p, kind) for p in orbit(q, rep)),
                                                              strict=True)]  # fmt: skip
        found = coordinates(pe.average(q, rep, rule), kind)
        for first, second in zip(found, expected, strict=True):
            if kind == "natural" and isinstance(unwrap(q)[1], CATEGORICAL):
                second = second - second.logsumexp(-1, keepdim=True)
            assert_close(first, second, **SOLVED)

    def test_gradients_are_those_of_differences(self, pair, rule):
        q, rep = pair
        family, core, _ = unwrap(q)
        parameters = [c.detach().requires_grad_() for c in family.coordinates(core, "standard")]
        directions = [self.direction(c) for c in parameters]

        def value(*parameters):
            averaged = coordinates(pe.average(family.from_coordinates("standard", parameters), rep, rule))
            return sum((torch.arange(1.0, c.numel() + 1).reshape(c.shape) * c).sum() for c in averaged)

        gradients = torch.autograd.grad(value(*parameters), parameters)
        found = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
        there, back = (value(*(c + h * d for c, d in zip(parameters, directions, strict=True))) for h in (1e-5, -1e-5))
        assert_close(found, (there - back) / 2e-5, rtol=1e-6, atol=1e-6)

    def direction(self, c):
        direction = torch.randn(c.shape)
        symmetric = c.ndim > 1 and c.shape[-1] == c.shape[-2] and torch.equal(c, c.mT)  # a covariance
        return 0.1 * (direction + direction.mT if symmetric else direction)


class TestNormals:
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


@pytest.mark.filterwarnings("ignore::pyro_equivariance.errors.WideOrbitWarning")
@pytest.mark.parametrize(
    "name, rule", [case for case in CASES if case[1] != "projection" and len(rules_of(case[0])) > 1]
)
class TestOptimality:
    """The geometric average minimises ``mean_g KL(p ‖ ρ(g)_# q)`` over all ``p``, the arithmetic one the reverse."""

    DIVERGENCES = {"geometric": lambda p, moved: pe.kl(p, moved), "arithmetic": lambda p, moved: pe.kl(moved, p)}

    def objective(self, rule, p, moved):
        return sum(self.DIVERGENCES[rule](p, m) for m in moved) / len(moved)

    def gradients(self, at, rule, moved):
        """With respect to the natural parameters."""
        family, core, event_dims = unwrap(at)
        eta = tuple(c.detach().requires_grad_() for c in family.coordinates(core, "natural"))
        value = self.objective(rule, family.from_coordinates("natural", eta), moved)
        return value, torch.cat([g.flatten() for g in torch.autograd.grad(value, eta)])

    def test_gradient_vanishes_there_and_only_there(self, pair, rule):
        q, rep = pair
        moved = orbit(q, rep)
        best = pe.average(q, rep, rule)
        least, gradient = self.gradients(best, rule, moved)
        assert gradient.abs().max() < 1e-9
        assert self.gradients(q, rule, moved)[1].abs().max() > 1e-3
        for other in [q, *(pe.average(q, rep, r) for r in RULES if r != rule)]:
            if pe.kl(other, best) < 1e-6:
                continue  # a rule of the same coordinates
            value, gradient = self.gradients(other, rule, moved)
            assert value > least + 1e-7 and gradient.abs().max() > 1e-4


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
        with pytest.raises(ClosednessError, match="got Cauchy"):
            pe.average(dist.Cauchy(torch.ones(2), 1.0), signed_turns(), rule)


SWAP = pe.permutation(pe.SymmetricGroup(2))


@pytest.mark.filterwarnings("ignore::pyro_equivariance.errors.WideOrbitWarning")
class TestMeasure:
    @pytest.mark.parametrize("name, rule", CASES)
    def test_uniform_is_the_average(self, name, rule, pair):
        q, rep = pair
        uniform = torch.full((len(rep.group),), 1 / len(rep.group))
        assert_same_law(pe.average(q, rep, rule, measure=uniform), pe.average(q, rep, rule), rep, **SOLVED)

    @pytest.mark.parametrize("name, rule", CASES)
    def test_all_on_one_element_is_the_push_forward(self, name, rule, pair):
        q, rep = pair
        for g in (0, len(rep.group) - 1):
            point = torch.nn.functional.one_hot(torch.tensor(g), len(rep.group))
            assert_same_law(pe.average(q, rep, rule, measure=point), pe.push_forward(q, rep, g), rep, **SOLVED)

    @pytest.mark.parametrize("rule", ["projection", "arithmetic"])
    def test_low_rank(self, rule):
        rep = signed_turns()
        q = dist.LowRankMultivariateNormal(torch.randn(3, 2), torch.randn(3, 2, 1), 0.3 + torch.rand(3, 2))
        measure = [0.4, 0.3, 0.2, 0.1]
        full = pe.average(dist.MultivariateNormal(q.loc, q.covariance_matrix), rep, rule, measure)
        found = pe.average(q, rep, rule, measure)
        assert_close((found.loc, found.covariance_matrix), (full.loc, full.covariance_matrix), **SOLVED)
        with pytest.raises(ClosednessError, match="a low-rank Normal has none"):
            pe.average(q, rep, "geometric", measure)

    def test_is_a_smoothing(self, rule):
        """By hand, and not invariant; sites of a dict have the same measure."""
        q = dist.Gamma(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 1.0])).to_event(1)
        smooth = pe.average(q, SWAP, "projection", measure=torch.tensor([0.75, 0.25]))
        assert smooth.base_dist.concentration.tolist() == [2.5, 3.5]
        assert pe.kl(smooth, pe.push_forward(smooth, SWAP, 1)) > 0.1
        sites = pe.average({"z": q}, pe.Symmetry(SWAP.group, {"z": SWAP}), rule, measure=[0.75, 0.25])
        assert_same_law(sites["z"], pe.average(q, SWAP, rule, measure=[0.75, 0.25]), SWAP, **EXACT)

    @pytest.mark.parametrize("measure, message", [
        ([1.0], r"of 2 probabilities, one for each element of SymmetricGroup\(2\); got shape \(1,\)"),
        ([[0.5, 0.5]], r"got shape \(1, 2\)"), ([1.5, -0.5], "a least one of -0.5 and a sum of 1"),
        ([0.5, 0.4], "a sum of 0.9. Divide it by its sum"), ([math.nan, 1.0], "a sum of nan"),
    ], ids=str)  # fmt: skip
    def test_what_is_no_measure(self, measure, message):
        with pytest.raises(SymmetryError, match=message):
            pe.average(dist.Normal(torch.zeros(2), 1.0), SWAP, measure=measure)

    def test_needs_elements_that_are_numbered(self):
        rep = pe.permutation(pe.YoungSubgroup((2,)))
        with pytest.raises(SymmetryError, match="elements are numbered, for a measure; got YoungSubgroup"):
            pe.average(dist.Normal(torch.zeros(2), 1.0), rep, measure=[0.5, 0.5])


# Wide orbits

SIX = pe.signed_permutation(pe.SignGroup(), [list(range(6))] * 2, [[1] * 6, [-1] * 6])
NUMBERS = r"copies{} lie 5\.0 standard deviations apart \(rms over its entries; above 3 they hardly overlap\)"


def apart(loc=2.0):
    """THEORY's bimodal target from one of its modes: its copy lies at ``-loc``."""
    return dist.Normal(torch.full((6,), loc), 0.4).to_event(1)


def flipped(*sites):
    return pe.Symmetry(pe.SignGroup(), dict.fromkeys(sites or ("z",), SIX))


def standard():
    pyro.sample("z", dist.Normal(torch.zeros(6), 1.0).to_event(1))


def by_hand(*args):
    loc = pyro.param("loc", torch.full((6,), 2.0))
    scale = pyro.param("scale", torch.full((6,), 0.4), constraint=dist.constraints.positive)
    return pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def at_two(kind):
    guide = kind(standard, init_loc_fn=init_to_value(values={"z": torch.full((6,), 2.0)}), init_scale=0.4)
    guide()
    return guide


GUIDES = {
    "mean field": lambda: at_two(pe.AutoMeanFieldNormal),
    "AutoNormal": lambda: at_two(autoguide.AutoNormal),
    "hand-written": lambda: by_hand,
}
WRAPPERS = {
    "handler": lambda guide: pe.handlers.symmetrize(guide, flipped()),
    "decorator": lambda guide: pe.handlers.symmetrize(symmetry=flipped())(guide),
    "module": lambda guide: pe.SymmetrizedGuide(guide, flipped(), "arithmetic"),
}


@pytest.fixture(params=GUIDES)
def guide(request):
    return GUIDES[request.param]()


class TestWideOrbits:
    def test_average(self, rule):
        with pytest.warns(WideOrbitWarning, match=NUMBERS.format("")) as record:
            average = pe.average(apart(), SIX, rule)
        assert len(record) == 1 and record[0].filename == __file__
        assert "pe.OrbitMixture" in str(record[0].message)
        assert_close(average.mean, torch.zeros(6))

    def test_average_of_sites_names_the_widest(self, rule):
        laws = {"a": apart(1.8), "z": apart(2.0), "b": apart(0.0)}
        with pytest.warns(WideOrbitWarning, match=NUMBERS.format(" of site 'z'")) as record:
            pe.average(laws, flipped(*laws), rule)
        assert len(record) == 1 and record[0].filename == __file__

    def test_symmetrize_in_place(self, guide, rule):
        with pytest.warns(WideOrbitWarning, match=NUMBERS.format(" of site 'z'")) as record:
            pe.symmetrize_(guide, flipped(), rule)
        assert len(record) == 1 and record[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pe.symmetrize_(guide, flipped(), rule)  # it is invariant now

    @pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
    def test_wrapped_guides_warn_once(self, guide, wrap):
        wrapped = wrap(guide)
        with pytest.warns(WideOrbitWarning, match=NUMBERS.format(" of site 'z'")) as record:
            wrapped()
        assert len(record) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            wrapped(), wrapped()
        with pytest.warns(WideOrbitWarning):
            wrap(guide)()

    def test_context_manager(self):
        averaging = pe.handlers.symmetrize(symmetry=flipped())
        with pytest.warns(WideOrbitWarning, match=NUMBERS.format(" of site 'z'")), averaging:
            by_hand()
        with averaging:
            by_hand()

    def test_the_widest_site_of_a_guide_is_named(self):
        def guide():
            for site, loc in {"a": 2.0, "b": 0.1, "c": 4.0}.items():
                pyro.sample(site, apart(loc))

        with pytest.warns(WideOrbitWarning) as record:
            pe.handlers.symmetrize(guide, flipped("a", "b", "c"))()
        (warning,) = record
        assert "site 'c' lie 10.0 " in str(warning.message)

    def test_a_warning_that_is_an_error_leaves_no_handler_behind(self):
        wrapped = pe.SymmetrizedGuide(at_two(autoguide.AutoNormal), flipped())
        with pytest.raises(WideOrbitWarning):
            wrapped()
        assert not pyro.poutine.runtime._PYRO_STACK

    def test_a_guide_that_becomes_wide_warns_later(self):
        """It is looked at again at the 10th, 100th, ... call, until it has warned."""
        guide = at_two(autoguide.AutoNormal)
        with torch.no_grad():
            guide.locs.z.fill_(0.1)
        wrapped = pe.SymmetrizedGuide(guide, flipped())
        wrapped()
        with torch.no_grad():
            guide.locs.z.fill_(2.0)
        caught = []
        for _ in range(120):
            with warnings.catch_warnings(record=True) as record:
                warnings.simplefilter("always")
                wrapped()
            caught.append(len(record))
        assert caught.index(1) == 8 and sum(caught) == 1

    @pytest.mark.parametrize("loc, scale", [(0.0, 0.4), (1.0, 0.4), (1.19, 0.4), (2.0, 0.7), (1e-6, 1e-6)])
    def test_silent_where_copies_overlap(self, rule, loc, scale):
        q = dist.Normal(torch.full((6,), loc), scale).to_event(1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pe.average(q, SIX, rule)
            pe.average({"z": q}, flipped(), rule)
            pe.handlers.symmetrize(lambda: pyro.sample("z", q), flipped(), rule)()

    def test_silent_for_an_invariant_law(self, rule):
        swap = pe.permutation(pe.SymmetricGroup(2))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pe.average(dist.Normal(torch.full((2,), 100.0), 0.01).to_event(1), swap, rule)
            full = dist.MultivariateNormal(torch.full((2,), 100.0), 1e-4 * torch.eye(2))
            pe.average(full, swap, rule)


class TestOrbitSpread:
    FIRST = pe.signed_permutation(pe.SignGroup(), [[0, 1]] * 2, [[1, 1], [-1, 1]])
    BY_HAND = {
        "one entry": (dist.Normal(torch.tensor([2.0]), 0.5), pe.vector(pe.SignGroup()), 4.0),
        "the bimodal target": (apart(), SIX, 5.0),
        "swapped": (dist.Normal(torch.tensor([0.0, 4.0]), 1.0), SWAP, 2.0),
        "swapped, mean variance 5": (dist.Normal(torch.tensor([0.0, 4.0]), torch.tensor([1.0, 3.0])), SWAP, 0.8**0.5),
        "an entry that stays": (dist.Normal(torch.tensor([3.0, 4.0]), torch.tensor([0.5, 2.0])), FIRST, 6.0),
        "batch": (dist.Normal(torch.tensor([[3.0, 0.0], [0.0, 9.0]]), 0.5), FIRST, 18**0.5),
        "invariant mean": (dist.Normal(torch.full((2,), 7.0), torch.tensor([1.0, 3.0])), SWAP, 0.0),
        "turned, mean variance 2": (
            dist.MultivariateNormal(torch.tensor([4.0, 0.0]), torch.diag(torch.tensor([1.0, 3.0]))),
            pe.vector(pe.CyclicGroup(8)),
            2.0,
        ),
        "low rank": (
            dist.LowRankMultivariateNormal(torch.tensor([0.0, 4.0]), torch.ones(2, 1), torch.tensor([2.0, 4.0])),
            SWAP,
            1.0,
        ),
        "transformed": (
            dist.TransformedDistribution(
                dist.Normal(torch.tensor([0.0, 4.0]), 1.0), [biject_to(dist.constraints.positive)]
            ),
            SWAP,
            2.0,
        ),
        "a point": (dist.Delta(torch.tensor([0.0, 4.0])), SWAP, 0.0),
        "Exponential": (dist.Exponential(torch.tensor([1.0, 1 / 3])), SWAP, (1 / 5) ** 0.5),
        "logarithms": (dist.LogNormal(torch.tensor([0.0, 4.0]), 1.0), SWAP, 2.0),
        "a Beta mirrored": (
            dist.Beta(torch.tensor([3.0]), 1.0),
            pe.vector(pe.SignGroup()).on_unconstrained(),
            0.25 / 0.0375**0.5,
        ),
        "labels, which have no mean": (dist.Categorical(torch.tensor([0.1, 0.9])), pe.labels(SWAP.group), 0.0),
        "angles": (dist.VonMises(torch.zeros(2), 1.0), pe.angle(pe.SignGroup(), [0.0, math.pi]), 0.0),
        "without a variance": (dist.StudentT(1.5, torch.tensor([0.0, 9.0])), SWAP, 0.0),
        "without a mean": (dist.StudentT(0.5, torch.tensor([0.0, 9.0])), SWAP, 0.0),
        "of infinite mean": (dist.InverseGamma(torch.tensor([0.5, 0.7]), 1.0), scaled_swap(), 0.0),
        "of no known family": (dist.Gumbel(torch.tensor([0.0, 4.0]), 1.0), SWAP, 2.0 / (math.pi / 6**0.5)),
    }

    @pytest.mark.parametrize("name", BY_HAND)
    def test_by_hand(self, name):
        q, rep, expected = self.BY_HAND[name]
        assert orbit_spread(q, rep) == pytest.approx(expected, rel=1e-6, abs=1e-12)

    def test_does_not_depend_on_units(self):
        q, rep = normal(signed_turns(), event_dims=1)
        scaled = dist.Normal(1e6 * q.base_dist.loc, 1e6 * q.base_dist.scale).to_event(1)
        assert orbit_spread(scaled, rep) == pytest.approx(orbit_spread(q, rep), rel=1e-9)

    @pytest.mark.parametrize("factor, wide", [(0.999, False), (1.001, True)])
    def test_threshold(self, factor, wide):
        q = dist.Normal(torch.tensor([WIDE * factor]), 1.0).to_event(1)
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            pe.average(q, pe.vector(pe.SignGroup()))
        assert bool(record) == wide


@pytest.mark.parametrize("kind", ["Normal", "MultivariateNormal"])
def test_a_small_scale_beside_a_large_mean_in_single_precision(kind):
    loc = torch.tensor([1.0, 1.0], dtype=torch.float32)
    q = dist.Normal(loc, 1e-4).to_event(1)
    if kind == "MultivariateNormal":
        q = dist.MultivariateNormal(loc, 1e-8 * torch.eye(2, dtype=torch.float32))
    averaged = pe.average(q, pe.permutation(pe.SymmetricGroup(2)), rule="arithmetic")
    torch.testing.assert_close(averaged.stddev, torch.full((2,), 1e-4, dtype=torch.float32), rtol=1e-5, atol=0)
