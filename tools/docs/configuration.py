"""Writes docs/reference/config.md from the sections' own fields and comments: `python -m tools.docs.configuration [--check]`.

With --check nothing is written; exit code 1 where the page is not what would be written.
"""

import ast
import dataclasses
import html
import inspect
import io
import sys
import textwrap
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rmjax import config, generators, grid, methods, settings
from rmjax.parallel.mesh import RULES
from rmjax.sections import allowed
from tools.docs.pages import ROOT

PAGE = ROOT / "docs/reference/config.md"
COMMAND = "python -m tools.docs.configuration"
_HEAD = f"""\
<!-- Written by `{COMMAND}` from the comments in rmjax/settings.py, rmjax/methods and a few more. Change those, not this page. -->

# Configuration

Every key of a training config. `--config.SECTION.KEY=VALUE` on the command line sets one, and so does
`config.SECTION.KEY = VALUE` in a config file. A key that does not exist, a value of another type and one that is not allowed
are errors that name the key. [Training](../training.md#configuration) says what the sections are for.
"""


def comments(kind: Any) -> dict[str, str]:
    """Field, or name that is assigned to as an attribute → the comment that stands in its statement.

    Args:
      kind: a class or a function; its source is read.
    """
    source = textwrap.dedent(inspect.getsource(kind))
    found = {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    body = ast.parse(source).body[0].body  # type: ignore[attr-defined]
    return {
        name: " ".join(found[line] for line in range(node.lineno, (node.end_lineno or 0) + 1) if line in found)
        for node in body
        if (name := _target(node))
    }


def _target(statement: ast.stmt) -> str:
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return statement.target.id
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Attribute):
        return statement.targets[0].attr
    return ""


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *_top(), *_sections(), *_evaluations(), *_sharding(), *_sampling()])


def _top() -> Iterator[str]:
    own, given = comments(config.get_config), config.get_config()
    rows = [_row(name, given[name], "", own[name]) for name in ("objective", "trainable")]
    choices = ", ".join(f"`{name}`" for name in methods.objectives())
    yield from ["## config", "", *_table(rows), "", f"`objective` is one of {choices}.", ""]


def _sections() -> Iterator[str]:
    owner = {name: method.name for method in methods.METHODS.values() for name in method.sections}
    for name, kind in {**settings.SECTIONS, **methods.sections()}.items():
        yield from [f"## config.{name}", ""]
        if name in owner:
            yield from [f"Of the method `{owner[name]}` (`{_file(kind)}`).", ""]
        yield from [*_fields(kind), ""]


def _file(kind: type) -> str:
    return Path(inspect.getsourcefile(kind) or "").resolve().relative_to(ROOT).as_posix()


def _evaluations() -> Iterator[str]:
    yield from [
        "## config.evals",
        "",
        "Evaluations during training, by a name of yours. An entry is of one of these kinds.",
        "",
    ]
    for name, kind in settings.EVALUATIONS.items():
        said = (kind.__doc__ or "").removeprefix("An entry of `config.evals`: ").strip()
        yield from [f"### {name}", "", said[:1].upper() + said[1:], "", *_fields(kind), ""]


def _sharding() -> Iterator[str]:
    rows = [f"| `{name}` | {', '.join(f'`{axis}`' for axis in axes) or 'none'} |" for name, axes in RULES]
    yield from [
        "## config.sharding",
        "",
        "Logical axis → mesh axes, `()` for none. `config.mesh` says how large these are.",
        "",
    ]
    yield from ["| key | default |", "| --- | --- |", *rows, ""]


def _sampling() -> Iterator[str]:
    """Of another command, whose configs have sections, too."""
    kinds = {"asking": generators.AskingSection} | {name: kind.section for name, kind in generators.KINDS.items()}
    yield from [
        "## Sampling",
        "",
        "The keys of `configs/sample/endpoint.py` and `recorded.py`, for `experiments.sample`.",
        "",
    ]
    for name, kind in {"": grid.GridSection, **kinds}.items():
        said = (kind.__doc__ or "").strip()
        yield from [f"### config{'.' * bool(name)}{name} (sampling)", "", said, "", *_fields(kind), ""]


def _fields(kind: type) -> list[str]:
    own = comments(kind)
    return _table(
        _row(field.name, field.default, allowed(field), own[field.name]) for field in dataclasses.fields(kind)
    )


def _table(rows: Iterable[str]) -> list[str]:
    return ["| key | type | default | allowed | unit and meaning |", "| --- | --- | --- | --- | --- |", *rows]


def _row(name: str, default: Any, values: str, meaning: str) -> str:
    shown = f"`{default!r}`" if "|" not in repr(default) else f"<code>{html.escape(repr(default), quote=False)}</code>"
    cells = [f"`{name}`", type(default).__name__, shown, values, meaning]
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def main(arguments: list[str]) -> int:
    """The exit code."""
    wanted = page()
    if "--check" not in arguments:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(wanted, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == wanted:
        return 0
    print(f"{PAGE.relative_to(ROOT)} is not what the config's sections say; run {COMMAND}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
