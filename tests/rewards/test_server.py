"""The HTTP client against a server on this machine that does what it is told."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rmjax.data.record import Comparison
from rmjax.rewards.reward import Failure, rewarded
from rmjax.rewards.server import Server

RECORDS = [
    Comparison("p", ("a", "bb"), references=("r",), columns={"token_ids": ((1,), (2, 3))}),
    Comparison("q", ("ccc",)),
]


@pytest.fixture
def serving(monkeypatch):
    """answer → address; `answer` gets (the request, its number from 1) and gives a status, a body or bytes, and headers."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers, asked = [], []

    def start(answer):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked.append(body)
                status, reply, headers = answer(body, len(asked))
                data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/v1/reward"

    start.asked = asked
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def native(body, _):
    """Answers in reverse order: what counts is the index."""
    results = [
        {"index": i, "rewards": [float(len(o)) for o in row["outputs"]]} for i, row in enumerate(body["records"])
    ]
    return 200, {"results": results[::-1]}, {}


def test_the_native_route(serving):
    assert Server(serving(native))(RECORDS) == [[1.0, 2.0], [3.0]]
    (body,) = serving.asked
    assert body["records"][0] == {"prompt": "p", "outputs": ["a", "bb"], "references": ["r"]}  # texts, no ids


def test_openrlhf_s_form(serving):
    def answer(body, _):
        return 200, {"rewards": [float(len(q)) for q in body["query"]], "scores": [0.0] * 3, "extra_logs": {}}, {}

    assert Server(serving(answer), "open_rlhf")(RECORDS) == [[2.0, 3.0], [4.0]]
    (body,) = serving.asked
    assert body == {"query": ["pa", "pbb", "qccc"], "prompts": ["p", "p", "q"], "labels": ["r", "r", ""]}


def test_an_item_that_is_refused_fails_alone(serving):
    def answer(body, _):
        return (
            200,
            {"results": [{"index": 0, "error": {"message": "too long"}}, {"index": 1, "rewards": [float("nan")]}]},
            {},
        )

    found = Server(serving(answer))(RECORDS)
    assert found == [[Failure("the server: too long")] * 2, [Failure("not finite")]]
    kept, dropped = rewarded(RECORDS, Server(serving(answer)))
    assert kept == [] and dropped["the server: too long"] == 2


def test_requests_are_of_a_size_and_keep_their_order(serving):
    many = [Comparison(f"p{i}", tuple("x" * (i + n + 1) for n in range(3))) for i in range(7)]
    found = Server(serving(native), batch=6, workers=3)(many)
    assert found == [[float(i + n + 1) for n in range(3)] for i in range(7)]
    assert sorted(len(body["records"]) for body in serving.asked) == [1, 2, 2, 2]


def test_what_may_pass_is_tried_again(serving):
    def answer(body, number):
        return native(body, number) if number == 3 else (503, {}, {"Retry-After": "0"})

    assert Server(serving(answer), wait=0.0)(RECORDS) == [[1.0, 2.0], [3.0]] and len(serving.asked) == 3


@pytest.mark.parametrize(
    ("answer", "reason", "requests"),
    [
        ((400, {}, {}), "HTTP 400", 1),
        ((503, {}, {}), "HTTP 503", 2),
        ((200, b"oops", {}), "the reply is not JSON", 1),
        ((200, b"\xff\xfe", {}), "the reply is not JSON", 1),
        ((200, [], {}), "the reply has no `results`", 1),
        ((200, {"results": []}, {}), "the reply lacks this record", 1),
        (
            (200, {"results": [{"index": i, "rewards": [0.0] * 9} for i in range(2)]}, {}),
            "the reply has another number of rewards",
            1,
        ),
    ],
)
def test_what_does_not_pass_is_a_failure_and_no_number(serving, answer, reason, requests):
    found = Server(serving(lambda *_: answer), tries=2, wait=0.0)(RECORDS)
    assert found == [[Failure(reason)] * 2, [Failure(reason)]] and len(serving.asked) == requests


def test_a_server_that_stalls_or_is_not_there(serving):
    over = threading.Event()

    def answer(body, _):
        over.wait(10)
        return 200, {}, {}

    found = Server(serving(answer), seconds=0.2, tries=2, wait=0.0)(RECORDS)
    over.set()
    assert found == [[Failure("the server timed out")] * 2, [Failure("the server timed out")]]
    assert Server("http://127.0.0.1:9/", tries=1)(RECORDS[1:]) == [[Failure("no connection")]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": "file:///etc/passwd"}, "begins with http"),
        ({"dialect": "verl"}, "choose native or"),
        ({"tries": 0}, "of 1 or more"),
    ],
)
def test_other_servers_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Server(**{"url": "http://a", **changes})
