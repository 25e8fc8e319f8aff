"""The drift study: stages that are cut from a pool or made by a proxy, arms, the summary, and tiny grids from end to end."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from experiments.studies.drift import config as grids
from experiments.studies.drift import measure, stages
from rmjax.data.record import Comparison
from rmjax.data.rows import iterate_rows
from rmjax.data.sources import located, records
from rmjax.evaluate.comparisons import CREDIT
from rmjax.evaluate.gaps import GAP
from rmjax.evaluate.rows import Row
from rmjax.files import write_lines
from rmjax.policy.policies import Policy
from rmjax.study import engines
from rmjax.study.cells import placed
from rmjax.study.run import Options, run
from rmjax.study.study import RESULT, Result, in_order, run_cell
from tests.experiments.starting import save_start

ANSWER = "one  two\nthree four five six seven eight"


@pytest.fixture(scope="module")
def writer():
    return grids.get_config().writer


def test_each_answer_stands_on_two_rungs_with_the_same_words(writer):
    answers = [f"{ANSWER} {number}" for number in range(20)]
    (found,) = stages.ladder(writer, [Comparison("p", (*answers, "too short to lose"))])
    assert len(found.outputs) == 40 and set(found.ranks) == {0.0, 1.0, 2.0}
    for output, rank in zip(found.outputs, found.ranks, strict=True):
        (answer,) = [a for a in answers if a.split()[-1] in output.split()]
        assert sorted(output.split()) == sorted(answer.split()) and len(output) == len(answer)
        assert (output == answer) == (rank == 0.0)
        moved = sum(a != b for a, b in zip(output.split(), answer.split(), strict=True))
        assert moved == [0, 2, 5][int(rank)]
    assert stages.ladder(writer, [Comparison("p", tuple(answers))])[0].outputs == found.outputs


class _Proxy:
    """Likes texts that end with a late letter, and says how often it was asked."""

    def score_groups(self, groups, progress=False):
        self.asked = [len(c.outputs) for c in groups]
        return [[float(ord(output[-1])) for output in c.outputs] for c in groups]


def test_the_best_of_n_is_what_the_proxy_likes_at_the_same_quality(writer):
    groups = [
        Comparison("p", (ANSWER, "short"), id="a"),
        Comparison("q", (f"{ANSWER} last z", f"{ANSWER} a b"), id="b"),
    ]
    proxy, once = _Proxy(), stages.ladder(writer, groups)
    assert [c.outputs for c in stages.ladder(writer, groups, 1, proxy)] == [c.outputs for c in once]
    found = stages.ladder(writer, groups, 16, proxy)
    assert len(proxy.asked) == sum(len(c.outputs) for c in once) and max(proxy.asked) > 8 and min(proxy.asked) == 1
    for c, plain in zip(found, once, strict=True):
        assert c.ranks == plain.ranks and (c.prompt, c.id) == (plain.prompt, plain.id)
        assert [sorted(o.split()) for o in c.outputs] == [sorted(o.split()) for o in plain.outputs]
        assert all(a[-1] >= b[-1] for a, b in zip(c.outputs, plain.outputs, strict=True))
    assert [c.outputs for c in found] != [c.outputs for c in once]


def _samples(tuned):
    """Stands for the sampler: two answers to each prompt, which say after how many tunings."""

    def run(config, folder):
        (policy,) = map(Policy.parse, config.policies)
        run, model = tuned[-1]
        assert Path(config.checkpoints) / policy.checkpoint == model / str(run.run.steps)
        prompts = [json.loads(line) for line in Path(config.prompts).read_text().splitlines()]
        rows = [
            {"prompt_id": row["id"], "prompt": row["prompt"], "policy": policy.name, "sample": i}
            | {"output": f"{ANSWER} {row['id']} round {len(tuned)} {letter}"}
            for row in prompts for i, letter in enumerate("qy")
        ]  # fmt: skip
        folder.mkdir(parents=True)
        write_lines(folder / f"{policy.name}.jsonl", rows)

    return run


def test_a_policy_is_tuned_on_what_the_proxy_likes_round_by_round(tmp_path, monkeypatch):
    """Each round tunes the last round's policy on the best of its own samples; prompts of the tests are never tuned on."""
    tuned, found = [], {}
    asked = {"seen": ["a", "b"], "unseen": ["c"]}
    monkeypatch.setattr(
        stages, "written",
        lambda _, split, __: [Comparison(f"prompt {x}", (f"{ANSWER} {x}", f"{ANSWER} {x} z"), id=x) for x in asked[split]],
    )  # fmt: skip
    monkeypatch.setattr(stages.train, "run", lambda config, folder: tuned.append((config, folder)))
    monkeypatch.setattr(stages.sampler, "run", _samples(tuned))
    monkeypatch.setattr(stages, "write_stages", lambda _, folder, tests, meta: found.update(tests, meta=meta))
    cell = measure.get_claim(grids.get_config("distilled")).study.by_name["stages-seed0"]
    stages.write_distilled_stages(placed(cell.config, tmp_path).writer, tmp_path, _Proxy())
    (first, model), (second, _) = tuned
    assert first.model.init == "smollm2" and second.model.init == str(model)
    texts = [list(records(config.data.path)) for config, _ in tuned]
    assert [[text.id for text in each] for each in texts] == [["a", "b"]] * 2
    assert all(text.outputs[0].endswith("z") for text in texts[0])
    assert all(text.outputs[0].endswith("round 1 y") for text in texts[1])
    assert {c.id for stage in grids.STAGES for c in found[stage]} == {"c"}
    assert {c.id for c in found["meta"]} == {"a", "b"}
    assert all("1" in output.split() for c in found["meta"] for output in c.outputs)
    rewards = json.loads((tmp_path / "rewards.json").read_text())
    assert list(rewards) == list(grids.STAGES) and rewards["drifted"] == pytest.approx((ord("q") + ord("y")) / 2)


