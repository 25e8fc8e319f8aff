"""Columns: facts of a record that travel with it. A column is declared once, here or by a user, before the data are opened.

It is then a field of the record's files (JSON lines, Parquet, ArrayRecord, TFDS), is carried by `Comparison`, `Tree` and
`Forest`, is cut over a mesh by its letters, and is read in an objective as `forest.NAME_AXES`:

    declare(Column("length_bonus", "RGN", doc="bonus of each candidate"))
    … forest.length_bonus_RGN …

R rows, T tokens, G groups (records) a row, N branches (candidates) a group.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import numpy as np

AXES = {
    "RG": "a number",
    "RGN": "one number per output",
    "RGNN": "a list per output, each with one number per output",
    "RT": "a list per output, with one number per token of that output",
}
"""Axes that a column can have → what a record's field holds."""
_DTYPES = ("float32", "int32")
_IN_FILES_BY_NAME = "\0"


@dataclasses.dataclass(frozen=True)
class Column:
    """A declaration.

    Raises:
      ValueError: axes or a dtype that do not exist, or a name that is no identifier.
    """

    name: str  # without the axes
    axes: str  # one of `AXES`
    dtype: str = "float32"  # of the batch: float32 | int32
    fill: float = 0.0  # where there is no group, branch, pair or token
    default: float | None = None  # of a record without the field; None: `fill`
    low: float = -math.inf  # smallest value of a record's field; `fill` is allowed as well, for "unknown"
    high: float = math.inf  # largest
    field: str = _IN_FILES_BY_NAME  # its name in records and files: that of the column unless given; empty: in none
    on_demand: bool = False  # in a batch only where `ForestShape.columns` names it
    doc: str = ""  # one line: meaning and unit

    def __post_init__(self) -> None:
        if self.axes not in AXES:
            raise ValueError(f"column {self.name!r} has axes {self.axes!r}; choose one of {', '.join(AXES)}")
        if self.dtype not in _DTYPES:
            raise ValueError(f"column {self.name!r} has dtype {self.dtype!r}; choose one of {', '.join(_DTYPES)}")
        if not self.name.isidentifier():
            raise ValueError(f"column {self.name!r} has no usable name; use letters, digits and underscores")
        if self.field == _IN_FILES_BY_NAME:
            object.__setattr__(self, "field", self.name)

    @property
    def full_name(self) -> str:
        """The name with its axes, as "weight_RG"."""
        return f"{self.name}_{self.axes}"

    @property
    def of_absent(self) -> float:
        """The value of a record without the field."""
        return self.fill if self.default is None else self.default

    def refuses(self, value: float) -> str | None:
        """Why a number of a record cannot stand in this column, or None."""
        if self.dtype == "int32" and not np.iinfo(np.int32).min <= value <= np.iinfo(np.int32).max:
            return "beyond 32 bits"
        if self.dtype == "float32" and abs(value) > float(np.finfo(np.float32).max) and value != self.fill:
            return "beyond the range of float32"
        if not self.low <= value <= self.high and value != self.fill:
            return "out of range"
        return None

    @property
    def range_text(self) -> str:
        """What numbers are allowed, for an error message."""
        kind = "an integer" if self.dtype == "int32" else "a number"
        if (self.low, self.high) == (-math.inf, math.inf):
            return f"{kind} of 32 bits"
        if self.high == math.inf:
            return f"{kind} >= {self.low:g}"
        return f"{kind} from {self.low:g} to {self.high:g}"

    def array(self, rows: int, row_tokens: int, groups: int, branches: int) -> np.ndarray:
        """The column of an empty batch."""
        sizes = {"R": rows, "T": row_tokens, "G": groups, "N": branches}
        return np.full([sizes[letter] for letter in self.axes], self.fill, self.dtype)


_declared: dict[str, Column] = {}
_reserved: set[str] = set()


def declared() -> Mapping[str, Column]:
    """All columns by full name, in the order of their declaration."""
    return MappingProxyType(_declared)


def declare(column: Column) -> Column:
    """Makes the column known everywhere; the same declaration again changes nothing.

    Raises:
      ValueError: another column has this full name, or this field of the record; or the field is one of a record's own.
    """
    known = _declared.get(column.full_name)
    if known == column:
        return known
    if known is not None:
        raise ValueError(f"column {column.full_name} is declared already, differently; give it another name")
    taken = {other.field: name for name, other in _declared.items()} | dict.fromkeys(_reserved, "the record itself")
    if column.field and column.field in taken:
        raise ValueError(
            f"column {column.full_name} is read from field `{column.field}`, which belongs to {taken[column.field]}; "
            "give it another `field`"
        )
    _declared[column.full_name] = column
    return column


