"""Policy gradients on rewarded samples: PPO, GRPO, RLOO, REINFORCE and their kin as parts of one objective.

Formulas and sources: `rmjax.losses.policy`; presets of `config.policy`: `rmjax.losses.policy.presets`. The n samples of a prompt
share its tokens, in the forward and in the backward pass. Samples, rewards and recorded log-probabilities come from a file, or
from the policy itself, round by round (`rmjax.rounds`).
"""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmjax.data import rollouts
from rmjax.data.chat import TemplateError
from rmjax.data.formats import Encoder
from rmjax.data.packing import ForestShape, Tree, arrange_sizes
from rmjax.data.pipeline import Source
from rmjax.data.questions import questions
from rmjax.data.record import Comparison
from rmjax.data.sources import Records, samples
from rmjax.data.turns import refused
from rmjax.losses.direct import predecessors
from rmjax.losses.policy.advantages import gae
from rmjax.losses.policy.kl import kl
from rmjax.losses.policy.objective import Samples, policy_loss, with_critic
from rmjax.losses.policy.parts import Parts, contradiction
from rmjax.losses.policy.sequences import at_last, of_forest, per_token
from rmjax.losses.policy.tokens import TokenStatistics, token_statistics
from rmjax.losses.reduction import total
from rmjax.methods.method import Method, Scene
from rmjax.models.forest import Forest
from rmjax.policy.generator import Generator
from rmjax.policy.sampling import Decoding
from rmjax.rewards.section import RewardSection, of_section, weights_of
from rmjax.roles import Role, Roles
from rmjax.rounds.draw import Drawing, TokenMeasure
from rmjax.rounds.files import RoundFiles
from rmjax.rounds.plan import Plan, Rollouts
from rmjax.rounds.records import OVER_TOKENS, columns, in_loss, in_reward, needed, prepare, reads_old
from rmjax.rounds.source import Rounds
from rmjax.settings import Config
from rmjax.train.objective import Objective, Terms, batch_terms

_log = logging.getLogger(__name__)
REFERENCE, CRITIC = "reference", "critic"
ROLES = Roles("policy", {REFERENCE: Role(anchor=True)})
WITH_CRITIC = Roles("policy", {**ROLES.others, CRITIC: Role("^head/", with_main=True)})


# --- records ------------------------------------------------------------------------------------------------------------


def _records(config: Config) -> Records:
    return samples(config.data, functools.partial(prepare, parts=_parts(config)))


def _encode(config: Config, encoder: Encoder) -> Callable[[Any, int], list[Tree]]:
    parts = _parts(config)

    def trees(c: Comparison, record: int) -> list[Tree]:
        found = rollouts.answers(encoder, c)
        tokens = rollouts.per_token(c, found, (rollouts.MASK, *OVER_TOKENS))
        trained = tokens.get("trained_RT", [np.ones(len(ids), np.float32) for ids in found.outputs])
        if parts.truncated == "mask":
            trained = [mask * (not cut) for mask, cut in zip(trained, c.columns["truncated"], strict=True)]
        numbers = {f"{name}_RGN": c.columns[field] for field, name in _PER_ANSWER.items() if field in c.columns}
        return rollouts.trees(
            found, {**tokens, "trained_RT": trained}, numbers, encoder.row_tokens, config.data.candidates,
            record=record, weight=c.weight, type=-1 if c.type is None else c.type,
        )  # fmt: skip

    return trees


_PER_ANSWER = {"rewards": "reward", "advantages": "advantage"}


# --- objective -----------------------------------------------------------------------------------------------------------


def statistics(model: Any, params: Any, forest: Forest, parts: Parts, rng: Any = None) -> TokenStatistics:
    """log π of every token given those before it on its path, at the samples' temperature, and the entropy there, [R, T]; what
    stands where a path begins and in padding means nothing."""
    columns_RT = predecessors(forest.group_RT, forest.branch_RT, forest.shape[2])
    rngs = {} if rng is None else {"dropout": rng}
    hidden_RTD, table_VD = model.apply(
        {"params": params}, forest, jnp.maximum(columns_RT, 0), rngs=rngs, method="projection_at"
    )
    softcap = getattr(
        getattr(model, "config", None), "logit_softcap", 0.0
    )  # a model without a decoder's config has none
    return token_statistics(hidden_RTD, table_VD, forest.tokens_RT, parts.temperature, parts.vocabulary_chunk, softcap)