def test_an_empty_round_makes_no_training_prompt_a_test(tmp_path, monkeypatch):
    """A prompt whose samples of one round are all blank is missing there, and back in the next on its own side."""
    asked, rounds, found = {"seen": ["a", "b"], "unseen": ["c"]}, [], {}
    monkeypatch.setattr(
        stages, "written", lambda _, split, __: [Comparison(x, (ANSWER, "b"), id=x) for x in asked[split]]
    )

    def next_policy(writer, folder, init, groups, proxy):
        rounds.append([c.id for c in groups])
        return [Comparison(x, (ANSWER, "b"), id=x) for x in ("a", "b", "c") if x != "b" or len(rounds) == 2]

    monkeypatch.setattr(stages, "_next_policy", next_policy)
    monkeypatch.setattr(stages, "write_stages", lambda _, folder, tests, meta: found.update(tests))
    stages.write_distilled_stages(grids.get_config("distilled").writer, tmp_path, _Proxy())
    assert rounds == [["a", "b"], ["a"]] and {c.id for groups in found.values() for c in groups} == {"c"}


def test_the_pool_has_every_stage(tmp_path):
    measure.make_data(grids.get_config(), tmp_path)
    found = {path.stem: list(records(str(path))) for path in (tmp_path / "data").iterdir()}
    assert set(found) == {"train", "meta", "random", *(f"test_{name}" for name in grids.STAGES)}
    assert min(map(len, found.values())) >= 20
    meta, shuffled = found["meta"], found["random"]
    assert all(c.ranks is None for c in meta + shuffled)
    assert sorted(o for c in meta for o in c.outputs) == sorted(o for c in shuffled for o in c.outputs)
    assert sum(a.outputs == b.outputs for a, b in zip(meta, shuffled, strict=True)) < len(meta) / 2
    drifted, first = ({o for c in groups for o in c.outputs} for groups in (meta, found["train"]))
    assert len(drifted & first) < len(drifted) / 100, "policies may now and then write the same text, but seldom"
    tests = {c.prompt for name in grids.STAGES for c in found[f"test_{name}"]}
    assert not tests & {c.prompt for name in ("train", "meta") for c in found[name]}


@pytest.mark.parametrize("series", grids.CHOSEN)
def test_cells(series):
    grid = grids.get_config(series)
    study = measure.get_claim(grid).study
    found = {cell.name: cell.config for cell in study.cells}
    assert {"plain-seed2", "meta-step_norm-1-seed0", "meta-random_prompts-seed1"} <= set(found)
    assert all(
        config.labels.labeler == "cell:plain-seed2" for name, config in found.items() if name == "self-labeled-seed2"
    )
    place = "cell:stages-seed1" if series in grids.OF_A_PROXY else "work:data"
    assert found["meta-random_prompts-seed1"].training.meta_data.path == f"{place}/random.jsonl"
    assert found["plain-seed1"].tests.furthest == f"{place}/test_furthest.jsonl"
    order = [cell.name for cell in in_order(study.cells)]
    if series in grids.OF_A_PROXY:
        seeds = {name: config.training.run.seed for name, config in found.items() if "training" in config}
        proxies = {seeds.pop(f"proxy-seed{seed}") for seed in grid.seeds}
        assert len(proxies) == 3 and not proxies & set(seeds.values()), "a proxy is no tested run"
        assert order.index("proxy-seed1") < order.index("stages-seed1") < order.index("plain-seed1")


