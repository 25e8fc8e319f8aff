"""A claim: a study with the lines that are committed of it, and the page that is made of these lines."""

import dataclasses
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from rmjax.files import write_text
from rmjax.study.cells import leaves
from rmjax.study.page import differing, filled, left_out, marked
from rmjax.study.study import Result, Study
from rmjax.study.summary import Line, read_summary, write_summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_ABSENT = object()
_FIGURE = re.compile(r"\]\(([^)]+\.svg)\)")


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
      shown: markers' names, without the study's, of the parts that the pages have to show; None: all. The others may be left to
        the results.
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
    shown: Collection[str] | None = None

    @property
    def details(self) -> Path:
        """A page for what its own, of one screen, has no room for, as docs/claims/polar/details.md. There need not be one; where
        it has the marker of a part, the part stands there."""
        return self.page.with_suffix("") / "details.md"

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


def refuse_unready(claim: Claim, root: Path) -> None:
    """Whether what the study will give can be published, as far as that is known before it runs.

    Raises:
      FileNotFoundError: there is no page.
      ValueError: a page lacks a marker.
    """
    if (root / claim.results).is_file():
        _pages(claim, root, _committed(claim, root))
        return
    for page in (claim.page, *claim.elsewhere.values()):
        there = marked(_page(root, page), page, claim.study.name)
        there += _in_details(claim, root) if page == claim.page else []
        known = [
            name for name in (*(claim.shown or ()), *claim.elsewhere) if claim.elsewhere.get(name, claim.page) == page
        ]
        missing = [name for name in (f"{claim.study.name}/{each}" for each in known) if name not in there]
        if missing or not there:
            raise ValueError(_no_place(page, missing or [f"{claim.study.name}/NAME"]))


def _no_place(page: Path, missing: Sequence[str]) -> str:
    return f"{page} has no place for {', '.join(missing)}; add <!-- made: {missing[0]} --> and its end"


def _page(root: Path, page: Path) -> str:
    if not (root / page).is_file():
        raise FileNotFoundError(
            f"{page} is not there; run this in the project's folder, or make the page with its markers"
        )
    return _text(root / page)


def _committed(claim: Claim, root: Path) -> list[Line]:
    return read_summary(root / claim.results, claim.study.name)[1]


def made_parts(claim: Claim, root: Path, lines: Sequence[Line]) -> dict[Path, dict[str, str]]:
    """Page → marker's name → Markdown."""
    detailed = _in_details(claim, root)
    here = marked(_page(root, claim.page), claim.page, claim.study.name)
    rest = claim.details if detailed and not here else claim.page  # where a part without a marker is missed
    pages = (claim.page, *([claim.details] if detailed else []), *claim.elsewhere.values())
    made: dict[Path, dict[str, str]] = {page: {} for page in pages}
    for name, text in claim.parts(lines).items():
        marker = f"{claim.study.name}/{name}"
        made[claim.details if marker in detailed else claim.elsewhere.get(name, rest)][marker] = text
    return made


def _in_details(claim: Claim, root: Path) -> list[str]:
    """Markers' names on its page of details."""
    path = root / claim.details
    return marked(_text(path), claim.details, claim.study.name) if path.is_file() else []


def _pages(claim: Claim, root: Path, lines: Sequence[Line]) -> dict[Path, str]:
    """Page → its text with these lines' parts; ValueError where one has no place for what it has to show."""
    texts = {}
    for page, parts in made_parts(claim, root, lines).items():
        texts[page] = filled(_page(root, page), parts, page, claim.study.name)
        name_of = {name: name.removeprefix(f"{claim.study.name}/") for name in left_out(texts[page], parts)}
        if missing := [name for name, own in name_of.items() if claim.shown is None or own in claim.shown]:
            raise ValueError(_no_place(page, missing))
    return texts


def publish(claim: Claim, root: Path, about: Mapping[str, Any], lines: Sequence[Line]) -> dict[str, str]:
    """Puts the results where the pages have them, then as `write_page`; nothing is written where a page has no place."""
    _pages(claim, root, lines)
    (root / claim.results).parent.mkdir(parents=True, exist_ok=True)
    write_summary(root / claim.results, claim.study.name, about, lines)
    return write_page(claim, root)


def write_page(claim: Claim, root: Path) -> dict[str, str]:
    """Writes the claim's parts of its pages, and its figures, from the committed results; gives the parts that no page shows.

    Args:
      claim: whose results are there.
      root: of the project.

    Raises:
      ValueError: a page lacks a marker, or the results are of another study; nothing is written.
      FileNotFoundError: there are no results, or there is no page.
    """
    lines = _committed(claim, root)
    made, texts = made_parts(claim, root, lines).items(), _pages(claim, root, lines)
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
    lines = _committed(claim, root)
    _pages(claim, root, lines)
    made = made_parts(claim, root, lines).items()
    found = [differing(_text(root / page), parts, page, claim.study.name) for page, parts in made]
    return [name for each in found for name in each]


def check_figures(claim: Claim, root: Path) -> list[str]:
    """The figures of `check_page`, by the names of their files: those that show other numbers, or have no link on the page."""
    from rmjax.study.figures import alike

    made, linked = _drawings(claim, root).items(), _linked_figures(claim, root)
    wrong = [path.name for path, drawing in made if not path.is_file() or not alike(_text(path), drawing)]
    return wrong + [f"{path.name} (no link)" for path, _ in made if claim.results.parent / path.name not in linked]


def _linked_figures(claim: Claim, root: Path) -> set[Path]:
    """The figures that its page and its page of details link."""
    pages = [claim.page, *([claim.details] if (root / claim.details).is_file() else [])]
    return {page.parent / link for page in pages for link in _FIGURE.findall(_page(root, page))}


def _drawings(claim: Claim, root: Path) -> dict[Path, str]:
    """Committed file → what it should be."""
    figures = claim.figures(_committed(claim, root))
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
