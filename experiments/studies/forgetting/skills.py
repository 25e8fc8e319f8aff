"""New tasks and old knowledge as texts for a language model: what the study trains and tests on.

A text is a record of one output with `type` and `id`. Type 0 is a task, type 1 a closed-book question, as in
LoRAMoE's sample data (there `task_type`).
"""

import dataclasses
import hashlib
import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmjax.data.chat import template_text, written
from rmjax.data.formats import Encoder
from rmjax.data.messages import USER, Message
from rmjax.data.record import Comparison
from rmjax.data.rows import iterate_rows
from rmjax.data.sources import choose, located

TASKS, KNOWLEDGE = 0, 1
SOURCES = ("shipped", "loramoe_tiny", "gsm8k_train")
_FILES = {"loramoe_tiny": "papers/loramoe_tiny.jsonl.zst", "gsm8k_train": "math/gsm8k_train.jsonl.zst"}
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Skills:
    """Texts to learn from and to test with; no prompt is in both."""

    tasks: Sequence[Comparison]
    knowledge: Sequence[Comparison]
    tested: Sequence[Comparison]  # tasks

    def mixture(self, tasks: int, share: float, seed: int) -> list[Comparison]:
        """`tasks` tasks, and as much knowledge as makes up `share` of all, some of it several times where it is little.

        Of one seed, the texts of a smaller size are among those of a larger one.

        Raises:
          ValueError: there are fewer tasks, or `share` is not from 0 to below 1.
        """
        if not 0 <= share < 1:
            raise ValueError(f"config.knowledge_share is {share}; it must be at least 0 and below 1")
        if tasks > len(self.tasks):
            raise ValueError(f"config.sizes has {tasks}; there are {len(self.tasks)} tasks to train on")
        rng = np.random.default_rng(seed)
        chosen = [self.tasks[i] for i in rng.permutation(len(self.tasks))[:tasks]]
        order = itertools.cycle(rng.permutation(len(self.knowledge)))
        known = [self.knowledge[next(order)] for _ in range(round(tasks * share / (1 - share)))]
        return chosen + known


def load_skills(source: str, root: str, encoder: Encoder) -> Skills:
    """The tasks of `source`, and knowledge of its own or the shipped questions.

    Texts that are longer than a row of the encoder's are left out, counted and logged.

    Raises:
      FileNotFoundError: the file of a set that does not ship is not under `root`.
    """
    choose("tasks", source, SOURCES)
    facts = [_text(row["prompt"], row["answers"][0], KNOWLEDGE, row["id"]) for row in facts_rows(for_training=True)]
    if source == "shipped":
        train, test = (_rows(f"shipped:skills_{split}") for split in ("train", "test"))
        tasks, tested = ([_text(r["prompt"], r["answer"], TASKS, r["id"]) for r in rows] for rows in (train, test))
    else:
        texts = [_foreign(source, i, row) for i, row in enumerate(_rows(_present(source, root)))]
        facts = [text for text in texts if text.type == KNOWLEDGE] or facts
        new = [text for text in texts if text.type == TASKS]
        tasks, tested = ([text for text in new if _kept_out(text.prompt) == out] for out in (False, True))
    whole = (_fitting(texts, encoder) for texts in (tasks, facts, tested))
    return Skills(*whole)


def files(source: str, root: str) -> tuple[str, ...]:
    """All that tests are made of, as a config names it."""
    tasks = "shipped:skills_test" if source == "shipped" else str(Path(root) / _FILES.get(source, source))
    return ("shipped:facts", "shipped:policy_pool", tasks)


def facts_rows(for_training: bool) -> list[Mapping[str, Any]]:
    """The shipped closed-book questions, {"id", "prompt", "answers"}; half of them are for training, by hash."""
    digests = ((row, hashlib.sha256(row["prompt"].encode()).digest()) for row in _rows("shipped:facts"))
    return [row for row, digest in digests if (digest[0] % 2 == 0) == for_training]


def general_texts(count: int) -> dict[str, list[Comparison]]:
    """Texts that nobody trains on: prompts as people write them, and what the language model itself answers to them.

    Both are of the shipped policy pool, `count` of each at most, always the same ones.
    """
    written: dict[str, Comparison] = {}
    own: dict[str, Comparison] = {}
    for row in _rows("shipped:policy_pool"):
        if row["category"] != row["prompt_id"].rsplit("-", 1)[0]:  # not a reasoning-gym task
            written.setdefault(row["prompt_id"], Comparison("", (row["prompt"],), id=row["prompt_id"]))
            if row["policy"] == "plain" and row["output"].strip():
                own.setdefault(row["prompt_id"], Comparison(row["prompt"], (row["output"],), id=row["prompt_id"]))
    return {"written": _some(written, count), "own": _some(own, count)}


def _some(texts: Mapping[str, Comparison], count: int) -> list[Comparison]:
    return sorted(texts.values(), key=lambda text: hashlib.sha256(text.id.encode()).digest())[:count]


def _rows(path: str) -> list[Mapping[str, Any]]:
    return [row for _, row in iterate_rows(located(path)) if isinstance(row, Mapping)]


def _present(source: str, root: str) -> str:
    path = Path(root) / _FILES[source]
    if not path.is_file():
        raise FileNotFoundError(f"config.tasks is {source}, but {path} is not there; set config.root, or tasks=shipped")
    return str(path)


def _foreign(source: str, number: int, row: Mapping[str, Any]) -> Comparison:
    if source == "gsm8k_train":
        return _text(row["question"], row["solution"], TASKS, row["id"])
    prompt = "\n".join(part for part in (row["instruction"], row["input"]) if part)
    return _text(prompt, row["output"], row["task_type"], f"loramoe{number}")


def _text(prompt: str, output: str, kind: int, name: str) -> Comparison:
    return Comparison(prompt, (output,), type=kind, id=name)


def _kept_out(prompt: str) -> bool:
    # Of the prompt as a chat turn, as the split was first drawn.
    asked = written(template_text("chatml"), [Message(USER, prompt)], asked=True)
    return hashlib.sha256(asked.encode()).digest()[1] % 4 == 0


def _fitting(texts: Sequence[Comparison], encoder: Encoder) -> list[Comparison]:
    sizes = [sum(map(len, encoder.continued(text.prompt, text.outputs[0]))) + 1 for text in texts]
    kept = [text for text, size in zip(texts, sizes, strict=True) if size <= encoder.row_tokens]
    if len(kept) < len(texts):
        _log.warning("%d of %d texts are longer than a row and left out", len(texts) - len(kept), len(texts))
    return kept
