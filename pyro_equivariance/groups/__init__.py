"""Groups: finite ones, elements index tensors with the identity at 0; those of rotation matrices or permutations."""

from .base import Group, ProductGroup, Subgroup
from .continuous import SpecialOrthogonal
from .lattice import LatticeGroup
from .matrices import Affine, GeneralLinear, MatrixGroup
from .permutations import PermutationGroup, SignedPermutationGroup, SymmetricGroup, YoungSubgroup
from .rotations import CyclicGroup, DihedralGroup, OctahedralGroup, SignGroup

__all__ = [
    "Affine",
    "CyclicGroup",
    "DihedralGroup",
    "GeneralLinear",
    "Group",
    "LatticeGroup",
    "MatrixGroup",
    "OctahedralGroup",
    "PermutationGroup",
    "ProductGroup",
    "SignGroup",
    "SignedPermutationGroup",
    "SpecialOrthogonal",
    "Subgroup",
    "SymmetricGroup",
    "YoungSubgroup",
]
