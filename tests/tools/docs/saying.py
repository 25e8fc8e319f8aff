"""What the error pages quote, provoked: NAME → a function that makes the library say it.

A function gets a folder with `start` (a tiny reward model), `writer` (a tiny language model), `ranked.jsonl`; and an empty one.
"""

import functools
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from experiments import export as exporting
from experiments.start import guarded
from rmjax import RewardModel, Trainer
from rmjax import config as base
from rmjax.data.formats import Encoder, Format
from rmjax.data.record import parse
from rmjax.data.tokenizer import Tokenizer
from rmjax.evaluate import evaluation
from rmjax.hub import gguf
from rmjax.hub.adapters import save_adapter
from rmjax.joining import join_hosts
from rmjax.locks import locked
from rmjax.parallel.mesh import make_mesh
from rmjax.reward_model import CHECKPOINTS, load_description
from rmjax.serve.dialects import Context, get_reward
from rmjax.serve.items import Encoding, Item, Record, Text
from rmjax.serve.outcomes import Refused
from rmjax.train.checkpoint import Checkpoints
from tests.experiments.running import execute
from tests.hub.goldens import copied

Provocation = Callable[[Path, Path], object]
SAID: dict[str, Provocation] = {}
ASKED = [{"role": "user", "content": "Say 3."}]
PAIR = {"prompt": "Say 3.", "chosen": "It is 3.", "rejected": "No."}


def says(provocation: Provocation) -> Provocation:
    """Registers it under its name."""
    SAID[provocation.__name__.replace("_", "-")] = provocation
    return provocation


