"""The batches of a config: those of `config.data`, and beside them those of `config.meta_data` where MetaRM asks."""

import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from experiments.sources import choose, pool_rows, preference_forms, records, training_trees
from rmjax.data.formats import Encoder, Format
from rmjax.data.packing import ForestShape
from rmjax.data.pipeline import WHOLE, Share, batches, batches_together, tree_dataset
from rmjax.data.record import WRAPPERS, Comparison
from rmjax.data.samples import from_pool, require_form, require_several, take, telling_apart
from rmjax.data.tokenizer import Tokenizer
from rmjax.train.loop import Identify

KINDS = ("pool", "comparisons")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Stream:
    """Batches, the names of their records, and what encoding them had to cut."""

    batches: grain.IterDataset
    identify: Identify
    encoders: Sequence[Encoder]

    @property
    def counts(self) -> Counter[str]:
        """Of all encoders, since this process started; batches made ahead included."""
        return sum((encoder.counts for encoder in self.encoders), Counter[str]())


def batch_shapes(config: Any) -> ForestShape | dict[str, ForestShape]:
    """Sizes of a batch, of each stream by name where there are two."""
    data, meta = config.data, config.meta_data
    shape = ForestShape(data.rows, data.row_tokens, data.groups, data.candidates)
    if choose("gradient.name", config.gradient.name, ("plain", "meta")) == "plain":
        return shape
    return {"preference": shape, "meta": ForestShape(meta.rows, meta.row_tokens, meta.groups, meta.samples)}


def open_stream(config: Any, tokenizer: Tokenizer, form: Format, share: Share = WHOLE) -> Stream:
    """This process's share, from `config.data`, and from `config.meta_data` with `gradient.name = "meta"`: a batch then is
    {"preference": forest, "meta": forest}."""
    data = config.data
    shapes = batch_shapes(config)
    if not isinstance(shapes, ForestShape):
        _check_meta(config)
    encoder = Encoder(tokenizer, form, data.row_tokens)
    trees, identify = training_trees(config, tokenizer, encoder)
    if isinstance(shapes, ForestShape):
        return Stream(batches(trees, shapes, data.prefetch, share), identify, [encoder])
    meta = config.meta_data
    meta_encoder = Encoder(tokenizer, form, meta.row_tokens)
    meta_trees, meta_identify = _meta_trees(config, meta_encoder)
    forests = {"preference": (trees, shapes["preference"]), "meta": (meta_trees, shapes["meta"])}
    together = batches_together(forests, data.prefetch, share)
    return Stream(together, {"preference": identify, "meta": meta_identify}, [encoder, meta_encoder])


def _check_meta(config: Any) -> None:
    """ValueError for what no meta set goes with."""
    if config.objective != "preference":
        raise ValueError(f"config.objective is {config.objective!r}; gradient.name=meta needs preference")
    if config.data.kind == "texts":
        raise ValueError("config.data.kind is 'texts', without an order; gradient.name=meta needs pool or comparisons")
    if config.meta_data.samples < 2:
        raise ValueError(f"config.meta_data.samples is {config.meta_data.samples}; a difference needs 2 or more")


def _meta_trees(config: Any, encoder: Encoder) -> tuple[grain.MapDataset, Callable[[int], str]]:
    meta = config.meta_data
    groups = _groups(meta, choose("meta_data.kind", meta.kind, KINDS), "meta_data")
    smaller = sum(len(group.outputs) - meta.references < meta.samples for group in groups)
    if smaller:
        _log.warning(
            "meta set: %d of %d groups have fewer than %d answers (config.meta_data.samples)%s",
            smaller, len(groups), meta.samples,
            "; meta_data.mixed=True puts a prompt's policies together" if meta.kind == "pool" and not meta.mixed else "",
        )  # fmt: skip
    draw = functools.partial(take, samples=meta.samples, references=meta.references)
    known = preference_forms(config.data)
    for group in groups:
        require_form(dataclasses.replace(group, references=("",) if meta.references else group.references), known)
    # Endless: one epoch is one of the preference data.
    trees = tree_dataset(groups, encoder.trees, seed=config.run.seed + 1, draw=draw)
    return trees, lambda i: groups[i].id or groups[i].place


def _groups(entry: Any, kind: str, section: str) -> list[Comparison]:
    if not entry.path:
        raise ValueError(f"config.{section}.path is empty; name a file, or shipped:policy_pool")
    if entry.references < 0:
        raise ValueError(f"config.{section}.references is {entry.references}; it must be 0 or more")
    if kind == "pool":
        rows = pool_rows(entry.path, entry.policies, entry.prompts, section)
        wrapper = choose(f"{section}.wrapper", entry.wrapper, WRAPPERS)
        found = from_pool(rows, entry.names, mixed=entry.mixed, wrapper=wrapper)
    else:
        if entry.references:
            raise ValueError(
                f"config.{section}.references is {entry.references}, but {entry.path} brings its own; make it 0"
            )
        found = [require_several(c) for c in records(entry.path, entry.root, entry.split)]
    return telling_apart(found, entry.references)


def samples_set(entry: Any) -> list[Comparison]:
    """From an entry of `config.evals` of kind "samples": fixed unlabeled groups."""
    groups = _groups(entry, choose("evals.*.source", entry.source, KINDS), "evals.*")
    rngs = (np.random.default_rng([0, i]) for i in range(len(groups)))
    return [
        take(c, rng, samples=len(c.outputs), references=entry.references) for c, rng in zip(groups, rngs, strict=True)
    ]
