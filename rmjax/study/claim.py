"""A claim: a study with the lines that are committed of it, and the page that is made of these lines."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmjax.files import write_text
from rmjax.study.page import differing, filled
from rmjax.study.study import Result, Study
from rmjax.study.summary import Line, read_summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _no_report(results: Mapping[str, Result]) -> dict[str, Any]:
    """A claim without report.html."""
    return {}


def _no_figures(lines: Sequence[Line]) -> dict[str, "Figure"]:
    """A claim without figures."""
    return {}


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a study's folder gives.

    Attributes:
      study: what is run and measured.
      page: of the project, say docs/claims/polar.md. Markers of this claim begin with the study's name and a slash.
      summarize: name → result of every cell → the lines that are committed.
      parts: lines → marker's name, without the study's, → Markdown.
      figures: lines → stem of the file → figure, beside the results.
      report: results → what report.html in the study's folder shows, as `rmjax.evaluate.report`; nothing for none.
    """

    study: Study
    page: Path
    summarize: Callable[[Mapping[str, Result]], Sequence[Line]]
    parts: Callable[[Sequence[Line]], Mapping[str, str]]
    figures: Callable[[Sequence[Line]], Mapping[str, "Figure"]] = _no_figures
    report: Callable[[Mapping[str, Result]], dict[str, Any]] = _no_report

    @property
    def results(self) -> Path:
        """The committed file: docs/claims/polar/NAME.json for the page docs/claims/polar.md."""
        return self.page.with_suffix("") / f"{self.study.name}.json"


def made_parts(claim: Claim, root: Path) -> dict[str, str]:
    """Marker's name → Markdown, from the committed results; errors as `read_summary`."""
    _, lines = read_summary(root / claim.results, claim.study.name)
    return {f"{claim.study.name}/{name}": text for name, text in claim.parts(lines).items()}


def write_page(claim: Claim, root: Path) -> None:
    """Writes the claim's parts of its page, and its figures, from the committed results.

    Args:
      claim: whose results are there.
      root: of the project.

    Raises:
      ValueError: the page lacks a marker, or the results are of another study.
      FileNotFoundError: there are no results, or there is no page.
    """
    from rmjax.evaluate.plots import svg

    path = root / claim.page
    text = filled(path.read_text(encoding="utf-8"), made_parts(claim, root), claim.page, claim.study.name)
    _, lines = read_summary(root / claim.results, claim.study.name)
    for stem, figure in claim.figures(lines).items():
        write_text((root / claim.results).with_name(f"{stem}.svg"), svg(figure, f"{claim.study.name}: {stem}"))
    write_text(path, text)


def check_page(claim: Claim, root: Path) -> list[str]:
    """The markers between which the page does not say what the committed results say; errors as `write_page`."""
    text = (root / claim.page).read_text(encoding="utf-8")
    return differing(text, made_parts(claim, root), claim.page, claim.study.name)


def about(config: Any, command: str, found: Mapping[str, Result]) -> dict[str, Any]:
    """What makes a claim's numbers again: its command, the config, and where its cells ran."""
    where = [dict(result.where) for result in found.values() if result.where]
    alike = where[0] if where and all(each == where[0] for each in where) else {"cells": where}
    return {"command": command, "config": json.loads(config.to_json_best_effort()), **alike}
