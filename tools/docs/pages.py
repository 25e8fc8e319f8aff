"""The Markdown pages of the project, and what stands in them: blocks of code, commands, links, anchors."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
_MARK = re.compile(r"<!-- (not run|said by): (.+?) -->\s*\Z", re.S)


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
      page: the file.
      line: of its first line of code, from 1.
      language: what stands behind the fence, `""` where nothing does or where the block is indented.
      text: the code.
      mark: of the comment before it, `<!-- not run: REASON -->` or `<!-- said by: NAME -->`: what stands before the colon;
        `""` where there is no such comment.
      note: what stands behind it.
    """

    page: Path
    line: int
    language: str
    text: str
    mark: str = ""
    note: str = ""

    @property
    def place(self) -> str:
        """FILE:LINE."""
        return f"{shown(self.page)}:{self.line}"


def shown(page: Path) -> str:
    """The path as it is from the root of the checkout."""
    return page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else page.as_posix()


def all_pages(root: Path = ROOT) -> list[Path]:
    """README and its like first, then what is in docs/."""
    return [root / name for name in TOP] + sorted((root / "docs").rglob("*.md"))


def _tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def blocks(page: Path) -> list[Block]:
    """Fenced and indented blocks in their order."""
    found, marks = [], ("", "")
    for token in _tokens(page):
        if token.type in ("fence", "code_block"):
            line = (token.map or [0])[0] + (2 if token.type == "fence" else 1)
            found.append(Block(page, line, token.info.strip(), token.content, *marks))
        mark = _MARK.search(token.content) if token.type == "html_block" else None
        marks = (mark[1], " ".join(mark[2].split())) if mark else ("", "")
    return found


def inline_code(page: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every piece of code within a sentence."""
    for line, token in _inline(page):
        if token.type == "code_inline":
            yield line, token.content


def links(page: Path) -> Iterator[tuple[int, str]]:
    """Line and target of every link and picture."""
    for line, token in _inline(page):
        for name in ("href", "src"):
            if isinstance(target := token.attrGet(name), str):
                yield line, target


def _inline(page: Path) -> Iterator[tuple[int, Token]]:
    for token in _tokens(page):
        for child in token.children or ():
            yield (token.map or [0])[0] + 1, child


def anchors(page: Path) -> set[str]:
    """What `#…` may name in a page: GitHub's names of its headings."""
    found, seen, tokens = set(), Counter[str](), _tokens(page)
    for opening, content in zip(tokens, tokens[1:], strict=False):
        if opening.type == "heading_open":
            name = slug("".join(child.content for child in content.children or ()))
            found.add(f"{name}-{seen[name]}" if seen[name] else name)
            seen[name] += 1
    return found


def slug(heading: str) -> str:
    """A heading's anchor, by GitHub's rule."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
