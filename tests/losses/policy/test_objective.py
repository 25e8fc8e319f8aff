"""The objective: golden values, parts that add up, invariances, keys that all matter."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmjax.losses.policy.objective import Samples, policy_loss, with_critic
from rmjax.losses.policy.parts import Parts, contradiction
from rmjax.losses.policy.presets import PRESETS, preset
from rmjax.losses.policy.ratios import correction, log_ratios
from rmjax.losses.policy.sequences import of_forest

NEW = np.array([[-1, -2, np.nan], [-0.5, -1.5, -1]])
OLD = np.array([[-1.1, -1.8, np.nan], [-0.8, -1.5, -1.4]])
REFERENCE = np.array([[-1.2, -2.1, np.nan], [-0.4, -1.6, -1.2]])
BEHAVIOR = np.array([[-1, -2, np.nan], [-0.9, -1.4, -2.5]])
MASK = np.array([[1, 1, 0], [1, 1, 1]])
ADVANTAGE = np.array([[1.0] * 3, [-1.0] * 3])
DAPO_CLIP = Parts(clip_low=0.2, clip_high=0.28, old="trainer")


def golden(**changes) -> Samples:
    """A sequence in each row; what is masked is NaN."""
    given = {
        "log_probability_RT": NEW, "entropy_RT": np.where(MASK, 0.5, np.nan), "advantage_RT": ADVANTAGE,
        "trained_RT": MASK, "sequence_RT": np.zeros((2, 3), np.int32), "weight_RS": np.ones((2, 1)), "old_RT": OLD,
        "behavior_RT": BEHAVIOR, "reference_RT": REFERENCE,
    }  # fmt: skip
    return Samples(**{name: jnp.asarray(value) for name, value in (given | changes).items()})


def mean(terms, name="loss") -> float:
    return float(terms[name][0] / terms[name][1])


def gradient(parts, samples) -> np.ndarray:
    """Of the mean loss with respect to log π."""

    def loss(new):
        total, count = policy_loss(parts, samples._replace(log_probability_RT=new))["loss"]
        return total / count

    return np.asarray(jax.grad(loss)(samples.log_probability_RT))


G = [-0.22103418, -0.16374615, 0, 0.26997176, 0.2, 0.29836494]
AGGREGATIONS = {
    "token_mean": (0.38355637, 0.38397482, G),
    "sequence_mean": (
        0.15930517, 0.15973244, [-0.27629273, -0.20468269, 0, 0.22497647, 0.16666667, 0.24863745],
    ),
    "sequence_sum": (0.95889092, 0.95993706, [-0.55258546, -0.40936538, 0, 0.6749294, 0.5, 0.74591235]),
    "constant": (0.23972273, 0.23998427, [-0.13814636, -0.10234134, 0, 0.16873235, 0.125, 0.18647809]),
}  # fmt: skip


@pytest.mark.parametrize(("form", "wanted"), AGGREGATIONS.items(), ids=AGGREGATIONS)
def test_golden_values_of_every_aggregation(form, wanted):
    parts = dataclasses.replace(DAPO_CLIP, aggregation=form, divisor=4)
    assert mean(policy_loss(parts, golden())) == pytest.approx(wanted[0], abs=1e-7)
    assert gradient(parts, golden()).ravel() == pytest.approx(wanted[2], abs=1e-7)
    with_kl = dataclasses.replace(parts, kl_weight=0.04, kl_gradient="estimator")
    terms = policy_loss(with_kl, golden())
    assert mean(terms) == pytest.approx(wanted[1], abs=1e-7)
    k3 = [0.01873075, 0.00483742, 0.00517092, 0.00483742, 0.01873075]
    assert mean(terms, "kl") == pytest.approx(np.mean(k3), abs=1e-8)
    assert mean(terms, "policy_loss") == pytest.approx(wanted[0], abs=1e-7)


def test_golden_values_of_gspo():
    parts = dataclasses.replace(preset("gspo"), old="trainer")
    s = golden()
    ratios = np.exp(log_ratios(s.log_probability_RT, s.old_RT, s.trained_RT, s.sequence_RT, 1, "sequence"))
    assert ratios[:, 0] == pytest.approx([0.95122942, 1.26280234], abs=1e-7)
    assert mean(policy_loss(parts, s)) == pytest.approx(0.15578646, abs=1e-7)


def test_golden_values_of_truncated_importance_sampling():
    parts = dataclasses.replace(DAPO_CLIP, correction="token", cap=2.0)
    terms = policy_loss(parts, golden())
    assert mean(terms) == pytest.approx(0.6760623, abs=1e-7)
    assert mean(terms, "capped") == pytest.approx(1 / 5)
    assert mean(terms, "log_probability_gap") == pytest.approx(np.mean([0, 0, 0.4, 0.1, 1.5]), abs=1e-6)
    s = golden()
    whole = correction(s.old_RT, s.behavior_RT, s.trained_RT, s.sequence_RT, 1, "sequence", 100.0)
    assert whole[:, 0] == pytest.approx([1.10517092, 3.00416602], abs=1e-6)
    assert correction(s.old_RT * 1e4, s.behavior_RT, s.trained_RT, s.sequence_RT, 1, "sequence", 2.0)[1, 0] == 0
    assert correction(s.old_RT, s.behavior_RT * 1e4, s.trained_RT, s.sequence_RT, 1, "sequence", 2.0)[1, 0] == 2


def test_what_is_not_trained_is_not_read():
    """NaN stands at the masked token of the golden batch; here other numbers do, and a NaN that is trained is not hidden."""
    for preset_parts in (DAPO_CLIP, dataclasses.replace(DAPO_CLIP, kl_weight=0.1, entropy_weight=0.1)):
        other = {
            name: np.where(MASK, value, 3.0)
            for name, value in (("log_probability_RT", NEW), ("old_RT", OLD), ("reference_RT", REFERENCE))
        }
        assert mean(policy_loss(preset_parts, golden(**other))) == mean(policy_loss(preset_parts, golden()))
        assert np.all(np.isfinite(gradient(preset_parts, golden())))
        assert np.isnan(mean(policy_loss(preset_parts, golden(advantage_RT=np.full((2, 3), np.nan)))))


# --- batches of several sequences a row ---------------------------------------------------------------------------------

ROWS, LENGTH, GROUPS, BRANCHES = 4, 12, 2, 2


def random_batch(seed: int = 0, rows: int = ROWS) -> Samples:
    """Rows of two groups of two samples: prompts, answers of lengths 1 to 3, padding."""
    random = np.random.default_rng(seed)
    group, branch = np.zeros((rows, LENGTH), int), np.zeros((rows, LENGTH), int)
    for r in range(rows):
        at = 0
        for g in range(GROUPS):
            for b in range(BRANCHES + 1):
                length = int(random.integers(1, 3 if b else 2))
                group[r, at : at + length], branch[r, at : at + length] = g + 1, b
                at += length
    sequence = np.asarray(of_forest(jnp.asarray(group), jnp.asarray(branch), BRANCHES))
    trained = (sequence >= 0) & (random.random(sequence.shape) < 0.9)
    values = {
        name: -random.random(sequence.shape) * 2
        for name in ("log_probability_RT", "old_RT", "behavior_RT", "reference_RT")
    }
    advantage_RS = random.standard_normal((rows, GROUPS * BRANCHES))
    advantage = np.take_along_axis(advantage_RS, np.maximum(sequence, 0), axis=1)
    weight = np.repeat(random.random((rows, GROUPS)) + 0.5, BRANCHES, axis=1)
    found = {**values, "entropy_RT": random.random(sequence.shape), "advantage_RT": advantage, "trained_RT": trained}
    return Samples(
        sequence_RT=jnp.asarray(sequence),
        weight_RS=jnp.asarray(weight),
        **{n: jnp.asarray(v) for n, v in found.items()},
    )


def parts_of(name: str) -> Parts:
    """A preset with all that may be in a loss turned on."""
    kl = {} if PRESETS[name].get("kl_place") == "reward" else {"kl_weight": 0.1}
    return dataclasses.replace(preset(name), old="trainer", correction="token", entropy_weight=0.1, divisor=5, **kl)


every_preset = pytest.mark.parametrize("name", PRESETS)


@pytest.mark.parametrize("microbatches", [2, 4])
@every_preset
def test_microbatches_add_up(name, microbatches):
    parts, batch = parts_of(name), random_batch()
    pieces = [Samples(*(x[i::microbatches] for x in batch)) for i in range(microbatches)]
    terms = [policy_loss(parts, piece) for piece in pieces]
    for term, (total, count) in policy_loss(parts, batch).items():
        assert sum(float(t[term][0]) for t in terms) == pytest.approx(float(total), rel=1e-5, abs=1e-6), term
        assert sum(float(t[term][1]) for t in terms) == pytest.approx(float(count), rel=1e-6), term


def spread(batch: Samples, order: np.ndarray, widths: list[int]) -> tuple[Samples, list]:
    """The same sequences, one in each row, in another order, with so much padding before each; and where each token came from."""
    rows, S, places = [], batch.weight_RS.shape[1], []
    for position, s in enumerate(order):
        r, number = divmod(int(s), S)
        at = np.flatnonzero(np.asarray(batch.sequence_RT[r]) == number)
        pad = widths[position % len(widths)]
        places += [(position, pad + i, r, int(t)) for i, t in enumerate(at)]
        rows.append((r, at, pad))
    width = max(pad + len(at) for _, at, pad in rows) + 1

    def laid(x, fill):
        out = np.full((len(rows), width), fill, np.asarray(x).dtype)
        for position, (r, at, pad) in enumerate(rows):
            out[position, pad : pad + len(at)] = np.asarray(x)[r, at]
        return jnp.asarray(out)

    new = {
        name: laid(getattr(batch, name), 9) for name in batch._fields if name.endswith("_RT") and name != "sequence_RT"
    }
    sequence = jnp.where(laid(batch.sequence_RT, -1) >= 0, 0, -1)
    trained = jnp.where(sequence >= 0, new.pop("trained_RT"), False)
    weight = jnp.asarray([[float(batch.weight_RS[divmod(int(s), S)])] for s in order])
    return Samples(sequence_RT=sequence, trained_RT=trained, weight_RS=weight, **new), places


@settings(max_examples=6, deadline=None)
@given(
    name=st.sampled_from(list(PRESETS)),
    seed=st.integers(0, 3),
    widths=st.lists(st.integers(0, 3), min_size=1, max_size=3),
)
def test_packing_padding_and_order_change_nothing(name, seed, widths):
    parts, batch = parts_of(name), random_batch(seed)
    order = np.random.default_rng(seed).permutation(ROWS * GROUPS * BRANCHES)
    other, places = spread(batch, order, widths)
    assert mean(policy_loss(parts, other)) == pytest.approx(mean(policy_loss(parts, batch)), rel=2e-5, abs=1e-6)
    wanted, found = gradient(parts, batch), gradient(parts, other)
    for row, column, r, t in places:
        assert found[row, column] == pytest.approx(wanted[r, t], rel=2e-4, abs=1e-6)


CHANGED = {
    "ratio": "sequence", "old": None, "clip": "none", "clip_low": 0.05, "clip_high": 0.05, "correction": "sequence", "cap": 1.1,
    "kl": "k2", "kl_weight": 0.2, "kl_gradient": "estimator", "entropy_weight": 0.2, "aggregation": "sequence_mean",
}  # fmt: skip
OF_DATA = {
    "advantage", "baseline", "scale", "ddof", "eps", "gamma", "lam", "kl_place", "reference", "truncated", "truncation_penalty",
    "equal_groups", "temperature", "old", "values", "value_weight", "value_clip",
}  # fmt: skip
"""Keys that say what a batch's columns are: tests/methods/test_policy_gradient.py changes each of them."""


