"""Sets that are larger than the memory that they may take: several Parquet shards, comparisons and texts."""

import dataclasses
import errno
import os
import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from rmjax.data import again, parquet_rows
from rmjax.data.errors import RecordError
from rmjax.data.layouts import LAYOUTS, _converted
from rmjax.data.readers import open_records
from rmjax.data.sources import comparisons, texts
from rmjax.settings import Data

ROWS, SHARDS, TEXT = 200, 8, 2**16  # of a shard, files, characters of a text
ALLOCATED = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}  # as it is asked for
OPEN = """
import resource, sys
from pathlib import Path
from rmjax.data import again, parquet_rows
from rmjax.data.sources import comparisons, texts
from rmjax.settings import Data

folder, kind, in_memory = sys.argv[1:]
if in_memory == "table":
    parquet_rows._IN_MEMORY_BYTES = 2**40
again.KEPT_CHARACTERS = 2**40 if in_memory == "records" else 2**24
status = Path("/proc/self/status").read_text()
data = 1024 * int(next(line for line in status.splitlines() if line.startswith("VmData")).split()[1])
resource.setrlimit(resource.RLIMIT_DATA, (data + 128 * 2**20,) * 2)  # mapped files are not counted
columns = {"comparisons": ("prompt=q", "chosen=a", "rejected=b"), "texts": ("output=a",)}[kind]
read = {"comparisons": comparisons, "texts": texts}[kind]
found = read(Data(kind=kind, path=folder, columns=columns, reference="optional"))
print(len(found), found.source[len(found) - 1].outputs[0][:12], found.digest()[:8])
"""


def shards(folder, kind):
    folder.mkdir()
    for s in range(SHARDS):
        each = [[f"{name} {s}-{i} ".ljust(TEXT, "x") for i in range(ROWS)] for name in "ab"]
        table = pyarrow.table({"q": [f"q{i}" for i in range(ROWS)], "a": each[0], "b": each[1]})
        if kind == "texts":
            table = table.select(["a"])
        path = folder / f"train-{s:05d}-of-{SHARDS:05d}.parquet"
        pyarrow.parquet.write_table(table, path, row_group_size=50, compression="zstd")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["comparisons", "texts"])
def test_a_set_is_not_held_in_memory(tmp_path, kind):
    """100 or 200 MB in 8 files with 128 MiB to spend, and what that would be without: more than there is."""
    folder = str(shards(tmp_path / "set", kind))
    done = [
        subprocess.run([sys.executable, "-c", OPEN, folder, kind, held], env=ALLOCATED, capture_output=True, text=True)
        for held in ("nothing", "table", "records")
    ]
    assert done[0].returncode == 0, done[0].stderr[-2000:]
    assert done[0].stdout.split()[:3] == [str(ROWS * SHARDS), "a", "7-199"]
    if kind == "comparisons":
        assert all("malloc of size" in each.stderr or "MemoryError" in each.stderr for each in done[1:])


def pairs(path, count=50):
    rows = [
        {"prompt": f"p{i}", "chosen": f"a{i}", "rejected": f"b{i}"} | ({"reference": "r"} if i % 3 else {})
        for i in range(count)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, pairs_schema()), path)
    return Data(kind="comparisons", path=str(path), reference="required", on_error="skip")


def pairs_schema():
    return pyarrow.schema([(name, pyarrow.string()) for name in ("prompt", "chosen", "rejected", "reference")])


def test_records_are_the_same_made_anew(tmp_path, monkeypatch, caplog):
    data = pairs(tmp_path / "f.parquet")
    kept = comparisons(data)
    monkeypatch.setattr(again, "KEPT_CHARACTERS", 20)
    anew = comparisons(data)
    assert isinstance(kept.source, list) and isinstance(anew.source, again.Again)
    assert list(anew.source) == kept.source and anew.skipped == kept.skipped and anew.digest() == kept.digest()
    assert anew.source[np.int64(3)].prompt == "p5" and anew.identify(3).endswith("f.parquet:6")
    assert repr(anew.source) == repr(comparisons(data).source)


def test_texts_are_the_same_made_anew(tmp_path, monkeypatch):
    path = tmp_path / "f.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"output": ["a", " ", "c" * 30, "d"]}), path)
    data = Data(kind="texts", path=str(path), on_error="skip")
    kept = texts(data)
    monkeypatch.setattr(again, "KEPT_CHARACTERS", 20)
    anew = texts(data)
    assert [c.outputs[0] for c in anew.source] == ["a", "c" * 30, "d"] and list(anew.source) == kept.source
    assert anew.skipped == kept.skipped == {"output: empty text": 1}


def test_rows_of_a_layout_are_made_at_each_access(tmp_path):
    path = tmp_path / "f.parquet"
    rows = [{"prompt": f"p{i}", "output_1": "a", "output_2": "b", "label": 9 if i == 1 else 2} for i in range(4)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    found = open_records(path, "skip", "labeled")
    assert [(c.prompt, c.ranks, c.place[-2:]) for c in found] == [(f"p{i}", (1.0, 0.0), f":{i + 1}") for i in (0, 2, 3)]
    assert sum(found.skipped.values()) == 1


def test_a_row_may_become_several_or_none():
    @dataclasses.dataclass(frozen=True)
    class Rows:
        def __len__(self):
            return 4

        def row(self, i):
            return {"n": i}

        def place(self, i):
            return f"f:{i}"

    layout = dataclasses.replace(
        LAYOUTS["labeled"], needs=frozenset("n"), fits=lambda row: row["n"] != 3,
        convert=lambda row, place: [{"output": f"{row['n']}{k}"} for k in range(row["n"])],
    )  # fmt: skip
    found = _converted(Rows(), layout)
    assert [(found.place(i), found.row(i)["output"]) for i in range(3)] == [("f:1", "10"), ("f:2", "20"), ("f:2", "21")]
    with pytest.raises(RecordError, match="not a row of"):
        found.row(3)
    assert len(found) == 4


def test_a_full_disk_says_what_to_do(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    data = pairs(tmp_path / "f.parquet")
    monkeypatch.setattr(parquet_rows, "_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(parquet_rows.pyarrow.ipc, "new_file", full)
    with pytest.raises(OSError, match=r"no space for the table of .*f\.parquet in .*; free some, or set TMPDIR"):
        comparisons(data)
