"""Monte Carlo EM (Wei & Tanner 1990): E-step, M-step, and so on until the certificate is content.

Chapter 04. First full M-steps, which forget the start; then smaller and smaller ones (SAEM), and
the mean of those iterates; then frozen parameters, draws and a certificate.
"""

from __future__ import annotations

from functools import partial

from lmmbook.core import certificate, e_step, m_step
from lmmbook.core.model import Data, Theta, data_of, parameters_of
from lmmbook.formula.design import Design

import numpy as np
import pandas as pd
import tensorflow as tf

GAINS = np.concatenate([np.ones(20), np.arange(1.0, 61.0) ** -0.7])
AVERAGED = 40  # of the last iterates
WARMUP, FIRST_DRAWS, KEPT = 20, 100, 1000  # sweeps to settle, of a first look; draws to keep
MAX_LOG_SD_STEP = 0.5  # of any log sigma, in a Newton step
TRUST_RADIUS = 1.0  # standard errors; from further away a Newton step is only a direction


class MCEM:
    """Parameters ``theta``, effects ``u``, ``eta``, ``curvature``: what belongs together.

    By default as many chains as the smallest factor needs: few levels and few chains are noise.
    """

    def __init__(self, design: Design, seed: int, chains: int | None = None) -> None:
        self.design, self.data, self.seed, self.sweeps = design, data_of(design), seed, 0
        names = (e_step.curvatures, e_step.sweep, m_step.em_step, certificate.score_and_information)
        self._eta, self._curvatures, self._sweep, self._em_step, self._score = (
            tf.function(partial(function, self.data), jit_compile=True, autograph=False)
            for function in (Data.eta, *names)
        )
        chains = chains or int(np.clip(100 // min(self.data.levels), 8, 64))
        self.u = [tf.zeros([levels, chains]) for levels in self.data.levels]
        intercept, auxiliary = design.family.start(design.response)
        beta = np.linalg.lstsq(design.fixed, intercept - design.offset, rcond=None)[0]
        self.set(Theta(beta, np.zeros(len(self.u)), auxiliary))
        noise = (design.rows / np.sum(self.curvature[0])) ** 0.5  # as an sd, of a row about eta
        self.set(self.theta._replace(log_sigma=np.full(len(self.u), np.log(0.5 * noise))))

    def set(self, theta: Theta) -> None:
        """Put other parameters in place, and what depends on them."""
        self.theta = Theta(*(tf.cast(x, tf.float32) for x in theta))
        self.eta = self._eta(self.theta, self.u)
        self.curvature = self._curvatures(self.theta, self.eta)

    def sweep(self) -> None:
        """The E-step: every effect drawn anew."""
        self.sweeps += 1
        seed = tf.constant([self.seed, self.sweeps])
        self.u, self.eta, _ = self._sweep(self.theta, self.u, self.eta, self.curvature, seed)

    def em(self, gains: np.ndarray = GAINS) -> pd.DataFrame:
        """EM iterations with these gains, then the mean of the last; the parameters after each."""
        path = []
        for gain in tf.constant(gains, tf.float32):
            self.sweep()
            theta, self.u = self._em_step(self.theta, self.u, self.eta, gain)
            self.set(theta)
            path.append(theta)
        self.set(Theta(*(np.mean(x, axis=0) for x in zip(*path[-AVERAGED:], strict=True))))
        return pd.DataFrame([parameters_of(self.design, theta) for theta in path])

    def measure(self, draws: int) -> tuple[certificate.Certificate, list[np.ndarray]]:
        """The certificate of the present parameters, and draws ``[draws, levels, chains]``."""
        held = certificate.least_information(self.data, self.theta, self.curvature)
        scores, J, kept = [], [], []
        for _ in range(WARMUP):
            self.sweep()
        for i in range(draws):
            self.sweep()
            score, information = self._score(self.theta, self.u, held)
            scores.append(score.numpy())
            J.append(information.numpy())
            if i % -(-draws * self.eta.shape[1] // KEPT) == 0:
                kept.append([u.numpy() for u in self.u])
        found = certificate.certify(self.design, self.theta, np.stack(scores), np.mean(J, axis=0))
        return found, [np.stack(u) for u in zip(*kept, strict=True)]

    def advance(self, step: np.ndarray) -> None:
        """A Newton step ``[coordinates]``, or as much of it as is not too long."""
        parts = np.split(step, np.cumsum([len(x) for x in self.theta])[:2])
        damped = 1.0 / max(1.0, np.abs(parts[1]).max() / MAX_LOG_SD_STEP)
        self.set(Theta(*(x + damped * d for x, d in zip(self.theta, parts, strict=True))))


def fit(
    design: Design, seed: int, chains: int | None = None, max_sweeps: int = 8000
) -> tuple[certificate.Certificate, list[np.ndarray]]:
    """Fit a model with random intercepts, or raise ValueError if it has slopes. Chapter 04.

    Returns the certificate, and draws of the effects, ``[draws, levels, chains]`` a factor. Where a
    sigma is zero at the maximum EM never arrives, and ``converged`` stays False.
    """
    run, draws = MCEM(design, seed, chains), FIRST_DRAWS
    run.em()
    found, kept = run.measure(draws)
    while not found.converged and run.sweeps + len(GAINS) + WARMUP + 2 * draws <= max_sweeps:
        draws *= 2  # fresh ones: on the old ones the score after the step is zero
        run.advance(found.step)
        if found.distance > TRUST_RADIUS:
            run.em()
        found, kept = run.measure(draws)
    run.advance(found.step)  # it is short: what is left is Monte Carlo error
    table = found.table.assign(estimate=pd.Series(parameters_of(design, run.theta)))
    return found._replace(table=table), kept
