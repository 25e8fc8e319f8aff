"""EvaLearn: does a model get better over a sequence of problems? Figures beside chance (docs/judges.md).

    python -m experiments.evalearn --model=MODEL --judge=MODEL --problems=FILE --sequences=FILE --out=FOLDER
    python -m experiments.evalearn --model=smollm2 --toy=4 --out=FOLDER

MODEL is http://HOST/v1#NAME, smollm2, or the folder of a language model. A stopped command goes on where it was.
"""

import sys
from pathlib import Path

from absl import app, flags

from experiments.start import guarded, parse_flags, prepare, say
from rmjax.judges.evalearn.protocol import PARADIGMS
from rmjax.judges.evalearn.run import Options, evaluate, notes
from rmjax.judges.generators import Generation


def define_flags() -> None:
    """Flags are defined when run, not when imported, so that they cannot clash."""
    flags.DEFINE_string("model", None, "generator that answers", required=True)
    flags.DEFINE_string("out", None, "folder of replies, grades and result.json", required=True)
    flags.DEFINE_string("judge", "", "generator that grades by the rubrics; none is asked for toy problems")
    flags.DEFINE_string("problems", "", "EvaLearn's file of problems")
    flags.DEFINE_string("sequences", "", "EvaLearn's file of sequences")
    flags.DEFINE_integer("toy", 0, "sequences of each toy family, in place of the files", lower_bound=0)
    flags.DEFINE_multi_enum("paradigm", ["zero_shot", "feedback"], list(PARADIGMS), "may be repeated")
    flags.DEFINE_string("prompts", "evalearn", "prompts that ship, or a TOML file")
    flags.DEFINE_string(
        "rubric", "", "field of the rubrics: rubric, rubric_zh or rubric_en; empty: the first that is there"
    )
    flags.DEFINE_integer("limit", 0, "sequences of each type at most, 0 for all", lower_bound=0)
    flags.DEFINE_integer("late", 3, "K of the accuracy after position K", lower_bound=0)
    flags.DEFINE_float("temperature", 0.0, "of the model's answers", lower_bound=0.0)
    flags.DEFINE_integer("max_new_tokens", 512, "of the model's answers", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "of answers, toys and intervals", lower_bound=0)


def run() -> None:
    """Runs by the flags and prints the figures."""
    v = flags.FLAGS
    options = Options(
        model=v.model, out=Path(v.out), judge=v.judge, problems=v.problems, sequences=v.sequences, toy=v.toy,
        paradigms=tuple(dict.fromkeys(v.paradigm)), prompts=v.prompts,
        how=Generation(v.temperature, max_new_tokens=v.max_new_tokens), rubric=v.rubric, limit=v.limit, late=v.late,
        seed=v.seed,
    )  # fmt: skip
    say([*notes(evaluate(options)), f"wrote {options.out / 'result.json'}"])


def main(_: list[str]) -> None:
    """Runs, or says in one line what is wrong."""
    sys.exit(guarded(run, resumes=True))


if __name__ == "__main__":
    define_flags()
    prepare()
    app.run(main, flags_parser=parse_flags)
