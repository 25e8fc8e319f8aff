"""The generator that asks a server, against one on this machine that does what it is told."""

import itertools
import json
import re
import threading
import time

import pytest

from rmjax.data.messages import Conversation, Message
from rmjax.data.record import Comparison, parse, to_row
from rmjax.policy import transport as transport_module
from rmjax.policy.endpoint import Endpoint, EndpointError
from rmjax.policy.transport import Session, Transport, retry_after
from tests.policy.stub import chat, choice, echo, serving

RECORDS = [
    Comparison("Why?", ("old", "older"), ("Because.",), ranks=(0.0, 1.0), id="a", columns={"rewards": (0.0, 1.0)}),
    Comparison(Conversation((Message("system", "Be kind."), Message("user", "Who?"))), (), id="b", category="people"),
]
REFUSAL = {"error": {"message": "too long: 5000 tokens", "type": "BadRequestError", "code": "context_length_exceeded"}}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(transport_module, "pause", lambda attempt, after, most: min(most, after) / 100)


def endpoint(url, **more):
    how = {
        name: more.pop(name)
        for name in ("key_variable", "seconds", "tries", "connections", "largest_reply")
        if name in more
    }
    return Endpoint(Transport(url, **{"seconds": 5.0, "tries": 3} | how), **{"model": "m"} | more)


def asked_once(answer, records=RECORDS[:1], samples=1, **more):
    """(what was generated, the requests) where the server says `answer`, which may be a reply or a function."""
    with serving(answer if callable(answer) else lambda *_: answer) as (url, asked):
        return endpoint(url, **more)(records, samples, 7), asked


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_a_record_keeps_what_is_not_of_its_answers():
    found, asked = asked_once(echo, RECORDS, 2)
    first, second = found.records
    assert not found.dropped
    assert (first.prompt, first.references, first.id, first.ranks) == ("Why?", ("Because.",), "a", None)
    assert first.policies == ("m", "m") and first.columns == {"truncated": (0.0, 0.0)}
    assert second.category == "people" and parse(to_row(second), "") == second
    assert {one["path"] for one in asked} == {"/v1/chat/completions"}
    bodies = {one["body"]["messages"][-1]["content"]: one["body"] for one in asked}
    assert bodies["Who?"]["messages"][0] == {"role": "system", "content": "Be kind."}
    assert bodies["Why?"].keys() == {"model", "messages", "temperature", "max_tokens", "n", "seed"}


def test_seeds_depend_on_the_record_and_the_sample_alone():
    found, _ = asked_once(echo, RECORDS, 3, several=False)
    alone, _ = asked_once(echo, RECORDS[1:], 2, several=False)
    texts = [text for record in found.records for text in record.outputs]
    assert len(set(texts)) == 6
    assert alone.records[0].outputs == found.records[1].outputs[:2]


def test_all_that_is_asked_for_is_in_the_request():
    wanted = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 7, "stop": ("\n\n", "END")}
    _, asked = asked_once(
        echo, **wanted, max_tokens_key="max_completion_tokens", system="Hm.", more={"top_k": 5}, seeded=False
    )
    body = asked[0]["body"]
    assert body.pop("messages")[0] == {"role": "system", "content": "Hm."}
    assert body == {
        "model": "m", "temperature": 0.5, "top_p": 0.9, "max_completion_tokens": 7, "stop": ["\n\n", "END"], "top_k": 5
    }  # fmt: skip


@pytest.mark.parametrize("encode", [str, lambda text: [len(text), 2]])
def test_a_text_or_ids_go_to_completions(encode):
    reply = 200, {"choices": [{"text": " yes", "finish_reason": "stop"}]}
    found, asked = asked_once(reply, encode=encode)
    assert asked[0]["path"] == "/v1/completions"
    assert asked[0]["body"]["prompt"] == (["Why?", [4, 2]][encode is not str])
    assert found.records[0].outputs == (" yes",)


def test_the_key_is_sent_and_never_shown(monkeypatch, caplog):
    monkeypatch.setenv("A_KEY", "s3cret")
    found, asked = asked_once((403, {"error": {"message": "bad key s3cret"}}), key_variable="A_KEY")
    assert asked[0]["headers"]["Authorization"] == "Bearer s3cret"
    assert found.dropped == {"HTTP 403": 1} and "bad key ***" in caplog.text and "s3cret" not in caplog.text
    assert "s3cret" not in repr(Transport("http://h", key_variable="A_KEY"))


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://h:1", "http://h:1/v1/completions"), ("https://h/", "https://h/v1/completions"),
        ("http://h/api/v3/", "http://h/api/v3/completions"),
    ],
)  # fmt: skip
def test_the_address_of_a_route(url, address):
    assert Transport(url).address("/completions") == address


