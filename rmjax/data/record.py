"""The one record type: a prompt, its candidates, and whatever is known of their order.

Rows of text corpora, of policy pools and of a sampler's prompts are read by the same functions, with the same checks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from rmjax.data import fields as fields_of_row
from rmjax.data.columns import number as _number
from rmjax.data.columns import numbers as _number_list
from rmjax.data.columns import parse_columns, selected
from rmjax.data.errors import RecordError as RecordError
from rmjax.data.fields import given, label, named, one_of
from rmjax.data.messages import USER, as_value
from rmjax.data.texts import Notes, copied_prompts, message_list, read_answer, read_text, split_answer, without_answer
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

    A text is a string. One that was given as messages is a `messages.Conversation`: the string of
    their contents joined by newlines, which keeps them; `messages.messages_of` gives any text's.
    """

    prompt: str  # one message of the user's unless it is a conversation
    outputs: tuple[str, ...]  # N >= 1 candidates, of the assistant
    references: tuple[str, ...] = ()  # zero, one or several
    ranks: tuple[float, ...] | None = None  # N values, smaller is better, equal is a tie
    scores: tuple[float, ...] | None = None  # N values, absolute quality, larger is better
    votes: tuple[tuple[float, ...], ...] | None = None  # M voters x N outputs, larger is better
    policies: tuple[str, ...] | None = None  # N names: who wrote each output
    category: str | None = None
    source: str | None = None  # data set name
    type: int | None = None  # type label of the record
    wrapper: str = "sft"  # "sft" or "pretrain" (POLAR)
    weight: float = 1.0  # factor on the loss, >= 0
    margin: float = 0.0  # in units of reward
    id: str = ""
    place: str = ""  # "file.jsonl:17", for error messages
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    """Further declared columns that the record has, by field name: numbers, and tuples of them per output, pair or token."""


def parse(row: Mapping[str, object], place: str, notes: Notes | None = None, *, blank: bool = False) -> Comparison:
    """Validates a row and turns it into a `Comparison`.

    The prompt is `prompt` or `messages`. A text is a string or a list of messages
    (`{"role", "content"}` and what a chat template may read beside them); one list of messages is
    always one text. References are `reference` (one text) or `references` (a list of texts). Candidates
    are given in exactly one form:

    * `chosen` and `rejected`, each one text or a list of texts: ranks 0 and 1;
    * `output`: a single candidate, no order;
    * `outputs` with one of `best` (index: rank 0, all others 1) or `ranks`, or with neither.

    `scores` are kept, and give the ranks where nothing else does. A candidate or reference that
    begins with a copy of the prompt's messages (as in HH) loses them; a prompt that ends with one
    of its answers loses that. A field that is None counts as absent, and so does a `reference`
    that is "". A `type` that is no integer of 32 bits is ignored, and so are fields that are not in `FIELDS`;
    see `unknown_fields`.

    Args:
      row: field name to value, as decoded from JSON.
      place: "file:line", used in error messages and kept in the record.
      notes: counts what was taken off, is ignored, or is kept for chat templates only.
      blank: whether a candidate may be empty: a policy may say nothing.

    Raises:
      RecordError: a missing, empty (no characters but white space) or ill-typed field; a candidate
        that begins with turns of another prompt; `best` out of range; lengths that differ; NaN or
        infinity; an unknown wrapper; identical candidates with different ranks.
    """
    fields = given(row, place, FIELDS)
    prompt_field = one_of(fields, (("messages",), ("prompt",)), row, place, FIELDS)[0]
    prompt = read_text(fields[prompt_field], USER, place, prompt_field, notes)
    form = one_of(fields, _FORMS, row, place, FIELDS)
    outputs = _candidates(fields, form, prompt, place, notes, blank)
    references = _references(fields, prompt, place, notes)
    prompt = without_answer(prompt, (*outputs, *references), notes)
    scores = _numbers(fields, "scores", len(outputs), place)
    ranks = _ranks(fields, form, len(outputs), place)
    if ranks is None and scores is not None:
        ranks = ranks_from_scores(scores)
    _refuse_contradiction(outputs, ranks, form[-1], place)
    found = Comparison(
        prompt=prompt,
        outputs=outputs,
        references=references,
        ranks=ranks,
        scores=scores,
        votes=_votes(fields, len(outputs), place),
        policies=_policies(fields, len(outputs), place),
        place=place,
        columns=parse_columns(row, len(outputs), place),
        **_facts(fields, place, notes),  # type: ignore[arg-type]
    )
    if notes is not None:
        notes.update(_contradictions(found))
        notes.update(copied_prompts(prompt, outputs))
    return found


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


