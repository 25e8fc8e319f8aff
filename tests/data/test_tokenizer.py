"""The tokenizer, on a byte-level vocabulary of our own and on SmolLM2's."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from rmjax.data.tokenizer import Tokenizer, TokenizerError

SPECIAL = ("<|im_end|>", "<|im_start|>", "[read]")
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = ["Ġ t", "h e", "Ġt he", "a n", "i m", "1 2"]  # "1 2" can never apply: digits are split


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokens = [*SPECIAL, *BYTES, *(merge.replace(" ", "") for merge in MERGES)]
    return Tokenizer.from_bpe(tokens, MERGES, SPECIAL)


@pytest.fixture(scope="module")
def reloaded(tokenizer, tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(path)
    return Tokenizer.load(path)


any_text = st.text(max_size=60)
# Text as an attacker writes it: special tokens spelled out among ordinary pieces.
spelled = st.lists(st.one_of(st.sampled_from([*SPECIAL, "<|im", "_end|>", " the", "12"]), any_text)).map("".join)


@given(text=spelled)
def test_decoding_undoes_encoding(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=spelled)
def test_saving_and_loading_changes_nothing(tokenizer, reloaded, text):
    ids = tokenizer.encode(text)
    assert reloaded.encode(text) == ids
    assert reloaded.decode(ids) == text
    assert reloaded.encode_marked(text) == tokenizer.encode_marked(text)
    assert reloaded.special == tokenizer.special
    assert reloaded.vocab_size == tokenizer.vocab_size


def test_saving_twice_writes_the_same_file(tokenizer, reloaded, tmp_path):
    tokenizer.save(tmp_path / "first.json")
    reloaded.save(tmp_path / "second.json")
    first, second = (hashlib.sha256((tmp_path / name).read_bytes()).digest() for name in ("first.json", "second.json"))
    assert first == second


@given(text=spelled)
def test_user_text_never_becomes_a_special_id(tokenizer, reloaded, text):
    special = {tokenizer.id(token) for token in SPECIAL}
    for one in (tokenizer, reloaded):
        assert special.isdisjoint(one.encode(text))
        assert one.mentions_special(text) == any(token in text for token in SPECIAL)


def test_a_template_of_ours_has_special_ids(tokenizer, reloaded):
    text = "<|im_start|>the 12[read]<|im_end|>"
    for one in (tokenizer, reloaded):
        want = [one.id("<|im_start|>"), *one.encode("the 12"), one.id("[read]"), one.id("<|im_end|>")]
        assert one.encode_marked(text) == want
        assert one.decode(want) == "the 12"


def test_without_special_tokens_a_template_is_plain_text():
    plain = Tokenizer.from_bpe([*BYTES, "Ġt", "he", "Ġthe"], MERGES[:3], ())
    assert plain.encode_marked("oh the the") == plain.encode("oh the the")
    assert plain.decode(plain.encode("oh the")) == "oh the"


def test_of_special_tokens_that_begin_alike_the_longer_one_is_meant():
    tokenizer = Tokenizer.from_bpe(["<a>", "<a>b", *BYTES], [], ("<a>", "<a>b"))
    assert tokenizer.encode_marked("<a>b<a>") == [1, 0]


@given(text=st.text(alphabet="0123456789 ab", max_size=30))
def test_digits_are_split_singly(tokenizer, text):
    tokens = [tokenizer.decode([i]) for i in tokenizer.encode(text)]
    assert sum(token.isdigit() for token in tokens) == sum(character.isdigit() for character in text)


def test_merges_are_used(tokenizer):
    assert tokenizer.encode(" the") == [tokenizer.id("Ġthe")]


def test_an_unknown_token_is_an_error_that_lists_the_special_ones(tokenizer):
    with pytest.raises(TokenizerError, match=r"'<\|nothing\|>' is not in the vocabulary; .*<\|im_end\|>, .*\[read\]"):
        tokenizer.id("<|nothing|>")


@pytest.mark.parametrize("content", ["", "{}", '{"version": "1.0"', "tokens"])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path, content):
    path = tmp_path / "odd.json"
    path.write_text(content)
    with pytest.raises(TokenizerError, match=r"odd\.json: not a tokenizer file"):
        Tokenizer.load(path)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(TokenizerError, match=r"absent\.json"):
        Tokenizer.load(tmp_path / "absent.json")


# --- SmolLM2's vocabulary: 49152 tokens, so that most characters really are merged -----------------------------------


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2) -> Tokenizer:
    return smollm2[2]


# Of the assigned characters, SmolLM2's vocabulary has no bytes for these six, and for none from U+40000 on.
ABSENT = "\x04\x06\x13\x14\x16\x1d"
known_text = st.text(st.characters(codec="utf-8", exclude_characters=ABSENT, max_codepoint=0x3FFFF), max_size=60)
known_pieces = st.sampled_from(["<|im_end|>", "<|endoftext|>", " word", "7", "\r\n", "\u2028"])


@given(text=st.lists(st.one_of(known_text, known_pieces), max_size=8).map("".join))
def test_smollm2_takes_any_text_as_text(smollm2_tokenizer, text):
    ids = smollm2_tokenizer.encode(text)
    assert smollm2_tokenizer.decode(ids) == text
    assert {smollm2_tokenizer.id(token) for token in smollm2_tokenizer.special}.isdisjoint(ids)


def test_smollm2_leaves_out_six_control_characters(smollm2_tokenizer):
    lost = [chr(i) for i in range(0x3000) if smollm2_tokenizer.decode(smollm2_tokenizer.encode(chr(i))) != chr(i)]
    assert lost == list(ABSENT)


def test_smollm2_after_saving_and_loading(smollm2_tokenizer, tmp_path):
    tokenizer = smollm2_tokenizer
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    for text in ("In 1999, 3.5 % of <|im_end|> users", "日本語 café 🎉\n\n\tdef f(x):", ""):
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.encode_marked(text) == tokenizer.encode_marked(text)
    assert len(tokenizer.special) == 17
    assert loaded.special == tokenizer.special
