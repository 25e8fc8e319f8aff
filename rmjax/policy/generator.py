"""What a generator is: records with prompts in, the same records with a policy's answers out."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from rmjax.data.record import Comparison


class Generated(NamedTuple):
    """What a generator made of some records."""

    records: list[Comparison]
    """In the order of what was asked, each with its new outputs in place of any of before, `policies` that name the generator,
    and all else that it had. Columns, where the generator knows them: `token_ids` (the end token included), `log_probs` (of each
    of these tokens, as the decoding rule drew it), `truncated` (1 where an answer was cut off before it ended)."""

    dropped: Counter[str]
    """Reason → samples that could not be had; a record that this leaves without outputs is not in `records`."""


class Generator(Protocol):
    """Answers prompts."""

    @property
    def name(self) -> str:
        """Of the policy, for logs and `Comparison.policies`."""
        ...

    def __call__(self, records: Sequence[Comparison], samples: int, seed: int) -> Generated:
        """`samples` answers to each prompt. Where the randomness is ours, an answer depends on the weights, the seed, the
        record's id, its prompt and the sample's number alone: not on which other records are asked, or in what batch."""
        ...
