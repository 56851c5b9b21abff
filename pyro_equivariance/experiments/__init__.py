"""Studies on real data: :func:`~pyro_equivariance.experiments.compare.compare`, which says what method to use."""

from .base import Config, convolutional_network
from .methods import METHODS

__all__ = ["METHODS", "Config", "convolutional_network"]
