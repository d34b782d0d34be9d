"""The result of a fit: tables and arrays, from where its `Driver` ended.

Chapter 04. `driver` leaves parameters and draws on the device; a `Fit` holds what people read.
"""

from __future__ import annotations

import warnings

from lmmbook.engine.arrays import in_double
from lmmbook.engine.certificate import boundary, certify
from lmmbook.engine.certificate.boundary import NUMBERS_AT_ONCE
from lmmbook.engine.driver import Driver
from lmmbook.engine.restricted import FixedEffects
from lmmbook.formula import covariance
from lmmbook.formula.design import Design
from lmmbook.formula.invariances import coordinates
from lmmbook.results.fit import Fit

import numpy as np
import pandas as pd


def assemble(driver: Driver, inner: coordinates.Inner, converged: bool, reml: bool = False) -> Fit:
    """The `Fit` of a design, as the data have it, from where a `Driver` of the ``inner`` one ended,
    or, by ``reml``, of that which is `restricted`."""
    engine, found, design = driver.engine, driver.found, inner.outer
    beta, covariances, auxiliary = in_double(engine.parameters)
    for k, block in driver.at_boundary:  # tried at next to nothing, and found to be nothing
        count = driver.singular[k, block]
        singular = boundary.flattened(driver.design, engine.parameters, (k, block), count, 0.0)
        place = np.ix_(block, block)
        covariances[k][place] = singular[place]
    values = coordinates.constrained(driver.design, beta, covariances, auxiliary)
    table = pd.DataFrame({"estimate": pd.Series(values, dtype=float)})
    table = table.join(found.table[["std_error", "mcse"]]).assign(at_boundary=False)
    if found.converged:  # what the last step may have missed, on the scale where 2.5 are allowed
        missed = found.missed / certify.ALLOWED * table["std_error"]
        table["mcse"] = np.hypot(table["mcse"], missed)
    table.index.name = "parameter"
    # Draws are there from the first certificate on; before, the chains' present state is one each.
    kept = engine.kept.draws
    if not engine.kept.filled:
        kept = [u.numpy()[np.newaxis] for u in engine.placement.together(engine.state.effects)]
    together = found.covariance.copy()
    for k, columns in driver.at_boundary:
        factor = design.factors[k]
        own = covariance.names_of_block(factor, columns)
        table.loc[own, ["std_error", "mcse"]] = np.nan
        together.loc[own] = together.loc[:, own] = np.nan
        table.loc[own, "at_boundary"] = True
    if reml:
        fixed = FixedEffects(engine, inner, found.step_errors if found.definite else None)
        table, together = with_fixed(design, fixed, table, together)
        kept = fixed.given_mean(kept)
        converged &= fixed.solved
        if not fixed.solved:
            warnings.warn(
                "lmmbook.fit has not converged: the equations of the fixed effects given the "
                "variances are too nearly singular to be solved; leave one of them out",
                stacklevel=4,
            )
    for k, columns in driver.at_boundary:
        if len(columns) == 1:
            kept[k][..., list(columns)] = 0.0
    posterior, effects = {}, {}
    for k, (factor, draws) in enumerate(zip(design.factors, kept, strict=True)):
        flat = np.moveaxis(draws, 2, 1).reshape(-1, factor.levels, len(factor.effects))  # a copy
        flat = coordinates.outer_effects(driver.design, k, flat)
        # Some levels at a time, so that there is no second copy of all draws.
        some = np.array_split(flat, -(-flat.size // NUMBERS_AT_ONCE), axis=1)
        mean, sd = (np.concatenate([f(x, axis=0) for x in some]) for f in (np.mean, np.std))
        effects[factor.name] = covariance.effects_table(factor, mean, sd)
        posterior[factor.name] = flat[..., 0] if factor.intercept_only else flat
    return Fit(
        table, together, converged, found.distance, found.r_hat, found.ess, effects,
        pd.concat(engine.trace, ignore_index=True), posterior, design, engine.chains, reml,
    )  # fmt: skip


def with_fixed(
    design: Design, fixed: FixedEffects, table: pd.DataFrame, together: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of variances, with the fixed effects: these errors are those given the variances,
    as lme4 has them, and so do not go with those of variances."""
    names = list(design.fixed_names)
    own = pd.DataFrame(
        {
            "estimate": fixed.mean,
            "std_error": np.sqrt(np.diag(fixed.covariance)),
            "mcse": fixed.mcse,
            "at_boundary": False,
        },
        index=names,
    )
    order = covariance.parameter_names(design)
    both = together.reindex(index=order, columns=order)
    known = list(table.index[table["std_error"].notna()])
    both.loc[names, known] = both.loc[known, names] = 0.0
    both.loc[names, names] = fixed.covariance
    return pd.concat([own, table]).loc[order].rename_axis("parameter"), both
