"""The schedule of a fit: what to do next, and when it is done.

Chapter 04. `fit` says it in words; here it is in code.
"""

from __future__ import annotations

import math
from itertools import combinations_with_replacement

from lmmbook.engine import checkpoint, settle
from lmmbook.engine.certificate import boundary, certify, local
from lmmbook.engine.certificate.boundary import Block, Slope
from lmmbook.engine.runner import Engine
from lmmbook.formula import covariance

import numpy as np
from scipy import linalg

APPROACH = np.ones(20)  # gains of the M-steps
AVERAGE = np.arange(1.0, 21.0) ** -0.7
FIRST_DRAWS = 20  # sweeps of a first certificate
KEPT_SWEEPS = 80  # of the last one, at least: its draws of the effects are kept
FEWEST_SWEEPS = 240  # that is what these need, with what settles and fills up chunks
MANY_DRAWS = 400  # of which it is no bad luck that they do not show the information to be definite
SURPLUS = 1.1  # times the draws that seem to be needed: how many that are is an estimate
MAX_LOG_SD_STEP = 0.5  # a Newton step changes the logarithm of no sd by more
TRUST_RADIUS = 1.0  # standard errors; from further away, the Newton step is only a direction


class Driver:
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
    found, draws
        The last certificate, and of how many draws of each chain, 0 before the first.
    asked, slopes
        For each block that has no variance in some direction: the directions ``[columns,
        directions]``, and what those draws say of a variance along them.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.design = engine, engine.design
        self.singular: dict[Block, int] = {}
        self.interior: set[Block] = set()
        self.trying: Block | None = None
        self.turned: dict[Block, float] = {}
        self.asked: dict[Block, np.ndarray] = {}
        self.slopes: dict[Block, Slope] = {}
        self.found = certify.nothing_known(self.design, engine.layout)
        self.draws = 0

    @property
    def at_boundary(self) -> list[Block]:
        """Blocks whose covariance is known to be singular at the maximum."""
        return [b for b, count in self.singular.items() if count > (b == self.trying)]

    def run(self) -> None:
        """Go on until converged. Raises `runner.OutOfBudget` if the budget ends first."""
        self.saem()
        found = self.measure(FIRST_DRAWS)
        while True:
            if block := self.unsettled():
                found = settle.settle(self, block, self.singular.get(block, 0) + 1)
            elif not found.converged:
                found = self.improve(found)
            elif block := self.doubtful():  # what was found out elsewhere does not hold here
                found = settle.settle(self, block, self.singular[block])
            elif self.draws < KEPT_SWEEPS:  # a first look: from nearer, a longer one
                self.take(found.step)
                found = self.measure(KEPT_SWEEPS, near=True)
            else:
                break
        self.take(found.step)  # it is short: what is left is Monte Carlo error

    def saem(self) -> None:
        """Stochastic approximation EM: M-steps with gain 1, then with gains that fall.

        The mean of the last two thirds of the iterates with falling gains stays (Polyak's and
        Ruppert's average).
        """
        self.engine.em("approach", APPROACH)
        tail = self.engine.em("average", AVERAGE)
        self.engine.set(dict(tail.iloc[len(tail) // 3 :].mean()))

    def measure(
        self, draws: int, along: np.ndarray | None = None, near: bool = False
    ) -> certify.Certificate:
        """The certificate of the present parameters, from so many draws of each chain; and the
        slopes of variances at the boundary, along the directions in which there is none, or, for
        the block that is being tried, ``along`` [columns, directions]."""
        point = self.design, self.engine.parameters
        asked = {b: boundary.weakest(*point, b, n) for b, n in self.singular.items() if n}
        if self.trying and along is not None:
            asked[self.trying] = along

        def look(draws: list[np.ndarray]) -> checkpoint.Entry:
            return {
                f"{i}_{j}": scores
                for i, (block, directions) in enumerate(asked.items())
                for j, scores in enumerate(boundary.scores(*point, draws, block[0], directions))
            }

        self.asked, given = asked, (draws, self.estimated(), look if asked else None)
        return self._judge(self.engine.measure(*given, near))

    def extend(self, draws: int) -> certify.Certificate:
        """The same, from as many draws more, beside those of the last certificate."""
        return self._judge(self.engine.extend(draws))

    def _judge(self, found: certify.Certificate) -> certify.Certificate:
        measurement, self.slopes = self.engine.measurement, {}
        assert measurement is not None
        self.found, self.draws = found, len(measurement.score)
        watched = measurement.watched
        for i, (block, directions) in enumerate(self.asked.items()):
            own = [x for name, x in watched.items() if name.startswith(f"{i}_")]
            self.slopes[block] = boundary.slope(own, directions)
        return found

    def improve(self, found: certify.Certificate) -> certify.Certificate:
        """Get closer where the way there is known, and look again; where it is not, look longer.

        The way is the Newton step, or part of it; from far away only a direction, so that EM
        iterations follow.
        """
        if not (found.far or found.indefinite):
            return self.extend(math.ceil(self.draws * min(SURPLUS * found.more - 1, 1)))
        if not found.indefinite:
            self.advance(found)
        if found.indefinite or TRUST_RADIUS < found.distance < np.inf:
            self.saem()
        return self.measure(FIRST_DRAWS)

    def advance(self, found: certify.Certificate) -> None:
        """The Newton step, or as much of it as changes no sd by too much."""
        longest = np.abs(found.step[self.engine.layout.fixed :]).max(initial=0.0)
        self.take(found.step / max(1.0, longest / MAX_LOG_SD_STEP))

    def take(self, step: np.ndarray) -> None:
        """Move the parameters by a step in local coordinates."""
        moved = local.move(self.design, self.engine.layout, self.engine.parameters, step)
        self.engine.set(covariance.name_values(self.design, *moved))

    def estimated(self) -> np.ndarray:
        """``[coordinates, free]``: the directions that are neither fixed nor at a boundary."""
        layout = self.engine.layout
        begins = local.offsets(layout)
        free = np.eye(local.dimension(layout))
        columns = [free[:, : layout.fixed]]
        for k in range(len(layout.factors)):
            # A tangent S = n n' along a direction n without variance changes nothing.
            idle = self._idle(k)
            place = free[:, begins[k] : begins[k + 1]]
            columns.append(place @ linalg.null_space(np.array(idle)) if idle else place)
        if layout.family.estimated:
            columns.append(free[:, begins[-1] :])
        return np.hstack(columns)

    def _idle(self, k: int) -> list[np.ndarray]:
        """Tangent coordinates of factor k along which its covariance does not change."""
        factor_layout, found = self.engine.layout.factors[k], []
        for block, count in self.singular.items():
            if block[0] != k:
                continue
            vectors = np.zeros((factor_layout.columns, count))
            axes = boundary.axes(self.design, self.engine.parameters, block)[1]
            vectors[list(block[1])] = axes[:, :count]
            for n, m in combinations_with_replacement(vectors.T, 2):
                found.append(np.array([n[a] * m[b] + n[b] * m[a] for a, b in factor_layout.pairs]))
        return found

    def unsettled(self) -> Block | None:
        """A block that looks weak in more directions than are known to be at the boundary."""
        point = self.design, self.engine.parameters
        blocks = [(k, block) for k, f in enumerate(self.design.factors) for block in f.blocks]
        draws = self.engine.kept.draws
        weak = self.engine.journal.recall(
            lambda: {"weak": np.array([*boundary.weak_blocks(*point, draws).values()])}
        )["weak"]
        for block, count in zip(blocks, weak.tolist(), strict=True):
            if count > self.singular.get(block, 0) and block not in self.interior:
                return block
        return self._unknown(blocks)

    def _unknown(self, blocks: list[Block]) -> Block | None:
        """Of the blocks that the ratings cannot tell from something else, even by more draws, the
        one with the smallest variance: without it the others may be known."""
        found = self.found
        if not found.weakly_identified or found.indefinite or self.draws < MANY_DRAWS:
            return None
        smallest = {}
        for k, columns in set(blocks) - self.interior - set(self.singular):
            names = covariance.names_of_block(self.design.factors[k], columns)
            if set(names) & set(found.unknown):
                point = self.design, self.engine.parameters
                smallest[k, columns] = boundary.axes(*point, (k, columns))[0][0]
        return min(smallest, key=lambda block: smallest[block], default=None)

    def uphill(self, block: Block) -> bool:
        """Whether by the last certificate a variance is known to raise the log-likelihood."""
        return self.slopes[block].score > settle.SURE * self.slopes[block].error

    def doubtful(self) -> Block | None:
        """A block at the boundary, of which that is not known to be the maximum: where by the last
        certificate the log-likelihood may be `settle.NO_GAIN` higher inside."""
        for block in self.at_boundary:
            most = self.slopes[block].score + settle.SURE * self.slopes[block].error
            if most > 0 and most * self.turned.get(block, np.inf) > settle.NO_GAIN:
                return block
        return None

    def put(self, block: Block, matrix: np.ndarray) -> None:
        """Put a covariance in place of a factor's."""
        factor = self.design.factors[block[0]]
        self.engine.set(self.engine.values() | covariance.from_matrix(factor, matrix))
