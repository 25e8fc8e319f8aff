"""What the site is built from."""

import pytest

pytest.importorskip("griffe", reason="of the extra `docs`")

from tools.docs import api, stage


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage")
    assert stage.stage(folder) == []
    return folder


def test_links_lead_to_where_the_pages_lie(staged):
    index = (staged / "index.md").read_text()
    assert "](first-hour.md)" in index and "](docs/" not in index and "](files/LICENSE)" in index
    assert (staged / "files/LICENSE").is_file()
    assert (
        "](../index.md" in (staged / "first-hour.md").read_text()
        or "](index.md#install)" in (staged / "first-hour.md").read_text()
    )
    assert (staged / "speed/growth.svg").is_file()


def test_the_menu_and_the_pages_are_compared(staged, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "navigation", lambda: ["index.md", "gone.md"])
    found = stage.stage(tmp_path / "again")
    assert "mkdocs.yml names gone.md, which is not there; correct the line" in found
    assert "mkdocs.yml lacks reference/api/losses.md; add the line `- reference/api/losses.md`" in found


def test_a_page_of_the_library(staged):
    page = (staged / "reference/api/losses.md").read_text()
    assert "## rmjax.losses.ranking" in page and "### bradley_terry" in page
    assert "rewards_RGN: Float[Array, 'R G N']" in page and "_softplus" not in page


MODULE = '''
"""One."""
import dataclasses

def f(a: int, *, b: str = "x") -> int:
    """Adds.

    Args:
      a: first.

    Raises:
      ValueError: never.
    """

def _hidden():
    """No."""

@dataclasses.dataclass(frozen=True)
class C:
    """Holds."""

    x: int = 3

    def m(self) -> None:
        """Does."""
'''


def test_signatures_and_docstrings(tmp_path):
    (tmp_path / "rmjax/inner").mkdir(parents=True)
    (tmp_path / "rmjax/__init__.py").write_text('"""The package."""\n')
    (tmp_path / "rmjax/inner/__init__.py").write_text('"""Inner."""\n')
    (tmp_path / "rmjax/inner/one.py").write_text(MODULE)
    page = api.pages(tmp_path)["reference/api/inner.md"]
    for part in (
        "def f(a: int, *, b: str = 'x') -> int", "- `a`: first.", "- `ValueError`: never.", "    x: int = 3", "#### C.m",
    ):  # fmt: skip
        assert part in page, page
    assert "_hidden" not in page
