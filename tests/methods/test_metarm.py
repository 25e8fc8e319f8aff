"""MetaRM: a plain reference, a quadratic by hand, what η = 0 and warm-up give, accumulation, and what may not leak."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmjax.losses.balance import Balance
from rmjax.methods import metarm as meta
from rmjax.methods.adapters import balanced
from rmjax.methods.metarm import discrimination
from rmjax.methods.preference import preference
from rmjax.models.lora import AdapterConfig
from rmjax.models.parameters import flat, merge, split
from rmjax.parallel.mesh import make_mesh
from rmjax.train import gradient
from rmjax.train.optimizer import adamw
from rmjax.train.state import State, compile_step, make_state, make_step, state_shardings
from tests.compiling import AS_USERS
from tests.methods import metarm_reference as meta_reference
from tests.models.adapting import moved, started

KEY = jax.random.key(0)
TRAINABLE = "layers|final_norm|head"
RATE = 1e-3
ADAM = meta.Adam(lambda step: RATE, b1=0.9, b2=0.95)
FACTORS = {
    "plain": lambda eta: meta.plain(eta),
    "parameter_norm": lambda eta: meta.parameter_norm(eta),
    "step_norm": lambda eta: meta.step_norm(eta, ADAM),
    "preconditioned": lambda eta: meta.preconditioned(eta, ADAM),
}
every_mode = pytest.mark.parametrize("mode", FACTORS)


def assert_close(one, other, tolerance=1e-6):
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    for path in one:
        np.testing.assert_allclose(one[path], other[path], rtol=tolerance, atol=tolerance, err_msg=path)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def mean(term) -> float:
    return float(term[0] / term[1])


# --- a toy: two quadratics, whose step is known by hand ----------------------------------------------------------------

A = np.array([[3.0, 1.0, 0.0], [1.0, 2.0, -0.5], [0.0, -0.5, 1.0]], np.float32)
B = np.array([[-1.0, 0.3, 0.2], [0.3, 0.5, 0.0], [0.2, 0.0, -2.0]], np.float32)
THETA = np.array([0.5, -1.0, 2.0], np.float32)


def quadratic(matrix, slope=0.0):
    """½ θᵀMθ + slope · Σθ, times the batch's one number."""

    def form(params, batch, rng):
        theta = params["w"]
        value = 0.5 * theta @ matrix @ theta + slope * jnp.sum(theta)
        return {"loss": (value * batch, jnp.float32(1)), "draw": (jax.random.uniform(rng), jnp.float32(1))}

    return form


def toy_state(count=3):
    """Moments as after some steps."""
    adam = optax.ScaleByAdamState(
        jnp.int32(count), {"w": jnp.array([0.1, -0.2, 0.05])}, {"w": jnp.array([0.04, 0.01, 0.25])}
    )
    return State(jnp.int32(count), {"w": jnp.asarray(THETA)}, {}, (optax.EmptyState(), (adam,)), None)


def toy(mode, eta, **options):
    """(gradient, terms) of the wrapped step on the quadratics."""
    outer, inner = gradient.plain(quadratic(A)), gradient.plain(quadratic(B, slope=0.7))
    wrapped = meta.meta(outer, inner, FACTORS[mode](eta), **options)
    batch, state = {"preference": jnp.float32(1), "meta": jnp.float32(1)}, toy_state()
    return jax.jit(wrapped)(state.trainable, {}, batch, KEY, state)


def by_hand(mode, eta):
    """θ' in numpy."""
    rising = B @ THETA + 0.7
    mu, nu = np.array([0.1, -0.2, 0.05]) / (1 - 0.9**3), np.array([0.04, 0.01, 0.25]) / (1 - 0.95**3)
    factor = {
        "plain": 1.0,
        "parameter_norm": np.linalg.norm(THETA) / np.linalg.norm(rising),
        "step_norm": RATE * np.linalg.norm(mu / np.sqrt(nu)) / np.linalg.norm(rising),
        "preconditioned": 1 / (np.sqrt(nu) + 0.1 * np.sqrt(nu.mean())),
    }[mode]
    return THETA + eta * factor * rising


