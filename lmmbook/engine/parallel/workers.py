"""Several workers: that all of them come, and that none keeps the others waiting for ever.

Chapter 08. TensorFlow waits without a limit for a worker that has not started, and, once it has,
for one that lives but no longer takes part. (One that dies it notices, within a minute.)
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import ExitStack, suppress
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context

# Seconds to wait for other workers: until they have come, or have finished a piece of work that
# this one has finished, some 20 sweeps. Set it higher where one may read its data for longer.
PATIENCE = 1800.0


class Watch:
    """Ends the wait for other workers when nothing has been finished for `PATIENCE` seconds.

    A context. Without a strategy of several workers it does nothing.
    """

    def __init__(self, strategy: tf.distribute.Strategy | None) -> None:
        resolver = None if strategy is None else strategy.cluster_resolver
        cluster = {} if resolver is None else resolver.cluster_spec().as_dict()
        self.several = sum(map(len, cluster.values())) > 1
        self.late: float | None = None  # how long it has waited in vain
        self._last, self._over = time.monotonic(), threading.Event()

    def finished(self) -> None:
        """Say that a piece of work is finished, and with it the others' share of it."""
        self._last = time.monotonic()

    def __enter__(self) -> Watch:
        if self.several:
            threading.Thread(target=self._look, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()

    def _look(self) -> None:
        while not self._over.wait(min(1.0, PATIENCE / 10)):
            waited = time.monotonic() - self._last
            if waited > PATIENCE:
                self.late = waited
                # What waits for the others ends with this error. TensorFlow itself ends it so when
                # a worker dies; there is no public way.
                context.context().abort_collective_ops(tf.errors.DEADLINE_EXCEEDED, "no answer")
                return


def meet(patience: float | None = None) -> None:
    """Wait until all workers that ``TF_CONFIG`` names have called this, too. Chapter 08.

    Call it on every worker before ``tf.distribute.MultiWorkerMirroredStrategy()``, which would wait
    without a limit for one that never starts. The first worker listens at its own address, until
    the others have said that they are there.

    Parameters
    ----------
    patience
        Seconds to wait; `PATIENCE` by default.

    Raises
    ------
    RuntimeError
        If some have not come by then. It says which.
    ValueError
        If ``TF_CONFIG`` does not say what the workers are, and which this is.

    Examples
    --------
    >>> os.environ["TF_CONFIG"] = json.dumps(
    ...     {"cluster": {"worker": ["127.0.0.1:0"]}, "task": {"type": "worker", "index": 0}}
    ... )
    >>> meet()  # alone
    >>> del os.environ["TF_CONFIG"]
    """
    together(*_cluster(), PATIENCE if patience is None else patience)


Address = tuple[str, int]


def _cluster() -> tuple[list[Address], int]:
    """The addresses of all workers, and which of them this one is."""
    text = os.environ.get("TF_CONFIG")
    try:
        config = json.loads(text or "")
        pairs = [address.rsplit(":", 1) for address in config["cluster"]["worker"]]
        addresses, own = [(host, int(port)) for host, port in pairs], config["task"]["index"]
        if config["task"]["type"] == "worker" and own in range(len(addresses)):
            return addresses, own
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    raise ValueError(
        "TF_CONFIG: expected the addresses of all workers and the number of this one, as "
        '{"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}}, '
        f"got {text!r}"
    )


def together(addresses: list[Address], own: int, patience: float) -> None:
    """`meet`, of workers at these addresses, of which this is number ``own``."""
    limit = time.monotonic() + patience
    missing = _receive(addresses, limit) if own == 0 else _report(addresses[0], own, limit)
    if missing:
        who = ", ".join(f"{k} ({addresses[k][0]}:{addresses[k][1]})" for k in missing)
        raise RuntimeError(
            f"lmmbook.workers.meet: expected all {len(addresses)} workers, but {who} "
            f"{'has' if len(missing) == 1 else 'have'} not come within {patience:g} s. See why "
            "there, and start all of them again"
        )


def _receive(addresses: list[Address], limit: float) -> list[int]:
    """On the first worker: wait for the others, tell them how it ended, return who is missing."""
    came: list[socket.socket] = []
    missing = list(range(1, len(addresses)))
    if not missing:
        return []
    with ExitStack() as connections:
        with socket.create_server(("", addresses[0][1]), backlog=len(addresses)) as server:
            while missing and (left := limit - time.monotonic()) > 0:
                server.settimeout(left)
                with suppress(OSError, ValueError):  # too late, or nobody of ours
                    other = connections.enter_context(server.accept()[0])
                    other.settimeout(5.0)
                    missing.remove(int(other.recv(16)))
                    came.append(other)
        for other in came:
            with suppress(OSError):  # it is gone again, and TensorFlow will say so
                other.sendall(json.dumps(missing).encode() + b"\n")
                other.recv(1)  # they hang up first, so that the port is free
    return missing


def _report(first: Address, own: int, limit: float) -> list[int]:
    """On the others: say that this one is there, and hear who is missing."""
    while (left := limit - time.monotonic()) > 0:
        try:
            with socket.create_connection(first, timeout=left) as connection:
                connection.sendall(str(own).encode())
                connection.settimeout(max(left, 0.0) + 10.0)  # the first one's limit may be later
                with connection.makefile() as file:
                    return list(json.loads(file.readline()))
        except (OSError, ValueError):
            time.sleep(min(0.2, max(left, 0.0)))  # it does not listen yet
    return [0]
