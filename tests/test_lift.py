"""The lift: against loops, against group convolutions, through Pyro, and what it recovers."""

import copy
import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO
from torch import nn

import pyro_equivariance as pe
from pyro_equivariance.networks import with_fibre_inputs

EXACT = 1e-10
PROBS = 1e-12


def close(a, b, tolerance=EXACT):
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance)


# Actions by torch alone


def turned(x, g):
    """Element ``g`` of C4 or D4 on images."""
    moved = torch.rot90(x, g % 4, (-2, -1))
    return moved if g < 4 else moved.flip(-1)


def permuted(x, g):
    """Element ``g`` of S3, in lexicographic order, on three points: point ``i`` goes to place ``p[i]``."""
    order = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)][g]
    moved = torch.empty_like(x)
    moved[..., list(order), :] = x
    return moved


def images(group):
    return pe.Symmetry(group, {}, inputs=pe.image(group, (2, 6, 6))), turned


def points(group):
    return pe.Symmetry(group, {}, inputs=pe.permutation(group) * pe.trivial(group, 4)), permuted


ACTIONS = {
    "C4": lambda: images(pe.CyclicGroup(4)),
    "D4": lambda: images(pe.DihedralGroup(4)),
    "S3": lambda: points(pe.SymmetricGroup(3)),
}
each_action = pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)


def product(move, like, g, h):
    """``gh``, found by moving a tensor."""
    probe = torch.arange(float(like.numel())).reshape(like.shape)
    return next(k for k in range(24) if torch.equal(move(probe, k), move(move(probe, h), g)))


def inverse(move, like, order, g):
    return next(k for k in range(order) if product(move, like, g, k) == 0)


# Networks that no symmetry could be read from


class Attention(nn.Module):
    """Self-attention over places with a table of positions, which no motion of the places commutes with."""

    def __init__(self, places, channels):
        super().__init__()
        self.positions = nn.Parameter(torch.randn(places, 8))
        self.embed = nn.Linear(channels, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8 * places, 3)

    def forward(self, x):
        x = x.flatten(2).mT if x.ndim == 4 else x
        return self.head(self.encoder(self.embed(x) + self.positions).flatten(1))


