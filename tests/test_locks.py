"""One holder at a time, in real processes, and none after it has died."""

import errno
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rmjax import locks
from rmjax.locks import InUseError, locked

HOLD = """
    import sys, time
    from pathlib import Path
    from rmjax.locks import locked
    sys.stdin.readline()
    try:
        with locked(Path(sys.argv[1])):
            print("held", flush=True)
            time.sleep(600)
    except RuntimeError as error:
        sys.exit(f"error: {error}")
"""


def start(path: Path) -> subprocess.Popen:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


@pytest.fixture
def holders(tmp_path):
    """Two processes that want the folder."""
    processes = [start(tmp_path), start(tmp_path)]
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def test_of_two_starts_one_wins_and_its_death_frees_the_folder(tmp_path, holders):
    for process in holders:
        process.stdin.write("go\n")
        process.stdin.flush()
    lines = [process.stdout.readline() for process in holders[:1]]
    winner, loser = holders if lines[0] else holders[::-1]
    assert loser.wait(timeout=120) == 1
    message = (
        rf"error: {re.escape(str(tmp_path))} is in use by another run \(pid {winner.pid} on .+, since .+\); wait for it"
    )
    assert re.search(message, loser.stderr.read())
    assert lines[0] or winner.stdout.readline() == "held\n"
    with pytest.raises(InUseError, match=f"pid {winner.pid} on"), locked(tmp_path):
        pass
    winner.send_signal(signal.SIGKILL)
    winner.wait()
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()
    assert not list(tmp_path.iterdir())


def test_a_file_that_does_not_exist_yet_can_be_locked(tmp_path):
    path = tmp_path / "out.json"
    with locked(path), locked(tmp_path), locked(tmp_path / "other.json"):
        assert all(locks.is_lock(file) for file in tmp_path.iterdir())
        with pytest.raises(InUseError, match=r"out\.json is in use .*; name another"), locked(path, "name another"):
            pass
    with locked(path):
        pass


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), locked(tmp_path):
        assert f"{tmp_path} lies on a file system without locks" in caplog.text


def test_a_lock_that_its_holder_removed_meanwhile_is_made_anew(tmp_path, monkeypatch):
    flock, removed = locks.fcntl.flock, []

    def late(descriptor, operation):
        if not removed:
            removed.append((tmp_path / ".lock").unlink())
        flock(descriptor, operation)

    monkeypatch.setattr(locks.fcntl, "flock", late)
    with locked(tmp_path):
        assert (tmp_path / ".lock").exists()
        with pytest.raises(InUseError), locked(tmp_path):
            pass


@pytest.mark.parametrize("index", [0, 1])
def test_what_process_0_meets_every_process_raises(tmp_path, monkeypatch, index):
    from jax.experimental import multihost_utils

    monkeypatch.setattr(locks.jax, "process_index", lambda: index)
    monkeypatch.setattr(locks.jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", lambda mine: 1)
    with locks._held(tmp_path, ""), pytest.raises(InUseError, match=f"{tmp_path}"), locked(tmp_path):
        pass
