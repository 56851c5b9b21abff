"""Torch networks: their symmetry, their expanded copies, and the Pyro model that samples their weights."""

from .bayesian import BayesianNetwork, NetworkModel
from .layers import Residual
from .lift import Lift, equivarify, with_fibre_inputs
from .likelihoods import NormalLikelihood
from .permutations import hidden_permutations
from .poses import class_and_pose, joint_data, joint_labels
from .priors import FanIn, LearnedScale, Scalar
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
    "class_and_pose",
    "equivarify",
    "hidden_permutations",
    "joint_data",
    "joint_labels",
    "network_symmetry",
    "widen_network",
    "with_fibre_inputs",
]
