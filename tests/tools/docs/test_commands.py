"""Commands on pages: modules, flags, config keys, values and targets exist."""

import pytest

from tools.docs import commands
from tools.docs.pages import all_pages, blocks, inline_code, shown


@pytest.mark.parametrize("page", all_pages(), ids=shown)
def test_commands_of_a_page(page):
    told = [(block.place, block.text) for block in blocks(page) if block.language != "text"]
    told += [(f"{shown(page)}:{line}", code) for line, code in inline_code(page)]
    assert [f"{place}: {fault}" for place, text in told for fault in commands.faults(text)] == []


TRAIN = "python -m experiments.train --config=configs/demo.py:finetune"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (f"{TRAIN} --workdir=DIR --config.model.layers=3", ""),
        (f"X=1 {TRAIN} \\\n    --config.optimizer.clip=0.5  # a comment with --flags", ""),
        (f"{TRAIN} --config.data.path=FILE --config.SECTION.KEY=VALUE", ""),
        ("python -m experiments.train --config=CONFIG --config.model.layers=3", ""),
        ("[--scores=FILE.jsonl] python -m experiments.evaluate --model=DIR [--split=all|train]", ""),
        ("make bench BENCH_ARGS='--rounds=3 --batches=8' && make test", ""),
        ("    make        # lists them", ""),
        ("rmjax score answers.jsonl --out=FILE.csv && rmjax report DIR", ""),
        ("$ rmjax train configs/polar/pretrain.py --workdir=DIR run.steps=3 SECTION.KEY=VALUE", ""),
        ("rmjax score|evaluate|train|report", ""),
        ("rmjax is a library", "rmjax has no command is; it has score, evaluate, train, report"),
        ("cat a.jsonl | rmjax score - --outs=b", "rmjax score has no option --outs"),
        ("rmjax train preferences.jsonl --workdir=DIR run.step=3", "steps"),
        ("rmjax train configs/none.py --workdir=DIR", "configs/none.py"),
        ("make it so that", "no target it"),
        (f"{TRAIN} --config.model.layer=3", "layer"),
        (f"{TRAIN} --config.optimizer.clip=-1", "config.optimizer.clip is -1.0; it must be 0 or more"),
        (f"{TRAIN} --config.model.layers=many", "malformed"),
        (f"{TRAIN} \\\n  --work=DIR", "no flag --work; it has config, help"),
        ("python -m experiments.train --config=configs/absent.py", "configs/absent.py is not there"),
        ("python -m experiments.train --config=configs/demo.py:finetunes", "finetunes is not one of its runs"),
        ("python -m experiments.report --workdir=configs/none.py", "configs/none.py is not there"),
        ("python -m experiments.trainer", "experiments.trainer is no module"),
        ("$ make benhc", "no target benhc"),
        ("make bench ARGS=1", "no variable ARGS"),
    ],
)
def test_what_is_wrong_with_a_command(text, fault):
    found = commands.faults(text)
    assert found == [] if not fault else fault in found[0]
