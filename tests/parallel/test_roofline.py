"""Times of operations and exchanges, on slices whose answers can be worked out by hand."""

import pytest

from rmjax.parallel.chips import CHIPS, Slice
from rmjax.parallel.operations import Collective, Operation
from rmjax.parallel.roofline import collective_table, exchange_seconds, roofline
from rmjax.train.flops import peak_flops

POD = Slice.parse("v5e:16x16")  # both axes are rings
PART = Slice.parse("v6e:8x8")  # lines
LINK = CHIPS["v5e"].link_speed


def coordinates(where):
    columns, rows = where.lengths
    return [(x, y, 0) for y in range(rows) for x in range(columns)]


def seconds(kind, size, groups, where=POD):
    return exchange_seconds(Collective(kind, size, groups), where, coordinates(where))


def test_a_ring_has_two_links_and_two_rings_have_four():
    row, everything = tuple(range(16)), tuple(range(256))
    assert seconds("all-gather", 16e9, (row,)) == pytest.approx(15e9 / (2 * LINK))
    assert seconds("reduce-scatter", 256e9, (everything,)) == pytest.approx(255e9 / (4 * LINK))
    assert seconds("all-reduce", 16e9, (row,)) == 2 * seconds("all-gather", 16e9, (row,))
    assert seconds("all-gather", 256e9, ()) == seconds("all-gather", 256e9, (everything,))


def test_a_line_or_a_part_of_a_ring_has_one_link_at_its_end():
    assert seconds("all-gather", 4e9, ((0, 1, 2, 3),)) == pytest.approx(3e9 / LINK)
    assert seconds("all-gather", 8e9, (tuple(range(8)),), PART) == pytest.approx(7e9 / PART.chip.link_speed)
    assert seconds("all-gather", 64e9, (tuple(range(64)),), PART) == pytest.approx(63e9 / (2 * PART.chip.link_speed))


def test_a_send_pays_its_hops_the_short_way_round():
    assert seconds("collective-permute", 1e9, ((0, 1), (1, 2))) == pytest.approx(1e9 / LINK)
    assert seconds("collective-permute", 1e9, ((15, 0),)) == pytest.approx(1e9 / LINK)
    assert seconds("collective-permute", 1e9, ((7, 0),), PART) == pytest.approx(7e9 / PART.chip.link_speed)


def test_all_to_all_crosses_the_middle():
    assert seconds("all-to-all", 1e9, (tuple(range(16)),)) == pytest.approx(16e9 / 8 / LINK)
    assert seconds("all-to-all", 1e9, (tuple(range(8)),), PART) == pytest.approx(8e9 / 4 / PART.chip.link_speed)


def test_a_group_of_one_exchanges_nothing():
    assert seconds("all-reduce", 1e9, ((0,), (1,))) == 0


def operation(flops=0.0, size=0.0, collectives=(), asynchronous=False, times=1):
    return Operation("x", "fusion", flops, size, collectives, asynchronous, times)


def test_overlapped_is_the_longest_of_three_and_in_turn_adds_up():
    chip = POD.chip
    gather = Collective("all-gather", 16, (tuple(range(16)),))
    wait = exchange_seconds(gather, POD, coordinates(POD))
    found = roofline(
        [operation(flops=3 * chip.flops), operation(size=2 * chip.hbm_speed, times=2), operation(collectives=(gather,))],
        POD, coordinates(POD),
    )  # fmt: skip
    assert (found.compute, found.hbm, found.ici) == pytest.approx((3, 4, wait))
    assert (found.overlapped, found.in_turn) == pytest.approx((4, 7 + wait))


def test_asynchronous_work_is_waited_for_only_where_it_is_the_longest():
    chip = POD.chip
    quick, long = (
        roofline([operation(flops=3 * chip.flops), operation(size=s * chip.hbm_speed, asynchronous=True)], POD, [])
        for s in (1, 5)
    )
    assert (quick.in_turn, long.in_turn) == pytest.approx((3, 5))


def test_collectives_of_a_kind_and_size_are_one_line():
    gather = Collective("all-gather", 16, (tuple(range(16)),))
    done = [operation(collectives=(gather,), times=3), operation(collectives=(gather, gather), times=2)]
    (line,) = collective_table(done, POD, coordinates(POD))
    assert (line["kind"], line["bytes"], line["chips"], line["times"]) == ("all-gather", 16, 16, 7)
    assert line["seconds"] == pytest.approx(7 * exchange_seconds(gather, POD, coordinates(POD)))


@pytest.mark.parametrize(
    ("name", "rings"),
    [
        ("v5e:16x16", (True, True)),
        ("v5e:4x4", (False, False)),
        ("v6e:8x16", (False, True)),
        ("v5p:2x4x4", (False,) * 3),
        ("v5p:4x4x8", (True,) * 3),
    ],
)
def test_which_axes_are_rings(name, rings):
    assert Slice.parse(name).rings == rings


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", "choose a chip of v5e, v5p, v6e"),
        ("v5e", "a v5e slice has 2 axes, as v5e:4x4"),
        ("v5p:4x4", "a v5p slice has 3 axes"),
        ("v5e:0x4", "a v5e slice has 2 axes"),
        ("v5e:axb", "a v5e slice has 2 axes"),
    ],
)
def test_names_that_are_no_slice(name, message):
    with pytest.raises(ValueError, match=message):
        Slice.parse(name)


@pytest.mark.parametrize(("kind", "device"), [("v5e", "TPU v5 lite"), ("v5p", "TPU v5"), ("v6e", "TPU v6 lite")])
def test_peaks_are_those_that_training_s_mfu_uses(kind, device):
    from types import SimpleNamespace

    assert CHIPS[kind].flops == peak_flops([SimpleNamespace(device_kind=device, platform="tpu", process_index=0)])
