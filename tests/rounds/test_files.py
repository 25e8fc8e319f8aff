"""A round's files: read again as they were written, or refused with what to do."""

import dataclasses
import json

import numpy as np
import pytest

from rmjax.data.record import Comparison
from rmjax.rounds.files import Round, RoundFiles

OWN = {"round": 3, "step": 7, "seed": 5}
LOG_PROBS = ((float(np.float32(-0.1)), float(np.float32(-1e-7))), (-3.0,))
RECORD = Comparison(
    "p\u2028", ("a\n\u2028b", ""), ("r",), policies=("policy",) * 2, id="q1",
    columns={"rewards": (0.5, 1.0), "log_probs": LOG_PROBS, "token_ids": ((3, 4), (5,)), "truncated": (1.0, 0.0)},
)  # fmt: skip
ROUND = Round([RECORD], [4], {"reward": 0.75}, {0: [{"output": "c", "reason": "no answer within 1 s"}]})


@pytest.fixture
def files(tmp_path):
    return RoundFiles(tmp_path / "rollouts", {"reward": {"parts": ("number=1",)}})


def test_a_round_is_read_as_it_was_written_to_the_last_bit(files):
    assert files.read(3, OWN) is None
    written = files.write(3, ROUND, OWN)
    found = files.read(3, OWN)
    assert found == written and found.questions == [4] and found.metrics == {"reward": 0.75}
    assert dataclasses.replace(found.records[0], place="") == RECORD
    row = json.loads(files.path(3).read_text().split("\n")[0])
    assert row["rewards"] == [0.5, 1.0] and found.failed == ROUND.failed


def test_a_round_that_was_not_finished_is_none(files):
    files.write(3, ROUND, OWN)
    files.path(3).with_suffix(".json").unlink()
    assert files.read(3, OWN) is None


@pytest.mark.parametrize(
    ("own", "settings", "message"),
    [
        (OWN | {"seed": 6}, {}, "round-00003.jsonl was drawn with another seed than now; .*use a new workdir"),
        (OWN | {"step": 8}, {}, "another step than now"),
        (OWN, {"reward": {"parts": ("number=2",)}}, "another reward than now"),
        (OWN, {"format": 1}, "another format than now"),
    ],
)
def test_a_round_of_other_settings_is_refused(files, own, settings, message):
    files.write(3, ROUND, OWN)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(files, settings={**files.settings, **settings}).read(3, own)


def test_a_damaged_round_is_refused(files):
    files.write(3, ROUND, OWN)
    files.path(3).write_text(files.path(3).read_text().replace("0.5", "0.6"))
    with pytest.raises(ValueError, match="not as it was written"):
        files.read(3, OWN)
    files.path(3).with_suffix(".json").write_text("{")
    with pytest.raises(ValueError, match="not what a run writes"):
        files.read(3, OWN)


def test_references_come_back_bit_for_bit_and_old_ones_go(files):
    leaves = {"layers/x": np.asarray([1.1, -0.0, np.pi], np.float32)}
    for number in (2, 4, 6):
        files.write_reference(number, leaves)
    assert files.read_reference(2) is None
    assert files.read_reference(6)["layers/x"].tobytes() == leaves["layers/x"].tobytes()
    files.reference_path(4).write_bytes(b"x")
    with pytest.raises(ValueError, match="reference-00004.safetensors: damaged"):
        files.read_reference(4)
