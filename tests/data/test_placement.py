"""A forest on a mesh: what is cut, which rows a process makes, and where they come to stand."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rmjax.data.packing import ForestShape
from rmjax.data.pipeline import WHOLE, Shard
from rmjax.data.placement import forest_shardings, matching, place, shard_of_process
from rmjax.models.forest import Forest
from rmjax.parallel.mesh import RULES, make_mesh, make_rules

ROWS = PartitionSpec(("data", "fsdp"))


def numbered(rows: int) -> Forest:
    """All cells differ."""
    forest = ForestShape(rows, row_tokens=4, groups=2, branches=2).empty()
    return jax.tree.map(lambda x: np.arange(x.size, dtype=x.dtype).reshape(x.shape), forest)


def test_rows_and_tokens_are_cut_and_nothing_else():
    found = forest_shardings(make_mesh({"data": -1}))
    for name in (*(f.name for f in dataclasses.fields(Forest) if f.name != "columns"), *found.columns):
        spec = getattr(found, name).spec
        assert spec[0] == ("data", "fsdp")
        assert spec[1] in (("context",), "context") if name.endswith("_RT") else set(spec[1:]) <= {None}


def test_the_rules_say_along_what():
    found = forest_shardings(make_mesh({"data": -1}), make_rules({"tokens": (), "rows": ("data",)}))
    assert found.tokens_RT.spec[0] in (("data",), "data") and found.tokens_RT.spec[1] is None


def test_one_process_has_all_streams():
    mesh = make_mesh({"data": -1})
    rows = 4 * jax.device_count()
    assert shard_of_process(mesh, RULES, rows, 1) == WHOLE
    assert shard_of_process(mesh, RULES, rows, 4) == Shard(4, (0, 1, 2, 3))


def test_placing_changes_no_cell():
    mesh, forest = make_mesh({"data": -1}), numbered(4 * jax.device_count())
    for share in (WHOLE, Shard(4, (0, 1, 2, 3))):
        placed = place({"a": forest}, forest_shardings(mesh), share)["a"]
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(placed), forest)
        assert jax.tree.map(lambda x: x.sharding, placed) == matching(forest_shardings(mesh), forest)


def test_rows_stand_where_their_stream_belongs():
    """Half of a batch, on a mesh that asks for all of it: the other half is another process's."""
    mesh, forest = make_mesh({"data": -1}), numbered(2 * jax.device_count())
    with pytest.raises(KeyError):
        place(forest, forest_shardings(mesh), Shard(4, (0, 1)))
