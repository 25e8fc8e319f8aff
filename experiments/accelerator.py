"""What only an accelerator can show: `python -m experiments.accelerator --minutes=8 --out=docs/speed/accelerator/NAME.json`.

Stages in an order of worth, a process each, so that one that crashes, hangs or runs out of memory ends alone: attention kernels
against dense attention; MFU of the 1.8B step; a forest's step against a padded one and TRL's; scoring; sampling; POLAR for the
time that is left. Each starts only if there is time for it, has a bound, and is in the file as it ends, with its whole error
where it failed. Run again, the command goes on with what is missing for this device. `--toy` has sizes for a CPU. `--page`
writes the section of docs/speed.md from all of docs/speed/accelerator, and runs nothing.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments.start import guarded, parse_flags, prepare
from rmjax.files import refuse_unwritable, write_json, write_text
from rmjax.study.page import filled
from rmjax.study.summary import Line, read_summary, write_summary
from rmjax.study.table import aligned, markdown

NAME, PAGE, RESULTS = "accelerator", Path("docs/speed.md"), Path("docs/speed/accelerator")
NOTHING = "Not measured yet."
GRACE = 20  # seconds that a stage has to save after SIGTERM
STARTING = 120  # seconds in which the device has to say what it is


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage and its bounds.

    Attributes:
      least: seconds without which it does not start.
      most: seconds after which it is stopped; what it has found by then is kept.
      sizes, toy: of an accelerator, and for a CPU.
      flags: on which it depends, too.
    """

    name: str
    least: float
    most: float
    sizes: Mapping[str, Any]
    toy: Mapping[str, Any]
    flags: tuple[str, ...] = ()


_CHOICES = tuple(
    (attention, remat)
    for attention, remat in (
        ("pallas", "attention"), ("pallas", "dots"), ("blockwise", "attention"), ("pallas", "full"), ("pallas", "none"),
        ("blockwise", "dots"), ("dense", "full"),
    )
)  # fmt: skip
_POLAR = {
    "model.frozen_layers": 0, "model.dtype": "bfloat16", "model.remat": "attention", "trainable": ".",
    "data.rows": 16, "data.row_tokens": 2048, "data.groups": 16, "format.max_length": 768, "format.max_response_length": 256,
    "optimizer.learning_rate": 5e-5, "run.steps": 4000, "run.save_every": 500,
}  # fmt: skip
_POLAR_TOY = {
    "model.frozen_layers": 0, "data.rows": 1, "data.row_tokens": 256, "format.max_length": 112,
    "format.max_response_length": 16, "run.steps": 2, "run.save_every": 2,
}  # fmt: skip
STAGES = (
    Stage(
        "kernels", 45, 150,
        {"rows": 2, "row_tokens": 2048, "heads": ((9, 3, 64), (16, 8, 128)), "block": 128},
        {"rows": 1, "row_tokens": 48, "heads": ((2, 1, 8),), "block": 16},
    ),
    Stage(
        "utilization", 75, 300,
        {"preset": True, "rows": 4, "row_tokens": 4096, "choices": _CHOICES, "rounds": 5},
        {"preset": False, "rows": 1, "row_tokens": 24, "choices": (("blockwise", "attention"),), "rounds": 1},
    ),
    Stage("forests", 90, 240, {"layers": 30, "batch": 64, "steps": 8}, {"layers": 1, "batch": 2, "steps": 1}, ("peer",)),
    Stage(
        "scoring", 45, 120,
        {"layers": 30, "groups": 128, "candidates": 5, "rounds": 3, "batch_tokens": 65536, "rows": 128},
        {"layers": 1, "groups": 2, "candidates": 3, "rounds": 1, "batch_tokens": 1024, "rows": 8},
    ),
    Stage(
        "sampling", 45, 120,
        {"layers": 30, "rows": (64, 512), "prompt_tokens": 128, "new_tokens": 128, "rounds": 3},
        {"layers": 1, "rows": (2,), "prompt_tokens": 4, "new_tokens": 3, "rounds": 1},
    ),
    Stage(
        "polar", 120, 3600,
        {"config": _POLAR, "judged": 400, "reserve": 60, "probes": (2, 6), "most_layers": 0, "rounds": 3},
        {"config": _POLAR_TOY, "judged": 4, "reserve": 5, "probes": (1, 2), "most_layers": 2, "rounds": 1}, ("init", "groups"),
    ),
)  # fmt: skip
"""In an order of worth."""


