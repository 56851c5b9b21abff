"""Torch networks: their symmetry, their expanded copies, and the Pyro model that samples their weights."""

from .bayesian import BayesianNetwork, NetworkModel
from .fibres import with_fibre_inputs
from .layers import Residual
from .lift import Lift, equivarify
from .likelihoods import NormalLikelihood
from .permutations import hidden_permutations
from .poses import class_and_pose, joint_data, joint_labels
from .priors import FanIn, LearnedScale, Scalar
from .supports import check_support, is_invariant_support, support, with_support
from .tracing import network_symmetry, widen_network

__all__ = [
    "BayesianNetwork",
    "FanIn",
    "LearnedScale",
    "Lift",
    "NetworkModel",
    "NormalLikelihood",
    "Residual",
    "Scalar",
    "check_support",
    "class_and_pose",
    "equivarify",
    "hidden_permutations",
    "is_invariant_support",
    "joint_data",
    "joint_labels",
    "network_symmetry",
    "support",
    "widen_network",
    "with_fibre_inputs",
    "with_support",
]