@contextmanager
def declaring(*columns: Column) -> Iterator[None]:
    """Declares columns for the length of a block, as tests and notebooks need it."""
    new = [column for column in columns if column.full_name not in _declared]
    try:
        for column in columns:
            declare(column)
        yield
    finally:
        for column in new:
            _declared.pop(column.full_name, None)


def by_field() -> dict[str, Column]:
    """The declared columns that records and files have, by their name there."""
    return {column.field: column for column in _declared.values() if column.field}


def extra() -> dict[str, Column]:
    """Those of `by_field` that are no attribute of a record: a record keeps them in its mapping `columns`."""
    return {field: column for field, column in by_field().items() if field not in _reserved}


def reserve(fields: Iterable[str]) -> None:
    """Names of fields that a record has by itself; no further column may be read from them.

    Raises:
      ValueError: a column that was declared before is read from one of them.
    """
    _reserved.update(fields)
    for field, column in by_field().items():
        if field in _reserved and not is_built_in(column):
            raise ValueError(
                f"column {column.full_name} is read from field `{field}` of the record itself; rename its field"
            )


def is_built_in(column: Column) -> bool:
    """Whether rmjax itself declares the column."""
    return column.full_name in _BUILT_IN


_COLUMNS = (
    Column("ranks", "RGN", fill=math.inf, doc="smaller is better, inf = unknown or absent"),
    Column("weight", "RG", default=1.0, low=0.0, doc="factor on the loss"),
    Column("margin", "RG", doc="subtracted from the difference of rewards, in units of reward"),
    Column("type", "RG", "int32", fill=-1, doc="the record's type label, −1 = none"),
    Column("target", "RT", "int32", field="", doc="next token of the same path (language-model losses)"),
    Column("target_weight", "RT", field="", doc="0 where nothing is to be predicted"),
    Column(
        "target", "RGNN", fill=-1.0, low=0.0, high=1.0, field="pair_target", on_demand=True,
        doc="probability that candidate i is better than j, −1 = unknown",
    ),
    Column("weight", "RGNN", default=1.0, low=0.0, field="pair_weight", on_demand=True, doc="factor on a pair's loss"),
    Column(
        "margin", "RGNN", field="pair_margin", on_demand=True,
        doc="of pair i better than j, beside that of the group; −(that of j better than i)",
    ),
    Column(
        "flipped", "RG", fill=-1.0, low=0.0, high=1.0, on_demand=True,
        doc="1 where the order was turned round on purpose, −1 = unknown",
    ),
    Column("discard", "RG", field="", on_demand=True, doc="fraction of a batch's pairs that are to be left out, 0 to 0.5"),
    Column("score", "RGN", fill=math.inf, field="scores", on_demand=True, doc="as annotated, any unit; inf = unknown or absent"),
    *(
        Column(name, "RGNN", fill=fill, field=f"pair_{name}", on_demand=True, doc=f"{doc}, by vote models {how}")
        for prefix, how in (("", "that learned from the record"), ("cross_", "that did not"))
        for name, fill, doc in (
            (f"{prefix}votes", 0.5, "fraction that prefers candidate i to j"),
            (f"{prefix}strength", 0.0, "mean difference of rewards of i and j"),
            (f"{prefix}deviation", 0.0, "standard deviation of these differences"),
        )
    ),
    Column("reward", "RGN", field="rewards", on_demand=True, doc="of a policy's answer, in any unit"),
    Column("advantage", "RGN", field="advantages", on_demand=True, doc="of a policy's answer, in any unit"),
    Column("truncated", "RGN", low=0.0, high=1.0, on_demand=True, doc="1 where an answer was cut off before its end"),
    Column(
        "sampled", "RT", "int32", low=0, field="token_ids", on_demand=True,
        doc="an answer's tokens as the policy drew them, its end token included",
    ),
    Column("trained", "RT", low=0.0, high=1.0, field="loss_mask", on_demand=True, doc="0 where the policy did not write"),
    Column("behavior", "RT", field="log_probs", on_demand=True, doc="log-probability as the sampler gave it, in nats"),
    Column("old", "RT", field="old_log_probs", on_demand=True, doc="the same, by the trainer before its first step on it"),
    Column("reference", "RT", field="reference_log_probs", on_demand=True, doc="the same, of the reference policy"),
    Column("value", "RT", field="values", on_demand=True, doc="a critic's, of the text before the token, in units of reward"),
)  # fmt: skip
_BUILT_IN = frozenset(column.full_name for column in _COLUMNS)
for _column in _COLUMNS:
    declare(_column)
