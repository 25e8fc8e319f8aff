"""Tokenizers that several files share."""

import pytest

from rmjax.data.tokenizer import Tokenizer
from rmjax.hub.gguf import load_gguf, smollm2_path
from tests.data.encoding import BYTES, MERGES, SPECIAL


@pytest.fixture(scope="module")
def one_byte() -> Tokenizer:
    """One token a byte, so that lengths can be counted by hand."""
    return Tokenizer.from_bpe([*SPECIAL, *BYTES], [], SPECIAL)


@pytest.fixture(scope="module")
def merging() -> Tokenizer:
    """Some merges, which also join across the borders of prompt and answer."""
    return Tokenizer.from_bpe([*SPECIAL, *BYTES, *(merge.replace(" ", "") for merge in MERGES)], MERGES, SPECIAL)


@pytest.fixture(scope="module")
def smollm2_tokenizer() -> Tokenizer:
    try:
        return load_gguf(smollm2_path(), weights=False)[2]
    except FileNotFoundError as error:
        pytest.skip(str(error))
