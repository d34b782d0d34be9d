"""Run every chapter as Colab would: `python tools/colab.py --runtime 2026.07 --chapter 01_data`.

A stand-in for Colab is its Python, its versions of packages (`tools/colab/*.txt`), a module named
`google.colab`, and an empty folder outside the repository. A chapter's own first cell installs
lmmbook there: in the first chapter from a wheel that lies in the folder (`make wheel`), in the
others from the book's address, which git is told to look for in a copy on this disk.

A chapter passes if its checks hold, nothing was written to stderr, and no package that was there
has moved.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import nbformat
from execute import ROOT, execute, kernel_memory
from set_url import current_url, set_url

RUNTIMES = ROOT / "tools" / "colab"
BUILD = ROOT / "_build" / "colab"
CHAPTERS = sorted(path.stem for path in (ROOT / "chapters").glob("*.ipynb"))
PLACEHOLDER = "https://github.com/OWNER/lmmbook"  # the book has no address yet
STAND_IN = "https://github.com/someone/lmmbook"  # then it gets this one, in the copy
# What TensorFlow 2.20 says of its first program for XLA. No setting silences it; 2.21 is silent.
NOISE = re.compile(
    r"(WARNING: All log messages before absl::InitializeLog\(\) .*\n)?"
    r"I0000 .*Compiled cluster using XLA! .*\n"
)
START_UP = "import sys, types\nsys.modules['google.colab'] = types.ModuleType('google.colab')\n"


class Runtime(NamedTuple):
    name: str  # as Colab numbers its runtimes: year.month
    python: str  # its Python's version, such as 3.12.13
    pins: list[str]  # name==version


class Visit(NamedTuple):
    """What a chapter did in a runtime."""

    chapter: str
    lmmbook: str  # where it was installed from
    seconds: float
    gigabytes: float  # peak of the largest process
    problems: list[str]


def read_runtime(path: Path) -> Runtime:
    """Read a runtime's list; an error if it does not name its Python or has other lines in it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    head = [line for line in lines if line.startswith("#")]
    python = re.search(r"\bPython (3\.\d+\.\d+)\b", "\n".join(head))
    if not python:
        raise ValueError(f"{path.name}: expected a comment that says 'Python 3.x.y', found none")
    pins = [line for line in lines if line not in head]
    for pin in pins:
        if not re.fullmatch(r"[\w.-]+==[\w.+]+", pin):
            raise ValueError(f"{path.name}: expected name==version, got {pin!r}")
    return Runtime(path.stem, python[1], pins)


def find_python(version: str) -> str | None:
    """A Python of the same series (3.12 for 3.12.13), on the PATH or of pyenv."""
    series = ".".join(version.split(".")[:2])
    of_pyenv = sorted(Path.home().glob(f".pyenv/versions/{series}.*/bin/python{series}"))
    for candidate in [shutil.which(f"python{series}"), *map(str, of_pyenv)]:
        # One that is there need not run: pyenv's may stand for a version that is not chosen.
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return candidate
    return None


def pip(python: Path, *command: str | Path) -> str:
    """Let the book's own pip work on that Python's packages."""
    words = [sys.executable, "-m", "pip", "--python", str(python), "-qq", *map(str, command)]
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def make_environment(runtime: Runtime, base: str, folder: Path) -> Path:
    """The runtime's packages and nothing else; made anew only if its list has changed."""
    python, stamp = folder / "bin" / "python", folder / ".installed"
    wanted = "\n".join(runtime.pins)
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"Colab {runtime.name}: installing {len(runtime.pins)} packages", flush=True)
        subprocess.run([base, "-m", "venv", "--clear", "--without-pip", folder], check=True)
        pip(python, "install", "--no-deps", *runtime.pins)
        stamp.write_text(wanted)
    return python


