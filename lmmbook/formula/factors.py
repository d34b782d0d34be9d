"""Grouping factors: which rows belong together, and which effects vary between the groups.

Chapters 01 and 09. One integer code a row says all there is to say about a grouping, where a matrix
of zeros and ones would need rows x levels numbers. The codes come from `labels`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from lmmbook._rows import ones, pieces
from lmmbook.data.labels import Keys, grouped, kind_of, match, plain
from lmmbook.formula.copies import Copied
from lmmbook.formula.dependence import ALIKE, check_independent, origin_of
from lmmbook.formula.parse.syntax import Bar
from lmmbook.formula.terms import Terms, evaluate

import numpy as np
import pandas as pd
from scipy import sparse


@dataclass(frozen=True)
class Factor(Copied):
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
        Which columns are correlated: a partition of ``0 .. columns - 1``. Empty where the effects'
        covariance is known, and is the identity (`lmmbook.engine.restricted`).
    """

    name: str
    columns: tuple[str, ...]
    labels: pd.Index
    codes: np.ndarray
    effects: tuple[str, ...]
    z: np.ndarray
    blocks: tuple[tuple[int, ...], ...]
    _common: tuple[Terms | None, ...] = field(default=(None,), repr=False)
    _keys: Keys | None = field(default=None, repr=False)
    _by_text: bool = field(default=False, repr=False)

    @property
    def levels(self) -> int:
        """Number of levels."""
        return len(self.labels)

    @property
    def keys(self) -> Keys:
        """What tells levels apart: for each of ``columns``, ``[levels]`` values."""
        return (self.labels,) if self._keys is None else self._keys

    @property
    def intercept_only(self) -> bool:
        """Whether a level has no effect but its intercept."""
        return self.effects == ("Intercept",)

    def matrix(self, levels: int | None = None) -> sparse.csr_array:
        """Z, ``[rows, levels * columns]``: each row has its own level's columns filled.

        Of fewer ``levels`` than there are, the last one stands for all that remain.
        """
        rows, columns = self.z.shape
        levels = self.levels if levels is None else levels
        first = np.minimum(self.codes, levels - 1)[:, np.newaxis] * np.int32(columns)
        where = first + np.arange(columns, dtype=np.int32)
        ends = np.arange(rows + 1) * columns
        shape = (rows, levels * columns)
        return sparse.csr_array((self.z.ravel(), where.ravel(), ends), shape=shape)

    def gram(self) -> np.ndarray:
        """``[levels, columns, columns]``: ``Z'Z`` of each level."""
        of_rows = [[a * b for b in self.z.T] for a in self.z.T]
        sums = [[np.bincount(self.codes, x, self.levels) for x in row] for row in of_rows]
        return np.moveaxis(np.array(sums), 2, 0)

    def on(self, data: pd.DataFrame) -> Factor:
        """The factor over new rows, with levels that are new appended after the known ones.

        Warns if values are of another sort than those of the fit (numbers, text, dates), or if no
        level is known; unless it is a column's one value that is new, as in ``data.assign(g=-1)``.
        """
        own, labels, keys = grouped(data, self.columns)
        found = tuple(plain(key) for key in keys) if self._by_text else keys
        place = match(self.keys, found)
        self._warn(place, found)
        new = place < 0
        place[new] = self.levels + np.arange(new.sum())
        codes = place.astype(np.int32)[own]
        labels = _appended(self.labels, labels[new])
        longer = tuple(_appended(a, b[new]) for a, b in zip(self.keys, found, strict=True))
        z = _stack([ones(len(data)) if c is None else c.on(data) for c in self._common])
        return replace(self, labels=labels, codes=codes, z=z, _keys=longer)

    def _warn(self, place: np.ndarray, found: Keys) -> None:
        """Say so where levels look as if they were written in another way than at the fit."""
        columns = list(zip(self.columns, self.keys, found, strict=True))
        odd = [c for c in columns if not self._by_text and kind_of(c[1]) != kind_of(c[2])]
        if not odd:
            if (place >= 0).any():
                return
            strange = [
                (column, known, now)
                for column, known, now in columns
                if (match((known.unique(),), (now.unique(),)) < 0).all()
            ]
            # One new value, as in data.assign(g=-1), is a question about whom nobody has met.
            if any(now.nunique() == 1 for _, _, now in strange):
                return
            odd = strange or columns
        column, known, now = odd[0]
        none = "no level of the new rows is known" if (place < 0).all() else "levels differ"
        warnings.warn(
            f"group {self.name!r}: {none}. Column {column!r} had {kind_of(known)} at the fit, such "
            f"as {_examples(known)}, and has {kind_of(now)} now, such as {_examples(now)}. The "
            "effects of unknown levels come from the prior",
            stacklevel=5,
        )


