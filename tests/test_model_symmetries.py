"""Symmetries of ordinary models, against enumeration of the group and log densities computed by hand."""

import functools
import itertools
import math
import random
import re
from types import SimpleNamespace

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from catalogue import small_conv
from pyro import poutine
from pyro.infer.mcmc import MCMC, NUTS
from torch import nn
from torch.testing import assert_close

import pyro_equivariance as pe
from pyro_equivariance.errors import OptionError, SymmetryError

CANONICAL = "pyro_equivariance.model_symmetries.canonical"
CLOSE = {"atol": 1e-9, "rtol": 1e-9}
ROUNDING = 1e-9


# The log density, by hand


def prior_draw(model, args):
    nodes = poutine.trace(model).get_trace(*args).nodes
    return {name: site["value"] for name, site in nodes.items() if is_latent(site)}


def is_latent(site):
    subsample = type(site.get("fn")).__name__ == "_Subsample"
    return site["type"] == "sample" and not site["is_observed"] and not subsample


def log_joint(model, args, values, summed_out=None):
    """With discrete sites, ``{name: (number of values, shape)}``, summed out by going through all of their values."""
    sites = summed_out or {}
    choices = [itertools.product(range(n), repeat=math.prod(shape)) for n, shape in sites.values()]
    terms = []
    for combination in itertools.product(*choices):
        chosen = {name: torch.tensor(z).reshape(sites[name][1]) for name, z in zip(sites, combination, strict=True)}
        trace = poutine.trace(poutine.condition(model, {**values, **chosen})).get_trace(*args)
        terms.append(trace.log_prob_sum())
    return float(torch.stack(terms).logsumexp(0))


def elements_of(group, most=1000):
    return range(group.order) if group.order <= most else list(group.sample((6,)))


def assert_keeps_log_joint(model, args, symmetry, summed_out=None):
    """For every element of the group, at a draw from the prior."""
    values = {name: value for name, value in prior_draw(model, args).items() if name not in (summed_out or {})}
    before = log_joint(model, args, values, summed_out)
    assert math.isfinite(before) and set(values) == set(symmetry.sites)
    for g in elements_of(symmetry.group):
        assert log_joint(model, args, symmetry.act(g, values), summed_out) == pytest.approx(before, rel=1e-11, abs=1e-9)


def size_said(error):
    return float(re.search(r"changes it by ([\d.e+-]+) nats", str(error.value))[1])


def replaced(symmetry, name, rep):
    return pe.Symmetry(symmetry.group, {**symmetry.sites, name: rep})


# Exchangeable plates


def observe(x, law):
    with pyro.plate("n", len(x)):
        pyro.sample("x", law, obs=x)


def mixture(x, K=3, alpha=None, means=0.0):
    w = pyro.sample("w", dist.Dirichlet(torch.full((K,), 2.0) if alpha is None else torch.tensor(alpha)))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("k", K):
        loc = pyro.sample("loc", dist.Normal(torch.as_tensor(means), 3.0))
    observe(x, dist.MixtureSameFamily(dist.Categorical(w), dist.Normal(loc, scale)))


def multivariate(x, K=3):
    w = pyro.sample("w", dist.Dirichlet(torch.ones(K)))
    with pyro.plate("k", K):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        L = pyro.sample("L", dist.LKJCholesky(2, 1.0))
        s = pyro.sample("s", dist.LogNormal(torch.zeros(2), 0.5).to_event(1))
    observe(x, dist.MixtureSameFamily(dist.Categorical(w), dist.MultivariateNormal(loc, scale_tril=s[..., None] * L)))


def assigned(x, K=3, enumerate=None):
    w = pyro.sample("w", dist.Dirichlet(torch.ones(K)))
    with pyro.plate("k", K):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("n", len(x)):
        z = pyro.sample("z", dist.Categorical(w), infer={"enumerate": enumerate} if enumerate else {})
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


