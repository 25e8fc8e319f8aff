"""Every notebook from top to bottom, small."""

import pytest

pytest.importorskip("jupytext")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
from rmjax.data.readers import open_records  # noqa: E402
from rmjax.data.sources import pool  # noqa: E402
from tests.experiments.starting import save_start  # noqa: E402
from tests.notebooks.running import SMALL, run, small  # noqa: E402
from tools.notebooks import FOLDER, notebook, sources  # noqa: E402

FIGURES = {"1_score_and_look": 2, "2_your_own_data": 0, "3_loramoe": 2, "4_metarm": 3}


def test_every_notebook_has_a_small_form():
    assert SMALL.keys() == {source.stem for source in sources()} == FIGURES.keys()


@pytest.mark.parametrize("name", SMALL)
def test_parameters_are_those_of_the_notebook(name):
    made = small(notebook(FOLDER / f"{name}.py"), SMALL[name])
    assert any(cell.id == "injected-parameters" for cell in made.cells)
    with pytest.raises(KeyError, match="no parameter WRONG"):
        small(notebook(FOLDER / f"{name}.py"), {"WRONG": 1})


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_it_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    if name == "1_score_and_look":
        save_start(tmp_path / "model", head=0.02)
    done = run(small(notebook(FOLDER / f"{name}.py"), SMALL[name]), tmp_path)
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output.data for output in outputs if output.output_type in ("execute_result", "display_data")]
    assert sum("image/png" in data for data in shown) == FIGURES[name]
    if name == "2_your_own_data":
        assert any("<iframe srcdoc=" in data.get("text/html", "") for data in shown)
        folder = tmp_path / "runs/notebook"
        assert (folder / "report/report.html").is_file()
        assert pool(str(folder / "example_policies.jsonl"), "all", "all").policies == ["brief", "polite"]
        assert len(open_records(str(folder / "example_preferences.jsonl"))) == 2