def publish(folder: Path) -> str:
    """Commit the working tree, as it lies here, to a repository in `folder`; return its address."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.check_output(listing, cwd=ROOT, text=True).split("\0")
    for name in names:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    if current_url(folder) == PLACEHOLDER:
        set_url(folder, STAND_IN)
    somebody = ["-c", "user.name=lmmbook", "-c", "user.email=", "-c", "commit.gpgsign=false"]
    for command in [["init", "-q"], ["add", "-A"], [*somebody, "commit", "-qm", "as it lies here"]]:
        subprocess.run(["git", *command], cwd=folder, check=True)
    return current_url(folder)


def run_alone(
    chapter: Path, build: Path, python: Path, git: dict[str, str], wheel: Path | None
) -> tuple[float, float]:
    """Execute a chapter; return seconds and peak GB. In a process that knows no other."""

    def prepare(settings: Path, work: Path) -> None:
        start_up = settings / "profile_default" / "startup" / "00-colab.py"
        start_up.parent.mkdir(parents=True)
        start_up.write_text(START_UP)
        if wheel:
            shutil.copy(wheel, work)
        os.environ.update(git)
        os.environ.pop("LMMBOOK_QUIET")  # Colab does not set it

    began = time.monotonic()
    execute(chapter, build, python, prepare)
    return time.monotonic() - began, kernel_memory()


def moved(pins: list[str], there: list[str], source: str) -> list[str]:
    """What is wrong with the packages after a chapter: it may add these two, and move none."""
    wrong = [f"{pin} is no longer there" for pin in pins if pin not in there]
    added = sorted(set(there).difference(pins))
    expected = ["formulae==", f"lmmbook @ {source}"]
    if len(added) != 2 or not all(map(str.startswith, added, expected)):
        wrong.append(f"expected it to install {expected}, got {added}")
    return wrong


def without_noise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without the one message to stderr that is none of ours."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                output.text = NOISE.sub("", output.text)
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" or o.text]
    return notebook


def visit(
    chapter: Path, runtime: Runtime, python: Path, git: dict[str, str], wheel: Path | None
) -> Visit:
    """Run a chapter from the state that the runtime starts in, and say all that is wrong."""
    from test_chapters import problems  # the book's own, of tests/pages

    build = BUILD / runtime.name
    pip(python, "uninstall", "--yes", "lmmbook", "formulae")  # of the chapter before
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        cost = process.submit(run_alone, chapter, build, python, git, wheel).result()
    there = pip(python, "freeze", "--all").splitlines()
    source = "file:///" if wheel else f"git+{git['GIT_CONFIG_VALUE_0']}@"
    wrong = moved(runtime.pins, there, source)
    if (executed := build / "executed" / chapter.name).exists():
        notebook = without_noise(nbformat.read(executed, as_version=4))
        wrong += problems(chapter.stem, notebook)
    else:
        wrong.append("it did not run to its end")
    return Visit(chapter.stem, "wheel" if wheel else "address", *cost, wrong)


def tour(runtime: Runtime, base: str, wanted: list[str], wheel: Path) -> bool:
    """Run the chapters in one runtime; record, print, and return whether all is well."""
    build = BUILD / runtime.name
    build.mkdir(parents=True, exist_ok=True)
    python = make_environment(runtime, base, build / "environment")
    visits = []
    with tempfile.TemporaryDirectory(prefix="lmmbook-") as name:
        repository = Path(name).resolve()
        address = publish(repository)
        git = {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.{repository.as_uri()}.insteadOf",
            "GIT_CONFIG_VALUE_0": address,
        }
        for chapter in wanted:
            if chapter == CHAPTERS[0]:
                path = ROOT / "chapters" / f"{chapter}.ipynb"
                visits.append(visit(path, runtime, python, git, wheel))
            else:
                path = repository / "chapters" / f"{chapter}.ipynb"
                visits.append(visit(path, runtime, python, git, None))
    version = subprocess.check_output([python, "-V"], text=True).split()[1]
    record = {"runtime": runtime.name, "python": version, "chapters": [v._asdict() for v in visits]}
    (BUILD / f"{runtime.name}.json").write_text(json.dumps(record, indent=1) + "\n")
    show(runtime, version, visits)
    return not any(v.problems for v in visits)


def show(runtime: Runtime, version: str, visits: list[Visit]) -> None:
    """Print a table, and what is wrong."""
    print(f"\nColab {runtime.name}: Python {version} (there {runtime.python})")
    print(f"{'chapter':<16}{'lmmbook':<10}{'seconds':>8}{'GB':>6}")
    for v in visits:
        verdict = "  FAILED" if v.problems else ""
        print(f"{v.chapter:<16}{v.lmmbook:<10}{v.seconds:8.1f}{v.gigabytes:6.1f}{verdict}")
    for v in visits:
        for problem in v.problems:
            print(f"{v.chapter}: {problem}", file=sys.stderr)
    sys.stdout.flush()


def main() -> int:
    names = sorted(path.stem for path in RUNTIMES.glob("*.txt"))
    parser = argparse.ArgumentParser(description="Run every chapter as Colab would.")
    parser.add_argument("--runtime", choices=names, action="append", help="this one (else all)")
    parser.add_argument("--chapter", choices=CHAPTERS, action="append", help="this one (else all)")
    arguments = parser.parse_args()
    wheels = list((ROOT / "dist").glob("lmmbook-*.whl"))
    if len(wheels) != 1:
        parser.error(f"expected one wheel in dist, as `make wheel` leaves it, found {len(wheels)}")
    os.environ.pop("PYTHONPATH", None)  # it could lead to this repository
    sys.path.insert(0, str(ROOT / "tests" / "pages"))
    results = []
    for name in arguments.runtime or names:
        runtime = read_runtime(RUNTIMES / f"{name}.txt")
        base = find_python(runtime.python)
        if base is None:
            print(f"Colab {name}: SKIPPED, no Python like {runtime.python} here", file=sys.stderr)
        else:
            results.append(tour(runtime, base, arguments.chapter or CHAPTERS, wheels[0]))
    return 0 if results and all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
