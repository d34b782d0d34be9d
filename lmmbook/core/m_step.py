"""The M-step by gradient ascent: one Adam step up the complete-data log density.

Chapter 04. As in the TensorFlow Probability tutorial.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf
import tf_keras


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
) -> Callable[[Sequence[tf.Tensor]], None]:
    """A function that makes one Adam step, given effects, a list of ``[chains, levels, columns]``.

    The gradient is that of ``log p(ratings, effects)``, averaged over the chains: by Fisher's
    identity an unbiased estimate of the gradient of ``log p(ratings)`` if the effects are draws
    from their conditional distribution.
    """
    optimizer = tf_keras.optimizers.Adam(learning_rate)
    optimizer.build(variables)

    def m_step(effects: Sequence[tf.Tensor]) -> None:
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(target_log_prob(*effects))
        gradients = gradients_or_raise(loss, variables, tape)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    return m_step
