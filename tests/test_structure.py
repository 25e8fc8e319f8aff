"""The house's floors: nothing imports upwards, and no file but the registry imports a method."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BELOW = {
    "files": set(),
    "terminal": set(),
    "losses": set(),
    "models": set(),
    "parallel": set(),
    "data": {"files", "models", "parallel"},
    "hub": {"files", "models", "data"},
    "train": {"files", "terminal", "models", "losses", "parallel", "data"},
    "policy": {"files", "models", "data", "hub"},
}
"""Room → the rooms below it that it may import. Rooms that are not listed stand above these and may import all of them."""
UPPER = "evaluate"
TOP = {"experiments", "configs"}


def imports(text: str) -> set[str]:
    """Modules that a file imports, at whatever level of nesting."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def upward(path: str, text: str) -> list[str]:
    """The imports of a file of rmjax/ that run up the house."""
    room = Path(path).parts[1].removesuffix(".py")
    bad = []
    for module in sorted(imports(text)):
        top, _, rest = module.partition(".")
        target = rest.split(".")[0]
        allowed = BELOW.get(room)
        if top in TOP or (top == "rmjax" and target and allowed is not None and target not in {room, *allowed}):
            bad.append(module)
    return bad


@pytest.mark.parametrize("path", sorted(str(p.relative_to(ROOT)) for p in (ROOT / "rmjax").rglob("*.py")))
def test_nothing_imports_upwards(path):
    assert upward(path, (ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("rmjax/models/reward.py", "from rmjax.data.packing import Tree"),
        ("rmjax/data/pool.py", "from rmjax.train import loop"),
        ("rmjax/losses/ranking.py", "import rmjax.models.forest"),
        ("rmjax/trainer.py", "from experiments.train import run"),
        ("rmjax/evaluate/page.py", "def f():\n    from configs import demo"),
        ("rmjax/hub/gguf.py", "from rmjax.train.loop import train"),
    ],
)
def test_an_upward_import_is_found(path, line):
    assert upward(path, line)


def test_configs_are_data():
    """A config imports the library and other configs, never a command."""
    for path in (ROOT / "configs").rglob("*.py"):
        assert not [m for m in imports(path.read_text(encoding="utf-8")) if m.startswith("experiments")], path
