"""A formula from a stranger can do nothing but make columns: it is refused before it does more."""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Iterator

import lmmbook as lmm
from lmmbook.engine import fit
from lmmbook.formula import build_design
from lmmbook.formula.parse import functions, gate, syntax
from lmmbook.formula.parse.functions import LISTED

import formulae
import numpy as np
import pandas as pd
import pytest
from formulae import parser, scanner
from formulae.categorical import ENCODINGS, CategoricalBox, ContrastMatrix
from formulae.contrasts import pick_contrasts
from formulae.terms import call_resolver, terms
from formulae.transforms import TRANSFORMS, Offset

ROWS = 60
PLACES = [
    "y ~ {} + (1|g)", "y ~ z + ({}|g)", "{} ~ z + (1|g)", "y ~ z + offset({}) + (1|g)",
    "y ~ z + {{x * {}}} + (1|g)", "y ~ z + (1|{})", "y ~ np.abs({}) + (1|g)",
    "y ~ z:C({}) + (1|g)", "y ~ z - {} + (1|g)", "y ~ bs(x, df={}) + (1|g)", "y ~ z + (0 + x|g/{})",
]  # fmt: skip
COMMANDS = [
    "pd.io.common.os.system('touch owned')", "np.f2py.os.system('touch owned')",
    "pd.read_pickle('owned')", "np.savetxt('owned', x)", "np.fromfile('/etc/hostname')",
    "pd.core.generic.sys.exit(3)", "np.save('owned', x)", "np.load('owned')",
    "np.lib.format.open_memmap('owned', 'w+')", "np.memmap('owned', mode='w+')", "pd.eval('x')",
    "x.to_csv('owned')", "y.values.tofile('owned')", "np.genfromtxt('/etc/hostname')",
    "pd.read_csv('/etc/hostname')", "np.seterr(all='raise')", "np.random.seed(1)", "open('owned')",
    "eval('1')", "exec('1')", "getattr(x, 'a')", "globals()", "breakpoint()", "np.copyto(x, z)",
    "np.put(x, 0, 1)", "np.place(x, x > 0, 0)", "np.nan_to_num(x, False)", "np.log(x, z)",
    "np.log(x, out=z)", "np.add(x, z, z)", "np.exp(x, where=z)", "np.round(x, 2, z)",
    "np.clip(x, 0, 1, z)", "np.add.at(x, 0, 1)", "np.frompyfunc(x, 1, 1)", "np.log.reduce(x)",
    "C(f, np.save('owned', x))", "C(f, Treatment(np.save('owned', x)))", "C(f, print)",
    "poly(x, np.save('owned', x))", "np.where(x > np.save('owned', x), 1, 0)", "lmm.load('owned')",
    "os.system('touch owned')", "f.__class__(x)", "np.core.os.system('touch owned')",
]  # fmt: skip
RIDDLES = [
    "(lambda: 1)()", "np.log(x)(z)", "f(x)(z)", "x['a']", "df['a']", "x[0]", "`np.log`(x)",
    "np.log(x = z)", "np.log(x | z)", "np.log(x:z)", "I(x = 3)", "I(x, z)", "I()", "x z",
    "x + 'a", "x + `z", "x;z", "x % z", "x = 3", "2*x", "x:2", "x**2", "x**z", "x**-1", "0*x",
    "True", "None", "'abc'", "3", "I(3)", "I('a')", "I(None)", "Treatment('a')", "center(x, 3)",
    "binary(f)", "np.isin(x, z)", "pd.cut(x, z)", "{'a' + x}", "(x|z|g)", "x ~ z", "-x",
]  # fmt: skip
BOMBS = [
    "np.ones(10000000000)", "np.tile(x, 1000000000)", "np.repeat(x, 1000000000)",
    "{x + 9**9**9**9}", "{x * " + "9" * 4000 + "}", "{x * " + "9" * 6000 + "}",
    "{'a' * 10000000000}", "{f * 10000000000}", "bs(x, df=9999999)", "bs(x, 4, degree=99999)",
    "poly(x, 100000)", "poly(x, degree=100000)", "tp(x, df=5, max_knots=1000000)",
    "pd.cut(x, 100000000)", "cr(x, df=100000000)", "(" * 3000 + "x" + ")" * 3000,
    "-" * 5000 + "1", "np.log(" * 400 + "x" + ")" * 400, "{" + "x+" * 3000 + "x}",
    ":".join(f"x{i}" for i in range(3000)), "*".join(f"x{i}" for i in range(30)),
    "(" + "+".join(f"x{i}" for i in range(60)) + ")**8",
]  # fmt: skip


