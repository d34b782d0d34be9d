"""Write the source of `lmmbook.core` into the chapters' cells that ask for it.

A cell whose first line names a file of core and what is wanted of it,

    # lmmbook/core/e_step.py: LEAPFROG_STEPS, update_levels

is given that source: without docstrings, which the text around the cell replaces, without type
hints, and in lines that fit a page. `tests/pages/test_source_cells.py` compares.

    python tools/source_cells.py chapters/*.ipynb
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FIRST_LINE = re.compile(r"# (lmmbook/core/\w+\.py): ([\w, ]+)")


def wanted(cell: dict) -> tuple[str, list[str]] | None:
    """The file and the names that a cell asks for, or None."""
    found = FIRST_LINE.fullmatch("".join(cell["source"]).split("\n", 1)[0])
    if cell["cell_type"] != "code" or found is None:
        return None
    return found[1], found[2].split(", ")


def source(file: str, names: list[str]) -> str:
    """What a cell is given. Raises KeyError if the file does not define a name."""
    text = (ROOT / file).read_text()
    defined = {name: node for node in ast.parse(text).body for name in names_of(node)}
    parts = [shown(text, defined[name]) for name in names]
    # Formatted as the chapters are: by their own rules, which ruff finds by the name of a file.
    formatted = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--stdin-filename", "chapters/cell.py", "-"],
        input="\n".join(parts), cwd=ROOT, text=True, capture_output=True, check=True,
    ).stdout  # fmt: skip
    return f"# {file}: {', '.join(names)}\n{formatted.strip()}"


def names_of(node: ast.stmt) -> list[str]:
    """What a statement at the top of a module defines: a function, or a constant."""
    if isinstance(node, ast.FunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    return [t.id for target in targets for t in ast.walk(target) if isinstance(t, ast.Name)]


def shown(text: str, node: ast.stmt) -> str:
    """A statement's own lines, with comments, but no docstrings and no type hints."""
    lines = [line.encode() for line in text.splitlines()]  # columns count bytes
    cuts = []  # (first line, column, last line, column)
    for part in ast.walk(node):
        if isinstance(part, ast.FunctionDef):
            first = part.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                cuts.append(
                    (first.lineno, first.col_offset, first.end_lineno, first.end_col_offset)
                )
            if part.returns is not None:
                end = part.returns
                begin = lines[end.lineno - 1].rindex(b" ->", 0, end.col_offset)
                cuts.append((end.lineno, begin, end.end_lineno, end.end_col_offset))
        if isinstance(part, ast.arg) and part.annotation is not None:
            begin, end = part.col_offset + len(part.arg.encode()), part.annotation
            cuts.append((part.lineno, begin, end.end_lineno, end.end_col_offset))
    for row, column, last, end in sorted(cuts, reverse=True):
        lines[row - 1] = lines[row - 1][:column] + lines[last - 1][end:]
        lines[row:last] = [b""] * (last - row)
    kept = b"\n".join(line for line in lines[node.lineno - 1 : node.end_lineno] if line.strip())
    return re.sub(r"  # (fmt|noqa).*", "", kept.decode()) + "\n"


def rewritten(notebook: dict) -> dict:
    """A notebook with its cells of source as they should be."""
    for cell in notebook["cells"]:
        asked = wanted(cell)
        if asked:
            cell["source"] = source(*asked).splitlines(keepends=True)
    return notebook


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        before = path.read_text()
        after = json.dumps(rewritten(json.loads(before)), indent=1, ensure_ascii=False) + "\n"
        if after != before:
            path.write_text(after)
            print(f"{path}: written")
