"""Permutations of blocks, and those of a network's hidden units: the actions, the networks, and a guide on them."""

import itertools
import math
import pickle

import pyro
import pytest
import torch
import torch.nn.functional as F
from pyro.infer import SVI, Trace_ELBO
from torch import nn
from torch.testing import assert_close

import pyro_equivariance as pe
from pyro_equivariance.errors import LayerError, OptionError, SymmetryError
from pyro_equivariance.representations import BlockPermutation

GROUP = pe.YoungSubgroup((2, 3))
EVERY = torch.tensor([p for p in itertools.permutations(range(5)) if set(p[:2]) == {0, 1}])
FIRST, SECOND, ALL = (pe.permutation(GROUP, block=0), pe.permutation(GROUP, block=1), pe.permutation(GROUP))
ACTIONS = {
    "all": ALL,
    "block": SECOND,
    "product": SECOND * FIRST,
    "one block twice": SECOND * SECOND,
    "product with what stays": FIRST * pe.trivial(GROUP, 4) * SECOND,
    "sum": FIRST + SECOND + pe.trivial(GROUP, 2),
    "sum in a product": pe.trivial(GROUP, 2) * (FIRST + ALL),
    "reshaped": (SECOND * pe.trivial(GROUP, 2)).reshape((6,)) * FIRST,
    "trivial": pe.trivial(GROUP, (2, 3)),
}


class TestAction:
    @pytest.fixture(params=ACTIONS)
    def rep(self, request):
        return ACTIONS[request.param]

    def test_homomorphism(self, rep):
        a, b, x = EVERY[:, None], EVERY, torch.randn(rep.event_shape)
        assert torch.equal(rep.act(a, rep.act(b, x)), rep.act(GROUP.compose(a, b), x))
        assert torch.equal(rep.act(GROUP.identity, x), x)

    @pytest.mark.parametrize("g_shape, batch, expected", [
        ((), (5, 2), (5, 2)), ((4,), (), (4,)), ((4, 1), (3,), (4, 3)), ((3, 1, 2), (4, 1), (3, 4, 2)),
        ((0,), (1,), (0,)),
    ])  # fmt: skip
    def test_broadcasting(self, rep, g_shape, batch, expected):
        g, x = GROUP.sample(g_shape), torch.randn(*batch, *rep.event_shape)
        found = rep.act(g, x)
        assert found.shape == (*expected, *rep.event_shape)
        every_g, every_x = g.expand(*expected, 5), x.expand(*expected, *rep.event_shape)
        for where in itertools.product(*map(range, expected)):
            assert torch.equal(found[where], rep.act(every_g[where], every_x[where]))

    def test_matrix(self, rep):
        x = torch.randn(rep.event_shape)
        matrices = rep.matrix(EVERY)
        assert_close((matrices @ x.flatten()).reshape(-1, *rep.event_shape), rep.act(EVERY, x))
        assert_close(matrices @ matrices.mT, torch.eye(x.numel()).expand_as(matrices))

    def test_mean(self, rep, monkeypatch):
        """Of permutations without the chain of subgroups, which is long for many things."""
        monkeypatch.setattr(pe.YoungSubgroup, "transversals", ())
        x = torch.randn(3, *rep.event_shape, requires_grad=True)
        expected = torch.stack([rep.act(g, x) for g in EVERY]).mean(0)
        assert_close(rep.mean(x), expected)
        weight = torch.randn(x.shape)
        assert_close(*(torch.autograd.grad((mean * weight).sum(), x)[0] for mean in (rep.mean(x), expected)))

    def test_mean_along_the_chain(self, rep, monkeypatch):
        """As for actions that are no permutations."""
        x = torch.randn(rep.event_shape)
        expected = rep.mean(x)
        monkeypatch.setattr(type(rep), "is_permutation", False)
        assert_close(rep.mean(x), expected)

    def test_is_a_value(self, rep):
        again = pickle.loads(pickle.dumps(rep))
        assert again == rep and hash(again) == hash(rep) and repr(again) == repr(rep)
        assert [other for other in ACTIONS.values() if other == rep] == [rep]
        assert rep.is_permutation and rep.modulus(2).is_permutation and rep.dual == rep


