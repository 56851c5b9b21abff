"""What the diagnostics take of ArviZ, alike for its 0.2x series and for 1.x: containers, files and statistics."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from ..errors import DataError

with warnings.catch_warnings():
    # ArviZ 0.23 announces its 1.x series when it is first imported on a day.
    warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing a major refactor", FutureWarning)
    import arviz

OBSERVATION = "observation"
METHOD = "method_name"
MAX_ORBIT = 64  # elements at which log densities are evaluated

Groups = dict[str, xr.Dataset]


@dataclass(frozen=True)
class LeaveOneOut:
    """Expected log pointwise predictive density in nats, its standard error, and Pareto k̂ of every datum."""

    elpd: float
    se: float
    p: float
    pareto_k: np.ndarray


class Legacy:
    """ArviZ 0.2x: ``InferenceData``."""

    @property
    def version(self) -> str:
        return arviz.__version__

    def container(self, groups: Groups, attrs: Mapping):
        """The groups as one object, with attributes of its own."""
        return arviz.InferenceData(attrs=dict(attrs), **groups)

    def read(self, path: Path):
        return arviz.from_netcdf(str(path), engine="h5netcdf")

    def write(self, idata, path: Path) -> None:
        idata.to_netcdf(str(path))

    def smoothed(self, log_ratios: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pareto smoothed log weights ``(..., S)``, which sum to 1, and k̂ ``(...)``, over the last axis."""
        weights, k = arviz.psislw(log_ratios)
        return np.asarray(weights), np.asarray(k)

    def rhat(self, dataset: xr.Dataset) -> xr.Dataset:
        return arviz.rhat(dataset)

    def ess(self, dataset: xr.Dataset) -> xr.Dataset:
        return arviz.ess(dataset)


class Modern:
    """ArviZ 1.x, or its parts ``arviz_base`` and ``arviz_stats``: ``xarray.DataTree``."""

    @property
    def version(self) -> str:
        import arviz_base

        return arviz_base.__version__

    def container(self, groups: Groups, attrs: Mapping):
        return xr.DataTree.from_dict({"/": xr.Dataset(attrs=dict(attrs)), **groups})

    def read(self, path: Path):
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            return tree.load()

    def write(self, idata, path: Path) -> None:
        idata.to_netcdf(path, engine="h5netcdf")

    def smoothed(self, log_ratios: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        from arviz_stats.base import array_stats

        weights, k = array_stats.psislw(-log_ratios)  # it takes log likelihoods, of which ratios are the inverse
        return np.asarray(weights), np.asarray(k)

    def rhat(self, dataset: xr.Dataset) -> xr.Dataset:
        import arviz_stats

        return arviz_stats.rhat(dataset)

    def ess(self, dataset: xr.Dataset) -> xr.Dataset:
        import arviz_stats

        return arviz_stats.ess(dataset)


ARVIZ: Legacy | Modern = Legacy() if hasattr(arviz, "InferenceData") else Modern()


def groups_of(idata) -> Groups:
    """The groups of an object of either series.

    :raises DataError: for anything else.
    """
    if not isinstance(idata, (xr.DataTree, getattr(arviz, "InferenceData", xr.DataTree))):
        raise DataError(f"Expected ArviZ data; got {type(idata).__name__}. Make them with pe.to_arviz or az.from_dict.")
    if isinstance(idata, xr.DataTree):
        return {name: child.to_dataset() for name, child in idata.children.items()}
    return {name: idata[name] for name in idata.groups()}


def with_groups(idata, groups: Groups):
    """The same data and some more groups, each with the attributes of the whole."""
    found = groups_of(idata) | {name: group.assign_attrs(idata.attrs) for name, group in groups.items()}
    return ARVIZ.container(found, idata.attrs)
