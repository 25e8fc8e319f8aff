"""Sets of several files: folders of shards, and data sets of the hub by name, from `huggingface_hub`'s cache.

`hf:ORG/NAME[/CONFIG][:SPLIT][@REVISION]` names one. What the cache lacks is an error with the command that fetches it, unless
`RMJAX_DOWNLOAD` asks for it (`fetch.py`). Which files make a split is said by the set's card (`configs` in README.md), else by
their names, as the hub's own library takes them.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rmjax.fetch import DOWNLOAD, included, snapshot

HUB = "hf:"
FILES = ("*.parquet", "README.md")
"""Of a data set, what is read."""
DEFAULT = "default"
_NAME = re.compile(
    r"hf:(?P<repo>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(:(?P<split>[\w.-]+))?(@(?P<revision>[\w./-]+))?"
)
_NUMBER = re.compile(r"(?P<stem>.*?)-?(?P<number>\d{4,})-of-(?P<count>\d{4,})(?P<rest>.*)")
_SPLITS = ("train", "validation", "valid", "val", "dev", "test", "testing", "eval")
_SPLIT_IN_NAME = re.compile(rf"(^|[/_. -])(?P<split>{'|'.join(_SPLITS)})(?=$|[/_. -])")


class ShardError(ValueError):
    """A set of files of which some are missing, or a name that does not say which it means."""


@dataclasses.dataclass(frozen=True)
class HubName:
    """A data set of the hub, by its parts; "" where the name does not say."""

    repo: str
    config: str
    split: str
    revision: str

    def command(self) -> str:
        """What fetches it into the cache."""
        revision = f" --revision {self.revision}" if self.revision else ""
        return f"hf download --repo-type dataset {self.repo}{revision} {included(FILES)}"


def hub_name(name: str) -> HubName:
    """The parts of "hf:ORG/NAME[/CONFIG][:SPLIT][@REVISION]"; ShardError where it is not of that form."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise ShardError(f"{name} is no data set's name; write hf:ORG/NAME[/CONFIG][:SPLIT][@REVISION]")
    return HubName(*(found[part] or "" for part in ("repo", "config", "split", "revision")))


def hub_shards(name: str) -> list[Path]:
    """The Parquet files of a data set in the cache, in their order.

    Raises:
      FileNotFoundError: the cache does not hold the set or all of its files; the message has the command that fetches it.
      ShardError: the set has several configs or splits and the name does not say which, or has none of that name.
    """
    parts = hub_name(name)
    folder = _snapshot(name, parts)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"{name}: no Parquet file of it is in {folder}; run `{parts.command()}`")
    configs = _of_card(folder, files) or _of_names(files)
    splits = _chosen(name, "config", configs, parts.config, (DEFAULT,))
    chosen = [folder / file for file in _chosen(name, "split", splits, parts.split, ("train",))]
    if missing := [str(path.relative_to(folder)) for path in chosen if path.suffix != ".parquet" or not path.is_file()]:
        raise FileNotFoundError(
            f"{name}: {missing[0]}, which its card names, is no Parquet file that is there; run `{parts.command()}`"
        )
    if missing := missing_shards(chosen):
        raise FileNotFoundError(
            f"{name}: shards are not there, {len(missing)} of them, {missing[0]} first; run `{parts.command()}`"
        )
    return chosen


def _snapshot(name: str, parts: HubName) -> Path:
    found = snapshot(parts.repo, parts.revision or None, FILES, "dataset")
    if found is None:
        raise FileNotFoundError(f"{name}: not in huggingface_hub's cache; run `{parts.command()}`, or set {DOWNLOAD}=1")
    return found


def _chosen(name: str, kind: str, found: Mapping[str, Any], wanted: str, usual: Sequence[str]) -> Any:
    if wanted in found:
        return found[wanted]
    known = ", ".join(sorted(found))
    if wanted:
        raise ShardError(f"{name}: there is no {kind} {wanted!r}; there are {known}")
    for choice in usual:
        if choice in found:
            return found[choice]
    if len(found) == 1:
        return next(iter(found.values()))
    where = f"{HUB}ORG/NAME/CONFIG" if kind == "config" else f"{HUB}ORG/NAME:SPLIT"
    raise ShardError(f"{name}: there are several {kind}s, {known}; name one, as in {where}")


