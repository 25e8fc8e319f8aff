"""`RewardModel`: load a trained directory and score texts."""

import dataclasses
import functools
import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from rmjax import methods
from rmjax.data.chat import template_text
from rmjax.data.formats import Encoder, Format, completed, refuse_longer, stored
from rmjax.data.messages import as_value
from rmjax.data.record import Comparison, RecordError, parse, unknown_fields
from rmjax.data.texts import Notes
from rmjax.data.tokenizer import Tokenizer
from rmjax.evaluate.scorers import OfMembers, Rewards, RewardScorer, batch_tokens, model_rewards, on_mesh
from rmjax.files import write_text
from rmjax.hub.adapters import fingerprint, frozen_layers, load_adapter
from rmjax.hub.gguf import gguf_path, load_gguf
from rmjax.hub.hugging_face import HubModel, assumed_format, is_hub_folder, open_folder, read_tokenizer
from rmjax.hub.shipped import fetching, model_folder
from rmjax.models.attention import kernels_for, refusal
from rmjax.models.lora import ADAPTER_PATH, AdapterConfig, merged
from rmjax.models.parameters import ParameterError, check_same, first_layers, flat, merge, nested
from rmjax.models.reward import RewardTransformer
from rmjax.models.rope import longest_text
from rmjax.models.stored import Stored, on_devices, on_host, placed
from rmjax.models.transformer import TransformerConfig
from rmjax.parallel.mesh import RULES, Rules, named_mesh, parameter_shardings, replicated
from rmjax.train.checkpoint import Checkpoints
from rmjax.train.state import initial_params

_log = logging.getLogger(__name__)
_SHARED = ("prompt", "messages", "reference", "references", "wrapper")
"""Fields that rows must share to be scored as one group."""
MODEL_FILE, TOKENIZER_FILE, CHECKPOINTS = "model.json", "tokenizer.json", "checkpoints"
ADAPTER_FILE = "adapter.safetensors"
"""In place of checkpoints: adapter and head of a model whose base lies elsewhere (`rmjax.light`)."""


def save_description(
    directory: Path,
    config: TransformerConfig,
    form: Format,
    tokenizer: Tokenizer,
    objective: str = "preference",
    wrapped: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    main_role: str = "",
) -> None:
    """Writes what a checkpoint needs beside it to be read alone: the architecture, the format, the tokenizer; and what it
    was trained for, `config.objective`.

    Args:
      wrapped: method → what it needs to score with the model (`methods.Chosen.saved`).
      main_role: where parameters are by role, that of the main model.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / TOKENIZER_FILE, tokenizer.to_json())
    whole = completed(form, tokenizer)  # with the template's text: no file beside the model is needed
    described = {
        "transformer": dataclasses.asdict(config), "format": dataclasses.asdict(whole), "objective": objective,
        **({"methods": dict(wrapped)} if wrapped else {}), **({"main_role": main_role} if main_role else {}),
    }  # fmt: skip
    write_text(directory / MODEL_FILE, json.dumps(described, indent=1) + "\n")


def load_description(directory: Path) -> tuple[TransformerConfig, Format, Tokenizer]:
    """Reads what `save_description` wrote, or a folder in Hugging Face's form; attention by kernels becomes `blockwise`, of the
    same values, where they do not run. FileNotFoundError or ValueError, naming the file, where that fails."""
    path = directory / MODEL_FILE
    if is_hub_folder(directory):
        return _hub_description(open_folder(directory))
    if not path.is_file():
        if of_hub := fetching(directory):
            raise FileNotFoundError(f"{directory}: no such directory of a model{of_hub}")
        raise FileNotFoundError(f"{path}: not there; a model is a directory that experiments.train has written")
    try:
        described = json.loads(path.read_text())
        config = TransformerConfig.parse(described["transformer"])
        kernels = kernels_for(jax.default_backend())
        if config.attention == "pallas" and refusal(kernels, config.attention_block, config.head_width, config.dtype):
            config = dataclasses.replace(config, attention="blockwise")
        parts = config, stored(described["format"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a model description ({error!r})") from error
    tokenizer, form = _tokenizer(directory, described.get("base")), parts[1]
    tokenizer.chat_template, tokenizer.bos_token = form.template, form.bos_token
    tokenizer.eos_token, tokenizer.adds_bos = form.eos_token or form.end_token, False  # the format says all of it
    return *parts, tokenizer


def _hub_description(
    model: HubModel, form: Format | None = None, template: str = ""
) -> tuple[TransformerConfig, Format, Tokenizer]:
    """A language model's format is its chat template, or none yet."""
    tokenizer = read_tokenizer(model.folder, model.described)
    tokenizer.chat_template = template_text(template) if template else tokenizer.chat_template
    if form is None and not model.head:
        form = Format(kind="chat" if tokenizer.chat_template else "plain", template=tokenizer.chat_template)
    return model.config, form or assumed_format(model, tokenizer), tokenizer


