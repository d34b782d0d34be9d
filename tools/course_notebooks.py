"""Write the chapters without their solutions: `python tools/course_notebooks.py`.

They go to `_build/course/`, for students. The tasks stay, and the cells that say whether an answer
is right. Teachers have the same notebooks with solutions in `chapters/`.
"""

from __future__ import annotations

from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent


def is_solution(cell: nbformat.NotebookNode) -> bool:
    """Whether a cell is a folded solution."""
    return "hide-cell" in cell.metadata.get("tags", []) and cell.source.startswith("# Solution")


def without_solutions(chapter: Path) -> nbformat.NotebookNode:
    """The notebook of a chapter, less its solutions and all outputs."""
    notebook = nbformat.read(chapter, as_version=4)
    kept = [cell for cell in notebook.cells if not is_solution(cell)]
    if len(kept) == len(notebook.cells):  # else a changed mark would hand them all out
        raise ValueError(
            f"{chapter.name}: expected cells that are tagged hide-cell and begin with "
            "'# Solution', got none"
        )
    for cell in kept:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.cells = kept
    return notebook


def write(chapters: list[Path], folder: Path) -> None:
    """Write them to a folder, in which no other notebook stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.ipynb"):
        old.unlink()
    for chapter in chapters:
        nbformat.write(without_solutions(chapter), folder / chapter.name)


if __name__ == "__main__":
    chapters = sorted((ROOT / "chapters").glob("*.ipynb"))
    write(chapters, ROOT / "_build" / "course")
    print(f"{len(chapters)} chapters without solutions are in _build/course/")
