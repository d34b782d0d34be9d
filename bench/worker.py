"""One measured item, in a process of its own: `python bench/worker.py SPEC.json RESULT.json`.

`run.py` starts it. A fresh process makes a first fit's time include all compiling, keeps one
method's memory out of another's, and lets an item fail without ending the others.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import pandas as pd
from measure import FACTORS, FORMULA

# Packages are imported where they are used: an item must not carry another's memory.


def prepare(spec: dict[str, Any]) -> dict[str, Any]:
    """Write the data for all items, and the exact maximum to judge them by."""
    import lmmbook as lmm

    data = simulate() if spec["quick"] else lmm.load_insteval()
    data.to_pickle(spec["data"])
    started = time.perf_counter()
    free = lmm.exact.fit(FORMULA, data)
    seconds = time.perf_counter() - started
    unit = lmm.exact.fit(FORMULA, data, family=lmm.families.Gaussian(sd=1.0))
    return {
        "data": {"name": "simulated" if spec["quick"] else "InstEval", **_sizes(data)},
        "device": lmm.describe_device(),
        "exact": {
            "seconds": seconds,
            "estimated": _table(free.parameters),  # the residual sd, that is
            "fixed": _table(unit.parameters),
        },
    }


def simulate(rows: int = 1_500, seed: int = 0) -> pd.DataFrame:
    """A small data set with InstEval's columns and a level of ratings far from zero."""
    import numpy as np

    rng = np.random.default_rng(seed)
    levels, sds = (60, 24, 6), (0.5, 0.6, 0.5)
    instructors = rng.integers(0, levels[1], rows)
    codes = [rng.integers(0, levels[0], rows), instructors, instructors % levels[2]]
    service = rng.integers(0, 2, rows)
    ratings = 3.3 - 0.1 * service + rng.normal(0, 1.1, rows)
    for code, n, sd in zip(codes, levels, sds, strict=True):
        ratings += rng.normal(0, sd, n)[code]
    columns = {name: pd.Categorical(code) for name, code in zip(FACTORS, codes, strict=True)}
    return pd.DataFrame({**columns, "service": service, "ratings": ratings})


def engine(spec: dict[str, Any]) -> dict[str, Any]:
    """Fits with one seed after another: the first one compiles."""
    import lmmbook as lmm

    data = _part(pd.read_pickle(spec["data"]), spec.get("fraction", 1.0))
    fits = []
    for seed in spec["seeds"]:
        started = time.perf_counter()
        fit = lmm.fit(FORMULA, data, seed=seed, **spec["options"])
        seconds = time.perf_counter() - started
        table = fit.parameters
        fits.append(
            {
                "seed": seed,
                "seconds": seconds,
                "estimates": {k: float(v) for k, v in table["estimate"].items()},
                "std_errors": (
                    {k: float(v) for k, v in table["std_error"].items()}
                    if "std_error" in table
                    else None
                ),
                "converged": getattr(fit, "converged", None),
                "distance": getattr(fit, "distance", None),
                "sweeps": len(fit.trace),  # one row a sweep
                "chains": getattr(fit, "chains", None),
            }
        )
    return {"runs": fits, **_sizes(data)}


def tutorial(spec: dict[str, Any]) -> dict[str, Any]:
    """One run of the tutorial's algorithm."""
    import tutorial as published

    data = pd.read_pickle(spec["data"])
    run = published.fit(data, spec["seed"], compiled_loop=spec["compiled_loop"], **spec["options"])
    return {
        "runs": [
            {
                "seed": spec["seed"],
                "seconds": run.compile_seconds + run.run_seconds,
                "compile_seconds": run.compile_seconds,
                "estimates": run.estimates,
                "acceptance": run.acceptance,
                "last_loss": float(run.loss[-1]),
            }
        ]
    }


def kernel(spec: dict[str, Any]) -> dict[str, Any]:
    """What an effective draw costs at the exact maximum, with our kernel or the tutorial's."""
    import importlib

    module = importlib.import_module({"engine": "ours"}.get(spec["whose"], spec["whose"]))
    return module.kernel(
        pd.read_pickle(spec["data"]), spec["parameters"], spec["seed"], **spec["options"]
    )


def numpyro(spec: dict[str, Any]) -> dict[str, Any]:
    """Draws of parameters and effects together."""
    import nuts

    return nuts.sample(pd.read_pickle(spec["data"]), seed=spec["seed"], **spec["options"])


ITEMS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    function.__name__: function for function in (prepare, engine, tutorial, kernel, numpyro)
}


def _part(data: pd.DataFrame, fraction: float) -> pd.DataFrame:
    """A random part of the rows; levels without a row are dropped."""
    if fraction == 1.0:
        return data
    part = data.sample(frac=fraction, random_state=0).sort_index().reset_index(drop=True)
    return part.assign(**{name: part[name].cat.remove_unused_categories() for name in FACTORS})


def _sizes(data: pd.DataFrame) -> dict[str, Any]:
    return {
        "rows": len(data),
        "levels": {name: len(data[name].cat.categories) for name in FACTORS},
    }


def _table(parameters: pd.DataFrame) -> dict[str, dict[str, float]]:
    return {
        str(name): {"estimate": float(row["estimate"]), "std_error": float(row["std_error"])}
        for name, row in parameters.iterrows()
    }


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    result = ITEMS[spec["item"]](spec)
    result.setdefault("memory_mb", measure.peak_memory())
    Path(sys.argv[2]).write_text(
        json.dumps(measure.plain(result), allow_nan=False), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
