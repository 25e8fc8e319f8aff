"""Rotary positions as config.json has them: `rope_parameters` of transformers 5, the keys before it, and both."""

from collections.abc import Callable, Mapping
from typing import Any

from rmjax.hub.families import Kind
from rmjax.models.rope import Rope

FULL, SLIDING = "full_attention", "sliding_attention"
_KINDS = {
    "default": "none",
    "linear": "linear",
    "dynamic": "dynamic",
    "llama3": "llama3",
    "yarn": "yarn",
    "longrope": "longrope",
}
# Kind → key of a block → our field. `original_max_position_embeddings` has rules of its own.
_LENGTH = "original_max_position_embeddings"
_READ: Mapping[str, Mapping[str, str]] = {
    "none": {},
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "llama3": {"factor": "factor", "low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor"},
    "yarn": {
        "factor": "factor", "attention_factor": "attention_factor", "beta_fast": "beta_fast", "beta_slow": "beta_slow",
        "mscale": "mscale", "mscale_all_dim": "mscale_all_dim", "truncate": "truncate",
    },
    "longrope": {
        "factor": "factor", "attention_factor": "attention_factor", "short_factor": "short_factors",
        "long_factor": "long_factors",
    },
}  # fmt: skip
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "linear": ("factor",), "dynamic": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}  # fmt: skip
_BY_LENGTH = ("llama3", "yarn", "longrope")
Block = Mapping[str, Any]


class RopeError(ValueError):
    """Keys of rotary positions that are missing, unknown, of a kind that is not supported, or that disagree."""


def read_ropes(file: Block, kind: Kind, given: Callable[[str], Any]) -> tuple[Rope, Rope | None]:
    """(of layers that see everything; of windowed ones, where the family has others for them).

    Args:
      file: config.json's keys.
      given: key → its value, or the family's default.

    Raises:
      RopeError: what the keys say is not supported, or they disagree.
    """
    local = "rope_local_base_freq" in kind.rope_keys
    blocks, before = file.get("rope_parameters"), _before(file, kind, given)
    if not blocks:
        return _read(before[FULL], file, kind, given), _read(before[SLIDING], file, kind, given) if local else None
    nested = {FULL, SLIDING} & set(blocks)
    if nested and not local:
        raise RopeError(
            f"rope_parameters is by kind of layer, {', '.join(sorted(blocks))}, which this family does not have"
        )
    if local and not nested:
        raise RopeError(
            f"rope_parameters has no {FULL} and {SLIDING}, by which this family reads it; put it into these, or take it out"
        )
    now = {name: _merged((blocks.get(name) or {}) if nested else blocks, before[name]) for name in (FULL, SLIDING)}
    ropes = {name: _read(now[name], file, kind, given) for name in ((FULL, SLIDING) if local else (FULL,))}
    _refuse_disagreement(file, before, ropes, kind, given)
    return ropes[FULL], ropes.get(SLIDING)


def _before(file: Block, kind: Kind, given: Callable[[str], Any]) -> dict[str, dict[str, Any]]:
    """Blocks of what the keys before transformers 5 say, by kind of layer."""
    scaling = file.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise RopeError(f"rope_scaling is {scaling!r}; it must be an object or null")
    partial = {"partial_rotary_factor": file["partial_rotary_factor"]} if file.get("partial_rotary_factor") else {}
    full = {"rope_theta": given("rope_theta"), **partial, **scaling}
    theta = given("rope_local_base_freq") if "rope_local_base_freq" in kind.rope_keys else full["rope_theta"]
    return {FULL: full, SLIDING: {"rope_theta": theta}}


def _merged(block: Block, before: Block) -> dict[str, Any]:
    """A block of `rope_parameters`; what it lacks of theta and of the turned fraction stands outside."""
    return {name: before[name] for name in ("rope_theta", "partial_rotary_factor") if name in before} | dict(block)


