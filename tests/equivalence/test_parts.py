"""Part by part, the book's engine and the one that users run give the same numbers.

Formula x family x seed: densities, slopes, curvatures, HMC proposals and group moves from one state
with one seed, M-steps, scores and informations. Both compute in single precision, so they agree to
1e-4 of what is natural: a conditional sd, a standard error.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from lmmbook.core import certificate, e_step, m_step, mcem
from lmmbook.core.model import (
    LinearMixedEffectModel,
    data_of,
    features_of,
    parameters_of,
    theta_of,
)
from lmmbook.engine import arrays, driver
from lmmbook.engine.certificate import louis, parametrisation
from lmmbook.engine.e_step import adaptation, block_hmc, group_moves
from lmmbook.engine.iteration import begin
from lmmbook.engine.linear_predictor import (
    at,
    changes_and_slopes,
    curvature_of,
    residuals_by_level,
    to_rows,
    value_and_slopes,
)
from lmmbook.engine.m_step import closed_form, px
from lmmbook.families import Custom, Gaussian, resolve
from lmmbook.formula import build_design
from lmmbook.formula.design import Design
from lmmbook.results.fit import CONVERGED_WITHIN

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

CHAINS = 5  # odd: the halves of the chains differ in size
HEAVY = Custom(lambda loc, scale: tfd.StudentT(4.0, loc, scale), {"scale": tfb.Exp()})
FAMILIES = {
    "gaussian": "gaussian", "known residual": Gaussian(sd=1.0), "bernoulli": "bernoulli",
    "poisson": "poisson", "binomial": "binomial", "cumulative": "cumulative",
    "categorical": "categorical", "custom": HEAVY,
}  # fmt: skip
FORMULAS = {
    "crossed": "{} ~ x + (1|g) + (1|h)",
    "nested": "{} ~ 1 + (1|g/p)",
    "constant within levels": "{} ~ x + age + (1|g) + (1|h)",
}
CASES = [(f, "gaussian", 0) for f in FORMULAS] + [("crossed", f, 1) for f in FAMILIES]
CASES += [("constant within levels", "poisson", 2), ("nested", "cumulative", 3)]


class Both(NamedTuple):
    """One design, parameters and effects, as either engine has them."""

    design: Design
    layout: arrays.Layout
    array: arrays.Arrays
    state: arrays.State
    data: object
    theta: object
    u: list[tf.Tensor]  # [levels, chains]
    eta: tf.Tensor


@cache
def both(formula: str, family: str, seed: int) -> Both:
    rng = np.random.default_rng(seed)
    n = 160
    data = pd.DataFrame({"g": np.resize(np.arange(8), n), "h": rng.integers(0, 5, n)})
    data = data.assign(
        p=rng.integers(0, 3, n), x=rng.normal(size=n), age=rng.normal(size=8)[data.g]
    )
    eta = 0.3 * data["x"] + rng.normal(0, 0.6, 8)[data["g"]] + rng.normal(0, 0.5, 5)[data["h"]]
    data["y"] = {
        "bernoulli": rng.binomial(1, 1 / (1 + np.exp(-eta))),
        "poisson": rng.poisson(np.exp(eta)),
        "binomial": rng.binomial(6, 1 / (1 + np.exp(-eta))),
        "cumulative": np.digitize(eta + rng.logistic(size=n), [-1.0, 0.5]),
        "categorical": np.digitize(eta + rng.logistic(size=n), [-1.0, 0.5]),
    }.get(family, 3.0 + eta + rng.normal(size=n))
    data["n"] = 6
    response = "p(y, n)" if family == "binomial" else "y"
    design = build_design(FORMULAS[formula].format(response), data, resolve(FAMILIES[family]))
    # Somewhere, and not at a maximum.
    beta = rng.normal(0, 0.2, len(design.fixed_names))
    beta += [design.family.start(design.response)[0], *np.zeros(len(beta) - 1)]
    auxiliary = design.family.start(design.response)[1]
    parameters = arrays.Parameters(
        tf.constant(beta, tf.float32),
        [tf.constant([[s]], tf.float32) for s in (0.7, 0.4)],
        tf.constant(auxiliary, tf.float32),
    )
    layout, array = arrays.on_device(design, CHAINS)
    effects = [
        tf.constant(rng.normal(0.2, 0.5, (f.levels, CHAINS, 1)), tf.float32) for f in design.factors
    ]
    ours, theta = data_of(design), theta_of(design, arrays.from_parameters(design, parameters))
    u = [v[..., 0] for v in effects]
    state = arrays.State(
        parameters, effects, [adaptation.longest(f.levels) for f in layout.factors]
    )
    state = begin(layout, array, state, True)
    return Both(design, layout, array, state, ours, theta, u, ours.eta(theta, u))


def close(found, wanted, unit=1.0, tolerance=1e-4):
    unit = np.broadcast_to(np.asarray(unit, float), np.shape(wanted))
    difference = (np.asarray(found, float) - np.asarray(wanted, float)) / unit
    largest = np.abs(difference).max(initial=0.0)
    assert largest < tolerance, largest


def test_what_is_decided_by_a_number_is_decided_by_the_same_number():
    assert certificate.CONVERGED_WITHIN == CONVERGED_WITHIN
    assert m_step.SHRINK == px.SHRINK
    for name in ("MAX_LOG_SD_STEP", "TRUST_RADIUS"):
        assert getattr(mcem, name) == getattr(driver, name)


@pytest.mark.parametrize("case", CASES)
def test_parameters_and_linear_predictors(case):
    b = both(*case)
    named = {k: float(v) for k, v in arrays.from_parameters(b.design, b.state.parameters).items()}
    found = {k: float(v) for k, v in parameters_of(b.design, b.theta).items()}
    assert found == pytest.approx(named, rel=1e-5, abs=1e-6)
    order = arrays.row_order(b.design)
    close(b.eta.numpy()[order], b.state.predictor)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("k", [0, 1])
def test_densities_of_levels_add_up_to_the_joint_density(case, k):
    """Moving one factor's effects changes core's log density as it changes the model's."""
    b = both(*case)
    moved = list(b.u)
    moved[k] = moved[k] + 0.3 * tf.cos(
        tf.reshape(tf.range(tf.size(moved[k]), dtype=tf.float32), moved[k].shape)
    )
    target = e_step.level_log_density(b.data, b.theta, k, b.u[k], b.eta)
    found = tf.reduce_sum(target(moved[k]) - target(b.u[k]), axis=0)
    model = LinearMixedEffectModel(b.design)
    model.assign(parameters_of(b.design, b.theta))
    response = b.design.response if b.design.response.ndim == 1 else b.design.response[:, 0]

    def joint(u):
        by_chain = [tf.transpose(v)[..., tf.newaxis] for v in u]
        given = tf.constant(response, tf.float32)
        return model(features_of(b.design)).log_prob(*by_chain, given)

    close(found, joint(moved) - joint(b.u), tolerance=1e-3)  # of the joint sum few digits are left


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("k", [0, 1])
def test_slopes_of_the_level_densities(case, k):
    b = both(*case)
    target = e_step.level_log_density(b.data, b.theta, k, b.u[k], b.eta)
    moved = b.u[k] + 0.25
    with tf.GradientTape() as tape:
        tape.watch(moved)
        value = target(moved)
    slope = tape.gradient(value, moved)
    precision = tf.exp(-2.0 * b.theta.log_sigma[k])
    sd = 1 / np.sqrt(e_step.curvatures(b.data, b.theta, b.eta)[k] + precision)
    change = tf.fill(b.state.effects[k].shape, 0.25)
    if isinstance(b.design.family, Gaussian):
        predictor = b.state.predictor + to_rows(b.array.factors[k], change)
        likelihood = residuals_by_level(k, b.array, predictor)[1]
        likelihood /= b.state.parameters.residual_sd**2
    else:
        given = b.layout, k, b.array, b.state
        before, _ = value_and_slopes(*given)
        _, (added, likelihood) = changes_and_slopes(*given, before, change)
        prior = -0.5 * precision * (moved**2 - b.u[k] ** 2)
        close(value - target(b.u[k]), added + prior)
    close(slope, likelihood[..., 0] - precision * moved, unit=1 / sd)


