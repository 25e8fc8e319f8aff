"""Blocks of code on the pages: Python is run, page by page, or says why it is not; JSON is JSON."""

import json
import shutil
from pathlib import Path

import pytest
import zstandard

from rmjax.hub import shipped
from rmjax.light import save_light
from rmjax.models import columns
from tests.experiments.starting import save_adapted, save_start
from tests.tools.docs.saying import write
from tools.docs.pages import Block, all_pages, blocks, shown

LANGUAGES = {"", "bash", "json", "python", "text"}
ALL = [block for page in all_pages() for block in blocks(page)]
PYTHON = sorted({block.page for block in ALL if block.language == "python"})
MODELS = ("runs/a", "runs/b", "runs/mine/model")
"""Run directories that pages speak of."""
PAIRS = [
    {"prompt": f"What is {i} + {i}?", "reference": f"{2 * i}", "chosen": f"It is {2 * i}.", "rejected": "No."}
    for i in range(9)
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A folder with what the pages take for granted: tiny models by those names, files with a few rows."""
    folder = tmp_path_factory.mktemp("pages")
    for name in MODELS:
        shutil.copytree(
            save_start(folder / "start", head=0.02) if name == MODELS[0] else folder / MODELS[0], folder / name
        )
    save_light(save_adapted(folder / "adapted", folder / "start"), folder / "models/polar-smollm2")
    mine = folder / "runs/mine"
    write(mine / "preferences.jsonl", *PAIRS)
    write(
        mine / "answers.jsonl",
        *({"prompt": p["prompt"], "output": p[name]} for p in PAIRS for name in ("chosen", "rejected")),
    )
    write(folder / "my.jsonl", *PAIRS)
    write(folder / "pointwise.jsonl", *({"prompt": "a", "output": str(i), "score": i} for i in range(3)))
    write(folder / "labeled.jsonl", {"prompt": "a", "output_1": "b", "output_2": "c", "label": 2})
    write(folder / "pool.jsonl", *({"prompt": "a", "policy": name, "output": name} for name in ("better", "worse")))
    rows = "".join(json.dumps(row) + "\n" for row in PAIRS)
    (folder / "hh.jsonl.zst").write_bytes(zstandard.compress(rows.encode()))
    return folder


@pytest.mark.parametrize("page", PYTHON, ids=shown)
def test_python_runs(page, prepared, monkeypatch, capsys):
    monkeypatch.chdir(prepared)
    monkeypatch.setattr(shipped, "FOLDER", prepared / "models")  # `make test-wheel` has the real one
    monkeypatch.setattr(columns, "_declared", dict(columns._declared))  # a page may declare some
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(page):
        if block.language == "python":
            code = compile("\n" * (block.line - 1) + block.text, shown(page), "exec")
            if block.mark != "not run":
                exec(code, names)
    if shown(page) == "README.md":
        assert len(json.loads(capsys.readouterr().out)) == 2, "the first thing that anybody runs shows its two rewards"


@pytest.mark.parametrize("block", [b for b in ALL if b.language == "json"], ids=lambda block: block.place)
def test_json_is_json(block: Block):
    for line in block.text.splitlines():
        assert isinstance(json.loads(line), dict)


def test_every_block_is_of_a_known_language_and_gives_a_reason_where_it_is_not_run():
    assert [block.place for block in ALL if block.language not in LANGUAGES] == []
    assert [block.place for block in ALL if block.mark == "not run" and block.language != "python"] == []
