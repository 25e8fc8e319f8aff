"""Rounds of two models: what they leave, that they go on where they were stopped, and what is refused."""

import json

import pytest

from rmjax import config as base
from rmjax.data.record import Comparison
from rmjax.rewards.reward import Failure, Verified
from rmjax.rounds import chain
from tests.experiments.running import final, ranked_rows
from tests.rounds.running import Killed, answers_of, configured, dying, resolved, said, save_home


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = save_home(tmp_path_factory.mktemp("chain"))
    (home / "ranked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ranked_rows()))
    return home


def of_chain(home, **rounds):
    """Two rounds of two steps of each model."""
    policy = configured(home, reward__parts=("model=1",), run__steps=2, rollouts__updates=1)
    policy.gold.update(parts=("overlong=1",), longest=8, buffer=8)
    policy.evals.held = base.answers_eval(str(home / "prompts.jsonl"), max_new_tokens=8)
    reward = base.get_config()
    reward.update_from_flattened_dict(
        {
            "model.init": str(home / "start"), "data.kind": "comparisons", "data.path": str(home / "ranked.jsonl"),
            "data.rows": 2, "data.row_tokens": 128, "data.groups": 4, "data.prefetch": 0, "gradient.mode": "step_norm",
            "gradient.inner_learning_rate": 1.0, "meta_data.rows": 2, "meta_data.row_tokens": 128,
            "optimizer.learning_rate": 1e-2, "run.steps": 2, "run.save_every": 1, "run.log_every": 1,
        }
    )  # fmt: skip
    reward.evals.preferences = base.comparisons_eval(str(home / "ranked.jsonl"))
    config = chain.get_config(policy, reward)
    for section in (config.meta, config.drifted):
        section.update(path=str(home / "prompts.jsonl"), samples=3, max_new_tokens=8)
    config.rounds.update({"count": 2, "first_reward": False, **rounds})
    return config


@pytest.fixture(scope="module")
def whole(home):
    return home / "whole", chain.run(of_chain(home), home / "whole")


@pytest.mark.slow
def test_every_round_is_kept_and_evaluated(whole):
    workdir, found = whole
    assert [each["round"] for each in found] == [0, 1, 2]
    for n in (1, 2):
        assert (workdir / f"round-{n}/reward/model.json").is_file() and (
            workdir / f"round-{n}/policy/model.json"
        ).is_file()
        assert answers_of(workdir / f"round-{n}/policy")
        for when in ("before", "after"):
            assert {"preferences/accuracy", "drifted/accuracy", "gaps/gap_mean"} <= set(found[n]["reward"][when])
            assert {"held/gold", "held/reward"} <= set(found[n]["policy"][when])
    assert found[1]["reward"]["before"] != found[1]["reward"]["after"]
    # A round goes on from the models of the one before, on answers of the policy as it was then.
    assert json.loads((workdir / "rounds.json").read_text())["rounds"] == json.loads(json.dumps(found))
    samples = [(workdir / f"samples/round-0000{n}.jsonl").read_text() for n in (1, 2)]
    assert samples[0] != samples[1]
    second = json.loads((workdir / "round-2/policy/config.json").read_text())
    assert second["model"]["init"].endswith("round-1/policy") and second["reward"]["model"].endswith("round-2/reward")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "call"),
    [
        ("rmjax.rounds.chain.answers", 3),
        ("rmjax.rounds.chain.write_json", 2),
        ("rmjax.rounds.draw.with_rewards", 3),
        ("rmjax.rounds.chain.reward_of", 4),
    ],
)
def test_rounds_that_were_stopped_end_as_the_unbroken_ones(home, whole, tmp_path, monkeypatch, target, call):
    workdir, wanted = whole
    with monkeypatch.context() as patched:
        patched.setattr(target, dying(resolved(target), call))
        with pytest.raises(Killed):
            chain.run(of_chain(home), tmp_path)
    found = chain.run(of_chain(home), tmp_path)
    assert [each.get("reward") for each in found] == [each.get("reward") for each in wanted]
    for phase in ("round-1/reward", "round-1/policy", "round-2/reward", "round-2/policy"):
        assert final(tmp_path / phase) == final(workdir / phase) and said(tmp_path / phase) == said(workdir / phase)
    assert answers_of(tmp_path / "round-2/policy") == answers_of(workdir / "round-2/policy")


