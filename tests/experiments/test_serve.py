"""`python -m experiments.serve`: what it refuses, and how it ends under load."""

import functools
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from experiments.start import guarded
from rmjax import command
from rmjax.serve import server
from rmjax.serve.server import Options, serve
from tests.experiments.starting import save_start

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_start(tmp_path_factory.mktemp("model"), head=0.02)


def refused(capsys, options: Options) -> str:
    assert guarded(functools.partial(serve, options)) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "gone"}, "gone/model.json: not there; a model is a directory"),
        ({"model": "shipped:gone"}, "no such model comes with rmjax"),
        ({"truncate": "left"}, "--truncate is 'left'; choose refuse or format"),
        ({"token_file": Path("gone")}, "No such file"),
        ({"token_file": Path(os.devnull)}, "is empty; write the token into it"),
        ({"host": "256.0.0.1"}, "cannot listen at 256.0.0.1:0"),
        ({"max_tokens": 10**6}, "--max_tokens=1000000 is more than the model's format takes"),
        ({"log": Path("gone/log.jsonl")}, "No such file"),
    ],
)
def test_what_it_refuses(capsys, model, changes, said):
    assert said in refused(capsys, Options(**{"model": str(model), "port": 0, **changes}))


def test_a_port_that_is_taken(capsys, model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = refused(capsys, Options(str(model), port=taken.getsockname()[1]))
    assert "Address already in use; choose another --port" in said


def test_two_tokens(capsys, model, monkeypatch, tmp_path):
    (tmp_path / "token").write_text("a\n")
    assert server.token(Options("m", token_file=tmp_path / "token")) == "a"
    monkeypatch.setenv(server.TOKEN, "b")
    assert server.token(Options("m")) == "b"
    assert "both have a token" in refused(capsys, Options(str(model), port=0, token_file=tmp_path / "token"))


def test_the_console_command_serves(monkeypatch):
    asked = []
    monkeypatch.setattr(server, "serve", asked.append)
    monkeypatch.setattr("rmjax.guard.prepare", lambda: None)
    assert command.run(["serve", "--model=m", "--port=0", "--truncate=format"]) == 0
    assert asked == [Options("m", port=0, truncate="format")]


def started(*words: str) -> tuple[subprocess.Popen, int]:
    """A server as a process, and its port."""
    line = [sys.executable, "-m", "experiments.serve", "--port=0", *words]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = process.stdout.readline()
    assert said.startswith("serving "), process.communicate()
    return process, int(said.rpartition(":")[2])


@pytest.mark.slow
def test_sigterm_under_load_answers_what_was_asked(model):
    process, port = started(f"--model={model}", "--max_tokens=128", "--wait_ms=50")
    answered, refused = [], []
    stop = threading.Event()

    def ask(number: int) -> None:
        i = 0
        while not stop.is_set():
            i += 1
            body = json.dumps({"records": [{"prompt": "a", "output": f"{number} {i}"}]})
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                connection.connect()
            except OSError:
                refused.append(number)  # nobody listens any more: that is no lost request
                return
            connection.request("POST", "/v1/reward", body)
            try:
                reply = connection.getresponse()
                answered.append((reply.status, json.loads(reply.read())))
            except (OSError, http.client.HTTPException) as error:
                answered.append((0, repr(error)))
            connection.close()

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 120
    while len(answered) < 50 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    stop.set()
    for thread in threads:
        thread.join(60)
    assert process.returncode == 0, said
    assert "every request at hand was answered" in said
    lost = [each for each in answered if each[0] not in (200,)]
    # A connection that the system took and the server never saw ends with a reset: at most one a client.
    assert len(answered) >= 50 and all(each[0] == 0 for each in lost) and len(lost) <= 8, lost
    rewards = [reply["results"][0]["rewards"][0] for status, reply in answered if status == 200]
    assert all(isinstance(reward, float) for reward in rewards)
