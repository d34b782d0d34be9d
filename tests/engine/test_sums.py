"""Sums over rows: the digits they keep, whatever their number, and that they can be shared out."""

from __future__ import annotations

from types import SimpleNamespace

import lmmbook as lmm
from lmmbook.data import simulate
from lmmbook.engine import arrays, linear_predictor, row_sums
from lmmbook.engine.certificate import louis
from lmmbook.engine.certificate.parametrisation import as_written
from lmmbook.engine.row_sums import level_sums
from lmmbook.families.derivatives import derivatives_at, summed, total
from lmmbook.formula import build_design

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

MANY = 20_000_000
LARGE = 10_000_000
CHAINS = 2


# Totals


def test_a_running_total_in_single_precision_stops_and_ours_does_not():
    """2^24 + 1 is 2^24. A sum for one level is such a running total."""
    ones, level = tf.ones([MANY]), tf.zeros([MANY], tf.int32)
    naive = tf.function(tf.math.unsorted_segment_sum, jit_compile=True)(ones, level, 1)
    assert float(naive[0]) == 2**24
    assert float(tf.function(total, jit_compile=True)(ones)) == MANY


@pytest.fixture(scope="module")
def large() -> SimpleNamespace:
    """Ten million yes-or-no ratings of two items: five million rows a level."""
    rng = np.random.default_rng(0)
    item, x = rng.integers(0, 2, LARGE), rng.integers(0, 2, LARGE)
    y = rng.random(LARGE) < 1 / (1 + np.exp(-(0.4 - 0.1 * x + 0.3 * item)))
    data = pd.DataFrame({"y": y.astype(np.int8), "x": x.astype(np.int8), "item": item})
    design = build_design("y ~ x + (1|item)", data, lmm.families.Bernoulli())
    layout, array = arrays.on_device(design, CHAINS)
    values = arrays.to_parameters(design, {"Intercept": 0.4, "x": -0.1, "sd(item)": 0.3})
    near = np.array([0.0, 0.3])[:, np.newaxis, np.newaxis] + rng.normal(0, 1e-3, (2, CHAINS, 1))
    effects = [tf.constant(near, tf.float32)]
    state = linear_predictor.at(layout, array, arrays.State(values, effects))
    return SimpleNamespace(design=design, layout=layout, arrays=array, state=state)


def log_density(y: np.ndarray, eta: np.ndarray) -> np.ndarray:
    """``[rows, chains]`` float64."""
    return y[:, np.newaxis] * eta - np.logaddexp(0.0, eta)


def test_acceptance_at_ten_million_rows_is_that_of_double_precision(large):
    """What a proposal one posterior sd away adds to a level's log density: within 0.005 of float64,
    so that no acceptance probability is off by more. The difference of two totals errs by far more
    than its own size."""
    sd = np.sqrt(4 / (LARGE / 2))
    change = tf.constant(sd * np.array([[[1.0], [-1.0]], [[0.5], [2.0]]]), tf.float32)
    given = large.layout, 0, large.arrays, large.state
    compiled = tf.function(linear_predictor.changes_and_slopes, jit_compile=True)
    before, _ = linear_predictor.value_and_slopes(*given)
    _, (added, _) = compiled(*given, before, change)

    codes, y = (x.numpy() for x in (large.arrays.factors[0].codes, large.arrays.response))
    eta = large.state.predictor.numpy().astype(float)
    then = eta + change.numpy().astype(float)[codes, :, 0]
    rows = log_density(y, then) - log_density(y, eta)
    exact = np.array([rows[codes == level].sum(0) for level in (0, 1)])
    assert np.abs(exact).max() > 0.3
    np.testing.assert_allclose(added, exact, atol=5e-3)

    def naive(at):
        [density, _] = linear_predictor._value_and_slope(large.layout, large.state, at)
        return tf.math.unsorted_segment_sum(density, large.arrays.factors[0].codes, 2)

    moved = large.state.predictor + linear_predictor.to_rows(large.arrays.factors[0], change)
    compiled = tf.function(naive, jit_compile=True)
    assert np.abs(compiled(moved) - compiled(large.state.predictor) - exact).max() > 1.0


def test_m_step_statistics_at_ten_million_rows_are_those_of_double_precision(large):
    """Information within 1e-6 of itself; gradients within 1e-3 of their own standard deviation."""
    compiled = tf.function(row_sums.regression_sums, jit_compile=True)
    _, found = compiled(large.layout, large.arrays, large.state)
    x, y = (v.numpy().astype(float) for v in (large.arrays.fixed, large.arrays.response))
    p = 1 / (1 + np.exp(-large.state.predictor.numpy().astype(float)))
    gradient = (y[:, np.newaxis] - p).T @ x
    information = x.T @ (x * (p * (1 - p)).mean(1)[:, np.newaxis])
    np.testing.assert_allclose(found.beta_beta, information, rtol=1e-6)
    away = np.abs(found.gradient - gradient) / np.sqrt(np.diag(information))
    assert np.max(away) < 1e-3


