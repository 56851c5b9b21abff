"""Training loops: ``fit``, a convenience over Pyro's ELBOs that adds what symmetrization needs, and its callbacks."""

from .base import FitResult, Training
from .callbacks import ExpandAt, SymmetrizeAt, TrackDefect, Trigger
from .loop import TemperMessenger, fit, negative_log_predictive
from .relaxation import ConstrainRelaxation

__all__ = [
    "ConstrainRelaxation",
    "ExpandAt",
    "FitResult",
    "SymmetrizeAt",
    "TemperMessenger",
    "TrackDefect",
    "Training",
    "Trigger",
    "fit",
    "negative_log_predictive",
]
