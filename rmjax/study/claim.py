"""A claim: a study with the lines that are committed of it, and the page that is made of these lines."""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from rmjax.files import write_text
from rmjax.study.cells import leaves
from rmjax.study.page import differing, filled, left_out
from rmjax.study.study import Result, Study
from rmjax.study.summary import Line, read_summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_ABSENT = object()


def _no_report(results: Mapping[str, Result]) -> dict[str, Any]:
    """A claim without report.html."""
    return {}


def _no_figures(lines: Sequence[Line]) -> dict[str, "Figure"]:
    """A claim without figures."""
    return {}


FREE = r"root|peer|keep_checkpoints"
"""Keys that say where something lies, which interpreter is used, and what is kept: no number depends on them."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a study's folder gives.

    Attributes:
      study: what is run and measured.
      page: of the project, say docs/claims/polar.md. Markers of this claim begin with the study's name and a slash.
      free: keys of the study's config that may differ from its file where its results are published; a regular expression.
      elsewhere: marker's name, without the study's, → page, of the parts that stand on another one, say README.md.
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
    elsewhere: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    free: str = FREE

    @property
    def results(self) -> Path:
        """The committed file: docs/claims/polar/NAME.json for the page docs/claims/polar.md."""
        return self.page.with_suffix("") / f"{self.study.name}.json"


def refuse_changed(claim: Claim, given: ConfigDict, published: ConfigDict) -> None:
    """ValueError that names the keys by which a config is not the study's own: its numbers are not to be the claim's.

    Args:
      claim: whose numbers would be published.
      given: the config that it was made of.
      published: what the study's file gives for the same argument.
    """
    mine, theirs = leaves(given), leaves(published)
    keys = dict.fromkeys(
        key.partition("[")[0] for key in (*mine, *theirs) if mine.get(key, _ABSENT) != theirs.get(key, _ABSENT)
    )
    if changed := [f"config.{key}" for key in keys if not re.fullmatch(claim.free, key)]:
        raise ValueError(
            f"--publish with {', '.join(changed)} changed: the page would show another study's numbers; leave it out, or change "
            "the study's config.py"
        )


def made_parts(claim: Claim, root: Path) -> dict[Path, dict[str, str]]:
    """Page → marker's name → Markdown, from the committed results; errors as `read_summary`."""
    _, lines = read_summary(root / claim.results, claim.study.name)
    made: dict[Path, dict[str, str]] = {page: {} for page in (claim.page, *claim.elsewhere.values())}
    for name, text in claim.parts(lines).items():
        made[claim.elsewhere.get(name, claim.page)][f"{claim.study.name}/{name}"] = text
    return made


def write_page(claim: Claim, root: Path) -> dict[str, str]:
    """Writes the claim's parts of its pages, and its figures, from the committed results; gives the parts that no page shows.

    Args:
      claim: whose results are there.
      root: of the project.

    Raises:
      ValueError: a page lacks a marker, or the results are of another study; nothing is written.
      FileNotFoundError: there are no results, or there is no page.
    """
    made = made_parts(claim, root).items()
    texts = {page: filled(_text(root / page), parts, page, claim.study.name) for page, parts in made}
    for path, drawing in _drawings(claim, root).items():
        write_text(path, drawing)
    for page, text in texts.items():
        write_text(root / page, text)
    return {name: parts[name] for page, parts in made for name in left_out(texts[page], parts)}


def check_page(claim: Claim, root: Path) -> list[str]:
    """The markers between which a page does not say what the committed results say, and the figures that do not show it; errors
    as `write_page`. Figures have to be drawn by the matplotlib of constraints.txt: others set texts elsewhere."""
    return [*check_parts(claim, root), *check_figures(claim, root)]


def check_parts(claim: Claim, root: Path) -> list[str]:
    """The markers of `check_page`."""
    made = made_parts(claim, root).items()
    found = [differing(_text(root / page), parts, page, claim.study.name) for page, parts in made]
    return [name for each in found for name in each]


def check_figures(claim: Claim, root: Path) -> list[str]:
    """The figures of `check_page`, by the names of their files."""
    from rmjax.study.figures import alike

    made = _drawings(claim, root).items()
    return [path.name for path, drawing in made if not path.is_file() or not alike(_text(path), drawing)]


def _drawings(claim: Claim, root: Path) -> dict[Path, str]:
    """Committed file → what it should be."""
    _, lines = read_summary(root / claim.results, claim.study.name)
    figures = claim.figures(lines)
    if not figures:
        return {}
    from rmjax.evaluate.plots import svg

    folder = (root / claim.results).parent
    return {folder / f"{stem}.svg": svg(each, f"{claim.study.name}: {stem}") for stem, each in figures.items()}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def about(config: Any, command: str, found: Mapping[str, Result]) -> dict[str, Any]:
    """What makes a claim's numbers again: its command, the config, and where its cells ran."""
    where = [dict(result.where) for result in found.values() if result.where]
    alike = where[0] if where and all(each == where[0] for each in where) else {"cells": where}
    return {"command": command, "config": json.loads(config.to_json_best_effort()), **alike}
