"""Each client's recorded request, the reply, and what the client's own code takes out of it."""

import json

import pytest

from tests.serve.conftest import running
from tests.serve.renew import FIXTURES, ID, STRIP, steady

NAMES = sorted(path.stem for path in FIXTURES.glob("*.json"))
PROMPT, REFERENCE = "What is 2 + 2?", "It is 4."
ALIKE = {
    "open_rlhf": (" It is 4.", REFERENCE), "slime": ("It is 4.", REFERENCE), "verl_vllm": ("4", REFERENCE),
    "verl_sglang": ("4", REFERENCE), "polar_sglang": ("4", REFERENCE), "polar_vllm": ("4", REFERENCE),
    "polar_lmdeploy": ("4", REFERENCE), "vllm_score": ("It is 4.", None), "tei_pair": ("It is 4.", None),
}  # fmt: skip
"""Fixture → the answer and the reference of its first text."""


@pytest.fixture(scope="module")
def server(engines):
    with running(engines["polar"], strip=STRIP) as found:
        yield found


def close(found, wanted):
    """Equal, numbers to 1e-4."""
    if isinstance(wanted, dict):
        assert isinstance(found, dict) and list(found) == list(wanted)
        for name, each in wanted.items():
            close(found[name], each)
    elif isinstance(wanted, list):
        assert isinstance(found, list) and len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            close(one, other)
    else:
        assert found == (pytest.approx(wanted, abs=1e-4) if type(wanted) is float else wanted)


def numbers(value) -> list[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [x for each in value for x in numbers(each)]
    return [value] if isinstance(value, float) else []


@pytest.mark.parametrize("name", NAMES)
def test_a_client_is_answered(server, models, name):
    fixture = json.loads((FIXTURES / f"{name}.json").read_text())
    status, reply = server.ask(fixture["path"], fixture["request"], **ID)
    assert status == 200
    close(steady(reply), fixture["reply"])
    read = eval(fixture["reads"], {}, {"reply": reply})
    if name == "open_rlhf_empty":
        assert read == ([], [])
    else:
        assert numbers(read)
    if name in ALIKE:
        output, reference = ALIKE[name]
        row = {"prompt": PROMPT, "output": output} | ({"reference": reference} if reference else {})
        assert numbers(read)[0] == pytest.approx(models["polar"].score([row])[0], abs=1e-5)


def test_best_first(server):
    request = {"query": PROMPT, "documents": [f"It is {i}." for i in range(9)]}
    found = server.ask("/rerank", request)[1]["results"]
    scores = server.ask("/score", {"text_1": PROMPT, "text_2": request["documents"]})[1]["data"]
    assert [each["relevance_score"] for each in found] == sorted((each["score"] for each in scores), reverse=True)
    assert {each["index"] for each in found} == set(range(9))


def test_numbers_as_base64(server):
    import struct
    from base64 import b64decode

    text = json.loads((FIXTURES / "verl_sglang.json").read_text())["request"]["input"]
    plain, packed = (server.ask("/v1/embeddings", {"input": text, "encoding_format": form})[1]["data"][0]["embedding"]
                     for form in ("float", "base64"))  # fmt: skip
    assert struct.unpack("<f", b64decode(packed)) == pytest.approx(plain)
