"""The programs that are compared, one function each; a rival may live in another environment.

Such a function imports its program, which is timed by itself, and returns another one: that fits a
table, an Intercept and ``x`` and a random intercept for each factor, by maximum likelihood and with
the program's own settings. It gives back ``estimates`` by the names of `lmmbook.Fit.parameters`,
and ``converged`` as the program itself says it. Nothing but Python's own is imported at the top.
"""

from __future__ import annotations

import atexit
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

SCRIPT = Path(__file__).with_name("rivals.R")
LIKELIHOODS = {"gaussian": "gaussian", "logit": "bernoulli", "ordered": "cumulative"}

Fitted = dict[str, Any]
Fit = Callable[["pd.DataFrame", int], Fitted]


def formula_of(factors: Iterable[str]) -> str:
    return "y ~ x + " + " + ".join(f"(1|{name})" for name in factors)


def lmmbook(family: str, factors: list[str]) -> Fit:
    import lmmbook as lmm

    def fit(data: pd.DataFrame, seed: int) -> Fitted:
        found = lmm.fit(formula_of(factors), data, LIKELIHOODS[family], seed=seed, progress=False)
        return {
            "estimates": _numbers(found.parameters["estimate"]),
            "converged": found.converged,
        }

    return fit  # fmt: skip


def glmm(family: str, factors: list[str]) -> Fit:
    """Without Satterthwaite's degrees of freedom, which nobody else computes here."""
    import glmm as package

    likelihood = {"gaussian": "gaussian", "logit": "binomial"}[family]
    ml = {"reml": False, "satterthwaite": False} if family == "gaussian" else {}

    def fit(data: pd.DataFrame, seed: int) -> Fitted:
        found = package.fit(data, formula_of(factors), likelihood, **ml)
        variances = {
            name: packed[0]
            for (name, _), packed in zip(found.re_groups, found.varcorr, strict=True)
        }
        fixed = dict(zip(found.names, found.beta, strict=True))
        residual = found.dispersion if family == "gaussian" else None
        return _fitted(fixed, variances, residual, found.converged)

    return fit


def mixedlm(family: str, factors: list[str]) -> Fit:
    """lmer, and glmer with its Laplace approximation."""
    from mixedlm import families, glmer, lmer

    def fit(data: pd.DataFrame, seed: int) -> Fitted:
        if family == "gaussian":
            found = lmer(formula_of(factors), data, REML=False)
            residual = found.sigma**2
        else:
            found = glmer(formula_of(factors), data, family=families.Binomial())
            residual = None
        groups = found.VarCorr().groups
        variances = {name: group.variance["(Intercept)"] for name, group in groups.items()}
        return _fitted(found.fixef(), variances, residual, found.converged)

    return fit


def gpboost(family: str, factors: list[str]) -> Fit:
    """Whether it converged it says in its summary only, which asks the same function."""
    import gpboost as package

    likelihood = {"gaussian": "gaussian", "logit": "bernoulli_logit"}[family]

    def fit(data: pd.DataFrame, seed: int) -> Fitted:
        import numpy as np

        x = np.column_stack([np.ones(len(data)), data["x"].to_numpy(float)])
        model = package.GPModel(group_data=data[factors].to_numpy(), likelihood=likelihood)
        model.fit(y=data["y"].to_numpy(float), X=x)
        fixed = np.ravel(model.get_coef(std_err=False))
        variances = list(np.ravel(model.get_cov_pars(std_err=False)))
        residual = variances.pop(0) if family == "gaussian" else None
        return _fitted(
            dict(zip(("Intercept", "x"), fixed, strict=True)),
            dict(zip(factors, variances, strict=True)),
            residual,
            model._get_convergence_status() == 0,
        )

    return fit


def interlace(family: str, factors: list[str]) -> Fit:
    """``fit``, ``glmer`` with its Laplace approximation, and ``clmm``."""
    import interlace as package

    def fit(data: pd.DataFrame, seed: int) -> Fitted:
        if family == "gaussian":
            found = package.fit("y ~ x", data, groups=factors, method="ML")
        elif family == "logit":
            found = package.glmer("y ~ x", data, family="binomial", groups=factors)
        else:
            found = package.clmm("y ~ x", data, groups=factors)
        thresholds = getattr(found, "thresholds", {})
        fixed = {f"threshold({name})": value for name, value in thresholds.items()}
        fixed |= dict(found.fe_params)
        residual = found.scale if family == "gaussian" else None
        return _fitted(fixed, found.variance_components, residual, found.converged)

    return fit


