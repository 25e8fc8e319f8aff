"""TRL's RewardTrainer, timed: `python -P experiments/trainers/trl_side.py JOB.json`, run by the interpreter of an environment
that has torch and TRL. It imports nothing of rmjax, and nothing of rmjax imports it.

JOB.json names what both sides read, weights (Hugging Face's files) and pairs (token ids), and the file for the result. The
trainer is used as its documentation does: model and tokenizer from a folder, its own collator and data loader.
"""

import importlib.metadata
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import RewardConfig, RewardTrainer

SCORED = 16  # held-out pairs a batch


class Clock(TrainerCallback):
    """When each step ended, in seconds since 1970."""

    def __init__(self, on_gpu: bool):
        self.ends: list[float] = []
        self._on_gpu = on_gpu

    def on_step_end(self, args, state, control, **kwargs):
        """Called by the trainer after the optimizer's step."""
        if self._on_gpu:
            torch.cuda.synchronize()
        self.ends.append(time.time())


class Learning(Clock):
    """Rewards of the held-out pairs after the steps `at`, and the seconds of training until then, without scoring: the twin of
    experiments/trainers/learning.py."""

    def __init__(self, job: dict, on_gpu: bool):
        super().__init__(on_gpu)
        self.points: list[dict] = []
        self.first = (0.0, 0.0)
        self.trainer: Any = None
        self._job, self._scoring = job, (0.0, 0.0)
        self._pairs = [json.loads(line) for line in Path(job["held_out"]).read_text().splitlines()]

    def on_train_begin(self, args, state, control, **kwargs):
        """Called by the trainer before the first step."""
        self._score(0)

    def on_step_end(self, args, state, control, **kwargs):
        """Called by the trainer after the optimizer's step."""
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step == 1:
            self.first = self._now(self._scoring)
        if state.global_step in self._job["at"]:
            self._score(state.global_step)

    def _now(self, less: tuple) -> tuple:
        return time.time() - less[0], time.process_time() - less[1]

    def _score(self, step: int) -> None:
        began = self._now((0.0, 0.0))
        wall, cpu = (t - s - f if step else 0.0 for t, s, f in zip(began, self._scoring, self.first, strict=True))
        point = {"step": step, "seconds": wall, "cpu_seconds": cpu, "rewards": self._rewards()}
        self.points.append(point)
        self._scoring = tuple(s + x for s, x in zip(self._scoring, self._now(began), strict=True))

    def _rewards(self) -> list[list[float]]:
        """Batches of equally long pairs, as the trainer's own collator makes them."""
        order = sorted(range(len(self._pairs)), key=lambda i: max(map(len, self._ids(i).values())))
        found: list[list[float]] = [[] for _ in order]
        self.trainer.model.eval()
        for i in range(0, len(order), SCORED):
            batch = self.trainer.data_collator([self._ids(n) for n in order[i : i + SCORED]])
            inputs = {name: batch[name].to(self.trainer.model.device) for name in ("input_ids", "attention_mask")}
            with torch.no_grad():
                rewards = self.trainer.model(**inputs).logits.float().reshape(2, -1).T.tolist()
            for n, both in zip(order[i : i + SCORED], rewards, strict=True):
                found[n] = both
        self.trainer.model.train()
        return found

    def _ids(self, number: int) -> dict:
        return {name: self._pairs[number][name] for name in ("chosen_ids", "rejected_ids")}


def trainer_of(job: dict, clock: Clock) -> RewardTrainer:
    """The trainer of a job. Options are the defaults, but for what would make it slower here (checkpointing of activations,
    saving) and what has to be equal on both sides (optimizer, precision, order of the pairs, the longest sequence)."""
    optimizer, on_gpu = job["optimizer"], job["device"] == "gpu"
    args = RewardConfig(
        output_dir=job["scratch"],
        per_device_train_batch_size=job["batch"] // job["parts"],
        gradient_accumulation_steps=job["parts"],
        max_steps=job["steps"],
        learning_rate=optimizer["learning_rate"],
        adam_beta1=optimizer["b1"],
        adam_beta2=optimizer["b2"],
        adam_epsilon=optimizer["epsilon"],
        weight_decay=optimizer["weight_decay"],
        max_grad_norm=optimizer["clip"],
        **schedule_of(job),
        max_length=job["max_length"],
        bf16=job["dtype"] == "bfloat16",
        use_cpu=not on_gpu,
        gradient_checkpointing=False,
        center_rewards_coefficient=None,
        train_sampling_strategy="sequential",  # the pairs are in random order already, and the other side's
        dataloader_pin_memory=on_gpu,
        save_strategy="no",
        report_to="none",
    )
    rows = [json.loads(line) for line in Path(job["pairs"]).read_text().splitlines()]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(Path(job["model"]) / "tokenizer.json"), pad_token=job["pad_token"]
    )
    pairs = Dataset.from_list([{name: row[name] for name in ("chosen_ids", "rejected_ids")} for row in rows])
    trainer = RewardTrainer(
        model=job["model"], args=args, train_dataset=pairs, processing_class=tokenizer, callbacks=[clock]
    )
    if len(trainer.train_dataset) != len(rows):
        raise ValueError(
            f"{job['pairs']}: TRL kept {len(trainer.train_dataset)} of {len(rows)} pairs; raise max_length"
        )
    return trainer


