"""Studies on the disk: what is run again and why, on every engine, with cells that fail, stop, or need each other."""

import dataclasses
import functools
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
from rmjax.locks import InUseError
from rmjax.study import engines, slurm, stopping
from rmjax.study.cells import Cell
from rmjax.study.run import EarlyStop, Options, last_error, log_of, progress, results, run
from rmjax.study.study import (
    RESULT,
    SUPERSEDED,
    Study,
    claim_folder,
    code_digest,
    in_order,
    result_of,
    run_cell,
)
from rmjax.train.loop import Preempted

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


def cell(name, rate=1.0, init="", path="", **values):
    return Cell(
        name, {"rate": rate} | values, ConfigDict({"rate": rate, "init": init, "path": path, "run": {"steps": 10}})
    )


def study(*cells, **changes):
    return Study(**{"name": "s", "cells": cells, "train": train, "measure": measure} | changes)


def trained(folder):
    return int((folder / "trained").read_text())


def in_process(made, workdir, **changes):
    engine = engines.InProcess(lambda name: run_cell(made, name, workdir))
    return run(made, workdir, engine, Options(lambda name: [], every=0.01, **changes))


# --- one cell ----------------------------------------------------------------------------------------------------------


def test_checkpoints_go_but_for_those_that_another_cell_needs(tmp_path):
    def saves(config, folder):
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)

    cells = cell("a"), cell("b", init="cell:a"), cell("c", path="cell:a/checkpoints")
    for made, kept in (
        (study(*cells, train=saves, discards=True), {"a"}),
        (study(*cells, train=saves), {"a", "b", "c"}),
    ):
        in_process(made, tmp_path / str(made.discards))
        assert {path.parent.name for path in (tmp_path / str(made.discards)).glob("*/checkpoints")} == kept


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
    assert result_of(changed, changed.cells[0], tmp_path).why == "other code that measures"
    assert run_cell(changed, "a", tmp_path).rows[0].value == 3.0
    assert trained(tmp_path / "a") == 2 and not (tmp_path / SUPERSEDED).exists()  # `train` finds it whole


def killed(*_):
    raise KeyboardInterrupt


def test_a_cell_that_was_killed_in_its_training_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_cell(study(cell("a"), train=killed), "a", tmp_path)
    made = study(cell("a"))
    assert result_of(made, made.cells[0], tmp_path).status == "begun"
    assert run_cell(made, "a", tmp_path).status == "done" and not (tmp_path / SUPERSEDED).exists()


def test_data_that_changed_while_a_cell_ran_are_not_those_that_it_ran_on(tmp_path, capsys):
    path = tmp_path / "data.jsonl"
    path.write_text("old")
    made = study(cell("a", path=str(path)), train=lambda config, folder: path.write_text("newer"))
    run_cell(made, "a", tmp_path / "w")
    assert "a: while it ran there came other data in config.path" in capsys.readouterr().err
    assert result_of(made, made.cells[0], tmp_path / "w").status == "changed"


def test_numbers_that_json_lacks_survive(tmp_path):
    made = study(
        cell("a"), measure=lambda cell, workdir: [Row("i", "c", name, float(name)) for name in ("nan", "inf", "1")]
    )
    run_cell(made, "a", tmp_path)
    found = [row.value for row in result_of(made, made.cells[0], tmp_path).rows]
    assert str(found) == "[nan, inf, 1.0]" and "NaN" not in (tmp_path / "a" / RESULT).read_text()


def test_a_partial_function_counts_by_what_it_calls():
    assert code_digest(functools.partial(measure, 1)) == code_digest(measure) != code_digest(another_measure)
    assert code_digest(measure, (engines,)) != code_digest(measure)


@pytest.mark.parametrize("text", ["{", "[]", '{"status": "done"}', '{"made_by": 3}'])
def test_a_file_that_is_no_result_is_named(tmp_path, text):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / RESULT).write_text(text)
    with pytest.raises(ValueError, match=r"cell\.json: not .*; remove it to"):
        result_of(made := study(cell("a")), made.cells[0], tmp_path)


