"""The sections that every config has, each key with its default, its unit and its range; methods add sections of their own.

`rmjax.config` puts them together.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rmjax.models.presets import PRESETS
from rmjax.sections import choice, number, parts, pattern

DTYPES = ("float32", "bfloat16")
SPLITS = ("seen", "unseen", "all")
RECORD_SPLITS = ("all", "train", "test")
WRAPPERS = ("sft", "pretrain")
ROOT = "../shared/data"
BENCHMARKS = (
    "rmb", "reward_bench", "reward_bench_2", "rm_bench", "judge_bench", "llmbar", "ppe", "hh", "helpsteer", "shp",
    "ultrafeedback", "polar",
)  # fmt: skip
"""Those of `rmjax.evaluate.suites`."""


@dataclasses.dataclass(frozen=True)
class Model:
    """`config.model`."""

    init: str = (
        "smollm2"  # smollm2 | gemma3 | .gguf file | run or hub folder | org/model[@revision] | shipped:NAME | random
    )
    layers: int = number(0, low=0)  # first k layers only, for small machines; 0 = all
    frozen_layers: int = number(0, low=0)  # of them, this many from the bottom stay as they are, forward pass only
    preset: str = choice("", "", *PRESETS)  # random weights only: sizes by name; empty = those of SmolLM2
    width: int = number(
        0, low=0
    )  # random weights only: hidden size; 0 = preset's or SmolLM2's (576), as the next three
    heads: int = number(0, low=0)  # query heads
    kv_heads: int = number(0, low=0)  # key-value heads
    mlp_width: int = number(0, low=0)  # hidden size of the MLP
    dtype: str = choice("float32", *DTYPES)  # of activations; head and loss are fp32 always
    param_dtype: str = choice("float32", *DTYPES)  # of parameters
    remat: str = choice("none", "none", "dots", "attention", "full")  # each computes more again in the backward pass
    attention: str = choice(
        "dense", "dense", "blockwise", "pallas"
    )  # dense: short rows | memory linear in row_tokens: others
    attention_block: int = number(512, low=1)  # tokens; blockwise: heads · block² scores of a row are in memory at once


@dataclasses.dataclass(frozen=True)
class FormatSection:
    """`config.format`: see `rmjax.data.formats.Format`."""

    kind: str = choice("polar", "polar", "chat", "plain")  # texts joined, POLAR's or plain | messages in a template
    split_token: str = "<file_sep>"  # polar: between the reference half and the candidate half
    reward_token: str = "<empty_output>"  # polar, plain: read-out
    template: str = ""  # chat: a .jinja file, a shipped one (chatml) or Jinja text; empty = the model's own
    end_token: str = ""  # chat: ends a turn, empty = what the template writes | texts: ends each, empty = nothing does
    bos_token: str = (
        ""  # chat: the template's `bos_token` | polar, plain: begins a sequence; empty = as the tokenizer does
    )
    eos_token: str = ""  # chat: the template's `eos_token`; empty = the tokenizer's own
    read_out: str = choice("end", "end", "last")  # chat: the last turn's end token | what the template writes after it
    date: str = ""  # chat: YYYY-MM-DD for templates that ask for the day; empty = that of the run's start
    max_length: int = number(1024, low=7)  # tokens: one sequence (POLAR: 16384)
    max_response_length: int = number(384, low=1)  # tokens: reference, candidate (POLAR: 4096)
    response_cut_side: str = choice(
        "right", "right", "left"
    )  # right keeps an answer's head (official trainer) | its tail


@dataclasses.dataclass(frozen=True)
class Data:
    """`config.data`: the main stream of records."""

    kind: str = "pool"  # pool (who wrote what) | comparisons (ranked) | texts | samples (rewarded) | rollouts (prompts)
    path: str = (
        ""  # a file, a folder of shards, shipped:NAME, tfds:NAME, hf:ORG/NAME, or a real set's name (docs/data.md)
    )
    columns: tuple[str, ...] = ()  # comparisons, texts: "FIELD=COLUMN" each, dots lead inside; empty = by their names
    root: str = ROOT  # where the real sets lie
    layout: str = "records"  # comparisons, texts: records (ours) | auto | a name of docs/data.md, Layouts
    split: str = choice("all", *RECORD_SPLITS)  # real sets: test is a fifth of the prompts, by hash
    policies: str = choice("seen", *SPLITS)  # pool: policies that may write
    prompts: str = choice("seen", *SPLITS)  # pool: prompts that may be answered
    negatives: int = number(1, low=1)  # pool: other-policy samples a group
    hard_negatives: float = number(0.0, low=0, high=1)  # pool: fraction of negatives from policies of the same kind
    references: int = number(1, low=1)  # pool: same-policy samples beside the positive
    wrapper: str = choice("sft", *WRAPPERS)  # pool: POLAR wrapper
    reference: str = choice("required", "required", "optional")  # comparisons: whether each record needs a reference
    on_error: str = choice("raise", "raise", "skip")  # records that cannot be used: an error | left out and counted
    flip: float = number(0.0, low=0, high=0.5)  # comparisons: fraction whose order is turned round, marked in `flipped`
    flip_seed: int = number(0, low=0)  # of the choice of these records
    rows: int = number(8, low=1)  # rows a batch (over all devices)
    row_tokens: int = number(512, low=1)  # tokens a row; short rows are fast, a dense mask costs T per token
    groups: int = number(8, low=1)  # groups a row at most
    candidates: int = number(2, low=1)  # candidates a group at most
    streams: int = number(1, low=1)  # streams that the rows are packed from; processes divide them (docs/multihost.md)
    epochs: int = number(0, low=0)  # passes over the data; 0 = as many as the steps take
    prefetch: int = number(2, low=0)  # batches made ahead


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """`config.optimizer`: AdamW."""

    learning_rate: float = number(1e-5, low=0)  # peak; 0 moves nothing
    warmup: float = number(0.03, low=0, high=1)  # fraction of the steps
    final: float = number(0.1, low=0, high=1)  # end of the cosine, fraction of the peak
    b1: float = number(0.9, low=0, below=1)  # fraction kept of the gradient's running mean, per step
    b2: float = number(0.95, low=0, below=1)  # fraction kept of the squared gradient's running mean, per step
    weight_decay: float = number(0.0, low=0)  # fraction of a parameter removed per step, times the learning rate
    decayed: str = pattern(
        r"^(?!.*(head|backbone/output)/).*(/kernel|/lora_[ab])$"
    )  # paths that decay: matrices; not norms, biases, embedding, reward head, vocabulary head
    clip: float = number(1.0, low=0)  # global gradient norm; 0 = off
    microbatches: int = number(1, low=1)  # parts that a batch is run in, inside one step
    rates: tuple[
        str, ...
    ] = ()  # "PATTERN=FACTOR": the learning rate of paths that match, as a factor; the first match counts


@dataclasses.dataclass(frozen=True)
class MeshSection:
    """`config.mesh`: devices along each axis; −1 = the rest (one axis at most)."""

    data: int = parts(-1)  # devices that share the batch's rows
    fsdp: int = parts(1)  # devices that share the rows and the parameters
    tensor: int = parts(1)  # devices that share each matrix's heads or columns
    context: int = parts(1)  # devices that share each row's tokens
    dcn_data: int = number(1, low=1)  # factor of `data` between slices (without them: processes), on the slower network
    dcn_fsdp: int = number(1, low=1)  # factor of `fsdp` between slices


@dataclasses.dataclass(frozen=True)
class Hosts:
    """`config.hosts`: several processes; see docs/multihost.md."""

    coordinator: str = ""  # ADDRESS:PORT of process 0 | auto (Cloud TPU) | none | empty: what the environment says
    processes: int = number(0, low=0)  # with ADDRESS:PORT: how many there are
    index: int = number(-1, low=-1)  # with ADDRESS:PORT: number of this one, from 0
    timeout: int = number(
        60, low=1
    )  # seconds without a sign of life after which a process counts as dead, the others end
    join_timeout: int = number(300, low=1)  # seconds within which all processes must have come, first ones included


@dataclasses.dataclass(frozen=True)
class Run:
    """`config.run`."""

    steps: int = number(1000, low=1)  # updates of the parameters
    compiler_options: tuple[str, ...] = ()  # "NAME=VALUE", XLA's own for the platform of the run
    seed: int = number(0, low=0)  # of the random weights, the order and the draws
    log_every: int = number(10, low=1)  # steps
    save_every: int = number(200, low=1)  # steps
    keep: int = number(2, low=1)  # newest checkpoints kept
    keep_every: int = number(0, low=0)  # keep every so many steps for good; 0 = none
    tensorboard: bool = False  # True: metrics also to WORKDIR/tensorboard
    wandb: str = ""  # W&B project; empty = off


@dataclasses.dataclass(frozen=True)
class PoolEval:
    """An entry of `config.evals`: same policy against other policies on held-out prompts."""

    kind: str = "pool"  # what is evaluated, and so which keys the entry has
    path: str = "shipped:policy_pool"  # pool file
    policies: str = choice("all", *SPLITS)  # policies that may write
    prompts: str = choice("unseen", *SPLITS)  # prompts that may be answered
    per_prompt: int = number(4, low=1)  # triples drawn from each prompt
    wrapper: str = choice("sft", *WRAPPERS)  # POLAR wrapper; as in training
    every: int = number(0, low=0)  # steps; 0 = first and last only


@dataclasses.dataclass(frozen=True)
class ComparisonsEval:
    """An entry of `config.evals`: preference accuracy on ranked answers."""

    kind: str = "comparisons"  # what is evaluated, and so which keys the entry has
    path: str = ""  # file, shipped:NAME, or a real set's name
    layout: str = "records"  # of a file's rows: records (ours) | auto | a name of docs/data.md, Layouts
    root: str = ROOT  # where the real sets lie
    split: str = choice("all", *RECORD_SPLITS)  # real sets
    every: int = number(0, low=0)  # steps; 0 = first and last only


@dataclasses.dataclass(frozen=True)
class SuiteEval:
    """An entry of `config.evals`: a published benchmark in its own layout."""

    kind: str = "suite"  # what is evaluated, and so which keys the entry has
    suite: str = choice("rmb", *BENCHMARKS)  # which benchmark
    path: str = ""  # its file or folder, as it is downloaded
    on_error: str = choice("raise", "raise", "skip")  # broken rows: an error | left out and counted
    every: int = number(0, low=0)  # steps; 0 = first and last only


@dataclasses.dataclass(frozen=True)
class SamplesEval:
    """An entry of `config.evals`: the distribution of |Δr| between samples for one prompt."""

    kind: str = "samples"  # what is evaluated, and so which keys the entry has
    source: str = choice("pool", "pool", "comparisons")  # what the file has
    path: str = "shipped:policy_pool"  # as data.path
    root: str = ROOT  # where the real sets lie
    split: str = choice("all", *RECORD_SPLITS)  # real sets
    policies: str = choice("all", *SPLITS)  # pool
    prompts: str = choice("unseen", *SPLITS)  # pool
    names: str = pattern("")  # pool: regular expression that a policy's whole name must match; empty = all of these
    mixed: bool = False  # pool: True puts all these policies' samples for a prompt into one group
    references: int = number(0, low=0)  # pool: the first samples of a group become its references
    wrapper: str = choice("sft", *WRAPPERS)  # pool: POLAR wrapper
    every: int = number(0, low=0)  # steps; 0 = first and last only


@dataclasses.dataclass(frozen=True)
class AnswersEval:
    """An entry of `config.evals`: what a policy answers to held-out prompts, rewarded by `config.reward` and `config.gold`."""

    kind: str = "answers"  # what is evaluated, and so which keys the entry has
    path: str = ""  # file of prompts, as data.path for rollouts
    layout: str = "records"  # of its rows: records (ours) | auto | a name of docs/data.md, Layouts
    columns: tuple[str, ...] = ()  # "FIELD=COLUMN" each, as data.columns; empty = by their names
    on_error: str = choice("raise", "raise", "skip")  # broken rows: an error | left out and counted
    categories: str = pattern("")  # regular expression that a prompt's whole category must match; empty = all prompts
    limit: int = number(0, low=0)  # prompts, the first of the file; 0 = all
    temperature: float = number(0.0, low=0)  # 0 = greedy, one answer a prompt
    samples: int = number(1, low=1)  # answers to a prompt; greedy ones would all be the same
    max_new_tokens: int = number(128, low=1)  # tokens of an answer at most
    stop: tuple[str, ...] = ()  # texts that end an answer, beside the format's end token
    patience: int = number(
        0, low=0
    )  # evaluations in a row below the best by more than `drop` that end the run; 0 = off
    drop: float = number(0.0, low=0)  # in units of the gold reward
    every: int = number(0, low=0)  # steps; 0 = first and last only


EVALUATIONS: Mapping[str, type] = {
    "pool": PoolEval, "comparisons": ComparisonsEval, "samples": SamplesEval, "suite": SuiteEval, "answers": AnswersEval,
}  # fmt: skip
SECTIONS: Mapping[str, type] = {
    "model": Model, "format": FormatSection, "data": Data, "optimizer": Optimizer, "mesh": MeshSection, "hosts": Hosts,
    "run": Run,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """A checked config. `sections` has those of methods by name."""

    objective: str
    trainable: str
    model: Model
    format: FormatSection
    data: Data
    optimizer: Optimizer
    mesh: MeshSection
    hosts: Hosts
    run: Run
    sharding: Mapping[str, tuple[str, ...]]
    evals: Mapping[str, Any]
    sections: Mapping[str, Any]
