"""What the runs of both sides come to, as lines: medians with lowest, highest and each; ratios within a round."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rmjax.study.summary import Line

QUANTITIES = ("pairs_per_second", "tokens_per_second", "peak_bytes", "device_peak_bytes")
Runs = Sequence[Mapping[str, Any]]
"""What the processes of one side found, by round."""


def spread_of(axes: Mapping[str, Any], metric: str, found: Sequence[float]) -> Line:
    """Median, lowest and highest of some runs, and each."""
    return {
        **axes, "metric": metric, "value": statistics.median(found), "low": min(found), "high": max(found), "seeds": list(found),
    }  # fmt: skip


def measured(run: Mapping[str, Any]) -> dict[str, float | None]:
    """The quantities of one run; tokens are those of the pairs' texts, a common beginning once, whoever runs them."""
    seconds = sum(step["seconds"] for step in run["steps"])
    totals = {f"{name}_per_second": sum(step[name] for step in run["steps"]) / seconds for name in ("pairs", "tokens")}
    return totals | {name: run.get(name) for name in QUANTITIES[2:]}


def of_side(axes: Mapping[str, Any], runs: Runs) -> list[Line]:
    """Each quantity; start-up of the runs that compiled nothing, and of the others as `cold_startup_seconds`."""
    found = [measured(run) for run in runs]
    columns = {name: [each[name] for each in found] for name in QUANTITIES}
    columns["startup_seconds"] = [run["startup_seconds"] for run in runs if not run.get("compiled")]
    columns["cold_startup_seconds"] = [run["startup_seconds"] for run in runs if run.get("compiled")]
    columns["pairs_a_step"] = [step["pairs"] for run in runs for step in run["steps"]]
    return [spread_of(axes, name, x) for name, x in columns.items() if x and None not in x]  # type: ignore[arg-type]


def against(axes: Mapping[str, Any], ours: Runs, theirs: Runs) -> list[Line]:
    """Ours over theirs, formed within each round; `together`: pairs per second of all rounds as one, since the pairs of one batch
    may be short, those of all are as they are."""
    pairs = [(measured(one), measured(other)) for one, other in zip(ours, theirs, strict=True)]
    lines = []
    for name in QUANTITIES:
        if all(a[name] is not None and b[name] is not None for a, b in pairs):
            lines.append(spread_of(axes, name, [a[name] / b[name] for a, b in pairs]))  # type: ignore[operator]
    one, other = ([step for run in side for step in run["steps"]] for side in (ours, theirs))
    rates = [sum(s["pairs"] for s in side) / sum(s["seconds"] for s in side) for side in (one, other)]
    return [*lines, {**axes, "metric": "together", "value": rates[0] / rates[1]}]


def dense_against(axes: Mapping[str, Any], dense: Runs, theirs: Runs) -> Line:
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
    return spread_of(axes, "dense", found)


# --- tables ------------------------------------------------------------------------------------------------------------


def text(line: Line, scale: float = 1.0, digits: int = 3) -> str:
    """median (lowest–highest)."""
    return "{} ({}–{})".format(*(number(line[side] * scale, digits) for side in ("value", "low", "high")))


def number(value: float, digits: int = 3) -> str:
    """So many significant digits; whole numbers with commas from there on."""
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


class Table:
    """Lines of one machine, by batch, side and metric."""

    def __init__(self, lines: Sequence[Line]):
        self._lines = {(line.get("batch"), line.get("side"), line["metric"]): line for line in lines}
        self.facts = self._lines[None, None, "facts"]
        self.batches = list(dict.fromkeys(line["batch"] for line in lines if "batch" in line))

    def get(self, side: str, metric: str, batch: str | None = None) -> Line | None:
        """A line; None where that was not measured."""
        return self._lines.get((batch, side, metric))

    def sides(self, batch: str) -> list[str]:
        """Those that were run."""
        return [side for at, side, metric in self._lines if at == batch and metric == "pairs_a_step" and side]


def sides_table(table: Table) -> list[list[str]]:
    """A row for each batch size and side."""
    rows = [["pairs a batch", "side", "pairs/s", "tokens/s", "peak memory GB", "start-up s"]]
    for batch in table.batches:
        for side in table.sides(batch):
            found = {name: line for name in (*QUANTITIES, "startup_seconds", "cold_startup_seconds")
                     if (line := table.get(side, name, batch))}  # fmt: skip
            start = text(found["startup_seconds"], digits=2) if "startup_seconds" in found else "–"
            if "cold_startup_seconds" in found:
                start += f", cold {text(found['cold_startup_seconds'], digits=2)}"
            memory = found.get("device_peak_bytes", found["peak_bytes"])
            rates = (text(found[f"{name}_per_second"]) for name in ("pairs", "tokens"))
            rows.append([batch, side, *rates, text(memory, 1e-9), start])
    return rows


