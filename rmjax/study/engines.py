"""Where cells run: processes of this machine, a Ray cluster, or this process itself. A cell is a command; `experiments.study`
and `experiments.sweep` give it."""

import dataclasses
import os
import re
import signal
import subprocess
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

PARENT = "RMJAX_PARENT"
"""Environment variable: a pipe's descriptor that closes when the process that started this one has ended."""
BUSY = 76
"""Exit code of a cell that another process is at: it is asked again later, which is no attempt."""


class Handle(Protocol):
    """A cell that was started."""

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        ...

    def stop(self) -> None:
        """Asks it to save and end."""
        ...

    def kill(self) -> None:
        """Ends it at once."""
        ...


class Engine(Protocol):
    """Starts cells; `free` says whether there is room for one more.

    Attributes:
      retries: whether it starts a cell again by itself when its process is lost.
    """

    retries: bool

    def free(self) -> bool:
        """Whether another cell can be started now."""
        ...

    def start(self, name: str, command: Sequence[str], log: Path) -> Handle:
        """Starts a cell; what it says goes to the end of `log`."""
        ...


# --- this process ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Ended:
    code: int

    def poll(self) -> int | None:
        return self.code

    def stop(self) -> None:
        """It has ended."""

    def kill(self) -> None:
        """It has ended."""


@dataclasses.dataclass
class InProcess:
    """One after the other, here: no start-up, shared compiled programs, and one memory for all.

    Attributes:
      run: name → runs the cell; an error that it raises goes to the cell's log.
    """

    run: Callable[[str], object]
    retries: bool = False

    def free(self) -> bool:
        """Always: `start` returns when the cell has ended."""
        return True

    def start(self, name: str, command: Sequence[str], log: Path) -> Handle:
        """Runs it."""
        del command
        try:
            self.run(name)
        except Exception as error:
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{traceback.format_exc()}error: {error}\n")
            return _Ended(1)
        return _Ended(0)


# --- processes of this machine -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Slot:
    """A fraction of the machine: cores, and environment variables that show a process its accelerators only."""

    cores: tuple[int, ...]
    environment: Mapping[str, str]


def in_environment(command: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The command with variables before it, for every engine alike. XLA_FLAGS come after those that this process has."""
    kept = {"XLA_FLAGS": os.environ["XLA_FLAGS"] + " "} if os.environ.get("XLA_FLAGS") else {}
    given = [f"{name}={kept.get(name, '')}{value}" for name, value in environment.items()]
    return ["env", *given, *command] if given else list(command)


def slots(parallel: int, cores: Sequence[int], accelerators: Sequence[str], variable: str) -> list[Slot]:
    """The machine in `parallel` parts; 0: one for each accelerator, or one for all cores.

    Args:
      parallel: cells at a time.
      cores: that this process may use.
      accelerators: their numbers, as `variable` has them; none on a CPU.
      variable: what shows a process only some of them.

    Raises:
      ValueError: more parts than accelerators.
    """
    count = parallel or len(accelerators) or 1
    if accelerators and count > len(accelerators):
        raise ValueError(
            f"{count} cells at a time on {len(accelerators)} accelerators; give at most {len(accelerators)}"
        )
    each = [tuple(cores[i::count]) or tuple(cores) for i in range(count)]
    shown = [{variable: ",".join(accelerators[i::count])} if accelerators else {} for i in range(count)]
    return [Slot(*part) for part in zip(each, shown, strict=True)]


def this_machine() -> tuple[list[int], list[str], str]:
    """(cores, accelerators, the variable that chooses among these), without starting JAX, which would take all of them."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        return cores, [], ""
    for variable, pattern in {"CUDA_VISIBLE_DEVICES": r"nvidia(\d+)", "TPU_VISIBLE_CHIPS": r"accel(\d+)"}.items():
        if variable in os.environ:
            return cores, [number for number in os.environ[variable].split(",") if number], variable
        names = os.listdir("/dev") if os.path.isdir("/dev") else []
        found = sorted((m[1] for name in names if (m := re.fullmatch(pattern, name))), key=int)
        if found:
            return cores, found, variable
    return cores, [], ""


class Local:
    """So many processes at a time. They end when this process does, even by kill −9."""

    retries = False

    def __init__(self, parts: Sequence[Slot]):
        self._free = list(parts)

    def free(self) -> bool:
        """Whether a part of the machine is idle."""
        return bool(self._free)

    def start(self, name: str, command: Sequence[str], log: Path) -> Handle:
        """Starts a process on an idle part."""
        del name
        slot = self._free.pop(0)
        theirs, ours = os.pipe()
        with log.open("ab") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, pass_fds=(theirs,),
                env=os.environ | dict(slot.environment) | {PARENT: str(theirs)},
                start_new_session=True,  # Ctrl-C reaches it as a request to save
            )  # fmt: skip
        os.close(theirs)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, slot.cores)
        return _Process(process, ours, lambda: self._free.append(slot))