def convolutional(rep):
    if len(rep.event_shape) == 2:
        return nn.Sequential(nn.Conv1d(3, 5, 2, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(10, 3))
    return nn.Sequential(nn.Conv2d(2, 5, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(),
                         nn.LazyLinear(3))  # fmt: skip


def dense(rep):
    return nn.Sequential(nn.Flatten(), nn.Linear(rep.event_shape.numel(), 7), nn.Tanh(), nn.Linear(7, 3))


def attention(rep):
    places, channels = (36, 2) if len(rep.event_shape) == 3 else (3, 4)
    return Attention(places, channels)


def function(rep):
    weights = torch.randn(rep.event_shape.numel(), 3)
    return lambda x: (x.flatten(1) ** 2 @ weights).sin()


NETWORKS = {"convolutional": convolutional, "dense": dense, "attention": attention, "function": function}
each_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)


def made(action, network=dense):
    symmetry, move = action()
    net = network(symmetry.inputs)
    x = torch.randn(4, *symmetry.inputs.event_shape)
    net(x)  # lazy layers
    return symmetry, move, net.eval() if isinstance(net, nn.Module) else net, x


@each_action
@each_network
def test_the_lift_is_the_function_at_the_moved_back_inputs_and_equivariant(action, network):
    symmetry, move, net, x = made(action, network)
    order = len(symmetry.group)
    lifted = pe.equivarify(net, symmetry, readout="fibre")
    fibre = lifted(x)
    assert lifted.is_exact and fibre.shape == (4, order, 3)
    by_hand = [net(move(x, inverse(move, x, order, g))) for g in range(order)]
    assert close(fibre, torch.stack(by_hand, 1))
    for h in range(order):
        back = [product(move, x, inverse(move, x, order, h), g) for g in range(order)]
        assert close(lifted(move(x, h)), fibre[:, back])  # (h·s)(g) = s(h⁻¹g)
        assert close(lifted(move(x, h)), lifted.symmetry.outputs.act(h, fibre))
        if h:
            assert not close(lifted(move(x, h)), fibre, 1e-3)


@pytest.mark.parametrize("action", [ACTIONS["D4"], ACTIONS["S3"]], ids=["D4", "S3"])
def test_the_order_of_multiplication_matters(action):
    symmetry, move, net, x = made(action)
    lifted, order = pe.equivarify(net, symmetry, readout="fibre"), len(symmetry.group)
    gaps = []
    for h in range(order):
        other = [product(move, x, g, inverse(move, x, order, h)) for g in range(order)]
        gaps.append((lifted(move(x, h)) - lifted(x)[:, other]).abs().max())
    assert max(gaps) > 1e-2


@each_action
@each_network
def test_readouts_of_invariant_outputs(action, network):
    symmetry, move, net, x = made(action, network)
    order = len(symmetry.group)
    fibre = pe.equivarify(net, symmetry, readout="fibre")(x)
    expected = {"mean": fibre.mean(1), "max": fibre.max(1).values, "projection": net(x), "joint": fibre.reshape(4, -1)}
    for readout, value in expected.items():
        assert close(pe.equivarify(net, symmetry, readout)(x), value)
    for readout in ("mean", "max"):
        lifted = pe.equivarify(net, symmetry, readout)
        assert lifted.symmetry.outputs is None
        assert all(close(lifted(move(x, h)), lifted(x)) for h in range(order))
    joint = pe.equivarify(net, symmetry, "joint")
    assert joint.symmetry.outputs == pe.regular(symmetry.group, 3)
    for h in range(order):
        assert close(joint(move(x, h)), joint.symmetry.outputs.act(h, joint(x)))
    assert not close(net(move(x, 1)), net(x), 1e-3)


OUTPUTS = {
    "vectors": (pe.vector, ("mean",)),
    "permuted": (pe.regular, ("mean", "max")),
    "maps": (lambda G: pe.image(G, (3, 6, 6)), ("mean", "max")),
}


@pytest.mark.parametrize("group", [pe.CyclicGroup(4), pe.DihedralGroup(4)], ids=str)
@pytest.mark.parametrize(("outputs", "readouts"), OUTPUTS.values(), ids=OUTPUTS)
def test_readouts_of_outputs_that_move(group, outputs, readouts):
    outputs = outputs(group)
    symmetry = pe.Symmetry(group, {}, inputs=pe.image(group, (2, 6, 6)), outputs=outputs)
    net = nn.Sequential(nn.Flatten(), nn.Linear(72, outputs.event_shape.numel()), nn.Unflatten(1, outputs.event_shape))
    x = torch.randn(4, 2, 6, 6)
    for readout in readouts:
        lifted = pe.equivarify(net, symmetry, readout)
        assert lifted.symmetry.outputs == outputs and lifted.symmetry.check(lifted) < EXACT
        for h in range(len(group)):
            assert close(lifted(turned(x, h)), outputs.act(h, lifted(x)))
    copies = [outputs.act(g, net(turned(x, inverse(turned, x[0], len(group), g)))) for g in range(len(group))]
    assert close(pe.equivarify(net, symmetry)(x), sum(copies) / len(copies))


def test_outputs_of_a_number_each():
    symmetry, move = ACTIONS["C4"]()
    lifted = pe.equivarify(lambda x: x[:, 0, 0, 0], symmetry)
    x = torch.randn(4, 2, 6, 6)
    corners = x[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert close(lifted(x), corners.mean(1))
    assert pe.equivarify(lambda x: x[:, 0, 0, 0], symmetry, "fibre").symmetry.outputs == pe.regular(symmetry.group)


@pytest.mark.parametrize("readout", ["fibre", "joint"])
def test_the_symmetry_follows_the_network(readout):
    symmetry, _, net, x = made(ACTIONS["C4"])
    lifted = pe.equivarify(net, symmetry, readout)
    assert lifted.symmetry.outputs.event_shape.numel() == 12
    twin = copy.deepcopy(lifted)
    for one in (lifted, twin):
        one._net[3] = nn.Linear(7, 5)
        assert one.symmetry.outputs.event_shape == one(x).shape[1:]
        assert one.symmetry.check(one) < EXACT


def test_invariant_readouts_know_their_symmetry_without_a_run():
    symmetry, _ = ACTIONS["C4"]()

    def never(x):
        raise AssertionError("it ran")

    for readout in ("mean", "max"):
        assert pe.equivarify(never, symmetry, readout).symmetry.outputs is None
    moved = with_outputs(pe.regular(C4))
    assert pe.equivarify(never, moved).symmetry.outputs == moved.outputs
    assert pe.equivarify(never, moved, "projection").outputs == moved.outputs
    with pytest.raises(AssertionError, match="it ran"):
        _ = pe.equivarify(never, symmetry, "fibre").outputs


class Lookup(nn.Module):
    """A table of its own, which it asks for integers."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 3))

    def forward(self, x):
        return self.table[x].mean((1, 2, 3))


def test_the_symmetry_is_asked_of_inputs_like_the_last():
    """Integers, which a network that looks them up takes alone."""
    symmetry, _ = ACTIONS["C4"]()
    table = torch.randn(4, 3)
    lifted = pe.equivarify(lambda x: table[x].mean((1, 2, 3)), symmetry, "joint")
    lifted(torch.randint(4, (5, 2, 6, 6)))
    assert lifted.symmetry.outputs == copy.deepcopy(lifted).outputs == pe.regular(C4, 3)
    looked_up = pe.equivarify(Lookup(), symmetry, "joint")
    looked_up(torch.randint(4, (5, 2, 6, 6)))
    assert looked_up.symmetry.outputs == pe.regular(C4, 3)
    single = pe.equivarify(lambda x: x.flatten(1) @ torch.ones(72, 3, dtype=torch.float32), symmetry, "joint")
    single(torch.zeros(5, 2, 6, 6, dtype=torch.float32))
    assert single.symmetry.outputs == pe.regular(C4, 3)


@pytest.mark.parametrize("out", [(), (3, 2, 2)], ids=str)
def test_joint_outputs_that_are_no_logits_have_no_symmetry(out):
    symmetry, _ = ACTIONS["C4"]()
    lifted = pe.equivarify(lambda x: x.new_zeros(len(x), *out), symmetry, "joint")
    for wanted in (lambda: lifted.symmetry, lambda: lifted.outputs, lambda: lifted(torch.zeros(1, 2, 6, 6))):
        with pytest.raises(pe.OptionError, match=r"logits \(N, K\) for readout='joint'; got"):
            wanted()


@each_action
@pytest.mark.parametrize("layers", ["global", "each", "wide"])
@pytest.mark.parametrize("readout", ["mean", "max", "fibre", "joint", "projection"])
def test_an_empty_batch_has_empty_outputs(action, layers, readout):
    symmetry, _, net, x = made(action)
    net = with_fibre_inputs(net, symmetry.group) if layers == "wide" else net
    lifted = pe.equivarify(net, symmetry, readout, "global" if layers == "global" else "each")
    assert lifted(x[:0]).shape == (0, *lifted(x).shape[1:])
    with pytest.raises(pe.SymmetryError, match="ends in the shape"):
        lifted(x[:0, :1])


def test_an_empty_batch_of_outputs_that_move():
    symmetry = with_outputs(pe.regular(C4))
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(48, 4))
    assert pe.equivarify(net, symmetry)(torch.zeros(0, 2, 6, 6)).shape == (0, 4)


# The universal property


@each_action
def test_every_equivariant_factor_maps_onto_the_lift(action):
    """``F = p' ∘ F'`` with an equivariant ``F'`` into ``Y``, here cubes less their mean, gives ``F̂ = Ψ ∘ F'``."""
    symmetry, _ = action()
    rep = symmetry.inputs
    x, weights = torch.randn(4, *rep.event_shape), torch.randn(rep.event_shape.numel(), 3)

    def factor(x):
        return x**3 - (x**3).flatten(1).mean(1).reshape(-1, *[1] * len(rep.event_shape))

    def project(y):
        return (y.flatten(1) @ weights).tanh()

    lifted = pe.equivarify(lambda x: project(factor(x)), symmetry, readout="fibre")
    psi = pe.equivarify(project, pe.Symmetry(symmetry.group, {}, inputs=rep), readout="fibre")
    y = factor(x)
    assert close(lifted(x), psi(y))
    assert close(psi(y)[:, 0], project(y))  # p ∘ Ψ = p'
    for h in range(len(symmetry.group)):  # and Ψ is equivariant
        assert close(psi(rep.act(h, y)), psi.symmetry.outputs.act(h, psi(y)))


@each_action
def test_the_factorisation_is_unique(action):
    """The linear equivariant ``M`` with ``(M y)(e) = p' y`` solve a system of full rank, and the solution is ``Ψ``."""
    group = action()[0].group
    order, rep, weights = len(group), pe.regular(group), torch.randn(len(group))
    one = torch.eye(order)
    moved = rep.matrix(group.elements).contiguous()
    commute = [torch.kron(one, m.T.contiguous()) - torch.kron(m, one) for m in moved]  # M ρ(h) = ρ(h) M
    system = torch.cat([*commute, torch.kron(one[:1], one)])
    right = torch.cat([torch.zeros(order**3), weights])
    assert torch.linalg.matrix_rank(system) == order**2
    solution = torch.linalg.lstsq(system, right).solution
    assert close(system @ solution, right)
    psi = pe.equivarify(lambda y: y @ weights, pe.Symmetry(group, {}, inputs=rep), readout="fibre")
    y = torch.randn(4, order)
    assert close(psi(y), y @ solution.reshape(order, order).T)


# Layer by layer


def group_convolution(group, maps, kernels, bias, padding):
    """``t'(g) = Σ_h (ρ(g) V_{g⁻¹h}) * t(h) + b`` by loops; ``maps`` is a list of ``t(h)``."""
    order, small = len(group), torch.zeros(3, 3)
    out = []
    for g in range(order):
        back = inverse(turned, small, order, g)
        parts = [
            F.conv2d(maps[h], turned(kernels[product(turned, small, back, h)], g), padding=padding)
            for h in range(order)
        ]
        out.append(sum(parts) + bias[:, None, None])
    return out


def by_group_convolutions(group, net, x):
    """What ``net``, made by :func:`convolutions`, computes layer by layer: the turned-back maps of logits."""
    order = len(group)
    first, _, second, _, _, third, _, _, last = net
    maps = [F.conv2d(x, turned(first.weight, g), first.bias, padding=1).relu() for g in range(order)]
    maps = [F.max_pool2d(t.relu(), 2) for t in group_convolution(group, maps, split(second, order), second.bias, 1)]
    maps = [t.tanh() for t in group_convolution(group, maps, split(third, order), third.bias, 0)]
    head = split(last, order)  # (|G|, K, C · 4)
    rows = []
    for g in range(order):
        back = inverse(turned, torch.zeros(3, 3), order, g)
        kernels = [
            head[product(turned, torch.zeros(3, 3), back, h)].reshape(-1, *maps[0].shape[1:]) for h in range(order)
        ]
        parts = [(maps[h][:, None] * turned(kernels[h], g)).sum((-3, -2, -1)) for h in range(order)]
        rows.append(sum(parts) + last.bias)
    return torch.stack(rows, 1)


def split(layer, order):
    """A weight ``(out, |G| · in, ...)`` as ``(|G|, out, in, ...)``."""
    return layer.weight.unflatten(1, (order, -1)).movedim(1, 0)


def convolutions(order):
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3 * order, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4 * order, 3, 3), nn.Flatten(), nn.Tanh(), nn.Linear(3 * 4 * order, 5),
    )  # fmt: skip


