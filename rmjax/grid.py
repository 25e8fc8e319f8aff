"""Policies × prompts, answered in shards: a study whose cells are one policy's answers to some of the prompts.

A cell keeps whole batches (`batches.jsonl`) as they come, and goes on behind them; when all are there it has `samples.jsonl`.
`gather` joins these, in the order of the prompts, and counts what was dropped.
"""

import dataclasses
import functools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rmjax.data import readers
from rmjax.data.columns import of_single
from rmjax.data.record import Comparison, to_row
from rmjax.data.samplerows import asked_fields, distinct, parse_asked
from rmjax.evaluate.rows import Row
from rmjax.files import append_line, replacing, whole_lines, write_json
from rmjax.generators import KINDS, AskingSection
from rmjax.policy.generator import Generated, Generator
from rmjax.sections import choice, defaults, listed, number, read
from rmjax.study.cells import Cell, members
from rmjax.study.study import Study

BATCHES, SAMPLES, COUNTS = "batches.jsonl", "samples.jsonl", "samples.json"
DROPPED = "dropped/"
FORMS = ("records", "pool")


@dataclasses.dataclass(frozen=True)
class GridSection:
    """What is asked of whom."""

    generator: str = "endpoint"  # a kind: endpoint, recorded, local
    name: str = ""  # of the policy; empty = the model's, or the recorded one's
    policies: tuple[dict, ...] = ()  # of each, the keys that differ; empty = one policy, as the config has it
    prompts: str = ""  # file of rows with id, prompt or messages, and what else a record has
    samples: int = number(1, low=1)  # answers to a prompt
    seed: int = number(0, low=0)  # of the draws; servers may ignore it
    form: str = choice(
        "records", *FORMS
    )  # of the files: a record with its outputs a line | a pool's row for each output


def get_config() -> ConfigDict:
    """All keys, as they are without changes."""
    sections = {name: defaults(kind.section) for name, kind in KINDS.items()}
    return ConfigDict({**defaults(GridSection), "asking": defaults(AskingSection), **sections})


# --- the cells --------------------------------------------------------------------------------------------------------


def study_of(config: ConfigDict, name: str, shards: int) -> Study:
    """A cell for each policy and shard.

    Args:
      config: as `get_config`.
      name: of the config's file, by which a folder knows whose it is.
      shards: parts of the prompts.

    Raises:
      RecordError: a broken prompt, or two with one id.
      ValueError: a key or value that no run can have, two policies of one name, or more shards than prompts.
    """
    prompts = read_asked(read(GridSection, _own(config), "config").prompts)
    if not 1 <= shards <= len(prompts):
        raise ValueError(
            f"--shards={shards}, and {config.prompts} has {len(prompts)} prompts; give 1 to {len(prompts)}"
        )
    cells: list[Cell] = []
    asking: dict[str, AskingSection] = {}
    for policy, how in _policies(config):
        asking[policy.name] = how
        for shard in range(shards):
            label = _file_name(policy.name)
            whole = policy.copy_and_resolve_references()
            whole.update({"shard": shard, "shards": shards, "run": {"steps": len(_part(prompts, shard, shards))}})
            values = {"policy": policy.name, "shard": shard}
            cells.append(Cell(f"{label}-{shard:05d}-of-{shards:05d}", values, whole))
    return Study(f"answers by {name} in {shards} shards", tuple(cells), functools.partial(_run_cell, asking), counted)


def _run_cell(asking: Mapping[str, AskingSection], config: ConfigDict, folder: Path) -> None:
    run_shard(asking[config.name], config, folder)


def _own(config: ConfigDict) -> dict[str, Any]:
    """The keys that are no sections; policies as dicts."""
    found = {name: value for name, value in config.items() if not isinstance(value, ConfigDict)}
    plain = tuple(each.to_dict() if isinstance(each, ConfigDict) else each for each in found.get("policies", ()))
    return found | {"policies": plain}


def _policies(config: ConfigDict) -> list[tuple[ConfigDict, AskingSection]]:
    """Of each policy a config, named, with the one section that it reads; and how it is asked."""
    overrides = list(read(GridSection, _own(config), "config").policies) or [{}]
    base = config.copy_and_resolve_references()
    base.policies = ()
    found = [_one_policy(cell.config) for cell in members(base, overrides, ConfigDict)]
    files = Counter(_file_name(policy.name) for policy, _ in found)
    if twice := [name for name, count in files.items() if count > 1]:
        raise ValueError(f"two policies have the file name {twice[0]!r}; give each a config.name of its own")
    return found


