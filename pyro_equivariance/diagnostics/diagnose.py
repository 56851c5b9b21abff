"""One call, one table: what the draws of a posterior say of its fit, its symmetry and its predictions."""

import html
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr

from ..errors import DataError, OptionError
from ..symmetry import Symmetry
from .base import METHOD, groups_of
from .convert import to_arviz
from .evidence import ZERO, Evidence, Functionals, Row, Table
from .predictions import equivariance, prediction
from .sections import convergence, coverage, fit

TITLES = {
    "fit": "fit",
    "coverage": "coverage of the orbit",
    "convergence": "convergence between runs",
    "equivariance": "equivariance",
    "prediction": "prediction",
}
WIDTH, NAME = 120, 28
ROUNDING = 1e-14
MOST_PLACES, MOST_DIGITS = 6, 9  # of a number that is not printed with an exponent


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What :func:`diagnose` returns: it prints as a table, and ``diagnosis["defect"]`` is one of its rows.

    :param tuple rows: the quantities, each a :class:`Row`, grouped by section.
    :param dict missing: the names of what was left out, and why.
    :param tuple chains: the labels of the runs.
    :param int draws: of each run.
    """

    rows: tuple[Row, ...]
    missing: dict[str, str]
    chains: tuple
    draws: int

    def __getitem__(self, name: str) -> Row:
        """The row of a quantity.

        :raises OptionError: if there is none.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise OptionError(f"Expected a quantity, {', '.join(repr(row.name) for row in self.rows)}; got {name!r}.")

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, name: str) -> bool:
        return any(row.name == name for row in self.rows)

    @cached_property
    def dataset(self) -> xr.Dataset:
        """The same as arrays: ``value`` and ``se`` ``(quantity, chain)``, ``section``, ``verdict`` and ``definition``
        ``(quantity)``. A value of all runs together stands at each chain.
        """
        shape = (len(self.rows), len(self.chains))
        value, se = (
            np.stack([np.broadcast_to(numbers, shape[1:]) for numbers in column]) if self.rows else np.zeros(shape)
            for column in ([row.values for row in self.rows], [row.errors for row in self.rows])
        )
        texts = {name: [getattr(row, name) for row in self.rows] for name in ("section", "verdict", "definition")}
        return xr.Dataset(
            {"value": (("quantity", "chain"), value), "se": (("quantity", "chain"), se)}
            | {name: ("quantity", np.array(column, dtype=str)) for name, column in texts.items()},
            {"quantity": np.array([row.name for row in self.rows], dtype=str), "chain": list(self.chains)},
        )

    def __str__(self) -> str:
        runs = f"{len(self.chains)} runs of {self.draws} draws" if len(self.chains) > 1 else f"{self.draws} draws"
        lines = [f"{runs:<{NAME}} {'value':>10}   {'se':<8} {'spread':>8}  verdict"]
        for section, title in TITLES.items():
            rows = [row for row in self.rows if row.section == section]
            lines += [title] * bool(rows) + [line for row in rows for line in _printed(row)]
        return "\n".join([*lines, *textwrap.wrap(self._left_out, WIDTH, subsequent_indent="  ")])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in ("", "value", "se", "spread", "verdict"))
        body = []
        for section, title in TITLES.items():
            rows = [row for row in self.rows if row.section == section]
            body += [f'<tr><th colspan="5" style="text-align:left">{title}</th></tr>'] * bool(rows)
            body += [_html_row(row) for row in rows]
        note = f"<p>{html.escape(self._left_out)}</p>" if self.missing else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>{note}"

    @property
    def _left_out(self) -> str:
        by_reason: dict[str, list[str]] = {}
        for names, reason in self.missing.items():
            by_reason.setdefault(reason, []).append(names)
        reasons = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())
        return f"left out: {reasons}" if reasons else ""


