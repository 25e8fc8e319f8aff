"""The configuration reference is what the sections say."""

import dataclasses

from rmjax import methods, settings
from rmjax.sections import choice, number
from tools.docs import configuration


def test_the_committed_page_is_the_generated_one(capsys):
    assert configuration.main(["--check"]) == 0, capsys.readouterr().err


def test_a_page_that_was_edited_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(configuration, "ROOT", tmp_path)
    monkeypatch.setattr(configuration, "PAGE", tmp_path / "config.md")
    monkeypatch.setattr(configuration, "page", lambda: "right\n")
    assert configuration.main([]) == 0 and configuration.main(["--check"]) == 0
    configuration.PAGE.write_text("edited\n")
    assert configuration.main(["--check"]) == 1
    assert (
        "config.md is not what the config's sections say; run python -m tools.docs.configuration"
        in capsys.readouterr().err
    )


@dataclasses.dataclass(frozen=True)
class Section:
    """`config.section`."""

    one: int = number(3, low=1)  # things | more
    two: str = choice("a", "a", "b")  # over
    none: float = 0.5


def test_comments_are_read_where_the_formatter_put_them():
    assert configuration.comments(Section) == {"one": "things | more", "two": "over", "none": ""}


def test_a_row_has_default_range_and_meaning():
    assert configuration._fields(Section)[2:] == [
        "| `one` | int | `3` | 1 or more | things &#124; more |",
        "| `two` | str | `'a'` | a or b | over |",
        "| `none` | float | `0.5` |  |  |",
    ]


def test_every_key_says_what_it_means():
    kinds = {**settings.SECTIONS, **methods.sections(), **settings.EVALUATIONS}
    silent = [
        f"{name}.{key}"
        for name, kind in kinds.items()
        for key, said in configuration.comments(kind).items()
        if not said
    ]
    assert silent == []
