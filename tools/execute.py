"""Execute one chapter with papermill: `python tools/execute.py chapters/01_data.ipynb`.

The result goes to `_build/executed/` only when every cell ran. A chapter that fails goes to
`_build/failed/`, and leaves nothing in `_build/executed/` that could be taken for its result.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
AT_ONCE = "chapters_at_once"  # in the metadata of what was executed
CELL_TIMEOUT = 900  # seconds; a cell that hangs must not hang the build


def write_kernelspec(folder: Path, python: str | Path) -> None:
    """Describe a kernel named `python3` that is this interpreter.

    A kernel of that name in the user's home may belong to another environment.
    """
    # Without the log level it tells the terminal, on every start, that loopback is not
    # encrypted, and at times that it was interrupted when it is asked to end.
    command = [str(python), "-m", "ipykernel_launcher", "--log-level=CRITICAL"]
    spec = {
        "argv": [*command, "-f", "{connection_file}"],
        "display_name": "Python 3",
        "language": "python",
    }
    path = folder / "kernels" / "python3" / "kernel.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(spec))


def set_environment(folder: Path, python: str | Path) -> None:
    """Make the kernel's environment the same for everybody."""
    write_kernelspec(folder / "jupyter", python)
    os.environ["JUPYTER_PATH"] = str(folder / "jupyter")  # searched before all other places
    os.environ["IPYTHONDIR"] = str(folder / "ipython")  # no start-up files of the user's own
    os.environ["PYTHONHASHSEED"] = "0"
    os.environ["LMMBOOK_QUIET"] = "1"  # no progress of fits: its last state would stay in the page
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # else the debugger writes to stderr
    os.environ.pop("MPLBACKEND", None)  # the kernel chooses the inline one


def kernel_memory() -> float:
    """Peak memory of the largest child process so far, in GB."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


def describe(error: Exception) -> str:
    """Say what went wrong, without the terminal's colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", f"{type(error).__name__}: {error}").strip()


def execute(
    chapter: Path,
    build: Path,
    python: str | Path = sys.executable,
    prepare: Callable[[Path, Path], None] = lambda settings, work: None,
    at_once: int = 1,
) -> bool:
    """Execute `chapter` into `build`/executed; return whether all of it ran.

    `python` runs the kernel. `prepare` may add to the environment, and to two folders: that of
    IPython's settings, and the empty one where the chapter runs. So many chapters run `at_once`:
    the result says so, for whoever shows how long it took.
    """
    executed = build / "executed" / chapter.name
    failed = build / "failed" / chapter.name
    for path in (executed, failed):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # from here on, the old result is no result

    # On the same disk as the result, so that the renaming is one step.
    with (
        tempfile.TemporaryDirectory(dir=build, prefix="executing-") as name,
        tempfile.TemporaryDirectory(prefix="lmmbook-") as work,
    ):
        folder = Path(name)
        set_environment(folder, python)
        prepare(folder / "ipython", Path(work))
        # After the environment is set: these read it when they are imported.
        import nbformat
        import papermill
        from papermill.log import logger

        logger.setLevel(logging.ERROR)
        output = folder / chapter.name
        started, clock = time.time(), time.monotonic()
        error: Exception | None = None
        try:
            papermill.execute_notebook(
                chapter.resolve(),
                output,
                kernel_name="python3",
                progress_bar=False,
                cwd=work,  # empty, and elsewhere: no chapter reads a file beside itself
                execution_timeout=CELL_TIMEOUT,
            )
        except Exception as exception:  # a failing cell, a dead kernel, a broken notebook
            error = exception
        seconds = time.monotonic() - clock
        if output.exists():
            notebook = nbformat.read(output, as_version=4)
            notebook.metadata[AT_ONCE] = at_once
            nbformat.write(notebook, output)
            # As of when it began: what is edited during the run makes the result out of date.
            os.utime(output, (started, started))
            output.replace(failed if error else executed)

    verdict = "FAILED" if error else "executed"
    print(f"{chapter.stem:<16}{verdict} in {seconds:5.1f} s, {kernel_memory():4.1f} GB", flush=True)
    if error:
        print(describe(error), file=sys.stderr)
        if failed.exists():
            print(f"The notebook as far as it got: {failed}", file=sys.stderr)
    return error is None


def main() -> int:
    parser = argparse.ArgumentParser(description="Execute one chapter with papermill.")
    parser.add_argument("chapter", type=Path, help="the notebook")
    parser.add_argument("--build", type=Path, default=ROOT / "_build", help="where results go")
    parser.add_argument("--at-once", type=int, default=1, help="chapters running at a time")
    arguments = parser.parse_args()
    if not arguments.chapter.is_file():
        parser.error(f"there is no notebook {arguments.chapter}")
    build: Path = arguments.build.resolve()
    build.mkdir(parents=True, exist_ok=True)
    return 0 if execute(arguments.chapter, build, at_once=arguments.at_once) else 1


if __name__ == "__main__":
    sys.exit(main())
