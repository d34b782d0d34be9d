"""Is a variance zero? How a fit finds out.

Chapter 04. Take the variance away, refit the others, and look at the slope (`boundary`). Downhill:
that is the maximum. Else a little variance is tried, with the others refitted beside it. The slope
falls as the variance grows, so up to a variance v no more than slope * v is gained. Where it is
downhill from a small v on, what can be gained is known to be next to nothing, and zero is as good
as the maximum. Where it is uphill from there too, the maximum is inside. Whatever is not sure is
looked at again, with twice the draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmmbook.engine.certificate import boundary
from lmmbook.engine.certificate.boundary import Block, Slope
from lmmbook.engine.certificate.certify import Certificate

import numpy as np

if TYPE_CHECKING:
    from lmmbook.engine.driver import Driver

ZERO_SD = 1e-4  # an sd that is tried at zero, relative to `Engine.working_sd`
NO_GAIN = 0.02  # log-likelihood: what a point 0.2 standard errors from the maximum misses
TRIED = 0.8  # of it, so that another look at the slope may find it a little steeper
# Standard errors; from further away a slope is not what it is at the others' best.
MAX_REFIT_DISTANCE = 0.1
SURE = 3.0  # Monte Carlo standard errors before a sign is believed
REFITS = 5  # Newton's steps of the others, beside a variance that is tried
NEAREST, FURTHEST = 2.0, 10.0  # times a variance, to the next one that is tried


def settle(driver: Driver, block: Block, least: int, draws: int = 200) -> Certificate:
    """Decide whether a block has no variance in ``least`` directions, its smallest ones.

    ``driver.singular`` and ``driver.interior`` say so then; or the budget ends. Returns a
    certificate of where the parameters are left.
    """
    engine = driver.engine
    known = driver.found.definite and block not in driver.at_boundary
    before = engine.values() if known else None
    driver.singular[block], driver.trying = least, block
    driver.turned.pop(block, None)
    tiny = (ZERO_SD * engine.working_sd) ** 2
    point = driver.design, engine.parameters
    driver.put(block, boundary.flattened(*point, block, least, tiny))
    driver.saem()
    while True:
        found = driver.measure(draws)
        # Only where the others are at their best there is one direction to ask about. But where
        # they are on a ridge, and it is uphill inside, that is the way.
        while not (found.converged or (found.indefinite and driver.uphill(block))):
            found = driver.improve(found)
        draws, slope = driver.draws, driver.slopes[block]
        if slope.score + SURE * slope.error <= 0:
            driver.trying = None
            return found
        if inside(driver, block, slope, before):
            driver.singular[block], driver.trying = least - 1, None
            driver.interior.add(block)
            return driver.measure(draws)
        if block in driver.turned:
            driver.trying = None
            return driver.measure(draws)
        draws *= 2


def inside(driver: Driver, block: Block, slope: Slope, before: dict | None) -> bool:
    """Whether the maximum is known to be inside. If so, the parameters are left near there: as they
    were ``before``, or where the slope is about zero. If not, they are left as they are now, and
    ``driver.turned`` remembers from which variance on it is known to be downhill.
    """
    engine, along, draws = driver.engine, slope.direction[:, np.newaxis], driver.draws
    zero, most = engine.values(), engine.working_sd**2
    uphill = zero
    tried, variance = [(0.0, slope.score)], 0.0
    further = TRIED * NO_GAIN / (slope.score + SURE * slope.error)
    while True:
        _add(driver, block, (further - variance) * along @ along.T)
        variance = further
        if not refit(driver, draws, along):
            if len(tried) > 1:  # so much is known: it is uphill from there
                engine.set(uphill)
                return True
            break
        score, error, _ = driver.slopes[block]
        tried.append((variance, score))
        if score < -SURE * error:
            if len(tried) > 2:
                between = float(np.clip(flat_at(*tried[-2:]), tried[-2][0], variance))
                _add(driver, block, (between - variance) * along @ along.T)
                return True
            driver.turned[block] = variance
            break
        if not driver.uphill(block):
            if len(tried) > 2:  # it is flat here, as far as can be seen
                return True
            break
        if before is not None:
            engine.set(before)
            return True
        if variance >= most:
            return True
        uphill = engine.values()
        furthest = min(most, FURTHEST * variance)
        further = float(np.clip(flat_at(*tried[-2:]), NEAREST * variance, furthest))
    engine.set(zero)
    driver.draws = draws
    return False


def refit(driver: Driver, draws: int, along: np.ndarray) -> bool:
    """Bring the other parameters to their best, by Newton's steps, which leave a variance where it
    is; and measure. Whether they are known to be there."""
    for _ in range(REFITS):
        found = driver.measure(draws, along)
        if found.converged and found.distance < MAX_REFIT_DISTANCE:
            return True
        if not found.definite:
            return False
        driver.advance(found)
    return False


def _add(driver: Driver, block: Block, matrix: np.ndarray) -> None:
    """Add to the covariance of a factor."""
    lower = np.asarray(driver.engine.parameters.scales[block[0]], float)
    driver.put(block, lower @ lower.T + matrix)


def flat_at(first: tuple[float, float], second: tuple[float, float]) -> float:
    """Where a slope is zero that changes evenly, from two pairs of a variance and its slope;
    infinite if it does not fall.

    Examples
    --------
    >>> flat_at((0.0, 3.0), (1.0, 2.0))
    3.0
    """
    falls = (first[1] - second[1]) / (second[0] - first[0])
    return second[0] + second[1] / falls if falls > 0 else np.inf