def subcomponents(x):
    """Each component has two widths, so that the assignment's values are no members of the plate."""
    w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("k", 3):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("n", len(x)):
        z = pyro.sample("z", dist.Categorical(w.repeat_interleave(2) / 2), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[z // 2], 1.0 + (z % 2)), obs=x)


def hidden_markov(y):
    init = pyro.sample("init", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("k", 3):
        T = pyro.sample("T", dist.Dirichlet(torch.full((3,), 2.0)))
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    pyro.sample("y", dist.DiscreteHMM(init.log(), T.log(), dist.Normal(loc, 1.0)), obs=y)


def outer_transition(y):
    """The transition matrix is a site of its own, outside of the plate."""
    T = pyro.sample("T", dist.Dirichlet(torch.full((3, 3), 2.0)).to_event(1))
    with pyro.plate("k", 3):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    pyro.sample("y", dist.DiscreteHMM(torch.zeros(3), T.log(), dist.Normal(loc, 1.0)), obs=y)


def markov(y):
    init = pyro.sample("init", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("k", 3):
        T = pyro.sample("T", dist.Dirichlet(torch.full((3,), 2.0)))
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    z = pyro.sample("z_0", dist.Categorical(init), infer={"enumerate": "parallel"})
    for t in pyro.markov(range(len(y))):
        z = pyro.sample(f"z_{t + 1}", dist.Categorical(T[z]), infer={"enumerate": "parallel"})
        pyro.sample(f"y_{t}", dist.Normal(loc[z], 1.0), obs=y[t])


def topics(counts):
    with pyro.plate("k", 3):
        words = pyro.sample("words", dist.Dirichlet(torch.ones(4)))
    with pyro.plate("n", len(counts)):
        shares = pyro.sample("shares", dist.Dirichlet(torch.full((3,), 0.8)))
        pyro.sample("x", dist.Multinomial(20, shares @ words), obs=counts)


def left_plate(x):
    w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("k", 3, dim=-2):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("n", len(x), dim=-1):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(loc[z, 0], 1.0), obs=x)


def one_hot(x):
    w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("k", 3):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("n", len(x)):
        z = pyro.sample("z", dist.OneHotCategorical(w))
        pyro.sample("x", dist.Normal(z @ loc, 1.0), obs=x)


def coin(x):
    with pyro.plate("k", 2):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("n", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(loc[z.long()], 1.0), obs=x)


def nested(x):
    w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("dims", 2, dim=-2):
        centre = pyro.sample("centre", dist.Normal(0.0, 1.0))
        with pyro.plate("k", 3, dim=-1):
            loc = pyro.sample("loc", dist.Normal(centre, 3.0))
    observe(x, dist.MixtureSameFamily(dist.Categorical(w), dist.Normal(loc.mT, 1.0).to_event(1)))


def outer_members(x):
    """The members are the outer of two nested plates."""
    with pyro.plate("k", 3, dim=-2):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        with pyro.plate("units", 4, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, scale))
    pyro.sample("x", dist.Normal(z.square().sum(), 1.0), obs=x)


def reals(*shape):
    return lambda: (torch.randn(shape),)


def word_counts():
    return (dist.Multinomial(20, torch.ones(4) / 4).sample((5,)),)


LABELS = "labels"
Z_AXES = {f"z_{t}": LABELS for t in range(4)}

# The model, its arguments, and the axes of each site that are permuted.
EXCHANGEABLE = {
    "mixture": (mixture, reals(6), {"w": (-1,), "scale": (), "loc": (-1,)}),
    "Cholesky factors": (multivariate, reals(6, 2), {"w": (-1,), "loc": (-2,), "L": (-3,), "s": (-2,)}),
    "assignment": (assigned, reals(6), {"w": (-1,), "loc": (-1,), "z": LABELS}),
    "assignment that may be enumerated": (
        lambda x: assigned(x, enumerate="parallel"), reals(6), {"w": (-1,), "loc": (-1,), "z": LABELS},
    ),
    "DiscreteHMM": (hidden_markov, reals(5), {"init": (-1,), "T": (-1, -2), "loc": (-1,)}),
    "transitions outside of the plate": (outer_transition, reals(5), {"T": (-1, -2), "loc": (-1,)}),
    "Markov chain": (markov, reals(3), {"init": (-1,), "T": (-1, -2), "loc": (-1,), **Z_AXES}),
    "topics": (topics, word_counts, {"words": (-2,), "shares": (-1,)}),
    "left plate": (left_plate, reals(6), {"w": (-1,), "loc": (-2,), "z": LABELS}),
    "one-hot": (one_hot, reals(6), {"w": (-1,), "loc": (-1,), "z": (-1,)}),
    "Bernoulli": (coin, reals(6), {"loc": (-1,), "z": LABELS}),
    "nested plates": (nested, reals(6, 2), {"w": (-1,), "centre": (), "loc": (-1,)}),
    "outer of nested plates": (outer_members, reals(), {"scale": (-2,), "z": (-2,)}),
    "25 components": (lambda x: mixture(x, 25), reals(6), {"w": (-1,), "scale": (), "loc": (-1,)}),
    "25 components, assigned": (
        lambda x: assigned(x, 25), reals(6), {"w": (-1,), "loc": (-1,), "z": LABELS},
    ),
}  # fmt: skip


def permuted(places, value, axes):
    """Member ``i`` sent to ``places[i]``, along some axes or in the values."""
    if axes == LABELS:
        return places[value.long()].to(value)
    for axis in axes:
        value = value.index_select(axis, places.argsort())
    return value


@functools.cache
def exchanged(name):
    model, args, axes = EXCHANGEABLE[name]
    args = args()
    return model, args, axes, pe.exchangeable(model, "k", *args)


@pytest.mark.parametrize("name", EXCHANGEABLE)
class TestExchangeable:
    def test_every_site_moves_as_expected(self, name):
        model, args, axes, symmetry = exchanged(name)
        values = prior_draw(model, args)
        size = int(re.match(r"\d+", name)[0]) if name[0].isdigit() else 2 if name == "Bernoulli" else 3
        group = pe.YoungSubgroup(25) if size > 20 else pe.SymmetricGroup(size)
        assert symmetry.group == group and set(symmetry.sites) == set(axes)
        for g in elements_of(symmetry.group):
            moved = symmetry.act(g, values)
            for site, value in values.items():
                assert_close(moved[site], permuted(group.permutations(g), value, axes[site]), atol=0, rtol=0)

    def test_the_log_joint_is_kept(self, name):
        model, args, _, symmetry = exchanged(name)
        assert_keeps_log_joint(model, args, symmetry)
        assert pe.check_symmetry(model, symmetry, *args) < ROUNDING

    def test_no_site_can_be_left_behind(self, name):
        model, args, axes, symmetry = exchanged(name)
        values = prior_draw(model, args)
        moving = [site for site in axes if axes[site] and site not in ("z_0", "z_2", "z_3")]
        for site in moving[-1:] if symmetry.group.order > 1000 else moving:
            shape = () if axes[site] == LABELS else values[site].shape
            with pytest.raises(SymmetryError, match=r"Expected the model's log density to keep its value") as error:
                pe.check_symmetry(model, replaced(symmetry, site, pe.trivial(symmetry.group, shape)), *args)
            assert size_said(error) > 1e-3


def test_an_assignment_may_be_summed_out():
    model, (x,) = EXCHANGEABLE["assignment that may be enumerated"][0], reals(3)()
    symmetry = pe.exchangeable(model, "k", x)
    without = pe.Symmetry(symmetry.group, {name: rep for name, rep in symmetry.sites.items() if name != "z"})
    assert pe.check_symmetry(model, without, x) < ROUNDING
    assert_keeps_log_joint(model, (x,), without, {"z": (3, (3,))})
    with pytest.raises(SymmetryError, match="through 'z', summed out"):
        pe.check_symmetry(model, replaced(without, "w", pe.trivial(without.group, 3)), x)


def test_an_assignment_whose_values_are_no_members_is_summed_out():
    (x,) = reals(2)()
    symmetry = pe.exchangeable(subcomponents, "k", x)
    assert set(symmetry.sites) == {"w", "loc"}
    assert_keeps_log_joint(subcomponents, (x,), symmetry, {"z": (6, (2,))})


def test_the_states_of_a_chain_may_be_summed_out():
    (y,) = reals(2)()
    symmetry = pe.exchangeable(markov, "k", y)
    without = pe.Symmetry(symmetry.group, {name: symmetry[name] for name in ("init", "T", "loc")})
    assert pe.check_symmetry(markov, without, y) < ROUNDING
    assert_keeps_log_joint(markov, (y,), without, {f"z_{t}": (3, ()) for t in range(3)})
    rows_only = replaced(without, "T", pe.permutation(without.group) * pe.trivial(without.group, 3))
    with pytest.raises(SymmetryError, match="'z_0' and 'z_1' and 'z_2', summed out"):
        pe.check_symmetry(markov, rows_only, y)


def test_a_long_chain_is_no_harder_than_a_short_one():
    """Each state has several ways to move; not all of their combinations are listed."""
    (y,) = reals(24)()
    symmetry = pe.exchangeable(markov, "k", y)
    assert {name for name, rep in symmetry.sites.items() if rep == pe.labels(symmetry.group)} == {
        f"z_{t}" for t in range(25)
    }


def potts(x, bias=0.5):
    """Spins on a cycle; equal neighbours are favoured, those of component 0 more."""
    with pyro.plate("k", 3):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("n", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)
    alike = (z == z.roll(1)).to(loc)
    pyro.factor("coupling", (alike * (1.0 + bias * (z == 0))).sum())


def anchored(x):
    w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("k", 3):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    observe(x, dist.MixtureSameFamily(dist.Categorical(w), dist.Normal(torch.cat([torch.zeros(1), loc[1:]]), 1.0)))


def local_latents(x):
    with pyro.plate("n", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def observed_assignment(x):
    w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("k", 3):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("n", len(x)):
        z = pyro.sample("z", dist.Categorical(w), obs=torch.arange(len(x)) % 3 % 2)
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


def subsampled(x):
    with pyro.plate("k", 6, subsample_size=3):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(loc.sum(), 1.0), obs=x.sum())


NOT_EXCHANGEABLE = {
    "unequal priors": (lambda x: mixture(x, means=[0.0, 0.0, 0.5]), "k", "the prior of 'loc'"),
    "unequal concentration": (lambda x: mixture(x, alpha=[2.0, 2.0, 2.5]), "k", "the prior of 'w'"),
    "fixed anchor": (anchored, "k", "the observation 'x'"),
    "asymmetric coupling": (potts, "k", "the factor 'coupling'"),
    "data": (local_latents, "n", "the observation 'x'"),
    "observed assignment": (observed_assignment, "k", "the observation '[xz]'"),
}


class TestExchangeableRefuses:
    @pytest.mark.parametrize("name", NOT_EXCHANGEABLE)
    def test_what_tells_members_apart(self, name):
        model, plate, site = NOT_EXCHANGEABLE[name]
        with pytest.raises(SymmetryError, match=f"most of it {site}") as error:
            pe.exchangeable(model, plate, torch.randn(7))
        assert size_said(error) > 1e-2

    def test_without_the_asymmetry_the_coupling_passes(self):
        x = torch.randn(4)
        symmetry = pe.exchangeable(potts, "k", x, bias=0.0)
        assert symmetry["z"] == pe.labels(symmetry.group)
        assert_keeps_log_joint(functools.partial(potts, bias=0.0), (x,), symmetry)

    def test_data_whose_members_nothing_belongs_to(self):
        with pytest.raises(SymmetryError, match="'n'"):
            pe.exchangeable(mixture, "n", torch.randn(7))

    def test_a_subsampled_plate(self):
        with pytest.raises(SymmetryError, match="sees all; 'k' is subsampled, 3 at a time"):
            pe.exchangeable(subsampled, "k", torch.randn(4))

    def test_an_unknown_plate(self):
        with pytest.raises(SymmetryError, match="got 'components'. Plates: 'k', 'n'"):
            pe.exchangeable(mixture, "components", torch.randn(4))

    def test_a_model_without_plates(self):
        with pytest.raises(SymmetryError, match="Plates: none"):
            pe.exchangeable(bilinear, "k", torch.randn(2))


# Signs


def bilinear(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(a * b, 0.3).to_event(1), obs=y)


def two_signs(y, mean=0.0):
    """``a`` and ``b`` flip together, ``c`` by itself."""
    bilinear(y)
    c = pyro.sample("c", dist.StudentT(4.0, mean, torch.ones(3)).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    pyro.sample("size", dist.Normal(c.square().sum(), scale), obs=y[0])


def minibatches(x):
    W = pyro.sample("W", dist.Normal(torch.zeros(5, 2), 1.0).to_event(2))
    with pyro.plate("n", len(x), subsample_size=4) as rows:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ W.mT, 0.5).to_event(1), obs=x[rows])


class TestSignFlips:
    @pytest.mark.parametrize("sites", [["a", "b"], ("b", "a"), [["a", "b"]]], ids=str)
    def test_together(self, sites):
        y = torch.randn(2)
        symmetry = pe.sign_flips(bilinear, sites, y)
        assert symmetry.group == pe.SignGroup()
        values = prior_draw(bilinear, (y,))
        for name, value in values.items():
            assert_close(symmetry.act(1, values)[name], -value)
        assert_keeps_log_joint(bilinear, (y,), symmetry)

    def test_independent_of_one_another(self):
        y = torch.randn(2)
        symmetry = pe.sign_flips(two_signs, [["a", "b"], "c"], y)
        assert symmetry.group.order == 4
        values, seen = prior_draw(two_signs, (y,)), set()
        for g in range(4):
            moved = symmetry.act(g, values)
            signs = {name: (moved[name] / values[name]).unique() for name in values}
            assert all(len(sign) == 1 for sign in signs.values())
            assert signs["a"] == signs["b"] and signs["scale"] == 1
            seen.add((float(signs["a"]), float(signs["c"])))
        assert seen == set(itertools.product([1.0, -1.0], repeat=2))
        assert_keeps_log_joint(two_signs, (y,), symmetry)

    def test_one_name(self):
        symmetry = pe.sign_flips(two_signs, "c", torch.randn(2))
        assert [name for name, rep in symmetry.sites.items() if not rep.is_permutation] == ["c"]

    def test_minibatches(self):
        """Latents of a subsampled plate may flip: none of them takes the place of another."""
        symmetry = pe.sign_flips(minibatches, ["W", "z"], torch.randn(12, 5))
        assert symmetry["z"].event_shape == (2,)
        z = torch.randn(4, 2)
        assert_close(symmetry["z"].act(1, z), -z)
        with pytest.raises(SymmetryError, match="the observation 'x'"):
            pe.sign_flips(minibatches, "W", torch.randn(12, 5))

    @pytest.mark.parametrize("sites, message", [
        ("scale", "Expected real sites, to change their signs; 'scale'"),
        (["a", "d"], "got 'd'. Latent: 'a', 'b', 'c', 'scale'"),
        ([["a", "b"], ["c", "a"]], "'a' is in several"),
        (["c", "c"], "'c' is in several"),
        ("y", "got 'y'"),
        ("a", "the observation 'y'"),
        (["a", "b", "size"], "got 'size'"),
    ])  # fmt: skip
    def test_refused(self, sites, message):
        with pytest.raises(SymmetryError, match=re.escape(message)):
            pe.sign_flips(two_signs, sites, torch.randn(2))

    def test_a_prior_that_tells_signs_apart(self):
        with pytest.raises(SymmetryError, match="most of it the prior of 'c'") as error:
            pe.sign_flips(lambda y: two_signs(y, 0.3), "c", torch.randn(2))
        assert size_said(error) > 1e-2

    @pytest.mark.parametrize("sign", [1, 2], ids=["odd", "even"])
    def test_discrete_sites_that_depend_on_each_other(self, sign):
        """Spins of one plate that are coupled cannot be summed out one by one."""

        def model():
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            with pyro.plate("n", 5):
                z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.factor("coupling", a.pow(sign) * (z == z.roll(1)).sum())

        if sign == 2:
            assert pe.sign_flips(model, "a").group == pe.SignGroup()
        else:
            with pytest.raises(SymmetryError, match="the factor 'coupling'"):
                pe.sign_flips(model, "a")

    @pytest.mark.parametrize("sites", [[], 3, [3], [[]]], ids=str)
    def test_no_names(self, sites):
        with pytest.raises(OptionError, match="name of a site or a list of names"):
            pe.sign_flips(two_signs, sites, torch.randn(2))


# Factors


def factors(x, K=3, ard=True, scales=1.0):
    D = x.shape[1]
    with pyro.plate("f", K):
        a = pyro.sample("a", dist.Gamma(2.0, 2.0)) if ard else torch.ones(K)
    W = pyro.sample("W", dist.Normal(torch.zeros(D, K), a * torch.as_tensor(scales)).to_event(2))
    with pyro.plate("n", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ W.mT, 0.5).to_event(1), obs=x)


