"""What a cell's result depends on, so that it is made again when that changed, and only then."""

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmjax.data.preferences import PREFERENCE_SETS, set_path
from rmjax.data.sources import SHIPPED, located
from rmjax.study.cells import Cell, leaves

Fingerprint = dict[str, Any]
"""`config`: key → value; `data`: key, or `cell:NAME` → digest; `measure`: digest of the code that measures."""
_WITHOUT_EFFECT = r"hosts\.|data\.prefetch$|run\.(log_every|keep|keep_every|tensorboard|wandb)$"
"""Keys that say how a run is kept and shown."""


def fingerprint(cell: Cell, others: Mapping[str, Cell], workdir: Path, measure: str) -> Fingerprint:
    """Of a cell. The fingerprints of the cells that it needs are among its data.

    Args:
      cell: its files are there, as far as they are of other cells or of the study.
      others: all cells by name.
      workdir: of the study.
      measure: digest of the code that measures.
    """
    found = {key: _json(value) for key, value in leaves(cell.config).items() if not re.match(_WITHOUT_EFFECT, key)}
    data = {}
    for key, value in found.items():
        path = _path(key, value, found, workdir) if isinstance(value, str) else None
        if path is not None and (content := _content(path)):
            data[key] = content
    config = {key: value for key, value in found.items() if key not in data}  # where data lie has no effect
    for name in cell.needs:
        data[f"cell:{name}"] = digest(fingerprint(others[name], others, workdir, ""))
    return {"config": config, "data": data, "measure": measure}


def _path(key: str, value: str, config: Mapping[str, Any], workdir: Path) -> Path | None:
    """The file or folder that a config's string names; None if it names none."""
    if value.startswith("work:"):
        return workdir / value.removeprefix("work:")
    if value.startswith(SHIPPED):
        return Path(located(value))
    if value in PREFERENCE_SETS:
        root = config.get(f"{key.rsplit('.', 1)[0]}.root", config.get("root"))
        return set_path(value, root) if root else None
    return Path(value) if "/" in value or "." in value else None


def _json(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def digest(value: Any) -> str:
    """SHA-256 of something that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What changed between two fingerprints, in words; empty if nothing did."""
    parts = []
    config = [
        f"config.{key}: {before['config'].get(key)!r} then, {now['config'].get(key)!r} now"
        for key in sorted(before["config"].keys() | now["config"].keys())
        if before["config"].get(key) != now["config"].get(key)
    ]
    if config:
        parts.append("; ".join(config[:4]) + (f"; {len(config) - 4} more" if len(config) > 4 else ""))
    names = before["data"].keys() | now["data"].keys()
    data = [name for name in names if before["data"].get(name) != now["data"].get(name)]
    if data:
        parts.append(f"other data in {', '.join(f'config.{key}' if ':' not in key else key for key in sorted(data))}")
    if before["measure"] != now["measure"]:
        parts.append("another measure")
    return "; ".join(parts)


def _content(path: Path) -> str | None:
    try:
        if path.is_dir():
            return _folder_digest(path)
        return _file_digest(path) if path.is_file() else None
    except OSError:  # a text that is no path, say a longer one than paths may be
        return None


def _file_digest(path: Path) -> str:
    found = path.stat()
    return _cached_digest(path, found.st_mtime_ns, found.st_size)


@functools.lru_cache(maxsize=256)
def _cached_digest(path: Path, changed: int, size: int) -> str:
    del changed, size  # when they differ, so may the content
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder_digest(folder: Path) -> str:
    """Of a run: its newest checkpoint's manifest, which has the digests of all its files. Of other folders: names and sizes."""
    manifests = [path for path in folder.glob("checkpoints/*/manifest.json") if path.parent.name.isdigit()]
    if manifests:
        return _file_digest(max(manifests, key=lambda path: int(path.parent.name)))
    files = sorted((str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob("*") if path.is_file())
    return digest(files)
