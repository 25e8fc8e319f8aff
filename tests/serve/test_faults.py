"""What goes wrong at a port: a clear status each, and the server lives on."""

import dataclasses
import json
import resource
import socket
import time

import jax.numpy as jnp
import pytest

from rmjax.serve.app import Limits
from rmjax.serve.log import Log
from tests.serve.conftest import running

ROW = {"prompt": "2 + 2?", "output": "4"}
ASK = {"records": [ROW]}


@pytest.fixture(scope="module")
def server(engines):
    with running(engines["polar"], Limits(body_bytes=10_000, body_seconds=0.5), queue=8) as found:
        yield found


@pytest.fixture(autouse=True)
def lives_on(request):
    yield
    if "server" in request.fixturenames:
        status, reply = request.getfixturevalue("server").ask("/v1/reward", ASK)
        assert status == 200 and len(reply["results"][0]["rewards"]) == 1


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "the body is not JSON"),
        (b"{", 400, "the body is not JSON"),
        (b"[1]", 400, "the body is a JSON list; send an object"),
        (b"\xff\xfe{}", 400, "the body is not JSON"),
        (b'{"records": NaN}', 400, "NaN is no JSON"),
        (b"[" * 5000, 400, "the body is not JSON"),
        (b'{"records": [{"prompt": "\\ud800", "output": "a"}]}', 400, "half of a surrogate pair"),
        (b'{"records": [{"prompt": "a", "output": "b", "\xed\xa0\x80": 1}]}', 400, "the body is not JSON"),
        (b'{"records": "' + b"a" * 20_000 + b'"}', 413, "larger than 10000 bytes"),
        (json.dumps({"records": [{**ROW, "output": str(i)} for i in range(9)]}).encode(), 413, "and the queue holds 8"),
        (b"{}", 400, "`records` is not a list"),
    ],
)
def test_a_body_that_is_wrong(server, body, status, said):
    found, reply = server.ask("/v1/reward", body)
    assert found == status and said in reply["error"]["message"] and reply["error"]["code"] == status


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/get_reward", {"query": ["x" * 500]}, 413),
        ("/get_reward", {"query": ["fine", " "]}, 400),
        ("/pooling", {"input": ["fine", "x" * 500]}, 413),
        ("/classify", {"text": 7}, 400),
        ("/nowhere", {}, 404),
    ],
)
def test_a_list_has_all_rewards_or_none(server, path, body, status):
    assert server.ask(path, body)[0] == status


def test_an_item_that_fails_leaves_its_neighbors_alone(server):
    rows = [ROW, {**ROW, "output": "x" * 500}, {"prompt": "a"}, {**ROW, "prompt": 3}]
    status, reply = server.ask("/v1/reward", {"records": rows})
    assert status == 200
    assert [each.get("error", {}).get("code") for each in reply["results"]] == [None, 413, 400, 400]


def test_an_id_that_is_no_json_is_not_sent_back(server):
    status, reply = server.ask(
        "/v1/reward", json.dumps({"records": [ROW, ROW | {"id": 7}]})[:-4].encode() + b"1e999}]}"
    )
    first, second = reply["results"]
    assert status == 200 and first["rewards"] and "field `id`" in second["error"]["message"] and "id" not in second


def test_a_fault_of_ours_is_told_counted_and_logged(server, monkeypatch, caplog):
    monkeypatch.setattr(server.service, "score", lambda items: 1 / 0)
    status, reply = server.ask("/v1/reward", ASK)
    assert status == 500 and reply["error"]["message"] == "the server failed on this request; its log says more"
    assert 'status="500"} 1.0' in server.ask("/metrics")[1] and "ZeroDivisionError" in caplog.text


def test_texts_that_wait_to_be_encoded_are_bounded(server, monkeypatch):
    monkeypatch.setattr(server.service, "_unencoded", 8)
    status, reply = server.ask("/v1/reward", ASK)
    assert status == 503 and "8 texts wait to be encoded, of 8 at most" in reply["error"]["message"]


def test_another_method(server):
    assert server.ask("/v1/reward", method="GET")[0] == 405


def raw(server, text: bytes) -> socket.socket:
    found = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    found.sendall(text)
    return found


def test_a_body_larger_than_it_says_and_one_that_never_ends(server):
    head = b"POST /v1/reward HTTP/1.1\r\nHost: a\r\n"
    part = b"1000\r\n" + b" " * 4096 + b"\r\n"
    with raw(server, head + b"Transfer-Encoding: chunked\r\n\r\n" + part * 3) as large:
        assert b" 413 " in large.recv(100)
    with raw(server, head + b"Content-Length: 100\r\n\r\n{") as slow:
        assert b" 408 " in slow.recv(100)


