"""Every file format, every way a file can be bad, and writing all or nothing."""

import codecs
import contextlib
import dataclasses
import errno
import gzip
import json
import logging
import os
import pickle
import resource
import signal
import subprocess
import sys

import grain
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rmjax.data import decompression, parquet_rows
from rmjax.data.readers import open_records, write_records
from rmjax.data.record import Comparison, RecordError, parse

FORMATS = [".jsonl", ".jsonl.zst", ".parquet", ".array_record"]
LINES: list[dict[str, object]] = [
    {"prompt": "p\u2028\u0085é", "chosen": "a", "rejected": "b"},
    {"prompt": [{"role": "user", "content": "q"}], "outputs": ["a", "b"], "scores": [0.1, 0.3]},
    {"prompt": "r", "output": "z", "reference": "ref", "id": "last"},
]
RECORDS = [parse(row, "") for row in LINES]


TEXTS = st.text(min_size=1, max_size=20).filter(str.strip)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
ROWS = st.fixed_dictionaries(
    {"prompt": TEXTS, "outputs": st.lists(TEXTS, min_size=2, max_size=2, unique=True)},
    optional={
        "references": st.lists(TEXTS, max_size=2),
        "ranks": st.tuples(FINITE, FINITE),
        "scores": st.tuples(FINITE, FINITE),
        "votes": st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=3),
        "policies": st.tuples(TEXTS, TEXTS),
        "category": TEXTS,
        "type": st.integers(0, 9),
        "margin": st.floats(-1e38, 1e38),
    },
)


def without_place(records) -> list[Comparison]:
    return [dataclasses.replace(record, place="") for record in records]


def write_lines(path, rows=LINES) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_written_is_read_back(tmp_path, suffix):
    path = tmp_path / f"f{suffix}"
    assert write_records(path, RECORDS) == 3
    source = open_records(path)
    assert len(source) == 3
    assert without_place(source) == RECORDS
    assert [record.place for record in source] == [f"{path}:{i}" for i in (1, 2, 3)]
    assert source[-1].id == "last"
    with pytest.raises(IndexError):
        source[3]
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", FORMATS)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=ROWS)
def test_any_record_survives_any_format(tmp_path, suffix, row):
    path, record = tmp_path / f"f{suffix}", parse(row, "f:1")
    write_records(path, [record])
    assert dataclasses.replace(open_records(path)[0], place="f:1") == record


@pytest.mark.parametrize("suffix", FORMATS)
def test_sources_feed_grain_and_travel_to_workers(tmp_path, suffix):
    path = tmp_path / f"f{suffix}"
    write_records(path, RECORDS)
    source = open_records(path)
    dataset = grain.MapDataset.source(source).shuffle(seed=1).map(lambda record: record.prompt)
    assert sorted(dataset[i] for i in range(3)) == sorted(r.prompt for r in RECORDS)
    copy = pickle.loads(pickle.dumps(source))
    assert list(copy) == list(source)
    assert repr(copy) == repr(source) == f"RandomAccessSource(path='{path}', length=3)"


def test_zstd_with_a_long_window_and_several_frames(tmp_path):
    path = tmp_path / "f.jsonl.zst"
    text = "".join(json.dumps(row) + "\n" for row in LINES).encode()
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=28, enable_ldm=True)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    frame = stream.compress(text) + stream.flush()
    path.write_bytes(frame + zstandard.compress(text))
    assert without_place(open_records(path)) == RECORDS * 2


def test_blank_lines_and_byte_order_mark_and_carriage_returns(tmp_path):
    path = tmp_path / "f.jsonl"
    lines = [json.dumps(row) for row in LINES]
    text = f"{lines[0]}\r\n\n \n{lines[1]}\n{lines[2]}"
    path.write_bytes(codecs.BOM_UTF8 + text.encode())
    source = open_records(path)
    assert without_place(source) == RECORDS
    assert [record.place for record in source] == [f"{path}:{i}" for i in (1, 4, 5)]
    assert source.skipped == {"blank line": 2}


