"""Torch networks: their symmetry, their expanded copies, and the Pyro model that samples their weights."""

from .bayesian import BayesianNetwork, NetworkModel
from .layers import Residual
from .likelihoods import NormalLikelihood
from .permutations import hidden_permutations
from .priors import FanIn, LearnedScale, Scalar
from .tracing import network_symmetry, widen_network

__all__ = [
    "BayesianNetwork",
    "FanIn",
    "LearnedScale",
    "NetworkModel",
    "NormalLikelihood",
    "Residual",
    "Scalar",
    "hidden_permutations",
    "network_symmetry",
    "widen_network",
]
