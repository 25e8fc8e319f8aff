from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from rmjax.train import flops

SHAPE = {"layers": 3, "attention_width": 64, "keys": 128}


def devices(kind, count=1, platform="gpu"):
    return [SimpleNamespace(device_kind=kind, platform=platform, process_index=0) for _ in range(count)]


def test_all_trainable_is_palm_s_formula():
    total = flops.decoder_flops_per_token(1000, **SHAPE)
    assert total == 6 * 1000 + 12 * 3 * 64 * 128
    assert flops.decoder_flops_per_token(1000, **SHAPE, backward=False) * 3 == total


def test_frozen_weights_save_their_weight_gradient_only():
    whole = flops.decoder_flops_per_token(1000, **SHAPE)
    assert whole - flops.decoder_flops_per_token(1000, **SHAPE, trainable=100) == 2 * 900
    with pytest.raises(ValueError, match="between 0 and parameters"):
        flops.decoder_flops_per_token(1000, **SHAPE, trainable=1001)


def test_layers_that_no_gradient_passes_cost_a_forward_pass():
    below = flops.decoder_flops_per_token(1000, **SHAPE, trainable=0, without_gradient=1.0)
    assert below == flops.decoder_flops_per_token(1000, **SHAPE, backward=False)


def test_forward_agrees_with_what_xla_counts_for_a_decoder_layer():
    T, W, F, H = 32, 64, 256, 4

    def layer(x_TW, weights):
        q_THD, k_THD, v_THD = ((x_TW @ weights[name]).reshape(T, H, W // H) for name in ("q", "k", "v"))
        logits_HTS = jnp.einsum("thd,shd->hts", q_THD, k_THD)
        mixed_TW = jnp.einsum("hts,shd->thd", logits_HTS, v_THD).reshape(T, W)
        return (mixed_TW @ weights["o"]) @ weights["up"] @ weights["down"]

    shapes = {name: (W, W) for name in "qkvo"} | {"up": (W, F), "down": (F, W)}
    weights = {name: jnp.ones(shape) for name, shape in shapes.items()}
    parameters = sum(weight.size for weight in weights.values())
    counted = jax.jit(layer).lower(jnp.ones((T, W)), weights).compile().cost_analysis()["flops"]
    formula = flops.decoder_flops_per_token(parameters, layers=1, attention_width=W, keys=T, backward=False)
    assert T * formula == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize(
    ("kind", "bfloat16", "float32"),
    [
        ("TPU v4", 275e12, 275e12),
        ("TPU v5 lite", 197e12, 197e12),
        ("TPU v5", 459e12, 459e12),
        ("TPU v5p", 459e12, 459e12),
        ("TPU v6 lite", 918e12, 918e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 156e12),
        ("NVIDIA A10G", 70e12, 35e12),
        ("NVIDIA H100 80GB HBM3", 989e12, 494.5e12),
        ("NVIDIA H100 PCIe", 756e12, 378e12),
        ("NVIDIA H200", 989e12, 494.5e12),
        ("NVIDIA L4", 121e12, 60e12),
        ("NVIDIA L40S", 362e12, 183e12),
        ("NVIDIA L40", 181e12, 90.5e12),
        ("Tesla T4", 65e12, 8.1e12),
    ],
)
def test_published_peaks_by_device_kind(kind, bfloat16, float32):
    assert flops.peak_flops(devices(kind, count=4)) == 4 * bfloat16
    assert flops.peak_flops(devices(kind), dtype=jnp.float32) == float32


def test_every_row_of_the_table_is_reached_by_its_own_name():
    for name, bfloat16, float32 in flops._PEAKS:
        assert flops.peak_flops(devices(name)) == bfloat16
        assert flops.peak_flops(devices(name), "float32") == float32


@pytest.mark.parametrize("kind", ["NVIDIA L400", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"])
def test_an_unknown_accelerator_is_measured_and_logged(monkeypatch, caplog, kind):
    monkeypatch.setattr(flops, "_achieved_flops", lambda dtype: 5e12)
    assert flops.peak_flops(devices(kind, count=2)) == 2 * 5e12
    assert f"`{kind}` unknown" in caplog.text
    flops._peak_of_kind.cache_clear()


def test_virtual_cpu_devices_share_one_measured_peak(monkeypatch):
    measured = flops._achieved_flops("float32", size=128, seconds=0.01)
    assert 1e6 < measured < 1e15
    monkeypatch.setattr(flops, "_achieved_flops", lambda dtype: 7e10)
    assert flops.peak_flops(devices("cpu", count=8, platform="cpu"), "float32") == 7e10


def test_mfu_is_a_share_of_the_peak():
    assert flops.mfu(2 * 137.5e12, devices("TPU v4", count=2)) == 0.5
