"""Pairs of words without meaning, as long as the real ones, for machines that lack those: speed does not depend on sense."""

import json
from pathlib import Path

import numpy as np

from rmjax.data.preferences import PREFERENCE_SETS, set_path

PAIRS = 2000
# Logarithms of lengths in tokens, mean and standard deviation, of 257 pairs of hh_harmless under SmolLM2's tokenizer: what a
# pair shares, and what each answer has of its own.
SHARED, OWN = (4.17, 1.10), (3.44, 0.89)
# A token each, with the space before.
WORDS = (
    "the of and to in is it you that he was for on are with as his they be at one have this from or had by but some what "
    "there we can out other were all your when up use word how said an each she which do their time if will way about many "
    "then them would like so these her long make thing see him two has look more day could go come did no most people over"
)


def write_generated(path: Path, pairs: int = PAIRS) -> None:
    """A JSONL file of comparisons; always the same one."""
    random, choices = np.random.default_rng(0), WORDS.split()

    def words(mean: float, deviation: float) -> str:
        count = int(np.clip(np.exp(random.normal(mean, deviation)), 2, 2000))
        return " ".join(random.choice(choices, count))

    rows = [
        {"prompt": words(*SHARED), "chosen": words(*OWN), "rejected": words(*OWN), "id": f"generated{i}"}
        for i in range(pairs)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def stand_in(path: str, root: str, folder: Path) -> tuple[str, str]:
    """(path, name) of data: generated pairs, written to `folder`, where it is a real set that is not on this machine."""
    if path not in PREFERENCE_SETS or set_path(path, root).exists():
        return path, path
    write_generated(folder / "generated.jsonl")
    return str(folder / "generated.jsonl"), "generated"
