"""What the tests of `experiments.train` start from."""

import json

import pytest

from tests.experiments.running import (
    configured,
    execute,
    pool_rows,
    ranked_rows,
    text_rows,
)
from tests.experiments.starting import save_start


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tiny reward model to start from, a pool, ranked answers, texts."""
    home = tmp_path_factory.mktemp("train")
    save_start(home / "start")
    for name, rows in {"pool": pool_rows(), "ranked": ranked_rows(), "texts": text_rows()}.items():
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


@pytest.fixture(scope="module")
def whole(home):
    """An uninterrupted run."""
    assert execute(configured(home), home / "whole") == 0
    return home / "whole"
