"""What the benchmark measures with: errors in standard errors, effective draws, memory, hardware.

One place for each, so that every method is held to the same measure. Nothing here imports
TensorFlow when it is imported: the process that starts the others must stay small, because on
Linux a child begins with its parent's peak memory.
"""

from __future__ import annotations

import math
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FORMULA = "ratings ~ service + (1|students) + (1|instructors) + (1|departments)"
FACTORS = ("students", "instructors", "departments")
PACKAGES = (
    "lmmbook", "tensorflow", "tensorflow-probability", "tf-keras", "numpy", "scipy", "pandas",
    "numpyro", "jax",
)  # fmt: skip


# --- errors -------------------------------------------------------------------------------------


def errors(
    estimates: Mapping[str, float], exact: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """(estimate - exact) / standard error, by parameter; for an sd, on the scale of its logarithm.

    An sd is uncertain by a factor, so its standard error is that of its logarithm. A parameter
    that the exact fit holds fixed has no standard error, and is left out. An sd estimated as zero
    where the exact one is not is infinitely far on this scale.
    """
    found = {}
    for name, truth in exact.items():
        unit = truth["std_error"]
        if unit is None or not math.isfinite(unit):
            continue
        value, target = float(estimates[name]), float(truth["estimate"])
        if name.startswith("sd("):
            difference = math.log(value) - math.log(target) if value > 0 else -math.inf
        else:
            difference = value - target
        found[name] = difference / unit
    return found


def summary(found: Mapping[str, float]) -> dict[str, float]:
    """The worst absolute error, whose it is, and the root mean square over the parameters."""
    worst = max(found, key=lambda name: _badness(found[name]))
    square = sum(value**2 for value in found.values()) / len(found)
    return {"worst": abs(found[worst]), "worst_parameter": worst, "rms": math.sqrt(square)}


def _badness(value: float) -> float:
    return math.inf if math.isnan(value) else abs(value)  # NaN is worse than any number


def plain(value: Any) -> Any:
    """For JSON: NumPy's scalars become Python's; NaN and infinity, which JSON lacks, None."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def message(error: Exception | str) -> str:
    """What an error says, in a line, without the paths of this machine."""
    said = str(error) if isinstance(error, str) else f"{type(error).__name__}: {error}"
    said = re.sub(r"(?<![\w.])(?:[A-Za-z]:)?(?:[/\\][\w.+@-]+){2,}[/\\]?", "...", said)
    return " ".join(said.split())[:200]


# --- effective draws ----------------------------------------------------------------------------


def functionals(effects: Sequence[Any], log_density: Any) -> Any:
    """The directions in which a sampler of the effects is judged: ``[..., 2 * factors + 1]``.

    For each factor the mean of its effects, in which it trades a level with the intercept and with
    the other factors, and their sum of squares, from which its sd is estimated; and the log
    density. ``effects`` are arrays or tensors ``[..., levels]``, one a factor; ``log_density`` is
    ``[...]``.
    """
    import tensorflow as tf

    columns = [tf.reduce_mean(u, axis=-1) for u in effects]
    columns += [tf.reduce_sum(tf.square(u), axis=-1) for u in effects]
    return tf.stack([*columns, log_density], axis=-1)


def functional_names(factors: Sequence[str] = FACTORS) -> list[str]:
    """Names of what `functionals` computes, in its order."""
    means = [f"mean of {name}" for name in factors]
    return [*means, *(f"sum of squares of {name}" for name in factors), "log density"]


def effective_draws(values: Any) -> list[float]:
    """Effective number of draws, all chains together, of each column of ``[draws, chains, k]``.

    With two chains or more, chains that disagree with one another count against it.
    """
    import numpy as np
    import tensorflow as tf
    import tensorflow_probability as tfp

    values = tf.convert_to_tensor(values, tf.float64)
    # Large means (the log density is about -100,000) would cost the autocovariances their digits.
    values -= tf.reduce_mean(values, axis=[0, 1], keepdims=True)
    chains = values.shape[1]
    effective = tfp.mcmc.effective_sample_size(
        values,
        filter_beyond_positive_pairs=True,
        cross_chain_dims=1 if chains > 1 else None,
    )
    return [float(x) for x in np.reshape(effective, [-1])]


def kernel_record(values: Any, gradients: float, factors: Sequence[str] = FACTORS) -> dict:
    """How many gradients a sampler pays for an effective draw, of its worst functional and of each.

    ``values`` are `functionals` of its draws, ``[draws, chains, k]``. ``gradients`` is how many
    gradients of the log density in all the effects those draws took, each chain counted.
    """
    each = dict(zip(functional_names(factors), effective_draws(values), strict=True))
    worst = min(each, key=lambda name: each[name])
    return {
        "draws": int(values.shape[0]),
        "chains": int(values.shape[1]),
        "gradients": float(gradients),
        "gradients_per_effective_draw": gradients / each[worst],
        "worst_functional": worst,
        "effective_draws": each,
    }


def log_joint(data: Any, effects: Sequence[Any], parameters: Mapping[str, float]) -> Any:
    """log p(ratings, effects), up to a constant: ``[...]`` for effects ``[..., levels]``.

    In NumPy and double precision, for draws of any origin. Levels are in the order of the
    categoricals' codes.
    """
    import numpy as np

    fixed = parameters["Intercept"] + parameters["service"] * data["service"].to_numpy(float)
    residual = data["ratings"].to_numpy(float) - fixed
    lead = np.shape(effects[0])[:-1]
    total = np.zeros(lead)
    for place in np.ndindex(*lead):  # one draw at a time: all of them would not fit into memory
        left = residual.copy()
        for name, u in zip(FACTORS, effects, strict=True):
            left -= np.asarray(u[place], float)[data[name].cat.codes.to_numpy()]
            total[place] -= 0.5 * np.square(u[place] / parameters[f"sd({name})"]).sum()
        total[place] -= 0.5 * np.square(left / parameters["sd(residual)"]).sum()
    return total


# --- the machine --------------------------------------------------------------------------------


def peak_memory() -> float:
    """Peak resident memory of this process or of its largest child, in MB."""
    unit = 1.0 if sys.platform == "darwin" else 1024.0  # macOS counts bytes, Linux kilobytes
    peaks = [
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    return max(peaks) * unit / 1e6


def hardware() -> dict[str, Any]:
    """Processor, cores, memory and system; nothing that says whose machine it is."""
    mine = getattr(os, "sched_getaffinity", None)  # the cores that this process may use
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "processor": _processor(),
        "cores": len(mine(0)) if mine else os.cpu_count(),
        "memory_gb": round(memory, 1),
        "system": _system(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return f"{platform.system()} {platform.release()}"


def versions() -> dict[str, str]:
    """Python and the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def revision() -> str | None:
    """The commit that was measured, ``+`` if files were changed since; None outside of git."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
