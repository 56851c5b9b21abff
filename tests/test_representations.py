"""Each law on every representation of the catalogue, against dense matrices and loops."""

import math
import pickle
import subprocess
import sys

import pytest
import torch
from catalogue import REPRESENTATIONS, rotations, scaled_swap, sheared_rotations, signed_turns, turned_and_flipped
from torch.testing import assert_close

import pyro_equivariance as pe
from pyro_equivariance.errors import SymmetryError
from pyro_equivariance.representations import Composed, Factor, Labels, NaturalPermutation, SignedPermutation

EXACT = {"atol": 1e-12, "rtol": 0}
MIXING = {"matrix, C8", "matrix, sheared", "product", "sum", "dual", "dual of a product", "composed, sheared"}
S3 = pe.SymmetricGroup(3)
QUARTER_TURNS = [0, math.pi / 2, math.pi, 3 * math.pi / 2]


@pytest.fixture(params=REPRESENTATIONS)
def name(request):
    return request.param


@pytest.fixture
def rep(name):
    return REPRESENTATIONS[name]()


def dense(rep):
    """All matrices ``(order, n, n)``, each column the image of one basis tensor under one element."""
    n = rep.event_shape.numel()
    basis = torch.eye(n).reshape(n, *rep.event_shape)
    columns = [[rep.act(g, basis[i]).reshape(n) for i in range(n)] for g in range(len(rep.group))]
    return torch.stack([torch.stack(row, -1) for row in columns])


def vectors(rep, *batch):
    return torch.randn((*batch, *rep.event_shape))


def forget(rep):
    """Drop the tables that a representation has made."""
    for name in ("_copies", "_orbits"):
        vars(rep).pop(name, None)


