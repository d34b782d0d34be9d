"""What this book asks of Sphinx beyond Jupyter Book's own settings.

Chapters are executed once, by `make`, into `_build/executed/`, and tested there. This extension
builds the pages from those same files, so that what is published is what was checked; the
notebooks in `chapters/` have no outputs, and are what the download button serves. It says how long
each takes to read and to run, and links what docstrings say of chapters. It also keeps the pages
free of other hosts, and of buttons that lead nowhere.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
from chapter_times import say_times, table_of_times
from nbformat import NotebookNode
from nbformat.v4 import new_output
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError

EXECUTED = Path("_build") / "executed"
IMAGES = ("image/png", "image/svg+xml")
PLACEHOLDER = "OWNER"
TIMES = "<!-- times -->"  # where a page wants the table of all chapters' times
# The buttons that lead to the repository, as the theme names them.
REPOSITORY_OPTIONS = (
    "repository_url",
    "launch_buttons",
    "use_repository_button",
    "use_issues_button",
    "use_edit_page_button",
    "use_source_button",
)


def cells_of(notebook: NotebookNode) -> list[tuple[str, str]]:
    """A notebook's cells as (type, source), without those that papermill puts in itself."""
    return [
        (cell.cell_type, cell.source)
        for cell in notebook.cells
        if "injected-parameters" not in cell.metadata.get("tags", [])
    ]


def read_executed(source: str, executed: Path, name: str) -> NotebookNode:
    """Read the executed twin of the notebook whose text is `source`.

    Without one, or with that of an earlier version, there is no page: an empty book would build
    happily.
    """
    if not executed.is_file():
        raise ExtensionError(
            f"{name} has not been executed: there is no {executed}. Run `make book`."
        )
    notebook = nbformat.read(executed, as_version=4)
    wanted, found = cells_of(nbformat.reads(source, as_version=4)), cells_of(notebook)
    if wanted != found:
        where = next(
            (n for n, pair in enumerate(zip(wanted, found, strict=False)) if pair[0] != pair[1]),
            min(len(wanted), len(found)),
        )
        raise ExtensionError(
            f"{name} has changed since it was executed: cell {where + 1} differs from "
            f"{executed}. Run `make book`."
        )
    return notebook


def alt_text(cell: NotebookNode) -> str | None:
    """The alt text that a cell's figure carries in its output's metadata; None without a figure."""
    texts = {
        output.get("metadata", {}).get(mime, {}).get("alt", "").strip()
        for output in cell.get("outputs", [])
        for mime in IMAGES
        if mime in output.get("data", {})
    }
    if not texts:
        return None
    if "" in texts:
        raise ExtensionError(f"A figure has no alt text. The cell begins: {cell.source[:80]!r}")
    if len(texts) > 1:
        # The page's alt text is set a cell, so two figures in one cell would share it.
        raise ExtensionError(f"Two figures in one cell. It begins: {cell.source[:80]!r}")
    return str(texts.pop())


def add_sliders(cell: NotebookNode) -> None:
    """Put the sliders that a figure carries below it, for `_static/sliders.js`."""
    outputs = []
    for output in cell.get("outputs", []):
        outputs.append(output)
        sliders = output.get("metadata", {}).get("lmmbook", {}).get("sliders")
        if sliders:
            text = json.dumps(sliders, separators=(",", ":")).replace("<", "\\u003c")
            script = f'<script type="application/json" class="lmmbook-sliders">{text}</script>'
            outputs.append(new_output("display_data", {"text/html": script}))
    cell.outputs = outputs


def prepare(notebook: NotebookNode) -> NotebookNode:
    """Tell myst-nb, in its own cell metadata, how the cells are to look."""
    notebook.metadata.pop("papermill", None)  # else it is taken for the page's front matter
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        for output in cell.get("outputs", []):
            if "text/html" in output.get("data", {}):
                # A corner of a pandas table that heads nothing: screen readers would announce it.
                html = output.data["text/html"]
                output.data["text/html"] = html.replace("<th></th>", "<td></td>")
        settings: dict[str, Any] = cell.metadata.setdefault("mystnb", {})
        alt = alt_text(cell)
        if alt is not None:
            # "dark-light": the theme leaves the image's colours alone in dark mode.
            settings["image"] = {"alt": alt, "classes": "dark-light"}
        add_sliders(cell)
        if "hide-cell" in cell.metadata.get("tags", []):
            settings.setdefault("code_prompt_show", "Show a solution")
            settings.setdefault("code_prompt_hide", "Hide the solution")
    return notebook


