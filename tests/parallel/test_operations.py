"""Counting what a compiled program does: loops, slices, layouts, batches written as convolutions, groups of chips."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from rmjax.parallel.hlo import parse, shapes
from rmjax.parallel.operations import Collective, operations, partition_groups

# In the form of a TPU's compiler. A loop of four runs over stacked weights: a sliced product, an update in place, a gather and
# a reduction. Before it a gather that runs beside a product, in three fusions, and a reduction of which each chip keeps a part.
TEXT = Path(__file__).with_name("loop.hlo").read_text()


@pytest.fixture(scope="module")
def found():
    return {o.name: o for o in operations(parse(TEXT))}


def test_a_loop_s_operations_run_as_often_as_it_does(found):
    assert {name for name, o in found.items() if o.times == 4} == {"product", "updated", "gather", "reduced"}
    assert {name for name, o in found.items() if o.times == 1} == {"begun", "beside", "scattered"}
    assert found["less"].times == 5 and len(found) == 8


def test_a_fused_product_counts_its_slice_only_and_vmem_costs_nothing(found):
    product = found["product"]
    assert product.flops == 2 * 8 * 64 * 64
    assert product.bytes == 4 * (64 * 128 + 8 * 128 + 1)  # rounded up to tiles of 128; the result is in VMEM; the index


def test_an_update_in_place_writes_what_it_changes(found):
    assert found["updated"].bytes == 4 * 8 * 64 + 4


def test_collectives_have_the_size_of_the_whole_and_their_chips(found):
    assert found["gather"].collectives == (Collective("all-gather", 2 * 4 * 8 * 128, ((0, 2), (1, 3))),)
    assert found["gather"].asynchronous and not found["reduced"].asynchronous
    assert found["reduced"].collectives == (Collective("all-reduce", 4 * 8 * 128, ((0, 1), (2, 3))),)


def test_a_gather_over_all_chips_has_the_size_of_the_whole_too():
    text = TEXT.replace("replica_groups=[2,2]<=[2,2]T(1,0)", "replica_groups={}")
    gather = next(o for o in operations(parse(text)) if o.name == "gather")
    assert text != TEXT and gather.collectives[0].bytes == 4 * 16 * 64 and gather.collectives[0].groups == ()


def test_a_collective_that_runs_beside_a_product_counts_once(found):
    begun, beside = found["begun"], found["beside"]
    assert begun.collectives == (Collective("all-gather", 2 * 4 * 8 * 128, ((0, 1), (2, 3))),)
    assert begun.asynchronous and begun.bytes == 4 * (8 + 16) * 128
    assert not beside.collectives and not beside.asynchronous
    assert (beside.flops, beside.bytes) == (2 * 8 * 64 * 64, 4 * 8 * 128)  # it hands on what it was given


def test_a_reduction_of_which_each_chip_keeps_a_part_is_a_scatter(found):
    assert found["scattered"].collectives == (Collective("reduce-scatter", 4 * 16 * 128, ()),)


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),)),
        ("replica_groups=mesh['a'=1,'b'=2,'c'=2], device_ids=([2,2]T(1,0)) {'b'}, x", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(0,3,1,2) {'a'}, x", ((0, 1), (3, 2))),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", ((0, 2), (1, 3))),
        ("replica_groups={}, to_apply=%add", ()),
        ("replica_groups=[2,2]<=[4]", ((0, 1), (2, 3))),
        ("channel_id=1, replica_groups=[2,2]<=[2,2]T(1,0), x", ((0, 2), (1, 3))),
        ("replica_groups={{0,3},{1,2}}, dimensions={0}", ((0, 3), (1, 2))),
        ("source_target_pairs={{0,1},{1,0}}", ((0, 1), (1, 0))),
        ("dimensions={0}", ()),
    ],
)
def test_groups_of_chips(text, groups):
    assert partition_groups(text) == groups


@pytest.mark.parametrize(
    ("text", "size", "space"),
    [
        ("bf16[16,100]{1,0:T(8,128)(2,1)}", 2 * 16 * 128, 0),
        ("f32[100,16]{0,1:T(8,128)S(1)}", 4 * 16 * 128, 1),
        ("pred[3,5]{1,0}", 15, 0),
        ("f32[]", 4, 0),
        ("s4[8]{0}", 4, 0),
    ],
)
def test_sizes_are_those_of_the_layout(text, size, space):
    (shape,) = shapes(text)
    assert (shape.bytes, shape.space) == (size, space)


def test_a_batch_of_products_written_as_a_convolution_counts_no_zeros():
    text = """ENTRY %main (a: f32[6,8,16], b: f32[6,16,4]) -> f32[6,8,4] {
  %a = f32[6,8,16]{2,1,0} parameter(0)
  %b = f32[6,16,4]{2,1,0} parameter(1)
  ROOT %c = f32[6,8,4]{2,1,0} convolution(%a, %b), window={size=6 stride=5 lhs_dilate=6}, dim_labels=0bf_0io->0bf
}
"""
    (product,) = operations(parse(text))
    assert product.flops == 2 * 6 * 8 * 16 * 4


KERNEL = """ENTRY %main (a: bf16[8,128]) -> bf16[8,128] {
  %a = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %kernel = bf16[8,128]{1,0:T(8,128)(2,1)} custom-call(%a), custom_call_target="tpu_custom_call", metadata={op_name="x/y"}, \
backend_config={"flag_configs":[],"custom_call_config":{"body":"TUzv","cost_estimate":{"flops":"4096","bytes_accessed":"9000"}}}
}
"""


def test_a_kernel_costs_what_it_states(caplog):
    (kernel,) = operations(parse(KERNEL))
    assert (kernel.flops, kernel.bytes) == (4096, 9000)
    assert not caplog.text
    (kernel,) = operations(parse(KERNEL.replace("cost_estimate", "no_estimate")))
    assert (kernel.flops, kernel.bytes) == (0, 2 * 2 * 8 * 128)
    assert "the kernel kernel does not state what it costs" in caplog.text


def test_the_count_agrees_with_xla_where_there_is_no_loop_and_multiplies_where_there_is():
    def once(x, w):
        return jnp.tanh(x @ w)

    def often(x, w):
        return jax.lax.scan(lambda carry, _: (once(carry, w), None), x, length=7)[0]

    shapes = jax.ShapeDtypeStruct((32, 64), jnp.float32), jax.ShapeDtypeStruct((64, 64), jnp.float32)
    one, seven = (jax.jit(f).lower(*shapes).compile() for f in (once, often))
    count = sum(o.flops * o.times for o in operations(parse(one.as_text())))
    assert count == 2 * 32 * 64 * 64 == pytest.approx(one.cost_analysis()["flops"], rel=0.05)
    assert sum(o.flops * o.times for o in operations(parse(seven.as_text()))) == 7 * count


def test_a_loop_of_unknown_length_is_said_to_be_counted_once(caplog):
    text = TEXT.replace("direction=LT", "direction=NE")
    assert {o.name: o.times for o in operations(parse(text))}["product"] == 1
    assert "how often the loop loop runs" in caplog.text


def test_the_compiler_s_own_trip_count_is_taken():
    text = TEXT.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"6"}}')
    assert {o.name: o.times for o in operations(parse(text))}["product"] == 6


def test_groups_in_an_unknown_form_are_refused():
    with pytest.raises(ValueError, match="in a form that is not known"):
        partition_groups("replica_groups=torus(2,2), x")


def test_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        parse("HloModule empty\n")
