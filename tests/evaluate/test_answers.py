"""Files of answers: how they are read, ranked, shown and written; no model is run."""

import datetime
import json

import pyarrow
import pyarrow.parquet
import pytest

from rmjax.data.record import RecordError
from rmjax.evaluate import answers as scoring
from rmjax.evaluate.answers import Scored, read_answers, score_answers, table, write_scored


class Length:
    """A model whose reward is the number of letters."""

    def __init__(self):
        self.seen = []

    @property
    def scorer(self):
        return self

    def score(self, records, progress=False):
        self.seen = [(c.prompt, c.outputs) for c in records]
        return [[float(len(o)) for o in c.outputs] for c in records]


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_answers_to_one_prompt_are_ranked_together(tmp_path):
    rows = [
        {"prompt": "p", "output": "aa"},
        {"prompt": "q", "output": "a"},
        {"prompt": "p", "outputs": ["bbb", "cc"], "ranks": [1, 0]},
        {"prompt": "p", "reference": "r", "output": "a"},
    ]
    model, found = Length(), read_answers(write(tmp_path / "a.jsonl", *rows))
    scored = score_answers(model, found)
    assert model.seen == [("p", ("aa", "bbb", "cc")), ("q", ("a",)), ("p", ("a",))]
    assert [(s.row, s.answer, s.reward, s.rank) for s in scored] == [
        (0, 0, 2.0, 2), (1, 0, 1.0, 1), (2, 0, 3.0, 1), (2, 1, 2.0, 2), (3, 0, 1.0, 1),
    ]  # fmt: skip
    write_scored(tmp_path / "out.jsonl", found, scored, "r", {})
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert written[2] == {**rows[2], "r": [3.0, 2.0], "r_rank": [1, 2]} and written[0]["r"] == 2.0


ASKED = [{"role": "user", "content": "p"}]
SAID = [*ASKED, {"role": "assistant", "content": "zz"}]


@pytest.mark.parametrize(
    ("rows", "prompts", "ranks"),
    [
        ([{"prompt": "p", "output": "a"}, {"messages": SAID}], ["p"], [2, 1]),
        ([{"prompt": "p", "output": "a"}, {"prompt": ASKED, "output": "zz"}], ["p"], [2, 1]),
        (
            [{"prompt": "p", "output": "a", "reference": ""}, {"prompt": "p", "output": "b", "wrapper": "sft"}],
            ["p"],
            [1, 1],
        ),
        ([{"prompt": "p", "output": "a"}, {"prompt": "p", "output": "b", "wrapper": "pretrain"}], ["p", "p"], [1, 1]),
        ([{"prompt": SAID, "output": "y"}, {"prompt": SAID, "output": "zz"}], ["p"], [2, 1]),
        ([{"prompt": SAID, "output": "y"}, {"prompt": "p", "output": "zz"}], ["p\nzz", "p"], [1, 1]),
    ],
)
def test_one_prompt_is_one_group_in_any_layout(tmp_path, rows, prompts, ranks):
    model = Length()
    scored = score_answers(model, read_answers(write(tmp_path / "a.jsonl", *rows)))
    assert [f"{prompt}" for prompt, _ in model.seen] == prompts and [s.rank for s in scored] == ranks


@pytest.mark.parametrize("value", [b"raw", datetime.datetime(2026, 1, 2)])
@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_column_that_json_cannot_hold_is_refused_before_scoring(tmp_path, value, ending):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"prompt": "p", "output": "a", "more": value}]), path)
    with pytest.raises(ValueError, match="a.parquet.*: field `more` cannot be written as JSON .*make it a text"):
        scoring.check_out(tmp_path / f"out.{ending}", read_answers(str(path)), "reward")


def test_broken_rows_stop_or_are_counted(tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": "p", "output": "a"}, {"prompt": "p"}, {"prompt": "q", "output": ""})
    with pytest.raises(RecordError, match="a.jsonl:2: "):
        read_answers(path)
    found = read_answers(path, "skip")
    assert len(found.rows) == 1 and sum(found.skipped.values()) == 2
    with pytest.raises(RecordError, match="b.jsonl:1: "):
        read_answers(write(tmp_path / "b.jsonl", {"prompt": "p"}), "skip")


def test_a_table_fits_its_width_and_says_what_it_leaves_out():
    scored = [Scored(i, 0, "p\n" + "x" * 99, "y\x1b" * 99, float(i), 9 - i) for i in range(9)]
    lines = table(scored, rows=3, width=60).splitlines()
    assert len(lines) == 5 and all(len(line) <= 60 for line in lines[:4]) and "\x1b" not in "".join(lines)
    assert lines[1].split()[-2:] == ["8.0000", "1"] and lines[1].startswith("p x") and lines[2].startswith(" ")
    assert lines[-1].startswith("… and 6 answers more")
    assert len(table(scored, rows=0, width=60).splitlines()) == 10


def test_a_field_that_would_be_lost_is_refused(tmp_path):
    found = read_answers(write(tmp_path / "a.jsonl", {"prompt": "p", "output": "a", "reward_rank": 1}))
    with pytest.raises(ValueError, match="a.jsonl:1: has a field `reward_rank`, which would be lost"):
        scoring.check_out(tmp_path / "out.jsonl", found, "reward")
    scoring.check_out(tmp_path / "out.jsonl", found, "score")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