def test_every_key_is_looked_at():
    assert CHANGED.keys() | OF_DATA | {"divisor", "vocabulary_chunk"} == {f.name for f in dataclasses.fields(Parts)}


def test_with_the_exact_gradient_k2_and_k3_are_one():
    k2, k3 = (dataclasses.replace(parts_of("grpo"), kl=kl) for kl in ("k2", "k3"))
    assert gradient(k2, random_batch()) == pytest.approx(gradient(k3, random_batch()), abs=1e-6)


@pytest.mark.parametrize("key", [key for key in CHANGED if key not in OF_DATA])
def test_every_key_changes_the_loss(key):
    parts, batch = dataclasses.replace(parts_of("grpo"), aggregation="token_mean"), random_batch()
    other = dataclasses.replace(parts, **{key: CHANGED[key]})
    assert abs(mean(policy_loss(parts, batch)) - mean(policy_loss(other, batch))) > 1e-4


def test_the_divisor_of_a_constant_aggregation_counts():
    parts = dataclasses.replace(parts_of("dr_grpo"), divisor=4)
    assert mean(policy_loss(parts, random_batch())) == pytest.approx(
        2 * mean(policy_loss(dataclasses.replace(parts, divisor=8), random_batch())), rel=1e-5
    )


def test_without_a_recorded_old_policy_the_ratio_is_1_and_has_a_gradient():
    parts, batch = dataclasses.replace(parts_of("grpo"), old="current"), random_batch()._replace(old_RT=None)
    assert mean(policy_loss(parts, batch), "ratio") == 1 and np.any(gradient(parts, batch))


