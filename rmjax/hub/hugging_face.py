"""Folders in Hugging Face's form: config.json, safetensors and tokenizer.json in; no code of theirs, no pickle, no torch.

    described + tensors     config_json.py, rope_json.py, families.py · tensors.py, names.py
    tokenizer               tokenizer.json, and of tokenizer_config.json and chat_template.jinja the template, bos and eos
    format                  what is assumed of how a reward model reads texts: `assumed_format`

Parameters are leaves that are read when they are asked for (`models.stored`): `placed` reads them straight into a sharding.
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmjax.data.formats import Format, completed, stored
from rmjax.data.tokenizer import Tokenizer, TokenizerError
from rmjax.hub.config_json import CONFIG, Described, read_config
from rmjax.hub.families import BEFORE_TEMPLATE
from rmjax.hub.names import HEADS
from rmjax.hub.tensors import DTYPES, HubError, Tensors, check, layout, parameters
from rmjax.models.rope import longest_text
from rmjax.models.transformer import TransformerConfig

TOKENIZER, TOKENIZER_CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
FORMAT = "rmjax.json"
"""Beside an exported model: how it reads texts, which Hugging Face's files have no place for."""
_OWN = "model.json"  # of a run, whose config.json is another
_SPLIT = "<|reward|>"
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class HubModel:
    """A folder that was read, but for its numbers.

    Attributes:
      config: the architecture; its dtypes are those of the files, and activations are float32 beside float16 weights.
      params: leaves that lie in files: `backbone`, and `head` where there is one.
      head: kind of the reward head, one of `names.HEADS`; "" = a language model.
      described: what config.json says.
    """

    folder: Path
    config: TransformerConfig
    params: dict[str, Any]
    head: str
    described: Described


def is_hub_folder(folder: Path) -> bool:
    """Whether a folder is one in Hugging Face's form, and no run of ours."""
    path = folder / CONFIG
    if not path.is_file() or (folder / _OWN).is_file():
        return False
    try:
        file = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return (folder / TOKENIZER).is_file()  # a damaged one, of which `open_folder` says so
    return isinstance(file, dict) and ("model_type" in file or "architectures" in file)


def open_folder(folder: str | Path) -> HubModel:
    """Reads what a folder says and checks that its tensors are those; numbers are read later, when asked for.

    Raises:
      FileNotFoundError: config.json or the weights are absent.
      HubError: an unsupported family, keys that change the model and are not read, or tensors that are missing, unknown, of
        another shape or dtype; the message lists all of a kind.
    """
    folder = Path(folder)
    described = read_config(folder)
    tensors = Tensors(folder, vision=described.nested)
    head = _head(described, tensors)
    config = _with_head(described.transformer, head, tensors)
    config = _with_output(config, described, tensors, head)
    found = layout(config, described.kind.names, head)
    check(tensors, found.wanted)
    held = {DTYPES[tensors.dtypes[name]] for name in found.wanted if not name.startswith(("score.", "v_head."))}
    stored = held.pop() if len(held) == 1 else "float32"
    config = dataclasses.replace(config, param_dtype=stored, dtype="bfloat16" if stored == "bfloat16" else "float32")
    ends = set(described.tokens["eos"]) & set(described.tokens["pad"]) if head else set()
    standard = described.standard if head else (0.0, 1.0)
    _say(folder, ends.pop() if ends else -1, tuple(sorted(tensors.skipped.items())), standard)
    return HubModel(folder, config, parameters(tensors, found), head, described)


def _head(described: Described, tensors: Tensors) -> str:
    """By the tensors; where none is there, by the class, so that what is missing is named."""
    found = [name for name, held in HEADS.items() if set(held.values()) <= set(tensors.shapes)]
    if found:
        return max(found, key=lambda name: len(HEADS[name]))
    if described.architecture == "Qwen2ForRewardModel":
        return "score_mlp"
    if described.for_rewards:
        return "v_head" if described.architecture == "InternLM2ForRewardModel" else "score"
    return ""


def _with_head(config: TransformerConfig, head: str, tensors: Tensors) -> TransformerConfig:
    if head.endswith("_mlp"):
        hidden = tensors.shapes.get(HEADS[head]["head/hidden/kernel"], (0,))[0]
        return dataclasses.replace(config, head="mlp", head_hidden=hidden)
    return dataclasses.replace(config, head_bias="head/bias" in HEADS.get(head, {}))


