"""What cells say: sentences with numbers in them, checks, exercises.

Used from chapter 01 on. All are plain notebook outputs, as `figures` are. What the tests need to
read rides along in an output's metadata, under ``"lmmbook"``.

Titles and names may come from data, and so from strangers: they are shown as they are, and nothing
in them is Markdown. A sentence is; no HTML in it is any.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import pandas as pd
from IPython.display import display

PACKAGES = ("lmmbook", "tensorflow", "tensorflow-probability", "tf-keras", "numpy", "pandas")


# In Markdown, in a cell of its tables, in HTML, and for MathJax and MyST.
SPECIAL = str.maketrans({c: f"&#{ord(c)};" for c in r"&<>\`*_~[]{}$"} | {"|": r"\|"})


def escape(text: object) -> str:
    """What comes from data, such as a level's label, as Markdown that shows just that. Chapter 01.

    It becomes one line: what cannot be printed, as an end of a line, becomes a space.

    Examples
    --------
    >>> escape("<b>x|y</b>")
    '&#60;b&#62;x\\\\|y&#60;/b&#62;'
    """
    return printable(text).translate(SPECIAL)


def say(text: str) -> None:
    """Display a sentence that code has put numbers into. See chapter 01.

    ``text`` is Markdown, but HTML in it is shown and not obeyed. Labels that come from data should
    go through `escape`, so that they are not taken for Markdown either.

    Examples
    --------
    >>> say(f"There are **{6 * 7}** rows.")
    There are **42** rows.
    """
    _display(re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text), text, {})


def check(
    title: str,
    value: float | Mapping[str, float] | pd.Series,
    truth: float | Mapping[str, float] | pd.Series,
    tolerance: float | Mapping[str, float] | pd.Series,
) -> None:
    """Set a result beside the truth, for the reader and for the tests. See chapter 01.

    Parameters
    ----------
    title
        What is checked; the tests find the check by it.
    value, truth, tolerance
        Numbers, or mappings from a name to a number, one row each. The check passes if every
        ``|value - truth| <= tolerance``. A check that fails shows so and raises nothing: the tests
        of the book do.

    Examples
    --------
    >>> check("Half of four", value=2.001, truth=2.0, tolerance=0.01)
    Check: Half of four ✓
    Half of four: 2.001, truth 2
    """
    values, truths, tolerances = (
        dict(v) if isinstance(v, Mapping | pd.Series) else {title: v}
        for v in (value, truth, tolerance)
    )
    if not values or not set(values) == set(truths) == set(tolerances):
        raise ValueError(
            f"check {title!r}: expected the same names in value, truth and tolerance, "
            f"got {list(values)}, {list(truths)}, {list(tolerances)}"
        )
    rows = [_row(name, values[name], truths[name], tolerances[name]) for name in values]
    passed = all(row["passed"] for row in rows)
    lines = [
        "| quantity | value | truth | difference | allowed | holds |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        name = "as titled" if row["name"] == title else escape(row["name"])
        lines.append(
            f"| {name} | {row['value']:.5g} | {row['truth']:.5g} "
            f"| {row['value'] - row['truth']:.2g} | {row['tolerance']:.2g} | {_mark(row)} |"
        )
    mark = "✓" if passed else "✗"
    plain = "\n".join(
        f"{printable(r['name'])}: {r['value']:.5g}, truth {r['truth']:.5g}" for r in rows
    )
    _display(
        f"**Check: {escape(title)}** {mark}\n\n" + "\n".join(lines),
        f"Check: {printable(title)} {mark}\n{plain}",
        {"check": title, "rows": [_json(row) for row in rows], "passed": passed},
    )


def exercise(title: str, answer: float | None, truth: float, tolerance: float) -> None:
    """Tell the reader whether an answer is right, without giving the truth away.

    ``answer`` is a number, or None for "not answered yet". See chapter 01.

    Examples
    --------
    >>> exercise("Exercise 1", answer=5.0, truth=4.0, tolerance=0.1)
    **Exercise 1**: 5 is not right yet ✗
    """
    row = _row(title, math.nan if answer is None else answer, truth, tolerance)
    shown = escape(title)
    if answer is None:
        text = (
            f"**{shown}**: no answer yet. In the notebook, replace `None` by your answer, and run "
            "both cells again."
        )
    else:
        verdict = "right" if row["passed"] else "not right yet"
        text = f"**{shown}**: {float(answer):.4g} is {verdict} {_mark(row)}"
    _display(text, text, {"exercise": title, "rows": [_json(row)], "passed": row["passed"]})


def versions() -> None:
    """Display what the chapter ran with. Every chapter ends with it, from chapter 01 on.

    Examples
    --------
    >>> versions()  # doctest: +ELLIPSIS
    Made with lmmbook ..., tensorflow ...
    """
    say("Made with " + ", ".join(f"{name} {version(name)}" for name in PACKAGES) + ".")


def printable(text: object) -> str:
    """Without ends of lines, and without what moves the cursor, or turns the text around."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def _row(name: object, value: float, truth: float, tolerance: float) -> dict[str, Any]:
    passed = abs(float(value) - float(truth)) <= float(tolerance)  # False for NaN
    return {
        "name": str(name), "value": float(value), "truth": float(truth),
        "tolerance": float(tolerance), "passed": bool(passed),
    }  # fmt: skip


def _mark(row: dict[str, Any]) -> str:
    return "✓" if row["passed"] else "✗"


def _json(row: dict[str, Any]) -> dict[str, Any]:
    """NaN and infinity are no JSON: None stands for them."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }


def _display(markdown: str, plain: str, metadata: dict[str, Any]) -> None:
    output = Output({"text/markdown": markdown, "text/plain": plain})
    display(output, raw=True, metadata={"lmmbook": metadata})


class Output(dict[str, str]):
    """What is displayed, by mime type. Outside IPython it is printed, and then as plain text."""

    def __str__(self) -> str:
        return self["text/plain"]
