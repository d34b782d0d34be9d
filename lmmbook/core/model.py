"""The model: parameters that train, and the joint distribution that they index.

Chapter 02. ``LinearMixedEffectModel`` holds the parameters; calling it with the features of some
rows gives a TensorFlow Probability joint distribution over the random effects and the ratings of
those rows. It does not know how it is fitted. `Data` and `Theta`, at the end, are the same model
with random intercepts only, as plain tensors: what the compiled steps of the next chapters pass on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from lmmbook._tensorflow.processes import check_not_forked
from lmmbook.families.base import Family
from lmmbook.families.binomial import Binomial
from lmmbook.families.gaussian import Gaussian
from lmmbook.formula import covariance
from lmmbook.formula.design import Design
from lmmbook.formula.factors import Factor
from lmmbook.formula.invariances import directions

import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

Tensor = tf.Tensor
Features = Mapping[str, Tensor]


class LinearMixedEffectModel(tf.Module):
    """Ratings scatter around ``offset + X beta + sum_k z_k . u_k[code_k]``, ``u_k`` normal.

    How they scatter is up to the family of the ``design``, of which only names and sizes are used.
    A level's effects are ``[columns]``: one for ``(1|g)``, two for ``(1 + x|g)``. Chapter 02.

    A standard deviation receives a gradient only if the distribution still *refers to the variable*
    when its log density is evaluated. ``tfd.Normal(0., sd)`` does. Arithmetic does not: ``sd *
    tf.ones(n)`` is a plain tensor, computed once, and no gradient reaches the variable behind it.

    Examples
    --------
    >>> from lmmbook.formula import build_design
    >>> data = pd.DataFrame({"y": [1.0, 2.0, 3.0, 5.0], "g": ["a", "b", "b", "a"]})
    >>> design = build_design("y ~ 1 + (1|g)", data)
    >>> model = LinearMixedEffectModel(design)
    >>> list(model.parameters())
    ['Intercept', 'sd(g)', 'sd(residual)']
    >>> effects, ratings = model(features_of(design)).sample(seed=0)
    >>> tuple(effects.shape), tuple(ratings.shape)
    ((2, 1), (4,))
    """

    def __init__(self, design: Design) -> None:
        check_not_forked("LinearMixedEffectModel")
        super().__init__(name="linear_mixed_effect_model")
        self.design, self.family = design, design.family
        self.fixed_names, self.factors = design.fixed_names, design.factors
        self.beta = tf.Variable(tf.zeros(len(self.fixed_names)), name="beta")
        # For each factor and block an sd, or for several columns the root of their covariance.
        self.scales = [[_scale(f, block) for block in f.blocks] for f in self.factors]
        if isinstance(self.family, Gaussian):
            sd = self.family.sd
            self.residual_sd: Any = _positive("sd(residual)") if sd is None else sd
        else:
            known = np.isfinite(design.response).all()  # not of new rows, nor of a loaded fit
            own = self.family.start(design.response)[1] if known else self.family.auxiliary * [0.0]
            self.auxiliary = tf.Variable(np.array(own, np.float32), name="auxiliary")

    def __call__(self, features: Features) -> tfd.JointDistributionSequential:
        """The joint distribution of the random effects and the ratings of some rows.

        ``features`` as from `features_of`. It is over ``(u_1, ..., u_K, ratings)``, with ``u_k`` of
        shape ``[levels, columns]`` and ratings ``[rows]``. Chains come first, ``[chains, levels,
        columns]``, as TensorFlow Probability wants them; in the level-by-level `sweep`, last.
        """
        check_not_forked("LinearMixedEffectModel")
        random_effects = [
            _prior(scales, factor.levels)
            for scales, factor in zip(self.scales, self.factors, strict=True)
        ]

        def ratings(*latest_first: Tensor) -> tfd.Distribution:
            loc = self.linear_predictor(latest_first[::-1], features)
            if isinstance(self.family, Gaussian):
                return tfd.Independent(tfd.Normal(loc, self.residual_sd), 1)
            family = self.family
            if isinstance(family, Binomial):
                family = replace(family, trials=features["trials"])
            return tfd.Independent(family.distribution(loc, self.auxiliary), 1)

        joint = tfd.JointDistributionSequential([*random_effects, ratings])
        joint._to_track = self  # so that joint.trainable_variables lists the parameters
        return joint

    def linear_predictor(self, effects: Sequence[Tensor], features: Features) -> Tensor:
        """``[chains, rows]`` from effects of shape ``[chains, levels, columns]``."""
        terms = [
            tf.reduce_sum(tf.gather(u, features[f.name], axis=-2) * features[f"z({f.name})"], -1)
            for u, f in zip(effects, self.factors, strict=True)
        ]
        fixed = tf.linalg.matvec(features["fixed"], self.beta)
        return features["offset"] + fixed + tf.add_n(terms)

    def graph(self, features: Features) -> list[tuple[str, tuple[str, ...]]]:
        """The joint distribution's structure: each variable with the variables it depends on."""
        names = [f"u({f.name})" for f in self.factors]
        resolved = self(features).resolve_graph()
        return [
            (name, tuple(reversed(names[: len(parents)])) if parents else ())
            for name, (_, parents) in zip([*names, "ratings"], resolved, strict=True)
        ]

    def parameters(self) -> dict[str, float]:
        """Name to value, in the order of every table of this package."""
        matrices = []
        for factor, scales in zip(self.factors, self.scales, strict=True):
            matrix = np.zeros((len(factor.effects),) * 2)
            for block, scale in zip(factor.blocks, scales, strict=True):
                lower = np.atleast_2d(tf.convert_to_tensor(scale).numpy().astype(float))
                matrix[np.ix_(block, block)] = lower @ lower.T
            matrices.append(matrix)
        if isinstance(self.family, Gaussian):
            auxiliary = np.log([float(tf.convert_to_tensor(self.residual_sd))])
        else:
            auxiliary = self.auxiliary.numpy().astype(float)
        beta = self.beta.numpy().astype(float)
        return covariance.name_values(self.design, beta, matrices, auxiliary)

    def assign(self, parameters: Mapping[str, float] | pd.Series) -> None:
        """Set every parameter, by the names that `parameters` uses."""
        values = dict(parameters)
        if isinstance(self.family, Gaussian) and self.family.sd is not None:
            values["sd(residual)"] = self.family.sd  # it stays
        beta, matrices, auxiliary = covariance.split_values(self.design, values)
        self.beta.assign(beta.astype(np.float32))
        for factor, scales, matrix in zip(self.factors, self.scales, matrices, strict=True):
            for block, scale in zip(factor.blocks, scales, strict=True):
                lower = np.linalg.cholesky(matrix[np.ix_(block, block)]).astype(np.float32)
                scale.assign(lower if len(block) > 1 else lower[0, 0])
        if not isinstance(self.family, Gaussian):
            self.auxiliary.assign(auxiliary.astype(np.float32))
        elif self.family.sd is None:
            self.residual_sd.assign(np.float32(values["sd(residual)"]))