def _tokenizer(directory: Path, base: Mapping[str, str] | None) -> Tokenizer:
    """The directory's own, or its base's, where it has none and only says which one that has to be."""
    if base is None:
        return Tokenizer.load(directory / TOKENIZER_FILE)
    tokenizer = base_model(base["name"], weights=False)[1]
    if tokenizer.fingerprint() != base["tokenizer"]:
        raise ValueError(
            f"{directory}: was made for another tokenizer than that of its base, {base['name']}; bring that back"
        )
    return tokenizer


def base_model(name: str, weights: bool = True) -> tuple[dict[str, Any], Tokenizer]:
    """What adapters lie on: (parameters of `Transformer` on the host, {} without `weights`; tokenizer).

    Args:
      name: smollm2, gemma3, a .gguf file, or a directory that `load_params` reads.

    Raises:
      FileNotFoundError: it is not there.
      ValueError: it cannot be read.
    """
    folder = model_folder(name)
    if folder.is_dir():
        found = flat(load_params(folder)["backbone"] if weights else {})
        bare = nested({path: x for path, x in found.items() if not re.search(ADAPTER_PATH, path)})
        return bare, load_description(folder)[2]
    _, params, tokenizer = load_gguf(gguf_path(name), weights)
    return params, tokenizer


def base_params(name: str, config: TransformerConfig) -> dict[str, Any]:
    """{"backbone": …} of a base, as a model of this architecture has it below its adapter: first layers, stacks, dtypes.

    Raises:
      FileNotFoundError, ValueError: as `base_model`.
    """
    backbone = first_layers(base_model(name)[0], config.depth, config.frozen_layers)
    wanted = flat(abstract_params(dataclasses.replace(config, adapter=None)))
    leaves = flat({"backbone": backbone}).items()
    return nested({path: np.asarray(x).astype(wanted.get(path, x).dtype, copy=False) for path, x in leaves})


def is_language_model(directory: Path) -> bool:
    """Whether a directory that `load_description` can read was trained to write: its reward head is then as it started."""
    if is_hub_folder(directory):
        return not open_folder(directory).head
    objective = _described(directory).get("objective", "preference")  # older descriptions lack it
    return methods.named(objective).language_model


def _described(directory: Path) -> dict[str, Any]:
    """The facts of a description; none where there is no description."""
    path = directory / MODEL_FILE
    return json.loads(path.read_text()) if path.is_file() else {}


def has_measures(directory: Path) -> bool:
    """Whether a model's methods say more of a candidate than its reward: `RewardModel.measures` is not empty."""
    saved = _described(directory).get("methods", {})
    return bool(saved and methods.wrapped(saved, None).measures)


def refuse_wrapped(directory: Path) -> None:
    """ValueError for a model of several members, whose parameters are not those of one model."""
    described = _described(directory)
    if described.get("methods") and not described.get("main_role"):
        raise ValueError(f"{directory} was made by {', '.join(described['methods'])}, and this is for a single model")


