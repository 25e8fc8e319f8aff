"""Preference accuracy of a model on a file of comparisons: scored, counted, written down, resumed.

Scores are written to OUT.partial as they are made: a stopped evaluation goes on with the rows that are not there yet, if model,
data and `reference` are the same.
"""

import dataclasses
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from tqdm import tqdm

from rmjax.data.layouts import RECORDS
from rmjax.data.record import Comparison
from rmjax.data.sources import located
from rmjax.evaluate.comparisons import CREDIT, known_ranks, with_best_as_reference
from rmjax.evaluate.evaluators import EVALUATORS, Evaluator
from rmjax.evaluate.report import environment, write_report
from rmjax.evaluate.rows import of_metric, values
from rmjax.evaluate.score_log import ScoreLog, fingerprint_comparisons, fingerprint_files
from rmjax.evaluate.scorers import Scorer, checked
from rmjax.evaluate.suites import BENCHMARKS, SUITES, Loaded, load_comparisons, notes_of_suite, said, suite_of
from rmjax.files import refuse_unwritable, write_json, write_text
from rmjax.hub.shipped import model_folder
from rmjax.locks import locked
from rmjax.settings import SuiteEval

logger = logging.getLogger(__name__)
FURTHER = ("calibration", "style")
"""What `Options.also` may name."""
_RUN_FILES = ("model.json", "tokenizer.json", "config.json", "data.json", "metrics.jsonl")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to evaluate, and how.

    Attributes:
      model: folder of a reward model, or `shipped:NAME`; with `judge` a generator: an endpoint, smollm2, or a language model's
        folder.
      data: comparisons: a file, `shipped:NAME`, `tfds:NAME`, or the name of a real set below `root`.
      out: JSON file to write; without one nothing is written.
      scores: JSONL file to write: a line per row with its scores.
      reference: given: each row's own. best: where a row has none, its top-ranked output becomes the reference.
      on_error: what to do with a broken row.
      rows_per_save: rows scored between two saves.
      seed: of the bootstrap.
      split: of a real set.
      suite: published benchmark that `data` is a file or folder of (`suites.BENCHMARKS`); empty: any comparisons.
      layout: of a file's rows: records (ours), auto, or a name in `layouts.LAYOUTS`.
      also: further evaluators whose summaries go into the result: calibration, style.
      routing: folder for report.html: where the routers of an adapter send each `type` of record.
      mesh: one device, or the rows of a batch on all of them.
      judge: prompts of a judge that ships, or its TOML file; empty: `model` is a reward model.
      replies: JSONL file that keeps the judge's replies, beside `out` unless named.
    """

    model: str | Path
    data: str
    out: Path | None = None
    scores: Path | None = None
    reference: Literal["given", "best"] = "given"
    on_error: Literal["raise", "skip"] = "raise"
    rows_per_save: int = 64
    seed: int = 0
    root: str = "../shared/data"
    split: str = "all"
    suite: str = ""
    layout: str = RECORDS
    also: tuple[str, ...] = ()
    routing: Path | None = None
    mesh: Literal["one", "all"] = "all"
    judge: str = ""
    replies: Path | None = None

    @property
    def replies_file(self) -> Path | None:
        """Where a judge's replies are kept."""
        return self.replies or (self.out.with_suffix(".replies.jsonl") if self.out else None)

    @property
    def folder(self) -> Path:
        """Where the model lies."""
        return model_folder(self.model)

    @property
    def partial(self) -> Path | None:
        """Where scores go while they are made."""
        return self.out.with_name(self.out.name + ".partial") if self.out else None

    @property
    def outputs(self) -> list[Path]:
        """All files that an evaluation writes."""
        maps = [self.routing / name for name in ("report.json", "report.html")] if self.routing else []
        replies = self.replies_file if self.judge else None
        return [path for path in (self.out, self.partial, self.scores, replies, *maps) if path]


