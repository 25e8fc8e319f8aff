"""Makes the shipped corpus again: `python -m experiments.corpus.make --workdir=runs/corpus` (hours on 2 cores; resumes).

Steps: prompts → tuned policies → samples of the pool → verified answers and a quality ladder → files in
rmjax/data/corpus. Needs the extra `corpus`.
"""

import functools
import hashlib
import json
import logging
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations
from pathlib import Path

import zstandard
from absl import app, flags

from configs.sample import corpus as pool_config
from configs.sample import ladder as ladder_config
from configs.sample import solver as solver_config
from configs.sample import tune as tune_config
from experiments import train
from experiments.corpus import triples
from experiments.corpus.tasks import is_correct, pool_rows, skill_rows, solver_rows
from experiments.corpus.texts import corpora
from experiments.start import guarded, parse_flags, prepare
from rmjax import sampler
from rmjax.data.rows import iterate_rows
from rmjax.policy.policies import Policy

PACKAGE = Path("rmjax/data/corpus")
HELD_OUT = 4  # every fourth prompt, by hash
TRIPLES_PER_TASK = 3
_log = logging.getLogger(__name__)


def held_out(prompt_id: str) -> bool:
    """Whether the prompt is kept for evaluation: a property of its id alone."""
    return hashlib.sha256(prompt_id.encode()).digest()[1] % HELD_OUT == 0


