"""What a formula says of its response: which of two labels is the yes, and what is refused."""

from __future__ import annotations

import decimal
from typing import Any

import lmmbook as lmm
from lmmbook.families import Bernoulli, resolve
from lmmbook.formula import build_design

import numpy as np
import pandas as pd
import pytest

YES = np.resize([True, False, False, True, True, False], 12)
K, N = np.resize([0, 1, 2], 12), np.resize([3, 1, 5], 12)


def data(**columns: Any) -> pd.DataFrame:
    given = {"g": np.repeat(np.arange(4), 3), "x": np.arange(12.0) ** 2, "k": K, "n": N}
    return pd.DataFrame(given | columns)


def labels(no: Any, yes: Any) -> list[Any]:
    return [yes if is_yes else no for is_yes in YES]


KINDS = {  # of a column, and the labels in the order no, yes
    "strings": (labels("no", "yes"), ("no", "yes")),
    "odd strings": (labels("a:b|c`'", "z[1] ü\n"), ("a:b|c`'", "z[1] ü\n")),
    "pandas strings": (pd.array(labels("no", "yes"), "string"), ("no", "yes")),
    "objects": (np.array(labels("no", "yes"), object), ("no", "yes")),
    "in its own order": (pd.Categorical(labels("to", "be"), ["to", "be"]), ("to", "be")),
    "with unused labels": (pd.Categorical(labels("c", "b"), list("acdb")), ("c", "b")),
    "categories that are numbers": (pd.Categorical(labels(5, 2), [5, 2]), (5, 2)),
    "False and True": (YES, None),
    "nullable": (pd.array(YES, "boolean"), None),
    "False and True as objects": (YES.astype(object), None),
    "0 and 1": (YES.astype(np.uint8), None),
    "0.0 and 1.0": (YES.astype(np.float32), None),
    "0 and 1 as objects": (YES.astype(int).astype(object), None),
    "Decimal": ([decimal.Decimal(int(is_yes)) for is_yes in YES], None),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["bernoulli", "binomial"])  # which is one trial a row, then
def test_yes_is_the_second_of_two_labels(kind, name):
    values, categories = KINDS[kind]
    given = data(t=values)
    design = build_design("t ~ x + (1|g)", given, resolve(name))
    assert design.family == Bernoulli(categories)
    np.testing.assert_array_equal(design.response, YES)
    np.testing.assert_array_equal(design.on(given, response=True).response, YES)
    some = given[YES].assign(t=given["t"][YES].astype(object))  # no other value, and another kind
    np.testing.assert_array_equal(design.codes(some), 1.0)
    assert build_design("t ~ 0 + x + (1|g)", given, resolve(name)).fixed_names == ("x",)


def test_the_family_says_what_is_modelled():
    assert Bernoulli(("no", "yes")).note == "modelled is the probability of 'yes', and not of 'no'"
    assert not Bernoulli().note


@pytest.mark.parametrize(
    ("formula", "values", "categories"),
    [
        ("t['yes']", labels("no", "yes"), ("no", "yes")),
        ("t['no']", labels("yes", "no"), ("yes", "no")),
        ("t[no]", pd.Categorical(labels("yes", "no"), ["no", "yes"]), ("yes", "no")),
        ("t['False']", ~YES, (True, False)),
        ("t['1']", YES.astype(int), (0, 1)),
        ("t['0']", ~YES * 1, (1, 0)),
        ("C(t)", YES + 1, (1, 2)),
        ("C(t)", labels("no", "yes"), ("no", "yes")),
    ],
)
def test_a_formula_can_choose_the_yes(formula, values, categories):
    given = data(t=values)
    design = build_design(f"{formula} ~ x + (1|g)", given, Bernoulli())
    assert design.family.categories == categories
    np.testing.assert_array_equal(design.response, YES)
    np.testing.assert_array_equal(design.codes(given), YES)


