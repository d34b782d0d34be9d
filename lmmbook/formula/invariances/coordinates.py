"""The coordinates in which a fit is computed, and the way back to those of the data.

Chapters 04 and 09. The engine computes in single precision, which keeps seven digits. Of seconds
since 1970 these are all gone before the first one that varies. So a fit is of an *inner* design, a
linear map away from the one of the data. It is the same model, with other names for the same
predictors:

- fixed effects: a column that an intercept or other columns nearly make up, such as a year, is
  replaced by what they leave of it, and is measured in units of its own;
- random effects: the same, among the columns of a correlated block; others are only scaled;
- an offset, and a Gaussian response, are replaced by what the fixed effects leave of them; a
  Gaussian response is measured in units of about its residual sd.

`constrained` leads back, and whatever a user sees went through it. Columns that are fine stay as
they are, and are not copied.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from lmmbook.families.gaussian import Gaussian
from lmmbook.formula import covariance
from lmmbook.formula.dependence import products
from lmmbook.formula.design import Design
from lmmbook.formula.factors import Factor
from lmmbook.formula.invariances import directions
from lmmbook.formula.invariances.conditioning import (
    ROUNDING,
    centred,
    is_identity,
    orthogonal,
    scaling,
)

import numpy as np

HUGE = 1e100


@dataclass(frozen=True)
class Inner(Design):
    """A design in inner coordinates.

    With a prime for inner values, and s the ``response_scale``: the fixed effects are ``beta =
    origin + s fixed_map @ beta'``, a level's effects ``s effect_maps[k] @ u'``, and a residual sd
    is s times the inner one.

    Attributes
    ----------
    outer
        The design in the coordinates of the data.
    response_scale
        One of the inner linear predictor is so much in units of the response.
    origin
        ``[fixed]``: the fixed effects where all inner ones are zero.
    fixed_map
        ``[fixed, fixed]``.
    effect_maps
        ``[columns, columns]`` a factor.
    """

    outer: Design = field(kw_only=True, repr=False)
    response_scale: float = field(kw_only=True)
    origin: np.ndarray = field(kw_only=True)
    fixed_map: np.ndarray = field(kw_only=True)
    effect_maps: tuple[np.ndarray, ...] = field(kw_only=True)


def inner(design: Design) -> Inner:
    """The design in coordinates that suit single precision.

    Raises
    ------
    ValueError
        If a response or an offset is so large or small that double precision cannot square it.
    """
    factors, maps = zip(*map(_within_blocks, design.factors), strict=True)
    fixed, fixed_map = _fixed(replace(design, factors=factors))
    response, offset, response_scale, taken = _rows(design, fixed)
    family = design.family
    if isinstance(family, Gaussian) and family.sd is not None:
        family = Gaussian(1.0)
    plain = {f.name: getattr(design, f.name) for f in fields(Design)}
    changed = {"family": family, "response": response, "offset": offset, "fixed": fixed}
    return Inner(
        **(plain | changed | {"factors": factors}),
        outer=design, response_scale=response_scale, origin=fixed_map @ taken,
        fixed_map=fixed_map, effect_maps=maps,
    )  # fmt: skip


def outer(design: Design) -> Design:
    """The design in the coordinates of the data."""
    return design.outer if isinstance(design, Inner) else design


def constrained(
    design: Design, beta: np.ndarray, covariances: list[np.ndarray], auxiliary: np.ndarray
) -> dict:  # fmt: skip
    """`covariance.name_values` in the coordinates of the data, of values in those of ``design``."""
    if not isinstance(design, Inner):
        return covariance.name_values(design, beta, covariances, auxiliary)
    beta = design.origin + design.response_scale * (beta @ design.fixed_map.T)
    if isinstance(design.family, Gaussian):
        auxiliary = auxiliary + np.log(design.response_scale)
    covariances = [
        design.response_scale**2 * (m @ matrix @ m.T)
        for m, matrix in zip(design.effect_maps, covariances, strict=True)
    ]
    return covariance.name_values(design.outer, beta, covariances, auxiliary)


def on_their_scales(
    design: Design, beta: np.ndarray, covariances: list[np.ndarray], auxiliary: np.ndarray
) -> np.ndarray:
    """`constrained`, ``[parameters]``, on the scales on which their errors are given: an sd's
    logarithm, a correlation's Fisher z.

    With x so far from zero that an intercept there is next to nothing but minus the slope, their
    correlation is -1 but for the last digits. Fisher's z does not go by those: with a and b of
    length one, it is log |a + b| / |a - b|.
    """
    found = constrained(design, beta, covariances, auxiliary)
    with np.errstate(divide="ignore", invalid="ignore"):  # at a boundary they are infinite
        values = {p.name: p.scale(found[p.name]) for p in covariance.specs(design)}
        for k, (factor, matrix) in enumerate(zip(design.factors, covariances, strict=True)):
            root = covariance.root(matrix)
            if isinstance(design, Inner):
                root = design.effect_maps[k] @ root
            root = root / np.linalg.norm(root, axis=1, keepdims=True)
            for name, kind, columns in covariance.specs_of(factor):
                if kind == "cor":
                    a, b = root[[*columns]]
                    values[name] = np.log(np.linalg.norm(a + b)) - np.log(np.linalg.norm(a - b))
    return np.array(list(values.values()), float)


def inner_covariances(design: Inner, covariances: list[np.ndarray]) -> list[np.ndarray]:
    """Covariances ``[columns, columns]`` of the data's effects, as those of inner ones."""
    by = [np.linalg.inv(design.response_scale * m) for m in design.effect_maps]
    return [m @ np.nan_to_num(c) @ m.T for m, c in zip(by, covariances, strict=True)]


