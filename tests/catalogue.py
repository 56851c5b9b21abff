"""Named constructors: each law is tested once, on all of them. Nothing is built before a test calls it."""

import math
from dataclasses import dataclass

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import transforms
from torch import nn

import pyro_equivariance as pe
from pyro_equivariance.representations import Composed, Factor, NaturalPermutation

# Groups

KLEIN = [(0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2), (2, 3, 0, 1)]

GROUPS = {
    "C1": lambda: pe.CyclicGroup(1),
    "C2": lambda: pe.CyclicGroup(2),
    "C4": lambda: pe.CyclicGroup(4),
    "C6": lambda: pe.CyclicGroup(6),
    "D1": lambda: pe.DihedralGroup(1),
    "D2": lambda: pe.DihedralGroup(2),
    "D4": lambda: pe.DihedralGroup(4),
    "D5": lambda: pe.DihedralGroup(5),
    "S1": lambda: pe.SymmetricGroup(1),
    "S3": lambda: pe.SymmetricGroup(3),
    "S4": lambda: pe.SymmetricGroup(4),
    "signs": pe.SignGroup,
    "signed permutations of 2": lambda: pe.SignedPermutationGroup(2),
    "signed permutations of 3": lambda: pe.SignedPermutationGroup(3),
    "lattice of one axis": lambda: pe.LatticeGroup(pe.DihedralGroup(1), 4),
    "lattice, translations": lambda: pe.LatticeGroup(None, (1, 2, 3)),
    "lattice, C2": lambda: pe.LatticeGroup(pe.CyclicGroup(2), (2, 3)),
    "lattice, D4": lambda: pe.LatticeGroup(pe.DihedralGroup(4), (3, 3)),
    "lattice, C4 of the cube": lambda: pe.LatticeGroup(pe.OctahedralGroup().subgroup([1]), (2, 2, 2)),
    "A4 from generators": lambda: pe.PermutationGroup([(1, 2, 0, 3), (1, 0, 3, 2)]),
    "Klein's from a complete list": lambda: pe.PermutationGroup(KLEIN),
    "C2 x S3": lambda: pe.CyclicGroup(2) * pe.SymmetricGroup(3),
    "(C2 x signs) x C4": lambda: (pe.CyclicGroup(2) * pe.SignGroup()) * pe.CyclicGroup(4),
    "A4 in S4": lambda: pe.SymmetricGroup(4).subgroup(["(0 1 2)", "(0 1)(2 3)"]),
    "mirrors in D4": lambda: pe.DihedralGroup(4).subgroup(["r180", "s"]),
    "one in D4": lambda: pe.DihedralGroup(4).subgroup([]),
    "turns in mirrors in D4": lambda: pe.DihedralGroup(4).subgroup(["r180", "s"]).subgroup(["r180"]),
    "C3 in a product": lambda: (pe.SignGroup() * pe.CyclicGroup(6)).subgroup([2]),
}

# Representations


def rotations(n, mirrored=False):
    """The n rotations of the plane, and the same followed by the left-right mirror."""
    angles = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
    turns = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], -1).reshape(n, 2, 2)
    mirror = torch.diag(torch.tensor([-1.0, 1.0], dtype=torch.float64))
    return torch.cat([turns, mirror @ turns]) if mirrored else turns


def scaled_swap():
    return pe.matrix(pe.CyclicGroup(2), [[[1.0, 0.0], [0.0, 1.0]], [[0.0, 2.0], [0.5, 0.0]]])


def sheared_rotations(n=4):
    shear = torch.tensor([[1.0, 0.5], [0.0, 2.0]], dtype=torch.float64)
    return pe.matrix(pe.CyclicGroup(n), shear @ rotations(n) @ shear.inverse())


def signed_turns():
    """The rotations of the plane by 90° as signed permutations."""
    return pe.signed_permutation(
        pe.CyclicGroup(4), [[0, 1], [1, 0], [0, 1], [1, 0]], [[1, 1], [1, -1], [-1, -1], [-1, 1]]
    )


def first_factor():
    group = pe.CyclicGroup(4) * pe.SignGroup()
    return pe.regular(group.left).pullback(group, group.split(group.elements)[0])


def restricted():
    group = pe.DihedralGroup(4).subgroup(["r180", "s"])
    return pe.matrix(group.parent, rotations(4, mirrored=True)).pullback(group, group.inclusion)


