"""Samples policies on prompts: `python -m experiments.sample --config=FILE --workdir=DIR [--shards=N] [--engine=ENGINE]`.

A config with `generator` (configs/sample/endpoint.py) is a grid of policies × prompts (rmjax/grid.py): each shard of each policy
is a cell of a study, which an engine runs and which goes on where it stopped. Another config is a pool of variants of a model
(rmjax/sampler.py), sampled in this process.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from experiments import engines
from experiments.start import guarded, parse_flags, prepare
from rmjax import grid, sampler
from rmjax.data.readers import listed
from rmjax.study.table import aligned


def run(config: ConfigDict, workdir: Path) -> None:
    """Samples a pool, as a member of a sweep may; errors as `sampler.run`, and ValueError where it is a grid."""
    if "generator" in config:
        raise ValueError("the config has `generator`, whose shards are cells already; use python -m experiments.sample")
    sampler.run(config, workdir)


def run_grid(config: ConfigDict, name: str, workdir: Path, shards: int) -> None:
    """All that the config wants and the folder lacks; `name` is that of the config's file.

    Raises:
      ValueError: what no run can have; nothing is started.
      RuntimeError: shards failed; those that are done stay, and nothing is joined.
    """
    study = grid.study_of(config, name, shards)
    found = engines.execute(study, workdir, "experiments.sample")
    if found is not None:
        engines.refuse_unfinished(found, every=True)
        show(grid.gather(study, workdir, config.form))


def show(counts: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints a line for each policy, and what was dropped for which reason."""
    numbers = ("prompts", "answered", "samples", "distinct", "truncated")
    rows = [[policy, *(str(found[name]) for name in numbers)] for policy, found in counts.items()]
    dropped = [str(sum(found["dropped"].values())) for found in counts.values()]
    print(aligned([["policy", *numbers, "dropped"], *([*row, lost] for row, lost in zip(rows, dropped, strict=True))]))
    for policy, found in counts.items():
        if found["dropped"]:
            print(f"{policy} dropped {listed(found['dropped'])}")


def main(argv: Sequence[str]) -> None:
    """Reads the flags."""
    del argv
    given = flags.FLAGS
    config, workdir, name = given.config, Path(given.workdir), config_flags.get_config_filename(given["config"])

    def job() -> None:
        if "generator" in config:
            run_grid(config, name, workdir, given.shards)
            return
        for flag in ("engine", "shards", "cell"):
            if given[flag].present:
                raise ValueError(f"--{flag} is for a config with `generator`, and {name} has none; leave it out")
        run(config, workdir)

    sys.exit(guarded(job, resumes=True))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "what to sample", lock_config=True)
    flags.DEFINE_string("workdir", None, "folder that the samples are written to")
    flags.DEFINE_integer("shards", 1, "parts of the prompts, each a cell of its own", lower_bound=1)
    flags.mark_flags_as_required(["config", "workdir"])
    engines.define()
    prepare()
    app.run(main, flags_parser=parse_flags)
