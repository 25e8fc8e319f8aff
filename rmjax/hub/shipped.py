"""Models that come with the package: `shipped:NAME` is a folder in it."""

from importlib import resources
from pathlib import Path

SHIPPED = "shipped:"
DEFAULT = "shipped:polar-smollm2"
FOLDER = Path(str(resources.files("rmjax.hub"))) / "models"


def shipped_models() -> list[str]:
    """Names of the models in the package."""
    return sorted(path.parent.name for path in FOLDER.glob("*/model.json"))


def model_folder(path: str | Path) -> Path:
    """The folder of a model: that of a shipped one, any other path as it is.

    Raises:
      FileNotFoundError: there is no shipped model of that name; the message lists those that exist.
    """
    name = str(path).removeprefix(SHIPPED)
    if name == str(path):
        return Path(path)
    if name not in shipped_models():
        known = ", ".join(f"{SHIPPED}{each}" for each in shipped_models()) or "none in this installation"
        raise FileNotFoundError(f"{path}: no such model comes with rmjax; there are: {known}")
    return FOLDER / name
