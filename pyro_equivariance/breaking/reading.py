"""What is scored, read and checked: the data, how each group moves them, and the options."""

from numbers import Integral

import torch
from torch import Tensor, nn

from ..data import ImageData
from ..errors import DataError, OptionError, SymmetryError
from ..representations import Representation, image, vector
from ..symmetry import Symmetry

LEAST = 8  # data in a fold
SMALLEST = 6  # pixels a side that leave some to compare, two from the frame


def check_options(labels, classifier, folds, level, seed) -> None:
    """Raise unless the options are of their kinds."""
    if not isinstance(labels, bool):
        raise OptionError(f"Expected labels to be True or False; got {type(labels).__name__}. Pass data=(x, labels).")
    made = isinstance(classifier, nn.Module) or (hasattr(classifier, "fit") and not isinstance(classifier, type))
    if made or not (classifier is None or callable(classifier)):
        raise OptionError(
            f"Expected classifier to make a new classifier for each fold; got {type(classifier).__name__}, not a "
            f"function. Pass classifier=lambda: ... that makes it."
        )
    if not _is_integer(folds) or folds < 2:
        raise OptionError(f"Expected folds to be an integer of at least 2; got {folds!r}.")
    if not (isinstance(level, float) and 0 < level < 1):
        raise OptionError(f"Expected level between 0 and 1; got {level!r}.")
    if not _is_integer(seed):
        raise OptionError(f"Expected seed to be an integer; got {seed!r}.")


def _is_integer(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def read(data, labels: bool, folds: int) -> tuple[Tensor, Tensor | None]:
    """The data in float64, so that no rounding tells moved ones, and their labels if these are to be used."""
    x, y = _as_pair(data)
    if not isinstance(x, Tensor) or x.ndim < 1 or len(x) < LEAST * folds:
        what = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise DataError(f"Expected a tensor (N, *event) with N at least {LEAST * folds} for {folds} folds; got {what}.")
    if x.is_complex():
        raise DataError(f"Expected real data; got {x.dtype}. Consider torch.view_as_real(x).")
    if not bool(torch.isfinite(x).all()):
        raise DataError("Expected finite data; got NaN or inf. Consider dropping or filling those entries.")
    if y is None and labels or y is not None and (not isinstance(y, Tensor) or y.shape[:1] != x.shape[:1]):
        what = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise DataError(
            f"Expected data=(x, labels) with a tensor of labels, one for each of the {len(x)} data; got {what} as "
            f"labels. For data without pass data=x, labels=False."
        )
    return x.detach().cpu().double(), y.detach().cpu() if labels else None


def _as_pair(data) -> tuple:
    if isinstance(data, ImageData):
        return data.images, data.labels
    if not isinstance(data, (tuple, list)):
        return data, None
    if len(data) != 2:
        raise DataError(f"Expected data, or a pair (x, labels); got {len(data)} things. Pass data=x, or (x, labels).")
    return tuple(data)


def as_symmetry(group, x: Tensor) -> Symmetry:
    """How the group moves data of this shape."""
    group = getattr(group, "symmetry", group)
    if isinstance(group, Symmetry):
        symmetry = group
    else:
        rep = group if isinstance(group, Representation) else _natural(group, x)
        symmetry = Symmetry(rep.group, {}, inputs=rep)
    if symmetry.inputs is None:
        raise SymmetryError(f"Expected inputs= in {symmetry}: how the group moves one datum.")
    symmetry.inputs.check_shape(x[0])
    if not getattr(symmetry.group, "starts_with_identity", True):
        raise SymmetryError(f"Expected a list of elements with e first; got {symmetry.group}. Use identity=True.")
    if symmetry.group.is_indexed and len(symmetry.group) < 2:
        raise SymmetryError(f"Expected a group with an element other than e, to move data by; got {symmetry.group}.")
    return symmetry


def _natural(group, x: Tensor) -> Representation:
    if getattr(group, "element_dims", None) is None:
        raise SymmetryError(f"Expected a group, a representation, a symmetry, or a list of them; got {group!r}.")
    if x.ndim == 2:
        rep = vector(group)
        if rep.event_shape != x.shape[1:]:
            raise SymmetryError(
                f"Expected vectors (N, {rep.event_shape[0]}), or images (N, C, H, W), for {group}; got "
                f"{tuple(x.shape)}. Lay images out as such, or give a representation on {tuple(x.shape[1:])}."
            )
        return rep
    if x.ndim not in (3, 4):
        raise SymmetryError(
            f"Expected images (N, H, W) or (N, C, H, W), or vectors (N, n), for {group} to move by itself; got "
            f"{tuple(x.shape)}. Give a representation on {tuple(x.shape[1:])}."
        )
    return image(group, x.shape[1:], None if group.is_indexed else "bilinear")


def is_matched(rep: Representation, asked: bool | None) -> bool:
    """Whether data that stay are interpolated as well."""
    possible = rep.is_approximate and not rep.group.is_indexed
    if asked and not possible:
        raise OptionError(
            f"Expected there_and_back for a continuous group whose representation interpolates; got {rep} of "
            f"{rep.group}. Leave it out, or use pe.image(pe.SpecialOrthogonal(2), shape, interpolation='bilinear')."
        )
    matched = possible if asked is None else asked
    if matched and min(rep.event_shape[-2:]) < SMALLEST:
        raise DataError(
            f"Expected images of at least {SMALLEST} pixels a side to compare there and back under {rep.group}; got "
            f"{tuple(rep.event_shape)}. Use a finite group, such as pe.CyclicGroup(4)."
        )
    return matched