def critic_values(model: Any, params: Any, forest: Forest, rng: Any = None) -> jax.Array:
    """A critic's value of the text before every token, [R, T]; what stands where a path begins and in padding means nothing."""
    columns_RT = jnp.maximum(predecessors(forest.group_RT, forest.branch_RT, forest.shape[2]), 0)
    rngs = {} if rng is None else {"dropout": rng}
    found: jax.Array = model.apply({"params": params}, forest, columns_RT, rngs=rngs, method="values_at")
    return found


def policy_gradient(model: Any, parts: Parts) -> Objective:
    """`policy_loss` on a forest of samples."""
    bare = getattr(model, "bare", model)  # what records the policy's calls is not to see the reference's

    def reference(params: Any, forest: Forest) -> jax.Array | None:
        if not in_loss(parts):
            return None
        if parts.reference == "recorded":
            return forest.reference_RT
        found = statistics(bare, ROLES.of(params, REFERENCE), forest, parts).log_probability_RT
        return jax.lax.stop_gradient(found)

    def objective(params: Any, forest: Forest, rng: jax.Array) -> Terms:
        policy = statistics(model, ROLES.of(params), forest, parts, rng)
        sequence_RT, trained_RT, weight_RS = layout(forest)
        old = {"behavior": "behavior_RT", "trainer": "old_RT"}[parts.old] if reads_old(parts) else ""
        samples = Samples(
            log_probability_RT=policy.log_probability_RT, entropy_RT=policy.entropy_RT,
            advantage_RT=advantages(parts, forest, trained_RT, sequence_RT), trained_RT=trained_RT,
            sequence_RT=sequence_RT, weight_RS=weight_RS, old_RT=forest.columns.get(old),
            behavior_RT=forest.columns.get("behavior_RT"), reference_RT=reference(params, forest),
        )  # fmt: skip
        terms = policy_loss(parts, samples)
        if parts.values == "critic":
            values_RT = critic_values(model, WITH_CRITIC.of(params, CRITIC), forest, rng)
            terms = with_critic(terms, parts, samples, values_RT, forest.value_RT)
        return terms | _measures(forest, trained_RT) | batch_terms(forest)

    return objective


