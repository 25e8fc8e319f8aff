"""Makes report.html of a run again, from its report.json and its metrics.

python -m experiments.report --workdir=runs/demo
"""

import json
import sys
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments.start import error_text, parse_flags
from rmjax.evaluate.report import read_runs, write_page
from rmjax.evaluate.table import print_table


def define_flags() -> None:
    """Flags are defined when run, not when imported, so that they cannot clash."""
    flags.DEFINE_string("workdir", None, "folder of the run: holds report.json", required=True)


def rebuild(workdir: Path) -> dict[str, Any]:
    """Writes `workdir`/report.html and returns the report.

    Raises:
      OSError: report.json cannot be read, or report.html cannot be written.
      ValueError: report.json is not a JSON object.
    """
    path = workdir / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); run the job again to write it") from error
    if not isinstance(report, dict):
        raise ValueError(f"{path} is not a JSON object; run the job again to write it")
    write_page(report, workdir, read_runs(workdir))
    return report


def main(_: list[str]) -> None:
    """Rebuilds the page of --workdir and prints its table."""
    workdir = Path(flags.FLAGS.workdir)
    try:
        report = rebuild(workdir)
    except (OSError, ValueError) as error:
        sys.exit(error_text(error))
    print_table(report)
    print(f"wrote {workdir / 'report.html'}")


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