def rows_are_factors(x):
    W = pyro.sample("W", dist.Normal(torch.zeros(3, 3), 1.0).to_event(2))
    with pyro.plate("n", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ W, 0.5).to_event(1), obs=x)


# The number of factors, whether they have scales, the group asked for, and its order.
FACTORS = {
    "two": (2, True, {}, 8),
    "three": (3, True, {}, 48),
    "signs": (3, True, {"group": "signs"}, 8),
    "permutations": (3, True, {"group": "permutations"}, 6),
    "turns": (2, False, {"group": pe.CyclicGroup(8)}, 8),
    "quarter turns, with scales": (2, True, {"group": pe.CyclicGroup(4)}, 4),
    "the cube": (3, False, {"group": pe.OctahedralGroup()}, 24),
    "the cube, with scales": (3, True, {"group": pe.OctahedralGroup()}, 24),
}


class TestOrthogonalFactors:
    @pytest.mark.parametrize("name", FACTORS)
    def test_orthogonal_matrices(self, name):
        K, ard, options, order = FACTORS[name]
        x = torch.randn(4, 5)

        def model(x):
            factors(x, K, ard)

        names = ["W", "z"] + ["a"] * ard
        symmetry, values = pe.orthogonal_factors(model, names, x, **options), prior_draw(model, (x,))
        assert symmetry.group.order == order and set(symmetry.sites) == set(names)
        R = symmetry["z"].matrix(symmetry.group.elements)
        assert_close(R.mT @ R, torch.eye(K).expand(order, K, K), atol=1e-6, rtol=0)
        assert len(R.flatten(1).round(decimals=3).unique(dim=0)) == order
        for g in range(order):
            moved = symmetry.act(g, values)
            assert_close(moved["W"], values["W"] @ R[g].mT, **CLOSE)
            assert_close(moved["z"], values["z"] @ R[g].mT, **CLOSE)
            if ard:
                assert_close(moved["a"], R[g].abs() @ values["a"], **CLOSE)
        assert_keeps_log_joint(model, (x,), symmetry)

    @pytest.mark.parametrize("model, last", [
        (lambda x: factors(x, 3, False), True), (rows_are_factors, False),
    ], ids=["columns", "rows"])  # fmt: skip
    def test_the_axis_of_a_square_matrix_is_found(self, model, last):
        x = torch.randn(4, 3)
        symmetry = pe.orthogonal_factors(model, ["W", "z"], x)
        R, W = symmetry["z"].matrix(symmetry.group.elements), torch.randn(3, 3)
        for g in range(48):
            assert_close(symmetry["W"].act(g, W), W @ R[g].mT if last else R[g] @ W, **CLOSE)
        assert_keeps_log_joint(model, (x,), symmetry)

    def test_signs_need_no_scales(self):
        """Without being named the scales stay, which signs allow and permutations do not."""
        x = torch.randn(4, 5)
        symmetry = pe.orthogonal_factors(factors, ["W", "z"], x, group="signs")
        assert_keeps_log_joint(factors, (x,), symmetry)
        with pytest.raises(SymmetryError, match="the prior of 'W'"):
            pe.orthogonal_factors(factors, ["W", "z"], x, group="permutations")

    @pytest.mark.parametrize("sites, options, scales, message", [
        (["W", "z", "a"], {"group": pe.CyclicGroup(8)}, 1.0, "the length 2 of the vectors"),
        (["W", "z", "a"], {"group": pe.SpecialOrthogonal(3)}, 1.0, "'a' of support .* mixes them"),
        (["W", "b"], {}, 1.0, "got 'b'"),
        (["W", "z", "a"], {}, [1.0, 1.0, 1.3], "most of it the prior of 'W'"),
        (["W"], {}, 1.0, "most of it"),
    ], ids=["length", "mixing", "unknown", "unequal priors", "one side"])  # fmt: skip
    def test_refused(self, sites, options, scales, message):
        with pytest.raises(SymmetryError, match=message):
            pe.orthogonal_factors(lambda x: factors(x, scales=scales), sites, torch.randn(4, 5), **options)

    def test_mixing_positive_sites_is_refused(self):
        with pytest.raises(SymmetryError, match="'a' of support .* mixes them"):
            pe.orthogonal_factors(lambda x: factors(x, 2), ["W", "z", "a"], torch.randn(4, 5), group=pe.CyclicGroup(8))

    def test_no_common_length(self):
        def model():
            pyro.sample("W", dist.Normal(torch.zeros(4, 3), 1.0).to_event(2))
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

        with pytest.raises(SymmetryError, match=r"an axis of factors.*'W' \(4, 3\), 'z' \(2,\)"):
            pe.orthogonal_factors(model, ["W", "z"])

    def test_unknown_group(self):
        with pytest.raises(OptionError, match="group"):
            pe.orthogonal_factors(factors, ["W", "z"], torch.randn(4, 5), group="rotations")


