"""One g for everything; the check passes on compatible networks and names the first layer that is not."""

import copy
import itertools
import pickle

import pytest
import torch
from catalogue import NETWORKS, Case, small_conv
from torch import nn
from torch.testing import assert_close

import pyro_equivariance as pe
from pyro_equivariance.errors import LayerError, SymmetryError

C1, C4, D4 = pe.CyclicGroup(1), pe.CyclicGroup(4), pe.DihedralGroup(4)


def two_sites(**options):
    return pe.Symmetry(C4, {"kernel": pe.image(C4, (3, 3)), "bias": pe.regular(C4)}, **options)


class TestAction:
    def test_moves_all_sites_by_one_g(self):
        sym = two_sites()
        values = {"bias": torch.randn(4), "kernel": torch.randn(3, 3)}
        for g in range(4):
            moved = sym.act(g, values)
            assert list(moved) == ["bias", "kernel"]
            assert torch.equal(moved["kernel"], values["kernel"].rot90(g))
            assert torch.equal(moved["bias"], values["bias"].roll(g))

    def test_broadcasts_over_leading_axes(self):
        values = {"bias": torch.randn(4), "kernel": torch.randn(2, 1, 3, 3)}
        moved = two_sites().act(torch.arange(4), values)
        assert moved["bias"].shape == (4, 4) and moved["kernel"].shape == (2, 4, 3, 3)
        assert torch.equal(moved["kernel"][1, 3], values["kernel"][1, 0].rot90(3))

    def test_only_the_given_sites(self):
        assert list(two_sites().act(1, {"bias": torch.zeros(4)})) == ["bias"]

    def test_inputs(self):
        x = torch.randn(5, 1, 4, 4)
        assert torch.equal(two_sites(inputs=pe.image(C4, (1, 4, 4))).act_inputs(3, x), x.rot90(3, (-2, -1)))

    def test_missing_site(self):
        with pytest.raises(SymmetryError, match=r"site 'scale'; this symmetry has 'kernel', 'bias'.*pe\.trivial"):
            two_sites().act(1, {"scale": torch.zeros(1)})
        with pytest.raises(SymmetryError, match="site 'scale'"):
            two_sites()["scale"]

    @pytest.mark.parametrize("where", ["sites", "inputs", "outputs", "features"])
    def test_wrong_group(self, where):
        wrong = pe.regular(D4)
        arguments = {"sites": {}} | {where: {"there": wrong} if where in ("sites", "features") else wrong}
        name = "there" if where in ("sites", "features") else where
        with pytest.raises(SymmetryError, match=rf"representation of CyclicGroup\(4\) for '{name}'; got regular\(8\)"):
            pe.Symmetry(C4, **arguments)

    def test_not_a_representation(self):
        with pytest.raises(SymmetryError, match="for 'w'; got 3"):
            pe.Symmetry(C4, {"w": 3})

    def test_inputs_are_needed(self):
        with pytest.raises(SymmetryError, match="Expected inputs="):
            two_sites().act_inputs(1, torch.zeros(1))
        with pytest.raises(SymmetryError, match="Expected inputs="):
            pe.Symmetry(C4, {"weight": pe.trivial(C4, (2, 2)), "bias": pe.trivial(C4, 2)}).check(nn.Linear(2, 2))


