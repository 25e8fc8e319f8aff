"""rmjax/judges/generators.py: names of generators, and a judge at a server."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rmjax.data.record import Comparison
from rmjax.judges.forms import Unread
from rmjax.judges.generators import Generation, Named, open_generator
from rmjax.judges.judge import MISSING, Judge
from rmjax.judges.replies import Replies
from rmjax.judges.spec import load_spec
from rmjax.policy.endpoint import Endpoint


class Server(BaseHTTPRequestHandler):
    """Prefers the answer `good`; fails for prompts with `broken` in them."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        said = "[[A]]" if text.index("good") < text.index("bad") else "[[B]]"
        status, reply = 200, {"choices": [{"message": {"content": said}, "finish_reason": "stop"}]}
        if "broken" in text:
            status, reply = 400, {"error": {"message": "no", "code": "content_policy"}}
        data = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_a_server_judges_and_fails_for_some_rows(address, tmp_path):
    records = [Comparison(prompt, ("good", "bad"), id=prompt) for prompt in ("one", "broken", "two")]
    spec = load_spec("pairwise")
    with Replies(Named(f"{address}#judge", spec.generation), tmp_path / "r.jsonl") as replies:
        judge = Judge(spec, replies)
        assert judge.attempt(records) == [[1.0, 0.0], Unread(MISSING), [1.0, 0.0]]
        assert judge.counts == {"HTTP 400 (content_policy)": 2}
        assert judge.report(records)["missing"] == 2


def test_names():
    opened = open_generator("http://127.0.0.1:1/v1#m", Generation(temperature=0.5, max_new_tokens=7))
    assert isinstance(opened, Endpoint) and (opened.model, opened.temperature, opened.max_tokens) == ("m", 0.5, 7)
    assert Named("smollm2").name == "smollm2 (temperature 0, top_p 1, 512 tokens)"
    with pytest.raises(ValueError, match="names no model of the server; write http://HOST/v1#MODEL"):
        open_generator("http://127.0.0.1:1/v1", Generation())
    with pytest.raises(FileNotFoundError, match="--model=nothing is not there; give http://HOST/v1#MODEL, "):
        open_generator("nothing", Generation())
