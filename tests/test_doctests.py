"""Every example in a docstring runs, and everything public has a docstring."""

import doctest
import importlib
import inspect
import pkgutil

import lmmbook

import pytest

MODULES = [
    "lmmbook",
    *(f"lmmbook.{found.name}" for found in pkgutil.iter_modules(lmmbook.__path__)),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    failures, _ = doctest.testmod(importlib.import_module(name))
    assert failures == 0  # doctest has printed which, and what came instead


@pytest.mark.parametrize("name", lmmbook.__all__)
def test_what_is_public_has_a_docstring(name):
    member = getattr(lmmbook, name)
    if inspect.ismodule(member) or callable(member):  # a constant has none of its own
        assert member.__doc__
        assert not member.__doc__.startswith(f"{name}(")  # what a dataclass writes for itself
