"""MetaRM's step in plain JAX: no forest, no reducer, no wrapper. Every sequence is run by itself."""

import jax
import jax.numpy as jnp
import numpy as np

from rmjax.models.parameters import merge
from rmjax.models.transformer import Transformer, causal_mask


def rewards(config, params, sequences):
    ids = np.zeros((len(sequences), 16), np.int32)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)] = sequence
    positions, last = np.broadcast_to(np.arange(16), ids.shape), np.array([len(s) - 1 for s in sequences])
    hidden = Transformer(config).apply({"params": params["backbone"]}, ids, positions, causal_mask(ids > 0))
    return (hidden[np.arange(len(ids)), last] @ params["head"]["kernel"])[:, 0]


def step(config, trainable, frozen, pairs, groups, eta, second_order=False):
    """(gradient, θ', J): `pairs` is [better, worse, better, …], `groups` a list of lists of sequences."""

    def loss(theta):
        r = rewards(config, merge(theta, frozen), pairs)
        return jnp.mean(jnp.logaddexp(0.0, r[1::2] - r[::2]))

    def difference(theta):
        total = 0.0
        for group in groups:
            r, k = rewards(config, merge(theta, frozen), group), len(group)
            apart = jnp.stack([jnp.abs(r[i] - r[j]) for i in range(k) for j in range(i + 1, k)])
            total += 2 / k**2 * jnp.sum(1 / (1 + jnp.exp(-apart)))
        return total / len(groups)

    def ascended(theta):
        return jax.tree.map(lambda p, g: p + eta * g, theta, jax.grad(difference)(theta))

    def through(theta):
        return loss(ascended(theta))

    gradient = jax.grad(through)(trainable) if second_order else jax.grad(loss)(ascended(trainable))
    return gradient, ascended(trainable), difference(trainable)
