"""Cells on a Ray cluster of this machine; where Ray is installed (extra `ray`)."""

import pytest

from rmjax.study import engines
from rmjax.study.run import Options, run
from tests.study.test_study import cell, scripted, study

pytest.importorskip("ray", reason="the extra `ray` is not installed")


@pytest.mark.slow
def test_cells_that_fail_and_a_worker_that_is_killed(tmp_path):
    made = study(cell("after", 1.0, "cell:a"), cell("a"), cell("flaky", 2.0), cell("bad", 3.0), cell("killed", 4.0))
    once = "if [ -e tried ]; then FINISH; else touch tried; {}; fi"
    command = scripted(
        made, tmp_path, flaky=once.format("exit 3"), killed=once.format("kill -9 $PPID; sleep 1"),
        bad="echo tried >> tries; echo 'error: no luck'; exit 1",
    )  # fmt: skip
    found = run(made, tmp_path, engines.Ray("", cores=1.0, accelerators=0.0, retries=2), Options(command, every=0.1))
    assert {name: result.status for name, result in found.items()} == {
        "after": "done", "a": "done", "flaky": "done", "bad": "failed", "killed": "done",
    }  # fmt: skip
    assert found["bad"].why.endswith("error: no luck") and (tmp_path / "bad" / "tries").read_text().count("tried") == 3
