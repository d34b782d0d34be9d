"""Before the random effects: the regression where a fit starts.

Chapters 06 and 09. Newton steps up the log-likelihood of fixed effects and auxiliary parameters, in
double precision: what R's ``glm`` and ``clm`` do.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lmmbook._numerics import uphill
from lmmbook.families.gaussian import Gaussian
from lmmbook.formula import covariance
from lmmbook.formula.design import Design
from lmmbook.formula.invariances import directions

import numpy as np
import tensorflow as tf

MAX_ROWS = 200_000  # are looked at, at most
MAX_NEWTON_STEPS = 50
MAX_NEWTON_MOVE = 2.0  # of the linear predictor, root mean square, or an auxiliary parameter
GAIN_TOLERANCE = 1e-10  # of the log-likelihood, to be gained


def start_values(design: Design) -> dict[str, Any]:
    """A regression without random effects, and its variance shared out equally between them and the
    residual."""
    beta, auxiliary, variance = fit(design)
    parts = sum(len(f.effects) for f in design.factors if f.blocks) + 1
    # A slope's share is what it adds to the spread of the ratings.
    units = [directions.units(f) for f in design.factors]
    covariances = [variance / parts * unit @ unit.T for unit in units]
    if isinstance(design.family, Gaussian) and design.family.estimated:
        auxiliary = 0.5 * np.log([variance / parts])
    return covariance.name_values(design, beta, covariances, auxiliary)


def fit(design: Design) -> tuple[np.ndarray, np.ndarray, float]:
    """Fixed effects ``[fixed]``, auxiliary parameters, and the variance of a residual.

    The variance is on the scale of the linear predictor: where a family has no residual, one over
    the mean information of a row. Where there is no maximum, as when a covariate separates zeros
    from ones, it stops after `MAX_NEWTON_STEPS`: this is only a start. So of more than `MAX_ROWS`
    rows it looks at so many, picked at random (the same at each call), and at one of each
    category.
    """
    intercept, auxiliary = design.family.start(design.response)
    if design.rows > MAX_ROWS:
        categories = range(len(design.family.categories or ()))
        ones = [int(np.argmax(design.response == c)) for c in categories]
        some = np.random.default_rng(0).integers(0, design.rows, MAX_ROWS)
        some = np.concatenate([some, np.array(ones, int)])
        design = replace(
            design,
            response=design.response[some],
            offset=design.offset[some],
            fixed=design.fixed[some],
        )
    x, gaussian = design.fixed, isinstance(design.family, Gaussian)
    # The start is that of a model with an intercept alone: as near to it as the columns get.
    goal = (design.response if gaussian else intercept) - design.offset
    beta = np.linalg.lstsq(x, goal, rcond=None)[0]
    if gaussian:
        return beta, auxiliary, float(np.mean((goal - x @ beta) ** 2))
    value, score, information, weight = evaluate(design, beta, auxiliary)
    for _ in range(MAX_NEWTON_STEPS):
        step = uphill(score, information)
        moves = np.sqrt(np.mean((x @ step[: len(beta)]) ** 2))
        step /= max(1.0, np.max([moves, *np.abs(step[len(beta) :])]) / MAX_NEWTON_MOVE)
        gained = -np.inf
        while not gained >= 0 and np.abs(step).max() > 1e-12:  # not down, and not to a NaN
            point = beta + step[: len(beta)], auxiliary + step[len(beta) :]
            found = evaluate(design, *point)
            gained, step = found[0] - value, step / 2
        if not gained >= 0:
            break
        (beta, auxiliary), (value, score, information, weight) = point, found
        if gained < GAIN_TOLERANCE * (1 + abs(value)):
            break
    return beta, auxiliary, 1.0 / weight


def evaluate(
    design: Design, beta: np.ndarray, auxiliary: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray, float]:
    """Log-likelihood, score, information, and a row's mean information."""
    x = design.fixed
    response = tf.constant(design.response[:, np.newaxis])
    predictor = tf.constant((design.offset + x @ beta)[:, np.newaxis])
    own = tf.constant(auxiliary, tf.float64)
    first, second = design.family.derivatives(design.family.rows(response, own), predictor, own)
    family, observed = design.family.given(response)
    value = float(tf.reduce_sum(family.distribution(predictor, own).log_prob(observed)))
    rows = [x, *np.ones([len(auxiliary), design.rows, 1])]  # what each derivative multiplies
    score = np.concatenate([z.T @ f.numpy()[:, 0] for z, f in zip(rows, first, strict=True)])
    blocks = [
        [-z.T @ (second[i][j].numpy() * w) for j, w in enumerate(rows)] for i, z in enumerate(rows)
    ]
    return value, score, np.block(blocks), float(-np.mean(second[0][0].numpy()))
