"""Ours, the tutorial and NUTS: `python bench/run.py [--quick] [--only ITEM ...] [--out FILE]`.

Fits one model to the same ratings with each of them, and writes times, memory and errors as JSON.
An error is the distance to the exact maximum in standard errors and stands beside every time, since
a fast wrong answer is wrong. Other programs for the same models are in `rivals.py`.

Each item runs in a process of its own, one after the other: see `worker.py`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import nuts

WORKER = Path(__file__).with_name("worker.py")
RIGHT_WITHIN, WRONG_BEYOND = 0.2, 1.0  # standard errors, for the worst parameter
TIME_LIMIT = 3600.0  # seconds for one item
ITEMS = ("engine", "tutorial", "tutorial_loop", "numpyro", "kernel", "cost")
LABELS = {
    "engine": "lmmbook",
    "tutorial": "tutorial, as published",
    "tutorial_loop": "tutorial, loops compiled",
    "numpyro": "numpyro, NUTS",
}

Record = dict[str, Any]
Runner = Callable[..., Record]


class Settings:
    """How much is run; ``quick`` walks every path on little data."""

    def __init__(self, quick: bool, repeats: int) -> None:
        self.quick = quick
        self.repeats = 1 if quick else repeats
        self.fractions = (0.5,) if quick else (1 / 8, 1 / 4, 1 / 2, 1.0)
        self.chains = (2,) if quick else (2, 4, 8, 16, 32)
        self.sweeps = 520  # of a fit whose cost is measured
        self.engine = {"max_sweeps": 520} if quick else {}
        self.tutorial = {"warm_up": 100, "iterations": 50} if quick else {}
        self.kernel = (
            {"engine": {"sweeps": 200}, "tutorial": {"steps": 500}}
            if quick
            else {"engine": {}, "tutorial": {}}
        )
        self.nuts = {"warm_up": 30, "draws": 30} if quick else {"warm_up": 300, "draws": 300}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="little data, to try the code")
    parser.add_argument("--only", nargs="+", choices=ITEMS, default=ITEMS, help="these items only")
    parser.add_argument("--repeats", type=int, default=3, help="processes a median is taken over")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.json"))
    arguments = parser.parse_args()
    settings = Settings(arguments.quick, arguments.repeats)
    with tempfile.TemporaryDirectory() as folder:
        result = benchmark(settings, arguments.only, _runner(Path(folder)), Path(folder))
    arguments.out.write_text(
        json.dumps(measure.plain(result), indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    print(report(result))
    failed = [name for name, method in result["methods"].items() if method.get("failed")]
    failed += [name for name in ("kernel", "cost") if "failed" in json.dumps(result[name])]
    print(f"failed: {', '.join(failed)}" if failed else "nothing failed", file=sys.stderr)
    return 1 if failed else 0


def benchmark(settings: Settings, only: list[str], run: Runner, folder: Path) -> Record:
    """Run the items and gather the result, as it is written to the file."""
    hardware = measure.hardware()  # first, for the load that the machine has without us
    run = _with(run, data=str(folder / "data.pickle"))
    prepared = run(item="prepare", quick=settings.quick)
    if prepared.get("failed"):
        raise SystemExit(f"the exact maximum, which all is judged by: {prepared['failed']}")
    exact = prepared["exact"]
    at = {name: row["estimate"] for name, row in exact["estimated"].items()}
    methods = {
        name: _method(name, settings, run, exact)
        for name in ITEMS
        if name in LABELS and name in only
    }
    kernel = _with(run, item="kernel", seed=1, parameters=at)
    return {
        "schema": 1,
        "quick": settings.quick,
        "date": datetime.date.today().isoformat(),
        "revision": measure.revision(),
        "hardware": hardware | {"device": prepared["device"]},
        "versions": measure.versions(),
        "repeats": settings.repeats,
        "formula": measure.FORMULA,
        "data": prepared["data"],
        "exact": exact,
        "right_within": RIGHT_WITHIN,
        "wrong_beyond": WRONG_BEYOND,
        "methods": methods,
        "kernel": {
            whose: kernel(whose=whose, options=options)
            for whose, options in settings.kernel.items()
            if "kernel" in only
        },
        "cost": cost(settings, run) if "cost" in only else {},
    }


def _method(name: str, settings: Settings, run: Runner, exact: Record) -> Record:
    """Run one method, and judge it."""
    if name == "engine":  # two fits a process, all with different seeds: a cold and a warm one
        seeds = [[2 * i + 1, 2 * i + 2] for i in range(settings.repeats)]
        records = [run(item="engine", seeds=pair, options=settings.engine) for pair in seeds]
        return judged(name, records, exact["estimated"])
    if name.startswith("tutorial"):
        loop = name == "tutorial_loop"
        record = run(item="tutorial", seed=1, compiled_loop=loop, options=settings.tutorial)
        # Its model holds the residual sd at 1, so it is judged by the maximum of that model.
        return judged(name, [record], exact["fixed"])
    if not nuts.available():
        return {"label": LABELS[name], "available": False}
    return judged(name, [run(item=name, seed=1, options=settings.nuts)], exact["estimated"])


def cost(settings: Settings, run: Runner) -> Record:
    """Warm seconds a sweep of our engine, against rows at its usual chains, and against chains."""

    def point(fraction: float, chains: int | None) -> Record:
        options = {"max_sweeps": settings.sweeps} | ({"chains": chains} if chains else {})
        seeds = list(range(1, settings.repeats + 2))
        record = run(item="engine", seeds=seeds, options=options, fraction=fraction)
        if record.get("failed"):
            return record
        warm = record["runs"][1:]
        return {
            "rows": record["rows"],
            "levels": record["levels"],
            "chains": chains or warm[0]["chains"],
            "seconds_a_sweep": statistics.median(r["seconds"] / r["sweeps"] for r in warm),
            "sweeps": statistics.median(r["sweeps"] for r in warm),
            "cold_seconds": record["runs"][0]["seconds"],
            "memory_mb": record["memory_mb"],
        }

    return {
        "rows": [point(fraction, None) for fraction in settings.fractions],
        "chains": [point(1.0, chains) for chains in settings.chains],
    }


def judged(name: str, records: list[Record], exact: Record) -> Record:
    """One method's entry: medians over its runs, and its errors beside them.

    ``records`` are what the method's processes returned. A process's first run is the cold one. A
    later run is warm; where compiling was timed by itself, a run without it counts as warm.
    """
    failed = [record["failed"] for record in records if record.get("failed")]
    entry: Record = {"label": LABELS[name], "available": True}
    if failed:
        return entry | {"failed": failed[0]}
    runs = [run for record in records for run in record["runs"]]
    for run in runs:
        run["errors"] = measure.errors(run["estimates"], exact)
        run |= measure.summary(run["errors"])
    worst = statistics.median(run["worst"] for run in runs)
    middle = min(runs, key=lambda run: abs(run["worst"] - worst))
    extras = {k: v for k, v in records[0].items() if k not in ("runs", "memory_mb")}
    return entry | extras | {
        "seconds": _seconds(records),
        "memory_mb": statistics.median(record["memory_mb"] for record in records),
        "worst": worst,
        "worst_parameter": middle["worst_parameter"],
        "worst_of_all_runs": max(run["worst"] for run in runs),
        "rms": statistics.median(run["rms"] for run in runs),
        "verdict": verdict(worst),
        "runs": runs,
    }  # fmt: skip


def _seconds(records: list[Record]) -> Record:
    """Median seconds of a cold fit, of a warm one, and of compiling; and how far equals differ."""
    first = [record["runs"][0] for record in records]
    later = [run for record in records for run in record["runs"][1:]]
    cold = statistics.median(run["seconds"] for run in first)
    if "compile_seconds" in first[0]:
        compiling = statistics.median(run["compile_seconds"] for run in first)
        warm = [run["seconds"] - run["compile_seconds"] for run in first]
    else:
        compiling, warm = None, [run["seconds"] for run in later]
    middle = statistics.median(warm)
    compiling = cold - middle if compiling is None else compiling
    return {"cold": cold, "warm": middle, "compile": compiling, "noise": _noise(warm)}


def _noise(seconds: list[float]) -> float | None:
    """How many times the fastest of equal runs the slowest took; None for a single run."""
    return max(seconds) / min(seconds) if len(seconds) > 1 else None


def verdict(worst: float) -> str:
    """In one word, from the worst error: `right`, `near` or `wrong`. NaN is wrong."""
    if worst <= RIGHT_WITHIN:
        return "right"
    return "near" if worst <= WRONG_BEYOND else "wrong"


def report(result: Record) -> str:
    """The result as a table for the terminal."""
    lines = [f"{'':26}{'cold':>9}{'warm':>9}{'compile':>9}{'memory':>10}{'worst error':>13}"]
    for method in result["methods"].values():
        line = f"{method['label']:26}"
        if not method["available"]:
            lines.append(line + "  not installed")
        elif method.get("failed"):
            lines.append(line + f"  failed: {method['failed']}")
        else:
            for key in ("cold", "warm", "compile"):
                line += f"{method['seconds'][key]:7.1f} s"
            worst = f"{method['worst']:.3g} SE"
            line += f"{method['memory_mb']:7.0f} MB{worst:>13}"
            lines.append(f"{line}  {method['verdict']}: {method['worst_parameter']}")
    return "\n".join(lines)


def _runner(folder: Path) -> Runner:
    """A function that runs one item in a process of its own and returns its record.

    A failure is a record too, ``{"failed": ...}``, without anything of the machine in it; the
    whole message goes to the terminal.
    """

    def run(**spec: Any) -> Record:
        ask, answer = folder / "spec.json", folder / "answer.json"
        answer.unlink(missing_ok=True)
        ask.write_text(json.dumps(spec), encoding="utf-8")
        known = ("item", "whose", "seeds", "options", "fraction")
        what = " ".join(str(spec[key]) for key in known if key in spec)
        print(f"running {what}", file=sys.stderr, flush=True)
        command = [sys.executable, str(WORKER), str(ask), str(answer)]
        environment = os.environ | {"LMMBOOK_CACHE": "off"}  # cold is with compiling
        try:
            process = subprocess.run(
                command, capture_output=True, text=True, timeout=TIME_LIMIT, env=environment
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"took more than {TIME_LIMIT:.0f} seconds"}
        if process.returncode or not answer.exists():
            print(process.stderr, file=sys.stderr)
            last = (process.stderr.strip().splitlines() or ["no message"])[-1]
            return {"failed": last.split(":")[0]}  # the exception's name
        return json.loads(answer.read_text(encoding="utf-8"))

    return run


def _with(run: Runner, **fixed: Any) -> Runner:
    return lambda **spec: run(**(fixed | spec))


if __name__ == "__main__":
    sys.exit(main())
