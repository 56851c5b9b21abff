"""Learned symmetries: measures on a group whose generators or widths are trained with the model."""

from .affine import AffineAugmenter
from .fit import LearnedAugmentation, learn_augmentation
from .lie import LieAugmenter, inputs_of
from .verdict import Verdict, averaged, judge, random_like

__all__ = [
    "AffineAugmenter",
    "LearnedAugmentation",
    "LieAugmenter",
    "Verdict",
    "averaged",
    "inputs_of",
    "judge",
    "learn_augmentation",
    "random_like",
]
