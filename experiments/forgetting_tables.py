"""The summary of experiments/forgetting.py as tables to read: results.md."""

from collections.abc import Mapping
from typing import Any

from experiments.tables import cell, markdown, mean_cell, routing


def tables(results: Mapping[str, Any]) -> str:
    """Markdown: for every size each arm's measures beside the base's, then the paired differences of arms at every size, and the
    routing at the largest."""
    arms, base = results["arms"], results["base"]
    sizes = sorted({size for by_size in arms.values() for size in by_size}, key=int)
    found = [f"Of {results['asked']} old questions the base answers {results['answered']} right."]
    for size in sizes:
        rows = [[f"{size} tasks", "trained parameters", *base], ["base", "", *map(mean_cell, base.values())]]
        for arm, by_size in arms.items():
            if size in by_size:
                rows.append([arm, f"{results['trained'][arm]:,}", *(cell(by_size[size][name]) for name in base)])
        found.append(markdown(rows))
    for pair, by_size in results["compared"].items():
        rows = [[size, *(cell(measures[name], "+") for name in base)] for size, measures in by_size.items()]
        found.append(markdown([[f"{pair}, tasks", *base], *rows]))
    found.append(routing(results["routing"]))
    return "\n\n".join(filter(None, found)) + "\n"
