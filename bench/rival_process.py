"""How `rivals.py` runs one item: in a process of its own, with a limit for each of its steps."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import measure
from programs import TOOLS, Tool
from tasks import Task

Record = dict[str, Any]
Runner = Callable[..., Record]

WORKER = Path(__file__).with_name("rival_worker.py")
REFERENCE_LIMIT = 4 * 3600.0


def runner(folder: Path, rivals: str, limit: float) -> Runner:
    """A function that runs one item in a process of its own and returns its answer."""

    def run(*, item: str, task: Task, tool: str | None = None, **more: Any) -> Record:
        about = {"family": task.family, "factors": list(task.levels)}
        spec = {"item": item, "tool": tool, "task": dataclasses.asdict(task)} | about | more
        ask, answer = folder / "spec.json", folder / "answer.json"
        ask.write_text(json.dumps(spec), encoding="utf-8")
        print(f"{item} {task.name} {tool or ''}", file=sys.stderr, flush=True)
        python = sys.executable if tool is None else home(TOOLS[tool], rivals)
        cache = "off" if tool else str(folder / "cache")  # a cold fit is one with compiling
        return watch(
            [python, str(WORKER), str(ask), str(answer)],
            answer,
            limit if tool else REFERENCE_LIMIT,
            os.environ | {"LMMBOOK_CACHE": cache},
        )

    return run


def watch(
    command: list[str], answer: Path, limit: float, environment: Mapping[str, str] | None = None
) -> Record:
    """Run it while each of its steps, after which it writes its answer, takes less than ``limit``.

    What it wrote last comes back, with ``exceeded`` if it was ended, and ``failed`` if it ended by
    itself without a proper end.
    """
    answer.unlink(missing_ok=True)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=said, env=environment, start_new_session=True
        )
        began, step, exceeded = time.monotonic(), 0, False
        try:
            while process.poll() is None and not exceeded:
                time.sleep(0.05)
                written = answer.stat().st_mtime_ns if answer.exists() else 0
                if written != step:
                    began, step = time.monotonic(), written
                exceeded = time.monotonic() - began > limit
        finally:  # after Ctrl-C, too
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with what it has started, such as R
            status = process.wait()
        said.seek(0)
        last = (said.read().strip().splitlines() or ["no message"])[-1]
    record: Record = json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else {}
    if exceeded and status < 0:
        return record | {"exceeded": limit}
    if status < 0:
        return record | {"failed": f"ended by signal {-status}"}
    return record | ({"failed": measure.message(last)} if status else {})


def home(tool: Tool, rivals: str) -> str:
    return rivals if tool.home == "rivals" else sys.executable
