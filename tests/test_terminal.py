"""What a terminal, a plot or a page gets of a text from data."""

import io
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from rmjax import guard
from rmjax.evaluate import page
from rmjax.evaluate.table import Section, format_table, table
from rmjax.terminal import printable

NASTY = "\x1b[31mred\x1b]0;title\x07\r\x9b2J\u202eright\ud800"
SPELLED = r"\x1b[31mred\x1b]0;title\x07\x0d\x9b2J\u202eright\ud800"
MEAN = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "n": 9}
REPORT = {"overall": MEAN, "categories": {NASTY: MEAN}}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (NASTY, SPELLED),
        ("a\nb\tc", r"a\x0ab\x09c"),
        ("日本 ünï 👩\u200d🚀 $^$", "日本 ünï 👩\u200d🚀 $^$"),
        ("a\u2028b", r"a\u2028b"),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown


def test_chosen_characters_stay():
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"


def test_a_table_and_a_page_obey_no_name():
    assert SPELLED in format_table(REPORT)
    html = page.render({"title": NASTY + "<b>"}, table(REPORT) + [Section(NASTY, [])], {})
    assert SPELLED + "&lt;b&gt;" in html and not set(NASTY) & set("\x1b\x07\x9b\u202e\ud800") & set(html)


MAIN = """
import logging
from absl import app
from experiments.start import parse_flags, prepare
prepare()

def main(_):
    logging.getLogger("absl").setLevel(logging.INFO)
    for name in ("rmjax.x", "absl", "orbax.y"):
        logging.getLogger(name).info("left out 3 rows")

app.run(main, flags_parser=parse_flags)
"""


def test_counts_that_are_logged_reach_the_terminal():
    done = subprocess.run(
        [sys.executable, "-c", MAIN], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert done.stderr == "INFO rmjax.x: left out 3 rows\n"


def test_a_line_of_the_console_command_is_shown_once():
    code = (
        "import logging; from rmjax import guard; import orbax.checkpoint; logging.basicConfig(); guard.prepare(); "
        "logging.getLogger('rmjax.x').info('left out %s rows', '\\x1b3')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert done.stderr == "INFO rmjax.x: left out \\x1b3 rows\n"


def test_log_lines_and_errors_obey_no_name(monkeypatch):
    stream = io.StringIO()
    root = logging.Logger("root")
    root.addHandler(logging.StreamHandler(stream))
    for handler in root.handlers:
        handler.addFilter(guard._printable)
    root.warning("unknown field `%s` ignored in %d records", NASTY, 3)
    assert stream.getvalue() == f"unknown field `{SPELLED}` ignored in 3 records\n"
    assert guard.error_text(ValueError(NASTY)) == f"error: {SPELLED}"