def _appended(one: pd.Index, other: pd.Index) -> pd.Index:
    """Values of both, each as it is: an integer beside floats stays one."""
    if len(other) == 0 or one.dtype == other.dtype:
        return one.append(other)
    return pd.Index([*one.tolist(), *other.tolist()], dtype=object)


def _examples(values: pd.Index) -> str:
    return " and ".join(repr(value) for value in values[:2].tolist())


def build_factors(bars: Sequence[Bar], data: pd.DataFrame) -> tuple[Factor, ...]:
    """One `Factor` a group, in the order of the formula.

    Raises
    ------
    ValueError
        If a factor has one level; if two factors group the rows alike; if an effect is there twice,
        never varies from zero, or is a linear combination of others; or if a value is infinite.
    """
    by_group: dict[frozenset[str], list[Bar]] = {}
    for bar in bars:
        by_group.setdefault(frozenset(bar.group), []).append(bar)
    factors = tuple(_factor(bars, data) for bars in by_group.values())
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


def _factor(bars: Sequence[Bar], data: pd.DataFrame) -> Factor:
    columns = bars[0].group
    name = ":".join(columns)
    codes, labels, keys = grouped(data, columns)
    if not labels.is_unique:
        raise ValueError(
            f"group {name!r}: expected labels that stay apart when joined by ':', got "
            f"{labels[labels.duplicated()][:3].tolist()} for several levels each; rename them"
        )
    if len(labels) < 2:
        raise ValueError(f"group {name!r}: expected at least two levels, got {len(labels)}")
    effects: list[str] = []
    blocks: list[tuple[int, ...]] = []
    matrices: list[Terms | None] = []
    of_bars: list[np.ndarray] = []
    for bar in bars:
        if bar.effects is None:
            common, own, columns_of_bar = None, ["Intercept"], ones(len(data))
        else:
            common, columns_of_bar = evaluate(bar.effects, data)
            own = common.labels
            offsets = [label for label, yes in zip(own, common.is_offset, strict=True) if yes]
            if offsets:
                raise ValueError(
                    f"group {name!r}: expected effects, got {offsets}; an offset is fixed"
                )
        block = tuple(range(len(effects), len(effects) + len(own)))
        blocks += [block] if bar.correlated else [(column,) for column in block]
        effects += own
        matrices.append(common)
        of_bars.append(columns_of_bar)
    z = _stack(of_bars)
    _check_effects(name, effects, z, blocks)
    return Factor(
        name, columns, labels, codes, tuple(effects), z, tuple(blocks), tuple(matrices), keys
    )


def _check_effects(
    name: str, effects: list[str], z: np.ndarray, blocks: list[tuple[int, ...]]
) -> None:
    twice = sorted({effect for effect in effects if effects.count(effect) > 1})
    if twice:
        raise ValueError(f"group {name!r}: expected each effect once, got {twice} more than once")
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


def _stack(columns: list[np.ndarray]) -> np.ndarray:
    return columns[0] if len(columns) == 1 else np.hstack(columns)
