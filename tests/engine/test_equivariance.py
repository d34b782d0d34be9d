"""Units and zero points are only names: a fit of grams is that of tonnes, of dates that of ages."""

from __future__ import annotations

import warnings
from dataclasses import replace

import lmmbook
from lmmbook import exact
from lmmbook.engine import verdict
from lmmbook.engine.certificate import certify
from lmmbook.families import Custom, Gaussian, resolve
from lmmbook.formula import build_design
from lmmbook.formula.covariance import name_values, split_values
from lmmbook.formula.design import Design
from lmmbook.formula.invariances import coordinates
from lmmbook.results.fit import Fit

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd

FORMULA = "y ~ x + (x|g)"


def simulated() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(20), 20)
    data = pd.DataFrame({"g": g, "x": rng.normal(size=400), "w": rng.normal(size=400)})
    u = rng.multivariate_normal([0, 0], [[0.6, 0.2], [0.2, 0.4]], 20)[g]
    data["y"] = 1 + 0.5 * data["x"] + u[:, 0] + u[:, 1] * data["x"] + rng.normal(size=400)
    return data


DATA = simulated()


@pytest.fixture(scope="module")
def base() -> Fit:
    return lmmbook.fit(FORMULA, DATA, seed=0)


def rescaled(a: float, b: float, m: float, s: float) -> pd.DataFrame:
    return DATA.assign(y=a + b * DATA["y"], x=m + s * DATA["x"])


def meant(table: pd.DataFrame, b: float, m: float, s: float, a: float) -> pd.Series:
    """What the estimates for ``rescaled`` data say of the data as they were. An effect at x = 0 has
    another name when x moves: so a level's covariance is read at the old zero."""
    e = table["estimate"]
    cov = e["cor(Intercept,x|g)"] * e["sd(g)"] * e["sd(x|g)"]
    at = np.array([[1.0, m], [0.0, s]]) / b
    matrix = at @ [[e["sd(g)"] ** 2, cov], [cov, e["sd(x|g)"] ** 2]] @ at.T
    return pd.Series(
        {
            "Intercept": (e["Intercept"] - a + m * e["x"]) / b,
            "x": e["x"] * s / b,
            "sd(g)": np.log(matrix[0, 0]) / 2,
            "sd(x|g)": np.log(matrix[1, 1]) / 2,
            "cor(Intercept,x|g)": np.arctanh(matrix[0, 1] / np.sqrt(matrix[0, 0] * matrix[1, 1])),
            "sd(residual)": np.log(e["sd(residual)"] / b),
        }
    )


CASES = {
    "micro": (0.0, 1e-6, 0.0, 1.0),
    "giga": (0.0, 1e6, 0.0, 1.0),
    "seconds since 1970": (1.7e9, 1.0, 0.0, 1.0),
    "a mean of 1e8 sds": (-1e2, 1e-6, 0.0, 1.0),
    "covariate in 1e-12": (0.0, 1.0, 0.0, 1e-12),
    "covariate in 1e9": (0.0, 1.0, 0.0, 1e9),
    "years": (0.0, 1.0, 2000.0, 10.0),
    "both": (1e7, 1e-3, -1e6, 1e3),
}


@pytest.mark.parametrize("name", CASES)
def test_a_fit_is_equivariant(base, name):
    """The same seed goes the same way, but for rounding: a hundredth of a standard error.

    Where x is moved, the certificate is asked of other parameters, so that its last steps are
    others too: then a Monte Carlo error is allowed for.
    """
    a, b, m, s = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = lmmbook.fit(FORMULA, rescaled(*CASES[name]), seed=0)
    assert fit.converged
    apart = meant(fit.parameters, b, m, s, a) - meant(base.parameters, 1, 0, 1, 0)
    allowed = 0.01 * base.parameters["std_error"] + bool(m) * 3 * base.parameters["mcse"]
    assert (apart.abs() < allowed).all(), apart / base.parameters["std_error"]
    ratio = fit.parameters["std_error"]["x"] * s / b / base.parameters["std_error"]["x"]
    assert ratio == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("name", ["seconds since 1970", "years", "both"])
