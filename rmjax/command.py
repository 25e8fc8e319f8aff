"""The console command `rmjax score | evaluate | train | report | serve`: one screen over the library.

It reads its arguments by argparse; flags (absl) belong to `experiments/`. Heavy imports wait until the arguments are right.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rmjax import __version__
from rmjax.hub.shipped import DEFAULT

MODEL = "folder of a reward model, shipped:NAME, or ORG/MODEL of the hub"
EXAMPLES = {
    "score": "rmjax score answers.jsonl --out=scored.csv",
    "evaluate": "rmjax evaluate preferences.jsonl --model=runs/mine --out=runs/mine/evaluation",
    "train": "rmjax train preferences.jsonl --workdir=runs/mine run.steps=60",
    "report": "rmjax report runs/mine",
    "serve": "rmjax serve --model=runs/mine --port=8000",
}


def parser() -> argparse.ArgumentParser:
    """All subcommands with their options."""
    whole = argparse.ArgumentParser(
        prog="rmjax", description="Reward models: score answers, evaluate, train, report, serve.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  " + "\n  ".join(EXAMPLES.values()) + "\n\n`rmjax COMMAND --help` has the options.",
    )  # fmt: skip
    whole.add_argument("--version", action="version", version=f"rmjax {__version__}")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, does: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=does, description=does, epilog=f"example: {EXAMPLES[name]}")
        found.set_defaults(run=run)
        return found

    score = command(
        "score", "Give each answer in a file a reward, and its rank among the answers to its prompt.", _score
    )
    score.add_argument(
        "answers", help="file of prompts and answers (.jsonl, .json, .parquet, …), or - for JSON on standard input"
    )
    score.add_argument("--model", default=DEFAULT, help=f"{MODEL} ({DEFAULT})")
    score.add_argument("--out", type=Path, help="write all rows with their rewards: FILE.jsonl or FILE.csv")
    score.add_argument("--field", default="reward", help="name of the new field; FIELD_rank is the other one (reward)")
    score.add_argument("--rows", type=_count, default=40, help="lines of the table at most, 0 for all (40)")
    evaluate = command("evaluate", "Measure how often a model prefers the better answer, beside baselines.", _evaluate)
    evaluate.add_argument("preferences", help="file of ranked answers, shipped:NAME, or a real set's name")
    evaluate.add_argument("--model", default=DEFAULT, help=f"{MODEL} ({DEFAULT})")
    evaluate.add_argument(
        "--out", type=Path, help="folder for report.json, report.html and scores.jsonl; goes on if stopped"
    )
    evaluate.add_argument(
        "--reference", choices=["given", "best"], default="given", help="best: the top-ranked answer (given)"
    )
    evaluate.add_argument("--suite", default="", help="published benchmark that the file or folder is of, say rmb")
    evaluate.add_argument("--layout", default="auto", help="layout of the rows: auto, records (ours), or a name (auto)")
    train = command(
        "train", "Train a model from a config, or fine-tune one on a file of preferences. Goes on if stopped.", _train
    )
    train.add_argument("source", help="CONFIG.py[:ARGUMENT], or a file of ranked answers")
    train.add_argument("--workdir", type=Path, required=True, help="folder of the run")
    train.add_argument("--start", default="", help="preferences: smollm2, or the model to fine-tune; empty chooses")
    train.add_argument(
        "keys",
        nargs="*",
        metavar="KEY=VALUE",
        help="keys of the config, such as run.steps=100 (preferences: two passes, 20 to 300 steps)",
    )
    for each in (score, evaluate, train):
        each.add_argument(
            "--on_error", choices=["raise", "skip"], default="raise", help="what to do with a broken row (raise)"
        )
    report = command("report", "Make report.html of a run's folder, or of a file of results.", _report)
    report.add_argument("path", type=Path, help="folder of a run, or a JSON file that an evaluation wrote")
    report.add_argument("--out", type=Path, help="folder of the page (that of the results)")
    serve = command(
        "serve",
        "Answer trainers and scoring clients at a port until SIGTERM; docs/serving.md has their routes.",
        _serve,
    )
    serve.add_argument("--model", default=DEFAULT, help=f"{MODEL} ({DEFAULT})")
    serve.add_argument("--port", type=int, default=8000, help="0 for a free one (8000)")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1: this machine alone)")
    serve.add_argument(
        "--truncate", choices=["refuse", "format"], default="refuse", help="too long records: 413, or cut (refuse)"
    )
    serve.add_argument("--max_tokens", type=int, default=0, help="longest text (the format's, 2048 at most)")
    serve.add_argument("--dtype", default="", help="float32 or bfloat16 for a model of the hub (that of its files)")
    serve.add_argument("--template", default="", help="chat template of a model of the hub, a file (its own)")
    serve.add_argument("--token_file", type=Path, help="file with a bearer token that clients must send")
    return whole


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is no number of lines; give 1 or more, or 0 for all")
    return int(text)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command and exits: 0, 1 for an error, 2 for wrong usage, 130 after Ctrl-C."""
    sys.exit(run(argv))


