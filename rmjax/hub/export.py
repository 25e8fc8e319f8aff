"""A model as a folder in Hugging Face's form, which `transformers`, TRL, vLLM, SGLang, verl and OpenRLHF open.

A reward model becomes its family's `…ForSequenceClassification` with one label, `problem_type: regression` (vLLM then gives the
raw reward), an fp32 `score.weight`, and a pad token that no text ends with: transformers reads a reward at a text's last token
that is not it. What came from InternLM2 stays `InternLM2ForRewardModel`, and two layers stay `Qwen2ForRewardModel`.
"""

import dataclasses
import datetime
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes  # noqa: F401  # numpy then knows bfloat16 by name
import numpy as np
from safetensors.numpy import save_file

from rmjax.data.formats import Format, completed
from rmjax.data.tokenizer import Tokenizer
from rmjax.files import write_json, write_text
from rmjax.hub.config_json import CONFIG, written_config
from rmjax.hub.families import KINDS
from rmjax.hub.hugging_face import FORMAT, TEMPLATE, TOKENIZER, TOKENIZER_CONFIG
from rmjax.hub.tensors import INDEX, SINGLE, HubError, Layout, Place, layout
from rmjax.models.parameters import first_layers, flat
from rmjax.models.stored import Stored
from rmjax.models.transformer import TransformerConfig

_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
SHARD = 5_000_000_000  # bytes of a file at most, unless one tensor is larger
_ORDER = ("llama", "qwen2", "qwen3", "mistral", "smollm3", "gemma2", "gemma3_text", "phi3")
_PADS = ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>", "<|unk|>")


@dataclasses.dataclass(frozen=True)
class Written:
    """What a folder holds."""

    architecture: str
    tensors: int
    files: int
    pad_token: str


def export_hugging_face(
    folder: Path, config: TransformerConfig, params: Mapping[str, Any], tokenizer: Tokenizer, form: Format, *,
    model_type: str = "", dtype: str = "", pad: str = "", shard: int = SHARD,
) -> Written:  # fmt: skip
    """Writes a folder; a reward model where `params` has a head, else a language model.

    Args:
      config: an architecture without adapter; merge it first.
      params: numpy, on devices, or in files.
      form: how texts are read; it becomes the chat template and rmjax.json.
      model_type: the family that the model came from; "" or one that cannot say this architecture = the first that can.
      dtype: of all but the head; "" = as they are.
      pad: the pad token; "" = a special token that no text of this format holds.
      shard: bytes of a file at most.

    Raises:
      HubError: no family can say the architecture or the head; the message says why.
      FileExistsError: the folder has a config.json.
      TokenizerError: no such pad token.
      ValueError: there is an adapter, no token to pad with, or a template whose day cannot be fixed.
    """
    if config.adapter is not None:
        raise ValueError("the model has an adapter; merge it first, or write it for PEFT: --to=peft")
    if (folder / CONFIG).exists():
        raise FileExistsError(f"{folder} has a {CONFIG} already; name a new folder")
    form, rewards = completed(form, tokenizer), "head" in params
    config = dataclasses.replace(config, frozen_layers=0)
    found, file, head = _family(config, rewards, model_type)
    kind = KINDS[found]
    if rewards:  # the class has no vocabulary head
        config = dataclasses.replace(config, tied_embeddings=True)
    leaves = flat({**params, "backbone": first_layers(params["backbone"], config.depth)})
    end, pad = form.end_token or tokenizer.eos_token, pad or _pad(form, tokenizer)
    names = {"bos": form.bos_token or tokenizer.bos_token, "eos": end, "pad": pad}
    ids = {name: tokenizer.id(token) for name, token in names.items() if token}
    if rewards and ids.get("pad") == ids.get("eos"):
        raise ValueError(f"the pad token is {pad!r}, which ends texts too; name another one")
    template = template_of(form)
    folder.mkdir(parents=True, exist_ok=True)
    where = layout(config, kind.names, head)
    stored = dtype or str(np.dtype(leaves["backbone/final_norm/scale"].dtype))
    files = _write_tensors(folder, where, leaves, dtype, shard)
    file |= _classes(found, head, stored) | {f"{name}_token_id": number for name, number in ids.items()}
    if head == "v_head":
        file["reward_token_id"] = tokenizer.id(form.reward_token or form.end_token)
    _write_tokenizer(folder, tokenizer, form, template, names)
    write_json(folder / FORMAT, {"format": dataclasses.asdict(form)})
    write_json(folder / CONFIG, file)  # last: a folder without it is none
    return Written(file["architectures"][0], len(where.wanted), files, pad)


