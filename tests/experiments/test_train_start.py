"""What experiments/train.py starts from: errors for what is not there, and formats that do not go together."""

import dataclasses
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.start import guarded
from rmjax import config as base
from rmjax import program, start
from rmjax.data.formats import Format
from rmjax.data.tokenizer import Tokenizer
from rmjax.models.rope import Rope
from rmjax.models.transformer import TransformerConfig
from rmjax.parallel.mesh import RULES, make_mesh
from rmjax.reward_model import save_description
from rmjax.settings import Model

DEFAULT_FORMAT = Format(**base.get_config().format.to_dict())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("fast", "config.run.compiler_options has 'fast'; give NAME=VALUE"),
        (
            "xla_nothing=1",
            r"config.run.compiler_options: .*xla_nothing.*options are of one platform, and this run is on cpu",
        ),
    ],
)
def test_options_that_the_compiler_does_not_have(option, message):
    config, mesh = base.get_config(), make_mesh({})
    config.run.compiler_options = ("xla_cpu_enable_fast_math=False",)
    program.check(base.chosen(config), mesh, RULES)
    config.run.compiler_options += (option,)
    with pytest.raises(ValueError, match=message):
        program.check(base.chosen(config), mesh, RULES)


@pytest.fixture
def model(tmp_path, tiny_config):
    """`config.model` that starts from a run directory with SmolLM2's format."""
    tokenizer = Tokenizer.from_bpe(["<|endoftext|>", "a"], [], ["<|endoftext|>"])
    save_description(tmp_path / "run", tiny_config, DEFAULT_FORMAT, tokenizer)
    model = base.get_config().model
    model.init = str(tmp_path / "run")
    return model


def test_sigterm_outside_of_the_loop_ends_a_command_without_fault(capsys):
    before = signal.getsignal(signal.SIGTERM)
    assert guarded(lambda: os.kill(os.getpid(), signal.SIGTERM), resumes=True) == 0
    assert capsys.readouterr().err == "asked to stop; run the same command to go on\n"
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("path", "tied", "head", "multiplied"),
    [
        ("backbone/embedding/embedding", True, False, False),
        ("backbone/embedding/embedding", True, True, True),
        ("backbone/embedding/embedding", False, True, False),
        ("backbone/output/kernel", False, False, False),
        ("backbone/output/kernel", False, True, True),
        ("backbone/layers/attention/output/kernel", False, False, True),
    ],
)
def test_a_token_s_flops_have_the_vocabulary_once_and_only_where_it_is_predicted(path, tied, head, multiplied):
    assert program._multiplied(path, tied, head) == multiplied


def make(config):
    """The program of a tiny model with the config's dtypes."""
    config.model.update(init="random", layers=1, width=16, heads=2, kv_heads=1, mlp_width=32)
    chosen, mesh = base.chosen(config), make_mesh({})
    program.check(chosen, mesh, RULES)
    return program.make_program(chosen, start.start_of(chosen).config, mesh, RULES)


def test_texts_longer_than_rotary_positions_allow_are_refused():
    config = base.get_config()
    short = TransformerConfig(97, 16, 1, 2, 1, 8, 32, rope=Rope(kind="dynamic", factor=2.0), max_positions=256)
    chosen = base.chosen(config)
    with pytest.raises(
        ValueError, match=r"config.format.max_length is 1024, but .*rope.kind=dynamic.* lower it to 256"
    ):
        program.make_program(chosen, short, make_mesh({}), RULES)


def test_parameters_that_rounding_keeps_from_learning_are_warned_of(caplog):
    config = base.get_config()
    config.model.param_dtype = "bfloat16"
    make(config)
    assert "a step below 1/256 of a weight is lost in rounding" in caplog.text
    caplog.clear()
    config.adapter.kind, config.adapter.beta = "lora", 0.1
    make(config)
    assert "lost in rounding" not in caplog.text
    assert "config.adapter.beta: of loramoe only, without effect; kind is 'lora'" in caplog.text


