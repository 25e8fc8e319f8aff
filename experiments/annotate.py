"""Self-reference AI feedback (arXiv 2406.11190): pairs of answers in, records with votes and strengths out (docs/judges.md).

    python -m experiments.annotate --data=FILE --model=MODEL --out=FILE.jsonl [--rounds=4] [--strength=likelihood]

MODEL is http://HOST/v1#NAME, smollm2, or the folder of a language model. A stopped command goes on where it was.
"""

import sys
from pathlib import Path

from absl import app, flags

from experiments.start import guarded, parse_flags, prepare, say
from rmjax.data.layouts import NAMES
from rmjax.data.sources import RECORD_SPLITS
from rmjax.judges.annotate import Options, annotate, notes
from rmjax.judges.self_reference import STRENGTHS, Rules
from rmjax.sections import read

_OF_RULES = ("rounds", "reference", "decision", "strength", "scale", "limit", "ties")


def define_flags() -> None:
    """Flags are defined when run, not when imported, so that they cannot clash."""
    of = Rules()
    flags.DEFINE_string("model", None, "generator that annotates", required=True)
    flags.DEFINE_string("data", None, "pairs: a file, shipped:NAME, or a real set's name", required=True)
    flags.DEFINE_string("out", None, "JSONL file of records to write", required=True)
    flags.DEFINE_integer("rounds", of.rounds, "votes a record; every second one sees the answers the other way round")
    flags.DEFINE_enum(
        "reference", of.reference, ["own", "none"], "own: behind an answer of its own; none: the baseline"
    )
    flags.DEFINE_enum(
        "decision", of.decision, ["written", "likelier"], "a vote: what it writes, or the likelier verdict"
    )
    flags.DEFINE_enum("strength", of.strength, STRENGTHS, "what becomes the pair's margin")
    flags.DEFINE_float("scale", of.scale, "factor on the strength, in units of reward")
    flags.DEFINE_float("limit", of.limit, "size of a margin at most, in units of reward")
    flags.DEFINE_enum("ties", of.ties, ["drop", "keep"], "records with as many votes for each answer")
    flags.DEFINE_integer("records", 0, "records at most, 0 for all", lower_bound=0)
    flags.DEFINE_string("prompts", "self_reference", "prompts that ship, or a TOML file")
    flags.DEFINE_enum("layout", "auto", NAMES, "layout of the rows of a file")
    flags.DEFINE_string("root", "../shared/data", "folder of the real sets")
    flags.DEFINE_enum("split", "all", RECORD_SPLITS, "of a real set")
    flags.DEFINE_enum("on_error", "raise", ["raise", "skip"], "what to do with a broken row")
    flags.DEFINE_integer("seed", 0, "of replies and intervals", lower_bound=0)


def run() -> None:
    """Annotates by the flags and prints what came of it."""
    v = flags.FLAGS
    rules = read(Rules, {name: v[name].value for name in _OF_RULES}, "-")
    options = Options(
        model=v.model, data=v.data, out=Path(v.out), rules=rules, prompts=v.prompts, limit=v.records, root=v.root,
        split=v.split, layout=v.layout, on_error=v.on_error, seed=v.seed,
    )  # fmt: skip
    say([*notes(annotate(options)), f"wrote {options.out} and {options.report}"])


def main(_: list[str]) -> None:
    """Runs, or says in one line what is wrong."""
    sys.exit(guarded(run, resumes=True))


if __name__ == "__main__":
    define_flags()
    prepare()
    app.run(main, flags_parser=parse_flags)