def test_predictions_scores_and_draws_are_equivariant(base, name, tmp_path):
    a, b, *_ = CASES[name]
    data = rescaled(*CASES[name])
    fit = lmmbook.fit(FORMULA, data, seed=0)
    spread = base.parameters["estimate"]["sd(residual)"]

    def close(one, other):  # what the estimates differ by
        np.testing.assert_allclose(one, other, atol=0.05 * spread)

    close((fit.predict(data) - a) / b, base.predict(DATA))
    close(fit.log_score(data) + np.log(b), base.log_score(DATA))
    close(fit.pit(data, seed=0), base.pit(DATA, seed=0))
    draws = (fit.draws(data, 500, seed=0) - a) / b
    assert abs(draws.mean() - base.draws(DATA, 500, seed=0).mean()) < 0.05 * spread
    assert draws.std() == pytest.approx(base.draws(DATA, 500, seed=0).std(), rel=0.05)
    # A new level has the prior of the data's scale.
    close((fit.predict(data.assign(g=-1)) - a) / b, base.predict(DATA.assign(g=-1)))
    assert fit.trace["sd(residual)"].iloc[-1] == pytest.approx(b * spread, rel=0.05)
    fit.save(tmp_path / "fit")
    assert (lmmbook.load(tmp_path / "fit").predict(data) == fit.predict(data)).all()


@pytest.mark.parametrize("name", CASES)
def test_the_oracle_is_equivariant(name):
    a, b, m, s = CASES[name]
    data = rescaled(*CASES[name])
    one, two = exact.fit(FORMULA, DATA), exact.fit(FORMULA, data)
    apart = meant(two.parameters, b, m, s, a) - meant(one.parameters, 1, 0, 1, 0)
    # The data themselves have lost digits: seven, of seconds since 1970.
    assert (apart.abs() < 1e-3 * one.parameters["std_error"]).all()
    assert two.log_likelihood + 400 * np.log(b) == pytest.approx(one.log_likelihood, abs=1e-4)
    there = exact.log_likelihood(FORMULA, data, two.parameters["estimate"])
    assert there == pytest.approx(two.log_likelihood, abs=1e-2)
    ratio = two.parameters["std_error"]["x"] * s / b / one.parameters["std_error"]["x"]
    assert ratio == pytest.approx(1, abs=1e-4)


def test_fisher_z_does_not_go_by_the_last_digits_of_a_correlation():
    """An intercept a million sds away: its correlation with the slope is -1 but for 1e-12."""
    table = exact.fit(FORMULA, DATA.assign(x=1e6 + DATA["x"])).parameters
    near = exact.fit(FORMULA, DATA.assign(x=1e3 + DATA["x"])).parameters
    # That far out an error of Fisher's z no longer depends on how far.
    name = "cor(Intercept,x|g)"
    assert table["std_error"][name] == pytest.approx(near["std_error"][name], rel=1e-2)


# Without a fit: inner designs


def densities(design: Design, values: dict[str, float], u: list[np.ndarray]) -> np.ndarray:
    """Of each row, given effects ``u``, in the coordinates of the design."""
    beta, _, auxiliary = split_values(design, values)
    predictor = design.offset + design.fixed @ beta
    for factor, of_levels in zip(design.factors, u, strict=True):
        predictor = predictor + (of_levels[factor.codes] * factor.z).sum(1)
    own = tf.constant(auxiliary, tf.float64)
    return design.family.distribution(tf.constant(predictor), own).log_prob(design.response).numpy()


FAMILIES = ["gaussian", Gaussian(2.5), "cumulative", "categorical", "poisson", "bernoulli"]