def _write(path: Path, rows: Iterable[Mapping]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    data = zstandard.ZstdCompressor(level=19).compress(text.encode()) if path.suffix == ".zst" else text.encode()
    path.write_bytes(data)


def _rows(path: Path) -> list[dict]:
    return [row for _, row in iterate_rows(str(path)) if isinstance(row, dict)]


def write_prompts(workdir: Path) -> None:
    """The prompts of the pool, the solver and the ladder, and the texts that policies are tuned on."""
    written = _rows(Path("experiments/corpus/prompts.jsonl"))
    pool = sorted(written + pool_rows(per_task=5, seed=1), key=lambda row: hashlib.sha256(row["id"].encode()).digest())
    _write(workdir / "prompts.jsonl", ({**r, "split": "unseen" if held_out(r["id"]) else "seen"} for r in pool))
    _write(workdir / "solver_prompts.jsonl", solver_rows(per_task=30, seed=7))
    _write(workdir / "ladder_prompts.jsonl", written[:120])
    for name, rows in corpora().items():
        _write(workdir / "texts" / f"{name}.jsonl", rows)


def tune_policies(workdir: Path) -> None:
    """Fine-tunes one model per corpus."""
    for name in corpora():
        config = tune_config.get_config()
        config.data.path = str(workdir / "texts" / f"{name}.jsonl")
        train.run(config, workdir / "tuned" / name)


def sample_all(workdir: Path) -> None:
    """Draws every sample that is not there yet."""
    for name, module in (("samples", pool_config), ("solver", solver_config), ("ladder", ladder_config)):
        sampler.run(module.get_config(), workdir / name)


def pool_corpus(workdir: Path) -> list[dict]:
    """Rows of the policy pool, by prompt."""
    policies = {row["name"]: Policy.parse(row) for row in pool_config.get_config().policies}
    prompts = {row["id"]: row for row in _rows(workdir / "prompts.jsonl")}
    rows = [row for name in policies for row in _rows(workdir / "samples" / f"{name}.jsonl")]
    rows.sort(key=lambda row: (row["prompt_id"], row["policy"], row["sample"]))
    return [
        {
            **row,
            "kind": policies[row["policy"]].kind,
            "policy_split": policies[row["policy"]].split,
            "prompt_split": prompts[row["prompt_id"]]["split"],
            "category": prompts[row["prompt_id"]]["category"],
        }
        for row in rows
    ]


def solver_triples(workdir: Path) -> list[dict]:
    """reference and chosen: two different right answers; rejected: a wrong one. Verified by the task's scorer."""
    tasks = {row["id"]: row for row in _rows(workdir / "solver_prompts.jsonl")}
    answers: dict[str, dict[bool, list[str]]] = defaultdict(lambda: {True: [], False: []})
    for row in _rows(workdir / "solver" / "solver.jsonl"):
        task = tasks[row["prompt_id"]]
        found = answers[row["prompt_id"]][is_correct(task["category"], task["answer"], row["output"])]
        if row["output"].strip() and row["output"] not in found:
            found.append(row["output"])
    made = [row for prompt_id, sides in answers.items() for row in _task_triples(tasks[prompt_id], sides)]
    _log.info("solver: %s of %d tasks give triples", len({row["prompt"] for row in made}), len(tasks))
    return made


def _task_triples(task: Mapping, sides: Mapping[bool, Sequence[str]]) -> list[dict]:
    right, wrong = list(sides[True]), sides[False]
    if len(right) == 1:  # one verified answer needs a second: the gold one, in words
        right.append(f"The answer is {task['answer']}.")
    pairs = [pair for pair in permutations(dict.fromkeys(right), 2)][:TRIPLES_PER_TASK]
    return [
        _triple(f"{task['id']}/{i}", task["id"], task["prompt"], task["category"], *pair, wrong[i % len(wrong)])
        for i, pair in enumerate(pairs)
        if wrong
    ]


def ladder_triples(workdir: Path) -> list[dict]:
    """reference, chosen, rejected: the rungs from undamaged to most damaged."""
    by_prompt: dict[str, dict[str, dict]] = defaultdict(dict)
    for rung in ladder_config.RUNGS:
        for row in _rows(workdir / "ladder" / f"{rung}.jsonl"):
            by_prompt[row["prompt_id"]][rung] = row
    made = []
    for prompt_id, rungs in by_prompt.items():
        texts = [rungs[rung]["output"].strip() for rung in ladder_config.RUNGS]
        if all(texts) and len(set(texts)) == len(texts):
            prompt = rungs[ladder_config.RUNGS[0]]["prompt"]
            made.append(_triple(f"ladder-{prompt_id}", prompt_id, prompt, "ladder", *texts))
    return made


def _triple(name: str, prompt_id: str, prompt: str, category: str, *texts: str) -> dict:
    answers = dict(zip(("reference", "chosen", "rejected"), texts, strict=True))
    return {"id": name, "prompt_id": prompt_id, "prompt": prompt, "category": category, **answers}


def write_skills() -> None:
    """New skills and old knowledge for language models: tasks with bare answers, and closed-book questions."""
    skills = skill_rows(per_task=600, seed=31)
    for split, wanted in (("train", False), ("test", True)):
        _write(PACKAGE / f"skills_{split}.jsonl.zst", [row for row in skills if held_out(row["prompt"]) == wanted])
    _write(PACKAGE / "facts.jsonl.zst", _rows(Path("experiments/corpus/facts.jsonl")))


def build(workdir: Path) -> None:
    """Writes the files of the package."""
    pool = pool_corpus(workdir)
    ranked = solver_triples(workdir) + ladder_triples(workdir)
    _write(PACKAGE / "policy_pool.jsonl.zst", pool)
    for split, wanted in (("train", False), ("test", True)):
        # By prompt id, as in the pool: a ladder prompt kept for testing is none of pre-training's.
        rows = [
            {k: v for k, v in row.items() if k != "prompt_id"} for row in ranked if held_out(row["prompt_id"]) == wanted
        ]
        _write(PACKAGE / f"ranked_{split}.jsonl.zst", rows)
        print(f"ranked_{split}: {len(rows)} triples, {dict(Counter(row['category'] for row in rows))}")
    for split, rows in triples.make(workdir / "triples").items():
        _write(PACKAGE / f"triples_{split}.jsonl.zst", rows)
    write_skills()
    print(f"policy_pool: {len(pool)} samples of {len({row['policy'] for row in pool})} policies")
    print(f"{sum(path.stat().st_size for path in PACKAGE.iterdir()) / 1e6:.2f} MB in {PACKAGE}")


def run(workdir: Path) -> None:
    """All steps; what is done already is not done again."""
    write_prompts(workdir)
    tune_policies(workdir)
    sample_all(workdir)
    build(workdir)


def main(argv: Sequence[str]) -> None:
    """Reads the flags."""
    del argv
    sys.exit(guarded(functools.partial(run, Path(flags.FLAGS.workdir))))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/corpus", "folder of the intermediate files")
    prepare()
    app.run(main, flags_parser=parse_flags)
