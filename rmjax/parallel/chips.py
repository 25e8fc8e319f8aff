"""TPU chips and slices: what a chip can do, how chips are wired, and the devices of a slice that is not there."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Sequence

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published peaks of one chip."""

    flops: float  # FLOP/s, bfloat16 matrix products
    hbm_bytes: float  # capacity
    hbm_speed: float  # bytes/s
    link_speed: float  # bytes/s of one ICI link in one direction
    torus: int  # axes of the interconnect
    ring: int  # an axis of a slice closes to a ring if its length is a multiple of this


# Source: cloud.google.com/tpu/docs/{v5e,v5p,v6e}, "system architecture", read in November 2026. A link's speed is the chip's
# bidirectional ICI bandwidth (400, 1200, 800 GB/s) over its ports (4, 6, 4) and two directions. Which axes close to rings is an
# assumption, of common knowledge and not of those pages: v5e and v6e slices where an axis is the pod's 16, v5p slices where
# they are made of whole cubes of 4 × 4 × 4.
CHIPS: dict[str, Chip] = {
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 50e9, torus=2, ring=16),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 100e9, torus=3, ring=4),
    "v6e": Chip(918e12, 32 * 2**30, 1600e9, 100e9, torus=2, ring=16),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice of a pod: its chip and the lengths of its axes."""

    name: str  # as "v5e:16x16"
    kind: str
    lengths: tuple[int, ...]

    @classmethod
    def parse(cls, name: str) -> "Slice":
        """From "v5e:16x16".

        Raises:
          ValueError: an unknown chip, or lengths that its interconnect cannot have.
        """
        kind, _, sizes = name.partition(":")
        if kind not in CHIPS:
            raise ValueError(f"topology {name!r}: choose a chip of {', '.join(CHIPS)} and its axes, as v5e:16x16")
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes) or sizes.count("x") + 1 != CHIPS[kind].torus:
            axes = "x".join("4" * CHIPS[kind].torus)
            raise ValueError(f"topology {name!r}: a {kind} slice has {CHIPS[kind].torus} axes, as {kind}:{axes}")
        return cls(name, kind, tuple(map(int, sizes.split("x"))))

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def rings(self) -> tuple[bool, ...]:
        """Which axes close to a ring. A v5p slice has rings only if it is made of whole cubes."""
        closed = [length % self.chip.ring == 0 for length in self.lengths]
        return tuple(closed) if self.chip.torus == 2 else (all(closed),) * len(closed)


def slice_devices(where: Slice) -> Sequence[jax.Device]:
    """The devices of a slice, to compile for. They can hold no array. Needs libtpu, and no TPU.

    Raises:
      ImportError: libtpu is not installed.
      ValueError: the compiler knows no such slice.
    """
    try:
        import libtpu  # noqa: F401  (jax would say only that it finds no platform)
    except ImportError as error:
        raise ImportError("compiling for a TPU needs libtpu: pip install -c constraints.txt -e .[tpu]") from error
    from jax.experimental import topologies

    with _quiet():
        try:
            return topologies.get_topology_desc(platform="tpu", topology_name=where.name).devices
        except jax.errors.JaxRuntimeError as error:
            raise ValueError(f"topology {where.name!r}: libtpu knows no such slice ({str(error)[:200]})") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """libtpu asks Google's metadata server what machine this is; elsewhere that takes minutes and prints errors."""
    known = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "", "TPU_WORKER_HOSTNAMES": "localhost"}
    added = {name: value for name, value in known.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