# The check


def flipped_log():
    return pe.vector(pe.SignGroup()).reshape(()).on_unconstrained()


UNCONSTRAINED = {
    "LogNormal": (lambda: dist.LogNormal(0.0, 0.7), True),
    "LogNormal, off centre": (lambda: dist.LogNormal(0.3, 0.7), False),
    "HalfCauchy": (lambda: dist.HalfCauchy(1.0), True),  # exp(u) / (1 + exp(2u)) is even
    "Gamma": (lambda: dist.Gamma(2.0, 2.0), False),
    "Beta": (lambda: dist.Beta(2.0, 2.0), True),
    "Beta, skewed": (lambda: dist.Beta(2.0, 3.0), False),
}


def constant_change(kind, c):
    """Models with a symmetry that changes the log density by a known size, at all latents."""
    if kind == "prior":
        pyro.sample("z", dist.Bernoulli(torch.tensor(c).sigmoid()))  # the odds are exp(c)
    if kind == "likelihood":
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("bias", 0.5 * c * (x[0] > x[1]) - 0.5 * c * (x[1] > x[0]))
    if kind == "unconstrained":
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        pyro.factor("bias", 0.5 * c * s.log().sign())
    if kind == "summed out":
        pyro.sample("z", dist.Bernoulli(0.5))
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("bias", 0.5 * c * (x[0] > x[1]) - 0.5 * c * (x[1] > x[0]))


S2 = pe.SymmetricGroup(2)
CONSTANT = {
    "prior": (pe.Symmetry(S2, {"z": pe.labels(S2)}), "the prior of 'z'"),
    "likelihood": (pe.Symmetry(S2, {"x": pe.permutation(S2)}), "the factor 'bias'"),
    "unconstrained": (pe.Symmetry(pe.SignGroup(), {"s": flipped_log()}), "the factor 'bias'"),
    "summed out": (pe.Symmetry(S2, {"x": pe.permutation(S2)}), "'bias'"),
}


def constrained(asymmetric):
    """Half of the prior is ruled out."""
    z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    allowed = z[0] > 0 if asymmetric else z.sum() > 0
    pyro.factor("allowed", torch.where(allowed, 0.0, -torch.inf))


def field(kind="equal", power=4):
    phi = pyro.sample("phi", dist.Normal(torch.zeros(4, 4), 1.0).to_event(2))
    down, right = (phi - phi.roll(1, 0)).square(), (phi - phi.roll(1, 1)).square()
    strengths = {"equal": (0.3, 0.3), "anisotropic": (0.3, 0.5), "uneven": (0.3, 0.3 + 0.1 * torch.arange(4.0))}
    vertical, horizontal = strengths[kind]
    pyro.factor("bonds", -(vertical * down + horizontal * right).sum())
    pyro.factor("well", -0.1 * phi.pow(power).sum())


D4_FIELD = pe.lattice(pe.DihedralGroup(4), (4, 4))
FIELD = pe.Symmetry(D4_FIELD.group, {"phi": D4_FIELD})


def field_flip():
    return pe.Symmetry(
        pe.SignGroup(), {"phi": (pe.vector(pe.SignGroup()) * pe.trivial(pe.SignGroup(), 16)).reshape((4, 4))}
    )


class TestCheckSymmetry:
    @pytest.mark.parametrize("name", UNCONSTRAINED)
    def test_the_jacobian_counts(self, name):
        law, holds = UNCONSTRAINED[name]

        def model():
            pyro.sample("s", law())

        symmetry = pe.Symmetry(pe.SignGroup(), {"s": flipped_log()})
        if holds:
            assert pe.check_symmetry(model, symmetry) < ROUNDING
        else:
            with pytest.raises(SymmetryError, match="the prior of 's'"):
                pe.check_symmetry(model, symmetry)

    @pytest.mark.parametrize("c", [0.84, 3.7e-6, 1200.0])
    @pytest.mark.parametrize("kind", CONSTANT)
    def test_the_size_said_is_that_of_the_change(self, kind, c):
        if kind == "prior" and c > 100:
            c = 12.0  # the probabilities are clamped
        symmetry, where = CONSTANT[kind]
        with pytest.raises(SymmetryError, match=where) as error:
            pe.check_symmetry(constant_change, symmetry, kind, c)
        assert size_said(error) == pytest.approx(c, rel=0.05)

    @pytest.mark.parametrize("kind", CONSTANT)
    def test_without_the_change_it_passes(self, kind):
        assert pe.check_symmetry(constant_change, CONSTANT[kind][0], kind, 0.0) < ROUNDING

    def test_keyword_arguments(self):
        with pytest.raises(SymmetryError, match="changes it by 0.84 nats"):
            pe.check_symmetry(constant_change, CONSTANT["likelihood"][0], kind="likelihood", c=0.84)

    def test_a_network_its_inputs_and_outputs(self):
        net = nn.Conv2d(1, 3, 3, padding=1)
        model = pe.BayesianNetwork(net)
        group = pe.DihedralGroup(4)
        classes = pe.trivial(group, 3) * pe.image(group, (6, 6))
        symmetry = pe.network_symmetry(net, group, (1, 6, 6), outputs=classes)
        x, y = torch.randn(2, 1, 6, 6), torch.randint(3, (2, 6, 6))
        assert pe.check_symmetry(model, symmetry, x, y) < ROUNDING
        still = pe.trivial(symmetry.group, symmetry.inputs.event_shape)
        wrong = {
            "inputs": pe.Symmetry(symmetry.group, symmetry.sites, still, symmetry.outputs),
            "outputs": pe.Symmetry(symmetry.group, symmetry.sites, symmetry.inputs, None),
            "weights": pe.Symmetry(
                symmetry.group, {**symmetry.sites, "weight": pe.trivial(symmetry.group, (3, 1, 3, 3))},
                symmetry.inputs, symmetry.outputs,
            ),
        }  # fmt: skip
        for other in wrong.values():
            with pytest.raises(SymmetryError, match="most of it the observation"):
                pe.check_symmetry(model, other, x, y)

    def test_a_classifier(self):
        net = small_conv()
        symmetry = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 6, 6))
        x, y = torch.randn(3, 1, 6, 6), torch.randint(3, (3,))
        assert pe.check_symmetry(pe.BayesianNetwork(net), symmetry, x, y) < ROUNDING

    @pytest.mark.parametrize("seed", range(3))
    def test_single_precision(self, seed):
        """Log densities of ten thousands, by Cholesky factors, in float32: their rounding is no change."""
        torch.set_default_dtype(torch.float32)
        torch.manual_seed(seed)
        x = 6 * torch.randn(200, 6)

        def model(x, mean=0.0):
            W = pyro.sample("W", dist.Normal(mean * torch.eye(6)[:, :3], 1.0).to_event(2))
            observe(x, dist.MultivariateNormal(torch.zeros(6), W @ W.mT + 0.1 * torch.eye(6)))

        values = prior_draw(model, (x,))
        assert log_joint(model, (x,), values) < -1e4 and values["W"].dtype == torch.float32
        symmetry = pe.orthogonal_factors(model, "W", x)
        assert symmetry.group.order == 48
        with pytest.raises(SymmetryError, match="the prior of 'W'") as error:
            pe.check_symmetry(model, symmetry, x, 0.01)
        assert 1e-3 < size_said(error) < 0.2

    def test_single_precision_mixture(self):
        torch.set_default_dtype(torch.float32)
        x = 10 * torch.randn(300, 2)
        assert pe.exchangeable(multivariate, "k", x).group.order == 6

    def test_random_numbers_and_parameters_are_left_alone(self):
        symmetry, draws = blocks(5)(4)

        def states():
            return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

        before, x = states(), torch.arange(8.0).reshape(2, 4)
        pe.exchangeable(factors, "f", x)
        pe.sign_flips(factors, ["W", "z"], x)
        pe.orthogonal_factors(factors, ["W", "z", "a"], x)
        pe.find_symmetries(bilinear, torch.ones(2))
        pe.canonicalize(draws, symmetry)
        assert states() == before
        assert not list(pyro.get_param_store())

    def test_hard_constraints(self):
        S3 = pe.SymmetricGroup(3)
        symmetry = pe.Symmetry(S3, {"z": pe.permutation(S3)})
        assert pe.check_symmetry(constrained, symmetry, False) < ROUNDING
        with pytest.raises(SymmetryError, match="changes it by inf nats, most of it the factor 'allowed'"):
            pe.check_symmetry(constrained, symmetry, True)

    def test_a_density_of_zero(self):
        def model():
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.factor("never", torch.tensor(-torch.inf))

        with pytest.raises(SymmetryError, match="log density is finite at draws from its prior"):
            pe.check_symmetry(model, pe.Symmetry(S2, {"z": pe.permutation(S2)}))

    def test_undefined_densities_are_no_symmetry(self):
        def model():
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.factor("root", torch.where(z[0] > z[1], 0.0, torch.nan))

        with pyro.validation_enabled(False), pytest.raises(SymmetryError, match="the factor 'root'"):
            pe.check_symmetry(model, pe.Symmetry(S2, {"z": pe.permutation(S2)}))

    def test_a_count_cannot_be_summed_out(self):
        def model():
            rate = pyro.sample("rate", dist.Gamma(torch.full((2,), 2.0), 1.0).to_event(1))
            count = pyro.sample("count", dist.Poisson(rate.sum()))
            pyro.sample("x", dist.Normal(count, 1.0), obs=torch.tensor(1.0))

        symmetry = pe.Symmetry(S2, {"rate": pe.permutation(S2)})
        with pytest.raises(SymmetryError, match="discrete site 'count' .* it is a Poisson"):
            pe.check_symmetry(model, symmetry)
        assert pe.check_symmetry(model, replaced(symmetry, "count", pe.trivial(S2, ()))) < ROUNDING

    def test_a_site_without_a_representation(self):
        symmetry = pe.Symmetry(pe.SignGroup(), {"b": pe.vector(pe.SignGroup())})
        with pytest.raises(SymmetryError, match="Expected a representation for site 'a'"):
            pe.check_symmetry(bilinear, symmetry, torch.ones(2))

    def test_no_symmetry(self):
        with pytest.raises(SymmetryError, match="to be a pe.Symmetry"):
            pe.check_symmetry(bilinear, "signs", torch.ones(2))

    def test_a_continuous_group(self):
        def model(mean):
            pyro.sample("z", dist.Normal(torch.tensor([mean, 0.0]), 1.0).to_event(1))

        turns = pe.SpecialOrthogonal(2)
        symmetry = pe.Symmetry(turns, {"z": pe.vector(turns)})
        assert pe.check_symmetry(model, symmetry, 0.0) < ROUNDING
        with pytest.raises(SymmetryError, match="the prior of 'z'"):
            pe.check_symmetry(model, symmetry, 0.5)

    def test_fields(self):
        assert FIELD.group.order == 128
        assert pe.check_symmetry(field, FIELD) < ROUNDING
        assert_keeps_log_joint(field, (), FIELD)
        for kind in ("anisotropic", "uneven"):
            with pytest.raises(SymmetryError, match="the factor 'bonds'"):
                pe.check_symmetry(field, FIELD, kind)
        rectangle = pe.lattice(pe.DihedralGroup(2), (4, 4))
        assert pe.check_symmetry(field, pe.Symmetry(rectangle.group, {"phi": rectangle}), "anisotropic") < ROUNDING

    def test_fields_and_their_signs(self):
        both = FIELD * field_flip()
        assert both.group.order == 256
        assert pe.check_symmetry(field, both) < ROUNDING
        assert_keeps_log_joint(field, (), both)
        with pytest.raises(SymmetryError, match="the factor 'well'"):
            pe.check_symmetry(field, both, power=3)


