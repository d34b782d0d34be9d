"""The M-steps go up: the closed form to the top, Adam along the exact score."""

from __future__ import annotations

from lmmbook import exact, families
from lmmbook.core import m_step
from lmmbook.core.model import LinearMixedEffectModel, features_of
from lmmbook.engine import arrays
from lmmbook.engine.linear_predictor import at
from lmmbook.engine.m_step import closed_form, px
from lmmbook.engine.row_sums import level_sums
from lmmbook.exact import oracle
from lmmbook.exact.marginal import Marginal
from lmmbook.formula import build_design
from lmmbook.formula.design import Design

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from conftest import conditional_draws, dense_conditional

# Away from the maximum, yet near enough that no variance runs into its floor.
OFF = {"Intercept": 2.2, "x": -0.2, "sd(g)": 0.7, "sd(h)": 0.8, "sd(residual)": 1.0}


def make(design: Design, parameters: dict[str, float]):
    model = LinearMixedEffectModel(design)
    model.assign(parameters)
    return model


def target(model: LinearMixedEffectModel, design: Design):
    """log p(ratings, effects), for effects ``[levels, chains, columns]``."""
    joint = model(features_of(design))
    ratings = tf.constant(design.response, tf.float32)
    return lambda *effects: joint.log_prob(
        *(tf.transpose(tf.constant(u), [1, 0, 2]) for u in effects), ratings
    )


def step(
    design: Design,
    start: dict[str, float],
    effects: list[np.ndarray],
    gain: float = 1.0,
    expand: bool = True,
) -> tuple[dict[str, float], list[np.ndarray], np.ndarray]:
    """New parameters, effects, and the linear predictor."""
    layout, array = arrays.on_device(design, effects[0].shape[1])
    parameters = arrays.to_parameters(design, start)
    effects = [tf.constant(u) for u in effects]
    state = at(layout, array, arrays.State(parameters, effects))
    state = closed_form.step(layout, array, state, tf.constant(gain), expand)
    fresh = at(layout, array, state)
    np.testing.assert_allclose(state.predictor, fresh.predictor, atol=2e-5)  # kept up to date
    found = {k: float(v) for k, v in arrays.from_parameters(design, state.parameters).items()}
    return found, [u.numpy() for u in state.effects], state.predictor.numpy()


@pytest.fixture(scope="module")
def draws(tiny_design) -> list[np.ndarray]:
    return conditional_draws(tiny_design, OFF, chains=6, seed=0)


