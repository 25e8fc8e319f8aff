"""Cells: names, what a sweep may hold, and what a result depends on."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from rmjax.study.cells import Cell, members, name_of, placed, shown
from rmjax.study.fingerprints import difference, fingerprint
from rmjax.study.sweeps import product, seeds, sweep

BASE = {"run": {"seed": 0, "steps": 10, "keep": 1}, "rate": 0.1, "data": {"path": "x.jsonl"}, "sizes": (1, 2)}


def base():
    return ConfigDict(BASE).lock()


def made(found, complete=ConfigDict):
    return members(base(), found, complete)


def test_members_are_named_by_what_varies():
    found = made(product(sweep("rate", (0.1, 0.25)), seeds(2), [{"run.steps": 5}]))
    assert [cell.name for cell in found] == [
        "rate=0.1,seed=0",
        "rate=0.1,seed=1",
        "rate=0.25,seed=0",
        "rate=0.25,seed=1",
    ]
    assert found[3].values == {"rate": 0.25, "run.seed": 1}
    assert [cell.config.run.steps for cell in found] == [5] * 4 and base().run.steps == 10
    assert made([{"rate": 0.5}])[0].name == "rate=0.5" and made([{}])[0].name == "run"


def test_a_member_without_a_key_has_the_base_s_value():
    assert [cell.values for cell in made([{"rate": 0.2}, {"run.steps": 3}])] == [
        {"rate": 0.2, "run.steps": 10}, {"rate": 0.1, "run.steps": 3},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], "the sweep has no members"),
        ([{"run.sed": 1}], "member 0: the config has no key run.sed; did you mean `seed`?"),
        ([{"rate": 0.2}, {3: 1}], "member 1: the key 3 is not a string; write a key of the config, such as run.seed"),
        ([{"run.seed.x": 1}], "member 0: the config has no key run.seed.x"),
        (
            [{"rate": 0.2}, {"rate": "high"}],
            r"member 1 \(rate=high\): rate is 'high'; it must be of type float, as 0.1 is",
        ),
        ([{"run": 3}], r"member 0 \(run=3\): run is a section of keys; set one of them \(.*steps.*\)"),
        (seeds(2) + seeds(1), r"member 2 is the same as an earlier one \(seed=0\)"),
        ([{"rate": 0.1}, {}], r"member 1 is the same as an earlier one \(rate=0.1\)"),
    ],
)
def test_what_no_sweep_can_hold(found, message):
    with pytest.raises(ValueError, match=message):
        made(found)


def test_a_member_that_cannot_run_is_named():
    def refuse(config):
        if config.rate > 1:
            raise ValueError("config.rate is above 1")
        return config

    with pytest.raises(ValueError, match=r"member 1 \(rate=2\): config.rate is above 1"):
        made(sweep("rate", (1.0, 2.0)), refuse)


values = st.one_of(
    st.integers(), st.floats(allow_nan=False), st.text(max_size=300), st.booleans(), st.tuples(st.integers())
)


@given(st.dictionaries(st.text("abc.", min_size=1, max_size=9), values, min_size=1, max_size=4))
def test_a_name_is_a_folder_and_different_values_have_different_names(found):
    name = name_of(found)
    assert 0 < len(name.encode()) < 250 and "/" not in name and name not in (".", "..") and not name.startswith(".")
    key = next(iter(found))
    other = found | {key: (found[key], "x")}
    assert name_of(other) != name


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3e-4, "0.0003"),
        (1 / 3, "0.3333333333333333"),
        (True, "True"),
        (7, "7"),
        ((1, "a"), "1-a"),
        (float("inf"), "inf"),
    ],
)
def test_shown(value, text):
    assert shown(value) == text


def test_places_below_the_study():
    config = ConfigDict(
        {"model": {"init": "cell:first"}, "data": {"path": "work:data/a.jsonl", "more": ("cell:b/x", "c")}}
    )
    cell = Cell("second", {}, config)
    assert set(cell.needs) == {"first", "b"}
    found = placed(config, Path("/w"))
    assert found.model.init == "/w/first" and found.data.path == "/w/data/a.jsonl"
    assert found.data.more == ("/w/b/x", "c")


# --- what a result depends on ------------------------------------------------------------------------------------------


def printed(workdir, measure="m", others=None, **changes):
    config = ConfigDict(BASE)
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return fingerprint(Cell("x", {}, config), others or {}, workdir, measure)


def test_what_changed_is_said(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("1")
    before = printed(tmp_path, data__path=str(path))
    assert difference(before, printed(tmp_path, data__path=str(path), run__keep=9)) == ""
    assert difference(before, printed(tmp_path, data__path=str(path), rate=0.5)) == "config.rate: 0.1 then, 0.5 now"
    moved = tmp_path / "moved.jsonl"
    moved.write_text("1")
    assert difference(before, printed(tmp_path, data__path=str(moved))) == ""  # the same data elsewhere
    path.write_text("22")
    assert difference(before, printed(tmp_path, data__path=str(path))) == "other data in config.data.path"
    assert difference(before, before | {"code": "n"}) == "other code that measures"


@pytest.mark.parametrize("value", ["shipped:policy_pool", "work:made.jsonl", "cell:first"])
def test_data_of_every_kind_count(tmp_path, value):
    (tmp_path / "made.jsonl").write_text("1")
    others = {"first": Cell("first", {}, ConfigDict({"rate": 1}))}
    found = printed(tmp_path, others=others, data__path=value)
    assert list(found["data"]) == ["cell:first" if value == "cell:first" else "data.path"]
    others = {"first": Cell("first", {}, ConfigDict({"rate": 2}))}
    assert (difference(found, printed(tmp_path, others=others, data__path=value)) != "") == (value == "cell:first")


def test_only_what_names_data_is_taken_for_data(tmp_path):
    """Not a regular expression, not the folder in which sets lie; a folder without a checkpoint counts by its contents."""
    found = printed(tmp_path, data__path="absent.jsonl")
    assert found["data"] == {"data.path": None} and found["config"]["rate"] == 0.1
    config = ConfigDict(
        {"trainable": ".", "data": {"root": str(tmp_path), "path": "hh_harmless"}, "init": str(tmp_path / "m")}
    )
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "w.safetensors").write_text("aaaa")
    first = fingerprint(Cell("x", {}, config), {}, tmp_path, "")
    assert set(first["data"]) == {"data.path", "init"} and first["config"] == {"trainable": "."}
    (tmp_path / "unrelated").write_text("1")
    assert fingerprint(Cell("x", {}, config), {}, tmp_path, "") == first
    (tmp_path / "m" / "w.safetensors").write_text("bbbb")
    assert difference(first, fingerprint(Cell("x", {}, config), {}, tmp_path, "")) == "other data in config.init"


def test_numbers_of_numpy_are_python_s():
    (found,) = made([{"rate": np.float64(0.5)}])
    assert found.name == "rate=0.5" and type(found.config.rate) is float