def load_params(directory: Path, step: int | None = None, *, every_role: bool = False) -> dict[str, Any]:
    """The main model's parameters of a training directory's newest intact checkpoint (or that of `step`), on the host; those of
    all its roles with `every_role`. Adapter and head on their base, where the directory holds only these. Of a folder in Hugging
    Face's form its parameters, in the dtypes of its files."""
    if is_hub_folder(directory):
        return dict(on_host(open_folder(directory).params))
    if base := _described(directory).get("base"):
        return _on_base(directory, base["name"])
    with Checkpoints(directory / CHECKPOINTS) as checkpoints:
        step, tree = checkpoints.metadata(step)
        parts = {
            name: checkpoints.restore_subtree(name, step=step)[1] for name in ("trainable", "frozen") if name in tree
        }
    found = merge(parts.get("trainable", {}), parts.get("frozen", {}))
    main = _described(directory).get("main_role", "")
    return found[main] if main and not every_role else found


def _on_base(directory: Path, base: str) -> dict[str, Any]:
    config = load_description(directory)[0]
    params = base_params(base, config)
    try:
        adapter, whole = load_adapter(directory / ADAPTER_FILE, params, fingerprint(params))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; get the folder again") from error
    if adapter != config.adapter:
        raise ValueError(f"{directory}: {MODEL_FILE} and {ADAPTER_FILE} are of different models; get the folder again")
    return whole


def abstract_params(config: TransformerConfig) -> dict[str, Any]:
    """Shapes and dtypes of a reward model's parameters."""
    return nn.meta.unbox(jax.eval_shape(functools.partial(initial_params, RewardTransformer(config), 0)))


def _placed(config: TransformerConfig, params: Any, mesh: Mesh | None, rules: Rules = RULES) -> Any:
    """The parameters on a mesh, cut by its rules; on the default device without one.

    Raises:
      ValueError: a parameter does not divide; the message names it.
    """
    if mesh is None:
        default = SingleDeviceSharding(jax.local_devices()[0])
        return jax.tree.map(lambda x: placed(x, default) if isinstance(x, Stored) else jax.device_put(x), params)
    boxed = jax.eval_shape(functools.partial(initial_params, RewardTransformer(config), 0))
    return jax.tree.map(on_devices, params, parameter_shardings(boxed, mesh, rules))


