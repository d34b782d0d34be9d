"""The joint distribution is the one written in the formula, and every parameter of it trains."""

from __future__ import annotations

from dataclasses import replace

from lmmbook.core import m_step
from lmmbook.core.model import LinearMixedEffectModel, features_of
from lmmbook.families import Gaussian
from lmmbook.formula import build_design
from lmmbook.formula.covariance import parameter_names, to_matrix
from lmmbook.formula.design import Design

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats
from tensorflow_probability import distributions as tfd

CHAINS = 3


def make(design: Design, truth: dict[str, float], residual_sd: float | None):
    model = LinearMixedEffectModel(replace(design, family=Gaussian(residual_sd)))
    model.assign(truth)
    return model


def written_out(
    design: Design, parameters: dict[str, float], effects: list[np.ndarray]
) -> np.ndarray:
    """log p(ratings, effects) by SciPy in float64, ``[chains]``."""
    beta = [parameters[name] for name in design.fixed_names]
    loc = np.tile(design.fixed @ beta, (len(effects[0]), 1))
    total = np.zeros(len(effects[0]))
    for factor, u in zip(design.factors, effects, strict=True):
        prior = stats.multivariate_normal(cov=to_matrix(factor, parameters))
        total += prior.logpdf(u).reshape(u.shape[:2]).sum(1)
        loc += (u[:, factor.codes] * factor.z).sum(-1)
    return total + stats.norm.logpdf(design.response, loc, parameters["sd(residual)"]).sum(1)


@pytest.fixture(scope="module")
def effects(tiny_design) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(CHAINS, f.levels, 1)).astype(np.float32) for f in tiny_design.factors]


def log_prob(model, design: Design, effects: list[np.ndarray]) -> tf.Tensor:
    joint = model(features_of(design))
    return joint.log_prob(*map(tf.constant, effects), tf.constant(design.response, tf.float32))


@pytest.mark.parametrize("residual_sd", [None, 0.7])
def test_log_prob_is_the_written_out_density(tiny, tiny_design, effects, residual_sd):
    truth = tiny.truth | ({} if residual_sd is None else {"sd(residual)": residual_sd})
    found = log_prob(make(tiny_design, tiny.truth, residual_sd), tiny_design, effects)
    assert found.shape == (CHAINS,)
    np.testing.assert_allclose(found, written_out(tiny_design, truth, effects), rtol=1e-5)


def test_a_fixed_residual_sd_is_no_parameter(tiny, tiny_design):
    fixed, free = (make(tiny_design, tiny.truth, sd) for sd in (0.7, None))
    assert float(fixed.parameters()["sd(residual)"]) == pytest.approx(0.7)  # assign leaves it
    assert float(free.parameters()["sd(residual)"]) == pytest.approx(0.8)
    assert len(free.trainable_variables) == len(fixed.trainable_variables) + 1


@pytest.mark.parametrize("residual_sd", [None, 0.7])
def test_the_joint_distribution_lists_all_parameters_and_only_them(tiny_design, residual_sd):
    model = make(tiny_design, dict.fromkeys(_names(tiny_design), 1.0), residual_sd)
    expected = [model.beta, *(sd.trainable_variables[0] for [sd] in model.scales)]
    if residual_sd is None:
        expected += model.residual_sd.trainable_variables
    joint = model(features_of(tiny_design))
    assert {v.ref() for v in joint.trainable_variables} == {v.ref() for v in expected}
    assert {v.ref() for v in joint.variables} == {v.ref() for v in expected}
    assert len(joint.trainable_variables) == len(expected)


def _names(design: Design) -> list[str]:
    return [*design.fixed_names, *(f"sd({f.name})" for f in design.factors), "sd(residual)"]


