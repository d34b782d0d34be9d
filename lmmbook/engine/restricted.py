"""Restricted maximum likelihood: the fixed effects are drawn, as random ones are.

Chapter 04. REML maximises the likelihood of the variances alone, with the fixed effects integrated
out under a flat prior (Laird & Ware 1982). So they become the effects of one more factor, which has
one level, and a covariance that is known and wide: all else of E-step, M-step and certificate is as
it was. At the end they get their mean and their covariance given the variances, by
`least_squares`; and the kept draws of the other effects become those given that mean, as they are
in a fit by maximum likelihood.
"""

from __future__ import annotations

from dataclasses import replace

from lmmbook.engine.arrays import in_double
from lmmbook.engine.certificate import local
from lmmbook.engine.least_squares import LeastSquares
from lmmbook.engine.runner import Engine
from lmmbook.formula.covariance import root
from lmmbook.formula.factors import Factor
from lmmbook.formula.invariances.coordinates import Inner

import numpy as np
import pandas as pd

WIDE = 32.0  # sd of the prior, in units of what fixed effects leave of the ratings


def restricted(design: Inner) -> Inner:
    """The design whose likelihood is the restricted one of ``design``: the last factor has the
    fixed effects, and no column is left that is fixed."""
    outer, none, wide = design.outer, design.fixed[:, :0], _width(design)
    extra = _factor(wide * design.fixed, design.fixed_names)
    own = _factor(outer.fixed, outer.fixed_names)
    return replace(
        design, fixed=none, fixed_names=(), factors=(*design.factors, extra),
        outer=replace(outer, fixed=none, fixed_names=(), factors=(*outer.factors, own)),
        origin=np.zeros(0), fixed_map=np.zeros((0, 0)),
        effect_maps=(*design.effect_maps, wide * design.fixed_map),
    )  # fmt: skip


def _width(design: Inner) -> float:
    """Where the residual sd is known, it is the unit, and what is left may be far larger."""
    return WIDE * max(1.0, float(np.sqrt(np.mean(design.response**2))))


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
        ``[fixed]`` and ``[fixed, fixed]`` in the coordinates of the data.
    mcse
        ``[fixed]``: what the Monte Carlo errors of the variances do to the mean; NaN where those
        are not known, or the equations were not solved.
    solved
        Whether they were.
    """

    def __init__(self, engine: Engine, design: Inner, errors: np.ndarray | None) -> None:
        """``design`` is the one that was `restricted`; ``errors`` [coordinates, coordinates], the
        covariance of the variances' Monte Carlo errors, if it is known."""
        self.engine, self.design = engine, design
        _, covariances, auxiliary = in_double(engine.parameters)
        self.roots = [root(matrix) for matrix in covariances[:-1]]
        self.found = LeastSquares(design, self.roots, float(np.exp(auxiliary[0])))
        self.by = design.response_scale * design.fixed_map
        self.mean = design.origin + self.by @ self.found.beta
        self.covariance = self.by @ np.linalg.inv(self.found.information) @ self.by.T
        self.mcse = np.full(len(self.mean), np.nan)
        if errors is not None:
            self.mcse = np.sqrt(self._moved(errors))
        self.solved = self.found.solved
        if not self.solved:
            self.mcse[:] = np.nan

    def _moved(self, errors: np.ndarray) -> np.ndarray:
        """``[fixed]``: the variance of the mean, as the variances' Monte Carlo errors move it."""
        engine, total = self.engine, np.zeros(len(self.mean))
        values, vectors = np.linalg.eigh(errors)
        for size, vector in zip(values, vectors.T, strict=True):
            if size > 0:
                step = np.sqrt(size) * vector
                _, moved, auxiliary = local.move(
                    engine.design, engine.layout, engine.parameters, step
                )
                roots = [root(matrix) for matrix in moved[:-1]]
                away = self.found.moved(roots, float(np.exp(auxiliary[0])))
                total += (self.by @ away) ** 2
        return total

    def given_mean(self, kept: list[np.ndarray]) -> list[np.ndarray]:
        """Draws of the other effects ``[draws, levels, chains, columns]``, which ``kept`` has with
        those of the fixed ones last, given the mean of these.

        All are normal together. Where the fixed effects are higher by d, the others are lower by
        what they would answer to ratings of X d; a draw is put back by that.
        """
        away = _width(self.design) * kept[-1][:, 0].astype(float) - self.found.beta
        found, begin = [], 0
        for u, own in zip(kept[:-1], self.roots, strict=True):
            levels, columns = u.shape[1], u.shape[3]
            part = self.found.answers[begin : begin + levels * columns]
            begin += levels * columns
            answer = np.einsum("ij,ljn->lin", own, part.reshape(levels, columns, -1))
            found.append(u + np.einsum("lin,dcn->dlci", answer, away).astype(u.dtype))
        return found
