"""Token ids of everything that ships, as they were before records kept their messages and formats had kinds.

golden_ids.json holds the number of ids and a digest of each set, computed by the code of 28 November 2026 (fba0470).
One differs from it: `pool_draws_cut` was 240563 ids, 92e63b11862db66b995bd579e6e0812c. In four of its groups, cut to 20 tokens
an answer, a cut fell into the middle of a character and left U+FFFD. With the lengths of configs/base.py no group is such a one.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from configs.sample import corpus, ladder, solver
from experiments.studies.forgetting import skills
from rmjax import config as base
from rmjax import sampler
from rmjax.data import sources
from rmjax.data.formats import Encoder, Format
from rmjax.data.record import Comparison
from rmjax.data.samplerows import Prompt
from rmjax.data.tokenizer import Tokenizer
from rmjax.hub.gguf import load_gguf, smollm2_path
from rmjax.policy.policies import Policy

GOLDEN = json.loads((Path(__file__).parent / "golden_ids.json").read_text())
POLAR = Format(**base.get_config().format.to_dict())
CHATML = Format(kind="chat", template="chatml")
ROOT = Path(__file__).parents[2]
SHORT = {"max_length": 80, "max_response_length": 12}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    try:
        return load_gguf(smollm2_path(), weights=False)[2]
    except FileNotFoundError as error:
        pytest.skip(str(error))


def digest(sequences: Iterable[Sequence[int]]) -> list[object]:
    found, count = hashlib.sha256(), 0
    for ids in sequences:
        array = np.asarray(ids, "<i4")
        found.update(len(array).to_bytes(4, "little") + array.tobytes())
        count += len(array)
    return [count, found.hexdigest()[:32]]


def trained(tokenizer: Tokenizer, records: Iterable[Comparison], row: int, **changes) -> list[object]:
    encoder = Encoder(tokenizer, dataclasses.replace(POLAR, **changes), row)
    return digest(ids for c in records for group in encoder.sequences(c) for ids in group)


def scored(tokenizer: Tokenizer, records: Iterable[Comparison]) -> list[object]:
    """The sequence that each output is read at, whichever branch that is."""
    encoder = Encoder(tokenizer, POLAR, 2048)

    def sequences(c: Comparison) -> list[list[int]]:
        found: dict[int, list[list[int]]] = {n: [] for n in range(len(c.outputs))}
        for members, tree in encoder.scoring_trees(c):
            for outputs, branch in zip(members, tree.branches, strict=True):
                for n in outputs:
                    found[n].append([*tree.prefix, *branch])
        return [ids for n in sorted(found) for ids in found[n]]

    return digest(ids for c in records for ids in sequences(c))


@pytest.mark.slow
def test_pool_groups(tokenizer):
    pool = sources.pool("shipped:policy_pool", "all", "all")
    draws = [
        pool.draw(pool[i], np.random.default_rng([7, i]), negatives=3, hard_negatives=0.5, wrapper=wrapper)
        for wrapper in ("sft", "pretrain")
        for i in range(len(pool))
    ]
    assert trained(tokenizer, draws, 1024) == GOLDEN["pool_draws"]
    assert trained(tokenizer, draws, 200, max_length=100, max_response_length=20) == GOLDEN["pool_draws_cut"]
    assert scored(tokenizer, pool.triples(seed=0, per_prompt=2)) == GOLDEN["pool_triples"]


@pytest.mark.parametrize("name", ["ranked_train", "ranked_test"])
def test_ranked_triples(tokenizer, name):
    records = list(sources.records(f"shipped:{name}"))
    assert trained(tokenizer, records, 512) == GOLDEN[name]
    assert scored(tokenizer, records) == GOLDEN[f"{name}_scoring"]
    assert trained(tokenizer, records, 120, **SHORT) == GOLDEN[f"{name}_cut"]
    assert trained(tokenizer, records, 120, response_cut_side="left", **SHORT) == GOLDEN[f"{name}_cut_left"]


def test_texts(tokenizer):
    encoder = Encoder(tokenizer, CHATML, 256)

    def texts(records: Iterable[Comparison], ended: bool = True) -> list[object]:
        return digest(tree.branches[0] for c in records for tree in encoder.language_model_trees(c, ended=ended))

    found = skills.load_skills("shipped", "", encoder)
    for name in ("tasks", "knowledge", "tested"):
        assert texts(getattr(found, name)) == GOLDEN[f"texts_{name}"], name
    for name, records in skills.general_texts(10**6).items():
        assert texts(records, ended=False) == GOLDEN[f"texts_{name}"], name
    asked = digest(encoder.begun(q["prompt"]) for q in skills.facts_rows(for_training=False))
    assert asked == GOLDEN["questions"]


def test_what_policies_are_asked(tokenizer):
    encoder = Encoder(tokenizer, CHATML, 256)
    policies = [Policy.parse(row) for config in (corpus, ladder, solver) for row in config.get_config().policies]
    lines = (ROOT / "experiments/corpus/prompts.jsonl").read_text().splitlines()
    prompts = [Prompt(row["id"], row["prompt"]) for row in map(json.loads, lines)]
    prefixes, rows = zip(*(sampler.asked(policy, prompts[:2], encoder) for policy in policies), strict=True)
    assert digest(prefixes) == GOLDEN["preambles"]
    assert all([row.ids for row in found] == [row.ids for row in rows[0]] for found in rows)
    assert digest(row.ids for row in sampler.asked(policies[0], prompts, encoder)[1]) == GOLDEN["sampler_prompts"]