def on_a_product():
    """An image under C4, and signs that leave it as it is."""
    group = pe.CyclicGroup(4) * pe.SignGroup()
    return Factor(group, pe.image(group.left, (3, 3)), 0)


def turned_and_flipped():
    turn = on_a_product()
    flip = pe.vector(pe.SignGroup()) * pe.trivial(pe.SignGroup(), (3, 3))
    return Composed(turn, Factor(turn.group, flip.reshape((3, 3)), 1))


def sheared_and_doubled():
    """Neither is orthogonal: sheared turns of a pair, and scaled swaps of pairs."""
    group = pe.CyclicGroup(4) * pe.CyclicGroup(2)
    turn, swap = sheared_rotations(), scaled_swap()
    left = Factor(group, turn * pe.trivial(turn.group, 2), 0)
    return Composed(left, Factor(group, pe.trivial(swap.group, 2) * swap, 1))


def hidden_kernel(group):
    return pe.regular(group, 2) * pe.regular(group).dual * pe.image(group, (3, 3))


def stacked_images():
    group = pe.CyclicGroup(4)
    return pe.image(group, (2, 3, 3)) + pe.regular(group) * pe.image(group, (3, 3))


REPRESENTATIONS = {
    "trivial": lambda: pe.trivial(pe.CyclicGroup(4), (2, 3)),
    "trivial scalar": lambda: pe.trivial(pe.SignGroup(), ()),
    "regular": lambda: pe.regular(pe.DihedralGroup(4)),
    "regular, copies": lambda: pe.regular(pe.SymmetricGroup(3), 2),
    "regular, order 1": lambda: pe.regular(pe.CyclicGroup(1), 3),
    "permutation of S4": lambda: pe.permutation(pe.SymmetricGroup(4)),
    "permutation, own": lambda: pe.permutation(pe.PermutationGroup([(1, 2, 0, 3), (1, 0, 3, 2)])),
    "permutation, given": lambda: pe.permutation(pe.CyclicGroup(3), [[0, 1, 2, 3], [1, 2, 0, 3], [2, 0, 1, 3]]),
    "signed permutation": signed_turns,
    "signs": lambda: pe.signed_permutation(pe.SignGroup(), [[0, 1, 2]] * 2, [[1, 1, 1], [-1, -1, 1]]),
    "matrix, D4": lambda: pe.matrix(pe.DihedralGroup(4), rotations(4, mirrored=True)),
    "matrix, C8": lambda: pe.matrix(pe.CyclicGroup(8), rotations(8)),
    "matrix, scaled swap": scaled_swap,
    "matrix, sheared": sheared_rotations,
    "matrix, swap": lambda: pe.matrix(pe.SignGroup(), [[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]]),
    "image, C4": lambda: pe.image(pe.CyclicGroup(4), (3, 3)),
    "image, D4, channels": lambda: pe.image(pe.DihedralGroup(4), (2, 4, 4)),
    "image, C1": lambda: pe.image(pe.CyclicGroup(1), (2, 3)),
    "image, D1, not square": lambda: pe.image(pe.DihedralGroup(1), (2, 3)),
    "image, C2, not square": lambda: pe.image(pe.CyclicGroup(2), (2, 3)),
    "image, D2, not square": lambda: pe.image(pe.DihedralGroup(2), (2, 3, 4)),
    "image, mirrors in D4": lambda: pe.image(pe.DihedralGroup(4).subgroup(["r180", "s"]), (3, 3)),
    "product": lambda: sheared_rotations() * pe.regular(pe.CyclicGroup(4)),
    "product of matrices": lambda: scaled_swap() * scaled_swap().dual * pe.trivial(pe.CyclicGroup(2), 2),
    "sum": lambda: pe.regular(pe.CyclicGroup(4)) + sheared_rotations() + pe.trivial(pe.CyclicGroup(4), 1),
    "sum of images": stacked_images,
    "sum inside a product": lambda: (scaled_swap() + scaled_swap().dual) * pe.image(pe.CyclicGroup(2), (2, 3)),
    "reshape": lambda: stacked_images().reshape((9, 6)),
    "reshape inside a product": lambda: stacked_images().reshape((54,)) * signed_turns(),
    "dual": lambda: sheared_rotations().dual,
    "dual of a product": lambda: (sheared_rotations(3) * pe.regular(pe.CyclicGroup(3))).dual,
    "pullback to a factor": first_factor,
    "pullback to a subgroup": restricted,
    "permutation without a table": lambda: NaturalPermutation(pe.SymmetricGroup(4)),
    "signed permutation without a table": lambda: NaturalPermutation(pe.SignedPermutationGroup(3), signed=True),
    "product without a table": lambda: (
        pe.trivial(pe.SymmetricGroup(3), 2)
        * NaturalPermutation(pe.SymmetricGroup(3))
        * pe.regular(pe.SymmetricGroup(3))
    ),
    "sum without a table": lambda: (
        NaturalPermutation(pe.SignedPermutationGroup(2), signed=True) + NaturalPermutation(pe.SignedPermutationGroup(2))
    ),
    "vector, signed permutations": lambda: pe.vector(pe.SignedPermutationGroup(3)),
    "lattice": lambda: pe.lattice(pe.DihedralGroup(4), (3, 3)),
    "one factor": on_a_product,
    "composed": turned_and_flipped,
    "composed, sheared": sheared_and_doubled,
    "pullback without a table": lambda: NaturalPermutation(pe.SymmetricGroup(3)).pullback(
        pe.SymmetricGroup(3), pe.SymmetricGroup(3).elements
    ),
    "pullback of signed permutations": lambda: pe.vector(pe.SignedPermutationGroup(3).subgroup(["(0 1)·-2", "-0"])),
    "pullback of a lattice": lambda: pe.lattice(pe.DihedralGroup(4), (3, 3)).pullback(
        pe.CyclicGroup(3), 8 * torch.arange(3)
    ),
    "pullback of composed": lambda: turned_and_flipped().pullback(pe.CyclicGroup(4), torch.tensor([0, 3, 4, 7])),
    "kernel, C4": lambda: hidden_kernel(pe.CyclicGroup(4)),
    "kernel, D2": lambda: hidden_kernel(pe.DihedralGroup(2)),
}

