"""The HTTP application: routes, limits, the token, the log. It knows no model but by `Service`."""

import asyncio
import contextlib
import dataclasses
import hmac
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rmjax.serve import dialects, openai
from rmjax.serve.dialects import Asked, Body, Context
from rmjax.serve.log import Log
from rmjax.serve.openapi import document
from rmjax.serve.outcomes import Outcome, Refused
from rmjax.serve.service import Service

_log = logging.getLogger(__name__)
Dialect = Callable[[Body, Context], Asked]
ROUTES: Mapping[str, Dialect] = {
    "/v1/reward": dialects.native,
    "/get_reward": dialects.get_reward,
    "/": dialects.get_reward,
    "/classify": openai.classify,
    "/v1/embeddings": openai.embeddings,
    "/pooling": openai.pooling,
    "/score": openai.score,
    "/v1/score": openai.score,
    "/rerank": openai.rerank,
    "/v1/rerank": openai.rerank,
    "/v2/rerank": openai.rerank,
    "/predict": openai.predict,
}
"""Where each dialect is spoken."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a client may do."""

    body_bytes: int = 16 << 20
    body_seconds: float = 30.0  # from a request's head to its last byte
    token: str = ""  # "" = everyone may ask


def create(service: Service, context: Context, facts: Mapping[str, Any], limits: Limits, log: Log) -> Starlette:
    """The application.

    Args:
      context: of every reply; its `id` and `created` are set for each.
      facts: of the model, for /v1/models.
    """
    made = int(time.time())

    async def models(request: Request) -> Response:
        one = {"id": context.model, "object": "model", "created": made, "owned_by": "rmjax", **facts}
        return JSONResponse({"object": "list", "data": [one]})

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def page(request: Request) -> Response:
        return JSONResponse(document(ROUTES))

    def asked(path: str, dialect: Dialect) -> Route:
        async def answer(request: Request) -> Response:
            return await _answer(request, path, dialect, service, context, limits, log)

        return Route(path, answer, methods=["POST"])

    read = {"/v1/models": models, "/health": health, "/metrics": metrics, "/openapi.json": page}
    routes = [asked(path, dialect) for path, dialect in ROUTES.items()]
    routes += [Route(path, _open(function, path, limits), methods=["GET"]) for path, function in read.items()]

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        work = asyncio.create_task(service.batcher.work())
        yield
        work.cancel()
        service.close()

    return Starlette(routes=routes, lifespan=lifespan)


def _open(function: Callable[[Request], Awaitable[Response]], path: str, limits: Limits) -> Any:
    async def answer(request: Request) -> Response:
        if path != "/health":
            try:
                _authorize(request, limits)
            except Refused as refused:
                return _refusal(refused)
        return await function(request)

    return answer


async def _answer(
    request: Request, path: str, dialect: Dialect, service: Service, context: Context, limits: Limits, log: Log
) -> Response:
    """One POST: read, understood, scored, answered, counted and logged."""
    name = request.headers.get("x-request-id", "")[:128] or uuid.uuid4().hex
    context = dataclasses.replace(context, id=name, created=int(time.time()))
    began, items = time.monotonic(), 0
    try:
        _authorize(request, limits)
        body = await _body(request, limits)
        began = time.monotonic()
        asked = dialect(body, _switched(context, request))
        items = len(asked.items)
        response: Response = JSONResponse(asked.reply(_whole(asked, await _scored(request, service, asked))))
    except ClientDisconnect:
        service.metrics.gone.inc()
        response = Response(status_code=499)
    except Refused as refused:
        response = _refusal(refused)
    except Exception:  # a fault of ours: whoever asked is told, it is counted, and the server lives on
        _log.exception("request %s to %s failed", name, path)
        response = _refusal(Refused(500, "the server failed on this request; its log says more"))
    response.headers["x-request-id"] = name
    seconds = time.monotonic() - began
    service.metrics.requests.labels(path, response.status_code).inc()
    service.metrics.seconds.labels(path).observe(seconds)
    log.write({"id": name, "route": path, "status": response.status_code, "items": items, "seconds": round(seconds, 6)})
    return response


def _refusal(refused: Refused) -> Response:
    headers = {"Retry-After": str(refused.retry_after)} if refused.retry_after else {}
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(refused.body(), refused.status, headers)


def _authorize(request: Request, limits: Limits) -> None:
    given = request.headers.get("authorization", "")
    if limits.token and not hmac.compare_digest(given.encode(), f"Bearer {limits.token}".encode()):
        raise Refused(401, "the request has no valid bearer token; send the header Authorization: Bearer TOKEN")


def _switched(context: Context, request: Request) -> Context:
    """LMDeploy's bare numbers may be asked for by the URL, which is all that its clients let a user set."""
    scalar = request.query_params.get("scalar")
    return context if scalar is None else dataclasses.replace(context, scalar=scalar not in ("0", "false", ""))


async def _body(request: Request, limits: Limits) -> Body:
    """The JSON object; 400, 408 or 413 otherwise."""
    too_large = Refused(413, f"the request is larger than {limits.body_bytes} bytes; send fewer texts at once")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.body_bytes:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                size += len(part)
                if size > limits.body_bytes:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise Refused(408, f"the request did not come whole in {limits.body_seconds:g} s; send it again") from None
    return parsed(b"".join(parts))


def parsed(text: bytes) -> Body:
    """A JSON object; 400 for anything else, and for texts that no tokenizer takes."""
    try:
        decoded = text.decode(json.detect_encoding(text))  # json itself would take bytes of lone surrogates
        found = json.loads(decoded, parse_constant=_no_constant)
        if "\\u" in decoded:
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Refused(400, "a text has half of a surrogate pair; remove the half of a \\ud800-\\udfff escape") from None
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON ({error}); send a JSON object") from None
    if not isinstance(found, dict):
        raise Refused(400, f"the body is a JSON {type(found).__name__}; send an object")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


async def _scored(request: Request, service: Service, asked: Asked) -> list[Outcome]:
    """Outcomes; ClientDisconnect as soon as the client is gone, with its items out of the queue."""
    work = asyncio.ensure_future(service.score(asked.items))
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        for task in (work, gone):
            task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _whole(asked: Asked, outcomes: list[Outcome]) -> list[Outcome]:
    """The outcomes; the first refusal is the request's where a reply has no place for one."""
    failed = next((each for each in outcomes if isinstance(each, Refused)), None)
    if failed and not asked.each:
        raise failed
    return outcomes