def test_a_client_that_is_gone(engines):
    engine = engines["polar"]

    def slow(params, forest):
        time.sleep(0.3)
        return engine.rewards(params, forest)

    with running(dataclasses.replace(engine, rewards=slow)) as server:
        body = json.dumps(ASK).encode()
        head = f"POST /v1/reward HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        clients = [raw(server, head + body.replace(b'"4"', f'"{i}"'.encode())) for i in range(3)]
        time.sleep(0.1)  # the model is at the first batch
        late = [raw(server, head + body.replace(b'"4"', f'"{i}"'.encode())) for i in range(5, 8)]
        for each in (*clients, *late):
            each.close()
        assert server.ask("/v1/reward", ASK)[0] == 200
        assert server.metric("rmjax_clients_gone_total") == 6
        assert server.metric("rmjax_sequences_total") <= 4, "what nobody waited for was run"
        assert server.metric("rmjax_waiting") == 0


def test_many_idle_connections(server):
    idle = [raw(server, b"") for _ in range(100)] + [raw(server, b"POST / HTTP/1.1\r\n") for _ in range(100)]
    assert server.ask("/v1/reward", ASK)[0] == 200
    for each in idle:
        each.close()


@pytest.mark.slow
def test_ten_thousand_idle_connections(server):
    """As many as the limit of open files leaves: client and server are one process here."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    count, idle = min(10_000, before[1] // 2 - 500), []
    try:
        idle += [raw(server, b"POST / HTTP/1.1\r\n" if i % 2 else b"") for i in range(count)]
        assert server.ask("/v1/reward", ASK)[0] == 200
    finally:
        for each in idle:
            each.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_reward_that_is_not_finite(engines):
    engine = engines["polar"]

    def broken(params, forest):
        found = engine.rewards(params, forest)
        return jnp.where(found > 0.2, jnp.nan, found)

    rows = [{"prompt": "2 + 2?", "output": str(i)} for i in range(12)]
    with running(dataclasses.replace(engine, rewards=broken)) as server:
        results = server.ask("/v1/reward", {"records": rows})[1]["results"]
        codes = {each.get("error", {}).get("code") for each in results}
        assert codes == {None, 500}
        assert server.ask("/score", {"text_1": "2 + 2?", "text_2": [str(i) for i in range(12)]})[0] == 500


def test_a_model_that_raises(engines):
    def raises(params, forest):
        raise MemoryError("RESOURCE_EXHAUSTED")

    with running(dataclasses.replace(engines["polar"], rewards=raises)) as server:
        (result,) = server.ask("/v1/reward", ASK)[1]["results"]
        assert result["error"]["code"] == 500 and "the model failed on the batch" in result["error"]["message"]
        assert server.ask("/score", {"text_1": "a", "text_2": "b"})[0] == 500
        assert server.ask("/health")[0] == 200


def test_a_token(engines):
    with running(engines["polar"], Limits(token="secret")) as server:
        assert server.ask("/v1/reward", ASK)[0] == 401
        assert server.ask("/v1/reward", ASK, Authorization="Bearer secreT")[0] == 401
        assert server.ask("/v1/reward", ASK, Authorization="Bearer secret")[0] == 200
        assert server.ask("/metrics")[0] == 401 and server.ask("/health")[0] == 200


def test_a_disk_that_is_full(engines, tmp_path, caplog):
    from pathlib import Path

    lost = []
    log = Log(Path("/dev/full"), lambda: lost.append(1))
    with running(engines["polar"], log=log) as server:
        assert [server.ask("/v1/reward", ASK)[0] for _ in range(3)] == [200] * 3
    assert len(lost) == 3 and caplog.text.count("requests go on without a log") == 1


def test_the_log_has_a_line_a_request_and_no_text(engines, tmp_path):
    with running(engines["polar"], log=Log(tmp_path / "log.jsonl")) as server:
        server.ask("/v1/reward", ASK, **{"X-Request-Id": "mine"})
        server.ask("/get_reward", {"query": 3})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["route"], line["status"], line["items"]) for line in lines] == [
        ("/v1/reward", 200, 1),
        ("/get_reward", 400, 0),
    ]
    assert lines[0]["id"] == "mine" and "2 + 2" not in (tmp_path / "log.jsonl").read_text()


def test_records_are_cut_where_the_server_was_told_to(engines):
    with running(engines["polar"], truncate=True) as server:
        result = server.ask("/v1/reward", {**ROW, "output": "x" * 60})[1]["results"][0]
        assert result["truncated"] == [True]
        assert server.metric("rmjax_truncated_total") == 1


def test_the_pages_to_look_at(polar):
    assert polar.ask("/v1/models")[1]["data"][0]["max_model_len"] == 128
    page = polar.ask("/openapi.json")[1]
    assert page["paths"]["/get_reward"]["post"]["summary"].startswith("OpenRLHF's")
    for path, entry in page["paths"].items():
        if "post" in entry:
            example = entry["post"]["requestBody"]["content"]["application/json"]["example"]
            assert polar.ask(path, example)[0] == 200, path
    names = [entry["post"]["operationId"] for entry in page["paths"].values() if "post" in entry]
    assert len(set(names)) == len(names)
