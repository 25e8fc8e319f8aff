"""Parameters by path: trainable or frozen, the first k layers, warm start."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from rmjax.models.stored import Stored


class ParameterError(ValueError):
    """Parameters and architecture, or a path pattern and the tree, do not fit."""


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b/c": leaf}."""
    return flatten_dict(tree, sep="/")


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Undoes `flat`."""
    return unflatten_dict(dict(leaves), sep="/")


def split(tree: Mapping[str, Any], trainable: str | Callable[[str], bool]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trainable, frozen) by a regular expression that a path such as `backbone/layers/mlp/up/kernel` must contain, or by a
    function of the path.

    Raises:
      ParameterError: nothing matches; the message lists paths to choose from.
    """
    leaves = flat(tree)
    try:
        chosen = {path for path in leaves if (trainable(path) if callable(trainable) else re.search(trainable, path))}
    except re.error as error:
        raise ParameterError(f"trainable is {trainable!r}, not a regular expression: {error}") from error
    if not chosen:
        raise ParameterError(f"trainable is {trainable!r} and matches no parameter; paths: {', '.join(sorted(leaves))}")
    return (
        nested({path: leaf for path, leaf in leaves.items() if path in chosen}),
        nested({path: leaf for path, leaf in leaves.items() if path not in chosen}),
    )


def merge(trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
    """Undoes `split`."""
    return nested(flat(trainable) | flat(frozen))


def first_layers(params: Mapping[str, Any], layers: int, frozen: int = 0) -> dict[str, Any]:
    """A decoder's parameters with only its first `layers` layers (the final norm stays), `frozen` of them stacked apart
    as `frozen_layers`, however they are stacked in `params`."""
    stacks = [params[name] for name in ("frozen_layers", "layers") if name in params]
    whole = jax.tree.map(_joined, *stacks)
    rest = {name: part for name, part in params.items() if name != "frozen_layers"}
    below = {"frozen_layers": jax.tree.map(lambda x: x[:frozen], whole)} if frozen else {}
    return {**rest, **below, "layers": jax.tree.map(lambda x: x[frozen:layers], whole)}


def _joined(*parts: Any) -> Any:
    """Along the layers; what is on the host stays there."""
    if len(parts) == 1:
        return parts[0]
    return (np if all(isinstance(part, np.ndarray) for part in parts) else jnp).concatenate(parts)


def count(tree: Any) -> int:
    """Number of parameters."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def warm_start(initial: Mapping[str, Any], loaded: Mapping[str, Any], may_miss: str = "^head/") -> dict[str, Any]:
    """`initial` with every leaf replaced by the loaded one, on the host or in its files; leaves matching `may_miss` may be
    absent there.

    A language model has no reward head: that one is expected. From a reward model nothing may be absent: pass "".

    Raises:
      ParameterError: paths or shapes differ; the message lists them.
    """
    check_same(initial, loaded, may_miss)
    theirs = flat(loaded)
    return nested(
        {
            path: _on_host(theirs[path]).astype(leaf.dtype, copy=False) if path in theirs else leaf
            for path, leaf in flat(initial).items()
        }
    )


def _on_host(leaf: Any) -> Any:
    """What lies in files stays there."""
    return leaf if isinstance(leaf, Stored) else np.asarray(jax.device_get(leaf))


def check_same(wanted: Mapping[str, Any], loaded: Mapping[str, Any], may_miss: str = "") -> None:
    """ParameterError that lists them where paths or shapes differ; paths matching `may_miss` may be absent in `loaded`."""
    ours, theirs = flat(wanted), flat(loaded)
    missing = [path for path in ours if path not in theirs and not (may_miss and re.search(may_miss, path))]
    surplus = [path for path in theirs if path not in ours]
    shapes = [
        f"{path}: {tuple(theirs[path].shape)} there, {tuple(ours[path].shape)} here"
        for path in ours
        if path in theirs and tuple(theirs[path].shape) != tuple(ours[path].shape)
    ]
    problems = [f"{p}: missing there" for p in missing] + [f"{p}: unknown here" for p in surplus] + shapes
    if problems:
        more = f" (and {len(problems) - 12} more)" if len(problems) > 12 else ""
        raise ParameterError("the checkpoint is of another architecture: " + "; ".join(problems[:12]) + more)
