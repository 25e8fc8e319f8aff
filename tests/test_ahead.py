"""Compiling ahead of time: a small step for a slice that is not there, the search for the largest batch, the table."""

import json
from types import SimpleNamespace

import jax
import pytest
from ml_collections import ConfigDict

from configs.polar import finetune_7b, pretrain_7b
from experiments import compile as command
from rmjax import ahead
from rmjax import config as base
from rmjax.parallel.chips import Slice

WHERE = Slice.parse("v5e:2x2")


def small() -> ConfigDict:
    config = base.get_config()
    config.model.init, config.model.dtype, config.model.remat = "random", "bfloat16", "attention"
    config.model.layers, config.model.width, config.model.mlp_width = 4, 256, 512
    config.model.heads, config.model.kv_heads = 2, 1
    config.model.attention, config.model.attention_block = "blockwise", 128
    config.trainable = "."
    config.data.rows, config.data.row_tokens, config.optimizer.microbatches = 8, 1024, 2
    config.mesh.data, config.mesh.fsdp = 1, -1
    return config


@pytest.fixture(scope="module")
def found():
    pytest.importorskip("libtpu", reason="needs libtpu: make test-tpu, or pip install -c constraints.txt -e .[tpu]")
    return ahead.report(small(), WHERE)


def test_the_compiled_step_multiplies_what_the_formula_says(found):
    """Matrices: forward, backward twice, forward again but for the last one of a layer. Attention: two products forward and
    five backward, on the tiles of the diagonal and below; its forward pass is kept."""
    layers, tokens, tile, down = 4, 8 * 1024 // 4, 128, 512 * 256
    matrices = 2 * 256 * 256 + 2 * 256 * 128 + 3 * down
    tiles = 8 * 9 // 2 * (8 // 4)
    expected = layers * (2 * tokens * (4 * matrices - down) + 7 * 2 * tiles * 2 * tile * tile * 128)
    assert found["flops"] == pytest.approx(expected, rel=0.01)
    assert found["flops"] > 5 * found["xla_cost_analysis"]["flops"]  # which counts each loop once
    assert 1.2 < found["flops"] / found["model_flops"] < 1.4


