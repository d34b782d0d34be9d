"""Restricted maximum likelihood: the fixed effects are drawn, as random ones are.

Chapter 04. REML maximises the likelihood of the variances alone, with the fixed effects integrated
out under a flat prior (Laird & Ware 1982). So they become the effects of one more factor, which has
one level, and a covariance that is known and wide: all else of E-step, M-step and certificate is as
it was. Given the variances their distribution is normal. At the end we compute its mean and its
covariance by conjugate gradients, and make the kept draws of the other effects those given the
mean, as they are in a fit by maximum likelihood.
"""

from __future__ import annotations

from dataclasses import replace

from lmmbook.engine.arrays import to_parameters
from lmmbook.engine.certificate import local
from lmmbook.engine.certificate.laplace import Laplace
from lmmbook.engine.certificate.pieces import Effects
from lmmbook.engine.runner import Engine
from lmmbook.formula import covariance
from lmmbook.formula.factors import Factor
from lmmbook.formula.invariances.coordinates import Inner

import numpy as np
import pandas as pd
import tensorflow as tf

WIDE = 32.0  # sd of the prior, in units of about a residual sd: beside it no error is large
LEFT = 1e-10  # squared residual of conjugate gradients, relative to what it was
ROUGH = 1e-4  # the same, of a correction
MOST = 500  # of their steps


def restricted(design: Inner) -> Inner:
    """The design whose likelihood is the restricted one of ``design``: the last factor has the
    fixed effects, and no column is left that is fixed."""
    outer, none = design.outer, design.fixed[:, :0]
    extra = _factor(WIDE * design.fixed, design.fixed_names)
    own = _factor(outer.fixed, outer.fixed_names)
    return replace(
        design, fixed=none, fixed_names=(), factors=(*design.factors, extra),
        outer=replace(outer, fixed=none, fixed_names=(), factors=(*outer.factors, own)),
        origin=np.zeros(0), fixed_map=np.zeros((0, 0)),
        effect_maps=(*design.effect_maps, WIDE * design.fixed_map),
    )  # fmt: skip


def _factor(z: np.ndarray, names: tuple[str, ...]) -> Factor:
    """One level, whose effects multiply ``z``; without blocks, for its covariance is known."""
    codes = np.broadcast_to(np.int32(0), len(z))
    effects = tuple(f"fixed({name})" for name in names)  # none is a lone intercept
    return Factor("fixed", (), pd.Index(["all"]), codes, effects, z, ())


class FixedEffects:
    """The fixed effects given the variances, from where an engine of a `restricted` design is.

    Attributes
    ----------
    mean, covariance
        ``[fixed]`` and ``[fixed, fixed]`` in the coordinates of the data: generalised least
        squares, ``(X'V^-1 X)^-1``.
    mcse
        ``[fixed]``: what the Monte Carlo errors of the variances do to the mean, and what the
        solver left; NaN where those are not known.
    """

    def __init__(self, engine: Engine, design: Inner, errors: np.ndarray | None) -> None:
        """``design`` is the one that was `restricted`; ``errors`` [coordinates, coordinates], the
        covariance of the variances' Monte Carlo errors, if it is known."""
        self.engine = engine
        laplace = Laplace(engine.layout, engine.arrays, engine.parameters, engine.placement)
        laplace.sharpen(LEFT, MOST)
        left = _fixed(laplace.sharpen(ROUGH, MOST))  # what rounding had left
        self.mode, inner_mean = laplace.mode, _fixed(laplace.mode)
        # The precision's inverse, times a unit vector for each fixed effect.
        factors, fixed = laplace.pieces.factors, len(inner_mean)
        asked = [laplace.pieces.each(k, _zeros, laplace.mode[k], static=(fixed,)) for k in factors]
        asked[-1] = tf.eye(fixed)[tf.newaxis]
        solved = laplace.precision.solve(asked, list(factors), LEFT, MOST)
        self.together = engine.placement.together(solved)
        own = self.together[-1].numpy().astype(float)[0]
        own = (own + own.T) / 2
        by = WIDE * design.response_scale * design.fixed_map
        self.inner_mean, self.inner_covariance = inner_mean, own
        self.mean = design.origin + by @ inner_mean
        self.covariance = by @ own @ by.T
        self.mcse = np.full(fixed, np.nan)
        if errors is not None:
            self.mcse = np.sqrt((by @ left) ** 2 + self._moved(errors, by))

    def _moved(self, errors: np.ndarray, by: np.ndarray) -> np.ndarray:
        """``[fixed]``: the variance of the mean, as the variances' Monte Carlo errors move it."""
        engine, found = self.engine, np.zeros(len(by))
        values, vectors = np.linalg.eigh(errors)
        for size, vector in zip(values, vectors.T, strict=True):
            if size > 0:
                step = np.sqrt(size) * vector
                moved = local.move(engine.design, engine.layout, engine.parameters, step)
                named = covariance.name_values(engine.design, *moved)
                there = to_parameters(engine.design, named)
                given = engine.layout, engine.arrays, there, engine.placement, self.mode
                laplace = Laplace(*given)
                laplace.sharpen(ROUGH, MOST)
                found += (by @ (_fixed(laplace.mode) - self.inner_mean)) ** 2
        return found

    def given_mean(self, kept: list[np.ndarray]) -> list[np.ndarray]:
        """Draws of the other effects ``[draws, levels, chains, columns]``, which ``kept`` has with
        those of the fixed ones last, given the mean of these.

        All are normal together. So what a draw of the fixed effects is off its mean, times the
        regression of the others on them, is what theirs are off because of it.
        """
        away = kept[-1][:, 0].astype(float) - self.inner_mean  # [draws, chains, fixed]
        off = np.linalg.solve(self.inner_covariance, away.reshape(-1, away.shape[2]).T)
        off = off.reshape(-1, *away.shape[:2])  # [fixed, draws, chains]
        given = zip(kept[:-1], self._regressed(), strict=True)
        return [
            u - np.einsum("lnj,ndc->dlcj", of_fixed, off).astype(np.float32)
            for u, of_fixed in given
        ]

    def _regressed(self) -> Effects:
        """Covariances with the fixed effects, ``[levels, fixed, columns]`` a factor."""
        scales = self.engine.parameters.scales
        pairs = zip(self.together[:-1], scales[:-1], strict=True)
        return [np.einsum("ij,lnj->lni", scale.numpy(), x.numpy()) for x, scale in pairs]


def _fixed(effects: Effects) -> np.ndarray:
    """``[fixed]``, of ``[levels, 1, columns]`` a factor, those of the last."""
    return effects[-1].numpy().astype(float)[0, 0]


def _zeros(n: int, x: tf.Tensor) -> tf.Tensor:
    return tf.zeros([x.shape[0], n, x.shape[2]])
