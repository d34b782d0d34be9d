"""How the exact likelihood is maximised.

Chapter 04. By roots of the covariances (`theta`). Where the maximum is a singular covariance, a
root with as many columns as rows has some too many: in these the slope vanishes whatever the data
say, and an optimiser creeps, or ends by mistake. So columns that are worth nothing are dropped, and
the maximum is sought with those that are left. Whether it is one among all covariances is then
asked of the slope in the covariance, not in its root: with a little more variance in some
direction, does the likelihood rise? If so, that direction becomes a new column.
"""

from __future__ import annotations

from lmmbook._numerics import uphill
from lmmbook.exact.theta import Curvature, Theta, lower

import numpy as np
from scipy import linalg, optimize

NEGLIGIBLE_GAIN = 1e-9  # of log-likelihood: a variance that is worth less is zero
UNCLEAR_GAIN = 1e-2  # what is worth less before the maximum is reached is tried as zero
ROUNDING = 1e-12  # of the log-likelihood
MAX_NEWTON_STEPS = 200  # Newton's steps, in one go


class Ascent(Theta):
    """A `Theta` that moves to the maximum."""

    def maximise(self) -> None:
        """Move on until nothing is to be gained.

        Where a covariance comes out singular there may be another maximum, in other directions:
        from those we start once more, and keep the higher one.

        Raises
        ------
        RuntimeError
            If it takes more steps than it ever should.
        """
        self._quasi_newton()
        self._find_rank(MAX_NEWTON_STEPS)
        value, reached = self.evaluate().value, (self.roots, self.residual_sd)
        if not self._turn_away():
            return
        try:
            self._find_rank(MAX_NEWTON_STEPS // 4)
            higher = self.evaluate().value > value + NEGLIGIBLE_GAIN
        except (RuntimeError, np.linalg.LinAlgError):  # this was only to make sure
            higher = False
        if not higher:
            self.roots, self.residual_sd = reached

    def _quasi_newton(self) -> None:
        """L-BFGS, from afar: it comes near to a maximum, or into a flat valley near it."""
        scales = [self.response_sd / block.size for block in self.blocks]
        start = self.point(scales)
        room = np.full(len(start), np.inf)
        if self.free:
            room[-1] = 5.0  # the first steps may be far too long

        def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
            found, slope = self.slope(point, scales)
            return -found.value, -slope

        result = optimize.minimize(
            objective, start, jac=True, method="L-BFGS-B",
            bounds=optimize.Bounds(start - room, start + room),
            options={"ftol": 1e-9, "gtol": 1e-4, "maxiter": 500},
        )  # fmt: skip
        self.move(result.x, scales)

    def _find_rank(self, patience: int) -> None:
        """To the maximum nearby, and to the ranks that its roots have."""
        self._drop_columns(UNCLEAR_GAIN)
        for _ in range(30):
            self._newton(patience)
            if not self._drop_columns(NEGLIGIBLE_GAIN) and not self._add_columns():
                return
        raise RuntimeError("exact fit: expected a maximum after 30 ascents, got a slope upwards")

    def _newton(self, patience: int) -> None:
        """Newton's steps, until they are smaller than a millionth of a standard error."""
        curvature, promised = self.curvature(), np.inf  # twice the gain that the last step promised
        for _ in range(patience):
            step, gain = self._newton_step(curvature)
            if gain > promised / 30:
                # Close by, one curvature serves all the steps; but this one is from too far away.
                curvature = self.curvature()
                step, gain = self._newton_step(curvature)
            promised = gain
            if promised < 1e-12 or not self._line_search(step, curvature.scales):
                break
        if promised > 1e-6:  # if less, rounding is all that is left
            raise RuntimeError(f"exact fit: expected a stationary point, got a last step of {step}")

    def _newton_step(self, curvature: Curvature) -> tuple[np.ndarray, float]:
        """Newton's step ``[parameters]``, and twice the gain that it promises.

        At most it adds as much as there is, and one on its scale.
        """
        point = self.point(curvature.scales)
        _, slope = self.slope(point, curvature.scales)
        step = uphill(slope, curvature.hessian)
        step /= (np.abs(step) / (1 + np.abs(point))).max(initial=1.0)
        return step, float(step @ slope)

    def _line_search(self, step: np.ndarray, scales: list[np.ndarray]) -> bool:
        """Take the step, or the largest of its halves, quarters, ... that does not lead downhill;
        was there one?"""
        point, value = self.point(scales), self.evaluate().value
        for halving in range(40):
            self.move(point + step / 2.0**halving, scales)
            if self.evaluate().value > value - ROUNDING * (1 + abs(value)):
                return True
        self.move(point, scales)
        return False

    def _drop_columns(self, little: float) -> bool:
        """Leave out the columns of roots that are worth too little; were there any?

        In a direction a, with a'expected a = e, the information on a variance v is about
        e^2 / (2 levels). So v is worth (v e)^2 / (4 levels).
        """
        roots = []
        for block, root in zip(self.blocks, self.roots, strict=True):
            metric = np.linalg.cholesky(self.surplus(block)[1])
            _, length, right = np.linalg.svd(metric.T @ root)  # v e is the square of a length
            keep = length**4 / (4 * block.levels) > little
            roots.append(root if keep.all() else lower(root @ right[keep].T))
        dropped = any(a is not b for a, b in zip(roots, self.roots, strict=True))
        self.roots = roots
        return dropped

    def _add_columns(self) -> bool:
        """Add a column to roots where the likelihood rises with a variance; did it for any?"""
        grown = False
        for i, (block, root) in enumerate(zip(self.blocks, self.roots, strict=True)):
            if root.shape[1] == len(root):
                continue
            value = self.evaluate().value
            surplus, directions = linalg.eigh(*self.surplus(block))
            away = directions[:, -1:]  # where e = 1, so that scoring proposes surplus * levels
            if surplus[-1] < 0 or surplus[-1] ** 2 * block.levels / 4 < 10 * NEGLIGIBLE_GAIN:
                continue  # or `_drop_columns` might take it back
            for halving in range(40):
                column = away * np.sqrt(surplus[-1] * block.levels / 2.0**halving)
                self.roots[i] = lower(np.hstack([root, column]))
                if self.evaluate().value > value:
                    grown = True
                    break
            else:
                self.roots[i] = root
        return grown

    def _turn_away(self) -> bool:
        """Let singular roots change places with the directions that they lack; were there any?"""
        roots = []
        for block, root in zip(self.blocks, self.roots, strict=True):
            if 0 < root.shape[1] < len(root):
                metric = np.linalg.cholesky(self.surplus(block)[1])
                lacking = np.linalg.svd(metric.T @ root)[0][:, root.shape[1] :]
                root = lower(np.linalg.solve(metric.T, lacking) * np.sqrt(block.levels))
            roots.append(root)
        turned = any(a is not b for a, b in zip(roots, self.roots, strict=True))
        self.roots = roots
        return turned
