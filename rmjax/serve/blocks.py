"""Which beginnings of sequences have their keys and values on the device, in blocks of tokens, and which are worth it.

A beginning is a chain of whole blocks, each known by its tokens and the block before it: there are no hashes that could be
mistaken. A block is stored once it is run for the second time, so that answers, which never come again, push nothing out.
"""

import dataclasses
import itertools
from collections import OrderedDict
from collections.abc import Iterator

BLOCK = 32
"""Tokens."""
TOKEN_BYTES = 4
"""Of a token in a key (`items.key`)."""
SIGHTINGS = 1 << 16
"""Blocks, the last ones run, that would be known again."""
_ROOT = 0


@dataclasses.dataclass
class Block:
    """A block in the pool."""

    id: int  # never given twice
    place: int  # in the pool
    turn: int  # of its last use


class Blocks:
    """The blocks of a pool, least recently used out. A block is never older than those that follow it, so none is left whose
    beginning is gone.

    Args:
      count: blocks that the pool has room for.
    """

    def __init__(self, count: int):
        self.count = count
        self._found: OrderedDict[tuple[int, bytes], Block] = (
            OrderedDict()
        )  # (the block before, tokens), the oldest first
        self._free = list(range(count))
        self._sightings: OrderedDict[int, None] = (
            OrderedDict()
        )  # hashes: a wrong one stores a block that is not asked for
        self._ids, self._turn = itertools.count(_ROOT + 1), 0

    def __len__(self) -> int:
        return len(self._found)

    def kept(self, key: bytes) -> tuple[int, ...]:
        """Places of the blocks that a sequence begins with, as far as they are there; they leave it a token."""
        places, before = [], _ROOT
        for tokens in _whole(key[:-TOKEN_BYTES]):
            found = self._found.get((before, tokens))
            if found is None:
                break
            places.append(found.place)
            before = found.id
        return tuple(places)

    def begin(self) -> None:
        """A new turn: what is used from now on stays until the next one."""
        self._turn += 1

    def use(self, key: bytes, blocks: int) -> None:
        """The first blocks of a sequence, which are there, are used in this turn."""
        chain, before = [], _ROOT
        for tokens in itertools.islice(_whole(key), blocks):
            chain.append((before, tokens))
            before = self._found[chain[-1]].id
        self._touch(chain)

    def run(self, key: bytes, together: int = 0, room: int = SIGHTINGS) -> dict[int, int]:
        """A sequence is run; its block number → the place where it is now to be stored. What this turn uses makes no room.

        Args:
          together: tokens from the start that are run for several sequences at once.
          room: blocks to be stored at most.
        """
        chain: list[tuple[int, bytes]] = []
        new: dict[int, int] = {}
        before, sighting = _ROOT, 0
        for n, tokens in enumerate(_whole(key)):
            sighting = hash((sighting, tokens))
            again = self._sighted(sighting) or (n + 1) * BLOCK <= together
            node = (before, tokens)
            if len(chain) < n:  # an earlier one is not there
                continue
            if again and node not in self._found and len(new) < room and self._add(node):
                new[n] = self._found[node].place
            if node in self._found:
                chain.append(node)
                before = self._found[node].id
        self._touch(chain)
        return new

    def _sighted(self, sighting: int) -> bool:
        known = sighting in self._sightings
        self._sightings[sighting] = None
        self._sightings.move_to_end(sighting)
        if len(self._sightings) > SIGHTINGS:
            self._sightings.popitem(last=False)
        return known

    def _add(self, node: tuple[int, bytes]) -> bool:
        """Whether there was room."""
        if not self._free:
            oldest = next(iter(self._found))
            if self._found[oldest].turn == self._turn:
                return False
            self._free.append(self._found.pop(oldest).place)
        self._found[node] = Block(next(self._ids), self._free.pop(), self._turn)
        return True

    def _touch(self, chain: list[tuple[int, bytes]]) -> None:
        for node in reversed(chain):
            self._found[node].turn = self._turn
            self._found.move_to_end(node)


def _whole(key: bytes) -> Iterator[bytes]:
    """Whole blocks of tokens."""
    size = BLOCK * TOKEN_BYTES
    return (key[start : start + size] for start in range(0, len(key) - size + 1, size))
