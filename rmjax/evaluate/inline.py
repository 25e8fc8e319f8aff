"""A report as the value of a notebook's cell."""

import dataclasses
import html
from collections.abc import Mapping

from rmjax.evaluate import page
from rmjax.evaluate.plots import Curve
from rmjax.evaluate.table import Report, table


@dataclasses.dataclass(frozen=True)
class Shown:
    """A report's page in a frame, so that neither page nor notebook takes the other's style.

    Attributes:
      page: HTML.
      height: of the frame, in pixels.
    """

    page: str = dataclasses.field(repr=False)
    height: int = 640

    def _repr_html_(self) -> str:
        style = f"width: 100%; height: {self.height}px; border: 0; background: Canvas"
        return f'<iframe srcdoc="{html.escape(self.page)}" style="{style}"></iframe>'


def show_report(report: Report, runs: Mapping[str, Mapping[str, Curve]] | None = None, height: int = 640) -> Shown:
    """The page that `write_report` writes, for a notebook: the last value of a cell is shown below it.

    Args:
      report, runs: as of `write_report`.
      height: of the frame, in pixels; what is longer scrolls.
    """
    return Shown(page.render(report, table(report), runs or {}), height)