def _of_card(folder: Path, files: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Config → split → files, as the front matter of README.md says; empty where it says nothing of files."""
    card = folder / "README.md"
    parts = card.read_text(encoding="utf-8").split("---\n", 2) if card.is_file() else []
    try:
        matter = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else {}
        configs = [config for config in (matter or {}).get("configs") or () if config.get("data_files")]
        return {config.get("config_name", DEFAULT): _of_data_files(config["data_files"], files) for config in configs}
    except (yaml.YAMLError, AttributeError, TypeError, KeyError) as error:
        raise ShardError(f"{card}: the list of `configs` is not readable ({error}); get the file again") from error


def _of_data_files(said: Any, files: Sequence[str]) -> dict[str, list[str]]:
    entries = [{"split": "train", "path": said}] if isinstance(said, str) else said
    if all(isinstance(entry, str) for entry in entries):
        entries = [{"split": "train", "path": entries}]
    found = {}
    for entry in entries:
        patterns = [entry["path"]] if isinstance(entry["path"], str) else entry["path"]
        found[str(entry["split"])] = list(
            dict.fromkeys(f for p in patterns for f in _matching(p.removeprefix("./"), files))
        )
    return found


def _matching(pattern: str, files: Sequence[str]) -> list[str]:
    """The pattern itself where no file is called so: that file is missed."""
    deep = "**" in pattern  # a lone * stops at a slash
    like = [f for f in files if fnmatch.fnmatch(f, pattern) and (deep or f.count("/") == pattern.count("/"))]
    return like or [pattern]


def _of_names(files: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """The same by the files' names: `[CONFIG/][data/]SPLIT-00000-of-00002.parquet`, or `[CONFIG/]SPLIT/0000.parquet`."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for file in files:
        stem = file.removesuffix(".parquet")
        *folders, name = (_NUMBER.sub(r"\g<stem>", stem)).split("/")
        words = _SPLIT_IN_NAME.search(name) or _SPLIT_IN_NAME.search("/".join(folders))
        split = words["split"] if words else "train"
        config = next((part for part in folders if part not in ("data", split)), DEFAULT)
        found[config][name if name and _NUMBER.fullmatch(stem) else split].append(file)
    return found


def folder_shards(folder: Path, endings: Sequence[str]) -> list[Path]:
    """The data files of a folder, in the order of their names; all of one kind, and none of a numbered set missing.

    Raises:
      IsADirectoryError: there are none.
      ShardError: of several kinds, of several numbered sets, or some are missing.
    """
    files = {
        path: ending
        for path in sorted(folder.iterdir())
        if path.is_file()
        for ending in endings
        if path.name.endswith(ending)
    }
    if not files:
        raise IsADirectoryError(
            f"{folder}: is a directory without data files; give one of the files in it, or a folder of shards"
        )
    if len(kinds := set(files.values())) > 1:
        raise ShardError(f"{folder}: holds files of several kinds, {', '.join(sorted(kinds))}; give one of them")
    stems = {found["stem"] for path in files if (found := _NUMBER.fullmatch(path.name))}
    if len(stems) > 1 or (stems and not all(_NUMBER.fullmatch(path.name) for path in files)):
        raise ShardError(
            f"{folder}: holds several sets of shards, {', '.join(sorted(stems))} and others; give each its folder"
        )
    if missing := missing_shards(list(files)):
        raise FileNotFoundError(
            f"{folder}: shards are not there, {len(missing)} of them, {missing[0]} first; get them again"
        )
    return list(files)


def missing_shards(files: Sequence[Path]) -> list[str]:
    """Names of the shards that those of a numbered set (`…-00001-of-00003…`) say there are, and are not there."""
    names = {path.name for path in files}
    return sorted({other for path in files for other in _of_one_set(path.name)} - names)


def _of_one_set(name: str) -> Iterator[str]:
    found = _NUMBER.fullmatch(name)
    if found:
        start, end = found.span("number")
        width = end - start
        yield from (f"{name[:start]}{i:0{width}d}{name[end:]}" for i in range(int(found["count"])))
