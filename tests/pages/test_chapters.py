"""The executed chapters keep their promises.

Reads the notebooks that papermill executed into `_build/executed/`; `make test` makes them. What is
tested here is what the site shows, for it is built from the same files.
"""

from __future__ import annotations

import ast
import copy
import itertools
import re
from pathlib import Path

import lmmbook as lmm

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted(path.stem for path in (ROOT / "chapters").glob("*.ipynb"))

# Chapter, title of a check, and the largest tolerance that it may state. A tolerance in Monte Carlo
# errors is computed in the chapter; the bound here keeps a chapter from talking itself out.
PROMISED = {
    "01_data": {"InstEval": 0.0},
    "02_model": {
        "Covariance of the tiny model": 0.05,
        "Log density by hand and by package": 0.2,
        "Gradients": 40.0,  # 1% of the largest gradient, over 3,000
    },
    "03_e_step": {
        "HMC on the tiny model": 0.06,
        "The package's E-step on the tiny model": 0.06,
        "Error of the means over its Monte Carlo standard error": 0.9,
        "What the instructors' log densities gain by one move": 0.01,
        "The same, level by level": 0.9,
    },
    "04_m_step": {
        "EM on the tiny model": 1e-5,
        "Fisher's identity on the tiny model": 0.3,
        "Slope of the loss where the M-step ends, per rating or effect": 0.001,
        "Log-likelihood below its maximum, by 14 averages and by all ratings": 1e-5,
        "Where exact EM ends, in standard errors from the exact maximum": 0.001,
        "Louis' information on the tiny model": 3.0,  # 5% of what the complete data know
        "Newton step in standard errors, half a standard error away": 0.25,
        "Full fit against the exact maximum": 0.0057,  # 0.2 standard errors of the intercept
        "A variance of zero": 0.03,
    },
    "05_criticism": {
        "Posterior predictive by draws": 0.02,
        "Fit on the training part against its exact maximum": 0.0062,
        "Probabilities by hand and by package": 1e-5,
        "Mean residual on the test part": 0.05,
        "Root mean squared error against what the model expects": 0.05,
        "Likelihood ratio of the two fits, against the exact one": 0.05,
        "Profile of sd(departments)": 0.002,  # of log-likelihood
        "Mean of each factor's effects, in its standard deviations": 0.05,
    },
    "06_ordinal": {
        "Probabilities of an ordered logistic by hand and by package": 1e-9,
        "Two categories are a logit": 1e-9,
        "Log density by hand and by package": 0.5,
        "Gradient in float32 against float64": 1e-5,
        "Thresholds without effects, by Newton's steps": 0.001,
        "Fit against ordinal::clmm": 0.01,
        "Mean of each factor's effects, in its standard deviations": 0.05,
        "One factor: fit against the exact maximum by quadrature": 0.011,
        "Log-likelihood at the estimates, against quadrature": 0.01,
        "Largest difference of a rating's share, ordinal prediction and test part": 0.015,
        "Student's t: the fit against the simulation's truth": 0.25,
    },
    "07_autopsy": {
        "Tiny case, four ratings a department, fault 1 repaired": 0.02,
        "Tiny case, 4,000 ratings a department, faults 1 and 2 repaired": 0.03,
        "1. Parameters that have a gradient": 0.0,
        "2. Level left in the department effects, in standard errors": 0.2,
        "3. Size of the department effects": 0.026,  # one standard error, as exact.fit has it
        "4. Mean residual on the test part": 0.05,
        "5. Exact draws after one E-step, displaced by (in sds)": 0.011,
        "6. The same step twice, furthest apart": 0.0,
        "The tutorial's algorithm, repaired, against the exact maximum": 0.031,  # one likewise
        "lmm.fit with the residual sd fixed, against the exact maximum": 0.0062,
    },
    "08_scale": {
        "Flights: the fit minus the exact maximum, in standard errors": 0.2,
        "Total of the differences, in float32 against float64": 0.001,
        "Statistics of two halves, added, against those of all rows": 0.1,  # of tens of thousands
        "Bytes a row, here and in the recorded file": 0.0,
        "A million ratings: the fit minus the truth, in standard errors": 3.0,
        "Largest difference of a parameter from the unbroken fit": 0.0,
    },
    "09_your_data": {
        "What varies within what": 0.0,
        "Gaussian fit minus the exact maximum, in standard errors": 0.2,
        "Invented answers: the fit minus their truth, in standard errors": 4.0,
        "Predictions of the fit in the file": 0.0,
    },
    "10_speed": {"The exact maximum, here and in the file": 0.001},
}

