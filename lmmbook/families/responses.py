"""From a response to numbers, or a refusal that says what is there instead.

Chapter 06. What families share when they read one.
"""

from __future__ import annotations

from typing import Any

from lmmbook._notes import note
from lmmbook._rows import check_finite

import numpy as np
import pandas as pd


def numbers(response: pd.Series, expected: str = "one numeric column") -> np.ndarray:
    """``[rows]`` float64, or an error that says what is there instead."""
    if not pd.api.types.is_numeric_dtype(response.dtype):
        raise ValueError(
            f"response: expected {expected}, got {response.dtype} ({response.iloc[0]!r}, ...)"
        )
    values = response.to_numpy(float)
    check_finite(values[:, np.newaxis], [f"response {response.name}"])
    return values


def refuse(response: pd.Series, wrong: np.ndarray, expected: str, remedy: str = "") -> None:
    """Raise if any value is wrong, and say which."""
    if wrong.any():
        found = response[wrong].unique()[:5].tolist()
        raise ValueError(f"response: expected {expected}, got {found}{remedy}")


def numeric(categories: tuple[Any, ...]) -> np.ndarray:
    """``[categories]`` float64.

    Raises
    ------
    ValueError
        If the labels are not numbers: then a response has probabilities, but no mean.
    """
    try:
        return np.array(categories, float)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"expected categories that are numbers, got {list(categories)}; they have no mean, but "
            "they have .probabilities"
        ) from error


def in_order(response: pd.Series) -> list[Any]:
    """The labels of a pandas Categorical in its order, others sorted."""
    if isinstance(response.dtype, pd.CategoricalDtype):
        return response.dtype.categories.tolist()
    return sorted(response.unique().tolist())


def those_that_occur(categories: list[Any], response: pd.Series, name: str) -> tuple[Any, ...]:
    """Those of the categories, in their order, that the response has; a warning names the others.

    Raises
    ------
    ValueError
        If fewer than two occur.
    """
    found = set(response.unique())
    occur = [category for category in categories if category in found]
    never = [category for category in categories if category not in found]
    if len(occur) < 2:
        raise ValueError(f"response: expected at least two categories, got {occur}")
    if never:
        note(
            f"response: no row has {_few(never)}; {name} is fitted to the categories that occur, "
            f"{_few(occur)}, and gives no probability to others"
        )
    return tuple(occur)


def _few(labels: list[Any]) -> str:
    return f"{labels[:10]}" + (f" and {len(labels) - 10} more" if len(labels) > 10 else "")


def positions_of(categories: tuple[Any, ...], response: pd.Series) -> np.ndarray:
    """``[rows]``, 0.0, 1.0, ...: where each response stands among the categories."""
    positions = pd.Index(categories).get_indexer(pd.Index(response.to_numpy()))
    remedy = "; those that did not occur in training have no probability, so leave their rows out"
    refuse(response, positions < 0, f"categories {list(categories)}", remedy)
    return positions.astype(float)