def load_scorer(path: str | Path, mesh: Literal["one", "all"]) -> Scorer:
    """The reward model at `path`; imported late, because that is slow and errors should be fast.

    Raises:
      OSError: it cannot be loaded; says why.
    """
    from rmjax.reward_model import RewardModel

    try:
        model = RewardModel.load(path, mesh="all" if mesh == "all" else None)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise OSError(f"cannot load --model={path}: {error}") from error
    return model.scorer


def evaluate(options: Options) -> dict[str, Any]:
    """Scores the rows that are not scored yet, writes the files, returns what `out` holds.

    Raises:
      OSError: a file or the model cannot be read or written; before any scoring where possible.
      RecordError: a row is broken, or there is none.
      ValueError: `split` of what is no real set, or no row has an order.
      ScoreError: the model gave a score that is not finite.
      InUseError: another process is writing `out`.
    """
    _refuse_bad_paths(options)
    if options.routing:
        _refuse_no_routing(options)
    if options.out is None or options.partial is None:
        with tempfile.TemporaryDirectory() as folder:
            return _evaluate(options, Path(folder) / "scores")
    with locked(options.out, "wait for it, or name another file with --out"):
        result = _evaluate(options, options.partial)
        write_json(options.out, result)
        options.partial.unlink(missing_ok=True)  # a judge has none
    return result


def _evaluate(options: Options, partial: Path) -> dict[str, Any]:
    started = time.monotonic()
    evaluator, loaded = _load(options)
    given = loaded.records
    _refuse_no_order(options.data, given, evaluator)
    rows = [with_best_as_reference(row) for row in given] if options.reference == "best" else given
    from_ranks = sum(a is not b for a, b in zip(rows, given, strict=True))
    data = fingerprint_comparisons(rows)
    found = (_judged if options.judge else _scored)(options, rows, partial, data)
    judge = {"judge": _with_bounds(found, evaluator, rows)} if options.judge else {}
    rows = [row for row, score in zip(rows, found.scores, strict=True) if score is not None]
    scores = [score for score in found.scores if score is not None]
    result = {
        **evaluator.summary(rows, scores, options.seed),
        **judge,
        "reference": options.reference,
        "reference_from_ranks": from_ranks,
        "encoding": dict(found.counts),
        "unreadable": loaded.unreadable,
        "dropped": loaded.dropped,
        "model": str(options.model),
        "data": options.data,
        "split": options.split,
        "sha256": {"model": found.model, "data": data},
        "resumed_rows": found.resumed,
        "seconds": round(time.monotonic() - started, 3),
        **environment(),
    }
    result |= {name: EVALUATORS[name].summary(rows, scores, options.seed) for name in options.also}
    more = ("contradicting", "unknown", "kept", "published")
    result |= {
        name: dict(count) if isinstance(count, Mapping) else count for name in more if (count := getattr(loaded, name))
    }
    if not options.judge and (measures := _measures(options, rows)):
        result["measures"] = measures
    if options.routing:
        result["routing"] = _routing(options, options.routing, rows)
    if options.scores:
        write_text(options.scores, "".join(_score_lines(rows, scores, evaluator)))
    return result


class _Found(NamedTuple):
    """Scores of all rows, None where a judge gave none."""

    scores: list[list[float] | None]
    model: str  # SHA-256
    resumed: int  # rows that were scored before
    counts: Mapping[str, int]
    report: Mapping[str, Any] = MappingProxyType({})


def _scored(options: Options, rows: Sequence[Comparison], partial: Path, data: str) -> _Found:
    model = fingerprint_files(options.folder, ignore=options.outputs)
    with ScoreLog(partial, {"model": model, "data": data}) as log:
        resumed = len(log.scores)
        _score_missing(options, rows, log)
    return _Found([log.scores[index] for index in range(len(rows))], model, resumed, log.counts)


def _judged(options: Options, rows: Sequence[Comparison], partial: Path, data: str) -> _Found:
    """A judge's replies are its log, so that rows need none. It is imported late, as `load_scorer` does."""
    from rmjax.judges.run import judge_rows

    del partial, data
    asked = options.judge, str(options.model), options.replies_file
    return _Found(*judge_rows(*asked, rows, options.rows_per_save, options.seed))