# Families: a distribution, and an action that keeps its family


def normal(rep, batch=(), event_dims=0):
    shape = (*batch, *rep.event_shape)
    return dist.Normal(torch.randn(shape), 0.2 + torch.rand(shape)).to_event(event_dims), rep


def multivariate_normal(rep, batch=()):
    n = rep.event_shape[0]
    factor = torch.randn(*batch, n, n)
    return dist.MultivariateNormal(torch.randn(*batch, n), factor @ factor.mT + 0.1 * torch.eye(n)), rep


def positive(*shape):
    return 0.6 + 1.4 * torch.rand(shape)


PARAMETERS = {
    dist.Gamma: lambda shape: (1 + positive(*shape), positive(*shape)),
    dist.InverseGamma: lambda shape: (2 + positive(*shape), positive(*shape)),
    dist.Exponential: lambda shape: (positive(*shape),),
    dist.LogNormal: lambda shape: (0.5 * torch.randn(shape), 0.3 + 0.3 * torch.rand(shape)),
    dist.Normal: lambda shape: (torch.randn(shape), 0.4 + torch.rand(shape)),
    dist.Beta: lambda shape: (1 + positive(*shape), 1 + positive(*shape)),
    dist.Bernoulli: lambda shape: (0.2 + 0.6 * torch.rand(shape),),
    dist.Poisson: lambda shape: (positive(*shape),),
    dist.Dirichlet: lambda shape: (1 + positive(*shape),),
    dist.OneHotCategorical: lambda shape: (positive(*shape),),
    dist.OneHotCategoricalStraightThrough: lambda shape: (positive(*shape),),
    dist.Categorical: lambda shape: (positive(*shape),),
    dist.Laplace: lambda shape: (torch.randn(shape), 0.5 + torch.rand(shape)),
    dist.StudentT: lambda shape: (3 + positive(*shape), torch.randn(shape), 0.5 + torch.rand(shape)),
}


def law(kind, rep, batch=(), event_dims=0, categories=(), transforms=None):
    """Independent entries of one kind; ``categories`` is the axis of a Categorical's logits, after its shape."""
    q = kind(*PARAMETERS[kind]((*batch, *rep.event_shape, *categories)))
    if transforms is not None:
        q = dist.TransformedDistribution(q, transforms)
    return q.to_event(event_dims), rep


def transformed_multivariate_normal():
    q, rep = multivariate_normal(pe.permutation(pe.SymmetricGroup(3)), batch=(2,))
    small = dist.MultivariateNormal(0.3 * q.loc, 0.1 * q.covariance_matrix)
    return dist.TransformedDistribution(small, [transforms.ExpTransform()]), rep


