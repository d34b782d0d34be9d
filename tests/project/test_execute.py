"""The chapters' runner: what ran is kept; what failed leaves nothing that looks like a result."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "execute.py"


def run(
    folder: Path, *sources: str, options: tuple[str, ...] = ()
) -> tuple[subprocess.CompletedProcess[str], Path, Path]:
    """Execute a notebook of these cells; return the process, and its two possible results."""
    chapter = folder / "tiny.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources]), chapter)
    build = folder / "build"
    process = subprocess.run(
        [sys.executable, str(SCRIPT), str(chapter), "--build", str(build), *options],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return process, build / "executed" / "tiny.ipynb", build / "failed" / "tiny.ipynb"


def text_of(notebook: Path, cell: int) -> str:
    """What a cell of an executed notebook printed."""
    outputs = nbformat.read(notebook, as_version=4).cells[cell].outputs
    return "".join(output.text for output in outputs).strip()


@pytest.fixture(scope="module")
def passing(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    folder = tmp_path_factory.mktemp("passing")
    process, executed, failed = run(
        folder, "print(6 * 7)", "import os, sys; print(sys.executable); print(os.listdir())"
    )
    assert process.returncode == 0, process.stderr
    return process.stdout, executed, failed


def test_a_passing_chapter_is_kept_and_reported(passing: tuple[str, Path, Path]) -> None:
    report, executed, failed = passing
    assert text_of(executed, 0) == "42"
    assert not failed.exists()
    assert re.fullmatch(r"tiny +executed in +[\d.]+ s, +[\d.]+ GB\n", report)
    assert {path.name for path in executed.parents[1].iterdir()} == {"executed", "failed"}


def test_the_kernel_is_this_interpreter_in_an_empty_folder(
    passing: tuple[str, Path, Path],
) -> None:
    interpreter, files = text_of(passing[1], 1).splitlines()
    assert interpreter == sys.executable
    assert files == "[]"


@pytest.mark.parametrize(("options", "at_once"), [((), 1), (("--at-once", "3"), 3)])
def test_a_result_says_what_ran_beside_it(tmp_path: Path, options, at_once) -> None:
    _, executed, _ = run(tmp_path, "print(1)", options=options)
    found = nbformat.read(executed, as_version=4)
    assert found.metadata["chapters_at_once"] == at_once
    assert found.metadata["papermill"]["duration"] > 0


def test_a_failing_chapter_leaves_no_result_and_says_why(tmp_path: Path) -> None:
    stale = tmp_path / "build" / "executed" / "tiny.ipynb"
    stale.parent.mkdir(parents=True)
    stale.write_text("the result of an earlier run")
    process, executed, failed = run(tmp_path, "print(1)", "raise ValueError('no such level')")
    assert process.returncode != 0
    assert not executed.exists()
    assert "no such level" in failed.read_text()
    assert "ValueError: no such level" in process.stderr
    assert "\x1b" not in process.stderr
    assert "FAILED" in process.stdout


def test_a_kernel_that_dies_is_a_failure(tmp_path: Path) -> None:
    process, executed, _ = run(tmp_path, "import os; os._exit(1)")
    assert process.returncode != 0
    assert not executed.exists()
    assert "Kernel" in process.stderr


def test_a_result_is_as_old_as_the_start_of_its_run(tmp_path: Path) -> None:
    """So that a source edited during a run makes its result out of date."""
    process, executed, _ = run(
        tmp_path,
        "import time; time.sleep(1)",
        f"import pathlib; pathlib.Path({str(tmp_path / 'edited')!r}).touch()",
    )
    assert process.returncode == 0, process.stderr
    assert os.path.getmtime(executed) < os.path.getmtime(tmp_path / "edited")
