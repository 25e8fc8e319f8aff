"""A verifier in a process of its own, with a deadline: one that hangs is killed, and its output has no reward.

A thread could not be ended, and would hold the interpreter. The two processes speak JSON lines; nothing is pickled.
"""

import json
import queue
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from rmjax.data.record import Comparison
from rmjax.rewards.reward import Failure, Values, checked

START_SECONDS = 120.0
"""Until a fresh process has said that it is ready: imports on a busy machine."""


class InProcess:
    """A verifier of `worker.VERIFIERS`, or `module:function`, as a reward in a process that is started at the first call.

    Args:
      verifier: its name.
      options: what makes it (JSON).
      seconds: for one output; then the process is killed, the output fails, and the next one gets a fresh process.

    Raises:
      ValueError: seconds that are not above 0.
    """

    def __init__(self, verifier: str, options: Mapping[str, Any] | None = None, seconds: float = 10.0):
        if not seconds > 0:
            raise ValueError(f"seconds is {seconds}; it must be above 0")
        self.name, self.seconds = verifier, seconds
        self._options = dict(options or {})
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str] = queue.Queue()

    def __call__(self, records: Sequence[Comparison]) -> Values:
        """See `reward.Reward`."""
        return checked(records, [[self._one(c, output) for output in c.outputs] for c in records], self.name)

    def close(self) -> None:
        """Ends the process; a later call starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _one(self, c: Comparison, output: str) -> object:
        asked = {"prompt": c.prompt, "output": output, "references": list(c.references), "id": c.id}
        if self._process is None and (failure := self._start()):
            return failure
        answer = self._say(asked, self.seconds)
        return Failure(str(answer["failure"])) if "failure" in answer else answer.get("value")

    def _start(self) -> Failure | None:
        command = [sys.executable, "-m", "rmjax.rewards.worker", self.name, json.dumps(self._options)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        weakref.finalize(
            self, self._process.kill
        )  # else it would outlive this object: the thread below holds its pipes
        self._lines = queue.Queue()
        threading.Thread(target=_read, args=(self._process, self._lines), daemon=True).start()
        ready = self._say(None, START_SECONDS)
        if "failure" not in ready:
            return None
        if self._process is None:
            return Failure(f"starting the verifier: {ready['failure']}")
        self.close()
        raise ValueError(f"verifier {self.name!r}: {ready['failure']}")

    def _say(self, asked: Mapping[str, Any] | None, seconds: float) -> dict[str, Any]:
        """The process's next line; a failure, and no process any more, where none comes in time."""
        process = self._process
        assert process is not None and process.stdin is not None
        try:
            if asked is not None:
                process.stdin.write(json.dumps(asked) + "\n")
                process.stdin.flush()
            found = json.loads(self._lines.get(timeout=seconds))
        except queue.Empty:
            self.close()
            return {"failure": f"no answer within {seconds:g} s"}
        except (OSError, ValueError):
            self.close()
            return {"failure": "the verifier's process died"}
        except BaseException:  # interrupted: its answer would be taken for the next one's
            self.close()
            raise
        return dict(found)


def _read(process: "subprocess.Popen[str]", lines: "queue.Queue[str]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put("")  # it ended: what waits need not wait for the deadline
