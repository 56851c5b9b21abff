"""Variational posteriors that respect a symmetry, for Pyro."""

import importlib

from . import data, handlers, metrics
from .breaking import SymmetryBreaking, SymmetryBreakingTable, symmetry_breaking_score
from .discovery import DiscoveredGenerators, discover_generators
from .distributions import OrbitMixture
from .ensembles import Ensemble, EnsembleSweep, ensemble_sweep, fit_ensemble
from .errors import ClosednessError, DataError, LayerError, OptionError, SymmetryError, WideOrbitWarning
from .expansion import expand, symmetrize_
from .families import is_closed, kl, mean, natural, push_forward
from .families.directional import VonMisesFisher
from .generators import Generators
from .groups import (
    Affine,
    CyclicGroup,
    DihedralGroup,
    GeneralLinear,
    Group,
    LatticeGroup,
    OctahedralGroup,
    PermutationGroup,
    ProductGroup,
    SignedPermutationGroup,
    SignGroup,
    SpecialOrthogonal,
    SymmetricGroup,
    YoungSubgroup,
)
from .guides import (
    AutoMeanFieldNormal,
    AutoOrbitMixture,
    AutoSymmetric,
    AutoSymmetricLowRankMultivariateNormal,
    AutoSymmetricMultivariateNormal,
    AutoSymmetricNormal,
    FractionOfPrior,
    SymmetrizedGuide,
)
from .learned import AffineAugmenter, LearnedAugmentation, LieAugmenter, learn_augmentation
from .measures import LieBox
from .model_symmetries import (
    FoundSymmetry,
    canonical_elements,
    canonicalize,
    check_symmetry,
    exchangeable,
    find_symmetries,
    orthogonal_factors,
    relabel,
    sign_flips,
)
from .networks import (
    BayesianNetwork,
    FanIn,
    LearnedScale,
    Lift,
    NormalLikelihood,
    Residual,
    class_and_pose,
    equivarify,
    hidden_permutations,
    joint_data,
    joint_labels,
    network_symmetry,
    with_support,
)
from .prediction import lifted_check, orbit_predict, posterior_mean, predict
from .representations import (
    Representation,
    angle,
    image,
    labels,
    lattice,
    matrix,
    permutation,
    quotient,
    regular,
    sequence,
    signed_permutation,
    trivial,
    vector,
    volume,
)
from .storage import load, save
from .symmetrize import average
from .symmetry import Symmetry
from .theory import Assumptions, Certificate, certificate, check_assumptions
from .training import ConstrainRelaxation, ExpandAt, FitResult, SymmetrizeAt, TrackDefect, fit

__version__ = "0.1.0"

_LAZY = {
    "diagnose": "diagnostics",
    "diagnostics": "diagnostics",
    "experiments": "experiments",
    "from_netcdf": "diagnostics",
    "plots": "plots",
    "to_arviz": "diagnostics",
    "vsbc": "diagnostics",
}


def __getattr__(name: str):
    """Import what needs ArviZ or matplotlib when it is first asked for, so that importing the package stays quick."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_LAZY[name]}", __name__)
    return module if name == _LAZY[name] else getattr(module, name)


__all__ = [
    "Affine",
    "AffineAugmenter",
    "Assumptions",
    "AutoMeanFieldNormal",
    "AutoOrbitMixture",
    "AutoSymmetric",
    "AutoSymmetricLowRankMultivariateNormal",
    "AutoSymmetricMultivariateNormal",
    "AutoSymmetricNormal",
    "BayesianNetwork",
    "Certificate",
    "ClosednessError",
    "ConstrainRelaxation",
    "CyclicGroup",
    "DataError",
    "DihedralGroup",
    "DiscoveredGenerators",
    "Ensemble",
    "EnsembleSweep",
    "ExpandAt",
    "FanIn",
    "FitResult",
    "FoundSymmetry",
    "FractionOfPrior",
    "GeneralLinear",
    "Generators",
    "Group",
    "LatticeGroup",
    "LayerError",
    "LearnedAugmentation",
    "LearnedScale",
    "LieAugmenter",
    "LieBox",
    "Lift",
    "NormalLikelihood",
    "OctahedralGroup",
    "OptionError",
    "OrbitMixture",
    "PermutationGroup",
    "ProductGroup",
    "Representation",
    "Residual",
    "SignGroup",
    "SignedPermutationGroup",
    "SpecialOrthogonal",
    "SymmetricGroup",
    "SymmetrizeAt",
    "SymmetrizedGuide",
    "Symmetry",
    "SymmetryBreaking",
    "SymmetryBreakingTable",
    "SymmetryError",
    "TrackDefect",
    "VonMisesFisher",
    "WideOrbitWarning",
    "YoungSubgroup",
    "angle",
    "average",
    "canonical_elements",
    "canonicalize",
    "certificate",
    "check_assumptions",
    "check_symmetry",
    "class_and_pose",
    "data",
    "diagnose",
    "diagnostics",
    "discover_generators",
    "ensemble_sweep",
    "equivarify",
    "exchangeable",
    "expand",
    "experiments",
    "find_symmetries",
    "fit",
    "fit_ensemble",
    "from_netcdf",
    "handlers",
    "hidden_permutations",
    "image",
    "is_closed",
    "joint_data",
    "joint_labels",
    "kl",
    "labels",
    "lattice",
    "learn_augmentation",
    "lifted_check",
    "load",
    "matrix",
    "mean",
    "measures",
    "metrics",
    "natural",
    "network_symmetry",
    "orbit_predict",
    "orthogonal_factors",
    "permutation",
    "plots",
    "posterior_mean",
    "predict",
    "push_forward",
    "quotient",
    "regular",
    "relabel",
    "save",
    "sequence",
    "sign_flips",
    "signed_permutation",
    "symmetrize_",
    "symmetry_breaking_score",
    "to_arviz",
    "trivial",
    "vector",
    "volume",
    "vsbc",
    "with_support",
]
