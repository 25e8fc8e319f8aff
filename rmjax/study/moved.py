"""Cells that go on where their data lie elsewhere. The fingerprint says that the data are the same, which a run cannot know: it
keeps the paths of its config, and refuses others. So its `config.json` is told the new ones."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmjax.files import write_json
from rmjax.study.cells import Cell, leaves, placed
from rmjax.study.fingerprints import paths_of

_ROOT = r"(.*\.)?root"


def places(cell: Cell, workdir: Path) -> dict[str, str]:
    """Key → path, of the config's values that say where data lie. Those without effect, a `root`, are among them."""
    given, now = leaves(cell.config), leaves(placed(cell.config, workdir.resolve()))
    return {
        key: now[key]
        for key, value in given.items()
        if now[key] != value or re.fullmatch(_ROOT, key) or paths_of(key, value, given, workdir)
    }


def follow(folder: Path, before: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Puts the paths of `now` for those of `before` into the configs of all runs below `folder`; whether any had one."""
    moved = {path: now[key] for key, path in before.items() if path and now.get(key, path) != path}
    found = (
        {path: json.loads(path.read_text(encoding="utf-8")) for path in folder.rglob("config.json")} if moved else {}
    )
    changed = {path: told for path, config in found.items() if (told := _told(config, moved)) != config}
    for path, config in changed.items():
        write_json(path, config)
    return bool(changed)


def _told(value: Any, moved: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: _told(each, moved) for name, each in value.items()}
    if isinstance(value, list):
        return [_told(each, moved) for each in value]
    if not isinstance(value, str):
        return value
    begins = [old for old in moved if value == old or value.startswith(old.rstrip("/") + "/")]
    old = max(begins, key=len, default=None)
    return value if old is None else moved[old] + value[len(old) :]
