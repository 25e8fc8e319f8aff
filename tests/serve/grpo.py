"""A step of TRL's GRPO with a reward server: `python tests/serve/grpo.py URL FOLDER`, by an interpreter with torch and TRL.

It imports `rmjax_client` and nothing of rmjax. The policy is a tiny random Llama over words. Prints what came back as JSON.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from rmjax_client import Client
from rmjax_client.adapters import trl_reward

WORDS = ["<pad>", "<end>", "<unk>", *(f"w{i}" for i in range(40))]


def tokenizer() -> PreTrainedTokenizerFast:
    """Of words between blanks."""
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="<end>", unk_token="<unk>", padding_side="left"
    )


def policy() -> LlamaForCausalLM:
    """Random weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS), num_key_value_heads=1, bos_token_id=1, eos_token_id=1, pad_token_id=0, **sizes
        )
    )


def main(url: str, folder: str) -> None:
    """One step."""
    reward = trl_reward(Client(url))
    asked: list[dict] = []

    def seen(**columns) -> list[float | None]:
        found = reward(**columns)
        of = list(zip(columns["prompts"], columns["reference"], strict=True))
        asked.append({"of": of, "completions": columns["completions"], "rewards": found})
        return found

    data = Dataset.from_list([{"prompt": f"w{i} w{i + 1}", "reference": f"w{i + 2}"} for i in range(2)])
    settings = GRPOConfig(
        output_dir=str(Path(folder) / "trl"), max_steps=1, per_device_train_batch_size=8, num_generations=4,
        max_completion_length=6, use_cpu=True, report_to=[], logging_steps=1, save_strategy="no", learning_rate=0.1,
        bf16=False,
    )  # fmt: skip
    model = policy()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    trainer = GRPOTrainer(model, seen, args=settings, train_dataset=data, processing_class=tokenizer())
    trainer.train()
    moved = any(bool((a != b).any()) for a, b in zip(before, model.parameters(), strict=True))
    logged = [each["reward"] for each in trainer.state.log_history if "reward" in each]
    print(json.dumps({"asked": asked, "moved": moved, "reward": logged}))


if __name__ == "__main__":
    main(*sys.argv[1:])
