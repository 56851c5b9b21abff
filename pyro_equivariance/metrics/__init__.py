"""How equivariant, how accurate and how calibrated a posterior predictive is: tensors in, tensors out.

Orbit tensors carry the group on one axis, element 0 being the identity: draws of the outputs are
``(T, |G|, N, *event)`` and mean predictives ``(|G|, N, K)``. Every number has several published definitions;
each docstring states the one that is computed.

An ``action`` moves outputs: any object with ``group``, ``event_shape`` and ``act(g, y)``, such as a
representation of the group on the outputs. ``None`` stands for invariant outputs.

References:

[1] Dong, Flinth, Gerken (2026) arXiv:2606.26273

[2] Hoeffding (1948) "A class of statistics with asymptotically normal distribution"

[3] Efron, Stein (1981) "The jackknife estimate of variance"

[4] Naeini, Cooper, Hauskrecht (2015) "Obtaining well calibrated probabilities using Bayesian binning"

[5] Gerken, Kessel (2024) arXiv:2403.03103

[6] Brier (1950) "Verification of forecasts expressed in terms of probability"

[7] Vovk, Gammerman, Shafer (2005) "Algorithmic learning in a random world"

[8] Sadinle, Lei, Wasserman (2019) "Least ambiguous set-valued classifiers with bounded error levels"

[9] McDiarmid (1989) "On the method of bounded differences"

[10] Hoeffding (1963) "Probability inequalities for sums of bounded random variables"
"""

from .base import Estimate
from .bounds import deviation, sample_size
from .defect import defect_by_element, equivariance_defect
from .orbits import orbit_same_prediction, symmetric_kl
from .scores import (
    PredictionSets,
    accuracy,
    brier_score,
    calibration_error,
    conformal_set_size,
    negative_log_likelihood,
)
from .sweep import DefectSweep, Reevaluations, Slope, defect_sweep

__all__ = [
    "DefectSweep",
    "Estimate",
    "PredictionSets",
    "Reevaluations",
    "Slope",
    "accuracy",
    "brier_score",
    "calibration_error",
    "conformal_set_size",
    "defect_by_element",
    "defect_sweep",
    "deviation",
    "equivariance_defect",
    "negative_log_likelihood",
    "orbit_same_prediction",
    "sample_size",
    "symmetric_kl",
]
