"""What lies below a prefix: keys, bytes, writes."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple


class Measure(StrEnum):
    """What a plan balances."""

    KEYS = "keys"
    BYTES = "bytes"
    WRITES = "writes"


class Weights(NamedTuple):
    """The fields are in the order of `Measure`.

    Attributes:
        keys: number of keys.
        bytes: of the keys and their values.
        writes: puts and deletes that were seen.
    """

    keys: int
    bytes: int
    writes: int

    def less(self, other: Weights) -> Weights:
        """These without those of `other`."""
        return Weights(self[0] - other[0], self[1] - other[1], self[2] - other[2])

    def of(self, measure: Measure) -> int:
        """The number by one measure."""
        return self[_PLACES[measure]]

    def share(self, of: Weights) -> float:
        """The greatest of the shares by each measure; a measure of which there is nothing does not count."""
        keys = self[0] / of[0] if of[0] else 0.0
        size = self[1] / of[1] if of[1] else 0.0
        writes = self[2] / of[2] if of[2] else 0.0
        return max(keys, size, writes)


NOTHING: Final = Weights(0, 0, 0)
_PLACES: Final = {measure: place for place, measure in enumerate(Measure)}
