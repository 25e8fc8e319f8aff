"""A config's training step before it is compiled, and the state that it starts from."""

import dataclasses
import functools
import logging
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import Mesh

from rmjax.methods import Chosen, Rewards
from rmjax.models import parameters
from rmjax.models.attention import PLATFORMS
from rmjax.models.reward import READOUT, RewardTransformer
from rmjax.models.stored import on_devices
from rmjax.models.transformer import TransformerConfig
from rmjax.parallel import hosts
from rmjax.parallel.mesh import Rules, shards
from rmjax.roles import Roles
from rmjax.settings import Config
from rmjax.start import Start
from rmjax.train import optimizer
from rmjax.train.flops import decoder_flops_per_token
from rmjax.train.state import State, initial_params, make_state, make_step, state_shardings

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Program:
    """A training step, and what it is made of.

    Attributes:
      architecture: of the main model.
      model: the main model, as methods wrap it.
      roles: the models that the parameters hold.
      rate: learning rate by step.
      update: the optimizer.
      abstract: the state, shapes only.
      shardings: of the state.
      step: (state, batch) → (state, terms), to be compiled.
      rewards: (parameters of all roles, forest) → rewards_RGN, what evaluations score with.
    """

    architecture: TransformerConfig
    model: Any
    roles: Roles
    rate: optax.Schedule
    update: optax.GradientTransformation
    abstract: State
    shardings: State
    step: Callable
    rewards: Rewards


def make_program(chosen: Chosen, architecture: TransformerConfig, mesh: Mesh, rules: Rules) -> Program:
    """The training step of a config.

    Raises:
      ValueError: `config.trainable` matches frozen layers, or nothing that the objective reads would move; or texts may be longer
        than the architecture's rotary positions allow.
    """
    config = chosen.config
    architecture.check_length(config.format.max_length, "config.format.max_length")
    model, rate, update = chosen.model(RewardTransformer(architecture)), make_rate(config), make_optimizer(config)
    selected = chosen.roles.selected(chosen.trainable)
    boxed = chosen.roles.spread(
        jax.eval_shape(functools.partial(initial_params, model, config.run.seed)), chosen.trainable
    )
    abstract = jax.eval_shape(functools.partial(_fresh, chosen, model, update), _seed(config))
    if any("/frozen_layers/" in path for path in parameters.flat(abstract.trainable)):
        raise ValueError(
            f"config.trainable is {config.trainable!r} and matches frozen layers too; narrow it, or lower model.frozen_layers"
        )
    if any(leaf.dtype == jax.numpy.bfloat16 for leaf in jax.tree.leaves(abstract.trainable)):
        _log.warning(
            "config.model.param_dtype is bfloat16: a step below 1/256 of a weight is lost in rounding; keep float32 for what is "
            "trained (model.dtype may be bfloat16)"
        )
    _check_rates(chosen, abstract)
    shardings = state_shardings(abstract, boxed, selected, mesh, rules)
    gradient = chosen.gradient(model, rate, shardings.trainable)
    step = make_step(gradient, update, shardings, mesh, rules)
    return Program(architecture, model, chosen.roles, rate, update, abstract, shardings, step, chosen.rewards(model))


def _check_rates(chosen: Chosen, abstract: State) -> None:
    config, paths = chosen.config, list(parameters.flat(abstract.trainable))
    rates = optimizer.parse_rates(config.optimizer.rates)
    for pattern in rates:
        if not any(re.search(pattern, path) for path in paths):
            raise ValueError(
                f"config.optimizer.rates has the pattern {pattern!r}, which matches no trained path; there are {', '.join(paths)}"
            )
    moving = [path for path in paths if optimizer.factor(rates, path)]
    if not moving:
        raise ValueError(
            f"config.optimizer.rates is {config.optimizer.rates!r}, which makes the learning rate of every trained path 0; leave "
            "one above 0"
        )
    if chosen.language_model and all(re.search("(^|/)head/", path) for path in moving):
        raise ValueError(
            f"config.trainable is {config.trainable!r}: all that would move is {', '.join(moving)}, the reward head, which "
            f"objective={config.objective} does not read; name other paths, such as ^backbone/"
        )


def _check_schedule(config: Config) -> None:
    """ValueError where the learning rate is nowhere what `config.optimizer` asks for: 0 all along, or not finite."""
    opt, steps = config.optimizer, config.run.steps
    highest = float(make_rate(config)(optimizer.peak(steps, opt.warmup)))
    if opt.learning_rate and not 0 < highest < math.inf:
        raise ValueError(
            f"config.optimizer.warmup is {opt.warmup} and config.run.steps is {steps}: the learning rate is {highest:g} at its "
            f"highest (optimizer.learning_rate is {opt.learning_rate:g}), so nothing can be learned; shorten the warm-up, raise "
            "run.steps or choose another optimizer.learning_rate"
        )


def make_rate(config: Config) -> optax.Schedule:
    """Learning rate by step."""
    opt = config.optimizer
    return optimizer.schedule(opt.learning_rate, config.run.steps, opt.warmup, opt.final)


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """From `config.optimizer`."""
    opt = config.optimizer
    return optimizer.adamw(
        make_rate(config), b1=opt.b1, b2=opt.b2, weight_decay=opt.weight_decay, clip=opt.clip, decayed=opt.decayed,
        rates=optimizer.parse_rates(opt.rates),
    )  # fmt: skip


def _fresh(chosen: Chosen, model: Any, update: optax.GradientTransformation, seed: Any) -> State:
    params = chosen.roles.spread(nn.meta.unbox(initial_params(model, seed)), chosen.trainable)
    return make_state(params, chosen.roles.selected(chosen.trainable), update, seed)


