"""Other people's layouts of rows, recognized and turned into records.

`--layout=auto` looks at a file's first row; nothing is guessed row by row. To add a layout, write how a row is recognized and
what it becomes, and list it in one of the modules here; docs/data.md has a line for each.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping

import numpy as np

from rmjax.data.errors import RecordError
from rmjax.data.layouts import benchmarks, preferences, trainers
from rmjax.data.layouts.layout import Fields as Fields
from rmjax.data.layouts.layout import Layout as Layout
from rmjax.data.layouts.layout import Outcome, Placed, ReadRow
from rmjax.data.rows import Rows

RECORDS, AUTO = "records", "auto"
LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout for layout in (*benchmarks.LAYOUTS, *preferences.LAYOUTS, *trainers.LAYOUTS)
}
"""Name → layout, the most particular ones first. What none of them takes is our own: `records`."""
NAMES = (AUTO, RECORDS, *LAYOUTS)
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Reshaped:
    """Rows of another layout as rows of ours, held in memory; what is broken raises its error when it is asked for.

    For layouts that join several rows; those of the others are `Converted` at each access.

    Attributes:
      layout: its name.
      found: place and row, or the error of what was there.
      blank_lines: of the file.
      ignored: field of the file's rows → in how many of them the layout does not read it.
    """

    layout: str
    found: list[Outcome]
    blank_lines: int = 0
    ignored: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.found)

    def place(self, i: int) -> str:
        return self.found[i][0]

    def row(self, i: int) -> object:
        row = self.found[i][1]
        if isinstance(row, RecordError):
            raise row
        return row


@dataclasses.dataclass(frozen=True)
class Converted:
    """Rows of another layout as rows of ours, made at each access.

    Attributes:
      rows: of the file.
      starts: [S + 1] number of the first of our rows that each of the file's becomes (one broken row is one), and of all.
      ignored: field of the file's rows → in how many of them the layout does not read it.
    """

    layout: Layout
    rows: Rows
    starts: np.ndarray
    ignored: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def blank_lines(self) -> int:
        """Lines that are no rows."""
        return getattr(self.rows, "blank_lines", 0)

    def place(self, i: int) -> str:
        return self.rows.place(self._of(i))

    def row(self, i: int) -> object:
        number = self._of(i)
        return _made(self.rows, number, self.layout, Counter())[i - int(self.starts[number])]

    def _of(self, i: int) -> int:
        return int(np.searchsorted(self.starts, i, side="right")) - 1


def recognized(row: object) -> str:
    """The name of the layout that a row is of; `records` where it is of none."""
    return next((name for name, layout in LAYOUTS.items() if layout.takes(row)), RECORDS)


def reshaped(rows: Rows, path: str, layout: str = AUTO) -> Rows:
    """The rows as they are read, in our layout.

    What they were taken for is said once, as a warning, so that it is on the terminal.

    Args:
      rows: of a file.
      path: what messages name.
      layout: auto, records (as they are), or the name of one of `LAYOUTS`.

    Raises:
      ValueError: there is no such layout.
    """
    if layout not in NAMES:
        raise ValueError(f"layout is {layout!r}; choose {', '.join(NAMES)}")
    if layout == AUTO:
        layout = recognized(_first(rows))
        if layout != RECORDS:
            _log.warning("%s: taken for %s (--layout=%s); --layout=records reads its rows as ours", path,
                         LAYOUTS[layout].says, layout)  # fmt: skip
    if layout == RECORDS:
        return rows
    chosen = LAYOUTS[layout]
    found: Reshaped | Converted = convert(rows, chosen) if chosen.join else _converted(rows, chosen)
    if len(rows) and not len(found):
        raise RecordError(
            path,
            "",
            f"none of its {len(rows)} rows gives a record ({chosen.says})",
            "check the file, or name its layout",
        )
    _say_ignored(path, chosen, found.ignored, len(rows))
    return found


def _say_ignored(path: str, layout: Layout, ignored: Mapping[str, int], total: int) -> None:
    if ignored:
        names = ", ".join(f"`{name}` in {count} of {total} rows" for name, count in sorted(ignored.items()))
        _log.warning("%s: fields that are not read as %s: %s", path, layout.says, names)


def _converted(rows: Rows, layout: Layout) -> Converted:
    starts, ignored = np.zeros(len(rows) + 1, np.int64), Counter[str]()
    for i in range(len(rows)):
        try:
            starts[i + 1] = len(_made(rows, i, layout, ignored))
        except RecordError:
            starts[i + 1] = 1
    return Converted(layout, rows, starts.cumsum(), dict(ignored))


def _made(rows: Rows, i: int, layout: Layout, ignored: Counter[str]) -> list[Fields]:
    row, place = rows.row(i), rows.place(i)
    _require(row, layout, place)
    read = ReadRow(row)  # type: ignore[arg-type]  # an object
    made = layout.convert(read, place)
    ignored.update(read.left)
    return made


def _first(rows: Rows) -> object:
    """The first row that can be decoded."""
    for i in range(len(rows)):
        try:
            return rows.row(i)
        except RecordError:
            continue
    return None


def convert(rows: Rows, layout: Layout) -> Reshaped:
    """Every row by a layout; errors stay at their rows' places."""
    good: list[Placed] = []
    found: list[Outcome] = []
    ignored = Counter[str]()
    for i in range(len(rows)):
        place = rows.place(i)
        try:
            made = [(place, each) for each in _made(rows, i, layout, ignored)]
            good += made
            found += made
        except RecordError as error:
            found.append((place, error))
    if layout.join:
        errors = [each for each in found if isinstance(each[1], RecordError)]
        found = [*errors, *layout.join(good)]
    return Reshaped(layout.name, found, getattr(rows, "blank_lines", 0), dict(ignored))


def _require(row: object, layout: Layout, place: str) -> None:
    if not isinstance(row, Mapping):
        raise RecordError(place, "", "not a JSON object", "write an object per row")
    if missing := sorted(layout.needs - row.keys()):
        problem = f"missing, and {layout.says} has it"
        raise RecordError(place, missing[0], problem, "get the file again, drop the row, or name another --layout")
    if not layout.fits(row):
        raise RecordError(place, "", f"not a row of {layout.says}", "drop it, or name another --layout")