# --- the results file --------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Results:
    """A results file: a line for each stage and for each of its cases."""

    path: Path
    about: dict[str, Any]
    lines: list[Line]

    @classmethod
    def open(cls, path: Path, about: Mapping[str, Any]) -> "Results":
        """What is there of this device.

        Raises:
          ValueError: the file is of another device, or of something else.
        """
        if not path.exists():
            return cls(path, dict(about), [])
        before, lines = read_summary(path, NAME)
        if before["device"] != about["device"]:
            raise ValueError(
                f"{path} has results of {before['device']}, and this is {about['device']}; use another --out"
            )
        return cls(path, {**before, **about}, lines)

    def stage(self, name: str) -> Line | None:
        """Its line."""
        return next((line for line in self.lines if line["stage"] == name and "status" in line), None)

    def cases(self, name: str) -> dict[str, Any]:
        """Its cases by name."""
        found = [line for line in self.lines if line["stage"] == name and "case" in line]
        return {
            line["case"]: {key: value for key, value in line.items() if key not in ("stage", "case")} for line in found
        }

    def keep(self, name: str, stage: Line, cases: Mapping[str, Any]) -> None:
        """Replaces a stage's lines, and writes the file."""
        rest = [line for line in self.lines if line["stage"] != name]
        new = [{"stage": name, "case": case, **found} for case, found in cases.items()]
        self.lines = [*rest, {"stage": name, **stage}, *new]
        write_summary(self.path, NAME, self.about, self.lines)


def without_paths(text: str) -> str:
    """An error without the folders of the machine, which tell nothing and do not belong into committed results."""
    names = {str(Path.home()): "~", str(Path.cwd()): ".", sys.base_prefix: "PYTHON", sys.prefix: "PYTHON"}
    for folder in sorted(names, key=len, reverse=True):  # one folder may lie in another
        text = text.replace(f"{folder}/", f"{names[folder]}/")
    return text


# --- running -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Given:
    """The command's flags."""

    minutes: float
    out: Path
    workdir: Path
    toy: bool
    peer: str
    init: str
    data: str
    groups: str


def sizes_of(stage: Stage, given: Given) -> dict[str, Any]:
    """As JSON has them, with the last names of what its flags give."""
    sizes = json.loads(json.dumps(dict(stage.toy if given.toy else stage.sizes)))
    return sizes | {flag: Path(getattr(given, flag)).name for flag in stage.flags}


def missing(results: Results, given: Given) -> list[Stage]:
    """The stages that are not done at these sizes, in their order; those that failed before come last."""
    new: list[Stage] = []
    again: list[Stage] = []
    for stage in STAGES:
        line = results.stage(stage.name)
        if line is None or line["sizes"] != sizes_of(stage, given):
            new.append(stage)
        elif line["status"] != "done":
            (again if line["status"] == "failed" else new).append(stage)
    return new + again


def run(given: Given) -> None:
    """All that there is time for; a table at the end."""
    deadline = time.monotonic() + 60 * given.minutes
    refuse_unwritable(given.out)
    about = json.loads(_said(given, "about", {}, deadline - time.monotonic())[1])
    results = Results.open(given.out, about | {"command": _command(given)})
    for stage in missing(results, given):
        left = deadline - time.monotonic()
        if left < (0 if given.toy else stage.least):
            print(
                f"{stage.name}: not started, {max(left, 0):.0f} s are left of the {stage.least:.0f} that it needs",
                flush=True,
            )
            continue
        run_stage(given, results, stage, min(stage.most, left))
    print("\n" + aligned(table(results.lines)))


def _command(given: Given) -> str:
    return f"python -m experiments.accelerator --minutes={given.minutes:g} --out={given.out}{' --toy' if given.toy else ''}"


