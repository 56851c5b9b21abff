"""The three averages: invariant, idempotent, as their formulas say, where their divergences are least, and when they
warn."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import FAMILIES, multivariate_normal, normal, rotations, scaled_swap, signed_turns
from pyro.distributions.transforms import biject_to
from pyro.infer import autoguide
from pyro.infer.autoguide import init_to_value
from test_families import EXACT, SOLVED, assert_same_law, moments
from torch.testing import assert_close

import pyro_equivariance as pe
from pyro_equivariance.errors import ClosednessError, OptionError, SymmetryError, WideOrbitWarning
from pyro_equivariance.families.base import unwrap
from pyro_equivariance.symmetrize import WIDE, orbit_spread

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
    SWAP = pe.permutation(pe.SymmetricGroup(2))
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
