r"""The strict number parser: golden cases, and what it refuses to guess."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmjax.rewards.answers import SameNumber, final_number, number
from rmjax.rewards.reward import Failure

NUMBERS = {
    "1234": 1234, "1,234": 1234, "1,234,567.5": Fraction(12345675, 10), "-3": -3, "−3": -3, "+3": 3, "$18.00": 18, "-$5": -5,
    "$-5": -5, "−$5": -5, "£7": 7, "€0.50": Fraction(1, 2), ".5": Fraction(1, 2), "0.1": Fraction(1, 10), "3/4": Fraction(3, 4),
    "-3/4": Fraction(-3, 4), r"\frac{3}{4}": Fraction(3, 4), r"-\dfrac{1}{2}": Fraction(-1, 2), "1{,}234": 1234, "$3$": 3,
    r"\$18": 18, " 72. ": 72, "007": 7, r"$\frac{1}{2}$": Fraction(1, 2), r"\frac{-1}{2}": Fraction(-1, 2),
}  # fmt: skip
NONE = [
    "", "seven", "1,23", "12,34", "1,2345", "1 234", "50%", "18 dollars", "1e5", "2 1/2", "1/0", r"\frac{1}{0}", "--3", "-$-3",
    "٣", "1.2.3", "3-4", "$", "1/2/3", "0x10", "NaN", "inf", r"\frac{1}", "1,234,56", "½", "3 .", "= 3", "１２",
]  # fmt: skip


@pytest.mark.parametrize(("text", "wanted"), NUMBERS.items())
def test_what_is_a_number(text, wanted):
    assert number(text) == wanted


@pytest.mark.parametrize("text", NONE)
def test_what_is_none(text):
    assert number(text) is None


@given(st.integers(-(10**12), 10**12), st.integers(0, 4))
def test_every_number_is_read_back(value, places):
    text = f"{Decimal(value).scaleb(-places):f}"
    assert number(text) == Fraction(value, 10**places)
    assert number(f"{abs(value):,}") == abs(value)
    assert final_number(f"so it is 5 or 6\n#### {text}\n") == Fraction(value, 10**places)


@pytest.mark.parametrize(
    ("text", "marked", "single", "last"),
    [
        ("She has 3 + 4 = 7.\n#### 1,234", 1234, 1234, 1234),
        ("#### $18.00", 18, 18, 18),
        ("#### 5\nNo: #### −3", -3, -3, -3),
        ("#### 18 dollars", None, None, None),  # a mark with no number behind it: nothing else is looked for
        ("It is 7. ####", None, None, None),
        (r"Thus \boxed{\frac{1}{2}}.", Fraction(1, 2), Fraction(1, 2), Fraction(1, 2)),
        (r"\boxed{3} or rather \boxed{4}", 4, 4, 4),
        (r"\boxed{x = 4}", None, None, None),
        (r"\boxed{4", None, None, None),
        (r"\boxed 4", None, None, None),
        ("The answer is 42.", None, 42, 42),
        ("It costs $1,250, all in all.", None, 1250, 1250),
        ("First 3, then 5.", None, None, 5),
        ("There is none.", None, None, None),
        ("", None, None, None),
        ("It is −8", None, -8, -8),
        ("about 1,23", None, None, None),
        ("about 50%", None, None, None),
        ("in v2 it is 9", None, 9, 9),
        ("it is 3/4", None, Fraction(3, 4), Fraction(3, 4)),
    ],
)
def test_the_answer_of_a_text(text, marked, single, last):
    assert [final_number(text, form) for form in ("marked", "single", "last")] == [marked, single, last]


def test_another_form_is_refused():
    with pytest.raises(ValueError, match="form is 'any'; choose one of marked"):
        final_number("1", "any")


@pytest.mark.parametrize(
    ("output", "references", "wanted"),
    [
        ("… #### 72", ["48 / 2 = 24 …\n#### 72"], 1.0),
        ("#### 72.0", ["72"], 1.0),
        ("#### 71", ["72"], 0.0),
        ("I don't know", ["72"], 0.0),
        ("", ["72"], 0.0),
        ("#### 2", ["1", "2"], 1.0),
        ("#### 72", [], Failure("no reference")),
        ("#### 72", ["seventy-two"], Failure("a reference without a number")),
        ("#### 72", ["72", "?"], Failure("a reference without a number")),
    ],
)
def test_the_verifier_fails_closed(output, references, wanted):
    assert SameNumber()("", output, references) == wanted