def test_gaussian_statistics_at_ten_million_rows_are_those_of_double_precision():
    data, truth = simulate.crossed(LARGE, {"g": (1000, 0.5), "h": (50, 0.3)}, seed=0)
    design = build_design("y ~ x + (1|g) + (1|h)", data)
    layout, array = arrays.on_device(design, CHAINS)
    values, rng = arrays.to_parameters(design, truth), np.random.default_rng(1)
    effects = [tf.constant(rng.normal(0, 0.4, (n, CHAINS, 1)), tf.float32) for n in (1000, 50)]
    state = linear_predictor.at(layout, array, arrays.State(values, effects))
    _, found = tf.function(row_sums.regression_sums, jit_compile=True)(layout, array, state)
    response, predictor = (x.numpy().astype(float) for x in (array.response, state.predictor))
    left = response[:, np.newaxis] - predictor
    products = array.fixed.numpy().astype(float).T @ left.mean(1)
    np.testing.assert_allclose(found.square, np.square(left).sum() / CHAINS, rtol=1e-6)
    sd = np.sqrt(found.square)  # of a product, if the ratings are as the parameters say
    np.testing.assert_allclose(found.products, products, atol=1e-3 * sd)


# Blocks, and shares


def small(family: str, chains: int = 4) -> SimpleNamespace:
    thresholds = {"cumulative": [2.0, 2.7, 3.0, 4.1], "gaussian": None}[family]
    data, truth = simulate.crossed(
        997, {"g": (40, 0.8), "h": (9, 0.5)}, thresholds=thresholds, seed=3
    )
    data["z"] = np.random.default_rng(4).normal(size=len(data))
    truth |= {"z": 0.0, "sd(z|g)": 0.3, "cor(Intercept,z|g)": 0.2}
    formula = "y ~ x + z + (1 + z|g) + (1|h)"
    design = build_design(formula, data, lmm.families.resolve(family))
    layout, array = arrays.on_device(design, chains)
    rng = np.random.default_rng(5)
    effects = [
        tf.constant(rng.normal(0, 0.5, (f.levels, chains, len(f.effects))), tf.float32)
        for f in design.factors
    ]
    values = arrays.to_parameters(design, truth)
    state = linear_predictor.at(layout, array, arrays.State(values, effects))
    return SimpleNamespace(design=design, layout=layout, arrays=array, state=state)


def everything(s: SimpleNamespace, noise: float) -> list[np.ndarray]:
    """The M-step's sums and the certificate's score and information, where effects stay where they
    are, or go anywhere."""
    rng, still = np.random.default_rng(6), as_written(s.layout, s.arrays)
    moving = tf.nest.map_structure(
        lambda x: x + tf.constant(rng.normal(0, noise, x.shape), tf.float32), still
    )
    _, sums = row_sums.regression_sums(s.layout, s.arrays, s.state)
    found = louis.score_and_information(s.layout, s.arrays, s.state, moving)
    return [x.numpy() for x in tf.nest.flatten((sums, found))]


@pytest.mark.parametrize("family", ["gaussian", "cumulative"])
@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("block", [64, 400, 3988])
def test_blocks_add_up_to_the_whole(family, noise, block, monkeypatch):
    """997 rows of 4 chains: blocks that divide them, and blocks that do not."""
    s = small(family)
    whole = everything(s, noise)
    monkeypatch.setattr(row_sums, "BLOCK", block)
    for one, other in zip(whole, everything(s, noise), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-6, atol=1e-5 * np.abs(one).max(initial=0))


@pytest.mark.parametrize("counted", [0.0, 0.7, 1.0])
def test_sums_by_category_are_the_sums_of_each_rows_derivatives(counted):
    s, rng = small("cumulative"), np.random.default_rng(0)
    weight = tf.constant(rng.random(s.layout.rows) < counted, tf.float32)
    given = s.state.rows, s.state.predictor, s.state.parameters.auxiliary
    plain = summed(derivatives_at(s.layout.family, *given), s.arrays.fixed, weight)
    found = s.layout.family.summed(*given, s.arrays.fixed, weight)
    for one, other in zip(plain, found, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5 * np.abs(one).max())


def test_the_order_of_the_rows_changes_no_sum():
    """Rows are put in the order of the largest factor, wherever they come from."""
    data, truth = simulate.crossed(5000, {"g": (40, 0.8), "h": (300, 0.5)}, seed=3)
    found = []
    for rows in (data, data.sample(frac=1.0, random_state=1)):
        design = build_design("y ~ x + (1|g) + (1|h)", rows)
        layout, array = arrays.on_device(design, 2)
        codes = array.factors[1].codes.numpy()
        assert (np.diff(codes) >= 0).all()
        values, rng = arrays.to_parameters(design, truth), np.random.default_rng(5)
        effects = [tf.constant(rng.normal(size=(n, 2, 1)), tf.float32) for n in (40, 300)]
        state = linear_predictor.at(layout, array, arrays.State(values, effects))
        sums = row_sums.regression_sums(layout, array, state)
        levels = [linear_predictor.residuals_by_level(k, array, state.predictor)[1] for k in (0, 1)]
        found.append(
            [x.numpy() for x in tf.nest.flatten((sums[1], levels, array.factors[0].cross))]
        )
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-4)


def test_shares_of_the_levels_add_up():
    """What the M-step and the certificate need of a factor's levels."""
    s = small("gaussian")
    factor_arrays = s.arrays.factors[0]
    scale, u = s.state.parameters.scales[0], s.state.effects[0]
    _, whole = level_sums(factor_arrays, scale, u)
    parts = [
        level_sums(factor_arrays._replace(weights=factor_arrays.weights[part]), scale, u[part])[1]
        for part in (slice(0, 11), slice(11, None))
    ]
    for one, *shares in zip(whole, *parts, strict=True):
        np.testing.assert_allclose(sum(shares), one, rtol=1e-10)
