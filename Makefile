# Variables to override: PYTHON (creates the environment), VENV (where it lives), OUT (where the demo writes).
PYTHON ?= python3
VENV ?= .venv
OUT ?= demo

BIN := $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
METADATA := pyproject.toml setup.cfg constraints.txt
INSTALLED := $(VENV)/.installed-test
INSTALLED_DOCS := $(VENV)/.installed-docs

# pytest runs two processes: one thread each keeps them from competing for the cores.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

OLD_PYTHON = Python 3.11 or newer is needed, this is %d.%d. Try: make PYTHON=python3.11 install

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow bench docs clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | while IFS='|' read -r name what; do printf '  make %-10s %s\n' "$$name" "$$what"; done

install: $(INSTALLED)  ## create the environment and install the package in it, editable

demo: $(INSTALLED)  ## compare the methods on the bundled digits; writes to demo/
	$(BIN)/pyro-equivariance compare --out $(OUT)

test: $(INSTALLED)  ## lint, then the fast tests
	$(BIN)/ruff check .
	$(PYTEST) -m "not slow"

test-slow: $(INSTALLED)  ## the slow tests
	$(PYTEST) -m slow

bench: $(INSTALLED)  ## time the methods against one another
	$(BIN)/python -m benchmarks

docs: $(INSTALLED_DOCS)  ## build the documentation in docs/_build/html
	$(BIN)/python -m sphinx -E -W -b html docs docs/_build/html

clean:  ## delete what the other targets wrote, but not the environment
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache docs/_build docs/tutorials docs/jupyter_execute demo benchmarks/results
	find . -path './$(VENV)' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps live in the environment, so an environment without the package gets it.
$(INSTALLED): $(METADATA)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "$(OLD_PYTHON)" % sys.version_info[:2])' \
	  && $(PYTHON) -m venv $(VENV); }
	$(PIP_INSTALL) -e '.[test]'
	@touch $@

$(INSTALLED_DOCS): $(INSTALLED)
	$(PIP_INSTALL) -e '.[test,docs]'
	@touch $@
