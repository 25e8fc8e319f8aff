"""Reward functions of TRL, verl and tunix that ask a server.

POLAR's reference stands in a column: `reference` of the data set, verl's `ground_truth`. A prompt is a text or messages.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rmjax_client import Client


def record(prompt: Any, output: Any, reference: Any = None) -> dict[str, Any]:
    """A record as the server reads it; `output` may be messages, too, and `reference` a number or a list of texts."""
    field = "prompt" if isinstance(prompt, str) else "messages"
    if reference is None or reference == "" or reference == []:
        return {field: prompt, "output": output}
    if isinstance(reference, int | float) and not isinstance(reference, bool):
        reference = str(reference)  # the answer to a sum, as data sets of mathematics have it
    several = "references" if isinstance(reference, list) else "reference"
    return {field: prompt, "output": output, several: reference}


def _references(columns: Mapping[str, Any], name: str, count: int) -> Sequence[Any]:
    """The column called so. KeyError where one was named that the data set does not have."""
    found = columns.get(name or "reference")
    if found is None and name:
        raise KeyError(f"the data set has no column {name!r} for the references; it has {', '.join(columns) or 'none'}")
    return [None] * count if found is None else found


def trl_reward(client: Client, reference: str = "", strict: bool = True) -> Callable[..., list[float | None]]:
    """For `reward_funcs` of TRL's GRPO, RLOO and online DPO.

    Args:
      reference: the data set's column with POLAR's references; "" = `reference` if it has that.
      strict: an answer without reward is an error; otherwise None, which TRL leaves out of the advantages.
    """

    def rmjax_reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        references = _references(columns, reference, len(prompts))
        rows = [record(*row) for row in zip(prompts, completions, references, strict=True)]
        return list(client.rewards(rows)) if strict else client.rewards_or_none(rows)

    return rmjax_reward


_PROMPTS = ("prompt", "question")  # the second of verl's own preparation of GSM8K


def _prompt(extra_info: Mapping[str, Any], name: str) -> Any:
    found = next((key for key in ([name] if name else _PROMPTS) if key in extra_info), None)
    if found is None:
        raise KeyError(
            f"extra_info has no {name or ' and no '.join(_PROMPTS)}; name the key of the prompt, verl_compute_score(client, "
            f"prompt=…), of those that it has: {', '.join(extra_info) or 'none'}"
        )
    return extra_info[found]


def verl_compute_score(client: Client, prompt: str = "") -> Callable[..., float]:
    """For verl's `custom_reward_function`: `compute_score = verl_compute_score(Client(URL))` in the file that it names.

    Args:
      prompt: the key of `extra_info` with the prompt, a text or messages; "" = `prompt`, or else `question`.
    """

    def compute_score(
        data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any] | None, **_: Any
    ) -> float:
        del data_source
        return client.rewards([record(_prompt(extra_info or {}, prompt), solution_str, ground_truth)])[0]

    return compute_score


def tunix_reward(client: Client, reference: str = "") -> Callable[..., list[float]]:
    """For `reward_fns` of tunix's learners.

    Args:
      reference: the data set's column with POLAR's references; "" = `reference` if it has that.
    """

    def reward_fn(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        references = _references(columns, reference, len(prompts))
        rows = zip(prompts, completions, references, strict=True)
        return client.rewards([record(_text(p), _text(c), _reference(r)) for p, c, r in rows])

    return reward_fn


def _text(value: Any) -> Any:
    """Of numpy's and TensorFlow Datasets' arrays of bytes, too; what is no text stays, for the server to refuse it."""
    return value.decode() if isinstance(value, bytes) else str(value) if isinstance(value, str) else value


def _reference(value: Any) -> Any:
    """A text, or several in a list, tuple or array."""
    several = value.tolist() if hasattr(value, "tolist") and not isinstance(value, str | bytes) else value
    return list(map(_text, several)) if isinstance(several, list | tuple) else _text(several)
