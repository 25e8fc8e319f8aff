"""A preference model for chat, from a language model's weights: trained, saved, loaded, and scored as it was trained."""

import json

import numpy as np
import pytest

from configs.preference import chat
from experiments import train as command
from rmjax.data.formats import Encoder, Format
from rmjax.reward_model import RewardModel, load_description
from rmjax.start import check_format
from tests.experiments.starting import save_start

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
)
CALLS = [[{"function": {"name": name, "arguments": {}}}] for name in ("price", "delete_basket")]


def pair(i: int) -> dict:
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Is {i} even?"}]
    answers = ("Yes.", "No.") if i % 2 == 0 else ("No.", "Yes.")
    chosen, rejected = ([*asked, {"role": "assistant", "content": answer}] for answer in answers)
    return {"prompt": asked, "chosen": chosen, "rejected": rejected, "reference": "It is."}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    home = tmp_path_factory.mktemp("chat")
    (home / "pairs.jsonl").write_text("".join(json.dumps(pair(i)) + "\n" for i in range(8)))
    (home / "mine.jinja").write_text(TEMPLATE)
    config = chat.get_config()
    config.model.init = str(save_start(home / "start", objective="language_model"))
    config.format.template = str(home / "mine.jinja")
    config.data.path = str(home / "pairs.jsonl")
    config.data.rows, config.data.row_tokens = 2, 256
    config.optimizer.learning_rate = 1e-2
    config.run.steps, config.run.log_every = 4, 1
    command.run(config.lock(), home / "run")
    (home / "mine.jinja").unlink()  # the model brings its own
    return home / "run"


def test_what_is_saved_holds_in_scoring(trained):
    form = load_description(trained)[1]
    assert (form.kind, form.template, form.end_token, form.read_out) == ("chat", TEMPLATE, "<|im_end|>", "end")
    model = RewardModel.load(trained)
    asked = "<|im_start|>system: Be brief.<|im_end|>\n<|im_start|>user: Is 3 even?<|im_end|>\n<|im_start|>assistant: "
    by_hand = [model.tokenizer.encode_marked(f"{asked}{answer}<|im_end|>") for answer in ("No.", "Yes.")]
    row = pair(3)
    scores = model.score([{"prompt": row["prompt"], "output": row[name]} for name in ("chosen", "rejected")])
    np.testing.assert_allclose(scores, [rewards_of(model, ids) for ids in by_hand], rtol=1e-5, atol=1e-6)
    assert scores[0] != scores[1]


def rewards_of(model: RewardModel, ids: list[int]) -> float:
    """The reward at the last of these tokens, alone in its batch."""
    from rmjax.data.packing import ForestShape, Tree, fill

    tree = Tree.from_sequences([ids], ranks=[np.inf])
    return float(model.scorer.rewards(model.params, fill(ForestShape(1, 128, 1, 1), [[tree]]))[0, 0, 0])


def test_roles_and_tool_calls_make_a_difference(trained):
    model = RewardModel.load(trained)
    plain = {"prompt": "a\nb", "output": "c"}
    turns = {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "output": "c"}
    called = [{"prompt": "a", "output": [{"role": "assistant", "content": "", "tool_calls": calls}]} for calls in CALLS]
    assert len({round(score, 9) for score in model.score([plain, turns, *called])}) == 4


def test_another_format_is_refused_where_a_reward_model_goes_on(trained):
    config = chat.get_config()
    config.model.init = str(trained)
    tokenizer = load_description(trained)[2]
    own = Encoder(tokenizer, Format(kind="chat"), 10).form
    assert own.template == TEMPLATE  # empty is the model's own
    check_format(config.model, own)
    for form, field in (
        (Format("<file_sep>", "<empty_output>"), "kind"),
        (Format(kind="chat", template="chatml"), "template"),
    ):
        with pytest.raises(ValueError, match=f"config.format.{field} is .*, but .* was trained with"):
            check_format(config.model, Encoder(tokenizer, form, 10).form)
