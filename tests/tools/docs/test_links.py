"""No page has a dead link, and the menu names every page."""

import pytest

from tools.docs.links import dead_links, faults


def test_no_link_is_dead_and_no_page_is_left_out():
    assert faults() == []


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        ("other.md", ""),
        ("other.md#a-heading", ""),
        ("#here", ""),
        ("https://example.org/nothing", ""),
        ("gone.md", "gone.md is no file"),
        ("folder", "folder is no file"),
        ("other.md#no-heading", "has no heading of that name; it has a-heading"),
        ("#there", "has no heading of that name; it has here"),
        ("/other.md", "leaves the repository"),
        ("../other.md", "leaves the repository"),
        ("data.json#x", "only pages have those"),
    ],
)
def test_what_is_a_dead_link(tmp_path, target, fault):
    (tmp_path / "folder").mkdir()
    (tmp_path / "other.md").write_text("# A heading\n")
    (tmp_path / "data.json").touch()
    page = tmp_path / "page.md"
    page.write_text(f"# Here\n\n[link]({target})\n")
    found = list(dead_links(page, tmp_path))
    assert found == [] if not fault else fault in found[0] and ":3: " in found[0]
