"""What keeps a fit from being known to have converged, in words.

Chapter 04. Either a covariance may be at its boundary, or may not; or the data say next to nothing
in some direction. Both have a name, and something to do about it.
"""

from __future__ import annotations

from lmmbook.engine.certificate import certify
from lmmbook.engine.driver import Driver
from lmmbook.engine.settle import NO_GAIN
from lmmbook.families.gaussian import Gaussian
from lmmbook.formula import covariance
from lmmbook.formula.existence import LOST
from lmmbook.results.fit import CONVERGED_WITHIN

FLAT = 3.0  # standard error of a logarithm from which on a parameter could as well be infinite


def endless(driver: Driver) -> str | None:
    """Why the likelihood has no maximum that the data could show, if that shows only now.

    Where counts vary no more than a Poisson's, it rises with the shape for ever. Ever more slowly,
    so that the steps to a maximum get short beside an error that grows: they say nothing.
    """
    errors = driver.found.table["std_error"]
    known = [p.name for p in covariance.specs(driver.design) if p.kind == "positive"]
    flat = [name for name in known if errors[name] > FLAT]
    if not flat:
        return None
    return (
        f"{flat[0]!r} could as well be infinite, for the counts vary no more than a Poisson's: "
        "take family='poisson'"
    )


def missing(driver: Driver) -> str:
    """What a fit lacks whose budget ended, and what helps: a clause for its warning."""
    spent = f"{driver.engine.max_sweeps:,} sweeps were not enough"
    family = driver.design.family
    gaussian = isinstance(family, Gaussian) and family.estimated
    if gaussian and driver.engine.parameters.residual_sd < LOST:
        sd = driver.engine.trace[-1]["sd(residual)"].iloc[-1]
        return (
            f"'sd(residual)' went to {sd:.2g}, next to nothing beside the responses. Where the "
            "effects explain every row there is no maximum, and more sweeps cannot find one: try "
            "a simpler model"
        )
    if not driver.draws:
        return f"{spent} to look for the maximum: try a larger max_sweeps"
    return f"{spent}: {obstacle(driver) or furthest(driver.found)}"


def obstacle(driver: Driver) -> str | None:
    """What more sweeps may not mend; None if there is no such thing."""
    found = driver.found
    if found.unknown:
        about = f"about {listed(found.unknown)}{' together' if len(found.unknown) > 1 else ''}"
        if found.noise > 2 * certify.SINGULAR:
            return f"so few draws say nothing {about}: try a larger max_sweeps, or a simpler model"
        return (
            f"the data say next to nothing {about}: leave out one of the terms, or centre the "
            "covariates; a larger max_sweeps will hardly help"
        )
    if block := driver.trying or driver.doubtful():
        names = covariance.names_of_block(driver.design.factors[block[0]], block[1])
        return (
            f"it is not known whether the maximum has no variance in some direction of "
            f"{listed(names)}: with one, the log-likelihood may be more than {NO_GAIN} higher; try "
            f"a larger max_sweeps, which may tell, or a model without one of these terms"
        )
    return None


def furthest(found: certify.Certificate) -> str:
    """Which parameter is furthest from being known to be at the maximum, and why."""
    if not found.definite:
        return (
            "from where it is, no distance to the maximum can be given, for the draws do not show "
            "a curvature in every direction; try a larger max_sweeps, or a simpler model"
        )
    if found.converged:  # of where it was then; since, it has moved
        return "a last look at where it has come to was still to be taken; try a larger max_sweeps"
    errors = found.table["std_error"]
    steps = found.table["step"].abs() / errors
    noise = certify.ALLOWED * found.table["mcse"] / errors
    name = str((steps + noise).idxmax())
    known = f"within {noise[name]:.2g} ({certify.ALLOWED} Monte Carlo standard errors)"
    if found.far:
        return (
            f"the maximum is {steps[name]:.2g} standard errors away in {name!r}, {known}. Try a "
            "larger max_sweeps, or a simpler model"
        )
    return (
        f"the estimates are near the maximum, but not known to be near enough: {name!r} is "
        f"{steps[name]:.2g} standard errors away, {known}, where {CONVERGED_WITHIN} is asked. That "
        "is Monte Carlo error: try a larger max_sweeps, or more chains"
    )


def listed(names: tuple[str, ...] | list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
