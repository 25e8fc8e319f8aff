"""What benchmarks share: rounds in which the order turns. Nothing is timed here."""

import dataclasses

from experiments import benchmarks


@dataclasses.dataclass
class Scripted:
    name: str
    log: list
    rounds: int = 0

    def seconds(self):
        self.log.append(self.name)
        self.rounds += 1
        return float(self.rounds)


def test_every_round_has_each_arm_once_and_the_first_ones_do_not_count():
    log: list = []
    found = benchmarks.timed({name: Scripted(name, log) for name in "abc"}, rounds=4)
    rounds = [log[i : i + 3] for i in range(0, len(log), 3)]
    assert len(rounds) == 6 and all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert {r[0] for r in rounds} == {"a", "b", "c"}  # the order turns
    assert found == {name: [3.0, 4.0, 5.0, 6.0] for name in "abc"}
