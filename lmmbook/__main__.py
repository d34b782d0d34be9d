"""For a table and no notebook: ``python -m lmmbook fit data.csv "y ~ x + (1|g)"``.

Chapter 09. What `lmmbook.fit` and `Fit.predict` do, from a terminal. The exit status is 0 if all is
well, 2 if the input is at fault, and 3 if the fit has not converged (it is written all the same).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import lmmbook as lmm
from lmmbook import report
from lmmbook.results.whole_file import writing

import pandas as pd

WELL, INPUT, NOT_CONVERGED = 0, 2, 3
AT_FAULT = (ValueError, TypeError, OSError, ModuleNotFoundError)  # what input is refused with


def parser() -> argparse.ArgumentParser:
    """The arguments. Chapter 09.

    Examples
    --------
    >>> parser().parse_args(["fit", "ratings.csv", "y ~ x + (1|g)", "--reml"]).reml
    True
    """
    top = argparse.ArgumentParser(prog="python -m lmmbook", description=__doc__.splitlines()[0])
    commands = top.add_subparsers(dest="command", required=True)
    fit = commands.add_parser("fit", help="fit a model, and print it")
    fit.add_argument("data", help="a CSV file with a header, or a Parquet file (.parquet)")
    fit.add_argument("formula", help='as lme4 has it: "y ~ x + (1|g)"')
    fit.add_argument("--family", default="gaussian", choices=lmm.families.NAMED)
    fit.add_argument("--reml", action="store_true", help="restricted maximum likelihood")
    fit.add_argument("--missing", default="raise", choices=("raise", "drop"))
    fit.add_argument("--seed", type=int, default=0)
    fit.add_argument("--max-sweeps", type=int, default=8000)
    fit.add_argument("--out", type=Path, help="write the fit to this file, for predict")
    fit.add_argument("--report", type=Path, help="write a page with tables and pictures")
    predict = commands.add_parser("predict", help="predict rows with a fit that was written")
    predict.add_argument("fit", help="what fit --out wrote")
    predict.add_argument("data", help="new rows, as for fit")
    predict.add_argument("--out", type=Path, required=True, help="the rows and their predictions")
    whom = predict.add_mutually_exclusive_group()
    whom.add_argument("--typical", action="store_true", help="for the typical level of each factor")
    whom.add_argument("--population", action="store_true", help="on average over new levels")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say, and return the exit status. Chapter 09.

    Examples
    --------
    >>> main(["predict", os.devnull, "new.csv", "--out", "predicted.csv"])
    2
    """
    asked = parser().parse_args(arguments)
    run = fit if asked.command == "fit" else predict
    try:
        return run(asked)
    except AT_FAULT as error:
        print(f"python -m lmmbook {asked.command}: {error}", file=sys.stderr)
        return INPUT


def fit(asked: argparse.Namespace) -> int:
    """Fit, print, and write what is asked for. Raises what `lmmbook.fit` raises."""
    check_places([asked.data], [asked.out, asked.report])
    data = read(asked.data)
    found = lmm.fit(
        asked.formula, data, asked.family, reml=asked.reml, seed=asked.seed,
        max_sweeps=asked.max_sweeps, missing=asked.missing,
    )  # fmt: skip
    if asked.out:  # first: a terminal may fail to print
        found.save(asked.out)
    print(found)
    if asked.report:
        report.write(found, asked.report, data, Path(asked.data).name, asked.missing)
    return WELL if found.converged else NOT_CONVERGED


def predict(asked: argparse.Namespace) -> int:
    """Predict, and write the rows with a column more. Raises what `lmmbook.load` and
    `Fit.predict` raise."""
    check_places([asked.fit, asked.data], [asked.out])
    found = lmm.load(asked.fit)
    # A label that was text, as one of 1, 2 and x4, is text though new rows have numbers alone.
    kinds = [(f.columns[0], f.labels) for f in found.design.factors if len(f.columns) == 1]
    text = {name for name, labels in kinds if all(isinstance(label, str) for label in labels)}
    data = read(asked.data, text)
    groups: Any = "population" if asked.population else [] if asked.typical else None
    labels = found.design.family.categories
    if labels and not all(isinstance(label, int | float) for label in labels):
        chances = found.probabilities(data, groups=groups)
        new = {f"P({label})": chances[:, j] for j, label in enumerate(labels)}
    else:
        new = {"prediction": found.predict(data, groups=groups)}
    taken = [name for name in new if name in data.columns]
    if taken:
        raise ValueError(f"{asked.data}: expected no column {taken[0]!r}; give it another name")
    with writing(asked.out) as file:
        data.assign(**new).to_csv(file, index=False)
    return WELL


def read(path: str, text: Collection[str] = ()) -> pd.DataFrame:
    """The table, as pandas reads it, but for columns of a CSV file that are ``text``."""
    if Path(path).suffix == ".parquet":
        return pd.read_parquet(path)
    return pd.read_csv(path, dtype=dict.fromkeys(text, str))


def check_places(inputs: list[str], outputs: list[Path | None]) -> None:
    """Refuse, before any work, files that could not be written in the end, or over others."""
    taken = [Path(path).resolve() for path in inputs]
    for path in (path.resolve() for path in outputs if path is not None):
        if path in taken:
            raise ValueError(f"{path}: expected files that differ, got the same one twice")
        if path.is_dir():
            raise ValueError(f"{path}: expected the name of a file, got a folder")
        if not os.access(path.parent, os.W_OK):
            raise ValueError(f"{path}: expected a folder that can be written to, got none")
        taken.append(path)


if __name__ == "__main__":
    sys.exit(main())
