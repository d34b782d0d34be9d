"""Every example in a docstring runs, and what is public has one, and names its chapter."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import lmmbook
from lmmbook import exact, families, plot, report
from lmmbook.data import simulate
from lmmbook.results import criticism, fit, inferential, predictions

import matplotlib.pyplot as plt
import pytest

CHAPTERS = {path.name[:2] for path in Path(__file__).parents[2].glob("chapters/*.ipynb")}
MODULES = [
    "lmmbook",
    *(found.name for found in pkgutil.walk_packages(lmmbook.__path__, "lmmbook.")),
]
PUBLIC = {f"lmmbook.{name}": getattr(lmmbook, name) for name in lmmbook.__all__}
PUBLIC |= {f"lmmbook.exact.{name}": getattr(exact, name) for name in exact.__all__}
PUBLIC |= {f"lmmbook.families.{name}": getattr(families, name) for name in families.__all__}
PUBLIC |= {"lmmbook.simulate.crossed": simulate.crossed}
PUBLIC |= {
    f"lmmbook.Fit.{name}": member
    for name, member in (vars(lmmbook.Fit) | vars(inferential.Inferential)).items()
    if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
}
CALLABLE = [name for name, x in PUBLIC.items() if callable(x) or isinstance(x, property)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(name)
    known = {"lmm": lmmbook, "plt": plt}
    if module in (
        fit,
        criticism,
        inferential,
        plot,
        predictions,
        report,
    ):  # the methods of a Fit go on from the example of the class
        known["data"], _ = simulate.crossed(300, {"g": (30, 0.5)}, seed=0)
        known["fit"] = lmmbook.fit("y ~ x + (1|g)", known["data"], seed=0)
    failures, _ = doctest.testmod(module, extraglobs=known)
    assert failures == 0  # doctest has printed which, and what came instead


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_public_has_a_docstring(name):
    member = PUBLIC[name]
    if inspect.ismodule(member) or name in CALLABLE:  # a constant has none of its own
        assert member.__doc__
        assert not member.__doc__.startswith(f"{name.split('.')[-1]}(")  # a dataclass's own


@pytest.mark.parametrize("name", CALLABLE)
def test_what_is_public_has_an_example_and_a_chapter(name):
    text = PUBLIC[name].__doc__
    assert re.search(r"^ *>>> ", text, re.MULTILINE), "expected an example that runs: >>> ..."
    named = re.findall(r"\b[Cc]hapters? (\d\d)(?: and (\d\d))?", text)
    assert named, "expected the chapter that explains it: Chapter NN"
    assert {number for pair in named for number in pair if number} <= CHAPTERS
