"""Files of messages, and of rows that are no comparisons."""

import dataclasses
import json
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest

from rmjax.data.messages import as_strings
from rmjax.data.readers import open_records, read_all, write_records
from rmjax.data.record import RecordError, parse, parse_text, to_row
from rmjax.data.samplerows import SAMPLE_FIELDS, parse_sample

FORMATS = [".jsonl", ".jsonl.zst", ".parquet", ".array_record"]
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
SAID = {"prompt": ASKED, "chosen": [*ASKED, {"role": "assistant", "content": "4"}], "rejected": "5"}


@pytest.mark.parametrize("suffix", FORMATS)
def test_messages_survive_files(tmp_path, suffix):
    path, record = tmp_path / f"f{suffix}", parse(SAID, "f:1")
    write_records(path, [record])
    assert dataclasses.replace(open_records(path)[0], place="f:1") == record


def test_messages_beside_columns_of_text_are_those_of_the_text(tmp_path):
    row = as_strings(to_row(parse(SAID, "f:1")))
    assert row["prompt"] == "Be brief.\n2 + 2?" and row["outputs"] == ["4", "5"]

    def read(**changes):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row | changes]), tmp_path / "f.parquet")
        return open_records(tmp_path / "f.parquet")[0]

    assert to_row(read()) == to_row(parse(SAID, "f:1"))
    assert read(prompt="2 + 3?", messages_json=None).prompt == "2 + 3?"
    with pytest.raises(
        RecordError, match="f.parquet:1: .*`messages_json`: has other messages than the text of `prompt`"
    ):
        read(prompt="2 + 3?")
    for damaged in ("{", "[]", '{"prompt": 1}', '{"prompt": [[{}]], "outputs": [null, null]}'):
        with pytest.raises(RecordError, match="f.parquet:1: .*`messages_json`: not what was written there"):
            read(messages_json=damaged)


def test_messages_of_a_foreign_parquet_file_are_read_without_its_nulls(tmp_path, caplog):
    turns = [*ASKED, {"role": "assistant", "content": "4", "tool_call_id": None}]
    table = pyarrow.Table.from_pylist(
        [{"prompt": "2 + 2?", "chosen": turns, "rejected": [*ASKED, turns[-1] | {"content": "5"}]}]
    )
    pyarrow.parquet.write_table(table, tmp_path / "f.parquet")
    (found,) = open_records(tmp_path / "f.parquet")
    assert (found.prompt, found.outputs) == ("2 + 2?", ("4", "5"))
    assert "2 × copy of the prompt taken off an answer" in caplog.text


def test_other_rows_are_checked_and_logged_as_comparisons_are(tmp_path, caplog):
    path = tmp_path / "pool.jsonl"
    row = {"prompt_id": "p", "prompt": "P", "policy": "a", "output": "x"}
    rows = [
        row | {"prompt_splt": "unseen", "number": 1},
        row | {"output": "half \ud800"},
        row | {"policy_split": "sen"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:1]))
    (found,) = read_all(path, parse_sample, SAMPLE_FIELDS)
    assert (found.prompt_split, found.number) == ("seen", 0)
    assert "unknown field `prompt_splt` ignored in 1 of 1 records (did you mean `prompt_split`?)" in caplog.text
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = r"pool\.jsonl:2: field `output`: text with a lone surrogate; .* \(2 of 3 records are bad\)"
    with pytest.raises(RecordError, match=message):
        read_all(path, parse_sample, SAMPLE_FIELDS)
    path.write_text(json.dumps({"instruction": "Say x.", "output": "x"}) + "\n")
    (text,) = read_all(path, parse_text)
    assert (text.prompt, text.outputs) == ("", ("x",))
    assert "unknown field `instruction` ignored in 1 of 1 records" in caplog.text


def test_bad_rows_of_texts_and_pools_are_left_out_by_choice(tmp_path, caplog):
    path = tmp_path / "f.jsonl"
    path.write_text('{"prompt": "p", "output": "a"}\n{broken\n\n{"prompt": "p"}\n{"output": "b"}\n')
    with pytest.raises(RecordError, match=r"f\.jsonl:2: .*\(2 of 4 records are bad\)$"):
        read_all(path, parse_text)
    skipped: Counter[str] = Counter()
    assert [text.outputs for text in read_all(path, parse_text, on_error="skip", skipped=skipped)] == [("a",), ("b",)]
    assert skipped.total() == 3 and skipped["blank line"] == skipped["outputs: missing"] == 1
    assert "skipped 1 × " in caplog.text
    with pytest.raises(RecordError, match=r"\(4 of 4 records are bad\)$"):
        read_all(path, parse_sample, SAMPLE_FIELDS, on_error="skip")
