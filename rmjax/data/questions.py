"""Prompts that a policy is asked, with what its answers are rewarded by: records without outputs."""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rmjax.data.column_map import column_map
from rmjax.data.messages import as_value
from rmjax.data.readers import listed, read_all
from rmjax.data.record import Comparison, known_fields, parse
from rmjax.data.sources import Records, digest, located
from rmjax.data.texts import Notes
from rmjax.models.columns import extra

_OF_ANSWERS = frozenset({"chosen", "rejected", "output", "outputs", "best", "ranks", "scores", "votes", "policies"})


def parse_question(row: Mapping[str, object], place: str, notes: Notes | None = None) -> Comparison:
    """A row's prompt, references, id, category and what else it has that is not about answers; answers are not read.

    Raises:
      RecordError: as `rmjax.data.record.parse`.
    """
    about_answers = _OF_ANSWERS | {field for field, column in extra().items() if column.axes != "RG"}
    kept = {name: value for name, value in row.items() if name not in about_answers}
    found = parse({**kept, "output": ""}, place, notes, blank=True)
    return dataclasses.replace(found, outputs=())


def questions(data: Any, categories: str = "", section: str = "data") -> Records:
    """The prompts that a section names (`path`, `columns`, `layout`, `on_error`).

    Args:
      categories: a regular expression that a prompt's whole category must match; "" = all prompts.
      section: what the section is called in errors.

    Raises:
      OSError: the file cannot be read.
      RecordError: a row that cannot be used; with `on_error=skip` they are counted.
      ValueError: there is no prompt.
    """
    if not data.path:
        raise ValueError(f"config.{section}.path is empty; name a file of prompts")
    skipped: Counter[str] = Counter()
    found = read_all(
        located(data.path), parse_question, known_fields(), data.on_error, skipped, data.layout,
        column_map(data.columns),
    )  # fmt: skip
    if categories:
        other = [c for c in found if not re.fullmatch(categories, c.category or "")]
        found = [c for c in found if re.fullmatch(categories, c.category or "")]
        skipped["another category"] += len(other)
    if not found:
        raise ValueError(f"{data.path}: there is no prompt ({listed(+skipped) or 'no row'}); give one a row")
    return Records(
        found, lambda i: found[i].id or found[i].place, lambda: digest(map(_row, found)), set, lambda: found,
        skipped=dict(+skipped),
    )  # fmt: skip


def _row(c: Comparison) -> list[Any]:
    texts = [as_value(text) for text in (c.prompt, *c.references)]
    return [c.id, *texts, c.category, c.type, c.weight, dict(c.columns)]
