"""Makes report.html of a run again, from its report.json and its metrics.

python -m experiments.report --workdir=runs/demo
"""

import sys
from pathlib import Path

from absl import app, flags

from experiments.start import error_text, parse_flags
from rmjax.evaluate.report import rebuild
from rmjax.evaluate.table import print_table


def define_flags() -> None:
    """Flags are defined when run, not when imported, so that they cannot clash."""
    flags.DEFINE_string("workdir", None, "folder of the run: holds report.json", required=True)


def main(_: list[str]) -> None:
    """Makes the page of --workdir again and prints its table."""
    workdir = Path(flags.FLAGS.workdir)
    try:
        report, page = rebuild(workdir)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(error_text(error))
    print_table(report)
    print(f"wrote {page}")


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
