"""Trains a model: `python -m experiments.train --config=configs/polar/pretrain.py --workdir=DIR [--config.key=value …]`.

Run again, a stopped command continues from its newest checkpoint. DIR then holds model.json, tokenizer.json, checkpoints/
and metrics.jsonl, and is what `RewardModel.load` and `--config.model.init` take.
"""

import contextlib
import dataclasses
import functools
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from absl import app, flags
from jax.sharding import Mesh
from ml_collections import config_flags
from rmjax.models.forest import Forest

from experiments.adapters import adapted_architecture, check_adapter, make_balance, trainable_paths
from experiments.configuration import complete, keep_config
from experiments.gradients import check_head, make_gradient
from experiments.sources import choose, evaluation_set
from experiments.start import join_hosts, leave, parse_flags, stoppable
from experiments.streams import open_stream, samples_set
from rmjax.data import placement
from rmjax.data.formats import Encoder, Format
from rmjax.data.pipeline import WHOLE
from rmjax.data.record import RecordError
from rmjax.data.tokenizer import Tokenizer
from rmjax.evaluate import evaluate_comparisons
from rmjax.evaluate.gaps import describe_gaps
from rmjax.hub.gguf import load_gguf, smollm2_path
from rmjax.models import parameters
from rmjax.models.attention import PLATFORMS
from rmjax.models.lora import ADAPTER_PATH
from rmjax.models.presets import PRESETS
from rmjax.models.reward import RewardTransformer
from rmjax.models.transformer import TransformerConfig
from rmjax.parallel.hosts import EndTogether
from rmjax.parallel.mesh import Rules, make_mesh, make_rules, replicated, shards
from rmjax.reward_model import CHECKPOINTS, load_description, load_params, save_description
from rmjax.scoring import score
from rmjax.train import meta, objective, optimizer
from rmjax.train.checkpoint import Checkpoints
from rmjax.train.flops import decoder_flops_per_token, mfu
from rmjax.train.loop import Diverged, Preempted, restored, saved_part, train
from rmjax.train.metrics import MetricWriter, count_traces
from rmjax.train.routing import balanced
from rmjax.train.state import State, compile_step, initial_params, make_state, make_step, state_shardings

_log = logging.getLogger(__name__)
_POSITIVE = (
    "data.rows", "data.row_tokens", "data.streams", "data.groups", "data.candidates", "data.negatives", "data.references",
    "meta_data.rows", "meta_data.row_tokens", "meta_data.groups",
    "optimizer.microbatches", "run.steps", "run.log_every", "run.save_every", "run.keep",
)  # fmt: skip
_SHARES = ("data.hard_negatives", "loss.label_smoothing", "optimizer.warmup", "optimizer.final")
_PARTED = (
    "the processes could not work together any longer, most likely because another one ended: its own output says why. "
    "Start all of them again, and the run goes on from its newest checkpoint. What was seen here: "
)