class TestBlocks:
    def test_by_hand(self):
        g, x = torch.tensor([1, 0, 3, 4, 2]), torch.tensor([5.0, 7.0, 9.0])
        moved = SECOND.act(g, x)
        assert all(moved[int(g[2 + j]) - 2] == x[j] for j in range(3))
        assert FIRST.act(g, x[:2]).tolist() == [7.0, 5.0]
        assert ALL.act(g, torch.arange(5.0)).tolist() == [1.0, 0.0, 4.0, 2.0, 3.0]

    def test_against_an_index_group(self):
        S3 = pe.SymmetricGroup(3)
        x = torch.randn(4, 3)
        young = pe.permutation(pe.YoungSubgroup(3))
        for g in S3.elements:
            assert torch.equal(young.act(S3.permutations(g), x), pe.permutation(S3).act(g, x))

    def test_names(self):
        assert (repr(ALL), repr(SECOND)) == ("permutation(5)", "permutation(3, block=1)")
        assert isinstance(ALL, BlockPermutation) and pe.permutation(pe.YoungSubgroup(3), block=0).event_shape == (3,)

    @pytest.mark.parametrize("call, message", [
        (lambda: pe.permutation(GROUP, block=2), "block of YoungSubgroup.*between 0 and 1; got 2"),
        (lambda: pe.permutation(GROUP, block=-1), "got -1"),
        (lambda: pe.permutation(pe.SymmetricGroup(3), block=0), "block= for a YoungSubgroup"),
        (lambda: ALL.orbit(torch.zeros(5)), "lists its elements"),
        (lambda: ALL.act(0, torch.zeros(5)), r"permutations \(\.\.\., 5\); got shape \(\)"),
        (lambda: pe.regular(GROUP), "lists its elements"),
        (lambda: pe.signed_permutation(GROUP), "lists its elements"),
        (lambda: pe.handlers.augment(lambda x: x, pe.Symmetry(GROUP, {}, inputs=ALL)), "lists its elements"),
    ])  # fmt: skip
    def test_refused(self, call, message):
        with pytest.raises(SymmetryError, match=message):
            call()

    def test_generators_commute_or_not(self):
        net = nn.Linear(5, 2)
        with pytest.raises(OptionError, match="abelian"):
            pe.network_symmetry(net, GROUP, (5,), hidden="rolled", inputs=ALL)


class Concatenated(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(11, 3)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.last(torch.cat([h, torch.relu(self.second(h))], -1))


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.places = nn.Linear(3, 8), nn.Parameter(torch.randn(5, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.last = nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.embed(x) + self.places
        return self.last(self.norm(x + self.attention(x, x, x)[0]).mean(1))


class Scored(nn.Module):
    """Queries and keys meet in inner products, so they share a block."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.last = (nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(3, 6),
                                                       nn.Linear(6, 2))  # fmt: skip

    def forward(self, x):
        return self.last(F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x)).mean(1))


class SideBySide(nn.Module):
    """Places of two layers in one row, each multiplied by a gate: all three layers share a block."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.gate, self.last = (nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(3, 6),
                                                       nn.Linear(6, 2))  # fmt: skip

    def forward(self, x):
        gated = torch.relu(self.left(x)) * torch.sigmoid(self.gate(x))
        return self.last(torch.cat([gated, torch.relu(self.right(x))], 1).mean(1))


class Repeated(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.inner(torch.tanh(self.inner(torch.tanh(self.first(x)))))))


def mlp(*widths):
    layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def tied(widths, one, other):
    net = mlp(*widths)
    net[other].weight = net[one].weight
    return net


def branch(width, inner, *between):
    return pe.Residual(nn.Sequential(nn.Linear(width, inner), nn.ReLU(), *between, nn.Linear(inner, width)))


def convolutions():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, stride=2), nn.GroupNorm(1, 4), nn.ReLU(), nn.Conv2d(4, 6, 3),
        nn.GroupNorm(6, 6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3),
    )  # fmt: skip


def residual_convolutions():
    inner = nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 3, padding=1))
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), pe.Residual(inner), nn.Flatten(), nn.Linear(4 * 36, 2))


def in_groups():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))  # fmt: skip


# For each network its input's shape (None: left out) and the sizes of its blocks.
NETWORKS = {
    "two layers": (lambda: mlp(4, 16, 16, 3), None, (16, 16)),
    "convolutions": (convolutions, (1, 9, 9), (4, 6, 7)),
    "sequences": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)), (2, 8), (4,)),
    "residual": (lambda: nn.Sequential(nn.Linear(4, 6), branch(6, 9), branch(6, 8, nn.LayerNorm(8)), nn.Linear(6, 2)),
                 None, (6, 9, 8)),
    "residual convolutions": (residual_convolutions, (1, 6, 6), (4, 5)),
    "residual at the input": (lambda: nn.Sequential(branch(4, 9), nn.Linear(4, 2)), 4, (9,)),
    "residual at the output": (lambda: nn.Sequential(nn.Linear(4, 6), branch(6, 9)), 4, (9,)),
    "concatenated": (Concatenated, None, (6, 5)),
    "attention": (Attending, (5, 3), (8,)),
    "scores": (Scored, (5, 3), (8, 6)),
    "side by side and gated": (SideBySide, (5, 3), (6,)),
    "one layer twice": (Repeated, None, (6,)),
    "tied layers": (lambda: tied((4, 6, 6, 6, 2), 2, 4), None, (6,)),
    "tokens": (lambda: nn.Sequential(nn.Embedding(9, 6), nn.Flatten(), nn.Linear(24, 5), nn.ReLU(), nn.Linear(5, 2)), 4,
               (6, 5)),
    "groups of channels": (in_groups, (1, 9, 9), (6,)),
}  # fmt: skip


