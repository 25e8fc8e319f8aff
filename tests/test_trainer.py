"""`Trainer`: a run's data may not change under it, runs that can learn nothing are refused, and a notebook can use it."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest

from rmjax import Trainer, methods
from rmjax import config as base
from rmjax.data.formats import Format
from rmjax.models.parameters import flat
from rmjax.reward_model import MODEL_FILE
from tests.experiments.starting import save_start
from tests.methods.test_contract import configured, home  # noqa: F401

PREFERENCE, DPO = methods.METHODS["preference"], methods.METHODS["dpo"]


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def swapped(row):
    return row | {"chosen": row["rejected"], "rejected": row["chosen"]}


@pytest.fixture(scope="module")
def stopped(home, tmp_path_factory):  # noqa: F811
    """(folder of a finished run of two steps, its config with more steps to go, its data)."""
    folder = tmp_path_factory.mktemp("trainer")
    data = folder / "data.jsonl"
    data.write_text((home / "comparisons.jsonl").read_text() + '{"prompt": "p", "reference": "r", "output": "a"}\n')
    config = configured(home, PREFERENCE, data__path=str(data), data__on_error="skip", run__steps=2)
    Trainer(config, folder / "run").run()
    return folder / "run", config, data


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[::-1], "had 8 records then and has 8 now"),
        (lambda rows: rows[:5], "had 8 records then and has 5 now"),
        (lambda rows: [swapped(rows[0]), *rows[1:]], "had 8 records then and has 8 now"),
    ],
    ids=["reversed", "shortened", "a label swapped"],
)
def test_data_that_changed_under_a_run_is_refused(stopped, change, said):
    folder, config, data = stopped
    before = data.read_text()
    data.write_text("".join(json.dumps(row) + "\n" for row in change(rows_of(data))))
    try:
        with pytest.raises(ValueError, match=f"holds a run on other data: stream 'preference' {said} .SHA-256"):
            Trainer(config, folder).run()
    finally:
        data.write_text(before)
    Trainer(config, folder).run()  # finished, on the same data: nothing to do


def test_a_format_that_changed_under_a_run_is_refused(stopped):
    """A template's file or the model behind `model.init` may change while the config stays."""
    folder, config, _ = stopped
    path = folder / MODEL_FILE
    before = path.read_text()
    path.write_text(before.replace('"response_cut_side": "right"', '"response_cut_side": "left"'))
    try:
        with pytest.raises(ValueError, match=r"holds a run with other tokens: format\.response_cut_side changed"):
            Trainer(config, folder).run()
    finally:
        path.write_text(before)


def test_the_day_of_a_template_is_that_of_the_first_start(tmp_path, monkeypatch):
    run = SimpleNamespace(chosen=None, start=SimpleNamespace(tokenizer=None), config=base.settle(base.get_config()))
    today, first = (Format(kind="chat", template="t", date=f"2026-11-{day}") for day in (28, 27))
    monkeypatch.setattr("rmjax.trainer.format_of", lambda *_: today)
    monkeypatch.setattr("rmjax.trainer.load_description", lambda _: (None, first, None))
    assert Trainer._format(SimpleNamespace(**vars(run), workdir=tmp_path)) == today
    (tmp_path / MODEL_FILE).touch()
    assert Trainer._format(SimpleNamespace(**vars(run), workdir=tmp_path)) == first


def test_what_was_left_out_is_in_the_run_and_may_go(stopped):
    folder, config, data = stopped
    found = json.loads((folder / "data.json").read_text())["preference"]
    assert (found["records"], found["skipped"]) == (8, {"outputs: only one candidate": 1})
    before = data.read_text()
    data.write_text("".join(json.dumps(row) + "\n" for row in rows_of(data)[:8]))
    try:
        Trainer(config, folder).run()
    finally:
        data.write_text(before)


def test_a_notebook_steps_and_evaluates_without_a_folder(home):  # noqa: F811
    trainer = Trainer(configured(home, PREFERENCE))
    before = {path: np.asarray(leaf).copy() for path, leaf in flat(trainer._started().trainable).items()}
    losses = [trainer.step()["loss"] for _ in range(3)]
    assert losses[-1] < losses[0] and trainer.evaluate() == {}
    assert int(trainer.state.step) == 3
    assert any(not np.array_equal(before[path], leaf) for path, leaf in flat(trainer.state.trainable).items())
    with pytest.raises(ValueError, match="a run needs a folder to write to; give Trainer"):
        trainer.run()


def test_a_zero_head_that_is_not_trained_is_refused(home, tmp_path):  # noqa: F811
    config = configured(home, PREFERENCE, model__init=str(save_start(tmp_path / "zero")), trainable="mlp")
    with pytest.raises(ValueError, match="leaves out the reward head, which is zero: every gradient would be 0; add"):
        Trainer(config, tmp_path / "run").run()
    trained = configured(home, PREFERENCE, trainable="mlp")  # of a start whose head is not zero
    assert Trainer(trained).step()["gradient_norm"] > 0


