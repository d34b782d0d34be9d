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
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import lmmbook as lmm
from lmmbook import covariance, families, formula, result, saving
from lmmbook.formula import build_design
from lmmbook.packing import pack, unpack

import formulae.transforms
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


def made_up(text: str, family: str | families.Family = "gaussian") -> lmm.Fit:
    """A fit of ``DATA`` whose numbers are random."""
    rng = np.random.default_rng(1)
    design = build_design(text, DATA, families.resolve(family))
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
    posterior, effects = {}, {}
    for of in design.factors:
        # One sweep: the axes of chains and levels stand in memory as the engine left them.
        draws = rng.normal(size=(of.levels, 16, len(of.effects))).astype(np.float32)
        flat = np.moveaxis(draws, 1, 0)
        effects[of.name] = result._summary(of.labels, of.name, of.effects, flat)
        posterior[of.name] = flat[..., 0] if of.intercept_only else flat
    trace = pd.DataFrame({"Intercept": np.float32([0.1, 0.2]), "phase": ["approach", "draws"]})
    return lmm.Fit(
        table, True, 0.1, np.float64(1.01), np.nan, effects, trace, posterior, design, 16
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
    for name in ("parameters", "trace"):
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