@pytest.mark.parametrize("residual_sd", [None, 0.7])
def test_every_gradient_is_that_of_finite_differences(tiny, tiny_design, effects, residual_sd):
    truth = tiny.truth | ({} if residual_sd is None else {"sd(residual)": residual_sd})
    model = make(tiny_design, tiny.truth, residual_sd)
    variables = [model.beta, *(sd.trainable_variables[0] for [sd] in model.scales)]
    names = [[*tiny_design.fixed_names], *([f"sd({f.name})"] for f in tiny_design.factors)]
    if residual_sd is None:
        variables += model.residual_sd.trainable_variables
        names += [["sd(residual)"]]
    joint = model(features_of(tiny_design))  # outside the tape, where the tutorial's fault shows
    ratings = tf.constant(tiny_design.response, tf.float32)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(joint.log_prob(*effects, ratings))
    gradients = m_step.gradients_or_raise(total, variables, tape)

    def slope(name: str) -> float:
        def value(step: float) -> float:  # an sd moves on the log scale, as its variable does
            old = truth[name]
            new = old * np.exp(step) if name.startswith("sd(") else old + step
            return written_out(tiny_design, truth | {name: new}, effects).sum()

        return (value(1e-4) - value(-1e-4)) / 2e-4

    for group, gradient in zip(names, gradients, strict=True):
        np.testing.assert_allclose(np.ravel(gradient), [slope(n) for n in group], rtol=1e-4)


def published_joint(model: LinearMixedEffectModel, features) -> tfd.Distribution:
    """The tutorial's fault: ``sd * ones`` is computed here, once, and forgets its variable."""
    random_effects = [
        tfd.Independent(tfd.Normal(0.0, sd * tf.ones([factor.levels, 1])), 2)
        for [sd], factor in zip(model.scales, model.design.factors, strict=True)
    ]

    def ratings(*latest_first):
        loc = model.linear_predictor(latest_first[::-1], features)
        return tfd.Independent(tfd.Normal(loc, model.residual_sd), 1)

    return tfd.JointDistributionSequential([*random_effects, ratings])


def test_the_published_model_has_the_same_density_and_never_trains(tiny, tiny_design, effects):
    model = make(tiny_design, tiny.truth, 0.7)
    features = features_of(tiny_design)
    ratings = tf.constant(tiny_design.response, tf.float32)
    published = published_joint(model, features)  # outside the tape, as in the tutorial
    variables = model.trainable_variables
    with tf.GradientTape() as tape:
        values = published.log_prob(*effects, ratings)
        loss = -tf.reduce_mean(values)
    # Nothing in its value gives it away ...
    np.testing.assert_allclose(values, model(features).log_prob(*effects, ratings), rtol=1e-6)
    # ... only its gradient.
    with pytest.raises(ValueError, match="None") as caught:
        m_step.gradients_or_raise(loss, variables, tape)
    for name in ("scale(Intercept|g)", "scale(Intercept|h)"):
        assert name in str(caught.value)
    assert "beta" not in str(caught.value)


def test_adam_refuses_the_published_model(tiny, tiny_design, effects):
    model = make(tiny_design, tiny.truth, 0.7)
    ratings = tf.constant(tiny_design.response, tf.float32)
    published = published_joint(model, features_of(tiny_design))
    step = m_step.adam_m_step(lambda *u: published.log_prob(*u, ratings), model.trainable_variables)
    with pytest.raises(ValueError, match=r"got None for .*scale\(Intercept\|g\)"):
        step(effects)
    np.testing.assert_allclose(model.beta, [3.0, -0.5])  # and it has moved nothing


def test_the_joint_distribution_follows_its_parameters(tiny, tiny_design, effects):
    """Built once, it reads the parameters when it is used."""
    model = make(tiny_design, tiny.truth, None)
    joint = model(features_of(tiny_design))
    ratings = tf.constant(tiny_design.response, tf.float32)
    other = {name: value + 0.3 for name, value in tiny.truth.items()}
    model.assign(other)
    truth = written_out(tiny_design, other, effects)
    np.testing.assert_allclose(joint.log_prob(*effects, ratings), truth, rtol=1e-5)


@pytest.mark.parametrize("residual_sd", [None, 0.8])
def test_assign_and_parameters_are_inverse(tiny, tiny_design, residual_sd):
    model = make(tiny_design, tiny.truth, residual_sd)
    found = model.parameters()
    assert list(found) == _names(tiny_design)
    assert {k: float(v) for k, v in found.items()} == pytest.approx(tiny.truth, rel=1e-6)
    assert all(isinstance(v, float) for v in found.values())
    model.assign(pd.Series(found))
    assert {k: float(v) for k, v in model.parameters().items()} == pytest.approx(tiny.truth)


