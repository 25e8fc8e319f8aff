"""A ready recipe: a file of preferences → a config and held-out prompts; and configs in files, with keys set by text."""

import ast
import contextlib
import dataclasses
import hashlib
import importlib.util
import itertools
import json
import logging
import math
import statistics
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ml_collections import ConfigDict

from rmjax.config import chosen, get_config
from rmjax.data.readers import listed, open_records, write_records
from rmjax.data.record import Comparison, RecordError, require_order
from rmjax.data.rows import check_readable
from rmjax.data.sources import is_test, located, prompt_number
from rmjax.data.tokenizer import Tokenizer
from rmjax.files import write_json
from rmjax.hub.gguf import load_gguf, smollm2_path
from rmjax.hub.shipped import DEFAULT, SHIPPED, model_folder, shipped_models
from rmjax.locks import locked
from rmjax.methods import MAIN
from rmjax.models.transformer import TransformerConfig
from rmjax.reward_model import is_language_model, load_description
from rmjax.sections import nearest
from rmjax.streams import format_of, open_stream

_log = logging.getLogger(__name__)
TRAIN, HELD_OUT = "train.jsonl", "held_out.jsonl"
SPLIT = ".split.json"  # which files of a split this module wrote, and what they hold
PASSES = 2  # over the records to train on
FEWEST, LONGEST = 20, 300  # steps
FEW = 20  # held-out prompts, below which a warning says that they are too few
_SAMPLED = 20, 100  # batches, and records, of which it is counted how many a step holds
DEPTH = 18  # layers of a language model at most


def fine_tuning(
    path: str,
    workdir: Path,
    start: str = "",
    on_error: Literal["raise", "skip"] = "raise",
    keys: Sequence[str] = (),
) -> ConfigDict:
    """A config that fine-tunes a model on the preferences in a file, after a fifth of the prompts is laid aside.

    Writes `workdir`/train.jsonl and held_out.jsonl, split by a hash of the prompt; no prompt is on both sides, and of two or more
    prompts each side has one at least. Steps are what `PASSES` passes over the records take, at least `FEWEST` and at most
    `LONGEST`; a step holds what fits into 2 rows of 1,024 tokens, and the log says how many records that is and how many
    passes. From a language model the last 2 of its first `DEPTH`
    layers are trained (Bradley–Terry on its chat template), with SmolLM2 in minutes on two CPU cores; from a reward model what
    was trained in it goes on, in its own format.

    Args:
      path: ranked answers, in any layout that `data.readers.open_records` takes, or `shipped:NAME`.
      start: smollm2, a .gguf file, a model's folder or `shipped:NAME`. Empty: the shipped model where every record has a
        reference, which it reads, and smollm2 otherwise.
      on_error: what to do with a record that is broken or has no order.
      keys: keys to set, as `set_keys` takes them.

    Raises:
      OSError, RecordError: the file, or one of its records, cannot be used.
      FileNotFoundError: there is no such `start`.
      InUseError: another run is in `workdir`.
      ValueError: a key cannot be set, or a run on other preferences has begun in `workdir`. Nothing is written then.
    """
    records = _ordered(path, on_error)
    held = _held_out(path, records)
    sides = {
        name: [c for c in records if (c.prompt in held) == out] for name, out in ((TRAIN, False), (HELD_OUT, True))
    }
    start = start or _start(records)
    config, (architecture, tokenizer) = get_config(), described(start)
    _begin(config, start, architecture.depth)
    config.data.update(
        kind="comparisons", path=str(workdir / TRAIN), reference="optional", rows=2, row_tokens=1024,
        candidates=max(2, *(len(c.outputs) for c in records)),
    )  # fmt: skip
    config.optimizer.learning_rate = 3e-4
    config.run.update(steps=0, save_every=20, log_every=5)
    set_keys(config, keys)
    with _written(workdir, sides) as train:
        in_a_step = records_in_a_step(config, tokenizer, train, sides[TRAIN])
    count = len(sides[TRAIN])
    steps = config.run.steps = config.run.steps or min(LONGEST, max(FEWEST, math.ceil(PASSES * count / in_a_step)))
    _log.info(
        "%s: %d records to train on, %d held out; from %s; %d steps of about %.3g records are %.2g passes over them",
        path, count, len(sides[HELD_OUT]), start, steps, in_a_step, steps * in_a_step / count,
    )  # fmt: skip
    return config


