"""The page with the measured speeds: true without results, and what it says of some. No number here was measured."""

import re
from pathlib import Path

import pytest

from experiments import speed
from experiments.trainers.results import spread, summary, text

PAGE = Path(__file__).parents[2] / speed.PAGE


def run(arm: str, seconds: float, **facts) -> dict:
    steps = [{"seconds": seconds, "pairs": 8, "tokens": 1600, "shape": [16, 300]}]
    versions = {"trl": {"torch": "2.0", "trl": "1.0"}}.get(arm, {"jax": "0.1", "numpy": "3"})
    return {"steps": steps, "peak_bytes": 2 * 10**9, "startup_seconds": 20.0, "versions": versions} | facts


@pytest.fixture
def result():
    found = {f"rmjax.8.{n}": run("rmjax", 10.0 + n, compiled=int(n == 0)) for n in range(3)}
    found |= {f"trl.8.{n}": run("trl", 5 * (10.0 + n), peak_bytes=4 * 10**9) for n in range(3)}
    found |= {f"dense.8.{n}": run("dense", 4 * (10.0 + n)) for n in range(3)}
    found["pack"] = {"batch_seconds": 0.1, "step_seconds": 20.0, "ratio": 200.0}
    seconds = {"forest": [1.0], "padded": [4.5], "sorted": [3.5]}
    tokens = {"shared": 100, "separate": 250, "forest": 120, "padded": 480, "sorted": 300}
    found["score"] = {"seconds": seconds, "groups": 4, "candidates": 5, "tokens": tokens}
    facts = {"agreement": {"loss": 1e-6, "rewards": 2e-5}, "device": "1 x cpu (cpu)", "cores": 2, "cpu": "Some CPU"}
    facts |= {"data": {"name": "hh", "mean_tokens_of_a_pair": 194.0, "cut_pairs": 3, "counted_pairs": 100}}
    facts |= {"dtype": "float32", "settings": {"steps": {"8": 1}, "at_once": 8}, "rows": {"8": 3}}
    return facts | summary(found, [8], 3)


def test_the_page_here_is_what_the_command_writes():
    root = PAGE.parents[1]
    results, readme = speed.machines(root), root / speed.README
    assert results and "growth" not in results
    assert speed.page(PAGE.read_text(), results) == PAGE.read_text()
    assert f"{speed.LINE_BEGIN}{speed.readme_line(results)}{speed.LINE_END}" in readme.read_text()


def test_without_results_the_page_says_so_and_with_them_it_does_not(result):
    empty = speed.page(PAGE.read_text(), {})
    tables = empty.partition(speed.BEGIN)[2].partition(speed.END)[0]
    assert tables.strip() == speed.NOTHING and speed.readme_line({}) == speed.NOTHING
    full = speed.page(empty, {"two_cores": result})
    assert "## two_cores" in full and speed.page(full, {}) == empty


def test_the_tables_hold_the_aims_against_what_was_measured(result):
    section = speed.section("two_cores", result)
    assert "2 cores of Some CPU; float32; jax 0.1, torch 2.0, trl 1.0." in section
    assert "| pairs/s ≥ 4× TRL's, then 5× (batch 8) | 5 (5–5)×; all rounds together 5× |" in section
    assert "| peak memory ≤ TRL's (batch 8) | 0.5 (0.5–0.5)× |" in section
    assert "| padded step, same shapes, ≥ 1.0× TRL's (batch 8) | 1.25 (1.25–1.25)× |" in section
    assert re.search(r"\| scoring of POLAR groups of 5 .* \| 4.5 \(4.5–4.5\)×; sorted by length 3.5", section)
    assert "sorted by length 3.5 (3.5–3.5)×; tokens 2.50× fewer, with padding on both sides 4.00× |" in section
    assert "GFLOP/s" not in section
    rates = {"rmjax": 4.2e11, "trl": 2e11}
    assert "420 GFLOP/s by the library under rmjax and 200 GFLOP/s by the library under trl" in speed.section(
        "two_cores", result | {"product_rate": rates}
    )
    assert "| 8 | rmjax | 0.727 (0.667–0.8) | 145 (133–160) | 2 (2–2) | 20 (20–20), cold 20 (20–20) |" in section
    line = speed.readme_line({"two_cores": result})
    assert "5 (5–5) times at batch 8, in 0.5 of its memory" in line and "on 2 cores of Some CPU, float32" in line
    assert "TRL 1.0" in line and "multiplies" not in line
    faster = speed.readme_line({"two_cores": result | {"product_rate": rates}})
    assert "float32, where our library multiplies matrices 2.1 times as fast" in faster


def test_a_page_without_a_place_for_the_tables_is_an_error():
    with pytest.raises(ValueError, match="docs/speed.md lacks the line"):
        speed.page("# Speed\n", {})


def test_numbers_keep_three_digits():
    assert text(spread([0.26123, 0.2, 0.3])) == "0.261 (0.2–0.3)"
    assert text(spread([1234.5, 99.6, 2e6])) == "1,234 (99.6–2,000,000)"
