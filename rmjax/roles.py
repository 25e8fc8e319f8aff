"""Models by role: a program's parameters hold one model, or several, each below its role's name."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from rmjax.models.parameters import flat, nested


@dataclasses.dataclass(frozen=True)
class Role:
    """A model beside the main one, of the same architecture; it starts as a copy of it.

    Attributes:
      trainable: pattern of its paths that are trained; empty = none.
      with_main: what is trained of the main model is trained of it, too.
      anchor: it holds only what the main model trains, as that was at the start, and shares the rest with it.
    """

    trainable: str = ""
    with_main: bool = False
    anchor: bool = False


@dataclasses.dataclass(frozen=True)
class Roles:
    """The roles of a program; without `others` the parameters are the model's own, not a level deeper."""

    main: str = ""
    others: Mapping[str, Role] = dataclasses.field(default_factory=dict)

    def spread(self, params: Mapping[str, Any], trainable: str) -> dict[str, Any]:
        """The program's parameters from those of the main model. Leaves may be anything: arrays, shapes, boxes."""
        if not self.others:
            return dict(params)
        leaves = flat(params)
        moving = nested({path: leaf for path, leaf in leaves.items() if re.search(trainable, path)})
        others = {name: moving if role.anchor else dict(params) for name, role in self.others.items()}
        return {self.main: dict(params), **others}

    def selected(self, trainable: str) -> str | Callable[[str], bool]:
        """Which paths of the program are trained, where `trainable` is the pattern for the main model's."""
        if not self.others:
            return trainable
        patterns = {self.main: trainable}
        for name, role in self.others.items():
            patterns[name] = "|".join(filter(None, (trainable if role.with_main else "", role.trainable)))

        def chosen(path: str) -> bool:
            role, _, below = path.partition("/")
            return bool(patterns[role]) and re.search(patterns[role], below) is not None

        return chosen

    def of(self, params: Mapping[str, Any], role: str = "") -> dict[str, Any]:
        """The parameters of one role, the main one by default; an anchor's with what it shares."""
        if not self.others:
            return dict(params)
        role = role or self.main
        if role != self.main and self.others[role].anchor:
            return nested(flat(params[self.main]) | flat(params[role]))
        return dict(params[role])


ONE = Roles()
