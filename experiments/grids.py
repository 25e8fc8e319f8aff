"""What grids of runs share: results that are not made again, runs as long as their data, intervals over seeds and items."""

import json
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmjax.config import chosen
from rmjax.data.record import Comparison
from rmjax.data.tokenizer import Tokenizer
from rmjax.evaluate.bootstrap import difference, interval
from rmjax.evaluate.comparisons import judge
from rmjax.evaluate.routing import served_share
from rmjax.losses.balance import equal_groups
from rmjax.streams import format_of, open_stream


def chosen_arms(grid: Any) -> list[str]:
    """Names of the arms whose whole name matches `config.chosen`. ValueError where none does."""
    found = [name for name in grid.arms if re.fullmatch(grid.chosen, name)]
    if not found:
        raise ValueError(f"config.chosen is {grid.chosen!r} and matches no arm; they are {', '.join(grid.arms)}")
    return found


def steps_of(config: Any, tokenizer: Tokenizer) -> int:
    """Batches in `config.data.epochs` passes over the data."""
    methods = chosen(config)
    return sum(1 for _ in open_stream(methods, tokenizer, format_of(methods)).batches)


def stored(path: Path, judged: Mapping[str, Any]) -> dict[str, Any] | None:
    """A finished result; None where there is none.

    Raises:
      ValueError: it was judged on other tests than `judged` says.
    """
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if found["judged"] != dict(judged):
        raise ValueError(f"{path} was judged with {found['judged']}; the config says {dict(judged)}; use a new workdir")
    return found


def credits_of(scores: Sequence[Sequence[float]], rows: Sequence[Comparison]) -> list[float]:
    """A value per row with a known order: 1 right, 0 wrong, between them where some of its pairs are."""
    verdicts = [judge(row, found) for row, found in zip(rows, scores, strict=True)]
    return [verdict.credit for verdict in verdicts if verdict is not None]


def over_seeds(values: Sequence[Sequence[float]], items: Sequence[Sequence[Hashable]] | None = None) -> dict[str, Any]:
    """Of a value per seed and row: the mean with its interval, and each seed's mean.

    Items are resampled, each with all its values. `items` labels the values, seed by seed; by default a row is one item, the
    same in all seeds.
    """
    return {"mean": interval(*_pooled(values, items)), "seeds": [float(np.mean(v)) for v in values if len(v)]}


def paired(
    first: Sequence[Sequence[float]],
    second: Sequence[Sequence[float]],
    items: Sequence[Sequence[Hashable]] | None = None,
) -> dict[str, Any]:
    """First minus second, seed by seed and row by row, in the form of `over_seeds`."""
    (a, labels), (b, _) = _pooled(first, items), _pooled(second, items)
    seeds = [float(np.mean(one) - np.mean(other)) for one, other in zip(first, second, strict=True) if len(one)]
    return {"mean": difference(a, b, labels), "seeds": seeds}


def routing_over_seeds(results: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Of an arm's results, one a seed: how unevenly the experts' mass is spread, and for each type the share of its mass on
    the experts that serve it. None where nothing is routed."""
    routed = [result["routing"] for result in results if "routing" in result]
    if not routed:
        return None
    experts = len(next(iter(routed[0]["shares"].values()))[0][0])
    served = [served_share(routing, equal_groups(experts, exactly=False)) for routing in routed]
    by_type = {name: [share[i] for share in served] for i, name in enumerate(routed[0]["types"])}
    return {"variation": [routing["variation"] for routing in routed], "served": by_type}


def _pooled(
    values: Sequence[Sequence[float]], items: Sequence[Sequence[Hashable]] | None
) -> tuple[np.ndarray, list[Hashable]]:
    labels = [range(len(v)) for v in values] if items is None else items
    return np.concatenate([np.asarray(v, np.float64) for v in values]), [label for found in labels for label in found]
