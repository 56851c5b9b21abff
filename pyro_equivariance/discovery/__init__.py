"""The continuous symmetries of a function that is already there."""

from .base import DiscoveredGenerators
from .discover import discover_generators

__all__ = ["DiscoveredGenerators", "discover_generators"]
