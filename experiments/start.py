"""What every entry point does first."""

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from absl import flags

from rmjax.data.rows import check_readable
from rmjax.files import refuse_url
from rmjax.guard import error_text, log_to_terminal
from rmjax.guard import guarded as guarded  # the commands' one door to what they do first
from rmjax.guard import prepare as prepare
from rmjax.terminal import printable


def say(lines: Iterable[str]) -> None:
    """Lines on the terminal, what it cannot show escaped."""
    print(printable("\n".join(lines), keep="\n"))


def _check_config_file(argv: list[str]) -> None:
    """One line, exit code 1, where the file that --config names (before the colon) cannot be read."""
    for flag, following in zip(argv, [*argv[1:], ""], strict=True):
        if found := re.fullmatch(r"--?config(?:=(.*))?", flag):
            try:
                check_readable(Path((following if found[1] is None else found[1]).split(":")[0]))
            except (OSError, ValueError) as error:
                print(error_text(f"--config={error}"), file=sys.stderr)
                sys.exit(1)


def _refuse_urls() -> None:
    """One line, exit code 1, where a flag names a bucket: no command reads or writes there. Servers may be named by flags, and so
    may a Ray cluster; those called url say themselves what they take."""
    for name, value in flags.FLAGS.flag_values_dict().items():
        servers = ("http://", "https://", "ray://") if name == "ray_address" else ("http://", "https://")
        is_address = name.rsplit(".", 1)[-1] == "url" or str(value).startswith(servers)
        if isinstance(value, str) and not is_address:
            try:
                refuse_url(value, f"--{name}=")
            except ValueError as error:
                print(error_text(error), file=sys.stderr)
                sys.exit(1)


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser; ends with one line, exit code 1, where a flag, a config or a key is wrong (ml_collections: a traceback).

    A fault inside the config file keeps its traceback."""
    _check_config_file(argv)
    try:
        rest = flags.FLAGS(argv)
        log_to_terminal()
        _refuse_urls()
        return rest
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
        hint = f"did you mean `{near[1]}`?" if near else "rmjax/settings.py and rmjax/methods have them all"
        print(f"error: {flag}: there is no config key `{key[0]}`; {hint}", file=sys.stderr)
        sys.exit(1)
