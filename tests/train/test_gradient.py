"""The gradient: a plain reference, accumulation, frozen parameters, optimizer state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.data.packing import ForestShape
from rmjax.methods.preference import preference
from rmjax.models.parameters import flat, merge, split
from rmjax.models.transformer import Transformer, causal_mask
from rmjax.train import gradient

KEY = jax.random.key(0)
TRAINABLE = "layers|final_norm|head"


@pytest.fixture(scope="module")
def whole_batch(model):
    """The compiled gradient of a whole batch."""
    return jax.jit(gradient.plain(preference(model)))


def assert_close(one, other, tolerance=1e-6):
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    for path in one:
        np.testing.assert_allclose(one[path], other[path], rtol=tolerance, atol=tolerance, err_msg=path)


def reference_gradient(config, trainable, frozen, rows):
    """Every sequence alone under a causal mask, no forest, no reducer: the mean of -log sigmoid over the pairs."""
    sequences = [np.concatenate([tree.prefix, leaf]) for row in rows for tree in row for leaf in tree.branches]
    ids = np.zeros((len(sequences), 16), np.int32)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)] = sequence
    last, positions = np.array([len(s) - 1 for s in sequences]), np.broadcast_to(np.arange(16), ids.shape)

    def loss(trainable):
        params = merge(trainable, frozen)
        hidden = Transformer(config).apply({"params": params["backbone"]}, ids, positions, causal_mask(ids > 0))
        rewards = (hidden[np.arange(len(ids)), last] @ params["head"]["kernel"])[:, 0]
        return jnp.mean(jnp.logaddexp(0.0, rewards[1::2] - rewards[::2]))

    return jax.jit(jax.grad(loss))(trainable)


def test_is_that_of_a_plain_reference(tiny_config, whole_batch, params, trees, lay_out):
    trainable, frozen = split(params, TRAINABLE)
    rows = trees([2, 3, 0, 1])
    found, terms = whole_batch(trainable, frozen, lay_out(rows), KEY)
    assert terms["loss"][1] == 6
    assert_close(found, reference_gradient(tiny_config, trainable, frozen, rows))
    assert all(float(jnp.abs(leaf).max()) > 1e-4 for leaf in flat(found).values())


@pytest.mark.parametrize("parts", [2, 4])
def test_microbatches_add_up_to_the_whole_batch(model, params, whole_batch, forest, parts):
    trainable, frozen = split(params, TRAINABLE)
    in_parts = jax.jit(gradient.plain(preference(model), parts))
    for groups in ([2, 2, 2, 2], [3, 1, 0, 2]):
        whole, terms = whole_batch(trainable, frozen, forest(groups), KEY)
        summed, part_terms = in_parts(trainable, frozen, forest(groups), KEY)
        assert_close(summed, whole)
        assert part_terms["loss"][1] == terms["loss"][1] == sum(groups)
        for name in terms:
            np.testing.assert_allclose(part_terms[name], terms[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_unequal_counts_are_not_a_mean_of_means(params, whole_batch, forest):
    """Shows that the accumulation test can fail: the mean of the rows' means is another gradient."""
    trainable, frozen = split(params, TRAINABLE)
    batch, empty = forest([3, 1, 0, 0]), forest([0, 0, 0, 0])

    def head(part):
        return whole_batch(trainable, frozen, part, KEY)[0]["head"]["kernel"]

    def only(row):
        return jax.tree.map(
            lambda x, y: np.where((np.arange(4) == row).reshape(-1, *[1] * (x.ndim - 1)), x, y), batch, empty
        )

    assert float(jnp.abs((head(only(0)) + head(only(1))) / 2 - head(batch)).max()) > 1e-3


def test_a_batch_without_pairs_has_no_gradient(params, whole_batch):
    trainable, frozen = split(params, TRAINABLE)
    found, terms = whole_batch(trainable, frozen, ForestShape(4, 64, 4, 4).empty(), KEY)
    assert terms["loss"] == (0, 0)
    assert all(not leaf.any() for leaf in jax.tree.leaves(found))


def test_frozen_parameters_stay_bit_for_bit(learned):
    before, after = flat(learned.before.frozen), flat(learned.after.frozen)
    assert list(before) == ["backbone/embedding/embedding"]
    assert {path: leaf.tobytes() for path, leaf in after.items()} == {p: leaf.tobytes() for p, leaf in before.items()}
    moved = flat(learned.after.trainable)
    assert all((leaf != moved[path]).any() for path, leaf in flat(learned.before.trainable).items())
    assert int(learned.after.step) == 60


def test_optimizer_state_is_for_the_trainable_parameters_only(learned):
    trainable = flat(learned.before.trainable)
    adam = learned.after.optimizer[0]
    for moments in (adam.mu, adam.nu):
        assert {path: leaf.shape for path, leaf in flat(moments).items()} == {p: x.shape for p, x in trainable.items()}
    arrays = [leaf for leaf in jax.tree.leaves(learned.after.optimizer) if np.ndim(leaf)]
    assert len(arrays) == 2 * len(trainable)


@pytest.mark.parametrize(("parts", "message"), [(0, "must be 1 or more"), (3, "4 rows do not divide into 3")])
def test_bad_microbatches(model, params, forest, parts, message):
    with pytest.raises(ValueError, match=message):
        gradient.plain(preference(model), parts)(*split(params, TRAINABLE), forest([1] * 4), KEY)
