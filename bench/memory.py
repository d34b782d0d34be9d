"""What a process keeps of fits of many shapes: resident memory after each, in MB.

Every number of rows and levels needs a program of its own, and TensorFlow keeps what it compiled as
long as the process lives. The docstring of `lmmbook.fit` says what follows.

    python bench/memory.py --fits 30
"""

from __future__ import annotations

import argparse
import warnings

import lmmbook as lmm

import numpy as np
import psutil


def resident() -> float:
    return psutil.Process().memory_info().rss / 1e6


def fits(count: int, same: bool) -> list[float]:
    """Memory before the first, and after each; of ``same`` shapes, or of different ones."""
    found = [resident()]
    for i in range(count):
        more = 0 if same else i
        data, _ = lmm.simulate.crossed(
            1000 + 17 * more, {"g": (50 + more, 0.5), "h": (20 + more, 0.3)}, seed=i
        )
        lmm.fit("y ~ x + (1|g) + (1|h)", data, seed=i, max_sweeps=520, chains=4)
        found.append(resident())
        print(f"{i + 1:4d} {found[-1]:8.0f} {found[-1] - found[-2]:+8.1f}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fits", type=int, default=30)
    parser.add_argument("--same", action="store_true", help="all of one shape")
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # of so few sweeps
    found = fits(given.fits, given.same)
    print(f"{np.mean(np.diff(found)[2:]):.1f} MB a fit, after the first two")


if __name__ == "__main__":
    main()
