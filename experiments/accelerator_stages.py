"""What `experiments.accelerator` measures: a function a stage, called in a process of its own.

A stage gets its sizes and a `Notes`. A case is a dict of numbers and words: one line of the results. Cases that `notes` has are
not measured again, each is kept as it ends, and one that fails is kept with its whole error while the others go on.
"""

import dataclasses
import functools
import os
import signal
import statistics
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import benchmark
from configs.polar import pretrain, pretrain_1_8b
from experiments.accelerator import without_paths
from experiments.benchmarks import Arm, configured, random_pairs
from experiments.trainers import polar as polar_scoring
from experiments.trainers import rmjax_side
from experiments.trainers.generated import stand_in
from experiments.trainers.processes import THEIRS, run_job
from experiments.trainers.start import changes, shared_facts
from rmjax import Trainer
from rmjax.data.sources import pool, records
from rmjax.evaluate import discriminate
from rmjax.models.attention import PLATFORMS, blockwise, pallas_attention
from rmjax.models.forest import attention_mask
from rmjax.models.tiles import ForestMask
from rmjax.models.transformer import attend
from rmjax.policy.sampling import Decoding, generate, left_pad, rules
from rmjax.program import flops_per_token
from rmjax.recipe import described
from rmjax.reward_model import RewardModel
from rmjax.start import load_start
from rmjax.train.flops import mfu
from rmjax.train.loop import Preempted

Case = dict[str, Any]
Sizes = Mapping[str, Any]


@dataclasses.dataclass
class Notes:
    """The cases of a stage.

    Attributes:
      cases: name → what was found, those of earlier calls first.
      keep: called with all of them after each.
      workdir: for models, pairs and checkpoints; the same one at every call.
      seconds: that are left to the stage.
      peer: interpreter of an environment with torch and TRL; empty where there is none.
      init: the model that POLAR starts from, as `model.init`.
      data: where the real sets lie.
      groups: folder with groups_train.jsonl, groups_seen.jsonl and groups_unseen.jsonl, answers of real policies; empty: the
        shipped pool.
    """

    cases: dict[str, Case]
    keep: Callable[[Mapping[str, Case]], None]
    workdir: Path
    seconds: float
    peer: str = ""
    init: str = "smollm2"
    data: str = "../shared/data"
    groups: str = ""
    began: float = dataclasses.field(default_factory=time.monotonic)

    def take(self, name: str, measure: Callable[[], Case]) -> Case:
        """Measures a case unless it is there; what fails is a case with its error."""
        if name in self.cases and "error" not in self.cases[name]:
            return self.cases[name]
        try:
            self.cases[name] = measure()
        except Exception:  # one that does not compile or fit says nothing of the next
            self.cases[name] = {"error": without_paths(traceback.format_exc())}
        self.keep(self.cases)
        return self.cases[name]

    def left(self) -> float:
        """Seconds."""
        return self.seconds - (time.monotonic() - self.began)