@pytest.fixture
def data() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    columns = {name: rng.normal(5.0, size=ROWS) for name in "yxz"}
    return pd.DataFrame(columns | {"g": np.resize(list("abcdef"), ROWS), "f": list("uvw") * 20})


WATCHED: list[str] | None = None


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    watched = event.split(".")[0] in (
        "open",
        "os",
        "subprocess",
        "import",
        "exec",
        "shutil",
        "socket",
    )
    if WATCHED is None or not watched or "PYTEST" in str(arguments):
        return
    if event == "exec" and not arguments[0].co_names:  # formulae has Python read True and None
        return
    WATCHED.append(f"{event} {arguments[:1]}")


sys.addaudithook(_watch)  # Python has no way to take it off again


@pytest.fixture
def nothing_happens(data, tmp_path, monkeypatch) -> Iterator[None]:
    """No file is opened, nothing is imported, no command runs, and the data stay as they are."""
    global WATCHED
    build_design("y ~ x + (1|g)", data)  # what is imported the first time
    before = data.copy(deep=True)
    monkeypatch.chdir(tmp_path)
    WATCHED = happened = []
    try:
        yield
    finally:
        WATCHED = None
    assert happened == []
    assert not list(tmp_path.iterdir())
    pd.testing.assert_frame_equal(data, before)


def refused(call) -> str:
    started = time.perf_counter()
    with pytest.raises(ValueError, match=r"formula|data: expected columns") as error:
        call()
    assert time.perf_counter() - started < 5
    assert len(str(error.value)) < 1000
    return str(error.value)


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize("place", PLACES)
def test_a_command_in_a_formula_never_runs(data, place):
    for command in COMMANDS:
        refused(lambda command=command: build_design(place.format(command), data))


@pytest.mark.usefixtures("nothing_happens")
def test_it_is_refused_wherever_a_formula_can_be_given(data, monkeypatch):
    monkeypatch.setattr(fit, "Engine", None)
    for command in COMMANDS:
        formula = f"y ~ {command} + (1|g)"
        refused(lambda formula=formula: lmm.fit(formula, data, seed=0))
        refused(lambda formula=formula: lmm.exact.fit(formula, data))
        refused(lambda formula=formula: lmm.exact.log_likelihood(formula, data, {}))
        refused(lambda formula=formula: lmm.exact.effects(formula, data, {}))


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize("place", PLACES[:3])
@pytest.mark.parametrize("what", ["riddles", "bombs"])
def test_what_makes_no_sense_or_no_end_is_one_clear_error(data, place, what):
    for term in RIDDLES if what == "riddles" else BOMBS:
        if not (place.startswith("{}") and term == "x['a']"):  # one category of a response
            refused(lambda term=term: build_design(place.format(term), data))


def test_a_sum_may_be_long(data):
    many = {f"x{i}": np.random.default_rng(i).normal(size=ROWS) for i in range(1500)}
    formula = f"y ~ {' + '.join([*many, *list(many)[::-1]])} + (1|g)"
    _, found, _ = syntax.parse(formula)
    assert [term.name for term in found] == ["Intercept", *many]


