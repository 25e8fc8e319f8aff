"""reasoning-gym tasks (Apache-2.0) as prompts, and the check of an answer.

`POOL_TASKS` go into the policy pool beside the written prompts; `SOLVER_TASKS`, easy enough for a 135M model to solve some
of the time, and `TRIPLE_TASKS`, a little harder and more of them, give the ranked triples for fine-tuning; `SKILL_TASKS`,
short ones, are new skills for a language model.
"""

import re

import reasoning_gym

POOL_TASKS = (
    "basic_arithmetic", "chain_sum", "coin_flip", "gcd", "lcm", "spell_backward", "count_bits", "letter_counting",
    "simple_equations", "syllogism", "products", "calendar_arithmetic", "fraction_simplification",
    "family_relationships", "prime_factorization", "number_sequence", "caesar_cipher", "time_intervals", "aiw",
    "word_sequence_reversal",
)  # fmt: skip
SOLVER_TASKS = {
    "basic_arithmetic": dict(min_terms=2, max_terms=2, min_digits=1, max_digits=1, allow_parentheses=False),
    "chain_sum": dict(min_terms=2, max_terms=3, min_digits=1, max_digits=1),
    "letter_counting": dict(min_words=2, max_words=4),
    "syllogism": dict(),
    "simple_equations": dict(min_terms=2, max_terms=2, min_value=1, max_value=9),
    "gcd": dict(min_numbers=2, max_numbers=2, min_value=2, max_value=20),
    "number_sequence": dict(max_complexity=1),
    "products": dict(min_terms=2, max_terms=2, min_digits=1, max_digits=1),
}
TRIPLE_TASKS = SOLVER_TASKS | {
    "basic_arithmetic": dict(min_terms=2, max_terms=2, min_digits=1, max_digits=2, allow_parentheses=False),
    "chain_sum": dict(min_terms=2, max_terms=3, min_digits=1, max_digits=2),
    "simple_equations": dict(min_terms=2, max_terms=2, min_value=1, max_value=12),
    "gcd": dict(min_numbers=2, max_numbers=2, min_value=2, max_value=40),
    "products": dict(min_terms=2, max_terms=2, min_digits=1, max_digits=2),
}
SKILL_TASKS = {
    "chain_sum": dict(min_terms=2, max_terms=3, min_digits=1, max_digits=2),
    "simple_equations": dict(min_terms=2, max_terms=2, min_value=1, max_value=20),
    "letter_counting": dict(min_words=2, max_words=4),
    "number_sequence": dict(max_complexity=1),
    "spell_backward": dict(min_word_len=3, max_word_len=5),
    "lcm": dict(min_numbers=2, max_numbers=2, min_value=2, max_value=30),
}
_NUMBER = re.compile(r"-?\d+(?:[.,]\d+)*(?:/\d+)?")
_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


def pool_rows(per_task: int, seed: int) -> list[dict]:
    """Prompts for the pool: {"id", "category", "prompt"}."""
    return [
        {"id": f"{task}-{i}", "category": task, "prompt": entry["question"]}
        for task in POOL_TASKS
        for i, entry in enumerate(reasoning_gym.create_dataset(task, size=per_task, seed=seed))
    ]


def solver_rows(per_task: int, seed: int) -> list[dict]:
    """Prompts with their gold answers: {"id", "category", "prompt", "answer"}; equal questions once."""
    return _answered(SOLVER_TASKS, "s", per_task, seed)


def triple_rows(per_task: int, seed: int) -> list[dict]:
    """The same of `TRIPLE_TASKS`."""
    return _answered(TRIPLE_TASKS, "t", per_task, seed)


def skill_rows(per_task: int, seed: int) -> list[dict]:
    """The same of `SKILL_TASKS`."""
    return _answered(SKILL_TASKS, "k", per_task, seed)


def _answered(tasks: dict[str, dict], letter: str, per_task: int, seed: int) -> list[dict]:
    rows: dict[str, dict] = {}
    for task, options in tasks.items():
        for i, entry in enumerate(reasoning_gym.create_dataset(task, size=per_task, seed=seed, **options)):
            row = {
                "id": f"{task}-{letter}{i}",
                "category": task,
                "prompt": entry["question"],
                "answer": entry["answer"],
            }
            rows.setdefault(entry["question"], row)
    return list(rows.values())


def final_answer(output: str, gold: str) -> str:
    """What an output finally says: its last number, or its first yes/no where the gold answer is one."""
    if gold.lower() in ("yes", "no"):
        found = _YES_NO.findall(output)
        return found[0].capitalize() if found else ""
    found = _NUMBER.findall(output)
    return found[-1].rstrip(".,").replace(",", "") if found else ""


def is_correct(task: str, gold: str, output: str) -> bool:
    """Verified by the task's own scorer; anything but full score is wrong."""
    scorer = reasoning_gym.create_dataset(task, size=1, seed=0)
    return scorer.score_answer(final_answer(output, gold), {"answer": gold, "metadata": {}}) == 1.0
