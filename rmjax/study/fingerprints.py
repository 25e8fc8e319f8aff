"""What a cell's result depends on, so that it is made again when that changed, and only then."""

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmjax.data.preferences import PREFERENCE_SETS, set_path
from rmjax.data.shards import HUB, hub_name, hub_shards
from rmjax.data.sources import SHIPPED, located
from rmjax.hub.shipped import fetching, model_folder
from rmjax.study.cells import Cell, leaves

Fingerprint = dict[str, Any]
"""`config`: key → value; `data`: key, or `cell:NAME` → digest, None for data that are not there; `code`: of what measures."""
_DATA = r"(.*\.)?(path|init|starts|template|tokenizer|prompts|checkpoints|sources(\[\d+\])?|as_long_as)"
"""Keys whose values name files or folders. Values with `shipped:`, `hf:` or `work:` before them and real sets' names do so
anywhere."""
_WITHOUT_EFFECT = r"(.*\.)?(root|hosts\..*|data\.prefetch|run\.(keep|keep_every|tensorboard|wandb))"
"""Keys that say where data lie, and how a run is kept and shown."""


def fingerprint(cell: Cell, others: Mapping[str, Cell], workdir: Path, code: str) -> Fingerprint:
    """Of a cell. The fingerprints of the cells that it needs are among its data.

    Args:
      cell: what is to be run.
      others: all cells by name.
      workdir: of the study.
      code: digest of the code that trains and measures.

    Raises:
      ValueError: the config names a shipped set that there is not; the message names the cell and the key.
    """
    found = {key: _json(value) for key, value in leaves(cell.config).items()}
    config: dict[str, Any] = {}
    data: dict[str, str | None] = {}
    for key, value in found.items():
        paths = _named(cell, key, value, found, workdir)
        if paths:
            data[key] = _content(paths)
        elif not re.fullmatch(_WITHOUT_EFFECT, key):
            config[key] = value
    config |= {f"environment.{name}": value for name, value in cell.environment.items()}
    for name in cell.needs:
        data[f"cell:{name}"] = digest(fingerprint(others[name], others, workdir, ""))
    return {"config": config, "data": data, "code": code}


def _named(cell: Cell, key: str, value: Any, config: Mapping[str, Any], workdir: Path) -> Sequence[Path]:
    try:
        return paths_of(key, value, config, workdir)
    except (OSError, ValueError) as error:
        raise ValueError(f"{cell.name}: config.{key}: {error}") from error


def paths_of(key: str, value: Any, config: Mapping[str, Any], workdir: Path) -> Sequence[Path]:
    """The files or folders that a value of a config names, whether they are there or not; none if it names none.

    Raises:
      FileNotFoundError: a shipped set that there is not.
      ShardError: a set of the hub by a name that does not say which of its parts is meant.
    """
    if not isinstance(value, str) or not value:
        return ()
    if value.startswith("work:"):
        return (workdir / value.removeprefix("work:"),)
    if value.startswith(SHIPPED):
        return (model_folder(value) if key.endswith("init") else Path(located(value)),)
    if value.startswith(HUB):
        return _of_hub(value)
    if value in PREFERENCE_SETS:
        root = config.get(f"{key.rsplit('.', 1)[0]}.root", config.get("root"))
        return (set_path(value, root),) if root else ()
    if not re.fullmatch(_DATA, key) or re.match(r"(cell|tfds):", value) or re.search(r"{[{%]", value):
        return ()  # braces: a template's own text
    path = _of_model(value) if key.endswith("init") else Path(value)
    return (path,) if "/" in value or path.suffix or path.exists() else ()


def _of_model(name: str) -> Path:
    try:
        return model_folder(name)
    except FileNotFoundError:  # not there, and the hub does not give it: a result that was made of it stays
        return Path(name)


def _of_hub(name: str) -> Sequence[Path]:
    try:
        return hub_shards(name)
    except FileNotFoundError:  # not in the cache, or no longer: a result that was made of it stays
        return (Path(name),)


def absent(cell: Cell, workdir: Path) -> list[str]:
    """The data of a cell that are not there, of those that no other cell and no `prepare` makes, each as a sentence:
    `config.KEY=VALUE is not there; REMEDY`."""
    found = {key: _json(value) for key, value in leaves(cell.config).items()}
    paths = {key: _named(cell, key, value, found, workdir) for key, value in found.items()}
    made = {key for key, value in found.items() if isinstance(value, str) and value.startswith("work:")}
    return [
        f"config.{key}={found[key]} is not there; {_remedy(key, found[key])}"
        for key, named in paths.items()
        if key not in made and not all(path.exists() for path in named)
    ]


def _remedy(key: str, value: str) -> str:
    if value.startswith(HUB):
        return f"run `{hub_name(value).command()}`"
    return "correct the path" + (fetching(value) if key.endswith("init") else "")


def lacking(cell: Cell, workdir: Path) -> list[str]:
    """The data of a cell that its study makes and that are not there: `config.KEY=work:PATH`."""
    named = ((key, value) for key, value in leaves(cell.config).items() if isinstance(value, str))
    made = ((key, value) for key, value in named if value.startswith("work:"))
    return [f"config.{key}={value}" for key, value in made if not (workdir / value.removeprefix("work:")).exists()]


def _json(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def digest(value: Any) -> str:
    """SHA-256 of something that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What changed between two fingerprints, in words; empty if nothing did. Data that are not there now cannot have changed."""
    parts = []
    config = [
        f"config.{key}: {before['config'].get(key)!r} then, {now['config'].get(key)!r} now"
        for key in sorted(before["config"].keys() | now["config"].keys())
        if before["config"].get(key) != now["config"].get(key)
    ]
    if config:
        parts.append("; ".join(config[:4]) + (f"; {len(config) - 4} more" if len(config) > 4 else ""))
    data = [key for key, found in now["data"].items() if found is not None and before["data"].get(key) != found]
    data += [key for key in before["data"] if key not in now["data"] and key not in now["config"]]
    if data:
        parts.append(f"other data in {', '.join(f'config.{key}' if ':' not in key else key for key in sorted(data))}")
    if before["code"] != now["code"]:
        parts.append("other code that measures")
    return "; ".join(parts)


def _content(paths: Sequence[Path]) -> str | None:
    found = [_content_of(path) for path in paths]
    return found[0] if len(found) == 1 else digest(found)


def _content_of(path: Path) -> str | None:
    try:
        if path.is_dir():
            return _folder_digest(path)
        return _file_digest(path) if path.is_file() else None
    except OSError:  # a text that is no path, say a longer one than paths may be
        return None


def _file_digest(path: Path) -> str:
    found = path.stat()
    return _cached_digest(path, found.st_mtime_ns, found.st_size)


@functools.lru_cache(maxsize=4096)
def _cached_digest(path: Path, changed: int, size: int) -> str:
    del changed, size  # when they differ, so may the content
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder_digest(folder: Path) -> str:
    """Of a run: its newest checkpoint's manifest, which has the digests of all its files. Of other folders: all files."""
    manifests = [path for path in folder.glob("checkpoints/*/manifest.json") if path.parent.name.isdigit()]
    if manifests:
        return _file_digest(max(manifests, key=lambda path: int(path.parent.name)))
    return digest(sorted((str(p.relative_to(folder)), _file_digest(p)) for p in folder.rglob("*") if p.is_file()))
