"""The model: parameters that train, and the joint distribution that they index.

Chapter 02. ``LinearMixedEffectModel``, called with the features of some rows, gives a joint
distribution over the random effects and these rows' ratings. `Data` and `Theta`, at the end, are
the model with random intercepts as plain tensors, which the compiled steps to come pass on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

from lmmbook._tensorflow.processes import check_not_forked
from lmmbook.families.base import Family
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

Tensor: TypeAlias = tf.Tensor
Effects: TypeAlias = Sequence[Tensor]  # one a factor
Features: TypeAlias = Mapping[str, Tensor]
LogProb: TypeAlias = Callable[..., Tensor]
Parameters: TypeAlias = Mapping[str, float] | pd.Series  # by name


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
    >>> design = build_design("y ~ 1 + (1|g)", pd.DataFrame({"y": [1, 2, 4], "g": list("abb")}))
    >>> [len(x) for x in LinearMixedEffectModel(design)(features_of(design)).sample(seed=0)]
    [2, 3]
    """

    def __init__(self, design: Design) -> None:
        check_not_forked("LinearMixedEffectModel")
        super().__init__(name="linear_mixed_effect_model")
        self.design, self.family = design, design.family
        self.factors = design.factors
        self.beta = tf.Variable(tf.zeros(len(design.fixed_names)), name="beta")
        # For each factor and block an sd, or for several columns the root of their covariance.
        self.scales = [[_scale(f, block) for block in f.blocks] for f in self.factors]
        if isinstance(self.family, Gaussian):
            self.residual_sd: Any = self.family.sd or _positive("sd(residual)")
        else:
            known = np.isfinite(design.response).all()  # not of new rows, nor of a loaded fit
            own = self.family.start(design.response)[1] if known else self.family.auxiliary * [0.0]
            self.auxiliary = tf.Variable(np.array(own, np.float32), name="auxiliary")

    def __call__(self, features: Features) -> tfd.JointDistributionSequential:
        """The joint distribution of the random effects and the ratings of some rows.

        It is over ``(u_1, ..., u_K, ratings)``, with ``u_k`` ``[levels, columns]`` and ratings
        ``[rows]``. Chains come first here, ``[chains, levels, columns]``, as TFP wants them.
        """
        check_not_forked("LinearMixedEffectModel")
        both = zip(self.scales, self.factors, strict=True)
        random_effects = [_prior(scales, factor.levels) for scales, factor in both]

        def ratings(*latest_first: Tensor) -> tfd.Distribution:
            loc = self.linear_predictor(latest_first[::-1], features)
            if isinstance(self.family, Gaussian):
                return tfd.Independent(tfd.Normal(loc, self.residual_sd), 1)
            family: Any = self.family
            if "trials" in features:
                family = replace(family, trials=features["trials"])
            return tfd.Independent(family.distribution(loc, self.auxiliary), 1)

        joint = tfd.JointDistributionSequential([*random_effects, ratings])
        joint._to_track = self  # so that joint.trainable_variables lists the parameters
        return joint

    def linear_predictor(self, effects: Effects, features: Features) -> Tensor:
        """``[chains, rows]`` from effects of shape ``[chains, levels, columns]``."""
        terms = [
            tf.reduce_sum(tf.gather(u, features[f.name], axis=-2) * features[f"z({f.name})"], -1)
            for u, f in zip(effects, self.factors, strict=True)
        ]
        return features["offset"] + tf.linalg.matvec(features["fixed"], self.beta) + tf.add_n(terms)

    def parameters(self) -> dict[str, float]:
        """Name to value, in the order of every table of this package."""
        matrices = [np.zeros((len(factor.effects),) * 2) for factor in self.factors]
        for factor, scales, matrix in zip(self.factors, self.scales, matrices, strict=True):
            for block, scale in zip(factor.blocks, scales, strict=True):
                lower = np.atleast_2d(tf.convert_to_tensor(scale).numpy().astype(float))
                matrix[np.ix_(block, block)] = lower @ lower.T
        gaussian = isinstance(self.family, Gaussian)
        own = tf.math.log(tf.reshape(self.residual_sd, [1])) if gaussian else self.auxiliary
        beta, auxiliary = (x.numpy().astype(float) for x in (self.beta, own))
        return covariance.name_values(self.design, beta, matrices, auxiliary)

    def assign(self, parameters: Parameters) -> None:
        """Set parameters, by the names that `parameters` uses. A known residual sd stays."""
        values = self.parameters() | dict(parameters)
        beta, matrices, auxiliary = covariance.split_values(self.design, values)
        self.beta.assign(beta.astype(np.float32))
        for factor, scales, matrix in zip(self.factors, self.scales, matrices, strict=True):
            for block, scale in zip(factor.blocks, scales, strict=True):
                lower = np.linalg.cholesky(matrix[np.ix_(block, block)]).astype(np.float32)
                scale.assign(lower if len(block) > 1 else lower[0, 0])
        if not isinstance(self.family, Gaussian):
            self.auxiliary.assign(auxiliary.astype(np.float32))
        elif self.family.estimated:
            self.residual_sd.assign(np.exp(auxiliary[0]).astype(np.float32))


