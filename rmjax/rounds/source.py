"""Rounds as a source of batches: its state is a step, for all else follows from it, from the parameters, or stands in files."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from rmjax.data.packing import ForestShape, Tree, packed
from rmjax.data.record import Comparison
from rmjax.models.forest import Forest
from rmjax.models.parameters import flat, merge, nested
from rmjax.rounds.files import Round, RoundFiles
from rmjax.rounds.plan import Plan

_log = logging.getLogger(__name__)


class Draw(Protocol):
    """Draws a round; `rmjax.rounds.draw.Drawing` is one."""

    def __call__(self, params: Any, measured: Any, asked: Sequence[Comparison], seed: int) -> Round: ...


class Rounds:
    """A policy's answers to prompts, drawn anew every round.

    Args:
      plan: which prompts, and which answers when.
      questions: the prompts.
      index: of each, its number in the file: what a batch has as `record`.
      draw: draws a round.
      prepare: a record → the same with what is learned from, or why it is left out.
      trees: (record, number of its prompt) → trees.
      shape, unit: of a batch, as `rmjax.data.packing.packed` takes them.
      files: where rounds are kept; None: nowhere.
      refresh: rounds after which the reference becomes the policy; 0 = never.
      reference, main: names of these roles.
    """

    def __init__(
        self,
        plan: Plan,
        questions: Sequence[Comparison],
        index: Sequence[int],
        draw: Draw,
        prepare: Callable[[Comparison], Comparison | str],
        trees: Callable[[Comparison, int], list[Tree]],
        shape: ForestShape,
        unit: int = 1,
        files: RoundFiles | None = None,
        refresh: int = 0,
        reference: str = "",
        main: str = "",
    ):
        self.plan, self.shape, self.unit = plan, shape, unit
        self._questions, self._index, self._draw = questions, index, draw
        self._prepare, self._trees, self._files = prepare, trees, files
        self._refresh, self._reference, self._main = refresh, reference, main
        self._step = 0
        self._now: tuple[int, list[list[Tree]]] | None = None  # number of the round, trees of each of its records
        self._metrics: dict[int, Mapping[str, float]] = {}
        self._refreshed: tuple[int, Any] | None = None

    def next(self, state: Any, step: int) -> Forest | None:
        """See `Source`."""
        number, place = self.plan.at(step)
        if self.plan.ended(number):
            return None
        if self._now is None or self._now[0] != number:
            self._now = number, self._opened(state, number, place)
        self._step = step
        groups = self._now[1]
        chosen = [tree for i in self.plan.part(number, place, len(groups)) for tree in groups[i]]
        return packed(chosen, self.shape, self.unit)

    def get_state(self) -> dict[str, int]:
        """See `Source`."""
        return {"step": self._step}

    def set_state(self, state: Mapping[str, int]) -> None:
        """See `Source`."""
        self._step, self._now = state["step"], None

    def metrics(self, step: int) -> dict[str, float]:
        """Of the round of a step: its number, its step and what was recorded of its answers."""
        number, place = self.plan.at(step)
        found = {f"rollouts/{name}": value for name, value in self._metrics.get(number, {}).items()}
        return {"round": float(number), "rollouts/staleness": float(place), **found}

    # --- a round ----------------------------------------------------------------------------------------------------------

    def _opened(self, state: Any, number: int, place: int) -> list[list[Tree]]:
        found = self._round(state, number, place)
        kept, left_out = [], 0
        for c, question in zip(found.records, found.questions, strict=True):
            ready = self._prepare(c)
            if isinstance(ready, str):
                left_out += 1
            else:
                kept.append(self._trees(ready, self._index[question]))
        metrics = {**found.metrics, "left_out_groups": float(left_out)}
        self._metrics = {n: each for n, each in self._metrics.items() if n == number - 1} | {number: metrics}
        if not kept:
            _log.warning("round %d: nothing is left to learn from; its updates have a gradient of 0", number)
        return kept

    def _round(self, state: Any, number: int, place: int) -> Round:
        asked, seed = self.plan.asked(number), self.plan.seed_of(number)
        own = {"round": number, "step": number * self.plan.steps + 1, "seed": seed, "prompts": asked}
        found = self._files and self._files.read(number, own)
        if found:
            self._keep_reference(state, number, place)
            return found
        if place:
            where = self._files.path(number) if self._files else "its answers"
            raise ValueError(
                f"{where} is not there, and the run goes on inside round {number}, and the policy that gave them is gone; bring "
                f"it back, or go on from a checkpoint of step {number * self.plan.steps} or before"
            )
        params = merge(state.trainable, state.frozen)
        measured = self._with_reference(state, params, number)
        drawn = self._draw(params, measured, [self._questions[i] for i in asked], seed)
        failed = {asked[i]: outputs for i, outputs in drawn.failed.items()}
        placed = Round(drawn.records, [asked[i] for i in drawn.questions], drawn.metrics, failed)
        return self._files.write(number, placed, own) if self._files else placed

    # --- the reference ----------------------------------------------------------------------------------------------------

    def _keep_reference(self, state: Any, number: int, place: int) -> None:
        """A round that is read again leaves the reference behind as it did when it was drawn."""
        if self._refresh and number and number % self._refresh == 0 and place == 0:
            self._with_reference(state, merge(state.trainable, state.frozen), number)

    def _with_reference(self, state: Any, params: Any, number: int) -> Any:
        """The parameters with the reference of a round."""
        since = number // self._refresh * self._refresh if self._refresh else 0
        if not since:
            return params
        if self._refreshed is None or self._refreshed[0] != since:
            self._refreshed = since, self._new_reference(state, since, number)
        return {**params, self._reference: self._refreshed[1]}

    def _new_reference(self, state: Any, since: int, number: int) -> Any:
        leaves = flat(state.trainable[self._main])
        if number == since:
            held = {path: np.asarray(leaf) for path, leaf in leaves.items()}
            if self._files:
                self._files.write_reference(since, held)
        else:
            read = self._files.read_reference(since) if self._files else None
            if read is None:
                where: Path | str = self._files.reference_path(since) if self._files else "the reference"
                raise ValueError(
                    f"{where} is not there, and rounds from {since} on are measured by it; bring it back, or go on from a "
                    f"checkpoint of step {since * self.plan.steps} or before"
                )
            held = read
        return nested({path: jax.device_put(held[path], leaf.sharding) for path, leaf in leaves.items()})
