"""A saved fit is the same fit, to the last bit, in any process; and nothing else passes for one.

Nearly no fit here: the numbers that a fit would give are made up.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmmbook as lmm
from lmmbook import families
from lmmbook.formula import build_design, covariance
from lmmbook.formula.parse import functions
from lmmbook.results.packing import pack, unpack

import numpy as np
import pandas as pd
import pytest
from tensorflow_probability import distributions as tfd

ROWS = 120
TESTS = Path(__file__).parent


def rows() -> pd.DataFrame:
    """Covariates and groups of every kind, and a response for every family."""
    rng = np.random.default_rng(0)
    color = np.array(["red", "green", "blue"])[rng.permutation(np.resize([0, 1, 2], ROWS))]
    size = rng.permutation(np.resize(["small", "medium", "large"], ROWS))
    when = pd.date_range("2026-01-30", periods=5, freq="D")
    return pd.DataFrame(
        {
            "y": rng.normal(2, 1, ROWS),
            "told": np.where(np.arange(ROWS) % 3, "it's [a:no]", "ja"),
            "trials": np.arange(ROWS) % 4 + 3,
            "yes": rng.permutation(np.resize([0, 1], ROWS)),
            "count": rng.poisson(2.0, ROWS),
            "rating": rng.permutation(np.resize([1, 2, 3, 4], ROWS)),
            "grade": pd.Categorical(size, ["small", "medium", "large"], ordered=True),
            "travel": rng.permutation(np.resize(["bus", "car", "bike"], ROWS)),
            "x": rng.normal(3, 2, ROWS),
            "z": rng.gamma(2.0, size=ROWS) + 0.1,
            "single": rng.normal(size=ROWS).astype(np.float32),
            "k": rng.permutation(np.resize([10, 20, 30], ROWS)),
            "my x": rng.normal(size=ROWS),
            "color": color,
            "size": pd.Categorical(size, ["small", "medium", "large"], ordered=True),
            "bin": pd.cut(rng.normal(size=ROWS), [-9, -0.5, 0.5, 9]),
            "g": rng.choice(list("abcdef"), ROWS),
            "h": rng.integers(0, 9, ROWS),
            "f": rng.choice([0.5, 1.25, -3.0], ROWS),
            "flag": rng.permutation(np.resize([True, False], ROWS)),
            "day": rng.permutation(np.resize(when, ROWS)),
            "zoned": pd.Series(rng.permutation(np.resize(when, ROWS))).dt.tz_localize("Asia/Tokyo"),
            "month": pd.Series(rng.permutation(np.resize(when, ROWS))).dt.to_period("M"),
            "date": pd.Series(rng.permutation(np.resize(when, ROWS))).dt.date,
            "cat": pd.Categorical(rng.choice([3, 1, 2], ROWS), [3, 2, 1]),
        }
    )


DATA = rows()


def made_up(
    text: str,
    family: str | families.Family = "gaussian",
    functions: functions.Functions | None = None,
) -> lmm.Fit:
    """A fit of ``DATA`` whose numbers are random."""
    rng = np.random.default_rng(1)
    design = build_design(text, DATA, families.resolve(family), functions)
    squares = [rng.normal(size=(len(f.effects),) * 2) for f in design.factors]
    matrices = []
    for of, square in zip(design.factors, squares, strict=True):
        matrix = np.zeros_like(square)
        for block in of.blocks:
            own = square[np.ix_(block, block)]
            matrix[np.ix_(block, block)] = own @ own.T + np.eye(len(block))
        matrices.append(matrix)
    values = covariance.name_values(
        design,
        rng.normal(size=len(design.fixed_names)) / 10,
        matrices,
        rng.normal(size=design.family.auxiliary) / 10,
    )
    if isinstance(design.family, families.Gaussian) and design.family.sd is not None:
        values["sd(residual)"] = design.family.sd
    table = pd.DataFrame(
        {"estimate": pd.Series(values, dtype=float), "std_error": np.nan, "at_boundary": False}
    ).rename_axis("parameter")
    n = len(table)
    together = pd.DataFrame(np.arange(0.1, n * n).reshape(n, n), table.index, table.index)
    together.iloc[0] = np.nan
    posterior, effects = {}, {}
    for of in design.factors:
        # One sweep: the axes of chains and levels stand in memory as the engine left them.
        draws = rng.normal(size=(of.levels, 16, len(of.effects))).astype(np.float32)
        flat = np.moveaxis(draws, 1, 0)
        effects[of.name] = covariance.effects_table(of, flat.mean(0), flat.std(0))
        posterior[of.name] = flat[..., 0] if of.intercept_only else flat
    trace = pd.DataFrame({"Intercept": np.float32([0.1, 0.2]), "phase": ["approach", "draws"]})
    return lmm.Fit(
        table, together, True, 0.1, np.float64(1.01), np.nan, effects, trace, posterior, design, 16
    )  # fmt: skip


def new_rows(fit: lmm.Fit) -> pd.DataFrame:
    """Rows of the training data in another order, with levels of the groups that it has not."""
    data = DATA.sample(frac=0.5, random_state=2).reset_index(drop=True)
    used = {column for factor in fit.design.factors for column in factor.columns}
    for column, unseen in {"g": "new", "h": 99, "f": 7.5}.items():
        if column in used:
            data.loc[[3, 4, 7], column] = unseen
    return data


def outcomes(fit: lmm.Fit, data: pd.DataFrame) -> dict[str, Any]:
    """What a fit says of new rows, method by method; or how it refuses."""
    asked: dict[str, Callable[[], Any]] = {
        "fixed": lambda: fit.design.on(data).fixed,
        "offset": lambda: fit.design.on(data).offset,
        "predict": lambda: fit.predict(data),
        "draws": lambda: fit.draws(data, 7, seed=3),
        "probabilities": lambda: fit.probabilities(data),
        "cuts": lambda: fit.probabilities(data, [0.5, 2.5]),
        "log_score": lambda: fit.log_score(data),
        "pit": lambda: fit.pit(data, seed=4),
        "model": lambda: np.array(list(fit.model.parameters().values())),
        "names": lambda: np.array(list(fit.model.parameters())),
    }
    asked |= {
        f"z({k})": lambda k=k: fit.design.on(data).factors[k].z for k in range(len(fit.posterior))
    }
    found: dict[str, Any] = {}
    for name, ask in asked.items():
        try:
            found[name] = ask()
        except ValueError as error:
            found[name] = str(error)
    return found


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert list(before) == list(after)
    for name, value in before.items():
        assert type(value) is type(after[name]), (name, value, after[name])
        if isinstance(value, np.ndarray):
            assert value.dtype == after[name].dtype, name
        np.testing.assert_array_equal(value, after[name], err_msg=name)


def assert_same_fit(before: lmm.Fit, after: lmm.Fit) -> None:
    """Everything but the rows of its data."""
    assert str(after) == str(before)
    assert repr(after) == repr(before)
    for name in ("parameters", "covariance", "trace"):
        pd.testing.assert_frame_equal(getattr(after, name), getattr(before, name), check_exact=True)
    assert list(after.effects) == list(before.effects)
    for name, frame in before.effects.items():
        pd.testing.assert_frame_equal(after.effects[name], frame, check_exact=True)
    for name in ("converged", "distance", "r_hat", "ess", "chains"):
        was, now = getattr(before, name), getattr(after, name)
        assert type(now) is type(was)
        np.testing.assert_array_equal(now, was)
    assert list(after.posterior) == list(before.posterior)
    for name, draws in before.posterior.items():
        assert after.posterior[name].dtype == draws.dtype
        np.testing.assert_array_equal(after.posterior[name], draws)
    was, now = before.design, after.design
    for name in ("formula", "family", "rows", "fixed_names", "_response", "_columns"):
        assert getattr(now, name) == getattr(was, name)
    assert now._categories == was._categories
    for of, again in zip(was.factors, now.factors, strict=True):
        pd.testing.assert_index_equal(again.labels, of.labels, exact=True)
        for name in ("name", "columns", "effects", "blocks"):
            assert getattr(again, name) == getattr(of, name)


def saved(fit: lmm.Fit, path: Path) -> lmm.Fit:
    fit.save(path)
    return lmm.load(path)


def assert_survives(fit: lmm.Fit, path: Path) -> dict[str, Any]:
    """Saved, and saved again, it is the same; returns what it says."""
    data = new_rows(fit)
    before = outcomes(fit, data)
    once = saved(fit, path)
    assert_same_fit(fit, once)
    assert_same(before, outcomes(once, data))
    assert_same(before, outcomes(saved(once, path), data))
    return before


@pytest.mark.parametrize(
    ("response", "family", "refused"),
    [
        ("y", "gaussian", {"probabilities"}),
        ("y", families.Gaussian(sd=1.0), {"probabilities"}),
        ("yes", "bernoulli", set()),
        ("flag", "bernoulli", set()),
        ("told", "bernoulli", {"cuts"}),
        ("told['ja']", "bernoulli", {"cuts"}),
        ("C(k)", "categorical", {"cuts"}),
        ("p(yes, trials)", "binomial", {"probabilities"}),
        ("p(yes, 3)", "binomial", {"probabilities"}),
        ("count", "poisson", {"probabilities"}),
        ("rating", "cumulative", {"cuts"}),
        ("grade", "cumulative", {"cuts", "predict"}),
        ("travel", "categorical", {"cuts", "predict"}),
        ("grade", "categorical", {"cuts", "predict"}),
        ("cat", "categorical", {"cuts"}),
    ],
)
def test_every_family_survives(response, family, refused, tmp_path):
    fit = made_up(f"{response} ~ center(x) + (1 + x|g) + (1|h)", family)
    says = assert_survives(fit, tmp_path / "fit")
    assert {name for name, found in says.items() if isinstance(found, str)} == refused


def test_a_bernoulli_of_before_it_knew_labels_is_one_of_zeros_and_ones(tmp_path):
    fit, path, old = made_up("yes ~ x + (1|g)", "bernoulli"), tmp_path / "new", tmp_path / "old"
    fit.save(path)
    with zipfile.ZipFile(path) as new, zipfile.ZipFile(old, "w") as archive:
        for name in new.namelist():
            text = new.read(name).replace(b'{"categories": null}', b"{}")
            assert (text != new.read(name)) == (name == "fit.json")
            archive.writestr(name, text)
    assert_same(outcomes(fit, DATA), outcomes(lmm.load(old), DATA))


@pytest.mark.parametrize(
    "effects",
    [
        "center(x)", "scale(x) + standardize(z)", "center(single)", "scale(single)",
        "poly(x, 3)", "poly(x, 2, raw=True)", "bs(x, df=5)", "0 + bs(x, df=6, center=False)",
        "cr(x, df=4)", "cc(x, period=6.3, df=4)", "tp(x, df=4)", "bs(scale(x), df=4)",
        "I(center(x)**2) + {z / 2}", "np.exp(-scale(x) / 2)", "np.log(z) * center(x)",
        "poly(center(x), 2) + `my x`", "C(k)", "S(color)", "T(color, 'red')", "C(color) * x",
        "color", "0 + color", "size * color", "color:size", "color:x", "0 + color:center(x)",
        "bin + flag", "color*scale(x)*flag", "size:color:center(x)", "cat",
        "offset(np.log(z)) + x", "offset(2) + x", "offset(center(z)) + color",
    ],
)  # fmt: skip
def test_every_column_of_fixed_effects_survives(effects, tmp_path):
    says = assert_survives(made_up(f"y ~ {effects} + (1|g)"), tmp_path / "fit")
    assert isinstance(says["predict"], np.ndarray)


@pytest.mark.parametrize(
    "bars",
    [
        "(1|g/h)", "(1|g:h) + (1|color:size)", "(x|g)", "(0 + x|g)", "(x||g)", "(center(x)|g:flag)",
        "(poly(x, 2)|g) + (1|h)", "(0 + color|g)", "(color:center(x)|g) + (scale(x)||h)",
        "(1|g) + (0 + center(x)|g) + (bs(z, df=4)|h)", "(scale(x) + size||g)",
    ],
)  # fmt: skip
def test_every_random_effect_survives(bars, tmp_path):
    says = assert_survives(made_up(f"y ~ 1 + center(x) + {bars}"), tmp_path / "fit")
    assert isinstance(says["predict"], np.ndarray)


@pytest.mark.parametrize(
    "group", ["g", "h", "f", "flag", "day", "zoned", "month", "date", "bin", "cat", "size"]
)
def test_labels_of_every_kind_survive(group, tmp_path):
    says = assert_survives(made_up(f"y ~ x + (1|{group})"), tmp_path / "fit")
    assert isinstance(says["predict"], np.ndarray)


@pytest.fixture(scope="module")
def fitted() -> lmm.Fit:
    """The one fit here that is one."""
    by_g = DATA["g"].map(dict(zip("abcdef", [-3.0, -1.5, 0.5, 1.0, 1.5, 2.5], strict=True)))
    by_h = DATA["h"].map(dict(enumerate([1.5, -1.0, 0.5, 2.0, -2.0, 0.0, 1.0, -0.5, -1.5])))
    data = DATA.assign(y=DATA["y"] + by_g + by_h)
    return lmm.fit("y ~ center(x) * color + (1|g) + (1|h)", data, seed=1, chains=8)


def test_a_real_fit_survives(fitted, tmp_path):
    says = assert_survives(fitted, tmp_path / "fit")
    assert {name for name, found in says.items() if isinstance(found, str)} == {"probabilities"}


def plain(found: dict[str, Any]) -> dict[str, np.ndarray]:
    """Labels and messages as strings."""
    arrays = {name: np.asarray(value) for name, value in found.items()}
    return {name: a.astype(str) if a.dtype == object else a for name, a in arrays.items()}


OTHER_PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
import test_saving as t
for path in sys.argv[2:]:
    fit = t.lmm.load(path)
    t.np.savez(path + ".npz", **t.plain(t.outcomes(fit, t.new_rows(fit))))
    t.Path(path + ".txt").write_text(str(fit))
"""