def rows_and_columns():
    """One cyclic group permutes the rows, and the entries in each."""
    return pe.regular(pe.CyclicGroup(3)) * pe.regular(pe.CyclicGroup(3))


def permuted_labels():
    """Three labels that are themselves permuted."""
    return pe.permutation(pe.SymmetricGroup(3)) * pe.labels(pe.SymmetricGroup(3))


FAMILIES = {
    "Normal": lambda: normal(pe.permutation(pe.SymmetricGroup(4))),
    "Normal, event": lambda: normal(hidden_kernel(pe.CyclicGroup(4)), event_dims=4),
    "Normal, half the event": lambda: normal(pe.image(pe.DihedralGroup(4), (2, 3, 3)), event_dims=1),
    "Normal, batch": lambda: normal(pe.image(pe.CyclicGroup(4), (3, 3)), batch=(2, 5)),
    "Normal, batch and event": lambda: normal(pe.image(pe.CyclicGroup(4), (3, 3)), batch=(2, 5), event_dims=3),
    "Normal, signs": lambda: normal(signed_turns(), batch=(3,), event_dims=1),
    "Normal, scales": lambda: normal(scaled_swap(), batch=(3,), event_dims=1),
    "Normal, sum": lambda: normal(stacked_images(), event_dims=3),
    "Normal, reshape": lambda: normal(stacked_images().reshape((54,)), event_dims=1),
    "Normal, pullback": lambda: normal(first_factor(), batch=(2,), event_dims=1),
    "Normal, monomial matrix": lambda: normal(pe.matrix(pe.CyclicGroup(4), rotations(4)), event_dims=1),
    "MultivariateNormal": lambda: multivariate_normal(pe.matrix(pe.CyclicGroup(8), rotations(8))),
    "MultivariateNormal, batch": lambda: multivariate_normal(pe.permutation(pe.SymmetricGroup(3)), batch=(2, 5)),
    "MultivariateNormal, sheared": lambda: multivariate_normal(sheared_rotations(), batch=(2,)),
    "MultivariateNormal, scales": lambda: multivariate_normal(scaled_swap()),
    "MultivariateNormal, reshape": lambda: multivariate_normal(pe.image(pe.CyclicGroup(2), (2, 3)).reshape(6)),
    "Gamma": lambda: law(dist.Gamma, pe.permutation(pe.SymmetricGroup(4))),
    "Gamma, scales": lambda: law(dist.Gamma, scaled_swap(), batch=(3,), event_dims=1),
    "InverseGamma": lambda: law(dist.InverseGamma, pe.image(pe.CyclicGroup(4), (2, 2)), batch=(2,), event_dims=2),
    "InverseGamma, scales": lambda: law(dist.InverseGamma, scaled_swap()),
    "Exponential": lambda: law(dist.Exponential, first_factor(), event_dims=1),
    "Exponential, scales": lambda: law(dist.Exponential, scaled_swap() + scaled_swap(), batch=(2,)),
    "LogNormal": lambda: law(dist.LogNormal, stacked_images(), event_dims=2),
    "LogNormal, scales": lambda: law(dist.LogNormal, scaled_swap(), batch=(3,), event_dims=1),
    "LogNormal, logarithms": lambda: law(dist.LogNormal, signed_turns().on_unconstrained(), batch=(3,)),
    "LogNormal, scaled logarithms": lambda: law(dist.LogNormal, scaled_swap().on_unconstrained(), event_dims=1),
    "Beta": lambda: law(dist.Beta, pe.permutation(pe.SymmetricGroup(3)), batch=(2,), event_dims=1),
    "Beta, mirrored": lambda: law(dist.Beta, signed_turns().on_unconstrained(), batch=(2, 3), event_dims=1),
    "Beta, mirrored number": lambda: law(dist.Beta, pe.vector(pe.SignGroup()).reshape(()).on_unconstrained()),
    "Bernoulli": lambda: law(dist.Bernoulli, pe.image(pe.CyclicGroup(4), (2, 2)), batch=(3,), event_dims=2),
    "Bernoulli, mirrored": lambda: law(dist.Bernoulli, signed_turns().on_unconstrained(), batch=(3,), event_dims=1),
    "Bernoulli, labels": lambda: law(dist.Bernoulli, pe.labels(pe.SymmetricGroup(2)), batch=(3,)),
    "Poisson": lambda: law(dist.Poisson, pe.image(pe.DihedralGroup(4), (2, 2)), batch=(2,), event_dims=2),
    "Dirichlet": lambda: law(dist.Dirichlet, pe.permutation(pe.SymmetricGroup(3)), batch=(2, 2)),
    "Dirichlet, rows": lambda: law(dist.Dirichlet, rows_and_columns(), batch=(2,), event_dims=1),
    "OneHotCategorical": lambda: law(dist.OneHotCategorical, pe.permutation(pe.SymmetricGroup(3)), batch=(2,)),
    "OneHotCategorical, rows": lambda: law(dist.OneHotCategoricalStraightThrough, rows_and_columns(), event_dims=1),
    "Categorical": lambda: law(dist.Categorical, pe.labels(pe.SymmetricGroup(3)), batch=(4,), categories=(3,)),
    "Categorical, entries": lambda: law(dist.Categorical, signed_turns().modulus(), event_dims=1, categories=(3,)),
    "Categorical, both": lambda: law(dist.Categorical, permuted_labels(), batch=(2,), event_dims=1, categories=(3,)),
    "Laplace, signs": lambda: law(dist.Laplace, signed_turns(), batch=(3,), event_dims=1),
    "Laplace, scales": lambda: law(dist.Laplace, scaled_swap()),
    "StudentT, signs": lambda: law(dist.StudentT, signed_turns(), batch=(3,)),
    "StudentT, scales": lambda: law(dist.StudentT, scaled_swap(), event_dims=1),
    "exponential of a scaled Normal": lambda: law(
        dist.Normal, pe.regular(pe.CyclicGroup(4)), batch=(2,),
        transforms=[transforms.AffineTransform(0.1, 0.2), transforms.ExpTransform()],
    ),
    "sigmoid of a Normal, mirrored": lambda: law(
        dist.Normal, signed_turns().on_unconstrained(), event_dims=1, transforms=[transforms.SigmoidTransform()]
    ),
    "interval of a Normal, event inside": lambda: law(
        dist.Normal, pe.permutation(pe.SymmetricGroup(3)), batch=(2,),
        transforms=[transforms.IndependentTransform(transforms.biject_to(dist.constraints.interval(1.0, 3.0)), 1)],
    ),
    "logarithm of a Gamma": lambda: law(
        dist.Gamma, pe.permutation(pe.SymmetricGroup(3)), event_dims=1, transforms=[transforms.ExpTransform().inv]
    ),
    "exponential of a MultivariateNormal": transformed_multivariate_normal,
    "reach of a Beta": lambda: law(
        dist.Beta, rows_and_columns(), event_dims=1, transforms=[transforms.AffineTransform(1.0, 3.0)]
    ),
}  # fmt: skip