def test_what_sees_the_whole_column_says_what_to_do(data):
    for name in ("np.mean", "np.nanmax", "np.cumsum", "pd.qcut", "np.std"):
        message = refused(lambda name=name: build_design(f"y ~ {{x - {name}(x)}} + (1|g)", data))
        assert "new rows would get other values; use center(x) or scale(x)" in message
    assert "use np.log10, or" in refused(lambda: build_design("y ~ np.log_10(x) + (1|g)", data))


EXPRESSIONS = {
    "np.log(x)": lambda d: np.log(d["x"]),
    "np.log1p(np.exp(x))": lambda d: np.log1p(np.exp(d["x"])),
    "np.power(x, 2)": lambda d: d["x"] ** 2,
    "np.clip(x, 4, 6)": lambda d: d["x"].clip(4, 6),
    "np.round(x, -1)": lambda d: d["x"].round(-1),
    "np.round(x, decimals=2)": lambda d: d["x"].round(2),
    "np.where(f == 'u', x, 0)": lambda d: d["x"].where(d["f"] == "u", 0),
    "np.isin(f, 'u')": lambda d: d["f"] == "u",
    "np.maximum(x, z)": lambda d: d[["x", "z"]].max(axis=1),
    "binary(f, 'u')": lambda d: d["f"] == "u",
    "B(f, success='u')": lambda d: d["f"] == "u",
    "{(x > 5) + (z > 5)}": lambda d: (d["x"] > 5).astype(int) + (d["z"] > 5),
    "{-x / 2}": lambda d: -d["x"] / 2,
    "I((x + z) * 2)": lambda d: (d["x"] + d["z"]) * 2,
    "pd.to_numeric(t)": lambda d: d["t"].astype(float),
    "C(f, Treatment('u'))": lambda d: pd.get_dummies(d["f"])[["v", "w"]],
    "C(f, contrast=Treatment(reference='u'))": lambda d: pd.get_dummies(d["f"])[["v", "w"]],
    "T(f, 'u')": lambda d: pd.get_dummies(d["f"])[["v", "w"]],
    "C(f, Sum)": lambda d: (
        pd.get_dummies(d["f"]).astype(int)[["u", "v"]].sub(d["f"] == "w", axis=0)
    ),
    "pd.cut(x, 3)": lambda d: pd.get_dummies(pd.cut(d["x"], 3)).iloc[:, 1:],
    "center(np.log(x))": lambda d: np.log(d["x"]) - np.log(d["x"]).mean(),
}


@pytest.mark.parametrize("term", EXPRESSIONS)
def test_what_is_on_the_list_is_what_it_says_for_new_rows_too(data, term):
    """Some of the rows, in another order, get what they had among all."""
    data["t"] = data["x"].astype(str)
    design = build_design(f"y ~ {term} + (1|g)", data)
    wanted = np.asarray(EXPRESSIONS[term](data), float).reshape(ROWS, -1)
    np.testing.assert_allclose(design.fixed[:, 1:], wanted, rtol=1e-12, atol=1e-12)
    some = np.random.default_rng(1).permutation(ROWS)[:7]
    again = design.on(data.iloc[some]).fixed
    np.testing.assert_allclose(again, design.fixed[some], rtol=1e-12, atol=1e-12)


def test_bins_are_those_of_the_training_rows(data):
    design = build_design("y ~ pd.cut(x, 3) + (1|g)", data)
    with pytest.raises(ValueError, match=r"pd\.cut\(x, 3\) cannot be .* expected values from"):
        design.on(data.assign(x=100.0))


def test_an_error_of_formulae_is_raised_and_not_printed(data, capsys):
    with pytest.raises(ValueError, match=r"C\(f, Treatment\('no'\)\) cannot be computed"):
        build_design("y ~ C(f, Treatment('no')) + (1|g)", data)
    assert capsys.readouterr().out == ""


# Functions of the user's own


