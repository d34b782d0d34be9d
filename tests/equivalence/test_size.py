"""The book's engine stays small enough to be read: core is five files, and no function is long."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "lmmbook" / "core"
FILES = ["certificate.py", "e_step.py", "m_step.py", "mcem.py", "model.py"]
MOST_LINES, LONGEST = 800, 40


def test_there_are_five_files():
    assert sorted(path.name for path in CORE.glob("**/*.py")) == ["__init__.py", *FILES]


def test_they_are_short():
    lines = {path.name: len(path.read_text().splitlines()) for path in CORE.glob("*.py")}
    assert sum(lines[name] for name in FILES) <= MOST_LINES, lines
    assert lines["__init__.py"] < 10


@pytest.mark.parametrize("name", FILES)
def test_no_function_is_longer_than_a_screen(name):
    functions = [
        node
        for node in ast.walk(ast.parse((CORE / name).read_text()))
        if isinstance(node, ast.FunctionDef)
    ]
    assert functions
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions}
    assert max(lengths.values()) <= LONGEST, lengths
