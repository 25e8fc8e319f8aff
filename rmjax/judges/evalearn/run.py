"""EvaLearn from files to figures: answers, grades and figures of one model in some paradigms."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmjax.evaluate.report import environment
from rmjax.files import write_json, write_lines
from rmjax.judges.evalearn.data import Series, counts, read_problems, read_series
from rmjax.judges.evalearn.metrics import AVERAGES, OFFICIAL, Outcomes, mean, summarize
from rmjax.judges.evalearn.protocol import (
    PARADIGMS,
    Graded,
    Grader,
    Prompts,
    by_judge,
    by_verifier,
    lines,
    right_of,
    run,
)
from rmjax.judges.evalearn.toy import says_it, toy_series
from rmjax.judges.generators import Generation, Named
from rmjax.judges.replies import Replies

_TOLD = {True: "The answer is right.", False: "The answer is wrong."}
"""What a rule says of an answer to a toy problem."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What is run.

    Attributes:
      model: answers; as `generators.Named` takes it.
      out: folder: replies, grades, a row for each problem, result.json.
      judge: grades by the rubric; as `model`. Not asked for toy problems, whose answers are known.
      problems, sequences: EvaLearn's two files.
      toy: in place of the files so many sequences of each toy family.
      paradigms: names in `PARADIGMS`.
      prompts: a file of prompts that ships, or a TOML file.
      how: how the model's answers are drawn.
      rubric: the field of rubrics.
      limit: sequences of each type at most, 0 for all.
      late: K of the accuracy after position K.
      seed: of answers, toys and intervals.
    """

    model: str
    out: Path
    judge: str = ""
    problems: str = ""
    sequences: str = ""
    toy: int = 0
    paradigms: tuple[str, ...] = ("zero_shot", "feedback")
    prompts: str = "evalearn"
    how: Generation = Generation()
    rubric: str = ""
    limit: int = 0
    late: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if bool(self.toy) == bool(self.problems and self.sequences):
            raise ValueError("give --problems and --sequences, or --toy: one of them")
        if not self.toy and not self.judge:
            raise ValueError("--judge is missing; name the generator that grades answers by the rubrics")
        if unknown := [name for name in self.paradigms if name not in PARADIGMS]:
            raise ValueError(f"--paradigm={unknown[0]} does not exist; choose {', '.join(PARADIGMS)}")


def evaluate(options: Options) -> dict[str, Any]:
    """Runs what is not on file yet, writes the files, returns what result.json holds.

    Raises:
      OSError, ValueError: a file, a prompt or a model cannot be used; says which.
      InUseError: another process writes the replies.
    """
    series, prompts = _series(options), Prompts.load(options.prompts)
    options.out.mkdir(parents=True, exist_ok=True)
    done: dict[str, list[list[Graded]]] = {}
    with contextlib.ExitStack() as held:
        student = held.enter_context(
            Replies(Named(options.model, options.how), options.out / "replies.jsonl", options.seed)
        )
        grader, failures = _grader(options, prompts, held)
        for paradigm in options.paradigms:
            done[paradigm] = run(series, student, grader, prompts, paradigm)
            write_lines(options.out / f"{paradigm}.jsonl", lines(series, done[paradigm], paradigm))
        result = {
            "model": student.generator.name, "judge": options.judge or "a rule", "prompts": options.prompts,
            "sequences": counts(series), "failures": dict(student.counts + failures),
            "paradigms": _paradigms(series, done, options), **environment(),
        }  # fmt: skip
    result["differences"] = _differences(series, done, options.seed)
    write_json(options.out / "result.json", result)
    return result


def _series(options: Options) -> list[Series]:
    every = (
        toy_series(options.toy, seed=options.seed)
        if options.toy
        else read_series(options.sequences, read_problems(options.problems, options.rubric))
    )
    met, kept = Counter[str](), []
    for each in every:
        met[each.type] += 1
        if not options.limit or met[each.type] <= options.limit:
            kept.append(each)
    return kept


def _grader(options: Options, prompts: Prompts, held: contextlib.ExitStack) -> tuple[Grader, Counter[str]]:
    if options.toy:
        return by_verifier(says_it, _TOLD), Counter()
    named = Named(options.judge, prompts.generation)
    replies = held.enter_context(Replies(named, options.out / "grades.jsonl", options.seed))
    return by_judge(prompts, replies), replies.counts


def _paradigms(
    series: Sequence[Series], done: Mapping[str, Sequence[Sequence[Graded]]], options: Options
) -> dict[str, Any]:
    """Paradigm → figures of the sequences that are whole, and what others lack; `offset` is of those that are whole alone too."""
    whole = {name: right_of(series, found) for name, found in done.items()}
    found: dict[str, Any] = {}
    for name, (kept, right_NM, lacking) in whole.items():
        found[name] = {"whole_sequences": len(kept), "lacking": lacking}
        if not kept:
            continue
        types = tuple(series[n].type for n in kept)
        found[name] |= summarize(Outcomes(right_NM, types, late=options.late), options.seed)
        both = sorted(set(kept) & set(whole["zero_shot"][0])) if "zero_shot" in whole and name != "zero_shot" else []
        if both:
            right, alone = (_rows(whole[each], both) for each in (name, "zero_shot"))
            of_both = summarize(Outcomes(right, tuple(series[n].type for n in both), alone, options.late), options.seed)
            found[name]["figures"] |= {k: v for k, v in of_both["figures"].items() if k == "offset"}
    return found


def _rows(whole: tuple[list[int], np.ndarray, Any], kept: Sequence[int]) -> np.ndarray:
    places = {n: row for row, n in enumerate(whole[0])}
    return whole[1][[places[n] for n in kept]]


def _differences(series: Sequence[Series], done: Mapping[str, Sequence[Sequence[Graded]]], seed: int) -> dict[str, Any]:
    """Accuracy of each paradigm minus that of zero_shot, paired by sequence."""
    whole = {name: right_of(series, found) for name, found in done.items()}
    found = {}
    for name in whole.keys() - {"zero_shot"} if "zero_shot" in whole else ():
        both = sorted(set(whole[name][0]) & set(whole["zero_shot"][0]))
        if both:
            minus = _rows(whole[name], both).mean(1) - _rows(whole["zero_shot"], both).mean(1)
            found[name] = {a: mean(minus, [series[n].type for n in both], a, seed) for a in AVERAGES}
    return found


def notes(result: Mapping[str, Any]) -> Iterator[str]:
    """The result in lines: the published averages first, each beside chance."""
    for paradigm, found in result["paradigms"].items():
        total = sum(result["sequences"].values())
        yield f"{paradigm}: {found['whole_sequences']} of {total} sequences are whole"
        for reason, count in found["lacking"].items():
            yield f"  not scored: {count} problems ({reason})"
        for name, figure in found.get("figures", {}).items():
            yield f"  {name:12} {_line(figure, OFFICIAL[name])}"
            other = next(average for average in AVERAGES if average != OFFICIAL[name])
            yield f"  {'':12} {_line(figure, other)}"
    for paradigm, both in result["differences"].items():
        yield f"{paradigm} minus zero_shot, accuracy: {_interval(both['micro'])} micro, {_interval(both['macro'])} macro"
    for reason, count in result["failures"].items():
        yield f"replies that could not be had: {count} ({reason})"


def _line(figure: Mapping[str, Any], average: str) -> str:
    found = figure[average]
    published = ", as published" if average == figure["official"] else ""
    return (
        f"{_interval(found)} {average}{published}; chance {found['bernoulli']:.3f}, order shuffled {found['shuffled']:.3f}, "
        f"above it {_interval(found['above_shuffled'])}"
    )


def _interval(found: Mapping[str, Any]) -> str:
    return f"{found['value']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"
