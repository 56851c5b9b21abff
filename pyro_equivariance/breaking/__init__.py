"""Which symmetry the data have: a classifier against moved copies of them."""

from .base import SymmetryBreaking, SymmetryBreakingTable, wilson_interval
from .score import symmetry_breaking_score

__all__ = ["SymmetryBreaking", "SymmetryBreakingTable", "symmetry_breaking_score", "wilson_interval"]
