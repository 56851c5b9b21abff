"""Effect handlers: symmetrize a guide, augment a model, expand a network's sites, draw whole orbits.

Each messenger moves fields of Pyro's messages only; the mathematics is in
:mod:`~pyro_equivariance.symmetrize`, :mod:`~pyro_equivariance.symmetry` and
:mod:`~pyro_equivariance.networks.expanded`. The lower-case functions wrap a model or guide, or decorate it.
"""

from .antithetic import AntitheticMessenger, antithetic
from .augment import CONVENTIONS, ORBITS, AugmentMessenger, augment
from .base import AUXILIARY, BASE
from .expand import ExpandedNetwork, ExpansionReparam, expand, expanded_symmetry, site_expansions, widen
from .relax import RelaxedNetwork, RelaxedReparam, relax
from .symmetrize import SymmetrizeMessenger, symmetrize

__all__ = [
    "AUXILIARY",
    "AntitheticMessenger",
    "AugmentMessenger",
    "BASE",
    "CONVENTIONS",
    "ExpandedNetwork",
    "ExpansionReparam",
    "ORBITS",
    "RelaxedNetwork",
    "RelaxedReparam",
    "SymmetrizeMessenger",
    "antithetic",
    "augment",
    "expand",
    "expanded_symmetry",
    "relax",
    "site_expansions",
    "symmetrize",
    "widen",
]
