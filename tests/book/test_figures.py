"""What a chapter shows is legible to readers, to those who cannot see it, and to the tests."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator

from lmmbook.book import figures
from lmmbook.book.sliders import Slider

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb


@pytest.fixture(autouse=True)
def no_figure_is_left_over() -> Iterator[None]:
    with matplotlib.rc_context({"backend": "agg"}):
        yield
    plt.close("all")


# Figures


@pytest.mark.parametrize("alt", ["", "  \n"])
def test_a_figure_without_alternative_text_is_refused(shown, alt):
    fig, _ = plt.subplots()
    with pytest.raises(ValueError, match="expected a sentence"):
        figures.show(fig, alt)
    assert shown == []


def test_a_figure_is_shown_with_its_alternative_text_and_closed(shown):
    fig, _ = plt.subplots(figsize=(6, 2))
    figures.show(fig, alt="a line that climbs to 3.28")
    assert not plt.fignum_exists(fig.number)  # or the notebook would show it a second time
    ((data, metadata),) = shown
    png = base64.b64decode(data["image/png"])
    assert png.startswith(b"\x89PNG")
    assert "a line that climbs to 3.28" in data["text/plain"]
    assert metadata["image/png"]["alt"] == "a line that climbs to 3.28"
    pixels = int.from_bytes(png[16:20], "big")  # the width in the PNG's header
    assert metadata["image/png"]["width"] == 600
    assert pixels > 600  # sharper than the page asks for


def test_the_style_lets_the_page_shine_through(shown):
    with matplotlib.rc_context():
        figures.use_style()
        fig, ax = plt.subplots()
        ax.plot([0, 1])
        figures.show(fig, alt="a line")
    png = base64.b64decode(shown[0].data["image/png"])
    assert png[25] == 6  # colour type: with an alpha channel


def test_sliders_ride_along_with_their_figure(shown):
    _, ax = plt.subplots()
    ax.plot([0, 2], [0, 1])
    slider = Slider({"way": "up"}, ax, [0, 1], [0, 2], [0, 1], {"height": [0, 1]})
    figures.show(ax.figure, alt="a line", sliders=[slider])
    ((data, metadata),) = shown
    assert "image/png" in data
    assert metadata["image/png"]["alt"] == "a line"
    [placed] = metadata["lmmbook"]["sliders"]
    assert placed["choices"] == [["way", "up"]]
    assert placed["facts"] == [["height", [0.0, 1.0]]]
    assert 0 < placed["left"][0] < placed["left"][1] < 100
    assert 100 > placed["top"][0] > placed["top"][1] > 0


def contrast(one: str, two: str) -> float:
    """WCAG's contrast ratio."""

    def luminance(colour: str) -> float:
        c = np.array(to_rgb(colour))
        return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [
            0.2126, 0.7152, 0.0722
        ]  # fmt: skip

    low, high = sorted([luminance(one), luminance(two)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("page", ["#ffffff", "#121212"])  # the theme's grounds
def test_ink_and_colours_are_legible_on_white_and_on_dark(page):
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast(figures.INK, page) > 4  # WCAG asks 4.5 of small text, 3 of large and lines
    for colour in figures.COLOURS:
        assert contrast(colour, page) > 3


# How the colour-blind see linear RGB: Machado, Oliveira and Fernandes (2009), severity 1.
SEEN = {
    "by most": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def lab(colour: str, seen: str) -> np.ndarray:
    """A colour as the eye counts it: CIE L*, a*, b* (D65)."""
    c = np.array(to_rgb(colour))
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(SEEN[seen] @ linear, 0, 1) / (TO_XYZ @ np.ones(3))
    x, y, z = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("seen", SEEN)
def test_colours_differ_whoever_looks(seen):
    """A difference of about 2 can just be seen; lines and dots need far more (CIE76)."""
    assert np.linalg.norm(lab("#ffffff", seen) - lab("#000000", seen)) == pytest.approx(100)
    for one, two in itertools.combinations(figures.COLOURS, 2):
        assert np.linalg.norm(lab(one, seen) - lab(two, seen)) > 20, (one, two)
    for colour in figures.COLOURS:  # ink draws axes and thin lines, so less will do
        assert np.linalg.norm(lab(colour, seen) - lab(figures.INK, seen)) > 10, colour


def test_what_went_before_would_not_have_done():
    """Green and blue of the first palette: one colour to who does not see blue."""
    assert np.linalg.norm(lab("#3a8fc4", "tritanopia") - lab("#2d9d7f", "tritanopia")) < 20


def test_a_line_differs_by_more_than_its_colour():
    with matplotlib.rc_context(figures.STYLE):
        _, ax = plt.subplots()
        lines = [ax.plot([0, 1])[0] for _ in figures.COLOURS]
    assert len({line.get_color() for line in lines}) == len(lines)
    assert len({str(line._dash_pattern) for line in lines}) == len(lines)


def test_text_is_legible_on_a_phone():
    """A figure shrinks to the 358 pixels that a phone 390 wide leaves it. 8 points are 10.7."""
    assert figures.STYLE["figure.figsize"][0] == figures.WIDTH
    assert figures.TEXT / 72 * 358 / figures.WIDTH > 8 / 72 * 96
