"""Toy problems whose history is informative: each sequence hides one mapping, which a model can find in what came before."""

import random
from collections.abc import Callable, Sequence

from rmjax.judges.evalearn.data import Problem, Series
from rmjax.rewards.reward import Failure

Pose = tuple[str, str]
"""(question, answer)."""
_CONSONANTS, _LABELS = "bdfgklmnprstvz", ("red", "blue")


def _letters(rng: random.Random) -> Callable[[], Pose]:
    """A permutation of four letters."""
    letters = "abcd"
    coded = dict(zip(letters, rng.sample(letters, 4), strict=True))

    def pose() -> Pose:
        word = "".join(rng.choices(letters, k=4))
        return f"Encode {word}.", "".join(coded[letter] for letter in word)

    return pose


def _affine(rng: random.Random) -> Callable[[], Pose]:
    """a · x + b."""
    a, b = rng.randint(2, 5), rng.randint(0, 9)

    def pose() -> Pose:
        x = rng.randint(0, 20)
        return f"f({x}) = ?", str(a * x + b)

    return pose


def _labels(rng: random.Random) -> Callable[[], Pose]:
    """A label by whether a word has one letter."""
    letter, labels = rng.choice(_CONSONANTS), rng.sample(_LABELS, 2)

    def pose() -> Pose:
        word = "".join(rng.sample([c for c in _CONSONANTS if c != letter], 4))
        has = rng.random() < 0.5
        return f"Red or blue: {letter + word[1:] if has else word}?", labels[has]

    return pose


FAMILIES = {"letters": _letters, "affine": _affine, "labels": _labels}
"""Name → a hidden mapping → what poses a problem of it."""


def toy_series(
    sequences: int, length: int = 7, seed: int = 0, families: Sequence[str] = tuple(FAMILIES)
) -> list[Series]:
    """As many sequences of each family; a question occurs once in a sequence."""
    found = []
    for family in families:
        for n in range(sequences):
            rng = random.Random(f"{seed} {family} {n}")
            pose, posed = FAMILIES[family](rng), dict[str, str]()
            while len(posed) < length:
                posed.update([pose()])
            name = f"{family}-{n}"
            problems = tuple(
                Problem(f"{name}-{m}", family, (question,), f"The answer is {answer}.", answer)
                for m, (question, answer) in enumerate(posed.items())
            )
            found.append(Series(name, family, problems))
    return found


def says_it(prompt: str, output: str, references: Sequence[str]) -> float | Failure:
    """A verifier: 1 where the last word of the output is the answer."""
    del prompt
    said = output.rstrip(" .!\n").split()
    return float(bool(said) and said[-1].lower() in references)