def test_functions_of_the_users_own_are_given_by_name(data):
    own = {"decade": lambda x, n: x // n * n, "pick": lambda f, value=None: f == value}
    data["k"] = np.arange(ROWS, dtype=np.int8)
    formula = "y ~ decade(k, 10) + pick(f, value='u'):x + (np.sqrt(decade(k, n=10))|g)"
    design = build_design(formula, data, functions=own)
    np.testing.assert_array_equal(design.fixed[:, 1], data["k"] // 10 * 10)
    np.testing.assert_array_equal(design.fixed[:, 2], data["x"] * (data["f"] == "u"))
    roots = np.sqrt(data["k"].astype(float) // 10 * 10)
    np.testing.assert_array_equal(design.factors[0].z[:, 1], roots)
    for name in ("fixed", "rows"):
        new = getattr(design.on(data[::-1]), name)
        np.testing.assert_array_equal(new, getattr(design, name)[::-1] if name == "fixed" else ROWS)
    exact = lmm.exact.fit("y ~ double(x) + (1|g)", data, functions={"double": lambda x: 2 * x})
    alone = lmm.exact.fit("y ~ x + (1|g)", data)
    np.testing.assert_allclose(exact.log_likelihood, alone.log_likelihood, rtol=1e-9)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"center": np.log}, ValueError, "'center', which is known here already"),
        ({"np": np.log}, ValueError, "'np', which is known here already"),
        ({"sd": np.log}, ValueError, "'sd', which is known here already"),
        ({"a.b": np.log}, ValueError, "plain names, .* got 'a.b'"),
        ({"os.system": np.log}, ValueError, "plain names, .* got 'os.system'"),
        ({"_f": np.log}, ValueError, "plain names, .* got '_f'"),
        ({"": np.log}, ValueError, "plain names, .* got ''"),
        ({3: np.log}, ValueError, "plain names, .* got 3"),
        ({"x": np.log}, ValueError, "'x', which is a column"),
        ({"k": 3}, TypeError, "expected a function for 'k', got 3"),
        ([np.log], TypeError, "expected a mapping from names to functions, got list"),
    ],
)
def test_names_of_functions_are_plain_and_free(data, given, error, message):
    with pytest.raises(error, match=message):
        build_design("y ~ x + (1|g)", data, functions=given)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda x: 1 / 0, r"f\(x\) cannot be computed from these data: division by zero"),
        (lambda x: 3.0, r"expected .*f\(x\)|f\(x\) cannot be computed"),
        (lambda x: x[:5], r"expected a value a row of f\(x\), 60, got \(5,\)"),
        (lambda x: [1] * ROWS, r"f\(x\) cannot be computed"),
        (lambda x: pd.Timestamp("2026-01-01") + pd.to_timedelta(x), r"f\(x\) cannot be computed"),
    ],
)
def test_what_a_function_gives_has_to_be_a_column(data, result, message):
    with pytest.raises(ValueError, match=message):
        build_design("y ~ f(x) + (1|g)", data.drop(columns="f"), functions={"f": result})


# What we rely on in formulae. Where one of these fails, read what changed there before this list.

MODULE = "formulae has changed: read what it does now before lmmbook.functions allows it"


def test_the_transforms_of_formulae_are_those_that_were_read():
    known = {name.split(".")[-1] for name in LISTED} | {"scale", "standardize"}
    assert set(TRANSFORMS) == {
        "B", "C", "I", "S", "T", "binary", "bs", "cc", "center", "cr", "offset", "p", "poly",
        "prop", "proportion", "scale", "standardize", "tp",
    }, MODULE  # fmt: skip
    assert set(TRANSFORMS) <= known, MODULE
    assert set(ENCODINGS) == set(functions.CONTRASTS) == {"Treatment", "Sum"}, MODULE
    arguments = {
        "C": "data contrast levels", "S": "data omit levels", "T": "data ref levels", "I": "x",
        "p": "successes trials", "offset": "x",
    }  # fmt: skip
    for name, wanted in arguments.items():
        assert list(inspect.signature(TRANSFORMS[name]).parameters) == wanted.split(), MODULE
    for name, listed in LISTED.items():
        if listed.remembers and name != "pd.cut":
            made = TRANSFORMS[name]()
            assert "params_set" in vars(made), MODULE
            taken = inspect.signature(made).parameters
            assert {*listed.constants, *listed.named} <= taken.keys(), MODULE
            assert list(taken)[1 : 1 + len(listed.constants)] == list(listed.constants), MODULE