def _refuse_disagreement(
    file: Block, before: Mapping[str, Block], ropes: Mapping[str, Rope], kind: Kind, given: Callable[[str], Any]
) -> None:
    compared: dict[str, tuple[Any, Any]] = {}
    if "rope_scaling" in file:
        compared["rope_scaling"] = _read(before[FULL], file, kind, given), ropes[FULL]
    if file.get("rope_theta") is not None:
        compared["rope_theta"] = given("rope_theta"), ropes[FULL].theta
    if file.get("rope_local_base_freq") is not None and SLIDING in ropes:
        compared["rope_local_base_freq"] = given("rope_local_base_freq"), ropes[SLIDING].theta
    wrong = [f"{key} says {old}, and rope_parameters {new}" for key, (old, new) in compared.items() if old != new]
    if wrong:
        raise RopeError(f"{'; '.join(wrong)}; keep the one that the model was trained with")


def _read(block: Block, file: Block, kind: Kind, given: Callable[[str], Any]) -> Rope:
    named = {block[key] for key in ("rope_type", "type") if block.get(key) is not None}
    if len(named) > 1:
        raise RopeError(f"rope_type and type differ, {' and '.join(sorted(map(str, named)))}; keep one")
    found = named.pop() if named else "default"
    if kind.names.fused and found in ("su", "yarn") and _LENGTH in kind.rope_keys:  # Phi-3's older names
        found = "longrope"
    if found not in _KINDS:
        raise RopeError(f"rope_type is {found!r}; supported: {', '.join(_KINDS)}")
    name = _KINDS[found]
    _check_keys(block, name)
    partial = block.get("partial_rotary_factor")
    if partial not in (None, 1) and "partial_rotary_factor" not in kind.rope_keys:
        raise RopeError(f"partial_rotary_factor is {partial}, which this family's code does not read; take it out")
    fields = {field: block[key] for key, field in _READ[name].items() if block.get(key) is not None}
    if name in _BY_LENGTH:
        fields["original_max_positions"] = file.get(_LENGTH) or block.get(_LENGTH) or _default_length(kind, given)
        fields.setdefault("factor", given("max_position_embeddings") / fields["original_max_positions"])
    fields = {field: tuple(value) if isinstance(value, list) else value for field, value in fields.items()}
    try:
        return Rope(theta=float(block["rope_theta"]), kind=name, partial=float(partial or 1.0), **fields)
    except (TypeError, ValueError) as error:
        raise RopeError(f"rotary positions cannot be {dict(block)} ({error})") from error


def _default_length(kind: Kind, given: Callable[[str], Any]) -> Any:
    return given(_LENGTH if _LENGTH in kind.rope_keys else "max_position_embeddings")


def _check_keys(block: Block, name: str) -> None:
    if missing := [key for key in _NEEDED.get(name, ()) if block.get(key) is None]:
        raise RopeError(f"rope_type is {name!r} without {', '.join(missing)}; get config.json again")
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *_READ[name]}
    known |= {_LENGTH} if name in _BY_LENGTH else set()
    if unread := [f"{key} is {value!r}" for key, value in block.items() if key not in known and value is not None]:
        raise RopeError(f"rope_type is {name!r}, and {', '.join(unread)}, which is not read; get a model without it")


def rope_block(rope: Rope, max_positions: int) -> dict[str, Any]:
    """A block of `rope_parameters` that says this."""
    name = next(key for key, kind in _KINDS.items() if kind == rope.kind)
    plain = Rope()
    block: dict[str, Any] = {"rope_type": name, "rope_theta": rope.theta}
    for key, field in _READ[rope.kind].items():
        value = getattr(rope, field)
        if value != getattr(plain, field) or key in _NEEDED.get(rope.kind, ()) or key == "factor":
            block[key] = list(value) if isinstance(value, tuple) else value
    if rope.kind in _BY_LENGTH:
        block[_LENGTH] = rope.original_max_positions or max_positions
    if rope.partial != 1:
        block["partial_rotary_factor"] = rope.partial
    return block