BROKEN_LINES = [
    (b'{"prompt": "p", oops}', "broken JSON (column 17: "),
    (b'{"prompt": "p",', "broken JSON (column 17: "),  # a line cut short: the fault is behind its newline
    (b'{"prompt": "\xff"}', "not UTF-8 (byte 13 of the line is 0xff)"),
    ('{"prompt": "é"}'.encode("latin-1"), "not UTF-8 (byte 13 of the line is 0xe9)"),
    (b'{"prompt": "p"}', "field `outputs`: missing"),
    (b'"prompt"', "not a JSON object"),
    (b"[" * 100_000, "broken JSON (nested too deeply)"),
    (b'{"prompt": ' + b"1" * 5000 + b"}", "number with too many digits (Exceeds the limit"),
    (b'{"margin": NaN}', "not a JSON number (NaN)"),
    (b'{"margin": -Infinity}', "not a JSON number (-Infinity)"),
]


@pytest.mark.parametrize(("line", "problem"), BROKEN_LINES)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_bad_line_is_named_before_training_starts(tmp_path, line, problem, compressed):
    good = json.dumps(LINES[0]).encode()
    content = b"\n".join([good, line, good, line])
    path = tmp_path / ("f.jsonl.zst" if compressed else "f.jsonl")
    path.write_bytes(zstandard.compress(content) if compressed else content)
    with pytest.raises(RecordError) as caught:
        open_records(path)
    assert str(caught.value).startswith(f"{path}:2: {problem}")
    assert "2 of 4 records are bad" in str(caught.value)


def test_bad_records_can_be_skipped_and_are_counted(tmp_path, caplog):
    path = tmp_path / "f.jsonl"
    lines = [json.dumps(LINES[0]), "{", '{"prompt": ""}', "[", json.dumps(LINES[2])]
    path.write_text("\n".join(lines))
    with caplog.at_level(logging.WARNING):
        source = open_records(path, on_error="skip")
    assert without_place(source) == [RECORDS[0], RECORDS[2]]
    assert [record.place for record in source] == [f"{path}:1", f"{path}:5"]
    assert source.skipped == {"broken JSON": 2, "prompt: empty text": 1}
    assert "skipped 2 × broken JSON, 1 × prompt: empty text" in caplog.text