class R:
    """An R process that answers one command after another: `rivals.R`."""

    def __init__(self, function: str, factors: list[str]) -> None:
        self.trouble = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self.process = subprocess.Popen(
            [str(shutil.which("Rscript")), str(SCRIPT), function, *factors],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.trouble,
            text=True,
        )
        atexit.register(self.close)
        self.answer()  # the packages are loaded

    def ask(self, command: str) -> dict[str, str]:
        print(command, file=self.process.stdin, flush=True)
        return self.answer()

    def answer(self) -> dict[str, str]:
        """What R says up to ``end``: lines ``name,value``."""
        found: dict[str, str] = {}
        for line in self.process.stdout or ():
            if line.strip() == "end":
                return found
            name, _, value = line.strip().rpartition(",")
            found[name] = value
        self.trouble.seek(0)
        raise RuntimeError(" ".join(self.trouble.read().split())[-200:] or "R ended")

    def close(self) -> None:
        self.process.communicate()  # the end of its commands ends it
        self.trouble.close()


def in_r(function: str) -> Callable[[str, list[str]], Fit]:
    """lme4 or ordinal. R times the fit itself: reading the table is no part of it."""

    def start(family: str, factors: list[str]) -> Fit:
        r, read = R(function, factors), []

        def fit(data: pd.DataFrame, seed: int) -> Fitted:
            if not read:
                with tempfile.TemporaryDirectory() as folder:
                    data.to_csv(Path(folder) / "data.csv", index=False)
                    read.append(r.ask(f"read {folder}/data.csv"))
            found = r.ask("fit")
            seconds, converged = float(found.pop("seconds")), float(found.pop("converged")) == 1
            fitted = {"estimates": _numbers(found), "converged": converged, "seconds": seconds}
            return fitted | {"memory_mb": _peak_of(r.process.pid)}

        return fit

    return start


def _peak_of(pid: int) -> float | None:
    """Peak resident memory of a running process in MB; None where the system does not say."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    return float(text.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def _fitted(
    fixed: Mapping[str, Any], variances: Mapping[str, Any], residual: Any, converged: Any
) -> Fitted:
    """Estimates by our names, from fixed effects by the program's, and variances by factor."""
    estimates = {name.replace("(Intercept)", "Intercept"): value for name, value in fixed.items()}
    estimates |= {f"sd({name})": float(value) ** 0.5 for name, value in variances.items()}
    if residual is not None:
        estimates["sd(residual)"] = float(residual) ** 0.5
    return {"estimates": _numbers(estimates), "converged": bool(converged)}


def _numbers(values: Any) -> dict[str, float]:
    return {str(name): float(value) for name, value in values.items()}


class Tool(NamedTuple):
    """Its name in tables; the package that has to be there; ``ours``, ``rivals`` or ``R``, where;
    the families that it fits with crossed factors; and its function."""

    label: str
    package: str
    home: str
    families: tuple[str, ...]
    start: Callable[[str, list[str]], Fit]


TWO = ("gaussian", "logit")
TOOLS = {
    "lmmbook": Tool("lmmbook", "lmmbook", "ours", (*TWO, "ordered"), lmmbook),
    "glmm": Tool("glmm", "glmm", "rivals", TWO, glmm),
    "mixedlm": Tool("mixedlm", "mixedlm", "rivals", TWO, mixedlm),
    "gpboost": Tool("gpboost", "gpboost", "rivals", TWO, gpboost),
    "interlace": Tool("interlace-lme", "interlace-lme", "rivals", (*TWO, "ordered"), interlace),
    "lmer": Tool("lme4, lmer", "lme4", "R", ("gaussian",), in_r("lmer")),
    "glmer": Tool("lme4, glmer", "lme4", "R", ("logit",), in_r("glmer")),
    "glmer0": Tool("lme4, glmer, nAGQ=0", "lme4", "R", ("logit",), in_r("glmer0")),
    "clmm": Tool("ordinal, clmm", "ordinal", "R", ("ordered",), in_r("clmm")),
}


def version_of(tool: Tool, python: str = sys.executable) -> str | None:
    """The version that is installed, for ``python`` or for R; None if there is none."""
    command = [
        python,
        "-c",
        f"from importlib.metadata import version as v; print(v('{tool.package}'))",
    ]
    if tool.home == "R":
        rscript = shutil.which("Rscript")
        if rscript is None:
            return None
        command = [rscript, "-e", f"cat(as.character(packageVersion('{tool.package}')))"]
    asked = subprocess.run(command, capture_output=True, text=True)
    return asked.stdout.strip() if asked.returncode == 0 else None
