"""Jobs of the two sides: a process each, which reads a description from one file and writes what it found to another."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

from rmjax.files import write_json

OURS, THEIRS = "rmjax", "trl"
TRL_SIDE = Path(__file__).with_name("trl_side.py")
PAD_TOKEN = "<|im_end|>"  # never in a text: special tokens in texts are ordinary characters


def launch(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
    """Runs a process to its end, all it says in `log`; its exit code."""
    with log.open("w") as file:
        return subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False).returncode


def run_job(
    folder: Path, name: str, arm: str, peer: str, job: Mapping[str, Any], cache: Path | None = None
) -> dict[str, Any]:
    """Runs a job of one side.

    Args:
      folder: takes NAME.job.json, NAME.log, and what is scratch.
      name: of the job.
      arm: whose job it is: `THEIRS` is run by `peer`.
      peer: interpreter of the environment with torch and TRL.
      job: what the process is told; `out` and `scratch` are added.
      cache: of compiled programs; by default one in `folder`, so that what is called cold was.

    Returns:
      What it found, with its arm, its command and its wall time; `startup_seconds` where it says when its first step ended.

    Raises:
      RuntimeError: it failed; the message has its last lines and names its log.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    path, out, log = (folder / f"{name}{end}" for end in (".job.json", ".found.json", ".log"))
    write_json(path, {"out": str(out), "scratch": str(folder / "scratch")} | dict(job))
    ours = [sys.executable, "-m", "experiments.trainers.rmjax_side"]
    command = [*([peer, "-P", str(TRL_SIDE)] if arm == THEIRS else ours), str(path)]
    out.unlink(missing_ok=True)
    began = time.time()
    code = launch(command, log, environment(cache or folder / "cache"))
    if code or not out.exists():
        last = " | ".join(log.read_text(errors="replace").strip().splitlines()[-3:])
        raise RuntimeError(f"{shlex.join(command)} failed ({code}): {last}; all of it is in {log}")
    found = json.loads(out.read_text())
    found |= {"arm": arm, "command": shlex.join(command), "began": began, "wall_seconds": time.time() - began}
    if "first_step_ended" in found:
        found["startup_seconds"] = found["first_step_ended"] - began
    return found


def environment(cache: Path) -> dict[str, str]:
    """This process's with its own compile cache; nothing is asked of a hub or told to one."""
    more = {"RMJAX_CACHE": str(cache.resolve()), "PYTHONWARNINGS": "ignore"}
    return {**os.environ, **more, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def trl_side() -> ModuleType:
    """The other side's file, for its source: torch is not here, so it is not run."""
    spec = util.spec_from_file_location("trl_side", TRL_SIDE)
    assert spec
    return util.module_from_spec(spec)


def processor() -> str:
    """The CPU's name, where Linux says it, with family and model: a virtual machine's name often hides them."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    known = {key.strip(): value.strip() for key, found, value in (x.partition(":") for x in lines) if found}
    if "model name" not in known:
        return platform.processor()
    numbers = [f"{key.removeprefix('cpu ')} {known[key]}" for key in ("cpu family", "model") if key in known]
    return known["model name"] + (f" ({', '.join(numbers)})" if numbers else "")
