"""Rotary position embeddings: how fast each pair of a head's numbers turns, by the kind of scaling, and the turning.

Axis letters: E head width, F pairs that are turned (E/2 where all of a head is).
"""

import dataclasses
import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Rope:
    """A kind of rotary positions, with what that kind reads; other fields are ignored by it.

    Sources: Su et al. 2021 (RoFormer); Peng et al. 2023 (YaRN); Ding et al. 2024 (LongRoPE); the others by the rules of
    `transformers` 5 (`modeling_rope_utils`).
    """

    theta: float = 10_000.0  # the base: pair i of d/2 turns by theta^(-2i/d) a token
    kind: str = "none"  # of scaling: none | linear | dynamic | llama3 | yarn | longrope
    factor: float = (
        1.0  # linear, dynamic, llama3, yarn: by how much texts may be longer; longrope: for attention_factor only
    )
    low_freq_factor: float = 1.0  # llama3: wavelengths above original_max_positions / this are scaled in full
    high_freq_factor: float = 4.0  # llama3: those below original_max_positions / this stay
    original_max_positions: int = 0  # tokens of a text before scaling; 0 = max_positions (only none, linear, dynamic)
    beta_fast: float = 32.0  # yarn: pairs that turn more often in original_max_positions stay
    beta_slow: float = 1.0  # yarn: those that turn less often are scaled in full
    truncate: bool = True  # yarn: the borders between these are rounded to whole pairs
    attention_factor: float = 0.0  # of cosine and sine; 0 = by the rule of the kind (1 but for yarn and longrope)
    mscale: float = 0.0  # yarn: with mscale_all_dim, both above 0, the attention factor is a ratio of two
    mscale_all_dim: float = 0.0
    short_factors: tuple[float, ...] = ()  # longrope: a pair each, texts up to original_max_positions
    long_factors: tuple[float, ...] = ()  # longrope: a pair each, where texts may be longer
    partial: float = 1.0  # fraction of the head width that is turned, the first of it

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"rope.kind is {self.kind!r}; choose one of {', '.join(KINDS)}")
        if self.theta <= 0 or self.factor <= 0:
            raise ValueError(f"rope.theta is {self.theta} and rope.factor {self.factor}; both must be above 0")
        if not 0 < self.partial <= 1:
            raise ValueError(f"rope.partial is {self.partial}; it must be above 0, and at most 1")
        if self.kind in ("llama3", "yarn", "longrope") and self.original_max_positions < 1:
            raise ValueError(f"rope.original_max_positions is missing; rope.kind={self.kind} needs it")
        if self.kind == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"rope.low_freq_factor is {self.low_freq_factor}; it must be below high_freq_factor, {self.high_freq_factor}"
            )

    def turned(self, head_width: int) -> int:
        """How many numbers of a head are turned."""
        return int(head_width * self.partial)

    def check(self, head_width: int, max_positions: int) -> None:
        """ValueError where it does not fit heads of this width, or texts of this length."""
        turned = self.turned(head_width)
        if self.partial < 1 and turned % 2:
            raise ValueError(
                f"rope.partial is {self.partial}, {turned} of {head_width} numbers; it must be an even number"
            )
        for name in ("short_factors", "long_factors") if self.kind == "longrope" else ():
            if len(getattr(self, name)) != turned // 2:
                raise ValueError(
                    f"rope.{name} has {len(getattr(self, name))} numbers; it must have one for each of {turned // 2} pairs"
                )
        if self.kind == "dynamic" and 0 < self.original_max_positions < max_positions:
            raise ValueError(
                f"max_positions is {max_positions}; rope.kind=dynamic changes longer texts than {self.original_max_positions} "
                "tokens by their own length, which is not supported: lower it to that"
            )


def longest_text(rope: Rope, max_positions: int) -> int:
    """Tokens above which a text's own length would change the frequencies, which here it never does: what a text reads must not
    depend on another one that shares its prefix or its batch. Longer texts are to be refused. 0 = there is no such length."""
    if rope.kind == "dynamic":
        return rope.original_max_positions or max_positions
    if rope.kind == "longrope" and max_positions <= rope.original_max_positions:
        return rope.original_max_positions
    return 0


