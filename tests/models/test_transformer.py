"""The transformer against a plain numpy one, and the properties that decoding, padding and checkpoints rely on."""

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st

from rmjax.models.lora import AdapterConfig
from rmjax.models.parameters import first_layers
from rmjax.models.rope import Rope
from rmjax.models.transformer import Transformer, TransformerConfig, attend, causal_mask

R, T = 2, 7
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True, "rope": Rope(theta=1e6)},
    "untied": {"tied_embeddings": False},
    "long": {"rope": Rope(kind="linear", factor=4.0)},
    "all": {"qkv_bias": True, "qk_norm": True, "tied_embeddings": False, "norm_epsilon": 1e-3, "kv_heads": 1},
    "mistral": {"window": 8, "output_bias": True, "mlp_bias": True},
    "qwen2, windows above": {"window": 8, "windowed": (False, True), "qkv_bias": True},
    "gemma2": {
        "window": 8,
        "windowed": (True, False),
        "activation": "gelu_tanh",
        "norm_offset": True,
        "post_norms": True,
        "embedding_scale": 5.5,
        "attention_scale": 0.3,
        "attention_softcap": 2.0,
        "logit_softcap": 3.0,
    },
    "gemma3": {
        "window": 8,
        "windowed": (True, False),
        "activation": "gelu_tanh",
        "norm_offset": True,
        "post_norms": True,
        "qk_norm": True,
        "rope": Rope(1e6, "linear", 8.0),
        "local_rope": Rope(1e4),
    },
    "smollm3": {"rotary": (True, False)},
    "phi3": {"rope": Rope(partial=0.5, attention_factor=1.2), "tied_embeddings": False},
}
"""What families of models have. Among the distances that `_inputs` has are 7 and 8: a window of 8 that is one off is seen."""


LONG = Rope(kind="longrope", original_max_positions=16, short_factors=(1.0,) * 3, long_factors=(1.0,) * 4)


# --- a transformer in numpy, float64, with loops over rows and heads -------------------------------------------------


def _numpy_logits(config, params, tokens_RT, positions_RT, mask_RTS):
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    rows = zip(tokens_RT, positions_RT, mask_RTS, strict=True)
    return np.stack([_numpy_row(config, params, *row) for row in rows])


def _numpy_row(config, params, tokens_T, positions_T, mask_TS):
    x_TD = params["embedding"]["embedding"][tokens_T] * config.embedding_scale
    for i in range(config.depth):
        layer = jax.tree.map(lambda x, i=i: x[i], params["layers"])
        y_TD = _norm(config, layer["attention_norm"], x_TD)
        y_TD = _numpy_attention(config, layer["attention"], y_TD, positions_T, mask_TS, i)
        x_TD = x_TD + (_norm(config, layer["attention_post_norm"], y_TD) if config.post_norms else y_TD)
        y_TD = _numpy_mlp(config, layer["mlp"], _norm(config, layer["mlp_norm"], x_TD))
        x_TD = x_TD + (_norm(config, layer["mlp_post_norm"], y_TD) if config.post_norms else y_TD)
    x_TD = _norm(config, params["final_norm"], x_TD)
    logits_TV = x_TD @ (params["embedding"]["embedding"].T if config.tied_embeddings else params["output"]["kernel"])
    return _capped(logits_TV, config.logit_softcap)


def _numpy_mlp(config, params, x_TD):
    gate_TF, up_TF = (_numpy_dense(params[name], x_TD) for name in ("gate", "up"))
    if config.activation == "silu":
        gate_TF = gate_TF / (1 + np.exp(-gate_TF))
    else:
        gate_TF = gate_TF / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate_TF + 0.044715 * gate_TF**3)))
    return _numpy_dense(params["down"], gate_TF * up_TF)


def _numpy_dense(params, x):
    return x @ params["kernel"] + params.get("bias", 0.0)


def _capped(x, cap):
    return cap * np.tanh(x / cap) if cap else x


