"""Lines in long form, tables of them, and the committed file."""

import pytest
from ml_collections import ConfigDict

from rmjax.evaluate.rows import Row
from rmjax.study import table
from rmjax.study.cells import Cell
from rmjax.study.study import Result
from rmjax.study.summary import (
    difference_line,
    fact_lines,
    factor_cell,
    mean_line,
    pivot,
    ratio_line,
    read_summary,
    selected,
    signed_cell,
    span_cell,
    spread_line,
    write_summary,
)


def rows(*values, metric="score", items=None):
    return [Row((items or "abcd")[i], f"c{i}", metric, value, {"kind": "xy"[i % 2]}) for i, value in enumerate(values)]


def test_a_mean_and_a_difference():
    runs, others = [rows(1.0, 0.0), rows(1.0, 1.0)], [rows(0.0, 0.0), rows(1.0, 0.0)]
    mean = mean_line({"arm": "a"}, "score", runs)
    assert (mean["value"], mean["seeds"], mean["n"], mean["arm"]) == (0.75, [0.5, 1.0], 4, "a") and mean["low"] < 0.75
    assert difference_line({}, "d", runs, others)["seeds"] == [0.5, 0.5]
    assert [row.value for row in selected(runs, "score", {"kind": "y"})[0]] == [0.0]


@pytest.mark.parametrize("runs", [[], [[]], [rows(1.0), rows(1.0, 2.0)], [rows(1.0), rows(1.0, items="z")]])
def test_runs_of_other_items(runs):
    with pytest.raises(ValueError, match="score of .*'arm': 'a'.*: the runs have no rows, or rows of different items"):
        mean_line({"arm": "a"}, "score", runs)


def test_what_is_timed_gives_ratios_within_a_round_and_spreads():
    found = ratio_line({"arm": "a"}, "time", rows(2.0, 8.0, 2.0), rows(1.0, 2.0, 2.0))
    assert found["value"] == pytest.approx(2.0) and found["median"] == 2.0 and found["n"] == 3
    assert 1.0 <= found["low"] < 2.0 < found["high"] <= 4.0 and factor_cell(found).startswith("2.00 (")
    assert factor_cell(found | {"median": 3.0}, "median").startswith("3.00 (")
    with pytest.raises(ValueError, match="rows of different items"):
        ratio_line({}, "time", rows(1.0), rows(1.0, items="z"))
    spread = spread_line({"at": 2}, "speed", [1234.4, 9.876, 0.25])
    assert (spread["value"], spread["low"], spread["high"]) == (9.876, 0.25, 1234.4)
    assert spread["runs"] == [1234.4, 9.876, 0.25] and spread["n"] == 3 and spread["at"] == 2
    assert span_cell(spread) == "9.88 (0.25–1,234)"
    assert fact_lines(rows(1.0), {"arm": "a"}) == [{"arm": "a", "kind": "x", "metric": "score", "value": 1.0}]


LINES = [
    {"arm": "a", "domain": "x", "metric": "m", "value": 0.5, "low": 0.25, "high": 0.75, "n": 4, "seeds": [0.5, None]},
    {"arm": "b", "domain": "x", "metric": "m", "value": None, "low": None, "high": None, "n": 0, "seeds": []},
    {"arm": "a", "domain": "y", "metric": "d", "value": 1 / 3, "low": 0.0, "high": 1.0, "n": 4, "seeds": [0.1, 0.2]},
]


def test_tables():
    by_metric = pivot(LINES, ("arm", "domain"), [("d", "gain"), ("m", "mean")], signed_cell)
    assert by_metric == [
        ["arm", "domain", "gain", "mean"],
        ["a", "x", "–", "+0.500 (+0.250 to +0.750); +0.500 –"],
        ["b", "x", "–", "–; "],
        ["a", "y", "+0.333 (+0.000 to +1.000); +0.100 +0.200", "–"],
    ]
    assert pivot(LINES[:2], ("arm",), "domain")[0] == ["arm", "x"]
    with pytest.raises(ValueError, match="two lines for x of {'arm': 'a'}"):
        pivot([LINES[0], LINES[0]], ("arm",), "domain")


def test_the_file_has_a_line_for_each_line(tmp_path):
    path = tmp_path / "r.json"
    write_summary(path, "s", {"command": "c"}, LINES)
    about, found = read_summary(path, "s")
    assert about == {"command": "c"} and found[2]["value"] == 0.333333 and found[:2] == LINES[:2]
    assert len(path.read_text().splitlines()) == len(LINES) + 2
    with pytest.raises(ValueError, match="has the results of the study 's', not of 't'"):
        read_summary(path, "t")
    for text in ("{", "[]", '{"study": "s"}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="r.json: not the results of a study"):
            read_summary(path, "s")


# --- a sweep's tables --------------------------------------------------------------------------------------------------

CELLS = [
    Cell(f"{rate},{seed}", {"optimizer.rate": rate, "run.seed": seed}, ConfigDict())
    for rate in (0.1, 0.2)
    for seed in (0, 1)
]
RESULTS = {
    cell.name: Result(
        "done", tuple(rows(cell.values["optimizer.rate"] + cell.values["run.seed"], metric="eval/x/accuracy"))
    )
    for cell in CELLS[:3]
} | {CELLS[3].name: Result("failed", why="no luck")}


def test_members_and_their_means_over_seeds():
    metrics = table.metrics_of(RESULTS)
    assert metrics == ["eval/x/accuracy"]
    each = table.by_member(CELLS, RESULTS, metrics)
    assert each[0] == ["rate", "seed", "status", "eval/x/accuracy"] and each[2] == ["0.1", "1", "done", "1.1"]
    assert each[4] == ["0.2", "1", "failed", "–"]
    assert table.over_seeds(CELLS, RESULTS, metrics)[1:] == [
        ["0.1", "2", "0.6 (0.1 to 1.1)"], ["0.2", "1", "0.2 (0.2 to 0.2)"],
    ]  # fmt: skip
    assert table.over_seeds(CELLS[::2], RESULTS, metrics) is None
    with pytest.raises(ValueError, match="no cell has the metric loss; there are eval/x/accuracy"):
        table.metrics_of(RESULTS, ["loss"])


def test_what_a_table_shows_is_safe():
    found = [["name|x", "n"], ["\x1b[31m=1", "2"], ["=SUM(A1)", "10"]]
    assert table.markdown(found).splitlines()[0] == "| name\\|x | n |"
    assert table.aligned(found).splitlines()[1].endswith("   2") and "\x1b" not in table.aligned(found)
    assert table.comma_separated(found).splitlines()[2] == "'=SUM(A1),10"
    assert table.comma_separated([["", "-0.5", "+cmd", "@x"]]) == ",-0.5,'+cmd,'@x\n"
