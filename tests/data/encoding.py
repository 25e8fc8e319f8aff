"""Tokenizers and spelled-out sequences for the tests of formats."""

import dataclasses

from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from rmjax import config as base
from rmjax.data.formats import Encoder, Format
from rmjax.data.packing import Tree
from rmjax.data.record import Comparison
from rmjax.data.tokenizer import Tokenizer

SPLIT, REWARD, END = "<file_sep>", "<empty_output>", "<|im_end|>"
SPECIAL = (SPLIT, REWARD, END, "<|im_start|>")
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = ["Ġ t", "h e", "Ġt he", "a b", "ab ab", "Ã ©"]
FORM = Format(SPLIT, REWARD, max_length=40, max_response_length=8)
DEFAULT_FORMAT = Format(**base.get_config().format.to_dict())


def paths(tree: Tree) -> list[list[int]]:
    return [[*map(int, tree.prefix), *map(int, leaf)] for leaf in tree.branches]


def spelled(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Text with special tokens in {braces}, which no text here has."""
    special = {tokenizer.id(token): "{" + token + "}" for token in tokenizer.special}
    parts: list[str | list[int]] = [[]]
    for i in ids:
        if i in special:
            parts += [special[i], []]
        else:
            parts[-1].append(i)  # type: ignore[union-attr]
    return "".join(part if isinstance(part, str) else tokenizer.decode(part) for part in parts)


def texts(encoder: Encoder, c: Comparison) -> list[list[str]]:
    """[tree][candidate] -> the sequence spelled out."""
    return [[spelled(encoder.tokenizer, ids) for ids in paths(tree)] for tree in encoder.trees(c)]


def roomy(tokenizer: Tokenizer, **changes) -> Encoder:
    return Encoder(tokenizer, dataclasses.replace(FORM, max_length=16384, max_response_length=4096, **changes), 16384)


pieces = st.one_of(
    st.sampled_from([*SPECIAL, "<file_", "sep>", " the", "\n", "\n\n", "ab", "é", "€", "🎉"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
)
any_text = st.lists(pieces, max_size=12).map("".join)


def assert_specials_only_where_they_belong(tokenizer: Tokenizer, tree: Tree, references: bool) -> None:
    special = {tokenizer.id(token) for token in tokenizer.special}
    for ids in paths(tree):
        wanted = [tokenizer.id(SPLIT)] if references else []
        assert [i for i in ids if i in special] == [*wanted, tokenizer.id(REWARD)]
        assert ids[-1] == tokenizer.id(REWARD)
