"""Variational posteriors that respect a symmetry, for Pyro."""

from . import handlers, metrics
from .errors import ClosednessError, DataError, LayerError, OptionError, SymmetryError
from .expansion import expand, symmetrize_
from .families import is_closed, kl, mean, natural, push_forward
from .groups import CyclicGroup, DihedralGroup, Group, PermutationGroup, ProductGroup, SignGroup, SymmetricGroup
from .guides import AutoMeanFieldNormal, AutoSymmetricNormal
from .networks import BayesianNetwork, FanIn, network_symmetry
from .prediction import orbit_predict, predict
from .representations import (
    Representation,
    angle,
    image,
    matrix,
    permutation,
    regular,
    signed_permutation,
    trivial,
)
from .symmetrize import average
from .symmetry import Symmetry
from .training import FitResult, SymmetrizeAt, fit

__version__ = "0.1.0"

__all__ = [
    "AutoMeanFieldNormal",
    "AutoSymmetricNormal",
    "BayesianNetwork",
    "ClosednessError",
    "CyclicGroup",
    "DataError",
    "DihedralGroup",
    "FanIn",
    "FitResult",
    "Group",
    "LayerError",
    "OptionError",
    "PermutationGroup",
    "ProductGroup",
    "Representation",
    "SignGroup",
    "SymmetricGroup",
    "Symmetry",
    "SymmetrizeAt",
    "SymmetryError",
    "angle",
    "average",
    "expand",
    "fit",
    "handlers",
    "image",
    "is_closed",
    "kl",
    "matrix",
    "mean",
    "metrics",
    "natural",
    "network_symmetry",
    "orbit_predict",
    "permutation",
    "predict",
    "push_forward",
    "regular",
    "signed_permutation",
    "symmetrize_",
    "trivial",
]