def test_another_process_says_the_same(fitted, tmp_path):
    fits = {
        "real": fitted,
        "splines": made_up("y ~ bs(x, df=5) + cr(z, df=4) + color:size + (poly(x, 2)|g) + (1|day)"),
        "ordered": made_up("grade ~ scale(x) + (x||g) + (1|zoned)", "cumulative"),
        "counts": made_up("count ~ flag + offset(np.log(z)) + (1|g/h)", "poisson"),
    }
    for name, fit in fits.items():
        fit.save(tmp_path / name)
    paths = [str(tmp_path / name) for name in fits]
    subprocess.run([sys.executable, "-c", OTHER_PROCESS, str(TESTS), *paths], check=True)
    for path, fit in zip(paths, fits.values(), strict=True):
        assert Path(path + ".txt").read_text() == str(fit)
        with np.load(path + ".npz") as there:
            for name, here in plain(outcomes(fit, new_rows(fit))).items():
                np.testing.assert_array_equal(there[name], here, err_msg=f"{path} {name}")


@pytest.fixture(scope="module")
def made() -> lmm.Fit:
    return made_up("y ~ center(x) + (x|g)")


@pytest.fixture
def file(made, tmp_path) -> Path:
    made.save(tmp_path / "fit.lmm")
    return tmp_path / "fit.lmm"


