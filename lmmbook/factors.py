"""Grouping factors: which rows belong together, and which effects vary between the groups.

Chapters 01 and 09. One integer code a row says all there is to say about a grouping, where a matrix
of zeros and ones would need rows x levels numbers. The codes come from `labels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from lmmbook.frames import all_finite, ones, pieces
from lmmbook.labels import encode
from lmmbook.syntax import Bar

import numpy as np
import pandas as pd
from formulae.environment import Environment
from formulae.matrices import CommonEffectsMatrix

DEPENDENT = 1e-12  # eigenvalue of columns of length one, less their means; not told from rounding
ALIKE = 1e-5  # the same, of blocks of effects that are independent: those cannot be centred
FAR = 0.9  # cosine of a covariate with the intercept; 0.9 is a mean of two sds
NOISE = 1e-13  # a covariate that varies by less of its mean varies by rounding


@dataclass(frozen=True)
class Factor:
    """A grouping factor, with the effects that each of its levels has.

    Terms with the same group are one factor: ``(1|g) + (0+x|g)`` is a factor ``g`` with two columns
    in two blocks, ``(1+x|g)`` one with two columns in one block.

    Attributes
    ----------
    name
        As in the formula: ``"students"``, or ``"recipe:replicate"`` for an interaction.
    columns
        The data columns that its levels are made of, ``("recipe", "replicate")``.
    labels
        ``[levels]``, the original labels, in the order of the codes.
    codes
        ``[rows]`` int32 in ``0 .. levels - 1``.
    effects
        ``[columns]``, names of a level's effects: ``("Intercept",)``, ``("Intercept", "Days")``.
    z
        ``[rows, columns]`` float64: what multiplies a level's effects, ones for an intercept. For a
        lone intercept it is one 1.0 seen from every row, which cannot be written to.
    blocks
        Which columns are correlated: a partition of ``0 .. columns - 1``.
    """

    name: str
    columns: tuple[str, ...]
    labels: pd.Index
    codes: np.ndarray
    effects: tuple[str, ...]
    z: np.ndarray
    blocks: tuple[tuple[int, ...], ...]
    _common: tuple[CommonEffectsMatrix | None, ...] = field(default=(None,), repr=False)

    @property
    def levels(self) -> int:
        """Number of levels."""
        return len(self.labels)

    @property
    def intercept_only(self) -> bool:
        """Whether a level has no effect but its intercept."""
        return self.effects == ("Intercept",)

    def on(self, data: pd.DataFrame) -> Factor:
        """The factor over new rows, with levels that are new appended after the known ones."""
        own, found = encode(data, self.columns)
        labels = self.labels.append(found.difference(self.labels))
        codes = labels.get_indexer(found).astype(np.int32)[own]
        z = _stack([_evaluate(common, data) for common in self._common])
        return Factor(
            self.name, self.columns, labels, codes, self.effects, z, self.blocks, self._common
        )


def build_factors(
    bars: Sequence[Bar], data: pd.DataFrame, environment: Environment
) -> tuple[Factor, ...]:
    """One `Factor` a group, in the order of the formula.

    Raises
    ------
    ValueError
        If a factor has one level, or as many effects as there are rows; if two factors group the
        rows alike; if an effect is there twice, never varies from zero, or is a linear combination
        of others; or if a value is infinite.
    """
    by_group: dict[frozenset[str], list[Bar]] = {}
    for bar in bars:
        by_group.setdefault(frozenset(bar.group), []).append(bar)
    factors = tuple(_factor(bars, data, environment) for bars in by_group.values())
    for first, second in combinations(factors, 2):
        # Each level occurs, so nested in as many levels is one to one.
        if first.levels == second.levels and parents(first, second) is not None:
            raise ValueError(
                f"groups {first.name!r} and {second.name!r}: expected different groupings, "
                "got the same one under two names"
            )
    return factors


def parents(child: Factor, parent: Factor) -> np.ndarray | None:
    """``[child levels]``: the level of ``parent`` each lies in, or None if it is not nested."""
    one = np.full(child.levels, -1, np.int32)
    for piece in pieces(len(child.codes)):  # most that are not nested show it in the first
        own, above = child.codes[piece], parent.codes[piece]
        before = one[own]
        one[own] = above
        if not (np.array_equal(one[own], above) and ((before < 0) | (before == above)).all()):
            return None
    return np.maximum(one, 0)


def _factor(bars: Sequence[Bar], data: pd.DataFrame, environment: Environment) -> Factor:
    columns = bars[0].group
    name = ":".join(columns)
    codes, labels = encode(data, columns)
    if len(labels) < 2:
        raise ValueError(f"group {name!r}: expected at least two levels, got {len(labels)}")
    effects: list[str] = []
    blocks: list[tuple[int, ...]] = []
    matrices: list[CommonEffectsMatrix | None] = []
    of_bars: list[np.ndarray] = []
    for bar in bars:
        if bar.effects is None:
            common, own, columns_of_bar = None, ["Intercept"], ones(len(data))
        else:
            common, own, columns_of_bar = evaluate(bar.effects, data, environment)
        block = tuple(range(len(effects), len(effects) + len(own)))
        blocks += [block] if bar.correlated else [(column,) for column in block]
        effects += own
        matrices.append(common)
        of_bars.append(columns_of_bar)
    z = _stack(of_bars)
    _check_effects(name, effects, z, blocks)
    if len(labels) * len(effects) >= len(data):
        raise ValueError(
            f"group {name!r}: expected fewer random effects than rows, got {len(labels)} levels "
            f"with {len(effects)} effect(s) each for {len(data)} rows"
        )
    return Factor(name, columns, labels, codes, tuple(effects), z, tuple(blocks), tuple(matrices))


def _check_effects(
    name: str, effects: list[str], z: np.ndarray, blocks: list[tuple[int, ...]]
) -> None:
    twice = sorted({effect for effect in effects if effects.count(effect) > 1})
    if twice:
        raise ValueError(f"group {name!r}: expected each effect once, got {twice} more than once")
    offsets = [effect for effect in effects if effect.startswith("offset(")]
    if offsets:
        raise ValueError(f"group {name!r}: expected effects, got {offsets}; an offset is fixed")
    if not all_finite(z):
        raise ValueError("data: expected finite numbers, got infinite values")
    what, parts = f"effects of group {name!r}", []
    for block in map(list, blocks):
        own, of_block = z[:, block], [effects[j] for j in block]
        origin = origin_of(own, of_block)
        parts.append(own if origin is None else own - origin)
        check_independent(what, parts[-1], of_block)
    if len(parts) > 1:
        # Whatever the columns of a block, all that matters is what it shares with other blocks.
        parts = [p @ np.linalg.inv(np.linalg.qr(p).R) if p.shape[1] > 1 else p for p in parts]
        check_independent(what, np.hstack(parts), effects, ALIKE)


def check_independent(
    what: str, columns: np.ndarray, names: Sequence[str], least: float = DEPENDENT
) -> None:
    """Refuse ``[rows, columns]`` that are linearly dependent, or next to it."""
    if columns.strides[0] == 0:  # all rows are one
        columns = columns[:1]
    gram = columns.T @ columns  # without a copy of the columns
    length = np.sqrt(np.diag(gram))
    length = np.where(length > 0, length, 1.0)
    smallest = np.linalg.eigvalsh(gram / length / length[:, np.newaxis]).min()
    if smallest < least:
        raise ValueError(
            f"{what}: expected linearly independent columns, got {list(names)}, which are "
            f"dependent or nearly so (smallest eigenvalue {max(smallest, 0.0):.1e}, expected at "
            f"least {least:g}); leave one out, or centre covariates that lie far from zero"
        )


def origin_of(columns: np.ndarray, names: Sequence[str]) -> np.ndarray | None:
    """Means ``[columns]`` of covariates that are far from zero, such as years; zero for others.

    None where there is nothing to take away, or no intercept to take it up.
    """
    if "Intercept" not in names or len(names) == 1:
        return None
    gram = columns.T @ columns / len(columns)  # without a copy of the columns
    means = gram[list(names).index("Intercept")]
    far = np.abs(means) > FAR * np.sqrt(np.diag(gram))
    varies = [np.ptp(c) > NOISE * abs(mean) for c, mean in zip(columns.T, means, strict=True)]
    origin = np.where(far & varies, means, 0.0)
    return origin if origin.any() else None


def evaluate(
    description: Any, data: pd.DataFrame, environment: Environment
) -> tuple[CommonEffectsMatrix, list[str], np.ndarray]:
    """What ``formulae`` makes of the fixed part of a description.

    Returns
    -------
    Its terms, which remember how to do the same with new rows but no longer hold a row themselves;
    the names of the columns; and the columns, ``[rows, columns]`` float64.
    """
    description.eval(data, environment)
    terms = description.common_terms
    common = CommonEffectsMatrix(terms)
    widths = [1 if term.data.ndim == 1 else term.data.shape[1] for term in terms]
    names = [label for term in terms for label in term.labels]
    columns = ones(len(data)) if names == ["Intercept"] else np.empty((len(data), len(names)))
    start = 0
    for term, width in zip(terms, widths, strict=True):
        if columns.flags.writeable:
            columns[:, start : start + width] = term.data.reshape(len(data), -1)
        common.slices[term.name] = slice(start, start + width)
        start += width
        _forget_rows(term)
    common.design_matrix, common.evaluated, common.env = columns[:0].copy(), True, environment
    return common, names, columns


def _forget_rows(term: Any) -> None:
    """Keep of a term's arrays no more than their shapes, which `evaluate_new_data` goes by."""
    term.data = term.data[:0].copy()
    for part in getattr(term, "components", ()):
        part.value = part.value[:0].copy()
        if part.kind == "offset":  # of which it asks whether it is a constant
            if part._intermediate_data.kind == "variable":
                part._intermediate_data.x = part.value
        else:
            part._intermediate_data = None


def _evaluate(common: CommonEffectsMatrix | None, data: pd.DataFrame) -> np.ndarray:
    """``[rows, columns]`` of new rows; None stands for a lone intercept, a column of ones."""
    if common is None:
        return ones(len(data))
    new = common.evaluate_new_data(data).design_matrix
    return np.asarray(new, float).reshape(len(data), -1)


def _stack(columns: list[np.ndarray]) -> np.ndarray:
    return columns[0] if len(columns) == 1 else np.hstack(columns)