@pytest.mark.parametrize("name", grids.get_config().arms)
def test_arms(name):
    grid = grids.get_config()
    arm, run = grid.arms[name], grids.training(grid, name, 2, "work:data")
    assert name.startswith("meta-") == bool(arm.mode) == (run.gradient.name == "meta")
    assert run.gradient.mode == (arm.mode or "plain") and run.run.seed == 2
    assert run.meta_data.path.startswith("work:data/") == bool(arm.mode)
    assert run.optimizer.learning_rate == pytest.approx(grid.learning_rate * arm.rate)


@pytest.mark.slow
def test_again_is_what_the_plain_arm_sees(tmp_path):
    grid = grids.get_config()
    stages.write_training(grid.writer, tmp_path / "data")
    cells = measure.get_claim(grid).study.by_name
    again = placed(cells["plain-again-seed1"].config, tmp_path)
    found, everything = measure.own_labels(again.training, again.labels), list(records(again.training.data.path))
    assert again.training.run.steps == 2 * grid.steps and grid.steps < len(found) < 2 * grid.steps < len(everything)
    assert {(c.id, c.outputs) for c in found} <= {(c.id, c.outputs) for c in everything}
    plain = [placed(cells[f"plain-seed{seed}"].config, tmp_path).training for seed in (1, 2)]
    first, second = (measure.seen_by(run, run.run.steps) for run in plain)
    assert len(found) == len(first) and first != second


def test_diagnostics_are_of_windows_with_an_ascent_in_every_step(tmp_path):
    rows = [{"step": step, "train/meta_ascent": ascent, "train/meta_ascent_share": fraction}
            for step, ascent, fraction in ((10, 0.0, 0.0), (20, 0.5, 0.5), (30, 1.0, 1.0), (40, 1.0, 1.2))]  # fmt: skip
    write_lines(tmp_path / "metrics.jsonl", rows)
    found = {row.metric: row.value for row in measure.diagnostics(tmp_path, 15)}
    assert found == {"meta_ascent": 1.0, "meta_ascent_share": pytest.approx(1.1)}


def small(series, **changes):
    """Six arms, two seeds."""
    grid = grids.get_config(series)
    chosen = "plain|plain-longer|plain-again|self-labeled|meta-(step_norm-1|random_prompts)"
    grid.update({"seeds": (0, 1), "chosen": chosen} | changes)
    return grid


def results(grid, credits):
    """arm → seed → a credit for each of the prompts p, p, q on every stage; items are the seed's own where a proxy made them."""

    def rows(arm, seed):
        own = f"{seed}" if grid.series in grids.OF_A_PROXY else ""
        for stage in grids.STAGES:
            values = credits.get(arm, credits["plain"])[seed]
            for number, value in enumerate(values):
                yield Row(f"{own}{number}", "ppq"[number], CREDIT, float(value), {"stage": stage})
                yield Row(f"{own}{number}", "ppq"[number], GAP, 1.0 + number, {"stage": stage})
            yield Row(stage, stage, measure.SPREAD, 0.5 + seed, {"stage": stage})
        if arm.startswith("meta-"):
            yield Row("run", "run", measure.ASCENT, 0.5 + seed)
            yield Row("run", "run", "meta_cosine", values[0])

    def made(cell):
        arm, seed = cell.values["arm"], cell.values["seed"]
        if arm in ("proxy", "stages"):
            reward = (Row(stage, stage, measure.REWARD, 1.0 + seed, {"stage": stage}) for stage in grids.STAGES)
            return tuple(reward) if arm == "stages" and grid.series == "distilled" else ()
        return tuple(rows(arm, seed))

    return {cell.name: Result("done", made(cell)) for cell in measure.cells(grid)}


CREDITS = {
    "plain": [(1, 0, 1), (0, 0, 1)],
    "plain-longer": [(1, 0, 1), (1, 0, 1)],
    "meta-step_norm-1": [(1, 1, 1), (0.5, 0, 1)],
}


