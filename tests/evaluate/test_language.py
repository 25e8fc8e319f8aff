"""Loss and exact answers of texts, packed or not, and greedy answers."""

import jax
import numpy as np
import pytest

from rmjax.data.formats import Format
from rmjax.data.packing import ForestShape
from rmjax.data.record import Comparison
from rmjax.evaluate.language import LanguageModel, answers, says, score_texts
from rmjax.models.transformer import Transformer, causal_mask
from rmjax.reward_model import load_description, load_params
from tests.experiments.starting import save_start

SHAPE = ForestShape(2, 64, 4, 1)

# One token before a prompt: what follows stands alone in the row.
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|im_start|>' + m['content'] }}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = save_start(tmp_path_factory.mktemp("language") / "start")
    config, _, tokenizer = load_description(folder)
    params = load_params(folder)["backbone"]
    params["embedding"] = {"embedding": 30 * params["embedding"]["embedding"]}  # logits that differ
    return LanguageModel(config, params, tokenizer, Format(kind="chat", template=TEMPLATE))


@pytest.fixture(scope="module")
def log_probabilities(model):
    transformer = Transformer(model.config)

    def everything(ids_1T):
        positions = np.arange(ids_1T.shape[1])[None]
        hidden = transformer.apply({"params": model.params}, ids_1T, positions, causal_mask(ids_1T >= 0))
        return jax.nn.log_softmax(
            transformer.apply({"params": model.params}, hidden, method="logits")
        )  # fmt: skip

    return jax.jit(everything)


def by_hand(model, log_probabilities, prompt, output, ended):
    before = model.tokenizer.encode_marked(f"<|im_start|>{prompt}") if prompt else []
    ids = before + model.tokenizer.encode(output) + ([model.tokenizer.id("<|im_end|>")] if ended else [])
    found = np.asarray(log_probabilities(np.asarray([ids + [0] * (40 - len(ids))])))[0]
    places = range(max(1, len(before)), len(ids))
    return -np.mean([found[i - 1, ids[i]] for i in places]), all(found[i - 1].argmax() == ids[i] for i in places)


@pytest.mark.parametrize("ended", [True, False])
def test_scores_are_those_of_each_text_alone(model, log_probabilities, ended):
    texts = [Comparison("ab" * n, ("xyz"[: n + 1],)) for n in range(1, 4)] * 2
    texts.append(Comparison("", ("all of it is learned",)))
    scores = score_texts(model, texts, SHAPE, ended)
    expected = [by_hand(model, log_probabilities, t.prompt, t.outputs[0], ended) for t in texts]
    np.testing.assert_allclose([s.loss for s in scores], [loss for loss, _ in expected], rtol=1e-4)
    assert [s.exact for s in scores] == [exact for _, exact in expected]


def test_exact_is_what_greedy_decoding_writes(model):
    prompts = [f"{i} and {j}" for i in range(12) for j in range(12)]
    written = answers(model, prompts, 1)
    kept = [(p, w) for p, w in zip(prompts, written, strict=True) if len(w) == 1 and w.isascii()]
    assert kept
    right = score_texts(model, [Comparison(p, (w,)) for p, w in kept], SHAPE, ended=False)
    wrong = score_texts(model, [Comparison(p, (chr(ord(w) ^ 1),)) for p, w in kept], SHAPE, ended=False)
    assert all(s.exact for s in right) and not any(s.exact for s in wrong)


def test_answers_do_not_depend_on_the_batch(model):
    prompts = ["a long prompt, the longest", "b", "c d"]
    assert answers(model, prompts, 5, batch=1) == answers(model, prompts, 5, batch=3)
    assert answers(model, [], 5) == []


def test_a_text_without_room_for_its_output(model):
    with pytest.raises(ValueError, match="text 0 has no output within 64 tokens; raise row_tokens"):
        score_texts(model, [Comparison("x" * 64, ("y",))], SHAPE)


@pytest.mark.parametrize(
    ("output", "accepted", "right"),
    [("It is Paris.", ["Paris"], True), ("PARIS", ["Paris"], True), ("Parisian", ["Paris"], False),
     ("8 legs", ["8", "eight"], True), ("18 legs", ["8"], False), ("", ["8"], False), ("H2O!", ["H2O"], True)],
)  # fmt: skip
def test_an_answer_is_found_as_whole_words(output, accepted, right):
    assert says(output, accepted) is right
