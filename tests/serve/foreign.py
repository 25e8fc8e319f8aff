"""Trainers' own calling code with a reward server: `python tests/serve/foreign.py JOB FOLDER`, by an interpreter with torch and transformers.

JOB is JSON of `tests.serve.parity`: folders, addresses and records. The clients are imported from their sources as those are.
Prints, as JSON, the rewards that each client got, and which missing packages were stubs: these clients import, but do not need, them.
"""

import asyncio
import importlib.abc
import importlib.machinery
import importlib.util
import json
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import MagicMock

UNNEEDED = ("codetiming", "deepspeed", "hydra", "orjson", "ray", "vllm")
"""Of schedulers, engines, timers and logs; stubs where they are not installed."""


class Job(NamedTuple):
    """What is asked, and of whom."""

    folder: str  # to write to
    sources: str  # folder with clones
    models: dict[str, str]  # kind → folder of the exported model
    servers: dict[str, str]  # "polar", "scalar" (/pooling as LMDeploy answers), "chat" → host:port
    rows: list[dict[str, str]]  # prompt, reference, output


class Got(NamedTuple):
    """The rewards of the job's rows."""

    client: str
    kind: str  # of the model
    reference: bool  # whether the client says it
    rewards: list[Any]


class Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `UNNEEDED` where nothing else does."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname.split(".")[0] in UNNEEDED:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> Any:
        stub = MagicMock(name=spec.name)
        stub.__name__, stub.__spec__, stub.__path__ = spec.name, spec, []
        return stub

    def exec_module(self, module: Any) -> None:
        """There is nothing in it."""


def packages(root: Path, *names: str) -> None:
    """Packages whose modules are found, and whose `__init__`, which imports the whole trainer, is not run."""
    for name in names:
        package = types.ModuleType(name)
        package.__path__ = [str(root / name.replace(".", "/"))]
        sys.modules[name] = package


# --- POLAR --------------------------------------------------------------------------------------------------------------


def polar(job: Job) -> Iterator[Got]:
    """`RewardModelClient` with texts and, as in the README, with messages."""
    sys.path.insert(0, f"{job.sources}/POLAR/src")
    from polar import RewardModelClient

    roles = {"prompt": "user", "reference": "assistant", "output": "assistant"}
    messages = [{name: [{"role": roles[name], "content": text}] for name, text in row.items()} for row in job.rows]
    for kind, server in (("sglang", "polar"), ("vllm", "polar"), ("lmdeploy", "scalar")):
        client = RewardModelClient(job.models["polar"], 128, 48, server_type=kind, server_address=job.servers[server])
        for form, rows in (("texts", job.rows), ("messages", messages)):
            yield Got(f"POLAR's RewardModelClient, {kind}, {form}", "polar", True, client(rows))


# --- OpenRLHF -----------------------------------------------------------------------------------------------------------


class Policy(NamedTuple):
    """Stands for the engine that generates: it has written the answer."""

    ids: list[int]

    async def generate(self, prompt: list[int], params: Any, multi_modal_data: Any = None) -> Any:
        output = types.SimpleNamespace(token_ids=self.ids, text="", finish_reason="stop", logprobs=None)
        return types.SimpleNamespace(outputs=[output])


def open_rlhf(job: Job) -> Iterator[Got]:
    """A rollout with `--reward.remote_url`, and the experience that is trained on."""
    root = Path(job.sources) / "OpenRLHF"
    packages(root, "openrlhf", "openrlhf.utils", "openrlhf.trainer", "openrlhf.trainer.ray", "openrlhf.trainer.ppo_utils")
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator
    from openrlhf.utils.agent import SingleTurnAgentExecutor
    from transformers import AutoTokenizer

    params = types.SimpleNamespace(max_tokens=None, logprobs=None)

    def reward(kind: str, tokenizer: Any, row: dict[str, str]) -> float:
        turn = [{"role": "user", "content": row["prompt"]}]
        prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        prompt = prompt if kind == "chat" else row["prompt"]
        policy = Policy([*tokenizer.encode(row["output"], add_special_tokens=False), tokenizer.eos_token_id])
        agent = SingleTurnAgentExecutor(f"http://{job.servers[kind]}/get_reward")
        response = asyncio.run(agent.execute(prompt, row["reference"], params, 256, tokenizer, policy))
        return SamplesGenerator._process_response_into_experience(None, response).rewards.item()

    for kind in ("polar", "chat"):
        tokenizer = AutoTokenizer.from_pretrained(job.models[kind])
        found = [reward(kind, tokenizer, row) for row in job.rows]
        yield Got(f"OpenRLHF's SingleTurnAgentExecutor, {kind}", kind, kind == "polar", found)


# --- verl ---------------------------------------------------------------------------------------------------------------


