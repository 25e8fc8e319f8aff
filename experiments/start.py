"""What every entry point does first."""

import logging
import os
import re
import sys
from pathlib import Path

import jax
from absl import flags
from absl import logging as absl_logging

from rmjax.data.rows import check_readable


def prepare() -> None:
    """One log format, orbax quiet, and compiled programs kept between runs (RMJAX_CACHE, default ~/.cache/rmjax/xla)."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    absl_logging.set_verbosity(absl_logging.WARNING)
    for noisy in ("absl", "jax", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    cache = os.environ.get("RMJAX_CACHE", str(Path.home() / ".cache" / "rmjax" / "xla"))
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def _check_config_file(argv: list[str]) -> None:
    """One line, exit code 1, where the file that --config names (before the colon) cannot be read."""
    for flag, following in zip(argv, [*argv[1:], ""], strict=True):
        if found := re.fullmatch(r"--?config(?:=(.*))?", flag):
            try:
                check_readable(Path((following if found[1] is None else found[1]).split(":")[0]))
            except OSError as error:
                print(f"error: --config={error}", file=sys.stderr)
                sys.exit(1)


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser; ends with one line, exit code 1, where a flag, a config or a key is wrong (ml_collections: a traceback).

    A fault inside the config file keeps its traceback."""
    _check_config_file(argv)
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        reason = str(error).strip().splitlines()[-1].strip()
        print(f"error: {re.sub(r'^[A-Za-z]*Error: ', '', reason)}", file=sys.stderr)
        sys.exit(1)
    except (AttributeError, KeyError) as error:
        text = str(error)
        key, near = re.search(r"\w+", text), re.search(r'mean "(\w+)"', text)
        flag = next((a for a in argv if key and key[0] in a.split("=")[0].split(".")), None)
        if key is None or flag is None:
            raise
        hint = f"did you mean `{near[1]}`?" if near else "configs/base.py has them all"
        print(f"error: {flag}: there is no config key `{key[0]}`; {hint}", file=sys.stderr)
        sys.exit(1)
