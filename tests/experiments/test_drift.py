"""The drift experiment: the stages that are cut from the pool, the arms, and the summary."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from configs import drift as grid
from experiments import drift, drift_distilled
from experiments import drift_stages as stages
from experiments.drift_tables import tables
from rmjax.data.record import Comparison
from rmjax.data.sources import records
from rmjax.evaluate.plots import gap_distributions, svg
from rmjax.locks import InUseError, locked
from rmjax.policy.policies import Policy

ANSWER = "one  two\nthree four five six seven eight"


def test_each_answer_stands_on_two_rungs_with_the_same_words():
    answers = [f"{ANSWER} {number}" for number in range(20)]
    found = stages.ladder(Comparison("p", (*answers, "too short to lose")))
    assert len(found.outputs) == 40 and set(found.ranks) == {0.0, 1.0, 2.0}
    for output, rank in zip(found.outputs, found.ranks, strict=True):
        (answer,) = [a for a in answers if a.split()[-1] in output.split()]
        assert sorted(output.split()) == sorted(answer.split()) and len(output) == len(answer)
        assert (output == answer) == (rank == 0.0)
        moved = sum(a != b for a, b in zip(output.split(), answer.split(), strict=True))
        assert moved == [0, 2, 5][int(rank)]
    assert stages.ladder(Comparison("p", tuple(answers))).outputs == found.outputs


class _Proxy:
    """Likes texts that end with a late letter, and says how often it was asked."""

    def score_groups(self, groups, progress=False):
        self.asked = [len(c.outputs) for c in groups]
        return [[float(ord(output[-1])) for output in c.outputs] for c in groups]


def test_the_best_of_n_is_what_the_proxy_likes_at_the_same_quality():
    groups = [
        Comparison("p", (ANSWER, "short"), id="a"),
        Comparison("q", (f"{ANSWER} last z", f"{ANSWER} a b"), id="b"),
    ]
    proxy, once = _Proxy(), [stages.ladder(c) for c in groups]
    assert [c.outputs for c in stages.best_of(groups, 1, proxy)] == [c.outputs for c in once]
    found = stages.best_of(groups, 16, proxy)
    assert len(proxy.asked) == sum(len(c.outputs) for c in once) and max(proxy.asked) > 8 and min(proxy.asked) == 1
    for c, plain in zip(found, once, strict=True):
        assert c.ranks == plain.ranks and (c.prompt, c.id) == (plain.prompt, plain.id)
        assert [sorted(o.split()) for o in c.outputs] == [sorted(o.split()) for o in plain.outputs]
        assert all(a[-1] >= b[-1] for a, b in zip(c.outputs, plain.outputs, strict=True))
    assert [c.outputs for c in found] != [c.outputs for c in once]


def test_a_proxy_is_no_tested_run(tmp_path, monkeypatch):
    fitted = []
    monkeypatch.setattr(drift.train, "run", lambda config, folder: fitted.append((config.run.seed, folder)))
    monkeypatch.setattr(drift.RewardModel, "load", lambda folder, mesh: folder)
    monkeypatch.setattr(stages, "write_best_of_stages", lambda folder, proxy: fitted.append((folder, proxy)))
    data = [drift.make_data(tmp_path, "best_of_n", seed) for seed in grid.SEEDS]
    assert len(set(data)) == len(grid.SEEDS) and not {seed for seed, _ in fitted[::2]} & set(grid.SEEDS)
    assert [written for written, _ in fitted[1::2]] == data
    assert [folder for _, folder in fitted[::2]] == [proxy for _, proxy in fitted[1::2]]
    assert not {folder.parent.name for _, folder in fitted[::2]} & set(grid.ARMS)


def test_a_policy_is_tuned_on_what_the_proxy_likes_round_by_round(tmp_path, monkeypatch):
    """Each round tunes the last round's policy on the best of its own samples; prompts of the tests are never tuned on."""
    tuned, written = [], {}
    asked = {"seen": ["a", "b"], "unseen": ["c"]}
    monkeypatch.setattr(
        drift_distilled, "written",
        lambda split, stage: [Comparison(f"prompt {x}", (f"{ANSWER} {x}", f"{ANSWER} {x} z"), id=x) for x in asked[split]],
    )  # fmt: skip
    monkeypatch.setattr(drift_distilled.train, "run", lambda config, folder: tuned.append((config, folder)))
    monkeypatch.setattr(drift_distilled, "write_stages", lambda folder, tests, meta: written.update(tests, meta=meta))

    def sample(config, folder):
        (policy,) = map(Policy.parse, config.policies)
        assert (Path(config.checkpoints) / policy.checkpoint).parent == tuned[-1][1]
        assert policy.checkpoint.endswith(f"/{tuned[-1][0].run.steps}")
        folder.mkdir(parents=True)
        prompts = [json.loads(line) for line in Path(config.prompts).read_text().splitlines()]
        rows = [
            {"prompt_id": row["id"], "prompt": row["prompt"], "policy": policy.name, "sample": i}
            | {"output": f"{ANSWER} {row['id']} round {len(tuned)} {letter}"}
            for row in prompts for i, letter in enumerate("qy")
        ]  # fmt: skip
        (folder / f"{policy.name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    monkeypatch.setattr(drift_distilled.sample, "run", sample)
    drift_distilled.write_distilled_stages(tmp_path, _Proxy())
    (first, model), (second, _) = tuned
    assert first.model.init == "smollm2" and second.model.init == str(model)
    texts = [[json.loads(line) for line in Path(config.data.path).read_text().splitlines()] for config, _ in tuned]
    assert [[text["id"] for text in found] for found in texts] == [["a", "b"]] * 2
    assert all(text["output"].endswith("z") for text in texts[0])
    assert all(text["output"].endswith("round 1 y") for text in texts[1])
    assert {c.id for stage in grid.STAGES for c in written[stage]} == {"c"}
    assert {c.id for c in written["meta"]} == {"a", "b"} and all(
        "1" in o.split() for c in written["meta"] for o in c.outputs
    )
    rewards = json.loads((tmp_path / "rewards.json").read_text())
    assert list(rewards) == list(grid.STAGES) and rewards["drifted"] == pytest.approx((ord("q") + ord("y")) / 2)


def test_an_empty_round_makes_no_training_prompt_a_test(tmp_path, monkeypatch):
    """A prompt whose samples of one round are all blank is missing there, and back in the next on its own side."""
    asked, rounds, written = {"seen": ["a", "b"], "unseen": ["c"]}, [], {}
    monkeypatch.setattr(
        drift_distilled, "written", lambda split, stage: [Comparison(x, (ANSWER, "b"), id=x) for x in asked[split]]
    )

    def next_policy(folder, init, groups, prompts, proxy):
        rounds.append([c.id for c in groups])
        return [Comparison(x, (ANSWER, "b"), id=x) for x in ("a", "b", "c") if x != "b" or len(rounds) == 2]

    monkeypatch.setattr(drift_distilled, "_next_policy", next_policy)
    monkeypatch.setattr(drift_distilled, "write_stages", lambda folder, tests, meta: written.update(tests))
    drift_distilled.write_distilled_stages(tmp_path, _Proxy())
    assert rounds == [["a", "b"], ["a"]] and {c.id for found in written.values() for c in found} == {"c"}


def test_a_folder_has_one_series(tmp_path):
    drift.keep_series(tmp_path / "new", "pool")
    drift.keep_series(tmp_path / "new", "pool")
    with pytest.raises(ValueError, match="has --series=pool; use another --workdir for distilled"):
        drift.keep_series(tmp_path / "new", "distilled")


@pytest.mark.slow
def test_again_is_what_the_plain_arm_sees(tmp_path):
    stages.write_training(tmp_path / "data")
    drift.write_labels("plain-again", 1, tmp_path, tmp_path / "data")
    config = drift.configured("plain-again", 1, tmp_path, tmp_path / "data")
    again, everything = (list(records(path)) for path in (config.data.path, str(tmp_path / "data" / "train.jsonl")))
    assert config.run.steps == 2 * grid.STEPS and grid.STEPS < len(again) < 2 * grid.STEPS < len(everything)
    assert {(c.id, c.outputs) for c in again} <= {(c.id, c.outputs) for c in everything}
    assert drift.seen_by(grid.get_config("plain", 2, tmp_path / "data")) != drift.seen_by(
        grid.get_config("plain", 1, tmp_path / "data")
    )


def test_diagnostics_are_of_windows_with_an_ascent_in_every_step(tmp_path):
    rows = [{"step": step, "train/meta_ascent": ascent, "train/meta_ascent_share": share}
            for step, ascent, share in ((10, 0.0, 0.0), (20, 0.5, 0.5), (30, 1.0, 1.0), (40, 1.0, 1.2))]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert grid.WARMUP == 15
    assert drift.diagnostics(tmp_path)["meta_ascent_share"] == pytest.approx(1.1)


def test_the_pool_has_every_stage(tmp_path):
    stages.write_training(tmp_path)
    stages.write_pool_stages(tmp_path)
    sizes = {path.stem: len(list(records(str(path)))) for path in tmp_path.iterdir()}
    assert set(sizes) == {"train", "meta", "random", *(f"test_{name}" for name in grid.STAGES)}
    assert min(sizes.values()) >= 20, sizes
    meta, shuffled = (list(records(str(tmp_path / f"{name}.jsonl"))) for name in ("meta", "random"))
    assert all(c.ranks is None for c in meta + shuffled)
    assert sorted(o for c in meta for o in c.outputs) == sorted(o for c in shuffled for o in c.outputs)
    assert sum(a.outputs == b.outputs for a, b in zip(meta, shuffled, strict=True)) < len(meta) / 2
    drifted, first = ({o for c in found for o in c.outputs} for found in (meta, records(str(tmp_path / "train.jsonl"))))
    assert len(drifted & first) < len(drifted) / 100, "policies may now and then write the same text, but seldom"
    tests = {c.prompt for name in grid.STAGES for c in records(str(tmp_path / f"test_{name}.jsonl"))}
    assert not tests & {c.prompt for name in ("train", "meta") for c in records(str(tmp_path / f"{name}.jsonl"))}


@pytest.mark.parametrize("arm", grid.ARMS)
def test_arms(arm):
    config = grid.get_config(arm, 2, Path("labels"), Path("meta"))
    assert config.run.seed == 2 and config.gradient.name == ("meta" if grid.ARMS[arm].mode else "plain")
    assert config.gradient.mode == (grid.ARMS[arm].mode or "plain")
    assert config.meta_data.path.startswith("meta/") == bool(grid.ARMS[arm].mode)
    assert config.optimizer.learning_rate == pytest.approx(grid.RATE * grid.ARMS[arm].rate)


@pytest.mark.parametrize("series", grid.SERIES)
def test_a_series_has_the_arms_that_others_are_compared_with(series):
    chosen = {arm for arm in grid.ARMS if re.fullmatch(grid.SERIES[series], arm)}
    assert {*grid.PLOTTED, *grid.COMPARED} <= chosen


def test_the_summary_pairs_groups_and_seeds():
    prompts = {stage: [["p", "p", "q"]] * 2 for stage in grid.STAGES}

    def judged(*credits):
        stage = {"credits": credits, "spread": {"gap_mean": 1.0, "gap_share": 0.5}}
        return dict.fromkeys(grid.STAGES, stage) | {
            "diagnostics": {"meta_cosine": credits[0], "meta_ascent_share": 0.5}
        }

    runs = {"plain": [judged(1, 0, 1), judged(0, 0, 1)], "plain-longer": [judged(1, 0, 1), judged(1, 0, 1)]}
    runs["plain-again"] = runs["plain"]
    table = drift.summary(runs | {"other": [judged(1, 1, 1), judged(0.5, 0, 1)]}, prompts)
    first = table["other"]["first"]
    assert first["accuracy"]["mean"]["value"] == pytest.approx(4.5 / 6)
    assert first["over"]["plain"]["mean"]["value"] == pytest.approx(1.5 / 6)
    assert first["over"]["plain"]["seeds"] == pytest.approx([1 / 3, 0.5 / 3])
    assert first["over"]["plain-longer"]["mean"]["value"] == pytest.approx(0.5 / 6)
    assert first["over"]["plain"]["mean"]["low"] == 0.0, "the prompt q, drawn alone, is right in every arm"
    assert table["other"]["diagnostics"]["meta_cosine"] == pytest.approx(0.75)
    assert table["plain"]["furthest"]["over"]["plain"]["mean"]["high"] == 0.0
    lines = tables(table).splitlines()
    assert "| other | 0.750 | 0.750 | 0.750 | 1.00 | 1.00 | 1.00 | 0.5 | +0.75 |" in lines
    (other,) = [line for line in lines[lines.index("| minus plain-longer | first | drifted | furthest |") :]
                if line.startswith("| other")][:1]  # fmt: skip
    assert other.split(" | ")[1].startswith("+0.083 (") and other.split(" | ")[1].endswith("; +0.333 -0.167")


@pytest.mark.slow
def test_a_small_grid_runs_and_is_not_run_again(home, tmp_path, monkeypatch):
    rows, configured = stages.pool_rows, grid.get_config

    def tiny(*args):
        config = configured(*args)
        config.model.update({"init": str(home / "start"), "layers": 0, "frozen_layers": 0})
        config.run.log_every = 1
        return config

    monkeypatch.setattr(stages, "pool_rows", lambda *which: [row for i, row in enumerate(rows(*which)) if i % 400 < 40])
    arms = ("plain", "plain-longer", "plain-again", "self-labeled", "step_norm-1")
    for name, value in {"STEPS": 4, "WARMUP": 2, "SEEDS": (0, 1), "TEST_ANSWERS": 3, "PLOTTED": arms[:2]}.items():
        monkeypatch.setattr(grid, name, value)
    monkeypatch.setattr(grid, "ARMS", {arm: grid.ARMS[arm] for arm in arms})
    monkeypatch.setattr(grid, "get_config", tiny)
    drift.run(tmp_path, "pool", [0])
    assert not (tmp_path / "results.json").exists(), "the summary is of all seeds"
    monkeypatch.setattr(grid, "SEEDS", (0,))
    drift.run(tmp_path, "pool", [0])
    found = json.loads((tmp_path / "results.json").read_text())["arms"]
    assert set(found) == set(arms) and found["step_norm-1"]["diagnostics"].keys() >= {"meta_ascent", "meta_cosine"}
    assert {path.name for path in tmp_path.glob("gaps_*.svg")} == {f"gaps_{stage}.svg" for stage in grid.STAGES}
    assert (tmp_path / "plain/seed0/checkpoints").exists() and not (
        tmp_path / "plain-longer/seed0/checkpoints"
    ).exists()
    pairs = [
        record for record in records(str(tmp_path / "self-labeled/seed0/train.jsonl")) if record.id.startswith("self/")
    ]
    assert pairs and all(len(set(record.ranks)) > 1 for record in pairs)
    monkeypatch.setattr(drift.train, "run", lambda *args: pytest.fail("a finished run was run again"))
    drift.run(tmp_path, "pool", [0])
    assert json.loads((tmp_path / "results.json").read_text())["arms"] == found
    monkeypatch.setattr(grid, "RATE", 1.0)
    with pytest.raises(ValueError, match="plain/seed0 holds a run of another config .optimizer.learning_rate: "):
        drift.run(tmp_path, "pool", [0])


def test_a_seed_is_of_one_process(tmp_path, monkeypatch):
    """Processes share a folder by seeds, and the command for all of them waits for none."""
    monkeypatch.setattr(drift, "make_data", lambda workdir, series, seed: tmp_path)
    monkeypatch.setattr(drift, "run_one", lambda *_: {})
    with locked(tmp_path / "seed0"):
        drift.run(tmp_path, "pool", [1])
        for seeds in ([0], [1, 0]):
            with pytest.raises(InUseError, match="seed0 is in use by another run"):
                drift.run(tmp_path, "pool", seeds)


def test_seeds_that_the_grid_has_not():
    assert drift.numbers(["2", "0"]) == [2, 0]
    for seeds in (["3"], ["0", "one"], []):
        with pytest.raises(ValueError, match=f"--seeds is '{','.join(seeds)}'; give one or more of 0,1,2"):
            drift.numbers(seeds)


def test_the_plot_has_a_line_per_model():
    text = svg(gap_distributions({"plain": np.array([0.1, 0.2, 0.4]), "meta": np.zeros(2)}), "gaps")
    assert "plain" in text and "meta" in text
