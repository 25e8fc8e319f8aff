"""Layouts of published benchmarks of reward models, as they are downloaded."""

from __future__ import annotations

from typing import Any

from rmjax.data.errors import RecordError
from rmjax.data.layouts.layout import Fields, Layout, Row, inner, label, pair, text, texts, turns

_AGAIN = "get the file again, or drop the row"


def _rmb_facts(row: Row, uid: str, place: str) -> Fields:
    category = text(row, "category_path", place).partition("/")[2]
    said = turns(
        row.get("conversation_input"), "conversation_input", place
    )  # each with its language, which nobody reads
    bare = [{"role": turn["role"], "content": turn["content"]} for turn in said]
    return {"messages": bare, "category": category, "id": text(row, uid, place)}


def rmb_pairwise(row: Row, place: str) -> list[Fields]:
    """RMB, pairwise set: the field of the worse answer is `reject`."""
    sides = ("chosen", "reject")
    answers = {"chosen": inner(row, "chosen", "answer", place), "rejected": inner(row, "reject", "answer", place)}
    policies = [inner(row, side, "llm_name", place) for side in sides]
    return [{**_rmb_facts(row, "pair_uid", place), **answers, "policies": policies, "source": "rmb_pairwise"}]


def rmb_bon(row: Row, place: str) -> list[Fields]:
    """RMB, best-of-N set: the best answer first."""
    losers = row.get("loser_list")
    if not isinstance(losers, list) or not losers:
        raise RecordError(place, "loser_list", "not a list of answers", _AGAIN)
    every = [("bon_best", row.get("bon_best")), *((f"loser_list[{i}]", loser) for i, loser in enumerate(losers))]
    outputs, policies = ([inner({name: v}, name, key, place) for name, v in every] for key in ("answer", "llm_name"))
    facts = _rmb_facts(row, "bon_uid", place)
    return [{**facts, "outputs": outputs, "best": 0, "policies": policies, "source": "rmb_bon"}]


def reward_bench(row: Row, place: str) -> list[Fields]:
    """RewardBench: a pair and its subset."""
    models = [row.get("chosen_model") or "unknown", row.get("rejected_model") or "unknown"]
    return [{"prompt": text(row, "prompt", place), "chosen": text(row, "chosen", place),
             "rejected": text(row, "rejected", place), "category": text(row, "subset", place), "policies": models,
             "id": row.get("id"), "source": "reward_bench"}]  # fmt: skip


def reward_bench_2(row: Row, place: str) -> list[Fields]:
    """RewardBench 2: one right answer, several in `Ties`, among all."""
    right, wrong = texts(row, "chosen", place), texts(row, "rejected", place)
    if isinstance(count := row.get("num_correct"), int) and count != len(right):
        detail = f"{count}, and `chosen` has {len(right)}"
        raise RecordError(place, "num_correct", "not the number of right answers", _AGAIN, detail)
    subset = text(row, "subset", place)
    return [{"prompt": text(row, "prompt", place), "chosen": right, "rejected": wrong, "category": subset,
             "id": row.get("id"), "source": "reward_bench_2"}]  # fmt: skip


def rm_bench(row: Row, place: str) -> list[Fields]:
    """RM-Bench: three right and three wrong answers, each concise, detailed, and detailed in Markdown."""
    right, wrong = texts(row, "chosen", place), texts(row, "rejected", place)
    if len(right) != 3 or len(wrong) != 3:
        raise RecordError(place, "chosen", "not three answers on each side", _AGAIN, f"{len(right)} and {len(wrong)}")
    domain = row.get("domain", row.get("subset"))
    return [{"prompt": text(row, "prompt", place), "chosen": right, "rejected": wrong, "category": domain,
             "id": row.get("id"), "source": "rm_bench"}]  # fmt: skip


_JUDGE_BENCH = {"mmlu-pro": "knowledge", "livebench-reasoning": "reasoning", "livebench-math": "math",
                "livecodebench": "coding"}  # fmt: skip


def judge_bench(row: Row, place: str) -> list[Fields]:
    """JudgeBench: the field `source` says of what kind a question is."""
    given = text(row, "source", place)
    kind = next((kind for start, kind in _JUDGE_BENCH.items() if given.startswith(start)), None)
    if kind is None:
        remedy = f"give one that begins with {', '.join(_JUDGE_BENCH)}, or drop the row"
        raise RecordError(place, "source", "unknown source", remedy, repr(given)[:40])
    better = label(row, "label", place, {"A>B": 0, "B>A": 1})
    facts = {"prompt": text(row, "question", place), "category": kind, "id": row.get("pair_id")}
    policies = [str(row.get("response_model") or "unknown")] * 2
    answers = (text(row, f"response_{side}", place) for side in "AB")
    return [pair(better, *answers, **facts, policies=policies, source="judge_bench")]


