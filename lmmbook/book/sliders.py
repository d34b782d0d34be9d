"""A picture that can be walked through: a point on a path, which the reader moves by a slider.

Chapter 04. A walk rides along in the metadata of its picture's output. On the book's pages
`_static/walks.js` makes a slider of it; everywhere else there is the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

DECIMALS = 4  # of what the reader is told; places are in hundredths of a percent


@dataclass(frozen=True)
class Walk:
    """One path over a picture.

    Attributes
    ----------
    choices
        What tells this path from the picture's others: the name of a choice, to what was chosen.
    axes
        The axes that the path is drawn in.
    steps
        ``[n]``: how many steps lead to each place. Some may be left out; the first is 0.
    x, y
        ``[n]``: the places, as the axes count.
    facts
        Name to ``[n]`` numbers: what the reader is told at each place.

    Raises
    ------
    ValueError
        If not all of these have one finite number a place.
    """

    choices: Mapping[str, str]
    axes: Axes
    steps: Sequence[int] | np.ndarray
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    facts: Mapping[str, Sequence[float] | np.ndarray]

    def __post_init__(self) -> None:
        for name, values in {"x": self.x, "y": self.y, **self.facts}.items():
            if np.shape(values) != np.shape(self.steps) or not np.all(np.isfinite(values)):
                raise ValueError(
                    f"walk, {name!r}: expected {len(self.steps)} finite numbers, one a place, "
                    f"got {values}"
                )


def as_json(walks: Sequence[Walk]) -> list[dict[str, Any]]:
    """Walks with their places in percent of the picture, from its left and from its top.

    Call it when the picture has been drawn: until then its layout is not final.

    Raises
    ------
    ValueError
        If two walks cannot be told apart, or do not answer the same choices.
    """
    answers = [tuple(walk.choices.values()) for walk in walks]
    names = {tuple(walk.choices) for walk in walks}
    if len(names) != 1 or len(set(answers)) != len(walks):
        raise ValueError(
            f"walks: expected the same choices, differently answered, got "
            f"{[dict(walk.choices) for walk in walks]}"
        )
    return [_as_json(walk) for walk in walks]


def _as_json(walk: Walk) -> dict[str, Any]:
    figure = walk.axes.get_figure(root=True)
    assert figure is not None  # axes that were drawn have one
    pixels = walk.axes.transData.transform(np.column_stack([walk.x, walk.y]))
    across, up = figure.transFigure.inverted().transform(pixels).T
    return {
        "choices": [list(pair) for pair in walk.choices.items()],  # a notebook sorts names
        "steps": [int(step) for step in walk.steps],
        "left": _rounded(100 * across, 2),
        "top": _rounded(100 * (1 - up), 2),
        "facts": [[name, _rounded(values, DECIMALS)] for name, values in walk.facts.items()],
    }


def _rounded(values: Sequence[float] | np.ndarray, decimals: int) -> list[float]:
    return [float(value) for value in np.round(values, decimals)]
