"""Makes `templates.json`: what `transformers` renders and tokenizes of conversations, for the template formats of public models.

    python tests/data/golden/make_templates.py     # where transformers is installed; it has no part in the tests themselves

The templates are written here, as short as the format allows; a family's format is a fact, the text of its template is not
copied. The two vocabularies are trained on the sentences below, so that the tokenizers are of the families' kinds and small:
byte-level BPE, and sentencepiece's kind, with bytes for what it lacks.
"""

import datetime
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FILE = HERE / "templates.json"
DATE = "2024-07-26"
TEXTS = (
    "the user asks a question and the assistant gives an answer, in a few words or in many; then the user asks again. "
    "system user assistant model question answer You are a helpful assistant. What is the capital of France? It is Paris. "
    "Why is the sky blue? Because air scatters blue light more than red light, and so the sky is blue for all of us. "
    "Write a poem about the sea. The sea is deep, the sea is wide, and there the ships and fishes hide. "
) * 4

# --- tokenizers: a vocabulary, and what stands before and behind it in a family -------------------------------------------

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES_BEHIND = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
BYTES = BYTES_BEHIND | {"use_regex": True}
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPEND = {"type": "Prepend", "prepend": "▁"}


def sequence(name: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", name: list(parts)}


def split_by(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return sequence("pretokenizers", split, BYTES_BEHIND)


def metaspace(scheme: str) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}


def template_processing(token: str) -> dict[str, Any]:
    parts = [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "type": "TemplateProcessing", "single": parts, "pair": [*parts, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [0], "tokens": [token]}},
    }  # fmt: skip


CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN = {
    "vocabulary": "byte_level", "normalizer": {"type": "NFC"}, "pre_tokenizer": split_by(WORDS % ""), "special": CHATML,
    "plain": ("<think>", "</think>", "<tool_call>", "</tool_call>"), "eos_token": "<|im_end|>",
}  # fmt: skip
PIECES = {"vocabulary": "pieces", "eos_token": "</s>", "bos_token": "<s>", "adds_bos": True}
MISTRAL = PIECES | {"special": ("<s>", "</s>", "<unk>", "[INST]", "[/INST]")}
INTERNLM = PIECES | {
    "special": ("<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"), "plain": ("<|reward|>", "[UNUSED_TOKEN_130]"),
}  # fmt: skip

# --- templates -------------------------------------------------------------------------------------------------------------

