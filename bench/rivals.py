"""Other programs on the same tasks: `python bench/rivals.py [--quick] [--python RIVALS] ...`.

Every program of `programs.py` fits every task of `tasks.py` that it can. It stands in the file
with its times, cold and warm, its memory, its distance from the reference in standard errors, and
whether it says itself that it converged. A program that fails, or takes longer than the limit, is
not tried on more rows of the same series. The file is written after each program, and a second run
does only what is not in it: `--again` forgets a program or a task.

Programs from PyPI may live in another environment, whose Python `--python` names: see
`requirements-bench.txt`. Each run is a process of its own, one after the other: `rival_worker.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import measure
from programs import TOOLS, Tool, version_of
from rival_process import home, runner
from rival_report import report
from tasks import Task, all_tasks, quick_tasks

Record = dict[str, Any]
Runner = Callable[..., Record]

LIMIT = 600.0  # seconds for an import or a fit
LONG = 60.0  # seconds: a fit that takes longer is not repeated
QUOTED = {
    ("insteval_ordered", "clmm"): {
        "quoted": "chapter 6: recorded once, on two cores; not run here",
        "cold_seconds": 1692.0,
        "estimates": {
            "threshold(1|2)": -2.2427, "threshold(2|3)": -1.0262, "threshold(3|4)": 0.1617,
            "threshold(4|5)": 1.4159, "x": -0.1403, "sd(students)": 0.4996,
            "sd(instructors)": 0.7826, "sd(departments)": 0.1179,
        },
    }
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="little data, to try the code")
    parser.add_argument("--python", default=sys.executable, help="of the rivals' environment")
    parser.add_argument("--only", nargs="+", choices=TOOLS, default=list(TOOLS), metavar="TOOL")
    every = [task.name for task in all_tasks() + quick_tasks()]
    parser.add_argument("--tasks", nargs="+", choices=every, default=every, metavar="TASK")
    parser.add_argument("--again", nargs="+", choices=[*TOOLS, *every], default=[], metavar="NAME")
    parser.add_argument("--limit", type=float, help="seconds for a fit (600; 60 with --quick)")
    parser.add_argument("--repeats", type=int, help="processes a task (5; 1 with --quick)")
    parser.add_argument("--out", type=Path, help="rivals.json beside this file")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: the run in progress ends
    quick = given.quick
    tasks = [t for t in (quick_tasks() if quick else all_tasks()) if t.name in given.tasks]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kept = folder / "quick.json" if quick else Path(__file__).with_name("rivals.json")
        out = given.out or kept
        result = begun(out, quick)
        forget(result, given.again)
        Bench(
            result=result,
            save=lambda: write(result, out),
            run=runner(folder, given.python, given.limit or (60.0 if quick else LIMIT)),
            version=lambda tool: version_of(tool, home(tool, given.python)),
            data=str(folder / "data.npz"),
            repeats=given.repeats or (1 if quick else 5),
        ).all(tasks, given.only)
    print(report(result))
    return 0


def begun(out: Path, quick: bool) -> Record:
    """The file's result to go on with, or a new one. It has to be of this machine."""
    hardware = measure.hardware() | {"openblas_threads": os.environ.get("OPENBLAS_NUM_THREADS")}
    fresh = {
        "schema": 1,
        "quick": quick,
        "date": datetime.date.today().isoformat(),
        "revision": measure.revision(),
        "hardware": hardware,
        "versions": measure.versions(),
        "references": {},
        "records": {},
    }
    if not out.exists():
        return fresh
    old = json.loads(out.read_text(encoding="utf-8"))
    same = ("processor", "cores", "memory_gb")
    if old["quick"] != quick or any(old["hardware"][k] != hardware[k] for k in same):
        raise SystemExit(f"{out}: expected a file of this machine, as quick as this run; move it")
    return old | {key: fresh[key] for key in ("date", "revision", "versions")}


def forget(result: Record, names: Iterable[str]) -> None:
    """Of a task all, reference included; of a program its records."""
    for name in names:
        result["references"].pop(name, None)
        result["records"].pop(name, None)
        for records in result["records"].values():
            records.pop(name, None)


