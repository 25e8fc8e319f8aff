"""The other side: `transformers.generate`, run by the interpreter of an environment with torch; it imports nothing of rmjax.

    python -P experiments/studies/sampling/peer.py MODEL THREADS

A line {"prompts": [[ids]], "samples", "new_tokens", "rows", "greedy"} gets a line [[ids]], the samples of each prompt in turn.
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM


@torch.inference_mode()
def main(folder: str, threads: str) -> None:
    """Answers lines until there are no more."""
    torch.set_num_threads(int(threads))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for line in sys.stdin:
        asked, found = json.loads(line), []
        ids = torch.tensor(asked["prompts"]).repeat_interleave(asked["samples"], dim=0)
        how = {"do_sample": False} if asked["greedy"] else {"do_sample": True, "temperature": 1.0, "top_k": 0}
        for part in ids.split(asked["rows"]):
            out = model.generate(
                part, attention_mask=torch.ones_like(part), max_new_tokens=asked["new_tokens"], pad_token_id=0, **how
            )
            found += out[:, part.shape[1] :].tolist()
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
