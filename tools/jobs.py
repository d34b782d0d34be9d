"""How many chapters, or parts of the tests, run at a time: `python tools/jobs.py`.

One a core, as far as memory goes. A container's limit of memory is
not seen; `make JOBS=1` says it by hand.
"""

from __future__ import annotations

import os

NEEDS = 6e9  # bytes: a chapter takes up to 2.7 GB, a worker of the tests was seen at 5


def jobs(cores: int, memory: float) -> int:
    """As many as there are cores, and ``NEEDS`` bytes for each; at least one."""
    return max(1, min(cores, int(memory / NEEDS)))


if __name__ == "__main__":
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(jobs(cores or 1, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