@pytest.mark.parametrize("group", [pe.CyclicGroup(4), pe.DihedralGroup(4)], ids=str)
def test_aligned_layers_are_group_convolutions(group):
    net, x = convolutions(len(group)), torch.randn(2, 2, 8, 8)
    symmetry = pe.Symmetry(group, {}, inputs=pe.image(group, (2, 8, 8)))
    lifted = pe.equivarify(net, symmetry, "fibre", layers="each")
    assert close(lifted(x), by_group_convolutions(group, net, x))
    maps = pe.equivarify(net[:6], symmetry, "fibre", layers="each")(x)
    order = len(group)
    first = [F.conv2d(x, turned(net[0].weight, g), net[0].bias, padding=1).relu() for g in range(order)]
    second = group_convolution(group, first, split(net[2], order), net[2].bias, 1)
    pooled = [F.max_pool2d(t.relu(), 2) for t in second]
    expected = group_convolution(group, pooled, split(net[5], order), net[5].bias, 0)
    for g in range(order):  # t(g) = ρ(g) s(g)
        assert close(turned(maps[:, g], g), expected[g])


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("group", [pe.CyclicGroup(4), pe.DihedralGroup(4)], ids=str)
def test_layers_are_equivariant_aligned_or_not(group, align):
    net, x = convolutions(len(group)), torch.randn(2, 2, 8, 8)
    symmetry = pe.Symmetry(group, {}, inputs=pe.image(group, (2, 8, 8)))
    lifted = pe.equivarify(net, symmetry, "fibre", layers="each", align=align)
    assert lifted.symmetry.check(lifted) < EXACT
    for h in range(len(group)):
        assert close(lifted(turned(x, h)), lifted.symmetry.outputs.act(h, lifted(x)))
    assert close(lifted(x), by_group_convolutions(group, net, x)) == align


def test_the_bottom_of_a_fibre_is_a_map_of_all_of_it():
    """``p ∘ L̂ = L``: at the identity a lifted layer is the layer itself, on the turned-back fibre."""
    group, net, x = pe.CyclicGroup(4), convolutions(4), torch.randn(2, 2, 8, 8)
    symmetry = pe.Symmetry(group, {}, inputs=pe.image(group, (2, 8, 8)))
    first = pe.equivarify(net[:2], symmetry, "fibre", layers="each")(x)
    turned_back = torch.cat([turned(first[:, g], g) for g in range(4)], 1)
    assert close(pe.equivarify(net[:3], symmetry, "projection", layers="each")(x), net[2](turned_back))


def test_layers_on_points_and_sequences():
    S3 = pe.SymmetricGroup(3)
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Sequential(nn.Linear(24, 3), nn.Tanh()), nn.Linear(18, 2))
    symmetry = pe.Symmetry(S3, {}, inputs=pe.permutation(S3) * pe.trivial(S3, 2))
    x = torch.randn(2, 3, 2)
    lifted = pe.equivarify(net, symmetry, "fibre", layers="each")
    maps = [net[1](net[0](x)) for _ in range(6)]  # every point alike, so that t(h) is the same for all h
    for layer in (net[2][0], net[3]):
        kernels = split(layer, 6)
        after = []
        for g in range(6):
            back = inverse(permuted, x, 6, g)
            after.append(sum(maps[h] @ kernels[product(permuted, x, back, h)].T for h in range(6)) + layer.bias)
        maps = [t.tanh() for t in after] if layer is net[2][0] else after
    for g in range(6):
        assert close(permuted(lifted(x)[:, g], g), maps[g])
    C4 = pe.CyclicGroup(4)
    shifts = pe.Symmetry(C4, {}, inputs=pe.sequence(C4, (1, 8)))
    circular = functools.partial(nn.Conv1d, kernel_size=3, padding=1, padding_mode="circular")
    wide = nn.Sequential(circular(1, 3), nn.ReLU(), circular(12, 2))
    moved, x = pe.equivarify(wide, shifts, "fibre", layers="each"), torch.randn(2, 1, 8)
    hidden = wide[1](wide[0](x))  # commutes with shifts: all t(h) are the same
    together = sum(F.conv1d(F.pad(hidden, (1, 1), "circular"), kernel) for kernel in split(wide[2], 4))
    assert close(moved(x)[:, 0], together + wide[2].bias[:, None])
    assert close(moved(x)[:, 1].roll(2, -1), moved(x)[:, 0])


@each_action
def test_layers_of_a_plain_network_are_the_global_lift(action):
    for network in (dense, convolutional):
        symmetry, _, net, x = made(action, network)
        for readout in ("fibre", "mean", "joint"):
            each = pe.equivarify(net, symmetry, readout, layers="each")
            assert close(each(x), pe.equivarify(net, symmetry, readout)(x))


def test_a_layer_that_stands_twice_runs_twice():
    symmetry, _, _, x = made(ACTIONS["C4"])
    twice = nn.Linear(72, 72)
    net = nn.Sequential(nn.Flatten(), twice, twice)
    assert close(pe.equivarify(net, symmetry, layers="each")(x), pe.equivarify(net, symmetry)(x))


class Shortcut(nn.Sequential):
    """A Sequential that does more than run its layers in turn."""

    def forward(self, x):
        return x + super().forward(x)


