"""Decoding with slots: rows that draw one sample after the other, in groups that share a prompt.

A group holds a prompt's keys and values once, and W rows draw its N samples: a row whose sample ended takes the group's next one
at once, on the device. A group that has none left waits for `admit`, which gives it another prompt. Columns of the rows' own
past are a ring: all rows write column (steps so far) mod M, and a row sees as many columns back as its sample has tokens.

Axis letters as in `policy.sampling`; G groups, W rows a group, R = G · W, N samples a prompt, M new tokens at most, C columns of
prompts.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from rmjax.models.transformer import Past, Transformer, TransformerConfig
from rmjax.parallel.mesh import RULES, Rules, shards
from rmjax.policy.sampling import COLUMNS, Decoding, advance, draw, read, rules, widen, write

Rule = Callable[[Float[Array, "R V"], Int[Array, "R M"], Int[Array, "R"]], Float[Array, "R V"]]
"""(next-token logits; the sample's tokens, of which those from its length on mean nothing; its length) → logits, −inf for what
may not be drawn. It is traced; rows do not know of each other."""
TRACED: Counter["Program"] = Counter()
"""Programs that were compiled, by what they were compiled for."""


@dataclasses.dataclass(frozen=True)
class Program:
    """What decoding is compiled for, beside shapes."""

    config: TransformerConfig
    decoding: Decoding
    max_new_tokens: int  # M
    stop: tuple[int, ...]  # tokens that end a sample
    rule: Rule | None = None
    mesh: Mesh | None = None
    rules: Rules = RULES


class Slots(NamedTuple):
    """What decoding remembers."""

    shared: Past  # of prompts, [L, G, …, C, …]
    valid_GC: Bool[Array, "G C"]
    length_G: Int[Array, "G"]  # tokens of the prompt
    first_GV: Float[Array, "G V"]  # logits of a sample's first token
    keys_GNK: Array  # each sample's random key, as data
    wanted_G: Int[Array, "G"]  # samples, up to N
    begun_G: Int[Array, "G"]  # of them
    own: Past  # of samples, [L, R, …, M, …]
    logits_RV: Float[Array, "R V"]
    sample_R: Int[Array, "R"]  # a row's sample, −1 = none
    tokens_R: Int[Array, "R"]  # that it has
    step: Int[Array, ""]
    ids_GNM: Int[Array, "G N M"]
    log_probs_GNM: Float[Array, "G N M"]
    count_GN: Int[Array, "G N"]  # tokens of a sample that ended, the last one included

    @property
    def idle_G(self) -> Bool[Array, "G"]:
        """Groups that have drawn all of their samples."""
        G = self.wanted_G.shape[0]
        return jnp.all(self.sample_R.reshape(G, -1) < 0, axis=1)


@functools.partial(jax.jit, static_argnames=("program", "groups", "rows", "columns", "samples"))
def empty(params: Any, *, program: Program, groups: int, rows: int, columns: int, samples: int) -> Slots:
    """Slots of which none is in use."""
    TRACED[program] += 1
    G, R, N, M, V = groups, groups * rows, samples, program.max_new_tokens, program.config.vocab_size
    one = jnp.zeros((1, 1), jnp.int32)
    _, past = read(Transformer(program.config), params, one, one > 0, None, one[:, :0] > 0)

    def room(name: str, x: Array, rows: int, columns: int) -> Array:
        shape = [x.shape[0], rows, *x.shape[2:]]
        shape[COLUMNS[name]] = columns
        return jnp.zeros(shape, x.dtype)

    integers = functools.partial(jnp.zeros, dtype=jnp.int32)
    made = Slots(
        shared={name: room(name, x, G, columns) for name, x in past.items()}, valid_GC=jnp.zeros((G, columns), bool),
        length_G=integers(G), first_GV=jnp.zeros((G, V)), keys_GNK=jnp.zeros((G, N, 2), jnp.uint32), wanted_G=integers(G),
        begun_G=integers(G), own={name: room(name, x, R, M) for name, x in past.items()}, logits_RV=jnp.zeros((R, V)),
        sample_R=integers(R) - 1, tokens_R=integers(R), step=integers(()), ids_GNM=integers((G, N, M)),
        log_probs_GNM=jnp.zeros((G, N, M)), count_GN=integers((G, N)),
    )  # fmt: skip
    return _placed(made, program)


@functools.partial(jax.jit, static_argnames="program")
def prefix(params: Any, ids_1P: Array, *, program: Program) -> Past:
    """Keys and values of what all prompts begin with."""
    TRACED[program] += 1
    with nn.logical_axis_rules(program.rules):
        return read(Transformer(program.config), params, ids_1P, ids_1P >= 0, None, ids_1P[:, :0] > 0)[1]


@functools.partial(jax.jit, static_argnames="program", donate_argnames="slots")
def admit(
    params: Any,
    slots: Slots,
    before: Past | None,
    prompts: tuple[Array, Array],
    group_B: Int[Array, "B"],
    keys_BNK: Array,
    wanted_B: Int[Array, "B"],
    *,
    program: Program,
) -> Slots:
    """Gives groups their prompts: `prompts` (ids_BT, valid_BT) as `left_pad` makes them, behind `before`; what belongs to no
    group (one from G on) is dropped."""
    TRACED[program] += 1
    (ids_BT, valid_BT), B, G = prompts, group_B.shape[0], slots.wanted_G.shape[0]
    past = None if before is None else {name: jnp.repeat(x, B, axis=1) for name, x in before.items()}
    known_BC = jnp.ones((B, 0 if past is None else past["v"].shape[COLUMNS["v"]]), bool)
    with nn.logical_axis_rules(program.rules):
        logits_BV, new = read(Transformer(program.config), params, ids_BT, valid_BT, past, known_BC)
    if past is not None:
        new = {name: jnp.concatenate([past[name], x], COLUMNS[name]) for name, x in new.items()}
    known_BC = jnp.concatenate([known_BC, valid_BT], axis=1)
    rest = slots.valid_GC.shape[1] - known_BC.shape[1]

    def put(of_groups: Array, found: Array) -> Array:
        return of_groups.at[group_B].set(found, mode="drop")

    W = slots.sample_R.shape[0] // G
    start_BW = jnp.where(jnp.arange(W) < wanted_B[:, None], jnp.arange(W), -1)
    admitted = slots._replace(
        shared={n: slots.shared[n].at[:, group_B].set(x, mode="drop") for n, x in widen(new, rest).items()},
        valid_GC=put(slots.valid_GC, jnp.pad(known_BC, ((0, 0), (0, rest)))),
        length_G=put(slots.length_G, known_BC.sum(1, dtype=jnp.int32)), first_GV=put(slots.first_GV, logits_BV),
        keys_GNK=put(slots.keys_GNK, keys_BNK), wanted_G=put(slots.wanted_G, wanted_B),
        begun_G=put(slots.begun_G, jnp.minimum(W, wanted_B)),
        sample_R=put(slots.sample_R.reshape(G, W), start_BW).reshape(-1),
        tokens_R=put(slots.tokens_R.reshape(G, W), jnp.zeros_like(start_BW)).reshape(-1),
    )  # fmt: skip
    return _placed(admitted, program)


@functools.partial(jax.jit, static_argnames="program", donate_argnames="slots")
def decode(
    params: Any, slots: Slots, ended_R: Bool[Array, "R"], steps: Array, leave: Array, *, program: Program
) -> Slots:
    """Draws tokens until `steps` of each row, until `leave` groups are idle, or all of them.

    Args:
      ended_R: rows whose sample is to end as it stands.
    """
    TRACED[program] += 1
    model, last = Transformer(program.config), slots.step + steps

    def going(slots: Slots) -> Array:
        idle_G = slots.idle_G
        return (slots.step < last) & (jnp.sum(idle_G) < leave) & ~jnp.all(idle_G)

    with nn.logical_axis_rules(program.rules):
        slots = jax.lax.while_loop(going, lambda now: _step(model, params, now, program), _next(slots, ended_R))
    return _placed(slots, program)


def _step(model: Transformer, params: Any, slots: Slots, program: Program) -> Slots:
    """A token more in every row."""
    M, N, G = program.max_new_tokens, slots.count_GN.shape[1], slots.wanted_G.shape[0]
    t_R, sample_R, W = slots.tokens_R, slots.sample_R, slots.sample_R.shape[0] // slots.wanted_G.shape[0]
    of_group = functools.partial(jnp.repeat, repeats=W, axis=0)
    group_R = of_group(jnp.arange(G))
    logits_RV = jnp.where((t_R == 0)[:, None], of_group(slots.first_GV), slots.logits_RV)
    token_R, log_prob_R = _drawn(logits_RV, slots, group_R, program)
    at = (group_R, jnp.where(sample_R < 0, N, sample_R), t_R)
    age_M = (slots.step - 1 - jnp.arange(M)) % M
    seen_RC = jnp.concatenate([of_group(slots.valid_GC), age_M < t_R[:, None]], axis=1)
    past = slots.own | {f"shared_{name}": x for name, x in slots.shared.items()}
    logits_RV, new = advance(model, params, token_R, of_group(slots.length_G) + t_R, seen_RC, past)
    stopped_R = jnp.isin(token_R, jnp.array(program.stop, jnp.int32)) | (t_R + 1 == M)
    slots = slots._replace(
        own=write(slots.own, new, slots.step % M), logits_RV=logits_RV, tokens_R=t_R + 1, step=slots.step + 1,
        ids_GNM=slots.ids_GNM.at[at].set(token_R, mode="drop"),
        log_probs_GNM=slots.log_probs_GNM.at[at].set(log_prob_R, mode="drop"),
    )  # fmt: skip
    return _next(slots, stopped_R)


def _drawn(
    logits_RV: Array, slots: Slots, group_R: Array, program: Program
) -> tuple[Int[Array, "R"], Float[Array, "R"]]:
    """A token a row, and its log-probability at the temperature among the whole vocabulary; at 1 where decoding is greedy."""
    R, decoding, sample_R = logits_RV.shape[0], program.decoding, jnp.maximum(slots.sample_R, 0)
    if program.rule is not None:
        logits_RV = program.rule(logits_RV, slots.ids_GNM[group_R, sample_R], slots.tokens_R)
    keys_R = jax.random.wrap_key_data(slots.keys_GNK[group_R, sample_R])
    keys_R = jax.vmap(jax.random.fold_in)(keys_R, slots.tokens_R)
    columns, candidates = rules([decoding], program.config.vocab_size)
    whole = decoding.top_k == 0 and decoding.top_p == 1 and decoding.temperature > 0
    of_rows = {name: jnp.broadcast_to(x, R) for name, x in columns.items()}
    token_R = draw(logits_RV, keys_R, of_rows, 0 if whole else candidates)
    chosen_R = jnp.take_along_axis(logits_RV, token_R[:, None], axis=1)[:, 0]
    temperature = decoding.temperature or 1.0
    return token_R, chosen_R / temperature - jax.nn.logsumexp(logits_RV / temperature, axis=1)


def _next(slots: Slots, ended_R: Bool[Array, "R"]) -> Slots:
    """Rows whose sample has ended take their group's next one, if there is any."""
    G, N = slots.count_GN.shape
    ended_GW = (ended_R & (slots.sample_R >= 0)).reshape(G, -1)
    sample_GW, tokens_GW = slots.sample_R.reshape(G, -1), slots.tokens_R.reshape(G, -1)
    at = (jnp.arange(G)[:, None], jnp.where(ended_GW, sample_GW, N))
    next_GW = slots.begun_G[:, None] + jnp.cumsum(ended_GW, axis=1) - 1
    next_GW = jnp.where(next_GW < slots.wanted_G[:, None], next_GW, -1)
    return slots._replace(
        count_GN=slots.count_GN.at[at].set(tokens_GW, mode="drop"),
        begun_G=jnp.minimum(slots.begun_G + ended_GW.sum(1, dtype=jnp.int32), slots.wanted_G),
        sample_R=jnp.where(ended_GW, next_GW, sample_GW).reshape(-1),
        tokens_R=jnp.where(ended_GW, 0, tokens_GW).reshape(-1),
    )


def _placed(slots: Slots, program: Program) -> Slots:
    """Groups and rows over the mesh as a batch's rows are, key-value heads as the kernels that make them."""
    if program.mesh is None:
        return slots
    mesh, table = program.mesh, dict(program.rules)
    cut = program.config.kv_heads % shards(mesh, program.rules, "kv_heads") == 0

    def spec(path: Any, x: Array) -> PartitionSpec:
        if x.ndim == 0:
            return PartitionSpec()
        if path[0].name not in ("shared", "own"):
            return PartitionSpec(table["rows"])
        return PartitionSpec(None, table["rows"], *([table["kv_heads"]] if cut and x.ndim > 3 else []))

    return jax.tree_util.tree_map_with_path(
        lambda path, x: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(path, x))), slots
    )
