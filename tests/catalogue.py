"""Named constructors: each law is tested once, on all of them. Nothing is built before a test calls it."""

import math
from dataclasses import dataclass

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import nn

import pyro_equivariance as pe

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
}

# Networks that are compatible with their symmetry


@dataclass(frozen=True)
class Case:
    """A network, and how :func:`pe.network_symmetry` is to read it."""

    net: nn.Module
    group: pe.Group
    input_shape: tuple
    hidden: str = "regular"
    outputs: pe.Representation | None = None

    @property
    def symmetry(self):
        return pe.network_symmetry(self.net, self.group, self.input_shape, hidden=self.hidden, outputs=self.outputs)


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
}
