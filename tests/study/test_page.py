"""Pages between markers."""

from pathlib import Path

import pytest

from rmjax.study.page import differing, filled, left_out

OTHER = "rest <!-- made: t/z --> <!-- end: t/z -->\n"
PAGE = f"# Title\n\n<!-- made: s/a -->old<!-- end: s/a -->\n\n<!-- made: s/b.d -->\n\n| x |\n\n<!-- end: s/b.d -->\n{OTHER}"
PARTS = {"s/a": "new", "s/b.d": "| y |\n| - |"}
AT = Path("page.md")


def test_what_is_between_the_markers_is_written_and_the_rest_stays():
    found = filled(PAGE, PARTS, AT, "s")
    first, second = (
        "<!-- made: s/a -->new<!-- end: s/a -->",
        "<!-- made: s/b.d -->\n\n| y |\n| - |\n\n<!-- end: s/b.d -->",
    )
    assert found == f"# Title\n\n{first}\n\n{second}\n{OTHER}"
    assert filled(found, PARTS, AT, "s") == found and differing(found, PARTS, AT, "s") == []


def test_a_page_may_leave_parts_to_the_results():
    assert filled(PAGE, PARTS | {"s/c": "| z |"}, AT, "s") == filled(PAGE, PARTS, AT, "s")
    assert left_out(PAGE, PARTS | {"s/c": "| z |"}) == ["s/c"]


@pytest.mark.parametrize("edit", ["new<", "| y |"])
def test_a_page_that_was_edited_by_hand_is_found(edit):
    page = filled(PAGE, PARTS, AT, "s").replace(edit, f"1{edit}")
    assert differing(page, PARTS, AT, "s") == ["s/a" if edit == "new<" else "s/b.d"]


@pytest.mark.parametrize(
    ("page", "parts", "message"),
    [
        (OTHER, PARTS, "page.md has no place for s/a, s/b.d; add <!-- made: s/a --> and its end"),
        (PAGE + PAGE, PARTS, "page.md has the markers of s/a, s/b.d, t/z twice"),
        (PAGE, {"s/a": ""}, "page.md has markers of s/b.d, which nothing makes"),
        (PAGE.replace("end: s/a", "end: x"), {"s/a": ""}, "page.md has only one of the two markers of s/a"),
    ],
)
def test_pages_without_a_place(page, parts, message):
    with pytest.raises(ValueError, match=message):
        filled(page, parts, AT, "s")


@pytest.mark.parametrize(
    "broken", ["<!-- made: s/b -->old", "old<!-- end: s/b -->", "<!-- made: s/b -->old<!-- end: s/c -->"]
)
def test_a_marker_without_its_other_one_is_no_place_for_a_part(broken):
    page = f"<!-- made: s/a -->x<!-- end: s/a --> {broken}"
    with pytest.raises(ValueError, match="page.md has only one of the two markers of s/"):
        differing(page, {"s/a": "x", "s/b": "new"}, Path("page.md"), "s")
