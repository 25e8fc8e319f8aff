"""A policy that is here: answers with their tokens and log-probabilities, drawn on the device or a mesh.

    generator = LocalGenerator(config, params, encoder, Decoding(temperature=1.0), max_new_tokens=256)
    records, dropped = generator(records, samples=8, seed=0)
    moved = dataclasses.replace(generator, params=new)  # nothing is compiled again

`params` are a decoder's, those below `backbone/` of a model that was trained here.
"""

import bisect
import contextlib
import dataclasses
import functools
import hashlib
import math
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rmjax.data.chat import TemplateError
from rmjax.data.formats import Encoder
from rmjax.data.record import Comparison
from rmjax.data.turns import refused
from rmjax.models import columns
from rmjax.models.rope import longest_text
from rmjax.models.transformer import Past, Transformer, TransformerConfig, causal_mask
from rmjax.parallel.mesh import RULES, Rules, parameter_shardings, shards
from rmjax.policy import slots as decoding_slots
from rmjax.policy.generator import Generated
from rmjax.policy.sampling import Decoding, left_pad
from rmjax.policy.slots import TRACED, Program, Rule, Slots

SHARED, ROWS = 32, 4
"""A common beginning is read once in steps of so many tokens; so many rows a prompt at least where there are enough samples."""
STEPS = 16
"""Tokens of each row between looks for stop strings."""
_UNLIMITED = 1 << 30


class Sample(NamedTuple):
    """What was drawn of an answer, the token that ended it included."""

    ids: list[int]
    log_probs: list[float]


