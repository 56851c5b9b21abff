"""The examples in the docstrings run, at the default precision, and every public name has a docstring."""

import doctest
import importlib
import inspect
import pkgutil
from functools import cached_property

import pytest
import torch

import pyro_equivariance as pe

MODULES = [pe.__name__] + [
    info.name for info in pkgutil.walk_packages(pe.__path__, pe.__name__ + ".") if not info.name.endswith("__main__")
]


def examples(module):
    """The module's doctests, those of cached properties (which the finder passes over) included."""
    finder, seen = doctest.DocTestFinder(exclude_empty=True), set()
    cached = [
        (f"{kind.__module__}.{kind.__qualname__}.{name}", member)
        for kind in vars(module).values()
        if inspect.isclass(kind) and kind.__module__ == module.__name__
        for name, member in vars(kind).items()
        if isinstance(member, cached_property)
    ]
    found = finder.find(module) + [t for name, m in cached for t in finder.find(m.func, name, module)]
    for test in found:
        if test.examples and test.name not in seen:
            seen.add(test.name)
            yield test


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    torch.set_default_dtype(torch.float32)
    module = importlib.import_module(name)
    runner, report = doctest.DocTestRunner(), []
    for test in examples(module):
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


@pytest.mark.parametrize("name", pe.__all__)
def test_public_names_are_documented(name):
    public = getattr(pe, name)
    assert (inspect.getdoc(public) or "").strip()
    if inspect.isclass(public):
        own = {n for n, member in vars(public).items() if not n.startswith("_") and callable(member)}
        undocumented = {n for n in own if not inspect.getdoc(getattr(public, n))} - {"forward"}
        assert not undocumented


def test_the_list_of_public_names_is_complete():
    assert len(set(pe.__all__)) == len(pe.__all__)
    assert {n for n, v in vars(pe).items() if not n.startswith("_") and not inspect.ismodule(v)} <= set(pe.__all__)


def test_cached_properties_are_found():
    found = {test.name for test in examples(importlib.import_module("pyro_equivariance.groups.base"))}
    assert {"pyro_equivariance.groups.base.Group.transversals", "pyro_equivariance.groups.base.Group.compose"} <= found