def _numpy_attention(config, params, x_TD, positions_T, mask_TS, layer):
    def project(name, heads):
        return _numpy_dense(params[name], x_TD).reshape(len(x_TD), heads, config.head_width)

    windowed = config.window > 0 and (not config.windowed or config.windowed[layer])
    if windowed:
        mask_TS = mask_TS & (positions_T[:, None] - positions_T < config.window)
    rope = config.local_rope if windowed and config.local_rope else config.rope
    if config.rotary and not config.rotary[layer]:
        positions_T = np.zeros_like(positions_T)
    q_THE = project("query", config.heads)
    k_TJE, v_TJE = project("key", config.kv_heads), project("value", config.kv_heads)
    if config.qk_norm:
        q_THE, k_TJE = _norm(config, params["query_norm"], q_THE), _norm(config, params["key_norm"], k_TJE)
    out_THE = np.zeros_like(q_THE)
    for h in range(config.heads):
        j = h // (config.heads // config.kv_heads)  # heads of one key-value head are neighbors
        q_TE, k_TE = _rotate(rope, q_THE[:, h], positions_T), _rotate(rope, k_TJE[:, j], positions_T)
        scores_TS = q_TE @ k_TE.T * (config.attention_scale or 1 / np.sqrt(config.head_width))
        scores_TS = np.where(mask_TS, _capped(scores_TS, config.attention_softcap), -np.inf)
        weights_TS = np.exp(scores_TS - scores_TS.max(-1, keepdims=True))
        out_THE[:, h] = weights_TS / weights_TS.sum(-1, keepdims=True) @ v_TJE[:, j]
    return _numpy_dense(params["output"], out_THE.reshape(len(x_TD), -1))


def _norm(config, params, x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon) * (params["scale"] + config.norm_offset)


def _rotate(rope, x_TE, positions_T):
    """Pairs (e, e + d/2) of the first d as complex numbers, turned by position * theta^(-2e/d)."""
    half = int(x_TE.shape[1] * rope.partial) // 2
    angle_TE = positions_T[:, None] / rope.factor * rope.theta ** (-np.arange(half) / half)
    turned_TE = (x_TE[:, :half] + 1j * x_TE[:, half : 2 * half]) * np.exp(1j * angle_TE) * (rope.attention_factor or 1)
    return np.concatenate([turned_TE.real, turned_TE.imag, x_TE[:, 2 * half :]], axis=-1)


# --- helpers ---------------------------------------------------------------------------------------------------------


def _inputs(config, seed=0):
    """Tokens, positions with gaps and restarts, and a causal mask with random holes (the diagonal kept)."""
    random = np.random.default_rng(seed)
    tokens_RT = random.integers(0, config.vocab_size, (R, T))
    positions_RT = random.integers(0, 40, (R, T))
    mask_RTS = np.tril(random.random((R, T, T)) < 0.7) | np.eye(T, dtype=bool)
    return tokens_RT, positions_RT, mask_RTS


def _normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params, tokens_RT, positions_RT, mask_RTS):
    model = Transformer(config).bind({"params": params})
    return model.logits(model(tokens_RT, positions_RT, mask_RTS))


@functools.partial(jax.jit, static_argnums=0)
def _decode(config, params, tokens_RT, positions_RT, mask_RTS, past=None):
    return Transformer(config).apply({"params": params}, tokens_RT, positions_RT, mask_RTS, past, method="decode")


def _plain(tokens_RT):
    """(tokens, positions, mask) of whole rows from position 0."""
    positions_RT = np.broadcast_to(np.arange(tokens_RT.shape[1]), tokens_RT.shape)
    return tokens_RT, positions_RT, causal_mask(jnp.ones(tokens_RT.shape, bool))


# --- tests -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_the_numpy_transformer(tiny_config, random_params, name):
    config = dataclasses.replace(tiny_config, **VARIANTS[name])
    params, inputs = random_params(config), _inputs(config)
    want_RTV = _numpy_logits(config, params, *inputs)
    assert want_RTV.std() > 0.5  # the bound below means something
    np.testing.assert_allclose(_logits(config, params, *inputs), want_RTV, atol=1e-5 * np.abs(want_RTV).max())


