"""The error pages quote what the library says: every quotation is provoked, and every provocation quoted."""

import logging
import re
import warnings

import pytest

from tests.experiments.starting import save_start
from tests.tools.docs.saying import SAID, STEPS, write
from tools.docs.pages import ROOT, Block, blocks

QUOTED = [
    block for page in sorted((ROOT / "docs/errors").glob("*.md")) for block in blocks(page) if block.language == "text"
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    save_start(home / "start")
    save_start(home / "writer", objective="language_model")
    write(
        home / "ranked.jsonl", *({"prompt": f"Say {i}.", "chosen": f"It is {i}.", "rejected": "No."} for i in range(8))
    )
    return home


def pattern(block: Block) -> str:
    return ".*".join(re.escape(part) for part in block.text.strip().split("…"))


@pytest.mark.parametrize(
    "block",
    [pytest.param(b, marks=pytest.mark.slow if b.note in STEPS else ()) for b in QUOTED],
    ids=lambda block: block.note,
)
def test_a_quotation_is_what_is_said(block, home, tmp_path, capsys, caplog):
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            SAID[block.note](home, tmp_path)
            raised = ""
        except (ValueError, OSError, RuntimeError) as error:
            raised = str(error)
    said = "\n".join([raised, capsys.readouterr().err, *(record.getMessage() for record in caplog.records)])
    assert re.search(pattern(block), said), said[-2000:]


def test_every_block_names_who_says_it():
    assert [block.place for block in QUOTED if block.mark != "said by"] == []
    assert sorted(block.note for block in QUOTED) == sorted(SAID)