def _with_bounds(found: _Found, evaluator: Evaluator, rows: Sequence[Comparison]) -> dict[str, Any]:
    """A judge's report, and the accuracy that it would have were all rows without a score wrong, or right.

    Raises:
      ValueError: no row has a score.
    """
    unjudged = found.report["unjudged"]
    if all(score is None for score in found.scores):
        raise ValueError(
            f"the judge gave none of {len(rows)} rows a score ({said(unjudged)}; "
            f"replies: {said(found.report['unread']) or 'none'}); read its replies, and change its prompt or its model"
        )
    if not unjudged:
        return dict(found.report)
    bounds = {}
    for name, sign in (("low", 1.0), ("high", -1.0)):
        pairs = zip(rows, found.scores, strict=True)
        scores = [[sign * r for r in known_ranks(c) or [0.0] * len(c.outputs)] if s is None else s for c, s in pairs]
        bounds[name] = evaluator.numbers(evaluator.rows(rows, scores))["accuracy"]
    return {**found.report, "bounds": bounds}


def _load(options: Options) -> tuple[Evaluator, Loaded]:
    if not options.suite:
        loaded = load_comparisons(options.data, options.root, options.split, options.on_error, options.layout)
        return SUITES["comparisons"].evaluator, loaded
    if options.suite not in BENCHMARKS:
        raise ValueError(f"--suite={options.suite} is no benchmark; choose {', '.join(BENCHMARKS)}")
    if options.reference == "best" or options.split != "all":
        raise ValueError(
            "--reference=best and --split do not go with --suite; --suite=polar has the best answer as reference"
        )
    entry = SuiteEval(suite=options.suite, path=options.data, on_error=options.on_error)
    suite = suite_of(entry)
    return suite.evaluator, suite.load(entry)


def _refuse_no_order(data: str, records: Sequence[Comparison], evaluator: Evaluator) -> None:
    left_out = evaluator.left_out(records)
    if sum(left_out.values()) == len(records):
        raise ValueError(
            f"{data}: none of its {len(records)} rows has an order to measure against ({said(left_out)}); give chosen and "
            "rejected, or outputs with best, ranks or scores; `rmjax score` needs none"
        )
    evaluator.refuse(records)


def _measures(options: Options, rows: Sequence[Comparison]) -> dict[str, float]:
    """Means over candidates of what a model says of them beside its scores: an ensemble's disagreement."""
    from rmjax.reward_model import RewardModel, has_measures

    if not has_measures(options.folder):
        return {}
    model = RewardModel.load(options.model, mesh="all" if options.mesh == "all" else None)
    values = {name: [x for row in scorer.score(rows) for x in row] for name, scorer in model.measures.items()}
    return {name: sum(found) / len(found) for name, found in values.items()}


def _refuse_bad_paths(options: Options) -> None:
    if not options.judge and not options.folder.exists():
        raise FileNotFoundError(f"--model={options.model} does not exist")
    paths = [path.resolve() for path in [*options.outputs, Path(located(options.data))]]
    if len(set(paths)) < len(paths):
        raise OSError("--data, --out and --scores must be different files")
    for path in options.outputs:
        if path.name in _RUN_FILES and path.resolve().parent == options.folder.resolve():
            raise OSError(f"{path} is a part of --model itself; name another file")
        refuse_unwritable(path)


def _routing(options: Options, folder: Path, rows: Sequence[Comparison]) -> dict[str, Any]:
    """Writes the heat maps; imports late, as `load_scorer` does."""
    from rmjax.evaluate.routing import routing_of
    from rmjax.reward_model import RewardModel

    found = routing_of(RewardModel.load(options.model), rows)
    provenance = {"model": str(options.model), "data": options.data, "split": options.split, **environment()}
    write_report({"title": "Routing", "routing": {options.folder.name: found}, "provenance": provenance}, folder)
    return found


def _refuse_no_routing(options: Options) -> None:
    if options.judge:
        raise ValueError("--routing goes with a reward model, and --judge makes --model a generator; leave one out")
    from rmjax.reward_model import load_description

    adapter = load_description(options.folder)[0].adapter
    if adapter is None or not adapter.routed:
        raise ValueError(f"--routing: {options.model} has no adapter with routers, so nothing is routed")


