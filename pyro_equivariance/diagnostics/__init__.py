"""Posteriors as ArviZ data, and what these say of a posterior, for any Pyro model and guide."""

from .base import METHOD, OBSERVATION, groups_of
from .convert import to_arviz
from .files import from_netcdf, save, stack

__all__ = ["METHOD", "OBSERVATION", "from_netcdf", "groups_of", "save", "stack", "to_arviz"]
