"""Arrays with named axes: how draws are collected into them, and how they become labelled data sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..errors import OptionError
from ..groups import Group

Labelled = tuple[tuple[str, ...], Tensor]  # the names of the axes, and the values
Arrays = dict[str, tuple[tuple[str, ...], np.ndarray]]


@dataclass(frozen=True)
class Labels:
    """What the entries along an axis are called: group elements by their names, others as given, or by number."""

    groups: Mapping[str, Group]
    given: Mapping[str, Sequence]

    def of(self, dim: str, size: int) -> np.ndarray:
        if dim in self.given:
            if len(self.given[dim]) != size:
                raise OptionError(f"Expected {size} labels for the axis {dim!r} in coords; got {len(self.given[dim])}.")
            return np.asarray(self.given[dim])
        if dim in self.groups:
            return np.asarray([self.groups[dim].name(g) for g in range(size)])
        return np.arange(size)

    def check_used(self, dims: set) -> None:
        """Raise unless all that is given names an axis."""
        if unknown := [dim for dim in self.given if dim not in dims]:
            listed = ", ".join(map(repr, sorted(map(str, dims))))
            raise OptionError(f"Expected coords of axes, {listed}; got {unknown[0]!r}.")


class Recorder:
    """Collects draws, one row of groups after the other, in arrays that are allocated once.

    :param int chains: how many chains of ``draws`` rows follow one another.
    :param int draws: rows of a chain.
    :param dtype: of floating arrays; ``None`` keeps that of the values.
    """

    def __init__(self, chains: int, draws: int, dtype: str | None = None):
        self.chains, self.draws, self.dtype = chains, draws, dtype
        self.groups: dict[str, Arrays] = {}

    def add(self, place: int, row: Mapping[str, Mapping[str, Labelled]]) -> None:
        """Write row number ``place``, counted through all chains."""
        chain, draw = divmod(place, self.draws)
        for group, values in row.items():
            arrays = self.groups.setdefault(group, {})
            for name, (dims, value) in values.items():
                value = _as_array(value, self.dtype)
                if name not in arrays:
                    shape = (self.chains, self.draws, *value.shape)
                    arrays[name] = ("chain", "draw", *dims), np.empty(shape, value.dtype)
                arrays[name][1][chain, draw] = value

    def dataset(self, group: str, labels: Labels) -> xr.Dataset:
        return dataset(self.groups[group], labels)


def as_arrays(values: Mapping[str, Labelled], dtype: str | None) -> Arrays:
    """The same in numpy."""
    return {name: (dims, _as_array(value, dtype)) for name, (dims, value) in values.items()}


def dataset(arrays: Arrays, labels: Labels) -> xr.Dataset:
    """Arrays with a label for each index."""
    found = xr.Dataset(arrays)
    return found.assign_coords({dim: labels.of(dim, size) for dim, size in found.sizes.items()})


def _as_array(value: Tensor | float, dtype: str | None) -> np.ndarray:
    array = torch.as_tensor(value).detach().cpu().numpy()
    return array.astype(dtype) if dtype is not None and np.issubdtype(array.dtype, np.floating) else array
