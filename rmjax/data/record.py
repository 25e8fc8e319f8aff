"""The one record type: a prompt, its candidates, and whatever is known of their order."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from rmjax.data.columns import number as _number
from rmjax.data.columns import numbers as _number_list
from rmjax.data.columns import parse_columns, selected
from rmjax.data.errors import RecordError as RecordError
from rmjax.models import columns

_T = TypeVar("_T")
WRAPPERS = ("sft", "pretrain")

# One name per accepted row field beside the declared columns; anything else in a row is reported by `unknown_fields`.
FIELDS = frozenset(
    {
        "prompt",
        "messages",
        "reference",
        "references",
        "chosen",
        "rejected",
        "output",
        "outputs",
        "best",
        "ranks",
        "scores",
        "votes",
        "policies",
        "category",
        "source",
        "type",
        "wrapper",
        "weight",
        "margin",
        "id",
    }
)
columns.reserve(FIELDS | {"place"})
_FORMS = (("chosen", "rejected"), ("output",), ("outputs",))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Candidates that answer one prompt, and what is known of them.

    N is the number of outputs, M the number of voters. `parse` validates; the constructor does
    not, so code that makes records itself (a sampler with an empty rollout, say) may hold texts
    that `parse` would refuse.
    """

    prompt: str  # messages already joined by "\n" (POLAR drops the roles)
    outputs: tuple[str, ...]  # N >= 1 candidates
    references: tuple[str, ...] = ()  # zero, one or several
    ranks: tuple[float, ...] | None = None  # N values, smaller is better, equal is a tie
    scores: tuple[float, ...] | None = None  # N values, absolute quality, larger is better
    votes: tuple[tuple[float, ...], ...] | None = None  # M voters x N outputs, larger is better
    policies: tuple[str, ...] | None = None  # N names: who wrote each output
    category: str | None = None
    source: str | None = None  # data set name
    type: int | None = None  # LoRAMoE type label
    wrapper: str = "sft"  # "sft" or "pretrain" (POLAR)
    weight: float = 1.0  # factor on the loss, >= 0
    margin: float = 0.0  # in units of reward
    id: str = ""
    place: str = ""  # "file.jsonl:17", for error messages
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    """Further declared columns that the record has, by field name: numbers, and tuples of them per output, pair or token."""


def parse(row: Mapping[str, object], place: str) -> Comparison:
    """Validates a row and turns it into a `Comparison`.

    The prompt is `prompt` or `messages`. A text is a string or a list of messages
    (`{"role", "content"}`), whose contents are joined by newlines; one list of messages is always
    one text. References are `reference` (one text) or `references` (a list of texts). Candidates
    are given in exactly one form:

    * `chosen` and `rejected` (one text or a list of strings): ranks 0 and 1;
    * `output`: a single candidate, no order;
    * `outputs` with one of `best` (index: rank 0, all others 1) or `ranks`, or with neither.

    `scores` are kept, and give the ranks where nothing else does. A candidate that repeats the
    prompt's messages as its first messages (as in HH) loses them. A field that is None counts as
    absent. Fields that are not in `FIELDS` are ignored here; see `unknown_fields`.

    Args:
      row: field name to value, as decoded from JSON.
      place: "file:line", used in error messages and kept in the record.

    Raises:
      RecordError: a missing, empty (no characters but white space) or ill-typed field; `best` out
        of range; lengths that differ; NaN or infinity; an unknown wrapper; identical candidates
        with different ranks.
    """
    if not isinstance(row, Mapping):
        raise RecordError(place, "", "not a JSON object", 'write one {"prompt": …} per record')
    fields = {name: row[name] for name in FIELDS if row.get(name) is not None}
    prompt_field = _one_of(fields, (("messages",), ("prompt",)), row, place)[0]
    prompt = _text(fields[prompt_field], place, prompt_field)
    form = _one_of(fields, _FORMS, row, place)
    outputs = _candidates(fields, form, _messages(fields[prompt_field]), place)
    scores = _numbers(fields, "scores", len(outputs), place)
    ranks = _ranks(fields, form, len(outputs), place)
    if ranks is None and scores is not None:
        ranks = ranks_from_scores(scores)
    _refuse_contradiction(outputs, ranks, form[-1], place)
    return Comparison(
        prompt=prompt,
        outputs=outputs,
        references=_references(fields, place),
        ranks=ranks,
        scores=scores,
        votes=_votes(fields, len(outputs), place),
        policies=_policies(fields, len(outputs), place),
        place=place,
        columns=parse_columns(row, len(outputs), place),
        **_facts(fields, place),  # type: ignore[arg-type]
    )


