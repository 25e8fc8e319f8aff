"""The tokenizer: Hugging Face `tokenizers` behind the few calls that reward modelling needs.

User text never becomes a special token: `encode` treats every string as plain text, so a prompt that contains
`<|im_end|>` or the read-out token cannot move the read-out. Formats add special tokens by id.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers


class TokenizerError(ValueError):
    """A token that a format needs is not in the vocabulary, or the file is not a tokenizer."""


class Tokenizer:
    """Text to ids and back.

    Attributes:
      special: the special tokens' strings.
      chat_template: the model's own Jinja template, "" where none is known; it and the next two are not part of `to_json`.
      bos_token, eos_token: the model's own, by string; "" where unknown. Nothing adds them but a template.
    """

    def __init__(
        self,
        plain: tokenizers.Tokenizer,
        special: Sequence[str],
        chat_template: str = "",
        bos_token: str = "",
        eos_token: str = "",
    ):
        self._plain = plain
        self.special = tuple(special)
        self.chat_template, self.bos_token, self.eos_token = chat_template, bos_token, eos_token

    @classmethod
    def from_bpe(cls, tokens: Sequence[str], merges: Sequence[str], special: Sequence[str]) -> "Tokenizer":
        """Byte-level BPE with digits split one by one (the SmolLM2 pre-tokenizer; no BOS, no prefix space)."""
        vocab = {token: i for i, token in enumerate(tokens)}
        pairs = [tuple(merge.split(" ", 1)) for merge in merges]
        plain = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=pairs, fuse_unk=False))  # type: ignore[arg-type]
        plain.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        plain.decoder = decoders.ByteLevel()
        return cls(plain, special)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Reads a file written by `save`."""
        try:
            plain = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust binding raises bare Exception
            raise TokenizerError(f"{path}: not a tokenizer file ({error}); it is written by training") from error
        added = sorted(plain.get_added_tokens_decoder().items())
        special = [
            token.content for _, token in added if token.special
        ]  # others are ordinary text, found before merges
        plain.encode_special_tokens = True
        return cls(plain, special)

    def to_json(self) -> str:
        """The text of a Hugging Face `tokenizer.json`; its added tokens are the special ones."""
        whole = tokenizers.Tokenizer.from_str(self._plain.to_str())
        whole.add_special_tokens(list(self.special))
        return whole.to_str(pretty=True)

    def save(self, path: str | Path) -> None:
        """Writes `to_json` to a file."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def fingerprint(self) -> str:
        """SHA-256 of what decides which ids a text becomes: tokens, merges, special tokens."""
        merges = json.loads(self._plain.to_str())["model"].get("merges", [])
        joined = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]  # as versions write them
        facts = [sorted(self._plain.get_vocab().items()), joined, self.special]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        return self._plain.get_vocab_size()

    @property
    def words(self) -> int:
        """One more than the highest id that plain text can become."""
        special = set(self.special)
        return 1 + max(i for token, i in self._plain.get_vocab().items() if token not in special)

    def has(self, token: str) -> bool:
        """Whether a token of exactly this string is in the vocabulary."""
        return self._plain.token_to_id(token) is not None

    def token(self, number: int) -> str:
        """The string of a token; TokenizerError if there is none of this id."""
        found = self._plain.id_to_token(number)
        if found is None:
            raise TokenizerError(f"no token has the id {number}; there are {self.vocab_size}")
        return found

    def id(self, token: str) -> int:
        """The id of a token given by its exact string; TokenizerError if there is none."""
        found = self._plain.token_to_id(token)
        if found is None:
            raise TokenizerError(f"token {token!r} is not in the vocabulary; special tokens: {', '.join(self.special)}")
        return found

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: no BOS, no EOS, special tokens in the text taken as ordinary characters.

        Bytes that the vocabulary lacks are left out, as `transformers` does: of SmolLM2 six control characters.
        """
        return self._plain.encode(text, add_special_tokens=False).ids

    def encode_marked(self, text: str) -> list[int]:
        """Ids of a template that we wrote, in which special tokens count as such (chat templates)."""
        ids: list[int] = []
        for part in self.split(text):
            ids += [self.id(part)] if part in self.special else self.encode(part)
        return ids

    def split(self, text: str) -> list[str]:
        """The text's special tokens and what stands between them, in order; nothing empty."""
        return _split(text, self.special)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        hidden = {self.id(token) for token in self.special}
        return self._plain.decode([i for i in ids if i not in hidden], skip_special_tokens=False)

    def head(self, ids: Sequence[int], count: int) -> str:
        """Text of the first `count` ids at most: as many as make whole characters."""
        whole = self.decode(ids)
        kept = min(max(count, 0), len(ids))
        while not whole.startswith(text := self.decode(ids[:kept])):
            kept -= 1
        return text

    def tail(self, ids: Sequence[int], count: int) -> str:
        """Text of the last `count` ids at most: as many as make whole characters."""
        whole = self.decode(ids)
        first = len(ids) - min(max(count, 0), len(ids))
        while not whole.endswith(text := self.decode(ids[first:])):
            first += 1
        return text

    def mentions_special(self, text: str) -> bool:
        """Whether the text spells a special token (it is then scored as ordinary characters; readers count it)."""
        return any(token in text for token in self.special)


def _split(text: str, marks: Sequence[str]) -> list[str]:
    if not marks:
        return [text]
    longest_first = sorted(marks, key=len, reverse=True)  # of two that begin alike, the longer one is meant
    pattern = "(" + "|".join(map(re.escape, longest_first)) + ")"
    return [part for part in re.split(pattern, text) if part]