def test_a_cell_alone_in_a_fresh_folder_makes_the_studys_data(tmp_path):
    made = []

    def prepare(workdir):
        made.append(workdir)
        (workdir / "plan.json").touch()

    alone = study(cell("a", path="work:plan.json"), cell("b"), prepare=prepare)
    assert [run_cell(alone, name, tmp_path / "w").status for name in ("b", "a", "a")] == ["done"] * 3
    assert made == [tmp_path / "w"]  # once: `b` needs none, and then they are there


@pytest.mark.parametrize(
    ("path", "said"),
    [("work:other.json", "not in .*; use a new workdir"), ("gone/d.jsonl", "not there; correct the path")],
)
def test_a_cell_alone_names_data_that_nothing_makes(tmp_path, path, said):
    made = study(cell("a", path=path), prepare=lambda workdir: (workdir / "plan.json").touch())
    with pytest.raises(ValueError, match=f"a: config.path={path} is {said}"):
        run_cell(made, "a", tmp_path)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["failed.json"]  # for those who look later


# --- a study -----------------------------------------------------------------------------------------------------------


def test_cells_run_after_those_they_need(tmp_path):
    order = []
    made = study(
        cell("b", 2.0, "cell:a"), cell("a"), train=lambda config, folder: order.append((folder.name, config.init))
    )
    found = in_process(made, tmp_path)
    assert order == [("a", ""), ("b", str(tmp_path.resolve() / "a"))] and list(found) == ["b", "a"]
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


def test_a_failure_before_a_cell_began_does_not_make_old_results_new(tmp_path):
    """The needed cell changed, failed once, and is made again: what was made from its old form is made again too."""
    first = study(cell("a"), cell("b", 2.0, "cell:a"))
    in_process(first, tmp_path)
    failing = study(cell("a", -5.0), cell("b", 2.0, "cell:a"))
    found = in_process(failing, tmp_path, retries=0)
    assert (found["a"].status, found["b"].status) == ("failed", "changed") and "a rate below 0" in found["a"].why
    again = study(cell("a", 5.0), cell("b", 2.0, "cell:a"))
    assert {result.status for result in in_process(again, tmp_path).values()} == {"done"}
    assert trained(tmp_path / "b") == 1 and trained(tmp_path / SUPERSEDED / "b-1") == 1


def test_a_cell_by_itself_waits_for_those_it_needs(tmp_path):
    with pytest.raises(ValueError, match="b needs a, which is new; run that first"):
        run_cell(study(cell("a"), cell("b", 2.0, "cell:a")), "b", tmp_path)


def test_a_cell_by_itself_says_why_it_failed_and_forgets_it_when_it_is_tried_again(tmp_path):
    """As Slurm's and printed commands run it, where no process waits for it."""
    bad = study(cell("a", -1.0), cell("b", 2.0, "cell:a"))
    for name in ("a", "b"):
        with pytest.raises(ValueError):
            run_cell(bad, name, tmp_path)
    found = results(bad, tmp_path)
    assert (found["a"].status, found["a"].why) == ("failed", "ValueError: a rate below 0")
    assert found["b"].why == "ValueError: b needs a, which is failed; run that first"
    good = dataclasses.replace(bad, train=lambda config, folder: None)
    assert [run_cell(good, name, tmp_path).status for name in ("a", "b")] == ["done", "done"]
    assert [result.why for result in results(good, tmp_path).values()] == ["", ""]