def test_a_sequential_with_a_forward_of_its_own_is_one_layer():
    symmetry, _, _, x = made(ACTIONS["C4"])
    net = nn.Sequential(nn.Flatten(), nn.Linear(72, 5), Shortcut(nn.Linear(5, 5), nn.Tanh()), nn.Linear(5, 3))
    assert close(pe.equivarify(net, symmetry, layers="each")(x), pe.equivarify(net, symmetry)(x))
    wide = with_fibre_inputs(net, symmetry.group)
    assert wide[2][0].in_features == 5 and wide[3].in_features == 20
    lifted = pe.equivarify(wide, symmetry, "fibre", layers="each")
    assert all(close(lifted(turned(x, h)), lifted(x).roll(h, 1)) for h in range(4))


HOOKS = {
    "forward_hook": lambda module, args, out: out**2,
    "forward_pre_hook": lambda module, args: (args[0] ** 2,),
    "full_backward_hook": lambda module, before, after: (2 * before[0],),
    "full_backward_pre_hook": lambda module, after: (2 * after[0],),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("place", ["inside", "root"])
@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_of_a_sequential_run_or_are_refused(kind, place, when):
    symmetry, _, _, x = made(ACTIONS["C4"])
    x.requires_grad_()
    net = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(72, 5), nn.Tanh()), nn.Linear(5, 3))
    lifted = pe.equivarify(net, symmetry, layers="each") if when == "after" else None
    hooked = net if place == "root" else net[1]
    getattr(hooked, f"register_{kind}")(HOOKS[kind])
    if place == "root":
        with pytest.raises(pe.OptionError, match="or hooks of its own.* got Sequential"):
            (lifted or pe.equivarify(net, symmetry, layers="each"))(x)
        return
    lifted = lifted or pe.equivarify(net, symmetry, layers="each")
    outputs = [lift(x) for lift in (lifted, pe.equivarify(net, symmetry))]
    assert close(*outputs) and close(*(torch.autograd.grad(out.sum(), x)[0] for out in outputs))


def test_a_forward_put_on_a_sequential_is_its_own():
    symmetry, _, _, x = made(ACTIONS["C4"])
    net = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(72, 5)))
    net[1].forward = lambda x: x[:, :3].sin()
    assert close(pe.equivarify(net, symmetry, layers="each")(x), pe.equivarify(net, symmetry)(x))


def test_layers_that_are_replaced_are_aligned_anew():
    """What was found for the layers of an earlier call is not used for others."""
    symmetry, _, _, x = made(ACTIONS["C4"])
    wide = nn.Sequential(nn.Identity(), nn.ReLU(), nn.Conv2d(8, 3, 3))
    lifted = pe.equivarify(wide, symmetry, "fibre", layers="each")
    before = lifted(x.relu())
    wide[0], wide[1] = nn.Flatten(), nn.Unflatten(1, (2, 6, 6))  # the same numbers, at places that are not known
    afresh = pe.equivarify(wide, symmetry, "fibre", layers="each")(x.relu())
    assert not close(afresh, before, 1e-3)
    assert close(lifted(x.relu()), afresh) and close(copy.deepcopy(lifted)(x.relu()), afresh)


def test_widened_layers_that_stand_twice_still_do():
    twice = nn.Linear(5, 5)
    for net in (
        nn.Sequential(nn.Linear(72, 5), nn.Tanh(), twice, nn.Tanh(), twice),
        nn.Sequential(nn.Linear(72, 5), *[nn.Sequential(nn.Tanh(), twice)] * 2),
    ):
        wide = with_fibre_inputs(net, pe.CyclicGroup(4))
        assert [tuple(p.shape) for p in wide.parameters()] == [(5, 72), (5,), (5, 20), (5,)]
    assert wide[1][1] is wide[2][1]
    flat = nn.Sequential(nn.Flatten(), *wide)
    symmetry, _, _, x = made(ACTIONS["C4"])
    lifted = pe.equivarify(flat, symmetry, layers="each")
    assert all(close(lifted(turned(x, h)), lifted(x)) for h in range(4))


def test_widened_inputs():
    group = pe.DihedralGroup(4)
    plain = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.Sequential(nn.ReLU(), nn.Conv2d(6, 4, 3, bias=False)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    wide = with_fibre_inputs(plain, group)
    shapes = {name: tuple(p.shape) for name, p in wide.named_parameters()}
    assert shapes["2.1.weight"] == (4, 48, 3, 3) and shapes["5.weight"] == (3, 32) and shapes["5.bias"] == (3,)
    assert torch.equal(wide[0].weight, plain[0].weight) and wide[0].weight is not plain[0].weight
    assert 0.5 < wide[2][1].weight.std() / plain[2][1].weight.std() * 8**0.5 < 2
    lifted = pe.equivarify(wide, pe.Symmetry(group, {}, inputs=pe.image(group, (1, 6, 6))), layers="each")
    assert lifted.symmetry.check(lifted) < EXACT


# A view of the network


def test_it_has_the_network_s_parameters_under_their_names():
    symmetry, move, net, x = made(ACTIONS["C4"], attention)
    lifted = pe.equivarify(net, symmetry)
    assert dict(lifted.named_parameters()).keys() == dict(net.named_parameters()).keys()
    assert all(a is b for a, b in zip(lifted.parameters(), net.parameters(), strict=True))
    other = Attention(36, 2)
    lifted.load_state_dict(other.state_dict())
    other.load_state_dict(lifted.state_dict())
    assert close(net(x), other.eval()(x))
    before = lifted(x)
    twin, thawed = copy.deepcopy(lifted), pickle.loads(pickle.dumps(lifted))
    with torch.no_grad():
        net.head.bias += 1.0
    assert close(lifted(x), before + 1.0)
    assert close(twin(x), before) and close(thawed(x), before)
    with torch.no_grad():
        twin.head.bias += 2.0
    assert close(twin(x), before + 2.0)
    assert lifted.float()(x.float()).dtype == torch.float32 and net.head.weight.dtype == torch.float32


def test_buffers_are_the_network_s_and_asking_for_the_symmetry_leaves_them():
    symmetry, _, net, x = made(ACTIONS["C4"], lambda rep: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(72)))
    net.register_buffer("kept", torch.ones(2))
    net.register_buffer("passing", torch.ones(2), persistent=False)
    lifted = pe.equivarify(net, symmetry).train()
    assert lifted.state_dict().keys() == net.state_dict().keys()
    before = {name: value.clone() for name, value in lifted.named_buffers()}
    assert lifted.symmetry.sites.keys() == {"1.weight", "1.bias"} and net[1].training
    assert before.keys() >= {"kept", "passing", "1.running_mean"}
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    lifted(x)
    assert not torch.equal(net[1].running_mean, before["1.running_mean"])


class Frozen(nn.Sequential):
    """Layers of which the last stays in evaluation mode, and a number in the state dict that is no tensor."""

    steps = 0

    def train(self, mode=True):
        super().train(mode)
        self[-1].train(False)
        return self

    def eval(self):
        self.asked = True
        return super().eval()

    def get_extra_state(self):
        return {"steps": self.steps}

    def set_extra_state(self, state):
        self.steps = state["steps"]


