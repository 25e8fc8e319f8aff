"""The OpenAPI description of the routes, made from their dialects' docstrings."""

from collections.abc import Callable, Mapping
from typing import Any

from rmjax import __version__
from rmjax.serve.dialects import VERSION

_RECORD = {"prompt": "2 + 2 = ?", "reference": "It is 4.", "output": "4"}
EXAMPLES: Mapping[str, Any] = {
    "native": {"records": [_RECORD]},
    "get_reward": {"query": ["2 + 2 = ?\n4"], "prompts": ["2 + 2 = ?\n"], "labels": ["It is 4."]},
    "classify": {"model": "any", "input": "2 + 2 = ?\n4", "use_activation": False},
    "embeddings": {"model": "any", "input": ["2 + 2 = ?\n4"]},
    "pooling": {"input": ["2 + 2 = ?\n4"]},
    "score": {"text_1": "2 + 2 = ?", "text_2": ["4", "5"]},
    "rerank": {"query": "2 + 2 = ?", "documents": ["5", "4"], "top_n": 1},
    "predict": {"inputs": [["2 + 2 = ?", "4"]]},
}
"""A request by the dialect's name."""
_SAID = {
    "400": "The request is wrong; the message names the field.", "401": "No valid bearer token.",
    "408": "The request did not come whole in time.", "413": "Too many bytes or texts, or a text is too long.",
    "500": "The model failed.", "503": "The queue is full; Retry-After says when to come again.",
}  # fmt: skip


def document(routes: Mapping[str, Callable[..., Any]]) -> dict[str, Any]:
    """OpenAPI 3.1 of these dialects and of the routes to look at."""
    looks = {
        "/health": "Whether it answers.", "/v1/models": "The model, its fingerprint and longest text.",
        "/metrics": "Counters, in Prometheus's text format.", "/openapi.json": "This.",
    }  # fmt: skip
    paths: dict[str, Any] = {path: {"post": _post(path, dialect)} for path, dialect in routes.items()}
    paths |= {
        path: {"get": {"summary": said, "responses": {"200": {"description": "OK"}}}} for path, said in looks.items()
    }
    error = {"type": "object", "properties": {"error": {"type": "object", "properties": {
        "code": {"type": "integer"}, "type": {"type": "string"}, "message": {"type": "string"}}}}}  # fmt: skip
    return {
        "openapi": "3.1.0", "info": {"title": "rmjax reward server", "version": f"{__version__}+{VERSION}"}, "paths": paths,
        "components": {"schemas": {"Error": error}, "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"bearer": []}],
    }  # fmt: skip


def _post(path: str, dialect: Callable[..., Any]) -> dict[str, Any]:
    summary, _, rest = (dialect.__doc__ or "").partition("\n")
    schema = {"schema": {"type": "object"}, "example": EXAMPLES[dialect.__name__]}
    refused = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        "operationId": f"{dialect.__name__}_{path.strip('/').replace('/', '_')}".rstrip("_"), "summary": summary.strip(),
        "description": " ".join(rest.split()), "requestBody": {"required": True, "content": {"application/json": schema}},
        "responses": {"200": {"description": "Rewards."}}
        | {code: {"description": said, "content": refused} for code, said in _SAID.items()},
    }  # fmt: skip
