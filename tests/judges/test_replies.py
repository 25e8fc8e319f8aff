"""rmjax/judges/replies.py: nothing is asked twice, also after a kill; what failed is counted and asked again."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rmjax.judges.replies import Question, Replies
from rmjax.locks import InUseError
from tests.judges.scripted import Scripted

THREE_ONCE = [Question(f"question {i}") for i in range(3)]
ROOT = Path(__file__).resolve().parents[2]
THREE = [Question(f"question {i}", 2, f"record {i}") for i in range(3)]


def echo(prompt, n):
    return f"{prompt}: {n}"


def test_nothing_is_asked_twice(tmp_path):
    generator = Scripted(echo)
    with Replies(generator, tmp_path / "r.jsonl", batch=2) as replies:
        first = replies.ask(THREE)
        assert first[1] == ["question 1: 0", "question 1: 1"]
        assert replies.ask([*THREE, THREE[0]]) == [*first, first[0]]
        assert replies.asked == len(generator.asked) == 6
    again = Scripted(lambda prompt, n: pytest.fail("asked twice"))
    with Replies(again, tmp_path / "r.jsonl") as replies:
        assert replies.ask(THREE) == first
        assert replies.ask([Question("question 2", 1)]) == [["question 2: 0"]]


def test_more_replies_ask_for_the_new_ones_alone(tmp_path):
    generator = Scripted(echo)
    with Replies(generator, tmp_path / "r.jsonl") as replies:
        replies.ask([Question("q", 2)])
        assert replies.ask([Question("q", 3)]) == [["q: 0", "q: 1", "q: 2"]]
        assert len(generator.asked) == 3


def test_another_generator_prompt_or_seed_is_another_question(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("b", 1)):
        generator = Scripted(echo, name)
        with Replies(generator, tmp_path / "r.jsonl", seed=seed) as replies:
            replies.ask([Question("q")])
        assert len(generator.asked) == 1
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 3


def test_failures_are_counted_and_asked_again(tmp_path):
    flaky = Scripted(lambda prompt, n: None if prompt.endswith("1") or n == 1 else "yes")
    with Replies(flaky, tmp_path / "r.jsonl") as replies:
        assert replies.ask(THREE) == [["yes"], [], ["yes"]]
        assert replies.counts == {"HTTP 500": 4}
    whole = Scripted(echo)
    with Replies(whole, tmp_path / "r.jsonl") as replies:
        found = replies.ask(THREE)
    assert found == [["yes", "question 0: 1"], ["question 1: 0", "question 1: 1"], ["yes", "question 2: 1"]]
    assert sorted(whole.asked) == ["question 0", "question 1", "question 1", "question 2"]


def test_the_file_of_a_killed_process_is_gone_on_with(tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from rmjax.judges.replies import Question, Replies
from tests.judges.scripted import Scripted
def answer(prompt, n):
    if prompt == "question 2":
        os.kill(os.getpid(), signal.SIGKILL)
    return "before the kill"
with Replies(Scripted(answer), Path({str(tmp_path / "r.jsonl")!r}), batch=1) as replies:
    replies.ask([Question(f"question {{i}}") for i in range(3)])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert done.returncode == -signal.SIGKILL
    with (tmp_path / "r.jsonl").open("ab") as file:
        file.write(b'{"key": "half')
    generator = Scripted(echo)
    with Replies(generator, tmp_path / "r.jsonl") as replies:
        found = replies.ask([Question(f"question {i}") for i in range(3)])
    assert found == [["before the kill"], ["before the kill"], ["question 2: 0"]]
    assert generator.asked == ["question 2"]
    assert all(json.loads(line)["replies"] for line in (tmp_path / "r.jsonl").read_text().splitlines())


def test_a_server_s_replies_are_on_the_disk_as_they_come(tmp_path):
    """One of three fails for good while the others are in flight: their replies are kept."""
    turn = threading.Barrier(3, timeout=30)

    def answer(prompt, n):
        turn.wait()
        if prompt == "question 1":
            time.sleep(0.2)
            raise RuntimeError("the key is wrong")
        return "yes"

    generator = Scripted(answer)
    generator.workers = 3
    with pytest.raises(RuntimeError, match="the key is wrong"), Replies(generator, tmp_path / "r.jsonl") as replies:
        replies.ask(THREE_ONCE)
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 2
    again = Scripted(echo)
    with Replies(again, tmp_path / "r.jsonl") as replies:
        assert replies.ask(THREE_ONCE) == [["yes"], ["question 1: 0"], ["yes"]]
    assert again.asked == ["question 1"]


def test_files_that_are_no_replies_or_in_use(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"prompt": "p"}\n')
    with (
        pytest.raises(ValueError, match=r"r.jsonl:1 is no line of replies"),
        Replies(Scripted(echo), tmp_path / "r.jsonl"),
    ):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["r.jsonl"]  # its lock is free again
    assert (tmp_path / "r.jsonl").read_text() == '{"prompt": "p"}\n'
    with Replies(Scripted(echo), tmp_path / "s.jsonl"), pytest.raises(InUseError, match="in use by another run"):
        Replies(Scripted(echo), tmp_path / "s.jsonl").__enter__()
