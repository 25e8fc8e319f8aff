"""Samples every policy of a pool on its prompts: `run`, or `python -m experiments.sample`.

Writes WORKDIR/<policy>.jsonl, one {"prompt_id", "prompt", "policy", "sample", "output"} a line, and beside it what it was drawn
with. Run again, what was stopped continues: whole batches are kept, the last broken one is drawn again, and the result is
the same.
"""

import dataclasses
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from rmjax.data.formats import Encoder, Format
from rmjax.data.messages import USER, as_value, messages_of
from rmjax.data.readers import read_all
from rmjax.data.samplerows import PROMPT_FIELDS, Prompt, distinct, parse_prompt
from rmjax.files import write_text
from rmjax.hub.gguf import load_gguf, smollm2_path
from rmjax.locks import locked
from rmjax.models.transformer import TransformerConfig
from rmjax.policy.policies import Policy, realize, sequence_key, sequence_seed
from rmjax.policy.sampling import generate, left_pad, rules
from rmjax.reward_model import load_description, load_params
from rmjax.trainer import open_workdir

_OF_OLD = {"template": "chatml", "stop": ["<|endoftext|>"]}
"""Settings that files of older versions do not name."""
_CORPUS_FIELDS = PROMPT_FIELDS | {"category", "answer"}  # what the corpus has beside a prompt


@dataclasses.dataclass(frozen=True)
class Asked:
    """A prompt as one policy reads it, behind what all its prompts begin with."""

    prompt: Prompt
    ids: Sequence[int]


def read_prompts(path: str) -> list[Prompt]:
    """The rows {"id", "prompt" or "messages", "split"?}; RecordError with file and line for a broken one or an id that occurs
    twice."""
    return list(distinct(read_all(path, parse_prompt, _CORPUS_FIELDS)))


def chosen_policies(policies: Sequence[Policy], row: Prompt, seen: int, held_out: tuple[int, int]) -> set[str]:
    """The policies that answer this prompt: `seen` seen ones; for a held-out one `held_out` = (seen, unseen)."""
    order = sorted(policies, key=lambda p: hashlib.sha256(f"{row.id}/{p.name}".encode()).digest())
    wanted = held_out if row.split == "unseen" else (seen, 0)
    return {
        policy.name
        for split, count in zip(("seen", "unseen"), wanted, strict=True)
        for policy in [p for p in order if p.split == split][:count]
    }


def asked(policy: Policy, prompts: Sequence[Prompt], encoder: Encoder) -> tuple[list[int], list[Asked]]:
    """The ids that all of the policy's prompts begin with, and each prompt's behind them.

    Where the template lays the preamble out otherwise alone than before a prompt, they begin with nothing in common.
    """
    preamble = policy.preamble()
    whole = [encoder.begun_messages((*preamble, *messages_of(prompt.prompt, USER))) for prompt in prompts]
    prefix = encoder.closed_messages(preamble)
    if any(ids[: len(prefix)] != prefix for ids in whole):
        prefix = []
    return prefix, [Asked(prompt, ids[len(prefix) :]) for prompt, ids in zip(prompts, whole, strict=True)]


