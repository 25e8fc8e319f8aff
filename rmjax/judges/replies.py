"""Replies are kept: a file of JSON lines that a stopped command goes on with, so that nothing is asked twice."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from rmjax.data.messages import as_value
from rmjax.data.record import Comparison
from rmjax.files import refuse_unwritable
from rmjax.locks import locked
from rmjax.policy.generator import Generated, Generator

_log = logging.getLogger(__name__)
UNANSWERED = "no reply"


@dataclasses.dataclass(frozen=True)
class Question:
    """What a generator is asked: a prompt, and how many replies are wanted."""

    prompt: str  # a text, or a conversation
    samples: int = 1
    about: str = ""  # for people who read the file: record, order, step

    def key(self, generator: str, seed: int) -> str:
        """SHA-256 of all that its replies depend on; how many are wanted is not of it."""
        return hashlib.sha256(json.dumps([generator, seed, as_value(self.prompt)]).encode()).hexdigest()


class Drawn(NamedTuple):
    """One reply, and what the generator knew of it."""

    text: str
    facts: Mapping[str, Any]


class Replies:
    """A generator that remembers: `ask` gives the replies that are there and asks for the others alone.

    Use as a context manager: the file is locked, and a last line that a kill cut short is dropped. What failed is not kept, so
    it is asked again by the next `ask`; what was answered never is, readable or not.

    Args:
      generator: answers. One with an attribute `workers` above 1 is called for each question alone, so many at a time, and a
        reply is on the disk as soon as it is there.
      path: JSON lines, one for each question: {"key", "about", "generator", "replies"}. None: kept in memory.
      seed: of the replies.
      batch: of other generators, questions a call; its replies are on the disk before the next.

    Attributes:
      counts: why replies could not be had → how many, since this object was made.
      asked: how many replies were asked for since then.
    """

    def __init__(self, generator: Generator, path: Path | None = None, seed: int = 0, batch: int = 16):
        self.generator, self.path, self.seed, self.batch = generator, path, seed, batch
        self.counts: Counter[str] = Counter()
        self.asked = 0
        self._known: dict[str, list[str]] = {}
        self._more: dict[str, list[Mapping[str, Any]]] = {}
        self._file: FileIO | None = None
        self._held = contextlib.ExitStack()

    def __enter__(self) -> "Replies":
        if self.path is not None:
            refuse_unwritable(self.path)
            with contextlib.ExitStack() as held:
                held.enter_context(locked(self.path, "wait for it, or name another file of replies"))
                size = self._read(self.path) if self.path.exists() else 0
                # Unbuffered: after a failed write there is nothing left for `close` to fail at again.
                self._file = held.enter_context(self.path.open("r+b" if size else "wb", buffering=0))
                self._file.truncate(size)
                self._file.seek(size)
                self._held = held.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._file = None
        self._held.close()

    def ask(self, questions: Sequence[Question]) -> list[list[str]]:
        """The replies to each question, as many as it wants or fewer where some could not be had; the same question twice is
        asked once.

        Raises:
          OSError: naming the file, say when the disk is full.
        """
        keys = [question.key(self.generator.name, self.seed) for question in questions]
        wanted: dict[str, Question] = {}
        for key, question in zip(keys, questions, strict=True):
            if question.samples > wanted.get(key, Question("", 0)).samples:
                wanted[key] = question
        for missing, group in _by_number(wanted, self._known):
            self._ask(group, missing)
        return self.kept(questions)

    def draw(self, questions: Sequence[Question]) -> list["Drawn | None"]:
        """One reply to each question, or None where it could not be had. Questions with the same prompt get samples of their own.

        Raises:
          OSError: as `ask`.
        """
        order: dict[str, list[int]] = {}
        for n, question in enumerate(questions):
            order.setdefault(question.key(self.generator.name, self.seed), []).append(n)
        groups = [dataclasses.replace(questions[places[0]], samples=len(places)) for places in order.values()]
        found: list[Drawn | None] = [None] * len(questions)
        for places, group, said in zip(order.values(), groups, self.ask(groups), strict=True):
            for n, text, facts in zip(places, said, self.facts(group), strict=False):
                found[n] = Drawn(text, facts)
        return found

    def kept(self, questions: Sequence[Question]) -> list[list[str]]:
        """As `ask`, of the replies that are there; nothing is asked."""
        keys = (question.key(self.generator.name, self.seed) for question in questions)
        return [self._known.get(key, [])[: question.samples] for key, question in zip(keys, questions, strict=True)]

    def facts(self, question: Question) -> list[Mapping[str, Any]]:
        """Of each reply to a question what the generator knew of it: `log_probs` (the mean, in nats a token), `truncated`."""
        return self._more.get(question.key(self.generator.name, self.seed), [])[: question.samples]

    def _ask(self, group: Sequence[tuple[str, Question]], missing: int) -> None:
        workers = getattr(self.generator, "workers", 1)
        size = 1 if workers > 1 else self.batch
        # Behind replies that are there already, the number of the first new one makes the randomness another one.
        ids = {_id(key, len(self._known.get(key, []))): (key, question) for key, question in group}
        every = [Comparison(question.prompt, (), id=name) for name, (_, question) in ids.items()]
        parts = [every[start : start + size] for start in range(0, len(every), size)]
        if workers == 1:
            for part in parts:
                self._answered(ids, part, self.generator(part, missing, self.seed), missing)
            return
        with ThreadPoolExecutor(workers) as pool:
            asked = {pool.submit(self.generator, part, missing, self.seed): part for part in parts}
            try:
                for done in as_completed(asked):
                    self._answered(ids, asked[done], done.result(), missing)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _answered(
        self, ids: Mapping[str, tuple[str, Question]], records: Sequence[Comparison], made: Generated, missing: int
    ) -> None:
        """Counts and keeps what came back of a call."""
        self.asked += missing * len(records)
        self.counts.update(made.dropped)
        answered = [c for c in made.records if c.outputs]
        unnamed = missing * len(records) - sum(len(c.outputs) for c in answered) - sum(made.dropped.values())
        self.counts.update({UNANSWERED: unnamed} if unnamed > 0 else {})
        self._keep([(*ids[c.id], c) for c in answered])

    def _keep(self, answered: Sequence[tuple[str, Question, Comparison]]) -> None:
        lines = []
        for key, question, c in answered:
            more = [_facts(c, n) for n in range(len(c.outputs))]
            line = {"key": key, "about": question.about, "generator": self.generator.name, "replies": list(c.outputs)}
            lines.append(json.dumps(line | ({"more": more} if any(more) else {}), ensure_ascii=False) + "\n")
        if self.path is not None:
            self._write("".join(lines).encode())
        for key, _, c in answered:
            self._known[key] = [*self._known.get(key, []), *c.outputs]
            self._more[key] = [*self._more.get(key, []), *(_facts(c, n) for n in range(len(c.outputs)))]

    def _write(self, data: bytes) -> None:
        if self._file is None:
            raise ValueError(f"{self.path}: replies are used as a context manager")
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OSError(f"cannot write {self.path}: {error.strerror or error}") from error

    def _read(self, path: Path) -> int:
        """Fills what is known; returns how many bytes of the file are good. ValueError where it is another kind of file."""
        size = 0
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
            entry = _entry(line)
            if entry is None and not line.endswith(b"\n"):
                _log.warning("%s:%d is cut short: asked again", path, number)
                return size
            if entry is None:
                raise ValueError(f"{path}:{number} is no line of replies; name another file, or remove that line")
            more = entry.get("more") or [{}] * len(entry["replies"])
            self._known.setdefault(entry["key"], []).extend(entry["replies"])
            self._more.setdefault(entry["key"], []).extend(more)
            size += len(line)
        return size


def _by_number(
    wanted: Mapping[str, Question], known: Mapping[str, Sequence[str]]
) -> Iterator[tuple[int, list[tuple[str, Question]]]]:
    """(How many replies are missing, the questions of which that many are), those that lack most first."""
    groups: dict[int, list[tuple[str, Question]]] = defaultdict(list)
    for key, question in wanted.items():
        if (missing := question.samples - len(known.get(key, []))) > 0:
            groups[missing].append((key, question))
    yield from sorted(groups.items(), reverse=True)


def _id(key: str, known: int) -> str:
    return f"{key}+{known}" if known else key


def _facts(c: Comparison, n: int) -> dict[str, float]:
    """What is known of one reply, short enough for a line."""
    found: dict[str, float] = {}
    if "log_probs" in c.columns and len(c.columns["log_probs"][n]):
        values = c.columns["log_probs"][n]
        found["log_probs"] = sum(values) / len(values)
    if "truncated" in c.columns:
        found["truncated"] = float(c.columns["truncated"][n])
    return found


def _entry(line: bytes) -> dict[str, Any] | None:
    """A whole line's object, or None."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    replies = entry.get("replies") if isinstance(entry, dict) and isinstance(entry.get("key"), str) else None
    good = isinstance(replies, list) and all(isinstance(reply, str) for reply in replies) and line.endswith(b"\n")
    return entry if good else None