SLOPES = {
    "Intercept": 2.2, "x": -0.2, "sd(g)": 0.9, "sd(x|g)": 0.7, "cor(Intercept,x|g)": 0.3,
    "sd(h)": 0.8, "sd(residual)": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("slopes", [False, True])
def test_without_expansion_no_parameter_is_left_with_a_slope(tiny, slopes):
    """The closed form maximises the mean over chains of log p(ratings, effects)."""
    formula = "y ~ x + (1 + x|g) + (1|h)" if slopes else tiny.formula
    design, start = build_design(formula, tiny.data), SLOPES if slopes else OFF
    effects = conditional_draws(design, start, chains=6, seed=0)
    found, moved, _ = step(design, start, effects, expand=False)
    for before, after in zip(effects, moved, strict=True):
        np.testing.assert_array_equal(before, after)
    model = make(design, found)
    with tf.GradientTape() as tape:
        total = tf.reduce_mean(target(model, design)(*effects))
    slopes_left = tape.gradient(total, model.trainable_variables)
    scale = np.sqrt(design.rows)  # complete-data standard errors are at least 1 / this
    for variable, slope in zip(model.trainable_variables, slopes_left, strict=True):
        assert np.all(np.abs(slope) < 1e-3 * scale), variable.name
    away = make(design, start)
    with tf.GradientTape() as tape:
        total = tf.reduce_mean(target(away, design)(*effects))
    assert max(np.abs(s).max() for s in tape.gradient(total, away.trainable_variables)) > 1


def test_a_residual_sd_that_is_fixed_stays(tiny, draws):
    design = build_design(tiny.formula, tiny.data, families.Gaussian(sd=0.7))
    found, *_ = step(design, OFF | {"sd(residual)": 0.7}, draws)
    assert found["sd(residual)"] == pytest.approx(0.7)


def test_folding_moves_the_mean_of_the_effects_into_the_intercept(tiny_design, draws):
    draws = [draws[0] + 0.5, draws[1] - 0.2]
    plain, *_ = step(tiny_design, OFF, draws, expand=False)
    found, moved, _ = step(tiny_design, OFF, draws)
    means = [np.mean(u, dtype=float) for u in draws]
    assert found["Intercept"] == pytest.approx(plain["Intercept"] + sum(means), rel=1e-5)
    assert found["x"] == pytest.approx(plain["x"], rel=1e-4)
    assert found["sd(residual)"] == pytest.approx(plain["sd(residual)"], rel=1e-6)
    for u, after, mean in zip(draws, moved, means, strict=True):
        np.testing.assert_allclose(after, u - mean, atol=1e-6)


@pytest.mark.parametrize("gain", [1.0, 0.3])
def test_folding_changes_no_linear_predictor(tiny_design, draws, gain):
    draws = [draws[0] + 5.0, draws[1] - 2.0]
    _, unmoved, plain = step(tiny_design, OFF, draws, gain, expand=False)
    _, moved, expanded = step(tiny_design, OFF, draws, gain)
    assert np.abs(moved[0] - unmoved[0]).min() > 1  # they have been moved a good way
    np.testing.assert_allclose(expanded, plain, atol=1e-5)


@pytest.mark.parametrize("chains", [2, 5])
def test_an_odd_number_of_chains_has_halves_too(tiny_design, chains):
    effects = conditional_draws(tiny_design, OFF, chains, seed=1)
    found, moved, _ = step(tiny_design, OFF, effects)
    means = [u.mean(dtype=float) for u in effects]
    for u, after, mean in zip(effects, moved, means, strict=True):
        np.testing.assert_allclose(after, u - mean, atol=1e-5)
    assert found["sd(g)"] > 0


def test_the_gain_is_how_far_to_go(tiny_design, draws):
    """Linear in the fixed effects and in the variances; at zero nothing moves."""
    whole, all_the_way, _ = step(tiny_design, OFF, draws)
    part, some, _ = step(tiny_design, OFF, draws, gain=0.25)
    none, stayed, _ = step(tiny_design, OFF, draws, gain=0.0)
    assert none == pytest.approx(OFF, rel=1e-6)
    for name, start in OFF.items():
        power = 2 if name.startswith("sd(") else 1
        truth = start**power + 0.25 * (whole[name] ** power - start**power)
        assert part[name] ** power == pytest.approx(truth, rel=1e-5)
    for u, same, quarter, full in zip(draws, stayed, some, all_the_way, strict=True):
        np.testing.assert_array_equal(same, u)
        np.testing.assert_allclose(quarter, u + 0.25 * (full - u), atol=1e-6)


def test_a_variance_shrinks_at_most_to_the_floor_in_one_step(tiny_design, draws):
    start = OFF | {"sd(g)": 50.0}
    found, *_ = step(tiny_design, start, draws)
    assert found["sd(g)"] ** 2 == pytest.approx(px.SHRINK * 50.0**2, rel=1e-5)
    half, *_ = step(tiny_design, start, draws, gain=0.5)
    assert half["sd(g)"] ** 2 == pytest.approx(50.0**2 * (1 + px.SHRINK) / 2, rel=1e-5)


def test_without_a_fixed_effect_to_fold_into_nothing_is_expanded(tiny, draws):
    design = build_design("y ~ 0 + x + (1|g) + (1|h)", tiny.data)
    start = {k: v for k, v in OFF.items() if k != "Intercept"}
    shifted = [draws[0] + 3, draws[1]]
    expanded, moved, _ = step(design, start, shifted)
    plain, *_ = step(design, start, shifted, expand=False)
    assert expanded == plain
    np.testing.assert_array_equal(moved[0], shifted[0])


def test_where_a_covariate_is_not_centred_the_regression_is_still_right(tiny_design, draws):
    """Against NumPy's least squares on the mean partial residual."""
    assert abs(tiny_design.fixed[:, 1].mean()) > 0.5
    found, *_ = step(tiny_design, OFF, draws, expand=False)
    shift = sum(u.mean(1)[f.codes, 0] for u, f in zip(draws, tiny_design.factors, strict=True))
    truth, *_ = np.linalg.lstsq(tiny_design.fixed, tiny_design.response - shift, rcond=None)
    np.testing.assert_allclose([found["Intercept"], found["x"]], truth, rtol=1e-4)


# With many exact draws, an M-step is an EM step: what theory says of EM has to hold.

BATCHES, CHAINS = 30, 200


def em_update(design: Design, start: dict[str, float], expand: bool) -> dict[str, float]:
    """The EM step with the expectations worked out; fixed effects, then *variances*."""
    mean, covariance = dense_conditional(design, start)
    z = np.hstack([np.eye(f.levels)[f.codes] for f in design.factors])
    beta, *_ = np.linalg.lstsq(design.fixed, design.response - z @ mean, rcond=None)
    left = design.response - design.fixed @ beta - z @ mean
    new = dict(zip(design.fixed_names, beta, strict=True))
    blocks = np.split(np.arange(len(mean)), np.cumsum([f.levels for f in design.factors])[:-1])
    for factor, block in zip(design.factors, blocks, strict=True):
        shift = mean[block].mean() if expand else 0.0
        second = mean[block] ** 2 + np.diag(covariance)[block]
        new[f"sd({factor.name})"] = second.mean() - shift**2
        new["Intercept"] += shift
    new["sd(residual)"] = (left @ left + np.trace(z @ covariance @ z.T)) / design.rows
    return new


def many_steps(design: Design, start: dict[str, float], expand: bool) -> pd.DataFrame:
    """One M-step from ``start`` for each of many batches of exact draws; variances for sds."""
    rows = []
    for batch in range(BATCHES):
        found, *_ = step(
            design, start, conditional_draws(design, start, CHAINS, batch), 1.0, expand
        )
        rows.append({k: v**2 if k.startswith("sd(") else v for k, v in found.items()})
    return pd.DataFrame(rows)


def test_with_slopes_and_a_covariate_the_exact_maximum_stays_where_it_is():
    """Each column has other covariates here: this is where least squares that forgets the
    correlation of the columns would go wrong."""
    rng = np.random.default_rng(2)
    g = np.repeat(np.arange(20), 8)
    age = rng.normal(size=20)
    data = pd.DataFrame({"g": g, "age": age[g], "x": rng.normal(size=160)})
    u = rng.multivariate_normal([0, 0], [[1.0, 0.5], [0.5, 1.0]], 20) + age[:, None] * [0.8, 0.5]
    data["y"] = u[g, 0] + u[g, 1] * data["x"] + rng.normal(0, 0.7, 160)
    formula = "y ~ age + x + (1 + x|g)"
    table = exact.fit(formula, data).parameters
    assert not table["at_boundary"].any()
    maximum, design = table["estimate"], build_design(formula, data)
    assert set(arrays.on_device(design, 2)[0].factors[0].expanded_fixed) == {0, 1, 2}
    found = many_steps(design, maximum.to_dict(), expand=True)
    mcse = found.std(ddof=1) / np.sqrt(BATCHES)
    is_sd = maximum.index.str.startswith("sd(")
    assert np.all(np.abs(found.mean() - maximum.where(~is_sd, maximum**2)) < 5 * mcse)
    assert np.all(mcse < 0.05)


@pytest.mark.parametrize("expand", [True, False])
def test_with_exact_draws_the_m_step_is_em(tiny_design, expand):
    found = many_steps(tiny_design, OFF, expand)
    mcse = found.std(ddof=1) / np.sqrt(BATCHES)
    truth = pd.Series(em_update(tiny_design, OFF, expand))[found.columns]
    assert np.all(np.abs(found.mean() - truth) < 5 * mcse)
    assert np.all(mcse < 0.02 * np.abs(pd.Series(OFF)))  # close enough to tell


@pytest.mark.parametrize("expand", [True, False])
def test_the_exact_maximum_stays_where_it_is(tiny, tiny_design, expand):
    """A law of EM, expanded or not, that needs no formula of ours."""
    maximum = exact.fit(tiny.formula, tiny.data).parameters["estimate"]
    assert maximum[["sd(g)", "sd(h)"]].min() > 0.2  # neither at its boundary
    found = many_steps(tiny_design, maximum.to_dict(), expand)
    mcse = found.std(ddof=1) / np.sqrt(BATCHES)
    is_sd = maximum.index.str.startswith("sd(")
    assert np.all(np.abs(found.mean() - maximum.where(~is_sd, maximum**2)) < 5 * mcse)


@pytest.mark.parametrize("expand", [True, False])
def test_every_em_step_raises_the_exact_likelihood(tiny, tiny_design, expand):
    parameters, climbed = dict(OFF), []
    before = exact.log_likelihood(tiny.formula, tiny.data, parameters)
    for seed in range(4):
        effects = conditional_draws(tiny_design, parameters, chains=4000, seed=seed)
        parameters, *_ = step(tiny_design, parameters, effects, expand=expand)
        after = exact.log_likelihood(tiny.formula, tiny.data, parameters)
        climbed.append(after - before)
        before = after
    assert min(climbed) > 0
    assert sum(climbed) > 1


def test_expansion_climbs_faster(tiny, tiny_design):
    """What it is for: from an intercept that the effects have absorbed."""
    start = OFF | {"Intercept": 0.0}
    effects = conditional_draws(tiny_design, start, chains=4000, seed=0)
    with_it, without = (
        step(tiny_design, start, effects, expand=expand)[0]["Intercept"] for expand in (True, False)
    )
    best = exact.fit(tiny.formula, tiny.data).parameters["estimate"]["Intercept"]
    assert abs(with_it - best) < 0.5 * abs(without - best)


def test_the_product_of_the_halves_is_unbiased_where_the_square_is_not(tiny_design):
    """What is taken from mean(u^2) for the mean, over many sets of few draws."""
    rng = np.random.default_rng(0)
    layout, array = arrays.on_device(tiny_design, 4)
    mean, products, squares = 0.4, [], []
    for _ in range(1000):
        u = tf.constant(rng.normal(mean, 1.0, (5, 4, 1)), tf.float32)
        # Effects that are 0.7 times as large have a coefficient that is, and the same product.
        scale = tf.constant([[0.7]])
        _, sums = level_sums(array.factors[0], scale, 0.7 * u)
        coefficient, product = px.mean_of(layout.factors[0], 4, scale, sums)
        products.append(float(product[0, 0]))
        squares.append((float(coefficient[0]) / 0.7) ** 2)
    for estimate, unbiased in [(np.array(products), True), (np.array(squares), False)]:
        mcse = estimate.std(ddof=1) / np.sqrt(len(estimate))
        assert (abs(estimate.mean() - mean**2) < 4 * mcse) == unbiased


# Adam


def complete_scores(design: Design, effects: list[np.ndarray]) -> np.ndarray:
    """Gradient of the mean log p(ratings, effects) in ``[beta, log sds]``, as Adam sees it."""
    model = make(design, OFF)
    sds = [*(sd for [sd] in model.scales), model.residual_sd]
    variables = [model.beta, *(sd.trainable_variables[0] for sd in sds)]
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(target(model, design)(*effects))
    gradients = m_step.gradients_or_raise(loss, variables, tape)
    return np.concatenate([np.ravel(g) for g in gradients])


@pytest.fixture(scope="module")
def exact_score(tiny_design) -> np.ndarray:
    """In the fixed effects and log sds."""
    found = Marginal(tiny_design).evaluate(*oracle._unpack(tiny_design, OFF))
    slopes = [
        (o - e).item() * OFF[f"sd({f.name})"] ** 2
        for f, o, e in zip(tiny_design.factors, found.observed, found.expected, strict=True)
    ]
    return np.array([*found.beta_score, *slopes, found.residual_score])


def test_fishers_identity(tiny_design, exact_score):
    """Averaged over exact draws, the complete-data score is the score of the likelihood."""
    scores = np.array(
        [
            complete_scores(tiny_design, conditional_draws(tiny_design, OFF, CHAINS, seed))
            for seed in range(BATCHES)
        ]
    )
    mcse = scores.std(0, ddof=1) / np.sqrt(BATCHES)
    assert np.all(np.abs(scores.mean(0) - exact_score) < 5 * mcse)
    assert np.all(np.abs(exact_score) > 5 * mcse)  # so that the test below is about signs, not luck


def test_adam_goes_up_the_exact_score(tiny, tiny_design, exact_score):
    model = make(tiny_design, OFF)
    variables = model.trainable_variables
    update = m_step.adam_m_step(target(model, tiny_design), variables, learning_rate=0.01)
    update(conditional_draws(tiny_design, OFF, 4000, seed=1))
    found = model.parameters()
    change = [np.log(found[k] / OFF[k]) if k.startswith("sd(") else found[k] - OFF[k] for k in OFF]
    np.testing.assert_array_equal(np.sign(change), np.sign(exact_score))
    np.testing.assert_allclose(np.abs(change), 0.01, rtol=0.02)  # Adam's first step: its rate
    better, worse = (exact.log_likelihood(tiny.formula, tiny.data, p) for p in (found, OFF))
    assert better > worse


def test_a_variable_outside_the_loss_is_named():
    used, cut = tf.Variable(1.0, name="used"), tf.Variable(1.0, name="forgotten")
    with tf.GradientTape() as tape:
        loss = used**2
    with pytest.raises(ValueError, match=r"None for .*forgotten") as caught:
        m_step.gradients_or_raise(loss, [used, cut], tape)
    assert "'used" not in str(caught.value)