class _Asked(NamedTuple):
    """A prompt as the policy reads it."""

    ids: list[int]
    keys_NK: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class LocalGenerator:
    """A `Generator` of a decoder's weights.

    An answer depends on the weights, the seed, the record's id, its prompt and the sample's number, whatever else is asked, and
    on whatever slots and mesh: to the rounding of sums, which decides a token once in some 10⁵.

    Raises:
      ValueError: a number or a stop that none can have, a format that no policy writes in, or a mesh that cuts tokens.
    """

    config: TransformerConfig
    params: Any = dataclasses.field(repr=False)
    encoder: Encoder
    decoding: Decoding
    max_new_tokens: int  # of an answer, the end token included
    name: str = "policy"
    stop: tuple[str | int, ...] = ()  # beside the format's end token: special tokens, ids of tokens, strings
    rule: Rule | None = None  # on logits, before the temperature; another object is compiled anew
    mesh: Mesh | None = None  # of this process; prompts over data and fsdp, weights by the table of `parallel.mesh`
    rules: Rules = RULES
    slots: int = 64  # answers drawn at once, at most (at least one on each part of the mesh's rows)

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "slots"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.encoder.form.kind == "polar":
            raise ValueError("format.kind is 'polar', which a policy does not write in; choose chat or plain")
        if "" in self.stop:
            raise ValueError('stop holds "", which every answer begins with; take it out')
        if bad := [i for i in self.stop if isinstance(i, int) and not 0 <= i < self.config.vocab_size]:
            raise ValueError(f"stop holds {bad[0]}, which is no token's id; there are {self.config.vocab_size}")
        if self.mesh is not None and shards(self.mesh, self.rules, "tokens") > 1:
            raise ValueError("mesh.context is above 1; tokens that are drawn one by one cannot be cut, so set it to 1")

    @property
    def exact(self) -> bool:
        """Whether `log_probs` are those that tokens were drawn with, as a policy gradient needs them: no rule, no top-k or top-p,
        a temperature above 0."""
        d = self.decoding
        return d.temperature > 0 and d.top_k == 0 and d.top_p == 1 and self.rule is None

    @property
    def compilations(self) -> int:
        """Programs that were compiled for this policy's architecture, decoding and mesh in this process, whatever its weights."""
        return TRACED[self._program]

    def __call__(self, records: Sequence[Comparison], samples: int, seed: int) -> Generated:
        """See `Generator`.

        Raises:
          RecordError: the template refuses a prompt.
          ValueError: no sample is asked for, or a log-probability is not finite.
        """
        if samples < 1:
            raise ValueError(f"samples is {samples}; it must be 1 or more")
        asked, dropped = {}, Counter[str]()
        for i, c in enumerate(records):
            ids = self._begun(c)
            if why := self._refused(ids):
                dropped[why] += samples
            else:
                asked[i] = _Asked(ids, np.stack([_key(seed, c, n) for n in range(samples)]))
        drawn = dict(zip(asked, self._draw(list(asked.values()), samples), strict=True)) if asked else {}
        answered = [self._answered(records[i], found, dropped) for i, found in drawn.items()]
        return Generated([c for c in answered if c.outputs], dropped)

    @functools.cached_property
    def _program(self) -> Program:
        tokenizer, end = self.encoder.tokenizer, self.encoder.form.end_token
        of_text = [tokenizer.id(token) for token in self.stop if isinstance(token, str) and token in tokenizer.special]
        ends = {*([tokenizer.id(end)] if end else []), *of_text, *(i for i in self.stop if isinstance(i, int))}
        return Program(
            self.config, self.decoding, self.max_new_tokens, tuple(sorted(ends)), self.rule, self.mesh, self.rules
        )

    @functools.cached_property
    def _strings(self) -> tuple[str, ...]:
        return tuple(s for s in self.stop if isinstance(s, str) and s not in self.encoder.tokenizer.special)

    @functools.cached_property
    def _placed(self) -> Any:
        """The parameters where they are computed with."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, self.params)
        return jax.device_put(self.params, parameter_shardings(_boxed(self.config), self.mesh, self.rules))

    def _begun(self, c: Comparison) -> list[int]:
        try:
            return self.encoder.begun(c.prompt)
        except TemplateError as error:
            raise refused(c, error) from error

    def _refused(self, ids: Sequence[int]) -> str:
        """Why a prompt cannot be answered, or nothing."""
        limit = longest_text(self.config.rope, self.config.max_positions) or self.config.max_positions
        if len(ids) + self.max_new_tokens > limit:
            return f"prompt and {self.max_new_tokens} new tokens are longer than the model's {limit} positions"
        return "" if ids else "prompt without a token"

    # --- drawing ---------------------------------------------------------------------------------------------------------

    def _draw(self, asked: Sequence[_Asked], samples: int) -> list[list[Sample]]:
        """[prompt][sample]."""
        with jax.set_mesh(self.mesh) if self.mesh is not None else contextlib.nullcontext():
            found = dict(self._finished(asked, samples))
        return [found[i] for i in range(len(asked))]

    def _finished(self, asked: Sequence[_Asked], samples: int) -> Iterator[tuple[int, list[Sample]]]:
        """(index of a prompt, its samples), as they get ready."""
        params, program = self._placed, self._program
        common = _common([one.ids for one in asked])
        before = self._prefix(common)
        waiting = deque(sorted(range(len(asked)), key=lambda i: -len(asked[i].ids)))
        shape = self._shape(len(asked), samples)
        room = len(common) + _rounded(len(asked[waiting[0]].ids) - len(common))
        slots = decoding_slots.empty(
            params, program=program, groups=shape.groups, rows=shape.rows, columns=room, samples=samples
        )
        held: dict[int, int] = {}  # group → prompt
        while held or waiting:
            free = [g for g in range(shape.groups) if g not in held]
            while waiting and free:
                chosen = {free.pop(): waiting.popleft() for _ in range(min(shape.batch, len(free), len(waiting)))}
                of_groups = {g: asked[i] for g, i in chosen.items()}
                slots = self._admitted(slots, before, len(common), of_groups, shape.batch, samples)
                held |= chosen
            slots = self._decoded(slots, min(shape.batch, len(waiting)) or shape.groups + 1)
            idle_G, ids_GNM, log_probs_GNM, count_GN = jax.device_get(
                (slots.idle_G, slots.ids_GNM, slots.log_probs_GNM, slots.count_GN)
            )
            for g in [g for g in held if idle_G[g]]:
                rows = zip(ids_GNM[g], log_probs_GNM[g], count_GN[g], strict=True)
                yield held.pop(g), [Sample(ids[:n].tolist(), values[:n].tolist()) for ids, values, n in rows]

    def _prefix(self, common: Sequence[int]) -> Past | None:
        if not common:
            return None
        return decoding_slots.prefix(self._placed, jnp.asarray([common], jnp.int32), program=self._program)

    def _admitted(
        self, slots: Slots, before: Past | None, skipped: int, chosen: dict[int, _Asked], batch: int, samples: int
    ) -> Slots:
        """Groups with their prompts, in a batch of a fixed size."""
        missing, outside = batch - len(chosen), slots.wanted_G.shape[0]
        rests = [one.ids[skipped:] for one in chosen.values()]
        prompts = left_pad(rests + [[]] * missing, _rounded(max(map(len, rests))))
        keys_BNK = np.zeros((batch, samples, 2), np.uint32)
        keys_BNK[: len(chosen)] = [one.keys_NK for one in chosen.values()]
        group_B = np.array([*chosen, *[outside] * missing], np.int32)
        wanted_B = np.array([samples] * len(chosen) + [0] * missing, np.int32)
        return decoding_slots.admit(
            self._placed, slots, before, prompts, group_B, keys_BNK, wanted_B, program=self._program
        )

    def _decoded(self, slots: Slots, leave: int) -> Slots:
        """Until so many groups are idle, or all."""
        ended_R = np.zeros(slots.sample_R.shape[0], bool)
        while True:
            steps = STEPS if self._strings else _UNLIMITED
            slots = decoding_slots.decode(
                self._placed, slots, ended_R, np.int32(steps), np.int32(leave), program=self._program
            )
            idle_G = jax.device_get(slots.idle_G)
            if idle_G.sum() >= leave or idle_G.all():
                return slots
            ended_R = self._at_stop_string(slots)

    def _at_stop_string(self, slots: Slots) -> np.ndarray:
        """Rows that have drawn a stop string."""
        ids_GNM, sample_R, tokens_R = jax.device_get((slots.ids_GNM, slots.sample_R, slots.tokens_R))
        W = len(sample_R) // len(ids_GNM)
        return np.array(
            [
                n >= 0 and self._stops(ids_GNM[r // W, n, :t].tolist())
                for r, (n, t) in enumerate(zip(sample_R, tokens_R, strict=True))
            ]
        )

    def _shape(self, prompts: int, samples: int) -> "_Shape":
        parts = shards(self.mesh, self.rules, "rows") if self.mesh is not None else 1
        asked = 1 << (prompts - 1).bit_length()
        rows = min(samples, max(ROWS, self.slots // asked), self.slots)
        groups = parts * max(1, min(self.slots // rows, asked) // parts)
        return _Shape(groups, rows, parts * max(1, groups // parts // 4))

    # --- answers ---------------------------------------------------------------------------------------------------------

    def _stops(self, ids: Sequence[int]) -> bool:
        text = self.encoder.tokenizer.decode(ids)
        return any(string in text for string in self._strings)

    def _answered(self, c: Comparison, drawn: Sequence[Sample], dropped: Counter[str]) -> Comparison:
        """The record with those answers that it may have; the others are counted."""
        if not all(math.isfinite(x) for sample in drawn for x in sample.log_probs):
            remedy = "its weights are broken, or its rule leaves nothing to draw"
            raise ValueError(f"{c.place or c.id}: a log-probability of {self.name} is not finite; {remedy}")
        known = [sample for sample in drawn if max(sample.ids) < self.encoder.tokenizer.vocab_size]
        if lost := len(drawn) - len(known):
            dropped["token that the tokenizer lacks"] += lost
        ended = [self._ended(sample) for sample in known]
        kept = {name: value for name, value in c.columns.items() if columns.extra()[name].axes == "RG"}
        new = {
            "token_ids": tuple(tuple(one.ids) for _, one, _ in ended),
            "log_probs": tuple(tuple(one.log_probs) for _, one, _ in ended),
            "truncated": tuple(float(cut) for _, _, cut in ended),
        }
        return dataclasses.replace(
            c, outputs=tuple(text for text, _, _ in ended), policies=(self.name,) * len(ended), ranks=None, scores=None,
            votes=None, columns={**kept, **new},
        )  # fmt: skip

    def _ended(self, sample: Sample) -> tuple[str, Sample, bool]:
        """(text, the tokens up to the one that ended it, whether none did). A stop string ends a sample with the token that
        completes it; the text is what stands before the string."""
        decode = self.encoder.tokenizer.decode
        if self._strings and self._stops(sample.ids):
            kept = 1 + bisect.bisect_left(range(1, len(sample.ids)), True, key=lambda n: self._stops(sample.ids[:n]))
            text = decode(sample.ids[:kept])
            first = min(at for string in self._strings if (at := text.find(string)) >= 0)
            return text[:first], Sample(sample.ids[:kept], sample.log_probs[:kept]), False
        ended = sample.ids[-1] in self._program.stop
        return decode(sample.ids[:-1] if ended else sample.ids), sample, not ended


class _Shape(NamedTuple):
    groups: int
    rows: int  # of each
    batch: int  # groups that get a prompt at once


def _common(prompts: Sequence[Sequence[int]]) -> list[int]:
    """What several prompts begin with, in steps of `SHARED`, something left of each."""
    if len(prompts) < 2:
        return []
    low, high = (list(end(map(tuple, prompts))) for end in (min, max))
    count = min(map(len, prompts)) - 1
    count = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b or i == count), count)
    return low[: count // SHARED * SHARED]


def _rounded(tokens: int) -> int:
    """16, or the next number with at most two binary digits that count: few lengths are compiled."""
    step = 1 << max(0, tokens.bit_length() - 2)
    return max(16, -(-tokens // step) * step)


def _key(seed: int, c: Comparison, sample: int) -> np.ndarray:
    """64 bits, so that two samples hardly ever draw alike."""
    digest = hashlib.sha256(f"{seed}\0{c.id}\0{sample}\0{c.prompt}".encode(errors="surrogatepass")).digest()
    return np.frombuffer(digest[:8], "<u4").astype(np.uint32)


def _boxed(config: TransformerConfig) -> Any:
    """A decoder's parameters as shapes with logical axes."""
    one = jnp.zeros((1, 1), jnp.int32)

    def all_of(model: Transformer) -> jax.Array:
        return model.logits(model(one, one, causal_mask(one == 0)))

    return jax.eval_shape(lambda: Transformer(config).init(jax.random.key(0), method=all_of))["params"]