class TestLaws:
    def test_identity(self, rep):
        x = vectors(rep, 3)
        assert torch.equal(rep.act(0, x), x)

    def test_homomorphism(self, rep):
        G = rep.group
        a, b = (G.elements[:, None], G.elements) if len(G) <= 8 else (G.sample((20, 1)), G.sample((20,)))
        x = vectors(rep)
        assert_close(rep.act(a, rep.act(b, x)), rep.act(G.compose(a, b), x), **EXACT)

    def test_matrix_is_the_action(self, rep):
        x, n = vectors(rep), rep.event_shape.numel()
        matrices = rep.matrix(rep.group.elements)
        assert matrices.shape == (len(rep.group), n, n)
        assert_close(matrices, dense(rep), **EXACT)
        assert_close((matrices @ x.reshape(n)).reshape(-1, *rep.event_shape), rep.orbit(x), **EXACT)
        assert rep.matrix(0).shape == (n, n) and rep.matrix(torch.zeros(2, 3).long()).shape == (2, 3, n, n)

    def test_batch_of_elements_is_the_loop(self, rep):
        g, x = rep.group.sample((3, 2)), vectors(rep, 3, 2)
        loop = torch.stack([torch.stack([rep.act(int(g[i, j]), x[i, j]) for j in range(2)]) for i in range(3)])
        assert_close(rep.act(g, x), loop, **EXACT)

    @pytest.mark.parametrize("g_shape, batch, expected", [
        ((), (5, 2), (5, 2)), ((4,), (), (4,)), ((4, 1), (3,), (4, 3)), ((3, 1, 2), (4, 1), (3, 4, 2)),
        ((1,), (4,), (4,)), ((0,), (1,), (0,)),
    ])  # fmt: skip
    def test_broadcasting(self, rep, g_shape, batch, expected):
        g, x = rep.group.sample(g_shape), vectors(rep, *batch)
        found = rep.act(g, x)
        assert found.shape == (*expected, *rep.event_shape)
        every_g, every_x = g.expand(expected), x.expand(*expected, *rep.event_shape)
        for index in torch.cartesian_prod(*map(torch.arange, expected)).reshape(-1, len(expected)).tolist()[:6]:
            where = tuple(index)
            assert_close(found[where], rep.act(int(every_g[where]), every_x[where]), **EXACT)

    def test_int_tensor_and_int_elements_agree(self, rep):
        x, last = vectors(rep, 2), len(rep.group) - 1
        assert torch.equal(rep.act(last, x), rep.act(torch.tensor(last), x))

    def test_orbit(self, rep):
        x = vectors(rep, 2)
        assert_close(rep.orbit(x), torch.stack([rep.act(g, x) for g in range(len(rep.group))]), **EXACT)

    def test_mean(self, rep):
        x = vectors(rep, 2, 3)
        mean = rep.mean(x)
        assert_close(mean, rep.orbit(x).mean(0), **EXACT)
        assert_close(rep.mean(mean), mean, **EXACT)
        assert_close(rep.orbit(mean), mean.expand(len(rep.group), *mean.shape), **EXACT)

    def test_mean_with_and_without_tables(self, rep, monkeypatch):
        """Value and both derivatives; the chain of subgroups serves where a table would be too large."""
        x, weight = vectors(rep, 2).requires_grad_(True), vectors(rep, 2)
        found = []
        for largest in (2**20, 0):
            monkeypatch.setattr("pyro_equivariance.representations.base.MAX_ORBIT_TABLE", largest)
            forget(rep)
            (gradient,) = torch.autograd.grad((rep.mean(x).square() * weight).sum(), x, create_graph=True)
            (second,) = torch.autograd.grad((gradient * weight).sum(), x)
            found.append((rep.mean(x), gradient, second, rep._orbits is not None, rep.orbit(x)))
            found[-1] += torch.autograd.grad((rep.orbit(x) * weight.exp()).sin().sum(), x)
        forget(rep)
        assert found[0][3] <= rep.is_permutation and not found[1][3]
        for ours, theirs in zip(found[0], found[1], strict=True):
            if not isinstance(ours, bool):
                assert_close(ours, theirs, **EXACT)

    def test_dual_pairing(self, rep):
        a, b = vectors(rep, 4), vectors(rep, 4)
        g = rep.group.sample((4,))
        pairing = (rep.dual.act(g, a) * rep.act(g, b)).reshape(4, -1).sum(-1)
        assert_close(pairing, (a * b).reshape(4, -1).sum(-1), atol=1e-11, rtol=1e-11)
        assert_close(dense(rep.dual), dense(rep).inverse().mT, **EXACT)

    def test_flags_against_the_matrices(self, rep):
        M = dense(rep)
        nonzero = M.abs() > 1e-9
        monomial = bool((nonzero.sum(-1) == 1).all() and (nonzero.sum(-2) == 1).all())
        assert rep.is_linear
        assert rep.is_monomial == monomial
        assert rep.is_permutation == (monomial and bool((M[nonzero] - 1).abs().max() < 1e-9))
        assert rep.is_orthogonal == bool((M.mT @ M - torch.eye(M.shape[-1])).abs().max() < 1e-9)

    @pytest.mark.parametrize("power", [1, 2])
    def test_modulus(self, name, rep, power):
        if name in MIXING:
            with pytest.raises(SymmetryError, match="permutes and rescales entries"):
                rep.modulus(power)
        else:
            assert_close(dense(rep.modulus(power)), dense(rep).abs() ** power, **EXACT)
            assert_close(dense(rep.modulus()), dense(rep).abs(), **EXACT)

    def test_gradients_flow(self, rep):
        x, weight = vectors(rep, 2).requires_grad_(), vectors(rep, 2)
        g = rep.group.sample((2,))
        (gradient,) = torch.autograd.grad((rep.act(g, x) * weight).sum(), x)
        assert_close(gradient, rep.dual.act(rep.group.inverse(g), weight), **EXACT)
        (gradient,) = torch.autograd.grad((rep.mean(x) * weight).sum(), x)
        assert_close(gradient, rep.dual.mean(weight), **EXACT)

    def test_is_a_value(self, name, rep):
        again = REPRESENTATIONS[name]()
        assert again == rep and hash(again) == hash(rep) and repr(again) == repr(rep)
        copy = pickle.loads(pickle.dumps(rep))
        x = vectors(rep)
        assert copy == rep and torch.equal(copy.orbit(x), rep.orbit(x))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_keeps_the_precision_of_floats(self, rep, dtype):
        x = vectors(rep, 2).to(dtype)
        g = rep.group.sample((2,))
        assert rep.act(g, x).dtype == rep.act(0, x).dtype == rep.mean(x).dtype == dtype
        assert_close(rep.act(g, x).double(), rep.act(g, x.double()), atol=1e-5, rtol=1e-5)

    def test_integers(self, name, rep):
        x = torch.randint(-9, 9, (2, *rep.event_shape))
        g = rep.group.sample((2,))
        moved = rep.act(g, x)
        assert_close(moved.double(), rep.act(g, x.double()), **EXACT)
        if rep.is_permutation and "matrix" not in name:
            assert moved.dtype == torch.int64


def test_catalogue_names_tell_apart():
    reps = [make() for make in REPRESENTATIONS.values()]
    assert len(set(reps)) == len(reps)


