"""Trainers' own calling code with a reward server: `python tests/serve/foreign.py JOB FOLDER`, by an interpreter with torch.

JOB is JSON of `tests.serve.parity`: clones, addresses and records. What asks is imported from the clones and not changed.
Prints the rewards that each client got as JSON.
"""

import asyncio
import importlib.util
import json
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import MagicMock

UNNEEDED = ("vllm", "vllm.inputs", "vllm.utils")
"""What generates, which needs no server; imported beside the code that asks, and a stub where it is not installed."""


class Job(NamedTuple):
    """What is asked, and of whom."""

    folder: str  # to write to
    sources: str  # folder with clones
    models: dict[str, str]  # kind → folder of the exported model
    servers: dict[str, str]  # "polar", "scalar" (/pooling as LMDeploy answers), "chat" → host:port
    rows: list[dict[str, str]]  # prompt, reference, output
    long: list[dict[str, str]]  # longer than the model takes


class Got(NamedTuple):
    """The rewards of the job's rows."""

    client: str
    kind: str  # of the model
    reference: bool  # whether the client says it
    rewards: list[Any]
    long: bool = False  # of the long rows instead


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
    yield Got("POLAR's RewardModelClient, lmdeploy, texts that it cuts", "polar", True, client(job.long), long=True)


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
    if importlib.util.find_spec("vllm") is None:
        sys.modules.update({name: MagicMock(__spec__=ModuleSpec(name, None)) for name in UNNEEDED})
    packages(
        root, "openrlhf", "openrlhf.utils", "openrlhf.trainer", "openrlhf.trainer.ray", "openrlhf.trainer.ppo_utils"
    )
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


def routed(address: str) -> str:
    """host:port of verl's own router before a server, which runs until the process ends."""
    from verl.experimental.reward_loop.router.naive_router import run_router
    from verl.utils.net_utils import get_free_port

    port, _ = get_free_port("127.0.0.1")
    threading.Thread(target=run_router, args=("127.0.0.1", port, [f"http://{address}"]), daemon=True).start()
    return f"127.0.0.1:{port}"


def worker_rewards(job: Job, settings: Any, address: str) -> list[float]:
    """By the reward loop's worker in this process."""
    from verl.experimental.reward_loop import RewardLoopWorker

    async def asked() -> list[float]:
        worker = RewardLoopWorker(settings, address)
        found = await worker.compute_score_batch(batch(job, worker.input_tokenizer))
        return [each["reward_score"] for each in found]

    return asyncio.run(asked())


def manager_rewards(job: Job, settings: Any) -> list[float]:
    """By the reward loop's manager and a worker of Ray's; an answer's reward stands at its last token."""
    import ray
    from transformers import AutoTokenizer
    from verl.experimental.reward_loop import RewardLoopManager

    os.environ["PYTHONPATH"] += f"{os.pathsep}{job.sources}/verl"  # of Ray's processes
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    found = RewardLoopManager(settings).compute_rm_score(batch(job, AutoTokenizer.from_pretrained(job.models["polar"])))
    ray.shutdown()
    return found.batch["rm_scores"].sum(-1).tolist()


def verl(job: Job) -> Iterator[Got]:
    """The reward loop by each engine's dialect, with and without the router; with a custom function of ours, and of POLAR's."""
    sys.path.insert(0, f"{job.sources}/verl")
    for kind in ("chat", "polar"):
        for engine in ("vllm", "sglang"):
            found = worker_rewards(job, config(job, kind, engine), job.servers[kind])
            yield Got(f"verl's RewardLoopWorker, {engine}, {kind}", kind, False, found)
    found = worker_rewards(job, config(job, "chat", "vllm"), routed(job.servers["chat"]))
    yield Got("verl's RewardLoopWorker and NaiveRouter, vllm, chat", "chat", False, found)
    ours = Path(job.folder) / "ours.py"
    ours.write_text(
        "from rmjax_client import Client\nfrom rmjax_client.adapters import verl_compute_score\n"
        f"compute_score = verl_compute_score(Client('http://{job.servers['polar']}'))\n"
    )
    found = manager_rewards(job, config(job, "polar", path=str(ours)))
    yield Got("verl's RewardLoopManager on Ray, custom_reward_function of rmjax_client", "polar", True, found)
    if (theirs := Path(job.sources) / "POLAR/src/polar/reward_func.py").exists():
        found = custom_of_polar(job, str(theirs))
        yield Got("verl's get_custom_reward_fn, POLAR's compute_score_batch", "polar", True, found)


def custom_of_polar(job: Job, path: str) -> list[float]:
    """POLAR's function for a batch, as verl loads it."""
    from verl.trainer.ppo.reward import get_custom_reward_fn

    function = get_custom_reward_fn(config(job, "polar", path=path, name="compute_score_batch"))
    settings = {"ADDRESS": job.servers["polar"], "SERVER_TYPE": "vllm", "MODEL_PATH": job.models["polar"]}
    function.args[0].__globals__.update(settings)  # POLAR's README has users edit these three
    extra = [{"prompt": row["prompt"], "ability": "general", "split": "train"} for row in job.rows]
    answers, references = ([row[name] for row in job.rows] for name in ("output", "reference"))
    return function(["rows"] * len(job.rows), answers, references, extra)


CLIENTS: dict[str, Callable[[Job], Iterator[Got]]] = {"POLAR": polar, "OpenRLHF": open_rlhf, "verl": verl}
"""Folder of the clone → what asks."""


def main(path: str, folder: str) -> None:
    """Every client whose sources are there."""
    job = Job(**json.loads(Path(path).read_text()), folder=folder)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    there = [name for name in CLIENTS if (Path(job.sources) / name).is_dir()]
    found = [got._asdict() for name in there for got in CLIENTS[name](job)]
    stubs = [name for name in UNNEEDED if isinstance(sys.modules.get(name), MagicMock)]
    print(json.dumps({"found": found, "stubs": stubs, "missing": sorted({*CLIENTS} - {*there})}))


if __name__ == "__main__":
    main(*sys.argv[1:])
