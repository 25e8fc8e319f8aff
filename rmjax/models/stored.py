"""Leaves of a parameter tree that lie in files: what is asked for is read, straight into the sharding that it is for."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

Index = tuple[slice, ...]


class Stored:
    """An array that is read from files when it is indexed; where it is stacked, layer by layer.

    A slice of its layers (`leaf[2:]`) is such an array again; a tuple of slices gives numpy's array.

    Args:
      shape: the layers first, where it is stacked.
      dtype: what it is read as.
      read: (layer, slices of all axes but the layers') → that part, of whatever dtype; layer is 0 where it is not stacked.
      layers: which ones; None = it is not stacked.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: Any, read: Callable[[int, Index], np.ndarray], layers: range | None = None
    ):
        self.shape, self.dtype, self.layers, self._read = tuple(shape), np.dtype(dtype), layers, read
        self.ndim = len(self.shape)

    def astype(self, dtype: Any, copy: bool = False) -> "Stored":
        """The same, read as another dtype."""
        del copy
        return Stored(self.shape, dtype, self._read, self.layers)

    def __getitem__(self, index: slice | Index) -> Any:
        return self._some_layers(index) if isinstance(index, slice) else self.part(index)

    def part(self, index: Index | None) -> np.ndarray:
        """What a slice of each axis leaves; None = all of it."""
        index = index or (slice(None),) * self.ndim
        if self.layers is None:
            return np.ascontiguousarray(self._read(0, index), dtype=self.dtype)
        chosen = self.layers[index[0]]
        sizes = [len(range(*part.indices(size))) for part, size in zip(index[1:], self.shape[1:], strict=True)]
        found = np.empty((len(chosen), *sizes), self.dtype)
        for n, layer in enumerate(chosen):
            found[n] = self._read(layer, index[1:])
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        found = self.part(None)
        return found if dtype is None else found.astype(dtype)

    def _some_layers(self, index: slice) -> "Stored":
        if self.layers is None:
            raise TypeError("the array has no layers to choose from; give a slice for each axis")
        chosen = self.layers[index]
        return Stored((len(chosen), *self.shape[1:]), self.dtype, self._read, chosen)

    def layer(self, n: int) -> "Stored":
        """One layer's array."""
        assert self.layers is not None
        layer = self.layers[n]
        return Stored(self.shape[1:], self.dtype, lambda _, index: self._read(layer, index))


def on_host(tree: Any) -> Any:
    """All of a tree that lies in files, as numpy."""
    return jax.tree.map(lambda x: np.asarray(x) if isinstance(x, Stored) else x, tree)


def on_devices(leaf: Any, sharding: Sharding, may_alias: bool = True) -> jax.Array:
    """An array, in files, on the host or on devices, with this sharding. A process has its own copy of what it loaded, on the
    host, and gives of it what lies on its devices: no device needs memory for all of it.

    Args:
      may_alias: whether an array that lies there already may be given back itself, and not a copy.
    """
    if isinstance(leaf, jax.Array):
        return jax.device_put(leaf, sharding, may_alias=may_alias)
    if isinstance(leaf, Stored):
        return placed(leaf, sharding)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])


def placed(leaf: Stored, sharding: Sharding) -> jax.Array:
    """The array with this sharding. Beside it, the host holds one layer at most of what lies on its devices."""
    if leaf.layers is None or not leaf.layers:
        return jax.make_array_from_callback(leaf.shape, sharding, leaf.part)
    below = sharding
    if isinstance(sharding, NamedSharding):
        below = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    whole = jax.jit(lambda: jax.numpy.zeros(leaf.shape, leaf.dtype), out_shardings=sharding)()
    put = jax.jit(jax.lax.dynamic_update_index_in_dim, static_argnums=3, donate_argnums=0, out_shardings=sharding)
    for n in range(len(leaf.layers)):
        part = leaf.layer(n)
        piece = jax.make_array_from_callback(part.shape, below, part.part)
        whole = jax.block_until_ready(put(whole, piece, n, 0))  # else pieces would pile up
    return whole
