"""An evaluation of what a policy writes: its answers to held-out prompts, with the reward that it learns from and a gold one."""

import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rmjax.data.questions import questions
from rmjax.data.record import Comparison, to_row
from rmjax.files import write_lines
from rmjax.methods.method import Scene
from rmjax.models.parameters import merge
from rmjax.policy.sampling import Decoding
from rmjax.rewards.reward import Failure, Reward, Values
from rmjax.rewards.section import of_section
from rmjax.settings import AnswersEval, Config

_log = logging.getLogger(__name__)
REWARD, GOLD = "reward", "gold"
Evaluate = Callable[[Any], Mapping[str, float]]


def evaluations(config: Config, scene: Scene) -> dict[str, tuple[int, Evaluate]]:
    """Name → (every so many steps, training state → numbers), of the entries of `config.evals` of kind answers.

    Raises:
      OSError, RecordError, ValueError: prompts or rewards that cannot be used.
    """
    entries = {name: entry for name, entry in config.evals.items() if isinstance(entry, AnswersEval)}
    if not entries:
        return {}
    rewards = {
        name: of_section(config.sections[name], scene.scorer, f"config.{name}")
        for name in (REWARD, GOLD)
        if config.sections[name].parts
    }
    if not rewards:
        raise ValueError(
            f"config.evals.{next(iter(entries))} is of kind 'answers', and neither config.gold.parts nor config.reward.parts "
            "names a reward; name one"
        )
    return {
        name: (entry.every, functools.partial(_evaluate, name, entry, scene, rewards, _asked(name, entry)))
        for name, entry in entries.items()
    }


def _asked(name: str, entry: AnswersEval) -> list[Comparison]:
    found = list(questions(entry, entry.categories, f"evals.{name}").each())
    return found[: entry.limit or len(found)]


def _evaluate(
    name: str, entry: AnswersEval, scene: Scene, rewards: Mapping[str, Reward], asked: Sequence[Comparison], state: Any
) -> dict[str, float]:
    params = merge(state.trainable, state.frozen)
    generator = scene.generator(params, Decoding(entry.temperature), entry.max_new_tokens, entry.stop)
    records, dropped = generator(asked, entry.samples, seed=0)
    values = {of: reward(records) for of, reward in rewards.items()} if records else {}
    if scene.folder:
        path = scene.folder / "answers" / f"{name}-{int(state.step):07}.jsonl"
        path.parent.mkdir(exist_ok=True)
        write_lines(path, (_row(c, i, values) for i, c in enumerate(records)))
    return numbers(name, records, values, dropped)


def numbers(
    name: str, records: Sequence[Comparison], values: Mapping[str, Values], dropped: Counter[str]
) -> dict[str, float]:
    """Means over the answers that every reward could be had of: `reward`, `gold`, and where there are both `agreement`, their
    correlation; `answer_tokens`, `truncated`, `empty` over all answers; and how many were `answers`, and `dropped`."""
    flat = {of: [value for each in found for value in each] for of, found in values.items()}
    failed = Counter(value.reason for found in flat.values() for value in found if isinstance(value, Failure))
    if dropped + failed:
        _log.warning("evaluation %s: dropped %s", name, dict(dropped + failed))
    rows = [row for row in zip(*flat.values(), strict=True) if not any(isinstance(value, Failure) for value in row)]
    whole = sum(len(c.outputs) for c in records)
    found = {"answers": float(len(rows)), "dropped": float(sum(dropped.values()) + whole - len(rows))}
    if rows:
        columns = np.asarray(rows, np.float64).T
        found |= {of: float(column.mean()) for of, column in zip(flat, columns, strict=True)}
        if len(columns) == 2 and len(rows) > 1 and columns.std(axis=1).all():
            found["agreement"] = float(np.asarray(np.corrcoef(columns))[0, 1])
    if whole:
        tokens = [len(ids) for c in records for ids in c.columns["token_ids"]]
        found |= {
            "answer_tokens": float(np.mean(tokens)),
            "truncated": float(np.mean([cut for c in records for cut in c.columns["truncated"]])),
            "empty": float(np.mean([not output.strip() for c in records for output in c.outputs])),
        }
    return found


def _row(c: Comparison, i: int, values: Mapping[str, Values]) -> dict[str, Any]:
    bare = dataclasses.replace(c, columns={})
    said = {of: [None if isinstance(v, Failure) else v for v in found[i]] for of, found in values.items()}
    return to_row(bare) | said
