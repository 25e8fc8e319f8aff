"""Reward functions of TRL, verl and tunix that ask a server.

POLAR's reference stands in a column: `reference` of the data set, verl's `ground_truth`. A prompt is a text or messages.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rmjax_client import Client


def record(prompt: Any, output: Any, reference: Any = None) -> dict[str, Any]:
    """A record as the server reads it; `output` may be messages, too."""
    field = "prompt" if isinstance(prompt, str) else "messages"
    return {field: prompt, "output": output, **({"reference": reference} if reference else {})}


def trl_reward(client: Client, reference: str = "reference", strict: bool = True) -> Callable[..., list[float | None]]:
    """For `reward_funcs` of TRL's GRPO, RLOO and online DPO.

    Args:
      reference: the data set's column with POLAR's references, if it has it.
      strict: an answer without reward is an error; otherwise None, which TRL leaves out of the advantages.
    """

    def rmjax_reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        references = columns.get(reference) or [None] * len(prompts)
        rows = [record(*row) for row in zip(prompts, completions, references, strict=True)]
        return list(client.rewards(rows)) if strict else client.rewards_or_none(rows)

    return rmjax_reward


def verl_compute_score(client: Client, prompt: str = "prompt") -> Callable[..., float]:
    """For verl's `custom_reward_function`: `compute_score = verl_compute_score(Client(URL))` in the file that it names.

    Args:
      prompt: the key of `extra_info` with the prompt, a text or messages.
    """

    def compute_score(
        data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any], **_: Any
    ) -> float:
        del data_source
        return client.rewards([record(extra_info[prompt], solution_str, ground_truth)])[0]

    return compute_score


def tunix_reward(client: Client, reference: str = "reference") -> Callable[..., list[float]]:
    """For `reward_fns` of tunix's learners.

    Args:
      reference: the data set's column with POLAR's references, if it has it.
    """

    def reward_fn(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        given = columns.get(reference)
        references = [None] * len(prompts) if given is None else given
        rows = zip(prompts, completions, references, strict=True)
        return client.rewards([record(str(p), str(c), r if r is None else str(r)) for p, c, r in rows])

    return reward_fn
