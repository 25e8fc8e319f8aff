"""Notebooks from their sources: `python -m tools.notebooks` writes `notebooks/NAME.ipynb` for each `notebooks/NAME.py`.

A source is a jupytext percent file, which is reviewed, linted and changed; the notebook is what Colab and Jupyter open. It has no
outputs, and its cells are numbered, so that the same source gives the same bytes. `--check` writes nothing and says which differ.
"""

import sys
from pathlib import Path

import jupytext
import nbformat

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
COMMAND = "python -m tools.notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
    "colab": {"provenance": [], "toc_visible": True},
}


def sources(folder: Path = FOLDER) -> list[Path]:
    """The percent files in their order."""
    return sorted(folder.glob("*.py"))


def notebook(source: Path) -> nbformat.NotebookNode:
    """The notebook of a percent file."""
    made = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent")
    for number, cell in enumerate(made.cells):
        cell.id = f"cell-{number}"
    made.metadata, made.nbformat, made.nbformat_minor = nbformat.from_dict(METADATA), 4, 5
    nbformat.validate(made)
    return made


def text(source: Path) -> str:
    """What stands in the .ipynb file."""
    return nbformat.writes(notebook(source)) + "\n"


def stale(folder: Path = FOLDER) -> list[Path]:
    """The .ipynb files that are not what their source says, are missing, or have no source."""
    wanted = {source.with_suffix(".ipynb"): text(source) for source in sources(folder)}
    found = {path: path.read_text(encoding="utf-8") for path in folder.glob("*.ipynb")}
    return sorted(path for path in wanted.keys() | found.keys() if wanted.get(path) != found.get(path))


def main(arguments: list[str], folder: Path = FOLDER) -> int:
    """The exit code."""
    if "--check" not in arguments:
        for source in sources(folder):
            source.with_suffix(".ipynb").write_text(text(source), encoding="utf-8")
        return 0
    for path in (found := stale(folder)):
        print(f"{folder.name}/{path.name} is not what its source says; run {COMMAND}", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