def run_stage(given: Given, results: Results, stage: Stage, seconds: float) -> None:
    """One stage in a process of its own; its lines."""
    sizes, before = sizes_of(stage, given), results.stage(stage.name)
    cases = results.cases(stage.name) if before and before["sizes"] == sizes else {}
    file = given.workdir / f"{stage.name}.json"
    file.unlink(missing_ok=True)
    job = {"sizes": sizes, "cases": cases, "seconds": seconds - GRACE, "file": str(file)}
    print(f"{stage.name}: {seconds:.0f} s at most", flush=True)
    began = time.monotonic()
    code, said = _said(given, stage.name, job, seconds)
    found = json.loads(file.read_text()) if file.exists() else cases
    failed = [name for name, case in found.items() if "error" in case]
    unfinished = code is None or any(case.get("finished") is False for case in [*found.values()][-1:])
    status = "failed" if code or failed else "stopped" if unfinished else "done"
    line = {"status": status, "seconds": time.monotonic() - began, "sizes": sizes}
    if code:
        line |= {"code": code, "error": said}
    results.keep(stage.name, line, found)
    print(
        f"{stage.name}: {status} after {line['seconds']:.0f} s" + (f", {', '.join(failed)} failed" if failed else ""),
        flush=True,
    )


def _said(given: Given, stage: str, job: Mapping[str, Any], seconds: float) -> tuple[int | None, str]:
    """Exit code (None: stopped) and everything that a stage's process said."""
    given.workdir.mkdir(parents=True, exist_ok=True)
    path = given.workdir / f"{stage}.job.json"
    write_json(
        path, {**job, **{name: str(getattr(given, name)) for name in ("workdir", "peer", "init", "data", "groups")}}
    )
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONUNBUFFERED": "1"}
    code: int | None
    log = (given.workdir / f"{stage}.log").open("w+")
    with log, subprocess.Popen(
        [sys.executable, "-m", "experiments.accelerator", f"--stage={stage}", f"--job={path}"],
        stdout=log if stage != "about" else subprocess.PIPE, stderr=log, env=environment, start_new_session=True, text=True,
    ) as process:  # fmt: skip
        try:
            out, _ = process.communicate(timeout=max(seconds - GRACE, 1) if job else STARTING)
            code = process.returncode
        except subprocess.TimeoutExpired:
            _stop(process)
            code, out = None, ""
        except BaseException:
            _stop(process)
            raise
        log.seek(0)
        said = log.read()
    if stage == "about" and code != 0:
        raise RuntimeError(f"the device does not start: {said.strip()}")
    return code, out if stage == "about" else without_paths(said)


