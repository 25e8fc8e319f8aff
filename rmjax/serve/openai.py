"""The dialects of vLLM, SGLang, LMDeploy and TEI; see `dialects`.

Rewards are the model's own numbers: no sigmoid, no softmax. vLLM does the same for a model of `problem_type: regression`.
"""

import base64
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rmjax.serve.dialects import Asked, Body, Context, one_reward
from rmjax.serve.items import Item, Record, Text, Tokens
from rmjax.serve.outcomes import Rewarded, wrong

CHANGING = {
    "truncate_prompt_tokens": "leave it out; --truncate=format of the server cuts records as in training",
    "normalize": "leave it out; rewards have no fixed range",
    "apply_softmax": "leave it out; rewards are raw",
    "label_token_ids": "leave it out; the model has one reward and no labels",
    "dimensions": "leave it out; a reward is one number",
    "use_activation": "send false; rewards are raw",
    "activation": "send false; rewards are raw",
    "softmax": "send false; rewards are raw",
}
"""Fields that ask for other numbers than the model's; their absence, null and false are fine."""
RAW = "raw_scores"
"""TEI's: false asks for a sigmoid, and absent is what clients send that know of none."""


_OTHER = "asks for other numbers than the model's rewards"


def _refuse_changes(body: Body) -> None:
    for name, remedy in CHANGING.items():
        if body.get(name):
            raise wrong(f"`{name}`", _OTHER, remedy)
    if body.get(RAW) is False:
        raise wrong(f"`{RAW}`", _OTHER, "send true; rewards are raw")


def given(value: Any, where: str) -> list[Item]:
    """The items of an `input`: a text, texts, token ids, or lists of them; 400 otherwise."""
    if isinstance(value, str):
        return [Text(value, f"`{where}`")]
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return [Text(text, f"{where}[{i}]") for i, text in enumerate(value)]
    if _ids(value):
        return [Tokens(tuple(value), f"`{where}`")]
    if isinstance(value, list) and all(_ids(each) for each in value):
        return [Tokens(tuple(each), f"{where}[{i}]") for i, each in enumerate(value)]
    raise wrong(f"`{where}`", "is no text, list of texts or list of token ids", "send one of these")


def _ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)


def _input(body: Body) -> list[Item]:
    if "messages" in body and "input" not in body:
        reference = {"reference": body["reference"]} if "reference" in body else {}
        return [Record({"messages": body["messages"], **reference}, "the request")]
    if "input" not in body:
        raise wrong("`input`", "is missing", "send a text or a list of texts")
    return given(body["input"], "input")


def usage(outcomes: Sequence[Rewarded]) -> dict[str, int]:
    """Tokens of all sequences."""
    count = sum(sum(each.tokens) for each in outcomes)
    return {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0}


def _listed(
    body: Body, context: Context, prefix: str, items: Sequence[Item], entry: Callable[[int, float], Mapping[str, Any]]
) -> Asked:
    """OpenAI's list of entries. `model` may be any name: it is the client's word for what it asks, and the reply has ours."""
    _refuse_changes(body)

    def reply(outcomes: Sequence[Rewarded]) -> Any:
        return {
            "id": f"{prefix}-{context.id}", "object": "list", "created": context.created, "model": context.model,
            "data": [entry(i, one_reward(each)) for i, each in enumerate(outcomes)], "usage": usage(outcomes),
        }  # fmt: skip

    return Asked(tuple(items), reply)


def classify(body: Body, context: Context) -> Asked:
    """vLLM's by `input` or `messages`, SGLang's by `text` or `input_ids`."""
    if "text" in body or "input_ids" in body:
        return sglang(body, context)

    def entry(index: int, reward: float) -> Mapping[str, Any]:
        return {"index": index, "label": "LABEL_0", "probs": [reward], "num_classes": 1}

    return _listed(body, context, "classify", _input(body), entry)


def sglang(body: Body, context: Context) -> Asked:
    """{"text": text or texts} → a list of {"embedding": [reward], "meta_info"}; for a single text one of them."""
    name = "text" if "text" in body else "input_ids"
    items, alone = given(body[name], name), isinstance(body[name], str) or _ids(body[name])

    def reply(outcomes: Sequence[Rewarded]) -> Any:
        found = [
            {"embedding": [one_reward(each)], "meta_info": {"id": f"{context.id}-{i}", "prompt_tokens": each.tokens[0]}}
            for i, each in enumerate(outcomes)
        ]
        return found[0] if alone else found

    return Asked(tuple(items), reply)


def _number(body: Body) -> Callable[[list[float]], Any]:
    """How a list of numbers is written: as it is, or as base64 of fp32."""
    form = body.get("encoding_format") or "float"
    if form not in ("float", "base64"):
        raise wrong("`encoding_format`", f"is {form!r}", "choose float or base64")
    if form == "float":
        return lambda numbers: numbers
    return lambda numbers: base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def embeddings(body: Body, context: Context) -> Asked:
    """OpenAI's embeddings, each of length 1."""
    written = _number(body)
    return _listed(
        body, context, "embd", _input(body),
        lambda index, reward: {"index": index, "object": "embedding", "embedding": written([reward])},
    )  # fmt: skip


