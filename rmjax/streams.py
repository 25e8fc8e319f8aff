"""The batches of a config: those of `config.data`, and beside them those that methods ask for."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain

from rmjax.data.formats import Encoder, Format, completed
from rmjax.data.packing import ForestShape, Tree
from rmjax.data.pipeline import WHOLE, Shard, batches, batches_together, tree_dataset
from rmjax.data.sources import Records
from rmjax.data.tokenizer import Tokenizer
from rmjax.methods import MAIN, Chosen
from rmjax.train.loop import Identify

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Stream:
    """Batches, the names of their records, and what encoding them had to cut.

    Attributes:
      records: what each forest is drawn from, by its name.
    """

    batches: grain.IterDataset
    identify: Identify
    encoders: Sequence[Encoder]
    records: Mapping[str, Records]

    @property
    def counts(self) -> Counter[str]:
        """Of all encoders, since this process started; batches made ahead included."""
        return sum((encoder.counts for encoder in self.encoders), Counter[str]())

    def contents(self) -> dict[str, dict[str, Any]]:
        """What the batches are drawn from, by name of the forest: number of records and SHA-256, which identify it, and how many
        rows and records were left out, by reason, where any were."""
        return {
            name: {"records": len(found), "sha256": found.digest()}
            | ({"skipped": dict(found.skipped)} if found.skipped else {})
            for name, found in self.records.items()
        }


def open_stream(chosen: Chosen, tokenizer: Tokenizer, form: Format, share: Shard = WHOLE) -> Stream:
    """This process's share of a config's batches; where methods ask for streams beside the main one, a batch has a forest of
    each by its name."""
    config, shapes = chosen.config, chosen.shapes()
    encoder = Encoder(tokenizer, form, config.data.row_tokens)
    main = chosen.records()
    trees = _trees(main, chosen.encode(encoder), config.run.seed, config.data.epochs)
    if isinstance(shapes, ForestShape):
        return Stream(batches(trees, shapes, config.data.prefetch, share), main.identify, [encoder], {MAIN: main})
    forests, identify, encoders, records = {MAIN: (trees, shapes[MAIN])}, {MAIN: main.identify}, [encoder], {MAIN: main}
    for name, side in chosen.side_streams(main).items():
        encoders.append(Encoder(tokenizer, form, side.row_tokens))
        found = side.records or main
        forests[name] = _trees(found, encoders[-1].trees, side.seed), side.shape
        identify[name] = found.identify
        records |= {name: side.records} if side.records else {}
    return Stream(batches_together(forests, config.data.prefetch, share), identify, encoders, records)


def format_of(chosen: Chosen, tokenizer: Tokenizer) -> Format:
    """From `config.format`, with what that leaves to the model; errors as `rmjax.data.formats.completed`."""
    return completed(Format(**dataclasses.asdict(chosen.config.format)), tokenizer)


def training_trees(chosen: Chosen, encoder: Encoder) -> tuple[grain.MapDataset, Callable[[int], str]]:
    """The shuffled main stream of trees, and the name of a record by its index."""
    main, config = chosen.records(), chosen.config
    return _trees(main, chosen.encode(encoder), config.run.seed, config.data.epochs), main.identify


def _trees(records: Records, encode: Callable[[Any, int], list[Tree]], seed: int, epochs: int = 0) -> grain.MapDataset:
    return tree_dataset(records.source, encode, seed=seed, epochs=epochs or None, draw=records.draw)
