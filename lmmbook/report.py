"""A fit as one HTML page: its table, what is known of it, and its pictures.

Chapter 09. The page needs nothing beside it: pictures are in it, and it follows the reader's light
or dark. `python -m lmmbook fit ... --report` writes one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from html import escape
from typing import Any

from lmmbook import plot
from lmmbook.book.figures import STYLE, picture
from lmmbook.data.frames import Data
from lmmbook.results.fit import Fit
from lmmbook.results.whole_file import writing

import matplotlib.pyplot as plt

MOST_TRACES = 12  # parameters; those with most uncertainty left by Monte Carlo
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: auto; padding: 1rem }}
.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #8886 }}
tbody th {{ text-align: left; font-weight: 500 }}
figure {{ margin: 1.5rem 0 }}
img {{ max-width: 100% }}
figcaption {{ font-size: .9rem }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""


def write(
    fit: Fit,
    path: str | os.PathLike[str],
    data: Data,
    title: str = "A fit",
    missing: str = "raise",
) -> None:
    """Write the page: table, verdict, and pictures of traces, effects and calibration. Chapter 09.

    ``data`` are the rows that calibration is looked at with: those of the fit, or, better, others;
    ``missing`` is as in `Fit.predict`.

    Raises
    ------
    TypeError, ValueError
        If ``data`` are no rows for the model. An older page of this name is left as it was then.

    Examples
    --------
    >>> import tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "fit.html")
    >>> write(fit, path, data, "Ratings of 30 teachers")
    >>> with open(path, encoding="utf-8") as page:
    ...     page.read().count("<img ")  # four traces, effects, calibration
    6
    """
    levels = ", ".join(f"{f.levels:,} {f.name}" for f in fit.design.factors)
    body = [f"<p><code>{escape(fit.design.formula)}</code></p>"]
    body.append(
        f"<p>{fit.design.rows:,} rows; {escape(levels)}. {escape(fit.design.family.note)}</p>"
    )
    body.append(f"<p>Fitted by Monte Carlo EM ({fit._likelihood}). {fit._verdict}</p>")
    body += [_table(fit), f"<p>{escape(fit._scales)} 95% intervals are Wald's.</p>"]
    body.append("<h2>Effects</h2>")
    for factor in fit.design.factors:
        body += [_figure(plot.effects, fit, factor.name, effect=e) for e in factor.effects]
    body.append("<h2>Calibration</h2>")
    body.append(_figure(plot.calibration, fit, data, missing=missing))
    body.append("<h2>The path of the fit</h2>")
    noise = (fit.parameters["mcse"] / fit.parameters["std_error"]).fillna(0.0)
    noisy = noise.sort_values(ascending=False, kind="stable").index[:MOST_TRACES]
    body += [_figure(plot.trace, fit, name) for name in noisy]
    page = PAGE.format(title=escape(title), body="\n".join(body))
    with writing(path) as file:
        file.write(page.encode())


def _table(fit: Fit) -> str:
    """Estimates, their errors, and 95% intervals."""
    table = fit.parameters[["estimate", "std_error"]].join(fit.intervals())
    html = table.rename_axis(None).to_html(float_format="{:.4f}".format, border=0, na_rep="")
    return f'<div class="wide" tabindex="0">{html}</div>'


def _figure(draw: Callable[..., str], fit: Fit, what: Any, **options: Any) -> str:
    """A picture that is part of the page, and what it shows in words below."""
    with plt.style.context(STYLE):
        fig, ax = plt.subplots()
        alt = escape(draw(fit, what, ax, **options))
        image = f'<img src="data:image/png;base64,{picture(fig)}" alt="{alt}">'
    return f"<figure>{image}<figcaption>{alt}</figcaption></figure>"
