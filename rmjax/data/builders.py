"""TFDS builders that write ArrayRecord without TensorFlow: comparisons, and pools of policies.

builder = PolarJsonl({"train": "hh.jsonl.zst"}, name="hh", data_dir="data")
prepare(builder)
open_records("tfds:polar_jsonl/hh:train@data")
"""

from __future__ import annotations

import collections
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from rmjax.data.columns import Field, file_fields, flat, of_single, parse_single
from rmjax.data.messages import as_strings
from rmjax.data.readers import RandomAccessSource, log_notes, open_records
from rmjax.data.record import Comparison, RecordError, to_row, type_label
from rmjax.data.rows import check_readable, iterate_rows
from rmjax.data.texts import Notes
from rmjax.models.columns import extra, is_built_in

_SOURCES_FILE = "sources.json"
_POOL_TEXTS = ("prompt_id", "prompt", "policy", "output")
_POOL_LABELS = ("kind", "policy_split", "prompt_split", "category")


def comparison_features() -> tfds.features.FeaturesDict:
    """Features that hold every field of a record file, declared columns included; see `columns.flat` for absent ones."""
    return tfds.features.FeaturesDict({name: _feature(field) for name, field in file_fields().items()})


def _feature(field: Field) -> object:
    if field.kind == "text":
        text = tfds.features.Text()
        return tfds.features.Sequence(text) if field.depth else text
    if field.kind == "int":
        return tfds.features.Sequence(np.int64)
    # As bytes: TFDS would otherwise store float32, and near-ties in scores would become ties.
    return tfds.features.Tensor(shape=(None,), dtype=np.float64, encoding=tfds.features.Encoding.BYTES)


def example_from_comparison(comparison: Comparison) -> dict[str, object]:
    """The inverse of `rows.row_from_example`, with every feature filled."""
    return flat(as_strings(to_row(comparison)))


def pool_features() -> tfds.features.FeaturesDict:
    """Features of one sample of a policy pool, declared columns included; an absent label is an empty string, an absent type or
    column an empty sequence."""
    text = tfds.features.Text()
    texts = dict.fromkeys((*_POOL_TEXTS, *_POOL_LABELS), text)
    declared = {name: _feature(field) for name, field in file_fields().items() if name in of_single()}
    own = {"sample": np.int64, "type": tfds.features.Sequence(np.int64)}
    return tfds.features.FeaturesDict({**texts, **own, **declared})


def pool_rows_by_split(path: str | Path) -> dict[str, list[dict[str, object]]]:
    """Reads {"prompt_id", "prompt", "policy", "sample", "output"} rows, by TFDS split.

    The split is the row's `split`, else its `prompt_split`, else "seen". The labels `kind`,
    `policy_split`, `prompt_split`, `category` and `type` and the declared columns are kept, empty where absent.

    Raises:
      RecordError: a missing or ill-typed field, or a split name TFDS cannot use; an empty
        `output` is allowed, since a policy may say nothing.
    """
    splits: dict[str, list[dict[str, object]]] = collections.defaultdict(list)
    notes = Notes()
    for place, row in iterate_rows(path):
        sample = _checked_sample(row, place, notes)
        splits[_pool_split(row, place)].append(sample)  # type: ignore[arg-type]  # checked the line before
    log_notes(str(path), notes)
    return dict(splits)


def _checked_sample(row: object, place: str, notes: Notes) -> dict[str, object]:
    if not isinstance(row, Mapping):
        raise RecordError(place, "", "not a JSON object", "write one object per line")
    labels = {name: "" if row.get(name) is None else row[name] for name in _POOL_LABELS}
    for name in _POOL_TEXTS:
        if not isinstance(row.get(name), str):
            raise RecordError(place, name, "missing or not a string", "give a string")
    for name, label in labels.items():
        if not isinstance(label, str):
            raise RecordError(place, name, "not a string", "give a string or leave it out")
    if not isinstance(row.get("sample"), int) or isinstance(row["sample"], bool):
        raise RecordError(place, "sample", "missing or not an integer", "number the samples")
    label = type_label(row, notes)
    declared = flat(parse_single(row, place))
    return (
        {name: row[name] for name in (*_POOL_TEXTS, "sample")}
        | labels
        | {"type": [] if label is None else [label]}
        | {name: declared[name] for name in of_single()}
    )


