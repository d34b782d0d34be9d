"""The form of the exercises, from the sources of the chapters.

Whether stubs fail and solutions pass is read from the executed chapters, in `test_chapters.py`.
"""

from __future__ import annotations

import ast
import copy
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted(path.stem for path in (ROOT / "chapters").glob("*.ipynb"))
OPENING = """## Exercises

Put your answer in place of `None`, run that cell, and then the one below it, which says whether \
you are right. The first exercise takes five minutes, the others up to half an hour each. The last \
is an open question: no cell can check it.

**1. """
TASK = re.compile(r"^\*\*(\d+)\. (.+?)\*\*", re.M)
FORMS = {"checked": [[], [], ["hide-input"], ["hide-cell"]], "open": [[], ["hide-cell"]]}

Cell = nbformat.NotebookNode


def source_of(name: str) -> Cell:
    return nbformat.read(ROOT / "chapters" / f"{name}.ipynb", as_version=4)


def exercises(notebook: Cell) -> list[list[Cell]]:
    """The exercises of a chapter, each a list of cells that begins with its task."""
    found: list[list[Cell]] = []
    inside = False
    for cell in notebook.cells:
        text = cell.source if cell.cell_type == "markdown" else ""
        inside = (inside or "## Exercises" in text) and not text.startswith("## What to remember")
        if inside and TASK.search(text):
            found.append([cell])
        elif inside:
            found[-1].append(cell)
    return found


def problems(notebook: Cell) -> list[str]:
    """Everything that is wrong with the form of a chapter's exercises."""
    groups = exercises(notebook)
    found = [] if len(groups) >= 3 else [f"expected three exercises, got {len(groups)}"]
    if not any(OPENING in cell.source for cell in notebook.cells):
        found.append(f"the exercises do not open with {OPENING!r}")
    for number, cells in enumerate(groups, start=1):
        last = number == len(groups)
        found += [f"{number}: {problem}" for problem in _problems_of_one(number, cells, last)]
    return found + _problems_of_names(notebook)


def _problems_of_one(number: int, cells: list[Cell], last: bool) -> list[str]:
    titles = TASK.findall(cells[0].source)
    if [int(n) for n, _ in titles] != [number]:
        return [f"the task is titled {titles}"]
    found = []
    if titles[0][1].startswith("An open question: ") != last:
        found.append("the last exercise, and no other, is titled an open question")
    if [cell.metadata.get("tags", []) for cell in cells] != FORMS["open" if last else "checked"]:
        return [*found, "expected task, stub, check and solution, or task and solution, tagged so"]
    if not cells[-1].source.startswith("# Solution"):
        found.append("the solution does not begin with '# Solution'")
    if last:
        return found
    _, stub, check, solution = cells
    if not re.fullmatch(r"answer = None  # [^\n]+", stub.source):
        found.append("the stub is not `answer = None`, with a comment on what is asked for")
    return found + _problems_of_check(number, check.source, solution.source)


def _problems_of_check(number: int, check: str, solution: str) -> list[str]:
    *before, call = ast.parse(check).body
    *steps, wrong, right = ast.parse(solution).body
    title = f"Exercise {number}"
    truth = re.search(r"answer, (_truth\w*), tolerance=(.+)\)$", ast.unparse(call), re.S)
    if truth is None:
        return ["the check does not end with lmm.exercise(title, answer, _truth, tolerance=...)"]
    name, tolerance = truth.groups()
    found = []
    for statement, ending, value in [
        (call, "", "answer"),
        (wrong, " (a mistake)", "mistake"),
        (right, " (solution)", "answer"),
    ]:
        wanted = f"lmm.exercise('{title}{ending}', {value}, {name}, tolerance={tolerance})"
        if ast.unparse(statement) != wanted:
            found.append(f"expected {wanted}, got {ast.unparse(statement)}")
    if not all(assigned.startswith("_") for step in before for assigned in stored(step)):
        found.append("the check sets a name that does not begin with an underscore")
    if any(seen.startswith("_") for step in steps for seen in stored(step) | loaded(step)):
        found.append("the solution uses names of the check")
    if not {"answer", "mistake"} <= {n for step in steps for n in stored(step)}:
        found.append("the solution sets no answer, or no mistake")
    if expressions(before, name) & expressions(steps):
        found.append("the solution repeats the expression that it is compared with")
    return found


def _problems_of_names(notebook: Cell) -> list[str]:
    """What a solution sets, nothing after it may need: students' notebooks have no solutions."""
    found: list[str] = []
    set_by_solutions: set[str] = set()
    for cell in notebook.cells:
        if cell.cell_type != "code" or cell.source.lstrip().startswith("import sys"):
            continue  # (the cell for Colab is not Python alone)
        tree = ast.parse(cell.source)
        if cell.source.startswith("# Solution"):
            set_by_solutions |= stored(tree) - {"answer"}
        elif used := set_by_solutions & loaded(tree):
            found.append(f"{sorted(used)} are set by a solution, and used in: {cell.source}")
    return found


