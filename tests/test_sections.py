"""Every key of every section has a type, and every number a range; what lies outside is refused by the key's name."""

import dataclasses
import math

import pytest

from rmjax import config as base
from rmjax import methods, settings
from rmjax.sections import number, read

SECTIONS = {**settings.SECTIONS, **methods.sections(), **{f"evals.{k}": v for k, v in settings.EVALUATIONS.items()}}
KEYS = [(name, kind, field) for name, kind in SECTIONS.items() for field in dataclasses.fields(kind)]
NUMBERS = [key for key in KEYS if isinstance(key[2].default, int | float) and not isinstance(key[2].default, bool)]
OUTSIDE = (-(10**9), -2, -1, 0, 10**9)


def named(keys):
    return pytest.mark.parametrize(("section", "kind", "field"), keys, ids=[f"{name}.{f.name}" for name, _, f in keys])


def refusal(section, kind, field, value) -> str:
    with pytest.raises(ValueError) as error:
        read(kind, {field.name: value}, f"config.{section}")
    assert str(error.value).startswith(f"config.{section}.{field.name} is {value}; "), error.value
    return str(error.value)


@named(NUMBERS)
def test_every_number_has_a_range(section, kind, field):
    """−2 is outside of all of them, and no number may be NaN, infinite, a boolean or a text."""
    assert "it must be " in refusal(section, kind, field, -2)
    whole = isinstance(field.default, int)
    for value in (math.nan, math.inf, -math.inf, True, [1], *((0.5,) if whole else ())):
        refusal(section, kind, field, value)
    assert getattr(read(kind, {field.name: field.default}, "config"), field.name) == field.default


@named(NUMBERS)
def test_what_is_taken_is_kept_and_what_is_not_is_named(section, kind, field):
    for value in OUTSIDE:
        try:
            found = read(kind, {field.name: value}, f"config.{section}")
        except ValueError as error:
            assert f"config.{section}.{field.name} is {value}; it must be " in str(error)
        else:
            assert getattr(found, field.name) == value


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer.clip", -1.0, "it must be 0 or more"),
        ("optimizer.learning_rate", -1e-2, "it must be 0 or more"),
        ("optimizer.b2", 1.5, "it must be 0 or more and below 1"),
        ("optimizer.b1", -0.5, "it must be 0 or more and below 1"),
        ("optimizer.weight_decay", -1.0, "it must be 0 or more"),
        ("loss.penalty_weight", -1.0, "it must be 0 or more"),
        ("run.seed", -1, "it must be 0 or more"),
        ("data.epochs", -1, "it must be 0 or more"),
        ("data.prefetch", -1, "it must be 0 or more"),
        ("optimizer.warmup", 1.5, "it must be from 0 to 1"),
        ("optimizer.learning_rate", 1e39, r"it must be a finite number in fp32, at most 3\.402823e\+38"),
        ("loss.label_smoothing", 0.5, "it must be 0 or more and below 0.5"),
        ("mesh.fsdp", 0, "it must be 1 or more, or -1 for the rest"),
        ("gradient.order", 3, "it must be 1 or 2"),
        ("gradient.mode", "sgd", "choose plain, parameter_norm, step_norm or preconditioned"),
        ("meta_data.names", "(", "it is not a regular expression"),
        ("adapter.expert_types", 3, "it must be a tuple"),
    ],
)
def test_values_that_runs_were_taken_with_before(key, value, message):
    config = base.get_config()
    section, name = key.split(".")
    with config.ignore_type():
        config[section][name] = value
    with pytest.raises(ValueError, match=rf"config\.{key} is .*; {message}"):
        base.settle(config)


def test_evaluations_are_checked_like_sections():
    config = base.get_config()
    config.evals.mine = base.pool_eval("seen", per_prompt=-2)
    with pytest.raises(ValueError, match="config.evals.mine.per_prompt is -2; it must be 1 or more"):
        base.settle(config)


def test_a_range_is_said_in_words():
    @dataclasses.dataclass(frozen=True)
    class Section:
        x: float = number(0.5, above=0, below=1)

    with pytest.raises(ValueError, match=r"config.mine.x is 1; it must be above 0 and below 1"):
        read(Section, {"x": 1}, "config.mine")
    with pytest.raises(ValueError, match="config.mine.y does not exist; did you mean|there are x"):
        read(Section, {"y": 1}, "config.mine")
