"""The climb to the exact maximum.

Chapter 04. It goes by the entries of a root F of each block's covariance, F F'. In F nothing needs
a bound; but where F is singular the slope vanishes in the missing directions whatever the data say,
so that a climb can end there by mistake. After each climb the likelihood is therefore asked whether
it rises with a little variance in such a direction (`Ascent.leave_boundary`).
"""

from __future__ import annotations

from lmmbook.covariance import (
    correlated_pairs,
    name_values,
    names_of_block,
    parameter_names,
    to_matrix,
)
from lmmbook.factors import Factor
from lmmbook.formula import Design
from lmmbook.marginal import Evaluation, Marginal

import numpy as np
import pandas as pd
from scipy import optimize

SINGULAR = 1e-6  # a variance relative to the response's, from which on it counts as none
PULL = 1e-3  # by how much the squares of the scores may exceed their expectation at a boundary
H = 1e-4  # of central differences


class Ascent:
    """A climb to the maximum: covariances ``[columns, columns]`` a factor, and the residual sd."""

    def __init__(self, design: Design, residual_sd: float | None) -> None:
        self.design, self.marginal, self.free = design, Marginal(design), residual_sd is None
        self.spread = float(np.std(design.response))
        self.residual_sd = self.spread / 2 if residual_sd is None else residual_sd
        self.sizes = [np.sqrt((f.z**2).mean(0)) for f in design.factors]  # [columns]
        self.covariances = [np.diag((self.spread / 2 / size) ** 2) for size in self.sizes]

    def evaluate(self) -> Evaluation:
        """The likelihood where we are, the fixed effects at their best."""
        return self.marginal.evaluate(None, self.covariances, self.residual_sd)

    def climb(self) -> None:
        """L-BFGS over the lower triangles of the roots F, in units of the ratings' spread."""
        places = [_triangle(f) for f in self.design.factors]
        units = [self.spread / size[:, None] for size in self.sizes]

        def unpack(point: np.ndarray) -> list[np.ndarray]:
            parts = np.split(point[:-1], np.cumsum([len(place[0]) for place in places])[:-1])
            roots = [np.zeros((len(size), len(size))) for size in self.sizes]
            for root, place, part in zip(roots, places, parts, strict=True):
                root[place] = part
            self.covariances = [
                (unit * r) @ (unit * r).T for unit, r in zip(units, roots, strict=True)
            ]
            self.residual_sd = float(np.exp(point[-1])) if self.free else self.residual_sd
            return roots

        def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
            roots, found = unpack(point), self.evaluate()
            slopes = [
                (unit * ((o - e) @ (unit * root)))[place]
                for unit, root, place, o, e in zip(
                    units, roots, places, found.observed, found.expected, strict=True
                )
            ]
            own = found.residual_score if self.free else 0.0
            return -found.value, -np.concatenate([*slopes, [own]])

        start = [
            np.linalg.cholesky(c / unit / unit.T + 1e-12 * np.eye(len(c)))[place]
            for c, unit, place in zip(self.covariances, units, places, strict=True)
        ]
        result = optimize.minimize(
            objective, np.concatenate([*start, [np.log(self.residual_sd)]]), jac=True,
            method="L-BFGS-B", options={"ftol": 1e-11, "gtol": 1e-4, "maxiter": 500},
        )  # fmt: skip
        unpack(result.x)

    def leave_boundary(self) -> bool:
        """Step off where a climb ended in a singular covariance that is no maximum.

        Whether it is one is asked of the slope in the variance, not in its root: with a little more
        variance along ``away``, does the likelihood rise? If not, and the block is one variance, it
        is zero.
        """
        found, left = self.evaluate(), False
        for k, block in self._blocks():
            own, size = np.ix_(block, block), self.sizes[k][list(block)]
            relative = self.covariances[k][own] * np.outer(size, size) / self.spread**2
            values, vectors = np.linalg.eigh(relative)
            if values[0] > SINGULAR:
                continue
            away = vectors[:, 0] * size
            expected = away @ found.expected[k][own] @ away
            if away @ found.observed[k][own] @ away > (1 + PULL) * expected:
                step = vectors[:, 0] / size * self.spread / 3
                self.covariances[k][own] += np.outer(step, step)
                left = True
            elif len(block) == 1:
                self.covariances[k][own] = 0.0
        return left

    def polish(self) -> pd.DataFrame:
        """Newton steps in everything that is not at a boundary, and the table of parameters."""
        beta = self.evaluate().beta
        table = pd.DataFrame(
            {"estimate": 0.0, "std_error": np.nan, "at_boundary": False},
            index=pd.Index(parameter_names(self.design), name="parameter"),
        )
        for k, block in self._blocks():
            own, size = np.ix_(block, block), self.sizes[k][list(block)]
            relative = self.covariances[k][own] * np.outer(size, size) / self.spread**2
            if np.linalg.eigvalsh(relative)[0] < SINGULAR:
                names = names_of_block(self.design.factors[k], block)
                table.loc[names, "at_boundary"] = True
        free = ~table["at_boundary"].to_numpy()
        free[-1] &= self.free
        moving = table.index[free]

        def gradient(values: pd.Series) -> np.ndarray:
            covariances = [to_matrix(f, values.fillna(0.0)) for f in self.design.factors]
            point = values[list(self.design.fixed_names)].to_numpy(), covariances
            found = self.marginal.evaluate(*point, values["sd(residual)"])
            parts = [
                _slopes(f, c, (o - e) / 2)
                for f, c, o, e in zip(
                    self.design.factors, covariances, found.observed, found.expected, strict=True
                )
            ]
            return np.concatenate([found.beta_score, *parts, [found.residual_score]])[free]

        table["estimate"] = name_values(self.design, beta, self.covariances, self.residual_sd)
        values = table["estimate"].astype(float)
        # The climb stops close by, so one information matrix serves all the Newton steps.
        steps = H * np.eye(len(moving))
        columns = [
            gradient(_moved(values, moving, h)) - gradient(_moved(values, moving, -h))
            for h in steps
        ]
        covariance = np.linalg.inv(-(np.array(columns) + np.array(columns).T) / (4 * H))
        std_error = np.sqrt(np.diag(covariance))
        for _ in range(20):
            step = covariance @ gradient(values)
            values = _moved(values, moving, step)
            if np.all(np.abs(step) < 1e-6 * std_error):
                break
        else:
            raise RuntimeError(f"exact fit: expected a stationary point, got a last step of {step}")
        table["estimate"] = values
        table.loc[moving, "std_error"] = std_error
        self.covariances = [to_matrix(f, values.fillna(0.0)) for f in self.design.factors]
        self.residual_sd = values["sd(residual)"]
        return table

    def _blocks(self) -> list[tuple[int, tuple[int, ...]]]:
        return [(k, block) for k, f in enumerate(self.design.factors) for block in f.blocks]