def to_row(comparison: Comparison) -> dict[str, object]:
    """The inverse of `parse`: `parse(to_row(c), c.place) == c` for every c that `parse` returns.

    Only fields that differ from their default are written.
    """
    row: dict[str, object] = {}
    for field in dataclasses.fields(comparison):
        value = getattr(comparison, field.name)
        if field.name not in ("place", "columns") and value != field.default:
            row[field.name] = _as_lists(value)
    return row | {name: _as_lists(value) for name, value in comparison.columns.items()}


def select(comparison: Comparison, indices: Sequence[int]) -> Comparison:
    """The outputs at `indices`, in this order, with all that is known of each."""

    def kept(values: tuple[_T, ...] | None) -> tuple[_T, ...] | None:
        return None if values is None else tuple(values[i] for i in indices)

    votes = comparison.votes
    return dataclasses.replace(
        comparison,
        outputs=tuple(comparison.outputs[i] for i in indices),
        ranks=kept(comparison.ranks),
        scores=kept(comparison.scores),
        policies=kept(comparison.policies),
        votes=votes and tuple(tuple(voter[i] for i in indices) for voter in votes),
        columns=selected(comparison.columns, indices),
    )


def require_order(comparison: Comparison) -> None:
    """Raises RecordError unless at least two candidates are ranked differently."""
    remedy = "give chosen and rejected, or outputs with best, ranks or scores"
    if len(comparison.outputs) < 2:
        raise RecordError(comparison.place, "outputs", "only one candidate", remedy)
    if comparison.ranks is None:
        raise RecordError(comparison.place, "ranks", "no order known", remedy)
    if len(set(comparison.ranks)) < 2:
        raise RecordError(
            comparison.place,
            "ranks",
            "all candidates are tied",
            "drop the record or rank its candidates",
        )


def require_reference(comparison: Comparison) -> None:
    """Raises RecordError where the record has no reference (POLAR's format needs one)."""
    if not comparison.references:
        raise RecordError(
            comparison.place,
            "reference",
            "missing, and the input format needs it",
            "add a reference answer, or train without one (data.reference=optional)",
        )


def require_type(value: object, types: int, place: str) -> None:
    """Raises RecordError unless `value` is a type label, 0 to `types` − 1."""
    if value is None:
        raise RecordError(place, "type", "missing, and the balancing constraint needs it", f"give {_range(types)}")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < types:
        raise RecordError(
            place, "type", "out of range", f"give {_range(types)}, or set adapter.expert_types", repr(value)
        )


def type_label(fields: Mapping[str, object], place: str) -> int | None:
    """A row's `type`, None where it has none; RecordError where that is not an integer of 32 bits."""
    value = fields.get("type")
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise RecordError(place, "type", "not an integer", "give the number of the LoRAMoE type")
    _number(value, "type", place, columns.by_field()["type"])
    return value


def _range(types: int) -> str:
    return " or ".join(map(str, range(types))) if types <= 3 else f"0 to {types - 1}"


def unknown_fields(row: Mapping[str, object]) -> list[str]:
    """The names in a row that `parse` ignores, sorted."""
    return sorted(set(row) - _known()) if isinstance(row, Mapping) else []


def _known() -> frozenset[str]:
    return FIELDS | columns.by_field().keys()


def nearest_field(name: str) -> str | None:
    """The accepted field that `name` was probably meant to be, or None."""
    close = difflib.get_close_matches(name.lower(), _known(), n=1, cutoff=0.75)
    return close[0] if close else None


def scores_contradict(comparison: Comparison) -> bool:
    """Whether a record's scores order two of its outputs against their ranks."""
    if comparison.ranks is None or comparison.scores is None:
        return False
    known = list(zip(comparison.ranks, comparison.scores, strict=True))
    return any(rank < other and score < its for rank, score in known for other, its in known)


def ranks_from_scores(scores: Sequence[float]) -> tuple[float, ...]:
    """Dense ranks 0, 1, 2, … by descending score; equal scores share a rank."""
    order = {score: rank for rank, score in enumerate(sorted(set(scores), reverse=True))}
    return tuple(float(order[score]) for score in scores)


