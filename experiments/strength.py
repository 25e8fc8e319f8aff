"""Writes the records of a run with what its members say of them: `python -m experiments.strength --run=DIR --output=FILE`.

The run has several members (`ensemble.members` above 1, or `crm.review`): the vote models. Of every pair their votes,
mean difference and deviation go into the fields `pair_votes`, `pair_strength`, `pair_deviation`, and `pair_cross_…` where
`ensemble.seen` let some of them not learn from the record. `--onto=FILE` puts them onto the records of another file, by id.
Train on the output with `loss.order=strength`.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from experiments.start import guarded, parse_flags, prepare
from rmjax.data.readers import open_records, write_records
from rmjax.data.strength import carried
from rmjax.voting import summary, voted


def write(run: Path, output: Path, onto: str = "") -> None:
    """Writes `output` and says what it holds.

    Raises:
      ValueError: as `rmjax.voting.voted`; or `onto` has other records than the run learned from.
    """
    found = voted(run, progress=True)
    if onto:
        found = carried(found, list(open_records(onto)), str(run))
    write_records(output, found)
    print(f"wrote {output}: {summary(found)}")


def main(argv: Sequence[str]) -> None:
    """Reads the flags."""
    del argv
    given = flags.FLAGS
    sys.exit(guarded(functools.partial(write, Path(given.run), Path(given.output), given.onto)))


if __name__ == "__main__":
    flags.DEFINE_string("run", None, "folder of a run with several members")
    flags.DEFINE_string("output", None, "file of records to write: .jsonl[.zst], .parquet, .array_record")
    flags.DEFINE_string("onto", "", "file of records that get the strengths, by id; empty = the run's own records")
    flags.mark_flags_as_required(["run", "output"])
    prepare()
    app.run(main, flags_parser=parse_flags)