def _stop(process: subprocess.Popen[str]) -> None:
    """SIGTERM to all of its processes, then SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(GRACE)
            return
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
    process.wait()


def one_stage(name: str, path: Path) -> None:
    """In the process of a stage."""
    from rmjax.evaluate import environment

    if name == "about":
        print(json.dumps(environment()))
        return
    from experiments import accelerator_stages as stages

    job = json.loads(path.read_text())
    file, workdir = Path(job["file"]), Path(job["workdir"]) / name
    workdir.mkdir(parents=True, exist_ok=True)
    told = {field: job[field] for field in ("peer", "init", "data", "groups")}
    notes = stages.Notes(
        job["cases"], lambda cases: write_text(file, json.dumps(cases)), workdir, job["seconds"], **told
    )
    getattr(stages, name)(notes, job["sizes"])
    notes.keep(notes.cases)


# --- tables ------------------------------------------------------------------------------------------------------------

_SHOWN: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "kernels": lambda c: ", ".join(
        f"{name} {c[name]:.1e}" for name in ("values", "of queries", "of keys", "of values")
    ),
    "utilization": lambda c: (
        f"{c['seconds']:.3f} s ({c['low']:.3f}–{c['high']:.3f}), MFU {100 * c['mfu']:.1f} %, planned {c['planned_gb']:.0f} GB"
    ),
    "scoring": lambda c: (
        f"{c['forest_per_second']:,.0f} candidates/s, padded {c['padded_per_second']:,.0f}, sorted by length "
        f"{c['sorted_per_second']:,.0f}; rewards {c['largest_difference']:.1e} apart"
    ),
    "sampling": lambda c: f"{c['tokens_per_second']:,.0f} tokens/s",
    "polar": lambda c: (
        _backbone(c)
        if "available" in c
        else f"{c['data']}, {c['layers']} layers: {_accuracy(c, 'seen')}, {_accuracy(c, 'unseen')}"
    ),
}


def _backbone(case: Mapping[str, Any]) -> str:
    probes = ", ".join(f"{seconds:.3g} s at {layers}" for layers, seconds in case["step_seconds"].items())
    return (
        f"{case['layers']} of {case['available']} layers, the most whose {case['steps']} steps fit in {case['left'] / 60:.1f} "
        f"minutes; a step took {probes}"
    )


def _accuracy(case: Mapping[str, Any], split: str) -> str:
    value, low, high = (case[f"{split}_{name}"] for name in ("accuracy", "low", "high"))
    return f"{split} policies {value:.3f} ({low:.3f} to {high:.3f})"


def shown(stage: str, case: Mapping[str, Any]) -> str:
    """What a case found, in words."""
    if "error" in case:
        return f"failed: {case['error'].strip().splitlines()[-1][:160]}"
    if "skipped" in case:
        return f"skipped: {case['skipped']}"
    if stage == "forests" and "pairs_per_second" in case:
        version = "".join(f" (TRL {version})" for name, version in case.get("versions", {}).items() if name == "trl")
        return f"{case['pairs_per_second']:,.1f} pairs/s, {case['tokens_per_second']:,.0f} tokens/s{version}"
    if stage == "forests" and "rewards" in case:
        return f"on one batch in fp32 losses differ by {case['loss']:.1e}, rewards by {case['rewards']:.1e}"
    if stage == "forests":
        return f"{case['data']}, {case['mean_tokens_of_a_pair']:.0f} tokens a pair in the mean; {case['rows']} rows of ours"
    return _SHOWN[stage](case)


def table(lines: Sequence[Line]) -> list[list[str]]:
    """A row for each case; one for a stage that did not come to its end."""
    rows = [["stage", "case", "found"]]
    for line in lines:
        if "case" in line:
            rows.append([line["stage"], line["case"], shown(line["stage"], line)])
        elif line["status"] != "done":
            last = line.get("error", "").strip().splitlines()[-1:]
            rows.append(
                [
                    line["stage"],
                    "",
                    f"{line['status']} after {line['seconds']:.0f} s" + "".join(f": {x[:160]}" for x in last),
                ]
            )
    return rows


def section(root: Path) -> str:
    """Of docs/speed.md: a table for each device."""
    parts = []
    for path in sorted((root / RESULTS).glob("*.json")):
        about, lines = read_summary(path, NAME)
        versions = ", ".join(
            f"{name} {version}" for name, version in about["versions"].items() if name in ("jax", "flax")
        )
        parts.append(
            f"### {path.stem}\n\n{about['device']}; {versions}; `{about['command']}`\n\n{markdown(table(lines))}"
        )
    return "\n\n".join(parts) or NOTHING


def write_page(root: Path) -> None:
    """Writes the section."""
    text = (root / PAGE).read_text(encoding="utf-8")
    write_text(root / PAGE, filled(text, {f"{NAME}/devices": section(root)}, PAGE, NAME))


def main(argv: Sequence[str]) -> None:
    """Reads the flags."""
    del argv
    f = flags.FLAGS
    if f.page or f.stage:
        sys.exit(
            guarded((lambda: write_page(Path())) if f.page else (lambda: one_stage(f.stage, Path(f.job))), resumes=True)
        )
    out = Path(f.out)
    workdir = Path(f.workdir or f"runs/accelerator/{out.stem}")
    given = Given(f.minutes, out, workdir, f.toy, f.peer, f.init, f.data, f.groups)
    sys.exit(guarded(lambda: run(given)))


if __name__ == "__main__":
    flags.DEFINE_float("minutes", 8, "that the command may take", 0)
    flags.DEFINE_string("out", "runs/accelerator.json", "results, to go on with")
    flags.DEFINE_string("workdir", "", "for models, logs and checkpoints; by default runs/accelerator/NAME")
    flags.DEFINE_bool("toy", False, "sizes for a CPU")
    flags.DEFINE_string("peer", "", "interpreter of an environment with torch and TRL")
    flags.DEFINE_string("init", "smollm2", "what POLAR starts from, as model.init: the largest .gguf at hand")
    flags.DEFINE_string("data", "../shared/data", "where the real sets lie")
    flags.DEFINE_string(
        "groups", "", "folder with groups_train.jsonl, groups_seen.jsonl and groups_unseen.jsonl for POLAR"
    )
    flags.DEFINE_bool("page", False, "write the section of docs/speed.md, and run nothing")
    flags.DEFINE_string("stage", "", "for the command itself: run this stage here")
    flags.DEFINE_string("job", "", "for the command itself: what the stage is told")
    prepare()
    app.run(main, flags_parser=parse_flags)