@every_mode
def test_on_a_quadratic_it_is_the_hand_calculation(mode):
    eta = 0.3
    found, terms = toy(mode, eta)
    ascended = by_hand(mode, eta)
    np.testing.assert_allclose(found["w"], A @ ascended, rtol=1e-5)
    rising = B @ THETA + 0.7
    assert mean(terms["meta_ascent"]) == pytest.approx(np.linalg.norm(ascended - THETA), rel=1e-3)
    assert mean(terms["meta_gradient_norm"]) == pytest.approx(np.linalg.norm(rising), rel=1e-5)
    cosine = rising @ A @ ascended / np.linalg.norm(rising) / np.linalg.norm(A @ ascended)
    assert mean(terms["meta_cosine"]) == pytest.approx(cosine, rel=1e-3)
    assert mean(terms["meta_difference"]) == pytest.approx(THETA @ B @ THETA / 2 + 0.7 * THETA.sum(), rel=1e-5)
    assert mean(terms["loss"]) == pytest.approx(ascended @ A @ ascended / 2, rel=1e-5)


def test_the_first_order_direction_is_that_of_the_specification():
    """∇L + η H_L ∇J."""
    np.testing.assert_allclose(toy("plain", 0.3)[0]["w"], A @ THETA + 0.3 * A @ (B @ THETA + 0.7), rtol=1e-5)


def test_the_second_order_direction_has_the_hessian_of_j_too():
    ascended = by_hand("plain", 0.3)
    wanted = A @ ascended + 0.3 * B @ (A @ ascended)
    np.testing.assert_allclose(toy("plain", 0.3, second_order=True)[0]["w"], wanted, rtol=1e-5)


@every_mode
def test_the_second_order_is_the_slope_of_the_loss_after_the_ascent(mode):
    """Central differences in fp64 of L(θ'(θ)), with numpy's θ' and the moments fixed."""
    eta, h = 0.3, 1e-5
    mu, nu = np.array([0.1, -0.2, 0.05]) / (1 - 0.9**3), np.array([0.04, 0.01, 0.25]) / (1 - 0.95**3)

    def loss(theta):
        rising = B.astype(float) @ theta + 0.7
        factor = {
            "plain": 1.0,
            "parameter_norm": np.linalg.norm(theta) / np.linalg.norm(rising),
            "step_norm": RATE * np.linalg.norm(mu / np.sqrt(nu)) / np.linalg.norm(rising),
            "preconditioned": 1 / (np.sqrt(nu) + 0.1 * np.sqrt(nu.mean())),
        }[mode]
        ascended = theta + eta * factor * rising
        return ascended @ A.astype(float) @ ascended / 2

    steps = h * np.eye(3)
    wanted = [(loss(THETA + step) - loss(THETA - step)) / (2 * h) for step in steps]
    np.testing.assert_allclose(toy(mode, eta, second_order=True)[0]["w"], wanted, rtol=1e-4)
    first = np.asarray(toy(mode, eta)[0]["w"])
    assert mode == "step_norm" or np.abs(first - wanted).max() > 1e-2  # its ascent is too short to tell


@every_mode
def test_the_outer_gradient_gets_the_random_key_of_the_plain_step(mode):
    terms = toy(mode, 0.3)[1]
    assert mean(terms["draw"]) == float(jax.random.uniform(KEY)) != mean(terms["meta_draw"])


@pytest.mark.parametrize("mode", ["step_norm", "preconditioned"])
def test_without_moments_yet_there_is_no_ascent(mode):
    outer, inner = gradient.plain(quadratic(A)), gradient.plain(quadratic(B))
    fresh = toy_state(0)
    fresh = dataclasses.replace(fresh, optimizer=optax.scale_by_adam().init(fresh.trainable))
    batch = {"preference": jnp.float32(1), "meta": jnp.float32(1)}
    found, terms = meta.meta(outer, inner, FACTORS[mode](0.3))(fresh.trainable, {}, batch, KEY, fresh)
    np.testing.assert_allclose(found["w"], A @ THETA, rtol=1e-6)
    assert mean(terms["meta_ascent"]) == 0 and terms["meta_cosine"][1] == 0


@pytest.mark.parametrize("mode", ["step_norm", "preconditioned"])
def test_an_optimizer_without_moments_is_an_error(mode):
    state = dataclasses.replace(toy_state(), optimizer=optax.sgd(0.1).init({"w": THETA}))
    with pytest.raises(ValueError, match="needs the moments of one Adam .* use plain or parameter_norm"):
        FACTORS[mode](0.3)(state.trainable, state.trainable, state)


