"""Answers as outputs of a record."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rmjax.data.record import Comparison
from rmjax.models.columns import extra


def answered(record: Comparison, outputs: Sequence[str], policy: str, columns: Mapping[str, Any]) -> Comparison:
    """The record with these outputs in place of those of before, and of all that was known of them.

    Args:
      columns: of the new outputs, by field.
    """
    known = extra()
    kept = {name: value for name, value in record.columns.items() if known[name].axes == "RG"}
    return dataclasses.replace(
        record, outputs=tuple(outputs), policies=(policy,) * len(outputs), ranks=None, scores=None, votes=None,
        columns=kept | dict(columns),
    )  # fmt: skip
