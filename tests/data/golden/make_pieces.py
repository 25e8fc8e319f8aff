"""Writes tests/data/golden/pieces/: tiny sentencepiece models, and the ids that sentencepiece gives for awkward texts.

pip install sentencepiece==0.2.3 && python tests/data/golden/make_pieces.py
"""

import contextlib
import json
import random
import tempfile
from pathlib import Path

import sentencepiece

HERE = Path(__file__).resolve().parent / "pieces"
WORDS = """
the model reads a prompt and gives each answer its reward so that better answers come first while worse ones stay below
it 12 2024 3.14 don't über naïve 你好 世界 模型 回答 def return print ( ) { } == def __init__ self . , ! ? : ;
"""
TEXTS = [
    "", " ", "   ", "\n", "\n\n", "\t", "a", " a", "  a", "a ", "a  ", "a  b   c", " \n a \n\n b\n", "the model reads",
    "the model  reads", "The Model", "2024", "12 3.14", "don't", "naïve über", "你好世界", "你好，世界！", "模型 回答", "🙂",
    "🙂🙂 a👩‍👩‍👧 ", "é e\u0301", "\u0000\u0007", "\r\n", "<s>", "</s> the", "a<unk>b", "<pad>", "<0x41>", "<tool>", "a<tool>b",
    "<tool> the <tool>", " <tool>", "<tool><tool>", "▁", "▁the ▁ model▁", "the▁model", "\u00a0a\u3000b", "ＡＢＣ ａ", "ﬁne ½",
    "def __init__(self):\n    return {}\n", "a\tb\t\tc", "x" * 70, "the" * 9, "\ufeffa", "é" * 5, "   <tool>   ", "a\u200bb",
    "\U0001f1e9",
]  # fmt: skip
COMMON = {"vocab_size": 420, "hard_vocab_limit": False, "minloglevel": 2}
RULES = "FF21\t41\nFF22\t42\n9\t20\nA\t20\n3000\t20\nFB01\t66 69\n65 301\tE9\n"  # code points, hexadecimal
MODELS = {
    "llama": {"model_type": "bpe", "byte_fallback": True, "remove_extra_whitespaces": False, "split_digits": True,
              "normalization_rule_name": "identity"},
    "gemma": {"model_type": "bpe", "byte_fallback": True, "remove_extra_whitespaces": False, "add_dummy_prefix": False,
              "normalization_rule_name": "identity", "user_defined_symbols": ["<tool>", "\n", "\n\n", "▁▁", "▁▁▁"],
              "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3},
    "squeezed": {"model_type": "bpe", "normalization_rule_name": "identity"},
    "rules": {"model_type": "bpe", "vocab_size": 120},
    "tools": {"model_type": "bpe", "normalization_rule_name": "identity", "user_defined_symbols": ["<tool>"],
              "vocab_size": 120},
    "suffixed": {"model_type": "bpe", "treat_whitespace_as_suffix": True, "normalization_rule_name": "identity",
                 "vocab_size": 120},
    "unigram": {"model_type": "unigram", "normalization_rule_name": "identity", "vocab_size": 120},
}  # fmt: skip


def corpus() -> list[str]:
    chosen = random.Random(0)
    return [" ".join(chosen.choices(WORDS.split(), k=12)) for _ in range(400)] + ["x x x\n y"] * 3


def main() -> None:
    HERE.mkdir(exist_ok=True)
    ids = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
    ):  # a model holds the paths that it was made by
        Path("rules.tsv").write_text(RULES, encoding="utf-8")
        for name, options in MODELS.items():
            more = {"normalization_rule_tsv": "rules.tsv"} if name == "rules" else {}
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(corpus()), model_prefix=name, **COMMON | options | more
            )
            (HERE / f"{name}.model").write_bytes(Path(f"{name}.model").read_bytes())
            processor = sentencepiece.SentencePieceProcessor(model_file=f"{name}.model")
            ids[name] = [processor.encode(text) for text in TEXTS]
    lines = [f"  {json.dumps(name)}: {json.dumps(found)}" for name, found in ids.items()]
    texts = f'  "texts": {json.dumps(TEXTS)}'
    (HERE / "ids.json").write_text("{\n" + ",\n".join([texts, *lines]) + "\n}\n")


if __name__ == "__main__":
    main()
