"""A check, an exercise and a sentence say the same to a reader and to the tests."""

from __future__ import annotations

from importlib.metadata import version

from lmmbook.book import checks

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from myst_parser.config.main import MdParserConfig
from myst_parser.parsers.mdit import create_md_parser

# Checks


def test_a_bar_in_a_name_does_not_end_its_cell(shown):
    checks.check("names", {"sd(x|g)": 1.0}, {"sd(x|g)": 1.0}, {"sd(x|g)": 0.1})
    row = shown[0].data["text/markdown"].splitlines()[-1]
    assert row.startswith(r"| sd(x\|g) | 1 | 1 |")
    assert shown[0].metadata["lmmbook"]["rows"][0]["name"] == "sd(x|g)"


def test_a_check_that_passes(shown):
    checks.check("the mean", 3.281, 3.28, 0.01)
    ((_, metadata),) = shown
    assert metadata == {
        "lmmbook": {
            "check": "the mean",
            "passed": True,
            "rows": [
                {
                    "name": "the mean",
                    "value": 3.281,
                    "truth": 3.28,
                    "tolerance": 0.01,
                    "passed": True,
                }
            ],
        }
    }
    assert "✓" in shown[0].markdown
    assert "✗" not in shown[0].markdown
    for number in ("3.281", "3.28", "0.01", "0.001"):  # value, truth, allowed, difference
        assert number in shown[0].markdown
    assert "the mean" in shown[0].data["text/plain"]


@pytest.mark.parametrize(
    ("value", "truth", "tolerance"),
    [
        (3.3, 3.28, 0.01),
        (3.26, 3.28, 0.01),
        (np.nan, 3.28, 0.01),
        (3.28, np.nan, 0.01),
        (3.28, 3.28, np.nan),
        (np.inf, 3.28, 0.01),
    ],
)
def test_a_check_that_fails_says_so_and_does_not_raise(shown, value, truth, tolerance):
    checks.check("the mean", value, truth, tolerance)
    ((_, metadata),) = shown
    assert metadata["lmmbook"]["passed"] is False
    assert metadata["lmmbook"]["rows"][0]["passed"] is False
    assert "✗" in shown[0].markdown
    assert "✓" not in shown[0].markdown


def test_a_check_of_exactly_the_tolerance_passes(shown):
    checks.check("half", 1.0, 0.5, 0.5)
    assert shown[0].metadata["lmmbook"]["passed"] is True


def test_one_wrong_row_fails_the_check(shown):
    value = pd.Series({"Intercept": 3.28, "service": -0.2})
    truth = {"service": -0.09, "Intercept": 3.28}  # matched by name, in whatever order
    checks.check("parameters", value, truth, {"Intercept": 0.01, "service": 0.01})
    report = shown[0].metadata["lmmbook"]
    assert report["passed"] is False
    assert {row["name"]: row["passed"] for row in report["rows"]} == {
        "Intercept": True,
        "service": False,
    }
    assert [type(row["value"]) for row in report["rows"]] == [float, float]  # JSON can hold it
    lines = shown[0].markdown.splitlines()
    assert ["✗" in line for line in lines if line.startswith("| Intercept")] == [False]
    assert ["✗" in line for line in lines if line.startswith("| service")] == [True]


def test_a_value_without_a_truth_is_an_error(shown):
    with pytest.raises(ValueError, match="same names"):
        checks.check("parameters", {"service": 1.0}, {"Intercept": 1.0}, {"service": 1.0})
    assert shown == []


# What comes from data is no Markdown and no HTML. As notebooks read it, and as the book does.

HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<!-- gone", "&lt;b&gt;", "a & b",
    "</td></tr></table><b>out", "a|b|c", r"a\|b", r"\<b>", "`code`", "``<b>``", "`<b>` and `",
    "**bold**", "*a*", "_a_", "__init__", "~~gone~~", "$x$", "$$x^2$$", r"\(x\)", r"\[x\]",
    "[a](javascript:alert(1))", "![a](http://example.org/x.png)", "[a][b]", "<http://example.org>",
    "{ref}`x`", "{{ x }}", "x[^1]", "poly(x, 2)[0]", "f[b]", "# a", "- a", "1. a", "> a", "---",
    "\\", "a\\", "é ü 漢字", "c:\\users\\n",
]  # fmt: skip
EXTENSIONS = {"dollarmath", "amsmath", "html_image", "substitution", "deflist", "strikethrough"}


def read(markdown: str) -> list[BeautifulSoup]:
    """As a notebook shows it, HTML and all; and as the book's pages do, with MyST's extensions."""
    in_a_notebook = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    on_a_page = create_md_parser(MdParserConfig(enable_extensions=EXTENSIONS), RendererHTML)
    return [BeautifulSoup(m.render(markdown), "html.parser") for m in (in_a_notebook, on_a_page)]