def memory_ratio(table: Table, batch: str) -> Line:
    """The device's where it was measured, else the process's."""
    found = table.get("ratio", "device_peak_bytes", batch) or table.get("ratio", "peak_bytes", batch)
    assert found
    return found


def aims_table(table: Table) -> list[list[str]]:
    """Each aim with what was measured."""
    rows = [["aim", "measured"]]
    for batch in table.batches:
        speed, together, dense = (table.get("ratio", name, batch) for name in ("pairs_per_second", "together", "dense"))
        start = table.get("rmjax", "startup_seconds", batch)
        pooled = f"; all rounds together {number(together['value'])}×" if together else ""  # older results lack it
        rows.append([f"pairs/s ≥ 4× TRL's, then 5× (batch {batch})", f"{text(speed)}×{pooled}" if speed else "–"])
        rows.append([f"peak memory ≤ TRL's (batch {batch})", f"{text(memory_ratio(table, batch))}×"])
        if dense:
            rows.append([f"padded step, same shapes, ≥ 1.0× TRL's (batch {batch})", f"{text(dense)}×"])
        rows.append(
            [f"start-up ≤ 30 s, compile cache warm (batch {batch})", f"{text(start, digits=2)} s" if start else "–"]
        )
    padded, by_length, pack = (table.get("score", "padded"), table.get("score", "sorted"), table.get("pack", "ratio"))
    assert padded and by_length and pack
    scored = f"{text(padded)}×; sorted by length {text(by_length)}×"
    if tokens := table.facts["scored"].get("tokens"):  # older results lack them
        fewer, cells = tokens["separate"] / tokens["shared"], tokens["padded"] / tokens["forest"]
        scored += f"; tokens {fewer:.2f}× fewer, with padding on both sides {cells:.2f}×"
    rows.append([f"scoring of POLAR groups of {table.facts['scored']['candidates']} ≥ 4× padded", scored])
    rows.append(["making a batch ≥ 50× faster than the step, one core", f"{number(pack['value'])}×"])
    return rows


def place(table: Table) -> str:
    """What the numbers were measured on and with."""
    facts, data, apart = table.facts, table.facts["data"], table.facts["agreement"]
    of_all = ", ".join(
        f"{name} {version}" for name, version in facts["versions"].items() if name not in ("python", "numpy")
    )
    steps = ", ".join(f"{count} at batch {batch}" for batch, count in facts["steps"].items())
    sentences = (
        f"{machine(facts)}; {facts['dtype']}; {of_all}.",
        f"Pairs: {data['name']}, {data['mean_tokens_of_a_pair']:.0f} tokens a pair in the mean, {data['cut_pairs']} of",
        f"{data['counted_pairs']} cut to the row. {facts['rounds']} rounds; steps timed in a process: {steps}; at most",
        f"{facts['at_once']} pairs at once. On one batch in fp32, before any step, the two losses differ by",
        f"{apart['loss']:.1e}, rewards by {apart['rewards']:.1e} at most.",
    )
    said = " and ".join(
        f"{rate / 1e9:,.0f} GFLOP/s by the library under {side}" for side, rate in facts["product_rate"].items()
    )
    products = [f"A matrix product of a layer's sizes alone, in fp32, runs at {said}."] if said else []
    return "\n".join([*sentences, *products])


def machine(facts: Mapping[str, Any]) -> str:
    """In words."""
    return str(facts["device"] if "cpu" not in facts["device"] else f"{facts['cores']} cores of {facts['cpu']}")


def in_short(table: Table) -> str:
    """For the README: pairs per second and memory over TRL's."""
    memory = " and ".join(f"{memory_ratio(table, batch)['value']:.2g}" for batch in table.batches)
    speeds = [(batch, table.get("ratio", "pairs_per_second", batch)) for batch in table.batches]
    ratios = ", ".join(f"{text(line, digits=2)} times at batch {batch}" for batch, line in speeds if line)
    rates = list(table.facts["product_rate"].values())
    faster = f", where our library multiplies matrices {rates[0] / rates[1]:.2g} times as fast" if rates else ""
    return f"{ratios}, in {memory} of its memory, on {machine(table.facts)}, {table.facts['dtype']}{faster}"
