"""A check, an exercise and a sentence say the same to a reader and to the tests."""

from __future__ import annotations

from importlib.metadata import version

from lmmbook import checks

import numpy as np
import pandas as pd
import pytest

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
