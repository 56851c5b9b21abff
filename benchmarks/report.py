"""Tables that print as they fill, and are kept as JSON."""

import os
import platform
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyro
import torch

from pyro_equivariance.experiments.base import write_json

RESULTS = Path(__file__).parent / "results"
WIDTH = 110


@dataclass(frozen=True)
class Column:
    """One column: the field of a row it shows, its heading and the format of its numbers (text is put to the left)."""

    field: str
    heading: str
    form: str = ""
    width: int = 9

    def cell(self, value) -> str:
        return self._align("–" if value is None else format(value, self.form))

    @property
    def head(self) -> str:
        return self._align(self.heading)

    def _align(self, text: str) -> str:
        return text.rjust(self.width) if self.form else text.ljust(self.width)


@dataclass
class Table:
    """Rows under one definition, each printed when it is added."""

    title: str
    definition: str
    columns: Sequence[Column]
    rows: list[dict] = field(default_factory=list)

    def __post_init__(self):
        print(f"\n{self.title}\n{textwrap.fill(self.definition, WIDTH)}\n")
        print("  ".join(c.head for c in self.columns).rstrip(), flush=True)

    def add(self, **row) -> None:
        """Add a row: the fields of the columns, and others for the JSON file alone."""
        self.rows.append(row)
        print("  ".join(c.cell(row.get(c.field)) for c in self.columns).rstrip(), flush=True)


class Report:
    """The tables of one section.

    :param str name: the section's, and the file's.
    :param str title: what it measures, in one line.
    """

    def __init__(self, name: str, title: str):
        self.name, self.title = name, title
        self.tables: list[Table] = []
        print(f"\n{'=' * WIDTH}\n{name}: {title}")

    def table(self, title: str, definition: str, *columns: Column) -> Table:
        """A new table; its heading is printed at once."""
        self.tables.append(Table(title, definition, columns))
        return self.tables[-1]

    @property
    def failed(self) -> bool:
        """Whether a row says ``FAIL``."""
        return any(row.get("verdict") == "FAIL" for table in self.tables for row in table.rows)

    def write(self, seconds: float) -> str:
        """Write ``results/<section>.json`` whole or not at all; returns its path from the folder above."""
        content = {
            "section": self.name,
            "title": self.title,
            "seconds": seconds,
            "machine": machine(),
            "tables": [{"title": t.title, "definition": t.definition, "rows": t.rows} for t in self.tables],
        }
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.name}.json"
        write_json(path, content)
        return path.relative_to(RESULTS.parent.parent).as_posix()


def machine() -> dict:
    """What timings depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }


def gate(passed: bool) -> str:
    """The verdict on a bound that must hold: a failure makes the whole run exit with 1."""
    return "PASS" if passed else "FAIL"


def aim(met: bool) -> str:
    """The verdict on an aim, which depends on the machine or on chance."""
    return "met" if met else "missed"


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    lower, middle, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, middle, upper