def write(path: Path, *rows: Any) -> Path:
    """A JSONL file; text is written as it is."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def settings(home: Path, **changes: Any) -> ConfigDict:
    """A tiny run on ranked answers; `changes` has "__" for "."."""
    config = base.get_config()
    values = {
        "model.init": str(home / "start"), "data.kind": "comparisons", "data.path": str(home / "ranked.jsonl"),
        "data.reference": "optional", "data.rows": 2, "data.row_tokens": 128, "run.steps": 3, "run.save_every": 3,
        "run.log_every": 1,
    } | {name.replace("__", "."): value for name, value in changes.items()}  # fmt: skip
    config.update_from_flattened_dict(values)
    return config


def begin(home: Path, folder: Path, *rows: Any, **changes: Any) -> None:
    """All that the command checks before its first step, on these rows or else on `ranked.jsonl`; nothing is compiled."""
    if rows:
        changes["data__path"] = str(write(folder / "mine.jsonl", *rows))
    guarded(lambda: Trainer(settings(home, **changes), folder / "run"))


def train(home: Path, folder: Path, **changes: Any) -> Path:
    """Runs the command; the folder of the run."""
    execute(settings(home, **changes), folder / "run")
    return folder / "run"


@functools.cache
def finished(home: Path) -> Path:
    """A run that is over."""
    return train(home, home / "finished")


@functools.cache
def adapted(home: Path) -> Path:
    """A run with an adapter."""
    return train(home, home / "adapted", adapter__kind="loramoe", adapter__experts=2)


def again(home: Path, folder: Path, **changes: Any) -> None:
    """The command on the folder of a run that is over."""
    shutil.copytree(finished(home), folder / "run")
    train(home, folder, **changes)


# --- data ------------------------------------------------------------------------------------------------------------------


@says
def broken_line(home: Path, folder: Path) -> None:
    begin(home, folder, PAIR, '{"prompt": "Say 4.", "chosen": "It is 4."')


@says
def no_such_set(home: Path, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
        begin(home, folder, data__path="hf:org/pairs")


@says
def no_such_column(home: Path, folder: Path) -> None:
    data = write(folder / "other.jsonl", PAIR)
    begin(home, folder, data__path=str(data), data__columns=("prompt=question",))


@says
def misspelled_field(home: Path, folder: Path) -> None:
    begin(home, folder, {"prompt": "Say 3.", "chosen": "It is 3.", "regected": "No."})


@says
def unknown_field(home: Path, folder: Path) -> None:
    begin(home, folder, PAIR | {"catgory": "numbers"})


@says
def no_reference(home: Path, folder: Path) -> None:
    begin(home, folder, PAIR, data__reference="required")


@says
def same_answer_twice(home: Path, folder: Path) -> None:
    begin(home, folder, PAIR | {"rejected": "It is 3."})


@says
def no_order(home: Path, folder: Path) -> None:
    begin(home, folder, {"prompt": "Say 3.", "outputs": ["It is 3.", "No."]}, PAIR)


@says
def all_tied(home: Path, folder: Path) -> None:
    begin(home, folder, {"prompt": "Say 3.", "outputs": ["It is 3.", "No."], "ranks": [0, 0]}, PAIR)


@says
def all_too_large(home: Path, folder: Path) -> None:
    begin(home, folder, {"prompt": "Say 3.", "outputs": ["3", "Three.", "No."], "ranks": [0, 1, 2]})


@says
def some_too_large(home: Path, folder: Path) -> None:
    begin(home, folder, PAIR, {"prompt": "Say 3.", "outputs": ["3", "Three.", "No."], "ranks": [0, 1, 2]})


@says
def skipped(home: Path, folder: Path) -> None:
    begin(home, folder, PAIR, {"prompt": "Say 3.", "outputs": ["3", "No."], "ranks": [0, 0]}, data__on_error="skip")


@says
def scores_against_order(home: Path, folder: Path) -> None:
    begin(home, folder, {"prompt": "Say 3.", "outputs": ["3", "No."], "ranks": [0, 1], "scores": [1, 5]})


@says
def no_votes(home: Path, folder: Path) -> None:
    begin(home, folder, PAIR, loss__order="votes")


@says
def no_type(home: Path, folder: Path) -> None:
    begin(home, folder, PAIR, adapter__kind="loramoe", adapter__beta=0.1)


# --- training --------------------------------------------------------------------------------------------------------------


@says
def no_gradient(home: Path, folder: Path) -> None:
    train(home, folder, trainable="final_norm")


@says
def head_alone(home: Path, folder: Path) -> None:
    begin(home, folder, model__init=str(home / "writer"), objective="dpo", format__kind="plain", trainable="^head")


@says
def no_rate(home: Path, folder: Path) -> None:
    begin(home, folder, optimizer__warmup=1.0, run__steps=1)


@says
def diverged(home: Path, folder: Path) -> None:
    train(home, folder, optimizer__learning_rate=3e38, optimizer__warmup=0.0, run__steps=3)


@says
def unknown_key(home: Path, folder: Path) -> None:
    config = settings(home)
    with config.unlocked():
        config.optimizer.learing_rate = 1e-4
    execute(config, folder)


@says
def out_of_range(home: Path, folder: Path) -> None:
    begin(home, folder, loss__label_smoothing=0.7)


@says
def rows_and_parts(home: Path, folder: Path) -> None:
    begin(home, folder, data__rows=3, optimizer__microbatches=2)


@says
def low_precision(home: Path, folder: Path) -> None:
    begin(home, folder, model__param_dtype="bfloat16")


@says
def data_ended(home: Path, folder: Path) -> None:
    train(home, folder, data__epochs=1)


@says
def another_config(home: Path, folder: Path) -> None:
    again(home, folder, optimizer__learning_rate=1e-3)


@says
def other_data(home: Path, folder: Path) -> None:
    data = home / "ranked.jsonl"
    finished(home)
    before = data.read_text()
    try:
        write(data, before.rstrip(), PAIR)
        again(home, folder)
    finally:
        data.write_text(before)


@says
def in_use(home: Path, folder: Path) -> None:
    (folder / "run").mkdir()
    with locked(folder / "run"):
        train(home, folder)


@says
def damaged_checkpoint(home: Path, folder: Path) -> None:
    shutil.copytree(home / "start", folder / "model")
    next((folder / "model" / CHECKPOINTS / "0").rglob("manifest.json")).write_text("{")
    RewardModel.load(folder / "model")


# --- scores ----------------------------------------------------------------------------------------------------------------


@says
def not_finite(home: Path, folder: Path) -> None:
    model = RewardModel.load(home / "start")
    params = jax.tree.map(np.array, model.params)
    params["head"]["kernel"][0] = np.nan
    RewardModel(model.config, model.format, model.tokenizer, params).score([{"prompt": "Say 3.", "output": "3"}])


@says
def without_reference(home: Path, folder: Path) -> None:
    data = write(folder / "test.jsonl", PAIR)
    evaluation.evaluate(evaluation.Options(home / "start", str(data), folder / "scores.json"))


@says
def no_benchmark(home: Path, folder: Path) -> None:
    guarded(lambda: evaluation.evaluate(evaluation.Options(home / "start", str(folder / "data"), suite="judge_bench")))


@says
def another_benchmark(home: Path, folder: Path) -> None:
    data = write(folder / "pairs.jsonl", PAIR)
    guarded(lambda: evaluation.evaluate(evaluation.Options(home / "start", str(data), suite="judge_bench")))


@says
def another_count(home: Path, folder: Path) -> None:
    data = folder / "Natural" / "dataset.json"
    data.parent.mkdir()
    data.write_text(json.dumps([{"input": "Say 3.", "output_1": "It is 3.", "output_2": "No.", "label": 1}]))
    evaluation.evaluate(evaluation.Options(home / "start", str(data), suite="llmbar"))


@says
def taken_for(home: Path, folder: Path) -> None:
    row = {
        "history": "Say 3.",
        "human_ref_A": "It is 3.",
        "human_ref_B": "No.",
        "labels": 1,
        "domain": "askbaking_test",
    }
    data = write(folder / "shp.jsonl", row)
    evaluation.evaluate(evaluation.Options(home / "start", str(data), layout="auto"))


@says
def special_token(home: Path, folder: Path) -> None:
    RewardModel.load(home / "start").score([{"prompt": "Say 3.", "output": "3<empty_output>"}])


@says
def cut_when_scored(home: Path, folder: Path) -> None:
    RewardModel.load(home / "start").score([{"prompt": "Say 3.", "output": "3 " * 1100}])


@says
def output_missing(home: Path, folder: Path) -> None:
    RewardModel.load(home / "start").score([{"prompt": "Say 3.", "answer": "3"}])


# --- models ----------------------------------------------------------------------------------------------------------------


@says
def no_model(home: Path, folder: Path) -> None:
    RewardModel.load(folder)


@says
def language_model(home: Path, folder: Path) -> None:
    RewardModel.load(home / "writer")


def without_head(home: Path, folder: Path) -> Path:
    """The reward model as another program might have saved it."""
    shutil.copytree(home / "start", folder / "headless", ignore=shutil.ignore_patterns(CHECKPOINTS))
    with Checkpoints(home / "start" / CHECKPOINTS) as saved:
        backbone = saved.restore_subtree("trainable")[1]["backbone"]
    with Checkpoints(folder / "headless" / CHECKPOINTS) as checkpoints:
        checkpoints.save(0, {"trainable": {"backbone": backbone}}, {}, wait=True)
    return folder / "headless"


@says
def no_head(home: Path, folder: Path) -> None:
    RewardModel.load(without_head(home, folder))


@says
def start_without_head(home: Path, folder: Path) -> None:
    train(home, folder, model__init=str(without_head(home, folder)))


@says
def other_tokens(home: Path, folder: Path) -> None:
    begin(home, folder, format__reward_token="<|im_end|>")


@says
def no_template(home: Path, folder: Path) -> None:
    begin(home, folder, format__kind="chat")


@says
def refusing_template(home: Path, folder: Path) -> None:
    row = {**PAIR, "prompt": [{"role": "system", "content": "Count."}, *ASKED]}
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    )
    encoder = Encoder(Tokenizer.load(home / "writer/tokenizer.json"), Format(kind="chat", template=template), 200)
    encoder.trees(parse(row, f"{folder}/system.jsonl:1"))


@says
def other_base(home: Path, folder: Path) -> None:
    model = RewardModel.load(adapted(home))
    save_adapter(folder / "law.safetensors", model.config.adapter, model.params)
    other = RewardModel.load(home / "start")
    params = jax.tree.map(np.array, other.params)
    params["backbone"]["embedding"]["embedding"][0] += 1
    RewardModel(other.config, other.format, other.tokenizer, params).with_adapter(folder / "law.safetensors")


@says
def mixture_merged(home: Path, folder: Path) -> None:
    RewardModel.load(adapted(home)).merged()


@says
def mixture_to_peft(home: Path, folder: Path) -> None:
    exporting.export(adapted(home), "peft", folder / "peft", "")


@says
def mixture_to_hub(home: Path, folder: Path) -> None:
    exporting.export(adapted(home), "hugging_face", folder / "hub")


def of_the_hub(folder: Path, **keys: Any) -> Path:
    """A tiny model of the hub, with keys of its config.json changed."""
    copied("llama", folder / "hub")
    path = folder / "hub/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    return folder / "hub"


@says
def unread_key(home: Path, folder: Path) -> None:
    RewardModel.load(of_the_hub(folder, hidden_act="relu", residual_multiplier=0.2))


@says
def disagreeing_rope(home: Path, folder: Path) -> None:
    RewardModel.load(of_the_hub(folder, rope_theta=5e5))


@says
def wrong_tensors(home: Path, folder: Path) -> None:
    path = of_the_hub(folder) / "model.safetensors"
    tensors = load_file(path)
    tensors["model.other.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, path)
    RewardModel.load(folder / "hub")


@says
def pickled_weights(home: Path, folder: Path) -> None:
    (of_the_hub(folder) / "model.safetensors").rename(folder / "hub/pytorch_model.bin")
    RewardModel.load(folder / "hub")


@says
def not_fetched(home: Path, folder: Path) -> None:
    begin(home, folder, model__init="org/model")


@says
def adapter_again(home: Path, folder: Path) -> None:
    begin(home, folder, model__init=str(adapted(home)))


@says
def no_gemma(home: Path, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GEMMA3_PACKAGE", "not_installed")
        gguf.gguf_path("gemma3")


@says
def no_weights(home: Path, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "SMOLLM2_PACKAGE", "not_installed")
        gguf.smollm2_path()


@says
def no_shipped(home: Path, folder: Path) -> None:
    RewardModel.load("shipped:large")


@says
def damaged_adapter(home: Path, folder: Path) -> None:
    model, path = RewardModel.load(adapted(home)), folder / "law.safetensors"
    save_adapter(path, model.config.adapter, model.params)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    model.with_adapter(path)


# --- devices ---------------------------------------------------------------------------------------------------------------


@says
def which_process(home: Path, folder: Path) -> None:
    hosts = base.get_config().hosts
    hosts.coordinator = "10.0.0.1:9911"
    join_hosts(hosts, {})


@says
def too_many_devices(home: Path, folder: Path) -> None:
    make_mesh({"data": 2, "tensor": 4}, jax.devices()[:1])


@says
def kernels_on_a_cpu(home: Path, folder: Path) -> None:
    train(home, folder, model__attention="pallas")


@says
def a_bucket(home: Path, folder: Path) -> None:
    execute(settings(home), Path("gs://bucket/run"))


@says
def no_such_file(home: Path, folder: Path) -> None:
    write(folder / "train.jsonl", PAIR)
    begin(home, folder, data__path=str(folder / "tain.jsonl"))


# --- serving ---------------------------------------------------------------------------------------------------------------


@says
def port_taken(home: Path, folder: Path) -> None:
    from rmjax.serve.server import Options, serve

    with socket.create_server(("127.0.0.1", 0)) as taken:
        guarded(lambda: serve(Options(str(home / "start"), port=taken.getsockname()[1])))


def encoded(home: Path, item: Item, **form: Any) -> None:
    """What the server says of an item, with another format."""
    tokenizer = load_description(home / "start")[2]
    raise ValueError(Encoding(Encoder(tokenizer, Format(**form), 256), False, tokenizer.vocab_size).encode(item))


@says
def too_long(home: Path, folder: Path) -> None:
    record = Record({"prompt": "Say 3.", "output": "It is 3. " * 11}, "records[0]")
    encoded(home, record, kind="plain", reward_token="<empty_output>", max_length=64, max_response_length=48)


@says
def another_prompt(home: Path, folder: Path) -> None:
    try:
        get_reward({"query": ["Say 3. 3"], "prompts": ["Say 4."]}, Context("mine", "", "plain"))
    except Refused as refused:
        raise ValueError(refused) from None


@says
def no_template_in_text(home: Path, folder: Path) -> None:
    encoded(home, Text("Say 3. 3", "input[0]"), kind="chat", template="chatml", max_length=64)


STEPS = {
    "diverged",
    "data-ended",
    "another-config",
    "other-data",
    "other-base",
    "mixture-merged",
    "mixture-to-peft",
    "mixture-to-hub",
    "adapter-again",
}
"""What takes training steps, and so a compilation."""