@pytest.mark.parametrize("case", CASES)
def test_curvatures(case):
    b = both(*case)
    for k, one in enumerate(e_step.curvatures(b.data, b.theta, b.eta)):
        other = curvature_of(b.layout, k, b.array, b.state)
        close(one, other[..., 0], unit=np.maximum(other[..., 0], 1e-3))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("k", [0, 1])
def test_hmc_makes_the_same_proposals_and_decisions(case, k):
    """From one state with one seed. A decision may differ where it hangs on the last digit."""
    b, seed = both(*case), tf.constant([5, 6 + k])
    theirs, accepted = block_hmc.update(b.layout, k, b.array, b.state, seed)
    own = e_step.curvatures(b.data, b.theta, b.eta)[k]

    @tf.function(
        autograph=False
    )  # in a graph, where u has a history: it must not be differentiated
    def ours(u):
        u = [v + 0.0 for v in u]
        return e_step.update_levels(b.data, b.theta, k, u[k], b.data.eta(b.theta, u), own, seed)

    found, eta, probability = ours(b.u)
    sd = 1 / np.sqrt(own + tf.exp(-2.0 * b.theta.log_sigma[k]))
    close(found, theirs[..., 0], unit=sd, tolerance=5e-4)
    close(probability, tf.reduce_mean(accepted), tolerance=1e-3)
    assert np.mean(np.any(found != b.u[k], axis=1)) >= 0.5  # most levels have moved
    u = list(b.u)
    u[k] = found
    close(eta, b.data.eta(b.theta, u))


