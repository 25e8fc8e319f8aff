"""How the cost grows: the cases, points that are not measured again, the plot. Nothing is timed here."""

import dataclasses
import json

import pytest

from experiments import benchmark_growth as growth
from experiments.trainers.results import spread


def test_every_panel_changes_one_thing_and_rows_are_full():
    for label, (axis, cases) in growth.PANELS.items():
        assert len(cases) == (3 if axis == "trained" else 4), label
        forests = [growth.random_groups(case, 100) for case in cases]
        assert all((forest.group_RT > 0).all() for forest in forests)
        fixed = {
            "trained": ("rows", "groups"),
            "row_tokens": ("layers", "candidates", "attention"),
            "candidates": ("layers", "rows"),
        }
        for name in fixed.get(axis, ("layers", "rows", "groups", "candidates")):
            assert len({getattr(case, name) for case in cases}) == 1, (label, name)
    by_length = [cases for axis, cases in growth.PANELS.values() if axis == "row_tokens"]
    assert {case.rows * case.row_tokens for cases in by_length for case in cases} == {4096}
    assert [case.attention for case, *_ in by_length] == ["dense", "blockwise"]
    assert [case.devices for case in growth.PANELS["simulated devices"][1]] == [1, 2, 4, 8]
    case = growth.Case(rows=2, groups=3, candidates=4)
    assert case.pairs == 2 * 3 * 6


def test_points_are_measured_once_and_drawn(tmp_path, monkeypatch, capsys):
    launched = []

    class Done:
        returncode, stderr = 0, ""

    def launch(command, env, **_):
        launched.append(env.get("XLA_FLAGS", ""))
        given = dict(part[2:].split("=", 1) for part in command if part.startswith("--"))
        case = growth.Case(**json.loads(given["only"]))
        sizes = dataclasses.asdict(case) | {"row_tokens": case.row_tokens, "trained": 10**6 * case.layers}
        speeds = {"pairs_per_second": spread([4.0, 5.0]), "device": "cpu", "versions": {}}
        growth.write_json(growth.Path(given["out"]), sizes | speeds)
        return Done()

    monkeypatch.setattr(growth.subprocess, "run", launch)
    out = tmp_path / "growth.json"
    growth.run(growth.PANELS, 2, tmp_path / "work", out)
    assert len(launched) == 19 - 3, "the panels share a point"
    assert sum("device_count=8" in flags for flags in launched) == 1
    assert out.with_suffix(".svg").read_text().count("pairs/s") == 5
    growth.run(growth.PANELS, 2, tmp_path / "work", out)
    assert len(launched) == 16 and "simulated devices: 8: 4.5 pairs/s" in capsys.readouterr().out


def test_a_point_that_fails_says_which_and_why(tmp_path, monkeypatch):
    class Failed:
        returncode, stderr = 1, "a\nno memory\n"

    monkeypatch.setattr(growth.subprocess, "run", lambda *_, **__: Failed())
    with pytest.raises(RuntimeError, match=r"--only=.*no memory"):
        growth.point(growth.Case(), 1, tmp_path)


@pytest.mark.slow
def test_a_point_takes_steps():
    found = growth.measure(growth.Case(layers=1, heads=3, rows=1, groups=1, candidates=3), rounds=2)
    assert len(found["pairs_per_second"]["runs"]) == 2 and found["pairs_per_second"]["median"] > 0
    assert found["trained"] > 0 and found["row_tokens"] == 160
