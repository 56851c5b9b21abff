"""Learned symmetries: measures on a group whose generators or widths are trained with the model."""

from .affine import AffineAugmenter
from .fit import LearnedAugmentation, Verdict, averaged, judge, learn_augmentation
from .lie import LieAugmenter, inputs_of

__all__ = [
    "AffineAugmenter",
    "LearnedAugmentation",
    "LieAugmenter",
    "Verdict",
    "averaged",
    "inputs_of",
    "judge",
    "learn_augmentation",
]
