"""Trains a model: `python -m experiments.train --config=configs/polar/pretrain.py --workdir=DIR [--config.key=value …]`.

Run again, a stopped command continues from its newest checkpoint. DIR then holds model.json, tokenizer.json, checkpoints/
and metrics.jsonl, and is what `RewardModel.load` and `--config.model.init` take.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from experiments.start import guarded, parse_flags, prepare
from rmjax.joining import join_hosts, leave
from rmjax.train.state import State
from rmjax.trainer import Trainer


def run(config: ConfigDict, workdir: Path) -> State:
    """One training run, from wherever it stopped."""
    return Trainer(config, workdir).run()


def main(argv: Sequence[str]) -> None:
    """Reads the flags."""
    del argv
    config, workdir = flags.FLAGS.config, Path(flags.FLAGS.workdir)

    def job() -> None:
        join_hosts(config.hosts)
        run(config, workdir)

    leave(lambda: guarded(job, resumes=True))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "the experiment", lock_config=True)
    flags.DEFINE_string("workdir", None, "folder of this run")
    flags.mark_flags_as_required(["config", "workdir"])
    prepare()
    app.run(main, flags_parser=parse_flags)