def _with_output(config: TransformerConfig, described: Described, tensors: Tensors, head: str) -> TransformerConfig:
    """Reward classes have no vocabulary head, which here is to have a tied one. A tied one's own copy is not read; one that
    differs from the embedding is no copy, whatever config.json says, and `transformers` does not tie it either."""
    output, embedding = (
        f"{described.kind.names.whole[f'backbone/{name}'].hugging_face}.weight"
        for name in ("output/kernel", "embedding/embedding")
    )
    if output not in tensors.shapes:
        return dataclasses.replace(config, tied_embeddings=True) if head else config
    if config.tied_embeddings and not head and not tensors.equal(output, embedding):
        _log.warning(
            "%s: tie_word_embeddings is true in config.json, and %s differs from %s: they are not tied, as in transformers",
            tensors.folder, output, embedding,
        )  # fmt: skip
        return dataclasses.replace(config, tied_embeddings=False)
    if config.tied_embeddings:
        tensors.drop(output, "vocabulary heads, tied by config.json")
    return config


@functools.lru_cache(maxsize=256)
def _say(
    folder: Path, padded_end: int, skipped: tuple[tuple[str, int], ...], standard: tuple[float, float] = (0.0, 1.0)
) -> None:
    """Each folder is said of once."""
    if standard != (0.0, 1.0):
        _log.warning(
            "%s: config.json says mean %g and std %g of the rewards: those given here are the head's own, as in transformers; "
            "OpenRLHF with --normalize_reward gives (reward - mean) / std",
            folder, *standard,
        )  # fmt: skip
    if padded_end >= 0:
        _log.warning(
            "%s: pad_token_id is %d, an end token too: transformers reads a reward at the last token of another id, here it is "
            "read at a text's last token, by the mask",
            folder, padded_end,
        )  # fmt: skip
    for what, count in skipped:
        _log.info("%s: %d tensors left out: %s", folder, count, what)


def read_tokenizer(folder: Path, described: Described) -> Tokenizer:
    """The folder's tokenizer, with its chat template, bos and eos.

    Raises:
      FileNotFoundError: there is no tokenizer.json.
      TokenizerError: it is none, or has more tokens than the model.
    """
    size = described.transformer.vocab_size
    tokenizer = Tokenizer.from_folder(folder).limited(size)
    if (words := tokenizer.words) > size:
        raise TokenizerError(
            f"{folder / TOKENIZER}: has {words} tokens, and the model {size}; get both of one revision"
        )
    tokenizer.skipped_at_end = _skipped_at_end(described)
    return tokenizer


def _skipped_at_end(described: Described) -> int:
    """`…ForSequenceClassification` reads at the rightmost token that is not the pad id, whatever the mask says, so not at the end
    of a text that ends with that id. Reward classes of remote code have rules of their own."""
    by_pad = described.architecture.endswith("ForSequenceClassification")
    return next(iter(described.tokens["pad"]), -1) if by_pad else -1


def _json(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise HubError(f"{path}: not a JSON object ({error}); get the file again") from error


def assumed_format(model: HubModel, tokenizer: Tokenizer) -> Format:
    """How a reward model of the hub reads a text: as its rmjax.json says, where we wrote it, or as its class is used.

    `InternLM2ForRewardModel` with POLAR's separator reads POLAR's format; without it (InternLM2-Reward) the chat template and
    then the token that config.json names. All others read the chat template's text at its last token, blanks included.

    Raises:
      ValueError: the class reads a chat template, and the folder has none.
    """
    if said := _json(model.folder / FORMAT).get("format"):
        return stored(said)
    config = model.config
    length = min(Format.max_length, config.max_positions, longest_text(config.rope, config.max_positions) or 2**30)
    sizes: dict[str, Any] = {
        "max_length": max(length, 7),
        "max_response_length": max(1, min(Format.max_response_length, length)),
    }
    if not (reward := model.described.tokens["reward"]):
        _needs_template(model, tokenizer)
        template = _before(model.folder) + tokenizer.chat_template
        return completed(Format(kind="chat", template=template, read_out="last", **sizes), tokenizer)
    token = tokenizer.token(reward[0])
    if tokenizer.has(_SPLIT) and token != _SPLIT:
        return Format(
            kind="polar", split_token=_SPLIT, reward_token=token, bos_token=tokenizer.bos_token,
            response_cut_side="right", **sizes,
        )  # fmt: skip
    _needs_template(model, tokenizer)
    return completed(Format(kind="chat", template=tokenizer.chat_template + token, end_token=token, **sizes), tokenizer)


def _before(folder: Path) -> str:
    """Of `BEFORE_TEMPLATE`, by the folder's name or that of its repository in the cache."""
    cached = (part.rpartition("--")[2] for part in folder.parts if part.startswith("models--"))
    for name in (folder.name, *cached):
        for begins, before in BEFORE_TEMPLATE.items():
            if name.startswith(begins):
                _log.info("%s: %s is read as its README says, not by its template alone", folder, name)
                return before
    return ""


def _needs_template(model: HubModel, tokenizer: Tokenizer) -> None:
    if not tokenizer.chat_template:
        raise HubError(
            f"{model.folder}: has no chat template, which a {model.described.architecture or 'reward model'} reads; put one "
            f"there as {TEMPLATE}, or name one: `template` of RewardModel.load, --template of experiments.serve"
        )