# Discovery


def none_at_all(y):
    with pyro.plate("k", 2):
        a = pyro.sample("a", dist.Normal(torch.tensor([0.0, 0.4]), 1.0))
        s = pyro.sample("s", dist.Gamma(2.0, 1.0))
    pyro.sample("y", dist.Normal((a * s).sum(), 1.0), obs=y[0])


def squares(y):
    with pyro.plate("units", 3):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(w.square().sum(), 0.1), obs=y[0])


def three_products(y):
    """``a b``, ``b c`` and ``c a``: only all of them flip."""
    a, b, c = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in "abc")
    pyro.sample("y", dist.Normal(a * b + 2 * b * c + 3 * c * a, 0.3), obs=y[0])


def two_pairs(y):
    """``a b`` and ``c d`` flip by themselves, so all four flip too, and that is left out."""
    a, b, c, d = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in "abcd")
    pyro.sample("y", dist.Normal(a * b + 2 * c * d, 0.3), obs=y[0])


FOUND = {
    "none": (none_at_all, reals(2), []),
    "mixture": (mixture, reals(7), ["exchangeable(k): SymmetricGroup(3), order 6, moves w, loc"]),
    "mixture with much data": (mixture, reals(30), ["exchangeable(k): SymmetricGroup(3), order 6, moves w, loc"]),
    "local latents": (local_latents, reals(4), []),
    "squares": (squares, reals(2), [
        "exchangeable(units): SymmetricGroup(3), order 6, moves w",
        "sign_flips(w): SignGroup(), order 2, moves w",
        "orthogonal_factors(w): SignedPermutationGroup(3), order 48, moves w",
    ]),
    "signs": (two_signs, reals(2), [
        "sign_flips(c): SignGroup(), order 2, moves c", "sign_flips(a, b): SignGroup(), order 2, moves a, b",
    ]),
    "three products": (three_products, reals(2), ["sign_flips(a, b, c): SignGroup(), order 2, moves a, b, c"]),
    "two pairs": (two_pairs, reals(2), [
        "sign_flips(a, b): SignGroup(), order 2, moves a, b", "sign_flips(c, d): SignGroup(), order 2, moves c, d",
    ]),
    "factors": (factors, reals(4, 5), [
        "exchangeable(f): SymmetricGroup(3), order 6, moves a, W, z",
        "sign_flips(W, z): SignGroup(), order 2, moves W, z",
        "orthogonal_factors(a, W, z): SignedPermutationGroup(3), order 48, moves a, W, z",
    ]),
}  # fmt: skip


class TestFindSymmetries:
    @pytest.mark.parametrize("name", FOUND)
    def test_exactly_these(self, name):
        model, args, expected = FOUND[name]
        args = args()
        found = pe.find_symmetries(model, *args)
        assert [str(one) for one in found] == expected
        for one in found:
            assert isinstance(one, pe.FoundSymmetry)
            assert getattr(pe, one.kind)(model, one.over, *args) == one.symmetry
            assert_keeps_log_joint(model, args, one.symmetry)

    def test_products(self):
        x = torch.randn(4, 5)
        exchange, flip, signed = pe.find_symmetries(factors, x)
        both = exchange.symmetry * flip.symmetry
        assert both.group.order == 12
        assert pe.check_symmetry(factors, both, x) < ROUNDING
        assert_keeps_log_joint(factors, (x,), both)


# Representatives


def components(draws, noise=1.0):
    """Weights, positions, a shared number, and the assignments of five points, of three components."""
    S3 = pe.SymmetricGroup(3)
    P = pe.permutation(S3)
    symmetry = pe.Symmetry(S3, {"w": P, "loc": P * pe.trivial(S3, 2), "shared": pe.trivial(S3, ()), "z": pe.labels(S3)})
    base = {"w": torch.tensor([0.2, 0.3, 0.5]), "loc": torch.tensor([[5.0, 0.0], [0.0, 1.0], [-3.0, 2.0]])}
    values = around(base | {"shared": torch.tensor(1.0)}, draws, noise)
    values["w"] = values["w"].softmax(-1)
    return symmetry, values | {"z": torch.randint(3, (draws, 5)), "other": torch.randn(draws, 2)}


def around(base, draws, noise):
    return {name: value + noise * torch.randn(draws, *value.shape) for name, value in base.items()}