def names(tree: ast.AST, context: type[ast.expr_context]) -> set[str]:
    """Names that are stored or loaded, without those that live in a comprehension alone."""
    loops = [node.target for node in ast.walk(tree) if isinstance(node, ast.comprehension)]
    local = {node.id for loop in loops for node in ast.walk(loop) if isinstance(node, ast.Name)}
    return {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, context) and node.id != "_"
    } - local


def stored(tree: ast.AST) -> set[str]:
    return names(tree, ast.Store)


def loaded(tree: ast.AST) -> set[str]:
    return names(tree, ast.Load)


def expressions(statements: list[ast.stmt], name: str = "") -> set[str]:
    """What is assigned (to `name`, if given), with leading underscores taken off all names."""
    return {
        re.sub(r"\b_+(?=[a-zA-Z])", "", ast.unparse(node.value))
        for statement in statements
        for node in ast.walk(statement)
        if isinstance(node, ast.Assign) and (not name or stored(node) == {name})
    }


@pytest.mark.parametrize("name", CHAPTERS)
def test_exercises_have_their_form(name):
    assert problems(source_of(name)) == []


# What an exercise could get wrong, one at a time. Each must turn `problems` red.


def _two_exercises(notebook, cells):
    gone = [cell for group in exercises(notebook)[1:3] for cell in group]
    notebook.cells = [cell for cell in notebook.cells if cell not in gone]


def _another_opening(notebook, cells):
    cells[0].source = cells[0].source.replace("five minutes", "ten minutes")


def _number_twice(notebook, cells):
    cells[0].source = cells[0].source.replace("**1. ", "**2. ")


def _solution_unfolded(notebook, cells):
    cells[3].metadata.tags = []


def _check_above_stub(notebook, cells):
    where = notebook.cells.index(cells[1])
    notebook.cells[where : where + 2] = [cells[2], cells[1]]


def _answer_in_the_stub(notebook, cells):
    cells[1].source = "answer = 0.5  # a number"


def _title_of_another(notebook, cells):
    cells[3].source = cells[3].source.replace("Exercise 1 (solution)", "Exercise 2 (solution)")


def _no_mistake(notebook, cells):
    cells[3].source = cells[3].source.replace("(a mistake)", "(also right)")


def _another_tolerance(notebook, cells):
    cells[3].source = cells[3].source.replace("tolerance=", "tolerance=2 * ")


def _solution_reads_the_truth(notebook, cells):
    cells[3].source = cells[3].source.replace("# Solution", "# Solution\nanswer = _truth_1", 1)


def _solution_copies_the_check(notebook, cells):
    truth = ast.unparse(ast.parse(cells[2].source).body[-2]).split("=", 1)[1]
    copied = re.sub(r"\b_+(?=[a-zA-Z])", "", truth)
    cells[3].source = cells[3].source.replace("# Solution", f"# Solution\nanswer ={copied}", 1)


def _check_sets_a_name(notebook, cells):
    cells[2].source = "helper = 1\n" + cells[2].source


def _a_later_check_needs_the_solution(notebook, cells):
    notebook.cells[-1].source = "print(mistake)"


def _last_is_not_open(notebook, cells):
    last = exercises(notebook)[-1][0]
    last.source = last.source.replace("An open question: ", "")


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (_two_exercises, "expected three exercises, got 2"),
        (_another_opening, "do not open with"),
        (_number_twice, "the task is titled"),
        (_solution_unfolded, "tagged so"),
        (_check_above_stub, "tagged so"),
        (_answer_in_the_stub, "the stub is not"),
        (_title_of_another, "expected lmm.exercise('Exercise 1 (solution)'"),
        (_no_mistake, "expected lmm.exercise('Exercise 1 (a mistake)'"),
        (_another_tolerance, "expected lmm.exercise('Exercise 1 (solution)'"),
        (_solution_reads_the_truth, "the solution uses names of the check"),
        (_solution_copies_the_check, "the solution repeats the expression"),
        (_check_sets_a_name, "the check sets a name"),
        (_a_later_check_needs_the_solution, "['mistake'] are set by a solution"),
        (_last_is_not_open, "is titled an open question"),
    ],
)
def test_an_exercise_out_of_form_is_red(break_it, words):
    broken = copy.deepcopy(source_of(CHAPTERS[0]))
    break_it(broken, exercises(broken)[0])
    assert any(words in problem for problem in problems(broken))