class TestNetworks:
    @pytest.fixture(params=NETWORKS)
    def case(self, request):
        make, shape, sizes = NETWORKS[request.param]
        net = make()
        return net, pe.hidden_permutations(net, shape), sizes

    def test_the_output_stays(self, case):
        net, sym, _ = case
        assert sym.check(net) < 1e-12

    def test_blocks(self, case):
        net, sym, sizes = case
        assert sym.group == pe.YoungSubgroup(sizes) and sym.outputs is None
        assert {n: r.event_shape for n, r in sym.sites.items()} == {n: p.shape for n, p in net.named_parameters()}

    def test_every_block_moves_something(self, case):
        net, sym, sizes = case
        weights = {name: torch.randn(p.shape) for name, p in net.named_parameters()}
        for g in sym.group.generators:
            moved = sym.act(g, weights)
            assert any(not torch.equal(moved[name], weights[name]) for name in weights)

    def test_another_action_fails(self, case):
        """The first site that moves is left where it is."""
        net, sym, _ = case
        weights = {name: torch.randn(p.shape) for name, p in net.named_parameters()}
        g = sym.group.sample()
        while all(torch.equal(t, weights[n]) for n, t in sym.act(g, weights).items()):
            g = sym.group.sample()
        moving = next(name for name, rep in sym.sites.items() if "permutation" in repr(rep))
        sites = {**sym.sites, moving: pe.trivial(sym.group, sym[moving].event_shape)}
        with pytest.raises(LayerError, match="Expected the network's output to move with the symmetry"):
            pe.Symmetry(sym.group, sites, inputs=sym.inputs).check(net)

    def test_by_hand(self):
        """Rows, biases and columns of a network written out."""
        net = mlp(3, 4, 5, 2)
        sym, weights = pe.hidden_permutations(net), dict(net.named_parameters())
        g = sym.group.sample()
        first, second = g[:4].argsort(), (g[4:] - 4).argsort()
        expected = {
            "0.weight": weights["0.weight"][first], "0.bias": weights["0.bias"][first],
            "2.weight": weights["2.weight"][second][:, first], "2.bias": weights["2.bias"][second],
            "4.weight": weights["4.weight"][:, second], "4.bias": weights["4.bias"],
        }  # fmt: skip
        for name, moved in sym.act(g, weights).items():
            assert torch.equal(moved, expected[name])

    def test_order(self):
        assert pe.hidden_permutations(mlp(4, 32, 32, 2)).group.order == math.factorial(32) ** 2

    def test_concatenated_channels_keep_their_blocks(self):
        sym = pe.hidden_permutations(Concatenated())
        assert repr(sym["last.weight"]) == "trivial(3,) * (permutation(6, block=0) + permutation(5, block=1))"

    @pytest.mark.parametrize("make", [
        lambda: nn.Linear(4, 3), lambda: tied((4, 4, 4), 0, 2),
        lambda: nn.Sequential(pe.Residual(nn.Linear(4, 4)), nn.Linear(4, 2)),
    ], ids=["one layer", "tied to the input", "added to the input"])  # fmt: skip
    def test_without_hidden_units(self, make):
        with pytest.raises(LayerError, match="hidden units that can be permuted; got none: it has no hidden layer"):
            pe.hidden_permutations(make())

    def test_input_shape_is_needed(self):
        net = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
        with pytest.raises(OptionError, match="Expected input_shape=.*got Flatten first"):
            pe.hidden_permutations(net)
        assert pe.hidden_permutations(net, (1, 2, 2)).check(net) < 1e-12

    @pytest.mark.parametrize("layer, message", [
        (nn.BatchNorm2d(4), "running statistics for '1'"), (nn.PReLU(4), "'1' is a PReLU"),
        (nn.Conv2d(4, 4, 3, groups=2), "convolution '1'; got groups 2"),
    ])  # fmt: skip
    def test_layers_that_cannot_be_read(self, layer, message):
        net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), layer, nn.Flatten(), nn.LazyLinear(2))
        with pytest.raises(LayerError, match=message):
            pe.hidden_permutations(net, (1, 6, 6))