@pytest.mark.parametrize("family", FAMILIES, ids=str)
@pytest.mark.parametrize(
    "formula",
    [
        "y ~ x + year + offset(o) + (1 + year|g)",
        "y ~ tiny * year + (tiny||g) + (1|h)",
        "y ~ x + np.log(big) + big + level + (0 + year|g) + (1|h)",
    ],
)
def test_an_inner_design_is_the_same_model(family, formula):
    """Parameters with the same names give every row the same density, and effects map along."""
    rng = np.random.default_rng(0)
    data = DATA.assign(
        y=rng.integers(0, 2 if family == "bernoulli" else 3, 400), h=rng.permutation(DATA["g"]),
        year=1990 + 5 * rng.normal(size=400), tiny=1e-9 * DATA["w"], o=20 + DATA["w"],
        big=rng.uniform(1e6, 2e6, 400), level=1e4 + rng.normal(size=20)[DATA["g"]],
    )  # fmt: skip
    design = build_design(formula, data, resolve(family))
    inner = coordinates.inner(design)
    beta, auxiliary = (
        rng.normal(size=k) for k in (len(design.fixed_names), design.family.auxiliary)
    )
    if isinstance(family, Gaussian):
        auxiliary = np.zeros(1)
    covariances = [np.eye(len(f.effects)) for f in design.factors]
    u = [rng.normal(size=(f.levels, len(f.effects))) for f in design.factors]
    own = name_values(inner, beta, covariances, auxiliary)
    constrained = coordinates.constrained(inner, beta, covariances, auxiliary)
    of_data = [coordinates.outer_effects(inner, k, v) for k, v in enumerate(u)]
    np.testing.assert_allclose(
        densities(design, constrained, of_data) + np.log(inner.response_scale),
        densities(inner, own, u),
        rtol=1e-6, atol=1e-6,
    )  # fmt: skip
    # Of independent effects of size one, each moves alone: that is a root of their covariance.
    for k, matrix in enumerate(split_values(design, constrained)[1]):
        moves = coordinates.outer_effects(inner, k, np.eye(len(matrix)))
        np.testing.assert_allclose(matrix, moves.T @ moves, rtol=1e-9)
    # Single precision can tell its columns apart, and their sums hold.
    for columns in (inner.fixed, *(f.z[:, list(b)] for f in inner.factors for b in f.blocks)):
        length = np.sqrt((columns**2).mean(0))
        assert (length > 1 / 20).all()
        assert (length < 20).all()
        cosines = columns.T @ columns / len(columns) / np.outer(length, length)
        assert np.linalg.eigvalsh(cosines).min() > 0.01


def test_what_is_fine_is_not_copied():
    design = build_design("y ~ x + (x|g)", DATA)
    inner = coordinates.inner(design)
    assert inner.fixed is design.fixed
    assert inner.factors[0].z is design.factors[0].z


@pytest.mark.parametrize("family", [Gaussian(), Gaussian(1.0)], ids=str)
def test_the_inner_response_knows_no_units(family):
    """Also for another intercept, under another name, or none; and with a fixed sd."""
    inner = coordinates.inner(build_design(FORMULA, DATA, family))
    for b in (2.0**-40, 2.0**30):
        scaled = Gaussian(None if family.sd is None else family.sd * b)
        there = coordinates.inner(build_design(FORMULA, rescaled(0, b, 0, 1), scaled))
        assert (there.response == inner.response).all()  # by a power of two, nothing is rounded
        assert there.family == inner.family
        assert there.response_scale == b * inner.response_scale
    moved = DATA.assign(o=1e8 + DATA["w"], y=DATA["y"] + 1e8 + DATA["w"])
    there = coordinates.inner(build_design("y ~ x + offset(o) + (x|g)", moved, family))
    np.testing.assert_allclose(there.response, inner.response, atol=1e-6)
    assert not there.offset.any()
    dummies = DATA.assign(y=DATA["y"] + 1.7e9, f=np.where(DATA["w"] > 0, "a", "b"))
    one = coordinates.inner(build_design("y ~ f + (1|g)", dummies, family))
    two = coordinates.inner(build_design("y ~ 0 + f + (1|g)", dummies, family))
    np.testing.assert_allclose(one.response, two.response, atol=1e-6)


