"""`RewardModel`: what a directory needs, and what it makes of rows."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from tokenizers import pre_tokenizers

from rmjax.data.formats import Format
from rmjax.data.packing import ForestShape, Tree, fill
from rmjax.data.record import Comparison, RecordError, parse
from rmjax.data.tokenizer import Tokenizer
from rmjax.evaluate.evaluators import EVALUATORS
from rmjax.evaluate.scorers import Ensemble, ScoreError
from rmjax.hub.adapters import save_adapter
from rmjax.models.lora import AdapterConfig
from rmjax.models.parameters import ParameterError, flat, nested
from rmjax.models.reward import RewardTransformer
from rmjax.models.rope import Rope
from rmjax.models.transformer import TransformerConfig
from rmjax.reward_model import CHECKPOINTS, MODEL_FILE, RewardModel, save_description
from rmjax.train.checkpoint import CheckpointError, Checkpoints
from rmjax.train.state import initial_params
from tests import simulated

ROOT = Path(__file__).parents[1]
SPECIAL = ["<file_sep>", "<empty_output>"]
FORM = Format("<file_sep>", "<empty_output>", max_length=128, max_response_length=48)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_bpe([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())], [], SPECIAL)


@pytest.fixture(scope="module")
def config(tokenizer):
    return TransformerConfig(tokenizer.vocab_size, width=16, depth=2, heads=2, kv_heads=1, head_width=8, mlp_width=32)


@pytest.fixture(scope="module")
def params(config):
    params = nn.meta.unbox(jax.jit(lambda: initial_params(RewardTransformer(config), 0))())
    return {**params, "head": {"kernel": jax.random.normal(jax.random.key(1), (16, 1))}}


def save(directory, config, tokenizer, trainable, frozen):
    save_description(directory, config, FORM, tokenizer)
    with Checkpoints(directory / CHECKPOINTS) as checkpoints:
        state = {"trainable": trainable, "optimizer": {"mu": np.zeros(3)}} | ({"frozen": frozen} if frozen else {})
        checkpoints.save(7, state, {"iterator": {}}, wait=True)


@pytest.fixture(scope="module")
def directory(config, tokenizer, params, tmp_path_factory):
    """As training leaves it, the embeddings frozen; no config of the experiment is there."""
    path = tmp_path_factory.mktemp("model")
    backbone = dict(params["backbone"])
    frozen = {"backbone": {"embedding": backbone.pop("embedding")}}
    save(path, config, tokenizer, {**params, "backbone": backbone}, frozen)
    assert sorted(p.name for p in path.iterdir()) == ["checkpoints", "model.json", "tokenizer.json"]
    return path


@pytest.fixture(scope="module")
def model(directory):
    return RewardModel.load(str(directory))


def row(prompt, output, reference=None, **more):
    return {"prompt": prompt, "output": output, **more} | ({} if reference is None else {"reference": reference})


ROWS = [
    row("2 + 2 =", "4", "four"),
    row("Name a color.", "red"),
    row("2 + 2 =", "5", "four"),
    row("2 + 2 =", "5", "4"),
    row("Name a color.", "blue is nice"),
    row("2 + 2 =", "4", "four", wrapper="pretrain"),
]


def alone(config, params, tokenizer, prompt, output, reference=None, newline="\n"):
    """The reward of one sequence written out by hand."""
    text = [[*tokenizer.encode(prompt + newline + answer), tokenizer.id(special)] for answer, special in
            ([] if reference is None else [(reference, "<file_sep>")]) + [(output, "<empty_output>")]]  # fmt: skip
    ids = np.array(sum(text, []), np.int32)
    forest = fill(ForestShape(1, 64, 1, 1), [[Tree(ids[:0], (ids,), np.zeros(1))]])
    return float(RewardTransformer(config).apply({"params": params}, forest)[0, 0, 0])


def test_scores_are_floats_in_the_order_of_the_rows(model, config, params, tokenizer):
    scores = model.score(ROWS)
    assert [type(score) for score in scores] == [float] * len(ROWS)
    assert len(set(scores)) == len(ROWS)
    wanted = [
        alone(config, params, tokenizer, r["prompt"], r["output"], r.get("reference"), "" if "wrapper" in r else "\n")
        for r in ROWS
    ]
    np.testing.assert_allclose(scores, wanted, atol=1e-5)
    order = [3, 1, 5, 0, 4, 2]
    np.testing.assert_allclose(model.score([ROWS[i] for i in order]), np.array(scores)[order], atol=1e-5)


def test_rows_of_one_prompt_are_one_group(model, monkeypatch):
    groups = []
    monkeypatch.setattr(model, "score_groups", lambda merged, progress: groups.extend(merged) or [
        [float(ord(output[0])) for output in c.outputs] for c in merged])  # fmt: skip
    many = [row("p", chr(97 + i)) for i in range(20)]
    rows = [many[0], row("q", "z"), *many[1:]]
    assert model.score(rows) == [ord(r["output"]) for r in rows]
    assert [(c.prompt, len(c.outputs)) for c in groups] == [("p", 20), ("q", 1)]


def test_message_lists_are_their_text(model):
    texts = [row("Hi\nHello\nName a color.", "red", "blue"), row("Name a color.", "red")]
    messages = [
        row(
            [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
             {"role": "user", "content": "Name a color."}],
            [{"role": "assistant", "content": "red"}], [{"role": "assistant", "content": "blue"}],
        ),
        row([{"role": "user", "content": "Name a color."}], [{"role": "assistant", "content": "red"}]),
    ]  # fmt: skip
    np.testing.assert_allclose(model.score(messages), model.score(texts), atol=1e-6)


def test_rows_of_one_prompt_lose_the_same_and_say_so_once(model, caplog):
    prompt = [{"role": "user", "content": "Which fruit?"}, {"role": "assistant", "content": "Plum."}]
    rows = [{"prompt": prompt, "output": "Plum."}, {"prompt": prompt, "output": "Pear.", "refrence": "Plum."}]
    record = parse({"prompt": prompt, "outputs": ["Plum.", "Pear."]}, "")
    assert model.score(rows) == pytest.approx(model.score_groups([record])[0], abs=1e-5)
    model.score(rows)
    assert caplog.text.count("an answer taken off the end of the prompt") == 1
    assert caplog.text.count("unknown field `refrence` ignored") == 1


def test_no_rows(model):
    assert model.score([]) == []
    assert model.score_groups([]) == []


def test_groups_with_several_references_have_their_mean(model):
    one, two, both = (
        model.score_groups([Comparison("2 + 2 =", ("4", "5"), references)])[0]
        for references in (("four",), ("4",), ("four", "4"))
    )
    np.testing.assert_allclose(both, np.add(one, two) / 2, atol=1e-5)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"prompt": "p"}, r"^row 1: .*output"),
        ({"output": "p"}, r"^row 1: .*prompt"),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, r"^row 1: field `output`: has 2 candidates; give one `output` a row"),
        ({"prompt": "p", "output": 3}, r"^row 1: .*output"),
    ],
)  # fmt: skip
def test_bad_rows_name_row_and_field(model, bad, message):
    with pytest.raises(RecordError, match=message):
        model.score([ROWS[0], bad])


def test_no_such_directory(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=f"{tmp_path}/none/{MODEL_FILE}: not there; a model is a directory that"
    ):
        RewardModel.load(tmp_path / "none")


def test_no_checkpoint(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / CHECKPOINTS)
    with pytest.raises(CheckpointError, match=str(tmp_path / "m" / CHECKPOINTS)):
        RewardModel.load(tmp_path / "m")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"transformer": {"wide": 1}, "format": {}}'])
def test_a_broken_description_is_named(directory, tmp_path, text):
    shutil.copytree(directory, tmp_path / "m")
    (tmp_path / "m" / MODEL_FILE).write_text(text)
    with pytest.raises(ValueError, match=f"{tmp_path}/m/{MODEL_FILE}: not a model description"):
        RewardModel.load(tmp_path / "m")


def test_a_checkpoint_without_head_is_no_reward_model(config, tokenizer, params, tmp_path):
    save(tmp_path, config, tokenizer, {"backbone": params["backbone"]}, {})
    with pytest.raises(ParameterError, match="has no reward head .* it is a language model, not a reward model"):
        RewardModel.load(tmp_path)


def test_a_description_of_another_architecture_lists_the_paths(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "m")
    described = json.loads((tmp_path / "m" / MODEL_FILE).read_text())
    described["transformer"]["mlp_width"] = 48
    (tmp_path / "m" / MODEL_FILE).write_text(json.dumps(described))
    with pytest.raises(
        ParameterError, match=r"another architecture: .*mlp/up/kernel: \(2, 16, 32\) there, \(2, 16, 48\) here"
    ):
        RewardModel.load(tmp_path / "m")


def test_the_newest_intact_checkpoint_counts(directory, params, tmp_path):
    shutil.copytree(directory, tmp_path / "m")
    zero = jax.tree.map(np.zeros_like, jax.device_get(params))
    with Checkpoints(tmp_path / "m" / CHECKPOINTS) as checkpoints:
        checkpoints.save(9, {"trainable": zero}, {}, wait=True)
    assert RewardModel.load(tmp_path / "m").score(ROWS[:2]) == [0.0, 0.0]
    (tmp_path / "m" / CHECKPOINTS / "9" / "data_0.json").write_text("damaged")
    with pytest.warns(RuntimeWarning, match="checkpoint of step 9 is damaged"):
        assert RewardModel.load(tmp_path / "m").score(ROWS[:1]) != [0.0]


def test_a_model_trained_with_kernels_for_tpus_scores_without_them(directory, model, tmp_path):
    shutil.copytree(directory, tmp_path / "m")
    described = json.loads((tmp_path / "m" / MODEL_FILE).read_text())
    described["transformer"]["attention"] = "pallas"
    (tmp_path / "m" / MODEL_FILE).write_text(json.dumps(described))
    np.testing.assert_allclose(RewardModel.load(tmp_path / "m").score(ROWS[:2]), model.score(ROWS[:2]), atol=1e-5)


def test_trained_twice_loads_what_it_saved(directory, model, params):
    for path in ("head", "backbone"):
        for one, other in zip(jax.tree.leaves(model.params[path]), jax.tree.leaves(params[path]), strict=True):
            np.testing.assert_array_equal(one, other)


def test_texts_longer_than_rotary_positions_allow_are_refused(model):
    config = dataclasses.replace(model.config, rope=Rope(kind="dynamic", factor=2.0), max_positions=32)
    with pytest.raises(ValueError, match=r"the format's max_length is \d+, but .*rope.kind=dynamic.* lower it to 32"):
        RewardModel(config, model.format, model.tokenizer, model.params)


# --- scores that are not finite -----------------------------------------------------------------------------------------

RANKED = Comparison("p", ("good", "bad"), ("ref",), ranks=(0.0, 1.0), policies=("a", "b"), place="f.jsonl:3")


def broken(model, path="head/kernel"):
    params = {p: np.full_like(x, np.nan) if p == path else x for p, x in flat(model.params).items()}
    return RewardModel(model.config, model.format, model.tokenizer, nested(params))


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.score_groups([RANKED]),
        lambda model: model.scorer.score([RANKED]),
        lambda model: Ensemble([model.scorer], "minimum").score([RANKED]),
        *(lambda model, name=name: EVALUATORS[name](model.scorer, [RANKED]) for name in EVALUATORS),
    ],
)
def test_a_reward_that_is_not_finite_is_refused_whoever_asks(model, call):
    message = r"^f.jsonl:3: a score is not finite \(\[nan, nan\]\); parameter head/kernel is not finite either"
    with pytest.raises(ScoreError, match=message):
        call(broken(model))


def test_a_row_without_a_finite_reward_is_named(model):
    with pytest.raises(ScoreError, match="^row 0: a score is not finite"):
        broken(model).score(ROWS)


def test_an_overflow_is_named_as_such(model):
    huge = RewardModel(model.config, model.format, model.tokenizer, {
        **model.params, "head": {"kernel": np.full((16, 1), 3e38, np.float32)}})  # fmt: skip
    with pytest.raises(ScoreError, match="all parameters are finite, so the model overflows on this text"):
        huge.score(ROWS)


def test_an_adapter_without_finite_rewards_is_refused(model, tmp_path):
    adapter = AdapterConfig("lora", "mlp/up$", rank=2)
    config = dataclasses.replace(model.config, adapter=adapter)
    fresh = nn.meta.unbox(jax.jit(lambda: initial_params(RewardTransformer(config), 0))())
    params = flat(fresh) | flat(model.params)
    save_adapter(tmp_path / "adapter", adapter, nested(params | {"head/kernel": np.full((16, 1), np.nan, np.float32)}))
    with pytest.raises(ScoreError, match="row 0: a score is not finite"):
        model.with_adapter(tmp_path / "adapter").score(ROWS)


# --- several devices ----------------------------------------------------------------------------------------------------

PROGRAM = """
import json, sys
from rmjax.parallel.mesh import AXES, make_mesh
from rmjax.reward_model import RewardModel

path, rows, meshes = json.loads(sys.argv[1])
found = []
for sizes in meshes:
    mesh = make_mesh(dict(zip(AXES, sizes))) if isinstance(sizes, list) else sizes
    found.append(RewardModel.load(path, mesh=mesh).score(rows))
print("REPORT", json.dumps(found))
"""
MESHES = ["all", [2, 2, 2, 1], [1, 2, 1, 4]]


def test_eight_devices_give_the_rewards_of_one(directory, model):
    environment = os.environ | simulated.devices(8) | {"PYTHONPATH": str(ROOT)}
    rows = ROWS + [row(f"question {i} " * 3, "x" * (i + 1), "reference") for i in range(20)]  # several rows a batch
    command = [sys.executable, "-c", PROGRAM, json.dumps([str(directory), rows, MESHES])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(next(x for x in done.stdout.splitlines() if x.startswith("REPORT")).removeprefix("REPORT"))
    wanted = model.score(rows)
    for rewards in found:
        np.testing.assert_allclose(rewards, wanted, atol=1e-5)


def test_an_unknown_mesh_is_refused(directory):
    with pytest.raises(ValueError, match="mesh is 'both'; give a jax Mesh, 'all' or None"):
        RewardModel.load(directory, mesh="both")