# --- several answers in one request -----------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [0, 1, 3])
def test_what_does_not_come_by_n_is_asked_for_singly(given):
    """Servers without `n` refuse it or give one choice."""

    def answer(body, number):
        if "n" not in body:
            return chat(f"single {body['seed']}")
        return chat(*map(str, range(given))) if given else (400, REFUSAL)

    found, asked = asked_once(answer, samples=4)
    (record,) = found.records
    assert not found.dropped and len(asked) == 1 + 4 - given
    assert record.outputs[:given] == tuple(map(str, range(given)))
    assert len(set(record.outputs)) == 4 and all(text.startswith("single") for text in record.outputs[given:])


@pytest.mark.parametrize(("temperature", "is_said"), [(1.0, True), (0.0, False)])
def test_a_server_that_does_not_draw_is_told_of(temperature, is_said, caplog):
    """Some take a temperature and stay greedy."""
    asked_once(chat("same", "same"), RECORDS, 2, temperature=temperature)
    assert ("the server may not draw" in caplog.text) == is_said
    caplog.clear()
    asked_once(lambda body, n: chat("same", str(n)), RECORDS, 2)
    assert "the server may not draw" not in caplog.text


@pytest.mark.parametrize("key", ["temperature", "max_tokens", "n"])
def test_a_further_key_that_has_a_field_of_its_own_is_refused(key):
    with pytest.raises(ValueError, match=f"more has {key}, which the request has already; remove it"):
        endpoint("http://127.0.0.1:1", more={key: 1})


def test_more_answers_than_asked_for_are_left():
    assert asked_once(chat("a", "b", "c"), samples=2)[0].records[0].outputs == ("a", "b")


# --- what comes back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "text", "truncated"),
    [
        (choice("", "stop"), "", 0.0),  # a policy may say nothing
        (choice("cut", "length"), "cut", 1.0),
        (choice(None, "length"), "", 1.0),  # it was still thinking
        (choice("yes", None), "yes", 0.0),
        ({"message": {"content": "so", "reasoning_content": "hm"}, "finish_reason": "stop"}, "so", 0.0),
    ],
)
def test_answers(given, text, truncated):
    found, _ = asked_once(chat(given))
    assert found.records[0].outputs == (text,) and found.records[0].columns["truncated"] == (truncated,)


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
@pytest.mark.parametrize(
    ("content", "ended", "text"),
    [("so", "stop", "<think>\nhm\n</think>\n\nso"), (None, "length", "<think>\nhm"), ("", "length", "<think>\nhm")],
)
def test_reasoning_is_put_before_the_answer_where_asked_for(name, content, ended, text):
    given = {"message": {"content": content, name: "hm"}, "finish_reason": ended}
    assert asked_once(chat(given), reasoning="prepend")[0].records[0].outputs == (text,)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (chat(choice(None)), "null content"),
        (chat(choice(["a"])), "content that is no text"),
        (chat(choice("", "tool_calls")), "ended by tool_calls"),
        (chat({"message": {"content": None, "tool_calls": [{"id": "1"}]}, "finish_reason": "stop"}), "a call of a tool"),
        (chat({"message": {"content": None, "refusal": "No."}, "finish_reason": "stop"}), "a refusal"),
        (chat(choice("par", "content_filter")), "ended by content_filter"),
        ((200, b'{"choices": [{"message": {"content": "\\ud800"}}]}'), "text with a lone surrogate"),
        ((200, {"choices": [3]}), "a choice that is no object"),
        ((200, {"choices": [{"message": None}]}), "a choice without a message"),
        ((200, {"choices": []}), "the reply has no `choices`"),
        ((200, [1]), "the reply has no `choices`"),
        ((200, b"<html>"), "the reply is not JSON"),
        ((200, b'{"choices": "\xff"}'), "the reply is not JSON"),
        ((200, b"[" * 100_000), "the reply is not JSON"),
        ((200, {"error": {"message": "behind", "code": 422}}), "HTTP 422"),
        ((400, REFUSAL), "HTTP 400 (context_length_exceeded)"),
        ((422, {"detail": [{"msg": "no"}]}), "HTTP 422"),
        ((403, b"\xff not JSON"), "HTTP 403"),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_dropped_and_counted(reply, reason):
    found, _ = asked_once(reply)
    assert (found.records, found.dropped) == ([], {reason: 1})


