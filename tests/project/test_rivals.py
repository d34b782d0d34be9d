"""The comparison with other programs: what is run, what is not, and how it is judged."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import lmmbook as lmm

import measure
import numpy as np
import pandas as pd
import programs
import pytest
import quadrature
import reference
import rival_process
import rival_report
import rival_worker
import rivals
import tasks
from packaging.requirements import Requirement
from scipy import integrate, special, stats

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"
RESULTS = BENCH / "rivals.json"

TABLE = {
    "Intercept": {"estimate": 2.0, "std_error": 0.5},
    "sd(g)": {"estimate": 0.4, "std_error": 0.1},
    "sd(residual)": {"estimate": 1.0, "std_error": None},  # held fixed
}
REFERENCE = {"kind": "exact", "table": TABLE, "noise": {"Intercept": 0.0, "sd(g)": 0.01}}
GOOD = {"Intercept": 2.25, "sd(g)": 0.4, "sd(residual)": 1.0}
SERIES = [
    tasks._task("crossed", "gaussian", "simulated", rows, {"g": 9, "h": 4}, sized=True)
    for rows in (100, 200, 300)
]


def answer(*seconds: float, estimates: dict = GOOD, converged: bool | None = True) -> dict:
    runs = [{"seconds": s, "estimates": estimates, "converged": converged} for s in seconds]
    return {"import_seconds": 0.5, "memory_mb": 100.0, "runs": runs}


class Fake:
    """Runs nothing: gives the answers it has, and remembers what it was asked."""

    def __init__(self, answers: dict | None = None) -> None:
        self.answers, self.asked, self.saved = answers or {}, [], 0
        self.result = {"quick": True, "revision": "abc", "references": {}, "records": {}}

    def run(self, *, item, task, tool=None, **more) -> dict:
        self.asked.append((item, task.name, tool))
        if item == "make":
            return {"rows": task.rows}
        if item == "judge":
            return REFERENCE
        return self.answers.get((task.name, tool), answer(3.0, 1.0))

    def save(self) -> None:
        self.result = json.loads(json.dumps(measure.plain(self.result)))
        self.saved += 1

    def all(self, names=("lmmbook", "glmm"), given=SERIES[:1], repeats=2, version="1.0") -> dict:
        """Once through, from what was saved before."""
        bench = rivals.Bench(
            self.result, self.count, self.run, lambda tool: version, "data", repeats
        )
        bench.all(given, list(names))
        self.result = json.loads(json.dumps(measure.plain(self.result)))
        return self.result["records"]

    def count(self) -> None:
        self.saved += 1


# --- what is run, and what is not ---------------------------------------------------------------


def test_a_second_run_does_nothing_anew():
    fake = Fake()
    first = fake.all()
    assert [asked[0] for asked in fake.asked] == ["make", "fit", "fit", "fit", "fit", "judge"]
    assert fake.saved >= 3  # after each program, and when judged
    fake.asked.clear()
    assert fake.all() == first
    assert fake.asked == []


def test_a_run_that_was_broken_off_goes_on_where_it_was():
    fake = Fake()
    fake.all(names=["lmmbook"])
    before = fake.result["records"][SERIES[0].name]["lmmbook"]
    fake.asked.clear()
    records = fake.all()[SERIES[0].name]
    assert {tool for item, _, tool in fake.asked if item == "fit"} == {"glmm"}
    assert records["lmmbook"] == before
    assert records["glmm"]["worst"] == pytest.approx(0.5)  # by the reference that was there


def test_what_is_forgotten_is_run_again():
    fake = Fake()
    fake.all(given=SERIES[:2])
    rivals.forget(fake.result, ["glmm"])
    fake.asked.clear()
    fake.all(given=SERIES[:2])
    assert {asked for asked in fake.asked if asked[0] == "fit"} == {
        ("fit", task.name, "glmm") for task in SERIES[:2]
    }
    rivals.forget(fake.result, [SERIES[0].name])
    assert list(fake.result["records"]) == list(fake.result["references"]) == [SERIES[1].name]


@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        ({"runs": [], "exceeded": 600.0}, "over 600 s with 200 rows"),
        ({"runs": [], "failed": "MemoryError: no"}, "failed with 200 rows"),
    ],
)
@pytest.mark.parametrize("at_once", [1, 3], ids=["one run a task", "one run"])
def test_after_trouble_more_rows_are_skipped(trouble, why, at_once):
    fake = Fake({(SERIES[1].name, "glmm"): trouble})
    for i in range(0, 3, at_once):
        records = fake.all(given=SERIES[i : i + at_once])
    small, middle, large = (records[task.name]["glmm"] for task in SERIES)
    assert small["cold_seconds"] == [3.0, 3.0]
    kind = next(iter(set(trouble) - {"runs"}))
    assert middle[kind] == trouble[kind]
    assert "cold_seconds" not in middle
    assert large["skipped"] == why
    assert ("fit", SERIES[2].name, "glmm") not in fake.asked
    assert records[SERIES[2].name]["lmmbook"]["cold_seconds"] == [3.0, 3.0]  # others go on
    fake.asked.clear()
    fake.all(given=SERIES)
    assert fake.asked == []  # a limit that was exceeded is an answer
    rivals.forget(fake.result, [SERIES[0].name])
    records = fake.all(given=SERIES)  # fewer rows are tried all the same
    assert records[SERIES[0].name]["glmm"]["cold_seconds"] == [3.0, 3.0]


def test_what_was_skipped_is_tried_once_the_smaller_one_works():
    fake = Fake({(SERIES[0].name, "glmm"): {"runs": [], "failed": "x"}})
    fake.all(given=SERIES[:2])
    fake.answers = {}
    rivals.forget(fake.result, ["glmm"])
    records = fake.all(given=SERIES[:2])
    assert records[SERIES[1].name]["glmm"]["cold_seconds"] == [3.0, 3.0]


def test_an_absent_program_is_said_to_be_absent_and_never_run():
    fake = Fake()
    records = fake.all(version=None)[SERIES[0].name]
    assert fake.asked == []
    assert {record["unavailable"] for record in records.values()} == {"not installed"}
    assert "unavailable: not installed" in rival_report.report(fake.result)
    assert "cold_seconds" in fake.all()[SERIES[0].name]["glmm"]  # installed meanwhile


def test_versions_are_asked_of_the_rivals_own_python(tmp_path, monkeypatch):
    absent = programs.Tool("x", "no-such-package-here", "rivals", (), programs.glmm)
    assert programs.version_of(absent, sys.executable) is None
    there = absent._replace(package="numpy")
    assert programs.version_of(there, sys.executable) == np.__version__
    monkeypatch.setenv("PATH", str(tmp_path))  # so R is absent, here and anywhere
    assert programs.version_of(programs.TOOLS["lmer"], sys.executable) is None
    assert rival_process.home(there, "theirs") == "theirs"
    assert rival_process.home(programs.TOOLS["lmmbook"], "theirs") == sys.executable


def test_a_fit_of_over_a_minute_is_not_repeated():
    fake = Fake({(SERIES[0].name, "glmm"): answer(61.0, 60.5)})
    records = fake.all(repeats=5)[SERIES[0].name]
    assert records["lmmbook"]["cold_seconds"] == [3.0] * 5
    assert records["lmmbook"]["warm_seconds"] == [1.0] * 5
    assert (records["glmm"]["cold_seconds"], records["glmm"]["warm_seconds"]) == ([61.0], [60.5])


def test_a_warm_fit_beyond_the_limit_leaves_the_cold_one():
    fake = Fake({(SERIES[0].name, "glmm"): answer(590.0) | {"exceeded": 600.0}})
    record = fake.all()[SERIES[0].name]["glmm"]
    assert (record["cold_seconds"], record["warm_seconds"]) == ([590.0], [])
    assert "exceeded" not in record


def test_programs_run_only_what_they_can_and_the_quoted_one_never():
    ordered = next(task for task in tasks.all_tasks() if task.name == "insteval_ordered")
    fake = Fake()
    records = fake.all(names=programs.TOOLS, given=[ordered])["insteval_ordered"]
    assert list(records) == ["lmmbook", "interlace", "clmm"]
    assert ("fit", "insteval_ordered", "clmm") not in fake.asked
    assert records["clmm"]["cold_seconds"] == 1692.0
    assert "chapter 6" in records["clmm"]["quoted"]
    chapter = (ROOT / "chapters" / "06_ordinal.ipynb").read_text(encoding="utf-8")
    assert "1,692 s" in chapter
    for name, value in records["clmm"]["estimates"].items():
        assert f'\\"{name if name != "x" else "service"}\\": {value}' in chapter


# --- the limit, and failures, in real processes -------------------------------------------------


def test_a_process_beyond_its_limit_is_ended_and_keeps_what_it_wrote(tmp_path):
    answer = tmp_path / "answer.json"
    write = f"open({str(answer)!r}, 'w').write('{{\"runs\": [1]}}')"
    started = time.monotonic()
    slow = f"import time; {write}; time.sleep(60)"
    found = rival_process.watch([sys.executable, "-c", slow], answer, 2.0)
    assert found == {"runs": [1], "exceeded": 2.0}
    assert rival_process.watch(
        [sys.executable, "-c", "import time; time.sleep(60)"], answer, 0.2
    ) == {"exceeded": 0.2}
    assert 2.2 < time.monotonic() - started < 30


def test_each_step_has_the_whole_limit(tmp_path):
    answer = tmp_path / "answer.json"
    steps = (
        "import time, pathlib\n"
        "for i in range(4):\n"
        f"    pathlib.Path({str(answer)!r}).write_text('{{\"runs\": [%d]}}' % i)\n"
        "    time.sleep(1.0)\n"
    )
    found = rival_process.watch([sys.executable, "-c", steps], answer, 3.5)
    assert found == {"runs": [3]}


def test_a_process_that_dies_says_how(tmp_path):
    answer = tmp_path / "answer.json"
    program = f"raise OSError('no {ROOT}/bench/thing here')"
    found = rival_process.watch([sys.executable, "-c", program], answer, 30)
    assert found == {"failed": "OSError: no ... here"}
    program = "import os; os.kill(os.getpid(), 9)"
    found = rival_process.watch([sys.executable, "-c", program], answer, 30)
    assert found == {"failed": "ended by signal 9"}


@pytest.fixture
def data(tmp_path) -> str:
    path = str(tmp_path / "data.npz")
    np.savez(path, y=np.arange(4.0), x=np.array([0, 1, 0, 1]), g=np.array([0, 0, 1, 1]))
    return path


def test_a_program_that_raises_is_failed_with_its_message(monkeypatch, data):
    def start(family, factors):
        def fit(table, seed):
            raise ValueError(f"singular\n at {ROOT}/x/y.py, sorry")

        return fit

    monkeypatch.setitem(programs.TOOLS, "glmm", programs.TOOLS["glmm"]._replace(start=start))
    spec = {"tool": "glmm", "family": "logit", "factors": ["g"], "seeds": [1, 2], "data": data}
    record = rival_worker.fit(spec, lambda record: None)
    assert record["failed"] == "ValueError: singular at ..., sorry"
    fake = Fake({(SERIES[0].name, "glmm"): record})
    failed = fake.all()[SERIES[0].name]["glmm"]
    assert failed["failed"] == record["failed"]
    assert "failed: ValueError: singular" in rival_report.report(fake.result)


def test_a_worker_times_imports_apart_and_each_fit(monkeypatch, data):
    def start(family, factors):
        time.sleep(0.3)
        assert (family, factors) == ("logit", ["g"])

        def fit(table, seed):
            assert list(table.columns) == ["y", "x", "g"]
            time.sleep(0.1 / seed)
            return {"estimates": {"x": float(seed)}, "converged": None}

        return fit

    monkeypatch.setitem(programs.TOOLS, "glmm", programs.TOOLS["glmm"]._replace(start=start))
    spec = {"tool": "glmm", "family": "logit", "factors": ["g"], "seeds": [1, 4], "data": data}
    written = []
    record = rival_worker.fit(spec, lambda record: written.append(len(record["runs"])))
    assert written == [0, 1]  # before each fit, for the limit begins anew there
    assert record["import_seconds"] >= 0.3
    assert [run["seconds"] >= 0.1 / run["seed"] for run in record["runs"]] == [True, True]
    assert [run["estimates"]["x"] for run in record["runs"]] == [1.0, 4.0]
    assert record["memory_mb"] > 10


# --- how it is judged ---------------------------------------------------------------------------


def test_errors_are_in_the_references_standard_errors():
    off = {"Intercept": 1.5, "sd(g)": 0.4 * math.exp(0.25), "sd(residual)": 9.0}
    runs = answer(1.0, 2.0)["runs"]
    runs[1]["estimates"] = off
    records = {"glmm": rivals.together([answer(1.0, 2.0) | {"runs": runs}])}
    rivals.judge(records, REFERENCE)
    record = records["glmm"]
    assert record["errors"] == pytest.approx({"Intercept": 0.5, "sd(g)": 0.0})
    assert (record["worst"], record["worst_parameter"]) == (pytest.approx(0.5), "Intercept")
    assert record["worst_of_runs"] == pytest.approx(2.5)
    assert record["noise"] == 0.0


def test_without_a_reference_nothing_is_judged_and_the_report_says_so():
    fake = Fake()
    fake.all()
    name = SERIES[0].name
    fake.result["references"][name] = {"exceeded": 1.0}
    records = {"glmm": rivals.together([answer(1.0)])}
    rivals.judge(records, fake.result["references"][name])
    assert "worst" not in records["glmm"]
    assert "judged by nothing" in rival_report.report(fake.result)


def test_a_missing_estimate_is_a_failure_of_that_program_alone():
    records = {
        "glmm": rivals.together([answer(1.0, estimates={"Intercept": 2.0})]),
        "gpboost": rivals.together([answer(1.0)]),
    }
    rivals.judge(records, REFERENCE)
    assert records["glmm"]["failed"] == "no estimate of 'sd(g)'"
    assert records["gpboost"]["worst"] == pytest.approx(0.5)


def test_converged_is_what_every_run_says():
    for said, expected in (([True, True], True), ([True, False], False), ([True, None], None)):
        found = [answer(1.0, converged=word) for word in said]
        assert rivals.together(found)["converged"] is expected


def test_the_report_shows_times_errors_and_noise():
    fake = Fake({(SERIES[0].name, "glmm"): answer(3.0, 1.0, converged=False)})
    fake.all()
    fake.result["references"][SERIES[0].name]["noise"]["sd(g)"] = 0.012
    text = rival_report.report(fake.result)
    assert "judged by the exact maximum, itself known to 0.012 SE" in text
    [line] = [line for line in text.splitlines() if line.startswith("glmm")]
    assert re.search(r"0.50 s +3.00 s +1.00 s +x 1.00 +100 MB +0.5 SE  Intercept", line)
    assert line.endswith("Intercept; NOT CONVERGED")
    fake.result["records"][SERIES[0].name]["glmm"]["worst_of_runs"] = 0.75
    assert "Intercept, up to 0.75 SE with other seeds;" in rival_report.report(fake.result)


# --- the references -----------------------------------------------------------------------------


def one_factor(family: str, rows: int = 60, levels: int = 6) -> tuple[pd.DataFrame, object]:
    task = tasks._one_factor(family, rows, levels)
    data = reference.table(task)
    return data, quadrature.OneFactor(data["y"], data["x"], data["g"], family)


@pytest.mark.parametrize("family", ["logit", "ordered"])
def test_quadrature_is_the_integral(family):
    """Each level's integral by SciPy's adaptive rule, the density written out by row."""
    data, found = one_factor(family)
    p = np.array([0.3, -0.6, np.log(0.8)] if family == "logit" else [-1, 0.1, 2, -0.6, np.log(0.8)])

    def row(y, eta):
        if family == "logit":
            return special.expit(p[0] + eta) if y == 1 else special.expit(-p[0] - eta)
        ends = [-np.inf, *p[:3], np.inf]
        return special.expit(ends[y] - eta) - special.expit(ends[y - 1] - eta)

    def density(u, rows):
        each = [row(int(y), p[-2] * x + u) for y, x in zip(rows["y"], rows["x"], strict=True)]
        return np.prod(each) * stats.norm.pdf(u, 0, 0.8)

    total = sum(
        np.log(integrate.quad(density, -8, 8, args=(rows,), epsabs=0, epsrel=1e-10)[0])
        for _, rows in data.groupby("g")
    )
    assert found.value(p) == pytest.approx(total, abs=1e-7)


def test_quadrature_of_one_row_a_level_is_known():
    """Then no sd can be told from the rest: at each sd, the same as a wider logistic; at none, the
    share's own log-likelihood."""
    y = np.array([0, 0, 1, 1, 1, 1, 1, 0])
    found = quadrature.OneFactor(y, np.zeros(8), np.arange(8), "logit")
    share = 5 / 8
    p = np.array([special.logit(share), 0.0, np.log(1e-6)])
    entropy = 5 * np.log(share) + 3 * np.log(1 - share)
    assert found.value(p) == pytest.approx(entropy, abs=1e-6)


