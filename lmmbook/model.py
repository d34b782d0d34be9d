"""The model: parameters that train, and the joint distribution that they index.

Chapter 02. ``LinearMixedEffectModel`` holds the parameters; calling it with the features of some
rows gives a TensorFlow Probability joint distribution over the random effects and the ratings of
those rows. It does not know how it is fitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lmmbook.formula import Design

import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

Features = Mapping[str, tf.Tensor]


class LinearMixedEffectModel(tf.Module):
    """``y = fixed @ beta + sum_k u_k[code_k] + residual``, ``u_k ~ Normal(0, sd_k)`` per level.

    Parameters
    ----------
    fixed_names
        Names of the fixed-effect columns, ``[columns]``; the intercept, if any, is ``"Intercept"``.
    levels
        Factor name to number of levels, in the order of the random effects.
    residual_sd
        A positive number fixes the residual standard deviation; ``None`` estimates it.

    Attributes
    ----------
    beta
        `tf.Variable` ``[columns]``.
    sds
        One `tfp.util.TransformedVariable` a factor (a positive scalar; its logarithm trains).
    residual_sd
        A `tfp.util.TransformedVariable`, or the constant it is fixed at.

    Notes
    -----
    A standard deviation receives a gradient only if the distribution still *refers to the variable*
    when its log density is evaluated. ``tfd.Normal(0., sd)`` does: it keeps ``sd`` and reads it on
    use. Arithmetic does not: ``sd * tf.ones(n)`` is a plain tensor, computed once, and training
    never reaches the variable behind it.
    """

    def __init__(
        self,
        fixed_names: Sequence[str],
        levels: Mapping[str, int],
        residual_sd: float | None = 1.0,
    ) -> None:
        super().__init__(name="linear_mixed_effect_model")
        self.fixed_names = tuple(fixed_names)
        self.levels = dict(levels)
        self.beta = tf.Variable(tf.zeros(len(fixed_names)), name="beta")
        self.sds = [_positive(f"sd({name})") for name in levels]
        self.residual_sd = _positive("sd(residual)") if residual_sd is None else residual_sd

    def __call__(self, features: Features) -> tfd.JointDistributionSequential:
        """The joint distribution of the random effects and the ratings of some rows.

        Parameters
        ----------
        features
            As from `features_of`: ``"fixed"`` ``[rows, columns]`` float32, and per factor its codes
            ``[rows]`` int32.

        Returns
        -------
        A joint distribution over ``(u_1, ..., u_K, ratings)`` with ``u_k`` of shape ``[levels]``
        and ratings ``[rows]``. Leading dimensions are chains: ``[chains, levels]`` throughout.
        """
        random_effects = [
            tfd.Sample(tfd.Normal(0.0, sd), sample_shape=n)
            for sd, n in zip(self.sds, self.levels.values(), strict=True)
        ]

        def ratings(*latest_first: tf.Tensor) -> tfd.Distribution:
            loc = self.linear_predictor(latest_first[::-1], features)
            return tfd.Independent(tfd.Normal(loc, self.residual_sd), 1)

        joint = tfd.JointDistributionSequential([*random_effects, ratings])
        joint._to_track = self  # so that joint.trainable_variables lists the parameters
        return joint

    def linear_predictor(self, effects: Sequence[tf.Tensor], features: Features) -> tf.Tensor:
        """``[chains, rows]`` from effects of shape ``[chains, levels]``."""
        terms = [
            tf.gather(u, features[name], axis=-1)
            for u, name in zip(effects, self.levels, strict=True)
        ]
        return tf.linalg.matvec(features["fixed"], self.beta) + tf.add_n(terms)

    def graph(self, features: Features) -> list[tuple[str, tuple[str, ...]]]:
        """The joint distribution's structure: each variable with the variables it depends on."""
        names = [f"u({name})" for name in self.levels]
        resolved = self(features).resolve_graph()
        return [
            (name, tuple(reversed(names[: len(parents)])) if parents else ())
            for name, (_, parents) in zip([*names, "ratings"], resolved, strict=True)
        ]

    def parameters(self) -> dict[str, tf.Tensor]:
        """Name to value, a scalar each, in the order of every table of this package."""
        values = dict(zip(self.fixed_names, tf.unstack(self.beta), strict=True))
        for name, sd in zip(self.levels, self.sds, strict=True):
            values[f"sd({name})"] = tf.convert_to_tensor(sd)
        values["sd(residual)"] = tf.convert_to_tensor(self.residual_sd)
        return values

    def assign(self, parameters: Mapping[str, float | tf.Tensor]) -> None:
        """Set every parameter, by the names that `parameters` uses."""
        self.beta.assign(tf.stack([parameters[name] for name in self.fixed_names]))
        for name, sd in zip(self.levels, self.sds, strict=True):
            sd.assign(parameters[f"sd({name})"])
        if isinstance(self.residual_sd, tfp.util.TransformedVariable):
            self.residual_sd.assign(parameters["sd(residual)"])


def features_of(design: Design) -> dict[str, tf.Tensor]:
    """A design's arrays on the device: what `LinearMixedEffectModel` calls features."""
    features = {f.name: tf.constant(f.codes) for f in design.factors}
    features["fixed"] = tf.constant(design.fixed, tf.float32)
    return features


def _positive(name: str) -> tfp.util.TransformedVariable:
    return tfp.util.TransformedVariable(1.0, tfb.Exp(), name=name)
