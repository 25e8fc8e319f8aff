"""A policy's answers as trees that a policy gradient is taken on: the prompt once, every token of every answer trained.

Tokens are those that the policy drew (`token_ids`), or else its text encoded anew and closed by the format's end token. Answers
never share tokens, though they may begin alike: each has an advantage of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rmjax.data.formats import Encoder
from rmjax.data.packing import Tree
from rmjax.data.record import Comparison, RecordError
from rmjax.models.columns import extra

TOKENS, TRUNCATED, MASK = "token_ids", "truncated", "loss_mask"


class Answers(NamedTuple):
    """A record's token ids."""

    prompt: list[int]
    outputs: list[list[int]]  # none empty


def answers(encoder: Encoder, c: Comparison) -> Answers:
    """The tokens of a record.

    Raises:
      RecordError: an answer without a token, or an id that the vocabulary lacks.
    """
    prompt, given = encoder.begun(c.prompt), c.columns.get(TOKENS)
    encoded = (_encoded(encoder, c, n) for n in range(len(c.outputs)))
    outputs = [list(ids) for ids in (encoded if given is None else given)]
    for n, ids in enumerate(outputs):
        field = f"{'outputs' if given is None else TOKENS}[{n}]"
        if not ids:
            remedy = "set format.end_token, which ends an answer, or drop the record"
            raise RecordError(c.place, field, "no token to learn from", remedy)
        if max(ids) >= encoder.tokenizer.vocab_size:
            remedy = f"give ids below {encoder.tokenizer.vocab_size}, those of the policy's own tokenizer"
            raise RecordError(c.place, field, "an id that the vocabulary lacks", remedy, str(max(ids)))
    return Answers(prompt, outputs)


def _encoded(encoder: Encoder, c: Comparison, n: int) -> list[int]:
    ids = encoder.continued(c.prompt, c.outputs[n])[1] if c.outputs[n] else []
    cut_off = bool(c.columns.get(TRUNCATED, (0,) * len(c.outputs))[n])
    end = encoder.form.end_token
    return ids if cut_off or not end else [*ids, encoder.tokenizer.id(end)]


def per_token(c: Comparison, found: Answers, fields: Sequence[str]) -> dict[str, list[np.ndarray]]:
    """Full column name → one array an answer, of the fields that the record has.

    Raises:
      RecordError: a list of another length than the answer's tokens.
    """
    known, out = extra(), {}
    for field in fields:
        if field not in c.columns:
            continue
        for n, (ids, values) in enumerate(zip(found.outputs, c.columns[field], strict=True)):
            if len(values) != len(ids):
                raise RecordError(
                    c.place, f"{field}[{n}]", "length differs from the answer's tokens",
                    "give one number per token, the end token included, or the tokens themselves (token_ids)",
                    f"{len(values)} for {len(ids)} tokens",
                )  # fmt: skip
        out[known[field].full_name] = [np.asarray(values, known[field].dtype) for values in c.columns[field]]
    return out


def trees(
    found: Answers,
    tokens: Mapping[str, Sequence[np.ndarray]],
    numbers: Mapping[str, Sequence[float]],
    row_tokens: int,
    branches: int,
    **facts: Any,
) -> list[Tree]:
    """The answers in as few trees as rows and branches allow: what is known of an answer was made of its whole group before.

    Args:
      tokens: full column name → an array an answer, over its tokens.
      numbers: full column name → a number an answer.
      branches: answers a tree at most.
      facts: of every tree, such as `weight` and `record`.
    """
    size = [len(ids) for ids in found.outputs]
    parts: list[list[int]] = []
    for n in range(len(size)):
        last = parts[-1] if parts else []
        room = row_tokens - len(found.prompt) - sum(size[i] for i in last)
        if last and len(last) < branches and size[n] <= room:
            last.append(n)
        else:
            parts.append([n])
    return [_tree(found, part, tokens, numbers, facts) for part in parts]


def _tree(
    found: Answers,
    part: Sequence[int],
    tokens: Mapping[str, Sequence[np.ndarray]],
    numbers: Mapping[str, Sequence[float]],
    facts: Mapping[str, Any],
) -> Tree:
    before = np.zeros(len(found.prompt), np.float32)
    columns: dict[str, Any] = {
        name: [np.concatenate([before, values[n]]) for n in part] for name, values in tokens.items()
    }
    columns |= {name: [values[n] for n in part] for name, values in numbers.items()}
    outputs = tuple(np.asarray(found.outputs[n], np.int32) for n in part)
    return Tree(
        np.asarray(found.prompt, np.int32), outputs, np.full(len(part), np.inf, np.float32), columns=columns, **facts
    )
