"""The study of drawing: rounds in which the order turns, tokens that have to be equal, its table."""

import contextlib

import pytest

from experiments.studies.sampling import config, measure
from rmjax.study.study import Result


@pytest.fixture
def small(tmp_path):
    grid = config.get_config()
    grid.update(rounds=2, prompts=3, samples=2)
    (cell,) = measure.cells(grid)
    return cell


def beside(monkeypatch, theirs):
    """Sides that answer at once; what they were asked, in order."""
    said = []

    @contextlib.contextmanager
    def sides(config, folder):
        def of(name, ids):
            return lambda prompts, kind: said.append((name, kind, prompts)) or [ids] * 6

        yield {measure.OURS: of(measure.OURS, [1, 2]), measure.THEIRS: of(measure.THEIRS, theirs)}

    monkeypatch.setattr(measure, "sides", sides)
    return said


def test_a_round_asks_both_sides_for_the_same_and_its_order_turns(monkeypatch, small, tmp_path):
    said = beside(monkeypatch, [1, 2])
    rows = list(measure.measure(small, tmp_path))
    first = [name for name, kind, _ in said if kind == "greedy"]
    assert first == [measure.OURS, measure.THEIRS, measure.THEIRS, measure.OURS, measure.OURS, measure.THEIRS]
    assert all(one[2] == other[2] for one, other in zip(said[::2], said[1::2], strict=True))
    assert {len(prompt) for _, kind, prompts in said for prompt in prompts if kind == "short"} == {16}
    rates = [row for row in rows if row.metric == measure.RATE]
    assert len(rates) == 2 * len(measure.KINDS) * 2 and {row.cluster for row in rates} == {0, 1}


def test_other_greedy_tokens_are_an_error(monkeypatch, small, tmp_path):
    beside(monkeypatch, [1, 3])
    with pytest.raises(ValueError, match="round -1: greedy tokens differ between the sides; nothing was compared"):
        list(measure.measure(small, tmp_path))


def test_the_table(monkeypatch, small, tmp_path):
    beside(monkeypatch, [1, 2])
    monkeypatch.setattr(measure.time, "monotonic", iter([i * (i + 1) / 2 for i in range(100)]).__next__)
    rows = tuple(measure.measure(small, tmp_path))
    text = measure.parts(measure.summarize({"beside": Result("done", rows)}))["beside"]
    assert text.splitlines()[0] == "| samples | rmjax | transformers | ratio, median (interval of the mean) |"
    assert [line.split(" | ")[0] for line in text.splitlines()[2:]] == [f"| {said}" for said in measure.KINDS.values()]
