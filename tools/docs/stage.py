"""Lays the pages out for the site builder, below build/docs: `python -m tools.docs.stage`.

The pages link to each other, and to other files, as GitHub wants it. A site has its pages in one folder: README, CONTRIBUTING and
CHANGELOG are put there too, files that pages link to are copied beside them, and links are changed to match. mkdocs.yml
names this folder, so any builder that reads mkdocs.yml can take over.
"""

import os
import shutil
import sys
from pathlib import Path

from tools.docs import api
from tools.docs.links import faults, links, navigation, staged
from tools.docs.pages import ROOT, all_pages, shown

STAGE = ROOT / "build/docs"
FILES = "files"
"""Folder of the files that pages link to and that do not lie in docs/."""


def stage(folder: Path = STAGE) -> list[str]:
    """Writes the folder anew.

    Returns:
      what keeps the site from being whole: dead links, and differences between the menu and the pages.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for page in all_pages():
        _write(folder / staged(page), _relinked(page, folder))
    written = api.pages()
    for name, text in written.items():
        _write(folder / name, text)
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*.md")}
    named = navigation()
    return [
        *faults(),
        *(f"mkdocs.yml names {name}, which is not there; correct the line" for name in named if name not in there),
        *(f"mkdocs.yml lacks {name}; add the line `- {name}`" for name in written if name not in named),
    ]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _relinked(page: Path, folder: Path) -> str:
    text = page.read_text(encoding="utf-8")
    for _, target in links(page):
        name, mark, anchor = target.partition("#")
        path = (page.parent / name).resolve()
        if name and path.is_relative_to(ROOT) and path.is_file():
            moved = os.path.relpath(folder / _place(path, folder), (folder / staged(page)).parent)
            text = text.replace(f"]({target})", f"]({moved}{mark}{anchor})")
    return text


def _place(path: Path, folder: Path) -> str:
    """Where a file that is linked to lies in the stage; copies it if it is no page."""
    if path in all_pages():
        return staged(path)
    name = shown(path)
    name = name.removeprefix("docs/") if name.startswith("docs/") else f"{FILES}/{name}"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, folder / name)
    return name


if __name__ == "__main__":
    if found := stage():
        sys.exit("\n".join(found))
