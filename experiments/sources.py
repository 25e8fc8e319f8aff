"""Names in a config → data: the shipped corpus, files, the real preference sets."""

import functools
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import grain

from rmjax.data.formats import Encoder, text_trees
from rmjax.data.pipeline import tree_dataset
from rmjax.data.pool import PolicyPool
from rmjax.data.preferences import PREFERENCE_SETS, load_preferences
from rmjax.data.readers import open_records
from rmjax.data.record import Comparison, require_order, require_reference
from rmjax.data.rows import iterate_rows
from rmjax.hub.tokenizer import Tokenizer

SHIPPED = "shipped:"


def shipped(name: str) -> Path:
    """A file of the corpus in the package."""
    path = Path(str(resources.files("rmjax.data"))) / "corpus" / f"{name}.jsonl.zst"
    if not path.is_file():
        known = sorted(p.name.removesuffix(".jsonl.zst") for p in path.parent.glob("*.jsonl.zst"))
        raise FileNotFoundError(f"{SHIPPED}{name}: no such part of the shipped corpus; there are {', '.join(known)}")
    return path


def located(path: str) -> str:
    return str(shipped(path.removeprefix(SHIPPED))) if path.startswith(SHIPPED) else path


@functools.cache
def pool(path: str, policies: str, prompts: str) -> PolicyPool:
    """A pool's rows of these splits ("seen", "unseen", "all")."""

    def wanted(row: Any) -> bool:
        return (policies == "all" or row.get("policy_split", "seen") == policies) and (
            prompts == "all" or row.get("prompt_split", "seen") == prompts
        )

    return PolicyPool((place, row) for place, row in iterate_rows(located(path)) if wanted(row))


def records(path: str, root: str = "") -> Sequence[Comparison]:
    """A file of comparisons, or the real set of that name under `root`."""
    if path in PREFERENCE_SETS:
        return load_preferences(path, root)
    return open_records(located(path))


def training_trees(config: Any, tokenizer: Tokenizer, encoder: Encoder) -> grain.MapDataset:
    """The shuffled stream of trees of `config.data`."""
    data = config.data
    source, draw = _source(data)
    encode: Callable = encoder.trees
    if data.kind == "texts":
        encode = functools.partial(text_trees, tokenizer, data.end_token, data.row_tokens)
    return tree_dataset(source, encode, seed=config.run.seed, epochs=data.epochs or None, draw=draw)


def _source(data: Any) -> tuple[Any, Callable | None]:
    if data.kind == "pool":
        source = pool(data.path, data.policies, data.prompts)
        draw = functools.partial(
            source.draw, negatives=data.negatives, hard_negatives=data.hard_negatives, references=data.references
        )
        return source, draw
    if data.kind == "comparisons":
        return [_usable(c, data.reference) for c in records(data.path, data.root)], None
    if data.kind == "texts":
        return [row for _, row in iterate_rows(located(data.path))], None
    raise ValueError(f"config.data.kind is {data.kind!r}; choose pool, comparisons or texts")


def _usable(c: Comparison, reference: str) -> Comparison:
    require_order(c)
    if reference == "required":
        require_reference(c)
    return c


def evaluation_set(entry: Any) -> list[Comparison]:
    """From an entry of `config.evals`."""
    if entry.kind == "pool":
        return pool(entry.path, entry.policies, entry.prompts).triples(seed=0, per_prompt=entry.per_prompt)
    return list(records(entry.path, entry.root))
