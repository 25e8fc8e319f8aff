import contextlib
import logging
import resource

import pytest

from rmjax.data.record import Comparison
from rmjax.evaluate.score_log import ScoreLog, fingerprint_comparisons, fingerprint_files
from rmjax.files import write_text
from rmjax.locks import locked

FINGERPRINT = {"model": "m", "data": "d"}


def written(path):
    with ScoreLog(path, FINGERPRINT) as log:
        log.append({0: [1.5, -0.1], 1: [2.0]}, {"cut": 1})
        log.append({4: [0.1 + 0.2]}, {"cut": 1, "special_token_in_text": 1})
    return path


def test_scores_come_back_exactly(tmp_path):
    path = written(tmp_path / "log")
    with ScoreLog(path, FINGERPRINT) as log:
        assert log.scores == {0: [1.5, -0.1], 1: [2.0], 4: [0.1 + 0.2]}
        assert log.counts == {"cut": 2, "special_token_in_text": 1}


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_log_cut_anywhere_continues(tmp_path, cut):
    path = written(tmp_path / "log")
    path.write_bytes(path.read_bytes()[:-cut])
    with ScoreLog(path, FINGERPRINT) as log:
        assert log.scores.items() <= {0: [1.5, -0.1], 1: [2.0], 4: [0.1 + 0.2]}.items()
        assert 4 not in log.scores and log.counts == {"cut": 1}
        log.append({4: [9.0]})
    with ScoreLog(path, FINGERPRINT) as log:
        assert log.scores[4] == [9.0]
        assert log.scores[0] == [1.5, -0.1]


@pytest.mark.parametrize("content", [b"", b'{"fingerp', b"\xff\xfe", b"[]\n"])
def test_a_log_without_a_good_header_starts_again(tmp_path, content):
    path = tmp_path / "log"
    path.write_bytes(content)
    with ScoreLog(path, FINGERPRINT) as log:
        assert log.scores == {}
        log.append({0: [1.0]})
    with ScoreLog(path, FINGERPRINT) as log:
        assert log.scores == {0: [1.0]}


def test_a_log_of_another_model_starts_again_and_says_so(tmp_path, caplog):
    path = written(tmp_path / "log")
    with (
        caplog.at_level(logging.WARNING),
        ScoreLog(path, FINGERPRINT | {"model": "other"}) as log,
    ):
        assert log.scores == {}
    assert "another model" in caplog.text
    with ScoreLog(path, FINGERPRINT) as log:
        assert log.scores == {}


@contextlib.contextmanager
def room_for(size):
    """Files cannot grow beyond `size` bytes, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_named_and_loses_no_whole_line(tmp_path):
    path = written(tmp_path / "log")
    with (
        room_for(path.stat().st_size + 30),
        pytest.raises(OSError, match=r"cannot write .*log: File too large"),
        ScoreLog(path, FINGERPRINT) as log,
    ):
        log.append({5: [1.0] * 50})
    with ScoreLog(path, FINGERPRINT) as log:
        assert set(log.scores) == {0, 1, 4}


def test_a_full_disk_leaves_the_old_result(tmp_path):
    path = tmp_path / "result.json"
    write_text(path, "old")
    with room_for(10), pytest.raises(OSError, match=r"cannot write \(File too large\): '.*result\.json'"):
        write_text(path, "new" * 10)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_file_fingerprint_follows_names_and_contents(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "weights").write_bytes(b"123")
    (tmp_path / "config").write_text("x")
    first = fingerprint_files(tmp_path)
    assert first == fingerprint_files(tmp_path)
    (tmp_path / "out.json").write_text("{}")
    assert fingerprint_files(tmp_path) != first
    assert fingerprint_files(tmp_path, [tmp_path / "sub" / ".." / "out.json"]) == first
    (tmp_path / "out.json").unlink()
    (tmp_path / "sub" / "weights").write_bytes(b"124")
    assert fingerprint_files(tmp_path) != first
    (tmp_path / "sub" / "weights").write_bytes(b"123")
    (tmp_path / "config").rename(tmp_path / "configs")
    assert fingerprint_files(tmp_path) != first
    assert fingerprint_files(tmp_path / "configs") != first


def test_data_fingerprint_follows_what_scores_depend_on():
    row = Comparison("p", ("a", "b"), ranks=(0, 1), place="x:1")
    same = Comparison("p", ("a", "b"), ranks=(0, 1), place="elsewhere:1")
    assert fingerprint_comparisons([row]) == fingerprint_comparisons([same])
    others = [
        Comparison("p", ("a", "b"), ranks=(1, 0)),
        Comparison("p", ("a", "b"), ranks=(0, 1), references=("r",)),
        Comparison("p", ("b", "a"), ranks=(0, 1)),
        Comparison("p", ("a", "b"), ranks=(0, 1), wrapper="pretrain"),
    ]
    prints = {fingerprint_comparisons([other]) for other in others}
    assert len(prints | {fingerprint_comparisons([row])}) == 5
    assert fingerprint_comparisons([row, row]) != fingerprint_comparisons([row])


def test_the_fingerprint_does_not_change_while_a_run_holds_the_folder(tmp_path):
    (tmp_path / "weights").write_bytes(b"w")
    before = fingerprint_files(tmp_path)
    with locked(tmp_path):
        assert fingerprint_files(tmp_path) == before
