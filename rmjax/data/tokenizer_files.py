"""Tokenizer files as Hugging Face's hub stores them: `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`, and what
older folders have in their stead (sentencepiece's `tokenizer.model`, special tokens as objects, lists of named templates,
`special_tokens_map.json`, `added_tokens.json`)."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmjax.data.piece_files import MODEL, read_pieces
from rmjax.data.piece_files import described as pieces_described
from rmjax.data.pieces import PiecesError

NAMED = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")
DEFAULT = "default"
_CONVERT = (
    "write tokenizer.json once where transformers is: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
)
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


class TokenizerError(ValueError):
    """A token that a format needs is not in the vocabulary, or a file is not a tokenizer's."""


@dataclasses.dataclass(frozen=True)
class Files:
    """What a folder says of its tokenizer."""

    described: Mapping[str, Any]  # the object of tokenizer.json, with all added tokens
    named: tuple[str, ...]  # tokens that are special by their names
    chat_template: str  # the default one; "" = none
    bos_token: str
    eos_token: str
    pad_token: str
    adds_bos: bool  # to a text that no template wrote


def read_folder(folder: Path) -> Files:
    """Everything that a folder says of its tokenizer.

    Raises:
      FileNotFoundError: no `tokenizer.json` and no `tokenizer.model`.
      TokenizerError: a file is damaged, or says what is not supported.
    """
    try:
        return _read(folder)
    except TokenizerError:
        raise
    except (LookupError, ValueError, TypeError, AttributeError) as error:  # JSON of another form
        raise TokenizerError(f"{folder}: not the files of a tokenizer ({error!r}); get the folder again") from error


def _read(folder: Path) -> Files:
    config, older = (
        _json(folder / name, optional=True) for name in ("tokenizer_config.json", "special_tokens_map.json")
    )
    if (folder / "tokenizer.json").is_file():
        described = _json(folder / "tokenizer.json")
    elif (folder / MODEL).is_file():
        described, config = _of_pieces(folder, config, older)
    else:
        raise FileNotFoundError(f"{folder / 'tokenizer.json'}: not there; {_CONVERT}")
    tokens = {name: _content(config.get(name, older.get(name))) for name in NAMED}
    listed = [_content(token) for name in LISTS for token in _listed(config.get(name, older.get(name)))]
    decoder = config.get("added_tokens_decoder") or {}
    named = tuple(dict.fromkeys(filter(None, [*tokens.values(), *listed])))
    adds = config.get("add_bos_token")
    return Files(
        described=_completed(described, decoder, named),
        named=named,
        chat_template=_chat_template(folder, config),
        bos_token=tokens["bos_token"],
        eos_token=tokens["eos_token"],
        pad_token=tokens["pad_token"],
        adds_bos=bool(tokens["bos_token"]) and (adds_bos(described) if adds is None else bool(adds)),
    )