@pytest.mark.slow
@pytest.mark.parametrize("update", ["plain", "none"])
def test_other_updates(home, tmp_path, update):
    found = chain.run(of_chain(home, count=1, reward_update=update, first_reward=update == "plain"), tmp_path)
    assert (tmp_path / "round-1/reward").is_dir() == (update == "plain") == (tmp_path / "round-0").is_dir()
    assert "drifted/accuracy" in found[1]["reward"]["before"] and "policy" in found[1]


ASKED = [
    Comparison("p", ("a", "bb", "", "bb"), ("r",), policies=("policy",) * 4, columns={"truncated": (0.0,) * 4}),
    Comparison("q", ("c", "c", "c", " ")),
    Comparison("s", ("dd", "ee", "bad", "f")),
]
GOLD = Verified("length", lambda p, o, r: Failure("hangs") if o == "bad" else float(len(o)))


def test_a_meta_set_has_groups_that_can_be_told_apart():
    (first, last) = chain._unlabeled(ASKED)
    assert first.outputs == ("a", "bb", "bb") and first.references == ("r",) and not first.columns
    assert last.outputs == ("dd", "ee", "bad", "f")
    with pytest.raises(
        ValueError, match="the policy says the same, or nothing, in all its answers to each of 1 prompts"
    ):
        chain._unlabeled(ASKED[1:2])


def test_drifted_pairs_have_the_order_of_gold():
    (first, last) = chain._ranked(ASKED, GOLD)
    assert (first.outputs, first.scores) == (("a", "bb"), (1.0, 2.0))
    assert (last.outputs, last.scores) == (("dd", "ee", "f"), (2.0, 2.0, 1.0))


def test_answers_are_drawn_once(home, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(chain, "answers", lambda config, init, asking, seed: asked.append(seed) or list(ASKED))
    rounds = chain._checked(of_chain(home), tmp_path)
    paths = [chain._asked(rounds, "samples", rounds.meta, "policy", 2, chain._unlabeled) for _ in range(2)]
    assert asked == [2] and paths[0] == paths[1] and len(paths[0].read_text().splitlines()) == 2
    assert chain._asked(rounds, "drifted", rounds.drifted, "policy", 2, lambda found: []) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.policy.update(objective="dpo"), "config.policy is no run of rounds"),
        (lambda c: c.reward.update(objective="dpo"), "config.reward is no run of a reward model"),
        (lambda c: c.policy.gold.update(parts=()), "config.policy.gold.parts is empty"),
        (lambda c: c.meta.update(samples=1), "config.meta.samples is 1; it must be 2 or more"),
        (
            lambda c: c.rounds.update(reward_update="other"),
            "config.rounds.reward_update is 'other'; choose meta, plain or none",
        ),
    ],
)
def test_what_a_config_may_not_say(home, tmp_path, change, message):
    config = of_chain(home)
    change(config)
    with pytest.raises(ValueError, match=message):
        chain.run(config, tmp_path)
    assert not (tmp_path / "rounds_config.json").exists()  # the corrected one may take the folder


def test_rounds_of_another_config_are_kept(home, tmp_path):
    path = tmp_path / "rounds_config.json"
    chain._keep_config(of_chain(home), path)
    chain._keep_config(of_chain(home, count=7), path)
    with pytest.raises(ValueError, match=r"holds rounds of another config \(rounds differs\)"):
        chain._keep_config(of_chain(home, reward_update="plain"), path)