def _score_missing(options: Options, rows: Sequence[Comparison], log: ScoreLog) -> None:
    missing = [index for index in range(len(rows)) if index not in log.scores]
    if not missing:
        return
    if len(missing) < len(rows):
        logger.warning("continuing: %d of %d rows are scored", len(log.scores), len(rows))
    _warn_without_reference(rows, options.suite)
    scorer = load_scorer(options.model, options.mesh)
    with tqdm(total=len(rows), initial=len(log.scores), desc="scoring", unit="row") as bar:
        for start in range(0, len(missing), options.rows_per_save):
            chunk = missing[start : start + options.rows_per_save]
            before, records = scorer.counts.copy(), [rows[index] for index in chunk]
            scores = checked(records, scorer.score(records))  # whoever wrote the scorer: what is in the log counts
            log.append(dict(zip(chunk, scores, strict=True)), scorer.counts - before)
            bar.update(len(chunk))


def _warn_without_reference(rows: Sequence[Comparison], suite: str) -> None:
    without = sum(not row.references for row in rows)
    if without:
        logger.warning(
            "%d of %d rows have NO REFERENCE and are scored without one: for a POLAR model this is "
            "not what it was trained on; %s",
            without,
            len(rows),
            "--suite=polar is its protocol" if suite else "give a reference, or --reference=best for ranked rows",
        )


def _score_lines(rows: Sequence[Comparison], scores: Sequence[Sequence[float]], evaluator: Evaluator) -> Iterator[str]:
    for row, row_scores in zip(rows, scores, strict=True):
        credits = values(of_metric(evaluator.rows([row], [row_scores]), CREDIT))
        line = {
            "id": row.id,
            "scores": list(row_scores),
            "correct": sum(credits) / len(credits) if credits else None,
            "category": row.category,
            "line": row.place,
        }
        yield json.dumps(line, ensure_ascii=False) + "\n"


def _further_notes(result: dict[str, Any]) -> Iterator[str]:
    if found := result.get("calibration"):
        fitted = "none" if found["temperature"] is None else f"{found['temperature']:.3g}"
        ece, loss = found["ece"], found["loss"]
        yield (
            f"calibration of {found['pairs']:,} pairs: ECE {ece['value']:.3f} ({ece['low']:.3f} to {ece['high']:.3f}), "
            f"loss {loss['value']:.3f} nats, temperature {fitted}"
        )
    if found := result.get("style"):
        alone, controlled = (found["reward"][name]["value"] for name in ("alone", "controlled"))
        styles = ", ".join(f"{name} {each['value']:+.2f}" for name, each in found["style"].items())
        yield f"style control: coefficient of the reward {alone:.2f} alone, {controlled:.2f} beside style ({styles})"


def notes(result: dict[str, Any]) -> Iterator[str]:
    """What was counted, a line each: what an accuracy leaves out or rests on."""
    if "suite" in result:
        yield from notes_of_suite(result)
    elif ties := result["overall"]["ties"]:
        yield f"{ties} of {result['overall']['n']} rows were tied in score, and count in parts"
    if result["without_reference"]:
        yield f"{result['without_reference']} rows had no reference and were scored without one"
    if result["reference_from_ranks"]:
        yield f"{result['reference_from_ranks']} rows: the top-ranked output was the reference"
    if "judge" in result:
        from rmjax.judges.run import notes_of_judge

        yield from notes_of_judge(result["judge"])
    yield from _further_notes(result)
    for name, value in result.get("measures", {}).items():
        yield f"{name}: {value:.4g}, a mean over candidates"
    for reason, count in [*result["skipped"].items(), *result["unreadable"].items()]:
        yield f"rows left out: {count} ({reason})"
    for reason, count in result["dropped"].items():
        yield f"rows of the set left out when it was read: {count} ({reason})"
    for change, count in result["encoding"].items():
        yield f"while encoding: {count} × {change}"
