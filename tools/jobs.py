"""How many chapters, or parts of the tests, run at a time: `python tools/jobs.py`.

One a core, as far as memory goes: each may need a few gigabytes. A container's limit of memory is
not seen; `make JOBS=1` says it by hand.
"""

from __future__ import annotations

import os

NEEDS = 4e9  # bytes: the largest chapter takes 2.7 GB, and its kernel's parent a little


def jobs(cores: int, memory: float) -> int:
    """At least one.

    Examples
    --------
    >>> jobs(cores=2, memory=24e9), jobs(cores=16, memory=16e9), jobs(cores=2, memory=3e9)
    (2, 4, 1)
    """
    return max(1, min(cores, int(memory / NEEDS)))


if __name__ == "__main__":
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(jobs(cores or 1, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
