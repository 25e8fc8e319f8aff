"""What the runs of a benchmark come to: medians with their spread, ratios within a round, the aims they are held against."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rmjax.study.table import markdown

QUANTITIES = ("pairs_per_second", "tokens_per_second", "peak_bytes", "device_peak_bytes", "startup_seconds")
Spread = dict[str, Any]


def spread(values: Sequence[float]) -> Spread:
    """Median, lowest and highest of some runs, and each."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "runs": list(values)}


def measured(run: Mapping[str, Any]) -> dict[str, float | None]:
    """The quantities of one run; tokens are those of the pairs' texts, a common beginning once, whoever runs them."""
    seconds = sum(step["seconds"] for step in run["steps"])
    totals = {name: sum(step[name] for step in run["steps"]) for name in ("pairs", "tokens")}
    found = {f"{name}_per_second": total / seconds for name, total in totals.items()}
    return found | {name: run.get(name) for name in QUANTITIES[2:]}


def warm(run: Mapping[str, Any]) -> bool:
    """Whether the compile cache had everything; the other side has nothing to compile."""
    return not run.get("compiled")


def of_arm(runs: Sequence[Mapping[str, Any]]) -> dict[str, Spread]:
    """Each quantity over the runs; start-up over those that compiled nothing, and over the others as `cold_startup_seconds`."""
    values = [measured(run) for run in runs]
    found = {
        name: spread([v[name] for v in values])  # type: ignore[misc]
        for name in QUANTITIES[:-1]
        if all(v[name] is not None for v in values)
    }
    for name, wanted in (("startup_seconds", True), ("cold_startup_seconds", False)):
        starts = [run["startup_seconds"] for run in runs if warm(run) == wanted]
        found |= {name: spread(starts)} if starts else {}
    found["pairs_a_step"] = spread([s["pairs"] for run in runs for s in run["steps"]])
    return found


def against(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> dict[str, Spread]:
    """Ours over theirs, formed within each round."""
    pairs = [(measured(one), measured(other)) for one, other in zip(ours, theirs, strict=True)]
    return {
        name: spread([a[name] / b[name] for a, b in pairs])  # type: ignore[operator]
        for name in QUANTITIES[:-1]
        if all(a[name] is not None and b[name] is not None for a, b in pairs)
    }


def together(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> float:
    """Pairs per second of all rounds as one, ours over theirs: pairs of one batch may be short, those of all are as they are."""
    steps = [[step for run in side for step in run["steps"]] for side in (ours, theirs)]
    one, other = (sum(s["pairs"] for s in side) / sum(s["seconds"] for s in side) for side in steps)
    return one / other


def dense_against(dense: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> Spread:
    """Speed of our padded step over that of theirs on the same batch, formed within each round.

    Raises:
      ValueError: a batch had another shape on the other side.
    """
    found = []
    for one, other in zip(dense, theirs, strict=True):
        step = other["steps"][0]
        if one["steps"][0]["shape"] != step["shape"]:
            raise ValueError(f"shapes differ: {one['steps'][0]['shape']} and {step['shape']}; use a new --workdir")
        found.append(step["seconds"] / statistics.median(s["seconds"] for s in one["steps"]))
    return spread(found)


def summary(found: Mapping[str, Any], batches: Sequence[int], rounds: int) -> dict[str, Any]:
    """Of runs by name (`ARM.BATCH.ROUND`, `pack`, `score`)."""
    result: dict[str, Any] = {"batches": {}}
    for batch in batches:
        arms = {
            arm: [found[f"{arm}.{batch}.{n}"] for n in range(rounds)]
            for arm in ("rmjax", "trl", "dense")
            if f"{arm}.{batch}.0" in found
        }
        entry = {
            "arms": {arm: of_arm(runs) for arm, runs in arms.items()},
            "ratio": against(arms["rmjax"], arms["trl"]),
            "together": together(arms["rmjax"], arms["trl"]),
        }
        if "dense" in arms:
            entry["dense_ratio"] = dense_against(arms["dense"], arms["trl"])
        result["batches"][str(batch)] = entry
    result["versions"] = {arm: found[f"{arm}.{batches[0]}.0"]["versions"] for arm in ("rmjax", "trl")}
    result["pack"] = {name: found["pack"][name] for name in ("batch_seconds", "step_seconds", "ratio")}
    seconds = found["score"]["seconds"]
    ratios = {
        name: spread([x / y for x, y in zip(seconds[name], seconds["forest"], strict=True)])
        for name in ("padded", "sorted")
    }
    kept = {name: found["score"][name] for name in ("groups", "candidates", "tokens") if name in found["score"]}
    return result | {"score": kept | {"ratio": ratios}}


def text(values: Spread, scale: float = 1.0, digits: int = 3) -> str:
    """median (lowest–highest)."""
    return "{} ({}–{})".format(*(_number(values[side] * scale, digits) for side in ("median", "low", "high")))


def _number(value: float, digits: int) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def arms_table(result: Mapping[str, Any]) -> list[list[str]]:
    """A row for each batch size and side."""
    rows = [["pairs a batch", "side", "pairs/s", "tokens/s", "peak memory GB", "start-up s"]]
    for batch, entry in result["batches"].items():
        for arm, found in entry["arms"].items():
            memory = found.get("device_peak_bytes", found["peak_bytes"])
            start = text(found["startup_seconds"], digits=2) if "startup_seconds" in found else "–"
            if "cold_startup_seconds" in found:
                start += f", cold {text(found['cold_startup_seconds'], digits=2)}"
            rates = (text(found[f"{name}_per_second"]) for name in ("pairs", "tokens"))
            rows.append([batch, arm, *rates, text(memory, 1e-9), start])
    return rows


def aims_table(result: Mapping[str, Any]) -> list[list[str]]:
    """Each aim with what was measured."""
    rows = [["aim", "measured"]]
    for batch, entry in result["batches"].items():
        ratio = entry["ratio"]
        memory = ratio.get("device_peak_bytes", ratio["peak_bytes"])
        pooled = (
            f"; all rounds together {_number(entry['together'], 3)}×" if "together" in entry else ""
        )  # older results lack it
        rows.append([f"pairs/s ≥ 4× TRL's, then 5× (batch {batch})", f"{text(ratio['pairs_per_second'])}×{pooled}"])
        rows.append([f"peak memory ≤ TRL's (batch {batch})", f"{text(memory)}×"])
        if "dense_ratio" in entry:
            rows.append([f"padded step, same shapes, ≥ 1.0× TRL's (batch {batch})", f"{text(entry['dense_ratio'])}×"])
        start = entry["arms"]["rmjax"].get("startup_seconds")
        rows.append(
            [f"start-up ≤ 30 s, compile cache warm (batch {batch})", f"{text(start, digits=2)} s" if start else "–"]
        )
    ratios, pack = result["score"]["ratio"], result["pack"]
    scored = f"{text(ratios['padded'])}×; sorted by length {text(ratios['sorted'])}×"
    if tokens := result["score"].get("tokens"):  # older results lack them
        fewer, cells = tokens["separate"] / tokens["shared"], tokens["padded"] / tokens["forest"]
        scored += f"; tokens {fewer:.2f}× fewer, with padding on both sides {cells:.2f}×"
    rows.append([f"scoring of POLAR groups of {result['score']['candidates']} ≥ 4× padded", scored])
    rows.append(["making a batch ≥ 50× faster than the step, one core", f"{_number(pack['ratio'], 3)}×"])
    return rows


def table(result: Mapping[str, Any]) -> str:
    """Both tables."""
    return markdown(arms_table(result)) + "\n\n" + markdown(aims_table(result))
