"""Whether one model is a special case of another."""

from __future__ import annotations

from itertools import combinations

from lmmbook.formula.covariance import ParameterSpec, specs_of
from lmmbook.formula.design import Design
from lmmbook.formula.factors import Factor

import numpy as np

SAME = 1e-6  # of a column's size, that another model's columns leave of it

REMEDY = (
    "; hold out rows and see which model predicts them better (log_score) to compare such models"
)


def check_nested(small: Design, large: Design) -> None:
    """Raise if the small model is not a special case of the large one, for the same rows."""
    order = _size(large) - _size(small)
    if order < 0:
        raise ValueError(
            "compare: expected a smaller model and a larger one, in this order, got "
            f"{small.formula!r} and {large.formula!r}"
        )
    if small.family != large.family:
        raise ValueError(f"compare: expected one family, got {small.family!r}, {large.family!r}")
    if small.response.shape != large.response.shape or not np.array_equal(
        small.response, large.response
    ):
        raise ValueError(
            "compare: expected fits of the same rows, in the same order, got "
            f"{small.rows:,} and {large.rows:,} rows with different responses"
        )
    if not np.array_equal(small.offset, large.offset):
        raise ValueError("compare: expected the same offset in both models, got different ones")
    # Of a column such as a year, what counts is what an intercept leaves of it.
    centre = small.fixed.mean(0) if "Intercept" in large.fixed_names else 0.0
    asked = small.fixed - centre
    left = asked - large.fixed @ np.linalg.lstsq(large.fixed, asked)[0]
    outside = np.linalg.norm(left, axis=0) > SAME * np.linalg.norm(asked, axis=0)
    if outside.any():
        names = [n for n, out in zip(small.fixed_names, outside, strict=True) if out]
        raise ValueError(
            f"compare: expected nested models, but only the smaller has {names}{REMEDY}"
        )
    theirs = {frozenset(f.columns): f for f in large.factors}
    for factor in small.factors:
        within = theirs.get(frozenset(factor.columns))
        missing = _missing(factor, within)
        if missing:
            raise ValueError(
                f"compare: expected nested models, but only the smaller has {missing}{REMEDY}"
            )
    if order == 0:
        raise ValueError(
            f"compare: expected one model to have more parameters, got {small.formula!r} twice"
        )


def added(small: Design, large: Design) -> list[tuple[Factor, ParameterSpec]]:
    """The sds and correlations that only the large model has, by whatever names it has the rest."""
    known = {key for factor in small.factors for key in _keys(factor)}
    return [
        (factor, parameter)
        for factor in large.factors
        for key, parameter in _keys(factor).items()
        if key not in known
    ]


def _keys(factor: Factor) -> dict[frozenset[frozenset[str]], ParameterSpec]:
    """A factor's parameters, by its columns and the effects that they belong to."""
    return {
        frozenset([frozenset(factor.columns), frozenset(factor.effects[j] for j in p.columns)]): p
        for p in specs_of(factor)
    }


def _missing(factor: Factor, within: Factor | None) -> str:
    """What of a factor the larger model's lacks, in words."""
    if within is None:
        return f"effects of {factor.name}"
    place = {name: j for j, name in enumerate(within.effects)}
    for j, name in enumerate(factor.effects):
        if name not in place or not np.array_equal(factor.z[:, j], within.z[:, place[name]]):
            return f"effects {name!r} of {factor.name}"
    for block in factor.blocks:
        for a, b in combinations(block, 2):
            pair = {place[factor.effects[a]], place[factor.effects[b]]}
            if not any(pair <= set(other) for other in within.blocks):
                return f"the correlation of {factor.effects[a]} and {factor.effects[b]}"
    return ""


def _size(design: Design) -> int:
    return len(design.fixed_names) + sum(len(specs_of(f)) for f in design.factors)