@pytest.mark.parametrize("stop", [InUseError("in use"), Preempted("asked to stop")])
def test_a_cell_that_is_busy_or_was_asked_to_stop_has_not_failed(tmp_path, stop):
    def train(config, folder):
        raise stop

    with pytest.raises(type(stop)):
        run_cell(study(cell("a"), train=train), "a", tmp_path)
    assert results(study(cell("a"), train=train), tmp_path)["a"].status == "begun"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("absent/file.jsonl", "b: config.path=absent/file.jsonl is not there"),
        ("shipped:typo", "b: config.path: shipped:typo: no such part"),
    ],
)
def test_data_that_are_not_there_are_refused_before_anything_starts(tmp_path, path, message):
    with pytest.raises(ValueError, match=message):
        in_process(study(cell("a"), cell("b", 2.0, path=path)), tmp_path)
    assert not list(tmp_path.iterdir())  # nor is the folder the study's now


def test_results_stay_where_their_data_are_gone(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("1")
    made = study(cell("a", path=str(path)))
    in_process(made, tmp_path / "w")
    path.unlink()
    assert in_process(made, tmp_path / "w")["a"].status == "done"


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


def test_a_cell_comes_where_it_was_given_unless_it_needs_a_later_one():
    """Else a study of several seeds that is stopped early has none of them whole."""
    given = study(
        cell("start0"),
        cell("after0", init="cell:start0"),
        cell("start1"),
        cell("after1", init="cell:last"),
        cell("last"),
    )
    assert [each.name for each in in_order(given.cells)] == ["start0", "after0", "start1", "last", "after1"]


# --- processes ---------------------------------------------------------------------------------------------------------


def scripted(made, workdir, **texts):
    """Name → command: cells as shell scripts, in which FINISH writes the result that the cell would have."""
    made.prepare(workdir)
    prepared = workdir / "prepared"
    for each in in_order(made.cells):
        run_cell(study(*made.cells, train=lambda config, folder: None), each.name, prepared)

    def command(name):
        folder = shlex.quote(str(workdir / name))
        done = f"cp {shlex.quote(str(prepared / name / RESULT))} {folder}/"
        return [
            "bash",
            "-c",
            f"mkdir -p {folder} && cd {folder} && {texts.get(name, 'FINISH').replace('FINISH', done)}",
        ]

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
    assert "flaky failed (exit code 3: error: no luck); it is tried again" in said and "\x1b[31m" not in said
    again = local(made, tmp_path, scripted(made, tmp_path))  # the same command again
    assert {result.status for result in again.values()} == {"done"}


def test_a_cell_that_falls_behind_is_stopped(tmp_path):
    made = study(cell("behind", 0.0), *(cell(f"c{i}", float(i)) for i in range(1, 5)))
    logged = "for step in 1 2; do echo '{\"step\": '$step', \"eval/x\": VALUE}' >> metrics.jsonl; done; "
    texts = {f"c{i}": logged.replace("VALUE", "0.9") + "FINISH" for i in range(1, 5)}
    last = "while [ ! -e ../c4/cell.json ]; do sleep 0.02; done; "
    command = scripted(made, tmp_path, **texts, behind=last + logged.replace("VALUE", "0.1") + "sleep 60")
    found = local(made, tmp_path, command, early_stop=EarlyStop(stopping.median(1), "eval/x", name="median"))
    behind = found.pop("behind")
    assert behind.status == "stopped" and behind.why.startswith("best 0.1 up to step 2, below the median 0.9 of 4")
    assert not behind.rows and {result.status for result in found.values()} == {"done"}
    same = EarlyStop(stopping.median(1), "eval/x", name="median")
    assert (
        local(made, tmp_path, lambda name: pytest.fail("it stays stopped"), early_stop=same)["behind"].status
        == "stopped"
    )
    assert local(made, tmp_path, scripted(made, tmp_path))["behind"].status == "done"  # without the rule it goes on


def test_a_metric_of_early_stopping_that_is_not_logged_is_said_when_the_first_cell_ends(tmp_path, capsys):
    made = study(cell("a"), cell("b", 2.0))
    logging = 'echo \'{"step": 1, "eval/x": 0.5}\' > metrics.jsonl; FINISH'
    local(
        made,
        tmp_path,
        scripted(made, tmp_path, b=logging),
        early_stop=EarlyStop(stopping.median(1), "eval/x", name="m"),
    )
    said = capsys.readouterr().err
    assert "a is done and has logged no eval/x, by which cells" in said and "b is done" not in said


def test_a_cell_that_another_process_is_at_is_asked_again_and_one_that_a_signal_ends_is_named(tmp_path):
    made = study(cell("busy"), cell("shot", 2.0))
    busy = f"if [ -e tried ]; then FINISH; else touch tried; exit {engines.BUSY}; fi"
    found = local(made, tmp_path, scripted(made, tmp_path, busy=busy, shot="kill -9 $$"), retries=0)
    assert found["busy"].status == "done" and found["shot"].why.startswith("ended by SIGKILL: ")


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


def test_a_cell_gets_its_environment_and_does_not_run_without(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--ours=1")
    apart = dataclasses.replace(cell("a"), environment={"XLA_FLAGS": "--theirs=2", "RMJAX_TEST": "x"})
    made = study(apart)
    with pytest.raises(ValueError, match="a needs a process that started with XLA_FLAGS=--theirs=2 RMJAX_TEST=x"):
        run_cell(made, "a", tmp_path)
    said = [sys.executable, "-c", "import os; print(os.environ['XLA_FLAGS'], os.environ['RMJAX_TEST'])"]
    command = engines.in_environment(said, apart.environment)
    assert subprocess.run(command, capture_output=True, text=True).stdout == "--ours=1 --theirs=2 x\n"
    assert engines.in_environment(said, {}) == said
    monkeypatch.setenv("XLA_FLAGS", "--ours=1 --theirs=2")
    monkeypatch.setenv("RMJAX_TEST", "x")
    assert run_cell(made, "a", tmp_path).status == "done"
    other = dataclasses.replace(apart, environment={"XLA_FLAGS": "--theirs=3", "RMJAX_TEST": "x"})
    assert "environment.XLA_FLAGS: '--theirs=2' then, '--theirs=3' now" in result_of(study(other), other, tmp_path).why


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
    log = log_of(tmp_path, "a")
    assert last_error(log) == "it said nothing" and progress(made, tmp_path) == 0
    log.parent.mkdir()
    log.write_text("x\nerror: this\nTraceback\n")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "metrics.jsonl").write_text('{"step": 1}\n{"step": 4}\n{"ste')
    assert last_error(log) == "error: this" and progress(made, tmp_path) == 0.4
    assert last_error(log, log.stat().st_size) == "it said nothing"  # of a later attempt


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
          for i in $(seq 0 "$last"); do SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$i bash "$script" 1>&2; done; echo 7;;
esac
"""


def test_slurm_scripts_run_their_cells(tmp_path, monkeypatch):
    """With stand-ins for sbatch, srun and scontrol."""
    made = study(cell("a"), cell("it's", 3.0, "cell:a"), cell("stopped", 4.0), cell("bad", 5.0))
    command = scripted(made, tmp_path, stopped="exit $RMJAX_STOPPED_CODE", bad="exit 1")
    record, folder = tmp_path / "record", tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "srun", "scontrol"):
        (folder / name).write_text(SLURM.format(record=record))
        (folder / name).chmod(0o755)
    for name in made.by_name:
        (tmp_path / name).mkdir()
    path = slurm.write_scripts(made, tmp_path, command, [], 0, retries=1)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    done = subprocess.run(["bash", path], capture_output=True, text=True, check=True)
    assert "level 1: job 7, 1 cells" in done.stdout
    assert [result.status for result in results(made, tmp_path).values()] == ["done", "done", "new", "new"]
    called = record.read_text()
    assert "sbatch --parsable --dependency=afterany:7" in called
    assert called.count("scontrol requeue 7_1") == called.count("scontrol requeue 7_2") == 1  # stopped, and bad once
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    subprocess.run(["bash", path], capture_output=True, check=False)
    assert record.read_text().count("scontrol requeue 7_2") == 1
