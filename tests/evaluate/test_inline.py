import html
import re

from rmjax.data.record import Comparison
from rmjax.evaluate import evaluate_comparisons, show_report, write_report

ROWS = [Comparison(f"<q{i}>", ("a b", "c"), references=("a",), ranks=(0, 1)) for i in range(9)]


def test_a_notebook_shows_the_page_in_a_frame(tmp_path):
    report = {"title": '"quoted" & <b>', **evaluate_comparisons(ROWS, [[1.0, 0.0]] * 9)}
    write_report(report, tmp_path)
    shown = show_report(report, height=99)
    (page,) = re.findall(r'^<iframe srcdoc="([^"]*)" style="[^"]*height: 99px[^"]*"></iframe>$', shown._repr_html_())
    assert html.unescape(page) == (tmp_path / "report.html").read_text()
    assert repr(shown) == "Shown(height=99)"
