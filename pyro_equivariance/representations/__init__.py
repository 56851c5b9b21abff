"""How a group element moves one tensor.

A representation acts on the last axes of a tensor, its *event*; axes before them are batch. Products act axis
by axis (a kernel is out-channels × in-channels × height × width), so moving a tensor needs memory of the
tensor's own size and tables no longer than an axis.
"""

from .actions import Angle, MatrixRepresentation, SignedPermutation, Trivial
from .base import DirectSum, Product, Pullback, Representation, Reshaped
from .builders import angle, image, matrix, permutation, regular, signed_permutation, trivial

__all__ = [
    "Angle",
    "DirectSum",
    "MatrixRepresentation",
    "Product",
    "Pullback",
    "Representation",
    "Reshaped",
    "SignedPermutation",
    "Trivial",
    "angle",
    "image",
    "matrix",
    "permutation",
    "regular",
    "signed_permutation",
    "trivial",
]