def _one_of(
    fields: Mapping[str, object],
    forms: Sequence[tuple[str, ...]],
    row: Mapping[str, object],
    place: str,
) -> tuple[str, ...]:
    """The one form of which a field is present; raises if that is none, several or half of one."""
    present = [form for form in forms if any(name in fields for name in form)]
    if len(present) > 1:
        given = " and ".join(f"`{'`/`'.join(form)}`" for form in present)
        raise RecordError(place, present[1][0], f"{given} exclude each other", "keep one of them")
    if not present:
        raise RecordError(place, forms[-1][-1], "missing", _add_one_of(forms, row))
    for name in present[0]:
        if name not in fields:
            raise RecordError(place, name, "missing", _add_one_of([(name,)], row))
    return present[0]


def _add_one_of(forms: Sequence[tuple[str, ...]], row: Mapping[str, object]) -> str:
    wanted = {name for form in forms for name in form}
    for name in unknown_fields(row):
        if nearest_field(name) in wanted:
            return f"did you mean `{nearest_field(name)}` by `{name}`?"
    return "add " + " or ".join(" and ".join(f"`{name}`" for name in form) for form in forms)


def _text(value: object, place: str, field: str) -> str:
    """Joins messages by newlines, as POLAR does, or takes a string as it is."""
    messages = _messages(value)
    if isinstance(value, str):
        text = value
    elif messages is not None:
        text = "\n".join(_content(message, place, field) for message in messages)
    else:
        kind = type(value).__name__
        remedy = "give a string or a list of {role, content} messages"
        raise RecordError(place, field, "neither text nor messages", remedy, kind)
    if not text.strip():
        raise RecordError(place, field, "empty text", "fill it in or drop the record")
    if not _is_encodable(text):
        remedy = "remove the half of a \\ud800-\\udfff escape"
        raise RecordError(place, field, "text with a lone surrogate", remedy)
    return text


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _messages(value: object) -> list[Mapping[str, object]] | None:
    """The value if it is a list of message objects, else None."""
    if isinstance(value, list | tuple) and value and all(isinstance(v, Mapping) for v in value):
        return list(value)
    return None


def _content(message: Mapping[str, object], place: str, field: str) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = _messages(content)
    texts = [part.get("text") for part in parts or () if part.get("type", "text") == "text"]
    strings = [text for text in texts if isinstance(text, str)]
    if parts is None or len(strings) != len(parts):
        remedy = "give each message a string `content` or a list of text parts"
        raise RecordError(place, field, "message without text content", remedy)
    return "\n".join(strings)


def _candidates(
    fields: Mapping[str, object],
    form: tuple[str, ...],
    prompt: list[Mapping[str, object]] | None,
    place: str,
) -> tuple[str, ...]:
    texts: list[str] = []
    for name in form:
        for field, value in _named_texts(fields[name], name, place):
            texts.append(_text(_continuation(value, prompt), place, field))
    return tuple(texts)


def _named_texts(value: object, name: str, place: str) -> list[tuple[str, object]]:
    """Splits `outputs` and a list of `rejected` into (field name with index, text) pairs."""
    is_list = isinstance(value, list | tuple) and _messages(value) is None
    if name == "outputs" and not is_list:
        raise RecordError(place, name, "not a list of texts", "use `output` for one candidate")
    if name not in ("outputs", "rejected") or not is_list:
        return [(name, value)]
    values = list(value)  # type: ignore[call-overload]
    if not values:
        raise RecordError(place, name, "empty list", "give at least one candidate")
    return [(f"{name}[{i}]", item) for i, item in enumerate(values)]


def _continuation(value: object, prompt: list[Mapping[str, object]] | None) -> object:
    """Drops the prompt's messages from the front of a candidate that repeats them."""
    messages = _messages(value)
    # Without roles a one-message answer that echoes the prompt looks the same; leave it alone.
    if messages is None or prompt is None or "role" not in prompt[0]:
        return value
    if [_turn(m) for m in messages[: len(prompt)]] != [_turn(m) for m in prompt]:
        return value
    return messages[len(prompt) :] or ""


def _turn(message: Mapping[str, object]) -> tuple[object, object]:
    return message.get("role"), message.get("content")