# Words in the alt texts of the figures that a chapter must show.
FIGURES = {
    "01_data": [
        "shares of the ratings",
        "funnel",
        "no, complete and partial pooling",
        "Estimate for an instructor with a mean of",
    ],
    "02_model": ["covariance matrices", "Graph of the model", "ratings invented by the model"],
    "03_e_step": [
        "Trace plot of four instructor effects",
        "against the exact mean",
        "gradients that an effective draw",
    ],
    "04_m_step": [
        "Traces of three parameters",
        "Map of the exact log-likelihood",
        "Above: the loss over the iterations",
    ],
    "05_criticism": [
        "Averaged chance of a five minus the chance by one pass",
        "residuals on the test part",
        "Histograms of the PIT",
        "predicted and observed shares of the five ratings",
        "Histograms of the posterior mean effects",
        "Caterpillar of 60 of 1,128 levels of instructors",
        "Profile of the log-likelihood over sd(departments)",
    ],
    "06_ordinal": [
        "Where the Gaussian model puts its predictions",
        "hidden logistic density, cut by the thresholds",
        "instructor effects of both fits",
    ],
    "07_autopsy": ["Four panels of the published run", "against the ratings a department"],
    "08_scale": [
        "carriers: minutes late over the hours of departure",
        "Milliseconds per sweep against ratings, 4 chains",
    ],
    "09_your_data": [
        "chance of at least perhaps when asked what they want",
        "Caterpillar of 40 of",
    ],
    "10_speed": [
        "Seconds for a fit by program",
        "Seconds for a first fit against rows",
        "Milliseconds per sweep against rows",
        "Milliseconds per sweep against chains",
    ],
}

# The maximum of the marginal likelihood on all rows, known from outside: lme4 and MixedModels.jl,
# residual sd estimated, ML. Value, and standard error in units of the parameter.
KNOWN_MAXIMUM = {
    "Intercept": (3.28258, 0.0284),
    "service": (-0.09259, 0.0134),
    "sd(students)": (0.32553, 0.0212 * 0.32553),
    "sd(instructors)": (0.51498, 0.0249 * 0.51498),
    "sd(departments)": (0.07852, 0.3124 * 0.07852),
    "sd(residual)": (1.17749, 0.0027 * 1.17749),
}


