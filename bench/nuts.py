"""numpyro's NUTS on the same model and ratings, where it is installed."""

from __future__ import annotations

import importlib.util
import time
from typing import TYPE_CHECKING, Any

from measure import FACTORS

if TYPE_CHECKING:
    import pandas as pd


def available() -> bool:
    return importlib.util.find_spec("numpyro") is not None


def sample(data: pd.DataFrame, warm_up: int, draws: int, seed: int) -> dict[str, Any]:
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