def test_nothing_left_is_an_error_even_when_skipping(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text("{\n{\n")
    with pytest.raises(RecordError, match=r"f\.jsonl:1: broken JSON.*2 of 2 records are bad"):
        open_records(path, on_error="skip")


def test_on_error_is_checked(tmp_path):
    with pytest.raises(ValueError, match="on_error"):
        open_records(tmp_path / "f.jsonl", on_error="ignore")  # type: ignore[arg-type]


def test_unknown_fields_are_counted_and_logged_once(tmp_path, caplog):
    path = tmp_path / "f.jsonl"
    write_lines(path, [{**row, "catgory": 1, "zebra": 2} for row in LINES] + LINES)
    with caplog.at_level(logging.WARNING):
        source = open_records(path)
    assert source.unknown == {"catgory": 3, "zebra": 3}
    assert caplog.text.count("`catgory` ignored in 3 of 6 records (did you mean `category`?)") == 1
    assert "`zebra` ignored in 3 of 6 records\n" in caplog.text


def test_scores_that_contradict_the_order_are_counted_and_said(tmp_path, caplog):
    path, pair = tmp_path / "f.jsonl", {"prompt": "p", "chosen": "a", "rejected": "b"}
    write_lines(path, [pair | {"scores": [1, 5]}, pair | {"scores": [5, 1]}, pair | {"scores": [1, 1]}, pair])
    with caplog.at_level(logging.WARNING):
        assert open_records(path).contradicting == 1
    assert "`scores` contradict the order that is given in 1 of 4 records; the order counts" in caplog.text


@pytest.mark.parametrize("suffix", [".parquet", ".array_record", ".jsonl.zst"])
def test_a_flipped_byte_does_not_go_unnoticed(tmp_path, suffix):
    path, records = tmp_path / f"f{suffix}", [parse(row | {"id": str(i)}, "") for i in range(20) for row in LINES]
    write_records(path, records)
    whole = path.read_bytes()
    texts = [i for i in range(0, len(whole), 37) if whole[i]][:40]
    for at in texts:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        try:
            assert without_place(open_records(path)) == records, at
        except (RecordError, OSError, RuntimeError):
            continue


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_an_error(tmp_path, content):
    path = tmp_path / "f.jsonl"
    path.write_text(content)
    with pytest.raises(RecordError, match=r"f\.jsonl: empty data set"):
        open_records(path)


def test_an_absent_file_names_its_neighbors(tmp_path):
    write_lines(tmp_path / "train.jsonl")
    with pytest.raises(FileNotFoundError, match=r"trian\.jsonl: no such file.*train\.jsonl"):
        open_records(tmp_path / "trian.jsonl")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist either"):
        open_records(tmp_path / "nowhere" / "train.jsonl")


def test_a_directory_and_an_unknown_extension(tmp_path):
    with pytest.raises(IsADirectoryError, match="give one of the files"):
        open_records(tmp_path)
    (tmp_path / "f.csv").write_text("a,b")
    with pytest.raises(RecordError, match=r"unknown file type; use one of \.jsonl, .*tfds"):
        open_records(tmp_path / "f.csv")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_no_read_permission(tmp_path):
    path = tmp_path / "f.jsonl"
    write_lines(path)
    path.chmod(0)
    with pytest.raises(PermissionError, match="no read permission"):
        open_records(path)


def test_no_read_permission_reported_by_the_system(tmp_path, monkeypatch):
    path = tmp_path / "f.jsonl"
    write_lines(path)

    def refuse(*arguments):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    with pytest.raises(PermissionError, match=r"f\.jsonl: no read permission"):
        open_records(path)


@pytest.mark.parametrize("suffix", FORMATS[1:])
def test_damaged_files(tmp_path, suffix):
    path = tmp_path / f"f{suffix}"
    write_records(path, RECORDS * 50)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RecordError, match="truncated zstd file|broken .* file") as caught:
        open_records(path, on_error="skip")
    assert caught.value.place == str(path)


GZIPPED = gzip.compress(b"{}", mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "f.jsonl",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "a Git LFS pointer, .*`git lfs pull`",
        ),
        ("f.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a Git LFS pointer"),
        ("f.parquet", GZIPPED, "a gzip file"),
        ("f.jsonl", GZIPPED, r"a gzip file; give its name the ending \.jsonl\.gz, or unpack it with `gunzip`"),
        ("f.jsonl.gz", GZIPPED[:-9], "truncated gzip file; copy or download the file again"),
        ("f.jsonl.gz", GZIPPED[:-8] + bytes(8), "broken gzip file"),
        ("f.jsonl", zstandard.compress(b"{}"), r"a zstd file; give its name the ending \.jsonl\.zst"),
        ("f.jsonl", '{"prompt": "p"}'.encode("utf-16"), "text in UTF-16; convert it to UTF-8"),
        ("f.parquet", b"PAR1 and no more", "broken Parquet file"),
        ("f.jsonl", json.dumps(LINES).encode(), r":1: a JSON array, not .*ending \.json.*`jq -c '\.\[\]' .*f\.jsonl`"),
        ("f.jsonl", b"\n" + json.dumps(LINES, indent=2).encode(), ":2: a JSON array, not JSON lines"),
        (
            "f.jsonl",
            json.dumps(LINES[0], indent=2).encode(),
            ":1: an object over several lines, not JSON lines; .*`jq -c . ",
        ),
    ],
    ids=[
        "lfs", "lfs-parquet", "gz", "gzip", "gzip-truncated", "gzip-damaged", "zstd", "utf-16", "half-parquet", "array",
        "array-over-lines", "object-over-lines",
    ],
)  # fmt: skip
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_what_a_file_is_instead(tmp_path, name, content, message, on_error):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecordError, match=rf"{name}(:1|:2|:.)?.*{message}"):
        open_records(tmp_path / name, on_error)


