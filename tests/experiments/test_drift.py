"""The drift experiment: the stages that are cut from the pool, the arms, and the summary."""

import numpy as np
import pytest

from configs import drift as grid
from experiments import drift
from rmjax.data.record import Comparison
from rmjax.evaluate.plots import gap_distributions, svg

pytestmark = pytest.mark.slow  # whole runs


ANSWER = "one  two\nthree four five six seven eight"


def test_each_answer_stands_on_two_rungs_with_the_same_words():
    answers = [f"{ANSWER} {number}" for number in range(20)]
    found = drift.ladder(Comparison("p", (*answers, "too short to lose")))
    assert len(found.outputs) == 40 and set(found.ranks) == {0.0, 1.0, 2.0}
    for output, rank in zip(found.outputs, found.ranks, strict=True):
        (answer,) = [a for a in answers if a.split()[-1] in output.split()]
        assert sorted(output.split()) == sorted(answer.split()) and len(output) == len(answer)
        assert (output == answer) == (rank == 0.0)
        moved = sum(a != b for a, b in zip(output.split(), answer.split(), strict=True))
        assert moved == [0, 2, 5][int(rank)]
    assert drift.ladder(Comparison("p", tuple(answers))).outputs == found.outputs


def test_the_pool_has_every_stage(tmp_path):
    drift.make_data(tmp_path)
    sizes = {path.stem: len(list(drift.records(str(path)))) for path in tmp_path.iterdir()}
    assert set(sizes) == {"train", "meta", "random", *(f"test_{name}" for name in grid.STAGES)}
    assert min(sizes.values()) >= 20, sizes
    meta, shuffled = (list(drift.records(str(tmp_path / f"{name}.jsonl"))) for name in ("meta", "random"))
    assert all(c.ranks is None for c in meta + shuffled)
    assert sorted(o for c in meta for o in c.outputs) == sorted(o for c in shuffled for o in c.outputs)
    assert sum(a.outputs == b.outputs for a, b in zip(meta, shuffled, strict=True)) < len(meta) / 2
    drifted, first = (
        {o for c in found for o in c.outputs} for found in (meta, drift.records(str(tmp_path / "train.jsonl")))
    )
    assert len(drifted & first) < len(drifted) / 100, "policies may now and then write the same text, but seldom"
    tests = {c.prompt for name in grid.STAGES for c in drift.records(str(tmp_path / f"test_{name}.jsonl"))}
    assert not tests & {c.prompt for name in ("train", "meta") for c in drift.records(str(tmp_path / f"{name}.jsonl"))}


@pytest.mark.parametrize("arm", grid.ARMS)
def test_arms(arm):
    config = grid.get_config(arm, 2, "data")
    assert config.run.seed == 2 and config.gradient.name == ("meta" if grid.ARMS[arm].mode else "plain")
    assert config.gradient.mode == (grid.ARMS[arm].mode or "plain")
    assert set(grid.PLOTTED) <= set(grid.ARMS)


def test_the_summary_pairs_groups_and_seeds():
    prompts = {stage: ["p", "p", "q"] for stage in grid.STAGES}

    def judged(*credits):
        stage = {"credits": credits, "spread": {"gap_mean": 1.0, "gap_share": 0.5}}
        return dict.fromkeys(grid.STAGES, stage) | {"diagnostics": {"meta_cosine": credits[0]}}

    runs = {"plain": [judged(1, 0, 1), judged(0, 0, 1)], "plain-longer": [judged(1, 0, 1), judged(1, 0, 1)]}
    table = drift.summary(runs | {"other": [judged(1, 1, 1), judged(0.5, 0, 1)]}, prompts)
    first = table["other"]["first"]
    assert first["accuracy"]["mean"]["value"] == pytest.approx(4.5 / 6)
    assert first["over"]["plain"]["mean"]["value"] == pytest.approx(1.5 / 6)
    assert first["over"]["plain"]["seeds"] == pytest.approx([1 / 3, 0.5 / 3])
    assert first["over"]["plain-longer"]["mean"]["value"] == pytest.approx(0.5 / 6)
    assert first["over"]["plain"]["mean"]["low"] == 0.0, "the prompt q, drawn alone, is right in every arm"
    assert table["other"]["diagnostics"]["meta_cosine"] == pytest.approx(0.75)
    assert table["plain"]["furthest"]["over"]["plain"]["mean"]["high"] == 0.0


def test_the_plot_has_a_line_per_model():
    text = svg(gap_distributions({"plain": np.array([0.1, 0.2, 0.4]), "meta": np.zeros(2)}), "gaps")
    assert "plain" in text and "meta" in text
