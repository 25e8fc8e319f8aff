"""`config.adapter` → the adapter, its constraint, and what may then be trained."""

import dataclasses
import logging
import re
from typing import Any

from rmjax.losses.balance import Balance, equal_groups
from rmjax.models.lora import ADAPTER_PATH, AdapterConfig
from rmjax.models.transformer import TransformerConfig

_log = logging.getLogger(__name__)


def adapter_config(section: Any) -> AdapterConfig | None:
    """From `config.adapter`; None where its kind is empty."""
    if not section.kind:
        return None
    mixture = {"experts": section.experts, "top_k": section.top_k, "router": section.router}
    return AdapterConfig(
        section.kind, section.pattern, section.rank, section.alpha, section.dropout,
        **(mixture if section.kind == "loramoe" else {}),
    )  # fmt: skip


def check_adapter(section: Any, parts: int) -> None:
    """Says what `config.adapter` sets in vain; ValueError where its experts cannot be cut into `parts` over the mesh."""
    if section.kind == "loramoe":
        if section.experts % parts:
            raise ValueError(
                f"config.adapter.experts is {section.experts}; make it a multiple of {parts}, over which config.sharding.experts "
                "cuts them, or set that to ()"
            )
        return
    in_vain = [name for name in ("beta", "expert_types", "top_k") if section[name]]
    if in_vain:
        _log.warning("config.adapter.%s: of loramoe only, without effect; kind is %r", ", ".join(in_vain), section.kind)


def make_balance(section: Any) -> Balance | None:
    """From `config.adapter`; None where nothing is routed.

    Raises:
      ValueError: values that the constraint cannot have; experts that make no two equal groups where these are needed.
    """
    if section.kind != "loramoe":
        return None
    types = tuple(section.expert_types)
    if types and len(types) != section.experts:
        raise ValueError(
            f"config.adapter.expert_types has {len(types)} entries; give one for each of {section.experts}"
        )
    return Balance(
        types or equal_groups(section.experts, exactly=section.beta > 0), section.beta, section.delta, section.balance,
        section.reduce, section.length_normalized,
    )  # fmt: skip


def types_needed(section: Any) -> int:
    """How many types the records' labels must be of; 0 where they need none."""
    balance = make_balance(section)
    return balance.types if balance and balance.beta else 0


def trainable_paths(config: Any) -> str:
    """`config.trainable`; with an adapter only its parameters and the head among those: the base is frozen."""
    if not config.adapter.kind:
        return config.trainable
    try:
        re.compile(config.trainable)
    except re.error as error:
        raise ValueError(f"config.trainable is {config.trainable!r}, not a regular expression: {error}") from error
    return rf"^(?=.*(?:{ADAPTER_PATH}|^head/))(?=.*(?:{config.trainable}))"


def adapted_architecture(base: TransformerConfig, section: Any) -> TransformerConfig:
    """The architecture with the adapter of `config.adapter`.

    Raises:
      ValueError: the base has another adapter already.
    """
    wanted, present = adapter_config(section), base.adapter
    if present is not None and (wanted is None or dataclasses.replace(wanted, dropout=present.dropout) != present):
        raise ValueError(
            f"config.model.init has an adapter, {present}; set config.adapter to the same one to train it further, "
            "or merge it first: python -m experiments.export --to=merged"
        )
    return dataclasses.replace(base, adapter=wanted)
