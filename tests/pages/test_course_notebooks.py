"""The notebooks for students: the chapters, less the solutions, and nothing else."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))

specification = importlib.util.spec_from_file_location(
    "course_notebooks", ROOT / "tools" / "course_notebooks.py"
)
tool = importlib.util.module_from_spec(specification)
specification.loader.exec_module(tool)


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("course")
    tool.write(CHAPTERS, folder)
    return folder


def test_there_is_one_for_each_chapter(course):
    assert [path.name for path in sorted(course.iterdir())] == [c.name for c in CHAPTERS]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_only_solutions_are_gone(course, chapter):
    whole = nbformat.read(chapter, as_version=4)
    ours = nbformat.read(course / chapter.name, as_version=4)
    nbformat.validate(ours)
    kept = {cell.id: cell for cell in ours.cells}
    gone = [cell for cell in whole.cells if cell.id not in kept]
    assert ours.metadata == whole.metadata
    assert ours.cells == [cell for cell in whole.cells if cell.id in kept]
    assert len(gone) >= 3
    assert all(cell.source.startswith("# Solution") for cell in gone)
    for words in ("# Solution", "(solution)", "(a mistake)"):
        assert not any(words in cell.source for cell in ours.cells)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_tasks_and_checks_stay(course, chapter):
    sources = [cell.source for cell in nbformat.read(course / chapter.name, as_version=4).cells]
    stubs = [k for k, source in enumerate(sources) if source.startswith("answer = None")]
    assert len(stubs) >= 2
    for number, k in enumerate(stubs, start=1):
        assert f"**{number}. " in sources[k - 1]
        assert f'lmm.exercise("Exercise {number}", answer' in sources[k + 1]


def test_the_same_bytes_again(course, tmp_path):
    tool.write(CHAPTERS, tmp_path)
    for path in course.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_a_chapter_that_is_gone_leaves_no_notebook(tmp_path):
    (tmp_path / "00_old.ipynb").write_text("{}")
    tool.write(CHAPTERS[:1], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [CHAPTERS[0].name]


def chapter_of(folder: Path, *cells: nbformat.NotebookNode) -> Path:
    path = folder / "01_tiny.ipynb"
    nbformat.write(new_notebook(cells=list(cells)), path)
    return path


def test_outputs_of_an_executed_chapter_are_dropped(tmp_path):
    told = new_output("stream", text="the answer is 42")
    path = chapter_of(
        tmp_path,
        new_code_cell("answer = None", execution_count=3, outputs=[told]),
        new_code_cell("# Solution", metadata={"tags": ["hide-cell"]}),
    )
    [cell] = tool.without_solutions(path).cells
    assert (cell.outputs, cell.execution_count) == ([], None)


def test_a_chapter_whose_solutions_cannot_be_told_apart_is_refused(tmp_path):
    path = chapter_of(tmp_path, new_code_cell("# Solution: but without its tag"))
    with pytest.raises(ValueError, match=r"01_tiny\.ipynb: expected cells that"):
        tool.without_solutions(path)