def test_kernels_are_compiled_for_heads_and_tokens_that_are_cut_and_count():
    """Tiles of queries and keys on and below the diagonal, for half the queries and all keys: five products forward and for
    queries, four for keys."""
    pytest.importorskip("libtpu", reason="needs libtpu: make test-tpu, or pip install -c constraints.txt -e .[tpu]")
    config = small()
    config.model.attention, config.model.kv_heads, config.model.layers = "pallas", 2, 2
    config.mesh.fsdp, config.mesh.tensor, config.mesh.context = 1, 2, 2
    found = ahead.report(config, WHERE)
    layers, tokens, tile, down, (C, D) = 2, 8 * 1024 // 4, 128, 512 * 256, (4, 8)
    matrices = 4 * 256 * 256 + 3 * down
    products = 8 * (5 * (C * D + C) // 2 + 4 * (C * D + D) // 2)
    expected = layers * (2 * tokens * (4 * matrices - down) + products * 2 * tile * tile * 128)
    assert found["flops"] == pytest.approx(expected, rel=0.02)


def test_layers_and_microbatches_are_multiplied_out(found):
    """Seven kernels of a layer are gathered for the forward and again for the backward pass; gradients are scattered."""
    layers, parts, kernels = 4, 2, 7
    times = {
        kind: sum(c["times"] for c in found["collectives"] if c["kind"] == kind)
        for kind in ("all-gather", "reduce-scatter")
    }
    assert 2 * kernels * layers * parts <= times["all-gather"] <= 3 * kernels * layers * parts
    assert times["reduce-scatter"] % (layers * parts) == 0 and times["reduce-scatter"]


def test_parameters_are_sharded_and_in_place(found):
    memory = found["memory_bytes"]
    assert memory["arguments"] == pytest.approx(found["parameters"] * 12 / 4, rel=0.1)  # weights and two moments
    assert memory["aliases"] == pytest.approx(memory["arguments"], rel=0.1)
    assert memory["arguments"] < memory["peak"] < 1e9


def test_the_peak_is_the_compilers_own_and_not_the_sum():
    """What a fitting step reserves may exceed a chip; what has to fit is the peak, and the code."""
    stats = SimpleNamespace(**dict.fromkeys(ahead._MEMORY.values(), 7), peak_memory_in_bytes=20)
    assert ahead.memory(SimpleNamespace(memory_analysis=lambda: stats))["peak"] == 20 + 7


def test_times_and_mfu_belong_together(found):
    seconds, flops = found["seconds"], WHERE.chip.flops
    assert seconds["overlapped"] == max(seconds[k] for k in ("compute", "hbm", "ici")) <= seconds["in_turn"]
    assert found["mfu"]["overlapped"] == pytest.approx(found["model_flops"] / flops / seconds["overlapped"])
    assert 0 < found["mfu"]["in_turn"] <= found["mfu"]["overlapped"] < 1
    text = ahead.describe(found)
    assert "all-gather" in text and "MFU" in text and "v5e:2x2" in text
    json.dumps(found)


@pytest.fixture
def four_devices(monkeypatch):
    monkeypatch.setattr(ahead, "slice_devices", lambda where: [jax.devices()[0]] * 4)
    monkeypatch.setattr(ahead, "make_mesh", lambda sizes, among: ConfigDict({"shape": {"data": 1, "fsdp": 4}}))


@pytest.mark.parametrize("most", [8, 16, 40, 104])
def test_the_largest_batch_is_found(four_devices, most):
    def measure(config, where):
        if config.data.rows > most:
            raise ahead.DoesNotFit(f"{config.data.rows}")
        return {"rows": config.data.rows}

    assert ahead.find_batch(small(), WHERE, measure) == {"rows": most}


def test_no_batch_fits(four_devices):
    def measure(config, where):
        raise ahead.DoesNotFit("17G of 15.75G")

    with pytest.raises(ahead.DoesNotFit, match="not even 8 rows fit"):
        ahead.find_batch(small(), WHERE, measure)


def test_the_compiler_refuses_what_does_not_fit():
    """Scores of a dense mask: 4 GiB a row and head, and 32 rows a chip."""
    pytest.importorskip("libtpu", reason="needs libtpu: make test-tpu, or pip install -c constraints.txt -e .[tpu]")
    config = small()
    config.model.attention, config.model.layers, config.model.remat = "dense", 1, "none"
    config.data.rows, config.data.row_tokens, config.optimizer.microbatches = 128, 32768, 1
    with pytest.raises(ahead.DoesNotFit, match=r"128 rows of 32768 tokens do not fit: [\d.]+G of 15.75G HBM"):
        ahead.report(config, WHERE)


def test_a_step_that_does_not_fit_is_an_error_and_a_report(monkeypatch, tmp_path):
    def refuse(config, where):
        raise ahead.DoesNotFit("8 rows of 1024 tokens do not fit: 17G of 15.75G HBM")

    monkeypatch.setattr(ahead, "report", refuse)
    with pytest.raises(ahead.DoesNotFit):
        command.job(small(), WHERE, False, tmp_path / "x.json")
    assert "17G" in json.loads((tmp_path / "x.json").read_text())["does_not_fit"]
    monkeypatch.setattr(
        ahead, "report", lambda config, where: pytest.fail("compiled for a file that cannot be written")
    )
    with pytest.raises(OSError, match=r"cannot write .*x.json/y.json"):
        command.job(small(), WHERE, False, tmp_path / "x.json" / "y.json")


@pytest.mark.parametrize("chips", ["0", "48", "many", "-4"])
def test_chips_that_do_not_divide_the_batch(chips):
    for run in (pretrain_7b, finetune_7b):
        with pytest.raises(ValueError, match="chips: give a number"):
            run.get_config(chips)
