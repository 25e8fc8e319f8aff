"""A text's score over HTTP is its score alone, whatever stands beside it; and no neighbor takes its place."""

import random
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rmjax.serve.engine import when_compiled
from rmjax_client import Client
from tests.serve.conftest import running

WORDS = st.text("ab 4+", max_size=12)
ROWS = st.fixed_dictionaries(
    {"prompt": st.sampled_from(["2 + 2?", "2 + 2 + 2?", "Name one.", "x"]), "output": WORDS},
    optional={"reference": st.sampled_from(["four", "It is 4."])},
)


@pytest.fixture(scope="module")
def alone(models):
    known = {}

    def score(row):
        facts = tuple(sorted(row.items()))
        if facts not in known:
            output = row["output"]
            # A file has no answer without text; by hand it is the prompt alone.
            known[facts] = models["polar"].score([row])[0] if output.strip() else None
        return known[facts]

    return score


@given(st.lists(ROWS, min_size=1, max_size=24), st.integers(1, 6), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_alone_in_a_batch_and_beside_anyone(polar, alone, rows, parts, draw):
    """The same rows in one request, in several at once, and in another order."""
    client = Client(polar.url, connections=parts)
    order = [*range(len(rows))]
    draw.shuffle(order)
    with ThreadPoolExecutor(parts) as threads:
        each = list(threads.map(lambda i: (i, client.rewards([rows[i]])[0]), order))
    together = client.rewards(rows)
    client.close()
    for i, reward in each:
        assert reward == pytest.approx(together[i], abs=1e-5)
        if alone(rows[i]) is not None:
            assert reward == pytest.approx(alone(rows[i]), abs=1e-5)


def test_many_clients_lose_nothing_and_swap_nothing(engines, models):
    rows = [{"prompt": f"{i % 5} + 2?", "output": f"It is {i}."} for i in range(40)]
    wanted = models["polar"].score(rows)
    with running(engines["polar"]) as server:

        def ask(number):
            client = Client(server.url, connections=1)
            mine = random.Random(number).sample(range(40), 20)
            found = [(i, client.rewards([rows[i]])[0]) for i in mine]
            client.close()
            return found

        with ThreadPoolExecutor(16) as threads:
            found = [each for part in threads.map(ask, range(16)) for each in part]
        assert len(found) == 16 * 20
        assert all(reward == pytest.approx(wanted[i], abs=1e-5) for i, reward in found)
        assert server.metric("rmjax_items_total") == 16 * 20
        assert server.metric("rmjax_batches_total") < 16 * 20, "nothing was batched"
        assert server.metric("rmjax_recompiles_total") == 0


def test_a_program_compiled_later_would_be_seen():
    seen = []
    when_compiled(lambda: seen.append(1))
    jax.jit(lambda x: x * 3.25 + 1)(np.ones(7, np.float32))
    assert seen


def test_answers_of_several_requests_share_their_prompt(engines):
    with running(engines["polar"], wait=0.3) as server:
        rows = [{"prompt": "p" * 40, "output": f"{i}"} for i in range(8)]
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda row: server.ask("/v1/reward", {"records": [row]}), rows))
        assert server.metric("rmjax_batches_total") == 1
        assert server.metric("rmjax_sequence_tokens_total") == 8 * 43
        assert server.metric("rmjax_run_tokens_total") == 41 + 8 * 2


def test_an_ensembles_scores_are_combined(engines, models):
    """Of a model with members: a number each, and one reward of them."""
    import dataclasses

    import jax.numpy as jnp

    from rmjax.evaluate.scorers import OfMembers

    engine = engines["polar"]

    def members(params, forest):
        rewards = engine.rewards(params, forest)
        return jnp.stack([rewards, rewards + 2], axis=-1)

    pair = dataclasses.replace(engine, rewards=OfMembers(members, lambda values_NK: values_NK.mean(axis=-1)))
    row = {"prompt": "2 + 2?", "output": "4", "references": ["four", "4"]}
    with running(pair) as server:
        found = server.ask("/v1/reward", row)[1]["results"][0]["rewards"]
    assert found == pytest.approx([models["polar"].score([row])[0] + 1], abs=1e-5)
