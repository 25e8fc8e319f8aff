"""TFDS data sets: prepared and read back without TensorFlow."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("tensorflow_datasets", reason="the tfds extra is not installed")

from rmjax.data.builders import PolarJsonl, PolicyPool, pool_rows_by_split, prepare
from rmjax.data.readers import open_records, write_records
from rmjax.data.record import RecordError, parse
from rmjax.data.rows import iterate_rows
from rmjax.data.sources import pool
from rmjax.data.tfds_rows import row_from_example
from rmjax.models.columns import Column, declaring

RECORDS = [
    parse(
        {
            "prompt": "p\u2028é",
            "outputs": ["a", "b", "c"],
            "references": ["r", "s"],
            # Equal in float32: a store that rounds would tie them.
            "scores": [0.1, 0.30000000000000004, 0.3],
            "votes": [[1, 0, 0.5], [0, 1, 1 / 3]],
            "policies": ["x", "y", "z"],
            "category": "k",
            "source": "s",
            "type": 3,
            "wrapper": "pretrain",
            "weight": 1 / 3,
            "margin": 0.1,
            "id": "one",
        },
        "",
    ),
    parse({"prompt": [{"role": "system", "content": "s"}], "output": "z"}, ""),
    parse({"prompt": "q", "outputs": ["z", [{"role": "assistant", "content": "y", "tool_calls": [{"id": "1"}]}]]}, ""),
]
POOL = [
    {"prompt_id": "1", "prompt": "p", "policy": "a", "sample": 0, "output": "x", "split": "seen"},
    {"prompt_id": "1", "prompt": "p", "policy": "b", "sample": 1, "output": "", "split": "unseen"},
    {"prompt_id": "2", "prompt": "q", "policy": "a", "sample": 0, "output": "y", "split": "seen"},
]


LABELS = {"kind": "persona", "policy_split": "seen", "prompt_split": "seen", "category": "animals"}


def corpus_row(prompt, policy, sample, **labels):
    """As experiments/corpus/make.py writes them."""
    texts = {"prompt_id": prompt, "prompt": f"Say {prompt}.", "policy": policy}
    output = f"{prompt}/{policy}/{sample}"
    return {**texts, "sample": sample, "output": output, **LABELS, **labels}


def corpus():
    """Seen and held-out prompts, seen and unseen policies, one row without labels."""
    rows = [corpus_row("p", policy, sample) for policy in ("a", "b") for sample in (0, 1)]
    rows += [corpus_row("p", "c", 0, policy_split="unseen")]
    for policy, split in (("a", "seen"), ("b", "seen"), ("c", "unseen"), ("d", "unseen")):
        labels = {"policy_split": split, "prompt_split": "unseen", "category": ""}
        rows += [corpus_row("q", policy, sample, **labels) for sample in (0, 1)]
    plain = corpus_row("p", "e", 0)
    return [*rows, {name: value for name, value in plain.items() if name not in LABELS}]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def without_place(records):
    return [dataclasses.replace(record, place="") for record in records]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    write_records(directory / "train.jsonl", RECORDS)
    write_records(directory / "test.jsonl.zst", RECORDS[:1])
    paths = {"train": directory / "train.jsonl", "test": directory / "test.jsonl.zst"}
    prepare(PolarJsonl(paths, name="small", data_dir=directory))
    return directory


def test_comparisons_come_back_exactly_and_in_order(prepared):
    source = open_records(f"tfds:polar_jsonl/small:train@{prepared}")
    assert without_place(source) == RECORDS
    assert source[1].place == f"tfds:polar_jsonl/small:train@{prepared}:2"
    assert not source.unknown and not source.skipped


def test_splits_slices_versions_and_the_default_split(prepared):
    assert len(open_records(f"tfds:polar_jsonl/small@{prepared}")) == 3
    assert len(open_records(f"tfds:polar_jsonl/small:1.1.0:test@{prepared}")) == 1
    assert without_place(open_records(f"tfds:polar_jsonl/small:train[1:]@{prepared}")) == RECORDS[1:]


def test_a_data_set_is_read_without_its_builder_and_without_tensorflow(prepared):
    code = (
        "import sys; from rmjax.data.readers import open_records;"
        f"source = open_records('tfds:polar_jsonl/small:train@{prepared}');"
        "assert source[0].id == 'one';"
        "assert 'rmjax.data.builders' not in sys.modules;"
        "assert not {'tensorflow', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_preparing_does_not_import_tensorflow(tmp_path):
    write_records(tmp_path / "f.jsonl", RECORDS)
    code = (
        "import sys; from rmjax.data.builders import *;"
        f"directory = prepare(PolarJsonl({{'train': '{tmp_path}/f.jsonl'}}, data_dir='{tmp_path}'));"
        "assert any('array_record' in p.name for p in directory.iterdir());"
        "assert not {'tensorflow', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert without_place(open_records(f"tfds:polar_jsonl/default:train@{tmp_path}")) == RECORDS


def test_preparing_again_reuses_but_never_other_sources(prepared, tmp_path):
    paths = {"train": prepared / "train.jsonl", "test": prepared / "test.jsonl.zst"}
    again = PolarJsonl(paths, name="small", data_dir=prepared)
    assert prepare(again) == prepared / "polar_jsonl" / "small" / "1.1.0"
    write_records(tmp_path / "other.jsonl", RECORDS[1:])
    other = PolarJsonl({"train": tmp_path / "other.jsonl"}, name="small", data_dir=prepared)
    with pytest.raises(RecordError, match="prepared from other or unknown sources or columns; delete"):
        prepare(other)
    with declaring(Column("later", "RG")), pytest.raises(RecordError, match="sources or columns; delete"):
        prepare(PolarJsonl(paths, name="small", data_dir=prepared))  # its files lack the column


def test_a_bad_source_is_named_and_leaves_nothing(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "p"}\n')
    builder = PolarJsonl({"train": tmp_path / "bad.jsonl"}, name="bad", data_dir=tmp_path)
    with pytest.raises(RecordError, match=r"bad\.jsonl:1: field `outputs`: missing"):
        prepare(builder)
    assert not os.path.exists(builder.data_path)
    with pytest.raises(FileNotFoundError, match=r"absent\.jsonl: no such file"):
        prepare(PolarJsonl({"train": tmp_path / "absent.jsonl"}, data_dir=tmp_path))
    with pytest.raises(RecordError, match="no source files"):
        prepare(PolarJsonl(name="none", data_dir=tmp_path))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("polar_jsonl/small:nosuch", RecordError, "Unknown split 'nosuch'"),
        ("polar_jsonl/nosuch:train", FileNotFoundError, "no prepared data set"),
        ("no_such_set:train", FileNotFoundError, "no prepared data set"),
        ("", RecordError, "not a TFDS name"),
    ],
)
def test_names_that_lead_nowhere(prepared, name, error, message):
    with pytest.raises(error, match=message):
        open_records(f"tfds:{name}@{prepared}")


def test_examples_of_other_data_sets_become_rows():
    example = {
        "prompt": {"role": [b"user", b"assistant"], "content": [b"hi", b"yes?"]},
        "output": b"",
        "category": b"",
    }
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]
    assert row_from_example(example) == {"prompt": turns, "output": ""}


def test_a_pool_keeps_its_splits_and_empty_outputs(tmp_path):
    path = tmp_path / "pool.jsonl"
    rows = [row | {"type": 1} if row["prompt_id"] == POOL[0]["prompt_id"] else row for row in POOL]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(PolicyPool(path, name="small", data_dir=tmp_path))
    read = {
        split: [row for _, row in iterate_rows(f"tfds:policy_pool/small:{split}@{tmp_path}")]
        for split in ("seen", "unseen")
    }
    assert read == {
        split: [{k: v for k, v in row.items() if k != "split"} for row in rows if row["split"] == split]
        for split in ("seen", "unseen")
    }


@pytest.mark.parametrize(
    ("policies", "prompts"),
    [("seen", "seen"), ("all", "seen"), ("seen", "unseen"), ("unseen", "unseen"), ("all", "unseen")],
)
def test_the_corpus_gives_the_same_pool_from_tfds(tmp_path, policies, prompts):
    path = write_rows(tmp_path / "pool.jsonl", corpus())
    prepare(PolicyPool(path, name="corpus", data_dir=tmp_path))
    given = pool(str(path), policies, prompts)
    read = pool(f"tfds:policy_pool/corpus:{prompts}@{tmp_path}", policies, prompts)
    for field in ("outputs", "prompts", "category", "kind"):
        assert getattr(read, field) == getattr(given, field)
    assert read.triples(0, 4) == given.triples(0, 4)


def test_a_pool_s_rows_come_back_with_their_labels(tmp_path):
    path = write_rows(tmp_path / "pool.jsonl", corpus())
    prepare(PolicyPool(path, name="corpus", data_dir=tmp_path))
    seen = [row for _, row in iterate_rows(f"tfds:policy_pool/corpus:seen@{tmp_path}")]
    assert seen == [row for row in corpus() if row.get("prompt_split", "seen") == "seen"]


def test_a_split_goes_before_a_prompt_split(tmp_path):
    rows = [corpus_row("p", "a", 0, split="train"), corpus_row("p", "a", 1)]
    splits = pool_rows_by_split(write_rows(tmp_path / "pool.jsonl", rows))
    assert {split: [row["sample"] for row in found] for split, found in splits.items()} == {"train": [0], "seen": [1]}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"policy": None}, "policy"),
        ({"sample": "0"}, "sample"),
        ({"split": "a-b"}, "split"),
        ({"split": 3}, "split"),
        ({"split": None, "prompt_split": "a b"}, "prompt_split"),
        ({"kind": 3}, "kind"),
    ],
)
def test_bad_pool_rows(tmp_path, change, field):
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [POOL[0], {**POOL[1], **change}]))
    with pytest.raises(RecordError, match=rf"pool\.jsonl:2: field `{field}`"):
        pool_rows_by_split(path)