def parse_text(row: Mapping[str, object], place: str, notes: Notes | None = None) -> Comparison:
    """A row of a text corpus: a record with one `output` and a `prompt` that may be absent or "".

    `messages` alone are a conversation whose last turns, the assistant's, are the output.

    Raises:
      RecordError: as `parse`; or several candidates.
    """
    fields = given(row, place, FIELDS)
    if "output" not in fields and "messages" in fields and not {"chosen", "outputs"} & fields.keys():
        prompt_field, output_field = "messages", "messages"
        asked: object
        said: object
        asked, said = split_answer(fields["messages"], place, "messages")
    else:
        prompt_field = "messages" if "messages" in fields else "prompt"
        asked, output_field = fields.get(prompt_field, ""), one_of(fields, _FORMS, row, place, FIELDS)[0]
        outputs = [value for _, value in _named_texts(fields[output_field], output_field, place)]
        if output_field == "chosen" or len(outputs) > 1:
            raise RecordError(
                place, output_field, "several candidates", "a text has one `output` and, if need be, `prompt`"
            )
        said = outputs[0]
    prompt = read_text(asked or "", USER, place, prompt_field, notes, blank=True)
    output = read_answer(said, prompt, place, output_field, notes)
    found = parse_columns(row, 1, place)
    return Comparison(prompt, (output,), place=place, columns=found, **_facts(fields, place, notes))  # type: ignore[arg-type]


def require_order(comparison: Comparison) -> None:
    """Raises RecordError unless at least two candidates are ranked differently."""
    remedy = (
        "give chosen and rejected, or outputs with best, ranks or scores; docs/data.md, Other layouts, has examples"
    )
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
        problem = "missing or not an integer of 32 bits, and the balancing constraint needs it"
        raise RecordError(place, "type", problem, f"give {_range(types)}")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < types:
        raise RecordError(
            place, "type", "out of range", f"give {_range(types)}, or set adapter.expert_types", repr(value)
        )


def type_label(fields: Mapping[str, object], notes: Notes | None = None) -> int | None:
    """A row's `type`; None where it has none that is an integer of 32 bits.

    Many files have a `type` that means something else, so another value is counted in `notes` and ignored; `require_type` says
    so where one is needed.
    """
    value = fields.get("type")
    if isinstance(value, int) and not isinstance(value, bool) and columns.by_field()["type"].refuses(value) is None:
        return value
    if value is not None and notes is not None:
        notes["`type` ignored, since it is not an integer of 32 bits; only the balancing constraint reads it"] += 1
    return None


def _range(types: int) -> str:
    return " or ".join(map(str, range(types))) if types <= 3 else f"0 to {types - 1}"


def unknown_fields(row: Mapping[str, object]) -> list[str]:
    """The names in a row that `parse` ignores, sorted."""
    return fields_of_row.unknown(row, known_fields())


def known_fields() -> frozenset[str]:
    """The names that `parse` reads, declared columns among them."""
    return FIELDS.union(columns.by_field())


def nearest_field(name: str) -> str | None:
    """The accepted field that `name` was probably meant to be, or None."""
    return fields_of_row.nearest(name, known_fields())


def scores_contradict(comparison: Comparison) -> bool:
    """Whether a record's scores order two of its outputs against their ranks."""
    if comparison.ranks is None or comparison.scores is None:
        return False
    known = list(zip(comparison.ranks, comparison.scores, strict=True))
    return any(rank < other and score < its for rank, score in known for other, its in known)


def _contradictions(c: Comparison) -> list[str]:
    """Notes on what else of the record orders two of its outputs against their ranks (scores apart: `scores_contradict`)."""
    if c.ranks is None:
        return []
    found = []
    pairs = [(i, j) for i, a in enumerate(c.ranks) for j, b in enumerate(c.ranks) if a < b]
    if c.votes and any(sum((v[i] > v[j]) - (v[i] < v[j]) for v in c.votes) < 0 for i, j in pairs):
        found.append("the majority of `votes` contradicts the order that is given; loss.order says which counts")
    targets = c.columns.get("pair_target")
    if targets and any(0 <= targets[i][j] < 0.5 for i, j in pairs):
        found.append("`pair_target` contradicts the order that is given; loss.order says which counts")
    return found


