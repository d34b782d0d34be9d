"""The M-step: better parameters, given draws of the random effects.

Chapter 04. Two ways: one Adam step up the gradient of the complete-data log density, as in the
TensorFlow Probability tutorial, for any likelihood; and the Gaussian maximum in closed form, with
location expansion (PX-EM: Liu, Rubin & Wu 1998).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lmmbook.formula import Design
from lmmbook.model import Features, LinearMixedEffectModel

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras

Effects = Sequence[tf.Tensor]

VARIANCE_FLOOR = 0.25  # a variance shrinks at most to this fraction of itself in one M-step


def gradients_or_raise(
    loss: tf.Tensor, variables: Sequence[tf.Variable], tape: tf.GradientTape
) -> list[tf.Tensor]:
    """Gradients of ``loss``; a variable that receives none is an error, not a warning.

    Raises
    ------
    ValueError
        If a gradient is ``None``: the loss does not depend on that variable, so it would never
        train.
    """
    gradients = tape.gradient(loss, variables)
    cut = [v.name for v, g in zip(variables, gradients, strict=True) if g is None]
    if cut:
        raise ValueError(
            f"M-step: expected a gradient for every parameter, got None for {cut}; was the joint "
            "distribution built from the variable's value instead of the variable?"
        )
    return gradients


def adam_m_step(
    target_log_prob: Callable[..., tf.Tensor],
    variables: Sequence[tf.Variable],
    learning_rate: float = 0.01,
) -> Callable[..., list[tf.Tensor]]:
    """A function that takes effects, a list of ``[chains, levels]``, and makes one Adam step.

    It returns the effects as they came, and needs no ``gain``: Adam has its learning rate.

    The gradient is that of ``log p(ratings, effects)``, averaged over the chains: by Fisher's
    identity an unbiased estimate of the gradient of ``log p(ratings)`` if the effects are draws
    from their conditional distribution.
    """
    optimizer = tf_keras.optimizers.Adam(learning_rate)
    optimizer.build(variables)

    def m_step(effects: Effects, gain: tf.Tensor | None = None) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(target_log_prob(*effects))
        gradients = gradients_or_raise(loss, variables, tape)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return list(effects)

    return m_step


def closed_form_m_step(
    model: LinearMixedEffectModel,
    design: Design,
    features: Features,
    location_expansion: bool = True,
) -> Callable[[Effects, tf.Tensor], list[tf.Tensor]]:
    """A function ``(effects, gain) -> effects`` that updates the model's parameters in place.

    ``gain`` in 0 to 1 is how far to go towards the maximum: 1 is EM, smaller values average over
    iterations (stochastic approximation).

    With location expansion each factor's effects may have a mean ``mu_k`` during the M-step. It is
    then folded away: into the intercept, and out of the effects. No linear predictor changes, so
    the effects stay draws from where they were. Without it, or in a model that has no intercept to
    fold into, this is plain EM.
    """
    x = design.fixed
    solver = tf.constant(np.linalg.solve(x.T @ x, x.T), tf.float32)  # [columns, rows]
    ratings = tf.constant(design.response, tf.float32)
    expand = location_expansion and "Intercept" in model.fixed_names
    intercept = tf.constant([float(name == "Intercept") for name in model.fixed_names])

    def m_step(effects: Effects, gain: tf.Tensor) -> list[tf.Tensor]:
        # Regress on what is left when the current prediction is taken out: small numbers keep
        # float32's digits.
        left = ratings - model.linear_predictor(effects, features)  # [chains, rows]
        change = tf.linalg.matvec(solver, tf.reduce_mean(left, 0))
        left -= tf.linalg.matvec(features["fixed"], change)
        if isinstance(model.residual_sd, tfp.util.TransformedVariable):
            _move(model.residual_sd, tf.reduce_mean(tf.square(left)), gain)

        moved = []
        for sd, u in zip(model.sds, effects, strict=True):
            mean, mean_squared = _mean_and_square(u) if expand else (0.0, 0.0)
            _move(sd, tf.reduce_mean(tf.square(u)) - mean_squared, gain)
            change += intercept * mean
            moved.append(u - gain * mean)
        model.beta.assign_add(gain * change)
        return moved

    return m_step


def _mean_and_square(u: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The mean over levels and chains, and an unbiased estimate of the square of its expectation.

    The square of a noisy mean is too large by the noise's variance, which would pull small
    standard deviations to zero. The means of the two halves of the chains err independently, so
    their product has the right expectation.
    """
    first, second = tf.split(u, 2, axis=0)
    a, b = tf.reduce_mean(first), tf.reduce_mean(second)
    return (a + b) / 2, a * b


def _move(sd: tfp.util.TransformedVariable, variance: tf.Tensor, gain: tf.Tensor) -> None:
    """Move the *variance* the fraction ``gain`` of the way: it, and not the sd, is an average."""
    old = tf.square(sd)
    # From few levels and chains the estimate can come out near zero by accident, and EM climbs
    # back slowly from there. So a variance shrinks at most by a factor in one step.
    new = tf.maximum(variance, VARIANCE_FLOOR * old)
    sd.assign(tf.sqrt(old + gain * (new - old)))
