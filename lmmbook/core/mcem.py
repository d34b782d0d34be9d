"""Monte Carlo EM: E-step, M-step, again and again, until the certificate says that it is enough.

Chapter 04 (Wei & Tanner 1990). First full M-steps, which forget the start; then smaller and smaller
ones (SAEM), and their mean; then frozen parameters and a certificate.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from lmmbook.core.certificate import (
    Certificate,
    Parametrisation,
    certify,
    least_information,
    score_and_information,
)
from lmmbook.core.e_step import curvatures, sweep
from lmmbook.core.m_step import em_step
from lmmbook.core.model import Data, Theta, data_of, parameters_of
from lmmbook.formula.design import Design

import numpy as np
import pandas as pd
import tensorflow as tf

GAINS = np.concatenate([np.ones(40), np.arange(1.0, 121.0) ** -0.7])
AVERAGED = 80  # of the last iterates (Polyak & Juditsky 1992)
SETTLE = 40  # sweeps before draws belong to parameters that were just set
FIRST, KEPT = (
    200,
    1000,
)  # sweeps of the first certificate; sweeps x chains that are kept of the last
LONGEST_STEP = 0.5  # of any log sigma, in a Newton step
FAR = 1.0  # standard errors; from further away a Newton step is only a direction


class Fit(NamedTuple):
    """What `fit` returns."""

    parameters: pd.DataFrame  # estimate, std_error and mcse; an sd's errors are of its logarithm
    distance: float  # from the maximum, in standard errors, before the last and short step
    converged: bool
    draws: dict[str, np.ndarray]  # of the effects, [draws, levels, chains] a factor


def em_sweep(data: Data, theta: Theta, u: list, gain: tf.Tensor, seed: tf.Tensor) -> tuple:
    """One iteration: a sweep, then an M-step. Returns theta and u."""
    eta = data.eta(theta, u)
    drawn = sweep(data, theta, u, eta, curvatures(data, theta, eta), seed)
    return em_step(data, theta, drawn.u, drawn.eta, gain)


def measured_sweep(
    data: Data, theta: Theta, u: list, curvature: list, held: Parametrisation, seed: tf.Tensor
) -> tuple:
    """A sweep at frozen parameters. Returns u, its score and its information."""
    u = sweep(data, theta, u, data.eta(theta, u), curvature, seed).u
    return u, *score_and_information(data, theta, u, held)


class MCEM:
    """Parameters and draws of the effects that belong together, and what moves them.

    By default as many chains as the smallest factor needs: few levels and few chains are noise.
    """

    def __init__(self, design: Design, seed: int, chains: int | None = None) -> None:
        self.design, self.data, self.seed, self.sweeps = design, data_of(design), seed, 0
        fewest = min(self.data.levels)
        chains = chains or int(2 ** np.clip(np.ceil(np.log2(100 / fewest)), 3, 6))
        self.u = [tf.zeros([levels, chains]) for levels in self.data.levels]
        # The M-step finds beta and the sds within a few steps from about anywhere.
        intercept, auxiliary = design.family.start(design.response)
        beta = np.linalg.lstsq(design.fixed, intercept - design.offset, rcond=None)[0]
        start = beta, np.zeros(len(self.u)), auxiliary
        self.theta = Theta(*(tf.constant(x, tf.float32) for x in start))
        told = curvatures(self.data, self.theta, self.data.eta(self.theta, self.u))[0]
        unit = -0.5 * np.log(tf.reduce_sum(told) / design.rows)  # log sd of what a row leaves open
        self.theta = self.theta._replace(log_sigma=self.theta.log_sigma + unit + np.log(0.5))
        compiled = partial(tf.function, jit_compile=True, autograph=False)
        self._em_sweep = compiled(partial(em_sweep, self.data))
        self._measured_sweep = compiled(partial(measured_sweep, self.data))

    def _next_seed(self) -> tf.Tensor:
        self.sweeps += 1
        return tf.constant([self.seed, self.sweeps])

    def em(self, gains: np.ndarray = GAINS) -> pd.DataFrame:
        """EM iterations with these gains; returns the parameters after each."""
        walk = []
        for gain in gains:
            given = self.theta, self.u, tf.constant(gain, tf.float32), self._next_seed()
            self.theta, self.u = self._em_sweep(*given)
            walk.append(self.theta)
        tail = zip(*walk[-AVERAGED:], strict=True)
        self.theta = Theta(*(tf.reduce_mean(tf.stack(x), axis=0) for x in tail))
        return pd.DataFrame([parameters_of(self.design, theta) for theta in walk])

    def measure(self, sweeps: int) -> tuple[Certificate, list[np.ndarray]]:
        """The certificate of the present parameters, and draws ``[draws, levels, chains]``."""
        curvature = curvatures(self.data, self.theta, self.data.eta(self.theta, self.u))
        held = least_information(self.data, self.theta, curvature)
        every = -(-sweeps * self.u[0].shape[1] // KEPT)
        scores, J, kept = [], 0.0, []
        for i in range(-SETTLE, sweeps):
            given = self.theta, self.u, curvature, held, self._next_seed()
            self.u, score, information = self._measured_sweep(*given)
            if i >= 0:
                scores.append(score.numpy())
                J = J + information.numpy() / sweeps
                kept += [[u.numpy() for u in self.u]] if i % every == 0 else []
        draws = [np.stack(u) for u in zip(*kept, strict=True)]
        return certify(self.design, self.theta, np.stack(scores), J), draws

    def advance(self, step: np.ndarray) -> None:
        """A Newton step in all coordinates, or as much of it as is not too long."""
        longest = np.abs(step[len(self.theta.beta) :]).max()
        step = step / max(1.0, longest / LONGEST_STEP)
        parts = np.split(step.astype(np.float32), np.cumsum([len(x) for x in self.theta])[:2])
        self.theta = Theta(*(x + d for x, d in zip(self.theta, parts, strict=True)))


def fit(design: Design, seed: int, chains: int | None = None, max_sweeps: int = 8000) -> Fit:
    """Fit a model with random intercepts by Monte Carlo EM. Chapter 04.

    Where a sigma is zero at the maximum EM never arrives, and ``converged`` stays False. Raises
    ValueError if there are slopes.

    Examples
    --------
    >>> from lmmbook.formula import build_design
    >>> data, _ = lmm.simulate.crossed(300, {"g": (30, 0.5)}, seed=0)
    >>> found = fit(build_design("y ~ x + (1|g)", data), seed=0)
    >>> exact = lmm.exact.fit("y ~ x + (1|g)", data).parameters
    >>> apart = np.abs(found.parameters["estimate"] - exact["estimate"])
    >>> found.converged, bool((apart < 0.2 * exact["std_error"]).all())
    (True, True)
    """
    run, draws = MCEM(design, seed, chains), FIRST
    run.em()
    found, kept = run.measure(draws)
    while not found.converged and run.sweeps + len(GAINS) + SETTLE + 2 * draws <= max_sweeps:
        draws *= 2  # fresh ones, for on the old ones the score after the step is zero
        run.advance(found.step)
        if found.distance > FAR:
            run.em()
        found, kept = run.measure(draws)
    run.advance(found.step)
    estimate = pd.Series(parameters_of(design, run.theta))
    table = found.table[["std_error", "mcse"]]
    table.insert(0, "estimate", estimate)
    names = [factor.name for factor in design.factors]
    return Fit(table, found.distance, found.converged, dict(zip(names, kept, strict=True)))