def median_seconds(call: Callable[[], object], rounds: int) -> dict[str, float]:
    """Of a call, after one that is not counted: median, lowest and highest."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return {"seconds": statistics.median(seconds), "low": min(seconds), "high": max(seconds)}


def tiled() -> tuple[str, ...]:
    """Forms of attention in tiles that run here, the one to use first."""
    return ("pallas", "blockwise") if jax.default_backend() in PLATFORMS else ("blockwise",)


# --- kernels -----------------------------------------------------------------------------------------------------------

_FORMS: dict[str, Callable[..., Any]] = {"blockwise": blockwise, "pallas": pallas_attention}


def kernels(notes: Notes, sizes: Sizes) -> None:
    """Outputs and gradients of each form and number format against dense attention in fp32, on full rows of random pairs."""
    forest = random_pairs(configured({}, layers=1, rows=sizes["rows"], row_tokens=sizes["row_tokens"]), 64)
    marks = ForestMask(jnp.asarray(forest.group_RT), jnp.asarray(forest.branch_RT))
    for heads in sizes["heads"]:
        for dtype in ("bfloat16", "float32"):
            for form in ("dense", *tiled()):
                name = f"{form} {dtype} {heads[0]} heads of {heads[2]}"
                notes.take(name, functools.partial(_apart, form, dtype, heads, marks, sizes["block"]))


def _apart(form: str, dtype: str, heads: Sequence[int], marks: ForestMask, block: int) -> Case:
    """Largest differences, over the largest value of what is wanted."""
    queries, keys, width = heads
    shape = marks.group_RT.shape
    arrays = [
        np.random.default_rng(i).standard_normal((*shape, n, width)).astype(np.float32)
        for i, n in enumerate((queries, keys, keys, queries))
    ]

    def dense(*qkv: Any) -> Any:
        return attend(qkv[0], qkv[1], qkv[2], attention_mask(marks.group_RT, marks.branch_RT))

    def tiles(*qkv: Any) -> Any:
        return _FORMS[form](*qkv, marks, block)

    wanted, found = _values(dense, arrays, "float32"), _values(tiles if form in _FORMS else dense, arrays, dtype)
    names = ("values", "of queries", "of keys", "of values")
    apart = [float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in zip(found, wanted, strict=True)]
    return {"form": form, "dtype": dtype, **dict(zip(names, apart, strict=True))}


def _values(form: Callable[..., Any], arrays: Sequence[np.ndarray], dtype: str) -> list[np.ndarray]:
    """Outputs, and the gradients of queries, keys and values of a random combination of them."""
    q, k, v, weights = (jnp.asarray(x, dtype) for x in arrays)

    def both(*qkv: Any) -> Any:
        out, back = jax.vjp(form, *qkv)
        return out, *back(weights.astype(out.dtype))

    with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
        return [np.asarray(x, np.float32) for x in jax.jit(both)(q, k, v)]


# --- the 1.8B step -----------------------------------------------------------------------------------------------------


def utilization(notes: Notes, sizes: Sizes) -> None:
    """Seconds and MFU of a training step of POLAR-1.8B's sizes; a token counts as attending to half a row, as in docs/pods.md."""
    for attention, remat in sizes["choices"]:
        if attention == "pallas" and attention not in tiled():
            continue
        notes.take(f"{attention} {remat}", functools.partial(_step, sizes, attention, remat))


def _step(sizes: Sizes, attention: str, remat: str) -> Case:
    if sizes["preset"]:
        config = pretrain_1_8b.get_config("1")
        config.data.rows, config.data.row_tokens, config.optimizer.microbatches = sizes["rows"], sizes["row_tokens"], 1
    else:
        config = configured({"model.dtype": "bfloat16"}, layers=1, rows=sizes["rows"], row_tokens=sizes["row_tokens"])
    config.model.attention, config.model.remat = attention, remat
    arm = Arm.make(config)
    per_token = flops_per_token(arm.program, arm.state, config.data.row_tokens / 2, False)
    arm.seconds()
    seconds = [arm.seconds() for _ in range(sizes["rounds"])]
    tokens, planned = config.data.rows * config.data.row_tokens, arm.planned_bytes()
    median = statistics.median(seconds)
    return {
        "attention": attention, "remat": remat, "rows": config.data.rows, "row_tokens": config.data.row_tokens,
        "seconds": median, "low": min(seconds), "high": max(seconds), "planned_gb": sum(planned.values()) / 1e9,
        "mfu": float(mfu(per_token * tokens / median, dtype=config.model.dtype)),
    }  # fmt: skip


# --- forests, padding, TRL ---------------------------------------------------------------------------------------------


def forests(notes: Notes, sizes: Sizes) -> None:
    """A training step on packed pairs, on the same pairs with a row each, and TRL's, all of SmolLM2-135M in bf16."""
    config = _smollm2(sizes["layers"], tiled()[0])
    folder, batch = notes.workdir.resolve(), sizes["batch"]
    config.data.root = notes.data
    config.data.path, name = stand_in(config.data.path, notes.data, folder)
    changed = changes(config)
    job = shared_facts(changed, jax.default_backend()) | {
        "config": changed, "model": str(folder / "model"), "batch": batch, "parts": 1, "steps": 1 + sizes["steps"], "seed": 0,
        "pairs": str(folder / "pairs" / f"{batch}.0.jsonl"), "scratch": str(folder / "scratch"),
    }  # fmt: skip
    made = notes.take("pairs", lambda: {"data": name, **_prepared(job, folder)})
    if "error" in made:
        return
    job["rows"] = made["rows"]
    notes.take("forest", lambda: _speed(rmjax_side.train_steps(job)))
    notes.take("padded", lambda: _speed(rmjax_side.dense_steps(job)))
    if not notes.peer:
        notes.take("trl", lambda: {"skipped": "no interpreter with torch and TRL; name one by --peer"})
        return
    notes.take("trl", lambda: _speed(run_job(folder / "trl", "train", THEIRS, notes.peer, job | {"kind": "train"})))
    notes.take("agreement", lambda: _agreement(job | {"dtype": "float32"}, notes.peer, folder))


