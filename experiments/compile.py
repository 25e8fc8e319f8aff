"""Compiles a config's training step for a TPU slice that is not there, and says what it will need and at best reach.

python -m experiments.compile --config=configs/polar/pretrain_1_8b.py --topology=v5e:16x16 [--out=FILE.json] [--find_batch]

Needs libtpu (`pip install -c constraints.txt -e .[tpu]`), no TPU, and no memory for the parameters: only their shapes are used.
The exit code is 1 where the step does not fit into the chips' memory.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from ml_collections import config_flags

from experiments.start import guarded, parse_flags, prepare
from rmjax import ahead
from rmjax.files import refuse_unwritable, write_json
from rmjax.parallel.chips import Slice


def job(config: Any, where: Slice, search: bool, out: Path | None) -> None:
    """Compiles, prints, writes; that a step does not fit is written too. OSError before that where `out` cannot be written."""
    if out:
        refuse_unwritable(out)
    try:
        found = (ahead.find_batch if search else ahead.report)(config, where)
    except ahead.DoesNotFit as error:
        _write(out, {"topology": where.name, "does_not_fit": str(error)})
        raise
    print(ahead.describe(found))
    _write(out, found)


def _write(out: Path | None, found: dict[str, Any]) -> None:
    if out:
        write_json(out, found)


def main(argv: Sequence[str]) -> None:
    """Reads the flags."""
    del argv
    given = flags.FLAGS
    out = Path(given.out) if given.out else None
    sys.exit(guarded(lambda: job(given.config, Slice.parse(given.topology), given.find_batch, out)))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "the experiment", lock_config=True)
    flags.DEFINE_string("topology", None, "chip and axes of the slice, as v5e:16x16")
    flags.DEFINE_string("out", "", "also write the report here, as JSON")
    flags.DEFINE_bool("find_batch", False, "look for the most rows that fit")
    flags.mark_flags_as_required(["config", "topology"])
    jax.config.update("jax_platforms", "cpu")  # compiling needs no device, and must not wait for one
    prepare()
    app.run(main, flags_parser=parse_flags)
