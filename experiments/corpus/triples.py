"""The larger set of ranked triples: verified answers to tasks and questions, and a ladder of four kinds.

reference: another good answer (the best); chosen and rejected: two answers by the same policy, one verified as right and one as
wrong; on a ladder, the next rungs below the reference's.
"""

import hashlib
import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from configs.sample import triples as config
from experiments.corpus.tasks import is_correct, pool_rows, triple_rows
from rmjax import sampler
from rmjax.data.rows import iterate_rows
from rmjax.files import write_lines

LADDERS_PER_PROMPT = 2
TRIPLES_PER_PROMPT = 2
_NUMBER = r"-?\d+(?:[.,]\d+)*(?:/\d+)?"
_STATED_NUMBER = re.compile(rf"(?:answer is|result is|equals|=):?\s*({_NUMBER})(?=[.\s]*$|\.\s)|^\s*({_NUMBER})[.\s]*$")
_STATED_YES_NO = re.compile(r"^\W*(yes|no)\b|answer is:?\s*(yes|no)\b", re.IGNORECASE)
WRITTEN = re.compile(r"w\d+")  # ids of the pool's prompts
_log = logging.getLogger(__name__)


def rows_of(path: Path) -> list[dict]:
    """All rows of a file."""
    return [row for _, row in iterate_rows(str(path)) if isinstance(row, dict)]


def _hash(*parts: object) -> bytes:
    return hashlib.sha256("/".join(map(str, parts)).encode()).digest()


def write_prompts(workdir: Path) -> None:
    """The prompts of every set of samples."""
    facts = [
        {"id": row["id"], "category": "fact", "prompt": row["prompt"], "answer": json.dumps(row["answers"])}
        for row in rows_of(Path("experiments/corpus/facts.jsonl"))
    ]
    found = {"tasks": triple_rows(per_task=150, seed=17), "facts": facts} | {name: [] for name in config.RUNGS}
    written = rows_of(Path("experiments/corpus/prompts.jsonl"))
    further = [row | {"id": f"l-{row['id']}"} for row in pool_rows(per_task=10, seed=2)]
    for row in written + further:
        for name in sorted(config.RUNGS, key=lambda ladder: _hash(row["id"], ladder))[:LADDERS_PER_PROMPT]:
            found[name].append(row)
    workdir.mkdir(parents=True, exist_ok=True)
    for name, rows in found.items():
        write_lines(workdir / f"{name}_prompts.jsonl", rows)


def is_right(category: str, answer: str, output: str) -> bool | None:
    """Whether an output gives the answer, by the task's scorer, or because it names one of a fact's answers.

    None where it does not say what its answer is, or says yes and no: a number in passing is no answer.
    """
    if category == "fact":
        return any(re.search(rf"\b{re.escape(name)}\b", output, re.IGNORECASE) for name in json.loads(answer))
    stated = _STATED_YES_NO if answer.lower() in ("yes", "no") else _STATED_NUMBER
    found = ["".join(groups) for groups in stated.findall(output)]
    if not found or (stated is _STATED_YES_NO and len({word.lower() for word in found}) > 1):
        return None
    return is_correct(category, answer, found[-1])


def verified(workdir: Path, name: str, left_out: Counter[str]) -> Iterator[dict]:
    """Triples of verified answers. `left_out` counts, by reason, what gives none."""
    asked = {row["id"]: row for row in rows_of(workdir / f"{name}_prompts.jsonl")}
    answers: dict[str, dict[bool, list[str]]] = defaultdict(lambda: {True: [], False: []})
    for row in rows_of(workdir / name / "solver.jsonl"):
        prompt, output = asked[row["prompt_id"]], row["output"].strip()
        verdict = is_right(prompt["category"], prompt["answer"], output) if output else None
        if verdict is None:
            left_out["answer_without_verdict"] += 1
        elif output not in answers[row["prompt_id"]][verdict]:
            answers[row["prompt_id"]][verdict].append(output)
    pool = {row["prompt"] for row in pool_rows(per_task=5, seed=1)}
    for prompt_id, sides in answers.items():
        if asked[prompt_id]["prompt"] in pool:  # pre-training may have seen answers to it
            left_out["prompt_of_the_pool"] += 1
        elif not (sides[True] and sides[False]):
            left_out["prompt_without_right_or_wrong"] += 1
        else:
            yield from _of_prompt(asked[prompt_id], sides[True], sides[False])


