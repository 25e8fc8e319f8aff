"""Runs of rounds: what they leave, and that a run that was stopped anywhere inside a round is the unbroken one."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rmjax import config as base
from rmjax.data.record import Comparison
from rmjax.losses.policy.presets import PRESETS
from rmjax.models.parameters import flat
from rmjax.reward_model import RewardModel, is_language_model, load_params
from rmjax.train.checkpoint import CheckpointError
from rmjax.train.metrics import read_metrics
from rmjax.trainer import Trainer
from tests import simulated
from tests.experiments import starting
from tests.experiments.running import final, finished, launch
from tests.rounds.running import Killed, answers_of, configured, dying, resolved, said, save_home


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return save_home(tmp_path_factory.mktemp("rounds"))


@pytest.fixture(scope="module")
def whole(home):
    """A run that nothing stopped."""
    config = configured(home)
    config.evals.held = base.answers_eval(str(home / "prompts.jsonl"), every=3, max_new_tokens=8, limit=3)
    Trainer(config, home / "whole").run()
    return home / "whole", config


def test_a_run_leaves_its_answers_and_says_what_came_of_them(whole):
    workdir, config = whole
    lines = [line for line in read_metrics(workdir / "metrics.jsonl") if "train/loss" in line]
    assert [line["train/round"] for line in lines] == [0, 0, 1, 1, 2, 2]
    fresh = [line for line in lines if line["train/rollouts/staleness"] == 0]
    assert len(fresh) == 3 and all(line["train/log_probability_gap"] < 1e-5 for line in fresh)
    assert all(line["train/ratio"] == pytest.approx(1, abs=1e-5) for line in fresh)
    wanted = {"reward", "reward_std", "equal_groups", "truncated", "answer_tokens", "dropped", "kl", "empty", "answers"}
    assert {f"train/rollouts/{name}" for name in wanted} <= set(lines[0])
    assert lines[0]["train/rollouts/kl"] < 1e-6 < lines[-1]["train/rollouts/kl"]
    assert sorted(answers_of(workdir)) == [f"round-{i:05}.jsonl" for i in range(3)]
    held = [line for line in read_metrics(workdir / "metrics.jsonl") if "eval/held/reward" in line]
    assert [line["step"] for line in held] == [0, 3, 6] and held[0]["eval/held/answers"] == 3
    assert len((workdir / "answers/held-0000003.jsonl").read_text().splitlines()) == 3
    assert is_language_model(workdir)


def test_a_round_s_file_is_a_file_of_samples(whole):
    workdir, config = whole
    config = config.copy_and_resolve_references()
    config.data.kind, config.data.path = "samples", str(workdir / "rollouts/round-00001.jsonl")
    found = base.chosen(config).records()
    assert len(found) == 4 and all(len(c.columns["advantages"]) == 4 for c in found.each())


def test_prompts_that_fit_no_row_are_left_out_and_counted_and_rows_for_the_longest_answers_are_needed(
    home, tmp_path, caplog
):
    path = tmp_path / "prompts.jsonl"
    long = {"prompt": "long " * 20, "id": "long"}
    path.write_text((home / "prompts.jsonl").read_text() + json.dumps(long) + "\n")
    with caplog.at_level(logging.INFO):
        trainer = Trainer(configured(home, data__path=str(path)))
    assert "left out 1 of 7 prompts" in caplog.text and trainer.source.plan.questions == 6
    assert "4 prompts × 4 samples = 16 answers, 2 updates on 2 prompts each" in caplog.text
    with pytest.raises(ValueError, match=r"data.rows is 4, and an update's 2 prompts × 16 .* may take 11 rows"):
        Trainer(configured(home, rollouts__samples=16, data__row_tokens=32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy__advantage": "given"}, "policy.advantage is 'given', which no round records"),
        (
            {"rollouts__samples": 1},
            "rollouts.samples is 1, and policy.baseline=group_mean is made of a prompt's others",
        ),
        ({"rollouts__refresh": 2, "policy__reference": "role"}, "set policy.reference=recorded"),
        ({"reward__parts": ()}, "config.reward.parts is empty"),
        ({"reward__parts": ("model=1",)}, "config.reward.model is empty"),
        ({"policy__temperature": 0.0}, "policy.temperature is 0.0; it must be above 0"),
        ({"data__path": ""}, "config.data.path is empty"),
        ({"rollouts__prompts": 9}, "rollouts.prompts is 9, and there are 6 prompts that fit"),
    ],
)
def test_what_a_config_may_not_say(home, changes, message):
    with pytest.raises(ValueError, match=message):
        Trainer(configured(home, **changes))


# --- stopped and gone on with --------------------------------------------------------------------------------------------


PLACES = {
    "sampling": ("rmjax.policy.local.LocalGenerator.__call__", 3),
    "rewarding": ("rmjax.rewards.reward.Verified.__call__", 4),
    "recording": ("rmjax.rounds.draw.over_tokens", 2),
    "writing": ("rmjax.rounds.files.write_lines", 2),
    "before the settings": ("rmjax.rounds.files.write_json", 2),
    "before an update": ("rmjax.rounds.source.packed", 4),
    "saving": ("rmjax.train.checkpoint.write_manifest", 5),
    "evaluating": ("rmjax.rounds.answers.numbers", 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_run_that_was_stopped_inside_a_round_is_the_unbroken_one(whole, place, tmp_path, monkeypatch):
    workdir, config = whole
    target, call = PLACES[place]
    with monkeypatch.context() as patched:
        patched.setattr(target, dying(resolved(target), call))
        with pytest.raises((Killed, CheckpointError)):
            Trainer(config, tmp_path).run()
    assert not list(tmp_path.glob("checkpoints/6/manifest.json"))
    Trainer(config, tmp_path).run()
    same(tmp_path, workdir)


def same(workdir: Path, other: Path) -> None:
    """Parameters, samples and metrics, bit for bit."""
    assert final(workdir) == final(other)
    assert answers_of(workdir) == answers_of(other)
    assert said(workdir) == said(other)


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_nothing(whole, home, tmp_path):
    """In processes of their own: rounds are drawn, rewarded, learned from and saved while they are killed."""
    workdir, config = whole
    path = home / "config.py"
    values = json.loads(config.to_json())
    path.write_text(f"from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({values!r})\n")
    random, kills = np.random.default_rng(int.from_bytes(os.urandom(4))), 0
    for number in range(4):
        process = launch(home, tmp_path / "run", config=path)
        began = len(list((tmp_path / "run").glob("rollouts/*")))
        while process.poll() is None and len(list((tmp_path / "run").glob("rollouts/*"))) <= began + number % 2:
            time.sleep(0.001)
        time.sleep(float(random.uniform(0, 0.3)))
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        finished(process)
    assert kills
    assert finished(launch(home, tmp_path / "run", config=path))[0] == 0
    same(tmp_path / "run", workdir)


# --- what a run may be made of -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"ppo"}))
def test_every_preset_takes_rounds(home, name):
    config = configured(home, rollouts__refresh=2, policy__kl_weight=0.0)
    config.policy.update(PRESETS[name])
    config.policy.reference = "recorded"
    trainer = Trainer(config)
    for _ in range(6):
        metrics = trainer.step()
        assert all(np.isfinite(value) for value in metrics.values())
    assert trainer.source.metrics(6)["round"] == 2


@pytest.mark.slow
def test_what_the_trainer_records_at_the_start_of_a_round(home):
    """π_old by the trainer, corrected for the sampler: no difference at the first update."""
    config = configured(home, policy__old="trainer", policy__correction="token", rollouts__passes=2)
    trainer = Trainer(config)
    found = [trainer.step() for _ in range(4)]
    assert found[0]["ratio"] == pytest.approx(1, abs=1e-6) and found[0]["correction"] == pytest.approx(1, abs=1e-5)
    assert abs(found[-1]["ratio"] - 1) > 1e-6


@pytest.mark.slow
def test_equal_rewards_have_no_gradient_but_that_of_the_reference(home):
    changes = {"reward__longest": 4096, "reward__buffer": 1}
    trainer = Trainer(configured(home, **changes, policy__kl_weight=0.0))
    assert trainer.step()["gradient_norm"] == 0.0 and trainer.source.metrics(1)["rollouts/equal_groups"] == 1.0
    dropping = Trainer(configured(home, **changes, policy__kl_weight=0.0, policy__equal_groups="drop"))
    assert dropping.step()["gradient_norm"] == 0.0 and dropping.source.metrics(1)["rollouts/left_out_groups"] == 4.0


@pytest.mark.slow
def test_a_reward_model_of_another_tokenizer_reads_texts(home, tmp_path, monkeypatch):
    monkeypatch.setattr(starting, "SPECIAL", ["<more>", "<tokens>", *starting.SPECIAL])
    starting.save_start(tmp_path / "reward", head=0.2, seed=3)
    config = configured(home, reward__parts=("model=1",), reward__model=str(tmp_path / "reward"))
    trainer = Trainer(config, tmp_path / "run")
    trainer.step()
    (lines,) = answers_of(tmp_path / "run").values()
    row = json.loads(lines.splitlines()[0])
    alone = Comparison(row["prompt"], tuple(row["outputs"]), tuple(row["references"]))
    wanted = RewardModel.load(tmp_path / "reward").score_groups([alone])[0]
    np.testing.assert_allclose(row["rewards"], wanted, atol=1e-5)
    assert trainer.source.metrics(1)["rollouts/reward_std"] > 0


@pytest.mark.slow
def test_a_run_ends_where_gold_falls_and_its_best_state_can_be_loaded(home, tmp_path):
    """Gold is that the answer is short; the reward is that it is long: what is learned is the opposite."""
    config = configured(home, run__steps=40, optimizer__learning_rate=0.1)
    config.reward.update(parts=("matches=1",), pattern=".{8,}")
    config.gold.update(parts=("matches=1",), pattern=".{0,7}")
    config.evals.held = base.answers_eval(
        str(home / "prompts.jsonl"), every=1, max_new_tokens=8, temperature=1.0, samples=4, patience=2, drop=0.05
    )
    state = Trainer(config, tmp_path / "run").run()
    if int(state.step) == 40:
        pytest.skip("gold never fell twice in a row")
    lines = read_metrics(tmp_path / "run/metrics.jsonl")
    gold = {line["step"]: line["eval/held/gold"] for line in lines if "eval/held/gold" in line}
    best = max(gold, key=gold.get)
    assert list((tmp_path / "run/best/checkpoints").glob(f"{best}/manifest.json"))
    assert flat(load_params(tmp_path / "run/best"))
    assert int(Trainer(config, tmp_path / "run").run().step) == int(state.step)


@pytest.mark.slow
def test_ppo_learns_values_and_goes_on_where_it_was_stopped(home, tmp_path):
    """Two passes, KL in the reward; the critic's head leaves zero, and the policy's stays."""
    config = configured(home, policy__values="critic", rollouts__passes=2, run__steps=8, run__save_every=3)
    config.policy.update(PRESETS["ppo"])
    config.optimizer.rates = ("^critic/=10",)
    whole = Trainer(config, tmp_path / "whole")
    start = float(np.abs(np.asarray(whole._started().trainable["critic"]["head"]["kernel"])).sum())
    whole.run()
    lines = [line for line in read_metrics(tmp_path / "whole/metrics.jsonl") if "train/value_loss" in line]
    assert len(lines) == 8 and all(np.isfinite(line["train/value_loss"]) for line in lines)
    assert float(np.abs(np.asarray(whole.state.trainable["critic"]["head"]["kernel"])).sum()) != start
    row = json.loads(answers_of(tmp_path / "whole")["round-00001.jsonl"].splitlines()[0])
    assert [len(values) for values in row["values"]] == [len(ids) for ids in row["token_ids"]]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("rmjax.rounds.source.packed", dying(resolved("rmjax.rounds.source.packed"), 6))
        with pytest.raises(Killed):
            Trainer(config, tmp_path / "stopped").run()
    Trainer(config, tmp_path / "stopped").run()
    same(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.slow
def test_a_critic_s_loss_falls_on_a_round_that_it_sees_again(home):
    config = configured(home, policy__advantage="gae", policy__values="critic", policy__value_clip=0.0)
    config.rollouts.update(updates=1, passes=20)
    config.data.rows, config.run.steps = 8, 40
    trainer = Trainer(config)
    found = [trainer.step()["value_loss"] for _ in range(20)]
    assert found[-1] < 0.5 * found[0]


ON_EIGHT_DEVICES = """
import json, sys
from pathlib import Path
from rmjax.trainer import Trainer
from tests.rounds.running import configured

trainer = Trainer(configured(Path(sys.argv[1]), mesh__data=2, mesh__fsdp=2, mesh__tensor=2))
found = [trainer.step() for _ in range(2)]
print(json.dumps([found[0]["log_probability_gap"], found[1]["loss"], trainer.source.metrics(1)["rollouts/reward"]]))
"""


@pytest.mark.slow
def test_eight_devices_draw_and_learn(home):
    run = subprocess.run(
        [sys.executable, "-c", ON_EIGHT_DEVICES, str(home)], text=True, capture_output=True,
        env=os.environ | simulated.devices(8), cwd=Path(__file__).parents[2], check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    gap, loss, reward = json.loads(run.stdout.splitlines()[-1])
    trainer = Trainer(configured(home))
    found = [trainer.step() for _ in range(2)]
    assert gap < 1e-5 and reward == trainer.source.metrics(1)["rollouts/reward"]
    assert loss == pytest.approx(found[1]["loss"], abs=1e-4)