def _pool_split(row: Mapping, place: str) -> str:
    # Policy pools count a row without a split as seen, too.
    field = next((name for name in ("split", "prompt_split") if row.get(name)), "")
    split = row[field] if field else "seen"
    if not isinstance(split, str) or not re.fullmatch(r"\w+", split):
        remedy = "use letters, digits and underscores"
        raise RecordError(place, field, "not a TFDS split name", remedy, str(split))
    return split


class PolarJsonl(tfds.core.GeneratorBasedBuilder):
    """Comparisons in POLAR's field names, from any file that `open_records` reads.

    Args:
      paths: split name -> file. May be empty to read a data set that is prepared already.
      name: TFDS config name, which tells the data sets of this builder apart.
      **keywords: of the TFDS builder, such as `data_dir`.
    """

    VERSION = tfds.core.Version("1.1.0")  # 1.1: messages, and columns beyond a record's own
    code_path = None  # nothing is downloaded; TFDS's lookup of checksums needs a missing package

    def __init__(self, paths: Mapping[str, str | Path] | None = None, name: str = "default", **keywords) -> None:
        self.paths = {split: Path(path) for split, path in (paths or {}).items()}
        super().__init__(**_with_config(name, keywords))

    def _info(self) -> tfds.core.DatasetInfo:
        return _dataset_info(self, comparison_features(), "Comparisons of candidates.")

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator]:
        sources = {split: open_records(path) for split, path in self.paths.items()}
        return {split: self._generate_examples(source) for split, source in sources.items()}

    def _generate_examples(self, source: RandomAccessSource) -> Iterator[tuple[int, dict]]:
        for i in range(len(source)):
            yield i, example_from_comparison(source[i])


class PolicyPool(tfds.core.GeneratorBasedBuilder):
    """Samples of policies, from a file of rows as in `pool_rows_by_split`.

    Args:
      path: the file. May be None to read a data set that is prepared already.
      name: TFDS config name, which tells the data sets of this builder apart.
      **keywords: of the TFDS builder, such as `data_dir`.
    """

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # nothing is downloaded; TFDS's lookup of checksums needs a missing package

    def __init__(self, path: str | Path | None = None, name: str = "default", **keywords) -> None:
        self.paths = {"pool": Path(path)} if path else {}
        super().__init__(**_with_config(name, keywords))

    def _info(self) -> tfds.core.DatasetInfo:
        return _dataset_info(self, pool_features(), "Samples of policies.")

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator]:
        splits = pool_rows_by_split(self.paths["pool"])
        return {split: self._generate_examples(rows) for split, rows in splits.items()}

    def _generate_examples(self, rows: Sequence[dict[str, object]]) -> Iterator[tuple[int, dict[str, object]]]:
        yield from enumerate(rows)


def _with_config(name: str, keywords: dict) -> dict:
    return {"config": tfds.core.BuilderConfig(name=name), "file_format": "array_record", **keywords}


def _dataset_info(
    builder: tfds.core.DatasetBuilder, features: tfds.features.FeaturesDict, description: str
) -> tfds.core.DatasetInfo:
    # Order is kept: the pipeline shuffles by its own seed.
    return tfds.core.DatasetInfo(builder=builder, features=features, description=description, disable_shuffling=True)


def prepare(builder: PolarJsonl | PolicyPool) -> Path:
    """Writes the builder's data set unless it is there, and returns its directory.

    Raises:
      RecordError: a bad source row; or a data set of that name is there, made from other sources or columns
        (TFDS itself would silently go on using it).
      FileNotFoundError: a source is absent.
    """
    if not builder.paths:
        raise RecordError(builder.name, "", "no source files", "give the builder its path")
    directory = Path(builder.data_path)
    sources: dict[str, object] = {split: _digest(path) for split, path in builder.paths.items()}
    if own := sorted(n for n, c in extra().items() if not is_built_in(c)):
        sources["columns"] = own
    marker = directory / _SOURCES_FILE
    if directory.exists() and _read_marker(marker) != sources:
        remedy = "delete that directory or give another config name"
        raise RecordError(str(directory), "", "prepared from other or unknown sources or columns", remedy)
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=config)
    marker.write_text(json.dumps(sources), encoding="utf-8")
    return directory


def _read_marker(marker: Path) -> object:
    return json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else None


def _digest(path: Path) -> str:
    check_readable(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