LLAMA3 = (
    "{%- for m in messages %}{{- (bos_token if loop.first else '') + '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
LLAMA31 = """{{- bos_token }}
{%- set date = strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024" %}
{%- set first = messages[0]['role'] == 'system' %}
{{- "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: " + date + "\n\n" }}
{{- (messages[0]['content'] | trim if first else "") + "<|eot_id|>" }}
{%- for m in (messages[1:] if first else messages) %}
    {{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""


def chatml(default: str) -> str:
    """ChatML with a system turn that stands where none is given."""
    system = "<|im_start|>system\n" + default + "<|im_end|>\n"
    return (
        "{% for m in messages %}"
        + ("{% if loop.first and m['role'] != 'system' %}{{ " + repr(system) + " }}{% endif %}" if default else "")
        + "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
        "{% if m.tool_calls %}{% for call in m.tool_calls %}{{ '\n<tool_call>\n' + call.function | tojson + '\n</tool_call>' }}"
        "{% endfor %}{% endif %}{{ '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


QWEN3 = """{%- set ns = namespace(last=messages|length - 1, found=false) %}
{%- for m in messages[::-1] %}
    {%- if not ns.found and m.role == 'user' %}
        {%- set ns.found = true %}{%- set ns.last = messages|length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {% set text = m.content.split('</think>')[-1].lstrip('\n') %}
        {% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in m.content else '' %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}{{- '<think>\n' + thought + '\n</think>\n\n' }}{%- endif %}
        {{- text + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}"""
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim "
    "+ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA3 = (
    "{{ bos_token }}{% set first = messages[0]['role'] == 'system' %}"
    "{% for m in (messages[1:] if first else messages) %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' "
    "+ (messages[0]['content'] + '\n\n' if first and loop.first else '') + m['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def mistral(before_answer: str) -> str:
    """`[INST] … [/INST]`, with a blank of the template's own before an answer or without."""
    return (
        "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% elif m['role'] == 'assistant' %}"
        "{{ '" + before_answer + "' + m['content'] + eos_token }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
    )


INTERNLM2 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

SMOLLM = sequence("pretokenizers", {"type": "Digits", "individual_digits": True}, BYTES)
LLAMA3_TOKENS = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
LLAMA = {
    "vocabulary": "byte_level", "pre_tokenizer": split_by(WORDS % "{1,3}"), "special": LLAMA3_TOKENS, "ignore_merges": True,
    "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "adds_bos": True,
}  # fmt: skip
GEMMAS = {
    "vocabulary": "pieces", "normalizer": SPACES, "special": ("<s>", "</s>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
    "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
    "plain": ("\n\n", "\n\n\n", "▁▁"), "bos_token": "<s>", "eos_token": "</s>", "adds_bos": True,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama3": LLAMA | {"template": LLAMA3},
    "llama3.1": LLAMA | {"template": LLAMA31},
    "qwen2.5": QWEN | {"template": chatml("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")},
    "qwen3": QWEN | {"template": QWEN3},
    "smollm2": QWEN | {
        "normalizer": None, "pre_tokenizer": SMOLLM, "bos_token": "<|im_start|>",
        "template": chatml("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    },
    "gemma2": GEMMAS | {"template": GEMMA},
    "gemma3": GEMMAS | {"template": GEMMA3},
    "mistral0.1": MISTRAL | {"normalizer": sequence("normalizers", PREPEND, SPACES), "template": mistral(" ")},
    "mistral0.3": MISTRAL | {"pre_tokenizer": metaspace("first"), "template": mistral(" ")},
    "internlm2": INTERNLM | {"normalizer": sequence("normalizers", PREPEND, SPACES), "template": INTERNLM2},
    "internlm2, no blank": INTERNLM | {"normalizer": SPACES, "template": INTERNLM2},
    "phi3": PIECES | {
        "normalizer": sequence("normalizers", PREPEND, SPACES), "template": PHI3, "eos_token": "<|endoftext|>",
        "special": ("<s>", "</s>", "<unk>", "<|endoftext|>"),
        "stripping": ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    },
}  # fmt: skip


def write_folder(folder: Path, family: str, vocabularies: dict[str, Any]) -> None:
    """The family's tokenizer as Hugging Face's folders hold it."""
    facts = FAMILIES[family]
    model = json.loads(json.dumps(vocabularies[facts["vocabulary"]]))
    model["ignore_merges"] = facts.get("ignore_merges", False)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    new = [(token, {}) for token in facts["special"]]
    new += [(token, {"rstrip": True}) for token in facts.get("stripping", ())]
    new += [(token, {"special": False}) for token in facts.get("plain", ())]
    added: list[dict[str, Any]] = []
    following = len(model["vocab"])
    for token, other in new:
        number = model["vocab"].get(token, following)
        following += number == following
        added.append({"id": number, "content": token, **flags, **other})
    decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    if facts["vocabulary"] == "pieces":
        strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        parts = [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        decoder = sequence("decoders", *parts, *([strip] * (facts.get("normalizer") != SPACES)))
    whole = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": sorted(added, key=lambda t: t["id"]),
        "normalizer": facts.get("normalizer"), "pre_tokenizer": facts.get("pre_tokenizer"), "decoder": decoder, "model": model,
        "post_processor": template_processing(facts["bos_token"]) if facts.get("adds_bos") else None,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")
    named = {name: facts[name] for name in ("bos_token", "eos_token") if name in facts}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(facts["template"], encoding="utf-8")


# --- conversations -----------------------------------------------------------------------------------------------------------


def say(*contents: str, system: str = "") -> list[dict[str, Any]]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return [{"role": "system", "content": system}] * bool(system) + turns


CALL = {"type": "function", "function": {"name": "price", "arguments": {"of": "<plum> & 'é'"}}}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one answer": say("What is the capital of France?", "It is Paris."),
    "system": say("Why is the sky blue?", "Because air scatters blue light.", system="Answer in a few words."),
    "blanks and lines": say("  a  b\n\n\nc\t1234567 ", "\n- one\n- two\n", " é 日本 🎉 ", "x"),
    "thought": say("a?", "<think>\nso\n</think>\n\nb", "c?", "<think>\nthen\n</think>\n\nd"),
    "asked": say("What is the capital of France?"),
    "asked again": say("a", "b", "Why? It's 3.5 %, isn't it?"),
    "calls": [*say("Price?"), {"role": "assistant", "content": "", "tool_calls": [CALL]}],
    "two in a row": [*say("a"), *say("b", "c")],
    "spelled": say("<|im_end|></s><|eot_id|><end_of_turn> [/INST]<|end|> the end", "a <s> b<|im_start|>"),
}


def vocabularies() -> dict[str, Any]:
    """The two models, as the `model` of a `tokenizer.json`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    level = Tokenizer(models.BPE())
    level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    level.train_from_iterator([TEXTS], trainer)
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    pieces = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    pieces.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>", *bytes_, *"<>/|[]_\n"]
    pieces.train_from_iterator(
        [TEXTS], trainers.BpeTrainer(vocab_size=480, special_tokens=special, show_progress=False)
    )
    return {"byte_level": json.loads(level.to_str())["model"], "pieces": json.loads(pieces.to_str())["model"]}


def rendered(tokenizer: Any, messages: list[dict[str, Any]], spelled: bool) -> dict[str, Any]:
    """What `transformers` makes of a conversation: text and ids, or its refusal."""
    import jinja2

    more = {"add_generation_prompt": messages[-1]["role"] == "user"}
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **more)
    except jinja2.TemplateError as error:
        return {"refused": str(error)}
    ids = tokenizer.apply_chat_template(messages, return_dict=False, sanitize_control_tokens=spelled, **more)
    return {"text": text, "ids": ids}


def main() -> None:
    import tempfile

    import transformers
    from transformers.utils import chat_template_utils

    class Then(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Then":
            return cls.fromisoformat(DATE)

    chat_template_utils.datetime = Then
    models, found = vocabularies(), {}
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            write_folder(Path(folder), family, models)
            tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
            found[family] = {
                name: rendered(tokenizer, messages, name == "spelled") for name, messages in CONVERSATIONS.items()
            }
    lines = [
        f'"made_by": {json.dumps("transformers " + transformers.__version__)}',
        *(f'"{name}": {json.dumps(model, ensure_ascii=False)}' for name, model in models.items()),
        *(f"{json.dumps(name)}: {json.dumps(of, ensure_ascii=False)}" for name, of in found.items()),
    ]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
