"""Samples for the larger set of ranked triples: `configs/sample/triples.py:NAME`.

tasks, facts: answers to be verified, by one policy. noise, depth, temperature, topic: a ladder, the same model better and worse;
on the ladder `topic` the best rung answers other prompts too.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.sample import corpus, solver

BEST: dict[str, Any] = {"kind": "base", "decoding": (0.7, 0.9, 50)}
RUNGS: dict[str, tuple[dict[str, Any], ...]] = {  # ladder → its rungs from best to worst, where they differ from BEST
    "noise": (
        {},
        {"kind": "noise", "noise": 0.06, "noise_seed": 21},
        {"kind": "noise", "noise": 0.09, "noise_seed": 21},
    ),
    "depth": ({}, {"kind": "depth", "dropped_layers": (12,)}, {"kind": "depth", "dropped_layers": (11, 12, 13)}),
    "temperature": ({}, {"kind": "decoding", "decoding": (1.4, 1, 200)}, {"kind": "decoding", "decoding": (2, 1, 200)}),
    "topic": ({},),
}
ANSWERED = ("tasks", "facts")
_FACTS = (
    ("What is the color of snow?", "Snow is white."),
    ("How many legs does a spider have?", "A spider has eight legs."),
)


def get_config(name: str) -> ConfigDict:
    """Raises ValueError for an unknown name."""
    if name in RUNGS:
        return _ladder(name)
    if name not in ANSWERED:
        raise ValueError(f"configs/sample/triples.py:{name} is unknown; choose {', '.join([*ANSWERED, *RUNGS])}")
    config = solver.get_config()
    config.samples = 5  # per prompt: some right, some wrong
    config.batch_prompts = 32  # prompts a batch, at most
    if name == "facts":
        system = "Answer the question in one short sentence."
        config.policies = (dict(config.policies[0], system=system, examples=_FACTS),)
    config.prompts = f"runs/corpus/triples/{name}_prompts.jsonl"  # lines of {"id", "prompt", "category", "answer"}
    return config


def _ladder(name: str) -> ConfigDict:
    config = corpus.get_config()
    config.policies = tuple(
        dict(BEST | rung, name=f"{name}-{number}", split="seen") for number, rung in enumerate(RUNGS[name])
    )
    config.prompts = f"runs/corpus/triples/{name}_prompts.jsonl"  # lines of {"id", "prompt", "category"}
    config.policies_per_prompt = len(RUNGS[name])  # all of them
    config.policies_per_held_out = (len(RUNGS[name]), 0)  # all of them
    config.samples = 2 if name == "topic" else 1
    config.max_new_tokens = 32  # tokens
    return config
