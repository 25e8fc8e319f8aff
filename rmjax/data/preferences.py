"""Real preference sets as comparisons.

The sets lie beside the project (`../shared/data`), never in it. One function per set turns a row
into a `Comparison`, or into None after counting the reason in `dropped`. Sources and licenses:
`../shared/data/MANIFEST.md`.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rmjax.data.record import Comparison, RecordError, parse, ranks_from_scores
from rmjax.data.rows import iterate_rows

logger = logging.getLogger(__name__)

Dropped = collections.Counter[str]

# A voter's value for the outputs (a, b).
_VOTE_VALUES = {"a": [1.0, 0.0], "b": [0.0, 1.0], "tie": [0.5, 0.5]}
_WINNER_RANKS = {"a": [0.0, 1.0], "b": [1.0, 0.0]}
# The order in which fine_grained_qa lists its six preferences over answers 0 … 3.
_QA_PAIRS = tuple(itertools.combinations(range(4), 2))


@dataclasses.dataclass(frozen=True)
class PreferenceSet:
    """Where a set lies under the data root, and how one of its rows is read."""

    file: str
    convert: Callable[[Mapping, str, Dropped], Sequence[Comparison]]


def set_path(name: str, root: str | Path) -> Path:
    """The file of one of `PREFERENCE_SETS` under the data root."""
    return Path(root) / PREFERENCE_SETS[name].file


def load_preferences(
    name: str, root: str | Path, split_votes: bool = False, dropped: Dropped | None = None
) -> list[Comparison]:
    """Reads one of `PREFERENCE_SETS`; logs how many rows were dropped and why.

    Args:
      name: hh_harmless, llmfao_crowd, pandalm_human, fine_grained_qa, fine_grained_triples,
        rmb_pairwise_dev or rmb_bon_dev. The rmb sets are for evaluation only.
      root: the data directory, the one with `preferences/` and `rm_dev/` in it.
      split_votes: keep pairs whose votes give no ranks (no most frequent vote, or most say tie) but order the two, for
        training on votes.
      dropped: gets the number of dropped rows by reason.

    Raises:
      KeyError: unknown name.
      FileNotFoundError: the directory or the file is absent.
      RecordError: a row that does not have the set's fields, or other values in them.
    """
    if name not in PREFERENCE_SETS:
        raise KeyError(f"{name}: unknown preference set; use one of {', '.join(PREFERENCE_SETS)}")
    if not Path(root).is_dir():
        raise FileNotFoundError(
            f"{root}: no such directory; the preference sets are expected in ../shared/data beside "
            "the project, with preferences/ and rm_dev/ in it"
        )
    chosen = PREFERENCE_SETS[name]
    dropped = collections.Counter() if dropped is None else dropped
    comparisons: list[Comparison] = []
    row_count = 0
    for place, row in iterate_rows(set_path(name, root)):
        row_count += 1
        found = _converted(chosen, row, place, dropped)
        comparisons.extend(c for c in found if _is_usable(c, split_votes, dropped))
    reasons = ", ".join(f"{count} × {reason}" for reason, count in sorted(dropped.items()))
    logger.info(
        "%s: %d comparisons from %d rows; dropped: %s",
        name,
        len(comparisons),
        row_count,
        reasons or "none",
    )
    return comparisons


def _converted(chosen: PreferenceSet, row: object, place: str, dropped: Dropped) -> Sequence[Comparison]:
    """The row's comparisons; RecordError where its fields hold something else than the set's do."""
    try:
        return chosen.convert(_checked(row, place), place, dropped)
    except RecordError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        detail = f"{type(error).__name__}: {error}"
        raise RecordError(
            place, "", "not a row of this set", "get the file named in MANIFEST.md again", detail
        ) from error


def _is_usable(c: Comparison, split_votes: bool, dropped: Dropped) -> bool:
    """Whether the record has an order, or with `split_votes` votes that give one; otherwise it is counted."""
    if c.ranks is not None or c.votes is None or (split_votes and any(len(set(vote)) > 1 for vote in c.votes)):
        return True
    first, second, tied = (sum(vote[0] == value for vote in c.votes) for value in (1.0, 0.0, 0.5))
    dropped["tie" if tied > max(first, second) else "no most frequent vote"] += 1
    return False


def hh_harmless(row: Mapping, place: str, dropped: Dropped) -> Comparison | None:
    """HH-RLHF, harmless-base (Bai et al. 2022): one human choice per pair."""
    texts = [_get(row, "chosen", place), _get(row, "rejected", place)]
    if _any_empty(texts, dropped):
        return None
    fields = {"prompt": _get(row, "prompt", place), "chosen": texts[0], "rejected": texts[1]}
    return parse({**fields, "id": row.get("id"), "source": "hh_harmless"}, place)


def llmfao_crowd(row: Mapping, place: str, dropped: Dropped) -> Comparison | None:
    """llmfao (Ustalov 2023): 1 to 5 crowd votes per pair; see `_voted_pair`.

    The category is the set's prompt type.
    """
    votes = [vote["winner"] for vote in _get(row, "votes", place)]
    policies = [_get(row, "model_a", place), _get(row, "model_b", place)]
    facts = {"policies": policies, "category": row.get("type"), "source": "llmfao_crowd"}
    return _voted_pair(row, votes, facts, place, dropped)


def pandalm_human(row: Mapping, place: str, dropped: Dropped) -> Comparison | None:
    """PandaLM test set (Wang et al. 2023): three annotators per pair; see `_voted_pair`."""
    # "bloom-7b_opt-7b": the models of response_a and response_b, in this order.
    policies = _get(row, "models", place).split("_")
    facts = {"policies": policies, "source": "pandalm_human"}
    return _voted_pair(row, _get(row, "votes", place), facts, place, dropped)


def fine_grained_qa(row: Mapping, place: str, dropped: Dropped) -> Comparison | None:
    """FineGrainedRLHF question answering (Wu et al. 2023): four samples of one policy.

    The six pairwise preferences become ranks by number of wins. Rows whose preferences are not
    those of any ranking with ties, and rows that are all ties, are dropped. The reference is the
    answer written by a human.
    """
    better = _qa_better(row, place)
    wins = [sum(winner == i for winner, _ in better) for i in range(4)]
    ranks = ranks_from_scores(wins)
    implied = {(i, j) for i, j in itertools.permutations(range(4), 2) if ranks[i] < ranks[j]}
    if better != implied:
        dropped["preferences not transitive"] += 1
        return None
    if not better:
        dropped["all answers tied"] += 1
        return None
    answers = _get(row, "answers", place)
    known = {"outputs": answers, "ranks": list(ranks), "reference": _get(row, "gold", place)}
    return parse({**_qa_facts(row, place, len(answers)), **known}, place)


def fine_grained_triples(row: Mapping, place: str, dropped: Dropped) -> list[Comparison]:
    """POLAR triples of `fine_grained_qa` rows: best as reference, second chosen, third rejected.

    One for each three answers that are strictly ordered among themselves (none to four a row),
    the best reference first; POLAR paper (arXiv 2507.05197), equation 8.
    """
    better = _qa_better(row, place)
    answers = _get(row, "answers", place)
    triples = []
    for best, second, third in itertools.permutations(range(4), 3):
        if {(best, second), (second, third), (best, third)} <= better:
            texts = {"chosen": answers[second], "rejected": answers[third]}
            name = f"{row.get('id')}/{best}{second}{third}"
            facts = {**_qa_facts(row, place, 2), "id": name, "source": "fine_grained_triples"}
            triples.append(parse({**facts, "reference": answers[best], **texts}, place))
    if not triples:
        dropped["no three answers strictly ordered"] += 1
    return triples


def rmb_pairwise_dev(row: Mapping, place: str, dropped: Dropped) -> Comparison | None:
    """RMB (Zhou et al. 2024), pairwise part, development slice. For evaluation only."""
    texts = [_get(row, "chosen", place), _get(row, "rejected", place)]
    if _any_empty(texts, dropped):
        return None
    policies = [_get(row, "chosen_model", place), _get(row, "rejected_model", place)]
    fields = {"chosen": texts[0], "rejected": texts[1], "policies": policies}
    return parse({**_rmb_facts(row, place), **fields, "source": "rmb_pairwise_dev"}, place)


def rmb_bon_dev(row: Mapping, place: str, dropped: Dropped) -> Comparison | None:
    """RMB, best-of-N part, development slice: the best answer first. For evaluation only."""
    losers = _get(row, "losers", place)
    texts = [_get(row, "best", place), *(loser["answer"] for loser in losers)]
    if _any_empty(texts, dropped):
        return None
    policies = [_get(row, "best_model", place), *(loser["model"] for loser in losers)]
    fields = {"outputs": texts, "best": 0, "policies": policies, "source": "rmb_bon_dev"}
    return parse({**_rmb_facts(row, place), **fields}, place)


def _checked(row: object, place: str) -> Mapping:
    if not isinstance(row, Mapping):
        raise RecordError(place, "", "not a JSON object", "get the file again")
    return row


def _get(row: Mapping, field: str, place: str):  # type: ignore[no-untyped-def]
    if row.get(field) is None:
        raise RecordError(place, field, "missing", "get the file named in MANIFEST.md again")
    return row[field]


def _any_empty(texts: Sequence[str], dropped: Dropped) -> bool:
    if all(text.strip() for text in texts):
        return False
    dropped["empty output"] += 1
    return True


def _voted_pair(row: Mapping, votes: Sequence[str], facts: Mapping, place: str, dropped: Dropped) -> Comparison | None:
    """A pair ranked by its most frequent vote (a, b or tie); without ranks where that is a tie, or where there is none.

    Dropped where an answer is empty. All votes are kept, ties as one half each.
    """
    texts = [_get(row, "response_a", place), _get(row, "response_b", place)]
    if _any_empty(texts, dropped):
        return None
    (winner, count), *others = collections.Counter(votes).most_common()
    is_ranked = winner != "tie" and not (others and others[0][1] == count)
    known = {"votes": [_VOTE_VALUES[vote] for vote in votes]} | ({"ranks": _WINNER_RANKS[winner]} if is_ranked else {})
    base = {"prompt": _get(row, "prompt", place), "id": row.get("id"), "outputs": texts}
    return parse({**base, **facts, **known}, place)


def _qa_better(row: Mapping, place: str) -> set[tuple[int, int]]:
    """The strict preferences as (better, worse) pairs of answer indices."""
    preference = _get(row, "preference", place)
    if len(preference) != len(_QA_PAIRS) or len(_get(row, "answers", place)) != 4:
        problem = "not six preferences over four answers"
        raise RecordError(place, "preference", problem, "get the file again")
    pairs = zip(_QA_PAIRS, preference, strict=True)
    return {(i, j) if code == 1 else (j, i) for (i, j), code in pairs if code}


def _qa_facts(row: Mapping, place: str, count: int) -> dict[str, object]:
    # The question comes last: POLAR's truncation keeps the tail of a prompt.
    passages = ["\n".join(passage) for passage in _get(row, "passages", place)]
    prompt = "\n\n".join([*passages, _get(row, "question", place)])
    policies = ["fine_grained_qa"] * count  # the set's one, unnamed policy
    return {
        "prompt": prompt,
        "policies": policies,
        "id": row.get("id"),
        "source": "fine_grained_qa",
    }


def _rmb_facts(row: Mapping, place: str) -> dict[str, object]:
    return {
        "prompt": _get(row, "prompt", place),
        "category": _get(row, "category", place),
        "id": row.get("id"),
    }


def _one(
    convert: Callable[[Mapping, str, Dropped], Comparison | None],
) -> Callable[[Mapping, str, Dropped], list[Comparison]]:
    """Wraps a function that gives one comparison or None into one that gives a list."""

    def convert_to_list(row: Mapping, place: str, dropped: Dropped) -> list[Comparison]:
        comparison = convert(row, place, dropped)
        return [] if comparison is None else [comparison]

    return convert_to_list


PREFERENCE_SETS = {
    "hh_harmless": PreferenceSet("preferences/hh_harmless.jsonl.zst", _one(hh_harmless)),
    "llmfao_crowd": PreferenceSet("preferences/llmfao_crowd.jsonl.zst", _one(llmfao_crowd)),
    "pandalm_human": PreferenceSet("preferences/pandalm_human.jsonl.zst", _one(pandalm_human)),
    "fine_grained_qa": PreferenceSet("preferences/fine_grained_qa.jsonl.zst", _one(fine_grained_qa)),
    "fine_grained_triples": PreferenceSet("preferences/fine_grained_qa.jsonl.zst", fine_grained_triples),
    "rmb_pairwise_dev": PreferenceSet("rm_dev/rmb_pairwise_dev.jsonl.zst", _one(rmb_pairwise_dev)),
    "rmb_bon_dev": PreferenceSet("rm_dev/rmb_bon_dev.jsonl.zst", _one(rmb_bon_dev)),
}
