"""The course of a fit: what to do next, and when it is done.

Chapter 04. `mcem` says it in words; here it is in code.
"""

from __future__ import annotations

import math
from itertools import combinations_with_replacement

from lmmbook import boundary, certificate, checkpoint, complete_data, covariance
from lmmbook.boundary import Block, Slope
from lmmbook.engine import Engine

import numpy as np
from scipy import linalg

APPROACH = np.ones(40)  # gains of the M-steps
AVERAGE = np.arange(1.0, 121.0) ** -0.7
DRAWS = 200  # sweeps of the first certificate
FEWEST_SWEEPS = 520  # that is what these need, with what settles and fills up chunks
LONGEST_STEP = 0.5  # a Newton step changes the logarithm of no sd by more
FAR = 1.0  # standard errors; from further away, the Newton step is only a direction
GONE = 1e-4  # an sd that is tried at zero, relative to `Engine.unit`
NO_GAIN = 0.02  # log-likelihood: what a point 0.2 standard errors from the maximum misses
TRIED = 0.8  # of it, so that another look at the slope may find it a little steeper
SURE = 3.0  # Monte Carlo standard errors before a sign is believed


class Course:
    """Drives an `Engine` to the maximum.

    Attributes
    ----------
    singular
        Of each block, ``(factor, columns)``, in how many directions it has no variance.
    interior
        Blocks that looked weak, but are known to have their maximum away from the boundary.
    trying
        The block that is being tried with one direction fewer; None otherwise.
    turned
        Of blocks at the boundary, a variance from which on it is known to be downhill.
    found, slopes
        The last certificate, None before the first; and what its draws say of a variance for each
        block that has none in some direction.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.design = engine, engine.design
        self.singular: dict[Block, int] = {}
        self.interior: set[Block] = set()
        self.trying: Block | None = None
        self.turned: dict[Block, float] = {}
        self.slopes: dict[Block, Slope] = {}
        self.found: certificate.Certificate | None = None
        self.draws = 0

    @property
    def distance(self) -> float:
        """As the last certificate found it; infinite before the first."""
        return math.inf if self.found is None else self.found.distance

    @property
    def at_boundary(self) -> list[Block]:
        """Blocks whose covariance is known to be singular at the maximum."""
        return [b for b, count in self.singular.items() if count > (b == self.trying)]

    def run(self) -> None:
        """Go on until converged. Raises `engine.OutOfBudget` if the budget ends first."""
        self.climb()
        found = self.measure(DRAWS)
        while True:
            if block := self.unsettled():
                found = self.settle(block, self.singular.get(block, 0) + 1)
            elif not found.converged:
                found = self.improve(found)
            elif block := self.doubtful():  # what was found out elsewhere no longer holds here
                found = self.settle(block, self.singular[block])
            else:
                break
        self.take(found.step)  # it is short: what is left is Monte Carlo error

    def climb(self) -> None:
        """Approach and average: the mean of the last two thirds of the iterates stays."""
        self.engine.em("approach", APPROACH)
        tail = self.engine.em("average", AVERAGE).drop(columns=["acceptance", "phase"])
        self.engine.set(dict(tail.iloc[len(tail) // 3 :].mean()))

    def measure(self, draws: int, along: np.ndarray | None = None) -> certificate.Certificate:
        """The certificate of the present parameters, from so many draws of each chain; and the
        slopes of variances at the boundary, along the directions in which there is none, or, for
        the block that is being tried, ``along`` [columns, directions]."""
        self.draws = draws
        point = self.design, self.engine.parameters
        asked = {b: boundary.weakest(*point, b, n) for b, n in self.singular.items() if n}
        if self.trying and along is not None:
            asked[self.trying] = along

        def watch(draws: list[np.ndarray]) -> checkpoint.Entry:
            return {
                f"{i}_{j}": scores
                for i, (block, directions) in enumerate(asked.items())
                for j, scores in enumerate(boundary.scores(*point, draws, block[0], directions))
            }

        self.found = self.engine.measure(draws, self.estimated(), watch if asked else None)
        self.slopes = {}
        for i, (block, directions) in enumerate(asked.items()):
            own = [x for name, x in self.engine.watched.items() if name.startswith(f"{i}_")]
            self.slopes[block] = boundary.slope(own, directions)
        return self.found

    def improve(self, found: certificate.Certificate) -> certificate.Certificate:
        """Get closer if there is a way, and look again with twice the draws.

        The way is the Newton step, or part of it; from far away only a direction, so that EM
        iterations follow. Where the information is not known to be definite, there is no step: EM
        if it is known not to be, or if more draws could not tell.
        """
        if found.definite:
            longest = np.abs(found.step[self.engine.layout.fixed :]).max(initial=0.0)
            self.take(found.step / max(1.0, longest / LONGEST_STEP))
        unclear = not found.definite and self.draws > DRAWS
        if found.indefinite or unclear or FAR < found.distance < math.inf:
            return self.climb_and_measure(2 * self.draws)
        return self.measure(2 * self.draws)

    def climb_and_measure(self, draws: int) -> certificate.Certificate:
        """One after the other."""
        self.climb()
        return self.measure(draws)

    def take(self, step: np.ndarray) -> None:
        """Move the parameters by a step in local coordinates."""
        moved = certificate.move(self.design, self.engine.layout, self.engine.parameters, step)
        self.engine.set(covariance.name_values(self.design, *moved))

    def estimated(self) -> np.ndarray:
        """``[coordinates, free]``: the directions that are neither fixed nor at a boundary."""
        layout = self.engine.layout
        begins = complete_data.offsets(layout)
        free = np.eye(complete_data.coordinates(layout))
        columns = [free[:, : layout.fixed]]
        for k, of in enumerate(layout.factors):
            # A stretch n n' along a direction n without variance changes nothing.
            idle = np.vstack([np.zeros((0, len(complete_data.basis(of)))), *self._idle(k)])
            place = free[:, begins[k] : begins[k + 1]]
            columns.append(place @ linalg.null_space(idle) if len(idle) else place)
        if layout.family.estimated:
            columns.append(free[:, begins[-1] :])
        return np.hstack(columns)

    def _idle(self, k: int) -> list[np.ndarray]:
        """Coordinates of the stretches of factor k that change nothing."""
        of, found = self.engine.layout.factors[k], []
        entries = [p for b in of.blocks for p in combinations_with_replacement(b, 2)]
        for block, count in self.singular.items():
            if block[0] != k:
                continue
            vectors = np.zeros((of.columns, count))
            axes = boundary.axes(self.design, self.engine.parameters, block)[1]
            vectors[list(block[1])] = axes[:, :count]
            for n, m in combinations_with_replacement(vectors.T, 2):
                found.append(np.array([n[a] * m[b] + n[b] * m[a] for a, b in entries]))
        return found

    def unsettled(self) -> Block | None:
        """A block that looks weak in more directions than are known to be at the boundary."""
        point = self.design, self.engine.parameters
        blocks = [(k, block) for k, f in enumerate(self.design.factors) for block in f.blocks]
        weak = self.engine.journal.recall(
            lambda: {"weak": np.array([*boundary.weak_blocks(*point, self.engine.kept).values()])}
        )["weak"]
        for block, count in zip(blocks, weak.tolist(), strict=True):
            if count > self.singular.get(block, 0) and block not in self.interior:
                return block
        return None

    def settle(self, block: Block, least: int) -> certificate.Certificate:
        """Decide whether a block has no variance in ``least`` directions, its smallest ones.

        Take that variance away, refit the others, and look at its slope. Negative: that is the
        maximum. Positive: try a point inside, and start again from there if it is still uphill.
        Where neither is sure, with twice the draws.
        """
        self.singular[block], self.trying = least, block
        self.turned.pop(block, None)
        self.put(block, self.flattened(block))
        self.climb()
        draws = DRAWS
        while True:
            found = self.measure(draws)
            # Only where the others are at their best there is one direction to ask about. But
            # where they are on a ridge, and it is uphill inside, that is the way.
            while not (found.converged or (found.indefinite and self.uphill(block))):
                found = self.improve(found)
            draws = self.draws
            slope = self.slopes[block]
            if slope.score + SURE * slope.error <= 0:
                self.trying = None
                return found
            if self.try_inside(block, slope):
                self.singular[block], self.trying = least - 1, None
                self.interior.add(block)
                found = self.measure(DRAWS)
                return found if found.definite else self.climb_and_measure(DRAWS)
            if block in self.turned:
                self.trying = None
            found = self.measure(draws)
            if block in self.turned:
                return found
            draws *= 2

    def try_inside(self, block: Block, slope: Slope) -> bool:
        """Whether the maximum is known to be inside. If so, the parameters are left near there.

        Up to a variance ``v`` no more than slope * v is gained. Is it downhill from there, then
        that is all: `turned` remembers how far that is.
        """
        lower = np.asarray(self.engine.parameters.scales[block[0]], float)
        flat, inside = lower @ lower.T, np.outer(slope.direction, slope.direction)
        variance = TRIED * NO_GAIN / (slope.score + SURE * slope.error)
        self.put(block, flat + variance * inside)
        self.measure(self.draws, slope.direction[:, np.newaxis])
        score, error, _ = self.slopes[block]
        if self.uphill(block):
            # Where the slope would be zero if it fell evenly.
            furthest = self.engine.unit**2
            falls = (slope.score - score) / variance
            there = min(slope.score / falls, furthest) if falls > 0 else furthest
            self.put(block, flat + max(variance, there) * inside)
            return True
        if score < -SURE * error:
            self.turned[block] = variance
        self.put(block, flat)
        return False

    def uphill(self, block: Block) -> bool:
        """Whether by the last certificate a variance is known to raise the log-likelihood."""
        return self.slopes[block].score > SURE * self.slopes[block].error

    def doubtful(self) -> Block | None:
        """A block at the boundary, of which that is not known to be the maximum: where by the last
        certificate the log-likelihood may be `NO_GAIN` higher inside."""
        for block in self.at_boundary:
            most = self.slopes[block].score + SURE * self.slopes[block].error
            if most > 0 and most * self.turned.get(block, np.inf) > NO_GAIN:
                return block
        return None

    def flattened(self, block: Block) -> np.ndarray:
        """A factor's covariance, with next to no variance where its block is singular."""
        gone = (GONE * self.engine.unit) ** 2
        point = self.design, self.engine.parameters
        return boundary.flattened(*point, block, self.singular[block], gone)

    def put(self, block: Block, matrix: np.ndarray) -> None:
        """Put a covariance in place of a factor's."""
        factor = self.design.factors[block[0]]
        self.engine.set(self.engine.values() | covariance.from_matrix(factor, matrix))
