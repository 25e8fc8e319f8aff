"""Integrity of a checkpoint: a manifest of sizes and SHA-256, written last and atomically."""

import hashlib
import json
import logging
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from rmjax.files import write_text

MANIFEST = "manifest.json"
_READERS = 8  # files hashed at once: reading and SHA-256 leave Python's lock alone
_log = logging.getLogger(__name__)


def write_manifest(path: Path, beside: Path | None = None) -> None:
    """Seals the checkpoint `path`: flushes its files to the disk, then writes their manifest.

    beside: another sealed folder that has to be there with it.
    """
    found = sorted(file for file in path.rglob("*") if file.is_file())
    with ThreadPoolExecutor(_READERS) as pool:
        sealed = list(pool.map(_sealed, found))
    files = {str(file.relative_to(path)): entry for file, entry in zip(found, sealed, strict=True)}
    manifest = {"step": _step(path), "processes": jax.process_count(), "files": files}
    if beside is not None:
        manifest["beside"] = fingerprint(beside / MANIFEST)["sha256"]
    write_text(path / MANIFEST, json.dumps(manifest, indent=1))


def needed_beside(path: Path) -> str | None:
    """SHA-256 of the manifest of the folder that has to be there with the intact checkpoint `path`; None where none has to."""
    return json.loads((path / MANIFEST).read_text(encoding="utf-8")).get("beside")


def _sealed(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    return fingerprint(file)


def _step(path: Path) -> int | str:
    return int(path.name) if path.name.isdigit() else path.name


def fingerprint(file: Path) -> dict[str, Any]:
    """`size` in bytes and `sha256` of a file."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"size": file.stat().st_size, "sha256": digest}


def find_damage(path: Path) -> str | None:
    """What is wrong with a finished checkpoint, naming the file; None if nothing is."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        expected = {str(name): (f["size"], f["sha256"]) for name, f in manifest["files"].items()}
        if manifest["step"] != _step(path) or not manifest["processes"]:
            raise ValueError("another step's manifest")
    except (OSError, ValueError, TypeError, AttributeError, LookupError) as error:
        return f"{MANIFEST} is unreadable ({error})"
    for name, (size, _) in expected.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
    with ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(_digest, [path / name for name in expected]))
    for (name, (_, digest)), read in zip(expected.items(), found, strict=True):
        if read != digest:
            return f"{name} has other content than was saved (SHA-256 differs)" if read else f"{name} is missing"
    return None


def _digest(file: Path) -> str:
    """SHA-256; empty where the file has gone, as when the run that owns it deletes it meanwhile."""
    try:
        return fingerprint(file)["sha256"]
    except FileNotFoundError:
        return ""


def set_aside(path: Path, damage: str) -> None:
    """Renames a damaged checkpoint to `<step>.damaged`, and says so in the log and as a warning."""
    names = [f"{path.name}.damaged", *(f"{path.name}.damaged.{i}" for i in range(1, 1000))]
    aside = next(p for p in map(path.with_name, names) if not p.exists())
    message = f"checkpoint of step {path.name} is damaged: {path}: {damage}; "
    try:
        path.rename(aside)
        message += f"set aside as {aside.name}"
    except OSError as error:
        message += f"could not be set aside ({error})"
    _log.error(message)
    warnings.warn(message, RuntimeWarning, stacklevel=2)
