"""Self-reference AI feedback (arXiv 2406.11190): a model answers, criticizes two answers beside its own, and decides.

Each round shows the two answers in the other order than the round before, behind an answer of its own, and casts a vote. The
votes and a strength of the preference are written into the records, where the trainer reads them as soft labels. Prompts, the
rule of votes and the formula of "semantic perplexity" are not public; what is here is ours and named.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rmjax.data.messages import ASSISTANT, USER, Message, messages_of, text_of
from rmjax.data.record import Comparison
from rmjax.judges.forms import EQUAL, Form, Unread
from rmjax.judges.generators import Generation
from rmjax.judges.replies import Drawn, Question, Replies
from rmjax.judges.spec import read_form
from rmjax.judges.templates import Template, read_prompts, text_at, turns
from rmjax.rewards.texts import without_thinking
from rmjax.sections import choice, number, read

Likelihood = Callable[[Sequence[tuple[str, str]]], list[float]]
"""(Prompt, reply) → mean log-probability of the reply's tokens, in nats."""
STRENGTHS = ("likelihood", "perplexity", "votes")
NOT_TWO, UNREAD_ORDER, NO_WINNER = (
    "not two outputs",
    "an order without a readable decision",
    "as many votes for each answer",
)


@dataclasses.dataclass(frozen=True)
class Rules:
    """How often it is asked, and what becomes of the decisions."""

    rounds: int = number(4, low=2)  # votes; even ones show the answers as they are, odd ones the other way round
    reference: str = choice("own", "own", "none")  # own: a new answer of its own each round | none: the direct baseline
    decision: str = choice(
        "written", "written", "likelier"
    )  # a vote: what it writes | the verdict that it finds likelier
    strength: str = choice("likelihood", *STRENGTHS)  # what becomes the pair's margin
    scale: float = number(1.0, low=0.0)  # factor on it, in units of reward
    limit: float = number(4.0, above=0.0)  # size of a margin at most
    ties: str = choice("drop", "drop", "keep")  # records with as many votes for each answer


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The texts of a file of prompts."""

    critique: Template
    direct: Template
    decide: Template
    principle: str
    form: Form
    generation: Generation

    @classmethod
    def load(cls, name: str = "self_reference") -> "Prompts":
        """One that ships, or a TOML file. FileNotFoundError, PromptError, ValueError: as `templates.read_prompts`."""
        tables, place = read_prompts(name)
        answers, known = ("answer_a", "answer_b"), ("principle", "answer_a", "answer_b", "turns")
        form = read_form(tables.get("form", {}), f"{place}: form")
        for meaning in ("first", "second"):
            form.written(meaning)
        return cls(
            text_at(tables, "critique", place).checked(known, answers),
            text_at(tables, "direct", place).checked(known, (*answers, "turns")),
            text_at(tables, "decide", place).checked(known),
            text_at(tables, "principle", place).source,
            form,
            read(Generation, tables.get("generation", {}), f"{place}: generation"),
        )


@dataclasses.dataclass(frozen=True)
class Round:
    """One round about a record: what was asked last, and what was decided."""

    swapped: bool
    asked: str  # the conversation up to the decision
    decision: str
    log_prob: float | None  # mean of the decision's tokens, as drawn
    vote: str | Unread  # first | second, of the outputs as the record has them | equal


def rounds_of(
    records: Sequence[Comparison],
    replies: Replies,
    prompts: Prompts,
    rules: Rules,
    likelihood: Likelihood | None = None,
) -> list[list[Round]]:
    """The rounds of each record of two outputs that could be had whole; others have none. Every step is asked of all records
    before the next.

    Raises:
      ValueError: the likelier verdict is wanted, and there is no likelihood.
    """
    places = [(n, r) for n, c in enumerate(records) if len(c.outputs) == 2 for r in range(rules.rounds)]
    opened = _opened(records, places, replies, prompts, rules)
    critiques = _asked(replies, opened, "critique", records)
    decided = {
        place: _behind(opened[place], critiques[place].text, prompts.decide.render(**_fields(prompts, records, place)))
        for place in critiques
    }
    if rules.decision == "likelier":
        decisions = _likelier(decided, prompts, likelihood)
    else:
        decisions = _asked(replies, decided, "decision", records)
    found: list[list[Round]] = [[] for _ in records]
    for (n, r), decision in decisions.items():
        vote = _of_record(prompts.form.choice(decision.text), r % 2 == 1)
        found[n].append(Round(r % 2 == 1, decided[n, r], decision.text, decision.facts.get("log_probs"), vote))
    return found


Place = tuple[int, int]
"""(record, round)."""


def _opened(
    records: Sequence[Comparison], places: Sequence[Place], replies: Replies, prompts: Prompts, rules: Rules
) -> dict[Place, str]:
    """The conversations up to the request for a critique."""
    if rules.reference == "none":
        return {p: prompts.direct.render(**_fields(prompts, records, p)) for p in places}
    chosen = sorted({n for n, _ in places})
    questions = [Question(records[n].prompt, rules.rounds, f"{_name(records[n])} own answer") for n in chosen]
    own = dict(zip(chosen, replies.ask(questions), strict=True))
    return {
        (n, r): _behind(records[n].prompt, own[n][r], prompts.critique.render(**_fields(prompts, records, (n, r))))
        for n, r in places
        if r < len(own[n])
    }


def _asked(
    replies: Replies, asked: Mapping[Place, str], step: str, records: Sequence[Comparison]
) -> dict[Place, Drawn]:
    """A reply to each conversation that has one. Equal ones, of rounds without an own answer say, get one sample each."""
    questions = [Question(text, about=f"{_name(records[n])} round {r} {step}") for (n, r), text in asked.items()]
    drawn = dict(zip(asked, replies.draw(questions), strict=True))
    return {place: reply for place, reply in drawn.items() if reply is not None}


def _likelier(asked: Mapping[Place, str], prompts: Prompts, likelihood: Likelihood | None) -> dict[Place, Drawn]:
    """Of two verdicts the one that the model finds likelier, the first where they are equal."""
    if likelihood is None:
        raise ValueError("decision is likelier, which this generator cannot give; choose written")
    verdicts = [prompts.form.written(meaning) for meaning in ("first", "second")]
    values = likelihood([(prompt, verdict) for prompt in asked.values() for verdict in verdicts])
    pairs = zip(values[::2], values[1::2], strict=True)
    return {place: Drawn(verdicts[b > a], {"log_probs": max(a, b)}) for place, (a, b) in zip(asked, pairs, strict=True)}


def _fields(prompts: Prompts, records: Sequence[Comparison], place: Place) -> dict[str, Any]:
    n, r = place
    a, b = records[n].outputs if r % 2 == 0 else records[n].outputs[::-1]
    return {
        "principle": prompts.principle, "answer_a": str(a), "answer_b": str(b), "turns": turns(records[n].prompt)
    }  # fmt: skip


def _behind(prompt: str, answer: str, request: str) -> str:
    """The conversation that goes on with an answer, without its thinking, and a further request."""
    said = without_thinking(answer).strip()
    return text_of([*messages_of(prompt, USER), Message(ASSISTANT, said), Message(USER, request)], USER)


def _of_record(vote: str | Unread, swapped: bool) -> str | Unread:
    if isinstance(vote, Unread) or vote == EQUAL or not swapped:
        return vote
    return "second" if vote == "first" else "first"


def _name(c: Comparison) -> str:
    return c.id or c.place


# --- records ------------------------------------------------------------------------------------------------------------

_VOTES = {"first": (1.0, 0.0), "second": (0.0, 1.0), EQUAL: (0.0, 0.0)}


def strengths(
    rounds: Sequence[Sequence[Round]], prompts: Prompts, rules: Rules, likelihood: Likelihood | None
) -> list[float]:
    """Of each record how much the first output is preferred to the second one, scaled and limited; 0 without a readable round.

    votes: 2p − 1, p the fraction of votes for it. perplexity: the mean of ±1/perplexity of a round's decision, its sign that of
    the vote. likelihood: log P(it) − log P(the other) behind each critique, a mean over a decision's tokens. Each is a mean over
    the rounds of an order, then over orders.

    Raises:
      ValueError: a strength that this generator does not give.
    """
    if rules.strength == "likelihood" and likelihood is None:
        raise ValueError("strength is likelihood, which this generator cannot give; choose perplexity or votes")
    if rules.strength == "likelihood" and likelihood is not None:
        raw = _by_likelihood(rounds, prompts, likelihood)
    else:
        raw = [
            _mean_of_orders(of_record, _signed if rules.strength == "votes" else _by_perplexity) for of_record in rounds
        ]
    return [float(np.clip(rules.scale * value, -rules.limit, rules.limit)) for value in raw]


def _signed(one: Round) -> float:
    return {"first": 1.0, "second": -1.0}.get(str(one.vote), 0.0)


def _by_perplexity(one: Round) -> float:
    if one.log_prob is None:
        raise ValueError(
            "strength is perplexity, and the generator gave no log-probabilities; set log_probs in [generation], or choose votes"
        )
    return _signed(one) * float(np.exp(one.log_prob))


def _by_likelihood(rounds: Sequence[Sequence[Round]], prompts: Prompts, likelihood: Likelihood) -> list[float]:
    every = [one for of_record in rounds for one in of_record]
    said = [(one.asked, prompts.form.written(meaning)) for one in every for meaning in ("first", "second")]
    values = likelihood(said)
    gaps = {id(one): values[2 * i] - values[2 * i + 1] for i, one in enumerate(every)}
    return [
        _mean_of_orders(of_record, lambda one: -gaps[id(one)] if one.swapped else gaps[id(one)]) for of_record in rounds
    ]


def _mean_of_orders(rounds: Sequence[Round], value: Callable[[Round], float]) -> float:
    """Each order counts alike, however many of its rounds could be read."""
    readable = [one for one in rounds if not isinstance(one.vote, Unread)]
    means = [
        np.mean(of_order) for s in (False, True) if (of_order := [value(one) for one in readable if one.swapped == s])
    ]
    return float(np.mean(means)) if means else 0.0


def labeled(
    records: Sequence[Comparison], rounds: Sequence[Sequence[Round]], strength: Sequence[float], rules: Rules
) -> tuple[list[Comparison], Counter[str]]:
    """The records with `votes`, ranks by their majority, `pair_target` (the fraction of votes) and `pair_margin` (the strength),
    and why others are left out.

    A record needs a readable decision in each order. What it said of order before is replaced.
    """
    kept, dropped = [], Counter[str]()
    for c, of_record, margin in zip(records, rounds, strength, strict=True):
        if len(c.outputs) != 2:
            dropped[NOT_TWO] += 1
            continue
        votes = votes_of(of_record)
        if not votes:
            dropped[UNREAD_ORDER] += 1
            continue
        fraction = float(np.mean([(1 + a - b) / 2 for a, b in votes]))
        if fraction == 0.5 and rules.ties == "drop":
            dropped[NO_WINNER] += 1
            continue
        kept.append(_labeled(c, votes, fraction, margin))
    return kept, dropped


def votes_of(of_record: Sequence[Round]) -> tuple[tuple[float, float], ...]:
    """As many readable votes of one order as of the other, the first ones of each; otherwise who prefers a place would seem to
    prefer an answer. Empty where an order has none."""
    by_order: list[list[tuple[float, float]]] = [[], []]
    for one in of_record:
        if isinstance(one.vote, str):
            by_order[one.swapped].append(_VOTES[one.vote])
    return tuple(vote for pair in zip(*by_order, strict=False) for vote in pair)


def _labeled(c: Comparison, votes: tuple[tuple[float, float], ...], fraction: float, margin: float) -> Comparison:
    columns = {
        **c.columns, "pair_target": ((-1.0, fraction), (1 - fraction, -1.0)), "pair_margin": ((0.0, margin), (-margin, 0.0))
    }  # fmt: skip
    ranks = (0.0, 1.0) if fraction > 0.5 else (1.0, 0.0) if fraction < 0.5 else (0.0, 0.0)
    return dataclasses.replace(c, votes=votes, ranks=ranks, scores=None, columns=columns)
