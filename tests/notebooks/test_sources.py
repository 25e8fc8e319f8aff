"""Sources of the notebooks, and what is made of them."""

import ast
import json
import re

import pytest

pytest.importorskip("jupytext")
from rmjax.data.sources import records  # noqa: E402
from rmjax.evaluate import plots  # noqa: E402
from rmjax.evaluate.gaps import gap_fractions  # noqa: E402
from tools.notebooks import COMMAND, FOLDER, main, notebook, sources, stale  # noqa: E402

LONGEST = 20  # lines of a cell
MACHINE = re.compile(r"""["'(= ]/(?!content/)[a-z]+/|[A-Z]:\\\\""")
NAMES = [source.stem for source in sources()]


def of(name: str):
    return notebook(FOLDER / f"{name}.py")


def code(name: str) -> list[str]:
    return [cell.source for cell in of(name).cells if cell.cell_type == "code"]


def test_there_are_four():
    assert NAMES == ["1_score_and_look", "2_your_own_data", "3_loramoe", "4_metarm"]


def test_notebooks_are_what_their_sources_say():
    assert not stale(), "run python -m tools.notebooks"


def test_a_change_is_found(tmp_path, capsys):
    source, made = tmp_path / "a.py", tmp_path / "a.ipynb"
    source.write_text("# %% [markdown]\n# # Title\n\n# %%\n# %matplotlib inline\nx = 1\n")
    (tmp_path / "b.ipynb").write_text("{}")  # of no source
    assert [path.name for path in stale(tmp_path)] == ["a.ipynb", "b.ipynb"]
    assert main([], tmp_path) == 0 and [path.name for path in stale(tmp_path)] == ["b.ipynb"]
    assert [cell["source"] for cell in json.loads(made.read_text())["cells"]] == [
        ["# Title"],
        ["%matplotlib inline\n", "x = 1"],
    ]
    (tmp_path / "b.ipynb").unlink()
    assert main(["--check"], tmp_path) == 0
    source.write_text(source.read_text().replace("1", "2"))
    assert main(["--check"], tmp_path) == 1
    assert capsys.readouterr().err == f"{tmp_path.name}/a.ipynb is not what its source says; run {COMMAND}\n"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_a_run_or_a_machine_is_in_them(name):
    made = of(name)
    assert all(not cell.outputs and cell.execution_count is None for cell in made.cells if cell.cell_type == "code")
    assert not MACHINE.search((FOLDER / f"{name}.py").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_short_and_each_part_says_what_it_does(name):
    made = of(name)
    assert made.cells[0].cell_type == "markdown" and made.cells[0].source.startswith("# ")
    assert max(len(source.splitlines()) for source in code(name)) <= LONGEST
    headings = [cell.source for cell in made.cells if cell.source.startswith("## ")]
    assert len(headings) >= 5 and all(len(heading.splitlines()) > 1 for heading in headings)


def test_all_begin_alike():
    """One install cell, one check of what it installed."""
    assert len({tuple(code(name)[:2]) for name in NAMES}) == 1


@pytest.mark.parametrize("name", NAMES)
def test_only_the_public_library_is_used(name):
    plain = "\n".join(line for source in code(name) for line in source.splitlines() if not line.startswith("%"))
    roots = set()
    for node in ast.walk(ast.parse(plain)):
        if isinstance(node, ast.ImportFrom):
            roots.add(str(node.module).split(".")[0])
        elif isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
    assert not roots & {"experiments", "configs", "tests", "tools", "tensorflow"} and "rmjax" in roots


def test_the_first_notebook_judges_on_no_prompt_that_its_model_was_trained_on():
    from configs.polar.shipped import get_config

    (cell,) = [source for source in code("1_score_and_look") if "evaluate_comparisons(held_out" in source]
    chosen = {"records": records, "EVERY": 1}
    exec(cell[: cell.index("scores = ")], chosen)
    assert len(chosen["held_out"]) > 50
    assert not {c.prompt for c in chosen["held_out"]} & {c.prompt for c in records(get_config().data.path)}


def test_the_figure_of_gaps_is_given_what_it_takes():
    """Notebook 4 gives fractions by bin; raw gaps would be drawn as if they were these."""
    drawn = "plots.gap_distributions({name: gap_fractions(reward_gaps(scores[name])) for name in ARMS})"
    assert drawn in code("4_metarm")[-2]
    (axes,) = plots.gap_distributions({"a": gap_fractions([0.0, 1.0, 2.0])}).axes
    assert len(axes.patches[0].get_data().values) == len(gap_fractions([1.0]))  # type: ignore[attr-defined]
