"""A process that was forked from one where TensorFlow runs: refused, where it would hang.

Chapter 08. TensorFlow starts threads with its first operation, and a forked child does not have
them: an operation that waits for one waits for ever. Until then a fork does no harm.
"""

from __future__ import annotations

import os

from tensorflow.python.eager import context

_cut_off = False


def check_not_forked(what: str) -> None:
    """Refuse to go on where TensorFlow would hang.

    Raises
    ------
    RuntimeError
        If this process was forked from one in which TensorFlow had already computed something.
    """
    if _cut_off:
        raise RuntimeError(
            f"{what}: expected a process of its own, got one that was forked after TensorFlow had "
            "started, where it would hang; start processes by "
            'multiprocessing.get_context("spawn"), or fork before the first fit'
        )


def _after_fork() -> None:
    """In the child. A child's own children have no threads either."""
    global _cut_off
    # No public function says whether TensorFlow has started, without starting it.
    running = context.context_safe()
    _cut_off = _cut_off or (running is not None and running._context_handle is not None)


if hasattr(os, "register_at_fork"):  # Windows does not fork
    os.register_at_fork(after_in_child=_after_fork)
