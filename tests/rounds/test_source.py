"""Rounds as a source: a round is drawn once, from the parameters that it begins with, and read again ever after."""

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.data.packing import ForestShape, Tree
from rmjax.data.record import Comparison
from rmjax.rounds.files import Round, RoundFiles
from rmjax.rounds.plan import Plan
from rmjax.rounds.source import Rounds

QUESTIONS = [Comparison(f"p{i}", (), id=f"q{i}") for i in range(6)]
PLAN = Plan(questions=6, prompts=3, updates=2, passes=2, seed=1)


class Draw:
    """Answers that depend on the parameters and the seed; keeps what it was called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, params, measured, asked, seed):
        value, reference = float(params["policy"]["w"][0]), float(measured["reference"]["w"][0])
        self.calls.append((value, reference, [c.id for c in asked], seed))
        columns = {"rewards": (value, float(seed % 7)), "token_ids": ((1, 2), (3,))}
        records = [dataclasses.replace(c, outputs=("a", "b"), columns=columns) for c in asked]
        return Round(records, list(range(len(asked))), {"reward": value})


def trees(c, record):
    branches = tuple(np.asarray(ids, np.int32) for ids in c.columns["token_ids"])
    columns = {"reward_RGN": list(c.columns["rewards"])}
    return [Tree(np.array([9], np.int32), branches, np.full(2, np.inf, np.float32), record=record, columns=columns)]


def state(value):
    return SimpleNamespace(
        trainable={"policy": {"w": jnp.full(2, value)}}, frozen={"reference": {"w": jnp.zeros(2)}}, step=0
    )


def source(folder, draw=None, plan=PLAN, refresh=0, prepare=lambda c: c):
    files = RoundFiles(folder, {"reward": "r"}) if folder else None
    shape = ForestShape(4, 8, 2, 2, ("reward_RGN",))
    return Rounds(
        plan, QUESTIONS, range(10, 16), draw or Draw(), prepare, trees, shape, 1, files, refresh, "reference", "policy"
    )


def arrays(forest):
    return [np.asarray(forest.record_RG).tolist(), np.asarray(forest.reward_RGN).tolist()]


def batches(rounds, first, last):
    return [arrays(rounds.next(state(float(step)), step)) for step in range(first, last + 1)]


def test_a_round_is_drawn_from_the_parameters_that_it_begins_with(tmp_path):
    draw = Draw()
    found = batches(source(tmp_path, draw), 1, 8)
    assert [(value, seed) for value, _, _, seed in draw.calls] == [(1.0, PLAN.seed_of(0)), (5.0, PLAN.seed_of(1))]
    assert draw.calls[0][2] == [QUESTIONS[i].id for i in PLAN.asked(0)]
    for first in (0, 4):
        records = [i for batch in found[first : first + 2] for row in batch[0] for i in row if i >= 0]
        assert sorted(records) == sorted(10 + i for i in PLAN.asked(first // 4))


@pytest.mark.parametrize("stopped", [1, 2, 3, 4, 5, 7])
def test_a_run_that_stopped_at_any_step_goes_on_with_the_same_batches(tmp_path, stopped):
    """Whatever the checkpoint's step was, and though rounds were drawn beyond it."""
    whole = batches(source(tmp_path / "whole"), 1, 8)
    first = source(tmp_path / "stopped")
    batches(first, 1, stopped)
    saved = first.get_state()
    batches(first, stopped + 1, 8)  # lost with the process, but for the files
    draw = Draw()
    again = source(tmp_path / "stopped", draw)
    again.set_state(saved)
    assert batches(again, stopped + 1, 8) == whole[stopped:] and not draw.calls
    assert again.metrics(8) == first.metrics(8) and saved == {"step": stopped}


def test_a_round_whose_file_is_gone_is_drawn_again_only_where_it_begins(tmp_path):
    first = source(tmp_path)
    whole = batches(first, 1, 5)
    first._files.path(0).unlink()
    with pytest.raises(
        ValueError, match="round-00000.jsonl is not there, and the run goes on inside round 0.*of step 0 or"
    ):
        source(tmp_path).next(state(2.0), 2)
    assert batches(source(tmp_path), 1, 5) == whole


def test_the_metrics_are_those_of_the_step_s_round(tmp_path):
    rounds = source(tmp_path)
    batches(rounds, 1, 5)
    assert rounds.metrics(4) == {
        "round": 0.0, "rollouts/staleness": 3.0, "rollouts/reward": 1.0, "rollouts/left_out_groups": 0.0,
    }  # fmt: skip
    assert rounds.metrics(5)["rollouts/reward"] == 5.0


@pytest.mark.parametrize("again", [False, True], ids=["one go", "stopped at each step"])
def test_the_reference_becomes_the_policy_every_so_many_rounds(tmp_path, again):
    draw, rounds = Draw(), source(tmp_path, refresh=2)
    for step in range(1, 25):
        rounds = source(tmp_path, draw, refresh=2) if again or step == 1 else rounds
        rounds.next(state(float(step)), step)
    references = [reference for _, reference, _, _ in draw.calls]
    assert references == [0.0, 0.0, 9.0, 9.0, 17.0, 17.0]


def test_a_reference_that_is_gone_is_named(tmp_path):
    batches(source(tmp_path, refresh=2), 1, 9)
    (tmp_path / "reference-00002.safetensors").unlink()
    with pytest.raises(ValueError, match="reference-00002.safetensors is not there, and rounds from 2 on"):
        source(tmp_path, refresh=2).next(state(13.0), 13)


def test_prompts_end_and_nothing_to_learn_from_is_an_empty_batch(caplog):
    assert source(None, plan=dataclasses.replace(PLAN, epochs=1)).next(state(9.0), 9) is None
    rounds = source(None, prepare=lambda c: "all samples of one reward")
    forest = rounds.next(state(1.0), 1)
    assert (np.asarray(forest.record_RG) == -1).all() and rounds.metrics(1)["rollouts/left_out_groups"] == 3
    assert "nothing is left to learn from" in caplog.text


def test_rows_are_as_few_as_the_answers_need():
    plan = Plan(questions=6, prompts=6, updates=1)
    assert source(None, plan=plan).next(state(1.0), 1).shape[0] == 3
    assert source(None, plan=dataclasses.replace(plan, prompts=2)).next(state(1.0), 1).shape[0] == 1
