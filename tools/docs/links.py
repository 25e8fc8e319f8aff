"""Links from page to page, to files of the repository, and to headings: `python -m tools.docs.links` lists the dead ones."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tools.docs.pages import ROOT, TOP, all_pages, anchors, links, shown

CONFIG = "mkdocs.yml"
INDEX = "index.md"
"""What README.md is called in the site."""


def dead_links(page: Path, root: Path = ROOT) -> Iterator[str]:
    """What is wrong with the links of a page. Other sites are not asked."""
    for line, target in links(page):
        if not target.startswith(("http://", "https://", "mailto:")) and (fault := _fault(page, target, root)):
            yield f"{shown(page)}:{line}: {fault}"


def _fault(page: Path, target: str, root: Path) -> str:
    name, _, anchor = target.partition("#")
    path = (page.parent / name).resolve() if name else page
    if name.startswith("/") or not path.is_relative_to(root):
        return f"{target} leaves the repository; give a path relative to the page"
    if not path.is_file():
        return f"{target} is no file; correct the link"
    if anchor and path.suffix != ".md":
        return f"{target} has an anchor, but only pages have those; leave it out"
    if anchor and anchor not in anchors(path):
        return f"{target}: {shown(path)} has no heading of that name; it has {', '.join(sorted(anchors(path)))}"
    return ""


def navigation(config: Path = ROOT / CONFIG) -> list[str]:
    """The pages that the site's menu names, in its order."""
    return list(_names(yaml.load(config.read_text(encoding="utf-8"), _Loader)["nav"]))


class _Loader(yaml.SafeLoader):
    """Reads what site builders write into mkdocs.yml; a Python name in it is only a name."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda loader, suffix, node: suffix)


def _names(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
        return
    for part in entry.values() if isinstance(entry, Mapping) else entry:
        yield from _names(part)


def staged(page: Path) -> str:
    """The path of a page below the site's folder of pages."""
    name = shown(page)
    return INDEX if name == "README.md" else name.lower() if name in TOP else name.removeprefix("docs/")


def missing_from_navigation() -> list[str]:
    """Pages that no line of the menu names."""
    named = set(navigation())
    return [
        f"{shown(page)}: the menu does not name it; add a line `- {staged(page)}` to {CONFIG}"
        for page in all_pages()
        if staged(page) not in named
    ]


def faults() -> list[str]:
    """All dead links, and pages that the menu lacks."""
    return [fault for page in all_pages() for fault in dead_links(page)] + missing_from_navigation()


if __name__ == "__main__":
    if found := faults():
        sys.exit("\n".join(found))
