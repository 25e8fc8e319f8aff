"""Preference accuracy of a reward model on comparisons.

    python -m experiments.evaluate --model=DIR|shipped:NAME --data=FILE|shipped:NAME|SET --out=FILE.json
        [--suite=NAME] [--layout=auto] [--also=style] [--split=test] [--scores=FILE.jsonl] [--routing=FOLDER] [--mesh=one]
        [--judge=pairwise]

With --judge, --model is a generator that evaluates by a judge's prompts (docs/judges.md).
With --suite, --data is a file or folder of that published benchmark. SET is one of the real preference sets of docs/data.md.
A stopped command goes on where it was (`rmjax.evaluate.evaluation`).
`rmjax evaluate FILE` is the short form of it.
"""

import sys
from pathlib import Path

from absl import app, flags

from experiments.start import error_text, parse_flags, prepare, say
from rmjax.data.layouts import NAMES
from rmjax.data.preferences import PREFERENCE_SETS
from rmjax.data.sources import RECORD_SPLITS
from rmjax.evaluate.evaluation import FURTHER, Options, evaluate, notes
from rmjax.evaluate.table import print_table
from rmjax.settings import BENCHMARKS


def define_flags() -> None:
    """Flags are defined when run, not when imported, so that they cannot clash."""
    flags.DEFINE_string(
        "model", None,
        "reward model: folder of a checkpoint, or shipped:NAME; with --judge a generator: http://HOST/v1#MODEL, smollm2, or the "
        "folder of a language model",
        required=True,
    )  # fmt: skip
    flags.DEFINE_string("judge", "", "prompts by which --model judges: one of docs/judges.md, or a TOML file")
    flags.DEFINE_string("replies", None, "JSONL file that keeps the judge's replies; without it OUT.replies.jsonl")
    flags.DEFINE_string(
        "data",
        None,
        "comparisons: .jsonl[.zst|.gz], .json, .parquet, .array_record, tfds:NAME, shipped:NAME, or a real "
        f"set: {', '.join(PREFERENCE_SETS)}; with --suite a file or folder of it",
        required=True,
    )
    flags.DEFINE_enum("suite", "", ["", *BENCHMARKS], "published benchmark that --data is, in its own layout")
    flags.DEFINE_multi_enum(
        "also", [], FURTHER, "further numbers for the result file: calibration, style; may be repeated"
    )
    flags.DEFINE_enum("layout", "auto", NAMES, "layout of the rows of a file; auto says what it took them for")
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


def main(_: list[str]) -> None:
    """Evaluates by the flags and prints the table, or one line that says what is wrong."""
    values = flags.FLAGS
    options = Options(
        model=values.model,
        data=values.data,
        out=Path(values.out),
        scores=Path(values.scores) if values.scores else None,
        reference=values.reference,
        on_error=values.on_error,
        rows_per_save=values.rows_per_save,
        seed=values.seed,
        root=values.root,
        split=values.split,
        suite=values.suite,
        layout=values.layout,
        also=tuple(values.also),
        routing=Path(values.routing) if values.routing else None,
        mesh=values.mesh,
        judge=values.judge,
        replies=Path(values.replies) if values.replies else None,
    )
    try:
        result = evaluate(options)
    except (OSError, ValueError, RuntimeError, ImportError) as error:  # RecordError and ScoreError among them
        sys.exit(error_text(error))
    print_table(result)
    files = [options.out, options.scores, options.routing and options.routing / "report.html"]
    written = f"wrote {' and '.join(str(path) for path in files if path)}"
    say([*notes(result), written])


if __name__ == "__main__":
    define_flags()
    prepare()
    app.run(main, flags_parser=parse_flags)