@pytest.mark.parametrize(("lacking", "message"), [("reference_RT", "KL in the loss"), ("behavior_RT", "a correction")])
def test_what_a_part_needs_and_lacks_is_an_error(lacking, message):
    with pytest.raises(ValueError, match=message):
        policy_loss(parts_of("grpo"), random_batch()._replace(**{lacking: None}))


@every_preset
def test_presets_contradict_nothing(name):
    assert contradiction(preset(name)) is None


def test_a_preset_that_there_is_not():
    with pytest.raises(ValueError, match="policy preset is 'a2c'; choose one of reinforce"):
        preset("a2c")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": "none"}, "config.policy.clip is 'both', but policy.ratio=none"),
        ({"correction": "token"}, "config.policy.correction is 'token', but policy.old=behavior"),
        ({"kl": "k1", "kl_gradient": "estimator", "kl_weight": 1.0}, "whose expected gradient is 0"),
        ({"kl_place": "reward", "kl_weight": 1.0}, "made of recorded log-probabilities"),
        (
            {"kl_place": "reward", "kl_weight": 1.0, "advantage": "given", "reference": "recorded"},
            "policy.advantage=given reads no reward",
        ),
        ({"truncated": "penalize", "advantage": "given"}, "choose train or mask"),
    ],
)
def test_values_that_go_together_with_no_training(changes, message):
    assert message in (contradiction(Parts(**changes)) or "")