def _seed(config: Config) -> np.uint32:
    """An argument of the compiled program, so that another seed finds it in the cache. JAX uses the lower 32 bits."""
    return np.uint32(config.run.seed & 0xFFFFFFFF)


def first_state(chosen: Chosen, program: Program, start: Start) -> State:
    """The state before the first step: loaded parameters where there are some, random ones else."""
    fresh = functools.partial(_fresh, chosen, program.model, program.update)
    state = jax.jit(fresh, out_shardings=program.shardings)(_seed(chosen.config))
    if start.params is None:
        return state
    own = program.roles.of(parameters.merge(state.trainable, state.frozen))
    params = program.roles.spread(parameters.warm_start(own, start.params, start.may_miss), chosen.trainable)
    moving, frozen = parameters.split(params, program.roles.selected(chosen.trainable))
    # Copies: an anchor may hold a leaf that is trained, and a step gives both away.
    place = functools.partial(on_devices, may_alias=False)
    placed = jax.tree.map(place, (moving, frozen), (program.shardings.trainable, program.shardings.frozen))
    return dataclasses.replace(state, trainable=placed[0], frozen=placed[1])


def refuse_dead_head(chosen: Chosen, state: State) -> None:
    """ValueError where the reward head is zero and not trained: every gradient would be 0."""
    moving, frozen = parameters.flat(state.trainable), parameters.flat(state.frozen)
    heads = [path for path in (*moving, *frozen) if re.search(READOUT, path)]
    if chosen.language_model or not heads or any(path in moving for path in heads):
        return
    if not any(np.any(hosts.whole(frozen[path])) for path in heads):
        raise ValueError(
            f"config.trainable is {chosen.config.trainable!r} and leaves out the reward head, which is zero: every gradient "
            "would be 0; add `|^head/` to it, or start from a trained reward model (config.model.init)"
        )


def check(chosen: Chosen, mesh: Mesh, rules: Rules) -> None:
    """ValueError for values that go together with no run on this mesh."""
    config = chosen.config
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise ValueError(f"this is one of {jax.process_count()} processes; set config.hosts.coordinator to auto")
    if config.hosts.coordinator not in ("", "none") and not jax.distributed.is_initialized():
        raise ValueError(
            f"config.hosts.coordinator is {config.hosts.coordinator!r}, but this process has joined no other; call "
            "rmjax.parallel.hosts.join before anything that needs a device (experiments.train does)"
        )
    if config.model.attention == "pallas" and (platform := mesh.devices.flat[0].platform) not in PLATFORMS:
        raise ValueError(
            f"config.model.attention is 'pallas', kernels for TPUs and GPUs, and this run is on {platform}; use 'blockwise': "
            "the same values in as little memory"
        )
    if config.run.compiler_options and mesh.devices.flat[0].platform == jax.default_backend():
        _check_options(compiler_options(config))
    optimizer.parse_rates(config.optimizer.rates)
    _check_schedule(config)
    chosen.check(mesh, rules)
    _check_divisions(chosen, mesh, rules)


def _check_divisions(chosen: Chosen, mesh: Mesh, rules: Rules) -> None:
    config, shapes = chosen.config, chosen.shapes()
    parts = shards(mesh, rules, "rows") * config.optimizer.microbatches
    named = (
        {"data": shapes}
        if not isinstance(shapes, dict)
        else {_SECTION.get(n, f"{n}_data"): s for n, s in shapes.items()}
    )
    for section, shape in named.items():
        for field, divisor, why in (
            ("rows", parts, "mesh.data · mesh.fsdp · microbatches"),
            ("rows", config.data.streams, "data.streams"),
            ("row_tokens", shards(mesh, rules, "tokens"), "mesh.context"),
        ):
            if getattr(shape, field) % divisor:
                remedy = ", or share out tokens: mesh.data=1, mesh.context=-1" if divisor == parts else ""
                raise ValueError(
                    f"config.{section}.{field} is {getattr(shape, field)}; make it a multiple of {why} = {divisor}{remedy}"
                )


_SECTION = {"preference": "data"}
"""Name of a forest → the config section of its sizes, where that is not NAME_data."""


def compiler_options(config: Config) -> dict[str, str]:
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


def flops_per_token(program: Program, state: State, keys: float, head: bool) -> float:
    """Of a training step in which a token attends to `keys` others; embeddings are looked up, not multiplied, unless the
    vocabulary head runs (`head`). Roles beside the main one run forward."""
    config, roles = program.architecture, program.roles
    everything = parameters.flat(roles.of(parameters.merge(state.trainable, state.frozen)))
    used = {p: x for p, x in everything.items() if _multiplied(p, config.tied_embeddings, head)}
    moving = parameters.flat(state.trainable[roles.main] if roles.others else state.trainable)
    sizes: dict[str, Any] = {"layers": config.depth, "attention_width": config.heads * config.head_width, "keys": keys}
    others = len(roles.others) * decoder_flops_per_token(parameters.count(used), backward=False, **sizes)
    return others + decoder_flops_per_token(
        parameters.count(used), trainable=parameters.count({p: x for p, x in used.items() if p in moving}),
        without_gradient=0.0 if any("/embedding/" in p for p in moving) else config.frozen_layers / config.depth, **sizes,
    )  # fmt: skip


def _multiplied(path: str, tied: bool, head: bool) -> bool:
    """Whether a token is multiplied with it: of embedding and vocabulary projection only what gives the logits is."""
    if "/embedding/" in path:
        return head and tied
    return head or not path.startswith("backbone/output/")
