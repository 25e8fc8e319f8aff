"""Trainers of another environment with our server as their reward: `python -m tests.serve.parity --peer=PYTHON` (`make parity`).

A step of TRL's GRPO on a CPU; with --sources=DIR, a folder with clones named POLAR, OpenRLHF and verl, also the calling code of
these as it stands there (foreign.py). Their rewards are compared with those of the model itself.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rmjax.hub.export import export_hugging_face
from rmjax.reward_model import RewardModel
from rmjax.serve.engine import Engine
from tests.serve.conftest import END, FORMATS, SPECIAL, make_model, model_of, running

ROOT = Path(__file__).parents[2]
LONG = [
    {"prompt": "Say it. " * 9, "reference": "It is. " * 9, "output": "So it is. " * 6},
    {"prompt": "Long and longer. " * 6, "reference": "It is.", "output": "So."},
]
"""What POLAR's client cuts by its rule, and the model by the same."""
ROWS = [
    {"prompt": "What is 3 + 4?", "reference": "It is 7.", "output": "7"},
    {"prompt": "Say hello.", "reference": "Hello!", "output": "Grüß Gott, 世界"},
    {"prompt": "Two lines\nof one", "reference": "a\nb", "output": "c\n\nd"},
    {"prompt": "What is 3 + 4?", "reference": "It is 7.", "output": "It is {eight}, <b>I</b> think."},
]


def ran(peer: str, script: str, *arguments: str) -> Any:
    """What a script of this folder printed last, run by the other environment. AssertionError where it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    line = [peer, str(ROOT / "tests/serve" / script), *arguments]
    done = subprocess.run(line, env=environment, cwd=arguments[-1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def grpo(peer: str, folder: Path) -> float:
    """The largest difference between the rewards that TRL got and the model's own. AssertionError where nothing was learned."""
    model = make_model("polar")
    with running(Engine.of(model, batch_tokens=512)) as server:
        found = ran(peer, "grpo.py", server.url, str(folder))
    assert found["moved"] and found["reward"], found
    differences = []
    for asked in found["asked"]:
        for (prompt, reference), output, reward in zip(
            asked["of"], asked["completions"], asked["rewards"], strict=True
        ):
            wanted = model.score([{"prompt": prompt, "reference": reference, "output": output or "-"}])[0]
            differences.append(abs(wanted - reward) if output.strip() else 0.0)
    return max(differences)


def models() -> dict[str, RewardModel]:
    """A model with the tokens that POLAR's client writes and a BOS, and a chat model whose BOS begins a turn, as SmolLM2's does:
    clients leave it, or even take it off, for the server to put."""
    split, reward, ended = "<|reward|>", "[UNUSED_TOKEN_130]", "</s>"
    form = dataclasses.replace(FORMATS["polar"], split_token=split, reward_token=reward, bos_token="<s>")
    turns = dataclasses.replace(FORMATS["chat"], bos_token="<|im_start|>")
    polar, chat = model_of(form, ["<s>", ended, "<pad>", split, reward]), model_of(turns, SPECIAL)
    polar.tokenizer.eos_token, chat.tokenizer.eos_token = ended, END
    return {"polar": polar, "chat": chat}


def exported(model: RewardModel, folder: Path) -> str:
    """The folder that clients take their tokenizer from."""
    export_hugging_face(folder, model.config, model.params, model.tokenizer, model.format)
    return str(folder)


@contextlib.contextmanager
def serving(found: dict[str, RewardModel]) -> Iterator[dict[str, str]]:
    """host:port by what is asked there."""
    engines = {kind: Engine.of(model, batch_tokens=512) for kind, model in found.items()}
    with (
        running(engines["polar"], strip=("</s>",)) as polar,
        running(engines["polar"], scalar=True) as scalar,
        running(engines["chat"]) as chat,
    ):
        servers = {"polar": polar, "scalar": scalar, "chat": chat}
        yield {name: f"127.0.0.1:{server.port}" for name, server in servers.items()}


def foreign(peer: str, sources: Path, folder: Path) -> Iterator[str]:
    """A line for each client that got the model's rewards, and what was not run. AssertionError where others came."""
    found = models()
    folders = {kind: exported(model, folder / kind) for kind, model in found.items()}
    with serving(found) as servers:
        job = {"sources": str(sources.resolve()), "models": folders, "servers": servers, "rows": ROWS, "long": LONG}
        (folder / "job.json").write_text(json.dumps(job))
        answers = ran(peer, "foreign.py", str(folder / "job.json"), str(folder))
    assert answers["found"], f"{sources} has no folder POLAR, OpenRLHF or verl; clone them there"
    for each in answers["found"]:
        rows = LONG if each["long"] else ROWS if each["reference"] else [{**row, "reference": None} for row in ROWS]
        got, wanted = each["rewards"], found[each["kind"]].score(rows)
        assert isinstance(got, list) and all(isinstance(reward, float) for reward in got), (each["client"], got)
        difference = max(abs(one - other) for one, other in zip(wanted, got, strict=True))
        assert difference <= 1e-5, (each["client"], wanted, got)
        yield f"{each['client']}: its rewards are the model's, to {difference:.1e}"
    yield f"stubs for what these import and do not need: {', '.join(answers['stubs']) or 'none'}"
    yield from (f"{name}: not run, for there is no {sources / name}" for name in answers["missing"])


def main() -> None:
    """Prints what was compared."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--peer", required=True, help="interpreter of an environment with torch and TRL")
    options.add_argument("--sources", type=Path, help="folder with clones named POLAR, OpenRLHF, verl")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        difference = grpo(given.peer, Path(folder))
        assert difference <= 1e-5, difference
        print(f"a step of TRL's GRPO: its rewards are the model's, to {difference:.1e}")
        if given.sources is None:
            print("POLAR's, OpenRLHF's and verl's calling code: not run; name a folder with their clones, SOURCES=DIR")
        else:
            print(*foreign(given.peer, given.sources, Path(folder)), sep="\n")


if __name__ == "__main__":
    main()
