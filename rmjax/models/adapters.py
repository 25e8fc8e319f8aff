"""Puts adapters on Dense modules, chosen by path, while a model is called: the modules know nothing of it."""

import contextlib
import difflib
import re
from collections.abc import Iterator
from typing import Any

import flax.linen as nn

from rmjax.models.lora import AdapterConfig, low_rank
from rmjax.models.loramoe import mixture

ROOT = "backbone/"
"""What the paths of a decoder's modules begin with."""


@contextlib.contextmanager
def adapted(config: AdapterConfig | None) -> Iterator[None]:
    """Within it, every Dense whose path from `backbone/` on matches `config.pattern` is adapted; its parameters lie beside the
    base's.

    So the base's tree stays as it was, and in a scan the adapter's parameters are stacked like the base's. None does
    nothing.

    Raises:
      ValueError: no Dense that was called matches (the message lists them), or the rank exceeds a matrix's.
    """
    if config is None:
        yield
        return
    injection = _Injection(config)
    with nn.intercept_methods(injection):
        yield
    injection.check_matched()


class _Injection:
    """The interceptor, with what it saw of one call of the model."""

    def __init__(self, config: AdapterConfig):
        self.config = config
        self.paths: dict[str, bool] = {}  # of the Dense modules seen → adapted?
        self.callers: list[tuple[nn.Module, dict]] = []  # modules under way, each with what its Dense modules share

    def __call__(self, call: Any, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if isinstance(context.module, nn.Dense):
            return self._dense(context.module, call(*args, **kwargs), *args)
        self.callers.append((context.module, {}))
        try:
            return call(*args, **kwargs)
        finally:
            self.callers.pop()

    def _dense(self, dense: nn.Dense, base: Any, x: Any) -> Any:
        path, config = "/".join(dense.path), self.config
        path = (
            path if path.startswith(ROOT) else ROOT + path
        )  # a language model that decodes is called without its owner
        self.paths[path] = re.search(config.pattern, path) is not None
        if not self.paths[path]:
            return base
        if config.rank > min(x.shape[-1], dense.features):
            raise ValueError(
                f"adapter.rank is {config.rank}, above the width of {path} ({x.shape[-1]} to {dense.features}); lower it"
            )
        if config.routed:
            return mixture(dense, x, base, config, *self.callers[-1])
        return low_rank(dense, x, base, config)

    def check_matched(self) -> None:
        if any(self.paths.values()):
            return
        near = difflib.get_close_matches(self.config.pattern, self.paths, n=len(self.paths), cutoff=0)
        raise ValueError(f"adapter.pattern is {self.config.pattern!r} and matches no Dense; nearest: {', '.join(near)}")
