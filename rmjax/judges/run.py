"""A judge over many records, in parts: what `rmjax.evaluate.evaluation` takes in place of a reward model."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rmjax.data.record import Comparison
from rmjax.judges.forms import Unread
from rmjax.judges.generators import Named
from rmjax.judges.judge import Judge
from rmjax.judges.replies import Replies
from rmjax.judges.spec import load_spec


def judge_rows(
    judge: str, model: str, file: Path | None, rows: Sequence[Comparison], part: int, seed: int
) -> tuple[list[list[float] | None], str, int, dict[str, int], dict[str, Any]]:
    """The scores of all records, None for those without.

    Args:
      judge: as `load_spec` takes it.
      model: as `generators.Named` takes it.
      file: keeps the replies.
      part: records asked about at once.
      seed: of the report's intervals.

    Returns:
      scores; SHA-256 of the judge and its generator; how many records had all their replies before; nothing that encoding
      changed; `Judge.report` with `failures`, why replies could not be had → how many of this run.

    Raises:
      FileNotFoundError, ValueError: there is no such judge or model, or a file is none of replies.
      InUseError: another process writes the replies.
    """
    spec = load_spec(judge)
    generator = Named(model, spec.generation)
    scores: list[list[float] | None] = []
    before = 0
    with Replies(generator, file, batch=part) as replies, tqdm(total=len(rows), desc="judging", unit="row") as bar:
        scorer = Judge(spec, replies)
        for start in range(0, len(rows), part):
            chunk = rows[start : start + part]
            before += sum(map(scorer.is_answered, chunk))
            scores += [None if isinstance(each, Unread) else each for each in scorer.attempt(chunk)]
            bar.update(len(chunk))
        report = scorer.report(rows, seed) | {"failures": dict(scorer.counts)}
    model_hash = hashlib.sha256(f"{spec.fingerprint} {generator.name}".encode()).hexdigest()
    return scores, model_hash, before, {}, report


def notes_of_judge(report: Mapping[str, Any]) -> Iterator[str]:
    """What `judge_rows` reports, and the bounds of the accuracy, in lines."""
    yield f"{report['judge']} by {report['generator']}: {report['replies']:,} replies, {report['missing']:,} missing"
    for reason, count in [*report["failures"].items(), *report["unread"].items()]:
        yield f"replies that are not scored: {count} ({reason})"
    for reason, count in report["unjudged"].items():
        yield f"rows without a score, in no accuracy: {count} ({reason})"
    if bounds := report.get("bounds"):
        yield f"accuracy if these were all wrong: {bounds['low']:.3f}; if all right: {bounds['high']:.3f}"
    position = report.get("position") or {}
    if position.get("ties") is not None:
        yield f"replies that name no winner: {position['ties']:.3f}"
        yield f"of the others, the answer that stands first wins {_shown(position['first'])}"
    if position.get("pairs"):
        yield f"pairs whose two orders agree: {_shown(position['consistent'])} of {position['pairs']:,}"
    if report.get("agreement") is not None:
        yield f"agreement of {report['votes']} votes with the most frequent one: {report['agreement']:.3f}"


def _shown(mean: Mapping[str, Any]) -> str:
    return "none" if mean["value"] is None else f"{mean['value']:.3f} ({mean['low']:.3f} to {mean['high']:.3f})"