def diagnose(
    posterior: Any,
    model: Callable | None = None,
    data: Any = (),
    symmetry: Symmetry | None = None,
    draws: int = 500,
    functionals: Sequence[str] | Functionals | None = None,
    alpha: float = 0.1,
    **options,
) -> Diagnosis:
    """How good a posterior is, as far as its draws tell: a table of numbers with standard errors and verdicts in words.

    - *fit*: the ELBO, the loss's trend, and Pareto k̂ of the importance weights, joint and of functionals;
    - *coverage of the orbit*, with a symmetry that moves the latent sites: how many of its symmetric copies q covers,
      which k̂ cannot see, since it looks only where q has mass;
    - *convergence between runs*, from two on: R̂ and effective sample size of the variables as they are, of draws moved
      to one representative of their orbit, and of invariants;
    - *equivariance*, with a symmetry that moves the inputs: defect, orbit same prediction and symmetric KL;
    - *prediction*: accuracy, negative log likelihood, calibration and conformal sets, upright and over the orbit; the
      log predictive density, and leave-one-out.

    Each quantity is computed for each run (chain) on its own, but for R̂ and effective sample size. The table shows the
    mean over runs, the typical standard error of one run, and the spread over runs. A verdict is that of the worst run.
    ``definition`` says what a number is, which limits its verdict uses, and what it cannot see.

    Which data? The *fit* and leave-one-out are about the posterior of the data given: these must be those that it was
    fitted to. *Prediction* should be of others, with ``held_out=True`` of :func:`to_arviz`, which leaves out the ELBO,
    k̂ and leave-one-out, as q is no approximation of the posterior of data that it has not seen. So diagnose twice.

    :param posterior: ArviZ data (of :func:`to_arviz`); or whatever :func:`to_arviz` takes, which is called first: a
        guide, a ``FitResult``, a list of either for several runs, or MCMC.
    :param model: the model, unless ArviZ data are given; with its ``data``.
    :param data: the model's arguments: the training data for the fit, others, with ``held_out=True``, for predictions.
    :param Symmetry symmetry: how the latent sites, the inputs and the outputs move.
    :param int draws: of each run, unless ArviZ data are given.
    :param functionals: of which k̂ is taken: names of scalar variables of the posterior, or functions of the posterior
        dataset that return an array ``(chain, draw)``, by name; by default the mean log likelihood and four scalars.
    :param float alpha: of the conformal sets, the allowed fraction without the label.
    :param options: further arguments of :func:`to_arviz`, such as ``held_out``.
    :raises DataError: for ArviZ data without a posterior, or of several methods.
    :raises OptionError: for options that do not fit.

    >>> import numpy as np, xarray as xr
    >>> z = np.random.default_rng(0).normal(size=(1, 400))
    >>> log_q = xr.DataArray(-(z**2) / 2, dims=("chain", "draw"))
    >>> groups = {"posterior": xr.Dataset({"z": (("chain", "draw"), z)}), "sample_stats": xr.Dataset({"lp": log_q - 3})}
    >>> groups["sample_stats"]["log_q"] = log_q
    >>> diagnosis = diagnose(xr.DataTree.from_dict(groups))
    >>> diagnosis["elbo"].value, diagnosis["k_hat"].verdict
    (-3.0, 'good (up to 0.5)')
    """
    if not _is_arviz(posterior):
        if model is None:
            raise OptionError("Expected model= and data= with a posterior that is not ArviZ data; got no model.")
        first, *others = posterior if isinstance(posterior, (list, tuple)) else [posterior]
        options = {"symmetry": symmetry, "draws": draws, "runs": others, "prior_draws": 0} | options
        posterior = to_arviz(model, first, data, **options)
    elif model is not None or options:
        given = ", ".join(["model", *options] if model is not None else options)
        raise OptionError(f"Expected no arguments of to_arviz with ArviZ data; got {given}.")
    if not isinstance(alpha, float) or not 0 < alpha < 1:
        raise OptionError(f"Expected alpha, the allowed fraction of errors, in (0, 1); got {alpha!r}.")
    evidence = Evidence(_checked(groups_of(posterior)), symmetry, functionals, alpha)
    table = Table()
    for section in (fit, coverage, convergence, equivariance, prediction):
        section(evidence, table)
    chains = tuple(evidence.groups["posterior"]["chain"].values.tolist())
    return Diagnosis(tuple(table.rows), dict(table.missing), chains, evidence.draws)


def _is_arviz(posterior: Any) -> bool:
    return isinstance(posterior, xr.DataTree) or callable(getattr(posterior, "groups", None))


def _checked(groups: dict[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    if not {"chain", "draw"} <= set(groups.get("posterior", xr.Dataset()).dims):
        raise DataError(f"Expected a group posterior with chain and draw; got {', '.join(groups) or 'no groups'}.")
    if METHOD in groups["posterior"].dims:
        names = groups["posterior"][METHOD].values.tolist()
        raise DataError(
            f"Expected the data of one method; got {', '.join(map(repr, names))}. Select one, as by "
            f"idata.sel({METHOD}={names[0]!r})."
        )
    return groups


def _printed(row: Row) -> list[str]:
    name = row.name if len(row.name) <= NAME - 2 else row.name[: NAME - 3] + "…"
    value, error, spread = _as_text(row)
    numbers = f"  {name:<{NAME - 2}} {value:>10} {'±' if error else ' '} {error:<8} {spread:>8}  "
    first, *others = textwrap.wrap(row.verdict, WIDTH - len(numbers)) or [""]
    return [(numbers + first).rstrip(), *(" " * len(numbers) + line for line in others)]


def _as_text(row: Row) -> tuple[str, str, str]:
    """The value to the place of its error's second digit, the error and the spread; 0 where they are rounding."""
    if ZERO in row.verdict:
        return "0", "0", "0" if np.isfinite(row.spread) else ""
    error, spread = (0.0 if x < ROUNDING * abs(row.value) else x for x in (row.se, row.spread))
    return (_rounded(row.value, error), *(f"{x:.2g}" if np.isfinite(x) else "" for x in (error, spread)))


def _rounded(value: float, error: float) -> str:
    """A number to the second digit of its error, to 4 digits where there is none.

    >>> _rounded(-123456.7, 0.5), _rounded(0.0123, 0.2), _rounded(123456.7, 0.0)
    ('-123456.70', '0.01', '1.235e+05')
    """
    if not np.isfinite([value, error]).all() or not error > 0:
        return f"{value:.4g}"
    place = math.floor(math.log10(error)) - 1
    value = round(value, -place) + 0.0  # no negative 0
    if -MOST_PLACES <= place and abs(value) < 10**MOST_DIGITS:
        return f"{value:.{max(0, -place)}f}"
    return f"{value:.{min(MOST_DIGITS, max(1, _place(value) - place + 1))}g}"


def _place(value: float) -> int:
    return math.floor(math.log10(abs(value))) if value else 0


def _html_row(row: Row) -> str:
    cells = [f'<td title="{html.escape(row.definition)}">{html.escape(row.name)}</td>']
    cells += [f"<td>{number}</td>" for number in _as_text(row)] + [f"<td>{html.escape(row.verdict)}</td>"]
    return f"<tr>{''.join(cells)}</tr>"