def _references(fields: Mapping[str, object], place: str) -> tuple[str, ...]:
    if "reference" in fields and "references" in fields:
        problem = "`reference` and `references` exclude each other"
        raise RecordError(place, "references", problem, "keep one of them")
    if "reference" in fields:
        return (_text(fields["reference"], place, "reference"),)
    values = fields.get("references", ())
    if not isinstance(values, list | tuple) or _messages(values) is not None:
        raise RecordError(place, "references", "not a list of texts", "use `reference` for one")
    return tuple(_text(v, place, f"references[{i}]") for i, v in enumerate(values))


def _ranks(fields: Mapping[str, object], form: tuple[str, ...], count: int, place: str) -> tuple[float, ...] | None:
    given = [name for name in ("best", "ranks") if name in fields]
    if form == ("chosen", "rejected"):
        given.insert(0, "chosen")
    if len(given) > 1:
        problem = f"`{given[0]}` and `{given[1]}` both give the order"
        raise RecordError(place, given[1], problem, "keep one of them")
    if given == ["chosen"]:
        return (0.0,) + (1.0,) * (count - 1)
    if given == ["best"]:
        best = _best(fields["best"], count, place)
        return tuple(float(i != best) for i in range(count))
    return _numbers(fields, "ranks", count, place)


def _best(value: object, count: int, place: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise RecordError(place, "best", "not an integer", "give the index of the best output")
    if not 0 <= value < count:
        remedy = "give an index that counts from 0"
        raise RecordError(place, "best", "out of range", remedy, f"{value} of {count} outputs")
    return value


def _refuse_contradiction(outputs: Sequence[str], ranks: Sequence[float] | None, field: str, place: str) -> None:
    seen: dict[str, float] = {}
    for output, rank in zip(outputs, ranks or (), strict=False):
        if seen.setdefault(output, rank) != rank:
            problem = "identical candidates ranked differently"
            raise RecordError(place, field, problem, "drop one of them or give both the same rank")


def _numbers(fields: Mapping[str, object], name: str, count: int, place: str) -> tuple[float, ...] | None:
    if name not in fields:
        return None
    return _number_list(fields[name], name, count, place)


def _votes(fields: Mapping[str, object], count: int, place: str) -> tuple[tuple[float, ...], ...] | None:
    if "votes" not in fields:
        return None
    voters = fields["votes"]
    if not isinstance(voters, list | tuple) or not voters:
        remedy = "give a list with one list per voter, one number per output"
        raise RecordError(place, "votes", "not a list of lists", remedy)
    return tuple(_number_list(v, f"votes[{i}]", count, place) for i, v in enumerate(voters))


def _policies(fields: Mapping[str, object], count: int, place: str) -> tuple[str, ...] | None:
    if "policies" not in fields:
        return None
    names = fields["policies"]
    if not isinstance(names, list | tuple) or len(names) != count:
        remedy = "give a list with one policy name per output"
        raise RecordError(place, "policies", "not one name per output", remedy)
    return tuple(_text(name, place, f"policies[{i}]") for i, name in enumerate(names))


def _facts(fields: Mapping[str, object], place: str) -> dict[str, object]:
    return {
        "category": _label(fields, "category", place) or None,
        "source": _label(fields, "source", place) or None,
        "type": type_label(fields, place),
        "wrapper": _wrapper(fields, place),
        "weight": _fact(fields, "weight", place),
        "margin": _fact(fields, "margin", place),
        "id": _label(fields, "id", place),
    }


def _fact(fields: Mapping[str, object], name: str, place: str) -> float:
    """A number per record that is a column with an attribute of its own."""
    column = columns.by_field()[name]
    return _number(fields.get(name, column.of_absent), name, place, column)


def _label(fields: Mapping[str, object], name: str, place: str) -> str:
    """A short string; an integer is accepted where it is an id."""
    value = fields.get(name, "")
    if name == "id" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not _is_encodable(value):
        raise RecordError(place, name, "not a string", "give a string", type(value).__name__)
    return value


def _wrapper(fields: Mapping[str, object], place: str) -> str:
    value = fields.get("wrapper", "sft")
    if not isinstance(value, str) or value not in WRAPPERS:
        known = " or ".join(f'"{name}"' for name in WRAPPERS)
        raise RecordError(place, "wrapper", "unknown wrapper", f"use {known}", repr(value)[:40])
    return value


def _as_lists(value: object) -> object:
    return [_as_lists(item) for item in value] if isinstance(value, tuple) else value
