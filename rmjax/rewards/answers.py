r"""Numbers that answers end in, strictly read: GSM8K's `#### 72`, `\boxed{72}`, or a number that stands alone.

What is no plain number is none: no guess at thousands, percents, units or powers. Values are exact fractions.
"""

import dataclasses
import re
from collections.abc import Sequence
from fractions import Fraction

from rmjax.data.messages import ASSISTANT, messages_of
from rmjax.rewards.reward import Failure

FORMS = ("marked", "single", "last")
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)"
_SIGN = r"[-+−]?"
_CURRENCY = r"(?:\\?\$|[€£])?"
_NUMBER = re.compile(rf"({_SIGN}){_CURRENCY}({_SIGN})({_DECIMAL})(?:/({_DIGITS}))?")
_FRACTION = re.compile(rf"({_SIGN})\\[dt]?frac\{{({_SIGN}{_DIGITS})\}}\{{({_DIGITS})\}}")
_IN_TEXT = re.compile(rf"(?<![\w.]){_SIGN}{_CURRENCY}{_SIGN}\.?[0-9][0-9,.]*(?:/[0-9.,]+)?(?:[%\w]+)?")


def number(text: str) -> Fraction | None:
    r"""The value of a text that is one number and nothing else; None where it is none.

    Taken: `1234`, `1,234`, `-3`, `−3` (U+2212), `+3`, `$18.00`, `-$5`, `.5`, `3/4`, `\frac{3}{4}`, `1{,}234`, `$3$`, a full stop
    behind it. Not taken: `1,23`, `1 234`, `50%`, `18 dollars`, `1e5`, `2 1/2`, `1/0`, digits other than 0 to 9.
    """
    text = text.strip().removesuffix(".").replace("{,}", ",")
    if len(text) > 2 and text[0] == text[-1] == "$":  # mathematics in LaTeX
        text = text[1:-1].strip()
    if found := _FRACTION.fullmatch(text):
        sign, above, below = found.groups()
        return _quotient(sign, above, below)
    if found := _NUMBER.fullmatch(text):
        first, second, above, below = found.groups()
        return None if first and second else _quotient(first or second, above, below or "1")
    return None


def _quotient(sign: str, above: str, below: str) -> Fraction | None:
    top, bottom = (Fraction(part.replace(",", "").replace("−", "-")) for part in (above, below))
    return (-top if sign in ("-", "−") else top) / bottom if bottom else None


def final_number(text: str, form: str = "marked") -> Fraction | None:
    r"""The number that a text gives as its answer; None where it gives none.

    A mark counts wherever there is one: the last `####`, then to the end of its line; else the last `\boxed{…}`. What stands
    there has to be a number, nothing else is looked for. Without a mark, by `form`:

        marked  there is no answer
        single  the one number in the text; several are no answer
        last    the last number in the text

    Raises:
      ValueError: another form.
    """
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; choose one of {', '.join(FORMS)}")
    if "####" in text:
        return number(text.rsplit("####", 1)[1].strip().partition("\n")[0])
    if "\\boxed" in text:
        inside = _boxed(text)
        return None if inside is None else number(inside)
    if form == "marked":
        return None
    found = [match.group() for match in _IN_TEXT.finditer(text)]
    if not found or (form == "single" and len(found) > 1):
        return None
    return number(found[-1].rstrip(",."))


def _boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{…}`; None where its braces do not close."""
    rest = text.rsplit("\\boxed", 1)[1].lstrip()
    depth = 0
    for i, letter in enumerate(rest):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return rest[1:i] if i else None
    return None


@dataclasses.dataclass(frozen=True)
class SameNumber:
    """A verifier: `right` where the output's number is that of a reference, exactly; `wrong` otherwise, and without a number.

    References are whole solutions that end in `#### 72`, or the number alone. One without a number is a failure, not a wrong
    answer.
    """

    form: str = "marked"
    right: float = 1.0
    wrong: float = 0.0

    def __call__(self, prompt: str, output: str, references: Sequence[str]) -> float | Failure:
        """See `reward.Verifier`."""
        wanted = [final_number(said(text), "single") for text in references]
        if not wanted or None in wanted:
            return Failure("a reference without a number" if wanted else "no reference")
        found = final_number(said(output), self.form)
        return self.right if found is not None and found in wanted else self.wrong


def said(text: str) -> str:
    """The last message of a text that has several."""
    messages = messages_of(text, ASSISTANT)
    return messages[-1].content if messages else ""
