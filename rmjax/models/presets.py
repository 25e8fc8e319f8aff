"""Architectures by name, for random weights and for compiling ahead of time."""

from rmjax.models.rope import Rope
from rmjax.models.transformer import TransformerConfig

# Those of InternLM2.5's base models as POLAR takes them: no vocabulary head, so `tied_embeddings` adds none. Sources:
# internlm/POLAR-7B's config.json; for 1.8B those of internlm2-1_8b-reward (same sizes; its rope_theta is of that generation).
# "Dynamic" RoPE scaling is inactive below max_positions.
PRESETS: dict[str, TransformerConfig] = {
    "internlm2_5_1_8b": TransformerConfig(
        vocab_size=92_544, width=2048, depth=24, heads=16, kv_heads=8, head_width=128, mlp_width=8192,
        rope=Rope(theta=1e6), max_positions=32_768,
    ),
    "internlm2_5_7b": TransformerConfig(
        vocab_size=92_544, width=4096, depth=32, heads=32, kv_heads=8, head_width=128, mlp_width=14_336,
        rope=Rope(theta=5e7), max_positions=262_144,
    ),
}  # fmt: skip