def _family(config: TransformerConfig, rewards: bool, model_type: str) -> tuple[str, dict[str, Any], str]:
    """(model_type, config.json, kind of head)."""
    refused = []
    for name in dict.fromkeys((*([model_type] if model_type in KINDS else []), *_ORDER)):
        try:
            head = _head(config, name) if rewards else ""
            return name, written_config(config, name), head
        except HubError as error:
            refused.append(str(error))
    raise HubError(f"no family of models there is has this architecture: {'; '.join(refused)}")


def _head(config: TransformerConfig, model_type: str) -> str:
    if config.head == "mlp":
        if model_type != "qwen2" or config.head_hidden not in (0, config.width):
            raise HubError("a head of two layers is Qwen2ForRewardModel's alone, of the model's width")
        return "score_mlp"
    if config.head_bias:
        raise HubError("its head has a bias, which no class there has")
    if not KINDS[model_type].reward:
        raise HubError(f"a {model_type} model has no class with a reward head")
    return "v_head" if model_type == "internlm2" else "score"


def _classes(model_type: str, head: str, dtype: str) -> dict[str, Any]:
    kind = KINDS[model_type]
    name = {"": kind.decoder, "score_mlp": "Qwen2ForRewardModel"}.get(head, kind.reward)
    file: dict[str, Any] = {"architectures": [name], "torch_dtype": dtype, "dtype": dtype, "use_cache": True}
    if head == "score":
        file |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "problem_type": "regression"}
    return file


def _pad(form: Format, tokenizer: Tokenizer) -> str:
    """A special token that no text holds: user text never spells one, so one that the format does not write."""
    written = (form.template, form.end_token, form.bos_token, form.reward_token, form.split_token)
    ends = {tokenizer.eos_token, tokenizer.bos_token}
    free = [t for t in tokenizer.special if t not in ends and not any(t in text for text in written if text)]
    found = next((token for token in _PADS if token in free), free[0] if free else "")
    if not found:
        raise ValueError(
            "the tokenizer has no special token that texts of this format are free of; name one with --pad"
        )
    return found