def _held_out(path: str, records: Sequence[Comparison]) -> set[str]:
    """The prompts to lay aside: those whose hash says so, one at least and all but one at most. A warning where they are too few
    to judge a model by."""
    prompts = sorted({c.prompt for c in records}, key=prompt_number)
    held = {prompt for prompt in prompts if is_test(prompt)} or {prompts[0]}
    if len(held) == len(prompts):
        held.remove(prompts[-1])
    if len(held) < FEW:
        _log.warning(
            "%s: %d of its %d prompts %s held out, too few to say how good the model is; give more prompts, or judge it on a "
            "file of others", path, len(held), len(prompts), "is" if len(held) == 1 else "are",
        )  # fmt: skip
    return held


def records_in_a_step(config: ConfigDict, tokenizer: Tokenizer, path: Path, records: Sequence[Comparison]) -> float:
    """How many of a file's records a batch holds in the mean, counted in the first ones.

    Args:
      config: of the run, but for `data.path`.
      tokenizer: of the model that it starts from.
      path: the file.
      records: its records.
    """
    whole = config.copy_and_resolve_references()
    whole.data.update(path=str(path), prefetch=0)
    whole.run.steps = whole.run.steps or LONGEST
    methods = chosen(whole)
    stream = open_stream(methods, tokenizer, format_of(methods, tokenizer))
    batches, sample = _SAMPLED
    forests = (
        batch[MAIN] if isinstance(batch, Mapping) else batch for batch in itertools.islice(stream.batches, batches)
    )
    trees = [int((forest.record_RG >= 0).sum()) for forest in forests]
    each = [
        len(stream.encoders[0].trees(record)) for record in records[:sample]
    ]  # several references are several trees
    return statistics.mean(trees) / (statistics.mean(each) or 1)


@contextlib.contextmanager
def _written(workdir: Path, sides: Mapping[str, Sequence[Comparison]]) -> Iterator[Path]:
    """Writes the sides and gives the place of the one to train on; they come to `workdir` where the block raises nothing. What is
    there stays if a run has begun on it, or if it is somebody else's; a split that no run has read is replaced."""
    workdir.mkdir(parents=True, exist_ok=True)
    with locked(workdir), tempfile.TemporaryDirectory(prefix=".split.", dir=workdir) as folder:
        new = {name: Path(folder) / name for name, found in sides.items() if found}
        for name, path in new.items():
            write_records(path, sides[name])
        now = {name: _digest(path) for name, path in new.items()}
        there = {name: _digest(workdir / name) for name in sides if (workdir / name).exists()}
        other = [name for name, digest in there.items() if digest != now.get(name)]
        if other and not _unused(workdir, there):
            raise ValueError(f"{workdir} holds a run on other preferences ({other[0]} differs); use a new workdir")
        yield new[TRAIN]
        if other:
            _log.warning(
                "%s: no run had begun on the preferences that were split here before; they are replaced", workdir
            )
        for name in other:
            (workdir / name).unlink()
        for name, path in new.items():
            path.replace(workdir / name)
        write_json(workdir / SPLIT, now)


def _unused(workdir: Path, there: Mapping[str, str]) -> bool:
    """Whether the files of a split are as they were written here, and no run has begun on them."""
    if (workdir / "config.json").exists() or not (workdir / SPLIT).exists():
        return False
    with contextlib.suppress(ValueError, AttributeError):
        return json.loads((workdir / SPLIT).read_text(encoding="utf-8")).items() >= there.items()
    return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _ordered(path: str, on_error: Literal["raise", "skip"]) -> list[Comparison]:
    found: list[Comparison] = []
    errors: list[RecordError] = []
    for record in open_records(located(path), on_error):
        try:
            require_order(record)
            found.append(record)
        except RecordError as error:
            errors.append(error)
    if errors and (on_error == "raise" or not found):
        raise errors[0]
    if errors:
        _log.warning("%s: left out %s", path, listed(Counter(error.reason for error in errors)))
    return found


def _start(records: Sequence[Comparison]) -> str:
    there = DEFAULT.removeprefix(SHIPPED) in shipped_models()
    return DEFAULT if there and all(c.references for c in records) else "smollm2"


def _begin(config: ConfigDict, start: str, layers: int) -> None:
    """Sets what depends on the model that a run starts from, which has so many layers."""
    config.model.init = start
    folder = model_folder(start)
    if not folder.is_dir() or is_language_model(folder):
        config.format.kind = "chat"
        depth = min(DEPTH, layers)
        config.model.update(layers=depth, frozen_layers=max(0, depth - 2))
        return
    architecture, form, _ = load_description(folder)
    config.model.frozen_layers = architecture.frozen_layers
    _copy(dataclasses.asdict(form), config.format)
    if architecture.adapter:
        _copy(dataclasses.asdict(architecture.adapter), config.adapter)