def test_the_parts_of_formulae_are_those_that_were_read():
    tree = parser.Parser(scanner.Scanner("y ~ f(x, n=1)").scan()).parse()
    assert tree.operator.kind == "TILDE", MODULE
    call = tree.right.right
    assert call.callee.name.lexeme == "f", MODULE
    assert call.args[1].name.name.lexeme == "n", MODULE
    lazy = call_resolver.LazyCall("f", [], {})
    assert {*vars(lazy)} == {"callee", "args", "kwargs", "stateful_transform"}, MODULE
    assert {*vars(call_resolver.LazyValue(1, None))} == {"value", "lexeme"}, MODULE
    computes = {**gate.OPERATORS, **{f"{kind} alone": op for kind, op in gate.SIGNS.items()}}
    assert {kind: op.__name__ for kind, op in computes.items()} == {
        "PLUS": "add", "MINUS": "sub", "STAR": "mul", "SLASH": "truediv", "STAR_STAR": "pow",
        "EQUAL_EQUAL": "eq", "BANG_EQUAL": "ne", "LESS": "lt", "LESS_EQUAL": "le", "GREATER": "gt",
        "GREATER_EQUAL": "ge", "PLUS alone": "pos", "MINUS alone": "neg",
    }, MODULE  # fmt: skip
    assert list(inspect.signature(terms.Call.set_type).parameters) == ["self", "data_mask", "env"]
    assert pick_contrasts({0: [], 1: ["a", "b"]}) == {
        0: [{}],
        1: [{"b": False}, {"a": False, "b": True}],
    }, MODULE
    assert formulae.__version__, MODULE


def test_what_is_read_and_written_in_the_parts_of_formulae_is_all_there():
    """`state` puts back what a component remembers: so there has to be no more than it knows of."""
    column, call = terms.Variable("x"), terms.Call(call_resolver.LazyCall("f", [], {}))
    both = {
        "name", "kind", "levels", "contrast_matrix", "value", "_intermediate_data", "is_response",
        "spans_intercept",
    }  # fmt: skip
    assert {*vars(column)} == both | {"reference"}, MODULE
    assert {*vars(call)} == both | {"call", "env"}, MODULE
    assert {*vars(terms.Term(column))} == {"components", "data", "kind", "name"}, MODULE
    for part in (column, call):
        assert list(inspect.signature(part.set_data).parameters) == ["spans_intercept"], MODULE
        assert list(inspect.signature(part.eval_new_data).parameters) == ["data_mask"], MODULE
    assert isinstance(CategoricalBox.data, property), MODULE
    assert list(inspect.signature(ContrastMatrix).parameters) == ["matrix", "labels"], MODULE
    assert {"eval", "set_size"} <= {*dir(Offset)}, MODULE


def test_what_the_transforms_of_formulae_remember_is_what_files_have():
    spline = "_center _centering_matrix _lower_bound _upper_bound _knots _spline _penalty_matrix"
    remembered = {
        "center": "mean", "scale": "mean std", "standardize": "mean std",
        "poly": "degree raw alpha norms2", "bs": "_knots _degree _center _centering_matrix",
        "cr": f"{spline} _random_state", "cc": f"{spline} _period _random_state",
        "tp": "_center _centering_matrix _null_space_dimension _penalty_matrix _radial_map "
        "_random_state _scale _shift _sites",
    }  # fmt: skip
    stateful = {name for name, listed in LISTED.items() if listed.remembers}
    assert stateful == {*remembered, "pd.cut"}, MODULE
    for name, wanted in remembered.items():
        assert {*vars(TRANSFORMS[name]())} == {"params_set", *wanted.split()}, MODULE
