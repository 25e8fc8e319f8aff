r"""Trivial baselines: what a reward model has to beat.

Each takes a `Comparison` and gives one score per output, as a reward model does; `scorers.Baseline` makes a scorer of it.

* `length`: with a reference, minus the difference of the two lengths (a policy has a habitual
  length); without one, the length (raters prefer longer answers).
* `longer`: the length, reference or not. Beside `length` where references are present, because on
  preferences it is the stronger of the two wherever the reference is not itself long. Between two
  random policies it says nothing (0.5 by symmetry), so policy discrimination leaves it out.
* `shorter`: minus the length. Beside the others on preferences, since on a set whose raters prefer
  short answers a baseline that goes for long ones shows nothing.
* `word_overlap`: Jaccard index of word sets, with the reference; without one, with the prompt.

A length is a number of characters. A word is a match of the regular expression `\w+` in the
lower-cased text. With several references the most similar one counts, as is usual for metrics
with several references.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from rmjax.data.record import Comparison

_WORD = re.compile(r"\w+")


def words(text: str) -> frozenset[str]:
    r"""The set of lower-cased `\w+` matches in `text`."""
    return frozenset(_WORD.findall(text.lower()))


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Size of the intersection over size of the union, in [0, 1]; two empty sets are equal: 1."""
    union = len(first | second)
    return len(first & second) / union if union else 1.0


def length(comparison: Comparison) -> list[float]:
    """Minus the distance to the nearest reference's length, or the length without a reference.

    Returns:
      One score per output, in characters.
    """
    if not comparison.references:
        return longer(comparison)
    lengths = [len(reference) for reference in comparison.references]
    return [-float(min(abs(len(o) - n) for n in lengths)) for o in comparison.outputs]


def longer(comparison: Comparison) -> list[float]:
    """The length of each output in characters: longer wins, whatever the reference."""
    return [float(len(output)) for output in comparison.outputs]


def word_overlap(comparison: Comparison) -> list[float]:
    """Jaccard index of each output's words with the nearest reference, else with the prompt.

    Returns:
      One score per output, in [0, 1].
    """
    targets = [words(text) for text in comparison.references or (comparison.prompt,)]
    return [max(jaccard(words(o), target) for target in targets) for o in comparison.outputs]


def shorter(comparison: Comparison) -> list[float]:
    """Minus the length of each output in characters: shorter wins, whatever the reference."""
    return [-float(len(output)) for output in comparison.outputs]


BASELINES: Mapping[str, Callable[[Comparison], list[float]]] = MappingProxyType(
    {"word_overlap": word_overlap, "length": length, "longer": longer, "shorter": shorter}
)
OF_POLICIES = ("word_overlap", "length")


def of_preferences(comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    """The baselines to show beside a scorer on these preferences; without any reference `length` is `longer` already."""
    longer_too = ("longer",) if any(c.references for c in comparisons) else ()
    return ("word_overlap", "length", *longer_too, "shorter")
