"""A claim's study: `python -m experiments.study NAME [--workdir=DIR] [--engine=local|ray|slurm|print|inprocess|none]`.

NAME is a folder of experiments/studies, or the path of one, with `config.py` (get_config) and `measure.py` (get_claim);
`NAME:ARGUMENT` gives the argument to get_config. Runs the cells that are not done, and writes results.json and tables.md in DIR.
`--publish` puts the results where the claim's page has them and writes the page; it refuses a config with changed keys. `--page`
writes the page from the committed results and prints the tables that it leaves out; `--check` says whether it does not say what
they say.
"""

import importlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from experiments import engines
from experiments.start import guarded, parse_flags, prepare
from rmjax.evaluate import print_table, read_runs, write_report
from rmjax.files import write_text
from rmjax.recipe import read_config
from rmjax.study.claim import Claim, about, check_page, publish, refuse_changed, refuse_unready, write_page
from rmjax.study.summary import write_summary

STUDIES = Path(__file__).parent / "studies"


def names() -> list[str]:
    """Of the studies of this package."""
    return sorted(path.parent.name for path in STUDIES.glob("*/measure.py"))


def folder_of(name: str) -> Path:
    """The folder of a study.

    Raises:
      ValueError: there is no such study; the message lists them.
    """
    folder = Path(name) if "/" in name else STUDIES / name
    if not (folder / "measure.py").is_file():
        raise ValueError(
            f"{name}: there is no such study; there are {', '.join(names())}, or give a folder with measure.py"
        )
    return folder


def module_of(folder: Path) -> ModuleType:
    """Its measure.py; a folder elsewhere is imported as a package of its own name."""
    if folder.parent == STUDIES:
        return importlib.import_module(f"experiments.studies.{folder.name}.measure")
    sys.path.insert(0, str(folder.resolve().parent))
    return importlib.import_module(f"{folder.name}.measure")


def claim_of(name: str, config: ConfigDict) -> Claim:
    """The claim of a study's config."""
    return module_of(folder_of(name)).get_claim(config)


def run(claim: Claim, config: ConfigDict, workdir: Path, command: str, published: ConfigDict | None = None) -> None:
    """Runs the study and summarizes it, and publishes that where `published` is the config of the study's file.

    Raises:
      ValueError: what is to be published was made by another config, or has no place on a page; nothing is run.
      FileNotFoundError: there is no page for it; nothing is run.
      RuntimeError: cells failed or were stopped early; nothing is summarized.
    """
    if published is not None:
        refuse_changed(claim, config, published)
        refuse_unready(claim, Path())
    found = engines.execute(claim.study, workdir, "experiments.study")
    if found is None:
        return
    engines.refuse_unfinished(found, every=True)
    lines = claim.summarize(found)
    write_summary(workdir / "results.json", claim.study.name, about(config, command, found), lines)
    tables = _tables(claim.parts(lines))
    write_text(workdir / "tables.md", tables + "\n")
    print(tables)
    if report := claim.report(found):
        seconds = sum(result.seconds for result in found.values())
        provenance = about(config, command, found)
        write_report(report | {"seconds": seconds, "provenance": provenance}, workdir, read_runs(workdir))
        print_table(report)
        print(f"\n{seconds:.0f} s; open {workdir / 'report.html'}")
    if published is not None:
        publish(claim, Path(), about(config, command, found), lines)


def _tables(parts: Mapping[str, str]) -> str:
    return "\n\n".join(f"## {name}\n\n{text}" for name, text in parts.items())


def page(claim: Claim) -> None:
    """Writes the page from the committed results, and prints the tables that it has no place for."""
    print(_tables(write_page(claim, Path())))


def check(claim: Claim) -> None:
    """RuntimeError where the page does not say what the committed results say."""
    if different := check_page(claim, Path()):
        raise RuntimeError(
            f"{claim.page} does not say what {claim.results} says at {', '.join(different)}; write it again with --page"
        )
    print(f"{claim.page} says what {claim.results} says")


def _named(argv: Sequence[str]) -> str:
    """The study in the command line, before its flags are read: they depend on it. Asked for help, it gives it and exits.

    Raises:
      ValueError: a flag stands first.
    """
    if argv[1:2] and argv[1] in ("-h", "--help", "-help", "--helpfull", "--helpshort"):
        print(
            f"{__doc__}\nThere are {', '.join(names())}; `NAME --help` lists the flags, `NAME --helpfull` those of the config."
        )
        sys.exit(0)
    if len(argv) < 2 or argv[1].startswith("-"):
        raise ValueError("give the study's name first: python -m experiments.study NAME --workdir=DIR")
    return argv[1].rstrip("/")


def main(argv: Sequence[str]) -> None:
    """Reads the flags."""
    given, name = flags.FLAGS, _named(argv)
    if given.page or given.check:
        job = page if given.page else check
        sys.exit(guarded(lambda: job(claim_of(name.split(":")[0], given.config))))
    workdir = Path(given.workdir or f"runs/{name.replace(':', '-').rsplit('/', 1)[-1]}")
    changes = [flag for flag in sys.argv[2:] if flag.startswith("--config")]
    command = shlex.join(["python", "-m", "experiments.study", name, *changes])

    def whole() -> None:
        published = read_config(_config_file(name)) if given.publish else None
        run(claim_of(name.split(":")[0], given.config), given.config, workdir, command, published)

    sys.exit(guarded(whole, resumes=True))


def _config_file(name: str) -> str:
    """Of a study, with its argument; errors as `folder_of`."""
    study, _, argument = name.partition(":")
    return f"{folder_of(study) / 'config.py'}{':' + argument if argument else ''}"


def _define(name: str) -> None:
    config_flags.DEFINE_config_file("config", _config_file(name), "the study's config", lock_config=True)
    flags.DEFINE_string("workdir", "", "folder of the cells; by default runs/NAME")
    flags.DEFINE_bool("publish", False, "write the claim's results and its page")
    flags.DEFINE_bool("page", False, "write the page from the committed results, and run nothing")
    flags.DEFINE_bool("check", False, "compare the page with the committed results, and run nothing")
    engines.define()


if __name__ == "__main__":
    if code := guarded(lambda: _define(_named(sys.argv))):
        sys.exit(code)
    prepare()
    app.run(main, flags_parser=parse_flags)