WITHOUT_NATURAL = ("Laplace", "StudentT")


def rules_of(name):
    """The averages that a law of the catalogue has."""
    return ("projection",) if name.startswith(WITHOUT_NATURAL) else ("geometric", "arithmetic", "projection")


# Networks that are compatible with their symmetry


@dataclass(frozen=True)
class Case:
    """A network, and how :func:`pe.network_symmetry` is to read it; ``tokens`` is the size of its vocabulary."""

    net: nn.Module
    group: pe.Group
    input_shape: tuple
    hidden: str = "regular"
    outputs: pe.Representation | None = None
    inputs: pe.Representation | None = None
    tokens: int = 0

    @property
    def symmetry(self):
        return pe.network_symmetry(
            self.net, self.group, self.input_shape, hidden=self.hidden, outputs=self.outputs, inputs=self.inputs
        )

    def batch(self, n):
        """Random inputs."""
        if self.tokens:
            return torch.randint(self.tokens, (n, *self.input_shape))
        return torch.randn(n, *self.input_shape)


def small_conv(bias=True):
    """Convolution, pooling 6 → 3, fully connected head; hidden widths divisible by 8."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=bias), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(72, 8, bias=bias), nn.Tanh(), nn.Linear(8, 3, bias=bias),
    )  # fmt: skip


def rgb_pooled(kernel=3, padding=1, size=1):
    """Two convolutions of RGB images and a head after global pooling."""
    return nn.Sequential(
        nn.Conv2d(3, 4, kernel, padding=padding), nn.GELU(),
        nn.Conv2d(4, 8, 3, padding="same", padding_mode="circular"),
        nn.AdaptiveAvgPool2d(size), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8 * size**2, 5),
    )  # fmt: skip


class Block(nn.Module):
    """A module inside a module, its activation and pooling called as functions."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x):
        return F.max_pool2d(torch.relu(self.conv(x)), 2)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(2, 4), Block(4, 4))
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = F.avg_pool2d(self.blocks(x), kernel_size=1, stride=1).tanh()
        return self.head(F.dropout(torch.flatten(x, 1), 0.5, self.training))


