"""What a diagnosis starts from, and the rows that it collects."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr

from ..metrics import Estimate
from ..symmetry import Symmetry
from .base import Groups

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

    def add(self, section: str, name: str, estimates: Sequence[Estimate], verdict: str, definition: str) -> None:
        """A row; a quantity without a value in any run is left out."""
        values, errors = tuple(e.value for e in estimates), tuple(e.se for e in estimates)
        lost = sum(math.isnan(value) for value in values)
        if lost == len(values):
            self.leave_out(name, "not finite, or too few draws")
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
    def log_ratios(self) -> np.ndarray | None:
        """``log p(θ, y) − log q(θ)``, ``(chain, draw)``."""
        log_p, log_q = self.array("sample_stats", "lp"), self.array("sample_stats", "log_q")
        return None if log_p is None or log_q is None else log_p - log_q


def worst(estimates: Sequence[Estimate], key: Callable[[float], float] = float) -> Estimate:
    """The run that a verdict is given on: the one with the largest ``key`` of its value, NaN passed over."""
    known = [estimate for estimate in estimates if not math.isnan(estimate.value)]
    return max(known, key=lambda estimate: key(estimate.value)) if known else Estimate(math.nan, math.nan)


def _known(values: Sequence[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]
