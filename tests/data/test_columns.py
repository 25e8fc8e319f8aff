"""Open columns: what a declared one must hold, and that one declaration carries it through everything."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from rmjax.data.columns import tree_columns
from rmjax.data.formats import Encoder, Format
from rmjax.data.packing import ForestShape, Tree, fill
from rmjax.data.pool import PolicyPool
from rmjax.data.readers import open_records, write_records
from rmjax.data.record import RecordError, parse, parse_text, select, to_row, unknown_fields
from rmjax.data.samplerows import parse_sample
from rmjax.data.sources import pool
from rmjax.data.tfds_rows import row_from_example
from rmjax.data.tokenizer import Tokenizer
from rmjax.models.columns import Column, declare, declared, declaring
from tests import simulated

ROOT = Path(__file__).parents[2]
COLUMNS = (
    Column("grade", "RG", low=0, high=10, fill=-1),
    Column("seen", "RG", "int32", fill=-1),
    Column("bonus", "RGN"),
    Column("beats", "RGNN", fill=-1, low=0, high=1),
    Column("step", "RT", "int32", fill=-1),
)
GROUP = {"prompt": "p", "outputs": ["a", "bb", "c"]}
WHOLE = GROUP | {
    "grade": 1 / 3,
    "seen": 4,
    "bonus": [1, 0.1, -2],
    "beats": [[-1, 0.25, 1], [0.75, -1, 0], [0, 1, -1]],
    "step": [[7], [8, 9], [7]],
}


@pytest.fixture
def columns():
    with declaring(*COLUMNS):
        yield


def test_one_declaration_carries_a_field_from_every_kind_of_file_to_an_objective(tmp_path):
    pytest.importorskip("tensorflow_datasets", reason="the tfds extra is not installed")
    environment = os.environ | simulated.devices(8) | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.data.carrying", str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    first, *others = (found := json.loads(done.stdout.splitlines()[-1])).values()
    assert len(found) == 5 and all(other == first for other in others)
    assert first["unknown"] == {} and first["shards"] == 4
    assert first["terms"] == pytest.approx([11 / 3, 22], rel=1e-5)
    for records, bonus in zip(np.array(first["records"]).ravel(), np.reshape(first["column"], (-1, 3)), strict=True):
        wanted = [records + 1 / 3, -records, 0] if records >= 0 else [0, 0, 0]
        np.testing.assert_allclose(bonus, wanted, rtol=1e-6)


@pytest.mark.usefixtures("columns")
def test_a_record_keeps_what_is_declared():
    record = parse(WHOLE, "f:1")
    assert record.columns == {
        "grade": 1 / 3, "seen": 4, "bonus": (1, 0.1, -2),
        "beats": ((-1, 0.25, 1), (0.75, -1, 0), (0, 1, -1)), "step": ((7,), (8, 9), (7,)),
    }  # fmt: skip
    assert parse(to_row(record), "f:1") == record and unknown_fields(WHOLE) == []
    assert parse(GROUP, "").columns == {} and "grade" not in to_row(parse(GROUP, ""))


def test_what_is_not_declared_is_unknown():
    assert unknown_fields(WHOLE) == ["beats", "bonus", "grade", "seen", "step"]
    assert parse(WHOLE, "").columns == {}


@pytest.mark.usefixtures("columns")
@pytest.mark.parametrize(
    ("change", "field", "problem"),
    [
        ({"grade": "A"}, "grade", "not a number"),
        ({"grade": 11}, "grade", "out of range"),
        ({"grade": float("nan")}, "grade", "not finite"),
        ({"bonus": 1e39}, "bonus", "not a list of numbers"),
        ({"bonus": [1, 2]}, "bonus", "length differs from outputs"),
        ({"bonus": [1, 2, 1e39]}, "bonus[2]", "beyond the range of float32"),
        ({"seen": 1.0}, "seen", "not an integer"),
        ({"seen": 2**31}, "seen", "beyond 32 bits"),
        ({"beats": [1, 2, 3]}, "beats[0]", "not a list of numbers"),
        ({"beats": 1}, "beats", "not a list of lists"),
        ({"beats": [[0] * 3] * 2}, "beats", "length differs from outputs"),
        ({"beats": [[0] * 3] * 2 + [[0, 0, 2]]}, "beats[2][2]", "out of range"),
        ({"step": [[1], 2, [3]]}, "step[1]", "not a list of numbers"),
        ({"step": [[1], [True], [3]]}, "step[1][0]", "not a number"),
    ],
)
def test_bad_values_are_refused_by_place_and_field(change, field, problem):
    with pytest.raises(RecordError) as caught:
        parse(WHOLE | change, "f.jsonl:7")
    assert (caught.value.place, caught.value.field, caught.value.problem) == ("f.jsonl:7", field, problem)


@pytest.mark.usefixtures("columns")
def test_select_takes_what_is_known_of_each_output():
    whole = WHOLE | {"ranks": [0, 1, 2], "scores": [3, 2, 1], "votes": [[1, 2, 3]], "policies": ["x", "y", "z"]}
    found = select(parse(whole, ""), [2, 0])
    assert (found.outputs, found.ranks, found.scores) == (("c", "a"), (2, 0), (1, 3))
    assert (found.votes, found.policies) == (((3, 1),), ("z", "x"))
    assert found.columns == {
        "grade": 1 / 3, "seen": 4, "bonus": (-2, 1), "beats": ((-1, 0), (1, -1)), "step": ((7,), (7,)),
    }  # fmt: skip


def of_pool(policy, sample, **columns):
    return {
        "prompt_id": "q",
        "prompt": "Q",
        "policy": policy,
        "output": f"{policy}{sample}",
        "sample": sample,
    } | columns


POOL = [
    of_pool("a", 0, grade=2, bonus=1, step=[1]),
    of_pool("a", 1, grade=2, bonus=[2], step=[[2]]),
    of_pool("b", 0, grade=2, step=[3]),
]


@pytest.mark.usefixtures("columns")
@pytest.mark.parametrize("kept", ["jsonl", "tfds"])
def test_a_group_drawn_from_a_pool_has_its_rows_columns(tmp_path, kept, caplog):
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in POOL))
    if kept == "tfds":
        builders = pytest.importorskip("rmjax.data.builders", reason="the tfds extra is not installed")
        builders.prepare(builders.PolicyPool(path, name="own", data_dir=tmp_path))
        path = f"tfds:policy_pool/own:seen@{tmp_path}"
    for seed in range(4):
        c = pool(str(path), "all", "all").draw("q", np.random.default_rng(seed))
        first = int(c.outputs[0][1])
        assert c.columns == {"grade": 2, "bonus": (first + 1, 0), "step": ((first + 1,), (3,))}
    assert "unknown field" not in caplog.text


def test_a_pool_is_read_again_for_a_column_that_is_declared_later(tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in POOL))
    assert not pool(str(path), "all", "all").draw("q", np.random.default_rng(0)).columns
    with declaring(*COLUMNS):
        assert pool(str(path), "all", "all").draw("q", np.random.default_rng(0)).columns["grade"] == 2


@pytest.mark.usefixtures("columns")
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"grade": 3}, "`grade`: is 3.0, and 2.0 in earlier rows with prompt_id `q`"),
        ({"bonus": [1, 2]}, "`bonus`: length differs from outputs"),
        ({"grade": [2]}, "`grade`: not a number"),
        ({"step": None}, "`step`: is missing in some of a prompt's rows"),
    ],
)
def test_columns_of_a_pool_s_rows_that_do_not_fit(change, problem):
    rows = [parse_sample(row, f"f:{i}") for i, row in enumerate(POOL[:2])]
    with pytest.raises(RecordError, match=problem):
        PolicyPool([*rows, parse_sample(POOL[2] | change, "f:2")]).draw("q", np.random.default_rng(0))


@pytest.mark.usefixtures("columns")
@pytest.mark.parametrize("ended", [True, False])
def test_a_text_s_columns_reach_its_tree(ended):
    tokenizer = Tokenizer.from_bpe(["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())], [], ["<end>"])
    encoder = Encoder(tokenizer, Format("<end>", "<end>", end_token="<end>", kind="plain"), 16)
    text = {"prompt": "pp", "output": "ab", "weight": 2, "grade": 3, "bonus": [4], "step": [[5, 6]]}
    (tree,) = encoder.language_model_trees(parse_text(text, "f:1"), ended=ended)
    assert (tree.weight, tree.columns["grade_RG"], list(tree.columns["bonus_RGN"])) == (2, 3, [4])
    length = len(tree.branches[0])
    assert tree.columns["step_RT"][0].tolist() == [-1] * (length - 2 - ended) + [5, 6] + [-1] * ended


FLOATS, INTS = st.floats(-1e38, 1e38), st.integers(-(2**31), 2**31 - 1)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "grade": st.floats(0, 10),
        "seen": INTS,
        "bonus": st.lists(FLOATS, min_size=3, max_size=3),
        "beats": st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=3, max_size=3),
        "step": st.lists(st.lists(INTS, max_size=4), min_size=3, max_size=3),
        "votes": st.lists(st.lists(FLOATS, min_size=3, max_size=3), min_size=1, max_size=2),
        "type": INTS,
        "weight": st.floats(0, 1e38),
        "category": st.sampled_from(["k", "é"]),
    },
)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst", ".parquet", ".array_record", "tfds"])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(FIELDS, min_size=1, max_size=3))
def test_any_columns_survive_any_file(tmp_path, suffix, rows):
    with declaring(*COLUMNS):
        records = [parse(GROUP | row, "") for row in rows]
        if suffix == "tfds":
            builders = pytest.importorskip("rmjax.data.builders")
            features = builders.comparison_features()
            decoded = [_through(features, builders.example_from_comparison(c)) for c in records]
            assert [parse(row_from_example(example), "") for example in decoded] == records
            return
        write_records(tmp_path / f"f{suffix}", records)
        assert [dataclasses.replace(c, place="") for c in open_records(tmp_path / f"f{suffix}")] == records


def _through(features, example):
    """As TFDS stores and reads an example, without a data set."""
    return features.deserialize_example_np(features.serialize_example(example))


@pytest.mark.usefixtures("columns")
def test_trees_lay_columns_out_by_their_letters():
    sequences = [[5, 6, 1, 2], [5, 6, 1, 1, 2]]  # outputs of one and two tokens, the read-out last
    record = parse({"prompt": "p", "outputs": ["a", "bb"], "grade": 3, "bonus": [1, 2], "step": [[7], [7, 9]]}, "f:1")
    found = tree_columns(record.columns, sequences, lambda: [1, 2], "f:1")
    tree = Tree.from_sequences(sequences, [0, 1], columns=found)
    other = Tree.from_sequences([[4, 4]], [0])
    forest = fill(ForestShape(1, 10, 3, 2), [[other, tree]])
    # Both have 5, 6 and 1, but `step` says −1 of the third token in one of them only if its output began later.
    assert tree.prefix.tolist() == [5, 6, 1]
    assert forest.tokens_RT[0].tolist() == [4, 4, 5, 6, 1, 2, 1, 2, 0, 0]
    assert forest.step_RT[0].tolist() == [-1, -1, -1, -1, 7, -1, 9, -1, -1, -1]
    assert forest.bonus_RGN.tolist() == [[[0, 0], [1, 2], [0, 0]]]
    assert forest.grade_RG.tolist() == [[-1, 3, -1]] and (forest.beats_RGNN == -1).all()
    assert len(jax.tree.leaves(forest)) == 12 + len(COLUMNS)
    with pytest.raises(AttributeError, match="no column nothing_RG; declare it"):
        forest.nothing_RG  # noqa: B018


@pytest.mark.usefixtures("columns")
def test_an_encoder_lays_numbers_per_token_over_the_output_and_cuts_no_such_record():
    special = ("<split>", "<reward>")
    tokenizer = Tokenizer.from_bpe([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())], [], special)
    encoder = Encoder(tokenizer, Format(*special, max_length=64, max_response_length=8), 64)
    row = {"prompt": "pq", "outputs": ["ab", "c"], "reference": "r"}
    (tree,) = encoder.trees(parse(row | {"step": [[7, 8], [9]]}, "f:1"))
    whole = [[*tree.prefix, *branch] for branch in tree.branches]
    for ids, steps, text, numbers in zip(whole, tree.columns["step_RT"], ("ab", "c"), ([7, 8], [9]), strict=True):
        assert tokenizer.decode(ids[-1 - len(text) : -1]) == text and len(steps) == len(ids)
        assert steps.tolist() == [-1] * (len(ids) - 1 - len(text)) + numbers + [-1]
    with pytest.raises(RecordError, match=r"f:1: field `step\[0\]`: length differs from the output's tokens"):
        encoder.trees(parse(row | {"step": [[7], [9]]}, "f:1"))
    long = row | {"outputs": ["a" * 9, "c"], "step": [[1] * 9, [9]]}
    with pytest.raises(RecordError, match="too long and would be cut; raise max_length"):
        encoder.trees(parse(long, "f:1"))


@pytest.mark.usefixtures("columns")
def test_tokens_of_which_a_column_says_different_things_are_not_shared():
    sequences = [[5, 6, 1, 2], [5, 6, 1, 3, 2]]
    tree = Tree.from_sequences(
        sequences, [0, 1], columns={"step_RT": [np.array([-1, 3, 3, -1]), np.array([-1, 3, 4, 4, -1])]}
    )
    assert tree.prefix.tolist() == [5, 6]
    with pytest.raises(
        RecordError, match=r"f:1: field `step\[1\]`: length differs from the output's tokens \(1 for 2 tokens\)"
    ):
        tree_columns({"step": ((1,), (1,))}, sequences, lambda: [1, 2], "f:1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axes": "RN"}, "axes 'RN'; choose one of RG, RGN, RGNN, RT"),
        ({"dtype": "bool"}, "dtype 'bool'; choose one of float32, int32"),
        ({"name": "a b"}, "no usable name"),
        ({"name": "scores"}, "field `scores`, which belongs to the record itself"),
        ({"field": "weight"}, "field `weight`, which belongs to"),
        ({"name": "weight", "axes": "RG"}, "declared already, differently"),
    ],
)
def test_bad_declarations(change, message):
    before = dict(declared())
    with pytest.raises(ValueError, match=message):
        declare(Column(**{"name": "mine", "axes": "RGN", **change}))
    assert dict(declared()) == before


def test_on_demand_columns_are_in_a_batch_that_asks():
    shape = ForestShape(1, 4, 1, 2)
    assert "target_RGNN" not in shape.empty().columns
    asked = dataclasses.replace(shape, columns=("target_RGNN",)).empty()
    assert asked.target_RGNN.shape == (1, 1, 2, 2) and (asked.target_RGNN == -1).all()
    with pytest.raises(ValueError, match="no column nothing_RG is declared"):
        dataclasses.replace(shape, columns=("nothing_RG",)).empty()


@pytest.mark.parametrize(
    ("ranks", "wanted"),
    [
        ([1e300, 2e300, 0], [1, 2, 0]),
        ([1, 1 + 1e-12, 1], [0, 1, 0]),
        ([-5, np.inf, -7.5], [1, np.inf, 0]),
    ],
)
def test_ranks_keep_their_order_in_fp32(ranks, wanted):
    assert Tree.from_sequences([[1], [2], [3]], ranks).ranks.tolist() == wanted
