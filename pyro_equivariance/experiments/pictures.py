"""The pictures and the report of a comparison, drawn from the two files that it writes."""

import json
import os
from pathlib import Path

import torch
import xarray as xr
from torch import Tensor

from .. import diagnostics, plots
from ..errors import DataError
from ..representations import image
from .base import GROUPS
from .evaluation import DEFINITIONS

RESULTS, POSTERIOR = "results.json", "posterior.nc"
NEEDED = ("posterior", "orbit_predictive", "observed_data", "constant_data", "test_predictive")
KEYS = ("config", "runs", "histories", "kernels", "recommendation")


def rebuild(folder: str | os.PathLike) -> dict:
    """Draw all pictures and the report of a comparison again, from ``results.json`` and ``posterior.nc`` alone.

    :param folder: what ``compare`` wrote to.
    :returns: the content of ``results.json``.
    :raises DataError: for a file that is missing, cut short, or of something else.
    """
    folder = Path(folder)
    results = read_results(folder)
    idata = diagnostics.from_netcdf(folder / POSTERIOR, groups=NEEDED)
    methods = diagnostics.groups_of(idata)["posterior"][diagnostics.METHOD].values.tolist()
    if methods != list(dict.fromkeys(run["method"] for run in results["runs"])):
        raise DataError(
            f"Expected the same methods in {RESULTS} and {POSTERIOR}; the latter holds {', '.join(methods)}. Run "
            "compare again."
        )
    draw_all(folder, results, idata)
    return results


def read_results(folder: Path) -> dict:
    """``results.json``, once it was seen to be that of a comparison that came to its end."""
    path = folder / RESULTS
    if not path.is_file():
        raise DataError(f"Expected a folder that compare wrote to; {str(folder)!r} has no {RESULTS}.")
    try:
        results = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"Expected JSON in {str(path)!r}; it cannot be read ({error}). Run compare again.") from error
    if lacking := [key for key in KEYS if not isinstance(results, dict) or key not in results]:
        raise DataError(
            f"Expected the results of compare in {str(path)!r}; they lack {', '.join(lacking)}. Run compare again."
        )
    fields = set(DEFINITIONS)
    if lacking := sorted({name for run in results["runs"] for name in fields - set(run)}):
        raise DataError(
            f"Expected runs with all their fields in {str(path)!r}; {', '.join(lacking)} is missing. Run compare again."
        )
    if results["recommendation"] is None:
        raise DataError(f"Expected a comparison that was finished; {str(path)!r} is of one cut short. Run it again.")
    return results


def draw_all(out: Path, results: dict, idata) -> None:
    """Write every picture, ``report.png`` and ``report.html``."""
    groups = diagnostics.groups_of(idata)
    methods = groups["posterior"][diagnostics.METHOD].values.tolist()
    histories: dict[str, list] = {}
    for history in results["histories"]:
        numbers = {name: values for name, values in history.items() if isinstance(values, list)}
        histories.setdefault(history["method"], []).append(numbers)
    tested = groups["test_predictive"].sizes["test_image"]
    plots.save(plots.accuracy(results["runs"], test_size=tested), out / "accuracy.png")
    plots.save(plots.defect(results["runs"]), out / "defect.png")
    plots.save(plots.training(histories), out / "training.png")
    if tracked := {name: several for name, several in histories.items() if "defect" in several[0]}:
        plots.save(plots.defect_training(tracked), out / "defect-training.png")
    if results["kernels"]:
        plots.save(plots.kernels(*map(torch.tensor, results["kernels"])), out / "kernels.png")
    first = {name: _first_run(groups, name) for name in methods}
    names = [str(name) for name in groups["orbit_predictive"]["element"].values]
    probs = {name: _tensor(run["test_predictive"]["probs"]) for name, run in first.items()}
    labels = _tensor(first[methods[0]]["test_predictive"]["label"]).long()
    plots.save(plots.calibration_under_rotation(probs, labels, names), out / "rotation.png")
    draws = {name: _tensor(run["orbit_predictive"]["probs"]) for name, run in first.items()}
    plots.save(plots.defect_by_element(draws, names), out / "defect-elements.png")
    for name, run in first.items():
        both = {"upright": probs[name][0], "all moved copies": probs[name]}
        plots.save(plots.reliability(both, labels), out / f"reliability-{name}.png")
        plots.save(_orbit(run, results["config"]["group"], names), out / f"orbit-{name}.png")
    plots.report(idata, out / "report.png")
    plots.report_html(idata, out / "report.html")


def _first_run(groups: diagnostics.base.Groups, method: str) -> diagnostics.base.Groups:
    """The first seed's run of a method."""
    found = {}
    for name, group in groups.items():
        own = group.sel({diagnostics.METHOD: method}) if diagnostics.METHOD in group.dims else group
        found[name] = own.isel(chain=0) if "chain" in own.dims else own
    return found


def _orbit(run: diagnostics.base.Groups, group: str, names: list[str]):
    """The predictive over the orbit of the first test image."""
    upright = _tensor(run["constant_data"]["x"])[0]
    copies = image(GROUPS[group](), upright.shape).orbit(upright)
    label = int(next(iter(run["observed_data"].values()))[0])
    return plots.orbit(copies, _tensor(run["orbit_predictive"]["probs"])[:, :, 0], names, label=label)


def _tensor(array: xr.DataArray) -> Tensor:
    return torch.tensor(array.values)
