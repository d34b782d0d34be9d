"""Other programs for the same model, each used only where it is installed.

Every function here takes the data frame and gives back plain records, one a run: `seconds` from
the data frame in memory to the estimates, `compile_seconds` where something is compiled, and
`estimates`. Loading R or importing a package is not counted.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure import FACTORS

if TYPE_CHECKING:
    import pandas as pd

SCRIPT = Path(__file__).with_name("lme4.R")
TOOLS = ("lme4", "gpboost", "numpyro")


def available(tool: str) -> bool:
    """Whether `tool` can be used: a Python package in this environment, or lme4 in Rscript's R."""
    if tool != "lme4":
        return importlib.util.find_spec(tool) is not None
    rscript = shutil.which("Rscript")
    if rscript is None:
        return False
    asked = [rscript, "-e", 'quit(status = !requireNamespace("lme4", quietly = TRUE))']
    return subprocess.run(asked, capture_output=True).returncode == 0


def lme4(data: pd.DataFrame, repeats: int) -> dict[str, Any]:
    """Fit by lmer, ML, with its default optimiser and tolerances."""
    import pandas as pd

    columns = ["ratings", "service", *FACTORS]
    with tempfile.TemporaryDirectory() as name:
        table, result = Path(name) / "data.csv", Path(name) / "result.csv"
        data[columns].to_csv(table, index=False)
        subprocess.run(
            [str(shutil.which("Rscript")), str(SCRIPT), str(table), str(result), str(repeats)],
            check=True,
            capture_output=True,
            text=True,
        )
        lines = pd.read_csv(result)
    values = lines[~lines["name"].str.startswith(("seconds", "version"))].set_index("name")["value"]
    estimates = {str(name): float(value) for name, value in values.items()}
    seconds = lines.loc[lines["name"] == "seconds", "value"].astype(float)
    named = lines[lines["name"].str.startswith("version")].set_index("name")["value"]
    return {
        "runs": [{"seconds": s, "estimates": estimates} for s in seconds],
        "versions": {str(k).removeprefix("version "): str(v) for k, v in named.items()},
    }


def gpboost(data: pd.DataFrame, repeats: int) -> dict[str, Any]:
    """Fit by gpboost's GPModel, with its default optimiser and tolerances."""
    import gpboost as gpb
    import numpy as np

    y = data["ratings"].to_numpy(float)
    x = np.column_stack([np.ones(len(data)), data["service"].to_numpy(float)])
    groups = np.column_stack([data[name].cat.codes.to_numpy() for name in FACTORS])
    runs = []
    for _ in range(repeats):
        started = time.perf_counter()
        model = gpb.GPModel(group_data=groups, likelihood="gaussian")
        model.fit(y=y, X=x)
        fixed = np.ravel(model.get_coef(std_err=False))
        variances = np.ravel(model.get_cov_pars(std_err=False))  # the residual's first
        seconds = time.perf_counter() - started
        names = ["Intercept", "service", "sd(residual)", *(f"sd({name})" for name in FACTORS)]
        values = [*fixed, *np.sqrt(variances)]
        estimates = {k: float(v) for k, v in zip(names, values, strict=True)}
        runs.append({"seconds": seconds, "estimates": estimates})
    return {"runs": runs}


def numpyro(data: pd.DataFrame, warm_up: int, draws: int, seed: int) -> dict[str, Any]:
    """Sample parameters and effects together with NUTS: one chain, flat or wide priors.

    This answers another question: a posterior mean is not a maximum, and the two differ where the
    data say little, as about a spread over 14 departments. For an sd it is the mean of its
    logarithm. All effects are centred, for most levels have ratings enough.
    """
    import jax
    import numpy as np
    import numpyro as npo
    import numpyro.distributions as dist
    from numpyro.infer import MCMC, NUTS

    y = data["ratings"].to_numpy("float32")
    service = data["service"].to_numpy("float32")
    codes = {name: data[name].cat.codes.to_numpy("int32") for name in FACTORS}

    def model() -> None:
        loc = npo.sample("Intercept", dist.Normal(0.0, 10.0))
        loc = loc + npo.sample("service", dist.Normal(0.0, 10.0)) * service
        for name, code in codes.items():
            sd = npo.sample(f"sd({name})", dist.Uniform(0.0, 10.0))  # flat in the sd itself
            with npo.plate(name, len(data[name].cat.categories)):
                effects = npo.sample(f"effects of {name}", dist.Normal(0.0, sd))
            loc = loc + effects[code]
        sd = npo.sample("sd(residual)", dist.Uniform(0.0, 10.0))
        with npo.plate("rows", len(y)):
            npo.sample("ratings", dist.Normal(loc, sd), obs=y)

    compiling = _jax_compile_seconds(jax)
    started = time.perf_counter()
    mcmc = MCMC(NUTS(model), num_warmup=warm_up, num_samples=draws, progress_bar=False)
    mcmc.run(jax.random.PRNGKey(seed), extra_fields=("num_steps",))
    samples = mcmc.get_samples()
    values = {name: np.asarray(u) for name, u in samples.items() if not name.startswith("effects")}
    estimates = {
        name: float(np.exp(np.log(draw).mean()) if name.startswith("sd(") else draw.mean())
        for name, draw in values.items()
    }
    seconds = time.perf_counter() - started
    effective = npo.diagnostics.effective_sample_size
    return {
        "runs": [
            {"seconds": seconds, "compile_seconds": sum(compiling), "estimates": estimates}
        ],
        "draws": draws,
        "effective_draws": min(float(effective(draw[None])) for draw in values.values()),
        "leapfrog_steps_a_draw": float(mcmc.get_extra_fields()["num_steps"].mean()),
    }  # fmt: skip


def _jax_compile_seconds(jax: Any) -> list[float]:
    """A list that fills with the durations of JAX's tracing, lowering and compiling."""
    durations: list[float] = []

    def listen(event: str, seconds: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            durations.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return durations
