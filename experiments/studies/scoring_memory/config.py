"""Reward models of the hub by the sizes of their config.json, and the chips that each is compiled for."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The published cases: each model on each of its slices, with rows of each length."""
    config = ConfigDict()
    config.row_tokens = (1024, 16_384)  # of a row, one for each chip
    config.models = ConfigDict()
    config.models.polar_1_8b = _model("internlm/POLAR-1_8B", {"preset": "internlm2_5_1_8b"}, [("v5e:2x2", 1)])
    config.models.polar_7b = _model(
        "internlm/POLAR-7B", {"preset": "internlm2_5_7b"}, [("v6e:2x2", 1), ("v5p:2x2x1", 1), ("v5e:2x2", 4)]
    )
    config.models.worldpm_72b = _model(
        "Qwen/WorldPM-72B", _qwen2_72b(), [("v5e:4x4", 16), ("v6e:2x4", 8), ("v5p:2x2x1", 4)]
    )
    return config


def _model(name: str, sizes: dict, slices: list[tuple[str, int]]) -> ConfigDict:
    """`slices`: a topology of `rmjax.parallel.chips`, and how many of its chips are used."""
    return ConfigDict({"name": name, "sizes": sizes, "slices": slices})


def _qwen2_72b() -> dict:
    """Of Qwen2.5-72B, with WorldPM's head of two layers; a reward model has no vocabulary head of its own."""
    return {
        "vocab_size": 152_064, "width": 8192, "depth": 80, "heads": 64, "kv_heads": 8, "head_width": 128, "mlp_width": 29_568,
        "max_positions": 131_072, "qkv_bias": True, "head": "mlp",
    }  # fmt: skip