class Shared(nn.Module):
    """One hidden convolution under two names, used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.again = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.once_more = self.again
        self.pool, self.flatten, self.head = nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 3)

    def forward(self, x):
        x = self.once_more(torch.tanh(self.again(torch.tanh(self.first(x)))))
        return self.head(self.flatten(self.pool(x)))


def equivariant_head():
    """Its four outputs are turned as the input is."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    return Case(net, pe.CyclicGroup(4), (1, 6, 6), outputs=pe.regular(pe.CyclicGroup(4)))


class MeanOver(nn.Module):
    """The mean over the axes that are not moved on, or another reduction."""

    def __init__(self, *axes, maximum=False):
        super().__init__()
        self.axes, self.maximum = axes, maximum

    def forward(self, x):
        return x.amax(self.axes) if self.maximum else x.mean(self.axes)


def sequences(group, padding_mode="circular", stride=1, hidden="regular"):
    """One-dimensional convolutions and poolings of sequences with two channels."""
    net = nn.Sequential(
        nn.Conv1d(2, 8, 3, padding=1, padding_mode=padding_mode), nn.GELU(), nn.MaxPool1d(2),
        nn.Conv1d(8, 8, 3, padding=1, padding_mode=padding_mode, stride=stride), nn.Tanh(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    return Case(net, group, (2, 8), hidden=hidden)


def volumes(group, width):
    net = nn.Sequential(
        nn.Conv3d(1, width, 3, padding=1), nn.ReLU(), nn.AvgPool3d(2), nn.Conv3d(width, width, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(width, 2),
    )  # fmt: skip
    return Case(net, group, (1, 4, 4, 4))


def normalised(norm, group=None, hidden="regular"):
    """A layer that normalises eight channels of 6 x 6 images."""
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                        nn.Linear(32, 3))  # fmt: skip
    return Case(net, group or pe.CyclicGroup(4), (1, 6, 6), hidden=hidden)


def residual(shortcut=True):
    branch = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    layers = [nn.Conv2d(1, 4, 3, padding=1), pe.Residual(branch, nn.Conv2d(4, 4, 1) if shortcut else None), nn.ReLU()]
    return Case(nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 3)), pe.CyclicGroup(4), (1, 4, 4))


class Block1d(nn.Module):
    """Pre-normalised self-attention and a perceptron, each with a residual, over tokens of eight channels."""

    def __init__(self, heads):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, heads, batch_first=True)
        self.perceptron = pe.Residual(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)))

    def forward(self, x):
        y = self.norm(x)
        return self.perceptron(x + self.attention(y, y, y, need_weights=False)[0])


class Attention(nn.Module):
    """The pixels of an image as tokens: patches of one pixel, a table of positions, attention, a mean."""

    def __init__(self, heads):
        super().__init__()
        self.lift = nn.Conv2d(1, 8, 1)
        self.positions = nn.Parameter(torch.randn(1, 16, 8))
        self.block, self.head = Block1d(heads), nn.Linear(8, 3)

    def forward(self, x):
        tokens = self.lift(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.block(tokens).mean(1))


