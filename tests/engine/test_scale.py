"""Memory of a fit: so many bytes a row, and no more."""

from __future__ import annotations

import subprocess
import sys

import lmmbook as lmm
from lmmbook.data import simulate

import numpy as np
import pytest

PEAK = """
import resource
import sys
import lmmbook as lmm
from lmmbook.data import simulate
from lmmbook.engine.certificate import local
from lmmbook.engine import runner
from lmmbook.formula import build_design
import numpy as np

runner.WARMUP = 0  # no draw of that time is kept: it takes time, and no memory
rows, chains, family = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
factors = {"a": (rows // 25, 0.5), "b": (rows // 500, 0.7), "c": (100, 0.3)}
thresholds = [2.0, 3.0, 4.0] if family == "cumulative" else None
data, _ = simulate.crossed(rows, factors, thresholds=thresholds, seed=0)
design = build_design("y ~ x + (1|a) + (1|b) + (1|c)", data, lmm.families.resolve(family))
engine = runner.Engine(design, chains, 1000, seed=0)
engine.em("approach", np.ones(1))
engine.measure(4, np.eye(local.dimension(engine.layout)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
# So many that the data weigh more than the compiler does, whose peak varies from run to run.
SMALL, LARGE = 1_000_000, 3_000_000


def peak(rows: int, chains: int, family: str) -> int:
    """Bytes, of a process that has the data, and makes an M-step and a certificate's draws."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(rows), str(chains), family],
        capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    return int(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "chains", "most"),
    [("gaussian", 4, 250), ("cumulative", 4, 500)],
)
def test_bytes_a_row(family, chains, most):
    """The data frame, the design and all that the engine makes of them, by 2,000,000 more rows.

    Ten million rows then take 2.5 GB, twenty-five million ordinal ones 12.5 GB.
    """
    assert peak(LARGE, chains, family) - peak(SMALL, chains, family) < most * (LARGE - SMALL)


def test_simulated_ratings_are_what_was_asked_for():
    """Counts and shapes exactly; the exact maximum within four of its standard errors."""
    factors = {"g": (300, 0.8), "h": (60, 0.5)}
    data, truth = simulate.crossed(20_000, factors, tails={"g": 1.5}, residual_sd=1.2, seed=1)
    counts = data["g"].value_counts()
    assert (len(counts), counts.min() >= 1, len(data)) == (300, True, 20_000)
    assert counts.max() > 10 * counts.median()
    table = lmm.exact.fit("y ~ x + (1|g) + (1|h)", data).parameters
    for name, true in truth.items():
        estimate, error = table.loc[name, ["estimate", "std_error"]]
        away = np.log(estimate / true) if name.startswith("sd(") else estimate - true
        assert abs(away) < 4 * error, name


def test_simulated_categories_have_the_shares_of_their_thresholds():
    """Marginally a logistic and a normal: by a sum over the normal's quantiles."""
    thresholds = np.array([-1.0, 0.0, 1.5])
    data, truth = simulate.crossed(
        200_000, {"g": (2000, 0.7)}, slope=0.0, thresholds=thresholds, seed=2
    )
    u = 0.7 * np.random.default_rng(0).normal(size=100_000)
    below = (1 / (1 + np.exp(-(thresholds[:, np.newaxis] - u)))).mean(1)
    found = [(data["y"] <= c).mean() for c in (1, 2, 3)]
    np.testing.assert_allclose(found, below, atol=0.015)  # 4 times the sd that 2000 levels leave
    assert truth["threshold(2|3)"] == 0.0


def test_more_levels_than_rows_cannot_be_simulated():
    with pytest.raises(ValueError, match="g: expected at most 10 levels, got 11"):
        simulate.crossed(10, {"g": (11, 1.0)}, seed=0)