def posterior(net, steps, **options):
    """A model of a network, data, and a trained mixture on it."""
    model, sym = pe.BayesianNetwork(net), pe.hidden_permutations(net)
    x = torch.randn(20, 4)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    guide = pe.AutoOrbitMixture(model, sym, **options)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    for _ in range(steps):
        assert math.isfinite(svi.step(x, y))
    return model, guide, (x, y)


class TestGuide:
    def losses(self, model, guide, data, count):
        found = torch.tensor([Trace_ELBO().loss(model, guide, *data) for _ in range(count)])
        return float(found.mean()), float(found.std()) / count**0.5

    def test_trained_mixture_against_its_base(self):
        """Its loss is that of the Normal less the information that its bound finds: between 0 and ``log samples``."""
        model, guide, data = posterior(mlp(4, 8, 8, 3), 200, samples=16)
        still = pe.Symmetry(pe.CyclicGroup(1), {name: pe.trivial(pe.CyclicGroup(1), rep.event_shape)
                                                for name, rep in guide.symmetry.sites.items()})  # fmt: skip
        base = pe.AutoOrbitMixture(model, still)
        base.initialize(*data)
        base.load_state_dict(guide.state_dict())
        (mixture, error), (alone, other) = (self.losses(model, g, data, 300) for g in (guide, base))
        gain, error = alone - mixture, math.hypot(error, other)
        assert gain > -4 * error and gain < math.log(16) + 4 * error
        assert gain > 0.5 * math.log(16)

    def test_says_what_its_density_is(self):
        _, guide, _ = posterior(mlp(4, 5, 3), 1, samples=7)
        assert repr(guide) == ("AutoOrbitMixture(base=diagonal, group=YoungSubgroup((5,)), density=lower bound of the "
                               "ELBO from 7 elements)")  # fmt: skip

    @pytest.mark.parametrize("base", ["diagonal", "full", "low_rank"])
    def test_vectorised_particles(self, base):
        model, guide, data = posterior(mlp(4, 5, 3), 1, base=base, samples=4)
        loss = Trace_ELBO(num_particles=6, vectorize_particles=True, max_plate_nesting=1).loss(model, guide, *data)
        assert math.isfinite(loss)

    def test_summaries(self):
        _, guide, _ = posterior(mlp(4, 5, 3), 1)
        assert guide.median()["0.weight"].shape == (5, 4)
        quantiles = guide.quantiles([0.1, 0.9])["0.bias"]
        spread = (quantiles - quantiles.mean(1, keepdim=True)).abs().amax()
        assert quantiles.shape == (2, 5) and spread < 0.2 * (quantiles[1] - quantiles[0]).mean()

    def test_exact_density_of_a_small_net(self):
        """Three units as an index group: the loss of the bound lies above the exact one, and falls to it."""
        net = mlp(4, 3, 3)
        model, guide, data = posterior(net, 100, samples=64)
        S3 = pe.SymmetricGroup(3)
        units = pe.permutation(S3)
        sites = {"0.weight": units * pe.trivial(S3, 4), "0.bias": units, "2.weight": pe.trivial(S3, 3) * units,
                 "2.bias": pe.trivial(S3, 3)}  # fmt: skip
        exact = pe.AutoOrbitMixture(model, pe.Symmetry(S3, sites))
        exact.initialize(*data)
        exact.load_state_dict(guide.state_dict())
        (bound, error), (true, other) = (self.losses(model, g, data, 300) for g in (guide, exact))
        assert -4 * math.hypot(error, other) < bound - true < 0.1 + 4 * math.hypot(error, other)

    def test_averages_make_all_units_alike(self):
        net = mlp(4, 5, 3)
        guide = pe.AutoSymmetricNormal(pe.BayesianNetwork(net), pe.hidden_permutations(net))
        guide.initialize(torch.randn(2, 4), torch.zeros(2).long())
        loc = guide.get_posterior("0.weight").base_dist.loc
        assert_close(loc, loc[:1].expand_as(loc))

    def test_low_rank_averages_are_refused(self):
        net = mlp(4, 5, 3)
        guide = pe.AutoSymmetricLowRankMultivariateNormal(pe.BayesianNetwork(net), pe.hidden_permutations(net))
        with pytest.raises(SymmetryError, match="lists its elements; those of YoungSubgroup"):
            guide(torch.randn(2, 4), torch.zeros(2).long())
