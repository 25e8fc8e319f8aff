"""Self-reference feedback: own answers, both orders, votes and strengths, into records that the trainer takes."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from rmjax import Trainer, methods
from rmjax.data.formats import Encoder, Format
from rmjax.data.messages import messages_of
from rmjax.data.readers import open_records
from rmjax.data.record import Comparison
from rmjax.data.tokenizer import Tokenizer
from rmjax.data.votes import Order
from rmjax.judges import generators
from rmjax.judges.annotate import Options, annotate, likelihood_of, notes
from rmjax.judges.forms import Unread
from rmjax.judges.replies import Replies
from rmjax.judges.self_reference import Prompts, Round, Rules, labeled, rounds_of, strengths
from rmjax.policy.local import LocalGenerator
from rmjax.policy.sampling import Decoding
from tests.judges.scripted import Scripted
from tests.methods.test_contract import configured, home  # noqa: F401

PROMPTS = Prompts.load()
PAIR = Comparison("Name a color.", ("good", "bad"), ranks=(0.0, 1.0), id="r0")
MODEL = "http://127.0.0.1:1/v1#stub"


def scripted(decide):
    """Answers with its own answer, a critique, or a decision, by what it is asked."""

    def answer(prompt, n):
        if "Which of the two answers" in prompt:
            return decide(prompt, n)
        return f"critique {n}" if "Answer A:" in prompt else f"own answer {n}"

    return Scripted(answer)


def fair(prompt, n):
    return "[[A]]" if "Answer A:\ngood" in prompt else "[[B]]"


def test_four_rounds_behind_four_own_answers_in_both_orders():
    generator = scripted(fair)
    (rounds,) = rounds_of([PAIR], Replies(generator), PROMPTS, Rules())
    assert [one.swapped for one in rounds] == [False, True, False, True]
    assert [one.vote for one in rounds] == ["first"] * 4
    roles = [message.role for message in messages_of(rounds[1].asked, "user")]
    assert roles == ["user", "assistant", "user", "assistant", "user"]
    assert [f"own answer {r}" in one.asked for r, one in enumerate(rounds)] == [True] * 4
    assert "Answer A:\nbad" in rounds[1].asked and "Answer A:\ngood" in rounds[2].asked
    assert len(generator.asked) == 12


def test_the_direct_baseline_draws_anew_each_round():
    generator = scripted(fair)
    (rounds,) = rounds_of([PAIR], Replies(generator), PROMPTS, Rules(reference="none"))
    assert len(generator.asked) == 8 and not any("own answer" in prompt for prompt in generator.asked)
    assert len({one.asked for one in rounds}) == 4  # four critiques


def test_the_likelier_verdict_is_a_vote_without_a_decision():
    generator = scripted(lambda prompt, n: pytest.fail("was asked"))

    def likelihood(texts):  # of one that likes the good answer, and the first place a little
        return [2.0 * ((said == "[[A]]") == ("Answer A:\ngood" in asked)) + (said == "[[A]]") for asked, said in texts]

    rules = Rules(decision="likelier")
    rounds = rounds_of([PAIR], Replies(generator), PROMPTS, rules, likelihood)
    assert [one.vote for one in rounds[0]] == ["first"] * 4 and [one.decision for one in rounds[0]][:2] == [
        "[[A]]",
        "[[B]]",
    ]
    assert strengths(rounds, PROMPTS, rules, likelihood) == [2.0]  # what places do to it cancels
    with pytest.raises(ValueError, match="decision is likelier, which this generator cannot give; choose written"):
        rounds_of([PAIR], Replies(scripted(fair)), PROMPTS, rules)


def test_votes_become_soft_labels_of_the_trainer():
    def leaning(prompt, n):  # the place counts once in four
        return "[[A]]" if "own answer 3" in prompt else fair(prompt, n)

    rounds = rounds_of([PAIR], Replies(scripted(leaning)), PROMPTS, Rules(strength="votes", scale=2.0))
    strength = strengths(rounds, PROMPTS, Rules(strength="votes", scale=2.0), None)
    assert strength == [pytest.approx(2 * 0.5)]
    (record,), dropped = labeled([PAIR], rounds, strength, Rules())
    assert not dropped and sorted(record.votes) == [(0, 1), (1, 0), (1, 0), (1, 0)] and record.ranks == (0.0, 1.0)
    by_votes = Order("votes").apply(record).columns["pair_target"]
    assert by_votes == record.columns["pair_target"] == ((-1.0, 0.75), (0.25, -1.0))
    assert Order("targets").apply(record).columns["pair_margin"] == ((0.0, strength[0]), (-strength[0], 0.0))


def rounds(*votes):
    return [Round(r % 2 == 1, f"asked {r}", "", math.log(0.5), vote) for r, vote in enumerate(votes)]


def test_strengths_by_probabilities():
    def likelihood(texts):  # of a judge of places that leans to the first output
        return [
            (-1.0 if said == "[[A]]" else -2.0) + (0.5 if int(asked[-1]) % 2 == (said == "[[B]]") else 0.0)
            for asked, said in texts
        ]

    both = [rounds("first", "first"), rounds("first", "second"), rounds("second", Unread("no verdict"))]
    assert strengths(both, PROMPTS, Rules(), likelihood) == [pytest.approx(x) for x in (0.5, 0.5, 1.5)]
    assert strengths(both, PROMPTS, Rules(limit=0.25), likelihood) == [0.25] * 3
    assert strengths(both, PROMPTS, Rules(strength="perplexity"), None) == [0.5, 0.0, -0.5]
    with pytest.raises(ValueError, match="strength is likelihood, which this generator cannot give"):
        strengths(both, PROMPTS, Rules(), None)
    without = [[dataclasses.replace(one, log_prob=None) for one in both[0]]]
    with pytest.raises(ValueError, match="no log-probabilities; set log_probs"):
        strengths(without, PROMPTS, Rules(strength="perplexity"), None)


@pytest.mark.parametrize(
    ("votes", "reason"),
    [
        (("first", Unread("no verdict")), "an order without a readable decision"),
        (("first", "second"), "as many votes for each answer"),
        (("equal", "equal"), "as many votes for each answer"),
        (("first", "second", "first"), "as many votes for each answer"),  # a judge of places
        (("first", "second", Unread("no verdict"), "second"), "as many votes for each answer"),
    ],
)
def test_what_gets_no_label_is_counted(votes, reason):
    assert labeled([PAIR], [rounds(*votes)], [0.0], Rules()) == ([], {reason: 1})


def test_ties_may_be_kept_and_other_numbers_of_answers_never():
    (record,), _ = labeled([PAIR], [rounds("first", "second")], [0.0], Rules(ties="keep"))
    assert record.ranks == (0.0, 0.0) and record.columns["pair_target"][0][1] == 0.5
    three = Comparison("p", ("a", "b", "c"))
    assert rounds_of([three], Replies(scripted(fair)), PROMPTS, Rules()) == [[]]
    assert labeled([three], [[]], [0.0], Rules()) == ([], {"not two outputs": 1})


@pytest.fixture
def options(tmp_path):
    rows = [{"id": f"r{i}", "prompt": f"prompt {i}", "chosen": "good", "rejected": "bad"} for i in range(6)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Options(MODEL, str(tmp_path / "data.jsonl"), tmp_path / "out.jsonl", Rules(strength="votes"))


def test_the_data_are_not_overwritten(options):
    with pytest.raises(OSError, match="data.jsonl would be overwritten; name another --out"):
        annotate(dataclasses.replace(options, out=Path(options.data)))


def test_the_command_writes_records_and_a_report(options, monkeypatch):
    def decide(prompt, n):
        if "prompt 0" in prompt:
            return "Both are good."
        if "prompt 1" in prompt:
            return None
        return "[[A]]" if "prompt 2" in prompt else fair(prompt, n)

    generator = scripted(decide)
    monkeypatch.setattr(generators, "open_generator", lambda model, how: generator)
    report = annotate(options)
    records = open_records(options.out)
    assert [record.id for record in records] == ["r3", "r4", "r5"]
    assert all(Order("votes").apply(record).columns["pair_target"][0][1] == 1.0 for record in records)
    assert report["dropped"] == {"an order without a readable decision": 2, "as many votes for each answer": 1}
    assert report["failures"] == {"HTTP 500": 4} and report["unread"] == {"no verdict": 4}
    assert report["gold"]["overall"]["accuracy"] == 1.0 and report["position"]["consistent"]["value"] == 0.75
    assert any("agreement with the given order: 1.000" in line for line in notes(report))
    asked = len(generator.asked)
    annotate(options)
    assert len(generator.asked) == asked + 4  # what failed, and nothing else


@pytest.mark.slow
@pytest.mark.parametrize("order", ["votes", "targets"])
def test_the_trainer_takes_the_records(options, monkeypatch, home, tmp_path, order):  # noqa: F811
    monkeypatch.setattr(generators, "open_generator", lambda model, how: scripted(fair))
    annotate(options)
    changes = {"data__path": str(options.out), "data__reference": "optional", "loss__order": order, "run__steps": 2}
    Trainer(configured(home, methods.METHODS["preference"], **changes), tmp_path / order).run()
    assert (tmp_path / order / "metrics.jsonl").read_text()


def test_a_server_cannot_give_likelihoods(options, monkeypatch):
    monkeypatch.setattr(generators, "open_generator", lambda model, how: pytest.fail("was asked"))
    for rules in (Rules(), Rules(strength="votes", decision="likelier")):
        with pytest.raises(
            ValueError, match="choose --strength=perplexity or --strength=votes, and --decision=written"
        ):
            annotate(dataclasses.replace(options, rules=rules))


def test_likelihoods_are_those_that_the_policy_draws_with(tiny_config, random_params):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer.from_bpe(["<e>", "<f>", *alphabet], [], ["<e>", "<f>"])
    config = dataclasses.replace(tiny_config, vocab_size=tokenizer.vocab_size, tied_embeddings=False)
    params = random_params(config, 3)
    params["output"]["kernel"][:, 0] *= 3  # the end token comes after a few others
    encoder = Encoder(tokenizer, Format(kind="plain", reward_token="<f>", end_token="<e>"), 128)
    generator = LocalGenerator(config, params, encoder, Decoding(1.0), 10, slots=8)
    (record,) = generator([Comparison("ab", (), id="r")], 32, 0).records
    ended = [
        n
        for n, text in enumerate(record.outputs)
        if text and "\ufffd" not in text and not record.columns["truncated"][n]
    ]
    assert ended
    found = likelihood_of(generator)([("ab", record.outputs[n]) for n in ended])
    assert found == pytest.approx([np.mean(record.columns["log_probs"][n]) for n in ended], abs=1e-4)
