"""Rotations by any angle: the group and its uniform law, its finite subgroups, and how vectors and images move."""

import math
import pickle

import pytest
import torch
from catalogue import rotations
from torch.testing import assert_close

import pyro_equivariance as pe
from pyro_equivariance.errors import OptionError, SymmetryError
from pyro_equivariance.groups import OctahedralGroup
from pyro_equivariance.groups.continuous import SpecialOrthogonal
from pyro_equivariance.representations.continuous import homomorphism_error, interpolated_image, rotation

EXACT = {"atol": 1e-12, "rtol": 0}
SO2, SO3 = SpecialOrthogonal(2), SpecialOrthogonal(3)
C4, C8, D4 = pe.CyclicGroup(4), pe.CyclicGroup(8), pe.DihedralGroup(4)
DRAWS = 20_000


@pytest.fixture(params=[2, 3, 5])
def group(request):
    return SpecialOrthogonal(request.param)


def assert_mean(values, expected):
    """Within five standard errors, in every entry."""
    error = values.std(0) / len(values) ** 0.5
    assert ((values.mean(0) - expected).abs() <= 5 * error).all()


def blob(n, width=0.35):
    """A smooth bump off the centre, well inside the frame, whatever the number of pixels."""
    axis = (torch.arange(n) + 0.5) * (2 / n) - 1
    return torch.exp(-((axis[:, None] + 0.2) ** 2 + (axis - 0.1) ** 2) / width**2)


class TestGroup:
    def test_laws(self, group):
        a, b, c = group.sample((3, 10))
        assert_close(group.compose(group.compose(a, b), c), group.compose(a, group.compose(b, c)), **EXACT)
        assert_close(group.compose(group.inverse(a), a), group.identity.expand_as(a), **EXACT)
        assert torch.equal(group.compose(group.identity, a), a) and torch.equal(group.compose(a, group.identity), a)
        assert_close(torch.linalg.det(group.compose(a, b)), torch.ones(10), **EXACT)

    def test_broadcasts(self, group):
        a, b, n = group.sample((4, 1)), group.sample((3,)), group.n
        found = group.compose(a, b)
        assert found.shape == (4, 3, n, n) and torch.equal(found[2, 1], a[2, 0] @ b[1])
        assert group.sample().shape == group.identity.shape == (n, n) and group.compose(a[:0], b).shape == (0, 3, n, n)

    def test_rotation_turns_counter_clockwise(self):
        assert_close(SO2.rotation(math.pi / 2) @ torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), **EXACT)
        angles = torch.arange(8) * (math.pi / 4)
        assert_close(SO2.rotation(angles), rotations(8), **EXACT)
        about_first = SO3.rotation(0.3, (1, 2))
        assert_close(about_first[1:, 1:], SO2.rotation(0.3), **EXACT)
        assert about_first[0].tolist() == [1.0, 0.0, 0.0]

    def test_is_a_value(self, group):
        again = pickle.loads(pickle.dumps(group))
        assert again == group and hash(again) == hash(group) and repr(group) == f"SpecialOrthogonal({group.n})"
        assert group != SpecialOrthogonal(group.n + 1) and group != group.n and group and not group.is_finite

    def test_float32_elements_are_taken(self):
        g = SO3.sample((50,)).float()
        assert SO3.compose(g, g).dtype == torch.float32 and SO3.compose(g, SO3.identity).dtype == torch.float64


