"""The blocks of the documentation's pages run one after the other, and print what the comments below them say."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

from pyro_equivariance.families import base

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
BESIDE = re.compile(r"\bprint\(.*\)\s+# (.*)$")


def blocks(page):
    return BLOCK.findall(page.read_text())


PAGES = [page for page in sorted(DOCS.rglob("*.md")) if page.parent.name != "api" and page.name != "index.md"]
PAGES = [page for page in [*PAGES, DOCS / "models" / "index.md"] if blocks(page)]


def said(block):
    """The comments beside and below ``print`` calls, as lines of their own."""
    found, below = [], False
    for line in block.splitlines():
        comment = line.strip()
        if match := BESIDE.search(line):
            found.append(match[1])
        elif below and comment.startswith("# "):
            found.append(comment.removeprefix("# "))
        below = "print(" in line or (below and (comment.startswith("#") or comment.endswith(")")))
    return found


def agree(printed, comment):
    """Whether a comment holds a printed line, with a remark behind it perhaps."""
    return any(comment.startswith(line) or line.startswith(comment) for line in printed)


def test_there_are_pages():
    assert len(PAGES) > 5
    assert said("print(1)  # 1: one\nprint(2)\n# 2\n# 3\nx = 1\n# no") == ["1: one", "2", "3"]
    assert agree(["1"], "1: one") and not agree(["2"], "1: one")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_blocks_run_and_print_what_they_say(page, monkeypatch):
    torch.set_default_dtype(torch.float32)
    monkeypatch.setattr(base, "_FAMILIES", dict(base._FAMILIES))  # a page may register a family of its own
    namespace: dict = {}
    for block in blocks(page):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block, page.name, "exec"), namespace)
        printed = [line.strip() for line in out.getvalue().splitlines() if line.strip()]
        wrong = [comment for comment in said(block) if not agree(printed, comment)]
        assert not wrong, f"{page.name} says {wrong}, but prints {printed}"