@pytest.mark.parametrize("family", ["logit", "ordered"])
def test_quadrature_finds_its_maximum(family):
    data, found = one_factor(family, 1_000, 100)
    table = found.fit()
    point = np.array([row["estimate"] for row in table.values()])
    point[-1] = np.log(point[-1])
    error = np.array([row["std_error"] for row in table.values()])
    for step in np.eye(len(point)):
        for sign in (-1, 1):
            lower = found.value(point) - found.value(point + sign * 0.5 * error * step)
            assert lower > 0.1  # a half times a quarter, were there one parameter alone
    truth = {"x": -0.1, "sd(g)": 0.5}
    for name, value in truth.items():
        z = measure.errors(
            {name: table[name]["estimate"]}, {name: table[name] | {"estimate": value}}
        )
        assert abs(z[name]) < 3
    if family == "logit":
        # What glmm 0.6.2 says of this table, by adaptive quadrature with 25 nodes.
        known = {"Intercept": 0.430107, "x": -0.199796, "sd(g)": 0.570676}
        assert {n: row["estimate"] for n, row in table.items()} == pytest.approx(known, abs=2e-6)
        # Two categories, ordered, are a logit with the sign of its threshold turned.
        other = quadrature.OneFactor(data["y"], data["x"], data["g"], "ordered")
        turned = point * np.array([-1, 1, 1])
        assert other.value(turned) == pytest.approx(found.value(point), abs=1e-9)