@pytest.mark.parametrize("case", CASES)
def test_group_moves(case):
    b = both(*case)
    assert len(b.data.moves) == len(b.layout.group_moves) > 0
    for t, move in enumerate(b.data.moves):
        theirs = group_moves.group_move(
            b.layout, b.array, b.state.parameters, t, b.state.effects, tf.constant([7, t])
        )
        ours = e_step.group_move(b.theta, move, b.u, tf.constant([7, t]))
        for one, other, before in zip(ours, theirs, b.u, strict=True):
            close(one, other[..., 0])
            assert np.abs(one - before).max() > 1e-3
        close(b.data.eta(b.theta, ours), b.eta)  # no rating sees it


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("gain", "expand"), [(1.0, True), (1.0, False), (0.3, True)])
def test_m_steps(case, gain, expand):
    b = both(*case)
    state = closed_form.step(b.layout, b.array, b.state, tf.constant(gain), expand)
    theta, u = m_step.em_step(b.data, b.theta, b.u, b.eta, gain, expand)
    close(theta.beta, state.parameters.beta)
    close(np.exp(theta.log_sigma), [s[0, 0] for s in state.parameters.scales])
    close(theta.auxiliary, state.parameters.auxiliary, tolerance=3e-4)
    for one, other in zip(u, state.effects, strict=True):
        close(one, other[..., 0])
    moved = np.abs(np.concatenate(theta) - np.concatenate(b.theta))
    assert moved.max() > 0.01
    fresh = at(b.layout, b.array, state)  # rows, too, are those of the new parameters
    for one, other in zip(
        (*state.rows, state.predictor), (*fresh.rows, fresh.predictor), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=2e-5)


HELD = {
    "as written": (0.0, 0.0),
    "centred": (1.0, 0.0),
    "non-centred": (0.0, 1.0),
    "both": (0.6, 1.0),
}


# Each parametrisation where derivatives have a closed form and where not, the fullest everywhere.
SCORED = [(case, "both") for case in CASES]
SCORED += [(case, held) for case in CASES[2:4] + CASES[-1:] for held in list(HELD)[:-1]]


@pytest.mark.parametrize(("case", "held"), SCORED)
def test_scores_and_informations(case, held, monkeypatch):
    """In the same parametrisation. To second order the paths differ: the engine's coordinate is
    1 + s where ours is exp(s), and it stretches the effects' mean with them. What that adds to a
    negative Hessian are scores."""
    monkeypatch.setattr("lmmbook.engine.certificate.information.FEW", CHAINS)
    b, (share, a) = both(*case), HELD[held]
    C = [tf.constant(share * b.data.W[0]), tf.zeros_like(b.data.W[1])]
    still = parametrisation.as_written(b.layout, b.array)
    sigma = [scale[0, 0] for scale in b.state.parameters.scales]
    shift = [
        tf.pad(-c / s, [[0, 0], [0, b.layout.family.auxiliary]])[..., tf.newaxis]
        for c, s in zip(C, sigma, strict=True)
    ]

    def engine(shift: list[tf.Tensor], a: float) -> tuple[np.ndarray, np.ndarray]:
        moving = still._replace(
            shift=shift,
            shrinkage=[(1 - a) * x for x in still.shrinkage],
            coarse=(1 - a) * still.coarse,
            follow=tf.constant(a),
        )
        found = louis.score_and_information(b.layout, b.array, b.state, moving)
        return tuple(x.numpy() for x in found)

    theirs, information = engine(shift, a)
    ours, J = certificate.score_and_information(
        b.data, b.theta, b.u, certificate.Parametrisation(C, tf.fill([2], a))
    )
    J, fixed = J.numpy(), b.layout.fixed
    for k in (fixed, fixed + 1):
        information[k, k] -= theirs.mean(0)[k]
    mean = a * (engine(shift, 0.0)[0] - engine(still.shift, 0.0)[0]).mean(0)[:fixed]
    information[:fixed, fixed] += mean
    information[fixed, :fixed] += mean
    # Of the complete data: what one standard error is of. A score is about as large as its root.
    unit = np.sqrt(np.maximum(np.abs(np.diag(J)), 1.0))
    close(ours, theirs, unit=unit, tolerance=1e-3)
    close(J, information, unit=np.outer(unit, unit), tolerance=1e-3)
