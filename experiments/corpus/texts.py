"""The corpora that tuned policies are made on, read from installed packages: {"prompt", "output"} rows.

verne: Jules Verne, In the Year 2889 (public domain, in reasoning-gym). docstrings, code: the Python standard library
(PSF license; tuned on, never shipped). tasks: reasoning-gym questions and bare gold answers (Apache-2.0).
"""

import inspect
import re
import textwrap
from importlib import import_module, resources

import reasoning_gym

from experiments.corpus.tasks import POOL_TASKS

_MODULES = ("argparse", "collections", "csv", "datetime", "difflib", "email.message", "fractions", "functools", "heapq",
            "inspect", "json", "logging", "mailbox", "os", "pathlib", "pickle", "random", "shutil", "statistics",
            "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "turtle", "unittest.case",
            "urllib.request", "uuid", "zipfile")  # fmt: skip


def corpora() -> dict[str, list[dict[str, str]]]:
    """name → rows."""
    return {"verne": _verne(), "docstrings": _docstrings(), "tasks": _tasks(), "code": _code()}


def _verne() -> list[dict[str, str]]:
    text = (resources.files("reasoning_gym") / "data" / "in_the_year_2889.txt").read_text()
    sentences = re.split(r"(?<=[.!?])\s+", " ".join(text.split()))
    return [
        {"prompt": sentences[i], "output": " ".join(sentences[i + 1 : i + 4])} for i in range(0, len(sentences) - 4)
    ]


def _functions():
    for module in map(import_module, _MODULES):
        owners = [(module.__name__, module)] + inspect.getmembers(module, inspect.isclass)
        for owner, holder in owners:
            for name, function in inspect.getmembers(holder, inspect.isfunction):
                written = not function.__code__.co_filename.startswith("<")  # not made by exec, as namedtuples are
                if written and not name.startswith("_") and function.__module__ == module.__name__:
                    yield f"{owner}.{name}", function


def _docstrings() -> list[dict[str, str]]:
    texts = {name: inspect.getdoc(function) or "" for name, function in _functions()}
    return [{"prompt": f"What about {name}?", "output": text} for name, text in texts.items() if len(text) > 80]


def _code() -> list[dict[str, str]]:
    sources = {name: textwrap.dedent(inspect.getsource(function)) for name, function in _functions()}
    return [{"prompt": f"Write {name}.", "output": text} for name, text in sources.items() if len(text) < 900]


def _tasks() -> list[dict[str, str]]:
    return [
        {"prompt": entry["question"], "output": entry["answer"]}
        for task in POOL_TASKS
        for entry in reasoning_gym.create_dataset(task, size=40, seed=100)
        if entry["answer"]
    ]
