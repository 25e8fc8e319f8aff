"""`tokenizer.model` alone: the ids that sentencepiece itself gives, and what cannot be read."""

import json
import shutil
from pathlib import Path

import pytest

from rmjax.data.piece_files import read_pieces
from rmjax.data.tokenizer import Tokenizer
from rmjax.data.tokenizer_files import TokenizerError

FOLDER = Path(__file__).parent / "golden" / "pieces"
IDS = json.loads((FOLDER / "ids.json").read_text(encoding="utf-8"))
READ = ("llama", "gemma", "squeezed")


def folder(tmp_path, name, **config):
    path = tmp_path / name
    path.mkdir()
    shutil.copyfile(FOLDER / f"{name}.model", path / "tokenizer.model")
    if config:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("name", READ)
def test_ids_are_those_of_sentencepiece(tmp_path, name):
    tokenizer = Tokenizer.from_folder(folder(tmp_path, name))
    found = {text: tokenizer.encode(text) for text in IDS["texts"]}
    wanted = dict(zip(IDS["texts"], IDS[name], strict=True))
    other = {text: (found[text], wanted[text]) for text in found if found[text] != wanted[text]}
    assert not other


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("unigram", "its vocabulary is unigram, supported: bpe"),
        ("suffixed", "blanks end words"),
        ("rules", r"characters are changed by rules \(normalization other than identity\)"),
        ("tools", "1 pieces are user-defined, and a blank is put before texts"),
    ],
)
def test_what_would_make_other_tokens_is_refused(tmp_path, name, said):
    with pytest.raises(
        TokenizerError, match=rf"tokenizer\.model: {said}; write tokenizer\.json once where transformers is: Auto"
    ):
        Tokenizer.from_folder(folder(tmp_path, name))


def test_user_defined_pieces_go_where_no_blank_is_put(tmp_path):
    assert Tokenizer.from_folder(folder(tmp_path, "tools", add_prefix_space=False)).encode("<tool>a")[0] == 3


def test_special_tokens_are_those_of_the_file(tmp_path):
    tokenizer = Tokenizer.from_folder(folder(tmp_path, "gemma"))
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<pad>")
    assert tokenizer.adds_bos and set(tokenizer.special) == {"<pad>", "</s>", "<s>", "<unk>"}
    assert tokenizer.encode("a<s>b") != tokenizer.encode("a") + [tokenizer.id("<s>")] + tokenizer.encode("b")
    read = tokenizer.encode_marked("<s>the model</s>")
    assert read == [2, *tokenizer.encode("the model"), 1]
    assert tokenizer.decode(read) == "the model"


def test_it_is_the_same_saved_and_loaded(tmp_path):
    tokenizer = Tokenizer.from_folder(folder(tmp_path, "llama"))
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.fingerprint() == tokenizer.fingerprint()
    assert [again.encode(text) for text in IDS["texts"]] == IDS["llama"]
    assert again.decode(again.encode("  the  model\n🙂")) == "  the  model\n🙂"
    assert again.encode_continued(" the") == again.encode("the")


def test_tokens_of_the_config_stand_in_pieces_places(tmp_path):
    """InternLM2's files have `[UNUSED_TOKEN_146]` where the config has `<|im_start|>`."""
    last = len(read_pieces(FOLDER / "llama.model").tokens) - 1
    names = {
        str(last): {"content": "<|im_start|>", "special": True},
        str(last + 1): {"content": "<|new|>", "special": True},
    }
    tokenizer = Tokenizer.from_folder(folder(tmp_path, "llama", added_tokens_decoder=names, add_bos_token=False))
    assert (tokenizer.id("<|im_start|>"), tokenizer.id("<|new|>")) == (last, last + 1) and not tokenizer.adds_bos
    assert tokenizer.encode_marked("<|im_start|>")[-1] == last
    assert last not in tokenizer.encode("<|im_start|>")


def test_older_folders_list_added_tokens_by_name(tmp_path):
    path = folder(tmp_path, "llama")
    number = len(read_pieces(FOLDER / "llama.model").tokens)
    (path / "added_tokens.json").write_text(json.dumps({"<|end|>": number}))
    assert Tokenizer.from_folder(path).id("<|end|>") == number


@pytest.mark.parametrize(
    ("config", "behind", "before"),
    [({}, "▁the", "▁the"), ({"legacy": False}, "the", "▁the"), ({"add_prefix_space": False}, "the", "the")],
)
def test_where_a_blank_is_put(tmp_path, config, behind, before):
    tokenizer = Tokenizer.from_folder(folder(tmp_path, "llama", **config))
    assert tokenizer.token(tokenizer.encode("the", after="<s>")[0])[:1] == behind[:1]
    assert tokenizer.token(tokenizer.encode("the")[0])[:1] == before[:1]
    assert tokenizer.decode(tokenizer.encode("the model")) == "the model"


@pytest.mark.parametrize(
    "content",
    [b"", b"IQ== 0\nIg== 1\n", (FOLDER / "llama.model").read_bytes()[:3001], b"\x0a" + b"\xff" * 7 + b"\x7f",
     b"\x0a\x03\x0a\x01\xff"],
    ids=["empty", "tiktoken", "cut", "length", "utf-8"],
)  # fmt: skip
def test_what_is_no_such_file(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(
        TokenizerError, match=r"tokenizer\.model: not a sentencepiece model \(.*write tokenizer\.json once"
    ):
        Tokenizer.from_folder(tmp_path)
