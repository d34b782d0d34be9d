"""The tables of the tasks, and the answers that they are judged by. Needs `lmmbook`.

- *exact*: the Gaussian maximum, by linear algebra (`lmmbook.exact`).
- *quadrature*: of one random intercept (`quadrature.py`).
- *long run*: where neither can be had, the mean of several long fits of ours, each with its own
  seed and with many chains. It has a Monte Carlo error, which stands beside it. It is ours, so it
  needs a judge itself: where there is one factor, quadrature, which shares nothing with it.
"""

from __future__ import annotations

import time
from typing import Any

import lmmbook as lmm

import measure
import numpy as np
import pandas as pd
from programs import LIKELIHOODS, formula_of
from quadrature import OneFactor
from tasks import GOOD, SDS, THRESHOLDS, Task

Record = dict[str, Any]
ENOUGH = 0.02  # standard errors: a long run ends when its own Monte Carlo error is below that
FITS = (3, 8)  # of a long run, at least and at most
MANY_ROWS = 200_000  # beyond which chains are dear
SEED = 1_000_000  # the first one's, far from those of the fits that are judged


def table(task: Task) -> pd.DataFrame:
    """The rows, all columns numbers: ``y``, ``x``, and a code for each factor."""
    if task.data == "insteval":
        ratings = lmm.load_insteval()
        y = ratings["ratings"].to_numpy()
        if task.family == "logit":
            y = (y >= GOOD).astype(int)
        codes = {name: ratings[name].cat.codes.to_numpy("int32") for name in task.levels}
        return pd.DataFrame({"y": y, "x": ratings["service"].to_numpy(), **codes})
    thresholds = {"gaussian": None, "logit": [-0.4], "ordered": list(THRESHOLDS)}[task.family]
    factors = {name: (levels, SDS[name]) for name, levels in task.levels.items()}
    data, _ = lmm.simulate.crossed(task.rows, factors, thresholds=thresholds, seed=1)
    return data.assign(y=data["y"] - 1) if task.family == "logit" else data


def reference(task: Task, data: pd.DataFrame, quick: bool) -> Record:
    """What ``task`` is judged by: a ``table`` by name, and its Monte Carlo ``noise``, both in the
    units of `measure.errors`; and how it was found."""
    started = time.perf_counter()
    if task.judge == "exact":
        found: Record = {"table": _table(lmm.exact.fit(formula_of(task.levels), data).parameters)}
    elif task.judge == "quadrature":
        by_hand = OneFactor(data["y"], data["x"], data["g"], task.family).fit()
        found = {"table": by_hand, "long_run": check(long_run(task, data, quick), by_hand)}
    else:
        found = long_run(task, data, quick)
    noise = found.get("noise", dict.fromkeys(found["table"], 0.0))
    seconds = time.perf_counter() - started
    return {"kind": task.judge, "seconds": seconds} | found | {"noise": noise}


def long_run(task: Task, data: pd.DataFrame, quick: bool) -> Record:
    """Fits of ours until their mean is known well enough; sds are averaged as logarithms."""
    chains = 16 if quick or len(data) > MANY_ROWS else 64
    fewest, most = (2, 2) if quick else FITS
    family, formula, fits = LIKELIHOODS[task.family], formula_of(task.levels), []
    for seed in range(SEED, SEED + most):
        fits.append(lmm.fit(formula, data, family, seed=seed, chains=chains, progress=False))
        estimates, errors, noise = combine([fit.parameters for fit in fits])
        if len(fits) >= fewest and _worst(noise) <= ENOUGH:
            break
    return {
        "table": {
            name: {"estimate": estimates[name], "std_error": errors[name]} for name in estimates
        },
        "noise": noise,
        "fits": len(fits),
        "chains": chains,
        "sweeps": [len(fit.trace) for fit in fits],
        "converged": all(fit.converged for fit in fits),
    }  # fmt: skip


def combine(tables: list[pd.DataFrame]) -> tuple[dict, dict, dict]:
    """Mean estimates of independent fits, their standard errors, and the Monte Carlo error of the
    mean in standard errors: what the fits say of it or what they differ by, whichever is more."""
    is_sd = tables[0].index.str.startswith("sd(")
    values = np.array([table["estimate"] for table in tables])
    with np.errstate(divide="ignore", invalid="ignore"):  # an sd of zero
        values[:, is_sd] = np.log(values[:, is_sd])
        mean = values.mean(axis=0)
        between = values.std(axis=0, ddof=1) if len(tables) > 1 else np.zeros(len(mean))
    own = np.sqrt(np.mean([table["mcse"] ** 2 for table in tables], axis=0))
    error = np.mean([table["std_error"] for table in tables], axis=0)
    noise = np.maximum(own, between) / np.sqrt(len(tables)) / error
    estimate = np.where(is_sd, np.exp(mean), mean)
    names = list(tables[0].index)
    return tuple(dict(zip(names, map(float, v), strict=True)) for v in (estimate, error, noise))


def check(run: Record, truth: Record) -> Record:
    """A long run against quadrature: its errors, and how far off they are for their noise."""
    estimates = {name: row["estimate"] for name, row in run["table"].items()}
    errors = measure.errors(estimates, truth)
    return {
        "errors": errors,
        "noise": run["noise"],
        "worst": measure.summary(errors)["worst"],
        "worst_noise": _worst(run["noise"]),
        "fits": run["fits"],
        "converged": run["converged"],
    }


def _worst(noise: dict[str, float]) -> float:
    return float(np.nanmax(list(noise.values())))


def _table(parameters: pd.DataFrame) -> dict[str, dict[str, float]]:
    return parameters[["estimate", "std_error"]].astype(float).to_dict("index")
