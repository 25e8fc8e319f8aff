"""Groups of samples of one policy, unlabeled: what a method ascends on, and sets to look at the spread of rewards on.

A group is a `Comparison` without order, from a file of comparisons with `outputs` or from a policy pool.
"""

import dataclasses
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from rmjax.data.columns import gathered
from rmjax.data.pool import PoolError
from rmjax.data.record import Comparison, RecordError, select
from rmjax.data.samplerows import Sample

_log = logging.getLogger(__name__)
_OF_ORDER = ("pair_target", "pair_weight", "pair_margin")


def from_pool(
    samples: Iterable[Sample],
    policies: str = "",
    *,
    mixed: bool = False,
    wrapper: str = "sft",
    dropped: Counter[str] | None = None,
) -> list[Comparison]:
    """A pool's samples → a group per prompt and policy, with all samples that there are.

    Args:
      policies: regular expression that a policy's name must match in full; empty = all.
      mixed: puts all these policies' samples for a prompt into one group: for pools with few samples of each policy.
      wrapper: POLAR wrapper of the records.
      dropped: gets the number of rows without text (`empty_output`).

    Raises:
      PoolError: there is no sample, no policy has such a name, or none of them wrote anything.
    """
    groups: dict[tuple[str, str], list[Sample]] = {}
    names: set[str] = set()
    wanted, empty = _pattern(policies), 0
    for sample in samples:
        names.add(sample.policy)
        if not wanted.fullmatch(sample.policy):
            continue
        if not sample.output.strip():
            empty += 1
        else:
            groups.setdefault((sample.prompt_id, "" if mixed else sample.policy), []).append(sample)
    if dropped is not None:
        dropped["empty_output"] += empty
    elif empty:
        _log.warning("groups of samples: left out %d rows without text", empty)
    if not names:
        raise PoolError(
            "there is no row of these policies and prompts; see `policy_split` and `prompt_split` of the rows"
        )
    if not any(map(wanted.fullmatch, names)):
        raise PoolError(f"no policy's name matches {policies!r}; there are {', '.join(sorted(names))}")
    if not groups:
        raise PoolError(f"all answers of the policies that match {policies!r} are empty")
    return [_group(key, members, wrapper) for key, members in groups.items()]


def _pattern(policies: str) -> re.Pattern[str]:
    try:
        return re.compile(policies or ".*")
    except re.error as error:
        raise PoolError(f"policies is {policies!r}, not a regular expression: {error}") from error


def _group(key: tuple[str, str], members: Sequence[Sample], wrapper: str) -> Comparison:
    return Comparison(
        prompt=members[0].prompt,
        outputs=tuple(sample.output for sample in members),
        policies=tuple(sample.policy for sample in members),
        category=members[0].category or None,
        wrapper=wrapper,
        id="/".join(filter(None, key)),
        place=members[0].place,
        columns=gathered([sample.columns for sample in members], members[0].place),
    )


def unlabeled(c: Comparison) -> Comparison:
    """The record without all that is known of its answers' order."""
    kept = {name: value for name, value in c.columns.items() if name not in _OF_ORDER}
    return dataclasses.replace(c, ranks=None, scores=None, votes=None, weight=1.0, margin=0.0, columns=kept)


def take(c: Comparison, rng: np.random.Generator, *, samples: int, references: int = 0) -> Comparison:
    """`samples` of the outputs at random (all where there are fewer), in random order, unlabeled; not all alike where the
    outputs leave a choice.

    With `references` > 0, so many further outputs become references, and the record's own ones, if any, go.
    """
    order = rng.permutation(len(c.outputs))
    while _alike(c, order[references : references + samples]) and _may_differ(c, samples, references):
        order = rng.permutation(len(c.outputs))
    apart, chosen = order[:references], order[references : references + samples]
    return dataclasses.replace(
        select(unlabeled(c), chosen.tolist()),
        references=tuple(c.outputs[i] for i in apart) if references else c.references,
    )


def _alike(c: Comparison, chosen: np.ndarray) -> bool:
    return len({c.outputs[i] for i in chosen}) < 2


def _may_differ(c: Comparison, samples: int, references: int) -> bool:
    return min(samples, len(c.outputs) - references) > 1 and len(set(c.outputs)) > 1


def telling_apart(
    groups: Sequence[Comparison], references: int = 0, dropped: Counter[str] | None = None
) -> list[Comparison]:
    """The groups with at least two different answers besides `references`; the others are counted in `dropped`, or else in the
    log.

    Raises:
      ValueError: there is none.
    """
    left_out: Counter[str] = Counter()
    kept = []
    for c in groups:
        if len(c.outputs) - references < 2:
            left_out["fewer than two answers"] += 1
        elif len(set(c.outputs)) == 1:
            left_out["all answers identical"] += 1
        else:
            kept.append(c)
    if dropped is not None:
        dropped.update(left_out)
    elif left_out:
        _log.warning("groups of samples: left out %s of %d", dict(left_out), len(groups))
    if not kept:
        raise ValueError(
            f"no group of samples tells anything apart ({dict(left_out)}); give at least {2 + references} answers to a "
            "prompt, two of them different"
        )
    return kept


def require_several(c: Comparison) -> Comparison:
    """The record; RecordError where it has a single answer."""
    if len(c.outputs) < 2:
        raise RecordError(c.place, "outputs", "only one answer", "give two or more: their difference is what counts")
    return c


Form = tuple[bool, str]
"""(has a reference, wrapper): what makes the rewards of two records comparable."""


def form(c: Comparison) -> Form:
    """The record's form."""
    return bool(c.references), c.wrapper


def require_form(c: Comparison, known: set[Form]) -> None:
    """RecordError where the record has another form than the preference records: J would be about another input."""
    if form(c) in known:
        return
    theirs = " or ".join(sorted(_said(each) for each in known))
    raise RecordError(
        c.place or c.id, "", f"a meta record {_said(form(c))} beside preference records {theirs}",
        "give both the same form: reference or none, and the same wrapper",
    )  # fmt: skip


def _said(form: Form) -> str:
    return f"{'with' if form[0] else 'without'} a reference, wrapper {form[1]}"