def acting(group, reps):
    """Draws around one random value of each site."""

    def build(draws, noise=1.0):
        symmetry = pe.Symmetry(group, reps)
        base = {name: 2 * torch.randn(rep.event_shape) for name, rep in reps.items()}
        return symmetry, around(base, draws, noise)

    return build


def permutations(n):
    G = pe.SymmetricGroup(n)
    return acting(G, {"a": pe.trivial(G, 2) * pe.permutation(G), "b": pe.permutation(G)})


def signed(n):
    G = pe.SignedPermutationGroup(n)
    return acting(G, {"W": pe.trivial(G, 4) * pe.vector(G), "a": pe.vector(G).modulus()})


def on_one(rep):
    return acting(rep.group, {"z": rep, "still": pe.trivial(rep.group, 2)})


def product_of_signs():
    left, right = (pe.Symmetry(pe.SignGroup(), {name: pe.vector(pe.SignGroup())}) for name in "ab")
    both = left * right
    return acting(both.group, dict(both.sites))


def blocks(*sizes):
    G = pe.YoungSubgroup(sizes)
    parts = [pe.permutation(G, block=b) for b in range(len(sizes))]
    reps = {f"W{b}": part * pe.trivial(G, 3) for b, part in enumerate(parts)}
    return acting(G, reps)


ORBITS = {
    "components": components,
    "S4": permutations(4),
    "S6": permutations(6),
    "S8": permutations(8),
    "B3": signed(3),
    "B5": signed(5),
    "signs": product_of_signs(),
    "turns": on_one(pe.vector(pe.CyclicGroup(8)) * pe.trivial(pe.CyclicGroup(8), 3)),
    "images": on_one(pe.image(pe.DihedralGroup(4), (3, 3))),
    "fields": on_one(D4_FIELD),
    "one block": blocks(23),
    "two blocks": blocks(5, 4),
    "small blocks": blocks(2, 2, 3),
}
ORDERED = [name for name in ORBITS if "blocks" not in name]
LISTED = ["components", "S4", "B3", "signs", "turns", "images", "fields"]
CASES = [("order", name) for name in ORDERED] + [("match", name) for name in ORBITS]
cases = pytest.mark.parametrize("method, name", CASES)


def act_on(symmetry, g, values):
    """Each draw moved by an element of its own, the sites that have no representation left alone."""
    moved = dict(values)
    for name, rep in symmetry.sites.items():
        between = values[name].ndim - 1 - len(rep.event_shape)
        one = g.reshape(g.shape[:1] + (1,) * between + g.shape[1:])
        moved[name] = rep.act(one, values[name])
    return moved


def options_for(method, symmetry, values):
    moving = {name: value[0] + 0.5 for name, value in values.items() if name in symmetry.sites}
    return {"method": method, **({"reference": moving} if method == "match" else {})}


def assert_same(one, other):
    assert set(one) == set(other)
    for name in one:
        assert_close(one[name], other[name], msg=lambda text, name=name: f"{name}: {text}", **CLOSE)


class TestCanonicalize:
    @cases
    def test_moves_each_draw_by_one_element(self, method, name):
        symmetry, values = ORBITS[name](12)
        options = options_for(method, symmetry, values)
        before = {site: value.clone() for site, value in values.items()}
        g = pe.canonical_elements(values, symmetry, **options)
        assert g.shape[:1] == (12,)
        found = pe.canonicalize(values, symmetry, **options)
        assert_same(found, act_on(symmetry, g, values))
        assert_same(values, before)
        assert {site: value.dtype for site, value in found.items()} == {s: v.dtype for s, v in values.items()}

    @cases
    def test_is_the_same_for_all_of_an_orbit(self, method, name):
        symmetry, values = ORBITS[name](12, noise=0.3)
        options = options_for(method, symmetry, values)
        expected = pe.canonicalize(values, symmetry, **options)
        for _ in range(3):
            moved = act_on(symmetry, symmetry.group.sample((12,)), values)
            assert_same(pe.canonicalize(moved, symmetry, **options), expected)

    @cases
    def test_twice_is_once(self, method, name):
        symmetry, values = ORBITS[name](12)
        options = options_for(method, symmetry, values)
        once = pe.canonicalize(values, symmetry, **options)
        assert_same(pe.canonicalize(once, symmetry, **options), once)

    @pytest.mark.parametrize("name", [name for name in ORBITS if name not in ("components",)])
    def test_moved_copies_come_together(self, name):
        """By default the reference is made of the draws themselves."""
        symmetry, values = ORBITS[name](40, noise=0.01)
        moved = act_on(symmetry, symmetry.group.sample((40,)), values)
        found = pe.canonicalize(moved, symmetry)
        assert max(float(value.std(0).max()) for value in found.values()) < 0.03
        assert_same(pe.canonicalize(found, symmetry), found)

    @pytest.mark.parametrize("name", LISTED + ["S6"])
    def test_order_is_the_first_of_the_orbit(self, name):
        symmetry, values = ORBITS[name](3)
        key = {"components": "loc", "S4": "a", "S6": "a", "B3": "W", "signs": "a"}.get(name, "z")
        rep, found = symmetry[key], pe.canonicalize(values, symmetry, method="order", key=key)[key]
        best = min if rep.is_permutation else max
        for t in range(3):
            orbit = [rep.act(g, values[key][t]).flatten().tolist() for g in range(symmetry.group.order)]
            assert found[t].flatten().tolist() == pytest.approx(best(orbit), abs=1e-9)

    def test_nothing_is_left_to_chance(self):
        """Blocks of one size, and signs, are told apart whatever the state of the random numbers."""
        for name in ("small blocks", "B5"):
            symmetry, values = ORBITS[name](4)
            options = options_for("match", symmetry, values)
            expected = pe.canonical_elements(values, symmetry, **options)
            for seed in range(20):
                torch.manual_seed(seed)
                assert torch.equal(pe.canonical_elements(values, symmetry, **options), expected)

    def test_ties_are_broken_by_the_next_column(self):
        S3 = pe.SymmetricGroup(3)
        symmetry = pe.Symmetry(S3, {"loc": pe.permutation(S3) * pe.trivial(S3, 2)})
        loc = torch.tensor([[[1.0, 5.0], [0.0, 7.0], [1.0, 2.0]]])
        found = pe.canonicalize({"loc": loc}, symmetry, method="order")["loc"]
        assert found.tolist() == [[[0.0, 7.0], [1.0, 2.0], [1.0, 5.0]]]

    @pytest.mark.parametrize("name", ["S4", "S8", "B3", "turns", "images", "components"])
    def test_match_is_the_nearest_of_the_orbit(self, name):
        symmetry, values = ORBITS[name](4)
        options = options_for("match", symmetry, values)
        found = pe.canonicalize(values, symmetry, **options)
        nearest, distance = self.by_enumeration(symmetry, values, options["reference"])
        assert_close(distance(found), nearest, **CLOSE)

    def by_enumeration(self, symmetry, values, reference):
        """The least ``Σ ‖ρ(g) θ − r‖² / v`` over all elements, and that distance as a function of the draws."""
        g = symmetry.group.elements
        linear = {name: rep for name, rep in symmetry.sites.items() if name != "z" or rep.event_shape}
        moves = {name: rep for name, rep in linear.items() if name not in ("shared", "still")}
        orbits = {name: rep.act(g[:, None], values[name]) for name, rep in moves.items()}
        variances = {
            name: orbit.flatten(0, 1).var(0, correction=0) if moves[name].is_monomial else orbit.var(correction=0)
            for name, orbit in orbits.items()
        }

        def distance(sites, lead=1):
            terms = [(sites[name] - reference[name]).square() / variances[name] for name in moves]
            return sum(term.flatten(lead).sum(-1) for term in terms)

        return distance(orbits, 2).amin(0), distance

    @pytest.mark.parametrize("method, name, few", [
        ("order", "S4", 0), ("order", "B3", 0), ("order", "S6", 1000), ("order", "B5", 4000),
        ("match", "S4", 0), ("match", "B3", 0), ("match", "S6", 1000), ("match", "components", 0),
    ])  # fmt: skip
    def test_assignments_agree_with_trying_all(self, name, few, method, monkeypatch):
        symmetry, values = ORBITS[name](5)
        options = options_for(method, symmetry, values)
        one = pe.canonical_elements(values, symmetry, **options)
        monkeypatch.setattr(f"{CANONICAL}.FEW", few)
        other = pe.canonical_elements(values, symmetry, **options)
        assert torch.equal(one, other)

    def test_signs_and_scales_of_four_by_assignment(self, monkeypatch):
        monkeypatch.setattr(f"{CANONICAL}.FEW", 0)
        symmetry, values = signed(4)(6)
        options = options_for("match", symmetry, values)
        nearest, distance = self.by_enumeration(symmetry, values, options["reference"])
        assert_close(distance(pe.canonicalize(values, symmetry, **options)), nearest, **CLOSE)

    @pytest.mark.parametrize("K", [4, 6, 8])
    def test_transition_matrices_come_together(self, K):
        """Rows and columns are permuted alike, by one block on two axes."""
        G = pe.SymmetricGroup(K)
        P = pe.permutation(G)
        symmetry = pe.Symmetry(G, {"T": P * P, "loc": P})
        base = {"T": torch.randn(K, K).softmax(-1), "loc": torch.randn(K)}
        values = around(base, 30, 1e-3)
        moved = symmetry.act(G.sample((30,)), values)
        found = pe.canonicalize(moved, symmetry, reference=base)
        assert_same(found, values)

    @pytest.mark.parametrize("widths", [(6,), (16, 16), (8, 5, 7)], ids=str)
    def test_hidden_units_come_together(self, widths):
        ends = itertools.pairwise((4, *widths))
        layers = [layer for i, o in ends for layer in (nn.Linear(i, o), nn.Tanh())]
        net = nn.Sequential(*layers, nn.Linear(widths[-1], 3))
        symmetry = pe.hidden_permutations(net)
        weights = {name: p.detach() for name, p in net.named_parameters()}
        values = around(weights, 20, 1e-3)
        moved = symmetry.act(symmetry.group.sample((20,)), values)
        assert_same(pe.canonicalize(moved, symmetry, reference=weights), values)
        x, found = torch.randn(7, 4), pe.canonicalize(moved, symmetry)
        assert max(float(value.std(0).max()) for value in found.values()) < 5e-3
        for t in (0, 11):
            outputs = [torch.func.functional_call(net, {n: v[t] for n, v in d.items()}, x) for d in (moved, found)]
            assert_close(*outputs, **CLOSE)

    def test_a_key_of_shares_comes_last(self):
        symmetry, values = components(10)
        found = pe.canonicalize(values, symmetry, method="order")
        assert (found["loc"][..., 0].diff(dim=-1) > 0).all()
        by_shares = pe.canonicalize(values, symmetry, method="order", key="w")
        assert (by_shares["w"].diff(dim=-1) > 0).all()

    def test_draws_of_a_reference_are_averaged(self):
        symmetry, values = components(30, noise=0.1)
        several = {name: torch.stack([value[0] - 1, value[0] + 1]) for name, value in values.items()}
        mean = {name: value[0] for name, value in values.items()}
        one, other = (pe.canonicalize(values, symmetry, reference=reference) for reference in (several, mean))
        assert_same(one, other)

    def test_occupancy(self):
        """How often each element occurs, where the draws were moved uniformly."""
        symmetry, values = components(600, noise=0.01)
        g = symmetry.group.sample((600,))
        moved = act_on(symmetry, g, values)
        found = pe.canonical_elements(moved, symmetry, reference={name: v[0] for name, v in values.items()})
        assert torch.equal(found, symmetry.group.inverse(g))


