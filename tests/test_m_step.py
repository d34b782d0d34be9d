"""The M-steps go up: the closed form to the top, Adam along the exact score."""

from __future__ import annotations

from lmmbook import exact, m_step
from lmmbook.formula import Design, build_design
from lmmbook.model import LinearMixedEffectModel, features_of

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from conftest import conditional_draws, dense_conditional

# Away from the maximum, yet near enough that no variance runs into its floor.
OFF = {"Intercept": 2.2, "x": -0.2, "sd(g)": 0.7, "sd(h)": 0.8, "sd(residual)": 1.0}


def make(design: Design, parameters: dict[str, float], residual_sd: float | None = None):
    levels = {f.name: f.levels for f in design.factors}
    model = LinearMixedEffectModel(design.fixed_names, levels, residual_sd)
    model.assign(parameters)
    return model


def target(model: LinearMixedEffectModel, design: Design):
    joint = model(features_of(design))
    ratings = tf.constant(design.response, tf.float32)
    return lambda *effects: joint.log_prob(*effects, ratings)


def values(model: LinearMixedEffectModel) -> dict[str, float]:
    return {name: float(value) for name, value in model.parameters().items()}


def step(
    design: Design,
    start: dict[str, float],
    effects: list[np.ndarray],
    gain: float = 1.0,
    location_expansion: bool = True,
    residual_sd: float | None = None,
) -> tuple[dict[str, float], list[np.ndarray], LinearMixedEffectModel]:
    model = make(design, start, residual_sd)
    update = m_step.closed_form_m_step(model, design, features_of(design), location_expansion)
    moved = update([tf.constant(u) for u in effects], tf.constant(gain))
    return values(model), [np.asarray(u) for u in moved], model


@pytest.fixture(scope="module")
def draws(tiny_design) -> list[np.ndarray]:
    return conditional_draws(tiny_design, OFF, chains=6, seed=0)


@pytest.mark.parametrize("residual_sd", [None, 1.0])
def test_without_expansion_no_parameter_is_left_with_a_slope(tiny_design, draws, residual_sd):
    """The closed form maximises the mean over chains of log p(ratings, effects)."""
    found, moved, model = step(
        tiny_design, OFF, draws, location_expansion=False, residual_sd=residual_sd
    )
    assert all(abs(found[k] - OFF[k]) > 0.01 for k in found if k != "sd(residual)")
    for before, after in zip(draws, moved, strict=True):
        np.testing.assert_array_equal(before, after)
    with tf.GradientTape() as tape:
        total = tf.reduce_mean(target(model, tiny_design)(*draws))
    slopes = tape.gradient(total, model.trainable_variables)
    curvatures = {
        "beta": np.sum(tiny_design.fixed**2, 0) / found["sd(residual)"] ** 2,
        "sd(g)": 2 * 5,
        "sd(h)": 2 * 4,
        "sd(residual)": 2 * tiny_design.rows,
    }
    for variable, slope in zip(model.trainable_variables, slopes, strict=True):
        # In complete-data standard errors; float32 leaves some 1e-5.
        (name,) = [name for name in curvatures if name in variable.name]
        assert np.all(np.abs(slope) / np.sqrt(curvatures[name]) < 1e-3), name


def test_folding_moves_the_mean_of_the_effects_into_the_intercept(tiny_design, draws):
    draws = [draws[0] + 0.5, draws[1] - 0.2]
    plain, *_ = step(tiny_design, OFF, draws, location_expansion=False)
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
    features = features_of(tiny_design)
    _, unmoved, plain = step(tiny_design, OFF, draws, gain, location_expansion=False)
    _, moved, expanded = step(tiny_design, OFF, draws, gain)
    assert np.abs(moved[0] - unmoved[0]).min() > 1  # they have been moved a good way
    np.testing.assert_allclose(
        expanded.linear_predictor(moved, features),
        plain.linear_predictor(unmoved, features),
        atol=1e-5,
    )


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
    assert found["sd(g)"] ** 2 == pytest.approx(m_step.VARIANCE_FLOOR * 50.0**2, rel=1e-5)
    half, *_ = step(tiny_design, start, draws, gain=0.5)
    assert half["sd(g)"] ** 2 == pytest.approx(50.0**2 * (1 + m_step.VARIANCE_FLOOR) / 2, rel=1e-5)


def test_a_negative_variance_estimate_leaves_a_positive_sd(tiny_design):
    """Both halves of the chains agree on a mean and scatter less: mean(u^2) - a b may be < 0."""
    effects = [np.full((2, f.levels), 2.0, np.float32) for f in tiny_design.factors]
    effects[0][0], effects[0][1] = 2.1, 2.3
    found, *_ = step(tiny_design, OFF, effects)
    assert found["sd(g)"] == pytest.approx(OFF["sd(g)"] * np.sqrt(m_step.VARIANCE_FLOOR), rel=1e-5)


