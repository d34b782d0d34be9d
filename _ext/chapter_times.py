"""How long a chapter takes to read, and to run: counted and measured at each build."""

from __future__ import annotations

import os

from nbformat import NotebookNode
from sphinx.errors import ExtensionError

WORDS, LINES = 200, 20  # of prose and of code, that are read in a minute


def minutes_to_read(notebook: NotebookNode) -> float:
    """Of its prose, printed sentences too, and of the code that is not folded away."""
    words = lines = 0
    for cell in notebook.cells:
        tags = set(cell.metadata.get("tags", []))
        if cell.cell_type == "markdown":
            words += len(cell.source.split())
        if cell.cell_type != "code" or tags & {"remove-cell", "hide-cell"}:
            continue
        if "hide-input" not in tags:
            lines += len([line for line in cell.source.splitlines() if line.strip()])
        for output in cell.get("outputs", []):
            words += len(output.get("data", {}).get("text/markdown", "").split())
    return words / WORDS + lines / LINES


def seconds_to_run(notebook: NotebookNode, name: str) -> float:
    """As papermill measured it."""
    seconds = notebook.metadata.get("papermill", {}).get("duration")
    if seconds is None:
        raise ExtensionError(f"{name}: expected the duration that papermill records, found none")
    return float(seconds)


def in_words(seconds: float) -> str:
    """Rounded as one would say it: up to 10 seconds, then tens of them, and then minutes."""
    if seconds >= 95:
        return f"{round(seconds / 60)} minutes"
    return f"{max(10, 10 * round(seconds / 10))} seconds"


def reading_time(minutes: float) -> str:
    """To five minutes: readers differ by more."""
    return f"{max(5, 5 * round(minutes / 5))} minutes"


def here(*notebooks: NotebookNode) -> str:
    """The machine that the times are those of, and whether a chapter had it to itself."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    cores = len(affinity(0)) if affinity else os.cpu_count()
    at_once = max(n.metadata.get("chapters_at_once", 1) for n in notebooks)
    shared = f", up to {at_once} chapters at a time" if at_once > 1 else ""
    return (
        f"on the machine that built this page ({cores} processor core{'s' * (cores != 1)}{shared})"
    )


def title_of(notebook: NotebookNode) -> str:
    """The heading of a chapter, without what comes after its colon."""
    heading = notebook.cells[0].source.splitlines()[0]
    return heading.removeprefix("# ").split(":")[0]


def say_times(notebook: NotebookNode, name: str) -> None:
    """Put a line under the chapter's title: how long it takes to read, and to run."""
    title, _, rest = notebook.cells[0].source.partition("\n")
    read = reading_time(minutes_to_read(notebook))
    run = in_words(seconds_to_run(notebook, name))
    line = f"*About {read} to read; {run} to run, {here(notebook)}.*"
    notebook.cells[0].source = f"{title}\n\n{line}\n{rest}"


def table_of_times(chapters: dict[str, NotebookNode]) -> str:
    """How long every chapter takes, in Markdown; ``chapters`` by the names of their files."""
    lines = ["| chapter | to read | to run |", "|---|---:|---:|"]
    read = run = 0.0
    for name, notebook in chapters.items():
        minutes, seconds = minutes_to_read(notebook), seconds_to_run(notebook, name)
        link = f"[{title_of(notebook)}](chapters/{name})"
        lines.append(f"| {link} | {reading_time(minutes)} | {in_words(seconds)} |")
        read, run = read + minutes, run + seconds
    lines.append(f"| all | {read / 60:.0f} hours | {in_words(run)} |")
    rule = (
        f"To read: {WORDS} words a minute, and {LINES} lines of the code that is not folded away; "
        f"exercises come on top. To run: everything, with what had to be compiled, "
        f"{here(*chapters.values())}."
    )
    return "\n".join([*lines, "", rule])
