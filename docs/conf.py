"""Sphinx configuration: `make docs` builds docs/_build/html without network and without running notebooks."""

import shutil
from pathlib import Path

from pyro_equivariance import __version__

HERE = Path(__file__).parent


def copy_tutorials() -> None:
    """Bring the notebooks, stored with their outputs, under the documentation's own folder."""
    target = HERE / "tutorials"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for notebook in sorted((HERE.parent / "tutorials").glob("*.ipynb")):
        shutil.copy(notebook, target)


copy_tutorials()

project = "pyro_equivariance"
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "jupyter_execute"]

nb_execution_mode = "off"
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"

html_theme = "furo"
html_title = f"pyro_equivariance {version}"