def rewritten(file: Path, change: Callable[[dict[str, Any]], None], **members: bytes) -> Path:
    """The file with another description, and other members in place of its own."""
    with zipfile.ZipFile(file) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    description = json.loads(content["fit.json"])
    change(description)
    content |= {"fit.json": json.dumps(description).encode()} | members
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return file


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(share, file):
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"fit\.lmm: expected a file that Fit\.save wrote, got"):
        lmm.load(file)


def test_a_damaged_file_is_refused(made, file):
    """A flipped bit is found, wherever it is: or it is where nothing is read."""
    whole = file.read_bytes()
    rng = np.random.default_rng(5)
    for at in rng.choice(len(whole), 60, replace=False):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        try:
            loaded = lmm.load(file)
        except ValueError as error:
            message = str(error)
        else:
            message = ""
            assert_same_fit(made, loaded)
        assert not message or "expected a file that Fit.save wrote" in message


@pytest.mark.parametrize("content", ["", "x,y\n1,2\n", "zip", "npz", "{}"])
def test_a_foreign_file_is_refused(content, tmp_path):
    path = tmp_path / "foreign.npz"
    if content == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("mimetype", "application/vnd.oasis.opendocument.text")
    elif content == "npz":
        np.savez(path, posterior=np.zeros(3))
    elif content == "{}":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("fit.json", content)
    else:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"foreign\.npz: expected a file that Fit\.save wrote"):
        lmm.load(path)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        lmm.load(tmp_path / "none")