def test_a_long_run_averages_logarithms_and_knows_its_noise():
    def parameters(intercept, sd):
        return pd.DataFrame(
            {"estimate": [intercept, sd], "std_error": [0.5, 0.1], "mcse": [0.05, 0.0]},
            index=["Intercept", "sd(g)"],
        )

    tables = [parameters(1.0, 0.2), parameters(1.0, 0.8)]
    estimate, error, noise = reference.combine(tables)
    assert estimate == pytest.approx({"Intercept": 1.0, "sd(g)": 0.4})
    assert error == pytest.approx({"Intercept": 0.5, "sd(g)": 0.1})
    between = np.std(np.log([0.2, 0.8]), ddof=1)
    assert noise == pytest.approx(
        {"Intercept": 0.05 / np.sqrt(2) / 0.5, "sd(g)": between / np.sqrt(2) / 0.1}
    )


def test_a_long_run_goes_on_until_it_is_known_well_enough(monkeypatch):
    task, asked = SERIES[0], []

    class One:
        converged, trace = True, [0] * 240

    def fit(formula, data, family, *, seed, chains, progress):
        asked.append((seed, chains))
        one = One()
        one.parameters = pd.DataFrame(
            {"estimate": [1.0], "std_error": [1.0], "mcse": [mcse]}, index=["x"]
        )
        return one

    monkeypatch.setattr(lmm, "fit", fit)
    for mcse, fits in ((0.001, 3), (0.04, 4), (1.0, 8)):
        asked.clear()
        found = reference.long_run(task, pd.DataFrame(index=range(100)), quick=False)
        assert found["fits"] == len(asked) == fits
        assert len(set(asked)) == fits  # each with its own seed
        assert found["noise"]["x"] == pytest.approx(mcse / np.sqrt(fits))