def executed(name: str) -> nbformat.NotebookNode:
    path = ROOT / "_build" / "executed" / f"{name}.ipynb"
    assert path.exists(), f"{path} is missing: run `make test`, which executes the chapters first"
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def records(notebook: nbformat.NotebookNode, kind: str) -> list[dict]:
    """What `lmm.check` or `lmm.exercise` left in the metadata of the outputs."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    found = [output.get("metadata", {}).get("lmmbook", {}) for output in outputs]
    return [record for record in found if kind in record]


def holds(row: dict) -> bool:
    """Whether a row keeps its tolerance: worked out again, not taken from the notebook."""
    numbers = [row["value"], row["truth"], row["tolerance"]]
    return None not in numbers and abs(row["value"] - row["truth"]) <= row["tolerance"]


def problems(name: str, notebook: nbformat.NotebookNode) -> list[str]:
    """Everything that is wrong with an executed chapter."""
    return [
        *_problems_of_outputs(notebook),
        *_problems_of_checks(name, notebook),
        *_problems_of_exercises(notebook),
        *_problems_of_figures(name, notebook),
    ]


def _problems_of_outputs(notebook: nbformat.NotebookNode) -> list[str]:
    found = []
    for index, cell in enumerate(code_cells(notebook)):
        if cell.execution_count is None and cell.source.strip():
            found.append(f"code cell {index} was not executed")
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"code cell {index}: {output.ename}: {output.evalue}")
            if output.output_type == "stream" and output.name == "stderr":
                found.append(f"code cell {index} wrote to stderr: {output.text}")
            markdown = output.get("data", {}).get("text/markdown", "")
            found += [f"code cell {index}: {ragged}" for ragged in ragged_rows(markdown)]
            found += [f"code cell {index}: nameless in {head}" for head in nameless(markdown)]
    return found


def nameless(markdown: str) -> list[str]:
    """Heads of tables with a column that has no name: a screen reader has nothing to say there."""
    heads = re.findall(r"^(\|.*)\n\|[-:|]+$", markdown, re.MULTILINE)
    return [head for head in heads if re.search(r"\|\s*\|", head)]


def ragged_rows(markdown: str) -> list[str]:
    """Rows of a table with more or fewer cells than its head: a bare | in a name makes them."""
    found, width = [], 0
    for line in markdown.splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        if cells and width and cells != width:
            found.append(f"expected {width - 1} cells, got {line}")
        width = cells if cells and not width else width if cells else 0
    return found


def test_a_column_without_a_name_is_found():
    assert nameless("| | sd |\n|---|---:|\n| g | 1 |") == ["| | sd |"]
    assert not nameless("| factor | sd |\n|---|---:|\n| | 1 |")


def test_a_bare_bar_in_a_name_makes_a_ragged_row():
    table = "| name | value |\n|---|---|\n| sd(x{}g) | 1 |"
    assert ragged_rows(table.format("|"))
    assert not ragged_rows(table.format(r"\|"))


def _problems_of_checks(name: str, notebook: nbformat.NotebookNode) -> list[str]:
    checks = records(notebook, "check")
    titles = [check["check"] for check in checks]
    found = []
    if sorted(titles) != sorted(PROMISED[name]):
        found.append(f"expected the checks {sorted(PROMISED[name])}, found {sorted(titles)}")
    for check in checks:
        most = PROMISED[name].get(check["check"], 0.0)
        for row in check["rows"]:
            if not holds(row):
                found.append(f"check {check['check']!r} fails: {row}")
            if not (row["tolerance"] or 0.0) <= most:
                found.append(f"check {check['check']!r} allows more than {most}: {row}")
    return found


def _problems_of_exercises(notebook: nbformat.NotebookNode) -> list[str]:
    """Stubs and usual mistakes have to fail, solutions to pass; their form: `test_exercises.py`."""
    found = records(notebook, "exercise")
    rows = {record["exercise"]: record["rows"][0] for record in found}
    stubs = [title for title in rows if not title.endswith(")")]
    wanted = [title + end for title in stubs for end in ("", " (a mistake)", " (solution)")]
    if len(stubs) < 2 or sorted(wanted) != sorted(record["exercise"] for record in found):
        return [f"expected two or more stubs, with a mistake and a solution each, got {list(rows)}"]
    return [
        f"{title}: {problem}" for title in stubs for problem in _problems_of_exercise(title, rows)
    ]


def _problems_of_exercise(title: str, rows: dict[str, dict]) -> list[str]:
    stub, mistake, solution = (rows[title + end] for end in ("", " (a mistake)", " (solution)"))
    truth, tolerance = stub["truth"], stub["tolerance"]
    found = []
    if stub["value"] is not None or holds(stub):
        found.append("the empty stub has an answer")
    if mistake["value"] is None or holds(mistake):
        found.append("the mistake passes, or is no number")
    if not holds(solution):
        found.append("the solution fails")
    if any((row["truth"], row["tolerance"]) != (truth, tolerance) for row in (mistake, solution)):
        found.append("stub, mistake and solution have not the same truth and tolerance")
    for wrong in (0.0, -truth, truth / 2, 2 * truth, truth + 1.5 * tolerance):
        if holds({"value": wrong, "truth": truth, "tolerance": tolerance}):
            found.append(f"{wrong} passes, where the truth is {truth}")
    return found


def _problems_of_figures(name: str, notebook: nbformat.NotebookNode) -> list[str]:
    found, alts = [], []
    for index, cell in enumerate(code_cells(notebook)):
        for output in cell.outputs:
            if any(kind.startswith("image/") for kind in output.get("data", {})):
                alts.append(output.metadata.get("image/png", {}).get("alt", ""))
                if not _alt_is_computed(cell.source):
                    found.append(f"code cell {index}: a figure without a computed alt text")
                if output.metadata["image/png"]["width"] > 100 * lmm.figures.WIDTH:
                    found.append(f"code cell {index}: a figure too wide for a phone")
    found += [f"alt text says too little: {alt!r}" for alt in alts if len(alt) < 60]
    found += [f"alt text is no sentence: {alt!r}" for alt in alts if "nan" in alt.split()]
    found += [
        f"no figure with {words!r} in its alt text"
        for words in FIGURES[name]
        if sum(words in alt for alt in alts) != 1
    ]
    return found


def _alt_is_computed(source: str) -> bool:
    """Whether the cell calls ``show(..., alt=...)`` with values put in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "show":
            alts = [keyword.value for keyword in node.keywords if keyword.arg == "alt"]
            return any(
                isinstance(part, ast.FormattedValue | ast.Call)
                for alt in alts
                for part in ast.walk(alt)
            )
    return False


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_keeps_its_promises(name):
    assert problems(name, executed(name)) == []