def test_a_train_of_the_network_s_own_is_called():
    symmetry, _, net, x = made(ACTIONS["C4"], lambda rep: Frozen(nn.Flatten(), nn.Dropout(0.5), nn.BatchNorm1d(72)))
    lifted = pe.equivarify(net, symmetry)
    assert lifted.train() is lifted and lifted.training and net[1].training and not net[2].training
    before = net[2].running_mean.clone()
    lifted(x)
    assert torch.equal(net[2].running_mean, before)
    net.asked = False
    assert lifted.eval() is lifted and net.asked and not net[1].training


def test_extra_state_is_the_network_s():
    symmetry, _, net, _ = made(ACTIONS["C4"], lambda rep: Frozen(nn.Flatten(), nn.Linear(72, 3)))
    net.steps = 7
    lifted = pe.equivarify(net, symmetry)
    inside = nn.Sequential(lifted)
    assert lifted.state_dict().keys() == net.state_dict().keys() and lifted.state_dict()["_extra_state"] == {"steps": 7}
    assert inside.state_dict()["0._extra_state"] == {"steps": 7}
    net.steps = 0
    lifted.load_state_dict({**lifted.state_dict(), "_extra_state": {"steps": 9}})
    assert net.steps == 9
    assert "_extra_state" not in pe.equivarify(nn.Linear(6, 6), symmetry).state_dict()


def test_training_mode_is_the_network_s():
    symmetry, _, net, _ = made(ACTIONS["C4"], lambda rep: nn.Dropout(0.5))
    lifted = pe.equivarify(net, symmetry)
    assert not lifted.training and not net.training
    lifted.train()
    assert net.training
    copy.deepcopy(lifted).eval()
    assert net.training and lifted.training
    lifted.training = False
    assert not net.training
    assert not pe.equivarify(lambda x: x, symmetry).eval().training


def test_a_trained_network_is_lifted_as_it_is():
    """Trained on upright images; ``p`` recovers it, and the lift is invariant to rounding."""
    x = torch.randn(40, 2, 6, 6)
    y = (x[:, 0, 0].sum(-1) > 0).long()
    symmetry, _, net, _ = made(ACTIONS["C4"])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert (net(x).argmax(-1) == y).double().mean() > 0.95
    lifted = pe.equivarify(net, symmetry)
    assert close(pe.equivarify(net, symmetry, "projection")(x), net(x))
    assert all(close(lifted(turned(x, g)), lifted(x)) for g in range(4))


# In Pyro


class Counting(nn.Module):
    """A linear layer that keeps a list of the weights and the number of inputs it was called with."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 72))
        self.calls = []

    def forward(self, x):
        self.calls.append((self.weight.detach().clone(), len(x)))
        return x.flatten(1) @ self.weight.mT


def test_one_draw_of_the_weights_per_lift():
    symmetry, _ = ACTIONS["D4"]()
    model = pe.BayesianNetwork(pe.equivarify(Counting(), symmetry))
    calls = model.net._net.calls
    trace = poutine.trace(model).get_trace(torch.randn(5, 2, 6, 6), torch.zeros(5).long())
    assert [name for name, site in trace.nodes.items() if site["type"] == "sample"] == ["weight", "data", "y"]
    (weight, count), *more = calls
    assert not more and count == 8 * 5 and torch.equal(weight, trace.nodes["weight"]["value"])


def posterior(symmetry, readout="mean", net=None, **options):
    """A small network's model and guide, and the model of its lift."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(72, 6), nn.ReLU(), nn.Linear(6, 3)) if net is None else net
    model = pe.BayesianNetwork(net)
    guide = pe.AutoMeanFieldNormal(model, init_scale=0.5)
    guide.initialize(torch.zeros(2, 2, 6, 6), torch.zeros(2).long())
    return model, guide, pe.BayesianNetwork(pe.equivarify(net, symmetry, readout), **options)


def test_a_small_posterior_is_lifted_as_it_is():
    symmetry, _ = ACTIONS["D4"]()
    model, guide, lifted = posterior(symmetry)
    x = torch.randn(5, 2, 6, 6)
    probs = pe.orbit_predict(lifted, guide, symmetry, x, draws=4)
    assert close(probs, probs[:, :1].expand_as(probs), PROBS)
    assert float(pe.metrics.orbit_same_prediction(probs.mean(0))) == 1.0
    assert not close(*(pe.orbit_predict(model, guide, symmetry, x, draws=4)[:, g] for g in (0, 1)), 1e-3)
    assert pe.lifted_check(lifted, guide, lifted.net.symmetry, x) < 1e-12
    assert pe.certificate(guide, lifted.net.symmetry, x[:1]).defect == 0.0


def test_each_draw_is_the_lift_of_the_network_at_the_draw():
    symmetry, _ = ACTIONS["C4"]()
    model, guide, lifted = posterior(symmetry, "fibre", likelihood="normal")
    x = torch.randn(5, 2, 6, 6)
    draw = guide(x)
    small = poutine.condition(model, draw)
    big = poutine.condition(lifted, draw)(x)
    assert close(big, torch.stack([small(turned(x, -g % 4)) for g in range(4)], 1))


def test_vectorised_particles_and_parallel_prediction():
    symmetry, _ = ACTIONS["C4"]()
    _, guide, lifted = posterior(symmetry)
    x, y = torch.randn(5, 2, 6, 6), torch.zeros(5).long()
    elbo = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    assert elbo.loss(lifted, guide, x, y) > 0
    drawn = Predictive(lifted, guide=guide, num_samples=3, parallel=True, return_sites=("_RETURN",))(x)["_RETURN"]
    assert drawn.shape == (3, 5, 3) and not close(drawn[0], drawn[1], 1e-3)


def test_augmentation_of_a_lift_changes_nothing():
    """Every term of the augmented likelihood is equal, with pose labels that move along."""
    symmetry, _ = ACTIONS["D4"]()
    for readout, count in (("mean", 3), ("joint", 24)):
        _, guide, lifted = posterior(symmetry, readout)
        x, y = torch.randn(5, 2, 6, 6), torch.randint(count, (5,))
        draw = guide(x)
        for orbit in ("full", "random"):
            moved = pe.handlers.augment(lifted, lifted.net.symmetry, orbit=orbit)
            losses = [poutine.trace(poutine.condition(m, draw)).get_trace(x, y).log_prob_sum() for m in (lifted, moved)]
            assert close(*losses)


@pytest.mark.parametrize("channels", [1, 2])
def test_copies_keep_the_layout_of_images(channels):
    symmetry = pe.Symmetry(C4, {}, inputs=pe.image(C4, (channels, 6, 6)))
    strides = []
    net = nn.Sequential(nn.Conv2d(channels, 3, 3), nn.Flatten(), nn.Linear(48, 3))
    net[0].register_forward_pre_hook(lambda module, args: strides.append(args[0].stride(1)))
    lifted = pe.equivarify(net, symmetry)
    x = torch.randn(4, channels, 6, 6)
    outputs = [pe.BayesianNetwork(lifted, prior=1e-9, channels_last=last) for last in (False, True)]
    draw = poutine.trace(outputs[0]).get_trace(x)
    first, second = (poutine.replay(model, draw)(x) for model in outputs)
    assert close(first, second) and strides[0] == 36 and strides[-1] == 1


