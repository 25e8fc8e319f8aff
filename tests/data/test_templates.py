"""The template formats of public models beside `transformers`: token ids of twelve families, and what becomes of refusals.

`golden/make_templates.py` made the values.
"""

import json

import pytest

from rmjax.data.chat import Chat, TemplateError
from rmjax.data.formats import Encoder, Format, completed
from rmjax.data.messages import Message
from rmjax.data.record import RecordError, parse, parse_text
from rmjax.data.tokenizer import Tokenizer
from tests.data.golden.make_templates import CONVERSATIONS, DATE, FAMILIES, FILE, write_folder

GOLDEN = json.loads(FILE.read_text(encoding="utf-8"))
ENDS = {
    "llama3": "<|eot_id|>",
    "qwen": "<|im_end|>",
    "smoll": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "inter": "<|im_end|>",
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, Tokenizer]:
    root = tmp_path_factory.mktemp("families")
    for number, family in enumerate(FAMILIES):
        write_folder(root / str(number), family, GOLDEN)
    return {family: Tokenizer.from_folder(root / str(number)) for number, family in enumerate(FAMILIES)}


def chat_of(tokenizer: Tokenizer) -> tuple[Chat, Format]:
    form = completed(Format(kind="chat", date=DATE), tokenizer)
    return Chat(form.template, tokenizer, form.end_token, form.bos_token, form.date, form.eos_token), form


def messages_of(rows: list[dict]) -> list[Message]:
    return list(parse({"messages": [*rows, {"role": "user", "content": "."}], "output": "."}, "f:1").prompt.messages)[
        :-1
    ]


def rendered(chat: Chat, rows: list[dict]) -> list[int]:
    messages = messages_of(rows)
    return chat.begun(messages) if messages[-1].role == "user" else chat.ended(messages, whole=True)


CASES = [(f, n) for f in FAMILIES for n in CONVERSATIONS if n != "spelled" and "ids" in GOLDEN[f][n]]
REFUSED = [(f, n) for f in FAMILIES for n in CONVERSATIONS if "refused" in GOLDEN[f][n]]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_ids_are_those_of_transformers(tokenizers, family, name):
    tokenizer = tokenizers[family]
    chat, _ = chat_of(tokenizer)
    found, wanted = rendered(chat, CONVERSATIONS[name]), GOLDEN[family][name]
    assert found == wanted["ids"]
    bos = tokenizer.bos_token
    if bos and tokenizer.adds_bos:
        assert found.count(tokenizer.id(bos)) == (family != "phi3")  # whose template writes none


@pytest.mark.parametrize("family", FAMILIES)
def test_where_a_turn_ends(tokenizers, family):
    chat, form = chat_of(tokenizers[family])
    assert form.end_token == next((end for name, end in ENDS.items() if family.startswith(name)), form.end_token)
    assert form.end_token == {"phi3": "<|end|>"}.get(family, form.end_token)
    ids = chat.ended(messages_of(CONVERSATIONS["one answer"]))
    assert ids == GOLDEN[family]["one answer"]["ids"][: len(ids)] and ids[-1] == tokenizers[family].id(form.end_token)


@pytest.mark.parametrize(("family", "name"), REFUSED)
def test_what_transformers_refuses_is_an_error_of_the_record(tokenizers, family, name):
    rows, wanted = CONVERSATIONS[name], GOLDEN[family][name]["refused"]
    with pytest.raises(TemplateError):
        rendered(chat_of(tokenizers[family])[0], rows)
    encoder = Encoder(tokenizers[family], Format(kind="chat", date=DATE), 4000)
    said = rf"^f\.jsonl:3: the chat template refuses the conversation \({wanted[:20]}.*correct or drop the record"
    for made in (
        lambda: encoder.trees(parse({"messages": rows[:-1], "chosen": [rows[-1]], "rejected": "z"}, "f.jsonl:3")),
        lambda: encoder.language_model_trees(parse_text({"messages": rows}, "f.jsonl:3")),
    ):
        with pytest.raises(RecordError, match=said):
            made()


def test_some_are_refused():
    assert {family for family, _ in REFUSED} == {"gemma2", "gemma3", "mistral0.1", "mistral0.3"}


@pytest.mark.parametrize("family", FAMILIES)
def test_spelled_special_tokens_are_text(tokenizers, family):
    """`transformers` can do so, too: the special tokens and the text are the same, the pieces at borders need not be."""
    tokenizer = tokenizers[family]
    special = set(map(tokenizer.id, tokenizer.special))
    found, wanted = rendered(chat_of(tokenizer)[0], CONVERSATIONS["spelled"]), GOLDEN[family]["spelled"]["ids"]
    assert [i for i in found if i in special] == [i for i in wanted if i in special]
    blanks = family in ("phi3", "mistral0.1", "internlm2")  # one before each piece, theirs and ours
    text, theirs = tokenizer.decode(found), tokenizer.decode(wanted)
    assert text.replace(" ", "") == theirs.replace(" ", "") if blanks else text == theirs


@pytest.mark.parametrize(("family", "blank"), [("internlm2", True), ("internlm2, no blank", False)])
def test_a_blank_behind_polar_s_separator_is_the_tokenizer_s_affair(tokenizers, family, blank):
    tokenizer = tokenizers[family]
    form = Format(split_token="<|reward|>", reward_token="[UNUSED_TOKEN_130]")
    encoder = Encoder(tokenizer, form, 200)
    record = parse(
        {"prompt": "What is", "reference": "Paris", "outputs": ["the sea", "<|reward|>[UNUSED_TOKEN_130]"]}, "f:1"
    )
    ((first, second),) = encoder.sequences(record)
    bos, split, read = (tokenizer.id(token) for token in ("<s>", "<|reward|>", "[UNUSED_TOKEN_130]"))
    assert first[0] == bos and first[-1] == read and first.count(split) == first.count(bos) == first.count(read) == 1
    half = tokenizer.encode("What is\nthe sea")
    assert first[first.index(split) + 1 : -1] == half and (tokenizer.decode(half[:1]).strip() != "W") == blank
    assert (tokenizer._plain.id_to_token(half[0])[0] == "▁") == blank
    assert second.count(split) == second.count(read) == 1  # what a text spells is text, though the file has it as plain


def test_a_model_without_a_blank_goes_on_without_one(tokenizers):
    """What a language model learns is what stands in the middle of the text, whatever begins one."""
    tokenizer = tokenizers["mistral0.1"]
    assert tokenizer.encode("sea")[0] != tokenizer.encode_continued("sea")[0]
    encoder = Encoder(tokenizers["internlm2"], Format(kind="chat"), 200)
    before, after = encoder.continued("a", "sea is")
    (whole,) = encoder._layout.sequences(parse({"prompt": "a", "output": "sea is"}, ""), None)
    assert whole[:-1] == before + after