@pytest.mark.parametrize("name", ["llama", "all", "gemma3"])
def test_parameter_tree(tiny_config, name):
    """Checkpoints, adapters and sharding rules name these paths; layers lie on a leading axis of length depth."""
    config = dataclasses.replace(tiny_config, **VARIANTS[name])
    init = functools.partial(Transformer(config).init, method=_both)
    variables = jax.eval_shape(init, jax.random.key(0), *_plain(jnp.zeros((1, 2), jnp.int32)))
    boxes = traverse_util.flatten_dict(variables["params"], sep="/")
    L, D, F, E = config.depth, config.width, config.mlp_width, config.head_width
    HE, JE = config.heads * E, config.kv_heads * E
    want = {
        "embedding/embedding": ((97, D), ("vocab", "embed")),
        "final_norm/scale": ((D,), ("embed",)),
        "layers/attention_norm/scale": ((L, D), ("layers", "embed")),
        "layers/mlp_norm/scale": ((L, D), ("layers", "embed")),
        "layers/attention/query/kernel": ((L, D, HE), ("layers", "embed", "heads")),
        "layers/attention/key/kernel": ((L, D, JE), ("layers", "embed", "kv_heads")),
        "layers/attention/value/kernel": ((L, D, JE), ("layers", "embed", "kv_heads")),
        "layers/attention/output/kernel": ((L, HE, D), ("layers", "heads", "embed")),
        "layers/mlp/gate/kernel": ((L, D, F), ("layers", "embed", "mlp")),
        "layers/mlp/up/kernel": ((L, D, F), ("layers", "embed", "mlp")),
        "layers/mlp/down/kernel": ((L, F, D), ("layers", "mlp", "embed")),
    }
    more = {
        "output/kernel": ((D, 97), ("embed", "vocab")),
        "layers/attention/query/bias": ((L, HE), ("layers", "heads")),
        "layers/attention/key/bias": ((L, JE), ("layers", "kv_heads")),
        "layers/attention/value/bias": ((L, JE), ("layers", "kv_heads")),
        "layers/attention/query_norm/scale": ((L, E), ("layers", "head")),
        "layers/attention/key_norm/scale": ((L, E), ("layers", "head")),
    }
    of_gemma = {
        "layers/attention_post_norm/scale": ((L, D), ("layers", "embed")),
        "layers/mlp_post_norm/scale": ((L, D), ("layers", "embed")),
        "layers/attention/query_norm/scale": ((L, E), ("layers", "head")),
        "layers/attention/key_norm/scale": ((L, E), ("layers", "head")),
    }
    want |= {"all": more, "gemma3": of_gemma}.get(name, {})
    assert {path: (box.value.shape, box.names) for path, box in boxes.items()} == want


def _both(model, tokens_RT, positions_RT, mask_RTS):
    return model.logits(model(tokens_RT, positions_RT, mask_RTS))


def test_layers_begin_different(tiny_config):
    init = jax.jit(lambda key: Transformer(tiny_config).init(key, *_plain(jnp.zeros((1, 2), jnp.int32))))
    params = init(jax.random.key(0))["params"]
    kernel_LDF = params["layers"]["mlp"]["up"]["kernel"].value
    assert not np.allclose(kernel_LDF[0], kernel_LDF[1])


def test_a_token_that_may_attend_to_nothing_gets_zero():
    q, k, v = _normal(0, 3, 1, 2, 2, 4)
    out = attend(q, k, v, jnp.array([[[False, False], [True, False]]]))
    np.testing.assert_array_equal(out[0, 0], 0.0)
    np.testing.assert_allclose(out[0, 1], v[0, 0], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_padding_stays_finite_and_touches_nothing(tiny_config, random_params, dtype):
    """One row wholly of padding, one padded right; the gradient is finite as well."""
    config = dataclasses.replace(tiny_config, dtype=dtype)
    params = jax.tree.map(jnp.asarray, random_params(config))
    tokens_RT, positions_RT, _ = _plain(_inputs(config)[0])
    valid_RT = np.array([[True] * 4 + [False] * (T - 4), [False] * T])
    mask_RTS = causal_mask(jnp.asarray(valid_RT))

    def total(params, tokens_RT):
        logits_RTV = _logits(config, params, tokens_RT, positions_RT, mask_RTS)
        return jnp.where(valid_RT[..., None], logits_RTV, 0.0).sum(), logits_RTV

    gradient = jax.jit(jax.grad(total, has_aux=True))
    grads, logits_RTV = gradient(params, tokens_RT)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((grads, logits_RTV)))
    other_RT = np.where(valid_RT, tokens_RT, (tokens_RT + 1) % config.vocab_size)
    np.testing.assert_array_equal(gradient(params, other_RT)[1][0, :4], logits_RTV[0, :4])


@settings(deadline=None, max_examples=30)
@given(valid=st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=3))
def test_causal_mask(valid):
    mask = np.asarray(causal_mask(jnp.array(valid)))
    for r, t, s in np.ndindex(mask.shape):
        assert mask[r, t, s] == (s <= t and valid[r][t] and valid[r][s])


