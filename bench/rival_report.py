"""What `rivals.py` found, as tables for the terminal."""

from __future__ import annotations

import statistics
from typing import Any

Record = dict[str, Any]

HEAD = f"{'':22}{'import':>8}{'cold':>9}{'warm':>9}{'spread':>8}{'memory':>10}{'worst error':>13}"
JUDGES = {
    "exact": "the exact maximum",
    "quadrature": "quadrature",
    "long run": "a long run of ours",
}
SAYS = {True: "converged", False: "NOT CONVERGED", None: "does not say"}


def report(result: Record) -> str:
    """A table a task: medians of seconds, the spread of warm runs, errors in standard errors."""
    lines = []
    for name, records in result["records"].items():
        if records:
            rows = next(iter(records.values()))["rows"]
            lines += ["", f"{name}, {rows:,} rows; judged by {judged_by(result, name)}", HEAD]
            lines += [f"{record['label']:22}{row(record)}" for record in records.values()]
    return "\n".join(lines)


def judged_by(result: Record, name: str) -> str:
    reference = result["references"].get(name)
    if reference is None:
        return "nothing yet"
    if "table" not in reference:
        return f"nothing: {reference.get('failed') or 'no reference within its limit'}"
    said = JUDGES[reference["kind"]]
    noises = [noise for noise in reference["noise"].values() if noise is not None]
    if any(noises):
        said += f", itself known to {max(noises):.2g} SE"
    if run := reference.get("long_run"):
        said += f"; a long run is {run['worst']:.2g} SE from it, and says {run['worst_noise']:.2g}"
    return said


def row(record: Record) -> str:
    """One program on one task."""
    for what in ("unavailable", "skipped", "failed"):
        if what in record:
            return f"  {what}: {record[what]}"
    if "exceeded" in record:
        return f"  exceeded {record['exceeded']:.0f} s"
    worst = "" if "worst" not in record else f"{number(record['worst'])} SE"
    if "quoted" in record:
        return f"{'':8}{record['cold_seconds']:7.0f} s{'':27}{worst:>13}  {record['quoted']}"
    seconds = [middle(record[k + "_seconds"]) for k in ("import", "cold", "warm")]
    line = f"{seconds[0]:>8}{seconds[1]:>9}{seconds[2]:>9}{spread(record['warm_seconds']):>8}"
    line += f"{record['memory_mb']:7.0f} MB{worst:>13}  {record.get('worst_parameter', '')}"
    if record.get("worst_of_runs") != record.get("worst"):  # each of its runs with another seed
        line += f", up to {number(record['worst_of_runs'])} SE with other seeds"
    return f"{line}; {SAYS[record['converged']]}"


def middle(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s" if seconds else "-"


def spread(seconds: list[float]) -> str:
    """How many times the fastest of equal runs the slowest took."""
    return f"x {max(seconds) / min(seconds):.2f}" if len(seconds) > 1 else "-"


def number(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.2g}"
