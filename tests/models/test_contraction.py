"""The product of a Dense: JAX's values and gradients, in the shapes that the model gives it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.models.contraction import product


@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (2, 3, 4)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_gradients_are_those_of_jax(leading, dtype):
    random = np.random.default_rng(0)
    x, kernel, weights = (
        jnp.asarray(random.standard_normal(shape), dtype) for shape in ((*leading, 8), (8, 6), (*leading, 6))
    )

    def loss(form, x, kernel):
        return jnp.sum(
            (nn.Dense(6, use_bias=False, dot_general=form).apply({"params": {"kernel": kernel}}, x)) * weights
        )

    ours, theirs = (jax.grad(loss, (1, 2))(form, x, kernel) for form in (product, jax.lax.dot_general))
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        np.testing.assert_allclose(np.float32(one), np.float32(other), atol=1e-5 if dtype == "float32" else 5e-2)
    assert loss(product, x, kernel) == loss(jax.lax.dot_general, x, kernel)


def test_gradients_of_gradients():
    x, kernel = jnp.arange(6.0).reshape(2, 3) / 7, jnp.arange(12.0).reshape(3, 4) / 11

    def second(form):
        first = jax.grad(lambda k: jnp.sum(jnp.sin(form(x, k, (((1,), (0,)), ((), ()))))))
        return jax.grad(lambda k: jnp.sum(first(k) ** 2))(kernel)

    np.testing.assert_allclose(second(product), second(jax.lax.dot_general), rtol=1e-5)


def test_no_gradient_of_a_kernel_is_turned():
    x, kernel = jnp.ones((2, 3, 8)), jnp.ones((8, 6))
    gradient = jax.make_jaxpr(jax.grad(lambda k: product(x, k, (((2,), (0,)), ((), ()))).sum()))(kernel)
    assert "transpose[" not in str(gradient) and "dot_general" in str(gradient)


def test_on_one_device_no_factor_is_turned_either():
    """Summed over rows and tokens apart, XLA on a CPU turns x; where axes may be cut over devices they stay apart."""
    mesh = jax.sharding.AbstractMesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def summed_over(x):
        gradient = jax.make_jaxpr(jax.grad(lambda k: product(x, k, (((2,), (0,)), ((), ()))).sum()))(jnp.ones((8, 6)))
        return [eqn.params["dimension_numbers"][0] for eqn in gradient.eqns if eqn.primitive.name == "dot_general"][-1]

    assert summed_over(jnp.ones((2, 3, 8))) == ((0,), (0,))
    with jax.sharding.use_abstract_mesh(mesh):
        assert summed_over(jnp.ones((2, 3, 8))) == ((0, 1), (0, 1))


def test_remat_of_dots_computes_no_product_again():
    def loss(kernel, policy):
        def layer(x):
            return jnp.sin(product(x, kernel, (((2,), (0,)), ((), ()))))

        return jax.checkpoint(layer, policy=policy)(jnp.ones((2, 3, 8))).sum()

    def products(policy):
        return str(jax.make_jaxpr(jax.grad(loss), static_argnums=1)(jnp.ones((8, 6)), policy)).count("dot_general[")

    policies = jax.checkpoint_policies
    assert products(policies.dots_with_no_batch_dims_saveable) + 1 == products(policies.nothing_saveable)


@pytest.mark.parametrize("change", [{"dimensions": (((0,), (0,)), ((), ()))}, {"precision": "highest"}])
def test_anything_else_is_refused(change):
    with pytest.raises(ValueError, match="last axis of x"):
        product(jnp.ones((8, 8)), jnp.ones((8, 6)), **({"dimensions": (((1,), (0,)), ((), ()))} | change))
