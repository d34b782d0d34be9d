"""Fits whose slopes are nearly singular, against the exact maximum: `python bench/singular.py`.

200 random data sets: a covariate whose mean is 0, 3 or 20, slopes that are correlated with the
intercepts by 0, 0.9 or 1, and vary a little or not at all; a quarter of the models have no fixed
slope. Three things are asked of them, and a table says for each kind of data how they are kept:

- a fit that reports a boundary loses at most 0.02 of log-likelihood;
- in a fit that has converged, whatever is not at a boundary is within 0.2 standard errors of the
  exact maximum, and 3 Monte Carlo standard errors;
- 95% of the fits converge.

It takes an hour or two. `--only 1/4` is the first of four parts, `--out FILE` keeps what it found,
a line a fit, and `--table FILE ...` prints the table of such files. The fits have six shapes, so
that nearly all of them find a program compiled.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import warnings
from pathlib import Path
from typing import Any

import lmmbook as lmm
from lmmbook.formula import covariance

import numpy as np
import pandas as pd

COUNT = 200
MEANS, CORRELATIONS, SLOPES = (0.0, 3.0, 20.0), (0.0, 0.9, 1.0), (0.0, 0.1, 0.3)
SHAPES = ((20, 10), (14, 14), (30, 7))  # groups, rows in each
COST, DISTANCE, SURE = 0.02, 0.2, 3.0

Record = dict[str, Any]


def data_set(number: int) -> tuple[str, pd.DataFrame, Record]:
    """One of the data sets, the same at every call: formula, data, and what kind it is."""
    rng = np.random.default_rng(1000 + number)
    mean, correlation = MEANS[number % 3], CORRELATIONS[number // 3 % 3]
    fixed = number % 4 != 3
    groups, each = SHAPES[number // 36 % 3]
    sd = rng.choice(SLOPES)
    g = np.repeat(np.arange(groups), each)
    x = mean + rng.normal(size=len(g))
    one, other = rng.normal(size=(2, groups))
    slope = 0.3 + sd * (correlation * one + np.sqrt(1 - correlation**2) * other)
    y = 1 + one[g] + slope[g] * x + rng.normal(size=len(g))
    kind = {"mean": mean, "correlation": correlation, "fixed": fixed, "slope": float(sd)}
    return f"y ~ {'x' if fixed else '1'} + (x|g)", pd.DataFrame({"g": g, "x": x, "y": y}), kind


def judge(number: int) -> Record:
    """Fit it, and say how far from the exact maximum the fit is."""
    formula, data, kind = data_set(number)
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        fit = lmm.fit(formula, data, seed=number)
    seconds = time.perf_counter() - began
    return {"number": number} | kind | compare(fit, formula, data) | {"seconds": seconds}


def compare(fit: lmm.Fit, formula: str, data: pd.DataFrame) -> Record:
    """A fit beside the exact one. ``distance`` is that of the worst parameter that is not at a
    boundary, in standard errors, less 3 Monte Carlo errors."""
    found, best = fit.parameters, lmm.exact.fit(formula, data)
    here = lmm.exact.log_likelihood(formula, data, found["estimate"])
    free = ~(found["at_boundary"] | best.parameters["at_boundary"])
    scales = [p.scale for p in covariance.specs(fit.design)]
    over = [
        (abs(scale(a) - scale(b)) - SURE * mcse) / se
        for scale, a, b, se, mcse in zip(
            itertools.compress(scales, free), found["estimate"][free],
            best.parameters["estimate"][free], best.parameters["std_error"][free],
            found["mcse"][free], strict=True,
        )
    ]  # fmt: skip
    return {
        "converged": fit.converged,
        "boundary": bool(found["at_boundary"].any()),
        "exact": bool(best.parameters["at_boundary"].any()),
        "cost": best.log_likelihood - here,
        "distance": max(over),
        "sweeps": len(fit.trace),
    }


def table(records: list[Record]) -> pd.DataFrame:
    """A row a kind of data, and one for all."""
    frame = pd.DataFrame(records)
    groups = [(key, part) for key, part in frame.groupby(["mean", "correlation", "fixed"])]
    rows = {}
    for key, part in [*groups, (("all", "", ""), frame)]:
        done = part[part["converged"]]
        ends = done[done["boundary"]]
        rows[key] = {
            "fits": len(part),
            "converged": len(done) / len(part),
            "boundary": len(ends),
            "exact's": int(done["exact"].sum()),
            "worst cost at one": ends["cost"].max(),
            "worst cost inside": done.loc[~done["boundary"], "cost"].max(),
            "worst distance": done["distance"].max(),
            "sweeps": part["sweeps"].median(),
            "most": part["sweeps"].max(),
        }
    found = pd.DataFrame(rows).T
    found.index.names = ["mean", "cor", "slope fixed"]
    return found


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="1/1", metavar="K/N", help="the K-th of N parts")
    parser.add_argument("--count", type=int, default=COUNT, help="so many of the data sets")
    parser.add_argument("--out", type=Path, help="a file to which a line a fit is added")
    parser.add_argument("--table", type=Path, nargs="+", help="files to print the table of")
    chosen = parser.parse_args()
    records = []
    if chosen.table:
        for path in chosen.table:
            records += [json.loads(line) for line in path.read_text().splitlines()]
    else:
        part, parts = (int(n) for n in chosen.only.split("/"))
        for number in range(part - 1, chosen.count, parts):
            records.append(judge(number))
            line = json.dumps(records[-1])
            print(line, flush=True)
            if chosen.out:
                with chosen.out.open("a") as file:
                    file.write(line + "\n")
    with pd.option_context("display.width", 200, "display.max_columns", 20):
        print(table(records).to_string(float_format="{:.3f}".format))
    frame = pd.DataFrame(records)
    ends = frame[frame["converged"] & frame["boundary"]]
    share, done = frame["converged"].mean(), frame[frame["converged"]]
    kept = {
        f"boundaries that cost more than {COST}": int((ends["cost"] > COST).sum()),
        f"converged, and further than {DISTANCE}": int((done["distance"] > DISTANCE).sum()),
        "share that has converged": round(float(share), 3),
    }
    print(json.dumps(kept))


if __name__ == "__main__":
    main()
