"""LLMEval-Med: medical answers judged by checklists, usability by area, agreement with people (docs/judges.md).

    python -m experiments.llmeval_med --model=MODEL --judge=MODEL --data=dataset.json|shipped --out=FOLDER [--human=FILE.jsonl]
        [--library=FILE.toml]

MODEL is http://HOST/v1#NAME, smollm2, or the folder of a language model. A stopped command goes on where it was.
"""

import sys
from pathlib import Path

from absl import app, flags

from experiments.start import guarded, parse_flags, prepare, say
from rmjax.judges.generators import Generation
from rmjax.judges.llmeval_med.run import Options, evaluate, notes


def define_flags() -> None:
    """Flags are defined when run, not when imported, so that they cannot clash."""
    flags.DEFINE_string("model", None, "generator that answers", required=True)
    flags.DEFINE_string("judge", None, "generator that gives verdicts", required=True)
    flags.DEFINE_string("out", None, "folder of replies, verdicts and result.json", required=True)
    flags.DEFINE_string("data", "shipped", "the published file, or shipped: a few questions of ours in its layout")
    flags.DEFINE_string("human", "", "JSON lines of people's verdicts on the answers of this folder")
    flags.DEFINE_string("library", "", "TOML file of [[changes]] by which the judge is refined, with --human")
    flags.DEFINE_integer("rounds", 3, "of refinement at most", lower_bound=1)
    flags.DEFINE_integer("runs", 3, "independent answers to each question", lower_bound=1)
    flags.DEFINE_string("prompts", "llmeval_med", "prompts that ship, or a TOML file")
    flags.DEFINE_float("temperature", 0.7, "of the answers", lower_bound=0.0)
    flags.DEFINE_integer("max_new_tokens", 2048, "of an answer", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "of replies and intervals", lower_bound=0)


def run() -> None:
    """Runs by the flags and prints the figures."""
    v = flags.FLAGS
    how = Generation(v.temperature, 0.9, v.max_new_tokens)
    options = Options(
        model=v.model, judge=v.judge, out=Path(v.out), data=v.data, human=v.human, library=v.library, rounds=v.rounds,
        runs=v.runs, prompts=v.prompts, how=how, seed=v.seed,
    )  # fmt: skip
    say([*notes(evaluate(options)), f"wrote {options.out / 'result.json'}"])


def main(_: list[str]) -> None:
    """Runs, or says in one line what is wrong."""
    sys.exit(guarded(run, resumes=True))


if __name__ == "__main__":
    define_flags()
    prepare()
    app.run(main, flags_parser=parse_flags)