@dataclasses.dataclass(frozen=True)
class Program:
    """A training step before it is compiled, and what it is made of."""

    model: RewardTransformer
    rate: optax.Schedule
    update: optax.GradientTransformation
    abstract: State  # shapes only
    shardings: State
    step: Callable


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run starts from."""

    config: TransformerConfig
    tokenizer: Tokenizer
    params: Any  # loaded ones; None = random
    may_miss: str  # paths that the loaded parameters may lack


def load_start(model: Any) -> Start:
    """From `config.model`: a GGUF language model, a run directory, or random weights of the given sizes."""
    if Path(model.init).is_dir():
        config, _, tokenizer = load_description(Path(model.init))
        return _changed(Start(config, tokenizer, load_params(Path(model.init)), may_miss=""), model)
    path = smollm2_path() if model.init in ("smollm2", "random") else Path(model.init)
    if not path.is_file():
        raise FileNotFoundError(
            f"config.model.init={model.init}: no such run directory or .gguf file; see configs/base.py"
        )
    config, params, tokenizer = load_gguf(path, weights=model.init != "random")
    if model.preset:
        config = preset(model)
    return _changed(Start(config, tokenizer, {"backbone": params} if params else None, may_miss="^head/"), model)


def preset(model: Any) -> TransformerConfig:
    """The architecture that `config.model.preset` names, for random weights only."""
    if model.init != "random":
        raise ValueError(f"config.model.preset is {model.preset!r}, but loaded weights have their own; use init=random")
    return PRESETS[choose("model.preset", model.preset, tuple(PRESETS))]


def check_format(model: Any, form: Format) -> None:
    """ValueError where `config.model.init` is a run directory trained with other special tokens; lengths may differ."""
    if not Path(model.init).is_dir():
        return
    theirs = load_description(Path(model.init))[1]
    for field in ("split_token", "reward_token"):
        before, now = getattr(theirs, field), getattr(form, field)
        if before != now:
            raise ValueError(
                f"config.format.{field} is {now!r}, but {model.init} was trained with {before!r}; use that one"
            )
    for field in ("max_length", "max_response_length", "response_cut_side"):
        before, now = getattr(theirs, field), getattr(form, field)
        if before != now:
            _log.warning("config.format.%s is %s; %s was trained with %s", field, now, model.init, before)


def _changed(start: Start, model: Any) -> Start:
    """First k layers, which of them lie below all that is trained, other sizes (random weights only), dtypes."""
    sizes = {name: model[name] for name in ("width", "heads", "kv_heads", "mlp_width") if model[name]}
    if sizes and start.params is not None:
        raise ValueError(f"config.model.{next(iter(sizes))} is set, but loaded weights have their own; use init=random")
    if model.layers > start.config.depth and start.params is not None:
        raise ValueError(f"config.model.layers is {model.layers}; the loaded model has {start.config.depth}")
    depth = model.layers or start.config.depth
    if not 0 <= model.frozen_layers < depth:
        raise ValueError(
            f"config.model.frozen_layers is {model.frozen_layers}; it must leave one of the {depth} layers"
        )
    config = dataclasses.replace(
        start.config, depth=depth, frozen_layers=model.frozen_layers, dtype=model.dtype, param_dtype=model.param_dtype,
        remat=model.remat, attention=model.attention, attention_block=model.attention_block, **sizes,
    )  # fmt: skip
    if sizes:
        config = dataclasses.replace(config, head_width=config.width // config.heads)
    params = start.params
    if start.config.adapter and (depth, config.frozen_layers) != (start.config.depth, start.config.frozen_layers):
        raise ValueError(
            f"config.model.init has an adapter on {start.config.depth} layers, {start.config.frozen_layers} of them frozen; "
            "keep model.layers and model.frozen_layers as they are, or merge the adapter first"
        )
    if params is not None and not start.config.adapter:
        params = {**params, "backbone": parameters.first_layers(params["backbone"], depth, model.frozen_layers)}
    return dataclasses.replace(start, config=config, params=params)


def _with_adapter(start: Start, section: Any) -> Start:
    """The loaded parameters may lack those of an adapter that they get now."""
    config = adapted_architecture(start.config, section)
    may_miss = start.may_miss if start.config.adapter else "|".join(filter(None, (start.may_miss, ADAPTER_PATH)))
    return dataclasses.replace(start, config=config, may_miss=may_miss)


def load_architecture(config: Any) -> TransformerConfig:
    """That of `config.model` and `config.adapter`."""
    return _with_adapter(load_start(config.model), config.adapter).config


def make_objective(config: Any, model: RewardTransformer) -> objective.Objective:
    """From `config.objective`, with what `config.adapter` adds to it."""
    choose("objective", config.objective, ("preference", "language_model"))
    loss = config.loss
    build: Callable = objective.language_model if config.objective == "language_model" else functools.partial(
        objective.preference, loss=loss.name, label_smoothing=loss.label_smoothing, penalty=loss.penalty,
        penalty_weight=loss.penalty_weight,
    )  # fmt: skip
    balance = make_balance(config.adapter)
    return balanced(build, model, balance) if balance else build(model)


def make_evaluations(
    config: Any, model: RewardTransformer, tokenizer: Tokenizer, form: Format, mesh: Mesh, rules: Rules
) -> Mapping[str, Any]:
    """From `config.evals`: name → (every, function of the state): preference accuracy, or the spread on samples."""
    rewards, tokens = _rewards(model, mesh, rules), 4096 * shards(mesh, rules, "rows")  # of a batch at most
    encoder = Encoder(tokenizer, form, row_tokens=2 * form.max_length)

    def evaluate(records: Sequence, describe: Callable, state: State) -> Mapping[str, float]:
        params = parameters.merge(state.trainable, state.frozen)
        return describe(records, score(rewards, params, encoder, records, batch_tokens=tokens))

    found = {}
    for name, entry in config.evals.items():
        spread = entry.kind == "samples"
        records, describe = (samples_set(entry), _gaps) if spread else (evaluation_set(entry), _accuracy)
        found[name] = (entry.every or config.run.steps, functools.partial(evaluate, records, describe))
    return found


def _rewards(model: RewardTransformer, mesh: Mesh, rules: Rules) -> Callable[[Any, Forest], jax.Array]:
    """(params, forest) → rewards on every process. Rows are cut over the mesh as in training, filled up with empty ones where
    they are too few; where tokens do not divide every device runs all."""

    def apply(params: Any, forest: Forest) -> jax.Array:
        with nn.logical_axis_rules(rules):
            return model.apply({"params": params}, forest)  # type: ignore[return-value]

    cut, whole = (
        jax.jit(f, out_shardings=replicated(mesh)) for f in (apply, lambda p, f: model.apply({"params": p}, f))
    )
    shardings = placement.forest_shardings(mesh, rules)
    parts, tokens = (shards(mesh, rules, axis) for axis in ("rows", "tokens"))

    def rewards(params: Any, forest: Forest) -> jax.Array:
        rows = len(forest.tokens_RT)
        if forest.shape[1] % tokens:
            return whole(params, forest)
        padded = jax.tree.map(lambda x: np.pad(x, [(0, -rows % parts)] + [(0, 0)] * (x.ndim - 1)), forest)
        return cut(params, placement.place(padded, shardings, WHOLE))[:rows]

    return rewards


def _accuracy(records: Sequence, scores: list[list[float]]) -> Mapping[str, float]:
    overall = evaluate_comparisons(records, scores)["overall"]
    return {name: float(overall[name] or 0) for name in ("accuracy", "low", "high", "ties")}


def _gaps(records: Sequence, scores: list[list[float]]) -> Mapping[str, float]:
    del records
    return describe_gaps(scores)


def flops_per_token(config: TransformerConfig, state: State, keys: float, head: bool) -> float:
    """Of a training step in which a token attends to `keys` others; embeddings are looked up, not multiplied, unless the
    vocabulary head runs."""
    everything = parameters.flat(parameters.merge(state.trainable, state.frozen))
    used = {p: x for p, x in everything.items() if _multiplied(p, config.tied_embeddings, head)}
    moving = parameters.flat(state.trainable)
    return decoder_flops_per_token(
        parameters.count(used), layers=config.depth, attention_width=config.heads * config.head_width, keys=keys,
        trainable=parameters.count({p: x for p, x in used.items() if p in moving}),
        without_gradient=0.0 if any("/embedding/" in p for p in moving) else config.frozen_layers / config.depth,
    )  # fmt: skip


def _multiplied(path: str, tied: bool, head: bool) -> bool:
    """Whether a token is multiplied with it: of embedding and vocabulary projection only what gives the logits is."""
    if "/embedding/" in path:
        return head and tied
    return head or not path.startswith("backbone/output/")


def compiler_options(config: Any) -> dict[str, str]:
    """Name → value of `config.run.compiler_options`. ValueError for one without a value."""
    pairs = [str(option).partition("=") for option in config.run.compiler_options]
    if wrong := [name for name, given, _ in pairs if not given]:
        raise ValueError(f"config.run.compiler_options has {wrong[0]!r}; give NAME=VALUE")
    return {name: value for name, _, value in pairs}


def _check_options(options: Mapping[str, str]) -> None:
    try:
        jax.jit(lambda: 0, compiler_options=dict(options))()
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise ValueError(
            f"config.run.compiler_options: {str(error).splitlines()[0]}; options are of one platform, and this run is on "
            f"{jax.default_backend()}"
        ) from error


def check(config: Any, mesh: Mesh, rules: Rules) -> None:
    """ValueError for values that no run can have."""
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise ValueError(f"this is one of {jax.process_count()} processes; set config.hosts.coordinator to auto")
    choose("model.dtype", config.model.dtype, ("float32", "bfloat16"))
    choose("model.param_dtype", config.model.param_dtype, ("float32", "bfloat16"))
    if config.model.attention == "pallas" and (platform := mesh.devices.flat[0].platform) not in PLATFORMS:
        raise ValueError(
            f"config.model.attention is 'pallas', kernels for TPUs and GPUs, and this run is on {platform}; use 'blockwise': "
            "the same values in as little memory"
        )
    for field in _POSITIVE:
        section, name = field.split(".")
        if config[section][name] < 1:
            raise ValueError(f"config.{field} is {config[section][name]}; it must be 1 or more")
    for field in _SHARES:
        section, name = field.split(".")
        if not 0 <= config[section][name] <= 1:
            raise ValueError(f"config.{field} is {config[section][name]}; it is a share, from 0 to 1")
    if config.model.param_dtype == "bfloat16" and not config.adapter.kind:
        _log.warning(
            "config.model.param_dtype is bfloat16: a step below 1/256 of a weight is lost in rounding; keep float32 for what is "
            "trained (model.dtype may be bfloat16)"
        )
    if config.run.compiler_options and mesh.devices.flat[0].platform == jax.default_backend():
        _check_options(compiler_options(config))
    check_adapter(config.adapter, shards(mesh, rules, "experts"))
    parts = shards(mesh, rules, "rows") * config.optimizer.microbatches
    for section in ("data", "meta_data") if config.gradient.name == "meta" else ("data",):
        for field, divisor, why in (
            ("rows", parts, "mesh.data · mesh.fsdp · microbatches"),
            ("rows", config.data.streams, "data.streams"),
            ("row_tokens", shards(mesh, rules, "tokens"), "mesh.context"),
        ):
            if config[section][field] % divisor:
                remedy = ", or share out tokens: mesh.data=1, mesh.context=-1" if divisor == parts else ""
                raise ValueError(
                    f"config.{section}.{field} is {config[section][field]}; make it a multiple of {why} = {divisor}{remedy}"
                )


def open_workdir(workdir: Path) -> None:
    """Makes the directory; an OSError that says what to do where it cannot be written."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=workdir).close()
    except OSError as error:
        raise OSError(
            f"--workdir={workdir} cannot be written ({error.strerror}); choose or free another one"
        ) from error


