"""The client: patient where it may help, final where it may not; and the trainers' functions made of it."""

import http.server
import json
import subprocess
import sys
import threading

import numpy as np
import pytest

import rmjax_client
from rmjax_client import Client, RewardError, pause
from rmjax_client.adapters import trl_reward, tunix_reward, verl_compute_score
from tests.serve.conftest import running

ROWS = [{"prompt": "2 + 2?", "output": str(i)} for i in range(5)]


@pytest.fixture
def scripted(monkeypatch):
    """A server that answers with what it is given, status by status; its client does not sleep."""
    answers, asked, slept = [], [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((self.path, self.headers.get("Authorization"), json.loads(body)))
            status, text, after = answers.pop(0)
            if status == 0:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            if after:
                self.send_header("Retry-After", after)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(rmjax_client.time, "sleep", slept.append)
    yield f"http://127.0.0.1:{server.server_port}", answers, asked, slept
    server.shutdown()
    server.server_close()


def reply(*rewards):
    return (200, json.dumps({"results": [{"rewards": [x]} for x in rewards]}).encode(), "")


def test_it_needs_no_jax_and_no_package():
    code = "import sys, rmjax_client.adapters; print(sorted(m for m in sys.modules if 'site-packages' in str(getattr(sys.modules[m], '__file__', ''))))"  # noqa: E501
    assert (
        subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    )


def test_it_comes_again_where_that_may_help(scripted):
    url, answers, asked, slept = scripted
    answers += [(503, b"", "7"), (0, b"", ""), (429, b"", ""), (502, b"", ""), reply(1.5)]
    assert Client(url, connections=1).rewards(ROWS[:1]) == [1.5]
    assert len(asked) == 5 and 7 <= slept[0] <= 7.2 and slept[1] <= 0.4


@pytest.mark.parametrize("status", [400, 401, 404, 413])
def test_other_refusals_are_final(scripted, status):
    url, answers, asked, _ = scripted
    answers += [(status, b'{"error": {"message": "no; do this"}}', "")]
    with pytest.raises(RewardError, match=f"{status}: no; do this") as error:
        Client(url).rewards(ROWS[:1])
    assert len(asked) == 1 and error.value.status == status


def test_it_gives_up_after_all_attempts(scripted):
    url, answers, asked, _ = scripted
    answers += [(503, b"busy", "")] * 3
    with pytest.raises(RewardError, match="503: busy"):
        Client(url, attempts=3).rewards(ROWS[:1])
    assert len(asked) == 3


def test_nobody_is_there():
    with pytest.raises(RewardError, match="Connection refused") as error:
        Client("http://127.0.0.1:9", attempts=1).rewards(ROWS[:1])
    assert error.value.status == 0


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://a", "http://"])
def test_what_is_no_address(url):
    with pytest.raises(ValueError, match="is no http:// or https:// address"):
        Client(url)


def test_pauses_grow_and_are_not_the_same_for_all():
    assert max(pause(9, 0.0) for _ in range(20)) <= 30 and len({pause(3, 0.0) for _ in range(20)}) > 1
    assert all(5 <= pause(0, 5.0) <= 5.2 for _ in range(20))


def test_many_records_are_cut_into_requests_and_come_back_in_order(scripted):
    url, answers, asked, _ = scripted
    answers += [reply(0.0, 1.0), reply(0.0, 1.0), reply(0.0)]
    assert Client(url, connections=1, records=2, token="t").rewards(ROWS) == [0.0, 1.0, 0.0, 1.0, 0.0]
    assert [len(body["records"]) for *_, body in asked] == [2, 2, 1] and asked[0][1] == "Bearer t"


def test_another_number_of_results_is_an_error(scripted):
    url, answers, *_ = scripted
    answers += [reply(0.0), reply(2.0, 3.0)]
    with pytest.raises(RewardError, match="the server sent 1 results for 2 records"):
        Client(url, connections=1, records=2).rewards(ROWS[:4])


def test_what_a_client_cannot_be():
    with pytest.raises(ValueError, match="attempts=0, .* each must be 1 or more"):
        Client("http://127.0.0.1:1", attempts=0)
    client = Client("http://127.0.0.1:1")
    client.close()
    with pytest.raises(ValueError, match="the client is closed; make another"):
        client.post("/v1/reward", {})


@pytest.mark.parametrize(
    ("reference", "fields"),
    [
        ("r", {"reference": "r"}), (b"r", {"reference": "r"}), (["r", b"s"], {"references": ["r", "s"]}),
        (np.array(["r", "s"]), {"references": ["r", "s"]}), (None, {}), ("", {}), ([], {}), (7, {"reference": "7"}),
        ({"gt": 7}, {"reference": {"gt": 7}}),
    ],
)  # fmt: skip
def test_a_reference_is_sent_as_it_is(scripted, reference, fields):
    """What is no text goes too, for the server to refuse it."""
    url, answers, asked, _ = scripted
    answers.append(reply(1.0))
    assert tunix_reward(Client(url))(prompts=[b"p"], completions=[np.str_("c")], reference=[reference]) == [1.0]
    assert asked[0][2] == {"records": [{"prompt": "p", "output": "c", **fields}]}


@pytest.mark.parametrize("adapter", [trl_reward, tunix_reward])
def test_a_column_that_was_named_has_to_be_there(adapter):
    function = adapter(Client("http://127.0.0.1:1"), reference="ref")
    with pytest.raises(KeyError, match="no column 'ref' for the references; it has reference"):
        function(prompts=["p"], completions=["c"], reference=["r"])


def test_a_record_without_a_reward_is_an_error_and_never_a_number(polar):
    client = Client(polar.url)
    with pytest.raises(RewardError, match=r"record 1: records\[1\]: field `outputs`: missing"):
        client.rewards([ROWS[0], {"prompt": "a"}])
    with pytest.raises(RewardError, match="record 0 has 2 answers"):
        client.rewards([{"prompt": "a", "outputs": ["b", "c"]}])
    assert [x is None for x in client.rewards_or_none([ROWS[0], {"prompt": "a"}])] == [False, True]


def test_trainers_functions(engines, models):
    rows = [
        {"prompt": "2 + 2?", "output": "4", "reference": "four"},
        {"prompt": "2 + 2?", "output": "5", "reference": "four"},
    ]
    wanted = pytest.approx(models["polar"].score(rows), abs=1e-5)
    with running(engines["polar"]) as server:
        client = Client(server.url)
        prompts, outputs, references = ([row[name] for row in rows] for name in ("prompt", "output", "reference"))
        trl = trl_reward(client)
        assert trl(prompts=prompts, completions=outputs, completion_ids=[[1], [2]], reference=references) == wanted
        turns = [[{"role": "user", "content": text}] for text in prompts]
        said = [[{"role": "assistant", "content": text}] for text in outputs]
        assert trl(prompts=turns, completions=said, reference=references) == wanted
        assert tunix_reward(client)(prompts=prompts, completions=outputs, mode="train", reference=references) == wanted
        score = verl_compute_score(client)
        each = [score(data_source="d", solution_str=o, ground_truth=r, extra_info={"prompt": p}, reward_router_address=None)
                for p, o, r in zip(prompts, outputs, references, strict=True)]  # fmt: skip
        assert each == wanted
        row = {"split": "train", "index": 0, "answer": "4", "question": prompts[0]}  # verl's own of GSM8K
        assert score("d", outputs[0], references[0], row) == pytest.approx(each[0], abs=1e-5)
        with pytest.raises(KeyError, match=r"no prompt and no question; .*prompt=….*: split, index"):
            score("d", outputs[0], references[0], {"split": "train", "index": 0})


def test_trl_may_go_on_without_a_reward(polar):
    function = trl_reward(Client(polar.url), strict=False)
    found = function(prompts=["a", 3], completions=["b", "c"])
    assert isinstance(found[0], float) and found[1] is None