def _triangle(factor: Factor) -> tuple[np.ndarray, np.ndarray]:
    """Where the root of a factor's covariance has entries: a lower triangle a block."""
    pairs = [(a, b) for block in factor.blocks for a in block for b in block if a >= b]
    rows, columns = zip(*pairs, strict=True)
    return np.array(rows), np.array(columns)


def _moved(values: pd.Series, names: pd.Index, step: np.ndarray) -> pd.Series:
    """Take a step in the named parameters: sds in their logarithm, correlations in Fisher's z."""
    moved = values.copy()
    for name, by in zip(names, step, strict=True):
        if name.startswith("sd("):
            moved[name] *= np.exp(by)
        elif name.startswith("cor("):
            moved[name] = np.tanh(np.arctanh(moved[name]) + by)
        else:
            moved[name] += by
    return moved


def _slopes(factor: Factor, covariance: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """From the slope in a covariance, ``d = sum(slope * dcovariance)``, to that in the logarithms
    of its sds and the Fisher's z of its correlations."""
    sds = np.sqrt(np.diag(covariance))
    by_sd = 2 * (slope * covariance).sum(1)
    by_z = [
        2 * slope[a, b] * (sds[a] * sds[b] - covariance[a, b] ** 2 / max(sds[a] * sds[b], 1e-300))
        for a, b in correlated_pairs(factor)
    ]
    return np.concatenate([by_sd, by_z])