def make_program(config: Any, architecture: TransformerConfig, mesh: Mesh, rules: Rules) -> Program:
    """The training step of a config. No parameter is made.

    Raises:
      ValueError: `config.trainable` matches frozen layers.
    """
    model, opt = RewardTransformer(architecture), config.optimizer
    rate = optimizer.schedule(opt.learning_rate, config.run.steps, opt.warmup, opt.final)
    update = optimizer.adamw(rate, b1=opt.b1, b2=opt.b2, weight_decay=opt.weight_decay, clip=opt.clip)
    boxed = jax.eval_shape(functools.partial(initial_params, model, config.run.seed))
    abstract = jax.eval_shape(functools.partial(_fresh, model, config, update), _seed(config))
    if any("/frozen_layers/" in path for path in parameters.flat(abstract.trainable)):
        raise ValueError(
            f"config.trainable is {config.trainable!r} and matches frozen layers too; narrow it, or lower model.frozen_layers"
        )
    shardings = state_shardings(abstract, boxed, trainable_paths(config), mesh, rules)
    form_gradient = make_gradient(config, make_objective(config, model), model, rate, shardings.trainable)
    return Program(model, rate, update, abstract, shardings, make_step(form_gradient, update, shardings, mesh, rules))


def run(config: Any, workdir: Path) -> State:
    """One training run, from wherever it stopped."""
    config = complete(config)
    mesh, rules = make_mesh(config.mesh.to_dict()), make_rules(config.sharding.to_dict())
    check(config, mesh, rules)
    open_workdir(workdir)
    start, form = _with_adapter(load_start(config.model), config.adapter), Format(**config.format.to_dict())
    check_format(config.model, form)
    share = placement.share_of_process(mesh, rules, config.data.rows, config.data.streams)
    stream = open_stream(config, start.tokenizer, form, share)
    program = make_program(config, start.config, mesh, rules)
    model, rate, update, shardings = program.model, program.rate, program.update, program.shardings
    check_head(config, start.params, rate)
    counted = count_traces(program.step)

    with (
        jax.set_mesh(mesh),
        Checkpoints(workdir / CHECKPOINTS, config.run.keep, config.run.keep_every or None, ("frozen",)) as saved,
    ):
        state, data, first = _restore(saved, program.abstract, shardings)
        # Only now: a run of another config or architecture must keep its own description.
        keep_config(config, workdir / "config.json")
        if jax.process_index() == 0:
            save_description(workdir, start.config, form, start.tokenizer, config.objective)
        if state is None:
            state = first_state(model, config, update, start, shardings)
        batches = iter(stream.batches)
        if share.streams > 1 and config.data.epochs:
            batches = EndTogether(batches)
        if data:
            batches.set_state(data["iterator"])
        writer = MetricWriter(
            workdir, resume_step=first, tensorboard=config.run.tensorboard,
            wandb={"project": config.run.wandb, "name": workdir.name, "config": config.to_dict()}
            if config.run.wandb
            else None,
        )  # fmt: skip
        per_token = flops_per_token(start.config, state, config.data.row_tokens, config.objective == "language_model")

        def describe(scalars: Mapping[str, float]) -> dict[str, float]:
            speed = scalars.get("tokens_per_second")
            more = {"learning_rate": float(rate(int(scalars["step"]) - 1)), "cut_groups": float(stream.counts["cut"])}
            more |= meta.describe(scalars)
            return more | ({"mfu": mfu(per_token * speed, dtype=start.config.dtype)} if speed else {})

        try:
            return train(
                state, compile_step(counted, shardings, mesh, compiler_options(config)), batches, steps=config.run.steps,
                place=functools.partial(placement.place, shardings=placement.forest_shardings(mesh, rules), share=share),
                checkpoints=saved, writer=writer, directory=workdir, describe=describe, traces=counted,
                log_every=config.run.log_every, save_every=config.run.save_every,
                evaluations=make_evaluations(config, model, start.tokenizer, form, mesh, rules), identify=stream.identify,
                since=data.get("terms"),
            )  # fmt: skip
        finally:
            writer.close()
            if +stream.counts:
                _log.warning("while encoding: %s", dict(stream.counts))