def llmbar(row: Row, place: str) -> list[Fields]:
    """LLMBar; which subset a row is of, only its folder says."""
    better = label(row, "label", place, {1: 0, 2: 1, "1": 0, "2": 1})
    answers = (text(row, f"output_{i}", place) for i in (1, 2))
    return [pair(better, *answers, prompt=text(row, "input", place), source="llmbar")]


def ppe_human(row: Row, place: str) -> list[Fields]:
    """PPE, human preference: votes of an arena, ties among them."""
    known = {"model_a": 0, "model_b": 1, "tie": None, "tie (bothbad)": None}
    better = label(row, "winner", place, known)
    answers = (text(row, f"response_{i}", place) for i in (1, 2))
    policies = [str(row.get(name) or "unknown") for name in ("model_a", "model_b")]
    facts = {"prompt": text(row, "prompt", place), "category": row.get("language"), "id": row.get("question_id")}
    return [pair(better, *answers, **facts, policies=policies, source="ppe_human")]


def ppe_correctness(row: Row, place: str) -> list[Fields]:
    """PPE, correctness: K samples of one model, right or wrong; `pair_weight` is 1 for the pairs that the benchmark has drawn."""
    marks = row.get("scores")
    if not isinstance(marks, list) or not marks or not all(isinstance(m, bool | int | float) for m in marks):
        raise RecordError(place, "scores", "not a list of numbers", _AGAIN)
    outputs = [text(row, f"response_{i + 1}", place) for i in range(len(marks))]
    drawn = [[0.0] * len(marks) for _ in marks]
    for i, j in _conflicts(row, len(marks), place):
        if marks[i] == marks[j]:
            raise RecordError(place, "sampled_conflict_pairs", "a pair of equal scores", _AGAIN, f"{i} and {j}")
        drawn[i][j] = drawn[j][i] = 1.0
    policies = [str(row.get("model_name") or "unknown")] * len(outputs)
    return [{"prompt": text(row, "prompt", place), "outputs": outputs, "scores": [float(mark) for mark in marks],
             "pair_weight": drawn, "policies": policies, "id": row.get("question_id"), "source": "ppe_correctness"}]  # fmt: skip


def _conflicts(row: Row, count: int, place: str) -> list[tuple[int, int]]:
    given: Any = row.get("sampled_conflict_pairs")
    pairs = [tuple(each) if isinstance(each, list) else () for each in given] if isinstance(given, list) else [()]
    if not all(len(each) == 2 and all(isinstance(i, int) and 0 <= i < count for i in each) for each in pairs):
        raise RecordError(place, "sampled_conflict_pairs", "not a list of pairs of samples", _AGAIN)
    return pairs  # type: ignore[return-value]  # checked


def _two_texts(row: Row) -> bool:
    return isinstance(row["chosen"], str) and isinstance(row["rejected"], str)


def _two_lists(row: Row) -> bool:
    return isinstance(row["chosen"], list) and isinstance(row["rejected"], list) and isinstance(row["prompt"], str)


LAYOUTS = (
    Layout("rmb_pairwise", "RMB, pairwise set", frozenset({"conversation_input", "chosen", "reject"}), rmb_pairwise),
    Layout("rmb_bon", "RMB, best-of-N set", frozenset({"conversation_input", "bon_best", "loser_list"}), rmb_bon),
    Layout(
        "reward_bench_2", "RewardBench 2", frozenset({"prompt", "chosen", "rejected", "num_correct", "subset"}),
        reward_bench_2, _two_lists,
    ),
    Layout(
        "reward_bench", "RewardBench", frozenset({"prompt", "chosen", "rejected", "chosen_model", "subset"}), reward_bench,
        _two_texts,
    ),
    Layout(
        "rm_bench", "RM-Bench", frozenset({"id", "prompt", "chosen", "rejected"}), rm_bench,
        lambda row: _two_lists(row) and len(row["chosen"]) == len(row["rejected"]) == 3 and not {"num_correct"} & row.keys()
        and all(isinstance(answer, str) for answer in [*row["chosen"], *row["rejected"]]),
    ),
    Layout(
        "judge_bench", "JudgeBench", frozenset({"question", "source", "response_A", "response_B", "label"}), judge_bench
    ),
    Layout("llmbar", "LLMBar", frozenset({"input", "output_1", "output_2", "label"}), llmbar),
    Layout(
        "ppe_human", "PPE, human preference", frozenset({"prompt", "response_1", "response_2", "winner"}), ppe_human
    ),
    Layout(
        "ppe_correctness", "PPE, correctness", frozenset({"prompt", "response_1", "scores", "sampled_conflict_pairs"}),
        ppe_correctness,
    ),
)  # fmt: skip