def test_every_chapter_is_promised():
    assert sorted(PROMISED) == sorted(FIGURES) == CHAPTERS


def test_full_fit_against_the_known_maximum():
    """The truths of chapter 4 are those known from outside, and its fit is near them."""
    checks = records(executed("04_m_step"), "check")
    [full] = [c for c in checks if c["check"] == "Full fit against the exact maximum"]
    rows = {row["name"]: row for row in full["rows"]}
    assert set(rows) == set(KNOWN_MAXIMUM)
    for name, (value, std_error) in KNOWN_MAXIMUM.items():
        assert rows[name]["truth"] == pytest.approx(value, abs=1e-4)
        assert abs(rows[name]["value"] - value) <= 0.2 * std_error + 1e-4
        assert rows[name]["tolerance"] <= 0.21 * std_error


def test_exact_em_climbs_at_every_step_and_arrives():
    """What the slider of chapter 4 shows: a law of EM, and the maximum known from outside."""
    sliders = records(executed("04_m_step"), "sliders")[0]["sliders"]
    assert len(sliders) == len({str(slider["choices"]) for slider in sliders}) == 4
    for slider in sliders:
        facts = dict(slider["facts"])
        below = facts["log-likelihood below its maximum"]
        assert all(later <= sooner for sooner, later in itertools.pairwise(below))
        assert below[0] > 50
        assert below[-1] == 0.0
        for name in ["Intercept", "sd(departments)"]:
            assert facts[name][-1] == pytest.approx(KNOWN_MAXIMUM[name][0], abs=2e-4)
        assert facts["standard errors from the maximum"][-1] < 1e-3
        columns = [slider["left"], slider["top"], *facts.values()]
        assert {len(column) for column in columns} == {len(slider["steps"])}
        assert all(0 < place < 100 for place in slider["left"] + slider["top"])


