"""Names in a config → data: the shipped corpus, files, the real preference sets."""

import functools
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import grain

from experiments.adapters import types_needed
from rmjax.data.formats import Encoder, text_trees
from rmjax.data.pipeline import tree_dataset
from rmjax.data.pool import PolicyPool
from rmjax.data.preferences import PREFERENCE_SETS, load_preferences
from rmjax.data.readers import RandomAccessSource, open_records
from rmjax.data.record import (
    WRAPPERS,
    Comparison,
    RecordError,
    require_order,
    require_reference,
    require_type,
    type_label,
)
from rmjax.data.rows import iterate_rows
from rmjax.data.samples import Form, form
from rmjax.data.tokenizer import Tokenizer

SHIPPED = "shipped:"
_SPLITS = ("seen", "unseen", "all")
RECORD_SPLITS = ("all", "train", "test")
TEST_SHARE = 5  # a fifth of the prompts of a real set
_log = logging.getLogger(__name__)


def shipped(name: str) -> Path:
    """A file of the corpus in the package."""
    path = Path(str(resources.files("rmjax.data"))) / "corpus" / f"{name}.jsonl.zst"
    if not path.is_file():
        known = sorted(p.name.removesuffix(".jsonl.zst") for p in path.parent.glob("*.jsonl.zst"))
        raise FileNotFoundError(f"{SHIPPED}{name}: no such part of the shipped corpus; there are {', '.join(known)}")
    return path


def choose(field: str, value: str, choices: Sequence[str]) -> str:
    """`value`, or a ValueError that names the config field and its choices."""
    if value not in choices:
        raise ValueError(f"config.{field} is {value!r}; choose {', '.join(choices[:-1])} or {choices[-1]}")
    return value


def located(path: str) -> str:
    """The file behind a `shipped:` name; other paths as they are."""
    return str(shipped(path.removeprefix(SHIPPED))) if path.startswith(SHIPPED) else path


@functools.cache
def pool(path: str, policies: str, prompts: str) -> PolicyPool:
    """A pool of these splits ("seen", "unseen", "all")."""
    return PolicyPool(pool_rows(path, policies, prompts))


def pool_rows(path: str, policies: str, prompts: str, section: str = "data") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A pool's rows of these splits, each with its place in the file; `section` is where in the config they are named."""
    choose(f"{section}.policies", policies, _SPLITS)
    choose(f"{section}.prompts", prompts, _SPLITS)

    def wanted(row: Any) -> bool:
        return (policies == "all" or (row.get("policy_split") or "seen") == policies) and (
            prompts == "all" or (row.get("prompt_split") or "seen") == prompts
        )

    return ((place, row) for place, row in _objects(path) if wanted(row))


def _objects(path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for place, row in iterate_rows(located(path)):
        if not isinstance(row, Mapping):
            raise RecordError(place, "", "not a JSON object", "correct or delete the line")
        yield place, row


def records(
    path: str, root: str = "", split: str = "all", on_error: Literal["raise", "skip"] = "raise"
) -> Sequence[Comparison] | RandomAccessSource:
    """A file of comparisons, or a split ("all", "train", "test") of the real set of that name under `root`.

    Which split a record is in is a property of its prompt's text alone. Files come whole: their split is their name.
    """
    choose("data.split", split, RECORD_SPLITS)
    if path not in PREFERENCE_SETS:
        if split != "all":
            raise ValueError(
                f"split {split!r} of {path}: only the real sets have it ({', '.join(PREFERENCE_SETS)}); use all"
            )
        return open_records(located(path), on_error)
    everything = load_preferences(path, root)
    chosen = [c for c in everything if split == "all" or _is_test(c.prompt) == (split == "test")]
    _log.info("%s, split %s: %d of %d comparisons", path, split, len(chosen), len(everything))
    return chosen


def _is_test(prompt: str) -> bool:
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()) % TEST_SHARE == 0


def training_trees(
    config: Any, tokenizer: Tokenizer, encoder: Encoder
) -> tuple[grain.MapDataset, Callable[[int], str]]:
    """The shuffled stream of trees of `config.data`, and the name of a record by its index."""
    data = config.data
    source, draw, identify = _source(data, types_needed(config.adapter))
    encode: Callable = encoder.trees
    if data.kind == "texts":
        encode = functools.partial(text_trees, tokenizer, data.end_token, data.row_tokens, encoder.counts)
    return tree_dataset(source, encode, seed=config.run.seed, epochs=data.epochs or None, draw=draw), identify


def preference_forms(data: Any) -> set[Form]:
    """The forms (reference or none, wrapper) that `config.data` trains on."""
    source, draw, _ = _source(data)
    return {(True, data.wrapper)} if draw is not None else {form(c) for c in source}


def _source(data: Any, types: int = 0) -> tuple[Any, Callable | None, Callable[[int], str]]:
    choose("data.kind", data.kind, ("pool", "comparisons", "texts"))
    if data.kind == "pool":
        if data.negatives + 1 > data.candidates:
            raise ValueError(
                f"config.data.candidates is {data.candidates}; {data.negatives} negatives need {data.negatives + 1}"
            )
        source = pool(data.path, data.policies, data.prompts)
        source.check_numbers(negatives=data.negatives, references=data.references)
        for i in range(len(source) if types else 0):
            require_type(source.type[source[i]], types, f"{data.path}: prompt_id `{source[i]}`")
        draw = functools.partial(
            source.draw, negatives=data.negatives, hard_negatives=data.hard_negatives,
            references=data.references,
            wrapper=choose("data.wrapper", data.wrapper, WRAPPERS),
        )  # fmt: skip
        return source, draw, source.__getitem__
    if data.kind == "comparisons":
        choose("data.reference", data.reference, ("required", "optional"))
        comparisons = [_usable(c, data.reference, types) for c in records(data.path, data.root, data.split)]
        if comparisons and min(len(c.outputs) for c in comparisons) > data.candidates:
            raise ValueError(
                f"config.data.candidates is {data.candidates}; every record of {data.path} has more candidates"
            )
        return comparisons, None, lambda i: comparisons[i].id or comparisons[i].place
    places, texts = zip(*(_text(*row, types) for row in _objects(data.path)), strict=True)
    return texts, None, places.__getitem__


def _text(place: str, row: Mapping[str, Any], types: int) -> tuple[str, Mapping[str, Any]]:
    for field in ("prompt", "output"):
        if not isinstance(row.get(field, "" if field == "prompt" else None), str):
            raise RecordError(place, field, "missing or not text", "a row has `output` and, if need be, `prompt`")
    label = type_label(row, place)
    if types:
        require_type(label, types, place)
    return place, row


def _usable(c: Comparison, reference: str, types: int) -> Comparison:
    require_order(c)
    if types:
        require_type(c.type, types, c.place)
    if reference == "required":
        require_reference(c)
    return c


def evaluation_set(entry: Any) -> list[Comparison]:
    """From an entry of `config.evals`."""
    if choose("evals.*.kind", entry.kind, ("pool", "comparisons", "samples")) == "pool":
        chosen = pool(entry.path, entry.policies, entry.prompts)
        wrapper = choose("evals.*.wrapper", entry.wrapper, WRAPPERS)
        return chosen.triples(seed=0, per_prompt=entry.per_prompt, wrapper=wrapper)
    return list(records(entry.path, entry.root, entry.split))
