"""What a request must say, and what is told to one that does not."""

import pytest

from rmjax.serve import dialects, openai
from rmjax.serve.dialects import Context
from rmjax.serve.items import Record, Text, Tokens
from rmjax.serve.outcomes import Refused, Rewarded
from tests.serve.conftest import SPLIT

POLAR = Context("m", "f", "polar", SPLIT)
CHAT = Context("m", "f", "chat")
ONE = Rewarded((1.5,), (7,), (True,))


@pytest.mark.parametrize(
    ("dialect", "body", "said"),
    [
        (dialects.get_reward, {}, "neither `query` nor `prompt`"),
        (dialects.get_reward, {"query": "text"}, "`query` is not a list of strings"),
        (dialects.get_reward, {"query": ["a", 3]}, "`query` is not a list of strings"),
        (dialects.get_reward, {"query": ["a"], "prompts": ["a", "b"]}, "`prompts` is not a list of 1"),
        (dialects.get_reward, {"query": ["a"], "prompts": [3]}, "`prompts` is not a list of strings"),
        (dialects.get_reward, {"query": ["ab"], "prompts": ["b"]}, r"query\[0\] does not begin with its prompt"),
        (dialects.get_reward, {"query": ["ab"], "labels": ["r"]}, r"query\[0\] has a label and no prompt"),
        (dialects.get_reward, {"query": ["ab"], "prompts": ["a"], "labels": [{"r": 1}]}, "a label that is neither text"),
        (dialects.get_reward, {"query": ["ab"], "prompts": ["a"], "labels": [True]}, "a label that is neither text"),
        (dialects.get_reward, {"query": [f"a{SPLIT}b"], "prompts": [""]}, "has the separator, and its prompt is empty"),
        (dialects.get_reward, {"prompt": "a", "response": ["b"]}, "`response` is not a string"),
        (dialects.native, {"records": "a"}, "`records` is not a list"),
        (dialects.native, {"rows": []}, "`records` is not a list"),
        (dialects.native, {"records": [{}, 1]}, r"records\[1\] is not an object"),
        (openai.classify, {"model": "m"}, "`input` is missing"),
        (openai.classify, {"input": {"a": 1}}, "`input` is no text"),
        (openai.classify, {"input": ["a", 1]}, "`input` is no text"),
        (openai.classify, {"input": [[True]]}, "`input` is no text"),
        (openai.classify, {"input": "a", "truncate_prompt_tokens": 9}, "`truncate_prompt_tokens` asks for other numbers"),
        (openai.classify, {"input": "a", "normalize": True}, "`normalize` asks for other numbers"),
        (openai.pooling, {"input": "a", "encoding_format": "hex"}, "`encoding_format` is 'hex'"),
        (openai.embeddings, {"input": "a", "dimensions": 3}, "`dimensions` asks for other numbers"),
        (openai.score, {"text_1": "a"}, "has no two sides"),
        (openai.score, {"text_1": ["a", "b"], "text_2": ["c"]}, "do not pair up"),
        (openai.score, {"text_1": "a", "text_2": [3]}, "has a int as answer"),
        (openai.score, {"query": "a", "items": ["b"], "apply_softmax": True}, "`apply_softmax` asks"),
        (openai.rerank, {"query": "a"}, "`documents` is missing"),
        (openai.rerank, {"documents": ["a"]}, "has nothing as prompt"),
        (openai.rerank, {"query": "a", "documents": ["a"], "top_n": "2"}, "`top_n` is no count"),
        (openai.classify, {"input": "a", "use_activation": True}, "`use_activation` asks for other numbers"),
        (openai.score, {"text_1": "a", "text_2": "b", "activation": True}, "`activation` asks for other numbers"),
        (openai.rerank, {"query": "a", "documents": ["b"], "softmax": True}, "`softmax` asks for other numbers"),
        (openai.rerank, {"query": "a", "texts": ["b"], "raw_scores": False}, "`raw_scores` asks for other numbers"),
        (openai.predict, {"inputs": "a", "raw_scores": False}, "`raw_scores` asks for other numbers"),
        (openai.predict, {}, "`inputs` is no text"),
        (openai.predict, {"inputs": [["a", "b", "c"]]}, r"inputs\[0\] is no text and no pair"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_told_what_is_wrong(dialect, body, said):
    with pytest.raises(Refused, match=said) as refused:
        dialect(body, POLAR)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("context", "body", "item"),
    [
        (POLAR, {"query": ["ab"]}, Text("ab", "query[0]")),
        (POLAR, {"query": ["ab"], "labels": [None]}, Text("ab", "query[0]")),
        (POLAR, {"query": [f"a{SPLIT}b"]}, Text(f"a{SPLIT}b", "query[0]")),
        (POLAR, {"query": [f"a{SPLIT}ab"], "prompts": [f"a{SPLIT}a"]}, Text(f"a{SPLIT}ab", "query[0]")),
        (POLAR, {"query": [f"a{SPLIT}b"], "prompts": ["a"], "labels": ["r"]},
         Record({"prompt": "a", "output": f"{SPLIT}b", "reference": "r"}, "query[0]")),
        (POLAR, {"query": [f"ab{SPLIT}ab"], "prompts": ["a"]},
         Record({"prompt": "a", "output": f"b{SPLIT}ab"}, "query[0]")),
        (POLAR, {"query": ["ab"], "prompts": ["a"]}, Record({"prompt": "a", "output": "b"}, "query[0]")),
        (POLAR, {"query": ["ab"], "prompts": ["a"], "labels": ["r"]},
         Record({"prompt": "a", "output": "b", "reference": "r"}, "query[0]")),
        (POLAR, {"query": ["ab"], "prompts": ["a"], "labels": [["r", "s"]]},
         Record({"prompt": "a", "output": "b", "references": ["r", "s"]}, "query[0]")),
        (POLAR, {"query": ["ab"], "prompts": ["a"], "labels": [72]},
         Record({"prompt": "a", "output": "b", "reference": "72"}, "query[0]")),
        (POLAR, {"query": ["ab"], "prompts": [""]}, Text("ab", "query[0]")),
        (CHAT, {"query": ["ab"], "prompts": ["a"], "labels": ["r"]}, Text("ab", "query[0]")),
        (Context("m", "f", "plain", SPLIT), {"query": [f"a{SPLIT}"], "prompts": ["a"]},
         Record({"prompt": "a", "output": SPLIT}, "query[0]")),
        (Context("m", "f", "plain"), {"query": ["ab"], "prompts": ["a"], "labels": [7]},
         Record({"prompt": "a", "output": "b"}, "query[0]")),
        (Context("m", "f", "chat", strip=("</s>",)), {"query": ["ab</s>"]}, Text("ab", "query[0]")),
    ],
)  # fmt: skip
def test_a_query_is_split_by_what_is_known(context, body, item):
    assert dialects.get_reward(body, context).items == (item,)


@pytest.mark.parametrize(
    ("value", "items"),
    [
        ("a", [Text("a", "`x`")]),
        ([], []),
        (["a", "b"], [Text("a", "x[0]"), Text("b", "x[1]")]),
        ([1, 2], [Tokens((1, 2), "`x`")]),
        ([[1], [2, 3]], [Tokens((1,), "x[0]"), Tokens((2, 3), "x[1]")]),
    ],
)
def test_an_input_is_texts_or_ids(value, items):
    assert openai.given(value, "x") == items


def test_what_was_cut_is_seen_by_the_trainer():
    reply = dialects.get_reward({"query": ["a"]}, CHAT).reply([ONE])
    assert reply["extra_logs"] == {"reward_tokens": [7.0], "reward_truncated": [1.0]}


def test_a_prompt_for_all_answers_or_one_for_each():
    def prompts(one):
        asked = openai.score({"queries": one, "documents": ["c", "d"]}, POLAR)
        return [item.row["prompt"] for item in asked.items]

    assert (prompts("a"), prompts(["a"]), prompts(["a", "b"])) == (["a", "a"], ["a", "a"], ["a", "b"])


def test_messages_are_a_conversation():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert openai.classify({"messages": turns}, CHAT).items == (Record({"messages": turns}, "the request"),)
    assert dialects.native({"messages": turns}, CHAT).items[0].row["messages"] == turns