def test_a_newer_format_is_refused_before_anything_else_is_read(file):
    def newer(description: dict[str, Any]) -> None:
        description |= {"format": 5, "written_by": {"lmmbook": "9.9"}, "arrays": 99, "fit": "?"}

    with pytest.raises(ValueError, match=r"in format 2, 3 or 4, got format 5, written by .*9\.9"):
        lmm.load(rewritten(file, newer))


def test_format_3_did_not_know_reml(file):
    def older(description: dict[str, Any]) -> None:
        description["format"] = 3
        del description["fit"]["dict"]["reml"]

    assert lmm.load(rewritten(file, older)).reml is False


class Trap:
    """Unpickled, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(file, tmp_path):
    sprung = tmp_path / "sprung"
    np.save(tmp_path / "trap.npy", np.array([Trap(sprung)]), allow_pickle=True)
    trap = (tmp_path / "trap.npy").read_bytes()
    with pytest.raises(ValueError, match="allow_pickle=False"):
        lmm.load(rewritten(file, lambda description: None, **{"0.npy": trap}))
    assert not sprung.exists()
    np.load(tmp_path / "trap.npy", allow_pickle=True)
    assert sprung.exists()  # so it is a trap


def test_the_file_can_be_read_without_us(made, file):
    with np.load(file, allow_pickle=False) as archive:
        description = json.loads(archive["fit.json"])
        assert description["format"] == 4
        assert description["written_by"]["lmmbook"] == lmm.__version__
        assert {"numpy", "pandas", "tensorflow"} < set(description["written_by"])
        place, axes = description["fit"]["dict"]["posterior"]["dict"]["g"]["array"]
        draws = archive[str(place)].transpose(np.argsort(axes))
        np.testing.assert_array_equal(draws, made.posterior["g"])
    assert description["fit"]["dict"]["design"]["dict"]["formula"] == "y ~ center(x) + (x|g)"


def test_rows_stay_behind(tmp_path, monkeypatch):
    """The size does not depend on their number, and none of their numbers is in the file."""
    sizes = []
    for times in (1, 20):
        many = pd.concat([DATA] * times, ignore_index=True)
        many["x"] += np.arange(len(many)) / 1e4
        monkeypatch.setitem(globals(), "DATA", many)
        fit = made_up("y ~ tp(x, df=4, max_knots=50) + bs(z, df=4) + color + (cr(x, df=4)|g)")
        again = saved(fit, tmp_path / "fit")
        sizes.append((tmp_path / "fit").stat().st_size)
        assert again.design.rows == len(many)
        assert f"{len(many):,} rows" in str(again)
        assert np.isnan(again.design.response).all()
    assert abs(sizes[1] - sizes[0]) < 100


def test_a_likelihood_of_your_own_is_refused_before_anything_is_written(made, tmp_path):
    custom = families.Custom(lambda loc: tfd.StudentT(4.0, loc, 1.0), {})
    fit = replace(made, design=replace(made.design, family=custom))
    with pytest.raises(ValueError, match=r"expected one of Gaussian, .* got Custom: its Python"):
        fit.save(tmp_path / "fit")
    assert not list(tmp_path.iterdir())


def test_a_family_that_only_has_the_name_is_refused(made, tmp_path):
    class Poisson(families.Poisson):
        pass

    fit = replace(made, design=replace(made.design, family=Poisson()))
    with pytest.raises(ValueError, match="got Poisson"):
        fit.save(tmp_path / "fit")


def test_what_no_file_can_hold_is_refused_before_anything_is_written(made, tmp_path):
    labels = pd.Index([object(), *made.design.factors[0].labels[1:]])
    factor = replace(made.design.factors[0], labels=labels)
    fit = replace(made, design=replace(made.design, factors=(factor,)))
    with pytest.raises(ValueError, match=r"expected numbers, strings, dates .* got object"):
        fit.save(tmp_path / "fit")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["write_array", "replace"])
def test_an_interrupted_save_leaves_the_old_file(place, made, file, monkeypatch):
    old = file.read_bytes()
    calls = []

    def fails(*arguments: Any, **options: Any) -> None:
        calls.append(list(file.parent.iterdir()))
        raise KeyboardInterrupt

    monkeypatch.setattr(np.lib.format if place == "write_array" else os, place, fails)
    with pytest.raises(KeyboardInterrupt):
        made.save(file)
    assert len(calls[0]) == 2  # the new file was there, beside the old one
    assert list(file.parent.iterdir()) == [file]
    assert file.read_bytes() == old


def test_a_save_goes_where_a_link_leads(made, file, tmp_path):
    link = tmp_path / "latest"
    link.symlink_to(file)
    old = file.read_bytes()
    replace(made, chains=5).save(str(link))
    assert link.is_symlink()
    assert file.read_bytes() != old
    assert lmm.load(link).chains == 5


def test_a_function_of_your_own_is_asked_for_by_name(tmp_path):
    own = {"double": lambda x: 2 * x, "not_called": np.log}
    fit = made_up("y ~ np.abs(double(x)) + (double(z)|g)", functions=own)
    fit.save(tmp_path / "fit")
    with pytest.raises(ValueError, match=r"\['double'\], got \[\]; .*functions={'double': \.\.\.}"):
        lmm.load(tmp_path / "fit")
    once = lmm.load(tmp_path / "fit", functions={"double": own["double"]})
    assert_same_fit(fit, once)
    assert_same(outcomes(fit, DATA), outcomes(once, DATA))
    once.save(tmp_path / "again")
    other = lmm.load(tmp_path / "again", functions={"double": lambda x: 3 * x})  # as it is told
    assert (other.design.on(DATA).fixed[:, 1] == 3 * abs(DATA["x"])).all()


def test_terms_that_formulae_cannot_tell_apart_are_refused(tmp_path):
    fit = made_up("y ~ I((x + z) * 2):k + I(x + z * 2) + (1|g)")
    with pytest.raises(ValueError, match="two that differ"):
        fit.save(tmp_path / "fit")
    assert not list(tmp_path.iterdir())


KINDS = [
    None, True, -3, 2**70, 0.1, -0.0, float("nan"), float("inf"), 5e-324, "", "ä\x00\ud800",
    np.float64(0.1), np.float32(0.1), np.int8(-3), np.bool_(True), np.datetime64("2026-01-01", "D"),
    [1, [2.0, "a"]], (1, ("a", 2.0)), {"a": {"array": 1}}, {0: np.float64(1.0), "b": None},
    {"only"}, 0.1 + 0.2, -1e300 / 3,
    pd.Timestamp("2026-01-01 01:02:03.000000004", tz="Europe/Berlin"), pd.Timestamp("2026-03-01"),
    pd.Timedelta("3s"), pd.Interval(0.5, 2, "left"), pd.Period("2026-02", "M"),
    datetime.date(2026, 2, 1), datetime.datetime(2026, 2, 1, 3, 4, 5, 6),
]  # fmt: skip


@pytest.mark.parametrize("value", KINDS, ids=repr)
def test_a_value_of_every_kind_survives(value):
    arrays: list[np.ndarray] = []
    text = json.dumps(pack(value, arrays), allow_nan=False)
    again = unpack(json.loads(text), arrays)
    assert repr(again) == repr(value)
    assert type(again) is type(value)


@pytest.mark.parametrize(
    "index",
    [
        pd.Index(["a", "b"]), pd.Index(["a", "b"], dtype=object), pd.Index([1, "a"]),
        pd.Index([1, 2], dtype=np.int8, name="n"), pd.Index([1, 2], dtype=object),
        pd.Index([0.1, 0.2], dtype=np.float32), pd.Index([True, False], name=("a", 1)),
        pd.DatetimeIndex(["2026-01-01", "2026-01-03"], dtype="datetime64[s]"),
        pd.DatetimeIndex(["2026-01-01", "2026-01-03"], dtype="datetime64[ns, UTC]"),
        pd.Index([pd.Timestamp("2026-01-01"), pd.Timestamp("2026-01-02")], dtype=object),
        pd.RangeIndex(2, 6, 2, name="r"), pd.interval_range(0, 2),
        pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["x", None]),
    ],
    ids=repr,
)  # fmt: skip
def test_an_index_of_every_kind_survives(index):
    column = index if index.nlevels == 1 else "several levels"
    frame = pd.DataFrame({"x": np.float32([0.1, 0.2]), "y": column}, index)
    arrays: list[np.ndarray] = []
    again = unpack(json.loads(json.dumps(pack(frame, arrays))), arrays)
    pd.testing.assert_index_equal(again.index, index, exact=True)
    pd.testing.assert_frame_equal(again, frame, check_exact=True, check_freq=False)


def test_an_array_keeps_the_order_of_its_axes(tmp_path):
    """A sum over an axis adds in that order, and its last bit depends on it."""
    draws = np.random.default_rng(6).normal(size=(50, 40, 3)).astype(np.float32)
    for axes in ([0, 1, 2], [1, 0, 2], [2, 1, 0], [1, 2, 0]):
        value = draws.transpose(axes)
        arrays: list[np.ndarray] = []
        packed = pack(value, arrays)
        again = unpack(packed, [np.ascontiguousarray(array) for array in arrays])
        assert again.strides == value.strides
        np.testing.assert_array_equal(again.mean(0), value.mean(0))


def test_a_function_that_now_is_another_is_refused(tmp_path, monkeypatch):
    """Without its memory it would take its numbers from the new rows."""
    made_up("y ~ center(x) + (1|g)").save(tmp_path / "fit")
    monkeypatch.setitem(functions.LISTED, "center", functions.Known(lambda x: x))
    with pytest.raises(ValueError, match=r"the center of the fit in center\(x\), got another"):
        lmm.load(tmp_path / "fit")


def test_a_formula_that_is_read_in_another_way_is_refused(file):
    def change(description: dict[str, Any]) -> None:
        description["fit"]["dict"]["design"]["dict"]["formula"] = "y ~ scale(x) + (x|g)"

    with pytest.raises(ValueError, match=r"expected \['center\(x\)'\] in it, got \['scale\(x\)'\]"):
        lmm.load(rewritten(file, change))


@pytest.mark.parametrize(
    ("place", "command"),
    [
        ("center(x)", "pd.io.common.os.system('touch owned')"),
        ("center(x)", "np.savetxt('owned', x)"),
        ("center(x)", "pd.read_pickle('owned')"),
        ("center(x)", "np.log(x, x)"),
        ("(x|g)", "(np.save('owned', x)|g)"),
        ("(x|g)", "(x|g) + offset(np.f2py.os.system('touch owned'))"),
        ("y", "np.save('owned', y)"),
        ("y ~", "pd.core.generic.sys.exit(3) ~"),
    ],
)
def test_an_edited_formula_is_refused(place, command, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def change(description: dict[str, Any]) -> None:
        design = description["fit"]["dict"]["design"]["dict"]
        design["formula"] = design["formula"].replace(place, command)
        matrices = json.dumps(design["matrices"]).replace(place, command)
        design["matrices"] = json.loads(matrices)

    with pytest.raises(ValueError, match="formula: expected"):
        lmm.load(rewritten(file, change))
    assert list(tmp_path.iterdir()) == [file]


def transform_of(description: dict[str, Any]) -> dict[str, Any]:
    """What the file says of ``center(x)``."""
    design = description["fit"]["dict"]["design"]["dict"]
    return design["matrices"][0][0][1][1][0]["dict"]["transforms"][0]["dict"]


ZONE = {"timestamp": [{"array": [0, [0]]}, "dateutil//etc/hostname"]}
EDITS = {
    "a method of a transform": lambda d: transform_of(d).update({"__call__": "np.save"}),
    "another attribute": lambda d: transform_of(d).update({"eval": 1}),
    "one that is gone": lambda d: transform_of(d).pop("mean"),
    "text for a number": lambda d: transform_of(d).update({"mean": "x"}),
    "a frame for a number": lambda d: transform_of(d).update({"mean": d["fit"]["dict"]["trace"]}),
    "a path for a time zone": lambda d: transform_of(d).update({"mean": ZONE}),
    "an unknown kind": lambda d: d["fit"]["dict"].update({"chains": {"call": ["os.system"]}}),
    "two kinds": lambda d: d["fit"]["dict"].update({"chains": {"tuple": [], "set": []}}),
    "an attribute of the fit": lambda d: d["fit"]["dict"].update({"save": 1}),
    "no attribute of the fit": lambda d: d["fit"]["dict"].pop("chains"),
    "a family": lambda d: d["fit"]["dict"]["design"]["dict"].update({"family": ["Custom", {}]}),
    "a family's method": lambda d: d["fit"]["dict"]["design"]["dict"].update(
        {"family": ["Gaussian", {"dict": {"codes": 1}}]}
    ),
    "no design": lambda d: d["fit"]["dict"].update({"design": 3}),
    "no formula": lambda d: d["fit"]["dict"]["design"]["dict"].update({"formula": 3}),
    "no dict": lambda d: d.update({"fit": [1]}),
    "an array that is not there": lambda d: transform_of(d).update({"mean": {"array": [999, [0]]}}),
}


@pytest.mark.parametrize("edit", EDITS)
def test_what_a_file_says_calls_nothing_and_replaces_no_method(edit, file):
    with pytest.raises(ValueError, match=r"expected"):
        lmm.load(rewritten(file, EDITS[edit]))


FORMAT_2 = "y ~ center(x) + size:color + poly(z, 2) + offset(2) + (1|g/h) + (x|color:flag)"


def test_a_file_of_format_2_is_still_read(tmp_path):
    """As an lmmbook wrote it that knew no later format; its numbers are made up in the same way."""
    fit, old = made_up(FORMAT_2), lmm.load(TESTS / "format_2.lmm")
    found, wanted = (one.design.on(new_rows(fit)) for one in (old, fit))
    np.testing.assert_allclose(found.fixed, wanted.fixed, rtol=1e-12)
    for one, other in zip(found.factors, wanted.factors, strict=True):
        np.testing.assert_array_equal(one.codes, other.codes)
        assert one.labels.tolist() == other.labels.tolist()
    data = DATA.assign(h=DATA["h"] * 1.0)
    np.testing.assert_allclose(old.predict(data), fit.predict(data), rtol=1e-6)
    assert_survives(old, tmp_path / "again")


def test_labels_in_a_file_of_format_2_that_could_be_of_two_levels_are_refused(tmp_path):
    path = tmp_path / "old.lmm"
    path.write_bytes((TESTS / "format_2.lmm").read_bytes())

    def change(description: dict[str, Any]) -> None:
        factors = description["fit"]["dict"]["design"]["dict"]["factors"]
        factors[1][2]["index"][0][0] = "a:0:1"

    with pytest.raises(ValueError, match=r"group 'g:h': .* format 2, .* got \['a:0:1'\]"):
        lmm.load(rewritten(path, change))


def test_levels_that_are_written_alike_stay_apart_in_a_file(tmp_path):
    """("p", "q:u") is not ("p:q", "u"), before saving and after."""
    design = made_up("y ~ x + (1|g:color)").design
    labels, pairs = design.factors[0].labels, [("p", "q:u"), ("p", "r")]
    assert len(labels) == len(design.factors[0].keys[0])
    data = DATA.assign(g="p", color=np.where(DATA["flag"], "q:u", "r"))
    design = build_design("y ~ x + (1|g:color)", data)
    fit = replace(made_up("y ~ x + (1|flag)"), design=design)
    new = pd.DataFrame({"x": 0.0, "g": ["p:q", "p", "p"], "color": ["u", "q:u", "r"]})
    for one in (design, saved(fit, tmp_path / "fit").design):
        factor = one.on(new).factors[0]
        assert list(zip(*factor.keys, strict=True))[:2] == pairs
        assert factor.codes.tolist() == [2, 0, 1]


def test_a_column_that_was_left_out_is_left_out_again(tmp_path, monkeypatch):
    empty = (DATA["color"] == "red") & (DATA["size"] == "large")
    monkeypatch.setitem(globals(), "DATA", DATA[~empty].reset_index(drop=True))
    with pytest.warns(UserWarning, match="left out"):
        fit = made_up("y ~ color*size + offset(x) + (1|g)")
    says = assert_survives(fit, tmp_path / "fit")
    assert isinstance(says["predict"], np.ndarray)
    again = lmm.load(tmp_path / "fit")
    for one in (fit, again):
        with pytest.raises(ValueError, match="expected combinations that the training data have"):
            one.predict(DATA.assign(color="red", size="large"))