def test_a_long_run_is_held_against_quadrature():
    run = {"table": {"x": {"estimate": 1.1, "std_error": 9.0}}, "noise": {"x": 0.02}}
    found = reference.check(
        run | {"fits": 3, "converged": True}, {"x": {"estimate": 1.0, "std_error": 0.5}}
    )
    assert found["worst"] == pytest.approx(0.2)
    assert found["worst_noise"] == 0.02


# --- the tasks and the programs -----------------------------------------------------------------


def test_the_tasks_are_those_that_were_asked_for():
    every = tasks.all_tasks()
    assert len({task.name for task in every}) == len(every)
    rows = {f: [t.rows for t in every if t.series == f"crossed_{f}"] for f in ("gaussian", "logit")}
    assert rows["gaussian"] == rows["logit"] == sorted(tasks.SIZES)
    assert (min(tasks.SIZES), max(tasks.SIZES)) == (70_000, 2_000_000)
    assert {t.family for t in every if t.series.startswith("insteval")} == set(tasks.FAMILIES)
    judges = {task.judge for task in every if task.family == "gaussian" and task.rows <= 300_000}
    assert judges == {"exact"}
    assert {task.judge for task in tasks.quick_tasks()} == {"exact", "long run", "quadrature"}


@pytest.mark.parametrize("family", tasks.FAMILIES)
def test_a_table_of_insteval_is_its_ratings(family):
    [task] = [t for t in tasks.all_tasks() if t.name == f"insteval_{family}"]
    data, ratings = reference.table(task), lmm.load_insteval()
    assert len(data) == task.rows
    assert {name: data[name].nunique() for name in task.levels} == task.levels
    expected = ratings["ratings"] >= 4 if family == "logit" else ratings["ratings"]
    np.testing.assert_array_equal(data["y"], expected)
    np.testing.assert_array_equal(data["x"], ratings["service"])


