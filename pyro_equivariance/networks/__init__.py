"""Torch networks: their symmetry, their expanded copies, and the Pyro model that samples their weights."""

from .bayesian import BayesianNetwork, FanIn, NetworkModel, Scalar
from .tracing import network_symmetry, widen_network

__all__ = ["BayesianNetwork", "FanIn", "NetworkModel", "Scalar", "network_symmetry", "widen_network"]