def layout(forest: Forest) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(sequence_RT, trained_RT, weight_RS) of a forest of samples: a sequence for each branch. A token that nothing stands
    before, the first one without a prompt, is not trained."""
    R, _, G, N = forest.shape
    sequence_RT = of_forest(forest.group_RT, forest.branch_RT, N)
    before_RT = predecessors(forest.group_RT, forest.branch_RT, G)
    trained_RT = (forest.trained_RT > 0) & (before_RT >= 0) & (sequence_RT >= 0)
    weight_RS = (forest.weight_RG[..., None] * (forest.readout_RGN >= 0)).reshape(R, G * N)
    return sequence_RT, trained_RT, weight_RS


def advantages(parts: Parts, forest: Forest, trained_RT: jax.Array, sequence_RT: jax.Array) -> jax.Array:
    """Of every token: its sequence's, or by GAE from rewards and a critic's values."""
    R, _, G, N = forest.shape
    if parts.advantage != "gae":
        return per_token(forest.advantage_RGN.reshape(R, G * N), sequence_RT)
    rewards_RT = at_last(forest.reward_RGN.reshape(R, G * N), trained_RT, sequence_RT)
    if in_reward(parts):
        rewards_RT = rewards_RT - parts.kl_weight * kl(forest.behavior_RT, forest.reference_RT, parts.kl)
    return gae(rewards_RT, forest.value_RT, trained_RT, sequence_RT, parts.gamma, parts.lam)


def _measures(forest: Forest, trained_RT: jax.Array) -> Terms:
    """Of the samples: their mean reward, and trained tokens of each."""
    present_RGN = forest.readout_RGN >= 0
    tokens = jnp.sum(trained_RT).astype(jnp.float32)
    found: Terms = {"answer_tokens": (tokens, jnp.sum(present_RGN).astype(jnp.float32))}
    if "reward_RGN" in forest.columns:
        found["reward"] = total(forest.reward_RGN, present_RGN)
    return found


# --- rounds -------------------------------------------------------------------------------------------------------------


def _own_source(config: Config, scene: Scene) -> Source | None:
    """Rounds, where `data.kind` is rollouts."""
    if config.data.kind != "rollouts":
        return None
    parts, section, data = _parts(config), _rollouts(config), config.data
    encoder = scene.encoder(data.row_tokens)
    able = _that_fit(config, encoder, scene.records)
    plan = Plan(len(able), section.prompts, section.updates, section.passes, config.run.seed, data.epochs)
    longest = max(len(encoder.begun(scene.records.source[i].prompt)) for i in able)
    _check_rows(config, longest)
    _log.info(plan.said(section.samples))
    shape = ForestShape(data.rows, data.row_tokens, data.groups, data.candidates, columns(parts))
    drawing = Drawing(
        functools.partial(_generator, config, scene), of_section(config.sections["reward"], scene.scorer),
        section.samples, _token_measures(config, scene), functools.partial(_bare_trees, config, encoder), shape, scene.rows,
    )  # fmt: skip
    files = RoundFiles(scene.folder / "rollouts", _drawn_with(config)) if scene.folder else None
    return Rounds(
        plan, [scene.records.source[i] for i in able], able, drawing, functools.partial(prepare, parts=parts),
        _encode(config, encoder), shape, scene.rows, files, section.refresh, REFERENCE, ROLES.main,
    )  # fmt: skip


def _that_fit(config: Config, encoder: Encoder, records: Records) -> list[int]:
    """Indices of the prompts that leave room for an answer in a row."""
    section, room = _rollouts(config), config.data.row_tokens
    long = [_prompt_tokens(encoder, c) + section.max_new_tokens > room for c in records.source]
    if any(long):
        _log.warning(
            "%s: left out %d of %d prompts, with which an answer of %d tokens may exceed a row of %d (data.row_tokens)",
            config.data.path, sum(long), len(long), section.max_new_tokens, room,
        )  # fmt: skip
    return [i for i, too_long in enumerate(long) if not too_long]


def _prompt_tokens(encoder: Encoder, c: Comparison) -> int:
    """RecordError where the template refuses the prompt."""
    try:
        return len(encoder.begun(c.prompt))
    except TemplateError as error:
        raise refused(c, error) from error


def _check_rows(config: Config, longest: int) -> None:
    """ValueError where an update's answers, all of the longest, would take more rows than `data.rows`: it says how much memory a
    step may need, and is better said now than after hours."""
    section, data = _rollouts(config), config.data
    each = min(data.candidates, (data.row_tokens - longest) // section.max_new_tokens)
    sizes = [min(each, section.samples - n) for n in range(0, section.samples, each)]
    prompts = -(-section.prompts // section.updates)
    trees = [longest + n * section.max_new_tokens for n in sizes] * prompts
    needed = len(arrange_sizes(trees, data.row_tokens, data.groups))
    if needed > data.rows:
        raise ValueError(
            f"config.data.rows is {data.rows}, and an update's {prompts} prompts × {section.samples} answers of up to "
            f"{section.max_new_tokens} tokens may take {needed} rows of {data.row_tokens}; raise it (optimizer.microbatches runs "
            "them in parts), or lower rollouts.prompts, samples or max_new_tokens, or raise rollouts.updates"
        )


def _generator(config: Config, scene: Scene, params: Any) -> Generator:
    section = _rollouts(config)
    return scene.generator(params, Decoding(_parts(config).temperature), section.max_new_tokens, section.stop)


def _token_measures(config: Config, scene: Scene) -> dict[str, TokenMeasure]:
    """Column → what is recorded there when a round is drawn, since the policy is another one later."""
    parts, wanted = _parts(config), needed(_parts(config))
    roles = {"old_log_probs": ROLES.main, "reference_log_probs": REFERENCE}
    if _rollouts(config).measure_kl:
        wanted |= {"reference_log_probs": "rollouts.measure_kl"}

    def of(role: str) -> TokenMeasure:
        return scene.compiled(
            lambda params, forest: statistics(scene.model, ROLES.of(params, role), forest, parts).log_probability_RT
        )

    found = {field: of(role) for field, role in roles.items() if field in wanted}
    if parts.values == "critic":
        found["values"] = scene.compiled(
            lambda params, forest: critic_values(scene.model, WITH_CRITIC.of(params, CRITIC), forest)
        )
    return found


def _bare_trees(config: Config, encoder: Encoder, c: Comparison) -> list[Tree]:
    """Of its tokens alone."""
    found = rollouts.answers(encoder, c)
    return rollouts.trees(found, {}, {}, encoder.row_tokens, config.data.candidates)


def _drawn_with(config: Config) -> dict[str, Any]:
    """What of a config a round's answers and rewards depend on."""
    sections = {name: dataclasses.asdict(config.sections[name]) for name in ("policy", "rollouts", "reward")}
    return sections | {"data": config.data.path, "format": dataclasses.asdict(config.format)}


