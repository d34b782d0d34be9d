"""What a fit gives back.

Chapters 04 and 05. The fit is over: these are tables and arrays to read, plot and predict with.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lmmbook import criticism, e_step
from lmmbook.formula import Design

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Fit:
    """A fitted model.

    Attributes
    ----------
    parameters
        Index: parameter name; columns ``estimate`` (mean over the iterations of phase ``average``)
        and ``mcse`` (Monte Carlo standard error of that mean: how much another seed would change
        it, not how uncertain the data leave it).
    effects
        Factor name to a frame: index the level labels, columns ``mean`` and ``sd`` of the effect
        given the ratings and the estimates.
    trace
        One row an iteration: ``phase`` (``warm-up``, ``approach``, ``average``, ``draws``), the
        parameters, ``acceptance`` and ``log_joint``, the mean over chains of log p(ratings,
        effects).
    posterior
        Factor name to ``[draws, levels]``: draws of the effects at the estimates, the chains one
        after another.
    """

    parameters: pd.DataFrame
    effects: dict[str, pd.DataFrame]
    trace: pd.DataFrame
    posterior: dict[str, np.ndarray] = field(repr=False)
    design: Design = field(repr=False)
    device_calls: int
    chains: int

    def predict(self, data: pd.DataFrame) -> np.ndarray:
        """Posterior predictive mean of each row, ``[rows]``; see `criticism.predict`."""
        return criticism.predict(self.design, self.parameters["estimate"], self.effects, data)

    def draws(self, data: pd.DataFrame, n: int, seed: int) -> np.ndarray:
        """Posterior predictive draws, ``[n, rows]``; see `criticism.draws`."""
        return criticism.draws(
            self.design, self.parameters["estimate"], self.posterior, data, n, seed
        )  # fmt: skip

    def __str__(self) -> str:
        levels = ", ".join(f"{f.name} {f.levels:,}" for f in self.design.factors)
        return (
            f"Linear mixed model fitted by Monte Carlo EM\n"
            f"  {self.design.formula}\n"
            f"  {self.design.rows:,} rows; levels: {levels}\n"
            f"  {len(self.trace):,} iterations, {self.chains} chains, "
            f"{self.device_calls} device calls\n  {e_step.describe_device()}\n\n"
            f"{self.parameters.to_string(float_format='{:.4f}'.format)}\n\n"
            "Maximum likelihood (ML). mcse is Monte Carlo error only. This fit does\n"
            "not judge its own convergence: plot .trace, or compare with\n"
            "lmmbook.exact.fit. Next: .effects, .predict(data), .draws(data, n, seed)"
        )


def average(tail: pd.DataFrame) -> pd.DataFrame:
    """Mean over iterations, and its Monte Carlo standard error by batch means.

    Iterations next to each other are correlated; means of ten long batches hardly are.
    """
    batches = np.array([batch.mean(0) for batch in np.array_split(tail.to_numpy(float), 10)])
    return pd.DataFrame(
        {"estimate": tail.to_numpy(float).mean(0), "mcse": batches.std(0, ddof=1) / np.sqrt(10)},
        index=pd.Index(tail.columns, name="parameter"),
    )


def gather(
    design: Design,
    parameters: pd.DataFrame,
    trace: pd.DataFrame,
    kept: list[np.ndarray],
    device_calls: int,
) -> Fit:
    """Put a `Fit` together; ``kept`` is a list of ``[iterations, chains, levels]``."""
    posterior = {
        f.name: np.swapaxes(u, 0, 1).reshape(-1, f.levels)
        for f, u in zip(design.factors, kept, strict=True)
    }
    effects = {
        f.name: pd.DataFrame(
            {"mean": posterior[f.name].mean(0), "sd": posterior[f.name].std(0)},
            index=pd.Index(f.labels, name=f.name),
        )
        for f in design.factors
    }
    chains = kept[0].shape[1]
    return Fit(parameters, effects, trace, posterior, design, device_calls, chains)
