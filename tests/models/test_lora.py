"""LoRA, rsLoRA, DoRA: identity, formulas, merging, where they are put and what they refuse."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.models.adapters import adapted
from rmjax.models.forest import attention_mask
from rmjax.models.lora import AdapterConfig, _decomposed, dropped, masked, merged
from rmjax.models.parameters import flat, nested, warm_start
from rmjax.models.reward import RewardTransformer
from rmjax.models.transformer import Transformer, causal_mask
from rmjax.parallel.mesh import make_mesh, parameter_shardings
from rmjax.train.state import initial_params
from tests.models.adapting import EVERY, GEMMA, PAIRS, moved, rewards, small, started

FAMILY = ("lora", "rslora", "dora")


@pytest.mark.parametrize(("kind", "changes"), [*((kind, {"qkv_bias": True}) for kind in FAMILY), ("lora", GEMMA)])
def test_identity_at_the_start_and_the_base_tree_unchanged(kind, changes):
    base, base_params = started(small(**changes))
    model, params = started(small(**changes, adapter=AdapterConfig(kind, EVERY)))
    own = {p for p in flat(params) if "/lora_" in p}
    assert len(own) == 7 * (3 if kind == "dora" else 2)
    assert {p for p in flat(params)} - own == set(flat(base_params))
    params = warm_start(params, base_params, may_miss="/lora_")
    np.testing.assert_allclose(rewards(model, params), rewards(base, base_params), atol=1e-6)
    assert np.abs(rewards(model, moved(params)) - rewards(base, base_params)).max() > 1e-2


def one_dense(kind, x, rank=2, alpha=3.0):
    """The parts of the first layer's `up` for the formulas: kernel, a, b, offset, and what the adapted module gives."""

    class Layers(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(5, name="up")(x)

    def run(params, x):
        with adapted(AdapterConfig(kind, "up", rank, alpha)):
            return Layers().apply({"params": params}, x)

    with adapted(AdapterConfig(kind, "up", rank, alpha)):
        params = nn.meta.unbox(Layers().init(jax.random.key(0), x)["params"])
    noise = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: noise.standard_normal(leaf.shape).astype(np.float32), params)
    return params["up"], np.asarray(run(params, x))


@pytest.mark.parametrize(("kind", "scale"), [("lora", 3 / 2), ("rslora", 3 / np.sqrt(2)), ("dora", 3 / 2)])
def test_the_formulas(kind, scale):
    x = np.random.default_rng(1).standard_normal((4, 7)).astype(np.float32)
    p, found = one_dense(kind, x)
    v = p["kernel"] + scale * p["lora_a"] @ p["lora_b"]
    if kind == "dora":
        magnitude = np.linalg.norm(p["kernel"], axis=0) + p["lora_magnitude"]
        v = v * magnitude / np.linalg.norm(v, axis=0)
    np.testing.assert_allclose(found, x @ v + p["bias"], rtol=1e-4, atol=1e-5)


def test_the_start_of_a_is_uniform_in_the_official_bounds():
    _, params = started(small(adapter=AdapterConfig("lora", rank=16)))
    a = np.asarray(params["backbone"]["layers"]["mlp"]["down"]["lora_a"])  # 48 inputs
    assert a.shape == (2, 48, 16)
    assert np.abs(a).max() == pytest.approx(48**-0.5, rel=0.02) and np.abs(a).max() <= 48**-0.5
    assert a.std() == pytest.approx((3 * 48) ** -0.5, rel=0.05)
    assert not np.array_equal(a[0], a[1])


def test_no_gradient_through_the_norm_of_dora():
    """With the norm held constant the gradient of b is linear in b's cotangent: s · aᵀ xᵀ g · m / ‖V‖."""
    x = np.random.default_rng(1).standard_normal((4, 7)).astype(np.float32)
    p, _ = one_dense("dora", x)

    def through(b):
        v, ratio = _decomposed(p["kernel"], p["lora_a"], b, p["lora_magnitude"], 1.5)
        return jnp.sum(ratio) + jnp.sum(v)

    assert not np.any(jax.grad(through)(p["lora_b"]))