@pytest.mark.parametrize("family", ["poisson", "bernoulli"])
def test_an_offset_is_brought_near_zero(family):
    data = DATA.assign(y=(DATA["y"] > 0).astype(int), o=0.3 * DATA["w"])
    one = coordinates.inner(build_design("y ~ x + offset(o) + (1|g)", data, resolve(family)))
    data["o"] += 1e6
    two = coordinates.inner(build_design("y ~ x + offset(o) + (1|g)", data, resolve(family)))
    np.testing.assert_allclose(one.offset, two.offset, atol=1e-8)
    assert two.response is two.outer.response
    assert (two.origin - one.origin)[0] == pytest.approx(-1e6)
    data["o"] = 20.0
    same = coordinates.inner(build_design("y ~ x + offset(o) + (1|g)", data, resolve(family)))
    assert not same.offset.any()


def test_columns_of_a_level_stay_so():
    """A group's covariate stays one that the group's effects can take over, and takes none of the
    rows'."""
    level = 1.7e9 + np.random.default_rng(1).normal(size=20)[DATA["g"]]
    data = DATA.assign(level=level, near=level + 0.01 * DATA["w"])
    inner = coordinates.inner(build_design("y ~ near + level + (1|g)", data))
    takers = coordinates._takers(inner)
    assert takers == [{(0, 0)}, set(), {(0, 0)}]
    far = coordinates.inner(build_design("y ~ x + (x|g)", DATA.assign(x=1e7 + DATA["x"])))
    assert coordinates._takers(far) == [{(0, 0)}, {(0, 1)}]


@pytest.mark.parametrize("kind", ["int64", "float32", "Int64"])
def test_numbers_of_any_type_are_centred_in_double_precision(kind):
    times = (1.7e9 + 64 * np.round(100 * DATA["y"])).astype(kind)  # float32 has steps of 128
    inner = coordinates.inner(build_design(FORMULA, DATA.assign(y=times)))
    left = np.asarray(times, float) - 1.7e9
    right = coordinates.inner(build_design(FORMULA, DATA.assign(y=left)))
    np.testing.assert_allclose(inner.response, right.response, atol=1e-9)


def test_a_checkpoint_is_of_the_data_not_of_the_inner_design():
    from lmmbook.engine.checkpoint import identity_of

    one, two = (
        identity_of(coordinates.inner(build_design(FORMULA, rescaled(0, b, 0, 1))), 8, 0, 1)
        for b in (1.0, 2.0)
    )
    assert one != two


def test_a_likelihood_of_ones_own_is_given_the_response_as_it_is():
    family = Custom(lambda loc: tfd.StudentT(4.0, loc, 1.0), {})
    inner = coordinates.inner(build_design(FORMULA, rescaled(30, 1, 2000, 5), family))
    assert inner.response is inner.outer.response
    assert inner.response_scale == 1


# What the warning says


def judged(step: float, mcse: float) -> certify.Certificate:
    names = ["Intercept", "sd(g)"]
    table = pd.DataFrame({"step": [0.0, step], "std_error": 2.0, "mcse": [0.0, mcse]}, names)
    nothing = pd.DataFrame(np.nan, names, names)
    return certify.Certificate(
        table, nothing, np.zeros(2), step / 2, far=step > 0.6, definite=True, r_hat=1.0, ess=100.0
    )


def test_the_warning_names_the_parameter_and_what_is_missing():
    far = verdict.furthest(judged(step=1.0, mcse=0.01))
    assert "0.5 standard errors away in 'sd(g)'" in far
    assert "Monte Carlo error:" not in far
    assert "a last look" in verdict.furthest(replace(judged(step=0.1, mcse=0.01), converged=True))
    unsure = verdict.furthest(judged(step=0.3, mcse=0.1))
    assert "'sd(g)' is 0.15 standard errors away, within 0.1" in unsure
    assert "That is Monte Carlo error" in unsure
