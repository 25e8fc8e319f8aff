"""Notebooks at a size that a test can afford: their parameter cells are followed by one that makes everything tiny."""

import ast
from pathlib import Path

import nbformat
from nbclient import NotebookClient

TINY = {"init": "random", "layers": 2, "frozen_layers": 0, "width": 32, "heads": 4, "kv_heads": 2, "mlp_width": 64}
SMALL = {
    "1_score_and_look": {"MODEL": "model", "EVERY": 11},
    "2_your_own_data": {
        "HELD_OUT": "runs/notebook/example_preferences.jsonl",  # which the notebook writes
        "MODEL": TINY,
        "STEPS": {"pretrain": 3, "finetune": 3},
    },
    "3_loramoe": {"MODEL": TINY, "STEPS": 4, "EVERY": 9},
    "4_metarm": {"MODEL": TINY, "STEPS": 5, "PLAIN_FIRST": 2, "EVERY": 11},
}
"""Notebook → what its parameters become."""


def small(made: nbformat.NotebookNode, values: dict[str, object]) -> nbformat.NotebookNode:
    """The notebook with these parameters. KeyError for one that its parameter cell does not set."""
    (index,) = [i for i, cell in enumerate(made.cells) if "parameters" in cell.metadata.get("tags", [])]
    known = {
        name.id
        for node in ast.parse(made.cells[index].source).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        for name in ast.walk(target)
        if isinstance(name, ast.Name)
    }
    if unknown := values.keys() - known:
        raise KeyError(f"no parameter {', '.join(sorted(unknown))}")
    source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    made.cells.insert(index + 1, nbformat.v4.new_code_cell(source, id="injected-parameters"))
    return made


def run(made: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs, run from top to bottom in `folder`."""
    resources = {"metadata": {"path": str(folder)}}
    return NotebookClient(made, timeout=300, kernel_name="python3", resources=resources).execute()
