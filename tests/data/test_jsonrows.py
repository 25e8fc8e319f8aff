"""Arrays of records, gzip, and what an array can be instead."""

import codecs
import gzip
import json
import os
import pickle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rmjax.data.jsonrows import in_memory
from rmjax.data.readers import open_records
from rmjax.data.record import RecordError
from rmjax.data.rows import open_rows

ROWS: list[dict[str, object]] = [
    {"prompt": 'p [{",\\\u2028é', "chosen": "a\nb", "rejected": "\\"},
    {"prompt": [{"role": "user", "content": "q"}], "outputs": ["a", "b"], "scores": [0.1, 0.3]},
    {"prompt": "r", "chosen": "}", "rejected": "]"},
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_file_that_changes_while_it_is_read(tmp_path, name):
    """Of the same length, so that only its time says so."""
    text = '{"prompt": "p", "chosen": "good", "rejected": "evil"}\n'
    path = write(tmp_path / name, text if name == "a.jsonl" else f"[{text}]")
    source = open_records(path)
    assert source[0].outputs == ("good", "evil")
    before = path.stat().st_mtime_ns
    path.write_text(path.read_text().replace("good", "evil", 1))
    os.utime(path, ns=(before + 1, before + 1))
    with pytest.raises(RecordError, match=r":1: .*the file was changed after it was opened"):
        source[0]


def write(path, text: str | bytes):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_an_array_is_read_as_its_lines_are(tmp_path, indent, mark):
    text = mark + json.dumps(ROWS, indent=indent, ensure_ascii=False).encode()
    opened = open_rows(write(tmp_path / "f.json", text))
    assert [opened.row(i) for i in range(len(opened))] == ROWS
    lines = [1, 1, 1] if indent is None else [2, 7, 23]
    assert [opened.place(i) for i in range(3)] == [f"{tmp_path / 'f.json'}:{line}" for line in lines]
    assert list(pickle.loads(pickle.dumps(opened)).numbers) == lines
    assert [r.prompt for r in open_records(tmp_path / "f.json")] == [ROWS[0]["prompt"], "q", "r"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(VALUES, max_size=4), indent=st.sampled_from([None, 0, 3]), ascii_only=st.booleans())
def test_any_array_gives_its_elements(values, indent, ascii_only):
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode()
    rows = in_memory("here", text)
    assert [rows.row(i) for i in range(len(rows))] == values
    assert rows.text is text  # offsets, no copy


def test_json_lines_under_the_name_of_an_array_are_read_too(tmp_path):
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    assert len(open_records(write(tmp_path / "f.json", text))) == 3


def test_gzip_is_read(tmp_path):
    text = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    members = gzip.compress(text) + gzip.compress(text)  # as `cat a.gz b.gz` makes it
    assert len(open_records(write(tmp_path / "f.jsonl.gz", members))) == 6


def test_gzip_that_grows_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "f.jsonl.gz", gzip.compress(b'{"prompt": "' + b"p" * 100_000 + b'"}'))
    monkeypatch.setenv("RMJAX_MAX_DECOMPRESSED", "50000")
    with pytest.raises(RecordError, match="takes more memory than is sensible"):
        open_records(path)


GOOD = '{"prompt": "p", "output": "o"}'


@pytest.mark.parametrize(
    ("element", "message"),
    [
        ('{"prompt": "p",\n "output": oops}', r":3: broken JSON \(column 12 of its line 2: .*\); correct or delete the record"),
        ('{"prompt": "p", oops}', r":3: broken JSON \(column 17 of it"),
        ('{"prompt": "p"]', ":3: broken JSON"),
        ('{"margin": NaN}', r":3: not a JSON number \(NaN\)"),
        ('{"prompt": "p"}', ":3: field `outputs`: missing"),
        ("17", ":3: not a JSON object"),
        ("", ":3: broken JSON"),
    ],
)  # fmt: skip
def test_a_bad_element_is_one_bad_record_and_its_line_is_named(tmp_path, element, message):
    path = write(tmp_path / "f.json", f"[\n{GOOD},\n{element},{GOOD}]\n")
    with pytest.raises(RecordError, match=rf"f\.json{message}"):
        open_records(path)
    assert len(open_records(path, "skip")) == 2


def test_bytes_that_are_no_text_are_one_bad_record(tmp_path):
    path = write(tmp_path / "f.json", f"[{GOOD},\n".encode() + b'{"prompt": "\xff"}]')
    with pytest.raises(RecordError, match=r"f\.json:2: not UTF-8 \(byte 13 of the record is 0xff\)"):
        open_records(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "empty data set"),
        ("", "empty data set"),
        (f"[{GOOD},\n{GOOD}", ":2: an array without its end, whose last record begins here; close it, or copy"),
        (f"[{GOOD},\n{GOOD[:-1]},\n{GOOD}]", ":2: an array without its end"),
        (f"[{GOOD},\n{GOOD}]\n\n[{GOOD}]", ":4: something stands behind the array"),
        (f"[{GOOD},\n{GOOD}}}]", ":2: a brace that closes nothing"),
        (f'[{GOOD},\n{{"prompt": "p,\n}}]', ":2: a text that does not end in its line"),
        (json.dumps({"data": ROWS}, indent=1), ":1: an object over several lines"),
    ],
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_what_is_no_array_is_an_error_whatever_on_error_says(tmp_path, text, message, on_error):
    with pytest.raises(RecordError, match=rf"f\.json{message}" if message[0] == ":" else message):
        open_records(write(tmp_path / "f.json", text), on_error)