def _of_pieces(
    folder: Path, config: Mapping[str, Any], older: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A `tokenizer.json` of sentencepiece's file, and the config with what the file says where that is silent: names of tokens,
    and that a text begins with BOS, as all classes of such files have it."""
    config = {"add_bos_token": True} | dict(config)
    added = _json(folder / "added_tokens.json", optional=True)
    config.setdefault(
        "added_tokens_decoder", {str(i): {"content": token, "special": True} for token, i in added.items()}
    )
    try:
        file = read_pieces(folder / MODEL)
        renamed = {int(number): token["content"] for number, token in config["added_tokens_decoder"].items()}
        blank, only_first = config.get("add_prefix_space") is not False, config.get("legacy") is False
        described = pieces_described(file, renamed, blank, only_first)
    except PiecesError as error:
        raise TokenizerError(f"{folder / MODEL}: {error}; {_CONVERT}") from error
    for name in ("unk", "bos", "eos", "pad"):
        if f"{name}_token" not in {**older, **config}:
            config[f"{name}_token"] = file.named(name)
    return described, config


def adds_bos(described: Mapping[str, Any]) -> bool:
    """Whether the post-processor of a `tokenizer.json` puts a special token before a text."""
    processor = described.get("post_processor") or {}
    parts = processor.get("processors") or [processor]
    return any("SpecialToken" in part["single"][0] for part in parts if part.get("single"))


def _json(path: Path, optional: bool = False) -> dict[str, Any]:
    if optional and not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path}: not JSON ({error}); get the file again") from error
    if not isinstance(found, dict):
        raise TokenizerError(f"{path}: a JSON {type(found).__name__}; it has to be an object, get the file again")
    return found


def _content(token: Any) -> str:
    """A special token's string; older files have an object in its place."""
    found = token.get("content") if isinstance(token, Mapping) else token
    return found if isinstance(found, str) else ""


def _listed(tokens: Any) -> list[Any]:
    """A list of tokens; newer files may name each."""
    return list(tokens.values()) if isinstance(tokens, Mapping) else list(tokens or ())


def _completed(described: dict[str, Any], decoder: Mapping[str, Any], named: tuple[str, ...]) -> dict[str, Any]:
    """With the added tokens that only other files know: they get the ids that these give them, or the next ones."""
    added = list(described.get("added_tokens") or ())
    known = {token["content"] for token in added}
    for number, token in sorted(((int(n), token) for n, token in decoder.items()), key=lambda pair: pair[0]):
        if token["content"] not in known:
            added.append({"id": number, **FLAGS, "special": False, **token})
            known.add(token["content"])
    return with_added({**described, "added_tokens": added}, named)


def with_added(described: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    """A `tokenizer.json` in which these are added tokens, by their ids in the vocabulary or the next ones."""
    added, vocab = list(described["added_tokens"]), vocabulary(described)
    known = {token["content"] for token in added}
    following = max([*vocab.values(), *(token["id"] for token in added)], default=-1) + 1
    for content in tokens:
        if content not in known:
            number = vocab.get(content, following)
            following += number == following
            added.append({"id": number, "content": content, **FLAGS, "special": True})
    return {**described, "added_tokens": sorted(added, key=lambda token: token["id"])}


def vocabulary(described: Mapping[str, Any]) -> dict[str, int]:
    """The model's own tokens with their ids, added ones not included."""
    vocab = described.get("model", {}).get("vocab") or {}
    return vocab if isinstance(vocab, dict) else {piece: number for number, (piece, _) in enumerate(vocab)}


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = (
        config.get("chat_template") or _json(folder / "chat_template.json", optional=True).get("chat_template") or ""
    )
    if isinstance(found, str):
        return found
    templates = found if isinstance(found, Mapping) else {each["name"]: each["template"] for each in found}
    if DEFAULT in templates or len(templates) == 1:
        return templates.get(DEFAULT) or next(iter(templates.values()))
    raise TokenizerError(
        f"{folder / 'tokenizer_config.json'}: chat_template has the templates {', '.join(templates)} and none named {DEFAULT}; "
        "write the one to use to chat_template.jinja"
    )


def renamed(described: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A `tokenizer.json` with some tokens under other names. Merges that would make one of them out of text are left out: by
    their own names they are found before any merge. The post-processor names tokens and is left out, too."""
    model = dict(described["model"])
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(token, token): number for token, number in vocab.items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
    if model.get("merges"):
        model["merges"] = [merge for merge in model["merges"] if not names.keys() & _made_of(merge)]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    added = [{**token, "content": names.get(token["content"], token["content"])} for token in described["added_tokens"]]
    return {**described, "added_tokens": added, "model": model, "post_processor": None}


def _made_of(merge: Any) -> set[str]:
    first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
    return {first, second, first + second}


def without_blank(described: Mapping[str, Any]) -> dict[str, Any]:
    """A `tokenizer.json` that puts no blank before a text."""
    parts = {name: _without(described.get(name)) for name in ("normalizer", "pre_tokenizer")}
    return {**described, **parts}


def _without(part: Any) -> Any:
    if part is None:
        return None
    for name in ("normalizers", "pretokenizers"):
        if part.get(name):
            return {**part, name: [_without(each) for each in part[name] if each["type"] != "Prepend"]}
    if part["type"] == "Prepend":
        return None
    changes: dict[str, dict[str, Any]] = {
        "Metaspace": {"prepend_scheme": "never"},
        "ByteLevel": {"add_prefix_space": False},
    }
    return part | {key: value for key, value in changes.get(part["type"], {}).items() if key in part}
