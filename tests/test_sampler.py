"""The sampler of a pool: who answers what, and that a stopped run continues to the very same bytes."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from tokenizers import pre_tokenizers

from rmjax import config as base
from rmjax import sampler as command
from rmjax.data.formats import Format
from rmjax.data.record import RecordError
from rmjax.data.samplerows import Prompt
from rmjax.data.tokenizer import Tokenizer
from rmjax.locks import InUseError, locked
from rmjax.models.lora import AdapterConfig
from rmjax.policy.policies import Policy
from rmjax.reward_model import save_description
from rmjax.train.checkpoint import Checkpoints

ROOT = Path(__file__).parents[1]
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Tokens that decode to what breaks careless line counting: U+2028, U+0085, and characters of several bytes.
AWKWARD = ["âĢ¨", "aâĢ¨", "ÂħÂħ", "Ã©", "ðŁİī"]
DEFAULT_FORMAT = Format(**base.get_config().format.to_dict())


# --- who answers what ------------------------------------------------------------------------------------------------

POLICIES = [Policy(f"s{i}", "base", "seen") for i in range(6)] + [Policy(f"u{i}", "base", "unseen") for i in range(4)]


@settings(deadline=None)
@given(prompt_id=st.text(max_size=8), per_prompt=st.integers(1, 6), order=st.permutations(POLICIES))
def test_a_prompt_of_training_is_answered_by_seen_policies(prompt_id, per_prompt, order):
    chosen = command.chosen_policies(order, Prompt(prompt_id, "?"), per_prompt, (1, 1))
    assert len(chosen) == per_prompt
    assert all(name.startswith("s") for name in chosen)
    assert chosen == command.chosen_policies(POLICIES, Prompt(prompt_id, "?", "seen"), per_prompt, (1, 1))


@settings(deadline=None)
@given(prompt_id=st.text(max_size=8), seen=st.integers(0, 6), unseen=st.integers(0, 4))
def test_a_held_out_prompt_is_answered_by_both_kinds(prompt_id, seen, unseen):
    chosen = command.chosen_policies(POLICIES, Prompt(prompt_id, "?", "unseen"), 3, (seen, unseen))
    assert sorted(name[0] for name in chosen) == ["s"] * seen + ["u"] * unseen


def test_every_policy_is_chosen_by_some_prompt():
    chosen = [command.chosen_policies(POLICIES, Prompt(f"p{i}", "?"), 2, (1, 1)) for i in range(60)]
    counts = [sum(f"s{i}" in names for names in chosen) for i in range(6)]
    assert min(counts) >= 8  # 20 expected


# --- batches ---------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=30), size=st.integers(1, 8), random=st.randoms())
def test_batches(lengths, size, random):
    rows = [command.Asked(Prompt(f"p{i:02}", "?"), [0] * length) for i, length in enumerate(lengths)]
    got = list(command.batches(rows, size))
    flat = [row for batch in got for row in batch]
    assert sorted(flat, key=lambda row: row.prompt.id) == rows
    assert [len(row.ids) for row in flat] == sorted(lengths)
    sizes = [len(batch) for batch in got]
    assert max(sizes) <= size
    assert set(sizes[:-1]) <= {sizes[0]} and 0 < sizes[-1] <= sizes[0]
    random.shuffle(rows)
    assert list(command.batches(rows, size)) == got  # whatever the order of the prompts' file


# --- what a stopped run leaves ---------------------------------------------------------------------------------------

outputs = st.text(st.sampled_from('ab"\\\n\r\u2028\x85\x0cé🎉'), max_size=6)


@settings(deadline=None)
@given(outputs=st.lists(outputs, max_size=12), size=st.integers(1, 4), cut=st.integers(0, 400))
def test_whole_batches_are_kept_and_the_rest_is_cut_off(tmp_path_factory, outputs, size, cut):
    path = tmp_path_factory.getbasetemp() / "kept.jsonl"
    lines = [(json.dumps({"output": output}, ensure_ascii=False) + "\n").encode() for output in outputs]
    path.write_bytes(b"".join(lines)[:cut])
    complete = next(n for n in reversed(range(len(lines) + 1)) if len(b"".join(lines[:n])) <= cut)
    per_batch = [size] * (len(lines) // size) + [len(lines) % size] * (len(lines) % size > 0)
    done = command.kept_lines(path, per_batch)
    assert done == (len(per_batch) if complete == len(lines) else complete // size)
    assert path.read_bytes() == b"".join(lines[: sum(per_batch[:done])])


def test_without_a_file_nothing_is_kept(tmp_path):
    assert command.kept_lines(tmp_path / "absent.jsonl", [2, 2]) == 0
    assert not list(tmp_path.iterdir())


# --- whole runs, of a tiny random model ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tiny_config, random_params):
    tokens = [*SPECIAL, *BYTES, *AWKWARD]
    config = dataclasses.replace(tiny_config, vocab_size=len(tokens), tied_embeddings=False)
    params = random_params(config)
    params["output"]["kernel"][:, -len(AWKWARD) :] *= 2  # drawn more often
    return config, params, Tokenizer.from_bpe(tokens, [], SPECIAL)


@pytest.fixture
def settings_of(tmp_path, model, monkeypatch):
    """The config of a run: 8 prompts, three policies, two to four batches each."""
    monkeypatch.setattr(command, "load_gguf", lambda path: model)
    monkeypatch.setattr(command, "smollm2_path", lambda: pytest.fail("config.model is given"))
    prompts = [{"id": f"p{i}", "prompt": "why? " * (i % 3 + 1) + "é", "split": "seen"} for i in range(7)]
    prompts.append({"id": "held", "prompt": "and <|im_end|> so?", "split": "unseen"})
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    config = ConfigDict()
    config.model = "tiny.gguf"
    config.template, config.stop = "chatml", ("<|endoftext|>",)
    config.policies = (
        {"name": "plain", "kind": "base", "split": "seen"},
        {"name": "short", "kind": "depth", "split": "seen", "dropped_layers": (1,)},
        {"name": "other", "kind": "noise", "split": "unseen", "noise": 0.3, "system": "Hm."},
    )
    config.kinds, config.checkpoints, config.prompts = "", "", str(tmp_path / "prompts.jsonl")
    config.policies_per_prompt, config.policies_per_held_out = 2, (1, 1)
    config.samples, config.max_new_tokens, config.batch_prompts, config.seed = 2, 6, 2, 0
    return config


@pytest.fixture
def whole(settings_of, tmp_path):
    """Folder of an uninterrupted run."""
    command.run(settings_of, tmp_path / "whole")
    return tmp_path / "whole"


def _records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def test_a_run_writes_every_policy_s_samples(settings_of, whole):
    assert sorted(path.name for path in whole.glob("*.jsonl")) == ["other.jsonl", "plain.jsonl", "short.jsonl"]
    prompts = {row["id"]: row["prompt"] for row in _records(Path(settings_of.prompts))}
    records = {name: _records(whole / f"{name}.jsonl") for name in ("plain", "short", "other")}
    for name, rows in records.items():
        assert all(list(row) == ["prompt_id", "prompt", "policy", "sample", "output"] for row in rows)
        assert {row["policy"] for row in rows} == {name}
        assert all(row["prompt"] == prompts[row["prompt_id"]] for row in rows)
        assert [row["sample"] for row in rows] == [0, 1] * (len(rows) // 2)
        assert not any(token in row["output"] for token in SPECIAL for row in rows)
    assert {row["prompt_id"] for row in records["other"]} == {"held"}
    assert len(records["plain"]) + len(records["short"]) == 2 * (7 * 2 + 1)
    pairs = [(rows[i]["output"], rows[i + 1]["output"]) for rows in records.values() for i in range(0, len(rows), 2)]
    assert sum(first != second for first, second in pairs) > 0.8 * len(pairs)
    everything = "".join(row["output"] for rows in records.values() for row in rows)
    assert {"\u2028", "\x85"} & set(everything), "the outputs do not test awkward characters; scale their logits up"


# Bytes from the end of the file: the newline, inside the last line, inside earlier batches, everything.
@pytest.mark.parametrize("lost", [1, 2, 9, 60, 250, 700, 100_000])
def test_a_stopped_run_continues_to_the_same_bytes(settings_of, whole, tmp_path, lost):
    stopped = tmp_path / "stopped"
    shutil.copytree(whole, stopped)
    for path in stopped.glob("*.jsonl"):
        os.truncate(path, max(0, path.stat().st_size - lost))
    (stopped / "short.jsonl").unlink()  # not even begun
    command.run(settings_of, stopped)
    for path in whole.iterdir():
        assert (stopped / path.name).read_bytes() == path.read_bytes()


def test_a_finished_run_draws_nothing(settings_of, whole, monkeypatch):
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    monkeypatch.setattr(command, "generate", lambda *args, **more: pytest.fail("sampled again"))
    command.run(settings_of, whole)
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policies_per_prompt": 1}, r"\.jsonl:\d+: sample of another config; remove the file"),
        ({"samples": 1}, r"plain\.jsonl was begun with other settings \(samples\); remove the file"),
    ],
)
def test_samples_of_another_config_are_not_continued(settings_of, whole, change, message):
    if "policies_per_prompt" in change:  # fewer prompts a policy
        settings_of.policies = (*settings_of.policies, {"name": "more", "kind": "base", "split": "seen"})
    settings_of.update(change)
    with pytest.raises(ValueError, match=message):
        command.run(settings_of, whole)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        *(
            pytest.param(change, marks=pytest.mark.slow)
            for change in ({"max_new_tokens": 5}, {"decoding": (0.5, 1.0, 0)})
        ),
    ],
)
def test_samples_are_not_continued_with_other_settings(settings_of, whole, change):
    (name,) = change
    if name == "decoding":
        settings_of.policies = tuple({**row, **change} for row in settings_of.policies)
    else:
        settings_of.update(change)
    os.truncate(whole / "plain.jsonl", 60)
    with pytest.raises(ValueError, match=rf"plain\.jsonl was begun with other settings \({name}\); remove the file"):
        command.run(settings_of, whole)
    (whole / "plain.jsonl").unlink()
    settings_of.kinds = "base"
    command.run(settings_of, whole)


def test_a_file_without_settings_beside_it_is_continued(settings_of, whole):
    before = (whole / "plain.jsonl").read_bytes()
    (whole / "plain.settings.json").unlink()
    os.truncate(whole / "plain.jsonl", 60)
    command.run(settings_of, whole)
    assert (whole / "plain.jsonl").read_bytes() == before


@pytest.mark.parametrize("field", ["samples", "max_new_tokens", "batch_prompts"])
def test_numbers_that_no_run_can_have(settings_of, tmp_path, field):
    settings_of[field] = 0
    with pytest.raises(ValueError, match=f"config.{field} is 0; it must be 1 or more"):
        command.run(settings_of, tmp_path / "run")


def test_two_samples_of_one_prompt_never_share_their_random_numbers(settings_of, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "sequence_seed", lambda seed, prompt, policy, sample: len(policy))
    with pytest.raises(
        ValueError, match="config.seed=0: plain/0 and plain/1 would draw alike for prompt p0; choose another"
    ):
        command.run(settings_of, tmp_path / "run")


def test_two_starts_in_one_folder_do_not_both_write(settings_of, tmp_path):
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"), pytest.raises(InUseError, match="run is in use by another run"):
        command.run(settings_of, tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def test_a_full_disk_names_the_file(settings_of, tmp_path):
    with (
        open("/dev/full", "wb", buffering=0) as file,
        pytest.raises(OSError, match=r"cannot write /dev/full \(No space left on device\)"),
    ):
        command._append(file, ["line\n"])


def test_only_the_kinds_that_are_asked_for(settings_of, whole, tmp_path):
    settings_of.kinds = "depth,noise"
    command.run(settings_of, tmp_path / "some")
    assert sorted(path.name for path in (tmp_path / "some").glob("*.jsonl")) == ["other.jsonl", "short.jsonl"]
    for path in (tmp_path / "some").iterdir():
        assert path.read_bytes() == (whole / path.name).read_bytes()


def test_batches_of_another_size_change_nothing(settings_of, whole, tmp_path):
    """So a run may continue on a machine that holds more."""
    settings_of.batch_prompts, settings_of.kinds = 3, "base"
    command.run(settings_of, tmp_path / "larger")
    assert (tmp_path / "larger" / "plain.jsonl").read_bytes() == (whole / "plain.jsonl").read_bytes()


def test_another_seed_draws_other_samples(settings_of, whole, tmp_path):
    settings_of.seed, settings_of.kinds = 1, "base"
    command.run(settings_of, tmp_path / "again")
    ours, theirs = (_records(folder / "plain.jsonl") for folder in (tmp_path / "again", whole))
    assert [row["prompt_id"] for row in ours] == [row["prompt_id"] for row in theirs]
    assert np.mean([a["output"] != b["output"] for a, b in zip(ours, theirs, strict=True)]) > 0.8


def test_a_tuned_policy_has_its_own_weights(model, tmp_path):
    base = (model[0], model[1], model[2])
    plain = Policy("plain", "base", "seen")
    assert command.language_model(plain, base, str(tmp_path)) is base
    tuned = jax.tree.map(lambda x: x + 1, model[1])
    with Checkpoints(tmp_path / "dpo" / "checkpoints") as saved:
        saved.save(3, {"trainable": {"backbone": tuned}}, {})
    adapted = dataclasses.replace(model[0], adapter=AdapterConfig("lora"))
    save_description(tmp_path / "dpo", adapted, DEFAULT_FORMAT, model[2])
    config, params, tokenizer = command.language_model(
        dataclasses.replace(plain, checkpoint="dpo/3"), base, str(tmp_path)
    )
    assert (config, tokenizer) == (adapted, model[2])
    jax.tree.map(np.testing.assert_array_equal, params, tuned)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "p8", "prompt": ', r"prompts\.jsonl:9: broken JSON"),
        ("[1]", r"prompts\.jsonl:9: not a JSON object"),
        ('{"id": "p8"}', r"prompts\.jsonl:9: field `prompt`"),
        ('{"id": [8], "prompt": "why?"}', r"prompts\.jsonl:9: field `id`"),
        (
            '{"id": "p1", "prompt": "why?"}',
            r"prompts\.jsonl:9: field `id`: occurs twice \('p1' is in .*prompts\.jsonl:2\)",
        ),
    ],
)
def test_a_broken_prompt_is_named_before_anything_is_sampled(settings_of, tmp_path, line, message):
    with open(settings_of.prompts, "a") as file:
        file.write(line + "\n")
    with pytest.raises(RecordError, match=message):
        command.run(settings_of, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_error_is_one_line(tmp_path):
    arguments = ["--config=configs/sample/corpus.py", f"--config.prompts={tmp_path}/absent.jsonl"]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.sample", *arguments, f"--workdir={tmp_path}/out"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/absent.jsonl: no such file")


def test_the_command_says_what_it_needs():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.sample"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "must have a value" in done.stderr