def schedule_of(job: dict) -> dict:
    """Warm-up and cosine where the job has a schedule; else the rate is constant after the first step."""
    if "schedule" not in job:
        return {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 1}
    warmup, final = (job["schedule"][name] for name in ("warmup", "final"))
    more = {"min_lr_rate": final}
    return {
        "lr_scheduler_type": "cosine_with_min_lr", "warmup_steps": round(warmup * job["steps"]), "lr_scheduler_kwargs": more,
    }  # fmt: skip


def learn(trainer: RewardTrainer, clock: Learning) -> dict:
    """Trains; what experiments/trainers/learning.py returns."""
    clock.trainer = trainer
    trainer.train()
    wall, cpu = clock.first
    return {"points": clock.points, "first_step_ended": wall, "startup_cpu_seconds": cpu}


def agree(trainer: RewardTrainer) -> dict:
    """Loss and rewards of the first batch, before any step."""
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.model.eval()
    with torch.no_grad():
        loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    rewards = outputs.logits.float().reshape(2, -1).T.tolist()
    sizes = trainer.model.config
    rate = product_rate(sizes.hidden_size, sizes.intermediate_size, trainer.model.device)
    return {"loss": float(loss), "rewards": rewards, "product_rate": rate}


def product_rate(width: int, mlp_width: int, device: torch.device) -> float:
    """FLOP/s of an fp32 matrix product of a layer's sizes, 2048 tokens: the median of ten after one."""
    x, kernel = (torch.ones(shape, device=device) for shape in ((2048, width), (width, mlp_width)))
    seconds = []
    for _ in range(11):
        began = time.perf_counter()
        float((x @ kernel)[0, 0])  # waits for it
        seconds.append(time.perf_counter() - began)
    return 2 * x.numel() * mlp_width / statistics.median(seconds[1:])


def train(trainer: RewardTrainer, clock: Clock, job: dict) -> dict:
    """Seconds of each step but the first, from the end of the one before, with its pairs and tokens; the shape of its batch,
    if it is run as one."""
    trainer.train()
    rows = [json.loads(line) for line in Path(job["pairs"]).read_text().splitlines()]
    steps = []
    for i in range(1, len(clock.ends)):
        batch = rows[i * job["batch"] : (i + 1) * job["batch"]]
        longest = max(len(row[name]) for row in batch for name in ("chosen_ids", "rejected_ids"))
        tokens = sum(row["tokens"] for row in batch)
        facts = {
            "pairs": len(batch),
            "tokens": tokens,
            "shape": [2 * len(batch), longest] if job["parts"] == 1 else None,
        }
        steps.append({"seconds": clock.ends[i] - clock.ends[i - 1]} | facts)
    return {"first_step_ended": clock.ends[0], "steps": steps}


def peak_bytes() -> int:
    """Peak resident bytes of this process."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def main(path: str) -> None:
    """Runs the job that the file describes."""
    job = json.loads(Path(path).read_text())
    on_gpu = job["device"] == "gpu"
    clock = Learning(job, on_gpu) if job["kind"] == "learn" else Clock(on_gpu)
    trainer = trainer_of(job, clock)
    jobs = {"agree": lambda: agree(trainer), "learn": lambda: learn(trainer, clock)}
    found = jobs.get(job["kind"], lambda: train(trainer, clock, job))()
    found["peak_bytes"] = peak_bytes()
    found["device_peak_bytes"] = torch.cuda.max_memory_allocated() if job["device"] == "gpu" else None
    found["device"] = torch.cuda.get_device_name() if job["device"] == "gpu" else "cpu"
    found["threads"] = torch.get_num_threads()
    found["versions"] = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "trl")}
    found["options"] = {"optimizer": str(trainer.args.optim), "attention": trainer.model.config._attn_implementation}
    Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
