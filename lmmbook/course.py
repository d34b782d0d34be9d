"""The course of a fit: what to do next, and when it is done.

Chapter 04. `mcem` says it in words; here it is in code.
"""

from __future__ import annotations

import math
from itertools import combinations_with_replacement

from lmmbook import boundary, certificate, checkpoint, complete_data, covariance
from lmmbook.boundary import Block
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
ENOUGH = 8  # times the first draws; a score that is not seen then is as good as zero
NO_GAIN = 0.02  # log-likelihood: what a point 0.2 standard errors from the maximum misses
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
    found
        The last certificate; None before the first.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.design = engine, engine.design
        self.singular: dict[Block, int] = {}
        self.interior: set[Block] = set()
        self.trying: Block | None = None
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
            block = self.unsettled()
            if block:
                found = self.settle(block)
            elif not found.converged:
                found = self.improve(found)
            else:
                break
        self.take(found.step)  # it is short: what is left is Monte Carlo error

    def climb(self) -> None:
        """Approach and average: the mean of the last two thirds of the iterates stays."""
        self.engine.em("approach", APPROACH)
        tail = self.engine.em("average", AVERAGE)
        self.engine.set(dict(tail.iloc[len(tail) // 3 :].mean()))

    def measure(self, draws: int) -> certificate.Certificate:
        """The certificate of the present parameters, from so many draws of each chain."""
        self.draws = draws
        self.found = self.engine.measure(draws, self.estimated())
        return self.found

    def improve(self, found: certificate.Certificate) -> certificate.Certificate:
        """Get closer if there is a way, and look again with twice the draws.

        The way is the Newton step, or part of it; from far away only a direction, so that EM
        iterations follow. Where the information is not known to be definite, there is no step: EM
        if it is known not to be, else only more draws can tell.
        """
        if found.definite:
            longest = np.abs(found.step[self.engine.layout.fixed :]).max()
            self.take(found.step / max(1.0, longest / LONGEST_STEP))
        if found.indefinite or FAR < found.distance < math.inf:
            self.climb()
        return self.measure(2 * self.draws)

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

    def settle(self, block: Block) -> certificate.Certificate:
        """Decide whether a block has no variance in one direction more.

        Take that variance away, refit the others, and look at its score. Negative: that is the
        maximum. Positive: start again, away from zero.
        """
        least = self.singular.get(block, 0) + 1
        self.singular[block], self.trying = least, block
        unit = self.engine.unit**2
        point = self.design, self.engine.parameters, block, least
        self.put(block, boundary.flattened(*point, GONE**2 * unit))
        self.climb()
        found = self.measure(DRAWS)
        while True:
            along = boundary.weakest(self.design, self.engine.parameters, block, least)
            score, error, direction = self.variance_score(block, along)
            enough = self.draws > ENOUGH * DRAWS
            # Only where the rest of the block is at its best there is one direction to ask about.
            if len(block[1]) == 1 or found.distance < certificate.CLOSE or enough:
                if score > SURE * error:
                    break
                if score < -SURE * error or enough:  # zero, or as good as zero
                    self.trying = None
                    return found
            found = self.improve(found)
        # The maximum is inside. Not worth a fit, if the slope turns before `NO_GAIN` is gained.
        lower = np.asarray(self.engine.parameters.scales[block[0]], float)
        flat, inside = lower @ lower.T, np.outer(direction, direction)
        self.put(block, flat + NO_GAIN / score * inside)
        self.measure(DRAWS)
        score, error, _ = self.variance_score(block, direction[:, np.newaxis])
        if score < -SURE * error:
            self.put(block, flat)
            self.trying = None
            return self.measure(self.draws)
        self.singular[block], self.trying = least - 1, None
        self.interior.add(block)
        self.put(block, flat + unit * inside)
        self.climb()
        return self.measure(DRAWS)

    def variance_score(self, block: Block, along: np.ndarray) -> tuple[float, float, np.ndarray]:
        """See `boundary.variance_score`."""
        names, point = ("score", "error", "direction"), (self.design, self.engine.parameters)

        def compute() -> checkpoint.Entry:
            found = boundary.variance_score(*point, self.engine.kept, block[0], along)
            return {name: np.asarray(x) for name, x in zip(names, found, strict=True)}

        entry = self.engine.journal.recall(compute)
        return float(entry["score"]), float(entry["error"]), entry["direction"]

    def put(self, block: Block, matrix: np.ndarray) -> None:
        """Put a covariance in place of a factor's."""
        factor = self.design.factors[block[0]]
        self.engine.set(self.engine.values() | covariance.from_matrix(factor, matrix))