# --- the model ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def batches(trees, lay_out):
    """(the batch, pairs and groups as lists of sequences): 6 pairs; 5 groups of 2 to 4 answers, no order."""

    def sequences(tree):
        return [np.concatenate([tree.prefix, leaf]) for leaf in tree.branches]

    ranked, sampled = trees([2, 3, 0, 1]), trees([1, 2, 2, 0], branches=4, seed=5)
    for row in sampled:
        row[:] = [
            dataclasses.replace(t, branches=t.branches[: 2 + t.record % 3], ranks=np.full(2 + t.record % 3, np.inf))
            for t in row
        ]
    pairs = [s for row in ranked for tree in row for s in sequences(tree)]
    groups = [sequences(tree) for row in sampled for tree in row]
    return {"preference": lay_out(ranked), "meta": lay_out(sampled)}, pairs, groups


@pytest.fixture(scope="module")
def state(params):
    """As after a few steps: moments that are not zero."""
    state = make_state(params, TRAINABLE, adamw(lambda step: RATE), seed=0)
    moments = meta._moments(state)
    filled = moments._replace(
        count=jnp.int32(4),
        mu=jax.tree.map(lambda x: 0.01 * jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), moments.mu),
        nu=jax.tree.map(lambda x: 1e-4 + 1e-4 * jnp.arange(x.size).reshape(x.shape) / x.size, moments.nu),
    )
    is_adam = lambda part: isinstance(part, optax.ScaleByAdamState)  # noqa: E731
    optimizer = jax.tree.map(lambda part: filled if is_adam(part) else part, state.optimizer, is_leaf=is_adam)
    return dataclasses.replace(state, step=jnp.int32(4), optimizer=optimizer)


def wrapped(model, mode="plain", eta=0.5, parts=1, **options):
    outer = gradient.plain(preference(model), parts)
    inner = gradient.plain(discrimination(model), parts)
    return jax.jit(meta.meta(outer, inner, FACTORS[mode](eta), **options))


def called(form, state, batch):
    return form(state.trainable, state.frozen, batch, KEY, state)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainable", "second_order"),
    [(TRAINABLE, False), (TRAINABLE, True), ("head", False), ("mlp|embedding", True)],
    ids=["most-first", "most-second", "head-first", "embedding-second"],
)
def test_is_that_of_a_plain_reference(model, tiny_config, params, batches, trainable, second_order):
    batch, pairs, groups = batches
    moving, frozen = split(params, trainable)
    found, terms = wrapped(model, second_order=second_order)(moving, frozen, batch, KEY)
    reference = jax.jit(
        lambda moving: meta_reference.step(tiny_config, moving, frozen, pairs, groups, 0.5, second_order)
    )
    wanted, ascended, difference = reference(moving)
    assert_close(found, wanted, 5e-5)  # an embedding adds up its gradients in another order
    assert mean(terms["meta_difference"]) == pytest.approx(float(difference), rel=1e-5)
    assert terms["meta_difference"][1] == 5 and terms["loss"][1] == 6
    length = optax.tree.norm(jax.tree.map(jnp.subtract, ascended, moving))
    assert mean(terms["meta_ascent"]) == pytest.approx(float(length), rel=1e-4)
    plain, _ = jax.jit(gradient.plain(preference(model)))(moving, frozen, batch["preference"], KEY)
    assert max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (plain, found)), strict=True)) > 1e-3


def test_the_second_order_is_not_the_first(model, state, batches):
    first, second = (called(wrapped(model, second_order=so), state, batches[0])[0] for so in (False, True))
    assert max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (first, second)), strict=True)) > 1e-3


@every_mode
def test_the_ascent_raises_j(model, state, batches, mode):
    batch, *_ = batches
    eta = {"plain": 1e-2, "parameter_norm": 1e-4, "step_norm": 0.1, "preconditioned": 1e-5}[mode]
    inner = jax.jit(gradient.plain(discrimination(model)))
    rising, before = inner(state.trainable, state.frozen, batch["meta"], KEY)
    factors = FACTORS[mode](eta)(state.trainable, rising, state)
    ascended = jax.tree.map(lambda p, f, g: p + f * g, state.trainable, factors, rising)
    after = inner(ascended, state.frozen, batch["meta"], KEY)[1]
    assert mean(after["loss"]) > mean(before["loss"]) + 1e-6
    assert mean(after["lower"]) == mean(before["lower"]) < mean(before["loss"]) < mean(before["upper"])
    assert 0 < mean(before["rescaled"]) < 1 and mean(before["gap"]) > 0 and mean(before["tied"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "second_order"), [("plain", False), *((mode, True) for mode in FACTORS)])
