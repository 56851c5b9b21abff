"""Each tutorial runs, shortened, without an error or a warning, and is stored as a full run left it."""

import copy
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

TUTORIALS = Path(__file__).parents[1] / "tutorials"
NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))
ABSOLUTE_PATH = re.compile(r"(?:^|[\s'\"=(\[<])(?:/\w[\w.-]*/[\w.]|~/|[A-Za-z]:\\)", re.MULTILINE)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def stored(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def warned(cell) -> list[str]:
    return [out.text for out in cell.outputs if out.output_type == "stream" and out.name == "stderr"]


def kinds(cell) -> set[str]:
    """What a cell put out: the streams it wrote to and the formats of what it showed."""
    each = ([out.name] if out.output_type == "stream" else out.get("data", ()) for out in cell.outputs)
    return set().union(*each)


def texts(cell):
    """All of a cell's output that a reader sees as text."""
    for out in cell.outputs:
        yield out.get("text", "")
        yield "\n".join(out.get("traceback", ()))
        yield from (str(data) for form, data in out.get("data", {}).items() if form.startswith("text/"))


def test_there_are_tutorials():
    assert NOTEBOOKS


def test_runs_shortened_without_a_warning(stored, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setenv("CI", "true")
    again = copy.deepcopy(stored)
    for cell in code_cells(again):
        cell.outputs, cell.execution_count = [], None
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(again, timeout=300, kernel_name="python3", resources=place).execute()
    assert not sum(map(warned, code_cells(again)), [])
    assert [kinds(cell) for cell in code_cells(again)] == [kinds(cell) for cell in code_cells(stored)]


def test_has_one_idea_in_8_to_15_code_cells(stored):
    lines = [line for cell in code_cells(stored) for line in cell.source.splitlines() if line.strip()]
    assert 8 <= len(code_cells(stored)) <= 15
    assert 50 <= len(lines) <= 100


def test_was_stored_after_running_in_order(stored):
    cells = code_cells(stored)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any("image/png" in kinds(cell) for cell in cells)
    assert not sum(map(warned, cells), [])


def test_stored_outputs_name_no_place_of_this_machine(stored):
    found = [text for cell in code_cells(stored) for text in texts(cell) if ABSOLUTE_PATH.search(text)]
    assert not found


@pytest.mark.parametrize("text", ["/home/me/a.py:3", "in '/tmp/x/y'", "at\n/usr/lib", "C:\\Users", "~/data", "(/a/b)"])
def test_an_absolute_path_is_recognised(text):
    assert ABSOLUTE_PATH.search(text)


@pytest.mark.parametrize("text", ["1/2", "accuracy / NLL", "results/a.png", "a ± b", "(4, 8)/3"])
def test_other_slashes_are_no_path(text):
    assert not ABSOLUTE_PATH.search(text)