def test_a_simulated_table_has_the_levels_and_values_it_should():
    for task in tasks.quick_tasks():
        data = reference.table(task)
        assert len(data) == task.rows
        assert {name: data[name].nunique() for name in task.levels} == task.levels
        if task.family != "gaussian":
            values = {"logit": {0, 1}, "ordered": {1, 2, 3, 4}}[task.family]
            assert set(data["y"]) == values


R = """#!{python}
import sys
rows = 0
print("end", flush=True)
for line in sys.stdin:
    if line.startswith("read"):
        rows += len(open(line.split()[1]).readlines()) - 1
    elif rows == 4:
        print("Intercept,%s\\nsd(g),0.5\\nthreshold(1|2),-1\\nseconds,0.25\\nconverged,1" % rows)
    else:
        sys.exit("Error in lmer: rank deficient")
    print("end", flush=True)
"""


def test_r_is_asked_one_fit_after_another(monkeypatch, tmp_path):
    """With a stand-in that speaks as `rivals.R` does; R itself is not needed here."""
    script = tmp_path / "Rscript"
    script.write_text(R.format(python=sys.executable), encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    started = []
    monkeypatch.setattr(programs.atexit, "register", started.append)
    table = pd.DataFrame({"y": range(4), "x": 0, "g": 1})
    fit = programs.in_r("lmer")("gaussian", ["g"])
    for seed in (1, 2):
        found = fit(table, seed)
        assert found["estimates"] == {"Intercept": 4.0, "sd(g)": 0.5, "threshold(1|2)": -1.0}
        assert (found["seconds"], found["converged"]) == (0.25, True)
        assert found["memory_mb"] is None or found["memory_mb"] > 1
    fit = programs.in_r("lmer")("gaussian", ["g"])
    with pytest.raises(RuntimeError, match="rank deficient"):
        fit(table.head(3), 1)
    for close in started:
        close()  # it does not hang


def test_estimates_come_by_our_names():
    found = programs._fitted({"(Intercept)": 1, "x": 2}, {"g": 0.25}, 4.0, np.True_)
    assert found == {
        "estimates": {"Intercept": 1.0, "x": 2.0, "sd(g)": 0.5, "sd(residual)": 2.0},
        "converged": True,
    }


def test_what_is_pinned_is_what_is_compared():
    lines = (ROOT / "requirements-bench.txt").read_text("utf-8").splitlines()
    assert lines[0].startswith("#")
    pinned = {Requirement(line).name for line in lines[1:]}
    assert pinned == {t.package for t in programs.TOOLS.values() if t.home == "rivals"}
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", line) for line in lines[1:])


def test_the_process_that_starts_the_others_is_small():
    """On Linux a child begins with its parent's peak memory."""
    program = f"import sys; sys.path.insert(0, {str(BENCH)!r}); import rivals; print(*sys.modules)"
    asked = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert not {"numpy", "pandas", "tensorflow", "lmmbook"} & set(asked.stdout.split())


@pytest.mark.skipif(not RESULTS.exists(), reason="no result has been committed")
def test_the_committed_result_is_whole_and_is_what_the_book_draws():
    text = RESULTS.read_text(encoding="utf-8")
    result = json.loads(text)
    assert not result["quick"]
    every = {task.name: task for task in tasks.all_tasks()}
    assert set(result["records"]) <= set(every)
    # Large tables may be missing as yet: they take hours.
    assert {name for name, task in every.items() if task.rows < 100_000} <= set(result["records"])
    for name, records in result["records"].items():
        assert "table" in result["references"][name]
        assert "errors" in records["lmmbook"]
    drawn = ROOT / "lmmbook" / "datasets" / "rivals.json"
    assert json.loads(drawn.read_text(encoding="utf-8")) == result
    private = [str(ROOT), str(Path.home()), socket.gethostname(), sys.prefix]
    assert not [word for word in private if len(word) > 3 and word in text]