def batches(rows: list[Asked], size: int) -> Iterator[list[Asked]]:
    """Rows by prompt length, in equal batches of at most `size`: little padding, one shape."""
    rows = sorted(rows, key=lambda row: (len(row.ids), row.prompt.id))
    count = -(-len(rows) // size)
    size = -(-len(rows) // count)
    return (rows[i : i + size] for i in range(0, len(rows), size))


def kept_lines(path: Path, per_batch: list[int]) -> int:
    """How many whole batches the file holds; what follows them is cut off."""
    if not path.exists():
        return 0
    # In bytes: an output may hold U+2028, at which str.splitlines breaks, and a kill may halve a character.
    lines = path.read_bytes().split(b"\n")[:-1]
    done = 0
    while done < len(per_batch) and sum(per_batch[: done + 1]) <= len(lines):
        done += 1
    with open(path, "r+b") as file:
        file.truncate(sum(len(line) + 1 for line in lines[: sum(per_batch[:done])]))
    return done


def check_kept(path: Path, kept: list[list[Asked]], samples: int) -> None:
    """ValueError if the lines kept are not this plan's: made with other prompts, policies or numbers of samples."""
    wanted = ((row.prompt.id, sample) for batch in kept for row in batch for sample in range(samples))
    with open(path, "rb") as file:
        for number, (line, name) in enumerate(zip(file, wanted, strict=True), 1):
            record = json.loads(line)
            if (record["prompt_id"], record["sample"]) != name:
                raise ValueError(f"{path}:{number}: sample of another config; remove the file or use a new workdir")


def check_seeds(config: Any, work: Mapping[str, Sequence[Prompt]]) -> None:
    """ValueError where two sequences of one prompt would draw with the same random numbers."""
    met: dict[tuple[str, int], str] = {}
    for policy, rows in work.items():
        for row in rows:
            for sample in range(config.samples):
                key = row.id, sequence_seed(config.seed, row.id, policy, sample)
                name = f"{policy}/{sample}"
                if met.setdefault(key, name) != name:
                    raise ValueError(
                        f"config.seed={config.seed}: {met[key]} and {name} would draw alike for prompt {row.id}; "
                        "choose another"
                    )


def check_settings(policy: Policy, config: Any, path: Path) -> None:
    """ValueError if the policy's file was begun with other settings; else writes them down beside it."""
    beside = path.with_suffix(".settings.json")
    chosen = {name: config[name] for name in (*_OF_OLD, "model", "seed", "samples", "max_new_tokens")}
    now = json.loads(json.dumps(chosen | dataclasses.asdict(policy)))
    then = _OF_OLD | json.loads(beside.read_text()) if beside.exists() and path.exists() else now
    if changed := [name for name in now if then.get(name) != now[name]]:
        raise ValueError(
            f"{path} was begun with other settings ({', '.join(changed)}); remove the file or use a new workdir"
        )
    write_text(beside, json.dumps(now, ensure_ascii=False, indent=1) + "\n")


def sample_policy(policy: Policy, prompts: list[Prompt], model: Any, config: Any, path: Path, bar: tqdm) -> None:
    """Draws what is missing of one policy's file."""
    model_config, params, encoder = model
    prefix_ids, rows = asked(policy, prompts, encoder)
    plan = list(batches(rows, config.batch_prompts))
    check_settings(policy, config, path)
    done = kept_lines(path, [len(batch) * config.samples for batch in plan])
    if done:
        check_kept(path, plan[:done], config.samples)
    bar.update(sum(map(len, plan[:done])) * config.samples)
    if done == len(plan):
        return
    model_config, params = realize(policy, model_config, params)
    prefix = left_pad([prefix_ids], 32)
    with open(
        path, "ab", buffering=0
    ) as file:  # a buffer that cannot be written would fail once more when it is closed
        for batch in plan[done:]:
            ids_RM = _draw(policy, batch, (model_config, params, encoder), prefix, config)
            lines = []
            for i, row_ids in enumerate(ids_RM):
                prompt, sample = batch[i // config.samples].prompt, i % config.samples
                output = encoder.tokenizer.decode(row_ids[row_ids >= 0].tolist())
                asked_for = {"prompt_id": prompt.id, "prompt": as_value(prompt.prompt)}
                record = {**asked_for, "policy": policy.name, "sample": sample}
                lines.append(json.dumps(record | {"output": output}, ensure_ascii=False) + "\n")
            _append(file, lines)
            bar.update(len(batch) * config.samples)


def _append(file: io.FileIO, lines: Sequence[str]) -> None:
    rest = memoryview("".join(lines).encode())
    try:
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    except OSError as error:
        raise OSError(f"cannot write {file.name!s} ({error.strerror}); free some space, then run again") from error


def _draw(policy: Policy, batch: list[Asked], model: tuple, prefix: Any, config: Any) -> np.ndarray:
    model_config, params, encoder = model
    names = [(row.prompt.id, sample) for row in batch for sample in range(config.samples)]
    keys = jnp.stack([sequence_key(config.seed, prompt_id, policy.name, sample) for prompt_id, sample in names])
    rule, candidates = rules([policy.decoding] * len(names), model_config.vocab_size)
    prompts = left_pad([row.ids for row in batch], 32)
    ends = (encoder.form.end_token, *config.stop)
    return np.asarray(
        generate(
            params, prefix, prompts, keys, rule, config=model_config, candidates=candidates, samples=config.samples,
            max_new_tokens=config.max_new_tokens, stop=tuple(encoder.tokenizer.id(end) for end in ends),
        )
    )  # fmt: skip


def language_model(policy: Policy, base: tuple[TransformerConfig, Any, Any], checkpoints: str) -> tuple:
    """The base model, or the tuned one that the policy names."""
    if not policy.checkpoint:
        return base
    run_name, step = policy.checkpoint.split("/")
    directory = Path(checkpoints) / run_name
    config, _, _ = load_description(directory)  # it may have an adapter, or frozen layers
    return config, jax.device_put(load_params(directory, int(step))["backbone"]), base[2]


def run(config: Any, workdir: Path) -> None:
    """Samples all that `config` wants and that `workdir` does not hold yet.

    Raises:
      ValueError: a number that no run can have, or files in `workdir` that were begun with another config.
      InUseError: another run is writing to `workdir`.
    """
    for field in ("samples", "max_new_tokens", "batch_prompts"):
        if config[field] < 1:
            raise ValueError(f"config.{field} is {config[field]}; it must be 1 or more")
    prompts = read_prompts(config.prompts)
    open_workdir(workdir)
    with locked(workdir):
        _sample_all(config, workdir, prompts)


def _sample_all(config: Any, workdir: Path, prompts: list[Prompt]) -> None:
    everyone = [Policy.parse(row.to_dict() if hasattr(row, "to_dict") else row) for row in config.policies]
    wanted = [p for p in everyone if not config.kinds or p.kind in config.kinds.split(",")]
    architecture, params, tokenizer = load_gguf(config.model or smollm2_path())
    encoder = Encoder(tokenizer, Format(kind="chat", template=config.template), architecture.max_positions)
    base = (architecture, jax.tree.map(jnp.asarray, params), encoder)
    work = {
        p.name: [
            row
            for row in prompts
            if p.name in chosen_policies(everyone, row, config.policies_per_prompt, tuple(config.policies_per_held_out))
        ]
        for p in wanted
    }
    check_seeds(config, work)
    total = sum(map(len, work.values())) * config.samples
    with tqdm(total=total, unit="sample", desc="sampling", mininterval=5, file=sys.stderr) as bar:
        for policy in wanted:
            bar.set_postfix_str(policy.name)
            model = language_model(policy, base, config.checkpoints)
            if work[policy.name]:
                sample_policy(policy, work[policy.name], model, config, workdir / f"{policy.name}.jsonl", bar)