def features_of(design: Design) -> dict[str, Tensor]:
    """A design's arrays on the device: what `LinearMixedEffectModel` calls features.

    ``"fixed"`` ``[rows, fixed]``, ``"offset"`` ``[rows]``; per factor its codes ``[rows]`` and, as
    ``"z(name)"``, what multiplies its effects ``[rows, columns]``; of a binomial ``"trials"``.
    """
    features = {f.name: tf.constant(f.codes) for f in design.factors}
    features |= {f"z({f.name})": tf.constant(f.z, tf.float32) for f in design.factors}
    if design.response.ndim == 2:
        features["trials"] = tf.constant(design.response[:, 1], tf.float32)
    return features | {
        "fixed": tf.constant(design.fixed, tf.float32),
        "offset": tf.constant(design.offset, tf.float32),
    }


def _prior(scales: list[tfp.util.TransformedVariable], levels: int) -> tfd.Distribution:
    """The distribution of a factor's effects, ``[levels, columns]``: independent over levels."""
    if len(scales) == 1 and scales[0].shape.rank == 0:
        return tfd.Sample(tfd.Normal(0.0, scales[0]), sample_shape=[levels, 1])
    blocks = [
        tf.linalg.LinearOperatorLowerTriangular(scale)
        if scale.shape.rank
        else tf.linalg.LinearOperatorScaledIdentity(1, scale)
        for scale in scales
    ]
    one_level = tfd.MultivariateNormalLinearOperator(
        scale=tf.linalg.LinearOperatorBlockDiag(blocks)
    )
    return tfd.Sample(one_level, sample_shape=levels)


