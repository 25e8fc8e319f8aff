"""A claim's pages: parts where they belong, one file of results, nothing written where a page has no place."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict

from rmjax.evaluate.rows import Row
from rmjax.study.cells import Cell
from rmjax.study.claim import Claim, check_page, write_page
from rmjax.study.study import Study
from rmjax.study.summary import write_summary

PAGE, README = Path("docs/speed.md"), Path("README.md")
MARKERS = "# T\n\n<!-- made: s/{0} -->{1}<!-- end: s/{0} -->\n"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "docs/speed").mkdir(parents=True)
    (tmp_path / PAGE).write_text(MARKERS.format("table", ""))
    (tmp_path / README).write_text(MARKERS.format("line", "old"))
    write_summary(tmp_path / "docs/speed/s.json", "s", {}, [{"metric": "m", "value": 1.5}])
    return tmp_path


def made(*parts):
    study = Study("s", (Cell("c", {}, ConfigDict()),), lambda *_: None, lambda *_: [Row("i", "c", "m", 1.0)])
    return Claim(
        study, PAGE, lambda results: [], lambda lines: {name: f"{name} {lines[0]['value']}" for name in parts},
        elsewhere={"line": README},
    )  # fmt: skip


def test_parts_stand_on_two_pages(root):
    claim = made("table", "line")
    assert check_page(claim, root) == ["s/table", "s/line"]
    write_page(claim, root)
    assert (root / PAGE).read_text() == MARKERS.format("table", "table 1.5")
    assert (root / README).read_text() == MARKERS.format("line", "line 1.5")
    assert check_page(claim, root) == []
    assert write_page(made("table", "more", "line"), root) == {"s/more": "more 1.5"}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("table",), "README.md has markers of s/line, which nothing makes"),
        (("line",), "docs/speed.md has markers of s/table, which nothing makes"),
    ],
)
def test_pages_that_do_not_fit_stay_as_they_are(root, parts, message):
    with pytest.raises(ValueError, match=message):
        write_page(made(*parts), root)
    assert (root / PAGE).read_text() == MARKERS.format("table", "")
