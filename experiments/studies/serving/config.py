"""Sizes of the study. `serving:MACHINE` names its results: docs/serving/serving_MACHINE.json."""

from ml_collections import ConfigDict


def get_config(machine: str = "here") -> ConfigDict:
    """The published sizes: a quarter of an hour of 2 cores."""
    config = ConfigDict()
    config.machine = machine  # of the results and of the page's section
    config.peer = ".venv-bench/bin/python"  # interpreter of an environment with torch and transformers
    config.clients = 64  # connections, each with one request at a time
    config.batch_tokens = 4096  # of a call of the model, padding included, on both sides

    config.model = ConfigDict()  # random weights; rates depend on sizes alone
    config.model.width = 256
    config.model.depth = 6
    config.model.heads = 4
    config.model.kv_heads = 2
    config.model.mlp_width = 768

    config.texts = ConfigDict()
    config.texts.prompt = 256  # tokens
    config.texts.answer = (32, 96)  # tokens, drawn evenly
    config.texts.answers = 16  # to a prompt where prompts are shared; a request asks for all of them

    config.rounds = 5  # of the comparison; in each both sides answer each kind of requests, in an order that turns
    config.prompts = 32  # a round where prompts are shared; where not, as many texts

    config.requests = 1_000  # of each client that must lose nothing; of one text
    config.known = 256  # different texts that they ask for
    config.small = ConfigDict()  # what they ask: whether a request is lost does not depend on the model's size
    config.small.model = ConfigDict({**config.model.to_dict(), "width": 32, "depth": 1, "mlp_width": 32})
    config.small.texts = ConfigDict({"prompt": 16, "answer": (4, 12), "answers": 16})

    config.loads = (
        0.25,
        0.5,
        0.75,
    )  # open loop, the large model: fractions of the rate that closed clients reach with it
    config.seconds = 60.0  # of each
    return config
