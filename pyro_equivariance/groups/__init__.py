"""Finite groups, their elements batched index tensors with the identity at 0, and groups of rotation matrices."""

from .base import Group, ProductGroup, Subgroup
from .continuous import SpecialOrthogonal
from .permutations import PermutationGroup, SymmetricGroup
from .rotations import CyclicGroup, DihedralGroup, OctahedralGroup, SignGroup

__all__ = [
    "CyclicGroup",
    "DihedralGroup",
    "Group",
    "OctahedralGroup",
    "PermutationGroup",
    "ProductGroup",
    "SignGroup",
    "SpecialOrthogonal",
    "Subgroup",
    "SymmetricGroup",
]