def test_some_answers_of_a_prompt_may_be_dropped(caplog):
    found, _ = asked_once(chat("a", choice(None), choice("c", "length")), samples=3)
    assert found.records[0].outputs == ("a", "c") and found.records[0].columns["truncated"] == (0.0, 1.0)
    assert found.dropped == {"null content": 1} and "dropped 1 samples: null content" in caplog.text


# --- log-probabilities ------------------------------------------------------------------------------------------------

LLAMA_CPP = {"content": [{"token": "y", "id": 5, "logprob": -0.5}, {"token": "es", "id": 9, "logprob": -1}]}
BY_NAME = {"content": [{"token": "token_id:5", "logprob": -0.5}, {"token": "token_id:9", "logprob": -1}]}
WORDS = {"content": [{"token": "y", "logprob": -0.5}, {"token": "es", "logprob": -1}]}


@pytest.mark.parametrize(
    "more", [{"logprobs": LLAMA_CPP}, {"logprobs": BY_NAME}, {"logprobs": WORDS, "token_ids": [5, 9]}]
)
def test_log_probabilities_beside_ids_become_columns(more):
    found, asked = asked_once(chat(choice("yes", **more)), log_probs=True)
    columns = found.records[0].columns
    assert columns["token_ids"] == ((5, 9),) and columns["log_probs"] == ((-0.5, -1.0),)
    assert asked[0]["body"]["logprobs"] is True
    assert parse(to_row(found.records[0]), "") == found.records[0]


def test_log_probabilities_of_completions():
    given = {"text": "yes", "logprobs": {"tokens": ["token_id:5", "token_id:9"], "token_logprobs": [-0.5, -1]}}
    found, asked = asked_once((200, {"choices": [given]}), log_probs=True, encode=str)
    assert found.records[0].columns["log_probs"] == ((-0.5, -1.0),) and asked[0]["body"]["logprobs"] == 1


@pytest.mark.parametrize(
    "more",
    [
        {}, {"logprobs": None}, {"logprobs": WORDS}, {"logprobs": WORDS, "token_ids": [5]}, {"logprobs": [1]},
        {"logprobs": {"content": [{"id": 5, "logprob": None}]}}, {"logprobs": WORDS, "token_ids": [5, -9]},
    ],
)  # fmt: skip
def test_without_ids_there_are_no_such_columns(more, caplog):
    found, _ = asked_once(chat(choice("yes", **more)), log_probs=True)
    assert found.records[0].columns.keys() == {"truncated"} and not found.dropped
    assert "1 answers have no `token_ids` and `log_probs`" in caplog.text


# --- faults of the way ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_may_pass_is_tried_again(status):
    found, asked = asked_once(lambda body, n: echo(body, n) if n == 2 else (status, b""), tries=3)
    assert not found.dropped and len(asked) == 3
    found, asked = asked_once((status, b""), tries=2)
    assert found.dropped == {f"HTTP {status}": 1} and len(asked) == 2


@pytest.mark.parametrize("status", [400, 403, 413, 422])
def test_other_refusals_are_final(status):
    found, asked = asked_once((status, b"{}"))
    assert found.dropped == {f"HTTP {status}": 1} and len(asked) == 1


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((404, {"object": "error", "message": "The model `m` does not exist."}), "HTTP 404: The model `m` does not exist."),
        ((404, {"detail": "Not Found"}), "HTTP 404: Not Found"),
        ((401, {"error": "no"}), "HTTP 401: no"),
        ((307, b"", {"Location": "http://127.0.0.1:9/"}), "HTTP 307: a redirect, which is not followed"),
    ],
)  # fmt: skip
def test_what_no_sample_gets_past_is_an_error(reply, said):
    with pytest.raises(EndpointError, match=re.escape(f"/v1/chat/completions: {said}; correct the address")):
        asked_once(reply, RECORDS * 20, connections=2)


def test_the_server_says_when_to_come_back(monkeypatch):
    waited = []
    monkeypatch.setattr(transport_module, "pause", lambda attempt, after, most: waited.append((attempt, after)) or 0.0)
    asked_once(lambda body, n: echo(body, n) if n else (429, b"", {"Retry-After": "2.5"}))
    assert waited == [(0, 2.5)]