def features_of(design: Design) -> dict[str, Tensor]:
    """A design's arrays on the device: what `LinearMixedEffectModel` calls features.

    ``"fixed"`` ``[rows, fixed]``, ``"offset"`` ``[rows]``; per factor its codes ``[rows]`` and, as
    ``"z(name)"``, what multiplies its effects ``[rows, columns]``; of a binomial ``"trials"``.
    """
    numbers = {f"z({f.name})": f.z for f in design.factors}
    numbers |= {"fixed": design.fixed, "offset": design.offset}
    if design.response.ndim == 2:
        numbers["trials"] = design.response[:, 1]
    codes = {f.name: tf.constant(f.codes) for f in design.factors}
    return codes | {name: tf.constant(x, tf.float32) for name, x in numbers.items()}


def _prior(scales: list[tfp.util.TransformedVariable], levels: int) -> tfd.Distribution:
    """The distribution of a factor's effects, ``[levels, columns]``: independent over levels."""
    if len(scales) == 1 and scales[0].shape.rank == 0:
        return tfd.Sample(tfd.Normal(0.0, scales[0]), sample_shape=[levels, 1])
    one, several = tf.linalg.LinearOperatorScaledIdentity, tf.linalg.LinearOperatorLowerTriangular
    blocks = [several(scale) if scale.shape.rank else one(1, scale) for scale in scales]
    root = tf.linalg.LinearOperatorBlockDiag(blocks)
    return tfd.Sample(tfd.MultivariateNormalLinearOperator(scale=root), sample_shape=levels)


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

    Effects u are ``[levels, chains]`` a factor. No Z is ever built: row i of Z u is u[codes[i]].
    """

    family: Family
    y: Tensor  # [rows, 1]
    X: Tensor  # [rows, fixed]
    offset: Tensor  # [rows, 1]
    codes: list[Tensor]  # [rows] a factor
    levels: list[int]
    moves: list[directions.Translation]  # directions that no rating sees, between two factors
    W: list[np.ndarray]  # [levels, fixed] a factor: X where it is constant within levels, or zeros

    def to_rows(self, k: int, u: Tensor) -> Tensor:
        """``Z_k u``, ``[rows, ...]`` from ``[levels, ...]``."""
        return tf.gather(u, self.codes[k])

    def to_levels(self, k: int, r: Tensor) -> Tensor:
        """``Z_k' r``, sums over each level's rows: ``[levels, ...]`` from ``[rows, ...]``."""
        return tf.math.unsorted_segment_sum(r, self.codes[k], self.levels[k])

    def eta(self, theta: Theta, u: Effects) -> Tensor:
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
    codes = [tf.constant(f.codes) for f in design.factors]
    levels = [f.levels for f in design.factors]
    W = [np.zeros([n, X.shape[1]], np.float32) for n in levels]
    for factor, W_k in zip(design.factors, W, strict=True):
        freed = directions.freed(design, factor)
        W_k[:, list(freed.fixed)] = freed.weights
    return Data(family, y, X, offset, codes, levels, directions.translations(design), W)


def theta_of(design: Design, parameters: Parameters) -> Theta:
    """Named parameters as tensors. Every sd has to be positive."""
    beta, matrices, auxiliary = covariance.split_values(design, parameters)
    log_sigma = 0.5 * np.log([matrix[0, 0] for matrix in matrices])
    return Theta(*(tf.constant(x, tf.float32) for x in (beta, log_sigma, auxiliary)))


def parameters_of(design: Design, theta: Theta) -> dict[str, float]:
    """The inverse: name to value, in the order of every table of this package."""
    beta, log_sigma, auxiliary = (np.asarray(x, float) for x in theta)
    matrices = [np.exp(2 * x).reshape(1, 1) for x in log_sigma]
    return covariance.name_values(design, beta, matrices, auxiliary)
