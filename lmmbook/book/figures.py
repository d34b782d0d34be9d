"""The pictures of the book: one style, and figures with alt text.

Used from chapter 01 on. A chapter reads the same in the book, in Colab and on a terminal, so
nothing here depends on the book's tools: a figure is a plain notebook output.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from lmmbook.book.checks import Output, printable
from lmmbook.book.sliders import Slider, as_json

import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib.figure import Figure

# Mid-grey ink and mid-tone colours on a transparent ground: legible on a white page and on a dark.
# The colours differ for the colour-blind too, and each has a dash of its own.
INK = "#7b7b7b"
COLOURS = ("#4a8ee0", "#d3752e", "#0f7657", "#955a95")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)))
# Inches. With text of this size, in points, a phone shows a figure of this width legibly.
WIDTH, TEXT = 5.5, 12
STYLE: dict[str, Any] = {
    "figure.figsize": (WIDTH, 3.2),
    "figure.constrained_layout.use": True,
    "font.size": TEXT,
    "savefig.transparent": True,
    "axes.prop_cycle": plt.cycler(color=COLOURS, linestyle=DASHES),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": "medium",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
}


def use_style() -> None:
    """Set the book's figure style for the figures that follow. Chapter 01 is the first to use it.

    Examples
    --------
    >>> with plt.rc_context():  # what is set here ends with the block
    ...     use_style()
    ...     plt.rcParams["savefig.transparent"]
    True
    """
    plt.style.use(STYLE)


def show(fig: Figure, alt: str, sliders: Sequence[Slider] = ()) -> None:
    """Display a figure with its alternative text, and close it. See chapter 01.

    Parameters
    ----------
    fig
        A Matplotlib figure.
    alt
        What the figure shows, for readers who cannot see it. Compute its numbers: prose that no
        code checks goes stale.
    sliders
        Paths along which the reader of the book's pages moves a point, by a slider below it.

    Raises
    ------
    ValueError
        If ``alt`` is empty; or as `lmmbook.book.sliders.as_json`.

    Examples
    --------
    >>> fig, ax = plt.subplots()
    >>> show(fig, alt="Two axes, and nothing between them.")
    Figure: Two axes, and nothing between them.
    """
    if not alt.strip():
        raise ValueError("show(fig, alt=...): expected a sentence that says what the figure shows")
    alt = printable(alt)
    shown = picture(fig)
    metadata: dict[str, Any] = {"lmmbook": {"sliders": as_json(sliders)}} if sliders else {}
    width = round(fig.get_figwidth() * 100)  # CSS pixels; the picture itself is sharper
    display(
        Output({"image/png": shown, "text/plain": f"Figure: {alt}"}),
        raw=True,
        metadata=metadata | {"image/png": {"alt": alt, "width": width}},
    )


def picture(fig: Figure) -> str:
    """A PNG in base64, as notebooks and pages hold one; the figure is closed."""
    png = io.BytesIO()
    fig.savefig(png, format="png", dpi=180)
    plt.close(fig)
    return base64.b64encode(png.getvalue()).decode()
