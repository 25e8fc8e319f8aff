"""Folders of models by name: `shipped:NAME` is one in the package, `org/model[@revision]` one in huggingface_hub's cache."""

import re
from importlib import resources
from pathlib import Path

from rmjax.fetch import DOWNLOAD, included, snapshot

SHIPPED = "shipped:"
DEFAULT = "shipped:polar-smollm2"
FOLDER = Path(str(resources.files("rmjax.hub"))) / "models"


def shipped_models() -> list[str]:
    """Names of the models in the package."""
    return sorted(path.parent.name for path in FOLDER.glob("*/model.json"))


def model_folder(path: str | Path) -> Path:
    """The folder of a model: that of a shipped one; of one of the hub, if nothing here has that name and the cache has it; any
    other path as it is. Nothing is fetched but where RMJAX_DOWNLOAD asks for it.

    Raises:
      FileNotFoundError: there is no shipped model of that name, and the message lists those that exist; or the hub refuses it.
    """
    name = str(path).removeprefix(SHIPPED)
    if name == str(path):
        return Path(path) if Path(path).exists() else cached(name) or Path(path)
    if name not in shipped_models():
        known = ", ".join(f"{SHIPPED}{each}" for each in shipped_models()) or "none in this installation"
        raise FileNotFoundError(f"{path}: no such model comes with rmjax; there are: {known}")
    return FOLDER / name


FILES = ("*.json", "model*.safetensors", "*.jinja", "tokenizer.model")
"""Of a repository, what is read."""
_HUB_NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")


def cached(name: str) -> Path | None:
    """The folder of `org/model[@revision]` in huggingface_hub's cache; None where it is not there, or the name is none."""
    found = _HUB_NAME.fullmatch(name)
    return snapshot(found["repo"], found["revision"], FILES) if found else None


def fetching(name: str | Path) -> str:
    """What fetches a name of the hub, as the end of a sentence; "" where it is none."""
    if not (found := _HUB_NAME.fullmatch(str(name))) or Path(name).exists():
        return ""
    revision = f" --revision {found['revision']}" if found["revision"] else ""
    command = f"hf download {found['repo']}{revision} {included(FILES)}"
    return f"; as a model of the hub it is not in huggingface_hub's cache: run `{command}`, or set {DOWNLOAD}=1"