def frequencies(rope: Rope, head_width: int, max_positions: int = 0) -> tuple[Float[Array, "F"], float]:
    """(radians a token of each pair, in fp32; the factor of cosine and sine).

    Args:
      rope: what kind.
      head_width: E; the first `rope.turned(E)` of these numbers are turned.
      max_positions: tokens that the longest text may have. It decides for all texts, shorter ones too: longrope takes the long
        factors above `original_max_positions`, dynamic raises theta above them. 0 = no more than `original_max_positions`.
    """
    d = rope.turned(head_width)
    return _SCALED[rope.kind](rope, d, max_positions), _attention_factor(rope)


def rotate(
    x_RTHE: Float[Array, "R T H E"], positions_RT: Int[Array, "R T"], frequency_F: Float[Array, "F"],
    attention_factor: Float[Array, ""] | float = 1.0,
) -> Float[Array, "R T H E"]:  # fmt: skip
    """Turns pair (i, i + F) of each head by position · frequency, angles in fp32 (RoFormer eq. 34, half-split as in HF's Llama);
    the numbers from 2 F on stay."""
    turned = 2 * frequency_F.shape[-1]
    x, rest = (x_RTHE, None) if turned == x_RTHE.shape[-1] else (x_RTHE[..., :turned], x_RTHE[..., turned:])
    angle_RT1F = positions_RT[..., None, None] * frequency_F
    cos, sin = jnp.cos(angle_RT1F), jnp.sin(angle_RT1F)
    if not (isinstance(attention_factor, float) and attention_factor == 1.0):
        cos, sin = cos * attention_factor, sin * attention_factor
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    out = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
    return out if rest is None else jnp.concatenate([out, rest], axis=-1)


def _plain(rope: Rope, d: int, max_positions: int = 0, theta: float = 0.0) -> Array:
    half = d // 2
    return (theta or rope.theta) ** (-jnp.arange(half, dtype=jnp.float32) / half)


def _linear(rope: Rope, d: int, max_positions: int) -> Array:
    return _plain(rope, d) / rope.factor


def _dynamic(rope: Rope, d: int, max_positions: int) -> Array:
    original = rope.original_max_positions or max_positions
    if max_positions <= original:
        return _plain(rope, d)
    stretch = rope.factor * max_positions / original - (rope.factor - 1)
    return _plain(rope, d, theta=rope.theta * stretch ** (d / (d - 2)))


def _llama3(rope: Rope, d: int, max_positions: int) -> Array:
    plain_F = _plain(rope, d)
    turns_F = rope.original_max_positions * plain_F / (2 * math.pi)  # in a text of the original length
    between_F = (turns_F - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept_F = jnp.clip(between_F, 0.0, 1.0)
    return (1 - kept_F) * plain_F / rope.factor + kept_F * plain_F


def _yarn(rope: Rope, d: int, max_positions: int) -> Array:
    def pair(turns: float) -> float:
        """The pair, a real number, that turns so often in a text of the original length."""
        return d * math.log(rope.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair(rope.beta_fast), pair(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d - 1)
    scaled_F = jnp.clip((jnp.arange(d // 2, dtype=jnp.float32) - low) / max(high - low, 0.001), 0.0, 1.0)
    plain_F = _plain(rope, d)
    return plain_F / rope.factor * scaled_F + plain_F * (1 - scaled_F)


def _longrope(rope: Rope, d: int, max_positions: int) -> Array:
    longer = max_positions > rope.original_max_positions
    return _plain(rope, d) / jnp.asarray(rope.long_factors if longer else rope.short_factors, jnp.float32)


_SCALED: dict[str, Callable[[Rope, int, int], Array]] = {
    "none": _plain, "linear": _linear, "dynamic": _dynamic, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope,
}  # fmt: skip
KINDS = tuple(_SCALED)


def _attention_factor(rope: Rope) -> float:
    if rope.attention_factor:
        return float(rope.attention_factor)
    if rope.kind == "longrope" and rope.factor > 1:
        return math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_max_positions))
    if rope.kind != "yarn":
        return 1.0
    if rope.mscale and rope.mscale_all_dim:
        return _mscale(rope.factor, rope.mscale) / _mscale(rope.factor, rope.mscale_all_dim)
    return _mscale(rope.factor, 1.0)


def _mscale(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
