"""Several processes that train as one: how they join, and what they have to agree on.

All of them run the same program on the same global arrays. What one of them alone knows (that it was told to stop, that its
share of the data has ended) may not change what it does next before the others know it too: they would wait for each other.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def join(coordinator: str | None, processes: int | None, index: int | None, timeout: int, join_timeout: int) -> None:
    """Makes this process one of several; before anything that needs a device.

    Args:
      coordinator: ADDRESS:PORT of process 0, whose port must be free; with it, the number of processes and this one's
        index. None for what jax finds out by itself (Cloud TPU, SLURM, Open MPI, Kubernetes).
      timeout: seconds without a sign of life after which a process counts as dead, and the others end too.
      join_timeout: seconds within which all processes must have come; a little later jax aborts this one.

    Raises RuntimeError or ValueError where jax finds nothing out, or the others do not come.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator,
        processes,
        index,
        # What jax finds out for itself would also give each task of a Slurm node one GPU; who is told the address has all.
        cluster_detection_method="deactivate" if coordinator else None,
        initialization_timeout=join_timeout + 30,
        heartbeat_timeout_seconds=timeout,
        shutdown_timeout_seconds=timeout,
    )


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """Gives a function that says, asked after every step with its number, whether to save and stop now.

    One process stops when SIGTERM has come. Several stop after the same step when it has come to any of them, or when the
    cluster announced a preemption: jax's service agrees on the step while they go on.
    """
    if jax.distributed.is_initialized():  # it has taken SIGTERM over
        yield multihost_utils.reached_preemption_sync_point
        return
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: event.is_set()
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield lambda step: event.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)


def whole(array: Any) -> np.ndarray:
    """All of a global array, on every process; all of them must call it."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


class EndTogether:
    """An iterator over this process's parts of batches that ends, on all processes at once, where the global batch (of one
    of the forests by name, where there are several) is empty. It waits for the others, and so for the step under way, at
    every batch: for data that does end only."""

    def __init__(self, parts: Any):
        self._parts = parts

    def __iter__(self) -> "EndTogether":
        return self

    def __next__(self) -> Any:
        part = next(self._parts)
        forests = list(part.values()) if isinstance(part, dict) else [part]
        full = np.array([np.any(forest.group_RT > 0) for forest in forests])
        if jax.process_count() > 1:
            full = np.any(multihost_utils.process_allgather(full), axis=0)
        if not full.all():
            raise StopIteration
        return part

    def get_state(self) -> Any:
        return self._parts.get_state()

    def set_state(self, state: Any) -> None:
        self._parts.set_state(state)
