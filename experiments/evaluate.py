"""Preference accuracy of a reward model on comparisons.

    python -m experiments.evaluate --model=DIR --data=FILE|shipped:NAME|SET --out=FILE.json
        [--split=test] [--scores=FILE.jsonl] [--routing=FOLDER] [--mesh=one]

SET is one of the real preference sets of docs/data.md.

Scores are written to FILE.json.partial as they are made: run again, a stopped command continues
with the rows that are not there yet, if model, data and --reference are the same.
"""

import dataclasses
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from absl import app, flags
from tqdm import tqdm

from experiments.start import error_text, parse_flags, prepare
from rmjax.data.preferences import PREFERENCE_SETS
from rmjax.data.record import Comparison
from rmjax.data.sources import RECORD_SPLITS, located
from rmjax.evaluate.comparisons import evaluate_comparison, with_best_as_reference
from rmjax.evaluate.report import environment, write_report
from rmjax.evaluate.score_log import ScoreLog, fingerprint_comparisons, fingerprint_files
from rmjax.evaluate.scorers import Scorer, checked
from rmjax.evaluate.suites import SUITES, load_comparisons
from rmjax.evaluate.table import print_table
from rmjax.files import refuse_unwritable, write_json, write_text
from rmjax.locks import locked
from rmjax.terminal import printable

logger = logging.getLogger(__name__)
_RUN_FILES = ("model.json", "tokenizer.json", "config.json", "data.json", "metrics.jsonl")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to evaluate, and how; the flags of this command."""

    model: Path
    data: str
    out: Path
    scores: Path | None = None
    reference: Literal["given", "best"] = "given"
    on_error: Literal["raise", "skip"] = "raise"
    rows_per_save: int = 64
    seed: int = 0
    root: str = "../shared/data"
    split: str = "all"
    routing: Path | None = None
    mesh: Literal["one", "all"] = "all"

    @property
    def partial(self) -> Path:
        """Where scores go while they are made."""
        return self.out.with_name(self.out.name + ".partial")

    @property
    def outputs(self) -> list[Path]:
        """All files this command writes."""
        maps = [self.routing / name for name in ("report.json", "report.html")] if self.routing else []
        return [self.out, self.partial, *([self.scores] if self.scores else []), *maps]


def define_flags() -> None:
    """Flags are defined when run, not when imported, so that they cannot clash."""
    flags.DEFINE_string("model", None, "reward model: folder of a checkpoint", required=True)
    flags.DEFINE_string(
        "data",
        None,
        "comparisons: .jsonl[.zst], .parquet, .array_record, tfds:NAME, shipped:NAME, or a real "
        f"set: {', '.join(PREFERENCE_SETS)}",
        required=True,
    )
    flags.DEFINE_string("root", "../shared/data", "folder of the real sets")
    flags.DEFINE_enum("split", "all", RECORD_SPLITS, "real sets: test is a fifth of the prompts")
    flags.DEFINE_string("out", None, "JSON file to write", required=True)
    flags.DEFINE_string("scores", None, "JSONL file to write: a line per row with its scores")
    flags.DEFINE_enum(
        "reference",
        "given",
        ["given", "best"],
        "given: each row's own reference. best: where a row has none, its top-ranked output "
        "becomes the reference and leaves the candidates (POLAR, section 4.2)",
    )
    flags.DEFINE_string(
        "routing", None, "folder for report.html: where each router of an adapter sends each `type` of record"
    )
    flags.DEFINE_enum(
        "mesh", "all", ["one", "all"], "run the model on one device, or the rows of a batch on all of them"
    )
    flags.DEFINE_enum("on_error", "raise", ["raise", "skip"], "what to do with a broken row")
    flags.DEFINE_integer("rows_per_save", 64, "rows scored between two saves", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "seed of the bootstrap", lower_bound=0)


def load_scorer(path: Path, mesh: Literal["one", "all"]) -> Scorer:
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
    """Scores the rows that are not scored yet, writes the files, returns what --out holds.

    Raises:
      OSError: a file or the model cannot be read or written; before any scoring where possible.
      RecordError: a row is broken, or there is none.
      ValueError: --split of what is no real set.
      ScoreError: the model gave a score that is not finite.
      InUseError: another process is writing --out.
    """
    _refuse_bad_paths(options)
    if options.routing:
        _refuse_no_routing(options)
    with locked(options.out, "wait for it, or name another file with --out"):
        return _evaluate(options)


def _evaluate(options: Options) -> dict[str, Any]:
    started = time.monotonic()
    loaded = load_comparisons(options.data, options.root, options.split, options.on_error)
    given = loaded.records
    rows = [with_best_as_reference(row) for row in given] if options.reference == "best" else given
    fingerprint = {
        "model": fingerprint_files(options.model, ignore=options.outputs),
        "data": fingerprint_comparisons(rows),
    }
    with ScoreLog(options.partial, fingerprint) as log:
        resumed = len(log.scores)
        _score_missing(options, rows, log)
    scores = [log.scores[index] for index in range(len(rows))]
    result = {
        **SUITES["comparisons"].evaluator.summary(rows, scores, options.seed),
        "reference": options.reference,
        "reference_from_ranks": sum(a is not b for a, b in zip(rows, given, strict=True)),
        "encoding": dict(log.counts),
        "unreadable": loaded.unreadable,
        "dropped": loaded.dropped,
        "model": str(options.model),
        "data": options.data,
        "split": options.split,
        "sha256": fingerprint,
        "resumed_rows": resumed,
        "seconds": round(time.monotonic() - started, 3),
        **environment(),
    }
    result |= {name: count for name in ("contradicting", "unknown") if (count := getattr(loaded, name))}
    if measures := _measures(options, rows):
        result["measures"] = measures
    if options.routing:
        result["routing"] = _routing(options, options.routing, rows)
    if options.scores:
        write_text(options.scores, "".join(_score_lines(rows, scores)))
    write_json(options.out, result)
    options.partial.unlink()
    return result


def _measures(options: Options, rows: Sequence[Comparison]) -> dict[str, float]:
    """Means over candidates of what a model says of them beside its scores: an ensemble's disagreement."""
    from rmjax.reward_model import RewardModel, has_measures

    if not has_measures(options.model):
        return {}
    model = RewardModel.load(options.model, mesh="all" if options.mesh == "all" else None)
    values = {name: [x for row in scorer.score(rows) for x in row] for name, scorer in model.measures.items()}
    return {name: sum(found) / len(found) for name, found in values.items()}


