"""How a gradient is formed: gradient(trainable, frozen, batch, rng, state) → (gradient, terms).

Other methods wrap this function; the loop and the optimizer do not change.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from rmjax.models.forest import Forest
from rmjax.models.parameters import merge
from rmjax.train.objective import Objective, Terms


class Gradient(Protocol):
    """What the compiled step calls. `batch` is a forest, or several by name. `state` is the training state that the step
    starts from, for wrappers that ask for its step number or the optimizer's moments; it may be None for others."""

    def __call__(
        self, trainable: Any, frozen: Any, batch: Any, rng: jax.Array, state: Any = None
    ) -> tuple[Any, Terms]: ...


def plain(objective: Objective, microbatches: int = 1) -> Gradient:
    """The gradient of the mean loss. With `microbatches` > 1 the rows are run in that many parts, added up inside one
    compiled step; numerators and counts are added separately, so the result is that of the whole batch.

    Raises ValueError when the rows do not divide into that many parts.
    """
    if microbatches < 1:
        raise ValueError(f"microbatches is {microbatches}; it must be 1 or more")

    def numerator(trainable: Any, frozen: Any, forest: Forest, rng: jax.Array):
        terms = objective(merge(trainable, frozen), forest, rng)
        return terms["loss"][0], terms

    value_and_grad = jax.value_and_grad(numerator, has_aux=True)

    def whole(trainable: Any, frozen: Any, forest: Forest, rng: jax.Array):
        (_, terms), gradient = value_and_grad(trainable, frozen, forest, rng)
        return gradient, terms

    def in_parts(trainable: Any, frozen: Any, forest: Forest, rng: jax.Array):
        parts = jax.tree.map(lambda x: _interleave(x, microbatches), forest)
        rngs = jax.random.split(rng, microbatches)

        def add(carry, part):
            return jax.tree.map(
                lambda summed, x: summed + x.astype(summed.dtype), carry, whole(trainable, frozen, *part)
            ), None

        shapes = jax.eval_shape(whole, trainable, frozen, jax.tree.map(lambda x: x[0], parts), rngs[0])
        start = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)), shapes)
        return jax.lax.scan(add, start, (parts, rngs))[0]

    def gradient(trainable: Any, frozen: Any, batch: Forest, rng: jax.Array, state: Any = None):
        summed, terms = (whole if microbatches == 1 else in_parts)(trainable, frozen, batch, rng)
        count = jnp.maximum(terms["loss"][1], 1e-9)
        return jax.tree.map(lambda g: g / count, summed), terms

    return gradient


def _interleave(x: jax.Array, parts: int) -> jax.Array:
    """[R, …] → [parts, R / parts, …]; row r goes to part r % parts, so that every device keeps its share of each part."""
    if x.shape[0] % parts:
        raise ValueError(f"{x.shape[0]} rows do not divide into {parts} microbatches; change rows or the other")
    return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)
