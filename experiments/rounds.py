"""Rounds of a policy and its reward model (rmjax/rounds/chain.py): `python -m experiments.rounds --config=FILE --workdir=D`.

Run again, a stopped command goes on where it was.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from experiments.start import guarded, parse_flags, prepare
from rmjax.rounds.chain import run


def main(argv: Sequence[str]) -> None:
    """Reads the flags."""
    del argv
    sys.exit(guarded(functools.partial(run, flags.FLAGS.config, Path(flags.FLAGS.workdir)), resumes=True))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "the rounds", lock_config=True)
    flags.DEFINE_string("workdir", None, "folder of the rounds")
    flags.mark_flags_as_required(["config", "workdir"])
    prepare()
    app.run(main, flags_parser=parse_flags)