def test_invalid_utf8_in_parquet_is_one_bad_row(tmp_path):
    path = tmp_path / "f.parquet"
    texts = pyarrow.array([b"a", b"\xff\xfe", b"c"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["p", "q", "r"], "output": texts}), path)
    with pytest.raises(RecordError, match=r"f\.parquet:2: field `output`: not UTF-8 \(byte 1 of a text is 0xff\)"):
        open_records(path)
    assert open_records(path, "skip").skipped == {"output: not UTF-8": 1}


def test_a_damaged_chunk_of_array_record_is_one_bad_row(tmp_path):
    path = tmp_path / "f.array_record"
    write_records(path, RECORDS)
    content = bytearray(path.read_bytes())
    content[content.index(b'"prompt": "q"')] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        RecordError, match=r"f\.array_record:2: damaged ArrayRecord chunk \(.*hash mismatch.*\); write or download"
    ):
        open_records(path)
    assert len(open_records(path, "skip")) == 2


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255))
@pytest.mark.parametrize("suffix", [".jsonl.zst", ".parquet"])
def test_any_damaged_byte_is_a_record_error_or_none(tmp_path, suffix, place, value):
    path = tmp_path / f"f{suffix}"
    write_records(path, RECORDS)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= value
    path.write_bytes(content)
    with contextlib.suppress(RecordError):
        list(open_records(path, on_error="skip"))


def test_a_parquet_file_in_a_folder_with_a_key_in_its_name_has_its_own_columns(tmp_path):
    folder = tmp_path / "category=x"
    folder.mkdir()
    write_records(folder / "f.parquet", RECORDS)
    assert without_place(open_records(folder / "f.parquet")) == RECORDS


