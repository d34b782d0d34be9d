"""The oracle: the Gaussian marginal likelihood, computed exactly, and its maximum.

Chapter 04. For a Gaussian likelihood the random effects can be integrated out by hand:

    y ~ Normal(X beta, V),    V = residual_sd**2 I + sum_k sd_k**2 Z_k Z_k'.

V is rows x rows, far too large to write down. With all indicator columns side by side in Z, and
L = diag(sd), everything follows from the smaller matrix M = residual_sd**2 I + L Z'Z L [effects,
effects] (Bates et al. 2015, section 3, in other letters):

    V^-1    = (I - Z L M^-1 L Z') / residual_sd**2
    log|V|  = log|M| + (rows - effects) log residual_sd**2.

The largest factor's block of M is diagonal, so it is eliminated by hand; what remains (on InstEval
1,142 x 1,142) takes a dense Cholesky factorisation. L enters as a product and never as an inverse,
so a standard deviation of zero is no special case.

`lmmbook.fit` never calls this module: it is here to check it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lmmbook import families
from lmmbook.formula import Design, build_design

import numpy as np
import pandas as pd
from scipy import linalg, optimize, sparse


@dataclass(frozen=True)
class ExactFit:
    """The maximum-likelihood fit.

    Attributes
    ----------
    parameters
        Index: parameter name; columns ``estimate`` and ``std_error``. The standard errors come from
        the observed information at the maximum, with standard deviations on the log scale: for an
        sd the column holds the standard error of its *logarithm*. NaN for a fixed residual sd and
        for an sd of zero.
    log_likelihood
        Marginal log-likelihood at the maximum (natural log, constants included).
    """

    parameters: pd.DataFrame
    log_likelihood: float


def log_likelihood(
    formula: str, data: pd.DataFrame, parameters: Mapping[str, float] | pd.Series
) -> float:
    """Exact marginal log-likelihood ``log p(ratings; parameters)`` of the Gaussian model.

    Parameters
    ----------
    formula, data
        As for `lmmbook.fit`.
    parameters
        Name to value, for all of them: ``Intercept``, ..., ``sd(group)``, ..., ``sd(residual)``.

    Raises
    ------
    ValueError
        If a parameter is missing or unknown, an sd is negative, or the residual sd is not positive.
    """
    marginal = _Marginal(build_design(formula, data))
    beta, sds = marginal.unpack(parameters)
    return marginal.evaluate(beta, sds)[0]


def effects(
    formula: str, data: pd.DataFrame, parameters: Mapping[str, float] | pd.Series
) -> dict[str, pd.DataFrame]:
    """Exact conditional mean and sd of every random effect, given the ratings and the parameters.

    Returns one frame per factor: index the level labels, columns ``mean`` and ``sd``. Raises as
    `log_likelihood` does.
    """
    marginal = _Marginal(build_design(formula, data))
    beta, sds = marginal.unpack(parameters)
    return marginal.effects(beta, sds)


def fit(
    formula: str, data: pd.DataFrame, family: str | families.Gaussian = "gaussian"
) -> ExactFit:  # fmt: skip
    """Maximise the exact marginal likelihood (ML, not lme4's default REML).

    L-BFGS over the standard deviations with analytic gradients, the fixed effects profiled out,
    then Newton steps in all parameters until they no longer move.

    Raises
    ------
    ValueError
        As `lmmbook.formula.build_design`; or if the family is not Gaussian.
    RuntimeError
        If the optimiser does not reach a stationary point.
    """
    residual_sd = families.resolve(family).sd
    marginal = _Marginal(build_design(formula, data))
    beta, sds = marginal.maximise(residual_sd)
    free = np.array([True] * len(beta) + list(sds[:-1] > 0) + [residual_sd is None])
    point = np.concatenate([beta, np.log(np.where(sds > 0, sds, 1.0))])

    def gradient(free_point: np.ndarray) -> np.ndarray:
        full = point.copy()
        full[free] = free_point
        full_sds = np.where(sds > 0, np.exp(full[len(beta) :]), 0.0)
        return marginal.evaluate(full[: len(beta)], full_sds)[1][free]

    # The optimiser stops close by, so one information matrix serves all the Newton steps.
    information = -_jacobian(gradient, point[free])
    covariance = np.linalg.inv(information)
    for _ in range(20):
        step = covariance @ gradient(point[free])
        point[free] += step
        if np.all(np.abs(step) < 1e-6 * np.sqrt(np.diag(covariance))):
            break
    else:
        raise RuntimeError(f"exact fit: expected a stationary point, got a last step of {step}")

    std_error = np.full(len(point), np.nan)
    std_error[free] = np.sqrt(np.diag(covariance))
    beta, sds = point[: len(beta)], np.where(sds > 0, np.exp(point[len(beta) :]), 0.0)
    if residual_sd is not None:
        sds[-1] = residual_sd  # exp(log(x)) is x only to the last digit
    table = pd.DataFrame(
        {"estimate": np.concatenate([beta, sds]), "std_error": std_error},
        index=pd.Index(marginal.names, name="parameter"),
    )
    return ExactFit(table, marginal.evaluate(beta, sds)[0])


def _jacobian(function, point: np.ndarray) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Central differences of a gradient, made symmetric: ``[parameters, parameters]``."""
    steps = 1e-4 * np.eye(len(point))
    columns = [(function(point + h) - function(point - h)) / 2e-4 for h in steps]
    return (np.array(columns) + np.array(columns).T) / 2


class _Marginal:
    """The marginal likelihood of one design; the cross-products are computed once."""

    def __init__(self, design: Design) -> None:
        # The largest factor goes first: its block of M is diagonal and is eliminated.
        self.order = sorted(range(len(design.factors)), key=lambda k: -design.factors[k].levels)
        self.design = design
        rows = np.arange(design.rows)
        blocks = [
            sparse.csr_array(
                (np.ones(design.rows), (rows, design.factors[k].codes)),
                shape=(design.rows, design.factors[k].levels),
            )
            for k in self.order
        ]
        self.z = sparse.hstack(blocks, format="csr")
        self.factor_of = np.repeat(self.order, [b.shape[1] for b in blocks])  # [effects]
        self.first = blocks[0].shape[1]  # effects in the eliminated block
        cross = (self.z.T @ self.z).tocsr()
        self.counts = cross.diagonal()[: self.first]
        self.corner = cross[: self.first, self.first :].tocsr()  # [first, rest]
        self.rest = cross[self.first :, self.first :].toarray()  # [rest, rest]
        self.names = [
            *design.fixed_names, *(f"sd({f.name})" for f in design.factors), "sd(residual)"
        ]  # fmt: skip

    def unpack(self, parameters: Mapping[str, float] | pd.Series) -> tuple[np.ndarray, np.ndarray]:
        """Split named parameters into ``beta`` and ``sds`` (one a factor, the residual last)."""
        values = dict(parameters)
        if set(values) != set(self.names):
            raise ValueError(f"parameters: expected {self.names}, got {sorted(values)}")
        vector = np.array([float(values[name]) for name in self.names])
        beta, sds = np.split(vector, [len(self.design.fixed_names)])
        if not (np.all(sds >= 0) and sds[-1] > 0):
            raise ValueError(f"parameters: expected sds >= 0, sd(residual) > 0, got {values}")
        return beta, sds

    def _factorise(self, sds: np.ndarray) -> None:
        """Factorise M at these sds; `_solve` and `evaluate` use what it leaves."""
        self.scale = sds[self.factor_of]  # the diagonal of L
        head, tail = self.scale[: self.first], self.scale[self.first :]
        variance = sds[-1] ** 2
        self.diagonal = variance + head**2 * self.counts
        self.off = sparse.diags_array(head) @ self.corner @ sparse.diags_array(tail)
        schur = np.outer(tail, tail) * self.rest + variance * np.eye(len(tail))
        schur -= (self.off.T @ sparse.diags_array(1 / self.diagonal) @ self.off).toarray()
        self.chol = linalg.cho_factor(schur, lower=True)

    def _solve(self, right: np.ndarray) -> np.ndarray:
        """``M^-1 right`` for ``[effects, columns]``, by block elimination."""
        head, tail = right[: self.first], right[self.first :]
        tail = linalg.cho_solve(self.chol, tail - self.off.T @ (head / self.diagonal[:, None]))
        return np.concatenate([(head - self.off @ tail) / self.diagonal[:, None], tail])

    def _whiten(self, columns: np.ndarray, variance: float) -> np.ndarray:
        """``V^-1 columns`` for ``[rows, columns]``."""
        inner = self._solve(self.scale[:, None] * (self.z.T @ columns))
        return (columns - self.z @ (self.scale[:, None] * inner)) / variance

    def _inverse_diagonal(self) -> np.ndarray:
        """``diag(M^-1)``: ``[effects]``."""
        inverse = linalg.cho_solve(self.chol, np.eye(len(self.scale) - self.first))
        scaled = sparse.diags_array(1 / self.diagonal) @ self.off
        head = 1 / self.diagonal + np.asarray((scaled @ inverse) * scaled.toarray()).sum(axis=1)
        return np.concatenate([head, np.diag(inverse)])

    def evaluate(self, beta: np.ndarray | None, sds: np.ndarray) -> tuple[float, np.ndarray]:
        """Log-likelihood and its gradient in ``[beta, log sds]``; ``beta=None`` profiles it out."""
        self._factorise(sds)
        x, y, variance = self.design.fixed, self.design.response, sds[-1] ** 2
        if beta is None:
            wx = self._whiten(x, variance)
            beta = np.linalg.solve(x.T @ wx, wx.T @ y)
        residual = y - x @ beta
        white = self._whiten(residual[:, None], variance)[:, 0]
        effects = len(self.scale)
        log_det_m = np.log(self.diagonal).sum() + 2 * np.log(np.diag(self.chol[0])).sum()
        log_det_v = log_det_m + (self.design.rows - effects) * np.log(variance)
        quadratic = residual @ white
        value = -0.5 * (self.design.rows * np.log(2 * np.pi) + log_det_v + quadratic)

        # d/d log sd = sd^2 ( |Z_k' V^-1 r|^2 - tr(Z_k' V^-1 Z_k) ), and sd^2 tr(...) = q_k - s^2
        # tr(M^-1)_kk, which has no 0/0 in it.
        trace = 1 - variance * self._inverse_diagonal()
        score = (self.scale * (self.z.T @ white)) ** 2 - trace
        by_factor = np.bincount(self.factor_of, score, minlength=len(sds) - 1)
        own = variance * white @ white - (self.design.rows - trace.sum())
        return value, np.concatenate([x.T @ white, by_factor, [own]])

    def maximise(self, residual_sd: float | None) -> tuple[np.ndarray, np.ndarray]:
        """The maximum to optimiser accuracy: ``(beta, sds)``; an sd at its boundary is zero."""
        factors = len(self.design.factors)
        spread = float(np.std(self.design.response))
        start = np.full(factors + 1, 1 / (factors + 1))
        bounds = [(1e-10, math.inf)] * factors + [(1e-6, math.inf)]
        if residual_sd is not None:
            start[-1] = (residual_sd / spread) ** 2
            bounds[-1] = (start[-1], start[-1])

        # In variances, and not in sds: in an sd of zero the slope vanishes whatever the data say,
        # so that an optimiser that touches the boundary would stay there.
        def objective(relative: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = self.evaluate(None, spread * np.sqrt(relative))
            return -value, -gradient[-len(relative) :] / (2 * relative)

        result = optimize.minimize(
            objective, start, jac=True, bounds=bounds, method="L-BFGS-B",
            options={"ftol": 1e-10, "gtol": 1e-5},
        )  # fmt: skip
        sds = np.where(result.x > 1e-8, spread * np.sqrt(result.x), 0.0)
        if residual_sd is not None:
            sds[-1] = residual_sd
        wx = self._whiten_at(sds)
        beta = np.linalg.solve(self.design.fixed.T @ wx, wx.T @ self.design.response)
        return beta, sds

    def _whiten_at(self, sds: np.ndarray) -> np.ndarray:
        self._factorise(sds)
        return self._whiten(self.design.fixed, sds[-1] ** 2)

    def effects(self, beta: np.ndarray, sds: np.ndarray) -> dict[str, pd.DataFrame]:
        """Conditional mean ``L M^-1 L Z' r`` and sd ``residual_sd sqrt(L diag(M^-1) L)``."""
        self._factorise(sds)
        residual = self.design.response - self.design.fixed @ beta
        inner = self._solve(self.scale[:, None] * (self.z.T @ residual)[:, None])[:, 0]
        mean = self.scale * inner
        sd = sds[-1] * self.scale * np.sqrt(self._inverse_diagonal())
        return {
            f.name: pd.DataFrame(
                {"mean": mean[self.factor_of == k], "sd": sd[self.factor_of == k]},
                index=pd.Index(f.labels, name=f.name),
            )
            for k, f in enumerate(self.design.factors)
        }