def main(_: list[str]) -> None:
    """Evaluates by the flags and prints the table, or one line that says what is wrong."""
    values = flags.FLAGS
    options = Options(
        model=Path(values.model),
        data=values.data,
        out=Path(values.out),
        scores=Path(values.scores) if values.scores else None,
        reference=values.reference,
        on_error=values.on_error,
        rows_per_save=values.rows_per_save,
        seed=values.seed,
        root=values.root,
        split=values.split,
        routing=Path(values.routing) if values.routing else None,
        mesh=values.mesh,
    )
    try:
        result = evaluate(options)
    except (OSError, ValueError, RuntimeError, ImportError) as error:  # RecordError and ScoreError among them
        sys.exit(error_text(error))
    print_table(result)
    print(printable("\n".join(_notes(result, options)), keep="\n"))


def _refuse_bad_paths(options: Options) -> None:
    if not options.model.exists():
        raise FileNotFoundError(f"--model={options.model} does not exist")
    paths = [path.resolve() for path in [*options.outputs, Path(located(options.data))]]
    if len(set(paths)) < len(paths):
        raise OSError("--data, --out and --scores must be different files")
    for path in options.outputs:
        if path.name in _RUN_FILES and path.resolve().parent == options.model.resolve():
            raise OSError(f"{path} is a part of --model itself; name another file")
        refuse_unwritable(path)


def _routing(options: Options, folder: Path, rows: Sequence[Comparison]) -> dict[str, Any]:
    """Writes the heat maps; imports late, as `load_model` does."""
    from rmjax.evaluate.routing import routing_of
    from rmjax.reward_model import RewardModel

    found = routing_of(RewardModel.load(options.model), rows)
    provenance = {"model": str(options.model), "data": options.data, "split": options.split, **environment()}
    write_report({"title": "Routing", "routing": {options.model.name: found}, "provenance": provenance}, folder)
    return found


def _refuse_no_routing(options: Options) -> None:
    from rmjax.reward_model import load_description

    adapter = load_description(options.model)[0].adapter
    if adapter is None or not adapter.routed:
        raise ValueError(f"--routing: {options.model} has no adapter with routers, so nothing is routed")


def _score_missing(options: Options, rows: Sequence[Comparison], log: ScoreLog) -> None:
    missing = [index for index in range(len(rows)) if index not in log.scores]
    if not missing:
        return
    if len(missing) < len(rows):
        logger.warning("continuing: %d of %d rows are scored", len(log.scores), len(rows))
    _warn_without_reference(rows)
    scorer = load_scorer(options.model, options.mesh)
    with tqdm(total=len(rows), initial=len(log.scores), desc="scoring", unit="row") as bar:
        for start in range(0, len(missing), options.rows_per_save):
            chunk = missing[start : start + options.rows_per_save]
            before, records = scorer.counts.copy(), [rows[index] for index in chunk]
            scores = checked(records, scorer.score(records))  # whoever wrote the scorer: what is in the log counts
            log.append(dict(zip(chunk, scores, strict=True)), scorer.counts - before)
            bar.update(len(chunk))


def _warn_without_reference(rows: Sequence[Comparison]) -> None:
    without = sum(not row.references for row in rows)
    if without:
        logger.warning(
            "%d of %d rows have NO REFERENCE and are scored without one: for a POLAR model this is "
            "not what it was trained on; give a reference, or --reference=best for ranked rows",
            without,
            len(rows),
        )


def _score_lines(rows: Sequence[Comparison], scores: Sequence[Sequence[float]]) -> Iterator[str]:
    for row, row_scores in zip(rows, scores, strict=True):
        verdict = evaluate_comparison(row, row_scores)
        line = {
            "id": row.id,
            "scores": list(row_scores),
            "correct": verdict.credit if verdict else None,
            "category": row.category,
            "line": row.place,
        }
        yield json.dumps(line, ensure_ascii=False) + "\n"


def _notes(result: dict[str, Any], options: Options) -> Iterator[str]:
    if result["without_reference"]:
        yield f"{result['without_reference']} rows had no reference and were scored without one"
    if result["reference_from_ranks"]:
        yield f"{result['reference_from_ranks']} rows: the top-ranked output was the reference"
    for name, value in result.get("measures", {}).items():
        yield f"{name}: {value:.4g}, a mean over candidates"
    for reason, count in [*result["skipped"].items(), *result["unreadable"].items()]:
        yield f"rows left out: {count} ({reason})"
    for reason, count in result["dropped"].items():
        yield f"rows of the set left out when it was read: {count} ({reason})"
    for change, count in result["encoding"].items():
        yield f"while encoding: {count} × {change}"
    files = [options.out, options.scores, options.routing and options.routing / "report.html"]
    yield f"wrote {' and '.join(str(path) for path in files if path)}"


if __name__ == "__main__":
    define_flags()
    prepare()
    app.run(main, flags_parser=parse_flags)