def test_microbatches_add_up_to_the_whole(model, state, batches, mode, second_order):
    eta = {"plain": 0.5, "parameter_norm": 0.05, "step_norm": 5.0, "preconditioned": 1e-2}[mode]
    whole, terms = called(wrapped(model, mode, eta, second_order=second_order), state, batches[0])
    summed, part_terms = called(wrapped(model, mode, eta, 2, second_order=second_order), state, batches[0])
    assert_close(summed, whole, 3e-5)
    assert terms.keys() == part_terms.keys()
    for name in terms:
        np.testing.assert_allclose(part_terms[name], terms[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["focal", "listwise"])
def test_wraps_other_objectives(model, state, batches, loss):
    outer, inner = preference(model, loss), discrimination(model)
    form = jax.jit(meta.meta(gradient.plain(outer), gradient.plain(inner), meta.plain(0.5)))
    rising, _ = gradient.plain(inner)(state.trainable, state.frozen, batches[0]["meta"], KEY)
    ascended = jax.tree.map(lambda p, g: p + 0.5 * g, state.trainable, rising)
    wanted, _ = gradient.plain(outer)(ascended, state.frozen, batches[0]["preference"], KEY)
    assert_close(called(form, state, batches[0])[0], wanted)


def with_types(forest):
    return forest.replace(type_RG=np.arange(forest.type_RG.size).reshape(forest.type_RG.shape) % 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "dora", "loramoe", "balanced"])
def test_adapters_ascend_and_their_base_does_not(tiny_config, params, batches, kind):
    """θ is the adapters and the head: the ascent, and the gradient at θ', are those of these leaves alone. The balancing
    constraint and dropout are the outer objective's."""
    mixture = kind in ("loramoe", "balanced")
    adapter = AdapterConfig(
        "loramoe" if mixture else kind, rank=2, experts=2 if mixture else 1, dropout=0.3 if kind == "balanced" else 0.0
    )
    model, start = started(dataclasses.replace(tiny_config, adapter=adapter))
    start = moved({**start, "head": params["head"]}, scale=0.3)
    moving, frozen = split(start, "lora_|head")
    assert len(flat(moving)) > 3 and all("lora_" in path or "head" in path for path in flat(moving))
    outer, inner = (gradient.plain(form(model)) for form in (preference, discrimination))
    if kind == "balanced":
        constrained = balanced(preference, model, Balance((0, 1), beta=1.0))
        batches = [{**batches[0], "preference": with_types(batches[0]["preference"])}]
        outer = gradient.plain(constrained)
    found, terms = jax.jit(meta.meta(outer, inner, meta.plain(0.5)))(moving, frozen, batches[0], KEY)
    assert ("balance" in terms) == (kind == "balanced") and "meta_balance" not in terms
    rising, _ = jax.jit(inner)(moving, frozen, batches[0]["meta"], jax.random.fold_in(KEY, 1))
    ascended = jax.tree.map(lambda p, g: p + 0.5 * g, moving, rising)
    assert_close(found, jax.jit(outer)(ascended, frozen, batches[0]["preference"], KEY)[0], 5e-5)
    assert mean(terms["meta_ascent"]) == pytest.approx(float(0.5 * optax.tree.norm(rising)), rel=1e-4)
    plain, _ = outer(moving, frozen, batches[0]["preference"], KEY)
    assert float(optax.tree.norm(jax.tree.map(jnp.subtract, found, plain))) > 1e-3


# --- what may not leak: the whole compiled step, with all of XLA's passes ----------------------------------------------


def stepped(form, boxed, state, batch, steps=3, options=None):
    """The state after some steps of the compiled step, and the last terms."""
    update, mesh = adamw(lambda step: RATE), make_mesh({})
    shardings = state_shardings(state, boxed, TRAINABLE, mesh)
    step = compile_step(make_step(form, update, shardings, mesh), shardings, mesh, options)
    state = jax.tree.map(jnp.array, state)  # a copy: the step donates it
    with jax.set_mesh(mesh):
        for _ in range(steps):
            state, terms = step(state, batch)
    return jax.device_get(state), jax.device_get(terms)


