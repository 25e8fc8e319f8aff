"""A model at a port, until SIGTERM: loading, compiling, listening, draining."""

import asyncio
import contextlib
import dataclasses
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from rmjax.reward_model import RewardModel
from rmjax.serve.app import Limits, create
from rmjax.serve.dialects import Context
from rmjax.serve.engine import Engine, described, when_compiled
from rmjax.serve.log import Log
from rmjax.serve.metrics import Metrics
from rmjax.serve.service import Service

_log = logging.getLogger(__name__)
TOKEN = "RMJAX_SERVE_TOKEN"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclasses.dataclass(frozen=True)
class Options:
    """What a server is started with."""

    model: str
    host: str = "127.0.0.1"
    port: int = 8000  # 0 = a free one
    name: str = ""  # in replies; "" = the folder's
    truncate: str = "refuse"  # "format" cuts what is too long as in training
    max_tokens: int = 0  # of a text; 0 = the format's, 2048 at most
    batch_tokens: int = 0  # of a call of the model; 0 = as for scoring files
    prefix_cache_tokens: int = 0  # whose keys and values are kept from batch to batch; 0 = none
    queue: int = 4096  # texts that may wait
    wait_ms: float = 3.0  # that the first text of a batch waits for others while nothing else waits
    strip: tuple[str, ...] = ()  # texts at the end of an OpenRLHF query that are not of the answer
    scalar_pooling: bool = False
    body_mb: float = 16.0
    drain_seconds: int = 60  # that requests at hand get after SIGTERM
    log: Path | None = None
    token_file: Path | None = None
    mesh: str = "all"
    dtype: str = ""  # of a hub model; "" = of its files
    template: str = ""  # chat template of a hub model; "" = its own


def serve(options: Options) -> None:
    """Serves until SIGTERM or Ctrl-C; requests at hand are answered before it returns.

    Raises:
      OSError: the port is taken, or a file cannot be read or written.
      FileNotFoundError, ValueError: the model, as `RewardModel.load`; the options.
    """
    if options.truncate not in ("refuse", "format"):
        raise ValueError(f"--truncate is {options.truncate!r}; choose refuse or format")
    limits = Limits(body_bytes=int(options.body_mb * 2**20), token=token(options))
    listening = listen(options.host, options.port)  # before the model is loaded: a port that is taken is said at once
    with contextlib.closing(listening):
        metrics = Metrics()
        log = Log(options.log, metrics.log_errors.inc)
        app = application(options, limits, metrics, log)
        if options.host not in LOOPBACK and not limits.token:
            _log.warning("everyone who reaches %s may ask; set %s or --token_file", options.host, TOKEN)
        host, port = listening.getsockname()[:2]
        _more_files()
        config = uvicorn.Config(
            app, log_config=None, access_log=False, timeout_graceful_shutdown=options.drain_seconds, backlog=4096,
            timeout_keep_alive=75, ws="none",
        )  # fmt: skip
        with _calm():
            asyncio.run(
                _until_stopped(_Announcing(config, f"serving {options.model} at http://{host}:{port}"), listening)
            )


def application(options: Options, limits: Limits, metrics: Metrics, log: Log) -> Starlette:
    """The application of a model that is loaded and compiled."""
    mesh = None if options.mesh == "one" else "all"
    model = RewardModel.load(options.model, mesh, options.dtype, template=options.template)
    engine = Engine.of(model, options.max_tokens, options.batch_tokens, options.prefix_cache_tokens)
    if kept := engine.prefixes:
        _log.info("the prefix cache takes %.0f MiB", kept.size / 2**20)
        metrics.watch("prefix_cache_tokens", "tokens in the prefix cache", lambda: kept.tokens)
    engine.compile(_log.info)
    when_compiled(metrics.recompiles.inc)
    service = Service(engine, metrics, options.truncate == "format", options.queue, options.wait_ms / 1000)
    metrics.watch("waiting", "texts in the queue", lambda: service.batcher.waiting)
    form = engine.encoder.form
    name = options.name or Path(options.model.rpartition(":")[2]).name
    context = Context(name, engine.fingerprint, form.kind, form.split_token, options.strip, options.scalar_pooling)
    return create(service, context, described(engine), limits, log)


def token(options: Options) -> str:
    """The bearer token of the environment or of a file; "" = none.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is empty, or both are there.
    """
    given = os.environ.get(TOKEN, "")
    if options.token_file is None:
        return given
    if given:
        raise ValueError(f"--token_file={options.token_file} and {TOKEN} both have a token; keep one of them")
    found = options.token_file.read_text().strip()
    if not found:
        raise ValueError(f"--token_file={options.token_file} is empty; write the token into it")
    return found


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound; OSError with a remedy where that fails."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
        except OSError:
            found.close()
            raise
        return found
    except OSError as error:
        raise OSError(
            f"cannot listen at {host}:{port}: {error.strerror or error}; choose another --port or --host"
        ) from error


class _Announcing(uvicorn.Server):
    """uvicorn has no callback for the moment from which on requests are answered."""

    def __init__(self, config: uvicorn.Config, line: str):
        super().__init__(config)
        self._line = line

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        with contextlib.suppress(OSError):  # who starts it may have closed the pipe, or a disk is full
            print(self._line, flush=True)


async def _until_stopped(server: uvicorn.Server, listening: socket.socket) -> None:
    await server.serve(sockets=[listening])


@contextlib.contextmanager
def _calm() -> Iterator[None]:
    """uvicorn sends the signal that stopped it once more when it is done; here the process then ends as it likes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        with contextlib.suppress(OSError):
            print("stopped: every request at hand was answered", file=sys.stderr, flush=True)


def _more_files() -> None:
    """As many connections as the system allows this process: each is an open file."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
