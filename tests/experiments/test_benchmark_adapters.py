"""The benchmark of adapters: rounds and ratios from given seconds (nothing is timed here), and its arms."""

import dataclasses

import pytest

from experiments import benchmark_adapters as benchmark
from experiments import benchmarks
from rmjax.config import chosen
from rmjax.methods.adapters import adapter_config


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


def test_ratios_are_formed_within_a_round():
    seconds = {
        "lora": [1.0, 10.0, 2.0],
        "loramoe": [1.2, 12.0, 2.4],
        "lora_dropout": [2.0, 1.0],
        "loramoe_dropout": [3.0, 1.5],
    }
    found = benchmark.ratios(seconds)
    assert (
        found["loramoe_dropout"]["value"] == pytest.approx(1.5) and found["lora_dropout"]["reference"] == "lora_dropout"
    )
    assert found["lora"]["median"] == 1.0
    assert [found["loramoe"][name] for name in ("median", "value", "low", "high")] == pytest.approx([1.2] * 4)


def test_the_single_adapter_has_the_inner_width_of_all_experts():
    sizes = benchmark.Sizes(layers=2, experts=4, rank=3)
    made = {name: benchmark.configured(changes, sizes) for name, changes in benchmark.arms(sizes).items()}
    one, several = (adapter_config(made[name].adapter) for name in ("lora", "loramoe"))
    assert one.rank == several.rank * several.experts == 12
    assert made["full"].adapter.kind == "" and "lora_" not in chosen(made["full"]).trainable
    assert made["loramoe_bf16_base"].model.param_dtype == "bfloat16" and made["lora"].model.param_dtype == "float32"


@pytest.mark.slow
def test_an_arm_takes_steps():
    sizes = benchmark.Sizes(layers=1, rows=1, row_tokens=12)
    arm = benchmarks.Arm.make(benchmark.configured(benchmark.arms(sizes)["loramoe_balanced"], sizes))
    assert arm.seconds() > 0 and arm.seconds() > 0 and int(arm.state.step) == 2
    assert arm.planned_bytes()["temporary"] > 0
