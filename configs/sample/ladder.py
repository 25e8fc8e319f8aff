"""Samples a quality ladder: the same model undamaged, damaged, and damaged more, on the same written prompts."""

from ml_collections import ConfigDict

from configs.sample import corpus

RUNGS = ("rung-clean", "rung-noise6", "rung-noise9")


def get_config() -> ConfigDict:
    config = corpus.get_config()
    config.policies = tuple(
        dict(name=name, kind="noise", split="seen", noise=noise, noise_seed=11, decoding=(0.7, 0.9, 50))
        for name, noise in zip(RUNGS, (0.0, 0.06, 0.09), strict=True)
    )
    config.prompts = "runs/corpus/ladder_prompts.jsonl"  # lines of {"id", "prompt", "category"}
    config.policies_per_prompt = 3  # all of them
    config.policies_per_held_out = (3, 0)  # all of them
    config.samples = 1
    config.max_new_tokens = 32  # tokens
    return config