@pytest.mark.parametrize(
    ("given", "low", "high"),
    [
        ("3", 3, 3),
        ("", 0, 0),
        ("soon", 0, 0),
        ("-4", 0, 0),
        ("Fri, 01 Jan 2100 00:00:00 GMT", 1e9, 1e10),
        ("Fri, 01 Jan 2010 00:00:00 GMT", 0, 0),
    ],
)
def test_retry_after(given, low, high):
    assert low <= retry_after(given) <= high


def _stall(handler):
    time.sleep(20)


def _slow_headers(handler):
    for _ in range(200):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n"[:1])
        time.sleep(0.05)


def _endless(piece, pause):
    def write(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            handler.wfile.write(piece)
            time.sleep(pause)

    return write


def _broken(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (_stall, "no reply within 0.2 s"),
        (_slow_headers, "no reply within 0.2 s"),
        (_endless(b" ", 0.05), "no reply within 0.2 s"),  # every byte comes in time
        (_endless(b" " * 65536, 0), "a reply above 100000 bytes"),
        (_broken, "the reply is not JSON"),
        (lambda handler: None, "no connection (RemoteDisconnected)"),
        (lambda handler: handler.wfile.write(b"SSH-2.0\r\n"), "no connection (BadStatusLine)"),
    ],
)
def test_a_server_that_stalls_or_talks_without_end(reply, reason):
    start = time.monotonic()
    found, _ = asked_once(lambda *_: reply, seconds=0.2, tries=2, largest_reply=100_000)
    assert found.dropped == {reason: 1} and time.monotonic() - start < 5


def test_nobody_is_there():
    with serving(echo) as (url, _):
        pass
    assert endpoint(url)(RECORDS, 1, 0).dropped == {"no connection (ConnectionRefusedError)": 2}


def test_no_more_requests_at_a_time_than_asked_for():
    now, most, lock = itertools.count(), [], threading.Semaphore(2)

    def answer(body, number):
        most.append(lock.acquire(blocking=False))
        time.sleep(0.02)
        lock.release()
        return echo(body, next(now))

    asked_once(answer, RECORDS, 6, several=False, connections=2)
    assert len(most) == 12 and all(most)


def test_leaving_ends_requests_that_run():
    with serving(lambda *_: _stall) as (url, asked):
        session = Session(Transport(url, seconds=20), "/completions")
        with pytest.raises(KeyboardInterrupt), session:
            for _ in range(2):
                session._pool.submit(session.post, {})
            while len(asked) < 2:
                time.sleep(0.01)
            start = time.monotonic()
            raise KeyboardInterrupt
        assert time.monotonic() - start < 5


# --- what nobody can ask ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"url": "ftp://h/v1"}, "url is 'ftp://h/v1'; give an address such as http://127.0.0.1:8000/v1"),
        ({"url": "localhost:8000"}, "url is 'localhost:8000'; give an address"),
        ({"url": "http://h/v1?key=1"}, "url has a query"),
        ({"url": "http://u:p@h/v1"}, "url has a query, a fragment or a user"),
        ({"url": "http://h:99999/"}, "[Pp]ort"),
        ({"url": "http://h/a b"}, "characters that no address has"),
        ({"seconds": 0.0}, "seconds=0.0"),
        ({"tries": 0}, "tries=0"),
        ({"model": " "}, "model is empty; give the name"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"reasoning": "keep"}, "reasoning is 'keep'; choose leave or prepend"),
        ({"more": {"stream": True}}, "more has stream, which"),
    ],
)
def test_bad_values(change, message):
    with pytest.raises(ValueError, match=message):
        endpoint(**{"url": "http://h", **change})


def test_a_key_that_is_not_set(monkeypatch):
    monkeypatch.delenv("A_KEY", raising=False)
    with pytest.raises(ValueError, match="the environment variable A_KEY is not set"):
        endpoint("http://h", key_variable="A_KEY")(RECORDS, 1, 0)
    monkeypatch.setenv("A_KEY", "a\nb")
    with pytest.raises(ValueError, match="A_KEY holds characters that no header can"):
        endpoint("http://h", key_variable="A_KEY")(RECORDS, 1, 0)


def test_no_samples():
    with pytest.raises(ValueError, match="samples is 0"):
        endpoint("http://h")(RECORDS, 0, 0)


def test_a_request_is_ascii():
    """So that no server has to guess an encoding."""
    _, asked = asked_once(echo, [Comparison("é🎉", ())])
    assert asked[0]["body"]["messages"][0]["content"] == "é🎉"
    assert json.dumps(asked[0]["body"]).isascii()