def swap_in_executed(app: Sphinx, docname: str, source: list[str]) -> None:
    """Give Sphinx the executed notebook to read, in place of the one without outputs.

    Where a page wants them, the times of all chapters.
    """
    root = Path(app.srcdir)
    if Path(app.env.doc2path(docname)).suffix != ".ipynb":
        if TIMES in source[0]:
            chapters = {
                path.name: read_executed(
                    path.read_text("utf-8"), root / EXECUTED / path.name, path.stem
                )
                for path in sorted((root / "chapters").glob("*.ipynb"))
            }
            source[0] = source[0].replace(TIMES, table_of_times(chapters))
        return
    executed = root / EXECUTED / f"{Path(docname).name}.ipynb"
    notebook = read_executed(source[0], executed, docname)
    app.env.note_dependency(str(executed))
    say_times(notebook, docname)
    source[0] = nbformat.writes(prepare(notebook))


def link_chapters(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:  # fmt: skip
    """Where a docstring says "Chapter 04", or "Chapters 04 and 05", link them."""
    files = {path.name[:2]: path.stem for path in Path(app.srcdir, "chapters").glob("*.ipynb")}

    def to(text: str, number: str) -> str:
        if number not in files:
            raise ExtensionError(f"{name}: expected a chapter of this book, got {number!r}")
        return f":doc:`{text}{int(number)} </chapters/{files[number]}>`"

    def link(found: re.Match[str]) -> str:
        word, first, second = found.groups()
        return to(f"{word} ", first) + (f" and {to('', second)}" if second else "")

    pattern = re.compile(r"\b([Cc]hapters?) (\d\d)(?: and (\d\d))?\b")
    lines[:] = [pattern.sub(link, line) for line in lines]


def drop_repository(options: dict[str, Any]) -> None:
    """While nobody has said where the project lives, show no button that leads there."""
    if PLACEHOLDER in options.get("repository_url", ""):
        for name in REPOSITORY_OPTIONS:
            options.pop(name, None)


def set_config(app: Sphinx, config: Config) -> None:
    """Settings that `_config.yml` cannot express."""
    drop_repository(config.html_theme_options)
    # MathJax from here and not from another host. Jupyter Book loads every script that it finds
    # below a static path on every page, but it has looked for them by now.
    config.html_static_path.append(str(Path(app.srcdir) / "_vendor"))
    config.mathjax_path = "mathjax/tex-mml-chtml.js"


# What myst-nb and docutils write for screen readers, and what these can use. The label, alike on
# all folded cells, would hide the words that say what is folded. A role that browsers have dropped
# leaves a list of sources without items.
FOR_SCREEN_READERS = {
    '<summary aria-label="Toggle hidden content">': "<summary>",
    'role="doc-biblioentry"': 'role="listitem"',
}


# A signature of several lines is to docutils a list of definitions, with nothing that is defined.
SIGNATURE = re.compile(r'<dt class="sig .*?</dt>', re.DOTALL)
PLAIN_LIST = {"<dl>": "<ul>", "</dl>": "</ul>", "<dd>": "<li>", "</dd>": "</li>"}


def replaced(text: str, pairs: dict[str, str]) -> str:
    for old, new in pairs.items():
        text = text.replace(old, new)
    return text


def mend_pages(app: Sphinx, exception: Exception | None) -> None:
    """Mend in the finished pages what no setting reaches."""
    if exception is not None or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        page = path.read_text(encoding="utf-8")
        mended = replaced(page, FOR_SCREEN_READERS)
        mended = SIGNATURE.sub(lambda found: replaced(found[0], PLAIN_LIST), mended)
        if mended != page:
            path.write_text(mended, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", set_config)
    app.connect("source-read", swap_in_executed)
    app.connect("autodoc-process-docstring", link_chapters)
    app.connect("build-finished", mend_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