def _smollm2(layers: int, attention: str) -> Any:
    """The config of the studies against TRL, in bf16."""
    config = benchmark.get_config()
    config.model.layers, config.model.dtype, config.model.attention = layers, "bfloat16", attention
    return config


def _prepared(job: Mapping[str, Any], folder: Path) -> Case:
    """Writes the model and the pairs; what is known of them."""
    sizes = {"batches": [job["batch"]], "parts": [1], "steps": [job["steps"]], "rounds": 1}
    made = rmjax_side.prepare({**job, **sizes, "pairs": str(folder / "pairs")})
    return {"rows": made["rows"][str(job["batch"])]} | made["data"]


def _speed(found: Mapping[str, Any]) -> Case:
    steps = found["steps"]
    seconds = sum(step["seconds"] for step in steps)
    totals = {f"{name}_per_second": sum(step[name] for step in steps) / seconds for name in ("pairs", "tokens")}
    return {**totals, "steps": len(steps)} | ({"versions": found["versions"]} if "versions" in found else {})


def _agreement(job: Mapping[str, Any], peer: str, folder: Path) -> Case:
    """Largest differences of the rewards and of the loss of the first batch, in fp32."""
    ours = rmjax_side.agree(job)
    theirs = run_job(folder / "trl", "agree", THEIRS, peer, {**job, "kind": "agree"})
    return {
        "loss": abs(ours["loss"] - theirs["loss"]),
        "rewards": float(np.max(np.abs(np.subtract(ours["rewards"], theirs["rewards"])))),
    }


# --- scoring and sampling ----------------------------------------------------------------------------------------------


def scoring(notes: Notes, sizes: Sizes) -> None:
    """Candidates a second, groups of the shipped pool: as forests, and a row each."""
    config = _smollm2(sizes["layers"], tiled()[0])
    counts = {name: sizes[name] for name in ("groups", "candidates")}
    job = {"config": changes(config), "tolerance": np.inf} | {n: sizes[n] for n in ("rounds", "batch_tokens", "rows")}

    def measure() -> Case:
        found = polar_scoring.score_groups(job | counts)
        number = counts["groups"] * counts["candidates"]
        rates = {f"{way}_per_second": number / statistics.median(s) for way, s in found["seconds"].items()}
        return counts | rates | {"largest_difference": found["largest_difference"]}

    notes.take("candidates", measure)


def sampling(notes: Notes, sizes: Sizes) -> None:
    """Tokens a second of SmolLM2-135M in bf16, full length, nucleus of 0.95 among 50."""
    for rows in sizes["rows"]:
        notes.take(f"{rows} rows", functools.partial(_sampled, rows, sizes))


def _sampled(rows: int, sizes: Sizes) -> Case:
    start = load_start(_smollm2(sizes["layers"], "dense").model)
    params = jax.tree.map(jnp.asarray, start.params["backbone"])
    ids = np.random.default_rng(0).integers(1, start.config.vocab_size, (rows, sizes["prompt_tokens"])).tolist()
    rule, candidates = rules([Decoding(top_p=0.95, top_k=50)] * rows, start.config.vocab_size)
    keys = jax.random.split(jax.random.key(0), rows)

    def draw() -> Any:
        return generate(
            params, left_pad([[]]), left_pad(ids), keys, rule, config=start.config, candidates=candidates, samples=1,
            max_new_tokens=sizes["new_tokens"], stop=(),
        )  # fmt: skip

    found, drawn = median_seconds(draw, sizes["rounds"]), rows * sizes["new_tokens"]
    return {"rows": rows, "tokens": drawn, "tokens_per_second": drawn / found["seconds"], **found}


# --- POLAR on real policies --------------------------------------------------------------------------------------------