def pooling(body: Body, context: Context) -> Asked:
    """vLLM's pooling with the last token's value alone, [[reward]]; LMDeploy's bare number where `context.scalar`."""
    written = _number(body)

    def entry(index: int, reward: float) -> Mapping[str, Any]:
        data = (
            reward if context.scalar else [[reward]] if body.get("encoding_format") != "base64" else written([reward])
        )
        return {"index": index, "object": "pooling", "data": data}

    return _listed(body, context, "pool", _input(body), entry)


# --- a prompt and answers -----------------------------------------------------------------------------------------------


def pair(prompt: Any, answer: Any, reference: Any, place: str) -> Record:
    """A record of two texts."""
    for value, which in ((prompt, "prompt"), (answer, "answer")):
        if not isinstance(value, str):
            raise wrong(place, f"has {_kind(value)} as {which}", "send texts")
    return Record({"prompt": prompt, "output": answer, **({"reference": reference} if reference else {})}, place)


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


_SIDES = (("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents"), ("queries", "items"))


def score(body: Body, context: Context) -> Asked:
    """vLLM's `text_1` and `text_2` (by whatever name), of which one may be a single text; SGLang's `query` and `items`."""
    if "query" in body and "items" in body:
        return _sglang_score(body, context)
    names = next((names for names in _SIDES if names[0] in body and names[1] in body), None)
    if names is None:
        raise wrong("the request", "has no two sides", "send text_1 and text_2: prompts and answers")
    sides = [[body[name]] if isinstance(body[name], str) else body[name] for name in names]
    if not all(isinstance(side, list) for side in sides) or (len(sides[0]) != len(sides[1]) and len(sides[0]) != 1):
        raise wrong(f"`{names[0]}` and `{names[1]}`", "do not pair up", "send a prompt for each answer, or one for all")
    prompts = sides[0] * len(sides[1]) if len(sides[0]) == 1 else sides[0]
    reference = body.get("reference")
    items = [pair(p, a, reference, f"{names[1]}[{i}]") for i, (p, a) in enumerate(zip(prompts, sides[1], strict=True))]
    return _listed(body, context, "score", items, lambda i, reward: {"index": i, "object": "score", "score": reward})


def _sglang_score(body: Body, context: Context) -> Asked:
    _refuse_changes(body)
    items = _answers(body, "items")
    return Asked(items, lambda outcomes: {"scores": [[one_reward(each)] for each in outcomes], "model": context.model})


def _answers(body: Body, name: str) -> tuple[Item, ...]:
    values = _several(body[name])
    if not isinstance(values, list):
        raise wrong(f"`{name}`", "is not a list of texts", "send the answers")
    return tuple(
        pair(body.get("query"), _document(value), body.get("reference"), f"{name}[{i}]")
        for i, value in enumerate(values)
    )


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _document(value: Any) -> Any:
    return value.get("text") if isinstance(value, Mapping) else value


def rerank(body: Body, context: Context) -> Asked:
    """Jina's and Cohere's `query` and `documents`, or TEI's `query` and `texts`: best first."""
    _refuse_changes(body)
    if "texts" in body:
        return _tei_rerank(body)
    if "documents" not in body:
        raise wrong("`documents`", "is missing", "send the answers to `query`")
    items, top = _answers(body, "documents"), body.get("top_n")
    if top is not None and (type(top) is not int or top < 0):
        raise wrong("`top_n`", "is no count", "send a number of results, or leave it out")

    def reply(outcomes: Sequence[Rewarded]) -> Any:
        found = [
            {"index": i, "document": {"text": _document(_several(body["documents"])[i])}, "relevance_score": reward}
            for i, reward in _best_first(outcomes)
        ]
        return {
            "id": f"rerank-{context.id}", "model": context.model, "usage": usage(outcomes), "results": found[: top or None]
        }  # fmt: skip

    return Asked(items, reply)


def _best_first(outcomes: Sequence[Rewarded]) -> list[tuple[int, float]]:
    return sorted(enumerate(map(one_reward, outcomes)), key=lambda each: -each[1])


def _tei_rerank(body: Body) -> Asked:
    items = _answers(body, "texts")

    def reply(outcomes: Sequence[Rewarded]) -> Any:
        whole = bool(body.get("return_text"))
        return [
            {"index": i, "score": reward, **({"text": _several(body["texts"])[i]} if whole else {})}
            for i, reward in _best_first(outcomes)
        ]

    return Asked(items, reply)


def predict(body: Body, context: Context) -> Asked:
    """TEI's `inputs`: a text, a pair [prompt, answer], or a list of [text] and [prompt, answer]."""
    del context
    _refuse_changes(body)
    value = body.get("inputs")
    single = isinstance(value, str) or _is_strings(value)
    entries = [value] if single else value
    if not isinstance(entries, list):
        raise wrong("`inputs`", "is no text, pair or list of them", 'send "text", [prompt, answer] or [["text"], …]')
    items = tuple(_predicted(entry, f"inputs[{i}]") for i, entry in enumerate(entries))

    def reply(outcomes: Sequence[Rewarded]) -> Any:
        found = [[{"score": one_reward(each), "label": "LABEL_0"}] for each in outcomes]
        return found[0] if single else found

    return Asked(items, reply)


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def _predicted(entry: Any, place: str) -> Item:
    words: Any = [entry] if isinstance(entry, str) else entry
    if not _is_strings(words) or len(words) > 2:
        raise wrong(place, "is no text and no pair", "send [text] or [prompt, answer]")
    return Text(words[0], place) if len(words) == 1 else pair(words[0], words[1], None, place)