def ranks_from_scores(scores: Sequence[float]) -> tuple[float, ...]:
    """Dense ranks 0, 1, 2, … by descending score; equal scores share a rank."""
    order = {score: rank for rank, score in enumerate(sorted(set(scores), reverse=True))}
    return tuple(float(order[score]) for score in scores)


def _candidates(
    fields: Mapping[str, object], form: tuple[str, ...], prompt: str, place: str, notes: Notes | None, blank: bool
) -> tuple[str, ...]:
    named = [pair for name in form for pair in _named_texts(fields[name], name, place)]
    return tuple(read_answer(value, prompt, place, field, notes, blank) for field, value in named)


def _named_texts(value: object, name: str, place: str) -> list[tuple[str, object]]:
    """Splits `outputs` and lists of `chosen` or `rejected` into (field name with index, text) pairs."""
    is_list = isinstance(value, list | tuple) and message_list(value) is None
    if name == "outputs" and not is_list:
        raise RecordError(place, name, "not a list of texts", "use `output` for one candidate")
    if name not in ("outputs", "chosen", "rejected") or not is_list:
        return [(name, value)]
    values = list(value)  # type: ignore[call-overload]
    if not values:
        raise RecordError(place, name, "empty list", "give at least one candidate")
    return [(f"{name}[{i}]", item) for i, item in enumerate(values)]


def _references(fields: Mapping[str, object], prompt: str, place: str, notes: Notes | None) -> tuple[str, ...]:
    one = fields.get("reference")
    if "reference" in fields and "references" in fields:
        problem = "`reference` and `references` exclude each other"
        raise RecordError(place, "references", problem, "keep one of them")
    if isinstance(one, str) and not one.strip():
        return ()
    if one is not None:
        return (read_answer(one, prompt, place, "reference", notes),)
    values = fields.get("references", ())
    if not isinstance(values, list | tuple) or message_list(values) is not None:
        raise RecordError(place, "references", "not a list of texts", "use `reference` for one")
    return tuple(read_answer(v, prompt, place, f"references[{i}]", notes) for i, v in enumerate(values))


def _ranks(fields: Mapping[str, object], form: tuple[str, ...], count: int, place: str) -> tuple[float, ...] | None:
    given = [name for name in ("best", "ranks") if name in fields]
    if form == ("chosen", "rejected"):
        given.insert(0, "chosen")
    if len(given) > 1:
        problem = f"`{given[0]}` and `{given[1]}` both give the order"
        raise RecordError(place, given[1], problem, "keep one of them")
    if given == ["chosen"]:
        chosen = len(_named_texts(fields["chosen"], "chosen", place))
        return (0.0,) * chosen + (1.0,) * (count - chosen)
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
    return tuple(named(name, f"policies[{i}]", place) for i, name in enumerate(names))


def _facts(fields: Mapping[str, object], place: str, notes: Notes | None) -> dict[str, object]:
    return {
        "category": label(fields, "category", place) or None,
        "source": label(fields, "source", place) or None,
        "type": type_label(fields, notes),
        "wrapper": _wrapper(fields, place),
        "weight": _fact(fields, "weight", place),
        "margin": _fact(fields, "margin", place),
        "id": label(fields, "id", place),
    }


def _fact(fields: Mapping[str, object], name: str, place: str) -> float:
    """A number per record that is a column with an attribute of its own."""
    column = columns.by_field()[name]
    return _number(fields.get(name, column.of_absent), name, place, column)


def _wrapper(fields: Mapping[str, object], place: str) -> str:
    value = fields.get("wrapper", "sft")
    if not isinstance(value, str) or value not in WRAPPERS:
        known = " or ".join(f'"{name}"' for name in WRAPPERS)
        raise RecordError(place, "wrapper", "unknown wrapper", f"use {known}", repr(value)[:40])
    return value


def _as_lists(value: object) -> object:
    if isinstance(value, tuple):
        return [_as_lists(item) for item in value]
    return as_value(value) if isinstance(value, str) else value
