"""A claim's pages: parts where they belong, one file of results, nothing written where a page has no place."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from rmjax.evaluate.rows import Row
from rmjax.study.cells import Cell
from rmjax.study.claim import Claim, check_figures, check_page, publish, refuse_unready, write_page
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


def made(*parts, shown=None, figures=()):
    study = Study("s", (Cell("c", {}, ConfigDict()),), lambda *_: None, lambda *_: [Row("i", "c", "m", 1.0)])
    return Claim(
        study, PAGE, lambda results: [], lambda lines: {name: f"{name} {lines[0]['value']}" for name in parts},
        elsewhere={"line": README}, shown=shown, figures=lambda lines: {stem: Figure() for stem in figures},
    )  # fmt: skip


def test_parts_stand_on_two_pages(root):
    claim = made("table", "line")
    assert check_page(claim, root) == ["s/table", "s/line"]
    write_page(claim, root)
    assert (root / PAGE).read_text() == MARKERS.format("table", "table 1.5")
    assert (root / README).read_text() == MARKERS.format("line", "line 1.5")
    assert check_page(claim, root) == []
    assert write_page(made("table", "more", "line", shown=("table", "line")), root) == {"s/more": "more 1.5"}


def test_a_page_of_details_takes_the_parts_and_figures_that_it_has_a_place_for(root):
    claim, details = made("table", "more", "line", figures=("drawn",)), root / "docs/speed/details.md"
    details.write_text(MARKERS.format("more", "") + "![drawn](drawn.svg)\n")
    assert check_page(claim, root) == ["s/table", "s/more", "s/line", "drawn.svg"]
    write_page(claim, root)
    assert check_page(claim, root) == []
    assert "more 1.5" in details.read_text() and (root / PAGE).read_text() == MARKERS.format("table", "table 1.5")
    (root / claim.results).unlink()
    refuse_unready(made("table", "more", "line", shown=("more",)), root)


@pytest.mark.parametrize("shown", [None, ("table", "more", "line")])
def test_a_part_without_its_markers_is_missed(root, shown):
    claim = made("table", "more", "line", shown=shown)
    for job in (check_page, write_page, refuse_unready):
        with pytest.raises(
            ValueError, match="docs/speed.md has no place for s/more; add <!-- made: s/more --> and its end"
        ):
            job(claim, root)


def test_a_figure_without_a_link_is_named(root):
    claim = made("table", "line", figures=("drawn",))
    write_page(claim, root)
    assert check_figures(claim, root) == ["drawn.svg (no link)"]
    with (root / PAGE).open("a") as file:
        file.write("![drawn](speed/drawn.svg)\n")
    assert check_figures(claim, root) == []


@pytest.mark.parametrize(
    ("claim", "page", "error"),
    [
        (made("table", "line"), None, "docs/speed.md is not there; run this in the project's folder, or make the page"),
        (
            made("table", "line"),
            "# T\n",
            "docs/speed.md has no place for s/(NAME|table); add <!-- made: s/(NAME|table) --> and its end",
        ),
        (made("table", "line"), "<!-- made: s/table -->\n", "docs/speed.md has only one of the two markers of s/table"),
        (made("table", "line", "x", shown=("x",)), MARKERS.format("table", ""), "docs/speed.md has no place for s/x;"),
    ],
)
def test_what_cannot_be_published_is_said_before_it_is_made(root, claim, page, error):
    (root / PAGE).unlink() if page is None else (root / PAGE).write_text(page)
    results = (root / claim.results).read_bytes()
    with pytest.raises((ValueError, FileNotFoundError), match=error):
        publish(claim, root, {}, [{"metric": "m", "value": 2.5}])
    assert (root / claim.results).read_bytes() == results
    (root / claim.results).unlink()  # the first time there are none
    with pytest.raises((ValueError, FileNotFoundError), match=error):
        refuse_unready(claim, root)


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