@pytest.mark.parametrize("series", ["pool", "best_of_n", "distilled"])
def test_the_lines_pair_groups_and_seeds(series):
    grid = small(series)
    claim = measure.get_claim(grid)
    lines = claim.summarize(results(grid, CREDITS))
    found = {(line["metric"], line["arm"], line.get("stage")): line for line in lines}
    assert len(found) == len(lines)
    over = found["minus plain", "meta-step_norm-1", "first"]
    assert found["accuracy", "meta-step_norm-1", "first"]["value"] == pytest.approx(4.5 / 6)
    assert (over["value"], over["seeds"]) == (pytest.approx(1.5 / 6), pytest.approx([1 / 3, 0.5 / 3]))
    assert over["low"] == 0.0, "the prompt q, drawn alone, is right in every arm"
    assert found["minus plain-longer", "meta-step_norm-1", "first"]["value"] == pytest.approx(0.5 / 6)
    assert ("minus plain", "plain", "first") not in found and found["minus plain", "plain-again", "first"][
        "high"
    ] == 0.0
    gap = found["gap", "plain", "drifted"]
    assert (gap["value"], gap["gap_share"], gap["n"]) == (2.0, [0.5, 1.5], 6)
    assert np.flatnonzero(gap["fractions"]).tolist() == [6, 13, 19] and sum(gap["fractions"]) == pytest.approx(1)
    ascent = found["ascent", "meta-step_norm-1", None]
    assert (ascent["value"], ascent["meta_cosine"], ascent["seeds"]) == (1.0, 0.75, [0.5, 1.5])
    assert [(a, line["value"]) for (m, a, s), line in found.items() if m == measure.REWARD] == [("proxy", 1.5)] * 3 * (
        series == "distilled"
    )
    table = claim.parts(lines)["arms"].splitlines()
    assert table[2].startswith("| plain | 0.500 | 0.500 | 0.500 | +0.000 (+0.000 to +0.000); +0.000 +0.000 |")
    assert table[-1].startswith("| meta-step_norm-1 | 0.750, +0.250 (+0.000 to +0.375) | 0.750, +0.250")
    assert table[-1].endswith(" | +0.250 (+0.000 to +0.375); +0.333 +0.167 |") and len(table) == 8
    assert list(claim.figures(lines)) == (["drift_gaps"] if series == "pool" else [])


def test_seeds_have_other_items_only_where_a_proxy_makes_them():
    grid = small("pool")
    found = results(grid, CREDITS)
    other = [Row(f"x{row.item}", *(getattr(row, name) for name in ("cluster", "metric", "value", "groups")))
             for row in found["plain-seed1"].rows]  # fmt: skip
    with pytest.raises(ValueError, match="of .*'stage': 'first'.*rows of different items"):
        measure.summarize(grid, found | {"plain-seed1": Result("done", tuple(other))})


def test_grids_that_cannot_be_run():
    with pytest.raises(ValueError, match="config.chosen leaves out plain-longer, plain-again, which config.compared"):
        measure.get_claim(small("pool", chosen="plain"))
    with pytest.raises(ValueError, match="choose pool, steps, depth, temperature, best_of_n or distilled"):
        grids.get_config("polar")


@pytest.mark.slow
def test_a_tiny_grid(tmp_path):
    """Four steps of a tiny model on one in twelve prompts of the pool, with a proxy that makes the stages."""
    rows = [row for _, row in iterate_rows(located("shipped:policy_pool"))]
    write_lines(tmp_path / "pool.jsonl", [row for row in rows if zlib.crc32(row["prompt_id"].encode()) % 12 == 0])
    start = str(save_start(tmp_path / "start", head=0.5))
    grid = small("best_of_n", init=start, layers=0, steps=4, warmup=0, seeds=(0,), compared=("plain", "plain-again"))
    grid.chosen = "plain|plain-again|self-labeled|meta-step_norm-1"
    grid.writer.update({"pool": str(tmp_path / "pool.jsonl"), "tested_answers": 3, "best_of": (1, 2, 3)})
    claim, workdir = measure.get_claim(grid), tmp_path / "grid"
    engine = engines.InProcess(lambda name: run_cell(claim.study, name, workdir))
    found = run(claim.study, workdir, engine, Options(lambda name: [], retries=0))
    assert {name: result.why for name, result in found.items() if result.status != "done"} == {} and len(found) == 6
    lines = claim.summarize(found)
    accuracies = [line for line in lines if line["metric"] == "accuracy"]
    assert len(accuracies) == 4 * 3 and all(0 <= line["value"] <= 1 and line["n"] > 1 for line in accuracies)
    assert {line["arm"] for line in lines if line["metric"] == "ascent"} == {"meta-step_norm-1"}
    kept = {path.parent.name for path in workdir.glob("*/checkpoints")}
    assert kept == {"plain-seed0", "proxy-seed0"}, "those that others need"
    pairs = [c for c in records(str(workdir / "self-labeled-seed0" / "train.jsonl")) if c.id.startswith("self/")]
    assert pairs and all(len(set(c.ranks)) > 1 for c in pairs)
    made = {path: path.stat().st_mtime_ns for path in workdir.glob(f"*/{RESULT}")}
    assert run(claim.study, workdir, engine, Options(lambda name: [])) == found
    assert made == {path: path.stat().st_mtime_ns for path in made}
