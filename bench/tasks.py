"""What the programs are compared on: InstEval, and simulated ratings from 70,000 rows to 2 million.

A task is a table with a response ``y``, a covariate ``x`` that is 0 or 1, and a random intercept
for each of one to three factors. `rivals.py` gives it to one program after another. Nothing is
imported here but what comes with Python, for the process that starts the others must stay small;
`reference.py` makes the tables.
"""

from __future__ import annotations

from dataclasses import dataclass

FAMILIES = ("gaussian", "logit", "ordered")
SIZES = {70_000: (5_000, 500), 300_000: (20_000, 2_000), 2_000_000: (90_000, 7_000)}
EXACT_UP_TO = 300_000  # rows; a Gaussian reference of more takes over half an hour
INSTEVAL = (2_972, 1_128, 14)
GOOD = 4  # a rating of InstEval from which on it counts as good, for the logit
SDS = {"g": 0.5, "h": 0.4, "d": 0.2, "students": 0.5, "instructors": 0.6, "departments": 0.3}
THRESHOLDS = (-1.0, 0.3, 1.6)


@dataclass(frozen=True)
class Task:
    """One table, and what its answers are judged by.

    ``data`` is ``"insteval"`` or ``"simulated"``; ``judge`` is ``"exact"``, ``"long run"`` or
    ``"quadrature"`` (`reference.py`). Tasks of one ``series`` differ in their size alone.
    """

    name: str
    series: str
    family: str
    data: str
    rows: int
    levels: dict[str, int]
    judge: str


def all_tasks() -> list[Task]:
    """A series from its fewest rows on, so that what fails there is not tried on more."""
    names = ("students", "instructors", "departments")
    levels = dict(zip(names, INSTEVAL, strict=True))
    insteval = [_task("insteval", family, "insteval", 73_421, levels) for family in FAMILIES]
    one = [_one_factor(family, 3_000, 300) for family in ("logit", "ordered")]
    return [*one, *insteval, *_crossed(SIZES)]


def quick_tasks() -> list[Task]:
    """One of each kind on few rows, and two sizes of one."""
    levels = {"students": 60, "instructors": 24, "departments": 6}
    few = _crossed({1_000: (60, 20), 2_000: (100, 30)})
    gaussian = [task for task in few if task.family == "gaussian"]
    insteval = _task("insteval", "logit", "simulated", 1_500, levels)
    return [_one_factor("ordered", 1_000, 100), insteval, *gaussian]


def _crossed(sizes: dict[int, tuple[int, int]]) -> list[Task]:
    return [
        _task("crossed", family, "simulated", rows, {"g": g, "h": h}, sized=True)
        for rows, (g, h) in sizes.items()
        for family in ("gaussian", "logit")
    ]


def _one_factor(family: str, rows: int, levels: int) -> Task:
    return _task("one", family, "simulated", rows, {"g": levels}, judge="quadrature")


def _task(
    kind: str,
    family: str,
    data: str,
    rows: int,
    levels: dict[str, int],
    *,
    sized: bool = False,
    judge: str | None = None,
) -> Task:
    series = f"{kind}_{family}"
    if judge is None:
        judge = "exact" if family == "gaussian" and rows <= EXACT_UP_TO else "long run"
    return Task(f"{series}_{rows}" if sized else series, series, family, data, rows, levels, judge)