def test_text_of_a_file_is_as_text_elsewhere(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "rows.parquet"
    data(t=labels("yes", "no"), u=pd.Categorical(labels("to", "be"), ["to", "be"])).to_parquet(path)
    for formula, expected in {"t": ~YES, "t['no']": YES, "u": YES, "p(k, n)": np.c_[K, N]}.items():
        family = "binomial" if "k" in formula else "bernoulli"
        design = build_design(f"{formula} ~ x + (1|g)", path, resolve(family))
        np.testing.assert_array_equal(design.response, expected)
        np.testing.assert_array_equal(design.codes(path), expected)


def test_labels_that_the_fit_did_not_have_are_refused_by_name():
    design = build_design("t ~ x + (1|g)", data(t=labels("no", "yes")), Bernoulli())
    for other in (labels("no", "maybe"), labels("no", "yes "), labels(0, 1)):
        with pytest.raises(ValueError, match=r"expected categories \['no', 'yes'\], got \["):
            design.on(data(t=other), response=True)
    plain = build_design("t ~ x + (1|g)", data(t=YES), Bernoulli())
    with pytest.raises(ValueError, match=r"expected 0 and 1 for bernoulli, got \['yes', 'no'\]"):
        plain.codes(data(t=labels("no", "yes")))


THREE = np.resize(list("abc"), 12)


@pytest.mark.parametrize(
    ("formula", "values", "match"),
    [
        ("t", THREE, r"two labels for bernoulli, got 3: \['a', 'b', 'c'\]; family='categorical'"),
        ("t['b']", THREE, r"got 3: \['a', 'c', 'b'\].*True where it is a yes"),
        ("t['maybe']", labels("no", "yes"), r"t\['maybe'\]: expected one of .*\['no', 'yes'\]"),
        ("t", "yes", "two labels for bernoulli, got only 'yes'"),
        ("t", True, "both 0 and 1 for bernoulli, got only 1"),
        ("t", pd.array([pd.NA, *YES[1:]], "boolean"), r"missing values, got \{'t': 1\}"),
        ("t", YES + 1, r"got \[2\]; for successes .*family='binomial', or C\(t\) for two labels"),
        ("t", K / 4, r"got \[0.25, 0.5\]; for successes out of trials write p\(.*'binomial'$"),
        ("t", labels("no", 1), "got several kinds of values"),
        ("I(k / n)", YES, r"got \[0.4\]; for successes out of trials write p\("),
        ("k / n", YES, r"expression with '/'; write p\(successes, trials\)"),
        ("t == 'yes'", YES, r"expression with '=='; write t\['yes'\]"),
        ("k:n", YES, r"expression with ':'; write I\(...\)"),
        ("k | n", YES, r"expression with '\|'"),
        ("1", YES, "expected a column or a function of columns as the response"),
        ("-t", YES, "expected a column or a function of columns as the response"),
        ("cbind(k, n - k)", YES, r"cbind\(k, n - k\) is p\(k, n\) here"),
        ("T(t, 'yes')", labels("no", "yes"), r"for labels write the column, t\['yes'\]"),
        ("p(k, n)", YES, r"p\(k, n\): expected family='binomial'.*got Bernoulli"),
    ],
)
def test_what_is_no_yes_or_no_is_refused_with_what_to_write(formula, values, match):
    with pytest.raises(ValueError, match=match):
        build_design(f"{formula} ~ x + (1|g)", data(t=values), Bernoulli())


@pytest.mark.parametrize("family", ["gaussian", "poisson", "cumulative", "categorical"])
def test_successes_out_of_trials_are_for_a_binomial(family):
    with pytest.raises(ValueError, match=r"p\(k, n\): expected family='binomial'"):
        build_design("p(k, n) ~ x + (1|g)", data(), resolve(family))
    with pytest.raises(ValueError, match=r"p\(k, n\): expected family='binomial'"):
        lmm.exact.fit("p(k, n) ~ x + (1|g)", data())


ODD = "`n of`"


@pytest.mark.parametrize(
    ("formula", "trials"),
    [
        ("p(k, n)", N), ("prop(k, n)", N), ("proportion(k, n)", N),
        (f"p(k, {ODD})", N), ("p(k, 10)", np.full(12, 10)), ("p(k, 10.0)", np.full(12, 10)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["int8", "uint16", "float64", "Int64", "object"])
def test_successes_and_trials_are_read_side_by_side(formula, trials, kind):
    given = data().assign(**{"n of": N}).astype({"k": kind, "n": kind})
    design = build_design(f"{formula} ~ x + (1|g)", given, resolve("binomial"))
    np.testing.assert_array_equal(design.response, np.c_[K, trials])
    np.testing.assert_array_equal(design.codes(given), np.c_[K, trials])
    known = design.on(given.drop(columns="k"), trials=True).response
    np.testing.assert_array_equal(known, np.c_[np.full(12, np.nan), trials])
    arrays = {name: given[name].to_numpy() for name in given}
    np.testing.assert_array_equal(design.on(arrays, response=True).response[:, 0], K)


@pytest.mark.parametrize(
    ("formula", "columns", "match"),
    [
        ("p(k, n)", {"n": N - 1}, "at least one trial in each row, got 1 of 0 in row 1; leave"),
        ("p(k, n)", {"k": K - 1}, "no negative number of successes, got -1 of 3 in row 0"),
        ("p(k, n)", {"k": N + 1}, "no more successes than trials, got 4 of 3 in row 0"),
        ("p(k, n)", {"k": K / N}, r"got 0.4 of 5.0 in row 2; multiply shares by the trials"),
        ("p(k, n)", {"k": K + 0.5}, "whole numbers of successes, got 0.5 of 3.0 in row 0$"),
        ("p(k, n)", {"k": K.astype(str)}, r"successes, got (str|object) \('0', ...\) in 'k'"),
        ("p(k, n)", {"n": np.where(K, N, np.nan)}, r"missing values, got \{'n': 4\}"),
        ("p(k, n)", {"n": np.inf}, "finite"),
        ("p(k, n)", {"k": N}, "expected successes and failures, got only successes"),
        ("p(k, n)", {"k": 0}, "expected successes and failures, got only failures"),
        ("p(k, m)", {}, r"expected columns \['m'\]"),
        ("p(k, 1)", {}, r"p\(k, 1\): expected no more successes than trials, got 2 of 1 in row 2"),
        ("p(k, 2.5)", {}, r"p\(k, 2.5\): expected whole numbers of trials"),
        ("p(k, 0)", {}, "at least one trial"),
        ("p(k + 1, n)", {}, r"write p\(successes, trials\), of two columns"),
        ("p(k, 2 * n)", {}, r"write p\(successes, trials\), of two columns"),
        ("p(k, 'n')", {}, r"write p\(successes, trials\), of two columns"),
        ("p(k)", {}, r"write p\(successes, trials\), of two columns"),
        ("p(k, n, x)", {}, r"write p\(successes, trials\), of two columns"),
        ("k", {}, r"expected 0 and 1 for bernoulli, got \[2\]; for successes .* write p\("),
    ],
)
def test_what_are_no_successes_out_of_trials_is_refused(formula, columns, match):
    with pytest.raises(ValueError, match=match):
        build_design(f"{formula} ~ x + (1|g)", data(**columns), resolve("binomial"))


# An effect a row


@pytest.mark.parametrize(
    ("formula", "family", "match"),
    [
        ("u ~ x + (1|row)", "poisson", None),
        ("u ~ x + (1|g) + (0 + x|g/i)", "poisson", None),
        ("p(k, n) ~ x + (1|row)", "binomial", None),
        ("u ~ x + (1|row)", lmm.families.Gaussian(sd=1.0), None),
        ("u ~ x + (x|row)", "poisson", r"with 2 effect\(s\) each for 12 rows$"),
        ("u ~ x + (x||row)", lmm.families.Gaussian(sd=1.0), r"with 2 effect\(s\) each"),
        ("u ~ x + (1|row)", "gaussian", r"residual is such an effect; .*Gaussian\(sd=...\)"),
        ("b ~ x + (1|row)", "bernoulli", "one yes or no a row does not tell"),
        ("b ~ x + (1|row)", "binomial", "one yes or no a row does not tell"),
        ("p(b, 1) ~ x + (1|row)", "binomial", "only 0 of the rows have more than one trial"),
        ("p(b, one_or_two) ~ x + (1|row)", "binomial", "only 1 of the rows have more than one"),
        ("b ~ x + (1|row)", "cumulative", "one value a row does not tell"),
        ("u ~ x + (1|row)", "categorical", "one value a row does not tell"),
    ],
)
def test_an_effect_a_row_is_fitted_where_it_can_be_told(formula, family, match):
    given = data(row=np.arange(12)[::-1], i=np.resize([0, 1, 2], 12), b=YES, u=K)
    given["one_or_two"] = np.where(np.arange(12) == 3, 2, 1)
    if match is None:
        found = build_design(formula, given, resolve(family)).factors[-1]
        assert found.levels == 12
        return
    with pytest.raises(ValueError, match=rf"'row': expected fewer random effects.*{match}"):
        build_design(formula, given, resolve(family))
