"""Panels in each of which one thing varies; SmolLM2's proportions, heads of 64, random weights and tokens."""

from typing import Any

from ml_collections import ConfigDict

from experiments.benchmarks import configured

SHARED, OWN = 64, 32  # tokens of a group: of all its candidates, of each
LENGTHS = tuple({"rows": rows, "groups": 32 // rows} for rows in (16, 8, 4, 2))


def get_config() -> ConfigDict:
    """The published points."""
    config = ConfigDict()
    config.rounds = 5  # steps that are counted, after one that is not
    config.block = 96  # tokens, where attention is in blocks: groups of 128 do not line up with them
    config.case = case = ConfigDict()  # what a point has that its panel does not vary
    case.layers = 12
    case.heads = 6  # three to a head of keys and values
    case.rows = 8  # a batch
    case.groups = 4  # a row, which they fill
    case.candidates = 2  # a group, all of them ranked
    case.devices = 1  # above 1: simulated ones of the CPU
    case.attention = "dense"  # dense | blockwise
    config.panels = ConfigDict(sort_keys=False)
    config.panels.parameters = panel(
        "trained parameters", "trained", *({"layers": n, "heads": heads} for n, heads in ((6, 3), (12, 6), (30, 9)))
    )
    config.panels.length = panel("tokens a row (4096 a batch)", "row_tokens", *LENGTHS)
    config.panels.blocks = panel(
        "tokens a row, attention in blocks of 96 (4096 a batch)", "row_tokens",
        *(each | {"attention": "blockwise"} for each in LENGTHS),
    )  # fmt: skip
    config.panels.candidates = panel(
        "candidates a group (rows of 512 to 640 tokens)", "candidates",
        *({"candidates": n, "groups": groups} for n, groups in ((2, 4), (4, 3), (8, 2), (16, 1))),
    )  # fmt: skip
    config.panels.devices = panel("simulated devices", "devices", *({"devices": n} for n in (1, 2, 4, 8)))
    return config


def panel(label: str, axis: str, *points: dict[str, Any]) -> ConfigDict:
    """A panel of the plot: what its axis says, what is on it (a key of `config.case`, `row_tokens` or `trained`), and the changes
    of `config.case` at its points."""
    entry = ConfigDict()
    entry.label, entry.axis, entry.points = label, axis, points
    return entry


def row_tokens(case: Any) -> int:
    """Of a row, which its groups fill."""
    return case.groups * (SHARED + OWN * case.candidates)


def training(grid: Any, case: Any) -> ConfigDict:
    """The run whose step is timed."""
    width = 64 * case.heads
    config = configured({}, layers=case.layers, rows=case.rows, row_tokens=row_tokens(case))
    config.model.update(width=width, heads=case.heads, kv_heads=case.heads // 3, mlp_width=width * 8 // 3)
    config.model.update(attention=case.attention, attention_block=grid.block)
    config.data.update(groups=case.groups, candidates=case.candidates)
    return config
