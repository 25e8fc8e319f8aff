"""A verifier in a process of its own: answers, failures, a hang that is ended."""

import io
import json
import sys

import pytest

from rmjax.data.record import Comparison
from rmjax.rewards.deadline import InProcess
from rmjax.rewards.reward import Failure
from rmjax.rewards.worker import serve

VERIFY = """
import os, sys, time

def check(prompt, output, references, right="yes"):
    print("noise")
    if output == "hang":
        while True:
            pass
    if output == "die":
        os._exit(3)
    if output == "raise":
        raise RuntimeError(output)
    return {"nan": float("nan"), "none": None}.get(output, float(output == right))
"""


def test_a_hang_ends_with_its_own_output_alone(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(VERIFY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path) + ":" + ":".join(filter(None, sys.path)))
    outputs = ("yes", "hang", "yes", "die", "no", "raise", "nan", "none")
    late, died = Failure("no answer within 3 s"), Failure("the verifier's process died")
    with InProcess("mine:check", {"right": "yes"}, seconds=3) as reward:
        (found,) = reward([Comparison("p", outputs)])
        assert found == [
            1.0, late, 1.0, died, 0.0, Failure("RuntimeError"), Failure("not finite"), Failure("not a number but NoneType"),
        ]  # fmt: skip


def test_an_interrupt_shifts_no_answer(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def check(prompt, output, references):\n    return float(output)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path) + ":" + ":".join(filter(None, sys.path)))
    with InProcess("mine:check", seconds=60) as reward:
        assert reward([Comparison("p", ("4",))]) == [[4.0]]
        lines, get = reward._lines, reward._lines.get
        monkeypatch.setattr(lines, "get", lambda timeout: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            reward([Comparison("p", ("9",))])
        monkeypatch.setattr(lines, "get", get)
        assert reward([Comparison("p", ("1", "2"))]) == [[1.0, 2.0]]


def said(name, options, *lines):
    replies = io.StringIO()
    serve(name, options, io.StringIO("".join(json.dumps(line) + "\n" for line in lines)), replies)
    return [json.loads(line) for line in replies.getvalue().splitlines()]


def test_what_the_worker_says():
    asked = {"prompt": "", "output": "#### 4", "references": ["4"], "id": ""}
    assert said("number", {"form": "marked"}, asked, {}) == [{"ready": True}, {"value": 1.0}, {"failure": "KeyError"}]
    assert said("matches", {"pattern": ".*4"}, asked)[1] == {"value": 1.0}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("numbers", {}, "there is no such verifier; choose one of number"),
        ("number", {"size": 1}, "unexpected keyword"),
        ("no_such_module:f", {}, "No module named"),
        ("json:no_such_function", {}, "no attribute"),
        ("matches", {"pattern": "("}, "not a regular expression"),
    ],
)
def test_a_verifier_that_cannot_be_made_says_why(name, options, message):
    (reply,) = said(name, options)
    assert message in reply["failure"]


def test_seconds_are_above_0():
    with pytest.raises(ValueError, match="seconds is 0; it must be above 0"):
        InProcess("number", seconds=0)
