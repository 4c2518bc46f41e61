"""What the target of a move holds under `COPIES_KEY`: who copies, and how far that is."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from esp.core.shared_map import MapFormatError

_FORM: Final = re.compile(rb"([0-9a-f]{32})((?: [0-9]{1,19}){5})")


class Copies(NamedTuple):
    """How far the copies are. Each transaction that copies compares these and writes other ones.

    Attributes:
        mover: `Move.mover` of who copies.
        first: the target's revision before the first copy: all copies have higher ones.
        base: the source's revision whose keys are copied before the source is followed; 0 until there is one.
        at: the source's revision up to which all is copied. Below `base` it counts only what is still there at `base`.
        until: the source's revision up to which it has to be followed at least: something was copied as it was then.
        part: counts the transactions of the revision after `at`, if it takes several.
    """

    mover: str
    first: int = 0
    base: int = 0
    at: int = 0
    until: int = 0
    part: int = 0

    def encode(self) -> bytes:
        """The bytes on the target."""
        return " ".join(map(str, self)).encode()


def decode_copies(data: bytes) -> Copies:
    """The copies with these bytes, which come from the network.

    Raises:
        MapFormatError: they are none.
    """
    found = _FORM.fullmatch(data)
    if found is None:
        raise MapFormatError("are not written as esp writes them")
    return Copies(found[1].decode(), *map(int, found[2].split()))