class TestConventions:
    def test_permutation_sends_i_to_its_image(self):
        """Under σ the entry of place i arrives at place σ(i)."""
        rep, x = pe.permutation(pe.SymmetricGroup(4)), torch.arange(4) * 10
        for g, sigma in enumerate(rep.group.permutations(rep.group.elements).tolist()):
            moved = rep.act(g, x)
            assert [int(moved[sigma[i]]) for i in range(4)] == x.tolist()

    def test_signs_are_those_of_the_source(self):
        assert signed_turns().act(1, torch.tensor([3, 5])).tolist() == [-5, 3]

    def test_regular_moves_g_to_hg_in_blocks(self):
        G = pe.DihedralGroup(4)
        rep, x = pe.regular(G, 3), torch.arange(24)
        for h in range(8):
            moved = rep.act(h, x)
            for g in range(8):
                assert moved.reshape(8, 3)[G.compose(h, g)].tolist() == [3 * g, 3 * g + 1, 3 * g + 2]

    @pytest.mark.parametrize("group", [pe.CyclicGroup(n) for n in (1, 2, 4)], ids=repr)
    def test_images_turn_counter_clockwise(self, group):
        x = torch.randn(2, 3, 4, 4)
        rep = pe.image(group, (3, 4, 4))
        for g in range(len(group)):
            assert torch.equal(rep.act(g, x), torch.rot90(x, g * 4 // len(group), (-2, -1)))

    @pytest.mark.parametrize("n", [1, 2, 4])
    def test_images_turn_then_mirror_left_and_right(self, n):
        x = torch.randn(2, 3, 4, 4)
        rep = pe.image(pe.DihedralGroup(n), (3, 4, 4))
        for k in range(n):
            turned = torch.rot90(x, k * 4 // n, (-2, -1))
            assert torch.equal(rep.act(k, x), turned) and torch.equal(rep.act(n + k, x), turned.flip(-1))

    def test_images_that_are_not_square(self):
        x = torch.randn(2, 3)
        rep = pe.image(pe.DihedralGroup(2), (2, 3))
        assert torch.equal(rep.act(1, x), x.flip((0, 1))) and torch.equal(rep.act(2, x), x.flip(1))
        assert torch.equal(rep.act(3, x), x.flip(0))

    def test_images_under_a_subgroup(self):
        x, group = torch.randn(3, 3), pe.DihedralGroup(4).subgroup(["r180", "s"])
        orbit = pe.image(group, (3, 3)).orbit(x)
        assert torch.equal(orbit, torch.stack([x, x.rot90(2), x.flip(1), x.rot90(2).flip(1)]))

    def test_products_act_axis_by_axis(self):
        left, right = sheared_rotations(), pe.image(pe.CyclicGroup(4), (2, 2))
        x, g = torch.randn(5, 2, 2, 2), 3
        expected = torch.einsum("ij,njhw->nihw", left.matrix(g), x.rot90(3, (-2, -1)))
        assert_close((left * right).act(g, x), expected, **EXACT)
        assert (left * right).event_shape == (2, 2, 2)

    def test_products_are_kronecker_products(self):
        left, right = sheared_rotations(), signed_turns()
        for g in range(4):
            assert_close((left * right).matrix(g), torch.kron(left.matrix(g), right.matrix(g)), **EXACT)

    def test_sums_are_block_diagonal(self):
        left, right = sheared_rotations(), pe.regular(pe.CyclicGroup(4))
        for g in range(4):
            assert_close((left + right).matrix(g), torch.block_diag(left.matrix(g), right.matrix(g)), **EXACT)

    def test_reshape_keeps_the_order_of_entries(self):
        base = pe.image(pe.CyclicGroup(4), (2, 3, 3))
        x = torch.randn(4, 18)
        assert torch.equal(base.reshape(18).act(1, x), base.act(1, x.reshape(4, 2, 3, 3)).reshape(4, 18))

    def test_pullback_follows_the_homomorphism(self):
        C4, signs = pe.CyclicGroup(4), pe.SignGroup()
        parity = pe.regular(signs).pullback(C4, C4.elements % 2)
        assert parity.group == C4
        assert [parity.act(g, torch.tensor([1, 2])).tolist() for g in range(4)] == [[1, 2], [2, 1]] * 2

    def test_equality_ignores_how_it_was_made_only_where_the_class_agrees(self):
        swap = [[0, 1], [1, 0]]
        assert pe.permutation(pe.SignGroup(), swap) == pe.regular(pe.SignGroup())
        assert pe.permutation(pe.CyclicGroup(2), swap) != pe.regular(pe.SignGroup())
        assert pe.trivial(pe.SignGroup(), 2) != pe.trivial(pe.SignGroup(), (2, 1)) != "trivial(2, 1)"


class TestAngle:
    def turn(self):
        return pe.angle(pe.CyclicGroup(4), QUARTER_TURNS)

    def mirror(self):
        return pe.angle(pe.DihedralGroup(4), [*QUARTER_TURNS, *(-a for a in QUARTER_TURNS)], [1] * 4 + [-1] * 4)

    def test_wraps(self):
        x = torch.tensor([0.0, 3.0, -3.0, math.pi])
        moved = self.turn().act(1, x)
        assert_close(moved, torch.tensor([math.pi / 2, 3 + math.pi / 2 - 2 * math.pi, math.pi / 2 - 3, -math.pi / 2]))
        everything = self.turn().act(torch.arange(4)[:, None], torch.linspace(-20, 20, 401))
        assert everything.min() >= -math.pi and everything.max() < math.pi

    @pytest.mark.parametrize("kind", ["turn", "mirror"])
    def test_homomorphism_on_the_circle(self, kind):
        rep = getattr(self, kind)()
        G, x = rep.group, torch.linspace(-3, 3, 7)
        a, b = G.elements[:, None, None], G.elements[:, None]
        gap = rep.act(a, rep.act(b, x)) - rep.act(G.compose(a, b), x)
        assert_close(gap.cos(), torch.ones_like(gap), **EXACT)

    def test_mirror_reflects(self):
        assert_close(self.mirror().act(4, torch.tensor(0.7)), torch.tensor(-0.7))

    @pytest.mark.parametrize("axes", [(3,), (2, 3)])
    def test_vectors_of_angles(self, axes):
        rep = self.turn() * pe.trivial(pe.CyclicGroup(4), axes)
        x, g = torch.rand(3, *axes), torch.arange(3)
        assert_close(rep.act(g, x), torch.stack([self.turn().act(int(g[i]), x[i]) for i in range(3)]), **EXACT)

    def test_integers_are_moved_as_floats(self):
        assert_close(self.turn().act(1, torch.tensor(1)), torch.tensor(1 + math.pi / 2))

    def test_is_a_value(self):
        assert self.mirror() == self.mirror() == pickle.loads(pickle.dumps(self.mirror())) != self.turn()
        assert hash(self.mirror()) == hash(self.mirror()) and repr(self.turn()) == "angle()"

    WRAPPED = {
        "itself": lambda rep: rep,
        "product": lambda rep: rep * pe.trivial(rep.group, 2),
        "product after": lambda rep: pe.trivial(rep.group, 2) * rep,
        "reshape": lambda rep: rep.reshape(1),
        "pullback": lambda rep: rep.pullback(rep.group, rep.group.elements),
        "sum": lambda rep: rep.reshape(1) + pe.trivial(rep.group, 1),
        "sum after": lambda rep: pe.trivial(rep.group, 1) + rep.reshape(1),
    }

    @pytest.mark.parametrize("wrap", WRAPPED)
    def test_nothing_linear_is_asked_of_it(self, wrap):
        rep = self.WRAPPED[wrap](self.turn())
        assert not (rep.is_linear or rep.is_monomial or rep.is_permutation or rep.is_orthogonal)
        with pytest.raises(SymmetryError, match="linear representation for a mean over the orbit.*shifts angles"):
            rep.mean(torch.zeros(rep.event_shape))
        with pytest.raises(SymmetryError, match="linear representation for a matrix"):
            rep.matrix(1)
        with pytest.raises(SymmetryError, match="permutes and rescales"):
            rep.modulus()


class TestWithoutATable:
    @pytest.mark.parametrize("signed", [False, True])
    def test_agrees_with_the_table(self, signed):
        group = pe.SignedPermutationGroup(3)
        table = pe.vector(group) if signed else pe.permutation(group)
        lazy, x, g = NaturalPermutation(group, signed), torch.randn(48, 5, 3), group.elements[:, None]
        assert isinstance(table, SignedPermutation) and repr(lazy) == repr(table)
        assert torch.equal(lazy.act(g, x), table.act(g, x))

    def test_twenty_things(self):
        group = pe.SymmetricGroup(20)
        rep, x, g = pe.permutation(group), torch.randn(7, 20), group.sample((7,))
        moved = rep.act(g, x)
        assert isinstance(rep, NaturalPermutation) and rep.is_permutation
        assert torch.equal(moved.gather(-1, group.permutations(g)), x)
        assert torch.equal(rep.act(group.inverse(g), moved), x)
        assert_close(rep.mean(x), x.mean(-1, keepdim=True).expand(7, 20), **EXACT)
        assert_close((rep * rep).mean(torch.eye(20)), torch.eye(20), **EXACT)
        assert rep.modulus() == rep.dual == rep

    def test_sixteen_things_with_signs(self):
        group = pe.SignedPermutationGroup(16)
        rep, x, g = pe.vector(group), torch.randn(16), group.sample((3, 2))
        moved = rep.act(g, x)
        assert isinstance(rep, NaturalPermutation) and not rep.is_permutation
        assert torch.equal(moved.gather(-1, group.permutations(g)), x * group.signs(g))
        assert torch.equal(rep.act(group.inverse(g), moved), x.expand(3, 2, 16))
        assert_close(rep.mean(x), torch.zeros(16), **EXACT)
        assert torch.equal(rep.modulus().act(g, x.abs()), moved.abs())

    def test_a_large_lattice(self):
        rep = pe.lattice(pe.DihedralGroup(4), (32, 32))
        x, g = torch.randn(32, 32), rep.group.sample((2,))
        assert isinstance(rep.base, NaturalPermutation) and repr(rep) == "lattice(32, 32)"
        assert torch.equal(rep.act(rep.group.inverse(g), rep.act(g, x)), x.expand(2, 32, 32))
        assert_close(rep.mean(x), x.mean().expand(32, 32), **EXACT)

    def test_the_product_of_large_groups(self):
        left, right = pe.SymmetricGroup(18), pe.SignGroup()
        rep = Factor(left * right, pe.permutation(left), 0)
        x = torch.randn(18)
        assert_close(rep.mean(x), x.mean().expand(18), **EXACT)


class TestLattice:
    @pytest.mark.parametrize("group", [
        kind(n) for n in (1, 2, 4) for kind in (pe.CyclicGroup, pe.DihedralGroup)
    ], ids=repr)  # fmt: skip
    def test_is_the_image_up_to_a_translation(self, group):
        """A picture turns about its centre, the lattice about site 0, which then goes where the picture has it."""
        x, picture, rep = torch.randn(4, 4), pe.image(group, (4, 4)), pe.lattice(group, (4, 4))
        corner = torch.zeros(4, 4)
        corner[0, 0] = 1
        for g in range(len(group)):
            translation = int(picture.act(g, corner).flatten().argmax()) * len(group)
            both = rep.group.compose(translation, g)
            assert torch.equal(rep.act(both, x), picture.act(g, x))
            assert torch.equal(rep.act(both, x), rep.act(translation, rep.act(g, x)))

    def test_is_the_volume_up_to_a_translation(self):
        group, x = pe.OctahedralGroup(reflections=True), torch.randn(3, 3, 3)
        picture, rep, corner = pe.volume(group, (3, 3, 3)), pe.lattice(group, (3, 3, 3)), torch.zeros(3, 3, 3)
        corner[0, 0, 0] = 1
        for g in range(48):
            translation = int(picture.act(g, corner).flatten().argmax()) * 48
            assert torch.equal(rep.act(translation + g, x), picture.act(g, x))

    def test_translations_roll(self):
        x, rep = torch.randn(2, 4, 6), pe.lattice(None, (4, 6))
        for k, shift in enumerate(torch.cartesian_prod(torch.arange(4), torch.arange(6)).tolist()):
            assert torch.equal(rep.act(k, x), x.roll(shift, (-2, -1)))

    def test_reversal_of_one_axis_keeps_site_0(self):
        rep = pe.lattice(pe.DihedralGroup(1), 5)
        assert rep.act(1, torch.arange(5)).tolist() == [0, 4, 3, 2, 1] and repr(rep) == "lattice(5,)"

    @pytest.mark.parametrize("size", [8, 16])
    def test_mean(self, size):
        rep, x = pe.lattice(pe.DihedralGroup(4), (size, size)), torch.randn(3, size, size)
        assert_close(rep.mean(x), x.mean((-1, -2), keepdim=True).expand_as(x), **EXACT)


class TestComposed:
    def test_is_one_after_the_other(self):
        rep, x = turned_and_flipped(), torch.randn(3, 3)
        for g in range(8):
            assert torch.equal(rep.act(g, x), x.rot90(g // 2) * (-1) ** g)
        assert repr(rep) == f"{rep.left} @ {rep.right}"

    def test_large_groups_meet_no_table(self):
        group = pe.SymmetricGroup(18) * pe.SignGroup()
        flip = (pe.vector(group.right) * pe.trivial(group.right, 18)).reshape(18)
        rep, x = Composed(Factor(group, pe.permutation(group.left), 0), Factor(group, flip, 1)), torch.randn(18)
        assert torch.equal(rep.act(1, x), -x) and rep.dual == rep
        assert_close(rep.mean(x), torch.zeros(18), **EXACT)
        assert torch.equal(rep.modulus().act(1, x), x)

    def test_angles_and_labels_on_a_lattice(self):
        field, turn = pe.lattice(None, (2, 2)), pe.angle(pe.CyclicGroup(4), QUARTER_TURNS)
        colours = pe.labels(pe.SymmetricGroup(3))
        for each, x in ((turn, torch.rand(2, 2)), (colours, torch.randint(3, (2, 2)))):
            group = field.group * each.group
            alike = Factor(group, each * pe.trivial(each.group, (2, 2)), 1)
            for rep in (Composed(Factor(group, field, 0), alike), Composed(alike, Factor(group, field, 0))):
                a, b = group.sample((20, 1)), group.sample((20,))
                assert_close(rep.act(a, rep.act(b, x)), rep.act(group.compose(a, b), x), **EXACT)
                assert not rep.is_linear

    @pytest.mark.parametrize("pair", [
        lambda: (pe.permutation(S3), pe.permutation(S3)), lambda: (pe.labels(S3), pe.labels(S3)),
    ], ids=["permutations", "labels"])  # fmt: skip
    def test_must_commute(self, pair):
        with pytest.raises(SymmetryError, match="two actions that commute; .* do not"):
            Composed(*pair())

    def test_must_be_of_one_shape_and_group(self):
        with pytest.raises(SymmetryError, match=r"tensors of one shape; got \(3,\) of .* and \(2,\)"):
            Composed(pe.permutation(S3), pe.trivial(S3, 2))
        with pytest.raises(SymmetryError, match="of one group"):
            Composed(pe.permutation(S3), pe.trivial(pe.SignGroup(), 3))
        with pytest.raises(SymmetryError, match="representation of factor 1 of"):
            Factor(S3 * pe.SignGroup(), pe.permutation(S3), 1)


class TestLabels:
    REPS = {
        "own": lambda: pe.labels(S3),
        "given": lambda: pe.labels(pe.CyclicGroup(3), [[0, 1, 2, 3], [1, 2, 0, 3], [2, 0, 1, 3]]),
        "without a table": lambda: Labels(S3),
    }

    @pytest.fixture(params=REPS)
    def rep(self, request):
        return self.REPS[request.param]()

    def test_law_of_composition(self, rep):
        G, z = rep.group, torch.arange(rep.classes)
        a, b = G.elements[:, None, None], G.elements[:, None]
        assert torch.equal(rep.act(a, rep.act(b, z)), rep.act(G.compose(a, b), z))
        assert torch.equal(rep.act(0, z), z)

    @pytest.mark.parametrize("kind", [torch.int64, torch.uint8, torch.float32, torch.float64])
    def test_indicators_move_by_the_permutation(self, rep, kind):
        G, z = rep.group, torch.randint(rep.classes, (5,)).to(kind)
        table = None if rep._permutations is None else rep._permutations
        moved = rep.act(G.elements[:, None], z)
        one_hot = torch.nn.functional.one_hot(z.long(), rep.classes)
        assert moved.dtype == kind and moved.shape == (len(G), 5)
        found = pe.permutation(G, table).act(G.elements[:, None], one_hot).argmax(-1)
        assert torch.equal(moved.long(), found)
        assert torch.equal(torch.stack([rep.act(g, z) for g in range(len(G))]), moved)

    def test_one_of_each_component_follows_it(self):
        """The component of a datum keeps its parameters, whatever it is called."""
        locs, z, g = torch.randn(3), torch.randint(3, (7,)), S3.elements[:, None]
        moved = pe.permutation(S3).act(S3.elements, locs)
        assert torch.equal(moved.gather(-1, pe.labels(S3).act(g, z)), locs[z].expand(6, 7))

    def test_fields_of_labels(self, rep):
        both = rep * pe.trivial(rep.group, (2, 4))
        z, g = torch.randint(3, (3, 2, 4)), rep.group.sample((3,))
        expected = torch.stack([rep.act(int(g[i]), z[i]) for i in range(3)])
        assert torch.equal(both.act(g, z), expected)
        assert torch.equal((pe.trivial(rep.group, (2, 4)) * rep).act(g, z), expected)

    def test_a_large_group(self):
        group = pe.SymmetricGroup(20)
        rep, z, g = pe.labels(group), torch.arange(20), group.sample((4, 1))
        assert rep.classes == 20 and torch.equal(rep.act(g, z), group.permutations(g[:, 0]))

    def test_is_a_value(self, rep):
        assert (
            pickle.loads(pickle.dumps(rep)) == rep != pe.labels(pe.SymmetricGroup(4))
            and repr(rep) == f"labels({rep.classes})"
        )
        assert hash(pickle.loads(pickle.dumps(rep))) == hash(rep) and rep.event_shape == ()
        assert not (rep.is_linear or rep.is_permutation or rep.is_monomial or rep.is_orthogonal)

    @pytest.mark.parametrize("z", [3, -1, 0.5, math.nan])
    def test_other_labels(self, z):
        with pytest.raises(SymmetryError, match=r"whole numbers between 0 and 2 as labels; got values between"):
            pe.labels(S3).act(1, torch.tensor([0, z]))

    def test_nothing_linear_is_asked_of_it(self):
        with pytest.raises(SymmetryError, match="mean over the orbit; labels.3. shifts angles, labels or points"):
            pe.labels(S3).mean(torch.tensor(1))
        with pytest.raises(SymmetryError, match="permutes and rescales"):
            pe.labels(S3).modulus()
        assert pe.labels(S3).act(S3.sample((0,)), torch.zeros(0)).shape == (0,)


def test_matrices_keep_float64_under_a_float32_default():
    torch.set_default_dtype(torch.float32)
    rep, x = pe.matrix(pe.CyclicGroup(8), rotations(8)), torch.randn(2, dtype=torch.float64)
    assert_close(rep.act(1, x), rotations(8)[1] @ x, **EXACT)
    assert rep.act(1, x.float()).dtype == torch.float32


def test_float32_quarter_turns_count_as_signed_permutations():
    """cos(π/2) is 4e-8 in float32."""
    rep = pe.matrix(pe.CyclicGroup(4), rotations(4).float() + 4e-8)
    assert rep.is_monomial and rep.is_orthogonal and not rep.is_permutation
    assert (rep.modulus().act(1, torch.tensor([1.0, 2.0])) - torch.tensor([2.0, 1.0])).abs().max() < 1e-6


MEMORY = """
import resource, torch, pyro_equivariance as pe
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
D4 = pe.DihedralGroup(4)
rep = pe.regular(D4, 64) * pe.regular(D4, 64) * pe.image(D4, (3, 3))
x = torch.randn(512, 512, 3, 3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
y = rep.mean(x)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_mean_of_a_large_kernel_needs_a_few_copies_of_it():
    """The kernel has 19 MB; its whole orbit has 151, twice that while stacked."""
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 200


C4, S2, D4 = pe.CyclicGroup(4), pe.SymmetricGroup(2), pe.DihedralGroup(4)
SWAP = [[0, 1], [1, 0]]
BAD = {
    "rows missing": (r"one row of permutations for each of the 4 .*\(2, 2\)", lambda: pe.permutation(C4, SWAP)),
    "rows of signs": (r"one row of signs .* 2 elements", lambda: pe.signed_permutation(S2, SWAP, [[1, 1]])),
    "rows of matrices": (r"one row of matrices", lambda: pe.matrix(C4, [[[1.0]]])),
    "no rows": (r"one row of matrices .*shape \(\)", lambda: pe.matrix(C4, 1.0)),
    "rows do not compose": (r"compose as CyclicGroup\(4\).*'r90'", lambda: pe.permutation(C4, SWAP + [[0, 1]] * 2)),
    "signs do not compose": (r"compose as .*'\(0 1\)'",
                             lambda: pe.signed_permutation(S2, SWAP, [[1, 1], [1, -1]])),
    "matrices do not compose": (r"compose as", lambda: pe.matrix(C4, rotations(4)[[0, 1, 3, 2]])),
    "moved by the identity": (r"ρ\(e\) = 1.*'e'", lambda: pe.matrix(S2, torch.zeros(2, 1, 1))),
    "nan": (r"compose as", lambda: pe.matrix(S2, [[[1.0]], [[math.nan]]])),
    "shifts do not compose": (r"compose as .*'r90'", lambda: pe.angle(C4, [0, 1, 2, 3])),
    "reflection by 2": (r"compose as", lambda: pe.angle(S2, [0, 0], [1, 2])),
    "labels do not compose": (r"compose as CyclicGroup\(4\)", lambda: pe.labels(C4, SWAP + [[0, 1]] * 2)),
    "labels without permutations": (r"CyclicGroup\(4\) has none of its own", lambda: pe.labels(C4)),
    "lattice not square": (r"axes of equal length", lambda: pe.lattice(C4, (4, 5))),
    "not a permutation": (r"permutation of 0 \.\. n-1; got \[\[0, 0\]", lambda: pe.permutation(S2, [[0, 0], [1, 0]])),
    "no permutations": (r"CyclicGroup\(4\) has none of its own", lambda: pe.permutation(C4)),
    "half a place": (r"integers as permutations", lambda: pe.permutation(S2, [[0.0, 1.0], [0.5, 0.0]])),
    "sign 2": (r"signs ±1 .*\[2, 1\]", lambda: pe.signed_permutation(S2, SWAP, [[1, 1], [2, 1]])),
    "half a sign": (r"integers as signs", lambda: pe.signed_permutation(S2, SWAP, [[1, 1], [1.5, 1]])),
    "signs of another shape": (r"signs ±1 of shape \(2, 2\)", lambda: pe.signed_permutation(S2, SWAP, [[1], [1]])),
    "matrices not square": (r"of shape \(2, n, n\); got \(2, 1, 3\)", lambda: pe.matrix(S2, torch.ones(2, 1, 3))),
    "image not square": (r"square.*rotations of CyclicGroup\(4\).*\(3, 9, 7\).*Pad", lambda: pe.image(C4, (3, 9, 7))),
    "mirrors, not square": (r"images that are square", lambda: pe.image(D4, (4, 5))),
    "image of one axis": (r"images that are square", lambda: pe.image(pe.CyclicGroup(2), (4,))),
    "image of C8": (r"90° rotations and mirrors.*got CyclicGroup\(8\)", lambda: pe.image(pe.CyclicGroup(8), (4, 4))),
    "image of S2": (r"90° rotations.*got SymmetricGroup\(2\)", lambda: pe.image(S2, (4, 4))),
    "image of a subgroup of S2": (r"90° rotations", lambda: pe.image(S2.subgroup([1]), (4, 4))),
    "tensor of another shape": (r"ends in the shape \(4,\).*got shape \(2, 3\)",
                                lambda: pe.regular(C4).act(1, torch.ones(2, 3))),
    "too few axes": (r"shape \(3, 3\)", lambda: pe.image(C4, (3, 3)).mean(torch.ones(3))),
    "orbit of another shape": (r"shape \(3, 3\)", lambda: pe.image(C4, (3, 3)).orbit(torch.ones(3, 2))),
    "no element": (r"between 0 and 3; got 4", lambda: pe.regular(C4).act(4, torch.ones(4))),
    "float element": (r"integer indices", lambda: pe.regular(C4).act(torch.tensor(1.0), torch.ones(4))),
    "sum of other shapes": (r"agree but for the first axis; got \(2, 3\) and \(2, 4\)",
                            lambda: pe.trivial(C4, (2, 3)) + pe.trivial(C4, (2, 4))),
    "sum of scalars": (r"agree but for the first axis", lambda: pe.trivial(C4, ()) + pe.trivial(C4, ())),
    "sum of other groups": (r"of one group; got CyclicGroup\(4\) and Sym", lambda: pe.regular(C4) + pe.regular(S2)),
    "product of other groups": (r"of one group", lambda: pe.regular(C4) * pe.regular(S2)),
    "reshape to another size": (r"shape of 4 entries .*got \(3,\)", lambda: pe.regular(C4).reshape(3)),
    "pullback along no homomorphism": (r"homomorphism from CyclicGroup\(4\) to SymmetricGroup\(2\)",
                                       lambda: pe.regular(S2).pullback(C4, torch.tensor([0, 1, 1, 0]))),
    "pullback out of range": (r"between 0 and 1", lambda: pe.regular(S2).pullback(C4, torch.arange(4))),
    "modulus of a rotation": (r"permutes and rescales", lambda: sheared_rotations().modulus()),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    message, call = BAD[case]
    with pytest.raises(SymmetryError, match=message):
        call()


def test_scaled_swap_is_monomial_but_not_orthogonal():
    rep = scaled_swap()
    assert rep.is_monomial and not rep.is_orthogonal and rep.dual != rep
    assert rep.act(1, torch.tensor([3.0, 5.0])).tolist() == [10.0, 1.5]


@pytest.mark.parametrize("rep", [pe.image(pe.CyclicGroup(4), (2, 3, 3)), pe.regular(pe.DihedralGroup(4)),
                                 pe.vector(pe.SignGroup())])  # fmt: skip
def test_an_empty_batch_has_an_orbit_and_a_mean(rep):
    nothing = torch.zeros(0, *rep.event_shape)
    assert rep.orbit(nothing).shape == (len(rep.group), 0, *rep.event_shape)
    assert rep.mean(nothing).shape == nothing.shape
