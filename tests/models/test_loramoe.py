"""LoRAMoE: against plain LoRA and a loop over experts, its routers, and that it shards."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.models import loramoe
from rmjax.models.adapters import adapted
from rmjax.models.lora import AdapterConfig, merged
from rmjax.models.loramoe import ROUTING, WORD, kept_by
from rmjax.models.parameters import count, flat, nested, warm_start
from rmjax.models.reward import RewardTransformer
from rmjax.parallel.mesh import make_mesh, parameter_shardings
from rmjax.train.state import initial_params
from tests.models.adapting import EVERY, PAIRS, experts, moved, rewards, small, started


def routed(model, params, **kwargs):
    """(rewards, what the routers wrote)."""
    run = jax.jit(lambda p: model.apply({"params": p}, PAIRS, mutable=[ROUTING], **kwargs))
    out, written = run(params)
    return np.asarray(out), {path: np.asarray(value[0]) for path, value in flat(written.get(ROUTING, {})).items()}


@pytest.mark.parametrize("router", ["linear", "block"])
def test_identity_at_the_start(router):
    base, base_params = started(small())
    model, params = started(small(adapter=experts(pattern=EVERY, router=router)))
    params = warm_start(params, base_params, may_miss="/lora_")
    np.testing.assert_allclose(rewards(model, params), rewards(base, base_params), atol=1e-6)
    assert {p for p in flat(params) if "/lora_" not in p} == set(flat(base_params))


@pytest.mark.parametrize(("router", "dropout"), [("linear", 0.0), ("block", 0.0), ("linear", 0.3)])
def test_one_expert_is_plain_lora(router, dropout):
    lora, params = started(small(adapter=AdapterConfig("lora", EVERY, rank=2, alpha=6.0, dropout=dropout)))
    params = moved(params)
    one = RewardTransformer(small(adapter=experts(pattern=EVERY, experts=1, router=router, dropout=dropout)))
    _, shapes = started(one.config)
    own = {p: x[:, None] if "lora_" in p else x for p, x in flat(params).items()}
    routers = {p: x for p, x in flat(shapes).items() if p.endswith("lora_router")}
    assert len(routers) == (7 if router == "linear" else 2)
    rngs = {"dropout": jax.random.key(5)}
    found, wanted = (rewards(*given, rngs=rngs) for given in ((one, nested(own | routers)), (lora, params)))
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert (np.abs(found - rewards(lora, params)).max() > 1e-3) == bool(dropout)


class Block(nn.Module):
    """Two Dense of one input, the second of another width, then a third of theirs."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, use_bias=False, name="down")(
            nn.Dense(6, use_bias=False, name="gate")(x) * nn.Dense(6, use_bias=False, name="up")(x)
        )


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def one_by_one(x, dense, router, scale, top_k):
    """A loop over experts, as the formula is written."""
    logits = x.astype(np.float64) @ router
    if top_k:
        logits = np.where(logits >= np.sort(logits, -1)[..., -top_k, None], logits, -np.inf)
    weights, out = softmax(logits), x @ dense["kernel"]
    for n in range(weights.shape[-1]):
        out = out + scale * weights[..., n, None] * (x @ dense["lora_a"][n] @ dense["lora_b"][n])
    return out, weights


@pytest.mark.parametrize(("router", "top_k"), [("linear", 0), ("block", 0), ("linear", 1), ("block", 2)])
def test_one_einsum_is_the_loop_over_experts(router, top_k):
    config = experts(pattern="(gate|up|down)$", experts=4, router=router, top_k=top_k)
    x = np.random.default_rng(1).standard_normal((2, 3, 5)).astype(np.float32)
    with adapted(config):
        params = nn.meta.unbox(Block().init(jax.random.key(0), x)["params"])
    noise = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: noise.standard_normal(leaf.shape).astype(np.float32), params)
    with adapted(config):
        found, written = Block().apply({"params": params}, x, mutable=[ROUTING])
    own = params if router == "linear" else dict.fromkeys(("gate", "up", "down"), params)
    gate, gate_weights = one_by_one(x, params["gate"], own["gate"]["lora_router"], 3.0, top_k)
    up, _ = one_by_one(x, params["up"], own["up"]["lora_router"], 3.0, top_k)
    if router == "linear":
        wanted, _ = one_by_one(gate * up, params["down"], own["down"]["lora_router"], 3.0, top_k)
    else:  # all three weigh by what the block was given
        wanted = gate * up @ params["down"]["kernel"]
        for n in range(4):
            wanted = wanted + 3.0 * gate_weights[..., n, None] * (
                gate * up @ params["down"]["lora_a"][n] @ params["down"]["lora_b"][n]
            )
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3)
    routing = {p: v[0] for p, v in flat(written[ROUTING]).items()}
    assert set(routing) == ({"gate/weights", "up/weights", "down/weights"} if router == "linear" else {"weights"})
    np.testing.assert_allclose(routing["gate/weights" if router == "linear" else "weights"], gate_weights, atol=1e-5)
    assert np.all(np.sum(gate_weights > 0, -1) == (top_k or 4))


def test_routing_weights_are_fp32_and_sum_to_one():
    model, params = started(small(dtype="bfloat16", adapter=experts()))
    _, routing = routed(model, moved(params))
    assert {path.removeprefix("backbone/layers/") for path in routing} == {
        f"mlp/{n}/weights" for n in ("gate", "up", "down")
    }
    for weights_LRTN in routing.values():
        assert weights_LRTN.shape == (2, 2, 16, 3) and weights_LRTN.dtype == np.float32
        np.testing.assert_allclose(weights_LRTN.sum(-1), 1, atol=1e-6)


