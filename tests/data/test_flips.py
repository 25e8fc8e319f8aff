"""Labels flipped on purpose: how many, which, and what of a record is turned round."""

import json

import pytest

from rmjax import config as base
from rmjax.data.flips import flips, marked, reverse
from rmjax.data.record import parse, to_row
from rmjax.data.sources import comparisons, texts
from rmjax.methods.preference import METHOD
from rmjax.settings import Data

ROW = {"prompt": "p", "outputs": ["a", "b", "c"], "ranks": [0, 1, 2], "scores": [5, 2, 1], "votes": [[3, 1, 2]]}


def records(count=10):
    return [parse({"prompt": f"p{i}", "chosen": "good", "rejected": "bad"}, f"f:{i}") for i in range(count)]


@pytest.mark.parametrize(("fraction", "count"), [(0.1, 1), (0.25, 2), (0.3, 3), (0.5, 5)])
def test_so_many_are_flipped_and_all_are_marked(fraction, count):
    found = flips(records(), fraction, seed=3)
    turned = {c.prompt for c in found if c.columns["flipped"] == 1}
    assert len(turned) == count == sum(c.ranks == (1, 0) for c in found)
    assert {c.prompt for c in found if c.ranks == (1, 0)} == turned
    assert found == flips(records(), fraction, seed=3) and turned != {
        c.prompt for seed in (4, 5) for c in flips(records(), fraction, seed) if c.columns["flipped"]
    }


def test_without_a_fraction_nothing_is_touched():
    assert flips(found := records(), 0.0, 0) is found


def test_what_is_turned_round():
    target = [[-1, 0.75, 1], [0.25, -1, -1], [0, -1, -1]]
    found = reverse(parse(ROW | {"pair_target": target, "pair_margin": [[0, 1, 2], [-1, 0, 0], [-2, 0, 0]]}, "f:1"))
    assert (found.ranks, found.scores, found.votes) == ((2, 1, 0), (1, 4, 5), ((1, 3, 2),))
    assert found.columns["pair_target"] == ((-1, 0.25, 0), (0.75, -1, -1), (1, -1, -1))
    assert found.columns["pair_margin"][0] == (0, -1, -2)


def test_turned_twice_it_is_as_before():
    once = parse(ROW | {"flipped": 0}, "f:1")
    assert marked(marked(once, True), True) == once and marked(once, False) == once
    assert to_row(marked(once, True))["flipped"] == 1.0


def test_from_a_config(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text("".join(json.dumps(to_row(c)) + "\n" for c in records()))
    data = Data(kind="comparisons", path=str(path), reference="optional", flip=0.4, flip_seed=1)
    found = comparisons(data)
    assert sum(c.columns["flipped"] for c in found.each()) == 4
    assert found.digest() != comparisons(Data(kind="comparisons", path=str(path), reference="optional")).digest()
    with pytest.raises(ValueError, match="config.data.flip is 0.4, and config.data.kind is texts; only comparisons"):
        texts(Data(kind="texts", path=str(path), flip=0.4))
    assert METHOD.kinds["comparisons"]
    config = base.get_config()
    config.data.flip = 0.6
    with pytest.raises(ValueError, match="config.data.flip is 0.6; it must be from 0 to 0.5"):
        base.settle(config)