def test_a_residual_sd_that_is_fixed_stays(tiny_design, draws):
    found, *_ = step(tiny_design, OFF, draws, residual_sd=0.7)
    assert found["sd(residual)"] == pytest.approx(0.7)


def test_without_an_intercept_nothing_is_expanded(tiny, tiny_design, draws):
    """Not even beside a column that could play an intercept's part."""
    data = tiny.data.assign(one=1.0)
    design = build_design("y ~ 0 + one + x + (1|g) + (1|h)", data)
    start = {("one" if k == "Intercept" else k): v for k, v in OFF.items()}
    shifted = [draws[0] + 3, draws[1]]
    expanded, moved, _ = step(design, start, shifted)
    plain, *_ = step(design, start, shifted, location_expansion=False)
    assert expanded == plain
    np.testing.assert_array_equal(moved[0], shifted[0])


def test_where_a_covariate_is_not_centred_the_regression_is_still_right(tiny_design, draws):
    """Against NumPy's least squares on the mean partial residual."""
    assert abs(tiny_design.fixed[:, 1].mean()) > 0.5
    found, *_ = step(tiny_design, OFF, draws, location_expansion=False)
    shift = sum(u.mean(0)[f.codes] for u, f in zip(draws, tiny_design.factors, strict=True))
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
    model = make(design, start)
    update = m_step.closed_form_m_step(model, design, features_of(design), expand)
    rows = []
    for batch in range(BATCHES):
        model.assign(start)
        update(
            [tf.constant(u) for u in conditional_draws(design, start, CHAINS, batch)],
            tf.constant(1.0),
        )
        rows.append({k: v**2 if k.startswith("sd(") else v for k, v in values(model).items()})
    return pd.DataFrame(rows)


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
        parameters, *_ = step(tiny_design, parameters, effects, location_expansion=expand)
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
        step(tiny_design, start, effects, location_expansion=expand)[0]["Intercept"]
        for expand in (True, False)
    )
    best = exact.fit(tiny.formula, tiny.data).parameters["estimate"]["Intercept"]
    assert abs(with_it - best) < 0.5 * abs(without - best)


def test_the_product_of_the_halves_is_unbiased_where_the_square_is_not():
    rng = np.random.default_rng(0)
    mean, repeats, chains, levels = 0.4, 2000, 4, 5
    u = tf.constant(rng.normal(mean, 1.0, (repeats, chains, levels)), tf.float32)
    centres, products = (np.array(v) for v in zip(*map(m_step._mean_and_square, u), strict=True))
    np.testing.assert_allclose(centres, np.mean(u, axis=(1, 2)), atol=1e-6)
    for estimate, unbiased in [(products, True), (centres**2, False)]:
        mcse = estimate.std(ddof=1) / np.sqrt(repeats)
        assert (abs(estimate.mean() - mean**2) < 4 * mcse) == unbiased


# Adam


def complete_scores(design: Design, effects: list[np.ndarray]) -> np.ndarray:
    """Gradient of the mean log p(ratings, effects) in ``[beta, log sds]``, as Adam sees it."""
    model = make(design, OFF)
    variables = [model.beta, *(sd.trainable_variables[0] for sd in [*model.sds, model.residual_sd])]
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(target(model, design)(*effects))
    gradients = m_step.gradients_or_raise(loss, variables, tape)
    return np.concatenate([np.ravel(g) for g in gradients])


@pytest.fixture(scope="module")
def exact_score(tiny_design) -> np.ndarray:
    marginal = exact._Marginal(tiny_design)
    return marginal.evaluate(*marginal.unpack(OFF))[1]


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
    effects = [tf.constant(u) for u in conditional_draws(tiny_design, OFF, 4000, seed=1)]
    returned = update(effects, tf.constant(1.0))
    found = values(model)
    change = [np.log(found[k] / OFF[k]) if k.startswith("sd(") else found[k] - OFF[k] for k in OFF]
    np.testing.assert_array_equal(np.sign(change), np.sign(exact_score))
    np.testing.assert_allclose(np.abs(change), 0.01, rtol=0.02)  # Adam's first step: its rate
    for u, same in zip(effects, returned, strict=True):
        np.testing.assert_array_equal(u, same)
    better, worse = (exact.log_likelihood(tiny.formula, tiny.data, p) for p in (found, OFF))
    assert better > worse


def test_a_variable_outside_the_loss_is_named():
    used, cut = tf.Variable(1.0, name="used"), tf.Variable(1.0, name="forgotten")
    with tf.GradientTape() as tape:
        loss = used**2
    with pytest.raises(ValueError, match=r"None for .*forgotten") as caught:
        m_step.gradients_or_raise(loss, [used, cut], tape)
    assert "'used" not in str(caught.value)
