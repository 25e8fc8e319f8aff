"""How tests compile: without XLA's expensive passes, but for what is said to be the same bits in a whole step."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def all_passes() -> Iterator[None]:
    """Compiles as users do."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
