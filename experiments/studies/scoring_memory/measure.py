"""Memory that scoring with public reward models needs: `python -m experiments.study scoring_memory`.

A cell is a model on some chips with rows of one length, and its training is the compilation of its scoring by `rmjax.ahead`.
Needs libtpu, no TPU, and no weights: sizes are enough.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.studies.pods.measure import REFUSED, compiled_rows, read_compiled, require_compiler, write_compiled
from rmjax import ahead
from rmjax.data.packing import ForestShape
from rmjax.evaluate.rows import Row
from rmjax.models.presets import PRESETS
from rmjax.models.transformer import TransformerConfig
from rmjax.parallel.chips import Slice
from rmjax.study import table
from rmjax.study.cells import Cell
from rmjax.study.claim import Claim
from rmjax.study.study import Result, Study
from rmjax.study.summary import Line, fact_lines

METRICS = ("parameters", "parameter_bytes", "hbm_bytes_of_chip", "memory_bytes.arguments", "memory_bytes.peak")
GROUPS, BRANCHES = 8, 16  # of a row; they hardly matter
PRECISION = {"dtype": "bfloat16", "param_dtype": "bfloat16", "attention": "blockwise"}  # long rows in tiles


def cells(grid: Any) -> Iterator[Cell]:
    """Each model on each of its slices with rows of each length."""
    for key, model in grid.models.items():
        for topology, chips in model.slices:
            for tokens in grid.row_tokens:
                whole = ConfigDict({"sizes": model.sizes, "topology": topology, "chips": chips, "row_tokens": tokens})
                values = {
                    "model": model.name,
                    "chips": f"{chips} × {topology.split(':')[0]}",
                    "row_tokens": str(tokens),
                }
                yield Cell(
                    f"{key}.{topology.replace(':', '-')}.{chips}.{tokens}", values, whole, {"JAX_PLATFORMS": "cpu"}
                )


def architecture(sizes: Mapping[str, Any]) -> TransformerConfig:
    """Of a preset's name or of sizes, in bf16."""
    sizes = dict(sizes)
    preset = sizes.pop("preset", "")
    known = vars(PRESETS[preset]) if preset else {}
    return TransformerConfig(**(known | sizes | PRECISION))


def compile_scoring(config: ConfigDict, folder: Path) -> None:
    """Writes the report of scoring a row on each chip, or why it does not fit."""
    shape = ForestShape(config.chips, config.row_tokens, GROUPS, BRANCHES)
    sizes = {"data": 1, "fsdp": config.chips}
    where = Slice.parse(config.topology)
    write_compiled(folder, lambda: ahead.scoring(architecture(config.sizes), where, sizes, shape))


def measure(cell: Cell, workdir: Path) -> Iterator[Row]:
    """What the table shows of a report, in bytes and parameters."""
    return compiled_rows("scoring", read_compiled(workdir / cell.name), METRICS)


def summarize(grid: Any, results: Mapping[str, Result]) -> list[Line]:
    """The rows as they are, each with its model, chips and length."""
    return [line for cell in cells(grid) for line in fact_lines(results[cell.name].rows, cell.values)]


def parts(lines: Sequence[Line]) -> dict[str, str]:
    """The table of docs/hub.md: a line for a model on some chips, a column for each length."""
    cases: dict[tuple[str, str], dict[str, dict[str, Line]]] = {}
    for line in lines:
        cases.setdefault((line["model"], line["chips"]), {}).setdefault(line["row_tokens"], {})[line["metric"]] = line
    lengths = list(next(iter(cases.values())))
    head = ["model", "parameters", "weights GB", "chips", *(f"GB a chip, rows of {int(n):,} tokens" for n in lengths)]
    return {"table": table.markdown([head, *(_row(*case, found) for case, found in cases.items())])}


def _row(model: str, chips: str, by_length: Mapping[str, Mapping[str, Line]]) -> list[str]:
    fitting = [found for found in by_length.values() if REFUSED not in found]
    if not fitting:
        return [model, "", "", chips, *(found[REFUSED]["why"] for found in by_length.values())]
    value = {metric: line["value"] for metric, line in fitting[0].items()}
    sizes = [f"{value['parameters'] / 1e9:.2f} B", f"{value['parameter_bytes'] / 1e9:.1f}"]
    return [model, *sizes, chips, *map(_memory, by_length.values())]


def _memory(found: Mapping[str, Line]) -> str:
    if REFUSED in found:
        return found[REFUSED]["why"]
    return f"{found['memory_bytes.peak']['value'] / 1e9:.1f} of {found['hbm_bytes_of_chip']['value'] / 1e9:.1f}"


def get_claim(grid: ConfigDict) -> Claim:
    """The study of a config of config.py."""
    study = Study("scoring_memory", tuple(cells(grid)), compile_scoring, measure, require_compiler, code=(ahead,))
    return Claim(study, Path("docs/hub.md"), lambda results: summarize(grid, results), parts)