@pytest.mark.parametrize("name", ["gemma3", "smollm3", "qwen2, windows above"])
def test_layers_that_differ_may_be_cut(tiny_config, random_params, name):
    """The first layer alone is the model whose second layer adds nothing; the second alone goes by the second's kind."""
    config = dataclasses.replace(tiny_config, **VARIANTS[name])
    params, inputs = random_params(config), _inputs(config)
    for kept, gone in ((0, 1), (1, 0)):
        silent = jax.tree.map(lambda x: x.copy(), params)
        for path in (("attention", "output"), ("mlp", "down")) if not config.post_norms else ():
            silent["layers"][path[0]][path[1]]["kernel"][gone] = 0
        for norm in ("attention_post_norm", "mlp_post_norm") if config.post_norms else ():
            silent["layers"][norm]["scale"][gone] = -1.0
        alone = {**params, "layers": jax.tree.map(lambda x, kept=kept: x[kept : kept + 1], params["layers"])}
        got = _logits(config.with_layers([kept]), alone, *inputs)
        np.testing.assert_allclose(got, _logits(config, silent, *inputs), atol=2e-5)


def test_descriptions_are_read_again(tiny_config):
    for variant in VARIANTS.values():
        config = dataclasses.replace(tiny_config, **variant, adapter=AdapterConfig("lora"))
        described = json.loads(json.dumps(dataclasses.asdict(config)))
        assert TransformerConfig.parse(described) == config
        assert hash(TransformerConfig.parse(described)) == hash(config)
    with pytest.raises(TypeError, match="ropes"):
        TransformerConfig.parse(described | {"ropes": 1})


@pytest.mark.parametrize(("scale", "rope"), [(1.0, Rope(5e5)), (4.0, Rope(5e5, "linear", 4.0))])
def test_descriptions_of_before_are_read(tiny_config, scale, rope):
    """They had a base and a scale of positions, and none of the later fields."""
    sizes = ("vocab_size", "width", "depth", "heads", "kv_heads", "head_width", "mlp_width")
    described = {name: getattr(tiny_config, name) for name in sizes} | {"rope_theta": 5e5, "rope_scale": scale}
    assert TransformerConfig.parse(described) == dataclasses.replace(tiny_config, rope=rope)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_neither_logits_nor_gradient(tiny_config, random_params, remat):
    params, inputs = jax.tree.map(jnp.asarray, random_params(tiny_config)), _inputs(tiny_config)

    def value_and_grad(config):
        return jax.jit(jax.value_and_grad(lambda p: jnp.square(_logits(config, p, *inputs)).mean()))(params)

    want, got = value_and_grad(tiny_config), value_and_grad(dataclasses.replace(tiny_config, remat=remat))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), got, want)
    assert jax.tree.all(jax.tree.map(lambda x: float(jnp.abs(x).max()) > 0, want))


def test_remat_decodes_as_well(tiny_config, random_params):
    params, inputs = random_params(tiny_config), _plain(_inputs(tiny_config)[0])
    config = dataclasses.replace(tiny_config, remat="full")
    want, got = (_decode(c, params, *inputs) for c in (tiny_config, config))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), got, want)


@pytest.mark.parametrize("name", ["llama", "all", "mistral", "gemma2"])
@pytest.mark.parametrize("cut", [1, 4, 6])
def test_decoding_after_a_past_equals_the_full_pass(tiny_config, random_params, name, cut):
    config = dataclasses.replace(tiny_config, **VARIANTS[name])
    params, (tokens_RT, positions_RT, mask_RTS) = random_params(config), _inputs(config)
    decode = functools.partial(_decode, config, params)
    _, past = decode(tokens_RT[:, :cut], positions_RT[:, :cut], mask_RTS[:, :cut, :cut])
    J, E = config.kv_heads, config.head_width
    assert past["k"].shape == (config.depth, R, J, E, cut)
    assert past["v"].shape == (config.depth, R, J, cut, E)
    got_RV, new = decode(tokens_RT[:, cut:], positions_RT[:, cut:], mask_RTS[:, cut:], past)
    assert new["k"].shape[-1] == new["v"].shape[-2] == T - cut
    np.testing.assert_allclose(got_RV, _logits(config, params, tokens_RT, positions_RT, mask_RTS)[:, -1], atol=1e-4)


