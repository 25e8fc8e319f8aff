"""A server of a folder of the hub, with the format that its class and template say."""

import pytest

from rmjax.reward_model import RewardModel
from rmjax.serve.engine import Engine
from rmjax.serve.server import Options, application
from tests.hub.goldens import copied
from tests.serve.conftest import running


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return copied("qwen3_reward", tmp_path_factory.mktemp("hub") / "reward")


def test_rewards_of_a_folder_of_the_hub(folder):
    model = RewardModel.load(folder, dtype="float32")
    row = {"prompt": "ab", "outputs": ["c", "de"]}
    engine = Engine.of(model, max_tokens=64, batch_tokens=64)
    engine.compile()
    with running(engine) as server:
        status, reply = server.ask("/v1/reward", row)
        text = "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\nde<|im_end|>\n"
        (other,) = server.ask("/get_reward", {"query": [text]})[1]["rewards"]
    wanted = model.score([{"prompt": "ab", "output": output} for output in row["outputs"]])
    assert status == 200 and reply["format"] == "chat"
    assert reply["results"][0]["rewards"] == pytest.approx(wanted, abs=1e-5)
    assert other == pytest.approx(wanted[1], abs=1e-5)


def test_options_of_a_hub_model_are_the_models(folder, monkeypatch):
    given = {}

    def load(*args, **more):
        given.update(enumerate(args), **more)
        raise LookupError  # loaded far enough

    monkeypatch.setattr(RewardModel, "load", load)
    with pytest.raises(LookupError):
        application(Options(str(folder), dtype="float32", template="chatml", mesh="one"), None, None, None)
    assert given == {0: str(folder), 1: None, 2: "float32", "template": "chatml"}
