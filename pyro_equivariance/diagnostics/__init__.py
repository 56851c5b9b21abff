"""Posteriors as ArviZ data, and what these say of a posterior, for any Pyro model and guide."""

from .base import METHOD, OBSERVATION, groups_of, with_groups
from .calibration import ConditionedModel, vsbc
from .convert import to_arviz
from .diagnose import Diagnosis, diagnose
from .files import from_netcdf, save, stack
from .ranks import VSBC

__all__ = [
    "METHOD",
    "OBSERVATION",
    "VSBC",
    "ConditionedModel",
    "Diagnosis",
    "diagnose",
    "from_netcdf",
    "groups_of",
    "save",
    "stack",
    "to_arviz",
    "vsbc",
    "with_groups",
]