class TestHaar:
    def test_mean_matrix_is_zero(self, group):
        assert_mean(group.sample((DRAWS,)), 0.0)

    def test_angles_of_the_plane_are_uniform(self):
        g = SO2.sample((DRAWS,))
        angle = torch.atan2(g[:, 1, 0], g[:, 0, 0])[:, None] * torch.arange(1, 6)
        assert_mean(torch.cat([angle.cos(), angle.sin()], -1), 0.0)

    def test_angles_of_space_have_the_density_of_haar(self):
        """``(1 − cos θ)/π`` on ``[0, π]``: E θ = π/2 + 2/π, E cos θ = −1/2, and the trace has second moment 1."""
        trace = SO3.sample((DRAWS,)).diagonal(dim1=-2, dim2=-1).sum(-1)
        cosine = ((trace - 1) / 2).clamp(-1, 1)
        assert_mean(torch.stack([cosine.acos(), cosine, trace**2], -1),
                    torch.tensor([math.pi / 2 + 2 / math.pi, -0.5, 1.0]))  # fmt: skip

    def test_axes_are_uniform(self):
        """Axes that crowd at a pole would still pass for the angle."""
        g = SO3.sample((DRAWS,))
        axis = torch.stack([g[:, 2, 1] - g[:, 1, 2], g[:, 0, 2] - g[:, 2, 0], g[:, 1, 0] - g[:, 0, 1]], -1)
        axis = axis / axis.norm(dim=-1, keepdim=True)
        assert_mean(axis[:, :, None] * axis[:, None], torch.eye(3) / 3)

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_invariant(self, group, side):
        """The moments of an entry are those of the unit sphere before and after a fixed rotation."""
        g, fixed, n = group.sample((DRAWS,)), group.sample(), group.n
        moved = group.compose(fixed, g) if side == "left" else group.compose(g, fixed)
        for power, moment in enumerate([0, 1 / n, 0, 3 / (n * (n + 2))], 1):
            assert_mean(g**power, moment)
            assert_mean(moved**power, moment)


class TestSubgroups:
    PAIRS = {
        "C8": (SO2, C8),
        "C3 in C6": (SO2, pe.CyclicGroup(6).subgroup([2])),
        "C5 in space": (SO3, pe.CyclicGroup(5)),
        "cube": (SO3, OctahedralGroup()),
        "tetrahedron": (SO3, OctahedralGroup().subgroup(["r120[1, 1, 1]", "r180[1, 0, 0]"])),
    }

    @pytest.mark.parametrize("pair", PAIRS)
    def test_embedding_is_a_homomorphism(self, pair):
        group, subgroup = self.PAIRS[pair]
        a, b = subgroup.elements[:, None], subgroup.elements
        products = group.compose(group.embed(subgroup, a), group.embed(subgroup, b))
        assert_close(products, group.embed(subgroup, subgroup.compose(a, b)), **EXACT)
        assert len(group.embed(subgroup, b).round(decimals=9).unique(dim=0)) == len(subgroup)

    def test_by_name_and_by_number(self):
        assert SO2.subgroup(8) == C8 and SO3.subgroup(6) == pe.CyclicGroup(6)
        assert SO3.subgroup("octahedral") == OctahedralGroup()

    @pytest.mark.parametrize("m", [1, 2, 5, 8, 12])
    def test_covering_radius_of_turns(self, m):
        """The closed form, the search, and a fine grid of angles agree."""
        closed = SO2.covering_radius(pe.CyclicGroup(m))
        fine = SO2.rotation(torch.linspace(0, 2 * math.pi, 2881))
        gaps = torch.linalg.matrix_norm(fine[:, None] - rotations(m), ord=2)
        assert abs(closed - float(gaps.amin(1).max())) < 2e-3
        assert abs(closed - SO2.covering_radius(rotations(m))) < 1e-5

    def test_covering_radius_of_the_cube(self):
        """Mackenzie (1958): two cubes are at most 62.7994° from each other, cos(θ/2) = (2 + √2)/4."""
        found = SO3.covering_radius(SO3.subgroup("octahedral"))
        assert abs(found - 2 * math.sin(math.radians(62.7994) / 2)) < 1e-5
        assert abs(found - 2 * math.sin(math.acos((2 + 2**0.5) / 4))) < 1e-6
        assert found == SO3.covering_radius(SO3.subgroup("octahedral"))

    def test_covering_radius_of_the_tetrahedron_and_of_one_axis(self):
        """90° is left by the tetrahedron; turns about one axis leave the half turns that swap its ends."""
        assert abs(SO3.covering_radius(self.PAIRS["tetrahedron"][1]) - 2**0.5) < 1e-5
        assert abs(SO3.covering_radius(pe.CyclicGroup(5)) - 2) < 1e-5

    def test_covering_radius_bounds_every_rotation(self):
        g, cube = SO3.sample((2000,)), OctahedralGroup()
        gaps = torch.linalg.matrix_norm(g[:, None] - cube.matrices, ord=2).amin(1)
        assert 0.95 < gaps.max() / SO3.covering_radius(cube) <= 1