SWAP_AND_TURN = [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
C3 = pe.CyclicGroup(3)
CLASSES = {
    "regular": lambda: pe.regular(C3),
    "permutation": lambda: pe.permutation(C3, SWAP_AND_TURN),
    "pullback": lambda: pe.regular(C3).pullback(C3, C3.elements),
    "sum": lambda: pe.regular(C3) + pe.trivial(C3, 2),
    "matrix": lambda: pe.matrix(C3, pe.regular(C3).matrix(C3.elements)),
    "trivial": lambda: pe.trivial(C3, 3),
}


class TestOutputs:
    @pytest.mark.parametrize("kind", CLASSES)
    def test_labels_move_as_one_hot_vectors_do(self, kind):
        sym = pe.Symmetry(C3, {}, outputs=CLASSES[kind]())
        labels = torch.tensor([[0, 1, 2], [2, 2, 0]])
        one_hot = nn.functional.one_hot(labels, sym.outputs.event_shape[0]).double()
        g = torch.arange(3)
        moved = sym.act_outputs(g, labels)
        assert moved.dtype == torch.int64
        assert torch.equal(sym.act_outputs(g, one_hot).argmax(-1), moved)

    def test_labels_repeat_over_the_orbit(self):
        sym = pe.Symmetry(C4, {}, outputs=pe.regular(C4))
        labels = torch.tensor([0, 1, 3])
        expected = torch.stack([(labels + g) % 4 for g in range(4)])
        assert torch.equal(sym.act_outputs(torch.arange(4)[:, None], labels), expected)
        assert torch.equal(sym.act_outputs(2, labels), expected[2])

    @pytest.mark.parametrize("event", [(), (4,), (5, 2)])
    @pytest.mark.parametrize("batch", [1, 3, 4])
    @pytest.mark.parametrize("kind", [torch.float64, torch.int64])
    def test_invariant_outputs_repeat_over_the_orbit(self, event, batch, kind):
        y = torch.randn(batch, *event).mul(10).to(kind)
        sym = two_sites()
        assert torch.equal(sym.act_outputs(torch.arange(4)[:, None], y), torch.stack([y] * 4))
        assert torch.equal(sym.act_outputs(1, y), y)
        assert torch.equal(sym.act_outputs(C4.sample((batch,)), y), y)

    @pytest.mark.parametrize("outputs", [
        pe.signed_permutation(pe.SignGroup(), [[0, 1]] * 2, [[1, 1], [-1, -1]]), pe.trivial(pe.SignGroup(), (2, 3)),
    ], ids=["signed", "places"])  # fmt: skip
    def test_labels_need_classes_that_are_permuted(self, outputs):
        with pytest.raises(SymmetryError, match=r"permute classes \(and places\), to move integer labels"):
            pe.Symmetry(pe.SignGroup(), {}, outputs=outputs).act_outputs(1, torch.tensor([0, 1]))


class TestValue:
    def test_equal_whatever_the_order_of_sites(self):
        sym, inputs = two_sites(), pe.image(C4, (1, 4, 4))
        again = pe.Symmetry(C4, dict(reversed(sym.sites.items())))
        assert sym == again and hash(sym) == hash(again)
        others = [two_sites(inputs=inputs), two_sites(outputs=inputs), two_sites(features={"0": inputs})]
        assert len({sym, *others}) == 4 and sym != "Symmetry"

    def test_copies(self):
        sym = NETWORKS["fully connected head"]().symmetry
        for other in (pickle.loads(pickle.dumps(sym)), copy.deepcopy(sym)):
            assert other == sym and hash(other) == hash(sym) and other.features == sym.features

    def test_does_not_change(self):
        sites = {"w": pe.regular(C4)}
        sym = pe.Symmetry(C4, sites)
        sites["b"] = pe.regular(C4)
        assert list(sym.sites) == ["w"]
        with pytest.raises(TypeError):
            sym.sites["b"] = pe.regular(C4)

    def test_repr(self):
        assert repr(two_sites()) == "Symmetry(CyclicGroup(4), 2 sites, inputs=None, outputs=None)"


class TestProduct:
    SIGNS = pe.SignGroup()

    def flips(self, shape):
        return (pe.vector(self.SIGNS) * pe.trivial(self.SIGNS, shape)).reshape(shape)

    def pair(self):
        """The kernel is moved by both, the bias by the first, the offset by the second, the rest by none."""
        left = two_sites(inputs=pe.image(C4, (1, 4, 4)), features={"0": pe.regular(C4)})
        sites = {"kernel": self.flips((3, 3)), "offset": self.flips((2,)), "bias": pe.trivial(self.SIGNS, 4)}
        return left, pe.Symmetry(self.SIGNS, sites, outputs=self.flips((5,)))

    def test_each_site_moves_as_said(self):
        left, right = self.pair()
        both, values = left * right, {"kernel": torch.randn(3, 3), "bias": torch.randn(4), "offset": torch.randn(2)}
        x, y = torch.randn(1, 4, 4), torch.randn(5)
        assert both.group == C4 * self.SIGNS and set(both.sites) == set(values)
        for g, h in itertools.product(range(4), range(2)):
            moved, sign = both.act(2 * g + h, values), (-1) ** h
            assert torch.equal(moved["kernel"], sign * values["kernel"].rot90(g))
            assert torch.equal(moved["bias"], values["bias"].roll(g))
            assert torch.equal(moved["offset"], sign * values["offset"])
            assert torch.equal(both.act_inputs(2 * g + h, x), x.rot90(g, (-2, -1)))
            assert torch.equal(both.act_outputs(2 * g + h, y), sign * y)
        assert both.features["0"].act(2, torch.arange(4)).tolist() == [3, 0, 1, 2]

    @pytest.mark.parametrize("swapped", [False, True])
    def test_is_a_homomorphism(self, swapped):
        left, right = self.pair()
        both = right * left if swapped else left * right
        values = {"kernel": torch.randn(3, 3), "bias": torch.randn(4), "offset": torch.randn(2)}
        a, b = both.group.elements[:, None], both.group.elements
        twice, once = both.act(a, both.act(b, values)), both.act(both.group.compose(a, b), values)
        assert all(torch.equal(twice[name], once[name]) for name in values)

    def test_of_three(self):
        left, right = self.pair()
        S3 = pe.SymmetricGroup(3)
        more = pe.Symmetry(S3, {"kernel": pe.trivial(S3, (3, 3)), "locs": pe.permutation(S3), "z": pe.labels(S3)})
        both = left * right * more
        values = {"kernel": torch.randn(3, 3), "locs": torch.randn(3), "z": torch.tensor(2)}
        g = both.group.sample((20,))
        back = both.act(both.group.inverse(g), both.act(g, values))
        assert all(torch.equal(back[name], values[name].expand(back[name].shape)) for name in values)
        assert len(both.group) == 4 * 2 * 6 and both == pickle.loads(pickle.dumps(both)) == left * right * more

    def test_what_neither_moves(self):
        one, two = (pe.Symmetry(G, {"w": pe.trivial(G, 2)}) for G in (C4, self.SIGNS))
        both = one * two
        assert both["w"] == pe.trivial(both.group, 2) and both.inputs is None and both.outputs is None

    def test_a_network_with_flipped_outputs(self):
        """Its last layer flips with the outputs, while the image turns."""
        case = NETWORKS["fully connected head"]()
        head = {name: self.flips(p.shape) for name, p in case.net.named_parameters() if name.startswith("6")}
        rest = {name: pe.trivial(self.SIGNS, p.shape) for name, p in case.net.named_parameters() if name not in head}
        flip = pe.Symmetry(self.SIGNS, head | rest, outputs=self.flips((3,)), features={"6": self.flips((3,))})
        assert (case.symmetry * flip).check(case.net) < 1e-10

    def test_space(self):
        left = pe.Symmetry(C4, {"s": pe.trivial(C4, 1)})
        flip = pe.Symmetry(self.SIGNS, {"s": pe.vector(self.SIGNS).on_unconstrained()})
        assert (left * flip)["s"].space == (flip * flip)["s"].space == "unconstrained"
        assert (left * pe.Symmetry(self.SIGNS, {"s": pe.vector(self.SIGNS)}))["s"].space == "constrained"
        with pytest.raises(SymmetryError, match="site 's' in one space; got constrained and unconstrained"):
            pe.Symmetry(self.SIGNS, {"s": pe.vector(self.SIGNS)}) * flip

    def test_must_commute(self):
        S3 = pe.SymmetricGroup(3)
        locs = pe.Symmetry(S3, {"locs": pe.permutation(S3)})
        with pytest.raises(SymmetryError, match="two actions that commute; .* do not.*about 'locs'"):
            locs * locs
        with pytest.raises(SymmetryError, match="commute.*about 'inputs'"):
            pe.Symmetry(D4, {}, inputs=pe.regular(D4)) * pe.Symmetry(D4, {}, inputs=pe.regular(D4))

    def test_must_be_of_one_shape(self):
        with pytest.raises(SymmetryError, match=r"act on 'bias' in one shape; got \(4,\) of .* and \(3,\)"):
            two_sites() * pe.Symmetry(self.SIGNS, {"bias": pe.trivial(self.SIGNS, 3)})

    def test_only_of_symmetries_of_numbered_groups(self):
        with pytest.raises(TypeError):
            two_sites() * C4
        with pytest.raises(SymmetryError, match="numbered, for a product"):
            two_sites() * pe.Symmetry(pe.SpecialOrthogonal(2), {})


class TestCheck:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_passes(self, name):
        case = NETWORKS[name]()
        before = copy.deepcopy(case.net.state_dict())
        deviation = case.symmetry.check(case.net)
        assert 0 <= deviation < 1e-10
        assert all(torch.equal(value, before[key]) for key, value in case.net.state_dict().items())
        assert all(not module._forward_hooks for module in case.net.modules())

    def test_covers_every_parameter(self):
        for name, make in NETWORKS.items():
            case = make()
            assert set(dict(case.net.named_parameters())) <= set(case.symmetry.sites), name

    def test_odd_pooling_is_named(self):
        net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2))
        sym = Case(net, C4, (1, 7, 7)).symmetry
        with pytest.raises(LayerError, match=r"layer '2' to move.*under 'r90' it is off by \d.*Odd sizes"):
            sym.check(net)

    def test_strided_convolution_by_hand_is_named(self):
        net = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        out = pe.regular(C4)
        kernel = out * pe.trivial(C4, 1) * pe.image(C4, (3, 3))
        sym = pe.network_symmetry(
            net, C4, (1, 4, 4), sites={"0.weight": kernel, "0.bias": out}, features={"0": out * pe.image(C4, (2, 2))}
        )
        with pytest.raises(LayerError, match="layer '0' to move"):
            sym.check(net)

    def test_wrong_representation_is_named(self):
        case = NETWORKS["fully connected head"]()
        sites = dict(case.symmetry.sites)
        sites["4.weight"] = pe.trivial(C4, (8, 72))
        sym = pe.Symmetry(C4, sites, inputs=case.symmetry.inputs, features=case.symmetry.features)
        with pytest.raises(LayerError, match="layer '4' to move"):
            sym.check(case.net)

    def test_without_features_the_output_is_named(self):
        case = NETWORKS["fully connected head"]()
        sites = {name: pe.trivial(C4, p.shape) for name, p in case.net.named_parameters()}
        with pytest.raises(LayerError, match="the network's output to move"):
            pe.Symmetry(C4, sites, inputs=case.symmetry.inputs).check(case.net)

    def test_wrong_outputs_are_named(self):
        case = NETWORKS["equivariant head"]()
        sym = pe.Symmetry(C4, case.symmetry.sites, inputs=case.symmetry.inputs)
        with pytest.raises(LayerError, match="the network's output to move"):
            sym.check(case.net)

    def test_wrong_shape(self):
        case = NETWORKS["fully connected head"]()
        sites = dict(case.symmetry.sites) | {"0.bias": pe.regular(C4)}
        with pytest.raises(SymmetryError, match=r"site '0.bias' to act on shape \(8,\); got \(4,\)"):
            pe.Symmetry(C4, sites, inputs=case.symmetry.inputs).check(case.net)

    def test_missing_site(self):
        case = NETWORKS["fully connected head"]()
        sites = {name: rep for name, rep in case.symmetry.sites.items() if name != "6.bias"}
        with pytest.raises(SymmetryError, match="representation for site '6.bias'"):
            pe.Symmetry(C4, sites, inputs=case.symmetry.inputs).check(case.net)

    def test_output_of_another_shape(self):
        class Ragged(nn.Module):
            def forward(self, x):
                corner = bool(x[0, 0, 0, 0] > 0)
                return x.flatten(1)[:, : 3 + corner]

        with pytest.raises(LayerError, match="off by inf"):
            pe.Symmetry(C4, {}, inputs=pe.image(C4, (1, 4, 4))).check(Ragged())

    def test_nan_does_not_pass(self):
        class Roots(nn.Module):
            def forward(self, x):
                return x.sqrt().sum((1, 2, 3))

        with pytest.raises(LayerError, match="off by nan"):
            pe.Symmetry(C4, {}, inputs=pe.image(C4, (1, 4, 4))).check(Roots())

    def test_dropout_and_a_module_in_float32_are_no_obstacle(self):
        torch.set_default_dtype(torch.float32)
        net = small_conv().insert(2, nn.Dropout(0.9)).train()
        assert Case(net, D4, (1, 6, 6)).symmetry.check(net) < 1e-10
        assert net.training and net[0].weight.dtype == torch.float32

    def test_float32_matrices_are_precise_enough(self):
        """Rotations by 45° in float32 compose to 1e-7 only."""
        angles = torch.arange(8, dtype=torch.float32) * (torch.pi / 4)
        turns = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], -1).reshape(8, 2, 2)
        plane = pe.matrix(pe.CyclicGroup(8), turns)
        sites = {"weight": plane * plane.dual, "bias": plane}
        sym = pe.Symmetry(plane.group, sites, inputs=plane, outputs=plane)
        assert sym.check(nn.Linear(2, 2)) < 1e-6

    def test_seeds_repeat_and_differ(self):
        seen = []

        class Recorder(nn.Module):
            def forward(self, x):
                seen.append(x)
                return x.sum((1, 2, 3))

        for seed in (0, 0, 1):
            pe.Symmetry(C1, {}, inputs=pe.image(C1, (1, 4, 4))).check(Recorder(), seed=seed)
        assert torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[4])


def test_outputs_that_move_as_an_image():
    """A symmetry by hand: a pixelwise network commutes with the turns of the image."""
    net, pixels = nn.Conv2d(1, 1, 1), pe.image(C4, (1, 4, 4))
    sites = {name: pe.trivial(C4, p.shape) for name, p in net.named_parameters()}
    assert pe.Symmetry(C4, sites, inputs=pixels, outputs=pixels).check(net) < 1e-12
    y = torch.randn(3, 1, 4, 4)
    assert_close(pe.Symmetry(C4, {}, outputs=pixels).act_outputs(1, y), y.rot90(1, (-2, -1)), atol=0, rtol=0)