def run(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command; SystemExit where the arguments are wrong or ask for help."""
    options = _parsed(argv)
    from rmjax.guard import guarded, prepare

    prepare()
    try:
        return guarded(lambda: options.run(options), resumes=options.command == "train")
    except KeyboardInterrupt:
        print(f"stopped; {_AFTER_CTRL_C.get(options.command, 'nothing was written')}", file=sys.stderr)
        return 130


_AFTER_CTRL_C = {
    "train": "run the same command to go on from the newest checkpoint",
    "evaluate": "with --out the same command goes on where this one was",
}


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; KEY=VALUE may stand behind options too, where argparse does not look for them."""
    whole = parser()
    options, rest = whole.parse_known_args(argv)
    keys = [*getattr(options, "keys", []), *rest]
    if rest and (options.command != "train" or any(word.startswith("-") for word in rest)):
        whole.error(f"unrecognized arguments: {' '.join(rest)}")
    if wrong := [word for word in keys if "=" not in word]:
        whole.error(f"{wrong[0]} is no KEY=VALUE, such as run.steps=100")
    return argparse.Namespace(**{**vars(options), "keys": keys})


def _score(options: argparse.Namespace) -> None:
    from rmjax.evaluate import answers as scoring
    from rmjax.reward_model import RewardModel

    rows = _standard_input() if options.answers == "-" else None
    answers = scoring.read_answers("standard input" if rows else options.answers, options.on_error, rows)
    if options.out:
        scoring.check_out(options.out, answers, options.field)
    model = RewardModel.load(options.model, mesh="all")
    scored = scoring.score_answers(model, answers, progress=True)
    report = scoring.report_of(model, options.model, answers, scored, model.scorer.counts)
    if options.out:  # first: a terminal that is gone loses no scores
        scoring.write_scored(options.out, answers, scored, options.field, report)
    _say(scoring.table(scored, options.rows), *scoring.said(report))
    if options.out:
        _say(f"wrote {options.out} and {scoring.report_path(options.out)}")


def _standard_input() -> Any:
    from rmjax.data.jsonrows import in_memory

    return in_memory("standard input", sys.stdin.buffer.read())


def _evaluate(options: argparse.Namespace) -> None:
    from rmjax.evaluate.evaluation import Options, evaluate, notes
    from rmjax.evaluate.report import read_runs, require_plots, write_report
    from rmjax.evaluate.table import format_table

    out = options.out
    files = {"out": out / "report.json", "scores": out / "scores.jsonl"} if out else {}
    if out:
        require_plots()
    chosen = {name: getattr(options, name) for name in ("reference", "on_error", "suite", "layout")}
    asked = Options(options.model, options.preferences, **chosen, **files)
    result = evaluate(asked)
    _say(format_table(result), *notes(result))
    if out:
        write_report({"title": "Which answer is better?", **result}, out, read_runs(asked.folder))
        _say(f"wrote {out / 'report.json'}, {out / 'report.html'} and {out / 'scores.jsonl'}")


def _train(options: argparse.Namespace) -> None:
    from rmjax.guard import interruptible
    from rmjax.recipe import HELD_OUT, fine_tuning, read_config, set_keys
    from rmjax.trainer import Trainer, open_workdir

    open_workdir(options.workdir)
    is_config = options.source.partition(":")[0].endswith(".py")
    if is_config and (options.start or options.on_error == "skip"):
        raise ValueError(
            "--start and --on_error go with a file of preferences; a config has model.init and data.on_error"
        )
    if is_config:
        config = read_config(options.source)
        set_keys(config, options.keys)
    else:
        config = fine_tuning(options.source, options.workdir, options.start, options.on_error, options.keys)
    with interruptible():
        Trainer(config, options.workdir).run()
    held_out = options.workdir / HELD_OUT
    data = held_out if not is_config and held_out.is_file() else "FILE"
    _say(f"done: rmjax evaluate {data} --model={options.workdir} --out={options.workdir / 'evaluation'}")


def _report(options: argparse.Namespace) -> None:
    from rmjax.evaluate.report import rebuild
    from rmjax.evaluate.table import format_table, table

    report, page = rebuild(options.path, options.out)
    if table(report):
        _say(format_table(report))
    _say(f"wrote {page}")


def _serve(options: argparse.Namespace) -> None:
    from rmjax.serve.server import Options, serve

    serve(
        Options(
            options.model, options.host, options.port, truncate=options.truncate, max_tokens=options.max_tokens,
            token_file=options.token_file, dtype=options.dtype, template=options.template,
        )
    )  # fmt: skip


def _say(*lines: str) -> None:
    """Prints lines without what a terminal would obey."""
    from rmjax.terminal import printable

    print(printable("\n".join(lines), keep="\n"))


if __name__ == "__main__":
    main()
