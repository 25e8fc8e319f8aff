"""The policy pool: many different writers made from one language model.

A policy is a system prompt, a decoding rule and a change of the weights. POLAR (section 3.1 and appendix D.1.1) draws
its writers from 131 public models and checkpoints; here they are variants of one small model, so that anyone can make
the corpus again.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rmjax.data.messages import ASSISTANT, SYSTEM, USER, Message
from rmjax.models.transformer import TransformerConfig
from rmjax.policy.sampling import Decoding

KINDS = ("base", "decoding", "persona", "depth", "noise", "tuned")


@dataclasses.dataclass(frozen=True)
class Policy:
    """One writer."""

    name: str
    kind: str  # one of KINDS: what makes it differ
    split: str  # "seen" (may be trained on) | "unseen" (evaluation only)
    system: str = ""  # system prompt; empty = none
    examples: tuple[tuple[str, str], ...] = ()  # earlier (user, assistant) turns that show the manner
    decoding: Decoding = Decoding(1.0, 0.9, 50)  # POLAR's, appendix D.1.1
    dropped_layers: tuple[int, ...] = ()
    noise: float = 0.0  # weights become (1 - noise) W + noise * std(W) * N(0, 1), per tensor
    noise_seed: int = 0
    checkpoint: str = ""  # a tuned variant's weights, relative to the corpus workdir

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"policy {self.name}: kind is {self.kind!r}; choose one of {', '.join(KINDS)}")
        if self.split not in ("seen", "unseen"):
            raise ValueError(f"policy {self.name}: split is {self.split!r}; choose seen or unseen")

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> "Policy":
        """From a config entry, in which `decoding` is (temperature, top_p, top_k)."""
        fields = dict(row)
        if "decoding" in fields:
            fields["decoding"] = Decoding(*fields["decoding"])
        fields["dropped_layers"] = tuple(fields.get("dropped_layers", ()))
        fields["examples"] = tuple((user, assistant) for user, assistant in fields.get("examples", ()))
        return cls(**fields)

    def preamble(self) -> tuple[Message, ...]:
        """The messages before every prompt: the system prompt and the example turns; may be none."""
        system = (Message(SYSTEM, self.system),) if self.system else ()
        pairs = ((Message(USER, user), Message(ASSISTANT, assistant)) for user, assistant in self.examples)
        return system + tuple(message for pair in pairs for message in pair)


def realize(policy: Policy, config: TransformerConfig, params: Any) -> tuple[TransformerConfig, Any]:
    """The policy's architecture and weights, from those of the language model (its `checkpoint` already loaded)."""
    if policy.dropped_layers:
        config, params = drop_layers(config, params, policy.dropped_layers)
    if policy.noise:
        params = blend_noise(params, policy.noise, policy.noise_seed)
    return config, params


def drop_layers(config: TransformerConfig, params: Any, dropped: Sequence[int]) -> tuple[TransformerConfig, Any]:
    """The model without these layers (0-based; negative from the end). ValueError: no such layer, or none is left."""
    gone = {layer % config.depth for layer in dropped if -config.depth <= layer < config.depth}
    if len(gone) < len(set(dropped)) or len(gone) == config.depth:
        raise ValueError(f"cannot drop layers {tuple(dropped)} of {config.depth}; name distinct existing ones, not all")
    kept = [layer for layer in range(config.depth) if layer not in gone]
    layers = jax.tree.map(lambda x: x[jnp.array(kept)], params["layers"])
    return config.with_layers(kept), {**params, "layers": layers}


def blend_noise(params: Any, noise: float, seed: int) -> Any:
    """Every matrix of the layers W becomes (1 - noise) W + noise * std(W) * N(0, 1); norms and embeddings stay."""
    leaves, tree = jax.tree.flatten(params["layers"])
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    mixed = [
        leaf if leaf.ndim < 3 else (1 - noise) * leaf + noise * jnp.std(leaf) * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return {**params, "layers": jax.tree.unflatten(tree, mixed)}


def sequence_seed(seed: int, prompt_id: str, policy: str, sample: int) -> int:
    """What `sequence_key` is made of: 32 bits of a hash.

    Two sequences of one seed draw with the same random numbers. Each is still a right sample of its policy, and for two
    prompts nobody could tell; two of one prompt might be copies, so `experiments.sample` refuses a config in which that
    happens (one in 10⁷ prompts with 30 sequences). 64 bits would need no refusal, but draw another corpus than the shipped.
    """
    digest = hashlib.sha256(f"{seed}/{prompt_id}/{policy}/{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


def sequence_key(seed: int, prompt_id: str, policy: str, sample: int) -> jax.Array:
    """The random key of one sequence: the same whatever batch it is drawn in, so that a resumed run is exact."""
    return jax.random.key(sequence_seed(seed, prompt_id, policy, sample))
