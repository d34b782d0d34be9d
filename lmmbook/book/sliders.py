"""A slider below a picture, by which the reader moves a point along a path.

Chapters 01 and 04. Its numbers ride along in the metadata of the picture's output. On the book's
pages `_static/sliders.js` makes controls of them; everywhere else there is the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

DECIMALS = 4  # of what the reader is told; places are in hundredths of a percent


@dataclass(frozen=True)
class Slider:
    """One path over a picture.

    Attributes
    ----------
    choices
        What tells this path from the picture's others: the name of a choice, to what was chosen.
    axes
        The axes that the path is drawn in.
    steps
        ``[n]``: how many steps, or of another ``unit``, lead to each place. Some may be left out.
    x, y
        ``[n]``: the places, as the axes count.
    facts
        Name to ``[n]`` numbers: what the reader is told at each place.
    unit
        What ``steps`` counts, as the slider's name.

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
    unit: str = "step"

    def __post_init__(self) -> None:
        for name, values in {"x": self.x, "y": self.y, **self.facts}.items():
            if np.shape(values) != np.shape(self.steps) or not np.all(np.isfinite(values)):
                raise ValueError(
                    f"slider, {name!r}: expected {len(self.steps)} finite numbers, one a place, "
                    f"got {values}"
                )


def as_json(sliders: Sequence[Slider]) -> list[dict[str, Any]]:
    """Sliders with their places in percent of the picture, from its left and from its top.

    Call it when the picture has been drawn: until then its layout is not final.

    Raises
    ------
    ValueError
        If two sliders cannot be told apart, or do not answer the same choices.
    """
    answers = [tuple(slider.choices.values()) for slider in sliders]
    names = {tuple(slider.choices) for slider in sliders}
    if len(names) != 1 or len(set(answers)) != len(sliders):
        raise ValueError(
            f"sliders: expected the same choices, differently answered, got "
            f"{[dict(slider.choices) for slider in sliders]}"
        )
    return [_as_json(slider) for slider in sliders]


def _as_json(slider: Slider) -> dict[str, Any]:
    figure = slider.axes.get_figure(root=True)
    assert figure is not None  # axes that were drawn have one
    pixels = slider.axes.transData.transform(np.column_stack([slider.x, slider.y]))
    across, up = figure.transFigure.inverted().transform(pixels).T
    return {
        "choices": [list(pair) for pair in slider.choices.items()],  # a notebook sorts names
        "unit": slider.unit,
        "steps": [int(step) for step in slider.steps],
        "left": np.round(100 * across, 2).tolist(),
        "top": np.round(100 * (1 - up), 2).tolist(),
        "facts": [[name, np.round(x, DECIMALS).tolist()] for name, x in slider.facts.items()],
    }