def _write_tensors(folder: Path, where: Layout, leaves: Mapping[str, Any], dtype: str, shard: int) -> int:
    """One file in memory at a time."""
    held: dict[str, list[tuple[str, int, Place]]] = {}
    for path, (_, places) in where.leaves.items():
        for layer, place in enumerate(places):
            held.setdefault(place.tensor, []).append((path, layer, place))
    parts = [list(part) for part in _shards(held, where, leaves, dtype, shard)]
    if len(parts) == 1:
        save_file(
            {name: _tensor(held[name], where, leaves, dtype) for name in parts[0]}, folder / SINGLE, {"format": "pt"}
        )
        return 1
    placed: dict[str, str] = {}
    total = 0
    for n, part in enumerate(parts, 1):
        file = f"model-{n:05}-of-{len(parts):05}.safetensors"
        tensors = {name: _tensor(held[name], where, leaves, dtype) for name in part}
        save_file(tensors, folder / file, {"format": "pt"})
        placed |= dict.fromkeys(part, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": placed})
    return len(parts)


def _shards(
    held: Mapping[str, list[tuple[str, int, Place]]], where: Layout, leaves: Mapping[str, Any], dtype: str, limit: int
) -> Iterator[list[str]]:
    part: list[str] = []
    size = 0
    for name, pieces in held.items():
        own = int(np.prod(where.wanted[name])) * _dtype(pieces[0][0], leaves, dtype).itemsize
        if part and size + own > limit:
            yield part
            part, size = [], 0
        part, size = [*part, name], size + own
    yield part


def _dtype(path: str, leaves: Mapping[str, Any], dtype: str) -> np.dtype:
    return np.dtype("float32") if path.startswith("head/") else np.dtype(dtype or leaves[path].dtype)


def _tensor(pieces: list[tuple[str, int, Place]], where: Layout, leaves: Mapping[str, Any], dtype: str) -> np.ndarray:
    """A tensor as the file has it: [out, in], several of ours one below the other."""
    path, _, place = pieces[0]
    out = np.empty(where.wanted[place.tensor], _dtype(path, leaves, dtype))
    for path, layer, place in pieces:
        leaf = leaves[path]
        if path.startswith("backbone/layers/"):
            leaf = leaf.layer(layer) if isinstance(leaf, Stored) else leaf[layer]
        array = np.asarray(jax.device_get(leaf))
        with np.errstate(over="ignore"):
            out[slice(None) if place.rows is None else place.rows] = array.T if place.transposed else array
    if not np.isfinite(out).all():
        raise ValueError(
            f"{place.tensor} has numbers that are too large for {out.dtype}, or not finite; take another dtype"
        )
    return out


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, form: Format, template: str, names: Mapping[str, str]) -> None:
    file = json.loads(tokenizer.to_json())
    # A chat template writes its own; a family's tokenizer may put one before texts without a template all the same.
    begins = form.bos_token if form.kind != "chat" else names["bos"] if tokenizer.adds_bos else ""
    if begins:
        file["post_processor"] = _begins_with(begins, tokenizer.id(begins))
    write_text(folder / TOKENIZER, json.dumps(file, ensure_ascii=False, indent=2))
    described: dict[str, Any] = {f"{name}_token": token for name, token in names.items() if token}
    described |= {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": form.max_length, "padding_side": "right",
        "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    if template:
        described["chat_template"] = template  # before transformers 4.44
        write_text(folder / TEMPLATE, template)
    write_json(folder / TOKENIZER_CONFIG, described)


def _begins_with(token: str, number: int) -> dict[str, Any]:
    """What puts a token before each text: clients of POLAR's kind send texts without it."""
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    a, b = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    known = {token: {"id": token, "ids": [number], "tokens": [token]}}
    return {"type": "TemplateProcessing", "single": [first, a], "pair": [first, a, b], "special_tokens": known}


def _own_eos(form: Format) -> str:
    """The tokenizer's eos is the end token; a template that writes another one has to say it itself."""
    other = form.eos_token and form.eos_token != form.end_token and "eos_token" in form.template
    return f"{{% set eos_token = {json.dumps(form.eos_token)} %}}" if other else ""


def _ended(form: Format) -> str:
    """Up to the end token of the last turn, which is added where the template does not end with it: `Chat.ended`."""
    end, behind = json.dumps(form.end_token), ""
    if form.eos_token and form.eos_token != form.end_token:
        cut = f"text[:-{len(form.eos_token)}].rstrip() if text.endswith({json.dumps(form.eos_token)}) else text"
        behind = f"{{% set text = {cut} %}}"
    return (
        f"{{% set written %}}{form.template}{{% endset %}}{{% set text = written.rstrip() %}}{behind}"
        f"{{{{ written if add_generation_prompt else (text if text.endswith({end}) else written + {end}) }}}}"
    )


def _dated(form: Format) -> Format:
    """The template with the format's day where it asks for today's: a score must not depend on the day."""
    day = datetime.date.fromisoformat(form.date)
    source = _TODAY.sub(lambda found: json.dumps(day.strftime(found[2])), form.template)
    if "strftime_now(" in source:
        raise ValueError(
            "format.template calls strftime_now with something else than a text, so that an exported one would tell another day "
            "than format.date; write the pattern of the day there"
        )
    return dataclasses.replace(form, template=source)


def template_of(form: Format) -> str:
    """A chat template whose text ends with the token that is read, as transformers and others read it, on `format.date`.

    Of POLAR's format and the plain one: contents joined by newlines; with `reference=` the half before the separator.

    Raises:
      ValueError: the template asks for the day in a way that cannot be replaced.
    """
    if form.kind == "chat":
        form = _dated(form) if form.date else form
        return _own_eos(form) + (form.template if form.read_out == "last" or not form.end_token else _ended(form))
    if not form.reward_token:
        return ""
    first, split, last = (json.dumps(token) for token in (form.bos_token, form.split_token, form.reward_token))
    half = (
        f"{{% if reference is defined and reference %}}{{{{ parts.before + reference + {split} }}}}{{% endif %}}"
        if form.kind == "polar"
        else ""
    )
    return (
        "{% set parts = namespace(before='') %}{% for message in messages[:-1] %}"
        "{% set parts.before = parts.before + message['content'] + '\\n' %}{% endfor %}"
        f"{{{{ {first} }}}}{half}{{{{ parts.before + messages[-1]['content'] + {last} }}}}"
    )
