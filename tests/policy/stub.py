"""A server on this machine that says what a test tells it to."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a handler that stalls ends with the tests


@contextlib.contextmanager
def serving(answer):
    """Gives (address, requests), each request as its path, headers and body.

    `answer` gets (body, number of the request from 0) and gives (status, JSON or bytes, headers?), or a function of the handler,
    which then writes the reply itself.
    """
    asked, lock = [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(asked)
                asked.append({"path": self.path, "headers": self.headers, "body": body})
            with contextlib.suppress(OSError):  # a client that has gone
                self.say(answer(body, number))

        def say(self, reply):
            if callable(reply):
                reply(self)
                return
            status, content, *headers = reply
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **(headers[0] if headers else {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = _Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()


def choice(text, ended="stop", **more):
    """One of a reply to messages."""
    return {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": ended, **more}


def chat(*choices):
    """A whole reply to messages."""
    return 200, {"object": "chat.completion", "choices": [choice(c) if isinstance(c, str) else c for c in choices]}


def echo(body, _):
    """Answers messages with the last one's words, and with the seed."""
    said = body["messages"][-1]["content"]
    return chat(*(f"{said} {body.get('seed')} {n}" for n in range(body.get("n", 1))))
