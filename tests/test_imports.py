"""Modules import lower ranks only, and the package stays quick to import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pyro_equivariance

ROOT = Path(pyro_equivariance.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")

RANKS = {
    "errors": 0, "modes": 0,
    "groups": 1, "generators": 1,
    "representations": 2, "measures": 2,
    "symmetry": 3, "families": 3,
    "distributions": 4, "spaces": 4, "networks": 4, "metrics": 4, "data": 4, "discovery": 4,
    "symmetrize": 5, "breaking": 5,
    "handlers": 6, "learned": 6,
    "guides": 7,
    "expansion": 8, "prediction": 8, "storage": 8,
    "training": 9, "model_symmetries": 9,
    "theory": 10, "ensembles": 10,
    "diagnostics": 11,
    "plots": 12,
    "experiments": 13,
    "cli": 14, "__main__": 15,
}  # fmt: skip

# Siblings that are imported besides `base`; a package's own __init__ gathers all of its modules.
SIBLINGS = {
    "diagnostics/calibration.py": {"ranks"},
    "diagnostics/convert.py": {"arguments", "runs", "sites", "tables"},
    "diagnostics/diagnose.py": {"convert", "evidence", "predictions", "sections"},
    "diagnostics/predictions.py": {"definitions", "evidence", "quantities"},
    "diagnostics/sections.py": {"definitions", "evidence", "quantities"},
    "diagnostics/runs.py": {"arguments", "tables"},
    "diagnostics/sites.py": {"tables"},
    "breaking/score.py": {"classifier", "containment", "reading"},
    "discovery/discover.py": {"equations"},
    "ensembles/fit.py": {"batches", "starts"},
    "groups/continuous.py": {"matrices", "rotations"},
    "groups/lattice.py": {"rotations"},
    "representations/builders.py": {"actions", "continuous"},
    "representations/continuous.py": {"actions"},
    "representations/grids.py": {"actions", "continuous"},
    "handlers/relax.py": {"expand"},
    "learned/affine.py": {"lie"},
    "learned/fit.py": {"lie", "verdict"},
    "learned/verdict.py": {"lie"},
    "guides/density.py": {"joint", "wrapped"},
    "guides/mixture.py": {"joint"},
    "guides/parameters.py": {"joint"},
    "metrics/sweep.py": {"defect"},
    "model_symmetries/canonical.py": {"finders", "things"},
    "model_symmetries/finders.py": {"check"},
    "networks/bayesian.py": {"likelihoods", "priors"},
    "networks/fibres.py": {"layers"},
    "networks/lift.py": {"bayesian", "fibres"},
    "networks/permutations.py": {"tracing"},
    "networks/supports.py": {"layers"},
    "networks/priors.py": {"layers"},
    "networks/tracing.py": {"layers", "operations"},
    "plots/document.py": {"calibration", "page", "summary"},
    "plots/page.py": {"calibration", "comparisons", "orbits", "summary", "traces"},
    "training/loop.py": {"callbacks"},
    "theory/assumptions.py": {"certificate"},
    "experiments/breaking.py": {"study"},
    "experiments/compare.py": {"evaluation", "methods", "pictures"},
    "experiments/evaluation.py": {"methods"},
    "experiments/assumptions.py": {"study"},
    "experiments/certificates.py": {"study"},
    "experiments/ensembles.py": {"study"},
    "experiments/generators.py": {"study"},
    "experiments/families.py": {"study"},
    "experiments/figures.py": {
        "breaking_figures",
        "ensemble_figures",
        "generators_figures",
        "relaxed_figures",
        "affine_figures",
        "augmenters_figures",
    },
    "experiments/priors.py": {"study"},
    "experiments/relaxed.py": {"study"},
    "experiments/affine.py": {"study"},
    "experiments/augmenters.py": {"study"},
    "experiments/pictures.py": {"evaluation"},
    "experiments/samples.py": {"study"},
    "experiments/theory.py": {
        "affine",
        "assumptions",
        "augmenters",
        "breaking",
        "certificates",
        "ensembles",
        "families",
        "figures",
        "generators",
        "priors",
        "relaxed",
        "samples",
        "study",
    },  # fmt: skip
}

# The only modules that may import these, at any level.
ALONE = {
    "arviz": {"diagnostics/base.py"},
    "matplotlib": {"plots/base.py"},
    "sklearn": {"data.py"},
    "pooch": {"data.py"},
}

# Pyro from the rank at which it is first needed.
PYRO = {"pyro.distributions": 3, "pyro.nn": 4, "pyro": 4, "pyro.poutine": 6, "pyro.infer": 6}


def imports(path):
    """Absolute dotted names of all that a module imports, wherever the statement stands."""
    package = ("pyro_equivariance", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, (base, node.module)))
            yield from (f"{source}.{alias.name}" for alias in node.names)


def name(path):
    return path.relative_to(ROOT).as_posix()


def rank(path):
    return RANKS[path.relative_to(ROOT).parts[0].removesuffix(".py")]


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_lower_ranks_only(path):
    unit = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for target in imports(path):
        top, *inner = target.split(".")
        if top != "pyro_equivariance" or inner == ["__version__"]:
            continue
        assert inner and inner[0] in RANKS, f"{name(path)} imports {target}: name a module, not the package"
        if inner[0] != unit:
            assert RANKS[inner[0]] < rank(path), f"{name(path)} (rank {rank(path)}) imports {target}"
        elif path.name != "__init__.py":
            allowed = {"base"} | SIBLINGS.get(name(path), set())
            assert inner[1] in allowed, f"{name(path)} imports its sibling {target}"


def test_exceptions_are_in_use():
    for exception, siblings in SIBLINGS.items():
        path = ROOT / exception
        used = {t.split(".")[2] for t in imports(path) if t.startswith(f"pyro_equivariance.{path.parent.name}.")}
        assert siblings <= used, f"{exception} no longer imports {siblings - used}"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_heavy_packages_have_one_importer(path):
    for target in imports(path):
        top = target.split(".")[0]
        assert name(path) in ALONE.get(top, {name(path)}), f"{name(path)} imports {top}"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_pyro_from_its_rank_on(path):
    for target in imports(path):
        known = [package for package in PYRO if target == package or target.startswith(package + ".")]
        if known:
            assert rank(path) >= PYRO[max(known, key=len)], f"{name(path)} imports {target}"


def test_every_module_has_a_rank():
    assert {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in MODULES} <= set(RANKS)


def test_import_is_light():
    script = "import sys, pyro_equivariance; print(*({m.split('.')[0] for m in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"arviz", "xarray", "matplotlib", "sklearn", "pooch"} & set(run.stdout.split())
