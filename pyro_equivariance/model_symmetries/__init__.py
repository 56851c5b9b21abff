"""Symmetries of ordinary models: found, checked, and used to choose one representative of each orbit."""

from .canonical import canonical_elements, canonicalize, relabel
from .check import check_symmetry
from .finders import FoundSymmetry, exchangeable, find_symmetries, orthogonal_factors, sign_flips

__all__ = [
    "FoundSymmetry",
    "canonical_elements",
    "canonicalize",
    "check_symmetry",
    "exchangeable",
    "find_symmetries",
    "orthogonal_factors",
    "relabel",
    "sign_flips",
]