def polar(notes: Notes, sizes: Sizes) -> None:
    """Pre-trains as many layers of the model as there is time for on who wrote what, then judges held-out prompts; resumes from
    its checkpoint."""
    folder, run = notes.workdir.resolve(), pretrain.get_config()
    run.update_from_flattened_dict(dict(sizes["config"]) | {"model.init": notes.init, "model.attention": tiled()[0]})
    run.evals = type(run)()
    if notes.groups:
        run.data.kind, run.data.path, run.data.epochs = "comparisons", str(Path(notes.groups) / "groups_train.jsonl"), 0
    backbone = notes.take("backbone", lambda: _backbone(run, sizes, notes.left() - sizes["reserve"]))
    if "error" in backbone:
        return
    run.model.layers = backbone["layers"]
    trained = folder / f"run-{run.model.layers}"
    finished = _train(run, trained, notes.left() - sizes["reserve"])
    saved = [int(path.name) for path in trained.glob("checkpoints/*") if path.name.isdigit()]
    if not saved:
        notes.take("no step", lambda: {"finished": False, "skipped": "there was no time for a checkpoint"})
        return
    steps = max(saved)
    facts = {"data": Path(run.data.path).name, "steps": steps, "finished": finished}
    notes.take(f"after {steps} steps", lambda: facts | _judged(trained, notes.groups, sizes["judged"]))


def _backbone(run: Any, sizes: Sizes, seconds: float) -> Case:
    """The number of layers, and what it was chosen by."""
    began, available = time.monotonic(), described(run.model.init)[0].depth
    probes = {layers: _step_seconds(run, layers, sizes["rounds"]) for layers in sizes["probes"] if layers <= available}
    starting = (time.monotonic() - began) / len(
        probes
    )  # a run starts and compiles once more; that does not grow with layers
    left, most = seconds - (time.monotonic() - began) - starting, min(available, sizes["most_layers"] or available)
    facts = {
        "available": available,
        "steps": run.run.steps,
        "left": left,
        "step_seconds": {str(n): s for n, s in probes.items()},
    }
    return {"layers": most_layers(probes, most, run.run.steps, left), **facts}


def _step_seconds(run: Any, layers: int, rounds: int) -> float:
    config = run.copy_and_resolve_references()
    config.model.layers = layers
    return median_seconds(Trainer(config).step, rounds)["seconds"]


def most_layers(step_seconds: Mapping[int, float], available: int, steps: int, left: float) -> int:
    """The largest number of layers whose run fits in the time: a step's seconds lie on the line through the measured depths.

    Args:
      step_seconds: layers → seconds of a step, of one depth or two. One alone, or two that do not grow, which is noise, count as
        proportional to the layers.
      available: layers of the model.
      steps: of the run.
      left: seconds for it.

    Returns:
      From 1, which may not fit either: the run is then stopped in time, and says so.
    """
    (few, short), *_, (more, long) = sorted([*step_seconds.items(), *step_seconds.items()])
    layer = (long - short) / (more - few) if long > short else long / more
    fixed = max(long - more * layer, 0.0)
    return max(1, min(available, int((left / steps - fixed) / layer + 1e-9)))


def _train(config: Any, folder: Path, seconds: float) -> bool:
    """Trains until the end, or saves and stops after so many seconds; whether it came to the end."""
    timer = threading.Timer(max(seconds, 1.0), os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        Trainer(config, folder).run()
    except Preempted:
        return False
    finally:
        timer.cancel()
    return True


def _judged(folder: Path, groups: str, most: int) -> Case:
    """Accuracy at telling a policy's own answer from another's, on prompts that training did not have."""
    model = RewardModel.load(folder)
    found: Case = {"layers": model.config.depth}
    for split in ("seen", "unseen"):
        if groups:
            held_out = list(records(str(Path(groups) / f"groups_{split}.jsonl")))
        else:
            held_out = pool("shipped:policy_pool", split, "unseen").triples(seed=0, per_prompt=1, negatives=3)
        judged = discriminate(held_out[:most], model.scorer.score(held_out[:most]))
        overall = judged["overall"]
        found |= {
            f"{split}_accuracy": overall["value"], f"{split}_low": overall["low"], f"{split}_high": overall["high"],
            f"{split}_n": overall["n"],
        }  # fmt: skip
    return found
