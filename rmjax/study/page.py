"""Pages made of results: what stands between two markers is written from committed results, and `check` says what differs.

<!-- made: NAME -->
…
<!-- end: NAME -->
"""

import re
from collections.abc import Mapping
from pathlib import Path

_PART = re.compile(r"(<!-- made: (?P<name>[\w./-]+) -->)(?P<text>.*?)(<!-- end: (?P=name) -->)", re.DOTALL)

_MARKER = re.compile(r"<!-- (?:made|end): ([\w./-]+) -->")


def filled(page: str, parts: Mapping[str, str], place: Path, study: str) -> str:
    """The page with each part's text between its markers.

    Args:
      page: the text of a page.
      parts: marker's name → Markdown. Text that is short and without a line break stays on the markers' line. A page shows the
        parts that it has markers for: a long table may be left to the results.
      place: what the page is called in errors.
      study: whose parts these are: `study/NAME`. Other studies' markers stay as they are.

    Raises:
      ValueError: none of the parts has markers on the page, a marker is there twice or without its other one, or the study
        lacks the name of one.
    """
    there = marked(page, place, study)
    missing = left_out(page, parts)
    if parts and len(missing) == len(parts):
        raise ValueError(f"{place} has no place for {', '.join(missing)}; add <!-- made: {missing[0]} --> and its end")
    if unknown := [name for name in there if name not in parts]:
        raise ValueError(f"{place} has markers of {', '.join(unknown)}, which nothing makes; remove them")
    return _PART.sub(lambda match: _replaced(match, parts), page)


def marked(page: str, place: Path, study: str) -> list[str]:
    """Names of a study's parts that a page has a place for.

    Raises:
      ValueError: a marker is there twice or without its other one.
    """
    there = [match["name"] for match in _PART.finditer(page)]
    if broken := [name for name in set(_MARKER.findall(page)) if name.startswith(f"{study}/") and name not in there]:
        raise ValueError(
            f"{place} has only one of the two markers of {', '.join(sorted(broken))}; add the other, or remove it"
        )
    if twice := sorted({name for name in there if there.count(name) > 1}):
        raise ValueError(f"{place} has the markers of {', '.join(twice)} twice; keep one of them")
    return [name for name in there if name.startswith(f"{study}/")]


def left_out(page: str, parts: Mapping[str, str]) -> list[str]:
    """Names of the parts without markers on a page."""
    there = {match["name"] for match in _PART.finditer(page)}
    return [name for name in parts if name not in there]


def _replaced(match: re.Match[str], parts: Mapping[str, str]) -> str:
    name = match["name"]
    return match[1] + _between(parts[name]) + match[4] if name in parts else match[0]


def _between(text: str) -> str:
    text = text.strip("\n")
    return f"\n\n{text}\n\n" if "\n" in text else text


def differing(page: str, parts: Mapping[str, str], place: Path, study: str) -> list[str]:
    """Names of the parts that do not say what `parts` says: they were edited by hand, or the results are newer.

    Raises:
      ValueError: as `filled`.
    """
    wanted = {match["name"]: match["text"] for match in _PART.finditer(filled(page, parts, place, study))}
    return [match["name"] for match in _PART.finditer(page) if match["text"] != wanted[match["name"]]]