class PlainAttention(nn.Module):
    """One head written out: linear layers and ``scaled_dot_product_attention``."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.lift = nn.Linear(inputs, 4)
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, outputs)

    def forward(self, x):
        x = torch.tanh(self.lift(x))
        x = 0.5 * x + F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x)) / 2
        return self.head(torch.amax(x, dim=1))


def tokens():
    group = pe.DihedralGroup(2)
    net = nn.Sequential(nn.Embedding(5, 8), Block1d(4), MeanOver(1), nn.Linear(8, 2))
    return Case(net, group, (6,), inputs=pe.sequence(group, 6), tokens=5)


def points():
    """A set of five points in space: the points are permuted; nothing in the network moves."""
    group = pe.SymmetricGroup(5)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), MeanOver(1, maximum=True), nn.Linear(8, 2))
    inputs = pe.permutation(group) * pe.trivial(group, 3)
    return Case(net, group, (5, 3), hidden="trivial", inputs=inputs)


def turned_points():
    """The same points, turned in space."""
    group = pe.OctahedralGroup()
    net = nn.Sequential(nn.Linear(3, 24), nn.ReLU(), MeanOver(1), nn.Linear(24, 2))
    return Case(net, group, (5, 3), inputs=pe.trivial(group, 5) * pe.vector(group))


def permuted_and_turned_points():
    left, right = pe.SymmetricGroup(3), pe.CyclicGroup(4)
    group = left * right
    first, second = group.split(group.elements)
    net = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 24), nn.ReLU(), MeanOver(1), nn.Linear(24, 2))
    inputs = pe.permutation(left).pullback(group, first) * pe.vector(right).pullback(group, second)
    return Case(net, group, (3, 2), inputs=inputs)


def dynamics(outputs=True):
    """From a point of the plane to a velocity that turns with it."""
    group = pe.CyclicGroup(4)
    net = nn.Sequential(nn.Linear(2, 8), nn.Softplus(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    return Case(net, group, (2,), inputs=pe.vector(group), outputs=pe.vector(group) if outputs else None)


def flow(pooled=True):
    """From an image to a vector: globally, or at every pixel."""
    group = pe.DihedralGroup(4)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1)]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if pooled else []
    outputs = pe.vector(group) if pooled else pe.vector(group) * pe.image(group, (4, 4))
    return Case(nn.Sequential(*layers), group, (1, 4, 4), outputs=outputs)


class Segmentation(nn.Module):
    """Down, up and across: logits of three classes at every pixel."""

    def __init__(self):
        super().__init__()
        self.down, self.inner = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.out = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        wide = torch.relu(self.down(x))
        return self.out(torch.cat([wide, self.up(torch.relu(self.inner(F.avg_pool2d(wide, 2))))], 1))


def segmentation():
    group = pe.CyclicGroup(4)
    return Case(Segmentation(), group, (1, 8, 8), outputs=pe.image(group, (3, 8, 8)))


class Viewed(nn.Module):
    """The older idioms: a batch size asked for, a view."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(64, 2)

    def forward(self, x):
        x = F.relu(self.conv(x))
        return self.head(x.view(x.size(0), -1)) + self.head(x.reshape(x.shape[0], 64))


