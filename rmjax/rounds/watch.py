"""A run ends where its gold reward has fallen for some evaluations, and the best state is kept."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rmjax.settings import AnswersEval

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Watch:
    """Looks at the evaluations of a run; what it knows follows from the metrics that were written.

    Attributes:
      entries: evaluations that may end the run, by name.
      keep: (step, state): keeps a state, the best so far.
    """

    entries: Mapping[str, AnswersEval]
    keep: Callable[[int, Any], None]
    best: dict[str, float] = dataclasses.field(default_factory=dict)
    below: dict[str, int] = dataclasses.field(default_factory=dict)  # evaluations in a row

    def recall(self, lines: Iterable[Mapping[str, float]]) -> None:
        """Takes in what a run that goes on has written."""
        for line in lines:
            for name in self.entries:
                found = {key: line[f"eval/{name}/{key}"] for key in ("gold", "reward") if f"eval/{name}/{key}" in line}
                if found:
                    self._count(name, found)

    def seen(self, step: int, name: str, values: Mapping[str, float], state: Any) -> None:
        """Takes in an evaluation, and keeps the state where it is the best."""
        if name in self.entries and self._count(name, values):
            self.keep(step, state)

    @property
    def stop(self) -> str:
        """Why the run ends, or nothing."""
        for name, entry in self.entries.items():
            if 0 < entry.patience <= self.below.get(name, 0):
                return (
                    f"evaluation {name}: gold, or the reward where there is none, has been more than {entry.drop:g} below its "
                    f"best, {self.best[name]:.4g}, for {self.below[name]} evaluations"
                )
        return ""

    def _count(self, name: str, values: Mapping[str, float]) -> bool:
        """Whether this is the best so far. Without gold it is the reward's."""
        value, before = values.get("gold", values.get("reward")), self.best.get(name)
        if value is None:
            return False
        if before is None or value > before:
            self.best[name], self.below[name] = value, 0
            return True
        self.below[name] = self.below.get(name, 0) + 1 if value < before - self.entries[name].drop else 0
        return False