def _scale(factor: Factor, block: tuple[int, ...]) -> tfp.util.TransformedVariable:
    name = "scale({}|{})".format(",".join(factor.effects[j] for j in block), factor.name)
    if len(block) == 1:
        return _positive(name)
    lower = tfb.FillScaleTriL(diag_bijector=tfb.Exp(), diag_shift=None)
    return tfp.util.TransformedVariable(tf.eye(len(block)), lower, name=name)


def _positive(name: str) -> tfp.util.TransformedVariable:
    return tfp.util.TransformedVariable(1.0, tfb.Exp(), name=name)


class Theta(NamedTuple):
    """The parameters of a model with random intercepts."""

    beta: Tensor  # [fixed]
    log_sigma: Tensor  # [factors], logarithms of the sds of the effects
    auxiliary: Tensor  # [auxiliary], the family's own; of a Gaussian log sd(residual)


@dataclass(frozen=True, eq=False)
class Data:
    """A design with random intercepts, as tensors: ``eta = offset + X beta + sum_k Z_k u_k``.

    Effects are ``[levels, chains]``, one such tensor a factor. No Z is ever built: row i of
    ``Z u`` is ``u[codes[i]]``.
    """

    family: Family
    y: Tensor  # [rows, 1]
    X: Tensor  # [rows, fixed]
    offset: Tensor  # [rows, 1]
    codes: list[Tensor]  # [rows] a factor
    levels: list[int]
    moves: list[directions.Translation]  # directions that no rating sees, between two factors
    freed: list[directions.Freed]  # fixed effects that are constant within a factor's levels

    def to_rows(self, k: int, u: Tensor) -> Tensor:
        """``Z_k u``, ``[rows, ...]`` from ``[levels, ...]``."""
        return tf.gather(u, self.codes[k])

    def to_levels(self, k: int, r: Tensor) -> Tensor:
        """``Z_k' r``, sums over each level's rows: ``[levels, ...]`` from ``[rows, ...]``."""
        return tf.math.unsorted_segment_sum(r, self.codes[k], self.levels[k])

    def eta(self, theta: Theta, u: Sequence[Tensor]) -> Tensor:
        """The linear predictor, ``[rows, chains]``."""
        fixed = self.offset + tf.linalg.matvec(self.X, theta.beta)[:, tf.newaxis]
        return fixed + tf.add_n([self.to_rows(k, u_k) for k, u_k in enumerate(u)])

    def log_density(self, eta: Tensor, auxiliary: Tensor) -> Tensor:
        """``log p(y | u)`` row by row, ``[rows, chains]``, whatever the distribution."""
        return self.family.distribution(eta, auxiliary).log_prob(self.y)


def data_of(design: Design) -> Data:
    """A design's `Data`. Raises ValueError if a factor has more effects than its intercept."""
    slopes = [f.name for f in design.factors if not f.intercept_only]
    if slopes:
        raise ValueError(f"core: expected random intercepts only, got slopes of {slopes}")
    family, y = design.family.given(tf.constant(design.response[:, np.newaxis], tf.float32))
    X, offset = (tf.constant(x, tf.float32) for x in (design.fixed, design.offset[:, np.newaxis]))
    codes, levels = zip(*((tf.constant(f.codes), f.levels) for f in design.factors), strict=True)
    freed = [directions.freed(design, factor) for factor in design.factors]
    moves = directions.translations(design)
    return Data(family, y, X, offset, list(codes), list(levels), moves, freed)


def theta_of(design: Design, parameters: Mapping[str, float] | pd.Series) -> Theta:
    """Named parameters as tensors. Every sd has to be positive."""
    beta, matrices, auxiliary = covariance.split_values(design, parameters)
    log_sigma = 0.5 * np.log([matrix[0, 0] for matrix in matrices])
    return Theta(*(tf.constant(x, tf.float32) for x in (beta, log_sigma, auxiliary)))


def parameters_of(design: Design, theta: Theta) -> dict[str, float]:
    """The inverse: name to value, in the order of every table of this package."""
    beta, log_sigma, auxiliary = (np.asarray(x, float) for x in theta)
    matrices = [np.exp(2 * x).reshape(1, 1) for x in log_sigma]
    return covariance.name_values(design, beta, matrices, auxiliary)
