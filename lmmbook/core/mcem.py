"""Monte Carlo EM (Wei & Tanner 1990): E-step, M-step, and so on until the certificate is content.

Chapter 04. First full M-steps, which forget the start; then smaller and smaller ones (SAEM), and
the mean of those iterates; then frozen parameters, draws and a certificate.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from lmmbook.core import certificate, e_step, m_step
from lmmbook.core.model import Data, Tensor, Theta, data_of, parameters_of
from lmmbook.formula.design import Design

import numpy as np
import pandas as pd
import tensorflow as tf

GAINS = np.concatenate([np.ones(40), np.arange(1.0, 121.0) ** -0.7])
AVERAGED = 80  # of the last iterates
SETTLE = 40  # sweeps until draws belong to parameters that were just set
DRAWS, KEPT = 200, 1000  # sweeps of the first certificate; sweeps x chains of effects to keep
LONGEST_STEP = 0.5  # of any log sigma, in a Newton step
FAR = 1.0  # standard errors; from further away a Newton step is only a direction


class Fit(NamedTuple):
    """What `fit` returns."""

    parameters: pd.DataFrame  # estimate, std_error, mcse; the errors of an sd: of its logarithm
    distance: float  # from the maximum in standard errors, before the last, short step
    converged: bool
    draws: dict[str, np.ndarray]  # effects of each factor, [draws, levels, chains]


def em_sweep(
    data: Data, theta: Theta, u: list[Tensor], gain: Tensor, seed: Tensor
) -> tuple[Theta, list[Tensor]]:
    """One iteration: every effect drawn anew, and an M-step."""
    eta = data.eta(theta, u)
    curvature = e_step.curvatures(data, theta, eta)
    u, eta, _ = e_step.sweep(data, theta, u, eta, curvature, seed)
    return m_step.em_step(data, theta, u, eta, gain)


class MCEM:
    """Parameters, draws of the effects that belong to them, and what moves both.

    By default as many chains as the smallest factor needs: few levels and few chains are noise.
    """

    def __init__(self, design: Design, seed: int, chains: int | None = None) -> None:
        self.design, self.data, self.seed, self.sweeps = design, data_of(design), seed, 0
        chains = chains or int(np.clip(100 // min(self.data.levels), 8, 64))
        self.u = [tf.zeros([levels, chains]) for levels in self.data.levels]
        intercept, auxiliary = design.family.start(design.response)
        beta = np.linalg.lstsq(design.fixed, intercept - design.offset, rcond=None)[0]
        start = beta, np.zeros(len(self.u)), auxiliary
        self.theta = Theta(*(tf.constant(x, tf.float32) for x in start))
        told = np.sum(self._curvature()[0]) / design.rows  # by a row, of eta: 1 / variance
        self.theta = self.theta._replace(log_sigma=self.theta.log_sigma + np.log(0.5 / told**0.5))
        self._em_sweep = self._compiled(em_sweep)
        self._sweep = self._compiled(e_step.sweep)
        self._score = self._compiled(certificate.score_and_information)

    def _compiled(self, function: Callable) -> Callable:
        return tf.function(partial(function, self.data), jit_compile=True, autograph=False)

    def _curvature(self) -> list[Tensor]:
        return e_step.curvatures(self.data, self.theta, self.data.eta(self.theta, self.u))

    def _next_seed(self) -> Tensor:
        self.sweeps += 1
        return tf.constant([self.seed, self.sweeps])

    def em(self, gains: np.ndarray = GAINS) -> pd.DataFrame:
        """EM iterations with these gains, and the mean of the last; the parameters after each."""
        walk = []
        for gain in tf.constant(gains, tf.float32):
            self.theta, self.u = self._em_sweep(self.theta, self.u, gain, self._next_seed())
            walk.append(self.theta)
        self.theta = Theta(*(tf.add_n(x) / len(x) for x in zip(*walk[-AVERAGED:], strict=True)))
        return pd.DataFrame([parameters_of(self.design, theta) for theta in walk])

    def measure(self, draws: int) -> tuple[certificate.Certificate, list[np.ndarray]]:
        """The certificate of the present parameters, and draws ``[draws, levels, chains]``."""
        curvature, eta = self._curvature(), self.data.eta(self.theta, self.u)
        held = certificate.least_information(self.data, self.theta, curvature)
        every = -(-draws * eta.shape[1] // KEPT)
        scores, J, kept = [], [], []
        for i in range(-SETTLE, draws):
            given = self.theta, self.u, eta, curvature, self._next_seed()
            self.u, eta, _ = self._sweep(*given)
            if i >= 0:
                score, information = self._score(self.theta, self.u, held)
                scores.append(score.numpy())
                J.append(information.numpy())
            if i >= 0 and i % every == 0:
                kept.append([u.numpy() for u in self.u])
        found = certificate.certify(self.design, self.theta, np.stack(scores), np.mean(J, axis=0))
        return found, [np.stack(u) for u in zip(*kept, strict=True)]

    def advance(self, step: np.ndarray) -> None:
        """A Newton step ``[coordinates]``, or as much of it as is not too long."""
        parts = np.split(step, np.cumsum([len(x) for x in self.theta])[:2])
        parts = [part / max(1.0, np.abs(parts[1]).max() / LONGEST_STEP) for part in parts]
        self.theta = Theta(*(x + np.float32(d) for x, d in zip(self.theta, parts, strict=True)))


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
    run, draws = MCEM(design, seed, chains), DRAWS
    run.em()
    found, kept = run.measure(draws)
    while not found.converged and run.sweeps + len(GAINS) + SETTLE + 2 * draws <= max_sweeps:
        draws *= 2  # fresh ones: on the old ones the score after the step is zero
        run.advance(found.step)
        if found.distance > FAR:
            run.em()
        found, kept = run.measure(draws)
    run.advance(found.step)  # it is short: what is left is Monte Carlo error
    table = pd.DataFrame({"estimate": parameters_of(design, run.theta)})
    table = table.join(found.table[["std_error", "mcse"]])
    named = dict(zip((factor.name for factor in design.factors), kept, strict=True))
    return Fit(table, found.distance, found.converged, named)
