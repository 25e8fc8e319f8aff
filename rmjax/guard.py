"""What every command does around its work: one log format, and each error that a user can mend as one line."""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from absl import logging as absl_logging

from rmjax.data.record import RecordError
from rmjax.terminal import printable
from rmjax.train.loop import Diverged, Preempted

_OURS = ("rmjax", "experiments", "configs", "__main__", "root")
_PARTED = (
    "the processes could not work together any longer, most likely because another one ended: its own output says why. "
    "Start all of them again, and the run goes on from its newest checkpoint. What was seen here: "
)


def prepare() -> None:
    """One log format, orbax quiet, and compiled programs kept between runs: in RMJAX_CACHE, or else in ~/.cache/rmjax/xla. What
    JAX's own variables say of the cache holds."""
    log_to_terminal()
    cache = os.environ.get("RMJAX_CACHE") or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    jax.config.update("jax_compilation_cache_dir", cache or str(Path.home() / ".cache" / "rmjax" / "xla"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def log_to_terminal() -> None:
    """Log lines from INFO on, without control characters, by one handler. absl replaces the handler and the level when it starts
    a command, so that this is called once before (for errors of imports and flags) and once after. A plain handler on the root
    goes too: orbax's import makes one (by logging.basicConfig), which would show each line a second time, and unfiltered."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    handler.addFilter(_printable)
    root = logging.getLogger()
    for old in [h for h in root.handlers if h is absl_logging.get_absl_handler() or type(h) is logging.StreamHandler]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.INFO)


def _printable(record: logging.LogRecord) -> bool:
    """Spells out what a terminal would obey, since records, field names and file names may hold escape sequences. Of other
    libraries (orbax logs pages of INFO by absl's name, at a level that absl resets) only warnings pass, and what somebody asks
    for by name (JAX_DEBUG_LOG_MODULES)."""
    asked = record.name != "absl" and logging.getLogger(record.name).level == logging.DEBUG
    if record.levelno < logging.WARNING and not asked and record.name.split(".")[0] not in _OURS:
        return False
    record.msg, record.args = printable(record.getMessage(), keep="\n\t"), ()
    return True


def error_text(error: object) -> str:
    """What the terminal gets of an error."""
    return "error: " + printable(str(error), keep="\n")


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM raises Preempted wherever a command is. A training loop's own handler saves first and raises it then; where
    several processes have joined, jax takes the signal over."""

    def stop(*_: object) -> None:
        raise Preempted("asked to stop; run the same command to go on")

    if threading.current_thread() is not threading.main_thread():  # where Python takes no handler
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """The first Ctrl-C asks to stop as SIGTERM does, after which a training loop saves; a second one ends at once."""

    def ask(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        print("stopping after this step; Ctrl-C again ends at once, without saving", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def guarded(job: Callable[[], object], resumes: bool = False) -> int:
    """Runs a job, with the errors that a user can mend as one line each; the exit code.

    resumes: the same command goes on where this one was, so that SIGTERM is no fault, wherever it comes. The code is then
      RMJAX_STOPPED_CODE, or 0: who starts the command again can tell a stop from the end.
    """
    try:
        with stoppable() if resumes else contextlib.nullcontext():
            job()
    except Preempted as stop:
        if jax.process_index() == 0:
            print(stop, file=sys.stderr)
        return stopped_code()
    except (Diverged, RecordError, ValueError, OSError, RuntimeError, ImportError) as error:
        parted = jax.distributed.is_initialized() and any(
            isinstance(e, jax.errors.JaxRuntimeError) for e in _causes(error)
        )
        print(error_text(f"{_PARTED if parted else ''}{error}"), file=sys.stderr)
        return 1
    return 0


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it: that a checkpoint could not be saved, say."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def stopped_code() -> int:
    """Exit code of a command that was asked to stop and has saved."""
    return int(os.environ.get("RMJAX_STOPPED_CODE") or 0)