@pytest.mark.parametrize("name", ["runs/nowhere", "smollm", "absent.gguf"])
def test_a_start_that_is_not_there_is_an_error(name):
    model = base.get_config().model
    model.init = name
    with pytest.raises(FileNotFoundError, match=f"config.model.init={name}: no such run directory or .gguf file"):
        start.load_start(model)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"width": 6, "heads": 2, "kv_heads": 1},
            "config.model.width is 6 for 2 heads of 3; .* make it a multiple of 4",
        ),
        ({"width": 16, "heads": 3, "kv_heads": 3}, "config.model.heads is 3; it must divide config.model.width, 16"),
        ({"width": 16, "heads": 4, "kv_heads": 3}, "config.model.kv_heads is 3; it must divide config.model.heads, 4"),
        ({"width": 2, "heads": 4}, "config.model.heads is 4; it must divide config.model.width, 2"),
    ],
)
def test_sizes_that_no_heads_can_have(tiny_config, sizes, message):
    model = dataclasses.replace(Model(), init="random", **sizes)
    with pytest.raises(ValueError, match=message):
        start._changed(start.Start(tiny_config, None, None, ""), model)


def test_the_same_format_passes_in_silence(model, caplog):
    start.check_format(model, DEFAULT_FORMAT)
    model.init = "smollm2"
    start.check_format(model, dataclasses.replace(DEFAULT_FORMAT, split_token="<other>"))  # no run to differ from
    assert not caplog.records


@pytest.mark.parametrize(("field", "before"), [("split_token", "<file_sep>"), ("reward_token", "<empty_output>")])
def test_other_special_tokens_are_an_error(model, field, before):
    with pytest.raises(ValueError, match=f"format.{field} is '<other>', but .*run was trained with '{before}'"):
        start.check_format(model, dataclasses.replace(DEFAULT_FORMAT, **{field: "<other>"}))


def test_other_lengths_are_warned_of(model, caplog):
    with caplog.at_level(logging.WARNING):
        start.check_format(model, dataclasses.replace(DEFAULT_FORMAT, max_length=256, response_cut_side="left"))
    assert "config.format.max_length is 256" in caplog.text and "was trained with 1024" in caplog.text
    assert "config.format.response_cut_side is left" in caplog.text
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "--config=configs/polar/finetune.py:rmb_bon_dev",
            "rmb_bon_dev is not a set to train on; there are hh_harmless",
        ),
        (
            "--config=configs/polar/pretrain.py --workdir=gs://bucket/run",
            "--workdir=gs://bucket/run is a URL; mount the bucket",
        ),
        ("--nosuchflag", "Unknown command line flag 'nosuchflag'"),
        (
            "--config=configs/polar/pretran.py:x",
            "--config=configs/polar/pretran.py: no such file; near names in configs/polar: pretrain.py",
        ),
    ],
)
def test_wrong_flags_are_one_line(tmp_path, flag, message):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.train", f"--workdir={tmp_path}", *flag.split()],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") and message in done.stderr


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, "home/.cache/rmjax/xla"),
        ({"JAX_COMPILATION_CACHE_DIR": "jax"}, "jax"),
        ({"JAX_COMPILATION_CACHE_DIR": "jax", "RMJAX_CACHE": "ours"}, "ours"),
    ],
)
def test_compiled_programs_are_kept_where_the_environment_says(tmp_path, given, wanted):
    """In a process of its own, without what the tests themselves set."""
    names = ("RMJAX_CACHE", "JAX_COMPILATION_CACHE_DIR")
    own = {name: value for name, value in os.environ.items() if name not in names}
    code = "import jax; from experiments.start import prepare; prepare(); print(jax.config.jax_compilation_cache_dir)"
    done = subprocess.run(
        [sys.executable, "-c", code], text=True, capture_output=True, check=False, cwd=Path(__file__).parents[2],
        env=own | {"HOME": str(tmp_path / "home")} | {name: str(tmp_path / folder) for name, folder in given.items()},
    )  # fmt: skip
    assert done.stdout.split() == [str(tmp_path / wanted)], done.stderr
