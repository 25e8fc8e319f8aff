"""Samples answers to easy reasoning-gym tasks, to be verified: the ranked triples for fine-tuning."""

from ml_collections import ConfigDict

from configs.sample import corpus

_EXAMPLES = (
    ("Calculate 3 + 4.", "3 + 4 = 7. The answer is 7."),
    (
        "Find the Greatest Common Divisor (GCD) of these numbers: 8, 12. Give only the GCD as your final answer.",
        "Both can be divided by 4. The answer is 4.",
    ),
)


def get_config() -> ConfigDict:
    config = corpus.get_config()
    system = "Solve the task. End with: The answer is X."
    config.policies = (
        dict(name="solver", kind="persona", split="seen", system=system, examples=_EXAMPLES, decoding=(0.9, 0.9, 50)),
    )
    config.prompts = "runs/corpus/solver_prompts.jsonl"  # lines of {"id", "prompt", "category", "answer"}
    config.policies_per_prompt = 1  # the one above
    config.samples = 6  # per prompt: some right, some wrong
    config.max_new_tokens = 32  # tokens
    config.batch_prompts = 16  # prompts a batch, at most
    return config