class TestContainers:
    def chains(self, dtype=torch.float64):
        """Four chains, each in a mode of its own."""
        symmetry, values = components(4 * 50, noise=0.05)
        values = {name: value.to(dtype) if value.is_floating_point() else value for name, value in values.items()}
        g = torch.tensor([0, 1, 3, 5]).repeat_interleave(50)
        moved = act_on(symmetry, g, values)
        together = pe.canonicalize(moved, symmetry)
        return symmetry, *({n: v.unflatten(0, (4, 50)) for n, v in draws.items()} for draws in (moved, together))

    def idata(self, draws):
        return az.from_dict(
            posterior={name: value.numpy() for name, value in draws.items()},
            sample_stats={"lp": np.arange(200.0).reshape(4, 50)},
            observed_data={"x": np.arange(3.0)},
        )

    def assert_posterior(self, dataset, expected):
        for name, value in expected.items():
            found = dataset[name].transpose("chain", "draw", ...).values
            np.testing.assert_allclose(found, value.numpy(), atol=1e-9)

    def test_a_dict_with_chains(self):
        symmetry, draws, expected = self.chains()
        assert_same(pe.canonicalize(draws, symmetry), expected)
        g = pe.canonical_elements(draws, symmetry)
        assert g.shape == (4, 50) and all(len(row.unique()) == 1 for row in g) and len(g.unique()) == 4

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_dtypes_are_kept(self, dtype):
        symmetry, draws, _ = self.chains(dtype)
        found = pe.canonicalize(draws, symmetry)
        assert found["loc"].dtype == dtype and found["z"].dtype == torch.int64
        data = pe.canonicalize(self.idata(draws), symmetry).posterior
        assert data["loc"].dtype == draws["loc"].numpy().dtype and data["z"].dtype == np.int64

    def test_an_mcmc_object(self):
        symmetry, draws, expected = self.chains()
        fake = SimpleNamespace(get_samples=lambda group_by_chain=False: draws if group_by_chain else None)
        assert_same(pe.canonicalize(fake, symmetry), expected)

    def test_nuts(self):
        x = torch.tensor([-3.0, -2.9, -3.1, 3.0, 3.1, 2.9])

        def model(x):
            with pyro.plate("k", 2):
                loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
            observe(x, dist.MixtureSameFamily(dist.Categorical(torch.ones(2) / 2), dist.Normal(loc, 1.0)))

        start = {"loc": torch.tensor([3.0, -3.0])}
        mcmc = MCMC(NUTS(model), 30, 20, initial_params=start, disable_progbar=True)
        mcmc.run(x)
        raw = mcmc.get_samples(group_by_chain=True)["loc"]
        assert (raw[..., 0] > raw[..., 1]).all()
        found = pe.relabel(mcmc, model, "k", x, method="order")
        assert list(found) == ["loc"]
        assert_close(found["loc"], raw.flip(-1))

    def test_inference_data(self):
        symmetry, draws, expected = self.chains()
        given = self.idata(draws)
        found = pe.canonicalize(given, symmetry)
        assert isinstance(found, az.InferenceData) and found.groups() == given.groups()
        self.assert_posterior(found.posterior, expected)
        self.assert_posterior(given.posterior, draws)
        assert found.sample_stats.equals(given.sample_stats) and found.observed_data.equals(given.observed_data)

    def test_a_data_tree(self):
        symmetry, draws, expected = self.chains()
        idata = self.idata(draws)
        given = xr.DataTree.from_dict({name: idata[name] for name in idata.groups()})
        found = pe.canonicalize(given, symmetry)
        assert isinstance(found, xr.DataTree) and set(found.children) == set(given.children)
        self.assert_posterior(found["posterior"], expected)
        self.assert_posterior(given["posterior"], draws)
        assert found["sample_stats"].to_dataset().equals(given["sample_stats"].to_dataset())

    def test_a_dataset_in_any_order_of_dimensions(self):
        symmetry, draws, expected = self.chains()
        given = self.idata(draws).posterior.transpose("draw", ..., "chain")
        given = given.assign(note=("draw", np.arange(50)))
        found = pe.canonicalize(given, symmetry)
        assert isinstance(found, xr.Dataset) and found["loc"].dims == given["loc"].dims
        assert found["note"].equals(given["note"])
        self.assert_posterior(found, expected)
        self.assert_posterior(given, draws)

    def test_chains_in_different_modes_agree_afterwards(self):
        symmetry, draws, _ = self.chains()
        raw = az.rhat(self.idata(draws))
        for method in ("match", "order"):
            found = az.rhat(pe.canonicalize(self.idata(draws), symmetry, method))
            assert float(raw["loc"].max()) > 1.5 and float(found["loc"].max()) < 1.05

    @pytest.mark.parametrize("method", ["order", "match"])
    def test_relabel(self, method):
        x = torch.randn(6)
        draws = {name: torch.stack([prior_draw(mixture, (x,))[name] for _ in range(20)]) for name in ("w", "loc")}
        symmetry = pe.exchangeable(mixture, "k", x)
        expected = pe.canonicalize(draws, symmetry, method)
        assert_same(pe.relabel(draws, mixture, "k", x, method=method), expected)
        assert not torch.equal(expected["loc"], draws["loc"])


