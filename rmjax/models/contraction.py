"""The matrix product of every Dense, with a backward pass that moves less memory."""

from typing import Any

import jax
from jaxtyping import Array, Float


@jax.custom_vjp
def _product(x: Array, kernel_DO: Array) -> Array:
    return _contracted(x, kernel_DO, (x.ndim - 1,), (0,))


def _contracted(left: Array, right: Array, over_left: tuple[int, ...], over_right: tuple[int, ...]) -> Array:
    return jax.lax.dot_general(left, right, ((over_left, over_right), ((), ())))


def _forward(x: Array, kernel_DO: Array):
    # Not `_product` again: remat policies would not see the matrix product in it.
    return _contracted(x, kernel_DO, (x.ndim - 1,), (0,)), (x, kernel_DO)


def _backward(saved: tuple[Array, Array], d_out: Array) -> tuple[Array, Array]:
    x, kernel_DO = saved
    d_x = _contracted(d_out, kernel_DO, (d_out.ndim - 1,), (1,))
    if jax.sharding.get_abstract_mesh().size <= 1:
        # XLA on a CPU first turns x, token by token, where a product sums over two axes; axes that may be cut stay apart.
        x, d_out = (z.reshape(-1, z.shape[-1]) for z in (x, d_out))
    leading = tuple(range(x.ndim - 1))
    return d_x, _contracted(x, d_out, leading, leading)


_product.defvjp(_forward, _backward)


def product(
    x: Float[Array, "... D"], kernel_DO: Float[Array, "D O"], dimensions: Any, precision: Any = None
) -> Float[Array, "... O"]:
    """`dot_general` for `nn.Dense`: the last axis of x with the first of the kernel.

    The gradient of the kernel is formed as [D, O] straight away. JAX's own rule forms [O, D] and turns it, for which XLA on a
    CPU first turns the gradient of the output, the larger of the two factors (docs/speed.md has the times).

    Raises:
      ValueError: other axes or another precision than the configured one (`jax_default_matmul_precision`) are asked for.
    """
    if dimensions != (((x.ndim - 1,), (0,)), ((), ())) or precision is not None:
        raise ValueError(
            f"the last axis of x and the first of the kernel, precision None; not {dimensions}, {precision}"
        )
    return _product(x, kernel_DO)