@dataclasses.dataclass
class _Process:
    process: subprocess.Popen
    pipe: int
    free: Callable[[], None]

    def poll(self) -> int | None:
        code = self.process.poll()
        if code is not None and self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1
            self.free()
        return code

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()


def end_with_parent() -> None:
    """In a process that `Local` started: asks itself to save and end as soon as the starting process is gone."""
    descriptor = os.environ.pop(PARENT, "")
    if not descriptor:
        return

    def wait() -> None:
        os.read(int(descriptor), 1)  # returns when nobody holds the other end any longer
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


# --- a Ray cluster -----------------------------------------------------------------------------------------------------


class Ray:
    """Ray schedules the cells and starts one again where its worker was lost; the cell goes on from its checkpoint.

    The study's folder and the checkout must be at the same path on every node.
    """

    retries = True

    def __init__(self, address: str, cores: float, accelerators: float, retries: int):
        """Joins a cluster ("" starts one here).

        Raises:
          ImportError: Ray is not installed.
          ConnectionError: nothing answers at the address.
        """
        try:
            import ray
        except ImportError as error:
            raise ImportError("the engine ray needs Ray: pip install 'rmjax[ray]'") from error
        self._ray = ray
        options = {"log_to_driver": False, "include_dashboard": False} if not address else {"log_to_driver": False}
        ray.init(address=address or None, **options)
        self._run = ray.remote(num_cpus=cores, num_gpus=accelerators, max_retries=retries, retry_exceptions=True)(
            _in_worker
        )

    def free(self) -> bool:
        """Always: Ray has the queue."""
        return True

    def start(self, name: str, command: Sequence[str], log: Path) -> Handle:
        """Gives it to Ray."""
        del name
        return _Task(self._ray, self._run.remote(list(command), str(log.resolve()), os.getcwd()))


def _in_worker(command: Sequence[str], log: str, folder: str) -> int:
    """Runs a cell as a process of a Ray worker. What is not an exit code of 0 or BUSY is raised, so that Ray tries again; a task
    that is cancelled asks its process to save and end."""
    theirs, ours = os.pipe()
    with open(log, "ab") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=folder, pass_fds=(theirs,),
            env=os.environ | {PARENT: str(theirs)},
        )  # fmt: skip
        os.close(theirs)
        try:
            code = process.wait()
        finally:
            os.close(ours)
            process.terminate()
    if code not in (0, BUSY):
        raise RuntimeError(f"the cell ended with exit code {code}; its log is {log}")
    return code


@dataclasses.dataclass
class _Task:
    ray: Any
    reference: Any

    def poll(self) -> int | None:
        ended, _ = self.ray.wait([self.reference], timeout=0)
        if not ended:
            return None
        try:
            return int(self.ray.get(self.reference))
        except self.ray.exceptions.RayError:
            return 1

    def stop(self) -> None:
        self.ray.cancel(self.reference, force=False)

    def kill(self) -> None:
        self.ray.cancel(self.reference, force=True)


ENGINES = ("local", "inprocess", "ray", "slurm", "print", "none")
