"""What a diagnosis starts from, and the rows that it collects."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr

from ..metrics import Estimate
from ..symmetry import Symmetry
from .base import MAX_ORBIT, Groups

ZERO, ROUNDING = "0 up to rounding", 1e-12
KERNELS = ("NUTS", "HMC", "RandomWalkKernel")  # of Pyro
NO_DENSITY = "the guide has no density (point masses, or an implicit law)"

Functionals = Mapping[str, Callable[[xr.Dataset], xr.DataArray]]


@dataclass(frozen=True)
class Row:
    """One quantity: its value in each run, or a single value of all runs together, with standard errors.

    ``value`` is the mean over the runs that have one, ``se`` the typical standard error of one run (the root of the
    mean square), ``spread`` the standard deviation over runs, which shows what differs between them; NaN where there
    is none.

    >>> row = Row("fit", "elbo", (-3.0, -1.0), (0.1, 0.1), "", "")
    >>> row.value, row.spread
    (-2.0, 1.4142135623730951)
    """

    section: str
    name: str
    values: tuple[float, ...]
    errors: tuple[float, ...]
    verdict: str
    definition: str

    @property
    def value(self) -> float:
        known = _known(self.values)
        return float(np.mean(known)) if known else math.nan

    @property
    def se(self) -> float:
        known = _known(self.errors)
        return math.sqrt(np.mean(np.square(known))) if known else math.nan

    @property
    def spread(self) -> float:
        known = [value for value in _known(self.values) if math.isfinite(value)]
        return float(np.std(known, ddof=1)) if len(known) > 1 else math.nan


@dataclass
class Table:
    """Rows as they are found, and what had to be left out, with the reason."""

    rows: list[Row] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def add(
        self,
        section: str,
        name: str,
        estimates: Sequence[Estimate],
        verdict: str,
        definition: str,
        reason: str = "not finite",
    ) -> None:
        """A row; a quantity without a value in any run is left out, for the reason given."""
        values, errors = tuple(e.value for e in estimates), tuple(e.se for e in estimates)
        lost = sum(math.isnan(value) for value in values)
        if lost == len(values):
            self.leave_out(name, reason)
            return
        verdict = f"{verdict}; no value in {lost} of {len(values)} runs" if lost else verdict
        self.rows.append(Row(section, name, values, errors, verdict, definition))

    def leave_out(self, names: str, reason: str) -> None:
        self.missing[names] = reason


@dataclass(frozen=True)
class Evidence:
    """ArviZ groups and the options of a diagnosis."""

    groups: Groups
    symmetry: Symmetry | None
    functionals: Sequence[str] | Functionals | None
    alpha: float

    @property
    def chains(self) -> int:
        return self.groups["posterior"].sizes["chain"]

    @property
    def draws(self) -> int:
        return self.groups["posterior"].sizes["draw"]

    def array(self, group: str, name: str) -> np.ndarray | None:
        """A variable as ``(chain, draw, ...)``, floating point; ``None`` where there is none."""
        if group not in self.groups or name not in self.groups[group]:
            return None
        return self.groups[group][name].transpose("chain", "draw", ...).values.astype(float, copy=False)

    @property
    def attrs(self) -> dict:
        """What :func:`~pyro_equivariance.to_arviz` noted of the draws."""
        return self.groups["posterior"].attrs

    @property
    def are_held_out(self) -> bool:
        """Whether the data are others than those that the posterior was fitted to."""
        return bool(self.attrs.get("held_out", False))

    @property
    def why_no_log_q(self) -> str:
        """Why the draws have no density; empty where they have one."""
        stats, source = self.groups.get("sample_stats", xr.Dataset()), self.attrs.get("guide")
        if "log_q" in stats:
            return ""
        if source in KERNELS or "diverging" in stats:
            return "draws of MCMC have no log q"
        if source == "samples":
            return "draws given as they are have no log q"
        return "sample_stats has no log_q" if source is None else NO_DENSITY

    @property
    def why_no_orbit_of_latents(self) -> str:
        """Why there are no log densities at moved draws."""
        symmetry = self.symmetry
        if symmetry is None and "symmetry" not in self.attrs:
            return "no symmetry given"
        if symmetry is not None and not symmetry.sites:
            return "the symmetry does not move the latent sites"
        if symmetry is not None and not (symmetry.group.is_finite and symmetry.group.is_indexed):
            return "the group has no list of elements"
        if self._order > MAX_ORBIT:
            return f"the group has {self._order} elements, more than {MAX_ORBIT}"
        if self.why_no_log_q:
            return self.why_no_log_q
        return f"needs a symmetry of the sites drawn, at most {MAX_ORBIT} elements, and a guide dense at any value"

    @property
    def _order(self) -> int:
        """The number of elements of the group, as far as it is known; else 0."""
        if self.symmetry is not None:
            return len(self.symmetry.group)
        return max((group.sizes.get("element", 0) for group in self.groups.values()), default=0)

    def log_likelihood(self, name: str) -> list[np.ndarray]:
        """Those of a site that count, of each run ``(draw, data)``; masked data do not."""
        array = self.groups["log_likelihood"][name].transpose("chain", "draw", ...)
        values = array.values.astype(float, copy=False).reshape(*array.shape[:2], -1)
        return [run[:, mask] for run, mask in zip(values, self.counted(name), strict=True)]

    def counted(self, name: str) -> np.ndarray:
        """Which data of a site are not masked, ``(chain, data)``."""
        array = self.groups["log_likelihood"][name].isel(draw=0, drop=True).transpose("chain", ...)
        mask = self.groups.get("constant_data", xr.Dataset()).get(f"{name}_mask")
        if mask is None:
            return np.ones((array.sizes["chain"], array[0].size), dtype=bool)
        extra = [dim for dim in mask.dims if dim not in array.dims]
        mask = mask.drop_vars(mask.coords).astype(bool).any(extra)
        return mask.broadcast_like(array.drop_vars(array.coords)).transpose(*array.dims).values.reshape(len(array), -1)

    def scale(self, name: str) -> float:
        """By which the model scales the log density of a site."""
        return float(self.groups["log_likelihood"][name].attrs.get("scale", 1.0))

    @property
    def log_ratios(self) -> np.ndarray | None:
        """``log p(θ, y) − log q(θ)``, ``(chain, draw)``."""
        log_p, log_q = self.array("sample_stats", "lp"), self.array("sample_stats", "log_q")
        return None if log_p is None or log_q is None else log_p - log_q


def of_worst(verdict: str, runs: Sequence) -> str:
    """A verdict on one of the runs, and that it is on the worst of several.

    >>> of_worst("poor", [0.9]), of_worst("poor", [0.2, 0.9])
    ('poor', 'worst run: poor')
    """
    return f"worst run: {verdict}" if len(runs) > 1 else verdict


def worst(estimates: Sequence[Estimate], key: Callable[[float], float] = float) -> Estimate:
    """The run that a verdict is given on: the one with the largest ``key`` of its value, NaN passed over."""
    known = [estimate for estimate in estimates if not math.isnan(estimate.value)]
    return max(known, key=lambda estimate: key(estimate.value)) if known else Estimate(math.nan, math.nan)


def _known(values: Sequence[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]