def test_guides_take_the_symmetry_of_a_lift():
    symmetry, _ = ACTIONS["C4"]()
    _, _, lifted = posterior(symmetry, size=20)
    x, y = torch.randn(20, 2, 6, 6), torch.arange(20) % 3
    guide = pe.AutoSymmetricNormal(lifted, lifted.net.symmetry)
    result = pe.fit(lifted, guide, (x, y), epochs=2, batch_size=10, progress=False)
    assert len(result.history["loss"]) == 2 and guide.always_invariant
    assert lifted.net.symmetry["1.weight"] == pe.trivial(symmetry.group, (6, 72))


@pytest.mark.parametrize("group", [pe.CyclicGroup(4), pe.DihedralGroup(4)], ids=str)
def test_the_diagonal_expansion_is_the_lift(group):
    """Draw by draw; the lift needs no layer that keeps channels apart."""
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3), nn.ReLU(),
                        nn.Flatten(), nn.Linear(4, 3))  # fmt: skip
    small = pe.network_symmetry(net, group, (2, 6, 6), hidden="trivial")
    model = pe.BayesianNetwork(net)
    guide = pe.AutoMeanFieldNormal(model, init_scale=0.5)
    big_model, big_guide, _ = pe.expand(model, guide, small, arrangement="diagonal")
    lifted = pe.BayesianNetwork(pe.equivarify(net, small))
    x = torch.randn(5, 2, 6, 6)
    for _ in range(3):
        draw = big_guide(x)
        expanded = poutine.condition(big_model, draw)(x)
        at_draw = {name.removesuffix("_base"): value for name, value in draw.items()}
        assert close(expanded, poutine.condition(lifted, at_draw)(x))


# Class and pose


def test_joint_labels_are_read_back():
    labels, poses = torch.randint(10, (50,)), torch.randint(8, (50,))
    joint = pe.joint_labels(labels, poses, classes=10)
    assert torch.equal(joint % 10, labels) and torch.equal(joint // 10, poses)
    classes, pose = pe.class_and_pose(F.one_hot(joint, 80).double(), pe.DihedralGroup(4))
    assert torch.equal(classes.argmax(-1), labels) and torch.equal(pose.argmax(-1), poses)


@pytest.mark.parametrize("group", [pe.CyclicGroup(4), pe.DihedralGroup(4)], ids=str)
def test_joint_labels_move_as_the_outputs(group):
    symmetry, _ = images(group)
    lifted = pe.equivarify(nn.Sequential(nn.Flatten(), nn.Linear(72, 3)), symmetry, "joint")
    labels, poses = torch.randint(3, (20,)), group.sample((20,))
    joint = pe.joint_labels(labels, poses, classes=3)
    for h in range(len(group)):
        after = [product(turned, torch.zeros(6, 6), h, int(g)) for g in poses]
        expected = pe.joint_labels(labels, torch.tensor(after), classes=3)
        assert torch.equal(lifted.symmetry.act_outputs(h, joint), expected)


@pytest.mark.parametrize("group", [pe.CyclicGroup(4), pe.DihedralGroup(4)], ids=str)
def test_class_and_pose_of_templates_are_recovered(group):
    """``F(x)_k = ⟨template_k, x⟩``: by Cauchy and Schwarz its largest joint logit is at the template and the pose."""
    symmetry, _ = images(group)
    templates = F.normalize(torch.randn(5, 72), dim=-1)
    lifted = pe.equivarify(lambda x: 50 * x.flatten(1) @ templates.mT, symmetry, "joint")
    labels = torch.arange(5).repeat(len(group))
    poses = group.elements.repeat_interleave(5)
    x, joint = pe.joint_data(symmetry, templates.reshape(5, 2, 6, 6)[labels], labels, 5, poses)
    pairs = zip(labels.tolist(), poses.tolist(), strict=True)
    assert torch.equal(x, torch.stack([turned(templates[k].reshape(2, 6, 6), g) for k, g in pairs]))
    assert torch.equal(lifted(x).argmax(-1), joint)
    classes, pose = pe.class_and_pose(lifted(x).softmax(-1), group)
    assert torch.equal(classes.argmax(-1), labels) and torch.equal(pose.argmax(-1), poses)
    for k in range(5):  # the class does not depend on the pose
        assert close(classes[labels == k], classes[k].expand(len(group), -1))


def test_labels_of_nothing_and_one_pose_for_all():
    assert pe.joint_labels(torch.zeros(0).long(), torch.zeros(0).long(), 3).shape == (0,)
    assert pe.joint_labels(torch.tensor([0, 2]), 2, 3).tolist() == [6, 8]
    assert pe.joint_labels(torch.tensor([0, 2]), torch.tensor(1), 3).tolist() == [3, 5]
    classes, poses = pe.class_and_pose(torch.zeros(0, 12), pe.CyclicGroup(4))
    assert classes.shape == (0, 3) and poses.shape == (0, 4)
    half = torch.randn(50, 40).half().softmax(-1)
    assert pe.class_and_pose(half, pe.CyclicGroup(4))[0].shape == (50, 10)


def test_joint_data_draws_uniform_poses():
    symmetry, _ = ACTIONS["C4"]()
    x, joint = pe.joint_data(symmetry, torch.randn(4000, 2, 6, 6), torch.zeros(4000).long(), 3)
    counts = (joint // 3).bincount(minlength=4)
    assert ((counts - 1000).abs() < 5 * (4000 * 0.25 * 0.75) ** 0.5).all()


@pytest.mark.slow
def test_class_and_pose_of_digits_are_recovered():
    data = pe.data.load("digits")
    train, _, test = pe.data.split(data, train=1000, validation=200, test=300).parts
    symmetry = pe.Symmetry(pe.CyclicGroup(4), {}, inputs=pe.image(pe.CyclicGroup(4), (1, 8, 8)))
    torch.set_default_dtype(torch.float32)
    net = pe.experiments.convolutional_network((1, 8, 8), classes=10, width=16)
    model = pe.BayesianNetwork(pe.equivarify(net, symmetry, "joint"), prior=pe.FanIn(gain=3.0), size=1000)
    guide = pe.AutoMeanFieldNormal(model, init_scale=pe.FractionOfPrior(0.1))
    pe.fit(model, guide, train, epochs=40, batch_size=100, kl_weight=0.25, progress=False)  # upright: pose 0
    x, joint = pe.joint_data(symmetry, *test, 10)
    classes, poses = pe.class_and_pose(pe.predict(model, guide, x, draws=20).mean(0), symmetry.group)
    assert pe.metrics.accuracy(classes, joint % 10) > 0.85
    assert pe.metrics.accuracy(poses, joint // 10) > 0.8


# Noise, batches, approximate actions


def test_dropout_masks_are_each_copy_s_own():
    symmetry, _, _, x = made(ACTIONS["C4"])
    lifted = pe.equivarify(nn.Sequential(nn.Flatten(), nn.Dropout(0.5)), symmetry, "fibre").train()
    seen = lifted(torch.ones(4, 2, 6, 6))
    assert not torch.equal(seen[:, 0], seen[:, 1])
    many = torch.stack([lifted(x).mean(1) for _ in range(2000)])
    error = many.std(0) / 2000**0.5
    still = lifted.eval()(x).mean(1)
    assert ((many.mean(0) - still).abs() <= 6 * error + 1e-12).all()
    assert all(close(lifted(turned(x, g)).mean(1), still) for g in range(4))


def test_batch_statistics_are_those_of_all_copies():
    symmetry, _, _, x = made(ACTIONS["D4"])
    net = nn.Sequential(nn.Flatten(), nn.Linear(72, 3), nn.BatchNorm1d(3))
    lifted = pe.equivarify(net, symmetry).train()
    moved = torch.stack([turned(one, g) for one, g in zip(x, (0, 3, 5, 6), strict=True)])
    assert close(lifted(moved), lifted(x))  # each input moved by an element of its own
    assert not close(lifted(x[:2]), lifted(x)[:2], 1e-3)  # but the batch matters
    projected = pe.equivarify(net, symmetry, "projection")
    assert not close(projected(x), net(x), 1e-3)
    assert close(projected.eval()(x), net(x))


def bumps(n=16):
    """Smooth images off the centre, each of three ellipses."""
    places = (2 * torch.arange(n) + 1 - n) / n
    centres = 0.35 * torch.randn(6, 3, 2)
    gaps = [(places - centres[..., i, None]) ** 2 for i in (0, 1)]
    return torch.exp(-(gaps[0][..., None, :] + gaps[1][..., :, None]) / (2 * 0.25**2)).sum(1, keepdim=True)


def test_eighth_turns_are_approximate_and_quarter_turns_exact():
    C8, x = pe.CyclicGroup(8), bumps()
    turns = pe.image(C8, (1, 16, 16), interpolation="bilinear")
    symmetry = pe.Symmetry(C8, {}, inputs=turns)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 196, 3))
    lifted = pe.equivarify(net, symmetry)
    assert not lifted.is_exact and "approximate" in repr(lifted)
    assert "approximate" not in repr(pe.equivarify(net, images(pe.CyclicGroup(4))[0]))
    size = lifted(x).std(0).mean().detach()
    gaps = {g: float((lifted(turns.act(g, x)) - lifted(x)).abs().max().detach() / size) for g in range(8)}
    plain = float((net(turns.act(1, x)) - net(x)).abs().max().detach() / size)
    assert max(gaps[g] for g in (0, 2, 4, 6)) < EXACT
    assert all(EXACT < gaps[g] < plain / 20 for g in (1, 3, 5, 7)), (gaps, plain)
    for wanted in (lambda: lifted.symmetry, lambda: symmetry.check(lifted)):
        with pytest.raises(pe.SymmetryError, match="interpolates"):
            wanted()


def test_labels_of_an_approximate_lift_move_with_its_outputs():
    C8, x = pe.CyclicGroup(8), bumps()
    symmetry = pe.Symmetry(C8, {}, inputs=pe.image(C8, (1, 16, 16), interpolation="bilinear"))
    net = nn.Sequential(nn.Flatten(), nn.Linear(256, 3))
    joint = pe.equivarify(net, symmetry, "joint")
    assert joint.outputs == pe.regular(C8, 3)
    assert pe.equivarify(net, symmetry, "fibre").outputs == pe.regular(C8) * pe.trivial(C8, 3)
    assert pe.equivarify(net, symmetry).outputs is None
    with pytest.raises(pe.SymmetryError, match=r"pe.Symmetry\(Cyc.*, \{\}, inputs=..., outputs=lifted.outputs\)"):
        _ = joint.symmetry
    moving = pe.Symmetry(C8, {}, inputs=symmetry.inputs, outputs=joint.outputs)
    labels, poses = torch.arange(6) % 3, torch.arange(6)
    before = pe.joint_labels(labels, poses, 3)
    for h in range(8):
        assert torch.equal(moving.act_outputs(h, before), pe.joint_labels(labels, (poses + h) % 8, 3))
    assert close(joint(moving.act_inputs(2, x)), moving.act_outputs(2, joint(x)))


def test_layers_of_an_approximate_lift():
    C8, x = pe.CyclicGroup(8), bumps()
    turns = pe.image(C8, (1, 16, 16), interpolation="bilinear")
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(16, 3, 3, padding=1),
                        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 3))  # fmt: skip
    lifted = pe.equivarify(net, pe.Symmetry(C8, {}, inputs=turns), layers="each")
    assert close(lifted(turns.act(2, x)), lifted(x))
    assert not close(lifted(turns.act(1, x)), lifted(x))
    smaller = pe.image(C8, (2, 8, 8), interpolation="bilinear")
    first = pe.equivarify(net[:3], pe.Symmetry(C8, {}, inputs=turns), "fibre", layers="each")(x)
    turned_back = torch.cat([smaller.act(g, first[:, g]) for g in range(8)], 1)
    second = pe.equivarify(net[:4], pe.Symmetry(C8, {}, inputs=turns), "projection", layers="each")
    assert close(second(x), net[3](turned_back))


