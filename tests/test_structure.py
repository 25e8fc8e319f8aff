"""The house's floors: nothing imports upwards, and no file but the registry imports a method."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BELOW = {
    "files": set(),
    "fetch": set(),
    "terminal": set(),
    "losses": {"sections"},
    "models": set(),
    "parallel": set(),
    "data": {"files", "fetch", "models", "parallel"},
    "hub": {"files", "fetch", "models", "data"},
    "train": {"files", "terminal", "models", "losses", "parallel", "data"},
    "policy": {"files", "models", "parallel", "data", "hub"},
    "launch": {"files", "sections"},
    "rewards": {"sections", "models", "data", "evaluate"},
}
"""Room → the rooms below it that it may import. Rooms that are not listed stand above these and may import all of them."""
UPPER = "evaluate"
TOP = {"experiments", "configs", "tools"}


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


LONGEST = 450  # lines of a file
FOLDERS = ("rmjax", "rmjax_client", "experiments", "configs", "launch", "notebooks", "tools")


def test_no_file_is_longer_than_can_be_read_at_once():
    """Tests are lists of cases and may be."""
    lines = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").count("\n") for folder in FOLDERS
             for path in (ROOT / folder).rglob("*.py")}  # fmt: skip
    assert len(lines) > 200 and {path: count for path, count in lines.items() if count > LONGEST} == {}


OWN = {
    "metarm": {"methods/metarm.py", "losses/difference.py", "methods/__init__.py"},
    "loramoe": {
        "methods/adapters.py", "losses/balance.py", "models/loramoe.py", "evaluate/routing.py",
        "models/lora.py", "models/adapters.py",
    },
}  # fmt: skip
"""A method's name → the files of rmjax/ that may have it: its own, and the last one or two, which offer it."""


@pytest.mark.parametrize("name", OWN)
def test_a_method_is_named_in_its_own_files(name):
    files = {p.relative_to(ROOT / "rmjax").as_posix(): p for p in (ROOT / "rmjax").rglob("*.py")}
    assert {path for path, p in files.items() if name in p.read_text(encoding="utf-8").lower()} == OWN[name]


def test_methods_are_imported_by_the_registry_alone():
    methods = {f"rmjax.methods.{p.stem}" for p in (ROOT / "rmjax/methods").glob("[!_]*.py")} - {"rmjax.methods.method"}
    for path in (ROOT / "rmjax").rglob("*.py"):
        if path.parent.name != "methods":
            assert not imports(path.read_text(encoding="utf-8")) & methods, path
