"""Monte Carlo EM: `fit`, what a user calls.

Chapter 04. An iteration is an E-step, one sweep of HMC over the random effects, and an M-step, new
parameters. The schedule of a fit:

1. *approach*: full M-steps. They forget the start, and then fluctuate.
2. *average*: M-steps with a falling gain (SAEM), and the mean of the iterates.
3. *draws*: parameters frozen, the certificate measures how far the maximum is. If the way there
   is short and known, take this last step, and done. If it is long, take the Newton step (or go
   back to 1) and measure anew. If it is not known, go on drawing. All this while the budget lasts.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path

from lmmbook import families
from lmmbook._tensorflow import compile_cache
from lmmbook._tensorflow.processes import check_not_forked
from lmmbook.data.frames import Data
from lmmbook.engine import checkpoint_files, verdict
from lmmbook.engine.assemble import assemble
from lmmbook.engine.driver import FEWEST_SWEEPS, Driver
from lmmbook.engine.parallel.workers import Watch
from lmmbook.engine.progress import Progress
from lmmbook.engine.restricted import restricted
from lmmbook.engine.runner import Engine, OutOfBudget
from lmmbook.formula import build_design, existence
from lmmbook.formula.design import Design
from lmmbook.formula.invariances import coordinates
from lmmbook.formula.parse.functions import Functions
from lmmbook.results.fit import Fit

import numpy as np
import tensorflow as tf

# What TensorFlow says on one worker when another one is gone.
WORKER_GONE = (tf.errors.UnavailableError, tf.errors.DeadlineExceededError, tf.errors.AbortedError)
CHEAP = 30_000  # ratings x chains x factors to go through in a sweep, that nobody waits for


def fit(
    formula: str,
    data: Data,
    family: str | families.Family = "gaussian",
    *,
    seed: int,
    reml: bool = False,
    missing: str = "raise",
    chains: int | None = None,
    max_sweeps: int = 8000,
    progress: bool | None = None,
    strategy: tf.distribute.Strategy | None = None,
    checkpoint: str | Path | None = None,
    functions: Functions | None = None,
) -> Fit:
    """Fit a linear mixed model by Monte Carlo EM. Chapter 04; on several devices, chapter 08.

    Parameters
    ----------
    formula
        As in lme4: ``"ratings ~ service + (1|students) + (1|instructors)"``; see
        `lmmbook.formula.build_design`.
    data
        One row an observation: a pandas data frame, a mapping of NumPy arrays, the path of a
        Parquet file, which is read in pieces, or a data frame of another package that hands over
        Arrow's columns, such as polars.
    family
        The likelihood: ``"gaussian"``, ``"cumulative"`` (ordered categories), ``"bernoulli"`` (no
        or yes), ``"binomial"`` (successes out of trials: ``"p(k, n) ~ ..."``), ``"poisson"``,
        ``"negativebinomial"`` (counts that vary more), ``"categorical"``, or an object from
        `lmmbook.families`, such as ``Gaussian(sd=1.0)``, which fixes the residual sd, or
        ``Custom(...)`` for your own.
    seed
        An integer from 0 to 2**31 - 1. The same seed gives the same result on the same machine.
    reml
        Maximise the restricted likelihood, as lme4 does by default: that of the variances, with the
        fixed effects integrated out (`lmmbook.engine.restricted`). For a Gaussian family only. The
        fixed effects are then their mean given the estimated variances, which is generalised least
        squares, and ``std_error`` is theirs given these. ``trace`` has the variances alone.
    missing
        What to do about rows with a missing value in a column of the formula: ``"raise"`` an
        error, or ``"drop"`` them; then a warning says how many, and in which columns.
    chains
        Independent HMC chains, at least 2. By default 4, and up to 64 where the data have so few
        rows that more of them cost next to nothing.
    max_sweeps
        The budget: at most this many updates of all random effects in each chain, at least 240.
        Most fits need a few hundred, more where a covariance may be singular.
    progress
        True or False; by default it is shown in a terminal and in a notebook, after two seconds.
    strategy
        To use several devices: ``tf.distribute.MirroredStrategy()``, or
        ``MultiWorkerMirroredStrategy()`` where every host runs this same call, after
        ``lmmbook.workers.meet()``, which gives up on a host that never comes. Up to
        `chain_parallel.FEW_ROWS` rows the fit is chain parallel, if each device gets equally many
        chains and at least two; else data parallel: devices share out the rows, by the levels of
        the largest factor (`data_parallel`).
    checkpoint
        A folder. About once a minute all that the fit has done so far is written there, and the
        same call goes on from there, to the same answer as if it had not been broken off. It may
        have a larger ``max_sweeps``. If nothing can be written there, or a checkpoint is damaged,
        that is an error before any work; if writing fails later, a warning, and the fit goes on.
    functions
        Functions of your own that the formula calls, by name: ``{"decade": lambda year: year //
        10}``. They get numbers as float64, and give a value a row that no other row decides.

    Returns
    -------
    Fit
        If the budget ends first, or Ctrl-C, it says ``converged=False``, and a warning says what
        to do. So it does where the data show that there is no maximum, as when covariates separate
        zeros from ones (`lmmbook.formula.separation`; not looked for with more than two unordered
        categories, nor with a likelihood of your own): then the warning comes first.

    Raises
    ------
    TypeError, ValueError
        Before any computation, if the input is not as described here and in
        `lmmbook.formula.build_design`; or if a Gaussian response has no residual, or an offset lies
        so far from zero that single precision cannot hold it.
    FloatingPointError
        If a parameter stops being finite.
    RuntimeError
        If another worker of a ``MultiWorkerMirroredStrategy`` is gone, or takes no part for
        ``lmmbook.workers.PATIENCE`` seconds; or in a process that was
        forked from one where TensorFlow had started, and where it would hang: use "spawn".

    Notes
    -----
    Every number of rows, of levels or of columns needs a program of its own, and TensorFlow keeps
    each as long as the process lives: 67 MB on average, over 30 fits of 30 shapes (as measured by
    ``bench/memory.py``). A fit of shapes that were there before adds next to nothing. To fit very
    many shapes, let processes do it that end, such as those of
    ``multiprocessing.get_context("spawn").Pool(maxtasksperchild=20)``; a fit is pickled on its way
    back.

    Examples
    --------
    >>> data, _ = lmm.simulate.crossed(300, {"g": (30, 0.5)}, seed=0)
    >>> found = lmm.fit("y ~ x + (1|g)", data, seed=0)
    >>> exact = lmm.exact.fit("y ~ x + (1|g)", data).parameters
    >>> apart = np.abs(found.parameters["estimate"] - exact["estimate"])
    >>> found.converged, bool((apart < 0.2 * exact["std_error"]).all())
    (True, True)
    """
    check_not_forked("lmmbook.fit")
    family = families.resolve(family)
    check_integer("seed", seed, 0, 2**31 - 1)
    if chains is not None:
        check_integer("chains", chains, 2)
    check_integer("max_sweeps", max_sweeps, FEWEST_SWEEPS)
    if checkpoint is not None:
        checkpoint_files.check_folder(checkpoint)
    if not isinstance(reml, bool):
        raise TypeError(f"reml: expected True or False, got {reml!r}")
    if reml and not isinstance(family, families.Gaussian):
        raise ValueError(f"reml: expected a Gaussian family for a restricted fit, got {family!r}")
    design = build_design(formula, data, family, functions, missing)
    return fit_design(
        design, seed=seed, reml=reml, chains=chains, max_sweeps=max_sweeps, progress=progress,
        strategy=strategy, checkpoint=checkpoint,
    )  # fmt: skip


def fit_design(
    design: Design,
    *,
    seed: int,
    reml: bool = False,
    chains: int | None = None,
    max_sweeps: int = 8000,
    progress: bool | None = None,
    strategy: tf.distribute.Strategy | None = None,
    checkpoint: str | Path | None = None,
) -> Fit:
    """`fit`, of a design that is there already, and whose response may be another one."""
    chains = default_chains(design) if chains is None else chains
    inner = coordinates.inner(design)
    existence.refuse(inner)
    none = existence.no_maximum(inner)
    if none:
        warnings.warn(f"lmmbook.fit: {none}", stacklevel=3)
    if reml:
        existence.refuse_spanned(inner)
    fitted = restricted(inner) if reml else inner
    shown, watch = Progress(progress), Watch(strategy)
    try:
        with watch:
            driver = Driver(
                Engine(fitted, chains, max_sweeps, seed, shown, strategy, checkpoint, watch)
            )
            reason = _run(driver)
    except WORKER_GONE as error:
        if strategy is None:
            raise
        raise RuntimeError(_worker_gone(checkpoint, watch.late)) from error
    finally:
        shown.close()
        compile_cache.publish()
    if reason and not none:
        warnings.warn(f"lmmbook.fit has not converged: {reason}", stacklevel=3)
    return assemble(driver, inner, reason is None and none is None, reml)


def _run(driver: Driver) -> str | None:
    """Run it, and say what kept it from converging, if anything did."""
    try:
        driver.run()
    except OutOfBudget:
        driver.engine.save()
        return verdict.missing(driver)
    except KeyboardInterrupt:
        return "it was interrupted"
    driver.engine.save()
    return verdict.endless(driver)


def _worker_gone(folder: str | Path | None, late: float | None) -> str:
    on = f"they go on from the last checkpoint in {str(folder)!r}"
    if folder is None:
        on = "they begin anew; with fit(..., checkpoint=folder) they would go on"
    waited = "" if late is None else f" (nothing was finished for {late:.0f} s, see `workers`)"
    return (
        f"lmmbook.fit: expected all workers to answer, but one is gone or does not{waited}. Start "
        f"all of them again: {on}"
    )


def default_chains(design: Design) -> int:
    """4 to 64: on few data chains cost next to nothing; on many, time and memory."""
    work = design.rows * len(design.factors)
    return int(2 ** np.clip(np.ceil(np.log2(CHEAP / work)), 2, 6))


def check_integer(name: str, value: object, low: int, high: float = math.inf) -> None:
    """Raise TypeError or ValueError, by the argument's name, for what is no integer in range."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if not low <= value <= high:
        at_most = "" if high == math.inf else f" and at most {high}"
        raise ValueError(f"{name}: expected at least {low}{at_most}, got {value!r}")
