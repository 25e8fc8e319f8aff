"""The table of docs/pods.md, from the reports of experiments.compile in docs/pods/.

python -m experiments.pods             writes the table again
python -m experiments.pods --compile   first makes the reports that are not there, one after the other (needs libtpu)
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments.start import guarded, parse_flags
from rmjax.files import write_text
from rmjax.study.table import markdown

PAGE = Path("docs/pods.md")
REPORTS = Path("docs/pods")
RUNS = ("pretrain_1_8b", "pretrain_7b", "finetune_1_8b", "finetune_7b")
SLICES = {"v5e-256": ("v5e:16x16", 256), "v5p-64": ("v5p:2x4x4", 32), "v6e-64": ("v6e:8x8", 64)}
BEGIN, END = "<!-- table: python -m experiments.pods -->", "<!-- end of table -->"
COLUMNS = (
    "run", "slice", "mesh", "rows × tokens (at once)", "memory GB", "compute ms", "HBM ms", "ICI ms", "step ms", "MFU %",
    "MFU % in turn",
)  # fmt: skip


def make_reports() -> None:
    """Compiles every case that has no report, each in a process of its own; one that does not fit is a report too."""
    for run in RUNS:
        for name, (topology, chips) in SLICES.items():
            path = REPORTS / f"{run}.{name}.json"
            if path.exists():
                continue
            print(path)
            command = [sys.executable, "-m", "experiments.compile", f"--config=configs/polar/{run}.py:{chips}"]
            subprocess.run([*command, f"--topology={topology}", f"--out={path}"], check=False)
            if not path.exists():
                raise RuntimeError(f"{path} was not made; the message is above")


def row(run: str, name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    """A report as cells of the table."""
    if "does_not_fit" in found:
        return run, name, found["does_not_fit"], *[""] * (len(COLUMNS) - 3)
    mesh = " ".join(f"{axis} {size}" for axis, size in found["mesh"].items())
    batch, ms = found["batch"], {key: f"{1e3 * value:,.0f}" for key, value in found["seconds"].items()}
    at_once = batch["rows"] // batch["microbatches"]
    memory = f"{found['memory_bytes']['peak'] / 1e9:.1f} of {found['hbm_bytes_of_chip'] / 1e9:.1f}"
    shares = (f"{100 * found['mfu'][key]:.1f}" for key in ("overlapped", "in_turn"))
    return (
        run, name, mesh, f"{batch['rows']} × {batch['row_tokens']} ({at_once})", memory, ms["compute"], ms["hbm"],
        ms["ici"], ms["overlapped"], *shares,
    )  # fmt: skip


def write_page() -> None:
    """Puts the table of all reports into the page.

    Raises:
      ValueError: the page has no place for it, or there is no report.
    """
    paths = {(run, name): REPORTS / f"{run}.{name}.json" for run in RUNS for name in SLICES}
    rows = [row(*key, json.loads(path.read_text())) for key, path in paths.items() if path.exists()]
    if not rows:
        raise ValueError(f"{REPORTS}/ has no report; add --compile")
    before, begin, rest = PAGE.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} lacks the line `{BEGIN}` or `{END}`")
    write_text(PAGE, f"{before}{begin}\n{markdown([COLUMNS, *rows])}\n{end}{after}")


def main(argv: Sequence[str]) -> None:
    """Reads the flags."""
    del argv
    steps = [make_reports, write_page] if flags.FLAGS.compile else [write_page]
    sys.exit(guarded(lambda: [step() for step in steps]))


if __name__ == "__main__":
    flags.DEFINE_bool("compile", False, "make the reports that are not there")
    app.run(main, flags_parser=parse_flags)