# Options and errors


def test_a_repr_names_the_options():
    symmetry, _, net, _ = made(ACTIONS["C4"])
    assert "CyclicGroup(4), readout='joint', layers='each', align=True" in repr(
        pe.equivarify(net, symmetry, "joint", layers="each")
    )


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.symmetry = nn.Linear(72, 3)


def circle():
    group = pe.SpecialOrthogonal(2)
    return pe.Symmetry(group, {}, inputs=pe.image(group, (2, 6, 6), interpolation="bilinear"))


def expanded(net):
    model = pe.BayesianNetwork(net)
    guide = pe.AutoMeanFieldNormal(model)
    guide.initialize(torch.zeros(2, 2, 6, 6), torch.zeros(2).long())
    return pe.expand(model, guide, net.symmetry)


def tied():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    net[2].weight = net[1].weight
    return net


def with_outputs(outputs):
    return pe.Symmetry(pe.CyclicGroup(4), {}, inputs=pe.image(pe.CyclicGroup(4), (2, 6, 6)), outputs=outputs)


C4 = pe.CyclicGroup(4)
ERRORS = {
    "readout": (lambda n, s: pe.equivarify(n, s, "sum"), pe.OptionError, "readout to be one of 'mean'"),
    "layers": (lambda n, s: pe.equivarify(n, s, layers="all"), pe.OptionError, "layers to be one of"),
    "no symmetry": (lambda n, s: pe.equivarify(n, C4), pe.SymmetryError, "pe.Symmetry; got Cyclic"),
    "no inputs": (lambda n, s: pe.equivarify(n, pe.Symmetry(C4, {})), pe.SymmetryError, "inputs="),
    "infinite": (lambda n, s: pe.equivarify(n, circle()), pe.SymmetryError, "Expected a finite group"),
    "no function": (lambda n, s: pe.equivarify(3, s), pe.OptionError, "a torch module or a function; got 3"),
    "a class": (lambda n, s: pe.equivarify(nn.Linear, s), pe.OptionError, "got the class Linear"),
    "a Pyro model": (lambda n, s: pe.equivarify(pe.BayesianNetwork(n), s), pe.OptionError, "goes into"),
    "no Sequential": (lambda n, s: pe.equivarify(Counting(), s, layers="each"), pe.OptionError, "got Counting"),
    "joint, outputs move": (
        lambda n, s: pe.equivarify(n, with_outputs(pe.regular(C4)), "joint"), pe.OptionError, "outputs=None"),
    "max of vectors": (
        lambda n, s: pe.equivarify(n, with_outputs(pe.vector(C4)), "max"), pe.OptionError, "permuted for"),
    "joint maps": (
        lambda n, s: pe.equivarify(nn.Conv2d(2, 3, 1), s, "joint")(torch.zeros(1, 2, 6, 6)), pe.OptionError, "logits"),
    "outputs' shape": (
        lambda n, s: pe.equivarify(n, with_outputs(pe.regular(C4)))(torch.zeros(1, 2, 6, 6)), pe.SymmetryError,
        r"ends in the shape \(4,\)"),
    "inputs' shape": (
        lambda n, s: pe.equivarify(n, s)(torch.zeros(1, 2, 5, 5)), pe.SymmetryError, r"ends in the shape \(2, 6, 6\)"),
    "no batch": (
        lambda n, s: pe.equivarify(n, s)(torch.zeros(2, 6, 6)), pe.SymmetryError, r"inputs \(N, \*\(2, 6, 6\)\)"),
    "a tuple": (
        lambda n, s: pe.equivarify(lambda x: (x, x), s)(torch.zeros(1, 2, 6, 6)), pe.DataError, "got a tuple"),
    "fewer rows": (
        lambda n, s: pe.equivarify(lambda x: x.mean(0), s)(torch.zeros(1, 2, 6, 6)), pe.DataError, "each of its 4"),
    "a function's name": (
        lambda n, s: pe.equivarify(torch.mean, s)(torch.zeros(1, 2, 6, 6)), pe.DataError, "^Expected mean to return"),
    "two inputs": (
        lambda n, s: pe.equivarify(n, s)(torch.zeros(1, 2, 6, 6), torch.zeros(1)), pe.DataError, "Expected one tensor"),
    "another input by name": (
        lambda n, s: pe.equivarify(n, s)(torch.zeros(1, 2, 6, 6), mask=None), pe.DataError, "Expected one tensor"),
    "a list": (lambda n, s: pe.equivarify(n, s)([1.0]), pe.DataError, "Expected one tensor"),
    "read": (
        lambda n, s: pe.network_symmetry(pe.equivarify(n, s), C4, (2, 6, 6)), pe.LayerError, "is lifted.symmetry"),
    "read, inside": (
        lambda n, s: pe.network_symmetry(nn.Sequential(pe.equivarify(n, s), nn.Tanh()), C4, (2, 6, 6)),
        pe.LayerError, "is lifted.symmetry"),
    "expanded": (lambda n, s: expanded(pe.equivarify(n, s)), pe.LayerError, "is lifted.symmetry"),
    "a forward of its own": (
        lambda n, s: pe.equivarify(Shortcut(nn.Linear(6, 6)), s, layers="each"), pe.OptionError, "got Shortcut"),
    "widened, a forward of its own": (
        lambda n, s: with_fibre_inputs(Shortcut(nn.Linear(6, 6)), C4), pe.OptionError, "got Shortcut"),
    "a name that is taken": (lambda n, s: pe.equivarify(Named(), s), pe.OptionError, "torch.nn.Sequential"),
    "channels": (
        lambda n, s: pe.equivarify(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(5, 3, 3)), s, layers="each")(
            torch.zeros(1, 2, 6, 6)), pe.LayerError, "layer 1 to take 3 channels .* or 12"),
    "symmetry of p": (
        lambda n, s: pe.equivarify(n, s, "projection").symmetry, pe.SymmetryError, "reads out the projection"),
    "widened, no Sequential": (lambda n, s: with_fibre_inputs(Counting(), C4), pe.OptionError, "got Counting"),
    "widened, unknown": (
        lambda n, s: with_fibre_inputs(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ConvTranspose2d(3, 3, 3)), C4),
        pe.LayerError, "got ConvTranspose2d"),
    "widened, in groups": (
        lambda n, s: with_fibre_inputs(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=2)), C4),
        pe.LayerError, "groups 1 .* groups=2"),
    "widened, the first again": (
        lambda n, s: with_fibre_inputs(nn.Sequential(*[nn.Linear(3, 3)] * 2), C4), pe.LayerError, "Untie them"),
    "widened, the first again inside": (
        lambda n, s: with_fibre_inputs(nn.Sequential(*[nn.Sequential(nn.Linear(3, 3))] * 2), C4),
        pe.LayerError, "Untie them"),
    "widened, tied": (lambda n, s: with_fibre_inputs(tied(), C4), pe.LayerError, "Untie them"),
    "labels": (lambda n, s: pe.joint_labels(torch.tensor([3]), 0, 3), pe.DataError, "between 0 and 2"),
    "labels below": (lambda n, s: pe.joint_labels(torch.tensor([-1]), 0, 3), pe.DataError, "between 0 and 2"),
    "labels, no integers": (lambda n, s: pe.joint_labels(torch.tensor([True]), 0, 3), pe.DataError, "torch.bool"),
    "poses below": (
        lambda n, s: pe.joint_labels(torch.tensor([1]), torch.tensor([-1]), 3), pe.DataError, "integers from 0 on"),
    "poses, no integers": (
        lambda n, s: pe.joint_labels(torch.tensor([1]), torch.tensor([0.5]), 3), pe.DataError, "got torch.float"),
    "poses, another shape": (
        lambda n, s: pe.joint_labels(torch.tensor([1, 2]), torch.tensor([[0], [1]]), 3), pe.DataError,
        r"labels \(2,\), or one for all; got \(2, 1\)"),
    "poses": (
        lambda n, s: pe.joint_data(s, torch.zeros(1, 2, 6, 6), torch.tensor([0]), 3, torch.tensor([4])),
        pe.SymmetryError, "between 0 and 3"),
    "probabilities": (lambda n, s: pe.class_and_pose(torch.zeros(2, 10), C4), pe.DataError, "4·K"),
    "logits": (lambda n, s: pe.class_and_pose(torch.randn(2, 12), C4), pe.DataError, "softmax of the logits"),
    "log-probabilities": (
        lambda n, s: pe.class_and_pose(torch.randn(2, 12).log_softmax(-1), C4), pe.DataError, "softmax of the logits"),
    "signed rows of sum one": (
        lambda n, s: pe.class_and_pose(torch.tensor([2.0, -1.0, 0.0, 0.0]), C4), pe.DataError, "softmax of the logits"),
    "no numbers": (
        lambda n, s: pe.class_and_pose(torch.full((2, 4), torch.nan), C4), pe.DataError, "softmax of the logits"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_say_what_is_wrong(call, error, message):
    symmetry, _, net, _ = made(ACTIONS["C4"])
    with pytest.raises(error, match=message):
        call(net, symmetry)
