"""Studies on the disk: what is run again and why, on every engine, with cells that fail, stop, or need each other."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from rmjax.evaluate.rows import Row
from rmjax.study import engines, slurm, stopping
from rmjax.study.cells import Cell
from rmjax.study.run import EarlyStop, Options, last_error, progress, results, run
from rmjax.study.study import (
    RESULT,
    SUPERSEDED,
    Result,
    Study,
    claim_folder,
    in_order,
    result_of,
    run_cell,
    write_result,
)

ROOT = Path(__file__).parents[2]


def train(config, folder):
    """Counts how often it was called."""
    path = folder / "trained"
    path.write_text(str(int(path.read_text()) + 1 if path.exists() else 1))
    if config.rate < 0:
        raise ValueError("a rate below 0")


def measure(cell, workdir):
    yield Row("item", "cluster", "score", cell.config.rate * 2)


def another_measure(cell, workdir):
    yield Row("item", "cluster", "score", cell.config.rate * 3)


another_measure.__module__ = "json"  # so that its file is another one


def cell(name, rate=1.0, init="", **values):
    return Cell(name, {"rate": rate} | values, ConfigDict({"rate": rate, "init": init, "run": {"steps": 10}}))


def study(*cells, **changes):
    return Study(**({"name": "s", "cells": cells, "train": train, "measure": measure} | changes))


def trained(folder):
    return int((folder / "trained").read_text())


def in_process(made, workdir, **changes):
    engine = engines.InProcess(lambda name: run_cell(made, name, workdir))
    return run(made, workdir, engine, Options(lambda name: [], every=0.01, **changes))


# --- one cell ----------------------------------------------------------------------------------------------------------


def test_a_finished_cell_is_not_run_again(tmp_path):
    made = study(cell("a"))
    first = run_cell(made, "a", tmp_path)
    assert (first.status, [row.value for row in first.rows]) == ("done", [2.0])
    assert run_cell(made, "a", tmp_path).rows == first.rows and trained(tmp_path / "a") == 1


def test_another_config_sets_aside_what_was_there(tmp_path, capsys):
    run_cell(study(cell("a", 1.0)), "a", tmp_path)
    changed = study(cell("a", 5.0))
    assert result_of(changed, changed.cells[0], tmp_path).why == "config.rate: 1.0 then, 5.0 now"
    assert run_cell(changed, "a", tmp_path).rows[0].value == 10.0
    kept = json.loads((tmp_path / SUPERSEDED / "a-1" / RESULT).read_text())
    assert kept["rows"][0]["value"] == 2.0 and "a-1 now" in capsys.readouterr().err
    run_cell(study(cell("a", 6.0)), "a", tmp_path)
    assert (tmp_path / SUPERSEDED / "a-2").is_dir()


def test_another_measure_keeps_the_training(tmp_path):
    run_cell(study(cell("a")), "a", tmp_path)
    changed = study(cell("a"), measure=another_measure)
    assert result_of(changed, changed.cells[0], tmp_path).why == "another measure"
    assert run_cell(changed, "a", tmp_path).rows[0].value == 3.0
    assert trained(tmp_path / "a") == 2 and not (tmp_path / SUPERSEDED).exists()  # `train` finds it whole


def test_a_cell_that_was_killed_in_its_training_goes_on(tmp_path):
    made = study(cell("a"))
    write_result(made, made.cells[0], tmp_path, Result("begun", seconds=5.0))
    found = run_cell(made, "a", tmp_path)
    assert found.status == "done" and found.seconds >= 5.0 and not (tmp_path / SUPERSEDED).exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"status": "done"}', '{"made_by": 3}'])
def test_a_file_that_is_no_result_is_named(tmp_path, text):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / RESULT).write_text(text)
    with pytest.raises(ValueError, match=r"cell\.json: not .*; remove it to"):
        result_of(made := study(cell("a")), made.cells[0], tmp_path)


# --- a study -----------------------------------------------------------------------------------------------------------


def test_cells_run_after_those_they_need(tmp_path):
    order = []
    made = study(
        cell("b", 2.0, "cell:a"), cell("a"), train=lambda config, folder: order.append((folder.name, config.init))
    )
    found = in_process(made, tmp_path)
    assert order == [("a", ""), ("b", str(tmp_path / "a"))] and list(found) == ["b", "a"]
    assert [cell.name for cell in in_order(made.cells)] == ["a", "b"]
    changed = study(cell("b", 2.0, "cell:a"), cell("a", 7.0), train=made.train)
    assert results(changed, tmp_path)["b"].why == "other data in cell:a"


def test_a_folder_holds_one_study(tmp_path):
    claim_folder(study(cell("a")), tmp_path)
    with pytest.raises(ValueError, match="holds the study 's', not 't'; use another workdir"):
        claim_folder(study(cell("a"), name="t"), tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.json").touch()
    with pytest.raises(ValueError, match="holds a run, not a study"):
        claim_folder(study(cell("a")), tmp_path / "run")


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([cell("a"), cell("a")], "two cells are called a"),
        ([cell("a", init="cell:b")], "cell a needs b, which is no cell"),
    ],
)
def test_plans_that_cannot_be(cells, message):
    with pytest.raises(ValueError, match=message):
        study(*cells)


def test_cells_that_need_each_other():
    with pytest.raises(ValueError, match="the cells a, b need each other"):
        in_order(study(cell("a", init="cell:b"), cell("b", init="cell:a")).cells)


# --- processes ---------------------------------------------------------------------------------------------------------


def scripted(made, workdir, **texts):
    """Name → command: cells as shell scripts, in which FINISH writes the result that the cell would have."""
    made.prepare(workdir)
    prepared = workdir / "prepared"
    for each in made.cells:
        write_result(made, each, prepared, Result("done", tuple(measure(each, workdir))))

    def command(name):
        folder = shlex.quote(str(workdir / name))
        done = f"cp {shlex.quote(str(prepared / name / RESULT))} {folder}/"
        return ["bash", "-c", f"cd {folder}; {texts.get(name, 'FINISH').replace('FINISH', done)}"]

    return command


def local(made, workdir, command, parallel=2, **changes):
    parts = engines.slots(parallel, sorted(os.sched_getaffinity(0)), [], "")
    return run(made, workdir, engines.Local(parts), Options(command, every=0.02, **changes))


def test_a_cell_that_fails_is_tried_again_and_then_reported(tmp_path, capsys):
    made = study(cell("good"), cell("flaky", 2.0), cell("bad", 3.0), cell("after", 4.0, "cell:bad"))
    flaky = "if [ -e tried ]; then FINISH; else touch tried; echo 'error: no luck'; exit 3; fi"
    command = scripted(
        made, tmp_path, flaky=flaky, bad="echo tried >> tries; echo 'error: \x1b[31mred'; echo more; exit 1"
    )
    found = local(made, tmp_path, command, retries=2)
    assert {name: result.status for name, result in found.items()} == {
        "good": "done", "flaky": "done", "bad": "failed", "after": "failed",
    }  # fmt: skip
    assert found["bad"].why == "exit code 1: error: \\x1b[31mred" and found["after"].why == "it needs bad, which failed"
    assert (tmp_path / "bad" / "tries").read_text().count("tried") == 3
    said = capsys.readouterr().err
    assert "flaky failed (error: no luck); it is tried again" in said and "\x1b[31m" not in said
    again = local(made, tmp_path, scripted(made, tmp_path))  # the same command again
    assert {result.status for result in again.values()} == {"done"}


def test_a_cell_that_falls_behind_is_stopped(tmp_path):
    made = study(cell("behind", 0.0), *(cell(f"c{i}", float(i)) for i in range(1, 5)))
    logged = "for step in 1 2; do echo '{\"step\": '$step', \"eval/x\": VALUE}' >> metrics.jsonl; done; "
    texts = {f"c{i}": logged.replace("VALUE", "0.9") + "FINISH" for i in range(1, 5)}
    last = "while [ ! -e ../c4/cell.json ]; do sleep 0.02; done; "
    command = scripted(made, tmp_path, **texts, behind=last + logged.replace("VALUE", "0.1") + "sleep 60")
    found = local(made, tmp_path, command, early_stop=EarlyStop(stopping.median(1), "eval/x"))
    behind = found.pop("behind")
    assert behind.status == "stopped" and behind.why.startswith("best 0.1 up to step 2, below the median 0.9 of 4")
    assert behind.rows[0].metric == "score" and {result.status for result in found.values()} == {"done"}


PARENT = """
import sys
from pathlib import Path
from rmjax.study import engines
handle = engines.Local(engines.slots(1, [0], [], "")).start("x", [sys.executable, "-c", sys.argv[1]], Path(sys.argv[2]))
print("started", flush=True)
import time; time.sleep(60)
"""
CHILD = """
import signal, sys, time
from rmjax.study.engines import end_with_parent
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(0)))
end_with_parent()
print("running", flush=True)
time.sleep(60)
"""


def test_cells_end_with_the_process_that_started_them_even_by_kill_9(tmp_path):
    log = tmp_path / "log"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD, str(log)], cwd=ROOT, stdout=subprocess.PIPE)
    assert parent.stdout.readline() == b"started\n"
    wait(lambda: log.exists() and "running" in log.read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait(lambda: "saved" in log.read_text())


def wait(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("parallel", "accelerators", "wanted"),
    [
        (0, [], [((0, 1, 2, 3), {})]),
        (2, [], [((0, 2), {}), ((1, 3), {})]),
        (0, ["0", "1"], [((0, 2), {"V": "0"}), ((1, 3), {"V": "1"})]),
        (1, ["3", "5"], [((0, 1, 2, 3), {"V": "3,5"})]),
    ],
)
def test_the_machine_is_divided(parallel, accelerators, wanted):
    found = engines.slots(parallel, range(4), accelerators, "V")
    assert [(slot.cores, slot.environment) for slot in found] == wanted


def test_more_cells_than_accelerators():
    with pytest.raises(ValueError, match="3 cells at a time on 2 accelerators; give at most 2"):
        engines.slots(3, range(4), ["0", "1"], "V")


def test_what_a_cell_said_and_how_far_it_is(tmp_path):
    made = cell("a")
    folder = tmp_path / "a"
    assert last_error(folder) == "it said nothing" and progress(made, tmp_path) == 0
    folder.mkdir()
    (folder / "log.txt").write_text("x\nerror: this\nTraceback\n")
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 4}\n{"ste')
    assert last_error(folder) == "error: this" and progress(made, tmp_path) == 0.4


# --- Slurm -------------------------------------------------------------------------------------------------------------


def test_slurm_scripts_have_a_level_for_each_need(tmp_path):
    made = study(cell("a"), cell("b", 2.0), cell("it's", 3.0, "cell:a"))
    path = slurm.write_scripts(made, tmp_path, lambda name: ["python", f"--cell={name}"], ["--time=1:00:00"], 4)
    first, second = ((tmp_path / "slurm" / f"level{i}.sh").read_text() for i in (0, 1))
    assert (
        "#SBATCH --array=0-1%4\n" in first and "#SBATCH --time=1:00:00\n" in first and "#SBATCH --array=0-0%4" in second
    )
    for script in (path, *(tmp_path / "slurm").glob("level*.sh")):
        subprocess.run(["bash", "-n", script], check=True)
    with pytest.raises(ValueError, match="use --gpus-per-node"):
        slurm.write_scripts(made, tmp_path, lambda name: [], ["--gpus-per-task=1"], 0)


SLURM = """#!/bin/bash
echo "$(basename "$0") $*" >> {record}
case "$(basename "$0")" in
  srun) exec "$@";;
  sbatch) script="${{@: -1}}"; last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
          for i in $(seq 0 "$last"); do SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$i bash "$script" 1>&2 || exit; done; echo 7;;
esac
"""


def test_slurm_scripts_run_their_cells(tmp_path, monkeypatch):
    """With stand-ins for sbatch, srun and scontrol."""
    made = study(cell("a"), cell("it's", 3.0, "cell:a"), cell("stopped", 4.0))
    command = scripted(made, tmp_path, stopped="true")
    record, folder = tmp_path / "record", tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "srun", "scontrol"):
        (folder / name).write_text(SLURM.format(record=record))
        (folder / name).chmod(0o755)
    for name in made.by_name:
        (tmp_path / name).mkdir()
        (tmp_path / name / RESULT).write_text('{"status": "begun"}')
    path = slurm.write_scripts(made, tmp_path, command, [], 0)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    done = subprocess.run(["bash", path], capture_output=True, text=True, check=True)
    assert "level 1: job 7, 1 cells" in done.stdout
    assert [result.status for result in results(study(cell("a"), cell("it's", 3.0, "cell:a")), tmp_path).values()] == [
        "done"
    ] * 2
    called = record.read_text()
    assert "sbatch --parsable --dependency=afterok:7" in called and called.count("scontrol requeue 7_1") == 1
