"""Grouping factors: which rows belong together, and which effects vary between the groups.

Chapters 01 and 09. One integer code a row says all there is to say about a grouping, where a matrix
of zeros and ones would need rows x levels numbers. The codes come from pandas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from lmmbook.syntax import Bar

import numpy as np
import pandas as pd
from formulae.environment import Environment
from formulae.matrices import CommonEffectsMatrix, DesignMatrices

DEPENDENT = 1e-5  # eigenvalue of columns of length one; a year such as 2026 has to be centred


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
        ``[rows, columns]`` float64: what multiplies a level's effects, ones for an intercept.
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
        of_rows = labels_of(data, self.columns)
        labels = self.labels.append(of_rows.unique().difference(self.labels))
        codes = labels.get_indexer(of_rows).astype(np.int32)
        z = np.hstack([_evaluate(common, data) for common in self._common])
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
        if first.levels == second.levels:
            pairs = np.unique(np.stack([first.codes, second.codes]), axis=1).shape[1]
            if pairs == first.levels:
                raise ValueError(
                    f"groups {first.name!r} and {second.name!r}: expected different groupings, "
                    "got the same one under two names"
                )
    return factors


def _factor(bars: Sequence[Bar], data: pd.DataFrame, environment: Environment) -> Factor:
    columns = bars[0].group
    name, of_rows = ":".join(columns), labels_of(data, columns)
    codes, labels = pd.factorize(of_rows, sort=True)
    if len(labels) < 2:
        raise ValueError(f"group {name!r}: expected at least two levels, got {len(labels)}")
    effects: list[str] = []
    blocks: list[tuple[int, ...]] = []
    matrices: list[CommonEffectsMatrix | None] = []
    for bar in bars:
        common = None if bar.effects is None else _common(bar.effects, data, environment)
        own = ["Intercept"] if common is None else list(common.as_dataframe().columns)
        block = tuple(range(len(effects), len(effects) + len(own)))
        blocks += [block] if bar.correlated else [(column,) for column in block]
        effects += own
        matrices.append(common)
    z = np.hstack([_evaluate(common, data, new=False) for common in matrices])
    _check_effects(name, effects, z)
    if len(labels) * len(effects) >= len(data):
        raise ValueError(
            f"group {name!r}: expected fewer random effects than rows, got {len(labels)} levels "
            f"with {len(effects)} effect(s) each for {len(data)} rows"
        )
    return Factor(
        name, columns, pd.Index(labels), codes.astype(np.int32),
        tuple(effects), z, tuple(blocks), tuple(matrices),
    )  # fmt: skip


def _check_effects(name: str, effects: list[str], z: np.ndarray) -> None:
    twice = sorted({effect for effect in effects if effects.count(effect) > 1})
    if twice:
        raise ValueError(f"group {name!r}: expected each effect once, got {twice} more than once")
    offsets = [effect for effect in effects if effect.startswith("offset(")]
    if offsets:
        raise ValueError(f"group {name!r}: expected effects, got {offsets}; an offset is fixed")
    if not np.isfinite(z).all():
        raise ValueError("data: expected finite numbers, got infinite values")
    check_independent(f"effects of group {name!r}", z, effects)


def check_independent(what: str, columns: np.ndarray, names: Sequence[str]) -> None:
    """Refuse ``[rows, columns]`` that single precision cannot tell from linearly dependent."""
    length = np.sqrt((columns**2).sum(0))
    unit = columns / np.where(length > 0, length, 1.0)
    smallest = np.linalg.eigvalsh(unit.T @ unit).min()
    if smallest < DEPENDENT:
        raise ValueError(
            f"{what}: expected linearly independent columns, got {list(names)}, which are "
            f"dependent or nearly so (smallest eigenvalue {max(smallest, 0.0):.1e}, expected at "
            f"least {DEPENDENT:g}); leave one out, or centre covariates that lie far from zero"
        )


def _common(effects: Any, data: pd.DataFrame, environment: Environment) -> CommonEffectsMatrix:
    return DesignMatrices(effects, data, environment).common


def _evaluate(
    common: CommonEffectsMatrix | None, data: pd.DataFrame, new: bool = True
) -> np.ndarray:
    """``[rows, columns]``; None stands for a lone intercept, a column of ones."""
    if common is None:
        return np.ones((len(data), 1))
    if new:
        common = common.evaluate_new_data(data)
    return np.asarray(common.design_matrix, float).reshape(len(data), -1)


def labels_of(data: pd.DataFrame, columns: tuple[str, ...]) -> pd.Index:
    """``[rows]`` labels; an interaction's are ``"a:b"``, as lme4 writes them."""
    plain = [pd.Index(np.asarray(data[c])) for c in columns]
    if len(plain) == 1:
        return plain[0]
    joined = pd.Index([":".join(map(str, row)) for row in zip(*plain, strict=True)])
    if joined.nunique() < len(data[list(columns)].drop_duplicates()):
        raise ValueError(
            f"group {':'.join(columns)!r}: expected labels that stay apart when joined by ':', "
            "got labels with ':' in them that do not; rename them"
        )
    return joined
