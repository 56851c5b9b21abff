"""ArviZ data on disk, written whole and read with checks, and the data of many runs as one."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from ..errors import DataError
from . import base
from .base import METHOD, Groups, groups_of

TOGETHER = ("posterior", "sample_stats", "log_likelihood")  # where leave-one-out and k̂ need draw beside draw
SIDE = ("sample_stats", "variational")  # what is known of a run beside its draws: not the same for all methods
HDF5 = b"\x89HDF\r\n\x1a\n"  # how a netCDF 4 file begins
_INTO_A_GROUP = "If it holds draws, write them as a group: xr.load_dataset(path).to_netcdf(new, group='posterior')."
DRAWN = ("posterior", "sample_stats", "log_likelihood", "posterior_predictive", "orbit_predictive")  # one set of draws


def stack(idatas: Mapping[str, Sequence]):
    """Many runs as one: the runs of a method become chains, the methods a leading dimension ``method_name``.

    ``stack(...).sel(method_name="baseline")`` is a method's own data again. (A dimension ``method`` could not be
    selected: xarray's ``sel(method=...)`` is something else.) Data that all runs share are kept once. Runs on
    different data, such as splits by seed, give the data groups these dimensions as well; element-wise statistics
    (``az.loo``) then pool different data under one index: select a chain first. In ``sample_stats`` and ``variational``
    NaN stands for what a run does not have; groups that some run lacks are left out.

    :param dict idatas: for each method a list of :func:`to_arviz` results, as many for each.
    :raises DataError: for no runs, or runs whose numbers, groups, variables or shapes differ.

    >>> import torch, pyro_equivariance as pe
    >>> model = pe.BayesianNetwork(torch.nn.Linear(4, 3))
    >>> data = (torch.zeros(5, 4), torch.zeros(5).long())
    >>> runs = [pe.to_arviz(model, pe.AutoMeanFieldNormal(model), data, draws=7) for _ in range(2)]
    >>> dict(stack({"a": runs, "b": runs}).posterior.sizes)
    {'method_name': 2, 'chain': 2, 'draw': 7}
    """
    if not isinstance(idatas, Mapping):
        raise DataError(f"Expected a dict of lists of runs; got {type(idatas).__name__}. Write {{'method': [...]}}.")
    for method, several in idatas.items():
        if not isinstance(several, list | tuple):
            raise DataError(f"Expected a list of runs of {method!r}; got {type(several).__name__}. Put it in a list.")
    runs = {method: [groups_of(idata) for idata in several] for method, several in idatas.items()}
    counts = {method: len(several) for method, several in runs.items()}
    if not counts or len(set(counts.values())) > 1 or 0 in counts.values():
        raise DataError(f"Expected the same number of runs for each method, at least one; got {counts}.")
    first = next(iter(runs.values()))[0]
    needed = set(DRAWN) - set(SIDE)
    shared = [g for g in first if g in needed or all(g in run for several in runs.values() for run in several)]
    _check_alike({g: first[g] for g in shared if g not in SIDE}, runs)
    joined = {g: join_runs({m: [run[g] for run in several] for m, several in runs.items()}) for g in shared}
    attrs = _common([run["posterior"].attrs for several in runs.values() for run in several])
    return base.ARVIZ.container({name: group.assign_attrs(attrs) for name, group in joined.items()}, attrs)


def save(idata, path: str | os.PathLike) -> None:
    """Write netCDF, whole or not at all: a file of that name is replaced once the new one is complete.

    :param idata: what :func:`to_arviz` or :func:`stack` gives.
    :param path: the file, in a folder that exists; plain ArviZ (``az.from_netcdf``) reads it, and so does
        :func:`from_netcdf`.
    :raises DataError: for something else than ArviZ data, or a folder that does not exist.
    """
    groups_of(idata)
    path = _as_path(path)
    if not path.parent.is_dir():
        raise DataError(f"Expected a folder that exists; there is none at {str(path.parent)!r}. Make it first.")
    part = path.with_name(f"{path.name}.part")
    try:
        base.ARVIZ.write(idata, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def from_netcdf(path: str | os.PathLike, groups: Sequence[str] | str = ("posterior",)):
    """Read ArviZ data and check that they are whole: for each group named the dimensions that its variables need.

    Any file with a ``posterior`` group is read, written by this package, by ArviZ or by another library.

    :param path: a netCDF file.
    :param groups: the groups that must be there.
    :returns: an ``InferenceData`` (ArviZ 0.2x) or ``xarray.DataTree`` (1.x), in memory; the file is closed.
    :raises DataError: for a file that is not there, cut short or no netCDF, groups that are missing or empty, draws
        without the dimensions ``chain`` and ``draw``, or a log likelihood with other numbers of them.

    >>> import tempfile, torch, pyro_equivariance as pe
    >>> model = pe.BayesianNetwork(torch.nn.Linear(4, 3))
    >>> idata = pe.to_arviz(model, pe.AutoMeanFieldNormal(model), (torch.zeros(5, 4), torch.zeros(5).long()), draws=7)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(idata, f"{folder}/posterior.nc")
    ...     pe.from_netcdf(f"{folder}/posterior.nc").posterior.sizes["draw"]
    7
    """
    path = _as_path(path)
    if not path.is_file():
        raise DataError(f"Expected a netCDF file; there is none at {str(path)!r}.")
    try:
        idata = base.ARVIZ.read(path)
        for group in groups_of(idata).values():
            group.load().close()
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise DataError(f"Expected a whole netCDF file at {str(path)!r}; {_fault(path, error)}") from error
    _check_whole(groups_of(idata), (groups,) if isinstance(groups, str) else tuple(groups), path)
    return idata


def _as_path(path: str | os.PathLike) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise DataError(f"Expected the path of a netCDF file; got {type(path).__name__}.")
    if (path := Path(path)).is_dir():
        raise DataError(f"Expected a netCDF file; {str(path)!r} is a folder. Name a file in it.")
    return path


def _fault(path: Path, error: Exception) -> str:
    """Why a file cannot be read, by how it begins."""
    with path.open("rb") as file:
        start = file.read(len(HDF5))
    if not start:
        return "it is empty. It may be cut short: write it again."
    if start.startswith(b"CDF"):
        return f"it is netCDF 3, which has no groups. {_INTO_A_GROUP}"
    if start != HDF5:
        return f"it is something else, it begins with {start!r}. Name a file that save, or ArviZ's to_netcdf, wrote."
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"it cannot be read ({reason}). It may be cut short: write it again."


def _check_whole(found: Groups, needed: tuple[str, ...], path: Path) -> None:
    where = f"in {str(path)!r}"
    if missing := [name for name in needed if name not in found or not found[name].data_vars]:
        listed = ", ".join(map(repr, found)) or "no groups"
        way_out = "" if found else f" {_INTO_A_GROUP}"
        raise DataError(f"Expected the groups {', '.join(map(repr, missing))} {where}; it holds {listed}.{way_out}")
    for name in (name for name in DRAWN if name in found):
        for variable, array in found[name].items():
            if lacking := [d for d in ("chain", "draw") if d not in array.dims]:
                raise DataError(
                    f"Expected {name}.{variable} {where} to have the dimensions chain and draw; it lacks "
                    f"{' and '.join(lacking)}, it has {array.dims}. ArviZ names them so."
                )
    together = [name for name in TOGETHER if name in found and found[name].data_vars]
    sizes = {name: tuple(found[name].sizes[d] for d in ("chain", "draw")) for name in together}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise DataError(f"Expected the same chains and draws in these groups {where}; they are {listed}.")


def _common(attributes: Sequence[Mapping]) -> dict:
    """What all runs say alike."""
    first, *others = attributes
    return {n: value for n, value in first.items() if all(np.array_equal(other.get(n), value) for other in others)}


def _check_alike(first: Groups, runs: dict[str, list[Groups]]) -> None:
    expected = _shapes(first)
    for method, several in runs.items():
        for run in several:
            shapes = _shapes({name: run[name] for name in first if name in run})
            if differing := [name for name in expected | shapes if expected.get(name) != shapes.get(name)]:
                name = differing[0]
                raise DataError(
                    f"Expected the same arrays in all runs; {'.'.join(name)} is {expected.get(name)} in the first and "
                    f"{shapes.get(name)} in one of {method!r}. Use equal draws and data, and keep shared sites only."
                )


def _shapes(groups: Groups) -> dict[tuple[str, str], dict[str, int]]:
    return {(g, name): dict(array.sizes) for g, dataset in groups.items() for name, array in dataset.items()}


def join_runs(datasets: dict[str, list[xr.Dataset]]) -> xr.Dataset:
    """One group of all runs: with methods and chains, unless it has no draws and is the same in all."""
    flat = [dataset for several in datasets.values() for dataset in several]
    if "chain" not in flat[0].dims and all(dataset.equals(flat[0]) for dataset in flat):
        return flat[0]
    chains = [join_chains(several) for several in datasets.values()]
    return _concatenate(chains, xr.DataArray(list(datasets), dims=METHOD, name=METHOD))


def join_chains(datasets: Sequence[xr.Dataset]) -> xr.Dataset:
    """Runs one after the other, numbered from 0."""
    joined = _concatenate(datasets, "chain")
    return joined.assign_coords(chain=np.arange(joined.sizes["chain"]))


def _concatenate(datasets: Sequence[xr.Dataset], dim) -> xr.Dataset:
    return xr.concat(
        datasets, dim, data_vars="all", coords="minimal", compat="equals", join="outer",
        combine_attrs=lambda attributes, context: _common(attributes),
    )  # fmt: skip
