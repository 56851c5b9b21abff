"""Pictures of posteriors: functions of numbers or of ArviZ data that return axes or a figure.

They use matplotlib without pyplot: no display is needed and nothing global changes. :func:`save` writes a PNG; a
notebook shows a figure that ends a cell once ``matplotlib.pyplot`` has been imported in it. Colours are those that
colour-blind readers tell apart, and no two texts overlap at the default sizes.
"""

from .base import save, styled
from .calibration import calibration_under_rotation, ranks, reliability
from .comparisons import accuracy, defect, defect_by_element
from .document import report, report_html
from .fields import generators
from .orbits import kernels, kernels_orbit, orbit, parameters
from .sweeps import defect_sweep, sample_size
from .traces import defect_training, elbo, training

__all__ = [
    "accuracy",
    "calibration_under_rotation",
    "defect",
    "defect_by_element",
    "defect_sweep",
    "defect_training",
    "elbo",
    "generators",
    "kernels",
    "kernels_orbit",
    "orbit",
    "parameters",
    "ranks",
    "reliability",
    "report",
    "report_html",
    "sample_size",
    "save",
    "styled",
    "training",
]