def _one_policy(config: ConfigDict) -> tuple[ConfigDict, AskingSection]:
    grid, asking = read(GridSection, _own(config), "config"), read(AskingSection, config.asking, "config.asking")
    if grid.generator not in KINDS:
        raise ValueError(f"config.generator is {grid.generator!r}; choose {listed(list(KINDS))}")
    kind = KINDS[grid.generator]
    section: Any = read(kind.section, config[grid.generator], f"config.{grid.generator}")
    kind.check(section, asking)
    own = {f.name: getattr(grid, f.name) for f in dataclasses.fields(grid) if f.name not in ("policies", "form")}
    named = own | {"name": grid.name or kind.named(section), grid.generator: dataclasses.asdict(section)}
    return ConfigDict(named), asking


def _file_name(policy: str) -> str:
    found = re.sub(r"[^\w.+=,-]+", "-", policy).strip("-.")
    if not found:
        raise ValueError(f"config.name is {policy!r}, which gives no name for a file; choose another")
    return found


def read_asked(path: str) -> Sequence[Comparison]:
    """The prompts of a file.

    Raises:
      RecordError: a broken row, or an id that occurs twice.
      ValueError: no path.
    """
    if not path:
        raise ValueError("config.prompts is empty; name a file with rows of `id` and `prompt`")
    return distinct(readers.read_all(path, parse_asked, asked_fields()))


