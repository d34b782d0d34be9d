"""What chapters share on the page: a figure style, figures with alt text, sentences, checks.

A chapter reads the same in the book, in Colab and on a terminal, so nothing here depends on the
book's tools: everything is a plain notebook output. What the tests need to read rides along in the
output's metadata, under ``"lmmbook"``.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from lmmbook.walks import Walk, as_json

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Mid-grey ink and mid-tone colours on a transparent ground: legible on a white page and on a dark.
# The colours differ for the colour-blind too, and each has a dash of its own.
INK = "#7b7b7b"
COLOURS = ("#4a8ee0", "#d3752e", "#0f7657", "#955a95")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)))
# Inches. With text of this size, in points, a phone shows a figure of this width legibly.
WIDTH, TEXT = 5.5, 12
STYLE: dict[str, Any] = {
    "figure.figsize": (WIDTH, 3.2),
    "figure.constrained_layout.use": True,
    "font.size": TEXT,
    "savefig.transparent": True,
    "axes.prop_cycle": plt.cycler(color=COLOURS, linestyle=DASHES),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": "medium",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
}
PACKAGES = ("lmmbook", "tensorflow", "tensorflow-probability", "tf-keras", "numpy", "pandas")


def use_style() -> None:
    """Set the book's figure style for the figures that follow. Chapter 01 is the first to use it.

    Examples
    --------
    >>> with plt.rc_context():  # what is set here ends with the block
    ...     use_style()
    ...     plt.rcParams["savefig.transparent"]
    True
    """
    plt.style.use(STYLE)


def show(fig: Figure, alt: str, walks: Sequence[Walk] = ()) -> None:
    """Display a figure with its alternative text, and close it. See chapter 01.

    Parameters
    ----------
    fig
        A Matplotlib figure.
    alt
        What the figure shows, for readers who cannot see it. Compute its numbers: prose that no
        code checks goes stale.
    walks
        Paths that the reader of the book's pages can walk by a slider below the figure.

    Raises
    ------
    ValueError
        If ``alt`` is empty; or as `lmmbook.walks.as_json`.

    Examples
    --------
    >>> fig, ax = plt.subplots()
    >>> show(fig, alt="Two axes, and nothing between them.")
    Figure: Two axes, and nothing between them.
    """
    if not alt.strip():
        raise ValueError("show(fig, alt=...): expected a sentence that says what the figure shows")
    png = io.BytesIO()
    fig.savefig(png, format="png", dpi=180)
    metadata: dict[str, Any] = {"lmmbook": {"walks": as_json(walks)}} if walks else {}
    plt.close(fig)
    width = round(fig.get_figwidth() * 100)  # CSS pixels; the picture itself is sharper
    picture = base64.b64encode(png.getvalue()).decode()
    display(
        _Output({"image/png": picture, "text/plain": f"Figure: {alt}"}),
        raw=True,
        metadata=metadata | {"image/png": {"alt": alt, "width": width}},
    )


def say(text: str) -> None:
    """Display a sentence that code has put numbers into; ``text`` is Markdown. See chapter 01.

    Examples
    --------
    >>> say(f"There are **{6 * 7}** rows.")
    There are **42** rows.
    """
    _display(text, text, {})


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
        name = "as titled" if row["name"] == title else row["name"].replace("|", "\\|")
        lines.append(
            f"| {name} | {row['value']:.5g} | {row['truth']:.5g} "
            f"| {row['value'] - row['truth']:.2g} | {row['tolerance']:.2g} | {_mark(row)} |"
        )
    mark = "✓" if passed else "✗"
    plain = "\n".join(f"{r['name']}: {r['value']:.5g}, truth {r['truth']:.5g}" for r in rows)
    _display(
        f"**Check: {title}** {mark}\n\n" + "\n".join(lines),
        f"Check: {title} {mark}\n{plain}",
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
    if answer is None:
        text = (
            f"**{title}**: no answer yet. In the notebook, replace `None` by your answer, and run "
            "both cells again."
        )
    else:
        verdict = "right" if row["passed"] else "not right yet"
        text = f"**{title}**: {float(answer):.4g} is {verdict} {_mark(row)}"
    _display(text, text, {"exercise": title, "rows": [_json(row)], "passed": row["passed"]})


def versions() -> None:
    """Display what the chapter ran with. Every chapter ends with it, from chapter 01 on.

    Examples
    --------
    >>> versions()  # doctest: +ELLIPSIS
    Made with lmmbook ..., tensorflow ...
    """
    say("Made with " + ", ".join(f"{name} {version(name)}" for name in PACKAGES) + ".")


def draw_graph(
    structure: Sequence[tuple[str, tuple[str, ...]]], sizes: Mapping[str, int]
) -> Figure:  # fmt: skip
    """Draw a joint distribution's structure: one node a variable, an arrow from each parent.

    Parameters
    ----------
    structure
        As `LinearMixedEffectModel.graph` gives it: each variable and those it depends on.
    sizes
        Variable to how many numbers it holds, written into its node.
    """
    roots = [name for name, parents in structure if not parents]
    place = {name: (i - (len(roots) - 1) / 2, 1.0) for i, name in enumerate(roots)}
    place |= {name: (0.0, 0.0) for name, parents in structure if parents}
    fig, ax = plt.subplots(figsize=(WIDTH, 2.8))
    boxes = {}
    for name, parents in structure:
        label = f"{name}\n{sizes[name]:,}"
        box = {"boxstyle": "round,pad=0.6", "fc": "none", "ec": COLOURS[0 if parents else 1]}
        text = ax.text(*place[name], label, ha="center", va="center", bbox=box)
        boxes[name] = text.get_bbox_patch()
    for name, parents in structure:
        for parent in parents:
            ends = {"patchA": boxes[parent], "patchB": boxes[name]}
            arrow = {"arrowstyle": "-|>", "color": INK, "shrinkA": 2, "shrinkB": 2} | ends
            ax.annotate("", place[name], place[parent], arrowprops=arrow)
    ax.set(xlim=(-len(roots) / 2, len(roots) / 2), ylim=(-0.35, 1.35))
    ax.axis("off")
    return fig


def histogram(ax: Axes, values: Any, label: str, **keywords: Any) -> None:
    """A plain histogram with labelled axes and a line at zero."""
    ax.hist(values, bins=keywords.pop("bins", 60), **keywords)
    ax.axvline(0, color=INK, linewidth=1, linestyle="--")
    ax.set(xlabel=label, ylabel="count")


def _row(name: str, value: float, truth: float, tolerance: float) -> dict[str, Any]:
    passed = abs(float(value) - float(truth)) <= float(tolerance)  # False for NaN
    return {
        "name": name, "value": float(value), "truth": float(truth),
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
    output = _Output({"text/markdown": markdown, "text/plain": plain})
    display(output, raw=True, metadata={"lmmbook": metadata})


class _Output(dict[str, str]):
    """What is displayed, by mime type. Outside IPython it is printed, and then as plain text."""

    def __str__(self) -> str:
        return self["text/plain"]