def described(start: str) -> tuple[TransformerConfig, Tokenizer]:
    """A model's architecture and tokenizer, without its weights; FileNotFoundError where it is not there."""
    folder = model_folder(start)
    if folder.is_dir():
        architecture, _, tokenizer = load_description(folder)
        return architecture, tokenizer
    path = smollm2_path() if start == "smollm2" else folder
    if not path.is_file():
        raise FileNotFoundError(f"{start}: no such model; give smollm2, a .gguf file, a model's folder or shipped:NAME")
    architecture, _, tokenizer = load_gguf(path, weights=False)
    return architecture, tokenizer


def _copy(facts: Mapping[str, Any], section: ConfigDict) -> None:
    """What both have."""
    section.update({name: value for name, value in facts.items() if name in section})


def read_config(given: str, root: Path = Path()) -> ConfigDict:
    """What `get_config` of a Python file gives: `FILE.py`, or `FILE.py:ARGUMENT`.

    Args:
      given: the file, as `call_in` takes it, with the argument.
      root: as there.

    Raises:
      OSError, ValueError: as `call_in`; or it gives no config.
    """
    name, _, argument = given.partition(":")
    found = call_in(name, "get_config", [argument] if argument else [], root)
    if not isinstance(found, ConfigDict):
        raise ValueError(
            f"{name}: get_config returns {type(found).__name__}; return a ConfigDict, such as rmjax.config.get_config()"
        )
    return found


def call_in(name: str, function: str, arguments: Sequence[str] = (), root: Path = Path()) -> Any:
    """What a function of a Python file gives.

    Args:
      name: of the file, below `root`.
      function: its name.
      arguments: that it gets.
      root: a folder from which the file can import, as from the present one by `python -m`.

    Raises:
      OSError: the file cannot be read.
      ValueError: it has no such function, refuses the arguments, or cannot be run; the message names file and line.
    """
    path = root / name
    check_readable(path)
    sys.path.insert(0, str(root.resolve()))
    try:
        return _called(path, function, arguments)
    except Exception as error:  # whatever the file raises, its author can mend
        raise ValueError(f"{name}{_line_in(path, error)}: {_said(error)}") from error
    finally:
        sys.path.remove(str(root.resolve()))


def _called(path: Path, function: str, arguments: Sequence[str]) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError("is not a Python file; give one whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, function):
        raise ValueError(f"has no function {function}; give it one")
    return getattr(module, function)(*arguments)


def _line_in(path: Path, error: Exception) -> str:
    """`:LINE` where the file was when it raised; nothing where it was not running."""
    frames = traceback.extract_tb(error.__traceback__)
    at = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    return f":{at[-1]}" if at else ""


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def set_keys(config: ConfigDict, changes: Sequence[str]) -> None:
    """Sets keys by text, such as `run.steps=100`; the type is that of the value that is there.

    Raises:
      ValueError: a change that is not KEY=VALUE, a key that does not exist, a value of another type.
    """
    for change in changes:
        key, sign, text = change.removeprefix("config.").partition("=")
        if not sign:
            raise ValueError(f"{change}: is no change of a key; write KEY=VALUE, such as run.steps=100")
        *sections, last = key.split(".")
        place: Any = config
        for name in sections:
            place = _inner(place, name, key)
        before = _inner(place, last, key)
        if isinstance(before, ConfigDict):
            raise ValueError(f"{key} is a section; set one of its keys ({', '.join(before)})")
        place[last] = _typed(before, text, key)


def _inner(place: Any, name: str, key: str) -> Any:
    if not isinstance(place, ConfigDict) or name not in place:
        known = list(place) if isinstance(place, ConfigDict) else []
        raise ValueError(f"there is no config key {key}; {nearest(name, known)}")
    return place[name]


def _typed(before: Any, text: str, key: str) -> Any:
    if isinstance(before, str):
        return text
    if isinstance(before, tuple) and not text:
        return ()
    value: Any = tuple(text.split(","))  # of texts, unless it can be read as something else
    with contextlib.suppress(ValueError, SyntaxError):
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    if isinstance(before, tuple):
        return tuple(value) if isinstance(value, tuple | list) else (value,)
    if isinstance(before, float) and type(value) is int:
        return float(value)
    if type(value) is not type(before):
        raise ValueError(f"{key} is {text!r}; it must be of type {type(before).__name__}, as {before!r} is")
    return value
