"""What grids of runs share: results that are not made again, and runs as long as their data."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmjax.config import chosen
from rmjax.data.tokenizer import Tokenizer
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
    return sum(1 for _ in open_stream(methods, tokenizer, format_of(methods, tokenizer)).batches)


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
