"""Ensembles: many networks trained alike as an empirical posterior, and how their mean becomes equivariant.

Members that start from an invariant law and see augmented data have an equivariant *mean* at every time, for every
architecture whose space of weights the group keeps; the members do not. The mean of ``M`` of them deviates from it by
``O(1/√M)``.

References:

[1] Nordenfors, Flinth (2024) "Ensembles provably learn equivariance through data augmentation" arXiv:2410.01452

[2] Gerken, Kessel (2024) "Emergent equivariance in deep ensembles" arXiv:2403.03103
"""

from .base import Ensemble, MembersInTurn
from .fit import fit_ensemble
from .starts import STARTS
from .sweep import EnsembleSweep, ensemble_sweep

__all__ = ["STARTS", "Ensemble", "EnsembleSweep", "MembersInTurn", "ensemble_sweep", "fit_ensemble"]