def test_table_of_the_readme_against_the_known_maximum():
    """The numbers there are copies of a run (tools/readme.py), so they could be stale."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (\S+) \| (-?[\d.]+) \| (-?[\d.]+) \| ([\d.]+) \| ([-+.\d]+) \|$", text, re.M
    )
    assert {row[0] for row in rows} == set(KNOWN_MAXIMUM)
    for name, *numbers in rows:
        mcem, exact, unit, difference = map(float, numbers)
        value, std_error = KNOWN_MAXIMUM[name]
        assert exact == pytest.approx(value, abs=1e-4)
        assert unit == pytest.approx(std_error, rel=0.02, abs=1e-4)
        assert abs(mcem - value) <= 0.2 * std_error + 1e-4
        assert abs(difference) <= 0.2


def test_fit_on_the_training_part_against_the_oracle():
    """The truths of chapter 5 are the exact maximum on the same training part."""
    train, _ = lmm.train_test_split(lmm.load_insteval(), test_fraction=0.2, seed=0)
    formula = "ratings ~ service + (1|students) + (1|instructors) + (1|departments)"
    table = lmm.exact.fit(formula, train).parameters
    [check] = [
        check
        for check in records(executed("05_criticism"), "check")
        if check["check"] == "Fit on the training part against its exact maximum"
    ]
    assert len(check["rows"]) == len(table)
    for row in check["rows"]:
        value, std_error, _ = table.loc[row["name"]]
        unit = std_error * (value if row["name"].startswith("sd(") else 1.0)
        assert row["truth"] == pytest.approx(value, abs=1e-4)
        assert abs(row["value"] - value) <= 0.2 * unit + 1e-6


# What a chapter could get wrong, one at a time. Each must turn `problems` red.


def _break_value(notebook):
    row = records(notebook, "check")[-1]["rows"][-1]
    row["value"] = row["truth"] + 1.01 * row["tolerance"] + 1e-9


def _loosen_tolerance(notebook):
    row = records(notebook, "check")[-1]["rows"][0]
    row["tolerance"] = 1e6


def _drop_check(notebook):
    for cell in code_cells(notebook):
        if any("check" in o.get("metadata", {}).get("lmmbook", {}) for o in cell.outputs):
            cell.outputs = []
            return


def _write_to_stderr(notebook):
    code_cells(notebook)[2].outputs.append(
        nbformat.v4.new_output("stream", name="stderr", text="a warning")
    )


def _skip_cell(notebook):
    code_cells(notebook)[2].execution_count = None


def _exercise(notebook, end):
    titles = {record["exercise"]: record["rows"][0] for record in records(notebook, "exercise")}
    return next(row for title, row in titles.items() if title.endswith(end))


def _pass_the_stub(notebook):
    row = _exercise(notebook, "1")
    row["value"] = row["truth"]


def _fail_the_solution(notebook):
    _exercise(notebook, "(solution)")["value"] = None


def _pass_the_mistake(notebook):
    row = _exercise(notebook, "(a mistake)")
    row["value"] = row["truth"]


def _loosen_an_exercise(notebook):
    for end in ("1", "1 (a mistake)", "1 (solution)"):
        row = _exercise(notebook, end)
        row["tolerance"] = 0.6 * abs(row["truth"])


def _drop_an_exercise(notebook):
    for cell in code_cells(notebook):
        if "(solution)" in cell.source:
            cell.outputs = []
            return


def _first_figure(notebook):
    return next(
        (cell, output)
        for cell in code_cells(notebook)
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    )


def _empty_alt(notebook):
    _first_figure(notebook)[1].metadata["image/png"]["alt"] = ""


def _widen_figure(notebook):
    _first_figure(notebook)[1].metadata["image/png"]["width"] = 700


def _typed_alt(notebook):
    _first_figure(notebook)[0].source = 'lmm.show(fig, alt="typed, and checked by nobody")'


@pytest.mark.parametrize(
    "break_it",
    [
        _break_value, _loosen_tolerance, _drop_check, _write_to_stderr, _skip_cell,
        _pass_the_stub, _fail_the_solution, _pass_the_mistake, _loosen_an_exercise,
        _drop_an_exercise, _empty_alt, _widen_figure, _typed_alt,
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", CHAPTERS)
def test_a_broken_chapter_is_red(name, break_it):
    broken = copy.deepcopy(executed(name))
    break_it(broken)
    assert problems(name, broken)


@pytest.mark.parametrize("name", CHAPTERS)
def test_source_is_a_chapter(name):
    """The parts that every chapter has, and no outputs in version control."""
    notebook = nbformat.read(ROOT / "chapters" / f"{name}.ipynb", as_version=4)
    cells = code_cells(notebook)
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    assert '"google.colab" in sys.modules' in cells[0].source
    assert cells[0].metadata.tags == ["remove-cell"]
    imports = cells[1].source + "\nimport tensorflow"
    assert imports.index("import lmmbook") < imports.index("import tensorflow")  # it is quiet
    assert cells[-1].source == "lmm.versions()"
    headings = [
        line for cell in notebook.cells if cell.cell_type == "markdown"
        for line in cell.source.splitlines() if line.startswith("#")
    ]  # fmt: skip
    for part in ["## Predict first", "## When this breaks", "## Exercises", "## What to remember"]:
        assert any(heading.startswith(part) for heading in headings), part
    assert headings[-1] == "### References"


LINES = 25  # what a reader takes in at once; what is longer is split, or folded
IMPORTS = 6  # statements that import from the package
FOLDED = {"hide-input", "hide-cell", "remove-input", "remove-cell"}


def too_long(notebook: nbformat.NotebookNode) -> list[str]:
    """What is wrong with the size of a chapter's cells, and with what it imports."""
    found, imports = [], []
    for cell in code_cells(notebook):
        tags = set(cell.metadata.get("tags", []))
        lines = cell.source.splitlines()
        if len(lines) > LINES and not tags & FOLDED:
            found.append(f"{len(lines)} lines in the visible cell that begins with {lines[0]!r}")
        if "remove-cell" not in tags:  # (the cell for Colab is not Python alone)
            imports += imported(cell.source)
    if len(imports) > IMPORTS:
        found.append(f"{len(imports)} statements import from the package: {imports}")
    return found


