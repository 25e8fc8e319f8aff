"""Text from data on its way to a terminal, a plot or a page."""

import sys
import unicodedata
from typing import TextIO

# Control characters, of which escape sequences are made; halves of surrogate pairs, which no encoding takes; line separators.
_HIDDEN = frozenset({"Cc", "Cs", "Zl", "Zp"})
_TURNING = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)  # the direction of a line


def printable(text: str, keep: str = "") -> str:
    """The text with every character that a terminal would obey, or that no encoding takes, spelled as `\\x1b` or `\\u202e`.

    Args:
      text: any text.
      keep: characters that stay, such as newlines.
    """
    if text.isprintable():
        return text
    return "".join(_spelled(c) if _obeyed(c) and c not in keep else c for c in text)


def shows_bars(file: TextIO) -> bool:
    """Whether a carriage return begins a line anew, as a bar needs: on a terminal, and below a cell of a notebook."""
    return file.isatty() or (file is sys.stderr and in_notebook())


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def _obeyed(character: str) -> bool:
    return unicodedata.category(character) in _HIDDEN or character in _TURNING


def _spelled(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
