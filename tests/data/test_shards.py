"""Folders of shards and data sets of the hub, in a cache folder laid out as `huggingface_hub` lays it out."""

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from rmjax.data import sources
from rmjax.data.readers import open_records, read_all
from rmjax.data.record import RecordError, known_fields, parse_text
from rmjax.data.shards import hub_name
from rmjax.settings import Data

COMMAND = r"run `hf download --repo-type dataset acme/pairs --include '\*\.parquet' --include README\.md`"


def parquet(path: Path, rows: list[Mapping]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def rows(first: int, count: int = 2, **more) -> list[dict]:
    return [{"prompt": f"p{i}", "chosen": f"a{i}", "rejected": f"b{i}", **more} for i in range(first, first + count)]


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Puts files into the cache: the snapshot's links to blobs, and the reference to it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "datasets--acme--pairs"

    def put(files: Mapping[str, list[dict] | str], revision: str = "main") -> None:
        commit = revision[0] * 40
        (repo / "refs").mkdir(parents=True, exist_ok=True)
        (repo / "refs" / revision).write_text(commit)
        for number, (name, content) in enumerate(files.items()):
            blob, link = repo / "blobs" / f"{revision}{number}", repo / "snapshots" / commit / name
            link.parent.mkdir(parents=True, exist_ok=True)
            blob.parent.mkdir(exist_ok=True)
            blob.write_text(content) if isinstance(content, str) else parquet(blob, content)
            link.symlink_to(blob)

    return put


def prompts(name: str) -> list[str]:
    return [c.prompt for c in open_records(name)]


def test_names_have_their_parts():
    found = hub_name("hf:a-b/c.d/e_f:train@refs/pr/1")
    assert (found.repo, found.config, found.split, found.revision) == ("a-b/c.d", "e_f", "train", "refs/pr/1")
    assert hub_name("hf:a/b").config == hub_name("hf:a/b").split == ""


SHARDED = {"data/train-00000-of-00002.parquet": rows(0), "data/train-00001-of-00002.parquet": rows(2, 3)}
TESTS = {"data/test-00000-of-00001.parquet": rows(9, 1)}


def test_several_shards_are_one_set(cached):
    cached(SHARDED | TESTS)
    found = open_records("hf:acme/pairs")
    assert [c.prompt for c in found] == ["p0", "p1", "p2", "p3", "p4"]  # train unless said otherwise
    assert found[4].place.endswith("data/train-00001-of-00002.parquet:3")
    assert prompts("hf:acme/pairs:test") == ["p9"]
    texts = read_all("hf:acme/pairs", lambda row, place, notes: row["prompt"], known_fields())
    assert texts == ["p0", "p1", "p2", "p3", "p4"]


SPLITS = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: {train}
  - split: test
    path: data/test-*
---
"""


@pytest.mark.parametrize(
    "train", ["data/train-*", "[data/test-00000-of-00001.parquet, two.parquet]", "data/{a,b}.parquet"]
)
def test_a_split_of_the_card_that_the_cache_lacks(cached, train):
    """Another split, or a part of it, is not taken in its place."""
    cached(TESTS | {"README.md": SPLITS.replace("{train}", train if train[0] == "[" else f'"{train}"')})
    with pytest.raises(
        FileNotFoundError, match="which its card names, is no Parquet file that is there; run `hf download"
    ):
        open_records("hf:acme/pairs")
    assert prompts("hf:acme/pairs:test") == ["p9"]


def test_a_star_stops_at_a_slash(cached):
    cached(
        TESTS
        | {"one.parquet": rows(0), "other/two.parquet": rows(2), "README.md": SPLITS.replace("{train}", '"*.parquet"')}
    )
    assert prompts("hf:acme/pairs") == ["p0", "p1"]


@pytest.mark.parametrize(
    ("files", "name", "wanted"),
    [
        ({"a/train-00000-of-00001.parquet": rows(0), "b/train-00000-of-00001.parquet": rows(5)}, "/b", ["p5", "p6"]),
        ({"default/train/0000.parquet": rows(0), "default/train/0001.parquet": rows(5, 1)}, "", ["p0", "p1", "p5"]),
        ({"default/test/0000.parquet": rows(1), "default/train/0000.parquet": rows(7)}, ":test", ["p1", "p2"]),
        ({"train.parquet": rows(0, 1), "test.parquet": rows(3)}, ":test", ["p3", "p4"]),
        ({"pairs.parquet": rows(3)}, "", ["p3", "p4"]),
        ({"data/preference-00000-of-00001.parquet": rows(3)}, ":preference", ["p3", "p4"]),
        ({"data/train_prefs-00000-of-00001.parquet": rows(3), **TESTS}, ":train_prefs", ["p3", "p4"]),
    ],
)
def test_configs_and_splits_by_the_names_of_files(cached, files, name, wanted):
    cached(files)
    assert prompts(f"hf:acme/pairs{name}") == wanted


CARD = """---
license: mit
configs:
- config_name: default
  data_files:
  - split: train
    path: parts/a-*
  - split: held_out
    path: [parts/b.parquet, "parts/c.parquet"]
- config_name: other
  data_files: o.parquet
---
# A set
"""


def test_the_card_says_which_files_make_a_split(cached):
    files = {f"parts/{name}.parquet": rows(i, 1) for i, name in enumerate(["a-1", "a-2", "b", "c"])}
    cached({"README.md": CARD, "o.parquet": rows(8, 1), **files})
    assert prompts("hf:acme/pairs") == ["p0", "p1"]
    assert prompts("hf:acme/pairs:held_out") == ["p2", "p3"]
    assert prompts("hf:acme/pairs/other") == ["p8"]
    with pytest.raises(RecordError, match="there is no split 'test'; there are held_out, train"):
        open_records("hf:acme/pairs:test")


def test_what_the_cache_lacks_is_said_with_the_command(cached):
    with pytest.raises(FileNotFoundError, match=f"hf:acme/pairs: not in huggingface_hub's cache; {COMMAND}"):
        open_records("hf:acme/pairs")
    with pytest.raises(FileNotFoundError, match="acme/pairs --revision v2 --include"):
        open_records("hf:acme/pairs@v2")
    cached({"README.md": "# A set"})
    with pytest.raises(FileNotFoundError, match=f"no Parquet file of it is in .*; {COMMAND}"):
        open_records("hf:acme/pairs")
    cached({"data/train-00001-of-00003.parquet": rows(0)}, "v2")
    with pytest.raises(
        FileNotFoundError, match="shards are not there, 2 of them, train-00000-of-00003.parquet first; run `hf"
    ):
        open_records("hf:acme/pairs@v2")


@pytest.mark.parametrize(
    ("files", "name", "said"),
    [
        (TESTS, ":dev", "there is no split 'dev'; there are test"),
        (
            {"a/x.parquet": rows(0), "b/x.parquet": rows(0)},
            "",
            "several configs, a, b; name one, as in hf:ORG/NAME/CONFIG",
        ),
        (
            {"validation.parquet": rows(0), "test.parquet": rows(0)},
            "",
            "several splits, test, validation; name one, as in hf:ORG/NAME:SPLIT",
        ),
        ({"README.md": "---\nconfigs: [1]\n---\n", "a.parquet": rows(0)}, "", "the list of `configs` is not readable"),
    ],
)
def test_a_name_that_does_not_say_which(cached, files, name, said):
    cached(files)
    with pytest.raises(RecordError, match=said):
        open_records(f"hf:acme/pairs{name}")


def test_no_name_at_all():
    with pytest.raises(RecordError, match="hf:acme is no data set's name; write hf:ORG/NAME"):
        open_records("hf:acme")


# --- folders -----------------------------------------------------------------------------------------------------------------


def lines(path: Path, first: int, blank: int = 0) -> None:
    path.write_text("\n" * blank + "".join(json.dumps(row) + "\n" for row in rows(first)))


def test_a_folder_of_shards(tmp_path):
    lines(tmp_path / "b-00001-of-00002.jsonl", 2, blank=1)
    lines(tmp_path / "b-00000-of-00002.jsonl", 0, blank=2)
    (tmp_path / "README.md").write_text("about")
    found = open_records(tmp_path)
    assert [c.prompt for c in found] == ["p0", "p1", "p2", "p3"] and found.skipped == {"blank line": 3}
    assert found[2].place == f"{tmp_path}/b-00001-of-00002.jsonl:2"


@pytest.mark.parametrize(
    ("names", "error", "said"),
    [
        ([], IsADirectoryError, "without data files; give one of the files in it"),
        (["a.jsonl", "b.parquet"], RecordError, r"several kinds, \.jsonl, \.parquet; give one"),
        (
            ["train-00000-of-00001.jsonl", "test-00000-of-00001.jsonl"],
            RecordError,
            "several sets of shards, test, train",
        ),
        (
            ["train-00001-of-00002.jsonl"],
            FileNotFoundError,
            "shards are not there, 1 of them, train-00000-of-00002.jsonl first",
        ),
    ],
)
def test_a_folder_that_is_no_set(tmp_path, names, error, said):
    for name in names:
        lines(tmp_path / name, 0)
    with pytest.raises(error, match=said):
        open_records(tmp_path)


# --- columns and layouts -----------------------------------------------------------------------------------------------------

ASKED = [{"role": "user", "content": "q"}]


def both(good: str, bad: str) -> dict:
    return {n: [*ASKED, {"role": "assistant", "content": t}] for n, t in (("chosen", good), ("rejected", bad))}


def dialogue(*turns: str) -> str:
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {turn}" for i, turn in enumerate(turns))


@pytest.mark.parametrize(
    ("row", "columns", "layout", "wanted"),
    [
        (
            {"q": "p", "good": "a", "bad": "b", "prompt": "x"},
            ("prompt=q", "chosen=good", "rejected=bad"),
            "records",
            ("p", "a", "b"),
        ),
        (
            {"q": {"text": "p"}, "a": [{"t": "a"}, {"t": "b"}]},
            ("prompt=q.text", "chosen=a.0.t", "rejected=a.1.t"),
            "records",
            ("p", "a", "b"),
        ),
        (both("a", "b"), (), "trl_implicit", ("q", "a", "b")),
        ({"x": both("a", "b")}, ("chosen=x.chosen", "rejected=x.rejected"), "trl_implicit", ("q", "a", "b")),
        ({"chosen": dialogue("q", "a"), "rejected": dialogue("q", "b")}, (), "hh", ("q", "a", "b")),
        ({"prompt": "q", "output_1": "b", "output_2": "a", "label": 2}, (), "labeled", ("q", "a", "b")),
        (
            {"question": "q", "l": "b", "r": "a", "winner": "2"},
            ("prompt=question", "output_1=l", "output_2=r", "label=winner"),
            "labeled",
            ("q", "a", "b"),
        ),
        (
            {
                "conversations": [{"from": "human", "value": "q"}],
                "chosen": [{"from": "gpt", "value": "a"}],
                "rejected": [{"from": "gpt", "value": "b"}],
            },
            (),
            "sharegpt_pair",
            ("q", "a", "b"),
        ),
    ],
)  # fmt: skip
def test_rows_of_other_forms(tmp_path, row, columns, layout, wanted):
    path = tmp_path / "f.jsonl"
    path.write_text(json.dumps(row) + "\n")
    data = Data(kind="comparisons", path=str(path), columns=columns, layout=layout, reference="optional")
    (c,) = sources.comparisons(data).source
    order = sorted(range(2), key=c.ranks.__getitem__)
    assert (c.prompt, *(c.outputs[n] for n in order)) == wanted


def test_a_mapped_column_is_all_that_is_read(tmp_path):
    parquet(tmp_path / "f.parquet", rows(0, margin=[1], text="t"))
    data = Data(kind="texts", path=str(tmp_path / "f.parquet"), columns=("output=text",))
    (first, _) = sources.texts(data).source
    assert first == parse_text({"output": "t"}, first.place)


@pytest.mark.parametrize(
    ("row", "columns", "layout", "said"),
    [
        ({"a": {"b": 1}}, ("prompt=a.c",), "records", r"f\.jsonl:1: there is no column a\.c \(there is b\); correct .* `prompt`"),
        ({"a": [1]}, ("prompt=a.1",), "records", r"there is no column a\.1 \(there is a list\)"),
        ({"prompt": "a"}, ("=x",), "records", "config.data.columns has '=x'; write FIELD=COLUMN"),
        ({"prompt": "a"}, ("prompt", "prompt=b"), "records", "each field once"),
        ({"chosen": dialogue("q", "a")}, (), "hh", r"field `rejected`: missing, and transcripts of HH-RLHF has it"),
        ({"chosen": "q", "rejected": "b"}, (), "hh", r"not a row of transcripts of HH-RLHF"),
        ({"prompt": "a"}, (), "huhu", "layout is 'huhu'; choose auto, records, "),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path, row, columns, layout, said):
    path = tmp_path / "f.jsonl"
    path.write_text(json.dumps(row) + "\n")
    data = Data(kind="comparisons", path=str(path), columns=columns, layout=layout, reference="optional")
    with pytest.raises(ValueError, match=said):
        sources.comparisons(data)


def test_columns_are_for_files():
    for data in (Data(columns=("prompt=q",)), Data(layout="hh", path="shipped:policy_pool")):
        with pytest.raises(
            ValueError, match="config.data.columns and config.data.layout are for comparisons and texts"
        ):
            sources.pool_groups(data)
    with pytest.raises(ValueError, match="is for files, and hh_harmless is a real set"):
        sources.comparisons(Data(kind="comparisons", path="hh_harmless", columns=("prompt=q",)))
