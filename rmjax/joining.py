"""A process becomes one of several, and leaves them."""

import contextlib
import logging
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax

from rmjax.guard import error_text, stopped_code
from rmjax.launch import doctor
from rmjax.parallel import hosts


def join_hosts(section: Any, environment: Mapping[str, str] = os.environ) -> None:
    """Makes this process one of several, as `config.hosts` or else the environment says, and each says which one it is. Then
    process 0 alone logs what is not a warning.

    Raises:
      ValueError: the two leave open which one of how many this is, or the job cannot start as it should: a remedy is named.
      RuntimeError: the others did not come.
    """
    where = _coordinator(section.coordinator, environment)
    known: tuple[Any, Any, Any] = (None, None, None)
    if where not in ("auto", "none"):
        processes = section.processes or _number(environment, "RMJAX_PROCESSES", 0)
        index = section.index if section.index >= 0 else _number(environment, "RMJAX_PROCESS", -1)
        if not 0 <= index < processes:
            raise ValueError(
                f"process {index} of {processes} at {where}: set config.hosts.processes and config.hosts.index, or "
                "RMJAX_PROCESSES and RMJAX_PROCESS in the environment"
            )
        known = (where, processes, index)
    around = doctor.here(_told(environment, where, known))
    doctor.refuse(around)
    if where != "none":
        _meet(around, known, section)
    _refuse_too_few(around)


def _told(environment: Mapping[str, str], where: str, known: tuple[Any, Any, Any]) -> dict[str, str]:
    """The environment as it would be if it said all that the config says."""
    told = {**environment, "RMJAX_COORDINATOR": where}
    return told if known[0] is None else {**told, "RMJAX_PROCESSES": str(known[1]), "RMJAX_PROCESS": str(known[2])}


def _meet(around: doctor.Surroundings, known: tuple[Any, Any, Any], section: Any) -> None:
    failure = None
    try:
        with _ending_after(section.join_timeout, doctor.not_joined(around, section.join_timeout)):
            hosts.join(*known, section.timeout, section.join_timeout)
    except (RuntimeError, ValueError) as error:
        failure = f"{doctor.not_joined(around, section.join_timeout)}. What jax says: {error}"
    if failure:  # outside, so that it is not taken for a process that ended later
        raise RuntimeError(failure)
    number, count = jax.process_index(), jax.process_count()
    local, all_devices = jax.local_device_count(), jax.device_count()
    print(
        f"process {number}/{count} (from 0) on {socket.gethostname()}: {local} of {all_devices} devices, {jax.default_backend()}",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    if number > 0:
        form = logging.Formatter(f"%(levelname)s process {number} %(name)s: %(message)s")
        for handler in logging.getLogger().handlers:
            handler.setFormatter(form)
        logging.getLogger().setLevel(logging.WARNING)


@contextlib.contextmanager
def _ending_after(seconds: float, message: str) -> Iterator[None]:
    """Ends the process with a line where the block takes longer: jax's own time-out aborts it, with a stack trace."""

    def end() -> None:
        print(error_text(message), file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _refuse_too_few(around: doctor.Surroundings) -> None:
    """ValueError where devices or processes are missing. jax is asked only where something can be: that starts its backend."""
    if around.gpus or any(name.startswith("RMJAX_EXPECT_") for name in around.variables):
        message = doctor.few_devices(around, jax.process_count(), jax.device_count(), jax.default_backend())
        if message:
            raise ValueError(message)


def _coordinator(configured: str, environment: Mapping[str, str]) -> str:
    """ADDRESS:PORT, "auto" for what jax finds out by itself, or "none" for one process."""
    if configured or "RMJAX_COORDINATOR" in environment:
        return configured or environment["RMJAX_COORDINATOR"]
    counts = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
    several = any(_number(environment, name, 1) > 1 for name in counts)
    pod = any("," in environment.get(name, "") for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"))
    return "auto" if several or pod else "none"


def _number(environment: Mapping[str, str], name: str, otherwise: int) -> int:
    """A variable that has to be a number; `otherwise` where it is not set, or empty."""
    value = environment.get(name, "").strip()
    try:
        return int(value or otherwise)
    except ValueError:
        raise ValueError(f"{name} is {value!r} in the environment; it must be a number") from None


def leave(job: Callable[[], int]) -> NoReturn:
    """Exits with the job's code. One of several processes that fails ends at once: at a proper end (all are done, or all were
    asked to stop) jax waits for the others, which wait for this one."""
    try:
        code = job()
    except BaseException:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        code = 1
    if code not in (0, stopped_code()) and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
