"""The tokenizer: Hugging Face `tokenizers` behind the few calls that reward modelling needs.

User text never becomes a special token: within a process the special tokens go by names that nobody can guess, so a prompt
that contains `<|im_end|>` or the read-out token is characters like others and cannot move the read-out. Formats write special
tokens by `mark`, templates by `encode_marked`. Everything else is as the tokenizer's file says: what stands behind a special
token is encoded with it before, since sentencepiece's kind may begin a text with a blank, and a special token may take blanks
along.
"""

import functools
import hashlib
import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from rmjax.data.tokenizer_files import Files, TokenizerError, adds_bos, read_folder, renamed, with_added, without_blank

_NAMES = "\ue000" + secrets.token_hex(16)
_OURS = {
    "normalizer": None,
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ],
    },
}
"""What stands before the merges in `from_bpe`."""


class Tokenizer:
    """Text to ids and back.

    Attributes:
      special: the special tokens' strings.
      chat_template: the model's own Jinja template, "" where none is known; it and the next five are not part of `to_json`.
      bos_token, eos_token, pad_token: the model's own, by string; "" where unknown. Nothing adds them but a format.
      adds_bos: whether the model's own tokenizer puts `bos_token` before a text that no template wrote.
      skipped_at_end: the id that the model's own code steps over at a text's end to find where it reads (`transformers`' reward
        classes: the pad id of config.json); −1 = none. Nothing is read there; `Encoder` counts the texts that it concerns.
    """

    def __init__(self, plain: tokenizers.Tokenizer, marks: Mapping[str, str]):
        """`plain` knows each special token by the name that `marks` gives it."""
        self._plain, self._marks = plain, dict(marks)
        self.special = tuple(marks)
        self.chat_template = self.bos_token = self.eos_token = self.pad_token = ""
        self.adds_bos, self.skipped_at_end = False, -1
        self._ids: dict[str, Any] = {token: plain.token_to_id(mark) for token, mark in marks.items()}
        self._hidden = frozenset(self._ids.values())
        longest_first = sorted(marks, key=len, reverse=True)  # of two that begin alike, the longer one is meant
        self._spelled = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")" if marks else "(?!)")

    @classmethod
    def from_bpe(cls, tokens: Sequence[str], merges: Sequence[str], special: Sequence[str]) -> "Tokenizer":
        """Byte-level BPE with digits split one by one (the SmolLM2 pre-tokenizer; no BOS, no prefix space)."""
        marks = _marks(special)
        vocab = {marks.get(token, token): i for i, token in enumerate(tokens)}
        pairs = [tuple(merge.split(" ", 1)) for merge in merges]
        plain = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=pairs, fuse_unk=False))  # type: ignore[arg-type]
        plain.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        plain.decoder = decoders.ByteLevel()
        plain.add_special_tokens([mark for mark in marks.values() if mark in vocab])
        return cls(plain, marks)

    @classmethod
    def from_description(cls, described: Mapping[str, Any], named: Sequence[str] = ()) -> "Tokenizer":
        """From the JSON object of a Hugging Face `tokenizer.json`; its added tokens that are special, and `named`, are ours.

        Raises:
          TokenizerError: the object is not such a one, or does not find its special tokens in every text.
        """
        try:
            special = [
                added["content"] for added in described["added_tokens"] if added["special"] or added["content"] in named
            ]
            marks = _marks(special)
            plain = tokenizers.Tokenizer.from_str(json.dumps(renamed(described, marks), ensure_ascii=False))
        except Exception as error:  # the Rust binding raises bare Exception
            raise TokenizerError(f"not a tokenizer file ({error}); get the file again") from error
        plain.no_padding()
        plain.no_truncation()
        made = cls(plain, marks)
        made._require_found()
        made.adds_bos = adds_bos(described)
        return made

    @classmethod
    def from_folder(cls, path: str | Path) -> "Tokenizer":
        """From a Hugging Face folder: `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja` and their older forms,
        sentencepiece's `tokenizer.model` among them.

        Raises:
          FileNotFoundError: no `tokenizer.json` and no `tokenizer.model`.
          TokenizerError: a file is damaged, or says what is not supported; the message names it.
        """
        files: Files = read_folder(Path(path))
        try:
            made = cls.from_description(files.described, files.named)
        except TokenizerError as error:
            raise TokenizerError(f"{Path(path) / 'tokenizer.json'}: {error}") from error
        made.chat_template, made.adds_bos = files.chat_template, files.adds_bos
        made.bos_token, made.eos_token, made.pad_token = files.bos_token, files.eos_token, files.pad_token
        return made

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Reads a file written by `save`."""
        try:
            described = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls.from_description(described)
        except (OSError, ValueError) as error:
            raise TokenizerError(f"{path}: not a tokenizer file ({error}); it is written by training") from error

    def to_json(self) -> str:
        """The text of a Hugging Face `tokenizer.json`; its special added tokens are the special ones."""
        return json.dumps(self._described(), ensure_ascii=False, indent=2)

    def save(self, path: str | Path) -> None:
        """Writes `to_json` to a file."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def _require_found(self) -> None:
        """Every mark has to become its token, wherever it stands: one that does not is text, and another one in each process."""
        found = set(self._plain.encode("x".join(["", *self._marks.values(), ""]), add_special_tokens=False).ids)
        if lost := [token for token, number in self._ids.items() if number not in found]:
            raise TokenizerError(
                f"its special tokens {', '.join(lost[:5])} are not found between letters; set `single_word` and `normalized` of "
                "these added tokens to false there"
            )

    @property
    def added(self) -> tuple[str, ...]:
        """Added tokens that are not special: a text that spells one has it."""
        hidden = set(self._marks.values())
        return tuple(t.content for t in self._plain.get_added_tokens_decoder().values() if t.content not in hidden)

    def _described(self) -> dict[str, Any]:
        return renamed(json.loads(self._plain.to_str()), {mark: token for token, mark in self._marks.items()})

    def fingerprint(self) -> str:
        """SHA-256 of what decides which ids a text becomes: tokens, merges, special tokens; what comes before them, too,
        where that is not the byte-level form of `from_bpe`."""
        described = self._described()
        merges = described["model"].get("merges", [])
        joined = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]  # as versions write them
        names = {mark: token for token, mark in self._marks.items()}
        vocab = {names.get(token, token): i for token, i in self._plain.get_vocab().items()}
        facts: list[Any] = [sorted(vocab.items()), joined, self.special]
        before = {name: described[name] for name in ("normalizer", "pre_tokenizer")}
        if before != _OURS:
            facts.append(
                [before, *(described["model"].get(name) for name in ("type", "byte_fallback", "ignore_merges"))]
            )
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        return self._plain.get_vocab_size()

    @property
    def words(self) -> int:
        """One more than the highest id that plain text can become."""
        return 1 + max(i for i in self._plain.get_vocab().values() if i not in self._hidden)

    def has(self, token: str) -> bool:
        """Whether a token of exactly this string is in the vocabulary."""
        return self._ids.get(token, self._plain.token_to_id(token)) is not None

    def token(self, number: int) -> str:
        """The string of a token; TokenizerError if there is none of this id."""
        special = {i: token for token, i in self._ids.items()}
        found = special.get(number, self._plain.id_to_token(number))
        if found is None:
            raise TokenizerError(f"no token has the id {number}; there are {self.vocab_size}")
        return found

    def id(self, token: str) -> int:
        """The id of a token given by its exact string; TokenizerError if there is none."""
        found = self._ids.get(token, self._plain.token_to_id(token))
        if found is None:
            raise TokenizerError(f"token {token!r} is not in the vocabulary; special tokens: {', '.join(self.special)}")
        return found

    def mark(self, token: str) -> str:
        """What stands for a special token in the text that `encode` is given.

        Raises:
          TokenizerError: it is none of the special tokens.
        """
        if token not in self._marks:
            raise TokenizerError(f"{token!r} is no special token; special tokens: {', '.join(self.special)}")
        return self._marks[token]

    def encode(self, text: str, after: str = "") -> list[int]:
        """Ids of plain text: no BOS, no EOS, special tokens in the text taken as ordinary characters.

        Bytes that the vocabulary lacks are left out, as `transformers` does: of SmolLM2 six control characters.

        Args:
          after: the special token that stands before it, "" = it begins the sequence; sentencepiece's kind tells the two
            apart, the byte-level kind does not.
        """
        if not after or after not in self._marks:
            return self._plain.encode(text, add_special_tokens=False).ids
        ids = self._plain.encode(self._marks[after] + text, add_special_tokens=False).ids
        return ids[ids.index(self.id(after)) + 1 :]

    def encode_continued(self, text: str) -> list[int]:
        """Ids of plain text that goes on where other text has stopped: no blank is put before it. The two share no token."""
        return self._bare.encode(text, add_special_tokens=False).ids

    @functools.cached_property
    def _bare(self) -> tokenizers.Tokenizer:
        """The same without a blank before texts; itself where there is none."""
        described = json.loads(self._plain.to_str())
        bare = without_blank(described)
        return self._plain if bare == described else tokenizers.Tokenizer.from_str(json.dumps(bare))

    def guarding(self, tokens: Sequence[str]) -> "Tokenizer":
        """The tokenizer in which these are special, too, so that no text makes them; itself where they are.

        Raises:
          TokenizerError: one is not in the vocabulary.
        """
        new = [token for token in tokens if token not in self._marks]
        if not new:
            return self
        for token in new:
            self.id(token)
        return self._like(self.from_description(with_added(self._described(), new), new))

    def limited(self, size: int) -> "Tokenizer":
        """Without the special tokens from `size` on, which the model has no embeddings of: an image's, say, or a pad token."""
        beyond = {token for token, number in self._ids.items() if number >= size}
        if not beyond:
            return self
        described = self._described()
        added = [token for token in described["added_tokens"] if token["content"] not in beyond]
        made = self._like(self.from_description({**described, "added_tokens": added}))
        for name in ("bos_token", "eos_token", "pad_token"):
            setattr(made, name, "" if getattr(self, name) in beyond else getattr(self, name))
        return made

    def _like(self, other: "Tokenizer") -> "Tokenizer":
        for name in ("chat_template", "bos_token", "eos_token", "pad_token", "adds_bos", "skipped_at_end"):
            setattr(other, name, getattr(self, name))
        return other

    def encode_marked(self, text: str, restore: Callable[[str], str] = str) -> list[int]:
        """Ids of a template's text, in which special tokens count as such; `restore` puts in what is text whatever it spells."""
        marked = self._spelled.sub(lambda found: self._marks[found[0]], text)
        return self._plain.encode(restore(marked), add_special_tokens=False).ids

    def split(self, text: str) -> list[str]:
        """The text's special tokens and what stands between them, in order; nothing empty."""
        return [part for part in self._spelled.split(text) if part]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        return self._plain.decode([i for i in ids if i not in self._hidden], skip_special_tokens=False)

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


def _marks(special: Sequence[str]) -> dict[str, str]:
    """A name each that no text contains but by a guess at 128 random bits."""
    return {token: f"{_NAMES}{i}\ue000" for i, token in enumerate(special)}