@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.parametrize("frozen", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_merged_is_the_same_model_without_adapter(kind, frozen):
    config = small(frozen_layers=frozen, adapter=AdapterConfig(kind, EVERY))
    model, params = started(config)
    params = moved(params)
    plain = merged(params, config.adapter)
    base = RewardTransformer(dataclasses.replace(config, adapter=None))
    assert flat(plain).keys() == flat(started(base.config)[1]).keys()
    np.testing.assert_allclose(rewards(base, plain), rewards(model, params), atol=2e-5)
    unmerged = {path: leaf for path, leaf in flat(params).items() if "/lora_" not in path}
    assert np.abs(rewards(base, plain) - rewards(base, nested(unmerged))).max() > 1e-2


def test_frozen_layers_have_no_adapter():
    _, params = started(small(depth=3, frozen_layers=1, adapter=AdapterConfig("lora")))
    own = {p: x.shape for p, x in flat(params).items() if "lora_" in p}
    assert {p.split("/")[1] for p in own} == {"layers"}
    assert own["backbone/layers/mlp/up/lora_a"] == (2, 32, 4)


def test_the_pattern_chooses():
    _, params = started(small(adapter=AdapterConfig("lora", "attention/(query|value)")))
    assert {p.split("/")[-2] for p in flat(params) if "lora_" in p} == {"query", "value"}


@pytest.mark.parametrize("remat", ["dots", pytest.param("full", marks=pytest.mark.slow)])
def test_the_same_under_remat(remat):
    """Values and gradients."""
    model, params = started(small(adapter=AdapterConfig("dora", EVERY)))
    params = moved(params)
    again = RewardTransformer(dataclasses.replace(model.config, remat=remat))
    one, other = (
        jax.jit(jax.grad(lambda p, m=m: jnp.sum(m.apply({"params": p}, PAIRS) ** 2)))(params) for m in (model, again)
    )
    for path, leaf in flat(one).items():
        np.testing.assert_allclose(leaf, flat(other)[path], rtol=1e-3, atol=1e-4, err_msg=path)


def test_dropout_acts_in_training_only():
    model, params = started(small(adapter=AdapterConfig("lora", dropout=0.5)))
    params = moved(params)
    still = rewards(model, params)
    one, other = (rewards(model, params, rngs={"dropout": jax.random.key(k)}) for k in (0, 1))
    assert np.abs(one - still).max() > 1e-3 and np.abs(one - other).max() > 1e-3
    np.testing.assert_array_equal(still, rewards(model, params))


def test_a_pattern_means_the_same_matrices_in_a_reward_model_and_in_its_decoder():
    """The decoder alone, as in sampling, has shorter paths."""
    model, params = started(small(adapter=AdapterConfig("lora", "^backbone/layers/attention/|mlp/up$", rank=2)))
    params = moved(params)
    whole = model.apply({"params": params}, PAIRS, method="hidden")
    inputs = PAIRS.tokens_RT, PAIRS.positions_RT, attention_mask(PAIRS.group_RT, PAIRS.branch_RT)
    alone = Transformer(model.config).apply({"params": params["backbone"]}, *inputs)
    np.testing.assert_allclose(alone, whole, atol=1e-6)
    untouched = Transformer(dataclasses.replace(model.config, adapter=None)).apply(
        {"params": params["backbone"]}, *inputs
    )
    assert np.abs(untouched - whole).max() > 1e-2


def test_dropout_in_bf16_rounds_once():
    """The divisor 0.9 is 0.8984 in bf16."""
    assert masked(jnp.bfloat16(3.0), jnp.array(True), 0.1) == jnp.bfloat16(3.0 / 0.9) != jnp.bfloat16(3.0) / 0.9
    assert masked(jnp.bfloat16(3.0), jnp.array(False), 0.1) == 0


def test_dropout_keeps_the_mean():
    class Drop(nn.Module):
        def __call__(self, x):
            return dropped(self, x, 0.25)

    out = np.asarray(Drop().apply({}, jnp.ones((200, 200)), rngs={"dropout": jax.random.key(0)}))
    assert [float(x) for x in np.unique(out)] == pytest.approx([0.0, 4 / 3])
    assert out.mean() == pytest.approx(1.0, abs=0.02)


def test_the_adapter_is_fp32_on_a_bf16_base():
    config = small(dtype="bfloat16", param_dtype="bfloat16", adapter=AdapterConfig("dora", EVERY))
    model, params = started(config)
    dtypes = {p: str(x.dtype) for p, x in flat(params).items()}
    assert all(d == ("float32" if "lora_" in p or p.startswith("head/") else "bfloat16") for p, d in dtypes.items())
    assert merged(params, config.adapter)["backbone"]["layers"]["mlp"]["up"]["kernel"].dtype == "bfloat16"
    assert np.isfinite(rewards(model, moved(params))).all()


def test_decoding_uses_the_adapter():
    config = small(adapter=AdapterConfig("lora", EVERY))
    _, params = started(config)
    params = moved(params)["backbone"]
    ids = jnp.array([[3, 1, 4, 1]])
    args = ids, jnp.arange(4)[None], causal_mask(ids > 0)
    logits, _ = Transformer(config).apply({"params": params}, *args, method="decode")
    whole = Transformer(config).apply({"params": params}, *args)
    np.testing.assert_allclose(
        logits, Transformer(config).apply({"params": params}, whole, method="logits")[:, -1], atol=1e-4
    )
    base = Transformer(dataclasses.replace(config, adapter=None))
    assert np.abs(logits - base.apply({"params": params}, *args, method="decode")[0]).max() > 1e-2


def test_sharded_like_the_kernel():
    model = RewardTransformer(small(adapter=AdapterConfig("dora")))
    boxed = jax.eval_shape(lambda: initial_params(model, 0))
    specs = {p: tuple(s.spec) for p, s in flat(nn.meta.unbox(parameter_shardings(boxed, make_mesh({})))).items()}
    up = "backbone/layers/mlp/up/"
    assert specs[up + "kernel"] == (None, "fsdp", "tensor")
    assert specs[up + "lora_a"] == (None, "fsdp", None) and specs[up + "lora_b"] == (None, None, "tensor")
    assert specs[up + "lora_magnitude"] == (None, "tensor")


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"kind": "lara"}, "adapter.kind is 'lara'; choose one of lora, rslora, dora, loramoe"),
        ({"kind": "loramoe", "router": "layer"}, "adapter.router is 'layer'; choose one of linear, block"),
        ({"kind": "lora", "rank": 0}, "adapter.rank is 0 and experts 1; both must be 1 or more"),
        ({"kind": "lora", "experts": 2}, "adapter.kind is lora: experts and top_k are of loramoe only"),
        ({"kind": "loramoe", "experts": 2, "top_k": 3}, "adapter.top_k is 3; give 1 to 2 experts, or 0 for all"),
        ({"kind": "lora", "dropout": 1.0}, "adapter.dropout is 1.0"),
        ({"kind": "lora", "pattern": "mlp/("}, r"adapter.pattern is 'mlp/\(', not a regular expression"),
    ],
)
def test_values_that_no_adapter_can_have(adapter, message):
    with pytest.raises(ValueError, match=message):
        AdapterConfig(**adapter)


def test_a_pattern_that_matches_nothing_lists_the_near_misses_first():
    with pytest.raises(
        ValueError, match=r"'mlp/up_proj' and matches no Dense; nearest: backbone/layers/mlp/up, "
    ) as raised:
        started(small(adapter=AdapterConfig("lora", "mlp/up_proj")))
    assert str(raised.value).count("backbone/layers/") == 7


def test_a_rank_above_the_width_names_the_matrix():
    message = r"adapter.rank is 33, above the width of backbone/layers/mlp/gate \(32 to 48\); lower it"
    with pytest.raises(ValueError, match=message):
        started(small(adapter=AdapterConfig("lora", rank=33)))