def test_a_critic_s_loss_stands_beside_the_policy_s():
    """Half the squared distance to advantage + old value, clipped around the old one; what stands at other tokens is not read."""
    parts = Parts(advantage="gae", values="critic", value_weight=0.5, aggregation="token_mean")
    trained = jnp.asarray([[0.0, 1.0, 1.0, 1.0]])
    samples = Samples(
        log_probability_RT=jnp.zeros((1, 4)), entropy_RT=jnp.zeros((1, 4)), advantage_RT=jnp.asarray([[9.0, 1.0, 0.0, -1.0]]),
        trained_RT=trained, sequence_RT=jnp.zeros((1, 4), jnp.int32), weight_RS=jnp.ones((1, 1)),
    )  # fmt: skip
    old, values = jnp.asarray([[jnp.nan, 0.0, 0.5, 1.0]]), jnp.asarray([[jnp.nan, 1.0, 0.6, 1.0]])
    terms = with_critic({"loss": (jnp.float32(3.0), jnp.float32(3.0))}, parts, samples, values, old)
    # Returns 1, 0.5, 0. Plain: 0, 0.005, 0.5; clipped to 0.2, 0.6, 1: 0.32, 0.005, 0.5.
    assert mean(terms, "value_loss") == pytest.approx((0.32 + 0.005 + 0.5) / 3, rel=1e-5)
    assert mean(terms) == pytest.approx(1 + 0.5 * (0.32 + 0.005 + 0.5) / 3, rel=1e-5)
    assert mean(terms, "return") == pytest.approx(0.5) and mean(terms, "value") == pytest.approx(2.6 / 3)
    free = with_critic(terms, dataclasses.replace(parts, value_clip=0.0), samples, values, old)
    assert mean(free, "value_loss") == pytest.approx(0.505 / 3, rel=1e-5)
