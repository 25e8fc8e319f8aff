"""Operations of a decoder per token, peaks of devices, and model FLOP/s utilization (MFU)."""

import functools
import logging
import re
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

_log = logging.getLogger(__name__)

# Peak FLOP/s of one jax device, dense (no structured sparsity): name that `device_kind` begins
# with, bfloat16, float32. The first row that fits counts.
# float32 is what jax reaches with float32 inputs at its *default* matmul precision: one bfloat16
# pass on a TPU, TF32 on NVIDIA since Ampere, plain float32 before.
# Sources, TPU: cloud.google.com/tpu/docs, the system architecture page of v2, v3, v4, v5e, v5p,
# v6e ("peak compute per chip (bf16)"; a v2 or v3 chip is two jax devices, so half of it); v4i:
# Jouppi et al. 2021. NVIDIA: the data sheets of V100, T4, A10, A100, H100, H200, GH200, L4, L40,
# L40S, HGX B200, and AWS's G5 for the A10G; numbers "with sparsity" are halved.
_PEAKS: tuple[tuple[str, float, float], ...] = (
    ("TPU v6 lite", 918e12, 918e12),
    ("TPU v6e", 918e12, 918e12),
    ("TPU v5 lite", 197e12, 197e12),
    ("TPU v5e", 197e12, 197e12),
    ("TPU v5", 459e12, 459e12),  # the name of a v5p
    ("TPU v5p", 459e12, 459e12),
    ("TPU v4 lite", 138e12, 138e12),  # v4i
    ("TPU v4", 275e12, 275e12),
    ("TPU v3", 61.5e12, 61.5e12),
    ("TPU v2", 22.5e12, 22.5e12),
    ("NVIDIA B200", 2250e12, 1125e12),
    ("NVIDIA GH200", 989e12, 494.5e12),
    ("NVIDIA H200 NVL", 835.5e12, 417.5e12),
    ("NVIDIA H200", 989e12, 494.5e12),
    ("NVIDIA H100 NVL", 835.5e12, 417.5e12),
    ("NVIDIA H100 PCIe", 756e12, 378e12),
    ("NVIDIA H100", 989e12, 494.5e12),
    ("NVIDIA A100", 312e12, 156e12),
    ("NVIDIA L40S", 362e12, 183e12),
    ("NVIDIA L40", 181e12, 90.5e12),
    ("NVIDIA L4", 121e12, 60e12),
    ("NVIDIA A10G", 70e12, 35e12),
    ("NVIDIA A10", 125e12, 62.5e12),
    ("Tesla V100", 125e12, 15.7e12),  # no bfloat16: the peak in float16
    ("Tesla T4", 65e12, 8.1e12),  # no bfloat16: the peak in float16
)


def decoder_flops_per_token(
    parameters: int,
    *,
    layers: int,
    attention_width: int,
    keys: float,
    trainable: int | None = None,
    without_gradient: float = 0.0,
    backward: bool = True,
) -> float:
    """Floating-point operations that a decoder needs per token, a multiply-add being two.

        forward   2 N + 4 L W K
        backward  2 N + 8 L W K   gradients of the activations, times 1 - without_gradient
                + 2 N_trainable   gradients of the weights; a frozen weight has none

    With everything trainable that is 6 N + 12 L W K (Chowdhery et al. 2022, PaLM, appendix B; the
    6 N: Kaplan et al. 2020, section 2.1). The attention term is Q K^T and the weights times V,
    2 W K each. What rematerialization computes again is not counted, as MFU's definition has it.

    parameters:       N, those that multiply a token: matrices of attention, MLP and head, adapters
                      too; not embeddings (looked up) nor norms.
    layers:           L.
    attention_width:  W = heads · head size.
    keys:             K, the mean number of keys that a token attends to: the row length T if the
                      whole row is computed and masked (PaLM's convention), T / 2 if only the
                      causal half is.
    trainable:        N_trainable, at most N; None is all of them. Activation gradients are counted
                      down to the first layer, as adapters in every layer need them; a run that
                      trains the last layers only says so with `without_gradient`.
    without_gradient: share of the layers, from the bottom, that no gradient passes through.
    backward:         False for scoring.
    """
    trainable = parameters if trainable is None else trainable
    if not 0 <= trainable <= parameters:
        raise ValueError(f"trainable ({trainable}) must be between 0 and parameters ({parameters})")
    attention = 4.0 * layers * attention_width * keys
    forward = 2.0 * parameters + attention
    if not backward:
        return forward
    return forward + (1.0 - without_gradient) * (2.0 * parameters + 2.0 * attention) + 2.0 * trainable


def peak_flops(devices: Sequence[jax.Device] | None = None, dtype: jnp.dtype | str = "bfloat16") -> float:
    """Peak FLOP/s of `devices` (default: all) together, for matrix products in `dtype`.

    bfloat16 and float16 share a peak. A CPU has no published one: it is the speed that a short
    matrix product achieves here, measured once per process and dtype; virtual CPU devices of one
    process share it. So is that of an accelerator missing in the table, which the log says.
    """
    devices = jax.devices() if devices is None else devices
    name = jnp.dtype(dtype).name
    if devices[0].platform == "cpu":
        return _achieved_flops(name) * len({device.process_index for device in devices})
    return _peak_of_kind(devices[0].device_kind, name) * len(devices)


def mfu(
    flops_per_second: float,
    devices: Sequence[jax.Device] | None = None,
    dtype: jnp.dtype | str = "bfloat16",
) -> float:
    """Model FLOP/s utilization: the model's own FLOP/s as a share of the devices' peak.

    flops_per_second:  tokens per second over all devices · `decoder_flops_per_token`.
    dtype:             in which the model multiplies.
    Source: Chowdhery et al. 2022 (PaLM), section 4.1. On a CPU, whose peak is a measured one, it
    says how near the model is to plain matrix products and may pass 1.
    """
    return flops_per_second / peak_flops(devices, dtype)


@functools.cache
def _peak_of_kind(kind: str, dtype: str) -> float:
    for name, bfloat16, float32 in _PEAKS:
        if re.match(rf"{name}\b", kind, re.IGNORECASE) and "MIG" not in kind:
            return float32 if dtype == "float32" else bfloat16
    _log.warning("peak FLOP/s of `%s` unknown: MFU is relative to a measured matmul", kind)
    return _achieved_flops(dtype)


@functools.cache
def _achieved_flops(dtype: str, size: int = 1024, seconds: float = 0.3) -> float:
    """Best of the square matrix products that fit in about `seconds`, on one local device."""
    with jax.default_device(jax.local_devices()[0]):
        matrix = jnp.ones((size, size), dtype)
        multiply = jax.jit(jnp.matmul)
        multiply(matrix, matrix).block_until_ready()
        best, end = float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < end or best == float("inf"):
            start = time.perf_counter()
            multiply(matrix, matrix).block_until_ready()
            best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best
