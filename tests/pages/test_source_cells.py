"""A chapter's cell that shows core's source shows it as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import source_cells

ROOT = Path(__file__).parents[2]

CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_cells_of_source_are_the_source(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        asked = source_cells.wanted(cell)
        if asked:
            assert "".join(cell["source"]) == source_cells.source(*asked)


def test_what_the_chapters_teach_is_shown():
    """The pieces of the engine, each in one place."""
    cells = [c for p in CHAPTERS for c in json.loads(p.read_text(encoding="utf-8"))["cells"]]
    names = [name for _, shown in filter(None, map(source_cells.wanted, cells)) for name in shown]
    assert len(names) == len(set(names))
    taught = {"update_levels", "level_log_density", "group_move", "sweep", "em_step"}
    taught |= {"least_squares", "free_mean", "score_and_information", "complete_log_density"}
    taught |= {"newton", "uphill", "gradients_or_raise"}
    assert taught <= set(names)


def test_hints_and_docstrings_are_left_out_and_comments_stay():
    shown = source_cells.source("lmmbook/core/e_step.py", ["LEAPFROG_STEPS", "update_levels"])
    first, constant, *lines = shown.split("\n")
    assert first == "# lmmbook/core/e_step.py: LEAPFROG_STEPS, update_levels"
    assert constant.startswith("LEAPFROG_STEPS = 2  # ")
    assert lines[2] == "def update_levels(data, theta, k, u, eta, curvature, seed):"
    assert '"""' not in shown
    assert any(line.startswith("    # In conditional sds") for line in lines)
    assert max(map(len, lines)) <= 76


def test_a_name_that_is_not_there_is_an_error():
    with pytest.raises(KeyError, match="no_such_function"):
        source_cells.source("lmmbook/core/e_step.py", ["no_such_function"])