@dataclasses.dataclass
class Bench:
    """What is needed to go on: the result so far, and how to save, to run and to ask."""

    result: Record
    save: Callable[[], None]
    run: Runner
    version: Callable[[Tool], str | None]
    data: str
    repeats: int
    made: str = ""  # the task whose table lies in ``data``

    def all(self, tasks: list[Task], names: list[str]) -> None:
        """Every program on every task; what is done already stays as it is."""
        versions = {name: self.version(TOOLS[name]) for name in names}
        for task in tasks:
            records = self.result["records"].setdefault(task.name, {})
            for name in names:
                if task.family in TOOLS[name].families and not done(records.get(name)):
                    record = not_run(task, name, versions[name], self.result["records"])
                    record = record or self.measure(task, name)
                    records[name] = self.described(task, name, versions[name]) | record
                    self.save()
            self.judge(task, records)
            self.save()

    def judge(self, task: Task, records: dict[str, Record]) -> None:
        """Errors of what has estimates; the reference is made once, and kept."""
        references = self.result["references"]
        if any(map(estimated, records.values())):
            if "table" not in references.get(task.name, {}):
                self.make(task)
                asked = {"data": self.data, "quick": self.result["quick"]}
                references[task.name] = self.run(item="judge", task=task, **asked)
            judge(records, references[task.name])

    def make(self, task: Task) -> None:
        if self.made != task.name:
            answer = self.run(item="make", task=task, data=self.data)
            if "rows" not in answer:
                raise SystemExit(f"the table of {task.name}: {answer}")
            self.made = task.name

    def described(self, task: Task, name: str, version: str | None) -> Record:
        if name == "lmmbook" and version:
            version = f"{version}, {self.result['revision']}"
        about = {"tool": name, "label": TOOLS[name].label, "version": version}
        return about | {"task": task.name, "series": task.series, "rows": task.rows}

    def measure(self, task: Task, name: str) -> Record:
        """A cold fit and a warm one in each of several processes; in one, if it takes long."""
        self.make(task)
        found: list[Record] = []
        for i in range(self.repeats):
            seeds = [2 * i + 1, 2 * i + 2]
            answer = self.run(item="fit", task=task, tool=name, seeds=seeds, data=self.data)
            if "failed" in answer:
                return {"failed": answer["failed"]}
            if answer.get("runs"):  # a warm run that took too long is just not there
                found.append(answer)
            elif not found:
                return {"exceeded": answer["exceeded"]}
            if "exceeded" in answer or answer["runs"][0]["seconds"] > LONG:
                break
        return together(found)


def done(record: Record | None) -> bool:
    """Whether there is nothing more to find out: else it is tried again, or said again."""
    return record is not None and not {"skipped", "unavailable"} & set(record)


def not_run(
    task: Task,
    name: str,
    version: str | None,
    records: dict[str, dict[str, Record]],
) -> Record | None:
    """Why it is not run, if so: quoted, not installed, or in trouble with fewer rows already."""
    if (task.name, name) in QUOTED:
        return QUOTED[task.name, name]
    if version is None:
        return {"unavailable": "not installed"}
    for other in records.values():  # of this run, and of those before it
        before = other.get(name, {})
        if before.get("series") == task.series and before["rows"] < task.rows:
            if "exceeded" in before:
                return {"skipped": f"over {before['exceeded']:.0f} s with {before['rows']:,} rows"}
            if "failed" in before:
                return {"skipped": f"failed with {before['rows']:,} rows"}
    return None


def together(found: list[Record]) -> Record:
    """One record of several processes, each with a cold run and perhaps a warm one."""
    runs = [run for answer in found for run in answer["runs"]]
    said = [run["converged"] for run in runs]
    return {
        "import_seconds": [answer["import_seconds"] for answer in found],
        "cold_seconds": [answer["runs"][0]["seconds"] for answer in found],
        "warm_seconds": [run["seconds"] for answer in found for run in answer["runs"][1:]],
        "memory_mb": max(answer["memory_mb"] for answer in found),
        "estimates": runs[0]["estimates"],
        "converged": None if None in said else all(said),
        "runs": runs,
    }


def estimated(record: Record) -> bool:
    return "estimates" in record


def judge(records: dict[str, Record], reference: Record) -> None:
    """Put errors beside the estimates of one task, in the reference's standard errors."""
    if "table" not in reference:
        return
    for record in filter(estimated, records.values()):
        runs = record.get("runs", [record])
        try:
            every = [measure.errors(run["estimates"], reference["table"]) for run in runs]
        except KeyError as name:
            record["failed"] = f"no estimate of {name}"
            continue
        record |= {"errors": every[0]} | measure.summary(every[0])
        record["noise"] = reference["noise"].get(record["worst_parameter"])
        record["worst_of_runs"] = max(measure.summary(errors)["worst"] for errors in every)


def write(result: Record, out: Path) -> None:
    part = out.with_suffix(".part")
    text = json.dumps(measure.plain(result), indent=1, allow_nan=False)
    part.write_text(text + "\n", encoding="utf-8")
    os.replace(part, out)


if __name__ == "__main__":
    sys.exit(main())
