"""Answers of public models as POLAR's data: siblings stand in for two samples of one policy, a judge's verdicts rank the rest.

There is one answer per model and prompt. Two models of nearly the same weights, whose answers share most of their words, are one
writer here, and a negative is by a model that is a sibling of neither. Prompts of Self-Instruct's evaluation set are never
trained on.
"""

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmjax.data.record import Comparison, to_row
from rmjax.data.rows import iterate_rows
from rmjax.files import write_lines

REFERENCE = "gpt4_1106_preview"  # whose answer is the reference of a ranked triple
ANNOTATOR, BASELINE = "alpaca_eval_gpt4", "text_davinci_003_ae1"
NEGATIVES, GROUPS, TRIPLES = 3, 4, 3  # groups of a prompt for pre-training, ranked triples of one for fine-tuning
CERTAIN = 0.25  # the judge's probability from 0 or 1, at most
_log = logging.getLogger(__name__)
_EVALUATED = "selfinstruct"


def write(root: Path, folder: Path) -> list[Comparison]:
    """Writes groups of policies (training, seen and unseen policies) and the test triples; gives the triples to train on."""
    read = _Alpaca(root)
    train = [p for p in read.prompts if not held_out(p, read.prompts)]
    test = [p for p in read.prompts if held_out(p, read.prompts)]
    groups = {
        "train": read.groups(train, unseen=False, each=GROUPS),
        "seen": read.groups(test[::3], unseen=False, each=1),
        "unseen": read.groups(test[::3], unseen=True, each=1),
    }
    for name, found in groups.items():
        write_lines(folder / f"groups_{name}.jsonl", map(to_row, found))
    write_lines(folder / "test.jsonl", map(to_row, read.triples(test, 1)))
    trained = list(read.triples(train, TRIPLES))
    _log.info("alpaca_eval: left out %s", dict(read.skipped))
    return trained


def held_out(prompt_id: str, prompts: Mapping[str, Mapping]) -> bool:
    """Whether a prompt is kept for evaluation: all of Self-Instruct's, and half of the others."""
    return prompts[prompt_id]["dataset"] == _EVALUATED or _number("prompt", prompt_id) % 2 == 0


def _number(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("/".join(parts).encode()).digest()[:4])


def _unseen(model: str) -> bool:
    return _number("model", model) % 3 == 0


class _Alpaca:
    """The files, by prompt."""

    def __init__(self, root: Path):
        self.skipped: Counter[str] = Counter()
        self.prompts = {row["prompt_id"]: row for row in _rows(root / "policies/alpaca_eval_prompts.jsonl.zst")}
        self.outputs: dict[str, dict[str, str]] = defaultdict(dict)
        for row in _rows(root / "policies/alpaca_eval_outputs.jsonl.zst"):
            if row["output"].strip():
                self.outputs[row["prompt_id"]][row["model"]] = row["output"]
            else:
                self.skipped["empty_output"] += 1
        pairs = [(row["model_a"], row["model_b"]) for row in _rows(root / "policies/alpaca_eval_siblings.jsonl.zst")]
        self.pairs = pairs
        self.near: dict[str, set[str]] = defaultdict(set)
        for first, second in pairs:
            self.near[first].add(second)
            self.near[second].add(first)
        self.judged: dict[str, dict[str, float]] = defaultdict(dict)
        for row in _rows(root / "preferences/alpaca_eval_judged.jsonl.zst"):
            if (row["annotator"], row["baseline"]) == (ANNOTATOR, BASELINE):
                self.judged[row["prompt_id"]][row["model"]] = row["p_model"]

    def groups(self, prompts: Sequence[str], unseen: bool, each: int) -> Iterator[Comparison]:
        """A reference, its sibling's answer first, and answers of models that are near neither; all of them unseen, or none."""
        pairs = [pair for pair in self.pairs if all(_unseen(name) == unseen for name in pair)]
        for prompt_id in prompts:
            rng = np.random.default_rng(_number("groups", prompt_id, str(unseen)))
            there = self.outputs[prompt_id]
            for number in rng.permutation(len(pairs))[:each]:
                pair = [pairs[number][i] for i in rng.permutation(2)]
                near = self.near[pair[0]] | self.near[pair[1]]
                others = [name for name in there if name not in near and _unseen(name) == unseen]
                if not set(pair) <= there.keys() or len(others) < NEGATIVES:
                    self.skipped["group_without_answers"] += 1
                    continue
                names = [pair[1], *(others[i] for i in rng.permutation(len(others))[:NEGATIVES])]
                texts = [there[name] for name in names]
                if len({there[pair[0]], *texts}) == 2 + NEGATIVES:
                    yield self._record(
                        f"{prompt_id}/{number}", prompt_id, there[pair[0]], names, texts, [0.0] + [1.0] * NEGATIVES
                    )

    def triples(self, prompts: Sequence[str], each: int) -> Iterator[Comparison]:
        """The reference policy's answer, one that the judge prefers to the baseline's, and one that it does not."""
        for prompt_id in prompts:
            rng = np.random.default_rng(_number("triples", prompt_id))
            there = self.outputs[prompt_id]
            judged = {name: p for name, p in self.judged[prompt_id].items() if name in there and name != REFERENCE}
            better = [name for name, p in judged.items() if p >= 1 - CERTAIN]
            worse = [name for name, p in judged.items() if p <= CERTAIN]
            if REFERENCE not in there or not better or not worse:
                self.skipped["prompt_without_verdicts"] += 1
                continue
            for number in range(each):
                names = [better[rng.integers(len(better))], worse[rng.integers(len(worse))]]
                texts = [there[name] for name in names]
                if len({there[REFERENCE], *texts}) == 3:
                    yield self._record(f"{prompt_id}/t{number}", prompt_id, there[REFERENCE], names, texts, [0.0, 1.0])

    def _record(self, name: str, prompt_id: str, reference: str, names: Any, texts: Any, ranks: Any) -> Comparison:
        row = self.prompts[prompt_id]
        return Comparison(
            row["prompt"], tuple(texts), references=(reference,), ranks=tuple(ranks), policies=tuple(names), id=name,
            category=row["dataset"],
        )  # fmt: skip


def _rows(path: Path) -> Iterator[Mapping]:
    """Raises FileNotFoundError where the set is not there."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; set config.root to the folder of the real sets (docs/data.md)")
    return (row for _, row in iterate_rows(str(path)) if isinstance(row, dict))