class TestRotation:
    def test_homomorphism(self, group):
        rep = rotation(group)
        a, b, x = group.sample((4, 1)), group.sample((3,)), torch.randn(group.n)
        assert_close(rep.act(a, rep.act(b, x)), rep.act(group.compose(a, b), x), **EXACT)
        assert homomorphism_error(rep, x) < 1e-12

    def test_act_is_the_matrix_product(self):
        rep, g, x = rotation(SO3), SO3.sample((5,)), torch.randn(2, 5, 3)
        loop = torch.stack([torch.stack([g[j] @ x[i, j] for j in range(5)]) for i in range(2)])
        assert_close(rep.act(g, x), loop, **EXACT)
        assert rep.act(g[:, None, None], x).shape == (5, 2, 5, 3)
        assert_close(rep.matrix(g), g, **EXACT)

    def test_agrees_with_the_vectors_of_a_finite_subgroup(self):
        x = torch.randn(6, 2)
        for k in range(8):
            assert_close(rotation(SO2).act(SO2.embed(C8, k), x), pe.vector(C8).act(k, x), **EXACT)
        cube, y = OctahedralGroup(), torch.randn(3)
        assert_close(rotation(SO3).act(cube.matrices, y), pe.vector(cube).orbit(y), **EXACT)

    def test_mean_is_the_limit_of_finite_means(self):
        x = torch.randn(4, 2)
        assert_close(rotation(SO2).mean(x), pe.vector(C8).mean(x), **EXACT)

    def test_is_a_value(self):
        rep = rotation(SO2)
        assert rep == rotation(SpecialOrthogonal(2)) == pickle.loads(pickle.dumps(rep)) != rotation(SO3)
        assert hash(rep) == hash(rotation(SO2)) and repr(rep) == "rotation(2)" and rep.dual is rep
        assert rep.is_orthogonal and rep.is_linear and not rep.is_monomial and not rep.is_approximate


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
class TestImage:
    @pytest.mark.parametrize("group", [C4, D4, D4.subgroup(["r180", "s"]), pe.CyclicGroup(2)], ids=repr)
    @pytest.mark.parametrize("n", [4, 7])
    def test_right_angles_are_exact(self, mode, group, n):
        x = torch.randn(3, 2, n, n)
        exact, found = pe.image(group, (2, n, n)), interpolated_image(group, (2, n, n), mode)
        assert_close(found.orbit(x), exact.orbit(x), **EXACT)
        assert_close(found.orbit(x.float()), exact.orbit(x.float()), atol=1e-5, rtol=0)

    def test_direction(self, mode):
        x = torch.randn(2, 6, 6)
        assert_close(interpolated_image(C4, (6, 6), mode).act(1, x), x.rot90(1, (-2, -1)), **EXACT)
        moved = interpolated_image(SO2, (6, 6), mode).act(SO2.rotation(math.pi / 2), x)
        assert_close(moved, x.rot90(1, (-2, -1)), **EXACT)

    def test_eighth_turn_moves_the_bump(self, mode):
        """The centre of mass, y up, turns by 45° about the middle."""
        x = blob(64)
        axis = (torch.arange(64) + 0.5) / 32 - 1

        def centre(image):  # noqa: E306
            return torch.stack([(image * axis).sum(), -(image * axis[:, None]).sum()]) / image.sum()

        moved = interpolated_image(C8, (64, 64), mode).act(1, x)
        assert_close(centre(moved), rotations(8)[1] @ centre(x), atol=1e-3, rtol=0)

    def test_finite_and_continuous_agree(self, mode):
        x = torch.randn(3, 2, 9, 9)
        finite, every = interpolated_image(C8, (2, 9, 9), mode), interpolated_image(SO2, (2, 9, 9), mode)
        assert_close(finite.orbit(x), every.act(rotations(8)[:, None], x), **EXACT)

    def test_zero_outside(self, mode):
        moved = interpolated_image(C8, (15, 15), mode).act(1, torch.ones(15, 15))
        assert moved[0, 0] == moved[14, 0] == 0 and abs(moved[7, 7] - 1) < 1e-12

    def test_mirrors_turn_first(self, mode):
        D8 = pe.DihedralGroup(8)
        x = torch.randn(9, 9)
        rep = interpolated_image(D8, (9, 9), mode)
        assert_close(rep.act(D8.index("s·r45"), x), rep.act(1, x).flip(-1), **EXACT)

    def test_batch_of_elements_is_the_loop(self, mode):
        rep, x = interpolated_image(SO2, (2, 5, 5), mode), torch.randn(3, 4, 2, 5, 5)
        g = SO2.sample((3, 4))
        loop = torch.stack([torch.stack([rep.act(g[i, j], x[i, j]) for j in range(4)]) for i in range(3)])
        assert_close(rep.act(g, x), loop, **EXACT)

    @pytest.mark.parametrize("shape, batch, expected", [
        ((), (), ()), ((), (5, 2), (5, 2)), ((4,), (), (4,)), ((8, 1), (3,), (8, 3)), ((3, 1, 2), (4, 1), (3, 4, 2)),
        ((1,), (4,), (4,)), ((0,), (1,), (0,)), ((4,), (2, 4), (2, 4)), ((2, 1, 1), (3, 4), (2, 3, 4)),
    ])  # fmt: skip
    @pytest.mark.parametrize("group", [SO2, D4], ids=repr)
    def test_broadcasting(self, mode, group, shape, batch, expected):
        rep, g, x = interpolated_image(group, (2, 5, 5), mode), group.sample(shape), torch.randn(*batch, 2, 5, 5)
        found = rep.act(g, x)
        assert found.shape == (*expected, 2, 5, 5)
        every_g = g.expand((*expected, *g.shape[len(shape) :]))
        assert_close(found, rep.act(every_g, x.expand_as(found)), **EXACT)

    def test_differentiable(self, mode):
        rep, angles = interpolated_image(SO2, (5, 5), mode), torch.tensor([0.3, 1.1])
        x = torch.randn(2, 5, 5, requires_grad=True)
        torch.autograd.gradcheck(lambda x: rep.act(SO2.rotation(angles), x), x)
        turn = angles.clone().requires_grad_()
        torch.autograd.gradcheck(lambda turn: rep.act(SO2.rotation(turn), x.detach()), turn)

    def test_linear(self, mode):
        rep, x, y = interpolated_image(C8, (6, 6), mode), torch.randn(6, 6), torch.randn(6, 6)
        assert_close(rep.act(1, 2 * x + y), 2 * rep.act(1, x) + rep.act(1, y), **EXACT)
        assert_close(rep.matrix(1) @ x.flatten(), rep.act(1, x).flatten(), **EXACT)
        g = SO2.sample((2, 3))
        assert_close(interpolated_image(SO2, (6, 6), mode).matrix(g) @ x.flatten(),
                     interpolated_image(SO2, (6, 6), mode).act(g, x).flatten(-2), **EXACT)  # fmt: skip

    def test_in_a_product(self, mode):
        """A kernel: its channels permuted, its last or first axes turned."""
        regular, image = pe.regular(C8), interpolated_image(C8, (3, 3), mode)
        x, g = torch.randn(5, 8, 3, 3), torch.randint(8, (5,))
        found = (regular * image).act(g, x)
        assert_close(found, regular.matrix(g)[..., None, None].mul(image.act(g[:, None], x)[:, None]).sum(2), **EXACT)
        assert_close((image * regular).act(g, x.movedim(1, -1)), found.movedim(1, -1), **EXACT)
        assert_close((image * regular).act(3, x.movedim(1, -1)), (regular * image).act(3, x).movedim(1, -1), **EXACT)

    def test_dtypes_and_integers(self, mode):
        rep = interpolated_image(C8, (4, 4), mode)
        assert rep.act(1, torch.randn(4, 4).float()).dtype == torch.float32
        assert_close(rep.act(1, torch.eye(4).long()), rep.act(1, torch.eye(4)), **EXACT)

    def test_is_a_value(self, mode):
        rep = interpolated_image(SO2, (1, 4, 4), mode)
        assert rep == interpolated_image(SO2, (1, 4, 4), mode) == pickle.loads(pickle.dumps(rep))
        assert rep != interpolated_image(C8, (1, 4, 4), mode) and rep != interpolated_image(SO2, (4, 4), mode)
        assert hash(rep) == hash(interpolated_image(SO2, (1, 4, 4), mode))
        assert rep.is_approximate and rep.is_linear
        assert not (rep.is_permutation or rep.is_monomial or rep.is_orthogonal)


