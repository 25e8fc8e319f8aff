"""A generator for tests: it answers by a function, fails where it says so, and counts what it was asked."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

from rmjax.data.record import Comparison
from rmjax.policy.generator import Generated


@dataclasses.dataclass
class Scripted:
    """`answer`: (prompt, number of the sample) → the reply, or None for one that cannot be had."""

    answer: Callable[[str, int], str | None]
    name: str = "scripted"
    reason: str = "HTTP 500"
    asked: list[str] = dataclasses.field(default_factory=list)

    def __call__(self, records: Sequence[Comparison], samples: int, seed: int) -> Generated:
        del seed
        kept, dropped = [], Counter[str]()
        for c in records:
            first = int(c.id.partition("+")[2] or 0)
            self.asked += [str(c.prompt)] * samples
            replies = [self.answer(str(c.prompt), first + n) for n in range(samples)]
            said = tuple(reply for reply in replies if reply is not None)
            dropped[self.reason] += samples - len(said)
            if said:
                kept.append(dataclasses.replace(c, outputs=said, policies=(self.name,) * len(said)))
        return Generated(kept, +dropped)