class RewardModel:
    """Scores texts with a trained reward model.

    Rewards are unbounded fp32 numbers without a fixed zero; only differences between outputs for one prompt (and one
    reference) mean anything. They do not depend on what else is in the call, nor on the mesh, to 1e-5 in fp32.

    `scorer` is the model as one of the scorers of `rmjax.evaluate`; `measures` are further ones by name, such as an ensemble's
    `disagreement`.

    Args:
      mesh: where it runs: None is the default device; "all" spreads the rows of a batch over all devices of this process;
        a jax Mesh (`parallel.mesh.make_mesh`) spreads rows, tokens and parameters as in training.
    """

    def __init__(
        self,
        config: TransformerConfig,
        form: Format,
        tokenizer: Tokenizer,
        params: Any,
        mesh: Mesh | str | None = None,
        wrapped: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    ):
        config.check_length(form.max_length, "the format's max_length")
        self.config, self.format, self.tokenizer, self.mesh = config, form, tokenizer, named_mesh(mesh)
        self._wrapped = wrapped
        refuse_longer(form, longest_text(config.rope, config.max_positions))
        measures: Mapping[str, Rewards] = {}
        if wrapped:
            self.params = jax.device_put(params, replicated(self.mesh) if self.mesh else None)
            found = methods.wrapped(wrapped, RewardTransformer(config))
            rewards = self._compiled(found.rewards)
            measures = {name: self._compiled(measure) for name, measure in found.measures.items()}
        else:
            self._check(params)
            self.params = _placed(config, params, self.mesh)
            rewards = model_rewards(config, self.mesh)
        encoder = Encoder(tokenizer, form, row_tokens=2 * form.max_length)
        tokens = batch_tokens(self.mesh)
        self._said: set[str] = set()
        self.scorer = RewardScorer(rewards, self.params, encoder, tokens)
        self.measures = {
            name: RewardScorer(measure, self.params, encoder, tokens, name) for name, measure in measures.items()
        }

    def _compiled(self, rewards: Rewards) -> Rewards:
        if self.mesh:
            return on_mesh(rewards, self.mesh)
        return rewards.compiled(jax.jit) if isinstance(rewards, OfMembers) else jax.jit(rewards)

    def in_tiles(self, block: int) -> tuple[Rewards, bool]:
        """Rewards as the scorer's, and whether their attention is in tiles: of `block` tokens but for pallas' own, of the same
        values; a model of several members keeps what it has."""
        config = self.config_in_tiles(block)
        if config in (None, self.config):
            return self.scorer.rewards, self.config.attention != "dense"
        return model_rewards(config, self.mesh), True

    def config_in_tiles(self, block: int) -> TransformerConfig | None:
        """Of `in_tiles`; None for a model of several members."""
        if self._wrapped or self.config.attention == "pallas":
            return None if self._wrapped else self.config
        return dataclasses.replace(self.config, attention="blockwise", attention_block=block)

    def _check(self, params: Any) -> None:
        if not any(path.startswith("head/") for path in flat(params)):
            raise ParameterError(
                "the checkpoint has no reward head (`head/kernel`): it is a language model, not a reward model"
            )
        check_same(abstract_params(self.config), params)

    @classmethod
    def load(
        cls, path: str | Path, mesh: Mesh | str | None = None, dtype: str = "", form: Format | None = None,
        template: str = "",
    ) -> "RewardModel":  # fmt: skip
        """From a directory that training wrote (its newest intact checkpoint) or `rmjax.light` (an adapter and head on a base
        that lies elsewhere), `shipped:NAME`, one of the latter that comes with the package, or a model of the hub: a folder, or
        `org/model[@revision]` that is in the cache.

        Args:
          mesh: as of the class.
          dtype: of a hub model's activations and weights; "" = of its files.
          form: how a hub model reads texts; None = as `hub.hugging_face.assumed_format` says.
          template: the chat template of a hub model whose folder has none, or another one: Jinja text, a file, or one that ships.

        Raises:
          FileNotFoundError, ValueError: not such a directory, a damaged file, or a language model; the message names it.
          CheckpointError: no intact checkpoint.
          ParameterError: no reward head, or parameters of another architecture than the description's.
        """
        directory = model_folder(path)
        if is_hub_folder(directory):
            return cls._of_hub(open_folder(directory), mesh, dtype, form, template)
        if dtype or form or template:
            raise ValueError(
                f"{directory} is no folder of the hub's form, and has dtype and format of its own; give neither, and no template"
            )
        described, wrapped = load_description(directory), _described(directory).get("methods", {})
        if is_language_model(directory) and not wrapped:
            raise ValueError(
                f"{directory} is a language model (config.objective=language_model), not a reward model; to make one of it, "
                "train with --config.model.init and objective=preference"
            )
        return cls(*described, load_params(directory, every_role=bool(wrapped)), mesh, wrapped)

    @classmethod
    def _of_hub(
        cls, model: HubModel, mesh: Mesh | str | None, dtype: str, form: Format | None, template: str
    ) -> "RewardModel":
        if not model.head:
            raise ValueError(
                f"{model.folder} is a language model ({model.described.architecture or 'without head'}), not a reward model; to "
                "make one of it, train with --config.model.init and objective=preference"
            )
        config, form, tokenizer = _hub_description(model, form, template)
        # These models are made for long texts, whose scores of every token with every other take more memory than the model.
        config, params = dataclasses.replace(config, attention="blockwise"), model.params
        if dtype:
            config = dataclasses.replace(config, dtype=dtype, param_dtype=dtype)
            wanted = flat(abstract_params(config))
            params = nested({path: leaf.astype(wanted[path].dtype) for path, leaf in flat(params).items()})
        return cls(config, form, tokenizer, params, mesh)

    @functools.cached_property
    def base(self) -> str:
        """SHA-256 of all that is neither adapter nor head: what an adapter file is checked against."""
        return fingerprint(self.params)

    def with_adapter(self, path: str | Path) -> "RewardModel":
        """This model with the adapter and head of a file (`hub.adapters.save_adapter`) in place of its own, if it has any.

        Models with adapters of one form on the same layers share base and compiled functions: batches may switch between them
        at no cost. An adapter of another form compiles once; on other layers the base is stacked anew, which is a copy.

        Raises:
          FileNotFoundError, ValueError: as `hub.adapters.load_adapter`.
          ParameterError: the file's parameters are not those of the adapter that it says it is; the message lists them.
        """
        self._refuse_wrapped()
        adapter, params = load_adapter(path, self.params, self.base)
        config = dataclasses.replace(self.config, adapter=adapter, frozen_layers=frozen_layers(params))
        return RewardModel(config, self.format, self.tokenizer, params, self.mesh)

    def merged(self) -> "RewardModel":
        """The same rewards without an adapter: it is added into the weights. ValueError where that is impossible."""
        self._refuse_wrapped()
        params = merged(self.params, self._adapter())
        config = dataclasses.replace(self.config, adapter=None)
        return RewardModel(config, self.format, self.tokenizer, params, self.mesh)

    def _refuse_wrapped(self) -> None:
        if self._wrapped:
            names = ", ".join(self._wrapped)
            raise ValueError(f"the model was made by {names}, and an adapter is of a single model; train one without")

    def _adapter(self) -> AdapterConfig:
        if self.config.adapter is None:
            raise ValueError("this model has no adapter; load one that was trained with config.adapter.kind set")
        return self.config.adapter

    def score(self, rows: Sequence[Mapping[str, Any]], progress: bool = False) -> list[float]:
        """Rewards of {"prompt", "reference"?, "output"} rows (text or message lists), in their order.

        Rows with the same prompt, reference and wrapper are scored as one group, so their shared text is run once.

        Raises:
          RecordError: a field is missing or of the wrong kind; the message names the row.
          ScoreError: a reward is not finite; the message names the row and the cause.
        """
        notes = Notes()
        singles = [self._single(row, f"row {i}", notes) for i, row in enumerate(rows)]
        self._log_rows(rows, notes)
        groups: dict[str, list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(json.dumps([row.get(name) for name in _SHARED], default=str), []).append(i)
        merged = [
            # Parsed together, so that what is taken off a prompt is taken off for all of its answers.
            parse(
                {name: rows[members[0]][name] for name in _SHARED if rows[members[0]].get(name) is not None}
                | {"outputs": [as_value(singles[i].outputs[0]) for i in members]},
                singles[members[0]].place,
            )
            for members in groups.values()
        ]
        result = [0.0] * len(rows)
        for members, values in zip(groups.values(), self.score_groups(merged, progress), strict=True):
            for i, value in zip(members, values, strict=True):
                result[i] = value
        return result

    def _log_rows(self, rows: Sequence[Mapping[str, Any]], notes: Notes) -> None:
        """Warns of what parsing did and of fields that are not read, each once for a model: scoring may be called in a loop."""
        unknown = Counter(f"unknown field `{name}` ignored" for row in rows for name in unknown_fields(row))
        for note, count in sorted((notes + unknown).items()):
            if note not in self._said:
                self._said.add(note)
                _log.warning("rows to be scored: %d × %s", count, note)

    @staticmethod
    def _single(row: Mapping[str, Any], place: str, notes: Notes) -> Comparison:
        c = parse(row, place, notes)
        if len(c.outputs) != 1:
            raise RecordError(place, "output", f"has {len(c.outputs)} candidates", "give one `output` a row")
        return c

    def score_groups(self, comparisons: Sequence[Comparison], progress: bool = False) -> list[list[float]]:
        """Rewards of every output of every record, prefixes shared; with several references their mean.

        Texts cut to the format's lengths and texts that spell special tokens are counted in a log line.

        Raises:
          ScoreError: a reward is not finite; the message names the record and the cause.
        """
        before = self.scorer.counts.copy()
        rewards = self.scorer.score(comparisons, progress)
        if found := self.scorer.counts - before:
            _log.warning("while scoring %d records: %s", len(comparisons), dict(found))
        return rewards
