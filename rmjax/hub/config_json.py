"""config.json of Hugging Face's form to an architecture and back; one that would change the model and is not read is an error."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmjax.hub.families import DESCRIPTIVE, FIELDS, KINDS, NESTED, NEUTRAL, Kind
from rmjax.hub.rope_json import FULL, SLIDING, RopeError, read_ropes, rope_block
from rmjax.hub.tensors import HubError
from rmjax.models.transformer import TransformerConfig

CONFIG = "config.json"
Keys = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Described:
    """What config.json says.

    Attributes:
      model_type: one of `families.KINDS`.
      architecture: the class that it was written by; "" = not said.
      transformer: the decoder; of its dtypes nothing is said yet.
      nested: it is the decoder inside a model that sees.
      tokens: bos, eos, pad, reward → ids; empty where there are none.
      standard: (mean, std) by which OpenRLHF standardizes rewards when asked to; here, as in transformers, they stay as they are.
    """

    model_type: str
    architecture: str
    transformer: TransformerConfig
    nested: bool
    tokens: Mapping[str, tuple[int, ...]]
    standard: tuple[float, float] = (0.0, 1.0)

    @property
    def kind(self) -> Kind:
        """The family."""
        return KINDS[self.model_type]

    @property
    def for_rewards(self) -> bool:
        """Whether its class has a reward head."""
        return self.architecture.endswith(("ForSequenceClassification", "RewardModel"))


def read_config(folder: Path) -> Described:
    """Reads a folder's config.json.

    Raises:
      FileNotFoundError: there is none.
      HubError: not JSON, an unsupported family, a size that is missing or no number, or keys that would change the model and are
        not read, all of which are named.
    """
    path = folder / CONFIG
    try:
        file = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise HubError(f"{path}: not JSON ({error}); get the file again") from error
    if not isinstance(file, dict):
        raise HubError(f"{path}: is a {type(file).__name__}; it must be an object")
    try:
        return _described(file)
    except ValueError as error:  # TransformerConfig's own among them
        raise HubError(f"{path}: {error}") from error
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise HubError(
            f"{path}: a value is 0 or of another kind than its key has ({error}); get the file again"
        ) from error


def _described(file: Keys) -> Described:
    if file.get("quantization_config"):
        method = file["quantization_config"].get("quant_method", "?")
        raise HubError(f"quantization_config is set ({method}); get the model's weights in 16 or 32 bits")
    outer, key = file, NESTED.get(file.get("model_type", ""))
    if key:
        file = file.get(key) or {}
    found = file.get("model_type", "gemma3_text" if key else None)
    if found not in KINDS:
        raise HubError(f"model_type is {found!r}; supported: {', '.join((*KINDS, *NESTED))}")
    classes = outer.get("architectures") or [""]
    named = {
        name: outer.get(f"{name}_token_id", file.get(f"{name}_token_id")) for name in ("bos", "eos", "pad", "reward")
    }
    tokens = {
        name: tuple(ids if isinstance(ids, list) else [] if ids is None else [ids]) for name, ids in named.items()
    }
    standard = float(outer.get("mean") or 0.0), float(1.0 if outer.get("std") is None else outer["std"])
    return Described(found, str(classes[0]), _architecture(file, KINDS[found]), bool(key), tokens, standard)


def _architecture(file: Keys, kind: Kind) -> TransformerConfig:
    faults = unread(file, kind)

    def given(key: str) -> Any:
        return kind.defaults.get(key) if file.get(key) is None else file[key]

    fields: dict[str, Any] = {field: given(key) for key, field in FIELDS.items()}
    fields["kv_heads"] = fields["kv_heads"] or fields["heads"]
    if fields["head_width"] is None and isinstance(fields["width"], int) and isinstance(fields["heads"], int):
        fields["head_width"] = fields["width"] // max(1, fields["heads"])
    faults += [_size_fault(key, fields[field]) for key, field in FIELDS.items()]
    if faults := [fault for fault in faults if fault]:
        raise HubError(
            f"keys change the model and are not supported, or are missing: {'; '.join(faults)}; use a model without them"
        )
    fields |= (
        dict(kind.fixed) | _switches(file, kind) | _gemma(kind, fields, given) | _layers(file, kind, fields, given)
    )
    try:
        rope, local = read_ropes(file, kind, given)
    except RopeError as error:
        raise HubError(str(error)) from error
    if (
        rope.kind == "longrope"
    ):  # a text's own length would decide between two models: here it is the one of short texts
        fields["max_positions"] = min(fields["max_positions"], rope.original_max_positions)
    return TransformerConfig(rope=rope, local_rope=local if fields["window"] and local != rope else None, **fields)


def unread(file: Keys, kind: Kind) -> list[str]:
    """Keys that would change the model and are not read, each with its value."""
    known, neutral = kind.read(), dict(NEUTRAL) | dict(kind.neutral)
    return [
        f"{key} is {_shown(value)}" + (f", supported: {', '.join(map(str, neutral[key]))}" if neutral.get(key) else "")
        for key, value in file.items()
        if key not in known
        and value not in (None, [], {}, "")
        and not any(_same(value, each) for each in neutral.get(key, ()))
        and not DESCRIPTIVE.fullmatch(key)
    ]


def _same(value: Any, other: Any) -> bool:
    """Whether JSON says the same, 1 and 1.0 being one number and true none."""
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


def _size_fault(key: str, value: Any) -> str:
    if value is None:
        return f"{key} is missing"
    if key == "tie_word_embeddings":
        return "" if isinstance(value, bool) else f"{key} is {value!r}, not true or false"
    if key == "rms_norm_eps":
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
        return "" if number else f"{key} is {value!r}, not a number above 0"
    whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return "" if whole else f"{key} is {value!r}, not a whole number above 0"


def _switches(file: Keys, kind: Kind) -> dict[str, bool]:
    """Biases."""
    found: dict[str, bool] = {}
    for key, fields in kind.switches.items():
        value = kind.defaults.get(key) if file.get(key) is None else file[key]
        for field in fields if value is not None else ():
            if found.setdefault(field, bool(value)) != bool(value):
                raise HubError(f"{' and '.join(kind.switches)} disagree; keep one")
    return found


def _gemma(kind: Kind, fields: Keys, given: Any) -> dict[str, float]:
    if not kind.gemma:
        return {}
    scale = given("query_pre_attn_scalar")
    return {
        "embedding_scale": float(fields["width"]) ** 0.5,
        "attention_scale": 0.0 if scale == fields["head_width"] else float(scale) ** -0.5,
        "attention_softcap": float(given("attn_logit_softcapping") or 0.0),
        "logit_softcap": float(given("final_logit_softcapping") or 0.0),
    }


def _layers(file: Keys, kind: Kind, fields: Keys, given: Any) -> dict[str, Any]:
    """Windows and layers without rotary positions."""
    rotary = _rotary(file, fields["depth"], given) if kind.windows == "rotary_free" else ()
    size = file["sliding_window"] if "sliding_window" in file else given("sliding_window")
    switched = kind.windows in ("all", "pattern", "in_turn") or (kind.windows != "none" and given("use_sliding_window"))
    windowed = _windowed(file, kind, fields["depth"], rotary, given) if size and switched else ()
    if not any(windowed):
        return {"window": 0, "windowed": (), "rotary": rotary}
    return {"window": int(size), "windowed": () if all(windowed) else windowed, "rotary": rotary}


def _rotary(file: Keys, depth: int, given: Any) -> tuple[bool, ...]:
    said = file.get("no_rope_layers")  # 1 = with rotary positions, whatever its name
    if said is not None and len(said) < depth:
        raise HubError(f"no_rope_layers says it of {len(said)} layers, and there are {depth}; get config.json again")
    every = given("no_rope_layer_interval")
    found = tuple(bool(x) for x in said[:depth]) if said else tuple((i + 1) % every != 0 for i in range(depth))
    return () if all(found) else found


def _windowed(file: Keys, kind: Kind, depth: int, rotary: tuple[bool, ...], given: Any) -> tuple[bool, ...]:
    if kind.windows == "all":
        return (True,) * depth
    if said := file.get("layer_types"):
        if len(said) != depth or set(said) - {FULL, SLIDING}:
            raise HubError(f"layer_types has {len(said)} entries, {', '.join(sorted(set(said)))}, for {depth} layers")
        return tuple(each == SLIDING for each in said)
    if kind.windows == "upper":
        return tuple(i >= given("max_window_layers") for i in range(depth))
    if kind.windows == "rotary_free":
        return tuple(not turned for turned in rotary)
    period = 2 if kind.windows == "in_turn" else given("sliding_window_pattern")
    return tuple((i + 1) % period != 0 for i in range(depth))


def written_config(config: TransformerConfig, model_type: str) -> dict[str, Any]:
    """What config.json says of an architecture in a family; read again it is the same.

    Raises:
      HubError: the family cannot say it; the message names a field.
    """
    kind = KINDS[model_type]
    file: dict[str, Any] = {"model_type": model_type, "hidden_act": "silu"}
    file |= {key: getattr(config, field) for key, field in FIELDS.items()}
    file |= {key: getattr(config, fields[0]) for key, fields in kind.switches.items()}
    if kind.gemma:
        scale = config.attention_scale
        file |= {
            "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": _whole(scale**-2) if scale else config.head_width,
            "attn_logit_softcapping": config.attention_softcap or None,
            "final_logit_softcapping": config.logit_softcap or None,
        }  # fmt: skip
    file |= _written_layers(config, kind) | _written_ropes(config, kind)
    _refuse_other(_architecture(file, kind), config, model_type)
    return file


def _whole(value: float) -> int | float:
    """A whole number as one, which transformers insists on."""
    near = round(value)
    return near if math.isclose(value, near, rel_tol=1e-9) else value


def _written_layers(config: TransformerConfig, kind: Kind) -> dict[str, Any]:
    if kind.windows == "none":
        return {}
    file: dict[str, Any] = {"sliding_window": config.window or None}
    windowed = config.windowed or (bool(config.window),) * config.depth
    if kind.windows != "all":
        file["layer_types"] = [SLIDING if each else FULL for each in windowed]
    if kind.windows in ("upper", "rotary_free"):
        file["use_sliding_window"] = bool(config.window)
    if kind.windows == "upper":  # before layer_types there was this
        file["max_window_layers"] = sum(not each for each in windowed)
    if kind.windows == "rotary_free":
        file["no_rope_layers"] = [int(each) for each in config.rotary or (True,) * config.depth]
    if kind.windows == "pattern" and config.window and not all(windowed):
        file["sliding_window_pattern"] = windowed.index(False) + 1
    return file


def _written_ropes(config: TransformerConfig, kind: Kind) -> dict[str, Any]:
    """Both forms, for readers before transformers 5 and since."""
    block = rope_block(config.rope, config.max_positions)
    scaling = {key: value for key, value in block.items() if key not in ("rope_theta", "partial_rotary_factor")}
    plain = config.rope.kind == "none"
    file = {"rope_parameters": block, "rope_theta": config.rope.theta, "rope_scaling": None if plain else scaling}
    if "partial_rotary_factor" in kind.rope_keys:
        original = block.get("original_max_position_embeddings", config.max_positions)
        file |= {"partial_rotary_factor": config.rope.partial, "original_max_position_embeddings": original}
    if "rope_local_base_freq" in kind.rope_keys:
        local = config.local_rope or (config.rope if config.window else dataclasses.replace(config.rope, kind="none"))
        file["rope_parameters"] = {FULL: block, SLIDING: rope_block(local, config.max_positions)}
        file["rope_local_base_freq"] = local.theta
    return file


def _refuse_other(said: TransformerConfig, wanted: TransformerConfig, model_type: str) -> None:
    """HubError where a family's keys do not say all of an architecture."""
    ours, theirs = dataclasses.asdict(wanted), dataclasses.asdict(said)
    elsewhere = {"head", "head_hidden", "head_bias", "dtype", "param_dtype", "remat", "attention", "attention_block"}
    for name in sorted(set(ours) - elsewhere - {"frozen_layers", "adapter"}):
        if ours[name] != theirs[name] and not _close(ours[name], theirs[name]):
            raise HubError(f"a {model_type} model has {name} {theirs[name]}, and this one {ours[name]}")


def _close(a: Any, b: Any) -> bool:
    return isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=1e-7)
