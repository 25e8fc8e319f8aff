"""A column, declared here and nowhere else, from every kind of file to an objective on eight devices:
`python -m tests.data.carrying DIRECTORY` prints, for each kind of file, the terms of the objective and the batch's column."""

import json
import sys
from pathlib import Path

import jax
from tokenizers import pre_tokenizers

from rmjax.data.builders import PolarJsonl, prepare
from rmjax.data.formats import Encoder, Format
from rmjax.data.packing import ForestShape, pack
from rmjax.data.pipeline import WHOLE
from rmjax.data.placement import forest_shardings, place
from rmjax.data.readers import open_records, write_records
from rmjax.data.tokenizer import Tokenizer
from rmjax.losses.reduction import total
from rmjax.models.columns import Column, declare
from rmjax.models.forest import Forest
from rmjax.parallel.mesh import make_mesh

declare(Column("length_bonus", "RGN", doc="bonus of each candidate, in units of reward"))

ROWS = [
    {"prompt": f"p{i}", "chosen": "yes" * (i + 1), "rejected": "no", "length_bonus": [i + 1 / 3, -i]} for i in range(11)
]
SPECIAL = ("<split>", "<reward>")


def objective(forest: Forest):
    """The one use: the mean bonus of the candidates that are there."""
    return total(forest.length_bonus_RGN, forest.readout_RGN >= 0)


def carried(path: str) -> dict[str, object]:
    tokenizer = Tokenizer.from_bpe([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())], [], SPECIAL)
    encoder = Encoder(tokenizer, Format(*SPECIAL, max_length=64, max_response_length=48), 64)
    source = open_records(path)
    trees = [tree for i, c in enumerate(source) for tree in encoder.trees(c, i)]
    ((forest, _),) = pack(trees, ForestShape(rows=8, row_tokens=64, groups=2, branches=3))
    mesh = make_mesh({"data": 4, "context": 2})
    placed = place(forest, forest_shardings(mesh), WHOLE)
    with jax.set_mesh(mesh):
        terms = jax.jit(objective)(placed)
    return {
        "unknown": source.unknown,
        "shards": len({str(shard.index) for shard in placed.length_bonus_RGN.addressable_shards}),
        "terms": [float(x) for x in terms],
        "column": jax.device_get(placed.length_bonus_RGN).tolist(),
        "records": jax.device_get(placed.record_RG).tolist(),
    }


def main(directory: Path) -> None:
    plain = directory / "f.jsonl"
    plain.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    paths = [str(plain), f"tfds:polar_jsonl/small:train@{directory}"]
    for suffix in (".parquet", ".array_record", ".jsonl.zst"):
        write_records(directory / f"f{suffix}", open_records(plain))
        paths.append(str(directory / f"f{suffix}"))
    prepare(PolarJsonl({"train": plain}, name="small", data_dir=directory))
    print(json.dumps({path: carried(path) for path in paths}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
