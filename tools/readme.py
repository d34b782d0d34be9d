"""Copy the headline figure and table from the executed chapter 4 into README.md.

    python tools/readme.py

README.md is read where nothing is computed, so its numbers are copies. tests/pages/test_chapters.py
compares them with the exact maximum.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
FIGURE = Path("_static") / "headline.png"


def find(notebook: nbformat.NotebookNode, words: str) -> nbformat.NotebookNode:
    """The one output of the notebook whose plain or Markdown text has these words in it."""
    [output] = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if any(words in str(output.get("data", {}).get(f"text/{t}")) for t in ("plain", "markdown"))
    ]
    return output


def fill(text: str, part: str, content: str) -> str:
    """Put `content` between the two comments that mark a part of README.md."""
    marked = re.compile(rf"(<!-- {part}: [^\n]*-->\n).*?(<!-- end -->)", re.DOTALL)
    if len(marked.findall(text)) != 1:
        raise ValueError(f"README.md: expected one part {part!r} between comments")
    return marked.sub(lambda match: f"{match[1]}{content}\n{match[2]}", text)


def main() -> None:
    """Write the figure, then README.md."""
    notebook = nbformat.read(ROOT / "_build" / "executed" / "04_m_step.ipynb", as_version=4)
    figure = find(notebook, "Traces of three parameters")
    table = find(notebook, "difference in standard errors").data["text/markdown"]
    alt = figure.metadata["image/png"]["alt"]

    readme = ROOT / "README.md"
    text = fill(readme.read_text(encoding="utf-8"), "figure", f"![{alt}]({FIGURE})")
    text = fill(text, "table", table.strip())
    (ROOT / FIGURE).write_bytes(base64.b64decode(figure.data["image/png"]))
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
