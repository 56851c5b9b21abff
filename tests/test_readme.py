"""The README's first code block is the library in eight lines; it runs, shortened, as it stands there."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"


def test_the_first_code_block_runs(capsys):
    pytest.importorskip("sklearn")
    torch.set_default_dtype(torch.float32)
    block = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL).group(1)
    shortened = re.sub(r"epochs=\d+", "epochs=2, progress=False", block)
    assert shortened != block
    exec(compile(shortened, "README.md", "exec"), {})
    accuracy, same = re.findall(r"tensor\(([\d.]+)", capsys.readouterr().out)
    assert 0 <= float(accuracy) <= 1 and 0 <= float(same) <= 1


def test_the_first_code_block_is_short():
    block = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL).group(1)
    assert len(block.strip().splitlines()) <= 9  # the import and eight lines


def test_the_documentation_starts_with_the_same_block():
    block = re.search(r"```python\n.*?```", README.read_text(), re.DOTALL).group(0)
    assert block in (README.parent / "docs" / "index.md").read_text()