def _fresh(model: RewardTransformer, config: Any, update: Any, seed: Any) -> State:
    params = nn.meta.unbox(initial_params(model, seed))
    return make_state(params, trainable_paths(config), update, seed)


def _seed(config: Any) -> np.uint32:
    """An argument of the compiled program, so that another seed finds it in the cache. JAX uses the lower 32 bits."""
    return np.uint32(config.run.seed & 0xFFFFFFFF)


def first_state(model: RewardTransformer, config: Any, update: Any, start: Start, shardings: State) -> State:
    """The state before the first step: loaded parameters where there are some, random ones else."""
    state = jax.jit(functools.partial(_fresh, model, config, update), out_shardings=shardings)(_seed(config))
    if start.params is None:
        return state
    params = parameters.warm_start(parameters.merge(state.trainable, state.frozen), start.params, start.may_miss)
    moving, frozen = parameters.split(params, trainable_paths(config))
    placed = jax.tree.map(_placed, (moving, frozen), (shardings.trainable, shardings.frozen))
    return dataclasses.replace(state, trainable=placed[0], frozen=placed[1])


def _placed(array: jax.Array | np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """A process has its own copy of what it loaded, on the host, and gives of it what lies on its devices: no device needs
    memory for all of it."""
    if isinstance(array, jax.Array):
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _restore(saved: Checkpoints, abstract: State, shardings: State) -> tuple[State | None, dict[str, Any], int]:
    """(state, what was saved beside it, its step); (None, {}, -1) where nothing was."""
    wanted = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
    found = saved.restore(saved_part(wanted))
    if found is None:
        return None, {}, -1
    step, parts, data = found
    _log.info("going on from step %d", step)
    return restored(abstract, parts), data, step


def guarded(job: Callable[[], object], resumes: bool = False) -> int:
    """Runs a job, with the errors that a user can mend as one line each; the exit code.

    resumes: the same command goes on where this one was, so that SIGTERM is no fault, wherever it comes.
    """
    try:
        with stoppable() if resumes else contextlib.nullcontext():
            job()
    except Preempted as stop:
        if jax.process_index() == 0:
            print(stop, file=sys.stderr)
    except (Diverged, RecordError, ValueError, OSError, RuntimeError, ImportError) as error:
        parted = jax.distributed.is_initialized() and any(
            isinstance(e, jax.errors.JaxRuntimeError) for e in _causes(error)
        )
        print(f"error: {_PARTED if parted else ''}{error}", file=sys.stderr)
        return 1
    return 0


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it: that a checkpoint could not be saved, say."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def main(argv: Sequence[str]) -> None:
    """Reads the flags."""
    del argv
    config, workdir = flags.FLAGS.config, Path(flags.FLAGS.workdir)

    def job() -> None:
        join_hosts(config.hosts)
        run(config, workdir)

    leave(lambda: guarded(job, resumes=True))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "the experiment", lock_config=True)
    flags.DEFINE_string("workdir", None, "folder of this run")
    flags.mark_flags_as_required(["config", "workdir"])
    from experiments.start import prepare

    prepare()
    app.run(main, flags_parser=parse_flags)
