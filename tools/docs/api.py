"""Pages of the library's interface from signatures and docstrings, read from the source: nothing is imported, nothing is run."""

import textwrap
from collections.abc import Iterator
from pathlib import Path

import griffe

from tools.docs.pages import ROOT

FOLDER = "reference/api"
PACKAGE = "rmjax"


def pages(root: Path = ROOT) -> dict[str, str]:
    """Name of a page → its text: one for the modules beside the packages, one for each package."""
    package = griffe.load(
        PACKAGE, search_paths=[root], try_relative_path=False, allow_inspection=False, docstring_parser="google",
        docstring_options={"warnings": False},
    )  # fmt: skip
    assert isinstance(package, griffe.Module)
    own = [module for module in package.modules.values() if not module.is_init_module]
    found = {PACKAGE: _page(PACKAGE, [package, *own])}
    for name, module in sorted(package.modules.items()):
        if module.is_init_module:
            found[name] = _page(f"{PACKAGE}.{name}", list(_within(module)))
    return {f"{FOLDER}/{name}.md": text for name, text in found.items()}


def _within(module: griffe.Module) -> Iterator[griffe.Module]:
    """The module and all below it; one that a module imports is not below it, though griffe lists it there."""
    yield module
    for inner in module.modules.values():
        if not inner.is_alias:
            yield from _within(inner)


def _page(title: str, modules: list[griffe.Module]) -> str:
    parts = [f"# {title}\n"]
    for module in sorted(modules, key=lambda module: module.path):
        members = _public(module)
        if members or len(modules) == 1:
            parts += [f"## {module.path}\n", _docstring(module), *(_member(member) for member in members)]
    return "\n".join(parts)


def _public(owner: griffe.Object) -> list[griffe.Object]:
    """What is defined there, for others, and documented."""
    return [
        member
        for name, member in owner.members.items()
        if isinstance(member, griffe.Object)
        and not name.startswith("_")
        and not member.is_module
        and member.has_docstring
    ]


def _member(member: griffe.Object, level: int = 3) -> str:
    name = member.name if level == 3 else f"{member.parent.name}.{member.name}"  # type: ignore[union-attr]
    inner = [part for part in _public(member) if part.is_function] if member.is_class else []
    parts = [f"{'#' * level} {name}\n", _signature(member), _docstring(member)]
    return "\n".join([*parts, *(_member(part, level + 1) for part in inner)])


def _signature(member: griffe.Object) -> str:
    if isinstance(member, griffe.Attribute):
        return _code(f"{member.name} = {member.value}") if len(str(member.value)) <= 80 else ""
    if isinstance(member, griffe.Class):
        return _code("\n".join([f"class {member.name}{_arguments(member.parameters)}", *_fields(member)]))
    assert isinstance(member, griffe.Function)
    returns = f" -> {member.returns}" if member.returns else ""
    return _code(f"def {member.name}{_arguments(member.parameters)}{returns}")


def _fields(member: griffe.Class) -> Iterator[str]:
    """Those of a dataclass, which its constructor does not spell out."""
    if "dataclass" in member.labels:
        for field in member.attributes.values():
            if field.annotation and not field.name.startswith("_"):
                yield f"    {field.name}: {field.annotation}" + (f" = {field.value}" if field.value else "")


def _arguments(parameters: griffe.Parameters) -> str:
    shown, before = [], griffe.ParameterKind.positional_or_keyword
    for one in parameters:
        if one.name in ("self", "cls"):
            continue
        if one.kind is griffe.ParameterKind.keyword_only and before is not one.kind and not _takes_all(before):
            shown.append("*")
        before = one.kind
        stars = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}.get(one.kind, "")
        kind = f": {one.annotation}" if one.annotation else ""
        default = f" = {one.default}" if one.default is not None and not stars else ""
        shown.append(f"{stars}{one.name}{kind}{default}")
    line = f"({', '.join(shown)})"
    return line if len(line) <= 100 else "(\n" + "".join(f"    {part},\n" for part in shown) + ")"


def _takes_all(kind: griffe.ParameterKind | None) -> bool:
    return kind is griffe.ParameterKind.var_positional


def _code(text: str) -> str:
    return f"```python\n{text}\n```\n"


def _docstring(member: griffe.Object) -> str:
    if not member.docstring:
        return ""
    return "\n".join(_section(section) for section in member.docstring.parsed)


def _section(section: griffe.DocstringSection) -> str:
    if section.kind is griffe.DocstringSectionKind.text:
        return f"{section.value}\n"
    title = section.title or section.kind.value.capitalize()
    if isinstance(section.value, list):
        return f"**{title}**\n\n" + "".join(f"{_entry(entry)}\n" for entry in section.value)
    return f"**{title}**\n\n{getattr(section.value, 'contents', section.value)}\n"


def _entry(entry: griffe.DocstringElement) -> str:
    name = getattr(entry, "name", "") or (str(entry.annotation) if entry.annotation else "")
    return textwrap.indent(f"- `{name}`: {entry.description}", "  ", lambda line: not line.startswith("- "))