def test_a_run_whose_gradient_is_zero_says_so_once(home, tmp_path, caplog):  # noqa: F811
    config = configured(home, PREFERENCE, optimizer__clip=0.0)
    trainer = Trainer(config, tmp_path)
    draw = trainer.source.next

    def weightless(state, step):
        forest = draw(state, step)
        return forest.replace(weight_RG=np.zeros_like(forest.weight_RG))

    trainer.source.next = weightless
    with caplog.at_level(logging.WARNING):
        trainer.run()
    assert caplog.text.count("gradient_norm is 0 in the first 3 steps: nothing is learned") == 1


def test_one_step_without_warm_up_learns(home, tmp_path):  # noqa: F811
    trainer = Trainer(configured(home, PREFERENCE, run__steps=1, optimizer__warmup=0.03), tmp_path)
    before = flat(trainer._started().trainable)["head/kernel"].copy()
    assert not np.array_equal(before, flat(trainer.run().trainable)["head/kernel"])


def test_an_interrupted_run_leaves_a_trainer_that_goes_on(home, tmp_path):  # noqa: F811
    trainer = Trainer(configured(home, PREFERENCE), tmp_path)
    draw, stopped = trainer.source.next, []

    def interrupted(state, step):
        if step == 4 and not stopped:
            stopped.append(step)
            raise KeyboardInterrupt
        return draw(state, step)

    trainer.source.next = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert int(trainer.run().step) == 4  # from the checkpoint of step 2
    assert np.isfinite(trainer.step(trainer.source.next(trainer.state, 5))["loss"])


def test_a_damaged_record_of_the_data_is_named(stopped):
    folder, config, _ = stopped
    path = folder / "data.json"
    before = path.read_text()
    path.write_text("{")
    try:
        with pytest.raises(ValueError, match="data.json: not what a run writes"):
            Trainer(config, folder).run()
    finally:
        path.write_text(before)


def test_a_rate_for_no_path_and_a_coordinator_that_was_not_joined_are_refused(home):  # noqa: F811
    with pytest.raises(
        ValueError, match="config.optimizer.rates has the pattern 'haed', which matches no trained path"
    ):
        Trainer(configured(home, PREFERENCE, optimizer__rates=("haed=10",)))
    with pytest.raises(
        ValueError, match="config.hosts.coordinator is '10.0.0.1:1', but this process has joined no other"
    ):
        Trainer(configured(home, PREFERENCE, hosts__coordinator="10.0.0.1:1"))


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        (PREFERENCE, {"run__steps": 1, "optimizer__warmup": 0.6},
         "config.optimizer.warmup is 0.6 and config.run.steps is 1: the learning rate is 0 at its highest"),
        (PREFERENCE, {"optimizer__learning_rate": 1e-60}, "config.run.steps is .*: the learning rate is 0 at its highest"),
        (PREFERENCE, {"optimizer__rates": (".*=0",)}, "config.optimizer.rates is .*the learning rate of every trained path 0"),
        (DPO, {"trainable": "head"},
         "config.trainable is 'head': all that would move is policy/head/kernel, the reward head, which objective=dpo does not"),
        (DPO, {"optimizer__rates": ("backbone=0",)}, "config.trainable is .*: all that would move is policy/head/kernel"),
    ],
    ids=["warm-up", "underflow", "rates", "head of a policy", "rates of all but the head"],
)  # fmt: skip
def test_runs_in_which_nothing_would_move_are_refused(home, method, changes, message):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        Trainer(configured(home, method, **changes))


def test_a_learning_rate_of_0_and_a_warm_up_of_the_whole_run_are_taken(home):  # noqa: F811
    Trainer(configured(home, PREFERENCE, optimizer__learning_rate=0.0))
    Trainer(configured(home, PREFERENCE, run__steps=2, optimizer__warmup=1.0))


def test_what_encoding_changed_is_in_the_metrics(home, tmp_path):  # noqa: F811
    data = tmp_path / "data.jsonl"
    rows = rows_of(home / "comparisons.jsonl")
    data.write_text("".join(json.dumps(row | {"prompt": f"{row['prompt']}<|im_end|>"}) + "\n" for row in rows))
    Trainer(configured(home, PREFERENCE, data__path=str(data), run__steps=1), tmp_path / "run").run()
    (line,) = rows_of(tmp_path / "run" / "metrics.jsonl")
    assert line["train/cut_groups"] == 0
    assert {name for name in line if "encoding/" in name} == {"train/encoding/special_token_in_text"}
    assert line["train/encoding/special_token_in_text"] >= 1
