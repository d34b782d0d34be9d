"""A point that a slider moves over a picture stands where the picture has drawn its path."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

from lmmbook.book import sliders
from lmmbook.book.figures import STYLE
from lmmbook.book.sliders import Slider

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    with matplotlib.rc_context({"backend": "agg"} | STYLE):
        yield
    plt.close("all")


def slider(**changes: Any) -> Slider:
    """A slider of three places in new axes."""
    given: dict[str, Any] = {
        "choices": {"way": "slow", "start": "far"},
        "steps": [0, 1, 10],
        "x": [0.0, 1.0, 3.0],
        "y": [0.1, 1.0, 2.0],
        "facts": {"height": [1.0, 2.0, 3.0], "distance": [3.0, 2.0, 0.00004]},
    }
    if "axes" not in changes:
        _, given["axes"] = plt.subplots()
        given["axes"].plot(given["x"], given["y"])
    return Slider(**(given | changes))


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_a_place_is_where_the_picture_has_it(scale: str) -> None:
    """Found in the picture's own pixels: a black square in an empty figure."""
    x, y = [8.0, 30.0, 20.0], [1.0, 4.0, 2.0]
    fig, (ax, _) = plt.subplots(1, 2, figsize=(5.0, 3.0))  # not alone in its figure
    ax.set(xscale=scale, yscale=scale, xlim=(1, 50), ylim=(0.01, 8), ylabel="takes some room")
    [mark] = ax.plot([], [], "s", color="black", markersize=6)
    found = []
    for place in zip(x, y, strict=True):
        mark.set_data([place[0]], [place[1]])
        png = io.BytesIO()
        fig.savefig(png, format="png", dpi=180, transparent=False)
        png.seek(0)
        dark = plt.imread(png)[:, :, :3].max(axis=2) < 0.05
        rows, columns = np.nonzero(dark)
        size = dark.shape
        found.append([100 * (columns.mean() + 0.5) / size[1], 100 * (rows.mean() + 0.5) / size[0]])
    [placed] = sliders.as_json([slider(axes=ax, x=x, y=y)])
    np.testing.assert_allclose(np.array(found), np.c_[placed["left"], placed["top"]], atol=0.3)


def test_a_notebook_keeps_the_order_of_facts_and_choices() -> None:
    [placed] = sliders.as_json([slider()])
    output = nbformat.v4.new_output("display_data", {"image/png": "AAAA"}, metadata={"it": placed})
    cell = nbformat.v4.new_code_cell("", outputs=[output])
    text = nbformat.writes(nbformat.v4.new_notebook(cells=[cell]))  # it sorts what has names
    kept = json.loads(text)["cells"][0]["outputs"][0]["metadata"]["it"]
    assert kept["choices"] == [["way", "slow"], ["start", "far"]]
    assert [name for name, _ in kept["facts"]] == ["height", "distance"]
    assert kept["facts"][1][1] == [3.0, 2.0, 0.0]  # as many decimals as a reader can use
    assert kept["steps"] == [0, 1, 10]
    assert kept["unit"] == "step"


@pytest.mark.parametrize(
    "changes",
    [
        {"x": [0.0, 1.0]},
        {"y": [0.1, np.nan, 2.0]},
        {"facts": {"height": [1.0, 2.0, np.inf]}},
        {"facts": {"height": [1.0, 2.0, 3.0, 4.0]}},
    ],
)
def test_a_slider_without_a_number_a_place_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected 3 finite numbers"):
        slider(**changes)


@pytest.mark.parametrize(
    "choices", [{"way": "slow", "start": "far"}, {"way": "fast"}, {"start": "far", "way": "fast"}]
)
def test_sliders_that_a_reader_cannot_choose_between_are_refused(choices: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="expected the same choices, differently answered"):
        sliders.as_json([slider(), slider(choices=choices)])
