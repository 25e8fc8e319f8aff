"""A lock on a folder or a file that dies with the process that holds it, so that two runs never write into one place."""

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rmjax.files import refuse_url

_log = logging.getLogger(__name__)
# What flock says where a file system knows no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class InUseError(RuntimeError):
    """Another process holds the lock; the message says which, where and since when."""


@contextlib.contextmanager
def locked(path: Path, remedy: str = "wait for it, or use another workdir") -> Iterator[None]:
    """Holds `path` for this process, or for all processes of this run: process 0 takes the lock and tells the others.

    The lock is on `path/.lock` for a folder and on `.NAME.lock` beside a file. The kernel lets go of it when the process
    ends, however it ends; a file that a killed process left is taken over. Where the file system has no locks, a warning
    says so and the block runs without one.

    Args:
      path: an existing folder, or a file (existing or not) in an existing folder.
      remedy: what to do where another one holds it.

    Raises:
      InUseError: on every process of this run, where another run holds the lock.
      OSError: the lock file cannot be made.
      ValueError: `path` is a URL.
    """
    refuse_url(path)
    with contextlib.ExitStack() as held:
        error: Exception | None = None
        if jax.process_index() == 0:
            try:
                held.enter_context(_held(path, remedy))
            except (InUseError, OSError) as found:
                error = found
        _agree(path, error, remedy)
        yield


def is_lock(file: Path) -> bool:
    """Whether a file has the name of a lock, which comes and goes with its holder."""
    return file.name.startswith(".") and file.name.endswith(".lock")


def _agree(path: Path, error: Exception | None, remedy: str) -> None:
    """Raises on every process what process 0 met."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        failed = bool(multihost_utils.broadcast_one_to_all(np.int32(error is not None)))
        if failed and error is None:
            error = InUseError(f"process 0 could not lock {path}, its own output says why; {remedy}")
    if error is not None:
        raise error


@contextlib.contextmanager
def _held(path: Path, remedy: str) -> Iterator[None]:
    file = path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock")
    descriptor = _opened(file, path, remedy)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink()
        os.close(descriptor)


def _opened(file: Path, path: Path, remedy: str) -> int:
    """The descriptor of the lock file, which holds the lock."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)  # no child process inherits it
        try:
            if not _take(descriptor, path, remedy) or _is(file, descriptor):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(_holder()).encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the holder before removed this file while we opened it


def _is(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _take(descriptor: int, path: Path, remedy: str) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise InUseError(f"{path} is in use by another run{_described(descriptor)}; {remedy}") from None
        if error.errno not in _NO_LOCKS:
            raise
        _log.warning(
            "%s lies on a file system without locks (%s): take care that no other run uses it", path, error.strerror
        )
        return False
    return True


def _holder() -> dict[str, Any]:
    since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since}


def _described(descriptor: int) -> str:
    """` (pid N on HOST, since …)`; empty where the holder has not yet written it."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f" (pid {holder['pid']} on {holder['host']}, since {holder['since']})"
    except (ValueError, LookupError, TypeError):
        return ""
