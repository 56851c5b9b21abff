"""How long the package takes to import, beyond Pyro."""

import json
import subprocess
import sys

from .report import Column, Report, gate, quartiles

REPEATS = 5
HEAVY = ("arviz", "matplotlib")
PROGRAM = f"""
import json, sys, time
start = time.perf_counter()
import pyro
middle = time.perf_counter()
import pyro_equivariance
end = time.perf_counter()
loaded = [name for name in {HEAVY!r} if name in sys.modules]
print(json.dumps({{"pyro": middle - start, "package": end - middle, "loaded": loaded}}))
"""


def run() -> Report:
    """Imports in fresh processes."""
    report = Report("import_time", "seconds of importing the package")
    table = report.table(
        "Imports in a fresh process",
        f"seconds of `import pyro`, and of `import pyro_equivariance` after it in the same process: median and "
        f"quartiles of {REPEATS} processes, after one not counted; neither {' nor '.join(HEAVY)} may be loaded.",
        Column("what", "import", width=28),
        Column("seconds", "seconds", ".3f", 8),
        Column("lower", "25%", ".3f", 6),
        Column("upper", "75%", ".3f", 6),
        Column("loaded", "loaded", width=19),
        Column("verdict", "", width=4),
    )
    runs = [_import() for _ in range(REPEATS + 1)][1:]
    loaded = sorted({name for r in runs for name in r["loaded"]})
    _add(table, "pyro", [r["pyro"] for r in runs], loaded="", verdict="")
    _add(table, "pyro_equivariance, after it", [r["package"] for r in runs], loaded=", ".join(loaded) or "neither",
         verdict=gate(not loaded))  # fmt: skip
    return report


def _import() -> dict:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def _add(table, what: str, seconds: list[float], **more) -> None:
    lower, middle, upper = quartiles(seconds)
    table.add(what=what, seconds=middle, lower=lower, upper=upper, **more)
