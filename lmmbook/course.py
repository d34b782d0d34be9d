"""The course of a fit: what to do next, and when it is done.

Chapter 04. `mcem` says it in words; here it is in code.
"""

from __future__ import annotations

import math

from lmmbook import boundary, certificate, complete_data, covariance
from lmmbook.boundary import Weak
from lmmbook.engine import Engine, start_values

import numpy as np
from scipy import linalg

APPROACH = np.ones(40)  # gains of the M-steps
AVERAGE = np.arange(1.0, 121.0) ** -0.7
DRAWS = 200  # sweeps of the first certificate
FEWEST_SWEEPS = 400  # that is what these need
LONGEST_STEP = 1.0  # a Newton step changes the logarithm of no variance by more
FAR = 1.0  # standard errors; from further away, the Newton step is only a direction
GONE = 1e-4  # an sd that is tried at zero, relative to the residual's
ENOUGH = 8  # times the first draws; a score that is not seen then is as good as zero
SURE = 3.0  # Monte Carlo standard errors before a sign is believed
NO_GAIN = 0.02  # log-likelihood: what a point 0.2 standard errors from the maximum misses


class Course:
    """Drives an `Engine` to the maximum.

    Attributes
    ----------
    at_boundary
        Blocks, ``(factor, columns)``, whose covariance is singular at the maximum, each with the
        direction that has no variance.
    interior
        Blocks that looked weak but are known to have their maximum away from the boundary.
    found
        The last certificate; None before the first.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.design = engine, engine.design
        self.at_boundary: dict[tuple[int, tuple[int, ...]], Weak] = {}
        self.interior: set[tuple[int, tuple[int, ...]]] = set()
        self.tried: Weak | None = None  # at zero, to see whether it belongs there
        self.found: certificate.Certificate | None = None

    @property
    def distance(self) -> float:
        """As the last certificate found it; infinite before the first."""
        return math.inf if self.found is None else self.found.distance

    def run(self) -> None:
        """Go on until converged. Raises `engine.OutOfBudget` if the budget ends first."""
        self.climb()
        draws = DRAWS
        while True:
            self.found = self.engine.measure(draws, self.estimated())
            weak = [
                w for w in self.engine.weak() if w[:2] not in {*self.at_boundary, *self.interior}
            ]
            if weak:
                self.settle(weak[0], draws)
                continue
            if self.found.converged:
                self.take(self.found.step)  # it is short: what is left is Monte Carlo error
                return
            self.take(self.found.step / max(1.0, np.abs(self.found.step).max() / LONGEST_STEP))
            if self.found.distance > FAR:
                self.climb()
            draws *= 2

    def climb(self) -> None:
        """Approach and average: the mean of the last two thirds of the iterates stays."""
        self.engine.em("approach", APPROACH)
        tail = self.engine.em("average", AVERAGE).drop(columns=["acceptance", "phase"])
        self.engine.set(dict(tail.iloc[len(tail) // 3 :].mean()))

    def take(self, step: np.ndarray) -> None:
        """Move the parameters by a step in local coordinates."""
        moved = certificate.move(self.engine.layout, self.engine.parameters, step)
        self.engine.set(covariance.name_values(self.design, *moved))

    def estimated(self) -> np.ndarray:
        """``[coordinates, free]``: the directions that are neither fixed nor at a boundary."""
        layout = self.engine.layout
        begins = complete_data.offsets(layout)
        columns = [np.eye(begins[-1] + 1)[:, : layout.fixed]]
        for k, of in enumerate(layout.factors):
            own = complete_data.basis(of).astype(float)
            # omega has to leave alone what has no variance: omega @ (scale' direction) = 0.
            scale = np.asarray(self.engine.parameters.scales[k], float)
            singular = [*self.at_boundary.values(), *([self.tried] if self.tried else [])]
            gone = [own @ (scale.T @ weak.direction) for weak in singular if weak.factor == k]
            kept = linalg.null_space(_unit(np.hstack(gone)).T) if gone else np.eye(len(own))
            place = np.zeros((begins[-1] + 1, kept.shape[1]))
            place[begins[k] : begins[k + 1]] = kept
            columns.append(place)
        if layout.residual_free:
            columns.append(np.eye(begins[-1] + 1)[:, -1:])
        return np.hstack(columns)

    def settle(self, weak: Weak, draws: int) -> None:
        """Decide whether a block that looks weak has its maximum at the boundary."""
        if len(weak.columns) == 1:
            self.settle_variance(weak, draws)
        else:
            self.settle_block(weak)

    def settle_variance(self, weak: Weak, draws: int) -> None:
        """Put the variance to zero, refit the others there, and look at its score.

        Negative: that is the maximum. Positive: start again, away from zero.
        """
        factor = self.design.factors[weak.factor]
        name = covariance.names(factor)[weak.columns[0]]
        size = np.sqrt((factor.z[:, weak.columns[0]] ** 2).mean())
        values = self.engine.values()
        self.engine.set(values | {name: GONE * values["sd(residual)"] / size})
        self.tried = weak
        self.climb()
        while True:
            self.found = self.engine.measure(draws, self.estimated())
            score, error = self.variance_score(weak)
            if score - SURE * error > 0:
                break
            if score + SURE * error < 0 or draws > ENOUGH * DRAWS:  # zero, or as good as zero
                self.at_boundary[weak[:2]], self.tried = weak, None
                return
            draws *= 2
        self.tried = None
        self.interior.add(weak[:2])
        start = start_values(self.design, self.engine.values()["sd(residual)"])
        self.engine.set(self.engine.values() | {name: start[name]})
        self.climb()

    def settle_block(self, weak: Weak) -> None:
        """Follow a covariance that is becoming singular until there is nothing left to gain."""
        score, error = self.variance_score(weak)
        scale = np.asarray(self.engine.parameters.scales[weak.factor], float)
        variance = float(np.square(scale.T @ weak.direction).sum())
        if score - SURE * error > 0:
            self.interior.add(weak[:2])
        elif (abs(score) + SURE * error) * variance < NO_GAIN:
            self.at_boundary[weak[:2]] = weak
        else:
            self.shrink(weak)
            self.climb()

    def shrink(self, weak: Weak) -> None:
        """Divide the variance along the weak direction by ten."""
        factor, values = self.design.factors[weak.factor], self.engine.values()
        matrix = covariance.to_matrix(factor, values)
        along = matrix @ weak.direction
        matrix -= 0.9 * np.outer(along, along) / (weak.direction @ along)
        self.engine.set(values | covariance.from_matrix(factor, matrix))

    def variance_score(self, weak: Weak) -> tuple[float, float]:
        """See `boundary.variance_score`."""
        return boundary.variance_score(
            self.design, self.engine.parameters, self.engine.kept, weak
        )  # fmt: skip


def _unit(columns: np.ndarray) -> np.ndarray:
    """Columns of length one: their size says nothing, and may be tiny."""
    return columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-300)
