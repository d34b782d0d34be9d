"""The house: the import paths that `api.md` names lead into its rooms.

Which room may import which, import-linter checks in `make lint`.
"""

from __future__ import annotations

import importlib

import lmmbook
from lmmbook.formula import Design

import pytest

SHORT = {
    "lmmbook.checks": "escape",
    "lmmbook.criticism": "clustered_se",
    "lmmbook.design": "Design",
    "lmmbook.exact": "log_likelihood",
    "lmmbook.factors": "Factor",
    "lmmbook.families": "OrderedLogistic",
    "lmmbook.formula": "build_design",
    "lmmbook.functions": "Functions",
    "lmmbook.simulate": "crossed",
    "lmmbook.workers": "meet",
}


@pytest.mark.parametrize("module", SHORT)
def test_import_paths_that_were_named_lead_to_the_same_as_the_house_does(module):
    found = importlib.import_module(module)
    assert hasattr(found, SHORT[module])
    assert importlib.import_module(found.__name__) is found
    assert getattr(lmmbook, module.split(".")[1]) is found
    assert lmmbook.design.Design is Design  # one class, by whichever path
