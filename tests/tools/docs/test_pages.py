"""Blocks, links and anchors of a page."""

import pytest

from tools.docs.pages import all_pages, anchors, blocks, inline_code, links, slug

PAGE = """\
# A `b` c: what?

<!-- not run: it takes
an hour -->
```python
x = 1
```

Text with `code`, a [link](b.md#c) and ![picture](p.svg).

```bash
make test
```

    indented

| a | b |
| --- | --- |
| [in a table](t.md) | x |

## Twice
## Twice
"""


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return path


def test_blocks_with_their_lines_and_marks(page):
    found = [(b.line, b.language, b.text, b.mark, b.note) for b in blocks(page)]
    assert found == [
        (6, "python", "x = 1\n", "not run", "it takes an hour"),
        (12, "bash", "make test\n", "", ""),
        (15, "", "indented\n", "", ""),
    ]


def test_links_and_code_in_sentences_and_tables(page):
    assert list(links(page)) == [(9, "b.md#c"), (9, "p.svg"), (19, "t.md")]
    assert list(inline_code(page)) == [(1, "b"), (9, "code")]


def test_anchors_are_those_of_github(page):
    assert anchors(page) == {"a-b-c-what", "twice", "twice-1"}


@pytest.mark.parametrize(
    ("heading", "name"),
    [("Making it again", "making-it-again"), ("What's read?", "whats-read"), ("a / b", "a--b"), ("Σ σ", "σ-σ")],
)
def test_slug(heading, name):
    assert slug(heading) == name


def test_all_pages_are_found():
    names = [page.name for page in all_pages()]
    assert names[0] == "README.md" and {"design.md", "first-hour.md", "config.md"} <= set(names)