def test_frozen_layers_are_the_same_model_stacked_in_two(tiny_config, random_params):
    params, (tokens_RT, positions_RT, mask_RTS) = random_params(tiny_config), _inputs(tiny_config)
    config = dataclasses.replace(tiny_config, frozen_layers=1)
    apart = first_layers(params, 2, frozen=1)
    assert apart["frozen_layers"]["mlp"]["up"]["kernel"].shape[0] == 1
    want = _logits(tiny_config, params, tokens_RT, positions_RT, mask_RTS)
    np.testing.assert_allclose(_logits(config, apart, tokens_RT, positions_RT, mask_RTS), want, atol=1e-5)
    _, past = _decode(config, apart, tokens_RT[:, :3], positions_RT[:, :3], mask_RTS[:, :3, :3])
    last, _ = _decode(config, apart, tokens_RT[:, 3:], positions_RT[:, 3:], mask_RTS[:, 3:], past)
    np.testing.assert_allclose(last, want[:, -1], atol=1e-4)
    init = functools.partial(Transformer(config).init, jax.random.key(0))
    assert "frozen_layers" in jax.eval_shape(init, *_plain(jnp.zeros((1, 2), jnp.int32)))["params"]


@pytest.mark.parametrize("tied", [True, False])
def test_bfloat16_gives_fp32_logits_of_fp32_precision(tiny_config, random_params, tied):
    config = dataclasses.replace(tiny_config, dtype="bfloat16", tied_embeddings=tied)
    params, inputs = random_params(config), _inputs(config)
    model = Transformer(config).bind({"params": params})
    hidden_RTD = model(*inputs)
    logits_RTV = model.logits(hidden_RTD)
    assert hidden_RTD.dtype == jnp.bfloat16
    assert logits_RTV.dtype == jnp.float32
    kernel_DV = params["embedding"]["embedding"].T if tied else params["output"]["kernel"]
    np.testing.assert_allclose(logits_RTV, np.asarray(hidden_RTD, np.float32) @ kernel_DV, atol=1e-4)
    exact_RTV = _logits(dataclasses.replace(config, dtype="float32"), params, *inputs)
    assert np.corrcoef(np.ravel(logits_RTV), np.ravel(exact_RTV))[0, 1] > 0.99


def test_parameters_have_their_own_dtype(tiny_config):
    config = dataclasses.replace(tiny_config, param_dtype="bfloat16", qkv_bias=True, qk_norm=True)
    init = functools.partial(Transformer(config).init, jax.random.key(0))
    leaves = jax.tree.leaves(jax.eval_shape(init, *_plain(jnp.zeros((1, 2), jnp.int32))))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_heads": 3}, r"heads \(4\) must be a multiple of kv_heads \(3\)"),
        ({"remat": "half"}, "remat is 'half'; choose one of none, dots, attention, full"),
        ({"frozen_layers": 2}, "frozen_layers is 2; it must leave one of the 2 layers"),
        ({"activation": "relu"}, "activation is 'relu'; choose one of silu, gelu_tanh"),
        ({"head": "deep"}, "head is 'deep'; choose one of linear, mlp"),
        ({"window": -1}, "window is -1; it must be 0 or more"),
        ({"window": 4, "windowed": (True,)}, "windowed says it of 1 layers; it must do so of all 2"),
        ({"rotary": (True,) * 3}, "rotary says it of 3 layers; it must do so of all 2"),
        ({"windowed": (True, False)}, "window is 0, but windowed is set; set window, too"),
        ({"local_rope": Rope()}, "window is 0, but local_rope is set"),
        ({"window": 4, "local_rope": Rope(partial=0.5)}, "local_rope.partial is 0.5 and rope.partial 1.0"),
        ({"rope": Rope(partial=0.4)}, "rope.partial is 0.4, 3 of 8 numbers; it must be an even number"),
        ({"rope": LONG}, "rope.short_factors has 3 numbers; it must have one for each of 4 pairs"),
        ({"rope": Rope(kind="dynamic", original_max_positions=4096)}, "max_positions is 8192; rope.kind=dynamic"),
        ({"attention": "pallas", "window": 4}, "attention is pallas, .* a window of 4 tokens; set model.attention"),
        ({"attention": "pallas", "attention_softcap": 50.0}, "do not have a softcap of 50.0; set model.attention to"),
    ],
)
def test_an_impossible_architecture_is_refused(tiny_config: TransformerConfig, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny_config, **change)
