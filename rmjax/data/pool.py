"""Policy pools: who wrote what. POLAR's pre-training groups are drawn from one.

A pool is made of `samplerows.Sample`s.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from rmjax.data.columns import gathered, of_single
from rmjax.data.errors import RecordError
from rmjax.data.record import Comparison, select
from rmjax.data.samplerows import Sample

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class PoolError(ValueError):
    """The pool cannot give what it is asked for."""


class PolicyPool:
    """Samples by prompt and policy; `len` counts the prompts that give a triple, `[i]` is such a prompt's id.

    A prompt needs one policy with two samples and another policy with one. Rows without text are left out and counted
    in `skipped`, as are prompts that cannot give a triple.

    Raises:
      RecordError: rows that contradict each other.
      PoolError: no prompt gives a triple.
    """

    def __init__(self, samples: Iterable[Sample]):
        self.skipped: Counter[str] = Counter()
        self.prompts: dict[str, str] = {}
        self.category: dict[str, str] = {}
        self.type: dict[str, int | None] = {}
        self.kind: dict[str, str] = {}
        self.outputs: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        self.columns: dict[str, dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
        self._shared: dict[str, dict[str, Any]] = {}
        for sample in samples:
            self._add(sample)
        self._ids = [prompt for prompt, by_policy in self.outputs.items() if self._usable(by_policy)]
        self.skipped["prompt_without_triple"] += len(self.outputs) - len(self._ids)
        if not self._ids:
            raise PoolError(
                f"the pool gives no triple: none of its {len(self.outputs)} prompts has two samples of one policy and one of "
                "another; sample each policy twice, or make comparisons of it (docs/data.md, Other layouts)"
            )
        if +self.skipped:
            _log.info("policy pool: left out %s", dict(+self.skipped))

    def _add(self, sample: Sample) -> None:
        prompt_id = sample.prompt_id
        if self.prompts.setdefault(prompt_id, sample.prompt) != sample.prompt:
            problem = f"differs from that of earlier rows with prompt_id `{prompt_id}`"
            raise RecordError(sample.place, "prompt", problem, "give each prompt its own prompt_id")
        if self.type.setdefault(prompt_id, sample.type) != sample.type:
            problem = f"is {sample.type}, and {self.type[prompt_id]} in earlier rows with prompt_id `{prompt_id}`"
            raise RecordError(sample.place, "type", problem, "give a prompt one type")
        if not sample.output.strip():
            self.skipped["empty_output"] += 1
            return
        self._check_shared(sample)
        self.category[prompt_id] = sample.category
        self.kind[sample.policy] = sample.kind
        self.outputs[prompt_id][sample.policy].append(sample.output)
        self.columns[prompt_id][sample.policy].append(sample.columns)

    def _check_shared(self, sample: Sample) -> None:
        """Columns with one value for a group are the prompt's."""
        shared = {name: sample.columns.get(name) for name, column in of_single().items() if column.axes == "RG"}
        before = self._shared.setdefault(sample.prompt_id, shared)
        for name, value in shared.items():
            if value != before[name]:
                problem = f"is {value}, and {before[name]} in earlier rows with prompt_id `{sample.prompt_id}`"
                raise RecordError(sample.place, name, problem, "give all rows of a prompt the same")

    @staticmethod
    def _usable(by_policy: Mapping[str, list[str]]) -> bool:
        return len(by_policy) > 1 and any(len(samples) > 1 for samples in by_policy.values())

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> str:
        return self._ids[index]

    @property
    def policies(self) -> list[str]:
        return sorted({policy for by_policy in self.outputs.values() for policy in by_policy})

    def check_numbers(self, *, negatives: int, references: int) -> None:
        """Logs how many prompts give smaller groups than `draw` is to be asked for; PoolError where all of them do."""
        candidates = {
            "negatives": (negatives, [len(self.outputs[prompt]) - 1 for prompt in self._ids]),
            "references": (references, [max(map(len, self.outputs[prompt].values())) - 1 for prompt in self._ids]),
        }
        for name, (wanted, found) in candidates.items():
            fewer = sum(number < wanted for number in found)
            if fewer == len(found):
                raise PoolError(f"{name} is {wanted}, and no prompt of the pool gives more than {max(found)}; lower it")
            if fewer:
                _log.warning("policy pool: %d of %d prompts give fewer than %d %s", fewer, len(found), wanted, name)

    def draw(
        self,
        prompt_id: str,
        rng: np.random.Generator,
        *,
        negatives: int = 1,
        hard_negatives: float = 0.0,
        references: int = 1,
        wrapper: str = "sft",
    ) -> Comparison:
        """One group by POLAR's pairing rule (appendix D.1.1): two different policies uniformly at random; the first
        gives the reference and the positive, the second the negative.

        Args:
          prompt_id: an element of the pool.
          rng: numpy generator; the draw is a function of it alone.
          negatives: K different other policies, one sample of each (fewer where the prompt has fewer).
          hard_negatives: share of the negatives taken from the first policy's own kind where there are any.
          references: different samples of the first policy besides the positive (fewer where it has fewer).
          wrapper: POLAR wrapper of the record.
        """
        by_policy = self.outputs[prompt_id]
        policy = _pick(rng, [name for name, samples in by_policy.items() if len(samples) > 1])
        order = rng.permutation(len(by_policy[policy]))
        first, *further = order[: 1 + references]
        others = self._others(rng, by_policy, policy, negatives, hard_negatives)
        drawn = [(policy, first)] + [(name, _pick(rng, range(len(by_policy[name])))) for name in others]
        return Comparison(
            prompt=self.prompts[prompt_id],
            outputs=tuple(by_policy[name][i] for name, i in drawn),
            references=tuple(by_policy[policy][i] for i in further),
            ranks=(0.0,) + (1.0,) * len(others),
            policies=(policy, *others),
            category=self.category[prompt_id] or None,
            type=self.type[prompt_id],
            source="policy_pool",
            wrapper=wrapper,
            id=prompt_id,
            columns=gathered([self.columns[prompt_id][name][i] for name, i in drawn], f"prompt_id `{prompt_id}`"),
        )

    def _others(self, rng, by_policy, policy: str, negatives: int, hard_negatives: float) -> list[str]:
        rest = [name for name in by_policy if name != policy]
        rest = [rest[i] for i in rng.permutation(len(rest))]
        siblings = [name for name in rest if self.kind[name] == self.kind[policy]]
        wanted = int(np.sum(rng.random(negatives) < hard_negatives))
        chosen = siblings[:wanted]
        return (chosen + [name for name in rest if name not in chosen])[:negatives]

    def triples(self, seed: int, per_prompt: int, wrapper: str = "sft", negatives: int = 1) -> list[Comparison]:
        """A fixed evaluation set: `per_prompt` draws from each prompt, equal draws once.

        A draw is a reference, a positive and `negatives` negatives (fewer where the prompt has fewer policies): so many
        triples with one reference, which is then run once. A negative of the positive's very text has no right answer: it
        is left out, counted in `skipped` and logged.
        """
        kept, identical = {}, 0
        for i, prompt_id in enumerate(self._ids):
            for rng in np.random.default_rng([seed, i]).spawn(per_prompt):
                drawn = self.draw(prompt_id, rng, wrapper=wrapper, negatives=negatives)
                c = _without_copies(drawn)
                identical += len(drawn.outputs) - len(c.outputs)
                if len(c.outputs) > 1:
                    kept[(c.id, c.references, c.outputs)] = c
        self.skipped["identical_candidates"] += identical
        if identical:
            left = sum(len(c.outputs) - 1 for c in kept.values())
            _log.info("policy pool: left out %d triples with identical candidates, kept %d", identical, left)
        return list(kept.values())


def _without_copies(c: Comparison) -> Comparison:
    """The group without the negatives that repeat the positive."""
    return select(c, [0] + [i for i, text in enumerate(c.outputs) if text != c.outputs[0]])


def _pick(rng: np.random.Generator, choices: Sequence[_T]) -> _T:
    return choices[int(rng.integers(len(choices)))]
