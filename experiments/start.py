"""What every entry point does first."""

import logging
import os
from pathlib import Path

import jax
from absl import logging as absl_logging


def prepare() -> None:
    """One log format, orbax quiet, and compiled programs kept between runs (RMJAX_CACHE, default ~/.cache/rmjax/xla)."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    absl_logging.set_verbosity(absl_logging.WARNING)
    for noisy in ("absl", "jax", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    cache = os.environ.get("RMJAX_CACHE", str(Path.home() / ".cache" / "rmjax" / "xla"))
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