def outer_effects(design: Design, k: int, effects: np.ndarray) -> np.ndarray:
    """Effects ``[..., columns]`` of factor k in the coordinates of the data.

    In double precision where columns were centred: an effect at zero is far from any row then, and
    in a sum over columns most of it cancels.
    """
    if not isinstance(design, Inner):
        return effects
    by = design.response_scale * design.effect_maps[k]
    if np.count_nonzero(by - np.diag(np.diag(by))):
        return effects @ by.T
    return effects * np.diag(by).astype(effects.dtype)


def _within_blocks(factor: Factor) -> tuple[Factor, np.ndarray]:
    """A factor with inner columns, and the map ``[columns, columns]`` of its effects."""
    whole = np.eye(len(factor.effects))
    if factor.intercept_only:
        return factor, whole
    z = factor.z
    for block in map(list, factor.blocks):
        columns, first = centred(factor.z[:, block], [factor.effects[j] for j in block])
        found = products(columns)
        by = orthogonal(found, np.ones_like(found, dtype=bool))
        by = by @ scaling(by.T @ found @ by)
        whole[np.ix_(block, block)] = first @ by
        if not is_identity(first @ by):
            z = z.copy() if z is factor.z else z
            z[:, block] = columns @ by
    return replace(factor, z=z), whole


def _fixed(design: Design) -> tuple[np.ndarray, np.ndarray]:
    """Inner columns ``[rows, fixed]`` and their map, for a design whose factors are inner ones.

    A column that is constant within a factor's levels can be taken over by its effects
    (`directions.expanded`), and stays so: of it, only columns of the same kind are taken away.
    """
    columns, first = centred(design.fixed, design.fixed_names)
    found = products(columns)
    by = orthogonal(found, np.ones_like(found, dtype=bool))
    if not is_identity(by):
        takers = _takers(replace(design, fixed=columns))
        by = orthogonal(found, np.array([[own <= other for other in takers] for own in takers]))
    by = by @ scaling(by.T @ found @ by)
    return columns if is_identity(by) else columns @ by, first @ by


def _takers(design: Design) -> list[set[tuple[int, int]]]:
    """For each fixed column, the factors and their columns that can take it over."""
    takers: list[set[tuple[int, int]]] = [set() for _ in design.fixed_names]
    for k, factor in enumerate(design.factors):
        found = directions.expanded(design, factor)
        for c, j in zip(found.fixed, found.columns, strict=True):
            takers[c].add((k, j))
    return takers


def _rows(
    design: Design, fixed: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:  # fmt: skip
    """Inner response and offset, the response's scale, and what was taken away, ``[fixed]``: the
    coefficients of inner columns, in units of the response."""
    family, none = design.family, np.broadcast_to(0.0, design.rows)
    gaussian = isinstance(family, Gaussian)
    if not gaussian and design.offset.strides == (0,):
        return design.response, design.offset, 1.0, np.zeros(fixed.shape[1])
    residual = design.response - design.offset if gaussian else -design.offset
    largest = float(np.abs(residual).max())
    if not (largest == 0 or 1 / HUGE < largest < HUGE):
        raise ValueError(
            f"response {design._response!r} and offset: expected numbers whose squares a computer "
            f"can hold, got up to {largest:.3g}; choose another unit"
        )
    taken = np.zeros(fixed.shape[1])
    for _ in range(2):  # once more for what rounding left
        more = np.linalg.lstsq(products(fixed), fixed.T @ residual / len(residual), rcond=None)[0]
        taken, residual = taken + more, residual - fixed @ more
    if not isinstance(family, Gaussian):
        size = np.abs(design.offset).max()
        offset = none if np.abs(residual).max() <= ROUNDING * size else -residual
        return design.response, offset, 1.0, taken
    if family.sd is not None:
        return residual / family.sd, none, family.sd, taken
    size = float(np.sqrt(np.mean(residual**2)))
    response_scale = 2.0 ** round(np.log2(size)) if size > 0 else 1.0
    return residual / response_scale, none, response_scale, taken