def test_modes_differ():
    assert interpolated_image(C8, (4, 4)) != interpolated_image(C8, (4, 4), "bicubic")


class TestHomomorphismError:
    def test_zero_for_exact_representations(self):
        assert homomorphism_error(pe.image(D4, (2, 5, 5)), torch.randn(3, 2, 5, 5)) == 0.0
        assert homomorphism_error(interpolated_image(C4, (5, 5)), torch.randn(5, 5)) < 1e-12
        assert homomorphism_error(pe.regular(C4), torch.zeros(4)) == 0.0

    def test_is_the_largest_over_pairs_and_batch(self):
        rep, x = interpolated_image(C8, (5, 5)), torch.randn(3, 5, 5)
        worst = max(
            float((rep.act(a, rep.act(b, image)) - rep.act((a + b) % 8, image)).norm() / image.norm())
            for a in range(8)
            for b in range(8)
            for image in x
        )
        assert abs(homomorphism_error(rep, x) - worst) < 1e-12

    @pytest.mark.parametrize("group", [C8, SO2], ids=repr)
    @pytest.mark.parametrize("mode, rate", [("bilinear", 3.3), ("bicubic", 1.7)])
    def test_falls_with_size_and_smoothness(self, group, mode, rate):
        """C8 on a bump of 16, 32 and 64 pixels: 0.058, 0.015 and 0.0042 bilinear (second order), 0.025, 0.013 and
        0.0062 bicubic (first order: Torch's kernel has a = -0.75, and only -0.5 follows slopes); on noise 0.5 to 0.7.
        """

        def error(n, x):
            torch.manual_seed(0)  # the same elements for each size
            return homomorphism_error(interpolated_image(group, (n, n), mode), x)

        errors = [error(n, blob(n)) for n in (16, 32, 64)]
        noise = [error(n, torch.randn(n, n)) for n in (16, 64)]
        assert 0.003 < errors[2] < errors[1] / rate < errors[0] / rate**2 < 0.06 / rate**2
        assert min(noise) > 0.4 and max(noise) < 1


