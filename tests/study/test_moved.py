"""A cell that is half done goes on with the same data in another place."""

import json
import shutil

import pytest

from rmjax import Trainer, methods
from rmjax.evaluate.rows import Row
from rmjax.study.cells import Cell
from rmjax.study.moved import follow
from rmjax.study.study import SUPERSEDED, Study, result_of, run_cell
from tests.methods.test_contract import configured, home  # noqa: F401


def steps_logged(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def measure(cell, workdir):
    yield Row("item", "cluster", "steps", float(len(steps_logged(workdir / cell.name))))


def train(config, folder):
    Trainer(config, folder).run()


def half(config, folder):
    """A run that is stopped after the checkpoint of its second step of four."""
    trainer, taken = Trainer(config, folder), []
    step = trainer._compiled
    trainer._compiled = lambda *given: step(*given) if len(taken) < 3 and not taken.append(0) else stop()
    trainer.run()


def stop():
    raise KeyboardInterrupt


def study(home, data, **changes):  # noqa: F811
    config = configured(home, methods.METHODS["preference"], data__path=str(data), run__steps=4)
    config.model.init = "work:start"
    return Study("s", (Cell("a", {}, config),), changes.pop("train", train), measure, **changes)


@pytest.mark.slow
def test_a_half_done_cell_goes_on_where_its_data_and_its_folder_moved(home, tmp_path, capsys):  # noqa: F811
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    shutil.copy(home / "comparisons.jsonl", old / "data.jsonl")
    shutil.copytree(home / "start", old / "study" / "start")
    with pytest.raises(KeyboardInterrupt):
        run_cell(study(home, old / "data.jsonl", train=half), "a", old / "study")
    assert [path.name for path in (old / "study" / "a" / "checkpoints").iterdir() if path.name.isdigit()] == ["2"]
    old.rename(new)
    made = study(home, new / "data.jsonl")
    assert result_of(made, made.cells[0], new / "study").status == "begun"
    assert [row.value for row in run_cell(made, "a", new / "study").rows] == [4.0]
    assert "a: goes on with the same data in another place" in capsys.readouterr().err
    assert steps_logged(new / "study" / "a") == [1, 2, 3, 4] and not (new / "study" / SUPERSEDED).exists()


def test_paths_below_a_root_follow_it_and_nothing_else_changes(tmp_path):
    config = {"root": "/old", "path": "/old/set.jsonl", "other": "/older/x", "name": "old", "deep": [{"init": "/old"}]}
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.json").write_text(json.dumps(config))
    assert follow(tmp_path, {"root": "/old", "gone": "/old/deep"}, {"root": "/new"})
    told = {"root": "/new", "path": "/new/set.jsonl", "other": "/older/x", "name": "old", "deep": [{"init": "/new"}]}
    assert json.loads((tmp_path / "one" / "config.json").read_text()) == told
    assert not follow(tmp_path, {"root": "/new"}, {"root": "/new"})