def _of_prompt(prompt: Mapping, right: Sequence[str], wrong: Sequence[str]) -> Iterator[dict]:
    for number, chosen in enumerate(right[:TRIPLES_PER_PROMPT]):
        others = [text for text in right if text != chosen]
        reference = others[number % len(others)] if others else _in_words(prompt)
        texts = (reference, chosen, wrong[number % len(wrong)])
        if len(set(texts)) == len(texts):
            yield triple(prompt, prompt["category"], number, texts)


def _in_words(prompt: Mapping) -> str:
    """The known answer, where no second right one was sampled."""
    return f"The answer is {json.loads(prompt['answer'])[0] if prompt['category'] == 'fact' else prompt['answer']}."


def ladder(workdir: Path, name: str, left_out: Counter[str]) -> Iterator[dict]:
    """Triples of one ladder; `left_out` as in `verified`."""
    pool = {row["prompt"] for row in pool_rows(per_task=5, seed=1)}
    asked = [row for row in rows_of(workdir / f"{name}_prompts.jsonl") if row["prompt"] not in pool]
    rungs = [_outputs(workdir / name / f"{name}-{number}.jsonl") for number in range(len(config.RUNGS[name]))]
    for prompt in asked:
        if name == "topic":
            texts = (*rungs[0][prompt["id"]], rungs[0][_other(prompt, asked)["id"]][0])
        else:
            texts = tuple(rung[prompt["id"]][0] for rung in rungs)
        if all(texts) and len(set(texts)) == len(texts):
            yield triple(prompt, name, 0, texts)
        else:
            left_out["rungs_empty_or_equal"] += 1


def _outputs(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows_of(path):
        found[row["prompt_id"]].append(row["output"].strip())
    return found


def _other(prompt: Mapping, asked: Sequence[Mapping]) -> Mapping:
    """Another prompt on the same side of the split, of the same kind where there is one."""
    side = [row for row in asked if row["id"] != prompt["id"] and held_out(row["id"]) == held_out(prompt["id"])]
    near = [row for row in side if row["category"] == prompt["category"]] or side
    return min(near, key=lambda row: _hash(prompt["id"], row["id"]))


def held_out(prompt_id: str) -> bool:
    """Whether a prompt is kept for evaluation: of the pool's prompts those that the pool keeps, of others five in eight."""
    number = _hash(prompt_id)[1]
    return number % 4 == 0 if WRITTEN.fullmatch(prompt_id) else number % 8 < 5


def triple(prompt: Mapping, category: str, number: int, texts: Sequence[str]) -> dict:
    """A row of the file."""
    answers = dict(zip(("reference", "chosen", "rejected"), texts, strict=True))
    name = f"{category}/{prompt['id']}/{number}"
    return {"id": name, "prompt_id": prompt["id"], "prompt": prompt["prompt"], "category": category, **answers}


def make(workdir: Path) -> dict[str, list[dict]]:
    """Samples what is not there yet; split → triples, of which no prompt is in both."""
    write_prompts(workdir)
    for name in (*config.ANSWERED, *config.RUNGS):
        chosen = config.get_config(name)
        chosen.prompts = str(workdir / f"{name}_prompts.jsonl")
        sampler.run(chosen, workdir / name)
    left_out: Counter[str] = Counter()
    found = [row for name in config.ANSWERED for row in verified(workdir, name, left_out)]
    found += [row for name in config.RUNGS for row in ladder(workdir, name, left_out)]
    _log.info("triples: left out %s", dict(left_out))
    return {split: _split(found, wanted) for split, wanted in (("train", False), ("test", True))}


def _split(rows: Iterable[Mapping], wanted: bool) -> list[dict]:
    chosen = sorted((r for r in rows if held_out(r["prompt_id"]) == wanted), key=lambda row: _hash(row["id"]))
    counts = Counter(row["category"] for row in chosen)
    _log.info("triples: %d of %d prompts, %s", len(chosen), len({r["prompt"] for r in chosen}), dict(counts))
    return [{key: value for key, value in row.items() if key != "prompt_id"} for row in chosen]