def test_nothing_is_written_unless_asked_for():
    model, params = started(small(adapter=experts()))
    np.testing.assert_allclose(routed(model, params)[0], rewards(model, params), atol=1e-6)
    assert set(jax.eval_shape(lambda: model.init(jax.random.key(0), PAIRS)).keys()) == {"params", ROUTING}


def test_the_task_moves_the_router_only_once_b_is_not_zero():
    model, params = started(small(adapter=experts()))
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(model.apply({"params": p}, PAIRS) ** 2)))

    def of(params, name):
        return max(float(jnp.abs(x).max()) for p, x in flat(gradient(params)).items() if p.endswith(name))

    assert of(params, "lora_router") == 0 and of(params, "lora_a") == 0 and of(params, "lora_b") > 1e-4
    assert of(moved(params), "lora_router") > 1e-4


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_experts_keep_inputs_at_the_rate_and_independently(rate):
    """Ten experts take two words; whatever others keep, an expert keeps 1 − rate (5 standard deviations allowed)."""
    count, samples = 10, 200_000
    words = np.asarray(kept_by(jax.random.key(3), (samples,), count, rate))
    assert words.shape == (2, samples)
    kept_NS = np.stack([(words[n // WORD] >> (n % WORD)) & 1 for n in range(count)]).astype(bool)
    keep = 1 - rate

    def close(found, wanted, of=samples):
        assert abs(found - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / of)

    for n in range(count):
        close(kept_NS[n].mean(), keep)
        for m in range(n):
            close((kept_NS[n] & kept_NS[m]).mean(), keep**2)
            close((~kept_NS[n] & ~kept_NS[m]).mean(), rate**2)
    for same in range(WORD + 1):  # of one word, how many keep a number: binomial
        close((kept_NS[:WORD].sum(0) == same).mean(), math.comb(WORD, same) * keep**same * rate ** (WORD - same))


def test_gradients_under_dropout_are_those_of_the_parts():
    """Against a loop over experts, each with its own part of x."""
    N, D, K, rate, key = 3, 8, 2, 0.4, jax.random.key(4)
    x, a = jax.random.normal(key, (2, 5, D)), jax.random.normal(jax.random.key(1), (N, D, K))
    kept = kept_by(key, x.shape, N, rate)[0]

    def plain(x, a):
        return jnp.stack([jnp.where((kept >> n) & 1, x / (1 - rate), 0) @ a[n] for n in range(N)], -2)

    def found(x, a):
        return loramoe._hidden_of_parts(x, a, rate, key)

    np.testing.assert_allclose(found(x, a), plain(x, a), atol=1e-6)
    one, other = (jax.grad(lambda x, a: jnp.sum(f(x, a) ** 3), (0, 1))(x, a) for f in (found, plain))  # noqa: B023
    for ours, wanted in zip(one, other, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5)


def test_dropout_is_drawn_for_each_expert():
    """Experts with equal weights give different outputs when each drops its own inputs."""
    config = experts(pattern="up", experts=2, dropout=0.5)

    class One(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4, use_bias=False, name="up")(x)

    x = np.ones((1, 8), np.float32)
    with adapted(config):
        params = nn.meta.unbox(One().init(jax.random.key(0), x)["params"])
    a = np.ones((2, 8, 2), np.float32)
    only = [np.stack([np.full((2, 4), n == m, np.float32) for m in range(2)]) for n in range(2)]
    outs = []
    for b in only:
        own = {"kernel": np.zeros((8, 4), np.float32), "lora_a": a, "lora_b": b, "lora_router": np.zeros((8, 2))}
        with adapted(config):
            outs.append(np.asarray(One().apply({"params": {"up": own}}, x, rngs={"dropout": jax.random.key(2)})))
    assert params["up"]["lora_a"].shape == a.shape
    assert np.abs(outs[0] - outs[1]).max() > 0


@pytest.mark.parametrize(("N", "expected"), [(6, 38_486_016), (8, 51_314_688)])
def test_parameter_counts_on_llama_2_7b(N, expected):
    config = small(
        vocab_size=32000, width=4096, depth=32, heads=32, kv_heads=32, head_width=128, mlp_width=11008,
        adapter=AdapterConfig("loramoe", experts=N, rank=4),
    )  # fmt: skip
    shapes = nn.meta.unbox(jax.eval_shape(lambda: initial_params(RewardTransformer(config), 0)))
    assert count({p: x for p, x in flat(shapes).items() if "lora_" in p}) == expected


def test_experts_shard_on_the_tensor_axis():
    boxed = jax.eval_shape(lambda: initial_params(RewardTransformer(small(adapter=experts())), 0))
    specs = {p: tuple(s.spec) for p, s in flat(nn.meta.unbox(parameter_shardings(boxed, make_mesh({})))).items()}
    up = "backbone/layers/mlp/up/"
    assert specs[up + "lora_a"] == (None, "tensor", "fsdp", None)
    assert specs[up + "lora_b"] == (None, "tensor", None, None)
    assert specs[up + "lora_router"] == (None, "fsdp", None)


def test_the_same_under_remat_and_with_frozen_layers():
    layers = {"window": 2, "windowed": (True, True, False), "rotary": (True, False, True)}  # that differ
    config = small(depth=3, frozen_layers=1, **layers, post_norms=True, adapter=experts(router="block"))
    model, params = started(config)
    params = moved(params)
    out, routing = routed(model, params)
    assert {x.shape for x in routing.values()} == {(2, 2, 16, 3)}
    again, _ = routed(RewardTransformer(dataclasses.replace(config, remat="full")), params)
    np.testing.assert_allclose(out, again, atol=1e-5)


def test_it_cannot_be_merged():
    config = small(adapter=experts())
    with pytest.raises(ValueError, match="a LoRAMoE adapter cannot be merged: its routers weigh the experts anew"):
        merged(started(config)[1], config.adapter)