@pytest.fixture(scope="module")
def plain_step(model, boxed, state, batches):
    return stepped(gradient.plain(preference(model)), boxed, state, batches[0]["preference"], options=AS_USERS)


@pytest.mark.slow
@every_mode
def test_eta_0_is_the_plain_step_bit_for_bit(model, boxed, state, batches, plain_step, mode):
    found, terms = stepped(wrapped(model, mode, 0.0), boxed, state, batches[0], options=AS_USERS)
    assert bits(found) == bits(plain_step[0])
    for name, term in plain_step[1].items():
        assert bits(term) == bits(terms[name]), name
    assert mean(terms["meta_ascent"]) == 0.0 and terms["meta_cosine"] == (0.0, 0.0)


@pytest.mark.slow
def test_warm_up_is_the_plain_step_bit_for_bit(model, boxed, state, batches, plain_step):
    found, _ = stepped(wrapped(model, warmup_steps=7), boxed, state, batches[0], options=AS_USERS)  # steps 4, 5 and 6
    assert bits(found) == bits(plain_step[0])
    _, terms = stepped(wrapped(model, warmup_steps=6), boxed, state, batches[0])
    assert mean(terms["meta_ascent"]) > 0


@pytest.mark.parametrize("second_order", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["first", "second"])
def test_the_ascent_is_in_neither_parameters_nor_optimizer(model, boxed, state, batches, second_order):
    form = wrapped(model, second_order=second_order)
    found, _ = stepped(form, boxed, state, batches[0], steps=1)
    rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    grads, _ = form(state.trainable, state.frozen, batches[0], rng, state)
    update = adamw(lambda step: RATE)
    updates, moments = update.update(grads, state.optimizer, state.trainable)
    assert_close(found.trainable, optax.apply_updates(state.trainable, updates))
    for ours, theirs in zip(jax.tree.leaves(found.optimizer), jax.tree.leaves(moments), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-8)
    assert bits(found.frozen) == bits(state.frozen)


def test_an_eta_that_makes_nan_shows_in_the_loss(model, state, batches):
    _, terms = called(wrapped(model, eta=1e30), state, batches[0])
    assert not np.isfinite(mean(terms["loss"]))


# --- groups that give nothing ------------------------------------------------------------------------------------------


def test_a_zero_head_gives_j_no_gradient(model, state, batches):
    params = merge(state.trainable, state.frozen)
    params["head"] = {"kernel": jnp.zeros_like(params["head"]["kernel"])}
    moving, frozen = split(params, TRAINABLE)
    rising, terms = jax.jit(gradient.plain(discrimination(model)))(moving, frozen, batches[0]["meta"], KEY)
    assert mean(terms["tied"]) == 1.0 and not any(leaf.any() for leaf in jax.tree.leaves(rising))
    with pytest.raises(ValueError, match="head is zero.*no gradient; start from .*config.gradient.warmup_steps"):
        meta.refuse_zero_head(params)
    meta.refuse_zero_head(merge(state.trainable, state.frozen))


def test_a_group_of_one_is_not_counted(model, state, trees, lay_out, batches):
    """Nor does it change the gradient."""
    alone = [dataclasses.replace(t, branches=t.branches[:1], ranks=t.ranks[:1]) for t in trees([1], seed=9)[0]]
    rows = trees([2, 1], branches=3, seed=7)
    inner = jax.jit(gradient.plain(discrimination(model)))
    without, terms = inner(state.trainable, state.frozen, lay_out(rows), KEY)
    with_it, more = inner(state.trainable, state.frozen, lay_out([rows[0], [*rows[1], *alone]]), KEY)
    assert terms["loss"][1] == more["loss"][1] == 3
    assert_close(with_it, without)


def test_describe_is_the_share_of_the_outer_step():
    assert meta.describe({"meta_ascent": 0.5, "update_norm": 2.0}) == {"meta_ascent_share": 0.25}
    assert meta.describe({"update_norm": 2.0}) == {}
    assert meta.describe({"meta_ascent": 0.5, "update_norm": 0.0}) == {}
