import html.parser
import json
import logging
import re

import numpy as np
import pytest

from rmjax.data.record import Comparison
from rmjax.evaluate import discriminate, evaluate_comparisons
from rmjax.evaluate.comparisons import preference_rows
from rmjax.evaluate.report import (
    environment,
    polar_report,
    read_curves,
    read_runs,
    rebuild,
    write_report,
)
from rmjax.evaluate.rows import of_metric
from rmjax.evaluate.table import format_mean, format_table, print_table
from rmjax.files import write_json


def discrimination(count, seed):
    rng = np.random.default_rng(seed)
    kinds = {"plain": "base", "<b>&bold": "persona", "hot": "temperature"}
    rows = []
    for index in range(count):
        a, b = rng.choice(list(kinds), 2, replace=False)
        rows.append(
            Comparison(
                prompt=f"p{index % 7}",
                outputs=(f"{a} one", f"{b} two words"),
                references=(f"{a} ref",),
                ranks=(0.0, 1.0),
                policies=(str(a), str(b)),
            )
        )
    return discriminate(rows, rng.normal(size=(count, 2)).tolist(), kinds)


@pytest.fixture(scope="module")
def report():
    rows = [Comparison(f"q{i}", ("a b", "c"), references=("a",), ranks=(0, 1)) for i in range(9)]
    good, bad = [[1.0, 0.0]] * 9, [[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 5
    credits = {
        name: of_metric(preference_rows(rows, scores), "credit") for name, scores in (("good", good), ("bad", bad))
    }
    return polar_report(
        {"seen": discrimination(40, 0), "unseen": discrimination(20, 1)},
        {"pretrained": credits["good"], "scratch": credits["bad"]},
        {"word_overlap": credits["bad"], "length": credits["bad"], "longer": credits["bad"]},
        seconds=61.4,
        provenance={"command": "make demo", "seed": 0, **environment(), "config": {"lr": 1e-3}},
    )


@pytest.fixture
def run(tmp_path):
    for name in ("pretrain", "finetune"):
        folder = tmp_path / name
        folder.mkdir()
        lines = [
            json.dumps({"step": s, "train/loss": 0.7 - s / 100, "train/accuracy": 0.5 + s / 100}) for s in range(30)
        ]
        (folder / "metrics.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_every_promised_number_has_an_interval(report):
    leaves = [report["preference_accuracy"][key] for key in ("pretrained", "scratch")]
    for split in ("seen", "unseen"):
        leaves.append(report["policy_accuracy"][split])
        for name in ("word_overlap", "length"):
            baseline = report["baselines"][name]
            assert baseline[split] == baseline["policy_accuracy"][split]
            leaves.append(baseline[split])
    for leaf in leaves:
        assert set(leaf) == {"value", "low", "high", "n"}
        assert 0 <= leaf["low"] <= leaf["value"] <= leaf["high"] <= 1
        assert leaf["n"] > 0
    assert report["seconds"] == 61.4
    assert report["preference_accuracy"]["scratch"]["value"] == pytest.approx(4 / 9)
    gain = report["differences"]["preferences: pre-trained minus from scratch"]
    assert gain["value"] == pytest.approx(5 / 9)


class _Checker(html.parser.HTMLParser):
    VOID = ("meta", "br")

    def __init__(self):
        super().__init__()
        self.open, self.links, self.ids = [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.links += [values[name] for name in ("src", "href", "xlink:href") if name in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_no_network(report, run):
    write_report(report, run, read_runs(run))
    page = (run / "report.html").read_text(encoding="utf-8")
    checker = _Checker()
    checker.feed(page)
    assert checker.open == []
    assert [link for link in checker.links if not link.startswith(("#", "data:"))] == []
    assert re.sub(r"http://www\.w3\.org/\S+", "", page).count("http") == 0
    assert "url(http" not in page
    assert page.count("<svg") == 8  # 2 histograms, 2 by policy, 2 by kind, 2 runs
    assert "&lt;b&gt;&amp;bold" in page
    assert "<b>&bold" not in page
    assert {link[1:] for link in checker.links} <= set(checker.ids)
    assert json.loads((run / "report.json").read_text()) == json.loads(json.dumps(report))


def test_figures_take_the_color_of_the_page(report, run):
    write_report(report, run, read_runs(run))
    page = (run / "report.html").read_text(encoding="utf-8")
    figures = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert "currentColor" in figures
    assert not re.search(r"#(0a0b0c|000000|000\b)", figures)
    # SVG's own default is black: every text must say its color.
    texts = re.findall(r"<text [^>]*>", figures)
    assert texts
    assert all("fill:" in text for text in texts if "#111111" not in text)


def test_the_same_report_gives_the_same_page(report, run, tmp_path):
    pages = []
    for name in ("one", "two"):
        write_report(report, tmp_path / name, read_runs(run))
        pages.append((tmp_path / name / "report.html").read_bytes())
    assert pages[0] == pages[1]


def test_missing_parts_leave_no_trace(tmp_path):
    write_report({}, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<svg" not in page
    assert "<h2>" not in page


def test_routing_is_drawn(tmp_path):
    shares = {"mlp/gate": [[[0.9, 0.1]], [[None, None]]], "mlp/up": [[[0.5, 0.5]], [[None, None]]]}
    routing = {"balanced": {"types": ["tasks", "<knowledge>"], "shares": shares, "variation": 0.4}}
    write_report({"routing": routing}, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 2 and "balanced, mlp/gate: coefficient of variation 0.800" in page
    assert "balanced, mlp/up: coefficient of variation 0.000" in page
    assert "<h2>Routing</h2>" in page
    assert "&lt;knowledge&gt;" in page and "<knowledge>" not in page


def test_the_table_shows_every_scorer_and_interval(report, capsys):
    print_table(report)
    text = capsys.readouterr().out
    assert text.isascii()
    lines = {line.split("  ")[1]: line for line in text.splitlines() if line.startswith("  ")}
    mean = report["policy_accuracy"]["unseen"]
    assert f"{mean['value']:.3f} ({mean['low']:.2f}-{mean['high']:.2f})" in lines["unseen policies"]
    overlap = report["baselines"]["word_overlap"]["unseen"]
    assert format_mean(overlap) in lines["unseen policies"]
    assert lines["from scratch"].rstrip().endswith("9")
    assert "word overlap" in text
    assert len({len(line) for line in text.splitlines() if "(" in line and "%" not in line}) == 1


def test_an_evaluation_is_shown_with_its_categories():
    rows = [Comparison("q", ("a b", "c"), ranks=(0, 1), category="a long category") for _ in "ab"]
    text = format_table(evaluate_comparisons(rows, [[1, 0], [0, 1]]))
    assert re.search(r"a long category +0\.500", text)
    assert format_mean({"value": 1.0, "low": 1.0, "high": 1.0, "n": 1}) == "1.000"
    assert format_mean({"value": None, "low": None, "high": None, "n": 0}) == "-"


def test_curves_keep_the_later_of_two_lines_and_count_broken_ones(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 2, "loss": 0.5}\n{"step": 1, "loss": 0.6, "note": "text"}\n[1]\n'
        '{"step": 2, "loss": 0.4}\n{"loss": 3}\n{"step": 3, "lo'
    )
    with caplog.at_level(logging.WARNING):
        curves = read_curves(path)
    assert set(curves) == {"loss"}
    assert curves["loss"].steps_S.tolist() == [1, 2]
    assert curves["loss"].values_S.tolist() == [0.6, 0.4]
    assert "3 lines are not metrics" in caplog.text


def test_a_curve_with_nan_is_drawn(tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 0, "train/loss": 0.7}\n{"step": 1, "train/loss": NaN}\n')
    write_report({}, tmp_path, read_runs(tmp_path))
    assert "<svg" in (tmp_path / "report.html").read_text()


def test_json_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "report.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(OSError, match=r"cannot write .*absent/report\.json"):
        write_json(tmp_path / "absent" / "report.json", {})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"overall": 3}, "is no file of results"),
        ({"discrimination": [1]}, "is no file of results"),
        ({"baselines": [1], "seconds": 3}, "has no results to show"),
        ({"routing": {"a": {}}}, "is no file of results"),
        ([1], "is no file of results"),
        ({"a": 1}, "has no results to show"),
    ],
)
def test_another_json_file_gives_no_page(tmp_path, content, said):
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"other.json {said}"):
        rebuild(tmp_path / "other.json")
    assert [path.name for path in tmp_path.iterdir()] == ["other.json"]
