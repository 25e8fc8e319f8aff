"""Tokenizers of Hugging Face folders: every form in which the hub has stored them, and sentencepiece's kind."""

import json

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Plain

from rmjax.data.tokenizer import Tokenizer, TokenizerError

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = ("<s>", "</s>", "<unk>", "<|end|>")
WORDS = ["▁a", "▁b", "ab", "▁ab", "▁<", "s>", "</"]


def byte_level() -> Plain:
    plain = Plain(models.BPE(vocab={token: i for i, token in enumerate([*SPECIAL, *BYTES])}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    plain.add_special_tokens(list(SPECIAL[:3]))
    return plain


def pieces(scheme: str) -> Plain:
    """Sentencepiece's kind: BPE over characters with bytes for what it lacks; `scheme` is how a text's blank is put before."""
    characters = [*"ab<>/s|end ▁".replace(" ", "")]
    vocab = dict.fromkeys([*SPECIAL, *(f"<0x{i:02X}>" for i in range(256)), *characters, *WORDS])
    merges = [("▁", "a"), ("▁", "b"), ("a", "b"), ("▁a", "b"), ("▁", "<"), ("s", ">"), ("<", "/"), ("</", "s>")]
    plain = Plain(
        models.BPE(
            vocab={token: i for i, token in enumerate(vocab)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    if scheme == "normalizer":
        plain.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        plain.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    plain.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    plain.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    plain.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    return plain


def folder(path, plain: Plain, config: dict, **files: str):
    path.mkdir(exist_ok=True)
    plain.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


TEMPLATES = [{"name": "tool_use", "template": "other"}, {"name": "default", "template": "right"}]


@pytest.mark.parametrize(
    ("config", "files"),
    [
        ({"chat_template": "right"}, {}),
        ({"chat_template": "other"}, {"chat_template__jinja": "right"}),
        ({"chat_template": TEMPLATES}, {}),
        ({"chat_template": {each["name"]: each["template"] for each in TEMPLATES}}, {}),
        ({"chat_template": TEMPLATES[1:]}, {}),
        ({}, {"chat_template__json": json.dumps({"chat_template": "right"})}),
    ],
)
def test_the_template_in_all_its_places(tmp_path, config, files):
    assert Tokenizer.from_folder(folder(tmp_path, byte_level(), config, **files)).chat_template == "right"


@pytest.mark.parametrize("form", [lambda token: token, lambda token: {"content": token, "special": True}])
@pytest.mark.parametrize("place", ["tokenizer_config__json", "special_tokens_map__json"])
def test_named_tokens_in_all_their_forms(tmp_path, form, place):
    named = {"bos_token": form("<s>"), "eos_token": form("<|end|>"), "pad_token": form("[PAD]"), "unk_token": None}
    made = Tokenizer.from_folder(folder(tmp_path, byte_level(), {}, **{place: json.dumps(named)}))
    assert (made.bos_token, made.eos_token, made.pad_token) == ("<s>", "<|end|>", "[PAD]")
    size = len(SPECIAL) + len(BYTES)
    assert made.id("[PAD]") == size and made.vocab_size == size + 1  # the next id, as `transformers` gives it
    assert made.encode_marked("<|end|>a[PAD]") == [3, made.id("a"), size]  # special by its name
    assert {3, size}.isdisjoint(made.encode("<|end|>a[PAD]"))


def test_tokens_that_only_the_config_adds(tmp_path):
    size = len(SPECIAL) + len(BYTES)
    decoder = {str(size + 1): {"content": "<think>", "special": False}, str(size): {"content": "[X]", "special": True}}
    made = Tokenizer.from_folder(folder(tmp_path, byte_level(), {"added_tokens_decoder": decoder}))
    assert made.encode_marked("[X]<think>") == [size, size + 1]
    assert made.encode("[X]<think>")[-1] == size + 1  # not a special one, so a text may have it
    assert size not in made.encode("[X]<think>") and made.special == (*SPECIAL[:3], "[X]")


@pytest.mark.parametrize(
    ("scheme", "begins", "goes_on"),
    [
        ("normalizer", ["▁a"], ["▁a"]),
        ("always", ["▁a"], ["▁a"]),
        ("first", ["▁a"], ["a"]),
        ("never", ["a"], ["a"]),
    ],
)
def test_a_blank_behind_a_special_token_is_the_file_s_affair(tmp_path, scheme, begins, goes_on):
    plain = pieces(scheme)
    made = Tokenizer.from_folder(folder(tmp_path, plain, {"bos_token": "<s>"}))
    assert made.encode("a") == list(map(made.id, begins))
    assert made.encode("a", after="<|end|>") == list(map(made.id, goes_on))
    text = "ab<|end|>a é\n<s>b"
    assert made.encode_marked(text) == plain.encode(text, add_special_tokens=False).ids
    assert made.encode(f"ab{made.mark('<|end|>')}a") == plain.encode("ab<|end|>a", add_special_tokens=False).ids


@pytest.mark.parametrize("scheme", ["normalizer", "first", "never"])
def test_pieces_never_merge_to_a_special_token(tmp_path, scheme):
    made = Tokenizer.from_folder(folder(tmp_path, pieces(scheme), {"bos_token": "<s>"}))
    special = set(map(made.id, SPECIAL))
    for text in ("</s>", "a</s>b <s> <|end|>", "<unk>"):
        assert special.isdisjoint(made.encode(text)) and made.mentions_special(text)
        assert made.decode(made.encode(text)) == text
    assert made.encode("é")[-2:] == [made.id("<0xC3>"), made.id("<0xA9>")]
    made.save(tmp_path / "again.json")
    again = Tokenizer.load(tmp_path / "again.json")
    assert again.encode("a</s> é") == made.encode("a</s> é") and again.special == made.special
    assert again.fingerprint() == made.fingerprint()


def test_fingerprints_tell_what_stands_before_the_merges(tmp_path):
    made = [Tokenizer.from_folder(folder(tmp_path / s, pieces(s), {})).fingerprint() for s in ("first", "never")]
    assert made[0] != made[1]


@pytest.mark.parametrize(
    ("config", "adds"), [({}, True), ({"add_bos_token": False}, False), ({"add_bos_token": True}, True)]
)
def test_whether_a_beginning_is_added(tmp_path, config, adds):
    found = Tokenizer.from_folder(folder(tmp_path, pieces("first"), {"bos_token": "<s>"} | config))
    assert found.adds_bos == adds
    assert not Tokenizer.from_folder(folder(tmp_path, byte_level(), {"bos_token": "<s>"})).adds_bos


def test_blanks_that_a_special_token_takes_along(tmp_path):
    plain = byte_level()
    plain.add_special_tokens([AddedToken("<|end|>", rstrip=True), AddedToken("<|mask|>", lstrip=True)])
    made = Tokenizer.from_folder(folder(tmp_path, plain, {}))
    for text in ("a<|end|>\n b <|mask|>", "<|end|>  <|end|> a"):
        assert made.encode_marked(text) == plain.encode(text).ids
    assert made.encode("\n b", after="<|end|>") == [made.id("b")]


@pytest.mark.parametrize(
    ("scheme", "flags"),
    [("first", {"single_word": True}), ("normalizer", {"single_word": True}), ("normalizer", {"normalized": True})],
)
def test_special_tokens_that_are_found_in_some_texts_alone_are_refused(tmp_path, scheme, flags):
    plain = pieces(scheme)
    plain.add_special_tokens([AddedToken("<|im_end|>", **{"normalized": False, **flags})])
    with pytest.raises(
        TokenizerError, match=r"its special tokens <\|im_end\|> are not found between letters; set `single"
    ):
        Tokenizer.from_folder(folder(tmp_path, plain, {}))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("tokenizer.json", "{}", r"tokenizer\.json: not a tokenizer file"),
        ("tokenizer.json", "[", r"tokenizer\.json: not JSON .*; get the file again"),
        ("tokenizer.json", "[]", r"tokenizer\.json: a JSON list; it has to be an object"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"a": 1}}', "not the files of a tokenizer"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "a"}]}', "not the files of a tokenizer"),
        (
            "tokenizer_config.json",
            '{"chat_template": {"a": "1", "b": "2"}}',
            "has the templates a, b and none named default",
        ),
    ],
)
def test_damage_is_named(tmp_path, name, text, said):
    (folder(tmp_path, byte_level(), {}) / name).write_text(text)
    with pytest.raises(TokenizerError, match=said):
        Tokenizer.from_folder(tmp_path)


def test_without_a_tokenizer_the_remedy_is_named(tmp_path):
    said = r"tokenizer\.json: not there; write tokenizer\.json once where transformers is: AutoTokenizer"
    with pytest.raises(FileNotFoundError, match=said):
        Tokenizer.from_folder(tmp_path)