def strided(size=9):
    """A stride of two that commutes with turns where size + 2 padding - kernel is even."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
                        nn.Linear(4 * ((size + 1) // 2) ** 2, 2))  # fmt: skip
    return Case(net, pe.CyclicGroup(4), (1, size, size))


def hidden_as(hidden, group=None, width=8):
    net = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3), nn.Tanh(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))  # fmt: skip
    return Case(net, group or pe.DihedralGroup(4), (1, 6, 6), hidden=hidden)


NETWORKS = {
    "fully connected head": lambda: Case(small_conv(), pe.CyclicGroup(4), (1, 6, 6)),
    "fully connected head, D4": lambda: Case(small_conv(), pe.DihedralGroup(4), (1, 6, 6)),
    "hidden trivial": lambda: Case(small_conv(), pe.DihedralGroup(4), (1, 6, 6), hidden="trivial"),
    "no bias": lambda: Case(small_conv(bias=False), pe.CyclicGroup(4), (1, 6, 6)),
    "RGB, global pooling": lambda: Case(rgb_pooled(), pe.CyclicGroup(4), (3, 5, 5)),
    "RGB, pooling to 2 x 2": lambda: Case(rgb_pooled(size=2), pe.CyclicGroup(4), (3, 6, 6)),
    "even kernel, no padding": lambda: Case(rgb_pooled(kernel=2, padding=0), pe.CyclicGroup(4), (3, 5, 5)),
    "not square, C2": lambda: Case(rgb_pooled(kernel=(1, 3), padding=(0, 1)), pe.CyclicGroup(2), (3, 4, 5)),
    "not square, D2": lambda: Case(rgb_pooled(), pe.DihedralGroup(2), (3, 4, 5)),
    "mirrors in D4": lambda: Case(rgb_pooled(), pe.DihedralGroup(4).subgroup(["r180", "s"]), (3, 5, 5)),
    "nested": lambda: Case(Nested(), pe.CyclicGroup(4), (2, 8, 8)),
    "nested, hidden trivial": lambda: Case(Nested(), pe.CyclicGroup(4), (2, 8, 8), hidden="trivial"),
    "shared": lambda: Case(Shared(), pe.CyclicGroup(4), (1, 5, 5)),
    "equivariant head": equivariant_head,
    "multilayer perceptron": lambda: Case(
        nn.Sequential(nn.Flatten(), nn.Linear(18, 8), nn.Softplus(), nn.Linear(8, 4)), pe.DihedralGroup(4), (2, 3, 3)
    ),
    "one layer": lambda: Case(nn.Sequential(nn.Flatten(), nn.Linear(9, 2)), pe.DihedralGroup(4), (1, 3, 3)),
    "one linear layer by itself": lambda: Case(nn.Linear(2, 3), pe.CyclicGroup(4), (2,),
                                               inputs=pe.vector(pe.CyclicGroup(4))),
    "sequences, shifts": lambda: sequences(pe.CyclicGroup(4)),
    "sequences, reversal": lambda: sequences(pe.DihedralGroup(1), padding_mode="zeros"),
    "sequences, shifts and reversal": lambda: sequences(pe.DihedralGroup(2)),
    "sequences, a stride that fits": lambda: sequences(pe.CyclicGroup(2), stride=2),
    "volumes": lambda: volumes(pe.OctahedralGroup(), 24),
    "volumes, reflections": lambda: volumes(pe.OctahedralGroup(reflections=True), 48),
    "volumes, a subgroup": lambda: volumes(pe.OctahedralGroup().subgroup([1]), 4),
    "layer norm of images": lambda: normalised(nn.LayerNorm((8, 6, 6))),
    "layer norm of each image": lambda: normalised(nn.LayerNorm((6, 6))),
    "group norm, as many groups": lambda: normalised(nn.GroupNorm(4, 8)),
    "group norm, one group": lambda: normalised(nn.GroupNorm(1, 8), group=pe.DihedralGroup(4)),
    "group norm, hidden trivial": lambda: normalised(nn.GroupNorm(2, 8), hidden="trivial"),
    "batch norm": lambda: normalised(nn.BatchNorm2d(8, track_running_stats=False)),
    "instance norm": lambda: normalised(nn.InstanceNorm2d(8, affine=True)),
    "residual": residual,
    "residual, identity": lambda: residual(shortcut=False),
    "attention over pixels": lambda: Case(Attention(4), pe.CyclicGroup(4), (1, 4, 4)),
    "attention, one head": lambda: Case(Attention(1), pe.DihedralGroup(4), (1, 4, 4)),
    "attention, hidden trivial": lambda: Case(Attention(2), pe.CyclicGroup(4), (1, 4, 4), hidden="trivial"),
    "plain attention over points": lambda: Case(
        PlainAttention(3, 2), pe.SymmetricGroup(4), (4, 3), hidden="trivial",
        inputs=pe.permutation(pe.SymmetricGroup(4)) * pe.trivial(pe.SymmetricGroup(4), 3),
    ),
    "plain attention, turned points": lambda: Case(
        PlainAttention(2, 2), pe.CyclicGroup(4), (5, 2), outputs=pe.vector(pe.CyclicGroup(4)),
        inputs=pe.trivial(pe.CyclicGroup(4), 5) * pe.vector(pe.CyclicGroup(4)),
    ),
    "tokens": tokens,
    "points": points,
    "points, turned": turned_points,
    "points, permuted and turned": permuted_and_turned_points,
    "dynamics": dynamics,
    "flow": flow,
    "flow at every pixel": lambda: flow(pooled=False),
    "segmentation": segmentation,
    "viewed": lambda: Case(Viewed(), pe.CyclicGroup(4), (1, 4, 4)),
    "a stride that fits": strided,
    "hidden quotient": lambda: hidden_as("quotient(s)"),
    "hidden quotient of two generators": lambda: hidden_as("quotient(r180, s)"),
    "hidden sum": lambda: hidden_as("quotient(s) + trivial", width=10),
    "hidden sum with regular": lambda: hidden_as("regular + quotient(r90) + trivial", width=22),
    "hidden representation": lambda: hidden_as(pe.quotient(pe.DihedralGroup(4), ["s"])),
    "hidden rolled": lambda: hidden_as("rolled", group=pe.CyclicGroup(4)),
}  # fmt: skip
