"""How a group element moves one tensor.

A representation acts on the last axes of a tensor, its *event*; axes before them are batch. Products act axis
by axis (a kernel is out-channels × in-channels × height × width), so moving a tensor needs memory of the
tensor's own size and tables no longer than an axis.
"""

from .actions import (
    Angle,
    BlockPermutation,
    Labels,
    MatrixRepresentation,
    NaturalPermutation,
    SignedPermutation,
    Trivial,
)
from .base import Composed, DirectSum, Factor, Product, Pullback, Representation, Reshaped
from .builders import angle, labels, matrix, permutation, quotient, regular, signed_permutation, trivial, vector
from .continuous import InterpolatedImage, Points, Rotation, homomorphism_error
from .grids import Grid, grid, image, is_grid, kernel_of, lattice, resized, sequence, volume
from .listed import Listed

__all__ = [
    "Angle",
    "BlockPermutation",
    "Composed",
    "DirectSum",
    "Factor",
    "Grid",
    "InterpolatedImage",
    "Labels",
    "Listed",
    "MatrixRepresentation",
    "NaturalPermutation",
    "Points",
    "Product",
    "Pullback",
    "Representation",
    "Reshaped",
    "Rotation",
    "SignedPermutation",
    "Trivial",
    "angle",
    "grid",
    "homomorphism_error",
    "image",
    "is_grid",
    "kernel_of",
    "labels",
    "lattice",
    "matrix",
    "permutation",
    "quotient",
    "regular",
    "resized",
    "sequence",
    "signed_permutation",
    "trivial",
    "vector",
    "volume",
]