def _part(prompts: Sequence[Comparison], shard: int, shards: int) -> Sequence[Comparison]:
    return prompts[shard * len(prompts) // shards : (shard + 1) * len(prompts) // shards]


# --- one shard --------------------------------------------------------------------------------------------------------


def run_shard(asking: AskingSection, config: ConfigDict, folder: Path) -> None:
    """Answers a shard's prompts, from wherever it stopped.

    Raises:
      RuntimeError: too many of a batch's samples are dropped; the batches before stay.
      ValueError: `batches.jsonl` is not of this shard.
    """
    if (folder / SAMPLES).exists():
        return
    prompts = _part(read_asked(config.prompts), config.shard, config.shards)
    batches = _kept(folder / BATCHES, prompts)
    done = sum(len(batch["prompts"]) for batch in batches)
    if rest := prompts[done:]:
        kind = KINDS[config.generator]
        section: Any = read(kind.section, config[config.generator], f"config.{config.generator}")
        generator = kind.make(section, asking, config.name)
        for batch in _even(rest, asking.batch_prompts):
            found = _asked(generator, batch, config, asking)
            line = {
                "prompts": [c.id for c in batch],
                "rows": [to_row(c) for c in found.records],
                "dropped": found.dropped,
            }
            append_line(folder / BATCHES, line)
            done += len(batch)
            append_line(folder / "metrics.jsonl", {"step": done, "dropped": found.dropped.total()})
    _finish(folder)


def _even(prompts: Sequence[Comparison], size: int) -> Iterator[Sequence[Comparison]]:
    """Batches of at most `size`, about equally large: of a small one a few dropped samples are a large fraction."""
    count = -(-len(prompts) // size)
    return (_part(prompts, number, count) for number in range(count))


def _asked(generator: Generator, batch: Sequence[Comparison], config: ConfigDict, asking: AskingSection) -> Generated:
    found, wanted = generator(batch, config.samples, config.seed), len(batch) * config.samples
    lost = found.dropped.total()
    if lost + sum(len(c.outputs) for c in found.records) != wanted:
        raise RuntimeError(
            f"{generator.name} gave other numbers of samples than it was asked for; this is a fault of its code"
        )
    if lost > asking.most_dropped * wanted:
        raise RuntimeError(
            f"{generator.name}: {lost} of {wanted} samples of a batch were dropped ({readers.listed(found.dropped)}), more than "
            f"config.asking.most_dropped={asking.most_dropped:g}; what came before is kept: run again when the cause is "
            "mended, or raise it"
        )
    return found


def _kept(path: Path, prompts: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The batches that are there, which answer the first prompts."""
    found: list[dict[str, Any]] = []
    ids = [record.id for record in prompts]
    for at, line in enumerate(whole_lines(path), 1):
        try:
            batch = json.loads(line)
            start = sum(len(b["prompts"]) for b in found)
            good = (
                batch["prompts"] == ids[start : start + len(batch["prompts"])] and {"rows", "dropped"} <= batch.keys()
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            good = False
        if not good:
            raise ValueError(f"{path}:{at}: no batch of this shard's prompts; remove the file, or use a new workdir")
        found.append(batch)
    return found


def _finish(folder: Path) -> None:
    """`samples.jsonl` of the batches, which then go. The counts come first: where the samples are, the shard is whole."""
    batches = [json.loads(line) for line in whole_lines(folder / BATCHES)]
    rows = [row for batch in batches for row in batch["rows"]]
    dropped = sum((Counter(batch["dropped"]) for batch in batches), Counter[str]())
    write_json(folder / COUNTS, _counts(sum(len(batch["prompts"]) for batch in batches), rows, dropped))
    with replacing(folder / SAMPLES) as unfinished, unfinished.open("wb") as file:
        file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
    (folder / BATCHES).unlink(missing_ok=True)


def _counts(prompts: int, rows: Sequence[Mapping[str, Any]], dropped: Mapping[str, int]) -> dict[str, Any]:
    outputs = sum(len(row["outputs"]) for row in rows)
    truncated = int(sum(sum(row.get("truncated", ())) for row in rows))
    different = sum(len({json.dumps(output) for output in row["outputs"]}) for row in rows)  # of a prompt
    known = {
        "prompts": prompts, "answered": len(rows), "samples": outputs, "distinct": different, "truncated": truncated
    }  # fmt: skip
    return known | {"dropped": dict(dropped)}


def counted(cell: Cell, workdir: Path) -> Iterator[Row]:
    """The counts of a shard as rows."""
    found = json.loads((workdir / cell.name / COUNTS).read_text(encoding="utf-8"))
    dropped = found.pop("dropped")
    for metric, value in (found | {f"{DROPPED}{reason}": count for reason, count in dropped.items()}).items():
        yield Row(cell.name, cell.values["policy"], metric, float(value))


# --- all of them ------------------------------------------------------------------------------------------------------


def gather(study: Study, workdir: Path, form: str) -> dict[str, dict[str, Any]]:
    """Joins the shards of each policy to WORKDIR/POLICY.jsonl, and writes the counts to WORKDIR/samples.json.

    Args:
      form: of `FORMS`.

    Returns:
      policy → {"prompts", "answered", "samples", "distinct", "truncated", "dropped": {reason: samples}}; `distinct` counts the
      different answers to each prompt.
    """
    found: dict[str, dict[str, Any]] = {}
    for policy in dict.fromkeys(cell.values["policy"] for cell in study.cells):
        folders = [workdir / cell.name for cell in study.cells if cell.values["policy"] == policy]
        with replacing(workdir / f"{_file_name(policy)}.jsonl") as unfinished, unfinished.open("wb") as file:
            for folder in folders:
                file.writelines(_lines(folder / SAMPLES, form))
        parts = [json.loads((folder / COUNTS).read_text(encoding="utf-8")) for folder in folders]
        dropped = sum((Counter(part.pop("dropped")) for part in parts), Counter[str]())
        found[policy] = {name: sum(part[name] for part in parts) for name in parts[0]} | {"dropped": dict(dropped)}
    write_json(workdir / COUNTS, {"study": study.name, "policies": found})
    return found


def _lines(path: Path, form: str) -> Iterator[bytes]:
    with path.open("rb") as file:
        for line in file:
            yield from [line] if form == "records" else map(_encoded, _pool_rows(json.loads(line)))


def _encoded(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _pool_rows(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A record as rows of a pool, one for each output."""
    shared = {name: row[name] for name in ("category", "type") if name in row}
    for n, output in enumerate(row["outputs"]):
        columns = {
            name: row[name] if column.axes == "RG" else row[name][n]
            for name, column in of_single().items()
            if name in row
        }
        asked = {"prompt_id": row["id"], "prompt": row["prompt"], "policy": row["policies"][n], "sample": n}
        yield {**asked, "output": output, **shared, **columns}
