"""Answers of a model behind OpenAI's routes: an API, or a server such as vLLM, SGLang, llama.cpp's. docs/methods/policy.md.

Several policies: `config.policies`, of each the keys that differ, as {"name": "hot", "endpoint.temperature": 1.4}.
"""

from ml_collections import ConfigDict

from rmjax import grid


def get_config() -> ConfigDict:
    config = grid.get_config()
    config.generator = "endpoint"
    config.prompts = "runs/prompts.jsonl"  # lines of {"id", "prompt" or "messages"}, and what else a record has
    config.samples = 4  # answers to a prompt
    config.endpoint.model = "Qwen/Qwen3-0.6B"  # as the server knows it
    config.endpoint.temperature = 1.0
    config.endpoint.top_p = 1.0  # nucleus mass
    config.endpoint.max_tokens = 512  # tokens of an answer, reasoning included
    config.asking.url = "http://127.0.0.1:8000/v1"  # up to where the routes begin
    config.asking.connections = 16  # requests at a time, of each shard
    config.asking.seconds = 300.0  # of a try, to the last byte of its reply
    config.asking.key_variable = ""  # environment variable with the API key, such as OPENAI_API_KEY
    return config
