"""Which category is the reference: the order of categories, those that occur, one alone.

Chapter 01. The first category of a covariate is the one that the others are compared with. The
order is that of a Categorical, whether it says that it is ordered or not; text is sorted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmmbook._notes import note
from lmmbook.data.columns import Columns

import numpy as np
import pandas as pd


def coded(data: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    """The data, with covariates that are categories as ordered Categoricals of those that occur.

    Text that a function of the formula is given stays text.

    Raises
    ------
    ValueError
        If a column has one category, or as many as there are rows.

    Examples
    --------
    >>> size = pd.Categorical(["low", "high", "low"], ["low", "high"])
    >>> data = coded(pd.DataFrame({"f": size}), Columns(("f",)))
    >>> data["f"].cat.categories.tolist(), data["f"].cat.ordered
    (['low', 'high'], True)
    """
    found: dict[Any, pd.Categorical] = {}
    for name in columns.names:
        column = data[name]
        if isinstance(column.dtype, pd.CategoricalDtype):
            found[name] = column.array.remove_unused_categories().as_ordered()
        elif name not in columns.called and pd.api.types.is_string_dtype(column.dtype):
            codes, labels = pd.factorize(column, sort=True)
            found[name] = pd.Categorical.from_codes(codes, labels, ordered=True)
    for name, values in found.items():
        used = values.categories.tolist()
        check_two(used, f"column {name!r}")
        if len(used) >= len(data):
            raise ValueError(
                f"column {name!r}: expected fewer categories than rows, got {len(used)} "
                f"({used[0]!r}, ...) for {len(data)} rows; if they are numbers, convert them "
                f"with data[{name!r}].astype(float); if they are levels of a group, write "
                f"(1|{name})"
            )
    for name, values in found.items():
        known, occur = getattr(data[name].dtype, "categories", ()), set(values.categories)
        unused = [label for label in known if label not in occur]
        if unused:
            more = f" and {len(unused) - 5} more" if len(unused) > 5 else ""
            note(f"column {name!r}: left out categories that do not occur, {unused[:5]}{more}")
    return with_columns(data, found)


def with_columns(data: pd.DataFrame, found: Mapping[str, Any]) -> pd.DataFrame:
    """The data with some columns replaced; the others are not copied."""
    if not found:
        return data
    every = {c: found[c] if c in found else data[c] for c in data.columns}
    return pd.DataFrame(every, data.index, copy=False)


def check_two(labels: Sequence[Any], what: str) -> None:
    """Refuse a column, or categories that a function makes as in ``C(k)``, if there is only one."""
    if len(labels) < 2:
        [label] = pd.Index(labels).tolist()  # a number of Python's, which shows as one
        raise ValueError(
            f"{what}: expected at least two categories, got only {label!r}; leave it out of "
            "the formula"
        )


def check_vary(names: Sequence[str], data: pd.DataFrame) -> None:
    """Refuse, by name, a covariate that is the same in every row, if an intercept is among them."""
    for name in names if "Intercept" in names else []:
        if name not in data or not pd.api.types.is_numeric_dtype(data[name].dtype):
            continue
        values = data[name].to_numpy()
        if values.min() == values.max() and np.isfinite(values[0]):
            raise ValueError(
                f"column {name!r}: expected values that vary, got {values[0]} in "
                "every row, which the intercept stands for; leave it out of the formula"
            )
