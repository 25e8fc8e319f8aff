"""Commands that pages show: modules, subcommands, flags, config files, keys and `make` targets have to exist. None is run."""

import argparse
import ast
import functools
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rmjax import command
from rmjax import config as base
from rmjax.config import settle
from rmjax.recipe import read_config
from tools.docs.pages import ROOT

_MODULE = re.compile(r"python -m ((?:experiments|tools)[.\w]*)(.*)")
_RMJAX = re.compile(r"(?:^|&& |\| )rmjax (.+)")
_MAKE = re.compile(r"(?:^|&& )make( .*|$)")
_END = re.compile(r"(?:^| )(?:#|&&|--|[|;&])(?: |$)|;")
_PLACEHOLDER = re.compile(r"[A-Z][A-Z_0-9]*\b|[…$]|\.\.\.")
_OURS = re.compile(r"(configs|launch|notebooks)/[\w./]+$")
"""Files of the checkout that a command may read."""
_OWN_FLAGS = {"help", "helpfull"}


def faults(text: str) -> list[str]:
    """What is wrong with the commands in a text; lines that are none of ours say nothing."""
    return [
        fault for line in _lines(text) for fault in [*_module_faults(line), *_rmjax_faults(line), *_make_faults(line)]
    ]


def _lines(text: str) -> list[str]:
    """Lines with those that a backslash continues, and flags that stand alone in brackets, put together."""
    return re.sub(r"\\\n\s*|\n\s+(?=\[?--)", " ", text).splitlines()


def _module_faults(line: str) -> Iterator[str]:
    for module, rest in _MODULE.findall(line):
        if module.endswith("."):  # `experiments.…`
            continue
        source = ROOT / (module.replace(".", "/") + ".py")
        if not source.is_file():
            yield f"{module} is no module"
            continue
        words = [word.strip("[]\"'") for word in _words(_END.split(rest)[0])]
        for path in (word.rpartition("=")[2].partition(":")[0] for word in words):
            if _OURS.match(path) and not (ROOT / path).exists():
                yield f"{module}: {path} is not there"
        values = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
        if module == "experiments.study":
            yield from _study_faults(words, values)
        known = flags_of(source)
        for name in values:
            if name.split(".")[0] not in known:
                yield f"{module} has no flag --{name}; it has {', '.join(sorted(known))}"
        if "config" in known:
            yield from _config_faults(values, known["config"])


def _rmjax_faults(line: str) -> Iterator[str]:
    """The console command: `a|b` stands for either of two subcommands."""
    for rest in _RMJAX.findall(line.strip().removeprefix("$ ")):
        names, *words = (word.strip("[]") for word in _words(_END.split(rest)[0]))
        for name in names.split("|"):
            if not name.startswith("-") and not _PLACEHOLDER.match(name):
                yield from _subcommand_faults(name, words)


def _subcommand_faults(name: str, words: Sequence[str]) -> Iterator[str]:
    known = _subcommands().get(name)
    if known is None:
        yield f"rmjax has no command {name}; it has {', '.join(_subcommands())}"
        return
    for option in (word.partition("=")[0] for word in words if word.startswith("--")):
        if option not in known:
            yield f"rmjax {name} has no option {option}; it has {', '.join(known)}"
    if name == "train":
        given = next((word for word in words if word.partition(":")[0].endswith(".py")), "")
        keys = [word.partition("=") for word in words[1:] if "=" in word and not word.startswith("-")]
        yield from _config_faults({"config": given} | {f"config.{key}": value for key, _, value in keys}, None)


@functools.cache
def _subcommands() -> dict[str, list[str]]:
    """Name → options."""
    actions = command.parser()._actions
    found = next(action.choices for action in actions if isinstance(action, argparse._SubParsersAction))
    return {name: [o for o in each._option_string_actions if o.startswith("--")] for name, each in found.items()}


def _study_faults(words: Sequence[str], values: dict[str, str]) -> Iterator[str]:
    """A study's name stands before the flags, and gives the config."""
    name, _, argument = next((word for word in words if not word.startswith("-")), "").partition(":")
    folder = Path("experiments/studies") / name
    if (ROOT / folder / "config.py").is_file():
        values.setdefault("config", f"{folder}/config.py{':' + argument if argument else ''}")
    elif not _PLACEHOLDER.match(name):
        yield f"there is no study {name}"


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:  # inside a quotation, or with an apostrophe
        return text.split()


@functools.cache
def flags_of(source: Path) -> dict[str, Any]:
    """The flags that a command's file defines, with their defaults where these are written out."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    found: dict[str, Any] = dict.fromkeys(_OWN_FLAGS)
    for shared in _without_command(tree):
        found |= flags_of(shared)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Attribute) and call.func.attr.startswith(("DEFINE_", "add_argument")):
            name, *rest = [part.value if isinstance(part, ast.Constant) else None for part in call.args]
            found[str(name).removeprefix("--")] = rest[0] if rest else None
    return found


def _without_command(tree: ast.Module) -> Iterator[Path]:
    """Files of experiments/ that a command imports and that are none themselves: the flags that they define are its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "experiments":
            for path in (ROOT / "experiments" / f"{alias.name}.py" for alias in node.names):
                if path.is_file() and "__main__" not in path.read_text(encoding="utf-8"):
                    yield path


def _config_faults(values: dict[str, str], default: Any) -> list[str]:
    given = values.get("config") or default
    try:
        config = base.get_config() if not given or _PLACEHOLDER.match(given) else _read(given)
        changes = {name.removeprefix("config."): value for name, value in values.items() if name.startswith("config.")}
        for name, value in changes.items():
            _set(config, name.split("."), value)
        if changes and "optimizer" in config:
            settle(config)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, SyntaxError) as error:
        return [f"--config={given}: {error}"]
    return []


def _read(given: str) -> ConfigDict:
    """The config of `FILE[:ARGUMENT]`; an argument that is a placeholder counts as none."""
    name, _, argument = given.partition(":")
    return read_config(name if _PLACEHOLDER.match(argument) else given, ROOT)


def _set(config: ConfigDict, path: Sequence[str], value: str) -> None:
    """Raises KeyError or AttributeError for a key that there is not, ValueError for a value of another type."""
    if any(_PLACEHOLDER.match(part) for part in path):
        return
    for part in path[:-1]:
        config = config[part]
    old = config[path[-1]]
    if not value or _PLACEHOLDER.match(value):
        return
    config[path[-1]] = value.strip("\"'") if isinstance(old, str) else ast.literal_eval(value.strip("\"'"))


def _make_faults(line: str) -> Iterator[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    for rest in _MAKE.findall(line.strip().removeprefix("$ ")):
        for word in _words(_END.split(rest)[0]):
            name, is_variable, _ = word.partition("=")
            if re.fullmatch(r"[\w-]+", name) and not is_variable and name not in targets and name.islower():
                yield f"make has no target {name}; it has {', '.join(sorted(targets))}"
            if is_variable and not re.search(rf"^{name} \?=", makefile, re.M):
                yield f"the Makefile has no variable {name}"
