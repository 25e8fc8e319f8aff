"""POLAR (arXiv 2507.05197): pre-training on who wrote what. Its loss is that of `preference`; what it adds is the data.

A group is drawn from a pool of policies: a reference and a positive by one policy, negatives by others (appendix D.1.1).
"""

from typing import Any

from rmjax.data.sources import Records, pool_groups
from rmjax.methods.method import Method
from rmjax.settings import Config


def _pool(config: Config) -> Records:
    if config.data.negatives + 1 > config.data.candidates:
        raise ValueError(
            f"config.data.candidates is {config.data.candidates}; {config.data.negatives} negatives need "
            f"{config.data.negatives + 1}"
        )
    return pool_groups(config.data)


def _check(config: Config, mesh: Any, rules: Any) -> None:
    del mesh, rules
    order = config.sections["loss"].order
    if order != "ranks":
        raise ValueError(f"config.loss.order is {order!r}, but a pool has ranks only; set it to ranks")


METHOD = Method("polar", check=_check, active=lambda config: config.data.kind == "pool", kinds={"pool": _pool})
