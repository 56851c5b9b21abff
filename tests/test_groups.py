"""The axioms on every group of the catalogue, and each group against an independent account of it."""

import itertools
import math
import pickle

import pytest
import torch
from catalogue import GROUPS, KLEIN

import pyro_equivariance as pe
from pyro_equivariance.errors import SymmetryError
from pyro_equivariance.groups.permutations import cycles, rank, unrank

FAILURE_RATE = 2e-5  # of a sampling test


@pytest.fixture(params=GROUPS)
def name(request):
    return request.param


@pytest.fixture
def group(name):
    return GROUPS[name]()


def products(group, *factors):
    """The product of lists of elements, every combination."""
    total = torch.zeros((), dtype=torch.long)
    for factor in factors:
        total = group.compose(total[..., None], torch.as_tensor(factor))
    return total


class TestLaws:
    def test_associative(self, group):
        a, b, c = group.elements[:, None, None], group.elements[:, None], group.elements
        assert torch.equal(group.compose(group.compose(a, b), c), group.compose(a, group.compose(b, c)))

    def test_identity_first(self, group):
        assert torch.equal(group.compose(0, group.elements), group.elements)
        assert torch.equal(group.compose(group.elements, 0), group.elements)

    def test_inverses(self, group):
        inverse = group.inverse(group.elements)
        assert not group.compose(inverse, group.elements).any() and not group.compose(group.elements, inverse).any()

    def test_table_is_a_latin_square(self, group):
        expected = group.elements.expand(len(group), len(group))
        assert torch.equal(group.table.sort(0).values.mT, expected)
        assert torch.equal(group.table.sort(1).values, expected)
        table = group.table
        assert all(table[a, b] == group.compose(a, b) for a in range(len(group)) for b in range(len(group)))

    def test_elements_and_order(self, group):
        assert group.elements.tolist() == list(range(len(group))) and len(group) == group.order

    def test_generators_generate(self, group):
        reached, previous = {0}, set()
        while reached != previous:
            previous = reached
            reached = reached | {int(group.compose(s, g)) for s in group.generators for g in reached}
        assert reached == set(range(len(group))) and 0 not in group.generators

    def test_names(self, group):
        assert group.names[0] == "e" and len(set(group.names)) == len(group)
        assert [group.index(text) for text in group.names] == group.elements.tolist()

    def test_transversals_factorize_uniquely(self, group):
        found = products(group, *reversed(group.transversals)).flatten().sort().values
        assert torch.equal(found, group.elements)

    def test_compose_broadcasts(self, group):
        a, b = group.sample((3, 1, 2)), group.sample((4, 1))
        found = group.compose(a, b)
        assert found.shape == (3, 4, 2)
        for i, j, k in itertools.product(range(3), range(4), range(2)):
            assert found[i, j, k] == group.compose(int(a[i, 0, k]), int(b[j, 0]))
        assert group.inverse(a).shape == a.shape and group.compose(0, 0).shape == ()
        assert group.compose(a[:0], 0).shape == (0, 1, 2)

    def test_sample_is_uniform(self, group):
        draws = 400 * len(group)
        counts = torch.bincount(group.sample((draws // 4, 4)).flatten(), minlength=len(group))
        chi2 = ((counts - 400) ** 2 / 400).sum()
        freedom = torch.tensor(max(len(group) - 1, 1) / 2)
        assert len(counts) == len(group)
        assert torch.special.gammaincc(freedom, chi2 / 2) > FAILURE_RATE

    def test_is_a_value(self, name, group):
        again = GROUPS[name]()
        assert again == group and hash(again) == hash(group) and repr(again) == repr(group)
        assert [other for other in GROUPS if GROUPS[other]() == group] == [name]

    def test_pickles(self, group):
        copy = pickle.loads(pickle.dumps(group))
        assert copy == group and copy.names == group.names and torch.equal(copy.table, group.table)

    @pytest.mark.parametrize("first", [True, False])
    def test_products_compose_by_components(self, group, first):
        left, right = (group, pe.SignGroup()) if first else (pe.SignGroup(), group)
        product = left * right
        g, h = product.split(product.elements)
        assert torch.equal(g * len(right) + h, product.elements)
        both = product.split(product.compose(product.elements[:, None], product.elements))
        assert torch.equal(both[0], left.compose(g[:, None], g))
        assert torch.equal(both[1], right.compose(h[:, None], h))


class TestNames:
    def test_rotations(self):
        assert pe.CyclicGroup(4).names == ("e", "r90", "r180", "r270")
        assert pe.CyclicGroup(7).names[1] == "r51.4286"

    def test_rotations_and_mirrors(self):
        assert pe.DihedralGroup(4).names == ("e", "r90", "r180", "r270", "s", "s·r90", "s·r180", "s·r270")

    def test_products(self):
        assert (pe.CyclicGroup(2) * pe.SignGroup()).names == ("e", "(e, -1)", "(r180, e)", "(r180, -1)")

    def test_permutations(self):
        assert pe.SymmetricGroup(3).names == ("e", "(1 2)", "(0 1)", "(0 1 2)", "(0 2 1)", "(0 2)")
        assert cycles((2, 0, 1, 4, 3)) == "(0 2 1)(3 4)"


class TestTables:
    @pytest.mark.parametrize("n", [1, 2, 4, 5])
    def test_dihedral_against_matrices(self, n):
        """Turn by angle, then mirror, multiplied as 2 × 2 matrices."""

        def motion(g):
            angle = 2 * math.pi * (g % n) / n
            turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
            return torch.diag(torch.tensor([-1.0 if g >= n else 1.0, 1.0])) @ torch.tensor(turn)

        group = pe.DihedralGroup(n)
        for a, b in itertools.product(range(2 * n), repeat=2):
            torch.testing.assert_close(motion(int(group.compose(a, b))), motion(a) @ motion(b), atol=1e-12, rtol=0)

    def test_cyclic_adds(self):
        assert pe.CyclicGroup(6).compose(4, 5) == 3 and pe.CyclicGroup(6).inverse(2) == 4

    def test_symmetric_against_itertools(self):
        group, listed = pe.SymmetricGroup(4), list(itertools.permutations(range(4)))
        assert [tuple(p) for p in group.permutations(group.elements).tolist()] == listed
        for a, b in itertools.product(range(24), repeat=2):
            assert listed[group.compose(a, b)] == tuple(listed[a][listed[b][i]] for i in range(4))

    def test_symmetric_of_twenty_needs_no_table(self):
        group = pe.SymmetricGroup(20)
        a = group.sample((50,))
        assert len(group) == math.factorial(20) and not group.compose(a, group.inverse(a)).any()
        p, q = group.permutations(a), group.permutations(a.flip(0))
        assert torch.equal(group.permutations(group.compose(a, a.flip(0))), p.gather(-1, q))

    def test_permutation_group_keeps_a_complete_list(self):
        group = pe.PermutationGroup(KLEIN)
        assert [tuple(p) for p in group.permutations(group.elements).tolist()] == KLEIN
        assert group != pe.PermutationGroup([KLEIN[0], *KLEIN[:0:-1]])

    def test_permutation_group_from_generators(self):
        group = pe.PermutationGroup([(1, 2, 0, 3), (1, 0, 3, 2)])
        even = [p for p in itertools.permutations(range(4)) if math.prod(
            1 if p[j] > p[i] else -1 for i in range(4) for j in range(i + 1, 4)) == 1]  # fmt: skip
        assert sorted(map(tuple, group.permutations(group.elements).tolist())) == sorted(even)
        assert group.permutations(torch.tensor(group.generators)).tolist() == [[1, 2, 0, 3], [1, 0, 3, 2]]

    def test_repeated_rows_are_generators(self):
        assert len(pe.PermutationGroup([(0, 1), (1, 0), (1, 0)])) == 2


class TestSignedPermutations:
    def test_against_matrices(self):
        """A signed permutation is the matrix with ``s[i]`` in row ``p[i]`` of column ``i``."""
        group = pe.SignedPermutationGroup(3)

        def matrix(g):
            found = torch.zeros(3, 3)
            for i, (place, sign) in enumerate(zip(group.permutations(g), group.signs(g), strict=True)):
                found[place, i] = sign
            return found

        for a, b in itertools.product(range(0, 48, 5), range(48)):
            assert torch.equal(matrix(group.compose(a, b)), matrix(a) @ matrix(b))
        assert len({tuple(matrix(g).flatten().tolist()) for g in range(48)}) == 48

    def test_index(self):
        group = pe.SignedPermutationGroup(3)
        g = group.elements.reshape(6, 8)
        assert torch.equal(group.permutations(g[:, 0]), pe.SymmetricGroup(3).permutations(torch.arange(6)))
        assert group.signs(6).tolist() == [1, -1, -1] and group.signs(g).shape == (6, 8, 3)
        assert group.names[6] == "-1·-2" and group.index("(0 1)·-2") == 2 * 8 + 4

    def test_names_read_from_the_right(self):
        group = pe.SignedPermutationGroup(3)
        for name in ("(0 1)·-0", "(0 2 1)·-0·-2"):
            product = 0
            for part in reversed(name.split("·")):
                product = int(group.compose(group.index(part), product))
            assert group.names[product] == name

    def test_three_axes_are_the_symmetries_of_the_cube(self):
        counts = [orders(group) for group in (pe.SignedPermutationGroup(3), pe.OctahedralGroup(reflections=True))]
        assert counts[0] == counts[1] != orders(pe.CyclicGroup(2) * pe.SymmetricGroup(4).subgroup([1, 2]))

    def test_sixteen_need_no_table(self):
        group = pe.SignedPermutationGroup(16)
        a, b = group.sample((50,)), group.sample((50,))
        assert len(group) == 2**16 * math.factorial(16) and not group.compose(a, group.inverse(a)).any()
        assert torch.equal(
            group.signs(group.compose(a, b)), group.signs(b) * group.signs(a).gather(-1, group.permutations(b))
        )


def orders(group):
    """How many elements there are of each order."""
    power, order = group.elements, torch.ones(len(group), dtype=torch.long)
    while power.any():
        order += power != 0
        power = torch.where(power != 0, group.compose(power, group.elements), power)
    return order.bincount().tolist()


class TestLattices:
    def test_full_symmetry_of_the_cube(self):
        group = pe.LatticeGroup(pe.OctahedralGroup(reflections=True), (4, 4, 4))
        a, b = group.sample((200,)), group.sample((200,))
        assert len(group) == 64 * 48 and not group.compose(group.inverse(a), a).any()
        moved = group.permutations(b).gather(-1, group.permutations(a))  # first a, then b
        assert torch.equal(group.permutations(group.compose(b, a)), moved)

    def test_names(self):
        names = pe.LatticeGroup(pe.CyclicGroup(2), (2, 3)).names
        assert names[:4] == ("e", "r180", "t(0, 1)", "t(0, 1)·r180") and names[-1] == "t(1, 2)·r180"
        assert pe.LatticeGroup(pe.DihedralGroup(1), 3).names == ("e", "s", "t(1)", "t(1)·s", "t(2)", "t(2)·s")

    def test_split(self):
        group = pe.LatticeGroup(pe.DihedralGroup(2), (3, 5))
        translation, turn = group.split(group.elements.reshape(15, 4))
        assert torch.equal(translation[:, 2], torch.cartesian_prod(torch.arange(3), torch.arange(5)))
        assert torch.equal(turn, torch.arange(4).expand(15, 4))

    def test_no_point_group_is_the_trivial_one(self):
        assert (
            pe.LatticeGroup(None, (2, 3)) == pe.LatticeGroup(pe.CyclicGroup(1), [2, 3]) != pe.LatticeGroup(None, (3, 2))
        )


class TestSubgroups:
    SUBGROUPS = [name for name in GROUPS if " in " in name]

    @pytest.mark.parametrize("name", SUBGROUPS)
    def test_closed_and_included_by_a_homomorphism(self, name):
        group = GROUPS[name]()
        a, b = group.elements[:, None], group.elements
        inside = group.parent.compose(group.inclusion[a], group.inclusion[b])
        assert torch.equal(group.inclusion[group.compose(a, b)], inside)
        assert torch.equal(group.inclusion, group.inclusion.unique()) and group.inclusion[0] == 0
        assert group.names == tuple(group.parent.names[g] for g in group.inclusion)

    def test_generated_by_names_or_indices(self):
        D4 = pe.DihedralGroup(4)
        group = D4.subgroup(["r180", "s"])
        assert group.names == ("e", "r180", "s", "s·r180")
        assert group == D4.subgroup([2, 4]) == D4.subgroup([0, 6, torch.tensor(4), 4]) != D4.subgroup([2, 5])
        assert len(pe.SymmetricGroup(4).subgroup(["(0 1 2)", "(0 1)(2 3)"])) == 12
        assert len(D4.subgroup(D4.generators)) == 8
        assert D4.subgroup([0, "r180"]).generators == (1,)


class TestYoungSubgroup:
    """Against the list of all permutations, and the product of two symmetric groups."""

    GROUP = pe.YoungSubgroup((2, 3))
    EVERY = torch.tensor([p for p in itertools.permutations(range(5)) if set(p[:2]) == {0, 1}])

    def test_laws(self):
        a, b, c = self.EVERY[:, None, None], self.EVERY[:, None], self.EVERY
        compose = self.GROUP.compose
        assert torch.equal(compose(compose(a, b), c), compose(a, compose(b, c)))
        assert torch.equal(compose(self.GROUP.identity, c), c) and torch.equal(compose(c, self.GROUP.identity), c)
        assert torch.equal(compose(self.GROUP.inverse(c), c), self.GROUP.identity.expand_as(c))

    def test_composes_first_b_then_a(self):
        for p, q in itertools.product(self.EVERY, repeat=2):
            assert self.GROUP.compose(p, q).tolist() == [int(p[q[i]]) for i in range(5)]

    def test_against_a_product_of_symmetric_groups(self):
        S2, S3 = pe.SymmetricGroup(2), pe.SymmetricGroup(3)
        product = S2 * S3
        g, h = product.split(product.elements)
        rows = torch.cat([S2.permutations(g), S3.permutations(h) + 2], -1)
        assert sorted(rows.tolist()) == sorted(self.EVERY.tolist())
        assert torch.equal(self.GROUP.compose(rows[:, None], rows), rows[product.table])
        assert torch.equal(self.GROUP.inverse(rows), rows[product.inverse(product.elements)])

    def test_order(self):
        assert self.GROUP.order == len(self.GROUP) == len(self.EVERY) == 12
        large = pe.YoungSubgroup((32, 32))
        assert large.order == math.factorial(32) ** 2 and large
        with pytest.raises(SymmetryError, match=r"order fits len\(\); that of YoungSubgroup\(\(32, 32\)\) .*\.order"):
            len(large)

    def test_generators_generate(self):
        reached, previous = {tuple(range(5))}, set()
        while reached != previous:
            previous = reached
            products = (self.GROUP.compose(s, list(g)) for s in self.GROUP.generators for g in reached)
            reached = reached | {tuple(p.tolist()) for p in products}
        assert reached == set(map(tuple, self.EVERY.tolist())) and len(self.GROUP.generators) == 3

    def test_transversals_factorize_uniquely(self):
        total = self.GROUP.identity
        for coset in self.GROUP.transversals:
            total = self.GROUP.compose(torch.stack(coset)[:, None], total).reshape(-1, 5)
        assert sorted(total.tolist()) == sorted(self.EVERY.tolist())
        assert all(torch.equal(coset[0], self.GROUP.identity) for coset in self.GROUP.transversals)

    def test_sample_is_uniform(self):
        torch.manual_seed(1)
        draws = self.GROUP.sample((1200, 4)).reshape(-1, 5)
        counts = (draws[:, None] == self.EVERY).all(-1).sum(0)
        chi2 = ((counts - 400) ** 2 / 400).sum()
        assert counts.sum() == 4800 and torch.special.gammaincc(torch.tensor(5.5), chi2 / 2) > FAILURE_RATE

    def test_shapes(self):
        a, b = self.GROUP.sample((3, 1)), self.GROUP.sample((4,))
        assert self.GROUP.compose(a, b).shape == (3, 4, 5) and self.GROUP.inverse(a).shape == (3, 1, 5)
        assert self.GROUP.sample().shape == (5,) and self.GROUP.compose(a[:0], b).shape == (0, 4, 5)
        assert torch.equal(self.GROUP.permutations(b), b)

    def test_is_a_value(self):
        again = pickle.loads(pickle.dumps(self.GROUP))
        assert again == self.GROUP and hash(again) == hash(self.GROUP) and repr(again) == "YoungSubgroup((2, 3))"
        assert self.GROUP != pe.YoungSubgroup((3, 2)) and pe.YoungSubgroup(3) == pe.YoungSubgroup([3])

    def test_which_groups_are_indexed(self):
        assert self.GROUP.is_finite and not self.GROUP.is_indexed
        assert not pe.SpecialOrthogonal(2).is_finite and not pe.SpecialOrthogonal(2).is_indexed
        assert all(make().is_finite and make().is_indexed for make in GROUPS.values())

    @pytest.mark.parametrize("name", ["elements", "names", "table"])
    def test_there_is_no_list(self, name):
        with pytest.raises(SymmetryError, match=r"lists its elements; those of YoungSubgroup.*group\.sample\(shape\)"):
            getattr(self.GROUP, name)


class TestLehmerCode:
    @pytest.mark.parametrize("n", [1, 2, 5])
    def test_rank_is_the_lexicographic_position(self, n):
        listed = torch.tensor(list(itertools.permutations(range(n))))
        assert torch.equal(rank(listed), torch.arange(math.factorial(n)))
        assert torch.equal(unrank(torch.arange(math.factorial(n)), n), listed)

    def test_round_trip_in_batches(self):
        index = torch.randint(math.factorial(20), (2, 3, 4))
        assert torch.equal(rank(unrank(index, 20)), index)
        shuffled = torch.rand(2, 5, 20).argsort(-1)
        assert torch.equal(unrank(rank(shuffled), 20), shuffled)


def test_a_large_table_is_refused():
    with pytest.raises(SymmetryError, match=r"at most 2048 .* has 5040.*compose"):
        _ = pe.SymmetricGroup(7).table


@pytest.mark.parametrize("group, actions", [
    (pe.CyclicGroup(4), 2), (pe.DihedralGroup(4), 3), (pe.SymmetricGroup(6), 15),
    (pe.SignedPermutationGroup(4), 4 + 6), (pe.LatticeGroup(pe.DihedralGroup(4), (8, 8)), 3 + 3 + 3),
    (pe.SymmetricGroup(4) * pe.SignGroup(), 6 + 1),
], ids=repr)  # fmt: skip
def test_transversals_are_short(group, actions):
    assert sum(len(t) - 1 for t in group.transversals) == actions
    assert math.prod(len(t) for t in group.transversals) == len(group)


def test_equal_orders_are_not_equal_groups():
    groups = [pe.CyclicGroup(2), pe.SignGroup(), pe.DihedralGroup(1), pe.SymmetricGroup(2)]
    assert len(set(groups)) == 4
    assert pe.CyclicGroup(4) != 4 and pe.CyclicGroup(2) * pe.SignGroup() != pe.SignGroup() * pe.CyclicGroup(2)


C4 = pe.CyclicGroup(4)
BAD = {
    "no rotations": (r"order n of CyclicGroup .* positive integer; got 0", lambda: pe.CyclicGroup(0)),
    "half a rotation": (r"positive integer; got 2\.5", lambda: pe.CyclicGroup(2.5)),
    "endless": (r"positive integer; got inf", lambda: pe.DihedralGroup(math.inf)),
    "true": (r"positive integer; got True", lambda: pe.DihedralGroup(True)),
    "a word": (r"positive integer; got 'four'", lambda: pe.CyclicGroup("four")),
    "nothing": (r"positive integer; got None", lambda: pe.SymmetricGroup(None)),
    "less than no things": (r"positive integer; got -1", lambda: pe.SymmetricGroup(-1)),
    "too many things": (r"at most 20 .*; got 21", lambda: pe.SymmetricGroup(21)),
    "too many signed things": (r"at most 16 .*; got 17", lambda: pe.SignedPermutationGroup(17)),
    "no signed things": (r"positive integer; got 0", lambda: pe.SignedPermutationGroup(0)),
    "a product too large": (r"order fits an index", lambda: pe.SymmetricGroup(20) * pe.CyclicGroup(4)),
    "lattice of four axes": (
        r"one, two or three axes; got shape \(2, 2, 2, 2\)",
        lambda: pe.LatticeGroup(None, (2, 2, 2, 2)),
    ),
    "lattice of no axes": (r"one, two or three axes; got shape \(\)", lambda: pe.LatticeGroup(None, ())),
    "lattice without sites": (r"each axis .* positive integer; got 0", lambda: pe.LatticeGroup(None, (2, 0))),
    "lattice not square": (
        r"equal length, where CyclicGroup\(4\) exchanges them; got \(2, 3\)",
        lambda: pe.LatticeGroup(C4, (2, 3)),
    ),
    "lattice not a cube": (r"equal length.*got \(2, 2, 3\)", lambda: pe.LatticeGroup(pe.OctahedralGroup(), (2, 2, 3))),
    "lattice with turns by 60": (
        r"2 axes None, CyclicGroup\(n\) .*; got CyclicGroup\(6\)",
        lambda: pe.LatticeGroup(pe.CyclicGroup(6), (6, 6)),
    ),
    "lattice of one axis turned": (
        r"1 axes None, DihedralGroup\(1\).*got CyclicGroup\(2\)",
        lambda: pe.LatticeGroup(pe.CyclicGroup(2), 4),
    ),
    "cube in the plane": (
        r"3 axes None, OctahedralGroup\(\).*got DihedralGroup\(4\)",
        lambda: pe.LatticeGroup(pe.DihedralGroup(4), (4, 4, 4)),
    ),
    "no permutations": (r"at least one permutation", lambda: pe.PermutationGroup([])),
    "not a permutation": (r"permutation of 0 \.\. 2; got \(0, 2, 2\)", lambda: pe.PermutationGroup([(0, 2, 2)])),
    "permutation of 1 .. n": (r"permutation of 0 \.\. 1", lambda: pe.PermutationGroup([(1, 2)])),
    "permutation of floats": (r"permutation of 0 \.\. 1", lambda: pe.PermutationGroup([(1.0, 0.0)])),
    "index too large": (r"CyclicGroup\(4\) between 0 and 3; got 0 to 4", lambda: C4.compose([0, 4], 1)),
    "negative index": (r"between 0 and 3; got -1", lambda: C4.inverse(-1)),
    "float index": (r"integer indices; got dtype torch.float64", lambda: C4.compose(0, torch.tensor(1.0))),
    "bool index": (r"integer indices; got dtype torch.bool", lambda: C4.compose(True, 1)),
    "unknown name": (r"name of an element .*; got 'r45'.*'r90'", lambda: C4.subgroup(["r45"])),
    "unknown element": (r"between 0 and 3", lambda: C4.subgroup([5])),
    "no blocks": (r"at least one size for YoungSubgroup", lambda: pe.YoungSubgroup(())),
    "an empty block": (r"sizes of YoungSubgroup .* positive integer; got 0", lambda: pe.YoungSubgroup((2, 0))),
    "another block": (
        r"block of YoungSubgroup\(\(2,\)\) between 0 and 0; got 1",
        lambda: pe.YoungSubgroup(2).slice_of(1),
    ),
    "permutations as floats": (r"integer permutations; got dtype", lambda: pe.YoungSubgroup(2).inverse([1.0, 0.0])),
    "an index as permutation": (r"permutations \(\.\.\., 2\); got shape \(\)", lambda: pe.YoungSubgroup(2).inverse(1)),
    "too long a permutation": (r"got shape \(3,\)", lambda: pe.YoungSubgroup(2).inverse([0, 1, 2])),
    "twice the same place": (
        r"permutations of 0 \.\. 2; got \[0, 1, 1\]",
        lambda: pe.YoungSubgroup((2, 1)).inverse([[0, 1, 2], [0, 1, 1]]),
    ),
    "across blocks": (r"keep its blocks; got \[0, 2, 1\]", lambda: pe.YoungSubgroup((2, 1)).inverse([0, 2, 1])),
    "a product of it": (r"numbered, for a product; got YoungSubgroup", lambda: pe.YoungSubgroup(2) * pe.SignGroup()),
    "a product with it": (r"numbered, for a product; got SignGroup", lambda: pe.SignGroup() * pe.YoungSubgroup(2)),
    "split out of range": (r"between 0 and 7", lambda: (C4 * pe.SignGroup()).split(8)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    message, call = BAD[case]
    with pytest.raises(SymmetryError, match=message):
        call()