def test_the_graph_is_that_of_the_model(tiny_design):
    model = make(tiny_design, dict.fromkeys(_names(tiny_design), 1.0), None)
    joint = model(features_of(tiny_design))
    names = ["u(g)", "u(h)", "ratings"]
    parents = [parents for _, parents in joint.resolve_graph()]  # all that came before, or none
    structure = [(name, names[: len(p)]) for name, p in zip(names, parents, strict=True)]
    assert [(name, set(parents)) for name, parents in structure] == [
        ("u(g)", set()),
        ("u(h)", set()),
        ("ratings", {"u(g)", "u(h)"}),
    ]


def test_samples_have_their_shapes_and_their_spread(tiny, tiny_design):
    n = 4000
    model = make(tiny_design, tiny.truth, None)
    joint = model(features_of(tiny_design))
    *effects, ratings = joint.sample(n, seed=tfp.random.sanitize_seed(0))
    assert [u.shape for u in effects] == [(n, f.levels, 1) for f in tiny_design.factors]
    assert ratings.shape == (n, tiny_design.rows)
    *one, rating = joint.sample(seed=tfp.random.sanitize_seed(1))
    assert [u.shape for u in one] == [(f.levels, 1) for f in tiny_design.factors]
    assert rating.shape == (tiny_design.rows,)

    loc = model.linear_predictor(effects, features_of(tiny_design))
    parts = {"sd(g)": effects[0], "sd(h)": effects[1], "sd(residual)": ratings - loc}
    for name, draws in parts.items():
        size, sd = np.size(draws), tiny.truth[name]
        assert abs(np.mean(draws)) < 5 * sd / np.sqrt(size)
        assert abs(np.std(draws) - sd) < 5 * sd / np.sqrt(2 * size)


@pytest.fixture(scope="module", params=["(1 + x|g)", "(1 + x||g)", "(0 + x|g)"])
def with_slopes(request, tiny) -> Design:
    return build_design(f"y ~ x + {request.param} + (1|h)", tiny.data)


def test_with_slopes_density_and_gradients_are_right(with_slopes):
    design = with_slopes
    values = (3.0, -0.5, 0.9, 0.6, 0.4, 0.5, 0.8)
    truth = {
        name: 0.4 if name.startswith("cor(") else value
        for name, value in zip(parameter_names(design), values, strict=False)
    }
    model = LinearMixedEffectModel(design)
    joint = model(features_of(design))  # built before the parameters are set
    model.assign(truth)
    assert model.parameters() == pytest.approx(truth, rel=1e-5)
    rng = np.random.default_rng(1)
    effects = [
        rng.normal(size=(CHAINS, f.levels, len(f.effects))).astype(np.float32)
        for f in design.factors
    ]
    ratings = tf.constant(design.response, tf.float32)
    np.testing.assert_allclose(
        joint.log_prob(*effects, ratings), written_out(design, truth, effects), rtol=1e-5
    )
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(joint.log_prob(*effects, ratings))
    variables = model.trainable_variables
    gradients = m_step.gradients_or_raise(total, variables, tape)
    for variable, gradient in zip(variables, gradients, strict=True):
        start = variable.numpy()
        for index in np.ndindex(start.shape):
            found = []
            for sign in (1, -1):
                moved = np.array(start)
                moved[index] += sign * 1e-2
                variable.assign(moved)
                found.append(written_out(design, model.parameters(), effects).sum())
            variable.assign(start)
            slope = (found[0] - found[1]) / 2e-2
            assert gradient.numpy()[index] == pytest.approx(slope, rel=5e-3, abs=0.05)


def test_a_model_starts_at_no_effect_and_sds_of_one(crossed):
    """The sds as the tutorial's do."""
    model = LinearMixedEffectModel(build_design("y ~ x + (1 + x|g) + (1|h)", crossed.data))
    nought = ["Intercept", "x", "cor(Intercept,x|g)"]
    assert model.parameters() == {
        name: 0.0 if name in nought else 1.0 for name in parameter_names(model.design)
    }


def test_an_offset_is_part_of_the_predictor(tiny):
    data = tiny.data.assign(known=np.linspace(-1, 1, len(tiny.data)))
    plain, with_offset = (
        build_design(formula, data) for formula in (tiny.formula, tiny.formula + " + offset(known)")
    )
    u = [tf.zeros([f.levels, 1]) for f in plain.factors]
    without, found = (
        make(design, tiny.truth, None).linear_predictor(u, features_of(design))
        for design in (plain, with_offset)
    )
    np.testing.assert_allclose(found - without, data["known"], atol=1e-6)
