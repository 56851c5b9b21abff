"""Finite groups, their elements batched index tensors with the identity at 0."""

from .base import Group, ProductGroup, Subgroup
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
    "Subgroup",
    "SymmetricGroup",
]