def config(job: Job, kind: str, engine: str = "", path: str = "", name: str = "compute_score") -> Any:
    """What the reward loop reads of verl's configuration."""
    from omegaconf import OmegaConf

    model = {"path": job.models[kind], "tokenizer_path": None}
    asked = {"enable": bool(engine), "model_path": job.models[kind], "rollout": {"name": engine}}
    custom = {"path": path or None, "name": name, "reward_kwargs": {}}
    manager = {"source": "register", "name": "naive"}
    reward = {"num_workers": 1, "reward_manager": manager, "reward_model": asked, "custom_reward_function": custom}
    return OmegaConf.create({"actor_rollout_ref": {"model": model}, "reward": reward})


def batch(job: Job, tokenizer: Any) -> Any:
    """Rollouts as verl's agent loop leaves them: answers end with EOS and are padded on the right."""
    import numpy as np
    import torch
    from verl import DataProto

    def column(values: list[Any]) -> Any:
        found = np.empty(len(values), object)
        found[:] = values
        return found

    answers = [[*tokenizer.encode(row["output"], add_special_tokens=False), tokenizer.eos_token_id] for row in job.rows]
    width = max(map(len, answers))
    ids = torch.tensor([answer + [tokenizer.pad_token_id] * (width - len(answer)) for answer in answers])
    mask = torch.tensor([[1] * (1 + len(answer)) + [0] * (width - len(answer)) for answer in answers])
    tensors = {"prompts": ids[:, :1], "responses": ids, "attention_mask": mask}
    return DataProto.from_dict(tensors, non_tensors={
        "raw_prompt": column([[{"role": "user", "content": row["prompt"]}] for row in job.rows]),
        "data_source": column(["rows"] * len(job.rows)),
        "reward_model": column([{"ground_truth": row["reference"]} for row in job.rows]),
        "extra_info": column([{"prompt": row["prompt"]} for row in job.rows]),
    })  # fmt: skip


def verl(job: Job) -> Iterator[Got]:
    """The reward loop's worker by each engine's dialect, with a custom function of ours, and POLAR's, as verl loads it."""
    sys.path.insert(0, f"{job.sources}/verl")
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
    from verl.trainer.ppo.reward import get_custom_reward_fn

    async def asked(settings: Any, address: str) -> list[float]:
        worker = RewardLoopWorker(settings, address)
        found = await worker.compute_score_batch(batch(job, worker.input_tokenizer))
        return [each["reward_score"] for each in found]

    for kind in ("chat", "polar"):
        for engine in ("vllm", "sglang"):
            found = asyncio.run(asked(config(job, kind, engine), job.servers[kind]))
            yield Got(f"verl's RewardLoopWorker, {engine}, {kind}", kind, False, found)
    ours = Path(job.folder) / "ours.py"
    ours.write_text(
        "from rmjax_client import Client\nfrom rmjax_client.adapters import verl_compute_score\n"
        f"compute_score = verl_compute_score(Client('http://{job.servers['polar']}'))\n"
    )
    found = asyncio.run(asked(config(job, "polar", path=str(ours)), ""))
    yield Got("verl's RewardLoopWorker, custom_reward_function of rmjax_client", "polar", True, found)
    theirs = Path(job.sources) / "POLAR/src/polar/reward_func.py"
    if theirs.exists():
        function = get_custom_reward_fn(config(job, "polar", path=str(theirs), name="compute_score_batch"))
        settings = {"ADDRESS": job.servers["polar"], "SERVER_TYPE": "vllm", "MODEL_PATH": job.models["polar"]}
        function.args[0].__globals__.update(settings)  # POLAR's README has users edit these three
        extra = [{"prompt": row["prompt"], "ability": "general", "split": "train"} for row in job.rows]
        columns = ([row[name] for row in job.rows] for name in ("output", "reference"))
        found = function(["rows"] * len(job.rows), *columns, extra)
        yield Got("verl's custom function of POLAR, compute_score_batch", "polar", True, found)


CLIENTS: dict[str, Callable[[Job], Iterator[Got]]] = {"POLAR": polar, "OpenRLHF": open_rlhf, "verl": verl}
"""Folder of the clone → what asks."""


def main(path: str, folder: str) -> None:
    """Every client whose sources are there."""
    job = Job(**json.loads(Path(path).read_text()), folder=folder)
    sys.meta_path.append(Stubs())
    there = [name for name in CLIENTS if (Path(job.sources) / name).is_dir()]
    found = [got._asdict() for name in there for got in CLIENTS[name](job)]
    stubs = sorted(name for name in UNNEEDED if isinstance(sys.modules.get(name), MagicMock))
    print(json.dumps({"found": found, "stubs": stubs, "missing": sorted({*CLIENTS} - {*there})}))


if __name__ == "__main__":
    main(*sys.argv[1:])