BAD = {
    "half a dimension": (r"dimension n of SpecialOrthogonal .* positive integer; got 2\.5",
                         lambda: SpecialOrthogonal(2.5)),
    "one dimension": (r"n at least 2; got 1", lambda: SpecialOrthogonal(1)),
    "length": (r"finite group; SpecialOrthogonal\(2\) is continuous and has no list.*subgroup\(8\)", lambda: len(SO2)),
    "elements": (r'no list of elements.*SpecialOrthogonal\(3\)\.subgroup\("octahedral"\)', lambda: SO3.elements),
    "names": (r"no list of elements", lambda: SO2.names),
    "order": (r"no list of elements", lambda: SO2.order),
    "generators": (r"no list of elements", lambda: SO2.generators),
    "table": (r"no list of elements", lambda: SO2.table),
    "transversals": (r"SpecialOrthogonal\(5\)\.subgroup\(4\)", lambda: SpecialOrthogonal(5).transversals),
    "index": (r"matrices \(\.\.\., 2, 2\); got shape \(\)", lambda: SO2.compose(1, SO2.identity)),
    "angles": (r"matrices \(\.\.\., 2, 2\); got shape \(5,\)", lambda: SO2.inverse(torch.rand(5))),
    "other dimension": (r"matrices \(\.\.\., 3, 3\); got shape \(4, 2, 2\)", lambda: SO3.inverse(SO2.sample((4,)))),
    "scaled": (r"orthogonal matrices; .* off 1 by 3", lambda: SO2.inverse(2 * SO2.identity)),
    "nan": (r"off 1 by nan", lambda: SO2.inverse(math.nan * SO2.identity)),
    "integers, not orthogonal": (r"orthogonal", lambda: SO2.inverse(torch.ones(2, 2).long())),
    "reflection": (r"determinant 1; got a reflection", lambda: SO2.inverse(torch.diag(torch.tensor([-1.0, 1.0])))),
    "subgroup of another name": (r"'octahedral' for .*; got 'icosahedral'", lambda: SO3.subgroup("icosahedral")),
    "cube in the plane": (r"got 'octahedral' for SpecialOrthogonal\(2\)", lambda: SO2.subgroup("octahedral")),
    "no rotations": (r"positive integer; got 0", lambda: SO2.subgroup(0)),
    "embedding mirrors": (r"finite subgroup of SpecialOrthogonal\(2\).*DihedralGroup\(4\)", lambda: SO2.embed(D4, 1)),
    "embedding the cube in the plane": (r"finite subgroup", lambda: SO2.embed(OctahedralGroup(), 1)),
    "embedding inversions": (r"finite subgroup", lambda: SO3.embed(OctahedralGroup(reflections=True), 1)),
    "embedding out of range": (r"between 0 and 7; got 8", lambda: SO2.embed(C8, 8)),
    "covering in five dimensions": (r"two or three dimensions", lambda: SpecialOrthogonal(5).covering_radius(C8)),
    "covering by reflections": (r"reflection", lambda: SO2.covering_radius(rotations(4, mirrored=True))),
    "rotation of a finite group": (r"SpecialOrthogonal\(n\).*got CyclicGroup\(8\)\. Use pe\.vector",
                                   lambda: rotation(C8)),
    "vectors of another length": (r"shape \(3,\)", lambda: rotation(SO3).act(SO3.identity, torch.ones(2))),
    "orbit": (r"no list of elements", lambda: rotation(SO2).orbit(torch.ones(2))),
    "modulus": (r"permutes and rescales", lambda: rotation(SO2).modulus()),
    "mode": (r"mode to be one of 'bilinear', 'bicubic'; got 'nearest'",
             lambda: interpolated_image(C8, (4, 4), "nearest")),
    "not square": (r"square.*got \(3, 4, 5\)\. Pad", lambda: interpolated_image(C8, (3, 4, 5))),
    "one axis": (r"square", lambda: interpolated_image(SO2, (4,))),
    "rotations of space": (r"Affine\(2\), for images; got SpecialOrthogonal\(3\)",
                           lambda: interpolated_image(SO3, (4, 4))),
    "image of S3": (r"cyclic or a dihedral .*got SymmetricGroup\(3\)",
                    lambda: interpolated_image(pe.SymmetricGroup(3), (4, 4))),
    "image orbit": (r"no list of elements", lambda: interpolated_image(SO2, (4, 4)).orbit(torch.ones(4, 4))),
    "image mean": (r"exact representation for a mean.*of CyclicGroup\(8\) interpolates\. Use pe\.image",
                   lambda: interpolated_image(C8, (4, 4)).mean(torch.ones(4, 4))),
    "continuous image mean": (r"exact representation", lambda: interpolated_image(SO2, (4, 4)).mean(torch.ones(4, 4))),
    "image dual": (r"exact representation for a dual", lambda: interpolated_image(C8, (4, 4)).dual),
    "image modulus": (r"permutes and rescales", lambda: interpolated_image(C8, (4, 4)).modulus()),
    "image of another shape": (r"shape \(4, 4\)", lambda: interpolated_image(C8, (4, 4)).act(1, torch.ones(4, 5))),
    "image moved by a matrix": (r"integer indices",
                                lambda: interpolated_image(C8, (4, 4)).act(SO2.identity, torch.ones(4, 4))),
    "image moved by an index": (r"matrices", lambda: interpolated_image(SO2, (4, 4)).act(1, torch.ones(4, 4))),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    message, call = BAD[case]
    with pytest.raises(SymmetryError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_modes_are_options():
    with pytest.raises(OptionError):
        interpolated_image(SO2, (4, 4), mode="area")