def imported(source: str) -> list[str]:
    """The statements that import from the package."""
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Import | ast.ImportFrom)]
    return [s for s in map(ast.unparse, nodes) if re.match(r"(import|from) lmmbook\b", s)]


@pytest.mark.parametrize("name", CHAPTERS)
def test_what_is_seen_is_short(name):
    notebook = nbformat.read(ROOT / "chapters" / f"{name}.ipynb", as_version=4)
    assert too_long(notebook) == []


def test_a_long_cell_and_many_imports_are_found():
    notebook = nbformat.v4.new_notebook()
    cell = nbformat.v4.new_code_cell("\n".join(["x = 1"] * (LINES + 1)))
    folded = nbformat.v4.new_code_cell(cell.source, metadata={"tags": ["hide-input"]})
    notebook.cells = [cell, folded]
    assert too_long(notebook) == ["26 lines in the visible cell that begins with 'x = 1'"]
    cell.source = "\n".join(["from lmmbook.core import e_step, m_step"] * IMPORTS)
    assert too_long(notebook) == []
    folded.source = "def late():\n    import lmmbook as lmm"
    assert "7 statements import from the package" in too_long(notebook)[0]


@pytest.mark.parametrize("name", CHAPTERS)
def test_no_measured_number_is_typed_into_prose(name):
    """Two or more decimals in a sentence are a measurement, and measurements are printed by code.

    Given numbers ("let the spread be 0.8") have one. Formulas and code do not count.
    """
    notebook = nbformat.read(ROOT / "chapters" / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            prose = re.sub(r"```.*?```|\$\$.*?\$\$|\$[^$]*\$|`[^`]*`", "", cell.source, flags=re.S)
            prose = re.sub(r"arXiv:\S+", "", prose)
            assert re.findall(r"\d+\.\d\d+", prose) == []