class TestCanonicalizeRefuses:
    @pytest.mark.parametrize("options, error, message", [
        ({"method": "order", "reference": {}}, OptionError, "reference= with method='match' only"),
        ({"method": "match", "key": "loc"}, OptionError, "key= with method='order' only"),
        ({"method": "sort"}, OptionError, "method"),
        ({"method": "order", "key": "shared"}, OptionError, "a site that moves, 'w', 'loc'; got 'shared'"),
        ({"method": "order", "key": "other"}, OptionError, "got 'other'"),
        ({"reference": {"w": torch.zeros(3)}}, SymmetryError, "reference= with 'loc' of shape .* got nothing"),
        ({"reference": {"w": torch.zeros(2), "loc": torch.zeros(3, 2)}}, SymmetryError, "reference= with 'w'"),
    ])  # fmt: skip
    def test_options(self, options, error, message):
        symmetry, values = components(5)
        for function in (pe.canonicalize, pe.canonical_elements):
            with pytest.raises(error, match=message):
                function(values, symmetry, **options)

    def test_shapes(self):
        symmetry, values = components(5)
        with pytest.raises(SymmetryError, match="ends in the shape"):
            pe.canonicalize(values | {"w": torch.zeros(5, 4)}, symmetry)
        with pytest.raises(SymmetryError, match="same axes of draws on the left"):
            pe.canonicalize(values | {"w": torch.zeros(6, 3)}, symmetry)
        with pytest.raises(SymmetryError, match="same axes of draws on the left"):
            pe.canonicalize({"w": torch.zeros(3), "loc": torch.zeros(3, 2)}, symmetry)

    def test_nothing_that_moves(self):
        symmetry, values = components(5)
        for left in ({"other": values["other"]}, {"shared": values["shared"]}, {"z": values["z"]}, {}):
            with pytest.raises(SymmetryError, match="draws of a site that the symmetry moves"):
                pe.canonicalize(left, symmetry)

    def test_a_continuous_group(self):
        turns = pe.SpecialOrthogonal(2)
        with pytest.raises(SymmetryError, match="Expected a finite group"):
            pe.canonicalize({"z": torch.zeros(3, 2)}, pe.Symmetry(turns, {"z": pe.vector(turns)}))

    def test_a_key_over_several_blocks(self):
        symmetry, values = ORBITS["two blocks"](5)
        with pytest.raises(SymmetryError, match="Use method='match'"):
            pe.canonicalize(values, symmetry, method="order")

    def test_other_containers(self):
        symmetry, values = components(5)
        with pytest.raises(SymmetryError, match="got list"):
            pe.canonicalize(list(values.values()), symmetry)
        with pytest.raises(SymmetryError, match="the dimensions chain and draw"):
            pe.canonicalize(xr.Dataset({"w": (("chain", "k"), np.zeros((2, 3)))}), symmetry)
        with pytest.raises(SymmetryError, match="to be a pe.Symmetry"):
            pe.canonicalize(values, None)


class TestHardCases:
    """What is easily missed, taken for what it is not, or said in a way that does not help."""

    def test_one_datum_among_a_million_in_single_precision(self):
        x = torch.randn(1_000_000, dtype=torch.float32)

        def model(x):
            with pyro.plate("k", 2):
                mu = pyro.sample("mu", dist.Normal(torch.zeros(2, dtype=torch.float32), 1.0))
            means = torch.cat([mu[:1], mu.sum().expand(len(x) - 1)])
            with pyro.plate("n", len(x)):
                pyro.sample("x", dist.Normal(means, 1.0), obs=x)

        with pytest.raises(SymmetryError, match="the observation 'x'.*double precision"):
            pe.exchangeable(model, "k", x)

    def test_an_ordering_constraint(self):
        def model():
            with pyro.plate("k", 2):
                mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            pyro.factor("order", torch.where(mu[0] < mu[1], 0.0, -math.inf))

        for find in (lambda: pe.exchangeable(model, "k"), lambda: pe.sign_flips(model, "mu")):
            with pytest.raises(SymmetryError, match="changes it by inf nats, most of it the factor 'order'"):
                find()

    def test_axes_of_the_same_length_that_do_not_belong(self):
        def model():
            with pyro.plate("k", 2):
                mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            for i in range(9):
                pyro.sample(f"b{i}", dist.Normal(torch.tensor([0.0, 1.0 + i]), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(mu.sum(), 1.0), obs=torch.tensor(1.0))

        symmetry = pe.exchangeable(model, "k")
        assert [
            name for name, rep in symmetry.sites.items() if not isinstance(rep, type(pe.trivial(rep.group, ())))
        ] == ["mu"]

    def test_an_observation_that_was_not_passed(self):
        def model(x=None):
            with pyro.plate("k", 2):
                mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(mu, 1.0)), obs=x)

        with pytest.raises(SymmetryError, match="'x'.*pass it to the model"):
            pe.exchangeable(model, "k")

    def test_sites_that_come_and_go(self):
        def model():
            with pyro.plate("k", 2):
                mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            if mu[0] > mu[1]:
                pyro.sample("extra", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))

        with pytest.raises(SymmetryError, match="'extra' comes and goes"):
            pe.exchangeable(model, "k")

    @pytest.mark.parametrize("find", [pe.find_symmetries, lambda m: pe.exchangeable(m, "k"), pe.hidden_permutations])
    def test_no_model(self, find):
        with pytest.raises(SymmetryError, match="got None"):
            find(None)

    @pytest.mark.parametrize(
        "group", [pe.SymmetricGroup(6), pe.YoungSubgroup(25), pe.SignedPermutationGroup(4)], ids=repr
    )
    def test_one_number_for_each_member_is_put_in_order(self, group):
        signed = isinstance(group, pe.SignedPermutationGroup)
        rep = pe.vector(group) if signed else pe.permutation(group)
        draws = torch.randn(10, group.n)
        found = pe.canonicalize({"loc": draws}, pe.Symmetry(group, {"loc": rep}), "order")["loc"]
        expected = draws.abs().sort(descending=True).values if signed else draws.sort().values
        assert torch.equal(found, expected)

    @pytest.mark.parametrize(
        ("spoil", "said"),
        [(lambda d: d[:0], "got none"), (lambda d: d.index_fill(0, torch.tensor(3), math.nan), "not finite")],
    )
    def test_draws_that_cannot_be_used(self, spoil, said):
        symmetry = pe.Symmetry(pe.SymmetricGroup(3), {"mu": pe.permutation(pe.SymmetricGroup(3))})
        with pytest.raises(SymmetryError, match=said):
            pe.canonicalize({"mu": spoil(torch.randn(10, 3))}, symmetry)

    def test_arrays_and_found_symmetries(self):
        def model():
            with pyro.plate("k", 3):
                pyro.sample("mu", dist.Normal(0.0, 1.0))

        found, draws = pe.find_symmetries(model)[0], torch.randn(10, 3)
        ordered = pe.canonicalize({"mu": draws.numpy()}, found, "order")["mu"]
        assert torch.equal(ordered, draws.sort().values)
        assert pe.check_symmetry(model, found) < 1e-12
        assert torch.equal(pe.relabel({"mu": draws}, model, "k", method="order", key="mu")["mu"], ordered)


def test_matching_goes_on_from_an_odd_first_draw_to_the_mean():
    """Two members 5 apart in one feature; the first draw tells them apart by the other feature, which is noise."""
    group = pe.SymmetricGroup(2)
    rep = pe.permutation(group) * pe.trivial(group, 2)
    symmetry = pe.Symmetry(group, {"loc": rep})
    draws = torch.tensor([[0.0, 0.0], [5.0, 0.0]]) + torch.randn(400, 2, 2) * torch.tensor([0.3, 1.0])
    draws[0] = torch.tensor([[1.5, -1.5], [3.5, 1.5]])
    moved = rep.act(group.sample((400,)), draws)
    moved[0] = draws[0]
    once = pe.canonicalize({"loc": moved}, symmetry, reference={"loc": moved[0]})["loc"]
    assert not torch.equal(once, draws)
    assert torch.equal(pe.canonicalize({"loc": moved}, symmetry)["loc"], draws)