PLAIN = {"p", "strong", "table", "thead", "tbody", "tr", "th", "td"}


@pytest.mark.parametrize("name", HOSTILE)
def test_names_and_titles_are_shown_as_they_are(shown, name):
    checks.check(f"of {name}", {name: 1.0, "x": 2.0}, {name: 1.0, "x": 2.0}, {name: 0.1, "x": 0.1})
    checks.exercise(name, 1.0, truth=1.0, tolerance=0.1)
    for page in read(shown[0].markdown):
        assert {tag.name for tag in page.find_all(True)} <= PLAIN
        assert page.find("strong").get_text() == f"Check: of {name}"
        row = page.find_all("tr")[1].find_all("td")
        assert [cell.get_text() for cell in row] == [name, "1", "1", "0", "0.1", "✓"]
    for page in read(shown[1].markdown):
        assert {tag.name for tag in page.find_all(True)} <= PLAIN
        assert page.get_text().strip() == f"{name}: 1 is right ✓"
    assert shown[0].metadata["lmmbook"]["rows"][0]["name"] == name  # as it is


@pytest.mark.parametrize(
    "ends", ["a\nb", "a\r\n\r\nb", "a\u2028b", "a\x1b[31mb", "a\u202eb", "a\x00b"]
)
def test_a_name_has_no_lines_and_moves_no_cursor(shown, ends):
    checks.check("names", {ends: 1.0}, {ends: 1.0}, {ends: 0.1})
    checks.exercise(ends, None, truth=1.0, tolerance=0.1)
    assert len(shown[0].markdown.splitlines()) == 5
    assert len(shown[0].data["text/plain"].splitlines()) == 2
    for text in [*shown[0].data.values(), *shown[1].data.values()]:
        assert text.replace("\n", "").isprintable()


def test_names_may_be_numbers(shown):
    value = pd.Series([1.0, 2.0], index=[3, (4, "a")])
    checks.check("by label", value, value, value)
    assert [row["name"] for row in shown[0].metadata["lmmbook"]["rows"]] == ["3", "(4, 'a')"]


@pytest.mark.parametrize("name", [h for h in HOSTILE if "<" in h])
def test_a_sentence_is_markdown_but_no_html(shown, name):
    checks.say(f"It is **{name}**, and 1 < 2.")
    notebook = BeautifulSoup(
        MarkdownIt("commonmark", {"html": True}).render(shown[0].markdown), "html.parser"
    )
    assert {tag.name for tag in notebook.find_all(True)} <= {"p", "strong", "code"}
    assert "1 < 2" in notebook.get_text()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_label_in_a_sentence_is_shown_as_it_is(shown, name):
    checks.say(f"It is ({checks.escape(name)}), *so*.")
    for page in read(shown[0].markdown):
        assert page.get_text().strip() == f"It is ({name}), so."
        assert {tag.name for tag in page.find_all(True)} <= {"p", "em"}


def test_a_table_of_effects_shows_labels_as_they_are():
    """By pandas: what we rely on."""
    effects = pd.DataFrame(
        {"mean": 0.0}, index=pd.Index([h for h in HOSTILE if "<" in h], name="<b>")
    )
    page = BeautifulSoup(effects._repr_html_(), "html.parser")
    assert page.find_all(["script", "img", "b", "a"]) == []
    assert [cell.get_text() for cell in page.select("tbody th")] == list(effects.index)


# Exercises

TRUTH = 0.777


@pytest.mark.parametrize(
    ("answer", "passed", "words"),
    [
        (None, False, "no answer yet"),
        (0.78, True, "is right ✓"),
        (0.5, False, "is not right yet ✗"),
        (np.nan, False, "is not right yet ✗"),
    ],
)
def test_an_exercise_says_whether_an_answer_is_right(shown, answer, passed, words):
    checks.exercise("share", answer, truth=TRUTH, tolerance=0.01)
    ((data, metadata),) = shown
    for text in data.values():
        assert words in text
        assert "share" in text
        assert str(TRUTH) not in text  # the reader is to find it
    report = metadata["lmmbook"]
    assert report["exercise"] == "share"
    assert report["passed"] is report["rows"][0]["passed"] is passed


# Sentences


def test_a_sentence_is_markdown(shown):
    checks.say("The sd is **0.33**.")
    ((data, metadata),) = shown
    assert data == {"text/markdown": "The sd is **0.33**.", "text/plain": "The sd is **0.33**."}
    assert metadata == {"lmmbook": {}}


def test_versions_are_those_installed(shown):
    checks.versions()
    for name in ("tensorflow", "tensorflow-probability", "numpy", "pandas", "lmmbook"):
        assert f"{name} {version(name)}" in shown[0].markdown