@pytest.mark.parametrize("suffix", [".jsonl.zst", ".parquet"])
def test_a_file_that_grows_beyond_the_limit_says_how_to_raise_it(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"f{suffix}"
    write_records(path, [dataclasses.replace(RECORDS[0], prompt="p" * 100_000)])
    open_records(path)
    monkeypatch.setenv("RMJAX_MAX_DECOMPRESSED", "50000")
    message = r"takes more memory than is sensible \(.* bytes become more than 50,000\).*set RMJAX_MAX_DECOMPRESSED in the env"
    with pytest.raises(RecordError, match=message):
        open_records(path, on_error="skip")
    monkeypatch.setenv("RMJAX_MAX_DECOMPRESSED", "much")
    with pytest.raises(RecordError, match="RMJAX_MAX_DECOMPRESSED: is 'much', not a number of bytes"):
        open_records(path)


@pytest.mark.parametrize("shared", [False, True])
def test_a_parquet_file_whose_one_value_stands_in_every_row_is_limited(tmp_path, shared):
    """Values that are stored once are large only when they are read; a column that stays a dictionary never is."""
    path = tmp_path / "f.parquet"
    text = pyarrow.array(["x" * 2**20]).dictionary_encode().take(pyarrow.array([0] * 300))
    table = pyarrow.table({"output": text if shared else text.cast(pyarrow.string()), "prompt": ["p"] * 300})
    pyarrow.parquet.write_table(table, path, compression="zstd")
    assert path.stat().st_size < 5000
    if shared:
        assert parquet_rows.open_parquet(path).table.equals(table)
        return
    with pytest.raises(RecordError, match=r"f\.parquet: takes more memory than is sensible .* more than 67,108,864"):
        open_records(path, on_error="skip")


def test_a_damaged_footer_of_parquet_does_not_end_the_process(tmp_path):
    """pyarrow aborts where a column of such a footer is asked for its description, so `open_parquet` does not ask."""
    path = tmp_path / "f.parquet"
    write_records(path, RECORDS)
    whole = path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for at in range(footer, footer + 400):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with contextlib.suppress(RecordError):
            parquet_rows.open_parquet(path)


@pytest.mark.parametrize("count", [0, 1, 5000])
@pytest.mark.parametrize("group", [700, 10_000])
@pytest.mark.parametrize("shared", [False, True])
def test_a_parquet_table_is_as_it_was_written(tmp_path, monkeypatch, count, group, shared):
    path, names = tmp_path / "f.parquet", pyarrow.array([f"n{i % 7}" for i in range(count)], pyarrow.string())
    messages = pyarrow.list_(pyarrow.struct({"role": pyarrow.string(), "content": pyarrow.string()}))
    columns = {
        "prompt": pyarrow.array([[{"role": "user", "content": str(i)}] for i in range(count)], messages),
        "source": names.dictionary_encode() if shared else names,
        "weight": pyarrow.array([None if i % 3 else float(i) for i in range(count)], pyarrow.float64()),
    }
    table = pyarrow.table(columns).replace_schema_metadata({"made": "here"})
    pyarrow.parquet.write_table(table, path, row_group_size=group)
    monkeypatch.setattr(parquet_rows, "_CHUNK_BYTES", 20_000)
    monkeypatch.setattr(parquet_rows, "_IN_MEMORY_BYTES", 0 if group == 700 else 2**22)  # in a temporary file, and not
    found = parquet_rows.open_parquet(path).table
    with pyarrow.parquet.ParquetFile(path) as file:
        assert found.schema.equals(file.read().schema, check_metadata=True)
    assert found.equals(table) and found.num_rows == count


def test_a_record_of_array_record_that_grows_beyond_the_limit_is_one_bad_row(tmp_path, monkeypatch):
    path = tmp_path / "f.array_record"
    write_records(path, [RECORDS[0], dataclasses.replace(RECORDS[0], prompt="p" * 100_000)])
    monkeypatch.setenv("RMJAX_MAX_DECOMPRESSED", "50000")
    message = r"f\.array_record:2: takes more memory than is sensible \(.* bytes become more than 50,000\)"
    with pytest.raises(RecordError, match=message):
        open_records(path)
    assert len(open_records(path, "skip")) == 1


def test_decompression_stops_soon_after_the_limit(tmp_path):
    path = tmp_path / "blanks.zst"
    stream = zstandard.ZstdCompressor().compressobj()
    path.write_bytes(b"".join(stream.compress(bytes(2**20)) for _ in range(100)) + stream.flush())
    taken, limit = [], 2**20
    with path.open("rb") as file:
        for piece in decompression._pieces(file, ""):
            taken.append(len(piece))
            if sum(taken) > limit:
                break
    assert sum(taken) < 2**26 < 100 * 2**20
    with pytest.raises(RecordError, match="more than 1,048,576"):
        decompression.decompress(path, limit)
    assert decompression.sensible_limit(path.stat().st_size) == 2**26


def test_zstd_of_something_else(tmp_path):
    (tmp_path / "f.jsonl.zst").write_bytes(b"not zstd at all")
    with pytest.raises(RecordError, match="broken zstd file"):
        open_records(tmp_path / "f.jsonl.zst")


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "f.jsonl"
    write_records(path, RECORDS)
    before = path.read_bytes()
    with pytest.raises(RecordError, match="no records to write"):
        write_records(path, [])
    with pytest.raises(UnicodeEncodeError):
        write_records(path, [Comparison("\ud800", ("a",))])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["f.jsonl"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_writing_to_an_absent_directory(tmp_path, suffix):
    path = tmp_path / "no" / f"f{suffix}"
    with pytest.raises(FileNotFoundError, match=rf"cannot write \(No such file.*no/f{suffix}"):
        write_records(path, RECORDS)


def test_writing_an_unknown_type(tmp_path):
    with pytest.raises(RecordError, match=r"f\.txt: unknown file type; use one of \.jsonl"):
        write_records(tmp_path / "f.txt", RECORDS)


WRITE_BIG = """
import sys
from rmjax.data.readers import write_records
from rmjax.data.record import Comparison
import random
texts = [random.Random(i).randbytes(3000).hex() for i in range(100)]
try:
    write_records(sys.argv[1], [Comparison(text, ("a",)) for text in texts])
except OSError as error:
    print("OSError", error)
"""


def limit_file_size() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path, suffix):
    path = tmp_path / f"f{suffix}"
    result = subprocess.run(
        [sys.executable, "-c", WRITE_BIG, str(path)],
        preexec_fn=limit_file_size,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "OSError" in result.stdout and "cannot write" in result.stdout
    assert str(path) in result.stdout
    assert os.listdir(tmp_path) == []