# --- the method ---------------------------------------------------------------------------------------------------------


def _parts(config: Config) -> Parts:
    found: Parts = config.sections["policy"]
    return found


def _rollouts(config: Config) -> Rollouts:
    found: Rollouts = config.sections["rollouts"]
    return found


def _check(config: Config, mesh: Any, rules: Any) -> None:
    del mesh, rules
    if config.format.kind == "polar":
        raise ValueError("config.format.kind is 'polar', which a policy does not write in; choose chat or plain")
    if said := contradiction(_parts(config)):
        raise ValueError(said)
    if config.data.kind == "rollouts":
        _check_rollouts(config)


def _check_rollouts(config: Config) -> None:
    parts, section = _parts(config), _rollouts(config)
    weights_of(config.sections["reward"])
    for wrong, said in (
        (jax.process_count() > 1, "config.data.kind is 'rollouts', which needs one process; use a mesh of its devices"),
        (
            parts.advantage == "given",
            "config.policy.advantage is 'given', which no round records; make it group or gae",
        ),
        (
            parts.advantage == "gae" and parts.values == "recorded",
            "config.policy.values is 'recorded', and a round records those of a critic alone; make it critic",
        ),
        (
            section.samples == 1 and parts.advantage == "group" and parts.baseline != "none",
            f"config.rollouts.samples is 1, and policy.baseline={parts.baseline} is made of a prompt's others; make it 2 or more",
        ),
        (
            section.refresh and parts.kl_weight > 0 and parts.reference == "role",
            f"config.rollouts.refresh is {section.refresh}, and policy.reference=role stays the policy of the start; set "
            "policy.reference=recorded",
        ),
        (
            bool(config.sections["adapter"].kind) and config.sections["adapter"].dropout > 0,
            "config.adapter.dropout is above 0, which the sampler does not have; make it 0",
        ),
    ):
        if wrong:
            raise ValueError(said)


METHOD = Method(
    "policy_gradient",
    sections={"policy": Parts, "rollouts": Rollouts, "reward": RewardSection, "gold": RewardSection},
    active=lambda config: config.objective == "policy_gradient",
    check=_check,
    kinds={"samples": _records, "rollouts": lambda config: questions(config.data, _rollouts(config).categories)},
    data=("samples", "rollouts"),
    language_model=True,
    columns=lambda config: columns(_parts(config)),
    encode=_encode,
    roles=lambda config: WITH_CRITIC if _parts(config).values == "critic" else ROLES,
    objective=lambda config, model: policy_gradient(model, _parts(config)),
    own_source=_own_source,
    example={
        "objective": "policy_gradient", "format.kind": "plain", "data.kind": "samples", "policy.old": "current",
        "policy.kl_weight": 0.1,
    },
)  # fmt: skip
