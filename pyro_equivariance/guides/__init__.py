"""Drop-in guides: Normals that sample each site directly, free or invariant, and the orbit mixture."""

from .base import AutoDirect, AutoDirectNormal
from .density import GuideDensity, guide_log_density
from .exponential import AutoSymmetric
from .joint import AutoSymmetricLowRankMultivariateNormal, AutoSymmetricMultivariateNormal
from .mean_field import AutoExpandedNormal, AutoMeanFieldNormal, AutoSymmetricNormal, FractionOfPrior
from .mixture import AutoOrbitMixture
from .wrapped import SymmetrizedGuide

__all__ = [
    "AutoDirect",
    "AutoDirectNormal",
    "AutoExpandedNormal",
    "AutoMeanFieldNormal",
    "AutoOrbitMixture",
    "AutoSymmetric",
    "AutoSymmetricLowRankMultivariateNormal",
    "AutoSymmetricMultivariateNormal",
    "AutoSymmetricNormal",
    "FractionOfPrior",
    "GuideDensity",
    "SymmetrizedGuide",
    "guide_log_density",
]
